//! Watching which kernels are launched.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cubecl::future::block_on;
use cubecl::profile::{ProfileDuration, TimingMethod};
use cubecl_runtime::config::{TypeNameFormatLevel, type_name_format};
use cubecl_runtime::logging::{LaunchObservation, LaunchObserver, TimingRequest};

use crate::{KernelUse, Observe};

/// What has been seen so far, by the names kernels give themselves.
struct Seen {
    what: Observe,
    kernels: Mutex<BTreeMap<&'static str, Launches>>,
}

#[derive(Default)]
struct Launches {
    count: usize,
    /// To be read when all is over: until then nobody waits for the device.
    unread: Vec<ProfileDuration>,
    time: Duration,
    timed: usize,
}

impl Seen {
    fn kernels(&self) -> MutexGuard<'_, BTreeMap<&'static str, Launches>> {
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner) // numbers are numbers
    }
}

impl LaunchObserver for Seen {
    fn launched(&self, kernel: &'static str) {
        self.kernels().entry(kernel).or_default().count += 1;
    }

    fn timing(&self) -> TimingRequest {
        match self.what {
            Observe::Launches => TimingRequest::None,
            Observe::Times => TimingRequest::Deferred,
        }
    }

    fn profiled(&self, kernel: &'static str, profile: ProfileDuration) {
        if profile.timing_method() == TimingMethod::Device {
            self.kernels().entry(kernel).or_default().unread.push(profile);
        }
    }

    // In place of the former, where CubeCL's own log of kernels is on.
    fn timed(&self, kernel: &'static str, duration: Duration, method: TimingMethod) {
        if method == TimingMethod::Device {
            let mut kernels = self.kernels();
            let launches = kernels.entry(kernel).or_default();
            launches.time += duration;
            launches.timed += 1;
        }
    }
}

impl Launches {
    fn read(self, kernel: &str) -> KernelUse {
        let Self { count, unread, mut time, mut timed } = self;
        for ticks in unread.into_iter().filter_map(|profile| block_on(profile.resolve())) {
            time += ticks.duration();
            timed += 1;
        }
        let kernel = type_name_format(kernel, TypeNameFormatLevel::Balanced);
        KernelUse { kernel, launches: count, time: (timed == count).then_some(time) }
    }
}

pub(crate) fn observe<T>(what: Observe, work: impl FnOnce() -> T) -> (T, Vec<KernelUse>) {
    let seen = Arc::new(Seen { what, kernels: Mutex::default() });
    let observation = LaunchObservation::new(seen.clone());
    let result = work();
    drop(observation);
    let kernels = std::mem::take(&mut *seen.kernels());
    let mut used: Vec<_> = kernels.into_iter().map(|(kernel, launches)| launches.read(kernel)).collect();
    used.sort_by(|a, b| (b.time, b.launches, &a.kernel).cmp(&(a.time, a.launches, &b.kernel)));
    (result, used)
}
