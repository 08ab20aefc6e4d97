//! The model card of a release: front matter as the Hub reads it, what there is and what it costs, which file to take, how
//! to run it, how it was made and how to check that.

use super::artifact::Artifact;
use super::hashes::SUMS;
use super::{REPORTS, Release};
use crate::card::run::{GgufFile, folder, gguf};
use crate::card::{Heading, front_matter, link, placeholder, table};
use crate::convert::devices;
use crate::convert::folder::files::{has_chat, tags};
use crate::convert::forecast;
use crate::escape::markdown;
use crate::eval::Measured;
use crate::eval::gate::shown_cosine;
use crate::packed::Loader;
use crate::report::format::{bytes, count, fixed};
use crate::report::{Report, figures, summary, vectors};
use crate::writer::folder::MANIFEST;
use std::collections::BTreeSet;

/// Where the release will be, or what stands for that.
pub fn repository(release: &Release) -> String {
    let kind = if release.plan.files().next().is_some() { "GGUF" } else { "quantized" };
    release.options.repository.clone().unwrap_or_else(|| placeholder(&format!("{}-{kind}", release.name)))
}

/// The card. `artifacts`: smallest first.
pub fn text(release: &Release, artifacts: &[Artifact], projectors: &[Artifact], report: Option<&Report>) -> String {
    let (parent, options) = (&release.parent, &release.options);
    let tags = tags_of(release);
    let heading = Heading {
        library: library(release),
        tags: &tags,
        quantized_by: options.quantized_by.as_deref(),
        pipeline: pipeline(release),
    };
    let mut out = front_matter(parent, &heading);
    out += &format!("\n# {}, quantized\n\n", markdown(&release.name));
    let version = env!("CARGO_PKG_VERSION");
    let by = options.quantized_by.as_ref().map_or(String::new(), |by| format!(" by {}", markdown(by)));
    out += &format!("{}, quantized{by} with quantize {version}.\n\n", link(parent));
    out += &files(release, artifacts, report);
    out += &projector(projectors);
    out += &which(release, artifacts);
    out += &run(release, artifacts, projectors);
    out += &how(release, artifacts, report);
    out += &check();
    out
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

/// The projector files, and what they are for.
fn projector(projectors: &[Artifact]) -> String {
    let row = |a: &Artifact| format!("[{}](./{}) ({})", markdown(&a.path), address(&a.path), bytes(a.bytes));
    let rows: Vec<String> = projectors.iter().map(row).collect();
    match rows.is_empty() {
        true => String::new(),
        false => format!(
            "{}: the projector, which turns images or sound into what the text model reads. Every GGUF file above works with it; \
             it is not quantized further, and the figures above are of text alone.\n\n",
            rows.join(", ")
        ),
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

/// The table of artifacts, and what the comparison says of them.
fn files(release: &Release, artifacts: &[Artifact], report: Option<&Report>) -> String {
    let mut head = vec!["File".to_string(), "Size".into(), "Bits per weight".into()];
    let columns: &[&str] = match artifacts.iter().find_map(|a| a.measured.as_ref()) {
        Some(Measured::Logits(_)) => &["KL divergence", "Same top token", "Perplexity"],
        Some(Measured::Vectors(_)) => &["Mean cosine", "Worst cosine"],
        None => &[],
    };
    head.extend(columns.iter().map(|name| name.to_string()));
    let mut rows = vec![head];
    for a in artifacts {
        let name = if a.is_gguf() { a.path.clone() } else { format!("{}/", a.path) };
        let mut row =
            vec![format!("[{}](./{})", markdown(&name), address(&a.path)), bytes(a.bytes), fixed(a.bits_per_weight, 2)];
        match &a.measured {
            Some(Measured::Logits(s)) => row.extend([
                figures::kl(s.kld).with_error,
                figures::share(s.same_top).text,
                figures::change(s.ppl_ratio).text,
            ]),
            Some(Measured::Vectors(cosines)) => {
                row.extend([vectors::with_error(cosines.mean), shown_cosine(cosines.worst)]);
            }
            None => row.extend(columns.iter().map(|_| "–".to_string())),
        }
        rows.push(row);
    }
    let mut out = format!("## Files\n\n{}", table(&rows));
    if let Some(report) = report {
        for line in summary::verdict(report) {
            out += &format!("- {}\n", markdown(&line));
        }
        if let Some(method) = report.method.as_ref().filter(|_| report.is_of_vectors()) {
            out += &format!(
                "\nCosines are between each file's vectors and those of the unquantized model, over {} chunks of {} ({} tokens \
                 each); 1 is no loss, ± one standard error. More in [the report](./{}).\n\n",
                count(method.chunks),
                markdown(&method.text),
                method.ctx,
                REPORTS[1]
            );
        } else if let Some(method) = &report.method {
            out += &format!(
                "\nKL divergence is the mean over {} positions of {} (windows of {} tokens), in nats per token, of each \
                 file from the unquantized model; 0 is no loss, ± one standard error. Same top token: how often both put \
                 the same token first. Perplexity: how much it rises. More in [the report](./{}).\n\n",
                count(method.tokens),
                markdown(&method.text),
                method.ctx,
                REPORTS[1]
            );
        }
    }
    if let Some(file) = &release.plan.save_importance {
        let name = file.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        out += &format!(
            "[{}](./{}) is the importance matrix that the GGUF files were made with.\n\n",
            markdown(&name),
            address(&name)
        );
    }
    out
}

/// A name in an address.
fn address(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/+".contains(&b);
    name.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The best artifact by what was measured; where nothing was, the largest.
fn best<'a>(fitting: impl Iterator<Item = &'a Artifact>) -> Option<&'a Artifact> {
    let loss = |a: &Artifact| a.measured.as_ref().map_or(f64::INFINITY, Measured::loss);
    fitting.min_by(|a, b| loss(a).total_cmp(&loss(b)).then(b.bytes.cmp(&a.bytes)))
}

/// Tokens of context that the advice leaves room for.
const CONTEXT: u64 = 8192;

/// Which artifact suits which memory.
fn which(release: &Release, artifacts: &[Artifact]) -> String {
    let model = &release.plan.source.model;
    let Some(cache) = forecast::cache(model) else { return String::new() };
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
        return String::new();
    }
    let head = ["Memory, from"].into_iter().chain(kinds.iter().map(|k| READERS[*k])).map(String::from).collect();
    let cell = |answer: &Option<&str>| answer.map_or("–".into(), markdown);
    let body = rows
        .iter()
        .map(|(device, answers)| std::iter::once(markdown(device)).chain(answers.iter().map(cell)).collect::<Vec<_>>());
    let table = table(&std::iter::once(head).chain(body).collect::<Vec<_>>()).replace("---:", ":---");
    format!(
        "## Which to take\n\n{table}In each row the {} of those that fit with {} tokens of context (16-bit keys and values), \
         5 % for buffers and half a GiB for the runtime.\n\n",
        if artifacts.iter().any(|a| a.measured.is_some()) { "closest to the original" } else { "largest" },
        count(context as usize)
    )
}

fn run(release: &Release, artifacts: &[Artifact], projectors: &[Artifact]) -> String {
    let repository = repository(release);
    let mut out = "## Run it\n\n".to_string();
    // What programs take where no tag is given, else the middle.
    let files: Vec<&Artifact> = artifacts.iter().filter(|a| a.is_gguf()).collect();
    let usual = files.iter().find(|a| a.target == "Q4_K_M").or(files.get(files.len() / 2));
    if let Some(a) = usual {
        out += &gguf(&GgufFile {
            repository: &repository,
            file: &a.path,
            tag: &a.target,
            is_split: a.places.len() > 1,
            projector: projectors.first().map(|projector| projector.path.as_str()),
            has_chat: has_chat(&release.plan.source.ckpt),
        });
        let others: Vec<String> =
            files.iter().filter(|b| b.index != a.index).map(|b| format!("`{}`", b.target)).collect();
        if !others.is_empty() {
            out += &format!("Other tags: {}.\n\n", others.join(", "));
        }
    }
    for (output, planned) in release.plan.folders() {
        if let Some(a) = artifacts.iter().find(|a| a.index == output.index) {
            out += &format!("### {}\n\n", markdown(&a.path));
            out += &folder(planned.spec.loader(), &repository, Some(&a.path));
        }
    }
    out
}

fn how(release: &Release, artifacts: &[Artifact], report: Option<&Report>) -> String {
    let mut out = "## How it was made\n\n".to_string();
    for a in artifacts {
        out += &format!("- {}: {}\n", markdown(&a.path), markdown(&a.how));
    }
    if !release.options.command.is_empty() {
        let command = crate::escape::line(&release.options.command).into_owned();
        out += &format!("\n```sh\n{command}\n```\n");
    }
    let reports = report.map_or("", |_| " [report.json](./report.json) has all that was measured.");
    out += &format!(
        "\n[{MANIFEST}](./{MANIFEST}) records the source's hashes, the whole recipe, and the SHA-256 of every file and \
         tensor.{reports}\n\n"
    );
    let files: Vec<&Artifact> = artifacts.iter().filter(|a| a.is_gguf()).collect();
    if !files.is_empty() {
        let mut parts: Vec<&str> = Vec::new();
        for (part, _) in files.iter().flat_map(|a| &a.types) {
            if !parts.contains(&part.as_str()) {
                parts.push(part);
            }
        }
        let head = std::iter::once("Tensors".to_string()).chain(files.iter().map(|a| markdown(&a.target)));
        let row = |part: &&str| {
            let cell = |a: &&Artifact| {
                let types = a.types.iter().find(|(p, _)| p == part).map(|(_, types)| types.as_slice());
                let words = types.unwrap_or_default().iter().map(|(ty, n)| match n {
                    1 => ty.clone(),
                    n => format!("{ty} ×{n}"),
                });
                markdown(&words.collect::<Vec<_>>().join(", "))
            };
            std::iter::once(markdown(part)).chain(files.iter().map(cell)).collect::<Vec<_>>()
        };
        let rows: Vec<Vec<String>> = std::iter::once(head.collect()).chain(parts.iter().map(row)).collect();
        out += &format!("<details>\n<summary>Types of tensors</summary>\n\n{}</details>\n\n", table(&rows));
    }
    out
}

fn check() -> String {
    format!(
        "## Check it\n\n```sh\nsha256sum -c --ignore-missing {SUMS}\nquantize verify .\n```\n\nThe first compares the files \
         with their hashes; the second also reads every tensor. Cards like this one are not among them, so that they can be edited.\n"
    )
}
