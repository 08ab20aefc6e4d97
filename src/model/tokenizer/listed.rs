//! Vocabularies that lie in a list of their own: RWKV's world tokenizer, whose tokens are Python literals, and PLaMo's,
//! a JSON array per line.

use super::files::{ADDED_SCORE, HfFiles, read_text};

use super::sentencepiece::TokenType;
use super::special::Special;
use crate::gguf::Metadata;
use crate::{Error, Result};
use serde_json::Value;

const WORLD: &str = "rwkv_vocab_v20230424.txt";
const PLAMO: &str = "tokenizer.jsonl";

fn needed(files: &HfFiles, name: &str) -> Result<String> {
    let absent = || Error::bad_file(files.path(name), "the vocabulary is not here");
    read_text(&files.path(name))?.ok_or_else(|| absent().hint("download the tokenizer files of the model"))
}

/// Lines of an id, a literal and its length in bytes. GGUF has the bytes in Python's spelling.
pub(super) fn write_world(files: &HfFiles, rows: usize, meta: &mut Metadata) -> Result<()> {
    let (mut tokens, mut types) = (vec!["<s>".to_string()], vec![TokenType::Control as i32]);
    for line in needed(files, WORLD)?.lines().filter(|line| !line.trim().is_empty()) {
        let bad = || Error::bad_file(files.path(WORLD), format!("not an id, a literal and its length: {line:?}"));
        let (_, rest) = line.split_once(' ').ok_or_else(bad)?;
        let (text, length) = rest.rsplit_once(' ').ok_or_else(bad)?;
        let bytes = literal(text).filter(|bytes| length.parse() == Ok(bytes.len())).ok_or_else(bad)?;
        tokens.push(spelled(&bytes));
        types.push(TokenType::Normal as i32);
    }
    if tokens.len() > rows {
        let what = format!("it holds {} tokens, but the embedding has only {rows} rows", tokens.len());
        return Err(Error::bad_file(files.path(WORLD), what));
    }
    for i in tokens.len()..rows {
        tokens.push(format!("[PAD{i}]"));
        types.push(TokenType::Unused as i32);
    }
    meta.set("tokenizer.ggml.model", "rwkv");
    meta.set("tokenizer.ggml.tokens", tokens);
    meta.set("tokenizer.ggml.token_type", types);
    Special::load(files, false, Some(rows))?.write(meta);
    if meta.str("tokenizer.chat_template").is_none() {
        // llama.cpp has this one built in.
        meta.set("tokenizer.chat_template", "rwkv-world");
    }
    // Two line feeds end a turn, whatever the files say; token 0 begins and ends a text.
    meta.set("tokenizer.ggml.eot_token_id", 261u32);
    meta.set("tokenizer.ggml.bos_token_id", 0u32);
    meta.set("tokenizer.ggml.eos_token_id", 0u32);
    Ok(())
}

/// The bytes of a Python string or bytes literal.
fn literal(text: &str) -> Option<Vec<u8>> {
    let (is_bytes, text) = text.strip_prefix('b').map_or((false, text), |rest| (true, rest));
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut inner = text.strip_prefix(quote)?.strip_suffix(quote)?.chars();
    let mut bytes = Vec::new();
    let push = |bytes: &mut Vec<u8>, c: char| bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
    while let Some(c) = inner.next() {
        if c != '\\' {
            push(&mut bytes, c);
            continue;
        }
        let escape = inner.next()?;
        let digits = match escape {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        let code = u32::from_str_radix(&inner.by_ref().take(digits).collect::<String>(), 16);
        match escape {
            'x' if is_bytes => bytes.push(code.ok()? as u8),
            'x' | 'u' | 'U' => push(&mut bytes, char::from_u32(code.ok()?)?),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            'a' => bytes.push(7),
            'b' => bytes.push(8),
            'f' => bytes.push(12),
            'v' => bytes.push(11),
            '0' => bytes.push(0),
            '\\' | '\'' | '"' => bytes.push(escape as u8),
            other => {
                bytes.push(b'\\');
                push(&mut bytes, other);
            }
        }
    }
    Some(bytes)
}

/// Bytes as Python shows them between its quotes.
fn spelled(bytes: &[u8]) -> String {
    let double = bytes.contains(&b'\'') && !bytes.contains(&b'"');
    let shown = |byte: &u8| match byte {
        b'\\' => "\\\\".into(),
        b'\'' if !double => "\\'".into(),
        b'\n' => "\\n".into(),
        b'\r' => "\\r".into(),
        b'\t' => "\\t".into(),
        32..127 => char::from(*byte).to_string(),
        byte => format!("\\x{byte:02x}"),
    };
    bytes.iter().map(shown).collect()
}

/// Lines of a token, its score and its kind.
pub(super) fn write_plamo(files: &HfFiles, rows: usize, meta: &mut Metadata) -> Result<()> {
    let (mut tokens, mut scores, mut types) = (Vec::new(), Vec::new(), Vec::new());
    for line in needed(files, PLAMO)?.lines().filter(|line| !line.trim().is_empty()) {
        let bad = || Error::bad_file(files.path(PLAMO), format!("not a token, its score and its kind: {line:?}"));
        let entry: Value = serde_json::from_str(line).map_err(|_| bad())?;
        let token = entry.get(0).and_then(Value::as_str).ok_or_else(bad)?;
        let is_own = token.starts_with("<|plamo:") && token.ends_with("|>");
        types.push(match entry.get(2).and_then(Value::as_str) {
            Some("UNKNOWN") => TokenType::Unknown,
            Some("CONTROL") => TokenType::Control,
            Some("BYTE") => TokenType::Byte,
            _ if is_own => TokenType::Control,
            _ => TokenType::Normal,
        });
        scores.push(entry.get(1).and_then(Value::as_f64).ok_or_else(bad)? as f32);
        tokens.push(token.to_string());
    }
    for i in 1..=rows.saturating_sub(tokens.len()) {
        tokens.push(format!("[PAD{i}]"));
        scores.push(ADDED_SCORE);
        types.push(TokenType::Unused);
    }
    meta.set("tokenizer.ggml.model", "plamo2");
    meta.set("tokenizer.ggml.pre", "default");
    for (kind, key) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("sep", "seperator"), ("unk", "unknown")] {
        let text = files.config_str(&format!("{kind}_token"));
        if let Some(id) = text.and_then(|text| tokens.iter().position(|t| t == text)) {
            meta.set(format!("tokenizer.ggml.{key}_token_id"), id as u32);
        }
    }
    meta.set("tokenizer.ggml.tokens", tokens);
    meta.set("tokenizer.ggml.scores", scores);
    meta.set("tokenizer.ggml.token_type", types.iter().map(|t| *t as i32).collect::<Vec<_>>());
    // The end of a turn, for which the files have no name.
    meta.set("tokenizer.ggml.eot_token_id", 4u32);
    meta.set("tokenizer.ggml.add_space_prefix", false);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_literals_become_bytes_and_back() {
        for (text, bytes, shown) in [
            ("'a'", &b"a"[..], "a"),
            (r"'\n\n'", b"\n\n", r"\n\n"),
            (r"b'\xff\x00'", b"\xff\x00", r"\xff\x00"),
            (r"'\xe9'", b"\xc3\xa9", r"\xc3\xa9"),
            ("\"it's\"", b"it's", "it's"),
            (r#"'\'"'"#, b"'\"", r#"\'""#),
            ("'é'", b"\xc3\xa9", r"\xc3\xa9"),
        ] {
            assert_eq!(literal(text).as_deref(), Some(bytes), "{text}");
            assert_eq!(spelled(bytes), shown);
        }
        assert_eq!(literal("'open"), None);
    }
}
