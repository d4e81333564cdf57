//! Against the host's sampler, which adds in float64 and sorts, and against exact probabilities.

use super::*;

/// Logits that look like a model's: most tokens are unlikely, some are equal.
fn logits(rows: usize, vocab_size: usize) -> Vec<f32> {
    let value = |i: usize| {
        let noise = ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1u64 << 24) as f32;
        (noise * 24.0).round() * 0.25 - (i % vocab_size) as f32 * 0.01
    };
    (0..rows * vocab_size).map(value).collect()
}

fn tensor(values: &[f32], rows: usize) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [rows, values.len() / rows]), &Device::flex())
}

fn samplers(sampling: &Sampling, rows: usize) -> Vec<Sampler> {
    (0..rows).map(|row| Sampler::new(sampling.clone(), row, &[1, 2, row as u32 % 5])).collect()
}

/// Draws `n` tokens of each row on the device, from logits that change with every token; dead rows are at the end.
fn on_device(
    sampling: &Sampling,
    values: &[f32],
    [rows, batch]: [usize; 2],
    n: usize,
) -> Vec<Vec<Result<u32, GenerateError>>> {
    let vocab_size = values.len() / rows;
    let mut sampler = DeviceSampler::new(samplers(sampling, rows), batch, vocab_size, &Device::flex());
    let uniforms = sampler.uniforms(n);
    let logits = tensor(values, rows);
    let dead = Tensor::zeros([batch - rows, vocab_size], &Device::flex());
    let mut drawn = vec![Vec::new(); rows];
    for place in 0..n {
        let logits = Tensor::cat(vec![turned(logits.clone(), place), dead.clone()], 0);
        let uniform = uniforms.as_ref().map(|uniforms| uniforms.clone().narrow(1, place, 1));
        let checked: Vec<i64> = sampler.draw(logits, uniform).checked.into_data().iter::<i64>().collect();
        drawn.iter_mut().zip(checked).for_each(|(row, id)| row.push(token(id)));
    }
    drawn
}

/// The same on the host.
fn on_host(sampling: &Sampling, values: &[f32], rows: usize, n: usize) -> Vec<Vec<Result<u32, GenerateError>>> {
    let logits = tensor(values, rows);
    let vocab_size = values.len() / rows;
    let mut samplers = samplers(sampling, rows);
    let mut drawn = vec![Vec::new(); rows];
    for place in 0..n {
        let values: Vec<f32> = turned(logits.clone(), place).into_data().iter::<f32>().collect();
        for (row, sampler) in samplers.iter_mut().enumerate() {
            drawn[row].push(sampler.sample(&values[row * vocab_size..(row + 1) * vocab_size]));
        }
    }
    drawn
}

/// The logits `place` ids further on.
fn turned(logits: Tensor<2>, place: usize) -> Tensor<2> {
    let n = logits.dims()[1];
    let twice = Tensor::cat(vec![logits.clone(), logits], 1);
    twice.narrow(1, place % n, n)
}

fn at_one() -> Sampling {
    Sampling { temperature: 1.0, seed: 3, ..Sampling::default() }
}

fn options() -> Vec<Sampling> {
    let bias = vec![(7, 2.5), (0, f32::NEG_INFINITY), (90, -1.0)];
    vec![
        Sampling::greedy(),
        at_one(),
        Sampling { temperature: 0.6, seed: 4, ..Sampling::default() },
        Sampling { top_k: Some(1), ..at_one() },
        Sampling { top_k: Some(5), ..at_one() },
        Sampling { top_k: Some(1_000_000), ..at_one() },
        Sampling { top_p: Some(0.8), ..at_one() },
        Sampling { top_p: Some(0.05), temperature: 2.0, ..at_one() },
        Sampling { min_p: Some(0.1), ..at_one() },
        Sampling { top_k: Some(40), top_p: Some(0.9), min_p: Some(0.05), temperature: 1.3, ..at_one() },
        Sampling { repetition_penalty: 1.7, ..Sampling::greedy() },
        Sampling { repetition_penalty: 1.3, presence_penalty: 0.4, frequency_penalty: 0.2, ..at_one() },
        Sampling { frequency_penalty: -0.3, logit_bias: bias, top_p: Some(0.9), ..at_one() },
    ]
}

#[test]
fn tokens_are_those_of_the_host() {
    for vocab_size in [97, 1009] {
        let values = logits(6, vocab_size);
        for sampling in options() {
            let expected = on_host(&sampling, &values, 6, 16);
            assert_eq!(on_device(&sampling, &values, [6, 8], 16), expected, "{vocab_size} tokens, {sampling:?}");
        }
    }
}

#[test]
fn tokens_are_drawn_as_often_as_their_probability_says() {
    let (rows, n, vocab_size) = (400, 100, 30);
    let row: Vec<f32> = (0..vocab_size).map(|i| ((i * 7) % 11) as f32 * 0.4).collect();
    let weights: Vec<f64> = row.iter().map(|logit| (f64::from(*logit) / 1.5).exp()).collect();
    let total: f64 = weights.iter().sum();
    let sampling = Sampling { temperature: 1.5, seed: 11, ..Sampling::default() };
    let mut sampler = DeviceSampler::new(samplers(&sampling, rows), rows, vocab_size, &Device::flex());
    let uniforms = sampler.uniforms(n).unwrap();
    let logits = tensor(&row.repeat(rows), rows);
    let mut counts = vec![0.0f64; vocab_size];
    for place in 0..n {
        let drawn = sampler.draw(logits.clone(), Some(uniforms.clone().narrow(1, place, 1)));
        drawn.ids.into_data().iter::<i64>().for_each(|id| counts[id as usize] += 1.0);
    }
    let draws = (rows * n) as f64;
    let expected = weights.iter().map(|weight| weight / total * draws);
    let chi_square: f64 = counts.iter().zip(expected).map(|(got, expected)| (got - expected).powi(2) / expected).sum();
    // 29 degrees of freedom: one in ten thousand is above 63.
    assert!(chi_square < 63.0, "{chi_square}: {counts:?}");
}

#[test]
fn a_row_has_its_tokens_whatever_stands_beside_it() {
    let values = logits(6, 500);
    let sampling = Sampling { top_p: Some(0.9), ..at_one() };
    let together = on_device(&sampling, &values, [6, 6], 12);
    assert_eq!(on_device(&sampling, &values[..500], [1, 1], 12), together[..1]);
    assert_eq!(on_device(&sampling, &values[..1000], [2, 7], 12), together[..2]);
}

#[test]
fn logits_that_are_not_numbers_are_refused() {
    for sampling in [Sampling::greedy(), at_one(), Sampling { repetition_penalty: 1.2, top_k: Some(2), ..at_one() }] {
        for bad in [f32::NAN, f32::INFINITY] {
            let values = [[1.0, bad, 0.5], [1.0, 2.0, f32::NEG_INFINITY], [f32::NEG_INFINITY; 3]].concat();
            let drawn = on_device(&sampling, &values, [3, 4], 1);
            assert_eq!(drawn[0], [Err(GenerateError::NotANumber)], "{sampling:?}");
            assert!(drawn[1][0].is_ok(), "{sampling:?}");
            assert_eq!(drawn[2], [Err(GenerateError::NotANumber)], "{sampling:?}");
        }
    }
}

#[test]
fn a_bias_that_leaves_nothing_is_refused() {
    let logit_bias = (0..3).map(|id| (id, f32::NEG_INFINITY)).collect();
    for temperature in [0.0, 1.0] {
        let sampling = Sampling { logit_bias: Clone::clone(&logit_bias), temperature, ..Sampling::default() };
        let drawn = on_device(&sampling, &[1.0, 2.0, 3.0, 1.0, f32::NAN, 3.0], [2, 2], 1);
        assert_eq!(drawn, [[Err(GenerateError::NothingAllowed)], [Err(GenerateError::NotANumber)]]);
    }
}
