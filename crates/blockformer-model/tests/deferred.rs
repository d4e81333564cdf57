//! Weights that are read when they are used.

use std::fs;
use std::path::{Path, PathBuf};

use blockformer_model::{AnyModel, CheckpointError, ModelConfig, SavePrecision};
use burn::module::{Module, ModuleVisitor, Param};
use burn::store::{ModuleSnapshot, bridge};
use burn::tensor::{Device, Tensor, TensorData};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference-cases")
}

fn case(name: &str) -> PathBuf {
    folder().join(name)
}

fn cases() -> Vec<PathBuf> {
    let cases: Vec<_> =
        fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
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
fn what_is_used_is_read_and_the_rest_is_not_until_it_is_asked_for() {
    let AnyModel::Vanilla(model) =
        AnyModel::load_deferred(&case("vanilla_llama_grouped_query"), &Device::flex()).unwrap().1
    else {
        panic!("a vanilla model")
    };
    model.transformer.layers[0].attention.qkv.weight.val();
    let model = AnyModel::Vanilla(model);
    let count = |model: &AnyModel| {
        let mut count = Count::default();
        model.visit(&mut count);
        (count.read, count.left)
    };
    let (read, left) = count(&model);
    assert_eq!(read, 1);
    model.read_weights();
    assert_eq!(count(&model), (read + left, 0));
}

#[test]
fn a_file_that_is_replaced_by_renaming_is_read_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let case = case("lookup_prefix_b4");
    for entry in fs::read_dir(&case).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    let (_, deferred) = AnyModel::load_deferred(directory.path(), &Device::flex()).unwrap();
    fs::write(directory.path().join("other"), "something else").unwrap();
    fs::rename(directory.path().join("other"), directory.path().join("model.safetensors")).unwrap();
    assert!(AnyModel::load(directory.path(), &Device::flex()).is_err());
    assert_eq!(weights(&deferred), weights(&AnyModel::load(&case, &Device::flex()).unwrap().1));
}

#[test]
fn weights_in_half_precision_are_read_as_a_whole_read_does() {
    for precision in [SavePrecision::Float16, SavePrecision::BFloat16] {
        let directory = tempfile::tempdir().unwrap();
        let (config, model) = AnyModel::load(&case("lookup_prefix_b4"), &Device::flex()).unwrap();
        model.save(&config, directory.path(), precision).unwrap();
        let whole = weights(&AnyModel::load(directory.path(), &Device::flex()).unwrap().1);
        assert_ne!(whole, weights(&model), "they were rounded");
        assert_eq!(weights(&AnyModel::load_deferred(directory.path(), &Device::flex()).unwrap().1), whole);
    }
}

#[test]
fn several_weights_that_are_missing_are_named_as_by_a_whole_read() {
    let directory = tempfile::tempdir().unwrap();
    let (config, model) = AnyModel::load(&case("lookup_prefix_b4"), &Device::flex()).unwrap();
    model.save(&config, directory.path(), SavePrecision::Unchanged).unwrap();
    // A model with more layers than the file has weights for.
    let ModelConfig::BlockTransformer(mut more) = config else { panic!("a Block Transformer") };
    more.block_decoder.n_layers += 9;
    fs::write(directory.path().join("config.json"), ModelConfig::BlockTransformer(more).to_json()).unwrap();
    let error = AnyModel::load(directory.path(), &Device::flex()).unwrap_err();
    assert!(matches!(&error, CheckpointError::Missing { names, .. } if names.len() > 9), "{error}");
    let deferred = AnyModel::load_deferred(directory.path(), &Device::flex()).unwrap_err();
    assert_eq!(format!("{deferred:?}"), format!("{error:?}"));
}

#[test]
fn deferred_weights_require_gradients_where_whole_ones_do() {
    let device = Device::flex().autodiff();
    let case = &case("lookup_prefix_b4");
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

#[test]
fn a_start_of_text_of_a_wrong_shape_is_told_as_the_file_has_it() {
    let (directory, device) = (tempfile::tempdir().unwrap(), Device::flex());
    let (config, _) = AnyModel::load(&case("lookup_prefix_b4"), &device).unwrap();
    let ModelConfig::BlockTransformer(mut config) = config else { panic!("a Block Transformer") };
    config.predict_first_block = true;
    let mut model = config.init(&device).unwrap();
    let d_model = config.block_decoder.d_model;
    model.context_ends.start = Some(Param::from_tensor(Tensor::zeros([3, d_model], &device)));
    let config = ModelConfig::BlockTransformer(config);
    AnyModel::Block(model).save(&config, directory.path(), SavePrecision::Unchanged).unwrap();
    let error = AnyModel::load(directory.path(), &device).unwrap_err();
    let CheckpointError::Shape { name, expected, got, .. } = &error else { panic!("{error}") };
    assert_eq!((name.as_str(), expected, got), ("context_ends.start", &vec![1, d_model], &vec![3, d_model]));
    let deferred = AnyModel::load_deferred(directory.path(), &device).unwrap_err();
    assert_eq!(format!("{deferred:?}"), format!("{error:?}"));
}
