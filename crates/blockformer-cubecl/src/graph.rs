//! Graph capture on a device, as Burn's `capture` does it, but for the reason why it fails.
#![allow(unsafe_code)] // Repeats launches on the memory they were captured with.

use burn::backend::{Backend, BackendTypes, Dispatch, DispatchDevice};
use burn::tensor::{DType, Device, Tensor};

/// Times that work is done before it is captured: the first one tunes kernels, and the second takes other ways through fusion than
/// the first; what memory the next ones take, the capture finds.
const WARM_UPS: usize = 3;

/// `Tensor::inplace` leaves a tensor of no numbers behind for a moment. Whether fusion asks for memory for it (of no bytes) differs from
/// one time to the next, so a capture may be the first to ask, when none may be found any more: there is room for so many.
const EMPTY_TENSORS: usize = 64;

/// Launches that were captured, and what they gave.
pub(crate) struct Captured<T> {
    device: DispatchDevice,
    graph: <Dispatch as BackendTypes>::GraphPrimitive,
    output: T,
}

impl<T> Captured<T> {
    /// Does `work` some times and captures what it launches.
    ///
    /// # Errors
    /// The reason why the device made no graph of it.
    pub(crate) fn new(device: &Device, mut work: impl FnMut() -> T) -> Result<Self, String> {
        let nothing = || Tensor::<1>::empty([0], (device, DType::F32));
        let room = || (0..EMPTY_TENSORS).map(|_| nothing()).collect::<Vec<_>>();
        let device = device.as_dispatch();
        let reason = |error| format!("{error}");
        Dispatch::graph_prepare(device).map_err(reason)?;
        for _ in 0..WARM_UPS {
            let output = work();
            // What is dropped before is not computed. An error shows where something is read.
            let _ = Dispatch::sync(device);
            drop(output);
        }
        let room = room();
        let _ = Dispatch::sync(device);
        drop(room);
        let _ = Dispatch::sync(device);
        Dispatch::graph_start_capture(device).map_err(reason)?;
        let output = work();
        let graph = Dispatch::graph_stop_capture(device).map_err(reason)?;
        Ok(Self { device: device.clone(), graph, output })
    }

    /// Launches it again: the output, until the next time.
    ///
    /// # Panics
    /// If the device fails.
    ///
    /// # Safety
    /// All that the work reads and writes has to be alive, and on the stream that captured it alone.
    pub(crate) unsafe fn replay(&self) -> &T {
        // SAFETY: The caller keeps to what this function asks for, which is what that one does.
        if let Err(error) = unsafe { Dispatch::graph_replay(&self.device, &self.graph) } {
            panic!("a captured graph was not launched: {error}");
        }
        &self.output
    }
}
