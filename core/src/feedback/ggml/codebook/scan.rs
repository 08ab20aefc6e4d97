//! The point of a codebook nearest to a vector of weights, for sixteen rows at once, by comparing all of them. With a
//! diagonal metric the cost of a point is the sum of the costs of its halves, and of these there are few: 64 or 81 patterns.
//! Their costs are made once per vector, and a point then takes one addition.

use super::super::lanes::Lanes;
use super::book::{Book, MAX_VECTOR};
use crate::simd::{F32x16, Mask};

/// The costs of all patterns of the two halves of a point; the places are bytes.
pub struct Tables {
    first: [F32x16; 256],
    second: [F32x16; 256],
}

impl Tables {
    pub fn new() -> Box<Self> {
        Box::new(Tables { first: [F32x16::ZERO; 256], second: [F32x16::ZERO; 256] })
    }
}

/// `Σ w (a − s g)² − Σ w a²`, over s, for all patterns of `HALF` magnitudes g out of `LEVELS`.
#[inline(always)]
fn costs<V: Lanes, const LEVELS: usize, const HALF: usize>(
    (levels, shift): (&[f32], f32),
    s: V,
    weights: &[f32],
    a: &[V],
    out: &mut [F32x16; 256],
) {
    V::zero().write(&mut out[0]);
    let mut len = 1;
    for k in 0..HALF {
        let (linear, square) = (a[k].mul(V::splat(2.0 * weights[k])), s.mul(V::splat(weights[k])));
        // From the last level down, for the first one takes the place of what all are made of.
        for l in (0..LEVELS).rev() {
            let g = V::splat(levels[l] + shift);
            let term = g.mul(square.mul(g).sub(linear));
            for i in 0..len {
                V::read(&out[i]).add(term).write(&mut out[l * len + i]);
            }
        }
        len *= LEVELS;
    }
}

/// The place of the least cost in each row, the first of equals, and that cost. `CHAINS` comparisons do not wait for each other; their
/// number changes nothing.
#[inline(always)]
fn least<V: Lanes, const CHAINS: usize>(halves: &[[u8; 2]], tables: &Tables) -> (V, V) {
    let mut best = [V::splat(f32::INFINITY); CHAINS];
    let mut at = [V::zero(); CHAINS];
    let mut round = V::zero();
    for points in halves.as_chunks::<CHAINS>().0 {
        for (c, [first, second]) in points.iter().enumerate() {
            let cost = V::read(&tables.first[usize::from(*first)]).add(V::read(&tables.second[usize::from(*second)]));
            at[c] = cost.if_less(best[c], round, at[c]);
            best[c] = cost.min(best[c]);
        }
        round = round.add(V::splat(1.0));
    }
    let chains = V::splat(CHAINS as f32);
    let (mut place, mut cost) = (at[0].mul(chains), best[0]);
    for c in 1..CHAINS {
        let this = at[c].mul(chains).add(V::splat(c as f32));
        let first = best[c].lt(cost).or(best[c].same(cost).and(this.lt(place)));
        place = V::select(first, this, place);
        cost = V::select(first, best[c], cost);
    }
    (place, cost)
}

/// The points nearest to `target` (a vector of the book) under the scale `s` and the weights of squared errors: writes each
/// point's place and the vector's values, in units of s and with their signs.
#[inline(always)]
pub fn nearest<V: Lanes, const LEVELS: usize, const HALF: usize>(
    book: &Book,
    tables: &mut Tables,
    target: &[F32x16],
    weights: &[f32],
    s: V,
    values: &mut [F32x16],
    points: &mut [F32x16],
) {
    let one = V::splat(1.0);
    let (mut a, mut sign) = ([V::zero(); MAX_VECTOR], [one; MAX_VECTOR]);
    let mut product = one;
    for (j, target) in target.iter().enumerate() {
        let t = V::read(target);
        if book.has_signs() {
            sign[j] = t.if_less(V::zero(), one.neg(), one);
        }
        a[j] = t.mul(sign[j]);
        product = product.mul(sign[j]);
    }
    if book.even_signs {
        // Where the number of minus signs is odd, the weight turns that loses least by it; its magnitude then counts as
        // negative.
        let reach = s.mul(V::splat(book.levels[0]));
        let (mut loss, mut which) = (V::splat(f32::INFINITY), V::zero());
        for j in 0..target.len() {
            let this = V::splat(weights[j]).mul(a[j]).mul(a[j].max(reach));
            which = this.if_less(loss, V::splat(j as f32), which);
            loss = this.min(loss);
        }
        for j in 0..target.len() {
            let turns = product.lt(V::zero()).and(which.same(V::splat(j as f32)));
            a[j] = V::select(turns, a[j].neg(), a[j]);
            sign[j] = V::select(turns, sign[j].neg(), sign[j]);
        }
    }
    for (p, point) in points.iter_mut().enumerate() {
        let (from, middle, to) = (2 * HALF * p, 2 * HALF * p + HALF, 2 * HALF * (p + 1));
        let (mut place, mut cost) = (V::zero(), V::splat(f32::INFINITY));
        for (i, shift) in book.shifts.iter().enumerate() {
            let levels = (book.levels, *shift);
            costs::<V, LEVELS, HALF>(levels, s, &weights[from..middle], &a[from..middle], &mut tables.first);
            costs::<V, LEVELS, HALF>(levels, s, &weights[middle..to], &a[middle..to], &mut tables.second);
            let (this, its_cost) =
                if V::WIDE { least::<V, 4>(&book.halves, tables) } else { least::<V, 2>(&book.halves, tables) };
            let less = its_cost.lt(cost);
            place = V::select(less, this.add(V::splat((i * book.halves.len()) as f32)), place);
            cost = V::select(less, its_cost, cost);
        }
        place.write(point);
        for lane in 0..F32x16::LANES {
            let point = &book.values[point.0[lane] as usize];
            for (value, v) in values[from..to].iter_mut().zip(point) {
                value.0[lane] = *v;
            }
        }
    }
    for (value, sign) in values.iter_mut().zip(sign) {
        V::read(value).mul(sign).write(value);
    }
}
