//! One workload at one batch size.

use std::time::{Duration, Instant};

use blockformer_cpu::{CpuModel, CpuState, Profile};
use blockformer_generate::{Decoding, DeviceDecoding, GenerateError, GenerateOptions, LanguageModel, Rounds};
use blockformer_kernels::{Level, argmax};
use blockformer_model::{AnyModel, BlockLayout};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor};
use serde::Serialize;

use crate::error::guarded;
use crate::{BenchError, Workload, memory};

/// A model under measurement.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    name: &'a str,
    model: Model<'a>,
    loading_peak: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
enum Model<'a> {
    Plain(&'a AnyModel),
    Packed(&'a CpuModel),
}

impl<'a> Subject<'a> {
    /// A model on Burn's operations, called `name` in reports.
    pub fn new(name: &'a str, model: &'a AnyModel) -> Self {
        Self { name, model: Model::Plain(model), loading_peak: None }
    }

    /// A model packed for the CPU, which also tells the time its components take.
    pub fn packed(name: &'a str, model: &'a CpuModel) -> Self {
        Self { name, model: Model::Packed(model), loading_peak: None }
    }

    /// The same with the most memory that the process had while the model was loaded, for reports.
    pub fn with_loading_peak(self, bytes: Option<usize>) -> Self {
        Self { loading_peak: bytes, ..self }
    }

    fn precision(&self) -> String {
        match self.model {
            Model::Plain(model) => match Weights::of(model).dtype {
                None | Some(DType::F32) => "plain".into(),
                Some(dtype) => format!("plain/{}", dtype.name()),
            },
            Model::Packed(model) => format!("{}/{}", model.precision().name(), model.level().name()),
        }
    }

    fn weight_bytes(&self) -> usize {
        match self.model {
            Model::Plain(model) => Weights::of(model).bytes,
            Model::Packed(model) => model.weight_bytes(),
        }
    }
}

/// The bytes of a plain model's weights and the type of the last.
#[derive(Default)]
struct Weights {
    bytes: usize,
    dtype: Option<DType>,
}

impl Weights {
    fn of(model: &AnyModel) -> Self {
        let mut weights = Self::default();
        model.visit(&mut weights);
        weights
    }
}

impl ModuleVisitor for Weights {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let weight = param.val();
        self.bytes += weight.shape().num_elements() * weight.dtype().size();
        self.dtype = Some(weight.dtype());
    }
}

/// How it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeasureOptions {
    /// Sequences generated together.
    pub batch: usize,
    /// Repeats that count.
    pub repeats: usize,
    /// Repeats before them that do not.
    pub warm_up: usize,
    /// Of the random prompts.
    pub seed: u64,
    /// Where the likeliest tokens of plain models are found; packed models find them where they compute.
    pub decoding: Decoding,
}

impl Default for MeasureOptions {
    /// One sequence, one warm-up, five repeats, tokens found on the host.
    fn default() -> Self {
        Self { batch: 1, repeats: 5, warm_up: 1, seed: 0, decoding: Decoding::Host }
    }
}

/// Median and extremes of repeats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; of an even number, the mean of both.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of some numbers; all zero if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else {
            return Self { median: 0.0, min: 0.0, max: 0.0 };
        };
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Self { median, min, max }
    }
}

/// Milliseconds that components took, the median of the repeats.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Components {
    /// In the prefill, with the first token.
    pub prefill: Phase,
    /// In all steps after it.
    pub decode: Phase,
}

/// Milliseconds of one phase.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Phase {
    /// The embedder.
    pub embedder: f64,
    /// Attention of the block decoder.
    pub block_attention: f64,
    /// Feed-forward networks of the block decoder.
    pub block_feed_forward: f64,
    /// Attention of the token decoder (of all layers, in a vanilla transformer).
    pub token_attention: f64,
    /// Feed-forward networks of the token decoder (of all layers, in a vanilla transformer).
    pub token_feed_forward: f64,
    /// The projection to the vocabulary.
    pub output: f64,
    /// Choosing the first token of each sequence: reading the logits, and the largest of each row. Later tokens are chosen
    /// where logits are computed.
    pub sampling: f64,
    /// Everything else: norms at the end of stacks, context expansion, preparations.
    pub other: f64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measurement {
    /// The model's name.
    pub model: String,
    /// `plain` (Burn's operations), or how weights are packed and with which instructions they are used.
    pub precision: String,
    /// The workload's name.
    pub workload: String,
    /// Tokens of every prompt.
    pub prompt_tokens: usize,
    /// Tokens generated for every prompt.
    pub new_tokens: usize,
    /// Sequences generated together.
    pub batch: usize,
    /// Where tokens were found: `host`, which looks at each, or `device`, where they are looked at some at a time.
    pub decoding: &'static str,
    /// Repeats that counted.
    pub repeats: usize,
    /// Generated tokens of all sequences by the time from prompt to last token.
    pub tokens_per_second: Spread,
    /// From prompt to first token; where tokens are looked at some at a time, to the first of them.
    pub first_token_ms: Spread,
    /// Between tokens of a sequence after the first, or after those that came with it.
    pub token_ms: Spread,
    /// Seconds of all repeats before those that counted: on a GPU, kernels are compiled and tuned in them.
    pub warm_up_seconds: f64,
    /// Bytes of the weights.
    pub weight_bytes: usize,
    /// Bytes of keys and values.
    pub kv_bytes: usize,
    /// Bytes of working buffers, where the model tells.
    pub buffer_bytes: Option<usize>,
    /// The sum of the three: what generation is known to need.
    pub stated_bytes: Option<usize>,
    /// Most memory the process had in the repeats, where the system tells.
    pub peak_bytes: Option<usize>,
    /// Most memory the process had while the model was loaded and packed, where that was measured.
    pub loading_peak_bytes: Option<usize>,
    /// Where the time went, where the model tells.
    pub components: Option<Components>,
    /// The prompts and what was generated, in `tokens.json` alone.
    #[serde(skip)]
    pub tokens: Tokens,
}

impl Measurement {
    /// The peak by what is stated, where both are known.
    pub fn peak_by_stated(&self) -> Option<f64> {
        Some(self.peak_bytes? as f64 / self.stated_bytes? as f64)
    }
}

/// What a measurement was of, so that others can repeat it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Tokens {
    /// Ids of every prompt.
    pub prompts: Vec<Vec<u32>>,
    /// The ids behind each, the same in every repeat.
    pub generated: Vec<Vec<u32>>,
}

/// Measures a workload: random prompts, the likeliest token each time, no end of text. The prompts, and with the same
/// weights the tokens, are the same in every repeat and for every model of the same vocabulary.
///
/// # Errors
/// [`BenchError`] if the workload does not fit the model's context, a number is zero, or logits are not numbers.
pub fn measure(
    subject: &Subject<'_>,
    workload: &Workload,
    options: &MeasureOptions,
    device: &Device,
) -> Result<Measurement, BenchError> {
    for (what, value) in [("the batch", options.batch), ("the number of repeats", options.repeats)] {
        if value == 0 {
            return Err(BenchError::Range { what, value, expected: "at least 1" });
        }
    }
    let Repeats { prompts, warm_up, runs } = match subject.model {
        Model::Plain(model) => match options.decoding {
            Decoding::Host => repeat(&OnHost { model, profile: |_| None }, workload, options, device)?,
            Decoding::Device(decoding) => repeat(&OnDevice { model, decoding }, workload, options, device)?,
        },
        Model::Packed(model) => {
            let profile = |state: &CpuState| Some((state.profile(), state.buffer_bytes()));
            repeat(&OnHost { model, profile }, workload, options, device)?
        }
    };
    let steps = runs.last().map_or(&[][..], |run| &run.generated);
    let generated = (0..options.batch).map(|row| steps.iter().map(|tokens| tokens[row]).collect()).collect();
    let warm_up_seconds = warm_up.as_secs_f64();
    let tokens = Tokens { prompts, generated };
    Ok(Measurement { tokens, warm_up_seconds, ..summary(subject, workload, options, &runs) })
}

/// Bytes that a workload takes at a batch size, beside what the process has already: the peak of a prefill and one
/// step, and the keys and values that later steps will fill.
///
/// # Errors
/// [`BenchError::NoMemory`] where the system does not tell, and as [`measure`].
pub fn required_bytes(
    subject: &Subject<'_>,
    workload: &Workload,
    (batch, decoding): (usize, Decoding),
    device: &Device,
) -> Result<usize, BenchError> {
    let before = memory::resident_bytes().ok_or(BenchError::NoMemory)?;
    memory::reset_peak();
    let shorter = Workload { new_tokens: 2.min(workload.new_tokens), ..workload.clone() };
    let options = MeasureOptions { batch, repeats: 1, warm_up: 0, seed: 0, decoding };
    let short = measure(subject, &shorter, &options, device)?;
    let peak = memory::peak_bytes().ok_or(BenchError::NoMemory)?;
    let positions = |workload: &Workload| workload.prompt_tokens + workload.new_tokens;
    let grown = short.kv_bytes as f64 * positions(workload) as f64 / positions(&shorter) as f64;
    Ok(peak.saturating_sub(before) + grown as usize - short.kv_bytes)
}

/// Bytes that a workload needs at a batch size, to be compared with a budget. Where the device tells what its allocator has
/// reserved, that, weights included, when the prompts have been taken in and all room for keys and values is there;
/// elsewhere as [`required_bytes`].
///
/// # Errors
/// [`BenchError::Device`] if the device failed, for want of memory most likely, and as [`required_bytes`].
pub fn needed_bytes(
    subject: &Subject<'_>,
    workload: &Workload,
    (batch, decoding): (usize, Decoding),
    device: &Device,
) -> Result<usize, BenchError> {
    let (Model::Plain(model), Some(_)) = (subject.model, memory::device_bytes(device)) else {
        return guarded(|| required_bytes(subject, workload, (batch, decoding), device))?;
    };
    device.memory_cleanup();
    guarded(|| take_in(model, workload, (batch, decoding), device))??;
    memory::device_bytes(device).map(|bytes| bytes.reserved).ok_or(BenchError::NoMemory)
}

/// A prefill, and a step or a round where there is one, in caches for the whole workload.
fn take_in(
    model: &AnyModel,
    workload: &Workload,
    (batch, decoding): (usize, Decoding),
    device: &Device,
) -> Result<(), BenchError> {
    let layout = model.layout();
    let prompts = prompts(workload, batch, layout.vocab_size, 0);
    let slices: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    if let Decoding::Device(decoding) = decoding {
        let mut rounds = Rounds::begin(model, &slices, &greedy(workload), decoding, device)?;
        for _ in 0..2 {
            rounds.next_tokens()?;
        }
        return Ok(());
    }
    let blocked = layout.block_prompts(&slices, workload.new_tokens)?;
    let (mut state, logits) = model.prefill(&blocked, workload.new_tokens, device);
    let mut spent = Duration::ZERO;
    let tokens = choose(logits, &mut spent)?;
    if workload.new_tokens > 1 {
        choose(model.step(&mut state, &tokens), &mut spent)?;
    }
    Ok(())
}

fn greedy(workload: &Workload) -> GenerateOptions {
    GenerateOptions { max_new_tokens: workload.new_tokens, ..GenerateOptions::default() }
}

/// A way to run a workload.
trait Bench {
    fn layout(&self) -> BlockLayout;

    fn run(&self, prompts: &[&[u32]], new_tokens: usize, device: &Device) -> Result<Run, BenchError>;
}

/// A model and how its state tells where time and memory went; the host looks at every token.
struct OnHost<'a, M: LanguageModel> {
    model: &'a M,
    profile: fn(&M::State) -> Option<(Profile, usize)>,
}

/// A model whose tokens are found on its device.
struct OnDevice<'a> {
    model: &'a AnyModel,
    decoding: DeviceDecoding,
}

struct Run {
    first: Duration,
    total: Duration,
    /// Tokens of a sequence that were there after `first`.
    together: usize,
    sampling: [Duration; 2],
    profile: Option<[Profile; 2]>,
    kv_bytes: usize,
    buffer_bytes: Option<usize>,
    peak_bytes: Option<usize>,
    /// One list a step.
    generated: Vec<Vec<u32>>,
}

/// All runs of a measurement.
struct Repeats {
    prompts: Vec<Vec<u32>>,
    /// What those that do not count took.
    warm_up: Duration,
    runs: Vec<Run>,
}

fn repeat(
    bench: &impl Bench,
    workload: &Workload,
    options: &MeasureOptions,
    device: &Device,
) -> Result<Repeats, BenchError> {
    let prompts = prompts(workload, options.batch, bench.layout().vocab_size, options.seed);
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
fn prompts(workload: &Workload, batch: usize, vocab_size: usize, seed: u64) -> Vec<Vec<u32>> {
    (0..batch).map(|row| prompt(workload.prompt_tokens, vocab_size, seed.wrapping_add(row as u64))).collect()
}

/// Ids that look random.
fn prompt(length: usize, vocab_size: usize, seed: u64) -> Vec<u32> {
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
            total,
            together: 1,
            sampling,
            profile: prefill.zip(last).map(|(prefill, (last, _))| [prefill, last]),
            kv_bytes: self.model.kv_bytes(&state),
            buffer_bytes: last.map(|(_, bytes)| bytes),
            peak_bytes: memory::peak_bytes(),
            generated,
        })
    }
}

impl Bench for OnDevice<'_> {
    fn layout(&self) -> BlockLayout {
        self.model.layout()
    }

    /// The first token is there when the first round is.
    fn run(&self, prompts: &[&[u32]], new_tokens: usize, device: &Device) -> Result<Run, BenchError> {
        memory::reset_peak();
        let options = GenerateOptions { max_new_tokens: new_tokens, ..GenerateOptions::default() };
        let start = Instant::now();
        let mut rounds = Rounds::begin(self.model, prompts, &options, self.decoding, device)?;
        let mut generated = Vec::with_capacity(new_tokens);
        let mut first = None;
        while let Some(tokens) = rounds.next_tokens()? {
            generated.extend(tokens);
            first.get_or_insert_with(|| (start.elapsed(), generated.len()));
        }
        let total = start.elapsed();
        let (first, together) = first.ok_or(GenerateError::NothingToGenerate)?;
        Ok(Run {
            first,
            total,
            together,
            sampling: [Duration::ZERO; 2],
            profile: None,
            kv_bytes: rounds.kv_bytes(),
            buffer_bytes: None,
            peak_bytes: memory::peak_bytes(),
            generated,
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

fn summary(subject: &Subject<'_>, workload: &Workload, options: &MeasureOptions, runs: &[Run]) -> Measurement {
    let spread = |f: &dyn Fn(&Run) -> f64| Spread::of(runs.iter().map(f));
    let later = |run: &Run| workload.new_tokens.saturating_sub(run.together).max(1) as f64;
    let median = |f: &dyn Fn(&[Profile; 2], &[Duration; 2]) -> f64| {
        Spread::of(runs.iter().filter_map(|run| Some(f(run.profile.as_ref()?, &run.sampling)))).median
    };
    let weight_bytes = subject.weight_bytes();
    let kv_bytes = runs.iter().map(|run| run.kv_bytes).max().unwrap_or(0);
    let buffer_bytes = runs.iter().filter_map(|run| run.buffer_bytes).max();
    Measurement {
        model: subject.name.into(),
        precision: subject.precision(),
        workload: workload.name.clone(),
        prompt_tokens: workload.prompt_tokens,
        new_tokens: workload.new_tokens,
        batch: options.batch,
        decoding: match (subject.model, options.decoding) {
            (Model::Plain(_), Decoding::Device(_)) => "device",
            _ => "host",
        },
        repeats: options.repeats,
        tokens_per_second: spread(&|run| (options.batch * workload.new_tokens) as f64 / run.total.as_secs_f64()),
        first_token_ms: spread(&|run| milliseconds(run.first)),
        token_ms: spread(&|run| milliseconds(run.total - run.first) / later(run)),
        warm_up_seconds: 0.0,
        weight_bytes,
        kv_bytes,
        buffer_bytes,
        stated_bytes: buffer_bytes.map(|buffer_bytes| weight_bytes + kv_bytes + buffer_bytes),
        loading_peak_bytes: subject.loading_peak,
        peak_bytes: runs.iter().filter_map(|run| run.peak_bytes).max(),
        components: runs.iter().all(|run| run.profile.is_some()).then(|| Components {
            prefill: phase(&|part| median(&|profile, sampling| part(&Profile::default(), &profile[0], sampling[0]))),
            decode: phase(&|part| median(&|profile, sampling| part(&profile[0], &profile[1], sampling[1]))),
        }),
        tokens: Tokens::default(),
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A part of what was spent between two profiles, and in sampling.
type Part = dyn Fn(&Profile, &Profile, Duration) -> f64;

fn phase(median: &dyn Fn(&Part) -> f64) -> Phase {
    let part = |f: fn(&Profile) -> Duration| median(&move |from, to, _| milliseconds(f(to) - f(from)));
    Phase {
        embedder: part(|p| p.embedder),
        block_attention: part(|p| p.block_decoder.attention),
        block_feed_forward: part(|p| p.block_decoder.feed_forward),
        token_attention: part(|p| p.token_decoder.attention),
        token_feed_forward: part(|p| p.token_decoder.feed_forward),
        output: part(|p| p.output),
        sampling: median(&|_, _, sampling| milliseconds(sampling)),
        other: part(|p| p.block_decoder.other + p.token_decoder.other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(Spread::of([4.0, 1.0, 3.0]), Spread { median: 3.0, min: 1.0, max: 4.0 });
        assert_eq!(Spread::of([4.0, 1.0, 3.0, 2.0]).median, 2.5);
    }

    #[test]
    fn prompts_differ_by_row_and_stay_in_the_vocabulary() {
        let (a, b) = (prompt(100, 50, 1), prompt(100, 50, 2));
        assert_ne!(a, b);
        assert_eq!(a, prompt(100, 50, 1));
        assert!(a.iter().chain(&b).all(|id| *id < 50));
    }
}
