//! The report as GitHub-flavoured Markdown, for a pull-request comment or a model card: headline, table, gates, and the
//! rest folded away. Text from outside is escaped, so a file name cannot break the table.

use super::schema::Report;
use super::{names, view};
use crate::Result;
use crate::template::render;

/// Renders for GitHub and Hugging Face.
///
/// # Errors
/// `Internal` for a mistake in the template.
pub fn render_markdown(report: &Report) -> Result<String> {
    render("report.md", include_str!("report.md"), view::of(&names::shortened(report)))
}
