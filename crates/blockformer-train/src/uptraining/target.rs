//! The configuration of the Block Transformer that a vanilla transformer can become.

use blockformer_embedder::{EmbedderConfig, LookupConfig, Projection};
use blockformer_model::{BlockTransformerConfig, VanillaTransformerConfig};
use blockformer_nn::TransformerConfig;
use blockformer_token_decoder::{Expansion, PrefixConfig, TokenDecoderConfig};

use super::{LayerMethod, UptrainingError};

/// What [`target_config`] is to decide freely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetSizes {
    /// Tokens a block.
    pub block_length: usize,
    /// Context in tokens; the vanilla transformer's if not given, cut to whole blocks.
    pub max_length: Option<usize>,
    /// Layers of the block decoder. If not given: half of the vanilla layers, or for [`LayerMethod::Duplicate`] all.
    pub block_layers: Option<usize>,
    /// Layers of the token decoder. If not given: the rest for [`LayerMethod::Partition`], else as `block_layers`.
    pub token_layers: Option<usize>,
    /// Positions of the prefix.
    pub expansion_ratio: usize,
}

impl Default for TargetSizes {
    /// Blocks of four tokens and a prefix of two, as in the paper's uptraining.
    fn default() -> Self {
        Self { block_length: 4, max_length: None, block_layers: None, token_layers: None, expansion_ratio: 2 }
    }
}

/// The Block Transformer a vanilla transformer becomes if nothing else is asked for: a lookup embedder with a
/// projection, and a prefix token decoder, of the vanilla transformer's width and layers. Padding is the token that
/// ends documents.
///
/// # Errors
/// [`UptrainingError::Layers`] if the method cannot fill the numbers of layers.
pub fn target_config(
    vanilla: &VanillaTransformerConfig,
    method: LayerMethod,
    sizes: &TargetSizes,
) -> Result<BlockTransformerConfig, UptrainingError> {
    let (block_layers, token_layers) = layers(vanilla.transformer.n_layers, method, sizes);
    method.sources(vanilla.transformer.n_layers, block_layers, token_layers)?;
    let block_length = sizes.block_length.max(1);
    let blocks = sizes.max_length.unwrap_or(vanilla.max_length) / block_length;
    let stack = |n_layers, max_positions| TransformerConfig { n_layers, max_positions, ..vanilla.transformer.clone() };
    let d_embedding = vanilla.transformer.d_model;
    Ok(BlockTransformerConfig {
        vocab_size: vanilla.vocab_size,
        block_length: sizes.block_length,
        n_embedding_tokens: 1,
        max_length: blocks * block_length,
        pad_token_id: vanilla.eos_token_id.unwrap_or(0),
        eos_token_id: vanilla.eos_token_id,
        random_pad_first_block: true,
        pad_to_block_boundary: true,
        context_blocks: 1,
        predict_first_block: false,
        embedder: EmbedderConfig::Lookup(LookupConfig { d_embedding, projection: Projection::ProjectionLayer }),
        block_decoder: stack(block_layers, blocks),
        token_decoder: TokenDecoderConfig::Prefix(PrefixConfig {
            transformer: stack(token_layers, sizes.expansion_ratio + block_length),
            expansion: Expansion::Layer,
            expansion_ratio: sizes.expansion_ratio,
            tied_embeddings: vanilla.tied_embeddings,
        }),
    })
}

fn layers(vanilla: usize, method: LayerMethod, sizes: &TargetSizes) -> (usize, usize) {
    let half = vanilla.div_ceil(2);
    match method {
        LayerMethod::Partition => {
            let block = sizes.block_layers.or(sizes.token_layers.map(|token| vanilla.saturating_sub(token)));
            let block = block.unwrap_or(half);
            (block, sizes.token_layers.unwrap_or(vanilla.saturating_sub(block)))
        }
        LayerMethod::Skip => {
            let block = sizes.block_layers.unwrap_or(half);
            (block, sizes.token_layers.unwrap_or(block))
        }
        LayerMethod::Duplicate => (sizes.block_layers.unwrap_or(vanilla), sizes.token_layers.unwrap_or(vanilla)),
    }
}
