//! What a model would lose that knows how often the source expects each token, and nothing of what it reads: the bound
//! beyond which no rounding explains a loss.

use crate::eval::softmax::add_probabilities;

/// The mean of a model's predictions, and their mean entropy.
#[derive(Default)]
pub(super) struct Blind {
    /// Sum of probabilities, `[vocab]`.
    probabilities: Vec<f64>,
    /// Sum over rows, in nats.
    entropy: f64,
    rows: usize,
}

impl Blind {
    /// Adds the predictions of `logits` `[rows, vocab]`.
    pub fn add(&mut self, logits: &[f32], vocab: usize) {
        self.probabilities.resize(vocab, 0.0);
        for row in logits.chunks(vocab) {
            let is_sound = row.iter().all(|logit| logit.is_finite());
            self.entropy += if is_sound { add_probabilities(row, &mut self.probabilities) } else { f64::NAN };
            self.rows += 1;
        }
    }

    /// The mean entropy of the predictions, in nats. Not finite where a logit was not.
    pub fn entropy(&self) -> f64 {
        self.entropy / self.rows.max(1) as f64
    }

    /// The mean divergence of the predictions from their own mean, in nats per token.
    pub fn loss(&self) -> f64 {
        let n = self.rows.max(1) as f64;
        let mean = self.probabilities.iter().map(|p| p / n).filter(|p| *p > 0.0);
        mean.map(|p| -p * p.ln()).sum::<f64>() - self.entropy()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_of_a_blind_model_is_what_its_context_tells() {
        let sure = [50.0, 0.0, 0.0, 50.0];
        let mut blind = Blind::default();
        blind.add(&sure, 2);
        assert!((blind.loss() - 2f64.ln()).abs() < 1e-9 && blind.entropy() < 1e-9);
        let mut constant = Blind::default();
        constant.add(&[1.0, 0.0, 1.0, 0.0], 2);
        assert!(constant.loss().abs() < 1e-12 && constant.entropy() > 0.5);
        let mut broken = Blind::default();
        broken.add(&[f32::NAN, 0.0], 2);
        assert!(!broken.entropy().is_finite());
    }
}
