//! Heads of classifiers and rerankers: from the pooled vector of a text to its scores.

use super::linear::{Linear, times};
use super::norm::Norm;
use super::weights::Loader;
use crate::Result;
use crate::kernel::Output;
use crate::model::config::{Activation, Config};

pub(super) struct Scorer {
    /// The layer in front of the last, whose results are bent.
    dense: Option<Linear>,
    /// By GELU, not tanh.
    gelu: bool,
    norm: Option<Norm>,
    output: Linear,
}

impl Loader<'_> {
    /// The head of a model that gives scores; `None` where it has none.
    pub fn scorer(&self, c: &Config) -> Result<Option<Scorer>> {
        let rows = |name: &str| self.shape(name).and_then(|shape| shape.first().copied());
        let Some(labels) = rows("cls.output.weight").filter(|_| c.ending.pooling().is_some()) else { return Ok(None) };
        let width = rows("cls.weight").unwrap_or(c.hidden);
        Ok(Some(Scorer {
            dense: self.has("cls.weight").then(|| self.linear("cls", width, c.hidden)).transpose()?,
            gelu: c.scores_by_gelu,
            norm: self.has("cls.norm.weight").then(|| self.norm(c, "cls.norm", width)).transpose()?,
            output: self.linear("cls.output", labels, width)?,
        }))
    }
}

impl Scorer {
    /// In the order of use.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.dense.iter_mut().chain([&mut self.output])
    }

    /// Numbers of what scores are made from.
    pub fn width(&self) -> usize {
        self.output.weight.cols()
    }

    /// What scores are made from, of a pooled vector.
    pub fn features(&self, pooled: Vec<f32>) -> Vec<f32> {
        let mut features = match &self.dense {
            Some(dense) => {
                let mut out = vec![0.0; dense.out()];
                let _ = dense.product(&pooled, Output::whole(&mut out, dense.out()), &mut ());
                let bent = |x: f32| if self.gelu { times(Activation::Gelu, x, 1.0) } else { x.tanh() };
                out.iter_mut().for_each(|x| *x = bent(*x));
                out
            }
            None => pooled,
        };
        if let Some(norm) = &self.norm {
            norm.apply(&mut features, 0);
        }
        features
    }

    /// One for each label.
    pub fn scores(&self, features: &[f32]) -> Vec<f32> {
        let mut scores = vec![0.0; self.output.out()];
        let _ = self.output.product(features, Output::whole(&mut scores, self.output.out()), &mut ());
        scores
    }
}
