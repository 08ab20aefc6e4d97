//! What can be made, for people: the names of types and formats with their bits and purposes, and what a name that is
//! none of them may have meant.

use super::asked::PLAIN;
use crate::packed::{self, FORMATS, Loader};
use crate::quant::presets::PRESETS;
use serde::Serialize;

/// What people take who ask for nothing in particular.
pub const USUAL: &str = "q4_k_m, q5_k_m, q6_k, q8_0 (GGUF files), gptq, awq, fp8, nvfp4, nf4, mlx-4bit (folders)";

/// A type or format.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    pub name: String,
    /// `gguf` or `folder`.
    pub kind: &'static str,
    /// Who reads it.
    pub group: &'static str,
    /// Of GGUF files those of the type of most tensors, of folders those of a weight without its scales.
    pub bits: f64,
    pub purpose: &'static str,
}

/// The groups, with what is said of them.
const GROUPS: [&str; 7] = [
    "GGUF: K-quants (llama.cpp, Ollama, LM Studio)",
    "GGUF: i-quants, smaller and slower; below four bits with calibration only",
    "GGUF: plain blocks",
    "GGUF: not quantized",
    "GGUF: others",
    "Folders: vLLM, SGLang, transformers",
    "Folders: MLX (Apple)",
];

/// What presets are for, by the beginnings of their names; the first that fits counts.
const OF_PRESETS: [(&str, usize, &str); 25] = [
    ("Q4_K_M", 0, "the usual choice"),
    ("Q4_K_S", 0, "a little smaller than Q4_K_M"),
    ("Q5_K", 0, "where Q4_K_M loses too much"),
    ("Q6_K", 0, "close to the original"),
    ("Q3_K", 0, "where memory is short"),
    ("Q2_K", 0, "the smallest of these; much is lost"),
    ("IQ4_XS", 1, "smaller than Q4_K_S, about as good"),
    ("IQ4_NL", 1, "rows that are no multiple of 256"),
    ("IQ3", 1, "better than Q3_K at its size"),
    ("IQ2", 1, "large models in little memory"),
    ("IQ1", 1, "very large models only"),
    ("Q8_0", 2, "nearly lossless"),
    ("Q4_0", 2, "fast on ARM; Q4_K_M is better"),
    ("Q4_1", 2, "older than K-quants"),
    ("Q5_", 2, "older than K-quants"),
    ("F16", 3, "half precision"),
    ("BF16", 3, "half precision with the range of F32"),
    ("F32", 3, "as wide as it gets"),
    ("MXFP4", 4, "experts of models trained so (gpt-oss)"),
    ("TQ1", 4, "models with ternary weights"),
    ("TQ2", 4, "models with ternary weights, faster"),
    ("Q1_0", 4, "models with binary weights"),
    ("Q2_0", 4, "models with weights of two bits"),
    ("Q", 4, ""),
    ("", 4, ""),
];

/// Everything, group by group; in each the largest first.
pub fn all() -> Vec<(&'static str, Vec<Entry>)> {
    let mut groups: Vec<(&'static str, Vec<Entry>)> = GROUPS.iter().map(|group| (*group, Vec::new())).collect();
    for preset in PRESETS {
        let fits = OF_PRESETS.iter().find(|(begin, ..)| preset.name.starts_with(begin));
        let (group, purpose) = fits.map_or((4, ""), |(_, group, purpose)| (*group, *purpose));
        let (name, bits) = (preset.name.to_lowercase(), preset.default.bits());
        groups[group].1.push(Entry { name, kind: "gguf", group: GROUPS[group], bits, purpose });
    }
    for format in FORMATS {
        let Some(first) = format.names.first() else { continue };
        // Of MLX's own groups people say the width.
        let name = if first.words == "mlx" { "mlx-4bit".to_string() } else { first.words.to_string() };
        let (purpose, bits) = (format.purpose, f64::from(first.bits));
        let at = if format.tool.loader == Loader::Mlx { 6 } else { 5 };
        groups[at].1.push(Entry { name, kind: "folder", group: GROUPS[at], bits, purpose });
    }
    let (name, purpose) = (PLAIN.to_string(), "not quantized: back to plain weights, from anything that is read");
    groups[5].1.push(Entry { name, kind: "folder", group: GROUPS[5], bits: 16.0, purpose });
    groups.iter_mut().for_each(|(_, entries)| entries.sort_by(|a, b| b.bits.total_cmp(&a.bits)));
    groups
}

/// Letters and digits alone.
fn bare(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// What a name that is none may have meant, the nearest first.
pub fn near(name: &str) -> Vec<String> {
    let asked = bare(name);
    if let Some(bits) = bits_alone(&asked) {
        let usual: &[&str] = match bits {
            2 => &["q2_k", "iq2_m"],
            3 => &["q3_k_m", "iq3_m"],
            4 => &["q4_k_m (GGUF)", "gptq, awq (vLLM)", "nf4 (bitsandbytes)", "mlx-4bit (MLX)"],
            5 => &["q5_k_m"],
            6 => &["q6_k", "mlx-6bit"],
            8 => &["q8_0 (GGUF)", "fp8, int8 (vLLM)", "mlx-8bit (MLX)"],
            16 => &["f16", "bf16"],
            _ => &[],
        };
        return usual.iter().map(|s| s.to_string()).collect();
    }
    let known: Vec<String> = PRESETS
        .iter()
        .map(|p| p.name.to_lowercase())
        .chain([PLAIN.to_string()])
        .chain(FORMATS.iter().flat_map(|f| f.spellings().map(String::from)))
        .collect();
    let most = if asked.len() < 4 { 1 } else { 2 };
    let mut found: Vec<(usize, String)> = known
        .into_iter()
        .map(|name| (distance(&asked, &bare(&name)), name))
        .filter(|(d, name)| *d <= most && *d < bare(name).len())
        .collect();
    found.sort_by_key(|(d, _)| *d);
    let best = found.first().map_or(0, |(d, _)| *d);
    found.into_iter().filter(|(d, _)| *d == best).take(3).map(|(_, name)| name).collect()
}

/// `4bit`, `int4`, `w4`, `4`.
fn bits_alone(bare: &str) -> Option<u32> {
    let digits = ["bits", "bit", "b"].iter().find_map(|end| bare.strip_suffix(end)).unwrap_or(bare);
    let digits = ["int", "w", "i", "q"].iter().find_map(|begin| digits.strip_prefix(begin)).unwrap_or(digits);
    digits.parse().ok().filter(|_| packed::parse(bare).is_none())
}

/// Letters that have to be put in, left out, replaced or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<u8>, Vec<u8>) = (a.bytes().collect(), b.bytes().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = match (i, j) {
                (0, n) | (n, 0) => n,
                _ => {
                    let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                    match i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                        true => least.min(rows[i - 2][j - 2] + 1),
                        false => least,
                    }
                }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_lead_to_names() {
        assert_eq!(near("q4km"), ["q4_k_m"]);
        assert_eq!(near("nvpf4"), ["nvfp4"]);
        assert_eq!(near("Q4-K-N"), ["q4_k_s", "q4_k_m"]);
        assert_eq!(near("gtpq"), ["gptq"]);
        assert!(near("4bit")[0].starts_with("q4_k_m") && near("4bit").iter().any(|n| n.contains("mlx-4bit")));
        assert_eq!(near("int2"), ["q2_k", "iq2_m"]);
        assert!(near("banana").is_empty());
    }

    #[test]
    fn every_name_is_one_and_says_what_it_is_for() {
        let all = all();
        let entries: Vec<&Entry> = all.iter().flat_map(|(_, entries)| entries).collect();
        // And the one without quantization.
        assert_eq!(entries.len(), PRESETS.len() + FORMATS.len() + 1);
        for entry in entries {
            assert!(crate::convert::Target::parse(&entry.name).is_ok(), "{}", entry.name);
            assert!(!entry.purpose.is_empty(), "{} has no purpose", entry.name);
        }
    }
}
