//! How to run an artifact, program by program: the lines that people copy. Names are quoted for a shell.

use crate::Result;
use crate::packed::Loader;
use crate::template::render;
use minijinja::context;

/// A GGUF file of a repository.
pub struct GgufFile<'a> {
    pub repository: &'a str,
    /// The file, of a split one its first shard.
    pub file: &'a str,
    /// What programs choose it by: `Q4_K_M`.
    pub tag: &'a str,
    pub is_split: bool,
    /// The projector file beside it.
    pub projector: Option<&'a str>,
    pub has_chat: bool,
}

/// How to run a GGUF file: llama.cpp, Ollama, LM Studio. In Markdown.
///
/// # Errors
/// `Internal` for a mistake in the template.
pub fn gguf(it: &GgufFile) -> Result<String> {
    let values = context! {
        repository => it.repository, file => it.file, tag => it.tag, is_split => it.is_split, projector => it.projector,
        has_chat => it.has_chat,
    };
    render("run_gguf.md", include_str!("run_gguf.md"), values)
}

/// How to run a checkpoint folder. `sub`: its name within the repository; `None` where it is the repository.
///
/// # Errors
/// As [`gguf`].
pub fn folder(loader: Loader, repository: &str, sub: Option<&str>) -> Result<String> {
    let values = context! { mlx => loader == Loader::Mlx, repository, sub };
    render("run_folder.md", include_str!("run_folder.md"), values)
}
