//! The two kinds of jobs, as the commands that run them see them.

use crate::Result;
use crate::check::job::ComparisonJob;
use crate::convert::job::{Job, Tasks};
use std::path::Path;

/// A job of either kind.
pub enum Opened {
    Conversion(Box<Job>),
    Comparison(Box<ComparisonJob>),
}

impl Opened {
    /// The job of a folder.
    ///
    /// # Errors
    /// `BadInput` for a folder without one, or of another version; `Io`.
    pub fn of(folder: &Path) -> Result<Self> {
        Ok(match ComparisonJob::is_in(folder)? {
            true => Self::Comparison(Box::new(ComparisonJob::open(folder)?)),
            false => Self::Conversion(Box::new(Job::open(folder)?)),
        })
    }

    /// As its tasks are run.
    pub fn tasks(&self) -> &dyn Tasks {
        match self {
            Self::Conversion(job) => &**job,
            Self::Comparison(job) => &**job,
        }
    }

    /// Where relative names in it are of.
    pub fn directory(&self) -> &Path {
        match self {
            Self::Conversion(job) => &job.directory,
            Self::Comparison(job) => &job.directory,
        }
    }
}
