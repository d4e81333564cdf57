//! Tokens of rows of logits.

use blockformer_cubecl::{Choice, Filters, Ways, draw, draw_each};
use burn::tensor::{DType, Int, Tensor};

use crate::PLAIN;
use crate::support::{numbers, tensor};

/// Logits with ties, of which few are likely.
fn logits(rows: usize, vocab_size: usize) -> Vec<f32> {
    numbers(rows * vocab_size, 9).iter().map(|x| (x * 24.0).round() * 0.25).collect()
}

/// The definition in float64, by sorting: the token, and how far the number is from the nearest bound between tokens.
fn expected(logits: &[f32], uniform: f32, filters: &Filters) -> (i64, f64) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: &f32| (f64::from(logit - max) / filters.temperature).exp();
    let weights: Vec<f64> = logits.iter().map(weight).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b)));
    order.truncate(filters.top_k.unwrap_or(usize::MAX));
    if let Some(p) = filters.top_p {
        let wanted = p * order.iter().map(|id| weights[*id]).sum::<f64>();
        let mut mass = 0.0;
        let n = order.iter().take_while(|id| {
            let goes_on = mass < wanted;
            mass += weights[**id];
            goes_on
        });
        order.truncate(n.count());
    }
    order.retain(|id| weights[*id] >= filters.min_p.unwrap_or(0.0));
    order.sort();
    let total: f64 = order.iter().map(|id| weights[*id]).sum();
    let (mut sum, mut nearest, mut drawn) = (0.0, f64::INFINITY, None);
    for id in order {
        sum += weights[id] / total;
        nearest = nearest.min((sum - f64::from(uniform)).abs());
        drawn = drawn.or((sum > f64::from(uniform)).then_some(id as i64));
    }
    (drawn.unwrap(), nearest)
}

const FILTERS: [Filters; 11] = [
    PLAIN,
    Filters { temperature: 1e300, ..PLAIN },
    Filters { temperature: 0.6, ..PLAIN },
    Filters { temperature: 1e-40, ..PLAIN },
    Filters { top_k: Some(1), ..PLAIN },
    Filters { top_k: Some(7), ..PLAIN },
    Filters { top_k: Some(1 << 20), ..PLAIN },
    Filters { top_p: Some(0.803), ..PLAIN },
    Filters { top_p: Some(1e-46), ..PLAIN },
    Filters { min_p: Some(0.1), ..PLAIN },
    Filters { temperature: 1.4, top_k: Some(40), top_p: Some(0.913), min_p: Some(0.02) },
];

#[test]
fn drawn_tokens_are_those_of_the_definition() {
    for (rows, vocab_size) in [(24, 1), (24, 2), (24, 255), (24, 1009), (3, 50_304)] {
        let logits = logits(rows, vocab_size);
        let uniforms: Vec<f32> = numbers(rows, 5).iter().map(|x| (x + 1.0) / 2.0).collect();
        let (x, u) = (tensor(&logits, [rows, vocab_size], DType::F32), tensor(&uniforms, [rows, 1], DType::F32));
        for filters in FILTERS {
            let drawn = draw(&x, Some(&u), Choice::Sampled(filters)).expect("there is a kernel");
            assert_eq!(drawn.dims(), [rows, 1]);
            let drawn: Vec<i64> = drawn.into_data().iter::<i64>().collect();
            for row in 0..rows {
                let (token, distance) = expected(&logits[row * vocab_size..][..vocab_size], uniforms[row], &filters);
                assert!(drawn[row] == token || distance < 1e-5, "row {row} of {vocab_size}, {filters:?}");
            }
        }
    }
}

/// Each row beside the same row where all are drawn as it is: with filters that another row has, and with fewer of them.
#[test]
fn rows_are_drawn_each_in_its_own_way() {
    for (vocab_size, dtype) in [(1, DType::F32), (300, DType::F32), (1009, DType::F16)] {
        let choices: Vec<Choice> =
            FILTERS.map(Choice::Sampled).into_iter().chain([Choice::Likeliest]).cycle().take(44).collect();
        let rows = choices.len();
        let mut logits = logits(rows, vocab_size);
        logits[3 * vocab_size] = f32::NAN;
        logits[10 * vocab_size] = f32::NAN; // of a row whose likeliest is wanted
        logits[21 * vocab_size + vocab_size / 2] = f32::NEG_INFINITY; // and of another
        let uniforms: Vec<f32> = numbers(rows, 5).iter().map(|x| (x + 1.0) / 2.0).collect();
        let (x, u) = (tensor(&logits, [rows, vocab_size], dtype), tensor(&uniforms, [rows, 1], DType::F32));
        let column = |drawn: Tensor<2, Int>| drawn.into_data().iter::<i64>().collect::<Vec<_>>();
        for of in [0..rows, 0..3, 3..6, 6..8, 8..9, 10..11, 20..22] {
            let ways = Ways::new(choices[of.clone()].iter().copied(), vocab_size);
            let of_rows = |x: &Tensor<2>| x.clone().narrow(0, of.start, of.len());
            let numbers = tensor(&ways.numbers, [of.len(), 4], DType::F32);
            let drawn = draw_each(&of_rows(&x), &of_rows(&u), &numbers, ways.narrowed).expect("there is a kernel");
            for (row, drawn) in of.zip(column(drawn)) {
                let alike = draw(&x, Some(&u), choices[row]).expect("there is a kernel");
                assert_eq!(drawn, column(alike)[row], "row {row} of {vocab_size}, {:?}", choices[row]);
            }
        }
    }
}

/// Filters that reach beyond what weighs anything.
#[test]
fn tokens_that_weigh_nothing_are_not_drawn() {
    let (rows, vocab_size) = (6, 300);
    let logit = |i: usize| if i % 97 == 40 { i as f32 / 300.0 } else { [-200.0, f32::NEG_INFINITY][i % 2] };
    let logits: Vec<f32> = (0..rows * vocab_size).map(logit).collect();
    let uniforms = [0.0, 0.2, 0.5, 0.7, 0.9, 0.999_999_9];
    let (x, u) = (tensor(&logits, [rows, vocab_size], DType::F32), tensor(&uniforms, [rows, 1], DType::F32));
    for filters in [
        Filters { top_k: Some(100), ..PLAIN },
        Filters { top_p: Some(0.999_999_9), ..PLAIN },
        Filters { top_k: Some(299), top_p: Some(0.9999), ..PLAIN },
    ] {
        let drawn = draw(&x, Some(&u), Choice::Sampled(filters)).expect("there is a kernel").into_data();
        for (row, token) in drawn.iter::<i64>().enumerate() {
            let (expected, distance) = expected(&logits[row * vocab_size..][..vocab_size], uniforms[row], &filters);
            assert!(logits[row * vocab_size + token as usize] >= 0.0, "row {row}: {token}, {filters:?}");
            assert!(token == expected || distance < 1e-5, "row {row}: {token} instead of {expected}, {filters:?}");
        }
    }
}

#[test]
fn the_first_of_the_likeliest_is_taken() {
    for vocab_size in [1, 3, 300, 1009] {
        let logits = logits(5, vocab_size);
        let x = tensor(&logits, [5, vocab_size], DType::F32);
        let drawn = draw(&x, None, Choice::Likeliest).expect("there is a kernel").into_data();
        let expected = logits.chunks(vocab_size).map(|row| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter().position(|logit| *logit == max).unwrap() as i64
        });
        assert_eq!(drawn.iter::<i64>().collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }
}

#[test]
fn rows_that_are_not_numbers_are_marked() {
    let infinity = f32::INFINITY;
    let rows = [[1.0, f32::NAN, 2.0], [1.0, infinity, 2.0], [-infinity; 3], [1.0, -infinity, 2.0]].concat();
    let (x, u) = (tensor(&rows, [4, 3], DType::F32), tensor(&[0.9; 4], [4, 1], DType::F32));
    for (choice, uniform) in [(Choice::Likeliest, None), (Choice::Sampled(PLAIN), Some(&u))] {
        let drawn = draw(&x, uniform, choice).expect("there is a kernel").into_data();
        assert_eq!(drawn.iter::<i64>().collect::<Vec<_>>(), [-1, -1, -1, 2], "{choice:?}");
    }
}
