//! Checks a device with small models, in seconds, so that a program can do it at its start.
//!
//! Compilers of kernels, drivers and hardware differ, and a wrong number looks like any other. [`self_check`] runs models
//! with fixed weights through everything that this library asks of a device: all kinds of embedders and token decoders,
//! generation by steps beside whole passes in several shapes (so that what an autotuner or a fuser does with one shape
//! does not hide what it does with another), the engine, tokens that are drawn on the device, gradients and training steps,
//! a large vocabulary, and shorter floats. Answers are compared with those of the CPU: in full where this build has it, and with samples that are part
//! of this crate in any case. [`verify`](crate::verify) compares with the authors' implementation, which needs files.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = blockformer::device("cpu")?;
//! let report = blockformer::self_check(&device)?;
//! assert!(report.lines.iter().all(|line| line.passed()));
//! # Ok(())
//! # }
//! ```
//!
//! A panic in a check, which is how Burn reports failures of a device, is that check's failure. What no program can catch
//! ends it all the same: a driver that aborts the process, or runs into an invalid address. Work that a device still had
//! to do when it failed may make later checks fail too, so the first failure counts most.

mod answers;
mod cached;
mod forward;
mod models;
mod products;
mod training;
mod vocabulary;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use blockformer_model::panic_message;
use blockformer_train::Precision;
use burn::tensor::{Device, FloatDType, Tensor};
use thiserror::Error;

use answers::{Answer, Error as LargestError};
use models::Subject;

/// Largest error of float32, relative to the largest number of an answer.
pub const FLOAT32_TOLERANCE: f64 = 2e-5;
/// Largest error of gradients and of what training makes of them.
pub const GRADIENTS_TOLERANCE: f64 = 1e-4;
/// Largest error of a product of float32 matrices; TF32 is beyond it.
pub const PRODUCTS_TOLERANCE: f64 = 5e-6;
/// Largest share of drawn tokens that are not the host's, one of 54: a random number may lie within rounding of a bound
/// between two tokens.
pub const DRAWS_TOLERANCE: f64 = 0.02;
/// The same where logits are a little different, by TF32.
pub const TF32_DRAWS_TOLERANCE: f64 = 0.15;
/// Largest error of a product whose factors were rounded to TF32; those of bfloat16 are beyond it.
pub const TF32_PRODUCTS_TOLERANCE: f64 = 1e-3;
/// Largest error where float32 products may be rounded to TF32.
pub const TF32_TOLERANCE: f64 = 5e-3;
/// Largest difference between bfloat16 and float32.
pub const BF16_TOLERANCE: f64 = 5e-2;
/// Largest difference between float16 and float32.
pub const F16_TOLERANCE: f64 = 1e-2;

/// What is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SelfCheckOptions {
    /// Products of float32 may be rounded to TF32 (10 bits behind the point), as Burn's autotuner does on NVIDIA GPUs
    /// from Ampere on. All checks in float32 then have its tolerance, if the device does so.
    pub allow_tf32: bool,
}

/// A failed check.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SelfCheckError {
    /// Some checks failed.
    #[error("{report}")]
    Failed {
        /// All checks.
        report: SelfCheckReport,
    },
}

/// What came of all checks.
#[derive(Debug, Clone, PartialEq)]
pub struct SelfCheckReport {
    /// In the order they were made.
    pub lines: Vec<SelfCheckLine>,
    /// Whether products of float32 were found to be rounded to TF32.
    pub tf32: bool,
}

impl fmt::Display for SelfCheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed: Vec<_> = self.lines.iter().filter(|line| !line.passed()).collect();
        match failed.first() {
            None => write!(f, "{} checks of the device passed", self.lines.len()),
            Some(first) => {
                write!(f, "{} of {} checks of the device failed, first {first}", failed.len(), self.lines.len())
            }
        }
    }
}

/// What came of one check.
#[derive(Debug, Clone, PartialEq)]
pub struct SelfCheckLine {
    /// What was checked.
    pub name: &'static str,
    /// What came of it.
    pub outcome: Outcome,
    /// Seconds it took, the CPU's answers included. On a GPU most are spent on compiling and tuning kernels.
    pub seconds: f64,
}

/// What came of one check.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// Numbers were compared.
    Compared {
        /// Which of the check's numbers were furthest off.
        part: String,
        /// The largest error, relative to the largest number.
        error: f64,
        /// The error allowed.
        tolerance: f64,
    },
    /// The library or the backend panicked.
    Panicked {
        /// Its message, in one line.
        message: String,
    },
    /// The device does not compute in the type.
    Unsupported,
    /// The device refused what goes beyond a limit of its own, and works on.
    Refused {
        /// Its message, in one line.
        message: String,
    },
}

impl SelfCheckLine {
    /// Whether the device can be trusted in this. An error that is not a number is a failure; a type the device does not
    /// have, or a limit that it tells, is none.
    pub fn passed(&self) -> bool {
        match &self.outcome {
            Outcome::Compared { error, tolerance, .. } => error <= tolerance,
            Outcome::Panicked { .. } => false,
            Outcome::Unsupported | Outcome::Refused { .. } => true,
        }
    }
}

impl fmt::Display for SelfCheckLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Compared { part, error, tolerance } => {
                write!(f, "{} ({part}): error {error:.1e}, allowed {tolerance:.0e}", self.name)
            }
            Outcome::Panicked { message } => write!(f, "{}: {message}", self.name),
            Outcome::Unsupported => write!(f, "{}: not a type of this device", self.name),
            Outcome::Refused { message } => {
                write!(f, "{}: refused, beyond a limit of this device: {message}", self.name)
            }
        }
    }
}

/// Runs all checks on `device`: some seconds on a CPU, and on a GPU what its kernels take to compile. One of them captures a graph,
/// so that no other thread may use the device meanwhile ([`Recording`](blockformer_cubecl::Recording)): it belongs to a program's
/// start.
///
/// # Errors
/// [`SelfCheckError::Failed`] if a check failed; its message names the first.
pub fn self_check(device: &Device) -> Result<SelfCheckReport, SelfCheckError> {
    self_check_with(device, &SelfCheckOptions::default(), |_| ())
}

/// Runs all checks, and hands each line to `on_line` as it comes.
///
/// # Errors
/// [`SelfCheckError::Failed`] if a check failed.
pub fn self_check_with(
    device: &Device,
    options: &SelfCheckOptions,
    on_line: impl FnMut(&SelfCheckLine),
) -> Result<SelfCheckReport, SelfCheckError> {
    run_all(&CHECKS, &Subject::new(device), options, on_line)
}

/// Whether a device still computes, asked by a small sum: after a failure, say.
pub fn computes(device: &Device) -> bool {
    let sum = || Tensor::<1>::ones([8], device).sum().into_scalar::<f32>();
    catch_unwind(AssertUnwindSafe(sum)).is_ok_and(|sum| sum == 8.0)
}

fn run_all(
    checks: &[Check],
    subject: &Subject,
    options: &SelfCheckOptions,
    mut on_line: impl FnMut(&SelfCheckLine),
) -> Result<SelfCheckReport, SelfCheckError> {
    let mut report = SelfCheckReport { lines: Vec::with_capacity(checks.len()), tf32: false };
    for check in checks {
        let line = check.run(subject);
        report.tf32 |= is_tf32(check, &line);
        let line = if report.tf32 && options.allow_tf32 { line.allowing_tf32(check) } else { line };
        on_line(&line);
        report.lines.push(line);
    }
    if report.lines.iter().all(SelfCheckLine::passed) { Ok(report) } else { Err(SelfCheckError::Failed { report }) }
}

fn is_tf32(check: &Check, line: &SelfCheckLine) -> bool {
    let Outcome::Compared { error, .. } = line.outcome else { return false };
    check.accuracy == Accuracy::Products && error > PRODUCTS_TOLERANCE && error <= TF32_PRODUCTS_TOLERANCE
}

impl SelfCheckLine {
    fn allowing_tf32(mut self, check: &Check) -> Self {
        if let Outcome::Compared { tolerance, .. } = &mut self.outcome {
            *tolerance = check.accuracy.with_tf32(*tolerance);
        }
        self
    }
}

/// How exact a check's numbers must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accuracy {
    /// The same numbers.
    Exact,
    /// A share of tokens.
    Draws,
    /// The same numbers, of something that a device may refuse, if it goes on to work.
    Limit,
    Products,
    Float32,
    Gradients,
    /// In another type than float32, which the device must have.
    Of(FloatDType),
}

impl Accuracy {
    fn tolerance(self) -> f64 {
        match self {
            Self::Exact | Self::Limit => 0.0,
            Self::Draws => DRAWS_TOLERANCE,
            Self::Products => PRODUCTS_TOLERANCE,
            Self::Float32 => FLOAT32_TOLERANCE,
            Self::Gradients => GRADIENTS_TOLERANCE,
            Self::Of(FloatDType::BF16) => BF16_TOLERANCE,
            Self::Of(_) => F16_TOLERANCE,
        }
    }

    /// `tolerance`, or a larger one where float32 is rounded to TF32.
    fn with_tf32(self, tolerance: f64) -> f64 {
        match self {
            Self::Products => tolerance.max(TF32_PRODUCTS_TOLERANCE),
            Self::Float32 | Self::Gradients => tolerance.max(TF32_TOLERANCE),
            Self::Draws => tolerance.max(TF32_DRAWS_TOLERANCE),
            Self::Exact | Self::Limit | Self::Of(_) => tolerance,
        }
    }
}

struct Check {
    name: &'static str,
    accuracy: Accuracy,
    run: fn(&Subject) -> Answer,
}

/// All of them. Those that tell most about a device come first.
const CHECKS: [Check; 26] = {
    use Accuracy::{Draws, Exact, Float32, Gradients, Limit, Of, Products};
    const fn check(name: &'static str, accuracy: Accuracy, run: fn(&Subject) -> Answer) -> Check {
        Check { name, accuracy, run }
    }
    [
        check("products of float32 matrices", Products, products::float32),
        check("cache written in place", Exact, cached::in_place),
        check("forward: lookup, prefix", Float32, |on| forward::block(on, &models::lookup_prefix())),
        check("forward: projected lookup, summation", Float32, |on| forward::block(on, &models::lookup_summation())),
        check("forward: encoder, prefix, grouped queries", Float32, |on| forward::block(on, &models::encoder_prefix())),
        check("forward: CLS encoder, cross-attention", Float32, |on| {
            forward::block(on, &models::cls_cross_attention())
        }),
        check("forward: two embeddings a block", Float32, |on| forward::block(on, &models::two_embeddings())),
        check("forward: vanilla, grouped queries", Float32, |on| forward::vanilla(on, &models::vanilla())),
        check("forward: fused attention", Float32, forward::long),
        check("cached = uncached: prefix", Float32, |on| cached::steps(on, &models::lookup_prefix())),
        check("cached = uncached: summation", Float32, |on| cached::steps(on, &models::lookup_summation())),
        check("cached = uncached: cross-attention", Float32, |on| cached::steps(on, &models::cls_cross_attention())),
        check("cached = uncached: two embeddings a block", Float32, |on| cached::steps(on, &models::two_embeddings())),
        check("cached = uncached: vanilla, grouped queries", Float32, |on| cached::steps(on, &models::vanilla())),
        check("prefill in pieces: tokens", Float32, cached::pieces_of_tokens),
        check("prefill in pieces: blocks", Float32, cached::pieces_of_blocks),
        check("greedy texts: engine, plain generation", Float32, cached::engine),
        check("greedy texts: tokens found on the device", Float32, cached::likeliest_on_device),
        check("greedy texts: blocks that are repeated", Float32, cached::likeliest_repeated),
        check("sampled texts: tokens drawn on the device", Draws, cached::drawn_on_device),
        check("training: block model", Gradients, |on| training::two_steps(on, &models::lookup_prefix())),
        check("training: vanilla, grouped queries", Gradients, |on| training::two_steps(on, &models::vanilla())),
        check("50,304 words", Gradients, vocabulary::large),
        check("a buffer for 768 rows of 50,304", Limit, vocabulary::buffer),
        check("bfloat16", Of(FloatDType::BF16), |on| forward::shorter(on, Precision::Bf16)),
        check("float16", Of(FloatDType::F16), |on| forward::shorter(on, Precision::F16)),
    ]
};

impl Check {
    fn run(&self, subject: &Subject) -> SelfCheckLine {
        let started = Instant::now();
        let outcome = match self.accuracy {
            Accuracy::Of(dtype) if !subject.device.supports_dtype(dtype) => Outcome::Unsupported,
            accuracy => {
                let tolerance = accuracy.tolerance();
                match catch_unwind(AssertUnwindSafe(|| self.largest_error(subject))) {
                    Ok(LargestError { part, error }) => Outcome::Compared { part, error, tolerance },
                    Err(panic) => {
                        let message = panic_message(panic.as_ref());
                        let refused = accuracy == Accuracy::Limit && computes(&subject.device);
                        if refused { Outcome::Refused { message } } else { Outcome::Panicked { message } }
                    }
                }
            }
        };
        SelfCheckLine { name: self.name, outcome, seconds: started.elapsed().as_secs_f64() }
    }

    fn largest_error(&self, subject: &Subject) -> LargestError {
        let answer = (self.run)(subject);
        let expected = Subject::cpu().filter(|cpu| cpu != subject).map(|cpu| (self.run)(&cpu));
        answers::largest_error(self.name, &answer, expected.as_ref())
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    fn failures(result: Result<SelfCheckReport, SelfCheckError>) -> Vec<&'static str> {
        match result {
            Ok(_) => Vec::new(),
            Err(SelfCheckError::Failed { report }) => {
                report.lines.iter().filter(|line| !line.passed()).map(|line| line.name).collect()
            }
        }
    }

    #[test]
    fn the_cpu_passes() {
        let mut lines = Vec::new();
        let report = self_check_with(&Device::flex(), &SelfCheckOptions::default(), |line| lines.push(line.clone()));
        let table = || lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        assert!(report.is_ok(), "{}", table());
        assert_eq!(lines.len(), CHECKS.len());
        assert!(lines.iter().all(|line| matches!(line.outcome, Outcome::Compared { .. })), "{}", table());
    }

    #[test]
    fn a_device_with_wrong_numbers_fails_every_check_of_a_model() {
        let subject = Subject::new(&Device::flex()).spoilt();
        // Texts are judged by the model that wrote them, wrong or not, and three checks are of no model.
        let without_weights =
            ["products of float32 matrices", "cache written in place", "a buffer for 768 rows of 50,304"];
        let of_themselves = |name: &str| name.contains(" texts: ") || without_weights.contains(&name);
        let checks: Vec<Check> = CHECKS.into_iter().filter(|check| !of_themselves(check.name)).collect();
        // Shorter floats have a tolerance beyond what was done to the weights.
        let checks: Vec<Check> =
            checks.into_iter().filter(|check| !matches!(check.accuracy, Accuracy::Of(_))).collect();
        let names: Vec<_> = checks.iter().map(|check| check.name).collect();
        let result = run_all(&checks, &subject, &SelfCheckOptions::default(), |_| ());
        assert!(result.as_ref().unwrap_err().to_string().contains("first forward: lookup, prefix"));
        assert_eq!(failures(result), names);
    }

    #[test]
    fn a_panic_is_the_failure_of_its_check_alone() {
        let broken = Check { name: "broken", accuracy: Accuracy::Exact, run: |_| panic!("the kernel\nis {}", "gone") };
        let checks = [broken, Check { name: "cache", accuracy: Accuracy::Exact, run: cached::in_place }];
        let result = run_all(&checks, &Subject::new(&Device::flex()), &SelfCheckOptions::default(), |_| ());
        let message = "1 of 2 checks of the device failed, first broken: the kernel is gone";
        assert_eq!(result.as_ref().unwrap_err().to_string(), message);
        assert_eq!(failures(result), ["broken"]);
    }

    #[test]
    fn a_limit_is_told_and_no_failure_as_long_as_the_device_works_on() {
        let check = |run| Check { name: "a large buffer", accuracy: Accuracy::Limit, run };
        let subject = Subject::new(&Device::flex());
        let refusal: fn(&Subject) -> Answer = |_| panic!("147 MiB are too many");
        let report = run_all(&[check(refusal)], &subject, &SelfCheckOptions::default(), |_| ()).unwrap();
        assert_eq!(report.lines[0].outcome, Outcome::Refused { message: "147 MiB are too many".into() });
        let wrong: fn(&Subject) -> Answer = |_| vec![answers::Part::equal("ends", vec![0.5], vec![0.0])];
        assert_eq!(failures(run_all(&[check(wrong)], &subject, &SelfCheckOptions::default(), |_| ())).len(), 1);
    }

    #[test]
    fn tf32_fails_unless_it_is_allowed() {
        let check = || Check { name: "products", accuracy: Accuracy::Products, run: products::tf32 };
        let subject = Subject::new(&Device::flex());
        let strict = run_all(&[check()], &subject, &SelfCheckOptions::default(), |_| ());
        let Err(SelfCheckError::Failed { report }) = strict else { panic!("TF32 passed as float32") };
        assert!(report.tf32, "{report}");
        let allow = SelfCheckOptions { allow_tf32: true };
        let report = run_all(&[check()], &subject, &allow, |_| ()).unwrap();
        assert!(report.tf32);
        // Less than TF32 is not taken for it.
        let less = Check { name: "products", accuracy: Accuracy::Products, run: products::bf16 };
        let Err(SelfCheckError::Failed { report }) = run_all(&[less], &subject, &allow, |_| ()) else {
            panic!("bfloat16 passed as TF32")
        };
        assert!(!report.tf32, "{report}");
    }

    #[test]
    fn a_device_that_draws_other_tokens_is_noticed() {
        let draws = |share: f32| vec![answers::Part::equal("share that differs", vec![0.0], vec![share])];
        assert!(answers::largest_error("none", &draws(0.1), None).error <= TF32_DRAWS_TOLERANCE);
        assert!(answers::largest_error("none", &draws(0.1), None).error > DRAWS_TOLERANCE);
        assert!(answers::largest_error("none", &draws(0.5), None).error > TF32_DRAWS_TOLERANCE);
    }

    #[test]
    fn an_error_that_is_not_a_number_is_a_failure() {
        let line = SelfCheckLine {
            name: "a check",
            outcome: Outcome::Compared { part: "logits".into(), error: f64::NAN, tolerance: 1.0 },
            seconds: 0.0,
        };
        assert!(!line.passed());
    }

    /// Run with `--ignored` where checks have changed.
    #[test]
    #[ignore = "writes the answers that are part of the crate anew"]
    fn bundled_answers_are_written() {
        let cpu = Subject::cpu().expect("this build has the CPU");
        let answers = CHECKS.iter().map(|check| (check.name, (check.run)(&cpu)));
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/self_check/answers.json");
        std::fs::write(path, answers::to_json(answers)).unwrap();
    }
}
