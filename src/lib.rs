//! `quantize` turns a Hugging Face checkpoint into the quantized artifacts people run, and measures what was lost.
//!
//! A [`convert::Recipe`] holds everything that decides the bytes of the outputs, [`Control`] what does not (threads,
//! memory, cancelling), and a [`Report`] hears of progress. [`convert::plan()`] decides, [`convert::run`] writes:
//!
//! ```
//! use quantize::{Control, Notice, Report, convert::{self, Recipe}, gguf, model::SourceModel};
//! use quantize::eval::{self, Base, Candidate, Method, Runnable, Windows};
//!
//! struct Print;
//! impl Report for Print {
//!     fn notice(&self, notice: &Notice) {
//!         println!("{notice}");
//!     }
//! }
//!
//! let folder = tempfile::tempdir().unwrap();
//! let source = SourceModel::open("tests/conformance/llama".as_ref())?;
//! let mut plan = convert::plan(&source, &Recipe::to(["q8_0"])?)?;
//! plan.place(folder.path())?;
//! let file = convert::run(&plan, &Control::default(), &Print)?.outputs[0].paths[0].clone();
//!
//! // What is in it.
//! assert_eq!(gguf::read_header(&file)?.find("blk.0.ffn_up.weight").unwrap().ty.name(), "Q8_0");
//!
//! // What was lost, over one stream of tokens.
//! let (mut base, mut quantized) = (Runnable::load(&source)?, Runnable::open(&file)?);
//! let tokens = base.tokenizer.encode(&"It was a bright cold day in April. ".repeat(4), false)?;
//! let windows = Windows::plan(Method::LlamaCpp { ctx: 16 }, tokens.len(), None, None)?;
//! let base = Base::Model(Candidate { name: "source".into(), model: &mut base });
//! let mut candidates = [Candidate { name: "Q8_0".into(), model: &mut quantized }];
//! let compared = eval::compare(base, &mut candidates, &tokens, &windows, eval::Options::default())?;
//! assert!(compared.candidates[0].iter().all(|position| position.kld < 1.0));
//! # Ok::<(), quantize::Error>(())
//! ```
//!
//! [`check::compare`] makes the whole report of such a measurement, and [`check::verify`] says whether a file is sound.
//!
//! An importance matrix from the bundled texts, and one matrix quantized with it:
//!
//! ```
//! use quantize::{Control, convert::{Calibration, Data, UnseenExperts, calibrate}, matrix::{self, GgmlType}, model::SourceModel};
//!
//! let source = SourceModel::open("tests/conformance/llama".as_ref())?;
//! let data = Data { tokens: 512, window: 64, ..Data::default() };
//! let calibration = Calibration { data, ..Calibration::default() };
//! let made = calibrate(&source, &calibration, None, None, &Control::default(), &())?;
//! let weights = made.imatrix.weights(UnseenExperts::LayerMean)?;
//!
//! let name = "blk.0.attn_q.weight";
//! let matrix = matrix::read(&source, name)?;
//! let blocks = matrix::quantize(matrix.view(), GgmlType::Q8_0, Some(weights.by_name[name].as_slice().into()))?;
//! let back = matrix::dequantize(&blocks, GgmlType::Q8_0, matrix.dim().into())?;
//! assert!((&back - &matrix).iter().all(|error| error.abs() < 0.1));
//! # Ok::<(), quantize::Error>(())
//! ```
//!
//! Data flows one way: `source` (bytes on disk) → [`model`] (what the tensors mean) → `quant` and `packed` (blocks and
//! formats) → `writer` (a finished file) → `infer` and [`eval`] (what it is worth) → [`report`]; [`convert`] and [`check`] drive it, and
//! `cli` alone reads flags and the environment. docs/architecture.md has the walks.

#![cfg_attr(not(feature = "internals"), deny(missing_docs))]
// What only the command line uses.
#![cfg_attr(not(feature = "cli"), allow(dead_code, unused_imports))]

mod card;
pub mod check;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
mod clock;
mod control;
pub mod convert;
mod digest;
pub mod edit;
mod error;
pub mod eval;
pub mod gguf;
pub mod matrix;
pub mod model;
pub mod release;
pub mod report;

// Private, but for this repository's tests and benches.
cfg_if::cfg_if! {
    if #[cfg(feature = "internals")] {
        pub use quantize_core::{dtype, feedback, isa, kernel, minifloat, quant, simd};
        pub mod awq;
        pub mod calibration;
        pub mod disk;
        pub mod escape;
        pub mod infer;
        pub mod input;
        pub mod packed;
        pub mod source;
        pub mod writer;
    } else {
        use quantize_core::{dtype, feedback, isa, kernel, minifloat, quant, simd};
        mod awq;
        mod calibration;
        mod disk;
        mod escape;
        mod infer;
        mod input;
        mod packed;
        mod source;
        mod writer;
    }
}

#[cfg(test)]
use quantize_core::made;

pub use control::{Cancel, Control, Notice, Phase, Report, Run, Unit};
pub use error::{Error, Finding, Hint, Result, Unfinished};
