//! Generation that diverges: how long the greedy continuations of a candidate are the base's. One model in memory at a time.

use super::measurement::Measurement;
use super::text::Prepared;
use super::turns::{self, Simulated};
use crate::control::{self, Control, Run, Unit};
use crate::error::Hint;
use crate::eval::{Runnable, continuations};
use crate::infer::continue_together;
use crate::model::SourceModel;
use crate::report::{Continuations, Sample};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Prompts that are continued in step.
const TOGETHER: usize = 16;

/// Prompts whose continuations a report has in full, and the tokens of each prompt that it shows.
const SHOWN: usize = 3;
const SHOWN_TOKENS: usize = 32;

/// Continues prompts from the text of `how`, `starts` of them, spread evenly over it and half a window long each, by up to
/// `length` of the most likely tokens, with the base and with every candidate.
///
/// # Errors
/// As [`super::compare`]; `Request` where prompt and continuation do not fit the context, or the text has too few tokens.
pub fn continuations(
    base: &Path,
    candidates: &[PathBuf],
    how: &Measurement,
    starts: usize,
    length: usize,
    control: &Control,
    report: &dyn control::Report,
) -> Result<Continuations> {
    let run = Run::new(control, report);
    let source = SourceModel::open_merged(base, how.adapter.as_deref())?.to_run()?;
    source.model.config.ending.needs_logits("a continuation").map_err(|e| e.in_file(base))?;
    let text = Prepared::new(&source, how)?;
    let (prompt, context) = ((how.method.ctx() / 2).max(1), source.model.config.context);
    if prompt + length > context {
        let what = format!("{prompt} tokens and {length} more do not fit the model's context of {context}");
        return Err(Error::request(what).hint(Hint::ContextUpTo(2 * context.saturating_sub(length))));
    }
    let places = text.stream.len().saturating_sub(prompt);
    if places < starts {
        return Err(Error::request(format!("the text has too few tokens for {starts} prompts of {prompt}")));
    }
    let begin = |i: usize| {
        let at = i * places / starts;
        let mut tokens = text.stream[at..at + prompt].to_vec();
        tokens[0] = text.windows.bos.unwrap_or(tokens[0]);
        tokens
    };
    let prompts: Vec<Vec<u32>> = (0..starts).map(begin).collect();
    let _phase = run.phase("continuing", (starts * length * (candidates.len() + 1)) as u64, Unit::Tokens);
    let model = turns::load(&source, Simulated::of_base(how), run)?;
    let end = model.tokenizer.end_tokens().to_vec();
    let of_base = all(&model, &prompts, length, run)?;
    let read = |model: &Runnable, tokens: &[u32]| {
        let ended = tokens.iter().position(|t| end.contains(t)).unwrap_or(tokens.len());
        text_of(model, &tokens[..ended])
    };
    let shown = prompts.iter().zip(&of_base).take(SHOWN);
    let mut samples: Vec<Sample> = shown
        .map(|(prompt, made)| Sample {
            prompt: text_of(&model, &prompt[prompt.len().saturating_sub(SHOWN_TOKENS)..]),
            base: read(&model, made),
            candidates: Vec::new(),
        })
        .collect();
    drop(model);
    let mut found = Vec::with_capacity(candidates.len());
    for path in candidates {
        let model = turns::open(path, None, Simulated::of(how), run)?;
        let theirs = all(&model, &prompts, length, run).map_err(|e| e.in_file(path))?;
        found.push(continuations::compare(&of_base, &theirs, &end, length));
        samples.iter_mut().zip(&theirs).for_each(|(sample, made)| sample.candidates.push(read(&model, made)));
    }
    Ok(Continuations { starts, prompt, length, candidates: found, samples })
}

/// What tokens say, on one line.
fn text_of(model: &Runnable, tokens: &[u32]) -> String {
    let mut stream = model.tokenizer.stream();
    let text: String = tokens.iter().map(|token| stream.push(*token)).collect();
    (text + &stream.finish()).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn all(model: &Runnable, prompts: &[Vec<u32>], length: usize, run: Run) -> Result<Vec<Vec<u32>>> {
    let mut made = Vec::with_capacity(prompts.len());
    for prompts in prompts.chunks(TOGETHER) {
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        made.extend(continue_together(&model.engine, &prompts, length, || {
            run.advance(1);
            run.check()
        })?);
    }
    Ok(made)
}
