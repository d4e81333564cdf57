//! Trainer files and checkpoints of the authors' implementation.

use std::path::Path;

use blockformer_embedder::{ClsTokens, EmbedderConfig, EncoderConfig, LookupConfig, Projection};
use blockformer_nn::TransformerConfig;
use blockformer_token_decoder::{CrossAttentionConfig, Expansion, PrefixConfig, SummationConfig, TokenDecoderConfig};
use serde::Deserialize;
use serde_json::Value;

use super::{GptNeoXConfig, Layout, Translation, gpt_neox, roberta, t5, translate_stack};
use crate::presets::{EOS_TOKEN_ID, MAX_LENGTH, head_dim};
use crate::{BlockTransformerConfig, CheckpointError};

/// The fields of a trainer file that describe the model and its losses. Others (logging, paths, schedules) are not
/// looked at.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TrainerFile {
    /// Tokens a block.
    pub block_length: usize,
    /// Context in tokens.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// Random padding in front of documents; the authors' default is true.
    #[serde(default)]
    pub random_pad_first_block: Option<bool>,
    /// Padding behind documents; the authors' default is true.
    #[serde(default)]
    pub pad_to_block_boundary: Option<bool>,
    #[serde(default)]
    block_split: Option<BlockSplitSection>,
    embedder: EmbedderSection,
    block_decoder: DecoderSection,
    token_decoder: TokenDecoderSection,
    /// The loss on predicted block embeddings.
    #[serde(default)]
    pub block_decoding_loss: Option<BlockDecodingLoss>,
    /// The loss on tokens decoded from their own block's embedding.
    #[serde(default)]
    pub auto_encoding_loss: Option<AutoEncodingLoss>,
}

fn default_max_length() -> usize {
    MAX_LENGTH
}

fn one() -> f64 {
    1.0
}

/// The loss on predicted block embeddings.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BlockDecodingLoss {
    /// Whether it is used.
    pub enable: bool,
    /// Which.
    #[serde(default, rename = "type")]
    pub kind: BlockDecodingLossKind,
    /// Its weight in the sum.
    #[serde(default = "one")]
    pub weight: f64,
}

/// Which loss on predicted block embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockDecodingLossKind {
    /// Mean squared error.
    Mse,
    /// Contrast with the other blocks of the batch.
    #[default]
    Contrastive,
}

/// The loss on tokens decoded from their own block's embedding.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct AutoEncodingLoss {
    /// Whether it is used.
    pub enable: bool,
    /// Its weight in the sum.
    #[serde(default = "one")]
    pub weight: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct BlockSplitSection {
    distribution: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct EmbedderSection {
    cls: String,
    n_embedding_tokens: usize,
    #[serde(default)]
    projection_method: Option<String>,
    #[serde(default)]
    n_cls_tokens: Option<usize>,
    #[serde(default)]
    config: Value,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct DecoderSection {
    cls: String,
    #[serde(default)]
    config: Value,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct TokenDecoderSection {
    cls: String,
    decoding_strategy: String,
    #[serde(default)]
    expansion_method: Option<String>,
    #[serde(default)]
    expansion_ratio: Option<usize>,
    #[serde(default)]
    config: Value,
}

impl TrainerFile {
    /// Reads a trainer file, YAML or JSON by its name.
    ///
    /// # Errors
    /// A [`CheckpointError`] that names the file, and where in it the fault lies.
    pub fn load(path: &Path) -> Result<Self, CheckpointError> {
        let text = std::fs::read_to_string(path).map_err(|source| CheckpointError::io("read", path, source))?;
        if path.extension().is_some_and(|extension| extension == "json") {
            return serde_json::from_str(&text).map_err(|source| CheckpointError::Json { path: path.into(), source });
        }
        serde_norway::from_str(&text).map_err(|source| CheckpointError::Yaml { path: path.into(), source })
    }

    /// The model it describes. Token id 0, `<|endoftext|>` of Pythia's tokenizer, ends documents and pads, as in the
    /// authors' code.
    ///
    /// # Errors
    /// [`CheckpointError::Unsupported`] naming a part this library does not have.
    pub fn model_config(&self, path: &Path) -> Result<BlockTransformerConfig, CheckpointError> {
        let block_decoder = stack("block_decoder.cls", &self.block_decoder.cls, &self.block_decoder.config, path)?;
        let token_decoder = self.token_decoder(path)?;
        if let Some(split) = self.block_split.as_ref().filter(|split| split.distribution != "fixed") {
            return Err(unsupported(path, "block_split.distribution", &split.distribution, "fixed"));
        }
        let max_length = self.max_length / self.block_length.max(1) * self.block_length;
        Ok(BlockTransformerConfig {
            vocab_size: self.vocab_size(path)?,
            block_length: self.block_length,
            n_embedding_tokens: self.embedder.n_embedding_tokens,
            max_length,
            pad_token_id: EOS_TOKEN_ID,
            eos_token_id: Some(EOS_TOKEN_ID),
            random_pad_first_block: self.random_pad_first_block.unwrap_or(true),
            pad_to_block_boundary: self.pad_to_block_boundary.unwrap_or(true),
            context_blocks: 1,
            predict_first_block: false,
            embedder: self.embedder(&block_decoder, path)?,
            block_decoder,
            token_decoder,
        })
    }

    fn vocab_size(&self, path: &Path) -> Result<usize, CheckpointError> {
        self.embedder.config.get("vocab_size").and_then(Value::as_u64).map(|size| size as usize).ok_or_else(|| {
            CheckpointError::Unsupported {
                path: path.into(),
                field: "embedder.config.vocab_size",
                value: "(none)".into(),
                supported: "a number",
            }
        })
    }

    fn embedder(&self, block_decoder: &TransformerConfig, path: &Path) -> Result<EmbedderConfig, CheckpointError> {
        let projection = match (self.embedder.projection_method.as_deref(), self.embedder.cls.as_str()) {
            (None, "lookup") | (Some("concat"), _) => Projection::Concat,
            (None, _) | (Some("projection_layer"), _) => Projection::ProjectionLayer,
            (Some(other), _) => {
                return Err(unsupported(path, "embedder.projection_method", other, "concat, projection_layer"));
            }
        };
        let size = |key: &str| self.embedder.config.get(key).and_then(Value::as_u64).map(|size| size as usize);
        match self.embedder.cls.as_str() {
            "lookup" => {
                let tokens = self.block_length / self.embedder.n_embedding_tokens.max(1);
                let d_embedding = size("hidden_size").unwrap_or(block_decoder.d_model / tokens.max(1));
                Ok(EmbedderConfig::Lookup(LookupConfig { d_embedding, projection }))
            }
            cls @ ("roberta" | "roberta_cls") => {
                let d_model = size("hidden_size").unwrap_or(768);
                let n_heads = size("num_attention_heads").unwrap_or(d_model / head_dim(d_model));
                let n_layers = size("num_hidden_layers").unwrap_or(12);
                let mut config = EncoderConfig { projection, ..EncoderConfig::roberta(d_model, n_layers, n_heads) };
                config.transformer.d_ff = size("intermediate_size").unwrap_or(4 * d_model);
                // RoBERTa's `<s>` has id 0.
                let cls_tokens = ClsTokens { n: self.embedder.n_cls_tokens.unwrap_or(1), token_id: 0 };
                config.cls = (cls == "roberta_cls").then_some(cls_tokens);
                Ok(EmbedderConfig::Encoder(config))
            }
            other => Err(unsupported(path, "embedder.cls", other, "lookup, roberta, roberta_cls")),
        }
    }

    fn token_decoder(&self, path: &Path) -> Result<TokenDecoderConfig, CheckpointError> {
        let section = &self.token_decoder;
        if section.cls == "t5" {
            return self.t5(path);
        }
        let transformer = stack("token_decoder.cls", &section.cls, &section.config, path)?;
        let expansion = self.expansion(path)?;
        let tied_embeddings = false;
        match (section.decoding_strategy.as_str(), section.expansion_ratio) {
            ("prefix", Some(expansion_ratio)) => Ok(TokenDecoderConfig::Prefix(PrefixConfig {
                transformer,
                expansion,
                expansion_ratio,
                tied_embeddings,
            })),
            ("prefix", None) => {
                Err(unsupported(path, "token_decoder.expansion_ratio", "null", "a number, for a prefix decoder"))
            }
            ("summation", _) => Ok(TokenDecoderConfig::Summation(SummationConfig {
                transformer,
                expansion,
                start_token_id: EOS_TOKEN_ID,
                tied_embeddings,
            })),
            (other, _) => Err(unsupported(path, "token_decoder.decoding_strategy", other, "prefix, summation")),
        }
    }
}

impl TrainerFile {
    fn expansion(&self, path: &Path) -> Result<Expansion, CheckpointError> {
        match self.token_decoder.expansion_method.as_deref() {
            Some("expansion_layer") => Ok(Expansion::Layer),
            None => Ok(Expansion::Repeat),
            Some(other) => Err(unsupported(path, "token_decoder.expansion_method", other, "expansion_layer, null")),
        }
    }

    /// T5's decoder, on top of the configuration of T5 small.
    fn t5(&self, path: &Path) -> Result<TokenDecoderConfig, CheckpointError> {
        let section = &self.token_decoder;
        if section.decoding_strategy != "cross_attention" {
            let strategy = &section.decoding_strategy;
            return Err(unsupported(path, "token_decoder.decoding_strategy", strategy, "cross_attention, for t5"));
        }
        let size =
            |key: &str, default: usize| section.config.get(key).and_then(Value::as_u64).map_or(default, |n| n as usize);
        Ok(TokenDecoderConfig::CrossAttention(CrossAttentionConfig {
            d_model: size("d_model", 512),
            n_layers: size("num_decoder_layers", size("num_layers", 6)),
            n_heads: size("num_heads", 8),
            head_dim: size("d_kv", 64),
            d_ff: size("d_ff", 2048),
            norm_eps: 1e-6,
            expansion: self.expansion(path)?,
            expansion_ratio: section.expansion_ratio.unwrap_or(self.block_length),
            start_token_id: section.config.get("bos_token_id").and_then(Value::as_u64).map_or(T5_EOS, |id| id as u32),
            relative_buckets: 32,
            relative_max_distance: 128,
        }))
    }
}

/// T5's end of text, which the authors' code also begins blocks with.
const T5_EOS: u32 = 1;

fn unsupported(path: &Path, field: &'static str, value: &str, supported: &'static str) -> CheckpointError {
    CheckpointError::Unsupported { path: path.into(), field, value: value.into(), supported }
}

/// A `config` section on top of Pythia 410M's configuration, with the authors' defaults for heads and feed-forward.
fn stack(field: &'static str, cls: &str, section: &Value, path: &Path) -> Result<TransformerConfig, CheckpointError> {
    if cls != "gpt-neo-x" {
        return Err(unsupported(path, field, cls, "gpt-neo-x"));
    }
    let mut config = if section.is_null() { Value::Object(serde_json::Map::new()) } else { section.clone() };
    let hidden_size = config.get("hidden_size").and_then(Value::as_u64).unwrap_or(1024);
    let mut default = |key: &str, value: u64| {
        if let Some(object) = config.as_object_mut() {
            object.entry(key).or_insert(value.into());
        }
    };
    default("hidden_size", hidden_size);
    default("vocab_size", 50_304);
    default("num_hidden_layers", 24);
    default("num_attention_heads", hidden_size / head_dim(hidden_size as usize) as u64);
    default("intermediate_size", 4 * hidden_size);
    let config: GptNeoXConfig =
        serde_json::from_value(config).map_err(|source| CheckpointError::Json { path: path.into(), source })?;
    config.transformer(path)
}

/// The names of all modules of an authors' checkpoint.
pub(super) fn stems(config: &BlockTransformerConfig) -> Vec<String> {
    let mut stems = gpt_neox::stems("block_decoder.", config.block_decoder.n_layers);
    stems.extend(["embedder.projection_layer", "token_decoder.expansion_layer"].map(String::from));
    match &config.embedder {
        EmbedderConfig::Encoder(encoder) => stems.extend(roberta::stems(encoder.transformer.n_layers)),
        _ => stems.push("embedder.embeddings".into()),
    }
    match &config.token_decoder {
        TokenDecoderConfig::Prefix(PrefixConfig { transformer, .. })
        | TokenDecoderConfig::Summation(SummationConfig { transformer, .. }) => {
            stems.extend(gpt_neox::stems("token_decoder.", transformer.n_layers));
        }
        TokenDecoderConfig::CrossAttention(decoder) => stems.extend(t5::stems(decoder.n_layers)),
        _ => {}
    }
    stems
}

/// Where a tensor of an authors' checkpoint belongs.
pub(super) fn translate_block(name: &str, config: &BlockTransformerConfig) -> Translation {
    let parameter = |path: String, layout| Translation::Parameter(path, layout);
    let below = |part: &str, translation: Translation| match translation {
        Translation::Parameter(path, layout) => Translation::Parameter(format!("{part}.{path}"), layout),
        other => other,
    };
    if let Some(kind) = name.strip_prefix("embedder.projection_layer.") {
        return parameter(format!("embedder.projection.layer.{kind}"), Layout::Convolution);
    }
    if let Some(kind) = name.strip_prefix("token_decoder.expansion_layer.") {
        return parameter(format!("token_decoder.expansion.layer.{kind}"), Layout::Convolution);
    }
    match name {
        "embedder.embeddings.weight" => parameter("embedder.embedding.weight".into(), Layout::Same),
        "token_decoder.gpt_neox.embed_in.weight" => {
            parameter("token_decoder.vocabulary.embedding.weight".into(), Layout::Same)
        }
        "token_decoder.embed_out.weight" => parameter("token_decoder.vocabulary.output.weight".into(), Layout::Same),
        // The authors build the block decoder on a language model whose own table is never used.
        "block_decoder.gpt_neox.embed_in.weight" => Translation::Ignored,
        _ => {
            if let Some(rest) = name.strip_prefix("block_decoder.gpt_neox.") {
                return below("block_decoder", translate_stack(rest, &config.block_decoder));
            }
            if let (Some(rest), EmbedderConfig::Encoder(encoder)) = (name.strip_prefix("embedder."), &config.embedder) {
                return below("embedder", roberta::translate(rest, &encoder.transformer));
            }
            let (gpt_neox, any) = (name.strip_prefix("token_decoder.gpt_neox."), name.strip_prefix("token_decoder."));
            match (&config.token_decoder, gpt_neox, any) {
                (TokenDecoderConfig::CrossAttention(_), _, Some(rest)) => below("token_decoder", t5::translate(rest)),
                (TokenDecoderConfig::Prefix(PrefixConfig { transformer, .. }), Some(rest), _)
                | (TokenDecoderConfig::Summation(SummationConfig { transformer, .. }), Some(rest), _) => {
                    below("token_decoder", translate_stack(rest, transformer))
                }
                _ => Translation::Unknown,
            }
        }
    }
}
