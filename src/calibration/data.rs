//! Calibration data: sources become token streams, and windows of equal length are drawn from them, spread evenly over
//! every source and over the whole of each, never a prefix. Text of one kind alone misleads a quantizer more than little
//! text does. What is done with the windows is not decided here.

use super::bundled;
use super::parquet;
use crate::digest::sha256;
use crate::error::Hint;
use crate::eval::Runnable;
use crate::eval::text::{Corpus, Document, Encoder};
use crate::infer::{Sampling, sample_together};
use crate::model::tokenizer::{Message, Tokenizer};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Tokens drawn unless asked otherwise.
pub const DEFAULT_TOKENS: usize = 65_536;
/// Tokens per window unless asked otherwise; llama-imatrix's.
pub const DEFAULT_SEQ_LEN: usize = 512;

/// Where calibration tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The bundled texts.
    Default,
    /// Plain text, or JSONL or Parquet with `text` or `messages`.
    File(PathBuf),
    /// A file of a data set on the Hub, and where it was fetched to, if it was.
    Fetched {
        /// Where it came from.
        address: String,
        /// Where it lies now; `None` before it was fetched.
        path: Option<PathBuf>,
    },
    /// Text sampled from the model itself at temperature 1 (after LLM-QAT, Liu et al. 2023).
    Model,
    /// Uniformly random tokens.
    Random,
}

impl Source {
    /// `fetch` brings the file of an address on the Hub.
    ///
    /// Errors: those of `fetch`; `Unsupported` for Parquet in a program built without it.
    pub fn parse(text: &str, fetch: impl FnOnce(&str) -> Result<Option<PathBuf>>) -> Result<Self> {
        if is_parquet(Path::new(text.rsplit_once('@').map_or(text, |(path, _)| path))) || is_parquet(Path::new(text)) {
            parquet::available(text)?;
        }
        Ok(match text {
            "default" => Source::Default,
            "self" => Source::Model,
            "tokens:random" => Source::Random,
            _ if text.starts_with("hf://") => Source::Fetched { address: text.to_string(), path: fetch(text)? },
            _ => Source::File(PathBuf::from(text)),
        })
    }
}

impl Source {
    /// The file that is read.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Source::File(path) => Some(path),
            Source::Fetched { path, .. } => path.as_deref(),
            Source::Default | Source::Model | Source::Random => None,
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File(path) => path.display().fmt(f),
            Source::Fetched { address, .. } => f.write_str(address),
            Source::Model => f.write_str("self"),
            Source::Random => f.write_str("tokens:random"),
        }
    }
}

/// How much to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// Rounded up to whole windows.
    pub tokens: usize,
    pub seq_len: usize,
    pub seed: u64,
}

/// What drawing needs of a model.
pub trait Reader: Encoder {
    /// Token ids lie below it.
    fn vocab(&self) -> usize;
    /// Windows of `len` tokens, each beginning with a given token and continued by sampling with a given seed.
    fn sample(&self, starts: &[(u32, u64)], len: usize, step: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Vec<u32>>>;
}

impl Reader for Runnable {
    fn vocab(&self) -> usize {
        self.tokenizer.vocab_len().min(self.engine.config.vocab)
    }

    fn sample(&self, starts: &[(u32, u64)], len: usize, step: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Vec<u32>>> {
        let mut windows = Vec::with_capacity(starts.len());
        for starts in starts.chunks(SAMPLED_TOGETHER) {
            let options = Sampling { temperature: 1.0, ..Sampling::default() };
            windows.extend(sample_together(&self.engine, starts, len, options, &mut *step)?);
        }
        Ok(windows)
    }
}

/// A model that reads and writes text, and is not loaded.
pub struct TextOnly<'a> {
    pub tokenizer: &'a Tokenizer,
    /// Rows of the embedding.
    pub vocab: usize,
}

impl Encoder for TextOnly<'_> {
    fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, parse_special)
    }

    fn bos(&self) -> Option<u32> {
        Encoder::bos(self.tokenizer)
    }

    fn render_chat(&self, messages: &[Message]) -> Result<String> {
        self.tokenizer.render(messages, false)
    }
}

impl Reader for TextOnly<'_> {
    fn vocab(&self) -> usize {
        self.tokenizer.vocab_len().min(self.vocab)
    }

    /// Errors: always `Internal`: the model is not loaded.
    fn sample(&self, _: &[(u32, u64)], _: usize, _: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Vec<u32>>> {
        Err(Error::Internal("text was to be sampled from a model that is not loaded".into()))
    }
}
/// Tokens that are made for one source, at most.
const MOST_MADE: usize = 1 << 26;

/// Windows that are sampled in step: so many that decoding the weights is the smaller part of the work, so few that their
/// keys and values are much smaller than the model.
const SAMPLED_TOGETHER: usize = 16;

/// Windows of `seq_len` tokens each, and what they were made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    pub windows: Vec<Vec<u32>>,
    pub report: DataReport,
}

/// What was calibrated on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DataReport {
    /// Tokens that were wanted.
    pub tokens_asked: usize,
    /// Tokens that were used.
    pub tokens: usize,
    /// Tokens of a window.
    pub seq_len: usize,
    /// The seed of what was drawn.
    pub seed: u64,
    /// Hex SHA-256 of the tokens as little-endian `u32`, window after window.
    pub sha256: String,
    /// Source by source.
    pub sources: Vec<SourceReport>,
}

/// One of the texts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceReport {
    /// Its name.
    pub name: String,
    /// Texts, lines of JSONL, rows of Parquet, or windows made.
    pub rows: usize,
    /// Rows that a window touches.
    pub rows_used: usize,
    /// Rows that hold no tokens.
    pub rows_dropped: usize,
    /// Tokens that it has.
    pub tokens_available: usize,
    /// Tokens that were drawn from it.
    pub tokens_used: usize,
    /// Tokens used of each domain; one unnamed domain for a file.
    pub domains: Vec<(String, usize)>,
}

/// One source as a token stream, row after row.
struct Stream {
    tokens: Vec<u32>,
    /// Domain and where it ends in the stream, row by row.
    rows: Vec<(String, usize)>,
    dropped: usize,
    /// Rows of a large file that were not looked at.
    passed: usize,
}

impl Stream {
    fn new() -> Self {
        Self { tokens: Vec::new(), rows: Vec::new(), dropped: 0, passed: 0 }
    }

    /// Appends a row behind BOS, where the tokenizer asks for one and the row does not begin with it.
    fn push(&mut self, domain: &str, tokens: &[u32], bos: Option<u32>) {
        if tokens.is_empty() {
            self.dropped += 1;
            return;
        }
        self.tokens.extend(bos.filter(|bos| tokens.first() != Some(bos)));
        self.tokens.extend_from_slice(tokens);
        self.rows.push((domain.to_string(), self.tokens.len()));
    }
}

/// Reads the text files among the sources, so that what is wrong with one shows before a model is loaded.
///
/// Errors: as [`draw`].
pub fn check(sources: &[Source]) -> Result<()> {
    for source in sources {
        match source {
            Source::Fetched { address, path: None } => {
                return Err(Error::request(format!("{address} has not been fetched")));
            }
            _ => {
                if let Some(path) = source.path().filter(|path| !is_parquet(path)) {
                    text_documents(path)?;
                }
            }
        }
    }
    Ok(())
}

/// Draws windows from all sources. `step` is called once per sampled token and may stop the run.
///
/// Errors: `Request` for an amount that makes no window; `BadInput` for a source that is empty, not UTF-8, malformed, or
/// shorter than one window; `Io`; and those of the tokenizer.
pub fn draw(
    sources: &[Source],
    amount: Amount,
    reader: &dyn Reader,
    step: &mut dyn FnMut() -> Result<()>,
) -> Result<Drawn> {
    let Amount { tokens, seq_len, seed } = amount;
    if seq_len < 2 || tokens == 0 || sources.is_empty() {
        return Err(Error::request("nothing to calibrate on: name a source, tokens, and windows of at least 2"));
    }
    let mut streams = Vec::new();
    for source in sources {
        let stream = match source {
            Source::Default => Some(bundled_stream(reader)?),
            Source::File(_) | Source::Fetched { .. } => {
                source.path().map(|path| file_stream(path, reader)).transpose()?
            }
            Source::Model | Source::Random => None,
        };
        if let Some(stream) = &stream
            && stream.tokens.len() < seq_len
        {
            let what =
                format!("the calibration data has {} tokens, fewer than one window of {seq_len}", stream.tokens.len());
            let shorter = Hint::WindowsOf(stream.tokens.len().max(2));
            let error = Error::bad_input(what).hint(shorter);
            return Err(match source.path() {
                Some(path) => error.in_file(path),
                None => error,
            });
        }
        streams.push(stream);
    }
    let available: Vec<usize> =
        streams.iter().map(|s| s.as_ref().map_or(usize::MAX, |s| s.tokens.len() / seq_len)).collect();
    let shares = shares(tokens.div_ceil(seq_len), &available);
    let mut windows = Vec::new();
    let mut report = DataReport { tokens_asked: tokens, seq_len, seed, ..DataReport::default() };
    for (i, (source, share)) in sources.iter().zip(&shares).enumerate() {
        let mut random = SplitMix(seed ^ (i as u64).wrapping_mul(0xd134_2543_de82_ef95));
        let mut row = SourceReport { name: source.to_string(), ..SourceReport::default() };
        match &streams[i] {
            Some(stream) => {
                let chosen = spread(*share, available[i], &mut random);
                windows.extend(chosen.iter().map(|w| stream.tokens[w * seq_len..(w + 1) * seq_len].to_vec()));
                account(stream, &chosen, seq_len, &mut row);
            }
            None => {
                windows.extend(made(source, reader, *share, seq_len, &mut random, step)?);
                (row.rows, row.rows_used) = (*share, *share);
                row.domains.push((String::new(), share * seq_len));
                row.tokens_available = share * seq_len;
            }
        }
        row.tokens_used = share * seq_len;
        report.sources.push(row);
    }
    // Position 0 of every window is BOS for tokenizers that put one before a text, as in llama-imatrix.
    if let Some(bos) = reader.bos() {
        windows.iter_mut().for_each(|w| w[0] = bos);
    }
    report.tokens = windows.len() * seq_len;
    report.sha256 = digest(windows.iter().flatten().flat_map(|t| t.to_le_bytes()));
    Ok(Drawn { windows, report })
}

/// The bundled texts. A model without a chat template, or with one that refuses a conversation, reads it as plain text.
fn bundled_stream(reader: &dyn Reader) -> Result<Stream> {
    let mut stream = Stream::new();
    for (domain, file, text) in bundled::TEXTS {
        let corpus = Corpus::parse(Path::new(file), text.as_bytes(), file.ends_with(".jsonl"))?;
        for document in &corpus.documents {
            let tokens = match document {
                Document::Text(text) => reader.encode(text, false)?,
                Document::Chat(messages) => match reader.render_chat(messages) {
                    Ok(text) => reader.encode(&text, true)?,
                    Err(_) => reader.encode(&plain_chat(messages), false)?,
                },
            };
            stream.push(domain, &tokens, reader.bos());
        }
    }
    Ok(stream)
}

fn plain_chat(messages: &[Message]) -> String {
    messages.iter().map(|m| format!("{}: {}\n\n", m.role, m.content)).collect()
}

fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"))
}

fn file_stream(path: &Path, reader: &dyn Reader) -> Result<Stream> {
    let mut stream = Stream::new();
    let documents = if is_parquet(path) {
        let table = parquet::open(path)?;
        stream.passed = table.passed;
        table.documents
    } else {
        text_documents(path)?
    };
    for document in &documents {
        let tokens = match document {
            Document::Text(text) => reader.encode(text, false)?,
            Document::Chat(messages) => reader.encode(&reader.render_chat(messages)?, true)?,
        };
        stream.push("", &tokens, reader.bos());
    }
    Ok(stream)
}

fn text_documents(path: &Path) -> Result<Vec<Document>> {
    let bytes = crate::input::read(path)?;
    if let Err(e) = std::str::from_utf8(&bytes) {
        let what = format!("the calibration data is not UTF-8 text (byte {})", e.valid_up_to());
        return Err(Error::bad_file(path, what).hint("convert it, for example with: iconv -f LATIN1 -t UTF-8"));
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::bad_file(path, "the calibration data is empty"));
    }
    let jsonl = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl") || e.eq_ignore_ascii_case("ndjson"));
    Ok(Corpus::parse(path, &bytes, jsonl)?.documents)
}

/// Windows of a source without a stream.
fn made(
    source: &Source,
    reader: &dyn Reader,
    count: usize,
    len: usize,
    random: &mut SplitMix,
    step: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Vec<u32>>> {
    // They are all held in memory; a text bounds its windows itself.
    if count.checked_mul(len).is_none_or(|tokens| tokens > MOST_MADE) {
        let what = format!("{count} windows of {len} tokens are asked of {source}; {MOST_MADE} tokens are the limit");
        return Err(Error::bad_input(what).hint("ask for fewer calibration tokens"));
    }
    let vocab = reader.vocab().max(1);
    if *source == Source::Random {
        return Ok((0..count).map(|_| (0..len).map(|_| random.below(vocab) as u32).collect()).collect());
    }
    // Without BOS a random first token gives every window another subject.
    let mut start = || (reader.bos().unwrap_or(random.below(vocab) as u32), random.next());
    let starts: Vec<_> = (0..count).map(|_| start()).collect();
    reader.sample(&starts, len, step)
}

/// Windows per source: equal shares, where a source that has fewer leaves the rest to the others.
fn shares(windows: usize, available: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..available.len()).collect();
    order.sort_by_key(|i| available[*i]);
    let (mut left, mut shares) = (windows, vec![0; available.len()]);
    for (done, i) in order.iter().enumerate() {
        let share = left.div_ceil(available.len() - done).min(available[*i]);
        shares[*i] = share;
        left -= share;
    }
    shares
}

/// `count` of `available` windows in order: one at random out of each of `count` equal parts.
fn spread(count: usize, available: usize, random: &mut SplitMix) -> Vec<usize> {
    let count = count.min(available);
    let part = |i: usize| i * available / count;
    (0..count).map(|i| part(i) + random.below(part(i + 1) - part(i))).collect()
}

/// Which rows and domains the chosen windows touch.
fn account(stream: &Stream, chosen: &[usize], seq_len: usize, report: &mut SourceReport) {
    report.rows = stream.rows.len() + stream.dropped + stream.passed;
    report.rows_dropped = stream.dropped;
    report.tokens_available = stream.tokens.len();
    let (mut begin, mut window) = (0, 0);
    for (domain, end) in &stream.rows {
        let mut used = 0;
        while let Some(start) = chosen.get(window).map(|w| w * seq_len) {
            used += (start + seq_len).min(*end).saturating_sub(start.max(begin));
            if start + seq_len > *end {
                break;
            }
            window += 1;
        }
        report.rows_used += usize::from(used > 0);
        match report.domains.iter_mut().find(|d| d.0 == *domain) {
            Some(known) => known.1 += used,
            None => report.domains.push((domain.clone(), used)),
        }
        begin = *end;
    }
}

/// The windows as one text, without the BOS that each begins with. Where windows meet, it may give other tokens again.
pub fn text(windows: &[Vec<u32>], tokenizer: &Tokenizer) -> String {
    let bos = usize::from(Encoder::bos(tokenizer).is_some());
    let tokens: Vec<u32> = windows.iter().flat_map(|w| w.get(bos..).unwrap_or_default()).copied().collect();
    tokenizer.decode(&tokens)
}

fn digest(bytes: impl Iterator<Item = u8>) -> String {
    let bytes: Vec<u8> = bytes.collect();
    sha256(&bytes)
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is at least 1.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Bytes as tokens.
    struct Bytes;
    impl Encoder for Bytes {
        fn encode(&self, text: &str, _: bool) -> Result<Vec<u32>> {
            Ok(text.bytes().map(u32::from).collect())
        }
        fn bos(&self) -> Option<u32> {
            Some(256)
        }
        fn render_chat(&self, _: &[Message]) -> Result<String> {
            Err(Error::bad_input("no template"))
        }
    }
    impl Reader for Bytes {
        fn vocab(&self) -> usize {
            257
        }
        fn sample(
            &self,
            starts: &[(u32, u64)],
            len: usize,
            _: &mut dyn FnMut() -> Result<()>,
        ) -> Result<Vec<Vec<u32>>> {
            let window = |&(start, seed): &(u32, u64)| {
                std::iter::once(start).chain((1..len).map(|i| (seed % 200) as u32 + i as u32 % 7)).collect()
            };
            Ok(starts.iter().map(window).collect())
        }
    }

    fn amount(tokens: usize, seq_len: usize) -> Amount {
        Amount { tokens, seq_len, seed: 7 }
    }

    fn drawn(sources: &[Source], amount: Amount) -> Result<Drawn> {
        draw(sources, amount, &Bytes, &mut || Ok(()))
    }

    #[test]
    fn windows_come_from_every_part() {
        let mut random = SplitMix(3);
        for (count, available) in [(1, 1), (3, 10), (10, 10), (7, 100), (5, 3)] {
            let chosen = spread(count, available, &mut random);
            assert_eq!(chosen.len(), count.min(available));
            assert!(chosen.windows(2).all(|w| w[0] < w[1]), "{chosen:?}");
            let count = count.min(available);
            for (i, w) in chosen.iter().enumerate() {
                assert!((i * available / count..(i + 1) * available / count).contains(w), "{chosen:?}");
            }
        }
    }

    #[test]
    fn sources_share_the_windows() {
        assert_eq!(shares(10, &[100, 100]), [5, 5]);
        assert_eq!(shares(10, &[2, usize::MAX]), [2, 8]);
        assert_eq!(shares(10, &[2, 3]), [2, 3]);
        assert_eq!(shares(7, &[9, 1, 9]), [3, 1, 3]);
    }

    #[test]
    fn the_bundled_texts_are_drawn_from_all_domains() {
        let all = drawn(&[Source::Default], amount(60_000, 512)).unwrap();
        let domains: HashSet<_> = bundled::TEXTS.iter().map(|t| t.0).collect();
        let report = &all.report.sources[0];
        assert_eq!(report.domains.len(), domains.len());
        assert!(report.domains.iter().all(|d| d.1 > 0), "{:?}", report.domains);
        assert_eq!(report.domains.iter().map(|d| d.1).sum::<usize>(), all.report.tokens);
        assert!(all.windows.iter().all(|w| w.len() == 512 && w[0] == 256));
        assert_eq!(all, drawn(&[Source::Default], amount(60_000, 512)).unwrap());
        let other = drawn(&[Source::Default], Amount { seed: 8, ..amount(60_000, 512) }).unwrap();
        assert_ne!(all.report.sha256, other.report.sha256);
    }

    #[test]
    fn sources_can_be_mixed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.jsonl");
        std::fs::write(&file, "{\"text\":\"abcdefgh\"}\n{\"text\":\"\"}\n{\"text\":\"ijklmnop\"}\n").unwrap();
        let sources = [Source::File(file), Source::Model, Source::Random];
        let all = drawn(&sources, amount(45, 5)).unwrap();
        let used: Vec<usize> = all.report.sources.iter().map(|s| s.tokens_used).collect();
        assert_eq!(used, [15, 15, 15]);
        let rows = &all.report.sources[0];
        assert_eq!((rows.rows, rows.rows_used, rows.rows_dropped, rows.tokens_available), (3, 2, 1, 18));
        assert_eq!(all.windows.len(), 9);
    }

    #[test]
    fn useless_data_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fault = |name: &str, bytes: &[u8]| {
            let file = dir.path().join(name);
            std::fs::write(&file, bytes).unwrap();
            drawn(&[Source::File(file)], amount(100, 50)).unwrap_err().to_string()
        };
        assert!(fault("empty.txt", b" \n").contains("is empty"));
        assert!(fault("short.txt", b"abc").contains("4 tokens, fewer than one window of 50"));
        assert!(fault("latin.txt", b"caf\xe9").contains("not UTF-8"));
        assert!(fault("bad.jsonl", b"{").contains("line 1"));
        let fetch = |_: &str| Err(Error::bad_input("no network"));
        assert!(Source::parse("hf://datasets/a/b/c.txt", fetch).is_err());
        assert_eq!(Source::parse("a.parquet", fetch).is_ok(), cfg!(feature = "parquet"));
        assert_eq!(
            Source::parse("hf://datasets/a/b/c.parquet@main", |_| Ok(Some("x".into()))).is_ok(),
            cfg!(feature = "parquet")
        );
        assert!(drawn(&[], amount(100, 50)).is_err());
    }
}
