//! Scales of activations that were fixed beforehand (static FP8, NVFP4), beside the activations that are seen.

use crate::infer::Observer;
use ndarray::ArrayView2;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// How many times the largest input that is seen a scale may have room for: a calibration sees more tokens, and rarer ones.
const WIDE: f32 = 32.0;
/// How many times what a scale has room for the largest input may be: a calibration may have missed the rarest.
const NARROW: f32 = 8.0;

/// The largest magnitude of what enters matrices, by their GGUF names.
#[derive(Default)]
pub struct Largest(BTreeMap<String, f32>);

impl Largest {
    /// Looks at these matrices.
    pub fn of(rooms: &[(String, f32)]) -> Self {
        Self(rooms.iter().map(|(name, _)| (name.clone(), 0.0)).collect())
    }

    /// Why the scale of a matrix's input, which has so much room, cannot be that of these inputs. Nothing is said of what saw
    /// none.
    pub fn unfit(&self, name: &str, room: f32) -> Option<String> {
        let seen = self.0.get(name).copied().filter(|seen| *seen > 0.0)?;
        let times = |more: f32, less: f32| format!("{:.0} times", more / less);
        if room > WIDE * seen {
            return Some(format!(
                "the scale for the input of {name} has room for {} the largest that is seen",
                times(room, seen)
            ));
        }
        let what = || format!("the input of {name} reaches {} what its scale has room for", times(seen, room));
        (seen > NARROW * room).then(what)
    }
}

impl Observer for Largest {
    fn input(&mut self, linear: &str, _: Option<usize>, x: ArrayView2<f32>) -> ControlFlow<()> {
        if let Some(largest) = self.0.get_mut(linear) {
            *largest = x.iter().fold(*largest, |largest, v| largest.max(v.abs()));
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn scales_are_held_against_what_is_seen() {
        let rooms = [("a".to_string(), 1.0), ("b".to_string(), 1.0)];
        let mut largest = Largest::of(&rooms);
        let _ = largest.input("a", None, array![[0.5, -4.0]].view());
        let _ = largest.input("other", None, array![[9.0]].view());
        for (room, says) in [
            (4.0, None),
            (100.0, None),
            (1.0, None),
            (400.0, Some("room for 100 times")),
            (0.04, Some("reaches 100 times")),
        ] {
            let found = largest.unfit("a", room);
            assert_eq!(found.is_some(), says.is_some(), "{room}");
            assert!(says.is_none_or(|says| found.is_some_and(|found| found.contains(says))), "{room}");
        }
        // What saw nothing has no bound.
        assert_eq!(largest.unfit("b", 1e9), None);
    }
}
