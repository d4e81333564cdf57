//! Embeddings, logits, losses and gradients of whole batches.

use std::collections::BTreeMap;

use blockformer_model::{AnyModel, BlockTransformer, VanillaTransformer};
use blockformer_train::{Losses, Trainable};
use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Int, Tensor, TensorData};

use super::case::{Case, CaseBatch, ParameterValue, for_each_parameter};
use super::{Check, VerifyError, VerifyPrecision};

pub(super) fn check(case: &Case) -> Result<Vec<Check>, VerifyError> {
    match &case.model {
        AnyModel::Block(model) => check_block(case, model),
        AnyModel::Vanilla(model) => check_vanilla(case, model),
    }
}

fn check_block(case: &Case, model: &BlockTransformer) -> Result<Vec<Check>, VerifyError> {
    let mut checks = Vec::new();
    let names = ["full", "padded"].into_iter().filter(|name| case.has(&format!("{name}.input_ids")));
    let names: Vec<_> = names.collect();
    for name in &names {
        checks.extend(check_batch(case, model, name)?);
    }
    if let Some(last) = names.last() {
        let CaseBatch { batch, normalizer, .. } = case.batch(last)?;
        checks.extend(check_gradients(case, model, case.backward(model, &batch, normalizer).1)?);
    }
    Ok(checks)
}

fn check_batch(case: &Case, model: &BlockTransformer, name: &str) -> Result<Vec<Check>, VerifyError> {
    let CaseBatch { batch, real, normalizer } = case.batch(name)?;
    let [n_batch, n_blocks, length] = batch.ids.dims();
    let vocab_size = model.layout().vocab_size;
    let valid = case.precision.computes_in().shadow(&model.valid());
    let ids = batch.ids.clone().inner();
    let mask = batch.mask.clone().map(|mask| mask.inner());
    let output = valid.forward(ids, mask);
    let logits = valid.logits(output.hidden);
    let block_real: Vec<bool> = real.chunks(length).map(|block| block.contains(&true)).collect();
    let predicted: Vec<bool> = (0..n_batch)
        .flat_map(|row| real[(row * n_blocks + 1) * length..(row + 1) * n_blocks * length].iter().copied())
        .collect();
    let block_width = output.block_embeddings.shape().num_elements() / (n_batch * n_blocks);
    let mut checks = Vec::new();
    let mut compare = |quantity: &str, got: TensorData, keep: &[bool], width: usize| -> Result<(), VerifyError> {
        let expected = &case.floats(&format!("{name}.{quantity}"))?.values;
        let error = case.error(&got, expected, keep, width);
        checks.push(Check { quantity: format!("{name} {quantity}"), error, tolerance: case.tolerances().logits });
        Ok(())
    };
    compare("block_embeddings", output.block_embeddings.into_data(), &block_real, block_width)?;
    compare("context_embeddings", output.context_embeddings.into_data(), &block_real, block_width)?;
    compare("logits", logits.into_data(), &predicted, vocab_size)?;
    let losses = case.precision.computes_in().shadow(model).losses(&batch, &case.losses, normalizer);
    checks.extend(check_losses(case, name, &losses, normalizer));
    Ok(checks)
}

fn check_losses(case: &Case, name: &str, losses: &Losses, normalizer: f64) -> Vec<Check> {
    let block_decoding = losses.block_decoding.clone().map(|loss| f64::from(loss.into_scalar::<f32>()));
    let auto_encoding = losses.auto_encoding.as_ref().map(|(loss, weight)| loss.sum() * weight / normalizer);
    let parts = [
        ("loss", Some(losses.value(normalizer))),
        ("token_decoding_loss", Some(losses.tokens.sum() / normalizer)),
        ("block_decoding_loss", block_decoding),
        ("auto_encoding_loss", auto_encoding),
    ];
    let check = |(part, got): (&str, Option<f64>)| {
        let expected = case.scalar(&format!("{name}.{part}"))?;
        Some(relative(&format!("{name} {part}"), got.unwrap_or(f64::NAN), expected, case.tolerances().loss))
    };
    parts.into_iter().filter_map(check).collect()
}

fn check_vanilla(case: &Case, model: &VanillaTransformer) -> Result<Vec<Check>, VerifyError> {
    let (n, ids) = case.token_rows("input_ids", 2)?;
    let rows = ids.len() / n;
    let values: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let valid = case.precision.computes_in().shadow(&model.valid());
    let tensor = Tensor::<2, Int>::from_data(TensorData::new(values, [rows, n]), &case.device);
    let logits = valid.logits(valid.forward(tensor.clone(), None, None));
    let expected = &case.floats("logits")?.values;
    let error = case.error(&logits.into_data(), expected, &vec![true; rows * n], model.layout().vocab_size);
    let mut checks = vec![Check { quantity: "logits".into(), error, tolerance: case.tolerances().logits }];
    if let Some(expected) = case.scalar("loss") {
        let ids = Tensor::from_inner(tensor.reshape([rows, n, 1]));
        let predicted = rows * (n - 1);
        let (mask, counted, first_predicted_block, n_predicted) = (None, None, 1, predicted);
        let batch = blockformer_train::Batch { ids, mask, counted, first_predicted_block, n_predicted };
        let loss = case.precision.computes_in().shadow(model).loss(&batch, predicted as f64).sum() / predicted as f64;
        checks.push(relative("loss", loss, expected, case.tolerances().loss));
    }
    Ok(checks)
}

struct Gradient(GradientsParams);

impl ParameterValue for &Gradient {
    fn of<const D: usize>(&self, param: &Param<Tensor<D>>) -> Option<Tensor<D>> {
        self.0.get::<D>(param.id)
    }
}

/// The share of the norm of all gradients that errors of a parameter's gradient are at least compared with, in shorter types.
const SMALL_GRADIENT: f64 = 1e-4;

/// The same for the bias of keys alone, whose gradient is zero but for rounding.
const KEY_BIAS_GRADIENT: f64 = 1e-2;

/// The worst gradient, relative to its largest entry. In shorter types all gradients together, relative to their norm, and the
/// worst relative to its own.
fn check_gradients(
    case: &Case,
    model: &BlockTransformer,
    gradients: GradientsParams,
) -> Result<Vec<Check>, VerifyError> {
    let gradients = Gradient(gradients);
    let mut ours = BTreeMap::new();
    for_each_parameter(model, &gradients, |path, values| {
        ours.insert(path.to_string(), values);
    });
    let mut check = Check { quantity: "gradients".into(), error: 0.0, tolerance: case.tolerances().gradients };
    let names = case.names("grad.");
    if names.is_empty() {
        check.error = f64::NAN;
        check.quantity = "gradients (none in the case)".into();
    }
    let overall = names.iter().filter_map(|name| case.floats(&format!("grad.{name}")).ok());
    let overall: Vec<f32> = overall.flat_map(|array| array.values.iter().copied()).collect();
    let largest_of_all = overall.iter().fold(0f32, |max, value| max.max(value.abs()));
    let norm_of_all = overall.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let mut all = Squares { errors: 0.0, of: norm_of_all.powi(2) };
    for name in names {
        let (path, layout) = case.parameter(&name)?;
        let array = case.floats(&format!("grad.{name}"))?;
        let expected = layout.arrange(&array.values, &array.shape);
        let mut largest = expected.iter().fold(0f32, |max, value| max.max(value.abs()));
        let key_bias = name.ends_with(".key.bias");
        if key_bias {
            // It is zero but for rounding, about 1e-7 of the largest of all gradients: there is no largest entry to compare with.
            largest = largest.max(1e-3 * largest_of_all);
        }
        let error = match ours.get(&path) {
            Some(got) if got.len() >= layout.range(&array.shape).end => {
                let got = &got[layout.range(&array.shape)];
                if case.precision == VerifyPrecision::F32 {
                    let difference = largest_difference(got, &expected);
                    if difference == 0.0 { 0.0 } else { difference / f64::from(largest) }
                } else {
                    let mut squares = Squares::default();
                    squares.add_all(got, &expected);
                    all.errors += squares.errors;
                    // Gradients far below the others are rounding.
                    let small = if key_bias { KEY_BIAS_GRADIENT } else { SMALL_GRADIENT };
                    squares.of = squares.of.max((small * norm_of_all).powi(2));
                    squares.share()
                }
            }
            _ => f64::INFINITY,
        };
        // A NaN must not be lost to a comparison that is false for it.
        if error.is_nan() || error > check.error {
            check.error = error;
            check.quantity = format!("gradients (worst: {name})");
        }
    }
    if case.precision == VerifyPrecision::F32 {
        return Ok(vec![check]);
    }
    let tolerance = std::mem::replace(&mut check.tolerance, case.tolerances().worst_gradient);
    Ok(vec![Check { quantity: "gradients (all)".into(), error: all.share(), tolerance }, check])
}

pub(super) fn relative(quantity: &str, got: f64, expected: f64, tolerance: f64) -> Check {
    Check { quantity: quantity.into(), error: ((got - expected) / expected).abs(), tolerance }
}

fn largest_difference(got: &[f32], expected: &[f32]) -> f64 {
    got.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, larger)
}

/// The larger error, where one that is not a number is the largest.
pub(super) fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

impl Case {
    /// The error over the rows of `width` numbers that are kept: in float32 the largest, in shorter types that of all as a
    /// share of them; infinite if there are not as many as expected.
    fn error(&self, got: &TensorData, expected: &[f32], keep: &[bool], width: usize) -> f64 {
        let got: Vec<f32> = got.iter::<f32>().collect();
        if got.len() != expected.len() || got.len() != keep.len() * width {
            return f64::INFINITY;
        }
        let rows = got.chunks(width).zip(expected.chunks(width)).zip(keep);
        let rows = rows.filter(|(_, keep)| **keep).map(|(row, _)| row);
        if self.precision == VerifyPrecision::F32 {
            return rows.map(|(got, expected)| largest_difference(got, expected)).fold(0.0, larger);
        }
        let mut squares = Squares::default();
        rows.for_each(|(got, expected)| squares.add_all(got, expected));
        squares.share()
    }
}

/// Sums of squares, of errors and of what they are a share of.
#[derive(Default)]
pub(super) struct Squares {
    pub(super) errors: f64,
    pub(super) of: f64,
}

impl Squares {
    pub(super) fn add(&mut self, error: f64, of: f64) {
        self.errors += error * error;
        self.of += of * of;
    }

    fn add_all(&mut self, got: &[f32], expected: &[f32]) {
        got.iter().zip(expected).for_each(|(a, b)| self.add(f64::from(a - b), f64::from(*b)));
    }

    /// The root of their quotient; not a number where nothing was expected and nothing wrong.
    pub(super) fn share(&self) -> f64 {
        (self.errors / self.of).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_gradient_of_a_small_parameter_does_not_pass_in_shorter_types() {
        for precision in [VerifyPrecision::Bf16, VerifyPrecision::F16] {
            let mut case = Case::bundled("lookup_prefix_b4", precision);
            let failed = |case: &Case| Check::failed(check(case).unwrap());
            assert!(failed(&case).is_empty());
            let name = "block_decoder.gpt_neox.layers.0.input_layernorm.bias";
            case.values_mut(&format!("grad.{name}")).iter_mut().for_each(|x| *x *= 2.0);
            assert_eq!(failed(&case), [format!("gradients (worst: {name})")], "{precision:?}");
        }
    }

    #[test]
    fn an_error_that_is_not_a_number_is_not_lost() {
        for place in 0..3 {
            let mut got = [1.0, 2.0, 3.0];
            got[place] = f32::NAN;
            assert!(largest_difference(&got, &[1.0, 2.0, 3.0]).is_nan(), "place {place}");
            let check = Check { quantity: String::new(), error: largest_difference(&got, &[0.0; 3]), tolerance: 9.0 };
            assert!(!check.passed());
        }
    }
}
