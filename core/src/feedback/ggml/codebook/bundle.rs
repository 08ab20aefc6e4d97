//! Sixteen rows on their way through the stages, and the first pass over them: super-blocks of columns from left to right,
//! each with scales searched on what the errors before have made of its weights, then rounded vector by vector with error
//! feedback (block LDLQ).

use super::super::bundle::sub_of;
use super::super::lanes::Lanes;
use super::super::rounding::{Sub, subtract};
use super::book::{Book, MAX_BLOCK, MAX_VECTOR, Numbers, SUPER};
use super::scan::{Tables, nearest};
use super::vectors::Vectors;
use crate::simd::{F32x16, Mask};

/// A bundle of rows, transposed: everything is `[columns]`, `[points]`, `[blocks]` or `[super-blocks]` of rows.
pub struct Bundle {
    pub x: Vec<F32x16>,
    /// In units of the block's scale, with signs.
    pub values: Vec<F32x16>,
    pub points: Vec<F32x16>,
    /// Scaled errors E of the first pass; later the difference of the decoded and the given weights.
    pub errors: Vec<F32x16>,
    pub d: Vec<F32x16>,
    pub a: Vec<F32x16>,
}

/// One block, solved under one scale.
#[derive(Clone)]
pub struct Solved {
    pub values: [F32x16; MAX_BLOCK],
    pub points: [F32x16; MAX_BLOCK / 4],
    pub errors: [F32x16; MAX_BLOCK],
}

impl Solved {
    pub fn new() -> Self {
        let zero = F32x16::ZERO;
        Solved { values: [zero; MAX_BLOCK], points: [zero; MAX_BLOCK / 4], errors: [zero; MAX_BLOCK] }
    }
}

/// The scale of a block.
#[inline(always)]
pub fn scale<V: Lanes>(book: &Book, d: &F32x16, a: V) -> V {
    V::read(d).mul(V::splat(book.unit)).mul(a.add(a).add(V::splat(1.0)))
}

/// Rounds the block `sub` vector by vector, each after the errors of those before. Returns the loss `Σ E²`, exact for this
/// block.
#[inline(always)]
fn solve<V: Lanes, const LEVELS: usize, const HALF: usize>(
    book: &Book,
    tables: &mut Tables,
    sub: Sub<'_>,
    weights: &[f32],
    s: V,
    out: &mut Solved,
) -> V {
    let (width, vector) = (sub.x.len(), book.vector);
    let mut loss = V::zero();
    for from in (0..width).step_by(vector) {
        let to = from + vector;
        let mut target = [F32x16::ZERO; MAX_VECTOR];
        let target = &mut target[..vector];
        for (j, target) in target.iter_mut().enumerate() {
            let mut t = V::read(&sub.x[from + j]);
            for (u, e) in sub.u[(from + j) * width..].iter().zip(&out.errors[..from]) {
                t = t.sub(V::splat(*u).mul(V::read(e)));
            }
            t.write(target);
        }
        let points = &mut out.points[from / book.point..to / book.point];
        nearest::<V, LEVELS, HALF>(book, tables, target, &weights[from..to], s, &mut out.values[from..to], points);
        for (j, target) in target.iter().enumerate() {
            let column = from + j;
            let mut e = V::read(target).sub(s.mul(V::read(&out.values[column])));
            for (u, before) in sub.u[column * width + from..].iter().zip(&out.errors[from..column]) {
                e = e.sub(V::splat(*u).mul(V::read(before)));
            }
            let e = e.mul(V::splat(sub.inverse[column]));
            loss = loss.add(e.mul(e));
            e.write(&mut out.errors[column]);
        }
    }
    loss
}

/// [`solve`] with the scale code `a` and its neighbours: the best code in each row and its loss; `out` has what belongs to
/// it.
#[inline(always)]
pub fn solve_around<V: Lanes, const LEVELS: usize, const HALF: usize>(
    book: &Book,
    tables: &mut Tables,
    sub: Sub<'_>,
    weights: &[f32],
    (d, a): (&F32x16, V),
    out: &mut Solved,
) -> (V, V) {
    let width = sub.x.len();
    let (mut best, mut loss) = (a, V::zero());
    let mut other = Solved::new();
    for step in [0.0, -1.0, 1.0] {
        let code = a.add(V::splat(step)).clamp(0.0, book.top);
        let this = solve::<V, LEVELS, HALF>(book, tables, sub, weights, scale(book, d, code), &mut other);
        // The first is taken whatever it loses, should that be more than a float holds.
        let first = V::zero().lt(V::splat(if step == 0.0 { 1.0 } else { 0.0 }));
        let better = this.lt(loss).or(first);
        let take = |from: &F32x16, to: &mut F32x16| V::select(better, V::read(from), V::read(to)).write(to);
        for j in 0..width {
            take(&other.values[j], &mut out.values[j]);
            take(&other.errors[j], &mut out.errors[j]);
        }
        for j in 0..width / book.point {
            take(&other.points[j], &mut out.points[j]);
        }
        best = V::select(better, code, best);
        loss = V::select(better, this, loss);
    }
    (best, loss)
}

/// Room for scale codes that grow by one.
const HEADROOM: f32 = 1.07;

impl Bundle {
    /// From up to sixteen whole rows of `cols` weights; missing rows are zeros.
    pub fn new(book: &Book, rows: &[f32], cols: usize) -> Self {
        let mut x = vec![F32x16::ZERO; cols];
        for (lane, row) in rows.chunks_exact(cols).enumerate() {
            for (column, v) in x.iter_mut().zip(row) {
                column.0[lane] = *v;
            }
        }
        let zeros = |n: usize| vec![F32x16::ZERO; n];
        Bundle {
            x,
            values: zeros(cols),
            points: zeros(cols / book.point),
            errors: zeros(cols),
            d: zeros(cols / SUPER),
            a: zeros(cols / book.block),
        }
    }

    /// The first pass.
    #[inline(always)]
    pub fn feedback<V: Lanes, const LEVELS: usize, const HALF: usize>(
        &mut self,
        book: &Book,
        v: &Vectors,
        tables: &mut Tables,
    ) {
        let m = &v.matrices;
        for first in (0..m.n).step_by(SUPER) {
            let columns = first..first + SUPER;
            let mut x = [F32x16::ZERO; SUPER];
            x.copy_from_slice(&self.x[columns.clone()]);
            subtract::<V>(&mut x, &m.u, columns.clone(), 0..first, &self.errors[..first]);
            self.scales::<V, LEVELS, HALF>(book, tables, &x, &v.diagonal[columns], first);
            for (b, x) in x.chunks_exact_mut(book.block).enumerate() {
                let columns = first + b * book.block..first + (b + 1) * book.block;
                subtract::<V>(x, &m.u, columns.clone(), first..columns.start, &self.errors[first..columns.start]);
                let sub = sub_of(x, &m.feedback, columns.start);
                let block = columns.start / book.block;
                let at = (&self.d[first / SUPER], V::read(&self.a[block]));
                let mut found = Solved::new();
                let weights = &v.feedback[columns.clone()];
                let (a, _) = solve_around::<V, LEVELS, HALF>(book, tables, sub, weights, at, &mut found);
                a.write(&mut self.a[block]);
                let points = columns.start / book.point..columns.end / book.point;
                self.points[points.clone()].copy_from_slice(&found.points[..points.len()]);
                self.values[columns.clone()].copy_from_slice(&found.values[..book.block]);
                self.errors[columns].copy_from_slice(&found.errors[..book.block]);
            }
        }
    }

    /// The scales of the super-block at column `first`, from its weights `x` as earlier errors have made them: each block's
    /// by trials and least squares, with d such that the largest has a neighbour above.
    #[inline(always)]
    fn scales<V: Lanes, const LEVELS: usize, const HALF: usize>(
        &mut self,
        book: &Book,
        tables: &mut Tables,
        x: &[F32x16; SUPER],
        weights: &[f32],
        first: usize,
    ) {
        let mut scales = [F32x16::ZERO; SUPER / 16];
        let mut largest = V::zero();
        for (b, (x, w)) in x.chunks_exact(book.block).zip(weights.chunks_exact(book.block)).enumerate() {
            let mut reach = V::zero();
            for x in x {
                reach = reach.max(V::read(x).abs());
            }
            let (mut best, mut scale) = (V::zero(), V::zero());
            for trial in book.trials {
                let s = reach.mul(V::splat(trial / book.reach()));
                let (mut sum_xq, mut sum_qq) = (V::zero(), V::zero());
                for (x, w) in x.chunks_exact(book.vector).zip(w.chunks_exact(book.vector)) {
                    let (mut values, mut points) = ([F32x16::ZERO; MAX_VECTOR], [F32x16::ZERO; MAX_VECTOR / 4]);
                    let (values, points) = (&mut values[..book.vector], &mut points[..book.vector / book.point]);
                    nearest::<V, LEVELS, HALF>(book, tables, x, w, s, values, points);
                    for ((x, w), q) in x.iter().zip(w).zip(values.iter()) {
                        let q = V::read(q);
                        let wq = V::splat(*w).mul(q);
                        sum_xq = sum_xq.add(wq.mul(V::read(x)));
                        sum_qq = sum_qq.add(wq.mul(q));
                    }
                }
                let this = sum_xq.ratio(sum_qq);
                let gain = this.mul(sum_xq);
                scale = best.if_less(gain, this, scale);
                best = gain.max(best);
            }
            largest = largest.max(scale);
            scale.write(&mut scales[b]);
        }
        let d = largest.mul(V::splat(HEADROOM / (book.unit * (2.0 * book.top + 1.0)))).round_f16();
        d.write(&mut self.d[first / SUPER]);
        let over = d.mul(V::splat(book.unit)).inverse();
        for (scale, a) in scales.iter().zip(&mut self.a[first / book.block..(first + SUPER) / book.block]) {
            let a2 = V::read(scale).mul(over).sub(V::splat(1.0)).mul(V::splat(0.5));
            a2.clamp(0.0, book.top).round().write(a);
        }
    }

    /// The bytes of the rows in use.
    pub fn pack(&self, book: &Book, out: &mut [u8], row_bytes: usize) {
        let mut numbers = Numbers { d: 0.0, a: [0; 16], points: [0; SUPER / 4], signs: [0; SUPER / 8] };
        for (lane, out) in out.chunks_exact_mut(row_bytes).enumerate() {
            for (i, out) in out.chunks_exact_mut(book.ty.block_bytes()).enumerate() {
                numbers.d = self.d[i].0[lane];
                let blocks = self.a[i * SUPER / book.block..].iter().take(SUPER / book.block);
                numbers.a.iter_mut().zip(blocks).for_each(|(to, from)| *to = from.0[lane] as u8);
                let points = self.points[i * SUPER / book.point..].iter().take(SUPER / book.point);
                numbers.points.iter_mut().zip(points).for_each(|(to, from)| *to = from.0[lane] as u16);
                let values = self.values[i * SUPER..(i + 1) * SUPER].chunks_exact(8);
                for (signs, values) in numbers.signs.iter_mut().zip(values) {
                    *signs = values.iter().enumerate().fold(0, |s, (k, v)| s | u8::from(v.0[lane] < 0.0) << k);
                }
                book.pack(&numbers, out);
            }
        }
    }
}
