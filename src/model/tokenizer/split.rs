//! Cuts a text into the words that byte-level BPE works on: regexes applied one after the other, each to the pieces that
//! the one before left. It knows how llama.cpp and tokenizers read such a list, not which list a model needs (see `pre`).

use crate::{Error, Result};
use regex::Regex;
use std::ops::Range;

/// What the patterns of most pre-tokenizers end with: a run of spaces leaves its last one to the word that follows.
const TRAILING: &str = r"|\s+(?!\S)|\s+";

/// A compiled list of split patterns.
#[derive(Debug)]
pub struct Splitter {
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    regex: Regex,
    /// The pattern ended with [`TRAILING`]: the look-ahead, which [`Regex`] lacks so as to stay linear in time, is done
    /// by giving back the last space of a match.
    gives_back: bool,
    /// Runs that end with a newline are matched by an alternative of their own, which gives nothing back.
    newlines: bool,
}

impl Splitter {
    /// # Errors
    /// [`Error::Internal`] when a pattern does not compile: patterns come from the table in `pre`.
    pub fn new(patterns: &[&str]) -> Result<Self> {
        let steps = patterns.iter().map(|&pattern| {
            let gives_back = pattern.ends_with(TRAILING);
            let newlines = pattern.contains(r"\s*[\r\n]");
            let linear = match pattern.strip_suffix(TRAILING) {
                Some(head) => format!(r"{head}|\s+"),
                None => pattern.to_string(),
            };
            let regex = Regex::new(&linear).map_err(|e| Error::Internal(format!("split pattern: {e}")))?;
            Ok(Step { regex, gives_back, newlines })
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
            if self.gives_back && end < text.len() {
                end = start + keep(found.as_str(), self.newlines);
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
    fn later_patterns_cut_what_earlier_ones_left() {
        assert_eq!(words(&[r"\p{N}", r"\p{L}+"], "ab12 c"), ["ab", "1", "2", " ", "c"]);
    }
}
