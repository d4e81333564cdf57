//! Linear maps and embeddings with the initialisation the paper's models use.

use blockformer_cubecl::{
    FewRows, MAX_NORM_ROWS, MAX_ROWS, RowActivation, RowMap, RowNorm, has_kernels, norm, product,
};
use burn::module::Param;
use burn::nn::{Embedding, EmbeddingConfig, Initializer, Linear};
use burn::tensor::{Device, Tensor};

use crate::{Activation, Norm};

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
    if let Some(y) = few_rows(map, &x, Around::default()) {
        return y;
    }
    let [batch, positions, d_input] = x.dims();
    let y = map.forward(x.reshape([batch * positions, d_input])); // [batch · positions, d_output]
    let d_output = y.dims()[1];
    y.reshape([batch, positions, d_output])
}

/// `residual + linear(map, x)`.
pub(crate) fn linear_onto(map: &Linear, x: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
    let around = Around { residual: Some(&residual), ..Around::default() };
    match few_rows(map, &x, around) {
        Some(y) => y,
        None => residual + linear(map, x),
    }
}

/// A norm and its epsilon, which Burn's layer norm keeps to itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FullNorm<'a> {
    pub(crate) norm: &'a Norm,
    pub(crate) epsilon: f64,
}

impl FullNorm<'_> {
    /// Normalises the features, in one launch where there is a kernel.
    pub(crate) fn forward(self, x: Tensor<3>) -> Tensor<3> {
        match self.of_few_rows(&x) {
            Some(y) => y,
            None => self.norm.forward(x),
        }
    }

    fn of_few_rows(self, x: &Tensor<3>) -> Option<Tensor<3>> {
        let [batch, positions, _] = x.dims();
        if batch * positions > MAX_NORM_ROWS || !has_kernels(x) {
            return None;
        }
        let (scale, shift) = self.learned();
        norm(x, self.of_rows(&scale, shift.as_ref()))
    }

    /// Scale and shift.
    fn learned(self) -> (Tensor<1>, Option<Tensor<1>>) {
        match self.norm {
            Norm::LayerNorm(norm) => (norm.gamma.val(), norm.beta.as_ref().map(Param::val)),
            Norm::RmsNorm(norm) => (norm.gamma.val(), None),
        }
    }

    /// With what it [learned](Self::learned), for kernels.
    fn of_rows<'a>(self, scale: &'a Tensor<1>, shift: Option<&'a Tensor<1>>) -> RowNorm<'a> {
        let centred = matches!(self.norm, Norm::LayerNorm(_));
        RowNorm { centred, scale, shift, epsilon: self.epsilon }
    }
}

/// `linear(map, norm(x))`.
pub(crate) fn linear_behind(norm: Option<FullNorm<'_>>, map: &Linear, x: Tensor<3>) -> Tensor<3> {
    match few_rows(map, &x, Around { norm, ..Around::default() }) {
        Some(y) => y,
        None => linear(map, normed(norm, x)),
    }
}

/// `norm(x)`, or `x` where there is none.
pub(crate) fn normed(norm: Option<FullNorm<'_>>, x: Tensor<3>) -> Tensor<3> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}

/// What stands around the product of a linear map in a layer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Around<'a> {
    /// Before it.
    pub(crate) norm: Option<FullNorm<'a>>,
    /// Beside it; its activated output is multiplied with the map's.
    pub(crate) gate: Option<&'a Linear>,
    /// Of the gate if there is one, otherwise of the map's output.
    pub(crate) activation: Option<Activation>,
    /// What all is added to.
    pub(crate) residual: Option<&'a Tensor<3>>,
}

/// All of it in one launch, where there is a kernel: for a few rows on a GPU.
pub(crate) fn few_rows(map: &Linear, x: &Tensor<3>, around: Around<'_>) -> Option<Tensor<3>> {
    let [batch, positions, _] = x.dims();
    if batch * positions > MAX_ROWS || !has_kernels(x) {
        return None;
    }
    let parts = |map: &Linear| (map.weight.val(), map.bias.as_ref().map(Param::val));
    let learned = around.norm.map(FullNorm::learned);
    let norm = around.norm.zip(learned.as_ref()).map(|(norm, (scale, shift))| norm.of_rows(scale, shift.as_ref()));
    let (weight, bias) = parts(map);
    let gate = around.gate.map(parts);
    let of = FewRows {
        map: RowMap { weight: &weight, bias: bias.as_ref() },
        norm,
        gate: gate.as_ref().map(|(weight, bias)| RowMap { weight, bias: bias.as_ref() }),
        activation: around.activation.map(|activation| match activation {
            Activation::Gelu => RowActivation::Gelu,
            Activation::GeluTanh => RowActivation::GeluTanh,
            Activation::Relu => RowActivation::Relu,
            Activation::Silu => RowActivation::Silu,
        }),
        residual: around.residual,
    };
    product(x, &of)
}
