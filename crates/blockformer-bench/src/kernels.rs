//! What a step launches on a GPU.

use std::time::Duration;

use blockformer_cubecl::{KernelUse, Observe, observe_kernels};
use blockformer_generate::{Decoding, DeviceDecoding};
use burn::tensor::Device;
use serde::Serialize;

use crate::measure::begin;
use crate::{BenchError, MeasureOptions, Subject, Workload};

/// Rounds of tokens that are observed.
const ROUNDS: usize = 2;

/// What steps launch, a step being one token of every sequence, with its share of what happens once a block.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepKernels {
    /// Steps that were observed.
    pub steps: usize,
    /// Kernels launched a step.
    pub launches: f64,
    /// Milliseconds a step that kernels computed, where the device measured them. What a step takes beyond that, the device
    /// waited for the host.
    pub milliseconds: Option<f64>,
    /// Those that take longest first.
    pub kernels: Vec<StepKernel>,
}

/// One kernel's part in a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepKernel {
    /// What it calls itself.
    pub kernel: String,
    /// Launches a step.
    pub launches: f64,
    /// Milliseconds a step, where the device measured them.
    pub milliseconds: Option<f64>,
}

impl StepKernels {
    fn new(kernels: &[KernelUse], steps: usize) -> Self {
        let a_step = |amount: f64| amount / steps as f64;
        let milliseconds = |time: Duration| a_step(time.as_secs_f64() * 1e3);
        let of = |kernel: &KernelUse| StepKernel {
            kernel: kernel.kernel.clone(),
            launches: a_step(kernel.launches as f64),
            milliseconds: kernel.time.map(milliseconds),
        };
        let time: Option<Duration> = kernels.iter().map(|kernel| kernel.time).sum();
        Self {
            steps,
            launches: a_step(kernels.iter().map(|kernel| kernel.launches).sum::<usize>() as f64),
            milliseconds: time.map(milliseconds),
            kernels: kernels.iter().map(of).collect(),
        }
    }
}

/// What the steps behind the prompts launch: those of two whole rounds (16 tokens each, or whole blocks of so many) as
/// they are when the same has been [measured](crate::measure()) before, so that nothing is compiled or tuned any more.
/// `None` where nothing can be observed: without CubeCL's backends, for packed models, for tokens found on the host, and for
/// workloads that have no whole round behind the first.
///
/// # Errors
/// As [`measure`](crate::measure()).
pub fn step_kernels(
    subject: &Subject<'_>,
    workload: &Workload,
    options: &MeasureOptions,
    device: &Device,
) -> Result<Option<StepKernels>, BenchError> {
    let (Some(model), Decoding::Device(decoding)) = (subject.plain(), options.decoding) else { return Ok(None) };
    // What a graph launches nobody sees, and it is the same.
    let decoding = DeviceDecoding { recorded_from: None, ..decoding };
    let mut rounds = begin(model, workload, options, decoding, device)?;
    let Some(first) = rounds.next_tokens()? else { return Ok(None) };
    let whole = (workload.new_tokens / first.len()).saturating_sub(1).min(ROUNDS);
    if whole == 0 {
        return Ok(None);
    }
    let (steps, kernels) = observe_kernels(Observe::Times, || {
        (0..whole).try_fold(0, |steps, _| Ok::<_, BenchError>(steps + rounds.next_tokens()?.map_or(0, |t| t.len())))
    });
    let steps = steps?;
    let kernels = kernels.filter(|kernels| steps > 0 && !kernels.is_empty());
    Ok(kernels.map(|kernels| StepKernels::new(&kernels, steps)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_and_times_are_those_of_a_step() {
        let kernel = |name: &str, launches, time| KernelUse { kernel: name.into(), launches, time };
        let used = [kernel("a", 8, Some(Duration::from_millis(4))), kernel("b", 4, Some(Duration::from_millis(2)))];
        let of = StepKernels::new(&used, 8);
        assert_eq!((of.launches, of.milliseconds), (1.5, Some(0.75)));
        assert_eq!((of.kernels[1].launches, of.kernels[1].milliseconds), (0.5, Some(0.25)));
        let of = StepKernels::new(&[used[0].clone(), kernel("c", 8, None)], 8);
        assert_eq!((of.launches, of.milliseconds), (2.0, None), "a sum that lacks a part is none");
    }
}
