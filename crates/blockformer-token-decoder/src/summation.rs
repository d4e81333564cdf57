//! The summation token decoder: the expanded context embedding is added to the embeddings of the block's tokens,
//! position by position (Ho et al. 2024, section 2.4; the way of MEGABYTE, Yu et al. 2023).
//!
//! ```text
//! input   start + c₀   token₀ + c₁   token₁ + c₂   …
//! output  → token₀     → token₁      → token₂      …
//! ```

use blockformer_kv_cache::KvCache;
use blockformer_nn::{AttentionMask, ConfigError, Transformer, TransformerConfig};
use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor, s};
use serde::{Deserialize, Serialize};

use crate::{ContextExpansion, Expansion, TokenCache, TokenDecoder, TokenDecoderSizes, TokenInput, Vocabulary};

/// Configuration of a [`SummationDecoder`]. Its expansion ratio is `block_length / n_embedding_tokens`: one vector a
/// token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SummationConfig {
    /// The layers.
    pub transformer: TransformerConfig,
    /// How the context embedding becomes one vector a token.
    pub expansion: Expansion,
    /// The token that stands before the first of a block.
    pub start_token_id: u32,
    /// Whether the output projection is the embedding table.
    pub tied_embeddings: bool,
}

impl SummationConfig {
    /// Initialises the decoder.
    ///
    /// # Errors
    /// A [`ConfigError`] if the sizes do not fit together.
    pub fn init(&self, sizes: &TokenDecoderSizes, device: &Device) -> Result<SummationDecoder, ConfigError> {
        let Self { transformer, expansion, start_token_id, tied_embeddings } = self;
        transformer.validate()?;
        sizes.validate()?;
        // A part of the context is added to each token: several blocks have no place in it.
        sizes.check_one_context_block("a summation token decoder")?;
        let n = sizes.n_embedding_tokens;
        ConfigError::multiple("block_length", sizes.block_length, "n_embedding_tokens", n)?;
        transformer.check_positions("token_decoder.max_positions", sizes.block_length, "a block")?;
        sizes.check_token("token_decoder.start_token_id", *start_token_id)?;
        let TransformerConfig { d_model, initializer_range: std, .. } = *transformer;
        Ok(SummationDecoder {
            expansion: ContextExpansion::new(*expansion, sizes.block_length / n, d_model, sizes, device)?,
            vocabulary: Vocabulary::new(sizes.vocab_size, d_model, *tied_embeddings, std, device),
            transformer: transformer.init(device),
            sizes: *sizes,
            start_token_id: *start_token_id as usize,
        })
    }
}

/// Decodes the sums of token embeddings and expanded context embeddings causally.
#[derive(Module, Debug)]
pub struct SummationDecoder {
    /// Context embedding to one vector a token.
    pub expansion: ContextExpansion,
    /// Token embeddings and output projection.
    pub vocabulary: Vocabulary,
    /// The layers.
    pub transformer: Transformer,
    #[module(skip)]
    sizes: TokenDecoderSizes,
    start_token_id: usize,
}

/// The cache of a [`SummationDecoder`].
#[derive(Debug, Clone)]
pub struct SummationCache {
    layers: KvCache,
    /// The expanded context embeddings of the blocks being decoded, `[rows, block_length, d_model]`.
    context: Option<Tensor<3>>,
}

impl TokenCache for SummationCache {
    fn bytes(&self) -> usize {
        self.layers.bytes()
    }
}

impl TokenDecoder for SummationDecoder {
    type Cache = SummationCache;

    fn forward(&self, input: TokenInput, mut cache: Option<&mut SummationCache>) -> Tensor<3> {
        let TokenInput { context, ids, mask } = input;
        let begins = context.is_some();
        assert!(begins || mask.is_none(), "only blocks that begin can hold padding");
        let context = match (context, cache.as_deref_mut()) {
            (Some(context), None) => self.expansion.forward(context),
            (Some(context), Some(cache)) => {
                cache.layers.reset();
                cache.context.insert(self.expansion.forward(context)).clone()
            }
            (None, Some(SummationCache { context: Some(context), .. })) => context.clone(),
            (None, _) => panic!("tokens continue no block: give its context"),
        };
        let start = cache.as_ref().map_or(0, |cache| cache.layers.len());
        let (rows, device) = (context.dims()[0], context.device());
        let ids = if begins { Some(behind_start(ids, self.start_token_id, rows, &device)) } else { ids };
        let Some(ids) = ids else { panic!("neither a context embedding nor tokens") };
        let end = start + ids.dims()[1];
        assert!(end <= self.sizes.block_length, "{end} positions in a block of {}", self.sizes.block_length);
        let x = self.vocabulary.embed(ids) + context.slice(s![.., start..end, ..]);
        let mask = AttentionMask::causal().with_keys(mask.map(behind_real));
        self.transformer.forward(x, &mask, cache.map(|cache| &mut cache.layers))
    }

    fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.vocabulary.logits(hidden)
    }

    fn new_cache(&self, rows: usize, device: &Device) -> SummationCache {
        SummationCache { layers: self.transformer.new_cache(rows, self.sizes.block_length, device), context: None }
    }

    fn sizes(&self) -> TokenDecoderSizes {
        self.sizes
    }
}

/// The tokens with the start token in front, `[rows, 1 + n]`.
pub(crate) fn behind_start(
    ids: Option<Tensor<2, Int>>,
    start_token_id: usize,
    rows: usize,
    device: &Device,
) -> Tensor<2, Int> {
    let start = Tensor::<2, Int>::full([rows, 1], start_token_id as i64, device);
    match ids {
        Some(ids) => Tensor::cat(vec![start, ids], 1),
        None => start,
    }
}

/// A padding mask with one real position in front.
pub(crate) fn behind_real(mask: Tensor<2, Bool>) -> Tensor<2, Bool> {
    let real = Tensor::<2, Bool>::full([mask.dims()[0], 1], true, &mask.device());
    Tensor::cat(vec![real, mask], 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token_decoder::assert_steps_match_the_whole_block;

    const SIZES: TokenDecoderSizes =
        TokenDecoderSizes { vocab_size: 13, block_length: 4, n_embedding_tokens: 2, context_blocks: 1, d_context: 12 };

    fn decoder() -> SummationDecoder {
        let transformer = TransformerConfig { initializer_range: 0.3, ..TransformerConfig::gpt_neox(16, 2, 2) };
        let config =
            SummationConfig { transformer, expansion: Expansion::Layer, start_token_id: 1, tied_embeddings: false };
        config.init(&SIZES, &Device::flex()).unwrap()
    }

    #[test]
    fn tokens_one_by_one_match_the_whole_block() {
        assert_steps_match_the_whole_block(&decoder());
    }

    #[test]
    fn several_context_blocks_are_refused() {
        let transformer = TransformerConfig::gpt_neox(16, 2, 2);
        let config =
            SummationConfig { transformer, expansion: Expansion::Layer, start_token_id: 1, tied_embeddings: false };
        let sizes = TokenDecoderSizes { context_blocks: 2, n_embedding_tokens: 1, ..SIZES };
        let error = config.init(&sizes, &Device::flex()).unwrap_err().to_string();
        assert_eq!(error, "context_blocks is 2, but a summation token decoder needs 1");
    }

    #[test]
    fn a_start_token_outside_the_vocabulary_is_refused() {
        let transformer = TransformerConfig::gpt_neox(16, 2, 2);
        let config =
            SummationConfig { transformer, expansion: Expansion::Layer, start_token_id: 13, tied_embeddings: false };
        let error = config.init(&SIZES, &Device::flex()).unwrap_err().to_string();
        assert_eq!(error, "token_decoder.start_token_id is 13, expected a number from 0 to 12");
    }
}
