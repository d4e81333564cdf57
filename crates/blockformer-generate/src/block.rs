//! Block by block.

use blockformer_embedder::Embedder;
use blockformer_kv_cache::{Counted, KvCache};
use blockformer_model::{BlockLayout, BlockTransformer, BlockedPrompts, real_blocks};
use blockformer_token_decoder::{TokenCache, TokenDecoder, TokenInput};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use crate::{LanguageModel, RecordableStep, RecordableSteps};

/// The state of a Block Transformer that generates.
#[derive(Debug, Clone)]
pub struct BlockState<C> {
    /// One entry a block.
    blocks: KvCache,
    /// The block being decoded.
    tokens: C,
    /// Its tokens so far, `[batch, 1]` each.
    current: Vec<Tensor<2, Int>>,
    /// Blocks at the start of each sequence that are nothing but padding.
    padded_blocks: Vec<usize>,
    /// Blocks taken in, padding and the start of text included.
    n_blocks: usize,
    /// The last context embeddings, where a block is decoded from several.
    recent: Option<Tensor<4>>,
    device: Device,
}

impl<C> BlockState<C> {
    /// `[batch, n_blocks]`, false for blocks of padding; `None` where there are none.
    fn block_mask(&self) -> Option<Tensor<2, Bool>> {
        behind_padding(&self.padded_blocks, self.n_blocks, &self.device)
    }
}

impl<E: Embedder, T: TokenDecoder> LanguageModel for BlockTransformer<E, T> {
    type State = BlockState<T::Cache>;

    fn layout(&self) -> BlockLayout {
        self.layout()
    }

    fn prefill(&self, prompts: &BlockedPrompts, new_tokens: usize, device: &Device) -> (Self::State, Tensor<2>) {
        let [batch, n_blocks, _] = prompts.shape();
        // The last block that is decoded is never taken in.
        let start = usize::from(self.layout().predict_first_block);
        let capacity = start + n_blocks + self.layout().n_blocks(new_tokens.max(1)) - 1;
        let mut state = BlockState {
            blocks: self.block_decoder.new_cache(batch, capacity, device),
            tokens: self.token_decoder.new_cache(batch, device),
            current: Vec::with_capacity(self.layout().block_length),
            padded_blocks: prompts.padded_blocks(),
            n_blocks: 0,
            recent: None,
            device: device.clone(),
        };
        let mask = prompts.mask(device);
        let real = real_blocks(mask.clone());
        let blocks = self.embedder.forward(prompts.ids(device), mask); // [batch, n_blocks, n_embedding_tokens, d_model]
        let (blocks, real) = self.context_ends.with_start(blocks, real);
        let logits = take_in(self, &mut state, blocks, real);
        (state, logits)
    }

    fn step(&self, state: &mut Self::State, tokens: &[u32]) -> Tensor<2> {
        let ids = id_tensor(tokens.iter(), [tokens.len(), 1], &state.device);
        self.step_on_device(state, ids)
    }

    fn step_on_device(&self, state: &mut Self::State, tokens: Tensor<2, Int>) -> Tensor<2> {
        let (batch, length) = (state.padded_blocks.len(), self.layout().block_length);
        assert_eq!(tokens.dims(), [batch, 1], "one token a sequence");
        state.current.push(tokens.clone());
        if state.current.len() == length {
            let ids = Tensor::cat(std::mem::take(&mut state.current), 1).reshape([batch, 1, length]);
            return take_in(self, state, self.embedder.forward(ids, None), None);
        }
        let hidden = self.token_decoder.forward(TokenInput::next(tokens), Some(&mut state.tokens)); // [batch, 1, d_model]
        self.logits(hidden).squeeze_dim(1)
    }

    fn round_positions(&self, state: &mut Self::State, multiple: usize) {
        state.blocks.round_views(multiple * self.block_decoder.n_embedding_tokens());
    }

    fn kv_bytes(&self, state: &Self::State) -> usize {
        let recent = state.recent.as_ref().map_or(0, |recent| recent.shape().num_elements() * recent.dtype().size());
        state.blocks.bytes() + state.tokens.bytes() + recent
    }

    fn recordable_steps<'a>(&'a self, state: Self::State) -> Result<RecordableSteps<'a>, Self::State> {
        assert_eq!(state.current.len() + 1, self.layout().block_length, "tokens of the block that steps have taken in");
        // A window of several blocks is carried from one to the next beside the cache.
        if state.recent.is_some() || !self.block_decoder.takes_counts(&state.blocks) {
            return Err(state);
        }
        let held = state.blocks.len();
        let hidden = hidden(&state.padded_blocks, state.blocks.config().capacity, &state.device);
        let BlockState { mut blocks, mut tokens, .. } = state;
        let model = self.clone(); // not its weights
        let step = move |step| {
            let input = match step {
                RecordableStep::Block { ids, count } => {
                    blocks.count_on_device(&Counted { count, hidden: hidden.clone() });
                    let [batch, length] = ids.dims();
                    let block = model.embedder.forward(ids.reshape([batch, 1, length]), None);
                    let contexts = model.block_decoder.forward(block, None, Some(&mut blocks));
                    TokenInput::start(model.context_ends.last_window(contexts, None, None).0)
                }
                RecordableStep::Token(ids) => TokenInput::next(ids),
            };
            model.logits(model.token_decoder.forward(input, Some(&mut tokens))).squeeze_dim(1)
        };
        Ok(RecordableSteps { held, step: Box::new(step) })
    }
}

/// Takes in whole blocks, of which `real` are not padding, and begins the next one: logits of its first token.
fn take_in<E: Embedder, T: TokenDecoder>(
    model: &BlockTransformer<E, T>,
    state: &mut BlockState<T::Cache>,
    blocks: Tensor<4>,
    real: Option<Tensor<2, Bool>>,
) -> Tensor<2> {
    state.n_blocks += blocks.dims()[1];
    let mask = state.block_mask();
    let contexts = model.block_decoder.forward(blocks, mask, Some(&mut state.blocks));
    let (window, recent) = model.context_ends.last_window(contexts, real, state.recent.take());
    state.recent = recent;
    let hidden = model.token_decoder.forward(TokenInput::start(window), Some(&mut state.tokens)); // [batch, 1, d_model]
    model.logits(hidden).squeeze_dim(1)
}

/// Of `n` positions, false for the first ones of each sequence that are padding, `[batch, n]`; `None` where there are none.
pub(crate) fn behind_padding(padded: &[usize], n: usize, device: &Device) -> Option<Tensor<2, Bool>> {
    if padded.iter().all(|padded| *padded == 0) {
        return None;
    }
    let real: Vec<bool> = padded.iter().flat_map(|padded| (0..n).map(move |i| i >= *padded)).collect();
    Some(Tensor::from_data(TensorData::new(real, [padded.len(), n]), device))
}

/// The opposite for kernels, `[batch, 1, 1, n]`.
pub(crate) fn hidden(padded: &[usize], n: usize, device: &Device) -> Option<Tensor<4, Bool>> {
    behind_padding(padded, n, device).map(|real| real.bool_not().reshape([padded.len(), 1, 1, n]))
}

pub(crate) fn id_tensor<'a, const D: usize>(
    ids: impl Iterator<Item = &'a u32>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D, Int> {
    let ids: Vec<i32> = ids.map(|&id| id as i32).collect();
    Tensor::from_data(TensorData::new(ids, shape), device)
}
