//! What the modules of one folder may be stored as, for budgets: short lists from which a choice is made by measured losses.

use super::{GroupRule, Spec};

/// Ways to store a module; `None`: as it is.
pub type Mixture = Vec<Option<Spec>>;

/// The format itself, beside which modules can stay as they are.
pub(super) fn own_or_kept(own: &Spec) -> Mixture {
    vec![Some(*own), None]
}

/// The format in each of `widths`, and in each group that it may choose.
pub(super) fn grouped(own: &Spec, widths: &[u8]) -> Mixture {
    let groups = match own.format.group {
        _ if own.group_given => vec![own.group],
        GroupRule::Free => vec![None, Some(128), Some(64), Some(32)],
        GroupRule::Of(groups) => groups.iter().copied().map(Some).collect(),
        GroupRule::Fixed | GroupRule::Flat => vec![own.group],
    };
    let spec = |bits: u8, group: Option<usize>| Some(Spec { bits, group, ..*own });
    widths.iter().flat_map(|bits| groups.iter().map(move |group| spec(*bits, *group))).collect()
}

/// The same with its own of these widths and the larger ones: narrower ones are not what was asked for.
pub(super) fn wider_and_grouped(own: &Spec, widths: &[u8]) -> Mixture {
    let widths: Vec<u8> = widths.iter().copied().filter(|bits| *bits >= own.bits).collect();
    grouped(own, &widths)
}
