//! Packed modules read back: what a checkpoint's `quantization_config` (or MLX's `quantization`) says, which tensors
//! belong to a module, and their bytes turned into a [`Packed`]. Widths and blocks come from the shapes wherever those
//! settle them, since configurations of mixed checkpoints are hard to match. It opens no files.

use super::minifloat::e4m3;
use super::packed::{Blocks, Coding, Input, Packed};
use super::size_of;
use super::unpack::*;
use crate::quant::GgmlType;
use crate::source::Dtype;
use serde_json::Value;

/// A tensor of a packed module with its bytes.
#[derive(Clone, Debug)]
pub struct StoredPiece {
    pub suffix: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

/// How the modules of a checkpoint are packed, by its configuration.
#[derive(Clone, Debug)]
pub struct Scheme {
    kind: Kind,
    config: Value,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Gptq { minus_one: bool },
    Awq,
    CompressedTensors,
    Fp8,
    BitsAndBytes,
    Mlx,
}

/// The tensor that stands for its module, the one beside it that shows that the module is packed, and the others.
struct Suffixes {
    main: &'static [&'static str],
    sign: &'static [&'static str],
    others: &'static [&'static str],
}

impl Kind {
    fn suffixes(self) -> Suffixes {
        match self {
            Kind::Gptq { .. } | Kind::Awq => {
                Suffixes { main: &["qweight"], sign: &["scales"], others: &["qzeros", "g_idx"] }
            }
            Kind::CompressedTensors => Suffixes {
                main: &["weight_packed", "weight"],
                sign: &["weight_scale"],
                others: &[
                    "weight_shape",
                    "weight_zero_point",
                    "weight_global_scale",
                    "weight_g_idx",
                    "input_scale",
                    "input_global_scale",
                ],
            },
            Kind::Fp8 => Suffixes {
                main: &["weight"],
                sign: &["weight_scale_inv", "weight_scale"],
                others: &["input_scale", "activation_scale"],
            },
            Kind::BitsAndBytes => Suffixes {
                main: &["weight"],
                sign: &["weight.absmax", "SCB"],
                others: &[
                    "weight.quant_map",
                    "weight.nested_absmax",
                    "weight.nested_quant_map",
                    "weight.quant_state.bitsandbytes__nf4",
                    "weight.quant_state.bitsandbytes__fp4",
                    "weight_format",
                ],
            },
            Kind::Mlx => Suffixes { main: &["weight"], sign: &["scales"], others: &["biases"] },
        }
    }
}

impl Scheme {
    /// The scheme that `config` (the whole of `config.json`) names; `None` when it names none.
    ///
    /// Errors: why checkpoints of its kind cannot be read.
    pub fn of(config: &Value) -> Found<Option<Self>> {
        let given = |key: &str| config.get(key).filter(|v| !v.is_null());
        let Some(q) = given("quantization_config").or_else(|| given("quantization")) else { return Ok(None) };
        let text = |key: &str| q.get(key).and_then(Value::as_str);
        let kind = match text("quant_method") {
            Some("gptq") => match text("checkpoint_format").or(text("format")).unwrap_or("gptq") {
                "gptq" => Kind::Gptq { minus_one: true },
                "gptq_v2" => Kind::Gptq { minus_one: false },
                other => return Err(format!("gptq in the layout '{other}'; gptq and gptq_v2 are read")),
            },
            Some("awq") => match text("version").unwrap_or("gemm").to_ascii_lowercase().as_str() {
                "gemm" => Kind::Awq,
                other => return Err(format!("awq in the layout '{other}'; gemm is read")),
            },
            Some("compressed-tensors") => {
                let status = text("quantization_status").unwrap_or("compressed");
                if status != "compressed" {
                    return Err(format!("compressed-tensors with the status '{status}'; compressed is read"));
                }
                let sparsity = q.get("sparsity_config").and_then(|s| s.get("format")).and_then(Value::as_str);
                if let Some(format) = sparsity.filter(|f| *f != "dense") {
                    return Err(format!("compressed-tensors with sparsity '{format}'"));
                }
                if q.get("transform_config").is_some_and(|t| t.as_object().is_some_and(|t| !t.is_empty())) {
                    return Err("compressed-tensors with transforms of the activations".into());
                }
                Kind::CompressedTensors
            }
            Some("fp8") => Kind::Fp8,
            Some("bitsandbytes") => Kind::BitsAndBytes,
            Some(other) => return Err(other.to_string()),
            None if q.get("group_size").is_some() && q.get("bits").is_some() => Kind::Mlx,
            None => return Err("an unnamed method".into()),
        };
        Ok(Some(Self { kind, config: q.clone() }))
    }

    /// Which tool's checkpoints these are.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Gptq { .. } => "gptq",
            Kind::Awq => "awq",
            Kind::CompressedTensors => "compressed-tensors",
            Kind::Fp8 => "fp8",
            Kind::BitsAndBytes => "bitsandbytes",
            Kind::Mlx => "mlx",
        }
    }

    /// What people call the format, as far as the configuration tells.
    pub fn label(&self) -> String {
        let weights = |key: &str| {
            let groups = self.config.get("config_groups").and_then(Value::as_object);
            groups.and_then(|g| g.values().next()?.get("weights")?.get(key)?.as_u64())
        };
        let inputs = || {
            let groups = self.config.get("config_groups").and_then(Value::as_object);
            groups.is_some_and(|g| g.values().any(|g| g.get("input_activations").is_some_and(|a| !a.is_null())))
        };
        let text = |key: &str| self.config.get(key).and_then(Value::as_str).unwrap_or_default();
        let yes = |key: &str| self.config.get(key).and_then(Value::as_bool).unwrap_or(false);
        let bits = self.bits().map_or(String::new(), |b| format!("-{b}bit"));
        match self.kind {
            Kind::Gptq { .. } | Kind::Awq => format!("{}{bits}", self.name()),
            Kind::CompressedTensors => match text("format") {
                "pack-quantized" => format!("w{}a16", weights("num_bits").unwrap_or(4)),
                "float-quantized" => "fp8".into(),
                "int-quantized" => "int8".into(),
                "nvfp4-pack-quantized" => if inputs() { "nvfp4" } else { "nvfp4a16" }.into(),
                "mxfp4-pack-quantized" => "mxfp4".into(),
                _ => self.name().into(),
            },
            Kind::Fp8 => "fp8".into(),
            Kind::BitsAndBytes if yes("load_in_8bit") => "bnb-int8".into(),
            Kind::BitsAndBytes => {
                format!("{}{}", text("bnb_4bit_quant_type"), if yes("bnb_4bit_use_double_quant") { "-dq" } else { "" })
            }
            Kind::Mlx => match text("mode") {
                "" | "affine" => format!("mlx{bits}"),
                mode => format!("mlx-{mode}"),
            },
        }
    }

    /// Takes a tensor's name apart into module and suffix, if packed modules have tensors of that suffix.
    pub fn split<'a>(&self, name: &'a str) -> Option<(&'a str, &'a str)> {
        let suffixes = self.kind.suffixes();
        let mut all = suffixes.others.iter().chain(suffixes.sign).chain(suffixes.main);
        all.find_map(|suffix| Some((name.strip_suffix(suffix)?.strip_suffix('.')?, suffix.len())))
            .map(|(module, len)| (module, &name[name.len() - len..]))
    }

    /// The suffix of the tensor that stands for a module with these tensors; `None` when the module is not packed.
    pub fn main(&self, suffixes: &[&str]) -> Option<&'static str> {
        let known = self.kind.suffixes();
        let main = known.main.iter().find(|main| suffixes.contains(main))?;
        known.sign.iter().any(|sign| suffixes.contains(sign)).then_some(*main)
    }

    /// Whether the bytes of this tensor are needed to tell the module's shape.
    pub fn tells_shape(&self, suffix: &str) -> bool {
        suffix == "weight_shape" || suffix.starts_with("weight.quant_state.")
    }

    /// Tensors that are for the engine alone: scales of an eight-bit key and value cache.
    pub fn is_for_the_engine(&self, name: &str) -> bool {
        matches!(self.kind, Kind::CompressedTensors | Kind::Fp8)
            && [".k_scale", ".v_scale", ".q_scale", ".kv_scale"].iter().any(|s| name.ends_with(s))
    }

    /// Rows and columns of the module. Only the tensors that [`Scheme::tells_shape`] need their bytes.
    pub fn shape(&self, module: &str, pieces: &[StoredPiece]) -> Found<(usize, usize)> {
        let p = Pieces(pieces);
        match self.kind {
            Kind::Gptq { .. } => {
                let [words, n] = p.matrix("qweight")?;
                match p.find("g_idx") {
                    Some(g_idx) => Ok((n, g_idx.shape.iter().product())),
                    None => Ok((n, words * 32 / self.bits()?)),
                }
            }
            Kind::Awq => p.matrix("qweight").map(|[k, words]| (words * 8, k)),
            Kind::CompressedTensors => match p.find("weight_packed") {
                Some(packed) if packed.dtype == Dtype::U8 => p.matrix("weight_packed").map(|[n, half]| (n, 2 * half)),
                Some(_) => {
                    let shape = p.get("weight_shape")?;
                    let dims: Vec<usize> = integers(shape)?.iter().map(|d| usize::try_from(*d).unwrap_or(0)).collect();
                    match dims[..] {
                        [n, k] if n > 0 && k > 0 => Ok((n, k)),
                        _ => Err(format!("'weight_shape' is {dims:?}")),
                    }
                }
                None => p.matrix("weight").map(|[n, k]| (n, k)),
            },
            Kind::Fp8 => p.matrix("weight").map(|[n, k]| (n, k)),
            Kind::BitsAndBytes => match p.find("SCB") {
                Some(_) => p.matrix("weight").map(|[n, k]| (n, k)),
                None => {
                    let state = bnb_state(&p)?;
                    let dims = state.get("shape").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                    match dims.iter().map(|d| d.as_u64().and_then(|d| usize::try_from(d).ok())).collect::<Vec<_>>()[..]
                    {
                        [Some(n), Some(k)] if n > 0 && k > 0 => Ok((n, k)),
                        _ => Err("the quantization state names no shape".into()),
                    }
                }
            },
            Kind::Mlx => {
                let [n, groups] = p.matrix("scales")?;
                Ok((n, groups * self.mlx_group(module)?))
            }
        }
    }

    /// Reads a module.
    pub fn unpack(&self, module: &str, pieces: Vec<StoredPiece>) -> Found<Packed> {
        let (n, k) = self.shape(module, &pieces)?;
        let size = n.checked_mul(k).filter(|size| *size > 0 && *size < usize::MAX / 64);
        size.ok_or_else(|| format!("{n} x {k} is no size of a matrix"))?;
        let bytes = |p: &StoredPiece| p.shape.iter().product::<usize>() * size_of(p.dtype);
        if let Some(piece) = pieces.iter().find(|p| p.data.len() != bytes(p)) {
            return Err(format!("'{}' holds {} bytes for {:?}", piece.suffix, piece.data.len(), piece.shape));
        }
        let p = Pieces(&pieces);
        let mut packed = match self.kind {
            Kind::Gptq { minus_one } => gptq(&p, n, k, minus_one)?,
            Kind::Awq => awq(&p, n, k)?,
            Kind::CompressedTensors => match p.find("weight_packed") {
                Some(packed) if packed.dtype == Dtype::U8 => four_bit_floats(&p, n, k)?,
                Some(_) => pack_quantized(&p, n, k)?,
                None => self.eight_bits(module, &p, n, k)?,
            },
            Kind::Fp8 => self.eight_bits(module, &p, n, k)?,
            Kind::BitsAndBytes if p.find("SCB").is_some() => bnb_int8(&p, n, k)?,
            Kind::BitsAndBytes => bnb_four_bits(&p, n, k)?,
            Kind::Mlx => mlx(&p, n, k)?,
        };
        packed.input = self.input(module, &p)?;
        if !packed.is_sound() {
            return Err("its tensors do not fit together".into());
        }
        if let Some(bad) = packed.first_bad_scale() {
            return Err(format!("has a scale that is {bad}"));
        }
        Ok(packed)
    }

    fn bits(&self) -> Found<usize> {
        let bits = self.config.get("bits").and_then(Value::as_u64).filter(|b| (1..=8).contains(b));
        bits.map(|b| b as usize).ok_or_else(|| "the configuration names no width in bits".into())
    }

    /// The group size of a module, which may differ from that of the rest.
    fn mlx_group(&self, module: &str) -> Found<usize> {
        let own = self.config.get(module).and_then(|c| c.get("group_size"));
        let group = own.or_else(|| self.config.get("group_size")).and_then(Value::as_u64);
        match group {
            Some(group @ 1..=4096) => Ok(group as usize),
            _ => Err("the configuration names no group size".into()),
        }
    }

    /// The `config_groups` entry of a module: by its name, by a pattern, by its class.
    fn group_for(&self, module: &str) -> Option<&Value> {
        let groups = self.config.get("config_groups")?.as_object()?;
        let targets = |group: &'_ Value, test: &dyn Fn(&str) -> bool| {
            let targets = group.get("targets").and_then(Value::as_array);
            targets.is_some_and(|t| t.iter().filter_map(Value::as_str).any(test))
        };
        let pattern = |t: &str| {
            let pattern = t.strip_prefix("re:").and_then(|p| regex::Regex::new(&format!("^(?:{p})")).ok());
            pattern.is_some_and(|p| p.is_match(module))
        };
        let find = |test: &dyn Fn(&str) -> bool| groups.values().find(|g| targets(g, test));
        find(&|t| t == module).or_else(|| find(&pattern)).or_else(|| find(&|t| t == "Linear"))
    }

    /// What engines do to the module's input.
    fn input(&self, module: &str, p: &Pieces) -> Found<Input> {
        let dynamic_block = || {
            let block = self.config.get("weight_block_size").and_then(|b| b.get(1)).and_then(Value::as_u64);
            Input::Fp8 { group: block.map(|b| b as usize) }
        };
        match self.kind {
            Kind::Fp8 => match p.find("input_scale").or(p.find("activation_scale")) {
                Some(scale) => Ok(Input::Fp8Static { scale: single(scale)? }),
                None => Ok(dynamic_block()),
            },
            Kind::CompressedTensors => {
                let group = self.group_for(module).and_then(|g| g.get("input_activations"));
                let Some(args) = group.filter(|args| !args.is_null()) else { return Ok(Input::Exact) };
                let text = |key: &str| args.get(key).and_then(Value::as_str).unwrap_or_default();
                let bits = args.get("num_bits").and_then(Value::as_u64);
                match (text("type"), bits, text("strategy")) {
                    ("float", Some(8), "tensor") => match p.find("input_scale") {
                        Some(scale) => Ok(Input::Fp8Static { scale: single(scale)? }),
                        None => Ok(Input::Exact),
                    },
                    ("float", Some(8), "group") => {
                        let group = args.get("group_size").and_then(Value::as_u64).filter(|g| *g > 0);
                        Ok(Input::Fp8 { group: group.map(|g| g as usize) })
                    }
                    ("float", Some(8), _) => Ok(Input::Fp8 { group: None }),
                    ("int", Some(8), "token") => Ok(Input::Int8),
                    ("float", Some(4), _) => match p.find("input_global_scale") {
                        Some(global) => Ok(Input::NvFp4 { global: single(global)? }),
                        None => Ok(Input::Exact),
                    },
                    _ => Ok(Input::Exact),
                }
            }
            Kind::BitsAndBytes if p.find("SCB").is_some() => {
                let threshold = self.config.get("llm_int8_threshold").and_then(Value::as_f64).unwrap_or(6.0);
                let none = threshold <= 0.0;
                Ok(if none { Input::Int8 } else { Input::Int8Mixed { threshold: threshold as f32 } })
            }
            _ => Ok(Input::Exact),
        }
    }

    /// E4M3 or integers of eight bits with a scale per row, per tensor or per block.
    fn eight_bits(&self, module: &str, p: &Pieces, n: usize, k: usize) -> Found<Packed> {
        let weight = p.get("weight")?;
        let coding = match weight.dtype {
            Dtype::F8_E4M3 => Coding::Table(Box::new(std::array::from_fn(|code| e4m3(code as u8)))),
            Dtype::Ggml(GgmlType::I8) if p.find("weight_zero_point").is_none() => Coding::Signed,
            other => return Err(format!("'weight' is stored as {other}, which is not read here")),
        };
        let scale = p.find("weight_scale_inv").or(p.find("weight_scale")).ok_or("has no scales")?;
        let blocks = match scale.shape[..] {
            [] | [1] | [1, 1] => Blocks::Grid { rows: n, cols: k },
            [rows] | [rows, 1] if rows == n => Blocks::Grid { rows: 1, cols: k },
            [_, _] => {
                let own = self.group_for(module).and_then(|g| g.get("weights")).and_then(|w| w.get("block_structure"));
                let block = own.or_else(|| self.config.get("weight_block_size"));
                let side = |i: usize| {
                    let side = block.and_then(|b| b.get(i)).and_then(Value::as_u64).unwrap_or(128);
                    usize::try_from(side).unwrap_or(usize::MAX).clamp(1, 1 << 20)
                };
                Blocks::Grid { rows: side(0), cols: side(1) }
            }
            _ => return Err(format!("its scales have the shape {:?}", scale.shape)),
        };
        let codes = weight.data.clone();
        Ok(Packed::new(n, k, 8, codes, Some(k), coding, numbers(scale)?, blocks))
    }
}
