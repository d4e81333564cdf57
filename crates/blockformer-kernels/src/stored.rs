//! How keys and values are kept.

use half::f16;

use crate::simd::Simd;

/// Keys or values, `[any number of pages, n_kv_heads, page_length, head_dim]`.
#[derive(Debug, Clone, Copy)]
pub enum Stored<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// In half precision.
    F16(&'a [f16]),
    /// In eight bits.
    Int8 {
        /// The numbers.
        numbers: &'a [i8],
        /// What the numbers of a position and head are multiplied by, `[pages, n_kv_heads, page_length]`.
        scales: &'a [f32],
    },
}

impl Stored<'_> {
    /// How many numbers there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(numbers) => numbers.len(),
            Self::F16(numbers) => numbers.len(),
            Self::Int8 { numbers, .. } => numbers.len(),
        }
    }
}

impl<'a> From<&'a [f32]> for Stored<'a> {
    fn from(numbers: &'a [f32]) -> Self {
        Self::F32(numbers)
    }
}

/// Numbers stored in one way; a row is a position of a head.
pub(crate) trait StoredRows: Copy + Sync {
    /// `n` numbers from `at` on, to be loaded as numbers `0..n`. (Scales are still those of the whole.)
    fn part(self, at: usize, n: usize) -> Self;
    /// `S::LANES` numbers from `at` on.
    fn load<S: Simd>(self, s: S, at: usize) -> S::V;
    /// Number `at`.
    fn get(self, at: usize) -> f32;
    /// What the numbers of a row are multiplied by.
    fn scale(self, row: usize) -> f32;
}

impl StoredRows for &[f32] {
    #[inline(always)]
    fn part(self, at: usize, n: usize) -> Self {
        &self[at..at + n]
    }
    #[inline(always)]
    fn load<S: Simd>(self, s: S, at: usize) -> S::V {
        s.load(&self[at..])
    }
    #[inline(always)]
    fn get(self, at: usize) -> f32 {
        self[at]
    }
    #[inline(always)]
    fn scale(self, _: usize) -> f32 {
        1.0
    }
}

impl StoredRows for &[f16] {
    #[inline(always)]
    fn part(self, at: usize, n: usize) -> Self {
        &self[at..at + n]
    }
    #[inline(always)]
    fn load<S: Simd>(self, s: S, at: usize) -> S::V {
        s.load_f16(&self[at..])
    }
    #[inline(always)]
    fn get(self, at: usize) -> f32 {
        self[at].to_f32()
    }
    #[inline(always)]
    fn scale(self, _: usize) -> f32 {
        1.0
    }
}

/// Eight bits a number, and scales.
#[derive(Clone, Copy)]
pub(crate) struct Int8<'a> {
    pub(crate) numbers: &'a [i8],
    pub(crate) scales: &'a [f32],
}

impl StoredRows for Int8<'_> {
    #[inline(always)]
    fn part(self, at: usize, n: usize) -> Self {
        Self { numbers: &self.numbers[at..at + n], scales: self.scales }
    }
    #[inline(always)]
    fn load<S: Simd>(self, s: S, at: usize) -> S::V {
        s.load_i8(&self.numbers[at..])
    }
    #[inline(always)]
    fn get(self, at: usize) -> f32 {
        f32::from(self.numbers[at])
    }
    #[inline(always)]
    fn scale(self, row: usize) -> f32 {
        self.scales[row]
    }
}
