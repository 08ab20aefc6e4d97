//! Activations as integers of 16 bits, with a scale for every 32 of a row, so that one large number costs only its
//! neighbours precision. A number that is a good part of its row's whole norm would cost them too much: it is set aside.
//! With what is left, rounding shifts a product by a random amount whose standard deviation is at most
//! `LARGE / TOP / sqrt(12)`, 1.1e-6, of `|x| |w|`: reached only where every block has a number just below the limit.

use crate::isa::Isa;
use crate::kernel::vector::dot;
use crate::quant::integers::BLOCK;
use crate::simd::{self, F32x16, Float, Int, Kernel, Mask};
use rayon::prelude::*;

/// Rows that are multiplied together at most; they lie side by side.
pub(super) const TILE: usize = 12;
/// The largest integer.
const TOP: f32 = 32767.0;
/// The integers of a block add up to less than this in magnitude.
pub(super) const SUM: i32 = 1 << 19;
/// What is larger than this part of its row's norm is set aside: fewer than 64 numbers of a row, and mostly none.
const LARGE: f64 = 0.125;
/// Adding it leaves an integer below 2^22 in the low bits of a float, rounded half to even.
pub(super) const MAGIC: f32 = 12_582_912.0;
/// Pairs of integers in a block.
pub(super) const PAIRS: usize = BLOCK / 2;
/// Room behind what is stored in whole vectors.
const ROOM: usize = F32x16::LANES;

/// Rows of activations, in tiles of [`TILE`] side by side.
#[derive(Default)]
pub(super) struct Input {
    pub n: usize,
    pub cols: usize,
    pub tiles: Vec<Tile>,
}

/// Some rows; those that are missing of the last tile hold anything.
#[derive(Default)]
pub(super) struct Tile {
    /// Integers of two neighbours, the first in the lower half, `[cols / 2, TILE]`, and like those
    /// below with room behind the last.
    pub pairs: Vec<u32>,
    /// What the integers count, `[cols / 32, TILE]`.
    pub scales: Vec<f32>,
    /// Sums of the integers under each offset of the weights, times the scale, `[cols / 32 * offsets, TILE]`.
    pub totals: Vec<f32>,
    /// Numbers that are set aside, by row: column and number. Their integers are 0.
    pub large: [Vec<(usize, f32)>; TILE],
}

impl Input {
    /// Takes rows `x` of `cols`; `offsets` is how many the weights have for 32 columns.
    pub fn set(&mut self, isa: Isa, x: &[f32], cols: usize, offsets: usize) {
        (self.n, self.cols) = (x.len() / cols, cols);
        self.tiles.resize_with(self.n.div_ceil(TILE), Tile::default);
        let tiles = self.tiles.par_iter_mut().zip(x.par_chunks(TILE * cols));
        tiles.with_min_len(2).for_each(|(tile, x)| tile.set(isa, x, cols, offsets));
    }
}

impl Tile {
    fn set(&mut self, isa: Isa, x: &[f32], cols: usize, offsets: usize) {
        let blocks = cols / BLOCK;
        self.pairs.resize(cols / 2 * TILE + ROOM, 0);
        self.scales.resize(blocks * TILE + ROOM, 0.0);
        self.totals.resize(blocks * offsets * TILE + ROOM, 0.0);
        self.large.iter_mut().for_each(Vec::clear);
        simd::run_16(isa, Round { x, cols, offsets, tile: self });
    }
}

/// Rounds up to [`TILE`] rows of `cols`, which are the lanes of vectors.
struct Round<'a> {
    x: &'a [f32],
    cols: usize,
    offsets: usize,
    tile: &'a mut Tile,
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Float>(self) {
        const { assert!(V::N == ROOM && TILE <= V::N && BLOCK.is_multiple_of(8)) };
        let Round { x, cols, offsets, tile } = self;
        let (blocks, count) = (cols / BLOCK, x.len() / cols);
        assert!(0 < count && count <= TILE && cols.is_multiple_of(BLOCK) && offsets <= 2);
        assert!(tile.pairs.len() >= cols / 2 * TILE + ROOM && tile.scales.len() >= blocks * TILE + ROOM);
        assert!(tile.totals.len() >= blocks * offsets * TILE + ROOM);
        // Lanes without a row repeat the first.
        let (mut rows, mut limits, mut spoiled) = ([x.as_ptr(); ROOM], [f32::INFINITY; ROOM], [0f32; ROOM]);
        for (t, x) in x.chunks_exact(cols).enumerate() {
            let norm = norm(x);
            (rows[t], limits[t]) = (x.as_ptr(), (LARGE * norm) as f32);
            // The products of a row with a number that is not finite are none.
            spoiled[t] = if norm.is_finite() { 0.0 } else { f32::NAN };
        }
        // Rounding adds at most a half to each of the magnitudes, and their sum is right to a few millionths.
        let even = V::splat(TOP / (SUM - BLOCK as i32) as f32);
        for block in 0..blocks {
            let mut columns = [V::splat(0.0); BLOCK];
            for (i, four) in columns.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                // SAFETY: every row has `cols` floats.
                *four = unsafe { V::columns(&rows, block * BLOCK + 4 * i) };
            }
            // SAFETY: sixteen floats.
            let (limit, spoiled) = unsafe { (V::load(limits.as_ptr()), V::load(spoiled.as_ptr())) };
            let (mut top, mut sum) = measure(&columns);
            if limit.lt(top).any() {
                set_aside(&mut columns, &limits, block * BLOCK, &mut tile.large[..count]);
                (top, sum) = measure(&columns);
            }
            let top = top.max(sum * even);
            // Where the inverse of a scale overflows, numbers count as zero.
            let inverse = V::splat(TOP) / top;
            let inverse = V::select(inverse.le(V::splat(f32::MAX)), inverse, V::splat(0.0));
            let scale = top * V::splat(1.0 / TOP) + spoiled;
            let mut totals = [V::splat(0.0); 2];
            for (i, columns) in columns.as_chunks::<2>().0.iter().enumerate() {
                let low = columns[0] * inverse + V::splat(MAGIC);
                let high = columns[1] * inverse + V::splat(MAGIC);
                let total = &mut totals[2 * i / PAIRS];
                *total = *total + (low - V::splat(MAGIC)) + (high - V::splat(MAGIC));
                let pair = low.to_bits() & V::Int::splat(0xffff) | high.to_bits().shl::<16>();
                // SAFETY: what a vector has beyond the tile is overwritten by the next, or lies in the room behind the last.
                unsafe { pair.store(tile.pairs.as_mut_ptr().add((block * PAIRS + i) * TILE).cast()) };
            }
            if offsets == 1 {
                totals[0] = totals[0] + totals[1];
            }
            // SAFETY: as above.
            unsafe {
                scale.store(tile.scales.as_mut_ptr().add(block * TILE));
                for (i, total) in totals.into_iter().enumerate().take(offsets) {
                    (total * scale).store(tile.totals.as_mut_ptr().add((block * offsets + i) * TILE));
                }
            }
        }
    }
}

/// The largest and the sum of the magnitudes in each lane.
#[inline(always)]
fn measure<V: Float>(columns: &[V; BLOCK]) -> (V, V) {
    let (mut top, mut sum) = (V::splat(0.0), V::splat(0.0));
    for column in columns {
        let magnitude = column.abs();
        top = top.max(magnitude);
        sum = sum + magnitude;
    }
    (top, sum)
}

/// Takes out the numbers above the limits of their rows.
#[inline(always)]
fn set_aside<V: Float>(columns: &mut [V; BLOCK], limits: &[f32; ROOM], first: usize, large: &mut [Vec<(usize, f32)>]) {
    // SAFETY: sixteen floats, here and below.
    let limit = unsafe { V::load(limits.as_ptr()) };
    for (i, column) in columns.iter_mut().enumerate() {
        if !limit.lt(column.abs()).any() {
            continue;
        }
        let mut lanes = [0f32; ROOM];
        unsafe { column.store(lanes.as_mut_ptr()) };
        for ((lane, limit), large) in lanes.iter_mut().zip(limits).zip(&mut *large) {
            if lane.abs() > *limit {
                large.push((first + i, *lane));
                *lane = 0.0;
            }
        }
        *column = unsafe { V::load(lanes.as_ptr()) };
    }
}

/// `|x|`. Squares of numbers above 1e19 need more than an `f32`; where those of small ones are lost, more is set aside.
fn norm(x: &[f32]) -> f64 {
    let square = f64::from(dot(x, x));
    if square.is_finite() { square.sqrt() } else { x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() }
}
