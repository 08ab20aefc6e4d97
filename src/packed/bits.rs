//! Small integers in 32-bit words, least significant bits first: the layout that all integer formats share, along rows
//! or along columns. No scales, no formats.

/// Words that `n` codes of `bits` fill.
pub fn words(n: usize, bits: u8) -> usize {
    (n * usize::from(bits)).div_ceil(32)
}

/// Packs every row of `codes` (`[rows, cols]`) densely into little-endian words: `[rows, words(cols, bits)]`.
pub fn pack_rows(codes: &[u8], cols: usize, bits: u8) -> Vec<u32> {
    let width = words(cols, bits);
    let mut out = vec![0; codes.len() / cols.max(1) * width];
    for (row, out) in codes.chunks_exact(cols.max(1)).zip(out.chunks_exact_mut(width.max(1))) {
        pack_row(row, bits, out);
    }
    out
}

fn pack_row(codes: &[u8], bits: u8, out: &mut [u32]) {
    let per_word = 32 / usize::from(bits);
    if 32 % bits == 0 {
        for (word, codes) in out.iter_mut().zip(codes.chunks(per_word)) {
            *word = codes.iter().rev().fold(0, |word, code| word.unbounded_shl(bits.into()) | u32::from(*code));
        }
        return;
    }
    let (mut pending, mut held) = (0u64, 0u32);
    let mut out = out.iter_mut();
    for code in codes {
        pending |= u64::from(*code) << held;
        held += u32::from(bits);
        if held >= 32 {
            if let Some(word) = out.next() {
                *word = pending as u32;
            }
            pending >>= 32;
            held -= 32;
        }
    }
    if let Some(word) = out.next() {
        *word = pending as u32;
    }
}

/// The `out.len()` codes that start `first` codes into the bit stream `bytes`. Bits beyond its end count as zero.
pub fn unpack(bytes: &[u8], first: usize, bits: u8, out: &mut [u8]) {
    match bits {
        8 => out.copy_from_slice(&bytes[first..first + out.len()]),
        4 if first.is_multiple_of(2) => {
            let pairs = out.as_chunks_mut::<2>().0;
            for (pair, byte) in pairs.iter_mut().zip(&bytes[first / 2..]) {
                *pair = [byte & 15, byte >> 4];
            }
            if !out.len().is_multiple_of(2) {
                let last = out.len() - 1;
                out[last] = bytes[(first + last) / 2] & 15;
            }
        }
        _ => {
            let mask = (1u16 << bits) - 1;
            let byte = |i: usize| u16::from(bytes.get(i).copied().unwrap_or(0));
            for (i, out) in out.iter_mut().enumerate() {
                let bit = (first + i) * usize::from(bits);
                *out = ((byte(bit / 8) | byte(bit / 8 + 1) << 8) >> (bit % 8) & mask) as u8;
            }
        }
    }
}

/// `[rows, cols]` turned into `[cols, rows]`, in tiles that stay in the cache.
pub fn transpose<T: Copy + Default>(x: &[T], rows: usize, cols: usize) -> Vec<T> {
    const TILE: usize = 32;
    let mut out = vec![T::default(); x.len()];
    for first_row in (0..rows).step_by(TILE) {
        for first_col in (0..cols).step_by(TILE) {
            for col in first_col..(first_col + TILE).min(cols) {
                for row in first_row..(first_row + TILE).min(rows) {
                    out[col * rows + row] = x[row * cols + col];
                }
            }
        }
    }
    out
}

pub fn to_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

pub fn from_bytes(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_packed_comes_back(bits in 1u8..=8, cols in 1usize..100, rows in 1usize..4, seed: u64) {
            let mut s = seed;
            let codes: Vec<u8> = (0..rows * cols).map(|_| {
                s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (s >> 33) as u8 & (u16::MAX >> (16 - bits)) as u8
            }).collect();
            let packed = pack_rows(&codes, cols, bits);
            prop_assert_eq!(packed.len(), rows * words(cols, bits));
            let bytes = to_bytes(&packed);
            for (row, codes) in codes.chunks(cols).enumerate() {
                let start = cols / 3;
                let mut out = vec![0; cols - start];
                unpack(&bytes[row * 4 * words(cols, bits)..], start, bits, &mut out);
                prop_assert_eq!(&out, &codes[start..]);
            }
            prop_assert_eq!(transpose(&transpose(&codes, rows, cols), cols, rows), codes);
        }
    }

    #[test]
    fn three_bits_run_on_across_words() {
        // AutoGPTQ: the eleventh code has two bits in the first word and one in the second.
        let mut codes = [0; 32];
        codes[10] = 0b111;
        assert_eq!(pack_rows(&codes, 32, 3), [0b11 << 30, 1, 0]);
    }
}
