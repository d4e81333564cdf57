//! Generation with a model whose kind is known at run time only.

use blockformer_model::{AnyModel, BlockLayout, BlockedPrompts};
use blockformer_token_decoder::AnyTokenCache;
use burn::tensor::{Device, Int, Tensor};

use crate::{BlockState, LanguageModel, RecordableSteps, VanillaState};

/// The state of an [`AnyModel`] that generates.
#[derive(Debug, Clone)]
pub enum AnyState {
    /// Of a Block Transformer.
    Block(BlockState<AnyTokenCache>),
    /// Of a vanilla transformer.
    Vanilla(VanillaState),
}

impl LanguageModel for AnyModel {
    type State = AnyState;

    fn layout(&self) -> BlockLayout {
        self.layout()
    }

    fn prefill(&self, prompts: &BlockedPrompts, new_tokens: usize, device: &Device) -> (AnyState, Tensor<2>) {
        match self {
            Self::Block(model) => {
                let (state, logits) = model.prefill(prompts, new_tokens, device);
                (AnyState::Block(state), logits)
            }
            Self::Vanilla(model) => {
                let (state, logits) = model.prefill(prompts, new_tokens, device);
                (AnyState::Vanilla(state), logits)
            }
        }
    }

    fn step(&self, state: &mut AnyState, tokens: &[u32]) -> Tensor<2> {
        match (self, state) {
            (Self::Block(model), AnyState::Block(state)) => model.step(state, tokens),
            (Self::Vanilla(model), AnyState::Vanilla(state)) => model.step(state, tokens),
            _ => panic!("the state of another kind of model"),
        }
    }

    fn step_on_device(&self, state: &mut AnyState, tokens: Tensor<2, Int>) -> Tensor<2> {
        match (self, state) {
            (Self::Block(model), AnyState::Block(state)) => model.step_on_device(state, tokens),
            (Self::Vanilla(model), AnyState::Vanilla(state)) => model.step_on_device(state, tokens),
            _ => panic!("the state of another kind of model"),
        }
    }

    fn round_positions(&self, state: &mut AnyState, multiple: usize) {
        match (self, state) {
            (Self::Block(model), AnyState::Block(state)) => model.round_positions(state, multiple),
            (Self::Vanilla(model), AnyState::Vanilla(state)) => model.round_positions(state, multiple),
            _ => panic!("the state of another kind of model"),
        }
    }

    fn kv_bytes(&self, state: &AnyState) -> usize {
        match (self, state) {
            (Self::Block(model), AnyState::Block(state)) => model.kv_bytes(state),
            (Self::Vanilla(model), AnyState::Vanilla(state)) => model.kv_bytes(state),
            _ => panic!("the state of another kind of model"),
        }
    }

    fn recordable_steps<'a>(&'a self, state: AnyState) -> Result<RecordableSteps<'a>, AnyState> {
        match (self, state) {
            (Self::Block(model), AnyState::Block(state)) => model.recordable_steps(state).map_err(AnyState::Block),
            (Self::Vanilla(model), AnyState::Vanilla(state)) => {
                model.recordable_steps(state).map_err(AnyState::Vanilla)
            }
            _ => panic!("the state of another kind of model"),
        }
    }
}
