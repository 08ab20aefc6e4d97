//! How much longer `tokenizer.json` can make a text. Its normalizer and decoder replace and prepend at will, one behind
//! the other, and a library follows without a bound; here the bound is found before it is asked to.

use serde_json::Value;

/// What a byte of text may become, at most. Real tokenizers have 3 (`▁` for a space), with Unicode's compositions 9.
const MOST: f64 = 256.0;
/// Bytes put before a text, at most.
const PREPENDED: f64 = 4096.0;

/// Whether the normalizer and the decoder keep to the bounds; the error says what does not.
pub(super) fn check(tokenizer: &Value) -> Result<(), String> {
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
