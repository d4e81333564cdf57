//! The trait.

use blockformer_nn::ConfigError;
use burn::module::{Module, ModuleDisplay};
use burn::tensor::{Bool, Int, Tensor};

/// Turns blocks of token ids into block embeddings.
///
/// Implement it to try an embedder of your own: `BlockTransformer<MyEmbedder>` then trains, generates and evaluates
/// like any other; its weights are saved by `save_weights` and loaded by `Checkpoint::load_into`.
pub trait Embedder: Module + ModuleDisplay + 'static {
    /// Embeds every block by itself; what one block holds never changes another's embedding.
    ///
    /// # Shapes
    /// - `ids`: `[batch, n_blocks, block_length]`
    /// - `mask`: `[batch, n_blocks, block_length]`, false on padding; `None` where there is none
    /// - returns: `[batch, n_blocks, n_embedding_tokens, d_model]`
    ///
    /// # Panics
    /// If the blocks are not of [`EmbedderSizes::block_length`].
    fn forward(&self, ids: Tensor<3, Int>, mask: Option<Tensor<3, Bool>>) -> Tensor<4>;

    /// The sizes it was made for.
    fn sizes(&self) -> EmbedderSizes;
}

/// The sizes an embedder takes from the model it is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbedderSizes {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Tokens a block.
    pub block_length: usize,
    /// Embeddings a block.
    pub n_embedding_tokens: usize,
    /// Features of a block embedding.
    pub d_model: usize,
}

impl EmbedderSizes {
    /// Tokens that share one embedding.
    ///
    /// # Errors
    /// A [`ConfigError`] if a size is zero or the block does not divide evenly.
    pub fn tokens_per_embedding(&self) -> Result<usize, ConfigError> {
        ConfigError::positive("vocab_size", self.vocab_size)?;
        ConfigError::positive("block_length", self.block_length)?;
        ConfigError::positive("d_model", self.d_model)?;
        ConfigError::bounded("block_length", self.block_length)?;
        ConfigError::multiple("block_length", self.block_length, "n_embedding_tokens", self.n_embedding_tokens)?;
        Ok(self.block_length / self.n_embedding_tokens)
    }
}
