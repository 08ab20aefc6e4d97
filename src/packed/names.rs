//! What people call the formats: `gptq-4bit-128g`, `w4a16`, `mlx-4bit-32g`, ... and the name that we print. The words are
//! those of the rows; only their grammar is here.

use super::{Bits, FORMATS, Format, GroupRule, Name, Spec, Symmetry};
use std::fmt;

/// The format of this name, in any case, with `-` or `_` between its words; `None` when it is not one.
///
/// The first words say the format ([`Format::names`], the longest that fits). The others, in any order, refine it: `4bit`
/// or `int8` the width, `64g` or `channel` the group, `sym` or `asym`, `desc` (by falling activation), a word of
/// [`Format::layouts`], `dq` (with double quantization).
pub fn parse(name: &str) -> Option<Spec> {
    let name = name.to_ascii_lowercase().replace('_', "-");
    let name = name.replace("desc-act", "desc").replace("double-quant", "dq");
    let (mut spec, rest) = first(&name)?;
    let mut layout_given = false;
    for word in rest {
        layout_given |= refine(&mut spec, word)?;
    }
    if let Some(other) = spec.format.if_asymmetric.filter(|_| !spec.symmetric && !layout_given) {
        spec.format = other;
    }
    is_sound(&spec).then_some(spec)
}

impl Name {
    fn spec(&self, format: &'static Format) -> Spec {
        let symmetric = match format.symmetry {
            Symmetry::Symmetric => true,
            Symmetry::Asymmetric => false,
            Symmetry::Choice { symmetric } => symmetric,
        };
        let Name { bits, group, .. } = *self;
        Spec { format, bits, group, group_given: false, symmetric, desc_act: false, nested: false }
    }
}

impl Format {
    /// The names that it goes by.
    pub fn spellings(&self) -> impl Iterator<Item = &'static str> {
        self.names.iter().map(|name| name.words)
    }

    /// With the numbers of its first name.
    pub(super) fn plain(&'static self) -> Option<Spec> {
        self.names.first().map(|name| name.spec(self))
    }
}

/// The row with the longest name that `full` begins with, and the words after it.
fn first(full: &str) -> Option<(Spec, impl Iterator<Item = &str>)> {
    let after = |name: &Name| match full.strip_prefix(name.words)? {
        "" => Some(""),
        rest => rest.strip_prefix('-'),
    };
    let names = FORMATS.iter().flat_map(|format| format.names.iter().map(move |name| (*format, name)));
    let fitting = names.filter(|(_, name)| after(name).is_some());
    let (format, name) = fitting.max_by_key(|(_, name)| name.words.len())?;
    let whole = full.len() == name.words.len();
    let rest = after(name)?.split('-').filter(move |_| !whole);
    Some((name.spec(format), rest))
}

/// Applies one word; says whether it names a layout. `None` when the format has no such word.
fn refine(spec: &mut Spec, word: &str) -> Option<bool> {
    let number = |prefix: &str, suffix: &str| word.strip_prefix(prefix)?.strip_suffix(suffix)?.parse::<usize>().ok();
    if let Some(bits) = number("", "bit").or_else(|| number("int", "")).or_else(|| number("w", "")) {
        let bits = u8::try_from(bits).ok()?;
        match spec.format.bits {
            Bits::Of(_) => spec.bits = bits,
            Bits::Named if bits == spec.bits => {}
            Bits::Named => return None,
        }
        return Some(false);
    }
    if let Some(group) = number("", "g").or_else(|| number("g", "")).or_else(|| number("gs", "")) {
        match spec.format.group {
            GroupRule::Free | GroupRule::Of(_) | GroupRule::Flat => {}
            GroupRule::Fixed if spec.group == Some(group) => {}
            GroupRule::Fixed => return None,
        }
        (spec.group, spec.group_given) = (Some(group), true);
        return Some(false);
    }
    if let Some((_, format)) = spec.format.layouts.iter().find(|(layout, _)| *layout == word) {
        spec.format = format;
        return Some(true);
    }
    match (word, spec.format.group, spec.format.symmetry) {
        ("channel", GroupRule::Free, _) => (spec.group, spec.group_given) = (None, true),
        ("sym", _, Symmetry::Symmetric | Symmetry::Choice { .. }) => spec.symmetric = true,
        ("asym", _, Symmetry::Choice { .. }) => spec.symmetric = false,
        ("desc", ..) if spec.format.orders_columns => spec.desc_act = true,
        ("dq" | "nested" | "double", ..) if spec.format.nests => spec.nested = true,
        _ => return None,
    }
    Some(false)
}

fn is_sound(spec: &Spec) -> bool {
    let bits = match spec.format.bits {
        Bits::Named => true,
        Bits::Of(widths) => widths.contains(&spec.bits),
    };
    let group = match (spec.format.group, spec.group) {
        (GroupRule::Of(lengths), group) => group.is_some_and(|g| lengths.contains(&g)),
        (GroupRule::Flat, group) => group.is_none_or(|g| g.is_power_of_two()),
        (GroupRule::Free | GroupRule::Fixed, group) => group.is_none_or(|g| g > 0),
    };
    bits && group
}

/// `64g`, or `channel` for whole rows.
pub(super) fn group_word(spec: &Spec) -> String {
    spec.group.map_or("channel".into(), |g| format!("{g}g"))
}

/// The name that `parse` takes back, complete where there is a choice.
impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&(self.format.shown)(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_mean() {
        let shown = |name: &str| parse(name).map(|s| s.to_string());
        for (name, canonical) in [
            ("gptq", "gptq-4bit-128g"),
            ("GPTQ-Int8", "gptq-8bit-128g"),
            ("gptq-4bit-64g", "gptq-4bit-64g"),
            ("gptq_v2", "gptq-4bit-128g-v2"),
            ("gptq-3bit-channel-asym-desc_act", "gptq-3bit-channel-asym-desc"),
            ("awq", "awq-4bit-128g"),
            ("awq-4bit-64g", "awq-4bit-64g"),
            ("w4a16-g64", "w4a16-64g"),
            ("w8a16", "w8a16-channel"),
            ("fp8", "fp8"),
            ("fp8-dynamic", "fp8"),
            ("fp8-block", "fp8-block"),
            ("fp8_static", "fp8-static"),
            ("int8", "int8"),
            ("w8a8", "int8"),
            ("nvfp4", "nvfp4"),
            ("nvfp4a16", "nvfp4a16"),
            ("mxfp4", "mxfp4"),
            ("nf4", "nf4"),
            ("nf4-dq", "nf4-dq"),
            ("bnb-4bit-double_quant", "nf4-dq"),
            ("fp4-128g", "fp4-128g"),
            ("bnb-int8", "bnb-int8"),
            ("mlx-4bit", "mlx-4bit-64g"),
            ("mlx-6bit-32g", "mlx-6bit-32g"),
            ("mlx-nvfp4", "mlx-nvfp4"),
        ] {
            assert_eq!(shown(name).as_deref(), Some(canonical), "{name}");
            assert_eq!(shown(canonical).as_deref(), Some(canonical));
        }
        for name in ["", "q4_k_m", "gptq-5bit", "awq-8bit", "mlx-7bit", "mlx-4bit-16g", "nvfp4-32g", "gptq-0g", "fp8-x"]
        {
            assert_eq!(parse(name), None, "{name}");
        }
        assert!(parse("gptq-128g").is_some_and(|s| s.group_given) && parse("gptq").is_some_and(|s| !s.group_given));
    }
}
