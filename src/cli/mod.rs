//! The command line: clap types, one subcommand per file. This is the only layer that reads flags and the environment;
//! what lies below is called with values that were checked here.

/// A line on standard error; see [`say`].
macro_rules! say {
    ($($arg:tt)*) => { $crate::cli::output::say(&format!($($arg)*)) };
}

mod advice;
mod args;
mod calibrate;
mod chat;
mod commands;
mod convert;
mod coverage;
mod diff;
mod edit;
mod emit;
mod eval;
mod failure;
mod families;
mod generate;
mod idle;
mod inspect;
mod interrupt;
mod job;
mod options;
mod output;
mod places;
mod plan;
mod plan_text;
mod prepare;
mod progress;
mod pull;
mod push;
mod recipe;
mod release;
mod shell;
mod tasks;
mod types;
mod values;
mod verify;
mod words;

use crate::{Error, Result};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use commands::*;
use words::Asked;

const EXAMPLES: &str = "\
Examples:
  quantize --to q4_k_m ./Llama-3.1-8B                 write Llama-3.1-8B-Q4_K_M.gguf
  quantize --to q4_k_m,q8_0 ./model -o out/           two files from one read of the checkpoint
  quantize plan ./model --to q4_k_m --device 24GB     sizes, fallbacks and what fits, before a weight is read
  quantize --to q4_k_m ./model --tensor-type 'ffn_down=q6_k' --output-tensor-type q8_0
  quantize --to q8_0 HuggingFaceTB/SmolLM2-135M       fetch from the Hub first, with resume
  quantize compare ./model a-Q4_K_M.gguf b.gguf --text eval.txt --report report.html
  quantize --to q4_k_m ./model --text eval.txt --max-kld 0.05     convert, measure, and fail if it is worse
  quantize chat a-Q4_K_M.gguf                         talk to it
  quantize generate a-Q4_K_M.gguf --chat --prompt 'Why is the sky blue?'
  quantize calibrate ./model -o imatrix.gguf          importance matrix from the bundled texts, as llama-imatrix makes
  quantize --to iq2_m ./model --imatrix imatrix.gguf  use one; --calibration default makes one in the same run
  quantize --target-size 4.5GB ./model --calibration default      types chosen to fit, by what they cost this model
  quantize --to mlx-4bit --target-bpw 4.5 ./model --calibration default     the same for a folder
  quantize release ./model --to q4_k_m,q8_0 --text eval.txt -o release/     a folder to publish, with a model card
  quantize push release/ org/model-GGUF               to the Hub, with one commit
  quantize inspect model.gguf                         metadata and tensors
  quantize --to safetensors model.gguf                back to a plain Hugging Face folder
  quantize edit model.gguf --chat-template t.jinja -o fixed.gguf      other metadata, the same tensors
  quantize verify model.gguf --source ./model         derive every tensor again and compare

Exit codes: 0 done, 1 internal error, 2 wrong usage, 3 bad input, 4 unsupported model or type,
5 disk or network, 6 a quality gate failed, 75 interrupted.";

/// What is said where nothing was asked for.
const SHORT: &str = "\
quantize turns a checkpoint into the quantized artifacts people run, and measures what was lost

  quantize --to q4_k_m MODEL              a GGUF file for llama.cpp, Ollama, LM Studio
  quantize --to awq MODEL                 a folder for vLLM; fp8, gptq, nvfp4, mlx-4bit, nf4, ... too
  quantize plan MODEL                     sizes, and the devices they fit, before anything is read
  quantize compare MODEL FILE... --text eval.txt        what was lost
  quantize release MODEL --to q4_k_m,q8_0 --text eval.txt -o release/     a folder to publish
  quantize types                          all types and formats

MODEL is a folder, a .safetensors or .gguf file, or a Hub id (org/name).
More commands and all flags: quantize --help
";

/// Turns a checkpoint into the quantized artifacts people run, and measures what was lost.
#[derive(Debug, Parser)]
#[command(name = "quantize", version, about, after_help = EXAMPLES, args_conflicts_with_subcommands = true,
          max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    convert: ConvertArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what a conversion would write: per-tensor types, exact sizes, memory, disk, and which devices it fits
    Plan(Box<PlanArgs>),
    /// Make a folder that can be published: artifacts, reports, model card, hashes, manifest
    Release(Box<ReleaseArgs>),
    /// Convert in tasks on any number of machines, over a folder that all of them see
    Job(job::JobArgs),
    /// Show the metadata and the tensors of a checkpoint or GGUF file, or the coverage of an importance matrix
    Inspect(InspectArgs),
    /// Check a GGUF file, and derive its tensors again from the source it claims
    Verify(VerifyArgs),
    /// Download what a conversion needs from the Hub, with resume
    Pull(PullArgs),
    /// Put a release into a repository on the Hub, with one commit
    Push(PushArgs),
    /// Make an importance matrix: show the model texts, and record what its layers see
    Calibrate(CalibrateArgs),
    /// Measure the perplexity of a model on a text, or look at the vectors of an embedding model
    Eval(EvalArgs),
    /// Compare artifacts with the model they were made from: KL divergence, perplexity, top-1 agreement, or cosines of vectors, with error bars
    Compare(CompareArgs),
    /// Show how two artifacts or checkpoints differ: metadata, tokens, template, types, numbers
    Diff(DiffArgs),
    /// Change the metadata of a GGUF file; tensors are copied as they are
    Edit(EditArgs),
    /// Cut a GGUF file into shards
    Split(SplitArgs),
    /// Put the shards of a GGUF file together
    Merge(MergeArgs),
    /// Write single tensors as safetensors or a NumPy array
    Extract(ExtractArgs),
    /// Render a saved JSON report as HTML, Markdown or text
    Report(ReportArgs),
    /// Continue a prompt, or answer it with --chat
    Generate(GenerateArgs),
    /// Talk to a model: with its chat template and the whole conversation so far
    Chat(ChatArgs),
    /// List the types and formats that --to takes, with bits and purposes
    Types(TypesArgs),
    /// List the model architectures that are known, and what works with each
    Families(FamiliesArgs),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// Print a manual page (roff), or write all of them into a folder
    Man(shell::ManArgs),
}

impl Command {
    fn asked(&self) -> Asked {
        match self {
            Command::Eval(_) | Command::Compare(_) | Command::Diff(_) | Command::Generate(_) | Command::Chat(_) => {
                Asked::Run
            }
            Command::Verify(_) => Asked::Check,
            _ => Asked::Make,
        }
    }
}

/// Parses the command line and runs it; returns the exit code.
pub fn main() -> u8 {
    if std::env::args_os().len() < 2 {
        let _ = std::io::Write::write_all(&mut std::io::stderr(), SHORT.as_bytes());
        return Error::Usage(String::new()).exit_code();
    }
    let parsed = values::without_streams(Cli::command()).try_get_matches();
    let parsed = parsed.and_then(|matches| Cli::from_arg_matches(&matches).map(|cli| (cli, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(e) if e.use_stderr() && output::is_for_machines() => return failure::of_usage(&e),
        Err(e) => e.exit(),
    };
    let asked = cli.command.as_ref().map_or(Asked::Make, Command::asked);
    match run(cli, &matches) {
        Ok(()) => 0,
        Err(e) => {
            progress::clear();
            match output::is_for_machines() {
                true => failure::print(&e, asked),
                false => say!("error: {}", words::explained(&e, asked)),
            }
            e.exit_code()
        }
    }
}

fn run(cli: Cli, matches: &clap::ArgMatches) -> Result<()> {
    options::instruction_set()?;
    idle::refuse_of_command(matches)?;
    match cli.command {
        None => convert::run(cli.convert, &idle::given(matches)),
        Some(Command::Plan(args)) => {
            plan::run(*args, &matches.subcommand().map_or(Vec::new(), |(_, m)| idle::given(m)))
        }
        Some(Command::Release(args)) => {
            release::run(*args, &matches.subcommand().map_or(Vec::new(), |(_, m)| idle::given(m)))
        }
        Some(Command::Job(args)) => matches.subcommand().map_or(Ok(()), |(_, matches)| job::run(args, matches)),
        Some(Command::Inspect(args)) => inspect::run(args),
        Some(Command::Verify(args)) => verify::run(args),
        Some(Command::Pull(args)) => pull::run(args),
        Some(Command::Push(args)) => push::run(args),
        Some(Command::Calibrate(args)) => calibrate::run(args),
        Some(Command::Eval(args)) => eval::eval(args),
        Some(Command::Compare(args)) => eval::compare(args),
        Some(Command::Diff(args)) => diff::run(args),
        Some(Command::Edit(args)) => edit::edit(args),
        Some(Command::Split(args)) => edit::split(args),
        Some(Command::Merge(args)) => edit::merge(args),
        Some(Command::Extract(args)) => edit::extract(args),
        Some(Command::Report(args)) => eval::render(args),
        Some(Command::Generate(args)) => generate::run(args),
        Some(Command::Chat(args)) => chat::run(args),
        Some(Command::Types(args)) => types::run(args),
        Some(Command::Families(args)) => families::run(args),
        Some(Command::Completions { shell }) => shell::completions(shell, Cli::command()),
        Some(Command::Man(args)) => shell::manual(args, Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        super::Cli::command().debug_assert();
    }

    /// No flag of any command takes `-` for a path, but for the one that reads it.
    #[test]
    fn paths_are_no_streams() {
        use clap::CommandFactory;
        fn walk(command: &clap::Command, found: &mut Vec<String>) {
            for arg in command.get_arguments() {
                let is_path = arg.get_value_parser().type_id() == std::any::TypeId::of::<std::path::PathBuf>();
                // Alone, as two models, and behind the scheduler that `job emit` is for.
                let lines = match arg.get_long() {
                    Some(long) => vec![vec![format!("--{long}=-")]],
                    None => [&["-"][..], &["-", "-"], &["slurm", "-"]]
                        .map(|l| l.iter().map(|w| w.to_string()).collect())
                        .into(),
                };
                let is_refused = |line: Vec<String>| {
                    let line = ["x".to_string()].into_iter().chain(line);
                    let parsed = command.clone().try_get_matches_from(line);
                    parsed.is_err_and(|e| e.kind() == clap::error::ErrorKind::ValueValidation)
                };
                let refused = || lines.into_iter().any(is_refused);
                if is_path && !refused() {
                    found.push(arg.get_id().to_string());
                }
            }
            command.get_subcommands().for_each(|command| walk(command, found));
        }
        let mut found = Vec::new();
        walk(&super::values::without_streams(super::Cli::command()), &mut found);
        assert_eq!(found, ["file"], "of `quantize report`");
    }
}
