//! What a checkpoint folder will hold, decided from the configuration and the shapes alone: [`quantized`] folders, module by
//! module, with the [`rules`] for single ones and the names that they get ([`seats`]), and [`plain`] ones without quantization. `folder` makes them.

pub mod plain;
pub mod quantized;
pub mod rules;
pub mod seats;

pub use plain::PlainPlan;
pub use quantized::{Departure, FolderPlan};

use serde_json::Value;

/// Indented by two, as transformers writes it, with a newline at the end.
pub fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}
