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
//! let source = SourceModel::open("tests/fixtures/tiny-llama".as_ref())?;
//! let mut plan = convert::plan(&source, &Recipe::to(["q4_k_m"])?)?;
//! plan.place(folder.path())?;
//! let file = convert::run(&plan, &Control::default(), &Print)?.outputs[0].paths[0].clone();
//!
//! // What is in it.
//! assert_eq!(gguf::read_header(&file)?.find("blk.0.ffn_up.weight").unwrap().ty.name(), "Q4_K");
//!
//! // What was lost, over one stream of tokens.
//! let (mut base, mut quantized) = (Runnable::load(&source)?, Runnable::open(&file)?);
//! let tokens = base.tokenizer.encode(&"It was a bright cold day in April. ".repeat(4), false)?;
//! let windows = Windows::plan(Method::LlamaCpp { ctx: 16 }, tokens.len(), None, None)?;
//! let base = Base::Model(Candidate { name: "source".into(), model: &mut base });
//! let mut candidates = [Candidate { name: "Q4_K_M".into(), model: &mut quantized }];
//! let compared = eval::compare(base, &mut candidates, &tokens, &windows, eval::Options::default())?;
//! assert!(compared.candidates[0].iter().all(|position| position.kld < 1.0));
//! # Ok::<(), quantize::Error>(())
//! ```
//!
//! [`mod@convert::calibrate`] makes importance matrices. Data flows one way: [`source`] (bytes on disk) → [`model`] (what the
//! tensors mean) → [`quant`] and [`packed`] (blocks and formats) → [`writer`] (a finished file) → [`infer`] and [`eval`]
//! (what it is worth) → [`report`]. [`cli`] alone reads flags and the environment. docs/architecture.md has the walks.

pub mod awq;
pub mod calibration;
pub mod cli;
pub mod control;
pub mod convert;
mod digest;
pub mod dtype;
pub mod error;
pub mod escape;
pub mod eval;
pub mod feedback;
pub mod gguf;
pub mod infer;
pub mod input;
pub mod isa;
pub mod kernel;
pub mod model;
pub mod packed;
pub mod quant;
pub mod report;
mod simd;
pub mod source;
pub mod writer;

pub use control::{Cancel, Control, Notice, Phase, Report, Run, Unit};
pub use error::{Error, Result};
