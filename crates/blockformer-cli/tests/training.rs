//! `blockformer train` from text to a model that writes, and stopped on the way.

mod small_run;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use small_run::{TEXT, assert_same_weights, stderr, train, workspace};

#[test]
fn blocks_of_drawn_lengths_are_trained_on_where_paddings_are_off() {
    let directory = workspace();
    let settings = ["--shortest-block", "2", "--steps", "10"];
    let refused = train(directory.path(), "out", &settings);
    assert!(!refused.status.success());
    assert!(stderr(&refused).contains("cannot go with random_pad_first_block"), "{}", stderr(&refused));
    assert!(!directory.path().join("out").exists());
    let config = directory.path().join("config.json");
    let text = fs::read_to_string(&config).expect("read");
    let text = text.replace("\"random_pad_first_block\":true", "\"random_pad_first_block\":false");
    let text = text.replace("\"pad_to_block_boundary\":true", "\"pad_to_block_boundary\":false");
    fs::write(&config, text).expect("written");
    let trained = train(directory.path(), "out", &settings);
    assert!(trained.status.success(), "{}", stderr(&trained));
    // A run goes on under the same lengths only.
    let other = train(directory.path(), "out", &["--shortest-block", "1", "--steps", "10", "--resume"]);
    assert!(!other.status.success() && stderr(&other).contains("packing"), "{}", stderr(&other));
}

#[test]
fn a_model_that_predicts_first_blocks_begins_a_text_from_nothing() {
    let directory = workspace();
    let config = directory.path().join("config.json");
    let text = fs::read_to_string(&config).expect("read");
    let generate = |model: &str| {
        Command::new(env!("CARGO_BIN_EXE_blockformer"))
            .current_dir(directory.path())
            .args(["generate", "--model", model, "--prompt", "", "--max-new-tokens", "8", "--temperature", "0"])
            .output()
            .expect("the command runs")
    };
    let refused = train(directory.path(), "out", &["--steps", "5"]);
    assert!(refused.status.success(), "{}", stderr(&refused));
    let refused = generate("out");
    assert!(!refused.status.success() && stderr(&refused).contains("empty"), "{}", stderr(&refused));
    fs::write(&config, text.replacen('{', "{\"predict_first_block\":true,", 1)).expect("written");
    let trained = train(directory.path(), "widened", &["--steps", "20"]);
    assert!(trained.status.success(), "{}", stderr(&trained));
    let generated = generate("widened");
    assert!(generated.status.success(), "{}", stderr(&generated));
    assert_eq!(String::from_utf8_lossy(&generated.stdout).trim_end_matches('\n').chars().count(), 8);
}

#[test]
fn a_trained_model_goes_on_with_its_text() {
    let directory = workspace();
    // Several documents: each begins at another place in a block, so the model learns all alignments.
    let document = serde_json::json!({ "text": TEXT.repeat(6) }).to_string();
    fs::write(directory.path().join("text.jsonl"), vec![document; 12].join("\n")).expect("written");
    let settings = ["--data", "text.jsonl", "--sample-length", "64", "--batch-size", "8", "--steps", "200"];
    let output = train(directory.path(), "out", &settings);
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
    assert_same_weights(directory.path(), "straight", "stopped");
}

/// Standard error of a run that must fail, without a panic and without writing anything.
fn refused(directory: &Path, more: &[&str]) -> String {
    let run = train(directory, "refused", more);
    assert!(!run.status.success(), "{more:?} succeeded");
    let message = stderr(&run);
    assert!(!message.contains("panicked"), "{message}");
    assert!(!directory.join("refused").exists(), "{more:?} left files behind");
    message
}

#[test]
fn settings_out_of_range_are_named() {
    let directory = workspace();
    let refused = |more: &[&str]| refused(directory.path(), more);
    assert!(refused(&["--steps", "0"]).contains("steps is 0, expected at least 1"));
    assert!(refused(&["--learning-rate", "0"]).contains("learning_rate is 0, expected a positive number"));
    assert!(refused(&["--accumulation", "3"]).contains("accumulation is 3, expected a divisor of batch_size"));
    assert!(refused(&["--weight-decay", "nan"]).contains("weight_decay is NaN"));
    assert!(refused(&["--evaluation-samples", "0"]).contains("--evaluation-samples: it must be at least 1"));
    assert!(refused(&["--config", "nonsense"]).contains("nonsense is neither a file nor a preset"));
    let long = refused(&["--sample-length", "256", "--validation-share", "0.2"]);
    assert!(long.contains("samples of 256 tokens do not fit the model's context of 128"), "{long}");
}

#[test]
fn text_that_cannot_be_trained_on_is_named() {
    let directory = workspace();
    let refused = |more: &[&str]| refused(directory.path(), more);
    let write = |text: &str| fs::write(directory.path().join("text.txt"), text).expect("written");
    write(&TEXT[..20]);
    let short = refused(&[]);
    assert!(short.contains("32") && short.contains("token"), "a corpus shorter than a sample: {short}");
    write("");
    assert!(refused(&[]).contains("text.txt"), "an empty corpus");
    write(&('!'..='~').collect::<String>().repeat(40));
    assert!(refused(&[]).contains("the model's vocabulary has 32"));
    fs::remove_file(directory.path().join("text.txt")).expect("removed");
    assert!(refused(&[]).contains("text.txt"), "a missing corpus");
}

#[test]
fn a_run_that_is_there_is_not_overwritten() {
    let directory = workspace();
    assert!(train(directory.path(), "c", &["--steps", "10"]).status.success());
    let read = |file: &str| fs::read(directory.path().join("c").join(file)).expect("a file of the run");
    let before = (read("model.safetensors"), read("tokenizer.json"));
    let again = |more: &[&str]| {
        let run = train(directory.path(), "c", more);
        assert!(!run.status.success(), "{more:?} succeeded");
        stderr(&run)
    };
    assert!(again(&["--steps", "10"]).contains("add --resume"));
    assert!(again(&["--steps", "20", "--resume"]).contains("other settings"));
    let other = again(&["--steps", "10", "--resume", "--sample-length", "64"]);
    assert!(other.contains("another data") || other.contains("another packing"), "{other}");
    fs::remove_dir_all(directory.path().join("c/checkpoints")).expect("removed");
    assert!(again(&["--steps", "10"]).contains("add --resume"), "a finished model");
    assert!(before == (read("model.safetensors"), read("tokenizer.json")), "files of the run changed");
}

#[cfg(unix)]
#[test]
fn ctrl_c_writes_a_checkpoint_to_go_on_from() {
    let directory = workspace();
    let mut child = Command::new(env!("CARGO_BIN_EXE_blockformer"))
        .current_dir(directory.path())
        .args(["train", "--data", "text.txt", "--tokenizer", "characters", "--config", "config.json"])
        .args(["--output", "d", "--sample-length", "32", "--steps", "1000000", "--save-every", "1000000"])
        .args(["--log-every", "1", "--warmup-steps", "5", "--validation-split", "tail"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().expect("standard error")));
    let training = lines.by_ref().map_while(Result::ok).any(|line| line.starts_with("step "));
    assert!(training, "it never trained");
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().expect("kill runs").success());
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert!(rest.iter().any(|line| line.contains("go on with --resume")), "{rest:?}");
    let checkpoint = fs::read_dir(directory.path().join("d/checkpoints")).expect("checkpoints").next();
    assert!(checkpoint.expect("one").expect("readable").path().join("model.bpk").exists());
    assert!(!directory.path().join("d/model.safetensors").exists());
}
