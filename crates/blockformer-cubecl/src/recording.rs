//! Work that is launched once and then repeated by one call.
#![cfg_attr(feature = "_kernels", allow(unsafe_code))] // Repeats launches on the memory they were recorded with.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, StreamId, Tensor};

#[cfg(feature = "_kernels")]
use crate::graph::Captured;
use crate::has_kernels;

/// What goes into [`Recording`]s and comes out of them: tensors, one or several, all on one device.
pub trait Recordable: Clone + Send {
    /// The device; `None` if there is no tensor.
    fn device(&self) -> Option<Device>;
    /// Whether there are kernels that write others over these.
    fn can_be_held(&self) -> bool;
    /// The same numbers in memory of their own.
    ///
    /// # Panics
    /// If they [cannot be held](Self::can_be_held).
    fn held(&self) -> Self;
    /// Writes others over what [`held`](Self::held) gave.
    ///
    /// # Panics
    /// If they are of other sizes or types, on another device, or absent where these are there.
    fn write_over(&mut self, others: &Self);
}

impl<const D: usize> Recordable for Tensor<D> {
    fn device(&self) -> Option<Device> {
        Some(Tensor::device(self))
    }

    fn can_be_held(&self) -> bool {
        has_kernels(self)
    }

    fn held(&self) -> Self {
        assert!(has_kernels(self), "there is no kernel that copies");
        #[cfg(feature = "_kernels")]
        return crate::kernels::held(self);
        #[cfg(not(feature = "_kernels"))]
        unreachable!("there are no kernels at all")
    }

    fn write_over(&mut self, others: &Self) {
        let of = |x: &Self| (x.dims(), x.dtype(), Tensor::device(x));
        assert_eq!(of(self), of(others), "the sizes, type and device that were recorded");
        assert!(has_kernels(self), "there is no kernel that copies");
        #[cfg(feature = "_kernels")]
        crate::kernels::write_over(self, others);
    }
}

impl<T: Recordable> Recordable for Option<T> {
    fn device(&self) -> Option<Device> {
        self.as_ref().and_then(T::device)
    }

    fn can_be_held(&self) -> bool {
        self.as_ref().is_none_or(T::can_be_held)
    }

    fn held(&self) -> Self {
        self.as_ref().map(T::held)
    }

    fn write_over(&mut self, others: &Self) {
        match (self, others) {
            (Some(held), Some(others)) => held.write_over(others),
            (None, None) => {}
            _ => panic!("a tensor is there if it was there when it was recorded"),
        }
    }
}

impl<T: Recordable, U: Recordable> Recordable for (T, U) {
    fn device(&self) -> Option<Device> {
        self.0.device().or_else(|| self.1.device())
    }

    fn can_be_held(&self) -> bool {
        self.0.can_be_held() && self.1.can_be_held()
    }

    fn held(&self) -> Self {
        (self.0.held(), self.1.held())
    }

    fn write_over(&mut self, others: &Self) {
        self.0.write_over(&others.0);
        self.1.write_over(&others.1);
    }
}

/// Graph capture: work on a device that is launched kernel by kernel some times, and then replayed by one call, as a CUDA graph
/// or what CubeCL makes of it elsewhere. A host that takes longer to launch small kernels than the device to compute
/// them no longer counts.
///
/// The work has to be a function of its inputs, of tensors that it owns or borrows, and of memory that it writes in place. It is
/// done three times before it is recorded, so that doing it again must change nothing. Numbers that it brings from the host are
/// kept as they are then, and it may not wait for the device. If it does, or the device cannot record,
/// [`is_recorded`](Self::is_recorded) is false, and **what the work writes in place may then be lost**: begin again from a
/// copy.
///
/// **No other thread may use the device while [`new`](Self::new) works**: drivers refuse meanwhile, to every thread, what could
/// wait for the device, and what that thread computes is lost, without a word until it is read. Afterwards they may.
///
/// Whatever the work computes with has to come from the same stream, which without further ado is the thread, or the device does not
/// record. It [repeats](Self::repeat) on that stream alone, as its launches are in order with what else is launched there; another
/// thread can do so [on that stream](StreamId::executes).
pub struct Recording<'a, I, T> {
    inputs: Arc<Mutex<I>>,
    work: Work<'a, T>,
    panic: Panic,
    failure: Option<String>,
    stream: StreamId,
}

/// Nothing if the work has panicked.
type Closure<'a, T> = Box<dyn FnMut() -> Option<T> + Send + 'a>;

/// What a panic of the work came with.
type Panic = Arc<Mutex<Option<Box<dyn Any + Send>>>>;

enum Work<'a, T> {
    #[cfg(feature = "_kernels")]
    Recorded {
        captured: Box<Captured<Option<T>>>,
        /// It owns what it computes with.
        _work: Closure<'a, T>,
    },
    Done(Closure<'a, T>),
}

/// What a panic has left behind is still what it was.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Goes on with a panic of the work, if there was one.
fn resume(panic: &Panic) {
    if let Some(panic) = lock(panic).take() {
        resume_unwind(panic);
    }
}

impl<'a, I: Recordable + 'a, T: Recordable + 'a> Recording<'a, I, T> {
    /// Does `work` three times, for kernels to be tuned and memory to be found, and records it. `inputs` are of the sizes that
    /// all later ones have. On a device without [kernels](Recordable::can_be_held) nothing is done yet.
    ///
    /// Memory that the work writes in place has to stay what it was as long as the recording lives: other tensors in its stead,
    /// behind a lock that the work shares, would not be seen.
    ///
    /// # Panics
    /// If the work does.
    pub fn new(inputs: I, mut work: impl FnMut(I) -> T + Send + 'a) -> Self {
        let device = inputs.device().filter(|_| inputs.can_be_held());
        let inputs = Arc::new(Mutex::new(if device.is_some() { inputs.held() } else { inputs }));
        let given = Arc::clone(&inputs);
        let panic = Panic::default();
        let told = Arc::clone(&panic);
        // A panic may not leave the device recording.
        #[cfg_attr(not(feature = "_kernels"), allow(unused_mut))]
        let mut each_time: Closure<'a, T> = Box::new(move || {
            let inputs = lock(&given).clone();
            let done = lock(&told).is_none().then(|| catch_unwind(AssertUnwindSafe(|| work(inputs))));
            done?.map_err(|panic| *lock(&told) = Some(panic)).ok()
        });
        let (work, failure) = match device {
            #[cfg(feature = "_kernels")]
            Some(device) => match Captured::new(&device, &mut each_time) {
                Ok(captured) => (Work::Recorded { captured: Box::new(captured), _work: each_time }, None),
                Err(reason) => (Work::Done(each_time), Some(reason)),
            },
            _ => (Work::Done(each_time), None),
        };
        resume(&panic);
        Self { inputs, work, panic, failure, stream: StreamId::current() }
    }

    /// Why the device did not record, if it was asked to.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Whether the device repeats what was recorded; otherwise the work is done as usual.
    pub fn is_recorded(&self) -> bool {
        !matches!(self.work, Work::Done(_))
    }

    /// Whether this is the stream that made it.
    pub fn is_of_this_stream(&self) -> bool {
        self.stream == StreamId::current()
    }

    /// Does the work for these inputs; the outputs are the caller's to keep.
    ///
    /// # Panics
    /// If the work does, if inputs are of other sizes, on [another stream](Self::is_of_this_stream) than that which made it, or if the device
    /// fails.
    pub fn repeat(&mut self, inputs: I) -> T {
        assert!(self.is_of_this_stream(), "a recording repeats on the stream that made it");
        let output = match &mut self.work {
            #[cfg(feature = "_kernels")]
            Work::Recorded { captured, .. } => {
                lock(&self.inputs).write_over(&inputs);
                // SAFETY: What was recorded reads and writes memory of the device alone, none that Rust knows of. All of it
                // stays: the work owns its tensors and lives as long as the graph, inputs and output are held here, what the
                // work only borrows outlives `'a`, and CubeCL guards the pages of what it computed in between. It is
                // repeated on the stream that recorded it, as was just asserted, so it is in order with what writes its
                // inputs and reads its output.
                // The next time changes what the output's memory holds.
                unsafe { captured.replay() }.held()
            }
            Work::Done(each_time) => {
                *lock(&self.inputs) = inputs;
                each_time()
            }
        };
        resume(&self.panic);
        match output {
            Some(output) => output,
            None => unreachable!("the work has given something or panicked"),
        }
    }
}

impl<I, T> std::fmt::Debug for Recording<'_, I, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_repeats_on_its_own_stream_alone() {
        let x = Tensor::<1>::from_floats([1.0], &Device::flex());
        let (mut recording, stream) = (Recording::new(x.clone(), |x| x), StreamId::current());
        assert!(recording.is_of_this_stream());
        let elsewhere = move || {
            let there = recording.is_of_this_stream();
            assert_eq!(stream.executes(|| recording.repeat(x.clone())).into_scalar::<f32>(), 1.0);
            let repeated = catch_unwind(AssertUnwindSafe(|| recording.repeat(x)));
            (there, repeated.is_ok())
        };
        assert_eq!(std::thread::spawn(elsewhere).join().unwrap(), (false, false));
    }

    #[test]
    fn a_panic_of_the_work_goes_on_and_leaves_it_as_it_was() {
        let device = Device::flex();
        let number = |x: f32| Tensor::<1>::from_floats([x], &device);
        let mut recording = Recording::new(number(0.0), |x: Tensor<1>| {
            assert!(x.clone().into_scalar::<f32>() < 5.0, "too much");
            x
        });
        let mut repeat = |x| catch_unwind(AssertUnwindSafe(|| recording.repeat(number(x)).into_scalar::<f32>())).ok();
        assert_eq!([1.0, 7.0, 2.0].map(&mut repeat), [Some(1.0), None, Some(2.0)]);
    }

    #[test]
    fn work_that_no_device_records_is_done_each_time() {
        let device = Device::flex();
        let number = |x: f32| Tensor::<1>::from_floats([x], &device);
        let mut n = 0;
        let mut recording = Recording::new((number(0.0), None::<Tensor<1>>), |(x, _)| {
            n += 1;
            x.mul_scalar(2.0)
        });
        assert!(!recording.is_recorded());
        let outputs = [3.0, 5.0].map(|x| recording.repeat((number(x), None)));
        assert_eq!(outputs.map(Tensor::into_scalar::<f32>), [6.0, 10.0]);
        drop(recording);
        assert_eq!(n, 2);
    }
}
