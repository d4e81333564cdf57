//! The progress of a run: a line on standard error, `metrics.csv` and `loss.svg`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

use blockformer::train::{CurvePoint, Evaluation, LossCurve, StepReport};

use crate::error::CliError;

pub(super) struct Progress {
    directory: PathBuf,
    curve: LossCurve,
    total_steps: usize,
    tokens: usize,
    /// Steps since the last row.
    recent: Vec<StepReport>,
    started: Instant,
    first_step: usize,
    terminal: bool,
}

impl Progress {
    /// At `first_step`; goes on with the rows of an earlier run up to there.
    pub(super) fn new(directory: &Path, first_step: usize, total_steps: usize) -> Self {
        let earlier = std::fs::read_to_string(directory.join("metrics.csv")).unwrap_or_default();
        let curve = LossCurve::from_csv(&earlier, first_step);
        let tokens = curve.points.last().map_or(0, |point| point.tokens);
        let terminal = std::io::stderr().is_terminal();
        let directory = directory.to_path_buf();
        Self {
            directory,
            curve,
            total_steps,
            tokens,
            recent: Vec::new(),
            started: Instant::now(),
            first_step,
            terminal,
        }
    }

    pub(super) fn step(&mut self, report: &StepReport) {
        self.tokens += report.n_tokens;
        self.recent.push(*report);
    }

    pub(super) fn log(&mut self, done: usize) {
        self.row(done, None);
    }

    pub(super) fn evaluated(&mut self, done: usize, evaluation: &Evaluation) {
        self.row(done, Some(evaluation.loss));
        if done == self.total_steps {
            let by_position: Vec<String> = evaluation
                .loss_by_position
                .iter()
                .map(|loss| if loss.is_nan() { "-".into() } else { format!("{loss:.3}") })
                .collect();
            let by_position =
                if by_position.len() > 1 { format!(", by position {}", by_position.join(" ")) } else { String::new() };
            eprintln!("validation loss {:.4} on {} tokens{by_position}", evaluation.loss, evaluation.n_tokens);
        }
    }

    /// Adds a row and prints it.
    fn row(&mut self, step: usize, validation_loss: Option<f64>) {
        let Some(last) = self.recent.last().copied() else { return };
        let tokens: usize = self.recent.iter().map(|report| report.n_tokens).sum();
        let seconds: f64 = self.recent.iter().map(|report| report.seconds).sum();
        let loss =
            self.recent.iter().map(|report| report.loss * report.n_tokens as f64).sum::<f64>() / tokens.max(1) as f64;
        let tokens_per_second = tokens as f64 / seconds;
        let point = CurvePoint {
            step,
            tokens: self.tokens,
            loss,
            validation_loss,
            learning_rate: last.learning_rate,
            gradient_norm: last.gradient_norm,
            tokens_per_second,
        };
        self.curve.points.push(point);
        self.recent.clear();
        let elapsed = self.started.elapsed().as_secs_f64();
        let left = elapsed / (step - self.first_step).max(1) as f64 * (self.total_steps - step) as f64;
        let validation = validation_loss.map_or(String::new(), |loss| format!(", validation {loss:.3}"));
        let line = format!(
            "step {step}/{}, loss {loss:.3}{validation}, {tokens_per_second:.0} tokens/s, {} left",
            self.total_steps,
            clock(left)
        );
        if self.terminal && validation_loss.is_none() {
            eprint!("\r\x1b[K{line}");
        } else if self.terminal {
            eprintln!("\r\x1b[K{line}");
        } else {
            eprintln!("{line}");
        }
    }

    /// Writes `metrics.csv`, by way of a temporary file.
    pub(super) fn write(&self) -> Result<(), CliError> {
        let path = self.directory.join("metrics.csv");
        let temporary = self.directory.join("metrics.csv.writing");
        let written = std::fs::write(&temporary, self.curve.to_csv()).and_then(|()| std::fs::rename(&temporary, &path));
        written.map_err(|source| CliError::Io { action: "write", path, source })
    }

    /// Writes `metrics.csv` and `loss.svg`.
    pub(super) fn finish(&self) -> Result<(), CliError> {
        self.write()?;
        Ok(self.curve.draw(&self.directory.join("loss.svg"), "Training")?)
    }
}

fn clock(seconds: f64) -> String {
    let seconds = seconds as u64;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
