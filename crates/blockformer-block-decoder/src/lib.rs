//! The block decoder of a Block Transformer: a causal transformer over block embeddings (Ho et al. 2024, section 2.3).
//!
//! It attends over blocks, not tokens, so its KV cache has one entry a block (times the embedding tokens a block), and
//! a prompt is prefilled in `tokens / block_length` positions. Its output for block `n`, the *context embedding*, is
//! all that the token decoder sees of the past while it decodes block `n + 1`.
//!
//! ```
//! use blockformer_block_decoder::BlockDecoder;
//! use blockformer_nn::TransformerConfig;
//! use burn::tensor::{Device, Distribution, Tensor};
//!
//! let device = Device::flex();
//! let decoder = BlockDecoder::new(&TransformerConfig::gpt_neox(64, 2, 4), 1, &device);
//! let blocks = Tensor::<4>::random([1, 6, 1, 64], Distribution::Default, &device); // six blocks
//! assert_eq!(decoder.forward(blocks, None, None).dims(), [1, 6, 1, 64]);
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

use blockformer_kv_cache::{CacheConfig, KvCache, PagedBatch, SharedPages};
use blockformer_nn::{AttentionMask, Transformer, TransformerConfig};
use burn::module::Module;
use burn::tensor::{Bool, Device, Tensor};

/// A causal transformer over block embeddings. Where a block has several embedding tokens, these see each other.
#[derive(Module, Debug)]
pub struct BlockDecoder {
    /// The layers.
    pub transformer: Transformer,
    n_embedding_tokens: usize,
}

impl BlockDecoder {
    /// Initialises the decoder. `config.max_positions` counts embedding tokens, not text tokens.
    ///
    /// # Panics
    /// If `config` is invalid or `n_embedding_tokens` is zero.
    pub fn new(config: &TransformerConfig, n_embedding_tokens: usize, device: &Device) -> Self {
        assert!(n_embedding_tokens > 0, "a block needs at least one embedding token");
        Self { transformer: config.init(device), n_embedding_tokens }
    }

    /// Context embeddings of blocks. With a cache, the blocks follow those it holds.
    ///
    /// # Shapes
    /// - `blocks`: `[batch, n_blocks, n_embedding_tokens, d_model]`, returns the same
    /// - `mask`: `[batch, cached + n_blocks]`, false for blocks that are nothing but padding; `None` where there are
    ///   none
    ///
    /// # Panics
    /// If shapes do not fit or `cache` cannot take the blocks.
    pub fn forward(&self, blocks: Tensor<4>, mask: Option<Tensor<2, Bool>>, cache: Option<&mut KvCache>) -> Tensor<4> {
        let [batch, n_blocks, n_embedding_tokens, d_model] = blocks.dims();
        assert_eq!(n_embedding_tokens, self.n_embedding_tokens, "embedding tokens a block");
        let keys = mask.map(|mask| self.per_embedding_token(mask));
        let mask = AttentionMask::causal_groups(n_embedding_tokens).with_keys(keys);
        let positions = blocks.reshape([batch, n_blocks * n_embedding_tokens, d_model]);
        let context = self.transformer.forward(positions, &mask, cache);
        context.reshape([batch, n_blocks, n_embedding_tokens, d_model])
    }

    /// Context embeddings of the blocks that follow those a pool holds of each sequence.
    ///
    /// # Shapes
    /// - `blocks`: `[1, new blocks of all sequences, n_embedding_tokens, d_model]`, those of one sequence after those of the
    ///   other, or, where each has as many, `[sequences, new blocks of each, n_embedding_tokens, d_model]`; returns the same
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn forward_paged(&self, blocks: Tensor<4>, batch: &mut PagedBatch<'_>) -> Tensor<4> {
        let [rows, n_blocks, n_embedding_tokens, d_model] = blocks.dims();
        assert_eq!(n_embedding_tokens, self.n_embedding_tokens, "embedding tokens a block");
        let mask = AttentionMask::causal_groups(n_embedding_tokens);
        let positions = blocks.reshape([rows, n_blocks * n_embedding_tokens, d_model]);
        let context = self.transformer.forward_paged(positions, &mask, batch);
        context.reshape([rows, n_blocks, n_embedding_tokens, d_model])
    }

    /// The size of a cache for `batch` sequences of up to `n_blocks` blocks.
    pub fn cache_config(&self, batch: usize, n_blocks: usize) -> CacheConfig {
        self.transformer.cache_config(batch, n_blocks * self.n_embedding_tokens)
    }

    /// An empty cache for `batch` sequences of up to `n_blocks` blocks.
    pub fn new_cache(&self, batch: usize, n_blocks: usize, device: &Device) -> KvCache {
        self.transformer.new_cache(batch, n_blocks * self.n_embedding_tokens, device)
    }

    /// Whether the device may count the positions of a cache for passes of one new block: [`Transformer::takes_counts`], where
    /// a block is one position.
    pub fn takes_counts(&self, cache: &KvCache) -> bool {
        self.n_embedding_tokens == 1 && self.transformer.takes_counts(cache)
    }

    /// Whether kernels alone take in one new block of each of `rows` sequences: [`Transformer::takes_tables`], where a block is one
    /// position.
    pub fn takes_tables(&self, pages: &SharedPages, rows: usize, longest: usize) -> bool {
        self.n_embedding_tokens == 1 && self.transformer.takes_tables(pages, rows, longest)
    }

    /// Embedding tokens a block.
    pub fn n_embedding_tokens(&self) -> usize {
        self.n_embedding_tokens
    }

    /// `[batch, blocks]` to `[batch, blocks · n_embedding_tokens]`.
    fn per_embedding_token(&self, mask: Tensor<2, Bool>) -> Tensor<2, Bool> {
        let [batch, n_blocks] = mask.dims();
        let n = self.n_embedding_tokens;
        mask.reshape([batch, n_blocks, 1]).expand([batch, n_blocks, n]).reshape([batch, n_blocks * n])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, TensorData, s};

    fn decoder(n_embedding_tokens: usize) -> BlockDecoder {
        let config = TransformerConfig { initializer_range: 0.2, ..TransformerConfig::gpt_neox(16, 2, 2) };
        BlockDecoder::new(&config, n_embedding_tokens, &Device::flex())
    }

    fn random(shape: [usize; 4]) -> Tensor<4> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
    }

    fn difference(a: Tensor<4>, b: Tensor<4>) -> f32 {
        (a - b).abs().max().into_scalar::<f32>()
    }

    #[test]
    fn blocks_through_a_cache_match_all_at_once() {
        for n in [1, 2] {
            let (decoder, blocks) = (decoder(n), random([2, 5, n, 16]));
            let mask = TensorData::new([[true; 5], [false, true, true, true, true]].concat(), [2, 5]);
            let mask = Tensor::<2, Bool>::from_data(mask, &Device::flex());
            let full = decoder.forward(blocks.clone(), Some(mask.clone()), None);
            let mut cache = decoder.new_cache(2, 5, &Device::flex());
            let steps: Vec<_> = (0..5)
                .map(|i| {
                    let known = mask.clone().slice(s![.., 0..i + 1]);
                    decoder.forward(blocks.clone().slice(s![.., i..i + 1, .., ..]), Some(known), Some(&mut cache))
                })
                .collect();
            assert!(difference(Tensor::cat(steps, 1), full) < 1e-5);
            assert_eq!(cache.remaining(), 0);
        }
    }

    #[test]
    fn embedding_tokens_of_one_block_see_each_other_but_not_the_next_block() {
        let (decoder, blocks) = (decoder(2), random([1, 3, 2, 16]));
        let before = decoder.forward(blocks.clone(), None, None);
        let second = s![.., 1..2, 1..2, ..]; // the second embedding token of block 1
        let after = decoder.forward(blocks.slice_assign(second, random([1, 1, 1, 16])), None, None);
        let at = |x: &Tensor<4>, block: usize, token: usize| x.clone().slice(s![.., block, token, ..]);
        assert_eq!(difference(at(&before, 0, 1), at(&after, 0, 1)), 0.0);
        assert!(difference(at(&before, 1, 0), at(&after, 1, 0)) > 1e-3);
    }
}
