//! A model that can be run: its weights in memory, its tokenizer and its chat template, from a checkpoint folder or from
//! a GGUF file alone. This is where the evaluator's view of a model (logits of tokens) meets the forward pass.

use super::text::Encoder;
use super::{Artifact, EachRows, Logits, Vectors};
use crate::infer::{Cache, Engine};
use crate::kernel::view::matrix;
use crate::model::tokenizer::{Message, Tokenizer};
use crate::model::{Model, SourceModel};
use crate::quant::presets::PRESETS;
use crate::source::{Checkpoint, Dtype};
use crate::{Error, Result};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Logits that are computed together: enough rows for an efficient product, few enough to stay small.
const HEAD_BYTES: usize = 64 << 20;

/// A model whose weights are in memory.
pub struct Runnable {
    /// Where its tensors lie.
    pub ckpt: Arc<Checkpoint>,
    /// What they mean.
    pub model: Arc<Model>,
    /// What runs it.
    pub engine: Engine,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// What a report says of it.
    pub artifact: Artifact,
    work: Work,
}

/// Memory that one chunk after the other uses: fresh pages for each would cost more than some of the arithmetic.
#[derive(Default)]
struct Work {
    cache: Option<Cache>,
    /// What the last layer gave for the chunks of `len` tokens, from position `from` of each on.
    hidden: Vec<f32>,
    len: usize,
    from: usize,
    logits: Vec<f32>,
}

impl Runnable {
    /// Opens and loads a model.
    ///
    /// Errors: those of [`SourceModel::open`], the tokenizer and [`Engine::load`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::load(&SourceModel::open(path)?)
    }

    /// Loads an open model.
    ///
    /// Errors: those of the tokenizer and [`Engine::load`].
    pub fn load(source: &SourceModel) -> Result<Self> {
        Self::with(source, Engine::load)
    }

    /// Opens a model without its layers: it reads and writes tokens, and cannot run.
    ///
    /// Errors: as [`Runnable::open`].
    pub fn open_idle(path: &Path) -> Result<Self> {
        Self::with(&SourceModel::open(path)?, Engine::shell)
    }

    fn with(source: &SourceModel, engine: impl FnOnce(&Checkpoint, &Model) -> Result<Engine>) -> Result<Self> {
        let source = source.to_run()?;
        let SourceModel { path, ckpt, model, .. } = &source;
        let tokenizer = source.tokenizer()?;
        let mut engine = engine(ckpt, model)?;
        let rounds = engine.rounded_by_format().map(String::from);
        let artifact = Artifact { activations: rounds, ..artifact(path, ckpt) };
        Ok(Self { ckpt: ckpt.clone(), model: model.clone(), engine, tokenizer, artifact, work: Work::default() })
    }

    /// The conversation through the model's chat template.
    ///
    /// Errors: `BadInput` when there is no template, or it cannot be rendered.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let rendered = self.tokenizer.render(messages, add_generation_prompt);
        rendered.map_err(|e| e.in_file(Path::new(&self.artifact.path)))
    }
}

/// Name, size and format of what lies at `path`.
fn artifact(path: &Path, ckpt: &Checkpoint) -> Artifact {
    let parameters: u64 = ckpt.tensors().iter().map(|t| t.elements() as u64).sum();
    let tensor_bytes: u64 = ckpt.tensors().iter().map(|t| t.bytes()).sum();
    let (format, name) = match ckpt.gguf() {
        Some(metadata) => {
            let file_type = metadata.uint("general.file_type");
            let preset = PRESETS.iter().find(|p| Some(u64::from(p.file_type)) == file_type);
            // A file with a budget of its own is no preset, though its file type names the nearest.
            let own = metadata.str("quantize.target").map(String::from);
            ("gguf", own.or(preset.map(|p| p.name.to_string())))
        }
        None => {
            if let Some(scheme) = ckpt.scheme() {
                (scheme.name(), Some(scheme.label()))
            } else {
                let largest = ckpt.tensors().iter().max_by_key(|t| t.bytes());
                let ty = largest.map(|t| match t.dtype {
                    Dtype::Ggml(ty) => ty.name().to_string(),
                    other => other.to_string(),
                });
                ("safetensors", ty)
            }
        }
    };
    let stem = || path.file_stem().map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned());
    Artifact {
        name: name.unwrap_or_else(stem),
        path: path.display().to_string(),
        format: format.into(),
        bytes: ckpt.shards().iter().map(|f| f.len).sum(),
        parameters,
        bpw: 8.0 * tensor_bytes as f64 / parameters.max(1) as f64,
        ..Artifact::default()
    }
}

impl Logits for Runnable {
    fn vocab(&self) -> usize {
        self.engine.config.vocab
    }

    fn run(&mut self, chunks: &[Vec<u32>], from: usize) -> Result<()> {
        let len = chunks.first().map_or(0, Vec::len);
        let cache = match &mut self.work.cache {
            Some(cache) if cache.capacity() == len => cache,
            cache => cache.insert(Cache::one_batch(len)),
        };
        let sequences: Vec<&[u32]> = chunks.iter().map(Vec::as_slice).collect();
        self.work.hidden = self.engine.hidden_from(&sequences, from, cache)?;
        (self.work.len, self.work.from) = (len, from);
        Ok(())
    }

    fn run_shared(&mut self, chunks: &[Vec<u32>], shared: usize, groups: &[usize], from: usize) -> Result<()> {
        let len = chunks.first().map_or(0, Vec::len);
        if shared == 0 || from < shared {
            return self.run(chunks, from);
        }
        let firsts = groups.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + n)));
        let heads: Vec<&[u32]> = firsts.map(|at| &chunks[at][..shared]).collect();
        let mut cache = Cache::together(self.engine.config.layers.len(), groups.len(), len);
        self.engine.hidden_from(&heads, shared - 1, &mut cache)?;
        let tails: Vec<&[u32]> = chunks.iter().map(|chunk| &chunk[shared..]).collect();
        self.work.hidden = self.engine.hidden_from(&tails, from - shared, &mut cache.forked(groups))?;
        (self.work.len, self.work.from) = (len, from);
        Ok(())
    }

    fn logits(&mut self, chunk: usize, wanted: Range<usize>, each: &mut EachRows) -> Result<()> {
        self.engine.config.ending.needs_logits("a comparison by logits")?;
        let (width, vocab) = (self.engine.config.hidden, self.vocab());
        let Work { hidden, logits, len, from, .. } = &mut self.work;
        let first = chunk * (*len - *from);
        if wanted.start < *from || wanted.end > *len || hidden.len() < (first + *len - *from) * width {
            return Err(Error::Internal(format!("chunk {chunk} or its positions {wanted:?} were not run")));
        }
        let row = |position: usize| (first + position - *from) * width;
        let step = (HEAD_BYTES / (4 * vocab.max(1))).max(16);
        let mut position = wanted.start;
        while position < wanted.end {
            let end = (position + step).min(wanted.end);
            self.engine.head_into(&hidden[row(position)..row(end)], logits, &mut ());
            each(position, matrix(logits, vocab))?;
            position = end;
        }
        Ok(())
    }

    fn release(&mut self) {
        self.work = Work::default();
    }
}

impl Vectors for Runnable {
    fn vectors(&mut self, chunks: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        Logits::run(self, chunks, 0)?;
        let each = self.work.len * self.engine.config.hidden;
        self.work.hidden.chunks_exact(each.max(1)).map(|hidden| self.engine.vectors(hidden)).collect()
    }

    fn width(&mut self) -> Result<usize> {
        Ok(self.engine.vector_width())
    }

    fn scores(&mut self, vector: &[f32]) -> Result<Option<Vec<f32>>> {
        Ok(self.engine.scores(vector))
    }

    fn put_away(&mut self) {
        self.work = Work::default();
    }
}

/// The model's own tokenizer, as the evaluation uses it.
impl Encoder for Runnable {
    fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, parse_special)
    }

    fn bos(&self) -> Option<u32> {
        Encoder::bos(&*self.tokenizer)
    }

    fn eos(&self) -> Option<u32> {
        Encoder::eos(&*self.tokenizer)
    }

    fn render_chat(&self, messages: &[Message]) -> Result<String> {
        self.render(messages, false)
    }
}

impl Encoder for Tokenizer {
    fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        Tokenizer::encode(self, text, parse_special)
    }

    /// The token that stands in front of a text, where the tokenizer asks for one.
    fn bos(&self) -> Option<u32> {
        Tokenizer::bos(self).filter(|_| self.add_bos())
    }

    fn eos(&self) -> Option<u32> {
        Tokenizer::eos(self).filter(|_| self.add_eos())
    }

    fn render_chat(&self, messages: &[Message]) -> Result<String> {
        self.render(messages, false)
    }
}
