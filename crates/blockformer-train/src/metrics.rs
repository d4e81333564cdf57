//! The course of a run: a row a step, in CSV and in JSON lines.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use blockformer_files::write_atomically;
use serde::{Deserialize, Serialize};

use crate::{StepReport, TrainError};

const CSV: &str = "metrics.csv";
const JSON_LINES: &str = "metrics.jsonl";
const CSV_HEADER: &str = "step,tokens,loss,validation_loss,learning_rate,gradient_norm,loss_scale,batch_size,\
                          tokens_per_second,data_wait,memory_bytes";

/// What a step was like.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MetricsRow {
    /// Steps done, this one included.
    pub step: usize,
    /// Tokens predicted since the run began.
    pub tokens: usize,
    /// Mean cross-entropy, in nats a token.
    pub loss: f64,
    /// Loss on held-out data, if it was measured after this step.
    pub validation_loss: Option<f64>,
    /// Learning rate.
    pub learning_rate: f64,
    /// Norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// The factor on the loss; 1 but for float16.
    pub loss_scale: f64,
    /// Samples.
    pub batch_size: usize,
    /// Tokens predicted a second.
    pub tokens_per_second: f64,
    /// The share of the step's time in which the device waited for data.
    pub data_wait: f64,
    /// The process's resident memory after the step, where the system tells.
    pub memory_bytes: Option<usize>,
}

impl MetricsRow {
    fn new(report: &StepReport, tokens: usize, validation_loss: Option<f64>) -> Self {
        Self {
            step: report.step + 1,
            tokens: tokens + report.n_tokens,
            loss: report.loss,
            validation_loss,
            learning_rate: report.learning_rate,
            gradient_norm: report.gradient_norm,
            loss_scale: report.loss_scale,
            batch_size: report.batch_size,
            tokens_per_second: report.n_tokens as f64 / report.seconds,
            data_wait: report.data_seconds / report.seconds,
            memory_bytes: memory_stats::memory_stats().map(|memory| memory.physical_mem),
        }
    }

    fn csv(&self) -> String {
        let validation = self.validation_loss.map_or(String::new(), |loss| loss.to_string());
        let memory = self.memory_bytes.map_or(String::new(), |bytes| bytes.to_string());
        format!(
            "{},{},{},{validation},{:e},{},{},{},{:.1},{:.5},{memory}\n",
            self.step,
            self.tokens,
            self.loss,
            self.learning_rate,
            self.gradient_norm,
            self.loss_scale,
            self.batch_size,
            self.tokens_per_second,
            self.data_wait
        )
    }
}

/// `metrics.csv` and `metrics.jsonl` of a run, which grow by a row a step.
#[derive(Debug)]
pub struct MetricsLog {
    csv: LogFile,
    json_lines: LogFile,
    rows: Vec<MetricsRow>,
}

impl MetricsLog {
    /// Begins both files in `directory`, or goes on with what an earlier run wrote up to and including step `until`:
    /// what it did after its last checkpoint is going to be done again.
    ///
    /// # Errors
    /// [`TrainError::Io`] naming the file.
    pub fn open(directory: &Path, until: usize) -> Result<Self, TrainError> {
        let mut rows = Vec::new();
        let json_lines = LogFile::open(directory.join(JSON_LINES), |line| {
            let Ok(row) = serde_json::from_str::<MetricsRow>(line) else { return false };
            let kept = row.step <= until;
            if kept {
                rows.push(row);
            }
            kept
        })?;
        let csv = LogFile::open(directory.join(CSV), |line| {
            let step = line.split(',').next().and_then(|cell| cell.parse::<usize>().ok());
            line.matches(',').count() == CSV_HEADER.matches(',').count() && step.is_none_or(|step| step <= until)
        })?;
        let mut log = Self { csv, json_lines, rows };
        if log.csv.is_empty {
            log.csv.append(&format!("{CSV_HEADER}\n"))?;
        }
        Ok(log)
    }

    /// Adds the row of a step to both files.
    ///
    /// # Errors
    /// [`TrainError::Io`] naming the file.
    pub fn push(&mut self, report: &StepReport, validation_loss: Option<f64>) -> Result<&MetricsRow, TrainError> {
        let tokens = self.rows.last().map_or(0, |row| row.tokens);
        let row = MetricsRow::new(report, tokens, validation_loss);
        let json = serde_json::to_string(&row)
            .map_err(|error| TrainError::io("write", &self.json_lines.path, error.into()))?;
        self.csv.append(&row.csv())?;
        self.json_lines.append(&format!("{json}\n"))?;
        self.rows.push(row);
        Ok(&self.rows[self.rows.len() - 1])
    }

    /// All rows.
    pub fn rows(&self) -> &[MetricsRow] {
        &self.rows
    }
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    is_empty: bool,
}

impl LogFile {
    /// Opens a file to append to, without those of its lines that are not to be kept.
    fn open(path: PathBuf, mut keep: impl FnMut(&str) -> bool) -> Result<Self, TrainError> {
        let old = if path.exists() {
            fs::read_to_string(&path).map_err(|e| TrainError::io("read", &path, e))?
        } else {
            String::new()
        };
        let kept: String = old.split_inclusive('\n').filter(|line| keep(line.trim_end())).collect();
        write_atomically(&path, &kept).map_err(|e| TrainError::io("write", &path, e))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| TrainError::io("write", &path, e))?;
        Ok(Self { path, file, is_empty: kept.is_empty() })
    }

    /// One write, so that a killed run leaves whole lines.
    fn append(&mut self, line: &str) -> Result<(), TrainError> {
        self.file.write_all(line.as_bytes()).map_err(|e| TrainError::io("write", &self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: usize) -> StepReport {
        StepReport {
            step,
            loss: 2.5 + 0.1 / (step + 3) as f64,
            gradient_norm: 1.0 / 3.0,
            learning_rate: 1e-3,
            loss_scale: 1.0,
            batch_size: 4,
            n_tokens: 100,
            seconds: 0.5,
            data_seconds: 0.005,
        }
    }

    #[test]
    fn a_resumed_log_drops_what_is_done_again_and_reads_back_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(directory.path(), 0).unwrap();
        for step in 0..5 {
            log.push(&report(step), (step == 1).then_some(2.75)).unwrap();
        }
        let before: Vec<MetricsRow> = log.rows()[..3].to_vec();
        // A line cut off by a crash.
        let mut file = OpenOptions::new().append(true).open(directory.path().join(JSON_LINES)).unwrap();
        file.write_all(b"{\"step\":3,\"tok").unwrap();
        let mut log = MetricsLog::open(directory.path(), 3).unwrap();
        assert_eq!(log.rows(), before);
        log.push(&report(3), None).unwrap();
        let csv = fs::read_to_string(directory.path().join(CSV)).unwrap();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines[0], CSV_HEADER);
        assert_eq!(lines.len(), 5, "{csv}");
        assert!(lines[2].starts_with("2,200,2.525,2.75,1e-3,0.3333333333333333,1,4,200.0,0.01000,"), "{}", lines[2]);
        assert!(lines[4].starts_with("4,400,"), "{}", lines[4]);
        assert_eq!(fs::read_to_string(directory.path().join(JSON_LINES)).unwrap().lines().count(), 4);
    }
}
