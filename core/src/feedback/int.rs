//! Groups of integers with one scale and zero each (GPTQ, AWQ, compressed-tensors, MLX): the [`Grid`] that chooses scales,
//! zeros and codes inside the feedback loop. It packs nothing.
use super::lanes::{LANES, ScaleType, one_column};
use super::{Block, Choose, Factor, Grid, Local, Polish, Rounded, Square, SubBlock, round};
use crate::simd::F32x16;
use std::ops::Range;

/// What a format can hold. A weight is `(code - zero) · scale`, codes `0 .. 2^bits`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IntSpec {
    /// 2 to 8.
    pub bits: u8,
    /// Columns that share a scale; all of them for one scale per row. A last group may be shorter.
    pub group: usize,
    /// Zero is always `2^(bits - 1)`.
    pub symmetric: bool,
    /// The smallest zero that can be stored (1 in GPTQ's first format, which stores `zero - 1`).
    pub least_zero: u8,
    pub scale: ScaleType,
}

impl IntSpec {
    pub fn max_code(&self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    pub(super) fn middle(&self) -> f32 {
        (1u32 << (self.bits - 1)) as f32
    }

    pub(super) fn groups(&self, cols: usize) -> usize {
        cols.div_ceil(self.group.max(1))
    }
}

/// What every integer rounding yields and every integer packer takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    pub rows: usize,
    pub cols: usize,
    pub bits: u8,
    pub group: usize,
    /// `[rows, cols]`.
    pub codes: Vec<u8>,
    /// `[rows, groups]`, each a number of the file's type.
    pub scales: Vec<f32>,
    /// `[rows, groups]`.
    pub zeros: Vec<u8>,
    /// The group of each column, where it is not `column / group` (`desc_act` without static groups).
    pub g_idx: Option<Vec<u32>>,
}

impl Codes {
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.group.max(1))
    }

    /// Writes the weights of `rows` to `out` (`[rows.len(), cols]`).
    pub fn dequantize(&self, rows: Range<usize>, out: &mut [f32]) {
        let groups = self.groups();
        for (row, out) in rows.zip(out.chunks_mut(self.cols.max(1))) {
            let codes = &self.codes[row * self.cols..][..self.cols];
            let (scales, zeros) = (&self.scales[row * groups..][..groups], &self.zeros[row * groups..][..groups]);
            for (column, (out, code)) in out.iter_mut().zip(codes).enumerate() {
                let group = self.g_idx.as_ref().map_or(column / self.group, |g| g[column] as usize);
                *out = (f32::from(*code) - f32::from(zeros[group])) * scales[group];
            }
        }
    }
}

/// How hard to look for scales and codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    /// Try scales (and zeros) for every group and keep those of the lowest loss; otherwise they come from the extremes.
    pub scales: bool,
    /// Sweeps over codes and scales after the last column.
    pub sweeps: usize,
    /// Where groups do not follow the order of columns: scales from the weights as they were, groups in the file's
    /// order, no index (`static_groups`).
    pub static_groups: bool,
}

impl Default for Search {
    fn default() -> Self {
        Search { scales: true, sweeps: 1, static_groups: true }
    }
}

/// Rounds `w` (`[rows, factor.len()]`, finite) with error feedback. Returns the codes, and the loss as a share of the
/// weights' power (see [`Rounded::relative_loss`]). With a [`Factor::diagonal`] this is an importance-weighted search
/// without feedback.
pub fn quantize(w: &[f32], factor: &Factor, spec: &IntSpec, search: Search) -> (Codes, f64) {
    let cols = factor.len();
    let grid = IntGrid::new(factor, spec, search);
    let rounded = round(w, factor, &grid, search.sweeps);
    let loss = rounded.relative_loss();
    (grid.assemble(w.len() / cols.max(1), factor, rounded), loss)
}

/// Columns of a block where groups and blocks are not the same.
const FREE_BLOCK: usize = 128;

struct IntGrid {
    spec: IntSpec,
    search: bool,
    block: usize,
    /// The file's group at each place, where groups are known beforehand.
    group_of: Vec<u32>,
    /// Each block is one group, whose parameters are chosen when its turn comes.
    in_loop: bool,
    /// The index to write.
    g_idx: Option<Vec<u32>>,
}

/// Scale and zero of one group for each row.
#[derive(Clone, Copy)]
struct Parameters {
    scale: F32x16,
    inverse: F32x16,
    zero: F32x16,
}

impl Parameters {
    #[inline(always)]
    fn new(scale: F32x16, zero: F32x16, spec: &IntSpec) -> Self {
        let smallest = spec.scale.smallest();
        let scale = spec.scale.round(scale).map(|s| if s.abs() < smallest { smallest } else { s });
        Parameters { scale, inverse: scale.map(|s| 1.0 / s), zero }
    }

    #[inline(always)]
    fn code(&self, t: F32x16, max: f32) -> F32x16 {
        (t * self.inverse + self.zero).max(F32x16::ZERO).min(F32x16::splat(max)).round()
    }

    #[inline(always)]
    fn value(&self, code: F32x16) -> F32x16 {
        (code - self.zero) * self.scale
    }

    /// Row by row those of `self` where `a < b`, else those of `other`.
    #[inline(always)]
    fn if_less(&self, a: F32x16, b: F32x16, other: &Parameters) -> Parameters {
        Parameters {
            scale: self.scale.if_less(a, b, other.scale),
            inverse: self.inverse.if_less(a, b, other.inverse),
            zero: self.zero.if_less(a, b, other.zero),
        }
    }
}

struct Part {
    /// By place.
    codes: Vec<[u8; LANES]>,
    /// By the file's group.
    parameters: Vec<Parameters>,
}

/// Grids that are tried at once.
const TRIES: usize = 4;

impl IntGrid {
    fn new(factor: &Factor, spec: &IntSpec, search: Search) -> Self {
        let (cols, group) = (factor.len(), spec.group.max(1));
        let own: Vec<u32> = factor.order().iter().map(|c| *c / group as u32).collect();
        let together = own.chunks(group).all(|block| block.iter().all(|g| *g == block[0]));
        let small = group <= 2 * FREE_BLOCK;
        let (group_of, in_loop, g_idx) = if together || search.static_groups {
            (own, together && small, None)
        } else {
            let by_place: Vec<u32> = (0..cols).map(|p| (p / group) as u32).collect();
            let mut index = vec![0; cols];
            factor.order().iter().zip(&by_place).for_each(|(column, g)| index[*column as usize] = *g);
            (by_place, small, Some(index))
        };
        let block = if in_loop { group } else { FREE_BLOCK };
        IntGrid { spec: *spec, search: search.scales, block, group_of, in_loop, g_idx }
    }

    fn assemble(&self, rows: usize, factor: &Factor, rounded: Rounded<Part>) -> Codes {
        let (cols, groups) = (factor.len(), self.spec.groups(factor.len()));
        let (mut codes, mut scales) = (vec![0; rows * cols], vec![0.0; rows * groups]);
        let mut zeros = vec![0; rows * groups];
        for (row, part) in (0..rows).step_by(LANES).zip(&rounded.parts) {
            for lane in 0..LANES.min(rows - row) {
                let out = &mut codes[(row + lane) * cols..][..cols];
                part.codes.iter().zip(factor.order()).for_each(|(code, column)| out[*column as usize] = code[lane]);
                for (g, p) in part.parameters.iter().enumerate() {
                    scales[(row + lane) * groups + g] = p.scale.0[lane];
                    zeros[(row + lane) * groups + g] = p.zero.0[lane] as u8;
                }
            }
        }
        let (bits, group) = (self.spec.bits, self.spec.group);
        Codes { rows, cols, bits, group, codes, scales, zeros, g_idx: self.g_idx.clone() }
    }

    /// The parameters of a group whose weights lie between `low <= 0` and `high >= 0`: from these extremes, or the best of
    /// a few others by `loss`, which judges [`TRIES`] at a time.
    #[inline(always)]
    fn choose(&self, low: F32x16, high: F32x16, mut loss: impl Loss) -> Parameters {
        let spec = &self.spec;
        let max = spec.max_code();
        let plain = if spec.symmetric {
            Parameters::new(high.max(low * -1.0).map(|v| v / (max / 2.0)), F32x16::splat(spec.middle()), spec)
        } else {
            let p = Parameters::new((high - low).map(|v| v / max), F32x16::ZERO, spec);
            Parameters { zero: self.zero((low * p.inverse * -1.0).round()), ..p }
        };
        if !self.search {
            return plain;
        }
        let mut best = (plain, F32x16::splat(f32::INFINITY));
        let mut ratio = F32x16::splat(1.0);
        let (largest, smallest) = match spec.bits {
            0..=2 => (1.05, 0.35),
            3 => (1.08, 0.5),
            4 => (1.08, 0.68),
            _ => (1.01, 0.9),
        };
        let count = if spec.symmetric { 2 * TRIES } else { TRIES };
        let step = (largest - smallest) / (count - 1) as f32;
        let shifts: &[f32] = if spec.symmetric { &[0.0] } else { &[0.0, -1.0, 1.0] };
        let (batches, each) = (shifts.len() * count / TRIES, count / TRIES);
        // The last batch is nearer to the best one.
        for batch in 0..=batches {
            let mut tried = [plain; TRIES];
            let mut ratios = [ratio; TRIES];
            for c in 0..TRIES {
                let zero = if batch < batches {
                    ratios[c] = F32x16::splat(largest - (batch % each * TRIES + c) as f32 * step);
                    self.zero(plain.zero + shifts[batch / each])
                } else {
                    ratios[c] = ratio + [-0.6, -0.3, 0.3, 0.6][c] * step;
                    best.0.zero
                };
                tried[c] = Parameters::new(plain.scale * ratios[c], zero, spec);
            }
            let losses = loss.of(&tried);
            for c in 0..TRIES {
                ratio = ratios[c].if_less(losses[c], best.1, ratio);
                best.0 = tried[c].if_less(losses[c], best.1, &best.0);
                best.1 = losses[c].min(best.1);
            }
        }
        best.0
    }

    #[inline(always)]
    fn zero(&self, zero: F32x16) -> F32x16 {
        zero.max(F32x16::splat(f32::from(self.spec.least_zero))).min(F32x16::splat(self.spec.max_code()))
    }
}

#[inline(always)]
fn extremes<'a>(weights: impl Iterator<Item = &'a F32x16>) -> (F32x16, F32x16) {
    weights.fold((F32x16::ZERO, F32x16::ZERO), |(low, high), w| (low.min(*w), high.max(*w)))
}

#[inline(always)]
fn bytes(code: F32x16) -> [u8; LANES] {
    // Codes are whole numbers from 0 to 255 already.
    code.0.map(|v| v as i32 as u8)
}

#[inline(always)]
fn number(code: [u8; LANES]) -> F32x16 {
    F32x16(code.map(f32::from))
}

impl Grid for IntGrid {
    type Part = Part;

    fn block(&self) -> usize {
        self.block
    }

    #[inline(always)]
    fn start(&self, weights: &[F32x16], factor: &Factor) -> Part {
        let none = Parameters { scale: F32x16::ZERO, inverse: F32x16::ZERO, zero: F32x16::ZERO };
        let mut parameters = vec![none; self.spec.groups(weights.len())];
        if !self.in_loop {
            let max = self.spec.max_code();
            let mut members = vec![Vec::new(); parameters.len()];
            self.group_of.iter().enumerate().for_each(|(place, g)| members[*g as usize].push(place));
            for (parameters, members) in parameters.iter_mut().zip(&members) {
                let (low, high) = extremes(members.iter().map(|p| &weights[*p]));
                let loss = MembersLoss { weights, members, importance: factor.importance(), max };
                *parameters = self.choose(low, high, loss);
            }
        }
        Part { codes: vec![[0; LANES]; weights.len()], parameters }
    }

    #[inline(always)]
    fn round(&self, part: &mut Part, block: Block<'_>) {
        let max = self.spec.max_code();
        if self.in_loop {
            let (low, high) = extremes(block.weight.iter());
            let errors = vec![[F32x16::ZERO; TRIES]; block.weight.len()];
            let loss = TrialLoss { local: block.local, target: block.weight, max, errors };
            let chosen = self.choose(low, high, loss);
            part.parameters[self.group_of[block.places.start] as usize] = chosen;
        }
        let mut errors = vec![[F32x16::ZERO; 1]; block.weight.len()];
        let rounding = Rounding { grid: self, part, max, first: block.places.start, value: block.value };
        block.local.trial_with(0, block.weight, &mut errors, rounding);
        block.error.iter_mut().zip(&errors).for_each(|(out, [e])| *out = *e);
    }

    #[inline(always)]
    fn polish(&self, part: &mut Part, block: Polish<'_>) {
        let Polish { places, square, gradient, value } = block;
        let before = value.to_vec();
        if let [whole] = &square.parts[..] {
            self.round_again(part, &places, whole, gradient, value);
            for (j, before) in before.iter().enumerate() {
                square.moved(j, value[j] - *before, gradient);
            }
        }
        // One code after the other, to where the loss is least with all others fixed.
        let max = self.spec.max_code();
        for (j, value) in value.iter_mut().enumerate() {
            one_column();
            let p = &part.parameters[self.group_of[places.start + j] as usize];
            let code = p.code(*value + gradient[j] * (1.0 / square.diagonal(j)), max);
            let change = p.value(code) - *value;
            *value = p.value(code);
            part.codes[places.start + j] = bytes(code);
            square.moved(j, change, gradient);
        }
        if self.in_loop {
            self.refit(part, &places, square, gradient, value);
        }
    }
}

impl IntGrid {
    /// Runs the recurrence on the whole block once more, with the present parameters and some near them.
    #[inline(always)]
    fn round_again(
        &self,
        part: &mut Part,
        places: &Range<usize>,
        sub: &SubBlock,
        gradient: &[F32x16],
        value: &mut [F32x16],
    ) {
        let (max, spec) = (self.spec.max_code(), &self.spec);
        let mut target = vec![F32x16::ZERO; value.len()];
        let excess = sub.target(value, gradient, &mut target);
        let group = self.group_of[places.start] as usize;
        let present = part.parameters[group];
        let mut chosen = present;
        if self.in_loop && self.search {
            let mut errors = vec![[F32x16::ZERO; TRIES]; value.len()];
            let mut best = F32x16::splat(f32::INFINITY);
            let tries: &[[(f32, f32); TRIES]] = if spec.symmetric {
                &[[(1.0, 0.0), (0.97, 0.0), (1.03, 0.0), (0.94, 0.0)]]
            } else {
                &[
                    [(1.0, 0.0), (0.97, 0.0), (1.03, 0.0), (0.94, 0.0)],
                    [(1.0, -1.0), (1.0, 1.0), (0.97, -1.0), (0.97, 1.0)],
                ]
            };
            for tries in tries {
                let tried = tries.map(|(ratio, shift)| {
                    Parameters::new(present.scale * ratio, self.zero(present.zero + shift), spec)
                });
                let losses = trial(&sub.local, &target, &tried, max, &mut errors);
                for c in 0..TRIES {
                    chosen = tried[c].if_less(losses[c], best, &chosen);
                    best = losses[c].min(best);
                }
            }
        }
        let mut errors = vec![[F32x16::ZERO; 1]; value.len()];
        let mut codes = vec![F32x16::ZERO; value.len()];
        let mut values = vec![F32x16::ZERO; value.len()];
        let [loss] = sub.local.trial(0, &target, &mut errors, |j, [t]| {
            let p = if self.in_loop { chosen } else { part.parameters[self.group_of[places.start + j] as usize] };
            codes[j] = p.code(t, max);
            values[j] = p.value(codes[j]);
            [values[j]]
        });
        // Both figures carry rounding errors: only what is lower beyond doubt is taken.
        let bound = excess * ACCEPT;
        for j in 0..value.len() {
            one_column();
            value[j] = values[j].if_less(loss, bound, value[j]);
            let code = &mut part.codes[places.start + j];
            *code = bytes(codes[j].if_less(loss, bound, number(*code)));
        }
        if self.in_loop {
            part.parameters[group] = chosen.if_less(loss, bound, &present);
        }
    }

    /// The best scale for the block's codes, in closed form.
    #[inline(always)]
    fn refit(
        &self,
        part: &mut Part,
        places: &Range<usize>,
        square: &Square,
        gradient: &[F32x16],
        value: &mut [F32x16],
    ) {
        let group = self.group_of[places.start] as usize;
        let present = part.parameters[group];
        let steps: Vec<F32x16> = part.codes[places.clone()].iter().map(|c| number(*c) - present.zero).collect();
        let mut product = vec![F32x16::ZERO; steps.len()];
        square.product(0..steps.len(), &steps, &mut product);
        let (mut yg, mut yhy) = (F32x16::ZERO, F32x16::ZERO);
        for ((y, hy), g) in steps.iter().zip(&product).zip(gradient) {
            one_column();
            yg += *y * *g;
            yhy += *y * *hy;
        }
        let better = present.scale + yg.zip(yhy, |a, b| if b > 0.0 { a / b } else { 0.0 });
        let better = Parameters::new(better, present.zero, &self.spec);
        let d = better.scale - present.scale;
        let change = d * (d * yhy - yg * 2.0);
        // Lower by more than rounding errors can explain.
        let bound = (d * yg).abs() * -1e-3;
        part.parameters[group] = better.if_less(change, bound, &present);
        for (value, steps) in value.iter_mut().zip(&steps) {
            one_column();
            *value = *steps * part.parameters[group].scale;
        }
    }
}

/// A new choice must lower the loss at least to this share.
const ACCEPT: f32 = 0.9999;

/// Rounds the columns of a block, of which the first is at place `first`, with the parameters of their groups.
struct Rounding<'a> {
    grid: &'a IntGrid,
    part: &'a mut Part,
    max: f32,
    first: usize,
    value: &'a mut [F32x16],
}

impl Choose<1> for Rounding<'_> {
    #[inline(always)]
    fn choose(&mut self, j: usize, [target]: [F32x16; 1]) -> [F32x16; 1] {
        let place = self.first + j;
        let p = &self.part.parameters[self.grid.group_of[place] as usize];
        let code = p.code(target, self.max);
        self.part.codes[place] = bytes(code);
        self.value[j] = p.value(code);
        [self.value[j]]
    }
}

/// The losses of [`TRIES`] grids. Not a closure, which the compiler may leave uninlined, that is, without the level's
/// instructions.
trait Loss {
    fn of(&mut self, tried: &[Parameters; TRIES]) -> [F32x16; TRIES];
}

/// The weighted errors of the columns of a group, each rounded by itself.
struct MembersLoss<'a> {
    weights: &'a [F32x16],
    members: &'a [usize],
    importance: &'a [f32],
    max: f32,
}

impl Loss for MembersLoss<'_> {
    #[inline(always)]
    fn of(&mut self, tried: &[Parameters; TRIES]) -> [F32x16; TRIES] {
        let mut loss = [F32x16::ZERO; TRIES];
        for place in self.members {
            one_column();
            let (weight, h) = (self.weights[*place], self.importance[*place]);
            for c in 0..TRIES {
                let e = weight - tried[c].value(tried[c].code(weight, self.max));
                loss[c] += e * e * h;
            }
        }
        loss
    }
}

/// The loss of a block inside the feedback loop.
struct TrialLoss<'a> {
    local: &'a Local,
    target: &'a [F32x16],
    max: f32,
    errors: Vec<[F32x16; TRIES]>,
}

impl Loss for TrialLoss<'_> {
    #[inline(always)]
    fn of(&mut self, tried: &[Parameters; TRIES]) -> [F32x16; TRIES] {
        trial(self.local, self.target, tried, self.max, &mut self.errors)
    }
}

/// The loss of [`TRIES`] grids over a block.
#[inline(always)]
fn trial(
    local: &Local,
    target: &[F32x16],
    tried: &[Parameters; TRIES],
    max: f32,
    errors: &mut [[F32x16; TRIES]],
) -> [F32x16; TRIES] {
    local.trial_with(0, target, errors, Tried { tried, max })
}

/// Rounds with each of several grids.
struct Tried<'a> {
    tried: &'a [Parameters; TRIES],
    max: f32,
}

impl Choose<TRIES> for Tried<'_> {
    #[inline(always)]
    fn choose(&mut self, _: usize, mut targets: [F32x16; TRIES]) -> [F32x16; TRIES] {
        for (t, p) in targets.iter_mut().zip(self.tried) {
            one_column();
            *t = p.value(p.code(*t, self.max));
        }
        targets
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::nearest::nearest;
    use super::super::round_with;
    use super::*;
    use crate::isa::Isa;

    /// [`quantize`] with an instruction set.
    pub(in super::super) fn quantize_with(w: &[f32], factor: &Factor, spec: &IntSpec, isa: Isa) -> Codes {
        let grid = IntGrid::new(factor, spec, Search::default());
        grid.assemble(w.len() / factor.len(), factor, round_with(w, factor, &grid, 1, isa))
    }

    /// The worked examples of a compressed-tensors file (SmolLM2-135M, layer 0, key, row 0).
    #[test]
    fn nearest_is_that_of_compressed_tensors() {
        let mut w = vec![-0.15527, 0.34033, -0.48560, -0.32031, 0.00989, 0.17505, 0.17505, 0.50537];
        w.push(-1.4766);
        let w: Vec<f32> = w.into_iter().map(|v| half::f16::from_f64(v).to_f32()).collect();
        let spec = IntSpec { bits: 4, group: 64, symmetric: true, least_zero: 0, scale: ScaleType::F16 };
        let codes = nearest(&w, 1, w.len(), &spec);
        assert_eq!(codes.codes[..8], [7, 10, 6, 6, 8, 9, 9, 11]);
        assert!((codes.scales[0] - 0.19690).abs() < 1e-5);
        assert_eq!(codes.zeros, [8]);
    }

    #[test]
    fn zero_groups_and_negative_zeros_stay_in_range() {
        let spec = IntSpec { bits: 4, group: 4, symmetric: false, least_zero: 1, scale: ScaleType::F16 };
        let w = [0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, -1.0, -2.0, -3.0, -4.0];
        let codes = nearest(&w, 1, 12, &spec);
        assert_eq!(codes.zeros, [1, 1, 15]);
        let mut out = [0.0; 12];
        codes.dequantize(0..1, &mut out);
        assert_eq!(out[..4], [0.0; 4]);
        for (a, b) in out.iter().zip(&w) {
            assert!((a - b).abs() <= 0.4, "{a} {b}");
        }
    }
}
