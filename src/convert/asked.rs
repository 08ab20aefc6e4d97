//! Small parts of a recipe: what rules give to single tensors, types without quantization, folders taken over by their
//! contents.

use crate::packed::{self, Spec};
use crate::quant::{GgmlType, codec};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a folder without quantization is called by.
pub const PLAIN: &str = "safetensors";

/// A type of weights that are not quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Float {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Float {
    /// The type that a tensor has then.
    pub fn stored(self) -> GgmlType {
        match self {
            Float::F32 => GgmlType::F32,
            Float::F16 => GgmlType::F16,
            Float::Bf16 => GgmlType::BF16,
        }
    }
}

/// A folder whose configuration and tokenizer are taken over, by what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Like {
    /// As it was named.
    pub folder: String,
    /// Over the names and contents of its small files, in hexadecimal digits.
    pub sha256: String,
}

/// What a rule gives to a tensor. Some names mean something in files and in folders.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RuleType {
    /// In GGUF files. `None`: the rule is not for them.
    pub file: Option<GgmlType>,
    /// In checkpoint folders. `None`: the rule is not for them.
    pub folder: Option<FolderType>,
}

/// What a rule gives to a module of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderType {
    /// It stays as it is.
    Keep,
    /// It gets the folder's own format, though it would stay by its name.
    Own,
    /// The folder's own format with so many bits.
    Bits(u8),
    /// Another format of the same tool.
    Format(Spec),
}

impl RuleType {
    /// `q6_k`, `fp8`, `w4a16-32g`, `6bit`, `keep`, `quantize`.
    pub fn parse(name: &str) -> Option<Self> {
        let lower = name.to_ascii_lowercase();
        let bits = || lower.strip_suffix("bit")?.trim_end_matches('-').parse().ok().map(FolderType::Bits);
        let folder = match lower.as_str() {
            "keep" => Some(FolderType::Keep),
            "quantize" => Some(FolderType::Own),
            _ => bits().or_else(|| packed::parse(&lower).map(FolderType::Format)),
        };
        let file = GgmlType::from_name(name).filter(|ty| codec(*ty).is_some_and(|c| c.quantize.is_some()));
        (file.is_some() || folder.is_some()).then_some(Self { file, folder })
    }
}

impl From<GgmlType> for RuleType {
    fn from(ty: GgmlType) -> Self {
        Self { file: Some(ty), folder: None }
    }
}

impl std::fmt::Display for RuleType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.file, self.folder) {
            (Some(ty), _) => f.pad(ty.name()),
            (None, Some(FolderType::Keep)) => f.pad("keep"),
            (None, Some(FolderType::Own)) => f.pad("quantize"),
            (None, Some(FolderType::Bits(bits))) => f.pad(&format!("{bits}bit")),
            (None, Some(FolderType::Format(spec))) => {
                f.pad(&format!("{spec}{}", if spec.group_given { "!" } else { "" }))
            }
            (None, None) => f.pad("nothing"),
        }
    }
}

impl Serialize for RuleType {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RuleType {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let name = String::deserialize(d)?;
        let (plain, given) = name.strip_suffix('!').map_or((name.as_str(), false), |name| (name, true));
        let mut ty = RuleType::parse(plain).ok_or_else(|| D::Error::custom(format!("'{name}' is an unknown type")))?;
        if let Some(FolderType::Format(spec)) = &mut ty.folder {
            spec.group_given = given;
        }
        Ok(ty)
    }
}

/// What is wrong with a regular expression, in one line: the last of the parser's, without its drawing.
pub fn regex_fault(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_string()
}
