//! Flags that several commands share.

use super::values::{TYPES, TYPES_AND_FORMATS, limit, size, yes_or_no};
use crate::calibration::data;
use crate::calibration::imatrix::UnseenExperts;
use crate::convert::recipe;
use crate::eval::KvCache;
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnFallback {
    Error,
    #[default]
    Warn,
    Allow,
}

/// What `--mtp` takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum MtpLayers {
    #[default]
    Keep,
    Drop,
    Only,
}

/// What commands understand that work for a while.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "General")]
pub struct CommonArgs {
    /// Worker threads [default: all cores]
    #[arg(short = 't', long, value_name = "N", env = "QUANTIZE_THREADS")]
    pub threads: Option<usize>,
    #[command(flatten)]
    pub shown: ShownArgs,
}

impl std::ops::Deref for CommonArgs {
    type Target = ShownArgs;

    fn deref(&self) -> &ShownArgs {
        &self.shown
    }
}

/// What commands understand that say more than their result.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "General")]
pub struct ShownArgs {
    #[command(flatten)]
    pub result: ResultArgs,
    /// No progress on standard error
    #[arg(long, short)]
    pub quiet: bool,
}

impl std::ops::Deref for ShownArgs {
    type Target = ResultArgs;

    fn deref(&self) -> &ResultArgs {
        &self.result
    }
}

/// What every command understands.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "General")]
pub struct ResultArgs {
    /// How the result is printed on standard output
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// Which types tensors get. Shared by converting and planning.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Types of tensors")]
pub struct TypeArgs {
    /// Target types, comma-separated: q4_k_m, q8_0, f16, ... (any case; llama.cpp's file-type numbers work too)
    #[arg(long = "to", visible_alias = "outtype", value_name = "TYPE", value_delimiter = ',',
          value_parser = TYPES_AND_FORMATS, hide_possible_values = true)]
    pub to: Vec<String>,
    /// Write the projector of a model that sees or hears, llama.cpp's mmproj file, in these types: f16, bf16, q8_0, f32
    #[arg(long, value_name = "TYPE", value_delimiter = ',')]
    pub mmproj: Vec<String>,
    /// Layers that predict more than the next token: keep them, drop them, or write a draft model of them alone
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    pub mtp: MtpLayers,
    /// Type for the tensors whose name matches: REGEX=TYPE (repeatable; the first rule that matches wins). In folders a scheme of
    /// the same tool (fp8, w4a16-32g), a width (6bit) or keep. `hybrid` keeps what mixes tokens in models with recurrent layers in
    /// 8 bits (GGUF)
    #[arg(long, value_name = "REGEX=TYPE")]
    pub tensor_type: Vec<String>,
    /// Quantize the matrices of a folder whose names match, which stay as they are by what they are called (models of no known
    /// family; repeatable)
    #[arg(long, value_name = "REGEX")]
    pub include: Vec<String>,
    /// Leave the modules of a folder whose names match as they are (repeatable)
    #[arg(long, value_name = "REGEX")]
    pub exclude: Vec<String>,
    /// A file of such rules, one a line
    #[arg(long, value_name = "FILE")]
    pub tensor_type_file: Option<PathBuf>,
    /// Type of output.weight
    #[arg(long, value_name = "TYPE", value_parser = TYPES, hide_possible_values = true)]
    pub output_tensor_type: Option<String>,
    /// Type of the token embeddings
    #[arg(long, value_name = "TYPE", value_parser = TYPES, hide_possible_values = true)]
    pub token_embedding_type: Option<String>,
    /// Do not quantize output.weight
    #[arg(long, conflicts_with = "output_tensor_type")]
    pub leave_output_tensor: bool,
    /// One type for all tensors, no mixture rules
    #[arg(long)]
    pub pure: bool,
    /// When a row is not a multiple of the type's block and another type has to be used
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    pub on_fallback: OnFallback,
    /// Accept a GGUF source whose tensors are already quantized (their loss adds up)
    #[arg(long)]
    pub allow_requantize: bool,
    /// Set a metadata key of the output: KEY=TYPE:VALUE, TYPE one of int, float, bool, str (repeatable)
    #[arg(long, value_name = "KEY=TYPE:VALUE")]
    pub override_kv: Vec<String>,
    /// The pre-tokenizer's name in llama.cpp, where it is not recognised
    #[arg(long, value_name = "NAME")]
    pub pretokenizer: Option<String>,
}

/// Which importance matrix weighs the quantization error.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Calibration")]
pub struct ImatrixArgs {
    /// Importance matrix: llama.cpp's GGUF form or the older .dat
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// What an expert gets that saw no token in calibration [default: layer-mean]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub unseen_experts: Option<UnseenExperts>,
}

/// Which texts a model is calibrated on.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Calibration")]
pub struct CalibrationArgs {
    /// Calibration data: default (bundled texts), a text, JSONL or Parquet file, such a file of a data set on the Hub
    /// (hf://datasets/org/name/path[@revision]), self (sampled from the model), tokens:random (repeatable; sources
    /// share the tokens equally)
    #[arg(long, value_name = "SOURCE")]
    pub calibration: Vec<String>,
    /// Tokens to calibrate on, drawn from all over the sources
    #[arg(long, value_name = "N", default_value_t = data::DEFAULT_TOKENS)]
    pub calibration_tokens: usize,
    /// Tokens per calibration window
    #[arg(long, value_name = "TOKENS", default_value_t = data::DEFAULT_SEQ_LEN)]
    pub seq_len: usize,
    /// Seed of what is drawn and sampled for calibration
    #[arg(long = "seed", value_name = "SEED", default_value_t = 0)]
    pub calibration_seed: u64,
}

/// How codes are searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rounding {
    /// Block by block, as the format's own tool does: the bytes of llama-quantize with the same importance matrix, or
    /// each weight to the nearest code
    #[value(alias = "ggml")]
    Nearest,
    /// With error feedback under the whole Hessian (GPTQ): later columns make up for the errors of earlier ones
    #[value(alias = "gptq")]
    Feedback,
}

/// How scales and codes are chosen, in files and folders alike.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Rounding")]
pub struct RoundingArgs {
    /// How codes are chosen [default: feedback where there is calibration data, and in folders where the format has
    /// integers in groups; else nearest]
    #[arg(long, alias = "search", value_enum, value_name = "HOW")]
    pub rounding: Option<Rounding>,
    /// Each layer sees what the quantized ones before it give [default: in folders, not in files]
    #[arg(long, overrides_with = "no_sequential")]
    pub sequential: bool,
    /// Every layer sees the inputs of the original model
    #[arg(long, overrides_with = "sequential")]
    pub no_sequential: bool,
    /// Error feedback in GGUF files: put feed-forward channels into the order of their power. Same size, less loss as a
    /// rule; the model is the same, but adapters (LoRA) made for it no longer fit the file
    #[arg(long, conflicts_with = "sequential")]
    pub sort_channels: bool,
    /// Folders of mlx, gptq, awq and w4a16 with --calibration: tune scales (MLX: and biases) in so many steps by KL divergence from
    /// the source, codes as they are; written is what held-out text likes best
    #[arg(long, value_name = "STEPS")]
    pub tune: Option<NonZeroUsize>,
    /// Error feedback: how far the Hessian's off-diagonals are shrunk, 0 to 1
    #[arg(long, value_name = "RHO", default_value_t = recipe::Rounding::default().rho)]
    pub rho: f32,
    /// Error feedback: share of the mean diagonal that steadies the Hessian; raised by itself where that is too little
    #[arg(long, alias = "damping", value_name = "SHARE", default_value_t = recipe::Rounding::default().damping)]
    pub damp: f32,
}

/// What does not decide bytes, for runs that take long.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct ControlArgs {
    /// Continue an interrupted run; the result is the same, byte for byte
    #[arg(long)]
    pub resume: bool,
    /// Replace what is there
    #[arg(short, long)]
    pub force: bool,
    /// Calibrating: activations beyond this go to a file beside the output
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_memory: Option<u64>,
}

/// How large an output may be, with types chosen to fit: a GGUF file, or each folder that --to names.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Size")]
pub struct BudgetArgs {
    /// Choose types so that the tensors take so many bits per weight: 4.2 (comma-separated; needs --calibration). With --to mlx-4bit,
    /// gptq and the like of the folder's modules, each of what its tool can mix
    #[arg(long, value_name = "BITS", value_delimiter = ',')]
    pub target_bpw: Vec<String>,
    /// Choose types so that the file, or the folder's files of weights, take no more than this: 4.5GB, 900M (comma-separated; needs
    /// --calibration)
    #[arg(long, value_name = "SIZE", value_delimiter = ',',
          conflicts_with_all = ["split_max_size", "split_max_tensors", "keep_split"])]
    pub target_size: Vec<String>,
    /// Choose types so that the GGUF file takes no more than that of this preset: q4_k_m (comma-separated; needs
    /// --calibration)
    #[arg(long, value_name = "TYPE", value_delimiter = ',', value_parser = TYPES, hide_possible_values = true)]
    pub like: Vec<String>,
}

/// The layout that `--to gptq` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// Zero points less one, as AutoGPTQ began it; what every engine reads
    Gptq,
    /// Zero points as they are
    #[value(name = "gptq_v2")]
    GptqV2,
    /// compressed-tensors' pack-quantized
    CompressedTensors,
}

/// What decides a quantized checkpoint folder, beyond the names given to --to.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Checkpoint folders (gptq, awq, fp8, nf4, mlx-4bit, ...)")]
pub struct FolderArgs {
    /// Columns under one scale; -1 for whole rows [default: 128, or the largest of 64 and 32 that divides every row]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub group_size: Option<i64>,
    /// Bits per weight, where the format has a choice
    #[arg(long, value_name = "N")]
    pub bits: Option<u8>,
    /// Symmetric groups, without zero points
    #[arg(long, overrides_with = "asym")]
    pub sym: bool,
    /// Groups with zero points
    #[arg(long)]
    pub asym: bool,
    /// GPTQ: quantize columns by falling activation and store the order (vLLM refuses such files)
    #[arg(long)]
    pub desc_act: bool,
    /// GPTQ: which layout
    #[arg(long, value_enum, value_name = "LAYOUT")]
    pub checkpoint_format: Option<Layout>,
    /// With --desc-act: scales from the groups as they lie in the file
    #[arg(long, requires = "desc_act")]
    pub static_groups: bool,
    /// INT8 with --calibration: SmoothQuant's exponent, which moves large input channels into the weights; 0 for none
    #[arg(long, value_name = "ALPHA", default_value_t = recipe::Rounding::default().smooth)]
    pub smooth: f32,
    /// --to safetensors: the type of all weights [default: each tensor's own; of packed ones what config.json names, or bf16]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<FloatType>,
    /// --to safetensors, from a GGUF file: the folder whose config.json and tokenizer files are taken over
    /// [default: what the file's metadata tell]
    #[arg(long, value_name = "DIR")]
    pub like_config: Option<PathBuf>,
    /// Devices over which an engine is to split every layer; groups are chosen so that they survive it
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub tp: usize,
}

/// What `--dtype` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FloatType {
    Bf16,
    F16,
    F32,
}

/// How the next token is chosen.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Temperature; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    pub temp: f32,
    /// Only the K most likely tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Only the most likely tokens that together reach P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Seed of the sampling
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
}

/// Where Hub ids are resolved.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Hugging Face Hub")]
pub struct HubArgs {
    /// Branch, tag or commit on the Hub
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,
    /// Use only what is already in the cache
    #[arg(long, env = "HF_HUB_OFFLINE", num_args = 0..=1, require_equals = true, default_missing_value = "1",
          default_value = "0", value_name = "YES", hide_default_value = true, hide_possible_values = true, value_parser = yes_or_no)]
    pub offline: bool,
}

/// How activations meet quantized weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Activations {
    /// Exact: the loss measured is the weights' alone
    #[default]
    F32,
    /// Rounded to 8 bits before products with quantized weights, as llama.cpp's CPU kernels do
    Q8,
}

/// The text to measure on, and how it is cut.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Text")]
pub struct TextArgs {
    /// Evaluation text: plain, or chat JSONL (rendered with the model's own template). To compare, repeatable: each text gets
    /// its row, and the worst decides
    #[arg(long, value_name = "FILE")]
    pub text: Vec<PathBuf>,
    /// Tokens per chunk; the second half of each is scored, as llama-perplexity does
    #[arg(long, short = 'c', value_name = "TOKENS", default_value_t = 512)]
    pub ctx: usize,
    /// Move a window of --ctx tokens on by so many and score the new ones, instead
    #[arg(long, value_name = "TOKENS")]
    pub stride: Option<usize>,
    /// Chunks to use [default: all]
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,
    /// Activations in f32, or rounded to 8 bits as llama.cpp's CPU kernels do
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    pub activations: Activations,
    /// Keys and values rounded as an engine keeps them that is told to, llama.cpp or vLLM: q8_0, q4_0, fp8 and the like, or
    /// KEYS,VALUES. To compare, those of the candidates
    #[arg(long, value_name = "TYPE")]
    pub kv_cache: Option<KvCache>,
}

/// Questions with several answers.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Questions")]
pub struct TaskArgs {
    /// Questions with several answers: HellaSwag, WinoGrande, ARC, MMLU or TruthfulQA, as JSON lines or in llama-perplexity's
    /// forms (repeatable). Without --text nothing else is measured
    #[arg(long, value_name = "FILE")]
    pub task: Vec<PathBuf>,
    /// At most so many questions of each file, spread evenly over it [default: all]
    #[arg(long, value_name = "N", requires = "task", value_parser = clap::value_parser!(u32).range(1..))]
    pub questions: Option<u32>,
}

/// Limits that end the run with exit code 6.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Quality gates (exit code 6)")]
pub struct GateArgs {
    /// Fail when the mean KL divergence (nats per token) is above this
    #[arg(long, value_name = "KLD", value_parser = limit)]
    pub max_kld: Option<f64>,
    /// Fail when perplexity rises by more: 3% or 0.03
    #[arg(long, value_name = "SHARE")]
    pub max_ppl_increase: Option<String>,
    /// Fail when the same token comes first less often: 95% or 0.95
    #[arg(long, value_name = "SHARE")]
    pub min_top1: Option<String>,
    /// Fail when the mean cosine of an embedding model's vectors is below this: 0.999
    #[arg(long, value_name = "COSINE", value_parser = limit)]
    pub min_cosine: Option<f64>,
}

impl ValueEnum for UnseenExperts {
    fn value_variants<'a>() -> &'a [Self] {
        &[UnseenExperts::LayerMean, UnseenExperts::Plain, UnseenExperts::Error]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            UnseenExperts::LayerMean => "the mean over the layer's other experts",
            UnseenExperts::Plain => "all channels alike, as llama-quantize does",
            UnseenExperts::Error => "stop",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

/// What `--for` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    Vllm,
    Transformers,
    #[value(name = "llama.cpp", alias = "llamacpp")]
    LlamaCpp,
    #[value(alias = "mlx-lm")]
    Mlx,
}
