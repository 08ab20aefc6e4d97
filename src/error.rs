//! The one error type of the crate. Every variant is a class that scripts can tell apart by exit code; the text inside
//! names the file and the tensor and says what to try next, with what came from files escaped. It is not a catalogue of every way things go wrong.

use crate::escape;
use std::fmt;
use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by the class that decides the exit code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A bug of this program. Exit code 1.
    #[error("internal error: {}", escape::message(.0))]
    Internal(String),
    /// The command line does not make sense. Exit code 2.
    #[error("{}", escape::message(.0))]
    Usage(String),
    /// The input is corrupt, contradictory or hostile. Exit code 3.
    #[error("{0}")]
    BadInput(Box<Finding>),
    /// The input is sound, but this model or type is not supported. Exit code 4.
    #[error("{}", escape::message(.0))]
    Unsupported(String),
    /// The disk or the network failed. Exit code 5.
    #[error("{}: {source}", escape::line(&path.to_string_lossy()))]
    Io { path: PathBuf, source: std::io::Error },
    /// Like `Io`, where no single path is at fault (a download, too little space). Exit code 5.
    #[error("{}", escape::message(.0))]
    Storage(String),
    /// A quality gate failed; the artifact stays. Exit code 6.
    #[error("{}", escape::message(.0))]
    Gate(String),
    /// Stopped by the user. Exit code 75.
    #[error("interrupted: nothing was left under the final name")]
    Interrupted,
}

/// A fault in the input: where it is, what it is, and what to do about it.
#[derive(Debug, Default)]
pub struct Finding {
    pub file: Option<PathBuf>,
    pub tensor: Option<String>,
    pub what: String,
    pub hint: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", escape::line(&file.to_string_lossy()))?;
        }
        if let Some(tensor) = &self.tensor {
            write!(f, "tensor '{}': ", escape::line(tensor))?;
        }
        f.write_str(&escape::message(&self.what))?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {}", escape::message(hint))?;
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

    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// Names the tensor at fault (no effect on other classes than `BadInput`).
    pub fn tensor(mut self, name: impl Into<String>) -> Self {
        if let Error::BadInput(finding) = &mut self {
            finding.tensor = Some(name.into());
        }
        self
    }

    /// Says what to try next (no effect on other classes than `BadInput`).
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Error::BadInput(finding) = &mut self {
            finding.hint = Some(hint.into());
        }
        self
    }

    /// The process exit code of this class (design: 0 done, 75 interrupted).
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Internal(_) => 1,
            Error::Usage(_) => 2,
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
        assert!(!Error::Unsupported("\x1b".into()).to_string().contains('\x1b'));
    }
}
