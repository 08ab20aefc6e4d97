//! The manifest: what a release was made of and how, and what every file and tensor of it is.

use super::artifact::Artifact;
use super::hashes::FileHash;
use super::{Release, card};
use crate::convert::layout::pretty;
use crate::eval::Measured;
use serde_json::{Value, json};

/// The version that this tool writes.
pub const SCHEMA: &str = "quantize-release/1";

/// The manifest as a file holds it.
pub fn text(release: &Release, artifacts: &[Artifact], projectors: &[Artifact], files: &[FileHash]) -> String {
    let (parent, options) = (&release.parent, &release.options);
    let source = artifacts.first().map(|a| a.source_hashes.as_slice()).unwrap_or_default();
    let bytes = |name: &str| {
        let file = release.plan.source.ckpt.files().iter().find(|f| f.path.file_name().is_some_and(|n| n == name));
        file.map(|f| f.len)
    };
    let source: Vec<Value> =
        source.iter().map(|(name, hash)| json!({ "name": name, "bytes": bytes(name), "sha256": hash })).collect();
    let of_artifact = |artifact: &Artifact| {
        let names = artifact.places.iter().filter_map(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned());
        let names: Vec<String> = names.collect();
        let inside = format!("{}/", artifact.path);
        let own =
            |file: &&FileHash| names.contains(&file.path) || (!artifact.is_gguf() && file.path.starts_with(&inside));
        let mut row = json!({
            "type": artifact.target, "format": artifact.format, "path": artifact.path, "bytes": artifact.bytes,
            "weights": artifact.weights, "bits_per_weight": artifact.bits_per_weight, "how": artifact.how,
            "files": files.iter().filter(own).collect::<Vec<_>>(),
        });
        if let Some(Measured::Vectors(cosines)) = &artifact.measured {
            row["cosine"] = json!(cosines);
        }
        if let Some(Measured::Logits(s)) = &artifact.measured {
            row["kl_divergence"] = json!(s.kld);
            row["same_top"] = json!(s.same_top);
            row["perplexity_ratio"] = json!(s.ppl_ratio);
            row["positions"] = json!(s.tokens);
        }
        row
    };
    let artifacts: Vec<Value> = artifacts.iter().map(of_artifact).collect();
    let projectors: Vec<Value> = projectors.iter().map(of_artifact).collect();
    let rest =
        files.iter().filter(|f| !f.path.contains('/') && f.path.contains("imatrix") || f.path.starts_with("report."));
    pretty(&json!({
        "schema": SCHEMA,
        "quantize_version": env!("CARGO_PKG_VERSION"),
        "name": release.name,
        "repository": options.repository,
        "placeholder": options.repository.is_none().then(|| card::repository(release)),
        "source": {
            "name": parent.name, "id": parent.id, "revision": parent.revision, "license": parent.license, "files": source,
        },
        "recipe": release.plan.recipe.to_json(),
        "quantized_by": options.quantized_by,
        "artifacts": artifacts,
        "projectors": projectors,
        "others": rest.map(|f| json!({ "path": f.path, "bytes": f.bytes, "sha256": f.sha256 })).collect::<Vec<_>>(),
    }))
}
