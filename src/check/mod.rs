//! What can be said of a finished artifact: what it is worth beside the model it was made from ([`compare`],
//! [`perplexity`]), whether it is sound and really made from that model ([`verify`]), and which engines would refuse it
//! ([`objections`]). It measures and judges; how artifacts are made and how reports are drawn is known elsewhere.

mod again;
mod beside;
mod compare;
mod continuations;
mod derive;
mod diff;
pub(crate) mod job;
mod machine;
mod measurement;
pub(crate) mod origin;
mod promised;
mod tasks;
mod text;
mod told;
mod turns;
mod vectors;
mod verify;

pub use crate::calibration::imatrix::UnseenExperts;
pub use crate::convert::folder::engines::{Engine, Objection};
pub use crate::convert::{Checked, Nearness};
pub use crate::packed::engines::{Check, Verdict};
pub use beside::beside;
pub(crate) use compare::perplexity_with_logits;
pub use compare::{compare, is_logits, perplexity, text_suffices};
pub use continuations::continuations;
pub use derive::{Derived, Origin};
pub use diff::{Diff, OfKey, OfTensor, OfTokens, diff};
pub use measurement::Measurement;
pub use tasks::{Questions, answers};
pub use verify::{Verified, objections, verify};
