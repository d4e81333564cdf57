//! Token by token, the baseline.

use blockformer_kv_cache::{Counted, KvCache};
use blockformer_model::{BlockLayout, BlockedPrompts, VanillaTransformer};
use burn::tensor::{Bool, Device, Int, Tensor, s};

use crate::block::{behind_padding, hidden, id_tensor};
use crate::{LanguageModel, RecordableStep, RecordableSteps};

/// The state of a vanilla transformer that generates.
#[derive(Debug, Clone)]
pub struct VanillaState {
    /// One entry a token.
    cache: KvCache,
    /// Tokens at the start of each sequence that are padding.
    padded: Vec<usize>,
    device: Device,
}

impl VanillaState {
    /// `[batch, n]`, false on padding; `None` where there is none.
    fn mask(&self, n: usize) -> Option<Tensor<2, Bool>> {
        behind_padding(&self.padded, n, &self.device)
    }
}

impl LanguageModel for VanillaTransformer {
    type State = VanillaState;

    fn layout(&self) -> BlockLayout {
        self.layout()
    }

    fn prefill(&self, prompts: &BlockedPrompts, new_tokens: usize, device: &Device) -> (VanillaState, Tensor<2>) {
        let [batch, n, _] = prompts.shape();
        let mut state = VanillaState {
            cache: self.transformer.new_cache(batch, n + new_tokens.max(1) - 1, device),
            padded: prompts.padded_blocks(),
            device: device.clone(),
        };
        let ids = prompts.ids(device).reshape([batch, n]);
        let hidden = self.forward(ids, state.mask(n), Some(&mut state.cache));
        (state, self.logits(hidden.slice(s![.., n - 1.., ..])).squeeze_dim(1))
    }

    fn step(&self, state: &mut VanillaState, tokens: &[u32]) -> Tensor<2> {
        let ids = id_tensor(tokens.iter(), [tokens.len(), 1], &state.device);
        self.step_on_device(state, ids)
    }

    fn step_on_device(&self, state: &mut VanillaState, tokens: Tensor<2, Int>) -> Tensor<2> {
        assert_eq!(tokens.dims(), [state.padded.len(), 1], "one token a sequence");
        let mask = state.mask(state.cache.len() + 1);
        self.logits(self.forward(tokens, mask, Some(&mut state.cache))).squeeze_dim(1)
    }

    fn round_positions(&self, state: &mut VanillaState, multiple: usize) {
        state.cache.round_views(multiple);
    }

    fn kv_bytes(&self, state: &VanillaState) -> usize {
        state.cache.bytes()
    }

    fn recordable_steps<'a>(&'a self, state: VanillaState) -> Result<RecordableSteps<'a>, VanillaState> {
        if !self.transformer.takes_counts(&state.cache) {
            return Err(state);
        }
        let held = state.cache.len();
        let hidden = hidden(&state.padded, state.cache.config().capacity, &state.device);
        let VanillaState { mut cache, .. } = state;
        let model = self.clone(); // not its weights
        let step = move |step| {
            let RecordableStep::Block { ids, count } = step else {
                panic!("a block of a vanilla transformer is a token")
            };
            cache.count_on_device(&Counted { count, hidden: hidden.clone() });
            model.logits(model.forward(ids, None, Some(&mut cache))).squeeze_dim(1)
        };
        Ok(RecordableSteps { held, step: Box::new(step) })
    }
}
