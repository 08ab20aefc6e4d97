//! Renders chat templates as transformers does: Jinja with `trim_blocks` and `lstrip_blocks`, Python's methods on strings
//! and dicts, `raise_exception`, `strftime_now` and a `tojson` that writes like `json.dumps`. Tools and documents, which
//! some templates also take, are left out. What a template may take is bounded ([`bounds`]).

mod bounds;

use crate::clock::{now, strftime};
use crate::{Error, Result};
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, ErrorKind, State, context};
use regex::Regex;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl Message {
    /// A message of this role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// The prompt that `template` makes of `messages`; `bos` and `eos` are the texts of those tokens (empty for none).
///
/// # Errors
/// [`Error::BadInput`] when the template is faulty, refuses the messages, or takes more steps, memory or depth than the
/// bounds allow; `Internal` where no thread can be started.
pub fn render_chat(
    template: &str,
    messages: &[Message],
    bos: &str,
    eos: &str,
    add_generation_prompt: bool,
) -> Result<String> {
    if template.len() > bounds::LONGEST {
        let what = format!("chat template: it has {} bytes, more than the {} allowed", template.len(), bounds::LONGEST);
        return Err(Error::bad_input(what));
    }
    // How deep parsing and values go is bounded, but by more than an ordinary stack holds.
    let render = || render(template, messages, bos, eos, add_generation_prompt);
    let rendered = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(bounds::STACK).spawn_scoped(scope, render);
        thread.map(|thread| thread.join())
    });
    match rendered {
        Err(e) => Err(Error::Internal(format!("chat template: no thread to render it: {e}"))),
        Ok(Err(_)) => Err(Error::bad_input("chat template: the template engine failed on it")),
        Ok(Ok(Err(e))) if e.kind() == ErrorKind::OutOfFuel => Err(Error::bad_input(format!(
            "chat template: it takes more than the {} steps allowed (every 64 bytes of data count as one)",
            bounds::FUEL
        ))),
        Ok(Ok(rendered)) => rendered.map_err(|e| Error::bad_input(format!("chat template: {e}"))),
    }
}

/// Why a text is no template at all; it may well refuse a conversation.
pub fn fault(template: &str) -> Option<String> {
    let error = render_chat(template, &[Message::new("user", "Hello")], "", "", true).err()?.to_string();
    error.contains("syntax error").then(|| error.trim_start_matches("chat template: ").to_string())
}

fn render(
    template: &str,
    messages: &[Message],
    bos: &str,
    eos: &str,
    add_generation_prompt: bool,
) -> Result<String, minijinja::Error> {
    let mut env = Environment::new();
    let syntax = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    env.set_syntax(syntax.clone());
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    bounds::set_up(&mut env);
    env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", |format: String| strftime(&format, now()));
    env.add_filter("tojson", tojson);
    // As in Python, where None cannot be iterated.
    env.add_test("iterable", |value: Value| !value.is_none() && value.try_iter().is_ok());
    let source = bounds::guarded(&plain_generation_blocks(template), syntax)?;
    let entry = |m: &Message| context! { role => m.role.as_str(), content => m.content.as_str() };
    let messages: Vec<Value> = messages.iter().map(entry).collect();
    env.template_from_named_str("chat_template", &source)?.render(context! {
        messages, add_generation_prompt,
        bos_token => bos, eos_token => eos,
        tools => (), documents => (),
    })
}

/// transformers marks the assistant's text with `{% generation %}` blocks; they render what is inside.
fn plain_generation_blocks(template: &str) -> String {
    let replace = |text: &str, tag: &str, with: &str| {
        let regex = Regex::new(&format!(r"\{{%([-+]?)\s*{tag}\s*([-+]?)%\}}"));
        regex.map_or_else(|_| text.to_string(), |r| r.replace_all(text, format!("{{%$1 {with} $2%}}")).into_owned())
    };
    replace(&replace(template, "generation", "if true"), "endgeneration", "endif")
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn tojson(state: &mut State, value: Value, kwargs: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let mut out = String::new();
    dump(state, &value, indent, 0, &mut out)?;
    Ok(out)
}

fn dump(
    state: &State,
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) -> Result<(), minijinja::Error> {
    if depth > bounds::DEEPEST {
        let what = format!("tojson: more than {} values are nested in each other", bounds::DEEPEST);
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, what));
    }
    let newline = |depth: usize, out: &mut String| {
        if let Some(width) = indent {
            let spaces = width.saturating_mul(depth);
            bounds::charge(state, spaces)?;
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', spaces));
        }
        Ok::<(), minijinja::Error>(())
    };
    let (open, close) = match value.kind() {
        ValueKind::Map => ('{', '}'),
        ValueKind::Seq | ValueKind::Iterable => ('[', ']'),
        _ => {
            let text = scalar(value)?;
            bounds::charge(state, text.len())?;
            out.push_str(&text);
            return Ok(());
        }
    };
    out.push(open);
    bounds::charge(state, 2)?;
    let mut empty = true;
    for entry in value.try_iter()? {
        if !empty {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        empty = false;
        newline(depth + 1, out)?;
        if open == '{' {
            out.push_str(&scalar(&entry)?);
            out.push_str(": ");
            dump(state, &value.get_item(&entry)?, indent, depth + 1, out)?;
        } else {
            dump(state, &entry, indent, depth + 1, out)?;
        }
    }
    if !empty {
        newline(depth, out)?;
    }
    out.push(close);
    Ok(())
}

fn scalar(value: &Value) -> Result<String, minijinja::Error> {
    match value.kind() {
        ValueKind::None => Ok("null".into()),
        // Values print as in Python, where truth is capitalised.
        ValueKind::Bool => Ok(value.is_true().to_string()),
        ValueKind::Number => Ok(value.to_string()),
        ValueKind::String => Ok(serde_json::Value::from(value.as_str().unwrap_or_default()).to_string()),
        kind => Err(minijinja::Error::new(ErrorKind::BadSerialization, format!("{kind} cannot be written as JSON"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(template: &str) -> Result<String> {
        render_chat(template, &[Message::new("user", "hi")], "<s>", "", false)
    }

    #[test]
    fn a_plus_means_what_it_did() {
        for (template, expected) in [
            ("{{ 'a' + 'b' + bos_token + (1 + 2 * 3 - 1)|string }}", "ab<s>6"),
            ("{{ ([1] + [2, 3])[1:] | tojson }}", "[2, 3]"),
            ("{% set x = messages + [{'role': 'x'}] %}{{ x | length }}{{ x[-1].role }}", "2x"),
            ("{% for m in messages + messages if m.role == 'us' + 'er' %}{{ loop.index + 1 }}{% endfor %}", "23"),
            ("{{ 'x' if messages is not none else 'a' + 'b' }}{{ -1 + 1 }}{{ 1.5 + 1 }}", "x02.5"),
            ("{{ ', '.join(['a', 1]) }}{{ 'aXb'.replace('X', '+') }}", "a, 1a+b"),
        ] {
            assert_eq!(chat(template).unwrap(), expected, "{template}");
        }
        assert!(chat("{{ 'a' + 1 }}").is_err() && chat("{{ [1] + 'a' }}").is_err());
    }

    #[test]
    fn what_a_template_takes_is_bounded() {
        let doubled = |step: &str| {
            format!(
                "{{% set ns = namespace(x=[1, 2]) %}}{{% for i in range(40) %}}{{% set ns.x = {step} %}}{{% endfor %}}{{{{ ns.x | tojson }}}}"
            )
        };
        for (template, expected) in [
            (doubled("ns.x + ns.x"), "steps allowed"),
            (doubled("[ns.x, ns.x]"), "steps allowed"),
            (doubled("(ns.x | string) + ns.x"), "chat template"),
            ("{% macro m(x, n) %}{{ m(x + x, n - 1) if n else x | length }}{% endmacro %}{{ m([1], 60) }}".into(), "steps"),
            ("{{ [1, [2]] | tojson(indent=1000000000) }}".into(), "steps allowed"),
            ("{{ [1] | tojson(indent=9223372036854775807) }}".into(), "steps allowed"),
            ("{{ ('a' * 1000000).replace('a', 'b' * 1000000) | length }}".into(), "steps allowed"),
            ("{{ ('a' * 1000000).join(['a'] * 1000000) | length }}".into(), "steps allowed"),
            (
                "{% set ns = namespace(x=[]) %}{% for i in range(300) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}"
                    .into(),
                "200 values are nested",
            ),
            ("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}".into(), "recursion"),
            (format!("{{{{ {}{} }}}}", "[".repeat(20000), "]".repeat(20000)), "recursion"),
            ("{# #}".repeat(60000), "262144 allowed"),
        ] {
            let error = chat(&template).unwrap_err().to_string();
            assert!(error.contains(expected), "{}: {error}", template.get(..120).unwrap_or(&template));
        }
        // Deep values and long chains are no reason to run out of stack.
        let deep = "{% set ns = namespace(x=[]) %}{% for i in range(9) %}{% for j in range(10000) %}\
                    {% set ns.x = [ns.x] %}{% endfor %}{% endfor %}{{ ns.x | length }}";
        assert_eq!(chat(deep).unwrap(), "1");
        let chain = format!("{{% if a %}}{}{{% endif %}}x", "{% elif b %}".repeat(20000));
        let _ = chat(&chain);
        let _ = chat(&format!("{{{{ {} 1 }}}}", "not ".repeat(60000)));
        let _ = chat(&format!("{{{{ 1{} }}}}", " + 1".repeat(60000)));
        let _ = chat(&format!("{{{{ a{} }}}}", ".b".repeat(100000)));
    }
}
