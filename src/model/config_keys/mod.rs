//! A configuration as GGUF's metadata and back: families list the keys that are written (`write`), one list in the order of
//! dependence reads them (`read`). From both follows what a GGUF file of a family cannot hold (`compare`).

mod compare;
mod read;
mod write;

pub use compare::lost;
#[cfg(any(test, feature = "internals"))]
pub use compare::{Lost, differences};

pub(super) use write::write;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::families::all;
    use crate::model::family::{Entry, Key};

    #[test]
    fn every_key_that_is_written_is_read_or_belongs_to_one_that_is() {
        let read = |key: &Key| read::READ.iter().any(|r| r.name == key.name);
        let beside_type = ["factor", "original_context_length", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"];
        for family in all() {
            let mut marks = (0, 0);
            for entry in family.entries() {
                match entry {
                    Entry::General => marks.0 += 1,
                    Entry::FileType => marks.1 += 1,
                    Entry::Key(key) | Entry::Ours(key) => {
                        let scaling = key.name.strip_prefix("rope.scaling.");
                        let beside = scaling.is_some_and(|k| beside_type.contains(&k) || k == "attn_factor");
                        assert!(read(key) || beside, "{} of {} is never read", key.name, family.gguf);
                    }
                }
            }
            assert_eq!(marks, (1, 1), "{}", family.gguf);
        }
    }
}
