//! The command line: clap types, one subcommand per file. This is the only layer that reads flags and the environment;
//! what lies below is called with values that were checked here.

/// A line on standard error; see [`say`].
macro_rules! say {
    ($($arg:tt)*) => { $crate::cli::say(&format!($($arg)*)) };
}

mod args;
mod calibrate;
mod convert;
mod eval;
mod generate;
mod idle;
mod inspect;
mod options;
mod places;
mod plan;
mod plan_text;
mod progress;
mod pull;
mod recipe;
mod turns;
mod verify;
mod words;

use crate::calibration::data;
use crate::{Error, Result, escape};
pub use args::*;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::num::NonZeroUsize;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  quantize --to q4_k_m ./Llama-3.1-8B                 write Llama-3.1-8B-Q4_K_M.gguf
  quantize --to q4_k_m,q8_0 ./model -o out/           two files from one read of the checkpoint
  quantize plan ./model --to q4_k_m --device 24GB     sizes, fallbacks and what fits, before a weight is read
  quantize --to q4_k_m ./model --tensor-type 'ffn_down=q6_k' --output-tensor-type q8_0
  quantize --to q8_0 HuggingFaceTB/SmolLM2-135M       fetch from the Hub first, with resume
  quantize compare ./model a-Q4_K_M.gguf b.gguf --text eval.txt --report report.html
  quantize --to q4_k_m ./model --text eval.txt --max-kld 0.05     convert, measure, and fail if it is worse
  quantize generate a-Q4_K_M.gguf --chat --prompt 'Why is the sky blue?'
  quantize calibrate ./model -o imatrix.gguf          importance matrix from the bundled texts, as llama-imatrix makes
  quantize --to iq2_m ./model --imatrix imatrix.gguf  use one; --calibration default makes one in the same run
  quantize --target-size 4.5GB ./model --calibration default      types chosen to fit, by what they cost this model
  quantize inspect model.gguf                         metadata and tensors
  quantize verify model.gguf --source ./model         derive every tensor again and compare

Exit codes: 0 done, 1 internal error, 2 wrong usage, 3 bad input, 4 unsupported model or type,
5 disk or network, 6 a quality gate failed, 75 interrupted.";

/// Turns a checkpoint into the quantized artifacts people run, and measures what was lost.
#[derive(Debug, Parser)]
#[command(name = "quantize", version, about, after_help = EXAMPLES, args_conflicts_with_subcommands = true,
          arg_required_else_help = true, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    convert: ConvertArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what a conversion would write: per-tensor types, exact sizes, memory, disk, and which devices it fits
    Plan(PlanArgs),
    /// Show the metadata and the tensors of a checkpoint or GGUF file
    Inspect(InspectArgs),
    /// Check a GGUF file, and derive its tensors again from the source it claims
    Verify(VerifyArgs),
    /// Download what a conversion needs from the Hub, with resume
    Pull(PullArgs),
    /// Make an importance matrix: show the model texts, and record what its layers see
    Calibrate(CalibrateArgs),
    /// Measure the perplexity of a model on a text
    Eval(EvalArgs),
    /// Compare artifacts with the model they were made from: KL divergence, perplexity, top-1 agreement, with error bars
    Compare(CompareArgs),
    /// Render a saved JSON report as HTML, Markdown or text
    Report(ReportArgs),
    /// Continue a prompt, or answer it with --chat
    Generate(GenerateArgs),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// Print the manual page (roff)
    Man,
}

#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// The checkpoint: a folder, a .safetensors or .gguf file, or a Hub id (org/name). llama-quantize's order
    /// `IN.gguf [OUT.gguf] TYPE [THREADS]` works too
    #[arg(value_name = "MODEL", num_args = 1..=4)]
    pub model: Vec<String>,
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
    #[arg(long, value_name = "FILE", requires = "calibration")]
    pub save_imatrix: Option<PathBuf>,
    /// Output file or folder [default: MODEL-TYPE.gguf in the current folder]
    #[arg(short, long, visible_alias = "outfile", value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Print the plan and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Begin another file after so many bytes: 4G, 500M (decimal, as in llama.cpp) [default: GGUF never, folders 5G]
    #[arg(long, alias = "max-shard-size", value_name = "SIZE", value_parser = options::size, conflicts_with = "keep_split")]
    pub split_max_size: Option<u64>,
    /// GGUF: begin a new shard after so many tensors
    #[arg(long, value_name = "N", conflicts_with_all = ["split_max_size", "keep_split"])]
    pub split_max_tensors: Option<NonZeroUsize>,
    /// GGUF: as many shards as the source has files
    #[arg(long)]
    pub keep_split: bool,
    /// Also write an Ollama Modelfile beside each GGUF file
    #[arg(long)]
    pub modelfile: bool,
    /// Do not hash the source files (saves one more read of a checkpoint larger than the memory)
    #[arg(long)]
    pub no_source_hash: bool,
    /// After converting, compare the artifacts with the source on this text
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Chunks of the text to use [default: all]
    #[arg(long, value_name = "N", requires = "text")]
    pub chunks: Option<usize>,
    /// Tokens per chunk
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub ctx: usize,
    /// Write the report of that comparison: .html, .md, .json or .txt (repeatable)
    #[arg(long, value_name = "FILE", requires = "text")]
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
    /// Memory of the device it should fit, e.g. 24GB (repeatable) [default: a built-in table]
    #[arg(long, value_name = "SIZE")]
    pub device: Vec<String>,
    /// Tokens of context to leave room for
    #[arg(long, value_name = "TOKENS", default_value_t = 8192)]
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
    /// A GGUF file, a checkpoint folder or a .safetensors file
    pub file: PathBuf,
    /// Print array values whole
    #[arg(long)]
    pub full: bool,
    /// Only metadata keys and tensor names that match
    #[arg(long, value_name = "REGEX")]
    pub filter: Option<String>,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The GGUF file (the first shard of a split one stands for all), or a checkpoint folder
    pub file: PathBuf,
    /// GGUF: the checkpoint it was made from; every tensor is derived again and compared
    #[arg(long, value_name = "MODEL")]
    pub source: Option<PathBuf>,
    /// Say what this engine would refuse, and why (repeatable)
    #[arg(long = "for", value_enum, value_name = "ENGINE", value_delimiter = ',')]
    pub engines: Vec<verify::EngineName>,
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
    #[command(flatten)]
    pub text: TextArgs,
    /// Store the logits in llama-perplexity's --kl-divergence-base format
    #[arg(long, value_name = "FILE")]
    pub save_logits: Option<PathBuf>,
    /// Write the report: .html, .md, .json or .txt (repeatable)
    #[arg(long, value_name = "FILE")]
    pub report: Vec<PathBuf>,
    /// Replace existing reports
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The base, then its quantizations: folders or GGUF files. The base may be a --kl-divergence-base file
    #[arg(value_name = "MODEL", num_args = 2.., required = true)]
    pub models: Vec<PathBuf>,
    #[command(flatten)]
    pub text: TextArgs,
    /// Also measure the loss of each group of tensors quantized alone (loads the base twice)
    #[arg(long)]
    pub ablate: bool,
    /// Memory to keep to: candidates that do not fit together are loaded in turn [default: most of what is free]
    #[arg(long, value_name = "SIZE", value_parser = options::size)]
    pub max_memory: Option<u64>,
    /// Chunks for --ablate
    #[arg(long, value_name = "N", default_value_t = 8, requires = "ablate")]
    pub ablate_chunks: usize,
    #[command(flatten)]
    pub gates: GateArgs,
    /// Write the report: .html, .md, .json or .txt (repeatable)
    #[arg(long, value_name = "FILE")]
    pub report: Vec<PathBuf>,
    /// Replace existing reports
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// A report saved as JSON
    pub file: PathBuf,
    /// Where to render it: .html, .md, .json or .txt (repeatable) [default: text on standard output]
    #[arg(long, short = 'o', value_name = "FILE")]
    pub to: Vec<PathBuf>,
    /// Replace existing files
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// A checkpoint folder, a GGUF file or a Hub id
    pub model: String,
    /// The text to continue
    #[arg(long, short, value_name = "TEXT")]
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
    /// Temperature; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temp: f32,
    /// Only the K most likely tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Only the most likely tokens that together reach P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Seed of the sampling
    #[arg(long)]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub hub: HubArgs,
    #[command(flatten)]
    pub common: CommonArgs,
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
    pub common: CommonArgs,
}

/// Parses the command line and runs it; returns the exit code.
pub fn main() -> u8 {
    let matches = Cli::command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    match run(cli, &matches) {
        Ok(()) => 0,
        Err(e) => {
            progress::clear();
            say!("error: {}", words::explained(&e));
            e.exit_code()
        }
    }
}

fn run(cli: Cli, matches: &clap::ArgMatches) -> Result<()> {
    options::instruction_set()?;
    match cli.command {
        None => convert::run(cli.convert, &idle::given(matches)),
        Some(Command::Plan(args)) => plan::run(args, &matches.subcommand().map_or(Vec::new(), |(_, m)| idle::given(m))),
        Some(Command::Inspect(args)) => inspect::run(args),
        Some(Command::Verify(args)) => verify::run(args),
        Some(Command::Pull(args)) => pull::run(args),
        Some(Command::Calibrate(args)) => calibrate::run(args),
        Some(Command::Eval(args)) => eval::eval(args),
        Some(Command::Compare(args)) => eval::compare(args),
        Some(Command::Report(args)) => eval::render(args),
        Some(Command::Generate(args)) => generate::run(args),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "quantize", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Some(Command::Man) => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
            rendered.map_err(|e| Error::io("manual page", e))?;
            print(&String::from_utf8_lossy(&page))
        }
    }
}

/// A message on standard error. Where that cannot be written (a full device), nobody is there to be told.
pub(crate) fn say(message: &str) {
    say_block(&(escape::message(message).into_owned() + "\n"));
}

/// The same for several lines.
pub(crate) fn say_block(text: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(escape::block(text).as_bytes());
}

/// Writes lines to standard output.
pub(crate) fn print(text: &str) -> Result<()> {
    stream(|out| out.write_all(escape::block(text).as_bytes()))
}

/// The same for a JSON document, which is written as it goes.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    stream(|out| {
        serde_json::to_writer_pretty(JsonText(out), value)?;
        out.write_all(b"\n")
    })
}

/// Hands standard output to `write`, which escapes what comes from files. A reader that went away (`| head`) is no error.
pub(crate) fn stream(write: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("standard output", e)),
        _ => Ok(()),
    }
}

/// Escapes the JSON that passes through; see [`escape::json`]. What is written at once ends at a character's end, as
/// serde_json keeps to.
pub(crate) struct JsonText<'a>(pub &'a mut dyn std::io::Write);

impl std::io::Write for JsonText<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.0.write_all(escape::json(text).as_bytes())?,
            Err(_) => self.0.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        super::Cli::command().debug_assert();
    }
}
