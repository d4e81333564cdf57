//! The Block Transformer.

use blockformer_block_decoder::BlockDecoder;
use blockformer_embedder::{AnyEmbedder, Embedder};
use blockformer_token_decoder::{AnyTokenDecoder, TokenDecoder, TokenInput};
use burn::module::Module;
use burn::tensor::{Bool, Int, Tensor, s};

use crate::{BlockLayout, ContextEnds};

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
    /// Which context embeddings a block is decoded from; without parameters in the paper's models.
    pub context_ends: ContextEnds,
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
    /// The token decoder's hidden states of the blocks that are predicted, from
    /// [`first_predicted_block`](BlockLayout::first_predicted_block) on,
    /// `[batch · n_predicted_blocks, block_length, d_model]`: position `t` predicts token `t` of the block.
    pub hidden: Tensor<3>,
}

/// What embedder and block decoder computed over `n_blocks` blocks.
#[derive(Debug, Clone)]
pub struct BlockWindows {
    /// The embedder's output, `[batch, n_blocks, n_embedding_tokens, d_model]`.
    pub block_embeddings: Tensor<4>,
    /// The block decoder's output, `[batch, n_blocks, n_embedding_tokens, d_model]`.
    pub context_embeddings: Tensor<4>,
    /// The context embeddings that the token decoder sees for each predicted block,
    /// `[batch · n_predicted_blocks, n_contexts, d_model]`.
    pub windows: Tensor<3>,
}

impl<E: Embedder, T: TokenDecoder> BlockTransformer<E, T> {
    /// Runs all three parts over whole sequences, teacher-forced: the context embedding of block `n` (or those of the
    /// last few) and the tokens of block `n + 1` give the predictions of block `n + 1`. The first block is not
    /// predicted unless the model has learned a start of text.
    ///
    /// # Shapes
    /// - `ids`: `[batch, n_blocks, block_length]`, at least one block that is predicted
    /// - `mask`: the same, false on padding; `None` where there is none
    ///
    /// # Panics
    /// If shapes do not fit, no block is predicted, or there are more than the context holds.
    pub fn forward(&self, ids: Tensor<3, Int>, mask: Option<Tensor<3, Bool>>) -> BlockOutput {
        let first = self.layout.first_predicted_block();
        let BlockWindows { block_embeddings, context_embeddings, windows } = self.windows(ids.clone(), mask.clone());
        let mask = mask.map(|mask| mask.slice(s![.., first.., ..]));
        let hidden = self.decode_blocks(windows, ids.slice(s![.., first.., ..]), mask);
        BlockOutput { block_embeddings, context_embeddings, hidden }
    }

    /// The first two parts, up to what the third is given of the past: `forward` goes on from there with
    /// [`decode_blocks`](Self::decode_blocks). Training can cut the graph here.
    ///
    /// # Shapes
    /// As [`forward`](Self::forward).
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn windows(&self, ids: Tensor<3, Int>, mask: Option<Tensor<3, Bool>>) -> BlockWindows {
        let [batch, n_blocks, _] = ids.dims();
        let first = self.layout.first_predicted_block();
        assert!(n_blocks > first, "{n_blocks} blocks, of which none is predicted: at least {} are needed", first + 1);
        let (tokens, max_length) = (n_blocks * self.layout.block_length, self.layout.max_length);
        assert!(tokens <= max_length, "{tokens} tokens in a context of {max_length}");
        let block_embeddings = self.embedder.forward(ids, mask.clone());
        let (contexts, real) = self.contexts(block_embeddings.clone(), real_blocks(mask));
        let positions = contexts.dims()[1];
        let context_embeddings = contexts.clone().slice(s![.., positions - n_blocks.., .., ..]);
        // The last context embedding predicts a block that is not there.
        let known = contexts.slice(s![.., 0..positions - 1, .., ..]);
        let (windows, _) =
            self.context_ends.windows(known, real.map(|real| real.slice(s![.., 0..positions - 1])), None);
        let [_, n_predicted, n_contexts, d_model] = windows.dims();
        let windows = windows.reshape([batch * n_predicted, n_contexts, d_model]);
        BlockWindows { block_embeddings, context_embeddings, windows }
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
        let n_blocks = ids.dims()[1];
        let block_embeddings = self.embedder.forward(ids, mask.clone());
        let (contexts, _) = self.contexts(block_embeddings.clone(), real_blocks(mask));
        let positions = contexts.dims()[1];
        (block_embeddings, contexts.slice(s![.., positions - n_blocks.., .., ..]))
    }

    /// Context embeddings, that of the start of text first where there is one, and which of them are real.
    fn contexts(
        &self,
        block_embeddings: Tensor<4>,
        real: Option<Tensor<2, Bool>>,
    ) -> (Tensor<4>, Option<Tensor<2, Bool>>) {
        let (blocks, real) = self.context_ends.with_start(block_embeddings, real);
        (self.block_decoder.forward(blocks, real.clone(), None), real)
    }

    /// The third part, teacher-forced: the hidden states that predict every token of `ids`.
    ///
    /// # Shapes
    /// - `context`: `[batch · n_blocks, n_contexts, d_model]`, a window of context embeddings for each block of `ids`
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

/// Which blocks hold a real token.
///
/// # Shapes
/// - `mask`: `[batch, n_blocks, block_length]`, false on padding
/// - returns: `[batch, n_blocks]`
pub fn real_blocks(mask: Option<Tensor<3, Bool>>) -> Option<Tensor<2, Bool>> {
    mask.map(|mask| mask.any_dim(2).squeeze_dim(2))
}
