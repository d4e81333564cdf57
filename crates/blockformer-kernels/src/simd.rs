//! The vector operations kernels are written in, once for all levels.
//!
//! A kernel is generic over [`Simd`]; [`Level::run`](crate::Level) compiles it once a level, inside a function that
//! enables the level's instructions. Values of [`Avx2`] and [`Avx512`] are made only inside such functions, so holding
//! one proves that the CPU has the instructions, and all operations on registers are safe. A parameter of both types
//! says which further instructions are enabled.

use half::f16;

use crate::quantised::{GROUP_QUADS, Int8Codes};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;

/// Columns of a panel of packed weights, on every level.
pub(crate) const PANEL: usize = 32;

/// The widest vector of any level, in numbers.
pub(crate) const MAX_LANES: usize = 16;

/// Something to run on a level. `run` must be `#[inline(always)]`, or it is compiled without the level's instructions.
pub(crate) trait Kernel {
    type Output;

    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// A product with bfloat16 weights, which some levels have instructions of their own for. All methods must be
/// `#[inline(always)]`, too.
pub(crate) trait Bf16Kernel {
    /// With float32 instructions.
    fn run<S: Simd>(self, simd: S);

    /// With instructions for pairs of bfloat16.
    #[cfg(target_arch = "x86_64")]
    fn run_pairs<S: Bf16Simd>(self, simd: S);

    /// With tiles of bfloat16.
    #[cfg(target_arch = "x86_64")]
    fn run_tiles<S: Simd>(self, simd: S, tiles: Tiles);
}

/// Proves that the CPU has AMX for bfloat16, and that the system lets this process use it.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tiles(());

#[cfg(target_arch = "x86_64")]
impl Tiles {
    /// # Safety
    /// The CPU and the system let this process use AMX with bfloat16.
    #[expect(unsafe_code, reason = "the caller answers for it")]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// Asks for a cache line that will be read soon. It need not be there: nothing happens then, as on CPUs other than x86_64.
#[inline(always)]
pub(crate) fn prefetch(line: *const u8) {
    // Miri knows no prefetching.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[expect(
        unsafe_code,
        reason = "an instruction that all CPUs of x86_64 have and that changes nothing, wherever it points"
    )]
    // SAFETY: as above.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = line;
}

/// Vectors of float32, and of the integers that quantised weights are multiplied in.
///
/// All methods are `#[inline(always)]`. Where an operand is not a number, `max` and `min` give the second.
pub(crate) trait Simd: Copy {
    /// A vector.
    type V: Copy;
    /// Numbers in a vector.
    const LANES: usize;
    /// Rows of the largest tile of a matrix product, two vectors wide, whose sums stay in registers.
    const TILE_ROWS: usize;

    fn splat(self, x: f32) -> Self::V;
    /// The first `LANES` of `x`.
    fn load(self, x: &[f32]) -> Self::V;
    /// Into the first `LANES` of `x`.
    fn store(self, x: &mut [f32], v: Self::V);
    /// The first numbers of the first `LANES` pairs of bfloat16 of `x`.
    fn load_bf16_first(self, x: &[[u16; 2]]) -> Self::V;
    /// The second numbers.
    fn load_bf16_second(self, x: &[[u16; 2]]) -> Self::V;

    /// A vector of 32-bit integers.
    type I: Copy;
    /// Pairs of 16-bit integers, as many as a vector has numbers.
    type P: Copy;
    /// Quads of bytes, as many as a vector has numbers.
    type B: Copy;
    /// Rows of the largest tile of a product in integers.
    const INTEGER_ROWS: usize;
    /// The integer in every place.
    fn splat_integer(self, x: i32) -> Self::I;
    /// Into the first `LANES` of `x`.
    fn store_integers(self, x: &mut [i32], v: Self::I);
    /// The low bytes, into the first `LANES` of `x`; all integers fit 8 bits.
    fn store_bytes(self, x: &mut [i8], v: Self::I);
    /// The bits of floats, those of negative ones turned round, so that they are ordered as the floats are. What is not a
    /// number comes at either end.
    fn ordered_bits(self, x: Self::V) -> Self::I;
    /// To the nearest integers, which are less than 2²²; anything where a float is larger or not a number.
    fn to_integers(self, x: Self::V) -> Self::I;
    fn add_integers(self, a: Self::I, b: Self::I) -> Self::I;
    fn max_integers(self, a: Self::I, b: Self::I) -> Self::I;
    fn min_integers(self, a: Self::I, b: Self::I) -> Self::I;
    /// The quad in every place.
    fn splat_quad(self, x: &[i8; 4]) -> Self::B;
    /// The first `4 · LANES` of `x`.
    fn load_bytes(self, x: &[u8]) -> Self::B;
    /// The low halves of bytes.
    fn low_halves(self, x: Self::B) -> Self::B;
    /// The high halves of bytes.
    fn high_halves(self, x: Self::B) -> Self::B;
    /// Products of bytes without sign and bytes with sign, each two neighbours summed. The sums fit 16 bits.
    fn dot_bytes(self, a: Self::B, b: Self::B) -> Self::P;
    /// The sum, which fits.
    fn add_pairs(self, a: Self::P, b: Self::P) -> Self::P;
    /// Adds both numbers of each pair.
    fn add_both(self, pairs: Self::P, to: Self::I) -> Self::I;
    /// Whether one instruction does what [`Self::dot_quads`] says.
    const QUADS_AT_ONCE: bool = false;
    /// Adds the products of bytes without sign and bytes with sign, each quad's summed.
    #[inline(always)]
    fn dot_quads(self, a: Self::B, b: Self::B, to: Self::I) -> Self::I {
        self.add_both(self.dot_bytes(a, b), to)
    }
    /// Whether four vectors are a panel's columns and registers suffice for the sums of two rows with all of them, so that
    /// products with 8-bit weights meet a whole panel.
    const ROWS_MEET_PANELS: bool = false;
    /// The sums of products of a group of inputs of one row or two and 8-bit weights, in all columns of a panel, which are
    /// four vectors; nothing where the other operations do it as well.
    #[inline(always)]
    fn dot_group<const R: usize>(
        self,
        _x: [&[[i8; 4]; GROUP_QUADS]; R],
        _weights: &[Int8Codes; GROUP_QUADS],
    ) -> Option<[[Self::I; 4]; R]> {
        None
    }
    fn to_float(self, x: Self::I) -> Self::V;

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer.
    fn round(self, x: Self::V) -> Self::V;
    /// `2^n` for integers -126 to 127.
    fn exp2_integer(self, n: Self::V) -> Self::V;
    /// Zero where `x < threshold`, else `y`.
    fn zero_below(self, x: Self::V, threshold: f32, y: Self::V) -> Self::V;
    /// The sum of all numbers.
    fn sum(self, x: Self::V) -> f32;
    /// The sum of each vector's numbers, the same bits as [`Self::sum`]'s.
    #[inline(always)]
    fn sums<const M: usize, const N: usize>(self, x: [[Self::V; N]; M]) -> [[f32; N]; M] {
        // Loops, because functions of the standard library would be compiled without the level's instructions.
        let mut sums = [[0.0; N]; M];
        for (sums, x) in sums.iter_mut().zip(&x) {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = self.sum(*x);
            }
        }
        sums
    }
    /// The largest of all numbers.
    fn max_of(self, x: Self::V) -> f32;
    /// The first `LANES` of `x`.
    fn load_f16(self, x: &[f16]) -> Self::V;
    /// The first `LANES` of `x`.
    fn load_i8(self, x: &[i8]) -> Self::V;
}

/// Vectors that multiply pairs of bfloat16 and add both products to a float32 with one instruction.
#[cfg(target_arch = "x86_64")]
pub(crate) trait Bf16Simd: Simd {
    /// The first `LANES` pairs of `x`.
    fn load_pairs(self, x: &[[u16; 2]]) -> Self::B;
    /// The pair in every place.
    fn splat_pair(self, x: [u16; 2]) -> Self::B;
    /// Adds the two products of each pair. Numbers below float32's normal ones count as zeros.
    fn dot_pairs(self, a: Self::B, b: Self::B, to: Self::V) -> Self::V;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    struct Sums<'a>(&'a [f32]);

    impl Kernel for Sums<'_> {
        /// The bits of sums taken together, and one by one.
        type Output = [Vec<u32>; 2];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let vectors: [[S::V; 3]; 4] =
                std::array::from_fn(|m| std::array::from_fn(|n| s.load(&self.0[(3 * m + n) * MAX_LANES..])));
            let bits = |sums: &[f32]| sums.iter().map(|sum| sum.to_bits()).collect();
            [
                bits(s.sums(vectors).as_flattened()),
                bits(&vectors.as_flattened().iter().map(|v| s.sum(*v)).collect::<Vec<_>>()),
            ]
        }
    }

    #[test]
    fn sums_of_several_vectors_have_the_bits_of_their_sums() {
        // Of very different sizes, so that another order of additions gives other bits; eight vectors and four more.
        let numbers: Vec<f32> =
            (0..12 * MAX_LANES).map(|i| (i as f32 * 0.37).sin() * (i as f32 * 1.7).cos().exp2().powi(9)).collect();
        for level in Level::supported() {
            let [together, alone] = level.run(Sums(&numbers));
            assert_eq!(together, alone, "{}", level.name());
        }
    }
}
