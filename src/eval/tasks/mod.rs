//! Questions with several answers, of which a model is to find the right one likelier than the others: HellaSwag,
//! WinoGrande, ARC, MMLU, TruthfulQA. `read` knows the forms of their files, `answer` what a model answers, as
//! llama-perplexity's `--hellaswag`, `--winogrande` and `--multiple-choice` have it; here is what the answers say.

mod answer;
mod read;

pub use answer::{Answer, answer};
pub use read::open;

use super::Estimate;
use serde::{Deserialize, Serialize};

/// What kind of questions a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Which of four endings a text has.
    Hellaswag,
    /// Which of two words stands in the gap of a sentence.
    Winogrande,
    /// Any number of answers, at least one of which is right.
    MultipleChoice,
}

impl Kind {
    /// The name as its makers write it.
    pub fn title(self) -> &'static str {
        match self {
            Kind::Hellaswag => "HellaSwag",
            Kind::Winogrande => "WinoGrande",
            Kind::MultipleChoice => "multiple choice",
        }
    }
}

/// A file of questions.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    pub kind: Kind,
    pub questions: Vec<Question>,
    /// Hex SHA-256 of the file's bytes.
    pub sha256: String,
}

impl Task {
    /// At most so many questions, spread evenly over the file.
    pub fn thin(&mut self, most: usize) {
        let all = self.questions.len();
        if most < all {
            let mut at = 0;
            let mut kept = (0..most).map(|i| i * all / most).peekable();
            self.questions.retain(|_| {
                at += 1;
                kept.next_if_eq(&(at - 1)).is_some()
            });
        }
    }

    /// The share of right answers that guessing gives.
    pub fn chance(&self) -> f64 {
        let share = |q: &Question| q.right.iter().filter(|r| **r).count() as f64 / q.right.len().max(1) as f64;
        self.questions.iter().map(share).sum::<f64>() / self.questions.len().max(1) as f64
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The whole text with each answer in it.
    pub texts: Vec<String>,
    /// Of each text the part up to the end of the answer, where something follows: what follows is scored. Else empty.
    pub heads: Vec<String>,
    /// Which answers are right.
    pub right: Vec<bool>,
}

/// The share of `hits` among `n`, with Wilson's 95 % interval (Wilson 1927) and the standard error of a proportion.
pub fn share(hits: usize, n: usize) -> Estimate {
    if n == 0 {
        return Estimate::default();
    }
    let (p, n) = (hits as f64 / n as f64, n as f64);
    let z = NORMAL_95 * NORMAL_95 / n;
    let half = NORMAL_95 * (p * (1.0 - p) / n + z / (4.0 * n)).sqrt();
    let bound = |v: f64| (v / (1.0 + z)).clamp(0.0, 1.0);
    let ci95 = Some([bound(p + z / 2.0 - half), bound(p + z / 2.0 + half)]);
    Estimate { value: p, std_error: (p * (1.0 - p) / (n - 1.0).max(1.0)).sqrt(), ci95 }
}

/// The 97.5 % point of the normal distribution.
const NORMAL_95: f64 = 1.959_963_984_54;

/// A model's answers beside those of the base to the same questions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paired {
    /// Right answers more than the base has, as a share of the questions. Its error is that of paired differences.
    pub difference: Estimate,
    /// How likely a difference at least as large is between equal models: McNemar's test, exact, two-sided.
    pub p: f64,
    /// How often both choose the same answer.
    pub same: Estimate,
}

/// Compares the answers to the same questions, in the same order.
pub fn paired(base: &[Answer], other: &[Answer]) -> Paired {
    let count = |test: fn(&Answer, &Answer) -> bool| base.iter().zip(other).filter(|(b, o)| test(b, o)).count();
    let (won, lost) = (count(|b, o| o.right && !b.right), count(|b, o| b.right && !o.right));
    let n = base.len().min(other.len()).max(1) as f64;
    let value = (won as f64 - lost as f64) / n;
    let variance = ((won + lost) as f64 / n - value * value) / (n - 1.0).max(1.0);
    let std_error = variance.max(0.0).sqrt();
    let ci95 = Some([value - NORMAL_95 * std_error, value + NORMAL_95 * std_error]);
    let same = share(count(|b, o| b.chosen == o.chosen), base.len().min(other.len()));
    Paired { difference: Estimate { value, std_error, ci95 }, p: sign_test(won, lost), same }
}

/// Twice the chance of at most `min(a, b)` heads in `a + b` throws of a fair coin; at most 1.
fn sign_test(a: usize, b: usize) -> f64 {
    let n = a + b;
    // ln of n over k, and of 2⁻ⁿ with it, so that nothing overflows.
    let mut ln_term = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = ln_term.exp();
    for k in 1..=a.min(b) {
        ln_term += ((n - k + 1) as f64).ln() - (k as f64).ln();
        sum += ln_term.exp();
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(right: &[u8]) -> Vec<Answer> {
        right.iter().map(|r| Answer { scores: vec![], chosen: usize::from(*r), right: *r == 1 }).collect()
    }

    #[test]
    fn wilsons_interval_is_that_of_the_book() {
        // 81 of 263: .2553 to .3662 (Newcombe 1998, table I, method 3).
        let found = share(81, 263);
        let [low, high] = found.ci95.unwrap();
        assert!((low - 0.2553).abs() < 5e-5 && (high - 0.3662).abs() < 5e-5, "{low} {high}");
        assert_eq!(share(0, 20).ci95.unwrap()[0], 0.0);
    }

    #[test]
    fn answers_are_compared_question_by_question() {
        let base = answers(&[1, 1, 1, 1, 1, 1, 0, 0, 0, 0]);
        let other = answers(&[1, 1, 1, 1, 0, 0, 1, 0, 0, 0]);
        let found = paired(&base, &other);
        assert!((found.difference.value + 0.1).abs() < 1e-12);
        assert!((found.same.value - 0.7).abs() < 1e-12);
        // 1 of 3 discordant: 2 · (1 + 3) / 8, which is 1.
        assert_eq!(found.p, 1.0);
        assert!((sign_test(1, 9) - 2.0 * 11.0 / 1024.0).abs() < 1e-12);
        assert!(sign_test(0, 3000) < 1e-300);
        assert_eq!(paired(&base, &base).difference.value, 0.0);
    }

    #[test]
    fn fewer_questions_are_spread_over_the_file() {
        let question = |i: usize| Question { texts: vec![i.to_string()], heads: vec![], right: vec![true, false] };
        let all =
            Task { kind: Kind::MultipleChoice, questions: (0..10).map(question).collect(), sha256: String::new() };
        let mut few = all.clone();
        few.thin(4);
        assert_eq!(few.questions.iter().map(|q| q.texts[0].as_str()).collect::<Vec<_>>(), ["0", "2", "5", "7"]);
        assert_eq!(few.chance(), 0.5);
        let mut same = all.clone();
        same.thin(10);
        assert_eq!(same, all);
    }
}
