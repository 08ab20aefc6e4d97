//! Rounding by what a layer's inputs were: every module of a stage is rounded with error feedback against the second
//! moments of its inputs (or, in formats whose numbers the feedback does not choose, to nearest with the largest input),
//! packed and written, and takes its place in the running model. What cannot be done so is done to nearest with a search
//! of scales, and said so; hours of work never end in a crash over one tensor.

use super::job::{Job, formats_module, part, parts};
use super::nearest::{fused_max, in_file, round_part};
use super::scaled::{self, Factors, LayerInputs, Scaling};
use crate::awq::{Grid, clip};
use crate::calibration::layerwise::{self, Captured, Stage, Visit};
use crate::calibration::moments::Moments;
use crate::convert::form::floats;
use crate::convert::layout::rules::ModulePlan;
use crate::convert::ledger::Kind;
use crate::feedback::int::{Codes, Search};
use crate::feedback::{Factor, Order, Shrink, int};
use crate::infer::Linear;
use crate::kernel::RowSource;
use crate::model::Role;
use crate::model::modules::Module;
use crate::packed::{self, Packed, Piece, Spec};
use crate::quant::GgmlType;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// How the rounding works.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Codes are chosen with error feedback, where the format takes that; otherwise each weight goes to the nearest.
    pub feedback: bool,
    pub shrink: Shrink,
    pub search: Search,
    /// Channels are scaled before.
    pub scaling: Option<Scaling>,
    /// Inputs are seen behind quantized predecessors.
    pub sequential: bool,
}

/// Rounds layer after layer while the model runs over `windows`.
pub struct Layered<'a> {
    pub windows: &'a [Vec<u32>],
    pub options: Options,
}

impl Layered<'_> {
    /// Rounds every part that is not finished.
    pub fn run(&self, job: &Job) -> Result<()> {
        let options = self.options;
        let mut visitor = Visitor {
            job,
            options,
            factors: Factors::default(),
            held: BTreeMap::new(),
            records: Vec::new(),
            ledger: Vec::new(),
        };
        let options = layerwise::Options {
            sequential: options.sequential,
            // The search for factors is more sensitive to rounding than the codes are.
            bf16: options.scaling.is_none(),
            held: Vec::new(),
            max_memory: job.run.control.max_memory,
            spill: job.run.spill_folder(job.folder.target()),
        };
        // Progress is counted where modules are written.
        let run = job.run.unheard();
        layerwise::run(job.ckpt, job.model, self.windows, &options, &mut visitor, run)?;
        // Embedding and output, where the format has them.
        match parts(job.plan).contains(&None) {
            true => round_part(job, None),
            false => Ok(()),
        }
    }
}

struct Visitor<'a> {
    job: &'a Job<'a>,
    options: Options,
    /// Of the current layer.
    factors: Factors,
    /// ChosenCodes modules whose rows can still be scaled, by index.
    held: BTreeMap<usize, ChosenCodes>,
    records: Vec<(usize, Value)>,
    ledger: Vec<Value>,
}

/// A module whose codes are chosen.
struct ChosenCodes {
    codes: Codes,
    loss: Option<f64>,
    tokens: u64,
}

/// A Hessian's factor, or why there is none.
enum Feedback {
    Full(Factor),
    /// Only the importance of each column.
    Diagonal(Factor, String),
}

fn feedback(options: &Options, inputs: &Moments, spec: &Spec) -> Feedback {
    let order = match (spec.desc_act, spec.group_of(inputs.cols)) {
        (true, _) => Order::Activity,
        (false, group) => Order::Groups(group),
    };
    match Factor::new(&inputs.gram, inputs.cols, options.shrink, order) {
        Ok((factor, _)) => Feedback::Full(factor),
        Err(why) => {
            let diagonal: Vec<f32> = (0..inputs.cols).map(|i| inputs.gram[i * inputs.cols + i]).collect();
            Feedback::Diagonal(Factor::diagonal(&diagonal), why.to_string())
        }
    }
}

impl Visitor<'_> {
    /// Chooses the codes of a module by the factor of its inputs.
    fn round(&mut self, index: usize, spec: &Spec, weights: &[f32], feedback: &Feedback) -> Result<(Codes, f64)> {
        let m = &self.job.plan.modules[index].module;
        let grid = spec.integer_grid(m.cols, m.scale_type(self.job.ckpt));
        let grid = grid.ok_or_else(|| Error::Internal(format!("integers for {spec}")))?;
        let mut search = self.options.search;
        search.static_groups |= matches!(feedback, Feedback::Diagonal(..));
        Ok(int::quantize(weights, self.factor(m, feedback), &grid, search))
    }

    /// The same for four-bit floats.
    fn round_floats(
        &mut self,
        index: usize,
        spec: &Spec,
        weights: &[f32],
        inputs: &Moments,
        feedback: &Feedback,
    ) -> Result<(Vec<Piece>, f64)> {
        let m = &self.job.plan.modules[index].module;
        let module = self.described(index, spec, weights, inputs)?;
        let factor = self.factor(m, feedback);
        floats(spec, &module, factor).map_err(|e| in_file(e, self.job, m))
    }

    /// What there is to round with; where that is less than asked, the ledger says so.
    fn factor<'f>(&mut self, module: &Module, feedback: &'f Feedback) -> &'f Factor {
        match feedback {
            Feedback::Full(factor) => factor,
            Feedback::Diagonal(factor, why) => {
                self.ledger.push(json!({
                    "kind": Kind::Search, "module": module.path, "asked": "error feedback",
                    "done": "nearest, scales searched", "reason": why,
                }));
                factor
            }
        }
    }

    /// A module as the rounding to nearest of its format sees it.
    fn described<'w>(
        &self,
        index: usize,
        spec: &Spec,
        weights: &'w [f32],
        inputs: &Moments,
    ) -> Result<packed::Module<'w>> {
        let mut module = formats_module(self.job, index, weights);
        module.fused_max = fused_max(self.job, spec, index, weights)?;
        let max = inputs.max.iter().fold(0f32, |a, b| a.max(*b));
        // What no token reached has no largest input; any scale will do.
        module.input_max = Some(if max > 0.0 { max } else { 1.0 });
        Ok(module)
    }

    /// Rounds the integers of a module to nearest, groups with long tails cut first. `inputs` are those that the scaled
    /// weights see.
    fn nearest(&self, m: &Module, spec: &Spec, mut weights: Vec<f32>, inputs: &Moments) -> Codes {
        let grid = Grid { bits: spec.bits, group: spec.group_of(m.cols), symmetric: spec.symmetric };
        // Cutting queries and keys hurts more than their own error tells (AWQ leaves them out, too).
        if inputs.tokens > 0 && !matches!(m.role, Role::AttnQ | Role::AttnK | Role::AttnQkv) {
            let limits = clip::limits(&weights, m.cols, &inputs.gram, grid);
            clip::clip(&mut weights, m.cols, &limits, grid);
        }
        let module = packed::Module::new(&weights, m.rows, m.cols, GgmlType::F16);
        packed::nearest(&module, spec.bits, grid.group(m.cols), spec.symmetric)
    }

    /// Rounds, packs and writes a module, or holds it until the layer is finished. What it is, its rows not scaled yet;
    /// `None` where it stays as it was.
    fn module(&mut self, index: usize, inputs: &Moments, feedback: Option<&Feedback>) -> Result<Option<Packed>> {
        let ModulePlan { module: m, spec, .. } = &self.job.plan.modules[index];
        let Some(spec) = *spec else {
            let record = self.job.copy_module(index)?;
            self.records.push((index, record));
            return Ok(None);
        };
        let mut weights = m.read(self.job.ckpt)?;
        self.factors.apply(m, &mut weights);
        let tokens = inputs.tokens;
        let rounded = match feedback {
            Some(feedback) if !spec.is_integer() => {
                let (pieces, loss) = self.round_floats(index, &spec, &weights, inputs, feedback)?;
                return self.write(index, &weights, &pieces, Some(loss), tokens).map(Some);
            }
            Some(feedback) => {
                let (codes, loss) = self.round(index, &spec, &weights, feedback)?;
                ChosenCodes { codes, loss: Some(loss), tokens }
            }
            None if spec.is_integer() && self.options.scaling.is_some() => {
                ChosenCodes { codes: self.nearest(m, &spec, weights.clone(), inputs), loss: None, tokens }
            }
            None => {
                let module = self.described(index, &spec, &weights, inputs)?;
                let pieces = spec.quantize_nearest(&module).map_err(|e| in_file(e, self.job, m))?;
                return self.write(index, &weights, &pieces, None, tokens).map(Some);
            }
        };
        if self.options.scaling == Some(Scaling::Awq) && scaled::is_producer(self.job, m) {
            let pieces = spec.pack_codes(&rounded.codes, m.scale_type(self.job.ckpt))?;
            self.held.insert(index, rounded);
            // What takes its place in the running model, where it does.
            return self.options.sequential.then(|| self.job.unpack(index, &pieces)).transpose();
        }
        let pieces = spec.pack_codes(&rounded.codes, m.scale_type(self.job.ckpt))?;
        self.write(index, &weights, &pieces, rounded.loss, tokens).map(Some)
    }

    /// Writes a module and notes what it is.
    fn write(
        &mut self,
        index: usize,
        weights: &[f32],
        pieces: &[Piece],
        loss: Option<f64>,
        tokens: u64,
    ) -> Result<Packed> {
        self.job.write_module(index, pieces)?;
        let packed = self.job.unpack(index, pieces)?;
        let mut record = self.job.record(index, weights, &packed);
        record["loss"] = json!(loss);
        record["tokens"] = json!(tokens);
        if let Some(gain) = self.factors.gain(&self.job.plan.modules[index].module) {
            record["loss_with_scaled_channels"] = json!(gain);
        }
        self.records.push((index, record));
        Ok(packed)
    }

    /// Writes the modules that were held, with what has been taken out of their rows since.
    fn release(&mut self) -> Result<()> {
        for (index, mut rounded) in std::mem::take(&mut self.held) {
            let ModulePlan { module: m, spec, .. } = &self.job.plan.modules[index];
            let Some(spec) = spec else { continue };
            let mut weights = m.read(self.job.ckpt)?;
            self.factors.apply(m, &mut weights);
            self.factors.apply_rows(m, &mut rounded.codes);
            let pieces = spec.pack_codes(&rounded.codes, m.scale_type(self.job.ckpt))?;
            self.write(index, &weights, &pieces, rounded.loss, rounded.tokens)?;
        }
        Ok(())
    }

    /// Finds the factors of the channels that enter `stage`.
    fn scale(&mut self, scaling: Scaling, layer: usize, stage: Stage, captured: &[&Captured]) -> Result<()> {
        let options = self.options;
        let importance = |inputs: &Moments, spec: &Spec| match feedback(&options, inputs, spec) {
            Feedback::Full(factor) => factor.conditional(),
            Feedback::Diagonal(..) => None,
        };
        let importance = |inputs: &Moments, spec: &Spec| match options.feedback && spec.takes_feedback() {
            true => importance(inputs, spec),
            false => None,
        };
        let held = self.held.iter().map(|(i, r)| (*i, &r.codes)).collect();
        let known = LayerInputs { captured, importance: &importance, held: &held };
        self.factors.find(self.job, scaling, layer, stage, &known, &mut self.ledger)
    }

    /// What undoes the factors of a module in the running model, whose norms stay as they are: per row, where they are in
    /// it already, and per column.
    fn inverse(&self, m: &Module, with_rows: bool) -> (Vec<f32>, Vec<f32>) {
        let inverse = |factors: Option<&[f32]>| factors.into_iter().flatten().map(|f| 1.0 / f).collect();
        (inverse(self.factors.rows(m).filter(|_| with_rows)), inverse(self.factors.columns(m)))
    }

    /// Puts packed modules in the place of the engine's weights, without what scaling did to them.
    fn replace(&self, linears: Vec<&mut Linear>, packed: Vec<(usize, Packed)>, finished: bool) {
        let modules = &self.job.plan.modules;
        let scaled = packed.into_iter().map(|(index, packed)| {
            let (rows, columns) = self.inverse(&modules[index].module, finished);
            (index, Scaled { packed, rows, columns })
        });
        place(modules, linears, scaled);
    }

    /// The modules whose weights are among `names`, of one expert or (`None`) outside of experts.
    fn reading(&self, layer: usize, names: &[String], expert: Option<usize>) -> Vec<usize> {
        let all = self.job.plan.layer(Some(layer));
        all.filter(|(_, m)| m.expert == expert && names.contains(&m.gguf)).map(|(i, _)| i).collect()
    }
}

impl Visit for Visitor<'_> {
    fn stage(&mut self, layer: usize, stage: Stage, captured: &[&Captured], linears: Vec<&mut Linear>) -> Result<()> {
        let record = self.job.finished(&part(Some(layer)))?;
        let finished = record.is_some();
        let modules = &self.job.plan.modules;
        let mut done = Vec::new();
        match (self.options.scaling, record) {
            (Some(scaling), None) => self.scale(scaling, layer, stage, captured)?,
            (Some(_), Some(record)) => self.factors = Factors::restored(self.job, layer, &record["factors"]),
            (None, _) => {}
        }
        for inputs in captured {
            let of_experts = modules
                .iter()
                .any(|ModulePlan { module: m, .. }| m.expert.is_some() && inputs.linears.contains(&m.gguf));
            for (i, moments) in inputs.moments.iter().enumerate() {
                self.job.run.check()?;
                let members = self.reading(layer, &inputs.linears, of_experts.then_some(i));
                if finished {
                    // What an earlier run wrote takes the same place.
                    for index in members {
                        done.extend(self.job.read_back(index)?.map(|packed| (index, packed)));
                    }
                    continue;
                }
                // Modules with one input have the same factors.
                let first = members.first().map(|i| &modules[*i].module);
                let moments = match first.and_then(|m| self.factors.columns(m)) {
                    Some(columns) => Cow::Owned(scaled::divided(moments, columns)),
                    None => Cow::Borrowed(moments),
                };
                // Columns go in another order where groups are others.
                let mut known: Vec<((bool, usize), Feedback)> = Vec::new();
                for index in members {
                    let spec = self.job.plan.modules[index].spec;
                    let takes = spec.filter(|spec| self.options.feedback && spec.takes_feedback());
                    let order = takes.map(|spec| (spec.desc_act, spec.group_of(moments.cols)));
                    if let (Some(spec), Some(order)) = (takes, order)
                        && !known.iter().any(|(known, _)| *known == order)
                    {
                        known.push((order, feedback(&self.options, &moments, &spec)));
                    }
                    let own = known.iter().find(|(known, _)| Some(*known) == order).map(|(_, feedback)| feedback);
                    if let Some(packed) = self.module(index, &moments, own)? {
                        done.push((index, packed));
                    }
                }
            }
        }
        if self.options.sequential {
            self.replace(linears, done, finished);
        }
        Ok(())
    }

    fn layer_done(&mut self, layer: usize) -> Result<()> {
        let factors = if self.options.sequential { self.factors.record() } else { json!(null) };
        self.release()?;
        let scaled = std::mem::take(&mut self.factors);
        if !self.job.has(&part(Some(layer)))? {
            scaled.write_kept(self.job, layer)?;
        }
        let mut records = std::mem::take(&mut self.records);
        records.sort_by_key(|(index, _)| *index);
        let records: Vec<Value> = records.into_iter().map(|(_, record)| record).collect();
        let ledger = std::mem::take(&mut self.ledger);
        self.job.unless_finished(&part(Some(layer)), || {
            Ok(json!({ "modules": records, "ledger": ledger, "factors": factors }))
        })
    }
}

/// A packed matrix with what undoes its factors; empty for none.
struct Scaled {
    packed: Packed,
    rows: Vec<f32>,
    columns: Vec<f32>,
}

impl Scaled {
    fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        self.packed.decode(rows.clone(), out);
        for (row, out) in rows.zip(out.chunks_exact_mut(self.packed.cols().max(1))) {
            if let Some(factor) = self.rows.get(row) {
                out.iter_mut().for_each(|w| *w *= factor);
            }
            out.iter_mut().zip(&self.columns).for_each(|(w, f)| *w *= f);
        }
    }
}

/// Puts packed modules in the place of the engine's weights.
pub fn replace(modules: &[ModulePlan], linears: Vec<&mut Linear>, packed: Vec<(usize, Packed)>) {
    let plain = |(index, packed)| (index, Scaled { packed, rows: Vec::new(), columns: Vec::new() });
    place(modules, linears, packed.into_iter().map(plain));
}

/// The same with their factors; those of one stacked tensor together.
fn place(modules: &[ModulePlan], linears: Vec<&mut Linear>, packed: impl Iterator<Item = (usize, Scaled)>) {
    let mut by_name: HashMap<&str, Vec<(usize, Scaled)>> = HashMap::new();
    for (index, scaled) in packed {
        by_name.entry(&modules[index].module.gguf).or_default().push((index, scaled));
    }
    for linear in linears {
        let Some(mut parts) = by_name.remove(linear.name.as_str()) else { continue };
        parts.sort_by_key(|(index, _)| modules[*index].module.expert);
        let reordered = |(index, part): (usize, Scaled)| Scaled {
            packed: part.packed.reorder(|row| modules[index].module.engine_row(row)),
            ..part
        };
        let parts: Vec<Scaled> = parts.into_iter().map(reordered).collect();
        let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
        // Experts that stay as they are would leave a gap; then none is replaced.
        if parts.iter().map(|p| p.packed.rows()).sum::<usize>() == rows {
            linear.weight = Box::new(Stacked { rows, cols, parts });
        }
    }
}

/// Packed matrices below each other: the experts of a layer, or a single matrix.
struct Stacked {
    rows: usize,
    cols: usize,
    parts: Vec<Scaled>,
}

impl RowSource for Stacked {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        let (mut first, mut rest) = (0, out);
        for part in &self.parts {
            let own = first..first + part.packed.rows();
            let (from, to) = (rows.start.max(own.start), rows.end.min(own.end));
            if from < to {
                let (now, later) = rest.split_at_mut((to - from) * self.cols);
                part.decode(from - first..to - first, now);
                rest = later;
            }
            first = own.end;
        }
    }
}
