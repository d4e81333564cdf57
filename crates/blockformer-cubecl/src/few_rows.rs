//! Products and norms of a few rows.

use burn::tensor::{DType, Tensor};

use crate::MAX_TENSORS;
#[cfg(feature = "_kernels")]
use crate::kernels;

/// The most rows of a [`product`]: with more of them, arithmetic begins to count beside the reading of weights.
pub const MAX_ROWS: usize = 8;

/// A linear map.
#[derive(Debug, Clone, Copy)]
pub struct RowMap<'a> {
    /// `[d_in, d_out]`
    pub weight: &'a Tensor<2>,
    /// `[d_out]`
    pub bias: Option<&'a Tensor<1>>,
}

/// A norm over the features of a row, computed in float32: a layer norm if rows are centred, otherwise an RMS norm.
#[derive(Debug, Clone, Copy)]
pub struct RowNorm<'a> {
    /// Whether the mean of a row is taken off first.
    pub centred: bool,
    /// `[d_in]`
    pub scale: &'a Tensor<1>,
    /// `[d_in]`
    pub shift: Option<&'a Tensor<1>>,
    /// Added to the mean of the squares.
    pub epsilon: f64,
}

impl RowNorm<'_> {
    fn fits(self, features: usize, dtype: DType) -> bool {
        [Some(self.scale), self.shift].into_iter().flatten().all(|x| x.dims() == [features] && x.dtype() == dtype)
    }
}

/// The most rows of a [`norm`].
pub const MAX_NORM_ROWS: usize = 1024;

/// `norm(x)` in one launch, computed in float32.
///
/// # Shapes
/// - `x`: `[batch, positions, features]`, returns the same; `None` where there is no kernel: on backends other than CubeCL's,
///   under autodiff, for more than [`MAX_NORM_ROWS`] positions of all sequences, and for shapes that do not fit
pub fn norm(x: &Tensor<3>, norm: RowNorm<'_>) -> Option<Tensor<3>> {
    let [batch, positions, features] = x.dims();
    let fits = (1..=MAX_NORM_ROWS).contains(&(batch * positions)) && features > 0 && norm.fits(features, x.dtype());
    if !fits {
        return None;
    }
    #[cfg(feature = "_kernels")]
    {
        kernels::norm(x, norm)
    }
    #[cfg(not(feature = "_kernels"))]
    None
}

/// A non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowActivation {
    /// `x Φ(x)`.
    Gelu,
    /// Its approximation by the hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x / (1 + exp(-x))`.
    Silu,
}

/// What a [`product`] consists of.
#[derive(Debug, Clone, Copy)]
pub struct FewRows<'a> {
    /// What rows are multiplied with.
    pub map: RowMap<'a>,
    /// Before that: a norm.
    pub norm: Option<RowNorm<'a>>,
    /// A second map of the same rows and sizes; its activated output is multiplied with that of the first.
    pub gate: Option<RowMap<'a>>,
    /// Of the gate if there is one, otherwise of the map's output.
    pub activation: Option<RowActivation>,
    /// What the result is added to, `[batch, positions, d_out]`.
    pub residual: Option<&'a Tensor<3>>,
}

impl<'a> FewRows<'a> {
    /// A product with nothing around it.
    pub fn new(map: RowMap<'a>) -> Self {
        Self { map, norm: None, gate: None, activation: None, residual: None }
    }
}

/// `residual + act(norm(x) gate) · (norm(x) map)`, or `residual + act(norm(x) map)`, of few rows in one launch. All of it is
/// computed in float32 and rounded once.
///
/// # Shapes
/// - `x`: `[batch, positions, d_in]`
/// - returns: `[batch, positions, d_out]`; `None` where there is no kernel: on backends other than CubeCL's, under
///   autodiff, for more than [`MAX_ROWS`] positions of all sequences, for more than seven tensors, the output included, and
///   for shapes that do not fit
pub fn product(x: &Tensor<3>, of: &FewRows<'_>) -> Option<Tensor<3>> {
    let [batch, positions, d_in] = x.dims();
    let FewRows { map, norm, gate, activation: _, residual } = of;
    let [_, d_out] = map.weight.dims();
    let dtype = x.dtype();
    let vector = |x: Option<&Tensor<1>>, n: usize| x.is_none_or(|x| x.dims() == [n] && x.dtype() == dtype);
    let maps =
        |map: &RowMap<'_>| map.weight.dims() == [d_in, d_out] && map.weight.dtype() == dtype && vector(map.bias, d_out);
    let optional = [
        map.bias.is_some(),
        gate.is_some(),
        gate.is_some_and(|gate| gate.bias.is_some()),
        norm.is_some(),
        norm.is_some_and(|norm| norm.shift.is_some()),
        residual.is_some(),
    ];
    let n_tensors = 3 + optional.into_iter().filter(|there| *there).count();
    let fits = (1..=MAX_ROWS).contains(&(batch * positions))
        && n_tensors <= MAX_TENSORS
        && d_in > 0
        && d_out > 0
        && maps(map)
        && gate.as_ref().is_none_or(maps)
        && norm.is_none_or(|norm| norm.fits(d_in, dtype))
        && residual.is_none_or(|x| x.dims() == [batch, positions, d_out] && x.dtype() == dtype);
    if !fits {
        return None;
    }
    #[cfg(feature = "_kernels")]
    {
        kernels::product(x, of)
    }
    #[cfg(not(feature = "_kernels"))]
    None
}
