//! The course of a run: a CSV file and a picture.

use std::fmt::Write;
use std::path::Path;

use plotters::prelude::*;

use crate::TrainError;

/// One row of the course.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CurvePoint {
    /// Steps done.
    pub step: usize,
    /// Tokens seen.
    pub tokens: usize,
    /// Mean training loss since the last row, in nats a token.
    pub loss: f64,
    /// Validation loss, if it was measured here.
    pub validation_loss: Option<f64>,
    /// Learning rate.
    pub learning_rate: f64,
    /// Gradient norm before clipping.
    pub gradient_norm: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
}

/// The course of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LossCurve {
    /// Its rows.
    pub points: Vec<CurvePoint>,
}

const HEADER: &str = "step,tokens,loss,validation_loss,learning_rate,gradient_norm,tokens_per_second";

impl LossCurve {
    /// The rows as CSV.
    pub fn to_csv(&self) -> String {
        let mut csv = format!("{HEADER}\n");
        for p in &self.points {
            let validation = p.validation_loss.map_or(String::new(), |loss| format!("{loss:.4}"));
            // Writing to a string cannot fail.
            let _ = writeln!(
                csv,
                "{},{},{:.4},{validation},{:.3e},{:.3},{:.0}",
                p.step, p.tokens, p.loss, p.learning_rate, p.gradient_norm, p.tokens_per_second
            );
        }
        csv
    }

    /// Reads rows that [`to_csv`](Self::to_csv) wrote, up to and including step `until`: where a resumed run goes on.
    /// Rows that cannot be read are left out.
    pub fn from_csv(csv: &str, until: usize) -> Self {
        let parse = |line: &str| {
            let cells: Vec<&str> = line.split(',').collect();
            let [step, tokens, loss, validation, rate, norm, speed] = cells[..] else { return None };
            Some(CurvePoint {
                step: step.parse().ok()?,
                tokens: tokens.parse().ok()?,
                loss: loss.parse().ok()?,
                validation_loss: validation.parse().ok(),
                learning_rate: rate.parse().ok()?,
                gradient_norm: norm.parse().ok()?,
                tokens_per_second: speed.parse().ok()?,
            })
        };
        Self { points: csv.lines().skip(1).filter_map(parse).filter(|point| point.step <= until).collect() }
    }

    /// Draws training and validation loss over the tokens seen, as SVG.
    ///
    /// # Errors
    /// [`TrainError::Curve`] if it cannot be written.
    pub fn draw(&self, path: &Path, title: &str) -> Result<(), TrainError> {
        self.try_draw(path, title).map_err(|error| TrainError::Curve { path: path.into(), reason: error.to_string() })
    }

    fn try_draw(&self, path: &Path, title: &str) -> Result<(), Box<dyn std::error::Error>> {
        let losses = || self.points.iter().flat_map(|p| [Some(p.loss), p.validation_loss]).flatten();
        let (low, high) = losses().fold((f64::MAX, f64::MIN), |(low, high), loss| (low.min(loss), high.max(loss)));
        if low > high {
            return Ok(()); // nothing to draw
        }
        let end = self.points.last().map_or(1.0, |p| p.tokens as f64 / 1e6);
        let root = SVGBackend::new(path, (800, 480)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..end, low.floor()..high.min(low + 4.0).ceil())?;
        chart.configure_mesh().x_desc("million tokens").y_desc("loss, nats a token").draw()?;
        let million = |p: &CurvePoint| p.tokens as f64 / 1e6;
        let training = self.points.iter().map(|p| (million(p), p.loss));
        let validation = self.points.iter().filter_map(|p| Some((million(p), p.validation_loss?)));
        chart
            .draw_series(LineSeries::new(training, &BLUE.mix(0.6)))?
            .label("training")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], BLUE));
        chart
            .draw_series(LineSeries::new(validation, RED.stroke_width(2)))?
            .label("validation")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], RED));
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
        root.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_csv_up_to_the_resumed_step() {
        let point = |step| CurvePoint {
            step,
            tokens: step * 100,
            loss: 2.5,
            validation_loss: (step == 20).then_some(2.75),
            learning_rate: 1e-3,
            gradient_norm: 0.5,
            tokens_per_second: 1000.0,
        };
        let curve = LossCurve { points: vec![point(10), point(20), point(30)] };
        assert_eq!(LossCurve::from_csv(&curve.to_csv(), 20).points, curve.points[..2]);
    }

    #[test]
    fn the_picture_is_an_svg_with_both_series() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("loss.svg");
        let csv = format!("{HEADER}\n1,100,3.0,3.1,1e-3,1,10\n2,200,2.0,2.1,1e-3,1,10\n");
        LossCurve::from_csv(&csv, 9).draw(&path, "a run").unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.contains("<svg") && svg.contains("validation") && svg.contains("a run"));
    }
}
