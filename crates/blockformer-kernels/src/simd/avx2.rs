//! 256-bit vectors with fused multiply-add.
#![allow(unsafe_code)] // Intrinsics; `Avx2` proves that the CPU has them.

use std::arch::x86_64::*;

use half::f16;

use super::Simd;

const LANES: usize = 8;

/// Exists only inside functions that enable AVX2, FMA and F16C, and, where `VNNI` is true, AVX-VNNI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>(());

impl Avx2<false> {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn new() -> Self {
        Self(())
    }
}

impl Avx2<true> {
    #[inline]
    #[target_feature(enable = "avxvnni,avx2,fma,f16c")]
    pub(crate) fn with_vnni() -> Self {
        Self(())
    }
}

impl<const VNNI: bool> Avx2<VNNI> {
    #[inline(always)]
    fn pairs(self, x: &[[u16; 2]]) -> __m256i {
        let x = &x[..LANES];
        // SAFETY: AVX2 is enabled where `self` exists; `x` has 32 bytes.
        unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
    }
}

/// An intrinsic on registers.
macro_rules! register {
    ($e:expr) => {
        // SAFETY: `self` exists only where AVX2, FMA and F16C are enabled, and the intrinsic touches no memory.
        unsafe { $e }
    };
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type V = __m256;
    type I = __m256i;
    type P = __m256i;
    type B = __m256i;
    const LANES: usize = LANES;
    const TILE_ROWS: usize = 6;
    const INTEGER_ROWS: usize = 4;
    const QUADS_AT_ONCE: bool = VNNI;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        register!(_mm256_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> __m256 {
        let x = &x[..LANES];
        // SAFETY: AVX2 is enabled where `self` exists; `x` has 8 numbers.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, x: &mut [f32], v: __m256) {
        let x = &mut x[..LANES];
        // SAFETY: AVX2 is enabled where `self` exists; `x` has 8 numbers.
        unsafe { _mm256_storeu_ps(x.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn load_bf16_first(self, x: &[[u16; 2]]) -> __m256 {
        let pairs = self.pairs(x);
        register!(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)))
    }
    #[inline(always)]
    fn load_bf16_second(self, x: &[[u16; 2]]) -> __m256 {
        let pairs = self.pairs(x);
        register!(_mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-0x1_0000))))
    }
    #[inline(always)]
    fn splat_integer(self, x: i32) -> __m256i {
        register!(_mm256_set1_epi32(x))
    }
    #[inline(always)]
    fn splat_quad(self, x: &[i8; 4]) -> __m256i {
        register!(_mm256_set1_epi32(i32::from_ne_bytes(x.map(|x| x as u8))))
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8]) -> __m256i {
        let x = &x[..4 * LANES];
        // SAFETY: AVX2 is enabled where `self` exists; `x` has 32 bytes.
        unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn low_halves(self, x: __m256i) -> __m256i {
        register!(_mm256_and_si256(x, _mm256_set1_epi8(15)))
    }
    #[inline(always)]
    fn high_halves(self, x: __m256i) -> __m256i {
        register!(_mm256_and_si256(_mm256_srli_epi16::<4>(x), _mm256_set1_epi8(15)))
    }
    #[inline(always)]
    fn dot_bytes(self, a: __m256i, b: __m256i) -> __m256i {
        register!(_mm256_maddubs_epi16(a, b))
    }
    #[inline(always)]
    fn add_pairs(self, a: __m256i, b: __m256i) -> __m256i {
        register!(_mm256_add_epi16(a, b))
    }
    #[inline(always)]
    fn add_both(self, pairs: __m256i, to: __m256i) -> __m256i {
        register!(_mm256_add_epi32(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)), to))
    }
    #[inline(always)]
    fn dot_quads(self, a: __m256i, b: __m256i, to: __m256i) -> __m256i {
        if const { VNNI } {
            // SAFETY: AVX-VNNI is enabled where such a `self` exists; the intrinsic touches no memory.
            unsafe { _mm256_dpbusd_avx_epi32(to, a, b) }
        } else {
            self.add_both(self.dot_bytes(a, b), to)
        }
    }
    #[inline(always)]
    fn to_float(self, x: __m256i) -> __m256 {
        register!(_mm256_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        register!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        register!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        register!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        register!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        register!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        register!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        register!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn round(self, x: __m256) -> __m256 {
        register!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x))
    }
    #[inline(always)]
    fn exp2_integer(self, n: __m256) -> __m256 {
        register!({
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        })
    }
    #[inline(always)]
    fn zero_below(self, x: __m256, threshold: f32, y: __m256) -> __m256 {
        register!(_mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(threshold)), y))
    }
    #[inline(always)]
    fn sum(self, x: __m256) -> f32 {
        register!({
            let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }
    #[inline(always)]
    fn sums<const M: usize, const N: usize>(self, x: [[__m256; N]; M]) -> [[f32; N]; M] {
        let mut out = [[0.0; N]; M];
        let (eights, rest) = x.as_flattened().as_chunks::<8>();
        let (out_eights, out_rest) = out.as_flattened_mut().as_chunks_mut::<8>();
        for (out, [a, b, c, d, e, f, g, h]) in out_eights.iter_mut().zip(eights) {
            // Halves of two vectors, added: four numbers of the one, four of the other.
            let halves = |x: &__m256, y: &__m256| {
                register!(_mm256_add_ps(_mm256_permute2f128_ps::<0x20>(*x, *y), _mm256_permute2f128_ps::<0x31>(*x, *y)))
            };
            // Number 0 plus 2 and number 1 plus 3 of four vectors.
            let quarters = |x, y| register!(_mm256_add_ps(_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y)));
            let (ae, bf, cg, dh) = (halves(a, e), halves(b, f), halves(c, g), halves(d, h));
            let (x, y) = (quarters(ae, bf), quarters(cg, dh));
            let sums = register!(_mm256_add_ps(_mm256_shuffle_ps::<0x44>(x, y), _mm256_shuffle_ps::<0xee>(x, y)));
            self.store(out, sums);
        }
        for (out, x) in out_rest.iter_mut().zip(rest) {
            *out = self.sum(*x);
        }
        out
    }
    #[inline(always)]
    fn max_of(self, x: __m256) -> f32 {
        register!({
            let four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16]) -> __m256 {
        let x = &x[..LANES];
        // SAFETY: SSE2 is enabled where `self` exists; `x` has 16 bytes.
        let halves = unsafe { _mm_loadu_si128(x.as_ptr().cast()) };
        register!(_mm256_cvtph_ps(halves))
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8]) -> __m256 {
        let x = &x[..LANES];
        // SAFETY: SSE2 is enabled where `self` exists; `x` has 8 bytes.
        let bytes = unsafe { _mm_loadl_epi64(x.as_ptr().cast()) };
        register!(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)))
    }
}
