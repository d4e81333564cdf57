//! Runs of a model of a few thousand parameters.
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

pub(crate) const TEXT: &str = "one two three four five six seven eight nine ten, ";

/// A directory with `text.txt` and `config.json`, a model of a few thousand parameters.
pub(crate) fn workspace() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("text.txt"), TEXT.repeat(60)).expect("written");
    fs::write(directory.path().join("config.json"), config().to_string()).expect("written");
    directory
}

/// The configuration of the model.
pub(crate) fn config() -> serde_json::Value {
    let layers = serde_json::json!({
        "d_model": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 64,
        "activation": "silu", "gated": true, "norm": "rms_norm", "norm_eps": 1e-5, "residual": "sequential",
        "rotary": {"fraction": 1.0, "base": 10000.0}, "qkv_bias": false, "output_bias": false,
        "feed_forward_bias": false, "max_positions": 64, "initializer_range": 0.02
    });
    serde_json::json!({
        "architecture": "block_transformer", "vocab_size": 32, "block_length": 4, "n_embedding_tokens": 1,
        "max_length": 128, "pad_token_id": 0, "eos_token_id": 0, "random_pad_first_block": true,
        "pad_to_block_boundary": true,
        "embedder": {"kind": "lookup", "d_embedding": 8, "projection": "concat"},
        "block_decoder": layers,
        "token_decoder": {"kind": "prefix", "transformer": layers, "expansion": "layer", "expansion_ratio": 2,
                          "tied_embeddings": true}
    })
}

/// The command that trains in `directory` with small settings, which `more` may replace.
pub(crate) fn command(directory: &Path, output: &str, more: &[&str]) -> Command {
    let defaults = [
        ("--data", "text.txt"),
        ("--tokenizer", "characters"),
        ("--config", "config.json"),
        ("--sample-length", "32"),
        ("--batch-size", "4"),
        ("--warmup-steps", "5"),
        ("--learning-rate", "0.01"),
        ("--validation-split", "tail"),
        ("--evaluate-every", "20"),
        ("--save-every", "10"),
    ];
    let kept =
        defaults.iter().filter(|(option, _)| !more.contains(option)).flat_map(|(option, value)| [*option, *value]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockformer"));
    command.current_dir(directory).args(["train", "--output", output]).args(kept).args(more).stdin(Stdio::null());
    command
}

/// Trains to the end.
pub(crate) fn train(directory: &Path, output: &str, more: &[&str]) -> Output {
    command(directory, output, more).output().expect("the command runs")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Two runs ended with the same weights, bit for bit.
pub(crate) fn assert_same_weights(directory: &Path, one: &str, other: &str) {
    let read = |run: &str| fs::read(directory.join(run).join("model.safetensors")).expect("weights");
    let (one, other) = (read(one), read(other));
    let tensors = |bytes| safetensors::SafeTensors::deserialize(bytes).expect("safetensors");
    let (one, other) = (tensors(&one), tensors(&other));
    assert_eq!(one.names().len(), other.names().len());
    for (name, view) in one.tensors() {
        assert!(view.data() == other.tensor(&name).expect("the tensor").data(), "{name} differs");
    }
}
