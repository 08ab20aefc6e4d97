//! What a long run is told beside its recipe, and what it tells meanwhile: threads, memory, where spilled data goes, when
//! to stop; phases with their progress, and notices. Nothing here decides what is in an output, but for the line of a folder's
//! manifest that says what a check saw.

use crate::error::{Error, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A request to stop, shared between whoever makes it and the run that looks at it. Clones are the same request.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A request that was not made yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the run to stop. Returns whether it was asked before.
    pub fn request(&self) -> bool {
        self.0.swap(true, Ordering::SeqCst)
    }

    /// Whether the run was asked to stop.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The flag behind it.
    pub fn flag(&self) -> &AtomicBool {
        &self.0
    }

    /// # Errors
    /// [`Error::Interrupted`] once the request was made.
    pub fn check(&self) -> Result<()> {
        if self.is_requested() { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// How a run is to behave, without any effect on the bytes that it writes.
#[derive(Clone, Debug)]
pub struct Control {
    /// Worker threads, at least 1.
    pub threads: usize,
    /// Bytes of activations that may stay in memory; what is beyond goes to a file in `spill`. `None`: all stay.
    pub max_memory: Option<u64>,
    /// The folder of spilled data. `None`: where the output goes.
    pub spill: Option<PathBuf>,
    /// Continue an interrupted run of the same recipe.
    pub resume: bool,
    /// Replace outputs that are there.
    pub force: bool,
    /// Run what was made beside its source before it gets its name. `None`: where that costs less than the conversion, or
    /// little.
    pub check: Option<bool>,
    /// Lay outputs out without taking the space that nothing is written to: for a run that makes a part of them.
    pub sparse: bool,
    /// Ends the run from anywhere.
    pub cancel: Cancel,
}

impl Default for Control {
    /// As many threads as the machine has cores; nothing is replaced or resumed.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self {
            threads,
            max_memory: None,
            spill: None,
            resume: false,
            force: false,
            check: None,
            sparse: false,
            cancel: Cancel::new(),
        }
    }
}

/// What is counted in a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes that are read.
    Bytes,
    /// Tokens that pass through the model.
    Tokens,
    /// Questions that are answered.
    Questions,
    /// Tokens that pass through so many layers one by one, and are counted in each.
    TokensByLayer(u64),
}

/// A part of a run that takes time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What is being done, for people.
    pub name: String,
    /// What is counted.
    pub unit: Unit,
    /// How much there is of it.
    pub total: u64,
}

/// Something worth saying while a run goes on. `Display` gives the sentence.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// A model is about to be loaded.
    Loading(PathBuf),
    /// The bundled texts are calibrated on, since no data was given.
    BundledTexts,
    /// What an output departs from, or what was found out about it.
    About {
        /// What the output is called by.
        output: String,
        /// A sentence.
        text: String,
    },
    /// An interrupted run goes on.
    Resuming {
        /// Layers that are finished.
        layers: usize,
        /// All layers.
        of: usize,
    },
    /// The unfinished work of this run stays at a place from which it can be continued.
    Kept(PathBuf),
    /// Something is not as it should be, and the run goes on.
    Warning(String),
    /// Anything else.
    Info(String),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Loading(path) => write!(f, "loading {}", path.display()),
            Notice::BundledTexts => f.write_str("calibrating on the bundled texts"),
            Notice::About { output, text } => write!(f, "{output}: {text}"),
            Notice::Resuming { layers, of } => write!(f, "resuming after {layers} of {of} layers"),
            Notice::Kept(path) => write!(f, "finished parts are kept in {}", path.display()),
            Notice::Warning(text) => write!(f, "warning: {text}"),
            Notice::Info(text) => f.write_str(text),
        }
    }
}

/// Hears of a run. Every method does nothing unless it is written; `()` ignores all.
///
/// ```
/// use quantize::{Phase, Report};
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// /// Counts bytes, tokens and whatever else is counted.
/// #[derive(Default)]
/// struct Count(AtomicU64);
///
/// impl Report for Count {
///     fn begin(&self, phase: &Phase) {
///         println!("{}: {} to go", phase.name, phase.total);
///     }
///     fn advance(&self, n: u64) {
///         self.0.fetch_add(n, Ordering::Relaxed);
///     }
/// }
/// ```
pub trait Report: Sync {
    /// A phase begins; the one before it has ended.
    fn begin(&self, _phase: &Phase) {}

    /// So much more of the current phase is done. Called from any thread.
    fn advance(&self, _n: u64) {}

    /// The current phase has ended, also by an error.
    fn end(&self) {}

    /// Something worth saying.
    fn notice(&self, _notice: &Notice) {}
}

impl Report for () {}

/// A run at work: how it is to behave, and who hears of it.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// How it is to behave.
    pub control: &'a Control,
    /// Who hears of it.
    pub report: &'a dyn Report,
}

impl<'a> Run<'a> {
    /// A run with this behaviour and listener.
    pub fn new(control: &'a Control, report: &'a dyn Report) -> Self {
        Self { control, report }
    }

    /// The same run without progress or notices.
    pub fn unheard(self) -> Run<'a> {
        Run { control: self.control, report: &() }
    }

    /// # Errors
    /// [`Error::Interrupted`] once the run was asked to stop.
    pub fn check(&self) -> Result<()> {
        self.control.cancel.check()
    }

    /// So much more of the current phase is done.
    pub fn advance(&self, n: u64) {
        self.report.advance(n);
    }

    /// Worker threads, at least one.
    pub fn threads(&self) -> usize {
        self.control.threads.max(1)
    }

    /// Says something to who listens.
    pub fn notice(&self, notice: Notice) {
        self.report.notice(&notice);
    }

    /// Begins a phase, which ends when the value is dropped.
    #[must_use = "the phase ends when this is dropped"]
    pub fn phase(&self, name: impl Into<String>, total: u64, unit: Unit) -> Running<'a> {
        return_freed_memory();
        self.report.begin(&Phase { name: name.into(), unit, total });
        Running { report: self.report }
    }

    /// Where spilled data of an output at `target` goes.
    pub fn spill_folder(&self, target: &Path) -> PathBuf {
        let beside = || match target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
            _ => PathBuf::from("."),
        };
        self.control.spill.clone().unwrap_or_else(beside)
    }
}

/// Gives memory that was freed back to the system, so that the parts of a run do not add up to its peak: glibc keeps what lies
/// below something that is still in use.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: glibc's own function, which may be called at any time from any thread (malloc_trim(3)).
        unsafe { malloc_trim(0) };
    }
}

/// A phase that goes on.
pub struct Running<'a> {
    report: &'a dyn Report,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.report.end();
    }
}
