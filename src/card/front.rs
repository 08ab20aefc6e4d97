//! The front matter of a model card: YAML between two `---` lines, of which a card needs strings and lists of strings.

use crate::escape::yaml;
use std::path::Path;

/// What a `README.md` says of its model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Front {
    values: Vec<(String, Vec<String>)>,
    /// The first heading of the text behind.
    pub heading: Option<String>,
    /// The text behind.
    pub body: String,
}

impl Front {
    /// That of a folder's card; empty where there is none.
    pub fn read(dir: &Path) -> Front {
        crate::input::read_text(&dir.join("README.md")).map_or_else(|_| Front::default(), |text| Front::parse(&text))
    }

    /// Top-level strings and lists of strings. Nested tables and folded text are passed over.
    pub fn parse(text: &str) -> Front {
        let mut front = Front::default();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut lines = text.lines();
        let body: Vec<&str> = match lines.next() {
            Some("---") => {
                lines.by_ref().take_while(|line| *line != "---").for_each(|line| front.take(line));
                lines.collect()
            }
            first => first.into_iter().chain(lines).collect(),
        };
        let heading = body.iter().find_map(|line| line.strip_prefix("# "));
        front.heading = heading.map(|h| h.trim().trim_end_matches('#').trim().to_string()).filter(|h| !h.is_empty());
        front.body = body.join("\n");
        front
    }

    fn take(&mut self, line: &str) {
        let nested = line.starts_with([' ', '\t']);
        let text = line.trim();
        if text.is_empty() || text.starts_with('#') {
            return;
        }
        if let Some(item) = text.strip_prefix("- ") {
            // Items of a list of tables ("- name: x") are not strings.
            let quoted = ['"', '\''].iter().any(|q| item.len() > 1 && item.starts_with(*q) && item.ends_with(*q));
            let plain = quoted || !item.contains(": ") && !item.ends_with(':');
            if let Some((_, values)) = self.values.last_mut().filter(|_| plain) {
                values.push(scalar(item));
            }
        } else if !nested && let Some((key, value)) = text.split_once(':') {
            let value = value.trim();
            let list = value.strip_prefix('[').and_then(|v| v.strip_suffix(']'));
            let values = match (list, value) {
                (Some(items), _) => items.split(',').map(scalar).filter(|s| !s.is_empty()).collect(),
                (None, "" | "|" | ">" | "|-" | ">-" | "null" | "~") => Vec::new(),
                (None, value) => vec![scalar(value)],
            };
            self.values.push((key.trim().to_string(), values));
        }
    }

    /// The values of a key; none where it is absent.
    pub fn all(&self, key: &str) -> &[String] {
        self.values.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_slice()).unwrap_or_default()
    }

    /// The first value of the first key that has any.
    pub fn one(&self, keys: &[&str]) -> Option<String> {
        keys.iter().find_map(|key| self.all(key).first().cloned())
    }

    pub fn has(&self, key: &str) -> bool {
        self.values.iter().any(|(k, _)| k == key)
    }
}

fn scalar(text: &str) -> String {
    let text = text.trim();
    let inner = |quote: char| text.strip_prefix(quote).and_then(|t| t.strip_suffix(quote));
    if let Some(inner) = inner('"') {
        return serde_json::from_str(text).unwrap_or_else(|_| inner.to_string());
    }
    if let Some(inner) = inner('\'') {
        return inner.replace("''", "'");
    }
    text.split(" #").next().unwrap_or(text).trim().to_string()
}

/// A front matter to be written, key by key.
#[derive(Default)]
pub struct FrontWriter(String);

impl FrontWriter {
    pub fn set(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.0 += &format!("{key}: {}\n", yaml(value));
        }
    }

    pub fn list(&mut self, key: &str, values: &[String]) {
        if !values.is_empty() {
            self.0 += &format!("{key}:\n");
            values.iter().for_each(|value| self.0 += &format!("- {}\n", yaml(value)));
        }
    }

    /// With the lines around it.
    pub fn finish(self) -> String {
        format!("---\n{}---\n", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let odd = ["no", "a: b", "it's \"q\"", "two\nlines", "[x]", "- y", "#z", "plain"].map(String::from);
        let mut writer = FrontWriter::default();
        writer.set("license", Some("other"));
        writer.set("license_name", Some(&odd[2]));
        writer.list("tags", &odd);
        writer.set("absent", None);
        let text = writer.finish() + "\n# A title #\n\nText\n";
        let front = Front::parse(&text);
        assert_eq!(front.one(&["license"]).as_deref(), Some("other"));
        assert_eq!(front.one(&["license_name"]).as_deref(), Some(odd[2].as_str()));
        assert_eq!(front.all("tags"), odd);
        assert_eq!(front.heading.as_deref(), Some("A title"));
        assert!(!front.has("absent"));
    }
}
