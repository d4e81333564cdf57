//! Hugging Face directories of the Llama family, whole and damaged. What whole ones compute is checked by the
//! reference cases.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use blockformer_model::{AnyModel, ModelConfig};
use burn::tensor::Device;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference-cases").join(name)
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

/// A copy of a case with changed tensors and a changed configuration.
fn changed(name: &str, tensors: impl FnOnce(&mut Tensors), config: (&str, &str)) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let bytes = fs::read(case(name).join("model.safetensors")).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Tensors =
        read.tensors().into_iter().map(|(name, view)| (name, (view.shape().to_vec(), view.data().to_vec()))).collect();
    tensors(&mut all);
    let view = |shape: &[usize], data| TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap();
    let views = all.iter().map(|(name, (shape, data))| (name, view(shape, data)));
    fs::write(directory.path().join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
    let text = fs::read_to_string(case(name).join("config.json")).unwrap();
    assert!(text.contains(config.0), "{text}");
    fs::write(directory.path().join("config.json"), text.replace(config.0, config.1)).unwrap();
    directory
}

fn refusal(tensors: impl FnOnce(&mut Tensors), config: (&str, &str)) -> String {
    let directory = changed("vanilla_llama_grouped_query", tensors, config);
    let error = AnyModel::load(directory.path(), &Device::flex()).unwrap_err().to_string();
    assert_eq!(AnyModel::load_deferred(directory.path(), &Device::flex()).unwrap_err().to_string(), error);
    error.replace(directory.path().to_str().unwrap(), "DIR")
}

const AS_IT_IS: (&str, &str) = ("{", "{");
const KEYS: &str = "model.layers.1.self_attn.k_proj.weight";

#[test]
fn a_tied_table_may_stand_in_the_file_twice_and_old_buffers_are_passed_over() {
    let twice = |tensors: &mut Tensors| {
        let table = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".into(), table);
        tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), (vec![4], vec![0; 16]));
    };
    let directory = changed("vanilla_llama_grouped_query", twice, AS_IT_IS);
    let (config, model) = AnyModel::load(directory.path(), &Device::flex()).unwrap();
    assert!(matches!(config, ModelConfig::VanillaTransformer(config) if config.tied_embeddings));
    let (_, whole) = AnyModel::load(&case("vanilla_llama_grouped_query"), &Device::flex()).unwrap();
    assert_eq!(model.parameters(), whole.parameters());
}

#[test]
fn missing_unknown_and_misshapen_tensors_are_named_as_in_the_file() {
    let message = refusal(|tensors| drop(tensors.remove(KEYS)), AS_IT_IS);
    assert!(message.starts_with("DIR/model.safetensors: tensor transformer.layers.1.attention.qkv"), "{message}");
    assert!(message.contains("its rows 48 to 64"), "{message}");

    let message = refusal(|tensors| drop(tensors.remove("model.layers.0.mlp.up_proj.weight")), AS_IT_IS);
    assert_eq!(message, "DIR/model.safetensors: tensor model.layers.0.mlp.up_proj.weight is missing");

    let norm = "model.layers.0.self_attn.q_norm.weight";
    let message = refusal(|tensors| drop(tensors.insert(norm.into(), (vec![8], vec![0; 32]))), AS_IT_IS);
    assert_eq!(message, format!("DIR/model.safetensors: tensor {norm} is unknown to the model"));

    let message = refusal(|tensors| drop(tensors.insert(KEYS.into(), (vec![8, 48], vec![0; 4 * 8 * 48]))), AS_IT_IS);
    let expected = "has shape [8, 48], the configuration needs [16, 48]";
    assert_eq!(message, format!("DIR/model.safetensors: tensor {KEYS} {expected}"));
}

#[test]
fn a_configuration_that_does_not_fit_the_weights_is_refused() {
    let message = refusal(|_| (), ("\"intermediate_size\": 80", "\"intermediate_size\": 96"));
    assert!(message.contains("has shape") && message.contains("96"), "{message}");
    let message = refusal(|_| (), ("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false"));
    assert_eq!(message, "DIR/model.safetensors: tensor lm_head.weight is missing");
    let message = refusal(|_| (), ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1"));
    assert!(message.contains("model.layers.1.") && message.contains("unknown to the model"), "{message}");
    let message = refusal(|_| (), ("\"model_type\": \"llama\"", "\"model_type\": \"qwen3\""));
    assert!(message.contains("model_type is \"qwen3\", supported: gpt_neox, llama, mistral, qwen2"), "{message}");
    let message = refusal(|_| (), ("\"hidden_size\": 48,", ""));
    assert!(message.contains("missing field `hidden_size`"), "{message}");
}
