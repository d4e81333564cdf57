//! Which instructions are used.
#![allow(unsafe_code)] // Calls functions that enable instructions, where the CPU has them.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Kernel, Portable};

/// The environment variable that limits [`Level::current`] to the level it names, for tests and comparisons.
pub const LEVEL_VARIABLE: &str = "BLOCKFORMER_CPU_LEVEL";

/// A set of vector instructions that this CPU has: a value can be made in no other way than by asking the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(Instructions);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Instructions {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// No more than the target's baseline.
    pub const PORTABLE: Self = Self(Instructions::Portable);

    /// Every level this CPU has, narrowest first.
    pub fn supported() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "there is no other level"))]
        let mut levels = vec![Self::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                levels.push(Self(Instructions::Avx2));
                if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                    levels.push(Self(Instructions::Avx512));
                }
            }
        }
        levels
    }

    /// The widest level this CPU has, or the one that the environment variable [`LEVEL_VARIABLE`] names
    /// (`portable`, `avx2`, `avx512`) if the CPU has it. Read once.
    pub fn current() -> Self {
        static CURRENT: OnceLock<Level> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let named = std::env::var(LEVEL_VARIABLE).ok().and_then(|name| Self::by_name(&name));
            named.or_else(|| Self::supported().last().copied()).unwrap_or(Self::PORTABLE)
        })
    }

    /// The level of that name, if this CPU has it.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::supported().into_iter().find(|level| level.name() == name)
    }

    /// `portable`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Instructions::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => "avx512",
        }
    }

    /// Runs a kernel compiled for this level.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Instructions::Portable => kernel.run(Portable),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` of AVX2 exists only where `supported` has found AVX2, FMA and F16C.
            Instructions::Avx2 => unsafe { run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` of AVX-512 exists only where `supported` has found AVX-512F, AVX-512BW, AVX2, FMA and F16C.
            Instructions::Avx512 => unsafe { run_avx512(kernel) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2::new())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_level_is_found_by_its_name() {
        for level in Level::supported() {
            assert_eq!(Level::by_name(level.name()), Some(level));
        }
        assert_eq!(Level::by_name("avx1024"), None);
        assert!(Level::supported().contains(&Level::current()));
    }
}
