//! Pages and cards from templates. Every value is escaped for where it is put as it is put there, unless it is markup
//! already, which is marked as safe.

use crate::escape::{html, line, markdown, shell};
use crate::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error as Fault, Output, State};

/// How Markdown is escaped, to minijinja.
const MARKDOWN: &str = "markdown";

/// What tables and folded parts look like, for templates in Markdown.
const MACROS: &str = include_str!("macros.md");

/// Fills in a template. What it is called tells how values are escaped: as Markdown in names that end in `.md`, else as HTML.
///
/// # Errors
/// `Internal` for a mistake in the template.
pub fn render(name: &'static str, source: &'static str, context: Value) -> Result<String> {
    filled(name, source, context).map_err(|error| Error::Internal(format!("{name}: {error}")))
}

fn filled(name: &'static str, source: &'static str, context: Value) -> Result<String, Fault> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    env.set_auto_escape_callback(|name| match name.ends_with(".md") {
        true => AutoEscape::Custom(MARKDOWN.into()),
        false => AutoEscape::Html,
    });
    env.set_formatter(put);
    env.add_filter("prose", kept_together);
    env.add_filter("html", |text: &str| Value::from_safe_string(html(text)));
    env.add_filter("code", |text: &str| Value::from_safe_string(code(text)));
    env.add_filter("address", |text: &str| Value::from_safe_string(address(text)));
    // Where nothing is marked up: in fenced code, and between backticks.
    env.add_filter("verbatim", |text: &str| Value::from_safe_string(line(text).into_owned()));
    env.add_filter("quoted", |text: &str| Value::from_safe_string(serde_json::Value::from(text).to_string()));
    env.add_filter("shell", |text: &str| Value::from_safe_string(shell(text)));
    env.add_template("macros.md", MACROS)?;
    env.template_from_named_str(name, source)?.render(context)
}

/// Puts a value into the text, escaped for it.
fn put(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Fault> {
    let text = value.to_string();
    let markdown_wanted = matches!(state.auto_escape(), AutoEscape::Custom(_));
    let escaped = match (value.is_safe(), markdown_wanted) {
        (true, _) => text,
        (false, true) => markdown(&text),
        (false, false) => html(&text),
    };
    out.write_str(&escaped)?;
    Ok(())
}

/// A code span that survives any content, in Markdown's tables too.
fn code(text: &str) -> String {
    format!("<code>{}</code>", html(text).replace('|', "&#124;"))
}

/// A figure stays with its unit and its name at the end of a line.
fn kept_together(text: &str) -> String {
    let text = text.replace(" %", "\u{a0}%");
    ('0'..='9').fold(text, |text, digit| text.replace(&format!("KL {digit}"), &format!("KL\u{a0}{digit}")))
}

/// A name in an address.
fn address(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/+".contains(&b);
    name.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;

    #[test]
    fn values_are_escaped_for_where_they_stand() {
        let text = |name, source| {
            filled(name, source, context! { x => "a|b\nc<i>", drawing => Value::from_safe_string("<svg/>".into()) })
        };
        let source = "{% macro m(y) %}({{ y }}){% endmacro %}{{ m(x) }}{{ drawing }}{{ x | code }}";
        let html = "(a|b c&lt;i&gt;)<svg/><code>a&#124;b c&lt;i&gt;</code>";
        assert_eq!(text("a.html", source).unwrap(), html);
        assert_eq!(text("a.md", source).unwrap(), html.replacen('|', "\\|", 1));
        assert!(text("a.html", "{{ unknown }}").is_err());
    }
}
