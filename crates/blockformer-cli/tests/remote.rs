//! Training on workers: processes on the loopback that stand in for other machines.

mod small_run;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use small_run::{assert_same_weights, stderr, workspace};

/// `blockformer worker`, ended when dropped.
struct Worker {
    process: Child,
    /// What `--device` calls it.
    device: String,
}

impl Worker {
    fn start(token: Option<&str>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockformer"));
        command.args(["worker", "--listen", "127.0.0.1:0"]).stdin(Stdio::null()).stdout(Stdio::piped());
        command.env("RUST_LOG", "off").env_remove(TOKEN);
        if let Some(token) = token {
            command.env(TOKEN, token);
        }
        let mut process = command.spawn().expect("the command runs");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("standard output")).read_line(&mut line).expect("its address");
        let device = line.trim().strip_prefix("cpu is served as ").expect("its address").to_string();
        assert!(device.starts_with("remote:ws://127.0.0.1:"), "{device}");
        Self { process, device }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have been ended by the test already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const TOKEN: &str = "BLOCKFORMER_WORKER_TOKEN";
const SETTINGS: [&str; 6] = ["--steps", "15", "--save-every", "5", "--evaluate-every", "5"];

/// The command that trains on Burn's operations alone, which are what workers compute with: the same bits everywhere.
fn command(directory: &Path, output: &str, more: &[&str]) -> Command {
    let mut command = small_run::command(directory, output, more);
    command.env("BLOCKFORMER_TENSOR_KERNELS", "off");
    command
}

fn train(directory: &Path, output: &str, more: &[&str]) -> Output {
    command(directory, output, more).output().expect("the command runs")
}

/// Column `name` of a run's metrics.
fn course(directory: &Path, run: &str, name: &str) -> Vec<f64> {
    let lines = fs::read_to_string(directory.join(run).join("metrics.jsonl")).expect("metrics");
    let cell = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("a row")[name].as_f64();
    lines.lines().filter_map(cell).collect()
}

fn run_on(directory: &Path, output: &str, devices: &str) {
    let run = train(directory, output, &[&SETTINGS[..], &["--device", devices]].concat());
    assert!(run.status.success(), "{devices}: {}", stderr(&run));
}

#[test]
fn the_same_global_batch_has_the_same_loss_curve_here_on_one_worker_and_on_two() {
    let directory = workspace();
    let (first, second) = (Worker::start(None), Worker::start(None));
    run_on(directory.path(), "here", "cpu");
    run_on(directory.path(), "here-twice", "cpu,cpu");
    run_on(directory.path(), "one", &first.device);
    run_on(directory.path(), "two", &format!("{},{}", first.device, second.device));
    run_on(directory.path(), "here-and-one", &format!("cpu,{}", second.device));

    let columns = ["loss", "gradient_norm", "validation_loss", "tokens"];
    // The same division of the batch, the same operations in the same order: the same bits, wherever they are done.
    for (a, b) in [("here", "one"), ("here-twice", "two"), ("here-twice", "here-and-one")] {
        for column in columns {
            assert_eq!(course(directory.path(), a, column), course(directory.path(), b, column), "{column}: {a}, {b}");
        }
        assert_same_weights(directory.path(), a, b);
    }
    // Gradients of halves of a batch are added in another order: the same up to rounding.
    for column in columns {
        let [one, two] = ["one", "two"].map(|run| course(directory.path(), run, column));
        assert_eq!(one.len(), if column == "validation_loss" { 3 } else { 15 });
        for (one, two) in one.iter().zip(&two) {
            assert!((one - two).abs() < 1e-4 * one, "{column}: {one} and {two}");
        }
    }
    let losses = course(directory.path(), "two", "loss");
    assert!(losses[14] < 0.9 * losses[0], "{losses:?}");
}

/// Begins a run that would never end, and waits for its first checkpoint.
fn begin(directory: &Path, output: &str, devices: &str) -> Child {
    let endless = ["--steps", "100000", "--save-every", "5", "--evaluate-every", "100000", "--device", devices];
    let mut child = command(directory, output, &endless).stderr(Stdio::piped()).spawn().expect("the command runs");
    let started = Instant::now();
    while !directory.join(output).join("checkpoints/step-00000005/manifest.json").exists() {
        assert!(child.try_wait().expect("its state").is_none(), "it ended before its first checkpoint");
        assert!(started.elapsed() < Duration::from_secs(120), "it never came to a checkpoint");
        sleep(Duration::from_millis(5));
    }
    child
}

/// The standard error of a run that ends by itself with an error, and soon.
fn failure(mut child: Child) -> String {
    let started = Instant::now();
    while child.try_wait().expect("its state").is_none() {
        if started.elapsed() > Duration::from_secs(60) {
            child.kill().expect("killed");
            panic!("it hangs");
        }
        sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().expect("its output");
    assert_eq!(output.status.code(), Some(1));
    stderr(&output)
}

#[test]
fn a_worker_that_dies_is_named_and_costs_no_checkpoint() {
    let directory = workspace();
    let endless = ["--steps", "100000", "--save-every", "5", "--evaluate-every", "100000", "--resume"];
    // Beside this process, beside another worker, and as the one that holds the model.
    for (output, victim, others) in [("a", 1, ["cpu", ""]), ("b", 1, ["", ""]), ("c", 0, ["", ""])] {
        let mut workers = [Worker::start(None), Worker::start(None)];
        let names: Vec<&str> = workers
            .iter()
            .zip(others)
            .map(|(worker, other)| if other.is_empty() { worker.device.as_str() } else { other })
            .collect();
        let child = begin(directory.path(), output, &names.join(","));
        let dead = names[victim].to_string();
        workers[victim].process.kill().expect("killed");
        let message = failure(child);
        let last = message.lines().last().expect("a message");
        assert!(last.starts_with("error: device") && last.contains(&dead), "{message}");
        assert!(last.contains("go on from it with --resume"), "{message}");

        // What was written before is whole, and the run goes on elsewhere.
        let checkpoint = last.split_whitespace().find(|word| word.contains("step-")).expect("a checkpoint");
        let step: usize = checkpoint.rsplit('-').next().and_then(|step| step.parse().ok()).expect("its step");
        let stop_at = (step + 2).to_string();
        let settings = [&endless[..], &["--device", "cpu,cpu", "--stop-at", &stop_at]].concat();
        let resumed = train(directory.path(), output, &settings);
        assert!(resumed.status.success(), "{}", stderr(&resumed));
        assert!(stderr(&resumed).contains(&format!("at step {step}")), "{}", stderr(&resumed));
        let straight = format!("{output}-straight");
        let settings = [&endless[..6], &["--device", "cpu,cpu", "--stop-at", &stop_at]].concat();
        assert!(train(directory.path(), &straight, &settings).status.success());
        assert_same_weights(directory.path(), output, &straight);
    }
}

#[test]
fn a_worker_with_a_token_serves_only_who_shows_it() {
    let directory = workspace();
    let worker = Worker::start(Some("open sesame"));
    let run = |output: &str, token: Option<&str>| {
        let mut command = command(directory.path(), output, &["--steps", "2", "--device", &worker.device]);
        command.env_remove(TOKEN);
        if let Some(token) = token {
            command.env(TOKEN, token);
        }
        command.output().expect("the command runs")
    };
    for token in [None, Some("close sesame")] {
        let refused = run("refused", token);
        let message = stderr(&refused);
        assert!(!refused.status.success() && !message.contains("panicked"), "{message}");
        assert!(message.contains(&worker.device) && message.contains("rejected the credential"), "{message}");
    }
    let served = run("served", Some("open sesame"));
    assert!(served.status.success(), "{}", stderr(&served));
}

#[test]
fn addresses_at_which_there_is_no_worker_are_named() {
    let directory = workspace();
    let refused = |device: &str| {
        let run = train(directory.path(), "refused", &["--device", device]);
        let message = stderr(&run);
        assert!(!run.status.success() && !message.contains("panicked"), "{message}");
        assert!(!directory.path().join("refused").exists(), "files were left behind");
        message
    };
    assert!(refused("remote:http://127.0.0.1:1").contains("expected remote:ws://HOST:PORT"));
    // Port 1 of the loopback: nobody listens there.
    let message = refused("remote:ws://127.0.0.1:1");
    assert!(message.contains("remote:ws://127.0.0.1:1") && message.contains("cannot be reached"), "{message}");
    let listening = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listening.local_addr().expect("its address").to_string();
    let worker = Command::new(env!("CARGO_BIN_EXE_blockformer")).args(["worker", "--listen", &address]).output();
    let taken = worker.expect("the command runs");
    assert!(!taken.status.success() && stderr(&taken).contains(&format!("cannot listen on {address}")));
}
