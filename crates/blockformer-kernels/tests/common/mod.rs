//! Numbers for the tests, and how they are compared.
#![allow(dead_code)] // Each test file takes what it needs.

use blockformer_kernels::Level;

/// Numbers that look random, in (-1, 1).
pub(crate) fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Fails where a number differs from the reference by more than `tolerance`, or is not a number.
#[track_caller]
pub(crate) fn assert_close(got: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        assert!(error <= tolerance, "{what}, number {index}: {got} instead of {expected}");
    }
}

/// The levels to test; under Miri the widest it was told of.
pub(crate) fn levels() -> Vec<Level> {
    let levels = Level::supported();
    // Set where tests run on a CPU that is known (scripts/test-emulated-cpu.sh).
    if let Ok(expected) = std::env::var("BLOCKFORMER_TEST_LEVELS") {
        assert_eq!(levels.iter().map(|level| level.name()).collect::<Vec<_>>().join(" "), expected);
    }
    levels
}

/// A size, smaller where every instruction is interpreted.
pub(crate) fn size(n: usize) -> usize {
    if cfg!(miri) { n.min(40 + n % 7) } else { n }
}
