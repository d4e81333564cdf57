//! Memory for weights.
//!
//! It comes from the system and goes back to it as soon as it is dropped, whatever an allocator would do, and large
//! pages are asked for, as all of it is read for every token.
#![allow(unsafe_code)] // Bytes from the system become numbers.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// Bytes below which an allocator does as well.
const LEAST: usize = 1 << 16;

/// # Safety
/// Any bytes are a value, zeros among them, and no alignment beyond 64 is needed.
pub(crate) unsafe trait Plain: Copy + Send + Sync {
    /// All bytes zero.
    const ZERO: Self;
}

/// Values in memory of their own; zero at first.
#[derive(Debug)]
pub(crate) enum Memory<T> {
    /// From the system: so many values.
    Mapped(MmapMut, usize, PhantomData<T>),
    /// Few values, or a system without mappings.
    Owned(Vec<T>),
}

impl<T: Plain> Memory<T> {
    pub(crate) fn new(n: usize) -> Self {
        let bytes = n * size_of::<T>();
        if bytes < LEAST || cfg!(miri) {
            return Self::Owned(vec![T::ZERO; n]);
        }
        let Ok(map) = MmapMut::map_anon(bytes) else { return Self::Owned(vec![T::ZERO; n]) };
        #[cfg(target_os = "linux")]
        // It is a wish: not all systems have large pages.
        let _ = map.advise(memmap2::Advice::HugePage);
        Self::Mapped(map, n, PhantomData)
    }
}

impl<T: Plain> Deref for Memory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            // SAFETY: the mapping has room for so many values, begins with a page, and any bytes are values.
            Self::Mapped(map, n, _) => unsafe { std::slice::from_raw_parts(map.as_ptr().cast(), *n) },
            Self::Owned(values) => values,
        }
    }
}

impl<T: Plain> DerefMut for Memory<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            // SAFETY: as above; the mapping is nobody else's.
            Self::Mapped(map, n, _) => unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr().cast(), *n) },
            Self::Owned(values) => values,
        }
    }
}

impl<T: Plain> Clone for Memory<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::new(self.len());
        copy.copy_from_slice(self);
        copy
    }
}

/// Many numbers that stay, in memory of their own: a table.
#[derive(Debug, Clone)]
pub struct Numbers(Memory<f32>);

impl From<&[f32]> for Numbers {
    fn from(numbers: &[f32]) -> Self {
        let mut memory = Memory::new(numbers.len());
        memory.copy_from_slice(numbers);
        Self(memory)
    }
}

impl Deref for Numbers {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

// SAFETY: any bytes are a value.
unsafe impl Plain for f32 {
    const ZERO: Self = 0.0;
}
// SAFETY: floats and bytes, without gaps, aligned to 64 at most.
unsafe impl Plain for crate::packed::F32Row {
    const ZERO: Self = Self([0.0; crate::simd::PANEL]);
}
// SAFETY: as above.
unsafe impl Plain for crate::packed::Bf16Pairs {
    const ZERO: Self = Self([[0; 2]; crate::simd::PANEL]);
}
// SAFETY: as above.
unsafe impl Plain for crate::quantised::Int8Codes {
    const ZERO: Self = Self([0; 4 * crate::simd::PANEL]);
}
// SAFETY: as above.
unsafe impl Plain for crate::quantised::Int8Scales {
    const ZERO: Self = Self { scales: [0.0; crate::simd::PANEL], code_sums: [0.0; crate::simd::PANEL] };
}
// SAFETY: as above.
unsafe impl Plain for crate::quantised::Int4Codes {
    const ZERO: Self = Self([0; 4 * crate::simd::PANEL]);
}

// SAFETY: as above.
unsafe impl Plain for crate::quantised::Bf16Ranges {
    const ZERO: Self = Self([[0; 2]; crate::simd::PANEL]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::F32Row;

    #[test]
    fn much_and_little_memory_is_zero_and_copied() {
        for n in [0, 3, 5000] {
            let mut memory = Memory::<F32Row>::new(n);
            assert_eq!(memory.len(), n);
            assert!(memory.iter().all(|row| row.0 == [0.0; 32]));
            if let Some(last) = memory.last_mut() {
                last.0[31] = 7.0;
            }
            let copy = memory.clone();
            memory.fill(F32Row([1.0; 32]));
            assert_eq!(copy.iter().map(|row| row.0[31]).sum::<f32>(), if n > 0 { 7.0 } else { 0.0 });
        }
    }
}
