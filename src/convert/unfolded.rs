//! Folders whose channels were scaled (AWQ, SmoothQuant) beside their source: the factors that were moved between norms and
//! layers are read off the norms, and off the rows of layers that feed others; with these the source has to give the folder's
//! weights but for rounding.

use super::judge::OpenModel;
use super::proof::{GAIN, STRANGE, other_vector};
use crate::awq::{Fold, Group, groups};
use crate::control::Run;
use crate::eval::pairs::{Beside, Sums};
use crate::model::families::Role;
use crate::model::{MappedTensor, Model};
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::ops::Range;

/// How far the columns of a matrix may be from the source's on average, as a logarithm, beside what rounding explains. AWQ with
/// error feedback of a real model is .03 off in all.
const COLUMNS: f64 = 0.05;

/// The first matrix of a layer that is no rounding of the source's, whatever factors were moved. `bound`: how far a matrix
/// may be from the source's.
///
/// # Errors
/// Those of reading.
pub fn other_matrix(
    source: OpenModel,
    artifact: OpenModel,
    bound: &dyn Fn(&MappedTensor) -> f64,
    run: Run,
) -> Result<Option<String>> {
    let Ok(family) = &source.model.family else { return Ok(None) };
    let config = &source.model.config;
    let mut scaled = BTreeSet::new();
    for layer in 0..config.layers.len() {
        let pair = Pair { source, artifact, layer };
        let mut fold = Fold::default();
        for group in groups(family, config, layer) {
            scaled.extend([Some(group.from), group.from_bias].into_iter().flatten().map(|role| (Some(layer), role)));
            run.check()?;
            let scales = pair.scales(&group, &fold)?;
            fold.add(&group, &scales);
        }
        let matrices = artifact.model.tensors.iter().filter(|t| t.layer == Some(layer) && t.shape.len() > 1);
        for theirs in matrices.filter(|t| t.role.is_linear() || t.role.is_router()) {
            run.check()?;
            if let Some(what) = pair.compare(theirs, &fold, bound(theirs))? {
                return Ok(Some(format!(
                    "{} {what}, with what was moved between norms and layers taken back",
                    theirs.name
                )));
            }
        }
    }
    // Vectors that nothing feeds from have nothing moved out of them.
    other_vector(source, artifact, &|t| !scaled.contains(&(t.layer, t.role)))
}

/// A layer of both.
struct Pair<'a> {
    source: OpenModel<'a>,
    artifact: OpenModel<'a>,
    layer: usize,
}

impl<'a> Pair<'a> {
    /// Rows of the tensor of a role: of the source with what is folded so far, and of the artifact.
    fn rows(&self, role: Role, rows: Range<usize>, fold: &Fold) -> Result<(Vec<f32>, Vec<f32>)> {
        let find = |model: &'a Model| {
            let found = model.tensors.iter().find(|t| t.layer == Some(self.layer) && t.role == role);
            found.ok_or_else(|| Error::bad_input(format!("layer {} lacks a tensor", self.layer)))
        };
        let (ours, theirs) = (find(self.source.model)?, find(self.artifact.model)?);
        let cols = ours.cols();
        let (mut a, mut b) = (vec![0.0; rows.len() * cols], vec![0.0; rows.len() * theirs.cols()]);
        ours.read_rows(self.source.ckpt, rows.clone(), &mut Vec::new(), &mut a)?;
        theirs.read_rows(self.artifact.ckpt, rows.clone(), &mut Vec::new(), &mut b)?;
        if let Some(factors) = fold.get(self.layer, role) {
            factors.apply(rows, cols, ours.rows_per_matrix(), &mut a);
        }
        Ok((a, b))
    }

    /// What the channels of a group were multiplied by.
    fn scales(&self, group: &Group, fold: &Fold) -> Result<Vec<f32>> {
        let sane = |scale: f32| if scale.is_finite() && scale > 0.0 { scale } else { 1.0 };
        if group.from.is_norm() {
            let (ours, theirs) = self.rows(group.from, 0..1, fold)?;
            return Ok(ours.iter().zip(&theirs).map(|(a, b)| sane(a / b)).collect());
        }
        let (ours, theirs) = self.rows(group.from, group.first_row..group.first_row + group.channels, fold)?;
        let cols = ours.len() / group.channels.max(1);
        let rows = ours.chunks_exact(cols.max(1)).zip(theirs.chunks_exact(cols.max(1)));
        Ok(rows.map(|(a, b)| sane((dot(a, b) / dot(b, b)) as f32)).collect())
    }

    fn compare(&self, theirs: &MappedTensor, fold: &Fold, bound: f64) -> Result<Option<String>> {
        let mut read = |rows: Range<usize>, a: &mut [f32], b: &mut [f32]| {
            let (ours, theirs) = self.rows(theirs.role, rows, fold)?;
            a.copy_from_slice(&ours);
            b.copy_from_slice(&theirs);
            Ok(())
        };
        let cols = theirs.cols();
        let found = Beside::read((theirs.row_count(), cols), theirs.rows_per_matrix(), &mut read)?;
        for columns in found.columns.chunks(cols.max(1)) {
            let sums = columns.iter().fold(Sums::default(), |sum, column| sum.and(*column));
            let far = sums.far();
            if far.is_nan() || far > bound {
                return Ok(Some(format!("differs from the source's by {far:.2} times its own size")));
            }
            if !GAIN.contains(&sums.gain()) {
                return Ok(Some(format!("is {:.2} times as large as the source's", 1.0 / sums.gain())));
            }
            // Error feedback changes what is small, so columns count by their size.
            let (mut off, mut size) = (0.0, 0.0);
            for column in columns.iter().filter(|column| column.dot > 0.0 && column.square > 0.0) {
                off += column.norm * column.gain().ln().abs();
                size += column.norm;
            }
            if off > size * (COLUMNS + 2.0 * far / (found.per_matrix as f64).sqrt()) {
                return Ok(Some("has columns of other sizes than the source's".into()));
            }
        }
        if let n @ 1.. = found.lost(false) {
            return Ok(Some(format!("has nothing of the source's in {n} of its rows")));
        }
        let share = found.share(|row| row.sums.is_strange());
        Ok((share > STRANGE).then(|| format!("has {:.0} % of other rows than the source's", 100.0 * share)))
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
