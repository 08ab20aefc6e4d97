//! The scale searches of ggml's quantizers, scalar and in ggml's order of additions: the specification that any faster
//! form must equal bit for bit. Functions on one sub-block each; no packing, no block layout. Source: ggml-quants.c.

/// Sub-blocks whose largest magnitude is below this count as zero (ggml's `GROUP_MAX_EPS`).
pub const EPS: f32 = 1e-15;

/// Rounds half to even, as adding 1.5 · 2^23 does. Exact for |x| below 2^22.
#[inline(always)]
pub fn nearest_int(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// The signed value of largest magnitude, and that magnitude. The first one wins a tie.
#[inline(always)]
fn extreme(x: &[f32]) -> (f32, f32) {
    let (mut max, mut amax) = (0.0, 0.0);
    for &v in x {
        if v.abs() > amax {
            (amax, max) = (v.abs(), v);
        }
    }
    (max, amax)
}

/// Symmetric codes in `[-nmax, nmax - 1]`, stored plus `nmax` in `codes`; returns the scale. Tries 19 starting scales and
/// refits each by weighted least squares (ggml's `make_qx_quants` with its rmse type 1: without `weights`, squares).
pub fn qx<const N: usize>(nmax: i32, x: &[f32; N], weights: Option<&[f32; N]>, codes: &mut [u8; N]) -> f32 {
    let (max, amax) = extreme(x);
    if amax < EPS {
        codes.fill(0);
        return 0.0;
    }
    let own: [f32; N];
    let w = match weights {
        Some(w) => w,
        None => {
            own = std::array::from_fn(|i| x[i] * x[i]);
            &own
        }
    };
    let code = |iscale: f32, v: f32| nearest_int(iscale * v).clamp(-nmax, nmax - 1);
    let sums = |iscale: f32| {
        let (mut sumlx, mut suml2) = (0.0f32, 0.0f32);
        for i in 0..N {
            let l = code(iscale, x[i]) as f32;
            sumlx += w[i] * x[i] * l;
            suml2 += w[i] * l * l;
        }
        (sumlx, suml2)
    };
    let mut best_iscale = -(nmax as f32) / max;
    let (sumlx, suml2) = sums(best_iscale);
    let mut scale = if suml2 != 0.0 { sumlx / suml2 } else { 0.0 };
    let mut best = scale * sumlx;
    for step in (-9..=9).filter(|s| *s != 0) {
        let iscale = -(nmax as f32 + 0.1 * step as f32) / max;
        let (sumlx, suml2) = sums(iscale);
        if suml2 > 0.0 && sumlx * sumlx > best * suml2 {
            scale = sumlx / suml2;
            best = scale * sumlx;
            best_iscale = iscale;
        }
    }
    for i in 0..N {
        codes[i] = (code(best_iscale, x[i]) + nmax) as u8;
    }
    scale
}

/// Symmetric codes like [`qx`], by up to five sweeps that move one code at a time (ggml's `make_q3_quants`).
pub fn q3<const N: usize>(nmax: i32, x: &[f32; N], codes: &mut [u8; N]) -> f32 {
    let (max, amax) = extreme(x);
    if amax < EPS {
        codes.fill(0);
        return 0.0;
    }
    let iscale = -(nmax as f32) / max;
    let (mut sumlx, mut suml2) = (0.0f32, 0.0f32);
    let mut l = [0i32; N];
    for i in 0..N {
        l[i] = nearest_int(iscale * x[i]).clamp(-nmax, nmax - 1);
        let (w, c) = (x[i] * x[i], l[i] as f32);
        sumlx += w * x[i] * c;
        suml2 += w * c * c;
    }
    for _ in 0..5 {
        let mut changed = false;
        for i in 0..N {
            let (w, c) = (x[i] * x[i], l[i] as f32);
            let mut slx = sumlx - w * x[i] * c;
            if slx <= 0.0 {
                continue;
            }
            let mut sl2 = suml2 - w * c * c;
            let new = nearest_int(x[i] * sl2 / slx).clamp(-nmax, nmax - 1);
            if new == l[i] {
                continue;
            }
            slx += w * x[i] * new as f32;
            sl2 += w * new as f32 * new as f32;
            if sl2 > 0.0 && slx * slx * suml2 > sumlx * sumlx * sl2 {
                (l[i], sumlx, suml2) = (new, slx, sl2);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    for i in 0..N {
        codes[i] = (l[i] + nmax) as u8;
    }
    if suml2 > 0.0 { sumlx / suml2 } else { 0.0 }
}

/// The grid of starting scales that [`qkx`] walks.
#[derive(Clone, Copy)]
pub struct Grid {
    pub rmin: f32,
    pub rdelta: f32,
    pub steps: i32,
    /// Compare by mean absolute instead of squared error.
    pub mad: bool,
}

/// Asymmetric codes in `[0, nmax]` with `x ≈ scale · code − min`; returns `(scale, min)`, `min ≥ 0`. Each starting scale
/// is refitted with its minimum by weighted least squares, and the next one starts from the best minimum so far (ggml's
/// `make_qkx2_quants`, and `make_qkx3_quants`, which computes the same with explicit weights).
pub fn qkx<const N: usize>(nmax: i32, x: &[f32; N], weights: &[f32; N], grid: Grid, codes: &mut [u8; N]) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for i in 1..N {
        if x[i] < min {
            min = x[i];
        }
        if x[i] > max {
            max = x[i];
        }
        sum_w += weights[i];
        sum_x += weights[i] * x[i];
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max <= min {
        codes.fill(0);
        return (0.0, -min);
    }
    let code = |iscale: f32, min: f32, v: f32| nearest_int(iscale * (v - min)).clamp(0, nmax);
    let error = |scale: f32, min: f32, l: &[i32; N]| {
        let mut sum = 0.0f32;
        for i in 0..N {
            let diff = scale * l[i] as f32 + min - x[i];
            sum += weights[i] * if grid.mad { diff.abs() } else { diff * diff };
        }
        sum
    };
    let iscale = nmax as f32 / (max - min);
    let mut scale = 1.0 / iscale;
    let mut best_codes: [i32; N] = std::array::from_fn(|i| code(iscale, min, x[i]));
    let mut best = error(scale, min, &best_codes);
    for step in 0..=grid.steps {
        let iscale = (grid.rmin + grid.rdelta * step as f32 + nmax as f32) / (max - min);
        let l: [i32; N] = std::array::from_fn(|i| code(iscale, min, x[i]));
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for i in 0..N {
            let (w, c) = (weights[i], l[i] as f32);
            sum_l += w * c;
            sum_l2 += w * c * c;
            sum_xl += w * c * x[i];
        }
        let det = sum_w * sum_l2 - sum_l * sum_l;
        if det > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / det;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / det;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_l2;
            }
            let this_error = error(this_scale, this_min, &l);
            if this_error < best {
                (best, best_codes, scale, min) = (this_error, l, this_scale, this_min);
            }
        }
    }
    for i in 0..N {
        codes[i] = best_codes[i] as u8;
    }
    (scale, -min)
}

/// Codes in `[0, nmax]` for non-negative values (the scales or minimums of a super-block); returns their scale
/// (ggml's `make_qp_quants`).
pub fn qp<const N: usize>(nmax: i32, x: &[f32; N], weights: &[f32; N], codes: &mut [u8; N]) -> f32 {
    let mut max = 0.0f32;
    for &v in x {
        max = if max > v { max } else { v };
    }
    if max < EPS {
        codes.fill(0);
        return 0.0;
    }
    let mut iscale = nmax as f32 / max;
    let mut best = 0.0f32;
    {
        let scale = 1.0 / iscale;
        for i in 0..N {
            // ggml stores the code in a byte before it uses it here, and in no other place of this search.
            let diff = x[i] - scale * nearest_int(iscale * x[i]) as u8 as f32;
            best += weights[i] * diff * diff;
        }
    }
    for step in (-4..=4).filter(|s| *s != 0) {
        let this_iscale = (0.1 * step as f32 + nmax as f32) / max;
        let scale = 1.0 / this_iscale;
        let mut error = 0.0f32;
        for i in 0..N {
            let diff = x[i] - scale * nearest_int(this_iscale * x[i]).min(nmax) as f32;
            error += weights[i] * diff * diff;
        }
        if error < best {
            (best, iscale) = (error, this_iscale);
        }
    }
    let (mut sumlx, mut suml2) = (0.0f32, 0.0f32);
    for i in 0..N {
        let l = nearest_int(iscale * x[i]).min(nmax);
        codes[i] = l as u8;
        sumlx += weights[i] * x[i] * l as f32;
        suml2 += weights[i] * l as f32 * l as f32;
    }
    for _ in 0..5 {
        let mut changed = false;
        for i in 0..N {
            let (w, c) = (weights[i], codes[i] as f32);
            let mut slx = sumlx - w * x[i] * c;
            let mut sl2 = suml2 - w * c * c;
            if slx <= 0.0 || sl2 <= 0.0 {
                continue;
            }
            let new = nearest_int(x[i] * sl2 / slx).min(nmax);
            if new == codes[i] as i32 {
                continue;
            }
            slx += w * x[i] * new as f32;
            sl2 += w * new as f32 * new as f32;
            if slx * slx * suml2 > sumlx * sumlx * sl2 {
                (codes[i], sumlx, suml2) = (new as u8, slx, sl2);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    if suml2 > 0.0 { sumlx / suml2 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_int_rounds_half_to_even() {
        for (x, l) in [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (-2.5, -2), (2.4999, 2), (-7.9, -8)] {
            assert_eq!(nearest_int(x), l, "{x}");
        }
    }

    #[test]
    fn a_grid_is_found_again() {
        // Values that lie on a grid of 16 steps must be coded without error.
        let x: [f32; 32] = std::array::from_fn(|i| 0.25 * (i % 16) as f32 - 1.0);
        let mut codes = [0; 32];
        let grid = Grid { rmin: -1.0, rdelta: 0.1, steps: 20, mad: false };
        let (scale, min) = qkx(15, &x, &[1.0; 32], grid, &mut codes);
        for i in 0..32 {
            assert!((scale * codes[i] as f32 - min - x[i]).abs() < 1e-6);
        }
    }

    #[test]
    fn zeros_have_scale_zero() {
        assert_eq!(qx(32, &[0.0; 16], None, &mut [1; 16]), 0.0);
        assert_eq!(q3(4, &[0.0; 16], &mut [1; 16]), 0.0);
        assert_eq!(qp(63, &[0.0; 8], &[1.0; 8], &mut [1; 8]), 0.0);
    }
}
