//! Model cards: what a source's card says ([`Front`], [`Parent`]), and the parts of the cards that are written beside
//! artifacts: front matter as the Hub reads it, tables, and how to run what is there. Text from elsewhere is escaped.

mod front;
mod parent;
pub mod run;

pub use front::{Front, FrontWriter};
pub use parent::{Parent, file_stem, is_id, is_vague};

use crate::escape::{markdown, shell};
use crate::packed::Loader;

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

/// The parent with a link to it where its place is known.
pub fn link(parent: &Parent) -> String {
    match &parent.id {
        Some(id) => {
            let at = parent
                .revision
                .as_ref()
                .map_or(String::new(), |r| format!(" at commit `{}`", r.chars().take(12).collect::<String>()));
            format!("[{}](https://huggingface.co/{id}){at}", markdown(id))
        }
        None => markdown(&parent.name),
    }
}

/// A table; the first row is the head, the first column is text and the others are figures.
pub fn table(rows: &[Vec<String>]) -> String {
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        out += &format!("| {} |\n", row.join(" | "));
        if i == 0 {
            out += &format!("|:---|{}\n", "---:|".repeat(row.len().saturating_sub(1)));
        }
    }
    out + "\n"
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
    /// How it was made and what that cost, in Markdown.
    pub more: &'a str,
    /// Where it will be; a placeholder where that is not known.
    pub repository: &'a str,
    /// Its name within that, where it is a part of it.
    pub sub: Option<&'a str>,
}

impl FolderCard<'_> {
    pub fn text(&self) -> String {
        let library = self.loader.library();
        let heading = Heading { library, tags: self.tags, quantized_by: self.quantized_by, pipeline: self.pipeline };
        let mut out = front_matter(self.parent, &heading);
        out += &format!("\n# {}\n\n", markdown(self.name));
        let bits = self.bits_per_weight;
        out += &format!(
            "{} quantized to `{}` by quantize {} ({bits:.2} bits per quantized weight).\n\n",
            link(self.parent),
            self.format,
            env!("CARGO_PKG_VERSION")
        );
        out += "## Run it\n\n";
        out += &run::folder(self.loader, self.repository, self.sub);
        out += "## How it was made\n\n";
        out += self.more;
        out += &format!(
            "\n## Check it\n\n```sh\nquantize verify {}\n```\n",
            shell(&format!("./{}", self.sub.unwrap_or(self.name)))
        );
        out
    }
}

/// What stands where the repository's name will be.
pub fn placeholder(name: &str) -> String {
    format!("YOUR-NAME/{}", file_stem(name))
}
