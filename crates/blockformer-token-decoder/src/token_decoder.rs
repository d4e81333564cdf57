//! The trait.

use blockformer_nn::ConfigError;
use burn::module::{Module, ModuleDisplay};
use burn::tensor::{Bool, Device, Int, Tensor};

/// What a token decoder is given: the start of blocks (a context embedding each and, perhaps, known tokens), or the
/// next tokens of blocks that a cache has begun. Every row is a block of its own.
#[derive(Debug, Clone)]
pub struct TokenInput {
    /// Context embeddings that begin the blocks, `[rows, n_contexts, d_context]`; `None` where a cache holds
    /// the beginning.
    pub context: Option<Tensor<3>>,
    /// Tokens that follow, `[rows, n]`.
    pub ids: Option<Tensor<2, Int>>,
    /// False where one of `ids` is padding, `[rows, n]`; `None` where there is none.
    pub mask: Option<Tensor<2, Bool>>,
}

impl TokenInput {
    /// Blocks that begin with these context embeddings.
    ///
    /// # Shapes
    /// - `context`: `[rows, n_contexts, d_context]`
    pub fn start(context: Tensor<3>) -> Self {
        Self { context: Some(context), ids: None, mask: None }
    }

    /// The next tokens of blocks that a cache has begun.
    ///
    /// # Shapes
    /// - `ids`: `[rows, n]`
    pub fn next(ids: Tensor<2, Int>) -> Self {
        Self { context: None, ids: Some(ids), mask: None }
    }

    /// The same with known tokens behind the context embedding.
    pub fn with_ids(mut self, ids: Option<Tensor<2, Int>>) -> Self {
        self.ids = ids;
        self
    }

    /// The same with a mask that is false where a token is padding.
    pub fn with_mask(mut self, mask: Option<Tensor<2, Bool>>) -> Self {
        self.mask = mask;
        self
    }
}

/// Decodes the tokens of blocks from their context embeddings.
///
/// Implement it to try a token decoder of your own: `BlockTransformer<AnyEmbedder, MyTokenDecoder>` then trains,
/// generates and evaluates like any other; its weights are saved by `save_weights` and loaded by
/// `Checkpoint::load_into`.
pub trait TokenDecoder: Module + ModuleDisplay + 'static {
    /// What has been computed of the blocks being decoded.
    type Cache: TokenCache;

    /// Hidden states that predict tokens: where `input` begins blocks, one that predicts the first token, and then,
    /// behind each token given, one that predicts the next. All tokens of a block of length `L` are predicted from
    /// its first `L - 1`.
    ///
    /// With a cache, an input that begins blocks empties it first; any other continues the blocks it holds, and its
    /// tokens must be real (no mask).
    ///
    /// # Shapes
    /// - returns: `[rows, (1 where blocks begin) + n, d_model]`
    ///
    /// # Panics
    /// If shapes do not fit, if the input neither begins nor continues blocks, or if it holds more tokens than a
    /// block.
    fn forward(&self, input: TokenInput, cache: Option<&mut Self::Cache>) -> Tensor<3>;

    /// Logits over the vocabulary.
    ///
    /// # Shapes
    /// - `hidden`: `[rows, n, d_model]`
    /// - returns: `[rows, n, vocab_size]`
    fn logits(&self, hidden: Tensor<3>) -> Tensor<3>;

    /// An empty cache for `rows` blocks at a time, with room for a context embedding and all but the last token of a
    /// block, which predicts nothing.
    fn new_cache(&self, rows: usize, device: &Device) -> Self::Cache;

    /// The sizes it was made for.
    fn sizes(&self) -> TokenDecoderSizes;
}

/// The state of blocks being decoded.
pub trait TokenCache: Clone + core::fmt::Debug + Send + 'static {
    /// Bytes that it takes on the device while blocks are decoded, whether or not one has begun.
    fn bytes(&self) -> usize;
}

impl TokenCache for blockformer_kv_cache::KvCache {
    fn bytes(&self) -> usize {
        self.bytes()
    }
}

/// The sizes a token decoder takes from the model it is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenDecoderSizes {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Tokens a block.
    pub block_length: usize,
    /// Context embeddings a block.
    pub n_embedding_tokens: usize,
    /// Blocks whose context embeddings begin a block: 1 in the paper. A decoder that does not tell their places apart
    /// must refuse more ([`check_one_context_block`](Self::check_one_context_block)).
    pub context_blocks: usize,
    /// Features of a context embedding, the block decoder's `d_model`.
    pub d_context: usize,
}

impl TokenDecoderSizes {
    /// Checks that no size is zero.
    ///
    /// # Errors
    /// A [`ConfigError`] naming the first that is.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::positive("vocab_size", self.vocab_size)?;
        ConfigError::positive("block_length", self.block_length)?;
        ConfigError::positive("n_embedding_tokens", self.n_embedding_tokens)?;
        ConfigError::positive("context_blocks", self.context_blocks)?;
        ConfigError::positive("d_context", self.d_context)
    }

    /// Context embeddings that begin a block, those of the oldest block first.
    pub fn n_contexts(&self) -> usize {
        self.context_blocks * self.n_embedding_tokens
    }

    /// Checks that a block is decoded from the context embeddings of one block only.
    ///
    /// # Errors
    /// [`ConfigError::Mismatch`] naming `decoder`.
    pub fn check_one_context_block(&self, decoder: &'static str) -> Result<(), ConfigError> {
        ConfigError::equal("context_blocks", self.context_blocks, decoder, 1)
    }

    /// Checks that `id` is in the vocabulary.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`] naming `field`.
    pub fn check_token(&self, field: &'static str, id: u32) -> Result<(), ConfigError> {
        ConfigError::in_range(field, f64::from(id), 0.0, self.vocab_size as f64 - 1.0)
    }
}

/// Decodes two blocks token by token through one cache, and compares each with the whole block at once.
#[cfg(test)]
pub(crate) fn assert_steps_match_the_whole_block<T: TokenDecoder>(decoder: &T) {
    use burn::tensor::{Distribution, Tolerance, s};

    let device = Device::flex();
    let sizes = decoder.sizes();
    let shape = [3, sizes.n_contexts(), sizes.d_context];
    let context = Tensor::<3>::random(shape, Distribution::Normal(0.0, 1.0), &device);
    let ids = Tensor::<2, Int>::from_ints([[1, 2, 3], [4, 5, 6], [12, 0, 7]], &device);
    let full = decoder.forward(TokenInput::start(context.clone()).with_ids(Some(ids.clone())), None);
    let mut cache = decoder.new_cache(3, &device);
    for _ in 0..2 {
        let mut steps = vec![decoder.forward(TokenInput::start(context.clone()), Some(&mut cache))];
        for i in 0..3 {
            let token = ids.clone().slice(s![.., i..i + 1]);
            steps.push(decoder.forward(TokenInput::next(token), Some(&mut cache)));
        }
        let stepped = Tensor::cat(steps, 1).into_data();
        stepped.assert_approx_eq::<f32>(&full.to_data(), Tolerance::absolute(1e-5));
    }
}
