//! Which stretches of the token stream are run and which of their positions are scored. It holds indices only.

use std::ops::Range;

use crate::error::Hint;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How the token stream is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// llama-perplexity's: disjoint chunks of `ctx` tokens, the second half of each scored (`ctx - 1 - ctx / 2` positions).
    LlamaCpp {
        /// Tokens of a window.
        ctx: usize,
    },
    /// A window of `ctx` tokens moves on by `stride`; the last `stride` predictions of each window are scored, so that
    /// every scored token has at least `ctx - stride` tokens of context and is scored once.
    Strided {
        /// Tokens of a window.
        ctx: usize,
        /// Tokens that it moves on by.
        stride: usize,
    },
}

impl Method {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Method::LlamaCpp { .. } => "llama.cpp",
            Method::Strided { .. } => "strided",
        }
    }

    /// Tokens of a window.
    pub fn ctx(self) -> usize {
        match self {
            Method::LlamaCpp { ctx } | Method::Strided { ctx, .. } => ctx,
        }
    }

    /// Distance between the starts of two windows.
    pub fn stride(self) -> usize {
        match self {
            Method::LlamaCpp { ctx } => ctx,
            Method::Strided { stride, .. } => stride,
        }
    }

    /// The positions of a window whose logits are scored; the last one predicts the window's last token.
    pub fn scored(self) -> Range<usize> {
        match self {
            Method::LlamaCpp { ctx } => ctx / 2..ctx - 1,
            Method::Strided { ctx, stride } => ctx - 1 - stride..ctx - 1,
        }
    }

    fn check(self) -> Result<()> {
        match self {
            Method::LlamaCpp { ctx } if ctx < 4 => Err(nothing_to_score(ctx).hint(Hint::ContextFrom(4))),
            Method::Strided { ctx, .. } if ctx < 2 => Err(nothing_to_score(ctx).hint(Hint::ContextFrom(2))),
            Method::Strided { ctx, stride } if stride == 0 || stride >= ctx => {
                let most = ctx - 1;
                Err(Error::request(format!(
                    "the stride {stride} must be between 1 and {most}, below the context of {ctx}"
                )))
            }
            _ => Ok(()),
        }
    }
}

fn nothing_to_score(ctx: usize) -> Error {
    Error::request(format!("a context of {ctx} tokens leaves nothing to score"))
}

/// One window: where it starts in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first token.
    pub start: usize,
}

/// The plan of an evaluation: the windows over a stream, all of the same shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// How the text is cut.
    pub method: Method,
    /// Token that overwrites position 0 of every window, for tokenizers that ask for one.
    pub bos: Option<u32>,
    /// Token that overwrites the last of every window, where each is a text of its own: of models that give vectors.
    pub eos: Option<u32>,
    /// How many windows there are.
    pub count: usize,
}

impl Windows {
    /// Plans windows over a stream of `tokens` tokens, at most `chunks` of them.
    ///
    /// Fails on an empty stream, on one shorter than a window, and on a method that scores nothing.
    pub fn plan(method: Method, tokens: usize, chunks: Option<usize>, bos: Option<u32>) -> Result<Windows> {
        method.check()?;
        let ctx = method.ctx();
        if tokens == 0 {
            return Err(Error::bad_input("the evaluation text is empty").hint(Hint::EvaluationText));
        }
        if tokens < ctx {
            return Err(Error::bad_input(format!(
                "the evaluation text has {tokens} tokens, fewer than one chunk of {ctx}"
            ))
            .hint(Hint::TextOrContext(tokens)));
        }
        if chunks == Some(0) {
            return Err(Error::request("0 chunks leave nothing to evaluate"));
        }
        let fit = (tokens - ctx) / method.stride() + 1;
        Ok(Windows { method, bos, eos: None, count: chunks.unwrap_or(fit).min(fit) })
    }

    /// The same windows as texts of their own, each with a token at its end.
    pub fn ending_in(self, eos: Option<u32>) -> Windows {
        Windows { eos, ..self }
    }

    /// All windows, in order.
    pub fn iter(&self) -> impl Iterator<Item = Window> + '_ {
        (0..self.count).map(|i| Window { start: i * self.method.stride() })
    }

    /// Positions scored over all windows.
    pub fn scored_tokens(&self) -> usize {
        self.count * self.method.scored().len()
    }

    /// Tokens of `stream` that the windows cover.
    pub fn covered_tokens(&self) -> usize {
        (self.count - 1) * self.method.stride() + self.method.ctx()
    }

    /// The input of one window: its stretch of the stream with the first token replaced by BOS, and the last by EOS, where they
    /// are asked for.
    pub fn input(&self, stream: &[u32], window: Window) -> Vec<u32> {
        let mut tokens = stream[window.start..window.start + self.method.ctx()].to_vec();
        if let (Some(bos), Some(first)) = (self.bos, tokens.first_mut()) {
            *first = bos;
        }
        if let (Some(eos), Some(last)) = (self.eos, tokens.last_mut()) {
            *last = eos;
        }
        tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_cpp_scores_the_second_half() {
        let w = Windows::plan(Method::LlamaCpp { ctx: 512 }, 512 * 3 + 17, None, Some(1)).unwrap();
        assert_eq!(w.count, 3);
        assert_eq!(w.method.scored(), 256..511);
        assert_eq!(w.scored_tokens(), 3 * 255);
        let stream: Vec<u32> = (0..512 * 3 + 17).map(|i| 100 + i as u32).collect();
        let second = w.iter().nth(1).unwrap();
        let input = w.input(&stream, second);
        assert_eq!((input.len(), input[0], input[1]), (512, 1, 613));
        assert_eq!(stream[512], 612, "the stream itself is untouched");
    }

    #[test]
    fn an_odd_context_rounds_as_llama_perplexity_does() {
        assert_eq!(Method::LlamaCpp { ctx: 7 }.scored(), 3..6);
    }

    #[test]
    fn strided_windows_score_every_token_once() {
        let method = Method::Strided { ctx: 16, stride: 4 };
        let w = Windows::plan(method, 40, None, None).unwrap();
        let mut predicted: Vec<usize> = w.iter().flat_map(|w| method.scored().map(move |p| w.start + p + 1)).collect();
        assert_eq!(predicted, (12..40).collect::<Vec<_>>());
        predicted.dedup();
        assert_eq!(predicted.len(), w.scored_tokens());
        assert_eq!(w.covered_tokens(), 40);
        assert_eq!(Windows::plan(method, 16, None, None).unwrap().count, 1);
        assert_eq!(Windows::plan(method, 19, None, None).unwrap().count, 1);
    }

    #[test]
    fn too_little_text_and_senseless_shapes_are_errors() {
        let llama = Method::LlamaCpp { ctx: 512 };
        let text = |m, n, c| Windows::plan(m, n, c, None).unwrap_err().to_string();
        assert!(text(llama, 0, None).contains("empty"));
        assert!(text(llama, 300, None).contains("300 tokens, fewer than one chunk of 512"));
        assert!(text(llama, 600, Some(0)).contains("0 chunks"));
        assert!(text(Method::LlamaCpp { ctx: 3 }, 600, None).contains("nothing to score\n  hint: take 4 tokens"));
        assert!(text(Method::Strided { ctx: 8, stride: 8 }, 600, None).contains("stride 8"));
        assert!(text(Method::Strided { ctx: 8, stride: 0 }, 600, None).contains("stride 0"));
    }
}
