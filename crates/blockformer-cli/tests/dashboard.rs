//! `blockformer train` in a terminal, which `script` of util-linux stands in for.
#![cfg(target_os = "linux")]

mod small_run;

use std::path::Path;
use std::process::{Command, Stdio};

use small_run::{command, workspace};

/// What the terminal was sent while `lines` of shell ran in it, `$RUN` being the training run with `more` settings; and
/// the terminal's modes before and after.
fn terminal(directory: &Path, lines: &str, more: &[&str]) -> (String, String, String) {
    let run = command(directory, "out", more);
    let words: Vec<String> = std::iter::once(run.get_program())
        .chain(run.get_args())
        .map(|word| word.to_str().expect("UTF-8").to_string())
        .collect();
    let lines = lines.replace("$RUN", &words.join(" "));
    let shell = format!("stty rows 40 cols 100; echo before $(stty -g); {lines}; echo after $(stty -g)");
    let output = Command::new("script")
        .args(["--quiet", "--command", &shell, "/dev/null"])
        .current_dir(directory)
        .env("TERM", "xterm-256color")
        .stdin(Stdio::null())
        .output()
        .expect("script runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let modes = |mark: &str| {
        let line = text.lines().rev().find_map(|line| line.split_once(mark)).expect("the terminal's modes");
        line.1.trim().to_string()
    };
    let (before, after) = (modes("before "), modes("after "));
    (text, before, after)
}

/// What was written, a space where the cursor moved or the style changed.
fn plain(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_string();
    let behind =
        |part: &str| part.split_once(|c: char| c.is_ascii_alphabetic()).map_or("", |parts| parts.1).to_string();
    parts.fold(first, |plain, part| format!("{plain} {}", behind(part)))
}

/// Nothing was switched that must be switched back: no other screen, no hidden cursor, no mouse, no modes.
fn assert_left_as_it_was((text, before, after): &(String, String, String)) {
    for switch in ["\x1b[?1049h", "\x1b[?25l", "\x1b[?1000h", "\x1b[?2004h", "\x1b[6n"] {
        assert!(!text.contains(switch), "{switch:?} in {text}");
    }
    assert!(!before.is_empty() && before == after, "{before} became {after}");
}

#[test]
fn a_terminal_gets_a_dashboard_that_leaves_it_as_it_was() {
    let directory = workspace();
    let seen = terminal(directory.path(), "$RUN", &["--steps", "40"]);
    let words = plain(&seen.0);
    for text in ["of 40, ", "learning rate", "gradient norm", "Ctrl-C writes a checkpoint and stops"] {
        assert!(words.contains(text), "{text:?} is missing: {words}");
    }
    assert!(seen.0.contains("validation loss ") && seen.0.contains("wrote the model to out"), "{}", seen.0);
    assert!(seen.0.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)), "no curve: {}", seen.0);
    assert_left_as_it_was(&seen);
}

#[test]
fn lines_of_progress_can_be_had_in_a_terminal_and_come_where_it_is_too_small() {
    for lines in ["$RUN --no-dashboard", "stty rows 10 cols 100; $RUN"] {
        let directory = workspace();
        let (text, ..) = terminal(directory.path(), lines, &["--steps", "40"]);
        assert!(text.contains("step 20/40, loss ") && !plain(&text).contains("gradient norm"), "{text}");
    }
}

#[test]
fn interrupted_and_failed_runs_leave_the_terminal_as_it_was() {
    let directory = workspace();
    let interrupted = "$RUN & pid=$!; while [ ! -e out/checkpoints/step-00000010 ]; do sleep 0.05; done; \
                       kill -INT $pid; wait $pid; echo code $?";
    let seen = terminal(directory.path(), interrupted, &["--steps", "100000"]);
    assert!(seen.0.contains("go on with --resume") && seen.0.contains("code 130"), "{}", seen.0);
    assert_left_as_it_was(&seen);

    let directory = workspace();
    let seen = terminal(directory.path(), "$RUN; echo code $?", &["--steps", "40", "--learning-rate", "1e30"]);
    assert!(seen.0.contains("error: training diverged at step") && seen.0.contains("code 1"), "{}", seen.0);
    assert_left_as_it_was(&seen);
}
