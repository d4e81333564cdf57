//! Block Transformers that begin with the weights of vanilla models, tensor by tensor against the files the vanilla
//! models came in, which are read here without the library.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use blockformer_embedder::{EmbedderConfig, LookupConfig, Projection};
use blockformer_model::{AnyModel, BlockTransformer, BlockTransformerConfig, ModelConfig, VanillaTransformerConfig};
use blockformer_model::{SavePrecision, VanillaTransformer, save_weights};
use blockformer_nn::Activation;
use blockformer_token_decoder::{AnyTokenDecoder, TokenDecoderConfig};
use blockformer_train::uptraining::{
    LayerMethod, TargetSizes, TensorOrigin, UptrainingOptions, UptrainingPlan, target_config,
};
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Int, Tensor, TensorData, s};
use safetensors::SafeTensors;

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    file.tensors().into_iter().map(|(name, view)| (name, (view.shape().to_vec(), floats(view.data())))).collect()
}

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference-cases").join(name)
}

fn vanilla(name: &str) -> (VanillaTransformerConfig, VanillaTransformer, Tensors) {
    let (config, model) = AnyModel::load(&case(name), &Device::flex()).unwrap();
    let (ModelConfig::VanillaTransformer(config), AnyModel::Vanilla(model)) = (config, model) else {
        panic!("{name} is vanilla")
    };
    (config, model, read(&case(name).join("model.safetensors")))
}

fn tensors_of(model: &BlockTransformer) -> Tensors {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    save_weights(model, &path, SavePrecision::Unchanged).unwrap();
    read(&path)
}

fn uptrain(name: &str, options: UptrainingOptions) -> (UptrainingPlan, BlockTransformer, Tensors, Tensors) {
    let (config, model, file) = vanilla(name);
    let target = target(&config, options);
    let plan = UptrainingPlan::new(&config, &target, &options, &Device::flex()).unwrap();
    let block = plan.apply(&model, target.init(&Device::flex()).unwrap());
    let tensors = tensors_of(&block);
    (plan, block, tensors, file)
}

fn target(config: &VanillaTransformerConfig, options: UptrainingOptions) -> BlockTransformerConfig {
    let sizes = TargetSizes { max_length: Some(32), ..TargetSizes::default() };
    let mut target = target_config(config, options.layers, &sizes).unwrap();
    if let (true, TokenDecoderConfig::Prefix(prefix)) = (options.compute_token_embeddings, &mut target.token_decoder) {
        prefix.tied_embeddings = false;
    }
    target
}

/// The layers of both decoders, with the vanilla layer each must be a copy of: two vanilla layers in all cases.
fn layers(method: LayerMethod) -> Vec<(&'static str, usize, usize)> {
    match method {
        LayerMethod::Partition => vec![("block_decoder", 0, 0), ("token_decoder", 0, 1)],
        LayerMethod::Skip => vec![("block_decoder", 0, 0), ("token_decoder", 0, 0)],
        _ => vec![("block_decoder", 0, 0), ("block_decoder", 1, 1), ("token_decoder", 0, 0), ("token_decoder", 1, 1)],
    }
}

const METHODS: [LayerMethod; 3] = [LayerMethod::Partition, LayerMethod::Skip, LayerMethod::Duplicate];

/// What every tensor of the block model must hold, as far as it does not depend on the family: tables, projection,
/// expansion, norms. `embedding` and `output` are names in the file.
fn expected_around_layers(file: &Tensors, embedding: &str, output: Option<&str>) -> Tensors {
    let mut expected = Tensors::new();
    let (shape, table) = &file[embedding];
    let d = shape[1];
    for name in ["embedder.embedding.weight", "token_decoder.vocabulary.embedding.weight"] {
        expected.insert(name.into(), (shape.clone(), table.clone()));
    }
    if let Some(output) = output {
        expected.insert("token_decoder.vocabulary.output.weight".into(), file[output].clone());
    }
    // [d, 4 · d]: a quarter of each of four tokens.
    let mean = (0..d * 4 * d).map(|i| if i % (4 * d) % d == i / (4 * d) { 0.25 } else { 0.0 }).collect();
    expected.insert("embedder.projection.layer.weight".into(), (vec![d, 4 * d], mean));
    expected.insert("embedder.projection.layer.bias".into(), (vec![d], vec![0.0; d]));
    // [2 · d, d]: twice the identity, one below the other.
    let identity = (0..2 * d * d).map(|i| f32::from(u8::from(i / d % d == i % d))).collect();
    expected.insert("token_decoder.expansion.layer.weight".into(), (vec![2 * d, d], identity));
    expected.insert("token_decoder.expansion.layer.bias".into(), (vec![2 * d], vec![0.0; 2 * d]));
    expected.insert("block_decoder.transformer.final_norm.weight".into(), (vec![d], vec![1.0; d]));
    expected
}

#[test]
fn every_tensor_of_an_uptrained_llama_is_the_one_of_the_file() {
    for (name, output) in [("vanilla_llama_grouped_query", None), ("vanilla_llama_biases", Some("lm_head.weight"))] {
        for method in METHODS {
            let options = UptrainingOptions { layers: method, ..UptrainingOptions::default() };
            let (_, _, got, file) = uptrain(name, options);
            let mut expected = expected_around_layers(&file, "model.embed_tokens.weight", output);
            expected.insert("token_decoder.transformer.final_norm.weight".into(), file["model.norm.weight"].clone());
            for (part, layer, source) in layers(method) {
                for (ours, theirs) in [
                    ("attention_norm", "input_layernorm"),
                    ("feed_forward_norm", "post_attention_layernorm"),
                    ("attention.output", "self_attn.o_proj"),
                    ("feed_forward.gate", "mlp.gate_proj"),
                    ("feed_forward.up", "mlp.up_proj"),
                    ("feed_forward.down", "mlp.down_proj"),
                ] {
                    for kind in ["weight", "bias"] {
                        let Some(tensor) = file.get(&format!("model.layers.{source}.{theirs}.{kind}")) else {
                            continue;
                        };
                        expected.insert(format!("{part}.transformer.layers.{layer}.{ours}.{kind}"), tensor.clone());
                    }
                }
                for kind in ["weight", "bias"] {
                    let parts =
                        ["q", "k", "v"].map(|p| file.get(&format!("model.layers.{source}.self_attn.{p}_proj.{kind}")));
                    let [Some(q), Some(k), Some(v)] = parts else { continue };
                    let mut shape = q.0.clone();
                    shape[0] += k.0[0] + v.0[0];
                    let joined = [&q.1[..], &k.1, &v.1].concat();
                    expected.insert(format!("{part}.transformer.layers.{layer}.attention.qkv.{kind}"), (shape, joined));
                }
            }
            assert_same(&got, &expected, name, method);
        }
    }
}

#[test]
fn every_tensor_of_an_uptrained_gpt_neox_is_the_one_of_the_file() {
    const HEADS: usize = 2;
    for method in METHODS {
        let options = UptrainingOptions { layers: method, ..UptrainingOptions::default() };
        let (_, _, got, file) = uptrain("vanilla_gpt_neox", options);
        let mut expected = expected_around_layers(&file, "gpt_neox.embed_in.weight", Some("embed_out.weight"));
        let d = file["gpt_neox.embed_in.weight"].0[1];
        expected.insert("block_decoder.transformer.final_norm.bias".into(), (vec![d], vec![0.0; d]));
        for kind in ["weight", "bias"] {
            let norm = file[&format!("gpt_neox.final_layer_norm.{kind}")].clone();
            expected.insert(format!("token_decoder.transformer.final_norm.{kind}"), norm);
            for (part, layer, source) in layers(method) {
                for (ours, theirs) in [
                    ("attention_norm", "input_layernorm"),
                    ("feed_forward_norm", "post_attention_layernorm"),
                    ("attention.output", "attention.dense"),
                    ("feed_forward.up", "mlp.dense_h_to_4h"),
                    ("feed_forward.down", "mlp.dense_4h_to_h"),
                ] {
                    let tensor = file[&format!("gpt_neox.layers.{source}.{theirs}.{kind}")].clone();
                    expected.insert(format!("{part}.transformer.layers.{layer}.{ours}.{kind}"), tensor);
                }
                // Rows [head, (q, k, v), head_dim] in the file.
                let (shape, values) = &file[&format!("gpt_neox.layers.{source}.attention.query_key_value.{kind}")];
                let columns = shape.get(1).copied().unwrap_or(1);
                let head_dim = d / HEADS;
                let rows = (0..3).flat_map(|part| (0..HEADS).map(move |head| (head * 3 + part) * head_dim));
                let rows = rows.flat_map(|first| values[first * columns..(first + head_dim) * columns].to_vec());
                let name = format!("{part}.transformer.layers.{layer}.attention.qkv.{kind}");
                expected.insert(name, (shape.clone(), rows.collect()));
            }
        }
        assert_same(&got, &expected, "gpt_neox", method);
    }
}

fn assert_same(got: &Tensors, expected: &Tensors, name: &str, method: LayerMethod) {
    let names = |tensors: &Tensors| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(got), names(expected), "{name}, {}", method.name());
    for (tensor, value) in expected {
        assert_eq!(&got[tensor], value, "{name}, {}: {tensor}", method.name());
    }
}

#[test]
fn a_block_starts_as_the_mean_of_its_tokens_and_the_prefix_as_the_context() {
    let (_, block, tensors, _) = uptrain("vanilla_llama_grouped_query", UptrainingOptions::default());
    let (_, table) = &tensors["embedder.embedding.weight"];
    let ids = [[3i32, 14, 15, 92], [65, 35, 8, 9]];
    let (embeddings, context) = block.context(Tensor::<3, Int>::from_ints([ids], &Device::flex()), None);
    let got: Vec<f32> = embeddings.into_data().iter().collect();
    for (position, block) in ids.iter().enumerate() {
        for feature in 0..48 {
            let mean = block.iter().map(|id| table[*id as usize * 48 + feature]).sum::<f32>() / 4.0;
            assert!((got[position * 48 + feature] - mean).abs() < 1e-6);
        }
    }
    let AnyTokenDecoder::Prefix(decoder) = &block.token_decoder else { panic!("a prefix decoder") };
    let context = context.reshape([2, 1, 48]);
    let prefix = decoder.expansion.forward(context.clone()); // [2, 2, 48]
    assert!((prefix - context.repeat_dim(1, 2)).abs().max().into_scalar::<f32>() < 1e-6);
}

#[test]
fn token_embeddings_may_be_what_the_block_decoder_makes_of_each_token() {
    let options = UptrainingOptions { compute_token_embeddings: true, ..UptrainingOptions::default() };
    for name in ["vanilla_llama_grouped_query", "vanilla_llama_biases"] {
        let (plan, block, tensors, file) = uptrain(name, options);
        let origin = |name: &str| &plan.tensors().iter().find(|tensor| tensor.name == name).unwrap().origin;
        assert_eq!(*origin("token_decoder.vocabulary.embedding.weight"), TensorOrigin::BlockDecoder);
        // A block of the same token four times has that token's embedding for its mean.
        let ids: Vec<i32> = (0..96 * 4).map(|i| i / 4).collect();
        let ids = Tensor::<3, Int>::from_data(TensorData::new(ids, [96, 1, 4]), &Device::flex());
        let (_, context) = block.context(ids, None);
        let (shape, table) = tensors["token_decoder.vocabulary.embedding.weight"].clone();
        let table = Tensor::<2>::from_data(TensorData::new(table, shape), &Device::flex());
        assert!((context.reshape([96, 48]) - table).abs().max().into_scalar::<f32>() < 1e-4, "{name}");
        // The output projection stays the vanilla model's.
        let output = if name == "vanilla_llama_biases" { "lm_head.weight" } else { "model.embed_tokens.weight" };
        assert_eq!(tensors["token_decoder.vocabulary.output.weight"], file[output], "{name}");
    }
}

#[test]
fn copies_are_parameters_of_their_own_and_trained_on_an_autodiff_device() {
    #[derive(Default)]
    struct Ids(Vec<ParamId>);
    impl ModuleVisitor for Ids {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(param.id);
            assert!(param.val().is_require_grad());
        }
    }
    let (config, model, _) = vanilla("vanilla_llama_grouped_query");
    let options = UptrainingOptions { layers: LayerMethod::Duplicate, ..UptrainingOptions::default() };
    let target = target(&config, options);
    let device = Device::flex().autodiff();
    let plan = UptrainingPlan::new(&config, &target, &options, &device).unwrap();
    let block = plan.apply(&model, target.init(&device).unwrap());
    let mut ids = Ids::default();
    block.visit(&mut ids);
    model.visit(&mut Plain(&mut ids.0));
    assert_eq!(ids.0.iter().collect::<BTreeSet<_>>().len(), ids.0.len());

    struct Plain<'a>(&'a mut Vec<ParamId>);
    impl ModuleVisitor for Plain<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(param.id);
        }
    }
    let ids = Tensor::<3, Int>::from_ints([[[1, 2, 3, 4], [5, 6, 7, 8]]], &device);
    let loss = block.logits(block.forward(ids, None).hidden).slice(s![.., .., 0..1]).sum();
    let gradients = loss.backward();
    for layer in [&block.block_decoder.transformer.layers[0], &block.block_decoder.transformer.layers[1]] {
        assert!(layer.attention.qkv.weight.grad(&gradients).is_some());
    }
}

#[test]
fn the_plan_lists_what_is_copied_and_what_is_not() {
    let options = UptrainingOptions { layers: LayerMethod::Skip, identity_expansion: false, ..Default::default() };
    let (plan, block, tensors, _) = uptrain("vanilla_gpt_neox", options);
    assert_eq!(plan.tensors().len(), tensors.len());
    for tensor in plan.tensors() {
        assert_eq!(tensors[&tensor.name].0, tensor.shape, "{}", tensor.name);
    }
    assert_eq!(plan.unused().len(), 12, "the second layer: {:?}", plan.unused());
    assert!(plan.unused().iter().all(|name| name.starts_with("transformer.layers.1.")));
    let table = plan.to_string();
    let line = |start: &str| table.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}"));
    assert!(
        line("token_decoder.transformer.layers.0.attention.qkv.weight").contains(" transformer.layers.0.attention")
    );
    assert!(line("embedder.projection.layer.weight").contains("[32, 128]"));
    assert!(line("embedder.projection.layer.weight").ends_with("(mean of the block's tokens)"));
    assert!(line("token_decoder.expansion.layer.weight").ends_with("(as initialised)"));
    assert!(table.ends_with("  transformer.layers.1.feed_forward.down.bias\n"), "{table}");
    // What is left to chance is not the identity.
    let AnyTokenDecoder::Prefix(decoder) = &block.token_decoder else { panic!("a prefix decoder") };
    assert_ne!(decoder.expansion.layer.as_ref().unwrap().bias.as_ref().unwrap().dims(), [0]);
    assert!(tensors["token_decoder.expansion.layer.weight"].1.iter().filter(|value| **value == 0.0).count() < 10);
}

#[test]
fn models_that_do_not_go_together_are_refused_with_the_reason() {
    let (config, ..) = vanilla("vanilla_llama_biases");
    let refusal = |change: fn(&mut BlockTransformerConfig), options: UptrainingOptions| {
        let mut target = target_config(&config, options.layers, &TargetSizes::default()).unwrap();
        change(&mut target);
        UptrainingPlan::new(&config, &target, &options, &Device::flex()).unwrap_err().to_string()
    };
    let default = UptrainingOptions::default();
    assert_eq!(
        refusal(|target| target.vocab_size = 97, default),
        "the model: vocab_size is 97, but the vanilla transformer has 96"
    );
    assert_eq!(
        refusal(|target| target.block_decoder.activation = Activation::Relu, default),
        "the block decoder: activation is \"relu\", but the vanilla transformer has \"silu\""
    );
    assert!(refusal(|target| target.block_decoder.n_layers = 2, default).contains("partition of 2 vanilla layers"));
    let concat = |target: &mut BlockTransformerConfig| {
        target.embedder = EmbedderConfig::Lookup(LookupConfig { d_embedding: 12, projection: Projection::Concat });
    };
    assert!(refusal(concat, default).starts_with("a projection that starts as the mean needs a lookup embedder"));
    let computed = UptrainingOptions { mean_projection: false, compute_token_embeddings: true, ..default };
    assert!(refusal(concat, computed).contains("a lookup embedder as wide as the vanilla transformer"));
    let tied = |target: &mut BlockTransformerConfig| {
        if let TokenDecoderConfig::Prefix(prefix) = &mut target.token_decoder {
            prefix.tied_embeddings = true;
        }
    };
    assert!(refusal(tied, default).contains("tied_embeddings is true, but the vanilla transformer has false"));
}
