//! Modules of compressed-tensors read back, those of mixed checkpoints each by its own entry.

use crate::dtype::{Dtype, GgmlType};
use crate::minifloat::e4m3;
use crate::packed::bits::{to_bytes, transpose, words};
use crate::packed::matrix::{Blocks, Coding, Input, Numbers, Packed, e2m1_table, e4m3_table, e8m0_table};
use crate::packed::pieces::{Found, Pieces, integers, numbers, single, unpack_rows, zero_points};
use crate::packed::read::{Read, text};
use serde_json::Value;

pub(super) fn admits(config: &Value) -> Found<()> {
    let status = config.get("quantization_status").and_then(Value::as_str).unwrap_or("compressed");
    if status != "compressed" {
        return Err(format!("compressed-tensors with the status '{status}'; compressed is read"));
    }
    let sparsity = config.get("sparsity_config").and_then(|s| s.get("format")).and_then(Value::as_str);
    if let Some(format) = sparsity.filter(|f| *f != "dense") {
        return Err(format!("compressed-tensors with sparsity '{format}'"));
    }
    if config.get("transform_config").is_some_and(|t| t.as_object().is_some_and(|t| !t.is_empty())) {
        return Err("compressed-tensors with transforms of the activations".into());
    }
    Ok(())
}

pub(super) fn label(config: &Value) -> String {
    let groups = config.get("config_groups").and_then(Value::as_object);
    let bits = groups.and_then(|g| g.values().next()?.get("weights")?.get("num_bits")?.as_u64());
    let inputs =
        || groups.is_some_and(|g| g.values().any(|g| g.get("input_activations").is_some_and(|a| !a.is_null())));
    match text(config, "format") {
        "pack-quantized" => format!("w{}a16", bits.unwrap_or(4)),
        "float-quantized" => "fp8".into(),
        "int-quantized" => "int8".into(),
        "nvfp4-pack-quantized" => if inputs() { "nvfp4" } else { "nvfp4a16" }.into(),
        "mxfp4-pack-quantized" => "mxfp4".into(),
        _ => super::TOOL.name.into(),
    }
}

pub(super) fn shape(read: &Read) -> Found<(usize, usize)> {
    let p = &read.pieces;
    match p.find("weight_packed") {
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
    }
}

pub(super) fn unpack(read: &Read, n: usize, k: usize) -> Found<Packed> {
    match read.pieces.find("weight_packed") {
        Some(packed) if packed.dtype == Dtype::U8 => four_bit_floats(&read.pieces, n, k),
        Some(_) => pack_quantized(&read.pieces, n, k),
        None => eight_bits(read, n, k),
    }
}

/// What engines do to the module's input.
pub(super) fn input(read: &Read) -> Found<Input> {
    let p = &read.pieces;
    let group = group_for(read.config, read.module).and_then(|g| g.get("input_activations"));
    let Some(args) = group.filter(|args| !args.is_null()) else { return Ok(Input::Exact) };
    let bits = args.get("num_bits").and_then(Value::as_u64);
    match (text(args, "type"), bits, text(args, "strategy")) {
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

/// Whether an entry of a list of the configuration is this module: its name, a pattern, or its class.
fn names(entry: &str, module: &str) -> bool {
    let pattern = |p: &str| regex::Regex::new(&format!("^(?:{p})")).is_ok_and(|p| p.is_match(module));
    entry == module || entry == "Linear" || entry.strip_prefix("re:").is_some_and(pattern)
}

/// The `config_groups` entry of a linear layer; `None` where the configuration ignores it or no group names it.
pub fn group_of<'a>(config: &'a Value, module: &str) -> Option<&'a Value> {
    let ignored = config.get("ignore").and_then(Value::as_array);
    let is_ignored = ignored.is_some_and(|list| list.iter().filter_map(Value::as_str).any(|e| names(e, module)));
    group_for(config, module).filter(|_| !is_ignored)
}

/// The `config_groups` entry of a module: by its name, by a pattern, by its class.
fn group_for<'a>(config: &'a Value, module: &str) -> Option<&'a Value> {
    let groups = config.get("config_groups")?.as_object()?;
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

/// E4M3 or integers of eight bits with a scale per row, per tensor or per block.
pub(in crate::packed) fn eight_bits(read: &Read, n: usize, k: usize) -> Found<Packed> {
    let p = &read.pieces;
    let weight = p.get("weight")?;
    let coding = match weight.dtype {
        Dtype::F8_E4M3 => Coding::Table(e4m3_table()),
        Dtype::Ggml(GgmlType::I8) if p.find("weight_zero_point").is_none() => Coding::Signed,
        other => return Err(format!("'weight' is stored as {other}, which is not read here")),
    };
    let scale = p.find("weight_scale_inv").or(p.find("weight_scale")).ok_or("has no scales")?;
    let blocks = match scale.shape[..] {
        [] | [1] | [1, 1] => Blocks::Grid { rows: n, cols: k },
        [rows] | [rows, 1] if rows == n => Blocks::Grid { rows: 1, cols: k },
        [_, _] => {
            let own = group_for(read.config, read.module)
                .and_then(|g| g.get("weights"))
                .and_then(|w| w.get("block_structure"));
            let block = own.or_else(|| read.config.get("weight_block_size"));
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

fn pack_quantized(p: &Pieces, n: usize, k: usize) -> Found<Packed> {
    let [_, width] = p.matrix("weight_packed")?;
    let bits = (width * 32 / k).min(8) as u8;
    if bits == 0 || words(k, bits) != width {
        return Err(format!("'weight_packed' has {width} words for {k} columns, which is not a whole number of bits"));
    }
    let codes = to_bytes(&p.words("weight_packed", &[n, width])?);
    let [_, groups] = p.matrix("weight_scale")?;
    let scales = numbers(p.shaped("weight_scale", &[n, groups])?)?;
    let coding = match p.find("weight_zero_point") {
        Some(_) => {
            let height = words(n, bits);
            let packed = transpose(&p.words("weight_zero_point", &[height, groups])?, height, groups);
            zero_points(transpose(&unpack_rows(&packed, height, n, bits), groups, n))
        }
        None => Coding::Offset(1 << (bits - 1)),
    };
    let blocks = match p.find("weight_g_idx") {
        Some(_) => Blocks::Columns { group_of: p.words("weight_g_idx", &[k])?, groups },
        None => Blocks::Grid { rows: 1, cols: k.div_ceil(groups) },
    };
    Ok(Packed::new(n, k, bits, codes, Some(4 * width), coding, scales, blocks))
}

/// NVFP4 where there is a global scale, MXFP4 where there is none.
fn four_bit_floats(p: &Pieces, n: usize, k: usize) -> Found<Packed> {
    let codes = p.bytes("weight_packed", &[n, k / 2])?.to_vec();
    let (group, values) = match p.find("weight_global_scale") {
        Some(global) => {
            let global = single(global)?;
            (16, Box::new(std::array::from_fn(|code| e4m3(code as u8) / global)))
        }
        None => (32, e8m0_table()),
    };
    let scales = Numbers::Table(p.bytes("weight_scale", &[n, k.div_ceil(group)])?.to_vec(), values);
    let blocks = Blocks::Grid { rows: 1, cols: group };
    Ok(Packed::new(n, k, 4, codes, Some(k / 2), Coding::Table(e2m1_table()), scales, blocks))
}
