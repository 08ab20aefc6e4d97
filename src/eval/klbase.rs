//! Reader and writer of llama-perplexity's `--kl-divergence-base` file: the base model's log-probabilities of every
//! scored position in 16 bits, with the tokens they belong to. Little-endian throughout:
//!
//! `_logits_` · i32 ctx · i32 vocab · i32 chunks · i32 tokens `[chunks, ctx]` · then per scored position
//! (`ctx - 1 - ctx / 2` a chunk) f32 scale · f32 lowest ln p · u16 codes `[vocab rounded up to even]`, with
//! ln p = scale · code + lowest. Logits further than 16 below the row's largest share code 0.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::windows::{Method, Windows};
use crate::disk::partial::{PartialFile, Stream};
use crate::error::Hint;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"_logits_";
/// Entries at or below this ln p are not told apart by the file and are left out of KL sums, as llama-perplexity does.
pub const FLOOR: f32 = -16.0;

fn row_bytes(vocab: usize) -> usize {
    2 * (vocab.next_multiple_of(2) + 4)
}

/// An open base file, read front to back.
pub struct KlBaseReader {
    path: PathBuf,
    file: BufReader<File>,
    vocab: usize,
    ctx: usize,
    chunks: usize,
    tokens: Vec<u32>,
    buffer: Vec<u8>,
}

impl KlBaseReader {
    /// Opens `path` and checks that header and length agree, before anything is allocated from the header's figures.
    pub fn open(path: &Path) -> Result<KlBaseReader> {
        let io = |e| Error::io(path, e);
        let file = crate::input::open(path)?;
        let len = file.metadata().map_err(io)?.len();
        let mut file = BufReader::with_capacity(1 << 20, file);
        let mut head = [0u8; 20];
        if len < head.len() as u64 {
            return Err(Error::bad_file(path, "is too short for a KL divergence base file"));
        }
        file.read_exact(&mut head).map_err(io)?;
        let (magic, numbers) = head.split_at(8);
        if magic != MAGIC {
            return Err(Error::bad_file(path, "is not a KL divergence base file (it does not start with _logits_)")
                .hint("write one with llama-perplexity's --kl-divergence-base FILE on the base model"));
        }
        let [ctx, vocab, chunks] = [0, 4, 8].map(|at| i32::from_le_bytes(std::array::from_fn(|i| numbers[at + i])));
        let plausible = (4..=1 << 24).contains(&ctx) && (1..=1 << 24).contains(&vocab) && chunks > 0;
        let (ctx, vocab, chunks) = (ctx as usize, vocab as usize, chunks as usize);
        let expected = |rows: u128| 20 + chunks as u128 * (ctx as u128 * 4 + rows * row_bytes(vocab) as u128);
        if !plausible || expected((ctx - 1 - ctx / 2) as u128) != len as u128 {
            return Err(Error::bad_file(
                path,
                format!(
                    "header says {chunks} chunks of {ctx} tokens and a vocabulary of {vocab}, which does not fit its {len} bytes"
                ),
            )
            .hint("the file is damaged or was cut off: write it again"));
        }
        let mut raw = vec![0u8; chunks * ctx * 4];
        file.read_exact(&mut raw).map_err(io)?;
        let tokens: Vec<u32> = raw.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        if let Some(bad) = tokens.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::bad_file(path, format!("holds token {bad}, outside its vocabulary of {vocab}")));
        }
        Ok(KlBaseReader {
            path: path.to_path_buf(),
            file,
            vocab,
            ctx,
            chunks,
            tokens,
            buffer: vec![0; row_bytes(vocab)],
        })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Logits of a position.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The token stream that the file was made from, cut to whole chunks.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The windows that the file was made with; `bos` as the tokenizer of the models says.
    pub fn windows(&self, bos: Option<u32>) -> Windows {
        Windows { method: Method::LlamaCpp { ctx: self.ctx }, bos, eos: None, count: self.chunks }
    }

    /// Reads the log-probabilities of the next scored position into `out` `[vocab]`.
    pub fn next_row(&mut self, out: &mut [f32]) -> Result<()> {
        self.file.read_exact(&mut self.buffer).map_err(|e| Error::io(&self.path, e))?;
        let (head, codes) = self.buffer.split_at(8);
        let [scale, lowest] = [0, 4].map(|at| f32::from_le_bytes(std::array::from_fn(|i| head[at + i])));
        if !scale.is_finite() || !lowest.is_finite() {
            return Err(Error::bad_file(&self.path, "holds a row with a scale that is not finite")
                .hint("the base model gave NaN logits, or the file is damaged: write it again"));
        }
        for (o, code) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
            *o = scale * u16::from_le_bytes(*code) as f32 + lowest;
        }
        Ok(())
    }
}

/// Writes a base file beside its final name.
pub struct KlBaseWriter {
    path: PathBuf,
    file: BufWriter<Stream>,
    vocab: usize,
    rows_left: usize,
    buffer: Vec<u8>,
}

impl KlBaseWriter {
    /// `stream` holds the original tokens, without the BOS that is put over the first of each chunk.
    ///
    /// Fails if the windows are not llama-perplexity's: the format has no room for a stride.
    pub fn create(path: &Path, windows: &Windows, vocab: usize, stream: &[u32]) -> Result<KlBaseWriter> {
        let Method::LlamaCpp { ctx } = windows.method else {
            let what = "a KL divergence base file cannot hold strided windows";
            return Err(Error::request(what).hint(Hint::NoStride));
        };
        let file = Stream::new(PartialFile::create(path, true)?);
        let mut head = MAGIC.to_vec();
        for number in [ctx, vocab, windows.count] {
            let number = i32::try_from(number)
                .map_err(|_| Error::unsupported(format!("{number} is too large for a KL divergence base file")))?;
            head.extend_from_slice(&number.to_le_bytes());
        }
        head.extend(stream.iter().take(windows.count * ctx).flat_map(|t| t.to_le_bytes()));
        let mut writer = KlBaseWriter {
            path: path.to_path_buf(),
            file: BufWriter::with_capacity(1 << 20, file),
            vocab,
            rows_left: windows.scored_tokens(),
            buffer: Vec::with_capacity(row_bytes(vocab)),
        };
        writer.write(&head)?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, e))
    }

    /// Appends the logits `[vocab]` of the next scored position; `lse` is their log-sum-exp.
    pub fn row(&mut self, logits: &[f32], lse: f64) -> Result<()> {
        let max = logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
        let min = logits.iter().fold(f32::INFINITY, |m, &v| m.min(v)).max(max + FLOOR);
        let scale = (max - min) / 65535.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.extend_from_slice(&scale.to_le_bytes());
        buffer.extend_from_slice(&((min as f64 - lse) as f32).to_le_bytes());
        for &v in logits {
            let code = if v > min { (inverse * (v - min)).round_ties_even() as u16 } else { 0 };
            buffer.extend_from_slice(&code.to_le_bytes());
        }
        buffer.resize(row_bytes(self.vocab), 0);
        self.write(&buffer)?;
        self.buffer = buffer;
        self.rows_left = self.rows_left.saturating_sub(1);
        Ok(())
    }

    /// The file, which lacks nothing but its name.
    pub fn finish(self) -> Result<PartialFile> {
        if self.rows_left > 0 {
            return Err(Error::Internal(format!("KL divergence base file lacks {} rows", self.rows_left)));
        }
        let path = self.path;
        let stream = self.file.into_inner().map_err(|e| Error::io(&path, e.into_error()))?;
        Ok(stream.file)
    }
}

#[cfg(test)]
mod tests {
    use super::super::softmax;
    use super::*;

    fn write(path: &Path, vocab: usize) -> Vec<Vec<f32>> {
        let stream: Vec<u32> = (0..20).map(|i| i % vocab as u32).collect();
        let windows = Windows::plan(Method::LlamaCpp { ctx: 8 }, 20, None, None).unwrap();
        let mut writer = KlBaseWriter::create(path, &windows, vocab, &stream).unwrap();
        let rows: Vec<Vec<f32>> =
            (0..6).map(|r| (0..vocab).map(|i| ((i * 7 + r * 3) % 11) as f32 * 2.5).collect()).collect();
        for row in &rows {
            writer.row(row, softmax::row(row).unwrap().lse).unwrap();
        }
        writer.finish().unwrap().finish().unwrap();
        rows
    }

    #[test]
    fn what_is_written_is_read_to_within_half_a_step() {
        let dir = tempfile::tempdir().unwrap();
        for vocab in [11, 12] {
            let path = dir.path().join("base");
            let rows = write(&path, vocab);
            let mut reader = KlBaseReader::open(&path).unwrap();
            assert_eq!(reader.tokens().len(), 16);
            assert_eq!(reader.windows(None).scored_tokens(), 6);
            let mut out = vec![0.0; vocab];
            for row in &rows {
                reader.next_row(&mut out).unwrap();
                let lse = softmax::row(row).unwrap().lse as f32;
                let max = row.iter().fold(0f32, |m, &v| m.max(v));
                for (o, v) in out.iter().zip(row) {
                    assert!((o - (v.max(max - 16.0) - lse)).abs() < 16.0 / 65535.0 * 0.51 + 2e-6);
                }
            }
            assert!(reader.next_row(&mut out).is_err());
        }
    }

    #[test]
    fn damage_is_found_before_memory_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base");
        write(&path, 11);
        let sound = std::fs::read(&path).unwrap();
        let fault = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            KlBaseReader::open(&path).err().unwrap().to_string()
        };
        assert!(fault(&sound[..sound.len() - 1]).contains("does not fit"));
        assert!(fault(&sound[..12]).contains("too short"));
        assert!(fault(&[b"GGUF", &sound[4..]].concat()).contains("_logits_"));
        let mut huge = sound.clone();
        huge[8..20].copy_from_slice(&[[0xff, 0xff, 0xff, 0x7f]; 3].concat());
        assert!(fault(&huge).contains("does not fit"));
        let mut token = sound.clone();
        token[20] = 200;
        assert!(fault(&token).contains("token 200"));
    }
}
