//! What models answered to questions, as tables that every rendering shares.

use super::format::{bytes, fixed, percent, signed, significant};
use super::schema::{Answered, Report, TaskResult};
use crate::eval::Estimate;

/// A title and the rows of a table, the header first, for every task.
pub fn tables(report: &Report) -> Vec<(String, Vec<Vec<String>>)> {
    report.tasks.iter().map(|task| (title(task), rows(report, task))).collect()
}

fn title(task: &TaskResult) -> String {
    let file = task.file.rsplit(['/', '\\']).next().unwrap_or(&task.file);
    let (kind, n) = (task.kind.title(), super::format::count(task.questions));
    let chance = percent(task.chance, 1);
    format!("{kind}, {file}: {n} questions; guessing gives {chance}")
}

fn rows(report: &Report, task: &TaskResult) -> Vec<Vec<String>> {
    let mut rows =
        vec![["model", "size", "right", "95 % interval", "vs base", "p", "same answer"].map(String::from).to_vec()];
    if let Some(base) = &report.base {
        rows.push(row(format!("{} (base)", base.artifact.name), base.artifact.bytes, &task.base));
    }
    for (candidate, answered) in report.candidates.iter().zip(&task.candidates) {
        rows.push(row(candidate.artifact.name.clone(), candidate.artifact.bytes, answered));
    }
    rows
}

fn row(name: String, size: u64, answered: &Answered) -> Vec<String> {
    let dash = || "–".to_string();
    let interval =
        |e: &Estimate| e.ci95.map_or_else(dash, |[low, high]| format!("{} to {}", percent(low, 1), percent(high, 1)));
    vec![
        name,
        bytes(size),
        percent(answered.accuracy.value, 2),
        interval(&answered.accuracy),
        answered.difference.map_or_else(dash, |d| {
            format!("{} ± {} points", signed(100.0 * d.value, 2), fixed(100.0 * d.std_error, 2))
        }),
        answered.p.map_or_else(dash, |p| significant(p, 2)),
        answered.same.map_or_else(dash, |same| percent(same.value, 1)),
    ]
}
