//! `blockformer tokenize`, and training on what it writes.

mod small_run;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use blockformer::data::{Tokenizer, character_level};
use small_run::TEXT;

/// A directory with `text.jsonl`, `tokenizer.json` and `config.json`, a model of a few thousand parameters.
fn workspace() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let line = |n: usize| serde_json::json!({ "body": TEXT.repeat(n % 7) }).to_string() + "\n";
    fs::write(directory.path().join("text.jsonl"), (0..60).map(line).collect::<String>()).expect("written");
    character_level(TEXT).expect("a tokenizer").save(directory.path().join("tokenizer.json")).expect("written");
    fs::write(directory.path().join("config.json"), small_run::config().to_string()).expect("written");
    directory
}

fn blockformer(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockformer"));
    command.current_dir(directory).args(arguments).stdin(Stdio::null());
    command
}

fn tokenize(directory: &Path, more: &[&str]) -> Output {
    let arguments = ["tokenize", "--tokenizer", "tokenizer.json", "--text-field", "body"];
    blockformer(directory, &[&arguments[..], more].concat()).output().expect("the command runs")
}

fn train(directory: &Path, output: &str, more: &[&str]) -> Output {
    let arguments = ["train", "--config", "config.json", "--sample-length", "32", "--batch-size", "4", "--steps", "4"];
    let rest = ["--warmup-steps", "2", "--validation-share", "0.2", "--output", output];
    blockformer(directory, &[&arguments[..], &rest, more].concat()).output().expect("the command runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("readable").file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().expect("utf-8")).collect();
    names.sort();
    names
}

#[test]
fn training_on_a_dataset_is_training_on_its_text() {
    let directory = workspace();
    let path = directory.path();
    let written = tokenize(path, &["text.jsonl", "--output", "data/corpus"]);
    assert!(written.status.success(), "{}", stderr(&written));
    assert_eq!(names(&path.join("data")), ["corpus.bin", "corpus.blockformer.json", "corpus.idx"]);
    let renamed = fs::read_to_string(path.join("text.jsonl")).expect("text").replace("\"body\"", "\"text\"");
    fs::write(path.join("same.jsonl"), renamed).expect("written");
    for split in ["documents", "tail"] {
        let weights = |output: &str, data: &str| {
            let more = ["--tokenizer", "tokenizer.json", "--data", data, "--validation-split", split];
            let output = format!("{output}-{split}");
            let trained = train(path, &output, &more);
            assert!(trained.status.success(), "{}", stderr(&trained));
            let evaluated = stderr(&trained).lines().find(|line| line.starts_with("validation loss")).map(String::from);
            let bytes = fs::read(path.join(output).join("model.safetensors")).expect("weights");
            let weights = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
            let weights = weights.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec()));
            (evaluated.expect("an evaluation"), weights.collect::<std::collections::BTreeMap<_, _>>())
        };
        assert!(weights("from-text", "same.jsonl") == weights("from-dataset", "data/corpus"), "{split} differs");
    }
}

#[test]
fn datasets_that_do_not_fit_are_named() {
    let directory = workspace();
    let path = directory.path();
    assert!(tokenize(path, &["text.jsonl", "--output", "corpus"]).status.success());
    let refused = |more: &[&str]| {
        let run = train(path, "refused", more);
        assert!(!run.status.success() && !path.join("refused").exists(), "{more:?}");
        assert!(!stderr(&run).contains("panicked"), "{}", stderr(&run));
        stderr(&run)
    };
    character_level(&TEXT.replace('x', "q")).expect("a tokenizer").save(path.join("other.json")).expect("written");
    assert!(refused(&["--tokenizer", "other.json", "--data", "corpus"]).contains("another tokenizer"));
    assert!(refused(&["--tokenizer", "characters", "--data", "corpus"]).contains("tokenized already"));
    let mixed = refused(&["--tokenizer", "tokenizer.json", "--data", "text.jsonl", "corpus"]);
    assert!(mixed.contains("corpus is a dataset, others are text"), "{mixed}");
    // A foreign dataset says nothing of its tokenizer.
    fs::remove_file(path.join("corpus.blockformer.json")).expect("removed");
    let mut tokens = fs::read(path.join("corpus.bin")).expect("tokens");
    tokens[0] = 200;
    fs::write(path.join("corpus.bin"), &tokens).expect("written");
    let large = refused(&["--tokenizer", "tokenizer.json", "--data", "corpus"]);
    assert!(large.contains("expected an id below vocab_size 32, got 200"), "{large}");
    fs::write(path.join("corpus.bin"), &tokens[..tokens.len() - 2]).expect("written");
    let short = refused(&["--tokenizer", "tokenizer.json", "--data", "corpus.idx"]);
    assert!(short.contains(&format!("corpus.bin: expected {} bytes", tokens.len())), "{short}");
    fs::remove_file(path.join("corpus.bin")).expect("removed");
    assert!(refused(&["--tokenizer", "tokenizer.json", "--data", "corpus"]).contains("corpus.bin"));
}

#[test]
fn text_that_cannot_be_tokenized_is_named_and_leaves_nothing() {
    let directory = workspace();
    let before = names(directory.path());
    let refused = |more: &[&str]| {
        let run = tokenize(directory.path(), &[&["--output", "corpus"], more].concat());
        assert!(!run.status.success(), "{more:?} succeeded");
        assert_eq!(names(directory.path()), before);
        stderr(&run)
    };
    assert!(refused(&["no-such.jsonl"]).contains("no-such.jsonl"));
    fs::write(directory.path().join("text.jsonl"), "{\"body\": \"one\"}\n{\"text\": \"two\"}\n").expect("written");
    assert!(refused(&["text.jsonl"]).contains("text.jsonl line 2: missing field \"body\""));
    fs::write(directory.path().join("text.jsonl"), "{\"body\": \"one \u{1F980}\"}").expect("written");
    assert!(refused(&["text.jsonl"]).contains("is not in the tokenizer's vocabulary"));
}

/// Runs under a limit of the file size, which fails like a full disk: in the middle of writing.
#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let directory = workspace();
    fs::write(directory.path().join("text.jsonl"), serde_json::json!({ "body": TEXT.repeat(9000) }).to_string())
        .expect("written");
    let before = names(directory.path());
    let limited = Command::new("sh")
        .current_dir(directory.path())
        .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_blockformer")])
        .args(["tokenize", "text.jsonl", "--text-field", "body", "--tokenizer", "tokenizer.json", "--output", "corpus"])
        .output()
        .expect("sh runs");
    assert_eq!(limited.status.code(), Some(1), "{}", stderr(&limited));
    assert!(stderr(&limited).contains("cannot write corpus.bin"), "{}", stderr(&limited));
    assert_eq!(names(directory.path()), before);
}

/// Reads from a named pipe, so that it is in the middle of its work for as long as the test likes.
#[cfg(unix)]
#[test]
fn ctrl_c_and_a_kill_leave_no_dataset() {
    use std::io::Write;
    for (signal, code) in [("-INT", Some(130)), ("-KILL", None)] {
        let directory = workspace();
        let path = directory.path();
        assert!(Command::new("mkfifo").arg(path.join("pipe.jsonl")).status().expect("mkfifo runs").success());
        let arguments = ["tokenize", "pipe.jsonl", "--tokenizer", "tokenizer.json", "--output", "corpus"];
        let mut child = blockformer(path, &arguments).stderr(Stdio::piped()).spawn().expect("the command runs");
        let mut pipe = fs::OpenOptions::new().write(true).open(path.join("pipe.jsonl")).expect("a reader");
        let mut sent = false;
        let status = loop {
            // When nobody reads any more, the process is about to end.
            let _ = writeln!(pipe, "{}", serde_json::json!({ "text": TEXT }));
            if !sent && names(path).iter().any(|name| name.contains("corpus.bin")) {
                let pid = child.id().to_string();
                assert!(Command::new("kill").args([signal, &pid]).status().expect("kill runs").success());
                sent = true;
            }
            if let Some(status) = child.try_wait().expect("a status") {
                break status;
            }
        };
        assert!(sent);
        assert_eq!(status.code(), code);
        let left = names(path);
        assert!(!left.iter().any(|name| name.starts_with("corpus")), "{left:?}");
        if signal == "-INT" {
            assert_eq!(left, ["config.json", "pipe.jsonl", "text.jsonl", "tokenizer.json"]);
        }
    }
}

#[test]
fn a_dataset_names_its_tokenizer() {
    let directory = workspace();
    assert!(tokenize(directory.path(), &["text.jsonl", "--output", "corpus"]).status.success());
    let card = fs::read(directory.path().join("corpus.blockformer.json")).expect("a card");
    let card: serde_json::Value = serde_json::from_slice(&card).expect("json");
    let tokenizer = Tokenizer::from_file(directory.path().join("tokenizer.json")).expect("a tokenizer");
    assert_eq!(card["tokenizer"], tokenizer.digest().expect("a digest"));
}
