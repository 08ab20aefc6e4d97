//! The JSON schema of a report, field by field (documented for readers in `docs/report-schema.md`). It holds no rendering.
//!
//! Within one version fields are only added, always optional. A reader refuses a version it does not know.

use serde::{Deserialize, Serialize};

pub use crate::convert::LedgerRow;
use crate::error::Hint;
use crate::eval::bootstrap::{Bootstrap, Pair};
pub use crate::eval::continuations::{Continued, EqualAfter};
use crate::eval::cosine::{Cosines, Measured};
use crate::eval::gate::GateOutcome;
pub use crate::eval::positions::AtPositions;
use crate::eval::scores::Scores;
use crate::eval::stats::{Estimate, Percentiles, Statistics};
pub use crate::eval::tasks::Kind;
pub use crate::eval::{Ablation, Artifact, TensorDamage};
use crate::{Error, Result};

/// The version that this tool writes.
pub const SCHEMA: &str = "quantize-report/1";

/// What was measured: the whole of the JSON report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// What made the report.
    pub tool: Tool,
    /// The command line that made the report.
    pub command: String,
    /// UTC, RFC 3339; empty where a reproducible report was asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created: String,
    /// The checkpoint that everything was made from, where the tool knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Artifact>,
    /// How it was measured; absent if nothing was run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<MethodInfo>,
    /// What the candidates are compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// The artifacts, in the order in which they were named.
    #[serde(default)]
    pub candidates: Vec<Candidate>,
    /// Paired differences; `first` and `second` count `candidates` from 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<Pair>,
    /// The verdicts on the limits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<GateOutcome>,
    /// Where several texts were measured on: what each gave. All else is of the worst of them, and the gates are those that
    /// came out worst.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<OfText>,
    /// What was answered to questions with several answers, file by file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskResult>,
    /// How long greedy continuations of prompts from the text are the base's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continuations: Option<Continuations>,
    /// Every departure from what was asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ledger: Vec<LedgerRow>,
    /// Where it was measured.
    #[serde(default)]
    pub environment: Environment,
}

/// The program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// How the text was cut and scored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MethodInfo {
    /// `llama.cpp` or `strided`; `vectors` where each window is a text that vectors stand for.
    pub name: String,
    /// Tokens of a window.
    pub ctx: usize,
    /// Tokens between the beginnings of two windows.
    pub stride: usize,
    /// How many windows.
    pub chunks: usize,
    /// Positions scored.
    pub tokens: usize,
    /// Path of the text.
    pub text: String,
    /// The hash of the text.
    pub text_sha256: String,
    /// `plain` or `chat`.
    pub text_format: String,
    /// Token put over the first of every chunk, if the tokenizer asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos: Option<u32>,
    /// `f32`: the loss is the weights' alone, unless an artifact has `activations`. `q8`: activations rounded to 8 bits as llama.cpp's CPU kernels do.
    pub activations: String,
    /// The types in which keys and values were kept: the candidates', or of a model alone. Absent: as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache: Option<String>,
    /// Smallest ln p of the base that enters the KL divergence; absent if all do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_floor: Option<f64>,
    /// How the intervals were made.
    #[serde(default)]
    pub bootstrap: Bootstrap,
}

/// The model that is compared with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Base {
    /// What it is.
    #[serde(flatten)]
    pub artifact: Artifact,
    /// Its perplexity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppl: Option<Estimate>,
    /// What it gives instead of logits, where it has no head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<OfVectors>,
}

/// The vectors of a model without a head.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OfVectors {
    /// Numbers of one.
    pub width: usize,
    /// How they are made of those of tokens, in words.
    pub pooling: String,
    /// The cosines between the vectors of different chunks of the text; of the base alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub between: Option<Percentiles>,
}

/// An artifact, and what it lost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// What it is.
    #[serde(flatten)]
    pub artifact: Artifact,
    /// Absent if it was converted but not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<Statistics>,
    /// How near its vectors are to the base's, where models have no head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cosine: Option<Cosines>,
    /// How near its scores are, where models are classifiers or rerankers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<Scores>,
    /// What it lost by the position in the window; empty where windows are short.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub positions: Vec<AtPositions>,
    /// How it was made; absent where it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Origin>,
    /// What became of each tensor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<TensorDamage>,
    /// What each group of tensors costs, where that was measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ablation: Vec<Ablation>,
}

/// Prompts continued by the base and by every candidate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Continuations {
    /// How many prompts.
    pub starts: usize,
    /// Tokens of each.
    pub prompt: usize,
    /// Tokens that each was continued by.
    pub length: usize,
    /// What became of each candidate's, in their order.
    pub candidates: Vec<Continued>,
    /// The first few, to be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Sample>,
}

/// A prompt, and what each model made of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The end of the prompt.
    pub prompt: String,
    /// How the base goes on.
    pub base: String,
    /// How the candidates do, in their order.
    pub candidates: Vec<String>,
}

/// What the models answered to the questions of one file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// Path of the file.
    pub file: String,
    /// The hash of its bytes.
    pub sha256: String,
    /// What kind of questions it holds.
    pub kind: Kind,
    /// How many were asked.
    pub questions: usize,
    /// The share of right answers that guessing gives.
    pub chance: f64,
    /// What the base answered.
    pub base: Answered,
    /// What each candidate answered, in their order.
    pub candidates: Vec<Answered>,
}

/// What one model answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// Share of right answers; its interval is Wilson's.
    pub accuracy: Estimate,
    /// How much more that is than the base's: of paired differences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Estimate>,
    /// How likely such a difference is between equal models: McNemar's test, exact, two-sided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p: Option<f64>,
    /// How often it is the base's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same: Option<Estimate>,
    /// The answer chosen to each question, from 0.
    pub answers: Vec<usize>,
}

impl Candidate {
    /// What was measured of it.
    pub fn measured(&self) -> Option<Measured> {
        self.stats.map(|s| Measured::Logits(Box::new(s))).or(self.cosine.map(Measured::Vectors))
    }
}

/// What one of several texts gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OfText {
    /// The text's name.
    pub text: String,
    /// Positions scored.
    pub tokens: usize,
    /// Of each candidate, in their order.
    pub klds: Vec<Estimate>,
    /// How often the same token comes first, candidate by candidate.
    pub same_tops: Vec<Estimate>,
    /// Of models without a head: the mean cosines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cosines: Vec<Estimate>,
}

impl OfText {
    /// What is compared between texts, candidate by candidate: KL divergence, or cosine.
    pub fn figures(&self) -> &[Estimate] {
        if self.cosines.is_empty() { &self.klds } else { &self.cosines }
    }

    /// The largest loss.
    pub fn worst(&self) -> f64 {
        let losses = self.cosines.iter().map(|c| 1.0 - c.value).chain(self.klds.iter().map(|k| k.value));
        losses.fold(0.0, f64::max)
    }
}

/// One report of those on several texts: that on which a candidate loses most, with a row for each text.
pub fn worst_of(mut reports: Vec<Report>) -> Option<Report> {
    if reports.len() < 2 {
        return reports.pop();
    }
    let of_text = |r: &Report| {
        let stats = || r.candidates.iter().filter_map(|c| c.stats.as_ref());
        let (text, tokens) = r.method.as_ref().map_or((String::new(), 0), |m| (m.text.clone(), m.tokens));
        OfText {
            text,
            tokens,
            klds: stats().map(|s| s.kld).collect(),
            same_tops: stats().map(|s| s.same_top).collect(),
            cosines: r.candidates.iter().filter_map(|c| Some(c.cosine?.mean)).collect(),
        }
    };
    let texts: Vec<OfText> = reports.iter().map(of_text).collect();
    let at = (0..texts.len()).max_by(|a, b| texts[*a].worst().total_cmp(&texts[*b].worst()))?;
    let mut gates: Vec<GateOutcome> = Vec::new();
    for outcome in reports.iter().flat_map(|r| &r.gates) {
        let same = |g: &&mut GateOutcome| (&g.gate, &g.candidate) == (&outcome.gate, &outcome.candidate);
        match gates.iter_mut().find(same) {
            None => gates.push(outcome.clone()),
            Some(worst) => {
                let is_worse = if worst.gate.starts_with("min_") {
                    outcome.value < worst.value
                } else {
                    outcome.value > worst.value
                };
                if is_worse {
                    *worst = outcome.clone();
                }
            }
        }
    }
    let seconds = reports.iter().map(|r| r.environment.seconds).sum();
    let mut report = reports.swap_remove(at);
    (report.texts, report.gates, report.environment.seconds) = (texts, gates, seconds);
    Some(report)
}

/// How an artifact was made, by its own record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// In words: the program, how codes were chosen, what it was calibrated on.
    pub how: String,
    /// The recipe, where it is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<serde_json::Value>,
    /// Share of the evaluation text's runs of 13 tokens that are in the calibration data; absent where that cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<f64>,
}

/// The machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// The operating system.
    pub os: String,
    /// The processor.
    pub cpu: String,
    /// Threads that were used.
    pub threads: usize,
    /// Wall-clock seconds of the run.
    pub seconds: f64,
    /// Largest resident memory, bytes; 0 if unknown.
    #[serde(default)]
    pub peak_rss: u64,
}

impl Report {
    /// Whether the models have no head, so that all is told of their vectors.
    pub fn is_of_vectors(&self) -> bool {
        self.base.as_ref().is_some_and(|base| base.vectors.is_some())
    }

    /// An empty report of this tool.
    pub fn new(command: impl Into<String>) -> Report {
        Report {
            schema: SCHEMA.to_string(),
            tool: Tool { name: "quantize".to_string(), version: env!("CARGO_PKG_VERSION").to_string() },
            command: command.into(),
            ..Report::default()
        }
    }

    /// Pretty-printed JSON with a final newline.
    pub fn to_json(&self) -> Result<String> {
        let mut text =
            serde_json::to_string_pretty(self).map_err(|e| Error::Internal(format!("report to JSON: {e}")))?;
        text.push('\n');
        Ok(crate::escape::json(&text).into_owned())
    }

    /// Reads a saved report; fails on other schemas, with the reason, and on references to candidates that are not there.
    pub fn from_json(text: &str) -> Result<Report> {
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|e| Error::bad_input(format!("is not JSON: {e}")))?;
        match value.get("schema").and_then(|s| s.as_str()) {
            Some(SCHEMA) => {}
            Some(other) => {
                return Err(Error::bad_input(format!("the report has schema '{other}', this tool reads '{SCHEMA}'"))
                    .hint("render it with the version of the tool that wrote it"));
            }
            None => {
                return Err(
                    Error::bad_input("is not a report of this tool: it has no \"schema\"").hint(Hint::CompareFirst)
                );
            }
        }
        let report: Report =
            serde_json::from_value(value).map_err(|e| Error::bad_input(format!("is not a valid report: {e}")))?;
        if let Some(pair) = report.pairs.iter().find(|p| p.first.max(p.second) >= report.candidates.len()) {
            return Err(Error::bad_input(format!(
                "is not a valid report: a pair names candidates {} and {} of {}",
                pair.first,
                pair.second,
                report.candidates.len()
            )));
        }
        Ok(report)
    }
}
