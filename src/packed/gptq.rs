//! GPTQ as AutoGPTQ and GPTQModel store it: integers and zero points in 32-bit words along the columns, in two layouts.
//! Frantar et al. 2022; the codes themselves are chosen elsewhere.

use super::bits::{pack_rows, to_bytes, transpose, words};
use super::engines::{Check, Engines, Verdict, mlx_on_integers};
use super::integer::on_grid;
use super::matrix::{Blocks, Packed};
use super::mixture::wider_and_grouped;
use super::names::group_word;
use super::pieces::{Found, Pieces, numbers, transposed, unpack_rows, zero_points};
use super::read::{Read, Suffixes, Tool, bits, bits_word, exact, flag, text};
use super::{
    Activations, Bits, ChannelScaling, Data, DefaultRounding, F16, Feedback, Format, GroupRule, I32, Loader, Name,
    Reach, Scales, Scope, Slot, Spec, Symmetry, compressed, not_multiple, slot,
};
use crate::dtype::GgmlType;
use crate::feedback::int::Codes;
use crate::minifloat;
use crate::{Error, Result};
use serde_json::{Map, Value, json};

/// AutoGPTQ's first layout: zero points less one.
pub static GPTQ: Format = Format {
    id: "gptq",
    purpose: "read nearly everywhere; error feedback",
    tool: &TOOL,
    names: &[Name { words: "gptq", bits: 4, group: Some(128) }],
    shown: |spec| shown(spec, if spec.symmetric { "" } else { "-v1" }),
    bits: Bits::Of(&[2, 3, 4, 8]),
    group: GroupRule::Free,
    symmetry: Symmetry::Choice { symmetric: true },
    layouts: LAYOUTS,
    // It cannot hold a zero point of 0.
    if_asymmetric: Some(&GPTQ_V2),
    as_compressed_tensors: Some(&compressed::PACK_QUANTIZED),
    fallback: None,
    orders_columns: true,
    nests: false,
    reach: Reach::Blocks,
    scales: Scales::Stored(F16),
    shares_scale: false,
    activations: Activations::Exact,
    feedback: Feedback::Integers { least_zero: 1, pack: |_, codes, _| pack(codes, true) },
    rounding: DefaultRounding::Feedback,
    scaling: ChannelScaling::None,
    refuses,
    layout,
    nearest: |spec, module| pack(&on_grid(spec, module), true),
    entry,
    config: |spec, scope| config(spec, scope, "gptq"),
    engines: &ENGINES,
};

/// Its second: zero points as they are.
pub static GPTQ_V2: Format = Format {
    id: "gptq_v2",
    purpose: "GPTQ with zero points as they are",
    tool: &TOOL,
    names: &[Name { words: "gptqv2", bits: 4, group: Some(128) }],
    shown: |spec| shown(spec, if spec.symmetric { "-v2" } else { "" }),
    bits: Bits::Of(&[2, 3, 4, 8]),
    group: GroupRule::Free,
    symmetry: Symmetry::Choice { symmetric: true },
    layouts: LAYOUTS,
    if_asymmetric: None,
    as_compressed_tensors: Some(&compressed::PACK_QUANTIZED),
    fallback: None,
    orders_columns: true,
    nests: false,
    reach: Reach::Blocks,
    scales: Scales::Stored(F16),
    shares_scale: false,
    activations: Activations::Exact,
    feedback: Feedback::Integers { least_zero: 0, pack: |_, codes, _| pack(codes, false) },
    rounding: DefaultRounding::Feedback,
    scaling: ChannelScaling::None,
    refuses,
    layout,
    nearest: |spec, module| pack(&on_grid(spec, module), false),
    entry,
    config: |spec, scope| config(spec, scope, "gptq_v2"),
    engines: &ENGINES,
};

static LAYOUTS: &[(&str, &Format)] = &[("v1", &GPTQ), ("v2", &GPTQ_V2)];

pub(super) static TOOL: Tool = Tool {
    name: "gptq",
    method: Some("gptq"),
    admits: |config| minus_one(config).map(|_| ()),
    suffixes: Suffixes { main: &["qweight"], sign: &["scales"], shape: &[], others: &["qzeros", "g_idx"] },
    label: |config| format!("gptq{}", bits_word(config)),
    groups: Some(("scales", 0)),
    shape,
    unpack: |read, n, k| unpack(&read.pieces, n, k, minus_one(read.config)?),
    input: exact,
    engine_tensors: &[],
    loader: Loader::Torch,
    doubles_config: false,
    extra_config_files: &["quantize_config.json"],
    mixes: |a, b| a.format == b.format && a.desc_act == b.desc_act,
    mixture: |own| [wider_and_grouped(own, &[2, 3, 4, 8]), vec![None]].concat(),
    engines: |_| &ENGINES,
};

static ENGINES: Engines = Engines {
    vllm: |config, _| {
        let (bits, group) = (whole(config, "bits"), whole(config, "group_size"));
        let symmetric = flag(config, "sym");
        let kind = if symmetric { "symmetric" } else { "asymmetric" };
        let takes = symmetric && matches!(bits, 4 | 8);
        let ordered = flag(config, "desc_act") && group != -1;
        Verdict::checking(&[Check::WholeWords, Check::UsualGroups])
            .refuse(!takes, format!("GPTQ with {bits} bits, {kind}: it takes 4 or 8 bits, symmetric"))
            .refuse(ordered, "desc_act with groups: it takes columns in their own order only")
            .note(bits == 8, "8 bits run on GPUs only; its CPU kernels have 4")
    },
    transformers: |_| Verdict::default().note(true, "needs: pip install optimum gptqmodel"),
    mlx: mlx_on_integers,
};

fn whole(config: &Value, key: &str) -> i64 {
    config.get(key).and_then(Value::as_i64).unwrap_or_default()
}

fn shown(spec: &Spec, layout: &str) -> String {
    let symmetry = if spec.symmetric { "" } else { "-asym" };
    let order = if spec.desc_act { "-desc" } else { "" };
    format!("gptq-{}bit-{}{symmetry}{order}{layout}", spec.bits, group_word(spec))
}

fn refuses(spec: &Spec, rows: usize, cols: usize) -> Option<String> {
    // So many codes end on a word: 8 of four bits, 32 of three.
    let whole = 32 >> spec.bits.trailing_zeros();
    super::broken_group(spec, rows, cols)
        .or_else(|| not_multiple("columns", cols, whole, "codes fill 32-bit words"))
        .or_else(|| not_multiple("rows", rows, whole, "zero points fill 32-bit words"))
}

fn layout(spec: &Spec, n: usize, k: usize, dtype: GgmlType) -> Vec<Slot> {
    let groups = spec.groups(k);
    vec![
        slot("g_idx", I32, &[k]),
        slot("qweight", I32, &[words(k, spec.bits), n]),
        slot("qzeros", I32, &[groups, words(n, spec.bits)]),
        slot("scales", spec.format.scales.dtype(dtype), &[groups, n]),
    ]
}

/// `g_idx`, `qweight`, `qzeros`, `scales`; `minus_one` stores zero points less one.
fn pack(codes: &Codes, minus_one: bool) -> Result<Data> {
    let (n, k, groups) = (codes.rows, codes.cols, codes.groups());
    let g_idx: Vec<u32> = match &codes.g_idx {
        Some(g_idx) => g_idx.clone(),
        None => (0..k).map(|k| (k / codes.group) as u32).collect(),
    };
    let mut zeros = transpose(&codes.zeros, n, groups);
    if minus_one {
        if zeros.contains(&0) {
            let error = Error::bad_input("has a zero point of 0, which the first GPTQ layout cannot hold");
            return Err(error.hint("use the second layout (v2), or symmetric groups"));
        }
        zeros.iter_mut().for_each(|z| *z -= 1);
    }
    let packed = pack_rows(&codes.codes, k, codes.bits);
    Ok(vec![
        to_bytes(&g_idx),
        to_bytes(&transpose(&packed, n, words(k, codes.bits))),
        to_bytes(&pack_rows(&zeros, n, codes.bits)),
        minifloat::to_bytes(GgmlType::F16, &transpose(&codes.scales, n, groups)),
    ])
}

fn entry(spec: &Spec) -> Value {
    json!({ "bits": spec.bits, "group_size": spec.group_size(), "sym": spec.symmetric })
}

fn config(spec: &Spec, scope: Scope, checkpoint_format: &str) -> Value {
    let mut config = json!({
        "quant_method": "gptq",
        "bits": spec.bits,
        "group_size": spec.group_size(),
        "desc_act": spec.desc_act,
        "sym": spec.symmetric,
        "checkpoint_format": checkpoint_format,
        "pack_dtype": "int32",
        "lm_head": false,
    });
    let pattern = |sign: char, name: &str| format!("{sign}:^{}$", regex::escape(name));
    let mut dynamic = Map::new();
    for name in scope.kept.iter().filter(|n| *n != "lm_head") {
        dynamic.insert(pattern('-', name), json!({}));
    }
    for e in scope.exceptions {
        dynamic.insert(pattern('+', &e.module), (e.spec.format.entry)(&e.spec));
    }
    if !dynamic.is_empty() {
        config["dynamic"] = Value::Object(dynamic);
    }
    config
}

/// Whether a configuration's layout holds zero points less one.
fn minus_one(config: &Value) -> Found<bool> {
    match ["checkpoint_format", "format"].map(|key| text(config, key)) {
        ["gptq", _] | ["", "gptq" | ""] => Ok(true),
        ["gptq_v2", _] | ["", "gptq_v2"] => Ok(false),
        ["", other] | [other, _] => Err(format!("gptq in the layout '{other}'; gptq and gptq_v2 are read")),
    }
}

fn shape(read: &Read) -> Found<(usize, usize)> {
    let [words, n] = read.pieces.matrix("qweight")?;
    match read.pieces.find("g_idx") {
        Some(g_idx) => Ok((n, g_idx.shape.iter().product())),
        None => Ok((n, words * 32 / bits(read.config)?)),
    }
}

fn unpack(p: &Pieces, n: usize, k: usize, minus_one: bool) -> Found<Packed> {
    let [height, _] = p.matrix("qweight")?;
    let bits = (height * 32 / k) as u8;
    if !matches!(bits, 2 | 3 | 4 | 8) || words(k, bits) != height {
        return Err(format!(
            "'qweight' has {height} rows of words for {k} columns, which is not a whole number of bits"
        ));
    }
    let [groups, _] = p.matrix("scales")?;
    let codes = to_bytes(&transpose(&p.words("qweight", &[height, n])?, height, n));
    let scales = transposed(numbers(p.shaped("scales", &[groups, n])?)?, groups, n);
    let width = words(n, bits);
    let mut zeros = unpack_rows(&p.words("qzeros", &[groups, width])?, width, n, bits);
    if minus_one {
        let mask = u8::MAX >> (8 - bits);
        zeros.iter_mut().for_each(|z| *z = z.wrapping_add(1) & mask);
    }
    let zeros = zero_points(transpose(&zeros, groups, n));
    let trivial = Blocks::Grid { rows: 1, cols: k.div_ceil(groups) };
    let blocks = match p.find("g_idx") {
        Some(piece) => {
            let group_of = p.words("g_idx", &[k])?;
            if group_of.iter().any(|g| *g as usize >= groups) {
                return Err(format!("'{}' names a group beyond the {groups} there are", piece.suffix));
            }
            let size = k.div_ceil(groups);
            let in_order = group_of.iter().enumerate().all(|(i, g)| i / size == *g as usize);
            if in_order { trivial } else { Blocks::Columns { group_of, groups } }
        }
        None => trivial,
    };
    Ok(Packed::new(n, k, bits, codes, Some(4 * height), zeros, scales, blocks))
}
