//! Bias and penalties.

use burn::tensor::{Bool, DType, Device, FloatDType, Int, Tensor, TensorData};

use crate::Sampling;

/// What is done to logits before a token is drawn, and the counts that it depends on.
#[derive(Debug)]
pub(super) struct Adjustments {
    /// Added to the logits, `[1, vocab_size]`.
    bias: Option<Tensor<2>>,
    /// Whether a token stands in the prompt or was generated, `[batch, vocab_size]`.
    seen: Tensor<2, Bool>,
    /// How often it was generated, `[batch, vocab_size]`.
    generated: Tensor<2>,
    repetition_penalty: f32,
    presence_penalty: f64,
    frequency_penalty: f64,
}

impl Adjustments {
    /// For prompts; rows behind them have none.
    pub(super) fn new(sampling: &Sampling, prompts: &[&[u32]], shape: [usize; 2], device: &Device) -> Self {
        let [_, vocab_size] = shape;
        let mut seen = vec![false; shape[0] * vocab_size];
        for (row, prompt) in seen.chunks_mut(vocab_size).zip(prompts) {
            prompt.iter().for_each(|id| row[*id as usize] = true);
        }
        let bias = (!sampling.logit_bias.is_empty()).then(|| {
            let mut bias = vec![0.0f32; vocab_size];
            sampling.logit_bias.iter().for_each(|(id, value)| bias[*id as usize] = *value);
            Tensor::from_data(TensorData::new(bias, [1, vocab_size]), (device, DType::F32))
        });
        Self {
            bias,
            seen: Tensor::from_data(TensorData::new(seen, shape), device),
            generated: Tensor::zeros(shape, (device, DType::F32)),
            repetition_penalty: sampling.repetition_penalty as f32,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
        }
    }

    /// # Shapes
    /// - `logits`: `[batch, vocab_size]`, returns the same
    pub(super) fn apply(&self, logits: Tensor<2>) -> Tensor<2> {
        let mut logits = match &self.bias {
            Some(bias) => logits + bias.clone(),
            None => logits,
        };
        if self.repetition_penalty != 1.0 {
            let negative = logits.clone().lower_equal_elem(0.0);
            let penalised = logits.clone().div_scalar(self.repetition_penalty);
            let penalised = penalised.mask_where(negative, logits.clone().mul_scalar(self.repetition_penalty));
            logits = logits.mask_where(self.seen.clone(), penalised);
        }
        if self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 {
            let presence = self.generated.clone().clamp_max(1.0).mul_scalar(self.presence_penalty);
            logits = logits - (presence + self.generated.clone().mul_scalar(self.frequency_penalty));
        }
        logits
    }

    /// Takes in a token of every sequence.
    ///
    /// # Shapes
    /// - `ids`: `[batch, 1]`
    pub(super) fn count(&mut self, ids: Tensor<2, Int>) {
        let shape = self.generated.dims();
        let places = Tensor::<1, Int>::arange(0..shape[1] as i64, &ids.device()).reshape([1, shape[1]]);
        let now = places.expand(shape).equal(ids.expand(shape));
        self.seen = self.seen.clone().bool_or(now.clone());
        self.generated = self.generated.clone() + now.float().cast(FloatDType::F32);
    }
}
