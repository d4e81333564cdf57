//! Work that is launched once and then repeated by one call.
#![allow(unsafe_code)] // Repeats launches on the memory they were recorded with.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;

use burn::tensor::{Device, Graph, Tensor, capture};

use crate::has_kernels;

/// What goes into [`Recording`]s and comes out of them: tensors, one or several.
pub trait Recordable: Clone {
    /// Whether a device can write others over these.
    fn can_be_held(&self) -> bool;
    /// The same numbers in memory of their own.
    fn held(&self) -> Self;
    /// Writes others of the same sizes into that memory.
    fn write_over(&mut self, others: &Self);
}

impl<const D: usize> Recordable for Tensor<D> {
    fn can_be_held(&self) -> bool {
        has_kernels(self)
    }

    fn held(&self) -> Self {
        #[cfg(feature = "_kernels")]
        return crate::extension::held(self);
        #[cfg(not(feature = "_kernels"))]
        self.clone()
    }

    fn write_over(&mut self, others: &Self) {
        assert_eq!(self.dims(), others.dims(), "the sizes that were recorded");
        #[cfg(feature = "_kernels")]
        crate::extension::write_over(self, others);
        #[cfg(not(feature = "_kernels"))]
        self.clone_from(others);
    }
}

impl<T: Recordable> Recordable for Option<T> {
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

/// Work on a device that is launched kernel by kernel once, and from then on by one call: a CUDA graph, or what CubeCL makes
/// of it elsewhere. A host that takes longer to launch small kernels than the device to compute them no longer counts.
///
/// The work has to be a function of its inputs: no tensor that it reads may come from what it computed the last time, other
/// than memory that it writes before it reads it (a cache that is emptied first), no tensor may come from the host, and it
/// may not wait for the device. Where a device cannot record it, it is done as usual each time.
pub struct Recording<'a, I, T> {
    inputs: Rc<RefCell<I>>,
    work: Work<'a, T>,
    /// Launches are in order with those of the thread that recorded them.
    _on_this_thread: PhantomData<Rc<()>>,
}

type Closure<'a, T> = Box<dyn FnMut() -> T + 'a>;

enum Work<'a, T> {
    Recorded(Box<Graph<T, Closure<'a, T>>>),
    Done(Closure<'a, T>),
}

impl<'a, I: Recordable + 'a, T: Recordable + 'a> Recording<'a, I, T> {
    /// Does `work` some times, for kernels to be tuned and memory to be found, and records it. `inputs` are of the sizes
    /// that all later ones have.
    pub fn new(device: &Device, inputs: I, mut work: impl FnMut(I) -> T + 'a) -> Self {
        let on_device = inputs.can_be_held();
        let inputs = Rc::new(RefCell::new(if on_device { inputs.held() } else { inputs }));
        let given = Rc::clone(&inputs);
        let each_time: Closure<'a, T> = Box::new(move || {
            let inputs = given.borrow().clone();
            work(inputs)
        });
        let work = if on_device { Work::Recorded(Box::new(capture(device, each_time))) } else { Work::Done(each_time) };
        Self { inputs, work, _on_this_thread: PhantomData }
    }

    /// Whether the device repeats what was recorded; otherwise the work is done as usual.
    pub fn is_recorded(&self) -> bool {
        matches!(&self.work, Work::Recorded(graph) if graph.is_hardware())
    }

    /// Does the work for these inputs.
    ///
    /// # Panics
    /// If inputs are of other sizes, or if the device fails.
    pub fn repeat(&mut self, inputs: I) -> T {
        match &mut self.work {
            Work::Recorded(graph) => {
                if graph.is_hardware() {
                    self.inputs.borrow_mut().write_over(&inputs);
                } else {
                    *self.inputs.borrow_mut() = inputs;
                }
                // SAFETY: What was recorded reads and writes memory of the device alone, none that Rust knows of. All of it
                // stays: the work owns its tensors and lives as long as the graph, inputs and output are held here, what the
                // work only borrows outlives `'a`, and CubeCL guards the pages of what it computed in between. It is
                // repeated on the thread that recorded it, as neither can be sent, so it is in order with what writes its
                // inputs and reads its output.
                // The next time changes what the output's memory holds.
                unsafe { graph.replay() }.held()
            }
            Work::Done(each_time) => {
                *self.inputs.borrow_mut() = inputs;
                each_time()
            }
        }
    }
}

impl<I, T> std::fmt::Debug for Recording<'_, I, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording").finish_non_exhaustive()
    }
}
