//! The product of activations and panels, both integers. Lanes are rows of the weights. Sums of integers are exact, and
//! floats are added in the order of the blocks, so every instruction set gives the same bits.

use super::input::{Input, PAIRS, SUM, TILE, Tile};
use super::panel::{PANEL, Panels, WIDE, Words};
use crate::quant::integers::{BLOCK, LARGEST};
use crate::simd::{F32x16, Float, Int, Kernel};

/// Blocks of columns that are multiplied before the next: what a block of rows shares of them stays in the second-level
/// cache.
const DEPTH: usize = 128;

// No sum of integers overflows.
const _: () = assert!(LARGEST as i64 * SUM as i64 <= 1 << 31);

/// `y[n, rows] = x · wᵀ`. Row `t` of `y` begins at `y + t * stride`.
pub(super) struct Multiply<'a> {
    pub x: &'a Input,
    pub w: &'a Panels,
    pub rows: usize,
    /// For every `t < n` the `rows` floats from `y + t * stride` on are there, and nobody else uses them meanwhile.
    pub y: *mut f32,
    pub stride: usize,
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Float>(self) {
        match self.w.offsets {
            0 => self.all::<V, 0>(),
            1 => self.all::<V, 1>(),
            _ => self.all::<V, 2>(),
        }
    }
}

/// Some rows of a tile, and the panel that they are multiplied with, from some block on.
#[derive(Clone, Copy)]
struct Operands {
    pairs: *const u32,
    scales: *const f32,
    totals: *const f32,
    weights: *const Words,
    steps: *const F32x16,
    added: *const F32x16,
}

/// What is added up for each of some rows, in vectors of a panel.
type Sums<const M: usize> = [[F32x16; WIDE]; M];

impl Multiply<'_> {
    #[inline(always)]
    fn all<V: Float, const OFFSETS: usize>(&self) {
        // So many rows that what follows a block of one overlaps with the block of the next, or as there are registers
        // for.
        match V::VECTORS {
            1 => self.tiles::<V, OFFSETS, 6, WIDE>(),
            2 => self.tiles::<V, OFFSETS, 4, 1>(),
            _ => self.tiles::<V, OFFSETS, 2, 1>(),
        }
    }

    /// In tiles of `M` rows by `L` vectors.
    #[inline(always)]
    fn tiles<V: Float, const OFFSETS: usize, const M: usize, const L: usize>(&self) {
        const { assert!(V::N == F32x16::LANES && TILE.is_multiple_of(M) && WIDE.is_multiple_of(L)) };
        let (cols, blocks) = (self.x.cols, self.x.cols / BLOCK);
        assert!(cols == self.w.cols && cols.is_multiple_of(BLOCK) && OFFSETS == self.w.offsets);
        let panels = self.rows.div_ceil(PANEL);
        assert!(self.w.pairs.len() >= panels * cols / 2 * WIDE && self.w.steps.len() >= panels * blocks * WIDE);
        assert!(self.w.added.len() >= panels * blocks * OFFSETS * WIDE);
        for from in (0..blocks).step_by(DEPTH) {
            let until = blocks.min(from + DEPTH);
            for (i, tile) in self.x.tiles.iter().enumerate() {
                assert!(tile.pairs.len() >= cols / 2 * TILE && tile.scales.len() >= blocks * TILE);
                assert!(tile.totals.len() >= blocks * OFFSETS * TILE);
                let count = TILE.min(self.x.n - i * TILE);
                for t in (0..count).step_by(M) {
                    for panel in 0..panels {
                        // SAFETY: the operands are as long as was asserted, and `y` as promised.
                        unsafe {
                            let y = self.y.add((i * TILE + t) * self.stride + panel * PANEL);
                            let size = (M.min(count - t), PANEL.min(self.rows - panel * PANEL));
                            self.tile::<V, OFFSETS, M, L>(tile, t, panel, from, until, y, size);
                        }
                    }
                }
            }
        }
    }

    /// Rows of a tile of activations from `t` on times one panel: blocks `from .. until` of their columns, added to what
    /// is in `y` where others were before. `size` is how many rows and columns of the result there are.
    ///
    /// # Safety
    /// There must be so many rows, also in `y`, and the panel.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    unsafe fn tile<V: Float, const OFFSETS: usize, const M: usize, const L: usize>(
        &self,
        tile: &Tile,
        t: usize,
        panel: usize,
        from: usize,
        until: usize,
        y: *mut f32,
        (rows, columns): (usize, usize),
    ) {
        let blocks = self.x.cols / BLOCK;
        let mut sums: Sums<M> = [[F32x16::ZERO; WIDE]; M];
        // SAFETY: by the caller's promise.
        unsafe {
            if from > 0 {
                for (m, sums) in sums.iter_mut().enumerate().take(rows) {
                    std::ptr::copy_nonoverlapping(y.add(m * self.stride), sums.as_mut_ptr().cast(), columns);
                }
            }
            let block = panel * blocks + from;
            let mut at = Operands {
                pairs: tile.pairs.as_ptr().add(t + from * PAIRS * TILE),
                scales: tile.scales.as_ptr().add(t + from * TILE),
                totals: tile.totals.as_ptr().add(t + from * OFFSETS * TILE),
                weights: self.w.pairs.as_ptr().add(block * PAIRS * WIDE),
                steps: self.w.steps.as_ptr().add(block * WIDE),
                added: self.w.added.as_ptr().add(block * OFFSETS * WIDE),
            };
            // The compiler would take sums out of memory and have no registers for them.
            let to: &mut Sums<M> = std::hint::black_box(&mut sums);
            for _ in from..until {
                for vector in (0..WIDE).step_by(L) {
                    multiply::<V, OFFSETS, M, L>(at, vector, to);
                }
                at = Operands {
                    pairs: at.pairs.add(PAIRS * TILE),
                    scales: at.scales.add(TILE),
                    totals: at.totals.add(OFFSETS * TILE),
                    weights: at.weights.add(PAIRS * WIDE),
                    steps: at.steps.add(WIDE),
                    added: at.added.add(OFFSETS * WIDE),
                };
            }
            if until == blocks {
                for (sums, large) in sums.iter_mut().zip(&tile.large[t..]) {
                    for (col, x) in large {
                        self.add_large::<V>(*col, *x, panel, sums);
                    }
                }
            }
            for (m, sums) in sums.iter().enumerate().take(rows) {
                let y = y.add(m * self.stride);
                if columns == PANEL {
                    for (vector, sum) in sums.iter().enumerate() {
                        V::read(sum).store(y.add(vector * V::N));
                    }
                } else {
                    std::ptr::copy_nonoverlapping(sums.as_ptr().cast(), y, columns);
                }
            }
        }
    }

    /// Adds `x` times the weights of one column.
    #[inline(always)]
    fn add_large<V: Float>(&self, col: usize, x: f32, panel: usize, sums: &mut [F32x16; WIDE]) {
        let (half, blocks, offsets) = (self.x.cols / 2, self.x.cols / BLOCK, self.w.offsets);
        for (vector, sum) in sums.iter_mut().enumerate() {
            let words = &self.w.pairs[(panel * half + col / 2) * WIDE + vector];
            // SAFETY: sixteen words.
            let pair = unsafe { V::Int::load(words.0.as_ptr().cast()) };
            let upper = if col.is_multiple_of(2) { pair.shl::<16>() } else { pair & V::Int::splat(!0xffff) };
            let integer = upper.to_float() * V::splat(1.0 / 65536.0);
            let mut weight = integer * V::read(&self.w.steps[(panel * blocks + col / BLOCK) * WIDE + vector]);
            if offsets > 0 {
                let at = panel * blocks * offsets + col * offsets / BLOCK;
                weight = weight + V::read(&self.w.added[at * WIDE + vector]);
            }
            (V::read(sum) + V::splat(x) * weight).write(sum);
        }
    }
}

/// One block of 32 columns: `sums += Σ integers · step · scale + Σ totals · offsets`, in `L` vectors of the panel from
/// `vector` on.
///
/// # Safety
/// The operands must be there: `M` rows of a tile, a panel.
#[inline(always)]
unsafe fn multiply<V: Float, const OFFSETS: usize, const M: usize, const L: usize>(
    at: Operands,
    vector: usize,
    sums: &mut Sums<M>,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        let mut integers = [[V::Int::splat(0); L]; M];
        for k in 0..PAIRS {
            let mut w = [V::Int::splat(0); L];
            for (l, w) in w.iter_mut().enumerate() {
                *w = V::Int::load(at.weights.add(k * WIDE + vector + l).cast());
            }
            for (m, integers) in integers.iter_mut().enumerate() {
                let x = V::Int::splat(*at.pairs.add(k * TILE + m) as i32);
                for (integer, w) in integers.iter_mut().zip(w) {
                    *integer = integer.add_products(x, w);
                }
            }
        }
        // Loops this small become straight code, and what they share stays in registers.
        let mut values = [[V::splat(0.0); L]; M];
        for l in 0..L {
            let step = V::read(&*at.steps.add(vector + l));
            for (values, integers) in values.iter_mut().zip(&integers) {
                values[l] = integers[l].to_float() * step;
            }
        }
        for (m, values) in values.iter_mut().enumerate() {
            let scale = V::splat(*at.scales.add(m));
            for value in values {
                *value = *value * scale;
            }
        }
        for o in 0..OFFSETS {
            for l in 0..L {
                let added = V::read(&*at.added.add(o * WIDE + vector + l));
                for (m, values) in values.iter_mut().enumerate() {
                    values[l] = values[l] + V::splat(*at.totals.add(o * TILE + m)) * added;
                }
            }
        }
        for (sums, values) in sums.iter_mut().zip(&values) {
            for (sum, value) in sums[vector..vector + L].iter_mut().zip(values) {
                (V::read(sum) + *value).write(sum);
            }
        }
    }
}
