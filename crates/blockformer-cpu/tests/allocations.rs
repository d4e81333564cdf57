//! What decoding allocates: one test in a process of its own, whose allocations are counted.

use std::alloc::System;

use blockformer_cpu::{CpuModel, Precision};
use blockformer_embedder::{EmbedderConfig, LookupConfig, Projection};
use blockformer_generate::{LanguageModel, likeliest};
use blockformer_model::{AnyModel, ModelConfig, presets};
use blockformer_nn::TransformerConfig;
use blockformer_token_decoder::{Expansion, PrefixConfig, TokenDecoderConfig};
use burn::tensor::Device;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Tokens that are decoded.
const STEPS: usize = 36;
/// After so many every buffer has been used once.
const FIRST: usize = 8;

/// No preset: grouped queries, RMS norm and gated networks.
const LLAMA: &str = "llama";

/// The parts of a preset in their widths, with few layers and words.
fn small(preset: &str, context_blocks: usize) -> ModelConfig {
    if let Some(mut config) = presets::block(preset) {
        (config.vocab_size, config.max_length, config.block_decoder.n_layers) = (1000, 128, 2);
        config.context_blocks = context_blocks;
        if let EmbedderConfig::Encoder(encoder) = &mut config.embedder {
            encoder.transformer.n_layers = 1;
        }
        match &mut config.token_decoder {
            TokenDecoderConfig::Prefix(config) => config.transformer.n_layers = 2,
            TokenDecoderConfig::Summation(config) => config.transformer.n_layers = 2,
            TokenDecoderConfig::CrossAttention(config) => config.n_layers = 2,
            _ => unreachable!("no preset has another"),
        }
        return ModelConfig::BlockTransformer(config);
    }
    if preset == LLAMA {
        let layers = || TransformerConfig::llama(64, 2, 4).with_n_kv_heads(2);
        let ModelConfig::BlockTransformer(mut config) = small("block_main_b4_19", context_blocks) else {
            unreachable!()
        };
        let transformer = layers();
        config.token_decoder = TokenDecoderConfig::Prefix(PrefixConfig {
            transformer,
            expansion: Expansion::Layer,
            expansion_ratio: 2,
            tied_embeddings: true,
        });
        config.embedder = EmbedderConfig::Lookup(LookupConfig { d_embedding: 16, projection: Projection::Concat });
        config.block_decoder = layers();
        return ModelConfig::BlockTransformer(config);
    }
    let mut config = presets::vanilla(preset).expect(preset);
    (config.vocab_size, config.max_length, config.transformer.n_layers) = (1000, 128, 2);
    ModelConfig::VanillaTransformer(config)
}

#[test]
fn steps_after_the_first_blocks_allocate_nothing_but_the_tokens_they_return() {
    let device = Device::flex();
    let models = [
        ("block_main_b4_19", 1, &Precision::ALL[..]),
        ("block_main_b4_19", 3, &[Precision::F32]),
        ("block_ablation_b4_85_roberta_prefix", 1, &[Precision::F32]),
        ("block_ablation_b4_85_cls_sum", 1, &[Precision::F32]),
        ("block_ablation_b4_85_cls_cross_attn", 1, &[Precision::F32]),
        ("vanilla_31", 1, &[Precision::F32]),
        (LLAMA, 1, &[Precision::F32]),
    ];
    // Threads of the pool allocate when they first do anything.
    rayon::broadcast(|_| ());
    for (preset, context_blocks, precisions) in models {
        let config = small(preset, context_blocks);
        let model = AnyModel::new(&config, &device).unwrap();
        model.read_weights();
        for &precision in precisions {
            let packed = CpuModel::new(&config, model.clone(), precision).unwrap();
            for batch in [1, 20] {
                // Of different lengths: some begin with blocks of padding.
                let prompts: Vec<&[u32]> = (0..batch).map(|row| &[3, 1, 4, 1, 5, 9, 2, 6][row % 3 * 3..]).collect();
                let prompts = packed.layout().block_prompts(&prompts, STEPS + 1).unwrap();
                let (mut state, logits) = packed.prefill(&prompts, STEPS + 1, &device);
                let mut tokens: Vec<u32> = likeliest(logits).into_iter().flatten().collect();
                assert_eq!(tokens.len(), batch);
                let (mut other, mut logits) = (state.clone(), Vec::new());
                // From a thread of the pool: what is handed to it from another waits in a queue that grows now and then.
                rayon::scope(|_| {
                    for step in 0..STEPS {
                        let region = Region::new(ALLOCATOR);
                        let found = packed.step_likeliest(&mut state, &tokens);
                        let change = region.change();
                        let only_tokens = (change.allocations, change.reallocations, change.deallocations) == (1, 0, 0)
                            && change.bytes_allocated == size_of_val(&found[..]);
                        let what = format!("{preset} in {}, batch {batch}, step {step}", precision.name());
                        assert!(step < FIRST || only_tokens, "{what}: {change:?}");
                        let region = Region::new(ALLOCATOR);
                        packed.step_into(&mut other, &tokens, &mut logits);
                        let change = region.change();
                        let nothing = (change.allocations, change.reallocations, change.deallocations) == (0, 0, 0);
                        assert!(step < FIRST || nothing, "{what}, logits: {change:?}");
                        for (token, found) in tokens.iter_mut().zip(found) {
                            *token = found.unwrap();
                        }
                    }
                });
            }
        }
    }
}
