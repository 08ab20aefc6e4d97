//! compressed-tensors (vLLM, llm-compressor): integers in words, FP8, INT8, NVFP4 and MXFP4 under one configuration, whose
//! groups say how the weights of which modules are stored and what becomes of their inputs. The rounding to floats is in
//! [`floats`], the packing of integers in [`integers`], the reading in [`unpack`].

pub(super) mod floats;
mod integers;
mod unpack;

pub(super) use unpack::eight_bits;
pub use unpack::group_of;

use super::engines::{Check, Engines, Verdict};
use super::integer::on_grid;
use super::mixture::{own_or_kept, wider_and_grouped};
use super::names::group_word;
use super::read::{CACHE_SCALES, Suffixes, Tool, text};
use super::{
    Activations, Bits, ChannelScaling, DefaultRounding, F32, FORMATS, Feedback, Format, GroupRule, I8, Loader, Name,
    Reach, Scales, Scope, Slot, Spec, Symmetry, broken_group, not_multiple, slot,
};
use crate::dtype::{Dtype, GgmlType};
use floats::Fp4Kind;
use serde_json::{Map, Value, json};

/// The compressed-tensors release whose layout is written.
const COMPRESSED_TENSORS: &str = "0.19.0";

/// First words of the names of encoders in folders older than transformers 5, which has them under `model.`, some of them
/// with other words in between.
pub const ENCODERS: [&str; 6] =
    ["visual", "vision_tower", "vision_model", "multi_modal_projector", "audio_tower", "mlp_AR"];

/// What transformers 5 calls otherwise than the folders that it reads.
const RENAMED: [(&str, &str); 2] = [
    (".vision_embedder.", ".embed_vision."),
    (".embed_vision.embedding_projection", ".embed_vision.multimodal_embedder.embedding_projection"),
];

/// Rows and columns of a block of `FP8_IN_BLOCKS`.
pub const FP8_BLOCK: usize = 128;

const F8_E4M3: Dtype = Dtype::F8_E4M3;

/// `pack-quantized`: integers in words, activations as they are.
pub static PACK_QUANTIZED: Format = Format {
    id: "pack-quantized",
    purpose: "GPTQ's numbers as compressed-tensors hold them",
    tool: &TOOL,
    names: &[Name { words: "w4a16", bits: 4, group: Some(128) }, Name { words: "w8a16", bits: 8, group: None }],
    shown: |spec| format!("w{}a16-{}{}", spec.bits, group_word(spec), if spec.symmetric { "" } else { "-asym" }),
    bits: Bits::Named,
    group: GroupRule::Free,
    symmetry: Symmetry::Choice { symmetric: true },
    layouts: &[],
    if_asymmetric: None,
    as_compressed_tensors: None,
    fallback: None,
    orders_columns: false,
    nests: false,
    reach: Reach::Blocks,
    scales: Scales::Model,
    shares_scale: false,
    activations: Activations::Exact,
    feedback: Feedback::Integers {
        least_zero: 0,
        pack: |spec, codes, dtype| Ok(integers::pack(codes, spec.symmetric, dtype)),
    },
    rounding: DefaultRounding::Feedback,
    scaling: ChannelScaling::None,
    refuses: broken_group,
    layout: integers::layout,
    nearest: |spec, m| Ok(integers::pack(&on_grid(spec, m), spec.symmetric, m.dtype)),
    entry: |spec| {
        entry(spec, "pack-quantized", args(spec, "int", if spec.group.is_some() { "group" } else { "channel" }))
    },
    config,
    engines: &INTEGERS,
};

/// `float-quantized`: E4M3 with a scale per row; activations per token.
pub static FP8: Format = Format {
    id: "fp8",
    purpose: "no calibration, fast on Hopper and Ada",
    tool: &TOOL,
    names: &[Name { words: "fp8", bits: 8, group: None }, Name { words: "fp8-dynamic", bits: 8, group: None }],
    shown: |_| "fp8".into(),
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
    scales: Scales::Model,
    shares_scale: false,
    activations: Activations::Fp8,
    feedback: Feedback::None,
    rounding: DefaultRounding::Nearest,
    scaling: ChannelScaling::None,
    refuses: |_, _, _| None,
    layout: |spec, n, k, dtype| weight_and_scale(spec, F8_E4M3, [n, k], dtype, &[n, 1]),
    nearest: |_, m| Ok(floats::fp8_rows(m)),
    entry: |spec| entry(spec, "float-quantized", args(spec, "float", "channel")),
    config,
    engines: &FLOATS,
};

/// E4M3 with a scale per 128 x 128; activations per token and 128 channels.
pub static FP8_IN_BLOCKS: Format = Format {
    id: "fp8-block",
    purpose: "blocks of 128 x 128, as DeepSeek has them",
    tool: &TOOL,
    names: &[Name { words: "fp8-block", bits: 8, group: None }],
    shown: |_| "fp8-block".into(),
    bits: Bits::Named,
    group: GroupRule::Fixed,
    symmetry: Symmetry::Symmetric,
    layouts: &[],
    if_asymmetric: None,
    as_compressed_tensors: None,
    fallback: Some(&FP8),
    orders_columns: false,
    nests: false,
    reach: Reach::Blocks,
    scales: Scales::Model,
    shares_scale: false,
    activations: Activations::Fp8InGroups(FP8_BLOCK),
    feedback: Feedback::None,
    rounding: DefaultRounding::Nearest,
    scaling: ChannelScaling::None,
    refuses: |_, rows, cols| {
        let why = "engines take whole blocks";
        not_multiple("columns", cols, FP8_BLOCK, why).or_else(|| not_multiple("rows", rows, FP8_BLOCK, why))
    },
    layout: |spec, n, k, dtype| {
        let blocks = [n.div_ceil(FP8_BLOCK), k.div_ceil(FP8_BLOCK)];
        weight_and_scale(spec, F8_E4M3, [n, k], dtype, &blocks)
    },
    nearest: |_, m| Ok(floats::fp8_blocks(m)),
    entry: |spec| {
        let blocks = with(args(spec, "float", "block"), "block_structure", json!([FP8_BLOCK, FP8_BLOCK]));
        entry(spec, "float-quantized", blocks)
    },
    config,
    engines: &FLOATS,
};

/// E4M3 with one scale per tensor, for weights and for activations.
pub static FP8_STATIC: Format = Format {
    id: "fp8-static",
    purpose: "activations with fixed scales; needs calibration",
    tool: &TOOL,
    names: &[Name { words: "fp8-static", bits: 8, group: None }],
    shown: |_| "fp8-static".into(),
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
    scales: Scales::Model,
    shares_scale: false,
    activations: Activations::Fp8Static,
    feedback: Feedback::None,
    rounding: DefaultRounding::Nearest,
    scaling: ChannelScaling::None,
    refuses: |_, _, _| None,
    layout: |spec, n, k, dtype| {
        let mut slots = weight_and_scale(spec, F8_E4M3, [n, k], dtype, &[1]);
        slots.insert(0, slot("input_scale", spec.format.scales.dtype(dtype), &[1]));
        slots
    },
    nearest: |_, m| floats::fp8_static(m),
    entry: |spec| entry(spec, "float-quantized", args(spec, "float", "tensor")),
    config,
    engines: &FLOATS,
};

/// `int-quantized`: eight-bit integers with a scale per row; activations per token.
pub static INT8: Format = Format {
    id: "int8",
    purpose: "weights and activations in 8 bits, fast on Ampere",
    tool: &TOOL,
    names: &[Name { words: "int8", bits: 8, group: None }, Name { words: "w8a8", bits: 8, group: None }],
    shown: |_| "int8".into(),
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
    scales: Scales::Model,
    shares_scale: false,
    activations: Activations::Int8,
    feedback: Feedback::None,
    rounding: DefaultRounding::Nearest,
    scaling: ChannelScaling::SmoothQuant,
    refuses: |_, _, _| None,
    layout: |spec, n, k, dtype| weight_and_scale(spec, I8, [n, k], dtype, &[n, 1]),
    nearest: |_, m| Ok(floats::int8_rows(m)),
    entry: |spec| entry(spec, "int-quantized", args(spec, "int", "channel")),
    config,
    engines: &SILENT,
};

/// `nvfp4-pack-quantized`: E2M1 under an E4M3 scale per 16 and a global one; activations too.
pub static NVFP4: Format = Format {
    id: "nvfp4",
    purpose: "weights and activations in 4 bits, for Blackwell",
    tool: &TOOL,
    names: &[Name { words: "nvfp4", bits: 4, group: Some(16) }],
    shown: |_| "nvfp4".into(),
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
    scales: Scales::Stored(F8_E4M3),
    shares_scale: true,
    activations: Activations::NvFp4,
    feedback: Feedback::Floats(Fp4Kind::Nv),
    rounding: DefaultRounding::Nearest,
    scaling: ChannelScaling::None,
    refuses: broken_group,
    layout: |spec, n, k, dtype| {
        let mut slots = four_bits(spec, n, k, dtype);
        slots.insert(0, slot("weight_global_scale", F32, &[1]));
        slots.insert(0, slot("input_global_scale", F32, &[1]));
        slots
    },
    nearest: floats::fp4,
    entry: |spec| {
        let groups = with(args(spec, "float", "tensor_group"), "scale_dtype", json!("torch.float8_e4m3fn"));
        entry(spec, "nvfp4-pack-quantized", groups)
    },
    config,
    engines: &FOUR_BITS_NV,
};

/// The same with activations as they are.
pub static NVFP4_A16: Format = Format {
    id: "nvfp4a16",
    purpose: "the same, activations as they are",
    tool: &TOOL,
    names: &[Name { words: "nvfp4a16", bits: 4, group: Some(16) }],
    shown: |_| "nvfp4a16".into(),
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
    scales: Scales::Stored(F8_E4M3),
    shares_scale: true,
    activations: Activations::Exact,
    feedback: Feedback::Floats(Fp4Kind::Nv),
    rounding: DefaultRounding::Nearest,
    scaling: ChannelScaling::None,
    refuses: broken_group,
    layout: |spec, n, k, dtype| {
        let mut slots = four_bits(spec, n, k, dtype);
        slots.insert(0, slot("weight_global_scale", F32, &[1]));
        slots
    },
    nearest: floats::fp4,
    entry: |spec| {
        let groups = with(args(spec, "float", "tensor_group"), "scale_dtype", json!("torch.float8_e4m3fn"));
        entry(spec, "nvfp4-pack-quantized", groups)
    },
    config,
    engines: &FOUR_BITS_NV,
};

/// `mxfp4-pack-quantized`: E2M1 under a power of two per 32; activations as they are.
pub static MXFP4: Format = Format {
    id: "mxfp4",
    purpose: "blocks of 32 with powers of two",
    tool: &TOOL,
    names: &[Name { words: "mxfp4", bits: 4, group: Some(32) }, Name { words: "mxfp4a16", bits: 4, group: Some(32) }],
    shown: |_| "mxfp4".into(),
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
    scales: Scales::Stored(Dtype::U8),
    shares_scale: false,
    activations: Activations::Exact,
    feedback: Feedback::Floats(Fp4Kind::Mx),
    rounding: DefaultRounding::Nearest,
    scaling: ChannelScaling::None,
    refuses: broken_group,
    layout: four_bits,
    nearest: floats::fp4,
    entry: |spec| {
        let groups = with(args(spec, "float", "group"), "scale_dtype", json!("torch.uint8"));
        entry(spec, "mxfp4-pack-quantized", groups)
    },
    config,
    engines: &FOUR_BITS_MX,
};

pub(super) static TOOL: Tool = Tool {
    name: "compressed-tensors",
    method: Some("compressed-tensors"),
    admits: unpack::admits,
    suffixes: Suffixes {
        main: &["weight_packed", "weight"],
        sign: &["weight_scale"],
        shape: &["weight_shape"],
        others: &["weight_zero_point", "weight_global_scale", "weight_g_idx", "input_scale", "input_global_scale"],
    },
    label: unpack::label,
    groups: Some(("weight_scale", 1)),
    shape: unpack::shape,
    unpack: unpack::unpack,
    input: unpack::input,
    engine_tensors: CACHE_SCALES,
    loader: Loader::Torch,
    doubles_config: false,
    extra_config_files: &[],
    // Formats of one name have the same engines; of mixed checkpoints only the whole is known.
    mixes: |_, _| true,
    mixture: |own| match own.format.feedback {
        // With or without zero points as it was asked for: transformers does not read packed ones.
        Feedback::Integers { .. } => [wider_and_grouped(own, &[4, 8]), vec![None]].concat(),
        Feedback::Floats(_) => vec![Some(*own), FP8.plain(), None],
        Feedback::None => own_or_kept(own),
    },
    engines: |config| {
        let mut own = FORMATS.iter().copied().filter(|format| std::ptr::eq(format.tool, &TOOL));
        own.find(|format| format_name(format) == text(config, "format")).map_or(&SILENT, |format| format.engines)
    },
};

/// The `format` of a configuration of this row alone.
fn format_name(format: &'static Format) -> String {
    let entry = format.plain().map(|spec| (format.entry)(&spec));
    entry.map_or(String::new(), |entry| text(&entry, "format").to_string())
}

fn needs_package(_: &Value) -> Verdict {
    Verdict::default().note(true, "needs: pip install compressed-tensors")
}

fn not_in_mlx(_: &Value) -> Verdict {
    Verdict::refusal("it reads compressed-tensors for a few other families only").or("mlx-4bit")
}

/// Nothing but what is to be said of all.
static SILENT: Engines = Engines { vllm: |_, _| Verdict::default(), transformers: needs_package, mlx: not_in_mlx };

static INTEGERS: Engines = Engines {
    vllm: |_, _| Verdict::checking(&[Check::EightBits, Check::UsualGroups]),
    transformers: needs_package,
    mlx: not_in_mlx,
};

static FLOATS: Engines = Engines {
    vllm: |_, _| {
        let gpus = "for Hopper, Ada and newer GPUs (8.9 and up); older ones keep activations in 16 bits";
        Verdict::checking(&[Check::SplitBlocks]).note(true, gpus)
    },
    transformers: |config| Verdict { checks: &[Check::WholeBlocks], ..needs_package(config) },
    mlx: not_in_mlx,
};

static FOUR_BITS_NV: Engines = Engines {
    vllm: |_, _| {
        let gpus = "runs on GPUs only (Blackwell; others dequantize), not on CPUs";
        Verdict::checking(&[Check::GlobalScales]).note(true, gpus)
    },
    transformers: needs_package,
    mlx: not_in_mlx,
};

static FOUR_BITS_MX: Engines = Engines {
    vllm: |_, _| Verdict::default().note(true, "runs on GPUs only, not on CPUs"),
    transformers: needs_package,
    mlx: not_in_mlx,
};

/// `weight` (`[n, k]`) and `weight_scale`.
fn weight_and_scale(spec: &Spec, codes: Dtype, shape: [usize; 2], dtype: GgmlType, scales: &[usize]) -> Vec<Slot> {
    vec![slot("weight", codes, &shape), slot("weight_scale", spec.format.scales.dtype(dtype), scales)]
}

/// `weight_packed` and `weight_scale` of four-bit floats.
fn four_bits(spec: &Spec, n: usize, k: usize, dtype: GgmlType) -> Vec<Slot> {
    let scales = slot("weight_scale", spec.format.scales.dtype(dtype), &[n, spec.groups(k)]);
    vec![slot("weight_packed", Dtype::U8, &[n, k / 2]), scales]
}

/// `weights` of a group of modules.
fn args(spec: &Spec, kind: &str, strategy: &str) -> Value {
    json!({
        "num_bits": spec.bits,
        "type": kind,
        "symmetric": spec.symmetric,
        "strategy": strategy,
        "group_size": spec.group,
        "dynamic": false,
    })
}

fn with(mut args: Value, key: &str, value: Value) -> Value {
    args[key] = value;
    args
}

/// What a group of modules says besides its targets.
fn entry(spec: &Spec, format: &str, weights: Value) -> Value {
    json!({
        "weights": weights,
        "input_activations": input_args(spec),
        "output_activations": null,
        "format": format,
    })
}

/// `input_activations` of a group of modules.
fn input_args(spec: &Spec) -> Value {
    let args = |kind: &str, strategy: &str, group: Value, dynamic: Value| {
        json!({
            "num_bits": spec.bits,
            "type": kind,
            "symmetric": true,
            "strategy": strategy,
            "group_size": group,
            "dynamic": dynamic,
        })
    };
    match spec.format.activations {
        Activations::Fp8 => args("float", "token", Value::Null, json!(true)),
        Activations::Fp8InGroups(group) => args("float", "group", json!(group), json!(true)),
        Activations::Fp8Static => args("float", "tensor", Value::Null, json!(false)),
        Activations::Int8 => args("int", "token", Value::Null, json!(true)),
        Activations::NvFp4 => {
            let input = args("float", "tensor_group", json!(16), json!("local"));
            with(input, "scale_dtype", json!("torch.float8_e4m3fn"))
        }
        // Mixed ones are bitsandbytes' own.
        Activations::Exact | Activations::Int8Mixed => Value::Null,
    }
}

fn config(spec: &Spec, scope: Scope) -> Value {
    let group = |spec: &Spec, targets: Value| {
        let mut group = Map::new();
        group.insert("targets".into(), targets);
        if let Value::Object(entry) = (spec.format.entry)(spec) {
            group.extend(entry);
        }
        group
    };
    let mut others: Vec<(Spec, Vec<&str>)> = Vec::new();
    for e in scope.exceptions {
        match others.iter_mut().find(|(spec, _)| *spec == e.spec) {
            Some((_, names)) => names.push(&e.module),
            None => others.push((e.spec, vec![&e.module])),
        }
    }
    let mut groups = vec![group(spec, json!(["Linear"]))];
    groups.extend(others.iter().map(|(spec, names)| group(spec, json!(names))));
    let format = groups[0]["format"].clone();
    let same = groups.iter().all(|group| group["format"] == format);
    let numbered = groups.into_iter().enumerate().map(|(i, group)| (format!("group_{i}"), Value::Object(group)));
    let mut ignore = vec!["lm_head"];
    ignore.extend(scope.kept.iter().map(String::as_str).filter(|n| *n != "lm_head"));
    let has = |root: &str| ignore.iter().any(|n| n.strip_prefix(root).is_some_and(|rest| rest.starts_with('.')));
    let moved: Vec<String> =
        ENCODERS.iter().filter(|root| has(root)).map(|root| format!(r"re:model\.{root}\.")).collect();
    let renamed =
        |name: &&str| RENAMED.iter().find(|(old, _)| name.contains(old)).map(|(old, new)| name.replace(old, new));
    let renamed: Vec<String> = ignore.iter().filter_map(renamed).collect();
    ignore.extend(moved.iter().chain(&renamed).map(String::as_str));
    json!({
        "quant_method": "compressed-tensors",
        "format": if same { format } else { json!("mixed-precision") },
        "quantization_status": "compressed",
        "ignore": ignore,
        "config_groups": numbered.collect::<Map<_, _>>(),
        "kv_cache_scheme": null,
        "version": COMPRESSED_TENSORS,
    })
}
