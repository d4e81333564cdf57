//! Norms, and products of a few rows with what stands around them.

use blockformer_cubecl::{FewRows, MAX_ROWS, RowActivation, RowMap, RowNorm, norm, product};
use burn::tensor::{DType, Tensor};

use crate::support::{device, numbers, tensor, values};

#[test]
fn norms_are_those_of_float64() {
    for (rows, features) in [(1, 1), (3, 40), (2, 1000), (70, 7)] {
        for centred in [false, true] {
            let x = tensor(&numbers(rows * features, 1), [rows, 1, features], DType::F32).add_scalar(0.5);
            let (scale, shift) = (numbers(features, 2), numbers(features, 3));
            let [s, t] = [&scale, &shift].map(|x| tensor(x, [features], DType::F32));
            let of = match centred {
                true => RowNorm { centred, scale: &s, shift: Some(&t), epsilon: EPSILON },
                false => RowNorm { centred, scale: &s, shift: None, epsilon: EPSILON },
            };
            let got = values(norm(&x, of).expect("there is a kernel"));
            for (got, x) in got.chunks(features).zip(values(x).chunks(features)) {
                let mean = if centred { x.iter().sum::<f64>() / features as f64 } else { 0.0 };
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / features as f64;
                for (k, got) in got.iter().enumerate() {
                    let shift = if centred { f64::from(shift[k]) } else { 0.0 };
                    let expected = (x[k] - mean) / (variance + EPSILON).sqrt() * f64::from(scale[k]) + shift;
                    assert!((got - expected).abs() < 2e-5, "{got} instead of {expected}, {rows} x {features}");
                }
            }
        }
    }
}

/// What stands around a product.
#[derive(Debug, Clone, Copy, Default)]
struct Around {
    /// `Some(true)`: a layer norm; `Some(false)`: an RMS norm.
    centred: Option<bool>,
    biased: bool,
    gated: bool,
    activation: Option<RowActivation>,
    onto_residual: bool,
}

pub(crate) const EPSILON: f64 = 1e-3;

/// The error function by Simpson's rule.
fn erf(x: f64) -> f64 {
    let n = 400;
    let step = x / f64::from(n);
    let weight = |i: i32| if i == 0 || i == n { 1.0 } else { f64::from(2 + 2 * (i % 2)) };
    let sum: f64 = (0..=n).map(|i| weight(i) * (-(f64::from(i) * step).powi(2)).exp()).sum();
    sum * step / 3.0 * std::f64::consts::FRAC_2_SQRT_PI
}

fn activated(activation: Option<RowActivation>, x: f64) -> f64 {
    match activation {
        None => x,
        Some(RowActivation::Gelu) => x * 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Some(RowActivation::GeluTanh) => {
            x * 0.5 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Some(RowActivation::Relu) => x.max(0.0),
        Some(RowActivation::Silu) => x / (1.0 + (-x).exp()),
    }
}

fn check_product([batch, positions, d_in, d_out]: [usize; 4], around: Around, dtype: DType, tolerance: f64) {
    let x =
        tensor(&numbers(batch * positions * d_in, 1), [batch, positions, d_in], dtype).mul_scalar(2.0).add_scalar(0.5);
    let matrix = |salt| tensor(&numbers(d_in * d_out, salt), [d_in, d_out], dtype).div_scalar((d_in as f64).sqrt());
    let vector = |n, salt| tensor(&numbers(n, salt), [n], dtype);
    let (weight, gate, bias, gate_bias) = (matrix(2), matrix(3), vector(d_out, 4), vector(d_out, 5));
    let (scale, shift) = (vector(d_in, 6), vector(d_in, 7));
    let residual = tensor(&numbers(batch * positions * d_out, 8), [batch, positions, d_out], dtype);
    let of = FewRows {
        map: RowMap { weight: &weight, bias: around.biased.then_some(&bias) },
        norm: around.centred.map(|centred| match centred {
            true => RowNorm { centred, scale: &scale, shift: around.biased.then_some(&shift), epsilon: EPSILON },
            false => RowNorm { centred, scale: &scale, shift: None, epsilon: EPSILON },
        }),
        gate: around.gated.then_some(RowMap { weight: &gate, bias: around.biased.then_some(&gate_bias) }),
        activation: around.activation,
        residual: around.onto_residual.then_some(&residual),
    };
    let got = product(&x, &of).expect("there is a kernel");
    assert_eq!((got.dims(), got.dtype()), ([batch, positions, d_out], dtype));
    let got = values(got);

    let [weight, gate] = [weight, gate].map(values);
    let [bias, gate_bias, scale, shift] = [bias, gate_bias, scale, shift].map(values);
    let (x, residual) = (values(x), values(residual));
    for row in 0..batch * positions {
        let mut x = x[row * d_in..][..d_in].to_vec();
        if let Some(centred) = around.centred {
            let mean = if centred { x.iter().sum::<f64>() / d_in as f64 } else { 0.0 };
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d_in as f64;
            for (k, x) in x.iter_mut().enumerate() {
                *x = (*x - mean) / (variance + EPSILON).sqrt() * scale[k];
                *x += if centred && around.biased { shift[k] } else { 0.0 };
            }
        }
        for column in 0..d_out {
            let map = |weight: &[f64], bias: &[f64]| {
                let sum: f64 = x.iter().enumerate().map(|(k, x)| x * weight[k * d_out + column]).sum();
                sum + if around.biased { bias[column] } else { 0.0 }
            };
            let y = map(&weight, &bias);
            let mut expected = match around.gated {
                true => y * activated(around.activation, map(&gate, &gate_bias)),
                false => activated(around.activation, y),
            };
            let at = row * d_out + column;
            expected += if around.onto_residual { residual[at] } else { 0.0 };
            let difference = (got[at] - expected).abs();
            assert!(
                difference < tolerance * (1.0 + expected.abs()),
                "{} instead of {expected}: row {row}, column {column} of {batch} x {positions} x {d_in} x {d_out} {dtype:?} {around:?}",
                got[at],
            );
        }
    }
}

#[test]
fn products_are_those_of_float64() {
    let neox = Around { centred: Some(true), biased: true, activation: Some(RowActivation::Gelu), ..Around::default() };
    let llama =
        Around { centred: Some(false), gated: true, activation: Some(RowActivation::Silu), ..Around::default() };
    let arounds = [
        Around::default(),
        neox,
        llama,
        Around { activation: Some(RowActivation::GeluTanh), onto_residual: true, ..Around::default() },
        Around { biased: true, activation: Some(RowActivation::Relu), ..llama },
        Around { biased: true, onto_residual: true, ..Around::default() },
    ];
    // Odd sizes have vectors of one; 4,100 features are more than a cube's units take at once.
    let shapes = [[1, 1, 1, 1], [1, 2, 33, 7], [2, 1, 64, 96], [3, 1, 4100, 20], [MAX_ROWS / 2, 2, 40, 264]];
    for (i, shape) in shapes.into_iter().enumerate() {
        for around in arounds {
            check_product(shape, around, DType::F32, 2e-5);
        }
        for (dtype, tolerance) in [(DType::F16, 4e-3), (DType::BF16, 3e-2)] {
            if device().supports_dtype(dtype) {
                check_product(shape, arounds[i % 3], dtype, tolerance);
            }
        }
    }
}

/// Rows of weights may lie apart, as CUDA lays them out where they are no multiple of 512 bytes; or be columns.
#[test]
fn weights_are_read_as_they_lie() {
    let (d_in, d_out) = (24, 40);
    let x = tensor(&numbers(2 * d_in, 1), [2, 1, d_in], DType::F32);
    let wide = tensor(&numbers(d_in * 64, 2), [d_in, 64], DType::F32);
    let across = tensor(&numbers(d_in * d_out, 2), [d_out, d_in], DType::F32).transpose();
    for weight in [wide.clone().narrow(1, 8, d_out), wide.narrow(1, 3, d_out), across] {
        let of = FewRows::new(RowMap { weight: &weight, bias: None });
        let got = values(product(&x, &of).expect("there is a kernel"));
        let (x, weight) = (values(x.clone()), values(weight));
        for (at, got) in got.iter().enumerate() {
            let (row, column) = (at / d_out, at % d_out);
            let expected: f64 = (0..d_in).map(|k| x[row * d_in + k] * weight[k * d_out + column]).sum();
            assert!((got - expected).abs() < 1e-5, "{got} instead of {expected} at {at}");
        }
    }
}

/// Strips of all widths: the more columns, the wider.
#[test]
fn products_with_many_columns_are_those_of_float64() {
    for d_out in [4 * 8 * 256, 4 * 16 * 256, 4 * 32 * 256 + 4] {
        check_product([1, 1, 9, d_out], Around { biased: true, ..Around::default() }, DType::F32, 2e-5);
    }
}

/// By larger cubes, as there are few.
#[test]
fn products_of_long_rows_with_few_columns_are_those_of_float64() {
    let gated = Around { centred: Some(true), gated: true, ..Around::default() };
    for shape in [[1, 1, 2100, 24], [1, 2, 4099, 9], [2, 4, 1030, 70]] {
        for around in [Around { onto_residual: true, ..Around::default() }, gated] {
            check_product(shape, around, DType::F32, 4e-5);
            if device().supports_dtype(DType::F16) {
                check_product(shape, around, DType::F16, 8e-3);
            }
        }
    }
}

#[test]
fn activations_of_large_numbers_are_numbers() {
    let (one, large) =
        (Tensor::<2>::ones([1, 1], &device()), tensor(&[-1e30, -100.0, 100.0, 1e30], [4, 1, 1], DType::F32));
    for (activation, expected) in [
        (RowActivation::Gelu, [0.0, 0.0, 100.0, 1e30f32 as f64]),
        (RowActivation::GeluTanh, [0.0, 0.0, 100.0, 1e30f32 as f64]),
        (RowActivation::Relu, [0.0, 0.0, 100.0, 1e30f32 as f64]),
        (RowActivation::Silu, [0.0, 0.0, 100.0, 1e30f32 as f64]),
    ] {
        let of = FewRows { activation: Some(activation), ..FewRows::new(RowMap { weight: &one, bias: None }) };
        let got = values(product(&large, &of).expect("there is a kernel"));
        assert_eq!(got, expected, "{activation:?}");
    }
}
