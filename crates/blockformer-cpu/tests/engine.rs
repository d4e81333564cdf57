//! Packed models in the engine: each request gets what it gets alone, and what plain models compute.

#[path = "../../blockformer-generate/tests/models/mod.rs"]
mod models;
#[path = "../../blockformer-generate/tests/schedules/mod.rs"]
mod schedules;

use blockformer_cpu::{CpuModel, Level, Precision};
use blockformer_embedder::{ClsTokens, EmbedderConfig, EncoderConfig};
use blockformer_generate::{Alignment, EngineConfig, PagedModel, Request, Speculation, embed, log_likelihoods};
use blockformer_kv_cache::KvStorage;
use blockformer_model::{AnyModel, BlockTransformerConfig, ModelConfig};
use burn::tensor::Device;
use models::{all_configured, block_config, engine_logits, prompt, uncached};
use proptest::prelude::*;
use schedules::{alone, arrivals, check_accounts, check_conversation, check_reuse, check_schedule, tight};

/// All models, and one with an encoder.
fn plain_models() -> Vec<(&'static str, ModelConfig, AnyModel)> {
    let mut encoder = EncoderConfig { cls: Some(ClsTokens { n: 1, token_id: 0 }), ..EncoderConfig::roberta(16, 1, 2) };
    encoder.transformer.initializer_range = 0.15;
    let config = BlockTransformerConfig { embedder: EmbedderConfig::Encoder(encoder), ..block_config() };
    let model = AnyModel::Block(models::drawn(|| config.init(&Device::flex()).unwrap()));
    let mut all = all_configured();
    all.push(("encoder", ModelConfig::BlockTransformer(config), model));
    assert!(all.iter().any(|(name, ..)| *name == "cross-attention"));
    all
}

fn packed_models(precisions: &[Precision]) -> Vec<(String, CpuModel)> {
    let mut packed = Vec::new();
    for (name, config, model) in plain_models() {
        for &precision in precisions {
            let model = CpuModel::new(&config, model.clone(), precision).unwrap();
            packed.push((format!("{name} in {}", precision.name()), model));
        }
    }
    packed
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_runs_beside_it_a_request_gets_what_it_gets_alone(
        arrivals in arrivals(),
        forced in any::<bool>(),
        kv_storage in prop::sample::select(vec![KvStorage::Float32, KvStorage::Float16, KvStorage::Int8]),
    ) {
        let alignment = if forced { Alignment::ForceRest } else { Alignment::PadFirstBlock };
        for (name, model) in packed_models(&[Precision::F32, Precision::Int8]) {
            let config = EngineConfig { kv_storage, ..tight(&model, alignment) };
            check_schedule(&name, &model, &config, &arrivals, 0.0);
        }
    }

    #[test]
    fn drafts_change_no_token_of_any_request(arrivals in arrivals()) {
        for (name, model) in packed_models(&[Precision::F32, Precision::Int8]) {
            let without = tight(&model, Alignment::PadFirstBlock);
            let with = EngineConfig { speculation: Some(Speculation { shortest: 1, longest: 3 }), ..without.clone() };
            check_schedule(&name, &model, &with, &arrivals, 0.0);
            // A whole pass gives the bits of single steps, so drawn tokens are the same too.
            for arrival in &arrivals {
                let (with, without) =
                    (alone(&model, &with, &arrival.request()), alone(&model, &without, &arrival.request()));
                assert_eq!(with.samples, without.samples, "{name}: {arrival:?}");
            }
        }
    }
}

#[test]
fn shared_beginnings_are_reused_and_evicted_without_changing_a_token() {
    for (name, model) in packed_models(&[Precision::F32, Precision::Int4]) {
        check_reuse(&name, &model);
    }
}

#[test]
fn what_was_generated_is_reused_without_changing_a_bit() {
    let forced = EngineConfig { alignment: Alignment::ForceRest, ..EngineConfig::default() };
    let speculation = Some(Speculation { shortest: 1, longest: 3 });
    let settings = [
        forced.clone(),
        EngineConfig { kv_storage: KvStorage::Float16, ..forced.clone() },
        EngineConfig { kv_storage: KvStorage::Int8, speculation, ..forced.clone() },
        EngineConfig { reuse_generated: Some(true), ..EngineConfig::default() }, // padded
    ];
    for (name, model) in packed_models(&[Precision::F32, Precision::Int8]) {
        for settings in settings.clone() {
            let page = 2 * model.layout().block_length;
            let name = format!("{name}, {settings:?}");
            // Of 33 and 66 tokens before (or 32 and 64), all but what is in no full page and the last block, which was never taken in.
            let reused = check_conversation(&name, &model, settings.clone(), 0.0);
            assert!(reused >= 32 + 64 - 2 * 2 * page, "{name}: {reused} tokens were reused");
            // Without, no token that was generated in the turn before.
            let without = EngineConfig { reuse_generated: Some(false), ..settings };
            let of_prompts = check_conversation(&name, &model, without, 0.0);
            assert!(reused > of_prompts, "{name}: {reused} and {of_prompts} tokens were reused");
        }
    }
}

#[test]
fn what_was_generated_is_offered_where_it_is_found_again() {
    for (name, model) in packed_models(&[Precision::F32]) {
        let reused = |reuse_generated, alignment| {
            let settings = EngineConfig { reuse_generated, alignment, ..EngineConfig::default() };
            check_conversation(&name, &model, settings, 0.0)
        };
        let [by_itself, asked, not] = [None, Some(true), Some(false)].map(|reuse| reused(reuse, Alignment::ForceRest));
        assert_eq!((by_itself, not < asked), (asked, true), "{name}");
        let [by_itself, asked, not] =
            [None, Some(true), Some(false)].map(|reuse| reused(reuse, Alignment::PadFirstBlock));
        let expected = if model.layout().block_length == 1 { asked } else { not };
        assert_eq!(by_itself, expected, "{name}");
    }
}

#[test]
fn every_level_takes_blocks_in_alike() {
    for level in Level::supported() {
        for (name, model) in packed_models(&[Precision::F32, Precision::Bf16, Precision::Int8, Precision::Int4]) {
            let settings = EngineConfig { alignment: Alignment::ForceRest, ..EngineConfig::default() };
            check_conversation(&format!("{name} on {}", level.name()), &model.with_level(level), settings, 0.0);
        }
    }
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_are_those_of_whole_plain_passes_on_every_level() {
    let text = prompt(9, 5);
    for (name, config, plain) in plain_models() {
        let packed = CpuModel::new(&config, plain.clone(), Precision::F32).unwrap();
        for level in Level::supported() {
            let packed = packed.clone().with_level(level);
            for (length, speculation) in [(1, false), (6, false), (6, true), (8, false), (23, true)] {
                let (prompt, what) = (prompt(length, 0), format!("{name} on {}, prompt of {length}", level.name()));
                let speculation = speculation.then_some(Speculation { shortest: 1, longest: 3 });
                let settings = EngineConfig { page_blocks: 2, speculation, ..EngineConfig::default() };
                let got = engine_logits(&packed, settings, &prompt, &text);
                assert_eq!(got.len(), text.len());
                for (step, got) in got.iter().enumerate() {
                    let expected = uncached(&plain, length, &[&prompt[..], &text[..step]].concat());
                    let error = difference(got, &expected);
                    assert!(error < 2e-5, "{what}, step {step}: {error}");
                }
            }
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_the_plain_engine() {
    for (name, config, plain) in plain_models() {
        let packed = CpuModel::new(&config, plain.clone(), Precision::F32).unwrap();
        for alignment in [Alignment::PadFirstBlock, Alignment::ForceRest] {
            let settings = EngineConfig { alignment, ..EngineConfig::default() };
            for length in [2, 13, 40] {
                let request = Request::new(prompt(length, 3)).with_max_new_tokens(30);
                let (got, expected) = (alone(&packed, &settings, &request), alone(&plain, &settings, &request));
                assert_eq!(got.samples[0].tokens, expected.samples[0].tokens, "{name}, prompt of {length}");
            }
        }
    }
}

#[test]
fn log_likelihoods_and_embeddings_are_those_of_plain_models() {
    let device = Device::flex();
    for (name, config, plain) in plain_models() {
        let packed = CpuModel::new(&config, plain.clone(), Precision::F32).unwrap();
        for (length, n) in [(1, 1), (5, 3), (8, 6), (30, 17)] {
            let (context, continuation) = (prompt(length, 1), prompt(n, 7));
            let texts: [(&[u32], &[u32]); 1] = [(&context, &continuation)];
            let got = log_likelihoods(&packed, &texts, &device).unwrap().remove(0);
            let expected = log_likelihoods(&plain, &texts, &device).unwrap().remove(0);
            assert!(difference(&got.tokens, &expected.tokens) < 2e-5, "{name}: {length} + {n}");
            assert_eq!(got.greedy, expected.greedy, "{name}: {length} + {n}");
            let (got, expected) =
                (embed(&packed, &context, &device).unwrap(), embed(&plain, &context, &device).unwrap());
            assert_eq!(got.len(), expected.len(), "{name}");
            let error = got.iter().zip(&expected).map(|(a, b)| difference(a, b)).fold(0.0, f32::max);
            assert!(error < 2e-5, "{name}, text of {length}: {error}");
        }
    }
}

#[test]
fn neither_pages_nor_pieces_nor_drafts_change_a_bit_of_the_logits() {
    let (prompt, text) = (prompt(23, 0), [5, 6, 7, 8, 5, 6, 7, 8, 5, 6]);
    for (name, model) in packed_models(&[Precision::F32, Precision::Int8]) {
        let run = |page_blocks: usize, prefill_blocks: usize, speculation: Option<Speculation>| {
            let settings = EngineConfig { page_blocks, prefill_blocks, speculation, ..EngineConfig::default() };
            engine_logits(&model, settings, &prompt, &text)
        };
        let expected = run(16, 128, None);
        for (page_blocks, prefill_blocks) in [(1, 1), (2, 3), (3, 128)] {
            for speculation in [None, Some(Speculation { shortest: 1, longest: 3 })] {
                let got = run(page_blocks, prefill_blocks, speculation);
                assert_eq!(
                    got, expected,
                    "{name}, pages of {page_blocks}, pieces of {prefill_blocks}, {speculation:?}"
                );
            }
        }
    }
}

#[test]
fn scores_follow_the_logits_of_the_engine() {
    for (name, model) in packed_models(&[Precision::F32, Precision::Bf16]) {
        let (context, text) = (prompt(7, 1), prompt(9, 5));
        let score = log_likelihoods(&model, &[(&context, &text)], &Device::flex()).unwrap().remove(0);
        let logits = engine_logits(&model, EngineConfig::default(), &context, &text);
        for ((logits, token), score) in logits.iter().zip(&text).zip(&score.tokens) {
            let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            let expected = f64::from(logits[*token as usize]) - sum.ln();
            assert!((f64::from(*score) - expected).abs() < 1e-6, "{name}: {score} and {expected}");
        }
    }
}

#[test]
fn accounts_are_exact_and_those_of_plain_models() {
    let device = Device::flex();
    for (name, config, plain) in plain_models() {
        let packed = CpuModel::new(&config, plain.clone(), Precision::Int8).unwrap();
        check_accounts(name, &packed);
        let (got, expected) =
            (packed.pool_config(5, 0, KvStorage::Float32), plain.pool_config(5, 0, KvStorage::Float32));
        assert_eq!(got.page_bytes(), expected.page_bytes(), "{name}");
        assert_eq!(packed.block_bytes(&device), plain.block_bytes(&device), "{name}");
    }
}

#[test]
fn fewer_bits_for_keys_and_values_cost_what_they_cost_plain_models() {
    let (prompt, text) = (prompt(23, 0), prompt(9, 5));
    for (name, config, plain) in plain_models() {
        let packed = CpuModel::new(&config, plain.clone(), Precision::F32).unwrap();
        let settings = |kv_storage| EngineConfig { kv_storage, page_blocks: 2, ..EngineConfig::default() };
        for storage in [KvStorage::Float16, KvStorage::Int8] {
            let exact = engine_logits(&plain, settings(KvStorage::Float32), &prompt, &text);
            let [theirs, ours] = [
                engine_logits(&plain, settings(storage), &prompt, &text),
                engine_logits(&packed, settings(storage), &prompt, &text),
            ]
            .map(|logits| logits.iter().zip(&exact).map(|(a, b)| difference(a, b)).fold(0.0, f32::max));
            assert!(ours > 2e-5, "{name} {storage:?}: nothing is rounded");
            assert!(ours < 1.5 * theirs + 2e-5, "{name} {storage:?}: {ours}, and {theirs} in a plain model");
        }
    }
}
