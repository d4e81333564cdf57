//! A vanilla transformer on packed weights.

use blockformer_kernels::{Level, Precision};
use blockformer_model::{BlockLayout, BlockedPrompts, VanillaTransformer, VanillaTransformerConfig};
use burn::tensor::Device;

use crate::PackError;
use crate::cache::{Cache, Kv};
use crate::lengths::Lengths;
use crate::profile::{Clock, Profile};
use crate::stack::{PREFILL_ROWS, Positions, Scratch, Stack, room};
use crate::tokens::Vocabulary;
use crate::work::Work;

#[derive(Debug, Clone)]
pub(crate) struct VanillaModel {
    layout: BlockLayout,
    vocabulary: Vocabulary,
    stack: Stack,
}

/// The caches and buffers of sequences being generated.
#[derive(Debug, Clone)]
pub(crate) struct VanillaState {
    cache: Cache,
    padded: Vec<usize>,
    batch: usize,
    x: Vec<f32>,
    last: Vec<f32>,
    scratch: Scratch,
    /// Bytes of the buffers that the prompts took.
    prompt_bytes: usize,
    pub(crate) profile: Profile,
}

impl VanillaState {
    pub(crate) fn kv_bytes(&self) -> usize {
        self.cache.bytes()
    }

    pub(crate) fn buffer_bytes(&self) -> usize {
        let now = size_of_val(&self.x[..]) + size_of_val(&self.last[..]) + self.scratch.bytes();
        now.max(self.prompt_bytes)
    }

    pub(crate) fn batch(&self) -> usize {
        self.batch
    }
}

impl VanillaModel {
    pub(crate) fn new(
        config: &VanillaTransformerConfig,
        model: VanillaTransformer,
        precision: Precision,
    ) -> Result<Self, PackError> {
        let layout = model.layout();
        let VanillaTransformer { vocabulary, transformer, .. } = model;
        Ok(Self {
            layout,
            vocabulary: Vocabulary::new(vocabulary, precision),
            stack: Stack::new(transformer, &config.transformer, precision)?,
        })
    }

    pub(crate) fn layout(&self) -> BlockLayout {
        self.layout
    }

    pub(crate) fn bytes(&self) -> usize {
        self.vocabulary.bytes() + self.stack.bytes()
    }

    pub(crate) fn prefill(
        &self,
        level: Level,
        prompts: &BlockedPrompts,
        new_tokens: usize,
        device: &Device,
    ) -> (VanillaState, Vec<f32>) {
        let [batch, n, _] = prompts.shape();
        let padded = prompts.padded_blocks();
        let mut state = VanillaState {
            cache: Cache::new(self.stack.config(), batch, n + new_tokens.max(1) - 1),
            padded: if padded.iter().any(|padded| *padded > 0) { padded } else { Vec::new() },
            batch,
            x: Vec::new(),
            last: Vec::new(),
            scratch: Scratch::default(),
            prompt_bytes: 0,
            profile: Profile::default(),
        };
        let ids: Vec<u32> = prompts.ids(device).into_data().iter::<u32>().collect();
        self.take_in(level, &ids, &mut state);
        let mut logits = Vec::new();
        self.project(level, &mut state, &mut logits);
        // What only a prompt needs is given back.
        state.prompt_bytes = state.buffer_bytes();
        (state.x, state.scratch) = (Vec::new(), Scratch::default());
        (state, logits)
    }

    /// Logits, instead of whatever `logits` holds.
    pub(crate) fn step(&self, level: Level, state: &mut VanillaState, tokens: &[u32], logits: &mut Vec<f32>) {
        assert_eq!(tokens.len(), state.batch, "one token a sequence");
        self.take_in(level, tokens, state);
        self.project(level, state, logits);
    }

    /// The likeliest tokens instead of logits; nothing where these are no numbers.
    pub(crate) fn step_likeliest(&self, level: Level, state: &mut VanillaState, tokens: &[u32]) -> Vec<Option<u32>> {
        assert_eq!(tokens.len(), state.batch, "one token a sequence");
        self.take_in(level, tokens, state);
        let mut clock = Clock::start();
        let last = &state.last[..state.batch * self.stack.config().d_model];
        let found = self.vocabulary.likeliest(level, last, &mut state.scratch);
        clock.lap(&mut state.profile.output);
        found
    }

    /// Logits of the token after the last of each sequence.
    fn project(&self, level: Level, state: &mut VanillaState, logits: &mut Vec<f32>) {
        let mut clock = Clock::start();
        let last = &state.last[..state.batch * self.stack.config().d_model];
        self.vocabulary.logits(level, last, &mut state.scratch, logits);
        clock.lap(&mut state.profile.output);
    }

    /// Takes in tokens of all sequences: `state.last` are the hidden states of the last of each.
    fn take_in(&self, level: Level, ids: &[u32], state: &mut VanillaState) {
        let (batch, d_model) = (state.batch, self.stack.config().d_model);
        let new = ids.len() / batch;
        let at_once = (PREFILL_ROWS / new).clamp(1, batch);
        room(&mut state.last, batch * d_model);
        for first in (0..batch).step_by(at_once) {
            let sequences = first..(first + at_once).min(batch);
            let mut clock = Clock::start();
            let x = room(&mut state.x, sequences.len() * new * d_model);
            self.vocabulary.table().look_up(&ids[sequences.start * new..sequences.end * new], x);
            clock.lap(&mut state.profile.embedder);
            let padded = if state.padded.is_empty() { &[][..] } else { &state.padded[sequences.clone()] };
            let new = Lengths::Same { length: new, rows: sequences.len() };
            let positions = Positions { new, wanted: Some(1), group: 1, padded, turned: 0 };
            let kv = Kv::Together { cache: &mut state.cache, sequences: sequences.clone() };
            let spent = self.stack.forward(level, x, positions, kv, &mut state.scratch);
            state.profile.token_decoder += spent;
            let last = sequences.len() * d_model;
            state.last[sequences.start * d_model..][..last].copy_from_slice(&x[..last]);
        }
        state.cache.advance(new);
    }
}

/// What the engine asks for.
impl VanillaModel {
    /// The layers, whose keys and values a pool holds.
    pub(crate) fn pooled(&self) -> &Stack {
        &self.stack
    }

    /// Takes in tokens of some sequences: the hidden state of the last of each, `[rows, d_model]`.
    pub(crate) fn take_in_paged(
        &self,
        level: Level,
        (ids, new): (&[u32], Lengths<'_>),
        kv: Kv<'_, '_>,
        work: &mut Work,
    ) -> Vec<f32> {
        let last = self.hidden(level, (ids, new, Some(1)), kv, work);
        last[..new.rows() * self.stack.config().d_model].to_vec()
    }

    /// Takes in tokens of some sequences: first come the hidden states of the last `wanted` of each, or of all.
    fn hidden<'w>(
        &self,
        level: Level,
        (ids, new, wanted): (&[u32], Lengths<'_>, Option<usize>),
        kv: Kv<'_, '_>,
        work: &'w mut Work,
    ) -> &'w [f32] {
        assert!(new.iter().all(|new| new > 0), "no tokens to take in");
        let x = room(&mut work.x, ids.len() * self.stack.config().d_model);
        self.vocabulary.table().look_up(ids, x);
        let positions = Positions { new, wanted, group: 1, padded: &[], turned: 0 };
        self.stack.forward(level, x, positions, kv, &mut work.scratch);
        x
    }

    /// The hidden states of all tokens of one text, `[tokens, d_model]`.
    pub(crate) fn text_hidden(&self, level: Level, ids: &[u32]) -> Vec<f32> {
        let mut cache = Cache::new(self.stack.config(), 1, ids.len());
        let kv = Kv::Together { cache: &mut cache, sequences: 0..1 };
        let new = Lengths::Same { length: ids.len(), rows: 1 };
        self.hidden(level, (ids, new, None), kv, &mut Work::default()).to_vec()
    }

    /// Logits of rows of hidden states.
    pub(crate) fn logits(&self, level: Level, hidden: &[f32]) -> Vec<f32> {
        let mut logits = Vec::new();
        self.vocabulary.logits(level, hidden, &mut Scratch::default(), &mut logits);
        logits
    }

    /// Logits of every token of one text from token `from` on, `[tokens - from, vocab_size]`.
    pub(crate) fn teacher_forced(&self, level: Level, ids: &[u32], from: usize) -> Vec<f32> {
        self.logits(level, &self.predicting(level, ids, from))
    }

    /// The hidden states that predict every token of one text from token `from` on, `[tokens - from, d_model]`.
    pub(crate) fn predicting(&self, level: Level, ids: &[u32], from: usize) -> Vec<f32> {
        assert!(from > 0, "the first token is not predicted");
        let (mut hidden, d_model) = (self.text_hidden(level, ids), self.stack.config().d_model);
        hidden.truncate((ids.len() - 1) * d_model);
        hidden.split_off((from - 1) * d_model)
    }
}
