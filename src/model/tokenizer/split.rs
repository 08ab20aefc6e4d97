//! Cuts a text into the words that byte-level BPE works on: regexes applied one after the other, each to the pieces that
//! the one before left. It knows how llama.cpp and tokenizers read such a list, not which list a model needs (see `pre`).

use crate::{Error, Result};
use regex::Regex;
use std::ops::Range;

/// What the patterns of most pre-tokenizers end with: a run of spaces leaves its last one to the word that follows.
const TRAILING: &str = r"|\s+(?!\S)|\s+";

/// In the place of a pattern: runs of digits in threes from the right.
pub const THREES: &str = "threes from the right";

/// What the pattern of one pre-tokenizer ends with: runs of spaces in powers of two, but for the last, which goes to the word
/// that follows.
const CASCADE: &str = r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";

/// A compiled list of split patterns.
#[derive(Debug)]
pub struct Splitter {
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    regex: Regex,
    runs: Runs,
    /// Runs that end with a newline are matched by an alternative of their own, which gives nothing back.
    newlines: bool,
}

/// What becomes of a match of spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runs {
    Keep,
    /// The pattern ended with [`TRAILING`]: the look-ahead, which [`Regex`] lacks so as to stay linear in time, is done
    /// by giving back the last space of a match.
    GiveBack,
    /// It ended with [`CASCADE`].
    Cascade,
    /// Not of spaces: it is [`THREES`].
    Threes,
}

impl Splitter {
    /// # Errors
    /// [`Error::Internal`] when a pattern does not compile: patterns come from the table in `pre`.
    pub fn new(patterns: &[&str]) -> Result<Self> {
        let steps = patterns.iter().map(|&pattern| {
            let newlines = pattern.contains(r"\s*[\r\n]");
            let ends = |end: &str| pattern.strip_suffix(end).map(|head| format!(r"{head}|\s+"));
            let (linear, runs) = match (ends(TRAILING), ends(CASCADE)) {
                _ if pattern == THREES => (r"\p{N}+".to_string(), Runs::Threes),
                (Some(linear), _) => (linear, Runs::GiveBack),
                (None, Some(linear)) => (linear, Runs::Cascade),
                (None, None) => (pattern.to_string(), Runs::Keep),
            };
            let regex = Regex::new(&linear).map_err(|e| Error::Internal(format!("split pattern: {e}")))?;
            Ok(Step { regex, runs, newlines })
        });
        Ok(Self { steps: steps.collect::<Result<_>>()? })
    }

    /// The words of `text` as byte ranges, in order, covering it without gaps.
    pub fn words(&self, text: &str) -> Vec<Range<usize>> {
        let mut words: Vec<Range<usize>> = std::iter::once(0..text.len()).collect();
        for step in &self.steps {
            let mut next = Vec::with_capacity(words.len());
            for word in words {
                step.split(&text[word.clone()], word.start, &mut next);
            }
            words = next;
        }
        words.retain(|w| !w.is_empty());
        words
    }
}

impl Step {
    /// Matches and the gaps between them, shifted by `base`.
    fn split(&self, text: &str, base: usize, out: &mut Vec<Range<usize>>) {
        let mut done = 0;
        while let Some(found) = self.regex.find_at(text, done) {
            let (start, mut end) = (found.start(), found.end());
            if start == end {
                break;
            }
            if self.runs == Runs::Threes {
                if start > done {
                    out.push(base + done..base + start);
                }
                let cuts = threes(found.as_str()).map(|cut| start + cut);
                let from = std::iter::once(start).chain(cuts.clone());
                out.extend(from.zip(cuts.chain([end])).map(|(from, to)| base + from..base + to));
                done = end;
                continue;
            }
            match self.runs {
                Runs::GiveBack if end < text.len() => end = start + keep(found.as_str(), self.newlines),
                Runs::Cascade => end = start + cascade(found.as_str(), end == text.len()),
                Runs::GiveBack | Runs::Threes | Runs::Keep => {}
            }
            if start > done {
                out.push(base + done..base + start);
            }
            out.push(base + start..base + end);
            done = end;
        }
        if done < text.len() {
            out.push(base + done..base + text.len());
        }
    }
}

/// How many bytes of a match are its first piece, where runs of spaces come apart by [`CASCADE`]. `ends`: nothing follows.
fn cascade(found: &str, ends: bool) -> usize {
    if !found.chars().all(char::is_whitespace) || found.ends_with(['\r', '\n']) {
        return found.len();
    }
    let run = found.chars().count();
    let fits = |n: &usize| run > *n || (run == *n && ends);
    let n = [512, 256, 128, 64, 32, 16, 8, 4, 2, 1].into_iter().find(fits).unwrap_or(1);
    found.chars().take(n).map(char::len_utf8).sum()
}

/// Where a run of digits is cut into groups of three, with what they leave over on the left.
fn threes(found: &str) -> impl Iterator<Item = usize> + Clone {
    let over = found.chars().count() % 3;
    let starts = found.char_indices().enumerate().filter(move |(i, _)| i % 3 == over);
    starts.map(|(_, (at, _))| at).filter(|at| *at > 0)
}

/// How many bytes of a match that does not end the text remain with it (see [`TRAILING`]).
fn keep(found: &str, newlines: bool) -> usize {
    let Some(last) = found.chars().next_back() else { return found.len() };
    let single = last.len_utf8() == found.len();
    if single || (newlines && matches!(last, '\r' | '\n')) || !found.chars().all(char::is_whitespace) {
        return found.len();
    }
    found.len() - last.len_utf8()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'a>(patterns: &[&str], text: &'a str) -> Vec<&'a str> {
        Splitter::new(patterns).unwrap().words(text).into_iter().map(|r| &text[r]).collect()
    }

    #[test]
    fn spaces_before_a_word_keep_the_last_one_for_it() {
        let gpt2 = r"'s| ?\p{L}+| ?[^\s\p{L}]+|\s+(?!\S)|\s+";
        assert_eq!(words(&[gpt2], "a   b  "), ["a", "  ", " b", "  "]);
        assert_eq!(words(&[gpt2], "a\n\n\nb"), ["a", "\n\n", "\n", "b"]);
        let llama3 = r" ?\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+";
        assert_eq!(words(&[llama3], "a\n\n\nb \n  c"), ["a", "\n\n\n", "b", " \n", " ", " c"]);
        assert!(words(&[llama3], "").is_empty());
    }

    #[test]
    fn digits_in_threes_from_the_right() {
        assert_eq!(words(&[THREES], "a1234567b12"), ["a", "1", "234", "567", "b", "12"]);
        assert_eq!(words(&[THREES], "123456"), ["123", "456"]);
    }

    #[test]
    fn runs_of_spaces_in_powers_of_two() {
        let pattern = format!(r" ?\p{{L}}+|\s*[\r\n]+{CASCADE}");
        let lengths = |text: &str| words(&[&pattern], text).iter().map(|w| w.len()).collect::<Vec<_>>();
        // Seven spaces of which the last is the word's.
        assert_eq!(lengths("a       b"), [1, 4, 2, 2]);
        assert_eq!(lengths("a    "), [1, 4]);
        assert_eq!(lengths("a  \n  b"), [1, 3, 1, 2]);
    }

    #[test]
    fn later_patterns_cut_what_earlier_ones_left() {
        assert_eq!(words(&[r"\p{N}", r"\p{L}+"], "ab12 c"), ["ab", "1", "2", " ", "c"]);
    }
}
