//! Errors, hints and notices in the words of the command line: the library speaks of values, and here they become flags.

use crate::control::Notice;
use crate::convert::allocation::Allocation;
use crate::convert::folder::engines::Objection;
use crate::error::{Finding, Hint, Unfinished};
pub(super) use crate::report::grouped as departures;
use crate::{Error, escape};

/// What a command is asked for: hints name what helps with that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asked {
    /// To make something of a model.
    #[default]
    Make,
    /// To run a model, or to measure it.
    Run,
    /// What an artifact is worth beside its source.
    Check,
}

/// An error, with the flags that help.
pub fn explained(error: &Error, asked: Asked) -> String {
    match error {
        Error::Exists { replaceable: true, .. } => format!("{error}; use --force to replace it"),
        Error::Unfinished { why: Unfinished::Parts(_), .. } => {
            format!("{error}; add --resume to continue it, or --force to start over")
        }
        Error::Unfinished { why: Unfinished::OfAnotherRun { .. }, .. } => {
            format!("{error}\n  hint: repeat the original command, or leave out --resume to start over")
        }
        _ => match error.finding() {
            Some(finding @ Finding { hint: Some(hint), .. }) => {
                format!("{}\n  hint: {}", finding.fault(), escape::message(&helps(hint, asked)))
            }
            _ => error.to_string(),
        },
    }
}

/// A hint for what was asked for.
fn helps(hint: &Hint, asked: Asked) -> String {
    let of_making = matches!(hint, Hint::ConvertedOnly | Hint::FilesAndNearestFolders | Hint::FormatsOfAnyModel);
    match asked {
        Asked::Run if of_making => {
            "measure it in the engine that runs it; `quantize families` lists the models that run here".into()
        }
        Asked::Check if of_making => {
            "without --check every block and number is looked at, and with --for what engines \
                                      demand; `quantize families` lists the models that run here"
                .into()
        }
        _ => flags(hint),
    }
}

/// A hint, with the flags that follow it.
fn flags(hint: &Hint) -> String {
    let escaped = |tensor: &str| regex::escape(tensor);
    match hint {
        Hint::WiderType { tensor } => {
            format!("give it a type with more range: --tensor-type '{}=bf16'", escaped(tensor))
        }
        Hint::TypeWithoutImportance { tensor } => {
            format!("give it another type: --tensor-type '{}=q4_k'", escaped(tensor))
        }
        Hint::Calibrate => "add --calibration default, or name texts of your own".into(),
        Hint::MakeImportance => "make an importance matrix with: quantize calibrate MODEL -o imatrix.gguf, then add \
                                 --imatrix imatrix.gguf (or calibrate in the same run with --calibration default)"
            .into(),
        Hint::AllowFallback { instead } => format!("--on-fallback warn accepts {instead} instead"),
        Hint::AcceptRequantizing => {
            "start from the original checkpoint, or accept the added loss with --allow-requantize".into()
        }
        Hint::WindowsOf(n) => format!("give more text, or shorter windows with --seq-len {n}"),
        Hint::MoreTokens { least, without_feedback } => {
            let or = if *without_feedback { ", or take --rounding nearest" } else { "" };
            format!("calibrate on {least} tokens or more (--calibration-tokens), or in shorter windows (--seq-len){or}")
        }
        Hint::LongerWindows { least, without_feedback } => {
            let or = if *without_feedback { ", or take --rounding nearest" } else { "" };
            format!("take windows of {least} tokens or more (--seq-len, --calibration-tokens){or}")
        }
        Hint::UnseenExperts => "calibrate on more tokens, or choose --unseen-experts layer-mean or plain".into(),
        Hint::ConvertedOnly => "make a GGUF file without --calibration (--imatrix works), or a folder in a format that needs no \
                                calibration (--to fp8, nf4, mlx-4bit, or gptq with --rounding nearest); `quantize families` \
                                lists the models that run"
            .into(),
        Hint::FilesAndNearestFolders => "GGUF files with and without --calibration, and evaluation, work; so do folders in \
                                         formats that need no calibration (--to fp8, nf4, mlx-4bit, or gptq with --rounding \
                                         nearest)"
            .into(),
        Hint::FormatsOfAnyModel => "of any architecture, folders can be made in formats that need no calibration (--to fp8, \
                                    nf4, mlx-4bit, or gptq with --rounding nearest); GGUF files, and running the model, \
                                    need a known one (`quantize families` lists them)"
            .into(),
        Hint::Pretokenizer(name) => {
            format!("if you know that it splits text the same way, pass --pretokenizer {name}")
        }
        Hint::OfOriginal(name) => format!("make one of the original with: quantize --to {name}"),
        Hint::Groups { of, format } => format!("groups of {of} divide every row: --to {format}"),
        Hint::Devices(n) => format!("quantize again with --tp {n}"),
        Hint::NameBase => "give the base model's folder, and this one with --lora".into(),
        Hint::NameConfiguration => "name the original's folder with --like-config DIR".into(),
        Hint::NameImportance => "name it with --imatrix FILE".into(),
        Hint::ImportanceOfModel { is_of_another } => {
            let why = if *is_of_another { "it was made of another model; " } else { "" };
            format!("{why}make one with: quantize calibrate MODEL -o imatrix.gguf")
        }
        Hint::Verify => "the file is damaged or its weights overflow: check it with `quantize verify`".into(),
        Hint::Online { id: Some(id) } => format!("run `quantize pull {id}` once without --offline and HF_HUB_OFFLINE"),
        Hint::Online { id: None } => "run once without --offline and HF_HUB_OFFLINE".into(),
        Hint::DownloadAgain => {
            "run the command again, it resumes where it stopped; --offline uses only what is in the cache".into()
        }
        Hint::Revision => "choose another revision with --revision".into(),
        Hint::BeginAgain(path) => {
            format!("calibrate without --resume to begin again, or delete {}", path.display())
        }
        Hint::Memory(bytes) => format!("--max-memory {bytes}"),
        Hint::EvaluationText => "give a text with --text FILE".into(),
        Hint::ContextFrom(n) => format!("--ctx {n} or more"),
        Hint::ContextUpTo(n) => format!("--ctx {n} or less"),
        Hint::TextOrContext(n) => format!("give a longer text, or a smaller context with --ctx {n}"),
        Hint::NoStride => "leave out --stride".into(),
        Hint::GateOfVectors => "its gate is --min-cosine".into(),
        Hint::GateOfLogits => "its gates are --max-kld, --max-ppl-increase and --min-top1".into(),
        Hint::TextForGate => "give a longer --text, raise --chunks, or loosen the gate".into(),
        Hint::PlanJob => "`quantize job plan MODEL -o FOLDER` makes one".into(),
        Hint::JobStatus => "run them first; `quantize job status` says more".into(),
        Hint::MakeRelease => "make one with `quantize release`".into(),
        Hint::Types => "`quantize types` lists them all, with bits and purposes".into(),
        Hint::CompareFirst => "write one with `quantize compare ... --report out.json`".into(),
        Hint::Text(text) => text.clone(),
    }
}

/// What an engine has against a folder or file, with the flags that help.
pub fn objection(objection: &Objection) -> String {
    match &objection.hint {
        Some(hint) => format!("{}; {}", objection.what, flags(hint)),
        None => objection.what.clone(),
    }
}

/// This command line again, to go on.
fn resumed() -> String {
    let args = std::env::args_os().skip(1).map(|arg| escape::shell(&arg.to_string_lossy()));
    let mut words: Vec<String> = std::iter::once("quantize".to_string()).chain(args).collect();
    if !words.iter().any(|word| word == "--resume") {
        words.push("--resume".into());
    }
    words.join(" ")
}

/// A notice, with the flags that follow it.
pub fn noticed(notice: &Notice) -> String {
    match notice {
        Notice::BundledTexts => "calibrating on the bundled texts; --calibration names others".into(),
        Notice::Kept(_) => format!("{notice}; continue with:\n  {}", resumed()),
        Notice::Resuming { .. } | Notice::Info(_) => format!("  {notice}"),
        _ => notice.to_string(),
    }
}

/// The types that a budget was spent on, part by part.
pub fn allocation(name: &str, allocation: &Allocation) -> String {
    // How many tensors of a part have each type.
    type Types<'a> = Vec<(&'a str, usize)>;
    let mut parts: Vec<(&str, f64, Types)> = Vec::new();
    for row in &allocation.tensors {
        let name = row.tensor.trim_end_matches(".weight");
        let part = name.rsplit('.').next().unwrap_or(name);
        let at = parts.iter().position(|p| p.0 == part).unwrap_or_else(|| {
            parts.push((part, 0.0, Vec::new()));
            parts.len() - 1
        });
        let (_, kl, types) = &mut parts[at];
        *kl += row.kl;
        match types.iter_mut().find(|t| t.0 == row.ty) {
            Some((_, n)) => *n += 1,
            None => types.push((&row.ty, 1)),
        }
    }
    let mut out = format!("{name}: expected {} {:.4}", allocation.loss.short(), allocation.predicted_kl);
    if let Some(of_preset) = allocation.preset_predicted_kl {
        out += &format!(" (the preset's types {of_preset:.4})");
    }
    out += &format!(", {} of {} bytes\n", allocation.spent, allocation.budget);
    for (part, kl, mut types) in parts {
        types.sort();
        let types: Vec<String> = types.iter().map(|(ty, n)| format!("{ty} ×{n}")).collect();
        out += &format!("  {part:<16} {kl:.5}  {}\n", types.join("  "));
    }
    out
}

/// The command line, but for what decides only how a run goes on.
pub fn command_for_bytes() -> Vec<String> {
    let how = ["--resume", "--force", "-f", "--quiet", "-q"];
    command().into_iter().filter(|word| !how.contains(&word.as_str())).collect()
}

/// The words of the command line; what is no UTF-8 becomes �.
pub fn command() -> Vec<String> {
    std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect()
}
