//! A finished GGUF file beside the model it was made from, as a conversion does before the file gets its name: what it says
//! of the model, what its tokenizer makes of text, and what its layers give.

use super::derive::same_configuration;
use crate::control::{Control, Report, Run};
use crate::convert::{Checked, proof, proven};
use crate::gguf::Metadata;
use crate::model::SourceModel;
use crate::model::tokenizer::GgufVocab;
use crate::{Error, Result};
use std::path::Path;

/// Runs `file` beside `source` over a few windows of the bundled texts. A file that cannot be what it should be is a
/// suspicion in the result, and no error.
///
/// # Errors
/// `Unsupported` for a source that cannot be run; `Interrupted`.
pub fn beside(file: &Path, source: &SourceModel, control: &Control, report: &dyn Report) -> Result<Checked> {
    let run = Run::new(control, report);
    source.model.known()?;
    let suspicious = |what: String| Checked { suspicion: Some(what), ..Checked::default() };
    let artifact = match SourceModel::open(file) {
        Ok(artifact) => artifact,
        Err(e @ Error::BadInput(_)) => return Ok(suspicious(e.to_string())),
        Err(e) => return Err(e),
    };
    if artifact.ckpt.gguf().is_none() {
        return Err(Error::request("only GGUF files are run beside their source here; compare folders on a text"));
    }
    match same_configuration(&artifact.ckpt, &source.ckpt, &source.model) {
        Err(e @ Error::BadInput(_)) => return Ok(suspicious(e.to_string())),
        other => other?,
    }
    if let Some(key) = other_vocabulary(source, &artifact)? {
        return Ok(suspicious(format!("{key} is not what the source's tokenizer gives")));
    }
    let ckpt = artifact.ckpt.clone();
    let checked = match proven::beside(source, &artifact, &|layer| proven::smallest_of(&ckpt, layer), run) {
        Err(e @ Error::BadInput(_)) => return Ok(suspicious(e.to_string())),
        other => other?,
    };
    match proof::other_tokens(source, &artifact)? {
        Some(what) if checked.suspicion.is_none() => Ok(Checked { suspicion: Some(what), ..checked }),
        _ => Ok(checked),
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
