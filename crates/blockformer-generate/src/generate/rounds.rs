//! Rounds of tokens that are decoded without a look at them.

use std::time::Duration;

use blockformer_model::{BlockLayout, BlockedPrompts};
use burn::tensor::{Device, Int, Tensor, s};

use super::prepare;
use super::repeated::Repeated;
use crate::device_sampler::{DeviceSampler, column, token};
use crate::read_back::read_tokens;
use crate::{DeviceDecoding, GenerateError, GenerateOptions, LanguageModel, Sampler};

/// Cached positions are attended to in multiples of this where shapes are static.
const POSITIONS: usize = 64;

/// Decodes a batch on its device, some tokens of all sequences at a time: what
/// [`Decoding::Device`](crate::Decoding::Device) does inside [`generate`](crate::generate()), for programs that measure it
/// or want its tokens round by round. It stays on its thread, as captured graphs do.
pub struct Rounds<'a, M: LanguageModel> {
    model: &'a M,
    /// Gone where blocks are repeated.
    state: Option<M::State>,
    next: Next,
    sampler: DeviceSampler,
    /// Sequences; rows behind them fill up the batch.
    n_sequences: usize,
    tokens_per_read: usize,
    /// Tokens of the next round that have been decoded by themselves.
    ahead: usize,
    left: usize,
    course: Course<'a>,
    /// What it took to record, or to try.
    recording: Duration,
    kv_bytes: usize,
}

/// How tokens are decoded.
enum Course<'a> {
    /// Step by step.
    Steps,
    /// For now; what comes behind the first block is to be recorded.
    StepsAtFirst(Beginning),
    /// By repeating what was recorded.
    Repeated(Box<Repeated<'a>>),
}

/// What was taken in and decoded before the device records.
struct Beginning {
    prompts: Prompts,
    /// Tokens of the first block, `[batch, 1]` each.
    block: Vec<Tensor<2, Int>>,
}

impl Beginning {
    /// The state behind it, taken in once more.
    fn again<M: LanguageModel>(&self, model: &M, device: &Device) -> M::State {
        let (mut state, _) = self.prompts.take_in(model, device);
        let all_but_the_last = self.block.iter().take(self.block.len() - 1);
        all_but_the_last.for_each(|ids| drop(model.step_on_device(&mut state, ids.clone())));
        state
    }
}

/// Prompts of a batch.
struct Prompts {
    blocked: BlockedPrompts,
    /// New tokens that there is to be room for.
    room: usize,
    static_shapes: bool,
}

impl Prompts {
    fn take_in<M: LanguageModel>(&self, model: &M, device: &Device) -> (M::State, Tensor<2>) {
        let (mut state, logits) = model.prefill(&self.blocked, self.room, device);
        if self.static_shapes {
            model.round_positions(&mut state, POSITIONS);
        }
        (state, logits)
    }
}

/// What the next token comes from.
enum Next {
    /// `[batch, vocab_size]`.
    Logits(Tensor<2>),
    /// The token before it, `[batch, 1]`.
    Token(Tensor<2, Int>),
}

impl<'a, M: LanguageModel> Rounds<'a, M> {
    /// Takes in the prompts. Stop tokens are not looked at.
    ///
    /// # Errors
    /// As [`generate`](crate::generate()), and [`GenerateError::Contradiction`] where `generate` would draw on the host.
    pub fn begin(
        model: &'a M,
        prompts: &[&[u32]],
        options: &GenerateOptions,
        device: &Device,
    ) -> Result<Self, GenerateError> {
        let (blocked, samplers) = prepare(model, prompts, options)?;
        let decoding = options.decoding.on_device(&options.sampling).ok_or(GenerateError::Contradiction {
            options: "rounds on a device and decoding on the host or typical_p",
            reason: "tokens are then drawn on the host",
        })?;
        Ok(Self::new(model, blocked, samplers, (options, decoding), device))
    }

    /// Decodes the next tokens and waits for them: for each place, the token of every sequence. Nothing once there are as
    /// many as were asked for.
    ///
    /// # Errors
    /// [`GenerateError::NotANumber`] if logits are not numbers.
    pub fn next_tokens(&mut self) -> Result<Option<Vec<Vec<u32>>>, GenerateError> {
        let round = self.next_round();
        Self::read(round)
    }

    /// Decodes one token of every sequence and waits for it: to know when it is there, if it is the first. The next round is
    /// the shorter by it.
    ///
    /// # Errors
    /// [`GenerateError::NotANumber`] if logits are not numbers.
    pub fn next_token(&mut self) -> Result<Option<Vec<u32>>, GenerateError> {
        let round = self.round_of(1);
        self.ahead = (self.ahead + 1) % self.tokens_per_read;
        Ok(Self::read(round)?.and_then(|tokens| tokens.into_iter().next()))
    }

    fn read(round: Option<Tensor<2, Int>>) -> Result<Option<Vec<Vec<u32>>>, GenerateError> {
        let Some(round) = round else { return Ok(None) };
        let n = round.dims()[1];
        let tokens = read_tokens(round);
        let place = |place: usize| tokens.iter().skip(place).step_by(n).map(|id| token(*id)).collect();
        (0..n).map(place).collect::<Result<_, _>>().map(Some)
    }

    /// Bytes of the keys and values that there is room for, those of rows and positions that fill up shapes included.
    pub fn kv_bytes(&self) -> usize {
        self.kv_bytes
    }

    /// Takes in prompts that were checked.
    pub(super) fn new(
        model: &'a M,
        prompts: BlockedPrompts,
        samplers: Vec<Sampler>,
        (options, decoding): (&GenerateOptions, DeviceDecoding),
        device: &Device,
    ) -> Self {
        let layout = model.layout();
        let (n_sequences, left) = (samplers.len(), options.max_new_tokens);
        let static_shapes = decoding.static_shapes;
        let (blocked, room) = if static_shapes { fill_up(prompts, left, &layout) } else { (prompts, left) };
        let prompts = Prompts { blocked, room, static_shapes };
        let (state, logits) = prompts.take_in(model, device);
        let [batch, vocab_size] = logits.dims();
        let sampler = DeviceSampler::new(samplers, batch, vocab_size, device);
        let tokens_per_read = decoding.tokens_per_read(&layout);
        let kv_bytes = model.kv_bytes(&state);
        // What is left behind the first block.
        let worth = decoding.recorded_from.is_some_and(|from| left >= layout.block_length + from);
        let course = match worth && sampler.without_counts().is_some() {
            true => Course::StepsAtFirst(Beginning { prompts, block: Vec::with_capacity(layout.block_length) }),
            false => Course::Steps,
        };
        Self {
            model,
            state: Some(state),
            next: Next::Logits(logits),
            sampler,
            n_sequences,
            tokens_per_read,
            ahead: 0,
            left,
            course,
            recording: Duration::ZERO,
            kv_bytes,
        }
    }

    /// Whether the device repeats what it recorded: from the second block on, if [it was asked to](DeviceDecoding::recorded_from),
    /// can, and there are enough tokens to decode.
    pub fn is_recorded(&self) -> bool {
        matches!(&self.course, Course::Repeated(_))
    }

    /// What it took to record, or to try to, prompts taken in once more included where that failed: zero before, and where nothing is to be recorded.
    pub fn recording_time(&self) -> Duration {
        self.recording
    }

    /// Enqueues the next tokens of all sequences, `[sequences, tokens]`, for [`token`](crate::device_sampler::token) to
    /// look at; nothing once there are as many as were asked for.
    pub(super) fn next_round(&mut self) -> Option<Tensor<2, Int>> {
        let ahead = std::mem::take(&mut self.ahead);
        self.round_of(self.tokens_per_read - ahead)
    }

    /// Enqueues `n` tokens of all sequences, or as many as are left.
    fn round_of(&mut self, n: usize) -> Option<Tensor<2, Int>> {
        let n = n.min(self.left);
        let mut parts = Vec::new();
        let mut decoded = 0;
        while decoded < n {
            let missing = n - decoded;
            let block_length = self.model.layout().block_length;
            if matches!(&self.course, Course::StepsAtFirst(Beginning { block, .. }) if block.len() == block_length) {
                self.record();
            }
            let tokens = match &mut self.course {
                Course::Steps => self.steps(missing),
                Course::StepsAtFirst(Beginning { block, .. }) => {
                    let to_its_end = block_length - block.len();
                    self.steps(missing.min(to_its_end))
                }
                Course::Repeated(repeated) => repeated.take(missing, &mut self.sampler),
            };
            let taken = tokens.dims()[1];
            decoded += taken;
            self.left -= taken;
            parts.push(tokens);
        }
        (n > 0).then(|| Tensor::cat(parts, 1).slice(s![0..self.n_sequences, ..]))
    }

    /// Token by token.
    fn steps(&mut self, n: usize) -> Tensor<2, Int> {
        let uniforms = self.sampler.uniforms(n);
        let mut tokens = Vec::with_capacity(n);
        for place in 0..n {
            let logits = match &self.next {
                Next::Logits(logits) => logits.clone(),
                Next::Token(ids) => match &mut self.state {
                    Some(state) => self.model.step_on_device(state, ids.clone()),
                    None => unreachable!("blocks are repeated where there is no state"),
                },
            };
            let drawn = self.sampler.draw(logits, uniforms.as_ref().map(|uniforms| column(uniforms, place)));
            tokens.push(drawn.checked);
            if let Course::StepsAtFirst(Beginning { block, .. }) = &mut self.course {
                block.push(drawn.ids.clone());
            }
            self.next = Next::Token(drawn.ids);
        }
        Tensor::cat(tokens, 1)
    }

    /// Has the device record what comes behind the first block, if it can.
    fn record(&mut self) {
        let Course::StepsAtFirst(beginning) = std::mem::replace(&mut self.course, Course::Steps) else { return };
        let Some(draw) = self.sampler.without_counts() else { return };
        let Some(state) = self.state.take() else { return };
        let steps = match self.model.recordable_steps(state) {
            Ok(steps) => steps,
            Err(state) => {
                self.state = Some(state);
                return;
            }
        };
        let block = Tensor::cat(beginning.block.clone(), 1);
        let device = block.device();
        // What was decoded before is not recording. An error shows where its tokens are read.
        let _ = device.sync();
        let elapsed = clock();
        let repeated = Repeated::new(steps, draw, block, !self.sampler.is_greedy());
        self.recording = elapsed();
        if repeated.is_recorded() {
            self.course = Course::Repeated(Box::new(repeated));
            return;
        }
        // What a device that could not record has left behind is not to be read.
        drop(repeated);
        self.state = Some(beginning.again(self.model, &device));
        let _ = device.sync();
        self.recording = elapsed();
    }
}

/// Tells the time since it was made; none in a browser, where nothing is recorded.
fn clock() -> impl Fn() -> Duration {
    #[cfg(not(target_family = "wasm"))]
    {
        let start = std::time::Instant::now();
        move || start.elapsed()
    }
    #[cfg(target_family = "wasm")]
    {
        || Duration::ZERO
    }
}

/// Fills batch and blocks up to sizes of which there are few; and the new tokens to make room for, so that caches have
/// one of few sizes too. Nothing goes beyond the context.
fn fill_up(prompts: BlockedPrompts, new_tokens: usize, layout: &BlockLayout) -> (BlockedPrompts, usize) {
    let [batch, n_blocks, block_length] = prompts.shape();
    let new_blocks = layout.n_blocks(new_tokens);
    let free = layout.max_length / block_length - n_blocks - new_blocks; // as `block_prompts` checked
    let filled = size_class(n_blocks).min(n_blocks + free);
    // Positions of the cache: a learned start, the prompt, and all new blocks but the last, which is never taken in.
    let positions = usize::from(layout.predict_first_block) + filled + new_blocks - 1;
    let more = (positions.next_multiple_of(POSITIONS) - positions).min(free + n_blocks - filled);
    (prompts.fill_up(size_class(batch), filled), new_tokens + more * block_length)
}

/// The next of 1, 2, 4, 8 and, from there on, four sizes to each doubling.
pub(crate) fn size_class(n: usize) -> usize {
    let power = n.next_power_of_two();
    if n <= 8 { power } else { n.next_multiple_of(power / 8) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_few_and_near() {
        let classes: Vec<usize> = [1, 2, 3, 5, 8, 9, 13, 17, 33, 100, 512, 513].map(size_class).into();
        assert_eq!(classes, [1, 2, 4, 8, 8, 10, 14, 20, 40, 112, 512, 640]);
        let mut distinct: Vec<usize> = (1..=1024).map(size_class).collect();
        distinct.dedup();
        assert_eq!(distinct.len(), 4 + 7 * 4);
        assert!((9..5000).all(|n| size_class(n) >= n && size_class(n) * 4 <= n * 5));
    }

    #[test]
    fn nothing_is_filled_up_beyond_the_context() {
        let layout = |max_length| BlockLayout {
            block_length: 4,
            max_length,
            pad_token_id: 0,
            vocab_size: 10,
            predict_first_block: false,
        };
        let prompt = [1u32; 35]; // 9 blocks
        for (max_length, blocks, room) in [(4096, 10, 7 + 4 * 53), (48, 10, 7), (44, 9, 7), (52, 10, 11)] {
            let layout = layout(max_length);
            let prompts = layout.block_prompts(&[&prompt, &prompt, &prompt], 7).unwrap();
            let (filled, tokens) = fill_up(prompts, 7, &layout);
            assert_eq!((filled.shape(), tokens), ([4, blocks, 4], room), "a context of {max_length}");
        }
    }
}
