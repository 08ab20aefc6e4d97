//! A codebook ("grid") of weight patterns, and for every pattern off the grid its nearest points on it. The neighbour
//! lists are derived once, at first use, as ggml's `iq2xs_init_impl` and `iq3xs_init_impl` do: their order decides which
//! of two equally good points a quantizer takes, and so the bytes. The points themselves are in `codes.rs`.

use std::sync::OnceLock;

use super::codes;

const OFF_GRID: u16 = u16::MAX;

/// Points of `N` digits each; digit `l` stands for the magnitude `2 l + 1`.
pub struct Grid<const N: usize> {
    bits: usize,
    levels: u8,
    points: Vec<[u8; N]>,
    /// By packed pattern: the point's index, or `OFF_GRID`.
    index: Vec<u16>,
    /// By packed pattern: where its neighbour list starts in `neighbours`; the list ends where the next one starts.
    starts: Vec<u32>,
    neighbours: Vec<u16>,
    /// The packed pattern of every entry of `neighbours`, and `PADDING` zeros.
    patterns: Vec<u16>,
}

/// The nearest points of a pattern off the grid, nearest first, equal distances by index. Never empty.
#[derive(Clone, Copy)]
pub struct Candidates<'a> {
    pub points: &'a [u16],
    /// Their packed patterns, followed by [`PADDING`] more numbers that may be read as well.
    pub patterns: &'a [u16],
}

pub const PADDING: usize = 32;

/// Where a pattern lies.
pub enum Place<'a> {
    On(u16),
    Off(Candidates<'a>),
}

impl<const N: usize> Grid<N> {
    /// `codes` are patterns of `N` digits of `bits` bits, each digit below `levels`. A pattern off the grid gets the
    /// points at its `wanted` smallest distinct distances as neighbours.
    fn new(codes: &[u16], bits: usize, levels: u8, wanted: usize) -> Self {
        let points: Vec<[u8; N]> = codes.iter().map(|&code| unpack(code, bits)).collect();
        let patterns = 1usize << (N * bits);
        let mut index = vec![OFF_GRID; patterns];
        for (i, &code) in codes.iter().enumerate() {
            index[usize::from(code)] = i as u16;
        }

        let half_bits = N / 2 * bits;
        let half_mask = (1usize << half_bits) - 1;
        let halves = half_distances::<N>(bits);
        let mut starts = Vec::with_capacity(patterns + 1);
        let mut neighbours = Vec::new();
        let mut distance = vec![0u8; codes.len()];
        for (pattern, &on_grid) in index.iter().enumerate() {
            starts.push(neighbours.len() as u32);
            let reachable = unpack::<N>(pattern as u16, bits).iter().all(|&digit| digit < levels);
            if on_grid != OFF_GRID || !reachable {
                continue;
            }
            let low = &halves[(pattern & half_mask) << half_bits..];
            let high = &halves[(pattern >> half_bits) << half_bits..];
            let mut occurs = [false; 256];
            for (d, &code) in distance.iter_mut().zip(codes) {
                let code = usize::from(code);
                *d = low[code & half_mask] + high[code >> half_bits];
                occurs[usize::from(*d)] = true;
            }
            for (wanted_distance, _) in occurs.iter().enumerate().filter(|(_, found)| **found).take(wanted) {
                let at = distance.iter().enumerate().filter(|(_, d)| usize::from(**d) == wanted_distance);
                neighbours.extend(at.map(|(i, _)| i as u16));
            }
        }
        starts.push(neighbours.len() as u32);
        let patterns = neighbours.iter().map(|i| codes[usize::from(*i)]).chain([0; PADDING]).collect();
        Grid { bits, levels, points, index, starts, neighbours, patterns }
    }

    /// The number of values a digit can take.
    pub fn levels(&self) -> u8 {
        self.levels
    }

    pub fn point(&self, index: u16) -> &[u8; N] {
        &self.points[usize::from(index)]
    }

    /// Where the pattern of these `N` digits, each below `levels`, lies.
    pub fn place(&self, digits: &[u8]) -> Place<'_> {
        self.place_packed(digits.iter().rev().fold(0usize, |code, &digit| code << self.bits | usize::from(digit)))
    }

    /// The same for a packed pattern.
    #[inline(always)]
    pub fn place_packed(&self, pattern: usize) -> Place<'_> {
        match self.index[pattern] {
            OFF_GRID => {
                let (start, end) = (self.starts[pattern] as usize, self.starts[pattern + 1] as usize);
                let points = &self.neighbours[start..end];
                Place::Off(Candidates { points, patterns: &self.patterns[start..end + PADDING] })
            }
            index => Place::On(index),
        }
    }
}

/// The `N` digits of a packed point, least significant first.
pub fn unpack<const N: usize>(code: u16, bits: usize) -> [u8; N] {
    std::array::from_fn(|i| (code >> (i * bits)) as u8 & ((1u8 << bits) - 1))
}

/// Squared distances between all pairs of half patterns (`N / 2` digits), `[half, half]`.
fn half_distances<const N: usize>(bits: usize) -> Vec<u8> {
    let count = 1usize << (N / 2 * bits);
    let digit = |half: usize, i: usize| (half >> (i * bits)) & ((1 << bits) - 1);
    let distance = |a: usize, b: usize| (0..N / 2).map(|i| digit(a, i).abs_diff(digit(b, i)).pow(2) as u8).sum();
    (0..count * count).map(|pair| distance(pair / count, pair % count)).collect()
}

macro_rules! grid {
    ($name:ident, $n:literal, $codes:ident, $bits:literal, $levels:literal, $wanted:literal) => {
        pub fn $name() -> &'static Grid<$n> {
            static GRID: OnceLock<Grid<$n>> = OnceLock::new();
            GRID.get_or_init(|| Grid::new(&codes::$codes, $bits, $levels, $wanted))
        }
    };
}

grid!(iq2_xxs, 8, IQ2_XXS, 2, 3, 2);
grid!(iq2_xs, 8, IQ2_XS, 2, 3, 2);
grid!(iq2_s, 8, IQ2_S, 2, 3, 1);
grid!(iq1, 8, IQ1, 2, 3, 3);
grid!(iq3_xxs, 4, IQ3_XXS, 3, 8, 2);
grid!(iq3_s, 4, IQ3_S, 3, 8, 3);

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a direct reading of the definition: sort all points by (distance, index), cut after the last wanted distance.
    #[test]
    fn neighbour_lists_follow_the_definition() {
        let grid = iq3_s();
        for pattern in (0..4096u16).step_by(7) {
            let digits: [u8; 4] = unpack(pattern, 3);
            let Place::Off(list) = grid.place(&digits) else { continue };
            let distance =
                |p: &[u8; 4]| -> i32 { (0..4).map(|i| (i32::from(p[i]) - i32::from(digits[i])).pow(2)).sum() };
            let mut sorted: Vec<(i32, u16)> =
                grid.points.iter().enumerate().map(|(i, p)| (distance(p), i as u16)).collect();
            sorted.sort();
            let mut distances: Vec<i32> = sorted.iter().map(|s| s.0).collect();
            distances.dedup();
            sorted.retain(|s| s.0 <= distances[2]);
            assert_eq!(list.points, sorted.iter().map(|s| s.1).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_point_is_on_its_grid_and_below_its_levels() {
        fn all<const N: usize>(grid: &Grid<N>) {
            for (i, point) in grid.points.iter().enumerate() {
                assert!(point.iter().all(|&digit| digit < grid.levels));
                assert!(matches!(grid.place(point), Place::On(index) if usize::from(index) == i));
            }
        }
        [iq2_xxs(), iq2_xs(), iq2_s(), iq1()].into_iter().for_each(all);
        [iq3_xxs(), iq3_s()].into_iter().for_each(all);
    }
}
