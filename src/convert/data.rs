//! The calibration windows of a run, and which of them are held out to judge its results by. Drawn once, whatever number
//! of outputs is calibrated on them.

use super::judge::{HeldOut, Scored};
use super::recipe::Data;
use crate::calibration::data::{self, Amount, DataReport, Drawn, Source, TextOnly};
use crate::calibration::overlap::{Overlap, overlap};
use crate::control::{Notice, Run, Unit};
use crate::error::Hint;
use crate::eval::Runnable;
use crate::eval::text::Corpus;
use crate::model::SourceModel;
use crate::{Error, Result};
use std::path::Path;

/// What a model is calibrated on.
#[derive(Clone, Debug)]
pub struct Drawing {
    pub windows: Vec<Vec<u32>>,
    pub report: DataReport,
    /// How much of the evaluation text is in the windows.
    pub overlap: Option<Overlap>,
}

/// Draws windows, no longer than the model's context. `text` is an evaluation text to compare them with.
///
/// # Errors
/// Those of [`data::draw`], and of loading where text is sampled from the model itself.
pub fn draw(source: &SourceModel, data: &Data, text: Option<&Path>, run: Run) -> Result<Drawing> {
    let evaluation = text.map(Corpus::open).transpose()?;
    data::check(&data.sources)?;
    let context = source.model.config.context;
    if data.window > context {
        let what = format!("calibration windows have {context} tokens, the model's context, not {}", data.window);
        run.notice(Notice::Info(what));
    }
    let amount = Amount { tokens: data.tokens, seq_len: data.window.min(context), seed: data.seed };
    let tokenizer = source.tokenizer()?;
    let idle = TextOnly { tokenizer: &tokenizer, vocab: source.model.config.vocab };
    let of_model = data.sources.iter().filter(|s| **s == Source::Model).count();
    let Drawn { windows, report } = if of_model == 0 {
        data::draw(&data.sources, amount, &idle, &mut || Ok(()))?
    } else {
        source.model.config.ending.needs_logits("text sampled from the model")?;
        run.notice(Notice::Loading(source.path.clone()));
        let model = Runnable::load(source)?;
        let sampled = of_model * amount.tokens / data.sources.len().max(1);
        let _phase = run.phase("sampling", sampled as u64, Unit::Tokens);
        data::draw(&data.sources, amount, &model, &mut || {
            run.advance(1);
            run.check()
        })?
    };
    let overlap = match &evaluation {
        Some(corpus) => Some(overlap(&windows, &corpus.tokens(&idle)?)),
        None => None,
    };
    if report.tokens < report.tokens_asked {
        let what = format!("the data has {} tokens; {} were asked for", report.tokens, report.tokens_asked);
        run.notice(Notice::Info(what));
    }
    Ok(Drawing { windows, report, overlap })
}

/// Windows to calibrate on, and those held out.
#[derive(Clone, Debug)]
pub struct HoldOut {
    pub seen: Vec<Vec<u32>>,
    pub held: HeldOut,
}

impl HoldOut {
    /// All windows in one list, and the set of each, counted from 1; 0 for those that are calibrated on.
    pub fn all(&self) -> (Vec<Vec<u32>>, Vec<usize>) {
        let mut all = self.seen.clone();
        let mut sets = vec![0; all.len()];
        for (set, windows) in self.held.sets.iter().enumerate() {
            all.extend(windows.iter().cloned());
            sets.resize(all.len(), set + 1);
        }
        (all, sets)
    }
}

/// For GGUF files, of so many calibration windows one is held out: single matrices are judged by them too.
const FILES_ONE_IN: usize = 8;
/// Windows of the bundled texts that a file has to hold on too, whatever it was calibrated on.
const FILES_BUNDLED: usize = 8;
/// Tokens of a window, of which the second half is scored.
const SHORTEST: usize = 16;

/// For folders one window in so many is held out, but no more than [`FOLDERS_MOST`].
const FOLDERS_ONE_IN: usize = 32;
const FOLDERS_MOST: usize = 4;
/// With fewer windows than this none is held out.
const FOLDERS_FEWEST: usize = 4;

/// What held-out windows decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decides {
    /// Whether error feedback was worth it.
    Feedback,
    /// Which types a budget is spent on.
    Types,
}

/// Holds out a share of the windows for GGUF files, and adds some of the bundled texts where these are not what is
/// calibrated on.
///
/// # Errors
/// `BadInput` where the windows are too few or too short to judge by.
pub fn hold_out_for_files(
    source: &SourceModel,
    data: &Data,
    windows: &[Vec<u32>],
    decides: Decides,
) -> Result<HoldOut> {
    let is_held = |i: usize| i % FILES_ONE_IN == FILES_ONE_IN - 1;
    let (seen, own) = partition(windows, is_held);
    let mut sets = vec![own];
    let window = windows.first().map_or(0, Vec::len);
    if !data.sources.iter().all(|s| *s == Source::Default) {
        let amount = Amount { tokens: FILES_BUNDLED * window, seq_len: window, seed: data.seed };
        let tokenizer = source.tokenizer()?;
        let reader = TextOnly { tokenizer: &tokenizer, vocab: source.model.config.vocab };
        sets.push(data::draw(&[Source::Default], amount, &reader, &mut || Ok(()))?.windows);
    }
    sets.retain(|set| !set.is_empty());
    let without_feedback = decides == Decides::Feedback;
    let what_for = if without_feedback { "to judge error feedback" } else { "to choose types by what they cost" };
    if window < SHORTEST {
        let what = format!("calibration windows of {window} tokens are too short {what_for}; {SHORTEST} are needed");
        return Err(Error::bad_input(what).hint(Hint::LongerWindows { least: SHORTEST, without_feedback }));
    }
    if sets.is_empty() {
        let windows = match windows.len() {
            1 => format!("one calibration window of {window} tokens is"),
            n => format!("{n} calibration windows of {window} tokens are"),
        };
        let what = format!("{windows} too few {what_for}: one in {FILES_ONE_IN} is held out for that");
        return Err(Error::bad_input(what).hint(Hint::MoreTokens { least: FILES_ONE_IN * window, without_feedback }));
    }
    Ok(HoldOut { seen, held: HeldOut { sets, scored: Scored::SecondHalf } })
}

/// Holds out a few windows for a folder, which lie evenly between the others.
pub fn hold_out_for_folders(windows: &[Vec<u32>]) -> HoldOut {
    let held = match windows.len() < FOLDERS_FEWEST {
        true => 0,
        false => (windows.len() / FOLDERS_ONE_IN).clamp(1, FOLDERS_MOST),
    };
    // The middle of each of `held` equal stretches.
    let is_held = |i: usize| (0..held).any(|k| i == (2 * k + 1) * windows.len() / (2 * held));
    let (seen, own) = partition(windows, is_held);
    let sets = if own.is_empty() { Vec::new() } else { vec![own] };
    HoldOut { seen, held: HeldOut { sets, scored: Scored::All } }
}

fn partition(windows: &[Vec<u32>], is_held: impl Fn(usize) -> bool) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
    let pick =
        |wanted: bool| (0..windows.len()).filter(|i| is_held(*i) == wanted).map(|i| windows[i].clone()).collect();
    (pick(false), pick(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_out_windows_lie_between_the_others() {
        let windows = |n: u32| (0..n).map(|i| vec![i]).collect::<Vec<_>>();
        for (n, wanted) in [(0, vec![]), (3, vec![]), (4, vec![2]), (16, vec![8]), (64, vec![16, 48])] {
            let split = hold_out_for_folders(&windows(n));
            let held: Vec<Vec<u32>> = split.held.sets.concat();
            assert_eq!(held.concat(), wanted);
            assert_eq!(split.seen.len() + held.len(), n as usize);
            assert!(split.seen.iter().all(|w| !held.contains(w)));
            let (all, sets) = split.all();
            assert_eq!((all.len(), sets.iter().sum::<usize>()), (n as usize, held.len()));
        }
        assert_eq!(hold_out_for_folders(&windows(1000)).held.sets.concat().len(), FOLDERS_MOST);
    }
}
