//! The loss curve as a picture.

use std::path::Path;

use plotters::prelude::*;

use crate::{MetricsRow, TrainError};

/// Points of the training loss in the picture: longer runs are averaged.
const MAX_POINTS: usize = 800;

/// Draws training and validation loss over the tokens seen, as SVG. The training loss of long runs is averaged over
/// neighbouring steps. Draws nothing if there are no rows.
///
/// # Errors
/// [`TrainError::Curve`] if it cannot be written.
pub fn draw_loss_curve(rows: &[MetricsRow], path: &Path, title: &str) -> Result<(), TrainError> {
    if rows.is_empty() {
        return Ok(());
    }
    let svg = || -> Result<String, Box<dyn std::error::Error>> {
        let mut svg = String::new();
        draw(rows, &mut svg, title)?;
        Ok(svg)
    };
    let failed = |reason: String| TrainError::Curve { path: path.into(), reason };
    let svg = svg().map_err(|error| failed(error.to_string()))?;
    std::fs::write(path, svg).map_err(|error| failed(error.to_string()))
}

fn draw(rows: &[MetricsRow], svg: &mut String, title: &str) -> Result<(), Box<dyn std::error::Error>> {
    let million = |row: &MetricsRow| row.tokens as f64 / 1e6;
    let training: Vec<(f64, f64)> = averaged(rows);
    let validation: Vec<(f64, f64)> =
        rows.iter().filter_map(|row| Some((million(row), row.validation_loss?))).collect();
    let losses = || training.iter().chain(&validation).map(|(_, loss)| *loss);
    let (low, high) = losses().fold((f64::MAX, f64::MIN), |(low, high), loss| (low.min(loss), high.max(loss)));
    let end = rows.last().map_or(1.0, million).max(1e-6);
    let root = SVGBackend::with_string(svg, (800, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..end, low.floor()..high.min(low + 4.0).ceil().max(low.floor() + 1.0))?;
    chart.configure_mesh().x_desc("million tokens").y_desc("loss, nats a token").draw()?;
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

/// Tokens seen, in millions, and the mean training loss of runs of rows.
fn averaged(rows: &[MetricsRow]) -> Vec<(f64, f64)> {
    let length = rows.len().div_ceil(MAX_POINTS).max(1);
    let mean = |rows: &[MetricsRow]| {
        let tokens = rows.iter().map(|row| row.tokens as f64).sum::<f64>() / rows.len() as f64;
        (tokens / 1e6, rows.iter().map(|row| row.loss).sum::<f64>() / rows.len() as f64)
    };
    rows.chunks(length).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: usize) -> MetricsRow {
        MetricsRow {
            step,
            tokens: step * 100,
            loss: 3.0 / step as f64,
            validation_loss: (step == 2).then_some(1.6),
            learning_rate: 1e-3,
            gradient_norm: 1.0,
            loss_scale: 1.0,
            batch_size: 4,
            tokens_per_second: 10.0,
            data_wait: 0.0,
            memory_bytes: None,
        }
    }

    #[test]
    fn the_picture_is_an_svg_with_both_series() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("loss.svg");
        draw_loss_curve(&[row(1), row(2)], &path, "a run").unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.contains("<svg") && svg.contains("validation") && svg.contains("a run"));
        assert!(matches!(draw_loss_curve(&[row(1)], directory.path(), "a run"), Err(TrainError::Curve { .. })));
    }

    #[test]
    fn long_runs_are_averaged_to_what_a_picture_can_show() {
        let rows: Vec<MetricsRow> = (1..=4000).map(row).collect();
        let points = averaged(&rows);
        assert_eq!(points.len(), MAX_POINTS);
        assert!((points[0].1 - (3.0 + 1.5 + 1.0 + 0.75 + 0.6) / 5.0).abs() < 1e-12);
    }
}
