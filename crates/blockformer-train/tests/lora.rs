//! Adapters on models of both kinds: attached, trained, saved, merged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use blockformer_data::{InMemoryCorpus, PackedDataset, PackingConfig};
use blockformer_model::{AnyModel, ModelConfig, SavePrecision, save_weights};
use blockformer_train::lora::{self, LoraAdapter, LoraConfig, LoraError};
use blockformer_train::{AdamWSettings, TrainConfig, Trainer};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Distribution, Int, Tensor};
use safetensors::SafeTensors;

const BLOCK: &str = "lookup_projection_prefix_b4";
const VANILLA: &str = "vanilla_llama_grouped_query";

fn model(case: &str, device: &Device) -> (ModelConfig, AnyModel) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference-cases").join(case);
    AnyModel::load(&path, device).unwrap()
}

/// Adapters that change something: in a new one, B is zero.
fn with_random_adapters(config: &LoraConfig, model: AnyModel) -> AnyModel {
    struct Randomize(Vec<String>);
    impl ModuleMapper for Randomize {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.0.push(name.into());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.0.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let adapter = self.0.len() > 1 && self.0[self.0.len() - 2] == "lora";
            if adapter { param.map(|x| x.random_like(Distribution::Normal(0.0, 0.3))) } else { param }
        }
    }
    config.attach(model).unwrap().map(&mut Randomize(Vec::new()))
}

fn logits(model: &AnyModel) -> Tensor<3> {
    let ids: Vec<i32> = (0..24).map(|i| (i * 7 + 3) % 50).collect();
    let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &Device::flex());
    match model {
        AnyModel::Block(model) => model.logits(model.forward(ids.reshape([1, 6, 4]), None).hidden),
        AnyModel::Vanilla(model) => model.logits(model.forward(ids.reshape([1, 24]), None, None)),
    }
}

fn difference(a: Tensor<3>, b: Tensor<3>) -> f32 {
    (a - b).abs().max().into_scalar::<f32>()
}

/// What a model is saved as: name, shape, bytes.
fn saved(model: &AnyModel) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    save_weights(model, &path, SavePrecision::Unchanged).unwrap();
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, (view.shape().to_vec(), view.data().to_vec()))).collect()
}

#[test]
fn merged_weights_are_those_of_the_formula_and_give_the_same_logits() {
    let config = LoraConfig { rank: 3, alpha: 5.0, ..LoraConfig::default() };
    for case in [BLOCK, VANILLA] {
        let (_, base) = model(case, &Device::flex());
        let before = logits(&base);
        let attached = config.attach(base.clone()).unwrap();
        assert_eq!(difference(logits(&attached), before.clone()), 0.0, "{case}: new adapters change nothing");
        let adapted = with_random_adapters(&config, base.clone());
        let merged = lora::merge(adapted.clone());
        assert!(difference(logits(&adapted), before) > 1e-2, "{case}");
        assert!(difference(logits(&merged), logits(&adapted)) < 1e-5, "{case}");
        assert_eq!(merged.parameters(), base.parameters(), "{case}");

        let weight = |model: &AnyModel| match model {
            AnyModel::Block(model) => model.block_decoder.transformer.layers[1].attention.qkv.weight.clone(),
            AnyModel::Vanilla(model) => model.transformer.layers[1].attention.qkv.weight.clone(),
        };
        let param = weight(&adapted);
        let adapter = param.reparameterization::<LoraAdapter>().expect("an adapter");
        let numbers = |tensor: Tensor<2>| -> Vec<f64> { tensor.into_data().iter::<f64>().collect() };
        let [rows, columns] = param.base().dims();
        let (w, a, b) = (numbers(param.base()), numbers(adapter.a.val()), numbers(adapter.b.val()));
        for (index, got) in numbers(weight(&merged).val()).into_iter().enumerate() {
            let (row, column) = (index / columns, index % columns);
            let product: f64 = (0..3).map(|k| a[row * 3 + k] * b[k * columns + column]).sum();
            assert!((got - (w[index] + 5.0 / 3.0 * product)).abs() < 1e-5, "{case}: {row} of {rows}, {column}");
        }
    }
}

fn data(block_length: usize) -> PackedDataset<InMemoryCorpus> {
    let documents = (0..12).map(|start| (0..60).map(|i| 1 + (start + i) % 11).collect::<Vec<u32>>());
    let packing =
        if block_length == 1 { PackingConfig::vanilla(32, 0) } else { PackingConfig::new(block_length, 32, 0) };
    PackedDataset::new(InMemoryCorpus::from_documents(documents), packing).unwrap()
}

fn settings(steps: usize) -> TrainConfig {
    let optimizer = AdamWSettings { weight_decay: 0.1, ..AdamWSettings::default() };
    TrainConfig { steps, batch_size: 4, warmup_steps: 2, learning_rate: 1e-2, optimizer, ..TrainConfig::default() }
}

fn trainer(case: &str, config: &LoraConfig, steps: usize) -> Trainer<AnyModel, InMemoryCorpus> {
    let device = Device::flex().autodiff();
    device.seed(5);
    let (model_config, base) = model(case, &device);
    let adapted = config.attach(base).unwrap();
    Trainer::new(adapted, data(model_config.block_length()), settings(steps), &device).unwrap()
}

#[test]
fn training_changes_the_adapters_and_not_a_bit_of_the_base() {
    let config = LoraConfig { rank: 4, ..LoraConfig::default() };
    for case in [BLOCK, VANILLA] {
        let mut trainer = trainer(case, &config, 12);
        let before = saved(&trainer.model().valid());
        let first = trainer.step().unwrap().loss;
        let mut last = first;
        while trainer.next_step() < 12 {
            last = trainer.step().unwrap().loss;
        }
        assert!(last < 0.8 * first, "{case}: {first} to {last}");
        let after = saved(&trainer.model().valid());
        assert_eq!(before.len(), after.len());
        let (_, base) = model(case, &Device::flex());
        let original = saved(&base);
        for (name, (_, bytes)) in &after {
            match original.get(name) {
                Some((_, original)) => assert!(bytes == original, "{case}: {name} of the base changed"),
                None => assert!(*bytes != before[name].1, "{case}: {name} of an adapter did not"),
            }
        }
        assert!(after.len() > original.len());
    }
}

#[test]
fn adapters_are_saved_alone_and_loaded_onto_their_base() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("adapter.safetensors");
    let targets = vec!["token_decoder.*feed_forward".to_string()];
    let config = LoraConfig { rank: 2, targets, ..LoraConfig::default() };
    let (_, base) = model(BLOCK, &Device::flex());
    let adapted = with_random_adapters(&config, base.clone());
    lora::save(&adapted, &config, &path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let names: Vec<String> = SafeTensors::deserialize(&bytes).unwrap().names().iter().map(|n| n.to_string()).collect();
    assert!(
        names.contains(&"token_decoder.transformer.layers.0.feed_forward.up.weight.lora.a".to_string()),
        "{names:?}"
    );
    let ours = |name: &String| name.starts_with("token_decoder.transformer.layers.") && name.contains(".feed_forward.");
    assert!(names.iter().all(ours), "{names:?}");

    let (loaded, read) = lora::load(base, &path).unwrap();
    assert_eq!(read, config);
    assert_eq!(difference(logits(&loaded), logits(&adapted)), 0.0);
    // Also onto an autodiff device, to be trained on.
    let (_, base) = model(BLOCK, &Device::flex().autodiff());
    let (loaded, _) = lora::load(base, &path).unwrap();
    assert_eq!(difference(logits(&loaded.valid()), logits(&adapted)), 0.0);
}

#[test]
fn dropout_acts_in_training_only_and_keeps_the_mean() {
    let device = Device::flex().autodiff();
    let config = LoraConfig { dropout: 0.25, ..LoraConfig::default() };
    let adapted = with_random_adapters(&config, model(VANILLA, &device).1);
    let AnyModel::Vanilla(vanilla) = &adapted else { panic!("a vanilla model") };
    let param = &vanilla.transformer.layers[0].attention.qkv.weight;
    let adapter = param.reparameterization::<LoraAdapter>().unwrap();
    let exact = adapter.a.val().matmul(adapter.b.val()).mul_scalar(16.0 / 8.0).inner();
    let delta = || adapter.delta().inner();
    assert!((delta() - delta()).abs().max().into_scalar::<f32>() > 1e-2);
    let n = 2000;
    let mean = (1..n).fold(delta(), |sum, _| sum + delta()).div_scalar(n as f64);
    let error = (mean - exact.clone()).abs().max() / exact.abs().max();
    assert!(error.into_scalar::<f32>() < 0.1);
    let valid = adapted.valid();
    assert_eq!(difference(logits(&valid), logits(&valid)), 0.0);
    assert!(difference(logits(&valid), logits(&lora::merge(valid.clone()))) < 1e-5);
}

#[test]
fn a_run_with_adapters_resumes_bit_for_bit() {
    let config = LoraConfig { rank: 2, ..LoraConfig::default() };
    let mut straight = trainer(BLOCK, &config, 6);
    let directory = tempfile::tempdir().unwrap();
    let mut losses = Vec::new();
    while straight.next_step() < 6 {
        losses.push(straight.step().unwrap().loss);
        if straight.next_step() == 3 {
            straight.save_checkpoint(directory.path(), 1).unwrap();
        }
    }
    let checkpoint: PathBuf = blockformer_train::latest_checkpoint(directory.path()).unwrap().path.unwrap();
    let mut resumed = trainer(BLOCK, &config, 6).resume(&checkpoint).unwrap();
    while resumed.next_step() < 6 {
        let step = resumed.next_step();
        assert_eq!(resumed.step().unwrap().loss, losses[step]);
    }
    assert!(saved(&resumed.model().valid()) == saved(&straight.model().valid()));
}

#[test]
fn settings_files_and_models_that_do_not_serve_are_named() {
    let (_, base) = model(BLOCK, &Device::flex());
    let attach = |config: LoraConfig| config.attach(base.clone()).unwrap_err().to_string();
    let good = LoraConfig::default;
    assert_eq!(attach(LoraConfig { rank: 0, ..good() }), "LoRA rank is 0, expected at least 1");
    assert!(attach(LoraConfig { dropout: 1.0, ..good() }).contains("LoRA dropout is 1"));
    assert!(attach(LoraConfig { alpha: f64::NAN, ..good() }).contains("LoRA alpha is NaN"));
    assert!(attach(LoraConfig { targets: vec!["(".into()], ..good() }).contains("is not a regular expression"));
    let message = attach(LoraConfig { targets: vec!["experts".into(), "embedding".into()], ..good() });
    assert!(
        message.contains("name no linear map") && message.contains("embedder.projection.layer.weight"),
        "{message}"
    );
    let adapted = good().attach(base.clone()).unwrap();
    assert!(matches!(good().attach(adapted.clone()), Err(LoraError::Attached { .. })));

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("adapter.safetensors");
    assert!(matches!(lora::save(&base, &good(), &path), Err(LoraError::None)));
    assert!(matches!(lora::load(base.clone(), &path), Err(LoraError::Io { .. })));
    lora::save(&adapted, &good(), &path).unwrap();
    let load = |model| lora::load(model, &path).unwrap_err().to_string();
    assert!(load(model(VANILLA, &Device::flex()).1).contains("does not belong to the model"));
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(load(base.clone()).contains("holds no adapters"));
    save_weights(&base, &path, SavePrecision::Unchanged).unwrap();
    assert!(load(base.clone()).contains("its metadata has no \"lora\""));
}
