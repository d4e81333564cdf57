//! Kernels for tensors that lie in this process's memory.
//!
//! Burn's CPU backend applies non-linearities one number at a time, and their derivatives in many passes. Where tensors
//! are its own (feature `flex`), `blockformer-kernels` does it instead, by vectors and in one pass; everywhere else Burn
//! does.

use std::ops::ControlFlow;

#[cfg(feature = "flex")]
use burn::tensor::DType;
use burn::tensor::{Device, GradientCheckpointingStrategy, Tensor};

use crate::Activation;

/// The environment variable that leaves plain models and training to Burn's operations alone if it is `off`, for
/// comparisons.
pub const TENSOR_KERNELS_VARIABLE: &str = "BLOCKFORMER_TENSOR_KERNELS";

/// Whether kernels on slices serve tensors of `device`, also with gradients: whether it is Burn's `flex`, this build has
/// the feature of that name, and [`TENSOR_KERNELS_VARIABLE`] does not say `off`.
pub fn kernels_serve(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    {
        use std::sync::OnceLock;
        static OFF: OnceLock<bool> = OnceLock::new();
        let off = *OFF.get_or_init(|| std::env::var(TENSOR_KERNELS_VARIABLE).is_ok_and(|value| value == "off"));
        !off && *device == Device::flex()
    }
    #[cfg(not(feature = "flex"))]
    {
        let _ = device;
        false
    }
}

/// A tensor without a graph as a constant among tensors of a strategy: autodiff refuses to mix strategies.
pub fn constant<const D: usize>(value: Tensor<D>, strategy: Option<GradientCheckpointingStrategy>) -> Tensor<D> {
    let value = Tensor::from_inner(value);
    match strategy {
        Some(strategy) => value.with_gradient_checkpointing_strategy(strategy),
        None => value,
    }
}

/// The activation by kernels; goes on with the tensor where they do not serve it or gain nothing.
///
/// In a graph the activation is its tangent: `slope · x + offset`, with constants of which `slope` alone is kept for the
/// backward pass, and the derivative is exact.
#[cfg(feature = "flex")]
pub(crate) fn activation<const D: usize>(activation: Activation, x: Tensor<D>) -> ControlFlow<Tensor<D>, Tensor<D>> {
    use blockformer_kernels::{Activation as Kernel, Level};
    use burn::tensor::TensorData;

    let kernel = match activation {
        Activation::Gelu => Kernel::Gelu,
        Activation::GeluTanh => Kernel::GeluTanh,
        Activation::Silu => Kernel::Silu,
        Activation::Relu => return ControlFlow::Continue(x), // a comparison
    };
    if x.dtype() != DType::F32 || !kernels_serve(&x.device()) {
        return ControlFlow::Continue(x);
    }
    let level = Level::current();
    if !x.is_autodiff() {
        return ControlFlow::Break(in_place(x, |numbers| kernel.apply(level, numbers)));
    }
    let strategy = x.gradient_checkpointing_strategy();
    let mut slopes = vec![0.0; x.shape().num_elements()];
    let offsets = in_place(own(x.clone().inner()), |numbers| kernel.tangents(level, numbers, &mut slopes));
    let slopes = Tensor::from_data(TensorData::new(slopes, x.shape()), (&offsets.device(), DType::F32));
    let [slopes, offsets] = [slopes, offsets].map(|numbers| constant(numbers, strategy));
    ControlFlow::Break(x * slopes + offsets)
}

/// Lets a kernel change the numbers of a float32 tensor that [kernels serve](kernels_serve), without a copy if nobody else
/// holds it.
///
/// # Panics
/// If its numbers are not float32.
#[cfg(feature = "flex")]
pub fn in_place<const D: usize>(tensor: Tensor<D>, kernel: impl FnOnce(&mut [f32])) -> Tensor<D> {
    let (device, mut numbers) = (tensor.device(), tensor.into_data());
    match numbers.as_mut_slice() {
        Ok(floats) => kernel(floats),
        Err(error) => panic!("a tensor of float32 holds other numbers: {error:?}"),
    }
    Tensor::from_data(numbers, (&device, DType::F32))
}

/// A copy for [`in_place`] of a tensor that others hold, by an operation: reading its numbers would make two.
#[cfg(feature = "flex")]
pub fn own<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.mul_scalar(1.0)
}

#[cfg(not(feature = "flex"))]
pub(crate) fn activation<const D: usize>(_: Activation, x: Tensor<D>) -> ControlFlow<Tensor<D>, Tensor<D>> {
    ControlFlow::Continue(x)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::Distribution;
    use burn::tensor::activation::{gelu, gelu_approximate, silu};

    use super::*;

    const ALL: [Activation; 4] = [Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Relu];

    fn burns(activation: Activation, x: Tensor<2>) -> Tensor<2> {
        match activation {
            Activation::Gelu => gelu(x),
            Activation::GeluTanh => gelu_approximate(x),
            Activation::Silu => silu(x),
            Activation::Relu => burn::tensor::activation::relu(x),
        }
    }

    fn difference(a: Tensor<2>, b: Tensor<2>) -> f32 {
        (a - b).abs().max().into_scalar()
    }

    #[test]
    fn values_and_gradients_are_those_of_burn() {
        let device = Device::flex();
        for device in [device.clone().autodiff(), device.clone().autodiff().gradient_checkpointing()] {
            let x = Tensor::<2>::random([37, 1001], Distribution::Normal(0.0, 3.0), &device).require_grad();
            let weights = Tensor::<2>::random([37, 1001], Distribution::Default, &device);
            for kind in ALL {
                let (ours, theirs) = (kind.forward(x.clone()), burns(kind, x.clone()));
                assert!(difference(ours.clone(), theirs.clone()) < 3e-6, "{kind:?}");
                assert!(difference(kind.forward(x.clone().inner()), theirs.clone().inner()) < 3e-6, "{kind:?}");
                let [ours, theirs] =
                    [ours, theirs].map(|y| x.grad(&(y * weights.clone()).sum().backward()).expect("a gradient"));
                assert!(difference(ours, theirs) < 3e-6, "{kind:?}");
            }
        }
    }

    #[test]
    fn a_view_is_left_as_it_is() {
        let x = Tensor::<2>::random([8, 6], Distribution::Normal(0.0, 1.0), &Device::flex());
        let before = x.clone().into_data();
        let y = Activation::Gelu.forward(x.clone().swap_dims(0, 1).narrow(0, 1, 3));
        assert_eq!(y.dims(), [3, 8]);
        assert_eq!(x.clone().into_data(), before);
        assert!(difference(y, gelu(x.swap_dims(0, 1).narrow(0, 1, 3))) < 1e-6);
    }
}
