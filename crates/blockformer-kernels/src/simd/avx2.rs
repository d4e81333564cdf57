//! 256-bit vectors with fused multiply-add.
#![allow(unsafe_code)] // Intrinsics; `Avx2` proves that the CPU has them.

use std::arch::asm;
use std::arch::x86_64::*;

use half::f16;

use super::{PANEL, Simd};
use crate::quantised::{Codes, GROUP_QUADS, Int8Codes};

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

/// The same, but the compiler does not know it, and so reads it again instead of keeping what it has read in a register that
/// sums need.
#[inline(always)]
fn seen_anew<T>(x: &[T]) -> &[T] {
    // Miri knows no assembly.
    if const { cfg!(miri) } {
        return x;
    }
    let mut first = x.as_ptr();
    // SAFETY: there is no instruction, so the pointer stays what it is.
    unsafe {
        asm!("/* {0} */", inout(reg) first, options(pure, readonly, nostack, preserves_flags));
    }
    // SAFETY: these are the parts of `x`.
    unsafe { std::slice::from_raw_parts(first, x.len()) }
}

/// Quads that are summed in 16 bits.
const TOGETHER: usize = Int8Codes::TOGETHER;

/// Quad `\step` of a row times one vector of a panel's columns: the products or, with `add`, these added to a sum.
macro_rules! quad {
    ($to:literal, $offset:literal) => {
        concat!("vpmaddubsw ", $to, ", {x0}, ymmword ptr [{w} + 128*\\step + ", $offset, "]\n")
    };
    (add $product:literal, $sum:literal, $offset:literal) => {
        concat!(quad!($product, $offset), "vpaddw ", $sum, ", ", $sum, ", ", $product, "\n")
    };
}

/// The same of two rows; the weights go through a register.
macro_rules! quad_of_two {
    (load $weights:literal, $offset:literal) => {
        concat!("vmovdqa ", $weights, ", ymmword ptr [{w} + 128*\\step + ", $offset, "]\n")
    };
    ($weights:literal, $x:literal, $y:literal, $offset:literal) => {
        concat!(
            quad_of_two!(load $weights, $offset),
            "vpmaddubsw ", $x, ", {x0}, ", $weights, "\n",
            "vpmaddubsw ", $y, ", {y0}, ", $weights, "\n",
        )
    };
    (add $weights:literal, $x:literal, $y:literal, $offset:literal) => {
        concat!(
            quad_of_two!($weights, "{a}", "{b}", $offset),
            "vpaddw ", $x, ", ", $x, ", {a}\n",
            "vpaddw ", $y, ", ", $y, ", {b}\n",
        )
    };
}

// What the offsets in `quad` and `quad_of_two` and the number of steps rest on.
const _: () = assert!(TOGETHER == 8 && PANEL == 32 && size_of::<Int8Codes>() == 128);

/// The sums of a row's products with some quads, pairs of each quad's apart. The order of instructions, with weights that
/// go from memory straight into products, is what makes it fast; the compiler would load inputs before they are needed and
/// run out of registers.
#[inline]
#[target_feature(enable = "avx2")]
fn dot(x: &[[i8; 4]; TOGETHER], weights: &[Int8Codes; TOGETHER]) -> [__m256i; 4] {
    let (s0, s1, s2, s3);
    // SAFETY: AVX2 is enabled. A step reads four bytes of `x` and 128 of `weights`, so eight steps read the 32 and the 1024
    // bytes that both hold, as is asserted above. Nothing is written but registers that are operands.
    unsafe {
        asm!(
            ".irp step,0",
            "vpbroadcastd {x0}, dword ptr [{x} + 4*\\step]",
            quad!("{s0}", "0"),
            quad!("{s1}", "32"),
            quad!("{s2}", "64"),
            quad!("{s3}", "96"),
            ".endr",
            ".irp step,1,2,3,4,5,6,7",
            "vpbroadcastd {x0}, dword ptr [{x} + 4*\\step]",
            quad!(add "{a}", "{s0}", "0"),
            quad!(add "{b}", "{s1}", "32"),
            quad!(add "{a}", "{s2}", "64"),
            quad!(add "{b}", "{s3}", "96"),
            ".endr",
            x = in(reg) x.as_ptr(),
            w = in(reg) weights.as_ptr(),
            s0 = out(ymm_reg) s0,
            s1 = out(ymm_reg) s1,
            s2 = out(ymm_reg) s2,
            s3 = out(ymm_reg) s3,
            x0 = out(ymm_reg) _,
            a = out(ymm_reg) _,
            b = out(ymm_reg) _,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    [s0, s1, s2, s3]
}

/// The same of two rows, which need half as many passes over the weights.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_of_two([x, y]: [&[[i8; 4]; TOGETHER]; 2], weights: &[Int8Codes; TOGETHER]) -> [[__m256i; 4]; 2] {
    let (s0, s1, s2, s3, t0, t1, t2, t3);
    // SAFETY: as above, of two rows; loads of whole vectors need `weights` to be aligned, which their type is.
    unsafe {
        asm!(
            ".irp step,0",
            "vpbroadcastd {x0}, dword ptr [{x} + 4*\\step]",
            "vpbroadcastd {y0}, dword ptr [{y} + 4*\\step]",
            quad_of_two!("{c}", "{s0}", "{t0}", "0"),
            quad_of_two!("{d}", "{s1}", "{t1}", "32"),
            quad_of_two!("{c}", "{s2}", "{t2}", "64"),
            quad_of_two!("{d}", "{s3}", "{t3}", "96"),
            ".endr",
            ".irp step,1,2,3,4,5,6,7",
            "vpbroadcastd {x0}, dword ptr [{x} + 4*\\step]",
            "vpbroadcastd {y0}, dword ptr [{y} + 4*\\step]",
            quad_of_two!(add "{c}", "{s0}", "{t0}", "0"),
            quad_of_two!(add "{d}", "{s1}", "{t1}", "32"),
            quad_of_two!(add "{c}", "{s2}", "{t2}", "64"),
            quad_of_two!(add "{d}", "{s3}", "{t3}", "96"),
            ".endr",
            x = in(reg) x.as_ptr(),
            y = in(reg) y.as_ptr(),
            w = in(reg) weights.as_ptr(),
            s0 = out(ymm_reg) s0,
            s1 = out(ymm_reg) s1,
            s2 = out(ymm_reg) s2,
            s3 = out(ymm_reg) s3,
            t0 = out(ymm_reg) t0,
            t1 = out(ymm_reg) t1,
            t2 = out(ymm_reg) t2,
            t3 = out(ymm_reg) t3,
            x0 = out(ymm_reg) _,
            y0 = out(ymm_reg) _,
            a = out(ymm_reg) _,
            b = out(ymm_reg) _,
            c = out(ymm_reg) _,
            d = out(ymm_reg) _,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    [[s0, s1, s2, s3], [t0, t1, t2, t3]]
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
    const ROWS_MEET_PANELS: bool = PANEL == 4 * LANES;

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
        let pairs = self.pairs(seen_anew(x));
        register!(_mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-0x1_0000))))
    }
    #[inline(always)]
    fn splat_integer(self, x: i32) -> __m256i {
        register!(_mm256_set1_epi32(x))
    }
    #[inline(always)]
    fn store_integers(self, x: &mut [i32], v: __m256i) {
        let x = &mut x[..LANES];
        // SAFETY: AVX2 is enabled where `self` exists; `x` has 8 numbers.
        unsafe { _mm256_storeu_si256(x.as_mut_ptr().cast(), v) }
    }
    #[inline(always)]
    fn store_bytes(self, x: &mut [i8], v: __m256i) {
        let x = &mut x[..LANES];
        // SAFETY: AVX2 is enabled where `self` exists; `x` has 8 bytes.
        unsafe {
            let halves = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            _mm_storel_epi64(x.as_mut_ptr().cast(), _mm_packs_epi16(halves, halves));
        }
    }
    #[inline(always)]
    fn ordered_bits(self, x: __m256) -> __m256i {
        register!({
            let bits = _mm256_castps_si256(x);
            _mm256_xor_si256(bits, _mm256_srli_epi32::<1>(_mm256_srai_epi32::<31>(bits)))
        })
    }
    #[inline(always)]
    fn to_integers(self, x: __m256) -> __m256i {
        register!(_mm256_cvtps_epi32(x))
    }
    #[inline(always)]
    fn add_integers(self, a: __m256i, b: __m256i) -> __m256i {
        register!(_mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn max_integers(self, a: __m256i, b: __m256i) -> __m256i {
        register!(_mm256_max_epi32(a, b))
    }
    #[inline(always)]
    fn min_integers(self, a: __m256i, b: __m256i) -> __m256i {
        register!(_mm256_min_epi32(a, b))
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
    fn dot_group<const R: usize>(
        self,
        x: [&[[i8; 4]; GROUP_QUADS]; R],
        weights: &[Int8Codes; GROUP_QUADS],
    ) -> Option<[[__m256i; 4]; R]> {
        // VNNI needs no sums in 16 bits; Miri knows no assembly.
        if const { VNNI || cfg!(miri) } {
            return None;
        }
        let mut sums = [[self.splat_integer(0); 4]; R];
        for (part, weights) in weights.as_chunks::<TOGETHER>().0.iter().enumerate() {
            let mut pairs = [[self.splat_integer(0); 4]; R];
            // SAFETY: AVX2 is enabled where `self` exists.
            unsafe {
                if const { R == 2 } {
                    let [of_x, of_y] = dot_of_two([0, 1].map(|row| &x[row].as_chunks().0[part]), weights);
                    (pairs[0], pairs[1]) = (of_x, of_y);
                } else {
                    // By index: of an iterator, the compiler would keep the question whether there is a row.
                    for row in 0..R {
                        pairs[row] = dot(&x[row].as_chunks().0[part], weights);
                    }
                }
            }
            for (sum, pairs) in sums.as_flattened_mut().iter_mut().zip(pairs.as_flattened()) {
                *sum = self.add_both(*pairs, *sum);
            }
        }
        Some(sums)
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
