//! The backward pass of a Block Transformer, part by part.
//!
//! The token decoder sees a block's past through its context embedding alone, so the graph can be cut there. With `c`
//! the context embeddings and `g = d loss / d c`, which the token decoder's backward pass gives for some blocks at a
//! time, the gradient of everything before `c` is that of `Σ c · stop_gradient(g)`.

use blockformer_embedder::Embedder;
use blockformer_model::{BlockTransformer, BlockWindows};
use blockformer_nn::constant;
use blockformer_token_decoder::TokenDecoder;
use burn::module::Module;
use burn::tensor::{Bool, FloatDType, Int, Tensor, s};

use crate::loss::CHUNK_ELEMENTS;
use crate::trainable::own_windows;
use crate::{Batch, GradientAccumulator, Objective, token_loss};

/// As [`Trainable::backward`](crate::Trainable::backward).
pub(crate) fn backward<E: Embedder, T: TokenDecoder>(
    model: &BlockTransformer<E, T>,
    batch: &Batch,
    objective: &Objective,
    gradients: &mut GradientAccumulator,
) -> f64 {
    let (ids, mask, first) = (batch.ids.clone(), batch.mask.clone(), batch.first_predicted_block);
    let weight = objective.losses.auto_encoding_weight;
    let (windows, own) = {
        let model = objective.precision.shadow(&model.valid());
        let BlockWindows { block_embeddings, windows, .. } =
            model.windows(ids.clone().inner(), mask.clone().map(Tensor::inner));
        (windows, weight.map(|weight| (own_windows(&model, block_embeddings, first), weight)))
    };
    let local = LocalPass { model, batch, objective };
    let (sum, from_windows) = local.run(windows, 1.0, gradients);
    let from_own = own.map(|(own, weight)| local.run(own, weight, gradients).1);

    let model_again = objective.precision.shadow(model);
    let BlockWindows { block_embeddings, context_embeddings, windows } = model_again.windows(ids, mask.clone());
    let mut graph = surrogate(windows, from_windows);
    if let Some(gradient) = from_own {
        graph = graph + surrogate(own_windows(&model_again, block_embeddings.clone(), first), gradient);
    }
    if let Some(loss) = objective.scaled_losses(batch).of_blocks(context_embeddings, block_embeddings, mask) {
        graph = graph + loss;
    }
    gradients.add(model, graph.backward());
    sum
}

/// A scalar whose gradient with respect to `x` is `gradient`.
fn surrogate(x: Tensor<3>, gradient: Tensor<3>) -> Tensor<1> {
    let gradient = constant(gradient, x.gradient_checkpointing_strategy());
    (x * gradient).sum().cast(FloatDType::F32)
}

/// The tokens of some blocks, which of their predictions count, and which of them are no padding.
struct Targets {
    ids: Tensor<1, Int>,
    counted: Option<Tensor<1, Bool>>,
    mask: Option<Tensor<1, Bool>>,
}

/// The token decoder's part.
struct LocalPass<'a, E: Embedder, T: TokenDecoder> {
    model: &'a BlockTransformer<E, T>,
    batch: &'a Batch,
    objective: &'a Objective,
}

impl<E: Embedder, T: TokenDecoder> LocalPass<'_, E, T> {
    /// Decodes all predicted blocks from `embeddings`, adds the gradients of the token decoder, and
    /// returns the sum of the losses in nats, and their gradient, times `weight`, with respect to `embeddings`.
    ///
    /// # Shapes
    /// - `embeddings`, returned gradient: `[rows, n, d_model]`
    fn run(&self, embeddings: Tensor<3>, weight: f64, gradients: &mut GradientAccumulator) -> (f64, Tensor<3>) {
        let layout = self.model.layout();
        let (n_rows, length) = (embeddings.dims()[0], layout.block_length);
        let (targets, counted) = self.batch.targets();
        let first = self.batch.first_predicted_block;
        let mask = self.batch.mask.clone().map(|mask| mask.slice(s![.., first.., ..]).reshape([n_rows * length]));
        let chunk_rows = (CHUNK_ELEMENTS / (length * layout.vocab_size)).clamp(1, n_rows);
        let (mut sum, mut parts) = (0.0, Vec::new());
        for start in (0..n_rows).step_by(chunk_rows) {
            let end = (start + chunk_rows).min(n_rows);
            let range = s![start * length..end * length];
            let targets = targets.clone().slice(range);
            let [counted, mask] = [&counted, &mask].map(|part| part.clone().map(|part| part.slice(range)));
            let embeddings = embeddings.clone().slice(s![start..end, .., ..]);
            let (loss, part) = self.chunk(embeddings, Targets { ids: targets, counted, mask }, weight, gradients);
            sum += loss;
            parts.push(part);
        }
        (sum, Tensor::cat(parts, 0))
    }

    fn chunk(
        &self,
        embeddings: Tensor<3>,
        targets: Targets,
        weight: f64,
        gradients: &mut GradientAccumulator,
    ) -> (f64, Tensor<3>) {
        let layout = self.model.layout();
        let shape = [1, embeddings.dims()[0], layout.block_length];
        let local = self.objective.precision.shadow(self.model);
        let strategy = self.batch.ids.device().gradient_checkpointing_strategy();
        let embeddings = constant(embeddings, strategy).require_grad();
        let Targets { ids: targets, counted, mask } = targets;
        let (ids, mask) = (targets.clone().reshape(shape), mask.map(|mask| mask.reshape(shape)));
        let hidden = local.decode_blocks(embeddings.clone(), ids, mask);
        let normalizer = self.objective.scaled_normalizer() / weight;
        let loss = token_loss(|h| local.logits(h), hidden, targets, counted, normalizer, layout.vocab_size);
        let mut found = loss.graph.clone().cast(FloatDType::F32).backward();
        let part = match embeddings.grad_remove(&mut found) {
            Some(gradient) => gradient,
            None => embeddings.inner().zeros_like(),
        };
        gradients.add(self.model, found);
        (loss.sum(), part)
    }
}
