//! Where a conversion is cut: between tensors of files and parts of folders, into ranges of about the same work.

use super::work::{Task, Work};
use crate::convert::files;
use crate::convert::folder;
use crate::convert::plan::Plan;
use std::ops::Range;

/// Hashing a byte takes so much less than quantizing it.
const HASHED: u64 = 8;

/// Rounding a weight with error feedback takes so much more than reading it.
const FEEDBACK: u64 = 20;

/// The smallest thing that is not cut.
#[derive(Clone, Copy)]
enum Unit {
    Tensor(usize),
    Part(usize, usize),
    Hash(usize),
    Layer(usize),
}

impl Unit {
    /// The work that is this unit alone.
    fn work(self) -> Work {
        match self {
            Unit::Tensor(i) => Work::Tensors(i..i + 1),
            Unit::Part(output, i) => Work::Folder { output, parts: i..i + 1 },
            Unit::Hash(i) => Work::Hashes(i..i + 1),
            Unit::Layer(i) => Work::Layers(i..i + 1),
        }
    }
}

/// Tasks of about the same work, `count` of them or as many as there are parts.
pub fn tasks(plan: &Plan, count: usize) -> Vec<Task> {
    let mut units = Vec::new();
    let files = plan.files().count() as u64;
    if files::parts::is_layered(plan) {
        for (i, (weights, bytes)) in files::parts::layers(plan).into_iter().enumerate() {
            units.push((Unit::Layer(i), FEEDBACK * weights * (1 + files), 2 * weights, 2 * bytes));
        }
    } else if files > 0 {
        for (i, (weights, bytes)) in files::parts::tensors(plan).into_iter().enumerate() {
            units.push((Unit::Tensor(i), 2 * weights * files, 2 * weights, bytes));
        }
    }
    for output in &plan.outputs {
        for (i, (_, bytes)) in folder::parts::units(plan, output).into_iter().enumerate() {
            units.push((Unit::Part(output.index, i), bytes, bytes, bytes / 2));
        }
    }
    if plan.recipe.hash_sources {
        for (i, file) in plan.source.ckpt.files().iter().enumerate() {
            units.push((Unit::Hash(i), file.len / HASHED, file.len, 0));
        }
    }
    let work: Vec<u64> = units.iter().map(|(_, work, ..)| *work).collect();
    ranges(&work, count).into_iter().map(|range| task(&units[range])).collect()
}

/// Tasks that sum up what calibration windows give, `count` of them or as many as there are windows; and the one that adds up.
pub fn statistics(plan: &Plan, windows: &[Vec<u32>], count: usize) -> (Vec<Task>, Task) {
    let model = plan.source.ckpt.tensors().iter().map(|tensor| tensor.bytes()).sum();
    // Two sums of 16 bytes for every channel that enters a matrix.
    let matrices = plan.source.model.tensors.iter().filter(|t| t.layer.is_some() && !t.role.is_norm());
    let channels = matrices.map(|t| t.cols() * (t.row_count() / t.rows_per_matrix().max(1)).max(1));
    let sums = 32 * channels.sum::<usize>() as u64;
    let task = |range: Range<usize>| Task { work: vec![Work::Sums(range)], reads: model, writes: sums };
    let tasks: Vec<Task> = even(windows, count).into_iter().map(task).collect();
    let all = Task { work: vec![Work::Importance], reads: tasks.len() as u64 * sums, writes: sums };
    (tasks, all)
}

/// Tasks that take windows up to the layers at which `rounding` has its tasks begin: none, where one task has all layers.
pub fn activations(plan: &Plan, windows: &[Vec<u32>], rounding: &[Task], count: usize) -> Vec<Task> {
    let cuts = cuts(rounding);
    let Some(last) = cuts.last() else { return Vec::new() };
    let below = plan.source.model.tensors.iter().filter(|t| t.layer.is_some_and(|layer| layer < *last));
    let reads = below.flat_map(|t| &t.parts).map(|part| plan.source.ckpt.tensors()[*part].bytes()).sum();
    let width = 4 * (plan.source.model.config.stream() * cuts.len()) as u64;
    let task = |range: Range<usize>| {
        let tokens = windows[range.clone()].iter().map(|window| window.len() as u64).sum::<u64>();
        Task { work: vec![Work::Activations(range)], reads, writes: tokens * width }
    };
    even(windows, count).into_iter().map(task).collect()
}

/// The layers behind the first at which tasks begin.
pub fn cuts(tasks: &[Task]) -> Vec<usize> {
    let begin = |work: &Work| if let Work::Layers(layers) = work { Some(layers.start) } else { None };
    tasks.iter().flat_map(|task| task.work.iter().filter_map(begin)).filter(|layer| *layer > 0).collect()
}

fn even(windows: &[Vec<u32>], count: usize) -> Vec<Range<usize>> {
    ranges(&windows.iter().map(|window| window.len() as u64).collect::<Vec<u64>>(), count)
}

fn task(units: &[(Unit, u64, u64, u64)]) -> Task {
    let mut task = Task { work: Vec::new(), reads: 0, writes: 0 };
    for (unit, _, reads, writes) in units {
        task.reads += reads;
        task.writes += writes;
        match (task.work.last_mut(), unit) {
            (Some(Work::Tensors(range)), Unit::Tensor(_))
            | (Some(Work::Layers(range)), Unit::Layer(_))
            | (Some(Work::Hashes(range)), Unit::Hash(_)) => range.end += 1,
            (Some(Work::Folder { output, parts }), Unit::Part(of, _)) if output == of => parts.end += 1,
            _ => task.work.push(unit.work()),
        }
    }
    task
}

/// Cuts a list into at most `count` ranges, none of them empty, of about the same sum.
pub fn ranges(work: &[u64], count: usize) -> Vec<Range<usize>> {
    let count = count.clamp(1, work.len().max(1)) as u128;
    let total = work.iter().map(|w| u128::from(*w)).sum::<u128>().max(1);
    let (mut ranges, mut before): (Vec<Range<usize>>, u128) = (Vec::new(), 0);
    let mut last = None;
    for (i, w) in work.iter().enumerate() {
        // By the middle of each.
        let bin = ((2 * before + u128::from(*w)) * count / (2 * total)).min(count - 1);
        before += u128::from(*w);
        match ranges.last_mut().filter(|_| last == Some(bin)) {
            Some(range) => range.end = i + 1,
            None => ranges.push(i..i + 1),
        }
        last = Some(bin);
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_everything_once_and_are_even() {
        for (work, count) in [(vec![1; 100], 7), (vec![50, 1, 1, 1, 50], 2), (vec![0, 0, 0], 2), (vec![9], 4)] {
            let ranges = ranges(&work, count);
            assert!(ranges.len() <= count && ranges.iter().all(|r| !r.is_empty()), "{ranges:?}");
            assert_eq!(ranges.iter().cloned().flatten().collect::<Vec<_>>(), (0..work.len()).collect::<Vec<_>>());
        }
        let sums: Vec<usize> = ranges(&[1; 100], 7).iter().map(|r| r.len()).collect();
        assert!(sums.len() == 7 && sums.iter().all(|n| (14..=15).contains(n)), "{sums:?}");
    }
}
