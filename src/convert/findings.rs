//! What a GGUF file says of its check, and of the held-out text that error feedback was judged on: keys whose values have a
//! fixed size, laid out with the file and filled in when its data are written.

use super::judge::Verdict;
use super::proof::{Checked, DIGITS, Nearness, READ, rounded_to};
use crate::eval::Loss;
use crate::gguf::{Metadata, Value};
use crate::model::config::Ending;

/// Tokens over which the file ran beside its source before it got its name; 0 where it was not run.
const CHECKED_TOKENS: &str = "quantize.checked.tokens";
/// Tokens of held-out text on which error feedback was judged.
const HELD_OUT_TOKENS: &str = "quantize.held_out.tokens";

/// Makes room in a file of a model with this ending; `feedback`: for held-out text, too.
pub fn lay_out(metadata: &mut Metadata, ending: Ending, feedback: bool) {
    metadata.set("quantize.checked.texts", READ.map(String::from).to_vec());
    let of_logits = ending == Ending::Logits;
    let nearness = match of_logits {
        true => Nearness::default(),
        false => Nearness::Vectors { cosine: 1.0, worst_cosine: 1.0, chunks: 0 },
    };
    fill_in(metadata, of_check(&Checked { nearness, ..Checked::default() }));
    if feedback {
        let loss = if of_logits { Loss::Divergence } else { Loss::Distance };
        fill_in(metadata, of_held_out(&Verdict { loss, kl: vec![0.0], rival: vec![0.0], tokens: 0, blind: 0.0 }));
    }
}

fn fill_in(metadata: &mut Metadata, values: Vec<(&'static str, Value)>) {
    values.into_iter().for_each(|(key, value)| metadata.set(key, value));
}

fn kept(v: f64) -> Value {
    Value::F32(rounded_to(v, DIGITS) as f32)
}

/// What was seen beside the source.
pub fn of_check(checked: &Checked) -> Vec<(&'static str, Value)> {
    let mut values = vec![(CHECKED_TOKENS, Value::U32(checked.tokens as u32))];
    match checked.nearness {
        Nearness::Logits { kl, same_top, .. } => {
            values.extend([("quantize.checked.kl_divergence", kept(kl)), ("quantize.checked.same_top", kept(same_top))])
        }
        Nearness::Vectors { cosine, .. } => values.push(("quantize.checked.distance", kept(1.0 - cosine))),
    }
    values
}

/// What error feedback loses on held-out text, and rounding block by block.
pub fn of_held_out(verdict: &Verdict) -> Vec<(&'static str, Value)> {
    let [of, of_rival] = match verdict.loss {
        Loss::Divergence => ["quantize.held_out.kl_divergence", "quantize.held_out.kl_divergence_nearest"],
        Loss::Distance => ["quantize.held_out.distance", "quantize.held_out.distance_nearest"],
    };
    let first = |losses: &[f64]| kept(losses.first().copied().unwrap_or_default());
    let tokens = Value::U32(verdict.tokens as u32);
    vec![(HELD_OUT_TOKENS, tokens), (of, first(&verdict.kl)), (of_rival, first(&verdict.rival))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_fill_the_room_that_was_made_for_them() {
        let size = |m: &Metadata| crate::gguf::encode_header(m, &[], 32).len();
        let checked = Checked { tokens: 256, ..Checked::default() };
        let loss = Loss::Divergence;
        let verdict = Verdict { loss, kl: vec![0.12345, 1.0], rival: vec![0.2], tokens: 4096, blind: 3.0 };
        let mut m = Metadata::new();
        lay_out(&mut m, Ending::Logits, true);
        let (before, keys) = (size(&m), m.len());
        fill_in(&mut m, of_check(&checked));
        fill_in(&mut m, of_held_out(&verdict));
        assert_eq!((size(&m), m.len()), (before, keys));
        assert_eq!(m.get("quantize.held_out.kl_divergence"), Some(&Value::F32(0.12)));
        assert_eq!((m.uint(CHECKED_TOKENS), m.uint(HELD_OUT_TOKENS)), (Some(256), Some(4096)));
    }
}
