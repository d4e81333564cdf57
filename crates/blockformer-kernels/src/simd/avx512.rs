//! 512-bit vectors.
#![allow(unsafe_code)] // Intrinsics; `Avx512` proves that the CPU has them.

use std::arch::x86_64::*;
use std::mem::transmute;

use half::f16;

use super::{Bf16Simd, Simd};

const LANES: usize = 16;

/// No instructions beyond AVX-512F and AVX-512BW.
pub(crate) const NONE: u8 = 0;
/// AVX-512 VNNI as well.
pub(crate) const VNNI: u8 = 1;
/// AVX-512 VNNI and AVX-512 BF16 as well.
pub(crate) const BF16: u8 = 2;

/// Exists only inside functions that enable AVX-512F and AVX-512BW, and what `MORE` says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512<const MORE: u8>(());

impl Avx512<NONE> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
    pub(crate) fn new() -> Self {
        Self(())
    }
}

impl Avx512<VNNI> {
    #[inline]
    #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx2,fma")]
    pub(crate) fn with_vnni() -> Self {
        Self(())
    }
}

impl Avx512<BF16> {
    #[inline]
    #[target_feature(enable = "avx512bf16,avx512vnni,avx512f,avx512bw,avx2,fma")]
    pub(crate) fn with_bf16() -> Self {
        Self(())
    }
}

impl<const MORE: u8> Avx512<MORE> {
    #[inline(always)]
    fn pairs(self, x: &[[u16; 2]]) -> __m512i {
        let x = &x[..LANES];
        // SAFETY: AVX-512F is enabled where `self` exists; `x` has 64 bytes.
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }
}

/// An intrinsic on registers.
macro_rules! register {
    ($e:expr) => {
        // SAFETY: `self` exists only where AVX-512F and AVX-512BW are enabled, and the intrinsic touches no memory.
        unsafe { $e }
    };
}

impl Bf16Simd for Avx512<BF16> {
    #[inline(always)]
    fn load_pairs(self, x: &[[u16; 2]]) -> __m512i {
        self.pairs(x)
    }
    #[inline(always)]
    fn splat_pair(self, x: [u16; 2]) -> __m512i {
        register!(_mm512_set1_epi32(i32::from(x[0]) | i32::from(x[1]) << 16))
    }
    #[inline(always)]
    fn dot_pairs(self, a: __m512i, b: __m512i, to: __m512) -> __m512 {
        // SAFETY: the types have the same size and any bits are values of both.
        let (a, b) = unsafe { (transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b)) };
        // SAFETY: AVX-512 BF16 is enabled where such a `self` exists; the intrinsic touches no memory.
        unsafe { _mm512_dpbf16_ps(to, a, b) }
    }
}

impl<const MORE: u8> Simd for Avx512<MORE> {
    type V = __m512;
    type I = __m512i;
    type P = __m512i;
    type B = __m512i;
    const LANES: usize = LANES;
    const TILE_ROWS: usize = 12;
    const INTEGER_ROWS: usize = 6;
    const QUADS_AT_ONCE: bool = MORE >= VNNI;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        register!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> __m512 {
        let x = &x[..LANES];
        // SAFETY: AVX-512F is enabled where `self` exists; `x` has 16 numbers.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, x: &mut [f32], v: __m512) {
        let x = &mut x[..LANES];
        // SAFETY: AVX-512F is enabled where `self` exists; `x` has 16 numbers.
        unsafe { _mm512_storeu_ps(x.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn load_bf16_first(self, x: &[[u16; 2]]) -> __m512 {
        let pairs = self.pairs(x);
        register!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)))
    }
    #[inline(always)]
    fn load_bf16_second(self, x: &[[u16; 2]]) -> __m512 {
        let pairs = self.pairs(x);
        register!(_mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-0x1_0000))))
    }
    #[inline(always)]
    fn splat_integer(self, x: i32) -> __m512i {
        register!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn store_integers(self, x: &mut [i32], v: __m512i) {
        let x = &mut x[..LANES];
        // SAFETY: AVX-512F is enabled where `self` exists; `x` has 16 numbers.
        unsafe { _mm512_storeu_si512(x.as_mut_ptr().cast(), v) }
    }
    #[inline(always)]
    fn store_bytes(self, x: &mut [i8], v: __m512i) {
        let x = &mut x[..LANES];
        // SAFETY: AVX-512F is enabled where `self` exists; `x` has 16 bytes.
        unsafe { _mm_storeu_si128(x.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v)) }
    }
    #[inline(always)]
    fn ordered_bits(self, x: __m512) -> __m512i {
        register!({
            let bits = _mm512_castps_si512(x);
            _mm512_xor_si512(bits, _mm512_srli_epi32::<1>(_mm512_srai_epi32::<31>(bits)))
        })
    }
    #[inline(always)]
    fn to_integers(self, x: __m512) -> __m512i {
        register!(_mm512_cvtps_epi32(x))
    }
    #[inline(always)]
    fn add_integers(self, a: __m512i, b: __m512i) -> __m512i {
        register!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn max_integers(self, a: __m512i, b: __m512i) -> __m512i {
        register!(_mm512_max_epi32(a, b))
    }
    #[inline(always)]
    fn min_integers(self, a: __m512i, b: __m512i) -> __m512i {
        register!(_mm512_min_epi32(a, b))
    }
    #[inline(always)]
    fn splat_quad(self, x: &[i8; 4]) -> __m512i {
        register!(_mm512_set1_epi32(i32::from_ne_bytes(x.map(|x| x as u8))))
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8]) -> __m512i {
        let x = &x[..4 * LANES];
        // SAFETY: AVX-512F is enabled where `self` exists; `x` has 64 bytes.
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn low_halves(self, x: __m512i) -> __m512i {
        register!(_mm512_and_si512(x, _mm512_set1_epi8(15)))
    }
    #[inline(always)]
    fn high_halves(self, x: __m512i) -> __m512i {
        register!(_mm512_and_si512(_mm512_srli_epi16::<4>(x), _mm512_set1_epi8(15)))
    }
    #[inline(always)]
    fn dot_bytes(self, a: __m512i, b: __m512i) -> __m512i {
        register!(_mm512_maddubs_epi16(a, b))
    }
    #[inline(always)]
    fn add_pairs(self, a: __m512i, b: __m512i) -> __m512i {
        register!(_mm512_add_epi16(a, b))
    }
    #[inline(always)]
    fn add_both(self, pairs: __m512i, to: __m512i) -> __m512i {
        register!(_mm512_add_epi32(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)), to))
    }
    #[inline(always)]
    fn dot_quads(self, a: __m512i, b: __m512i, to: __m512i) -> __m512i {
        if const { MORE >= VNNI } {
            // SAFETY: AVX-512 VNNI is enabled where such a `self` exists; the intrinsic touches no memory.
            unsafe { _mm512_dpbusd_epi32(to, a, b) }
        } else {
            self.add_both(self.dot_bytes(a, b), to)
        }
    }
    #[inline(always)]
    fn to_float(self, x: __m512i) -> __m512 {
        register!(_mm512_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        register!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        register!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        register!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        register!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        register!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        register!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        register!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        register!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x))
    }
    #[inline(always)]
    fn exp2_integer(self, n: __m512) -> __m512 {
        register!({
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        })
    }
    #[inline(always)]
    fn zero_below(self, x: __m512, threshold: f32, y: __m512) -> __m512 {
        register!(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(threshold)), y))
    }
    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        register!(_mm512_reduce_add_ps(x))
    }
    #[inline(always)]
    fn max_of(self, x: __m512) -> f32 {
        register!(_mm512_reduce_max_ps(x))
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16]) -> __m512 {
        let x = &x[..LANES];
        // SAFETY: AVX is enabled where `self` exists; `x` has 32 bytes.
        let halves = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
        register!(_mm512_cvtph_ps(halves))
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8]) -> __m512 {
        let x = &x[..LANES];
        // SAFETY: SSE2 is enabled where `self` exists; `x` has 16 bytes.
        let bytes = unsafe { _mm_loadu_si128(x.as_ptr().cast()) };
        register!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)))
    }
}
