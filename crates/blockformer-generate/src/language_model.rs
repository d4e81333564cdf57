//! What generation asks of a model.

use blockformer_model::{BlockLayout, BlockedPrompts};
use burn::tensor::{Device, FloatDType, Int, Tensor};

use crate::read_back::read_tokens;
use crate::sampler::argmax;

/// A model that can go on from prompts, token by token, a batch of sequences at a time.
///
/// Models should be in their validation form (`Module::valid`), or the autodiff graph grows with every token.
pub trait LanguageModel {
    /// Everything computed of the sequences so far: the caches.
    type State;

    /// How prompts are cut into blocks, and the context.
    fn layout(&self) -> BlockLayout;

    /// Takes in prompts and allocates caches for `new_tokens` more each.
    ///
    /// # Shapes
    /// - returns, beside the state: logits of the next token, `[batch, vocab_size]`
    ///
    /// # Panics
    /// If prompts and new tokens go beyond the context; [`BlockLayout::block_prompts`] has checked that.
    fn prefill(&self, prompts: &BlockedPrompts, new_tokens: usize, device: &Device) -> (Self::State, Tensor<2>);

    /// Takes in one token a sequence.
    ///
    /// # Shapes
    /// - `tokens`: one a sequence
    /// - returns: logits of the token after it, `[batch, vocab_size]`
    ///
    /// # Panics
    /// If there is not one token a sequence, or if the caches cannot take more.
    fn step(&self, state: &mut Self::State, tokens: &[u32]) -> Tensor<2>;

    /// Takes in one token a sequence, as [`step`](Self::step), and writes the logits into memory that serves one step after the
    /// other: what a host that draws tokens asks for. A model that computes on the host may make no tensor of them.
    ///
    /// # Shapes
    /// - `logits`: behind it `[batch, vocab_size]`, row by row, whatever was there
    ///
    /// # Panics
    /// As [`step`](Self::step).
    fn step_into(&self, state: &mut Self::State, tokens: &[u32], logits: &mut Vec<f32>) {
        *logits = to_host(self.step(state, tokens));
    }

    /// Takes in one token a sequence, as [`step`](Self::step), and gives the likeliest token after it instead of logits:
    /// of equals the smallest id, and nothing where logits are no numbers. Greedy generation asks for no more, and a model
    /// may find it without holding all logits.
    ///
    /// # Panics
    /// As [`step`](Self::step).
    fn step_likeliest(&self, state: &mut Self::State, tokens: &[u32]) -> Vec<Option<u32>> {
        likeliest(self.step(state, tokens))
    }

    /// Takes in one token a sequence, of ids that are on the device and stay there: the same as
    /// [`step`](Self::step), without a host that waits for them. Unless a model says otherwise, they are read back.
    ///
    /// # Shapes
    /// - `tokens`: `[batch, 1]`
    /// - returns: logits of the token after it, `[batch, vocab_size]`
    ///
    /// # Panics
    /// As [`step`](Self::step).
    fn step_on_device(&self, state: &mut Self::State, tokens: Tensor<2, Int>) -> Tensor<2> {
        let tokens: Vec<u32> = read_tokens(tokens).iter().map(|id| *id as u32).collect();
        self.step(state, &tokens)
    }

    /// From now on attention covers a number of cached positions that is a multiple of `multiple`, hiding those that
    /// hold nothing, so that a device sees few shapes. The logits stay the same, up to rounding. A model may ignore it.
    fn round_positions(&self, _state: &mut Self::State, _multiple: usize) {}

    /// Bytes of the keys and values that `state` holds room for.
    fn kv_bytes(&self, state: &Self::State) -> usize;

    /// The steps that come now, for a device to capture in a graph: they launch the same whatever the number of positions held,
    /// which the device counts. They take over the caches.
    ///
    /// # Errors
    /// The state, as it was, where a model or its device has no such steps.
    ///
    /// # Panics
    /// Unless a block has been decoded whole, of which steps have taken in all tokens but the last. The steps panic if there
    /// is a clone of the state.
    fn recordable_steps<'a>(&'a self, state: Self::State) -> Result<RecordableSteps<'a>, Self::State> {
        Err(state)
    }
}

/// Steps for a device to record, see [`LanguageModel::recordable_steps`].
pub struct RecordableSteps<'a> {
    /// Positions that the cache holds; each block takes one more (each token, of a vanilla transformer).
    pub held: usize,
    /// Logits of the next token, `[batch, vocab_size]`.
    pub step: Box<dyn FnMut(RecordableStep) -> Tensor<2> + Send + 'a>,
}

impl std::fmt::Debug for RecordableSteps<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordableSteps").field("held", &self.held).finish_non_exhaustive()
    }
}

/// One of [`RecordableSteps`].
#[derive(Debug, Clone)]
pub enum RecordableStep {
    /// Takes in a whole block, for the first token of the next.
    Block {
        /// The block's tokens, `[batch, block_length]`.
        ids: Tensor<2, Int>,
        /// Positions that the cache holds before, `[1]` in float32.
        count: Tensor<1>,
    },
    /// Takes in a token of a block, `[batch, 1]`, for the next.
    Token(Tensor<2, Int>),
}

/// The likeliest token of each row of logits, `[batch, vocab_size]`; of equals the smallest id, and nothing where logits
/// are no numbers.
pub fn likeliest(logits: Tensor<2>) -> Vec<Option<u32>> {
    let [_, vocab_size] = logits.dims();
    to_host(logits).chunks(vocab_size).map(|row| argmax(row).ok().flatten()).collect()
}

/// Logits or embeddings as numbers, row by row. Waits for the device.
pub(crate) fn to_host(logits: Tensor<2>) -> Vec<f32> {
    match logits.cast(FloatDType::F32).into_data().try_into_vec() {
        Ok(numbers) => numbers,
        Err(error) => unreachable!("they were cast to float32: {error:?}"),
    }
}
