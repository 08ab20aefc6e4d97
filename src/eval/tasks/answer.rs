//! What a model answers: the text whose scored tokens it finds the most likely on average. Nothing of files.

use super::{Kind, Question, Task};
use crate::eval::Logits;
use crate::eval::softmax;
use crate::eval::text::Encoder;
use crate::kernel::view::flat;
use crate::{Error, Result};
use std::ops::Range;

/// What a model answered to one question.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Of each text, the mean ln p of its scored tokens.
    pub scores: Vec<f64>,
    /// The answer with the largest; of equal ones the first.
    pub chosen: usize,
    /// Whether that is a right one.
    pub right: bool,
}

/// A text in tokens, and which of them are scored. The first token never is: nothing predicts it.
struct Sequence {
    tokens: Vec<u32>,
    scored: Range<usize>,
}

impl Sequence {
    /// Tokens that the model has to see.
    fn seen(&self) -> usize {
        self.scored.end - 1
    }
}

/// A question's texts.
struct Asked {
    sequences: Vec<Sequence>,
    /// Tokens that all of them begin with and that none is scored from: they are run once.
    shared: usize,
}

impl Asked {
    fn longest(&self) -> usize {
        self.sequences.iter().map(Sequence::seen).max().unwrap_or(0)
    }

    /// Tokens that are run where `shared` are run once and all are filled up to `longest`.
    fn cost(&self, shared: usize, longest: usize) -> usize {
        shared + self.sequences.len() * (longest - shared)
    }
}

/// Tokens that are run together, where questions are shorter.
const BATCH: usize = 1024;

/// What a question may take more beside others than alone: beginnings of other lengths are shared as far as the shortest.
const MORE: f64 = 1.25;

/// Tokens after the place where the texts part that WinoGrande needs, to score none of the words that differ.
const TRAILING: usize = 3;

/// Answers every question; `advance` hears of each batch how many questions it answered.
///
/// # Errors
/// `BadInput` for a question that has no tokens to score or more than `context`, for logits that are not finite; those of
/// the tokenizer and of `advance`.
pub fn answer<M: Logits + Encoder>(
    model: &mut M,
    task: &Task,
    context: usize,
    advance: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<Answer>> {
    let mut asked = Vec::with_capacity(task.questions.len());
    for (i, question) in task.questions.iter().enumerate() {
        let of = |what: String| Error::bad_input(format!("question {}: {what}", i + 1));
        let found =
            read(model, task.kind, question)?.ok_or_else(|| of("its answers add no tokens to tell apart".into()))?;
        let longest = found.longest();
        if longest > context {
            return Err(of(format!("takes {longest} tokens, more than the model's context of {context}")));
        }
        asked.push(found);
    }
    // Questions whose beginnings are alike in length together.
    let mut order: Vec<usize> = (0..asked.len()).collect();
    order.sort_by_key(|i| (asked[*i].shared, asked[*i].longest()));
    let mut answers: Vec<Option<Answer>> = vec![None; asked.len()];
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        let batch: Vec<&Asked> = rest.iter().map(|i| &asked[*i]).collect();
        let n = together(&batch);
        let mut scores = score(model, &batch[..n])?.into_iter();
        for (i, question) in rest[..n].iter().zip(batch) {
            let scores: Vec<f64> = scores.by_ref().take(question.sequences.len()).collect();
            let chosen = (1..scores.len()).fold(0, |best, s| if scores[s] > scores[best] { s } else { best });
            let right = task.questions[*i].right.get(chosen).copied().unwrap_or(false);
            answers[*i] = Some(Answer { scores, chosen, right });
        }
        advance(n)?;
        rest = &rest[n..];
    }
    Ok(answers.into_iter().flatten().collect())
}

/// How many of the questions, in order of what they share, are run together.
fn together(questions: &[&Asked]) -> usize {
    let (mut longest, mut alone) = (0, 0);
    let shared = questions.first().map_or(0, |first| first.shared);
    for (n, question) in questions.iter().enumerate() {
        longest = longest.max(question.longest());
        alone += question.cost(question.shared, question.longest());
        let all: usize = questions[..=n].iter().map(|q| q.cost(shared, longest)).sum();
        if n > 0 && (all > BATCH || all as f64 > MORE * alone as f64) {
            return n;
        }
    }
    questions.len()
}

/// The texts of a question in the model's tokens; `None` where there is nothing to score.
fn read(encoder: &dyn Encoder, kind: Kind, question: &Question) -> Result<Option<Asked>> {
    let tokens = |text: &str| -> Result<Vec<u32>> {
        let tokens = encoder.encode(text, false)?;
        Ok(encoder.bos().into_iter().chain(tokens).collect())
    };
    let texts = question.texts.iter().map(|t| tokens(t)).collect::<Result<Vec<_>>>()?;
    let shortest = texts.iter().map(Vec::len).min().unwrap_or(0);
    if shortest < 2 {
        return Ok(None);
    }
    let first = &texts[0];
    let alike = (0..shortest).take_while(|k| texts.iter().all(|t| t[*k] == first[*k])).count();
    // A text may be the beginning of another; its last token is scored then.
    let parted = alike.clamp(1, shortest - 1);
    let mut begins = vec![parted; texts.len()];
    if kind == Kind::Winogrande && texts.iter().all(|t| t.len() - parted > TRAILING) {
        for (begin, head) in begins.iter_mut().zip(&question.heads) {
            *begin = tokens(head)?.len().max(1);
        }
    }
    let mut sequences = Vec::with_capacity(texts.len());
    for (tokens, begin) in texts.into_iter().zip(begins) {
        if begin >= tokens.len() {
            return Ok(None);
        }
        // The full stop that ends a sentence of WinoGrande says nothing.
        let last = usize::from(kind == Kind::Winogrande && tokens.len() - begin > 1);
        sequences.push(Sequence { scored: begin..tokens.len() - last, tokens });
    }
    // The logits of the last token before the scored ones are needed too.
    let before = sequences.iter().map(|s| s.scored.start - 1).min().unwrap_or(0);
    Ok(Some(Asked { sequences, shared: alike.min(before) }))
}

/// The mean ln p of the scored tokens of each text. Shorter ones are filled up at their end, which nothing before sees.
fn score(model: &mut dyn Logits, questions: &[&Asked]) -> Result<Vec<f64>> {
    let batch: Vec<&Sequence> = questions.iter().flat_map(|q| &q.sequences).collect();
    let longest = batch.iter().map(|s| s.seen()).max().unwrap_or(0);
    let filled = |s: &&Sequence| {
        let mut tokens = s.tokens[..s.seen()].to_vec();
        tokens.resize(longest, tokens[0]);
        tokens
    };
    let chunks: Vec<Vec<u32>> = batch.iter().map(filled).collect();
    let from = batch.iter().map(|s| s.scored.start - 1).min().unwrap_or(0);
    let shared = questions.iter().map(|q| q.shared).min().unwrap_or(0);
    let groups: Vec<usize> = questions.iter().map(|q| q.sequences.len()).collect();
    model.run_shared(&chunks, shared, &groups, from)?;
    let vocab = model.vocab();
    let mut scores = Vec::with_capacity(batch.len());
    for (i, sequence) in batch.iter().enumerate() {
        let mut sum = 0.0;
        model.logits(i, sequence.scored.start - 1..sequence.seen(), &mut |position, rows| {
            let rows = flat(rows);
            for (row, token) in rows.chunks_exact(vocab).zip(&sequence.tokens[position + 1..]) {
                let of =
                    softmax::row(row).map_err(|_| Error::bad_input("the model gives logits that are not finite"))?;
                let logit =
                    row.get(*token as usize).ok_or_else(|| Error::bad_input("a token beyond the vocabulary"))?;
                sum += f64::from(*logit) - of.lse;
            }
            Ok(())
        })?;
        scores.push(sum / sequence.scored.len() as f64);
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::EachRows;
    use crate::kernel::view::matrix;
    use crate::model::tokenizer::Message;

    /// Bytes as tokens; the logit of a byte is its distance from the one before, negative.
    #[derive(Default)]
    struct Near {
        chunks: Vec<Vec<u32>>,
    }

    impl Encoder for Near {
        fn encode(&self, text: &str, _: bool) -> Result<Vec<u32>> {
            Ok(text.bytes().map(u32::from).collect())
        }

        fn bos(&self) -> Option<u32> {
            None
        }

        fn render_chat(&self, _: &[Message]) -> Result<String> {
            Ok(String::new())
        }
    }

    fn logit(before: u32, token: u32) -> f32 {
        -(before.abs_diff(token) as f32) / 10.0
    }

    impl Logits for Near {
        fn vocab(&self) -> usize {
            128
        }

        fn run(&mut self, chunks: &[Vec<u32>], _: usize) -> Result<()> {
            self.chunks = chunks.to_vec();
            Ok(())
        }

        fn logits(&mut self, chunk: usize, wanted: Range<usize>, each: &mut EachRows) -> Result<()> {
            for position in wanted {
                let before = self.chunks[chunk][position];
                let row: Vec<f32> = (0..128).map(|token| logit(before, token)).collect();
                each(position, matrix(&row, 128))?;
            }
            Ok(())
        }
    }

    /// ln p of `text`'s bytes `scored`, mean.
    fn expected(text: &str, scored: Range<usize>) -> f64 {
        let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
        let ln_p = |k: usize| {
            let row: Vec<f64> = (0..128).map(|token| f64::from(logit(bytes[k - 1], token))).collect();
            row[bytes[k] as usize] - row.iter().map(|l| l.exp()).sum::<f64>().ln()
        };
        scored.clone().map(ln_p).sum::<f64>() / scored.len() as f64
    }

    fn task(kind: Kind, texts: &[&str], heads: &[&str]) -> Task {
        let owned = |all: &[&str]| all.iter().map(|t| t.to_string()).collect();
        let right = (0..texts.len()).map(|i| i == 1).collect();
        let question = Question { texts: owned(texts), heads: owned(heads), right };
        // A longer one beside it, so that something is filled up.
        let other = Question { texts: vec!["xxxxxxxxxxxxxxxxxxxxx".into(), "y".repeat(30)], ..question.clone() };
        Task { kind, questions: vec![other, question], sha256: String::new() }
    }

    fn scores(task: &Task) -> Answer {
        let mut heard = 0;
        let answers = answer(&mut Near::default(), task, 64, &mut |n| {
            heard += n;
            Ok(())
        });
        assert_eq!(heard, 2);
        answers.unwrap().remove(1)
    }

    #[test]
    fn answers_are_scored_from_where_they_part() {
        let texts = ["the end zz", "the end ef", "the end e"];
        let found = scores(&task(Kind::MultipleChoice, &texts, &[]));
        // "the end e" is the beginning of another: all are scored from there on.
        let wanted = [expected(texts[0], 8..10), expected(texts[1], 8..10), expected(texts[2], 8..9)];
        for (found, wanted) in found.scores.iter().zip(wanted) {
            assert!((found - wanted).abs() < 1e-5, "{found} {wanted}");
        }
        assert_eq!((found.chosen, found.right), (1, true));
    }

    #[test]
    fn a_gap_is_judged_by_what_follows_it() {
        let texts = ["Ann or Bob, as Ann was ill.", "Ann or Bob, as Bob was ill."];
        let heads = ["Ann or Bob, as Ann", "Ann or Bob, as Bob"];
        let found = scores(&task(Kind::Winogrande, &texts, &heads));
        for (score, text) in found.scores.iter().zip(texts) {
            assert!((score - expected(text, 18..26)).abs() < 1e-5);
        }
        // Too little follows: the words themselves are scored.
        let texts = ["it was Ann.", "it was Bo."];
        let found = scores(&task(Kind::Winogrande, &texts, &["it was Ann", "it was Bo"]));
        assert!((found.scores[0] - expected(texts[0], 7..10)).abs() < 1e-5);
        assert!((found.scores[1] - expected(texts[1], 7..9)).abs() < 1e-5);
    }

    #[test]
    fn what_cannot_be_answered_says_which() {
        let task = task(Kind::MultipleChoice, &["a", "b"], &[]);
        let said = answer(&mut Near::default(), &task, 64, &mut |_| Ok(())).unwrap_err().to_string();
        assert!(said.contains("question 2"), "{said}");
        let said = answer(&mut Near::default(), &task, 8, &mut |_| Ok(())).unwrap_err().to_string();
        assert!(said.contains("question 1") && said.contains("context of 8"), "{said}");
    }
}
