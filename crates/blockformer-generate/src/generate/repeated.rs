//! Blocks that a device decodes by repeating what it recorded.

use blockformer_cubecl::Recording;
use burn::tensor::{DType, Device, FloatDType, Int, IntDType, Tensor, TensorData, s};

use super::rounds::column;
use crate::device_sampler::{DeviceSampler, Drawn};
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
    device: Device,
}

impl<'a> Repeated<'a> {
    /// Records how the block after `ids`, `[batch, block_length]`, is decoded.
    pub(super) fn new(
        steps: RecordableSteps<'a>,
        draw: impl Fn(Tensor<2>, Option<Tensor<2>>) -> Drawn + 'static,
        ids: Tensor<2, Int>,
        sampler: &DeviceSampler,
        device: &Device,
    ) -> Self {
        let [batch, block_length] = ids.dims();
        let RecordableSteps { held, mut step } = steps;
        let ids = ids.cast(FloatDType::F32);
        let blank = (!sampler.is_greedy()).then(|| Tensor::zeros([batch, block_length], (device, DType::F32)));
        let inputs = (ids.clone(), (blank, count(held, device)));
        let recording = Recording::new(device, inputs, move |(ids, (uniforms, count)): Inputs| {
            let ids = ids.clamp_min(0.0).cast(IntDType::I32); // those that are no tokens stand for any
            let mut next = RecordableStep::Block { ids, count };
            let mut tokens = Vec::with_capacity(block_length);
            for place in 0..block_length {
                let drawn = draw(step(next), column(uniforms.as_ref(), place));
                tokens.push(drawn.checked);
                next = RecordableStep::Token(drawn.ids);
            }
            Tensor::cat(tokens, 1).cast(FloatDType::F32)
        });
        Self { recording, ids, ahead: None, held, block_length, device: device.clone() }
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
        let inputs = (self.ids.clone(), (uniforms, count(self.held, &self.device)));
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
