//! What the device allows.

use blockformer::bench::{copy_rate, product_rate};
use clap::Args;
use serde_json::json;

use super::{Precision, Run, Section, dtype, value_name};
use crate::error::CliError;

#[derive(Args)]
#[group(id = "limits")]
pub(super) struct Arguments {
    /// Size of the copies that memory is measured by
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub(super) copy_size: usize,
    /// Rows of the square matrices that arithmetic is measured by
    #[arg(long, value_name = "N", default_value_t = 8192)]
    pub(super) product_size: usize,
}

const TRIES: usize = 10;

/// The name of the row for products of a type.
pub(super) fn products(precision: Precision) -> String {
    format!("products {}", value_name(precision))
}

pub(super) fn measure(run: &mut Run<'_>) -> Result<(), CliError> {
    run.item(Section::Limits, "copy", |run| {
        let rate = copy_rate(run.arguments.limits.copy_size << 20, TRIES, &run.device)?;
        let summary = format!("{:.0} GB/s, read and written", rate / 1e9);
        Ok(json!({ "summary": summary, "bytes_per_second": rate }))
    })?;
    for precision in run.arguments.precision.clone() {
        run.item(Section::Limits, &products(precision), |run| {
            run.check_type(precision)?;
            let rate = product_rate(run.arguments.limits.product_size, dtype(precision), TRIES, &run.device)?;
            Ok(json!({ "summary": format!("{:.2} TFLOP/s", rate / 1e12), "flops": rate }))
        })?;
    }
    Ok(())
}
