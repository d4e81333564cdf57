//! What a model's weights are stored in for generation.

use blockformer::cpu::{CpuModel, Precision};
use blockformer::model::{AnyModel, ModelConfig};
use blockformer::{ServingModel, is_cpu, train};
use burn::tensor::{Device, FloatDType};
use clap::ValueEnum;

use crate::error::CliError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// Burn's operations, on weights as they are
    Plain,
    /// float32
    F32,
    /// bfloat16, half the bytes
    Bf16,
    /// float16, on GPUs
    F16,
    /// 8 bits, in groups of 64 with a scale
    Int8,
    /// 4 bits, in groups of 32 with a scale and a minimum; 8 bits for the projection to the vocabulary
    Int4,
}

impl Choice {
    /// The packed form on a CPU.
    fn packed(self) -> Option<Precision> {
        match self {
            Self::Plain | Self::F16 => None,
            Self::F32 => Some(Precision::F32),
            Self::Bf16 => Some(Precision::Bf16),
            Self::Int8 => Some(Precision::Int8),
            Self::Int4 => Some(Precision::Int4),
        }
    }
}

/// Refuses a type that the device does not compute in.
pub(crate) fn check_type(dtype: FloatDType, (device, name): (&Device, &str)) -> Result<(), CliError> {
    if device.supports_dtype(dtype) {
        return Ok(());
    }
    Err(CliError::Option { option: "--precision", reason: format!("{name} does not compute in {dtype:?}") })
}

/// Packs the weights, in float32 if nothing was chosen, where the device is the CPU. Where nothing was chosen, a model
/// without a packed form, and any on another device, stay plain; elsewhere than on a CPU, `bf16` and `f16` are the type
/// of a plain model's weights and of all it computes. `name` is what the command calls the device.
pub(crate) fn prepare(
    config: &ModelConfig,
    model: AnyModel,
    choice: Option<Choice>,
    (device, name): (&Device, &str),
) -> Result<ServingModel, CliError> {
    let Some(choice) = choice else { return Ok(ServingModel::new(config, model, device)?) };
    let refuse = |reason: String| Err(CliError::Option { option: "--precision", reason });
    let shorter = match choice {
        Choice::Plain => return Ok(ServingModel::plain(model)),
        Choice::F32 if !is_cpu(device) => return Ok(ServingModel::plain(model)),
        Choice::Bf16 => train::Precision::Bf16,
        Choice::F16 => train::Precision::F16,
        Choice::F32 | Choice::Int8 | Choice::Int4 => train::Precision::F32,
    };
    match (choice.packed(), shorter.dtype()) {
        (Some(precision), _) if is_cpu(device) => Ok(ServingModel::Packed(CpuModel::new(config, model, precision)?)),
        (_, Some(dtype)) if is_cpu(device) => refuse(format!("{dtype:?} is for GPUs, but the device is {name}")),
        (_, Some(dtype)) => {
            check_type(dtype, (device, name))?;
            Ok(ServingModel::plain(shorter.convert(model)))
        }
        (Some(precision), None) => refuse(format!("{} is for CPUs, but the device is {name}", precision.name())),
        (None, None) => Ok(ServingModel::plain(model)),
    }
}
