//! What `quantize plan` and `--dry-run` say of checkpoint folders: exact sizes, what departs from what was asked, and what
//! it takes to make them.

use super::folder::{self, Prepared, Rounding};
use crate::model::Model;
use crate::packed::ChannelScaling;
use crate::plan::cost::{self, Cost, Pass};
use crate::source::Checkpoint;
use crate::writer::gguf::human;
use serde_json::{Value, json};

/// What is planned with.
pub struct Means<'a> {
    pub ckpt: &'a Checkpoint,
    pub model: &'a Model,
    pub rounding: Option<Rounding>,
    pub calibration_tokens: u64,
    pub threads: usize,
}

impl Means<'_> {
    /// What the calibration takes; `None` where there is none.
    fn cost(&self, p: &Prepared) -> Option<Cost> {
        let spec = &p.planned.spec;
        let pass = match (folder::has_feedback(spec, self.rounding, false), spec.scaling()) {
            (true, ChannelScaling::Awq) => Pass::Awq,
            (true, ChannelScaling::None | ChannelScaling::SmoothQuant) => Pass::Gptq,
            (false, _) if folder::needs_data(spec, self.rounding, false) => Pass::Statistics,
            (false, _) => return None,
        };
        Some(cost::of(self.model, pass, self.calibration_tokens, self.threads))
    }

    /// Bytes that the work holds at once: a batch of modules as numbers, packed and read back; or the calibration.
    fn memory(&self, p: &Prepared) -> u64 {
        let largest = p.planned.contents.modules.iter().map(|m| m.rows * m.cols).max().unwrap_or(0);
        let packing = 40_000_000 + 8 * crate::checkpoint::nearest::at_once(largest) as u64;
        let packing = packing + (self.threads as u64) * 1_000_000;
        packing.max(self.cost(p).map_or(0, |c| c.peak_memory))
    }

    /// A folder for machines.
    pub fn json(&self, p: &Prepared) -> Value {
        let (weights, bits) = p.planned.quantized(self.ckpt);
        json!({
            "type": p.target.name, "format": p.planned.spec.to_string(), "tensor_bytes": p.planned.tensor_bytes(),
            "quantized_weights": weights, "bits_per_weight": bits, "quantization_config": p.planned.config,
            "peak_memory": self.memory(p), "calibration": self.cost(p),
            "ledger": crate::checkpoint::files::ledger(&p.planned.departures),
        })
    }

    /// The same for people.
    pub fn text(&self, p: &Prepared) -> String {
        let (weights, bits) = p.planned.quantized(self.ckpt);
        let all: u64 = self.ckpt.tensors().iter().map(|t| t.elements() as u64).sum();
        let size = human(p.planned.tensor_bytes());
        let share = 100.0 * weights as f64 / all.max(1) as f64;
        let mut out = format!("\n{}: {size} as {}\n", p.target.name, p.planned.spec);
        out += &format!("  {share:.1} % of {all} weights quantized, {bits:.2} bits each with their scales\n");
        for line in folder::lines(&p.planned.departures) {
            out += &format!("  {line}\n");
        }
        out += &format!("  to make it: about {} of memory, {size} of disk", human(self.memory(p)));
        match self.cost(p) {
            Some(cost) => out + &format!("; {}\n", in_words(&cost)),
            None => out + "\n",
        }
    }
}

/// `calibrated on 65536 tokens in about 12 min of one core`
pub fn in_words(cost: &Cost) -> String {
    let time = match cost.cpu_seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3600.0),
    };
    format!("calibrated on {} tokens in about {time} of one core", cost.calibration_tokens)
}
