//! Log probabilities of the model's own distribution.

use super::candidates::by_weight;

/// The log probability of a token that was chosen, and the likeliest tokens in its place. They are the model's own:
/// bias, penalties and temperature are not in them.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm of the chosen token's probability.
    pub chosen: f32,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Of `token`, with the `n` likeliest.
    ///
    /// # Panics
    /// If the token is not among the logits.
    pub fn new(logits: &[f32], token: u32, n: usize) -> Self {
        let normalizer = log_sum_exp(logits);
        Self { chosen: (f64::from(logits[token as usize]) - normalizer) as f32, top: top(logits, n, normalizer) }
    }
}

/// The `n` likeliest tokens with their log probabilities, likeliest first.
pub(crate) fn top_logprobs(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    top(logits, n, log_sum_exp(logits))
}

/// The natural logarithm of the sum of exponentials.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - max).exp())).sum();
    f64::from(max) + sum.ln()
}

fn top(logits: &[f32], n: usize, normalizer: f64) -> Vec<(u32, f32)> {
    if n == 0 {
        return Vec::new();
    }
    let mut candidates: Vec<(f32, u32)> = logits.iter().enumerate().map(|(id, logit)| (*logit, id as u32)).collect();
    if n < candidates.len() {
        candidates.select_nth_unstable_by(n - 1, by_weight);
        candidates.truncate(n);
    }
    candidates.sort_unstable_by(by_weight);
    candidates.into_iter().map(|(logit, id)| (id, (f64::from(logit) - normalizer) as f32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logits = [1.0f32, 3.0, -2.0, 3.0, 0.5];
        let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let expected = |id: usize| (f64::from(logits[id]).exp() / total).ln() as f32;
        let got = TokenLogprobs::new(&logits, 4, 3);
        assert!((got.chosen - expected(4)).abs() < 1e-6);
        assert_eq!(got.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 0]);
        assert!(got.top.iter().all(|(id, logprob)| (logprob - expected(*id as usize)).abs() < 1e-6));
    }
}
