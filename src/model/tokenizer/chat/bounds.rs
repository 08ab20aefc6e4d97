//! Bounds on what a chat template may take. A template comes with the model and is untrusted: minijinja charges fuel for
//! instructions and for most data, and here is what it leaves out: `+` on lists, Python's methods, the depth of the
//! native stack, and the length of the template itself.

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Error, State};

/// Steps a template may take; real ones need a few hundred per message. Every 64 bytes of data count as one, so that
/// this bounds memory (128 MB) as well as time.
pub(super) const FUEL: u64 = 2_000_000;
/// Bytes of a template; the longest in use have about 30 kB.
pub(super) const LONGEST: usize = 256 << 10;
/// What the recursion of parsing, rendering and dropping needs at most: depth is bounded by [`FUEL`] and [`LONGEST`].
pub(super) const STACK: usize = 512 << 20;
/// Values nested in each other, in JSON (Python's own limit is about 1,000).
pub(super) const DEEPEST: usize = 200;
/// The function that stands for `+`.
const ADD: &str = "__add__";

/// Charges for `bytes` of data.
pub(super) fn charge(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / 64 + 1)
}

/// Makes `env` charge for `+` and for methods; templates go through [`guarded`] first.
pub(super) fn set_up(env: &mut minijinja::Environment) {
    env.set_fuel(Some(FUEL));
    env.add_function(ADD, add);
    env.set_unknown_method_callback(method);
}

/// `a + b`: numbers and strings as minijinja adds them (and charges for them), lists copied into one and charged for.
fn add(state: &mut State, a: Value, b: Value) -> Result<Value, Error> {
    let is_list = |v: &Value| matches!(v.kind(), ValueKind::Seq | ValueKind::Iterable) && !v.is_tuple();
    if !is_list(&a) || !is_list(&b) {
        let env = state.env();
        let (a, b) = (&a, &b);
        charge(state, size(a).saturating_add(size(b)))?;
        return env.compile_expression("a + b")?.eval(minijinja::context! { a, b });
    }
    let mut all = Vec::new();
    for list in [&a, &b] {
        for item in list.try_iter()? {
            if all.len() % 64 == 0 {
                charge(state, 64 * size_of::<Value>())?;
            }
            all.push(item);
        }
    }
    Ok(Value::from(all))
}

/// Bytes that a value holds itself, without what is in its items.
fn size(value: &Value) -> usize {
    match value.as_str() {
        Some(text) => text.len(),
        None => value.len().unwrap_or(0).saturating_mul(size_of::<Value>()),
    }
}

/// Python's methods, charged for what they read, and for what they make before they make it.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let read = args.iter().map(size).fold(size(value), usize::saturating_add);
    charge(state, read)?;
    let text = |i: usize| args.get(i).and_then(Value::as_str);
    match (value.as_str(), name) {
        (Some(s), "replace") => {
            if let (Some(old), Some(new)) = (text(0), text(1)) {
                let times = if old.is_empty() { s.len() + 1 } else { s.matches(old).count() };
                charge(state, times.saturating_mul(new.len()))?;
            }
        }
        (Some(s), "join") if args.len() == 1 => {
            let mut joined = String::new();
            for (i, item) in args[0].try_iter()?.enumerate() {
                if i > 0 {
                    joined.push_str(s);
                }
                let item = match item.as_str() {
                    Some(_) => item,
                    None => state.apply_filter("string", &[item])?,
                };
                let item = item.as_str().unwrap_or_default();
                charge(state, s.len() + item.len())?;
                joined.push_str(item);
            }
            return Ok(Value::from(joined));
        }
        _ => {}
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// The template with every `a + b` as a call that is charged for. minijinja joins lists lazily, without a charge, and
/// forty doublings of one never come to an end.
///
/// An operand reaches back to what binds looser than `+`, and forward to that or to the next `+` or `-`.
pub(super) fn guarded(template: &str, syntax: SyntaxConfig) -> Result<String, Error> {
    let mut tokens = Vec::new();
    for token in tokenize(template, false, syntax) {
        let (token, span) = token?;
        tokens.push((Kind::of(&token), span.start_offset as usize, span.end_offset as usize));
    }
    for i in 1..tokens.len() {
        // `.if` is a name, and so is what follows `is`.
        if tokens[i].0 == Kind::Looser && tokens[i - 1].0 == Kind::Dot {
            tokens[i].0 = Kind::Operand;
        }
        if tokens[i].0 == Kind::Not && tokens[i - 1].0 == Kind::Is {
            tokens[i].0 = Kind::Operand;
        }
        if tokens[i].0 == Kind::Operand && tokens[i - 1].0 == Kind::Begin && is_keyword(template, tokens[i]) {
            tokens[i].0 = Kind::Looser;
        }
    }
    // What is inserted before a byte: closing parts first.
    let mut edits: Vec<(usize, u8, &str)> = Vec::new();
    for (i, (kind, start, end)) in tokens.iter().enumerate() {
        if *kind != Kind::Plus || i == 0 || matches!(tokens[i - 1].0, Kind::Begin | Kind::Data) {
            continue;
        }
        let Some(first) = reach(&tokens[..i], true) else { continue };
        let Some(last) = reach(&tokens[i + 1..], false) else { continue };
        edits.push((tokens[i - first].1, 2, ADD));
        edits.push((tokens[i - first].1, 2, "("));
        edits.push((*start, 1, ","));
        edits.push((tokens[i + last].2, 0, ")"));
        debug_assert_eq!(&template[*start..*end], "+");
    }
    // The sort is stable: the name stays before its bracket.
    edits.sort_by_key(|(at, order, _)| (*at, *order));
    let (mut out, mut from) = (String::with_capacity(template.len() + 16 * edits.len()), 0);
    for (at, order, text) in edits {
        out.push_str(&template[from..at]);
        out.push_str(text);
        from = at + usize::from(order == 1);
    }
    out.push_str(&template[from..]);
    Ok(out)
}

/// How many tokens an operand has, looking back or forward from its `+`; `None` if there is none.
fn reach(tokens: &[(Kind, usize, usize)], back: bool) -> Option<usize> {
    let (mut depth, mut count, mut operands) = (0usize, 0, 0);
    let mut step = |kind: Kind| {
        let (deeper, out) = if back { (Kind::Close, Kind::Open) } else { (Kind::Open, Kind::Close) };
        match kind {
            kind if kind == deeper => depth += 1,
            kind if kind == out && depth == 0 => return false,
            kind if kind == out => depth -= 1,
            Kind::Begin | Kind::End | Kind::Data => return false,
            _ if depth > 0 => {}
            Kind::Looser | Kind::Not => return false,
            // A sign belongs to the operand, an operator ends it.
            Kind::Plus | Kind::Minus if !back && operands > 0 => return false,
            _ => {}
        }
        operands += usize::from(!matches!(kind, Kind::Plus | Kind::Minus));
        count += 1;
        true
    };
    match back {
        true => _ = tokens.iter().rev().all(|t| step(t.0)),
        false => _ = tokens.iter().all(|t| step(t.0)),
    }
    (operands > 0).then_some(count)
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Data,
    Begin,
    End,
    Open,
    Close,
    Dot,
    Is,
    Not,
    Plus,
    Minus,
    /// Binds looser than `+`.
    Looser,
    /// Anything that is part of an operand: names, literals, tighter operators.
    Operand,
}

impl Kind {
    fn of(token: &Token) -> Self {
        match token {
            Token::TemplateData(_) => Kind::Data,
            Token::VariableStart | Token::BlockStart => Kind::Begin,
            Token::VariableEnd | Token::BlockEnd => Kind::End,
            Token::BracketOpen | Token::ParenOpen | Token::BraceOpen => Kind::Open,
            Token::BracketClose | Token::ParenClose | Token::BraceClose => Kind::Close,
            Token::Dot => Kind::Dot,
            Token::Plus => Kind::Plus,
            Token::Minus => Kind::Minus,
            Token::Comma | Token::Colon | Token::Assign => Kind::Looser,
            Token::Eq | Token::Ne | Token::Gt | Token::Gte | Token::Lt | Token::Lte => Kind::Looser,
            Token::Ident("is") => Kind::Is,
            Token::Ident("not") => Kind::Not,
            Token::Ident("and" | "or" | "in" | "if" | "else" | "recursive") => Kind::Looser,
            _ => Kind::Operand,
        }
    }
}

/// The first word of a block (`set`, `elif`, `do`, ...), which is no operand.
fn is_keyword(template: &str, (_, start, end): (Kind, usize, usize)) -> bool {
    let before = template[..start].trim_end();
    let before = before.strip_suffix(['-', '+']).unwrap_or(before);
    before.ends_with("{%") && template[start..end].bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plus_becomes_a_call() {
        for (plain, expected) in [
            ("{{ a + b }}", "{{ __add__(a , b) }}"),
            ("{{ a + b - c + d }}", "{{ __add__(__add__(a , b) - c , d) }}"),
            (
                "{% set x = m.role + '\\n' + (m.content | trim) %}",
                "{% set x = __add__(__add__(m.role , '\\n') , (m.content | trim)) %}",
            ),
            (
                "{%- if a + 1 == b * 2 + c and not d + e %}",
                "{%- if __add__(a , 1) == __add__(b * 2 , c) and not __add__(d , e) %}",
            ),
            (
                "{{ f(x=a+b, y=[1+2, {'k': c+d}])[i+1:] }}",
                "{{ f(x=__add__(a,b), y=[__add__(1,2), {'k': __add__(c,d)}])[__add__(i,1):] }}",
            ),
            ("{% for x in a + b if x.if + -1 %}", "{% for x in __add__(a , b) if __add__(x.if , -1) %}"),
            ("{{ a if b else c + d }}", "{{ a if b else __add__(c , d) }}"),
            ("{%+ if x is not none %}+{% raw %}{{ a + b }}{% endraw %}{# 1 + 1 #}{{ '+' }}", ""),
        ] {
            let expected = if expected.is_empty() { plain } else { expected };
            assert_eq!(guarded(plain, SyntaxConfig::default()).unwrap(), expected);
        }
    }
}
