//! Which instructions are used.
#![allow(unsafe_code)] // Calls functions that enable instructions, where the CPU has them.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512, Tiles};
use crate::simd::{Bf16Kernel, Kernel, Portable};

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
    Avx2Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Level {
    /// No more than the target's baseline.
    pub const PORTABLE: Self = Self(Instructions::Portable);

    /// Every level this CPU has, widest last.
    ///
    /// Where the CPU has AMX, the system is asked to let this process use it, once.
    pub fn supported() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "there is no other level"))]
        let mut levels = Self::without_asking();
        #[cfg(target_arch = "x86_64")]
        if levels.last() == Some(&Self(Instructions::Avx512Bf16)) && amx() {
            levels.push(Self(Instructions::Amx));
        }
        levels
    }

    /// All but AMX.
    fn without_asking() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "there is no other level"))]
        let mut levels = vec![Self::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        {
            use Instructions::*;
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx2_vnni = avx2 && is_x86_feature_detected!("avxvnni");
            let avx512 = avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            let avx512_vnni = avx512 && is_x86_feature_detected!("avx512vnni");
            let avx512_bf16 = avx512_vnni && is_x86_feature_detected!("avx512bf16");
            let has = [avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16];
            let all = [Avx2, Avx2Vnni, Avx512, Avx512Vnni, Avx512Bf16];
            levels.extend(all.into_iter().zip(has).filter(|(_, has)| *has).map(|(instructions, _)| Self(instructions)));
        }
        levels
    }

    /// The last of [`Level::supported`], or the one that the environment variable [`LEVEL_VARIABLE`] names
    /// (see [`Level::name`]) if the CPU has it. Read once.
    pub fn current() -> Self {
        static CURRENT: OnceLock<Level> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let named = std::env::var(LEVEL_VARIABLE).ok().and_then(|name| Self::by_name(&name));
            named.or_else(|| Self::supported().last().copied()).unwrap_or(Self::PORTABLE)
        })
    }

    /// The level of that name, if this CPU has it.
    pub fn by_name(name: &str) -> Option<Self> {
        let named = |level: &Self| level.name() == name;
        Self::without_asking().into_iter().find(named).or_else(|| Self::supported().into_iter().find(named))
    }

    /// - `portable`
    /// - `avx2`: AVX2, FMA and F16C
    /// - `avx2_vnni`: and AVX-VNNI, for products with weights of 8 and 4 bits
    /// - `avx512`: AVX-512F and AVX-512BW
    /// - `avx512_vnni`: and AVX-512 VNNI, for products with weights of 8 and 4 bits
    /// - `avx512_bf16`: and AVX-512 BF16, for products with bfloat16 weights
    /// - `amx`: and AMX, for products with bfloat16 weights
    pub fn name(self) -> &'static str {
        match self.0 {
            Instructions::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2Vnni => "avx2_vnni",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Vnni => "avx512_vnni",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Bf16 => "avx512_bf16",
            #[cfg(target_arch = "x86_64")]
            Instructions::Amx => "amx",
        }
    }

    /// Whether products with bfloat16 weights round their inputs to bfloat16, because the level multiplies such.
    pub fn multiplies_bf16(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Bf16 | Instructions::Amx => true,
            _ => false,
        }
    }

    /// Whether it multiplies bfloat16 in tiles.
    pub(crate) fn multiplies_tiles(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Instructions::Amx => true,
            _ => false,
        }
    }

    /// Runs a kernel compiled for this level; what only products use makes no difference.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Instructions::Portable => kernel.run(Portable),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: such a `Level` exists only where `supported` has found AVX2, FMA and F16C.
            Instructions::Avx2 | Instructions::Avx2Vnni => unsafe { run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: such a `Level` exists only where `supported` has found AVX-512F, AVX-512BW, AVX2, FMA and F16C.
            Instructions::Avx512 | Instructions::Avx512Vnni | Instructions::Avx512Bf16 | Instructions::Amx => unsafe {
                run_avx512(kernel)
            },
        }
    }

    /// Runs a product with quantised weights.
    pub(crate) fn run_integers<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: such a `Level` exists only where `supported` has found AVX-VNNI, AVX2, FMA and F16C.
            Instructions::Avx2Vnni => unsafe { run_avx2_vnni(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: such a `Level` exists only where `supported` has found AVX-512 VNNI, and what AVX-512 needs.
            Instructions::Avx512Vnni | Instructions::Avx512Bf16 | Instructions::Amx => unsafe {
                run_avx512_vnni(kernel)
            },
            _ => self.run(kernel),
        }
    }

    /// Runs a product with bfloat16 weights.
    pub(crate) fn run_bf16<K: Bf16Kernel>(self, kernel: K) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: such a `Level` exists only where `supported` has found AVX-512 BF16, and what AVX-512 needs.
            Instructions::Avx512Bf16 => unsafe { run_avx512_bf16(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: such a `Level` exists only where `amx` has found AMX, and `supported` what AVX-512 needs.
            Instructions::Amx => unsafe { run_amx(kernel) },
            _ => self.run(OnFloats(kernel)),
        }
    }
}

/// A product with bfloat16 weights, with float32 instructions.
struct OnFloats<K>(K);

impl<K: Bf16Kernel> Kernel for OnFloats<K> {
    type Output = ();

    #[inline(always)]
    fn run<S: crate::simd::Simd>(self, s: S) {
        self.0.run(s);
    }
}

/// Whether the CPU has AMX for bfloat16, and the system lets this process use it.
#[cfg(target_arch = "x86_64")]
fn amx() -> bool {
    static AMX: OnceLock<bool> = OnceLock::new();
    *AMX.get_or_init(|| {
        let leaves = std::arch::x86_64::__cpuid(0).eax;
        let features = if leaves >= 7 { std::arch::x86_64::__cpuid_count(7, 0).edx } else { 0 };
        let (bf16, tiles) = (1 << 22, 1 << 24);
        features & bf16 != 0 && features & tiles != 0 && allowed_by_system()
    })
}

/// Asks for the registers of tiles, which the system keeps from processes that have not asked.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn allowed_by_system() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and changes nothing but what this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

/// How other systems are asked is not known here.
#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn allowed_by_system() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2::new())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
fn run_avx2_vnni<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2::with_vnni())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::new())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx2,fma,f16c")]
fn run_avx512_vnni<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::with_vnni())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bf16,avx512vnni,avx512f,avx512bw,avx2,fma,f16c")]
fn run_avx512_bf16<K: Bf16Kernel>(kernel: K) {
    kernel.run_pairs(Avx512::with_bf16())
}

/// # Safety
/// The CPU has AMX for bfloat16, and the system lets this process use it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
unsafe fn run_amx<K: Bf16Kernel>(kernel: K) {
    // SAFETY: as the caller says.
    let tiles = unsafe { Tiles::new() };
    kernel.run_tiles(Avx512::new(), tiles)
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

    #[test]
    fn all_levels_are_there_that_the_environment_says() {
        let names: Vec<_> = Level::supported().into_iter().map(Level::name).collect();
        assert_eq!(names[0], "portable");
        // Set where tests run on a CPU that is known (scripts/test-emulated-cpu.sh).
        if let Ok(expected) = std::env::var("BLOCKFORMER_TEST_LEVELS") {
            assert_eq!(names.join(" "), expected);
        }
    }
}
