//! Tokens drawn where the logits are, with plain tensor operations.
//!
//! [`DeviceSampler`] does what [`Sampler`] does, for all sequences of a batch at once: the same adjustments and filters
//! in the same order, and the same random numbers. A token is drawn by inverting the cumulative distribution in the
//! order of ids, with `u` uniform in `[0, 1)`:
//!
//! ```text
//! token = the first i with  w₀ + … + wᵢ > u · (w₀ + … + wₙ₋₁)
//! ```
//!
//! [`Sampler`] adds in float64 and this in float32, so that the tokens are the same unless `u` lies within the rounding
//! (about 1e-6 of the sum) of a bound between two tokens. Nothing is sorted and nothing read back. Where there is a kernel,
//! one launch does it all.

mod adjust;
mod draw;
mod narrow;
#[cfg(test)]
mod tests;

use blockformer_cubecl::{Choice, Filters};
use burn::tensor::{Bool, DType, Device, FloatDType, Int, Tensor, TensorData, s};

use crate::{GenerateError, Sampler, Sampling};
use adjust::Adjustments;
use draw::draw;
use narrow::{keep_above, keep_likeliest, keep_nucleus};

/// Instead of a token, where the logits are not numbers.
const NOT_A_NUMBER: i64 = -1;
/// Instead of a token, where bias leaves nothing.
const NOTHING_ALLOWED: i64 = -2;

/// The tokens of one place of all sequences.
pub(crate) struct Drawn {
    /// Ids to go on with, `[batch, 1]`; where there is no token, any.
    pub(crate) ids: Tensor<2, Int>,
    /// The same with a negative number where there is no token; [`token`] says why.
    pub(crate) checked: Tensor<2, Int>,
}

/// What a number read back stands for.
///
/// # Errors
/// [`GenerateError::NotANumber`] and [`GenerateError::NothingAllowed`], as [`Sampler::sample`].
pub(crate) fn token(checked: i64) -> Result<u32, GenerateError> {
    match checked {
        NOT_A_NUMBER => Err(GenerateError::NotANumber),
        NOTHING_ALLOWED => Err(GenerateError::NothingAllowed),
        id => Ok(id as u32),
    }
}

/// Draws the tokens of a batch of sequences on the device.
#[derive(Debug)]
pub(crate) struct DeviceSampler {
    sampling: Sampling,
    /// Random numbers, one sampler a sequence.
    samplers: Vec<Sampler>,
    batch: usize,
    adjustments: Option<Adjustments>,
    device: Device,
}

impl DeviceSampler {
    /// For sequences of `samplers`, which share their options (other than [`Sampling::typical_p`]). A batch of more rows
    /// has rows at its end that belong to no sequence.
    pub(crate) fn new(samplers: Vec<Sampler>, batch: usize, vocab_size: usize, device: &Device) -> Self {
        let sampling = samplers[0].sampling().clone();
        let prompts: Vec<&[u32]> = samplers.iter().map(Sampler::tokens).collect();
        let adjustments =
            (!sampling.keeps_logits()).then(|| Adjustments::new(&sampling, &prompts, [batch, vocab_size], device));
        Self { sampling, samplers, batch, adjustments, device: device.clone() }
    }

    /// Whether the tokens are the likeliest ones.
    pub(crate) fn is_greedy(&self) -> bool {
        self.sampling.is_greedy()
    }

    /// The random numbers of the next `n` tokens, `[batch, n]`; none if the tokens are the likeliest ones.
    pub(crate) fn uniforms(&mut self, n: usize) -> Option<Tensor<2>> {
        if self.sampling.is_greedy() {
            return None;
        }
        let mut numbers: Vec<f32> = Vec::with_capacity(self.batch * n);
        for sampler in &mut self.samplers {
            numbers.extend(uniforms_of(sampler, n));
        }
        numbers.resize(self.batch * n, 0.0);
        Some(Tensor::from_data(TensorData::new(numbers, [self.batch, n]), (&self.device, DType::F32)))
    }

    /// Draws a token of every sequence.
    ///
    /// # Shapes
    /// - `logits`: `[batch, vocab_size]`
    /// - `uniform`: `[batch, 1]`, a column of what [`uniforms`](Self::uniforms) gives
    pub(crate) fn draw(&mut self, logits: Tensor<2>, uniform: Option<Tensor<2>>) -> Drawn {
        let (ids, checked) = match &self.adjustments {
            None => choose(&self.sampling, logits, uniform),
            Some(adjustments) => {
                let logits = logits.cast(FloatDType::F32);
                let (ids, checked) = choose(&self.sampling, adjustments.apply(logits.clone()), uniform);
                let checked = checked.clone().mask_fill(checked.lower_elem(0), NOTHING_ALLOWED);
                let (_, sound) = weights(logits, 1.0);
                (ids, checked.mask_fill(sound.bool_not(), NOT_A_NUMBER))
            }
        };
        if let Some(adjustments) = &mut self.adjustments {
            adjustments.count(ids.clone());
        }
        Drawn { ids, checked }
    }

    /// What [`draw`](Self::draw) does, if it does the same for every token: without counts of those before.
    pub(crate) fn without_counts(&self) -> Option<impl Fn(Tensor<2>, Option<Tensor<2>>) -> Drawn + Send + 'static> {
        let sampling = self.adjustments.is_none().then(|| self.sampling.clone())?;
        Some(move |logits: Tensor<2>, uniform| {
            let (ids, checked) = choose(&sampling, logits, uniform);
            Drawn { ids, checked }
        })
    }
}

/// The random numbers of a sequence's next `n` tokens, from 0 to less than 1.
pub(crate) fn uniforms_of(sampler: &mut Sampler, n: usize) -> impl Iterator<Item = f32> {
    let below_one = 1.0 - f32::EPSILON / 2.0;
    (0..n).map(move |_| (sampler.uniform() as f32).min(below_one))
}

/// The numbers of one place, of those of several.
pub(crate) fn column(numbers: &Tensor<2>, place: usize) -> Tensor<2> {
    numbers.clone().slice(s![.., place..place + 1])
}

/// A token of every sequence, and the same with [`NOT_A_NUMBER`] where there is none, `[batch, 1]` both.
pub(crate) fn choose(
    sampling: &Sampling,
    logits: Tensor<2>,
    uniform: Option<Tensor<2>>,
) -> (Tensor<2, Int>, Tensor<2, Int>) {
    if let Some(drawn) = blockformer_cubecl::draw(&logits, uniform.as_ref(), choice(sampling)) {
        return (drawn.clone().clamp_min(0), drawn);
    }
    let (ids, sound) = choose_plainly(sampling, logits.cast(FloatDType::F32), uniform);
    let checked = ids.clone().mask_fill(sound.bool_not(), NOT_A_NUMBER);
    (ids, checked)
}

/// A token of every sequence, and whether there is one, `[batch, 1]` both.
fn choose_plainly(
    sampling: &Sampling,
    logits: Tensor<2>,
    uniform: Option<Tensor<2>>,
) -> (Tensor<2, Int>, Tensor<2, Bool>) {
    let Some(uniform) = uniform else {
        let likeliest = logits.clone().argmax(1);
        return (likeliest, weights(logits, 1.0).1);
    };
    let (mut weights, sound) = weights(logits, sampling.inverse_temperature());
    let &Sampling { top_k, top_p, min_p, .. } = sampling;
    let vocab_size = weights.dims()[1];
    if let Some(k) = top_k.filter(|k| *k < vocab_size) {
        weights = keep_likeliest(weights, k);
    }
    if let Some(p) = top_p.filter(|p| *p < 1.0) {
        weights = keep_nucleus(weights, p);
    }
    if let Some(p) = min_p.filter(|p| *p > 0.0) {
        weights = keep_above(weights, p);
    }
    (draw(weights, uniform), sound)
}

/// The same for a kernel.
pub(crate) fn choice(sampling: &Sampling) -> Choice {
    if sampling.is_greedy() {
        return Choice::Likeliest;
    }
    let &Sampling { temperature, top_k, top_p, min_p, .. } = sampling;
    Choice::Sampled(Filters { temperature, top_k, top_p, min_p })
}

/// The weight of each token, 1 for the likeliest, `[batch, vocab_size]`; and whether all logits of a row are numbers
/// and one at least is finite, `[batch, 1]`.
fn weights(logits: Tensor<2>, inverse_temperature: f32) -> (Tensor<2>, Tensor<2, Bool>) {
    let max = logits.clone().max_dim(1);
    let weights = (logits - max).mul_scalar(inverse_temperature).exp();
    // Infinity less infinity is not a number, and neither is any sum with one that is not.
    let sound = weights.clone().sum_dim(1).is_nan().bool_not();
    (weights, sound)
}
