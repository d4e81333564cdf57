//! Greedy continuations.

use std::ops::ControlFlow;

use blockformer_generate::{GenerateOptions, generate};
use burn::module::Module;

use super::case::Case;
use super::{Check, VerifyError};

pub(super) fn check(case: &Case) -> Result<Vec<Check>, VerifyError> {
    let model = case.model.valid();
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
        let generated = generate(&model, &prompts, &options, &case.device, |_, _| ControlFlow::Continue(()))?;
        let differing = |(expected, got): (&[i64], &Vec<u32>)| {
            let wrong = expected[prompt_len..].iter().zip(got).filter(|(a, b)| **a != i64::from(**b)).count();
            wrong + (total - prompt_len).abs_diff(got.len())
        };
        let error: usize =
            greedy.chunks(total).zip(generated.iter().map(|generation| &generation.tokens)).map(differing).sum();
        let quantity = format!("greedy tokens from {prompt_len}");
        checks.push(Check { quantity, error: error as f64, tolerance: 0.0 });
    }
    Ok(checks)
}
