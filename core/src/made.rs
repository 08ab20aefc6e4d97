//! Numbers for tests.

/// `n` repeatable numbers in -1 .. 1.
pub fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed;
    let mut next = || {
        s = s.wrapping_mul(1664525).wrapping_add(1013904223);
        (s >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}
