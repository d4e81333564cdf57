//! `blockformer train` from text to a model that writes, and stopped on the way.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const TEXT: &str = "one two three four five six seven eight nine ten, ";

/// A directory with `text.txt` and `config.json`, a model of a few thousand parameters.
fn workspace() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("text.txt"), TEXT.repeat(60)).expect("written");
    let layers = |n: usize| {
        serde_json::json!({
            "d_model": 32, "n_layers": n, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 64,
            "activation": "silu", "gated": true, "norm": "rms_norm", "norm_eps": 1e-5, "residual": "sequential",
            "rotary": {"fraction": 1.0, "base": 10000.0}, "qkv_bias": false, "output_bias": false,
            "feed_forward_bias": false, "max_positions": 64, "initializer_range": 0.02
        })
    };
    let config = serde_json::json!({
        "architecture": "block_transformer", "vocab_size": 32, "block_length": 4, "n_embedding_tokens": 1,
        "max_length": 128, "pad_token_id": 0, "eos_token_id": 0, "random_pad_first_block": true,
        "pad_to_block_boundary": true,
        "embedder": {"kind": "lookup", "d_embedding": 8, "projection": "concat"},
        "block_decoder": layers(1),
        "token_decoder": {"kind": "prefix", "transformer": layers(1), "expansion": "layer", "expansion_ratio": 2,
                          "tied_embeddings": true}
    });
    fs::write(directory.path().join("config.json"), config.to_string()).expect("written");
    directory
}

fn train(directory: &Path, output: &str, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blockformer"))
        .current_dir(directory)
        .args(["train", "--data", "text.txt", "--tokenizer", "characters", "--config", "config.json"])
        .args(["--output", output, "--sample-length", "32", "--batch-size", "4", "--warmup-steps", "5"])
        .args(["--learning-rate", "0.01", "--validation-split", "tail", "--evaluate-every", "20", "--save-every", "10"])
        .args(more)
        .stdin(Stdio::null())
        .output()
        .expect("the command runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_trained_model_goes_on_with_its_text() {
    let directory = workspace();
    let output = train(directory.path(), "out", &["--steps", "120"]);
    assert!(output.status.success(), "{}", stderr(&output));
    for file in ["config.json", "model.safetensors", "tokenizer.json", "metrics.csv", "loss.svg"] {
        assert!(directory.path().join("out").join(file).exists(), "{file} is missing");
    }
    let generated = Command::new(env!("CARGO_BIN_EXE_blockformer"))
        .current_dir(directory.path())
        .args(["generate", "--model", "out", "--temperature", "0", "--max-new-tokens", "14"])
        .args(["--prompt", "one two three four five"])
        .output()
        .expect("the command runs");
    assert_eq!(String::from_utf8_lossy(&generated.stdout), " six seven eig\n", "{}", stderr(&generated));
}

#[test]
fn a_resumed_run_ends_with_the_very_same_weights() {
    let directory = workspace();
    assert!(train(directory.path(), "straight", &["--steps", "25"]).status.success());
    // Killed right after a checkpoint; what is half-written is not looked at.
    let stopped = train(directory.path(), "stopped", &["--steps", "25"]);
    assert!(stopped.status.success());
    let checkpoints = directory.path().join("stopped/checkpoints");
    fs::remove_dir_all(checkpoints.join("step-00000025")).expect("removed");
    fs::remove_file(directory.path().join("stopped/model.safetensors")).expect("removed");
    fs::create_dir(checkpoints.join("writing-25")).expect("made");
    let resumed = train(directory.path(), "stopped", &["--steps", "25", "--resume"]);
    assert!(stderr(&resumed).contains("at step 20"), "{}", stderr(&resumed));
    let weights = |run: &str| fs::read(directory.path().join(run).join("model.safetensors")).expect("weights");
    assert!(weights("straight") == weights("stopped"), "the weights differ");
}

#[test]
fn wrong_input_is_named_and_nothing_is_overwritten() {
    let directory = workspace();
    let refused = |output: &str, more: &[&str]| {
        let run = train(directory.path(), output, more);
        assert!(!run.status.success(), "{more:?} succeeded");
        let message = stderr(&run);
        assert!(!message.contains("panicked"), "{message}");
        message
    };
    assert!(refused("a", &["--steps", "0"]).contains("steps is 0"));
    assert!(refused("a", &["--learning-rate", "0", "--steps", "1"]).contains("cannot be used multiple times"));
    assert!(refused("a", &["--steps", "5", "--accumulation", "3"]).contains("accumulation is 3"));
    fs::write(directory.path().join("text.txt"), TEXT).expect("written");
    assert!(refused("a", &["--steps", "5"]).contains("32"), "a corpus shorter than a sample");
    fs::write(directory.path().join("text.txt"), "").expect("written");
    assert!(refused("a", &["--steps", "5"]).contains("text.txt"), "an empty corpus");
    fs::remove_file(directory.path().join("text.txt")).expect("removed");
    assert!(refused("a", &["--steps", "5"]).contains("text.txt"), "a missing corpus");

    let directory = workspace();
    let many = ('!'..='~').collect::<String>().repeat(40);
    fs::write(directory.path().join("text.txt"), many).expect("written");
    let run = train(directory.path(), "b", &["--steps", "5"]);
    assert!(stderr(&run).contains("the model's vocabulary has 32"), "{}", stderr(&run));

    let directory = workspace();
    assert!(train(directory.path(), "c", &["--steps", "10"]).status.success());
    let before = fs::read(directory.path().join("c/model.safetensors")).expect("weights");
    let again = train(directory.path(), "c", &["--steps", "10"]);
    assert!(stderr(&again).contains("add --resume"), "{}", stderr(&again));
    let other = train(directory.path(), "c", &["--steps", "20", "--resume"]);
    assert!(stderr(&other).contains("other settings"), "{}", stderr(&other));
    assert_eq!(fs::read(directory.path().join("c/model.safetensors")).expect("weights"), before);
}
