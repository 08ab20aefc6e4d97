//! What decides the bytes of a conversion's outputs, as one plain value. Everything that identifies a run or its results
//! derives from the whole of it: the record in a GGUF file, the manifest of a folder, the key of a journal. So a setting
//! cannot be forgotten in one of them: the functions that round are given nothing else.
//!
//! What does not decide bytes (threads, memory, where an output lies) is [`crate::Control`]'s.

pub use super::asked::{Float, FolderType, Like, PLAIN, RuleType};
use super::catalogue;
use super::rounding::MOST_STEPS;
pub use super::rounding::{Rounding, Search};
use super::written::{preset_name, source_names, spec_name, type_name};
use crate::calibration::data::{self, Source};
use crate::calibration::imatrix::UnseenExperts;
use crate::error::Hint;
use crate::model::{Mtp, Part};
use crate::packed::{self, Spec};
use crate::quant::GgmlType;
use crate::quant::presets::{self, Preset};
use crate::writer::gguf;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The bytes that transformers puts into one file unless told otherwise.
const MAX_SHARD: u64 = 5_000_000_000;

/// Everything that decides the bytes of a run's outputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// What is made, in this order.
    pub outputs: Vec<Target>,
    /// Which part of the model GGUF files hold.
    pub part: Part,
    /// What becomes of layers that predict more than the next token (GGUF).
    pub mtp: Mtp,
    /// Types of single tensors (GGUF).
    pub types: TypeRules,
    /// Metadata that is set whatever the source says (GGUF).
    pub metadata: Vec<Override>,
    /// llama.cpp's name of the pre-tokenizer, where it is not recognised (GGUF).
    pub pretokenizer: Option<String>,
    /// Whether the source may be quantized already (GGUF).
    pub requantize: bool,
    /// A finished importance matrix (GGUF).
    pub importance: Option<ImportanceFile>,
    /// What an expert gets that saw no token (GGUF).
    pub unseen_experts: UnseenExperts,
    /// What the model is calibrated on. `None`: on nothing, or on the bundled texts where a folder's format has to be.
    pub data: Option<Data>,
    /// How codes are chosen.
    pub rounding: Rounding,
    /// How files are cut into shards.
    pub split: Split,
    /// Devices over which an engine is to split every layer: groups are chosen so that they survive it (folders).
    pub devices: usize,
    /// Whether the outputs record the SHA-256 of the source files.
    pub hash_sources: bool,
}

/// One thing that is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// A GGUF file with the mixture of a preset, by its name (`Q4_K_M`).
    Preset(#[serde(with = "preset_name")] &'static Preset),
    /// A GGUF file whose types are chosen to fit.
    Budget {
        /// What the file is called by: `4.2bpw`, `4.5GB`, `like-Q4_K_M`.
        name: String,
        /// What it has to fit.
        limit: Limit,
    },
    /// A checkpoint folder.
    Folder {
        /// What the folder is called by.
        name: String,
        /// How its modules are stored.
        #[serde(with = "spec_name")]
        format: Spec,
        /// What it may take, where some of its modules are stored otherwise to fit. `None`: the format decides.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<Limit>,
    },
    /// A checkpoint folder without quantization.
    Plain {
        /// What the folder is called by.
        name: String,
        /// The type of all weights. `None`: each its own, and where it is packed that which the configuration names.
        dtype: Option<Float>,
        /// Whose configuration and tokenizer the folder gets (of a GGUF source). `None`: what the metadata tell.
        like: Option<Like>,
    },
}

impl Target {
    /// What the output is called by.
    pub fn name(&self) -> &str {
        match self {
            Target::Preset(preset) => preset.name,
            Target::Budget { name, .. } | Target::Folder { name, .. } | Target::Plain { name, .. } => name,
        }
    }

    /// The budget that types or formats are chosen to fit.
    pub fn limit(&self) -> Option<Limit> {
        match self {
            Target::Budget { limit, .. } => Some(*limit),
            Target::Folder { limit, .. } => *limit,
            Target::Preset(_) | Target::Plain { .. } => None,
        }
    }

    /// Whether it is a GGUF file; a folder otherwise.
    pub fn is_file(&self) -> bool {
        !matches!(self, Target::Folder { .. } | Target::Plain { .. })
    }

    /// Whether it is a GGUF file of F32, F16, BF16 or Q8_0, in which llama.cpp takes what goes beside a model: projectors and
    /// adapters.
    pub fn is_for_companions(&self) -> bool {
        const TYPES: [GgmlType; 4] = [GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0];
        matches!(self, Target::Preset(preset) if TYPES.contains(&preset.default))
    }

    /// What an output of a model is called, unless told otherwise.
    pub fn usual_name(&self, model: &str) -> String {
        let extension = if self.is_file() { ".gguf" } else { "" };
        format!("{model}-{}{extension}", self.name())
    }

    /// A GGUF preset by name (`q4_k_m`, llama.cpp's number `15`), or a folder's format (`gptq-4bit-64g`).
    ///
    /// # Errors
    /// `Request` for a name that is neither.
    pub fn parse(name: &str) -> Result<Self> {
        if name.eq_ignore_ascii_case(PLAIN) {
            return Ok(Target::Plain { name: PLAIN.into(), dtype: None, like: None });
        }
        if let Some(format) = packed::parse(name) {
            return Ok(Target::Folder { name: name.to_ascii_lowercase(), format, limit: None });
        }
        let preset = presets::find(name).ok_or_else(|| {
            let near = catalogue::near(name);
            let instead = match near.is_empty() {
                false => format!("did you mean {}?", near.join(", ")),
                true => format!("the usual ones are {}", catalogue::USUAL),
            };
            Error::request(format!("'{name}' is not a known type or format; {instead}")).hint(Hint::Types)
        })?;
        Ok(Target::Preset(preset))
    }
}

/// What an output with a budget may take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// So many bits per weight, for the data of the tensors.
    BitsPerWeight(f64),
    /// So many bytes, for the whole file, or all files of weights of a folder.
    Bytes(u64),
    /// As many bytes as the file of a preset (GGUF).
    Like(#[serde(with = "preset_name")] &'static Preset),
}

/// Types of single tensors, beyond what a preset says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypeRules {
    /// The first rule whose pattern matches a tensor's name decides.
    pub tensors: Vec<TypeRule>,
    /// Type of `output.weight`.
    #[serde(with = "type_name")]
    pub output: Option<GgmlType>,
    /// Type of the token embeddings.
    #[serde(with = "type_name")]
    pub embedding: Option<GgmlType>,
    /// `output.weight` stays as it is.
    pub keep_output: bool,
    /// One type for all tensors, no mixture.
    pub pure: bool,
}

/// A type for the tensors whose name matches a regular expression (any part of the name, in any case). In GGUF files the
/// name is GGUF's; in folders that of either side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TypeRule {
    /// The regular expression.
    pub pattern: String,
    /// What they get.
    #[serde(rename = "type")]
    pub ty: RuleType,
}

/// A metadata value that is set whatever the source says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// The metadata key.
    pub key: String,
    /// What it is set to.
    pub value: OverrideValue,
}

/// A value to set, of the type that was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverrideValue {
    /// An integer, in the type that the key has elsewhere.
    Int(i64),
    /// A float.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text.
    Str(String),
}

/// A finished importance matrix, by what is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportanceFile {
    /// As it was named.
    pub file: String,
    /// Of the file, in hexadecimal digits.
    pub sha256: String,
}

/// What a model is calibrated on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// They share the tokens equally.
    #[serde(with = "source_names")]
    pub sources: Vec<Source>,
    /// How many tokens, of all sources together.
    pub tokens: usize,
    /// Tokens per window.
    pub window: usize,
    /// Of what is drawn and sampled.
    pub seed: u64,
}

impl Default for Data {
    /// The bundled texts.
    fn default() -> Self {
        let (tokens, window) = (data::DEFAULT_TOKENS, data::DEFAULT_SEQ_LEN);
        Self { sources: vec![Source::Default], tokens, window, seed: 0 }
    }
}

/// When to begin another file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// GGUF: never. Folders: after 5 GB, as transformers does.
    #[default]
    Usual,
    /// Before a file would hold more bytes of tensors (a single larger one still has a file of its own).
    MaxBytes(u64),
    /// After so many tensors (GGUF).
    MaxTensors(usize),
    /// As many files as the source has (GGUF).
    AsSource,
}

impl Split {
    /// For GGUF files made of a source of so many files.
    pub fn of_files(self, source_files: usize) -> gguf::Split {
        match self {
            Split::MaxBytes(bytes) => gguf::Split::MaxBytes(bytes),
            Split::MaxTensors(n) => gguf::Split::MaxTensors(n),
            Split::AsSource if source_files > 1 => gguf::Split::Count(source_files),
            Split::AsSource | Split::Usual => gguf::Split::Never,
        }
    }

    /// Bytes per file of a folder.
    pub fn of_folders(self) -> u64 {
        match self {
            Split::MaxBytes(bytes) => bytes,
            _ => MAX_SHARD,
        }
    }
}

impl Default for Recipe {
    /// Nothing yet: no outputs, everything else as usual.
    fn default() -> Self {
        Self {
            outputs: Vec::new(),
            part: Part::Text,
            mtp: Mtp::Keep,
            types: TypeRules::default(),
            metadata: Vec::new(),
            pretokenizer: None,
            requantize: false,
            importance: None,
            unseen_experts: UnseenExperts::default(),
            data: None,
            rounding: Rounding::default(),
            split: Split::default(),
            devices: 1,
            hash_sources: true,
        }
    }
}

impl Recipe {
    /// The usual recipe for these targets; see [`Target::parse`] for their names.
    ///
    /// # Errors
    /// `Request` for an unknown name, and for one that is there twice.
    ///
    /// ```
    /// use quantize::convert::Recipe;
    ///
    /// let recipe = Recipe::to(["q4_k_m", "gptq-4bit-64g"])?;
    /// assert_eq!(recipe.outputs[0].name(), "Q4_K_M");
    /// # Ok::<(), quantize::Error>(())
    /// ```
    ///
    /// With a type of its own for some tensors, and error feedback over one's own text:
    ///
    /// ```
    /// use quantize::convert::{self, Data, Recipe, Search, Source, TypeRule};
    /// use quantize::{Control, matrix::GgmlType, model::SourceModel};
    ///
    /// let mut recipe = Recipe::to(["q4_0"])?;
    /// recipe.types.tensors = vec![TypeRule { pattern: "ffn_down".into(), ty: GgmlType::Q5_0.into() }];
    /// recipe.rounding.search = Some(Search::Feedback);
    /// let sources = vec![Source::File("calibration/dialogue.txt".into())];
    /// recipe.data = Some(Data { sources, tokens: 2048, window: 64, ..Data::default() });
    ///
    /// let source = SourceModel::open("tests/conformance/llama".as_ref())?;
    /// let mut plan = convert::plan(&source, &recipe)?;
    /// let folder = tempfile::tempdir().unwrap();
    /// plan.place(folder.path())?;
    /// let made = convert::run(&plan, &Control::default(), &())?;
    /// let verdict = made.outputs[0].verdict.as_ref().unwrap();
    /// assert!(verdict.kl[0] <= verdict.rival[0] || !made.outputs[0].ledger.is_empty());
    /// # Ok::<(), quantize::Error>(())
    /// ```
    pub fn to<'a>(targets: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let outputs = targets.into_iter().map(Target::parse).collect::<Result<Vec<_>>>()?;
        let recipe = Self { outputs, ..Self::default() };
        recipe.check()?;
        Ok(recipe)
    }

    /// That the recipe does not contradict itself.
    ///
    /// # Errors
    /// `Request`.
    pub fn check(&self) -> Result<()> {
        let same = |a: &Target, b: &Target| match (a, b) {
            (Target::Folder { format: a, limit: x, .. }, Target::Folder { format: b, limit: y, .. }) => {
                (a, x) == (b, y)
            }
            (Target::Folder { .. }, _) | (_, Target::Folder { .. }) => false,
            (a, b) => a.name() == b.name(),
        };
        for (i, target) in self.outputs.iter().enumerate() {
            if self.outputs[..i].iter().any(|other| same(other, target)) {
                return Err(Error::request(format!("{} is asked for twice", target.name())));
            }
        }
        if self.part == Part::Projector {
            self.check_projector()?;
        }
        let (files, folders) = (self.files().next().is_some(), self.folders().next().is_some());
        for rule in &self.types.tensors {
            let used = (files && rule.ty.file.is_some()) || (folders && rule.ty.folder.is_some());
            if !used {
                let kind = if rule.ty.file.is_some() { "GGUF files" } else { "checkpoint folders" };
                let what = format!("the rule '{}={}' is for {kind}, and none are written", rule.pattern, rule.ty);
                return Err(Error::request(what));
            }
        }
        let share = |name: &str, value: f32, zero: bool| match value <= 1.0 && (value > 0.0 || zero && value == 0.0) {
            true => Ok(()),
            false => Err(Error::request(format!("{name} of {value}: not a share between 0 and 1"))),
        };
        share("damping", self.rounding.damping, false)?;
        share("rho", self.rounding.rho, true)?;
        if self.importance.is_some() && self.data.is_some() {
            return Err(Error::request(
                "an importance matrix and calibration data cannot be combined; the data make a new one",
            ));
        }
        if self.rounding.search == Some(Search::Feedback) && self.data.is_none() && self.files().next().is_some() {
            let what = "error feedback in GGUF files needs calibration data, not a finished importance matrix";
            return Err(Error::request(what).hint(Hint::Calibrate));
        }
        if self.file_feedback() && self.sequential_files() && self.files().count() > 1 {
            return Err(Error::request("sequential error feedback makes one GGUF file at a time"));
        }
        if self.file_feedback() && self.sequential_files() && self.rounding.sort_channels {
            return Err(Error::request("channels are not sorted in sequential error feedback"));
        }
        self.outputs.iter().filter(|t| t.limit().is_some()).try_for_each(|target| self.check_budget(target))?;
        self.check_tuning()
    }

    /// That there is something to tune, and text to tune it by.
    fn check_tuning(&self) -> Result<()> {
        let steps = self.rounding.tune;
        if steps == 0 {
            return Ok(());
        }
        if steps > MOST_STEPS {
            return Err(Error::request(format!("{steps} steps of tuning; at most {} are taken", MOST_STEPS)));
        }
        if !self.folders().any(Spec::is_tunable) {
            let what = "nothing to tune: the formats with scales that can be tuned are mlx of 2 to 8 bits, gptq, awq, w4a16 and w8a16";
            return Err(Error::request(what));
        }
        match self.data {
            Some(_) => Ok(()),
            None => {
                Err(Error::request("scales are tuned on calibration data, and none are named").hint(Hint::Calibrate))
            }
        }
    }

    /// That there is something to choose by, and from.
    fn check_budget(&self, target: &Target) -> Result<()> {
        let name = target.name();
        if self.data.is_none() {
            // Measured: docs/benchmarks.md, "A budget by an importance matrix alone".
            let known = match self.importance {
                Some(_) => "; an importance matrix tells which channels of a tensor count, not which tensors do",
                None => "",
            };
            let what = "types are chosen by what they cost this model, which takes calibration data";
            return Err(Error::request(format!("{name}: {what}{known}")).hint(Hint::Calibrate));
        }
        if self.types.pure && target.is_file() {
            return Err(Error::request(format!("one type for all tensors leaves nothing to choose for {name}")));
        }
        if matches!(target, Target::Folder { limit: Some(Limit::Like(_)), .. }) {
            return Err(Error::request(format!(
                "{name}: a folder is given bits per weight or bytes, not a preset's size"
            )));
        }
        Ok(())
    }

    /// That a projector is asked for in a type that it can have.
    fn check_projector(&self) -> Result<()> {
        if let Some(other) = self.outputs.iter().find(|t| !t.is_for_companions()) {
            let what = format!("a projector in {}: it is written in F16, BF16, Q8_0 or F32", other.name());
            return Err(Error::request(what));
        }
        if self.mtp != Mtp::Keep {
            return Err(Error::request("a projector has no layers that predict tokens"));
        }
        if self.data.is_some() || self.importance.is_some() || self.pretokenizer.is_some() {
            let what = "a projector has no text to be calibrated on, and no tokenizer";
            return Err(Error::request(what));
        }
        Ok(())
    }

    /// What an output of a model is called; that of a part of a model begins with which.
    pub fn usual_place(&self, target: &Target, model: &str) -> String {
        let prefix = match target.is_file() {
            true => self.part.prefix().to_string() + self.mtp.prefix(),
            false => String::new(),
        };
        prefix + &target.usual_name(model)
    }

    /// The GGUF files among the outputs.
    pub fn files(&self) -> impl Iterator<Item = &Target> {
        self.outputs.iter().filter(|t| t.is_file())
    }

    /// The presets that come out as garbage without importance (i-quants below four bits), where there is none.
    pub fn ruinous(&self) -> impl Iterator<Item = &'static Preset> {
        let blind = self.importance.is_none() && self.data.is_none();
        let presets = self.outputs.iter().filter_map(|t| if let Target::Preset(p) = t { Some(*p) } else { None });
        presets.filter(move |p| blind && p.name.starts_with("IQ") && p.default.bits() < 4.0)
    }

    /// The formats of the folders among the outputs.
    pub fn folders(&self) -> impl Iterator<Item = &Spec> {
        self.outputs.iter().filter_map(|t| if let Target::Folder { format, .. } = t { Some(format) } else { None })
    }

    /// Whether GGUF files are rounded with error feedback.
    pub fn file_feedback(&self) -> bool {
        match self.rounding.search {
            Some(search) => search == Search::Feedback,
            None => self.data.is_some(),
        }
    }

    /// Whether GGUF files are rounded layer behind quantized layer.
    pub fn sequential_files(&self) -> bool {
        self.rounding.sequential.unwrap_or(false)
    }

    /// The whole recipe as JSON, fields in the order of the struct.
    pub fn to_json(&self) -> Value {
        // Strings, numbers and lists of them: this cannot fail.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Reads what [`Recipe::to_json`] or an output's record says; what is not there is as usual. Data on the Hub are named, not
    /// fetched.
    ///
    /// # Errors
    /// `BadInput` for unknown fields and values.
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|e| Error::bad_input(format!("not a recipe: {e}")))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::convert) fn full() -> Recipe {
        let rule = TypeRule { pattern: "ffn_down".into(), ty: GgmlType::Q5_0.into() };
        Recipe {
            types: TypeRules { tensors: vec![rule], output: Some(GgmlType::Q8_0), ..TypeRules::default() },
            metadata: vec![Override { key: "a.b".into(), value: OverrideValue::Float(0.5) }],
            pretokenizer: Some("gpt-2".into()),
            data: Some(Data { sources: vec![Source::Default, Source::File("x.txt".into())], ..Data::default() }),
            split: Split::MaxBytes(1000),
            ..Recipe::to(["q4_k_m", "awq-4bit-64g", "fp8"]).unwrap()
        }
    }

    #[test]
    fn comes_back_from_json() {
        let recipe = full();
        assert_eq!(Recipe::from_json(&recipe.to_json().to_string()).unwrap(), recipe);
        let mut json = recipe.to_json();
        json["new"] = 1.into();
        assert!(Recipe::from_json(&json.to_string()).unwrap_err().to_string().contains("unknown field"));
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(Recipe::to(["q4_k_m", "15"]).unwrap_err().to_string().contains("twice"));
        assert!(Recipe::to(["nonsense"]).is_err());
        let refused = |change: &dyn Fn(&mut Recipe)| {
            let mut recipe = full();
            change(&mut recipe);
            assert!(recipe.check().is_err());
        };
        assert!(full().check().is_ok());
        refused(&|r| r.rounding.damping = 0.0);
        refused(&|r| r.rounding.rho = 1.5);
        refused(&|r| (r.data, r.rounding.search) = (None, Some(Search::Feedback)));
        refused(&|r| r.importance = Some(ImportanceFile { file: "i".into(), sha256: String::new() }));
        refused(&|r| {
            r.outputs.push(Target::Budget { name: "4bpw".into(), limit: Limit::BitsPerWeight(4.0) });
            r.data = None;
        });
    }
}
