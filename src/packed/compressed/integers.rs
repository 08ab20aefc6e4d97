//! `pack-quantized`: integers in 32-bit words along the columns, zero points along the rows.

use crate::dtype::GgmlType;
use crate::feedback::int::Codes;
use crate::minifloat;
use crate::packed::bits::{pack_rows, to_bytes, transpose, words};
use crate::packed::{Data, I32, I64, Slot, Spec, slot};

pub(super) fn layout(spec: &Spec, n: usize, k: usize, dtype: GgmlType) -> Vec<Slot> {
    let groups = spec.groups(k);
    let mut slots = vec![
        slot("weight_packed", I32, &[n, words(k, spec.bits)]),
        slot("weight_scale", spec.format.scales.dtype(dtype), &[n, groups]),
        slot("weight_shape", I64, &[2]),
    ];
    if !spec.symmetric {
        slots.push(slot("weight_zero_point", I32, &[words(n, spec.bits), groups]));
    }
    slots
}

/// `weight_packed`, `weight_scale`, `weight_shape`, and `weight_zero_point` unless symmetric.
pub(super) fn pack(codes: &Codes, symmetric: bool, dtype: GgmlType) -> Data {
    let (n, k, groups) = (codes.rows, codes.cols, codes.groups());
    let mut data = vec![
        to_bytes(&pack_rows(&codes.codes, k, codes.bits)),
        minifloat::to_bytes(dtype, &codes.scales),
        [n as i64, k as i64].iter().flat_map(|d| d.to_le_bytes()).collect(),
    ];
    if !symmetric {
        let packed = pack_rows(&transpose(&codes.zeros, n, groups), n, codes.bits);
        data.push(to_bytes(&transpose(&packed, groups, words(n, codes.bits))));
    }
    data
}
