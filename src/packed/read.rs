//! Packed modules read back: what a checkpoint's `quantization_config` (or MLX's `quantization`) says, which tensors
//! belong to a module, and their bytes turned into a [`Packed`]. What differs between tools is in the [`Tool`] of each;
//! here is what all have in common. It opens no files.

use super::Loader;
use super::TOOLS;
use super::engines::{Engine, Verdict};
use super::matrix::{Input, Packed};
use super::pieces::{Found, Pieces, StoredPiece};
use super::size_of;
use serde_json::Value;

/// Whose layout a checkpoint has: how it is recognised and read. Widths and blocks come from the shapes wherever those
/// settle them, since configurations of mixed checkpoints are hard to match.
pub struct Tool {
    pub name: &'static str,
    /// `quant_method` of its configurations; `None`: they have no such key.
    pub method: Option<&'static str>,
    /// Whether checkpoints with this configuration can be read; else why not.
    pub admits: fn(&Value) -> Found<()>,
    pub suffixes: Suffixes,
    /// What people call the format, as far as the configuration tells.
    pub label: fn(&Value) -> String,
    /// Which tensor of a module has an entry per group of columns, and along which dimension; `None`: there are no groups.
    pub groups: Option<(&'static str, usize)>,
    /// Rows and columns of a module.
    pub shape: fn(&Read) -> Found<(usize, usize)>,
    /// A module of so many rows and columns.
    pub unpack: fn(&Read, usize, usize) -> Found<Packed>,
    /// What engines do to a module's input.
    pub input: fn(&Read) -> Found<Input>,
    /// Endings of the names of tensors that are for the engine alone: scales of an eight-bit key and value cache.
    pub engine_tensors: &'static [&'static str],
    /// Who loads a folder of it.
    pub loader: Loader,
    /// Whether `config.json` has the object under `quantization` too.
    pub doubles_config: bool,
    /// Files beside `config.json` that hold the object once more.
    pub extra_config_files: &'static [&'static str],
    /// Whether a loader reads modules of both in one folder.
    pub mixes: fn(&super::Spec, &super::Spec) -> bool,
    /// What [`super::Spec::mixture`] answers.
    pub mixture: fn(&super::Spec) -> super::Mixture,
    /// What engines say of a checkpoint with this configuration.
    pub engines: fn(&Value) -> &'static super::Engines,
}

/// The tensors of a module: that which stands for it, the one beside it that shows that the module is packed, those whose
/// bytes are needed to tell its shape, and the others.
pub struct Suffixes {
    pub main: &'static [&'static str],
    pub sign: &'static [&'static str],
    pub shape: &'static [&'static str],
    pub others: &'static [&'static str],
}

/// A module to be read.
pub struct Read<'a> {
    pub config: &'a Value,
    /// Its full name, without a suffix.
    pub module: &'a str,
    pub pieces: Pieces<'a>,
}

impl std::fmt::Debug for Tool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name)
    }
}

/// How the modules of a checkpoint are packed, by its configuration.
#[derive(Clone, Debug)]
pub struct Scheme {
    tool: &'static Tool,
    config: Value,
}

/// Suffixes of the scales that engines keep for an eight-bit key and value cache.
pub(super) const CACHE_SCALES: &[&str] = &[".k_scale", ".v_scale", ".q_scale", ".kv_scale"];

/// A string of a configuration; empty where it is none.
pub(super) fn text<'a>(config: &'a Value, key: &str) -> &'a str {
    config.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A switch of a configuration; off where it is none.
pub(super) fn flag(config: &Value, key: &str) -> bool {
    config.get(key).and_then(Value::as_bool).unwrap_or(false)
}

/// The width that a configuration names.
pub(super) fn bits(config: &Value) -> Found<usize> {
    let bits = config.get("bits").and_then(Value::as_u64).filter(|b| (1..=8).contains(b));
    bits.map(|b| b as usize).ok_or_else(|| "the configuration names no width in bits".into())
}

/// `-4bit`, where the configuration names a width.
pub(super) fn bits_word(config: &Value) -> String {
    bits(config).map_or(String::new(), |b| format!("-{b}bit"))
}

/// Any configuration.
pub(super) fn admits_all(_: &Value) -> Found<()> {
    Ok(())
}

/// Inputs as they are.
pub(super) fn exact(_: &Read) -> Found<Input> {
    Ok(Input::Exact)
}

impl Scheme {
    /// The scheme that `config` (the whole of `config.json`) names; `None` when it names none.
    ///
    /// Errors: why checkpoints of its kind cannot be read.
    pub fn of(config: &Value) -> Found<Option<Self>> {
        let given = |key: &str| config.get(key).filter(|v| !v.is_null());
        let Some(q) = given("quantization_config").or_else(|| given("quantization")) else { return Ok(None) };
        let method = q.get("quant_method").and_then(Value::as_str);
        let tool = TOOLS.iter().find(|tool| tool.method == method);
        let tool = tool.ok_or_else(|| method.unwrap_or("an unnamed method").to_string())?;
        (tool.admits)(q)?;
        Ok(Some(Self { tool, config: q.clone() }))
    }

    /// Which tool's checkpoints these are.
    pub fn name(&self) -> &'static str {
        self.tool.name
    }

    /// Who loads a folder of it.
    pub fn loader(&self) -> Loader {
        self.tool.loader
    }

    /// What people call the format, as far as the configuration tells.
    pub fn label(&self) -> String {
        (self.tool.label)(&self.config)
    }

    /// Which tensor of a module has an entry per group of columns, and along which dimension; `None`: there are no groups.
    pub fn groups(&self) -> Option<(&'static str, usize)> {
        self.tool.groups
    }

    /// The object under `quantization_config`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The kind of folder that engines tell apart: the tool, and its format where one tool has several.
    pub fn kind(&self) -> String {
        match self.tool.name {
            "compressed-tensors" => text(&self.config, "format").to_string(),
            "bitsandbytes" if flag(&self.config, "load_in_8bit") => "bitsandbytes-8bit".to_string(),
            "bitsandbytes" => "bitsandbytes-4bit".to_string(),
            name => name.to_string(),
        }
    }

    /// What `engine` says of such checkpoints, before it looks at shapes.
    pub fn verdict(&self, engine: Engine, tp: usize) -> Verdict {
        (self.tool.engines)(&self.config).ask(engine, &self.config, tp)
    }

    /// Takes a tensor's name apart into module and suffix, if packed modules have tensors of that suffix.
    pub fn split<'a>(&self, name: &'a str) -> Option<(&'a str, &'a str)> {
        let Suffixes { main, sign, shape, others } = &self.tool.suffixes;
        let mut all = others.iter().chain(*shape).chain(*sign).chain(*main);
        all.find_map(|suffix| Some((name.strip_suffix(suffix)?.strip_suffix('.')?, suffix.len())))
            .map(|(module, len)| (module, &name[name.len() - len..]))
    }

    /// The suffix of the tensor that stands for a module with these tensors; `None` when the module is not packed.
    pub fn main(&self, suffixes: &[&str]) -> Option<&'static str> {
        let known = &self.tool.suffixes;
        let main = known.main.iter().find(|main| suffixes.contains(main))?;
        known.sign.iter().any(|sign| suffixes.contains(sign)).then_some(*main)
    }

    /// Whether the bytes of this tensor are needed to tell the module's shape.
    pub fn tells_shape(&self, suffix: &str) -> bool {
        self.tool.suffixes.shape.contains(&suffix)
    }

    /// Tensors that are for the engine alone.
    pub fn is_for_the_engine(&self, name: &str) -> bool {
        self.tool.engine_tensors.iter().any(|s| name.ends_with(s))
    }

    /// Rows and columns of the module. Only the tensors that [`Scheme::tells_shape`] need their bytes.
    pub fn shape(&self, module: &str, pieces: &[StoredPiece]) -> Found<(usize, usize)> {
        (self.tool.shape)(&Read { config: &self.config, module, pieces: Pieces(pieces) })
    }

    /// Reads a module.
    pub fn unpack(&self, module: &str, pieces: Vec<StoredPiece>) -> Found<Packed> {
        let (n, k) = self.shape(module, &pieces)?;
        let size = n.checked_mul(k).filter(|size| *size > 0 && *size < usize::MAX / 64);
        size.ok_or_else(|| format!("{n} x {k} is not the size of a matrix"))?;
        let bytes = |p: &StoredPiece| p.shape.iter().product::<usize>() * size_of(p.dtype);
        if let Some(piece) = pieces.iter().find(|p| p.data.len() != bytes(p)) {
            return Err(format!("'{}' holds {} bytes for {:?}", piece.suffix, piece.data.len(), piece.shape));
        }
        let read = Read { config: &self.config, module, pieces: Pieces(&pieces) };
        let mut packed = (self.tool.unpack)(&read, n, k)?;
        packed.input = (self.tool.input)(&read)?;
        if !packed.is_sound() {
            return Err("its tensors do not fit together".into());
        }
        if let Some(room) = packed.input.room().filter(|room| !room.is_finite() || *room <= 0.0) {
            return Err(format!("has a scale that gives its input room for {room}"));
        }
        if let Some(bad) = packed.first_bad_scale() {
            return Err(format!("has a scale that is {bad}"));
        }
        Ok(packed)
    }
}
