//! A text as the models under comparison read it: one token stream, and the windows over it.

use super::measurement::Measurement;
use crate::clock::{now, strftime};
use crate::control::Run;
use crate::error::Hint;
use crate::eval::bootstrap::Bootstrap;
use crate::eval::cosine::{self, Compared, Embedder};
use crate::eval::klbase::{FLOOR, KlBaseReader, KlBaseWriter};
use crate::eval::text::{Corpus, Encoder};
use crate::eval::{self, Base, Candidate, KvCache, Method, Options, Runnable, Windows};
use crate::model::SourceModel;
use crate::model::config::Ending;
use crate::report::{MethodInfo, Report};
use crate::{Error, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};

pub struct Prepared {
    corpus: Corpus,
    path: PathBuf,
    pub stream: Vec<u32>,
    pub windows: Windows,
    rounded_activations: bool,
    kv_cache: Option<KvCache>,
}

impl Prepared {
    /// The text of `how`, in the tokens of a model whose weights need not be there yet.
    ///
    /// # Errors
    /// `Request` when there is no text, and for windows that the model has no room for; those of reading and cutting it.
    pub fn new(source: &SourceModel, how: &Measurement) -> Result<Self> {
        let Some(path) = how.text.clone() else {
            return Err(Error::request("no text to evaluate on").hint(Hint::EvaluationText));
        };
        let corpus = Corpus::open(&path)?;
        let tokenizer = source.tokenizer()?;
        let stream = corpus.tokens(&*tokenizer).map_err(|e| e.in_file(&source.path))?;
        let mut windows = Windows::plan(how.method, stream.len(), how.windows, Encoder::bos(&*tokenizer))?;
        if source.model.config.ending != Ending::Logits {
            windows = windows.ending_in(Encoder::eos(&*tokenizer));
        }
        let (asked, most) = (how.method.ctx(), source.model.config.context);
        if asked > most {
            let what = format!("windows of {asked} tokens are longer than the model's context of {most}");
            return Err(Error::request(what).hint(Hint::ContextUpTo(most)));
        }
        let (rounded_activations, kv_cache) = (how.rounded_activations, how.kv_cache);
        Ok(Self { corpus, path, stream, windows, rounded_activations, kv_cache })
    }

    /// The tokens of a file of logits; `model` knows what stands in front of every window.
    pub fn stored(base: &KlBaseReader, model: &Runnable, how: &Measurement) -> Self {
        Self {
            corpus: Corpus { format: "tokens", documents: Vec::new(), sha256: String::new() },
            path: base.path().to_path_buf(),
            stream: base.tokens().to_vec(),
            windows: base.windows(Encoder::bos(model)),
            rounded_activations: how.rounded_activations,
            kv_cache: how.kv_cache,
        }
    }

    /// Some of its windows alone.
    ///
    /// # Errors
    /// `BadInput` for windows that it has not.
    pub fn only(mut self, windows: Range<usize>) -> Result<Self> {
        if windows.is_empty() || windows.end > self.windows.count {
            return Err(Error::bad_file(&self.path, format!("has {} windows, not {windows:?}", self.windows.count)));
        }
        self.stream.drain(..windows.start * self.windows.method.stride());
        self.windows.count = windows.len();
        Ok(self)
    }

    /// A candidate must read the text as the base does, or the comparison means nothing.
    ///
    /// # Errors
    /// `BadInput` where it does not.
    pub fn same_tokens(&self, base: &Runnable, candidate: &Runnable) -> Result<()> {
        let path = Path::new(&candidate.artifact.path);
        let (theirs, ours) = (candidate.engine.config.vocab, base.engine.config.vocab);
        if theirs != ours {
            let what = format!("its vocabulary has {theirs} tokens, the base's {ours}: it is another model");
            return Err(Error::bad_file(path, what).hint("compare a model with quantizations of itself"));
        }
        if self.corpus.tokens(candidate)? != self.stream {
            return Err(Error::bad_file(path, "its tokenizer splits the text differently than the base's")
                .hint("the file was converted with another tokenizer or pre-tokenizer; convert it again"));
        }
        Ok(())
    }

    /// Runs the models; `turn` as of [`eval::compare_in_turns`].
    pub fn compare(
        &self,
        base: Base,
        candidates: &mut [Candidate],
        save_base: Option<KlBaseWriter>,
        turn: Option<usize>,
        run: Run,
    ) -> Result<eval::Comparison> {
        let per_chunk = (self.windows.covered_tokens() / self.windows.count.max(1)) as u64;
        let mut on_progress = |_: &eval::Progress| {
            run.advance(per_chunk);
            run.check()
        };
        let options = Options { save_base, progress: Some(&mut on_progress) };
        eval::compare_in_turns(base, candidates, &self.stream, &self.windows, options, turn)
    }

    /// The vectors of a model without a head, window by window.
    ///
    /// # Errors
    /// Those of the model; `Interrupted`.
    pub fn vectors(&self, model: &mut Embedder, run: Run) -> Result<Vec<Vec<f32>>> {
        model.run(&self.stream, &self.windows, &mut |tokens| advance(run, tokens))
    }

    /// The candidates' vectors beside the base's, window by window.
    ///
    /// # Errors
    /// As [`cosine::compare`].
    pub fn cosines(&self, base: &mut Embedder, candidates: &mut [Embedder], run: Run) -> Result<Vec<Compared>> {
        cosine::compare(base, candidates, &self.stream, &self.windows, &mut |tokens| advance(run, tokens))
    }

    /// A report that says how it was measured, and nothing of results yet.
    pub fn report(&self) -> Report {
        let mut report = Report::new("");
        report.created = strftime("%Y-%m-%dT%H:%M:%SZ", now());
        let method = self.windows.method;
        report.method = Some(MethodInfo {
            name: method.name().into(),
            ctx: method.ctx(),
            stride: method.stride(),
            chunks: self.windows.count,
            tokens: self.windows.scored_tokens(),
            text: self.path.display().to_string(),
            text_sha256: self.corpus.sha256.clone(),
            text_format: self.corpus.format.into(),
            bos: self.windows.bos,
            activations: if self.rounded_activations { "q8" } else { "f32" }.into(),
            kv_cache: self.kv_cache.map(|types| types.to_string()),
            kl_floor: matches!(method, Method::LlamaCpp { .. }).then_some(f64::from(FLOOR)),
            bootstrap: Bootstrap::default(),
        });
        report
    }

    /// The same where each window is a text that vectors stand for.
    pub fn report_of_vectors(&self) -> Report {
        let mut report = self.report();
        if let Some(method) = &mut report.method {
            method.name = "vectors".into();
            (method.tokens, method.kl_floor) = (self.windows.count * method.ctx, None);
        }
        report
    }
}

fn advance(run: Run, tokens: usize) -> Result<()> {
    run.advance(tokens as u64);
    run.check()
}
