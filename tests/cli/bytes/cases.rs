//! The commands, and the importance matrix that some of them take.

use super::read::Gguf;
use std::path::Path;

/// Commands that run one after the other in a folder of their own; what lies there in the end is compared. Besides those
/// of the program there are `importance-of FILE`, which makes [`IMPORTANCE`] for the model in a GGUF file, and
/// `remove FILE...`.
pub struct Case {
    pub name: &'static str,
    pub steps: &'static [&'static str],
}

const fn case(name: &'static str, steps: &'static [&'static str]) -> Case {
    Case { name, steps }
}

/// The name of the importance matrix that cases make.
pub const IMPORTANCE: &str = "importance.dat";

/// Outputs that do not depend on the processor.
pub const EXACT: &[Case] = &[
    case(
        "presets",
        &["--to f32,f16,bf16,q4_0,q4_1,q8_0,q5_0,q5_1,q2_k,q3_k_s,q3_k_m,q3_k_l,q4_k_s,q4_k_m,q5_k_s,q5_k_m,q6_k,\
           iq4_nl,iq4_xs,iq3_s,iq3_m,tq1_0,tq2_0,mxfp4_moe,q1_0,q2_0 {tiny} --uncalibrated"],
    ),
    case(
        "weighted",
        &[
            "--to f16 {tiny} -o f16.gguf",
            "importance-of f16.gguf",
            "--to q4_0,q4_1,q5_0,q5_1,q2_k,q2_k_s,q3_k_s,q3_k_m,q4_k_s,q4_k_m,q5_k_m,q6_k,iq4_nl,iq4_xs,iq3_s,iq3_xs,iq3_m \
             {tiny} --imatrix importance.dat",
            "remove f16.gguf",
        ],
    ),
    case(
        "small",
        &[
            "--to f16 {tiny} -o f16.gguf",
            "importance-of f16.gguf",
            "--to iq3_xxs,iq2_xxs,iq2_xs,iq2_s,iq2_m,iq1_s,iq1_m {tiny} --imatrix importance.dat",
            "remove f16.gguf",
        ],
    ),
    case("rules", &["--to q4_k_m {tiny} --tensor-type ffn_down=q8_0 --tensor-type blk\\.2\\.=q5_0 -o x.gguf"]),
    case("pure", &["--to q4_k_m,q3_k_l {tiny} --pure"]),
    case("embedding", &["--to q3_k_m {tiny} --token-embedding-type q5_k"]),
    case("output", &["--to q4_0 {llama} --output-tensor-type q5_1", "--to q8_0 {llama} --leave-output-tensor"]),
    case(
        "metadata",
        &["--to q8_0 {tiny} --override-kv llama.context_length=int:256 --override-kv general.name=str:Other \
           --override-kv own.share=float:0.25 --override-kv own.flag=bool:true"],
    ),
    case("modelfile", &["--to q4_0,q5_0 {tiny} --modelfile --no-source-hash -o x-{type}.gguf"]),
    case("split-by-size", &["--to q5_k_m {tiny} --split-max-size 1M"]),
    case("split-by-tensors", &["--to q4_k_s {tiny} --split-max-tensors 20"]),
    case(
        "keep-split",
        &[
            "--to f16 {tiny} --split-max-size 4M -o a.gguf",
            "--to q6_k a-00001-of-00003.gguf --keep-split -o b.gguf",
            "--to q4_1 a-00001-of-00003.gguf -o whole.gguf",
        ],
    ),
    case("from-gguf", &["--to bf16 {tiny} -o a.gguf", "a.gguf b.gguf Q4_K_M 2"]),
    case("again", &["--to q8_0 {qwen3} -o a.gguf", "--to q4_0 a.gguf --allow-requantize -o b.gguf"]),
    case("from-folder", &["--to fp8 {tiny} -o fp8", "--to q4_k_m fp8 -o a.gguf", "--to f16 fp8 -o b.gguf"]),
    case("from-packed", &["--to mlx-4bit-32g {qwen2} -o mlx", "--to q8_0 mlx --allow-requantize -o a.gguf"]),
    case(
        "integers",
        &[
            "--to gptq,gptq-2bit-32g,gptq-3bit-channel-asym,gptq-8bit-64g-v2,gptq-64g-asym-v1,gptq-128g-desc,awq,awq-64g-sym,w4a16,\
           w4a16-64g-asym,w8a16,w8a16-128g,mlx-2bit,mlx-3bit-32g,mlx-4bit,mlx-5bit,mlx-6bit-128g,mlx-8bit {tiny} \
           --rounding nearest",
        ],
    ),
    case(
        "floats",
        &[
            "--to fp8,fp8-block,nvfp4a16,mxfp4,int8,nf4,nf4-dq,fp4,fp4-128g-dq,bnb-int8,mlx-mxfp4,mlx-nvfp4,mlx-mxfp8 {tiny}",
        ],
    ),
    case(
        "layouts",
        &[
            "--to gptq {llama} --bits 8 --group-size 32 --asym --rounding nearest --checkpoint-format gptq_v2 -o a",
            "--to gptq {llama} --group-size -1 --rounding nearest --checkpoint-format compressed-tensors -o b",
            "--to w4a16 {llama} --tp 2 --rounding nearest -o c",
        ],
    ),
    case("shards", &["--to nf4 {tiny} --max-shard-size 1MB -o nf4", "--to fp8 {tiny} --max-shard-size 2MB -o fp8"]),
    case("both", &["--to q8_0,mlx-4bit,nf4 {gemma3} -o out/"]),
    case(
        "gemma2",
        &["--to f16,q8_0,q3_k_m {gemma2}", "--to gptq-32g,nf4,fp8-block,mlx-4bit {gemma2} --rounding nearest"],
    ),
    case(
        "gemma3",
        &["--to f16,q5_k_s,iq4_xs {gemma3}", "--to awq-32g,bnb-int8,fp8,mlx-8bit {gemma3} --rounding nearest"],
    ),
    case("llama", &["--to f16,q4_k_m {llama}", "--to gptq-32g,w8a16,mxfp4 {llama} --rounding nearest"]),
    case(
        "llama-tied-headdim",
        &["--to f16,q4_k_m {llama-tied-headdim}", "--to fp8-block,mlx-4bit {llama-tied-headdim}"],
    ),
    case("llama3-rope", &["--to f16,q4_k_m {llama3-rope}", "--to nf4,nvfp4a16 {llama3-rope}"]),
    case("mistral-window", &["--to f16,q2_k {mistral-window}", "--to awq-32g,fp8 {mistral-window} --rounding nearest"]),
    case("mixtral", &["--to f16,q4_k_m {mixtral}", "--to gptq-32g,fp8,mlx-4bit {mixtral} --rounding nearest"]),
    case("phi3", &["--to f16,q4_k_m {phi3}", "--to gptq-32g,awq-32g,fp8-block {phi3} --rounding nearest"]),
    case("qwen2", &["--to f16,q5_1 {qwen2}", "--to gptq-32g,int8,mlx-mxfp4 {qwen2} --rounding nearest"]),
    case(
        "qwen2-moe",
        &["--to f16,mxfp4_moe {qwen2-moe}", "--to gptq-32g,mlx-4bit,w4a16-32g {qwen2-moe} --rounding nearest"],
    ),
    case("qwen3", &["--to f16,q4_k_s {qwen3}", "--to awq-32g,nf4,fp8 {qwen3} --rounding nearest"]),
    case("qwen3-moe", &["--to f16,q4_k_m {qwen3-moe}", "--to fp8-block,mlx-4bit,nvfp4a16 {qwen3-moe}"]),
    case(
        "weighted-experts",
        &[
            "--to f16 {qwen3-moe} -o f16.gguf",
            "importance-of f16.gguf",
            "--to q4_0,iq4_nl {qwen3-moe} --imatrix importance.dat",
            "--to q5_1 {qwen3-moe} --imatrix importance.dat --unseen-experts plain",
            "remove f16.gguf",
        ],
    ),
];

macro_rules! few {
    ($($args:literal)*) => {
        concat!($($args, " ",)* "--calibration default --calibration-tokens 640 --seq-len 64")
    };
}

/// Outputs of runs with calibration data.
pub const CALIBRATED: &[Case] = &[
    case("feedback", &[few!("--to q4_k_m,q2_k,iq4_xs {tiny}"), few!("--to q4_0,q5_1,q8_0 {llama}")]),
    case(
        "feedback-rules",
        &[few!("--to q4_k_s {tiny} --tensor-type ffn_down=q6_k --token-embedding-type q8_0 --rho 0.1")],
    ),
    case("feedback-pure", &[few!("--to q3_k_m {tiny} --pure --seed 7 --split-max-tensors 30")]),
    case("sorted-channels", &[few!("--to q3_k_m {tiny} --sort-channels")]),
    case("sequential", &[few!("--to q4_k_m {tiny} --sequential")]),
    case("ggml-search", &[few!("--to q4_k_m,iq3_xxs,iq2_s {tiny} --search ggml --save-imatrix i.gguf")]),
    // With these rules only large steps are left, so that a header of another length changes no choice.
    case(
        "budgets",
        &[
            few!("--target-bpw 4.5 {tiny} --search ggml"),
            few!(
                "--target-size 2.5MB --like q4_k_m {tiny} --search ggml"
                "--tensor-type attn=q4_k --tensor-type ffn_(up|gate)=q3_k"
            ),
        ],
    ),
    case("budget-feedback", &[few!("--target-bpw 4.2 {tiny} --tensor-type ffn_down=q5_k")]),
    case("budget-experts", &[few!("--target-bpw 5.5 {qwen3-moe} --search ggml")]),
    case(
        "own-text",
        &["--to q4_k_m {qwen3} --calibration {text} --calibration-tokens 1024 --seq-len 128 --damping 0.02"],
    ),
    case(
        "self",
        &[
            "--to q4_0 {llama} --calibration self --calibration tokens:random --calibration-tokens 640 --seq-len 64 --seed 3",
        ],
    ),
    case("feedback-gemma3", &[few!("--to q4_0 {gemma3}")]),
    case("feedback-phi3", &[few!("--to q4_0 {phi3} --sort-channels")]),
    case("feedback-mixtral", &[few!("--to q4_0 {mixtral}")]),
    case("feedback-qwen2-moe", &[few!("--to q5_0 {qwen2-moe} --sequential")]),
    case("gptq", &[few!("--to gptq {tiny}")]),
    case("awq", &[few!("--to awq {tiny}")]),
    case(
        "folders",
        &[few!(
            "--to gptq-3bit-32g-asym,gptq-8bit-channel,w4a16-32g,awq-32g,int8,nvfp4,fp8-static,mlx-4bit-32g {qwen3}"
        )],
    ),
    case(
        "gptq-order",
        &[
            few!("--to gptq-32g {llama} --desc-act -o a"),
            few!("--to gptq-32g {llama} --desc-act --static-groups --damp 0.05 -o b"),
        ],
    ),
    case("gptq-given-inputs", &[few!("--to gptq-32g,awq-32g {qwen3} --no-sequential")]),
    case("floats-with-feedback", &[few!("--to nvfp4,nvfp4a16,mxfp4 {llama} --rounding gptq")]),
    case("awq-nearest", &[few!("--to awq-32g,w4a16-64g {llama} --rounding nearest")]),
    case("smooth", &[few!("--to int8 {qwen2} --smooth 0.8 -o a")]),
    case("folders-gemma2", &[few!("--to gptq-32g,awq-32g,int8 {gemma2}")]),
    case("folders-mixtral", &[few!("--to gptq-32g,awq-32g {mixtral}")]),
    case("folders-phi3", &[few!("--to awq-32g,nvfp4 {phi3}")]),
    case("folders-qwen2-moe", &[few!("--to gptq-32g,awq-32g {qwen2-moe}")]),
    case("files-and-folders", &[few!("--to q4_0,gptq-32g {llama} -o out/")]),
    case(
        "calibrate",
        &[
            few!("calibrate {tiny} -o a.gguf --save-text text.txt"),
            few!("calibrate {tiny} -o b.dat --process-output --seed 1"),
            few!("calibrate {tiny} -o c.gguf --seed 2"),
            "calibrate --merge a.gguf c.gguf -o merged.gguf",
            "--to iq2_m {tiny} --imatrix merged.gguf",
        ],
    ),
    case("hessians", &[few!("calibrate {qwen2} -o a.gguf --hessians")]),
    case("calibrate-experts", &[few!("calibrate {qwen3-moe} -o a.gguf"), "--to q4_0 {qwen3-moe} --imatrix a.gguf"]),
];

/// Name, command, the file that tells how far a run is (`*/` stands for any folder), and its lines when it is killed.
pub const RESUMED: &[(&str, &str, &str, usize)] = &[
    ("file", few!("--to q4_k_m,q3_k_s {tiny} -o x-{type}.gguf"), "x-Q4_K_M.gguf.resume", 3),
    ("sorted", few!("--to q4_0 {tiny} --sort-channels -o x.gguf"), "x.gguf.resume", 4),
    ("gptq", few!("--to gptq {tiny} -o out"), "*/.quantize-journal", 4),
    ("awq", few!("--to awq-32g {qwen3-moe} -o out"), "*/.quantize-journal", 3),
    ("nearest", "--to nvfp4a16 {tiny} -o out", "*/.quantize-journal", 3),
    (
        "calibrate",
        "calibrate {qwen3} -o i.gguf --calibration default --calibration-tokens 2048 --seq-len 64 --checkpoint-every 0",
        "i.gguf.resume",
        0,
    ),
];

/// Writes llama.cpp's older form of an importance matrix for the matrices in the blocks of `gguf`: whole numbers from a
/// linear congruence, and zeros for the last expert.
pub fn write_importance(gguf: &Path, to: &Path) {
    let bytes = std::fs::read(gguf).unwrap();
    let file = Gguf::new(&bytes);
    let matrices = file.tensors.iter().filter(|t| t.name.starts_with("blk.") && t.dims.len() > 1);
    let matrices: Vec<_> = matrices.filter(|t| !t.name.contains("ffn_gate_inp")).collect();
    let mut out = Vec::new();
    let put = |out: &mut Vec<u8>, n: usize| out.extend((n as i32).to_le_bytes());
    put(&mut out, matrices.len());
    let mut state = 1u32;
    for tensor in matrices {
        let (cols, experts) = (tensor.dims[0] as usize, tensor.dims.get(2).map_or(1, |n| *n as usize));
        put(&mut out, tensor.name.len());
        out.extend(tensor.name.as_bytes());
        put(&mut out, 1);
        put(&mut out, cols * experts);
        for i in 0..cols * experts {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let seen = experts == 1 || i / cols + 1 < experts;
            let value = if seen { ((state >> 20) + 1) as f32 / 64.0 } else { 0.0 };
            out.extend(value.to_le_bytes());
        }
    }
    std::fs::write(to, out).unwrap();
}
