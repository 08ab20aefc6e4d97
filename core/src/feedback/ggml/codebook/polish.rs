//! The polish sweep: with all other weights as they are, each block is solved again under its own part of H with
//! neighbouring scales, then vector by vector, then d of the super-block is fitted. A step is kept where the loss e'He falls
//! by it and nowhere else, so the sweep cannot make a row worse (up to the rounding of single precision).

use super::super::bundle::sub_of;
use super::super::lanes::Lanes;
use super::super::matrices::PANEL;
use super::super::rounding::subtract;
use super::book::{Book, MAX_BLOCK, MAX_VECTOR, SUPER};
use super::bundle::{Bundle, Solved, scale, solve_around};
use super::scan::{Tables, nearest};
use super::vectors::Vectors;
use crate::simd::{F32x16, Mask};
use std::ops::Range;

/// A solution has to be better by more than rounding makes of it.
const BETTER: f32 = 1.0 - 1e-5;

impl Bundle {
    /// One sweep over all super-blocks, from left to right.
    #[inline(always)]
    pub fn polish<V: Lanes, const LEVELS: usize, const HALF: usize>(
        &mut self,
        book: &Book,
        v: &Vectors,
        tables: &mut Tables,
    ) {
        let m = &v.matrices;
        self.difference::<V>(book, 0..m.n);
        for first in (0..m.n).step_by(SUPER) {
            let columns = first..first + SUPER;
            // G = (W − Ŵ) H in these columns; `errors` is Ŵ − W, up to date everywhere.
            let mut g = [F32x16::ZERO; SUPER];
            subtract::<V>(&mut g, &m.h, columns.clone(), 0..m.n, &self.errors);
            for from in (0..SUPER).step_by(book.block) {
                let block = first + from..first + from + book.block;
                let mut change = [F32x16::ZERO; MAX_BLOCK];
                let change = &mut change[..book.block];
                let own = &g[from..from + book.block];
                self.polish_block::<V, LEVELS, HALF>(book, v, tables, own, block.clone(), change);
                subtract::<V>(&mut g, &m.h, columns.clone(), block, change);
            }
            self.refit::<V>(book, v, &g, first);
            self.difference::<V>(book, columns);
        }
    }

    /// The scale of the block that begins at column `first`.
    #[inline(always)]
    fn scale<V: Lanes>(&self, book: &Book, first: usize) -> V {
        scale(book, &self.d[first / SUPER], V::read(&self.a[first / book.block]))
    }

    /// `errors = decoded − given` in whole blocks of columns.
    #[inline(always)]
    fn difference<V: Lanes>(&mut self, book: &Book, columns: Range<usize>) {
        for first in columns.step_by(book.block) {
            let s = self.scale::<V>(book, first);
            for j in first..first + book.block {
                s.mul(V::read(&self.values[j])).sub(V::read(&self.x[j])).write(&mut self.errors[j]);
            }
        }
    }

    /// Solves one block again given its `g`; `change` becomes what this adds to its decoded weights.
    #[inline(always)]
    fn polish_block<V: Lanes, const LEVELS: usize, const HALF: usize>(
        &mut self,
        book: &Book,
        v: &Vectors,
        tables: &mut Tables,
        g: &[F32x16],
        columns: Range<usize>,
        change: &mut [F32x16],
    ) {
        let (width, block) = (book.block, columns.start / book.block);
        let was = self.scale::<V>(book, columns.start);
        // The best real values given the rest, and how much there is to gain: G_b' H_bb⁻¹ G_b.
        let mut target = [F32x16::ZERO; MAX_BLOCK];
        let target = &mut target[..width];
        let inverse = &v.matrices.own_inverse[columns.start * width..columns.end * width];
        let values = &self.values[columns.clone()];
        let gain = free::<V>(inverse, was, values, g, target);
        let sub = sub_of(target, &v.matrices.own, columns.start);
        let at = (&self.d[columns.start / SUPER], V::read(&self.a[block]));
        let mut found = Solved::new();
        let (a, loss) = solve_around::<V, LEVELS, HALF>(book, tables, sub, &v.own[columns.clone()], at, &mut found);
        let limit = gain.mul(V::splat(BETTER));
        let take = |from: V, to: &mut F32x16| loss.if_less(limit, from, V::read(to)).write(to);
        take(a, &mut self.a[block]);
        let s = self.scale::<V>(book, columns.start);
        for (j, change) in change.iter_mut().enumerate() {
            let value = &mut self.values[columns.start + j];
            let old = was.mul(V::read(value));
            take(V::read(&found.values[j]), value);
            s.mul(V::read(value)).sub(old).write(change);
        }
        let points = &mut self.points[columns.start / book.point..columns.end / book.point];
        points.iter_mut().zip(&found.points).for_each(|(to, from)| take(V::read(from), to));
        // Single vectors, each with the others fixed. g of this block first, after the change above.
        let mut own = [F32x16::ZERO; MAX_BLOCK];
        let own = &mut own[..width];
        own.copy_from_slice(g);
        subtract::<V>(own, &v.matrices.h, columns.clone(), columns.clone(), change);
        for from in (0..width).step_by(book.vector) {
            let vector = columns.start + from..columns.start + from + book.vector;
            let mut moved = [F32x16::ZERO; MAX_VECTOR];
            let moved = &mut moved[..book.vector];
            self.polish_vector::<V, LEVELS, HALF>(
                book,
                v,
                tables,
                &own[from..from + book.vector],
                vector.clone(),
                moved,
            );
            for (change, moved) in change[from..].iter_mut().zip(moved.iter()) {
                V::read(change).add(V::read(moved)).write(change);
            }
            for (j, own) in own.iter_mut().enumerate().skip(from + book.vector) {
                V::read(own).sub(times_h::<V>(v, columns.start + j, &vector, moved)).write(own);
            }
        }
    }

    /// Chooses the points of one vector again under the scale that it has, given its `g`; `moved` becomes what this adds to
    /// its decoded weights.
    #[inline(always)]
    fn polish_vector<V: Lanes, const LEVELS: usize, const HALF: usize>(
        &mut self,
        book: &Book,
        v: &Vectors,
        tables: &mut Tables,
        g: &[F32x16],
        columns: Range<usize>,
        moved: &mut [F32x16],
    ) {
        let s = self.scale::<V>(book, columns.start);
        let mut target = [F32x16::ZERO; MAX_VECTOR];
        let target = &mut target[..book.vector];
        let inverse = &v.inverse[columns.start * book.vector..columns.end * book.vector];
        free::<V>(inverse, s, &self.values[columns.clone()], g, target);
        let (mut values, mut points) = ([F32x16::ZERO; MAX_VECTOR], [F32x16::ZERO; MAX_VECTOR / 4]);
        let (values, points) = (&mut values[..book.vector], &mut points[..book.vector / book.point]);
        nearest::<V, LEVELS, HALF>(book, tables, target, &v.diagonal[columns.clone()], s, values, points);
        for ((moved, new), old) in moved.iter_mut().zip(values.iter()).zip(&self.values[columns.clone()]) {
            s.mul(V::read(new)).sub(s.mul(V::read(old))).write(moved);
        }
        // The loss changes by m'Hm − 2 m'g.
        let (mut square, mut linear) = (V::zero(), V::zero());
        for (j, (m, g)) in moved.iter().zip(g).enumerate() {
            let m = V::read(m);
            square = square.add(m.mul(times_h::<V>(v, columns.start + j, &columns, moved)));
            linear = linear.add(m.mul(V::read(g)));
        }
        let limit = linear.add(linear).mul(V::splat(BETTER));
        let better = square.lt(limit);
        for (j, moved) in moved.iter_mut().enumerate() {
            let value = &mut self.values[columns.start + j];
            V::select(better, V::read(&values[j]), V::read(value)).write(value);
            V::select(better, V::read(moved), V::zero()).write(moved);
        }
        let all = &mut self.points[columns.start / book.point..columns.end / book.point];
        for (to, from) in all.iter_mut().zip(points.iter()) {
            V::select(better, V::read(from), V::read(to)).write(to);
        }
    }

    /// d of one super-block by least squares under H, given its `g`: `u = unit · (2 a + 1) · value` spans the change.
    #[inline(always)]
    fn refit<V: Lanes>(&mut self, book: &Book, v: &Vectors, g: &[F32x16; SUPER], first: usize) {
        let columns = first..first + SUPER;
        let one = F32x16::splat(1.0);
        let mut u = [F32x16::ZERO; SUPER];
        let mut gu = V::zero();
        for (j, u) in u.iter_mut().enumerate() {
            let s = scale::<V>(book, &one, V::read(&self.a[(first + j) / book.block]));
            let by = s.mul(V::read(&self.values[first + j]));
            gu = gu.add(by.mul(V::read(&g[j])));
            by.write(u);
        }
        let mut hu = [F32x16::ZERO; SUPER];
        subtract::<V>(&mut hu, &v.matrices.h, columns.clone(), columns, &u);
        let mut uhu = V::zero();
        for (hu, u) in hu.iter().zip(&u) {
            uhu = uhu.sub(V::read(hu).mul(V::read(u)));
        }
        let d = &mut self.d[first / SUPER];
        let old = V::read(d);
        let new = old.add(gu.ratio(uhu)).round_f16();
        let by = new.sub(old);
        let change = by.mul(by).mul(uhu).sub(by.add(by).mul(gu));
        // A super-block of zeros has no points to fit to, and scales are positive.
        let take = change.lt(V::zero()).and(V::zero().lt(old)).and(V::zero().lt(new));
        V::select(take, new, old).write(d);
    }
}

/// The values at which the loss of some columns would be least, all others fixed, `values · s + H⁻¹ g`; and what the loss
/// lies above that least one, `g' H⁻¹ g`.
#[inline(always)]
fn free<V: Lanes>(inverse: &[f32], s: V, values: &[F32x16], g: &[F32x16], target: &mut [F32x16]) -> V {
    let mut gain = V::zero();
    for ((j, row), target) in inverse.chunks_exact(g.len()).enumerate().zip(target) {
        let mut step = V::zero();
        for (h, g) in row.iter().zip(g) {
            step = step.add(V::splat(*h).mul(V::read(g)));
        }
        gain = gain.add(step.mul(V::read(&g[j])));
        s.mul(V::read(&values[j])).add(step).write(target);
    }
    gain
}

/// `Σ_i H[i, column] · change[i]` over `rows`.
#[inline(always)]
fn times_h<V: Lanes>(v: &Vectors, column: usize, rows: &Range<usize>, change: &[F32x16]) -> V {
    let panel = v.matrices.h.rows(column / PANEL, rows.clone()).as_chunks::<PANEL>().0;
    let mut sum = V::zero();
    for (row, change) in panel.iter().zip(change) {
        sum = sum.add(V::splat(row[column % PANEL]).mul(V::read(change)));
    }
    sum
}
