//! `blockformer evaluate`, on the bundled model.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const TEXT: &str = "The people of the United States have no enemies abroad.\nCall me Ishmael, said the captain.\n";

fn evaluate(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blockformer"))
        .current_dir(directory)
        .arg("evaluate")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the command runs")
}

/// A directory with texts and questions.
fn workspace() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).expect("written");
    write("text.txt", TEXT);
    write("lambada.txt", "the united states of america\nthe whale is a whale\n");
    let piqa = "{\"goal\": \"sail\", \"sol1\": \"use a ship\", \"sol2\": \"use a spoon\"}\n";
    write("dev.jsonl", &piqa.repeat(2));
    write("dev-labels.lst", "0\n1\n");
    let choices = "[{\"text\": \"a fish\", \"label\": \"A\"}, {\"text\": \"a mammal\", \"label\": \"B\"}]";
    let arc = format!("{{\"question\": {{\"stem\": \"A whale is\", \"choices\": {choices}}}, \"answerKey\": \"B\"}}\n");
    write("arc.jsonl", &arc);
    directory
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn perplexities_and_positions_are_written_and_fit_together() {
    let directory = workspace();
    let path = directory.path();
    let more = ["--text", "text.txt", "--stride", "16", "--line-ends-are-words", "--output", "out"];
    let run = evaluate(path, &more);
    assert!(run.status.success(), "{}", stderr(&run));
    let json = fs::read(path.join("out/results.json")).expect("results");
    let text = &serde_json::from_slice::<serde_json::Value>(&json).expect("json")["text"];
    let number = |name: &str| text[name].as_f64().expect("a number");
    let (_, _, tokenizer) =
        blockformer::bundled::load(&blockformer::device("cpu").expect("a device")).expect("the bundled model");
    let n_tokens = tokenizer.encode(TEXT).expect("tokens").len();
    assert_eq!(number("n_tokens"), n_tokens as f64);
    assert_eq!((number("n_words"), number("n_bytes")), (16.0 + 2.0, TEXT.len() as f64));
    let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-9, "{a} and {b}");
    near(number("token_perplexity"), (number("nats") / n_tokens as f64).exp());
    near(number("word_perplexity"), (number("nats") / 18.0).exp());
    near(number("byte_perplexity"), (number("nats") / TEXT.len() as f64).exp());
    // A trained model is far better than guessing among its tokens.
    assert!(number("loss") < (tokenizer.vocab_size() as f64).ln() - 1.0, "{text}");
    for name in ["loss-by-block-position", "loss-by-context"] {
        let csv = fs::read_to_string(path.join(format!("out/{name}.csv"))).expect("a table");
        let counts = csv.lines().skip(1).map(|row| row.split(',').nth(1).expect("a count"));
        assert_eq!(counts.map(|count| count.parse::<usize>().expect("a number")).sum::<usize>(), n_tokens);
        assert!(fs::read_to_string(path.join(format!("out/{name}.svg"))).expect("a picture").contains("<svg"));
    }
}

#[test]
fn questions_are_asked() {
    let directory = workspace();
    let tasks = ["--lambada", "lambada.txt", "--piqa", "dev.jsonl", "--arc-easy", "arc.jsonl"];
    let run = evaluate(directory.path(), &tasks);
    assert!(run.status.success(), "{}", stderr(&run));
    let out = String::from_utf8_lossy(&run.stdout).into_owned();
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("lambada: 2 questions, acc ") && lines[0].contains("perplexity"), "{out}");
    // The same question with either answer: one is right whatever the model thinks.
    assert!(lines[1].starts_with("piqa: 2 questions, acc 0.5000 ± 0.5000, acc_norm 0.5000"), "{out}");
    assert!(lines[2].starts_with("arc_easy: 1 questions, acc "), "{out}");
    let one = evaluate(directory.path(), &["--piqa", "dev.jsonl", "--limit", "1"]);
    assert!(String::from_utf8_lossy(&one.stdout).starts_with("piqa: 1 questions"));
}

#[test]
fn what_cannot_be_evaluated_is_named() {
    let directory = workspace();
    let refused = |arguments: &[&str]| {
        let run = evaluate(directory.path(), arguments);
        assert!(!run.status.success() && run.stdout.is_empty(), "{arguments:?}");
        stderr(&run)
    };
    assert!(refused(&[]).contains("nothing to evaluate"));
    assert!(refused(&["--text", "no-such.txt"]).contains("no-such.txt"));
    assert!(refused(&["--text", "text.txt", "--stride", "6"]).contains("stride is 6, expected a multiple of 4"));
    assert!(refused(&["--piqa", "arc.jsonl"]).contains("arc-labels.lst"));
    assert!(refused(&["--arc-easy", "dev.jsonl"]).contains("dev.jsonl line 1: missing field `question`"));
}
