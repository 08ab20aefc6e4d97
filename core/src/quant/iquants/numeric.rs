//! Small arithmetic that several of the types here share: scale codes, little-endian fields, and the weights that a search
//! gives its errors.

use crate::quant::search::nearest_int;

/// Weights in a super-block.
pub const SUPER: usize = 256;

/// The code of a scale stored as `2 code + 1` in units of `1 / inverse_unit`, at most `top`.
pub fn scale_code(scale: f32, inverse_unit: f32, top: i32) -> u8 {
    nearest_int(0.5 * (inverse_unit * scale - 1.0)).clamp(0, top) as u8
}

pub fn get_u16(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

pub fn get_u32(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// `factor` times the mean square of `x`, added up in order.
pub fn mean_square(x: &[f32], factor: f32) -> f32 {
    factor * sum_squares(x) / x.len() as f32
}

pub fn sum_squares(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, x| sum + x * x)
}

/// What an error in each weight counts: importance times the root of (mean square + own square), or `plain` without
/// importance.
pub fn error_weights(
    x: &[f32],
    importance: Option<&[f32]>,
    mean_square: f32,
    plain: fn(f32, f32) -> f32,
    out: &mut [f32],
) {
    match importance {
        Some(importance) => {
            for ((out, x), q) in out.iter_mut().zip(x).zip(importance) {
                *out = q * (mean_square + x * x).sqrt();
            }
        }
        None => {
            for (out, x) in out.iter_mut().zip(x) {
                *out = plain(*x, mean_square);
            }
        }
    }
}

/// The own square: the error weight of most types where there is no importance.
pub fn own_square(x: f32, _mean_square: f32) -> f32 {
    x * x
}

/// The part of a row's importance that belongs to block `index` of `len` weights.
pub fn block_importance(importance: Option<&[f32]>, index: usize, len: usize) -> Option<&[f32]> {
    importance.and_then(|all| all.get(index * len..(index + 1) * len))
}
