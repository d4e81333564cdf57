//! Greedy continuations.

use std::ops::ControlFlow;

use blockformer_generate::{GenerateError, GenerateOptions, LanguageModel, generate};
use blockformer_model::AnyModel;
use burn::module::Module;
use burn::tensor::Device;

use super::batches::larger;
use super::case::Case;
use super::{Check, VerifyError, VerifyPrecision};

pub(super) fn check(case: &Case) -> Result<Vec<Check>, VerifyError> {
    let model = case.model.valid();
    let short = case.precision.computes_in().shadow(&model);
    // The CPU, whose texts are the reference's, where this build has it.
    let exact_device = crate::devices::flex().unwrap_or_else(|| case.device.clone());
    let exact = if case.precision == VerifyPrecision::F32 { model } else { model.to_device(&exact_device) };
    let mut checks = Vec::new();
    for index in 0.. {
        let name = format!("generate.{index}");
        if !case.has(&format!("{name}.prompt")) {
            break;
        }
        let (prompt_len, prompt) = case.token_rows(&format!("{name}.prompt"), 1)?;
        let (total, greedy) = case.token_rows(&format!("{name}.greedy"), prompt_len + 1)?;
        let rows: Vec<Vec<u32>> =
            prompt.chunks(prompt_len).map(|row| row.iter().map(|id| *id as u32).collect()).collect();
        let prompts: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let options = GenerateOptions { max_new_tokens: total - prompt_len, ..GenerateOptions::default() };
        let generated = generate(&short, &prompts, &options, &case.device, |_, _| ControlFlow::Continue(()))?;
        let generated: Vec<Vec<u32>> = generated.into_iter().map(|generation| generation.tokens).collect();
        checks.push(if case.precision == VerifyPrecision::F32 {
            let rows = greedy.chunks(total).map(|row| &row[prompt_len..]).zip(&generated);
            let error: usize = rows.map(|(expected, got)| differing(expected, got)).sum();
            Check { quantity: format!("greedy tokens from {prompt_len}"), error: error as f64, tolerance: 0.0 }
        } else {
            let error = furthest_behind(&exact, &prompts, &generated, total - prompt_len, &exact_device)?;
            let quantity = format!("greedy tokens from {prompt_len}, behind the best in float32");
            Check { quantity, error, tolerance: case.tolerances().logits }
        });
    }
    Ok(checks)
}

/// How many tokens differ.
fn differing(expected: &[i64], got: &[u32]) -> usize {
    let wrong = expected.iter().zip(got).filter(|(a, b)| **a != i64::from(**b)).count();
    wrong + expected.len().abs_diff(got.len())
}

/// The furthest that a chosen token's logit is behind the best one, as a share of the largest, as the float32 model sees it; infinite unless there are
/// `n` tokens of every prompt. Rounded logits choose
/// another token where two are near each other, and from there on a text is another; but it never chooses a bad one.
fn furthest_behind(
    model: &AnyModel,
    prompts: &[&[u32]],
    generated: &[Vec<u32>],
    n: usize,
    device: &Device,
) -> Result<f64, VerifyError> {
    if generated.len() != prompts.len() || generated.iter().any(|tokens| tokens.len() != n) {
        return Ok(f64::INFINITY);
    }
    let blocked = model.layout().block_prompts(prompts, n).map_err(GenerateError::from)?;
    let (mut state, mut logits) = model.prefill(&blocked, n, device);
    let mut furthest = 0.0;
    for step in 0..n {
        let [_, vocab_size] = logits.dims();
        let values: Vec<f32> = logits.into_data().iter::<f32>().collect();
        let tokens: Vec<u32> = generated.iter().map(|tokens| tokens[step]).collect();
        for (row, token) in values.chunks(vocab_size).zip(&tokens) {
            let best = row.iter().fold(f32::NEG_INFINITY, |max, logit| max.max(*logit));
            let scale = row.iter().fold(0f32, |max, logit| max.max(logit.abs()));
            furthest = larger(furthest, f64::from((best - row[*token as usize]) / scale));
        }
        if step + 1 == n {
            break; // the cache holds no more
        }
        logits = model.step(&mut state, &tokens);
    }
    Ok(furthest)
}
