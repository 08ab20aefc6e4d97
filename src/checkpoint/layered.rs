//! Rounding by what a layer's inputs were: every module of a stage is rounded with error feedback against the second
//! moments of its inputs (or, in formats whose numbers the feedback does not choose, to nearest with the largest input),
//! packed and written, and takes its place in the running model. What cannot be done so is done to nearest with a search
//! of scales, and said so; hours of work never end in a crash over one tensor.

use super::job::{Job, Method, formats_module, part, parts};
use super::nearest::{fused_max, in_file, round_part};
use crate::Result;
use crate::calibration::layerwise::{self, Captured, Stage, Visit};
use crate::calibration::moments::Moments;
use crate::convert::Control;
use crate::feedback::int::{IntSpec, Search};
use crate::feedback::{Factor, Order, ScaleType, Shrink, int};
use crate::formats::{Format, Packed, Piece, Spec};
use crate::infer::Linear;
use crate::kernel::RowSource;
use crate::model::modules::Module;
use crate::quant::GgmlType;
use crate::writer::atomic::folder_of;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::ops::Range;

/// How the feedback works.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub shrink: Shrink,
    pub search: Search,
    /// Inputs are seen behind quantized predecessors.
    pub sequential: bool,
}

/// Rounds layer after layer while the model runs over `windows`.
pub struct Layered<'a> {
    pub windows: &'a [Vec<u32>],
    pub options: Options,
}

impl Method for Layered<'_> {
    fn run(&mut self, job: &Job) -> Result<()> {
        let mut visitor = Visitor { job, options: self.options, records: Vec::new(), ledger: Vec::new() };
        let options = layerwise::Options {
            sequential: self.options.sequential,
            bf16: true,
            held: Vec::new(),
            max_memory: None,
            spill: folder_of(job.folder.target()).to_path_buf(),
        };
        // Progress is counted where modules are written.
        let control = Control { threads: job.control.threads, cancel: job.control.cancel, advance: &|_| {} };
        layerwise::run(job.ckpt, job.model, self.windows, &options, &mut visitor, &control)?;
        // Embedding and output, where the format has them.
        match parts(job.planned).contains(&None) {
            true => round_part(job, None),
            false => Ok(()),
        }
    }
}

struct Visitor<'a> {
    job: &'a Job<'a>,
    options: Options,
    /// Of the current layer.
    records: Vec<(usize, Value)>,
    ledger: Vec<Value>,
}

/// A Hessian's factor, or why there is none.
enum Feedback {
    Full(Factor),
    /// Only the importance of each column.
    Diagonal(Factor, String),
}

impl Visitor<'_> {
    fn feedback(&self, inputs: &Moments, spec: &Spec) -> Feedback {
        let order = match (spec.desc_act, spec.group_of(inputs.cols)) {
            (true, _) => Order::Activity,
            (false, group) => Order::Groups(group),
        };
        match Factor::new(&inputs.gram, inputs.cols, self.options.shrink, order) {
            Ok((factor, _)) => Feedback::Full(factor),
            Err(why) => {
                let diagonal: Vec<f32> = (0..inputs.cols).map(|i| inputs.gram[i * inputs.cols + i]).collect();
                Feedback::Diagonal(Factor::diagonal(&diagonal), why.to_string())
            }
        }
    }

    /// Rounds a module with the factor of its inputs.
    fn round(&mut self, index: usize, spec: &Spec, weights: &[f32], feedback: &Feedback) -> Result<(Vec<Piece>, f64)> {
        let m = &self.job.planned.contents.modules[index];
        let dtype = m.scale_type(self.job.ckpt);
        let in_f16 = dtype == GgmlType::F16 || matches!(spec.format, Format::Gptq | Format::GptqV2 | Format::Awq);
        let grid = IntSpec {
            bits: spec.bits,
            group: spec.group_of(m.cols),
            symmetric: spec.symmetric,
            least_zero: u8::from(spec.format == Format::Gptq),
            scale: if in_f16 { ScaleType::F16 } else { ScaleType::Bf16 },
        };
        let (factor, search) = match feedback {
            Feedback::Full(factor) => (factor, self.options.search),
            Feedback::Diagonal(factor, why) => {
                self.ledger.push(json!({
                    "module": m.path, "asked": "error feedback", "done": "nearest, scales searched", "reason": why,
                }));
                (factor, Search { static_groups: true, ..self.options.search })
            }
        };
        let (codes, loss) = int::quantize(weights, factor, &grid, search);
        Ok((spec.pack_codes(&codes, dtype)?, loss))
    }

    fn module(
        &mut self,
        index: usize,
        inputs: Option<&Moments>,
        feedback: Option<&Feedback>,
    ) -> Result<Option<Packed>> {
        let m = &self.job.planned.contents.modules[index];
        let Some(spec) = self.job.planned.specs[index] else {
            let record = self.job.copy_module(index)?;
            self.records.push((index, record));
            return Ok(None);
        };
        let weights = m.read(self.job.ckpt)?;
        let (pieces, loss) = match feedback {
            Some(feedback) => {
                let (pieces, loss) = self.round(index, &spec, &weights, feedback)?;
                (pieces, Some(loss))
            }
            None => {
                let mut module = formats_module(self.job, index, &weights);
                module.fused_max = fused_max(self.job, &spec, index, &weights)?;
                let max = inputs.map_or(0.0, |i| i.max.iter().fold(0f32, |a, b| a.max(*b)));
                // What no token reached has no largest input; any scale will do.
                module.input_max = Some(if max > 0.0 { max } else { 1.0 });
                (spec.quantize_nearest(&module).map_err(|e| in_file(e, self.job, m))?, None)
            }
        };
        self.job.write_module(index, &pieces)?;
        let packed = self.job.unpack(index, &pieces)?;
        let mut record = self.job.record(index, &weights, &packed);
        record["loss"] = json!(loss);
        record["tokens"] = json!(inputs.map_or(0, |i| i.tokens));
        self.records.push((index, record));
        Ok(Some(packed))
    }

    /// The modules whose weights are among `names`, of one expert or (`None`) outside of experts.
    fn reading(&self, layer: usize, names: &[String], expert: Option<usize>) -> Vec<usize> {
        let all = self.job.planned.contents.layer(Some(layer));
        all.filter(|(_, m)| m.expert == expert && names.contains(&m.gguf)).map(|(i, _)| i).collect()
    }
}

impl Visit for Visitor<'_> {
    fn stage(&mut self, layer: usize, _: Stage, captured: &[&Captured], linears: Vec<&mut Linear>) -> Result<()> {
        let finished = self.job.folder.finished(&part(Some(layer))).is_some();
        let modules = &self.job.planned.contents.modules;
        let mut done = Vec::new();
        for inputs in captured {
            let of_experts = modules.iter().any(|m| m.expert.is_some() && inputs.linears.contains(&m.gguf));
            for (i, moments) in inputs.moments.iter().enumerate() {
                self.job.control.check()?;
                let members = self.reading(layer, &inputs.linears, of_experts.then_some(i));
                if finished {
                    // What an earlier run wrote takes the same place.
                    for index in members {
                        done.extend(self.job.read_back(index)?.map(|packed| (index, packed)));
                    }
                    continue;
                }
                let spec = members.iter().find_map(|i| self.job.planned.specs[*i]);
                let feedback = spec.filter(takes_feedback).map(|spec| self.feedback(moments, &spec));
                for index in members {
                    if let Some(packed) = self.module(index, Some(moments), feedback.as_ref())? {
                        done.push((index, packed));
                    }
                }
            }
        }
        if self.options.sequential {
            replace(modules, linears, done);
        }
        Ok(())
    }

    fn layer_done(&mut self, layer: usize) -> Result<()> {
        let mut records = std::mem::take(&mut self.records);
        records.sort_by_key(|(index, _)| *index);
        let records: Vec<Value> = records.into_iter().map(|(_, record)| record).collect();
        let ledger = std::mem::take(&mut self.ledger);
        self.job.unless_finished(&part(Some(layer)), || Ok(json!({ "modules": records, "ledger": ledger })))
    }
}

/// Puts packed modules in the place of the engine's weights; those of one stacked tensor together.
pub fn replace(modules: &[Module], linears: Vec<&mut Linear>, packed: Vec<(usize, Packed)>) {
    let mut by_name: HashMap<&str, Vec<(usize, Packed)>> = HashMap::new();
    for (index, packed) in packed {
        by_name.entry(&modules[index].gguf).or_default().push((index, packed));
    }
    for linear in linears {
        let Some(mut parts) = by_name.remove(linear.name.as_str()) else { continue };
        parts.sort_by_key(|(index, _)| modules[*index].expert);
        let parts: Vec<Packed> =
            parts.into_iter().map(|(index, packed)| packed.reorder(|row| modules[index].engine_row(row))).collect();
        let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
        // Experts that stay as they are would leave a gap; then none is replaced.
        if parts.iter().map(|p| p.rows()).sum::<usize>() == rows {
            linear.weight = Box::new(Stacked { rows, cols, parts });
        }
    }
}

/// Packed matrices below each other: the experts of a layer, or a single matrix.
struct Stacked {
    rows: usize,
    cols: usize,
    parts: Vec<Packed>,
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
            let own = first..first + part.rows();
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

/// Whether a format's codes can be chosen with error feedback.
pub fn takes_feedback(spec: &Spec) -> bool {
    spec.is_integer() && spec.format != Format::MlxAffine
}
