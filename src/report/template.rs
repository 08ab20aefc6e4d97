//! The templates of a report, `report.html` and `report.md`. Every value is escaped for where it is put as it is put there,
//! unless it is a drawing, which is marked as safe.

use super::format::html;
use crate::escape::markdown;
use crate::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error as Fault, Output, State};

/// A template of this module.
pub enum Template {
    Html,
    Markdown,
}

/// How Markdown is escaped, to minijinja.
const MARKDOWN: &str = "markdown";

/// Fills a template in.
///
/// # Errors
/// `Internal` for a mistake in the template.
pub fn render(template: Template, context: Value) -> Result<String> {
    let (name, source) = match template {
        Template::Html => ("report.html", include_str!("report.html")),
        Template::Markdown => ("report.md", include_str!("report.md")),
    };
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
    env.add_filter("prose", |text: &str| text.replace(" %", "\u{a0}%"));
    env.add_filter("html", |text: &str| Value::from_safe_string(html(text)));
    env.add_filter("code", |text: &str| Value::from_safe_string(code(text)));
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
