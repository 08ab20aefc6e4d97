//! What `tokenizer.json` may ask of the library that runs it. Its normalizer and decoder replace and prepend at will, one
//! behind the other, and the library follows without a bound; it joins merges in a buffer as long as the longest token,
//! and panics where one is longer. Both are found here before it is asked to.

use super::charsmap;
use super::pieces::decode_base64;
use serde_json::Value;

/// What a byte of text may become, at most. Real tokenizers have 3 (`▁` for a space), with Unicode's compositions 9.
const MOST: f64 = 256.0;
/// Bytes put before a text, at most.
const PREPENDED: f64 = 4096.0;

/// Whether the normalizer and the decoder keep to the bounds, and no merge makes more than a token; the error says what
/// does not.
pub(super) fn check(tokenizer: &Value) -> Result<(), String> {
    check_merges(tokenizer.get("model").unwrap_or(&Value::Null))?;
    for part in ["normalizer", "decoder"] {
        let mut growth = Growth { factor: 1.0, prepended: 0.0 };
        growth.add(tokenizer.get(part).unwrap_or(&Value::Null)).map_err(|what| format!("its {part} {what}"))?;
        if growth.factor > MOST {
            let what = format!("can make a text {:.3e} times as long; {MOST} is the limit", growth.factor);
            return Err(format!("its {part} {what}"));
        }
        if growth.prepended > PREPENDED {
            let what = format!("puts {:.3e} bytes before a text; {PREPENDED} is the limit", growth.prepended);
            return Err(format!("its {part} {what}"));
        }
    }
    Ok(())
}

/// Lengths alone, which is cheap; a merge of another text that is no token is the library's own error.
fn check_merges(model: &Value) -> Result<(), String> {
    let (Some(vocab), Some(merges)) =
        (model.get("vocab").and_then(Value::as_object), model.get("merges").and_then(Value::as_array))
    else {
        return Ok(());
    };
    let longest = vocab.keys().map(String::len).max().unwrap_or(0);
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).map_or(0, str::len);
    for merge in merges {
        let parts = match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(parts) => parts.first().and_then(Value::as_str).zip(parts.get(1).and_then(Value::as_str)),
            _ => None,
        };
        let Some((left, right)) = parts else { continue };
        if right.len() < prefix || left.len() + right.len() - prefix > longest {
            return Err(format!("its merge of '{left}' and '{right}' makes no token of its vocabulary"));
        }
    }
    Ok(())
}

struct Growth {
    factor: f64,
    prepended: f64,
}

impl Growth {
    fn add(&mut self, step: &Value) -> Result<(), String> {
        let text = |key: &str| step.get(key).and_then(Value::as_str);
        let len = |key: &str| text(key).map_or(0.0, |t| t.len() as f64);
        match text("type") {
            Some("Sequence") => {
                let parts = step.get("normalizers").or_else(|| step.get("decoders")).and_then(Value::as_array);
                parts.into_iter().flatten().try_for_each(|part| self.add(part))?;
            }
            Some("Replace") => {
                let pattern = step.get("pattern").and_then(|p| p.get("String")).and_then(Value::as_str);
                if pattern == Some("") {
                    return Err("replaces nothing by something".into());
                }
                // An expression may match a single byte.
                self.times(len("content") / pattern.map_or(1.0, |p| p.len() as f64));
            }
            Some("Prepend") => self.prepended += len("prepend"),
            Some("NFD" | "NFKD" | "NFC" | "NFKC") => self.times(3.0),
            Some("ByteLevel") => self.times(2.0),
            Some("Precompiled") => {
                let map = text("precompiled_charsmap").map(decode_base64).unwrap_or_default();
                self.times(charsmap::check(&map)?);
            }
            _ => {}
        }
        Ok(())
    }

    fn times(&mut self, factor: f64) {
        let factor = factor.max(1.0);
        self.factor *= factor;
        self.prepended *= factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn merges_that_are_longer_than_every_token_are_refused() {
        let model = |merges: Value, prefix: Value| {
            let vocab = json!({ "a": 0, "b": 1, "ab": 2 });
            json!({ "model": { "vocab": vocab, "merges": merges, "continuing_subword_prefix": prefix } })
        };
        for merges in [json!(["a b"]), json!([["a", "b"]]), json!([]), json!(null), json!([1, "a"])] {
            assert_eq!(check(&model(merges, Value::Null)), Ok(()));
        }
        for merges in [json!(["ab b"]), json!(["a b", ["b", "ab"]])] {
            assert!(check(&model(merges, Value::Null)).unwrap_err().contains("makes no token"));
        }
        // What the library takes off a merge's second part has to be there.
        assert!(check(&model(json!(["a b"]), json!("##"))).unwrap_err().contains("makes no token"));
    }

    #[test]
    fn normalizers_that_grow_are_refused() {
        let replace = |a: &str, b: &str| json!({ "type": "Replace", "pattern": { "String": a }, "content": b });
        let sequence = |parts: Vec<Value>| json!({ "normalizer": { "type": "Sequence", "normalizers": parts } });
        assert!(check(&json!({})).is_ok() && check(&json!({ "normalizer": null })).is_ok());
        let usual = vec![json!({ "type": "Prepend", "prepend": "▁" }), replace(" ", "▁"), json!({ "type": "NFKC" })];
        assert!(check(&sequence(usual)).is_ok());
        assert!(check(&sequence(vec![replace("", "aa")])).unwrap_err().contains("nothing"));
        assert!(check(&sequence(vec![replace("e", &"e".repeat(1000)); 2])).unwrap_err().contains("256 is the limit"));
        let prepend = json!({ "type": "Prepend", "prepend": "x".repeat(1000) });
        assert!(check(&sequence(vec![prepend; 10])).unwrap_err().contains("4096"));
        let decoders = json!({ "decoder": { "type": "Sequence", "decoders": vec![replace("a", "aa"); 40] } });
        assert!(check(&decoders).is_err());
    }
}
