//! A Block Transformer on packed weights.

use blockformer_kernels::{Level, Precision};
use blockformer_model::{BlockLayout, BlockTransformer, BlockTransformerConfig, BlockedPrompts};
use burn::tensor::Device;

use crate::PackError;
use crate::cache::{Cache, Kv};
use crate::embedder::{Blocks, Embedder, EmbedderWork};
use crate::ends::{Ends, Units};
use crate::lengths::Lengths;
use crate::profile::{Clock, Profile};
use crate::stack::{PREFILL_ROWS, Positions, Scratch, Stack, room};
use crate::token_decoder::{Begin, TokenDecoder, TokenState, Tools};
use crate::work::Work;

#[derive(Debug, Clone)]
pub(crate) struct BlockModel {
    layout: BlockLayout,
    n_embedding_tokens: usize,
    embedder: Embedder,
    ends: Ends,
    block_decoder: Stack,
    token_decoder: TokenDecoder,
}

/// The caches and buffers of sequences being generated.
#[derive(Debug, Clone)]
pub(crate) struct BlockState {
    blocks: Cache,
    tokens: TokenState,
    /// The tokens of the block being decoded, `[batch, block_length]`, of which the first `n_current` of each sequence are
    /// there.
    current: Vec<u32>,
    n_current: usize,
    batch: usize,
    /// Positions of padding at the start of each sequence; empty if there are none.
    padded: Vec<usize>,
    x: Vec<f32>,
    embedder: EmbedderWork,
    /// The context embeddings that the block is decoded from, `[batch, context_blocks, n_embedding_tokens, d_model]`.
    context: Vec<f32>,
    /// A copy of the last of one sequence, while its window moves on.
    window_before: Vec<f32>,
    /// Bytes of those of `context` that the next block is decoded from, too.
    recent_bytes: usize,
    scratch: Scratch,
    /// Bytes of the buffers that the prompts took.
    prompt_bytes: usize,
    pub(crate) profile: Profile,
}

/// Whole blocks of some sequences.
#[derive(Clone, Copy)]
pub(crate) struct Text<'a> {
    pub(crate) ids: &'a [u32],
    /// False on padding; `None` where there is none.
    pub(crate) real: Option<&'a [bool]>,
    pub(crate) n_blocks: Lengths<'a>,
    /// Whether they begin their sequences.
    pub(crate) begin: bool,
}

impl BlockState {
    pub(crate) fn kv_bytes(&self) -> usize {
        self.blocks.bytes() + self.tokens.cache_bytes() + self.recent_bytes
    }

    pub(crate) fn buffer_bytes(&self) -> usize {
        let floats =
            [&self.x, &self.context, &self.window_before].iter().map(|floats| size_of_val(&floats[..])).sum::<usize>();
        let now = floats + self.embedder.bytes() + self.scratch.bytes() + self.tokens.buffer_bytes();
        now.max(self.prompt_bytes)
    }

    pub(crate) fn batch(&self) -> usize {
        self.batch
    }
}

impl BlockModel {
    pub(crate) fn new(
        config: &BlockTransformerConfig,
        model: BlockTransformer,
        precision: Precision,
    ) -> Result<Self, PackError> {
        let layout = model.layout();
        let BlockTransformer { embedder, block_decoder, token_decoder, context_ends, .. } = model;
        Ok(Self {
            layout,
            n_embedding_tokens: config.n_embedding_tokens,
            token_decoder: TokenDecoder::new(token_decoder, &config.token_decoder, layout.block_length, precision)?,
            block_decoder: Stack::new(block_decoder.transformer, &config.block_decoder, precision)?,
            ends: Ends::new(context_ends),
            embedder: Embedder::new(embedder, &config.embedder, precision)?,
        })
    }

    pub(crate) fn layout(&self) -> BlockLayout {
        self.layout
    }

    pub(crate) fn bytes(&self) -> usize {
        self.embedder.bytes() + self.ends.bytes() + self.block_decoder.bytes() + self.token_decoder.bytes()
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
        let capacity = (self.ends.before() + n_blocks + self.layout.n_blocks(new_tokens.max(1)) - 1) * n;
        let padded: Vec<usize> = prompts.padded_blocks().iter().map(|blocks| blocks * n).collect();
        let mut state = BlockState {
            blocks: Cache::new(self.block_decoder.config(), batch, capacity),
            tokens: self.new_tokens(batch),
            current: vec![0; batch * length],
            n_current: 0,
            batch,
            padded: if padded.iter().any(|padded| *padded > 0) { padded } else { Vec::new() },
            x: Vec::new(),
            embedder: EmbedderWork::default(),
            context: Vec::new(),
            window_before: Vec::new(),
            recent_bytes: batch * (self.ends.context_blocks() - 1) * self.unit() * size_of::<f32>(),
            scratch: Scratch::default(),
            prompt_bytes: 0,
            profile: Profile::default(),
        };
        let ids: Vec<u32> = prompts.ids(device).into_data().iter::<u32>().collect();
        let real: Option<Vec<bool>> = prompts.mask(device).map(|mask| mask.into_data().iter::<bool>().collect());
        let n = self.take_in(level, &ids, real.as_deref(), &mut state);
        let mut tools = Tools { level, scratch: &mut state.scratch, profile: &mut state.profile };
        let logits = self.token_decoder.project(state.tokens.hidden(n), &mut tools);
        // What only a prompt needs is given back.
        state.prompt_bytes = state.buffer_bytes();
        (state.x, state.embedder, state.scratch) = (Vec::new(), EmbedderWork::default(), Scratch::default());
        (state, logits)
    }

    /// Logits, instead of whatever `logits` holds.
    pub(crate) fn step(&self, level: Level, state: &mut BlockState, tokens: &[u32], logits: &mut Vec<f32>) {
        let n = self.go_on(level, state, tokens);
        let mut tools = Tools { level, scratch: &mut state.scratch, profile: &mut state.profile };
        self.token_decoder.project_into(state.tokens.hidden(n), &mut tools, logits);
    }

    /// The likeliest tokens instead of logits; nothing where these are no numbers.
    pub(crate) fn step_likeliest(&self, level: Level, state: &mut BlockState, tokens: &[u32]) -> Vec<Option<u32>> {
        let n = self.go_on(level, state, tokens);
        let mut tools = Tools { level, scratch: &mut state.scratch, profile: &mut state.profile };
        self.token_decoder.likeliest(state.tokens.hidden(n), &mut tools)
    }

    /// Takes in a token of each sequence: the first so many numbers of `state.tokens` are the hidden states that predict
    /// the next.
    fn go_on(&self, level: Level, state: &mut BlockState, tokens: &[u32]) -> usize {
        assert_eq!(tokens.len(), state.batch, "one token a sequence");
        let length = self.layout.block_length;
        for (block, token) in state.current.chunks_exact_mut(length).zip(tokens) {
            block[state.n_current] = *token;
        }
        state.n_current += 1;
        if state.n_current == length {
            state.n_current = 0;
            let ids = std::mem::take(&mut state.current);
            let n = self.take_in(level, &ids, None, state);
            state.current = ids;
            return n;
        }
        let mut tools = Tools { level, scratch: &mut state.scratch, profile: &mut state.profile };
        self.token_decoder.go_on(tokens, &mut state.tokens, &mut tools)
    }

    /// Numbers of the embeddings of a block.
    fn unit(&self) -> usize {
        self.n_embedding_tokens * self.block_decoder.config().d_model
    }

    /// Units that stand before the blocks of each sequence: the start of text, where some begins.
    fn before(&self, begin: bool) -> usize {
        if begin { self.ends.before() } else { 0 }
    }

    /// Block embeddings, `[units of all sequences, n_embedding_tokens, d_model]`. The start of text stands directly before the first
    /// real block: behind `padded` positions of a sequence.
    fn embed(
        &self,
        level: Level,
        text: &Text<'_>,
        padded: &[usize],
        work: (&mut EmbedderWork, &mut Scratch),
        x: &mut [f32],
    ) {
        let ((work, scratch), each) = (work, self.unit());
        let blocks = Blocks { ids: text.ids, real: text.real, block_length: self.layout.block_length };
        let Some(start) = self.ends.start.as_ref().filter(|_| text.begin) else {
            return self.embedder.forward(level, blocks, work, scratch, x);
        };
        let mut embedded = std::mem::take(&mut work.blocks);
        let of_all = text.n_blocks.total() * each;
        if of_all > 0 {
            self.embedder.forward(level, blocks, work, scratch, room(&mut embedded, of_all));
        }
        let (mut x, mut rest) = (x, &embedded[..of_all]);
        for (row, n_blocks) in text.n_blocks.iter().enumerate() {
            let (units, x_behind) = x.split_at_mut((n_blocks + 1) * each);
            let (own, behind) = rest.split_at(n_blocks * each);
            (x, rest) = (x_behind, behind);
            // What stands before the start is padding, which nothing sees.
            units[..each].copy_from_slice(start);
            units[each..].copy_from_slice(own);
            let at = padded.get(row).map_or(0, |padded| padded / self.n_embedding_tokens);
            units[at * each..(at + 1) * each].copy_from_slice(start);
        }
        work.blocks = embedded;
    }

    /// Takes in whole blocks of all sequences and begins the next: so many numbers are the hidden states that predict its
    /// first token.
    fn take_in(&self, level: Level, ids: &[u32], real: Option<&[bool]>, state: &mut BlockState) -> usize {
        let (batch, begin) = (state.batch(), state.blocks.len() == 0);
        let (n, each, window) = (self.n_embedding_tokens, self.unit(), self.ends.context_blocks() * self.unit());
        let tokens_each = ids.len() / batch;
        let n_blocks = tokens_each / self.layout.block_length;
        let units = n_blocks + self.before(begin);
        let positions = units * n;
        let at_once = (PREFILL_ROWS / positions).clamp(1, batch);
        room(&mut state.context, batch * window);
        for first in (0..batch).step_by(at_once) {
            let sequences = first..(first + at_once).min(batch);
            let mut clock = Clock::start();
            let tokens = sequences.start * tokens_each..sequences.end * tokens_each;
            let real = real.map(|real| &real[tokens.clone()]);
            let rows = sequences.len();
            let text = Text { ids: &ids[tokens], real, n_blocks: Lengths::Same { length: n_blocks, rows }, begin };
            let x = room(&mut state.x, sequences.len() * units * each);
            let padded = if state.padded.is_empty() { &[][..] } else { &state.padded[sequences.clone()] };
            self.embed(level, &text, padded, (&mut state.embedder, &mut state.scratch), x);
            clock.lap(&mut state.profile.embedder);
            // The window of one block needs no other's context embeddings.
            let wanted = (self.ends.context_blocks() == 1).then_some(n);
            let new = Lengths::Same { length: positions, rows };
            let new = Positions { new, wanted, group: n, padded, turned: 0 };
            let kv = Kv::Together { cache: &mut state.blocks, sequences: sequences.clone() };
            state.profile.block_decoder += self.block_decoder.forward(level, x, new, kv, &mut state.scratch);
            if self.ends.context_blocks() == 1 {
                let last = sequences.len() * each;
                state.context[sequences.start * each..][..last].copy_from_slice(&x[..last]);
                continue;
            }
            let contexts = state.context[sequences.start * window..].chunks_exact_mut(window);
            for (row, (context, x)) in contexts.zip(x.chunks_exact(units * each)).enumerate() {
                let padded = if begin { padded.get(row).map_or(0, |padded| padded / n) } else { 0 };
                let recent = (!begin).then(|| {
                    state.window_before.clear();
                    state.window_before.extend_from_slice(&context[each..]);
                    &state.window_before[..]
                });
                self.ends.window(Units { numbers: x, each, padded }, recent, units - 1, context);
            }
        }
        state.blocks.advance(positions);
        let mut tools = Tools { level, scratch: &mut state.scratch, profile: &mut state.profile };
        let context = &state.context[..batch * window];
        self.token_decoder.begin(Begin { context, rows: batch, tokens: &[], known: 0 }, &mut state.tokens, &mut tools)
    }
}

/// What the engine asks for.
impl BlockModel {
    /// The layers whose keys and values a pool holds.
    pub(crate) fn pooled(&self) -> &Stack {
        &self.block_decoder
    }

    pub(crate) fn n_embedding_tokens(&self) -> usize {
        self.n_embedding_tokens
    }

    pub(crate) fn context_blocks(&self) -> usize {
        self.ends.context_blocks()
    }

    /// Bytes of the cache that decodes one block.
    pub(crate) fn block_bytes(&self) -> usize {
        self.new_tokens(1).cache_bytes()
    }

    fn new_tokens(&self, rows: usize) -> TokenState {
        let n_contexts = self.ends.context_blocks() * self.n_embedding_tokens;
        self.token_decoder.new_state(rows, n_contexts, self.layout.block_length)
    }

    /// Takes in whole blocks of some sequences: the windows that decode the next block of each, `[rows, context_blocks,
    /// n_embedding_tokens, d_model]`. `recent` are the last `context_blocks - 1` of the windows before.
    pub(crate) fn take_in_paged(
        &self,
        level: Level,
        text: Text<'_>,
        recent: Option<&[f32]>,
        kv: Kv<'_, '_>,
        work: &mut Work,
    ) -> Vec<f32> {
        let (each, k, rows) = (self.unit(), self.ends.context_blocks(), text.n_blocks.rows());
        if k == 1 {
            return self.contexts(level, text, Some(1), kv, work)[..rows * each].to_vec();
        }
        let mut x = self.contexts(level, text, None, kv, work);
        let mut windows = vec![0.0; rows * k * each];
        for (row, (window, n_blocks)) in windows.chunks_exact_mut(k * each).zip(text.n_blocks.iter()).enumerate() {
            let recent = recent.map(|recent| &recent[row * (k - 1) * each..(row + 1) * (k - 1) * each]);
            let units = n_blocks + self.before(text.begin);
            let (own, behind) = x.split_at(units * each);
            x = behind;
            self.ends.window(Units { numbers: own, each, padded: 0 }, recent, units - 1, window);
        }
        windows
    }

    /// Takes in some text: first come the context embeddings of the last `wanted` units of each sequence, or of all.
    fn contexts<'w>(
        &self,
        level: Level,
        text: Text<'_>,
        wanted: Option<usize>,
        kv: Kv<'_, '_>,
        work: &'w mut Work,
    ) -> &'w [f32] {
        let (n, mut buffer) = (self.n_embedding_tokens, Vec::new());
        let new = text.n_blocks.scaled(self.before(text.begin), n, &mut buffer);
        assert!(new.iter().all(|new| new > 0), "no blocks to take in");
        let x = room(&mut work.x, new.total() * self.block_decoder.config().d_model);
        self.embed(level, &text, &[], (&mut work.embedder, &mut work.scratch), x);
        let wanted = wanted.map(|wanted| wanted * n);
        let positions = Positions { new, wanted, group: n, padded: &[], turned: 0 };
        self.block_decoder.forward(level, x, positions, kv, &mut work.scratch);
        x
    }

    /// The context embeddings of one whole text, `[units, n_embedding_tokens, d_model]`.
    fn all_contexts(&self, level: Level, ids: &[u32], real: Option<&[bool]>) -> Vec<f32> {
        let length = ids.len() / self.layout.block_length;
        let text = Text { ids, real, n_blocks: Lengths::Same { length, rows: 1 }, begin: true };
        let capacity = (length + self.before(true)) * self.n_embedding_tokens;
        let mut cache = Cache::new(self.block_decoder.config(), 1, capacity);
        let kv = Kv::Together { cache: &mut cache, sequences: 0..1 };
        self.contexts(level, text, None, kv, &mut Work::default()).to_vec()
    }

    /// The context embeddings of all blocks of one text, `[n_blocks, n_embedding_tokens, d_model]`.
    pub(crate) fn text_contexts(&self, level: Level, ids: &[u32], real: Option<&[bool]>) -> Vec<f32> {
        self.all_contexts(level, ids, real).split_off(self.ends.before() * self.unit())
    }

    /// Begins blocks, see [`TokenDecoder::start`].
    pub(crate) fn begin(&self, level: Level, begin: Begin<'_>, work: &mut Work) -> Vec<f32> {
        let state = work.tokens.get_or_insert_with(|| self.new_tokens(begin.rows));
        let mut tools = Tools { level, scratch: &mut work.scratch, profile: &mut work.profile };
        self.token_decoder.start(begin, state, &mut tools)
    }

    /// Takes in one token of each block that was begun.
    pub(crate) fn next(&self, level: Level, tokens: &[u32], work: &mut Work) -> Vec<f32> {
        let Some(state) = &mut work.tokens else { panic!("no block was begun") };
        let mut tools = Tools { level, scratch: &mut work.scratch, profile: &mut work.profile };
        self.token_decoder.next(tokens, state, &mut tools)
    }

    /// Logits of every token of one text from token `from` on, `[tokens - from, vocab_size]`.
    ///
    /// # Panics
    /// If that token is not predicted, or belongs to a block that begins with padding.
    pub(crate) fn teacher_forced(&self, level: Level, ids: &[u32], real: Option<&[bool]>, from: usize) -> Vec<f32> {
        self.logits(level, &self.predicting(level, ids, real, from))
    }

    /// Logits of rows of hidden states.
    pub(crate) fn logits(&self, level: Level, hidden: &[f32]) -> Vec<f32> {
        let (mut scratch, mut profile) = (Scratch::default(), Profile::default());
        self.token_decoder.project(hidden, &mut Tools { level, scratch: &mut scratch, profile: &mut profile })
    }

    /// The hidden states that predict every token of one text from token `from` on, `[tokens - from, d_model]`.
    ///
    /// # Panics
    /// If that token is not predicted, or belongs to a block that begins with padding.
    pub(crate) fn predicting(&self, level: Level, ids: &[u32], real: Option<&[bool]>, from: usize) -> Vec<f32> {
        let (length, before, each) = (self.layout.block_length, self.ends.before(), self.unit());
        let first = from / length;
        assert!(first + before > 0, "token {from} belongs to the first block, which is not predicted");
        assert!(first > 0 || real.is_none_or(|real| real[0]), "a block that begins with padding is not scored");
        let contexts = self.all_contexts(level, ids, real);
        let units = Units { numbers: &contexts, each, padded: 0 };
        let k = self.ends.context_blocks();
        let (mut work, mut windows, mut hidden) = (Work::default(), Vec::new(), Vec::new());
        let (mut block, n_blocks) = (first, ids.len() / length);
        while block < n_blocks {
            let rows = (PREFILL_ROWS / length).clamp(1, n_blocks - block);
            let known = |ids: &[u32]| ids[..length - 1].to_vec();
            let tokens: Vec<u32> =
                ids[block * length..(block + rows) * length].chunks_exact(length).flat_map(known).collect();
            let context = room(&mut windows, rows * k * each);
            for (row, window) in context.chunks_exact_mut(k * each).enumerate() {
                self.ends.window(units, None, block + row + before - 1, window);
            }
            let state = work.tokens.get_or_insert_with(|| self.new_tokens(rows));
            let mut tools = Tools { level, scratch: &mut work.scratch, profile: &mut work.profile };
            let n = self.token_decoder.begin(Begin { context, rows, tokens: &tokens, known: 0 }, state, &mut tools);
            let part = state.hidden(n);
            let unwanted = from.saturating_sub(block * length) * (part.len() / (rows * length));
            hidden.extend_from_slice(&part[unwanted..]);
            block += rows;
        }
        hidden
    }
}
