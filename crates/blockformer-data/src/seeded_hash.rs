//! A small deterministic hash: the crate's only source of randomness.
//!
//! Everything random here (padding before documents, the order of samples, the choice of validation documents) must
//! be a pure function of a seed and an index, whatever was computed before it. A counter-based hash gives that without
//! any state, and unlike a random generator from another crate it never changes with a version.

/// Hashes `index` under `seed` to 64 well mixed bits (two rounds of the SplitMix64 finalizer).
pub(crate) fn seeded_hash(seed: u64, index: u64) -> u64 {
    mix(mix(seed.wrapping_add(0x9E37_79B9_7F4A_7C15)).wrapping_add(index))
}

/// The SplitMix64 finalizer, a bijection of 64-bit numbers.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_finalizer_matches_the_reference_splitmix64() {
        // The first outputs of the public-domain reference implementation seeded with 0.
        let gamma = 0x9E37_79B9_7F4A_7C15_u64;
        assert_eq!(mix(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(mix(gamma), 0x6E78_9E6A_A1B9_65F4);
        assert_eq!(mix(gamma.wrapping_mul(2)), 0x06C4_5D18_8009_454F);
    }

    #[test]
    fn small_ranges_are_hit_evenly() {
        let mut counts = [0_u32; 4];
        for index in 0..40_000 {
            counts[(seeded_hash(7, index) % 4) as usize] += 1;
        }
        for count in counts {
            assert!((9_700..10_300).contains(&count), "{counts:?}");
        }
    }
}
