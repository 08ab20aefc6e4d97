//! llama.cpp's presets as tables: which type each tensor of a model gets under `Q4_K_M` and its relatives, which tensors
//! are left alone, and what takes the place of a type whose block does not divide a row. Decisions only, no arithmetic on
//! weights. Source: `llama-quant.cpp` (`llama_tensor_get_type_impl`, `tensor_allows_quantization`, `tensor_type_fallback`).

mod rules;

pub use rules::layer_of;

use super::GgmlType;
use GgmlType::*;
use regex::Regex;
use rules::{Category, OWN_MIXTURE, Own, PER_LAYER_EMBEDDING, RULES, SMALL_ATTN_V, SMALL_HEAD, When, category};
use serde::Serialize;

/// A target that the command line knows by name.
#[derive(Debug, PartialEq, Eq)]
pub struct Preset {
    /// Its name in llama.cpp.
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

/// What the rules need to know about a model.
#[derive(Clone, Copy, Debug)]
pub struct ModelFacts<'a> {
    /// GGUF's name of the architecture.
    pub arch: &'a str,
    /// Blocks, those of multi-token prediction among them.
    pub layers: usize,
    /// Query heads of the first layer.
    pub heads: usize,
    /// Key/value heads of the first layer; 0 where it has no attention.
    pub kv_heads: usize,
    /// 0 without experts.
    pub experts: usize,
    pub has_imatrix: bool,
}

impl ModelFacts<'_> {
    /// Whether at least four query heads share a key/value head, as far as the first layer tells.
    fn gqa4(&self) -> bool {
        self.heads.checked_div(self.kv_heads).is_some_and(|n| n >= 4)
    }

    /// Whether this is one of the large models whose `attn_v` is small against the rest.
    fn has_small_attn_v(&self) -> bool {
        SMALL_ATTN_V.iter().any(|(arch, n, grouped)| {
            *arch == self.arch && *n == self.layers && (!grouped || self.heads != self.kv_heads)
        })
    }
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
    /// What the preset's rules say.
    #[serde(serialize_with = "type_name")]
    pub wanted: GgmlType,
    /// What the tensor got.
    #[serde(serialize_with = "type_name")]
    pub got: GgmlType,
    /// Why that is another type, where it is.
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

fn decide(
    request: &Request,
    facts: &ModelFacts,
    tensor: &Candidate,
    tied: bool,
    attn_v: usize,
    counters: &mut [usize; 4],
) -> Choice {
    let (category, own) = (category(tensor.name), Own::of(facts.arch));
    let kept = Choice { wanted: tensor.kept, got: tensor.kept, why: Why::Kept };
    let is_integer = matches!(tensor.kept, I8 | I16 | I32 | I64);
    if is_integer || !own.allows_quantization(tensor.name, tensor.shape) {
        return kept;
    }
    let is_output = category == Category::Output;
    if is_output && request.leave_output {
        return kept;
    }
    let default = request.preset.default;
    let asked = |ty| fall_back(ty, tensor, Why::Asked);
    let named = request.overrides.iter().find(|(re, _)| re.is_match(tensor.name));
    match (category, request.embedding, request.output) {
        (Category::Embedding, Some(ty), _) if tensor.name != PER_LAYER_EMBEDDING || named.is_none() => {
            return asked(ty);
        }
        (Category::Output, _, Some(ty)) => return asked(ty),
        _ => {}
    }
    if let Some((_, ty)) = named {
        return asked(*ty);
    }
    if default.is_plain() || request.pure {
        return fall_back(default, tensor, Why::Default);
    }
    let ty = if own.wants_eight_bits(tensor.name) {
        Q8_0
    } else if is_output || (tied && category == Category::Embedding) {
        match request.output {
            Some(ty) => return asked(ty),
            None => head_type(request.preset, own, tensor),
        }
    } else if request.preset.name == "MXFP4_MOE" {
        let stacked = tensor.shape.iter().nth_back(2).is_some_and(|n| *n > 1);
        let in_ffn = matches!(category, Category::FfnUp | Category::FfnGate | Category::FfnDown);
        if stacked && (in_ffn || !own.only_experts_in_mxfp4) { MXFP4 } else { Q8_0 }
    } else {
        mixture(request.preset, facts, category, tensor.name, attn_v, counters)
    };
    fall_back(ty, tensor, if ty == default { Why::Default } else { Why::Mixture })
}

/// The type of the output head, or of an embedding that doubles as one.
fn head_type(preset: &Preset, own: &Own, tensor: &Candidate) -> GgmlType {
    let cols = tensor.shape.last().copied().unwrap_or(0);
    let whole = cols.is_multiple_of(preset.default.block());
    if preset.name == "MXFP4_MOE" || own.eight_bit_head || !whole || preset.default == Q8_0 {
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
) -> GgmlType {
    let (slot, n) = match category {
        Category::AttnV => (Some(0), attn_v),
        Category::FfnDown => (Some(1), facts.layers),
        Category::FfnGate => (Some(2), facts.layers),
        Category::FfnUp => (Some(3), facts.layers),
        _ => (None, 0),
    };
    let mut i = slot.map_or(0, |s| counters[s]);
    // With experts the counter is no guide to the layer; the name is.
    let by_name = facts.experts > 1 && category != Category::AttnV && !OWN_MIXTURE.contains(&preset.name);
    if let (true, Some(layer)) = (by_name, layer_of(name)) {
        i = layer;
    }
    if let Some(slot) = slot {
        counters[slot] += 1;
    }
    let more_bits = i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
    let holds = |when: When| match when {
        When::Always => true,
        When::MoreBits => more_bits,
        When::First(k) => i < k,
        When::FirstPart(k) => i < n / k,
        When::Middle => i >= n / 8 && i < 7 * n / 8,
        When::Gqa4 => facts.gqa4(),
        When::Gqa4OrExperts4 => facts.gqa4() || facts.experts >= 4,
        When::NoImatrix => !facts.has_imatrix,
        When::NoImatrixFirstPart(k) => !facts.has_imatrix && i < n / k,
        When::ImatrixFirstPart(k) => facts.has_imatrix && i < n / k,
        When::Experts8 => facts.experts == 8,
        When::NotExperts8 => facts.experts != 8,
        When::Experts8MoreBits => facts.experts == 8 && more_bits,
    };
    let rule = RULES.iter().find(|r| {
        let here = r.category == category && r.presets.contains(&preset.name);
        here && r.arch.is_none_or(|arch| arch == facts.arch) && holds(r.when)
    });
    let ty = rule.and_then(|r| r.ty).unwrap_or(preset.default);
    if category != Category::AttnV || OWN_MIXTURE.contains(&preset.name) {
        return ty;
    }
    match ty {
        _ if facts.experts == 8 => Q8_0,
        Q3_K | Q4_K if facts.has_small_attn_v() => Q5_K,
        ty => ty,
    }
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
