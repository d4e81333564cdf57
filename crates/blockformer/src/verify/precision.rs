//! What a device computes in, and how far from the reference's float32 that may lead.

use blockformer_train::Precision;

/// What a model computes in while it is compared with the reference, which computed in float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VerifyPrecision {
    /// float32.
    #[default]
    F32,
    /// float32 on a device that may round the factors of products to TF32.
    Tf32,
    /// bfloat16; in training, the mixed precision of [`Precision::Bf16`].
    Bf16,
    /// float16; in training, the mixed precision of [`Precision::F16`].
    F16,
}

/// Errors that are allowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerances {
    /// Largest error of logits and embeddings: absolute in float32, of the largest; in shorter types of all,
    /// as a share of them (root of the sums of squares), and of a greedy token's logit, as a share of the largest logit.
    pub logits: f64,
    /// Largest relative error of a loss.
    pub loss: f64,
    /// Largest error of a gradient, relative to its largest entry, or in shorter types of all gradients, relative to their
    /// norm; and of that norm.
    pub gradients: f64,
    /// Largest relative error of the losses of training steps.
    pub training: f64,
    /// Largest error of the weights after the training steps. In float32, absolute, of any of them: a step moves a weight by
    /// up to 1e-3. In shorter types, of what the steps changed, as a share of it, over all weights (root of the sums
    /// of squares): Adam makes whole steps of small gradients that are mostly rounding. Weights that were not trained at
    /// all would be 1 off. The biases of keys, whose gradients are nothing but rounding, are left out.
    pub weights: f64,
    /// In shorter types, the largest error of the gradient of one parameter, as a share of its norm, or of 1e-4 of the norm of
    /// all where it is smaller. In float32 `gradients` is of the worst already.
    pub worst_gradient: f64,
    /// In shorter types, the largest error of what the steps changed of one parameter, as a share of it. In float32 `weights` is
    /// of the worst already.
    pub worst_change: f64,
}

impl VerifyPrecision {
    /// The type of weights and activations.
    pub fn computes_in(self) -> Precision {
        match self {
            Self::F32 | Self::Tf32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
            Self::F16 => Precision::F16,
        }
    }

    /// The errors allowed.
    pub fn tolerances(self) -> Tolerances {
        // Single parameters: up to 0.23 and 0.61 were seen in bfloat16, 0.23 and 0.20 in float16.
        let [logits, loss, gradients, training, weights, worst_gradient, worst_change] = match self {
            Self::F32 => [1e-3, 1e-5, 1e-3, 1e-4, 2e-5, 1e-3, 2e-5],
            Self::Tf32 => [5e-3, 1e-3, 2e-2, 2e-3, 0.2, 0.4, 0.5],
            Self::Bf16 => [5e-2, 1e-2, 0.1, 1e-2, 0.5, 0.4, 0.8],
            Self::F16 => [1e-2, 2e-3, 5e-2, 2e-3, 0.2, 0.4, 0.5],
        };
        Tolerances { logits, loss, gradients, training, weights, worst_gradient, worst_change }
    }

    /// A factor on losses that keeps gradients within the range of float16.
    pub(super) fn loss_scale(self) -> f64 {
        if self == Self::F16 { 1024.0 } else { 1.0 }
    }
}
