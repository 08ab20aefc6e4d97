//! When the flags of a command have an effect, by the other words of its command line.

use super::{Rule, is_given, refuse_idle};
use crate::cli::args::EngineName;
use crate::cli::{eval, options};
use crate::{Result, check, packed};
use clap::ArgMatches;
use std::path::{Path, PathBuf};

/// The flags and arguments of a command.
struct Flags {
    /// The words of the command; none for a conversion.
    command: &'static str,
    /// Those that always have an effect, permit or promise something, or that clap or the command itself ties to others.
    #[cfg_attr(not(test), allow(dead_code))]
    always: &'static [&'static str],
    rules: &'static [Rule<ArgMatches>],
}

const LOCAL: &str = "is for models on the Hub, and none is named";
const NO_MODEL: &str = "is for calibrating a model: name a MODEL";
const UNWRITTEN: &str = "is for files that are written, and none is named";
const UNSAMPLED: &str = "has no effect at --temp 0, which takes the most likely token";
const NO_TEXT: &str = "has no effect without a text; add --text FILE";
const STORED: &str = "has no effect on stored logits, which are of one text and its windows";
const IMAGES: &str = "is for kubernetes and hf-jobs";

const COMMANDS: &[Flags] = &[
    Flags { command: "", always: &[], rules: rules! { revision "--revision" |m| is_remote(m, &["model"]), LOCAL; } },
    Flags {
        command: "release",
        always: &[
            "name",
            "base_model",
            "license",
            "quantized_by",
            "repo",
            "push_to",
            "private",
            "create_pr",
            "fit",
            "context",
        ],
        rules: rules! { revision "--revision" |m| is_remote(m, &["model"]) || is_given(m, "base_model"), LOCAL; },
    },
    Flags {
        command: "plan",
        always: &["device", "fit", "require_fit", "context"],
        rules: rules! {
            all "--all" |m| words(m, "to").is_empty() || words(m, "to").iter().any(|to| is_of_file(to)), "is for GGUF files";
            calibration_tokens "--calibration-tokens" |m| !is_given(m, "fit"), "has no effect with --fit";
            revision "--revision" |m| is_remote(m, &["model"]), LOCAL;
        },
    },
    Flags {
        command: "job plan",
        always: &["tasks"],
        rules: rules! { revision "--revision" |m| is_remote(m, &["model"]), LOCAL; },
    },
    Flags {
        command: "job compare",
        // Those that a job has no place for are refused by name.
        always: &[
            "output",
            "tasks",
            "models",
            "lora",
            "text",
            "ctx",
            "stride",
            "chunks",
            "activations",
            "kv_cache",
            "task",
            "questions",
            "continuations",
            "length",
            "ablate",
            "ablate_chunks",
            "max_memory",
            "max_kld",
            "max_ppl_increase",
            "min_top1",
            "min_cosine",
            "report",
            "force",
            "threads",
            "format",
            "quiet",
        ],
        rules: &[],
    },
    Flags {
        command: "job run",
        always: &["job", "phase", "index", "of", "wait", "max_memory", "threads", "format", "quiet"],
        rules: &[],
    },
    Flags { command: "job status", always: &["job", "format"], rules: &[] },
    Flags {
        command: "job assemble",
        always: &["job", "output", "force", "check", "no_check", "threads", "format", "quiet"],
        rules: &[],
    },
    Flags {
        command: "job emit",
        always: &["engine", "job"],
        rules: rules! {
            cpus "--cpus" |m| !is_for(m, &["hf-jobs"]), "is not for hf-jobs, whose flavors have theirs";
            memory "--memory" |m| !is_for(m, &["hf-jobs"]), "is not for hf-jobs, whose flavors have theirs";
            parallel "--parallel" |m| is_for(m, &["slurm", "kubernetes", "skypilot"]), "is for slurm, kubernetes and skypilot";
            image "--image" |m| is_for(m, &["kubernetes", "hf-jobs"]), IMAGES;
            claim "--claim" |m| is_for(m, &["kubernetes", "hf-jobs"]), IMAGES;
            mount "--mount" |m| is_for(m, &["kubernetes", "hf-jobs"]), IMAGES;
        },
    },
    Flags { command: "inspect", always: &["file", "full", "filter", "format"], rules: &[] },
    Flags {
        command: "verify",
        always: &["file", "source", "lora", "check", "engines", "threads", "format", "quiet"],
        rules: rules! {
            tp "--tp" |m| m.get_many::<EngineName>("engines").is_some_and(|mut all| all.any(|e| *e == EngineName::Vllm)), "is for --for vllm";
            imatrix "--imatrix" |m| is_given(m, "source"), "is what --source was quantized with: add --source MODEL";
            unseen_experts "--unseen-experts" |m| is_given(m, "source") && is_given(m, "imatrix"), "is for --source with --imatrix";
        },
    },
    Flags {
        command: "calibrate",
        always: &[
            "model",
            "lora",
            "output",
            "merge",
            "show_statistics",
            "hessians",
            "resume",
            "save_text",
            "offline",
            "format",
            "quiet",
        ],
        rules: rules! {
            calibration "--calibration" |m| is_given(m, "model"), NO_MODEL;
            calibration_tokens "--calibration-tokens" |m| is_given(m, "model"), NO_MODEL;
            seq_len "--seq-len" |m| is_given(m, "model"), NO_MODEL;
            calibration_seed "--seed" |m| is_given(m, "model"), NO_MODEL;
            process_output "--process-output" |m| is_given(m, "model"), NO_MODEL;
            text "--text" |m| is_given(m, "model"), NO_MODEL;
            max_memory "--max-memory" |m| is_given(m, "model"), NO_MODEL;
            threads "--threads" |m| is_given(m, "model"), NO_MODEL;
            revision "--revision" |m| is_remote(m, &["model"]), LOCAL;
            force "--force" |m| is_given(m, "output") || is_given(m, "save_text"), UNWRITTEN;
            checkpoint_every "--checkpoint-every" |m| is_given(m, "model") && is_given(m, "output") && !is_given(m, "hessians"),
                "is for calibrating a MODEL into an output (-o) without --hessians";
        },
    },
    Flags {
        command: "eval",
        always: &[
            "model",
            "lora",
            "text",
            "stride",
            "chunks",
            "activations",
            "kv_cache",
            "task",
            "questions",
            "save_logits",
            "report",
            "threads",
            "format",
            "quiet",
        ],
        rules: rules! {
            ctx "--ctx" |m| is_given(m, "text") || !is_given(m, "task"), NO_TEXT;
            force "--force" |m| is_given(m, "report") || is_given(m, "save_logits"), UNWRITTEN;
        },
    },
    Flags {
        command: "compare",
        always: &[
            "models",
            "lora",
            "activations",
            "kv_cache",
            "task",
            "questions",
            "continuations",
            "length",
            "ablate",
            "ablate_chunks",
            "max_memory",
            "max_kld",
            "max_ppl_increase",
            "min_top1",
            "min_cosine",
            "report",
            "threads",
            "format",
            "quiet",
        ],
        rules: rules! {
            text "--text" |m| !is_stored(m), STORED;
            stride "--stride" |m| !is_stored(m), STORED;
            chunks "--chunks" |m| !is_stored(m), STORED;
            ctx "--ctx" |m| is_given(m, "text") || (!is_given(m, "task") && !is_stored(m)), "has no effect without a text of its own";
            force "--force" |m| is_given(m, "report"), UNWRITTEN;
        },
    },
    Flags {
        command: "diff",
        always: &["first", "second", "fail_on_difference", "offline", "threads", "format", "quiet"],
        rules: rules! { revision "--revision" |m| is_remote(m, &["first", "second"]), LOCAL; },
    },
    Flags {
        command: "edit",
        always: &[
            "file",
            "output",
            "in_place",
            "set",
            "remove",
            "rename",
            "chat_template",
            "token_type",
            "stop_token",
            "format",
        ],
        rules: rules! { force "--force" |m| !is_given(m, "in_place"), "has no effect with --in-place, which replaces the file"; },
    },
    Flags {
        command: "split",
        always: &["file", "output", "max_size", "max_tensors", "count", "force", "format"],
        rules: &[],
    },
    Flags { command: "merge", always: &["file", "output", "force", "format"], rules: &[] },
    Flags {
        command: "extract",
        always: &["file", "tensor", "expert", "output", "force", "format", "quiet"],
        rules: &[],
    },
    Flags {
        command: "report",
        always: &["file", "to", "format", "quiet"],
        rules: rules! {
            force "--force" |m| m.get_many("to").is_some_and(|mut to| to.any(|to: &PathBuf| !eval::is_ending(to))), UNWRITTEN;
        },
    },
    Flags {
        command: "generate",
        always: &[
            "model", "prompt", "chat", "system", "special", "n", "temp", "top_k", "seed", "offline", "threads",
            "format", "quiet",
        ],
        rules: rules! {
            top_p "--top-p" is_sampled, UNSAMPLED;
            revision "--revision" |m| is_remote(m, &["model"]), LOCAL;
        },
    },
    Flags {
        command: "chat",
        always: &["model", "system", "n", "context", "temp", "top_k", "seed", "offline", "threads", "quiet"],
        rules: rules! {
            top_p "--top-p" is_sampled, UNSAMPLED;
            revision "--revision" |m| is_remote(m, &["model"]), LOCAL;
        },
    },
    Flags { command: "pull", always: &["id", "local_dir", "revision", "offline", "format", "quiet"], rules: &[] },
    Flags {
        command: "push",
        always: &[
            "folder",
            "id",
            "private",
            "create_pr",
            "message",
            "dry_run",
            "revision",
            "offline",
            "threads",
            "format",
            "quiet",
        ],
        rules: &[],
    },
    Flags { command: "types", always: &["filter", "format"], rules: &[] },
    Flags { command: "families", always: &["format"], rules: &[] },
    Flags { command: "completions", always: &["shell"], rules: &[] },
    Flags { command: "man", always: &["command", "dir"], rules: &[] },
];

/// The values of an argument as they were written.
fn words(matches: &ArgMatches, id: &str) -> Vec<String> {
    let raw = matches.get_raw(id).into_iter().flatten();
    raw.flat_map(|value| value.to_string_lossy().split(',').map(String::from).collect::<Vec<_>>()).collect()
}

/// Whether one of these arguments names a model on the Hub.
fn is_remote(matches: &ArgMatches, ids: &[&str]) -> bool {
    let is_remote = |name: &String| !Path::new(name).exists() && options::is_hub_id(name);
    ids.iter().any(|id| words(matches, id).iter().any(is_remote))
}

/// Whether a script is for one of these engines.
fn is_for(matches: &ArgMatches, engines: &[&str]) -> bool {
    words(matches, "engine").iter().any(|engine| engines.contains(&engine.as_str()))
}

/// Whether a target is a GGUF file.
fn is_of_file(name: &str) -> bool {
    packed::parse(name).is_none() && name != "safetensors"
}

/// Whether a comparison is with stored logits.
fn is_stored(matches: &ArgMatches) -> bool {
    matches
        .get_many::<PathBuf>("models")
        .and_then(|mut models| models.next())
        .is_some_and(|base| check::is_logits(base))
}

fn is_sampled(matches: &ArgMatches) -> bool {
    matches.get_one::<f32>("temp").is_some_and(|temp| *temp > 0.0)
}

/// Refuses a flag that would do nothing beside the other words of the command line.
///
/// # Errors
/// `Usage`, naming the flag and what it is for.
pub fn refuse(matches: &ArgMatches) -> Result<()> {
    let (mut command, mut matches) = (String::new(), matches);
    while let Some((word, of_word)) = matches.subcommand() {
        command = if command.is_empty() { word.into() } else { format!("{command} {word}") };
        matches = of_word;
    }
    let rules = COMMANDS.iter().find(|flags| flags.command == command).map_or(&[][..], |flags| flags.rules);
    refuse_idle(rules, |id| is_given(matches, id), matches)
}

#[cfg(test)]
mod tests {
    use super::super::conversion;
    use super::*;
    use clap::CommandFactory;

    /// What plans a conversion has its flags.
    const CONVERSIONS: [&str; 4] = ["", "release", "plan", "job plan"];

    fn walk(name: &str, command: &clap::Command, seen: &mut Vec<String>) {
        // Alone, `job` does nothing; the program without a command converts.
        if name.is_empty() || command.get_subcommands().next().is_none() {
            let ids: Vec<&str> = command.get_arguments().map(|a| a.get_id().as_str()).collect();
            let flags = COMMANDS.iter().find(|flags| flags.command == name);
            let flags = flags.unwrap_or_else(|| panic!("'{name}' has no flags here"));
            let own: Vec<&str> = flags.always.iter().copied().chain(flags.rules.iter().map(|r| r.id)).collect();
            let shared = |id: &str| {
                let known = conversion::ALWAYS.contains(&id) || conversion::RULES.iter().any(|r| r.id == id);
                CONVERSIONS.contains(&name) && known
            };
            for id in &ids {
                assert!(own.contains(id) || shared(id), "{name} {id}: say when it has an effect");
                assert!(own.iter().filter(|own| *own == id).count() <= 1, "{name} {id}: say it once");
            }
            for id in &own {
                assert!(ids.contains(id), "{name}: {id} is no flag");
            }
            for rule in flags.rules {
                let long = command.get_arguments().find(|a| a.get_id() == rule.id).and_then(clap::Arg::get_long);
                assert_eq!(long.map(|long| format!("--{long}")).as_deref(), Some(rule.flag), "{name}");
            }
            seen.push(name.to_string());
        }
        for command in command.get_subcommands() {
            let name = format!("{name} {}", command.get_name());
            walk(name.trim(), command, seen);
        }
    }

    #[test]
    fn of_every_flag_of_every_command_it_is_known_when_it_has_an_effect() {
        let mut seen = Vec::new();
        walk("", &crate::cli::Cli::command(), &mut seen);
        assert!(COMMANDS.iter().all(|flags| seen.iter().any(|name| name == flags.command)));
        // Conversions' own.
        let command = crate::cli::Cli::command();
        let ids: Vec<&str> = command.get_arguments().map(|a| a.get_id().as_str()).collect();
        for rule in conversion::RULES {
            assert!(ids.contains(&rule.id) && !conversion::ALWAYS.contains(&rule.id), "{}", rule.id);
            let long = command.get_arguments().find(|a| a.get_id() == rule.id).and_then(clap::Arg::get_long);
            assert_eq!(long.map(|long| format!("--{long}")).as_deref(), Some(rule.flag));
        }
    }

    #[test]
    fn flags_that_do_nothing_are_refused() {
        let refused = |line: &str| {
            let parsed = crate::cli::Cli::command().try_get_matches_from(line.split(' '));
            refuse(&parsed.unwrap_or_else(|e| panic!("{line}: {e}"))).is_err()
        };
        for line in [
            "quantize --to q8_0 ./m --revision v1",
            "quantize plan ./m --to gptq --all",
            "quantize plan ./m --fit 24GB --calibration-tokens 9",
            "quantize diff ./a ./b --revision v1",
            "quantize verify a.gguf --for transformers --tp 2",
            "quantize verify a.gguf --imatrix i.gguf",
            "quantize calibrate --merge a.gguf -o b.gguf --seed 3",
            "quantize calibrate --merge a.gguf --show-statistics --force",
            "quantize eval m --text t --force",
            "quantize eval m --task t --ctx 64",
            "quantize report r.json --to md --force",
            "quantize generate m -p x --top-p 0.5",
            "quantize edit m --in-place --set a=b --force",
            "quantize job emit slurm job --image i",
            "quantize job emit hf-jobs job --cpus 3",
        ] {
            assert!(refused(line), "{line}");
        }
        for line in [
            "quantize --to q8_0 org/m --revision v1",
            "quantize plan ./m --to gptq,q8_0 --all",
            "quantize diff ./a org/b --revision v1",
            "quantize verify a --for transformers,vllm --tp 2",
            "quantize calibrate m -o b.gguf --seed 3 --checkpoint-every 9 --force",
            "quantize report r.json --to r.md --force",
            "quantize generate m -p x --temp 1 --top-p 0.5",
            "quantize job emit kubernetes job --image i --parallel 2",
        ] {
            assert!(!refused(line), "{line}");
        }
    }
}
