//! Types without a search. Their specification is written so that the compiler makes lanes of it; here it does so once for
//! every instruction set.

use super::{Job, Kernel};
use crate::quant::iquants::{binary, ternary};
use crate::quant::plain;
use crate::simd::Float;

macro_rules! kernels {
    ($($name:ident $quantize:path;)*) => {$(
        pub struct $name<'a, 'b>(pub &'a mut Job<'b>);

        impl Kernel for $name<'_, '_> {
            type Output = ();

            #[inline(always)]
            fn run<F: Float>(self) {
                // Blocks do not depend on each other, so that all rows are one.
                $quantize(self.0.src, None, self.0.out);
            }
        }
    )*};
}

kernels! {
    Bf16 plain::quantize_bf16;
    Tq1 ternary::quantize_tq1;
    Tq2 ternary::quantize_tq2;
    Q2 binary::quantize_q2;
}
