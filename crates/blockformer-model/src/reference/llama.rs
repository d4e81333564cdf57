//! Hugging Face directories of Llama and the models that share its layers and tensor names: SmolLM2 and TinyLlama
//! (`llama`), Mistral, and Qwen2 with its biases on queries, keys and values.

use std::path::Path;

use blockformer_nn::{ConfigError, RotaryConfig, TransformerConfig};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::hugging_face::{self, unsupported};
use super::{Layout, RopeParameters, Translation};
use crate::{CheckpointError, VanillaTransformerConfig};

/// The models that share Llama's layers, as `model_type` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LlamaFamily {
    /// Biases, if any, on all projections of attention, or of the feed-forward network.
    Llama,
    /// Without biases; attention may reach back only so far.
    Mistral,
    /// Biases on queries, keys and values.
    Qwen2,
}

/// One token or several that end a text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum EosTokenIds {
    /// One.
    One(u32),
    /// Several; the first is taken for the end of documents.
    Several(Vec<u32>),
}

/// The fields of a Hugging Face `LlamaConfig`, `MistralConfig` or `Qwen2Config` that matter here.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct LlamaConfig {
    /// Which of the family.
    pub model_type: LlamaFamily,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Inner features of the feed-forward network.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads; `num_attention_heads` if not given, which only Llama allows.
    pub num_key_value_heads: Option<usize>,
    /// Features of a head; `hidden_size / num_attention_heads` if not given.
    pub head_dim: Option<usize>,
    /// The gate's non-linearity.
    #[serde(default = "silu")]
    pub hidden_act: String,
    /// Context in tokens.
    pub max_position_embeddings: usize,
    /// Standard deviation of initial weights.
    #[serde(default = "initializer_range")]
    pub initializer_range: f64,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// Whether the output projection is the embedding table.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Base of the rotary wavelengths; 10,000 if not given.
    pub rope_theta: Option<f64>,
    /// A scaling of rotary positions; not supported.
    pub rope_scaling: Option<Value>,
    /// The rotary settings of newer versions, which go before the others.
    pub rope_parameters: Option<RopeParameters>,
    /// Whether rotated features are neighbours, not halves of a head; not supported.
    #[serde(default)]
    pub rope_interleaved: bool,
    /// Biases on queries, keys, values and output; Llama only.
    #[serde(default)]
    pub attention_bias: bool,
    /// Biases in the feed-forward network; Llama only.
    #[serde(default)]
    pub mlp_bias: bool,
    /// Tokens that end a text.
    pub eos_token_id: Option<EosTokenIds>,
    /// How many tokens back attention reaches, if not to the beginning: `None` if the field is not there, which for
    /// Mistral means 4,096.
    #[serde(default, deserialize_with = "present")]
    pub sliding_window: Option<Option<usize>>,
    /// Whether Qwen2 uses its window.
    #[serde(default)]
    pub use_sliding_window: bool,
}

fn silu() -> String {
    "silu".into()
}

fn initializer_range() -> f64 {
    0.02
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<usize>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl LlamaConfig {
    /// As a vanilla transformer. Within a window of attention, all tokens see each other as without one: its length is
    /// the model's context here.
    ///
    /// # Errors
    /// [`CheckpointError::Unsupported`] naming a field this library cannot do, [`CheckpointError::Config`] if sizes do
    /// not fit together.
    pub fn model_config(&self, path: &Path) -> Result<VanillaTransformerConfig, CheckpointError> {
        let transformer = self.transformer(path)?;
        transformer.validate().map_err(|source| CheckpointError::Config { path: path.into(), source })?;
        Ok(VanillaTransformerConfig {
            vocab_size: self.vocab_size,
            max_length: transformer.max_positions,
            eos_token_id: match &self.eos_token_id {
                Some(EosTokenIds::One(id)) => Some(*id),
                Some(EosTokenIds::Several(ids)) => ids.first().copied(),
                None => None,
            },
            tied_embeddings: self.tie_word_embeddings,
            transformer,
        })
    }

    fn transformer(&self, path: &Path) -> Result<TransformerConfig, CheckpointError> {
        if self.rope_interleaved {
            return Err(unsupported(path, "rope_interleaved", "true", "false"));
        }
        let n_kv_heads = match (self.num_key_value_heads, self.model_type) {
            (Some(n), _) => n,
            (None, LlamaFamily::Llama) => self.num_attention_heads,
            (None, _) => return Err(unsupported(path, "num_key_value_heads", "(none)", "a number")),
        };
        let head_dim = match self.head_dim {
            Some(head_dim) => head_dim,
            None => {
                let (d_model, n_heads) = (self.hidden_size, self.num_attention_heads);
                ConfigError::multiple("hidden_size", d_model, "num_attention_heads", n_heads)
                    .map_err(|source| CheckpointError::Config { path: path.into(), source })?;
                d_model / n_heads
            }
        };
        let rope = hugging_face::rope(self.rope_scaling.as_ref(), self.rope_parameters.as_ref(), path)?;
        let rotary = RotaryConfig {
            fraction: rope.partial_rotary_factor.unwrap_or(1.0),
            base: rope.rope_theta.or(self.rope_theta).unwrap_or(10_000.0),
        };
        let llama = self.model_type == LlamaFamily::Llama;
        let attention_bias = llama && self.attention_bias;
        let max_positions = self.max_position_embeddings.min(self.window().unwrap_or(usize::MAX));
        Ok(TransformerConfig {
            n_kv_heads,
            head_dim,
            d_ff: self.intermediate_size,
            activation: hugging_face::activation(&self.hidden_act, path)?,
            norm_eps: self.rms_norm_eps,
            rotary: Some(rotary),
            qkv_bias: attention_bias || self.model_type == LlamaFamily::Qwen2,
            output_bias: attention_bias,
            feed_forward_bias: llama && self.mlp_bias,
            max_positions,
            initializer_range: self.initializer_range,
            ..TransformerConfig::llama(self.hidden_size, self.num_hidden_layers, self.num_attention_heads)
        })
    }

    /// How many tokens back attention reaches.
    fn window(&self) -> Option<usize> {
        match self.model_type {
            LlamaFamily::Llama => None,
            LlamaFamily::Mistral => self.sliding_window.unwrap_or(Some(4096)),
            LlamaFamily::Qwen2 => self.sliding_window.flatten().filter(|_| self.use_sliding_window),
        }
    }
}

/// The modules of a layer, and what they are called here.
const MODULES: [(&str, &str); 6] = [
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "feed_forward_norm"),
    ("self_attn.o_proj", "attention.output"),
    ("mlp.gate_proj", "feed_forward.gate"),
    ("mlp.up_proj", "feed_forward.up"),
    ("mlp.down_proj", "feed_forward.down"),
];

/// The projections to values, keys and queries: here one.
const VALUES_KEYS_QUERIES: [&str; 3] = ["self_attn.v_proj", "self_attn.k_proj", "self_attn.q_proj"];

/// The names of all modules of the model; of those that are one here, the one to speak of comes last.
pub(super) fn stems(n_layers: usize) -> Vec<String> {
    let modules = || MODULES.into_iter().map(|(module, _)| module).chain(VALUES_KEYS_QUERIES);
    let layers = (0..n_layers).flat_map(|i| modules().map(move |module| format!("model.layers.{i}.{module}")));
    layers.chain(["model.embed_tokens", "model.norm", "lm_head"].map(String::from)).collect()
}

/// Where a tensor of a checkpoint of the family belongs.
pub(super) fn translate(name: &str, config: &VanillaTransformerConfig) -> Translation {
    let parameter = |path: &str, layout| Translation::Parameter(path.into(), layout);
    match name {
        "model.embed_tokens.weight" => return parameter("vocabulary.embedding.weight", Layout::Same),
        "model.norm.weight" => return parameter("transformer.final_norm.weight", Layout::Same),
        // Some files hold the table a second time.
        "lm_head.weight" if config.tied_embeddings => return Translation::Ignored,
        "lm_head.weight" => return parameter("vocabulary.output.weight", Layout::Same),
        _ => {}
    }
    let Some((index, rest)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        return Translation::Unknown;
    };
    if rest == "self_attn.rotary_emb.inv_freq" {
        return Translation::Ignored; // a table that old versions wrote
    }
    let Some((module, kind @ ("weight" | "bias"))) = rest.rsplit_once('.') else { return Translation::Unknown };
    if let Some((_, ours)) = MODULES.iter().find(|(theirs, _)| *theirs == module) {
        return parameter(&format!("transformer.layers.{index}.{ours}.{kind}"), Layout::Same);
    }
    match rows(module, &config.transformer) {
        Some(layout) => parameter(&format!("transformer.layers.{index}.attention.qkv.{kind}"), layout),
        None => Translation::Unknown,
    }
}

/// Which rows of the fused projection a module is.
fn rows(module: &str, config: &TransformerConfig) -> Option<Layout> {
    let (queries, keys) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    let (offset, rows) = match module {
        "self_attn.q_proj" => (0, queries),
        "self_attn.k_proj" => (queries, keys),
        "self_attn.v_proj" => (queries + keys, keys),
        _ => return None,
    };
    Some(Layout::Rows { offset, rows, total: queries + 2 * keys })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// SmolLM2-135M's configuration, with some fields replaced.
    fn config(replaced: Value) -> Result<VanillaTransformerConfig, CheckpointError> {
        let mut value = json!({
            "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_act": "silu",
            "max_position_embeddings": 8192, "initializer_range": 0.02, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": true, "rope_theta": 100_000.0, "rope_scaling": null, "attention_bias": false,
            "mlp_bias": false, "eos_token_id": 2
        });
        for (key, field) in replaced.as_object().expect("an object") {
            value[key] = field.clone();
        }
        let config: LlamaConfig = serde_json::from_value(value).expect("a configuration");
        config.model_config(Path::new("config.json"))
    }

    #[test]
    fn the_context_is_the_window_of_attention() {
        let length = |replaced| config(replaced).unwrap().max_length;
        assert_eq!(length(json!({})), 8192);
        assert_eq!(length(json!({"model_type": "mistral"})), 4096, "Mistral's own default");
        assert_eq!(length(json!({"model_type": "mistral", "sliding_window": null})), 8192);
        assert_eq!(length(json!({"model_type": "mistral", "sliding_window": 1024})), 1024);
        assert_eq!(length(json!({"model_type": "qwen2", "sliding_window": 1024})), 8192);
        assert_eq!(length(json!({"model_type": "qwen2", "sliding_window": 1024, "use_sliding_window": true})), 1024);
    }

    #[test]
    fn biases_are_those_of_the_model_type() {
        let biases = |replaced| {
            let TransformerConfig { qkv_bias, output_bias, feed_forward_bias, .. } =
                config(replaced).unwrap().transformer;
            [qkv_bias, output_bias, feed_forward_bias]
        };
        assert_eq!(biases(json!({})), [false, false, false]);
        assert_eq!(biases(json!({"attention_bias": true})), [true, true, false]);
        assert_eq!(biases(json!({"mlp_bias": true})), [false, false, true]);
        assert_eq!(biases(json!({"model_type": "qwen2"})), [true, false, false]);
    }

    #[test]
    fn old_and_new_spellings_are_understood() {
        let parsed = config(json!({
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "eos_token_id": [7, 8], "head_dim": 32,
            "rope_scaling": {"type": "default"}, "num_key_value_heads": null
        }));
        let parsed = parsed.unwrap();
        assert_eq!(parsed.transformer.rotary, Some(RotaryConfig { fraction: 1.0, base: 5000.0 }));
        assert_eq!((parsed.eos_token_id, parsed.transformer.head_dim, parsed.transformer.n_kv_heads), (Some(7), 32, 9));
    }

    #[test]
    fn what_this_library_cannot_do_is_named() {
        let refusal = |replaced| config(replaced).unwrap_err().to_string();
        let scaling = json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}});
        assert!(refusal(scaling).contains("rope_scaling is \"{\\\"factor\\\":8.0,\\\"rope_type\\\":\\\"llama3\\\"}\""));
        assert!(refusal(json!({"rope_parameters": {"rope_type": "yarn"}})).contains("rope_parameters.rope_type"));
        assert!(refusal(json!({"rope_interleaved": true})).contains("rope_interleaved is \"true\""));
        assert!(refusal(json!({"hidden_act": "mish"})).contains("hidden_act is \"mish\""));
        assert!(
            refusal(json!({"model_type": "qwen2", "num_key_value_heads": null})).contains("num_key_value_heads is")
        );
        assert_eq!(
            refusal(json!({"num_attention_heads": 7})),
            "config.json: hidden_size is 576, which is not a multiple of num_attention_heads (7)"
        );
        assert!(refusal(json!({"num_key_value_heads": 2})).contains("n_heads is 9, which is not a multiple"));
    }
}
