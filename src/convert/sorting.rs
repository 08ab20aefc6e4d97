//! Feed-forward channels in the order of their power. A model computes the same in any order, as long as the rows of gate
//! and up and the columns of down go along; but blocks along a row of down then hold channels of like power, and what
//! feedback pushes ahead lands on channels that matter less (the idea of GPTQ's descending activation order, within what
//! every reader of the format understands).

use crate::calibration::layerwise::Captured;
use crate::calibration::moments::Moments;
use crate::model::graph::rows_before;
use crate::model::{Model, Role};
use std::collections::HashMap;
use std::rc::Rc;

/// What the order of channels is to a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Channels are its rows; in a fused matrix, of both halves.
    Rows,
    Cols,
}

/// The orders of one feed-forward block: for each expert, or for the one block, which channel stands at each place.
pub struct Orders(Vec<Vec<u32>>);

impl Orders {
    /// Sorts by `power`, `[experts][channels]`, largest first; equals stay in their order.
    fn new(power: &[Vec<f32>]) -> Self {
        let sorted = power.iter().map(|power| {
            let mut order: Vec<u32> = (0..power.len() as u32).collect();
            order.sort_by(|a, b| power[*b as usize].total_cmp(&power[*a as usize]));
            order
        });
        Orders(sorted.collect())
    }

    pub fn of(&self, expert: usize) -> &[u32] {
        &self.0[expert]
    }

    /// The place of each channel.
    pub fn places(&self, expert: usize) -> Vec<u32> {
        let mut places = vec![0; self.0[expert].len()];
        for (place, channel) in self.0[expert].iter().enumerate() {
            places[*channel as usize] = place as u32;
        }
        places
    }
}

/// A matrix that is to be sorted.
pub type Sorted = (Side, Rc<Orders>);

/// The matrices of one layer that are to be sorted, by their place in the model: those of a feed-forward block of which
/// every matrix is `quantized` and none has a bias beside its rows.
pub fn sorted(model: &Model, captured: &[Captured], quantized: impl Fn(usize) -> bool) -> HashMap<usize, Sorted> {
    let find = |role: Role, layer| model.tensors.iter().position(|t| t.role == role && t.layer == layer);
    let mut all = HashMap::new();
    for captured in captured {
        let Some(name) = captured.linears.first() else { continue };
        let Some(down) = model.tensors.iter().position(|t| t.name == *name) else { continue };
        let tensor = &model.tensors[down];
        let above: Vec<Role> = rows_before(tensor.role).collect();
        let biased = above.iter().filter_map(|role| role.bias()).any(|bias| find(bias, tensor.layer).is_some());
        if above.is_empty() || biased {
            continue;
        }
        let rows: Vec<usize> = above.iter().filter_map(|role| find(*role, tensor.layer)).collect();
        if !quantized(down) || !rows.iter().all(|i| quantized(*i)) {
            continue;
        }
        let power = |m: &Moments| (0..m.cols).map(|i| m.gram[i * m.cols + i]).collect();
        let orders = Rc::new(Orders::new(&captured.moments.iter().map(power).collect::<Vec<_>>()));
        all.insert(down, (Side::Cols, orders.clone()));
        all.extend(rows.into_iter().map(|i| (i, (Side::Rows, orders.clone()))));
    }
    all
}

/// `[rows, cols]` with its columns in `order`.
pub fn columns(matrix: &[f32], order: &[u32]) -> Vec<f32> {
    matrix.chunks_exact(order.len()).flat_map(|row| order.iter().map(|i| row[*i as usize])).collect()
}

/// A square matrix with rows and columns in `order`.
pub fn both(square: &[f32], order: &[u32]) -> Vec<f32> {
    let n = order.len();
    let row = |i: &u32| &square[*i as usize * n..][..n];
    order.iter().flat_map(|i| order.iter().map(|j| row(i)[*j as usize])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_go_from_the_strongest_to_the_weakest() {
        let orders = Orders::new(&[vec![1.0, 3.0, 0.0, 3.0], vec![0.0; 4]]);
        assert_eq!(orders.of(0), [1, 3, 0, 2]);
        assert_eq!(orders.places(0), [2, 0, 3, 1]);
        assert_eq!(orders.of(1), [0, 1, 2, 3]);
    }

    #[test]
    fn matrices_are_permuted() {
        assert_eq!(columns(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 0, 1]), [3.0, 1.0, 2.0, 6.0, 4.0, 5.0]);
        assert_eq!(both(&[1.0, 2.0, 3.0, 4.0], &[1, 0]), [4.0, 3.0, 2.0, 1.0]);
    }
}
