//! Samples as tensors.

use blockformer_data::Sample;
use blockformer_model::BlockLayout;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

/// Samples of equal length, cut into blocks.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Token ids, `[batch, n_blocks, block_length]`.
    pub ids: Tensor<3, Int>,
    /// False on padding, `[batch, n_blocks, block_length]`; `None` where there is none.
    pub mask: Option<Tensor<3, Bool>>,
    /// False where a prediction does not count, `[batch, n_blocks, block_length]`: on padding and on tokens of prompts;
    /// `None` where all content counts.
    pub counted: Option<Tensor<3, Bool>>,
    /// The first block of each sample that is predicted, 0 or 1.
    pub first_predicted_block: usize,
    /// Predictions that count, of all tokens from that block on.
    pub n_predicted: usize,
}

impl Batch {
    /// A batch of samples for a model of this layout.
    ///
    /// # Panics
    /// If there are no samples, or they are not of one length that is a multiple of the layout's `block_length`.
    pub fn new(samples: &[Sample], layout: &BlockLayout, device: &Device) -> Self {
        let (block_length, first) = (layout.block_length, layout.first_predicted_block());
        let length = samples.first().map_or(0, |sample| sample.ids.len());
        assert!(length > 0 && length.is_multiple_of(block_length), "samples of {length} in blocks of {block_length}");
        assert!(samples.iter().all(|sample| sample.ids.len() == length), "samples of different lengths");
        let shape = [samples.len(), length / block_length, block_length];
        let ids: Vec<i32> = samples.iter().flat_map(|sample| sample.ids.iter().map(|&id| id as i32)).collect();
        let mask: Vec<bool> = samples.iter().flat_map(|sample| sample.mask.iter().copied()).collect();
        let counted: Vec<bool> = samples.iter().flat_map(Sample::counted).collect();
        let predicted = |sample: &[bool]| sample[first * block_length..].iter().filter(|counts| **counts).count();
        Self {
            ids: Tensor::from_data(TensorData::new(ids, shape), device),
            n_predicted: counted.chunks(length).map(predicted).sum(),
            counted: (counted != mask).then(|| Tensor::from_data(TensorData::new(counted, shape), device)),
            mask: mask.contains(&false).then(|| Tensor::from_data(TensorData::new(mask, shape), device)),
            first_predicted_block: first,
        }
    }

    /// The tokens that are predicted as one list, and which of them count.
    ///
    /// # Shapes
    /// - returns: twice `[batch · n_predicted_blocks · block_length]`
    pub fn targets(&self) -> (Tensor<1, Int>, Option<Tensor<1, Bool>>) {
        let [batch, n_blocks, length] = self.ids.dims();
        let first = self.first_predicted_block;
        let (n_predicted, n) = (n_blocks - first, batch * (n_blocks - first) * length);
        let ids = self.ids.clone().narrow(1, first, n_predicted).reshape([n]);
        let counted = self.counted.clone().or_else(|| self.mask.clone());
        (ids, counted.map(|counted| counted.narrow(1, first, n_predicted).reshape([n])))
    }
}
