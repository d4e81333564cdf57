//! Loss on held-out samples.

use blockformer_data::{PackedDataset, PackingConfig, Sample, TokenCorpus};
use blockformer_model::BlockLayout;
use burn::tensor::Device;

use crate::{Batch, TrainError, Trainable};

/// Mean loss over samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy a token, in nats.
    pub loss: f64,
    /// The same by position within the block: the first token of a block, the second, and so on. Not a number for a
    /// position that no predicted token has.
    pub loss_by_position: Vec<f64>,
    /// Tokens predicted.
    pub n_tokens: usize,
}

impl Evaluation {
    /// Evaluates `model` (in its validation form) on the first `max_samples` samples of `data`, `batch_size` at a
    /// time. Every sample is taken by itself; its first block is not predicted unless the model has a start of text.
    ///
    /// # Errors
    /// [`TrainError::OutOfVocabulary`] if a sample holds an id the model does not know, [`TrainError::SampleLength`]
    /// if samples are longer than its context, [`TrainError::BlockLength`] if they are cut into other
    /// blocks, [`TrainError::Setting`] if there is nothing to predict.
    pub fn run<M: Trainable, C: TokenCorpus>(
        model: &M,
        data: &PackedDataset<C>,
        max_samples: usize,
        batch_size: usize,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let layout = model.layout();
        check_fit(data.config(), &layout)?;
        let (block_length, first) = (layout.block_length, layout.first_predicted_block());
        let batch_size = batch_size.max(1);
        let mut sums = vec![0.0; block_length];
        let mut counts = vec![0usize; block_length];
        let n_samples = data.len().min(max_samples);
        for start in (0..n_samples).step_by(batch_size) {
            let samples: Vec<_> =
                (start..(start + batch_size).min(n_samples)).map(|index| data.sample(index)).collect();
            check_vocabulary(&samples, layout.vocab_size)?;
            let loss = model.loss(&Batch::new(&samples, &layout, device), 1.0);
            let predicted = samples.iter().flat_map(|sample| sample.counted().skip(first * block_length));
            let losses = loss.per_token.into_data();
            for (index, (loss, real)) in losses.iter::<f64>().zip(predicted).enumerate() {
                sums[index % block_length] += loss;
                counts[index % block_length] += usize::from(real);
            }
        }
        let n_tokens = counts.iter().sum::<usize>();
        if n_tokens == 0 {
            let expected = "enough for at least one predicted token";
            return Err(TrainError::Setting { field: "evaluation samples", value: n_samples as f64, expected });
        }
        Ok(Self {
            loss: sums.iter().sum::<f64>() / n_tokens as f64,
            loss_by_position: sums.iter().zip(&counts).map(|(sum, n)| sum / *n as f64).collect(),
            n_tokens,
        })
    }

    /// `exp(loss)`.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// Checks that samples packed so suit a model of this layout.
pub(crate) fn check_fit(packing: &PackingConfig, layout: &BlockLayout) -> Result<(), TrainError> {
    let (data, model) = (packing.block_length, layout.block_length);
    if data != model {
        return Err(TrainError::BlockLength { data, model });
    }
    let (sample, context) = (packing.sample_len(), layout.max_length);
    if sample > context {
        return Err(TrainError::SampleLength { sample, context });
    }
    if sample <= model * layout.first_predicted_block() {
        let expected = "at least two blocks";
        return Err(TrainError::Setting { field: "max_length", value: sample as f64, expected });
    }
    Ok(())
}

/// Checks that samples hold no ids beyond the vocabulary.
pub(crate) fn check_vocabulary(samples: &[Sample], vocab_size: usize) -> Result<(), TrainError> {
    match samples.iter().flat_map(|sample| &sample.ids).find(|&&id| id as usize >= vocab_size) {
        Some(&id) => Err(TrainError::OutOfVocabulary { id, vocab_size }),
        None => Ok(()),
    }
}
