//! Answers and what they are compared with.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// Numbers of a check.
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) values: Vec<f32>,
    /// The same numbers, computed in another way, or nothing.
    pub(super) again: Vec<f32>,
}

impl Part {
    pub(super) fn new(name: &'static str, values: Vec<f32>) -> Self {
        Self { name, values, again: Vec::new() }
    }

    pub(super) fn equal(name: &'static str, values: Vec<f32>, again: Vec<f32>) -> Self {
        Self { name, values, again }
    }
}

pub(super) type Answer = Vec<Part>;

/// The largest error of an answer.
#[derive(Debug)]
pub(super) struct Error {
    pub(super) part: String,
    pub(super) error: f64,
}

/// Some numbers of a part as the CPU gave them.
#[derive(Debug, Serialize, Deserialize)]
struct Sample {
    /// The largest of all numbers.
    scale: f64,
    /// Evenly spread over all numbers.
    numbers: Vec<f32>,
}

const SAMPLES: usize = 16;

fn spread(values: &[f32]) -> Vec<f32> {
    if values.len() <= SAMPLES {
        return values.to_vec();
    }
    (0..SAMPLES).map(|i| values[i * (values.len() - 1) / (SAMPLES - 1)]).collect()
}

fn scale(values: &[f32]) -> f64 {
    values.iter().fold(0f64, |max, value| max.max(f64::from(value.abs())))
}

/// The answers that are part of the crate, by check and part. The CPU gave them; the tests of reference cases compare the
/// CPU with the authors' implementation.
fn bundled() -> &'static BTreeMap<String, Sample> {
    static BUNDLED: OnceLock<BTreeMap<String, Sample>> = OnceLock::new();
    BUNDLED.get_or_init(|| match serde_json::from_str(include_str!("answers.json")) {
        Ok(answers) => answers,
        Err(error) => panic!("the answers in this program are damaged: {error}"),
    })
}

fn key(check: &str, part: &str) -> String {
    format!("{check}: {part}")
}

/// The largest error of `answer`: against the bundled samples, against `expected`, and of the parts in themselves.
pub(super) fn largest_error(check: &str, answer: &Answer, expected: Option<&Answer>) -> Error {
    let mut largest = Error { part: "nothing".into(), error: f64::NAN };
    let mut first = true;
    let mut note = |part: String, error: f64| {
        // One that is not a number is the largest.
        if first || error.is_nan() || error > largest.error {
            (largest, first) = (Error { part, error }, false);
        }
    };
    for part in answer {
        if let Some(sample) = bundled().get(&key(check, part.name)) {
            note(part.name.into(), relative(&spread(&part.values), &sample.numbers, sample.scale));
        }
        if !part.again.is_empty() {
            note(format!("{} another way", part.name), relative(&part.again, &part.values, scale(&part.values)));
        }
        if let Some(expected) = expected {
            let found = expected.iter().find(|expected| expected.name == part.name);
            let expected = found.map_or(&[][..], |expected| &expected.values);
            note(part.name.into(), relative(&part.values, expected, scale(expected)));
        }
    }
    largest
}

/// The largest difference by `scale`; infinite if there are not as many numbers.
fn relative(got: &[f32], expected: &[f32], scale: f64) -> f64 {
    if got.len() != expected.len() {
        return f64::INFINITY;
    }
    let differences = got.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b));
    let largest =
        differences.fold(0.0, |max: f64, d| if d.is_nan() || max.is_nan() { f64::NAN } else { max.max(d.abs()) });
    if scale > 0.0 { largest / scale } else { largest }
}

/// Samples of all answers, for the file.
#[cfg(all(test, feature = "flex"))]
pub(super) fn to_json<'a>(answers: impl Iterator<Item = (&'a str, Answer)>) -> String {
    let samples: BTreeMap<String, Sample> = answers
        .flat_map(|(check, answer)| {
            answer.into_iter().map(move |part| {
                (key(check, part.name), Sample { scale: scale(&part.values), numbers: spread(&part.values) })
            })
        })
        .collect();
    let mut json = serde_json::to_string_pretty(&samples).expect("plain data");
    json.push('\n');
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(values: Vec<f32>, again: Vec<f32>, expected: Vec<f32>) -> f64 {
        let answer = vec![Part::equal("x", values, again)];
        largest_error("none of the bundled", &answer, Some(&vec![Part::new("x", expected)])).error
    }

    #[test]
    fn errors_are_relative_to_the_largest_number() {
        assert_eq!(error_of(vec![1.0, -4.0], vec![1.0, -4.0], vec![1.0, -4.0]), 0.0);
        assert_eq!(error_of(vec![1.5, -4.0], vec![], vec![1.0, -4.0]), 0.125);
        assert_eq!(error_of(vec![1.0, -4.0], vec![2.0, -4.0], vec![1.0, -4.0]), 0.25);
    }

    #[test]
    fn what_is_not_a_number_or_missing_is_the_largest_error() {
        assert!(error_of(vec![f32::NAN, 1.0], vec![5.0, 1.0], vec![1.0, 1.0]).is_nan());
        assert!(error_of(vec![1.0, 1.0], vec![], vec![1.0, f32::NAN]).is_nan());
        assert_eq!(error_of(vec![1.0], vec![], vec![1.0, 2.0]), f64::INFINITY);
        assert!(largest_error("none", &Vec::new(), None).error.is_nan());
    }
}
