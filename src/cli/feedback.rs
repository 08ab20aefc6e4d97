//! `--search feedback`: a GGUF conversion that calibrates, rounds with error feedback and keeps the result only where
//! text that had no part in it agrees, matrix by matrix and for each file as a whole.

use super::calibrate::{self, Drawing, Importance};
use super::options::CANCEL;
use super::plan::Prepared;
use super::progress::{Progress, Unit};
use super::{ConvertArgs, SearchArgs};
use crate::calibration::data::{self, Amount, Source};
use crate::calibration::layerwise;
use crate::convert::Control;
use crate::feedback::Shrink;
use crate::model::Model;
use crate::refine::journal::{Finished, Journal};
use crate::refine::streamed::{self, Side};
use crate::refine::{Refine, Settings, Target};
use crate::report::LedgerRow;
use crate::source::Checkpoint;
use crate::writer::gguf::Artifact;
use crate::{Error, Result};

/// Of so many calibration windows one is held out.
const HOLD_OUT: usize = 8;
/// Windows of the bundled texts that feedback has to hold on too, whatever it was calibrated on.
const BUNDLED: usize = 8;

/// Tokens of a window, of which the second half is scored.
const SHORTEST: usize = 16;

/// What the layer-by-layer pass left for the rest of the conversion.
pub struct Outcome {
    pub importance: Importance,
    /// Per target: tensors whose bytes are written.
    pub done: Vec<Vec<bool>>,
    /// Per target: matrices that kept ggml's blocks.
    pub ledger: Vec<Vec<LedgerRow>>,
    held: Held,
}

/// Windows that decide what is kept, in sets.
pub struct Held {
    pub sets: Vec<Vec<Vec<u32>>>,
}

impl Held {
    /// The windows to calibrate on and those held out, and the set of each, from 1; 0 for the former.
    pub fn all(&self, windows: Vec<Vec<u32>>) -> (Vec<Vec<u32>>, Vec<usize>) {
        let seen = windows.into_iter().enumerate().filter(|(i, _)| !is_held(*i));
        let mut all: Vec<Vec<u32>> = seen.map(|(_, window)| window).collect();
        let mut sets = vec![0; all.len()];
        for (set, windows) in self.sets.iter().enumerate() {
            all.extend(windows.iter().cloned());
            sets.resize(all.len(), set + 1);
        }
        (all, sets)
    }
}

/// Calibrates and rounds the matrices of every block, for all targets in one pass. `plain` are the files that ggml's own
/// search fills.
pub fn run(
    prepared: &Prepared,
    args: &ConvertArgs,
    drawing: Drawing,
    artifacts: &[Artifact],
    plain: &[Artifact],
    threads: usize,
    journal: (&mut Journal, Finished),
) -> Result<Outcome> {
    let quiet = args.common.quiet;
    let held = hold_out(&drawing, args)?;
    let Drawing { windows, data, overlap, model: runnable } = drawing;
    // The model comes back a layer at a time.
    drop(runnable);
    let (all, sets) = held.all(windows);
    let options = layerwise::Options {
        bf16: true,
        sequential: args.search.sequential,
        held: sets,
        max_memory: args.search.max_memory,
        spill: spill_folder(artifacts),
    };
    let settings = Settings {
        shrink: Shrink { rho: args.search.rho, damping: args.search.damping },
        sequential: args.search.sequential,
        sort_channels: args.search.sort_channels,
        ..Settings::default()
    };
    let sync = |(a, b): (&'_ Artifact, &'_ Artifact)| a.sync().and_then(|()| b.sync());
    let pairs: Vec<(&Artifact, &Artifact)> = artifacts.iter().zip(plain).collect();
    let syncs: Vec<_> = pairs.iter().map(|pair| move || sync(*pair)).collect();
    let targets: Vec<Target> = pairs
        .iter()
        .zip(&syncs)
        .zip(&prepared.targets)
        .map(|(((artifact, plain), sync), t)| Target { types: &t.types, sink: *artifact, plain: *plain, sync })
        .collect();
    let tokens: usize = all.iter().map(Vec::len).sum();
    let layers = prepared.model.config.layers.len() as u64;
    let progress = Progress::new("rounding with feedback", tokens as u64 * layers, Unit::TokensByLayer(layers), quiet);
    let control = Control { threads, cancel: &CANCEL, advance: &|n| progress.advance(n) };
    let mut refine =
        Refine::new(&prepared.ckpt, &prepared.model, &targets, settings, &control, (Some(journal.0), journal.1));
    let head = layerwise::run(&prepared.ckpt, &prepared.model, &all, &options, &mut refine, &control)?;
    refine.head(&head)?;
    progress.finish();
    let mut ledger = vec![Vec::new(); targets.len()];
    for refused in &refine.refused {
        let expert = refused.expert.map_or(String::new(), |e| format!(" (expert {e})"));
        ledger[refused.target].push(LedgerRow {
            candidate: prepared.targets[refused.target].preset.name.to_string(),
            kind: "search".into(),
            tensor: Some(format!("{}{expert}", refused.tensor)),
            asked: "error feedback".into(),
            done: "ggml's search".into(),
            reason: refused.reason.clone(),
        });
    }
    if !quiet {
        for (target, kept) in prepared.targets.iter().zip(&refine.kept) {
            eprintln!("  {}: {kept} matrices with feedback", target.preset.name);
        }
    }
    let importance = calibrate::from_inputs(&refine.inputs, data, overlap, prepared, args)?;
    Ok(Outcome { importance, done: refine.done, ledger, held })
}

fn spill_folder(artifacts: &[Artifact]) -> std::path::PathBuf {
    let first = artifacts.iter().flat_map(Artifact::targets).next();
    first.map_or_else(std::env::temp_dir, |target| crate::writer::atomic::folder_of(target).to_path_buf())
}

fn is_held(window: usize) -> bool {
    window % HOLD_OUT == HOLD_OUT - 1
}

/// A share of the calibration windows, and some of the bundled texts where these are not what is calibrated on.
pub fn hold_out(drawing: &Drawing, args: &ConvertArgs) -> Result<Held> {
    let own: Vec<Vec<u32>> =
        (0..drawing.windows.len()).filter(|i| is_held(*i)).map(|i| drawing.windows[i].clone()).collect();
    let only_bundled = args.calibration.calibration.iter().all(|s| s == "default");
    let mut sets = vec![own];
    if !only_bundled {
        let seq_len = args.calibration.seq_len;
        let amount = Amount { tokens: BUNDLED * seq_len, seq_len, seed: args.calibration.calibration_seed };
        sets.push(data::draw(&[Source::Default], amount, &drawing.model, &mut || Ok(()))?.windows);
    }
    sets.retain(|set| !set.is_empty());
    if args.calibration.seq_len < SHORTEST {
        let what = format!("windows of {} tokens are too short to judge error feedback by", args.calibration.seq_len);
        return Err(Error::bad_input(what).hint(format!("take --seq-len {SHORTEST} or more, or --search ggml")));
    }
    if sets.is_empty() {
        return Err(Error::bad_input(format!(
            "{} calibration windows are too few for error feedback, which holds one in {HOLD_OUT} out",
            drawing.windows.len()
        ))
        .hint("calibrate on more tokens, or take --search ggml"));
    }
    Ok(Held { sets })
}

/// Whether each finished file is kept: the mean KL divergence on the second halves of the held-out windows, set by set,
/// against that of the file of ggml's search alone. `artifacts` and `plain` are sealed.
pub fn judge(
    outcome: &mut Outcome,
    prepared: &Prepared,
    artifacts: &[Artifact],
    plain: &[Artifact],
    quiet: bool,
) -> Result<Vec<bool>> {
    // Windows of one length per set.
    let shortest = |set: &Vec<Vec<u32>>| set.iter().map(Vec::len).min().unwrap_or(0);
    let windows = outcome.held.sets.iter().flat_map(|set| set.iter().map(move |w| &w[..shortest(set)]));
    let windows: Vec<&[u32]> = windows.collect();
    let layers = prepared.model.config.layers.len() as u64;
    let tokens = windows.iter().map(|w| w.len() as u64).sum::<u64>() * (1 + 2 * artifacts.len() as u64);
    let progress = Progress::new("measuring held-out text", tokens * layers, Unit::TokensByLayer(layers), quiet);
    let control = Control { threads: 0, cancel: &CANCEL, advance: &|n| progress.advance(n) };
    let results = streamed::results(&prepared.ckpt, &prepared.model, &windows, &control)?;
    let base = Side { ckpt: &prepared.ckpt, model: &prepared.model, results: &results };
    let mean_by_set = |file: &Artifact| -> Result<Vec<f64>> {
        let ckpt = Checkpoint::open_gguf(&file.temp_paths())?;
        let model = Model::open(&ckpt)?;
        let results = streamed::results(&ckpt, &model, &windows, &control)?;
        let file = Side { ckpt: &ckpt, model: &model, results: &results };
        let mut kl = streamed::divergences(base, file, &control)?.into_iter();
        let mean = |n: usize| kl.by_ref().take(n).sum::<f64>() / n as f64;
        Ok(outcome.held.sets.iter().map(Vec::len).map(mean).collect())
    };
    let verdicts = artifacts.iter().zip(plain).map(|(file, plain)| Ok((mean_by_set(file)?, mean_by_set(plain)?)));
    let verdicts: Vec<(Vec<f64>, Vec<f64>)> = verdicts.collect::<Result<_>>()?;
    progress.finish();
    let mut keep = Vec::new();
    for (i, (with, without)) in verdicts.into_iter().enumerate() {
        let verdicts: Vec<(f64, f64)> = with.into_iter().zip(without).collect();
        let name = prepared.targets[i].preset.name;
        if !quiet {
            let text: Vec<String> = verdicts.iter().map(|(f, g)| format!("{f:.4} (ggml's search {g:.4})")).collect();
            eprintln!("  {name}: KL {}", text.join(", on the bundled texts "));
        }
        let lost = verdicts.iter().find(|(feedback, ggml)| feedback > ggml);
        if let Some((feedback, ggml)) = lost {
            outcome.ledger[i].push(LedgerRow {
                candidate: name.to_string(),
                kind: "search".into(),
                tensor: None,
                asked: "error feedback".into(),
                done: "ggml's search".into(),
                reason: format!("on held-out text its KL divergence is {feedback:.4}, that of ggml's search {ggml:.4}"),
            });
        }
        keep.push(lost.is_none());
    }
    Ok(keep)
}

impl SearchArgs {
    /// How feedback was done.
    pub fn record(&self, metadata: &mut crate::gguf::Metadata) {
        metadata.set("quantize.search", "feedback");
        metadata.set("quantize.search.rho", self.rho);
        metadata.set("quantize.search.damping", self.damping);
        metadata.set("quantize.search.sequential", self.sequential);
        metadata.set(crate::eval::damage::SORTED, self.sort_channels);
    }

    /// Whether feedback is what was asked for, or what is usual with calibration data.
    pub fn is_feedback(&self, calibrates: bool) -> Result<bool> {
        match self.search {
            Some(super::Search::Feedback) if !calibrates => Err(Error::Usage(
                "--search feedback needs calibration data, not a finished importance matrix: --calibration default"
                    .into(),
            )),
            Some(super::Search::Feedback) => Ok(true),
            Some(super::Search::Ggml) => Ok(false),
            None => Ok(calibrates),
        }
    }
}
