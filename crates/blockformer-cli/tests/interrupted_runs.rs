//! Runs that are killed, whose checkpoints are damaged, and whose disk is full.
#![cfg(unix)]

mod small_run;

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use small_run::{assert_same_weights, command, stderr, train, workspace};

/// A number below `n`, another in every run of the test: what is tested holds at any moment and any place.
fn random(n: u64) -> u64 {
    RandomState::new().build_hasher().finish() % n
}

/// The losses and norms of every step, as written: the shortest digits that give back the same bits.
fn course(directory: &Path, run: &str) -> Vec<[String; 5]> {
    let lines = fs::read_to_string(directory.join(run).join("metrics.jsonl")).expect("metrics");
    let row = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line).expect("a whole line");
        ["step", "tokens", "loss", "validation_loss", "gradient_norm"].map(|name| row[name].to_string())
    };
    lines.lines().map(row).collect()
}

#[test]
fn a_run_killed_at_random_moments_has_the_losses_and_weights_of_one_that_was_not() {
    let directory = workspace();
    let settings = ["--steps", "60", "--save-every", "4", "--evaluate-every", "15", "--keep-checkpoints", "2"];
    let settings = [&settings[..], &["--batch-ramp", "1:30", "--accumulation", "4"]].concat();
    let started = Instant::now();
    assert!(train(directory.path(), "straight", &settings).status.success());
    let whole = started.elapsed();

    let resume = [&settings[..], &["--resume"]].concat();
    let mut moments = Vec::new();
    for _ in 0..8 {
        let mut child =
            command(directory.path(), "killed", &resume).stderr(Stdio::null()).spawn().expect("the command runs");
        let moment = Duration::from_micros(random(whole.as_micros() as u64 * 2 / 3));
        std::thread::sleep(moment);
        if child.try_wait().expect("its state").is_none() {
            child.kill().expect("SIGKILL");
            moments.push(moment);
        }
        child.wait().expect("it ends");
    }
    assert!(!moments.is_empty(), "eight runs were over before two thirds of the time of the first");
    let last = train(directory.path(), "killed", &resume);
    assert!(last.status.success(), "killed after {moments:?}: {}", stderr(&last));
    assert_eq!(course(directory.path(), "killed"), course(directory.path(), "straight"), "killed after {moments:?}");
    assert_same_weights(directory.path(), "straight", "killed");
}

#[test]
fn a_checkpoint_cut_off_anywhere_is_named_and_the_one_before_it_is_used() {
    let directory = workspace();
    let settings = ["--steps", "18", "--save-every", "6", "--keep-checkpoints", "3"];
    assert!(train(directory.path(), "straight", &settings).status.success());
    for file in ["model.bpk", "optimizer.bpk", "state.json", "manifest.json"] {
        let stopped = train(directory.path(), "cut", &[&settings[..], &["--stop-at", "12"]].concat());
        assert!(stopped.status.success(), "{}", stderr(&stopped));
        let newest = directory.path().join("cut/checkpoints/step-00000012");
        let whole = fs::read(newest.join(file)).expect("a file of the checkpoint");
        let kept = random(whole.len() as u64) as usize;
        fs::write(newest.join(file), &whole[..kept]).expect("written");
        let resumed = train(directory.path(), "cut", &[&settings[..], &["--resume"]].concat());
        let message = stderr(&resumed);
        assert!(resumed.status.success(), "{file} cut to {kept} bytes: {message}");
        assert!(message.contains("warning: checkpoint cut/checkpoints/step-00000012"), "{message}");
        assert!(message.contains(file) && message.contains("at step 6"), "{file} cut to {kept} bytes: {message}");
        assert_same_weights(directory.path(), "straight", "cut");
        assert_eq!(course(directory.path(), "cut"), course(directory.path(), "straight"));
        fs::remove_dir_all(directory.path().join("cut")).expect("removed");
    }
}

#[test]
fn a_run_whose_only_checkpoint_is_damaged_does_not_begin_anew() {
    let directory = workspace();
    let settings = ["--steps", "6", "--save-every", "6"];
    assert!(train(directory.path(), "a", &settings).status.success());
    fs::write(directory.path().join("a/checkpoints/step-00000006/model.bpk"), "").expect("written");
    let resumed = train(directory.path(), "a", &[&settings[..], &["--resume"]].concat());
    assert!(!resumed.status.success());
    assert!(stderr(&resumed).contains("model.bpk cannot be resumed: it has 0 bytes"), "{}", stderr(&resumed));
}

#[test]
fn a_full_disk_ends_the_run_with_an_error_and_loses_no_checkpoint() {
    let directory = workspace();
    let settings = ["--steps", "18", "--save-every", "6", "--keep-checkpoints", "1"];
    assert!(train(directory.path(), "straight", &settings).status.success());
    assert!(train(directory.path(), "full", &[&settings[..], &["--stop-at", "6"]].concat()).status.success());
    let checkpoints = directory.path().join("full/checkpoints");
    let written = fs::metadata(checkpoints.join("step-00000006/optimizer.bpk")).expect("a file").len();
    // A file-size limit stands in for a full disk. Shells count it in half or whole kibibytes.
    let run = command(directory.path(), "full", &[&settings[..], &["--resume"]].concat());
    let limited = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f $1; shift; exec \"$@\"", "sh", &(written / 4 / 512).to_string()])
        .arg(run.get_program())
        .args(run.get_args())
        .current_dir(directory.path())
        .output()
        .expect("the command runs");
    let message = stderr(&limited);
    assert_eq!(limited.status.code(), Some(1), "{message}");
    assert!(message.contains("checkpoints/writing-12") && message.contains("cannot"), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    let left: Vec<_> = fs::read_dir(&checkpoints).expect("checkpoints").map(|e| e.expect("one").file_name()).collect();
    assert_eq!(left, ["step-00000006"]);
    assert!(train(directory.path(), "full", &[&settings[..], &["--resume"]].concat()).status.success());
    assert_same_weights(directory.path(), "straight", "full");
}
