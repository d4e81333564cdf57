//! Caches: what is computed step by step against what is computed at once.

use std::ops::ControlFlow;

use blockformer_generate::{
    Decoding, DeviceDecoding, Engine, EngineConfig, Event, GenerateOptions, LanguageModel, Request, RequestId, Sampler,
    Sampling, generate,
};
use blockformer_kv_cache::LayerCache;
use blockformer_model::{BlockTransformer, BlockTransformerConfig, VanillaTransformer, VanillaTransformerConfig};
use blockformer_train::Precision;
use burn::tensor::{Device, Tensor, TensorData, s};

use super::answers::{Answer, Part};
use super::models::{self, Subject, VOCAB_SIZE, id_tensor, ids, mask, numbers};

/// Positions that stay where they were written, whatever is written behind them, also while older views are held.
pub(super) fn in_place(subject: &Subject) -> Answer {
    const CAPACITY: usize = 160;
    const HEADS: usize = 2;
    const HEAD_DIM: usize = 8;
    let mut cache = LayerCache::new(1, HEADS, CAPACITY, HEAD_DIM, &subject.device);
    // Row after row of `[heads, positions, head_dim]`, each number its own.
    let rows = |from: usize, n: usize, sign: f32| -> Vec<f32> {
        let place =
            |head: usize, position: usize, i: usize| ((head * CAPACITY + position) * HEAD_DIM + i) as f32 * sign;
        let position = |head: usize, position: usize| (0..HEAD_DIM).map(move |i| place(head, position, i));
        let head = |head: usize| (from..from + n).flat_map(move |at| position(head, at));
        (0..HEADS).flat_map(head).collect()
    };
    let tensor = |from: usize, n: usize, sign: f32| {
        Tensor::<4>::from_data(TensorData::new(rows(from, n, sign), [1, HEADS, n, HEAD_DIM]), &subject.device)
    };
    let (mut got, mut expected) = (Vec::new(), Vec::new());
    let mut held = None;
    for sign in [1.0, 0.5] {
        cache.reset();
        for n in [1, 3, 1, 130, 1, 1] {
            let from = cache.len();
            let appended = cache.append(tensor(from, n, sign), tensor(from, n, -sign));
            let Ok((keys, values)) = appended else { unreachable!("137 positions fit") };
            expected.extend([rows(0, from + n, sign), rows(0, from + n, -sign)].concat());
            got.extend([numbers(keys.clone()), numbers(values)].concat());
            if sign == 1.0 && n == 130 {
                held = Some((keys, rows(0, from + n, sign)));
            }
        }
    }
    if let Some((view, before)) = held {
        got.extend(numbers(view));
        expected.extend(before);
    }
    vec![Part::equal("keys and values", expected, got)]
}

/// A model and its uncached passes.
pub(super) trait CachedConfig {
    type Model: LanguageModel;

    fn model(&self, subject: &Subject, device: &Device) -> Self::Model;

    /// Logits behind each of the first `prompt_len`, `prompt_len + 1`, … tokens of `text`, by one pass without caches,
    /// where generation began behind the first `prompt_len`.
    fn uncached(model: &Self::Model, text: &[u32], prompt_len: usize, device: &Device) -> Vec<Vec<f32>>;
}

impl CachedConfig for BlockTransformerConfig {
    type Model = BlockTransformer;

    fn model(&self, subject: &Subject, device: &Device) -> BlockTransformer {
        subject.block(self, device)
    }

    fn uncached(model: &BlockTransformer, text: &[u32], prompt_len: usize, device: &Device) -> Vec<Vec<f32>> {
        let length = model.layout().block_length;
        let padding = (length - prompt_len % length) % length;
        let mut padded = vec![0; padding];
        padded.extend_from_slice(text);
        padded.resize(padded.len().next_multiple_of(length) + length, 0); // what lies ahead cannot matter
        let shape = [1, padded.len() / length, length];
        let mask = (padding > 0).then(|| mask(shape, &[padding], device));
        let output = model.forward(id_tensor(&padded, shape, device), mask);
        let logits = numbers(model.logits(output.hidden));
        let first = model.layout().first_predicted_block() * length;
        let row = |behind: usize| padding + behind - first;
        (prompt_len..=text.len()).map(|n| logits[row(n) * VOCAB_SIZE..(row(n) + 1) * VOCAB_SIZE].to_vec()).collect()
    }
}

impl CachedConfig for VanillaTransformerConfig {
    type Model = VanillaTransformer;

    fn model(&self, subject: &Subject, device: &Device) -> VanillaTransformer {
        subject.vanilla(self, device)
    }

    fn uncached(model: &VanillaTransformer, text: &[u32], prompt_len: usize, device: &Device) -> Vec<Vec<f32>> {
        let logits = numbers(model.logits(model.forward(id_tensor(text, [1, text.len()], device), None, None)));
        (prompt_len..=text.len()).map(|n| logits[(n - 1) * VOCAB_SIZE..n * VOCAB_SIZE].to_vec()).collect()
    }
}

/// Lengths of prompts that advance together, and steps behind them: other shapes each time, and the first again.
const SCHEDULES: [(&[usize], usize); 4] = [(&[3, 9], 6), (&[1], 9), (&[16, 5, 8], 5), (&[3, 9], 6)];

/// Token by token, beside whole passes over each row alone.
pub(super) fn steps<C: CachedConfig>(subject: &Subject, config: &C) -> Answer {
    let model = config.model(subject, &subject.device);
    compare::<C, _>(&model, &model, &subject.device)
}

/// Steps of `cached` beside passes of `whole`.
fn compare<C: CachedConfig, M: LanguageModel>(whole: &C::Model, cached: &M, device: &Device) -> Answer {
    let (mut by_steps, mut at_once) = (Vec::new(), Vec::new());
    for (lengths, steps) in SCHEDULES {
        let texts: Vec<Vec<u32>> =
            lengths.iter().enumerate().map(|(salt, n)| ids(n + steps, salt, VOCAB_SIZE)).collect();
        by_steps.extend(logits_by_steps(cached, &texts, steps, device));
        let rows: Vec<_> = texts.iter().zip(lengths).map(|(text, n)| C::uncached(whole, text, *n, device)).collect();
        at_once.extend((0..=steps).flat_map(|step| rows.iter().flat_map(move |row| row[step].clone())));
    }
    vec![Part::equal("logits by steps", at_once, by_steps)]
}

/// Logits behind the prompt and behind each of the last `steps` tokens of every text, step after step.
fn logits_by_steps<M: LanguageModel>(model: &M, texts: &[Vec<u32>], steps: usize, device: &Device) -> Vec<f32> {
    let prompts: Vec<&[u32]> = texts.iter().map(|text| &text[..text.len() - steps]).collect();
    let blocked = match model.layout().block_prompts(&prompts, steps + 1) {
        Ok(blocked) => blocked,
        Err(error) => unreachable!("the prompts of this module are sound: {error}"),
    };
    let (mut state, logits) = model.prefill(&blocked, steps + 1, device);
    let mut all = numbers(logits);
    for step in 0..steps {
        let tokens: Vec<u32> = texts.iter().map(|text| text[text.len() - steps + step]).collect();
        all.extend(numbers(model.step(&mut state, &tokens)));
    }
    all
}

/// A sequence in pieces of many lengths, twice, beside one pass.
pub(super) fn pieces_of_tokens(subject: &Subject) -> Answer {
    const N: usize = 170;
    let device = &subject.device;
    let model = subject.vanilla(&models::vanilla(), device);
    let tokens = id_tensor(&ids(N, 0, VOCAB_SIZE), [1, N], device);
    let whole = numbers(model.forward(tokens.clone(), None, None));
    let in_pieces = || {
        let mut cache = model.transformer.new_cache(1, N, device);
        let pieces = PIECES.iter().scan(0, |start, n| {
            let piece = tokens.clone().slice(s![.., *start..*start + n]);
            *start += n;
            Some(numbers(model.forward(piece, None, Some(&mut cache))))
        });
        pieces.collect::<Vec<_>>().concat()
    };
    vec![Part::equal("hidden states", [whole.clone(), whole].concat(), [in_pieces(), in_pieces()].concat())]
}

/// Together 170; the fourth goes to the fused kernel behind what is cached.
const PIECES: [usize; 6] = [7, 1, 2, 140, 1, 19];

/// As [`pieces_of_tokens`], for the block decoder.
pub(super) fn pieces_of_blocks(subject: &Subject) -> Answer {
    const N: usize = 30;
    let device = &subject.device;
    let model = subject.block(&models::encoder_prefix(), device);
    let length = models::BLOCK_LENGTH;
    let blocks = id_tensor(&ids(N * length, 0, VOCAB_SIZE), [1, N, length], device);
    let (embeddings, whole) = model.context(blocks, None); // [1, N, 1, d_model]
    let whole = numbers(whole);
    let in_pieces = || {
        let mut cache = model.block_decoder.new_cache(1, N, device);
        let pieces = [3, 1, 1, 16, 1, 8].iter().scan(0, |start, n| {
            let piece = embeddings.clone().slice(s![.., *start..*start + n, .., ..]);
            *start += n;
            Some(numbers(model.block_decoder.forward(piece, None, Some(&mut cache))))
        });
        pieces.collect::<Vec<_>>().concat()
    };
    vec![Part::equal("context embeddings", [whole.clone(), whole].concat(), [in_pieces(), in_pieces()].concat())]
}

/// Prompts that advance together, and new tokens of each.
fn prompts() -> [Vec<u32>; 3] {
    [ids(5, 0, VOCAB_SIZE), ids(12, 1, VOCAB_SIZE), ids(3, 2, VOCAB_SIZE)]
}

const NEW: usize = 9;

fn of_few_tokens() -> GenerateOptions {
    GenerateOptions { max_new_tokens: NEW, ..GenerateOptions::default() }
}

/// How far greedy texts stay behind the likeliest tokens, by passes without caches: of the engine, which keeps keys and
/// values in pages, and of plain generation.
pub(super) fn engine(subject: &Subject) -> Answer {
    let device = &subject.device;
    let model = subject.block(&models::lookup_prefix(), device);
    let plain = |prompt: &Vec<u32>| generated(&model, &[prompt], &of_few_tokens(), device);
    let plain: Vec<Vec<u32>> = prompts().iter().flat_map(plain).collect();
    let paged = generated_by_engine(&model, NEW, None, device);
    vec![
        behind_the_likeliest::<BlockTransformerConfig>("of the engine", &model, (&paged, NEW), device),
        behind_the_likeliest::<BlockTransformerConfig>("of plain generation", &model, (&plain, NEW), device),
    ]
}

/// What an engine says behind each of the [`prompts`], `n` tokens.
fn generated_by_engine(
    model: &BlockTransformer,
    n: usize,
    recorded_after: Option<usize>,
    device: &Device,
) -> Vec<Vec<u32>> {
    let config = EngineConfig { kv_budget: 4 << 20, recorded_after, ..EngineConfig::default() };
    let mut engine = match Engine::new(model.clone(), config, device) {
        Ok(engine) => engine,
        Err(error) => panic!("{error}"),
    };
    let submitted = prompts().map(|prompt| engine.submit(Request::new(prompt).with_max_new_tokens(n)));
    let requests = match submitted.into_iter().collect::<Result<Vec<_>, _>>() {
        Ok(requests) => requests,
        Err(error) => panic!("{error}"),
    };
    let mut events: Vec<(RequestId, u32)> = Vec::new();
    engine.run(|id, event| match event {
        Event::Token(event) => events.push((id, event.token)),
        Event::Failed(error) => panic!("{error}"),
        _ => {}
    });
    let of = |request: RequestId| events.iter().filter(|(id, _)| *id == request).map(|(_, token)| *token).collect();
    requests.into_iter().map(of).collect()
}

/// The same of texts whose tokens are found on the device, in static shapes.
pub(super) fn likeliest_on_device(subject: &Subject) -> Answer {
    likeliest_by(subject, DECODING, NEW)
}

/// The same where the device repeats what it recorded, if it can, of as many tokens as that takes; and of an engine that does so.
pub(super) fn likeliest_repeated(subject: &Subject) -> Answer {
    const N: usize = 46;
    let device = &subject.device;
    let mut answer = likeliest_by(subject, DeviceDecoding { recorded_from: Some(1), ..DECODING }, N);
    let model = subject.block(&models::lookup_prefix(), device);
    let texts = generated_by_engine(&model, N, Some(0), device);
    answer.push(behind_the_likeliest::<BlockTransformerConfig>("of an engine", &model, (&texts, N), device));
    answer
}

const DECODING: DeviceDecoding = DeviceDecoding { tokens_per_read: None, static_shapes: true, recorded_from: None };

fn likeliest_by(subject: &Subject, decoding: DeviceDecoding, max_new_tokens: usize) -> Answer {
    let device = &subject.device;
    let decoding = Decoding::Device(decoding);
    let options = GenerateOptions { decoding, max_new_tokens, ..GenerateOptions::default() };
    let rows = prompts();
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let model = subject.block(&models::lookup_prefix(), device);
    let texts = generated(&model, &rows, &options, device);
    let vanilla = subject.vanilla(&models::vanilla(), device);
    let of_vanilla = generated(&vanilla, &rows, &options, device);
    vec![
        behind_the_likeliest::<BlockTransformerConfig>("block model", &model, (&texts, max_new_tokens), device),
        behind_the_likeliest::<VanillaTransformerConfig>("vanilla", &vanilla, (&of_vanilla, max_new_tokens), device),
    ]
}

/// Which tokens that a device drew are not those that the host draws, with the same random numbers, from the logits of
/// passes without caches: 1 for each.
pub(super) fn drawn_on_device(subject: &Subject) -> Answer {
    vec![Part::equal("share that differs", vec![0.0], vec![share_that_differs(subject, |sampling| sampling)])]
}

/// The share of such tokens, where the device draws as `changed` says.
fn share_that_differs(subject: &Subject, changed: fn(Sampling) -> Sampling) -> f32 {
    let device = &subject.device;
    let model = subject.block(&models::lookup_prefix(), device);
    let narrowed = Sampling { temperature: 1.3, top_k: Some(30), top_p: Some(0.9), seed: 7, ..Sampling::default() };
    let plain = Sampling { temperature: 0.8, seed: 3, ..Sampling::default() };
    let rows = prompts();
    let slices: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let (mut differ, mut n) = (0, 0);
    for sampling in [plain, narrowed] {
        let sampling_there = changed(sampling.clone());
        let options = GenerateOptions {
            sampling: sampling_there,
            decoding: Decoding::Device(DECODING),
            max_new_tokens: NEW,
            ..GenerateOptions::default()
        };
        let texts = generated(&model, &slices, &options, device);
        for (index, (prompt, text)) in rows.iter().zip(&texts).enumerate() {
            let mut sampler = Sampler::new(sampling.clone(), index, prompt);
            let logits = BlockTransformerConfig::uncached(&model, &[&prompt[..], text].concat(), prompt.len(), device);
            for (logits, token) in logits.iter().zip(text) {
                differ += usize::from(!matches!(sampler.sample(logits), Ok(drawn) if drawn == *token));
                n += 1;
            }
        }
    }
    assert_eq!(n, 2 * rows.len() * NEW, "tokens were drawn");
    differ as f32 / n as f32
}

/// Continuations.
fn generated<M: LanguageModel>(
    model: &M,
    prompts: &[&[u32]],
    options: &GenerateOptions,
    device: &Device,
) -> Vec<Vec<u32>> {
    match generate(model, prompts, options, device, |_, _| ControlFlow::Continue(())) {
        Ok(generations) => generations.into_iter().map(|generation| generation.tokens).collect(),
        Err(error) => panic!("{error}"),
    }
}

/// How far the logit of each of `n` tokens a text is behind the largest, as a share of the largest of all, by passes without
/// caches.
fn behind_the_likeliest<C: CachedConfig>(
    name: &'static str,
    model: &C::Model,
    (texts, n): (&[Vec<u32>], usize),
    device: &Device,
) -> Part {
    let mut behind = Vec::new();
    for (prompt, text) in prompts().iter().zip(texts) {
        let logits = C::uncached(model, &[&prompt[..], text].concat(), prompt.len(), device);
        for (logits, token) in logits.iter().zip(text) {
            let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let scale = logits.iter().fold(0f32, |max, logit| max.max(logit.abs()));
            behind.push((best - logits[*token as usize]) / scale);
        }
    }
    // All tokens that were asked for, and none behind.
    Part::equal(name, vec![0.0; prompts().len() * n], behind)
}

/// Steps in a shorter type beside passes in float32.
pub(super) fn shorter(subject: &Subject, precision: Precision) -> Answer {
    let model = subject.block(&models::lookup_prefix(), &subject.device);
    compare::<BlockTransformerConfig, _>(&model, &precision.shadow(&model), &subject.device)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::super::answers::largest_error;
    use super::super::{DRAWS_TOLERANCE, FLOAT32_TOLERANCE, TF32_DRAWS_TOLERANCE, TF32_TOLERANCE};
    use super::*;

    #[test]
    fn other_random_numbers_and_filters_are_noticed() {
        let subject = Subject::new(&Device::flex());
        assert_eq!(share_that_differs(&subject, |sampling| sampling), 0.0);
        let other_numbers = share_that_differs(&subject, |sampling| Sampling { seed: sampling.seed + 1, ..sampling });
        assert!(f64::from(other_numbers) > TF32_DRAWS_TOLERANCE, "{other_numbers}");
        let without_filters =
            share_that_differs(&subject, |sampling| Sampling { top_k: None, top_p: None, ..sampling });
        assert!(f64::from(without_filters) > DRAWS_TOLERANCE, "{without_filters}");
    }

    #[test]
    fn another_token_or_a_missing_one_is_behind_the_likeliest() {
        let device = Device::flex();
        let model = Subject::new(&device).block(&models::lookup_prefix(), &device);
        let rows = prompts();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let texts = generated(&model, &rows, &of_few_tokens(), &device);
        let error = |texts: &[Vec<u32>]| {
            let part = behind_the_likeliest::<BlockTransformerConfig>("texts", &model, (texts, NEW), &device);
            largest_error("none", &vec![part], None).error
        };
        assert!(error(&texts) <= FLOAT32_TOLERANCE);
        let mut changed = texts.clone();
        changed[1][4] = (changed[1][4] + 1) % VOCAB_SIZE as u32;
        assert!(error(&changed) > TF32_TOLERANCE);
        let mut shorter = texts;
        shorter[2].pop();
        assert_eq!(error(&shorter), f64::INFINITY);
    }
}
