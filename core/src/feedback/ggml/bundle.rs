//! Sixteen rows on their way through the stages, and the first pass over them: blocks of columns from left to right, each
//! with scales searched on what the errors before have made of its weights, then rounded with error feedback.

use super::candidates::{self, Scales, around, weighted_mean};
use super::lanes::Lanes;
use super::layout::{Block, Layout, MAX_BLOCK, MAX_SUBS, pack};
use super::matrices::{Matrices, Triangles};
use super::rounding::{Sub, losses, round, subtract};
use super::search::{self, BlockScales};
use crate::quant::QuantizeRow;
use crate::simd::F32x16;
use std::ops::Range;

/// How scales are found in the first pass.
#[derive(Clone, Copy)]
pub enum FirstPass<'a> {
    /// By ggml's search (with the importance `[cols]`) on the compensated block.
    Ggml(QuantizeRow, &'a [f32]),
    /// By a shorter search on the compensated block, then among neighbours on each freshly compensated sub-block.
    InLoop,
    /// The same neighbours, around what ggml's search finds with the diagonal of H.
    InLoopFromGgml(QuantizeRow),
}

/// A bundle of rows, transposed: everything is `[columns]` or `[sub-blocks]` or `[blocks]` of [`LANES`] rows.
pub struct Bundle {
    pub x: Vec<F32x16>,
    pub levels: Vec<F32x16>,
    /// Scaled errors E of the first pass; later the difference of the decoded and the given weights.
    pub errors: Vec<F32x16>,
    pub d: Vec<F32x16>,
    pub dmin: Vec<F32x16>,
    pub a: Vec<F32x16>,
    pub c: Vec<F32x16>,
}

/// The triangle of one sub-block.
#[inline(always)]
pub fn sub_of<'a>(x: &'a [F32x16], triangles: &'a Triangles, first: usize) -> Sub<'a> {
    let columns = first..first + x.len();
    Sub {
        x,
        u: &triangles.u[columns.start * x.len()..columns.end * x.len()],
        inverse: &triangles.inverse[columns.clone()],
        weights: &triangles.weights[columns],
    }
}

impl Bundle {
    /// From up to [`LANES`] whole rows of `cols` weights; missing rows are zeros.
    pub fn new(layout: &Layout, rows: &[f32], cols: usize) -> Self {
        let mut x = vec![F32x16::ZERO; cols];
        for (lane, row) in rows.chunks_exact(cols).enumerate() {
            for (column, v) in x.iter_mut().zip(row) {
                column.0[lane] = *v;
            }
        }
        let zeros = |n: usize| vec![F32x16::ZERO; n];
        let (blocks, subs) = (cols / layout.block, cols / layout.sub);
        Bundle {
            x,
            levels: zeros(cols),
            errors: zeros(cols),
            d: zeros(blocks),
            dmin: zeros(blocks),
            a: zeros(subs),
            c: zeros(subs),
        }
    }

    /// The scales of sub-block `b`, counted over the whole row.
    #[inline(always)]
    pub fn scales<V: Lanes>(&self, layout: &Layout, b: usize) -> Scales<V> {
        let block = b / layout.subs();
        Scales::load(&self.d[block], &self.dmin[block], &self.a[b], &self.c[b])
    }

    #[inline(always)]
    pub fn set_scales<V: Lanes>(&mut self, layout: &Layout, b: usize, scales: Scales<V>) {
        let block = b / layout.subs();
        scales.d.write(&mut self.d[block]);
        scales.dmin.write(&mut self.dmin[block]);
        scales.a.write(&mut self.a[b]);
        scales.c.write(&mut self.c[b]);
    }

    /// The first pass; `rows` of the lanes are in use.
    #[inline(always)]
    pub fn feedback<V: Lanes, const TABLE: bool>(
        &mut self,
        layout: &Layout,
        m: &Matrices,
        first: FirstPass,
        rows: usize,
    ) {
        for block in 0..m.n / layout.block {
            let columns = block * layout.block..(block + 1) * layout.block;
            let mut x = [F32x16::ZERO; MAX_BLOCK];
            let x = &mut x[..layout.block];
            x.copy_from_slice(&self.x[columns.clone()]);
            subtract::<V>(x, &m.u, columns.clone(), 0..columns.start, &self.errors[..columns.start]);
            let mut mean_levels = [F32x16::ZERO; MAX_SUBS];
            let scales = match first {
                FirstPass::Ggml(quantize, importance) => {
                    search::by_ggml(layout, quantize, x, &importance[columns.clone()], rows)
                }
                FirstPass::InLoopFromGgml(quantize) => {
                    let importance: Vec<f32> = m.inverse_diagonal[columns.clone()].iter().map(|v| 1.0 / v).collect();
                    let mut scales = search::by_ggml(layout, quantize, x, &importance, rows);
                    // Where ggml's overflow, the largest that there are.
                    for d in [&mut scales.d, &mut scales.dmin] {
                        V::read(d).round_f16().write(d);
                    }
                    let weights = &m.feedback.weights[columns.clone()];
                    search::mean_levels::<V, TABLE>(layout, x, weights, &scales, &mut mean_levels);
                    scales
                }
                FirstPass::InLoop => {
                    let weights = &m.feedback.weights[columns.clone()];
                    search::in_lanes::<V, TABLE>(layout, x, weights, &mut mean_levels)
                }
            };
            self.take(layout, block, &scales);
            for (b, x) in x.chunks_exact_mut(layout.sub).enumerate() {
                let columns = columns.start + b * layout.sub..columns.start + (b + 1) * layout.sub;
                let before = block * layout.block..columns.start;
                subtract::<V>(x, &m.u, columns.clone(), before.clone(), &self.errors[before]);
                let search = (!matches!(first, FirstPass::Ggml(..))).then(|| &mean_levels[b]);
                self.sub_block::<V, TABLE>(layout, sub_of(x, &m.feedback, columns.start), columns, search);
            }
        }
    }

    fn take(&mut self, layout: &Layout, block: usize, scales: &BlockScales) {
        let subs = block * layout.subs()..(block + 1) * layout.subs();
        (self.d[block], self.dmin[block]) = (scales.d, scales.dmin);
        self.a[subs.clone()].copy_from_slice(&scales.a[..layout.subs()]);
        self.c[subs].copy_from_slice(&scales.c[..layout.subs()]);
    }

    /// Rounds one sub-block, with the best of the neighbouring scales if its mean level is given.
    #[inline(always)]
    fn sub_block<V: Lanes, const TABLE: bool>(
        &mut self,
        layout: &Layout,
        sub: Sub<'_>,
        columns: Range<usize>,
        mean_level: Option<&F32x16>,
    ) {
        let b = columns.start / layout.sub;
        let mut scales: Scales<V> = self.scales(layout, b);
        if let Some(level) = mean_level {
            let means = search::means(level, weighted_mean(sub.x, sub.weights));
            let tried = around(layout, scales, means);
            let losses = losses::<V, TABLE>(layout, sub, &tried.map(Scales::affine));
            (scales, _) = candidates::best(&tried, &losses);
            self.set_scales(layout, b, scales);
        }
        let (levels, errors) = (&mut self.levels[columns.clone()], &mut self.errors[columns]);
        round::<V, TABLE>(layout, sub, scales.affine(), levels, errors);
    }

    /// The bytes of the rows in use.
    pub fn pack(&self, layout: &Layout, out: &mut [u8], row_bytes: usize) {
        let mut block = Block::new(layout);
        for (lane, out) in out.chunks_exact_mut(row_bytes).enumerate() {
            for (i, out) in out.chunks_exact_mut(layout.ty.block_bytes()).enumerate() {
                (block.d, block.dmin) = (self.d[i].0[lane], self.dmin[i].0[lane]);
                let subs = i * layout.subs()..(i + 1) * layout.subs();
                for (to, from) in block.a.iter_mut().zip(&self.a[subs.clone()]) {
                    *to = from.0[lane];
                }
                for (to, from) in block.c.iter_mut().zip(&self.c[subs]) {
                    *to = from.0[lane];
                }
                for (to, from) in block.levels.iter_mut().zip(&self.levels[i * layout.block..(i + 1) * layout.block]) {
                    *to = from.0[lane];
                }
                pack(layout, &block, out);
            }
        }
    }
}
