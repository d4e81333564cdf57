//! The vanilla transformer, the baseline.

use blockformer_kv_cache::{KvCache, PagedBatch};
use blockformer_nn::{AttentionMask, Transformer};
use blockformer_token_decoder::Vocabulary;
use burn::module::Module;
use burn::tensor::{Bool, Int, Tensor};

use crate::BlockLayout;

/// A decoder-only transformer over tokens, of the same layers. Made by
/// [`VanillaTransformerConfig::init`](crate::VanillaTransformerConfig::init).
#[derive(Module, Debug)]
pub struct VanillaTransformer {
    /// Token embeddings and output projection.
    pub vocabulary: Vocabulary,
    /// The layers.
    pub transformer: Transformer,
    #[module(skip)]
    pub(crate) layout: BlockLayout,
}

impl VanillaTransformer {
    /// Hidden states: position `t` predicts token `t + 1`. With a cache, the tokens follow those it holds.
    ///
    /// # Shapes
    /// - `ids`: `[batch, n]`
    /// - `mask`: `[batch, cached + n]`, false on padding; `None` where there is none
    /// - returns: `[batch, n, d_model]`
    ///
    /// # Panics
    /// If shapes do not fit or the tokens go beyond the context or the cache.
    pub fn forward(
        &self,
        ids: Tensor<2, Int>,
        mask: Option<Tensor<2, Bool>>,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let mask = AttentionMask::causal().with_keys(mask);
        self.transformer.forward(self.vocabulary.embed(ids), &mask, cache)
    }

    /// Hidden states of the tokens that follow those a pool holds of each sequence.
    ///
    /// # Shapes
    /// - `ids`: `[1, new tokens of all sequences]`, those of one sequence after those of the other, or, where each has as many,
    ///   `[sequences, n]`
    /// - returns: `[1 or sequences, .., d_model]`
    ///
    /// # Panics
    /// If shapes do not fit or the tokens go beyond the context.
    pub fn forward_paged(&self, ids: Tensor<2, Int>, batch: &mut PagedBatch<'_>) -> Tensor<3> {
        self.transformer.forward_paged(self.vocabulary.embed(ids), &AttentionMask::causal(), batch)
    }

    /// Logits over the vocabulary.
    ///
    /// # Shapes
    /// - `hidden`: `[batch, n, d_model]`
    /// - returns: `[batch, n, vocab_size]`
    pub fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.vocabulary.logits(hidden)
    }

    /// Its context and vocabulary, as blocks of one token.
    pub fn layout(&self) -> BlockLayout {
        self.layout
    }
}
