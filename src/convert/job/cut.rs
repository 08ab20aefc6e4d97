//! Where a conversion is cut: between tensors of files and parts of folders, into ranges of about the same work.

use super::work::{Task, Work};
use crate::convert::files;
use crate::convert::folder;
use crate::convert::plan::Plan;
use std::ops::Range;

/// Hashing a byte takes so much less than quantizing it.
const HASHED: u64 = 8;

/// The smallest thing that is not cut.
#[derive(Clone, Copy)]
enum Unit {
    Tensor(usize),
    Part(usize, usize),
    Hash(usize),
}

impl Unit {
    /// The work that is this unit alone.
    fn work(self) -> Work {
        match self {
            Unit::Tensor(i) => Work::Tensors(i..i + 1),
            Unit::Part(output, i) => Work::Folder { output, parts: i..i + 1 },
            Unit::Hash(i) => Work::Hashes(i..i + 1),
        }
    }
}

/// Tasks of about the same work, `count` of them or as many as there are parts.
pub fn tasks(plan: &Plan, count: usize) -> Vec<Task> {
    let mut units = Vec::new();
    let files = plan.files().count() as u64;
    if files > 0 {
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

fn task(units: &[(Unit, u64, u64, u64)]) -> Task {
    let mut task = Task { work: Vec::new(), reads: 0, writes: 0 };
    for (unit, _, reads, writes) in units {
        task.reads += reads;
        task.writes += writes;
        match (task.work.last_mut(), unit) {
            (Some(Work::Tensors(range)), Unit::Tensor(_)) | (Some(Work::Hashes(range)), Unit::Hash(_)) => {
                range.end += 1
            }
            (Some(Work::Folder { output, parts }), Unit::Part(of, _)) if output == of => parts.end += 1,
            _ => task.work.push(unit.work()),
        }
    }
    task
}

/// Cuts a list into at most `count` ranges, none of them empty, of about the same sum.
fn ranges(work: &[u64], count: usize) -> Vec<Range<usize>> {
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
