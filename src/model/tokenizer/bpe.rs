//! Byte-level BPE at work: a text becomes words, a word becomes byte symbols, and the merges of lowest rank join them
//! (as llama.cpp's `llm_tokenizer_bpe`). Special tokens are cut out before (see `runtime`).

use super::pre::Spelling;
use super::split::Splitter;
use super::{GgufVocab, pre};
use crate::{Error, Result};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// A symbol that no token and no merge knows.
const UNKNOWN: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Bpe {
    splitter: Splitter,
    ignore_merges: bool,
    tokens: usize,
    /// Symbols by text: tokens have their id, pieces that occur only in merges the numbers after them.
    symbols: HashMap<String, u32>,
    /// Rank and result of joining two symbols.
    merges: HashMap<(u32, u32), (u32, u32)>,
    bytes: [char; 256],
    spelling: Spelling,
}

impl Bpe {
    pub fn new(vocab: &GgufVocab) -> Result<Self> {
        let name = vocab.pre().unwrap_or("default");
        pre::check_name(name)?;
        let pre = pre::by_name(name).ok_or_else(|| Error::Internal(format!("the pre-tokenizer {name}")))?;
        let tokens = vocab.tokens().len();
        let mut symbols: HashMap<String, u32> = HashMap::with_capacity(tokens);
        for (id, token) in (0u32..).zip(vocab.tokens()) {
            symbols.insert(token.clone(), id);
        }
        let mut merges = HashMap::with_capacity(vocab.merges().len());
        let mut intern = |text: &str| {
            let next = symbols.len().max(tokens) as u32;
            match symbols.get(text) {
                Some(&id) => id,
                None => *symbols.entry(text.to_string()).or_insert(next),
            }
        };
        for (rank, merge) in (0u32..).zip(vocab.merges()) {
            // The first character may itself be the space.
            let first = merge.chars().next().map_or(0, char::len_utf8);
            let Some(cut) = merge.get(first..).and_then(|rest| rest.find(' ')).map(|at| at + first) else { continue };
            let (a, b) = (&merge[..cut], &merge[cut + 1..]);
            let (left, right, whole) = (intern(a), intern(b), intern(&format!("{a}{b}")));
            merges.entry((left, right)).or_insert((rank, whole));
        }
        let splitter = Splitter::new(pre.split)?;
        let (ignore_merges, spelling) = (pre.ignore_merges, pre.spelling);
        Ok(Self { splitter, ignore_merges, tokens, symbols, merges, bytes: byte_spelling(), spelling })
    }

    /// Whether tokens are spelled byte by byte.
    pub fn spells_bytes(&self) -> bool {
        self.spelling == Spelling::Bytes
    }

    pub fn encode(&self, text: &str, out: &mut Vec<u32>) {
        if self.spelling != Spelling::Bytes {
            let escaped = text.replace(' ', "▁");
            let text = if self.spelling == Spelling::Text { text } else { &escaped };
            self.splitter.words(text).into_iter().for_each(|word| self.text_word(&text[word], out));
            return;
        }
        let mut spelled = String::new();
        for word in self.splitter.words(text) {
            spelled.clear();
            spelled.extend(text[word].bytes().map(|b| self.bytes[usize::from(b)]));
            self.word(&spelled, out);
        }
    }

    fn word(&self, word: &str, out: &mut Vec<u32>) {
        let whole = self.symbols.get(word).filter(|&&id| self.ignore_merges && (id as usize) < self.tokens);
        if let Some(&id) = whole {
            out.push(id);
            return;
        }
        let mut buffer = [0; 4];
        let symbol = |c: char| self.symbols.get(&*c.encode_utf8(&mut buffer)).copied().unwrap_or(UNKNOWN);
        self.merge(word.chars().map(symbol).collect(), out);
    }

    /// A word whose characters stand for themselves; of one that is no symbol, every byte is a token.
    fn text_word(&self, word: &str, out: &mut Vec<u32>) {
        let lines = self.spelling == Spelling::EscapedLines && word.chars().all(|c| c == '\n');
        if let Some(&id) = self.symbols.get(word).filter(|&&id| lines && (id as usize) < self.tokens) {
            out.push(id);
            return;
        }
        let mut symbols = Vec::with_capacity(word.len());
        for c in word.chars() {
            let mut buffer = [0; 4];
            let text = c.encode_utf8(&mut buffer);
            match self.symbols.get(&*text) {
                Some(&id) => symbols.push(id),
                None => {
                    let byte = |b: u8| self.symbols.get(&format!("<0x{b:02X}>")).copied().unwrap_or(UNKNOWN);
                    symbols.extend(text.bytes().map(byte));
                }
            }
        }
        self.merge(symbols, out);
    }

    fn merge(&self, symbols: Vec<u32>, out: &mut Vec<u32>) {
        let mut chain = Chain::new(symbols);
        let mut queue = BinaryHeap::new();
        for left in 0..chain.symbols.len().saturating_sub(1) {
            self.queue(&chain, left, left + 1, &mut queue);
        }
        while let Some(Reverse((_, left, pair, right))) = queue.pop() {
            // Skip a pair of which one side has been merged meanwhile.
            if !chain.is_pair(left, right, pair) {
                continue;
            }
            let Some(&(_, whole)) = self.merges.get(&pair) else { continue };
            chain.join(left, right, whole);
            if let Some(before) = chain.before(left) {
                self.queue(&chain, before, left, &mut queue);
            }
            if let Some(after) = chain.after(left) {
                self.queue(&chain, left, after, &mut queue);
            }
        }
        // A piece that is no token (possible only with merges beyond the vocabulary) has no id to stand for it.
        out.extend(chain.alive().filter(|&s| (s as usize) < self.tokens));
    }

    /// Queues the merge of two neighbours, if there is one; lowest rank first, then leftmost.
    fn queue(&self, chain: &Chain, left: usize, right: usize, queue: &mut BinaryHeap<Reverse<Merge>>) {
        let pair = (chain.symbols[left], chain.symbols[right]);
        if let Some(&(rank, _)) = self.merges.get(&pair) {
            queue.push(Reverse((rank, left, pair, right)));
        }
    }
}

/// Rank, left position, the two symbols, right position.
type Merge = (u32, usize, (u32, u32), usize);

/// The symbols of a word as a linked list over its positions. Positions come from within; the end is `len`.
struct Chain {
    symbols: Vec<u32>,
    next: Vec<usize>,
    previous: Vec<usize>,
    gone: Vec<bool>,
}

impl Chain {
    fn new(symbols: Vec<u32>) -> Self {
        let n = symbols.len();
        let previous = (0..n).map(|i| if i == 0 { n } else { i - 1 }).collect();
        Self { next: (1..=n).collect(), previous, gone: vec![false; n], symbols }
    }

    fn is_pair(&self, left: usize, right: usize, pair: (u32, u32)) -> bool {
        !self.gone[left]
            && !self.gone[right]
            && self.next[left] == right
            && (self.symbols[left], self.symbols[right]) == pair
    }

    fn join(&mut self, left: usize, right: usize, whole: u32) {
        self.symbols[left] = whole;
        self.gone[right] = true;
        self.next[left] = self.next[right];
        if let Some(after) = self.after(left) {
            self.previous[after] = left;
        }
    }

    fn before(&self, i: usize) -> Option<usize> {
        Some(self.previous[i]).filter(|&p| p < self.symbols.len())
    }

    fn after(&self, i: usize) -> Option<usize> {
        Some(self.next[i]).filter(|&n| n < self.symbols.len())
    }

    fn alive(&self) -> impl Iterator<Item = u32> + '_ {
        self.symbols.iter().zip(&self.gone).filter(|(_, gone)| !**gone).map(|(&s, _)| s)
    }
}

/// The character by which byte-level BPE spells each byte: itself where it prints in Latin-1, else the next unused code
/// point from U+0100 on (GPT-2's `bytes_to_unicode`).
pub(super) fn byte_spelling() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|b| {
        let byte = b as u8;
        if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            return char::from(byte);
        }
        next += 1;
        char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Metadata;

    fn bpe(tokens: &[&str], merges: &[&str], pre: &str) -> Bpe {
        let mut meta = Metadata::new();
        meta.set("tokenizer.ggml.model", "gpt2");
        meta.set("tokenizer.ggml.pre", pre);
        meta.set("tokenizer.ggml.tokens", tokens.iter().map(|t| t.to_string()).collect::<Vec<_>>());
        meta.set("tokenizer.ggml.merges", merges.iter().map(|t| t.to_string()).collect::<Vec<_>>());
        Bpe::new(&GgufVocab::from_metadata(&meta).unwrap()).unwrap()
    }

    fn encode(bpe: &Bpe, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        bpe.encode(text, &mut out);
        out
    }

    #[test]
    fn lowest_rank_then_leftmost_pair_is_merged_first() {
        let b = bpe(&["a", "b", "c", "bc", "ab", "abc"], &["b c", "a b", "a bc"], "gpt-2");
        assert_eq!(encode(&b, "abc"), [5]);
        assert_eq!(encode(&b, "ab"), [4]);
        let aa = bpe(&["a", "aa"], &["a a"], "gpt-2");
        assert_eq!(encode(&aa, "aaa"), [1, 0]);
        assert_eq!(encode(&aa, "aaaaa"), [1, 1, 0]);
    }

    #[test]
    fn whole_words_skip_the_merges_only_where_the_pre_tokenizer_says_so() {
        let tokens = ["a", "b", "ab"];
        assert_eq!(encode(&bpe(&tokens, &[], "llama-bpe"), "ab"), [2]);
        assert_eq!(encode(&bpe(&tokens, &[], "gpt-2"), "ab"), [0, 1]);
    }

    #[test]
    fn characters_that_are_no_token_are_their_bytes() {
        let b = bpe(&["▁", "a", "▁a", "<0xC3>", "<0xA9>", "\n\n"], &["▁ a"], "gemma4");
        assert_eq!(encode(&b, " aé\n\na"), [2, 3, 4, 5, 1]);
        assert_eq!(encode(&bpe(&["a", "b", "ab"], &["a b"], "whitespace"), "ab  ab"), [2, 2]);
    }

    #[test]
    fn bytes_are_spelled_as_gpt2_does() {
        let s = byte_spelling();
        assert_eq!((s[b' ' as usize], s[b'\n' as usize], s[b'A' as usize], s[0xad]), ('Ġ', 'Ċ', 'A', 'Ń'));
    }
}
