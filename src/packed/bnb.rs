//! bitsandbytes: NF4 and FP4 in flat blocks (which run across rows), with plain or quantized block scales, and LLM.int8().
//! The tables are bitsandbytes' own; `create_dynamic_map` is followed in single precision.

use super::engines::{Engines, Verdict, no_mlx};
use super::matrix::{Blocks, Coding, Input, Numbers, Packed};
use super::mixture::own_or_kept;
use super::names::group_word;
use super::pieces::{Found, Pieces, numbers};
use super::read::{Read, Suffixes, Tool, admits_all, flag, text};
use super::{
    Activations, Bits, ChannelScaling, Data, DefaultRounding, F32, Feedback, Format, GroupRule, I8, Loader, Module,
    Name, Reach, Scales, Scope, Slot, Spec, Symmetry, not_multiple, slot,
};
use crate::dtype::{Dtype, GgmlType};
use crate::minifloat::largest;
use rayon::prelude::*;
use serde_json::{Value, json};

/// Sixteen quantiles of the normal distribution.
pub static NF4: Format = Format {
    id: "nf4",
    purpose: "bitsandbytes; what QLoRA trains on",
    tool: &TOOL,
    names: &[
        Name { words: "nf4", bits: 4, group: Some(64) },
        Name { words: "bnb-nf4", bits: 4, group: Some(64) },
        Name { words: "bnb-4bit", bits: 4, group: Some(64) },
    ],
    shown: |spec| shown(spec, "nf4"),
    bits: Bits::Named,
    group: GroupRule::Flat,
    symmetry: Symmetry::Symmetric,
    layouts: &[],
    if_asymmetric: None,
    as_compressed_tensors: None,
    fallback: None,
    orders_columns: false,
    nests: true,
    reach: Reach::Blocks,
    scales: Scales::Stored(F32),
    shares_scale: false,
    activations: Activations::Exact,
    feedback: Feedback::None,
    rounding: DefaultRounding::Nearest,
    scaling: ChannelScaling::None,
    refuses: |_, rows, cols| not_multiple("weights", rows * cols, 2, "two share a byte"),
    layout: |spec, n, k, dtype| slots(spec, &QUANTILES, n, k, dtype),
    nearest: |spec, module| Ok(four_bits(spec, &QUANTILES, module)),
    entry: |spec| entry(spec, QUANTILES.name),
    config,
    engines: &ENGINES,
};

/// Sixteen four-bit floats.
pub static FP4: Format = Format {
    id: "fp4",
    purpose: "bitsandbytes",
    tool: &TOOL,
    names: &[Name { words: "fp4", bits: 4, group: Some(64) }, Name { words: "bnb-fp4", bits: 4, group: Some(64) }],
    shown: |spec| shown(spec, "fp4"),
    bits: Bits::Named,
    group: GroupRule::Flat,
    symmetry: Symmetry::Symmetric,
    layouts: &[],
    if_asymmetric: None,
    as_compressed_tensors: None,
    fallback: None,
    orders_columns: false,
    nests: true,
    reach: Reach::Blocks,
    scales: Scales::Stored(F32),
    shares_scale: false,
    activations: Activations::Exact,
    feedback: Feedback::None,
    rounding: DefaultRounding::Nearest,
    scaling: ChannelScaling::None,
    refuses: |_, rows, cols| not_multiple("weights", rows * cols, 2, "two share a byte"),
    layout: |spec, n, k, dtype| slots(spec, &FLOATS, n, k, dtype),
    nearest: |spec, module| Ok(four_bits(spec, &FLOATS, module)),
    entry: |spec| entry(spec, FLOATS.name),
    config,
    engines: &ENGINES,
};

/// LLM.int8(): eight-bit integers with a scale per row; activations too, but for channels with outliers.
pub static INT8: Format = Format {
    id: "bnb-int8",
    purpose: "bitsandbytes, 8 bits",
    tool: &TOOL,
    names: &[Name { words: "bnb-int8", bits: 8, group: None }, Name { words: "bnb-8bit", bits: 8, group: None }],
    shown: |_| "bnb-int8".into(),
    bits: Bits::Named,
    group: GroupRule::Fixed,
    symmetry: Symmetry::Symmetric,
    layouts: &[],
    if_asymmetric: None,
    as_compressed_tensors: None,
    fallback: None,
    orders_columns: false,
    nests: false,
    reach: Reach::Blocks,
    scales: Scales::Stored(F32),
    shares_scale: false,
    activations: Activations::Int8Mixed,
    feedback: Feedback::None,
    rounding: DefaultRounding::Nearest,
    scaling: ChannelScaling::None,
    refuses: |_, _, _| None,
    layout: |spec, n, k, dtype| {
        let scales = spec.format.scales.dtype(dtype);
        vec![slot("SCB", scales, &[n]), slot("weight", I8, &[n, k]), slot("weight_format", Dtype::U8, &[])]
    },
    nearest: |_, module| Ok(int8(module)),
    // The type of four bits is not looked at.
    entry: |spec| entry(spec, "fp4"),
    config,
    engines: &ENGINES,
};

pub(super) static TOOL: Tool = Tool {
    name: "bitsandbytes",
    method: Some("bitsandbytes"),
    admits: admits_all,
    suffixes: Suffixes {
        main: &["weight"],
        sign: &["weight.absmax", "SCB"],
        shape: &[QUANTILES.state, FLOATS.state],
        others: &["weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map", "weight_format"],
    },
    label: |config| match flag(config, "load_in_8bit") {
        true => "bnb-int8".into(),
        false => {
            let nested = if flag(config, "bnb_4bit_use_double_quant") { "-dq" } else { "" };
            format!("{}{nested}", text(config, "bnb_4bit_quant_type"))
        }
    },
    groups: None,
    shape,
    unpack: |read, n, k| match read.pieces.find("SCB") {
        Some(_) => unpack_int8(&read.pieces, n, k),
        None => unpack_four_bits(&read.pieces, n, k),
    },
    input,
    engine_tensors: &[],
    loader: Loader::Torch,
    doubles_config: false,
    extra_config_files: &[],
    mixes: |_, _| false,
    mixture: own_or_kept,
    engines: |_| &ENGINES,
};

static ENGINES: Engines = Engines {
    vllm: |config, tp| {
        let split = tp > 1 && flag(config, "load_in_8bit");
        Verdict::default()
            .note(true, "needs the plugin: pip install vllm-bnb-plugin")
            .refuse(split, "LLM.int8() weights cannot be split over devices")
    },
    transformers: |_| Verdict::default().note(true, "needs: pip install bitsandbytes"),
    mlx: |_| no_mlx("bitsandbytes"),
};

/// A code of four bits.
struct FourBits {
    /// As `bnb_4bit_quant_type` has it.
    name: &'static str,
    /// The suffix of the tensor that describes a module.
    state: &'static str,
    value: fn(u8) -> f32,
    /// The code nearest to a number from -1 to 1.
    code: fn(f32) -> u8,
}

const QUANTILES: FourBits = FourBits {
    name: "nf4",
    state: "weight.quant_state.bitsandbytes__nf4",
    value: |code| NF4_VALUES[usize::from(code & 15)],
    code: to_nf4,
};

const FLOATS: FourBits =
    FourBits { name: "fp4", state: "weight.quant_state.bitsandbytes__fp4", value: fp4_value, code: to_fp4 };

fn shown(spec: &Spec, name: &str) -> String {
    let group = if spec.group == Some(64) { String::new() } else { format!("-{}", group_word(spec)) };
    format!("{name}{group}{}", if spec.nested { "-dq" } else { "" })
}

fn entry(spec: &Spec, kind: &str) -> Value {
    let four = spec.bits == 4;
    json!({
        "load_in_4bit": four,
        "load_in_8bit": !four,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": spec.nested,
        "bnb_4bit_compute_dtype": if four { "bfloat16" } else { "float32" },
    })
}

fn config(spec: &Spec, scope: Scope) -> Value {
    // A list takes the place of the reader's own, which has the output in it.
    let mut skipped = scope.kept.to_vec();
    if !skipped.is_empty() && !skipped.iter().any(|n| n == "lm_head") {
        skipped.insert(0, "lm_head".into());
    }
    let mut config = json!({ "quant_method": "bitsandbytes" });
    let rest = json!({
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": if skipped.is_empty() { Value::Null } else { json!(skipped) },
        "llm_int8_threshold": 6.0,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "_load_in_4bit": spec.bits == 4,
        "_load_in_8bit": spec.bits != 4,
    });
    for part in [(spec.format.entry)(spec), rest] {
        if let (Value::Object(config), Value::Object(part)) = (&mut config, part) {
            config.extend(part);
        }
    }
    config
}

/// Quantiles of the normal distribution, ascending (QLoRA, Dettmers et al. 2023).
const NF4_VALUES: [f32; 16] = [
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.3949175,
    -0.28444138,
    -0.18477343,
    -0.091050036,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
];

/// Twelfths of the magnitudes that bitsandbytes' four-bit floats stand for, by their lower three bits; bit 3 is the sign.
const FP4_TWELFTHS: [f32; 8] = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];

/// Block scales that share a second scale.
const NESTED_BLOCK: usize = 256;
/// Characters kept for the number `nested_offset`, so that sizes do not depend on the weights.
const OFFSET_CHARS: usize = 24;

/// The value of an FP4 code.
const fn fp4_value(code: u8) -> f32 {
    let value = FP4_TWELFTHS[(code & 7) as usize] / 12.0;
    if code > 8 { -value } else { value }
}

/// bitsandbytes' `create_dynamic_map()`: 256 values in -1 ..= 1, dense around 0.
fn dynamic_map() -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for i in 0..7 {
        let bins = 1 << i;
        let edge = |j: usize| linspace_edge(j, bins);
        let scale = 10f64.powi(i - 6) as f32;
        for j in 0..bins {
            let middle = (edge(j) + edge(j + 1)) / 2.0;
            let value = scale * middle;
            values.extend([value, -value]);
        }
    }
    values.sort_by(f32::total_cmp);
    let mut map = [0.0; 256];
    map.iter_mut().zip(values).for_each(|(map, v)| *map = v);
    map
}

/// Edge `j` of `bins` equal bins of 0.1 .. 1, as torch's `linspace` computes it: from whichever end is nearer, rounded once.
fn linspace_edge(j: usize, bins: usize) -> f32 {
    let step = (1.0f32 - 0.1) / bins as f32;
    let from = |end: f32, steps: f64| (f64::from(end) + f64::from(step) * steps) as f32;
    if j < bins.div_ceil(2) { from(0.1, j as f64) } else { from(1.0, -((bins - j) as f64)) }
}

/// The tensors of a module in four bits.
fn slots(spec: &Spec, codes: &FourBits, rows: usize, cols: usize, dtype: GgmlType) -> Vec<Slot> {
    let blocks = (rows * cols).div_ceil(spec.group_of(64));
    let absmax = if spec.nested { Dtype::U8 } else { spec.format.scales.dtype(dtype) };
    let state = state(spec, codes, [rows, cols], dtype, 0.0).len();
    let mut slots = vec![slot("weight", Dtype::U8, &[rows * cols / 2, 1]), slot("weight.absmax", absmax, &[blocks])];
    if spec.nested {
        slots.push(slot("weight.nested_absmax", F32, &[blocks.div_ceil(NESTED_BLOCK)]));
        slots.push(slot("weight.nested_quant_map", F32, &[256]));
    }
    slots.push(slot("weight.quant_map", F32, &[16]));
    slots.push(slot(codes.state, Dtype::U8, &[state]));
    slots
}

/// The JSON text that travels as a tensor, spaced as Python's `json.dumps` does.
fn state(spec: &Spec, codes: &FourBits, [rows, cols]: [usize; 2], dtype: GgmlType, offset: f32) -> Vec<u8> {
    let kind = codes.name;
    let block = spec.group_of(64);
    let dtype = torch_name(dtype);
    let mut text =
        format!(r#"{{"quant_type": "{kind}", "blocksize": {block}, "dtype": "{dtype}", "shape": [{rows}, {cols}]"#);
    let mut pad = 0;
    if spec.nested {
        let number = serde_json::Value::from(f64::from(offset)).to_string();
        pad = OFFSET_CHARS.saturating_sub(number.len());
        text +=
            &format!(r#", "nested_blocksize": {NESTED_BLOCK}, "nested_dtype": "float32", "nested_offset": {number}"#);
    }
    text.push('}');
    text.extend(std::iter::repeat_n(' ', pad));
    text.into_bytes()
}

/// The data of [`slots`].
fn four_bits(spec: &Spec, kind: &FourBits, m: &Module) -> Data {
    let block = spec.group_of(64);
    let map: [f32; 16] = std::array::from_fn(|code| (kind.value)(code as u8));
    let code = kind.code;
    let mut packed = vec![0; m.weights.len() / 2];
    let mut absmax = vec![0.0; m.weights.len().div_ceil(block)];
    let blocks = packed.par_chunks_mut(block / 2).zip(&mut absmax).zip(m.weights.par_chunks(block));
    blocks.with_min_len(64).for_each(|((packed, absmax), w)| {
        *absmax = largest(w);
        let inverse = if *absmax > 0.0 { 1.0 / *absmax } else { 0.0 };
        for (byte, pair) in packed.iter_mut().zip(w.as_chunks::<2>().0) {
            *byte = code(pair[0] * inverse) << 4 | code(pair[1] * inverse);
        }
    });
    let numbers = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let state = |offset| state(spec, kind, [m.rows, m.cols], m.dtype, offset);
    if !spec.nested {
        return vec![packed, numbers(&absmax), numbers(&map), state(0.0)];
    }
    let sum: f64 = absmax.iter().map(|x| f64::from(*x)).sum();
    let offset = (sum / absmax.len() as f64) as f32;
    let nested_map = dynamic_map();
    let mut codes = vec![0; absmax.len()];
    let mut nested = vec![0.0; absmax.len().div_ceil(NESTED_BLOCK)];
    for ((codes, nested), absmax) in codes.chunks_mut(NESTED_BLOCK).zip(&mut nested).zip(absmax.chunks(NESTED_BLOCK)) {
        let off: Vec<f32> = absmax.iter().map(|x| x - offset).collect();
        *nested = largest(&off);
        let inverse = if *nested > 0.0 { 1.0 / *nested } else { 0.0 };
        codes.iter_mut().zip(off).for_each(|(code, x)| *code = nearest(&nested_map, x * inverse));
    }
    vec![packed, codes, numbers(&nested), numbers(&nested_map), numbers(&map), state(offset)]
}

/// torch's name for the type of a checkpoint.
fn torch_name(dtype: GgmlType) -> &'static str {
    match dtype {
        GgmlType::F16 => "float16",
        GgmlType::BF16 => "bfloat16",
        _ => "float32",
    }
}

/// The entry of an ascending table that is nearest to `x`, after `x` was rounded to one of 65536 steps from -1 to 1, as
/// bitsandbytes' look-up has it; of equals the lower.
fn nearest(map: &[f32; 256], x: f32) -> u8 {
    const STEPS: f64 = 65535.0;
    let x = ((f64::from(x) + 1.0) * (STEPS / 2.0)).round_ties_even() * 2.0 / STEPS - 1.0;
    let above = map.partition_point(|v| f64::from(*v) < x).min(255);
    let below = above.saturating_sub(1);
    if x - f64::from(map[below]) <= f64::from(map[above]) - x { below as u8 } else { above as u8 }
}

fn to_nf4(x: f32) -> u8 {
    place(&NF4_VALUES, x)
}

/// FP4's values have two zeros: what is just above zero gets the code of the negative one.
fn to_fp4(x: f32) -> u8 {
    const ASCENDING: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];
    const VALUES: [f32; 16] = {
        let mut values = [0.0; 16];
        let mut i = 0;
        while i < 16 {
            values[i] = fp4_value(ASCENDING[i]);
            i += 1;
        }
        values
    };
    ASCENDING[usize::from(place(&VALUES, x))]
}

/// The place of the nearest of ascending values; of equals the lower.
fn place(values: &[f32; 16], x: f32) -> u8 {
    values.windows(2).map(|pair| u8::from(x > (pair[0] + pair[1]) / 2.0)).sum()
}

/// `SCB`, `weight`, `weight_format`: eight-bit integers, 127 for a row's largest weight.
fn int8(m: &Module) -> Data {
    let mut codes = vec![0; m.rows * m.cols];
    let mut scales = vec![0.0; m.rows];
    let rows = codes.par_chunks_mut(m.cols).zip(&mut scales).zip(m.weights.par_chunks(m.cols));
    rows.for_each(|((codes, scale), w)| {
        *scale = largest(w);
        // torch divides a number by a tensor in two steps.
        let inverse = if *scale > 0.0 { 1.0 / *scale * 127.0 } else { 0.0 };
        codes.iter_mut().zip(w).for_each(|(code, w)| *code = (w * inverse).round_ties_even() as i8 as u8);
    });
    vec![scales.iter().flat_map(|x| x.to_le_bytes()).collect(), codes, vec![0]]
}

fn shape(read: &Read) -> Found<(usize, usize)> {
    let p = &read.pieces;
    if p.find("SCB").is_some() {
        return p.matrix("weight").map(|[n, k]| (n, k));
    }
    let state = read_state(p)?;
    let dims = state.get("shape").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    match dims.iter().map(|d| d.as_u64().and_then(|d| usize::try_from(d).ok())).collect::<Vec<_>>()[..] {
        [Some(n), Some(k)] if n > 0 && k > 0 => Ok((n, k)),
        _ => Err("the quantization state names no shape".into()),
    }
}

fn input(read: &Read) -> Found<Input> {
    if read.pieces.find("SCB").is_none() {
        return Ok(Input::Exact);
    }
    let threshold = read.config.get("llm_int8_threshold").and_then(Value::as_f64).unwrap_or(6.0);
    let none = threshold <= 0.0;
    Ok(if none { Input::Int8 } else { Input::Int8Mixed { threshold: threshold as f32 } })
}

fn read_state(p: &Pieces) -> Found<Value> {
    let state = p.0.iter().find(|p| p.suffix.starts_with("weight.quant_state."));
    let state = state.ok_or("has no quantization state")?;
    serde_json::from_slice(&state.data).map_err(|e| format!("its quantization state is not JSON: {e}"))
}

fn unpack_four_bits(p: &Pieces, n: usize, k: usize) -> Found<Packed> {
    let state = read_state(p)?;
    let whole = |key: &str| state.get(key).and_then(Value::as_u64).filter(|v| *v > 0).map(|v| v as usize);
    let block = whole("blocksize").ok_or("its quantization state names no block size")?;
    let blocks = (n * k).div_ceil(block);
    let weight = p.get("weight")?;
    if weight.data.len() != (n * k).div_ceil(2) {
        return Err(format!("'weight' has {} bytes for {n} x {k} codes of four bits", weight.data.len()));
    }
    // The first of two weights is in the high half.
    let codes = weight.data.iter().map(|b| b.rotate_left(4)).collect();
    let map = numbers(p.shaped("weight.quant_map", &[16])?)?;
    let values = Box::new(std::array::from_fn(|code| map.get(code & 15)));
    let scales = match p.find("weight.nested_absmax") {
        None => numbers(p.shaped("weight.absmax", &[blocks])?)?,
        Some(_) => {
            let nested = whole("nested_blocksize").ok_or("its quantization state names no nested block size")?;
            let offset = state.get("nested_offset").and_then(Value::as_f64).unwrap_or(0.0) as f32;
            let scales = numbers(p.shaped("weight.nested_absmax", &[blocks.div_ceil(nested)])?)?;
            let map = numbers(p.shaped("weight.nested_quant_map", &[256])?)?;
            let codes = p.bytes("weight.absmax", &[blocks])?;
            let value = |(i, code): (usize, &u8)| map.get(usize::from(*code)) * scales.get(i / nested) + offset;
            Numbers::F32(codes.iter().enumerate().map(value).collect())
        }
    };
    Ok(Packed::new(n, k, 4, codes, None, Coding::Table(values), scales, Blocks::Flat(block)))
}

fn unpack_int8(p: &Pieces, n: usize, k: usize) -> Found<Packed> {
    let codes = p.bytes("weight", &[n, k])?.to_vec();
    if p.find("weight_format").is_some_and(|f| f.data.iter().any(|b| *b != 0)) {
        return Err("its rows are interleaved for a GPU".into());
    }
    let scales = numbers(p.shaped("SCB", &[n])?)?;
    let scales = Numbers::F32((0..n).map(|row| scales.get(row) * (1.0 / 127.0)).collect());
    Ok(Packed::new(n, k, 8, codes, Some(k), Coding::Signed, scales, Blocks::Grid { rows: 1, cols: k }))
}
