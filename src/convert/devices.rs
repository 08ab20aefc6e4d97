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

/// Macs and plain memory, where GGUF files run too, smallest first. Memory in GiB.
const SHARED: &[(&str, u64)] = &[
    ("Mac 16GB", 16),
    ("Mac 24GB", 24),
    ("Mac 36GB", 36),
    ("Mac 48GB", 48),
    ("Mac 64GB", 64),
    ("Mac 128GB", 128),
    ("RAM 16GB", 16),
    ("RAM 32GB", 32),
    ("RAM 64GB", 64),
    ("RAM 128GB", 128),
];

/// Unified and plain memory is shared with the system; models can use about three quarters of it.
const UNIFIED_SHARE: f64 = 0.75;

fn devices(table: &[(&str, u64)]) -> Vec<Device> {
    table.iter().map(|(name, gib)| Device { name: name.to_string(), memory: gib * GIB }).collect()
}

/// Common devices, smallest first.
pub fn table() -> Vec<Device> {
    devices(TABLE)
}

/// Where GGUF files run: graphics cards, then Macs and memory of all sizes.
pub fn for_files() -> Vec<Device> {
    let cards: Vec<(&str, u64)> = TABLE.iter().filter(|(name, _)| !name.starts_with("Mac")).copied().collect();
    [devices(&cards), devices(SHARED)].concat()
}

/// So many of each device: the memory adds up.
pub fn several(devices: Vec<Device>, count: usize) -> Vec<Device> {
    let of = |device: Device| match count {
        0 | 1 => device,
        n => Device { name: format!("{n} × {}", device.name), memory: device.memory * n as u64 },
    };
    devices.into_iter().map(of).collect()
}

/// Devices that people name, beside those of the table. Memory in GiB.
const NAMED: &[(&str, u64)] = &[
    ("T4", 16),
    ("L4", 24),
    ("A10", 24),
    ("A40", 48),
    ("A100 40GB", 40),
    ("A100", 80),
    ("L40S", 48),
    ("H100", 80),
    ("H200", 141),
    ("B200", 180),
    ("MI300X", 192),
    ("RTX 2060", 6),
    ("RTX 2080 Ti", 11),
    ("RTX 3060", 12),
    ("RTX 3070", 8),
    ("RTX 3080", 10),
    ("RTX 3090", 24),
    ("RTX 4060 Ti", 16),
    ("RTX 4060", 8),
    ("RTX 4070", 12),
    ("RTX 4080", 16),
    ("RTX 4090", 24),
    ("RTX 5060", 8),
    ("RTX 5070", 12),
    ("RTX 5080", 16),
    ("RTX 5090", 32),
    ("RTX 6000 Ada", 48),
];

/// The device of this name, in any case and with or without spaces: `RTX 4090`, `4090`, `A100 80GB`, `Mac 64GB` or `RAM
/// 32GB` (of any size).
pub fn named(text: &str) -> Option<Device> {
    let bare = |text: &str| text.to_lowercase().replace([' ', '-', '_'], "").replace("gib", "gb");
    let asked = bare(text);
    for kind in ["Mac", "RAM"] {
        let size = asked.strip_prefix(&kind.to_lowercase()).and_then(|rest| rest.strip_suffix("gb"));
        if let Some(gib) = size.and_then(|n| n.parse().ok()) {
            return Some(Device { name: format!("{kind} {gib}GB"), memory: u64::min(gib, 1 << 20) * GIB });
        }
    }
    let known = || NAMED.iter().chain(TABLE);
    let same = |name: &str| bare(name) == asked || bare(name).strip_prefix("rtx") == Some(&asked);
    known().find(|(name, _)| same(name)).map(|(name, gib)| Device { name: name.to_string(), memory: gib * GIB })
}

/// What models can use of a device.
pub fn usable(device: &Device) -> u64 {
    let shared = ["Mac", "RAM"]
        .iter()
        .any(|kind| device.name.trim_start_matches(|c| "0123456789 ×".contains(c)).starts_with(kind));
    let share = if shared { UNIFIED_SHARE } else { 1.0 };
    (device.memory as f64 * share) as u64
}

/// Weights with compute buffers and the runtime.
pub fn with_overhead(weights: u64) -> u64 {
    weights + weights / 20 + GIB / 2
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
    let usable = usable(device);
    let needed = with_overhead(weights);
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
    fn devices_have_names() {
        for (name, gib) in
            [("RTX 4090", 24), ("4090", 24), ("rtx-3060", 12), ("A100 80GB", 80), ("mac 36gb", 36), ("ram 32GB", 32)]
        {
            assert_eq!(named(name).unwrap().memory, gib * GIB, "{name}");
        }
        assert!(named("24GB").is_none() && named("GTX").is_none() && named("").is_none());
    }

    #[test]
    fn memory_that_is_shared_is_not_all_for_the_model() {
        let of = |text: &str| usable(&named(text).unwrap()) / GIB;
        assert_eq!((of("Mac 64GB"), of("RAM 32GB"), of("RTX 4090")), (48, 24, 24));
        let two = several(vec![named("Mac 64GB").unwrap(), named("A100").unwrap()], 2);
        assert_eq!((two[0].name.as_str(), usable(&two[0]) / GIB), ("2 × Mac 64GB", 96));
        assert_eq!((two[1].name.as_str(), usable(&two[1]) / GIB), ("2 × A100", 160));
        assert!(for_files().iter().all(|d| named(&d.name).is_some_and(|n| n.memory == d.memory)));
    }

    #[test]
    fn an_8b_model_in_four_bits_fits_12_gb_but_not_4() {
        let device = |gib| Device { name: "x".into(), memory: gib * GIB };
        let fits = |gib, context| fit(&device(gib), 4_920_000_000, 131_072, context, 131_072).fits;
        assert!(fits(12, 8192));
        assert!(!fits(4, 1));
        assert!(!fits(12, 131_072));
    }
}
