//! The `f32` matrix product for AVX-512: weight rows packed into panels of 32, tiles of 12 input rows by 32 weight rows
//! held in registers (the loop order of Goto and van de Geijn 2008). It multiplies one block of rows on one thread. Who
//! calls it shows an [`Avx512`], which proves that the machine has the instructions.

use crate::isa::Avx512;
use std::arch::x86_64::*;

/// Weight rows of a panel: two vectors.
pub const PANEL: usize = 32;
/// Input rows of a tile: 12 x 2 accumulators, two weights and a broadcast leave a few of 32 registers free.
const TILE: usize = 12;
/// Columns that are multiplied before the next: a panel's share stays near the core.
const DEPTH: usize = 1024;

/// Transposes `count` weight rows (at most 16), each `cols` long and `step` after the one before, into lanes
/// `at .. at + count` of `panel`, which is `[cols, PANEL]`.
#[inline]
pub fn pack(_: Avx512, rows: &[f32], step: usize, count: usize, cols: usize, panel: &mut [f32], at: usize) {
    // SAFETY: the machine has AVX-512.
    unsafe { pack_rows(rows, step, count, cols, panel, at) }
}

#[target_feature(enable = "avx512f")]
fn pack_rows(rows: &[f32], step: usize, count: usize, cols: usize, panel: &mut [f32], at: usize) {
    assert!(count > 0 && count <= 16 && at + 16 <= PANEL && cols <= step && panel.len() >= cols * PANEL);
    assert!(rows.len() >= (count - 1) * step + cols);
    let whole = if count == 16 { cols / 16 * 16 } else { 0 };
    for col in (0..whole).step_by(16) {
        // SAFETY: 16 rows of `cols` floats are there, and `col + 16 <= cols`.
        let v: [__m512; 16] = std::array::from_fn(|r| unsafe { _mm512_loadu_ps(rows.as_ptr().add(r * step + col)) });
        for (i, v) in transpose(v).into_iter().enumerate() {
            // SAFETY: `panel` holds `cols * PANEL` floats, `col + i < cols` and `at + 16 <= PANEL`.
            unsafe { _mm512_storeu_ps(panel.as_mut_ptr().add((col + i) * PANEL + at), v) };
        }
    }
    for r in 0..count {
        for col in whole..cols {
            panel[col * PANEL + at + r] = rows[r * step + col];
        }
    }
}

/// A 16 x 16 transpose: pairs, fours, then 128-bit quarters.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(v: [__m512; 16]) -> [__m512; 16] {
    let pd = |a| _mm512_castps_pd(a);
    let mut t = v;
    for i in (0..16).step_by(2) {
        t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    let mut u = t;
    for i in (0..16).step_by(4) {
        u[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(t[i]), pd(t[i + 2])));
        u[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(t[i]), pd(t[i + 2])));
        u[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(t[i + 1]), pd(t[i + 3])));
        u[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(t[i + 1]), pd(t[i + 3])));
    }
    // Now quarter q of u[4 g + c] holds column 4 q + c of rows 4 g .. 4 g + 4.
    let mut out = u;
    for c in 0..4 {
        let (a, b, d, e) = (u[c], u[4 + c], u[8 + c], u[12 + c]);
        let (ab02, ab13) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let (de02, de13) = (_mm512_shuffle_f32x4::<0x88>(d, e), _mm512_shuffle_f32x4::<0xdd>(d, e));
        out[c] = _mm512_shuffle_f32x4::<0x88>(ab02, de02);
        out[8 + c] = _mm512_shuffle_f32x4::<0xdd>(ab02, de02);
        out[4 + c] = _mm512_shuffle_f32x4::<0x88>(ab13, de13);
        out[12 + c] = _mm512_shuffle_f32x4::<0xdd>(ab13, de13);
    }
    out
}

/// Rows `[n, cols]` of which each begins `step` after the one before.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub data: &'a [f32],
    pub step: usize,
    pub n: usize,
    pub cols: usize,
}

/// The right-hand side of a product, `[cols, rows]`: panels one after the other as [`pack`] makes them, or side by side
/// in a plain row-major matrix whose width is a multiple of [`PANEL`].
#[derive(Clone, Copy)]
pub enum Panels<'a> {
    Packed(&'a [f32]),
    Plain { data: &'a [f32], step: usize },
}

/// `y[n, rows] = x[n, cols] · w[cols, rows]`. Row `t` of `y` begins at `y + t * stride`.
///
/// # Safety
/// For every `t < n` the `rows` floats from `y + t * stride` on are there, and nobody else uses them meanwhile.
#[inline]
pub unsafe fn multiply(_: Avx512, x: Rows<'_>, w: Panels<'_>, rows: usize, y: *mut f32, stride: usize) {
    // SAFETY: the machine has AVX-512; the rest is the caller's.
    unsafe { multiply_rows(x, w, rows, y, stride) }
}

#[target_feature(enable = "avx512f")]
unsafe fn multiply_rows(x: Rows<'_>, w: Panels<'_>, rows: usize, y: *mut f32, stride: usize) {
    let Rows { data, step, n, cols } = x;
    assert!(n > 0 && cols > 0 && cols <= step && data.len() >= (n - 1) * step + cols);
    // Where a panel begins after the one before, and a column's share of a panel after the one before.
    let (panels, panel_step, col_step) = match w {
        Panels::Packed(panels) => {
            assert!(panels.len() >= rows.div_ceil(PANEL) * PANEL * cols);
            (panels, PANEL * cols, PANEL)
        }
        Panels::Plain { data, step } => {
            assert!(rows.is_multiple_of(PANEL) && rows <= step && data.len() >= (cols - 1) * step + rows);
            (data, PANEL, step)
        }
    };
    for from in (0..cols).step_by(DEPTH) {
        let depth = DEPTH.min(cols - from);
        let mut t = 0;
        while t < n {
            let tile = match n - t {
                TILE.. => TILE,
                8.. => 8,
                4.. => 4,
                _ => 1,
            };
            for (panel, row) in (0..rows).step_by(PANEL).enumerate() {
                // SAFETY: inside `x`, `panels` (both asserted above) and, by the caller's promise, `y`.
                unsafe {
                    let x = (data.as_ptr().add(t * step + from), step);
                    let w = (panels.as_ptr().add(panel * panel_step + from * col_step), col_step);
                    let y = (y.add(t * stride + row), stride);
                    match tile {
                        TILE => one_tile::<TILE, 1>(x, w, depth, y, rows - row, from > 0),
                        8 => one_tile::<8, 1>(x, w, depth, y, rows - row, from > 0),
                        4 => one_tile::<4, 1>(x, w, depth, y, rows - row, from > 0),
                        _ => one_tile::<1, 1>(x, w, depth, y, rows - row, from > 0),
                    }
                }
            }
            t += tile;
        }
    }
}

/// Depth of a product of panels with panels: both shares of a pair stay near the core.
const PANEL_DEPTH: usize = 256;

/// `y[m, n] = a[depth, m]ᵀ · b[depth, n]` of panels as [`pack`] makes them, with `m` and `n` rounded up to whole panels.
/// Row `i` of `y` begins at `i * stride`.
#[inline]
pub fn multiply_panels(_: Avx512, a: &[f32], b: &[f32], depth: usize, y: &mut [f32], stride: usize) {
    // SAFETY: the machine has AVX-512.
    unsafe { multiply_all(a, b, depth, y, stride) }
}

#[target_feature(enable = "avx512f")]
fn multiply_all(a: &[f32], b: &[f32], depth: usize, y: &mut [f32], stride: usize) {
    let panel = depth * PANEL;
    let (rows, columns) = (a.len() / panel * PANEL, b.len() / panel * PANEL);
    assert!(depth > 0 && rows > 0 && columns > 0 && columns <= stride && y.len() >= (rows - 1) * stride + columns);
    for from in (0..depth).step_by(PANEL_DEPTH) {
        let (some, add) = (PANEL_DEPTH.min(depth - from), from > 0);
        for (i, a) in a.chunks_exact(panel).enumerate() {
            for (j, b) in b.chunks_exact(panel).enumerate() {
                // SAFETY: lanes 0 .. 12, 12 .. 24 and 24 .. 32 of `some` rows of both panels, and as many rows of `y`
                // with a whole panel of columns, are inside the slices (asserted above).
                unsafe {
                    let a = a.as_ptr().add(from * PANEL);
                    let b = (b.as_ptr().add(from * PANEL), PANEL);
                    let y = y.as_mut_ptr().add(i * PANEL * stride + j * PANEL);
                    one_tile::<12, PANEL>((a, 1), b, some, (y, stride), PANEL, add);
                    one_tile::<12, PANEL>((a.add(12), 1), b, some, (y.add(12 * stride), stride), PANEL, add);
                    one_tile::<8, PANEL>((a.add(24), 1), b, some, (y.add(24 * stride), stride), PANEL, add);
                }
            }
        }
    }
}

/// `M` rows of `x` times one panel, added to what is in `y` if `add`. Only the first `lanes` columns are written. Every
/// pointer comes with the distance of its rows; the columns of `x` are `ACROSS` apart. Sums go on from what is in `y`, or,
/// between panels, join it at the end, which loses less in a long sum.
///
/// # Safety
/// `x` has `M` rows of `depth` floats, `w` `depth` rows of `PANEL`, `y` `M` rows of `lanes`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn one_tile<const M: usize, const ACROSS: usize>(
    x: (*const f32, usize),
    w: (*const f32, usize),
    depth: usize,
    y: (*mut f32, usize),
    lanes: usize,
    add: bool,
) {
    let low: __mmask16 = if lanes >= 16 { !0 } else { (1 << lanes) - 1 };
    let high: __mmask16 = if lanes >= 32 { !0 } else { (1u32 << lanes.saturating_sub(16)).wrapping_sub(1) as u16 };
    // SAFETY: by the caller's promise; the masks keep to `lanes`, and a pointer beyond them is not read or written.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; M];
        if add && ACROSS == 1 {
            for (m, sum) in sums.iter_mut().enumerate() {
                let y = y.0.add(m * y.1);
                *sum = [_mm512_maskz_loadu_ps(low, y), _mm512_maskz_loadu_ps(high, y.wrapping_add(16))];
            }
        }
        for k in 0..depth {
            let w = w.0.add(k * w.1);
            let weights = [_mm512_loadu_ps(w), _mm512_loadu_ps(w.add(16))];
            for (m, sum) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*x.0.add(m * x.1 + k * ACROSS));
                sum[0] = _mm512_fmadd_ps(x, weights[0], sum[0]);
                sum[1] = _mm512_fmadd_ps(x, weights[1], sum[1]);
            }
        }
        for (m, sum) in sums.iter_mut().enumerate() {
            let y = y.0.add(m * y.1);
            if add && ACROSS > 1 {
                sum[0] = _mm512_add_ps(sum[0], _mm512_maskz_loadu_ps(low, y));
                sum[1] = _mm512_add_ps(sum[1], _mm512_maskz_loadu_ps(high, y.wrapping_add(16)));
            }
            _mm512_mask_storeu_ps(y, low, sum[0]);
            _mm512_mask_storeu_ps(y.wrapping_add(16), high, sum[1]);
        }
    }
}
