//! The reference cases of this repository, on the device named by `BLOCKFORMER_TEST_DEVICE` (the CPU by default).

use std::path::{Path, PathBuf};

use blockformer::verify::{self, CaseReport};

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference-cases")
}

fn table(report: &CaseReport) -> String {
    match &report.checks {
        Ok(checks) => {
            checks.iter().map(|c| format!("{}: {:.2e} of {:.0e}\n", c.quantity, c.error, c.tolerance)).collect()
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_reference_case_passes() {
    let name = std::env::var("BLOCKFORMER_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    let device = blockformer::device(&name).unwrap();
    let reports = verify::directory(&cases(), &device, |_| ()).unwrap();
    for report in &reports {
        assert!(report.passed(), "{}:\n{}", report.case, table(report));
    }
    assert!(reports.len() >= 22, "only {} cases were found", reports.len());
}
