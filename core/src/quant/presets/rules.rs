//! The tables behind llama.cpp's presets: what a tensor is to the rules, by its name; which tensors are never quantized;
//! which type a tensor of a mixture gets; and what single architectures have of their own. Data and the predicates over
//! it; [`super::choose`] walks them. Source: `llama-quant.cpp`.

use super::super::GgmlType;
use GgmlType::*;

/// What a tensor is to the rules, by its GGUF name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Category {
    Output,
    Embedding,
    /// `attn_v`, and everything that contains values: `attn_qkv`, `attn_kv_b`.
    AttnV,
    AttnK,
    AttnQ,
    AttnOutput,
    FfnUp,
    FfnGate,
    FfnDown,
    Other,
}

pub(super) fn category(name: &str) -> Category {
    const BY_PART: &[(&str, Category)] = &[
        ("attn_qkv.weight", Category::AttnV),
        ("attn_kv_b.weight", Category::AttnV),
        ("attn_v.weight", Category::AttnV),
        ("attn_k.weight", Category::AttnK),
        ("attn_q.weight", Category::AttnQ),
        ("attn_output.weight", Category::AttnOutput),
        ("ffn_up", Category::FfnUp),
        ("ffn_gate", Category::FfnGate),
        ("ffn_down", Category::FfnDown),
    ];
    match name {
        "output.weight" => Category::Output,
        "token_embd.weight" | PER_LAYER_EMBEDDING => Category::Embedding,
        _ => BY_PART.iter().find(|(part, _)| name.contains(part)).map_or(Category::Other, |(_, c)| *c),
    }
}

/// An embedding beside the usual one, which the type of the token embedding is for too, unless a rule names it.
pub(super) const PER_LAYER_EMBEDDING: &str = "per_layer_token_embd.weight";

/// The layer of `blk.7.ffn_down.weight`.
pub fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// Matrices that stay as they are, by a part of their names: norms, routers, positions, and what is too small to matter.
const NEVER_QUANTIZED: &[&str] = &[
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// The same, by their whole names.
const NEVER_QUANTIZED_NAMES: &[&str] = &["position_embd.weight", "token_types.weight"];

/// What an architecture has of its own, beside its rows in [`RULES`].
#[derive(Debug)]
pub(super) struct Own {
    arch: &'static str,
    /// Parts of the names of further matrices that stay as they are.
    never: &'static [&'static str],
    /// Parts of the names of matrices that get Q8_0 under every quantized preset.
    eight_bits: &'static [&'static str],
    /// The output head, and an embedding that doubles as one, gets Q8_0 under every quantized preset.
    pub eight_bit_head: bool,
    /// `MXFP4_MOE` makes MXFP4 of stacked matrices in feed-forwards only, not of every stacked matrix.
    pub only_experts_in_mxfp4: bool,
}

const NOTHING: Own = Own { arch: "", never: &[], eight_bits: &[], eight_bit_head: false, only_experts_in_mxfp4: false };

const OWN: &[Own] = &[
    Own { arch: "falcon", eight_bit_head: true, ..NOTHING },
    Own { arch: "bailingmoe3", only_experts_in_mxfp4: true, ..NOTHING },
    Own {
        arch: "glm5-next",
        never: &[
            "hc_",
            "indexer.attn_q_b",
            "indexer.attn_k",
            "indexer.proj",
            "indexer_compressor_gate",
            "indexer_compressor_ape",
            "ssm_f_a.weight",
            "ssm_f_b.weight",
            "ssm_g_a.weight",
            "ssm_g_b.weight",
            "ssm_beta.weight",
            "attn_kv_a_mqa.weight",
            "attn_k_b.weight",
            "attn_v_b.weight",
        ],
        eight_bits: &["attn_q_a", "attn_q_b", "nextn.eh_proj"],
        ..NOTHING
    },
];

impl Own {
    pub fn of(arch: &str) -> &'static Own {
        OWN.iter().find(|own| own.arch == arch).unwrap_or(&NOTHING)
    }

    /// Whether a tensor of this name and shape (outermost first) may be quantized at all.
    pub fn allows_quantization(&self, name: &str, shape: &[usize]) -> bool {
        // A matrix of one row is a vector to ggml.
        let dims = shape.iter().skip_while(|d| **d == 1).count();
        let of_adapter = name.ends_with(".lora_a") || name.ends_with(".lora_b");
        of_adapter
            || dims >= 2
                && name.ends_with("weight")
                && !NEVER_QUANTIZED_NAMES.contains(&name)
                && !NEVER_QUANTIZED.iter().chain(self.never).any(|part| name.contains(part))
    }

    pub fn wants_eight_bits(&self, name: &str) -> bool {
        self.eight_bits.iter().any(|part| name.contains(part))
    }
}

/// Models whose `attn_v` gets Q5_K where the mixture says Q3_K or Q4_K: architecture, layers, and whether only those
/// with grouped key and value heads count.
pub(super) const SMALL_ATTN_V: &[(&str, usize, bool)] = &[
    ("llama", 80, true),
    ("llama-embed", 80, true),
    ("qwen2", 80, false),
    ("deci", 80, false),
    ("olmo", 80, false),
    ("jais2", 68, false),
];

/// When a rule applies to a tensor. `i` is its place among the tensors of its category, `n` how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Always,
    /// The first and last eighth, and every third tensor between them.
    MoreBits,
    /// `i < k`
    First(usize),
    /// `i < n / k`
    FirstPart(usize),
    /// `n / 8 <= i < 7 n / 8`
    Middle,
    /// At least four query heads share a key/value head.
    Gqa4,
    /// The same, or at least four experts.
    Gqa4OrExperts4,
    NoImatrix,
    NoImatrixFirstPart(usize),
    ImatrixFirstPart(usize),
    Experts8,
    NotExperts8,
    Experts8MoreBits,
}

pub(super) struct Rule {
    /// `None`: every architecture.
    pub arch: Option<&'static str>,
    pub presets: &'static [&'static str],
    pub category: Category,
    pub when: When,
    /// `None`: the preset's default type.
    pub ty: Option<GgmlType>,
}

macro_rules! rules {
    (@ty default) => { None };
    (@ty $ty:ident) => { Some($ty) };
    (@arch) => { None };
    (@arch $arch:literal) => { Some($arch) };
    ($($($arch:literal)? $category:ident $when:expr => $ty:ident: $($preset:ident)+;)*) => {
        &[$(Rule {
            arch: rules!(@arch $($arch)?),
            presets: &[$(stringify!($preset)),+],
            category: Category::$category,
            when: { use When::*; $when },
            ty: rules!(@ty $ty),
        }),*]
    };
}

/// The first rule that matches decides; where none does, the preset's default type stays. (The embedding rows are those
/// of an untied embedding; a tied one is treated as the output.)
pub(super) const RULES: &[Rule] = rules! {
    Embedding Always => Q2_K: IQ2_XXS IQ2_XS IQ1_S IQ1_M;
    Embedding Always => IQ3_S: IQ2_S IQ2_M IQ3_XXS;
    Embedding Always => Q4_K: TQ1_0 TQ2_0 Q2_0;

    AttnV Gqa4OrExperts4 => Q4_K: IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M;
    AttnV Always => IQ3_S: IQ2_S IQ2_M;
    AttnV Always => Q2_K: IQ1_S IQ1_M IQ2_XXS IQ2_XS;
    AttnK Experts8 => Q4_K: IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M;
    FfnDown FirstPart(8) => IQ3_S: IQ2_S IQ2_M;
    FfnDown FirstPart(8) => Q2_K: IQ1_S IQ1_M IQ2_XXS IQ2_XS;
    AttnOutput Experts8 => Q5_K: IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M;
    AttnOutput Always => IQ2_XXS: IQ1_S IQ1_M;
    AttnOutput Always => IQ3_S: IQ2_S IQ2_M;

    "falcon" FfnDown FirstPart(16) => Q5_K: Q3_K_M;
    "falcon" FfnDown MoreBits => Q4_K: Q3_K_M;
    "falcon" FfnDown Always => Q4_K: Q3_K_L;
    "falcon" FfnDown FirstPart(16) => Q6_K: Q4_K_M;
    "falcon" FfnDown MoreBits => Q5_K: Q4_K_M;
    "falcon" FfnDown Always => default: Q3_K_M Q4_K_S Q4_K_M;
    "falcon" AttnOutput Always => Q4_K: Q3_K_L;
    "falcon" AttnOutput Always => default: Q2_K IQ3_XS IQ3_XXS Q3_K_S Q3_K_M IQ4_NL Q4_K_S Q4_K_M IQ3_S IQ3_M IQ4_XS;

    AttnV Gqa4 => Q4_K: Q2_K Q2_K_S IQ3_XXS IQ3_XS IQ3_S;
    AttnV Always => Q3_K: Q2_K;
    AttnV NoImatrix => IQ3_S: IQ3_XXS;
    AttnV Always => Q4_K: IQ3_M;
    AttnV First(2) => Q5_K: Q3_K_M;
    AttnV Always => Q4_K: Q3_K_M;
    AttnV Always => Q5_K: Q3_K_L;
    AttnV Gqa4 => Q5_K: IQ4_NL IQ4_XS;
    AttnV MoreBits => Q6_K: Q4_K_M Q5_K_M;
    AttnV First(4) => Q5_K: Q4_K_S;

    AttnK Experts8 => Q8_0: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q2_K_S Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K
        IQ3_XXS IQ3_XS IQ3_S IQ3_M IQ4_NL IQ4_XS TQ1_0 TQ2_0 Q1_0 Q2_0;
    AttnK Always => IQ3_XXS: IQ3_XS;
    AttnK Always => IQ2_S: IQ3_XXS;
    AttnQ Always => IQ3_XXS: IQ3_XS;
    AttnQ Always => IQ2_S: IQ3_XXS;

    FfnDown Always => Q3_K: Q2_K;
    FfnDown FirstPart(8) => Q4_K: Q2_K_S IQ3_M;
    FfnDown NoImatrixFirstPart(8) => Q4_K: IQ3_XXS;
    FfnDown NoImatrix => Q3_K: IQ3_XXS;
    FfnDown FirstPart(16) => Q5_K: Q3_K_M;
    FfnDown Always => Q4_K: Q3_K_M;
    FfnDown Experts8MoreBits => Q4_K: IQ3_M;
    FfnDown Always => Q5_K: Q3_K_L;
    FfnDown MoreBits => Q6_K: Q4_K_M Q5_K_M;
    FfnDown NoImatrixFirstPart(8) => Q5_K: IQ4_NL IQ4_XS;
    FfnDown FirstPart(8) => Q5_K: Q4_K_S;
    FfnDown ImatrixFirstPart(8) => Q4_1: Q4_0;
    FfnDown ImatrixFirstPart(8) => Q5_1: Q5_0;

    AttnOutput Experts8 => Q5_K: Q2_K IQ3_XS IQ3_XXS Q3_K_S Q3_K_M IQ4_NL Q4_K_S Q4_K_M IQ3_S IQ3_M IQ4_XS;
    AttnOutput NotExperts8 => Q3_K: Q2_K;
    AttnOutput NotExperts8 => IQ3_S: IQ3_XXS;
    AttnOutput NotExperts8 => Q4_K: Q3_K_M IQ3_M;
    AttnOutput NotExperts8 => Q5_K: Q3_K_L;

    FfnGate Middle => IQ3_XXS: IQ3_XS;
    FfnUp Middle => IQ3_XXS: IQ3_XS;
};

/// Presets whose output head gets Q5_K instead of Q6_K.
pub(super) const SMALL_HEAD: &[&str] = &["IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M"];

/// Presets with mixtures of their own: tensors are counted, not looked up by their layer, and neither the rule of eight
/// experts (`attn_v` in Q8_0) nor [`SMALL_ATTN_V`] holds.
pub(super) const OWN_MIXTURE: &[&str] = &["IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M"];
