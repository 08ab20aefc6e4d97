//! Every row of the table: packed and read back over odd shapes, and the worked examples that were checked bit for bit
//! against the tools' own files.

use super::*;
use crate::kernel::RowSource;
use crate::made::numbers;
use crate::minifloat;
use proptest::prelude::*;
use serde_json::json;

const ALL: &[&str] = &[
    "gptq-2bit-32g",
    "gptq-3bit-32g-asym",
    "gptq-4bit-32g",
    "gptq-4bit-channel",
    "gptq-8bit-32g-v2",
    "awq-4bit-32g",
    "awq-4bit-32g-sym",
    "w4a16-32g",
    "w4a16-32g-asym",
    "w8a16",
    "w8a16-32g-asym",
    "fp8",
    "fp8-block",
    "fp8-static",
    "int8",
    "nvfp4",
    "nvfp4a16",
    "mxfp4",
    "nf4",
    "nf4-dq",
    "fp4",
    "fp4-dq",
    "bnb-int8",
    "mlx-2bit-32g",
    "mlx-3bit-32g",
    "mlx-4bit-64g",
    "mlx-5bit-32g",
    "mlx-6bit-32g",
    "mlx-8bit-128g",
    "mlx-mxfp4",
    "mlx-nvfp4",
    "mlx-mxfp8",
];

/// The pieces, read back as from a checkpoint whose configuration is the spec's own.
pub(super) fn read(spec: &Spec, pieces: &[Piece]) -> Packed {
    let config = json!({ "quantization_config": spec.quantization_config(Scope::default()) });
    let scheme = Scheme::of(&config).unwrap().unwrap();
    let mut suffixes = Vec::new();
    let mut stored = Vec::new();
    for piece in pieces {
        let name = format!("model.layers.0.mlp.up_proj.{}", piece.suffix);
        assert_eq!(scheme.split(&name), Some(("model.layers.0.mlp.up_proj", piece.suffix)));
        suffixes.push(piece.suffix);
        let (suffix, dtype) = (piece.suffix.to_string(), piece.dtype);
        stored.push(StoredPiece { suffix, dtype, shape: piece.shape.clone(), data: piece.data.clone() });
    }
    assert!(scheme.main(&suffixes).is_some());
    scheme.unpack("model.layers.0.mlp.up_proj", stored).unwrap()
}

fn decoded(packed: &Packed) -> Vec<f32> {
    let mut out = vec![f32::NAN; packed.rows() * packed.cols()];
    packed.decode(0..packed.rows(), &mut out);
    out
}

/// The largest relative distance (to the group's largest weight) that rounding to nearest may leave.
fn bound(spec: &Spec, dtype: GgmlType) -> f32 {
    let steps = ((1 << spec.bits) - 1) as f32;
    match spec.format.id {
        // A whole step where the positive end is clamped, else half of one. BF16 has no halves between 128 and 256,
        // where compressed-tensors adds the zero point.
        "gptq" | "gptq_v2" | "awq" | "pack-quantized" => {
            if dtype == GgmlType::BF16 {
                3.2 / steps
            } else {
                2.2 / steps
            }
        }
        "mlx" => 2.2 / steps,
        "fp8" | "fp8-block" | "fp8-static" | "mlx-mxfp8" => 0.07,
        "int8" | "bnb-int8" => 0.01,
        // Half of the step from 4 to 6, more where a scale is a power of two.
        "nvfp4" | "nvfp4a16" | "mlx-nvfp4" => 0.2,
        "mxfp4" | "mlx-mxfp4" => 0.27,
        "nf4" => 0.16,
        "fp4" => 0.18,
        other => panic!("no bound for {other}"),
    }
}

/// Every name gives its row and back, the row's own configuration is recognised, and what it packs is what a loader
/// unpacks, with the same rounding of the input.
#[test]
fn rows_answer_for_themselves() {
    let (rows, cols) = (128, 256);
    let w = numbers(rows * cols, 3);
    for (i, format) in FORMATS.iter().enumerate() {
        assert!(FORMATS[..i].iter().all(|other| other.id != format.id), "{}", format.id);
        assert!(ALL.iter().any(|name| parse(name).unwrap().format == *format), "{} is in no other test", format.id);
        for name in format.names {
            let spec = parse(name.words).unwrap();
            assert_eq!((spec.format, spec.bits, spec.group), (*format, name.bits, name.group), "{}", name.words);
            assert_eq!(parse(&spec.to_string()).map(|s| Spec { group_given: false, ..s }), Some(spec), "{spec}");
            let config = json!({ "quantization_config": spec.quantization_config(Scope::default()) });
            let scheme = Scheme::of(&config).unwrap().unwrap();
            assert_eq!(scheme.name(), format.tool.name);
            assert!(spec.to_string().starts_with(&scheme.label()), "{spec}");
            let mut module = Module::new(&w, rows, cols, GgmlType::BF16);
            module.input_max = Some(3.5);
            let pieces = spec.quantize_nearest(&module).unwrap();
            assert_eq!(spec.refuses(rows, cols), None);
            let slots = spec.layout(rows, cols, GgmlType::BF16);
            assert!(
                slots.iter().zip(&pieces).all(|(s, p)| (s.suffix, s.dtype, &s.shape) == (p.suffix, p.dtype, &p.shape))
            );
            let packed = read(&spec, &pieces);
            let off = w.iter().zip(decoded(&packed)).map(|(w, d)| (w - d).abs()).fold(0.0, f32::max);
            assert!(off <= bound(&spec, GgmlType::BF16), "{spec}: {off}");
            let input = match packed.input() {
                Input::Exact => Activations::Exact,
                Input::Fp8 { group: None } => Activations::Fp8,
                Input::Fp8 { group: Some(group) } => Activations::Fp8InGroups(group),
                Input::Fp8Static { .. } => Activations::Fp8Static,
                Input::Int8 => Activations::Int8,
                Input::Int8Mixed { .. } => Activations::Int8Mixed,
                Input::NvFp4 { .. } => Activations::NvFp4,
            };
            assert_eq!(input, format.activations, "{spec}");
        }
        let spec = format.plain().unwrap();
        let refusing = Engine::ALL.map(|engine| spec.verdict(engine, 1).refuses());
        assert!(refusing[2], "llama.cpp takes no folders");
        assert!(!refusing.iter().all(|r| *r), "{spec} is for no engine");
        if let Some(other) = format.as_compressed_tensors {
            assert_eq!(spec.in_compressed_tensors().map(|s| s.format), Some(other));
        }
        assert!(spec.fallback().is_none_or(|other| other.refuses(33, 7).is_none()), "{spec}");
        assert_eq!(spec.takes_feedback(), spec.is_integer() || matches!(format.feedback, Feedback::Floats(_)));
        assert_eq!(spec.integer_grid(256, GgmlType::BF16).is_some(), spec.is_integer());
        assert!(!spec.prefers_feedback(true) || spec.takes_feedback(), "{spec}");
    }
}

#[test]
fn every_row_comes_back() {
    for name in ALL {
        let spec = parse(name).unwrap();
        for (rows, cols) in [(32, 128), (96, 384), (160, 640), (33, 100), (40, 66), (7, 35), (128, 256)] {
            for dtype in [GgmlType::F16, GgmlType::BF16, GgmlType::F32] {
                let mut w = numbers(rows * cols, 7);
                minifloat::round_all(dtype, &mut w);
                let mut module = Module::new(&w, rows, cols, dtype);
                module.input_max = Some(3.5);
                let pieces = spec.quantize_nearest(&module);
                if spec.refuses(rows, cols).is_some() {
                    assert!(pieces.is_err_and(|e| e.exit_code() == 3), "{name} {rows} {cols}");
                    continue;
                }
                let pieces = pieces.unwrap();
                let bytes: usize = pieces.iter().map(|p| p.data.len()).sum();
                assert_eq!(bytes as u64, spec.sizes(rows, cols, dtype), "{name}");
                let packed = read(&spec, &pieces);
                assert_eq!((packed.rows(), packed.cols()), (rows, cols), "{name}");
                let all = decoded(&packed);
                let worst = w.iter().zip(&all).map(|(w, d)| (w - d).abs()).fold(0.0, f32::max);
                assert!(worst <= bound(&spec, dtype), "{name} {rows} {cols} {dtype}: {worst}");
                // Any rows alone, and in another order.
                let mut some = vec![0.0; 3 * cols];
                packed.decode(rows - 3..rows, &mut some);
                assert_eq!(some, all[(rows - 3) * cols..]);
                let turned = packed.reorder(|row| rows - 1 - row).reorder(|row| if row < 2 { 1 - row } else { row });
                turned.decode(0..2, &mut some[..2 * cols]);
                assert_eq!(some[..2 * cols], all[(rows - 2) * cols..]);
            }
        }
    }
}

proptest! {
    /// Integer formats give back exactly the matrix that the codes stand for.
    #[test]
    fn codes_come_back(which in 0usize..10, rows in 1usize..5, groups in 1usize..5, group in 1usize..5, seed: u32, order: bool) {
        let name = ALL.iter().filter(|n| parse(n).unwrap().is_integer()).nth(which).unwrap();
        let mut spec = parse(name).unwrap();
        let (rows, group) = (32 * rows, 32 * group);
        let cols = if spec.group.is_some() { groups * group } else { group };
        spec.group = spec.group.map(|_| group);
        let groups = cols / group;
        let random: Vec<u32> = numbers(rows * cols, seed).iter().map(|x| (x.to_bits() >> 5) & 0xff).collect();
        let mask = (1u16 << spec.bits) - 1;
        let codes = random.iter().map(|r| (*r as u16 & mask) as u8).collect();
        let half = 1u8 << (spec.bits - 1);
        let zeros = (0..rows * groups).map(|i| if spec.symmetric { half } else { (random[i] as u16 & mask) as u8 }).collect();
        let scales = (0..rows * groups).map(|i| (1 + random[i]) as f32 / 1024.0).collect();
        let g_idx = (order && spec.format.orders_columns)
            .then(|| (0..cols).map(|c| ((cols - 1 - c) % groups) as u32).collect());
        let codes = Codes { rows, cols, bits: spec.bits, group, codes, scales, zeros, g_idx };
        let pieces = spec.pack_codes(&codes, GgmlType::F16).unwrap();
        let mut want = vec![0.0; rows * cols];
        codes.dequantize(0..rows, &mut want);
        prop_assert_eq!(decoded(&read(&spec, &pieces)), want);
    }
}

/// Four-bit floats give back exactly what their codes stand for.
#[test]
fn floats_come_back() {
    let (rows, cols) = (16, 128);
    let random: Vec<u8> = numbers(rows * cols, 9).iter().map(|x| (x.to_bits() >> 5) as u8).collect();
    for format in FORMATS {
        let Feedback::Floats(kind) = format.feedback else { continue };
        let spec = format.plain().unwrap();
        let group = spec.group_of(cols);
        let codes: Vec<u8> = random.iter().map(|r| r & 15).collect();
        let scales: Vec<u8> = random[..rows * cols / group].iter().map(|r| 0x20 + r % 64).collect();
        let input_global = spec.needs_inputs().then_some(3.0);
        let codes = Fp4Codes { rows, cols, kind, group, codes, scales, global: 2.0, input_global };
        let grid = codes.grid();
        let value = |(i, code): (usize, &u8)| {
            minifloat::E2M1[usize::from(*code)] * grid.scales[usize::from(codes.scales[i / group])]
        };
        let want: Vec<f32> = codes.codes.iter().enumerate().map(value).collect();
        assert_eq!(decoded(&read(&spec, &pack_fp4(&spec, &codes, GgmlType::BF16).unwrap())), want, "{spec}");
    }
}

/// The first eight weights of a row whose group of 64 has the largest magnitude 1.4766.
const WEIGHTS: [f32; 8] =
    [-0.15527344, 0.34033203, -0.4855957, -0.3203125, 0.00989532, 0.17504883, 0.17504883, 0.5053711];

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[4 * at..4 * at + 4].try_into().unwrap())
}

fn piece<'a>(pieces: &'a [Piece], suffix: &str) -> &'a [u8] {
    &pieces.iter().find(|p| p.suffix == suffix).unwrap().data
}

#[test]
fn worked_examples_of_the_integer_formats() {
    let mut w = vec![0.0; 32 * 64];
    w[..8].copy_from_slice(&WEIGHTS);
    w[63] = 1.4765625;
    w[64..].fill(0.25);
    let module = Module::new(&w, 32, 64, GgmlType::F16);
    let quantize = |name: &str| parse(name).unwrap().quantize_nearest(&module).unwrap();
    let gptq = quantize("gptq-4bit-64g");
    assert_eq!(word(piece(&gptq, "qweight"), 0), 0xb99866a7);
    assert!(piece(&gptq, "qzeros").iter().all(|b| *b == 0x77));
    assert!(piece(&quantize("gptq-4bit-64g-v2"), "qzeros").iter().all(|b| *b == 0x88));
    assert!(piece(&quantize("gptq-8bit-64g"), "qzeros").iter().all(|b| *b == 0x7f));
    let packed = quantize("w4a16-64g");
    assert_eq!(word(piece(&packed, "weight_packed"), 0), 0xb99866a7);
    let scale = half::f16::from_le_bytes(piece(&packed, "weight_scale")[..2].try_into().unwrap());
    assert_eq!(scale, half::f16::from_f32(1.4765625 / 7.5));
}

#[test]
fn worked_examples_of_packing() {
    // AWQ: codes of rows 0 .. 8 in column 0.
    let column = [7, 9, 7, 7, 7, 9, 7, 6];
    // Zero points of rows 0 .. 8 as compressed-tensors, AWQ and GPTQ hold them.
    let zeros = [9, 10, 10, 9, 7, 7, 7, 8];
    let codes = |symmetric: bool| {
        let mut codes = vec![8; 32 * 32];
        (0..8).for_each(|row| codes[32 * row] = column[row]);
        let mut z = vec![8; 32];
        if !symmetric {
            z[..8].copy_from_slice(&zeros);
        }
        Codes { rows: 32, cols: 32, bits: 4, group: 32, codes, scales: vec![0.5; 32], zeros: z, g_idx: None }
    };
    let pack = |name: &str, symmetric| parse(name).unwrap().pack_codes(&codes(symmetric), GgmlType::F16).unwrap();
    let sym = pack("awq-4bit-32g-sym", true);
    assert_eq!(word(piece(&sym, "qweight"), 0), 0x69797777);
    assert!(piece(&sym, "qzeros").iter().all(|b| *b == 0x88));
    assert_eq!(word(piece(&pack("awq-4bit-32g", false), "qzeros"), 0), 0x879a77a9);
    assert_eq!(word(piece(&pack("w4a16-32g-asym", false), "weight_zero_point"), 0), 0x87779aa9);
    assert_eq!(word(piece(&pack("gptq-4bit-32g-asym-v1", false), "qzeros"), 0), 0x76668998);
}

#[test]
fn worked_examples_of_the_float_formats() {
    let rounded = |x: f32| minifloat::rounded(GgmlType::F16, x);
    // FP8: a row whose largest weight gives the scale 0.00409698.
    let mut w = vec![0.0; 64];
    w[..8].copy_from_slice(&WEIGHTS);
    w[63] = rounded(0.00409698 * 448.0);
    let fp8 = parse("fp8").unwrap().quantize_nearest(&Module::new(&w, 1, 64, GgmlType::F16)).unwrap();
    let values: Vec<f32> = piece(&fp8, "weight")[..4].iter().map(|c| minifloat::e4m3(*c)).collect();
    assert_eq!(values, [-36.0, 80.0, -120.0, -80.0]);
    // NVFP4 and MXFP4: four weights of a block with the largest magnitude 0.41016; the matrix's largest sets the global scale.
    let mut w = vec![0.0; 32];
    w[..4].copy_from_slice(&[0.08203125, -0.24609375, -0.15234375, 0.08203125]);
    w[15] = 0.41015625;
    let mut module = Module::new(&w, 1, 32, GgmlType::F16);
    module.fused_max = Some(rounded(2688.0 / 905.5));
    let nv = parse("nvfp4a16").unwrap().quantize_nearest(&module).unwrap();
    assert_eq!(f32::from_le_bytes(piece(&nv, "weight_global_scale").try_into().unwrap()), 905.5);
    assert_eq!(minifloat::e4m3(piece(&nv, "weight_scale")[0]), 60.0);
    assert_eq!(piece(&nv, "weight_packed")[..2], [0xe2, 0x2c]);
    let mx = parse("mxfp4").unwrap().quantize_nearest(&module).unwrap();
    assert_eq!((piece(&mx, "weight_scale")[0], &piece(&mx, "weight_packed")[..2]), (123, &[0xe3, 0x3c][..]));
    // bitsandbytes: block maximum 1.4765625.
    let mut w = vec![0.0; 64];
    w[..8].copy_from_slice(&WEIGHTS);
    w[63] = 1.4765625;
    let nf4 = parse("nf4").unwrap().quantize_nearest(&Module::new(&w, 1, 64, GgmlType::F16)).unwrap();
    assert_eq!(piece(&nf4, "weight")[..4], [0x6a, 0x45, 0x78, 0x8b]);
    let state = String::from_utf8(piece(&nf4, "weight.quant_state.bitsandbytes__nf4").to_vec()).unwrap();
    assert_eq!(state, r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [1, 64]}"#);
    // MLX: the eight weights four times.
    let w = WEIGHTS.repeat(4);
    let mlx = parse("mlx-4bit-32g").unwrap().quantize_nearest(&Module::new(&w, 1, 32, GgmlType::F16)).unwrap();
    assert_eq!(word(piece(&mlx, "weight"), 0), 0x0558df3a);
    let number = |suffix| half::f16::from_le_bytes(piece(&mlx, suffix).try_into().unwrap()).to_f32();
    assert_eq!((number("scales"), number("biases")), (rounded(-0.063171), rounded(0.505371)));
}

#[test]
fn searched_scales_are_never_worse() {
    for name in ["nvfp4a16", "mxfp4"] {
        let spec = parse(name).unwrap();
        let w: Vec<f32> = numbers(64 * 256, 11).iter().map(|x| x * x * x).collect();
        let importance: Vec<f32> = numbers(256, 12).iter().map(|x| x.abs()).collect();
        let error = |rule| {
            let mut module = Module::new(&w, 64, 256, GgmlType::BF16);
            (module.scales, module.importance) = (rule, Some(&importance[..]));
            let back = decoded(&read(&spec, &spec.quantize_nearest(&module).unwrap()));
            let terms = w.iter().zip(&back).enumerate();
            terms.map(|(i, (w, b))| ((w - b) * (w - b) * importance[i % 256]) as f64).sum::<f64>()
        };
        let (peer, search) = (error(ScaleRule::Peer), error(ScaleRule::Search));
        assert!(search < peer, "{name}: {search} {peer}");
    }
}

#[test]
fn damaged_pieces_are_refused() {
    for name in ALL {
        let spec = parse(name).unwrap();
        let w = numbers(128 * 256, 5);
        let mut module = Module::new(&w, 128, 256, GgmlType::F16);
        module.input_max = Some(1.0);
        let pieces = spec.quantize_nearest(&module).unwrap();
        let config = json!({ "quantization_config": spec.quantization_config(Scope::default()) });
        let scheme = Scheme::of(&config).unwrap().unwrap();
        let stored: Vec<StoredPiece> = pieces
            .into_iter()
            .map(|p| StoredPiece { suffix: p.suffix.into(), dtype: p.dtype, shape: p.shape, data: p.data })
            .collect();
        for i in 0..stored.len() {
            // No combination may panic; whether it is refused depends on the piece.
            let mut without = stored.clone();
            without.remove(i);
            let _ = scheme.unpack("m", without);
            for dtype in [Dtype::U8, F32, I32, Dtype::F8_E4M3] {
                let mut other = stored.clone();
                other[i].dtype = dtype;
                let _ = scheme.unpack("m", other);
            }
            let mut short = stored.clone();
            if let [first, ..] = &mut short[i].shape[..] {
                *first += 1;
                let bytes = short[i].data.len() * 2;
                short[i].data.resize(bytes, 0);
                let _ = scheme.unpack("m", short);
            }
        }
        let mut bad = stored.clone();
        let scale = bad.iter_mut().find(|p| p.suffix.ends_with("scale") || p.suffix == "scales");
        if let Some(scale) = scale.filter(|p| p.dtype == F16) {
            scale.data[..2].copy_from_slice(&half::f16::NAN.to_le_bytes());
            assert!(scheme.unpack("m", bad).is_err(), "{name}");
        }
    }
}

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

/// transformers 5 puts encoders of older folders under `model`; both names are left out of what is packed.
#[test]
fn encoders_are_ignored_under_both_names() {
    let gemma = ["model.vision_embedder.patch_dense", "model.embed_vision.embedding_projection"].map(String::from);
    let config = parse("fp8").unwrap().quantization_config(Scope { kept: &gemma, exceptions: &[] });
    let within = "model.embed_vision.multimodal_embedder.embedding_projection";
    assert_eq!(config["ignore"], json!(["lm_head", gemma[0], gemma[1], "model.embed_vision.patch_dense", within]));
    let kept = ["visual.blocks.0.attn.qkv", "model.layers.0.mlp.gate"].map(String::from);
    let config = parse("w4a16").unwrap().quantization_config(Scope { kept: &kept, exceptions: &[] });
    let ignored: Vec<&str> = config["ignore"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let all = ["lm_head", "visual.blocks.0.attn.qkv", "model.layers.0.mlp.gate", r"re:model\.visual\."];
    assert_eq!(ignored, all);
    assert!(
        group_of(&config, "model.visual.blocks.0.attn.qkv").is_none()
            && group_of(&config, "model.layers.0.mlp.gate").is_none()
    );
    assert_eq!(group_of(&config, "model.layers.0.mlp.up_proj").unwrap()["weights"]["num_bits"], 4);
}

/// What a budget chooses from can be said by rules.
#[test]
fn mixtures_are_of_formats_that_share_a_folder() {
    for own in FORMATS.iter().filter_map(|format| format.plain()) {
        let mixture = own.mixture();
        assert!(mixture.len() > 1 && mixture.contains(&Some(own)), "{own}");
        for other in mixture.iter().flatten() {
            assert!(own.mixes_with(other) && (own.needs_inputs() || !other.needs_inputs()), "{own} {other}");
            let group_given = parse(&other.to_string()).is_some_and(|spec| spec.group_given);
            assert_eq!(parse(&other.to_string()), Some(Spec { group_given, ..*other }));
            assert_eq!(mixture.iter().filter(|m| **m == Some(*other)).count(), 1, "{own} {other}");
        }
        let fixed = Spec { group_given: true, ..own };
        assert!(fixed.mixture().iter().flatten().all(|m| m.group == own.group || !own.is_integer()), "{own}");
    }
}
