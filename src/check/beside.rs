//! A finished GGUF file beside the model it was made from, as a conversion does before the file gets its name: what it says
//! of the model, what its tokenizer makes of text, and what its layers give.

use super::derive::same_configuration;
use crate::control::{Control, Report, Run};
use crate::convert::{Checked, proven, record};
use crate::gguf::Metadata;
use crate::model::SourceModel;
use crate::model::tokenizer::GgufVocab;
use crate::source::Checkpoint;
use crate::{Error, Result};
use std::path::Path;

/// Runs `file` beside `source` over a few windows of the bundled texts. A file that cannot be what it should be is a
/// suspicion in the result, and no error; what is odd beside that is a note.
///
/// # Errors
/// `Unsupported` for a source that cannot be run; `Request` for a folder; `Interrupted`.
pub fn beside(
    file: &Checkpoint,
    path: &Path,
    source: &SourceModel,
    control: &Control,
    report: &dyn Report,
) -> Result<(Checked, Vec<String>)> {
    let run = Run::new(control, report);
    let Some(metadata) = file.gguf() else {
        return Err(Error::request(
            "only GGUF files can be checked against their source this way; compare folders on a text",
        ));
    };
    // As the file's own recipe has it.
    let recipe = record::read(metadata).unwrap_or_default();
    let source = source.for_files(recipe.part, recipe.mtp)?;
    source.model.runnable()?;
    let suspicious = |what: String| Ok((Checked { suspicion: Some(what), ..Checked::default() }, Vec::new()));
    let artifact = match SourceModel::open(path) {
        Err(e @ Error::BadInput(_)) => return suspicious(e.to_string()),
        other => other?,
    };
    match same_configuration(&artifact.ckpt, &source.ckpt, &source.model) {
        Err(e @ Error::BadInput(_)) => return suspicious(e.to_string()),
        other => other?,
    }
    match other_vocabulary(&source, &artifact)? {
        Some(key) => suspicious(format!("{key} is not what the source's tokenizer gives")),
        None => proven::beside(&source, &artifact, run),
    }
}

/// The first key of the vocabulary that both have and that differs.
fn other_vocabulary(source: &SourceModel, artifact: &SourceModel) -> Result<Option<String>> {
    let Some(theirs) = artifact.ckpt.gguf() else { return Ok(None) };
    let mut ours = Metadata::new();
    match source.ckpt.gguf() {
        Some(metadata) => GgufVocab::from_metadata(metadata)?.write(&mut ours),
        None => {
            let (dir, rows) = (source.ckpt.dir(), source.model.config.vocab);
            let pre = theirs.str("tokenizer.ggml.pre");
            GgufVocab::from_hf_dir(dir, rows, source.model.tokenizer_facts(), pre)?.write(&mut ours);
        }
    }
    let differs = |(key, value): &(&str, &crate::gguf::Value)| theirs.get(key).is_some_and(|other| other != *value);
    Ok(ours.iter().find(differs).map(|(key, _)| key.to_string()))
}
