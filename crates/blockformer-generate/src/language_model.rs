//! What generation asks of a model.

use blockformer_model::{BlockLayout, BlockedPrompts};
use burn::tensor::{Device, Tensor};

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

    /// Bytes of the keys and values that `state` holds room for.
    fn kv_bytes(&self, state: &Self::State) -> usize;
}
