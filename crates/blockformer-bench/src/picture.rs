//! Pictures of a report, as SVG.

use std::path::Path;

use plotters::prelude::*;

use crate::Report;
use crate::report::{front, label};

type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Throughput against batch size, both logarithmic, one line a model, precision and workload.
pub(crate) fn throughput(report: &Report, path: &Path) -> Drawn {
    let mut series: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for m in &report.measurements {
        let point = (m.batch as f64, m.tokens_per_second.median.max(f64::MIN_POSITIVE));
        let label = label(m);
        match series.iter_mut().find(|(known, _)| *known == label) {
            Some((_, points)) => points.push(point),
            None => series.push((label, vec![point])),
        }
    }
    let Some((x, y)) = ranges(series.iter().flat_map(|(_, points)| points)) else { return Ok(()) };
    let root = SVGBackend::new(path, (900, 540)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("throughput", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(x.log_scale(), y.log_scale())?;
    chart.configure_mesh().x_desc("batch size").y_desc("tokens a second").draw()?;
    for (index, (label, mut points)) in series.into_iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    root.present()?;
    Ok(())
}

/// The most tokens a second of any batch size against loss, and the Pareto front.
pub(crate) fn pareto(report: &Report, path: &Path) -> Drawn {
    let points = report.fastest_by_loss();
    let plain: Vec<(f64, f64)> = points.iter().map(|(_, loss, speed)| (*loss, *speed)).collect();
    let Some((_, y)) = ranges(plain.iter()) else { return Ok(()) };
    let (low, high) = plain.iter().fold((f64::MAX, f64::MIN), |(low, high), p| (low.min(p.0), high.max(p.0)));
    let margin = (0.15 * (high - low)).max(0.05);
    let root = SVGBackend::new(path, (900, 540)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("throughput and loss", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(low - margin..high + margin, y.log_scale())?;
    chart.configure_mesh().x_desc("loss, nats a token").y_desc("tokens a second").draw()?;
    chart.draw_series(LineSeries::new(front(&points), BLACK.mix(0.5).stroke_width(2)))?;
    for (index, (label, loss, speed)) in points.into_iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        chart
            .draw_series([Circle::new((loss, speed), 5, colour.filled())])?
            .label(label)
            .legend(move |(x, y)| Circle::new((x + 9, y), 4, colour.filled()));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    root.present()?;
    Ok(())
}

/// What both axes span, with some room; `None` without points.
fn ranges<'a>(points: impl Iterator<Item = &'a (f64, f64)>) -> Option<(std::ops::Range<f64>, std::ops::Range<f64>)> {
    let mut bounds: Option<[f64; 4]> = None;
    for &(x, y) in points {
        let [x0, x1, y0, y1] = bounds.unwrap_or([x, x, y, y]);
        bounds = Some([x0.min(x), x1.max(x), y0.min(y), y1.max(y)]);
    }
    let [x0, x1, y0, y1] = bounds?;
    Some((x0 * 0.8..x1 * 1.25, y0 * 0.7..y1 * 1.4))
}
