//! Five optimizer steps.

use std::collections::BTreeMap;

use blockformer_model::reference::Layout;
use blockformer_model::{AnyModel, BlockTransformer};
use blockformer_train::{AdamWSettings, Optimizer, Schedule, ScheduleShape, clip_gradients};
use burn::module::Param;
use burn::tensor::Tensor;

use super::batches::{Squares, larger, relative};
use super::case::{Case, CaseBatch, ParameterValue, for_each_parameter};
use super::{Check, VerifyError, VerifyPrecision};

/// The schedule all cases were trained with.
const SCHEDULE: Schedule =
    Schedule { peak: 1e-3, min_ratio: 0.1, warmup_steps: 2, total_steps: 10, shape: ScheduleShape::Cosine };

pub(super) fn check(case: &Case) -> Result<Vec<Check>, VerifyError> {
    let AnyModel::Block(model) = &case.model else { return Ok(Vec::new()) };
    if !case.has("train.0.input_ids") {
        return Ok(Vec::new());
    }
    let losses = case.scalars("train.losses")?;
    let norms = case.scalars("train.grad_norm")?;
    let rates = case.scalars("train.lrs")?;
    if losses.is_empty() || losses.len() != norms.len() || losses.len() != rates.len() {
        return Err(case.malformed("train.losses, train.grad_norm and train.lrs are not of one length above zero"));
    }
    let mut worst = [0.0f64; 3];
    let mut model = model.clone();
    let mut optimizer = Optimizer::new(&AdamWSettings::default());
    for (step, ((loss, norm), rate)) in losses.iter().zip(&norms).zip(&rates).enumerate() {
        let CaseBatch { batch, normalizer: n, .. } = case.batch(&format!("train.{step}"))?;
        let (output, mut gradients) = case.backward(&model, &batch, n);
        let got_norm = clip_gradients(&model, &mut gradients, 1.0);
        let got_rate = SCHEDULE.learning_rate(step);
        model = optimizer.step(got_rate, model, gradients);
        let got = [output.value(n), got_norm, got_rate];
        for (worst, (got, expected)) in worst.iter_mut().zip(got.into_iter().zip([*loss, *norm, *rate])) {
            *worst = larger(*worst, relative("", got, expected, 0.0).error);
        }
    }
    let tolerances = case.tolerances();
    let names = [
        ("training losses", tolerances.training),
        ("training gradient norms", tolerances.gradients),
        ("learning rates", VerifyPrecision::F32.tolerances().training),
    ];
    let mut checks: Vec<Check> = names
        .iter()
        .zip(worst)
        .map(|((name, tolerance), error)| Check { quantity: (*name).into(), error, tolerance: *tolerance })
        .collect();
    checks.extend(trained_weights(case, &model)?);
    Ok(checks)
}

struct Value;

impl ParameterValue for Value {
    fn of<const D: usize>(&self, param: &Param<Tensor<D>>) -> Option<Tensor<D>> {
        Some(param.val().inner())
    }
}

/// Gradients so much smaller than the largest of their weight are the rounding of sums of larger numbers; Adam divides them
/// by their own size, and makes steps of that rounding, in the reference as here.
const ROUNDING: f32 = 1e-5;

/// What the steps made of the first numbers of each weight, in the reference's own arrangement.
fn trained_weights(case: &Case, model: &BlockTransformer) -> Result<Vec<Check>, VerifyError> {
    let AnyModel::Block(untrained) = &case.model else { unreachable!("it was trained") };
    let (ours, before) = (values(model), values(untrained));
    let mut worst = Worst(None);
    let mut all = Squares::default();
    let mut worst_parameter = Worst(None);
    for name in case.names("grad.") {
        let (path, layout) = case.parameter(&name)?;
        let (Some(got), Some(before)) = (ours.get(&path), before.get(&path)) else {
            worst = Worst(Some((f64::INFINITY, name)));
            (all.errors, worst_parameter) = (f64::INFINITY, worst.clone());
            break;
        };
        let gradient = case.floats(&format!("grad.{name}"))?;
        let shape = gradient.shape.clone();
        let largest = gradient.values.iter().fold(0.0, |largest: f32, gradient| largest.max(gradient.abs()));
        let restored = |values: &[f32]| layout.restore(&values[layout.range(&shape)], &shape);
        let (got, before) = (restored(got), restored(before));
        let expected = &case.floats(&format!("trained.{name}"))?.values;
        let mut of_parameter = Squares::default();
        for (index, ((got, before), expected)) in got.iter().zip(&before).zip(expected).enumerate() {
            let rounding = gradient.values[index].abs() < ROUNDING * largest;
            if !rounding && !is_key_bias(&name, layout, &shape, index) {
                let error = f64::from((got - expected).abs());
                of_parameter.add(error, f64::from(expected - before));
                worst.see(error, || format!("{name}[{index}]"));
            }
        }
        all.errors += of_parameter.errors;
        all.of += of_parameter.of;
        // A parameter of key biases or of rounding alone has nothing to compare.
        if of_parameter.of > 0.0 || of_parameter.errors != 0.0 {
            worst_parameter.see(of_parameter.share(), || name);
        }
    }
    let tolerance = case.tolerances().weights;
    if case.precision == VerifyPrecision::F32 {
        let (error, name) = worst.found();
        return Ok(vec![Check { quantity: format!("trained weights (worst: {name})"), error, tolerance }]);
    }
    let (error, name) = worst_parameter.found();
    Ok(vec![
        Check { quantity: "change of all trained weights".into(), error: all.share(), tolerance },
        Check {
            quantity: format!("change of a trained weight (worst: {name})"),
            error,
            tolerance: case.tolerances().worst_change,
        },
    ])
}

/// The largest error, and whose it is.
#[derive(Clone)]
struct Worst(Option<(f64, String)>);

impl Worst {
    fn see(&mut self, error: f64, name: impl FnOnce() -> String) {
        if self.0.as_ref().is_none_or(|(worst, _)| !worst.is_nan() && larger(*worst, error) != *worst) {
            self.0 = Some((error, name()));
        }
    }

    /// Not a number, which no tolerance lets pass, where there was nothing to compare.
    fn found(self) -> (f64, String) {
        self.0.unwrap_or_else(|| (f64::NAN, "none in the case".into()))
    }
}

fn values(model: &BlockTransformer) -> BTreeMap<String, Vec<f32>> {
    let mut values = BTreeMap::new();
    for_each_parameter(model, Value, |path, of| {
        values.insert(path.to_string(), of);
    });
    values
}

/// Whether an element is a key's bias. It adds the same to all scores of a query, so its gradient is zero but for
/// rounding (and rotation), and Adam, which divides gradients by their own size, makes steps of that rounding.
fn is_key_bias(name: &str, layout: Layout, shape: &[usize], index: usize) -> bool {
    match layout {
        Layout::FusedHeads { head_dim, .. } => shape.len() == 1 && index / head_dim % 3 == 1,
        _ => name.ends_with(".key.bias"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_parameter_that_goes_the_wrong_way_does_not_pass_in_shorter_types() {
        let name = "block_decoder.gpt_neox.layers.0.input_layernorm.bias";
        for precision in [VerifyPrecision::Bf16, VerifyPrecision::F16] {
            let mut case = Case::bundled("lookup_prefix_b4", precision);
            let AnyModel::Block(untrained) = &case.model else { unreachable!("a Block Transformer") };
            let (path, layout) = case.parameter(name).unwrap();
            let shape = &case.floats(&format!("trained.{name}")).unwrap().shape;
            let before = layout.restore(&values(untrained)[&path][layout.range(shape)], shape);
            let trained = case.values_mut(&format!("trained.{name}")).iter_mut();
            trained.zip(&before).for_each(|(after, before)| *after = 2.0 * before - *after);
            let failed = Check::failed(check(&case).unwrap());
            // Of all weights together it may be too little to be seen.
            assert_eq!(failed.last(), Some(&format!("change of a trained weight (worst: {name})")), "{precision:?}");
        }
    }

    #[test]
    fn a_trained_weight_that_is_missing_is_named() {
        let name = "trained.block_decoder.gpt_neox.layers.0.input_layernorm.bias";
        let mut case = Case::bundled("lookup_prefix_b4", VerifyPrecision::F32);
        case.forget(name);
        let error = check(&case).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }

    #[test]
    fn a_case_with_nothing_to_compare_does_not_pass() {
        for precision in [VerifyPrecision::F32, VerifyPrecision::Bf16] {
            let mut case = Case::bundled("lookup_prefix_b4", precision);
            case.forget("grad.");
            let failed = Check::failed(check(&case).unwrap());
            assert!(
                failed.last().is_some_and(|quantity| quantity.ends_with("(worst: none in the case)")),
                "{failed:?}"
            );
        }
    }

    #[test]
    fn weights_that_were_not_trained_are_all_of_the_change_off() {
        let (mut untrained, mut wrong_way, mut right) = (Squares::default(), Squares::default(), Squares::default());
        for change in [4e-3, -1e-3, 2e-3] {
            untrained.add(change, change);
            wrong_way.add(2.0 * change, change);
            right.add(0.0, change);
        }
        assert_eq!((untrained.share(), wrong_way.share(), right.share()), (1.0, 2.0, 0.0));
        let most = [VerifyPrecision::Tf32, VerifyPrecision::Bf16, VerifyPrecision::F16].map(|p| p.tolerances().weights);
        assert!(most.iter().all(|tolerance| *tolerance < 1.0));
    }
}
