//! Mixed precision: float32 master weights, computation in a shorter type.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, FloatDType, Tensor};
use serde::{Deserialize, Serialize};

/// The type a model computes in during training. Its weights, the optimizer's moments and the losses are float32
/// in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// float32.
    #[default]
    F32,
    /// bfloat16: the range of float32 in half the memory.
    Bf16,
    /// float16, whose small range needs a [`LossScale`].
    F16,
}

impl Precision {
    /// The type, if it is not that of the weights.
    pub fn dtype(self) -> Option<FloatDType> {
        match self {
            Self::F32 => None,
            Self::Bf16 => Some(FloatDType::BF16),
            Self::F16 => Some(FloatDType::F16),
        }
    }

    /// The model to compute with: its weights are those of `master` in this type. On an autodiff device gradients go
    /// through to the weights of `master`, in float32; one backward pass uses it up.
    pub fn shadow<M: Module>(self, master: &M) -> M {
        match self.dtype() {
            Some(dtype) => master.clone().map(&mut Cast(dtype)),
            None => master.clone(),
        }
    }

    /// The model itself in this type, for inference. Its weights are converted one by one, and those not yet read or drawn
    /// are as they come, so that never all of them are in memory in both types.
    pub fn convert<M: Module>(self, model: M) -> M {
        match self.dtype() {
            Some(dtype) => {
                let model = model.map(&mut Convert(dtype));
                // What held the weights before goes back.
                model.devices().iter().for_each(Device::memory_cleanup);
                model
            }
            None => model,
        }
    }
}

/// Within a graph of gradients.
struct Cast(FloatDType);

/// For good: in memory of their own, as Burn's own initialisers have it. An allocator's pages are as large as the largest of what
/// else there is.
struct Convert(FloatDType);

impl ModuleMapper for Convert {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let device = param.lazy_device();
        device.memory_persistent_allocations(param, |param| Cast(self.0).map_float(param))
    }
}

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        // Not `param.map`, which would make a new leaf that gradients end at.
        let (id, tensor, mapper) = param.consume();
        Param::from_mapped_value(id, tensor.cast(self.0), mapper)
    }
}

/// A factor on the loss that keeps small gradients within the range of float16 (Micikevicius et al. 2018). It halves
/// when gradients overflow, and doubles after many steps in which none did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    /// The factor.
    pub factor: f64,
    /// Steps without an overflow since it last changed.
    good_steps: usize,
}

impl LossScale {
    const START: f64 = 65_536.0;
    const MAX: f64 = 16_777_216.0;
    /// Steps without an overflow until it doubles.
    pub const GROWTH_INTERVAL: usize = 2_000;

    /// At its beginning; 1 and constant where the precision needs none.
    pub fn new(precision: Precision) -> Self {
        Self { factor: if precision == Precision::F16 { Self::START } else { 1.0 }, good_steps: 0 }
    }

    /// Halves it, so that a step whose gradients overflowed can be tried again; false if it is at its lowest.
    #[must_use]
    pub fn back_off(&mut self, precision: Precision) -> bool {
        if precision != Precision::F16 || self.factor <= 1.0 {
            return false;
        }
        *self = Self { factor: (self.factor / 2.0).max(1.0), good_steps: 0 };
        true
    }

    /// Counts a step without an overflow.
    pub fn succeeded(&mut self, precision: Precision) {
        if precision != Precision::F16 {
            return;
        }
        self.good_steps += 1;
        if self.good_steps == Self::GROWTH_INTERVAL {
            *self = Self { factor: (self.factor * 2.0).min(Self::MAX), good_steps: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_scale_halves_at_an_overflow_and_doubles_after_an_interval_without() {
        let mut scale = LossScale::new(Precision::F16);
        assert!(scale.back_off(Precision::F16));
        assert_eq!(scale.factor, 32_768.0);
        for _ in 1..LossScale::GROWTH_INTERVAL {
            scale.succeeded(Precision::F16);
        }
        assert_eq!(scale.factor, 32_768.0);
        scale.succeeded(Precision::F16);
        assert_eq!(scale.factor, 65_536.0);
        let halvings = (0..40).take_while(|_| scale.back_off(Precision::F16)).count();
        assert_eq!((halvings, scale.factor), (16, 1.0));
        let mut none = LossScale::new(Precision::Bf16);
        assert!(!none.back_off(Precision::Bf16));
        assert_eq!(none.factor, 1.0);
    }
}
