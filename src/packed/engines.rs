//! What engines have against a format as such: what they refuse, what is good to know, and which shapes they want looked
//! at. The rules are those of the releases named at [`Engine::release`]. The look at shapes and files needs a checkpoint
//! and is done where those are known.

mod experts;

pub use experts::{MlxNames, is_absorbed, loads_its_own_alone};
use serde_json::Value;

/// A program that loads checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// vLLM, on a GPU or a CPU.
    Vllm,
    /// transformers, with the package of the format.
    Transformers,
    /// llama.cpp, and what is built on it.
    LlamaCpp,
    /// mlx-lm.
    Mlx,
}

impl Engine {
    /// All of them.
    pub const ALL: [Engine; 4] = [Engine::Vllm, Engine::Transformers, Engine::LlamaCpp, Engine::Mlx];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Vllm => "vllm",
            Engine::Transformers => "transformers",
            Engine::LlamaCpp => "llama.cpp",
            Engine::Mlx => "mlx",
        }
    }

    /// The release whose rules these are.
    pub fn release(self) -> &'static str {
        match self {
            Engine::Vllm => "vLLM 0.32",
            Engine::Transformers => "transformers 5.23",
            Engine::LlamaCpp => "llama.cpp of November 2026",
            Engine::Mlx => "mlx-lm 0.32",
        }
    }
}

/// A look at every layer that an engine calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Rows and columns must be multiples of 32: the kernels for integers work on 32 x 32.
    WholeWords,
    /// Groups of 32, 64 and 128 only, or whole rows.
    UsualGroups,
    /// The same for MLX's kernels, which have no whole rows.
    MlxGroups,
    /// Integers of eight bits run on GPUs only.
    EightBits,
    /// Modules that run as one matrix share one global scale.
    GlobalScales,
    /// Blocks of FP8 are whole on every device, where layers are split over devices.
    SplitBlocks,
    /// The same on one device.
    WholeBlocks,
    /// There is no `g_idx`.
    NoOrder,
    /// `config.json` has the object under `quantization`.
    OwnObject,
}

/// What an engine says of a format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What it says, in order, and whether it refuses to load the folder for it.
    pub says: Vec<(String, bool)>,
    /// What to look at besides.
    pub checks: &'static [Check],
    /// Whether there is no use in looking further.
    pub is_final: bool,
    /// A type or format that the engine takes instead.
    pub instead: Option<&'static str>,
}

impl Verdict {
    pub(super) fn checking(checks: &'static [Check]) -> Self {
        Verdict { checks, ..Verdict::default() }
    }

    /// A refusal of everything in the format.
    pub(super) fn refusal(what: impl Into<String>) -> Self {
        Verdict { is_final: true, ..Verdict::default() }.refuse(true, what)
    }

    /// A refusal that this type or format would not meet.
    pub(super) fn or(self, instead: &'static str) -> Self {
        Verdict { instead: Some(instead), ..self }
    }

    pub(super) fn refuse(mut self, when: bool, what: impl Into<String>) -> Self {
        self.says.extend(when.then(|| (what.into(), true)));
        self
    }

    pub(super) fn note(mut self, when: bool, what: impl Into<String>) -> Self {
        self.says.extend(when.then(|| (what.into(), false)));
        self
    }

    /// Whether the engine refuses the format whatever the model.
    pub fn refuses(&self) -> bool {
        self.says.iter().any(|(_, refused)| *refused)
    }
}

/// The verdicts on a checkpoint with this configuration (`quantization_config`, or MLX's `quantization`), every layer split
/// over so many devices. llama.cpp is not asked: it takes no folders.
pub struct Engines {
    pub vllm: fn(&Value, usize) -> Verdict,
    pub transformers: fn(&Value) -> Verdict,
    pub mlx: fn(&Value) -> Verdict,
}

/// What engines say of checkpoints that are not packed.
pub static UNPACKED: Engines =
    Engines { vllm: |_, _| Verdict::default(), transformers: |_| Verdict::default(), mlx: |_| Verdict::default() };

impl Engines {
    pub fn ask(&self, engine: Engine, config: &Value, tp: usize) -> Verdict {
        match engine {
            Engine::Vllm => (self.vllm)(config, tp),
            Engine::Transformers => (self.transformers)(config),
            Engine::LlamaCpp => Verdict::refusal("it runs GGUF files, not folders").or("q4_k_m"),
            Engine::Mlx => (self.mlx)(config),
        }
    }
}

/// MLX's refusal of a tool's checkpoints.
pub(super) fn no_mlx(tool: &str) -> Verdict {
    Verdict::refusal(format!("it does not read {tool} checkpoints")).or("mlx-4bit")
}

/// MLX's verdict on GPTQ and AWQ.
pub(super) fn mlx_on_integers(config: &Value) -> Verdict {
    let four = config.get("bits").and_then(Value::as_i64) == Some(4);
    Verdict::checking(&[Check::NoOrder]).refuse(!four, "of GPTQ and AWQ it takes 4 bits only")
}

/// What mlx-lm wants of the configuration of a model type.
#[derive(Clone, Debug, PartialEq)]
pub struct MlxFamily {
    /// The keys without which it makes no model.
    pub needed: Vec<&'static str>,
    /// The base of the rotary frequencies where the configuration has no `rope_theta`; `None`: it reads another key, or
    /// needs this one.
    pub base: Option<f64>,
    /// The names under which it reads the number of experts.
    pub experts: &'static str,
}

impl MlxFamily {
    /// What it has for a model type.
    pub fn of(model_type: &str) -> Option<Self> {
        const TABLE: &str = include_str!("engines/mlx_lm.tsv");
        let line = TABLE.lines().find(|line| line.split('\t').next() == Some(model_type))?;
        let mut cells = line.split('\t').skip(1);
        let needed = cells.next().unwrap_or_default();
        if let Some(other) = needed.strip_prefix("alias ") {
            return Self::of(other);
        }
        let base = cells.next().and_then(|base| base.parse().ok());
        let experts = cells.next().unwrap_or_default();
        Some(Self { needed: needed.split_whitespace().collect(), base, experts })
    }

    /// Whether it makes no model without this key.
    pub fn needs(&self, key: &str) -> bool {
        self.needed.contains(&key)
    }
}
