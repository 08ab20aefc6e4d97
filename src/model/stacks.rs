//! Experts that a checkpoint of an unknown family stacks into one tensor, told by names and shapes: `[experts, out, in]`, as
//! transformers 5 keeps them, gate and up in one. Each expert becomes a linear layer under the name that it has where
//! experts lie one by one.

use crate::source::{Checkpoint, Dtype, TensorMeta};

/// What lies in a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stack {
    /// One matrix of each expert.
    Single,
    /// The gate's rows and then those of up.
    Halves,
}

/// Names of a stack of both halves, and of the one that reads what they give.
const PAIRS: [(&str, &str); 2] = [("gate_up_proj", "down_proj"), ("input_linear", "output_linear")];
const SINGLE: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// A name without `.weight`, as what holds it and its last word.
fn parts(name: &str) -> Option<(&str, &str)> {
    name.strip_suffix(".weight").unwrap_or(name).rsplit_once('.')
}

fn is_number(t: &TensorMeta) -> bool {
    matches!(t.dtype, Dtype::Ggml(ty) if ty.is_plain())
}

/// Whether the tensor is a stack of linear layers whose rows are outputs. Where the input channels lie first, or gate and up
/// alternate, no format has a place for what they would become.
pub(super) fn of(ckpt: &Checkpoint, t: &TensorMeta) -> Option<Stack> {
    let [experts, rows, cols] = t.shape[..] else { return None };
    let (block, last) = parts(&t.name)?;
    if experts < 2 || rows.min(cols) < 16 || !is_number(t) {
        return None;
    }
    let beside = |last: &str| {
        let name = format!("{block}.{last}");
        let found = ckpt.find(&name).or_else(|| ckpt.find(&format!("{name}.weight")))?;
        ckpt.tensors().get(found).map(|t| t.shape.as_slice())
    };
    if block.ends_with(".switch_mlp") && SINGLE.contains(&last) {
        return Some(Stack::Single);
    }
    if !block.ends_with(".experts") && !block.ends_with("_moe") {
        return None;
    }
    let biased = ["gate_up_proj_bias", "down_proj_bias"].iter().any(|name| beside(name).is_some());
    let both = |both: &[usize], down: &[usize]| match (both, down) {
        ([e, two, hidden], [f, out, width]) => e == f && hidden == out && *two == 2 * width,
        _ => false,
    };
    let pair = PAIRS.iter().find(|(both, down)| *both == last || *down == last)?;
    if biased || !both(beside(pair.0)?, beside(pair.1)?) {
        return None;
    }
    Some(if last == pair.0 { Stack::Halves } else { Stack::Single })
}

/// The name of an expert's matrix where experts lie one by one; `half`: which of gate and up.
pub(super) fn single_name(stack: &str, half: Option<usize>, expert: usize) -> Option<String> {
    let (block, last) = parts(stack)?;
    let projection = match (last, half) {
        ("output_linear", None) => "down_proj",
        (_, Some(half)) => SINGLE[half.min(1)],
        (last, None) => last,
    };
    let block = block.strip_suffix(".switch_mlp").or(block.strip_suffix(".experts")).unwrap_or(block);
    Some(format!("{block}.experts.{expert}.{projection}.weight"))
}

/// Whether engines other than mlx-lm know the single experts of such a stack.
pub(super) fn has_singles(stack: &str) -> bool {
    parts(stack).is_some_and(|(block, _)| block.ends_with(".experts") || block.ends_with(".switch_mlp"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::GgmlType;

    fn checkpoint(tensors: &[(&str, [usize; 3])]) -> Checkpoint {
        let stored = tensors.iter().map(|(name, shape)| (name.to_string(), GgmlType::BF16, shape.to_vec()));
        Checkpoint::imagined(stored.collect()).unwrap()
    }

    fn stacks(tensors: &[(&str, [usize; 3])]) -> Vec<Option<Stack>> {
        let ckpt = checkpoint(tensors);
        ckpt.tensors().iter().map(|t| of(&ckpt, t)).collect()
    }

    #[test]
    fn stacks_are_told_by_names_and_shapes() {
        let (both, down) = ("model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj");
        let found = [Some(Stack::Halves), Some(Stack::Single)];
        assert_eq!(stacks(&[(both, [4, 64, 128]), (down, [4, 128, 32])]), found);
        // The input channels first.
        assert_eq!(stacks(&[(both, [4, 128, 64]), (down, [4, 32, 128])]), [None, None]);
        assert_eq!(stacks(&[(both, [4, 64, 128])]), [None]);
        let biased =
            [(both, [4, 64, 128]), (down, [4, 128, 32]), ("model.layers.0.mlp.experts.down_proj_bias", [4, 1, 128])];
        assert_eq!(stacks(&biased)[..2], [None, None]);
        let granite =
            ["input_linear", "output_linear"].map(|last| format!("model.layers.0.block_sparse_moe.{last}.weight"));
        assert_eq!(stacks(&[(&granite[0], [4, 64, 128]), (&granite[1], [4, 128, 32])]), found);
        assert!(has_singles(both) && !has_singles(&granite[0]));
    }

    #[test]
    fn experts_are_named_as_where_they_lie_one_by_one() {
        let name = |stack, half| single_name(stack, half, 3).unwrap();
        assert_eq!(name("a.experts.gate_up_proj", Some(1)), "a.experts.3.up_proj.weight");
        assert_eq!(name("a.mlp.switch_mlp.down_proj.weight", None), "a.mlp.experts.3.down_proj.weight");
        assert_eq!(
            name("a.block_sparse_moe.output_linear.weight", None),
            "a.block_sparse_moe.experts.3.down_proj.weight"
        );
    }
}
