//! What generation asks of a model.

use blockformer_model::{BlockLayout, BlockedPrompts};
use blockformer_token_decoder::TokenInput;
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

    /// The same model for those who decode whole blocks, if it decodes a block from nothing but its context.
    fn block_by_block(&self) -> Option<&dyn BlockByBlock<Self::State>> {
        None
    }
}

/// A token decoder by itself, which keeps the block that it is at: from what begins a block, or from the token before, to
/// the logits of the next, `[batch, vocab_size]`.
pub type TokenSteps<'a> = Box<dyn FnMut(TokenInput) -> Tensor<2> + 'a>;

/// A model of which the part that decodes a block's tokens sees only the block's context: it does the same for every
/// block, in caches that do not grow, so a device can [record](crate::DeviceDecoding::recorded) it.
pub trait BlockByBlock<S> {
    /// Takes in a whole block of each sequence, of which steps may have taken in some tokens, but not all.
    ///
    /// # Shapes
    /// - `block`: `[batch, block_length]`
    /// - returns: the context embeddings that begin the next block, `[batch, n_contexts, d_context]`
    ///
    /// # Panics
    /// If shapes do not fit, or if the cache cannot take more.
    fn take_block(&self, state: &mut S, block: Tensor<2, Int>) -> Tensor<3>;

    /// Begins that next block.
    ///
    /// # Shapes
    /// - `context`: as [`take_block`](Self::take_block) gives it
    /// - returns: logits of the block's first token, `[batch, vocab_size]`
    fn begin_block(&self, state: &mut S, context: Tensor<3>) -> Tensor<2>;

    /// Decodes blocks of as many sequences as `state` has, in a cache of its own.
    fn token_steps<'a>(&'a self, state: &S) -> TokenSteps<'a>;
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
