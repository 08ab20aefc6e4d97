//! Text from files made harmless where people see it: names, metadata and messages of a model are somebody else's, and a
//! terminal obeys what it is sent. Errors, reports and everything that the command line prints pass through here; what
//! is written into artifacts does not.

use std::borrow::Cow;
use std::fmt::Write;
use std::path::Path;

/// Whether a character steers a terminal, ends a line, or changes the direction of the text around it.
pub(crate) fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn replaced<'a>(text: &'a str, keep: impl Fn(usize, char) -> bool, put: impl Fn(char, &mut String)) -> Cow<'a, str> {
    let bad = |(i, c): &(usize, char)| steers(*c) && !keep(*i, *c);
    if !text.char_indices().any(|at| bad(&at)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for at in text.char_indices() {
        if bad(&at) { put(at.1, &mut out) } else { out.push(at.1) }
    }
    Cow::Owned(out)
}

/// `\n`, `\u{1b}`: as Rust writes it.
fn visible(c: char, out: &mut String) {
    out.extend(c.escape_default());
}

/// Text for one line: a name, a value.
pub fn line(text: &str) -> Cow<'_, str> {
    replaced(text, |_, _| false, visible)
}

/// A message: line breaks stay where an indented line follows, as hints have it.
pub fn message(text: &str) -> Cow<'_, str> {
    replaced(text, |i, c| c == '\n' && text[i..].starts_with("\n  "), visible)
}

/// Text laid out in lines by this program, whose parts went through [`line()`].
pub fn block(text: &str) -> Cow<'_, str> {
    replaced(text, |_, c| matches!(c, '\n' | '\t'), visible)
}

/// A JSON document: what JSON itself allows in strings and a terminal would obey, as `\u` escapes. The value is the same.
pub fn json(document: &str) -> Cow<'_, str> {
    let put = |c: char, out: &mut String| {
        let mut units = [0; 2];
        for unit in c.encode_utf16(&mut units) {
            let _ = write!(out, "\\u{unit:04x}");
        }
    };
    replaced(document, |_, c| matches!(c, '\n' | '\t' | '\r'), put)
}

/// A path as JSON and reports have it; what is no UTF-8 becomes �.
pub fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Part of a file's name: what steers becomes `_`.
pub fn file_name(text: &str) -> Cow<'_, str> {
    replaced(text, |_, _| false, |_, out| out.push('_'))
}

/// Text made inert inside Markdown, on one line: in tables, paragraphs and headings.
pub fn markdown(text: &str) -> String {
    marked(text, |c, out| match c {
        '|' | '*' | '_' | '`' | '[' | ']' | '\\' | '~' | '#' => out.extend(['\\', c]),
        c => out.push(c),
    })
}

/// Escapes text for HTML content and double-quoted attributes, on one line. What [`line`] shows (HTML forbids
/// control characters) becomes �.
pub fn html(text: &str) -> String {
    marked(text, |c, out| match c {
        '"' => out.push_str("&quot;"),
        '\'' => out.push_str("&#39;"),
        c => out.push(c),
    })
}

/// Text on one line in which nothing is a tag or an entity, nor steers; `put` writes all other characters.
fn marked(text: &str, put: impl Fn(char, &mut String)) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\n' | '\r' | '\t' => out.push(' '),
            c if steers(c) => out.push('\u{fffd}'),
            c => put(c, &mut out),
        }
    }
    out
}

/// A string as YAML has it: as it is where that can be read as nothing else, else in double quotes.
pub fn yaml(text: &str) -> String {
    let first = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let safe = first && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+'));
    // YAML 1.1 takes Norwegian for false.
    let words = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    match safe && !words.contains(&text.to_ascii_lowercase().as_str()) {
        true => text.to_string(),
        false => json(&serde_json::Value::from(text).to_string()).into_owned(),
    }
}

/// An argument of a shell.
pub fn shell(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '+' | '=' | '@' | ',');
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_string(),
        false => format!("'{}'", line(text).replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_is_shown_and_the_rest_stays() {
        assert_eq!(line("a\x1b]0;x\x07\nb\u{9b}\u{202e}é"), "a\\u{1b}]0;x\\u{7}\\nb\\u{9b}\\u{202e}é");
        assert!(matches!(line("plain Ω 名"), Cow::Borrowed(_)));
        assert_eq!(message("no 'x\nerror: y'\n  hint: z"), "no 'x\\nerror: y'\n  hint: z");
        assert_eq!(block("a\tb\n\x1b"), "a\tb\n\\u{1b}");
        assert_eq!(file_name("m\nFROM x"), "m_FROM x");
        let value = serde_json::json!("\x1b\u{9b}\u{2028}\x7f");
        let text = serde_json::to_string(&value).unwrap();
        let safe = json(&text);
        assert!(!safe.chars().any(steers));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
    }

    #[test]
    fn markup_and_yaml_are_kept_from_reading_text_as_more() {
        assert_eq!(markdown("a|b\n<c> 'd' #1"), "a\\|b &lt;c&gt; 'd' \\#1");
        assert_eq!(yaml("apache-2.0"), "apache-2.0");
        for (text, want) in [
            ("no", "\"no\""),
            ("1.5", "\"1.5\""),
            ("a: b", "\"a: b\""),
            ("", "\"\""),
            ("a\n- \"b\"", "\"a\\n- \\\"b\\\"\""),
            ("x\u{85}", "\"x\\u0085\""),
        ] {
            assert_eq!(yaml(text), want);
        }
        assert_eq!(shell("a/b-c.gguf"), "a/b-c.gguf");
        assert_eq!(shell("it's\n$x"), "'it'\\''s\\n$x'");
    }
}
