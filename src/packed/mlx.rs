//! MLX's modes: affine (unsigned integers with scale and bias per group), and four- and eight-bit floats. Rounding is
//! that of `mx.quantize` on the CPU, in single precision whatever the checkpoint's type.

use super::bits::{pack_rows, to_bytes, words};
use super::engines::{Check, Engines, Verdict};
use super::matrix::{Blocks, Coding, Numbers, Packed, e2m1_table, e4m3_table, e8m0_table};
use super::mixture::grouped;
use super::names::group_word;
use super::pieces::{Found, Pieces, numbers};
use super::read::{Read, Suffixes, Tool, bits_word, exact, text};
use super::{
    Activations, Bits, ChannelScaling, Data, DefaultRounding, Feedback, Format, GroupRule, Loader, Module, Name, Reach,
    Scales, Scope, Slot, Spec, Symmetry, broken_group, not_multiple, slot,
};
use crate::dtype::{Dtype, GgmlType};
use crate::feedback::int::Codes;
use crate::minifloat::{self, E2M1_MAX, E4M3_MAX, e4m3, e8m0, largest, round_all, to_e4m3};
use rayon::prelude::*;
use serde_json::{Value, json};

/// Unsigned integers with scale and bias per group.
pub static AFFINE: Format = Format {
    id: "mlx",
    purpose: "MLX's own groups",
    tool: &TOOL,
    names: &[Name { words: "mlx", bits: 4, group: Some(64) }],
    shown: |spec| format!("mlx-{}bit-{}", spec.bits, group_word(spec)),
    bits: Bits::Of(&[2, 3, 4, 5, 6, 8]),
    group: GroupRule::Of(&[32, 64, 128]),
    symmetry: Symmetry::Asymmetric,
    layouts: &[],
    if_asymmetric: None,
    as_compressed_tensors: None,
    fallback: None,
    orders_columns: false,
    nests: false,
    reach: Reach::EmbeddingsToo,
    scales: Scales::Model,
    shares_scale: false,
    activations: Activations::Exact,
    feedback: Feedback::Integers {
        least_zero: 0,
        pack: |_, codes, dtype| Ok(pack(&Affine::from_codes(codes, dtype), dtype)),
    },
    rounding: DefaultRounding::FeedbackWithData,
    scaling: ChannelScaling::None,
    refuses: broken_group,
    layout: |spec, n, k, dtype| {
        let biases = slot("biases", spec.format.scales.dtype(dtype), &[n, spec.groups(k)]);
        [vec![biases], scales_and_codes(spec, n, k, dtype)].concat()
    },
    nearest: |spec, module| {
        let affine = Affine::nearest(module, spec.bits, spec.group_of(module.cols));
        Ok(pack(&affine, module.dtype))
    },
    entry: |spec| entry(spec, "affine"),
    config,
    engines: &ENGINES,
};

/// E2M1 under a power of two per 32.
pub static MXFP4: Format = Format {
    id: "mlx-mxfp4",
    purpose: "MLX with powers of two",
    tool: &TOOL,
    names: &[Name { words: "mlx-mxfp4", bits: 4, group: Some(32) }],
    shown: |_| "mlx-mxfp4".into(),
    bits: Bits::Named,
    group: GroupRule::Fixed,
    symmetry: Symmetry::Symmetric,
    layouts: &[],
    if_asymmetric: None,
    as_compressed_tensors: None,
    fallback: None,
    orders_columns: false,
    nests: false,
    reach: Reach::EmbeddingsToo,
    scales: Scales::Stored(Dtype::U8),
    shares_scale: false,
    activations: Activations::Exact,
    feedback: Feedback::None,
    rounding: DefaultRounding::Nearest,
    scaling: ChannelScaling::None,
    refuses: broken_group,
    layout: scales_and_codes,
    nearest: |_, module| Ok(floats(&MX4, module)),
    entry: |spec| entry(spec, "mxfp4"),
    config,
    engines: &ENGINES,
};

/// E2M1 under an E4M3 scale per 16.
pub static NVFP4: Format = Format {
    id: "mlx-nvfp4",
    purpose: "MLX with scales in FP8",
    tool: &TOOL,
    names: &[Name { words: "mlx-nvfp4", bits: 4, group: Some(16) }],
    shown: |_| "mlx-nvfp4".into(),
    bits: Bits::Named,
    group: GroupRule::Fixed,
    symmetry: Symmetry::Symmetric,
    layouts: &[],
    if_asymmetric: None,
    as_compressed_tensors: None,
    fallback: None,
    orders_columns: false,
    nests: false,
    reach: Reach::EmbeddingsToo,
    scales: Scales::Stored(Dtype::U8),
    shares_scale: false,
    activations: Activations::Exact,
    feedback: Feedback::None,
    rounding: DefaultRounding::Nearest,
    scaling: ChannelScaling::None,
    refuses: |_, _, cols| not_multiple("columns", cols, 32, "MLX packs 32 at a time"),
    layout: scales_and_codes,
    nearest: |_, module| Ok(floats(&NV4, module)),
    entry: |spec| entry(spec, "nvfp4"),
    config,
    engines: &ENGINES,
};

/// E4M3 under a power of two per 32.
pub static MXFP8: Format = Format {
    id: "mlx-mxfp8",
    purpose: "MLX in 8 bits",
    tool: &TOOL,
    names: &[Name { words: "mlx-mxfp8", bits: 8, group: Some(32) }],
    shown: |_| "mlx-mxfp8".into(),
    bits: Bits::Named,
    group: GroupRule::Fixed,
    symmetry: Symmetry::Symmetric,
    layouts: &[],
    if_asymmetric: None,
    as_compressed_tensors: None,
    fallback: None,
    orders_columns: false,
    nests: false,
    reach: Reach::EmbeddingsToo,
    scales: Scales::Stored(Dtype::U8),
    shares_scale: false,
    activations: Activations::Exact,
    feedback: Feedback::None,
    rounding: DefaultRounding::Nearest,
    scaling: ChannelScaling::None,
    refuses: broken_group,
    layout: scales_and_codes,
    nearest: |_, module| Ok(floats(&MX8, module)),
    entry: |spec| entry(spec, "mxfp8"),
    config,
    engines: &ENGINES,
};

pub(super) static TOOL: Tool = Tool {
    name: "mlx",
    method: None,
    admits: |config| match config.get("group_size").is_some() && config.get("bits").is_some() {
        true => Ok(()),
        false => Err("an unnamed method".into()),
    },
    suffixes: Suffixes { main: &["weight"], sign: &["scales"], shape: &[], others: &["biases"] },
    label: |config| match text(config, "mode") {
        "" | "affine" => format!("mlx{}", bits_word(config)),
        mode => format!("mlx-{mode}"),
    },
    groups: Some(("scales", 1)),
    shape: |read| {
        let [n, groups] = read.pieces.matrix("scales")?;
        Ok((n, groups * group(read)?))
    },
    unpack: |read, n, k| unpack(&read.pieces, n, k),
    input: exact,
    engine_tensors: &[],
    loader: Loader::Mlx,
    doubles_config: true,
    extra_config_files: &[],
    mixes: |_, _| true,
    mixture: |own| match own.format.bits {
        Bits::Of(widths) => grouped(own, widths),
        Bits::Named => [&MXFP4, &NVFP4, &MXFP8].into_iter().map(Format::plain).collect(),
    },
    engines: |_| &ENGINES,
};

static ENGINES: Engines = Engines {
    vllm: |_, _| Verdict::refusal("it does not read MLX checkpoints"),
    transformers: |_| Verdict::refusal("its quantization_config names no quant_method"),
    mlx: |config| match text(config, "mode") {
        "" | "affine" => Verdict::checking(&[Check::OwnObject, Check::MlxGroups]),
        _ => Verdict::checking(&[Check::OwnObject]),
    },
};

/// `scales` and `weight`, which all modes have.
fn scales_and_codes(spec: &Spec, n: usize, k: usize, dtype: GgmlType) -> Vec<Slot> {
    let scales = slot("scales", spec.format.scales.dtype(dtype), &[n, spec.groups(k)]);
    vec![scales, slot("weight", Dtype::U32, &[n, words(k, spec.bits)])]
}

fn entry(spec: &Spec, mode: &str) -> Value {
    json!({ "group_size": spec.group_size(), "bits": spec.bits, "mode": mode })
}

fn config(spec: &Spec, scope: Scope) -> Value {
    let mut config = (spec.format.entry)(spec);
    for name in scope.kept {
        config[name] = Value::Bool(false);
    }
    for e in scope.exceptions {
        config[&e.module] = (e.spec.format.entry)(&e.spec);
    }
    config
}

/// A matrix `[rows, cols]` as `w = scale * code + bias` of the column's group.
#[derive(Clone, Debug, PartialEq)]
pub struct Affine {
    pub rows: usize,
    pub cols: usize,
    pub bits: u8,
    pub group: usize,
    /// `[rows, cols]`
    pub codes: Vec<u8>,
    /// `[rows, cols / group]`; may be negative.
    pub scales: Vec<f32>,
    /// `[rows, cols / group]`
    pub biases: Vec<f32>,
}

impl Affine {
    /// Integers with zero points: the bias is `-scale * zero`, rounded to `dtype`.
    pub fn from_codes(codes: &Codes, dtype: GgmlType) -> Self {
        let mut biases: Vec<f32> = codes.scales.iter().zip(&codes.zeros).map(|(s, z)| -s * f32::from(*z)).collect();
        round_all(dtype, &mut biases);
        let (rows, cols, bits, group) = (codes.rows, codes.cols, codes.bits, codes.group);
        Affine { rows, cols, bits, group, codes: codes.codes.clone(), scales: codes.scales.clone(), biases }
    }

    /// Rounds to nearest; `group` divides the columns. Scales and biases are rounded to the checkpoint's type after the
    /// codes were chosen with the exact ones.
    pub fn nearest(m: &Module, bits: u8, group: usize) -> Self {
        let (rows, cols) = (m.rows, m.cols);
        let mut codes = vec![0; rows * cols];
        let (mut scales, mut biases) = (vec![0.0; rows * cols / group], vec![0.0; rows * cols / group]);
        let groups = codes.par_chunks_mut(group).zip(&mut scales).zip(&mut biases).zip(m.weights.par_chunks(group));
        groups.with_min_len(64).for_each(|(((codes, scale), bias), w)| {
            (*scale, *bias) = round_group(w, bits, codes);
        });
        round_all(m.dtype, &mut scales);
        round_all(m.dtype, &mut biases);
        Affine { rows, cols, bits, group, codes, scales, biases }
    }
}

/// The edge of the range with the larger magnitude becomes exact where it can.
fn round_group(w: &[f32], bits: u8, codes: &mut [u8]) -> (f32, f32) {
    let top = ((1u32 << bits) - 1) as f32;
    let edges = (f32::INFINITY, f32::NEG_INFINITY);
    let (min, max) = w.iter().fold(edges, |(min, max), w| (min.min(*w), max.max(*w)));
    let from_min = min.abs() > max.abs();
    let scale = ((max - min) / top).max(1e-7);
    let scale = if from_min { scale } else { -scale };
    let edge = if from_min { min } else { max };
    let steps = (edge / scale).round_ties_even();
    let (scale, bias) = if steps == 0.0 { (scale, 0.0) } else { (edge / steps, edge) };
    for (code, w) in codes.iter_mut().zip(w) {
        *code = ((w - bias) / scale).round_ties_even().clamp(0.0, top) as u8;
    }
    (scale, bias)
}

/// `biases`, `scales`, `weight`.
fn pack(a: &Affine, dtype: GgmlType) -> Data {
    vec![
        minifloat::to_bytes(dtype, &a.biases),
        minifloat::to_bytes(dtype, &a.scales),
        to_bytes(&pack_rows(&a.codes, a.cols, a.bits)),
    ]
}

/// A mode without biases.
struct Floats {
    bits: u8,
    group: usize,
    /// The scale's code for a group with this largest weight.
    scale: fn(f32) -> u8,
    /// The value of such a code.
    step: fn(u8) -> f32,
    code: fn(f32) -> u8,
}

const MX4: Floats = Floats { bits: 4, group: 32, scale: |max| power_above(max / E2M1_MAX), step: e8m0, code: to_e2m1 };
const NV4: Floats = Floats { bits: 4, group: 16, scale: |max| to_e4m3(max / E2M1_MAX), step: e4m3, code: to_e2m1 };
const MX8: Floats = Floats { bits: 8, group: 32, scale: |max| power_above(max / E4M3_MAX), step: e8m0, code: to_e4m3 };

/// `scales`, `weight` of a mode without biases.
fn floats(mode: &Floats, m: &Module) -> Data {
    let mut codes = vec![0; m.rows * m.cols];
    let mut scales = vec![0; m.rows * m.cols / mode.group];
    let groups = codes.par_chunks_mut(mode.group).zip(&mut scales).zip(m.weights.par_chunks(mode.group));
    groups.with_min_len(64).for_each(|((codes, scale), w)| {
        *scale = (mode.scale)(largest(w));
        let step = (mode.step)(*scale);
        for (code, w) in codes.iter_mut().zip(w) {
            *code = (mode.code)(if step == 0.0 { 0.0 } else { w / step });
        }
    });
    vec![scales, to_bytes(&pack_rows(&codes, m.cols, mode.bits))]
}

/// The E8M0 code of the smallest power of two that is at least `x`.
fn power_above(x: f32) -> u8 {
    let exponent = x.to_bits() >> 23;
    (exponent + u32::from(x.to_bits() & 0x7f_ffff != 0)).min(254) as u8
}

/// E2M1 with ties toward zero, and no minus zero.
fn to_e2m1(x: f32) -> u8 {
    let ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
    let code = ties.iter().map(|tie| u8::from(x.abs() > *tie)).sum::<u8>();
    if code != 0 && x < 0.0 { code | 8 } else { code }
}

/// The group size of a module. One with an entry of its own has what that says, or MLX's default of its mode: mlx-lm's mixed
/// recipes leave it open.
fn group(read: &Read) -> Found<usize> {
    let own = read.config.get(read.module).filter(|own| own.is_object());
    let said = own.unwrap_or(read.config).get("group_size").filter(|size| !size.is_null());
    let default = || {
        own.map(|own| {
            if text(own, "mode").contains("nvfp") {
                16
            } else if text(own, "mode").starts_with("mx") {
                32
            } else {
                64
            }
        })
    };
    match said.map_or_else(default, Value::as_u64) {
        Some(group @ 1..=4096) => Ok(group as usize),
        _ => Err("the configuration names no group size".into()),
    }
}

fn unpack(p: &Pieces, n: usize, k: usize) -> Found<Packed> {
    let [_, width] = p.matrix("weight")?;
    let [_, groups] = p.matrix("scales")?;
    let bits = (width * 32 / k).min(8) as u8;
    if bits == 0 || words(k, bits) != width {
        return Err(format!("'weight' has {width} words for {k} columns, which is not a whole number of bits"));
    }
    let codes = to_bytes(&p.words("weight", &[n, width])?);
    let group = k / groups;
    let scales = p.shaped("scales", &[n, groups])?;
    let (coding, scales) = match (p.find("biases"), bits, group) {
        (Some(_), ..) => (Coding::Bias(numbers(p.shaped("biases", &[n, groups])?)?), numbers(scales)?),
        (None, 4, 16) => (Coding::Table(e2m1_table()), Numbers::Table(scales.data.clone(), e4m3_table())),
        (None, 4, 32) => (Coding::Table(e2m1_table()), Numbers::Table(scales.data.clone(), e8m0_table())),
        (None, 8, 32) => (Coding::Table(e4m3_table()), Numbers::Table(scales.data.clone(), e8m0_table())),
        _ => return Err(format!("{bits} bits in groups of {group} without biases are not a mode of MLX")),
    };
    Ok(Packed::new(n, k, bits, codes, Some(4 * width), coding, scales, Blocks::Grid { rows: 1, cols: group }))
}
