//! Weights that are read when they are used.

use std::fs;
use std::path::{Path, PathBuf};

use blockformer_model::AnyModel;
use burn::module::{Module, ModuleVisitor, Param};
use burn::store::{ModuleSnapshot, bridge};
use burn::tensor::{Device, Tensor, TensorData};

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference-cases");
    let cases: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    assert!(cases.len() >= 22, "{cases:?}");
    cases
}

/// Every weight under its name.
fn weights(model: &AnyModel) -> Vec<(String, TensorData)> {
    let tensors = model.collect(None, None, true);
    tensors.iter().map(|tensor| (tensor.name.clone(), bridge::to_data(tensor).unwrap())).collect()
}

#[derive(Default)]
struct Count {
    read: usize,
    left: usize,
}

impl ModuleVisitor for Count {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        if parameter.is_initialized() { self.read += 1 } else { self.left += 1 }
    }
}

#[test]
fn deferred_weights_are_those_of_a_whole_read_and_none_is_read_before_it_is_used() {
    for case in cases() {
        let (config, whole) = AnyModel::load(&case, &Device::flex()).unwrap();
        let (same, deferred) = AnyModel::load_deferred(&case, &Device::flex()).unwrap();
        assert_eq!(same, config);
        let mut count = Count::default();
        deferred.visit(&mut count);
        assert_eq!(count.read, 0, "{}", case.display());
        assert!(count.left > 0);
        assert_eq!(weights(&deferred), weights(&whole), "{}", case.display());
    }
}

#[test]
fn deferred_weights_require_gradients_where_whole_ones_do() {
    let device = Device::flex().autodiff();
    let case = &cases()[0];
    struct Gradients(Vec<bool>);
    impl ModuleVisitor for Gradients {
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
            self.0.push(parameter.val().is_require_grad());
        }
    }
    let gradients = |model: AnyModel| {
        let mut gradients = Gradients(Vec::new());
        model.visit(&mut gradients);
        gradients.0
    };
    let whole = gradients(AnyModel::load(case, &device).unwrap().1);
    assert!(whole.iter().all(|requires| *requires));
    assert_eq!(gradients(AnyModel::load_deferred(case, &device).unwrap().1), whole);
}
