//! Products of matrices, against float64 on the host.

use burn::tensor::{Tensor, TensorData};

use super::answers::{Answer, Part};
use super::models::{Subject, noise, numbers};

/// Large enough for an autotuner to reach for tensor cores.
const ROWS: usize = 256;
const INNER: usize = 512;
const COLUMNS: usize = 256;

pub(super) fn float32(subject: &Subject) -> Answer {
    products(subject, |x| x)
}

/// As a device gives it that rounds the factors to TF32.
#[cfg(all(test, feature = "flex"))]
pub(super) fn tf32(subject: &Subject) -> Answer {
    products(subject, |x| f32::from_bits((x.to_bits() + 0x0fff) & !0x1fff))
}

fn products(subject: &Subject, round: fn(f32) -> f32) -> Answer {
    let (a, b) = (noise(1, ROWS * INNER), noise(2, INNER * COLUMNS));
    let tensor = |values: &[f32], shape: [usize; 2]| {
        let values: Vec<f32> = values.iter().copied().map(round).collect();
        Tensor::<2>::from_data(TensorData::new(values, shape), &subject.device)
    };
    let got = tensor(&a, [ROWS, INNER]).matmul(tensor(&b, [INNER, COLUMNS]));
    let mut exact = vec![0f64; ROWS * COLUMNS];
    for (a, sums) in a.chunks_exact(INNER).zip(exact.chunks_exact_mut(COLUMNS)) {
        for (a, b) in a.iter().zip(b.chunks_exact(COLUMNS)) {
            sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += f64::from(*a) * f64::from(*b));
        }
    }
    vec![Part::equal("256 x 512 x 256", exact.into_iter().map(|sum| sum as f32).collect(), numbers(got))]
}
