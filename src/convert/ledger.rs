//! Departures from what was asked, of files and folders alike: a fallback type, a dropped tensor, an unseen expert. Every
//! one is a row that the user sees.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What a row of the ledger is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Another type or format than was asked for.
    #[default]
    #[serde(rename = "fallback")]
    Fallback,
    /// A part of the model that the file does not hold, or not exactly; it departs from no request.
    #[serde(rename = "left-out")]
    LeftOut,
    /// Codes were chosen in another way.
    #[serde(rename = "search")]
    Search,
    /// Channels were scaled in another way.
    #[serde(rename = "scaling")]
    Scaling,
    /// Numbers have fewer digits.
    #[serde(rename = "rounded")]
    Rounded,
    /// Calibration showed no token to some experts.
    #[serde(rename = "unseen experts")]
    UnseenExperts,
    /// An importance matrix has no entry for the tensor.
    #[serde(rename = "no importance")]
    NoImportance,
    /// The evaluation text was calibrated on.
    #[serde(rename = "overlap")]
    Overlap,
    /// Something that another version wrote.
    #[serde(other, rename = "other")]
    Other,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

/// One departure from what was asked: a fallback type, a dropped tensor, an unseen expert.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LedgerRow {
    /// The candidate it belongs to, by name.
    pub candidate: String,
    /// What it is about.
    pub kind: Kind,
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

impl LedgerRow {
    /// As a row of a folder's manifest, which speaks of modules and has no candidates.
    pub(super) fn in_manifest(&self) -> Value {
        let Self { kind, tensor, asked, done, reason, .. } = self;
        json!({ "kind": kind, "module": tensor, "asked": asked, "done": done, "reason": reason })
    }
}
