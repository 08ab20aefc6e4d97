//! Rules for single modules of a folder: another scheme of the same tool, another width, or none. The first rule that
//! matches decides; modules that engines fuse must come out alike.

use super::seats::Seat;
use crate::convert::recipe::{FolderType, TypeRule};
use crate::model::modules::{Kept, Module, Together};
use crate::packed::Spec;
use crate::{Error, Result};
use regex::{Regex, RegexBuilder};

/// What stays in the source's type, as the name that follows "to" in a sentence.
pub(super) const KEPT: &str = "left unchanged";

/// A linear layer, decided.
#[derive(Clone, Debug)]
pub struct ModulePlan {
    pub module: Module,
    /// Under which name it lies in the folder.
    pub seat: Seat,
    /// How it is stored; `None`: as it is.
    pub spec: Option<Spec>,
    /// Whether a rule says so.
    pub ruled: bool,
}

impl ModulePlan {
    /// What must be stored as this is: the parts of one stack, and for engines that fuse what they fuse.
    pub fn alike(&self) -> Option<Alike<'_>> {
        match (self.seat.part, self.module.stored_alike()) {
            (Some(_), _) => Some(Alike::Stack(&self.seat.path)),
            (None, together) => together.map(Alike::Fused),
        }
    }

    /// The same in a folder whose engine fuses modules or (MLX) does not.
    pub fn alike_where(&self, fuses: bool) -> Option<Alike<'_>> {
        self.alike().filter(|alike| fuses || matches!(alike, Alike::Stack(_)))
    }

    /// The full name of one of its tensors.
    pub fn name(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.seat.path)
    }
}

/// Why modules must be stored alike; equal answers belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alike<'a> {
    /// They lie in one tensor.
    Stack(&'a str),
    /// An engine makes one of them.
    Fused(Together<'a>),
}

/// A rule's pattern, as it is searched in names.
pub fn pattern(rule: &TypeRule) -> Result<Regex> {
    let regex = RegexBuilder::new(&rule.pattern).case_insensitive(true).build();
    let fault =
        |e| Error::request(format!("the pattern '{}': {}", rule.pattern, crate::convert::asked::regex_fault(&e)));
    regex.map_err(fault)
}

/// That every rule matched something.
///
/// # Errors
/// `Request` naming the first that did not.
pub fn all_matched<'a>(rules: impl IntoIterator<Item = (&'a TypeRule, bool)>, what: &str) -> Result<()> {
    match rules.into_iter().find(|(_, matched)| !matched) {
        None => Ok(()),
        Some((rule, _)) => {
            let what = format!("the rule '{}={}' matches no {what}", rule.pattern, rule.ty);
            Err(Error::request(what).hint("names are those of tensors in a folder or in a GGUF file"))
        }
    }
}

/// Whether a rule says that a matrix is quantized whatever its name.
///
/// # Errors
/// `Request` for a pattern that is none.
pub fn included(rules: &[TypeRule]) -> Result<impl Fn(&str) -> bool> {
    let patterns: Vec<(Regex, bool)> = rules
        .iter()
        .filter(|rule| rule.ty.folder.is_some())
        .map(|rule| Ok((pattern(rule)?, rule.ty.folder == Some(FolderType::Own))))
        .collect::<Result<_>>()?;
    Ok(move |name: &str| patterns.iter().find(|(pattern, _)| pattern.is_match(name)).is_some_and(|(_, on)| *on))
}

/// Gives modules what the rules say, and notes which have it by a rule.
///
/// # Errors
/// `Request` for a rule that matches nothing, or what no folder of this format can hold; `Unsupported` where a module
/// cannot have what its rule says, or engines fuse it with one that has something else.
pub fn apply(spec: &Spec, modules: &mut [ModulePlan], all_kept: &[Kept], rules: &[TypeRule]) -> Result<()> {
    let mut ruled: Vec<Option<usize>> = vec![None; modules.len()];
    let rules: Vec<(&TypeRule, FolderType)> = rules.iter().filter_map(|rule| Some((rule, rule.ty.folder?))).collect();
    let patterns = rules.iter().map(|(rule, _)| pattern(rule)).collect::<Result<Vec<_>>>()?;
    let mut matched = vec![false; rules.len()];
    for (ModulePlan { module, spec: own, .. }, ruled) in modules.iter_mut().zip(&mut ruled) {
        let name = format!("{}.weight", module.path);
        let finds = |p: &Regex| p.is_match(&name) || p.is_match(&module.gguf);
        patterns.iter().zip(&mut matched).filter(|(p, _)| finds(p)).for_each(|(_, m)| *m = true);
        let Some(decides) = patterns.iter().position(finds) else { continue };
        let (rule, ty) = rules[decides];
        *own = chosen(spec, rule, ty, module)?;
        *ruled = Some(decides);
    }
    for kept in all_kept {
        for ((pattern, matched), (rule, ty)) in patterns.iter().zip(&mut matched).zip(&rules) {
            if *matched || !pattern.is_match(&kept.name) {
                continue;
            }
            if *ty != FolderType::Keep {
                let wanted = if *ty == FolderType::Own { spec.to_string() } else { rule.ty.to_string() };
                let what = format!("{}: is no linear layer that {spec} quantizes, and cannot be {wanted}", kept.name);
                return Err(Error::unsupported(what));
            }
            *matched = true;
        }
    }
    all_matched(rules.iter().map(|(rule, _)| *rule).zip(matched), "module of this model")?;
    agree(modules, &ruled, &rules, spec.loader().fuses())?;
    modules.iter_mut().zip(&ruled).for_each(|(module, rule)| module.ruled = rule.is_some());
    Ok(())
}

/// What a module has by a rule.
fn chosen(spec: &Spec, rule: &TypeRule, ty: FolderType, module: &Module) -> Result<Option<Spec>> {
    let cannot = |why: String| Error::request(format!("the rule '{}={}': {why}", rule.pattern, rule.ty));
    let own = match ty {
        FolderType::Keep => return Ok(None),
        FolderType::Own => *spec,
        FolderType::Bits(bits) => {
            spec.with_bits(bits).ok_or_else(|| cannot(format!("{spec} has no form of {bits} bits")))?
        }
        FolderType::Format(own) => own,
    };
    if !spec.mixes_with(&own) {
        return Err(cannot(format!("{own} and {spec} cannot share a folder: no loader reads both")));
    }
    if own.needs_inputs() && !spec.needs_inputs() {
        let why = format!("{own} needs calibration data; make it the folder's format, and {spec} the exception");
        return Err(cannot(why));
    }
    // Where no group was asked for, one that fits is taken.
    let groups = [128, 64, 32].into_iter().filter(|_| own.has_free_group() && !own.group_given);
    let smaller = groups.filter(|g| own.group.is_some_and(|own| *g < own)).map(|g| Spec { group: Some(g), ..own });
    let fits = |s: &Spec| s.refuses(module.rows, module.cols).is_none();
    match std::iter::once(own).chain(smaller).find(fits) {
        Some(found) => Ok(Some(found)),
        None => {
            let why = own.refuses(module.rows, module.cols).unwrap_or_default();
            Err(Error::unsupported(format!("{}: cannot be {own}, as a rule says: {why}", module.path)))
        }
    }
}

/// Engines put some modules into one matrix, or run them by one kernel; `fuses`: not only those of one stack.
fn agree(
    modules: &[ModulePlan],
    ruled: &[Option<usize>],
    rules: &[(&TypeRule, FolderType)],
    fuses: bool,
) -> Result<()> {
    let name = |spec: &Option<Spec>| spec.map_or(KEPT.to_string(), |s| s.to_string());
    let mut first: std::collections::HashMap<_, usize> = std::collections::HashMap::new();
    for (i, own) in modules.iter().enumerate() {
        let Some(set) = own.alike_where(fuses) else { continue };
        let j = *first.entry(set).or_insert(i);
        let other = &modules[j];
        if own.spec == other.spec || (ruled[i].is_none() && ruled[j].is_none()) {
            continue;
        }
        let rule = ruled[i].or(ruled[j]).map(|r| rules[r].0);
        let by = rule.map_or_else(String::new, |rule| format!(" by the rule '{}={}'", rule.pattern, rule.ty));
        let what = format!(
            "engines fuse {} with {}, but{by} one is {} and the other {}",
            own.module.path,
            other.module.path,
            name(&own.spec),
            name(&other.spec)
        );
        return Err(Error::unsupported(what).hint("let one rule match all of them"));
    }
    Ok(())
}
