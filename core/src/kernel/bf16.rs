//! Products of numbers rounded to bfloat16, summed in `f32`: what models are mostly trained and run in, and twice as
//! fast as `f32` where the machine has instructions for pairs of such numbers (AVX512-BF16). Where it has not, the same
//! rounded numbers are multiplied as `f32`; products of two of them are exact, so only the order of additions differs.
//! For statistics over many tokens; evaluation keeps to [`super::matmul`].

use super::{Output, RowSource};
use crate::isa::multiversion;
use std::ops::Range;

/// The nearest bfloat16 (ties to even), as its bits; what is no number stays none.
#[inline(always)]
fn bits(v: f32) -> u32 {
    let b = v.to_bits();
    let rounded = b.wrapping_add(0x7fff + (b >> 16 & 1)) >> 16;
    if v.is_nan() { b >> 16 | 0x40 } else { rounded }
}

multiversion! {
    /// Rounds every number to bfloat16.
    pub fn round(x: &mut [f32]) {
        for v in x {
            *v = f32::from_bits(bits(*v) << 16);
        }
    }

    /// Two rows as one of pairs, the first row in the low halves.
    pub fn join(low: &[f32], high: &[f32], out: &mut [u32]) {
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            *out = bits(*low) | bits(*high) << 16;
        }
    }

    /// A row as pairs of neighbours; after an odd number of them the last has a zero.
    pub fn pairs(x: &[f32], out: &mut [u32]) {
        let (whole, rest) = x.as_chunks::<2>();
        for (out, [low, high]) in out.iter_mut().zip(whole) {
            *out = bits(*low) | bits(*high) << 16;
        }
        if let ([last], Some(out)) = (rest, out.get_mut(whole.len())) {
            *out = bits(*last);
        }
    }
}

/// A matrix with its weights rounded.
struct Rounded<'a>(&'a dyn RowSource);

impl RowSource for Rounded<'_> {
    fn rows(&self) -> usize {
        self.0.rows()
    }

    fn cols(&self) -> usize {
        self.0.cols()
    }

    fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        self.0.decode(rows, out);
        round(out);
    }
}

/// As [`super::matmul`], of rounded inputs and weights.
pub fn matmul(x: &[f32], w: &dyn RowSource, rows: Range<usize>, y: Output<'_>) {
    #[cfg(target_arch = "x86_64")]
    if let Some(isa) = crate::isa::Isa::active().avx512_bf16()
        && x.len() > super::DOT_ROWS * w.cols()
        && !rows.is_empty()
    {
        return fast::matmul(isa, x, w, rows, y);
    }
    let mut x = x.to_vec();
    round(&mut x);
    super::matmul(&x, &Rounded(w), rows, y);
}

#[cfg(target_arch = "x86_64")]
pub mod fast {
    //! With AVX512-BF16: the loops of [`gemm`] over pairs instead of numbers.

    use super::super::gemm::{self, PANEL};
    use super::super::{DECODE_ROWS, Output, ROW_BLOCK, RowSource, row_blocks};
    use super::pairs;
    use crate::isa::Avx512Bf16;
    use bytemuck::{cast_slice, cast_slice_mut};
    use faer::MatMut;
    use rayon::prelude::*;
    use std::arch::x86_64::*;
    use std::cell::RefCell;
    use std::ops::Range;

    /// Input rows of a tile.
    const TILE: usize = 12;
    /// Pairs that are multiplied before the next: a panel's share stays near the core.
    const DEPTH: usize = 512;
    /// The same where both sides are panels.
    const PANEL_DEPTH: usize = 256;

    thread_local! {
        static DECODED: RefCell<(Vec<f32>, Vec<u32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
    }

    pub(super) fn matmul(isa: Avx512Bf16, x: &[f32], w: &dyn RowSource, rows: Range<usize>, y: Output<'_>) {
        let (cols, out) = (w.cols(), rows.len());
        let (n, depth) = (x.len() / cols, cols.div_ceil(2));
        let mut input = vec![0u32; n * depth];
        let converted = input.par_chunks_exact_mut(depth).zip(x.par_chunks_exact(cols));
        converted.with_min_len(32).for_each(|(out, x)| pairs(x, out));
        let input = input.as_slice();
        let Output { data, stride, at } = y;
        // Column-major [out, n]: the transpose of the row-major result.
        let y = &mut data[at..at + (n - 1) * stride + out];
        let y = MatMut::from_column_major_slice_with_stride_mut(y, out, n, stride);
        row_blocks(y, ROW_BLOCK).into_par_iter().enumerate().for_each(|(block, y)| {
            DECODED.with_borrow_mut(|(decoded, scratch)| {
                let (first, count) = (rows.start + block * ROW_BLOCK, y.nrows());
                decoded.resize(DECODE_ROWS * cols, 0.0);
                scratch.resize((ROW_BLOCK + DECODE_ROWS) * depth, 0);
                let (panels, joined) = scratch.split_at_mut(ROW_BLOCK * depth);
                for row in (0..count).step_by(DECODE_ROWS) {
                    let some = (count - row).min(DECODE_ROWS);
                    w.decode(first + row..first + row + some, &mut decoded[..some * cols]);
                    for (out, row) in joined.chunks_exact_mut(depth).zip(decoded.chunks_exact(cols)).take(some) {
                        pairs(row, out);
                    }
                    let panel = &mut panels[row / PANEL * PANEL * depth..];
                    let (from, to) = (cast_slice(&joined[..some * depth]), cast_slice_mut(panel));
                    // Only whole words move, whatever they stand for.
                    gemm::pack(isa.avx512(), from, depth, some, depth, to, row % PANEL);
                }
                // SAFETY: `isa` proves the instructions; the `n` rows of `count` floats are those of `y`, which is this
                // task's alone.
                unsafe { multiply(input, (n, depth), panels, count, y.as_ptr_mut(), stride) };
            });
        });
    }

    /// `y[n, rows] = x[n, depth] · w[depth, rows]` in pairs, `w` in panels. Row `t` of `y` begins at `y + t * stride`.
    ///
    /// # Safety
    /// The machine has AVX512-BF16, and for every `t < n` the `rows` floats from `y + t * stride` on are there and nobody
    /// else uses them meanwhile.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn multiply(x: &[u32], (n, depth): (usize, usize), panels: &[u32], rows: usize, y: *mut f32, stride: usize) {
        assert!(x.len() >= n * depth && panels.len() >= rows.div_ceil(PANEL) * PANEL * depth);
        for from in (0..depth).step_by(DEPTH) {
            let (some, add) = (DEPTH.min(depth - from), from > 0);
            let mut t = 0;
            while t < n {
                let tile = match n - t {
                    TILE.. => TILE,
                    8.. => 8,
                    4.. => 4,
                    _ => 1,
                };
                for row in (0..rows).step_by(PANEL) {
                    // SAFETY: inside `x`, `panels` (both asserted above) and, by the caller's promise, `y`.
                    unsafe {
                        let x = (x.as_ptr().add(t * depth + from), depth);
                        let w = panels.as_ptr().add(row * depth + from * PANEL);
                        let y = (y.add(t * stride + row), stride);
                        match tile {
                            TILE => one_tile::<TILE, 1>(x, w, some, y, rows - row, add),
                            8 => one_tile::<8, 1>(x, w, some, y, rows - row, add),
                            4 => one_tile::<4, 1>(x, w, some, y, rows - row, add),
                            _ => one_tile::<1, 1>(x, w, some, y, rows - row, add),
                        }
                    }
                }
                t += tile;
            }
        }
    }

    /// As [`gemm::multiply_panels`], of panels of pairs.
    #[inline]
    pub fn multiply_panels(_: Avx512Bf16, a: &[u32], b: &[u32], depth: usize, y: &mut [f32], stride: usize) {
        // SAFETY: the machine has the instructions.
        unsafe { multiply_all(a, b, depth, y, stride) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn multiply_all(a: &[u32], b: &[u32], depth: usize, y: &mut [f32], stride: usize) {
        let panel = depth * PANEL;
        let (rows, columns) = (a.len() / panel * PANEL, b.len() / panel * PANEL);
        assert!(depth > 0 && rows > 0 && columns > 0 && columns <= stride && y.len() >= (rows - 1) * stride + columns);
        for from in (0..depth).step_by(PANEL_DEPTH) {
            let (some, add) = (PANEL_DEPTH.min(depth - from), from > 0);
            for (i, a) in a.chunks_exact(panel).enumerate() {
                for (j, b) in b.chunks_exact(panel).enumerate() {
                    // SAFETY: lanes 0 .. 12, 12 .. 24 and 24 .. 32 of `some` rows of both panels, and as many rows of
                    // `y` with a whole panel of columns, are inside the slices (asserted above).
                    unsafe {
                        let (a, b) = (a.as_ptr().add(from * PANEL), b.as_ptr().add(from * PANEL));
                        let y = y.as_mut_ptr().add(i * PANEL * stride + j * PANEL);
                        one_tile::<12, PANEL>((a, 1), b, some, (y, stride), PANEL, add);
                        one_tile::<12, PANEL>((a.add(12), 1), b, some, (y.add(12 * stride), stride), PANEL, add);
                        one_tile::<8, PANEL>((a.add(24), 1), b, some, (y.add(24 * stride), stride), PANEL, add);
                    }
                }
            }
        }
    }

    /// `M` rows of `x` times one panel, added to what is in `y` if `add`. Only the first `lanes` columns are written. The
    /// pairs of a row of `x` are `ACROSS` apart; `x` and `y` come with the distance of their rows.
    ///
    /// # Safety
    /// `x` has `M` rows of `depth` pairs, `w` `depth` rows of `PANEL`, `y` `M` rows of `lanes` floats.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn one_tile<const M: usize, const ACROSS: usize>(
        x: (*const u32, usize),
        w: *const u32,
        depth: usize,
        y: (*mut f32, usize),
        lanes: usize,
        add: bool,
    ) {
        let low: __mmask16 = if lanes >= 16 { !0 } else { (1 << lanes) - 1 };
        let high: __mmask16 = if lanes >= 32 { !0 } else { (1u32 << lanes.saturating_sub(16)).wrapping_sub(1) as u16 };
        // SAFETY: by the caller's promise; the masks keep to `lanes`, and a pointer beyond them is not read or written.
        // Sixteen words and sixteen pairs of bfloat16 are the same bits.
        unsafe {
            let load = |p: *const u32| std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(p.cast()));
            let mut sums = [[_mm512_setzero_ps(); 2]; M];
            for k in 0..depth {
                let w = w.add(k * PANEL);
                let weights = [load(w), load(w.add(16))];
                for (m, sum) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(*x.0.add(m * x.1 + k * ACROSS) as i32);
                    let x = std::mem::transmute::<__m512i, __m512bh>(x);
                    sum[0] = _mm512_dpbf16_ps(sum[0], x, weights[0]);
                    sum[1] = _mm512_dpbf16_ps(sum[1], x, weights[1]);
                }
            }
            for (m, sum) in sums.iter_mut().enumerate() {
                let y = y.0.add(m * y.1);
                if add {
                    sum[0] = _mm512_add_ps(sum[0], _mm512_maskz_loadu_ps(low, y));
                    sum[1] = _mm512_add_ps(sum[1], _mm512_maskz_loadu_ps(high, y.wrapping_add(16)));
                }
                _mm512_mask_storeu_ps(y, low, sum[0]);
                _mm512_mask_storeu_ps(y.wrapping_add(16), high, sum[1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Dense;
    use super::*;
    use crate::made::numbers;

    #[test]
    fn numbers_round_as_bfloat16_does() {
        let mut x = numbers(1000, 7);
        x.extend([0.0, -0.0, f32::INFINITY, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MIN_POSITIVE]);
        let wanted: Vec<f32> = x.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
        round(&mut x);
        assert_eq!(x, wanted);
        let mut nan = [f32::NAN];
        round(&mut nan);
        assert!(nan[0].is_nan());
    }

    #[test]
    fn products_are_those_of_the_rounded_numbers() {
        for (n, cols, rows) in [(1, 64, 5), (5, 33, 64), (13, 100, 131), (70, 2100, 65), (29, 7, 40)] {
            let w = Dense { data: numbers(rows * cols, 1), cols };
            let x = numbers(n * cols, 2);
            let (stride, at) = (rows + 7, 3);
            let mut y = vec![f32::NAN; n * stride];
            matmul(&x, &w, 2..rows, Output { data: &mut y, stride, at });
            let exact = |v: f32| f64::from(half::bf16::from_f32(v).to_f32());
            for t in 0..n {
                for r in 2..rows {
                    let pairs = x[t * cols..][..cols].iter().zip(&w.data[r * cols..][..cols]);
                    let sum: f64 = pairs.map(|(a, b)| exact(*a) * exact(*b)).sum();
                    let got = f64::from(y[t * stride + at + r - 2]);
                    assert!((got - sum).abs() < 1e-6 * cols as f64, "{n} {cols} {rows}: {got} {sum}");
                }
                assert!(y[t * stride..][..at].iter().all(|v| v.is_nan()), "wrote outside its columns");
            }
        }
    }
}
