//! Which kernels something launches.

use std::time::Duration;

#[cfg(feature = "_kernels")]
use crate::kernels;

/// What [`observe_kernels`] looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observe {
    /// How often kernels are launched, which costs next to nothing.
    Launches,
    /// And how long each takes on the device. The device measures while its kernels run one after another as they do
    /// otherwise, but launching them takes longer.
    Times,
}

/// A kernel that was launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelUse {
    /// What it calls itself, without paths.
    pub kernel: String,
    /// How often.
    pub launches: usize,
    /// How long all its launches took; `None` where this was not asked for or the device did not measure all of them.
    pub time: Option<Duration>,
}

/// Does `work` and tells which kernels were launched meanwhile, by all threads of the process: the longest, or the most
/// launched, first. `None` in a build without one of the features `wgpu` and `cuda`.
///
/// Burn launches late: `work` should end with reading something. What it does for the first time is compiled and tuned, and
/// the tuning's launches count. Only one observation is possible at a time; another one that begins meanwhile takes
/// its launches.
pub fn observe_kernels<T>(what: Observe, work: impl FnOnce() -> T) -> (T, Option<Vec<KernelUse>>) {
    #[cfg(feature = "_kernels")]
    {
        let (result, kernels) = kernels::observe(what, work);
        (result, Some(kernels))
    }
    #[cfg(not(feature = "_kernels"))]
    {
        let _ = what;
        (work(), None)
    }
}
