//! What is lost where an engine keeps keys and values in fewer bits: they are rounded as it would round them, and stay `f32`.
//! llama.cpp turns queries, keys and values of such a cache by a Hadamard matrix before (`llama-kv-cache.cpp`), which
//! spreads outliers; the attention is the same, so the rounded ones are turned back here. vLLM's `fp8` has the scale 1.

use crate::minifloat::{E4M3_MAX, e4m3, to_e4m3};
use crate::model::Config;
use crate::model::config::Mixer;
use crate::quant::{self, GgmlType};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Columns that are turned together at least, by a power of two that divides the head.
const ROTATED: usize = 64;

/// How numbers are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Ggml(GgmlType),
    Fp8,
}

/// The types of a cache that keeps keys and values rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KvCache {
    keys: Kept,
    values: Kept,
}

/// The types that llama.cpp has for a cache.
const TYPES: [GgmlType; 8] = [
    GgmlType::F16,
    GgmlType::BF16,
    GgmlType::Q8_0,
    GgmlType::Q5_1,
    GgmlType::Q5_0,
    GgmlType::Q4_1,
    GgmlType::Q4_0,
    GgmlType::IQ4_NL,
];

impl FromStr for Kept {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let wanted = name.trim();
        if wanted.eq_ignore_ascii_case("fp8") {
            return Ok(Kept::Fp8);
        }
        let known = TYPES.into_iter().find(|ty| ty.name().eq_ignore_ascii_case(wanted));
        let names = || TYPES.map(|ty| ty.name().to_lowercase()).join(", ");
        known.map(Kept::Ggml).ok_or_else(|| format!("'{wanted}' is not a cache type; these are: fp8, {}", names()))
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kept::Ggml(ty) => f.write_str(&ty.name().to_lowercase()),
            Kept::Fp8 => f.write_str("fp8"),
        }
    }
}

/// One type for both, or `KEYS,VALUES`.
impl FromStr for KvCache {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once(',') {
            None => text.parse().map(|both| KvCache { keys: both, values: both }),
            Some((keys, values)) => Ok(KvCache { keys: keys.parse()?, values: values.parse()? }),
        }
    }
}

impl TryFrom<String> for KvCache {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<KvCache> for String {
    fn from(types: KvCache) -> Self {
        types.to_string()
    }
}

impl fmt::Display for KvCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.keys == self.values {
            true => self.keys.fmt(f),
            false => write!(f, "{},{}", self.keys, self.values),
        }
    }
}

impl KvCache {
    /// That the keys and values of a model can be kept so.
    ///
    /// # Errors
    /// `Request` where blocks do not divide a head, or nothing is kept.
    pub(super) fn fit(&self, config: &Config) -> Result<()> {
        let mixers = config.layers.iter().flat_map(|layer| std::iter::once(&layer.mixer).chain(&layer.beside));
        let mut nothing = true;
        for mixer in mixers {
            match mixer {
                Mixer::Attention(heads) => {
                    self.keys.fits(heads.dim)?;
                    self.values.fits(heads.value_dim)?;
                }
                // The latent vectors are keys, and values with them.
                Mixer::Latent(latent) => self.keys.fits(latent.rank + latent.rotated)?,
                _ => continue,
            }
            nothing = false;
        }
        match nothing {
            true => Err(Error::request("the model keeps no keys and values that could be rounded")),
            false => Ok(()),
        }
    }

    /// Rounds the keys of a position, heads of `dim` one after the other.
    pub(super) fn keys(&self, keys: &mut [f32], dim: usize) {
        // The largest power of two that divides the head.
        self.keys.round(keys, dim, 1 << dim.trailing_zeros());
    }

    /// Rounds the values of a position, heads of `dim` one after the other.
    pub(super) fn values(&self, values: &mut [f32], dim: usize) {
        self.values.round(values, dim, ROTATED);
    }
}

impl Kept {
    fn fits(self, dim: usize) -> Result<()> {
        match self {
            Kept::Ggml(ty) if !dim.is_multiple_of(ty.block()) => {
                let what = format!("heads of {dim} columns are not whole blocks of {self}, which hold {}", ty.block());
                Err(Error::request(what))
            }
            _ => Ok(()),
        }
    }

    fn round(self, row: &mut [f32], dim: usize, rotated: usize) {
        match self {
            Kept::Fp8 => row.iter_mut().for_each(|v| *v = e4m3(to_e4m3(v.clamp(-E4M3_MAX, E4M3_MAX)))),
            Kept::Ggml(ty) => {
                let turns = ty.block() > 1 && dim.is_multiple_of(ROTATED);
                let turn = |row: &mut [f32]| row.chunks_exact_mut(rotated).for_each(hadamard);
                if turns {
                    turn(row);
                }
                let mut bytes = vec![0; row.len() / ty.block() * ty.block_bytes()];
                let kept = quant::quantize_rows(ty, row, row.len(), None, &mut bytes);
                // What is no number stays what it is, and shows in the logits.
                if kept.and_then(|()| quant::dequantize_rows(ty, &bytes, row)).is_err() {
                    row.fill(f32::NAN);
                }
                if turns {
                    turn(row);
                }
            }
        }
    }
}

/// `row` (a power of two) times the orthonormal Walsh-Hadamard matrix, which is its own inverse.
fn hadamard(row: &mut [f32]) {
    let mut half = 1;
    while half < row.len() {
        for pair in row.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            low.iter_mut().zip(high).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
        }
        half *= 2;
    }
    let scale = 1.0 / (row.len() as f32).sqrt();
    row.iter_mut().for_each(|v| *v *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made::numbers;

    #[test]
    fn names_come_back() {
        for name in ["q8_0", "fp8", "q8_0,q4_0", "f16,iq4_nl"] {
            assert_eq!(name.parse::<KvCache>().unwrap().to_string(), name);
        }
        assert_eq!("Q8_0, Q8_0".parse::<KvCache>().unwrap().to_string(), "q8_0");
        assert!("q6_k".parse::<KvCache>().unwrap_err().contains("iq4_nl"));
        let q8: Kept = "q8_0".parse().unwrap();
        assert!(q8.fits(64).is_ok() && q8.fits(80).unwrap_err().to_string().contains("80"));
    }

    #[test]
    fn turning_twice_changes_nothing_and_spreads_an_outlier() {
        let row = numbers(64, 5);
        let mut turned = row.clone();
        hadamard(&mut turned);
        let norm = |x: &[f32]| x.iter().map(|v| v * v).sum::<f32>();
        assert!((norm(&row) - norm(&turned)).abs() < 1e-4);
        hadamard(&mut turned);
        assert!(row.iter().zip(&turned).all(|(a, b)| (a - b).abs() < 1e-6));
        let mut spike = [0.0; 64];
        spike[3] = 8.0;
        hadamard(&mut spike);
        assert!(spike.iter().all(|v| v.abs() == 1.0));
    }

    #[test]
    fn an_outlier_costs_less_where_heads_are_turned() {
        let error = |dim: usize| {
            let mut row = numbers(dim, 7);
            row[9] = 40.0;
            let mut kept = row.clone();
            "q4_0".parse::<KvCache>().unwrap().keys(&mut kept, dim);
            row.iter().zip(&kept).map(|(a, b)| (a - b) * (a - b)).sum::<f32>() / dim as f32
        };
        // 96 is no multiple of 64 and is not turned.
        assert!(error(128) < 0.5 * error(96), "{} {}", error(128), error(96));
        let mut row = [1.0, 500.0, -0.3, 2e-4];
        "fp8".parse::<KvCache>().unwrap().values(&mut row, 4);
        assert_eq!(row[..2], [1.0, 448.0]);
    }
}
