//! Linear maps and embeddings with the initialisation the paper's models use.

use burn::module::Param;
use burn::nn::{Embedding, EmbeddingConfig, Initializer, Linear};
use burn::tensor::{Device, Tensor};

/// A linear map with weights from N(0, `std`²) and, if asked for, a zero bias.
pub fn linear_init(d_input: usize, d_output: usize, bias: bool, std: f64, device: &Device) -> Linear {
    let weight: Param<Tensor<2>> = Initializer::Normal { mean: 0.0, std }.init([d_input, d_output], device);
    let bias = bias.then(|| Initializer::Zeros.init([d_output], device));
    Linear { weight, bias }
}

/// An embedding table with entries from N(0, `std`²).
pub fn normal_embedding(n_embedding: usize, d_model: usize, std: f64, device: &Device) -> Embedding {
    EmbeddingConfig::new(n_embedding, d_model).with_initializer(Initializer::Normal { mean: 0.0, std }).init(device)
}

/// Applies `map` to the last dimension as one matrix product (batched products repack the weights for every row on
/// some backends).
///
/// # Shapes
/// - `x`: `[batch, positions, d_input]`
/// - returns: `[batch, positions, d_output]`
pub fn linear(map: &Linear, x: Tensor<3>) -> Tensor<3> {
    let [batch, positions, d_input] = x.dims();
    let y = map.forward(x.reshape([batch * positions, d_input])); // [batch · positions, d_output]
    let d_output = y.dims()[1];
    y.reshape([batch, positions, d_output])
}
