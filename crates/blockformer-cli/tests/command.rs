//! The command as a user runs it, rightly and wrongly.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn blockformer(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_blockformer")).args(arguments).stdin(Stdio::null()).output();
    output.expect("the command runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("standard output is UTF-8")
}

/// Standard error of a run that must fail without having written any text.
fn refusal(arguments: &[&str]) -> String {
    let output = blockformer(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert_eq!(stdout(&output), "", "{arguments:?} wrote text");
    let message = String::from_utf8(output.stderr).expect("standard error is UTF-8");
    assert!(!message.contains("panicked"), "{arguments:?} panicked: {message}");
    message
}

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference-cases")
}

/// A copy of a reference case that may be damaged.
fn copy_of(case: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for file in fs::read_dir(cases().join(case)).expect("the case") {
        let file = file.expect("a file").path();
        fs::copy(&file, directory.path().join(file.file_name().expect("a name"))).expect("a copy");
    }
    directory
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of valid UTF-8")
}

const GENERATE: [&str; 4] = ["generate", "--max-new-tokens", "12", "--prompt"];

#[test]
fn the_bundled_model_writes_text_that_follows_the_seed() {
    let run = |seed: &str| {
        let output = blockformer(&[&GENERATE[..], &["The people of", "--seed", seed]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        stdout(&output)
    };
    let first = run("1");
    assert!(first.trim().len() > 12 && first.contains(' '), "{first:?}");
    assert_eq!(first, run("1"));
    assert_ne!(first, run("2"));
}

#[test]
fn the_prompt_may_come_from_standard_input() {
    let input = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(input.path(), "The people of\n").expect("a prompt");
    let output = Command::new(env!("CARGO_BIN_EXE_blockformer"))
        .args(["generate", "--max-new-tokens", "12", "--seed", "1"])
        .stdin(fs::File::open(input.path()).expect("the prompt"))
        .output()
        .expect("the command runs");
    let by_option = blockformer(&[&GENERATE[..], &["The people of", "--seed", "1"]].concat());
    assert_eq!(stdout(&output), stdout(&by_option));
}

#[test]
fn empty_and_overlong_prompts_are_refused() {
    assert!(refusal(&[&GENERATE[..], &[""]].concat()).contains("the prompt is empty"));
    assert!(refusal(&["generate"]).contains("the prompt is empty"));
    let long = "word ".repeat(3000);
    let message = refusal(&[&GENERATE[..], &[&long]].concat());
    assert!(message.contains("does not fit the context of 512 tokens"), "{message}");
    assert!(refusal(&["generate", "--prompt", "a", "--max-new-tokens", "0"]).contains("max_new_tokens is 0"));
}

#[test]
fn devices_that_are_not_there_are_refused_with_a_list() {
    let message = refusal(&[&GENERATE[..], &["a", "--device", "abacus"]].concat());
    assert!(message.contains("unknown device \"abacus\"") && message.contains("cpu"), "{message}");
    let message = refusal(&[&GENERATE[..], &["a", "--device", "cpu:3"]].concat());
    assert!(message.contains("\"cpu:3\" was not found"), "{message}");
}

#[test]
fn sampling_options_outside_their_range_are_refused() {
    assert!(refusal(&[&GENERATE[..], &["a", "--temperature=-1"]].concat()).contains("temperature is -1"));
    assert!(refusal(&[&GENERATE[..], &["a", "--top-p", "0"]].concat()).contains("top_p is 0"));
    assert!(refusal(&[&GENERATE[..], &["a", "--top-k", "0"]].concat()).contains("top_k is 0"));
}

#[test]
fn missing_and_damaged_model_files_are_named() {
    let generate = |directory: &Path| refusal(&[&GENERATE[..], &["a", "--model", text(directory)]].concat());
    assert!(generate(Path::new("no-such-model")).contains("no-such-model"));
    let empty = tempfile::tempdir().expect("a temporary directory");
    assert!(generate(empty.path()).contains("holds no model"));

    let missing = copy_of("lookup_prefix_b4");
    fs::remove_file(missing.path().join("model.safetensors")).expect("removed");
    assert!(generate(missing.path()).contains("model.safetensors"));

    let truncated = copy_of("lookup_prefix_b4");
    let weights = truncated.path().join("model.safetensors");
    let bytes = fs::read(&weights).expect("weights");
    for length in [0, 4, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&weights, &bytes[..length]).expect("written");
        let message = generate(truncated.path());
        assert!(message.contains("model.safetensors is not a valid safetensors file"), "{length}: {message}");
    }

    // Whole, but without a tokenizer.
    assert!(generate(&cases().join("lookup_prefix_b4")).contains("tokenizer.json"));
}

#[test]
fn weights_that_do_not_fit_the_configuration_are_named_with_both_shapes() {
    let directory = copy_of("lookup_prefix_b4");
    let path = directory.path().join("trainer.json");
    let mut trainer: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
    trainer["token_decoder"]["expansion_ratio"] = 3.into();
    fs::write(&path, trainer.to_string()).expect("written");
    let output = tempfile::tempdir().expect("a temporary directory");
    let converted = output.path().join("converted");
    let message = refusal(&["convert", text(directory.path()), text(&converted)]);
    assert!(message.contains("token_decoder.expansion_layer"), "{message}");
    assert!(message.contains("96") && message.contains("64"), "{message}");
    assert!(!converted.exists(), "a refused conversion left files behind");
}

#[test]
fn tensors_that_are_unknown_or_missing_are_named() {
    let directory = copy_of("lookup_prefix_b4");
    let path = directory.path().join("model.safetensors");
    let bytes = fs::read(&path).expect("weights");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let rename = |from: &str, to: &str| {
        let renamed = tensors.tensors().into_iter().map(|(name, view)| (name.replace(from, to), view));
        fs::write(&path, safetensors::serialize(renamed, None).expect("serialized")).expect("written");
    };
    let convert = || refusal(&["convert", text(directory.path()), text(&directory.path().join("out"))]);
    rename("embedder.embeddings", "embedder.hashes");
    assert!(convert().contains("tensor embedder.hashes.weight is unknown"));
    rename("token_decoder.embed_out.weight", "block_decoder.gpt_neox.layers.0.attention.rotary_emb.inv_freq");
    assert!(convert().contains("tensor token_decoder.embed_out.weight is missing"));
}

#[test]
fn conversion_keeps_what_the_model_says() {
    for case in ["lookup_projection_prefix_b4", "vanilla_gpt_neox_sequential"] {
        let directory = copy_of(case);
        let converted = tempfile::tempdir().expect("a temporary directory");
        let run = blockformer(&["convert", text(directory.path()), text(converted.path())]);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        // Verify the converted weights by putting them in the place of the originals.
        for file in ["cases.safetensors", "expected.json"] {
            fs::copy(directory.path().join(file), converted.path().join(file)).expect("a copy");
        }
        let inspected = blockformer(&["inspect", text(converted.path())]);
        assert!(stdout(&inspected).contains("\"architecture\""), "{}", stdout(&inspected));
    }
}

#[test]
fn verification_fails_loudly_and_goes_on() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (case, name) in [("lookup_prefix_b1", "a-good"), ("lookup_prefix_b4", "b-wrong"), ("lookup_prefix_b4", "c-cut")]
    {
        let copy = copy_of(case);
        fs::rename(copy.keep(), directory.path().join(name)).expect("moved");
    }
    let weights = directory.path().join("b-wrong/model.safetensors");
    let mut bytes = fs::read(&weights).expect("weights");
    let last = bytes.len() - 2;
    bytes[last] ^= 0x40; // a weight of quite another size
    fs::write(&weights, bytes).expect("written");
    fs::write(directory.path().join("c-cut/cases.safetensors"), b"cut").expect("written");

    let run = blockformer(&["verify", text(directory.path())]);
    assert_eq!(run.status.code(), Some(1));
    let table = stdout(&run);
    let line = |start: &str, end: &str| table.lines().any(|line| line.starts_with(start) && line.ends_with(end));
    assert!(line("a-good", "pass") && !line("a-good", "FAIL"), "{table}");
    assert!(line("b-wrong", "FAIL"), "{table}");
    assert!(table.contains("c-cut") && table.contains("cannot be run: "), "{table}");
    assert!(table.contains("3 cases, 1 passed, 2 failed"), "{table}");

    let empty = tempfile::tempdir().expect("a temporary directory");
    let run = blockformer(&["verify", text(empty.path())]);
    assert!(String::from_utf8_lossy(&run.stderr).contains("holds no reference case"));
    assert_eq!(run.status.code(), Some(1));
}

#[test]
fn inspect_shows_parameters_and_cache_sizes() {
    let shown = stdout(&blockformer(&["inspect", "block_main_b4_19"]));
    assert!(shown.contains("(18914304 non-embedding)"), "{shown}");
    // 3 layers of 512 features in float32: 2 · 3 · 512 · 4 bytes a block.
    assert!(shown.contains("12288 bytes a block, 3072 bytes a token"), "{shown}");
    assert!(stdout(&blockformer(&["inspect", "--presets"])).contains("vanilla_410"));
    assert!(refusal(&["inspect", "nonsense"]).contains("neither a directory nor a preset"));
}
