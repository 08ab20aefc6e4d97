//! What each tensor would lose in each type, in one currency for the whole model: the error of a layer's output under the
//! second moments of its input, converted to KL divergence (of models without a head, to the distance of vectors) by measuring
//! groups of tensors quantized alone. The table that
//! a budget of bytes is spent by; which type a tensor gets is decided elsewhere.
//!
//! The model: to first order the errors of different tensors add up, and the KL divergence that a tensor causes is
//! proportional to its output error, `KL(t, type) = s(t) · tr(E H Eᵀ)`. `s` is taken to be the same for tensors of the
//! same part at about the same depth, and is what the measurement gives.

use super::form::{Form, Matrix};
use crate::calibration::layerwise::{Captured, Stage, Visit};
use crate::calibration::moments::{Moments, importance, mean_gram};
use crate::control::Run;
use crate::disk::partial::PartialFile;
use crate::eval::cosine::{Embedder, cosines};
use crate::eval::klbase::{KlBaseReader, KlBaseWriter};
use crate::eval::{self, Base, Candidate, Logits, Runnable, Windows};
use crate::feedback::ggml::{self, Gauge, losses_by_type};
use crate::feedback::{Factor, Order, Shrink, int};
use crate::infer::{Linear, Stored};
use crate::matrix::by_search;
use crate::minifloat;
use crate::model::config::Ending;
use crate::model::modules::scale_type;
use crate::model::{MappedTensor, Model, fault};
use crate::packed::{self, Spec};
use crate::quant::{self, GgmlType, QuantError};
use crate::source::Checkpoint;
use crate::{Error, Result};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

/// How the conversion will choose scales and codes.
#[derive(Clone, Copy, Debug)]
pub enum Rounding {
    Ggml,
    Feedback {
        shrink: Shrink,
        stage: ggml::Stage,
    },
    /// Of folders, with feedback where their forms have it.
    Modules {
        shrink: Shrink,
        search: int::Search,
    },
}

impl Rounding {
    /// The rows of a sample are so many, or a multiple: of some formats words hold codes of several rows.
    fn whole(self) -> usize {
        match self {
            Rounding::Ggml | Rounding::Feedback { .. } => 1,
            Rounding::Modules { .. } => 32,
        }
    }
}

/// What one tensor loses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Losses {
    /// Output error per token in each of the types asked for, estimated on a sample of rows.
    pub by_type: Vec<f64>,
    /// The same in [`probe_type`] by ggml's search: what the KL divergence is measured with.
    pub probe: f64,
    /// Mean of x² per channel, for each stacked matrix.
    pub importance: Option<Vec<f32>>,
}

/// The type in which the effect of a tensor on the KL divergence is measured: coarse enough to be seen on few tokens, and
/// within reach of what budgets buy. `None` for rows that no type divides.
pub fn probe_type(cols: usize) -> Option<GgmlType> {
    GgmlType::probe(cols)
}

/// One in so many rows is quantized to estimate a loss.
const SAMPLE: usize = 8;
/// The least and the most rows of a sample.
const SAMPLED: (usize, usize) = (128, 1024);

/// Estimates losses as the inputs of the layers become known.
pub struct Estimate<'a> {
    ckpt: &'a Checkpoint,
    model: &'a Model,
    /// What to estimate for each tensor of the model; nothing for those that are not quantized.
    types: &'a [Vec<Form>],
    rounding: Rounding,
    run: Run<'a>,
    index: HashMap<&'a str, usize>,
    /// Of the tensors with types: what was found, where their input was seen.
    pub losses: Vec<Option<Losses>>,
}

impl<'a> Estimate<'a> {
    pub fn new(
        ckpt: &'a Checkpoint,
        model: &'a Model,
        types: &'a [Vec<Form>],
        rounding: Rounding,
        run: Run<'a>,
    ) -> Self {
        let index = model.tensors.iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
        Self { ckpt, model, types, rounding, run, index, losses: vec![None; model.tensors.len()] }
    }

    /// The matrix that makes the logits, whose input comes after the last layer, and the embeddings where they are
    /// another one.
    pub fn ends(&mut self, captured: &Captured) -> Result<()> {
        if self.model.config.ending == Ending::Logits {
            if !self.index.contains_key("output.weight") {
                return self.matrices(&["token_embd.weight".to_string()], captured);
            }
            self.matrices(&["output.weight".to_string()], captured)?;
        }
        let Some(&index) = self.index.get("token_embd.weight") else { return Ok(()) };
        // An embedding is not multiplied with anything: its error is what comes out.
        let tensor = &self.model.tensors[index];
        let Some(probe) = probe_type(tensor.cols()).filter(|_| !self.types[index].is_empty()) else { return Ok(()) };
        let w = self.sample(tensor, 0..tensor.row_count())?;
        let plain = |ty: GgmlType| squared_error(ty, &w, tensor.cols()).map_err(|e| self.fault(tensor, ty, e));
        let by_form = |form: &Form| match form {
            Form::Ggml(ty) => plain(*ty),
            Form::Kept => Ok(0.0),
            Form::Module { spec, .. } => {
                let decoded = Matrix { module: self.module(tensor, &w), feedback: None }.decoded(spec)?;
                Ok(mean_square(&w, &decoded, tensor.cols()))
            }
        };
        let by_type = self.types[index].iter().map(by_form).collect::<Result<_>>()?;
        self.losses[index] = Some(Losses { by_type, probe: plain(probe)?, importance: None });
        Ok(())
    }

    fn matrices(&mut self, names: &[String], captured: &Captured) -> Result<()> {
        let (model, all) = (self.model, &captured.moments);
        let mean = mean_gram(all);
        let tokens: u64 = all.iter().map(|m| m.tokens).sum();
        for (expert, own) in all.iter().enumerate() {
            let mut input = Input::new(captured, expert, mean.as_deref(), self.rounding)?;
            for name in names {
                let Some(&index) = self.index.get(name.as_str()) else { continue };
                let (tensor, types) = (&model.tensors[index], &self.types[index]);
                let Some(probe) = probe_type(tensor.cols()).filter(|_| !types.is_empty()) else { continue };
                self.run.check()?;
                let matrix = tensor.rows_per_matrix().max(1);
                let rows = if all.len() > 1 { expert * matrix..(expert + 1) * matrix } else { 0..tensor.row_count() };
                let w = self.sample(tensor, rows.clone())?;
                // Rows that were left out lose as much, and an expert counts as often as it is used.
                let scale = rows.len() as f64 / (w.len() / tensor.cols()).max(1) as f64 * own.tokens as f64
                    / tokens.max(1) as f64;
                let by_type = self.by_form(tensor, &mut input, &w, types)?;
                let probed = input.losses(&w, &[probe], false).map_err(|e| self.fault(tensor, probe, e))?;
                let sum = self.losses[index].get_or_insert_with(|| Losses {
                    by_type: vec![0.0; types.len()],
                    probe: 0.0,
                    importance: Some(Vec::new()),
                });
                sum.by_type.iter_mut().zip(&by_type).for_each(|(sum, loss)| *sum += scale * loss);
                sum.probe += scale * probed[0];
                sum.importance.iter_mut().for_each(|all| all.extend_from_slice(&input.importance));
            }
        }
        Ok(())
    }

    /// What a tensor whose rows are like `w` loses in each of `types`, per token.
    fn by_form(&self, tensor: &MappedTensor, input: &mut Input, w: &[f32], types: &[Form]) -> Result<Vec<f64>> {
        let of_files: Vec<GgmlType> =
            types.iter().filter_map(|c| if let Form::Ggml(ty) = c { Some(*ty) } else { None }).collect();
        let losses = input.losses(w, &of_files, true);
        let first = of_files.first().copied().unwrap_or(GgmlType::F32);
        let mut losses = losses.map_err(|e| self.fault(tensor, first, e))?.into_iter();
        let loss = |form: &Form| match form {
            Form::Ggml(_) => Ok(losses.next().unwrap_or(f64::NAN)),
            Form::Kept => Ok(0.0),
            Form::Module { spec, feedback } => {
                let loss = input.module_loss(self.module(tensor, w), spec, *feedback);
                loss.map_err(|e| e.tensor(&*tensor.name))
            }
        };
        types.iter().map(loss).collect()
    }

    /// Rows of a tensor as a folder's format sees them.
    fn module<'w>(&self, tensor: &MappedTensor, w: &'w [f32]) -> packed::Module<'w> {
        let stored = tensor.parts.first().map(|part| self.ckpt.tensors()[*part].dtype);
        let scale_type = stored.map_or(GgmlType::F16, scale_type);
        let module = packed::Module::new(w, w.len() / tensor.cols().max(1), tensor.cols(), scale_type);
        // The scale of inputs does not matter to weights.
        packed::Module { input_max: Some(1.0), ..module }
    }

    /// Rows from all over `rows` of a tensor, `[sample, cols]`.
    fn sample(&self, tensor: &MappedTensor, rows: Range<usize>) -> Result<Vec<f32>> {
        let cols = tensor.cols();
        let count = (rows.len() / SAMPLE).clamp(SAMPLED.0, SAMPLED.1).next_multiple_of(self.rounding.whole());
        let count = count.min(rows.len());
        let mut w = vec![0.0; count * cols];
        let mut scratch = Vec::new();
        for (i, out) in w.chunks_exact_mut(cols).enumerate() {
            let row = rows.start + i * rows.len() / count;
            tensor.read_rows(self.ckpt, row..row + 1, &mut scratch, out)?;
        }
        Ok(w)
    }

    fn fault(&self, tensor: &MappedTensor, ty: GgmlType, error: QuantError) -> Error {
        // The row is one of a sample, so only its tensor is named.
        match error {
            QuantError::NotFinite { .. } | QuantError::BadScale { .. } => {
                Error::bad_input(error.to_string()).tensor(&*tensor.name)
            }
            other => fault(self.ckpt, tensor, &(0..1), ty, other),
        }
    }
}

impl Visit for Estimate<'_> {
    fn stage(&mut self, _: usize, _: Stage, captured: &[&Captured], _: Vec<&mut Linear>) -> Result<()> {
        captured.iter().try_for_each(|captured| self.matrices(&captured.linears, captured))
    }

    fn layer_done(&mut self, _: usize) -> Result<()> {
        self.run.check()
    }
}

/// What is known of the input of a matrix.
struct Input<'a> {
    importance: Vec<f32>,
    /// Of the text that the rounding sees.
    gram: Cow<'a, [f32]>,
    rounding: Rounding,
    /// Of modules of folders, by the order of columns; `None` where there is none.
    factors: Vec<((bool, usize), Option<Factor>)>,
    /// `None` where rounding is without feedback.
    hessian: Option<(ggml::Hessian, ggml::Stage)>,
    /// Of text that the rounding does not see, where there is some.
    gauge: Gauge,
    gauged: f64,
}

impl<'a> Input<'a> {
    fn new(captured: &'a Captured, expert: usize, mean: Option<&[f32]>, rounding: Rounding) -> Result<Self> {
        let own = &captured.moments[expert];
        let cols = own.cols;
        let (gram, tokens) = own.leaning(mean);
        let importance = importance(&gram, cols, tokens);
        let held: Vec<&Moments> =
            captured.held.iter().filter_map(|set| set.get(expert)).filter(|m| m.tokens > 0).collect();
        let gauged: u64 = held.iter().map(|m| m.tokens).sum();
        let gauge = |gram: &[f32]| Gauge::new(gram, cols).map_err(|e| Error::Internal(e.to_string()));
        let (gauge, gauged) = match held.as_slice() {
            [] => (gauge(&gram)?, tokens.max(1.0).into()),
            [first, rest @ ..] => {
                let mut sum: Cow<[f32]> = (&first.gram).into();
                for m in rest {
                    sum.to_mut().iter_mut().zip(&m.gram).for_each(|(sum, v)| *sum += v);
                }
                (gauge(&sum)?, gauged as f64)
            }
        };
        let hessian = match rounding {
            Rounding::Feedback { shrink, stage } => {
                let factor = Factor::new(&gram, cols, shrink, Order::Natural).ok();
                factor.and_then(|(factor, _)| Some((ggml::Hessian::new(factor).ok()?, stage)))
            }
            Rounding::Ggml | Rounding::Modules { .. } => None,
        };
        Ok(Self { importance, gram, rounding, factors: Vec::new(), hessian, gauge, gauged })
    }

    /// The output error per token of a module of a folder, that of the rounding of its input included.
    fn module_loss(&mut self, module: packed::Module, spec: &Spec, feedback: bool) -> Result<f64> {
        let cols = module.cols;
        let feedback = match self.rounding {
            Rounding::Modules { shrink, search } if feedback && spec.takes_feedback() => {
                let order = (spec.desc_act, spec.group_of(cols));
                if !self.factors.iter().any(|(known, _)| *known == order) {
                    let columns = if order.0 { Order::Activity } else { Order::Groups(order.1) };
                    let factor = Factor::new(&self.gram, cols, shrink, columns).ok();
                    self.factors.push((order, factor.map(|(factor, _)| factor)));
                }
                let factor = self.factors.iter().find(|(known, _)| *known == order);
                let search = int::Search { static_groups: search.static_groups || !spec.desc_act, ..search };
                factor.and_then(|(_, factor)| Some((factor.as_ref()?, search)))
            }
            _ => None,
        };
        let decoded = Matrix { module, feedback }.decoded(spec)?;
        let bytes = minifloat::to_bytes(GgmlType::F32, &decoded);
        let of_weights = self.gauge.loss(GgmlType::F32, module.weights, &bytes);
        let of_weights = of_weights.map_err(|e| Error::Internal(e.to_string()))? / self.gauged;
        let power = |row: &[f32]| -> f64 {
            row.iter().zip(&self.importance).map(|(w, x)| f64::from(w * w) * f64::from(*x)).sum()
        };
        let inputs = spec.activations().relative_error();
        let of_inputs =
            if inputs > 0.0 { inputs * module.weights.chunks_exact(cols).map(power).sum::<f64>() } else { 0.0 };
        Ok(of_weights + of_inputs)
    }

    /// The output error per token of rows `w` in each of `types`, with feedback where the rounding has it or by ggml's
    /// search alone.
    fn losses(&self, w: &[f32], types: &[GgmlType], feedback: bool) -> Result<Vec<f64>, QuantError> {
        let cols = self.importance.len();
        let coarse: Vec<GgmlType> = types.iter().copied().filter(|ty| !ty.is_plain()).collect();
        let importance = self.importance.iter().any(|v| *v > 0.0).then_some(self.importance.as_slice());
        let losses: Vec<f64> = match (&self.hessian, importance) {
            (Some((hessian, stage)), Some(importance)) if feedback => {
                let all = losses_by_type(hessian, &self.gauge, w, importance, &coarse, *stage)?;
                all.into_iter().map(|l| l.loss).collect()
            }
            _ => coarse
                .iter()
                .map(|ty| match by_search(*ty, w, cols, importance) {
                    // An expert that no token reached: the type is out of the question.
                    Err(QuantError::NeedsImportance { .. }) => Ok(f64::NAN),
                    bytes => self.gauge.loss(*ty, w, &bytes?),
                })
                .collect::<Result<_, _>>()?,
        };
        // 16 bits lose nothing that could be weighed against the rest.
        let mut losses = losses.into_iter();
        Ok(types
            .iter()
            .map(|ty| if ty.is_plain() { 0.0 } else { losses.next().unwrap_or(0.0) / self.gauged })
            .collect())
    }
}

/// Mean squared error of a row.
fn squared_error(ty: GgmlType, w: &[f32], cols: usize) -> Result<f64, QuantError> {
    if ty.is_plain() {
        return Ok(0.0);
    }
    let mut decoded = vec![0.0; w.len()];
    quant::dequantize_rows(ty, &by_search(ty, w, cols, None)?, &mut decoded)?;
    Ok(mean_square(w, &decoded, cols))
}

/// The mean over rows of what `decoded` is off.
fn mean_square(w: &[f32], decoded: &[f32], cols: usize) -> f64 {
    let sum: f64 = w.iter().zip(decoded).map(|(w, v)| f64::from(w - v).powi(2)).sum();
    sum / (w.len() / cols.max(1)).max(1) as f64
}

/// Tensors that are taken to be equally sensitive.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// `ffn_down`
    pub part: String,
    /// Empty for what is in no layer.
    pub layers: Range<usize>,
    /// Tensors of the model.
    pub members: Vec<usize>,
    /// KL divergence, nats per token, or mean of 1 − cosine, with the members in [`probe_type`] and everything else as it was.
    pub kl: f64,
}

/// Sorts the tensors with losses into groups: by part and by depth.
pub fn groups(model: &Model, losses: &[Option<Losses>]) -> Vec<Group> {
    let depths = depths(model.config.layers.len());
    let mut groups: Vec<Group> = Vec::new();
    for (index, tensor) in model.tensors.iter().enumerate().filter(|(i, _)| losses[*i].is_some()) {
        let name = tensor.name.trim_end_matches(".weight");
        let part = name.rsplit('.').next().unwrap_or(name);
        let layers = tensor.layer.and_then(|l| depths.iter().find(|d| d.contains(&l)).cloned()).unwrap_or(0..0);
        match groups.iter_mut().find(|g| g.part == part && g.layers == layers) {
            Some(group) => group.members.push(index),
            None => groups.push(Group { part: part.into(), layers, members: vec![index], kl: 0.0 }),
        }
    }
    groups
}

/// Layers that are measured together: the first and the last on their own, since they differ most from the rest.
fn depths(layers: usize) -> Vec<Range<usize>> {
    let mut bounds: Vec<usize> = [0, 1, layers / 8, layers / 3, 2 * layers / 3, layers.saturating_sub(1), layers]
        .into_iter()
        .filter(|b| *b <= layers)
        .collect();
    bounds.sort_unstable();
    bounds.dedup();
    bounds.windows(2).map(|b| b[0]..b[1]).collect()
}

/// What [`measure`] runs on.
pub struct Text<'a> {
    pub stream: &'a [u32],
    pub windows: &'a Windows,
    /// A folder for the logits of the model as it is.
    pub folder: &'a Path,
}

/// Measures the KL divergence of each group. `model` is as before afterwards.
///
/// Errors: those of running the model; `Interrupted`; disk.
pub fn measure(
    model: &mut Runnable,
    losses: &[Option<Losses>],
    groups: &mut [Group],
    text: &Text,
    run: Run,
) -> Result<()> {
    let dir = tempfile::tempdir_in(text.folder).map_err(|e| Error::io(text.folder, e))?;
    let path = dir.path().join("base");
    let base = Reference::new(model, text, &path)?;
    for group in groups {
        run.check()?;
        let types: Vec<(usize, GgmlType)> =
            group.members.iter().filter_map(|i| Some((*i, probe_type(model.model.tensors[*i].cols())?))).collect();
        group.kl = base.kl(model, losses, &types, text)?;
        run.advance(text.windows.covered_tokens() as u64);
    }
    Ok(())
}

/// What the model gives as it is: its logits, in a file, or vectors.
enum Reference<'a> {
    Logits(&'a Path),
    Vectors(Vec<Vec<f32>>),
}

impl<'a> Reference<'a> {
    fn new(model: &mut Runnable, text: &Text, path: &'a Path) -> Result<Self> {
        if model.engine.config.ending != Ending::Logits {
            return Ok(Self::Vectors(vectors(model, text)?));
        }
        let writer = KlBaseWriter::create(path, text.windows, model.vocab(), text.stream)?;
        let base = Base::Model(Candidate { name: "base".into(), model });
        let options = eval::Options { save_base: Some(writer), progress: None };
        let run = eval::compare(base, &mut [], text.stream, text.windows, options)?;
        run.stored.map_or(Ok(()), PartialFile::finish)?;
        Ok(Self::Logits(path))
    }

    /// The KL divergence, or mean of 1 − cosine, with some tensors quantized by ggml's search.
    fn kl(
        &self,
        model: &mut Runnable,
        losses: &[Option<Losses>],
        types: &[(usize, GgmlType)],
        text: &Text,
    ) -> Result<f64> {
        let mut other = Vec::new();
        for (index, ty) in types {
            let tensor = &model.model.tensors[*index];
            let importance = losses[*index].as_ref().and_then(|l| l.importance.as_deref());
            let stored: Box<dyn crate::kernel::RowSource> = Box::new(whole(&model.ckpt, tensor, *ty, importance)?);
            other.push((tensor.name.clone(), stored));
        }
        swap(model, &mut other);
        let losses = self.losses(model, text);
        swap(model, &mut other);
        let losses = losses?;
        Ok(losses.iter().sum::<f64>() / losses.len().max(1) as f64)
    }

    /// Of every position, or of every vector.
    fn losses(&self, model: &mut Runnable, text: &Text) -> Result<Vec<f64>> {
        match self {
            Reference::Logits(path) => {
                let base = Base::File(Box::new(KlBaseReader::open(path)?));
                let with = Candidate { name: "one group quantized".into(), model };
                let run = eval::compare(base, &mut [with], text.stream, text.windows, eval::Options::default())?;
                Ok(run.candidates[0].iter().map(|r| r.kld).collect())
            }
            Reference::Vectors(base) => {
                let (theirs, width) = (vectors(model, text)?, model.engine.vector_width());
                let cosines = base.iter().zip(&theirs).flat_map(|(a, b)| cosines(a, b, width));
                Ok(cosines.map(|cosine| 1.0 - cosine).collect())
            }
        }
    }
}

fn vectors(model: &mut Runnable, text: &Text) -> Result<Vec<Vec<f32>>> {
    Embedder { name: "the model".into(), model }.run(text.stream, text.windows, &mut |_| Ok(()))
}

/// Exchanges the weights of the linear layers named.
fn swap(model: &mut Runnable, other: &mut [(String, Box<dyn crate::kernel::RowSource>)]) {
    for linear in model.engine.linears_mut() {
        if let Some((_, weight)) = other.iter_mut().find(|(name, _)| *name == linear.name) {
            std::mem::swap(&mut linear.weight, weight);
        }
    }
}

/// A whole tensor by ggml's search.
fn whole(ckpt: &Checkpoint, tensor: &MappedTensor, ty: GgmlType, importance: Option<&[f32]>) -> Result<Stored> {
    let (cols, rows) = (tensor.cols(), tensor.row_count());
    let matrix = tensor.rows_per_matrix().max(1);
    let mut bytes = Vec::new();
    let mut w = Vec::new();
    for first in (0..rows).step_by(matrix) {
        let rows = first..(first + matrix).min(rows);
        w.resize(rows.len() * cols, 0.0);
        tensor.read_rows(ckpt, rows.clone(), &mut Vec::new(), &mut w)?;
        let of_matrix =
            importance.map(|all| if all.len() > cols { &all[first / matrix * cols..][..cols] } else { all });
        let of_matrix = of_matrix.filter(|values| values.iter().any(|v| *v > 0.0));
        bytes.extend(by_search(ty, &w, cols, of_matrix).map_err(|e| fault(ckpt, tensor, &rows, ty, e))?);
    }
    Stored::new(ty, bytes, cols)
}

/// Turns output errors into KL divergence: what a group was measured at is shared out by its members' output errors.
pub fn calibrated(losses: &[Option<Losses>], groups: &[Group]) -> Vec<Option<Vec<f64>>> {
    let mut all = vec![None; losses.len()];
    for group in groups {
        let of = |i: &usize| losses[*i].as_ref();
        let probed: f64 = group.members.iter().filter_map(of).map(|l| l.probe).sum();
        let per_loss = if probed > 0.0 { rounded(group.kl / probed) } else { 0.0 };
        for i in &group.members {
            all[*i] = of(i).map(|l| l.by_type.iter().map(|loss| per_loss * loss).collect());
        }
    }
    all
}

/// To about 1 %: a measured factor decides bytes, and its last digits are no two machines' own.
fn rounded(x: f64) -> f64 {
    if x > 0.0 { ((x.ln() * 64.0).round() / 64.0).exp() } else { 0.0 }
}
