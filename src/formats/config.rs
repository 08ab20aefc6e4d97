//! What `config.json` says of a quantized checkpoint: the `quantization_config` object of each tool, with its keys in the
//! order in which the tool's documentation has them. It reads nothing back.

use super::{FP8_BLOCK, Format, Spec};
use crate::quant::GgmlType;
use serde_json::{Map, Value, json};

/// The compressed-tensors release whose layout is written.
const COMPRESSED_TENSORS: &str = "0.19.0";

/// A module that could not be stored as the rest.
#[derive(Clone, Debug, PartialEq)]
pub struct Exception {
    /// Its full name, without `.weight`.
    pub module: String,
    pub spec: Spec,
}

/// Which modules the format does not speak for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope<'a> {
    /// Linear layers kept as they are, by full name, beside `lm_head`: routers, modules that the format refuses.
    pub kept: &'a [String],
    /// Modules stored in another format.
    pub exceptions: &'a [Exception],
}

/// torch's name for the type of a checkpoint.
pub(super) fn torch_name(dtype: GgmlType) -> &'static str {
    match dtype {
        GgmlType::F16 => "float16",
        GgmlType::BF16 => "bfloat16",
        _ => "float32",
    }
}

impl Spec {
    /// The `quantization_config` object (MLX has the same once more as `quantization`).
    pub fn quantization_config(&self, scope: Scope) -> Value {
        use Format::*;
        match self.format {
            Gptq | GptqV2 => self.gptq_config(scope),
            Awq => json!({
                "quant_method": "awq",
                "version": "gemm",
                "bits": self.bits,
                "group_size": self.group_size(),
                "zero_point": true,
                "modules_to_not_convert": if scope.kept.is_empty() { Value::Null } else { json!(scope.kept) },
            }),
            Nf4 | Fp4 | BnbInt8 => self.bnb_config(scope),
            MlxAffine | MlxMxFp4 | MlxNvFp4 | MlxMxFp8 => {
                let mut config = self.mlx_config();
                for name in scope.kept {
                    config.insert(name.clone(), Value::Bool(false));
                }
                for e in scope.exceptions {
                    config.insert(e.module.clone(), Value::Object(e.spec.mlx_config()));
                }
                Value::Object(config)
            }
            _ => self.compressed_tensors_config(scope),
        }
    }

    /// Files beside `config.json` that hold the object once more, for readers that look there.
    pub fn extra_config_files(&self) -> &'static [&'static str] {
        if matches!(self.format, Format::Gptq | Format::GptqV2) { &["quantize_config.json"] } else { &[] }
    }

    /// Whether `config.json` has the object under `quantization` too.
    pub fn doubles_config(&self) -> bool {
        self.metadata_format() == "mlx"
    }

    /// -1 for whole rows.
    fn group_size(&self) -> Value {
        self.group.map_or(json!(-1), |g| json!(g))
    }

    fn gptq_config(&self, scope: Scope) -> Value {
        let mut config = json!({
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group_size(),
            "desc_act": self.desc_act,
            "sym": self.symmetric,
            "checkpoint_format": if self.format == Format::Gptq { "gptq" } else { "gptq_v2" },
            "pack_dtype": "int32",
            "lm_head": false,
        });
        let pattern = |sign: char, name: &str| format!("{sign}:^{}$", regex::escape(name));
        let mut dynamic = Map::new();
        for name in scope.kept.iter().filter(|n| *n != "lm_head") {
            dynamic.insert(pattern('-', name), json!({}));
        }
        for e in scope.exceptions {
            let (bits, group, sym) = (e.spec.bits, e.spec.group_size(), e.spec.symmetric);
            dynamic.insert(pattern('+', &e.module), json!({ "bits": bits, "group_size": group, "sym": sym }));
        }
        if !dynamic.is_empty() {
            config["dynamic"] = Value::Object(dynamic);
        }
        config
    }

    fn bnb_config(&self, scope: Scope) -> Value {
        let four = self.format != Format::BnbInt8;
        // A list takes the place of the reader's own, which has the output in it.
        let mut skipped = scope.kept.to_vec();
        if !skipped.is_empty() && !skipped.iter().any(|n| n == "lm_head") {
            skipped.insert(0, "lm_head".into());
        }
        json!({
            "quant_method": "bitsandbytes",
            "load_in_4bit": four,
            "load_in_8bit": !four,
            "bnb_4bit_quant_type": if self.format == Format::Nf4 { "nf4" } else { "fp4" },
            "bnb_4bit_use_double_quant": self.nested,
            "bnb_4bit_compute_dtype": if four { "bfloat16" } else { "float32" },
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": if skipped.is_empty() { Value::Null } else { json!(skipped) },
            "llm_int8_threshold": 6.0,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "_load_in_4bit": four,
            "_load_in_8bit": !four,
        })
    }

    fn mlx_config(&self) -> Map<String, Value> {
        let mode = match self.format {
            Format::MlxMxFp4 => "mxfp4",
            Format::MlxNvFp4 => "nvfp4",
            Format::MlxMxFp8 => "mxfp8",
            _ => "affine",
        };
        let mut config = Map::new();
        config.insert("group_size".into(), self.group_size());
        config.insert("bits".into(), json!(self.bits));
        config.insert("mode".into(), json!(mode));
        config
    }

    fn compressed_tensors_config(&self, scope: Scope) -> Value {
        let mut groups = Map::new();
        groups.insert("group_0".into(), self.scheme(json!(["Linear"])));
        let mut formats = vec![self.compressed_format()];
        let mut others: Vec<(Spec, Vec<&str>)> = Vec::new();
        for e in scope.exceptions {
            match others.iter_mut().find(|(spec, _)| *spec == e.spec) {
                Some((_, names)) => names.push(&e.module),
                None => others.push((e.spec, vec![&e.module])),
            }
        }
        for (i, (spec, names)) in others.iter().enumerate() {
            groups.insert(format!("group_{}", i + 1), spec.scheme(json!(names)));
            formats.push(spec.compressed_format());
        }
        let same = formats.iter().all(|f| *f == formats[0]);
        let mut ignore = vec!["lm_head"];
        ignore.extend(scope.kept.iter().map(String::as_str).filter(|n| *n != "lm_head"));
        json!({
            "quant_method": "compressed-tensors",
            "format": if same { formats[0] } else { "mixed-precision" },
            "quantization_status": "compressed",
            "ignore": ignore,
            "config_groups": groups,
            "kv_cache_scheme": null,
            "version": COMPRESSED_TENSORS,
        })
    }

    fn compressed_format(&self) -> &'static str {
        match self.format {
            Format::PackQuantized => "pack-quantized",
            Format::Int8 => "int-quantized",
            Format::NvFp4 | Format::NvFp4A16 => "nvfp4-pack-quantized",
            Format::MxFp4 => "mxfp4-pack-quantized",
            _ => "float-quantized",
        }
    }

    fn scheme(&self, targets: Value) -> Value {
        json!({
            "targets": targets,
            "weights": self.weight_args(),
            "input_activations": self.input_args(),
            "output_activations": null,
            "format": self.compressed_format(),
        })
    }

    fn weight_args(&self) -> Value {
        let args = |kind: &str, strategy: &str| {
            json!({
                "num_bits": self.bits,
                "type": kind,
                "symmetric": self.symmetric,
                "strategy": strategy,
                "group_size": self.group,
                "dynamic": false,
            })
        };
        let with = |mut args: Value, key: &str, value: Value| {
            args[key] = value;
            args
        };
        match self.format {
            Format::PackQuantized => args("int", if self.group.is_some() { "group" } else { "channel" }),
            Format::Int8 => args("int", "channel"),
            Format::Fp8Block => with(args("float", "block"), "block_structure", json!([FP8_BLOCK, FP8_BLOCK])),
            Format::Fp8Static => args("float", "tensor"),
            Format::NvFp4 | Format::NvFp4A16 => {
                with(args("float", "tensor_group"), "scale_dtype", json!("torch.float8_e4m3fn"))
            }
            Format::MxFp4 => with(args("float", "group"), "scale_dtype", json!("torch.uint8")),
            _ => args("float", "channel"),
        }
    }

    fn input_args(&self) -> Value {
        let args = |kind: &str, strategy: &str, group: Value, dynamic: Value| {
            json!({
                "num_bits": self.bits,
                "type": kind,
                "symmetric": true,
                "strategy": strategy,
                "group_size": group,
                "dynamic": dynamic,
            })
        };
        match self.format {
            Format::Fp8 => args("float", "token", Value::Null, json!(true)),
            Format::Fp8Block => args("float", "group", json!(FP8_BLOCK), json!(true)),
            Format::Fp8Static => args("float", "tensor", Value::Null, json!(false)),
            Format::Int8 => args("int", "token", Value::Null, json!(true)),
            Format::NvFp4 => {
                let mut input = args("float", "tensor_group", json!(16), json!("local"));
                input["scale_dtype"] = json!("torch.float8_e4m3fn");
                input
            }
            _ => Value::Null,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::parse;

    /// The objects of the tools' own files, where they have no more keys than are needed.
    #[test]
    fn objects_are_those_of_the_tools() {
        let config = |name: &str| parse(name).unwrap().quantization_config(Scope::default()).to_string();
        assert_eq!(config("mlx-4bit"), r#"{"group_size":64,"bits":4,"mode":"affine"}"#);
        assert_eq!(
            config("awq-4bit-64g"),
            concat!(
                r#"{"quant_method":"awq","version":"gemm","bits":4,"group_size":64,"zero_point":true,"#,
                r#""modules_to_not_convert":null}"#
            )
        );
        assert_eq!(
            config("gptq-4bit-64g"),
            concat!(
                r#"{"quant_method":"gptq","bits":4,"group_size":64,"desc_act":false,"sym":true,"#,
                r#""checkpoint_format":"gptq","pack_dtype":"int32","lm_head":false}"#
            )
        );
        assert_eq!(
            config("w4a16-64g"),
            concat!(
                r#"{"quant_method":"compressed-tensors","format":"pack-quantized","quantization_status":"compressed","#,
                r#""ignore":["lm_head"],"config_groups":{"group_0":{"targets":["Linear"],"weights":{"num_bits":4,"#,
                r#""type":"int","symmetric":true,"strategy":"group","group_size":64,"dynamic":false},"#,
                r#""input_activations":null,"output_activations":null,"format":"pack-quantized"}},"#,
                r#""kv_cache_scheme":null,"version":"0.19.0"}"#
            )
        );
    }

    #[test]
    fn what_differs_is_named() {
        let kept = ["model.layers.0.mlp.gate".to_string()];
        let exceptions = [Exception { module: "model.layers.0.mlp.up_proj".into(), spec: parse("fp8").unwrap() }];
        let scope = Scope { kept: &kept, exceptions: &exceptions };
        let block = parse("fp8-block").unwrap().quantization_config(scope);
        assert_eq!(block["ignore"], json!(["lm_head", kept[0]]));
        assert_eq!(block["format"], "float-quantized");
        assert_eq!(block["config_groups"]["group_1"]["targets"], json!(["model.layers.0.mlp.up_proj"]));
        assert_eq!(block["config_groups"]["group_0"]["weights"]["block_structure"], json!([128, 128]));
        let scope = Scope { kept: &kept, exceptions: &[] };
        let gptq = parse("gptq").unwrap().quantization_config(scope);
        assert_eq!(gptq["dynamic"], json!({ r"-:^model\.layers\.0\.mlp\.gate$": {} }));
        let nf4 = parse("nf4").unwrap().quantization_config(scope);
        assert_eq!(nf4["llm_int8_skip_modules"], json!(["lm_head", kept[0]]));
    }
}
