//! Departures from what was asked, of files and folders alike: a fallback type, a dropped tensor, an unseen expert. Every
//! one is a row that the user sees.

use serde::{Deserialize, Serialize};

/// One departure from what was asked: a fallback type, a dropped tensor, an unseen expert.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LedgerRow {
    /// The candidate it belongs to, by name.
    pub candidate: String,
    /// `fallback`, `dropped`, `damping`, ...
    pub kind: String,
    /// The tensor; `None` for what is about all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// What was asked for.
    pub asked: String,
    /// What was done.
    pub done: String,
    /// Why.
    pub reason: String,
}
