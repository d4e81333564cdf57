//! A Block Transformer on packed weights.

use blockformer_kernels::{Level, Precision};
use blockformer_model::{BlockLayout, BlockTransformer, BlockTransformerConfig, BlockedPrompts};
use burn::tensor::Device;

use crate::PackError;
use crate::cache::Cache;
use crate::embedder::{Blocks, Embedder};
use crate::profile::{Clock, Profile};
use crate::stack::{PREFILL_ROWS, Positions, Scratch, Stack, room};
use crate::token_decoder::{TokenDecoder, TokenState, Tools};

#[derive(Debug, Clone)]
pub(crate) struct BlockModel {
    layout: BlockLayout,
    n_embedding_tokens: usize,
    embedder: Embedder,
    block_decoder: Stack,
    token_decoder: TokenDecoder,
}

/// The caches and buffers of sequences being generated.
#[derive(Debug, Clone)]
pub(crate) struct BlockState {
    blocks: Cache,
    tokens: TokenState,
    /// The tokens of the block being decoded, one list a sequence.
    current: Vec<Vec<u32>>,
    /// Positions of padding at the start of each sequence; empty if there are none.
    padded: Vec<usize>,
    x: Vec<f32>,
    joined: Vec<f32>,
    context: Vec<f32>,
    scratch: Scratch,
    pub(crate) profile: Profile,
}

impl BlockState {
    pub(crate) fn kv_bytes(&self) -> usize {
        self.blocks.bytes() + self.tokens.cache_bytes()
    }

    pub(crate) fn buffer_bytes(&self) -> usize {
        let floats = size_of_val(&self.x[..]) + size_of_val(&self.joined[..]) + size_of_val(&self.context[..]);
        floats + self.scratch.bytes() + self.tokens.buffer_bytes()
    }

    pub(crate) fn batch(&self) -> usize {
        self.current.len()
    }
}

impl BlockModel {
    pub(crate) fn new(
        config: &BlockTransformerConfig,
        model: BlockTransformer,
        precision: Precision,
    ) -> Result<Self, PackError> {
        let layout = model.layout();
        let BlockTransformer { embedder, block_decoder, token_decoder, .. } = model;
        Ok(Self {
            layout,
            n_embedding_tokens: config.n_embedding_tokens,
            token_decoder: TokenDecoder::new(token_decoder, &config.token_decoder, precision)?,
            block_decoder: Stack::new(block_decoder.transformer, &config.block_decoder, precision)?,
            embedder: Embedder::new(embedder, precision),
        })
    }

    pub(crate) fn layout(&self) -> BlockLayout {
        self.layout
    }

    pub(crate) fn bytes(&self) -> usize {
        self.embedder.bytes() + self.block_decoder.bytes() + self.token_decoder.bytes()
    }

    pub(crate) fn prefill(
        &self,
        level: Level,
        prompts: &BlockedPrompts,
        new_tokens: usize,
        device: &Device,
    ) -> (BlockState, Vec<f32>) {
        let [batch, n_blocks, length] = prompts.shape();
        let n = self.n_embedding_tokens;
        // The last block that is decoded is never taken in.
        let capacity = (n_blocks + self.layout.n_blocks(new_tokens.max(1)) - 1) * n;
        let padded: Vec<usize> = prompts.padded_blocks().iter().map(|blocks| blocks * n).collect();
        let mut state = BlockState {
            blocks: Cache::new(self.block_decoder.config(), batch, capacity),
            tokens: self.token_decoder.new_state(batch, n, length),
            current: vec![Vec::with_capacity(length); batch],
            padded: if padded.iter().any(|padded| *padded > 0) { padded } else { Vec::new() },
            x: Vec::new(),
            joined: Vec::new(),
            context: Vec::new(),
            scratch: Scratch::default(),
            profile: Profile::default(),
        };
        let ids: Vec<u32> = prompts.ids(device).into_data().iter::<u32>().collect();
        let real: Option<Vec<bool>> = prompts.mask(device).map(|mask| mask.into_data().iter::<bool>().collect());
        let logits = self.take_in(level, &ids, real.as_deref(), &mut state);
        // What only a prompt needs is given back.
        (state.x, state.joined, state.scratch) = (Vec::new(), Vec::new(), Scratch::default());
        (state, logits)
    }

    pub(crate) fn step(&self, level: Level, state: &mut BlockState, tokens: &[u32]) -> Vec<f32> {
        assert_eq!(tokens.len(), state.current.len(), "one token a sequence");
        for (block, token) in state.current.iter_mut().zip(tokens) {
            block.push(*token);
        }
        if state.current[0].len() == self.layout.block_length {
            let ids = state.current.concat();
            state.current.iter_mut().for_each(Vec::clear);
            return self.take_in(level, &ids, None, state);
        }
        let mut tools = Tools { level, scratch: &mut state.scratch, profile: &mut state.profile };
        self.token_decoder.next(tokens, &mut state.tokens, &mut tools)
    }

    /// Takes in whole blocks of all sequences and begins the next: logits of its first token.
    fn take_in(&self, level: Level, ids: &[u32], real: Option<&[bool]>, state: &mut BlockState) -> Vec<f32> {
        let batch = state.batch();
        let (n, d_model, length) =
            (self.n_embedding_tokens, self.block_decoder.config().d_model, self.layout.block_length);
        let n_blocks = ids.len() / (batch * length);
        let positions = n_blocks * n;
        let at_once = (PREFILL_ROWS / positions).clamp(1, batch);
        room(&mut state.context, batch * n * d_model);
        for first in (0..batch).step_by(at_once) {
            let sequences = first..(first + at_once).min(batch);
            let mut clock = Clock::start();
            let tokens = sequences.start * n_blocks * length..sequences.end * n_blocks * length;
            let shape = [sequences.len(), n_blocks, length];
            let blocks = Blocks { ids: &ids[tokens.clone()], real: real.map(|real| &real[tokens]), shape };
            let x = room(&mut state.x, sequences.len() * positions * d_model);
            self.embedder.forward(level, &blocks, &mut state.joined, x);
            clock.lap(&mut state.profile.embedder);
            let padded = if state.padded.is_empty() { &[][..] } else { &state.padded[sequences.clone()] };
            let new = Positions { sequences: sequences.clone(), new: positions, group: n, padded };
            let spent = self.block_decoder.forward(level, x, &new, &mut state.blocks, &mut state.scratch);
            state.profile.block_decoder += spent;
            let last = x.chunks_exact(positions * d_model).map(|x| &x[(positions - n) * d_model..]);
            let context = state.context[sequences.start * n * d_model..].chunks_exact_mut(n * d_model);
            context.zip(last).for_each(|(context, last)| context.copy_from_slice(last));
        }
        state.blocks.advance(positions);
        let mut tools = Tools { level, scratch: &mut state.scratch, profile: &mut state.profile };
        let context = &state.context[..batch * n * d_model];
        self.token_decoder.start(context, batch, n, &mut state.tokens, &mut tools)
    }
}
