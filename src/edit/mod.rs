//! Finished files with something else about them: other metadata ([`edit`]), in shards and in one piece ([`split`],
//! [`merge`]), or single tensors of them ([`extract`]). Data of tensors are copied as they are, within the file system
//! where it can; a file has its name when it is whole.
//!
//! ```
//! use quantize::edit::{self, Change};
//!
//! # fn main() -> quantize::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let (file, out) = (dir.path().join("a.gguf"), dir.path().join("b.gguf"));
//! # let source = quantize::model::SourceModel::open("tests/fixtures/tiny-llama".as_ref())?;
//! # let mut plan = quantize::convert::plan(&source, &quantize::convert::Recipe::to(["q8_0"])?)?;
//! # plan.place(&file)?;
//! # quantize::convert::run(&plan, &quantize::Control::default(), &())?;
//! let changes = [Change::Set { key: "general.name".into(), ty: None, value: "Tiny".into() }];
//! edit::edit(&file, &out, &changes, false, &quantize::Cancel::new())?;
//! assert_eq!(quantize::gguf::read_header(&out)?.metadata.str("general.name"), Some("Tiny"));
//! # Ok(())
//! # }
//! ```

mod copy;
mod extract;
mod metadata;
mod shards;

pub use crate::writer::gguf::Split;
pub use extract::{Chosen, Extracted, extract};
pub use metadata::{Change, SCALARS, changed, edit};
pub use shards::{Shards, merge, split};
