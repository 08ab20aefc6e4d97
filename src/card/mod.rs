//! Model cards: what a source's card says ([`Front`], [`Parent`]), and the parts of the cards that are written beside
//! artifacts: front matter as the Hub reads it, and how to run what is there. The cards are templates, `folder.md` and
//! `run_*.md`, whose values are escaped as they are put.

mod front;
mod parent;
pub mod run;

pub use front::{Front, FrontWriter};
pub use parent::{Parent, file_stem, is_id, is_vague};

use crate::Result;
use crate::packed::Loader;
use crate::template::render;
use minijinja::{Value, context};

/// What the front matter of a quantized copy says.
#[derive(Default)]
pub struct Heading<'a> {
    /// What loads it: `gguf`, `transformers`, `mlx`.
    pub library: &'a str,
    pub tags: &'a [String],
    pub quantized_by: Option<&'a str>,
    /// What the model does, unless its own card says so.
    pub pipeline: Option<&'a str>,
}

/// The front matter of a copy of `parent`.
pub fn front_matter(parent: &Parent, heading: &Heading) -> String {
    let mut front = FrontWriter::default();
    front.set("base_model", parent.id.as_deref());
    front.set("base_model_relation", parent.id.as_ref().map(|_| "quantized"));
    front.set("license", parent.license.as_deref());
    front.set("license_name", parent.license_name.as_deref());
    front.set("license_link", parent.license_link.as_deref());
    front.list("language", &parent.languages);
    front.set("library_name", Some(heading.library));
    front.set("pipeline_tag", parent.pipeline.as_deref().or(heading.pipeline));
    front.list("tags", heading.tags);
    front.set("quantized_by", heading.quantized_by);
    front.finish()
}

/// The parent, for a template.
pub fn parent(parent: &Parent) -> Value {
    context! { name => &parent.name, id => &parent.id, revision => &parent.revision }
}

/// The card of a checkpoint folder.
pub struct FolderCard<'a> {
    /// What the folder is called.
    pub name: &'a str,
    pub parent: &'a Parent,
    /// The format's name.
    pub format: &'a str,
    pub loader: Loader,
    pub tags: &'a [String],
    pub pipeline: Option<&'a str>,
    pub quantized_by: Option<&'a str>,
    pub bits_per_weight: f64,
    /// What it costs, in a sentence, where that was measured.
    pub measured: &'a str,
    /// Tokens that it was calibrated on, and their SHA-256.
    pub calibration: Option<(u64, &'a str)>,
    /// Where it departs from what was asked: module, asked, done, reason.
    pub departures: Vec<Vec<String>>,
    /// The file that has the rest.
    pub manifest: &'a str,
    /// Where it will be; a placeholder where that is not known.
    pub repository: &'a str,
    /// Its name within that, where it is a part of it.
    pub sub: Option<&'a str>,
}

impl FolderCard<'_> {
    /// The card, in Markdown.
    ///
    /// # Errors
    /// `Internal` for a mistake in the template.
    pub fn text(&self) -> Result<String> {
        let library = self.loader.library();
        let heading = Heading { library, tags: self.tags, quantized_by: self.quantized_by, pipeline: self.pipeline };
        let calibration = self.calibration.map(|(tokens, sha256)| context! { tokens, sha256 });
        let values = context! {
            front => Value::from_safe_string(front_matter(self.parent, &heading)), name => self.name,
            parent => parent(self.parent), format => self.format, version => env!("CARGO_PKG_VERSION"),
            bits => format!("{:.2}", self.bits_per_weight), measured => self.measured, manifest => self.manifest,
            run => Value::from_safe_string(run::folder(self.loader, self.repository, self.sub)?), calibration,
            departures => self.departures.clone(), place => self.sub.unwrap_or(self.name),
        };
        render("folder.md", include_str!("folder.md"), values)
    }
}

/// What stands where the repository's name will be.
pub fn placeholder(name: &str) -> String {
    format!("YOUR-NAME/{}", file_stem(name))
}
