//! Plain Rust, for every CPU; the compiler vectorises it for the target's baseline.

use half::f16;

use super::Simd;

const LANES: usize = 8;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

type V = [f32; LANES];
type P = [[i16; 2]; LANES];
type B = [[u8; 4]; LANES];

#[inline(always)]
fn map2<T: Copy>(a: [T; LANES], b: [T; LANES], f: impl Fn(T, T) -> T) -> [T; LANES] {
    let mut out = a;
    for (x, y) in out.iter_mut().zip(b) {
        *x = f(*x, y);
    }
    out
}

#[inline(always)]
fn gather<T: Copy, U: Copy + Default>(x: &[T], f: impl Fn(T) -> U) -> [U; LANES] {
    let mut out = [U::default(); LANES];
    for (y, &x) in out.iter_mut().zip(&x[..LANES]) {
        *y = f(x);
    }
    out
}

impl Simd for Portable {
    type V = V;
    type I = [i32; LANES];
    type P = P;
    type B = B;
    const LANES: usize = LANES;
    const TILE_ROWS: usize = 2;
    const INTEGER_ROWS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> V {
        gather(x, |x| x)
    }
    #[inline(always)]
    fn store(self, x: &mut [f32], v: V) {
        x[..LANES].copy_from_slice(&v);
    }
    #[inline(always)]
    fn load_bf16_first(self, x: &[[u16; 2]]) -> V {
        gather(x, |x| f32::from_bits(u32::from(x[0]) << 16))
    }
    #[inline(always)]
    fn load_bf16_second(self, x: &[[u16; 2]]) -> V {
        gather(x, |x| f32::from_bits(u32::from(x[1]) << 16))
    }
    #[inline(always)]
    fn splat_integer(self, x: i32) -> [i32; LANES] {
        [x; LANES]
    }
    #[inline(always)]
    fn store_integers(self, x: &mut [i32], v: [i32; LANES]) {
        x[..LANES].copy_from_slice(&v);
    }
    #[inline(always)]
    fn store_bytes(self, x: &mut [i8], v: [i32; LANES]) {
        for (to, from) in x[..LANES].iter_mut().zip(v) {
            *to = from as i8;
        }
    }
    #[inline(always)]
    fn ordered_bits(self, x: V) -> [i32; LANES] {
        gather(&x, |x| {
            let bits = x.to_bits() as i32;
            bits ^ ((bits >> 31) & i32::MAX)
        })
    }
    #[inline(always)]
    fn to_integers(self, x: V) -> [i32; LANES] {
        // Adding 1.5 · 2²³ leaves an integer in the low bits.
        const SHIFT: f32 = 12_582_912.0;
        gather(&x, |x| ((x + SHIFT).to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32))
    }
    #[inline(always)]
    fn add_integers(self, a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        map2(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn max_integers(self, a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        map2(a, b, i32::max)
    }
    #[inline(always)]
    fn min_integers(self, a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        map2(a, b, i32::min)
    }
    #[inline(always)]
    fn splat_quad(self, x: &[i8; 4]) -> B {
        [x.map(|x| x as u8); LANES]
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8]) -> B {
        let mut out = [[0; 4]; LANES];
        for (y, x) in out.iter_mut().zip(x[..4 * LANES].as_chunks().0) {
            *y = *x;
        }
        out
    }
    #[inline(always)]
    fn low_halves(self, x: B) -> B {
        x.map(|x| x.map(|x| x & 15))
    }
    #[inline(always)]
    fn high_halves(self, x: B) -> B {
        x.map(|x| x.map(|x| x >> 4))
    }
    #[inline(always)]
    fn dot_bytes(self, a: B, b: B) -> P {
        let mut out = [[0; 2]; LANES];
        for ((sums, a), b) in out.iter_mut().zip(a).zip(b) {
            let product = |i: usize| i16::from(a[i]) * i16::from(b[i] as i8);
            *sums = [product(0).wrapping_add(product(1)), product(2).wrapping_add(product(3))];
        }
        out
    }
    #[inline(always)]
    fn add_pairs(self, a: P, b: P) -> P {
        let mut out = a;
        for (sums, b) in out.iter_mut().zip(b) {
            *sums = [sums[0].wrapping_add(b[0]), sums[1].wrapping_add(b[1])];
        }
        out
    }
    #[inline(always)]
    fn add_both(self, pairs: P, to: [i32; LANES]) -> [i32; LANES] {
        let mut out = to;
        for (sum, pair) in out.iter_mut().zip(pairs) {
            *sum = sum.wrapping_add(i32::from(pair[0]) + i32::from(pair[1]));
        }
        out
    }
    #[inline(always)]
    fn to_float(self, x: [i32; LANES]) -> V {
        gather(&x, |x| x as f32)
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, a: V, b: V, c: V) -> V {
        // Two roundings: a fused product would be a library call where the baseline has none.
        map2(map2(a, b, |a, b| a * b), c, |ab, c| ab + c)
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn round(self, x: V) -> V {
        // Adding 1.5 · 2^23 leaves no bits behind the point; right for |x| < 2^22, which is all the kernels need.
        const SHIFT: f32 = 12_582_912.0;
        map2(x, x, |x, _| (x + SHIFT) - SHIFT)
    }
    #[inline(always)]
    fn exp2_integer(self, n: V) -> V {
        map2(n, n, |n, _| f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23))
    }
    #[inline(always)]
    fn zero_below(self, x: V, threshold: f32, y: V) -> V {
        map2(x, y, |x, y| if x < threshold { 0.0 } else { y })
    }
    #[inline(always)]
    fn sum(self, x: V) -> f32 {
        x.iter().sum()
    }
    #[inline(always)]
    fn max_of(self, x: V) -> f32 {
        let mut max = x[0];
        for &x in &x[1..] {
            max = if x > max { x } else { max };
        }
        max
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16]) -> V {
        gather(x, f16::to_f32)
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8]) -> V {
        gather(x, f32::from)
    }
}
