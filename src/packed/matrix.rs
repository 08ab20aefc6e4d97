//! A packed module in memory: whatever the layout on disk was, codes lie row by row, so that any rows decode alone, and
//! scales in the type in which they were stored. It decodes exactly what the format defines, in single precision.

use super::bits::unpack;
use crate::kernel::RowSource;
use crate::minifloat::{E2M1, E2M1_MAX, E4M3_MAX, e4m3, e8m0};
use half::{bf16, f16};
use std::ops::Range;
use std::sync::Arc;

/// A matrix `[rows, cols]` of codes with scales.
#[derive(Clone, Debug)]
pub struct Packed {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) bits: u8,
    /// Codes, least significant bits first.
    pub(super) codes: Arc<Vec<u8>>,
    /// Bytes from one row of codes to the next; `None` where rows follow each other without a gap.
    pub(super) stride: Option<usize>,
    pub(super) coding: Coding,
    pub(super) scales: Numbers,
    pub(super) blocks: Blocks,
    /// What the engine does to this module's input.
    pub(super) input: Input,
    /// The stored row of each row, where they differ.
    pub(super) order: Option<Vec<u32>>,
}

/// What a code stands for, before its scale.
#[derive(Clone, Debug)]
pub(super) enum Coding {
    /// `code - zero`, the zero point of its block.
    Zeros(Vec<u8>),
    /// `code - constant`.
    Offset(u8),
    /// Two's complement of eight bits.
    Signed,
    /// `scale * code + bias`.
    Bias(Numbers),
    Table(Box<[f32; 256]>),
}

/// Which scale a weight has.
#[derive(Clone, Debug)]
pub(super) enum Blocks {
    /// `rows` x `cols` weights share one; scales are `[ceil, ceil]`.
    Grid { rows: usize, cols: usize },
    /// Runs of weights, counted through all rows.
    Flat(usize),
    /// By column: the group of each; scales are `[rows, groups]`.
    Columns { group_of: Vec<u32>, groups: usize },
}

/// Numbers in their stored type.
#[derive(Clone, Debug)]
pub(super) enum Numbers {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    /// One byte each, with its meaning.
    Table(Vec<u8>, Box<[f32; 256]>),
}

/// How an engine rounds the input of a module before the product.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Input {
    /// Not at all.
    #[default]
    Exact,
    /// E4M3 with a scale per token, or per token and so many channels.
    Fp8 {
        /// Channels that share a scale; `None`: all.
        group: Option<usize>,
    },
    /// E4M3 with one scale for all.
    Fp8Static {
        /// What a code of 1 stands for.
        scale: f32,
    },
    /// Eight-bit integers with a scale per token.
    Int8,
    /// The same but for channels in which any token of the batch reaches `threshold`: these stay as they are.
    Int8Mixed {
        /// Largest magnitude that is rounded.
        threshold: f32,
    },
    /// E2M1 with an E4M3 scale per token and 16 channels, under a global one.
    NvFp4 {
        /// The scale of scales.
        global: f32,
    },
}

impl Input {
    /// A word for reports; `None` where nothing is rounded.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Input::Exact => None,
            Input::Fp8 { .. } | Input::Fp8Static { .. } => Some("fp8"),
            Input::Int8 => Some("int8"),
            Input::Int8Mixed { .. } => Some("llm.int8"),
            Input::NvFp4 { .. } => Some("nvfp4"),
        }
    }

    /// The largest magnitude that a scale fixed beforehand has room for; `None` where scales follow the input.
    pub fn room(self) -> Option<f32> {
        match self {
            Input::Fp8Static { scale } => Some(scale * E4M3_MAX),
            Input::NvFp4 { global } => Some(E4M3_MAX * E2M1_MAX / global),
            Input::Exact | Input::Fp8 { .. } | Input::Int8 | Input::Int8Mixed { .. } => None,
        }
    }

    /// What serves modules with the same input: the wider range of static scales.
    pub fn shared(self, other: Input) -> Input {
        match (self, other) {
            (Input::Fp8Static { scale: a }, Input::Fp8Static { scale: b }) => Input::Fp8Static { scale: a.max(b) },
            (Input::NvFp4 { global: a }, Input::NvFp4 { global: b }) => Input::NvFp4 { global: a.min(b) },
            _ => self,
        }
    }
}

impl Numbers {
    pub(super) fn len(&self) -> usize {
        match self {
            Numbers::F32(x) => x.len(),
            Numbers::F16(x) => x.len(),
            Numbers::BF16(x) => x.len(),
            Numbers::Table(x, _) => x.len(),
        }
    }

    pub(super) fn get(&self, i: usize) -> f32 {
        match self {
            Numbers::F32(x) => x[i],
            Numbers::F16(x) => x[i].to_f32(),
            Numbers::BF16(x) => x[i].to_f32(),
            Numbers::Table(x, values) => values[usize::from(x[i])],
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Numbers::F32(x) => 4 * x.len(),
            Numbers::F16(x) => 2 * x.len(),
            Numbers::BF16(x) => 2 * x.len(),
            Numbers::Table(x, _) => x.len(),
        }
    }
}

/// The E2M1 values as a table of codes.
pub(super) fn e2m1_table() -> Box<[f32; 256]> {
    Box::new(std::array::from_fn(|code| E2M1[code & 15]))
}

/// The E4M3 values, code by code.
pub(super) fn e4m3_table() -> Box<[f32; 256]> {
    Box::new(std::array::from_fn(|code| e4m3(code as u8)))
}

/// The E8M0 values, code by code.
pub(super) fn e8m0_table() -> Box<[f32; 256]> {
    Box::new(std::array::from_fn(|code| e8m0(code as u8)))
}

impl Packed {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        rows: usize,
        cols: usize,
        bits: u8,
        codes: Vec<u8>,
        stride: Option<usize>,
        coding: Coding,
        scales: Numbers,
        blocks: Blocks,
    ) -> Self {
        let codes = Arc::new(codes);
        Packed { rows, cols, bits, codes, stride, coding, scales, blocks, input: Input::Exact, order: None }
    }

    /// A scale (or bias) that is no number.
    pub(super) fn first_bad_scale(&self) -> Option<f32> {
        let bad = |x: &Numbers| (0..x.len()).map(|i| x.get(i)).find(|v| !v.is_finite());
        let biases = match &self.coding {
            Coding::Bias(biases) => bad(biases),
            _ => None,
        };
        bad(&self.scales).or(biases)
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        let more = match &self.coding {
            Coding::Zeros(zeros) => zeros.len(),
            Coding::Bias(biases) => biases.bytes(),
            _ => 0,
        };
        self.codes.len() + self.scales.bytes() + more
    }

    /// What the engine does to this module's input.
    pub fn input(&self) -> Input {
        self.input
    }

    /// Row `i` becomes what was row `order(i)`.
    pub fn reorder(mut self, order: impl Fn(usize) -> usize) -> Self {
        let old = self.order.take();
        let stored = |row: usize| old.as_ref().map_or(row as u32, |old| old[row]);
        self.order = Some((0..self.rows).map(|row| stored(order(row))).collect());
        self
    }

    /// Checks that every scale is there: after it, decoding cannot leave its arrays.
    pub(super) fn is_sound(&self) -> bool {
        let (rows, cols) = (self.rows, self.cols);
        let scales = match &self.blocks {
            Blocks::Grid { rows: r, cols: c } if *r > 0 && *c > 0 => rows.div_ceil(*r) * cols.div_ceil(*c),
            Blocks::Flat(n) if *n > 0 => (rows * cols).div_ceil(*n),
            Blocks::Columns { group_of, groups } => {
                if group_of.len() != cols || group_of.iter().any(|g| *g as usize >= *groups) {
                    return false;
                }
                rows * groups
            }
            _ => return false,
        };
        let offsets = match &self.coding {
            Coding::Zeros(zeros) => zeros.len() == scales,
            Coding::Bias(biases) => biases.len() == scales,
            Coding::Signed => self.bits == 8,
            _ => true,
        };
        let bits = usize::from(self.bits);
        let codes = match self.stride {
            Some(stride) => stride * 8 >= cols * bits && self.codes.len() == stride * rows,
            None => self.codes.len() * 8 >= rows * cols * bits && matches!(bits, 4 | 8),
        };
        rows > 0 && cols > 0 && (1..=8).contains(&bits) && self.scales.len() == scales && offsets && codes
    }

    /// The codes of a stored row.
    pub(super) fn codes_of(&self, row: usize, codes: &mut [u8]) {
        match self.stride {
            Some(stride) => unpack(&self.codes[row * stride..][..stride], 0, self.bits, codes),
            None => unpack(&self.codes, row * self.cols, self.bits, codes),
        }
    }

    fn decode_row(&self, row: usize, codes: &mut [u8], out: &mut [f32]) {
        self.codes_of(row, codes);
        match &self.blocks {
            Blocks::Columns { group_of, groups } => {
                for (i, (code, out)) in codes.iter().zip(out).enumerate() {
                    let block = row * groups + group_of[i] as usize;
                    self.decode_run(block, std::slice::from_ref(code), std::slice::from_mut(out));
                }
            }
            Blocks::Grid { rows, cols } => {
                let first = row / rows * self.cols.div_ceil(*cols);
                for (block, (codes, out)) in codes.chunks(*cols).zip(out.chunks_mut(*cols)).enumerate() {
                    self.decode_run(first + block, codes, out);
                }
            }
            Blocks::Flat(n) => {
                let start = row * self.cols;
                let mut at = 0;
                while at < codes.len() {
                    let block = (start + at) / n;
                    let end = ((block + 1) * n - start).min(codes.len());
                    self.decode_run(block, &codes[at..end], &mut out[at..end]);
                    at = end;
                }
            }
        }
    }

    /// Weights that share the scale `block`.
    fn decode_run(&self, block: usize, codes: &[u8], out: &mut [f32]) {
        let scale = self.scales.get(block);
        let pairs = out.iter_mut().zip(codes);
        match &self.coding {
            Coding::Zeros(zeros) => {
                let zero = i16::from(zeros[block]);
                pairs.for_each(|(out, code)| *out = f32::from(i16::from(*code) - zero) * scale);
            }
            Coding::Offset(zero) => {
                let zero = i16::from(*zero);
                pairs.for_each(|(out, code)| *out = f32::from(i16::from(*code) - zero) * scale);
            }
            Coding::Signed => pairs.for_each(|(out, code)| *out = f32::from(*code as i8) * scale),
            Coding::Bias(biases) => {
                let bias = biases.get(block);
                pairs.for_each(|(out, code)| *out = f32::from(*code) * scale + bias);
            }
            Coding::Table(values) => pairs.for_each(|(out, code)| *out = values[usize::from(*code)] * scale),
        }
    }
}

impl RowSource for Packed {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        let mut codes = vec![0; self.cols];
        for (row, out) in rows.zip(out.chunks_exact_mut(self.cols)) {
            let stored = self.order.as_ref().map_or(row, |order| order[row] as usize);
            self.decode_row(stored, &mut codes, out);
        }
    }
}
