//! Accumulating gradients and clipping them by their global norm.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Gradients, Tensor};

/// Sums the gradients of several backward passes.
#[derive(Default)]
pub struct GradientAccumulator {
    sum: GradientsParams,
}

impl GradientAccumulator {
    /// Nothing summed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the gradients of one backward pass.
    pub fn add<M: Module>(&mut self, model: &M, gradients: Gradients) {
        self.merge(model, GradientsParams::from_grads(gradients, model));
    }

    /// Adds gradients that were summed elsewhere, on another device say.
    pub fn merge<M: Module>(&mut self, model: &M, mut gradients: GradientsParams) {
        if self.sum.is_empty() {
            self.sum = gradients;
            return;
        }
        model.visit(&mut Merge { sum: &mut self.sum, gradients: &mut gradients });
    }

    /// The sum as it stands.
    pub fn into_sum(self) -> GradientsParams {
        self.sum
    }

    /// The sum. Parameters that took no part (the token table of a model with blocks of one token, say) get a gradient
    /// of zero, so that weight decay reaches them as it does in PyTorch; frozen ones get none.
    pub fn finish<M: Module>(mut self, model: &M) -> GradientsParams {
        model.visit(&mut FillMissing { gradients: &mut self.sum });
        self.sum
    }
}

struct Merge<'a> {
    sum: &'a mut GradientsParams,
    gradients: &'a mut GradientsParams,
}

impl ModuleVisitor for Merge<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = self.gradients.remove::<D>(param.id) else { return };
        let sum = match self.sum.remove::<D>(param.id) {
            Some(sum) => sum + gradient,
            None => gradient,
        };
        self.sum.register(param.id, sum);
    }
}

struct FillMissing<'a> {
    gradients: &'a mut GradientsParams,
}

impl ModuleVisitor for FillMissing<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        if value.is_require_grad() && self.gradients.get::<D>(param.id).is_none() {
            self.gradients.register(param.id, value.inner().zeros_like());
        }
    }
}

/// Multiplies all gradients by `factor`.
pub fn scale_gradients<M: Module>(model: &M, gradients: &mut GradientsParams, factor: f64) {
    model.visit(&mut Scale { gradients, factor });
}

/// Scales all gradients so that their norm, taken over all parameters together, is at most `max_norm`, and returns
/// the norm before (Pascanu et al. 2013). A `max_norm` of 0 only measures.
pub fn clip_gradients<M: Module>(model: &M, gradients: &mut GradientsParams, max_norm: f64) -> f64 {
    let mut squares = SumOfSquares { gradients, sum: None };
    model.visit(&mut squares);
    let norm = squares.sum.map_or(0.0, |sum| f64::from(sum.into_scalar::<f32>()).sqrt());
    let factor = max_norm / (norm + 1e-6);
    if max_norm > 0.0 && factor < 1.0 {
        scale_gradients(model, gradients, factor);
    }
    norm
}

struct SumOfSquares<'a> {
    gradients: &'a GradientsParams,
    sum: Option<Tensor<1>>,
}

impl ModuleVisitor for SumOfSquares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            let n = gradient.shape().num_elements();
            let flat = gradient.reshape([1, n]);
            let squares = flat.clone().matmul(flat.transpose()).reshape([1]); // Σ g², as a product: fast everywhere
            self.sum = Some(match self.sum.take() {
                Some(sum) => sum + squares,
                None => squares,
            });
        }
    }
}

struct Scale<'a> {
    gradients: &'a mut GradientsParams,
    factor: f64,
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            self.gradients.register(param.id, gradient.mul_scalar(self.factor));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    fn gradients(model: &Linear, weight: f32, bias: f32) -> GradientsParams {
        let device = Device::flex();
        let mut gradients = GradientsParams::new();
        gradients.register(model.weight.id, Tensor::<2>::full([2, 2], weight, &device));
        gradients.register(model.bias.as_ref().expect("a bias").id, Tensor::<1>::full([2], bias, &device));
        gradients
    }

    #[test]
    fn the_norm_is_taken_over_all_parameters() {
        let model = LinearConfig::new(2, 2).init(&Device::flex().autodiff());
        let mut large = gradients(&model, 3.0, 4.0); // 4 · 9 + 2 · 16 = 68
        let norm = clip_gradients(&model, &mut large, 1.0);
        assert!((norm - 68f64.sqrt()).abs() < 1e-5);
        assert!((clip_gradients(&model, &mut large, 0.0) - 1.0).abs() < 1e-5);
        let mut small = gradients(&model, 0.1, 0.1);
        clip_gradients(&model, &mut small, 1.0);
        let weight = small.get::<2>(model.weight.id).expect("a gradient");
        assert_eq!(weight.max().into_scalar::<f32>(), 0.1);
    }
}
