//! Whether the device gives right answers.

use blockformer::self_check::{Outcome, SelfCheckError, SelfCheckLine, SelfCheckOptions, self_check_with};
use blockformer::verify::{self, VerifyPrecision};
use serde_json::{Value, json};

use super::{Precision, Run, Section, value_name};
use crate::error::CliError;

pub(super) fn self_check(run: &mut Run<'_>) -> Result<Value, CliError> {
    let mut lines = Vec::new();
    // TF32 is reported, and is what this card is used with unless it is switched off.
    let options = SelfCheckOptions { allow_tf32: true };
    let result = self_check_with(&run.device, &options, |line| {
        eprintln!("  {line}");
        lines.push(to_json(line));
    });
    let passed = result.is_ok();
    let report = match result {
        Ok(report) | Err(SelfCheckError::Failed { report }) => report,
        Err(error) => return Err(error.into()),
    };
    let tf32 = if report.tf32 { "; products of float32 are rounded to TF32" } else { "" };
    Ok(json!({ "summary": format!("{report}{tf32}"), "passed": passed, "tf32": report.tf32, "lines": lines }))
}

fn to_json(line: &SelfCheckLine) -> Value {
    let (name, seconds, passed) = (line.name, line.seconds, line.passed());
    match &line.outcome {
        Outcome::Compared { part, error, tolerance } => {
            json!({ "name": name, "part": part, "error": error, "tolerance": tolerance, "passed": passed, "seconds": seconds })
        }
        _ => json!({ "name": name, "said": line.to_string(), "passed": passed, "seconds": seconds }),
    }
}

pub(super) fn verify(run: &mut Run<'_>) -> Result<(), CliError> {
    let Some(cases) = run.arguments.cases.clone() else {
        eprintln!("verify: no --cases, so nothing is done");
        return Ok(());
    };
    for precision in run.arguments.precision.clone() {
        run.item(Section::Verify, &value_name(precision), |run| {
            run.check_type(precision)?;
            let found = run.record.find("self-check", "all checks");
            let tf32 = found.is_some_and(|row| row.result.get("tf32") == Some(&Value::Bool(true)));
            let precision = match precision {
                Precision::F32 if tf32 => VerifyPrecision::Tf32,
                Precision::F32 => VerifyPrecision::F32,
                Precision::Bf16 => VerifyPrecision::Bf16,
                Precision::F16 => VerifyPrecision::F16,
            };
            all_cases(run, &cases, precision)
        })?;
    }
    Ok(())
}

fn all_cases(run: &Run<'_>, cases: &std::path::Path, precision: VerifyPrecision) -> Result<Value, CliError> {
    let reports = verify::directory_in(cases, &run.device, precision, |report| {
        eprintln!("  {}: {}", report.case, if report.passed() { "pass" } else { "FAIL" });
    })?;
    let failed = reports.iter().filter(|report| !report.passed()).count();
    let case = |report: &verify::CaseReport| match &report.checks {
        Ok(checks) => {
            let check = |check: &verify::Check| json!({ "quantity": check.quantity, "error": check.error, "tolerance": check.tolerance });
            json!({ "case": report.case, "passed": report.passed(), "checks": checks.iter().map(check).collect::<Vec<_>>() })
        }
        Err(error) => json!({ "case": report.case, "passed": false, "error": error.to_string() }),
    };
    Ok(json!({
        "summary": format!("{} cases, {failed} failed, with tolerances of {precision:?}", reports.len()),
        "passed": failed == 0,
        "cases": reports.iter().map(case).collect::<Vec<_>>(),
    }))
}
