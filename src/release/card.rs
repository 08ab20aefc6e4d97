//! The model card of a release: front matter as the Hub reads it, what there is and what it costs, which file to take, how
//! to run it, how it was made and how to check that. The card is `card.md`; here are the values that it is filled with.

use super::artifact::Artifact;
use super::hashes::SUMS;
use super::{REPORTS, Release};
use crate::Result;
use crate::card::run::{GgufFile, folder, gguf};
use crate::card::{Heading, front_matter, parent, placeholder};
use crate::convert::devices;
use crate::convert::folder::files::{has_chat, tags};
use crate::convert::forecast;
use crate::eval::Measured;
use crate::eval::gate::shown_cosine;
use crate::packed::Loader;
use crate::report::format::{bytes, count, fixed};
use crate::report::{Report, figures, summary, vectors};
use crate::template::render;
use crate::writer::folder::MANIFEST;
use minijinja::{Value, context};
use std::collections::BTreeSet;

/// Where the release will be, or what stands for that.
pub fn repository(release: &Release) -> String {
    let kind = if release.plan.files().next().is_some() { "GGUF" } else { "quantized" };
    release.options.repository.clone().unwrap_or_else(|| placeholder(&format!("{}-{kind}", release.name)))
}

/// The card. `artifacts`: smallest first.
///
/// # Errors
/// `Internal` for a mistake in the template.
pub fn text(
    release: &Release,
    artifacts: &[Artifact],
    projectors: &[Artifact],
    report: Option<&Report>,
) -> Result<String> {
    let options = &release.options;
    let tags = tags_of(release);
    let heading = Heading {
        library: library(release),
        tags: &tags,
        quantized_by: options.quantized_by.as_deref(),
        pipeline: pipeline(release),
    };
    let importance = release.plan.save_importance.as_ref();
    let importance = importance.and_then(|file| file.file_name()).map(|name| name.to_string_lossy().into_owned());
    let projectors_in_words = projectors.iter().map(|a| context! { name => &a.path, size => bytes(a.bytes) });
    let made = artifacts.iter().map(|a| context! { name => &a.path, how => &a.how });
    let columns = columns(artifacts);
    let head: Vec<&str> = ["File", "Size", "Bits per weight"].into_iter().chain(columns.iter().copied()).collect();
    let values = context! {
        front => Value::from_safe_string(front_matter(&release.parent, &heading)), name => &release.name,
        parent => parent(&release.parent), by => &options.quantized_by, version => env!("CARGO_PKG_VERSION"),
        files => artifacts.iter().map(|a| file(a, columns.len())).collect::<Vec<_>>(), head,
        verdict => report.map(summary::verdict).unwrap_or_default(), measured => report.and_then(measured),
        of_vectors => report.is_some_and(Report::is_of_vectors), report => REPORTS[1], importance,
        projectors => projectors_in_words.collect::<Vec<_>>(), which => which(release, artifacts),
        made => made.collect::<Vec<_>>(), command => &options.command, manifest => MANIFEST, sums => SUMS,
        types => types(artifacts),
    };
    render(
        "card.md",
        include_str!("card.md"),
        minijinja::value::merge_maps([run(release, artifacts, projectors)?, values]),
    )
}

/// What the model does, in the Hub's words.
fn pipeline(release: &Release) -> Option<&'static str> {
    let config = release.plan.source.model.hf_config.as_ref().and_then(|config| config.as_object());
    let sees = config.is_some_and(|config| config.keys().any(|key| key.starts_with("vision")));
    match (&release.projector, release.plan.source.model.runnable()) {
        (Some(_), _) if sees => Some("image-text-to-text"),
        (Some(_), _) => Some("audio-text-to-text"),
        (None, Ok(_)) => Some("text-generation"),
        (None, Err(_)) => None,
    }
}

fn library(release: &Release) -> &'static str {
    if release.plan.files().next().is_some() {
        return "gguf";
    }
    let only_mlx = release.plan.folders().all(|(_, f)| f.spec.loader() == Loader::Mlx);
    if only_mlx { Loader::Mlx.library() } else { Loader::Torch.library() }
}

fn tags_of(release: &Release) -> Vec<String> {
    let plan = &release.plan;
    let chat = has_chat(&plan.source.ckpt);
    let mut all = BTreeSet::new();
    if plan.files().next().is_some() {
        all.insert("gguf".to_string());
        if plan.recipe.data.is_some() || plan.recipe.importance.is_some() {
            all.insert("imatrix".into());
        }
    }
    plan.folders().for_each(|(_, folder)| all.extend(tags(&folder.spec, chat)));
    all.insert("quantized".into());
    if chat {
        all.insert("conversational".into());
    }
    all.into_iter().collect()
}

/// What the columns behind name and size are called.
fn columns(artifacts: &[Artifact]) -> &'static [&'static str] {
    match artifacts.iter().find_map(|a| a.measured.as_ref()) {
        Some(Measured::Logits(_)) => &["KL divergence", "Same top token", "Perplexity"],
        Some(Measured::Vectors(_)) => &["Mean cosine", "Worst cosine"],
        None => &[],
    }
}

/// A row of the table of artifacts, with so many columns of what was measured.
fn file(a: &Artifact, columns: usize) -> Value {
    let name = if a.is_gguf() { a.path.clone() } else { format!("{}/", a.path) };
    let mut cells = vec![bytes(a.bytes), fixed(a.bits_per_weight, 2)];
    match &a.measured {
        Some(Measured::Logits(s)) => cells.extend([
            figures::kl(s.kld).with_error,
            figures::share(s.same_top).text,
            figures::change(s.ppl_ratio).text,
        ]),
        Some(Measured::Vectors(cosines)) => {
            cells.extend([vectors::with_error(cosines.mean), shown_cosine(cosines.worst)]);
        }
        None => cells.extend((0..columns).map(|_| "–".to_string())),
    }
    context! { name, path => &a.path, cells }
}

/// What the comparison was made on.
fn measured(report: &Report) -> Option<Value> {
    let method = report.method.as_ref()?;
    let n = count(if report.is_of_vectors() { method.chunks } else { method.tokens });
    Some(context! { n, text => &method.text, ctx => method.ctx })
}

/// The best artifact by what was measured; where nothing was, the largest.
fn best<'a>(fitting: impl Iterator<Item = &'a Artifact>) -> Option<&'a Artifact> {
    let loss = |a: &Artifact| a.measured.as_ref().map_or(f64::INFINITY, Measured::loss);
    fitting.min_by(|a, b| loss(a).total_cmp(&loss(b)).then(b.bytes.cmp(&a.bytes)))
}

/// Tokens of context that the advice leaves room for.
const CONTEXT: u64 = 8192;

/// Which artifact suits which memory.
fn which(release: &Release, artifacts: &[Artifact]) -> Option<Value> {
    let model = &release.plan.source.model;
    let cache = forecast::cache(model)?;
    let longest = model.config.context as u64;
    let context = CONTEXT.min(longest);
    let kind = |a: &Artifact| match release.plan.folders().find(|(output, _)| output.index == a.index) {
        None => 0,
        Some((_, folder)) if folder.spec.loader() == Loader::Torch => 1,
        Some(_) => 2,
    };
    const READERS: [&str; 3] = ["llama.cpp, Ollama, LM Studio", "vLLM, transformers", "mlx-lm"];
    let kinds: Vec<usize> = (0..READERS.len()).filter(|k| artifacts.iter().any(|a| kind(a) == *k)).collect();
    let choice = |device: &devices::Device, of: usize| {
        let fits = |a: &&Artifact| {
            let weights = a.tensor_bytes + cache.fixed;
            kind(a) == of && devices::fit(device, weights, cache.per_token, context, longest).fits
        };
        best(artifacts.iter().filter(fits)).map(|a| a.path.as_str())
    };
    // Devices in a row with the same answers are one row.
    let mut rows: Vec<(String, Vec<Option<&str>>)> = Vec::new();
    for device in devices::table() {
        let answers: Vec<Option<&str>> = kinds.iter().map(|k| choice(&device, *k)).collect();
        if answers.iter().all(Option::is_none) || rows.last().is_some_and(|(_, last)| *last == answers) {
            continue;
        }
        rows.push((format!("{} GB ({})", device.memory >> 30, device.name), answers));
    }
    if rows.is_empty() {
        return None;
    }
    let head: Vec<&str> = ["Memory, from"].into_iter().chain(kinds.iter().map(|k| READERS[*k])).collect();
    let cells = |(device, answers): &(String, Vec<Option<&str>>)| -> Vec<String> {
        std::iter::once(device.clone()).chain(answers.iter().map(|a| a.unwrap_or("–").to_string())).collect()
    };
    let is_measured = artifacts.iter().any(|a| a.measured.is_some());
    Some(context! {
        head, rows => rows.iter().map(cells).collect::<Vec<_>>(), context => count(context as usize),
        what => if is_measured { "closest to the original" } else { "largest" },
    })
}

/// How to run the files and folders.
fn run(release: &Release, artifacts: &[Artifact], projectors: &[Artifact]) -> Result<Value> {
    let repository = repository(release);
    // What programs take where no tag is given, else the middle.
    let files: Vec<&Artifact> = artifacts.iter().filter(|a| a.is_gguf()).collect();
    let usual = files.iter().find(|a| a.target == "Q4_K_M").or(files.get(files.len() / 2));
    let of_usual = |a: &&Artifact| {
        gguf(&GgufFile {
            repository: &repository,
            file: &a.path,
            tag: &a.target,
            is_split: a.places.len() > 1,
            projector: projectors.first().map(|projector| projector.path.as_str()),
            has_chat: has_chat(&release.plan.source.ckpt),
        })
    };
    let others = files.iter().filter(|a| usual.is_some_and(|usual| usual.index != a.index));
    let mut folders = Vec::new();
    for (output, planned) in release.plan.folders() {
        if let Some(a) = artifacts.iter().find(|a| a.index == output.index) {
            let run = folder(planned.spec.loader(), &repository, Some(&a.path))?;
            folders.push(context! { name => &a.path, run => Value::from_safe_string(run) });
        }
    }
    let run = usual.map(of_usual).transpose()?.unwrap_or_default();
    let other_tags = others.map(|a| a.target.clone()).collect::<Vec<_>>();
    Ok(context! { run => Value::from_safe_string(run), other_tags, folders })
}

/// The types of the tensors of every GGUF file, part by part, the header first.
fn types(artifacts: &[Artifact]) -> Vec<Vec<String>> {
    let files: Vec<&Artifact> = artifacts.iter().filter(|a| a.is_gguf()).collect();
    let mut parts: Vec<&str> = Vec::new();
    for (part, _) in files.iter().flat_map(|a| &a.types) {
        if !parts.contains(&part.as_str()) {
            parts.push(part);
        }
    }
    if files.is_empty() {
        return Vec::new();
    }
    let head = std::iter::once("Tensors".to_string()).chain(files.iter().map(|a| a.target.clone()));
    let row = |part: &&str| {
        let cell = |a: &&Artifact| {
            let types = a.types.iter().find(|(p, _)| p == part).map(|(_, types)| types.as_slice());
            let words = types.unwrap_or_default().iter().map(|(ty, n)| match n {
                1 => ty.clone(),
                n => format!("{ty} ×{n}"),
            });
            words.collect::<Vec<_>>().join(", ")
        };
        std::iter::once(part.to_string()).chain(files.iter().map(cell)).collect::<Vec<_>>()
    };
    std::iter::once(head.collect()).chain(parts.iter().map(row)).collect()
}
