//! Which tensors cause the loss: the base model with one group of tensors at a time taken from a candidate, scored
//! against the base itself. A second copy of the base lends its place to each group in turn.

use super::{Ablation, Base, Candidate, Options, Runnable, Windows};
use crate::Result;
use crate::control::Cancel;

/// The KL divergence of each group of linear layers (all `ffn_down`, all `attn_v`, ...) quantized alone, largest first.
/// `twin` is the base loaded once more; all three models are as before afterwards.
///
/// Errors: those of running the models; `Interrupted`.
pub fn ablate(
    base: &mut Runnable,
    twin: &mut Runnable,
    candidate: &mut Runnable,
    stream: &[u32],
    windows: &Windows,
    cancel: &Cancel,
) -> Result<Vec<Ablation>> {
    let mut groups: Vec<String> = Vec::new();
    for linear in candidate.engine.linears_mut() {
        let group = group_of(&linear.name);
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    let mut rows = Vec::new();
    for group in groups {
        cancel.check()?;
        let tensors = swap(twin, candidate, &group);
        let run = {
            let from = Base::Model(Candidate { name: "base".into(), model: base });
            let with = Candidate { name: group.clone(), model: twin };
            super::compare(from, &mut [with], stream, windows, Options::default())
        };
        swap(twin, candidate, &group);
        let (statistics, _) = run?.summarize(super::bootstrap::Bootstrap::default());
        let bytes = candidate.model.tensors.iter().filter(|t| group_of(&t.name) == group);
        let bytes = bytes.flat_map(|t| &t.parts).map(|p| candidate.ckpt.tensors()[*p].bytes()).sum();
        let kld = statistics.first().map(|s| s.kld).unwrap_or_default();
        rows.push(Ablation { group, tensors, bytes, kld });
    }
    rows.sort_by(|a, b| b.kld.value.total_cmp(&a.kld.value));
    Ok(rows)
}

/// `blk.7.ffn_down.weight` → `ffn_down`; what is not in a block is a group of its own.
fn group_of(name: &str) -> String {
    let name = name.trim_end_matches(".weight");
    name.rsplit('.').next().unwrap_or(name).to_string()
}

/// Exchanges the weights of one group between two models of the same shape; returns how many there were.
fn swap(a: &mut Runnable, b: &mut Runnable, group: &str) -> usize {
    let members = a.engine.linears_mut().zip(b.engine.linears_mut()).filter(|(x, _)| group_of(&x.name) == group);
    members.map(|(x, y)| std::mem::swap(&mut x.weight, &mut y.weight)).count()
}
