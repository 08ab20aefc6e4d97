//! The least and the greatest of 32 weights in each of several blocks, one block per lane, without transposing the blocks:
//! vectors of two blocks are folded into one that holds both, until one vector holds all.

use std::arch::x86_64::*;

macro_rules! folds {
    ($name:ident $vector:ident $lanes:literal, $load:ident $min:ident $max:ident; $($fold:ident $first:expr, $second:expr;)*) => {
        /// # Safety
        /// The processor must have the instructions, and `from` be readable for 32 floats for each lane.
        #[inline(always)]
        pub unsafe fn $name(from: *const f32) -> ($vector, $vector) {
            type Range = ($vector, $vector);

            /// Lane for lane the range of the weights of one block.
            #[inline(always)]
            unsafe fn block(from: *const f32) -> Range {
                // SAFETY: the caller's.
                unsafe {
                    let first = $load(from);
                    let mut range = (first, first);
                    let mut at = $lanes;
                    while at < 32 {
                        let next = $load(from.add(at));
                        range = ($min(next, range.0), $max(next, range.1));
                        at += $lanes;
                    }
                    range
                }
            }

            $(
                /// Half of the lanes for each of the two.
                #[inline(always)]
                unsafe fn $fold(a: Range, b: Range) -> Range {
                    // SAFETY: the caller's.
                    unsafe {
                        (
                            $min($first(a.0, b.0), $second(a.0, b.0)),
                            $max($first(a.1, b.1), $second(a.1, b.1)),
                        )
                    }
                }
            )*

            // SAFETY: the caller's.
            unsafe { folds!(@tree from, 0; $($fold)*) }
        }
    };
    (@tree $from:ident, $at:expr; $a:ident $b:ident) => {
        $b(
            $a(block($from.add(32 * $at)), block($from.add(32 * ($at + 1)))),
            $a(block($from.add(32 * ($at + 2))), block($from.add(32 * ($at + 3)))),
        )
    };
    (@tree $from:ident, $at:expr; $a:ident $b:ident $c:ident) => {
        $c(folds!(@tree $from, $at; $a $b), folds!(@tree $from, $at + 4; $a $b))
    };
    (@tree $from:ident, $at:expr; $a:ident $b:ident $c:ident $d:ident) => {
        $d(folds!(@tree $from, $at; $a $b $c), folds!(@tree $from, $at + 8; $a $b $c))
    };
}

folds! { of_4 __m128 4, _mm_loadu_ps _mm_min_ps _mm_max_ps;
    one _mm_unpacklo_ps, _mm_unpackhi_ps;
    two _mm_shuffle_ps::<0x44>, _mm_shuffle_ps::<0xee>;
}

folds! { of_8 __m256 8, _mm256_loadu_ps _mm256_min_ps _mm256_max_ps;
    one _mm256_unpacklo_ps, _mm256_unpackhi_ps;
    two _mm256_shuffle_ps::<0x44>, _mm256_shuffle_ps::<0xee>;
    four _mm256_permute2f128_ps::<0x20>, _mm256_permute2f128_ps::<0x31>;
}

folds! { of_16 __m512 16, _mm512_loadu_ps _mm512_min_ps _mm512_max_ps;
    one _mm512_unpacklo_ps, _mm512_unpackhi_ps;
    two _mm512_shuffle_ps::<0x44>, _mm512_shuffle_ps::<0xee>;
    four _mm512_shuffle_f32x4::<0x44>, _mm512_shuffle_f32x4::<0xee>;
    eight _mm512_shuffle_f32x4::<0x88>, _mm512_shuffle_f32x4::<0xdd>;
}
