//! Commands that put devices to the test, on the CPU.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn blockformer(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blockformer")).args(arguments).output().expect("the command runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn case(name: &str) -> String {
    let cases: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference-cases");
    cases.join(name).to_string_lossy().into_owned()
}

#[test]
fn self_check_says_every_check_and_passes_on_the_cpu() {
    let output = blockformer(&["self-check"]);
    let said = stdout(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.lines().filter(|line| line.ends_with("pass")).count() >= 20, "{said}");
    assert!(said.contains("50,304 words") && said.contains("checks of the device passed"), "{said}");
}

#[test]
fn verify_allows_more_in_shorter_types_and_says_so() {
    for (precision, allowed) in [("f32", "1e-3"), ("bf16", "5e-2"), ("f16", "1e-2")] {
        let output = blockformer(&["verify", &case(""), "--precision", precision]);
        let said = stdout(&output);
        assert!(output.status.success(), "{said}{}", stderr(&output));
        assert!(said.ends_with("22 cases, 22 passed, 0 failed\n"), "{said}");
        let logits = said.lines().find(|line| line.contains("full logits")).expect("a line of logits");
        assert!(logits.contains(allowed), "{logits}");
    }
}

const SECTIONS: &str = "device,verify,limits,throughput,training";
const PRESETS: &str = "block_main_b4_5,vanilla_31";

/// The rows of a small report on the CPU.
fn report(path: &Path, sections: &str, presets: &str, more: &[&str]) -> (Output, Vec<Value>) {
    let (out, case) = (path.to_string_lossy(), case("vanilla_llama_grouped_query"));
    let options = [
        ("--out", out.as_ref()),
        ("--sections", sections),
        ("--cases", &case),
        ("--copy-size", "8"),
        ("--product-size", "64"),
        ("--presets", presets),
        ("--scale", "128"),
        ("--repeats", "1"),
        ("--memory", "16"),
        ("--most-sequences", "2"),
        ("--training-presets", "block_main_b4_5"),
        ("--training-steps", "2"),
        ("--training-batch", "1"),
        ("--training-length", "32"),
    ];
    let options: Vec<&str> = options.into_iter().flat_map(|(option, value)| [option, value]).collect();
    let output = blockformer(&[&["gpu-report"], &options[..], more].concat());
    let json = std::fs::read(path).ok().map(|text| serde_json::from_slice::<Value>(&text).expect("JSON"));
    let rows = json.and_then(|json| json["rows"].as_array().cloned()).unwrap_or_default();
    (output, rows)
}

#[test]
fn a_report_of_the_cpu_has_a_row_for_everything_and_goes_on_where_it_ended() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report.json");
    let (output, rows) = report(&path, SECTIONS, PRESETS, &["--budget-seconds", "0"]);
    assert!(output.status.code() == Some(4) && rows.is_empty(), "{}", stderr(&output));
    assert!(stderr(&output).contains("24 rows were not begun"), "{}", stderr(&output));

    let (output, rows) = report(&path, SECTIONS, PRESETS, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    // The device; two verifications; a copy and two products; two models in two types, two workloads, two batches; training.
    assert_eq!(rows.len(), 1 + 2 + 3 + 16 + 2, "{}", stdout(&output));
    assert_eq!(stdout(&output).lines().count(), rows.len());
    for row in &rows {
        assert_eq!(row["error"], Value::Null, "{row}");
    }
    let of = |section: &str| rows.iter().filter(move |row| row["section"] == section).collect::<Vec<_>>();
    for row in of("throughput") {
        let result = &row["result"];
        assert!(result["measured"]["tokens_per_second"]["median"].as_f64() > Some(0.0), "{row}");
        assert!(result["shares"]["prefill"].as_f64() > Some(0.0), "{row}");
        let largest = row["item"].as_str().unwrap().ends_with("largest batch");
        assert_eq!(result["measured"]["batch"], if largest { 2 } else { 1 }, "{row}");
        let half = row["item"].as_str().unwrap().contains("bf16");
        assert_eq!(result["measured"]["precision"], if half { "plain/bf16" } else { "plain" });
    }
    let losses = of("training");
    let first = losses[0]["result"]["losses"][0]["loss"].as_f64().unwrap();
    assert!((first - 50_304f64.ln()).abs() < 0.5, "the first loss is {first}");

    // Rows of other settings are not mixed with these.
    let (output, _) = report(&path, SECTIONS, PRESETS, &["--resume", "--device", "flex"]);
    assert!(!output.status.success(), "{}", stdout(&output));
    assert!(stderr(&output).contains("was made with device"), "{}", stderr(&output));

    // Nothing is left to do; the file stays as it was.
    let before = std::fs::read(&path).unwrap();
    let (output, _) = report(&path, SECTIONS, PRESETS, &["--resume"]);
    assert!(output.status.success());
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let (output, _) = report(&path, SECTIONS, PRESETS, &[]);
    assert!(!output.status.success() && stderr(&output).contains("--resume"), "{}", stderr(&output));
}

#[test]
fn what_cannot_be_measured_is_a_row_and_not_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report.json");
    let (output, rows) = report(&path, "throughput,limits", "no_such_model", &[]);
    assert!(!output.status.success());
    let failed: Vec<_> = rows.iter().filter(|row| row["error"] != Value::Null).collect();
    assert_eq!(failed.len(), 8, "{}", stderr(&output));
    assert!(failed[0]["error"].as_str().unwrap().contains("no_such_model"), "{}", failed[0]);
    assert!(rows.iter().any(|row| row["section"] == "limits" && row["error"] == Value::Null));
}
