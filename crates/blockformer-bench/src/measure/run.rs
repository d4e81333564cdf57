//! A workload, run: with a look at every token, or at some at a time.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use blockformer_cpu::Profile;
use blockformer_generate::{
    Decoding, DeviceDecoding, Engine, EngineConfig, Event, GenerateError, GenerateOptions, LanguageModel, PagedModel,
    Request, RequestId, Rounds,
};
use blockformer_kernels::{Level, argmax};
use blockformer_model::{AnyModel, BlockLayout};
use burn::tensor::{Device, Tensor};

use super::MeasureOptions;
use crate::{BenchError, Workload, memory};

/// A prefill, and a step or a round where there is one, in caches for the whole workload: the bytes of keys and values.
pub(super) fn take_in(
    model: &AnyModel,
    workload: &Workload,
    options: &MeasureOptions,
    device: &Device,
) -> Result<usize, BenchError> {
    if let Decoding::Device(decoding) = options.decoding {
        let mut rounds = begin(model, workload, options, decoding, device)?;
        for _ in 0..2 {
            rounds.next_tokens()?;
        }
        return Ok(rounds.kv_bytes());
    }
    let layout = model.layout();
    let prompts = prompts(workload, options, layout.vocab_size);
    let slices: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let blocked = layout.block_prompts(&slices, workload.new_tokens)?;
    let (mut state, logits) = model.prefill(&blocked, workload.new_tokens, device);
    let mut spent = Duration::ZERO;
    let tokens = choose(logits, &mut spent)?;
    if workload.new_tokens > 1 {
        choose(LanguageModel::step(model, &mut state, &tokens), &mut spent)?;
    }
    Ok(model.kv_bytes(&state))
}

/// A workload whose prompts have been taken in, its tokens to be found on the device.
pub(crate) fn begin<'a>(
    model: &'a AnyModel,
    workload: &Workload,
    options: &MeasureOptions,
    decoding: DeviceDecoding,
    device: &Device,
) -> Result<Rounds<'a, AnyModel>, BenchError> {
    let prompts = prompts(workload, options, model.layout().vocab_size);
    let slices: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    Ok(Rounds::begin(model, &slices, &greedy(workload.new_tokens, Decoding::Device(decoding)), device)?)
}

fn greedy(max_new_tokens: usize, decoding: Decoding) -> GenerateOptions {
    GenerateOptions { max_new_tokens, decoding, ..GenerateOptions::default() }
}

/// A way to run a workload.
pub(super) trait Bench {
    fn layout(&self) -> BlockLayout;

    fn run(&self, prompts: &[&[u32]], new_tokens: usize, device: &Device) -> Result<Run, BenchError>;
}

/// A model and how its state tells where time and memory went; the host looks at every token.
pub(super) struct OnHost<'a, M: LanguageModel> {
    pub(super) model: &'a M,
    pub(super) profile: fn(&M::State) -> Option<(Profile, usize)>,
}

/// A model whose tokens are found on its device.
pub(super) struct OnDevice<'a> {
    pub(super) model: &'a AnyModel,
    pub(super) decoding: DeviceDecoding,
}

/// A model that an engine runs, one for all runs of a workload: what it has allocated and recorded serves those behind the warm-up.
pub(super) struct OnEngine<'a, M: PagedModel> {
    model: &'a M,
    config: EngineConfig,
    engine: Cell<Option<Engine<&'a M>>>,
}

impl<'a, M: PagedModel> OnEngine<'a, M> {
    /// The batch decides the rest of the settings.
    pub(super) fn new(model: &'a M, config: EngineConfig) -> Self {
        Self { model, config, engine: Cell::new(None) }
    }

    fn config_for(&self, prompts: &[&[u32]], new_tokens: usize) -> EngineConfig {
        let (batch, layout) = (prompts.len(), PagedModel::layout(self.model));
        let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
        // A learned start, the prompt, and all new blocks.
        let blocks = 1 + layout.n_blocks(longest) + layout.n_blocks(new_tokens);
        let page = PagedModel::pool_config(self.model, self.config.page_blocks, 0, self.config.kv_storage);
        EngineConfig {
            kv_budget: batch * page.pages_of(blocks * self.model.positions_per_block()) * page.page_bytes(),
            max_batch: batch,
            max_waiting: batch,
            reuse_prefixes: false,
            ..self.config.clone()
        }
    }
}

pub(super) struct Run {
    /// Until the first tokens of all sequences were there.
    pub(super) first: Duration,
    /// How many they were of each sequence.
    pub(super) first_tokens: usize,
    pub(super) total: Duration,
    /// What recording took of it.
    pub(super) recording: Duration,
    pub(super) sampling: [Duration; 2],
    pub(super) profile: Option<[Profile; 2]>,
    pub(super) kv_bytes: usize,
    pub(super) buffer_bytes: Option<usize>,
    pub(super) peak_bytes: Option<usize>,
    /// Whether the device repeated what it recorded.
    pub(super) recorded: bool,
    /// One list a step.
    pub(super) generated: Vec<Vec<u32>>,
}

/// All runs of a measurement.
pub(super) struct Repeats {
    pub(super) prompts: Vec<Vec<u32>>,
    /// What those that do not count took.
    pub(super) warm_up: Duration,
    pub(super) runs: Vec<Run>,
}

pub(super) fn repeat(
    bench: &impl Bench,
    workload: &Workload,
    options: &MeasureOptions,
    device: &Device,
) -> Result<Repeats, BenchError> {
    let prompts = prompts(workload, options, bench.layout().vocab_size);
    let slices: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let start = Instant::now();
    for _ in 0..options.warm_up {
        bench.run(&slices, workload.new_tokens, device)?;
    }
    let warm_up = start.elapsed();
    let runs = (0..options.repeats).map(|_| bench.run(&slices, workload.new_tokens, device));
    let runs = runs.collect::<Result<_, _>>()?;
    Ok(Repeats { prompts, warm_up, runs })
}

/// As many prompts as the batch has sequences.
fn prompts(workload: &Workload, options: &MeasureOptions, vocab_size: usize) -> Vec<Vec<u32>> {
    let seed = |row: usize| options.seed.wrapping_add(row as u64);
    (0..options.batch).map(|row| random_ids(workload.prompt_tokens, vocab_size, seed(row))).collect()
}

/// Ids that look random, the same for the same seed.
pub fn random_ids(length: usize, vocab_size: usize, seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab_size as u64) as u32
    };
    (0..length).map(|_| next()).collect()
}

impl<M: LanguageModel> Bench for OnHost<'_, M> {
    fn layout(&self) -> BlockLayout {
        self.model.layout()
    }

    fn run(&self, prompts: &[&[u32]], new_tokens: usize, device: &Device) -> Result<Run, BenchError> {
        let blocked = self.layout().block_prompts(prompts, new_tokens)?;
        memory::reset_peak();
        let mut sampling = [Duration::ZERO; 2];
        let start = Instant::now();
        let (mut state, logits) = self.model.prefill(&blocked, new_tokens, device);
        let mut generated = Vec::with_capacity(new_tokens);
        generated.push(choose(logits, &mut sampling[0])?);
        let first = start.elapsed();
        let prefill = (self.profile)(&state).map(|(profile, _)| profile);
        for step in 1..new_tokens {
            let found = self.model.step_likeliest(&mut state, &generated[step - 1]);
            generated.push(found.into_iter().collect::<Option<_>>().ok_or(GenerateError::NotANumber)?);
        }
        let total = start.elapsed();
        let last = (self.profile)(&state);
        Ok(Run {
            first,
            first_tokens: 1,
            total,
            recording: Duration::ZERO,
            sampling,
            profile: prefill.zip(last).map(|(prefill, (last, _))| [prefill, last]),
            kv_bytes: self.model.kv_bytes(&state),
            buffer_bytes: last.map(|(_, bytes)| bytes),
            peak_bytes: memory::peak_bytes(),
            recorded: false,
            generated,
        })
    }
}

impl Bench for OnDevice<'_> {
    fn layout(&self) -> BlockLayout {
        self.model.layout()
    }

    fn run(&self, prompts: &[&[u32]], new_tokens: usize, device: &Device) -> Result<Run, BenchError> {
        memory::reset_peak();
        let options = greedy(new_tokens, Decoding::Device(self.decoding));
        let start = Instant::now();
        let mut rounds = Rounds::begin(self.model, prompts, &options, device)?;
        let mut generated = Vec::with_capacity(new_tokens);
        generated.extend(rounds.next_token()?); // by itself, to know when it is there
        let first = start.elapsed();
        while let Some(tokens) = rounds.next_tokens()? {
            generated.extend(tokens);
        }
        let total = start.elapsed();
        Ok(Run {
            first,
            first_tokens: 1,
            total,
            recording: rounds.recording_time(),
            sampling: [Duration::ZERO; 2],
            profile: None,
            kv_bytes: rounds.kv_bytes(),
            buffer_bytes: None,
            peak_bytes: memory::peak_bytes(),
            recorded: rounds.is_recorded(),
            generated,
        })
    }
}

impl<M: PagedModel> Bench for OnEngine<'_, M> {
    fn layout(&self) -> BlockLayout {
        PagedModel::layout(self.model)
    }

    fn run(&self, prompts: &[&[u32]], new_tokens: usize, device: &Device) -> Result<Run, BenchError> {
        memory::reset_peak();
        let batch = prompts.len();
        // One that fails is not used again.
        let mut engine = match self.engine.take() {
            Some(engine) => engine,
            None => Engine::new(self.model, self.config_for(prompts, new_tokens), device)?,
        };
        let repeated = engine.stats().repeated_passes;
        let failed = |error| BenchError::Device { reason: format!("{error}") };
        device.sync().map_err(failed)?; // the pool is there
        let start = Instant::now();
        let submit = |prompt: &&[u32]| engine.submit(Request::new(*prompt).with_max_new_tokens(new_tokens));
        let ids = prompts.iter().map(submit).collect::<Result<Vec<_>, _>>()?;
        let mut rows: HashMap<RequestId, Vec<u32>> = ids.iter().map(|id| (*id, Vec::new())).collect();
        let (mut first, mut first_tokens) = (Duration::ZERO, 0);
        while !engine.is_idle() {
            for (id, event) in engine.step() {
                match event {
                    Event::Token(event) => rows.entry(id).or_default().push(event.token),
                    Event::Failed(error) => return Err(error.into()),
                    _ => {}
                }
            }
            if first_tokens == 0 {
                first = start.elapsed();
                first_tokens = rows.values().map(Vec::len).min().unwrap_or(0);
            }
        }
        let total = start.elapsed();
        let step = |step: usize| ids.iter().map(|id| rows[id][step]).collect();
        let usage = engine.stats();
        self.engine.set(Some(engine));
        Ok(Run {
            first,
            first_tokens,
            total,
            recording: Duration::ZERO, // in the warm-up
            sampling: [Duration::ZERO; 2],
            profile: None,
            kv_bytes: usage.pool.peak + batch * self.model.block_bytes(device),
            buffer_bytes: None,
            peak_bytes: memory::peak_bytes(),
            recorded: usage.repeated_passes > repeated,
            generated: (0..new_tokens).map(step).collect(),
        })
    }
}

/// The likeliest token of each row. Reading the logits waits for the device.
fn choose(logits: Tensor<2>, spent: &mut Duration) -> Result<Vec<u32>, BenchError> {
    let [_, vocab_size] = logits.dims();
    let data = logits.into_data().convert::<f32>(); // on a GPU this waits for the model
    let start = Instant::now();
    let rows = data.as_slice::<f32>().map_err(|_| GenerateError::NotANumber)?.chunks_exact(vocab_size);
    let token = |row| argmax(Level::current(), row).map(|id| id as u32).ok_or(GenerateError::NotANumber);
    let tokens = rows.map(token).collect::<Result<Vec<u32>, _>>()?;
    *spent += start.elapsed();
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_differ_by_row_and_stay_in_the_vocabulary() {
        let (a, b) = (random_ids(100, 50, 1), random_ids(100, 50, 2));
        assert_ne!(a, b);
        assert_eq!(a, random_ids(100, 50, 1));
        assert!(a.iter().chain(&b).all(|id| *id < 50));
    }
}
