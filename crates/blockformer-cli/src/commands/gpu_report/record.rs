//! The file of a report, whole after every row.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use blockformer_files::write_atomically;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::CliError;

/// What a row says until its work is done: if the program is killed, or kills itself, this stays.
const UNFINISHED: &str = "the program ended while this ran";

/// One thing that was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Row {
    pub(super) section: String,
    pub(super) item: String,
    pub(super) seconds: f64,
    /// Why there is no result.
    pub(super) error: Option<String>,
    pub(super) result: Value,
}

impl Row {
    /// Whether it succeeded, and what it checked passed.
    fn is_good(&self) -> bool {
        self.error.is_none() && self.result.get("passed") != Some(&Value::Bool(false))
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rows {
    /// What all rows were made with: they can be compared, and gone on with, under the same alone.
    settings: Value,
    rows: Vec<Row>,
}

pub(super) struct Record {
    path: PathBuf,
    rows: Rows,
    /// Rows that failed and are to be made again.
    retry: bool,
    /// When nothing more is begun.
    end: Option<Instant>,
    /// Rows that were not begun for want of time.
    left_out: usize,
}

/// How a report is gone on with.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Resume {
    /// Whether the file may be there.
    pub(super) resume: bool,
    /// Whether rows that failed, or did not pass, are made again.
    pub(super) retry: bool,
    /// When nothing more is begun.
    pub(super) end: Option<Instant>,
}

impl Record {
    pub(super) fn open(path: &Path, settings: Value, how: Resume) -> Result<Self, CliError> {
        let Resume { resume, retry, end } = how;
        let mut rows = Rows { settings, rows: Vec::new() };
        match std::fs::read(path) {
            Ok(_) if !resume => return Err(CliError::ReportExists { path: path.into() }),
            Ok(text) => {
                let old: Rows =
                    serde_json::from_slice(&text).map_err(|source| CliError::Report { path: path.into(), source })?;
                if let Some(name) = difference(&old.settings, &rows.settings) {
                    let value = |settings: &Value| settings.get(&name).unwrap_or(&Value::Null).to_string();
                    let (was, now) = (value(&old.settings), value(&rows.settings));
                    return Err(CliError::ReportSettings { path: path.into(), name, was, now });
                }
                rows = old;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(CliError::Io { action: "read", path: path.into(), source }),
        }
        Ok(Self { path: path.into(), rows, retry, end, left_out: 0 })
    }

    /// Whether an item is to be done now. If so, the file says from here on that it was begun.
    pub(super) fn begin(&mut self, section: &str, item: &str) -> Result<bool, CliError> {
        if self.find(section, item).is_some_and(|row| !self.retry || row.is_good()) {
            return Ok(false);
        }
        if self.end.is_some_and(|end| Instant::now() >= end) {
            self.left_out += 1;
            return Ok(false);
        }
        eprintln!("{section}, {item} …");
        let (section, item, error) = (section.into(), item.into(), Some(UNFINISHED.into()));
        self.put(Row { section, item, seconds: 0.0, error, result: Value::Null })?;
        Ok(true)
    }

    pub(super) fn finish(
        &mut self,
        section: &str,
        item: &str,
        seconds: f64,
        result: Result<Value, CliError>,
    ) -> Result<(), CliError> {
        let (error, result) = match result {
            Ok(result) => (None, result),
            Err(error) => (Some(error.chain()), Value::Null),
        };
        let row = Row { section: section.into(), item: item.into(), seconds, error, result };
        eprintln!("{}", line(&row));
        self.put(row)
    }

    /// A row that has been made.
    pub(super) fn find(&self, section: &str, item: &str) -> Option<&Row> {
        self.rows.rows.iter().find(|row| row.section == section && row.item == item)
    }

    /// A number in the result of a row that succeeded.
    pub(super) fn number(&self, section: &str, item: &str, name: &str) -> Option<f64> {
        self.find(section, item)?.result.get(name)?.as_f64()
    }

    fn put(&mut self, row: Row) -> Result<(), CliError> {
        let rows = &mut self.rows.rows;
        match rows.iter_mut().find(|old| old.section == row.section && old.item == row.item) {
            Some(old) => *old = row,
            None => rows.push(row),
        }
        let mut text = serde_json::to_string_pretty(&self.rows).expect("rows are plain data with string keys");
        text.push('\n');
        write_atomically(&self.path, text).map_err(|source| CliError::Io {
            action: "write",
            path: self.path.clone(),
            source,
        })
    }

    /// Whether every row succeeded and what it checked passed.
    pub(super) fn all_good(&self) -> bool {
        self.rows.rows.iter().all(Row::is_good)
    }

    /// How many rows were not begun for want of time.
    pub(super) fn left_out(&self) -> usize {
        self.left_out
    }

    pub(super) fn print_table(&self) -> Result<(), CliError> {
        let mut out = std::io::stdout().lock();
        self.rows
            .rows
            .iter()
            .try_for_each(|row| writeln!(out, "{}", line(row)))
            .map_err(|source| CliError::Stdout { source })
    }
}

/// The first setting that is not the same.
fn difference(a: &Value, b: &Value) -> Option<String> {
    let names = |value: &Value| value.as_object().into_iter().flat_map(|map| map.keys().cloned()).collect::<Vec<_>>();
    names(a).into_iter().chain(names(b)).find(|name| a.get(name) != b.get(name))
}

/// A row for the eye: its result's `summary`.
fn line(row: &Row) -> String {
    let said = match (&row.error, row.result.get("summary").and_then(Value::as_str)) {
        (Some(error), _) => format!("FAILED: {error}"),
        (None, Some(summary)) => summary.to_string(),
        (None, None) => row.result.to_string(),
    };
    format!("{:<11} {:<52} {:>8.1} s  {said}", row.section, row.item, row.seconds)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn failure() -> CliError {
        CliError::Option { option: "--precision", reason: "no such type".into() }
    }

    fn open(path: &Path, how: Resume) -> Result<Record, CliError> {
        Record::open(path, json!({ "device": "cuda:0", "scale": 1 }), how)
    }

    const RESUME: Resume = Resume { resume: true, retry: false, end: None };

    #[test]
    fn a_report_goes_on_where_it_was_and_does_not_repeat_what_killed_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        let mut record = open(&path, Resume::default()).unwrap();
        assert!(record.begin("limits", "copy").unwrap());
        record.finish("limits", "copy", 1.0, Ok(json!({ "bytes_per_second": 7.0 }))).unwrap();
        assert!(record.begin("limits", "products f16").unwrap());
        record.finish("limits", "products f16", 1.0, Err(failure())).unwrap();
        assert!(record.begin("verify", "f32").unwrap());
        record.finish("verify", "f32", 1.0, Ok(json!({ "passed": false }))).unwrap();
        assert!(record.begin("limits", "products f32").unwrap()); // and here it dies

        assert!(matches!(open(&path, Resume::default()), Err(CliError::ReportExists { .. })));
        let mut resumed = open(&path, RESUME).unwrap();
        for item in ["copy", "products f16", "products f32"] {
            assert!(!resumed.begin("limits", item).unwrap(), "{item}");
        }
        assert_eq!(resumed.find("limits", "products f32").unwrap().error.as_deref(), Some(UNFINISHED));
        assert_eq!(resumed.number("limits", "copy", "bytes_per_second"), Some(7.0));
        assert!(!resumed.all_good());
        let mut again = open(&path, Resume { retry: true, ..RESUME }).unwrap();
        assert!(!again.begin("limits", "copy").unwrap());
        assert!(again.begin("limits", "products f16").unwrap());
        assert!(again.begin("verify", "f32").unwrap());
    }

    #[test]
    fn rows_of_other_settings_are_not_gone_on_with() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        open(&path, Resume::default()).unwrap().begin("limits", "copy").unwrap();
        let error = Record::open(&path, json!({ "device": "cuda:0", "scale": 4 }), RESUME).err().unwrap();
        assert!(error.to_string().contains("scale 1, not 4"), "{error}");
        let error = Record::open(&path, json!({ "device": "cpu", "scale": 1 }), RESUME).err().unwrap();
        assert!(error.to_string().contains("device \"cuda:0\", not \"cpu\""), "{error}");
    }

    #[test]
    fn nothing_is_begun_when_time_is_up_and_that_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        let mut record = open(&path, Resume { end: Some(Instant::now()), ..Resume::default() }).unwrap();
        assert!(!record.begin("limits", "copy").unwrap());
        assert_eq!(record.left_out(), 1);
        assert!(!path.exists());
    }

    #[test]
    fn another_file_is_not_taken_for_a_report() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"rows\": 3}").unwrap();
        assert!(matches!(open(file.path(), RESUME), Err(CliError::Report { .. })));
    }
}
