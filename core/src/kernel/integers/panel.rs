//! Weights as integers of 16 bits in panels of rows side by side: what a product reads in one go lies together.

use super::input::MAGIC;
use crate::quant::integers::BLOCK;
use crate::simd::{F32x16, Float, Int, Kernel};

/// Rows of a panel.
pub(super) const PANEL: usize = 32;
/// Rows that are packed together.
pub(super) const PACKED: usize = 16;

/// Vectors of a panel.
pub(super) const WIDE: usize = PANEL / F32x16::LANES;

/// Sixteen words that a vector is read from at once: were they not aligned, it would be read from two places.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Words(pub [u32; F32x16::LANES]);

/// A block of rows in panels, one after the other.
#[derive(Default)]
pub(super) struct Panels {
    pub cols: usize,
    pub offsets: usize,
    /// Of each panel `[cols / 2, WIDE]`: integers of two neighbours in a row, the first in the lower half.
    pub pairs: Vec<Words>,
    /// `[cols / 32, WIDE]`: what the integers count.
    pub steps: Vec<F32x16>,
    /// `[cols / 32 * offsets, WIDE]`: what is added to the weights.
    pub added: Vec<F32x16>,
}

impl Panels {
    /// Room for `rows`, which are filled by [`Pack`].
    pub fn reset(&mut self, rows: usize, cols: usize, offsets: usize) {
        (self.cols, self.offsets) = (cols, offsets);
        let panels = rows.div_ceil(PANEL);
        self.pairs.resize(panels * cols / 2 * WIDE, Words([0; F32x16::LANES]));
        self.steps.resize(panels * cols / BLOCK * WIDE, F32x16::ZERO);
        self.added.resize(panels * cols / BLOCK * offsets * WIDE, F32x16::ZERO);
    }
}

/// Puts up to 16 decoded rows (`weights`, `[count, cols]`) with their steps (`[count, cols / 32]`) and offsets into the
/// panels, from row `at`, a multiple of 16, on.
pub(super) struct Pack<'a> {
    pub weights: &'a [f32],
    pub steps: &'a [f32],
    pub added: &'a [f32],
    pub panels: &'a mut Panels,
    pub at: usize,
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Float>(self) {
        const { assert!(V::N == PACKED) };
        let Pack { weights, steps, added, panels, at } = self;
        let (cols, offsets) = (panels.cols, panels.offsets);
        let (count, blocks) = (weights.len() / cols, cols / BLOCK);
        let (panel, vector) = (at / PANEL, at % PANEL / PACKED);
        assert!(0 < count && count <= PACKED && at.is_multiple_of(PACKED) && cols.is_multiple_of(BLOCK));
        assert!(steps.len() >= count * blocks && added.len() >= count * blocks * offsets);
        let pairs = &mut panels.pairs[panel * WIDE * cols / 2..][..WIDE * cols / 2];
        let to_steps = &mut panels.steps[panel * WIDE * blocks..][..WIDE * blocks];
        let to_added = &mut panels.added[panel * WIDE * blocks * offsets..][..WIDE * blocks * offsets];
        // Lanes without a row repeat the first.
        let mut rows = [weights.as_ptr(); PACKED];
        for (pointer, row) in rows.iter_mut().zip(weights.chunks_exact(cols)) {
            *pointer = row.as_ptr();
        }
        for block in 0..blocks {
            let lanes = &mut to_steps[block * WIDE + vector];
            for (lane, steps) in lanes.0.iter_mut().zip(steps.chunks_exact(blocks)) {
                *lane = steps[block];
            }
            let inverse = V::splat(1.0) / V::read(lanes);
            // A step of zero, or so small that its inverse overflows, has no integers.
            let inverse = V::select(inverse.abs().le(V::splat(f32::MAX)), inverse, V::splat(0.0));
            let mut subtracted = [V::splat(0.0); 2];
            for (i, subtracted) in subtracted.iter_mut().enumerate().take(offsets) {
                let offset = block * offsets + i;
                let lanes = &mut to_added[offset * WIDE + vector];
                for (lane, added) in lanes.0.iter_mut().zip(added.chunks_exact(blocks * offsets)) {
                    *lane = added[offset];
                }
                *subtracted = V::read(lanes);
            }
            if offsets == 1 {
                subtracted[1] = subtracted[0];
            }
            for (half, subtracted) in subtracted.into_iter().enumerate() {
                for four in 0..BLOCK / 8 {
                    let col = block * BLOCK + half * BLOCK / 2 + four * 4;
                    // SAFETY: every row has `cols` floats, of which `col .. col + 4` are read.
                    let columns = unsafe { V::columns(&rows, col) };
                    for (i, columns) in columns.as_chunks::<2>().0.iter().enumerate() {
                        let low = (columns[0] - subtracted) * inverse + V::splat(MAGIC);
                        let high = (columns[1] - subtracted) * inverse + V::splat(MAGIC);
                        let pair = low.to_bits() & V::Int::splat(0xffff) | high.to_bits().shl::<16>();
                        let to = &mut pairs[(col / 2 + i) * WIDE + vector];
                        // SAFETY: sixteen words.
                        unsafe { pair.store(to.0.as_mut_ptr().cast()) };
                    }
                }
            }
        }
    }
}
