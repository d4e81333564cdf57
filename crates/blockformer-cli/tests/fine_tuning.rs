//! `blockformer train --lora-rank` and `--pairs`, and `convert --adapter`.

mod small_run;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use blockformer::data::Tokenizer;
use blockformer::model::AnyModel;
use blockformer::train::lora;
use burn::tensor::{Device, Int, Tensor, TensorData};
use small_run::{assert_same_weights, config, stderr, train, workspace};

fn blockformer(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockformer"));
    command.current_dir(directory).args(arguments).stdin(Stdio::null()).output().expect("the command runs")
}

/// A workspace with a model, `base`, that has seen the text for some steps.
fn workspace_with_base() -> tempfile::TempDir {
    let directory = workspace();
    // Without padding, so that a test can lay documents end to end itself.
    let mut config = config();
    config["random_pad_first_block"] = false.into();
    config["pad_to_block_boundary"] = false.into();
    fs::write(directory.path().join("config.json"), config.to_string()).expect("written");
    let base = train(directory.path(), "base", &["--steps", "20"]);
    assert!(base.status.success(), "{}", stderr(&base));
    directory
}

/// Goes on from `base`; `more` says on what.
fn fine_tune(directory: &Path, output: &str, more: &[&str]) -> Output {
    let all = ["train", "--init", "base", "--tokenizer", "base/tokenizer.json", "--output", output];
    let small = ["--sample-length", "32", "--batch-size", "4", "--warmup-steps", "2", "--learning-rate", "0.01"];
    blockformer(directory, &[&all[..], &small[..], more].concat())
}

const TEXT: [&str; 4] = ["--data", "text.txt", "--validation-split", "tail"];

/// The tensors of a file: shape and numbers.
fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(path).expect("a file of tensors");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let numbers = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    file.tensors().into_iter().map(|(name, view)| (name, (view.shape().to_vec(), numbers(view.data())))).collect()
}

/// Column `name` of a run's metrics.
fn course(directory: &Path, run: &str, name: &str) -> Vec<f64> {
    let lines = fs::read_to_string(directory.join(run).join("metrics.jsonl")).expect("metrics");
    let cell = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("a row")[name].as_f64();
    lines.lines().filter_map(cell).collect()
}

#[test]
fn adapters_alone_are_trained_and_saved_and_the_model_written_is_base_plus_correction() {
    let directory = workspace_with_base();
    let path = |file: &str| directory.path().join(file);
    let base_bytes = fs::read(path("base/model.safetensors")).expect("weights");
    let tuned = fine_tune(directory.path(), "tuned", &[&TEXT[..], &["--lora-rank", "2", "--steps", "8"]].concat());
    assert!(tuned.status.success(), "{}", stderr(&tuned));
    assert!(fs::read(path("base/model.safetensors")).expect("weights") == base_bytes, "the base changed");

    let (base, adapter) = (tensors(&path("base/model.safetensors")), tensors(&path("tuned/adapter.safetensors")));
    let merged = tensors(&path("tuned/model.safetensors"));
    assert!(adapter.keys().all(|name| name.ends_with(".lora.a") || name.ends_with(".lora.b")), "{adapter:?}");
    assert_eq!(merged.keys().collect::<Vec<_>>(), base.keys().collect::<Vec<_>>());
    let mut corrected = 0;
    for (name, (shape, numbers)) in &merged {
        let Some((a_shape, a)) = adapter.get(&format!("{name}.lora.a")) else {
            assert!(*numbers == base[name].1, "{name} has no adapter and changed");
            continue;
        };
        let (_, b) = &adapter[&format!("{name}.lora.b")];
        // Weights lie as [out, in], A as [in, 2], B as [2, out]; alpha is 16 unless said otherwise.
        let (n_out, n_in) = (shape[0], shape[1]);
        assert_eq!((a_shape.as_slice(), b.len()), ([n_in, 2].as_slice(), 2 * n_out), "{name}");
        let mut largest: f64 = 0.0;
        for (index, got) in numbers.iter().enumerate() {
            let (row, column) = (index / n_in, index % n_in);
            let product: f64 = (0..2).map(|k| f64::from(a[column * 2 + k]) * f64::from(b[k * n_out + row])).sum();
            let expected = f64::from(base[name].1[index]) + 16.0 / 2.0 * product;
            assert!((f64::from(*got) - expected).abs() < 1e-5, "{name}[{row}, {column}] is {got}, not {expected}");
            largest = largest.max((16.0 / 2.0 * product).abs());
        }
        assert!(largest > 1e-3, "the adapter of {name} learned nothing");
        corrected += 1;
    }
    // Queries, keys and values, and the output; gate, up and down: in both decoders.
    assert_eq!((corrected, adapter.len()), (adapter.len() / 2, 2 * corrected));
    assert!(corrected >= 8 && corrected < base.len(), "{corrected} of {}", base.len());

    let convert = ["convert", "base", "merged", "--adapter", "tuned/adapter.safetensors"];
    let converted = blockformer(directory.path(), &convert);
    assert!(converted.status.success(), "{}", stderr(&converted));
    assert_same_weights(directory.path(), "tuned", "merged");
}

#[test]
fn a_merged_model_has_the_logits_of_base_and_adapter() {
    let directory = workspace_with_base();
    let tuned = fine_tune(directory.path(), "tuned", &[&TEXT[..], &["--lora-rank", "3", "--steps", "8"]].concat());
    assert!(tuned.status.success(), "{}", stderr(&tuned));
    let load = |run: &str| AnyModel::load(&directory.path().join(run), &Device::flex()).expect("a model").1;
    let (adapted, settings) =
        lora::load(load("base"), &directory.path().join("tuned/adapter.safetensors")).expect("adapters");
    assert_eq!((settings.rank, settings.alpha), (3, 16.0));
    let ids: Vec<u32> = (0..32).map(|i| 1 + (i * 5) % 12).collect();
    let difference = |a: AnyModel, b: AnyModel| {
        let (a, b) = (log_probabilities(&a, &ids), log_probabilities(&b, &ids));
        a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    assert!(difference(adapted.clone(), load("tuned")) < 1e-5);
    assert!(difference(adapted, load("base")) > 1e-2, "the adapters change nothing");
}

#[test]
fn a_stopped_run_with_adapters_resumes_exactly_and_only_with_the_same_adapters() {
    let directory = workspace_with_base();
    let settings = [&TEXT[..], &["--lora-rank", "2", "--steps", "12", "--save-every", "4"]].concat();
    assert!(fine_tune(directory.path(), "straight", &settings).status.success());
    let stopped = fine_tune(directory.path(), "stopped", &[&settings[..], &["--stop-at", "7"]].concat());
    assert!(stopped.status.success(), "{}", stderr(&stopped));
    let other = [&TEXT[..], &["--lora-rank", "3", "--steps", "12", "--resume"]].concat();
    let refused = fine_tune(directory.path(), "stopped", &other);
    assert!(!refused.status.success() && stderr(&refused).contains("another adapters"), "{}", stderr(&refused));
    let resumed = fine_tune(directory.path(), "stopped", &[&settings[..], &["--resume"]].concat());
    assert!(resumed.status.success() && stderr(&resumed).contains("at step 7"), "{}", stderr(&resumed));
    assert_same_weights(directory.path(), "straight", "stopped");
    let adapter = |run: &str| tensors(&directory.path().join(run).join("adapter.safetensors"));
    assert!(adapter("straight") == adapter("stopped"));
    for column in ["loss", "gradient_norm", "tokens"] {
        let [straight, stopped] = ["straight", "stopped"].map(|run| course(directory.path(), run, column));
        assert_eq!(straight, stopped, "{column}");
    }
}

/// Prompts and answers that, each with an end of text, fill samples of 32 tokens to the last one.
const PAIRS: [(&str, &str); 6] = [
    ("one two ", "three"),              // 8 + 5 + 1 = 14
    ("four five six ", "seve"),         // 14 + 4 + 1 = 19
    ("ten, ", "one two three f"),       // 5 + 15 + 1 = 21
    ("", "seven"),                      // 0 + 5 + 1 = 6
    ("two three four ", "five six se"), // 15 + 11 + 1 = 27
    ("nine ", "ten"),                   // 5 + 3 + 1 = 9
];

fn write_pairs(path: &Path) {
    let line = |(prompt, answer): &(&str, &str)| serde_json::json!({"prompt": prompt, "answer": answer}).to_string();
    fs::write(path, PAIRS.iter().map(line).collect::<Vec<_>>().join("\n")).expect("written");
}

/// The log-probability of every id that a block model predicts, which is all but the first block's; in double precision
/// from the logits.
fn log_probabilities(model: &AnyModel, ids: &[u32]) -> Vec<f64> {
    let AnyModel::Block(model) = model else { panic!("a block model") };
    let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let (n, length) = (ids.len(), model.layout().block_length);
    let tensor = Tensor::<1, Int>::from_data(TensorData::new(ids.clone(), [n]), &Device::flex());
    let logits = model.logits(model.forward(tensor.reshape([1, n / length, length]), None).hidden);
    let vocabulary = logits.dims()[2];
    let rows: Vec<f64> = logits.into_data().iter::<f64>().collect();
    let of = |(row, id): (&[f64], &i32)| row[*id as usize] - row.iter().map(|logit| logit.exp()).sum::<f64>().ln();
    rows.chunks(vocabulary).zip(&ids[length..]).map(of).collect()
}

#[test]
fn the_loss_on_pairs_is_that_of_answers_and_ends_of_text_alone() {
    let directory = workspace_with_base();
    write_pairs(&directory.path().join("pairs.jsonl"));
    // Laid end to end by hand: ids, and whether a token is learned.
    let tokenizer = Tokenizer::from_file(directory.path().join("base/tokenizer.json")).expect("a tokenizer");
    let end = tokenizer.eos_token_id().expect("an end of text");
    let (mut ids, mut learned) = (Vec::new(), Vec::new());
    for (prompt, answer) in PAIRS {
        for (part, counts) in [(prompt, false), (answer, true)] {
            let one = |c: char| tokenizer.token_to_id(&c.to_string()).expect("a character of the text");
            ids.extend(part.chars().map(one));
            learned.resize(ids.len(), counts);
        }
        ids.push(end);
        learned.push(true);
    }
    assert_eq!(ids.len(), 96, "three whole samples");
    let model = AnyModel::load(&directory.path().join("base"), &Device::flex()).expect("the base").1;
    let (mut sum, mut n) = (0.0, 0);
    for (ids, learned) in ids.chunks(32).zip(learned.chunks(32)) {
        for (log_probability, counts) in log_probabilities(&model, ids).into_iter().zip(&learned[4..]) {
            sum -= if *counts { log_probability } else { 0.0 };
            n += usize::from(*counts);
        }
    }

    // One step over all three samples, in whatever order.
    let pairs = ["--pairs", "pairs.jsonl", "--validation-data", "pairs.jsonl", "--batch-size", "3"];
    let run = blockformer(
        directory.path(),
        &[
            &["train", "--init", "base", "--tokenizer", "base/tokenizer.json", "--output", "tuned"][..],
            &["--sample-length", "32", "--warmup-steps", "2", "--learning-rate", "0.01", "--steps", "40"],
            &["--evaluate-every", "1"],
            &pairs,
        ]
        .concat(),
    );
    assert!(run.status.success(), "{}", stderr(&run));
    assert_eq!(course(directory.path(), "tuned", "tokens")[0], n as f64);
    let losses = course(directory.path(), "tuned", "loss");
    let expected = sum / f64::from(n as u32);
    assert!((losses[0] - expected).abs() < 1e-5 * expected, "{} is not {expected}", losses[0]);
    // Evaluation counts the same tokens, and answers are learned.
    assert!(stderr(&run).contains(&format!("on {n} tokens")), "{}", stderr(&run));
    let validation = course(directory.path(), "tuned", "validation_loss");
    assert!(validation[39] < 0.5 * expected && losses[39] < 0.5 * expected, "{expected}, then {validation:?}");
}

#[test]
fn pairs_train_adapters_too() {
    let directory = workspace_with_base();
    write_pairs(&directory.path().join("pairs.jsonl"));
    let pairs = ["--pairs", "pairs.jsonl", "--validation-data", "pairs.jsonl", "--lora-rank", "4", "--steps", "30"];
    let run = fine_tune(directory.path(), "tuned", &pairs);
    assert!(run.status.success(), "{}", stderr(&run));
    let losses = course(directory.path(), "tuned", "loss");
    assert!(losses[29] < 0.8 * losses[0], "{losses:?}");
    assert!(directory.path().join("tuned/adapter.safetensors").exists());
}

/// Standard error of a run that must fail, without a panic and without writing anything.
fn refused(directory: &Path, more: &[&str]) -> String {
    let run = fine_tune(directory, "refused", more);
    let message = stderr(&run);
    assert!(!run.status.success(), "{more:?} succeeded: {message}");
    assert!(!message.contains("panicked"), "{message}");
    assert!(!directory.join("refused").exists(), "{more:?} left files behind");
    message
}

#[test]
fn pairs_that_cannot_be_learned_are_named_by_file_and_line() {
    let directory = workspace_with_base();
    let good = r#"{"prompt": "one ", "answer": "two"}"#;
    for (line, expected) in [
        (r#"{"prompt": "one "}"#, "expected a json object with strings \"prompt\" and \"answer\""),
        (r#"{"prompt": "one ", "answer": 2}"#, "expected a json object with strings"),
        (r#"{"prompt": "one ", "answer": ""}"#, "the answer is empty"),
        (r#"{"prompt": "one ", "answer": "tw"#, "expected a json object"),
        ("one two three", "expected a json object"),
    ] {
        fs::write(directory.path().join("pairs.jsonl"), format!("{good}\n\n{line}\n{good}\n")).expect("written");
        let message = refused(directory.path(), &["--pairs", "pairs.jsonl"]);
        assert!(message.contains("pairs.jsonl line 3") && message.contains(expected), "{line}: {message}");
    }
    assert!(refused(directory.path(), &["--pairs", "none.jsonl"]).contains("cannot read none.jsonl"));
    fs::write(directory.path().join("pairs.jsonl"), "\n\n").expect("written");
    assert!(refused(directory.path(), &["--pairs", "pairs.jsonl"]).contains("no documents in"));
    fs::write(directory.path().join("pairs.jsonl"), good).expect("written");
    let short = refused(directory.path(), &["--pairs", "pairs.jsonl", "--validation-data", "pairs.jsonl"]);
    assert!(short.contains("32") && short.contains("token"), "pairs shorter than a sample: {short}");
    let both = refused(directory.path(), &["--pairs", "pairs.jsonl", "--data", "text.txt"]);
    assert!(both.contains("cannot be used with"), "{both}");
    let character = r#"{"prompt": "one Z", "answer": "two"}"#;
    fs::write(directory.path().join("pairs.jsonl"), character).expect("written");
    assert!(refused(directory.path(), &["--pairs", "pairs.jsonl"]).contains("character 'Z' at byte 4"));
}

#[test]
fn adapters_that_cannot_be_are_named() {
    let directory = workspace_with_base();
    let refused = |more: &[&str]| refused(directory.path(), &[&TEXT[..], more].concat());
    assert!(refused(&["--lora-rank", "0"]).contains("LoRA rank is 0, expected at least 1"));
    assert!(refused(&["--lora-rank", "2", "--lora-alpha", "0"]).contains("LoRA alpha is 0"));
    assert!(refused(&["--lora-rank", "2", "--lora-dropout", "1"]).contains("LoRA dropout is 1"));
    assert!(refused(&["--lora-rank", "2", "--lora-targets", "("]).contains("is not a regular expression"));
    assert!(refused(&["--lora-rank", "2", "--lora-targets", "experts"]).contains("name no linear map of the model"));
    assert!(refused(&["--lora-alpha", "4"]).contains("--lora-rank"));
    let scratch = train(directory.path(), "scratch", &["--lora-rank", "2"]);
    assert!(!scratch.status.success() && stderr(&scratch).contains("--init"), "{}", stderr(&scratch));
}

#[test]
fn adapters_of_another_model_are_not_merged() {
    let directory = workspace_with_base();
    let path = |file: &str| directory.path().join(file);
    let tuned = fine_tune(directory.path(), "tuned", &[&TEXT[..], &["--lora-rank", "2", "--steps", "2"]].concat());
    assert!(tuned.status.success(), "{}", stderr(&tuned));
    let mut narrow = config();
    narrow["block_decoder"]["d_ff"] = 48.into();
    fs::write(path("config.json"), narrow.to_string()).expect("written");
    assert!(train(directory.path(), "narrow", &["--steps", "1"]).status.success());
    let merge = |model: &str, adapter: &str| {
        let run = blockformer(directory.path(), &["convert", model, "merged", "--adapter", adapter]);
        let message = stderr(&run);
        assert!(!run.status.success() && !message.contains("panicked"), "{message}");
        assert!(!path("merged").exists(), "files were left behind");
        message
    };
    let message = merge("narrow", "tuned/adapter.safetensors");
    assert!(message.contains("tuned/adapter.safetensors does not belong to the model"), "{message}");
    assert!(message.contains("feed_forward") && message.contains("48"), "{message}");
    assert!(merge("base", "base/model.safetensors").contains("base/model.safetensors holds no adapters"));
    assert!(merge("base", "none.safetensors").contains("cannot read none.safetensors"));
    let whole = fs::read(path("tuned/adapter.safetensors")).expect("adapters");
    for length in [0, 7, whole.len() / 2, whole.len() - 1] {
        fs::write(path("cut.safetensors"), &whole[..length]).expect("written");
        assert!(merge("base", "cut.safetensors").contains("cut.safetensors holds no adapters"), "{length}");
    }
}
