//! How a model's weights are stored for generation.

use blockformer::cpu::{CpuModel, Precision};
use blockformer::model::{AnyModel, ModelConfig};
use blockformer::{ServingModel, is_cpu};
use burn::tensor::Device;
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
    /// 8 bits, in groups of 32 with a scale
    Int8,
    /// 4 bits, in groups of 32 with a scale
    Int4,
}

impl Choice {
    fn packed(self) -> Option<Precision> {
        match self {
            Self::Plain => None,
            Self::F32 => Some(Precision::F32),
            Self::Bf16 => Some(Precision::Bf16),
            Self::Int8 => Some(Precision::Int8),
            Self::Int4 => Some(Precision::Int4),
        }
    }
}

/// Packs the weights, in float32 if nothing was chosen, where the device is the CPU. Where nothing was chosen, a model
/// without a packed form, and any on another device, stay plain. `name` is what the command calls the device.
pub(crate) fn prepare(
    config: &ModelConfig,
    model: AnyModel,
    choice: Option<Choice>,
    (device, name): (&Device, &str),
) -> Result<ServingModel, CliError> {
    let Some(choice) = choice else { return Ok(ServingModel::new(config, model, device)?) };
    let Some(precision) = choice.packed() else { return Ok(ServingModel::Plain(model)) };
    if !is_cpu(device) {
        let reason = format!("{} is for CPUs, but the device is {name}", precision.name());
        return Err(CliError::Option { option: "--precision", reason });
    }
    Ok(ServingModel::Packed(CpuModel::new(config, model, precision)?))
}
