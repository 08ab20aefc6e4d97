//! A finished GGUF file or checkpoint folder beside the model it was made from, as a conversion does before it gets its name:
//! what it says of the model, what its tokenizer makes of text, and what its layers give.

use super::derive::same_configuration;
use super::told::{self, Differences};
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
/// `Unsupported` for a source that cannot be run; `Interrupted`.
pub fn beside(
    file: &Checkpoint,
    path: &Path,
    source: &SourceModel,
    control: &Control,
    report: &dyn Report,
) -> Result<(Checked, Vec<String>)> {
    let run = Run::new(control, report);
    let suspicious = |what: String| Ok((Checked::suspicious(what), Vec::new()));
    let other_key = |key: String| suspicious(format!("{key} is not what the source's tokenizer gives"));
    let Some(metadata) = file.gguf() else {
        let artifact = SourceModel::open(path)?;
        if let Ok(Some(key)) = other_vocabulary(source, &artifact) {
            return other_key(key);
        }
        // Whatever form it has, and where GGUF has no name for it, text has to become the same.
        if let Some(what) = proven::other_tokens(source, &artifact)? {
            return suspicious(what);
        }
        let Differences { suspicions, notes } = told::beside(source, &artifact);
        return match suspicions.is_empty() {
            false => Ok((Checked::suspicious(suspicions.join("; ")), notes)),
            true => Ok((proven::folder_beside(source, &artifact, run)?, notes)),
        };
    };
    // As the file's own recipe has it.
    let recipe = record::read(metadata).unwrap_or_default();
    let source = source.for_files(recipe.part, recipe.mtp)?;
    source.model.runnable()?;
    let artifact = match SourceModel::open(path) {
        Err(e @ Error::BadInput(_)) => return suspicious(e.to_string()),
        other => other?,
    };
    match same_configuration(&artifact.ckpt, &source.ckpt, &source.model) {
        Err(e @ Error::BadInput(_)) => return suspicious(e.to_string()),
        other => other?,
    }
    match other_vocabulary(&source, &artifact)? {
        Some(key) => other_key(key),
        None => proven::beside(&source, &artifact, run),
    }
}

/// The first key of the vocabulary that both have and that differs.
fn other_vocabulary(source: &SourceModel, artifact: &SourceModel) -> Result<Option<String>> {
    let pre = artifact.ckpt.gguf().and_then(|metadata| metadata.str("tokenizer.ggml.pre"));
    let (ours, theirs) = (vocabulary(source, pre)?, vocabulary(artifact, pre)?);
    // What restates a tokenizer in another form has the same tokens, and scores of its own.
    let is_compared = |key: &str| artifact.ckpt.gguf().is_some() || key == "tokenizer.ggml.tokens";
    let differs = |(key, value): &(&str, &crate::gguf::Value)| {
        is_compared(key) && theirs.get(key).is_some_and(|other| other != *value)
    };
    Ok(ours.iter().find(differs).map(|(key, _)| key.to_string()))
}

/// As metadata of a GGUF file; `pre` names the pre-tokenizer of a folder.
fn vocabulary(model: &SourceModel, pre: Option<&str>) -> Result<Metadata> {
    let mut found = Metadata::new();
    match model.ckpt.gguf() {
        Some(metadata) => GgufVocab::from_metadata(metadata)?.write(&mut found),
        None => {
            let (dir, rows) = (model.ckpt.dir(), model.model.config.vocab);
            GgufVocab::from_hf_dir(dir, rows, model.model.tokenizer_facts(), pre)?.write(&mut found);
        }
    }
    Ok(found)
}
