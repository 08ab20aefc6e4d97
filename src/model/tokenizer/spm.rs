//! SentencePiece at work, as llama.cpp's `llm_tokenizer_spm` does it: neighbouring symbols whose join is the best-scored
//! token are joined until none is left; what is no token then becomes bytes. Spaces are `▁` by the time they get here.

use super::GgufVocab;
use super::sentencepiece::TokenType;
use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};

#[derive(Debug)]
pub(super) struct Spm {
    /// Id and score by text.
    tokens: HashMap<String, (u32, f32)>,
    /// The token of each byte, where there is one.
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
}

impl Spm {
    pub fn new(vocab: &GgufVocab) -> Self {
        let mut tokens = HashMap::with_capacity(vocab.tokens().len());
        for ((id, text), score) in (0u32..).zip(vocab.tokens()).zip(vocab.scores()) {
            tokens.insert(text.clone(), (id, score));
        }
        let byte = |b: u8| {
            let spelled = format!("<0x{b:02X}>");
            let plain = char::from(b).to_string();
            tokens.get(&spelled).or_else(|| tokens.get(&plain).filter(|_| b < 0x80)).map(|&(id, _)| id)
        };
        let bytes = (0..=255).map(byte).collect();
        let unknown = vocab.token_types().iter().position(|&t| t == TokenType::Unknown).map(|id| id as u32);
        Self { bytes, unknown: vocab.special("unknown").or(unknown), tokens }
    }

    pub fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        let n = starts.len();
        // Symbol i covers `len[i]` bytes from `starts[i]`; 0 once it is joined to the one before.
        let mut len: Vec<usize> = text.chars().map(char::len_utf8).collect();
        let mut next: Vec<usize> = (1..=n).collect();
        let mut previous: Vec<usize> = (0..n).map(|i| if i == 0 { n } else { i - 1 }).collect();
        let mut queue = BinaryHeap::new();
        let propose = |queue: &mut BinaryHeap<Join>, len: &[usize], left: usize, right: usize| {
            let size = len[left] + len[right];
            if let Some(&(_, score)) = self.tokens.get(&text[starts[left]..starts[left] + size]) {
                queue.push(Join { score, left: Reverse(left), right, size });
            }
        };
        for left in 0..n.saturating_sub(1) {
            propose(&mut queue, &len, left, left + 1);
        }
        while let Some(Join { left: Reverse(left), right, size, .. }) = queue.pop() {
            if len[left] == 0 || len[right] == 0 || len[left] + len[right] != size {
                continue;
            }
            len[left] = size;
            len[right] = 0;
            next[left] = next[right];
            if next[left] < n {
                previous[next[left]] = left;
            }
            if previous[left] < n {
                propose(&mut queue, &len, previous[left], left);
            }
            if next[left] < n {
                propose(&mut queue, &len, left, next[left]);
            }
        }
        for i in (0..n).filter(|&i| len[i] > 0) {
            let symbol = &text[starts[i]..starts[i] + len[i]];
            match self.tokens.get(symbol) {
                Some(&(id, _)) => out.push(id),
                None => out.extend(symbol.bytes().filter_map(|b| self.bytes[usize::from(b)].or(self.unknown))),
            }
        }
    }
}

/// A possible join; the greatest has the best score, and among equals is leftmost.
struct Join {
    score: f32,
    left: Reverse<usize>,
    right: usize,
    size: usize,
}

impl Ord for Join {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| self.left.cmp(&other.left))
    }
}

impl PartialOrd for Join {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Join {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Join {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Metadata;

    fn spm(tokens: &[(&str, f32)]) -> Spm {
        let mut meta = Metadata::new();
        meta.set("tokenizer.ggml.model", "llama");
        meta.set("tokenizer.ggml.tokens", tokens.iter().map(|t| t.0.to_string()).collect::<Vec<_>>());
        meta.set("tokenizer.ggml.scores", tokens.iter().map(|t| t.1).collect::<Vec<_>>());
        Spm::new(&GgufVocab::from_metadata(&meta).unwrap())
    }

    fn encode(spm: &Spm, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        spm.encode(text, &mut out);
        out
    }

    #[test]
    fn best_score_wins_and_ties_go_left() {
        let s = spm(&[("a", -9.0), ("b", -9.0), ("c", -9.0), ("ab", -2.0), ("bc", -1.0), ("aa", -3.0)]);
        assert_eq!(encode(&s, "abc"), [0, 4]);
        assert_eq!(encode(&s, "aaa"), [5, 0]);
    }

    #[test]
    fn what_is_no_token_becomes_bytes() {
        let s = spm(&[("a", 0.0), ("<0xC3>", 0.0), ("<0xA9>", 0.0)]);
        assert_eq!(encode(&s, "aé"), [0, 1, 2]);
        assert!(encode(&s, "").is_empty());
    }
}
