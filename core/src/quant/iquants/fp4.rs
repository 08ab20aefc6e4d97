//! MXFP4 and NVFP4: 4-bit floats (E2M1) under a power-of-two scale per 32 weights (OCP Microscaling Formats 1.0), or an
//! unsigned 8-bit float scale (E4M3) per 16. Layouts and rounding are ggml's, whose NVFP4 has no second, per-tensor scale.

/// Twice the E2M1 values; the scales below are halved to match.
pub const VALUES: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];
const MX: usize = 32;
const NV: usize = 16;

/// The code whose value times `scale` is nearest to `x`; of equals the first.
fn nearest_code(x: f32, scale: f32) -> u8 {
    let mut best = (0, (VALUES[0] * scale - x).abs());
    for (code, value) in VALUES.iter().enumerate().skip(1) {
        let error = (value * scale - x).abs();
        if error < best.1 {
            best = (code as u8, error);
        }
    }
    best.0
}

/// Weight i in the low half of byte i, and the weight half a group later in the high half.
fn put_group(x: &[f32], scale: f32, out: &mut [u8]) {
    let (low, high) = x.split_at(x.len() / 2);
    for ((byte, low), high) in out.iter_mut().zip(low).zip(high) {
        *byte = nearest_code(*low, scale) | nearest_code(*high, scale) << 4;
    }
}

fn get_group(bytes: &[u8], scale: f32, out: &mut [f32]) {
    let (low, high) = out.split_at_mut(out.len() / 2);
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = VALUES[usize::from(byte & 15)] * scale;
        *high = VALUES[usize::from(byte >> 4)] * scale;
    }
}

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |max: f32, x| max.max(x.abs()))
}

/// Half of `2^(e - 127)`.
pub fn half_e8m0(e: u8) -> f32 {
    // The two smallest are subnormal.
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}

/// `floor(log2f(x))` of a positive normal `x`, where `log2f` rounds to single precision: just below a power of two it
/// yields that power. Computed without a math library, so that every platform agrees.
fn floor_log2(x: f32) -> i32 {
    let exponent = (x.to_bits() >> 23) as i32 - 127;
    let mantissa = f32::from_bits(x.to_bits() & 0x007f_ffff | 0x3f80_0000);
    // How far below the next power, relative to it; the logarithm's series needs two terms there.
    let below = f64::from(mantissa) / 2.0 - 1.0;
    let log = f64::from(exponent + 1) + (below - below * below / 2.0) / std::f64::consts::LN_2;
    if below > -1e-4 { (log as f32).floor() as i32 } else { exponent }
}

/// The shared exponent of a group. Magnitudes under 2^-125 get the smallest one, where ggml's cast wraps around.
pub fn shared_exponent(x: &[f32]) -> u8 {
    let largest = largest(x);
    if largest < f32::MIN_POSITIVE { 0 } else { (floor_log2(largest) + 125).max(0) as u8 }
}

/// Block: the exponent; 16 bytes of codes.
pub fn quantize_mx(row: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
    for (x, block) in row.chunks_exact(MX).zip(out.chunks_exact_mut(17)) {
        block[0] = shared_exponent(x);
        put_group(x, half_e8m0(block[0]), &mut block[1..]);
    }
}

pub fn dequantize_mx(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(17).zip(out.chunks_exact_mut(MX)) {
        get_group(&block[1..], half_e8m0(block[0]), out);
    }
}

/// Finds the first block whose exponent is the format's NaN.
pub fn check_mx(bytes: &[u8]) -> Result<(), (usize, f32)> {
    match bytes.chunks_exact(17).position(|block| block[0] == 0xff) {
        Some(block) => Err((block, f32::NAN)),
        None => Ok(()),
    }
}

/// Half of the unsigned E4M3 value; the NaN code counts as zero.
pub fn half_ue4m3(code: u8) -> f32 {
    let mantissa = f32::from(code & 7);
    let value = match (code >> 3) & 15 {
        _ if code == 0x7f => 0.0,
        0 => mantissa * 2f32.powi(-9),
        exponent => (1.0 + mantissa / 8.0) * 2f32.powi(i32::from(exponent) - 7),
    };
    value * 0.5
}

/// The unsigned E4M3 code of `x`, halves up, at most 448.
pub fn to_ue4m3(x: f32) -> u8 {
    if x.is_nan() || x <= 0.0 {
        return 0;
    }
    let bits = x.min(448.0).to_bits();
    let exponent = (bits >> 23) as i32 - 120;
    if exponent <= 0 {
        return ((x * 512.0 + 0.5) as u8).min(7);
    }
    if exponent >= 15 {
        return 0x7e;
    }
    // A mantissa that rounds up to eight carries into the exponent; ggml takes all of the top exponent as the largest code.
    let code = (exponent << 3) as u32 + ((bits >> 20) & 7) + ((bits >> 19) & 1);
    if code >= 15 << 3 { 0x7e } else { code as u8 }
}

/// Block: four scales; 4 x 8 bytes of codes.
pub fn quantize_nv(row: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
    for (x, block) in row.chunks_exact(4 * NV).zip(out.chunks_exact_mut(36)) {
        let (scales, codes) = block.split_at_mut(4);
        for ((x, scale), codes) in x.chunks_exact(NV).zip(scales).zip(codes.chunks_exact_mut(NV / 2)) {
            *scale = to_ue4m3(largest(x) / 6.0);
            put_group(x, half_ue4m3(*scale), codes);
        }
    }
}

pub fn dequantize_nv(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(36).zip(out.chunks_exact_mut(4 * NV)) {
        let (scales, codes) = block.split_at(4);
        for ((out, scale), codes) in out.chunks_exact_mut(NV).zip(scales).zip(codes.chunks_exact(NV / 2)) {
            get_group(codes, half_ue4m3(*scale), out);
        }
    }
}
