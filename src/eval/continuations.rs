//! Where greedy continuations of the same prompt part: of the base, and of a candidate.

use super::Estimate;
use super::tasks::share;
use serde::{Deserialize, Serialize};

/// Lengths after which it is said how many continuations are still equal.
const AFTER: [usize; 2] = [32, 300];

/// How long a candidate's continuations are the base's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Continued {
    /// The first token that differs, counted from 0, of every prompt; null where none does.
    pub first: Vec<Option<usize>>,
    /// Quartiles of it: 25 %, median, 75 %; null where they are beyond the length.
    pub quartiles: [Option<usize>; 3],
    /// How many continuations are still equal after so many tokens.
    pub equal: Vec<EqualAfter>,
}

/// The share of continuations that are equal up to a length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EqualAfter {
    /// The length.
    pub tokens: usize,
    /// The share, with Wilson's interval.
    pub share: Estimate,
}

/// Compares continuations of `length` tokens, prompt by prompt; what comes after one of the `end` tokens does not count.
pub fn compare(base: &[Vec<u32>], other: &[Vec<u32>], end: &[u32], length: usize) -> Continued {
    let parts = |(a, b): (&Vec<u32>, &Vec<u32>)| {
        let ended = a.iter().position(|t| end.contains(t)).map_or(a.len(), |at| at + 1);
        a.iter().zip(b).take(ended).position(|(a, b)| a != b)
    };
    let first: Vec<Option<usize>> = base.iter().zip(other).map(parts).collect();
    let mut sorted = first.clone();
    sorted.sort_by_key(|at| at.unwrap_or(usize::MAX));
    // The smallest that at least so many do not exceed.
    let quartile = |q: usize| sorted.get((sorted.len() * q).div_ceil(4).max(1) - 1).copied().flatten();
    let mut after: Vec<usize> = AFTER.into_iter().filter(|n| *n <= length).collect();
    if after.is_empty() {
        after.push(length);
    }
    let equal = |tokens: usize| {
        let still = first.iter().filter(|at| at.is_none_or(|at| at >= tokens)).count();
        EqualAfter { tokens, share: share(still, first.len()) }
    };
    Continued {
        quartiles: [1, 2, 3].map(quartile),
        equal: after.into_iter().map(equal).collect(),
        first: first.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continuations_part_at_the_first_token_that_differs() {
        let base = vec![vec![1; 40], vec![1; 40], vec![1; 40], vec![1, 9, 1, 1]];
        let mut other = vec![vec![1; 40]; 3];
        other[1][5] = 2;
        other[2][35] = 2;
        // After the end of the text nothing counts.
        other.push(vec![1, 9, 3, 3]);
        let found = compare(&base, &other, &[9], 40);
        assert_eq!(found.first, [None, Some(5), Some(35), None]);
        assert_eq!(found.quartiles, [Some(5), Some(35), None]);
        assert_eq!(found.equal.len(), 1);
        assert_eq!((found.equal[0].tokens, found.equal[0].share.value), (32, 0.75));
        // One that ends earlier than the other parts there.
        assert_eq!(compare(&base[3..], &[vec![1, 1, 1, 1]], &[9], 4).first, [Some(1)]);
        assert_eq!(compare(&base[..1], &[vec![9, 1]], &[9], 8).equal[0].tokens, 8);
    }
}
