//! Which candidates of a comparison are in memory when. All of them where they fit, as long as that takes no more than
//! the alternative: one after the other, each over as many chunks as there is room for the base's logits.

use super::machine::{available, resident};
use super::measurement::Measurement;
use crate::control::{Notice, Run};
use crate::error::Hint;
use crate::eval::compare::BATCH;
use crate::eval::{Artifact, EachRows, KvCache, Logits, Runnable, Vectors, Windows};
use crate::model::SourceModel;
use crate::{Error, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What a model takes in memory, over the bytes of its weights: tokenizer, tables, work.
const OVERHEAD: f64 = 1.3;
/// Floats per token and channel that a run holds at its peak, about: activations of all kinds, keys and values.
const WORK: u64 = 24;
/// The share of the free memory that is used where no limit was given.
const SHARE: f64 = 0.8;

/// What of an engine's arithmetic is simulated.
#[derive(Clone, Copy, Default)]
pub struct Simulated {
    /// Activations are rounded to 8 bits.
    pub activations: bool,
    /// Keys and values are kept in these types.
    pub kv_cache: Option<KvCache>,
}

impl Simulated {
    /// Of the candidates; the base keeps its keys and values.
    pub fn of(how: &Measurement) -> Self {
        Self { activations: how.rounded_activations, kv_cache: how.kv_cache }
    }

    pub fn of_base(how: &Measurement) -> Self {
        Self { kv_cache: None, ..Self::of(how) }
    }
}

/// Loads a model with an adapter merged into it.
pub fn open(path: &Path, adapter: Option<&Path>, simulated: Simulated, run: Run) -> Result<Runnable> {
    load(&SourceModel::open_merged(path, adapter)?, simulated, run)
}

/// The same of a model that is open.
pub fn load(source: &SourceModel, simulated: Simulated, run: Run) -> Result<Runnable> {
    run.check()?;
    run.notice(Notice::Loading(source.path.clone()));
    if simulated.kv_cache.is_some() {
        source.model.config.ending.needs_logits("a cache of keys and values").map_err(|e| e.in_file(&source.path))?;
    }
    let mut model = Runnable::load(source)?;
    model.engine.round_activations(simulated.activations);
    let kept = model.engine.round_keys_and_values(simulated.kv_cache);
    kept.map_err(|e| e.in_file(&source.path))?;
    Ok(model)
}

/// A candidate, in memory or not.
pub struct Entrant<'a> {
    pub path: PathBuf,
    pub artifact: Artifact,
    simulated: Simulated,
    vocab: usize,
    loaded: Option<Runnable>,
    stays: bool,
    run: Run<'a>,
}

impl<'a> Entrant<'a> {
    /// One that stays in memory.
    pub fn loaded(path: &Path, model: Runnable, simulated: Simulated, run: Run<'a>) -> Self {
        let mut entrant = Self::idle(path, &model, simulated, run);
        (entrant.loaded, entrant.stays) = (Some(model), true);
        entrant
    }

    /// One that is loaded for its turn; `model` need not be able to run.
    pub fn idle(path: &Path, model: &Runnable, simulated: Simulated, run: Run<'a>) -> Self {
        Self {
            path: path.to_path_buf(),
            artifact: model.artifact.clone(),
            simulated,
            vocab: model.engine.config.vocab,
            loaded: None,
            stays: false,
            run,
        }
    }

    /// The model itself, loaded if it is not.
    pub fn model(&mut self) -> Result<&mut Runnable> {
        if self.loaded.is_none() {
            let model = open(&self.path, None, self.simulated, self.run.unheard())?;
            // Known of the layers alone.
            self.artifact.activations = model.artifact.activations.clone();
            self.loaded = Some(model);
        }
        self.loaded.as_mut().ok_or_else(|| Error::Internal("a model was not loaded".into()))
    }
}

impl Logits for Entrant<'_> {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn run(&mut self, chunks: &[Vec<u32>], from: usize) -> Result<()> {
        self.model()?.run(chunks, from)
    }

    fn logits(&mut self, chunk: usize, wanted: Range<usize>, each: &mut EachRows) -> Result<()> {
        self.model()?.logits(chunk, wanted, each)
    }

    fn release(&mut self) {
        if !self.stays {
            self.loaded = None;
        }
    }
}

impl Vectors for Entrant<'_> {
    fn vectors(&mut self, chunks: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        self.model()?.vectors(chunks)
    }

    fn width(&mut self) -> Result<usize> {
        self.model()?.width()
    }

    fn scores(&mut self, vector: &[f32]) -> Result<Option<Vec<f32>>> {
        Vectors::scores(self.model()?, vector)
    }

    fn put_away(&mut self) {
        self.release();
    }
}

/// Candidates of one type are told apart by their files' names, and these by as much of their paths as it takes.
pub fn unique_names<'a>(candidates: impl IntoIterator<Item = &'a mut Artifact>) {
    let mut candidates: Vec<&mut Artifact> = candidates.into_iter().collect();
    let known: Vec<(String, String)> = candidates.iter().map(|c| (c.name.clone(), c.path.clone())).collect();
    for (candidate, name) in candidates.iter_mut().zip(told_apart(&known)) {
        candidate.name = name;
    }
}

/// Refuses a limit under which a base of `bytes` would leave no room for any candidate, before it is loaded. `vocab`: of it.
///
/// # Errors
/// `Request`.
pub fn allow(bytes: u64, candidates: &[PathBuf], windows: &Windows, vocab: usize, limit: Option<u64>) -> Result<()> {
    let (_, largest, chunk) = least(candidates, windows, vocab);
    let rest = resident().saturating_add(largest).saturating_add(chunk);
    refuse(limit, rest.saturating_add(bytes), rest.saturating_add((bytes as f64 * OVERHEAD) as u64))
}

/// Refuses a limit below what is needed, `about` as much.
fn refuse(limit: Option<u64>, needed: u64, about: u64) -> Result<()> {
    let Some(limit) = limit.filter(|limit| needed > *limit) else { return Ok(()) };
    let what = "the base, one candidate and the logits of one chunk take about";
    let what = format!("{limit} bytes of memory are too little: {what} {about}");
    Err(Error::request(what).hint(Hint::Memory(about)))
}

/// Bytes of all candidates, of the largest, and of the base's logits of one chunk.
fn least(candidates: &[PathBuf], windows: &Windows, vocab: usize) -> (u64, u64, u64) {
    let sizes: Vec<u64> = candidates.iter().map(|path| (weights(path) as f64 * OVERHEAD) as u64).collect();
    let chunk = (windows.method.scored().len() as u64).saturating_mul(4 * vocab as u64).max(1);
    (sizes.iter().sum(), sizes.iter().copied().max().unwrap_or(0), chunk)
}

/// How many chunks a candidate's turn has; `None` to keep all candidates in memory.
///
/// `limit`: bytes for the whole process, of which the base has its share already. `vocab` and `hidden`: of the base.
///
/// # Errors
/// `Request` when not even one candidate fits.
pub fn plan(
    candidates: &[PathBuf],
    windows: &Windows,
    (vocab, hidden): (usize, usize),
    limit: Option<u64>,
) -> Result<Option<usize>> {
    let (all, largest, chunk) = least(candidates, windows, vocab);
    let used = resident();
    let needed = used.saturating_add(largest).saturating_add(chunk);
    refuse(limit, needed, needed)?;
    let room = match limit {
        Some(limit) => limit.saturating_sub(used),
        None => available().map_or(u64::MAX, |free| (free as f64 * SHARE) as u64),
    };
    let ctx = windows.method.ctx() as u64;
    let tokens = ctx.max(BATCH as u64).min(ctx.saturating_mul(windows.count as u64));
    let work = tokens.saturating_mul(4 * WORK * hidden as u64);
    Ok(turn(largest, all, chunk, windows.count as u64, room.saturating_sub(work)))
}

fn turn(largest: u64, all: u64, chunk: u64, chunks: u64, room: u64) -> Option<usize> {
    let together = all.saturating_add(chunk);
    let in_turn = largest.saturating_add(chunk.saturating_mul(chunks));
    if in_turn <= room && in_turn <= together {
        return Some(chunks as usize);
    }
    (together > room).then(|| (room.saturating_sub(largest) / chunk).clamp(1, chunks) as usize)
}

/// Bytes of the weight files at `path`.
fn weights(path: &Path) -> u64 {
    let len = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let (folder, stem) = match name.split_once("-00001-of-") {
        _ if path.is_dir() => (path, None),
        Some((stem, _)) => (crate::disk::folder_of(path), Some(stem)),
        None => return len(path),
    };
    let keep = |n: &str| match stem {
        Some(stem) => n.starts_with(stem) && n.contains("-of-"),
        None => n.ends_with(".safetensors") || n.ends_with(".gguf"),
    };
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter(|f| f.file_name().to_str().is_some_and(keep)).map(|f| len(&f.path())).sum()
}

/// A name for each `(name, path)`: its own, or the last parts of the path, as many as make all different.
fn told_apart(known: &[(String, String)]) -> Vec<String> {
    let tail = |path: &str, parts: usize| -> String {
        let all: Vec<_> = Path::new(path).components().map(|c| c.as_os_str().to_string_lossy()).collect();
        all[all.len().saturating_sub(parts)..].join("/")
    };
    let longest = known.iter().map(|(_, path)| Path::new(path).components().count()).max().unwrap_or(0);
    let named = |(name, path): &(String, String)| {
        let alike = || known.iter().filter(|(n, p)| n == name && p != path);
        if alike().next().is_none() {
            return name.clone();
        }
        let parts = (1..longest).find(|n| alike().all(|(_, p)| tail(p, *n) != tail(path, *n)));
        tail(path, parts.unwrap_or(longest))
    };
    known.iter().map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::{told_apart, turn};

    #[test]
    fn candidates_take_turns_where_that_takes_less_or_must_be() {
        // One candidate stays; many small texts need one turn each.
        assert_eq!(turn(100, 100, 1, 50, 1000), None);
        assert_eq!(turn(100, 800, 1, 50, 1000), Some(50));
        // Long texts: together while all fit, then as many chunks as there is room for.
        assert_eq!(turn(100, 800, 10, 500, 1000), None);
        assert_eq!(turn(100, 800, 10, 500, 400), Some(30));
        assert_eq!(turn(100, 800, 10, 500, 50), Some(1));
    }

    #[test]
    fn candidates_of_one_name_are_told_apart() {
        let names = |all: &[(&str, &str)]| {
            told_apart(&all.iter().map(|(n, p)| (n.to_string(), p.to_string())).collect::<Vec<_>>())
        };
        assert_eq!(names(&[("Q4_K_M", "a/x.gguf"), ("Q6_K", "a/y.gguf")]), ["Q4_K_M", "Q6_K"]);
        assert_eq!(names(&[("Q4_K_M", "a/x.gguf"), ("Q4_K_M", "a/y.gguf")]), ["x.gguf", "y.gguf"]);
        let same = [("Q4_K_M", "m/a/x.gguf"), ("Q4_K_M", "m/b/x.gguf"), ("Q4_K_M", "m/b/y.gguf"), ("F16", "z")];
        assert_eq!(names(&same), ["a/x.gguf", "b/x.gguf", "y.gguf", "F16"]);
        assert_eq!(names(&[("Q8_0", "x.gguf"), ("Q8_0", "x.gguf")]), ["Q8_0", "Q8_0"]);
    }
}
