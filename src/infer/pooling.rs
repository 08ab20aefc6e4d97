//! Models without a head: the vectors of a text's tokens, pooled to those of the text. Vectors are made of length 1, as engines
//! make them, but for those that scores are made from.

use super::Engine;
use crate::kernel::{Output, vector};
use crate::model::config::Pooling;
use crate::{Error, Result};

impl Engine {
    /// The vectors `[n, width]` that stand for a text, each of length 1: one, or one for each token; of a classifier what enters
    /// its last matrix, as it is. `hidden` is what the last layer gave for all of its tokens (`[tokens, hidden]`).
    ///
    /// Errors: `Unsupported` for a model with a head; `BadInput` for dense layers that do not fit each other.
    pub fn vectors(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        let pooling = self.config.ending.pooling();
        let pooling = pooling.ok_or_else(|| Error::unsupported("the model gives logits, not vectors of texts"))?;
        let mut vectors = pooled(pooling, &self.head_input(hidden), self.config.hidden);
        if let Some(scorer) = &self.scorer {
            return Ok(scorer.features(vectors));
        }
        let mut width = self.config.hidden;
        for linear in &self.dense {
            if linear.weight.cols() != width {
                let what = format!("takes {} channels, not {width}", linear.weight.cols());
                return Err(Error::bad_input(what).tensor(&*linear.name));
            }
            let mut out = vec![0.0; vectors.len() / width * linear.out()];
            width = linear.out();
            let _ = linear.product(&vectors, Output::whole(&mut out, width), &mut ());
            vectors = out;
        }
        for row in vectors.chunks_exact_mut(width) {
            let length = vector::dot(row, row).sqrt();
            if length > 0.0 {
                vector::scale(row, 1.0 / length);
            }
        }
        Ok(vectors)
    }

    /// Channels of such a vector.
    pub fn vector_width(&self) -> usize {
        let width = self.dense.last().map_or(self.config.hidden, |linear| linear.out());
        self.scorer.as_ref().map_or(width, |scorer| scorer.width())
    }

    /// The scores that a classifier or reranker gives to a text, one for each label, by the vector of the text; `None` for a
    /// model that gives none.
    pub fn scores(&self, vector: &[f32]) -> Option<Vec<f32>> {
        self.scorer.as_ref().map(|scorer| scorer.scores(vector))
    }
}

/// Of rows of `width`, `[tokens, width]`.
fn pooled(pooling: Pooling, rows: &[f32], width: usize) -> Vec<f32> {
    let tokens = rows.len() / width;
    match pooling {
        Pooling::Each => rows.to_vec(),
        Pooling::First => rows[..width.min(rows.len())].to_vec(),
        Pooling::Last => rows[tokens.saturating_sub(1) * width..].to_vec(),
        Pooling::Mean => {
            let mut mean = vec![0.0; width];
            rows.chunks_exact(width).for_each(|row| vector::add_scaled(&mut mean, 1.0, row));
            vector::scale(&mut mean, 1.0 / tokens.max(1) as f32);
            mean
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_pooled() {
        let rows = [1.0, 2.0, 3.0, 6.0, 5.0, 1.0];
        assert_eq!(pooled(Pooling::Mean, &rows, 2), [3.0, 3.0]);
        assert_eq!(pooled(Pooling::First, &rows, 2), [1.0, 2.0]);
        assert_eq!(pooled(Pooling::Last, &rows, 2), [5.0, 1.0]);
        assert_eq!(pooled(Pooling::Each, &rows, 2), rows);
        assert!(pooled(Pooling::Mean, &[], 2).iter().all(|v| *v == 0.0));
    }
}
