//! The driver: runs the base once over a few chunks and every candidate on the same tokens, and boils each scored position
//! down to one record. With all models at hand they go in lock-step, and it holds the base's logits of one chunk
//! (`[scored positions, vocab]` f32). Candidates that do not fit into memory together take turns: each runs over as many
//! chunks as the caller says, of which the base's logits are held. The records are the same.

use rayon::prelude::*;

use super::klbase::{self, KlBaseReader, KlBaseWriter};
use super::softmax::{self, NotFinite, Row};
use super::stats::Record;
use super::windows::{Method, Window, Windows};
use super::{Logits, bootstrap};
use crate::disk::partial::PartialFile;
use crate::error::Hint;
use crate::kernel::view::flat;
use crate::{Error, Result};

/// Tokens that a model runs at once: enough that decoding its weights is a small part of the work.
pub const BATCH: usize = 1024;

/// A model under comparison and the name it goes by in errors and reports.
pub struct Candidate<'a> {
    /// What it is called.
    pub name: String,
    /// What is asked for logits.
    pub model: &'a mut dyn Logits,
}

/// Where the base's logits come from.
pub enum Base<'a> {
    /// A model that is run.
    Model(Candidate<'a>),
    /// A file of llama-perplexity's `--kl-divergence-base`; stream and windows must be the file's own.
    File(Box<KlBaseReader>),
}

/// What has been done so far, handed to the progress callback after each model's share of a chunk.
pub struct Progress<'a> {
    /// Chunks finished by `model`, of `chunks`.
    pub done: usize,
    /// Chunks that are done.
    pub chunks: usize,
    /// Which model runs.
    pub model: &'a str,
    /// Records so far of the candidate just run; empty after the base.
    pub records: &'a [Record],
    /// The base's negative log-likelihoods so far.
    pub base: &'a [f64],
}

/// Hears of every model's share of a chunk; an error stops the comparison.
pub type OnProgress<'a> = dyn FnMut(&Progress) -> Result<()> + 'a;

/// What else the driver does on the way.
#[derive(Default)]
pub struct Options<'a> {
    /// Stores the base's logits as they come.
    pub save_base: Option<KlBaseWriter>,
    /// Called after each model's share of a chunk; an error stops the comparison.
    pub progress: Option<&'a mut OnProgress<'a>>,
}

/// The records of a comparison: per candidate, all scored positions, chunk by chunk.
#[derive(Debug, Default)]
pub struct Comparison {
    /// −ln p(actual token) of the base, nats.
    pub base: Vec<f64>,
    /// The records of each candidate, position by position.
    pub candidates: Vec<Vec<Record>>,
    /// Chunks that were run.
    pub chunks: usize,
    /// The base's logits, where they were to be stored: whole but for the name.
    pub stored: Option<PartialFile>,
}

impl Comparison {
    /// Statistics with confidence intervals, and all pairs.
    pub fn summarize(&self, config: bootstrap::Bootstrap) -> (Vec<super::Statistics>, Vec<bootstrap::Pair>) {
        bootstrap::summarize(&self.candidates, self.chunks, config)
    }
}

/// The base's logits of one chunk: rows of `[vocab]`, boiled down beside them.
#[derive(Default)]
struct BaseChunk {
    logits: Vec<f32>,
    rows: Vec<Row>,
}

/// Runs the comparison over `stream`. With no candidates this is a perplexity run of the base, and no logits are kept.
///
/// Fails if vocabularies differ, if a token lies outside them, and if any model gives NaN or infinite logits (the error
/// names the model and the position).
pub fn compare(
    base: Base,
    candidates: &mut [Candidate],
    stream: &[u32],
    windows: &Windows,
    options: Options,
) -> Result<Comparison> {
    compare_in_turns(base, candidates, stream, windows, options, None)
}

/// The same with one candidate at a time, over about `turn` chunks before the next one's turn, and released behind them.
pub fn compare_in_turns(
    mut base: Base,
    candidates: &mut [Candidate],
    stream: &[u32],
    windows: &Windows,
    options: Options,
    turn: Option<usize>,
) -> Result<Comparison> {
    let vocab = match &base {
        Base::Model(m) => m.model.vocab(),
        Base::File(f) => f.vocab(),
    };
    check(&base, vocab, candidates, stream, windows)?;
    // llama-perplexity leaves the far tail out of the sum; its figures are only met by doing so too.
    let floor = match windows.method {
        Method::LlamaCpp { .. } => klbase::FLOOR,
        Method::Strided { .. } => f32::NEG_INFINITY,
    };
    let base_name = match &base {
        Base::Model(m) => m.name.clone(),
        Base::File(f) => f.path().display().to_string(),
    };
    let result =
        Comparison { candidates: vec![Vec::new(); candidates.len()], chunks: windows.count, ..Comparison::default() };
    let keep = !candidates.is_empty() || options.save_base.is_some();
    let mut run = Run { stream, windows, vocab, floor, base_name, keep, options, result };
    let group = (BATCH / windows.method.ctx()).max(1);
    let all: Vec<Window> = windows.iter().collect();
    match turn {
        None => {
            let mut chunk = BaseChunk::default();
            for (first, group) in groups(&all, 0, group) {
                run.run_base(&mut base, group)?;
                for candidate in candidates.iter_mut() {
                    run.run_model(candidate, group)?;
                }
                for (at, window) in group.iter().enumerate() {
                    run.score_base(&mut base, (first + at, at), *window, &mut chunk)?;
                    for (i, candidate) in candidates.iter_mut().enumerate() {
                        run.score(candidate, i, (first + at, at), *window, &chunk)?;
                    }
                }
            }
        }
        Some(turn) => {
            let turn = turn.max(1).next_multiple_of(group);
            for (start, windows) in groups(&all, 0, turn) {
                let mut chunks = Vec::with_capacity(windows.len());
                for (first, group) in groups(windows, start, group) {
                    run.run_base(&mut base, group)?;
                    for (at, window) in group.iter().enumerate() {
                        let mut chunk = BaseChunk::default();
                        run.score_base(&mut base, (first + at, at), *window, &mut chunk)?;
                        chunks.push(chunk);
                    }
                }
                if let Base::Model(base) = &mut base {
                    base.model.release();
                }
                for (i, candidate) in candidates.iter_mut().enumerate() {
                    for (first, group) in groups(windows, start, group) {
                        run.run_model(candidate, group)?;
                        for (at, window) in group.iter().enumerate() {
                            let chunk = &chunks[first + at - start];
                            run.score(candidate, i, (first + at, at), *window, chunk)?;
                        }
                    }
                    candidate.model.release();
                }
            }
        }
    }
    if let Some(writer) = run.options.save_base.take() {
        run.result.stored = Some(writer.finish()?);
    }
    Ok(run.result)
}

/// Slices of at most `len` windows with the number of their first, where the first of all has number `from`.
fn groups(windows: &[Window], from: usize, len: usize) -> impl Iterator<Item = (usize, &[Window])> {
    windows.chunks(len).enumerate().map(move |(i, group)| (from + i * len, group))
}

/// A comparison under way.
struct Run<'a, 'o> {
    stream: &'a [u32],
    windows: &'a Windows,
    vocab: usize,
    floor: f32,
    base_name: String,
    /// Whether the base's logits are of use after its own share.
    keep: bool,
    options: Options<'o>,
    result: Comparison,
}

impl<'a> Run<'a, '_> {
    fn run_base(&self, base: &mut Base, group: &[Window]) -> Result<()> {
        match base {
            Base::Model(model) => self.run_model(model, group),
            Base::File(_) => Ok(()),
        }
    }

    fn run_model(&self, candidate: &mut Candidate, group: &[Window]) -> Result<()> {
        let inputs: Vec<Vec<u32>> = group.iter().map(|window| self.windows.input(self.stream, *window)).collect();
        candidate.model.run(&inputs, self.windows.method.scored().start)
    }

    /// Targets come from the stream itself; only position 0, which is never scored as a target, may hold BOS.
    fn targets(&self, window: Window) -> &'a [u32] {
        let scored = self.windows.method.scored();
        &self.stream[window.start + scored.start + 1..window.start + scored.end + 1]
    }

    /// The base's share of chunk `index`, which is number `at` of those it ran last.
    fn score_base(
        &mut self,
        base: &mut Base,
        (index, at): (usize, usize),
        window: Window,
        chunk: &mut BaseChunk,
    ) -> Result<()> {
        let (vocab, scored) = (self.vocab, self.windows.method.scored());
        let targets = self.targets(window);
        let locate =
            |row: usize, fault: NotFinite| not_finite(&self.base_name, index, window, scored.start + row, fault);
        let mut nll = Vec::with_capacity(scored.len());
        chunk.rows.clear();
        chunk.logits.clear();
        match base {
            Base::Model(m) => {
                let keep = self.keep;
                each_batch(m, vocab, at, scored.clone(), &mut |first, batch| {
                    for (i, row) in scan(batch, vocab).into_iter().enumerate() {
                        let row = row.map_err(|fault| locate(first + i, fault))?;
                        nll.push(row.lse - batch[i * vocab + targets[first + i] as usize] as f64);
                        chunk.rows.push(row);
                    }
                    if keep {
                        chunk.logits.extend_from_slice(batch);
                    }
                    Ok(())
                })?;
            }
            Base::File(f) => {
                chunk.logits.resize(scored.len() * vocab, 0.0);
                for row in chunk.logits.chunks_mut(vocab) {
                    f.next_row(row)?;
                }
                for (i, row) in scan(&chunk.logits, vocab).into_iter().enumerate() {
                    let top = row.map_err(|fault| locate(i, fault))?.top;
                    nll.push(-chunk.logits[i * vocab + targets[i] as usize] as f64);
                    // The file holds log-probabilities: they are normalised already, up to its rounding.
                    chunk.rows.push(Row { lse: 0.0, top });
                }
            }
        }
        self.result.base.append(&mut nll);
        if let Some(writer) = &mut self.options.save_base {
            for (logits, row) in chunk.logits.chunks(vocab).zip(&chunk.rows) {
                writer.row(logits, row.lse)?;
            }
        }
        report(&mut self.options, index, self.windows, &self.base_name, &[], &self.result.base)
    }

    /// The share of candidate number `i`.
    fn score(
        &mut self,
        candidate: &mut Candidate,
        i: usize,
        (index, at): (usize, usize),
        window: Window,
        chunk: &BaseChunk,
    ) -> Result<()> {
        let (vocab, floor, scored) = (self.vocab, self.floor, self.windows.method.scored());
        let targets = self.targets(window);
        let nll_base = &self.result.base[index * scored.len()..];
        let name = candidate.name.clone();
        let mut records = Vec::with_capacity(scored.len());
        each_batch(candidate, vocab, at, scored.clone(), &mut |first, batch| {
            let fresh: Vec<Result<Record, (usize, NotFinite)>> = batch
                .par_chunks(vocab)
                .enumerate()
                .map(|(i, q)| {
                    let at = first + i;
                    let row = softmax::row(q).map_err(|fault| (at, fault))?;
                    let (b, b_row) = (&chunk.logits[at * vocab..][..vocab], &chunk.rows[at]);
                    let nll = row.lse - q[targets[at] as usize] as f64;
                    let kld = softmax::kl(b, b_row, q, &row, floor);
                    Ok(Record::new(nll_base[at], nll, kld, row.top == b_row.top))
                })
                .collect();
            for record in fresh {
                let record = record.map_err(|(at, fault)| not_finite(&name, index, window, scored.start + at, fault));
                records.push(record?);
            }
            Ok(())
        })?;
        self.result.candidates[i].append(&mut records);
        let (records, base) = (&self.result.candidates[i], &self.result.base);
        report(&mut self.options, index, self.windows, &name, records, base)
    }
}

fn report(
    options: &mut Options,
    index: usize,
    windows: &Windows,
    model: &str,
    records: &[Record],
    base: &[f64],
) -> Result<()> {
    match &mut options.progress {
        Some(progress) => progress(&Progress { done: index + 1, chunks: windows.count, model, records, base }),
        None => Ok(()),
    }
}

/// What can be known to be wrong before anything is run.
fn check(base: &Base, vocab: usize, candidates: &[Candidate], stream: &[u32], windows: &Windows) -> Result<()> {
    if let Some(c) = candidates.iter().find(|c| c.model.vocab() != vocab) {
        return Err(Error::bad_input(format!(
            "'{}' has a vocabulary of {} tokens, the base has {vocab}: they cannot be compared token by token",
            c.name,
            c.model.vocab()
        ))
        .hint("compare artifacts made from the same model; check that the base is the model the candidate came from"));
    }
    if windows.count == 0 || stream.len() < windows.covered_tokens() {
        return Err(Error::Internal(format!("{} windows over {} tokens", windows.count, stream.len())));
    }
    if let Some(token) = stream.iter().chain(&windows.bos).find(|&&t| t as usize >= vocab) {
        return Err(Error::bad_input(format!("the text holds token {token}, but the models know only {vocab} tokens"))
            .hint("the tokenizer does not belong to this model"));
    }
    if let Base::File(file) = base {
        let own = file.windows(windows.bos);
        if own.method != windows.method
            || windows.count > own.count
            || !file.tokens().starts_with(&stream[..windows.covered_tokens()])
        {
            return Err(Error::bad_file(file.path(), "was made from another text, tokenizer or context")
                .hint("evaluate the tokens of the file itself, or write the file again for this text"));
        }
    }
    Ok(())
}

/// Hands the logits of a chunk on: `score(index of the first row, rows)`. Checks that the model keeps its word on order,
/// number and length of rows.
fn each_batch(
    c: &mut Candidate,
    vocab: usize,
    chunk: usize,
    wanted: std::ops::Range<usize>,
    score: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    let mut next = wanted.start;
    c.model.logits(chunk, wanted.clone(), &mut |position, rows| {
        if position != next || rows.ncols() != vocab {
            return Err(Error::Internal(format!("'{}' gave logits out of order at {position}", c.name)));
        }
        next += rows.nrows();
        score(position - wanted.start, &flat(rows))
    })?;
    if next != wanted.end {
        let (got, asked) = (next - wanted.start, wanted.len());
        return Err(Error::Internal(format!("'{}' gave {got} of {asked} rows of logits", c.name)));
    }
    Ok(())
}

fn scan(rows: &[f32], vocab: usize) -> Vec<Result<Row, NotFinite>> {
    rows.par_chunks(vocab).map(softmax::row).collect()
}

fn not_finite(name: &str, chunk: usize, window: Window, position: usize, fault: NotFinite) -> Error {
    Error::bad_input(format!(
        "'{name}' gives a logit of {} for token {} at position {position} of chunk {} (text token {})",
        fault.value,
        fault.index,
        chunk + 1,
        window.start + position
    ))
    .hint(Hint::Verify)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::EachRows;
    use crate::kernel::view::matrix;

    /// Logits that depend on the token and a salt.
    struct Made {
        salt: u32,
        tokens: Vec<Vec<u32>>,
        released: usize,
    }

    impl Logits for Made {
        fn vocab(&self) -> usize {
            7
        }

        fn run(&mut self, chunks: &[Vec<u32>], _: usize) -> Result<()> {
            self.tokens = chunks.to_vec();
            Ok(())
        }

        fn logits(&mut self, chunk: usize, wanted: std::ops::Range<usize>, each: &mut EachRows) -> Result<()> {
            for position in wanted {
                let token = self.tokens[chunk][position];
                let row: Vec<f32> = (0..7).map(|i| ((token * 5 + i * self.salt) % 11) as f32 / 3.0).collect();
                each(position, matrix(&row, 7))?;
            }
            Ok(())
        }

        fn release(&mut self) {
            self.tokens.clear();
            self.released += 1;
        }
    }

    #[test]
    fn turns_give_the_same_records() {
        let stream: Vec<u32> = (0..4000).map(|i| i * i % 7).collect();
        let windows = Windows::plan(Method::LlamaCpp { ctx: 256 }, stream.len(), None, None).unwrap();
        let made = |salt| Made { salt, tokens: Vec::new(), released: 0 };
        let run = |turn| {
            let (mut base, mut a, mut b) = (made(1), made(2), made(3));
            let mut candidates =
                [Candidate { name: "a".into(), model: &mut a }, Candidate { name: "b".into(), model: &mut b }];
            let from = Base::Model(Candidate { name: "base".into(), model: &mut base });
            let options = Options::default();
            let result = compare_in_turns(from, &mut candidates, &stream, &windows, options, turn).unwrap();
            (result, [base.released, a.released, b.released])
        };
        let (together, released) = run(None);
        assert_eq!((windows.count, released), (15, [0, 0, 0]));
        for (turn, turns) in [(1, 4), (4, 4), (5, 2), (100, 1)] {
            let (in_turn, released) = run(Some(turn));
            assert_eq!(released, [turns; 3]);
            assert_eq!(format!("{in_turn:?}"), format!("{together:?}"));
        }
    }
}
