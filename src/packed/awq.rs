//! AWQ as AutoAWQ's GEMM kernels store it: four-bit integers in 32-bit words along the rows, interleaved. Lin et al. 2023;
//! the scaling of channels and the codes are chosen elsewhere.

use super::bits::{pack_rows, to_bytes, transpose, words};
use super::engines::{Check, Engines, Verdict, mlx_on_integers};
use super::integer::on_grid;
use super::matrix::{Blocks, Coding, Packed};
use super::mixture::own_or_kept;
use super::names::group_word;
use super::pieces::{Found, Pieces, numbers, transposed, unpack_rows, zero_points};
use super::read::{Suffixes, Tool, bits_word, exact, text};
use super::{
    Activations, Bits, ChannelScaling, Data, DefaultRounding, F16, Feedback, Format, GroupRule, I32, Loader, Name,
    Reach, Scales, Slot, Spec, Symmetry, not_multiple, slot,
};
use crate::dtype::GgmlType;
use crate::feedback::int::Codes;
use crate::minifloat;
use serde_json::{Value, json};

pub static AWQ: Format = Format {
    id: "awq",
    purpose: "channel scales from calibration",
    tool: &TOOL,
    names: &[Name { words: "awq", bits: 4, group: Some(128) }],
    shown: |spec| format!("awq-4bit-{}{}", group_word(spec), if spec.symmetric { "-sym" } else { "" }),
    bits: Bits::Named,
    group: GroupRule::Free,
    symmetry: Symmetry::Choice { symmetric: false },
    layouts: &[],
    if_asymmetric: None,
    as_compressed_tensors: None,
    fallback: None,
    orders_columns: false,
    nests: false,
    reach: Reach::Blocks,
    scales: Scales::Stored(F16),
    shares_scale: false,
    activations: Activations::Exact,
    feedback: Feedback::Integers { least_zero: 0, pack: |_, codes, _| Ok(pack(codes)) },
    rounding: DefaultRounding::Feedback,
    scaling: ChannelScaling::Awq,
    refuses: |spec, rows, cols| {
        super::broken_group(spec, rows, cols).or_else(|| not_multiple("rows", rows, 8, "eight codes fill a word"))
    },
    layout,
    nearest: |spec, module| Ok(pack(&on_grid(spec, module))),
    entry: |spec| json!({ "bits": spec.bits, "group_size": spec.group_size(), "zero_point": true }),
    config: |spec, scope| {
        json!({
            "quant_method": "awq",
            "version": "gemm",
            "bits": spec.bits,
            "group_size": spec.group_size(),
            "zero_point": true,
            "modules_to_not_convert": if scope.kept.is_empty() { Value::Null } else { json!(scope.kept) },
        })
    },
    engines: &ENGINES,
};

pub(super) static TOOL: Tool = Tool {
    name: "awq",
    method: Some("awq"),
    admits: |config| match text(config, "version").to_ascii_lowercase().as_str() {
        "" | "gemm" => Ok(()),
        other => Err(format!("awq in the layout '{other}'; gemm is read")),
    },
    suffixes: Suffixes { main: &["qweight"], sign: &["scales"], shape: &[], others: &["qzeros", "g_idx"] },
    label: |config| format!("awq{}", bits_word(config)),
    groups: Some(("scales", 0)),
    shape: |read| read.pieces.matrix("qweight").map(|[k, words]| (words * 8, k)),
    unpack: |read, n, k| unpack(&read.pieces, n, k),
    input: exact,
    engine_tensors: &[],
    loader: Loader::Torch,
    doubles_config: false,
    extra_config_files: &[],
    mixes: |_, _| false,
    mixture: own_or_kept,
    engines: |_| &ENGINES,
};

static ENGINES: Engines = Engines {
    vllm: |config, _| {
        let four = config.get("bits").and_then(Value::as_i64) == Some(4);
        Verdict::checking(&[Check::WholeWords, Check::UsualGroups]).refuse(!four, "AWQ with other than 4 bits")
    },
    transformers: |_| Verdict::default().note(true, "needs: pip install gptqmodel"),
    mlx: mlx_on_integers,
};

/// The order of columns within a word.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

fn layout(spec: &Spec, n: usize, k: usize, dtype: GgmlType) -> Vec<Slot> {
    let (groups, width) = (spec.groups(k), words(n, spec.bits));
    vec![
        slot("qweight", I32, &[k, width]),
        slot("qzeros", I32, &[groups, width]),
        slot("scales", spec.format.scales.dtype(dtype), &[groups, n]),
    ]
}

/// `qweight`, `qzeros`, `scales`.
fn pack(codes: &Codes) -> Data {
    let (n, k, groups) = (codes.rows, codes.cols, codes.groups());
    let pack = |mut by_input: Vec<u8>| {
        for eight in by_input.as_chunks_mut::<8>().0 {
            *eight = ORDER.map(|i| eight[i]);
        }
        to_bytes(&pack_rows(&by_input, n, 4))
    };
    vec![
        pack(transpose(&codes.codes, n, k)),
        pack(transpose(&codes.zeros, n, groups)),
        minifloat::to_bytes(GgmlType::F16, &transpose(&codes.scales, n, groups)),
    ]
}

fn unpack(p: &Pieces, n: usize, k: usize) -> Found<Packed> {
    let width = n / 8;
    let [groups, _] = p.matrix("scales")?;
    let read = |suffix: &str, rows: usize| {
        let mut codes = unpack_rows(&p.words(suffix, &[rows, width])?, width, n, 4);
        for eight in codes.as_chunks_mut::<8>().0 {
            let mut plain = [0; 8];
            ORDER.iter().zip(*eight).for_each(|(i, code)| plain[*i] = code);
            *eight = plain;
        }
        Ok::<_, String>(transpose(&codes, rows, n))
    };
    let codes = pack_rows(&read("qweight", k)?, k, 4);
    let coding = match p.find("qzeros") {
        Some(_) => zero_points(read("qzeros", groups)?),
        None => Coding::Offset(8),
    };
    let scales = transposed(numbers(p.shaped("scales", &[groups, n])?)?, groups, n);
    let blocks = Blocks::Grid { rows: 1, cols: k.div_ceil(groups) };
    Ok(Packed::new(n, k, 4, to_bytes(&codes), Some(4 * words(k, 4)), coding, scales, blocks))
}
