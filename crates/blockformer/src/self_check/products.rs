//! Products of matrices, against float64 on the host.

use burn::tensor::{Tensor, TensorData};

use super::answers::{Answer, Part};
use super::models::{Subject, noise, numbers};

/// Rows, inputs and columns: large enough for an autotuner to reach for tensor cores, and as small as those of the models of
/// these checks. It chooses for each.
const SHAPES: [(&str, [usize; 3]); 3] =
    [("256 x 512 x 256", [256, 512, 256]), ("48 x 32 x 96", [48, 32, 96]), ("3 x 64 x 61", [3, 64, 61])];

pub(super) fn float32(subject: &Subject) -> Answer {
    products(subject, |x| x)
}

/// As a device gives them that rounds the factors to bfloat16.
#[cfg(all(test, feature = "flex"))]
pub(super) fn bf16(subject: &Subject) -> Answer {
    products(subject, |x| f32::from_bits((x.to_bits() + 0x7fff) & !0xffff))
}

/// As a device gives them that rounds the factors to TF32.
#[cfg(all(test, feature = "flex"))]
pub(super) fn tf32(subject: &Subject) -> Answer {
    products(subject, |x| f32::from_bits((x.to_bits() + 0x0fff) & !0x1fff))
}

fn products(subject: &Subject, round: fn(f32) -> f32) -> Answer {
    SHAPES.into_iter().map(|(name, shape)| product(subject, name, shape, round)).collect()
}

fn product(subject: &Subject, name: &'static str, [rows, inner, columns]: [usize; 3], round: fn(f32) -> f32) -> Part {
    let (a, b) = (noise(1, rows * inner), noise(2, inner * columns));
    let tensor = |values: &[f32], shape: [usize; 2]| {
        let values: Vec<f32> = values.iter().copied().map(round).collect();
        Tensor::<2>::from_data(TensorData::new(values, shape), &subject.device)
    };
    let got = tensor(&a, [rows, inner]).matmul(tensor(&b, [inner, columns]));
    let mut exact = vec![0f64; rows * columns];
    for (a, sums) in a.chunks_exact(inner).zip(exact.chunks_exact_mut(columns)) {
        for (a, b) in a.iter().zip(b.chunks_exact(columns)) {
            sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += f64::from(*a) * f64::from(*b));
        }
    }
    Part::equal(name, exact.into_iter().map(|sum| sum as f32).collect(), numbers(got))
}
