//! The one error type of the crate. Every variant is a class that scripts can tell apart by exit code; the text inside
//! names the file and the tensor and says what to try next, with what came from files escaped. It is not a catalogue of every way things go wrong.

use crate::escape;
use std::fmt;
use std::path::{Path, PathBuf};

/// What nearly everything here returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by the class that decides the exit code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A bug of this program. Exit code 1.
    #[error("internal error: {}", escape::message(.0))]
    Internal(String),
    /// The command line does not make sense. Made by the command line alone. Exit code 2.
    #[error("{}", escape::message(.0))]
    Usage(String),
    /// What was asked for contradicts itself, or cannot be done with this model. Exit code 2.
    #[error("{0}")]
    Request(Box<Finding>),
    /// Something is there already where an output would go. Exit code 2.
    #[error("{} {}", escape::line(&path.to_string_lossy()), escape::message(what))]
    Exists {
        /// The place.
        path: PathBuf,
        /// What is there.
        what: &'static str,
        /// Whether it may be replaced on request.
        replaceable: bool,
    },
    /// Unfinished work of another run is at the place of this one. Exit code 2.
    #[error("{} {why}", escape::line(&path.to_string_lossy()))]
    Unfinished {
        /// The place.
        path: PathBuf,
        /// What is there.
        why: Unfinished,
    },
    /// The input is corrupt, contradictory or hostile. Exit code 3.
    #[error("{0}")]
    BadInput(Box<Finding>),
    /// The input is sound, but this model or type is not supported. Exit code 4.
    #[error("{0}")]
    Unsupported(Box<Finding>),
    /// The disk or the network failed. Exit code 5.
    #[error("{}: {source}", escape::line(&path.to_string_lossy()))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Like `Io`, where no single path is at fault (a download, too little space). Exit code 5.
    #[error("{0}")]
    Storage(Box<Finding>),
    /// A quality gate failed; the artifact stays. Exit code 6.
    #[error("{}", escape::message(.0))]
    Gate(String),
    /// Stopped by the user. Exit code 75.
    #[error("interrupted: nothing was left under the final name")]
    Interrupted,
}

/// What the unfinished work at a place is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// Another run has it open.
    InUse,
    /// Another run writes there.
    BeingWritten,
    /// So many parts of a run that was cut short, which can be continued.
    Parts(usize),
    /// That of a run with another recipe, source or version, which cannot be continued by this one: what differs, as it
    /// was and as it is.
    OfAnotherRun {
        /// What differs.
        name: String,
        /// As the other run has it.
        was: String,
        /// As this run has it.
        is: String,
    },
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfinished::InUse => f.write_str("is in use by another run"),
            Unfinished::BeingWritten => f.write_str("is being written by another run"),
            Unfinished::Parts(n) => write!(f, "holds {n} finished parts of an interrupted run"),
            Unfinished::OfAnotherRun { name, was, is } => {
                let what = format!("belongs to another run: its {name} was {was}, and here it is {is}");
                f.write_str(&escape::message(&what))
            }
        }
    }
}

/// What is wrong: where it is, what it is, and what to do about it.
#[derive(Debug, Default)]
pub struct Finding {
    /// The file at fault.
    pub file: Option<PathBuf>,
    /// The tensor at fault.
    pub tensor: Option<String>,
    /// What is wrong, a sentence without its end.
    pub what: String,
    /// What helps.
    pub hint: Option<Hint>,
}

/// What to try next. The library speaks of values; the command line names the flags that set them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// A tensor's weights are too large for its type.
    WiderType {
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor's type needs importance, and there is none for it.
    TypeWithoutImportance {
        /// The tensor's name.
        tensor: String,
    },
    /// The target needs an importance matrix.
    MakeImportance,
    /// Calibration data are needed.
    Calibrate,
    /// A type stands in for one that does not fit, which was forbidden.
    AllowFallback {
        /// The type that it would get.
        instead: String,
    },
    /// The source is quantized already.
    AcceptRequantizing,
    /// Calibration windows of at most so many tokens.
    WindowsOf(usize),
    /// Calibration on more tokens, or in shorter windows.
    MoreTokens {
        /// How many are enough of windows as long as these.
        least: usize,
        /// Whether rounding without error feedback needs none.
        without_feedback: bool,
    },
    /// Longer calibration windows.
    LongerWindows {
        /// Tokens that are enough.
        least: usize,
        /// Whether rounding without error feedback does without.
        without_feedback: bool,
    },
    /// Some experts saw no token.
    UnseenExperts,
    /// Formats of folders that need to know nothing of the model.
    FormatsOfAnyModel,
    /// A blueprint makes a GGUF file of the model, but its graph is not known.
    ConvertedOnly,
    /// What works with a model that runs only as the GGUF file made of it.
    FilesAndNearestFolders,
    /// A pre-tokenizer that may be the right one.
    Pretokenizer(String),
    /// A type or format of this name, made of the checkpoint that this one was made from.
    OfOriginal(String),
    /// Integers in groups of so many columns: a format of this name.
    Groups {
        /// Columns of a group.
        of: usize,
        /// The format's name.
        format: String,
    },
    /// Layers are to be split over so many devices.
    Devices(usize),
    /// The importance matrix that a file was made with.
    NameImportance,
    /// What was named is an adapter; the model is its base.
    NameBase,
    /// The original's configuration and tokenizer are needed.
    NameConfiguration,
    /// Another importance matrix; whether this one is sound, and of another model.
    ImportanceOfModel {
        /// Whether the matrix is another model's.
        is_of_another: bool,
    },
    /// The file's blocks and numbers should be looked at.
    Verify,
    /// What is missing is on the Hub, in this repository where that is known, and may not be fetched.
    Online {
        /// The repository.
        id: Option<String>,
    },
    /// The download goes on where it stopped; the cache can do without the network.
    DownloadAgain,
    /// Another revision on the Hub.
    Revision,
    /// What an unfinished calibration left at this place is to be ignored.
    BeginAgain(PathBuf),
    /// Bytes of memory.
    Memory(u64),
    /// A text to evaluate on.
    EvaluationText,
    /// Windows of at least so many tokens.
    ContextFrom(usize),
    /// Windows of at most so many tokens.
    ContextUpTo(usize),
    /// More text, or windows of at most so many tokens.
    TextOrContext(usize),
    /// Windows that do not overlap.
    NoStride,
    /// More text for a gate.
    TextForGate,
    /// Of a model that gives vectors a cosine is limited.
    GateOfVectors,
    /// Of one that gives logits, their divergence.
    GateOfLogits,
    /// A report as JSON, which a comparison writes.
    CompareFirst,
    /// All types and formats, with what they are for.
    Types,
    /// A job has to be planned first.
    PlanJob,
    /// How far a job is can be looked up.
    JobStatus,
    /// A release has to be made first.
    MakeRelease,
    /// Anything else, in words.
    Text(String),
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hint::WiderType { tensor } => write!(f, "give '{tensor}' a type with more range, such as BF16"),
            Hint::TypeWithoutImportance { tensor } => write!(f, "give '{tensor}' another type, such as Q4_K"),
            Hint::Calibrate => f.write_str("give calibration data"),
            Hint::MakeImportance => f.write_str("give an importance matrix, or calibration data to make one"),
            Hint::AllowFallback { instead } => write!(f, "allow fallbacks to get {instead} instead"),
            Hint::AcceptRequantizing => {
                f.write_str("start from the original checkpoint, or accept quantized sources and the added loss")
            }
            Hint::WindowsOf(n) => write!(f, "give more text, or calibrate on windows of {n} tokens"),
            Hint::MoreTokens { least, without_feedback } => {
                let or = if *without_feedback { ", or round without error feedback" } else { "" };
                write!(f, "calibrate on {least} tokens or more, or in shorter windows{or}")
            }
            Hint::LongerWindows { least, without_feedback } => {
                let or = if *without_feedback { ", or round without error feedback" } else { "" };
                write!(f, "take windows of {least} tokens or more{or}")
            }
            Hint::UnseenExperts => {
                f.write_str("calibrate on more tokens, or give unseen experts the mean of the others or equal weights")
            }
            Hint::ConvertedOnly => f.write_str(
                "make a GGUF file without calibration data (an importance matrix made elsewhere works), or a folder in a \
                 format that needs none (FP8, NF4, MLX in 4 bits, or GPTQ rounded to nearest)",
            ),
            Hint::FilesAndNearestFolders => f.write_str(
                "GGUF files with and without calibration, and evaluation, work; so do folders in formats that need no \
                 calibration (FP8, NF4, MLX in 4 bits, or GPTQ rounded to nearest)",
            ),
            Hint::FormatsOfAnyModel => f.write_str(
                "of any architecture, folders can be made in formats that need no calibration (FP8, NF4, MLX in 4 bits, \
                 or GPTQ rounded to nearest); GGUF files, and running the model, need a known one",
            ),
            Hint::Pretokenizer(name) => {
                write!(f, "if you know that it splits text the same way, name the pre-tokenizer {name}")
            }
            Hint::OfOriginal(name) => write!(f, "make one of the original: {name}"),
            Hint::Groups { of, format } => write!(f, "groups of {of} divide every row: {format}"),
            Hint::Devices(n) => write!(f, "quantize again for {n} devices"),
            Hint::NameConfiguration => f.write_str("name the original's folder with config.json and tokenizer"),
            Hint::NameBase => f.write_str("name the base model, and this adapter as the one to merge"),
            Hint::NameImportance => f.write_str("name the importance matrix"),
            Hint::ImportanceOfModel { is_of_another } => {
                let why = if *is_of_another { "it was made of another model; " } else { "" };
                write!(f, "{why}calibrate this model to make one")
            }
            Hint::Verify => f.write_str("the file is damaged or its weights overflow: verify it"),
            Hint::Online { id: Some(id) } => write!(f, "fetch {id} once with the network allowed"),
            Hint::Online { id: None } => f.write_str("run once with the network allowed"),
            Hint::DownloadAgain => f.write_str("try again, it resumes where it stopped; or use what is in the cache"),
            Hint::Revision => f.write_str("choose another revision"),
            Hint::BeginAgain(path) => {
                write!(f, "calibrate without resuming to begin again, or delete {}", path.display())
            }
            Hint::Memory(bytes) => write!(f, "allow {bytes} bytes"),
            Hint::EvaluationText => f.write_str("give an evaluation text"),
            Hint::ContextFrom(n) => write!(f, "take {n} tokens or more"),
            Hint::ContextUpTo(n) => write!(f, "take {n} tokens or fewer"),
            Hint::TextOrContext(n) => write!(f, "give a longer text, or take a smaller context of {n} tokens"),
            Hint::NoStride => f.write_str("cut the text without a stride"),
            Hint::GateOfVectors => f.write_str("limit the mean cosine instead"),
            Hint::GateOfLogits => f.write_str("limit the KL divergence instead"),
            Hint::TextForGate => f.write_str("give a longer text, use more of it, or loosen the gate"),
            Hint::PlanJob => f.write_str("plan a job for it first"),
            Hint::JobStatus => f.write_str("run them first"),
            Hint::MakeRelease => f.write_str("make a release first"),
            Hint::Types => f.write_str("see the list of types, with bits and purposes"),
            Hint::CompareFirst => f.write_str("write one with a comparison"),
            Hint::Text(text) => f.write_str(text),
        }
    }
}

impl From<&str> for Hint {
    fn from(text: &str) -> Self {
        Hint::Text(text.to_string())
    }
}

impl From<String> for Hint {
    fn from(text: String) -> Self {
        Hint::Text(text)
    }
}

impl Finding {
    /// All but the hint.
    pub fn fault(&self) -> String {
        let mut text = String::new();
        if let Some(file) = &self.file {
            text += &format!("{}: ", escape::line(&file.to_string_lossy()));
        }
        if let Some(tensor) = &self.tensor {
            text += &format!("tensor '{}': ", escape::line(tensor));
        }
        text + &escape::message(&self.what)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fault())?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {}", escape::message(&hint.to_string()))?;
        }
        Ok(())
    }
}

impl Error {
    /// A fault in `file`. Add the tensor and a hint with [`Error::tensor`] and [`Error::hint`].
    pub fn bad_file(file: impl AsRef<Path>, what: impl Into<String>) -> Self {
        let file = Some(file.as_ref().to_path_buf());
        Error::BadInput(Box::new(Finding { file, what: what.into(), ..Finding::default() }))
    }

    /// A fault in the input that is not tied to one file.
    pub fn bad_input(what: impl Into<String>) -> Self {
        Error::BadInput(Box::new(Finding { what: what.into(), ..Finding::default() }))
    }

    /// A failure of the system at a path.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// A request that cannot be met.
    pub fn request(what: impl Into<String>) -> Self {
        Error::Request(Box::new(Finding { what: what.into(), ..Finding::default() }))
    }

    /// A model, type or format that is sound and not supported.
    pub fn unsupported(what: impl Into<String>) -> Self {
        Error::Unsupported(Box::new(Finding { what: what.into(), ..Finding::default() }))
    }

    /// A fault of the disk or the network.
    pub fn storage(what: impl Into<String>) -> Self {
        Error::Storage(Box::new(Finding { what: what.into(), ..Finding::default() }))
    }

    /// The details, of classes that have any.
    pub fn finding(&self) -> Option<&Finding> {
        match self {
            Error::BadInput(finding)
            | Error::Request(finding)
            | Error::Unsupported(finding)
            | Error::Storage(finding) => Some(finding),
            _ => None,
        }
    }

    fn finding_mut(&mut self) -> Option<&mut Finding> {
        match self {
            Error::BadInput(finding)
            | Error::Request(finding)
            | Error::Unsupported(finding)
            | Error::Storage(finding) => Some(finding),
            _ => None,
        }
    }

    /// Names the file at fault, where none is named yet (no effect on classes without such details).
    pub fn in_file(mut self, file: &Path) -> Self {
        if let Some(finding) = self.finding_mut() {
            finding.file.get_or_insert_with(|| file.to_path_buf());
        }
        self
    }

    /// Names the tensor at fault (no effect on classes without such details).
    pub fn tensor(mut self, name: impl Into<String>) -> Self {
        if let Some(finding) = self.finding_mut() {
            finding.tensor = Some(name.into());
        }
        self
    }

    /// Says what to try next (no effect on classes without such details).
    pub fn hint(mut self, hint: impl Into<Hint>) -> Self {
        if let Some(finding) = self.finding_mut() {
            finding.hint = Some(hint.into());
        }
        self
    }

    /// The process exit code of this class (design: 0 done, 75 interrupted).
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Internal(_) => 1,
            Error::Usage(_) | Error::Request(_) | Error::Exists { .. } | Error::Unfinished { .. } => 2,
            Error::BadInput(_) => 3,
            Error::Unsupported(_) => 4,
            Error::Io { .. } | Error::Storage(_) => 5,
            Error::Gate(_) => 6,
            Error::Interrupted => 75,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_files_cannot_steer_a_terminal() {
        let error = Error::bad_file("a\nb", "holds \x1b[31m\nerror: nothing").tensor("t\x07").hint("look");
        assert_eq!(error.to_string(), "a\\nb: tensor 't\\u{7}': holds \\u{1b}[31m\\nerror: nothing\n  hint: look");
        assert!(!Error::unsupported("\x1b").to_string().contains('\x1b'));
    }
}
