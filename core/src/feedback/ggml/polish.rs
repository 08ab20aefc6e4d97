//! The polish sweep: with all other weights as they are, each sub-block is solved again under its own part of H with
//! neighbouring scales, then code by code, then d and dmin of the block are fitted. A step is kept where the loss e'He
//! falls by it and nowhere else, so the sweep cannot make a row worse (up to the rounding of single precision).

use super::bundle::{Bundle, sub_of};
use super::candidates::{self, Scales, around, weighted_mean};
use super::lanes::Lanes;
use super::layout::{Factors, Layout, MAX_BLOCK, MAX_SUB, MAX_SUBS};
use super::matrices::{Matrices, PANEL};
use super::rounding::{Affine, losses, nearest, round, subtract};
use crate::simd::F32x16;
use std::ops::Range;

impl Bundle {
    /// One sweep over all blocks, from left to right.
    #[inline(always)]
    pub fn polish<V: Lanes, const TABLE: bool>(&mut self, layout: &Layout, m: &Matrices) {
        self.difference::<V>(layout, 0..m.n);
        for block in 0..m.n / layout.block {
            let columns = block * layout.block..(block + 1) * layout.block;
            // G = (W − Ŵ) H in these columns; `errors` is Ŵ − W, up to date everywhere.
            let mut g = [F32x16::ZERO; MAX_BLOCK];
            let g = &mut g[..layout.block];
            subtract::<V>(g, &m.h, columns.clone(), 0..m.n, &self.errors);
            for b in 0..layout.subs() {
                let sub = columns.start + b * layout.sub..columns.start + (b + 1) * layout.sub;
                let mut change = [F32x16::ZERO; MAX_SUB];
                let change = &mut change[..layout.sub];
                self.polish_sub::<V, TABLE>(layout, m, &g[b * layout.sub..(b + 1) * layout.sub], sub.clone(), change);
                subtract::<V>(g, &m.h, columns.clone(), sub, change);
            }
            self.refit::<V>(layout, m, g, block);
            self.difference::<V>(layout, columns);
        }
    }

    /// `errors = decoded − given` in whole sub-blocks of columns.
    #[inline(always)]
    fn difference<V: Lanes>(&mut self, layout: &Layout, columns: Range<usize>) {
        for first in columns.step_by(layout.sub) {
            let Affine { s, m, .. } = self.scales::<V>(layout, first / layout.sub).affine();
            for j in first..first + layout.sub {
                let value = s.mul(V::read(&self.levels[j])).add(m);
                value.sub(V::read(&self.x[j])).write(&mut self.errors[j]);
            }
        }
    }

    /// Solves one sub-block again given its `g`; `change` becomes what this adds to its decoded weights.
    #[inline(always)]
    fn polish_sub<V: Lanes, const TABLE: bool>(
        &mut self,
        layout: &Layout,
        m: &Matrices,
        g: &[F32x16],
        columns: Range<usize>,
        change: &mut [F32x16],
    ) {
        let (width, b) = (layout.sub, columns.start / layout.sub);
        let at: Scales<V> = self.scales(layout, b);
        let was = at.affine();
        // The best real values given the rest, and how much there is to gain: G_b' H_bb⁻¹ G_b.
        let mut target = [F32x16::ZERO; MAX_SUB];
        let target = &mut target[..width];
        let mut gain = V::zero();
        let inverse = &m.own_inverse[columns.start * width..columns.end * width];
        for ((j, row), target) in inverse.chunks_exact(width).enumerate().zip(&mut *target) {
            let mut step = V::zero();
            for (h, g) in row.iter().zip(g) {
                step = step.add(V::splat(*h).mul(V::read(g)));
            }
            gain = gain.add(step.mul(V::read(&g[j])));
            let value = was.s.mul(V::read(&self.levels[columns.start + j])).add(was.m);
            value.add(step).write(target);
        }
        let sub = sub_of(target, &m.own, columns.start);
        let level = weighted_mean::<V>(&self.levels[columns.clone()], sub.weights);
        let tried = around(layout, at, candidates::Means { level, x: weighted_mean(target, sub.weights) });
        let (best, loss) = candidates::best(&tried, &losses::<V, TABLE>(layout, sub, &tried.map(Scales::affine)));
        let mut levels = [F32x16::ZERO; MAX_SUB];
        let mut unused = [F32x16::ZERO; MAX_SUB];
        round::<V, TABLE>(layout, sub, best.affine(), &mut levels, &mut unused);
        let scales = candidates::better(best, loss, gain, at);
        self.set_scales(layout, b, scales);
        let now = scales.affine();
        for (j, (new, change)) in levels.iter().zip(&mut *change).enumerate() {
            let old = V::read(&self.levels[columns.start + j]);
            let new = loss.if_less(gain, V::read(new), old);
            new.write(&mut self.levels[columns.start + j]);
            now.s.mul(new).add(now.m).sub(was.s.mul(old).add(was.m)).write(change);
        }
        // Single codes, each with the others fixed. g of this sub-block first, after the change above.
        let mut own = [F32x16::ZERO; MAX_SUB];
        own[..width].copy_from_slice(g);
        subtract::<V>(&mut own[..width], &m.h, columns.clone(), columns.clone(), change);
        let mut moved = [F32x16::ZERO; MAX_SUB];
        for j in 0..width {
            let column = columns.start + j;
            let mut gradient = V::read(&own[j]);
            let panel = m.h.rows(column / PANEL, columns.start..column).as_chunks::<PANEL>().0;
            for (row, moved) in panel.iter().zip(&moved) {
                gradient = gradient.sub(V::splat(row[column % PANEL]).mul(V::read(moved)));
            }
            let old = V::read(&self.levels[column]);
            let value = now.s.mul(old).add(now.m);
            let target = value.add(gradient.mul(V::splat(m.inverse_diagonal[column])));
            let new = nearest::<V, TABLE>(layout.levels, target.sub(now.m).mul(now.inverse));
            // A scale of zero leaves the level without meaning: keep it.
            let new = V::zero().if_less(now.s.abs(), new, old);
            new.write(&mut self.levels[column]);
            let by = now.s.mul(new).add(now.m).sub(value);
            by.write(&mut moved[j]);
            V::read(&change[j]).add(by).write(&mut change[j]);
        }
    }

    /// d and dmin of one block by least squares under H, given its `g`: `u = a · level` and `y = −c` span the change.
    #[inline(always)]
    fn refit<V: Lanes>(&mut self, layout: &Layout, m: &Matrices, g: &[F32x16], block: usize) {
        let (first, subs) = (block * layout.block, layout.subs());
        let mut u = [F32x16::ZERO; MAX_BLOCK];
        let mut y = [F32x16::ZERO; MAX_SUBS];
        let (mut gu, mut gy) = (V::zero(), V::zero());
        for b in 0..subs {
            let (a, c) = (V::read(&self.a[block * subs + b]), V::read(&self.c[block * subs + b]));
            c.neg().write(&mut y[b]);
            let mut sum = V::zero();
            for j in b * layout.sub..(b + 1) * layout.sub {
                let v = a.mul(V::read(&self.levels[first + j]));
                v.write(&mut u[j]);
                let g = V::read(&g[j]);
                gu = gu.add(g.mul(v));
                sum = sum.add(g);
            }
            gy = gy.sub(c.mul(sum));
        }
        let mut hu = [F32x16::ZERO; MAX_BLOCK];
        let columns = first..first + layout.block;
        subtract::<V>(&mut hu[..layout.block], &m.h, columns.clone(), columns.clone(), &u[..layout.block]);
        let (mut uhu, mut uhy, mut yhy) = (V::zero(), V::zero(), V::zero());
        for (j, (hu, u)) in hu.iter().zip(&u).take(layout.block).enumerate() {
            uhu = uhu.sub(V::read(hu).mul(V::read(u)));
            if layout.has_min() {
                let mut hy = V::zero();
                for (sum, y) in m.row_sums[(first + j) * subs..(first + j + 1) * subs].iter().zip(&y) {
                    hy = hy.add(V::splat(*sum).mul(V::read(y)));
                }
                uhy = uhy.add(hy.mul(V::read(u)));
            }
        }
        if layout.has_min() {
            for b in 0..subs {
                for (sum, y2) in m.sums[(block * subs + b) * subs..(block * subs + b + 1) * subs].iter().zip(&y) {
                    yhy = yhy.add(V::splat(*sum).mul(V::read(&y[b]).mul(V::read(y2))));
                }
            }
        }
        let (d, dmin) = (V::read(&self.d[block]), V::read(&self.dmin[block]));
        let det = uhu.mul(yhy).sub(uhy.mul(uhy));
        // Where the two directions can hardly be told apart, or there is one only, d alone moves.
        let both = uhu.mul(yhy).mul(V::splat(1e-4));
        let by_both = gu.mul(yhy).sub(gy.mul(uhy)).ratio(det);
        let d_step = both.if_less(det, by_both, gu.ratio(uhu));
        let m_step = both.if_less(det, gy.mul(uhu).sub(gu.mul(uhy)).ratio(det), V::zero());
        let new_d = d.add(d_step).round_f16();
        let mut new_dmin = dmin.add(m_step).round_f16();
        if matches!(layout.mins, Factors::Integer(..)) {
            new_dmin = new_dmin.max(V::zero());
        }
        let (by_d, by_m) = (new_d.sub(d), new_dmin.sub(dmin));
        let linear = by_d.mul(gu).add(by_m.mul(gy)).mul(V::splat(-2.0));
        let square = by_d.mul(by_d).mul(uhu).add(by_m.mul(by_m).mul(yhy));
        let change = linear.add(square).add(by_d.mul(by_m).mul(uhy).mul(V::splat(2.0)));
        change.if_less(V::zero(), new_d, d).write(&mut self.d[block]);
        change.if_less(V::zero(), new_dmin, dmin).write(&mut self.dmin[block]);
    }
}
