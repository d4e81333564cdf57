//! The progress of a run: a dashboard or lines on standard error, `metrics.csv`, `metrics.jsonl` and `loss.svg`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

use blockformer::train::{Evaluation, MetricsLog, MetricsRow, StepReport, draw_loss_curve};

#[cfg(feature = "dashboard")]
use super::dashboard::{Dashboard, Status};
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
    view: View,
}

/// Where progress is shown.
enum View {
    /// A line after the other.
    Lines,
    /// In a terminal: a line that the next one replaces, except those with a validation loss.
    OneLine,
    #[cfg(feature = "dashboard")]
    Dashboard(Box<Dashboard>),
}

impl View {
    #[cfg_attr(not(feature = "dashboard"), expect(unused_variables, reason = "there is none to be had"))]
    fn new(dashboard: bool) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines;
        }
        #[cfg(feature = "dashboard")]
        if dashboard && let Some(dashboard) = Dashboard::open() {
            return Self::Dashboard(Box::new(dashboard));
        }
        Self::OneLine
    }
}

impl Progress {
    /// At `first_step`; goes on with the rows of an earlier run up to there.
    pub(super) fn new(directory: &Path, first_step: usize, end: usize, dashboard: bool) -> Result<Self, CliError> {
        let log = MetricsLog::open(directory, first_step)?;
        let printed = log.rows().len();
        let (started, view) = (Instant::now(), View::new(dashboard));
        Ok(Self { directory: directory.into(), log, end, first_step, printed, started, view })
    }

    /// Logs a step.
    pub(super) fn step(&mut self, report: &StepReport, evaluation: Option<&Evaluation>) -> Result<(), CliError> {
        let row = *self.log.push(report, evaluation.map(|evaluation| evaluation.loss))?;
        if let (true, Some(evaluation)) = (row.step == self.end, evaluation) {
            self.say(&last_evaluation(evaluation));
        }
        self.draw(row.step, evaluation.is_some());
        Ok(())
    }

    /// Prints a line about the steps since the last one; above the dashboard only those with a validation loss.
    pub(super) fn print(&mut self) {
        let rows = &self.log.rows()[self.printed..];
        let Some(last) = rows.last() else { return };
        let line = summary(rows, self.end, self.seconds_left(last.step));
        let evaluated = last.validation_loss.is_some();
        match &self.view {
            View::OneLine if !evaluated => eprint!("\r\x1b[K{line}"),
            View::OneLine | View::Lines => self.say(&line),
            #[cfg(feature = "dashboard")]
            View::Dashboard(_) if !evaluated => {}
            #[cfg(feature = "dashboard")]
            View::Dashboard(_) => self.say(&line),
        }
        self.printed = self.log.rows().len();
    }

    /// Draws `loss.svg`, and leaves the terminal to who writes next.
    pub(super) fn finish(&mut self) -> Result<(), CliError> {
        #[cfg(feature = "dashboard")]
        if let View::Dashboard(_) = self.view {
            self.draw(self.log.rows().last().map_or(0, |row| row.step), true);
        }
        Ok(draw_loss_curve(self.log.rows(), &self.directory.join("loss.svg"), "Training")?)
    }

    /// A line that stays.
    fn say(&mut self, line: &str) {
        match &mut self.view {
            View::Lines => eprintln!("{line}"),
            View::OneLine => eprintln!("\r\x1b[K{line}"),
            #[cfg(feature = "dashboard")]
            View::Dashboard(dashboard) => {
                if dashboard.say(line).is_err() {
                    self.view = View::Lines; // a terminal that cannot be drawn on is still written to
                    eprintln!("{line}");
                }
            }
        }
    }

    /// Shows where the run stands, if there is a dashboard; not too often unless it `must`.
    #[cfg(feature = "dashboard")]
    fn draw(&mut self, step: usize, must: bool) {
        let seconds_left = self.seconds_left(step);
        let View::Dashboard(dashboard) = &mut self.view else { return };
        let status = Status { rows: self.log.rows(), end: self.end, seconds: self.started.elapsed(), seconds_left };
        if dashboard.draw(&status, must).is_err() {
            self.view = View::Lines;
        }
    }

    #[cfg(not(feature = "dashboard"))]
    fn draw(&mut self, _step: usize, _must: bool) {}

    fn seconds_left(&self, step: usize) -> f64 {
        let done = (step - self.first_step.min(step)).max(1) as f64;
        self.started.elapsed().as_secs_f64() / done * self.end.saturating_sub(step) as f64
    }
}

/// The evaluation on all of the held-out text at the end.
fn last_evaluation(evaluation: &Evaluation) -> String {
    let by_position: Vec<String> = evaluation
        .loss_by_position
        .iter()
        .map(|loss| if loss.is_nan() { "-".into() } else { format!("{loss:.3}") })
        .collect();
    let by_position =
        if by_position.len() > 1 { format!(", by position {}", by_position.join(" ")) } else { String::new() };
    format!("validation loss {:.4} on {} tokens{by_position}", evaluation.loss, evaluation.n_tokens)
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
        tokens_per_second(rows),
        100.0 * mean(|row| row.data_wait),
        clock(seconds_left)
    )
}

/// Over some rows: steps have about as many tokens each, not times.
pub(super) fn tokens_per_second(rows: &[MetricsRow]) -> f64 {
    rows.len() as f64 / rows.iter().map(|row| 1.0 / row.tokens_per_second).sum::<f64>()
}

pub(super) fn clock(seconds: f64) -> String {
    let seconds = seconds as u64;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
