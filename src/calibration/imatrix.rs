//! Importance matrices as llama.cpp stores them: the GGUF form, which is written, and the older `.dat`, which is written
//! on request; both are read. Also from the statistics of a run, several into one, and as the weights of a quantizer.
//! Sources: llama.cpp's `imatrix.cpp`, `imatrix-loader.cpp`, and `load_imatrix` in `quantize.cpp`.

use super::data::DataReport;
use super::totals::{Total, Totals, residue, single, with_residue};
use crate::disk::partial::PartialFile;
use crate::error::Hint;
use crate::gguf::{self, Metadata, TensorInfo};
use crate::model::Model;
use crate::quant::GgmlType;
use crate::source::Checkpoint;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
/// Ours, and ignored by llama.cpp: Σ |x| per channel.
const MAGNITUDES: &str = ".in_abs";
/// Ours, and ignored by llama.cpp: what the `f32` sums leave out, so that merging loses nothing. `[matrices, 2 * cols +
/// 1]` of I64: the residues of Σ x², those of Σ |x|, and the number of tokens.
const EXACT: &str = ".exact";

/// What is known of the inputs of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// `[matrices, cols]`: Σ x² over the tokens.
    pub sums: Vec<f32>,
    /// `[matrices, cols]`: Σ |x|, where it was collected.
    pub magnitudes: Option<Vec<f32>>,
    /// Tokens per matrix. One number may stand for all matrices.
    pub counts: Vec<u64>,
    /// The same sums in fixed point, for matrices made here; see [`Total`].
    pub exact: Option<Total>,
}

impl Entry {
    fn new(total: &Total) -> Self {
        let round = |sums: &[i128]| sums.iter().map(|sum| single(*sum)).collect::<Vec<f32>>();
        Self {
            sums: round(&total.sums),
            magnitudes: Some(round(&total.magnitudes)),
            counts: total.counts.clone(),
            exact: Some(total.clone()).filter(|total| !total.overflow),
        }
    }

    fn cols(&self) -> usize {
        self.sums.len() / self.counts.len().max(1)
    }

    /// Adds the sums of another data set; exactly where both know theirs exactly, else in `f32`.
    fn add(&mut self, other: &Entry) {
        let joined = self.exact.take().zip(other.exact.as_ref()).and_then(|(a, b)| a.joined(b));
        if let Some(total) = joined {
            *self = Entry::new(&total);
            return;
        }
        let add = |a: &mut [f32], b: &[f32]| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a = (f64::from(*a) + f64::from(*b)) as f32);
        };
        add(&mut self.sums, &other.sums);
        self.magnitudes = match (self.magnitudes.take(), &other.magnitudes) {
            (Some(mut a), Some(b)) => {
                add(&mut a, b);
                Some(a)
            }
            _ => None,
        };
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
    }

    /// The values of the tensor [`EXACT`]; `None` when they are not known, or too large.
    fn residues(&self) -> Option<Vec<i64>> {
        let (exact, cols) = (self.exact.as_ref()?, self.cols());
        let mut out = Vec::with_capacity(2 * exact.sums.len() + exact.counts.len());
        let parts = exact.sums.chunks(cols).zip(exact.magnitudes.chunks(cols));
        for ((sums, magnitudes), count) in parts.zip(&exact.counts) {
            for sum in sums.iter().chain(magnitudes) {
                out.push(residue(*sum)?);
            }
            out.push(i64::try_from(*count).ok()?);
        }
        Some(out)
    }

    /// Takes up what [`Entry::residues`] gave. `None`: they do not belong to these sums.
    fn restore(&mut self, residues: &[i64]) -> Option<()> {
        let (cols, magnitudes) = (self.cols(), self.magnitudes.as_ref()?);
        if residues.len() != (2 * cols + 1) * self.counts.len() {
            return None;
        }
        let mut total = Total::default();
        for (matrix, part) in residues.chunks_exact(2 * cols + 1).enumerate() {
            let range = matrix * cols..(matrix + 1) * cols;
            let (sums, rest) = part.split_at(cols);
            let join = |rounded: &[f32], residues: &[i64]| -> Option<Vec<i128>> {
                rounded.iter().zip(residues).map(|(r, residue)| with_residue(*r, *residue)).collect()
            };
            total.sums.extend(join(&self.sums[range.clone()], sums)?);
            total.magnitudes.extend(join(&magnitudes[range], &rest[..cols])?);
            let count = u64::try_from(rest[cols]).ok().filter(|count| *count as f32 == self.counts[matrix] as f32)?;
            total.counts.push(count);
        }
        self.counts.clone_from(&total.counts);
        self.exact = Some(total);
        Some(())
    }
}

/// An importance matrix: entries by GGUF tensor name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    /// The statistics of each matrix, by its name in GGUF.
    pub entries: BTreeMap<String, Entry>,
    /// What it was computed on, as its maker says.
    pub datasets: Vec<String>,
    /// Windows that were seen, in llama.cpp's count.
    pub chunks: u32,
    /// Tokens per chunk; 0 where the file does not say (`.dat`).
    pub chunk_size: u32,
}

/// What an expert gets that saw no token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnseenExperts {
    /// The mean over the layer's other experts.
    #[default]
    LayerMean,
    /// Equal weights for all channels, as llama-quantize does.
    Plain,
    /// Stop.
    Error,
}

impl UnseenExperts {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            UnseenExperts::LayerMean => "layer-mean",
            UnseenExperts::Plain => "plain",
            UnseenExperts::Error => "error",
        }
    }
}

/// Weights for a quantizer, and the tensors in which an expert had none of its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    /// `[matrices * cols]` by GGUF tensor name.
    pub by_name: BTreeMap<String, Vec<f32>>,
    /// Tensor and its experts without tokens.
    pub unseen: Vec<(String, Vec<usize>)>,
}

impl Imatrix {
    /// From the statistics of a run over `data`.
    pub(crate) fn new(totals: &Totals, data: &DataReport) -> Self {
        Self {
            entries: totals.0.iter().map(|(name, total)| (name.clone(), Entry::new(total))).collect(),
            datasets: data.sources.iter().map(|s| s.name.clone()).collect(),
            chunks: (data.tokens / data.seq_len.max(1)) as u32,
            chunk_size: data.seq_len as u32,
        }
    }

    /// Reads either form.
    ///
    /// Errors: `BadInput` for a file that is neither, lacks a part, or holds a number that is not finite; `Io`.
    pub fn open(path: &Path) -> Result<Self> {
        let mut magic = [0u8; 4];
        let mut file = crate::input::open(path)?;
        let is_gguf = std::io::Read::read_exact(&mut file, &mut magic).is_ok() && magic == gguf::MAGIC;
        let imatrix = if is_gguf { read_gguf(path)? } else { read_dat(path)? };
        if imatrix.entries.is_empty() {
            return Err(Error::bad_file(path, "the importance matrix has no entries"));
        }
        for (name, entry) in &imatrix.entries {
            let wrong = |what: &str| Err(Error::bad_file(path, what).tensor(name));
            if entry.counts.is_empty() || entry.sums.is_empty() || entry.sums.len() % entry.counts.len() != 0 {
                return wrong("its sums and counts do not match");
            }
            if entry.sums.iter().any(|s| !s.is_finite() || *s < 0.0) {
                return wrong("the importance is not a finite number of at least 0; calibrate again");
            }
        }
        Ok(imatrix)
    }

    /// Adds the sums and counts of `other`. Of matrices made here the result is that of one run over the windows of
    /// both, bit for bit and in any order; of others, in `f32`.
    ///
    /// Errors: `BadInput` naming the tensor that has another size in `other`.
    pub fn merge(&mut self, other: Imatrix) -> Result<()> {
        for (name, entry) in other.entries {
            let Some(known) = self.entries.get_mut(&name) else {
                self.entries.insert(name, entry);
                continue;
            };
            if known.sums.len() != entry.sums.len() || known.counts.len() != entry.counts.len() {
                let what = "has another size in the other importance matrix";
                return Err(Error::bad_input(what).tensor(name).hint("only matrices of one model can be merged"));
            }
            known.add(&entry);
        }
        self.datasets.extend(other.datasets);
        self.chunks += other.chunks;
        if self.chunk_size == 0 {
            self.chunk_size = other.chunk_size;
        }
        Ok(())
    }

    /// Writes llama.cpp's GGUF form, or the older one when the name ends in `.dat`. `extra` keys are added to the former.
    ///
    /// Errors: `Exists` when the file is there and `force` is not set; `Io`.
    pub fn write(&self, path: &Path, extra: &Metadata, force: bool) -> Result<()> {
        let file = PartialFile::create(path, force)?;
        self.write_into(&file, extra)?;
        file.finish()
    }

    /// The same into a file that gets its name later.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn write_into(&self, file: &PartialFile, extra: &Metadata) -> Result<()> {
        if file.target().extension().is_some_and(|e| e.eq_ignore_ascii_case("dat")) {
            return file.write_at(0, &self.encode_dat());
        }
        let (mut infos, data): (Vec<TensorInfo>, Vec<Vec<u8>>) = self.tensors().into_iter().unzip();
        let len = gguf::layout(&mut infos, gguf::DEFAULT_ALIGNMENT)?;
        let header = gguf::encode_header(&self.metadata(extra), &infos, gguf::DEFAULT_ALIGNMENT);
        let mut bytes = vec![0; len as usize];
        for (info, values) in infos.iter().zip(&data) {
            let place = bytes.get_mut(info.offset as usize..).into_iter().flatten();
            place.zip(values).for_each(|(place, v)| *place = *v);
        }
        file.write_at(0, &header)?;
        file.write_at(header.len() as u64, &bytes)
    }

    /// The keys of the GGUF form, and `extra`.
    pub(super) fn metadata(&self, extra: &Metadata) -> Metadata {
        let mut meta = Metadata::new();
        meta.set("general.type", "imatrix");
        meta.set("imatrix.datasets", self.datasets.clone());
        meta.set("imatrix.chunk_count", self.chunks);
        meta.set("imatrix.chunk_size", self.chunk_size);
        extra.iter().for_each(|(key, value)| meta.set(key, value.clone()));
        meta
    }

    /// The tensors of the GGUF form with their bytes, which have no place yet.
    pub(super) fn tensors(&self) -> Vec<(TensorInfo, Vec<u8>)> {
        let mut tensors = Vec::new();
        for (name, entry) in &self.entries {
            let mut put = |suffix: &str, ty: GgmlType, cols: usize, values: Vec<u8>| {
                let dims = vec![cols as u64, entry.counts.len() as u64];
                tensors.push((TensorInfo { name: format!("{name}{suffix}"), dims, ty, offset: 0 }, values));
            };
            let singles = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let counts: Vec<f32> = entry.counts.iter().map(|c| *c as f32).collect();
            put(SUMS, GgmlType::F32, entry.cols(), singles(&entry.sums));
            put(COUNTS, GgmlType::F32, 1, singles(&counts));
            if let Some(magnitudes) = &entry.magnitudes {
                put(MAGNITUDES, GgmlType::F32, entry.cols(), singles(magnitudes));
            }
            if let Some(residues) = entry.residues() {
                let bytes = residues.iter().flat_map(|v| v.to_le_bytes()).collect();
                put(EXACT, GgmlType::I64, 2 * entry.cols() + 1, bytes);
            }
        }
        tensors
    }

    /// Means times a number of calls, as readers of the older form divide it out again.
    fn encode_dat(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let seen: Vec<_> = self.entries.iter().filter(|(_, e)| e.counts.iter().any(|c| *c > 0)).collect();
        let put = |out: &mut Vec<u8>, v: usize| out.extend((v as i32).to_le_bytes());
        put(&mut out, seen.len());
        for (name, entry) in seen {
            put(&mut out, name.len());
            out.extend(name.as_bytes());
            let calls = entry.counts.iter().max().copied().unwrap_or(0).div_ceil(u64::from(self.chunk_size.max(1)));
            put(&mut out, calls as usize);
            put(&mut out, entry.sums.len());
            for (sums, count) in entry.sums.chunks(entry.cols()).zip(&entry.counts) {
                for sum in sums {
                    let mean = if *count > 0 { sum / *count as f32 } else { 1.0 };
                    out.extend((mean * calls as f32).to_le_bytes());
                }
            }
        }
        put(&mut out, self.chunks as usize);
        let dataset = self.datasets.last().map_or("", String::as_str);
        put(&mut out, dataset.len());
        out.extend(dataset.as_bytes());
        out
    }

    /// Whether this was made of `model`.
    ///
    /// Errors: `BadInput` naming `path` and the first tensor that has another size, or that the model does not have.
    pub fn check(&self, model: &Model, path: &Path) -> Result<()> {
        let hint = Hint::ImportanceOfModel { is_of_another: true };
        let mut known = 0;
        for (name, entry) in &self.entries {
            let Some(tensor) = model.tensors.iter().find(|t| t.name == *name) else {
                if name.starts_with("blk.") {
                    let what = "the importance matrix has this tensor, but the model does not";
                    return Err(Error::bad_file(path, what).tensor(name).hint(hint));
                }
                continue;
            };
            known += 1;
            let expected = tensor.cols() * tensor.row_count() / tensor.rows_per_matrix().max(1);
            if entry.sums.len() != expected {
                let what = format!("the importance matrix has {} channels, the model {expected}", entry.sums.len());
                return Err(Error::bad_file(path, what).tensor(name).hint(hint));
            }
        }
        if known == 0 {
            return Err(Error::bad_file(path, "the importance matrix has no tensor of this model").hint(hint));
        }
        Ok(())
    }

    /// The mean square of every channel: sum / count in `f32`, as llama-quantize does.
    ///
    /// Errors: `BadInput` for an unseen expert under [`UnseenExperts::Error`].
    pub fn weights(&self, unseen: UnseenExperts) -> Result<Weights> {
        let mut weights = Weights::default();
        for (name, entry) in &self.entries {
            let mut values = Vec::with_capacity(entry.sums.len());
            let missing: Vec<usize> = (0..entry.counts.len()).filter(|i| entry.counts[*i] == 0).collect();
            for (sums, count) in entry.sums.chunks(entry.cols()).zip(&entry.counts) {
                match *count {
                    0 => values.extend(std::iter::repeat_n(1.0, sums.len())),
                    n => values.extend(sums.iter().map(|s| s / n as f32)),
                }
            }
            if entry.counts.len() > 1 && !missing.is_empty() {
                if unseen == UnseenExperts::Error {
                    let what =
                        format!("{} of {} experts saw no token in calibration", missing.len(), entry.counts.len());
                    return Err(Error::bad_input(what).tensor(name).hint(Hint::UnseenExperts));
                }
                if unseen == UnseenExperts::LayerMean && missing.len() < entry.counts.len() {
                    let mean = mean(entry);
                    missing.iter().for_each(|e| values[e * mean.len()..][..mean.len()].copy_from_slice(&mean));
                }
                weights.unseen.push((name.clone(), missing));
            }
            weights.by_name.insert(name.clone(), values);
        }
        Ok(weights)
    }
}

/// The mean square per channel over the tokens of all experts.
fn mean(entry: &Entry) -> Vec<f32> {
    let tokens: u64 = entry.counts.iter().sum();
    let channel = |c: usize| entry.sums.iter().skip(c).step_by(entry.cols()).map(|s| f64::from(*s)).sum::<f64>();
    (0..entry.cols()).map(|c| (channel(c) / tokens.max(1) as f64) as f32).collect()
}

fn read_gguf(path: &Path) -> Result<Imatrix> {
    let file = Checkpoint::open(path)?;
    let meta = file.gguf().ok_or_else(|| Error::bad_file(path, "is not a GGUF file"))?;
    let not_one =
        |what: &str| Error::bad_file(path, what.to_string()).hint(Hint::ImportanceOfModel { is_of_another: false });
    if meta.str("general.type") != Some("imatrix") {
        return Err(not_one("is a GGUF file, but not an importance matrix"));
    }
    let number = |key: &str| {
        meta.uint(key).and_then(|v| u32::try_from(v).ok()).ok_or_else(|| not_one(&format!("the key {key} is missing")))
    };
    let datasets = meta.strings("imatrix.datasets").ok_or_else(|| not_one("the key imatrix.datasets is missing"))?;
    let mut imatrix = Imatrix {
        entries: BTreeMap::new(),
        datasets: datasets.to_vec(),
        chunks: number("imatrix.chunk_count")?,
        chunk_size: number("imatrix.chunk_size")?,
    };
    let values = |name: &str| -> Result<Option<Vec<f32>>> {
        let Some(tensor) = file.find(name).map(|i| &file.tensors()[i]) else { return Ok(None) };
        if tensor.dtype != crate::source::Dtype::Ggml(GgmlType::F32) {
            return Err(Error::bad_file(path, format!("is of type {}, not F32", tensor.dtype)).tensor(name));
        }
        let mut out = vec![0.0; tensor.elements()];
        file.read_f32(tensor, 0..out.len(), &mut Vec::new(), &mut out)?;
        Ok(Some(out))
    };
    let integers = |name: &str| -> Result<Option<Vec<i64>>> {
        let Some(tensor) = file.find(name).map(|i| &file.tensors()[i]) else { return Ok(None) };
        if tensor.dtype != crate::source::Dtype::Ggml(GgmlType::I64) {
            return Err(Error::bad_file(path, format!("is of type {}, not I64", tensor.dtype)).tensor(name));
        }
        let mut bytes = vec![0; tensor.bytes() as usize];
        file.read(tensor, 0, &mut bytes)?;
        Ok(Some(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()))
    };
    for tensor in file.tensors() {
        if let Some(name) = tensor.name.strip_suffix(COUNTS)
            && file.find(&format!("{name}{SUMS}")).is_none()
        {
            return Err(Error::bad_file(path, "has counts, but no sums").tensor(name));
        }
        let Some(name) = tensor.name.strip_suffix(SUMS) else { continue };
        let sums = values(&tensor.name)?.unwrap_or_default();
        let counts = values(&format!("{name}{COUNTS}"))?;
        let counts = counts.ok_or_else(|| Error::bad_file(path, "has sums, but no counts").tensor(name))?;
        if counts.iter().any(|c| !(0.0..1e18).contains(c)) {
            return Err(Error::bad_file(path, "a token count is not a number of at least 0").tensor(name));
        }
        let magnitudes = values(&format!("{name}{MAGNITUDES}"))?.filter(|m| m.len() == sums.len());
        let counts = counts.iter().map(|c| c.round() as u64).collect();
        let mut entry = Entry { sums, magnitudes, counts, exact: None };
        let sound = entry.sums.iter().all(|s| s.is_finite() && *s >= 0.0);
        if let Some(residues) = integers(&format!("{name}{EXACT}"))?.filter(|_| sound)
            && entry.restore(&residues).is_none()
        {
            return Err(Error::bad_file(path, "the exact sums are not those of the rounded ones").tensor(name));
        }
        imatrix.entries.insert(name.to_string(), entry);
    }
    Ok(imatrix)
}

fn read_dat(path: &Path) -> Result<Imatrix> {
    let bytes = crate::input::read(path)?;
    let bad =
        || Error::bad_file(path, "is not an importance matrix").hint(Hint::ImportanceOfModel { is_of_another: false });
    let mut rest = bytes.as_slice();
    let count = int(&mut rest).filter(|n| (1..1_000_000).contains(n)).ok_or_else(bad)?;
    let mut imatrix = Imatrix::default();
    for _ in 0..count {
        let entry = dat_entry(&mut rest).ok_or_else(bad)?;
        imatrix.entries.insert(entry.0, entry.1);
    }
    // What follows is optional: chunks and the data set's name.
    if let Some(chunks) = int(&mut rest) {
        imatrix.chunks = u32::try_from(chunks).unwrap_or(0);
        if let Some(name) = int(&mut rest).and_then(|n| take(&mut rest, usize::try_from(n).ok()?)) {
            imatrix.datasets.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Ok(imatrix)
}

fn dat_entry(rest: &mut &[u8]) -> Option<(String, Entry)> {
    let len = usize::try_from(int(rest)?).ok().filter(|n| (1..4096).contains(n))?;
    let name = std::str::from_utf8(take(rest, len)?).ok()?.to_string();
    let calls = u64::try_from(int(rest)?).ok()?;
    let n = usize::try_from(int(rest)?).ok().filter(|n| *n > 0)?;
    let values = take(rest, n.checked_mul(4)?)?;
    let sums = values.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    // Without a number of calls the sums are the means already.
    Some((name, Entry { sums, magnitudes: None, counts: vec![calls.max(1)], exact: None }))
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(n)?;
    *rest = tail;
    Some(head)
}

fn int(rest: &mut &[u8]) -> Option<i32> {
    Some(i32::from_le_bytes(take(rest, 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::totals::fixed;
    use super::*;

    fn example() -> Imatrix {
        let entry = |sums: &[f32], counts: &[u64]| {
            let sums: Vec<i128> = sums.iter().map(|s| fixed(f64::from(*s)).unwrap()).collect();
            Entry::new(&Total { magnitudes: sums.clone(), sums, counts: counts.to_vec(), overflow: false })
        };
        Imatrix {
            entries: BTreeMap::from([
                ("blk.0.attn_q.weight".to_string(), entry(&[1.0, 2.0, 3.0], &[2])),
                ("blk.0.ffn_down_exps.weight".to_string(), entry(&[2.0, 4.0, 0.0, 0.0, 6.0, 9.0], &[2, 0, 3])),
            ]),
            datasets: vec!["a.txt".into()],
            chunks: 3,
            chunk_size: 512,
        }
    }

    #[test]
    fn both_forms_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let (gguf, dat) = (dir.path().join("i.gguf"), dir.path().join("i.dat"));
        let imatrix = example();
        imatrix.write(&gguf, &Metadata::new(), false).unwrap();
        assert_eq!(Imatrix::open(&gguf).unwrap(), imatrix);
        imatrix.write(&dat, &Metadata::new(), false).unwrap();
        let old = Imatrix::open(&dat).unwrap();
        assert_eq!((old.chunks, &old.datasets), (3, &imatrix.datasets));
        let plain = imatrix.weights(UnseenExperts::Plain).unwrap();
        assert_eq!(old.weights(UnseenExperts::Plain).unwrap().by_name, plain.by_name);
    }

    #[test]
    fn unseen_experts_get_what_was_asked_for() {
        let weights = |policy| example().weights(policy).map(|w| w.by_name["blk.0.ffn_down_exps.weight"].clone());
        assert_eq!(weights(UnseenExperts::Plain).unwrap(), [1.0, 2.0, 1.0, 1.0, 2.0, 3.0]);
        assert_eq!(weights(UnseenExperts::LayerMean).unwrap(), [1.0, 2.0, 8.0 / 5.0, 13.0 / 5.0, 2.0, 3.0]);
        assert!(weights(UnseenExperts::Error).unwrap_err().to_string().contains("1 of 3 experts"));
        let all = example().weights(UnseenExperts::Plain).unwrap();
        assert_eq!(all.unseen, [("blk.0.ffn_down_exps.weight".to_string(), vec![1])]);
        assert_eq!(all.by_name["blk.0.attn_q.weight"], [0.5, 1.0, 1.5]);
    }

    #[test]
    fn merging_adds() {
        let mut merged = example();
        merged.merge(example()).unwrap();
        let entry = &merged.entries["blk.0.ffn_down_exps.weight"];
        assert_eq!(entry.sums, [4.0, 8.0, 0.0, 0.0, 12.0, 18.0]);
        assert_eq!((&entry.counts[..], merged.chunks, merged.datasets.len()), (&[4, 0, 6][..], 6, 2));
        let mut other = example();
        other.entries.get_mut("blk.0.attn_q.weight").unwrap().sums.pop();
        assert!(merged.merge(other).unwrap_err().to_string().contains("another size"));
    }

    #[test]
    fn damaged_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i.gguf");
        let mut imatrix = example();
        imatrix.entries.get_mut("blk.0.attn_q.weight").unwrap().sums[1] = f32::NAN;
        imatrix.write(&path, &Metadata::new(), false).unwrap();
        assert!(Imatrix::open(&path).unwrap_err().to_string().contains("not a finite number"));
        let dat = dir.path().join("i.dat");
        example().write(&dat, &Metadata::new(), false).unwrap();
        let bytes = std::fs::read(&dat).unwrap();
        for cut in 0..bytes.len() - 13 {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(Imatrix::open(&path).is_err(), "{cut}");
        }
        std::fs::write(&path, "text that is no matrix").unwrap();
        assert!(Imatrix::open(&path).unwrap_err().to_string().contains("not an importance matrix"));
    }
}
