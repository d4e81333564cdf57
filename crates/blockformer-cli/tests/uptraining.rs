//! `blockformer uptrain`, from a vanilla model to a Block Transformer that learns faster than a new one.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const TEXT: &str = "one two three four five six seven eight nine ten, ";

fn blockformer(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockformer"));
    command.current_dir(directory).args(arguments).stdin(Stdio::null()).output().expect("the command runs")
}

fn succeeds(directory: &Path, arguments: &[&str]) -> Output {
    let output = blockformer(directory, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn refusal(directory: &Path, arguments: &[&str]) -> String {
    let output = blockformer(directory, arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    String::from_utf8(output.stderr).expect("standard error is UTF-8")
}

/// A directory with text and a vanilla model trained on it.
fn workspace() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("text.txt"), TEXT.repeat(60)).expect("written");
    let config = serde_json::json!({
        "architecture": "vanilla_transformer", "vocab_size": 32, "max_length": 128, "eos_token_id": 0,
        "tied_embeddings": true,
        "transformer": {
            "d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 64,
            "activation": "silu", "gated": true, "norm": "rms_norm", "norm_eps": 1e-5, "residual": "sequential",
            "rotary": {"fraction": 1.0, "base": 10000.0}, "qkv_bias": false, "output_bias": false,
            "feed_forward_bias": false, "max_positions": 128, "initializer_range": 0.02
        }
    });
    fs::write(directory.path().join("vanilla.json"), config.to_string()).expect("written");
    train(directory.path(), &["--config", "vanilla.json", "--output", "vanilla", "--steps", "80"]);
    directory
}

fn train(directory: &Path, more: &[&str]) -> Output {
    let settings = ["train", "--data", "text.txt", "--sample-length", "32", "--batch-size", "4", "--warmup-steps", "5"];
    let more = [&["--learning-rate", "0.01", "--validation-split", "tail", "--tokenizer", "characters"], more].concat();
    succeeds(directory, &[&settings[..], &more].concat())
}

/// The last loss of a run.
fn last_loss(directory: &Path, run: &str) -> f64 {
    let csv = fs::read_to_string(directory.join(run).join("metrics.csv")).expect("metrics");
    let mut lines = csv.lines();
    let column = lines.next().and_then(|header| header.split(',').position(|name| name == "loss")).expect("a loss");
    lines.next_back().and_then(|line| line.split(',').nth(column)?.parse().ok()).expect("a number")
}

#[test]
fn an_uptrained_model_learns_faster_than_a_new_one() {
    let workspace = workspace();
    let directory = workspace.path();
    let output = succeeds(directory, &["uptrain", "vanilla", "block", "--max-length", "64"]);
    let table = String::from_utf8(output.stdout).expect("a table");
    for (tensor, origin) in [
        ("block_decoder.transformer.layers.0.attention.qkv.weight", "transformer.layers.0.attention.qkv.weight"),
        ("token_decoder.transformer.layers.0.attention.qkv.weight", "transformer.layers.1.attention.qkv.weight"),
        ("embedder.projection.layer.weight", "(mean of the block's tokens)"),
        ("token_decoder.expansion.layer.weight", "(identity)"),
    ] {
        let line = table.lines().find(|line| line.starts_with(tensor)).unwrap_or_else(|| panic!("{table}"));
        assert!(line.ends_with(origin), "{line}");
    }
    train(directory, &["--init", "block", "--output", "uptrained", "--steps", "10"]);
    train(directory, &["--config", "block/config.json", "--output", "scratch", "--steps", "10"]);
    let (uptrained, scratch) = (last_loss(directory, "uptrained"), last_loss(directory, "scratch"));
    assert!(uptrained < 0.9 * scratch, "{uptrained} after uptraining, {scratch} from scratch");
    // The tokenizer came along.
    succeeds(directory, &["generate", "--model", "block", "--prompt", "one two", "--max-new-tokens", "4"]);
}

#[test]
fn what_cannot_be_uptrained_is_refused_before_anything_is_written() {
    let workspace = workspace();
    let directory = workspace.path();
    let message = refusal(directory, &["uptrain", "vanilla", "out", "--block-layers", "2", "--token-layers", "2"]);
    assert!(message.contains("partition of 2 vanilla layers cannot fill 2 layers of the block decoder"), "{message}");
    let message = refusal(directory, &["uptrain", "vanilla", "out", "--compute-token-embeddings"]);
    assert!(message.contains("an output projection that is not the embedding table"), "{message}");
    let message = refusal(directory, &["uptrain", "vanilla", "out", "--config", "vanilla.json"]);
    assert!(message.contains("vanilla.json is not a Block Transformer's"), "{message}");
    let message = refusal(directory, &["uptrain", "vanilla", "out", "--block-length", "0"]);
    assert!(message.contains("block_length must be at least 1"), "{message}");
    assert!(!directory.join("out").exists());
    succeeds(directory, &["uptrain", "vanilla", "block", "--max-length", "64"]);
    let message = refusal(directory, &["uptrain", "vanilla", "block"]);
    assert!(message.contains("is there already"), "{message}");
    let message = refusal(directory, &["uptrain", "block", "out"]);
    assert!(message.contains("block is a Block Transformer already"), "{message}");
}
