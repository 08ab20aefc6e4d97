//! The two loops that everything here is made of, for a bundle of rows at once: carry errors to later columns, and round
//! one sub-block with error feedback under several candidate scales side by side.

use super::lanes::Lanes;
use super::layout::{Layout, MAX_SUB};
use super::matrices::{PANEL, Panels};
use crate::quant::iquants::iq4::VALUES;
use crate::simd::F32x16;
use std::ops::Range;

/// Scales and minimums tried together.
pub const CANDIDATES: usize = 9;

/// `x[columns] -= Σ_i matrix[i, columns] · e[i]` over `rows`; `x` holds just `columns`, whole panels of them, and `e`
/// just `rows`.
#[inline(always)]
pub fn subtract<V: Lanes>(x: &mut [F32x16], matrix: &Panels, columns: Range<usize>, rows: Range<usize>, e: &[F32x16]) {
    let panels = columns.start / PANEL..columns.end / PANEL;
    for (x, panel) in x.as_chunks_mut::<PANEL>().0.iter_mut().zip(panels) {
        let panel = matrix.rows(panel, rows.clone()).as_chunks::<PANEL>().0;
        // As many sums as registers hold; each adds up its rows in order, whatever their number.
        if V::WIDE {
            subtract_panel::<V, 16>(x, panel, e);
        } else {
            subtract_panel::<V, 4>(x, panel, e);
        }
    }
}

#[inline(always)]
fn subtract_panel<V: Lanes, const C: usize>(x: &mut [F32x16; PANEL], panel: &[[f32; PANEL]], e: &[F32x16]) {
    for (part, x) in x.as_chunks_mut::<C>().0.iter_mut().enumerate() {
        let mut sums: [V; C] = std::array::from_fn(|j| V::read(&x[j]));
        for (row, e) in panel.iter().zip(e) {
            let (row, e) = (&row.as_chunks::<C>().0[part], V::read(e));
            for j in 0..C {
                sums[j] = sums[j].sub(V::splat(row[j]).mul(e));
            }
        }
        for j in 0..C {
            sums[j].write(&mut x[j]);
        }
    }
}

/// The level nearest to `y`.
#[inline(always)]
pub fn nearest<V: Lanes, const TABLE: bool>(levels: (f32, f32), y: V) -> V {
    if TABLE {
        let mut level = V::splat(VALUES[0]);
        for pair in VALUES.windows(2) {
            let step = y.if_less(V::splat(0.5 * (pair[0] + pair[1])), V::zero(), V::splat(pair[1] - pair[0]));
            level = level.add(step);
        }
        level
    } else {
        y.clamp(levels.0, levels.1).round()
    }
}

/// A sub-block's scale and minimum in use: `s · level + m`, and `1 / s`.
#[derive(Clone, Copy)]
pub struct Affine<V> {
    pub s: V,
    pub m: V,
    pub inverse: V,
}

impl<V: Lanes> Affine<V> {
    /// From the block's d and dmin and the sub-block's integers.
    #[inline(always)]
    pub fn new(d: V, dmin: V, a: V, c: V) -> Self {
        let s = d.mul(a);
        Affine { s, m: dmin.mul(c).neg(), inverse: s.inverse() }
    }
}

/// One sub-block of columns and the triangle that spreads its errors.
#[derive(Clone, Copy)]
pub struct Sub<'a> {
    pub x: &'a [F32x16],
    /// `[sub, sub]` by column, see [`super::matrices::Triangles`].
    pub u: &'a [f32],
    /// `1 / U_jj`
    pub inverse: &'a [f32],
    /// `1 / U_jj²`
    pub weights: &'a [f32],
}

/// Rounds column by column, each after the errors of those before, once per candidate; gives each candidate's loss
/// `Σ E²`, exact for this sub-block, and the scaled errors `E`.
#[inline(always)]
fn feed<V: Lanes, const TABLE: bool, const K: usize>(
    layout: &Layout,
    sub: Sub<'_>,
    candidates: &[Affine<V>; K],
    errors: &mut [[F32x16; K]; MAX_SUB],
    mut level: impl FnMut(usize, V),
) -> [V; K] {
    let mut loss = [V::zero(); K];
    let width = sub.x.len();
    for (j, (x, u)) in sub.x.iter().zip(sub.u.chunks_exact(width)).enumerate() {
        let (before, now) = errors.split_at_mut(j);
        let mut t = [V::read(x); K];
        for (u, e) in u.iter().zip(&*before) {
            let u = V::splat(*u);
            for k in 0..K {
                t[k] = t[k].sub(u.mul(V::read(&e[k])));
            }
        }
        let inverse = V::splat(sub.inverse[j]);
        for k in 0..K {
            let Affine { s, m, inverse: over_s } = candidates[k];
            let l = nearest::<V, TABLE>(layout.levels, t[k].sub(m).mul(over_s));
            let e = t[k].sub(s.mul(l).add(m)).mul(inverse);
            loss[k] = loss[k].add(e.mul(e));
            e.write(&mut now[0][k]);
            level(j, l);
        }
    }
    loss
}

/// The losses of all candidates.
#[inline(always)]
pub fn losses<V: Lanes, const TABLE: bool>(
    layout: &Layout,
    sub: Sub<'_>,
    candidates: &[Affine<V>; CANDIDATES],
) -> [V; CANDIDATES] {
    let mut errors = [[F32x16::ZERO; CANDIDATES]; MAX_SUB];
    feed::<V, TABLE, CANDIDATES>(layout, sub, candidates, &mut errors, |_, _| ())
}

/// Rounds with one scale: levels and scaled errors.
#[inline(always)]
pub fn round<V: Lanes, const TABLE: bool>(
    layout: &Layout,
    sub: Sub<'_>,
    affine: Affine<V>,
    levels: &mut [F32x16],
    errors: &mut [F32x16],
) {
    let mut own = [[F32x16::ZERO; 1]; MAX_SUB];
    feed::<V, TABLE, 1>(layout, sub, &[affine], &mut own, |j, l| l.write(&mut levels[j]));
    for (out, e) in errors.iter_mut().zip(&own) {
        *out = e[0];
    }
}
