//! Experts stored in OCP's MXFP4 as `{name}_blocks` and `{name}_scales` (GPT-OSS): each pair appears as one tensor
//! `{name}.mxfp4` in ggml's blocks, bit for bit the same numbers.

use super::{Checkpoint, Dtype, TensorMeta};
use crate::dtype::GgmlType;
use crate::{Error, Result};
use std::collections::HashMap;

/// Bytes of codes of a block of 32, and of a block of ggml's: one scale, then the codes.
const CODES: usize = 16;
const BLOCK: usize = 17;

/// The stored pair behind a tensor.
#[derive(Debug)]
pub(super) struct Pair {
    blocks: TensorMeta,
    scales: TensorMeta,
}

/// The tensors with every pair as one, and the pairs by the name under which they appear.
pub(super) fn joined(tensors: &[TensorMeta]) -> (Vec<TensorMeta>, HashMap<String, Pair>) {
    let (mut shown, mut pairs) = (Vec::with_capacity(tensors.len()), HashMap::new());
    let find = |name: String| tensors.iter().find(|t| t.name == name);
    for t in tensors {
        if t.name.strip_suffix("_scales").is_some_and(|stem| find(format!("{stem}_blocks")).is_some()) {
            continue;
        }
        let pair = t.name.strip_suffix("_blocks").and_then(|stem| Some((stem, find(format!("{stem}_scales"))?)));
        let Some((stem, scales)) = pair.filter(|(_, scales)| fit(t, scales)) else {
            shown.push(t.clone());
            continue;
        };
        let outer = &t.shape[..t.shape.len() - 2];
        let shape = [outer, &[t.shape[t.shape.len() - 2] * 2 * CODES]].concat();
        let name = format!("{stem}.mxfp4");
        let bytes = scales.elements() as u64 * BLOCK as u64;
        let range = t.range.start..t.range.start.saturating_add(bytes);
        shown.push(TensorMeta { name: name.clone(), dtype: Dtype::Ggml(GgmlType::MXFP4), shape, file: t.file, range });
        pairs.insert(name, Pair { blocks: t.clone(), scales: scales.clone() });
    }
    (shown, pairs)
}

/// Whether there is a scale for each block of 16 bytes.
fn fit(blocks: &TensorMeta, scales: &TensorMeta) -> bool {
    let bytes = |t: &TensorMeta| t.dtype == Dtype::U8;
    bytes(blocks)
        && bytes(scales)
        && blocks.shape.len() >= 3
        && blocks.shape.split_last() == Some((&CODES, scales.shape.as_slice()))
}

/// Bytes of ggml's blocks, from `offset` on; whole blocks only.
pub(super) fn read(ckpt: &Checkpoint, pair: &Pair, offset: u64, out: &mut [u8]) -> Result<()> {
    if !offset.is_multiple_of(BLOCK as u64) || !out.len().is_multiple_of(BLOCK) {
        return Err(Error::Internal(format!("{} bytes at {offset} are not blocks of MXFP4", out.len())));
    }
    let (first, n) = (offset / BLOCK as u64, out.len() / BLOCK);
    let (mut codes, mut scales) = (vec![0; n * CODES], vec![0; n]);
    ckpt.read(&pair.blocks, first * CODES as u64, &mut codes)?;
    ckpt.read(&pair.scales, first, &mut scales)?;
    for ((block, codes), scale) in out.chunks_exact_mut(BLOCK).zip(codes.chunks_exact(CODES)).zip(scales) {
        block[0] = scale;
        reorder(codes, &mut block[1..]);
    }
    Ok(())
}

/// Stored: byte `i` holds elements `2 i` and `2 i + 1`, the lower four bits first. ggml's byte `i`: elements `i` and
/// `i + 16`.
fn reorder(stored: &[u8], out: &mut [u8]) {
    let code = |i: usize| stored[i / 2] >> (4 * (i % 2)) & 15;
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = code(i) | code(i + CODES) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_keep_their_places() {
        let stored: Vec<u8> = (0..16).map(|i| (2 * i % 16) | (((2 * i + 1) % 16) << 4)).collect();
        let mut out = [0; 16];
        reorder(&stored, &mut out);
        let element = |i: usize| if i < 16 { out[i] & 15 } else { out[i - 16] >> 4 };
        assert!((0..32).all(|i| element(i) == (i % 16) as u8));
    }

    #[test]
    fn only_pairs_that_fit_are_joined() {
        let meta = |name: &str, shape: &[usize]| {
            let bytes = shape.iter().product::<usize>() as u64;
            TensorMeta { name: name.into(), dtype: Dtype::U8, shape: shape.to_vec(), file: 0, range: 0..bytes }
        };
        let (shown, pairs) = joined(&[meta("a_blocks", &[2, 3, 4, 16]), meta("a_scales", &[2, 3, 4])]);
        assert_eq!((shown.len(), shown[0].shape.as_slice(), pairs.len()), (1, &[2, 3, 128][..], 1));
        assert_eq!(shown[0].bytes(), 24 * 17);
        let (shown, pairs) = joined(&[meta("a_blocks", &[2, 3, 4, 16]), meta("b_scales", &[2, 3, 4])]);
        assert_eq!((shown.len(), pairs.len()), (2, 0));
    }
}
