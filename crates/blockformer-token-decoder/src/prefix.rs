//! The prefix token decoder: expanded context embeddings stand before the tokens of the block, as a prefix that all of
//! them attend to (Ho et al. 2024, section 2.4).

use blockformer_kv_cache::KvCache;
use blockformer_nn::{AttentionMask, ConfigError, Transformer, TransformerConfig};
use burn::module::Module;
use burn::tensor::{Bool, Device, Tensor, s};
use serde::{Deserialize, Serialize};

use crate::{ContextExpansion, Expansion, TokenDecoder, TokenDecoderSizes, TokenInput, Vocabulary};

/// Configuration of a [`PrefixDecoder`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefixConfig {
    /// The layers.
    pub transformer: TransformerConfig,
    /// How the context embedding becomes the prefix.
    pub expansion: Expansion,
    /// Prefix positions a context embedding.
    pub expansion_ratio: usize,
    /// Whether the output projection is the embedding table.
    pub tied_embeddings: bool,
}

impl PrefixConfig {
    /// Initialises the decoder.
    ///
    /// # Errors
    /// A [`ConfigError`] if the sizes do not fit together.
    pub fn init(&self, sizes: &TokenDecoderSizes, device: &Device) -> Result<PrefixDecoder, ConfigError> {
        let Self { transformer, expansion, expansion_ratio, tied_embeddings } = self;
        transformer.validate()?;
        sizes.validate()?;
        ConfigError::positive("token_decoder.expansion_ratio", *expansion_ratio)?;
        ConfigError::bounded("token_decoder.expansion_ratio", *expansion_ratio)?;
        let prefix_len = expansion_ratio * sizes.n_contexts();
        let positions = prefix_len + sizes.block_length - 1;
        transformer.check_positions("token_decoder.max_positions", positions, "prefix and block together")?;
        let d_model = transformer.d_model;
        let std = transformer.initializer_range;
        Ok(PrefixDecoder {
            expansion: ContextExpansion::new(*expansion, *expansion_ratio, d_model, sizes, device)?,
            vocabulary: Vocabulary::new(sizes.vocab_size, d_model, *tied_embeddings, std, device),
            transformer: transformer.init(device),
            sizes: *sizes,
            prefix_len,
        })
    }
}

/// Decodes `[prefix, token, token, …]` causally; the last prefix position predicts the first token.
#[derive(Module, Debug)]
pub struct PrefixDecoder {
    /// Context embedding to prefix.
    pub expansion: ContextExpansion,
    /// Token embeddings and output projection.
    pub vocabulary: Vocabulary,
    /// The layers.
    pub transformer: Transformer,
    #[module(skip)]
    sizes: TokenDecoderSizes,
    prefix_len: usize,
}

impl PrefixDecoder {
    /// Positions of the prefix.
    pub fn prefix_len(&self) -> usize {
        self.prefix_len
    }

    /// The padding mask of the tokens, with the prefix, which is always real, in front.
    fn key_mask(&self, mask: Option<Tensor<2, Bool>>) -> Option<Tensor<2, Bool>> {
        let mask = mask?;
        let prefix = Tensor::<2, Bool>::full([mask.dims()[0], self.prefix_len], true, &mask.device());
        Some(Tensor::cat(vec![prefix, mask], 1))
    }
}

impl TokenDecoder for PrefixDecoder {
    type Cache = KvCache;

    fn forward(&self, input: TokenInput, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        let TokenInput { context, ids, mask } = input;
        let begins = context.is_some();
        assert!(begins || cache.as_ref().is_some_and(|c| !c.is_empty()), "tokens continue no block: give its context");
        assert!(begins || mask.is_none(), "only blocks that begin can hold padding");
        let n_tokens = ids.as_ref().map_or(0, |ids| ids.dims()[1]);
        assert!(
            n_tokens < self.sizes.block_length,
            "{n_tokens} tokens before the last of a block of {}",
            self.sizes.block_length
        );
        if let (true, Some(cache)) = (begins, cache.as_deref_mut()) {
            cache.reset();
        }
        let prefix = context.map(|context| self.expansion.forward(context)); // [rows, prefix_len, d_model]
        let tokens = ids.map(|ids| self.vocabulary.embed(ids)); // [rows, n, d_model]
        let parts: Vec<_> = prefix.into_iter().chain(tokens).collect();
        assert!(!parts.is_empty(), "neither a context embedding nor tokens");
        let mask = AttentionMask::causal().with_keys(self.key_mask(mask));
        let hidden = self.transformer.forward(Tensor::cat(parts, 1), &mask, cache);
        if begins { hidden.slice(s![.., self.prefix_len - 1.., ..]) } else { hidden }
    }

    fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.vocabulary.logits(hidden)
    }

    fn new_cache(&self, rows: usize, device: &Device) -> KvCache {
        self.transformer.new_cache(rows, self.prefix_len + self.sizes.block_length - 1, device)
    }

    fn sizes(&self) -> TokenDecoderSizes {
        self.sizes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Int, TensorData};

    const SIZES: TokenDecoderSizes =
        TokenDecoderSizes { vocab_size: 13, block_length: 4, n_embedding_tokens: 2, context_blocks: 1, d_context: 12 };

    fn decoder(expansion: Expansion, expansion_ratio: usize, tied_embeddings: bool) -> PrefixDecoder {
        let d_model = if expansion == Expansion::Repeat { 12 } else { 16 };
        let transformer = TransformerConfig { initializer_range: 0.3, ..TransformerConfig::llama(d_model, 2, 2) };
        let config = PrefixConfig { transformer, expansion, expansion_ratio, tied_embeddings };
        config.init(&SIZES, &Device::flex()).unwrap()
    }

    fn context() -> Tensor<3> {
        Tensor::random([3, 2, 12], Distribution::Normal(0.0, 1.0), &Device::flex())
    }

    fn ids() -> Tensor<2, Int> {
        Tensor::from_ints([[1, 2, 3], [4, 5, 6], [12, 0, 7]], &Device::flex())
    }

    fn difference(a: Tensor<3>, b: Tensor<3>) -> f32 {
        (a - b).abs().max().into_scalar::<f32>()
    }

    #[test]
    fn tokens_one_by_one_match_the_whole_block() {
        for (expansion, ratio, tied) in
            [(Expansion::Layer, 1, false), (Expansion::Layer, 3, true), (Expansion::Repeat, 2, false)]
        {
            let (decoder, context) = (decoder(expansion, ratio, tied), context());
            let full = decoder.forward(TokenInput::start(context.clone()).with_ids(Some(ids())), None);
            assert_eq!(full.dims()[..2], [3, 4]);
            let mut cache = decoder.new_cache(3, &Device::flex());
            for _ in 0..2 {
                // Twice: the second block overwrites what the first left in the cache.
                let mut steps = vec![decoder.forward(TokenInput::start(context.clone()), Some(&mut cache))];
                for i in 0..3 {
                    let token = ids().slice(s![.., i..i + 1]);
                    steps.push(decoder.forward(TokenInput::next(token), Some(&mut cache)));
                }
                let stepped = Tensor::cat(steps, 1);
                assert!(difference(decoder.logits(stepped), decoder.logits(full.clone())) < 1e-5);
                assert_eq!(cache.remaining(), 0);
            }
        }
    }

    #[test]
    fn padding_at_the_start_of_a_block_changes_no_prediction() {
        let (decoder, context) = (decoder(Expansion::Layer, 2, false), context());
        let mask = TensorData::new([false, true, true].repeat(3), [3, 3]);
        let mask = Tensor::<2, Bool>::from_data(mask, &Device::flex());
        let run = |first: i32| {
            let ids = ids().slice_assign(s![.., 0..1], Tensor::full([3, 1], first, &Device::flex()));
            let input = TokenInput::start(context.clone()).with_ids(Some(ids)).with_mask(Some(mask.clone()));
            decoder.forward(input, None).slice(s![.., 2.., ..])
        };
        assert!(difference(run(0), run(9)) < 1e-6);
    }

    #[test]
    #[should_panic(expected = "tokens continue no block")]
    fn tokens_without_a_context_panic() {
        decoder(Expansion::Layer, 1, false).forward(TokenInput::next(ids()), None);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let transformer = TransformerConfig::llama(16, 1, 2);
        let config =
            PrefixConfig { transformer, expansion: Expansion::Repeat, expansion_ratio: 1, tied_embeddings: false };
        let error = config.init(&SIZES, &Device::flex()).unwrap_err().to_string();
        assert_eq!(error, "the token decoder's d_model is 16, but a repeated context embedding needs 12");
    }
}
