//! One workload at one batch size.

mod run;

use std::time::Duration;

use blockformer_cpu::{CpuModel, CpuState, Profile};
use blockformer_generate::{Decoding, EngineConfig};
use blockformer_kv_cache::KvStorage;
use blockformer_model::AnyModel;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor};
use serde::Serialize;

use crate::error::guarded;
use crate::{BenchError, Needed, Workload, memory};
pub(crate) use run::begin;
pub use run::random_ids;
use run::{OnDevice, OnEngine, OnHost, Repeats, Run, repeat, take_in};

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

    /// The model, if it is one on Burn's operations.
    pub(crate) fn plain(&self) -> Option<&'a AnyModel> {
        match self.model {
            Model::Plain(model) => Some(model),
            Model::Packed(_) => None,
        }
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
    /// Whether an [`Engine`](blockformer_generate::Engine) generates, as a service has it, each sequence a request. Tokens come a
    /// block at a time then, the first of them too, and where weights take two bytes, so do the numbers of keys and values if the device has
    /// float16. Where decoding is [recorded](blockformer_generate::DeviceDecoding::recorded_from), the engine, one for all runs, records
    /// in the first.
    pub engine: bool,
}

impl Default for MeasureOptions {
    /// One sequence, one warm-up, five repeats, tokens found on the host, no engine.
    fn default() -> Self {
        Self { batch: 1, repeats: 5, warm_up: 1, seed: 0, decoding: Decoding::Host, engine: false }
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
    /// Where tokens were found: `host`, which looks at each, or `device`, where all but the first are
    /// looked at some at a time; `device, recorded` if the device repeated a captured graph; `engine, host` and
    /// `engine, device` if an engine generated them, `engine, device, recorded` if it recorded.
    pub decoding: &'static str,
    /// Repeats that counted.
    pub repeats: usize,
    /// Generated tokens of all sequences by the time from prompt to last token.
    pub tokens_per_second: Spread,
    /// From prompt to first token; of an engine, to the first block.
    pub first_token_ms: Spread,
    /// Between tokens of a sequence after the first, what recording takes left out; of an engine, after the first block. 0 if there are none.
    pub token_ms: Spread,
    /// What it took to [record](blockformer_generate::DeviceDecoding::recorded_from), which [`tokens_per_second`](Self::tokens_per_second)
    /// includes; of an engine it is in the warm-up.
    pub recording_ms: Spread,
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
        Model::Plain(model) if options.engine => {
            let short = Weights::of(model).dtype.is_some_and(|dtype| dtype.size() == 2);
            let short = short && device.supports_dtype(KvStorage::Float16.dtype());
            let kv_storage = if short { KvStorage::Float16 } else { KvStorage::Float32 };
            let (draw_on_device, recorded) = match options.decoding {
                Decoding::Host => (Some(false), None),
                Decoding::Device(decoding) => (Some(true), decoding.recorded_from),
            };
            let recorded_after = recorded.map(|_| EngineConfig::RECORDED_AFTER);
            let config = EngineConfig { kv_storage, draw_on_device, recorded_after, ..EngineConfig::default() };
            repeat(&OnEngine::new(model, config), workload, options, device)?
        }
        Model::Packed(model) if options.engine => {
            repeat(&OnEngine::new(model, EngineConfig::default()), workload, options, device)?
        }
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

/// Bytes that a workload takes at the batch size of `options`, beside what the process has already: the peak of a prefill
/// and one step, once, and the keys and values that later steps will fill.
///
/// # Errors
/// [`BenchError::NoMemory`] where the system does not tell, and as [`measure`].
pub fn required_bytes(
    subject: &Subject<'_>,
    workload: &Workload,
    options: &MeasureOptions,
    device: &Device,
) -> Result<Needed, BenchError> {
    let before = memory::resident_bytes().ok_or(BenchError::NoMemory)?;
    memory::reset_peak();
    let shorter = Workload { new_tokens: 2.min(workload.new_tokens), ..workload.clone() };
    let options = MeasureOptions { repeats: 1, warm_up: 0, ..*options };
    let short = measure(subject, &shorter, &options, device)?;
    let peak = memory::peak_bytes().ok_or(BenchError::NoMemory)?;
    let positions = |workload: &Workload| workload.prompt_tokens + workload.new_tokens;
    let grown = short.kv_bytes as f64 * positions(workload) as f64 / positions(&shorter) as f64;
    let kv_bytes = grown as usize;
    Ok(Needed { bytes: peak.saturating_sub(before) + kv_bytes - short.kv_bytes, kv_bytes })
}

/// Bytes that a workload needs at the batch size of `options`, to be compared with a budget. Where the device tells what its
/// allocator has reserved, that, weights included, when the prompts have been taken in and all room for keys and values is
/// there; elsewhere as [`required_bytes`].
///
/// # Errors
/// [`BenchError::Device`] if the device failed, for want of memory most likely, and as [`required_bytes`].
pub fn needed_bytes(
    subject: &Subject<'_>,
    workload: &Workload,
    options: &MeasureOptions,
    device: &Device,
) -> Result<Needed, BenchError> {
    let (Model::Plain(model), Some(_)) = (subject.model, memory::device_bytes(device)) else {
        return guarded(|| required_bytes(subject, workload, options, device))?;
    };
    device.memory_cleanup();
    let kv_bytes = guarded(|| take_in(model, workload, options, device))??;
    let bytes = memory::device_bytes(device).ok_or(BenchError::NoMemory)?.reserved;
    Ok(Needed { bytes, kv_bytes })
}

fn summary(subject: &Subject<'_>, workload: &Workload, options: &MeasureOptions, runs: &[Run]) -> Measurement {
    let spread = |f: &dyn Fn(&Run) -> f64| Spread::of(runs.iter().map(f));
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
            (Model::Plain(_), Decoding::Device(_)) if options.engine && runs.iter().all(|run| run.recorded) => {
                "engine, device, recorded"
            }
            (Model::Plain(_), Decoding::Device(_)) if options.engine => "engine, device",
            _ if options.engine => "engine, host",
            (Model::Plain(_), Decoding::Device(_)) if runs.iter().all(|run| run.recorded) => "device, recorded",
            (Model::Plain(_), Decoding::Device(_)) => "device",
            _ => "host",
        },
        repeats: options.repeats,
        tokens_per_second: spread(&|run| (options.batch * workload.new_tokens) as f64 / run.total.as_secs_f64()),
        first_token_ms: spread(&|run| milliseconds(run.first)),
        token_ms: spread(&|run| match workload.new_tokens.saturating_sub(run.first_tokens) {
            0 => 0.0,
            later => milliseconds((run.total - run.first).saturating_sub(run.recording)) / later as f64,
        }),
        recording_ms: spread(&|run| milliseconds(run.recording)),
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
    use blockformer_cpu::Precision;
    use blockformer_generate::DeviceDecoding;
    use blockformer_model::{ModelConfig, presets};

    use super::*;

    #[test]
    fn an_engine_generates_what_is_generated_without_it() {
        let device = Device::flex();
        let mut config = presets::block("block_main_b4_5").unwrap();
        (config.vocab_size, config.block_decoder.n_layers) = (100, 1);
        let block = AnyModel::Block(config.init(&device).unwrap());
        let packed = CpuModel::new(&ModelConfig::BlockTransformer(config), block.clone(), Precision::F32).unwrap();
        let mut config = presets::vanilla("vanilla_31").unwrap();
        (config.vocab_size, config.transformer.n_layers) = (100, 1);
        let vanilla = AnyModel::Vanilla(config.init(&device).unwrap());
        let workload = Workload { name: "short".into(), prompt_tokens: 10, new_tokens: 7 };
        for (subject, decoding, named) in [
            (Subject::new("block", &block), Decoding::Host, "engine, host"),
            (Subject::new("vanilla", &vanilla), Decoding::Device(DeviceDecoding::default()), "engine, device"),
            (Subject::packed("packed", &packed), Decoding::Host, "engine, host"),
        ] {
            let options = MeasureOptions { batch: 3, repeats: 1, warm_up: 0, decoding, ..MeasureOptions::default() };
            let without = measure(&subject, &workload, &options, &device).unwrap();
            let with = measure(&subject, &workload, &MeasureOptions { engine: true, ..options }, &device).unwrap();
            assert_eq!(with.tokens.generated, without.tokens.generated, "{}", subject.name);
            assert_eq!((with.tokens.generated.len(), with.decoding), (3, named));
            assert!(with.kv_bytes > 0 && with.first_token_ms.median > 0.0);
        }
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(Spread::of([4.0, 1.0, 3.0]), Spread { median: 3.0, min: 1.0, max: 4.0 });
        assert_eq!(Spread::of([4.0, 1.0, 3.0, 2.0]).median, 2.5);
    }
}
