//! What the configurations of Hugging Face directories have in common.

use std::path::{Path, PathBuf};

use blockformer_nn::Activation;
use serde::Deserialize;
use serde_json::Value;

use super::{ForeignModel, Format, GptNeoXConfig, LlamaConfig};
use crate::{CheckpointError, ModelConfig};

/// The rotary settings as newer versions of Hugging Face's library write them.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RopeParameters {
    /// The kind; only `"default"` is supported.
    pub rope_type: Option<String>,
    /// Base of the rotary wavelengths.
    pub rope_theta: Option<f64>,
    /// Rotated share of each head.
    pub partial_rotary_factor: Option<f64>,
}

/// Reads a `config.json`; `None` if it has no `model_type` and so is not Hugging Face's.
pub(super) fn find_config(path: PathBuf) -> Result<Option<ForeignModel>, CheckpointError> {
    let text = std::fs::read_to_string(&path).map_err(|source| CheckpointError::io("read", &path, source))?;
    let json = |source| CheckpointError::Json { path: path.clone(), source };
    let value: Value = serde_json::from_str(&text).map_err(json)?;
    let Some(kind) = value.get("model_type").and_then(Value::as_str) else { return Ok(None) };
    let (config, format) = match kind {
        "gpt_neox" => {
            let config: GptNeoXConfig = serde_json::from_value(value).map_err(json)?;
            (config.model_config(&path)?, Format::GptNeoX)
        }
        "llama" | "mistral" | "qwen2" => {
            let config: LlamaConfig = serde_json::from_value(value).map_err(json)?;
            (config.model_config(&path)?, Format::Llama)
        }
        other => return Err(unsupported(&path, "model_type", other, "gpt_neox, llama, mistral, qwen2")),
    };
    Ok(Some(ForeignModel { config: ModelConfig::VanillaTransformer(config), path, format }))
}

/// The non-linearity of that name.
pub(super) fn activation(name: &str, path: &Path) -> Result<Activation, CheckpointError> {
    match name {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        "silu" | "swish" => Ok(Activation::Silu),
        other => {
            let supported = "gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu, silu";
            Err(unsupported(path, "hidden_act", other, supported))
        }
    }
}

/// The rotary settings of newer versions; an error if positions are scaled, which this library cannot do.
pub(super) fn rope(
    scaling: Option<&Value>,
    parameters: Option<&RopeParameters>,
    path: &Path,
) -> Result<RopeParameters, CheckpointError> {
    if let Some(scaling) = scaling {
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str);
        if kind != Some("default") {
            return Err(unsupported(path, "rope_scaling", &scaling.to_string(), "null or the type \"default\""));
        }
    }
    let parameters = parameters.cloned().unwrap_or_default();
    match &parameters.rope_type {
        Some(kind) if kind != "default" => Err(unsupported(path, "rope_parameters.rope_type", kind, "default")),
        _ => Ok(parameters),
    }
}

pub(super) fn unsupported(path: &Path, field: &'static str, value: &str, supported: &'static str) -> CheckpointError {
    CheckpointError::Unsupported { path: path.into(), field, value: value.into(), supported }
}
