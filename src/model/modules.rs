//! The same tensors seen from the Hugging Face side: which module each linear layer is, under which name a checkpoint
//! folder keeps it, and where its rows lie in the source; everything else is kept as it is. It reads rows and decides
//! nothing about formats.
//!
//! Rows are in the source's order here. GGUF (and so the engine) interleaves the rotary rows of queries and keys in some
//! families; [`Module::engine_row`] gives that order. Experts that the source stacks into one tensor (transformers 5's
//! `experts.gate_up_proj`) become one module each, under the names of the unstacked layout, which vLLM, transformers and
//! mlx-lm all load; their router moves to that layout's name too.

use super::family::Source;
use super::graph;
use super::mapping::named;
use super::role::Role;
use super::source_names::{layer_of, text_name};
use super::stacks;
use super::tensor::{MappedTensor, RowOrder};
use super::understood::Model;
use crate::quant::GgmlType;
use crate::source::{Checkpoint, Dtype, TensorMeta};
use crate::{Error, Result};

/// A linear layer (or an embedding) that a format may quantize: `y = W x`, `W` is `[rows, cols]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// Name without `.weight`: `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Index into [`Checkpoint::tensors`].
    pub source: usize,
    /// The first of its rows among the rows of the source tensor (not 0 for stacked experts).
    pub first_row: usize,
    pub rows: usize,
    pub cols: usize,
    /// GGUF name of the weight, which names the inputs in calibration data.
    pub gguf: String,
    /// Which expert of that GGUF tensor.
    pub expert: Option<usize>,
    pub role: Role,
    pub layer: Option<usize>,
    /// Heads whose rotary rows GGUF interleaves.
    rope: Option<usize>,
}

/// What modules have in common that an engine takes as one: equal answers belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Together<'a> {
    /// By what they do, in a layer, for an expert.
    Roles(Option<usize>, usize, Option<usize>),
    /// By their names, where what they do is not known.
    Names(&'a str, usize),
}

/// Last words of the names of modules that engines make one matrix of.
const FUSED: [(&str, usize); 7] =
    [("q_proj", 0), ("k_proj", 0), ("v_proj", 0), ("gate_proj", 1), ("up_proj", 1), ("w1", 1), ("w3", 1)];

/// Linear layers that one kernel of an engine runs and that therefore must be stored alike; `None`: on its own.
pub fn stored_alike(role: Role, layer: Option<usize>, path: &str) -> Option<Together<'_>> {
    if role != Role::OpaqueLinear {
        return Some(Together::Roles(layer, graph::stored_alike(role)?, None));
    }
    let expert = |(block, rest): (&'_ str, &str)| rest.starts_with(|c: char| c.is_ascii_digit()).then_some(block.len());
    match path.split_once(".experts.").and_then(expert) {
        Some(len) => Some(Together::Names(&path[..len], FUSED.len())),
        None => one_matrix(path),
    }
}

/// Linear layers that share one global scale: those whose rows an engine puts into one matrix.
pub fn shares_scale(role: Role, layer: Option<usize>, expert: Option<usize>, path: &str) -> Option<Together<'_>> {
    match role {
        Role::OpaqueLinear => one_matrix(path),
        _ => Some(Together::Roles(layer, graph::shares_scale(role)?, expert)),
    }
}

/// The type in which formats keep the scales of a module that is stored so: that of the source, and F16 for wider ones, since
/// no engine runs quantized layers in F32.
pub fn scale_type(stored: Dtype) -> GgmlType {
    match stored {
        Dtype::Ggml(GgmlType::BF16) => GgmlType::BF16,
        _ => GgmlType::F16,
    }
}

fn one_matrix(path: &str) -> Option<Together<'_>> {
    let (block, last) = path.rsplit_once('.')?;
    let (_, set) = FUSED.iter().find(|(word, _)| *word == last)?;
    Some(Together::Names(block, *set))
}

/// A source tensor that is copied, under its own name unless the layout of its neighbours changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    pub source: usize,
    pub name: String,
}

/// All that a checkpoint folder of this model holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    /// By layer and then in the order of the family's table; embedding and output, where asked for, first.
    pub modules: Vec<Module>,
    /// In the order of the source.
    pub kept: Vec<Kept>,
}

impl Contents {
    /// Sorts the tensors of a safetensors source. `embeddings`: the embedding and the output are modules too; `stacks`: the
    /// folder's engine takes experts as one stack, so that those without a name of their own are modules too.
    ///
    /// # Errors
    /// `Unsupported` for a GGUF source, whose names and row order are not Hugging Face's, and for a quantized one.
    pub fn of(ckpt: &Checkpoint, model: &Model, embeddings: bool, stacks: bool) -> Result<Contents> {
        let shown = ckpt.dir().display();
        let Some(config) = &model.hf_config else {
            let what = "a checkpoint folder is made from a folder with config.json and safetensors, not from GGUF";
            return Err(Error::unsupported(format!("{shown}: {what}")));
        };
        if ["quantization_config", "quantization"].iter().any(|key| config.get(key).is_some_and(|q| !q.is_null())) {
            let what = "the checkpoint is already quantized; start from the original";
            return Err(Error::unsupported(format!("{shown}: {what}")));
        }
        let is_module =
            |role: Role| role.is_linear() || (embeddings && matches!(role, Role::TokenEmbedding | Role::Output));
        let mut modules = Vec::new();
        let mut names: Vec<Option<String>> = ckpt.tensors().iter().map(|t| Some(t.name.clone())).collect();
        let mut tensors: Vec<&MappedTensor> = model.tensors.iter().collect();
        let place = |t: &MappedTensor| (t.layer.map_or(0, |l| l + 1), t.role);
        tensors.sort_by_key(|t| place(t));
        for t in tensors {
            let named = || t.shape.len() != 3 || stacks::has_singles(&ckpt.tensors()[t.parts[0]].name);
            if is_module(t.role) && (stacks || t.role != Role::OpaqueLinear || named()) {
                modules.extend(modules_of(ckpt, model, t)?);
                t.parts.iter().for_each(|part| names[*part] = None);
            } else if t.role.is_router() && is_stacked(model, t.layer) {
                names[t.parts[0]] = Some(unstacked_name(ckpt, model, t, 0)?);
            }
        }
        if model.config.tied_embeddings {
            // A head of its own would contradict the configuration.
            for (name, t) in names.iter_mut().zip(ckpt.tensors()) {
                let is_embedding = |i: usize| model.tensors.iter().any(|m| m.parts.contains(&i));
                let i = ckpt.find(&t.name).filter(|i| is_embedding(*i));
                *name = name.take().filter(|_| i.is_some() || text_name(&t.name) != "lm_head.weight");
            }
        }
        let kept = names.into_iter().enumerate().filter_map(|(source, name)| Some(Kept { source, name: name? }));
        Ok(Contents { modules, kept: kept.collect() })
    }

    /// Makes modules of the kept matrices whose names are `wanted`.
    pub fn include(&mut self, ckpt: &Checkpoint, wanted: impl Fn(&str) -> bool) {
        let module = |kept: &Kept| {
            let t = &ckpt.tensors()[kept.source];
            let path = kept.name.strip_suffix(".weight")?;
            let number = matches!(t.dtype, Dtype::Ggml(ty) if ty.is_plain());
            let [rows, cols] = t.shape[..] else { return None };
            (number && wanted(&kept.name)).then(|| Module {
                path: path.to_string(),
                source: kept.source,
                first_row: 0,
                rows,
                cols,
                gguf: kept.name.clone(),
                expert: None,
                role: Role::OpaqueLinear,
                layer: layer_of(&kept.name),
                rope: None,
            })
        };
        let more: Vec<Module> = self.kept.iter().filter_map(module).collect();
        self.kept.retain(|kept| !more.iter().any(|m| m.source == kept.source));
        self.modules.extend(more);
        self.modules.sort_by_key(|m| m.layer.map_or(0, |layer| layer + 1));
    }

    /// The kept matrices, and why each is kept; what has one dimension, or rows for no product, needs no reason.
    pub fn reasons<'a>(kept: &'a [Kept], ckpt: &'a Checkpoint, model: &Model) -> Vec<(&'a str, &'static str)> {
        let role = |source: usize| model.tensors.iter().find(|t| t.parts.contains(&source)).map(|t| t.role);
        let matrices = kept.iter().filter(|k| ckpt.tensors()[k.source].shape.iter().filter(|n| **n > 1).count() > 1);
        matrices.map(|k| (k.name.as_str(), reason(role(k.source), &k.name, &ckpt.tensors()[k.source]))).collect()
    }
}

/// Why a matrix is not quantized.
fn reason(role: Option<Role>, name: &str, t: &TensorMeta) -> &'static str {
    let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    let last = name.strip_suffix(".weight").unwrap_or(name).rsplit('.').next().unwrap_or(name);
    match role {
        Some(Role::TokenEmbedding) => "the embedding, which the format leaves",
        Some(Role::Output) => "the output, which the format leaves",
        Some(role) if role.is_router() => "a router",
        _ if has(&["visual", "vision", "audio", "projector"]) => "part of an encoder of images or sound",
        _ if has(&["conv"]) => "a convolution",
        _ if has(&["norm"]) => "a norm",
        _ if has(&["embed", "position", "wpe"]) => "an embedding",
        _ if has(&["router"]) || last == "gate" => "a router",
        _ if has(&["score", "classifier"]) || ["output", "head"].contains(&last) => "a head",
        _ if t.shape.len() > 2 => "not a matrix",
        _ if !matches!(t.dtype, Dtype::Ggml(ty) if ty.is_plain()) => "no floating-point numbers",
        _ if t.shape.iter().any(|n| *n < 16) => "smaller than blocks of formats",
        _ => "not known to be a linear layer",
    }
}

/// Whether the experts of a layer lie in one tensor.
fn is_stacked(model: &Model, layer: Option<usize>) -> bool {
    model.tensors.iter().any(|t| t.layer == layer && t.role.is_expert() && t.parts.len() == 1 && t.shape[0] > 1)
}

/// The name in the layout with one tensor per expert: the family table's first spelling.
fn unstacked_name(ckpt: &Checkpoint, model: &Model, t: &MappedTensor, expert: usize) -> Result<String> {
    if t.role == Role::OpaqueLinear {
        let name = stacks::single_name(&ckpt.tensors()[t.parts[0]].name, t.half, expert);
        return name.ok_or_else(|| Error::Internal(format!("{}: no name for single experts", t.name)));
    }
    let row = model.known()?.row(t.role).and_then(|row| row.sources.first());
    let pattern = match row {
        Some(Source::One(p) | Source::PerExpert(p)) => *p,
        _ => return Err(Error::Internal(format!("{}: no name for single experts", t.name))),
    };
    // The image-and-text models that nest their text model have no experts.
    let source = &ckpt.tensors()[t.parts[0]].name;
    match text_name(source) == *source {
        true => Ok(named(pattern, t.layer, expert)),
        false => Err(Error::unsupported(format!("tensor '{source}': stacked experts inside a nested model"))),
    }
}

fn modules_of(ckpt: &Checkpoint, model: &Model, t: &MappedTensor) -> Result<Vec<Module>> {
    let experts = t.role.is_expert() || (t.role == Role::OpaqueLinear && t.shape.len() == 3);
    let count = if experts { t.shape[0] } else { 1 };
    let rows = t.rows_per_matrix();
    let stacked = experts && t.parts.len() == 1 && count > 1;
    let module = |i: usize| {
        let source = if t.parts.len() > 1 { t.parts[i] } else { t.parts[0] };
        let name = if stacked { unstacked_name(ckpt, model, t, i)? } else { ckpt.tensors()[source].name.clone() };
        let Some(path) = name.strip_suffix(".weight") else {
            let what = "is not called '….weight', so that no loader would find what it becomes";
            return Err(Error::unsupported(format!("tensor '{name}' {what}")));
        };
        let first_row = match (t.half, stacked) {
            (Some(half), _) => (2 * i + half) * rows,
            (None, true) => i * rows,
            (None, false) => 0,
        };
        let rope = match t.rows {
            RowOrder::Rope { heads } => Some(heads),
            RowOrder::Same => None,
            RowOrder::Gather(_) => return Err(Error::Internal(format!("{} is not a tensor of a folder", t.name))),
        };
        Ok(Module {
            path: path.to_string(),
            source,
            first_row,
            rows,
            cols: t.cols(),
            gguf: t.name.clone(),
            expert: experts.then_some(i),
            role: t.role,
            layer: t.layer,
            rope,
        })
    };
    (0..count).map(module).collect()
}

impl Module {
    pub fn meta<'a>(&self, ckpt: &'a Checkpoint) -> &'a TensorMeta {
        &ckpt.tensors()[self.source]
    }

    /// What must be stored as this module is.
    pub fn stored_alike(&self) -> Option<Together<'_>> {
        stored_alike(self.role, self.layer, &self.path)
    }

    /// What has the global scale of this module, where formats have one.
    pub fn shares_scale(&self) -> Option<Together<'_>> {
        shares_scale(self.role, self.layer, self.expert, &self.path)
    }

    /// The type in which formats keep this module's scales, see [`scale_type`].
    pub fn scale_type(&self, ckpt: &Checkpoint) -> GgmlType {
        scale_type(self.meta(ckpt).dtype)
    }

    /// Reads `[rows, cols]` in the source's order of rows.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`], and `BadInput` naming row and column of a weight that is not a finite number.
    pub fn read(&self, ckpt: &Checkpoint) -> Result<Vec<f32>> {
        let meta = self.meta(ckpt);
        let mut out = vec![0.0; self.rows * self.cols];
        let first = self.first_row * self.cols;
        ckpt.read_f32(meta, first..first + out.len(), &mut Vec::new(), &mut out)?;
        match out.iter().position(|w| !w.is_finite()) {
            None => Ok(out),
            Some(at) => {
                let (row, col) = (self.first_row + at / self.cols, at % self.cols);
                let file = ckpt.files().get(meta.file).map(|f| f.path.clone()).unwrap_or_default();
                Err(Error::bad_file(file, format!("the weight in row {row}, column {col} is {}", out[at]))
                    .tensor(&meta.name)
                    .hint("the checkpoint is damaged or its training diverged; download it again or ask its author"))
            }
        }
    }

    /// For each row of the engine's matrix, the row here.
    pub fn engine_row(&self, row: usize) -> usize {
        let Some(head) = self.rope.map(|heads| self.rows / heads.max(1)).filter(|head| *head > 1) else { return row };
        let inner = row % head;
        row - inner + inner % 2 * (head / 2) + inner / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Read through here or through the GGUF mapping: the same rows. And nothing is lost or kept twice.
    #[test]
    fn every_family_has_its_modules() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
        let mut families = 0;
        for entry in std::fs::read_dir(root).unwrap() {
            let dir = entry.unwrap().path();
            if !dir.is_dir() {
                continue;
            }
            families += 1;
            let ckpt = Checkpoint::open(&dir).unwrap();
            let model = Model::open(&ckpt).unwrap();
            let contents = Contents::of(&ckpt, &model, false, false).unwrap();
            let linears = model.tensors.iter().filter(|t| t.role.is_linear()).map(|t| t.elements()).sum::<usize>();
            assert_eq!(contents.modules.iter().map(|m| m.rows * m.cols).sum::<usize>(), linears);
            for m in &contents.modules {
                let t = model.tensors.iter().find(|t| t.name == m.gguf).unwrap();
                let mut want = vec![0.0; m.rows * m.cols];
                let first = m.expert.unwrap_or(0) * m.rows;
                t.read_rows(&ckpt, first..first + m.rows, &mut Vec::new(), &mut want).unwrap();
                let weights = m.read(&ckpt).unwrap();
                let row = |row: usize| &weights[m.engine_row(row) * m.cols..][..m.cols];
                assert_eq!(
                    (0..m.rows).flat_map(row).copied().collect::<Vec<_>>(),
                    want,
                    "{} {}",
                    dir.display(),
                    m.path
                );
            }
            let mut names: Vec<String> = contents.kept.iter().map(|k| k.name.clone()).collect();
            names.extend(contents.modules.iter().map(|m| format!("{}.weight", m.path)));
            let count = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count);
        }
        assert_eq!(families, 12);
    }
}
