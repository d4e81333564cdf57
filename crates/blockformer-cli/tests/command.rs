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
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(stdout(&output), stdout(&by_option));
    assert!(!stdout(&output).trim().is_empty());
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
fn a_converted_model_passes_the_case_it_came_from() {
    for case in ["lookup_projection_prefix_b4", "cls_cross_attention_b4", "vanilla_gpt_neox_sequential"] {
        let converted = tempfile::tempdir().expect("a temporary directory");
        let directory = converted.path().join(case);
        let run = blockformer(&["convert", text(&cases().join(case)), text(&directory)]);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        for file in ["cases.safetensors", "expected.json"] {
            fs::copy(cases().join(case).join(file), directory.join(file)).expect("a copy");
        }
        let verified = stdout(&blockformer(&["verify", text(&directory)]));
        assert!(verified.contains("1 cases, 1 passed, 0 failed"), "{verified}");
    }
}

#[test]
fn half_precision_keeps_weights_to_its_precision() {
    let case = cases().join("lookup_prefix_b4");
    for (precision, digits) in [("f16", 1e-3), ("bf16", 8e-3)] {
        let converted = tempfile::tempdir().expect("a temporary directory");
        let run = blockformer(&["convert", text(&case), text(&converted.path().join("m")), "--precision", precision]);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let back = converted.path().join("back");
        assert!(blockformer(&["convert", text(&converted.path().join("m")), text(&back)]).status.success());
        let exact = converted.path().join("exact");
        assert!(blockformer(&["convert", text(&case), text(&exact)]).status.success());
        let values = |directory: &Path| {
            let bytes = fs::read(directory.join("model.safetensors")).expect("weights");
            let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
            let view = tensors.tensor("token_decoder.vocabulary.output.weight").expect("the output projection");
            let float = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            view.data().chunks_exact(4).map(float).collect::<Vec<_>>()
        };
        let (rounded, exact) = (values(&back), values(&exact));
        assert_ne!(rounded, exact, "{precision} rounds nothing");
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= digits * b.abs() + 1e-6;
        assert!(rounded.iter().zip(&exact).all(close), "{precision}");
    }
}

#[test]
fn trainer_files_may_be_yaml_and_weights_in_shards() {
    let directory = copy_of("lookup_prefix_b4");
    let path = |name: &str| directory.path().join(name);
    // JSON is YAML; that the reader goes by the name is what matters, and real files have comments.
    let trainer = fs::read_to_string(path("trainer.json")).expect("read");
    fs::write(path("trainer.yaml"), format!("# a comment\n{trainer}")).expect("written");
    fs::remove_file(path("trainer.json")).expect("removed");
    let bytes = fs::read(path("model.safetensors")).expect("weights");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors").tensors();
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let mut map = serde_json::Map::new();
    for (shard, part) in [("a.safetensors", first), ("b.safetensors", second)] {
        let views = part.iter().map(|(name, view)| (name.clone(), view));
        fs::write(path(shard), safetensors::serialize(views, None).expect("serialized")).expect("written");
        map.extend(part.iter().map(|(name, _)| (name.clone(), shard.into())));
    }
    fs::remove_file(path("model.safetensors")).expect("removed");
    let write_index = |map: &serde_json::Map<String, serde_json::Value>| {
        let index = serde_json::json!({ "weight_map": map }).to_string();
        fs::write(path("model.safetensors.index.json"), index).expect("written");
    };
    write_index(&map);
    let verified = stdout(&blockformer(&["verify", text(directory.path())]));
    assert!(verified.contains("1 cases, 1 passed, 0 failed"), "{verified}");

    let convert = || refusal(&["convert", text(directory.path()), text(&path("out"))]);
    let name = first[0].0.clone();
    map.insert(name.clone(), "../a.safetensors".into());
    write_index(&map);
    assert!(convert().contains("is not a file's name"));
    map.insert(name, "b.safetensors".into());
    write_index(&map);
    assert!(convert().contains("which the index puts elsewhere"));
}

#[test]
fn a_model_is_never_converted_onto_another() {
    let directory = copy_of("lookup_prefix_b4");
    let message = refusal(&["convert", text(directory.path()), text(directory.path())]);
    assert!(message.contains("is there already: choose another directory"), "{message}");
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("../blockformer/model/tokenizer.json");
    let output = tempfile::tempdir().expect("a temporary directory");
    let (case, model) = (cases().join("lookup_prefix_b4"), output.path().join("model"));
    let message = refusal(&["convert", text(&case), text(&model), "--tokenizer", text(&tokenizer)]);
    assert!(message.contains("has 4096 tokens, but the model's vocabulary has 64"), "{message}");
    assert!(!model.exists(), "a refused conversion left files behind");

    assert!(blockformer(&["convert", text(&case), text(&model)]).status.success());
    fs::copy(&tokenizer, model.join("tokenizer.json")).expect("a copy");
    let message = refusal(&[&GENERATE[..], &["a", "--model", text(&model)]].concat());
    assert!(message.contains("has 4096 tokens, but the model's vocabulary has 64"), "{message}");
}

#[test]
fn hostile_configurations_are_refused() {
    let config = stdout(&blockformer(&["inspect"]));
    let config = config.split("parameters  ").next().expect("the JSON part").to_string();
    let parsed: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    for (pointer, value) in [
        ("/block_length", serde_json::json!(0)),
        ("/block_length", serde_json::json!(1u64 << 40)),
        ("/vocab_size", serde_json::json!(1u64 << 60)),
        ("/max_length", serde_json::json!(511)),
        ("/block_decoder/n_heads", serde_json::json!(0)),
        ("/block_decoder/n_layers", serde_json::json!(1_000_000_000_000u64)),
        ("/block_decoder/norm_eps", serde_json::json!(-1.0)),
        ("/block_decoder/rotary/base", serde_json::json!(0.0)),
        ("/token_decoder/expansion_ratio", serde_json::json!(1u64 << 63)),
        ("/embedder/d_embedding", serde_json::json!(3)),
        ("/pad_token_id", serde_json::json!(1_000_000)),
    ] {
        let mut spoiled = parsed.clone();
        *spoiled.pointer_mut(pointer).expect("the field") = value;
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("config.json"), spoiled.to_string()).expect("written");
        let message = refusal(&["inspect", text(directory.path())]);
        let field = pointer.rsplit('/').next().expect("a name");
        let named = message.contains(field) || (field == "d_embedding" && message.contains("concatenated embedding"));
        assert!(named || field == "base" && message.contains("rotary.base"), "{pointer}: {message}");
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
    assert!(shown.contains("(18916352 non-embedding)"), "{shown}");
    // 3 layers of 512 features in float32: 2 · 3 · 512 · 4 bytes a block.
    assert!(shown.contains("12288 bytes a block, 3072 bytes a token"), "{shown}");
    assert!(stdout(&blockformer(&["inspect", "--presets"])).contains("vanilla_410"));
    assert!(refusal(&["inspect", "nonsense"]).contains("neither a directory nor a preset"));
}
