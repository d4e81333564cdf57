//! Packed weights against those they were made of.

mod common;

use blockformer_kernels::{PackedMatrix, Precision};
use common::{noise, size};

/// How far a weight of 8 bits may be off: codes of a group of 64 inputs reach to 64, unless those whose products are summed
/// in 16 bits, the halves of quads in 32 inputs, have a sum of more than 258 of one sign then. Rounding may be 8 of these,
/// and the largest code, 16 or more, is a whole number.
fn half_a_step_of_8_bits(weights: &[f32], n_outputs: usize, i: usize) -> f32 {
    let (input, column) = (i / n_outputs, i % n_outputs);
    let group: Vec<f32> =
        weights.chunks(n_outputs).skip(input / 64 * 64).take(64).map(|outputs| outputs[column]).collect();
    let largest = group.iter().fold(0.0f32, |max, weight| max.max(weight.abs()));
    let mut sums = [0.0f32; 8];
    for (input, weight) in group.iter().enumerate() {
        sums[input / 32 * 4 + input % 4 / 2 * 2 + usize::from(*weight < 0.0)] += weight.abs();
    }
    let sum = sums.into_iter().fold(0.0, f32::max);
    0.50001 * (largest / 64.0).max(17.0 / 16.0 * sum / 250.0)
}

#[test]
fn stored_weights_are_the_given_ones_up_to_their_precision() {
    let (k, n) = (size(70), size(45));
    let weights = noise(k * n, 3);
    for precision in Precision::ALL {
        let stored = PackedMatrix::new(&weights, k, n, precision).to_f32();
        for (i, (weight, stored)) in weights.iter().zip(&stored).enumerate() {
            let step = match precision {
                Precision::F32 => 0.0,
                Precision::Bf16 => 1.0 / 256.0,
                Precision::Int8 => half_a_step_of_8_bits(&weights, n, i),
                Precision::Int4 => 0.15,
            };
            assert!((weight - stored).abs() <= step, "{}: {weight} became {stored}", precision.name());
        }
        let transposed: Vec<f32> = (0..k * n).map(|i| weights[i % k * n + i / k]).collect();
        assert_eq!(PackedMatrix::transposed(&transposed, k, n, precision).to_f32(), stored);
    }
    let bytes = |precision| PackedMatrix::new(&noise(64 * 64, 4), 64, 64, precision).bytes();
    assert_eq!(Precision::ALL.map(bytes), [4 * 4096, 2 * 4096, 4096 + 512, 2048 + 512]);
}

#[test]
fn four_bits_err_less_than_sixteen_values_from_the_least_to_the_largest_weight() {
    // Bell-shaped, as weights are.
    let terms = noise(12 * 64 * 32, 5);
    let weights: Vec<f32> = terms.chunks(12).map(|terms| terms.iter().sum()).collect();
    let squared = |stored: &[f32]| -> f32 { weights.iter().zip(stored).map(|(a, b)| (a - b) * (a - b)).sum() };
    let naive: Vec<f32> = (0..64 * 32)
        .map(|i| {
            let (row, column) = (i / 32, i % 32);
            let group = || (row / 32 * 32..row / 32 * 32 + 32).map(|row| weights[row * 32 + column]);
            let (least, largest) = (group().fold(f32::INFINITY, f32::min), group().fold(f32::NEG_INFINITY, f32::max));
            let scale = (largest - least) / 15.0;
            least + ((weights[i] - least) / scale).round() * scale
        })
        .collect();
    let stored = PackedMatrix::new(&weights, 64, 32, Precision::Int4).to_f32();
    assert!(squared(&stored) < 0.95 * squared(&naive), "{} and {}", squared(&stored), squared(&naive));
}

#[test]
fn four_bits_keep_groups_of_any_size_and_anywhere() {
    // How far a weight may be off: half a step of sixteen, and what bfloat16 rounds of scale and minimum.
    let check = |what: &str, weights: &[f32]| {
        let stored = PackedMatrix::new(weights, weights.len(), 1, Precision::Int4).to_f32();
        for (group, stored) in weights.chunks(32).zip(stored.chunks(32)) {
            let least = group.iter().copied().fold(f32::INFINITY, f32::min);
            let largest = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let magnitude = least.abs().max(largest.abs());
            // Ranges narrower than the weights' clip the outermost, by an eighth of the range at most.
            let may = (0.125 + 0.5 / 15.0 + 0.01) * (largest - least) + magnitude / 256.0 + f32::MIN_POSITIVE;
            for (weight, stored) in group.iter().zip(stored) {
                assert!((weight - stored).abs() <= may, "{what}: {weight} became {stored}, may {may}");
            }
        }
    };
    let unit = noise(65, 8); // a last group of one
    check("ordinary", &unit);
    for (what, scale) in [("huge", 1e30), ("tiny", 1e-30), ("nearly subnormal", 1e-36), ("subnormal", 1e-40)] {
        check(what, &unit.iter().map(|x| x * scale).collect::<Vec<_>>());
    }
    check("far from zero", &unit.iter().map(|x| 1.0 + 0.01 * x).collect::<Vec<_>>());
    check("all the same", &[1.003; 65]);
}

#[test]
fn zero_weights_stay_zero_in_every_precision() {
    for precision in Precision::ALL {
        let stored = PackedMatrix::new(&[0.0; 40 * 3], 40, 3, precision).to_f32();
        assert!(stored.iter().all(|w| *w == 0.0), "{}", precision.name());
    }
}

#[test]
fn four_bits_hold_sixteen_evenly_spaced_weights_exactly() {
    // Whatever the least is: groups between 1 and 4 and between -3 and 0.75, all of bfloat16's numbers.
    let weights: Vec<f32> = (0..64 * 3)
        .map(|i| {
            let (row, column) = (i / 3, i % 3);
            let code = (row * 7 + column * 5) % 16;
            if row < 32 { 1.0 + 0.203_125 * code as f32 } else { -3.0 + 0.25 * code as f32 }
        })
        .collect();
    let stored = PackedMatrix::new(&weights, 64, 3, Precision::Int4).to_f32();
    assert_eq!(stored, weights);
    // A column that is the same number everywhere, and one of zeros.
    let stored = PackedMatrix::new(&[-0.75, 0.0].repeat(40), 40, 2, Precision::Int4).to_f32();
    assert_eq!(stored, [-0.75, 0.0].repeat(40));
}
