//! Vocabularies of GGUF files that the `tokenizers` crate runs: unigram models (`t5`), WordPiece (`bert`), and merges over
//! characters with bytes to fall back on (`gemma4`).

use super::GgufVocab;
use super::sentencepiece::TokenType;
use crate::gguf::{Array, Value};
use crate::{Error, Result};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{BertNormalizer, NormalizerWrapper, Precompiled, Prepend, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

/// The vocabularies that this module runs.
pub(super) const MODELS: [&str; 3] = ["t5", "bert", "gemma4"];

/// A tokenizer that takes text without special tokens.
///
/// # Errors
/// `BadInput` when the vocabulary is none of its kind.
pub(super) fn of(vocab: &GgufVocab) -> Result<tokenizers::Tokenizer> {
    let made = match vocab.model() {
        "t5" => unigram(vocab),
        "bert" => word_pieces(vocab),
        _ => merges(vocab),
    };
    made.map_err(|e| Error::bad_input(format!("not a usable '{}' tokenizer: {e}", vocab.model())))
}

/// Texts by id; what no text may become has one that no text holds.
fn texts(vocab: &GgufVocab) -> impl Iterator<Item = (String, TokenType)> {
    (0..).zip(vocab.tokens()).zip(vocab.token_types()).map(|((id, text), ty)| match ty {
        TokenType::Normal | TokenType::Byte | TokenType::UserDefined => (text.clone(), ty),
        _ => (format!("\0{id}"), ty),
    })
}

fn unknown(vocab: &GgufVocab) -> Option<usize> {
    let named = vocab.special("unknown").map(|id| id as usize);
    named.or_else(|| vocab.token_types().iter().position(|ty| *ty == TokenType::Unknown))
}

fn unigram(vocab: &GgufVocab) -> tokenizers::Result<tokenizers::Tokenizer> {
    let bytes = vocab.token_types().contains(&TokenType::Byte);
    let pieces = texts(vocab).zip(vocab.scores()).map(|((text, _), score)| (text, f64::from(score))).collect();
    let mut tokenizer = tokenizers::Tokenizer::new(Unigram::from(pieces, unknown(vocab), bytes)?);
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if let Some(Value::Array(Array::U8(map))) = vocab.meta.get("tokenizer.ggml.precompiled_charsmap") {
        super::charsmap::check(map).map_err(|what| format!("it {what}"))?;
        steps.push(Precompiled::from(map)?.into());
    }
    if vocab.flag("remove_extra_whitespaces") == Some(true) {
        steps.push(Strip::new(true, true).into());
        let several = tokenizers::normalizers::replace::ReplacePattern::Regex(" {2,}".into());
        steps.push(Replace::new(several, " ")?.into());
    }
    if vocab.flag("add_space_prefix").unwrap_or(true) {
        steps.push(Prepend::new(" ".into()).into());
    }
    steps.push(Replace::new(" ", "▁")?.into());
    tokenizer.with_normalizer(Some(Sequence::new(steps)))?;
    Ok(tokenizer)
}

/// The file marks pieces that begin a word; the crate marks those that do not.
fn word_pieces(vocab: &GgufVocab) -> tokenizers::Result<tokenizers::Tokenizer> {
    let marked = |(text, ty): (String, TokenType)| match (ty, text.strip_prefix('▁')) {
        (TokenType::Normal | TokenType::UserDefined, Some(word)) => word.to_string(),
        (TokenType::Normal | TokenType::UserDefined, None) => format!("##{text}"),
        _ => text,
    };
    let unknown = unknown(vocab).or_else(|| vocab.tokens().iter().position(|t| t == "[UNK]"));
    let mut map: Vocab = texts(vocab).map(marked).zip(0..).collect();
    map.insert("[UNK]".into(), unknown.ok_or("there is no unknown token")? as u32);
    let model = WordPiece::builder().vocab(map).unk_token("[UNK]".into()).build()?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let lowercase = vocab.flag("normalizer.lowercase").unwrap_or(true);
    let normalizer = BertNormalizer::new(true, true, vocab.flag("normalizer.strip_accents"), lowercase);
    tokenizer.with_normalizer(Some(normalizer))?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    Ok(tokenizer)
}

fn merges(vocab: &GgufVocab) -> tokenizers::Result<tokenizers::Tokenizer> {
    let map: Vocab = texts(vocab).map(|(text, _)| text).zip(0..).collect();
    let known = |(left, right): &(&str, &str)| {
        map.contains_key(*left) && map.contains_key(*right) && map.contains_key(&format!("{left}{right}"))
    };
    let merges = vocab.merges().iter().filter_map(|merge| merge.split_once(' ')).filter(known);
    let merges = merges.map(|(left, right)| (left.to_string(), right.to_string())).collect();
    let mut model = BPE::builder().byte_fallback(true).fuse_unk(true);
    if let Some(id) = unknown(vocab) {
        model = model.unk_token(format!("\0{id}"));
    }
    let mut tokenizer = tokenizers::Tokenizer::new(model.vocab_and_merges(map, merges).build()?);
    tokenizer.with_normalizer(Some(Replace::new(" ", "▁")?))?;
    Ok(tokenizer)
}
