//! The arguments of every command.

use super::args::*;
use super::values::{TYPES, size, tokens};
use crate::calibration::data;
use clap::Args;
use std::num::NonZeroUsize;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// The checkpoint: a folder, a .safetensors or .gguf file, or a Hub id (org/name). llama-quantize's order
    /// `IN.gguf [OUT.gguf] TYPE [THREADS]` works too
    #[arg(value_name = "MODEL", num_args = 1..=4)]
    pub model: Vec<String>,
    /// Merge this LoRA adapter (PEFT's folder) into the weights as they are read; with an output named NAME-LoRA.gguf, write
    /// the adapter by itself
    #[arg(long, value_name = "ADAPTER")]
    pub lora: Option<PathBuf>,
    #[command(flatten)]
    pub types: TypeArgs,
    #[command(flatten)]
    pub budget: BudgetArgs,
    #[command(flatten)]
    pub imatrix: ImatrixArgs,
    #[command(flatten)]
    pub calibration: CalibrationArgs,
    #[command(flatten)]
    pub rounding: RoundingArgs,
    #[command(flatten)]
    pub control: ControlArgs,
    /// Keep the importance matrix that --calibration makes
    #[arg(help_heading = "Calibration", long, value_name = "FILE", requires = "calibration")]
    pub save_imatrix: Option<PathBuf>,
    /// Take everything that decides the outputs from this file, as --print-recipe or an output's record has it (JSON)
    #[arg(help_heading = "Recipe", long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Print the recipe that these flags stand for and stop; MODEL is not needed
    #[arg(help_heading = "Recipe", long)]
    pub print_recipe: bool,
    /// Output file or folder [default: MODEL-TYPE.gguf in the current folder]
    #[arg(help_heading = "Output", short, long, visible_alias = "outfile", value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Print the plan and stop
    #[arg(help_heading = "Output", long)]
    pub dry_run: bool,
    /// Begin another file after so many bytes: 4G, 500M (decimal, as in llama.cpp) [default: GGUF never, folders 5G]
    #[arg(help_heading = "Output", long, alias = "max-shard-size", value_name = "SIZE", value_parser = size, conflicts_with = "keep_split")]
    pub split_max_size: Option<u64>,
    /// GGUF: begin a new shard after so many tensors
    #[arg(help_heading = "Output", long, value_name = "N", conflicts_with_all = ["split_max_size", "keep_split"])]
    pub split_max_tensors: Option<NonZeroUsize>,
    /// GGUF: as many shards as the source has files
    #[arg(help_heading = "Output", long)]
    pub keep_split: bool,
    /// Also write an Ollama Modelfile beside each GGUF file
    #[arg(help_heading = "Output", long)]
    pub modelfile: bool,
    /// Do not hash the source files (saves one more read of a checkpoint larger than the memory)
    #[arg(help_heading = "Output", long)]
    pub no_source_hash: bool,
    /// Run each artifact beside the source before it gets its name [default: where that takes little, or less than the
    /// conversion]
    #[arg(help_heading = "Check before the name", long, overrides_with = "no_check")]
    pub check: bool,
    /// Do not run them
    #[arg(help_heading = "Check before the name", long, overrides_with = "check")]
    pub no_check: bool,
    /// Accept i-quants below four bits without importance matrix or calibration, which lose nearly everything
    #[arg(help_heading = "Calibration", long)]
    pub uncalibrated: bool,
    /// After converting, compare the artifacts with the source on this text
    #[arg(help_heading = "Comparison with the source", long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Chunks of the text to use [default: all]
    #[arg(help_heading = "Comparison with the source", long, value_name = "N", requires = "text")]
    pub chunks: Option<usize>,
    /// Tokens per chunk
    #[arg(help_heading = "Comparison with the source", long, value_name = "TOKENS", default_value_t = 512)]
    pub ctx: usize,
    /// Write the report of that comparison: .html, .md, .json or .txt (repeatable)
    #[arg(help_heading = "Comparison with the source", long, value_name = "FILE", requires = "text")]
    pub report: Vec<PathBuf>,
    #[command(flatten)]
    pub gates: GateArgs,
    #[command(flatten)]
    pub hub: HubArgs,
    #[command(flatten)]
    pub common: CommonArgs,
    // Last: its heading goes over all flags behind it.
    #[command(flatten)]
    pub folder: FolderArgs,
}

#[derive(Debug, Args)]
#[command(mut_arg("report", |a| a.hide(true)), mut_arg("modelfile", |a| a.hide(true)), mut_arg("save_imatrix", |a| a.hide(true)),
          mut_arg("print_recipe", |a| a.hide(true)),
          mut_arg("mmproj", |a| a.help("Types of the projector of a model that sees or hears: f16, bf16, q8_0, f32; none leaves it \
                  out [default: f16, where there is one]")))]
pub struct ReleaseArgs {
    /// What files are named after [default: the model's name]
    #[arg(help_heading = "Release", long, value_name = "NAME")]
    pub name: Option<String>,
    /// The source's id on the Hub, for the model card [default: as MODEL, its card or config.json tell]
    #[arg(help_heading = "Release", long, value_name = "ORG/NAME")]
    pub base_model: Option<String>,
    /// The license, in the Hub's words (apache-2.0, mit, other, ...) [default: that of the source's card]
    #[arg(help_heading = "Release", long, value_name = "LICENSE")]
    pub license: Option<String>,
    /// Who quantized it, for the model card
    #[arg(help_heading = "Release", long, value_name = "WHO")]
    pub quantized_by: Option<String>,
    /// Where it will be published, for the commands in the model card [default: quantize push fills it in]
    #[arg(help_heading = "Release", long, value_name = "ORG/NAME")]
    pub repo: Option<String>,
    /// Then push it to this repository on the Hub, as `quantize push` does; a release that fails its gates is not pushed
    #[arg(help_heading = "Release", long, value_name = "ORG/NAME")]
    pub push_to: Option<String>,
    /// With --push-to: a repository that has to be created is private
    #[arg(help_heading = "Release", long, requires = "push_to")]
    pub private: bool,
    /// With --push-to: open a pull request instead of committing
    #[arg(help_heading = "Release", long, requires = "push_to")]
    pub create_pr: bool,
    /// Release the best of the types that this device holds, keys and values included: 24GB, 'RTX 4090', 'Mac 36GB'
    #[arg(help_heading = "Release", long, value_name = "DEVICE")]
    pub fit: Option<String>,
    /// Tokens of context that --fit leaves room for
    #[arg(help_heading = "Release", long, value_name = "TOKENS", default_value_t = 8192, value_parser = tokens, requires = "fit")]
    pub context: usize,
    #[command(flatten)]
    pub convert: ConvertArgs,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// A checkpoint folder, a config.json alone, a .gguf file, or a Hub id
    #[arg(value_name = "MODEL")]
    pub model: String,
    #[command(flatten)]
    pub types: TypeArgs,
    /// How codes are chosen [default: as a conversion does]
    #[arg(long, alias = "search", value_enum, value_name = "HOW")]
    pub rounding: Option<Rounding>,
    /// Plan for an importance matrix, which changes a few types (presets that need one imply it)
    #[arg(long, num_args = 0..=1, default_missing_value = "", value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Plan for a calibrated run: its types, memory, disk and time
    #[arg(long, num_args = 0..=1, default_missing_value = "default", value_name = "SOURCE", conflicts_with = "imatrix")]
    pub calibration: Option<String>,
    /// Plan for types chosen under the size of this preset, which a calibrated run does: the preset's sizes are shown
    #[arg(long, value_name = "TYPE", value_delimiter = ',', value_parser = TYPES, hide_possible_values = true)]
    pub like: Vec<String>,
    /// The device it should fit, by its memory or name: 24GB, 'RTX 4090', 'Mac 36GB', 'RAM 32GB' (repeatable) [default: a
    /// built-in table]
    #[arg(long, value_name = "DEVICE")]
    pub device: Vec<String>,
    /// Choose the best of the types that this device holds, keys and values included: 24GB, 'RTX 4090', 'Mac 36GB'. With --tp
    /// so many of them. Without --to, of the usual types of GGUF files
    #[arg(long, value_name = "DEVICE", conflicts_with_all = ["device", "require_fit", "all"])]
    pub fit: Option<String>,
    /// Fail (exit code 6) when an output does not fit one of the devices named with --device
    #[arg(long, requires = "device")]
    pub require_fit: bool,
    /// Tokens of context to leave room for
    #[arg(long, value_name = "TOKENS", default_value_t = 8192, value_parser = tokens)]
    pub context: usize,
    /// One row per tensor instead of one per group
    #[arg(long)]
    pub all: bool,
    /// Tokens of calibration data, for the time and memory of calibrated formats
    #[arg(long, value_name = "N", default_value_t = data::DEFAULT_TOKENS)]
    pub calibration_tokens: usize,
    #[command(flatten)]
    pub hub: HubArgs,
    #[command(flatten)]
    pub common: CommonArgs,
    #[command(flatten)]
    pub folder: FolderArgs,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A GGUF file, a checkpoint folder or a .safetensors file; or an importance matrix
    pub file: PathBuf,
    /// Print array values whole
    #[arg(long)]
    pub full: bool,
    /// Only metadata keys and tensor names that match
    #[arg(long, value_name = "REGEX")]
    pub filter: Option<String>,
    #[command(flatten)]
    pub common: ResultArgs,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The GGUF file (the first shard of a split one stands for all), or a checkpoint folder
    pub file: PathBuf,
    /// GGUF: the checkpoint it was made from; every tensor is derived again and compared
    #[arg(long, value_name = "MODEL")]
    pub source: Option<PathBuf>,
    /// The LoRA adapter that was merged into the source
    #[arg(long, value_name = "ADAPTER")]
    pub lora: Option<PathBuf>,
    /// Run it beside the checkpoint it was made from, as a conversion does at its end
    #[arg(long, value_name = "MODEL", conflicts_with = "source")]
    pub check: Option<PathBuf>,
    /// Say what this engine would refuse, and why (repeatable)
    #[arg(long = "for", value_enum, value_name = "ENGINE", value_delimiter = ',')]
    pub engines: Vec<EngineName>,
    /// Devices over which the engine is to split every layer
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub tp: u32,
    #[command(flatten)]
    pub imatrix: ImatrixArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// A checkpoint folder, a GGUF file or a Hub id; none to merge or show importance matrices
    #[arg(value_name = "MODEL")]
    pub model: Option<String>,
    /// Merge this LoRA adapter (PEFT's folder) into the weights as they are read
    #[arg(long, value_name = "ADAPTER", requires = "model")]
    pub lora: Option<PathBuf>,
    #[command(flatten)]
    pub data: CalibrationArgs,
    /// Where the importance matrix goes; a name in .dat gets llama.cpp's older form
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Add importance matrices made before, of other texts
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub merge: Vec<PathBuf>,
    /// Collect for output.weight too
    #[arg(long)]
    pub process_output: bool,
    /// Print statistics of the activations, tensor by tensor
    #[arg(long)]
    pub show_statistics: bool,
    /// Say how much of this evaluation text is in the calibration data
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Save X^T X of every linear layer's input too
    #[arg(long, requires_all = ["model", "output"], conflicts_with_all = ["merge", "process_output", "resume"])]
    pub hessians: bool,
    #[command(flatten)]
    pub control: ControlArgs,
    /// Write the checkpoint that --resume continues (OUTPUT.resume) every so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub checkpoint_every: u64,
    /// Also write the text of the windows, for other programs to calibrate on
    #[arg(long, value_name = "FILE", requires = "model")]
    pub save_text: Option<PathBuf>,
    #[command(flatten)]
    pub hub: HubArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A checkpoint folder or a GGUF file
    pub model: PathBuf,
    /// Merge this LoRA adapter (PEFT's folder) into the weights as they are read
    #[arg(long, value_name = "ADAPTER")]
    pub lora: Option<PathBuf>,
    #[command(flatten)]
    pub text: TextArgs,
    #[command(flatten)]
    pub tasks: TaskArgs,
    /// Store the logits in llama-perplexity's --kl-divergence-base format
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub save_logits: Option<PathBuf>,
    /// Write the report: .html, .md, .json or .txt (repeatable)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub report: Vec<PathBuf>,
    /// Replace existing reports
    #[arg(long, short, help_heading = "Output")]
    pub force: bool,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The base, then its quantizations: folders or GGUF files. The base may be a --kl-divergence-base file
    #[arg(value_name = "MODEL", num_args = 2.., required = true)]
    pub models: Vec<PathBuf>,
    /// Merge this LoRA adapter (PEFT's folder) into the base
    #[arg(long, value_name = "ADAPTER")]
    pub lora: Option<PathBuf>,
    #[command(flatten)]
    pub text: TextArgs,
    #[command(flatten)]
    pub tasks: TaskArgs,
    /// Also continue so many prompts from the text, greedily, with the base and every candidate, and say where they part
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Measurement")]
    pub continuations: Option<u32>,
    /// Tokens of each continuation
    #[arg(long, value_name = "TOKENS", default_value_t = 300, help_heading = "Measurement", requires = "continuations", value_parser = clap::value_parser!(u32).range(1..))]
    pub length: u32,
    /// Also measure the loss of each group of tensors quantized alone (loads the base twice)
    #[arg(long, help_heading = "Measurement")]
    pub ablate: bool,
    /// Memory to keep to: candidates that do not fit together are loaded in turn [default: most of what is free]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Measurement")]
    pub max_memory: Option<u64>,
    /// Chunks for --ablate
    #[arg(long, value_name = "N", default_value_t = 8, requires = "ablate", help_heading = "Measurement")]
    pub ablate_chunks: usize,
    #[command(flatten)]
    pub gates: GateArgs,
    /// Write the report: .html, .md, .json or .txt (repeatable)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub report: Vec<PathBuf>,
    /// Replace existing reports
    #[arg(long, short, help_heading = "Output")]
    pub force: bool,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
pub struct EditArgs {
    /// The GGUF file (of several shards, with --in-place, the first)
    pub file: PathBuf,
    /// Where the edited copy goes
    #[arg(long, short, value_name = "FILE", required_unless_present = "in_place", conflicts_with = "in_place")]
    pub output: Option<PathBuf>,
    /// Replace the file itself, once its copy is whole
    #[arg(long)]
    pub in_place: bool,
    /// Set a metadata key: KEY=VALUE in the type that it has (text for a new one), or KEY=TYPE:VALUE with a type such as u32,
    /// f32, bool, str or [str] (lists in JSON; repeatable)
    #[arg(long, value_name = "KEY=[TYPE:]VALUE")]
    pub set: Vec<String>,
    /// Remove a metadata key (repeatable)
    #[arg(long, value_name = "KEY")]
    pub remove: Vec<String>,
    /// Give a metadata key another name (repeatable)
    #[arg(long, value_name = "OLD=NEW")]
    pub rename: Vec<String>,
    /// Take the chat template from this file
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// What a token, by its text or number, is: normal, unknown, control, user-defined, unused, byte (repeatable)
    #[arg(long, value_name = "TOKEN=TYPE")]
    pub token_type: Vec<String>,
    /// The token that ends a text (eos), a turn (eot) or a message (eom), by its text or number (repeatable)
    #[arg(long, value_name = "KIND=TOKEN")]
    pub stop_token: Vec<String>,
    /// Replace what is there
    #[arg(long, short)]
    pub force: bool,
    #[command(flatten)]
    pub common: ResultArgs,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("by").required(true).args(["max_size", "max_tensors", "count"]))]
pub struct SplitArgs {
    /// The GGUF file
    pub file: PathBuf,
    /// What the names of the shards begin with [default: the file's name]
    #[arg(long, short, value_name = "PREFIX")]
    pub output: Option<PathBuf>,
    /// Begin another shard before one would hold more bytes of tensors: 4G, 500M
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_size: Option<u64>,
    /// Begin another shard after so many tensors
    #[arg(long, value_name = "N")]
    pub max_tensors: Option<NonZeroUsize>,
    /// So many shards of about equal size
    #[arg(long, value_name = "N")]
    pub count: Option<NonZeroUsize>,
    /// Replace what is there
    #[arg(long, short)]
    pub force: bool,
    #[command(flatten)]
    pub common: ResultArgs,
}

#[derive(Debug, Args)]
pub struct MergeArgs {
    /// One of the shards, which lie in one folder
    pub file: PathBuf,
    /// Where the whole file goes
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
    /// Replace what is there
    #[arg(long, short)]
    pub force: bool,
    #[command(flatten)]
    pub common: ResultArgs,
}

#[derive(Debug, Args)]
pub struct ExtractArgs {
    /// A checkpoint folder, a .safetensors or a .gguf file
    pub file: PathBuf,
    /// Tensors whose names hold this (repeatable)
    #[arg(long, value_name = "REGEX", required = true)]
    pub tensor: Vec<String>,
    /// Of stacked experts, this one
    #[arg(long, value_name = "N")]
    pub expert: Option<usize>,
    /// Where they go: a .safetensors file, or an .npy file of one tensor
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
    /// Replace what is there
    #[arg(long, short)]
    pub force: bool,
    #[command(flatten)]
    pub common: ShownArgs,
}

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// A folder, a GGUF file or a Hub id
    pub first: String,
    /// What it is compared with
    pub second: String,
    /// End with exit code 6 when they differ
    #[arg(long)]
    pub fail_on_difference: bool,
    #[command(flatten)]
    pub hub: HubArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// A report saved as JSON; - reads it from standard input
    pub file: PathBuf,
    /// Where to render it: a file in .html, .md, .json or .txt, or just html, md, json or txt for standard output (repeatable) [default: text on standard output]
    #[arg(long, short = 'o', value_name = "FILE")]
    pub to: Vec<PathBuf>,
    /// Replace existing files
    #[arg(long, short)]
    pub force: bool,
    #[command(flatten)]
    pub common: ShownArgs,
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// A checkpoint folder, a GGUF file or a Hub id
    pub model: String,
    /// The text to continue; - reads it from standard input
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: String,
    /// Put the prompt into the model's chat template, as the user's turn
    #[arg(long)]
    pub chat: bool,
    /// System message for --chat
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// Recognise special tokens in the prompt
    #[arg(long)]
    pub special: bool,
    /// Tokens to generate, at most
    #[arg(short, value_name = "N", default_value_t = 128)]
    pub n: usize,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub hub: HubArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
#[command(mut_arg("temp", |a| a.default_value("0.7")), mut_arg("top_p", |a| a.default_value("0.95")))]
pub struct ChatArgs {
    /// A checkpoint folder, a GGUF file or a Hub id
    pub model: String,
    /// System message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Tokens of an answer, at most
    #[arg(short, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub n: u32,
    /// Tokens of the conversation, at most: beyond it the oldest turns are forgotten [default: the model's context, up to 4096]
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    pub context: Option<usize>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub hub: HubArgs,
    /// Worker threads [default: all cores]
    #[arg(help_heading = "General", short = 't', long, value_name = "N", env = "QUANTIZE_THREADS")]
    pub threads: Option<usize>,
    /// The answers alone, without anything on standard error
    #[arg(help_heading = "General", long, short)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct PullArgs {
    /// Hub id: org/name, or org/name@revision
    pub id: String,
    /// Copy the files here as well as into the cache
    #[arg(long, value_name = "DIR")]
    pub local_dir: Option<PathBuf>,
    #[command(flatten)]
    pub hub: HubArgs,
    #[command(flatten)]
    pub common: ShownArgs,
}

#[derive(Debug, Args)]
pub struct PushArgs {
    /// The release: a folder that `quantize release` made
    pub folder: PathBuf,
    /// The repository on the Hub: org/name. It is made where it is not there
    pub id: String,
    /// Make a private repository, where it is not there
    #[arg(long)]
    pub private: bool,
    /// Open a pull request instead of committing
    #[arg(long)]
    pub create_pr: bool,
    /// The commit's message [default: says what the release is]
    #[arg(long, short, value_name = "TEXT")]
    pub message: Option<String>,
    /// Print what would be sent, and stop
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub hub: HubArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
pub struct TypesArgs {
    /// Only names that contain this
    #[arg(value_name = "TEXT")]
    pub filter: Option<String>,
    /// How the list is printed
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

#[derive(Debug, Args)]
pub struct FamiliesArgs {
    /// How the list is printed
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}
