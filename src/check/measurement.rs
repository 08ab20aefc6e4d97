//! How models are measured: plain data.

use crate::eval::{Gates, KvCache, Method};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How models are measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// A LoRA adapter that is merged into the base; see [`crate::model::SourceModel::open_merged`].
    pub adapter: Option<PathBuf>,
    /// The evaluation text: plain, or conversations as `.jsonl`. It is not read where the base is a file of logits,
    /// which holds its own tokens.
    pub text: Option<PathBuf>,
    /// How the text is cut into windows of tokens.
    pub method: Method,
    /// At most so many windows; `None`: all.
    pub windows: Option<usize>,
    /// Round activations to 8 bits before products with quantized weights, as llama.cpp's CPU kernels do. Without it the
    /// loss is the weights' alone.
    pub rounded_activations: bool,
    /// Round keys and values as an engine does that keeps them in these types: the candidates' (of [`super::perplexity`], the
    /// model's), never the base's.
    pub kv_cache: Option<KvCache>,
    /// Limits that the candidates are judged by.
    pub gates: Gates,
    /// Also run the base with one group of each candidate's tensors at a time, on so many windows. The base is loaded
    /// twice for it.
    pub ablation: Option<usize>,
}

impl Default for Measurement {
    /// Disjoint windows of 512 tokens, as many as there are; no text, no limits.
    fn default() -> Self {
        Self {
            adapter: None,
            text: None,
            method: Method::LlamaCpp { ctx: 512 },
            windows: None,
            rounded_activations: false,
            kv_cache: None,
            gates: Gates::default(),
            ablation: None,
        }
    }
}

impl Measurement {
    /// The default on a text.
    pub fn on(text: impl Into<PathBuf>) -> Self {
        Self { text: Some(text.into()), ..Self::default() }
    }
}
