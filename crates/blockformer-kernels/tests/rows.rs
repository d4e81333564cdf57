//! Norms, activations, softmax and rotary embedding against float64.

mod common;

use blockformer_kernels::{
    Activation, LayerNorm, Level, RmsNorm, argmax, cross_entropy, gated, log_softmax, log_sum_exp, rotate, softmax,
};
use common::{assert_close, levels, noise, size};

/// The whole range in which activations do something, and some beyond it.
fn inputs() -> Vec<f32> {
    let n = size(40_003);
    let spread = (0..n).map(|i| 24.0 * (i as f32 / n as f32) - 12.0);
    spread.chain([-1e30, -100.0, -88.0, -0.0, 0.0, 1e-20, 88.0, 100.0, 1e30]).collect()
}

fn formula(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Gelu => 0.5 * x * libm::erfc(-x / 2f64.sqrt()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + libm::tanh((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)))
        }
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        _ => x,
    }
}

const ALL: [Activation; 5] =
    [Activation::Identity, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu];

#[test]
fn activations_follow_their_formulas() {
    for level in levels() {
        for activation in ALL {
            let x = inputs();
            let mut y = x.clone();
            activation.apply(level, &mut y);
            for (x, y) in x.iter().zip(&y) {
                let (x, expected) = (f64::from(*x), formula(activation, f64::from(*x)));
                let error = (f64::from(*y) - expected).abs();
                let allowed = if activation == Activation::Gelu { 1e-6 } else { 3e-7 } * expected.abs().max(1.0);
                assert!(error <= allowed, "{} {activation:?}({x}): {y} instead of {expected}", level.name());
            }
        }
    }
}

fn derivative(activation: Activation, x: f64) -> f64 {
    use std::f64::consts::PI;
    match activation {
        Activation::Gelu => 0.5 * libm::erfc(-x / 2f64.sqrt()) + x * (-x * x / 2.0).exp() / (2.0 * PI).sqrt(),
        Activation::GeluTanh => {
            let x = x.clamp(-1e9, 1e9); // whose cube is still finite
            let tanh = libm::tanh((2.0 / PI).sqrt() * (x + 0.044715 * x * x * x));
            let rest = if tanh.abs() == 1.0 { 0.0 } else { x * (1.0 - tanh * tanh) * (1.0 + 3.0 * 0.044715 * x * x) };
            0.5 * (1.0 + tanh + rest * (2.0 / PI).sqrt())
        }
        Activation::Relu => f64::from(u8::from(x > 0.0)),
        Activation::Silu if x < -700.0 => 0.0, // where e⁻ˣ is not finite
        Activation::Silu => {
            let sigma = 1.0 / (1.0 + (-x).exp());
            sigma * (1.0 + x * (1.0 - sigma))
        }
        _ => 1.0,
    }
}

#[test]
fn tangents_touch_the_activation_with_its_derivative() {
    for level in levels() {
        for activation in ALL {
            let x = inputs();
            let (mut offsets, mut slopes) = (x.clone(), vec![f32::NAN; x.len()]);
            activation.tangents(level, &mut offsets, &mut slopes);
            for ((x, offset), slope) in x.iter().zip(&offsets).zip(&slopes) {
                let what = format!("{} {activation:?}({x})", level.name());
                let (exact, expected) = (f64::from(*x), derivative(activation, f64::from(*x)));
                assert!((f64::from(*slope) - expected).abs() <= 1e-6, "{what}: slope {slope}, not {expected}");
                let (y, expected) = (slope * x + offset, formula(activation, exact));
                let allowed = 1e-6 * expected.abs().max(1.0);
                assert!((f64::from(y) - expected).abs() <= allowed, "{what}: {y} instead of {expected}");
            }
        }
    }
}

#[test]
fn what_is_not_a_number_stays_so() {
    for level in levels() {
        for activation in ALL.into_iter().filter(|a| *a != Activation::Relu) {
            let mut x = [f32::NAN; 19];
            activation.apply(level, &mut x);
            assert!(x.iter().all(|x| x.is_nan()), "{} {activation:?}", level.name());
            let (mut offsets, mut slopes) = (x, [0.0; 19]);
            activation.tangents(level, &mut offsets, &mut slopes);
            let touched = (0..19).all(|i| (slopes[i] * x[i] + offsets[i]).is_nan());
            assert!(touched, "{} {activation:?}", level.name());
        }
    }
}

#[test]
fn gates_multiply() {
    for n in [1, size(77), size(40_000)] {
        let (gate, up) = (noise(n, 1), noise(n, 2));
        let expected: Vec<f64> =
            gate.iter().zip(&up).map(|(g, u)| formula(Activation::Silu, f64::from(*g)) * f64::from(*u)).collect();
        for level in levels() {
            let mut y = gate.clone();
            gated(level, Activation::Silu, &mut y, &up);
            assert_close(&y, &expected, 1e-6, level.name());
        }
    }
}

#[test]
fn norms_follow_float64_also_far_from_zero() {
    for (rows, n) in [(1, 1), (3, 17), (2, size(512)), (size(90), size(770))] {
        // A mean of 100 would ruin a variance computed as E[x²] - E[x]².
        let x: Vec<f32> = noise(rows * n, 3).iter().map(|x| x + 100.0).collect();
        let (gamma, beta) = (noise(n, 4), noise(n, 5));
        let mut layer = Vec::new();
        let mut rms = Vec::new();
        for row in x.chunks(n) {
            let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            let mean = row.iter().sum::<f64>() / n as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            let square = row.iter().map(|x| x * x).sum::<f64>() / n as f64;
            for (i, x) in row.iter().enumerate() {
                let (gamma, beta) = (f64::from(gamma[i]), f64::from(beta[i]));
                layer.push((x - mean) / (variance + 1e-5).sqrt() * gamma + beta);
                rms.push(x / (square + 1e-6).sqrt() * gamma);
            }
        }
        for level in levels() {
            let mut out = vec![f32::NAN; rows * n];
            LayerNorm { gamma: &gamma, beta: Some(&beta), eps: 1e-5 }.apply(level, &x, &mut out);
            assert_close(&out, &layer, 2e-4, &format!("{} layer norm {rows}x{n}", level.name()));
            RmsNorm { gamma: &gamma, eps: 1e-6 }.apply(level, &x, &mut out);
            assert_close(&out, &rms, 1e-6, &format!("{} rms norm {rows}x{n}", level.name()));
        }
    }
}

#[test]
fn softmax_and_its_logarithm_follow_float64() {
    for (rows, n) in [(1, 1), (2, 7), (5, 33), (3, size(5000)), (size(40), size(900))] {
        // Differences of up to 200: exponentials of the raw numbers would overflow.
        let x: Vec<f32> = noise(rows * n, 6).iter().map(|x| 100.0 * x).collect();
        let (mut soft, mut log, mut sums) = (Vec::new(), Vec::new(), Vec::new());
        for row in x.chunks(n) {
            let max = row.iter().fold(f64::NEG_INFINITY, |max, x| max.max(f64::from(*x)));
            let total = max + row.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln();
            sums.push(total);
            log.extend(row.iter().map(|x| f64::from(*x) - total));
            soft.extend(row.iter().map(|x| (f64::from(*x) - total).exp()));
        }
        for level in levels() {
            let what = format!("{} {rows}x{n}", level.name());
            let mut y = x.clone();
            softmax(level, &mut y, n);
            assert_close(&y, &soft, 1e-6, &what);
            let mut y = x.clone();
            log_softmax(level, &mut y, n);
            assert_close(&y, &log, 3e-5, &what);
            let mut y = vec![f32::NAN; rows];
            log_sum_exp(level, &x, n, &mut y);
            assert_close(&y, &sums, 2e-5, &what);
        }
    }
}

#[test]
fn cross_entropy_and_its_gradient_follow_float64() {
    for (rows, n) in [(1, 1), (2, 7), (5, 33), (3, size(5000)), (size(40), size(900))] {
        let logits: Vec<f32> = noise(rows * n, 7).iter().map(|x| 100.0 * x).collect();
        let targets: Vec<usize> = (0..rows).map(|row| row * 31 % n).collect();
        let scales: Vec<f32> = (0..rows).map(|row| if row % 3 == 1 { 0.0 } else { 0.25 }).collect();
        let (mut losses, mut gradients) = (Vec::new(), Vec::new());
        for ((row, target), scale) in logits.chunks(n).zip(&targets).zip(&scales) {
            let max = row.iter().fold(f64::NEG_INFINITY, |max, x| max.max(f64::from(*x)));
            let total = max + row.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln();
            let loss = total - f64::from(row[*target]);
            losses.push(if *scale == 0.0 { 0.0 } else { loss });
            let softmax = row.iter().map(|x| (f64::from(*x) - total).exp());
            let gradient = softmax.enumerate().map(|(i, p)| p - f64::from(u8::from(i == *target)));
            gradients.extend(gradient.map(|x| f64::from(*scale) * x));
        }
        for level in levels() {
            let what = format!("{} {rows}x{n}", level.name());
            let (mut found, mut at) = (logits.clone(), vec![f32::NAN; rows]);
            cross_entropy(level, &mut found, n, &targets, &scales, &mut at);
            assert_close(&at, &losses, 2e-5, &what);
            assert_close(&found, &gradients, 1e-6, &what);
        }
    }
}

#[test]
fn a_row_that_does_not_count_may_hold_anything_and_others_say_what_is_not_a_number() {
    for level in levels() {
        let mut logits = [f32::NAN, 1.0, 2.0, f32::NAN];
        let mut losses = [7.0; 2];
        cross_entropy(level, &mut logits, 2, &[1, 0], &[0.0, 1.0], &mut losses);
        assert_eq!((logits[0], logits[1], losses[0]), (0.0, 0.0, 0.0));
        assert!(losses[1].is_nan());
    }
}

#[test]
fn argmax_is_the_first_of_the_largest_and_refuses_senseless_numbers() {
    for level in levels() {
        for n in [1, 5, 16, 50] {
            for at in 0..n {
                let mut x = vec![-1.0; n];
                (x[at], x[n - 1]) = (3.0, 3.0);
                assert_eq!(argmax(level, &x), Some(at));
                for senseless in [f32::NAN, f32::INFINITY] {
                    x[at] = senseless;
                    assert_eq!(argmax(level, &x), None, "{} {senseless} at {at} of {n}", level.name());
                }
                x[at] = f32::NEG_INFINITY;
                assert_eq!(argmax(level, &x).is_none(), n == 1);
            }
        }
        assert_eq!(argmax(level, &[]), None);
    }
}

#[test]
fn rotation_follows_the_formula_and_leaves_the_rest() {
    for (half, head_dim) in [(1, 2), (3, 11), (8, 64), (32, 64)] {
        let (x, angles) = (noise(3 * head_dim, 9), noise(half, 10));
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        let mut expected: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        for head in expected.chunks_mut(head_dim) {
            for (i, angle) in angles.iter().enumerate() {
                let (sin, cos) = f64::from(*angle).sin_cos();
                let (a, b) = (head[i], head[half + i]);
                (head[i], head[half + i]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
        for level in levels() {
            let mut y = x.clone();
            rotate(level, &mut y, head_dim, &cos, &sin);
            assert_close(&y, &expected, 1e-6, level.name());
        }
    }
}

#[test]
fn what_stands_beside_a_row_changes_no_bit_of_it() {
    // Rows that are not whole vectors, and so many that several threads share them.
    for (rows, n) in [(3, 17), (7, size(45)), (size(60), size(1001))] {
        let x = noise(rows * n, 3);
        let (gamma, beta, up) = (noise(n, 4), noise(n, 5), noise(rows * n, 6));
        for level in levels() {
            let same = |what: &str, f: &dyn Fn(&mut [f32], std::ops::Range<usize>)| {
                let mut all = x.clone();
                f(&mut all, 0..rows * n);
                for row in 0..rows {
                    let range = row * n..(row + 1) * n;
                    let mut alone = x[range.clone()].to_vec();
                    f(&mut alone, range.clone());
                    assert_eq!(all[range], alone, "{} {what}, row {row} of {rows}x{n}", level.name());
                }
            };
            same("layer norm", &|y, range| {
                LayerNorm { gamma: &gamma, beta: Some(&beta), eps: 1e-5 }.apply(level, &x[range], y);
            });
            same("rms norm", &|y, range| RmsNorm { gamma: &gamma, eps: 1e-6 }.apply(level, &x[range], y));
            for activation in ALL {
                same(&format!("{activation:?}"), &|y, _| activation.apply(level, y));
            }
            same("gate", &|y, range| gated(level, Activation::Silu, y, &up[range]));
            same("softmax", &|y, _| softmax(level, y, n));
            same("log-softmax", &|y, _| log_softmax(level, y, n));
            same("rotation", &|y, _| rotate(level, y, n, &gamma[..n / 2], &beta[..n / 2]));
        }
    }
}

#[test]
#[should_panic(expected = "7 numbers are not rows of 3")]
fn broken_rows_panic() {
    softmax(Level::PORTABLE, &mut [0.0; 7], 3);
}
