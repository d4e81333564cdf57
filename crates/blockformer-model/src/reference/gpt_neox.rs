//! Hugging Face GPT-NeoX directories (Pythia).

use std::path::Path;

use blockformer_nn::{ConfigError, Residual, RotaryConfig, TransformerConfig};
use serde::Deserialize;

use super::{GPT_NEOX_MODULES, Layout, RopeParameters, Translation, hugging_face, translate_stack};
use crate::{CheckpointError, VanillaTransformerConfig};

/// The fields of a Hugging Face `GPTNeoXConfig` that matter here, with its defaults.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct GptNeoXConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Inner features of the feed-forward network.
    pub intermediate_size: usize,
    /// Its non-linearity.
    pub hidden_act: String,
    /// Rotated share of each head.
    #[serde(alias = "partial_rotary_factor")]
    pub rotary_pct: f64,
    /// Base of the rotary wavelengths.
    #[serde(alias = "rope_theta")]
    pub rotary_emb_base: f64,
    /// Context in tokens.
    pub max_position_embeddings: usize,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
    /// Parallel or sequential residual.
    pub use_parallel_residual: bool,
    /// Biases in attention.
    pub attention_bias: bool,
    /// Whether the output projection is the embedding table.
    pub tie_word_embeddings: bool,
    /// The token that ends a document.
    pub eos_token_id: Option<u32>,
    /// A scaling of rotary positions; not supported.
    pub rope_scaling: Option<serde_json::Value>,
    /// The rotary settings of newer versions, which go before the others.
    pub rope_parameters: Option<RopeParameters>,
}

impl Default for GptNeoXConfig {
    /// Hugging Face's defaults (GPT-NeoX-20B).
    fn default() -> Self {
        Self {
            vocab_size: 50_432,
            hidden_size: 6144,
            num_hidden_layers: 44,
            num_attention_heads: 64,
            intermediate_size: 24_576,
            hidden_act: "gelu".into(),
            rotary_pct: 0.25,
            rotary_emb_base: 10_000.0,
            max_position_embeddings: 2048,
            initializer_range: 0.02,
            layer_norm_eps: 1e-5,
            use_parallel_residual: true,
            attention_bias: true,
            tie_word_embeddings: false,
            eos_token_id: Some(2),
            rope_scaling: None,
            rope_parameters: None,
        }
    }
}

impl GptNeoXConfig {
    /// The layers, or the field that this library cannot do.
    pub(super) fn transformer(&self, path: &Path) -> Result<TransformerConfig, CheckpointError> {
        let activation = hugging_face::activation(&self.hidden_act, path)?;
        let rope = hugging_face::rope(self.rope_scaling.as_ref(), self.rope_parameters.as_ref(), path)?;
        let rotary = RotaryConfig {
            fraction: rope.partial_rotary_factor.unwrap_or(self.rotary_pct),
            base: rope.rope_theta.unwrap_or(self.rotary_emb_base),
        };
        ConfigError::multiple("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
            .map_err(|source| CheckpointError::Config { path: path.into(), source })?;
        Ok(TransformerConfig {
            d_ff: self.intermediate_size,
            activation,
            norm_eps: self.layer_norm_eps,
            residual: if self.use_parallel_residual { Residual::Parallel } else { Residual::Sequential },
            rotary: Some(rotary),
            qkv_bias: self.attention_bias,
            output_bias: self.attention_bias,
            max_positions: self.max_position_embeddings,
            initializer_range: self.initializer_range,
            ..TransformerConfig::gpt_neox(self.hidden_size, self.num_hidden_layers, self.num_attention_heads)
        })
    }

    /// As a vanilla transformer.
    ///
    /// # Errors
    /// [`CheckpointError::Unsupported`] naming a field this library cannot do.
    pub fn model_config(&self, path: &Path) -> Result<VanillaTransformerConfig, CheckpointError> {
        Ok(VanillaTransformerConfig {
            vocab_size: self.vocab_size,
            max_length: self.max_position_embeddings,
            eos_token_id: self.eos_token_id,
            tied_embeddings: self.tie_word_embeddings,
            transformer: self.transformer(path)?,
        })
    }
}

/// The names of all modules of a GPT-NeoX language model below `prefix`.
pub(super) fn stems(prefix: &str, n_layers: usize) -> Vec<String> {
    let layers =
        (0..n_layers).flat_map(|i| GPT_NEOX_MODULES.map(|(module, _)| format!("gpt_neox.layers.{i}.{module}")));
    let others = ["gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out"].map(String::from);
    layers.chain(others).map(|stem| format!("{prefix}{stem}")).collect()
}

/// Where a tensor of a Hugging Face GPT-NeoX checkpoint belongs.
pub(super) fn translate_vanilla(name: &str, config: &TransformerConfig) -> Translation {
    match name {
        "gpt_neox.embed_in.weight" => Translation::Parameter("vocabulary.embedding.weight".into(), Layout::Same),
        "embed_out.weight" => Translation::Parameter("vocabulary.output.weight".into(), Layout::Same),
        _ => name.strip_prefix("gpt_neox.").map_or(Translation::Unknown, |rest| translate_stack(rest, config)),
    }
}
