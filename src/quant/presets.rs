//! llama.cpp's presets as tables: which type each tensor of a model gets under `Q4_K_M` and its relatives, which tensors
//! are left alone, and what takes the place of a type whose block does not divide a row. Decisions only, no arithmetic on
//! weights. Source: `llama-quant.cpp` (`llama_tensor_get_type_impl`, `tensor_allows_quantization`, `tensor_type_fallback`).

use super::GgmlType;
use GgmlType::*;
use regex::Regex;
use serde::Serialize;

/// A target that the command line knows by name.
#[derive(Debug, PartialEq, Eq)]
pub struct Preset {
    pub name: &'static str,
    /// GGUF `general.file_type` (llama.cpp's `llama_ftype`).
    pub file_type: u32,
    /// The type of tensors that no rule names.
    pub default: GgmlType,
}

macro_rules! presets {
    ($($name:ident $file_type:literal $default:ident)*) => {
        /// Every preset, by file type.
        pub const PRESETS: &[Preset] =
            &[$(Preset { name: stringify!($name), file_type: $file_type, default: $default }),*];
    };
}

presets! {
    F32 0 F32         F16 1 F16         Q4_0 2 Q4_0         Q4_1 3 Q4_1         Q8_0 7 Q8_0        Q5_0 8 Q5_0
    Q5_1 9 Q5_1       Q2_K 10 Q2_K      Q3_K_S 11 Q3_K      Q3_K_M 12 Q3_K      Q3_K_L 13 Q3_K     Q4_K_S 14 Q4_K
    Q4_K_M 15 Q4_K    Q5_K_S 16 Q5_K    Q5_K_M 17 Q5_K      Q6_K 18 Q6_K        IQ2_XXS 19 IQ2_XXS IQ2_XS 20 IQ2_XS
    Q2_K_S 21 Q2_K    IQ3_XS 22 IQ3_S   IQ3_XXS 23 IQ3_XXS  IQ1_S 24 IQ1_S      IQ4_NL 25 IQ4_NL   IQ3_S 26 IQ3_S
    IQ3_M 27 IQ3_S    IQ2_S 28 IQ2_XS   IQ2_M 29 IQ2_S      IQ4_XS 30 IQ4_XS    IQ1_M 31 IQ1_M     BF16 32 BF16
    TQ1_0 36 TQ1_0    TQ2_0 37 TQ2_0    MXFP4_MOE 38 MXFP4  Q1_0 40 Q1_0        Q2_0 41 Q2_0
}

/// Finds a preset by name in any case, by llama.cpp's file-type number, or by an alias (`Q4_K` means `Q4_K_M`).
pub fn find(text: &str) -> Option<&'static Preset> {
    let upper = text.trim().to_ascii_uppercase().replace('-', "_");
    let name = match upper.as_str() {
        "Q3_K" => "Q3_K_M",
        "Q4_K" => "Q4_K_M",
        "Q5_K" => "Q5_K_M",
        "MXFP4" => "MXFP4_MOE",
        "FP16" => "F16",
        "FP32" => "F32",
        other => other,
    };
    let number = name.parse().ok();
    PRESETS.iter().find(|p| p.name == name || number == Some(p.file_type))
}

/// What a tensor is to the rules, by its GGUF name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Category {
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

fn category(name: &str) -> Category {
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
        "token_embd.weight" | "per_layer_token_embd.weight" => Category::Embedding,
        _ => BY_PART.iter().find(|(part, _)| name.contains(part)).map_or(Category::Other, |(_, c)| *c),
    }
}

/// When a rule applies to a tensor. `i` is its place among the tensors of its category, `n` how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
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

struct Rule {
    presets: &'static [&'static str],
    category: Category,
    when: When,
    ty: GgmlType,
}

macro_rules! rules {
    ($($category:ident $when:expr => $ty:ident: $($preset:ident)+;)*) => {
        &[$(Rule { presets: &[$(stringify!($preset)),+], category: Category::$category, when: { use When::*; $when }, ty: $ty }),*]
    };
}

/// The first rule that matches decides; where none does, the preset's default type stays. (The embedding rows are those
/// of an untied embedding; a tied one is treated as the output.)
const RULES: &[Rule] = rules! {
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
const SMALL_HEAD: &[&str] = &["IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M"];
/// Presets for which llama.cpp's rule of eight experts (attn_v in Q8_0) and of 70B models (attn_v in Q5_K) do not hold.
const OWN_ATTN_V: &[&str] = &["IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M"];

/// What the rules need to know about a model.
#[derive(Clone, Debug)]
pub struct ModelFacts<'a> {
    pub arch: &'a str,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// 0 without experts.
    pub experts: usize,
    pub has_imatrix: bool,
}

/// A tensor to be decided on. `shape` is outermost first.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    /// What it is when it is not quantized: its type in a 16-bit conversion.
    pub kept: GgmlType,
}

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    pub preset: &'static Preset,
    /// The default type for every tensor, no mixture rules.
    pub pure: bool,
    pub leave_output: bool,
    pub output: Option<GgmlType>,
    pub embedding: Option<GgmlType>,
    /// Searched in the tensor's name; the first match wins.
    pub overrides: Vec<(Regex, GgmlType)>,
}

/// Why a tensor has its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The preset's default type.
    Default,
    /// The preset's mixture has a rule for this tensor.
    Mixture,
    /// A rule of the command line.
    Asked,
    /// Norms, biases, routers: never quantized.
    Kept,
    /// The block of the wanted type does not divide the row.
    Fallback,
    /// What a budget of bytes was best spent on.
    Budget,
}

/// The decision on one tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Choice {
    #[serde(serialize_with = "type_name")]
    pub wanted: GgmlType,
    #[serde(serialize_with = "type_name")]
    pub got: GgmlType,
    pub why: Why,
}

fn type_name<S: serde::Serializer>(ty: &GgmlType, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(ty.name())
}

/// Decides on every tensor of a model, in the order given. Returns the choices, and the overrides (by index) that
/// matched no tensor.
pub fn choose(request: &Request, facts: &ModelFacts, tensors: &[Candidate]) -> (Vec<Choice>, Vec<usize>) {
    let mut unused: Vec<bool> = vec![true; request.overrides.len()];
    for (rule, unused) in request.overrides.iter().zip(&mut unused) {
        *unused = !tensors.iter().any(|t| rule.0.is_match(t.name));
    }
    // llama.cpp counts tensors layer by layer, and within a layer by name.
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|i| (layer_of(tensors[*i].name), tensors[*i].name));
    let tied = !tensors.iter().any(|t| t.name == "output.weight");
    let attn_v = tensors.iter().filter(|t| category(t.name) == Category::AttnV).count();
    let mut counters = [0usize; 4];
    let mut choices = vec![None; tensors.len()];
    for i in order {
        choices[i] = Some(decide(request, facts, &tensors[i], tied, attn_v, &mut counters));
    }
    let unused = unused.iter().enumerate().filter(|(_, unused)| **unused).map(|(i, _)| i).collect();
    (choices.into_iter().flatten().collect(), unused)
}

fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// Parts of the names of matrices that stay as they are: routers, positions, and what is too small to matter. (The norms
/// are told by their ending.)
const NEVER_QUANTIZED: &[&str] = &[
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "position_embd.",
    "token_types.",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.",
    "indexer.k_proj.",
    "indexer.q_proj.",
    "attn_rel_b.",
    "time_mix_",
];

/// Norms, biases, routers and other small tensors stay as they are.
pub fn allows_quantization(name: &str, shape: &[usize]) -> bool {
    // A matrix of one row is a vector to ggml.
    let dims = shape.iter().skip_while(|d| **d == 1).count();
    dims >= 2
        && name.ends_with("weight")
        && !name.ends_with("_norm.weight")
        && !NEVER_QUANTIZED.iter().any(|part| name.contains(part))
}

fn decide(
    request: &Request,
    facts: &ModelFacts,
    tensor: &Candidate,
    tied: bool,
    attn_v: usize,
    counters: &mut [usize; 4],
) -> Choice {
    let category = category(tensor.name);
    let kept = Choice { wanted: tensor.kept, got: tensor.kept, why: Why::Kept };
    if !allows_quantization(tensor.name, tensor.shape) {
        return kept;
    }
    let is_output = category == Category::Output;
    if is_output && request.leave_output {
        return kept;
    }
    let default = request.preset.default;
    let asked = |ty| fall_back(ty, tensor, Why::Asked);
    match (category, request.embedding, request.output) {
        (Category::Embedding, Some(ty), _) => return asked(ty),
        (Category::Output, _, Some(ty)) => return asked(ty),
        _ => {}
    }
    if let Some((_, ty)) = request.overrides.iter().find(|(re, _)| re.is_match(tensor.name)) {
        return asked(*ty);
    }
    if default.is_plain() || request.pure {
        return fall_back(default, tensor, Why::Default);
    }
    let ty = if is_output || (tied && category == Category::Embedding) {
        match request.output {
            Some(ty) => return asked(ty),
            None => head_type(request.preset, tensor),
        }
    } else if request.preset.name == "MXFP4_MOE" {
        if tensor.shape.len() > 2 && tensor.shape[0] > 1 { MXFP4 } else { Q8_0 }
    } else {
        mixture(request.preset, facts, category, tensor.name, attn_v, counters).unwrap_or(default)
    };
    fall_back(ty, tensor, if ty == default { Why::Default } else { Why::Mixture })
}

/// The type of the output head, or of an embedding that doubles as one.
fn head_type(preset: &Preset, tensor: &Candidate) -> GgmlType {
    let cols = tensor.shape.last().copied().unwrap_or(0);
    if preset.name == "MXFP4_MOE" || !cols.is_multiple_of(preset.default.block()) || preset.default == Q8_0 {
        Q8_0
    } else if SMALL_HEAD.contains(&preset.name) {
        Q5_K
    } else {
        Q6_K
    }
}

/// Walks the rules, and advances the counters as llama.cpp does.
fn mixture(
    preset: &Preset,
    facts: &ModelFacts,
    category: Category,
    name: &str,
    attn_v: usize,
    counters: &mut [usize; 4],
) -> Option<GgmlType> {
    let (slot, n) = match category {
        Category::AttnV => (Some(0), attn_v),
        Category::FfnDown => (Some(1), facts.layers),
        Category::FfnGate => (Some(2), facts.layers),
        Category::FfnUp => (Some(3), facts.layers),
        _ => (None, 0),
    };
    let mut i = slot.map_or(0, |s| counters[s]);
    // With experts the counter is no guide to the layer; the name is.
    let by_name = facts.experts > 1 && category != Category::AttnV && !OWN_ATTN_V.contains(&preset.name);
    if let (true, Some(layer)) = (by_name, layer_of(name)) {
        i = layer;
    }
    if let Some(slot) = slot {
        counters[slot] += 1;
    }
    let more_bits = i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
    let gqa4 = facts.heads / facts.kv_heads.max(1) >= 4;
    let holds = |when: When| match when {
        When::Always => true,
        When::MoreBits => more_bits,
        When::First(k) => i < k,
        When::FirstPart(k) => i < n / k,
        When::Middle => i >= n / 8 && i < 7 * n / 8,
        When::Gqa4 => gqa4,
        When::Gqa4OrExperts4 => gqa4 || facts.experts >= 4,
        When::NoImatrix => !facts.has_imatrix,
        When::NoImatrixFirstPart(k) => !facts.has_imatrix && i < n / k,
        When::ImatrixFirstPart(k) => facts.has_imatrix && i < n / k,
        When::Experts8 => facts.experts == 8,
        When::NotExperts8 => facts.experts != 8,
        When::Experts8MoreBits => facts.experts == 8 && more_bits,
    };
    let rule = RULES.iter().find(|r| r.category == category && r.presets.contains(&preset.name) && holds(r.when));
    let mut ty = rule.map(|r| r.ty);
    if category == Category::AttnV && !OWN_ATTN_V.contains(&preset.name) {
        let is_70b =
            facts.layers == 80 && (facts.arch == "qwen2" || facts.arch == "llama" && facts.heads != facts.kv_heads);
        if is_70b && matches!(ty.unwrap_or(preset.default), Q3_K | Q4_K) {
            ty = Some(Q5_K);
        }
        if facts.experts == 8 {
            ty = Some(Q8_0);
        }
    }
    ty
}

/// The wanted type, or what takes its place where its block does not divide the row.
fn fall_back(wanted: GgmlType, tensor: &Candidate, why: Why) -> Choice {
    let cols = tensor.shape.last().copied().unwrap_or(0);
    let fits = |ty: GgmlType| cols.is_multiple_of(ty.block());
    if fits(wanted) {
        return Choice { wanted, got: wanted, why };
    }
    let substitute = wanted.info().fallback;
    Choice { wanted, got: if fits(substitute) { substitute } else { F16 }, why: Why::Fallback }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(layers: usize, experts: usize) -> ModelFacts<'static> {
        ModelFacts { arch: "llama", layers, heads: 32, kv_heads: 8, experts, has_imatrix: false }
    }

    fn request(name: &str) -> Request {
        let preset = find(name).unwrap();
        Request { preset, pure: false, leave_output: false, output: None, embedding: None, overrides: Vec::new() }
    }

    fn names(layers: usize) -> Vec<String> {
        let mut names = vec!["output.weight".to_string(), "token_embd.weight".to_string()];
        for i in 0..layers {
            for part in ["attn_norm", "attn_v", "attn_q", "attn_output", "ffn_down", "ffn_gate", "ffn_up"] {
                names.push(format!("blk.{i}.{part}.weight"));
            }
        }
        names
    }

    fn types(request: &Request, facts: &ModelFacts, cols: usize) -> Vec<(String, Choice)> {
        let names = names(facts.layers);
        let shape = [64, cols];
        let tensors: Vec<_> = names
            .iter()
            .map(|n| Candidate { name: n, shape: if n.contains("norm") { &shape[..1] } else { &shape }, kept: F32 })
            .collect();
        let (choices, _) = choose(request, facts, &tensors);
        names.iter().cloned().zip(choices).collect()
    }

    fn of(choices: &[(String, Choice)], name: &str) -> GgmlType {
        choices.iter().find(|(n, _)| n == name).unwrap().1.got
    }

    #[test]
    fn names_numbers_and_aliases() {
        for text in ["q4_k_m", "Q4_K_M", "15", "q4_k", "Q4-K-M"] {
            assert_eq!(find(text).unwrap().name, "Q4_K_M", "{text}");
        }
        assert_eq!(find("7").unwrap().name, "Q8_0");
        assert!(find("q9_x").is_none() && find("").is_none() && find("99").is_none());
    }

    #[test]
    fn q4_k_m_gives_more_bits_to_the_ends_and_every_third_layer() {
        let choices = types(&request("q4_k_m"), &facts(16, 0), 256);
        let more: Vec<usize> = (0..16).filter(|i| of(&choices, &format!("blk.{i}.ffn_down.weight")) == Q6_K).collect();
        assert_eq!(more, [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(of(&choices, "output.weight"), Q6_K);
        assert_eq!(of(&choices, "token_embd.weight"), Q4_K);
        assert_eq!(of(&choices, "blk.3.attn_norm.weight"), F32);
    }

    #[test]
    fn eight_experts_keep_values_in_eight_bits() {
        let choices = types(&request("q4_k_m"), &facts(16, 8), 256);
        assert_eq!(of(&choices, "blk.5.attn_v.weight"), Q8_0);
        assert_eq!(of(&choices, "blk.5.attn_output.weight"), Q5_K);
    }

    #[test]
    fn rows_that_are_not_whole_blocks_fall_back() {
        let choices = types(&request("q4_k_m"), &facts(4, 0), 576);
        let choice = &choices.iter().find(|(n, _)| n == "blk.1.ffn_gate.weight").unwrap().1;
        assert_eq!((choice.wanted, choice.got, choice.why), (Q4_K, Q5_0, Why::Fallback));
        assert_eq!(of(&types(&request("q4_k_m"), &facts(4, 0), 40), "blk.1.ffn_gate.weight"), F16);
    }

    #[test]
    fn what_was_asked_for_wins() {
        let mut r = request("q4_k_m");
        r.overrides = vec![(Regex::new("ffn_down").unwrap(), Q8_0), (Regex::new("nothing").unwrap(), Q8_0)];
        r.output = Some(F16);
        let choices = types(&r, &facts(4, 0), 256);
        assert_eq!(of(&choices, "blk.0.ffn_down.weight"), Q8_0);
        assert_eq!(of(&choices, "output.weight"), F16);
        let names = names(4);
        let shape = [64, 256];
        let tensors: Vec<_> = names.iter().map(|n| Candidate { name: n, shape: &shape, kept: F32 }).collect();
        assert_eq!(choose(&r, &facts(4, 0), &tensors).1, [1]);
    }

    #[test]
    fn pure_has_no_mixture() {
        let mut r = request("q4_k_m");
        r.pure = true;
        let choices = types(&r, &facts(16, 0), 256);
        assert!(choices.iter().all(|(n, c)| n.contains("norm") || c.got == Q4_K));
    }
}
