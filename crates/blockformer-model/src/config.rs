//! The configuration of a model, the `config.json` of a model directory.

use std::path::{Path, PathBuf};

use blockformer_block_decoder::BlockDecoder;
use blockformer_embedder::{Embedder, EmbedderConfig, EmbedderSizes};
use blockformer_nn::{ConfigError, TransformerConfig};
use blockformer_token_decoder::{TokenDecoder, TokenDecoderConfig, TokenDecoderSizes, Vocabulary};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::reference::{self, ForeignModel, Format};
use crate::{BlockLayout, BlockTransformer, CONFIG_FILE, CheckpointError, ContextEnds, VanillaTransformer};

/// More token ids than any tokenizer has, and fewer than 32-bit tensors can hold.
const MAX_VOCAB_SIZE: f64 = 16_777_216.0;

/// A longer context than any model has, and short enough for products of sizes not to overflow.
const MAX_LENGTH: f64 = 1_073_741_824.0;

/// Either kind of model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "architecture", rename_all = "snake_case")]
pub enum ModelConfig {
    /// A [`BlockTransformer`].
    BlockTransformer(BlockTransformerConfig),
    /// A [`VanillaTransformer`].
    VanillaTransformer(VanillaTransformerConfig),
}

/// Configuration of a [`BlockTransformer`] made of this family's parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockTransformerConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Tokens a block, L_B.
    pub block_length: usize,
    /// Embeddings a block is turned into, 1 in the paper's main models.
    pub n_embedding_tokens: usize,
    /// Context in tokens, a multiple of `block_length`.
    pub max_length: usize,
    /// The token that stands where nothing is; masked.
    pub pad_token_id: u32,
    /// The token that ends a document, if the vocabulary has one.
    pub eos_token_id: Option<u32>,
    /// Whether documents began with random padding in training, so that the model knows blocks padded on the left.
    pub random_pad_first_block: bool,
    /// Whether documents were padded to the block boundary in training.
    pub pad_to_block_boundary: bool,
    /// Blocks whose context embeddings a block is decoded from: 1 in the paper, more for a prefix token decoder that
    /// sees the last few.
    #[serde(default = "one")]
    pub context_blocks: usize,
    /// Whether the first block is predicted too, from a learned embedding that stands before it; not so in the paper.
    /// In training it stands before every sample, most of which begin in the middle of a document.
    #[serde(default)]
    pub predict_first_block: bool,
    /// Blocks of tokens to block embeddings.
    pub embedder: EmbedderConfig,
    /// Attention over block embeddings. Its `max_positions` counts embedding tokens.
    pub block_decoder: TransformerConfig,
    /// Context embeddings to tokens.
    pub token_decoder: TokenDecoderConfig,
}

fn one() -> usize {
    1
}

/// Configuration of a [`VanillaTransformer`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VanillaTransformerConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Context in tokens.
    pub max_length: usize,
    /// The token that ends a document, if the vocabulary has one.
    pub eos_token_id: Option<u32>,
    /// Whether the output projection is the embedding table.
    pub tied_embeddings: bool,
    /// The layers.
    pub transformer: TransformerConfig,
}

impl BlockTransformerConfig {
    /// Blocks that fit the context.
    pub fn max_blocks(&self) -> usize {
        self.max_length / self.block_length.max(1)
    }

    /// How ids are cut into blocks.
    pub fn layout(&self) -> BlockLayout {
        BlockLayout {
            block_length: self.block_length,
            max_length: self.max_length,
            pad_token_id: self.pad_token_id,
            vocab_size: self.vocab_size,
            predict_first_block: self.predict_first_block,
        }
    }

    /// The sizes the embedder must have.
    pub fn embedder_sizes(&self) -> EmbedderSizes {
        EmbedderSizes {
            vocab_size: self.vocab_size,
            block_length: self.block_length,
            n_embedding_tokens: self.n_embedding_tokens,
            d_model: self.block_decoder.d_model,
        }
    }

    /// The sizes the token decoder must have.
    pub fn token_decoder_sizes(&self) -> TokenDecoderSizes {
        TokenDecoderSizes {
            vocab_size: self.vocab_size,
            block_length: self.block_length,
            n_embedding_tokens: self.n_embedding_tokens,
            context_blocks: self.context_blocks,
            d_context: self.block_decoder.d_model,
        }
    }

    /// Initialises the model with random weights, which are only drawn when first used.
    ///
    /// # Errors
    /// A [`ConfigError`] that names what does not fit together.
    pub fn init(&self, device: &Device) -> Result<BlockTransformer, ConfigError> {
        self.validate()?;
        let embedder = self.embedder.try_init(&self.embedder_sizes(), device)?;
        let token_decoder = self.token_decoder.try_init(&self.token_decoder_sizes(), device)?;
        self.init_with(embedder, token_decoder, device)
    }

    /// Initialises the model around an embedder and a token decoder of your own; the configuration's `embedder` and
    /// `token_decoder` are not looked at.
    ///
    /// # Errors
    /// A [`ConfigError`] if a part does not agree with the configuration's sizes.
    pub fn init_with<E: Embedder, T: TokenDecoder>(
        &self,
        embedder: E,
        token_decoder: T,
        device: &Device,
    ) -> Result<BlockTransformer<E, T>, ConfigError> {
        self.validate()?;
        let (e, want_e) = (embedder.sizes(), self.embedder_sizes());
        let (t, want_t) = (token_decoder.sizes(), self.token_decoder_sizes());
        for (field, got, want_field, want) in [
            ("embedder.vocab_size", e.vocab_size, "vocab_size", want_e.vocab_size),
            ("embedder.block_length", e.block_length, "block_length", want_e.block_length),
            ("embedder.n_embedding_tokens", e.n_embedding_tokens, "n_embedding_tokens", want_e.n_embedding_tokens),
            ("embedder.d_model", e.d_model, "block_decoder.d_model", want_e.d_model),
            ("token_decoder.vocab_size", t.vocab_size, "vocab_size", want_t.vocab_size),
            ("token_decoder.block_length", t.block_length, "block_length", want_t.block_length),
            ("token_decoder.n_embedding_tokens", t.n_embedding_tokens, "n_embedding_tokens", want_t.n_embedding_tokens),
            ("token_decoder.context_blocks", t.context_blocks, "context_blocks", want_t.context_blocks),
            ("token_decoder.d_context", t.d_context, "block_decoder.d_model", want_t.d_context),
        ] {
            ConfigError::equal(field, got, want_field, want)?;
        }
        let shape = [self.n_embedding_tokens, self.block_decoder.d_model];
        let block_decoder = BlockDecoder::new(&self.block_decoder, self.n_embedding_tokens, device);
        let context_ends = ContextEnds::new(shape, self.context_blocks, self.predict_first_block, device);
        Ok(BlockTransformer { embedder, block_decoder, context_ends, token_decoder, layout: self.layout() })
    }

    fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::positive("vocab_size", self.vocab_size)?;
        ConfigError::positive("block_length", self.block_length)?;
        ConfigError::positive("n_embedding_tokens", self.n_embedding_tokens)?;
        ConfigError::positive("max_length", self.max_length)?;
        ConfigError::positive("context_blocks", self.context_blocks)?;
        let sizes = [
            ("block_length", self.block_length),
            ("n_embedding_tokens", self.n_embedding_tokens),
            ("context_blocks", self.context_blocks),
        ];
        sizes.into_iter().try_for_each(|(field, value)| ConfigError::bounded(field, value))?;
        ConfigError::in_range("vocab_size", self.vocab_size as f64, 1.0, MAX_VOCAB_SIZE)?;
        ConfigError::in_range("max_length", self.max_length as f64, 1.0, MAX_LENGTH)?;
        ConfigError::multiple("max_length", self.max_length, "block_length", self.block_length)?;
        self.block_decoder.validate()?;
        check_token("pad_token_id", Some(self.pad_token_id), self.vocab_size)?;
        check_token("eos_token_id", self.eos_token_id, self.vocab_size)?;
        let start = usize::from(self.predict_first_block);
        let needed_by = if self.predict_first_block { "max_length with predict_first_block" } else { "max_length" };
        let positions = (self.max_blocks() + start) * self.n_embedding_tokens;
        self.block_decoder.check_positions("block_decoder.max_positions", positions, needed_by)
    }
}

impl VanillaTransformerConfig {
    /// Initialises the model with random weights, which are only drawn when first used.
    ///
    /// # Errors
    /// A [`ConfigError`] that names what does not fit together.
    pub fn init(&self, device: &Device) -> Result<VanillaTransformer, ConfigError> {
        ConfigError::positive("vocab_size", self.vocab_size)?;
        ConfigError::positive("max_length", self.max_length)?;
        ConfigError::in_range("vocab_size", self.vocab_size as f64, 1.0, MAX_VOCAB_SIZE)?;
        ConfigError::in_range("max_length", self.max_length as f64, 1.0, MAX_LENGTH)?;
        self.transformer.validate()?;
        check_token("eos_token_id", self.eos_token_id, self.vocab_size)?;
        self.transformer.check_positions("transformer.max_positions", self.max_length, "max_length")?;
        let TransformerConfig { d_model, initializer_range, .. } = self.transformer;
        let vocabulary = Vocabulary::new(self.vocab_size, d_model, self.tied_embeddings, initializer_range, device);
        let layout = BlockLayout {
            block_length: 1,
            max_length: self.max_length,
            pad_token_id: self.eos_token_id.unwrap_or(0),
            vocab_size: self.vocab_size,
            predict_first_block: false,
        };
        Ok(VanillaTransformer { vocabulary, transformer: self.transformer.init(device), layout })
    }
}

impl ModelConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// A [`CheckpointError`] that names the file, and where in it the fault lies.
    pub fn load(path: &Path) -> Result<Self, CheckpointError> {
        let text = std::fs::read_to_string(path).map_err(|source| CheckpointError::io("read", path, source))?;
        serde_json::from_str(&text).map_err(|source| CheckpointError::Json { path: path.into(), source })
    }

    /// The configuration of a model directory of any kind that [`AnyModel::load`](crate::AnyModel::load) opens; its
    /// weights are not read.
    ///
    /// # Errors
    /// A [`CheckpointError`] if there is no such directory, or no configuration in it that can be read.
    pub fn of_directory(directory: &Path) -> Result<Self, CheckpointError> {
        Self::find(directory).map(|(config, _, _)| config)
    }

    /// The configuration of a model directory, the file it stands in, and whose names its tensors have if it is a
    /// foreign one.
    pub(crate) fn find(directory: &Path) -> Result<(Self, PathBuf, Option<Format>), CheckpointError> {
        if !directory.is_dir() {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(CheckpointError::io("open model directory", directory, source));
        }
        if let Some(ForeignModel { config, path, format }) = reference::find_config(directory)? {
            return Ok((config, path, Some(format)));
        }
        let path = directory.join(CONFIG_FILE);
        Ok((Self::load(&path)?, path, None))
    }

    /// The configuration as JSON.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("a configuration is always valid JSON");
        json.push('\n');
        json
    }

    /// Number of token ids.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::BlockTransformer(config) => config.vocab_size,
            Self::VanillaTransformer(config) => config.vocab_size,
        }
    }

    /// The token that ends a document.
    pub fn eos_token_id(&self) -> Option<u32> {
        match self {
            Self::BlockTransformer(config) => config.eos_token_id,
            Self::VanillaTransformer(config) => config.eos_token_id,
        }
    }

    /// Context in tokens.
    pub fn max_length(&self) -> usize {
        match self {
            Self::BlockTransformer(config) => config.max_length,
            Self::VanillaTransformer(config) => config.max_length,
        }
    }

    /// Tokens a block; 1 for a vanilla transformer.
    pub fn block_length(&self) -> usize {
        match self {
            Self::BlockTransformer(config) => config.block_length,
            Self::VanillaTransformer(_) => 1,
        }
    }
}

fn check_token(field: &'static str, id: Option<u32>, vocab_size: usize) -> Result<(), ConfigError> {
    id.map_or(Ok(()), |id| ConfigError::in_range(field, f64::from(id), 0.0, vocab_size as f64 - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets;

    #[test]
    fn configurations_survive_json() {
        let block = ModelConfig::BlockTransformer(presets::block("block_main_b4_85").unwrap());
        let vanilla = ModelConfig::VanillaTransformer(presets::vanilla("vanilla_70").unwrap());
        for config in [block, vanilla] {
            assert_eq!(serde_json::from_str::<ModelConfig>(&config.to_json()).unwrap(), config);
        }
    }

    #[test]
    fn unknown_fields_and_architectures_are_refused() {
        let json = ModelConfig::BlockTransformer(presets::block("block_main_b4_5").unwrap()).to_json();
        let refused = |json: String| serde_json::from_str::<ModelConfig>(&json).unwrap_err().to_string();
        assert!(refused(json.replace("\"block_length\"", "\"block_lenght\"")).contains("block_lenght"));
        assert!(refused(json.replace("\"lookup\"", "\"hashed\"")).contains("hashed"));
        assert!(refused(json.replace("\"block_transformer\"", "\"mamba\"")).contains("mamba"));
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let device = Device::flex();
        let good = presets::block("block_main_b4_5").unwrap();
        let message = |config: BlockTransformerConfig| config.init(&device).unwrap_err().to_string();
        let bad = BlockTransformerConfig { max_length: 2046, ..good.clone() };
        assert_eq!(message(bad), "max_length is 2046, which is not a multiple of block_length (4)");
        let bad = BlockTransformerConfig { pad_token_id: 60_000, ..good.clone() };
        assert_eq!(message(bad), "pad_token_id is 60000, expected a number from 0 to 50303");
        let bad = BlockTransformerConfig { max_length: 16_384, ..good };
        assert_eq!(message(bad), "block_decoder.max_positions is 2048, but max_length needs 4096");
    }
}
