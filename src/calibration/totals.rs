//! Sums over many windows that do not depend on the order or the grouping in which windows are added: each window's sums
//! are rounded once to fixed point, and integers add up exactly. So runs on several machines merge, in any order, into
//! what one run over all windows gives, bit for bit. What is summed within a window is `stats`' matter.

use std::collections::BTreeMap;

/// The inputs of one linear layer, or of a stack of them, over one set of tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    pub cols: usize,
    /// `[matrices, cols]`: Σ x².
    pub sum2: Vec<f64>,
    /// `[matrices, cols]`: Σ |x|.
    pub abs: Vec<f64>,
    /// Tokens per matrix.
    pub counts: Vec<u64>,
}

/// Bits behind the point: a window's sum is kept to 2⁻⁴⁰ (10⁻¹²).
const FRACTION: i32 = 40;
/// Numbers from here on are not kept exactly.
const LARGEST: f64 = (1u128 << 80) as f64;

/// To the nearest fixed-point number; `None` beyond 2⁸⁰.
pub fn fixed(value: f64) -> Option<i128> {
    (value.abs() < LARGEST).then(|| (value * 2f64.powi(FRACTION)).round() as i128)
}

/// The nearest `f32`.
pub fn single(fixed: i128) -> f32 {
    // Rounded once: the scaling is exact.
    fixed as f32 * 2f32.powi(-FRACTION)
}

/// The nearest `f64`.
pub fn double(fixed: i128) -> f64 {
    fixed as f64 * 2f64.powi(-FRACTION)
}

/// What `single` leaves out; `None` beyond about 2⁴⁸.
pub fn residue(value: i128) -> Option<i64> {
    i64::try_from(value - fixed(f64::from(single(value)))?).ok()
}

/// The number with this `single` and `residue`; `None` when there is none.
pub fn with_residue(rounded: f32, residue: i64) -> Option<i128> {
    fixed(f64::from(rounded))?.checked_add(i128::from(residue)).filter(|value| single(*value) == rounded)
}

/// The inputs of one linear layer, or of a stack of them, over all windows so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// `[matrices, cols]`: Σ x², in fixed point.
    pub sums: Vec<i128>,
    /// `[matrices, cols]`: Σ |x|.
    pub magnitudes: Vec<i128>,
    /// Tokens per matrix.
    pub counts: Vec<u64>,
    /// A number did not fit; nothing is exact.
    pub overflow: bool,
}

impl Total {
    /// Of two data sets together; `None` when a number does not fit.
    pub fn joined(mut self, other: &Total) -> Option<Total> {
        let add = |totals: &mut [i128], parts: &[i128]| {
            let sums = totals.iter_mut().zip(parts).map(|(total, part)| Some((total.checked_add(*part)?, total)));
            sums.map(|sum| sum.map(|(sum, total)| *total = sum)).collect::<Option<()>>()
        };
        add(&mut self.sums, &other.sums)?;
        add(&mut self.magnitudes, &other.magnitudes)?;
        self.counts.iter_mut().zip(&other.counts).for_each(|(total, part)| *total += part);
        Some(self).filter(|total| !total.overflow && !other.overflow)
    }

    fn add(&mut self, input: &Input) {
        self.sums.resize(input.sum2.len(), 0);
        self.magnitudes.resize(input.abs.len(), 0);
        self.counts.resize(input.counts.len(), 0);
        for (matrix, count) in input.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            self.counts[matrix] += count;
            let range = matrix * input.cols..(matrix + 1) * input.cols;
            let pairs = [(&mut self.sums, &input.sum2), (&mut self.magnitudes, &input.abs)];
            for (totals, parts) in pairs {
                for (total, part) in totals[range.clone()].iter_mut().zip(&parts[range.clone()]) {
                    match fixed(*part).and_then(|part| total.checked_add(part)) {
                        Some(sum) => *total = sum,
                        None => self.overflow = true,
                    }
                }
            }
        }
    }
}

/// Totals by GGUF name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals(pub BTreeMap<String, Total>);

impl Totals {
    /// Adds what one window gave.
    pub fn add(&mut self, window: &BTreeMap<String, Input>) {
        for (name, input) in window {
            match self.0.get_mut(name) {
                Some(total) => total.add(input),
                None => self.0.entry(name.clone()).or_default().add(input),
            }
        }
    }

    /// Adds what other windows gave; `Err` names a tensor whose sums are of another size, or cannot be added exactly.
    pub fn join(&mut self, other: Totals) -> Result<(), String> {
        for (name, total) in other.0 {
            let joined = match self.0.remove(&name) {
                None => Some(total),
                Some(own) => {
                    let fits = own.sums.len() == total.sums.len() && own.counts.len() == total.counts.len();
                    if fits { own.joined(&total) } else { None }
                }
            };
            let joined = joined.ok_or_else(|| name.clone())?;
            self.0.insert(name, joined);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_come_back_from_their_two_parts() {
        for value in [0.0, 1e-12, 1.0, 1.0 / 3.0, 12345.678901234567, 1e9 + 1e-7, 2e14] {
            let exact = fixed(value).unwrap();
            let near = exact as f64 * 2f64.powi(-FRACTION);
            assert!((near - value).abs() <= 2f64.powi(-FRACTION - 1));
            assert_eq!(single(exact), near as f32);
            assert_eq!(with_residue(single(exact), residue(exact).unwrap()), Some(exact));
        }
        assert_eq!(fixed(f64::INFINITY), None);
        assert_eq!(fixed(f64::NAN), None);
        assert_eq!(residue(fixed(1e20 / 3.0).unwrap()), None);
        assert_eq!(with_residue(1.0, i64::MAX), None, "the parts are not of one number");
    }

    proptest! {
        #[test]
        fn the_order_of_windows_does_not_matter(parts in prop::collection::vec(0f64..1e9, 1..40), cut in 0usize..40) {
            let input = |v: f64| Input { cols: 1, sum2: vec![v], abs: vec![v.sqrt()], counts: vec![1] };
            let sum = |parts: &[f64]| {
                let mut total = Total::default();
                parts.iter().for_each(|v| total.add(&input(*v)));
                total
            };
            let whole = sum(&parts);
            let (a, b) = parts.split_at(cut.min(parts.len()));
            let (a, b) = (sum(b), sum(a));
            let joined = a.sums.first().unwrap_or(&0) + b.sums.first().unwrap_or(&0);
            prop_assert_eq!(whole.sums[0], joined);
            let mut all = Totals::default();
            for part in [&a, &b].into_iter().filter(|part| !part.counts.is_empty()) {
                all.join(Totals([("x".to_string(), part.clone())].into())).unwrap();
            }
            prop_assert_eq!(all.0.get("x"), Some(&whole));
            let mut back = parts.clone();
            back.reverse();
            prop_assert_eq!(whole, sum(&back));
        }
    }
}
