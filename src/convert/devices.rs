//! Which devices hold a model with room for its context. Sizes are what the vendors print on the box.

use serde::Serialize;

/// A device, or a node of several.
#[derive(Clone, Debug, Serialize)]
pub struct Device {
    pub name: String,
    /// Total memory in bytes.
    pub memory: u64,
}

const GIB: u64 = 1 << 30;

/// Common devices, smallest first. Memory in GiB.
const TABLE: &[(&str, u64)] = &[
    ("Laptop GPU 8GB", 8),
    ("RTX 3060 12GB", 12),
    ("RTX 4080 16GB", 16),
    ("RTX 4090 24GB", 24),
    ("RTX 5090 32GB", 32),
    ("RTX 6000 Ada 48GB", 48),
    ("Mac 64GB", 64),
    ("A100 80GB", 80),
    ("2×A100 80GB", 160),
    ("4×A100 80GB", 320),
    ("8×A100 80GB", 640),
];

/// Unified memory is shared with the system; llama.cpp can use about three quarters of it.
const UNIFIED_SHARE: f64 = 0.75;

pub fn table() -> Vec<Device> {
    TABLE.iter().map(|(name, gib)| Device { name: name.to_string(), memory: gib * GIB }).collect()
}

/// How a file fits a device.
#[derive(Clone, Debug, Serialize)]
pub struct Fit {
    pub device: String,
    pub memory: u64,
    pub fits: bool,
    /// The longest context that fits, at most the model's own.
    pub context: u64,
}

/// Whether weights and a context of `context` tokens fit `device`, beside compute buffers of 5 % and 0.5 GiB for the runtime.
pub fn fit(device: &Device, weights: u64, kv_per_token: u64, context: u64, longest: u64) -> Fit {
    let share = if device.name.starts_with("Mac") { UNIFIED_SHARE } else { 1.0 };
    let usable = (device.memory as f64 * share) as u64;
    let needed = weights + weights / 20 + GIB / 2;
    let room = usable.saturating_sub(needed);
    let tokens = room.checked_div(kv_per_token).unwrap_or(longest).min(longest);
    Fit {
        device: device.name.clone(),
        memory: device.memory,
        fits: usable > needed && tokens >= context.min(longest),
        context: tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_8b_model_in_four_bits_fits_12_gb_but_not_4() {
        let device = |gib| Device { name: "x".into(), memory: gib * GIB };
        let fits = |gib, context| fit(&device(gib), 4_920_000_000, 131_072, context, 131_072).fits;
        assert!(fits(12, 8192));
        assert!(!fits(4, 1));
        assert!(!fits(12, 131_072));
    }
}
