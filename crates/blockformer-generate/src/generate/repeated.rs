//! Blocks that a device decodes by repeating what it recorded.

use blockformer_cubecl::Recording;
use burn::tensor::{DType, Device, FloatDType, Int, IntDType, Tensor, TensorData, s};

use crate::device_sampler::{DeviceSampler, Drawn, column};
use crate::{RecordableStep, RecordableSteps};

/// The ids of a block, in float32 as recordings take them, `[batch, block_length]`; the random numbers for the next; and the number of
/// positions held.
type Inputs = (Tensor<2>, (Option<Tensor<2>>, Tensor<1>));

/// A batch whose blocks are decoded so.
pub(super) struct Repeated<'a> {
    recording: Recording<'a, Inputs, Tensor<2>>,
    /// The block before.
    ids: Tensor<2>,
    /// Tokens that nobody has asked for yet.
    ahead: Option<Tensor<2, Int>>,
    held: usize,
    block_length: usize,
}

impl<'a> Repeated<'a> {
    /// Records how the block after `ids`, `[batch, block_length]`, is decoded, with random numbers if tokens are `sampled`.
    pub(super) fn new(
        steps: RecordableSteps<'a>,
        draw: impl Fn(Tensor<2>, Option<Tensor<2>>) -> Drawn + Send + 'static,
        ids: Tensor<2, Int>,
        sampled: bool,
    ) -> Self {
        let ([batch, block_length], device) = (ids.dims(), ids.device());
        let RecordableSteps { held, mut step } = steps;
        let ids = ids.cast(FloatDType::F32);
        let blank = sampled.then(|| Tensor::zeros([batch, block_length], (&device, DType::F32)));
        let inputs = (ids.clone(), (blank, count(held, &device)));
        let recording = Recording::new(inputs, move |(ids, (uniforms, count)): Inputs| {
            let ids = ids.clamp_min(0.0).cast(IntDType::I32); // those that are no tokens stand for any
            let mut next = RecordableStep::Block { ids, count };
            let mut tokens = Vec::with_capacity(block_length);
            for place in 0..block_length {
                let drawn = draw(step(next), uniforms.as_ref().map(|uniforms| column(uniforms, place)));
                tokens.push(drawn.checked);
                next = RecordableStep::Token(drawn.ids);
            }
            Tensor::cat(tokens, 1).cast(FloatDType::F32)
        });
        Self { recording, ids, ahead: None, held, block_length }
    }

    /// The next `n` tokens, `[batch, n]`.
    pub(super) fn take(&mut self, n: usize, sampler: &mut DeviceSampler) -> Tensor<2, Int> {
        let mut tokens: Vec<Tensor<2, Int>> = self.ahead.take().into_iter().collect();
        let mut decoded = tokens.iter().map(|tokens| tokens.dims()[1]).sum::<usize>();
        while decoded < n {
            tokens.push(self.block(sampler));
            decoded += self.block_length;
        }
        let tokens = Tensor::cat(tokens, 1);
        self.ahead = (decoded > n).then(|| tokens.clone().slice(s![.., n..]));
        tokens.slice(s![.., 0..n])
    }

    fn block(&mut self, sampler: &mut DeviceSampler) -> Tensor<2, Int> {
        let uniforms = sampler.uniforms(self.block_length);
        let inputs = (self.ids.clone(), (uniforms, count(self.held, &self.ids.device())));
        self.held += 1;
        self.ids = self.recording.repeat(inputs);
        self.ids.clone().cast(IntDType::I32)
    }

    /// Whether the device repeats what it recorded; otherwise the same is launched each time.
    pub(super) fn is_recorded(&self) -> bool {
        self.recording.is_recorded()
    }
}

fn count(held: usize, device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(vec![held as f32], [1]), (device, DType::F32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sampling;
    use crate::device_sampler::token;

    const VOCAB_SIZE: usize = 11;

    /// The token after `before`, at a place of a block, with so many positions held.
    fn after(before: usize, place: usize, held: usize) -> usize {
        (3 * before + place + 5 * held) % VOCAB_SIZE
    }

    /// A model whose likeliest token is the one after; where that is 7, logits are no numbers.
    fn steps<'a>(held: usize) -> RecordableSteps<'a> {
        let mut at = (0, 0);
        let step = move |step| {
            let (last, next) = match step {
                RecordableStep::Block { ids, count } => {
                    let length = ids.dims()[1];
                    (ids.slice(s![.., length - 1..]), (0, count.into_scalar::<f32>() as usize))
                }
                RecordableStep::Token(ids) => (ids, (at.0 + 1, at.1)),
            };
            at = next;
            let last: Vec<i64> = last.into_data().iter::<i64>().collect();
            let row = |before: &i64| {
                let token = after(*before as usize, at.0, at.1);
                (0..VOCAB_SIZE).map(move |i| if token == 7 { f32::NAN } else { f32::from(i == token) })
            };
            let rows: Vec<f32> = last.iter().flat_map(row).collect();
            Tensor::from_data(TensorData::new(rows.clone(), [rows.len() / VOCAB_SIZE, VOCAB_SIZE]), &Device::flex())
        };
        RecordableSteps { held, step: Box::new(step) }
    }

    #[test]
    fn tokens_are_taken_in_any_number_and_positions_counted() {
        let device = Device::flex();
        let (length, held) = (4, 3);
        for sizes in [vec![4, 4, 4], vec![1, 3, 4, 4], vec![3, 3, 3, 3], vec![12], vec![7, 5]] {
            let samplers = (0..2).map(|row| crate::Sampler::new(Sampling::greedy(), row, &[])).collect();
            let mut sampler = DeviceSampler::new(samplers, 2, VOCAB_SIZE, &device);
            let block = Tensor::<2, Int>::from_ints([[1, 2, 3, 4], [5, 6, 7, 8]], &device);
            let draw = sampler.without_counts().expect("greedy");
            let mut repeated = Repeated::new(steps(held), draw, block, false);
            let taken = sizes.iter().map(|n| repeated.take(*n, &mut sampler)).collect();
            let tokens: Vec<i64> = Tensor::cat(taken, 1).into_data().iter::<i64>().collect();
            for (row, mut before) in [(0, 4), (1, 8)] {
                for i in 0..12 {
                    let expected = after(before, i % length, held + i / length);
                    let got = token(tokens[row * 12 + i]);
                    // One goes on behind what is no number, with any token.
                    before = if expected == 7 { 0 } else { expected };
                    assert_eq!(
                        got.ok(),
                        (expected != 7).then_some(expected as u32),
                        "{sizes:?}, token {i} of row {row}"
                    );
                }
            }
        }
    }

    #[test]
    fn random_numbers_are_those_of_the_places() {
        let device = Device::flex();
        let sampling = Sampling { temperature: 1.0, seed: 5, ..Sampling::default() };
        let samplers = |n| (0..n).map(|row| crate::Sampler::new(sampling.clone(), row, &[])).collect();
        let flat = |step| match step {
            RecordableStep::Block { ids, .. } | RecordableStep::Token(ids) => {
                Tensor::<2>::zeros([ids.dims()[0], VOCAB_SIZE], &Device::flex())
            }
        };
        let mut sampler = DeviceSampler::new(samplers(2), 2, VOCAB_SIZE, &device);
        let draw = sampler.without_counts().expect("no penalties");
        let block = Tensor::<2, Int>::zeros([2, 3], &device);
        let steps = RecordableSteps { held: 1, step: Box::new(flat) };
        let mut repeated = Repeated::new(steps, draw, block, true);
        let tokens: Vec<i64> = repeated.take(6, &mut sampler).into_data().iter::<i64>().collect();
        let mut sampler = DeviceSampler::new(samplers(2), 2, VOCAB_SIZE, &device);
        let uniforms: Vec<f32> = sampler.uniforms(6).expect("sampled").into_data().iter::<f32>().collect();
        // All tokens are alike.
        let expected: Vec<i64> = uniforms.iter().map(|u| (u * VOCAB_SIZE as f32) as i64).collect();
        assert_eq!(tokens, expected);
    }
}
