//! Loading a model into memory. Matrices keep the bytes they are stored in and are decoded block by block in every
//! product, so that a model needs little more memory than its file; norms, biases and rotary factors become `f32`.

use super::activations::Rounding;
use super::carried::PerLayer;
use super::norm::Norm;
use super::rope::Factors;
use super::streams::{GatedMix, Mix};
use super::{Engine, Linear, altup};
use crate::kernel::{Dense, RowSource, vector};
use crate::model::config::{Ending, Mixing};
use crate::model::{Config, Generated, MappedTensor, Model};
use crate::model::{RowOrder, ValueMap};
use crate::packed::{Input, Packed};
use crate::quant::{GgmlType, dequantize_rows};
use crate::source::{Checkpoint, Dtype};
use crate::{Error, Result};
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// A matrix `[rows, cols]` in the bytes of a ggml type.
pub struct Stored {
    ty: GgmlType,
    bytes: Vec<u8>,
    row_bytes: usize,
    cols: usize,
}

impl Stored {
    /// `bytes` holds whole rows of `cols` weights of type `ty`.
    ///
    /// Errors: `Unsupported` when the type cannot be decoded; `Internal` when the bytes are not whole rows.
    pub fn new(ty: GgmlType, bytes: Vec<u8>, cols: usize) -> Result<Self> {
        let row_bytes = ty.row_bytes(cols).filter(|n| *n > 0 && bytes.len().is_multiple_of(*n));
        let row_bytes = row_bytes.ok_or_else(|| Error::Internal(format!("{} bytes are not {ty} rows", bytes.len())))?;
        let stored = Stored { ty, bytes, row_bytes, cols };
        if let Some(row) = stored.bytes.get(..row_bytes) {
            stored.try_decode(row, &mut vec![0.0; cols])?;
        }
        Ok(stored)
    }

    fn try_decode(&self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        match self.ty {
            GgmlType::F32 => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *out = f32::from_le_bytes(*bytes);
                }
            }
            GgmlType::F16 => vector::from_f16(bytes, out),
            GgmlType::BF16 => vector::from_bf16(bytes, out),
            _ => dequantize_rows(self.ty, bytes, out).map_err(|e| Error::unsupported(e.to_string()))?,
        }
        Ok(())
    }
}

impl RowSource for Stored {
    fn rows(&self) -> usize {
        self.bytes.len() / self.row_bytes
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn ggml_type(&self) -> Option<GgmlType> {
        Some(self.ty)
    }

    fn stored(&self, rows: Range<usize>) -> Option<&[u8]> {
        self.bytes.get(rows.start * self.row_bytes..rows.end * self.row_bytes)
    }

    fn plain(&self, rows: Range<usize>) -> Option<&[f32]> {
        let stored = self.ty == GgmlType::F32 && cfg!(target_endian = "little");
        let bytes = stored.then(|| self.bytes.get(rows.start * self.row_bytes..rows.end * self.row_bytes))??;
        bytemuck::try_cast_slice(bytes).ok()
    }

    fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        let decoded = self.try_decode(&self.bytes[rows.start * self.row_bytes..rows.end * self.row_bytes], out);
        // The first row was decoded when the matrix was made, so the type is known to work.
        debug_assert!(decoded.is_ok());
    }
}

/// Rows that are read together.
const ROWS: usize = 256;

/// Tensors of an open model by GGUF name.
pub(super) struct Loader<'a> {
    ckpt: &'a Checkpoint,
    by_name: HashMap<&'a str, &'a MappedTensor>,
    /// Names of those that were looked up.
    used: Mutex<HashSet<String>>,
    /// Those that the checkpoint does not hold.
    generated: &'a [Generated],
}

impl<'a> Loader<'a> {
    pub fn new(ckpt: &'a Checkpoint, model: &'a Model) -> Self {
        let by_name = model.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        Loader { ckpt, by_name, used: Mutex::default(), generated: &model.generated }
    }

    /// The tensor's shape, where there is one.
    pub fn shape(&self, name: &str) -> Option<&'a [usize]> {
        let made = || self.generated.iter().find(|g| g.name == name).map(|g| g.shape.as_slice());
        self.by_name.get(name).map(|t| t.shape.as_slice()).or_else(made)
    }

    pub fn has(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    /// Norms of a model that has no weights for them.
    pub fn weightless(&self, c: &Config) -> Norm {
        let weight = vec![1.0; c.hidden];
        Norm { name: String::new(), kind: c.norm, weight, by_head: false, bias: None, eps: c.norm_eps }
    }

    fn find(&self, name: &str) -> Result<&MappedTensor> {
        let Some(tensor) = self.by_name.get(name) else {
            let file = self.ckpt.files().first().map_or(self.ckpt.dir(), |f| &f.path);
            return Err(Error::bad_file(file, "is missing; the model cannot run without it").tensor(name));
        };
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_string());
        Ok(tensor)
    }

    /// A tensor of a block that nothing has looked for, but for those that say how an engine rounds activations.
    pub fn unused(&self, block: &str) -> Option<&str> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mut own = self.by_name.keys().filter(|name| name.starts_with(block) && !name.ends_with(".input_scale"));
        own.find(|name| !used.contains(**name)).copied()
    }

    fn wrong_shape(&self, t: &MappedTensor, wanted: &str) -> Error {
        let file = t.parts.first().and_then(|p| self.ckpt.files().get(self.ckpt.tensors()[*p].file));
        let what = format!("shape is {:?}; expected {wanted}", t.shape);
        Error::bad_file(file.map_or(self.ckpt.dir(), |f| &f.path), what).tensor(&*t.name)
    }

    /// All numbers of a tensor of `len`, whatever its shape.
    pub fn numbers(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        if let Some(made) = self.generated.iter().find(|g| g.name == name && g.values.len() == len) {
            return Ok(made.values.clone());
        }
        let t = self.find(name)?;
        if t.elements() != len {
            return Err(self.wrong_shape(t, &format!("{len} numbers")));
        }
        let mut values = vec![0.0; len];
        self.computed(t, &mut values)?;
        Ok(values)
    }

    /// All numbers of a tensor. What is done with single numbers is computed in `f32`, as the model itself does, not in the
    /// type that a file will have.
    fn computed(&self, t: &MappedTensor, values: &mut [f32]) -> Result<()> {
        let one_by_one = matches!(
            t.values,
            ValueMap::PlusOne | ValueMap::NegExp | ValueMap::Exp | ValueMap::Times(_) | ValueMap::RowTimes(_)
        );
        if !one_by_one {
            return t.read_rows(self.ckpt, 0..t.row_count(), &mut Vec::new(), values);
        }
        let plain = MappedTensor { values: ValueMap::Same, ..t.clone() };
        plain.read_rows(self.ckpt, 0..t.row_count(), &mut Vec::new(), values)?;
        t.values.apply(values, t.cols());
        Ok(())
    }

    pub fn optional(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>> {
        self.has(name).then(|| self.numbers(name, len)).transpose()
    }

    /// The first row of a matrix, where there is one.
    fn first_row(&self, name: &str, cols: usize) -> Result<Option<Vec<f32>>> {
        let Some(shape) = self.shape(name) else { return Ok(None) };
        let mut all = self.numbers(name, shape.iter().product())?;
        if all.len() < cols || shape.last() != Some(&cols) {
            return Err(self.wrong_shape(self.find(name)?, &format!("[.., {cols}]")));
        }
        all.truncate(cols);
        Ok(Some(all))
    }

    /// A linear layer of whatever shape it has, where there is one.
    fn dense(&self, name: &str) -> Option<Result<Linear>> {
        let name_of_weight = format!("{name}.weight");
        let shape = self.shape(&name_of_weight).filter(|shape| shape.len() == 2)?;
        // In a folder it lies beside the checkpoint.
        let beside = self.generated.iter().find(|g| g.name == name_of_weight && g.values.len() == shape[0] * shape[1]);
        Some(match beside {
            Some(made) => {
                let weight = Box::new(Dense { data: made.values.clone(), cols: shape[1] });
                Ok(Linear { name: name_of_weight, weight, scales: Vec::new(), bias: None, rounding: Rounding::None })
            }
            None => self.linear(name, shape[0], shape[1]),
        })
    }

    /// The norm `{name}.weight` over rows of `len`, with its bias if there is one.
    pub fn norm(&self, c: &Config, name: &str, len: usize) -> Result<Norm> {
        let bias = self.optional(&format!("{name}.bias"), len)?;
        let name = format!("{name}.weight");
        let weight = self.numbers(&name, len)?;
        Ok(Norm { name, kind: c.norm, weight, by_head: false, bias, eps: c.norm_eps })
    }

    /// The linear layer `{name}.weight` of `rows` rows (of all experts together), with its bias if there is one.
    pub fn linear(&self, name: &str, rows: usize, cols: usize) -> Result<Linear> {
        let weight_name = format!("{name}.weight");
        let t = self.find(&weight_name)?;
        if t.row_count() != rows || t.cols() != cols {
            return Err(self.wrong_shape(t, &format!("[{rows}, {cols}]")));
        }
        let bias = self.optional(&format!("{name}.bias"), rows)?;
        let (weight, rounding) = match self.packed(t)? {
            Some((weight, input)) => (weight, Rounding::Format(input)),
            None => (self.matrix(t)?, Rounding::None),
        };
        Ok(Linear { name: weight_name, weight, scales: self.scales(name, t)?, bias, rounding })
    }

    /// The numbers of `{name}.scale`, one for the matrix or each of its experts. Others are not of products: Gemma 4 has a factor
    /// for each channel of a router.
    fn scales(&self, name: &str, t: &MappedTensor) -> Result<Vec<f32>> {
        let name = format!("{name}.scale");
        let count = self.shape(&name).map_or(0, |shape| shape.iter().product());
        let is_by_expert = t.shape.len() == 3 && t.shape[0] == count;
        if count == 1 || is_by_expert { self.numbers(&name, count) } else { Ok(Vec::new()) }
    }

    /// What weighs residual streams: `{stem}_fn.weight` and so on.
    pub fn mix(&self, stem: &str) -> Result<Mix> {
        let name = |part: &str| format!("{stem}_{part}.weight");
        let len = |part: &str| self.shape(&name(part)).map_or(0, |shape| shape.iter().product());
        let shape = self.shape(&name("fn")).filter(|shape| shape.len() == 2).unwrap_or(&[0, 0]);
        Ok(Mix {
            weigh: self.linear(&format!("{stem}_fn"), shape[0], shape[1])?,
            base: self.numbers(&name("base"), shape[0])?,
            scale: self.numbers(&name("scale"), len("scale"))?,
        })
    }

    /// What mixes residual streams channel by channel: `{stem}_norm.weight` and so on.
    pub fn gated_mix(&self, c: &Config, stem: &str) -> Result<GatedMix> {
        let count = c.streams.map_or(1, |streams| streams.count);
        let wide = count * c.hidden;
        let rank = self.shape(&format!("{stem}_down.weight")).map_or(0, |shape| shape[0]);
        let part = |name: &str, rows: usize, cols: usize| self.linear(&format!("{stem}_{name}"), rows, cols);
        let inject = self.has(&format!("{stem}_inject.weight")).then(|| part("inject", count, wide)).transpose()?;
        let norm = self.norm(c, &format!("{stem}_norm"), wide)?;
        Ok(GatedMix { norm, narrow: [part("down", rank, wide)?, part("up", wide, rank)?], inject })
    }

    /// The ends of streams that alternate.
    fn altup_ends(&self, c: &Config) -> Result<Option<altup::Ends>> {
        let Some(streams) = c.streams.filter(|streams| streams.mixing == Mixing::AltUp) else { return Ok(None) };
        let rows = (streams.count - 1) * c.hidden;
        let part = |name: &str| self.linear(name, rows, c.hidden);
        Ok(Some(altup::Ends { begin: part("altup_proj")?, end: part("altup_unembd_proj")? }))
    }

    /// Whether a tensor can stay in its stored bytes, and as which type.
    fn stored_type(&self, t: &MappedTensor) -> Option<GgmlType> {
        let first = self.ckpt.tensors()[*t.parts.first()?].dtype;
        let same = t.parts.iter().all(|p| self.ckpt.tensors()[*p].dtype == first);
        match first {
            Dtype::Ggml(ty) if same && t.values == ValueMap::Same => {
                let floats = [GgmlType::F32, GgmlType::F16, GgmlType::BF16].contains(&ty);
                let moved = matches!(t.rows, RowOrder::Gather(_)) && !t.keeps_rows();
                (floats || !ty.is_plain() && !moved).then_some(ty)
            }
            _ => None,
        }
    }

    /// Rows that lie in another order, in the type in which they are stored, which holds them exactly.
    fn gathered(&self, t: &MappedTensor, ty: GgmlType, row_bytes: usize, bytes: &mut [u8]) -> Result<()> {
        if t.keeps_rows() {
            return t.read_stored(self.ckpt, 0..t.row_count(), row_bytes, bytes);
        }
        let cols = t.cols();
        let (mut scratch, mut values) = (Vec::new(), vec![0.0; ROWS * cols]);
        for (i, bytes) in bytes.chunks_mut(ROWS * row_bytes).enumerate() {
            let n = bytes.len() / row_bytes;
            let values = &mut values[..n * cols];
            t.read_rows(self.ckpt, i * ROWS..i * ROWS + n, &mut scratch, values)?;
            let bytes_of = |out: &mut [u8], v: f32| match ty {
                GgmlType::F16 => out.copy_from_slice(&half::f16::from_f32(v).to_le_bytes()),
                GgmlType::BF16 => out.copy_from_slice(&half::bf16::from_f32(v).to_le_bytes()),
                _ => out.copy_from_slice(&v.to_le_bytes()),
            };
            let size = row_bytes / cols;
            bytes.chunks_exact_mut(size).zip(values).for_each(|(out, v)| bytes_of(out, *v));
        }
        Ok(())
    }

    /// The matrix as it is packed, where all of it is, and what its format does to the input.
    fn packed(&self, t: &MappedTensor) -> Result<Option<(Box<dyn RowSource>, Input)>> {
        let metas: Vec<_> = t.parts.iter().map(|p| &self.ckpt.tensors()[*p]).collect();
        let all = metas.iter().all(|m| matches!(m.dtype, Dtype::Packed(_)));
        let all = all && !matches!(t.rows, RowOrder::Gather(_));
        if !all || metas.is_empty() || t.half.is_some() || t.values != ValueMap::Same {
            return Ok(None);
        }
        let parts: Result<Vec<Packed>> = metas.into_iter().map(|m| self.ckpt.load_packed(m)).collect();
        let (mut parts, block) = (parts?, t.row_count() / t.parts.len());
        if let RowOrder::Rope { heads } = t.rows {
            let head = t.row_count() / heads.max(1);
            parts =
                parts.into_iter().map(|p| p.reorder(|row| row / head * head + rope_source(row % head, head))).collect();
        }
        let input = parts.iter().map(Packed::input).reduce(Input::shared).unwrap_or_default();
        Ok(Some((if parts.len() == 1 { Box::new(parts.remove(0)) } else { Box::new(Stacked { parts, block }) }, input)))
    }

    fn matrix(&self, t: &MappedTensor) -> Result<Box<dyn RowSource>> {
        let (rows, cols) = (t.row_count(), t.cols());
        let Some((ty, row_bytes)) = self.stored_type(t).and_then(|ty| Some((ty, ty.row_bytes(cols)?))) else {
            let mut data = vec![0.0; rows * cols];
            self.computed(t, &mut data)?;
            return Ok(Box::new(Dense { data, cols }));
        };
        let mut bytes = vec![0; rows * row_bytes];
        if let RowOrder::Gather(_) = t.rows {
            self.gathered(t, ty, row_bytes, &mut bytes)?;
            return Ok(Box::new(Stored::new(ty, bytes, cols)?));
        }
        let block = if t.half.is_some() { t.shape[1] } else { rows / t.parts.len() } * row_bytes;
        for (i, block_bytes) in bytes.chunks_exact_mut(block).enumerate() {
            let (part, offset) = match t.half {
                Some(half) => (t.parts[0], (2 * i + half) * block),
                None => (t.parts[i], 0),
            };
            self.ckpt.read(&self.ckpt.tensors()[part], offset as u64, block_bytes)?;
        }
        if let RowOrder::Rope { heads } = t.rows {
            interleave(&mut bytes, row_bytes, rows / heads);
        }
        Ok(Box::new(Stored::new(ty, bytes, cols)?))
    }
}

/// Matrices of the same width, one below the other: experts that lie one by one.
struct Stacked {
    parts: Vec<Packed>,
    /// Rows of each.
    block: usize,
}

impl RowSource for Stacked {
    fn rows(&self) -> usize {
        self.parts.len() * self.block
    }

    fn cols(&self) -> usize {
        self.parts.first().map_or(0, RowSource::cols)
    }

    fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        let cols = self.cols();
        let mut row = rows.start;
        while row < rows.end {
            let (part, first) = (row / self.block, row % self.block);
            let n = (self.block - first).min(rows.end - row);
            let at = (row - rows.start) * cols;
            self.parts[part].decode(first..first + n, &mut out[at..at + n * cols]);
            row += n;
        }
    }
}

/// Puts the rows of every head from two halves into pairs: row `2j + i` was row `i * head / 2 + j` (the inverse of what
/// llama.cpp's converter undoes).
fn interleave(bytes: &mut [u8], row_bytes: usize, head: usize) {
    let mut old = Vec::new();
    for head_bytes in bytes.chunks_exact_mut(head * row_bytes) {
        old.clear();
        old.extend_from_slice(head_bytes);
        for (row, out) in head_bytes.chunks_exact_mut(row_bytes).enumerate() {
            let source = rope_source(row, head);
            out.copy_from_slice(&old[source * row_bytes..][..row_bytes]);
        }
    }
}

/// The row of a head of `head` rows, as two halves, that becomes row `row` as pairs.
fn rope_source(row: usize, head: usize) -> usize {
    row % 2 * (head / 2) + row / 2
}

impl Engine {
    /// Reads every weight of `model` into memory.
    ///
    /// Errors: `BadInput` for a tensor that is missing or of another shape than the configuration says, `Unsupported`
    /// for a type that cannot be decoded, and those of reading.
    pub fn load(ckpt: &Checkpoint, model: &Model) -> Result<Engine> {
        let mut engine = Self::shell(ckpt, model)?;
        let loader = Loader::new(ckpt, model);
        let layers = (0..model.config.layers.len()).into_par_iter().map(|i| loader.layer(model, i).map(Some));
        engine.layers = layers.collect::<Result<_>>()?;
        Ok(engine)
    }

    /// The same without the layers, which [`Engine::load_layer`] brings in one at a time.
    ///
    /// Errors: as [`Engine::load`].
    pub fn shell(ckpt: &Checkpoint, model: &Model) -> Result<Engine> {
        let c = &model.config;
        model.runnable()?;
        let loader = Loader::new(ckpt, model);
        let factors = |name: &str| loader.shape(name).map(|s| loader.numbers(name, s.iter().product())).transpose();
        let untied = loader.has("output.weight");
        // LFM2's last norm is called that of the embedding.
        let last = match loader.has("output_norm.weight") {
            _ if c.norms.are_on_sums() => None,
            true => Some("output_norm"),
            false => Some("token_embd_norm"),
        };
        let first = loader.has("token_embd_norm.weight") && last != Some("token_embd_norm");
        // What a configuration says of the vocabulary counts tokens; the matrix may have more rows.
        let vocab = loader.shape("token_embd.weight").map_or(c.vocab, |shape| shape[0]);
        let positions = loader.shape("position_embd.weight").map(|shape| shape[0]);
        let rows_of = |name: &str| loader.shape(name).map_or(0, |shape| shape[0]);
        let each = c.per_layer;
        let per_layer = || -> Result<PerLayer> {
            let all = each * c.layers.len();
            let rows = loader.shape("per_layer_token_embd.weight").map_or(vocab, |shape| shape[0]);
            Ok(PerLayer {
                embedding: loader.linear("per_layer_token_embd", rows, all)?,
                projection: loader.linear("per_layer_model_proj", all, c.hidden)?,
                norm: loader.norm(c, "per_layer_proj_norm", each)?,
            })
        };
        Ok(Engine {
            per_layer: (each > 0).then(per_layer).transpose()?,
            carried: c.carried(),
            altup: loader.altup_ends(c)?,
            kv_cache: None,
            last_gate: loader.has("output_hc_up.weight").then(|| loader.gated_mix(c, "output_hc")).transpose()?,
            ngram_table: match &c.ngrams {
                Some(own) => {
                    Some(loader.linear("per_layer_token_embd", rows_of("per_layer_token_embd.weight"), own.width)?)
                }
                None => None,
            },
            last_mix: loader.has("output_hc_fn.weight").then(|| loader.mix("output_hc")).transpose()?,
            embedding: loader.linear("token_embd", vocab, c.hidden)?,
            positions: positions.map(|n| loader.linear("position_embd", n, c.hidden)).transpose()?,
            segment: loader.first_row("token_types.weight", c.hidden)?,
            dense: match c.ending {
                Ending::Logits => Vec::new(),
                Ending::Vectors(_) => ["dense_2", "dense_3"]
                    .map(|name| loader.dense(name))
                    .into_iter()
                    .flatten()
                    .collect::<Result<_>>()?,
            },
            scorer: loader.scorer(c)?,
            embedding_norm: match c.embedding_unit_norm {
                true => Some(loader.weightless(c)),
                false => first.then(|| loader.norm(c, "token_embd_norm", c.hidden)).transpose()?,
            },
            layers: c.layers.iter().map(|_| None).collect(),
            output_norm: match c.weightless_norms {
                true => Some(loader.weightless(c)),
                false if loader.has("output_hc_up.weight") => None,
                false => last.map(|last| loader.norm(c, last, c.hidden)).transpose()?,
            },
            output: untied.then(|| loader.linear("output", vocab, c.hidden)).transpose()?,
            rope_factors: Factors {
                all: factors("rope_freqs.weight")?,
                short: factors("rope_factors_short.weight")?,
                long: factors("rope_factors_long.weight")?,
            },
            config: Config { vocab, ..c.clone() },
        })
    }

    /// Reads layer `index`; `ckpt` and `model` are those that the engine was made from.
    ///
    /// Errors: as [`Engine::load`].
    pub fn load_layer(&mut self, ckpt: &Checkpoint, model: &Model, index: usize) -> Result<()> {
        let layer = Loader::new(ckpt, model).layer(model, index)?;
        self.layers[index] = Some(layer);
        Ok(())
    }

    /// Frees the memory of the embedding and the output matrix: what is left works on streams that exist already.
    pub fn unload_ends(&mut self) {
        self.embedding.weight = Box::new(Dense { data: Vec::new(), cols: self.config.hidden });
        self.output = None;
        self.per_layer = None;
        self.ngram_table = None;
    }

    /// Frees what only the first layer reads: the embedding too, where the head is another matrix.
    pub fn unload_beginning(&mut self) {
        let head = self.output.take();
        if head.is_some() {
            self.unload_ends();
        }
        self.output = head;
        self.per_layer = None;
        self.ngram_table = None;
    }

    /// Frees the memory of layer `index`.
    pub fn unload_layer(&mut self, index: usize) {
        self.layers[index] = None;
    }
}
