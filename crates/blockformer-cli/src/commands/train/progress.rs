//! The progress of a run: lines on standard error, `metrics.csv`, `metrics.jsonl` and `loss.svg`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

use blockformer::train::{Evaluation, MetricsLog, MetricsRow, StepReport, draw_loss_curve};

use crate::error::CliError;

pub(super) struct Progress {
    directory: PathBuf,
    log: MetricsLog,
    /// Where the run ends.
    end: usize,
    first_step: usize,
    /// Rows that have been printed.
    printed: usize,
    started: Instant,
    terminal: bool,
}

impl Progress {
    /// At `first_step`; goes on with the rows of an earlier run up to there.
    pub(super) fn new(directory: &Path, first_step: usize, end: usize) -> Result<Self, CliError> {
        let log = MetricsLog::open(directory, first_step)?;
        let printed = log.rows().len();
        let terminal = std::io::stderr().is_terminal();
        Ok(Self { directory: directory.into(), log, end, first_step, printed, started: Instant::now(), terminal })
    }

    /// Logs a step.
    pub(super) fn step(&mut self, report: &StepReport, evaluation: Option<&Evaluation>) -> Result<(), CliError> {
        let row = self.log.push(report, evaluation.map(|evaluation| evaluation.loss))?;
        if let (true, Some(evaluation)) = (row.step == self.end, evaluation) {
            let by_position: Vec<String> = evaluation
                .loss_by_position
                .iter()
                .map(|loss| if loss.is_nan() { "-".into() } else { format!("{loss:.3}") })
                .collect();
            let by_position =
                if by_position.len() > 1 { format!(", by position {}", by_position.join(" ")) } else { String::new() };
            eprintln!("validation loss {:.4} on {} tokens{by_position}", evaluation.loss, evaluation.n_tokens);
        }
        Ok(())
    }

    /// Prints a line about the steps since the last one.
    pub(super) fn print(&mut self) {
        let rows = &self.log.rows()[self.printed..];
        let Some(last) = rows.last() else { return };
        let line = summary(rows, self.end, self.seconds_left(last.step));
        if self.terminal && last.validation_loss.is_none() {
            eprint!("\r\x1b[K{line}");
        } else if self.terminal {
            eprintln!("\r\x1b[K{line}");
        } else {
            eprintln!("{line}");
        }
        self.printed = self.log.rows().len();
    }

    /// Draws `loss.svg`.
    pub(super) fn finish(&self) -> Result<(), CliError> {
        Ok(draw_loss_curve(self.log.rows(), &self.directory.join("loss.svg"), "Training")?)
    }

    fn seconds_left(&self, step: usize) -> f64 {
        let done = (step - self.first_step).max(1) as f64;
        self.started.elapsed().as_secs_f64() / done * (self.end - step) as f64
    }
}

/// The means of some rows in a line.
fn summary(rows: &[MetricsRow], end: usize, seconds_left: f64) -> String {
    let n = rows.len() as f64;
    let mean = |value: fn(&MetricsRow) -> f64| rows.iter().map(value).sum::<f64>() / n;
    let last = &rows[rows.len() - 1];
    let validation = last.validation_loss.map_or(String::new(), |loss| format!(", validation {loss:.3}"));
    let memory = last.memory_bytes.map_or(String::new(), |bytes| format!(", {} MiB", bytes >> 20));
    format!(
        "step {}/{end}, loss {:.3}{validation}, {:.0} tokens/s, data wait {:.1} %{memory}, {} left",
        last.step,
        mean(|row| row.loss),
        1.0 / mean(|row| 1.0 / row.tokens_per_second), // steps have about as many tokens each, not times
        100.0 * mean(|row| row.data_wait),
        clock(seconds_left)
    )
}

fn clock(seconds: f64) -> String {
    let seconds = seconds as u64;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
