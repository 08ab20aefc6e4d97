//! The report: one versioned JSON schema, and its renderings as HTML, Markdown and terminal text. It knows figures, not
//! models; everything it shows is in the JSON, so a saved report can be rendered again anywhere.

mod charts;
mod departures;
pub(crate) mod figures;
pub(crate) mod format;
mod generation;
mod html;
mod markdown;
mod names;
mod results;
mod schema;
mod sizes;
mod statistics;
pub(crate) mod summary;
mod table;
mod tasks;
pub(crate) mod text;
pub(crate) mod vectors;
mod view;

pub(crate) use departures::grouped;
pub use html::render_html;
pub use markdown::render_markdown;
pub use schema::*;
pub use text::render_text;
