//! From logits to tokens.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::GenerateError;

/// How tokens are drawn. The default is greedy.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token (greedy), 1 draws from the model's distribution.
    pub temperature: f64,
    /// Only the `k` likeliest tokens are drawn from.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens whose probabilities add up to at least this are drawn from (nucleus sampling,
    /// Holtzman et al. 2020); applied after `top_k`.
    pub top_p: Option<f64>,
    /// The same seed, prompt and options give the same tokens.
    pub seed: u64,
}

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self::default()
    }

    /// Checks the options.
    ///
    /// # Errors
    /// [`GenerateError::Sampling`] naming the option outside its range.
    pub fn validate(&self) -> Result<(), GenerateError> {
        let refuse = |option, value, expected| Err(GenerateError::Sampling { option, value, expected });
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refuse("temperature", self.temperature, "0 (greedy) or a positive number");
        }
        if self.top_k == Some(0) {
            return refuse("top_k", 0.0, "at least 1");
        }
        match self.top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => refuse("top_p", p, "a number above 0 and up to 1"),
            _ => Ok(()),
        }
    }
}

/// Draws the tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// The sampler of sequence `index` of a batch; each has random numbers of its own.
    ///
    /// # Errors
    /// As [`Sampling::validate`].
    pub fn new(sampling: Sampling, index: usize) -> Result<Self, GenerateError> {
        sampling.validate()?;
        let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        rng.set_stream(index as u64);
        Ok(Self { sampling, rng, candidates: Vec::new() })
    }

    /// Draws a token. Among equal logits the smallest id is the likeliest.
    ///
    /// # Errors
    /// [`GenerateError::NotANumber`] if a logit is not a number or infinite, or none is finite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, GenerateError> {
        let best = argmax(logits)?;
        if self.sampling.temperature == 0.0 || self.sampling.top_k == Some(1) {
            return Ok(best);
        }
        let max = logits[best as usize];
        let inverse = 1.0 / self.sampling.temperature as f32;
        let weight = |(id, logit): (usize, &f32)| (((logit - max) * inverse).exp(), id as u32);
        self.candidates.clear();
        self.candidates.extend(logits.iter().enumerate().map(weight));
        if let Some(k) = self.sampling.top_k {
            keep_likeliest(&mut self.candidates, k);
        }
        if let Some(p) = self.sampling.top_p.filter(|p| *p < 1.0) {
            keep_nucleus(&mut self.candidates, p);
        }
        let total: f64 = self.candidates.iter().map(|candidate| f64::from(candidate.0)).sum();
        let mut left = self.rng.random::<f64>() * total;
        for (weight, id) in &self.candidates {
            left -= f64::from(*weight);
            if left < 0.0 {
                return Ok(*id);
            }
        }
        Ok(best) // rounding left a sliver
    }
}

fn argmax(logits: &[f32]) -> Result<u32, GenerateError> {
    let mut best = None;
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(GenerateError::NotANumber);
        }
        if logit.is_finite() && best.is_none_or(|(_, top)| logit > top) {
            best = Some((id as u32, logit));
        }
    }
    best.map(|(id, _)| id).ok_or(GenerateError::NotANumber)
}

/// Likeliest first; among equals, smallest id first, so that ties do not depend on the order of selection.
fn by_weight(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Keeps the `k` likeliest, in any order, without sorting the rest.
fn keep_likeliest(candidates: &mut Vec<(f32, u32)>, k: usize) {
    if k < candidates.len() {
        candidates.select_nth_unstable_by(k - 1, by_weight);
        candidates.truncate(k);
    }
}

/// Keeps the likeliest whose weights add up to the share `p` of all, sorting no more than it needs.
fn keep_nucleus(candidates: &mut Vec<(f32, u32)>, p: f64) {
    let total: f64 = candidates.iter().map(|candidate| f64::from(candidate.0)).sum();
    let mut sorted = 0; // so many at the front are the likeliest, in order
    let mut mass = 0.0;
    while sorted < candidates.len() {
        let end = (sorted.max(16) * 2).min(candidates.len());
        if end < candidates.len() {
            candidates[sorted..].select_nth_unstable_by(end - sorted - 1, by_weight);
        }
        candidates[sorted..end].sort_unstable_by(by_weight);
        for index in sorted..end {
            mass += f64::from(candidates[index].0);
            if mass >= p * total {
                candidates.truncate(index + 1);
                return;
            }
        }
        sorted = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each token is drawn in `n` tries.
    fn frequencies(sampling: Sampling, logits: &[f32], n: usize) -> Vec<f64> {
        let mut sampler = Sampler::new(sampling, 0).unwrap();
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..n {
            counts[sampler.sample(logits).unwrap() as usize] += 1.0 / n as f64;
        }
        counts
    }

    const LN_2: f32 = std::f32::consts::LN_2;
    const HALF: [f32; 4] = [0.0, -LN_2, -2.0 * LN_2, -2.0 * LN_2]; // 4 : 2 : 1 : 1

    #[test]
    fn tokens_are_drawn_as_often_as_their_probability_says() {
        let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        for (got, expected) in
            frequencies(sampling, &HALF, 40_000).iter().zip([4.0 / 8.0, 2.0 / 8.0, 1.0 / 8.0, 1.0 / 8.0])
        {
            assert!((got - expected).abs() < 0.01, "{got} instead of {expected}");
        }
        let sampling = Sampling { temperature: 0.5, ..Sampling::default() }; // squares: 16, 4, 1, 1 of 22
        for (got, expected) in frequencies(sampling, &HALF, 40_000).iter().zip([16.0, 4.0, 1.0, 1.0]) {
            assert!((got - expected / 22.0).abs() < 0.01, "{got} instead of {expected} / 22");
        }
    }

    #[test]
    fn top_k_and_top_p_leave_out_the_unlikely() {
        let top_k = Sampling { temperature: 1.0, top_k: Some(2), ..Sampling::default() };
        let got = frequencies(top_k, &HALF, 40_000);
        assert!((got[0] - 2.0 / 3.0).abs() < 0.01 && got[2] + got[3] == 0.0, "{got:?}");
        let top_p = Sampling { temperature: 1.0, top_p: Some(0.74), ..Sampling::default() };
        let got = frequencies(top_p, &HALF, 40_000);
        assert!((got[0] - 2.0 / 3.0).abs() < 0.01 && got[2] + got[3] == 0.0, "{got:?}");
        let top_p = Sampling { temperature: 1.0, top_p: Some(0.76), ..Sampling::default() };
        let got = frequencies(top_p, &HALF, 40_000); // ties: the smaller id comes in first
        assert!(got[2] > 0.1 && got[3] == 0.0, "{got:?}");
    }

    #[test]
    fn the_nucleus_of_many_tokens_is_that_of_a_full_sort() {
        let logits: Vec<f32> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) % 1000) as f32 / 100.0).collect();
        let weights: Vec<(f32, u32)> = logits.iter().enumerate().map(|(id, logit)| (logit.exp(), id as u32)).collect();
        for p in [0.01, 0.3, 0.9, 1.0] {
            let mut sorted = weights.clone();
            sorted.sort_by(by_weight);
            let total: f64 = sorted.iter().map(|candidate| f64::from(candidate.0)).sum();
            let mut mass = 0.0;
            let expected = 1 + sorted
                .iter()
                .take_while(|c| {
                    mass += f64::from(c.0);
                    mass < p * total
                })
                .count();
            let mut kept = weights.clone();
            keep_nucleus(&mut kept, p);
            assert!(kept.len().abs_diff(expected.min(5000)) <= 1, "p {p}: {} instead of {expected}", kept.len());
            assert_eq!(kept, sorted[..kept.len()]);
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        let mut sampler = Sampler::new(Sampling::greedy(), 0).unwrap();
        assert_eq!(sampler.sample(&[0.0, 2.0, 1.0, 2.0]), Ok(1));
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY, -3.0]), Ok(1));
    }

    #[test]
    fn seeds_and_rows_have_random_numbers_of_their_own() {
        let draw = |seed, index| {
            let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
            let mut sampler = Sampler::new(sampling, index).unwrap();
            (0..20).map(|_| sampler.sample(&[0.0; 50]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(2, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
    }

    #[test]
    fn senseless_options_and_logits_are_refused() {
        let refused = |sampling: Sampling| Sampler::new(sampling, 0).unwrap_err().to_string();
        assert!(refused(Sampling { temperature: -1.0, ..Sampling::default() }).contains("temperature is -1"));
        assert!(refused(Sampling { temperature: f64::NAN, ..Sampling::default() }).contains("temperature"));
        assert!(refused(Sampling { top_k: Some(0), ..Sampling::default() }).contains("top_k"));
        assert!(refused(Sampling { top_p: Some(1.5), ..Sampling::default() }).contains("top_p"));
        let mut sampler = Sampler::new(Sampling::greedy(), 0).unwrap();
        assert_eq!(sampler.sample(&[1.0, f32::NAN]), Err(GenerateError::NotANumber));
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY]), Err(GenerateError::NotANumber));
        assert_eq!(sampler.sample(&[1.0, f32::INFINITY]), Err(GenerateError::NotANumber));
    }
}
