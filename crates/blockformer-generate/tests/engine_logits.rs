//! The engine's logits against whole forward passes.

mod models;

use blockformer_generate::{Alignment, EngineConfig, PagedModel, Speculation, embed, log_likelihoods};
use blockformer_model::AnyModel;
use burn::tensor::Device;
use models::{all_models, engine_logits, prompt, uncached, uncached_block};

const NEW_TOKENS: usize = 9;

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_match_for_prompts_of_one_to_three_blocks() {
    for (name, model) in all_models() {
        for length in 1..=12 {
            let (prompt, text) = (prompt(length, 0), prompt(NEW_TOKENS, 5));
            let got = engine_logits(&model, EngineConfig { page_blocks: 2, ..EngineConfig::default() }, &prompt, &text);
            assert_eq!(got.len(), NEW_TOKENS);
            for (step, got) in got.iter().enumerate() {
                let expected = uncached(&model, length, &[&prompt[..], &text[..step]].concat());
                let error = difference(got, &expected);
                assert!(error < 1e-4, "{name}, prompt of {length}, step {step}: {error}");
            }
        }
    }
}

#[test]
fn the_rest_of_a_prompt_is_forced_as_if_it_had_been_generated() {
    for (name, model) in all_models() {
        let AnyModel::Block(block) = &model else { continue };
        for length in 4..=11 {
            let (prompt, text) = (prompt(length, 0), prompt(NEW_TOKENS, 5));
            let config = EngineConfig { alignment: Alignment::ForceRest, ..EngineConfig::default() };
            for (step, got) in engine_logits(&model, config, &prompt, &text).iter().enumerate() {
                let expected = uncached_block(block, 0, &[&prompt[..], &text[..step]].concat());
                let error = difference(got, &expected);
                assert!(error < 1e-4, "{name}, prompt of {length}, step {step}: {error}");
            }
        }
    }
}

#[test]
fn logits_of_whole_passes_match_too() {
    for (name, model) in all_models() {
        let (prompt, text) = (prompt(6, 0), vec![5, 6, 7, 8, 5, 6, 7, 8, 5]);
        let speculation = Some(Speculation { shortest: 1, longest: 3 });
        let config = EngineConfig { speculation, ..EngineConfig::default() };
        for (step, got) in engine_logits(&model, config, &prompt, &text).iter().enumerate() {
            let expected = uncached(&model, 6, &[&prompt[..], &text[..step]].concat());
            assert!(difference(got, &expected) < 1e-4, "{name}, step {step}");
        }
    }
}

#[test]
fn log_likelihoods_and_embeddings_are_those_of_the_whole_pass() {
    for (name, model) in all_models() {
        for (length, n) in [(1, 1), (5, 3), (8, 6), (11, 9)] {
            let (context, continuation) = (prompt(length, 1), prompt(n, 7));
            let got = log_likelihoods(&model, &[(&context, &continuation)], &Device::flex()).unwrap().remove(0);
            assert_eq!(got.tokens.len(), n);
            let mut greedy = true;
            for (step, token) in continuation.iter().enumerate() {
                let logits = uncached(&model, length, &[&context[..], &continuation[..step]].concat());
                let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
                let expected = f64::from(logits[*token as usize]) - sum.ln();
                assert!((f64::from(got.tokens[step]) - expected).abs() < 1e-4, "{name}: {length} + {n}, step {step}");
                greedy &= logits.iter().all(|logit| *logit <= logits[*token as usize]);
            }
            assert_eq!(got.greedy, greedy);
            assert!((got.total - got.tokens.iter().copied().map(f64::from).sum::<f64>()).abs() < 1e-9);
            let embeddings = embed(&model, &context, &Device::flex()).unwrap();
            assert_eq!(embeddings.len(), model.layout().n_blocks(length));
            assert!(embeddings.iter().all(|embedding| embedding.len() == 32 * model.positions_per_block()), "{name}");
        }
    }
}
