//! Packed models against the models they were made of.

use std::ops::ControlFlow;
use std::sync::Mutex;

use blockformer_cpu::{CpuModel, Level, PackError, Precision};
use blockformer_embedder::{ClsTokens, EmbedderConfig, EncoderConfig, LookupConfig, Projection};
use blockformer_generate::{GenerateOptions, LanguageModel, generate, likeliest};
use blockformer_kernels::PackedMatrix;
use blockformer_model::{AnyModel, BlockTransformerConfig, ModelConfig, VanillaTransformerConfig, presets};
use blockformer_nn::{Activation, Residual, TransformerConfig};
use blockformer_token_decoder::{CrossAttentionConfig, Expansion, PrefixConfig, SummationConfig, TokenDecoderConfig};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};

const VOCAB: usize = 45;

/// A model with the same weights in every run: they are drawn from a seed, of one model at a time. Bounds that rounding keeps by
/// chance would otherwise be broken by chance.
fn drawn(config: &ModelConfig, device: &Device) -> AnyModel {
    drawn_with(7, config, device)
}

fn drawn_with(seed: u64, config: &ModelConfig, device: &Device) -> AnyModel {
    static DRAWING: Mutex<()> = Mutex::new(());
    let _one = DRAWING.lock().unwrap();
    device.seed(seed);
    let model = AnyModel::new(config, device).unwrap();
    model.read_weights(); // they are drawn when they are first looked at
    model
}

fn wide(config: TransformerConfig) -> TransformerConfig {
    TransformerConfig { initializer_range: 0.2, ..config }
}

fn neox() -> TransformerConfig {
    wide(TransformerConfig::gpt_neox(24, 2, 3))
}

fn llama() -> TransformerConfig {
    wide(TransformerConfig::llama(24, 2, 4).with_n_kv_heads(2))
}

fn prefix(
    transformer: TransformerConfig,
    expansion: Expansion,
    expansion_ratio: usize,
    tied: bool,
) -> TokenDecoderConfig {
    TokenDecoderConfig::Prefix(PrefixConfig { transformer, expansion, expansion_ratio, tied_embeddings: tied })
}

fn summation(transformer: TransformerConfig, expansion: Expansion) -> TokenDecoderConfig {
    TokenDecoderConfig::Summation(SummationConfig { transformer, expansion, start_token_id: 2, tied_embeddings: false })
}

/// Heads together wider than the model; distances that share buckets.
fn cross_attention(expansion: Expansion) -> TokenDecoderConfig {
    TokenDecoderConfig::CrossAttention(CrossAttentionConfig {
        d_model: if expansion == Expansion::Repeat { 24 } else { 16 },
        n_layers: 2,
        n_heads: 3,
        head_dim: 8,
        d_ff: 32,
        norm_eps: 1e-6,
        expansion,
        expansion_ratio: 3,
        start_token_id: 1,
        relative_buckets: 3,
        relative_max_distance: 4,
    })
}

fn lookup(d_embedding: usize, projection: Projection) -> EmbedderConfig {
    EmbedderConfig::Lookup(LookupConfig { d_embedding, projection })
}

fn block(
    n_embedding_tokens: usize,
    embedder: EmbedderConfig,
    block_decoder: TransformerConfig,
    token_decoder: TokenDecoderConfig,
) -> ModelConfig {
    let mut config: BlockTransformerConfig = presets::block("block_main_b4_5").unwrap();
    (config.vocab_size, config.max_length, config.n_embedding_tokens) = (VOCAB, 64, n_embedding_tokens);
    (config.embedder, config.block_decoder, config.token_decoder) = (embedder, block_decoder, token_decoder);
    ModelConfig::BlockTransformer(config)
}

fn vanilla(transformer: TransformerConfig, tied_embeddings: bool) -> ModelConfig {
    let config = presets::vanilla("vanilla_31").unwrap();
    ModelConfig::VanillaTransformer(VanillaTransformerConfig {
        vocab_size: VOCAB,
        max_length: 64,
        tied_embeddings,
        transformer,
        ..config
    })
}

fn models() -> Vec<(&'static str, ModelConfig)> {
    let encoder = EncoderConfig { cls: Some(ClsTokens { n: 1, token_id: 0 }), ..EncoderConfig::roberta(16, 1, 2) };
    let joined =
        EncoderConfig { transformer: wide(TransformerConfig::roberta(18, 2, 3)), ..EncoderConfig::roberta(18, 2, 3) };
    let sequential = TransformerConfig { residual: Residual::Sequential, activation: Activation::GeluTanh, ..neox() };
    // The order of positions counts, though CLS tokens are moved.
    let rotary = TransformerConfig { rotary: llama().rotary, ..wide(TransformerConfig::roberta(12, 2, 2)) };
    let rotary = EncoderConfig {
        transformer: rotary,
        cls: Some(ClsTokens { n: 2, token_id: 0 }),
        ..EncoderConfig::roberta(12, 2, 2)
    };
    let concat = || lookup(6, Projection::Concat);
    let widened = |context_blocks: usize, predict_first_block: bool| {
        let config = block(1, concat(), neox(), prefix(neox(), Expansion::Layer, 2, false));
        let ModelConfig::BlockTransformer(config) = config else { unreachable!() };
        ModelConfig::BlockTransformer(BlockTransformerConfig { context_blocks, predict_first_block, ..config })
    };
    vec![
        ("three contexts", widened(3, false)),
        ("a start", widened(1, true)),
        ("two contexts and a start", widened(2, true)),
        ("prefix", block(1, concat(), neox(), prefix(neox(), Expansion::Layer, 2, false))),
        ("llama", block(1, concat(), llama(), prefix(llama(), Expansion::Layer, 3, true))),
        (
            "two embeddings a block",
            block(2, lookup(12, Projection::Concat), neox(), prefix(sequential.clone(), Expansion::Repeat, 1, false)),
        ),
        (
            "projection",
            block(1, lookup(5, Projection::ProjectionLayer), sequential, prefix(neox(), Expansion::Layer, 1, false)),
        ),
        ("encoder", block(1, EmbedderConfig::Encoder(encoder), neox(), prefix(neox(), Expansion::Layer, 2, false))),
        (
            "encoder without CLS tokens",
            block(2, EmbedderConfig::Encoder(joined), llama(), prefix(neox(), Expansion::Layer, 1, false)),
        ),
        (
            "encoder with CLS tokens and rotary positions",
            block(1, EmbedderConfig::Encoder(rotary), neox(), prefix(neox(), Expansion::Layer, 1, false)),
        ),
        ("summation", block(1, concat(), llama(), summation(neox(), Expansion::Layer))),
        ("cross-attention", block(1, concat(), neox(), cross_attention(Expansion::Layer))),
        (
            "cross-attention to two embeddings",
            block(2, lookup(12, Projection::Concat), llama(), cross_attention(Expansion::Repeat)),
        ),
        ("vanilla", vanilla(neox(), false)),
        ("vanilla post-norm", vanilla(wide(TransformerConfig::roberta(24, 2, 3)), false)),
        ("vanilla llama", vanilla(llama(), true)),
    ]
}

const PROMPTS: [&[u32]; 3] = [&[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], &[7, 11], &[8, 30, 44, 1, 2, 3, 4, 9, 21, 17]];

/// Logits of the first token behind the prompts and of some given ones.
fn logits<M: LanguageModel>(model: &M, device: &Device) -> Vec<Tensor<2>> {
    let given = [[1, 2, 3], [40, 41, 42], [5, 5, 5], [9, 8, 7], [0, 44, 22], [6, 7, 8]];
    let prompts = model.layout().block_prompts(&PROMPTS, given.len() + 1).unwrap();
    let (mut state, first) = model.prefill(&prompts, given.len() + 1, device);
    let mut all = vec![first];
    all.extend(given.iter().map(|tokens| model.step(&mut state, tokens)));
    all
}

fn largest_difference(a: &[Tensor<2>], b: &[Tensor<2>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let one = |(a, b): (&Tensor<2>, &Tensor<2>)| (a.clone() - b.clone()).abs().max().into_scalar::<f32>();
    a.iter().zip(b).map(one).fold(0.0, f32::max)
}

fn mean_square_difference(a: &[Tensor<2>], b: &[Tensor<2>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let one = |(a, b): (&Tensor<2>, &Tensor<2>)| (a.clone() - b.clone()).square().mean().into_scalar::<f32>();
    a.iter().zip(b).map(one).sum::<f32>() / a.len() as f32
}

#[test]
fn float32_logits_are_those_of_plain_operations_on_every_level() {
    let device = Device::flex();
    for (name, config) in models() {
        assert_eq!(CpuModel::supports(&config), Ok(()), "{name}");
        let model = drawn(&config, &device);
        let plain = logits(&model, &device);
        let packed = CpuModel::new(&config, model, Precision::F32).unwrap();
        for level in Level::supported() {
            let error = largest_difference(&logits(&packed.clone().with_level(level), &device), &plain);
            assert!(error < 2e-5, "{name} on {}: {error}", level.name());
        }
    }
}

/// Rounds the weights of linear maps to a precision.
struct Rounding {
    precision: Precision,
    path: Vec<(String, String)>,
}

impl ModuleMapper for Rounding {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push((name.into(), container.into()));
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let linear = self.path.last().is_some_and(|(name, container)| name == "weight" && container == "Struct:Linear");
        let (id, weight, mapper) = parameter.consume();
        let rounded = if linear {
            let [n_inputs, n_outputs] = weight.dims()[..] else { panic!("the weights of a linear map") };
            let numbers: Vec<f32> = weight.to_data().iter::<f32>().collect();
            // With 4 bits, the projection to the vocabulary has 8.
            let to_vocabulary = self.path.iter().any(|(_, container)| container == "Struct:Vocabulary");
            let eight = to_vocabulary && self.precision == Precision::Int4;
            let precision = if eight { Precision::Int8 } else { self.precision };
            let numbers = PackedMatrix::new(&numbers, n_inputs, n_outputs, precision).to_f32();
            Tensor::from_data(TensorData::new(numbers, weight.dims()), &weight.device())
        } else {
            weight
        };
        Param::from_mapped_value(id, rounded, mapper)
    }
}

#[test]
fn narrower_weights_give_the_logits_of_a_plain_model_with_rounded_weights() {
    let device = Device::flex();
    for (name, config) in models() {
        // A tied table is rounded for the projection only.
        if matches!(name, "llama" | "vanilla llama" | "cross-attention" | "cross-attention to two embeddings") {
            continue;
        }
        for precision in [Precision::Bf16, Precision::Int8, Precision::Int4] {
            let rounds_inputs = precision != Precision::Bf16 || Level::current().multiplies_bf16();
            // Of all logits of three drawings together: the worst of so few rounded sums is chance.
            let (mut errors, mut roundings) = (0.0, 0.0);
            for model in [7, 8, 9].map(|seed| drawn_with(seed, &config, &device)) {
                let exact = logits(&model, &device);
                let plain = logits(&model.clone().map(&mut Rounding { precision, path: Vec::new() }), &device);
                let packed = logits(&CpuModel::new(&config, model, precision).unwrap(), &device);
                if !rounds_inputs {
                    let error = largest_difference(&packed, &plain);
                    assert!(error < 2e-5, "{name} in bf16: {error}");
                }
                errors += mean_square_difference(&packed, &plain) / 3.0;
                roundings += mean_square_difference(&plain, &exact) / 3.0;
            }
            let (error, rounding) = (errors.sqrt(), roundings.sqrt());
            assert!(rounding > 1e-4, "{name} in {}: nothing was rounded", precision.name());
            // Inputs are rounded too: as finely as weights of 8 bits, or of bfloat16 where the CPU multiplies that, which
            // together change as much again, and much more finely than 4-bit weights.
            let inputs = match precision {
                Precision::Int4 => 0.15 * rounding,
                _ if rounds_inputs => 1.5 * rounding,
                _ => 0.0,
            };
            assert!(error < 2e-5 + inputs, "{name} in {}: {error}, weights {rounding}", precision.name());
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_plain_operations() {
    let device = Device::flex();
    let options = GenerateOptions { max_new_tokens: 21, ..GenerateOptions::default() };
    for (name, config) in models() {
        let model = drawn(&config, &device);
        let plain = tokens(&model, &options, &device);
        let packed = CpuModel::new(&config, model, Precision::F32).unwrap();
        assert_eq!(tokens(&packed, &options, &device), plain, "{name}");
    }
}

fn tokens<M: LanguageModel>(model: &M, options: &GenerateOptions, device: &Device) -> Vec<Vec<u32>> {
    let generated = generate(model, &PROMPTS, options, device, |_, _| ControlFlow::Continue(())).unwrap();
    generated.into_iter().map(|generation| generation.tokens).collect()
}

#[test]
fn the_likeliest_tokens_are_those_of_the_logits_in_every_precision() {
    let device = Device::flex();
    for (name, config) in models() {
        let model = drawn(&config, &device);
        let prompts = model.layout().block_prompts(&PROMPTS, 7).unwrap();
        for precision in Precision::ALL {
            let packed = CpuModel::new(&config, model.clone(), precision).unwrap();
            let (mut state, logits) = packed.prefill(&prompts, 7, &device);
            let (mut other, mut third, mut written) = (state.clone(), state.clone(), vec![f32::NAN; 7]);
            let mut next = likeliest(logits);
            for step in 0..6 {
                let tokens: Vec<u32> = next.iter().map(|token| token.unwrap()).collect();
                next = packed.step_likeliest(&mut state, &tokens);
                let logits = packed.step(&mut other, &tokens);
                let vocab_size = logits.dims()[1];
                let numbers: Vec<f32> = logits.into_data().iter::<f32>().collect();
                packed.step_into(&mut third, &tokens, &mut written);
                assert_eq!(written, numbers, "{name} in {}, step {step}", precision.name());
                for (row, token) in numbers.chunks(vocab_size).zip(&next) {
                    let largest = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
                    let expected = row.iter().position(|logit| *logit == largest).map(|id| id as u32);
                    assert_eq!(*token, expected, "{name} in {}, step {step}", precision.name());
                }
            }
        }
    }
}

#[test]
fn long_prompts_taken_in_by_parts_give_the_same_logits() {
    // More positions than go through the layers at once.
    let device = Device::flex();
    let mut config = vanilla(wide(TransformerConfig::gpt_neox(16, 1, 2)), false);
    if let ModelConfig::VanillaTransformer(config) = &mut config {
        config.max_length = 1000;
    }
    let model = drawn(&config, &device);
    let prompts: Vec<Vec<u32>> =
        (0..5).map(|i| (0..900 - i).map(|j| (i * 7 + j * j) % VOCAB as u32).collect()).collect();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let blocked = model.layout().block_prompts(&prompts, 2).unwrap();
    let plain = model.prefill(&blocked, 2, &device).1;
    let packed = CpuModel::new(&config, model, Precision::F32).unwrap().prefill(&blocked, 2, &device).1;
    assert!(largest_difference(&[packed], &[plain]) < 2e-5);
}

#[test]
fn bytes_and_times_are_accounted_for() {
    let device = Device::flex();
    let (_, config) = models().swap_remove(0);
    let model = drawn(&config, &device);
    let parameters = model.parameters().total;
    let prompts = model.layout().block_prompts(&PROMPTS, 8).unwrap();
    let kv = model.kv_bytes(&model.prefill(&prompts, 8, &device).0);
    let narrow = CpuModel::new(&config, model.clone(), Precision::Int8).unwrap();
    let packed = CpuModel::new(&config, model, Precision::F32).unwrap();
    assert!(packed.weight_bytes() >= 4 * parameters);
    let (mut state, _) = packed.prefill(&prompts, 8, &device);
    assert_eq!(packed.kv_bytes(&state), kv);
    // The prompts' logits count, and what products make of their inputs: codes beside quantised weights, and in float32 a copy
    // of many rows, but not of few.
    assert!(state.buffer_bytes() >= 4 * PROMPTS.len() * VOCAB);
    assert!(state.buffer_bytes() > narrow.prefill(&prompts, 8, &device).0.buffer_bytes());
    let one = packed.layout().block_prompts(&PROMPTS[2..], 8).unwrap();
    let buffers = |model: &CpuModel| model.prefill(&one, 8, &device).0.buffer_bytes();
    assert!(buffers(&narrow) > buffers(&packed));
    let before = state.profile().total();
    packed.step(&mut state, &[1, 2, 3]);
    assert!(state.profile().total() > before && state.buffer_bytes() > 0);
}

#[test]
fn other_configurations_are_refused() {
    let device = Device::flex();
    let model = drawn(&block(1, lookup(6, Projection::Concat), neox(), cross_attention(Expansion::Layer)), &device);
    assert_eq!(CpuModel::new(&vanilla(neox(), false), model, Precision::F32).unwrap_err(), PackError::Mismatch);
}
