//! Loss on held-out samples.

use blockformer_data::{PackedDataset, TokenCorpus};
use burn::tensor::Device;

use crate::{Batch, Trainable};

/// Mean loss over samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy a token, in nats.
    pub loss: f64,
    /// The same by position within the block: the first token of a block, the second, and so on.
    pub loss_by_position: Vec<f64>,
    /// Tokens predicted.
    pub n_tokens: usize,
}

impl Evaluation {
    /// Evaluates `model` (in its validation form) on the first `max_samples` samples of `data`, `batch_size` at a
    /// time. Every sample is taken by itself; its first block is not predicted.
    pub fn run<M: Trainable, C: TokenCorpus>(
        model: &M,
        data: &PackedDataset<C>,
        max_samples: usize,
        batch_size: usize,
        device: &Device,
    ) -> Self {
        let block_length = model.block_length();
        let mut sums = vec![0.0; block_length];
        let mut counts = vec![0usize; block_length];
        let n_samples = data.len().min(max_samples);
        for start in (0..n_samples).step_by(batch_size.max(1)) {
            let samples: Vec<_> =
                (start..(start + batch_size).min(n_samples)).map(|index| data.sample(index)).collect();
            let loss = model.loss(&Batch::new(&samples, block_length, device), 1.0);
            let predicted = samples.iter().flat_map(|sample| sample.mask[block_length..].iter());
            let losses = loss.per_token.into_data();
            for (index, (loss, real)) in losses.iter::<f64>().zip(predicted).enumerate() {
                sums[index % block_length] += loss;
                counts[index % block_length] += usize::from(*real);
            }
        }
        let n_tokens = counts.iter().sum::<usize>();
        Self {
            loss: sums.iter().sum::<f64>() / n_tokens as f64,
            loss_by_position: sums.iter().zip(&counts).map(|(sum, n)| sum / *n as f64).collect(),
            n_tokens,
        }
    }

    /// `exp(loss)`.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}
