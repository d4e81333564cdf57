//! The Block Transformer.

use blockformer_block_decoder::BlockDecoder;
use blockformer_embedder::{AnyEmbedder, Embedder};
use blockformer_token_decoder::{AnyTokenDecoder, TokenDecoder, TokenInput};
use burn::module::Module;
use burn::tensor::{Bool, Int, Tensor, s};

use crate::BlockLayout;

/// An embedder, a block decoder and a token decoder (Ho et al. 2024, figure 1).
///
/// `E` and `T` can be of your own making; [`AnyEmbedder`] and [`AnyTokenDecoder`] are what configuration files choose
/// from. Made by [`BlockTransformerConfig::init`](crate::BlockTransformerConfig::init) or
/// [`init_with`](crate::BlockTransformerConfig::init_with).
#[derive(Module, Debug)]
pub struct BlockTransformer<E: Embedder = AnyEmbedder, T: TokenDecoder = AnyTokenDecoder> {
    /// Blocks of tokens to block embeddings.
    pub embedder: E,
    /// Block embeddings to context embeddings.
    pub block_decoder: BlockDecoder,
    /// Context embeddings to tokens.
    pub token_decoder: T,
    #[module(skip)]
    pub(crate) layout: BlockLayout,
}

/// What the three parts computed in one forward pass over `n_blocks` blocks.
#[derive(Debug, Clone)]
pub struct BlockOutput {
    /// The embedder's output, `[batch, n_blocks, n_embedding_tokens, d_model]`.
    pub block_embeddings: Tensor<4>,
    /// The block decoder's output, `[batch, n_blocks, n_embedding_tokens, d_model]`.
    pub context_embeddings: Tensor<4>,
    /// The token decoder's hidden states of blocks 1 to `n_blocks - 1`,
    /// `[batch · (n_blocks - 1), block_length, d_model]`: position `t` predicts token `t` of the block.
    pub hidden: Tensor<3>,
}

impl<E: Embedder, T: TokenDecoder> BlockTransformer<E, T> {
    /// Runs all three parts over whole sequences, teacher-forced: the context embedding of block `n` and the tokens
    /// of block `n + 1` give the predictions of block `n + 1`. The first block is not predicted.
    ///
    /// # Shapes
    /// - `ids`: `[batch, n_blocks, block_length]`, at least two blocks
    /// - `mask`: the same, false on padding; `None` where there is none
    ///
    /// # Panics
    /// If shapes do not fit, there are fewer than two blocks, or more than the context holds.
    pub fn forward(&self, ids: Tensor<3, Int>, mask: Option<Tensor<3, Bool>>) -> BlockOutput {
        let [batch, n_blocks, _] = ids.dims();
        assert!(n_blocks > 1, "{n_blocks} blocks: predicting the next block needs at least two");
        let (tokens, max_length) = (n_blocks * self.layout.block_length, self.layout.max_length);
        assert!(tokens <= max_length, "{tokens} tokens in a context of {max_length}");
        let (block_embeddings, context_embeddings) = self.context(ids.clone(), mask.clone());
        let [_, _, n_embedding_tokens, d_model] = context_embeddings.dims();
        let context = context_embeddings.clone().slice(s![.., 0..n_blocks - 1, .., ..]);
        let context = context.reshape([batch * (n_blocks - 1), n_embedding_tokens, d_model]);
        let hidden =
            self.decode_blocks(context, ids.slice(s![.., 1.., ..]), mask.map(|mask| mask.slice(s![.., 1.., ..])));
        BlockOutput { block_embeddings, context_embeddings, hidden }
    }

    /// The first two parts: block embeddings and context embeddings.
    ///
    /// # Shapes
    /// - `ids`, `mask`: `[batch, n_blocks, block_length]`
    /// - returns: twice `[batch, n_blocks, n_embedding_tokens, d_model]`
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn context(&self, ids: Tensor<3, Int>, mask: Option<Tensor<3, Bool>>) -> (Tensor<4>, Tensor<4>) {
        let block_mask = mask.clone().map(|mask| mask.any_dim(2).squeeze_dim::<2>(2)); // [batch, n_blocks]
        let block_embeddings = self.embedder.forward(ids, mask);
        let context_embeddings = self.block_decoder.forward(block_embeddings.clone(), block_mask, None);
        (block_embeddings, context_embeddings)
    }

    /// The third part, teacher-forced: the hidden states that predict every token of `ids`.
    ///
    /// # Shapes
    /// - `context`: `[batch · n_blocks, n_embedding_tokens, d_model]`, one context a block of `ids`
    /// - `ids`, `mask`: `[batch, n_blocks, block_length]`
    /// - returns: `[batch · n_blocks, block_length, d_model]`
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn decode_blocks(&self, context: Tensor<3>, ids: Tensor<3, Int>, mask: Option<Tensor<3, Bool>>) -> Tensor<3> {
        let [batch, n_blocks, length] = ids.dims();
        let (rows, known) = (batch * n_blocks, length - 1); // the last token of a block predicts nothing
        let ids = (known > 0).then(|| ids.reshape([rows, length]).slice(s![.., 0..known]));
        let mask = mask.filter(|_| known > 0).map(|mask| mask.reshape([rows, length]).slice(s![.., 0..known]));
        self.token_decoder.forward(TokenInput::start(context).with_ids(ids).with_mask(mask), None)
    }

    /// Logits over the vocabulary.
    ///
    /// # Shapes
    /// - `hidden`: `[rows, n, d_model]`
    /// - returns: `[rows, n, vocab_size]`
    pub fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.token_decoder.logits(hidden)
    }

    /// How ids are cut into blocks.
    pub fn layout(&self) -> BlockLayout {
        self.layout
    }
}
