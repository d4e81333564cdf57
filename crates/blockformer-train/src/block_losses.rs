//! The losses on block embeddings that the authors' code offers beside the loss on tokens.

use blockformer_model::real_blocks;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Bool, FloatDType, Tensor, s};
use serde::{Deserialize, Serialize};

use crate::TrainError;

/// Which losses a model is trained on, besides the cross-entropy of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// The context embedding is to predict the next block's embedding.
    pub block_decoding: Option<BlockDecodingLoss>,
    /// The weight of decoding each block from its own embedding.
    pub auto_encoding_weight: Option<f64>,
}

impl LossConfig {
    /// Checks the weights.
    ///
    /// # Errors
    /// [`TrainError::Setting`] naming the first that is out of its range.
    pub fn validate(&self) -> Result<(), TrainError> {
        let weights = [
            ("losses.block_decoding.weight", self.block_decoding.map(|loss| loss.weight)),
            ("losses.auto_encoding_weight", self.auto_encoding_weight),
        ];
        let wrong = |weight: f64| !(weight.is_finite() && weight >= 0.0);
        match weights.into_iter().find_map(|(field, weight)| weight.filter(|w| wrong(*w)).map(|w| (field, w))) {
            Some((field, value)) => Err(TrainError::Setting { field, value, expected: "0 or a positive number" }),
            None => Ok(()),
        }
    }

    /// The loss on predicted block embeddings, weighted, `[1]`.
    ///
    /// # Shapes
    /// - `context`, `blocks`: `[batch, n_blocks, n_embedding_tokens, d_model]`
    /// - `mask`: `[batch, n_blocks, block_length]`
    pub(crate) fn of_blocks(
        &self,
        context: Tensor<4>,
        blocks: Tensor<4>,
        mask: Option<Tensor<3, Bool>>,
    ) -> Option<Tensor<1>> {
        let loss = self.block_decoding?;
        Some(loss.kind.forward(context, blocks, real_blocks(mask)).mul_scalar(loss.weight))
    }

    /// The same with the loss on block embeddings multiplied by `factor`.
    pub fn scaled(self, factor: f64) -> Self {
        let block_decoding = self.block_decoding.map(|loss| BlockDecodingLoss { weight: loss.weight * factor, ..loss });
        Self { block_decoding, ..self }
    }
}

/// A loss between the context embedding of a block and the embedding of the next.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockDecodingLoss {
    /// Which.
    pub kind: BlockDecodingLossKind,
    /// Its weight in the sum.
    pub weight: f64,
}

/// Which loss between context embedding and next block's embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockDecodingLossKind {
    /// Mean squared difference.
    Mse,
    /// Cross-entropy of finding the next block's embedding among those of all blocks of the batch, by cosine
    /// similarity divided by a temperature of 0.07.
    Contrastive,
}

const TEMPERATURE: f64 = 0.07;

impl BlockDecodingLossKind {
    /// The loss, averaged over real blocks and in float32; zero where there are none. Targets are detached: the
    /// embedder is not drawn towards what is easy to predict.
    ///
    /// # Shapes
    /// - `context`, `blocks`: `[batch, n_blocks, n_embedding_tokens, d_model]`, block decoder's and embedder's output
    /// - `real`: `[batch, n_blocks]`, false for blocks of padding; `None` where there are none
    /// - returns: `[1]`
    pub fn forward(self, context: Tensor<4>, blocks: Tensor<4>, real: Option<Tensor<2, Bool>>) -> Tensor<1> {
        let [batch, n_blocks, n, d_model] = context.dims();
        let rows = batch * (n_blocks - 1) * n;
        let predicted = context.slice(s![.., 0..n_blocks - 1, .., ..]).reshape([rows, d_model]).cast(FloatDType::F32);
        let targets = blocks.slice(s![.., 1.., .., ..]).reshape([rows, d_model]).cast(FloatDType::F32).detach();
        let weights = match real {
            Some(real) => {
                let real = real.slice(s![.., 1..]).reshape([batch * (n_blocks - 1), 1]);
                real.expand([batch * (n_blocks - 1), n]).reshape([rows, 1]).float().cast(FloatDType::F32)
            }
            None => Tensor::ones([rows, 1], &predicted.device()),
        };
        match self {
            Self::Mse => mse(predicted, targets, weights),
            Self::Contrastive => contrastive(predicted, targets, weights),
        }
    }
}

fn mse(predicted: Tensor<2>, targets: Tensor<2>, weights: Tensor<2>) -> Tensor<1> {
    let d_model = predicted.dims()[1];
    let count = weights.clone().sum().clamp_min(1.0).mul_scalar(d_model as f64);
    ((predicted - targets).powi_scalar(2) * weights).sum() / count
}

fn contrastive(predicted: Tensor<2>, targets: Tensor<2>, weights: Tensor<2>) -> Tensor<1> {
    let rows = predicted.dims()[0];
    // Padding is neither looked for nor found.
    let absent = weights.clone().reshape([1, rows]).equal_elem(0.0).expand([rows, rows]);
    let similarity = normalized(predicted).matmul(normalized(targets).transpose()); // [rows, rows]
    let log_p = log_softmax(similarity.div_scalar(TEMPERATURE).mask_fill(absent, -1e9), 1);
    let own = Tensor::<2>::eye(rows, &log_p.device()) * weights.clone();
    (log_p * own).sum().neg() / weights.sum().clamp_min(1.0)
}

/// Rows of length one; a row of zeros stays one.
fn normalized(x: Tensor<2>) -> Tensor<2> {
    let norm = x.clone().powi_scalar(2).sum_dim(1).clamp_min(1e-24).sqrt();
    x / norm
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution, TensorData};

    fn embeddings(device: &Device) -> (Tensor<4>, Tensor<4>) {
        let random = || Tensor::random([2, 4, 1, 6], Distribution::Normal(0.0, 1.0), device);
        (random(), random())
    }

    #[test]
    fn padded_blocks_change_neither_loss_and_leave_gradients_finite() {
        let device = Device::flex().autodiff();
        let (context, blocks) = embeddings(&device);
        let real = TensorData::new([true, true, true, false].repeat(2), [2, 4]);
        let real = || Some(Tensor::<2, Bool>::from_data(real.clone(), &device));
        for kind in [BlockDecodingLossKind::Mse, BlockDecodingLossKind::Contrastive] {
            // The padded last block is all zeros, whose direction is undefined.
            let padded = blocks.clone().slice_assign(s![.., 3..4, .., ..], Tensor::zeros([2, 1, 1, 6], &device));
            let context = context.clone().require_grad();
            let loss = kind.forward(context.clone(), padded, real());
            let short = |x: &Tensor<4>| x.clone().slice(s![.., 0..3, .., ..]);
            let expected = kind.forward(short(&context), short(&blocks), None).into_scalar::<f32>();
            assert!((loss.clone().into_scalar::<f32>() - expected).abs() < 1e-5, "{kind:?}");
            let gradient = context.grad(&loss.backward()).expect("a gradient");
            assert!(gradient.abs().sum().into_scalar::<f32>().is_finite(), "{kind:?}");
        }
    }

    #[test]
    fn a_batch_of_nothing_but_padding_has_no_loss() {
        let device = Device::flex();
        let (context, blocks) = embeddings(&device);
        for kind in [BlockDecodingLossKind::Mse, BlockDecodingLossKind::Contrastive] {
            let none = Some(Tensor::<2, Bool>::full([2, 4], false, &device));
            assert_eq!(kind.forward(context.clone(), blocks.clone(), none).into_scalar::<f32>(), 0.0);
        }
    }
}
