//! Mean loss by position, as a table and a picture.

use std::path::Path;

use plotters::prelude::*;

use crate::EvalError;

/// Losses summed up by a position.
#[derive(Debug, Clone, PartialEq)]
pub struct LossByPosition {
    sums: Vec<f64>,
    counts: Vec<usize>,
}

impl LossByPosition {
    /// Of positions from 0 up to `n`.
    pub fn new(n: usize) -> Self {
        Self { sums: vec![0.0; n], counts: vec![0; n] }
    }

    /// Adds the loss of a token.
    ///
    /// # Panics
    /// If there is no such position.
    pub fn add(&mut self, position: usize, loss: f64) {
        self.sums[position] += loss;
        self.counts[position] += 1;
    }

    /// How many positions there are.
    pub fn n_positions(&self) -> usize {
        self.sums.len()
    }

    /// The mean loss of `width` positions at a time: the first of them, the tokens counted, their mean loss. Those
    /// without a token are left out.
    ///
    /// # Panics
    /// If `width` is 0.
    pub fn means(&self, width: usize) -> Vec<(usize, usize, f64)> {
        let chunks = self.sums.chunks(width).zip(self.counts.chunks(width)).enumerate();
        let mean = |(chunk, (sums, counts)): (usize, (&[f64], &[usize]))| {
            let n: usize = counts.iter().sum();
            (n > 0).then(|| (chunk * width, n, sums.iter().sum::<f64>() / n as f64))
        };
        chunks.filter_map(mean).collect()
    }

    /// [`means`](Self::means) as CSV: `position,tokens,loss`.
    pub fn to_csv(&self, width: usize) -> String {
        let rows = self.means(width).into_iter().map(|(position, n, loss)| format!("{position},{n},{loss:.6}\n"));
        std::iter::once("position,tokens,loss\n".to_owned()).chain(rows).collect()
    }

    /// Draws [`means`](Self::means) as SVG.
    ///
    /// # Errors
    /// [`EvalError::Draw`] if it cannot be written.
    pub fn draw(&self, width: usize, path: &Path, title: &str, axis: &str) -> Result<(), EvalError> {
        let drawn = self.try_draw(width, path, title, axis);
        drawn.map_err(|error| EvalError::Draw { path: path.into(), reason: error.to_string() })
    }

    fn try_draw(&self, width: usize, path: &Path, title: &str, axis: &str) -> Result<(), Box<dyn std::error::Error>> {
        let means = self.means(width);
        let losses = means.iter().map(|(_, _, loss)| *loss);
        let (low, high) = losses.fold((f64::MAX, f64::MIN), |(low, high), loss| (low.min(loss), high.max(loss)));
        let Some(&(last, ..)) = means.last() else { return Ok(()) };
        let margin = ((high - low) * 0.1).max(0.01);
        let root = SVGBackend::new(path, (800, 480)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..(last + width) as f64, low - margin..high + margin)?;
        chart.configure_mesh().x_desc(axis).y_desc("loss, nats a token").draw()?;
        // Each mean stands in the middle of its positions.
        let points = means.iter().map(|&(position, _, loss)| (position as f64 + width as f64 / 2.0, loss));
        chart.draw_series(LineSeries::new(points, BLUE.stroke_width(2)))?;
        root.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses() -> LossByPosition {
        let mut losses = LossByPosition::new(6);
        for (position, loss) in [(0, 4.0), (0, 2.0), (1, 6.0), (4, 1.0)] {
            losses.add(position, loss);
        }
        losses
    }

    #[test]
    fn means_are_over_tokens_not_over_positions() {
        assert_eq!(losses().means(1), [(0, 2, 3.0), (1, 1, 6.0), (4, 1, 1.0)]);
        assert_eq!(losses().means(2), [(0, 3, 4.0), (4, 1, 1.0)]);
        assert_eq!(losses().to_csv(4), "position,tokens,loss\n0,3,4.000000\n4,1,1.000000\n");
    }

    #[test]
    fn the_picture_is_an_svg_with_its_title() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("loss.svg");
        losses().draw(2, &path, "a model", "tokens before").unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.contains("<svg") && svg.contains("a model") && svg.contains("polyline"));
        let error = losses().draw(2, &directory.path().join("no/loss.svg"), "", "").unwrap_err();
        assert!(error.to_string().contains("loss.svg"), "{error}");
    }
}
