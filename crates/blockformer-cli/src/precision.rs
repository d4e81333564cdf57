//! How a model's weights are stored for generation.

use blockformer::cpu::{CpuModel, Precision};
use blockformer::model::{AnyModel, ModelConfig};
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

/// A model that is ready to generate.
pub(crate) enum Runnable {
    Plain(Box<AnyModel>),
    Packed(Box<CpuModel>),
}

/// Packs the weights, in float32 if nothing was chosen, where the device is the CPU. Where nothing was chosen, a model
/// without a packed form, and any on another device, stay plain.
pub(crate) fn prepare(
    config: &ModelConfig,
    model: AnyModel,
    choice: Option<Choice>,
    device: &str,
) -> Result<Runnable, CliError> {
    let on_cpu = matches!(device.split(':').next(), Some("cpu" | "flex" | "ndarray"));
    let Some(precision) = choice.unwrap_or(if on_cpu { Choice::F32 } else { Choice::Plain }).packed() else {
        return Ok(Runnable::Plain(Box::new(model)));
    };
    if !on_cpu {
        let reason = format!("{} is for CPUs, but the device is {device}", precision.name());
        return Err(CliError::Option { option: "--precision", reason });
    }
    if choice.is_none() && CpuModel::supports(config).is_err() {
        return Ok(Runnable::Plain(Box::new(model)));
    }
    Ok(Runnable::Packed(Box::new(CpuModel::new(config, model, precision)?)))
}
