//! `quantize` turns a Hugging Face checkpoint into the quantized artifacts people run, and measures what was lost.
//!
//! A [`convert::Recipe`] holds everything that decides the bytes of the outputs, [`Control`] what does not (threads,
//! memory, cancelling), and a [`Report`] hears of progress. [`convert::plan()`] decides, [`convert::run`] writes:
//!
//! ```
//! use quantize::{Control, Notice, Report, convert::{self, Recipe}, gguf, model::SourceModel};
//!
//! struct Print;
//! impl Report for Print {
//!     fn notice(&self, notice: &Notice) {
//!         println!("{notice}");
//!     }
//! }
//!
//! let folder = tempfile::tempdir().unwrap();
//! let source = SourceModel::open("tests/fixtures/tiny-llama".as_ref())?;
//! let mut plan = convert::plan(&source, &Recipe::to(["q4_k_m"])?)?;
//! plan.place(folder.path())?;
//! let made = convert::run(&plan, &Control::default(), &Print)?;
//!
//! let header = gguf::read_header(&made.outputs[0].paths[0])?;
//! assert_eq!(header.find("blk.0.attn_q.weight").unwrap().ty.name(), "Q4_K");
//! # Ok::<(), quantize::Error>(())
//! ```
//!
//! What is lost, over one text; the report is what `quantize compare` renders ([`report::render_html`]):
//!
//! ```
//! use quantize::{Control, check::{self, Measurement}, convert::{self, Recipe}, eval::Method, model::SourceModel};
//!
//! let folder = tempfile::tempdir().unwrap();
//! let source = SourceModel::open("tests/conformance/llama".as_ref())?;
//! let mut plan = convert::plan(&source, &Recipe::to(["q8_0"])?)?;
//! plan.place(folder.path())?;
//! let file = convert::run(&plan, &Control::default(), &())?.outputs[0].paths[0].clone();
//!
//! let how = Measurement { method: Method::LlamaCpp { ctx: 64 }, windows: Some(2), ..Measurement::on("README.md") };
//! let report = check::compare(&source.path, &[file], &how, &Control::default(), &())?;
//! assert!(report.candidates[0].stats.as_ref().unwrap().kld.value < 0.1);
//! # Ok::<(), quantize::Error>(())
//! ```
//!
//! An importance matrix from the bundled texts:
//!
//! ```
//! use quantize::{Control, convert::{Calibration, Data, calibrate}, model::SourceModel};
//!
//! let source = SourceModel::open("tests/conformance/llama".as_ref())?;
//! let data = Data { tokens: 512, window: 64, ..Data::default() };
//! let calibration = Calibration { data, ..Calibration::default() };
//! let made = calibrate(&source, &calibration, None, None, &Control::default(), &())?;
//! assert!(made.imatrix.entries.contains_key("blk.0.attn_q.weight"));
//! # Ok::<(), quantize::Error>(())
//! ```
//!
//! One matrix, there and back:
//!
//! ```
//! use quantize::{matrix::{self, GgmlType}, model::SourceModel};
//!
//! let source = SourceModel::open("tests/conformance/llama".as_ref())?;
//! let matrix = matrix::read(&source, "blk.0.attn_q.weight")?;
//! let blocks = matrix::quantize(matrix.view(), GgmlType::Q8_0, None)?;
//! let back = matrix::dequantize(&blocks, GgmlType::Q8_0, matrix.dim().into())?;
//! assert!((&back - &matrix).iter().all(|error| error.abs() < 0.1));
//! # Ok::<(), quantize::Error>(())
//! ```
//!
//! [`check::verify`] says whether a file is sound, [`release`] makes a folder that can be published, [`edit`] changes
//! finished files.
//!
//! Data flows one way: `source` (bytes on disk) → [`model`] (what the tensors mean) → `quant` and `packed` (blocks and
//! formats) → `writer` (a finished file) → `infer` and [`eval`] (what it is worth) → [`report`]; [`convert`] and [`check`] drive it, and
//! `cli` alone reads flags and the environment. docs/architecture.md has the walks.

#![cfg_attr(not(feature = "internals"), deny(missing_docs, unnameable_types))]
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
mod template;

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

pub use control::{Cancel, Control, Notice, Phase, Report, Run, Running, Unit};
pub use error::{Error, Finding, Hint, Result, Unfinished};
