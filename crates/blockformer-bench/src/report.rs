//! All measurements of a run.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use crate::{BenchError, Limits, Measurement, picture};

/// Measurements, the machine's limits, and the losses of models, where they are known.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Report {
    /// The machine's limits, where they were measured.
    pub limits: Option<Limits>,
    /// In the order they were made.
    pub measurements: Vec<Measurement>,
    /// Loss in nats a token by model name.
    pub losses: Vec<(String, f64)>,
}

impl FromIterator<Measurement> for Report {
    fn from_iter<I: IntoIterator<Item = Measurement>>(measurements: I) -> Self {
        Self { measurements: measurements.into_iter().collect(), ..Self::default() }
    }
}

const HEADER: &str = "model,precision,workload,prompt_tokens,new_tokens,batch,repeats,tokens_per_second,\
                      tokens_per_second_min,tokens_per_second_max,first_token_ms,token_ms,weight_bytes,kv_bytes,\
                      buffer_bytes,peak_bytes,stated_bytes,peak_by_stated,loading_peak_bytes,decoding,recording_ms";

impl Report {
    /// One row a measurement; components are in the JSON only.
    pub fn to_csv(&self) -> String {
        let mut csv = format!("{HEADER}\n");
        let optional = |bytes: Option<usize>| bytes.map_or(String::new(), |bytes| bytes.to_string());
        for m in &self.measurements {
            // Writing to a string cannot fail.
            let _ = writeln!(
                csv,
                "{},{},{},{},{},{},{},{:.2},{:.2},{:.2},{:.3},{:.4},{},{},{},{},{},{},{},{},{:.1}",
                quoted(&m.model),
                m.precision,
                quoted(&m.workload),
                m.prompt_tokens,
                m.new_tokens,
                m.batch,
                m.repeats,
                m.tokens_per_second.median,
                m.tokens_per_second.min,
                m.tokens_per_second.max,
                m.first_token_ms.median,
                m.token_ms.median,
                m.weight_bytes,
                m.kv_bytes,
                optional(m.buffer_bytes),
                optional(m.peak_bytes),
                optional(m.stated_bytes),
                m.peak_by_stated().map_or(String::new(), |ratio| format!("{ratio:.3}")),
                optional(m.loading_peak_bytes),
                m.decoding,
                m.recording_ms.median,
            );
        }
        csv
    }

    /// Everything.
    pub fn to_json(&self) -> String {
        // Plain data with string keys always serialises.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// The prompts and the generated ids of every measurement, in order.
    pub fn tokens_json(&self) -> String {
        let tokens: Vec<_> = self.measurements.iter().map(|measurement| &measurement.tokens).collect();
        serde_json::to_string(&tokens).unwrap_or_default() // as above
    }

    /// Writes `bench.csv`, `bench.json`, `tokens.json`, `throughput.svg` and, where losses are known, `pareto.svg` into
    /// `directory`, which is made if need be.
    ///
    /// # Errors
    /// [`BenchError::Write`].
    pub fn write(&self, directory: &Path) -> Result<(), BenchError> {
        let failed = |path: &Path, reason: String| BenchError::Write { path: path.into(), reason };
        std::fs::create_dir_all(directory).map_err(|error| failed(directory, error.to_string()))?;
        let files = [("bench.csv", self.to_csv()), ("bench.json", self.to_json()), ("tokens.json", self.tokens_json())];
        for (name, text) in files {
            let path = directory.join(name);
            std::fs::write(&path, text).map_err(|error| failed(&path, error.to_string()))?;
        }
        let path = directory.join("throughput.svg");
        picture::throughput(self, &path).map_err(|error| failed(&path, error.to_string()))?;
        if !self.losses.is_empty() {
            let path = directory.join("pareto.svg");
            picture::pareto(self, &path).map_err(|error| failed(&path, error.to_string()))?;
        }
        Ok(())
    }

    /// For each model, precision and workload with a known loss: name, loss, and the most tokens a second of any batch
    /// size.
    pub(crate) fn fastest_by_loss(&self) -> Vec<(String, f64, f64)> {
        let mut fastest: Vec<(String, f64, f64)> = Vec::new();
        for m in &self.measurements {
            let Some((_, loss)) = self.losses.iter().find(|(name, _)| *name == m.model) else { continue };
            let (label, speed) = (label(m), m.tokens_per_second.median);
            match fastest.iter_mut().find(|(known, _, _)| *known == label) {
                Some((_, _, best)) => *best = best.max(speed),
                None => fastest.push((label, *loss, speed)),
            }
        }
        fastest
    }
}

/// How a series is called in pictures.
pub(crate) fn label(m: &Measurement) -> String {
    format!("{} {} {}", m.model, m.precision, m.workload)
}

/// The points that no other beats in both loss (less is better) and speed (more is better), by loss.
pub(crate) fn front(points: &[(String, f64, f64)]) -> Vec<(f64, f64)> {
    let beaten =
        |loss: f64, speed: f64| points.iter().any(|(_, l, s)| *l <= loss && *s >= speed && (*l < loss || *s > speed));
    let mut front: Vec<(f64, f64)> = points
        .iter()
        .filter(|(_, loss, speed)| !beaten(*loss, *speed))
        .map(|(_, loss, speed)| (*loss, *speed))
        .collect();
    front.sort_by(|a, b| a.0.total_cmp(&b.0));
    front
}

/// A CSV cell.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Spread, Tokens};

    fn measurement(model: &str, batch: usize, speed: f64) -> Measurement {
        let spread = |x: f64| Spread { median: x, min: x / 2.0, max: 2.0 * x };
        Measurement {
            model: model.into(),
            precision: "f32/avx2".into(),
            workload: "decode-heavy".into(),
            prompt_tokens: 128,
            new_tokens: 2048,
            batch,
            repeats: 5,
            tokens_per_second: spread(speed),
            first_token_ms: spread(12.5),
            token_ms: spread(1000.0 / speed),
            recording_ms: spread(0.0),
            decoding: "host",
            warm_up_seconds: 1.5,
            weight_bytes: 1000,
            kv_bytes: 200,
            buffer_bytes: Some(30),
            stated_bytes: Some(1230),
            peak_bytes: None,
            loading_peak_bytes: None,
            components: None,
            tokens: Tokens::default(),
        }
    }

    fn report() -> Report {
        let measurements =
            vec![measurement("a, small", 1, 100.0), measurement("a, small", 8, 400.0), measurement("b", 1, 50.0)];
        Report { measurements, losses: vec![("a, small".into(), 3.0), ("b".into(), 2.5)], limits: None }
    }

    #[test]
    fn tokens_stand_in_a_file_of_their_own() {
        let mut report = report();
        report.measurements[2].tokens = Tokens { prompts: vec![vec![1, 2]], generated: vec![vec![3]] };
        assert!(!report.to_json().contains("generated"));
        let json: serde_json::Value = serde_json::from_str(&report.tokens_json()).unwrap();
        assert_eq!(json[2], serde_json::json!({ "prompts": [[1, 2]], "generated": [[3]] }));
    }

    #[test]
    fn rows_have_as_many_cells_as_the_header() {
        let csv = report().to_csv();
        let mut lines = csv.lines();
        assert_eq!(lines.next().unwrap().split(',').count(), 21);
        assert_eq!(
            lines.next().unwrap(),
            "\"a, small\",f32/avx2,decode-heavy,128,2048,1,5,100.00,50.00,200.00,12.500,10.0000,1000,200,30,,1230,,,host,0.0"
        );
        assert_eq!(lines.count(), 2);
    }

    #[test]
    fn json_has_everything() {
        let json: serde_json::Value = serde_json::from_str(&report().to_json()).unwrap();
        assert_eq!(json["measurements"][1]["tokens_per_second"]["median"], 400.0);
        assert_eq!(json["losses"][1][1], 2.5);
    }

    #[test]
    fn the_front_leaves_out_what_is_slower_and_worse() {
        let point = |name: &str, loss, speed| (name.to_string(), loss, speed);
        let points = [point("a", 3.0, 100.0), point("b", 2.5, 50.0), point("c", 2.9, 40.0), point("d", 3.5, 90.0)];
        assert_eq!(front(&points), [(2.5, 50.0), (3.0, 100.0)]);
        assert_eq!(report().fastest_by_loss()[0].2, 400.0);
    }

    #[test]
    fn files_and_pictures_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("new");
        report().write(&inside).unwrap();
        for name in ["throughput.svg", "pareto.svg"] {
            let svg = std::fs::read_to_string(inside.join(name)).unwrap();
            assert!(svg.contains("<svg") && svg.contains("a, small f32/avx2 decode-heavy"), "{name}");
        }
        assert_eq!(std::fs::read_to_string(inside.join("bench.csv")).unwrap(), report().to_csv());
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = report().write(&file.path().join("below")).unwrap_err();
        assert!(error.to_string().contains("below"), "{error}");
    }
}
