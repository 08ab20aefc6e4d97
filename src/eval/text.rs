//! From a text file to one token stream: plain text as llama-perplexity reads it, or chat JSONL, one conversation a line.
//! The tokenizer and the chat template come in through [`Encoder`]. It does not cut the stream (see `windows`).

use std::path::Path;

use serde_json::Value;

use crate::digest::sha256;
use crate::model::tokenizer::Message;
use crate::{Error, Result};

/// What the evaluation needs of a tokenizer.
pub trait Encoder {
    /// Token ids of `text`, without BOS or EOS; special tokens written in the text count as such if `parse_special`.
    fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>>;
    /// The BOS token, for tokenizers that put one before every text.
    fn bos(&self) -> Option<u32>;
    /// The token that such as put one behind every text end it with.
    fn eos(&self) -> Option<u32> {
        None
    }
    /// The conversation through the model's chat template, without a generation prompt.
    fn render_chat(&self, messages: &[Message]) -> Result<String>;
}

#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    Text(String),
    Chat(Vec<Message>),
}

/// An evaluation text, read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Corpus {
    /// `plain` or `chat`.
    pub format: &'static str,
    pub documents: Vec<Document>,
    /// Hex SHA-256 of the file's bytes.
    pub sha256: String,
}

impl Corpus {
    /// Reads `path`: `.jsonl` and `.ndjson` as one JSON object a line, anything else as plain text.
    pub fn open(path: &Path) -> Result<Corpus> {
        let bytes = crate::input::read(path)?;
        let jsonl =
            path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl") || e.eq_ignore_ascii_case("ndjson"));
        Self::parse(path, &bytes, jsonl)
    }

    /// Parses `bytes`; `path` only names the file in errors. One trailing newline of a plain text is not part of it, as
    /// in llama.cpp.
    pub fn parse(path: &Path, bytes: &[u8], jsonl: bool) -> Result<Corpus> {
        let text = std::str::from_utf8(bytes).map_err(|e| {
            Error::bad_file(path, format!("is not UTF-8 text (byte {})", e.valid_up_to()))
                .hint("convert it to UTF-8, or check that this is the evaluation text")
        })?;
        let sha256 = sha256(bytes);
        if text.trim().is_empty() {
            return Err(Error::bad_file(path, "the evaluation text is empty"));
        }
        if !jsonl {
            let text = text.strip_suffix('\n').unwrap_or(text);
            return Ok(Corpus { format: "plain", documents: vec![Document::Text(text.to_string())], sha256 });
        }
        let mut documents = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let fault = |what: String| {
                Error::bad_file(path, format!("line {}: {what}", i + 1))
                    .hint(r#"each line is {"messages": [{"role": "user", "content": "..."}, ...]} or {"text": "..."}"#)
            };
            let value: Value = serde_json::from_str(line).map_err(|e| fault(format!("is not JSON: {e}")))?;
            documents.push(document(&value).map_err(fault)?);
        }
        Ok(Corpus { format: "chat", documents, sha256 })
    }

    /// The token stream: every document behind one BOS where the tokenizer asks for it. A rendered conversation that
    /// opens with BOS itself gets no second one. Special tokens are recognised in rendered conversations only.
    pub fn tokens(&self, encoder: &dyn Encoder) -> Result<Vec<u32>> {
        let mut stream = Vec::new();
        for document in &self.documents {
            let tokens = match document {
                Document::Text(text) => encoder.encode(text, false)?,
                Document::Chat(messages) => encoder.encode(&encoder.render_chat(messages)?, true)?,
            };
            match encoder.bos() {
                Some(bos) if tokens.first() != Some(&bos) => stream.push(bos),
                _ => {}
            }
            stream.extend_from_slice(&tokens);
        }
        Ok(stream)
    }
}

/// One line of JSONL: `messages` (OpenAI), `conversations` (ShareGPT: `from`, `value`) or `text`.
pub fn document(value: &Value) -> Result<Document, String> {
    if let Some(text) = value.get("text") {
        let text = text.as_str().ok_or("\"text\" is not a string")?;
        return Ok(Document::Text(text.to_string()));
    }
    let turns = value
        .get("messages")
        .or_else(|| value.get("conversations"))
        .ok_or("has neither \"messages\" nor \"text\"")?
        .as_array()
        .ok_or("\"messages\" is not a list")?;
    if turns.is_empty() {
        return Err("has no messages".into());
    }
    let message = |turn: &Value| -> Result<Message, String> {
        let field = |name: &str, other: &str| turn.get(name).or_else(|| turn.get(other));
        let role = field("role", "from").and_then(Value::as_str).ok_or("a message has no \"role\"")?;
        let role = match role {
            "human" => "user",
            "gpt" => "assistant",
            other => other,
        };
        let content = match field("content", "value") {
            Some(Value::String(text)) => text.clone(),
            // Content parts: text is joined, anything else is not a text model's to read.
            Some(Value::Array(parts)) => parts
                .iter()
                .map(|p| p.get("text").and_then(Value::as_str).ok_or("a message has a part that is not text"))
                .collect::<Result<String, _>>()?,
            _ => return Err("a message has no text in \"content\"".into()),
        };
        Ok(Message { role: role.to_string(), content })
    };
    Ok(Document::Chat(turns.iter().map(message).collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bytes(Option<u32>);
    impl Encoder for Bytes {
        fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
            let special = if special { 1000 } else { 0 };
            Ok(text.bytes().map(|b| if b == b'^' { special } else { b as u32 }).collect())
        }
        fn bos(&self) -> Option<u32> {
            self.0
        }
        fn render_chat(&self, messages: &[Message]) -> Result<String> {
            Ok(messages.iter().map(|m| format!("^{}:{}", &m.role[..1], m.content)).collect())
        }
    }

    fn parse(text: &str, jsonl: bool) -> Result<Corpus> {
        Corpus::parse(Path::new("eval.txt"), text.as_bytes(), jsonl)
    }

    #[test]
    fn plain_text_loses_one_newline_and_gains_bos() {
        let corpus = parse("ab\n\n", false).unwrap();
        assert_eq!(corpus.tokens(&Bytes(Some(7))).unwrap(), [7, 97, 98, 10]);
        assert_eq!(corpus.tokens(&Bytes(None)).unwrap(), [97, 98, 10]);
        assert_eq!(corpus.sha256.len(), 64);
        assert_eq!(
            parse("abc", false).unwrap().sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn conversations_go_through_the_template_and_keep_one_bos() {
        let lines = concat!(
            r#"{"messages":[{"role":"user","content":"x"}]}"#,
            "\n\n",
            r#"{"conversations":[{"from":"human","value":"x"}]}"#,
            "\n",
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"x"}]}]}"#,
            "\n",
            r#"{"text":"^"}"#,
            "\n"
        );
        let corpus = parse(lines, true).unwrap();
        assert_eq!(corpus.documents.len(), 4);
        let turn = [1000, b'u' as u32, b':' as u32, b'x' as u32];
        let expected: Vec<u32> = [&turn[..], &turn, &turn, &[1000, 0]].concat();
        assert_eq!(corpus.tokens(&Bytes(Some(1000))).unwrap(), expected);
    }

    #[test]
    fn faults_name_the_line() {
        let fault = |t: &str| parse(t, true).unwrap_err().to_string();
        assert!(fault("{\"text\":\"a\"}\n{oops").contains("line 2: is not JSON"));
        assert!(fault("{\"a\":1}").contains("line 1: has neither"));
        assert!(fault("{\"messages\":[]}").contains("no messages"));
        assert!(fault("{\"messages\":[{\"content\":\"a\"}]}").contains("no \"role\""));
        assert!(parse(" \n", false).unwrap_err().to_string().contains("empty"));
        let binary = Corpus::parse(Path::new("m.bin"), &[65, 0xff], false).unwrap_err().to_string();
        assert!(binary.starts_with("m.bin: is not UTF-8"), "{binary}");
    }
}
