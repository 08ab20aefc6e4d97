//! Loading a model into memory. Matrices keep the bytes they are stored in and are decoded block by block in every
//! product, so that a model needs little more memory than its file; norms, biases and rotary factors become `f32`.

use super::activations::Rounding;
use super::experts::{Experts, SharedExpert};
use super::rope::Factors;
use super::{Engine, FeedForward, Layer, Linear, Mlp};
use crate::kernel::{Dense, RowSource, vector};
use crate::model::config::{self, Activation, Config};
use crate::model::families::Rotation;
use crate::model::{LayerConfig, MappedTensor, Model, Role};
use crate::model::{RowOrder, ValueMap};
use crate::packed::{Input, Packed};
use crate::quant::{GgmlType, dequantize_rows};
use crate::source::{Checkpoint, Dtype};
use crate::{Error, Result};
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::Range;

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

/// Tensors of an open model by GGUF name.
struct Loader<'a> {
    ckpt: &'a Checkpoint,
    by_name: HashMap<&'a str, &'a MappedTensor>,
}

impl Loader<'_> {
    fn find(&self, name: &str) -> Result<&MappedTensor> {
        self.by_name.get(name).copied().ok_or_else(|| {
            let file = self.ckpt.files().first().map_or(self.ckpt.dir(), |f| &f.path);
            Error::bad_file(file, "is missing; the model cannot run without it").tensor(name)
        })
    }

    fn wrong_shape(&self, t: &MappedTensor, wanted: &str) -> Error {
        let file = t.parts.first().and_then(|p| self.ckpt.files().get(self.ckpt.tensors()[*p].file));
        let what = format!("shape is {:?}; expected {wanted}", t.shape);
        Error::bad_file(file.map_or(self.ckpt.dir(), |f| &f.path), what).tensor(&*t.name)
    }

    /// A vector of `len` numbers.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let t = self.find(name)?;
        if t.row_count() != 1 || t.cols() != len {
            return Err(self.wrong_shape(t, &format!("[{len}]")));
        }
        let mut values = vec![0.0; len];
        // Computed in `f32`, as the model itself does, not in the type that a file will have.
        let plain = MappedTensor { values: ValueMap::Same, ..t.clone() };
        plain.read_rows(self.ckpt, 0..1, &mut Vec::new(), &mut values)?;
        t.values.apply(&mut values);
        Ok(values)
    }

    fn optional_vector(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>> {
        self.by_name.contains_key(name).then(|| self.vector(name, len)).transpose()
    }

    /// The linear layer `{name}.weight` of `rows` rows (of all experts together), with its bias if there is one.
    fn linear(&self, name: &str, rows: usize, cols: usize) -> Result<Linear> {
        let weight_name = format!("{name}.weight");
        let t = self.find(&weight_name)?;
        if t.row_count() != rows || t.cols() != cols {
            return Err(self.wrong_shape(t, &format!("[{rows}, {cols}]")));
        }
        let bias = self.optional_vector(&format!("{name}.bias"), rows)?;
        let (weight, rounding) = match self.packed(t)? {
            Some((weight, input)) => (weight, Rounding::Format(input)),
            None => (self.matrix(t)?, Rounding::None),
        };
        Ok(Linear { name: weight_name, weight, bias, rounding })
    }

    /// Whether a tensor can stay in its stored bytes, and as which type.
    fn stored_type(&self, t: &MappedTensor) -> Option<GgmlType> {
        let first = self.ckpt.tensors()[*t.parts.first()?].dtype;
        let same = t.parts.iter().all(|p| self.ckpt.tensors()[*p].dtype == first);
        match first {
            Dtype::Ggml(ty) if same && t.values == ValueMap::Same => {
                let kept = [GgmlType::F32, GgmlType::F16, GgmlType::BF16].contains(&ty) || !ty.is_plain();
                kept.then_some(ty)
            }
            _ => None,
        }
    }

    /// The matrix as it is packed, where all of it is, and what its format does to the input.
    fn packed(&self, t: &MappedTensor) -> Result<Option<(Box<dyn RowSource>, Input)>> {
        let metas: Vec<_> = t.parts.iter().map(|p| &self.ckpt.tensors()[*p]).collect();
        let all = metas.iter().all(|m| matches!(m.dtype, Dtype::Packed(_)));
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
            t.read_rows(self.ckpt, 0..rows, &mut Vec::new(), &mut data)?;
            return Ok(Box::new(Dense { data, cols }));
        };
        let mut bytes = vec![0; rows * row_bytes];
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

/// Whether the forward pass computes what this configuration says.
fn runnable(c: &Config) -> Result<()> {
    let no = |what: &str| {
        let hint = "conversion and rounding without calibration work; calibration and evaluation do not";
        Err(Error::unsupported(format!("{} models cannot be run here: {what} ({hint})", c.arch)))
    };
    if c.norm != config::Norm::Rms {
        return no("LayerNorm");
    }
    if c.residual_scale != 1.0 || c.logit_scale != 1.0 {
        return no("scaled residuals or logits");
    }
    for layer in &c.layers {
        let Some(heads) = layer.heads() else { return no("layers without attention") };
        if heads.rope.is_none() {
            return no("attention without positions");
        }
        if heads.value_dim != heads.dim {
            return no("value heads of another size than key heads");
        }
        if !layer.wiring.pre_norm || layer.wiring.parallel {
            return no("parallel blocks, or blocks without norms before them");
        }
        let ffn = &layer.ffn;
        let activation = match (&ffn.dense, &ffn.experts) {
            (Some(dense), None) if dense.gated => dense.activation,
            (None, Some(experts)) => experts.activation,
            _ => return no("feed-forward blocks without a gate, or beside experts"),
        };
        if !matches!(activation, Activation::Silu | Activation::GeluTanh) {
            return no("its activation function");
        }
    }
    Ok(())
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
        runnable(c)?;
        let loader = Loader::new(ckpt, model);
        let factors = |name: &str| model.generated.iter().find(|g| g.name == name).map(|g| g.values.clone());
        let untied = loader.by_name.contains_key("output.weight");
        Ok(Engine {
            embedding: loader.linear("token_embd", c.vocab, c.hidden)?,
            layers: c.layers.iter().map(|_| None).collect(),
            output_norm: loader.vector("output_norm.weight", c.hidden)?,
            output: untied.then(|| loader.linear("output", c.vocab, c.hidden)).transpose()?,
            rope_factors: Factors {
                all: factors("rope_freqs.weight"),
                short: factors("rope_factors_short.weight"),
                long: factors("rope_factors_long.weight"),
            },
            interleaved_rope: model.known()?.rotation == Rotation::Pairs,
            config: c.clone(),
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
    }

    /// Frees the memory of layer `index`.
    pub fn unload_layer(&mut self, index: usize) {
        self.layers[index] = None;
    }
}

impl<'a> Loader<'a> {
    fn new(ckpt: &'a Checkpoint, model: &'a Model) -> Self {
        Loader { ckpt, by_name: model.tensors.iter().map(|t| (t.name.as_str(), t)).collect() }
    }
}

impl Loader<'_> {
    fn layer(&self, model: &Model, index: usize) -> Result<Layer> {
        let (c, family) = (&model.config, model.known()?);
        let name = |tensor: &str| format!("blk.{index}.{tensor}");
        let norm = |role: Role, len| match family.row(role) {
            Some(row) if row.when.holds(c.layers.get(index), c) => self.vector(&row.name(index), len).map(Some),
            _ => Ok(None),
        };
        let required =
            |role: Role| norm(role, c.hidden)?.ok_or_else(|| Error::Internal(format!("no {role:?} in layer {index}")));
        let (Some(block), Some(heads)) = (c.layers.get(index), c.layers.get(index).and_then(LayerConfig::heads)) else {
            return Err(Error::Internal(format!("no attention in layer {index}")));
        };
        let (q, k, v) = (heads.q_width(), heads.k_width(), heads.v_width());
        let qkv = if family.has(Role::AttnQkv) {
            vec![self.linear(&name("attn_qkv"), q + k + v, c.hidden)?]
        } else {
            let part = |tensor, rows| self.linear(&name(tensor), rows, c.hidden);
            vec![part("attn_q", q)?, part("attn_k", k)?, part("attn_v", v)?]
        };
        let mlp = match (&block.ffn.experts, &block.ffn.dense) {
            (Some(experts), _) => Mlp::Experts(Box::new(self.experts(model, index, experts)?)),
            (None, dense) => {
                let dense =
                    dense.as_ref().ok_or_else(|| Error::Internal(format!("no feed-forward in layer {index}")))?;
                Mlp::Dense(self.feed_forward(model, index, "", dense.width, dense.activation)?)
            }
        };
        Ok(Layer {
            attn_norm: required(Role::AttnNorm)?,
            qkv,
            q_norm: norm(Role::AttnQNorm, heads.dim)?,
            k_norm: norm(Role::AttnKNorm, heads.dim)?,
            attn_output: self.linear(&name("attn_output"), c.hidden, heads.out_width())?,
            post_attn_norm: norm(Role::PostAttnNorm, c.hidden)?,
            ffn_norm: required(Role::FfnNorm)?,
            mlp,
            post_ffn_norm: norm(Role::PostFfnNorm, c.hidden)?,
            window: heads.window.map(|w| w.max(1)),
        })
    }

    /// The feed-forward block whose tensors are called `ffn_gate{suffix}` and so on.
    fn feed_forward(
        &self,
        model: &Model,
        index: usize,
        suffix: &str,
        width: usize,
        activation: Activation,
    ) -> Result<FeedForward> {
        let c = &model.config;
        let name = |tensor: &str| format!("blk.{index}.{tensor}{suffix}");
        let gate_up = if model.known()?.has(Role::FfnGateUp) {
            vec![self.linear(&name("ffn_up"), 2 * width, c.hidden)?]
        } else {
            vec![self.linear(&name("ffn_gate"), width, c.hidden)?, self.linear(&name("ffn_up"), width, c.hidden)?]
        };
        let down = self.linear(&name("ffn_down"), c.hidden, width)?;
        Ok(FeedForward { gate_up, down, width, activation })
    }

    fn experts(&self, model: &Model, index: usize, sizes: &config::Experts) -> Result<Experts> {
        let c = &model.config;
        let name = |tensor: &str| format!("blk.{index}.{tensor}");
        let (count, width) = (sizes.count, sizes.ffn);
        let shared = sizes.shared_ffn.map(|width| {
            let gate = name("ffn_gate_inp_shexp.weight");
            let expert = self.feed_forward(model, index, "_shexp", width, sizes.activation)?;
            Ok::<_, Error>(SharedExpert { gate: self.optional_vector(&gate, c.hidden)?, name: gate, expert })
        });
        Ok(Experts {
            router: self.linear(&name("ffn_gate_inp"), count, c.hidden)?,
            gate: self.linear(&name("ffn_gate_exps"), count * width, c.hidden)?,
            up: self.linear(&name("ffn_up_exps"), count * width, c.hidden)?,
            down: self.linear(&name("ffn_down_exps"), count * c.hidden, width)?,
            count,
            used: sizes.used,
            width,
            norm_topk: sizes.norm_topk,
            activation: sizes.activation,
            shared: shared.transpose()?,
        })
    }
}
