//! Packed matrices whose codes stay while what is continuous in them changes: scales, and biases where a format has them.

use super::matrix::{Blocks, Coding, Numbers, Packed};
use super::{Activations, Input, Piece, Spec};
use crate::dtype::{Dtype, GgmlType};
use crate::kernel::{RowSource, vector};
use crate::minifloat::{self, round_all};
use crate::{Error, Result};
use std::ops::Range;

/// A packed matrix with scales (and biases) in `f32`, each of which its stored type holds.
#[derive(Clone, Debug)]
pub struct Tunable {
    packed: Packed,
    groups: usize,
    /// In which scales and biases are stored.
    dtype: GgmlType,
}

impl Packed {
    /// The matrix as one that can be tuned; `None` where what is continuous in it is not a float for every group of columns
    /// of a row, or where engines round its input.
    pub fn tunable(mut self) -> Option<Tunable> {
        let groups = match &self.blocks {
            Blocks::Grid { rows: 1, cols } => self.cols.div_ceil(*cols),
            Blocks::Columns { groups, .. } => *groups,
            Blocks::Grid { .. } | Blocks::Flat(_) => return None,
        };
        let (dtype, scales) = floats(&self.scales).filter(|_| self.input == Input::Exact)?;
        match &mut self.coding {
            Coding::Bias(biases) => *biases = Numbers::F32(floats(biases)?.1),
            Coding::Zeros(_) | Coding::Offset(_) => {}
            Coding::Signed | Coding::Table(_) => return None,
        }
        self.scales = Numbers::F32(scales);
        Some(Tunable { packed: self, groups, dtype })
    }
}

/// Numbers that are stored as floats, and their type.
fn floats(numbers: &Numbers) -> Option<(GgmlType, Vec<f32>)> {
    let dtype = match numbers {
        Numbers::F32(_) => GgmlType::F32,
        Numbers::F16(_) => GgmlType::F16,
        Numbers::BF16(_) => GgmlType::BF16,
        Numbers::Table(..) => return None,
    };
    Some((dtype, (0..numbers.len()).map(|i| numbers.get(i)).collect()))
}

fn plain(numbers: &Numbers) -> &[f32] {
    if let Numbers::F32(numbers) = numbers { numbers } else { &[] }
}

impl Tunable {
    /// Groups in a row.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Scales of all groups, `[rows, groups]` in the stored order of rows.
    pub fn scales(&self) -> &[f32] {
        plain(&self.packed.scales)
    }

    /// The same of biases; `None` where the format has zero points, which stay.
    pub fn biases(&self) -> Option<&[f32]> {
        if let Coding::Bias(biases) = &self.packed.coding { Some(plain(biases)) } else { None }
    }

    /// The type that scales and biases are stored in.
    pub fn dtype(&self) -> GgmlType {
        self.dtype
    }

    /// The same codes under other scales and biases (where there are any), which are rounded to the stored type.
    pub fn with(&self, mut scales: Vec<f32>, mut biases: Vec<f32>) -> Self {
        round_all(self.dtype, &mut scales);
        round_all(self.dtype, &mut biases);
        let mut packed = self.packed.clone();
        packed.scales = Numbers::F32(scales);
        if let Coding::Bias(old) = &mut packed.coding {
            *old = Numbers::F32(biases);
        }
        Tunable { packed, ..*self }
    }

    /// The stored row of a row.
    pub fn stored_row(&self, row: usize) -> usize {
        self.packed.order.as_ref().map_or(row, |order| order[row] as usize)
    }

    /// What the scale of each weight of a stored row is multiplied with: its code, less the zero point where there is one.
    /// `codes` is working memory.
    pub fn steps(&self, stored: usize, codes: &mut Vec<u8>, steps: &mut [f32]) {
        codes.resize(self.packed.cols, 0);
        self.packed.codes_of(stored, codes);
        let first = stored * self.groups;
        let zero = |group: usize| match &self.packed.coding {
            Coding::Zeros(zeros) => f32::from(zeros[first + group]),
            Coding::Offset(zero) => f32::from(*zero),
            _ => 0.0,
        };
        match &self.packed.blocks {
            Blocks::Columns { group_of, .. } => {
                let columns = steps.iter_mut().zip(&*codes).zip(group_of);
                columns.for_each(|((step, code), group)| *step = f32::from(*code) - zero(*group as usize));
            }
            Blocks::Grid { cols, .. } => {
                for (group, (steps, codes)) in steps.chunks_mut(*cols).zip(codes.chunks(*cols)).enumerate() {
                    let zero = zero(group);
                    steps.iter_mut().zip(codes).for_each(|(step, code)| *step = f32::from(*code) - zero);
                }
            }
            Blocks::Flat(_) => {}
        }
    }

    /// Sums over each group of a row: of `values` times `steps` to `along`, of `values` alone to `sums`.
    pub fn reduce(&self, steps: &[f32], values: &[f32], along: &mut [f32], sums: &mut [f32]) {
        match &self.packed.blocks {
            Blocks::Columns { group_of, .. } => {
                along.fill(0.0);
                sums.fill(0.0);
                for ((group, step), value) in group_of.iter().zip(steps).zip(values) {
                    along[*group as usize] += step * value;
                    sums[*group as usize] += value;
                }
            }
            Blocks::Grid { cols, .. } => {
                let groups = steps.chunks(*cols).zip(values.chunks(*cols));
                for ((steps, values), (along, sum)) in groups.zip(along.iter_mut().zip(sums)) {
                    *along = vector::dot(steps, values);
                    *sum = total(values);
                }
            }
            Blocks::Flat(_) => {}
        }
    }
}

/// The sum, in lanes whose order is fixed.
fn total(values: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    chunks.iter().for_each(|chunk| lanes.iter_mut().zip(chunk).for_each(|(lane, v)| *lane += v));
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

impl RowSource for Tunable {
    fn rows(&self) -> usize {
        self.packed.rows
    }

    fn cols(&self) -> usize {
        self.packed.cols
    }

    fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        self.packed.decode(rows, out);
    }
}

impl Spec {
    /// Whether its scales can change while codes stay, and engines leave its inputs as they are.
    pub fn is_tunable(&self) -> bool {
        self.is_integer() && self.activations() == Activations::Exact && self.format.tool.groups.is_some()
    }

    /// The tensors of a module that hold scales and biases, with those of `tuned`.
    ///
    /// # Errors
    /// `Internal` when it has other groups than this format.
    pub fn scale_pieces(&self, tuned: &Tunable, dtype: GgmlType) -> Result<Vec<Piece>> {
        let (rows, groups) = (tuned.rows(), tuned.groups);
        let (suffix, along) = self.format.tool.groups.unwrap_or_default();
        let mut pieces = Vec::new();
        for slot in self.layout(rows, tuned.cols(), dtype) {
            let values = match (tuned.biases(), slot.suffix) {
                (_, own) if own == suffix => tuned.scales(),
                (Some(biases), "biases") => biases,
                _ => continue,
            };
            let data = match (slot.dtype, along) {
                (Dtype::Ggml(ty), 0) => minifloat::to_bytes(ty, &super::transpose(values, rows, groups)),
                (Dtype::Ggml(ty), _) => minifloat::to_bytes(ty, values),
                (other, _) => return Err(Error::Internal(format!("scales stored as {other}"))),
            };
            if slot.bytes() != data.len() as u64 {
                return Err(Error::Internal(format!("{rows} x {groups} scales for {:?} of {self}", slot.shape)));
            }
            pieces.push(Piece { suffix: slot.suffix, dtype: slot.dtype, shape: slot.shape, data });
        }
        let wanted = 1 + usize::from(tuned.biases().is_some());
        match pieces.len() == wanted {
            true => Ok(pieces),
            false => Err(Error::Internal(format!("{} tensors of scales in {self}", pieces.len()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::read;
    use super::*;
    use crate::made::numbers;
    use crate::packed::{Module, parse};

    /// Unchanged, it decodes what it is made of; its scales, written back, are the bytes that were read; and every weight
    /// moves with its scale by its step.
    #[test]
    fn scales_come_and_go() {
        for name in [
            "mlx-4bit-32g",
            "mlx-3bit-64g",
            "gptq-4bit-32g",
            "gptq-4bit-32g-asym",
            "awq-4bit-32g",
            "w4a16-32g",
            "w8a16",
        ] {
            let spec = parse(name).unwrap();
            assert!(spec.is_tunable(), "{name}");
            let (rows, cols) = (32, 128);
            let weights = numbers(rows * cols, 5);
            let pieces = spec.quantize_nearest(&Module::new(&weights, rows, cols, GgmlType::BF16)).unwrap();
            let packed = read(&spec, &pieces).reorder(|row| (row + 3) % rows);
            let (mut before, mut after) = (vec![0.0; rows * cols], vec![0.0; rows * cols]);
            packed.decode(0..rows, &mut before);
            let tunable = packed.tunable().unwrap();
            tunable.decode(0..rows, &mut after);
            assert_eq!(before, after, "{name}");
            for piece in spec.scale_pieces(&tunable, GgmlType::BF16).unwrap() {
                assert!(pieces.contains(&piece), "{name}: {}", piece.suffix);
            }
            let doubled = tunable.scales().iter().map(|s| 2.0 * s).collect();
            tunable.with(doubled, tunable.biases().unwrap_or_default().to_vec()).decode(0..rows, &mut after);
            let groups = tunable.groups();
            let (mut steps, mut ones, mut along, mut sums) =
                (vec![0.0; cols], vec![1.0; cols], vec![0.0; groups], vec![0.0; groups]);
            for row in 0..rows {
                let stored = tunable.stored_row(row);
                tunable.steps(stored, &mut Vec::new(), &mut steps);
                let moved = |i: usize| after[row * cols + i] - before[row * cols + i];
                for (i, step) in steps.iter().enumerate() {
                    let scale = tunable.scales()[stored * groups + i / (cols / groups)];
                    assert!((moved(i) - step * scale).abs() < 1e-5, "{name} {row} {i}");
                }
                ones.fill(0.5);
                tunable.reduce(&steps, &ones, &mut along, &mut sums);
                for (group, (along, sum)) in along.iter().zip(&sums).enumerate() {
                    let own = &steps[group * cols / groups..(group + 1) * cols / groups];
                    assert_eq!((*along, *sum), (0.5 * own.iter().sum::<f32>(), 0.5 * own.len() as f32), "{name}");
                }
            }
        }
        for name in ["fp8", "int8", "nf4", "mlx-mxfp4"] {
            assert!(!parse(name).unwrap().is_tunable(), "{name}");
        }
    }
}
