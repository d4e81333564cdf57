//! What the engine asks of a model.

mod any;
mod block;
mod vanilla;

use blockformer_cubecl::MAX_HELD;
use blockformer_kv_cache::{KvStorage, PagedBatch, PoolConfig, SharedPages};
use blockformer_model::BlockLayout;
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};

use crate::block::id_tensor;
use crate::read_back::read_tokens;

/// Whole blocks of one or several sequences.
#[derive(Debug, Clone, Copy)]
pub struct Blocks<'a> {
    /// Token ids, sequence after sequence.
    pub ids: &'a [u32],
    /// False where an id is padding; `None` where there is none.
    pub real: Option<&'a [bool]>,
    /// How many blocks there are of each sequence.
    pub n_blocks: &'a [usize],
    /// Whether they begin their sequences and a learned start of text is to be put in front of each, as where
    /// [the model has one](BlockLayout::predict_first_block).
    pub begin: bool,
    /// Where to compute.
    pub device: &'a Device,
}

impl Blocks<'_> {
    /// How many sequences there are.
    pub fn rows(&self) -> usize {
        self.n_blocks.len()
    }

    /// How many blocks there are of each sequence, if it is the same number.
    pub fn n_blocks_each(&self) -> Option<usize> {
        let first = *self.n_blocks.first()?;
        self.n_blocks.iter().all(|n| *n == first).then_some(first)
    }

    /// `[rows, n_blocks, block_length]` where there are as many of each sequence, otherwise `[1, blocks of all, block_length]`; nothing
    /// if there is no block.
    pub(crate) fn ids(&self, block_length: usize) -> Option<Tensor<3, Int>> {
        let shape = self.shape(block_length);
        (shape[1] > 0).then(|| id_tensor(self.ids.iter(), shape, self.device))
    }

    /// Of the same shape, false on padding.
    pub(crate) fn mask(&self, block_length: usize) -> Option<Tensor<3, Bool>> {
        let real = self.real.filter(|real| real.contains(&false))?;
        Some(Tensor::from_data(TensorData::new(real.to_vec(), self.shape(block_length)), self.device))
    }

    fn shape(&self, block_length: usize) -> [usize; 3] {
        let n: usize = self.n_blocks.iter().sum();
        assert_eq!(self.ids.len(), n * block_length, "tokens of {n} blocks");
        match self.n_blocks_each() {
            Some(each) => [self.rows(), each, block_length],
            None => [1, n, block_length],
        }
    }
}

/// What a model keeps of the blocks it has taken in, beside keys and values: what decodes the next block.
#[derive(Debug, Clone)]
pub struct Context {
    /// The context embeddings that the next block is decoded from, `[rows, n_contexts, d_model]`.
    pub window: Tensor<3>,
    /// Those that the windows of later blocks need too, `[rows, blocks, n_embedding_tokens, d_model]`.
    pub recent: Option<Tensor<4>>,
}

/// Decodes blocks for a device to record, see [`PagedModel::recordable_block`]: logits of the next token of each,
/// `[rows, vocab_size]`.
pub type RecordableBlock = Box<dyn FnMut(BlockStep) -> Tensor<2> + Send>;

/// One of the steps of a [`RecordableBlock`].
#[derive(Debug, Clone)]
pub enum BlockStep {
    /// Begins blocks behind these windows, `[rows, n_contexts, d_model]`.
    Begin(Tensor<3>),
    /// Takes in a token of each, `[rows, 1]`.
    Token(Tensor<2, Int>),
}

/// Takes in blocks for a device to record, see [`PagedModel::recordable_take_in`]: of the tokens of a block of each sequence,
/// `[rows, block_length]`, and the [tables](PagedBatch::tables) that say where its keys and values belong, the windows that the
/// next blocks are decoded from, `[rows, n_contexts, d_model]`.
pub type RecordableTakeIn = Box<dyn FnMut(Tensor<2, Int>, Tensor<2, Int>) -> Tensor<3> + Send>;

/// A model that can go on from prompts, block by block (of one token, for a vanilla transformer), many sequences at a
/// time. [`Engine`](crate::Engine) runs it.
///
/// Models should be in their validation form (`Module::valid`), or the autodiff graph grows with every token.
pub trait PagedModel {
    /// Blocks being decoded: the token decoder's cache.
    type Block;

    /// How prompts are cut into blocks, and the context.
    fn layout(&self) -> BlockLayout;

    /// A pool for the keys and values of whole blocks, in pages of `page_blocks` blocks.
    fn pool_config(&self, page_blocks: usize, budget: usize, storage: KvStorage) -> PoolConfig;

    /// Positions of the pool that a block takes.
    fn positions_per_block(&self) -> usize;

    /// Blocks whose context embeddings the next block is decoded from.
    fn context_blocks(&self) -> usize;

    /// Bytes of the cache that decodes one block of one sequence.
    fn block_bytes(&self, device: &Device) -> usize;

    /// Takes in blocks behind those that the pool holds of each sequence: sequence `i` of `batch` has `n_blocks[i]` new ones, one more
    /// with a learned start, of [`positions_per_block`](Self::positions_per_block) positions each. `before` is what the last
    /// calls for these sequences gave, where the windows of later blocks need more than the last context
    /// ([`Context::recent`]).
    ///
    /// # Panics
    /// If shapes do not fit, or if there is nothing to take in of a sequence.
    fn take_in(&self, blocks: Blocks<'_>, before: Option<Context>, batch: &mut PagedBatch<'_>) -> Context;

    /// Whether blocks that are [taken in](Self::take_in) one by one get the very bits that they get together, however keys and values are
    /// stored and whatever sequences are beside theirs. An engine then offers blocks that it has generated to prompts that begin with
    /// them.
    fn takes_in_alike(&self) -> bool {
        false
    }

    /// Begins the next blocks.
    ///
    /// # Shapes
    /// - `window`: `[rows, n_contexts, d_model]`
    /// - returns, beside the blocks: logits of their first tokens, `[rows, vocab_size]`
    fn begin_blocks(&self, window: Tensor<3>) -> (Self::Block, Tensor<2>);

    /// Takes in one token of each block, never the last.
    ///
    /// # Shapes
    /// - `tokens`: one a row
    /// - returns: logits of the tokens after them, `[rows, vocab_size]`
    ///
    /// # Panics
    /// If there is not one token a row, or if blocks have one token only.
    fn step(&self, block: &mut Self::Block, tokens: &[u32], device: &Device) -> Tensor<2>;

    /// Whether [`step_on_device`](Self::step_on_device) leaves tokens on the device. An engine then has tokens drawn there, if it suits
    /// the device.
    fn keeps_tokens_on_device(&self) -> bool {
        false
    }

    /// The same with tokens that are on the device and stay there, without a host that waits for them. Unless a model says
    /// otherwise, they are read back, which waits, and is not to be had in a browser. A model that has it says so in
    /// [`keeps_tokens_on_device`](Self::keeps_tokens_on_device), or an engine makes no use of it by itself.
    ///
    /// # Shapes
    /// - `tokens`: `[rows, 1]`
    /// - returns: logits of the tokens after them, `[rows, vocab_size]`
    ///
    /// # Panics
    /// As [`step`](Self::step).
    fn step_on_device(&self, block: &mut Self::Block, tokens: Tensor<2, Int>) -> Tensor<2> {
        let device = tokens.device();
        let tokens: Vec<u32> = read_tokens(tokens).iter().map(|id| *id as u32).collect();
        self.step(block, &tokens, &device)
    }

    /// [`begin_blocks`](Self::begin_blocks) and [`step_on_device`](Self::step_on_device) for a device to record in a graph: whatever
    /// they compute with is theirs, and they launch the same every time, for as many rows. A model may have no such steps.
    fn recordable_block(&self) -> Option<RecordableBlock> {
        None
    }

    /// The same of [`take_in`](Self::take_in), for one block of each of `rows` sequences in these pages, of which no sequence
    /// has more than `most_pages`. A model has no such step for itself or for these sizes where it needs more than the
    /// window (see [`Context::recent`]) or a host that knows how much the sequences hold.
    fn recordable_take_in(&self, _pages: &SharedPages, _rows: usize, _most_pages: usize) -> Option<RecordableTakeIn> {
        None
    }

    /// Logits of several tokens of each block in one pass: all that follow the first `known` of `tokens`.
    ///
    /// # Shapes
    /// - `window`: `[rows, n_contexts, d_model]`
    /// - `tokens`: `n < block_length` a row, row after row
    /// - returns: `[rows, n + 1 - known, vocab_size]`
    fn decode_whole(&self, window: Tensor<3>, tokens: &[u32], known: usize) -> Tensor<3>;

    /// Logits of every token of one text from token `from` on, teacher-forced, without caches.
    ///
    /// # Shapes
    /// - `blocks`: whole blocks of one sequence
    /// - returns: `[tokens - from, vocab_size]`
    ///
    /// # Panics
    /// If token `from` is one that the model does not predict.
    fn teacher_forced(&self, blocks: Blocks<'_>, from: usize) -> Tensor<2>;

    /// The context embedding of every block of one text (for a vanilla transformer, the hidden state of every token).
    ///
    /// # Shapes
    /// - returns: `[n_blocks, n_embedding_tokens · d_model]`
    fn context_embeddings(&self, blocks: Blocks<'_>) -> Tensor<2>;
}

/// The most positions that a sequence of so many pages holds before one more, which has a place in the rotary tables and among
/// those that kernels attend to.
pub(crate) fn longest(pages: &SharedPages, most_pages: usize, max_positions: Option<usize>) -> usize {
    let positions = (most_pages * pages.config().page_length).min(MAX_HELD);
    max_positions.map_or(positions, |max| positions.min(max)).saturating_sub(1)
}

/// Places along a dimension.
pub(crate) fn indices(places: &[usize], device: &Device) -> Tensor<1, Int> {
    let numbers: Vec<i32> = places.iter().map(|place| *place as i32).collect();
    Tensor::from_data(TensorData::new(numbers, [places.len()]), (device, DType::I32))
}
