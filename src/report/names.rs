//! Names short enough for tables and charts: what long ones have in common is left out. The JSON report keeps them whole.

use super::schema::Report;
use std::borrow::Cow;

/// Characters of a name at most.
const MOST: usize = 28;

/// The name of a candidate by its number, of which pairs speak.
pub fn of_candidate(report: &Report, i: usize) -> &str {
    report.candidates.get(i).map_or("?", |c| c.artifact.name.as_str())
}

/// The report with short names of candidates, where some are long.
pub fn shortened(report: &Report) -> Cow<'_, Report> {
    let names: Vec<&str> = report.candidates.iter().map(|c| c.artifact.name.as_str()).collect();
    if names.iter().all(|name| name.chars().count() <= MOST) {
        return Cow::Borrowed(report);
    }
    let short = shorten(&names);
    let of = |name: &str| {
        let at = names.iter().position(|known| *known == name);
        at.map_or_else(|| name.to_string(), |at| short[at].clone())
    };
    let mut report = report.clone();
    report.gates.iter_mut().for_each(|gate| gate.candidate = of(&gate.candidate));
    report.ledger.iter_mut().for_each(|row| row.candidate = of(&row.candidate));
    for (candidate, short) in report.candidates.iter_mut().zip(&short) {
        if candidate.artifact.path.is_empty() {
            candidate.artifact.path = std::mem::take(&mut candidate.artifact.name);
        }
        candidate.artifact.name = short.clone();
    }
    Cow::Owned(report)
}

/// Those that are long without the beginning that they share, and without their middle where that is not enough.
fn shorten(names: &[&str]) -> Vec<String> {
    let long: Vec<&str> = names.iter().copied().filter(|name| name.chars().count() > MOST).collect();
    let common = long.iter().skip(1).fold(long.first().copied().unwrap_or_default(), |common, name| {
        let same = common.char_indices().zip(name.chars()).find(|((_, a), b)| a != b);
        &common[..same.map_or(common.len().min(name.len()), |((at, _), _)| at)]
    });
    // Words stay whole.
    let common = if long.len() > 1 { common.rfind(['-', '_', '.', '/', ' ']).map_or(0, |at| at + 1) } else { 0 };
    let mut out: Vec<String> = Vec::new();
    for name in names {
        let mut short = name.to_string();
        if name.chars().count() > MOST {
            let rest = &name[common..];
            let rest = rest.strip_suffix(".gguf").unwrap_or(rest);
            let all: Vec<char> = rest.chars().collect();
            let (head, tail) = (MOST / 2 - 1, MOST / 2);
            short = match all.len() <= MOST {
                true => rest.to_string(),
                false => all[..head].iter().chain(&['…']).chain(&all[all.len() - tail..]).collect(),
            };
        }
        let mut distinct = short.clone();
        for n in 2.. {
            if !out.contains(&distinct) {
                break;
            }
            distinct = format!("{short} ({n})");
        }
        out.push(distinct);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_lose_what_they_share() {
        let long = "Some-Organisation-Long-Model-70B-";
        let names = [format!("{long}alpha-Q4_K_M.gguf"), "Q8_0".into(), format!("{long}beta-Q4_K_M.gguf")];
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(shorten(&names), ["alpha-Q4_K_M", "Q8_0", "beta-Q4_K_M"]);
        let one = format!("{long}alpha-with-a-tail-Q4_K_M");
        assert_eq!(shorten(&[&one]), ["Some-Organisa…-a-tail-Q4_K_M"]);
        // What becomes alike is numbered.
        let alike = [format!("a{}b", "x".repeat(60)), format!("a{}b", "x".repeat(61))];
        let short = shorten(&[&alike[0], &alike[1]]);
        assert_ne!(short[0], short[1]);
        assert!(short.iter().all(|s| s.chars().count() <= MOST + 4));
    }
}
