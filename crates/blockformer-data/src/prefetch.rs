//! Batches made ahead of time, so that the device does not wait for them.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::corpus::TokenCorpus;
use crate::error::{DataError, Result};
use crate::order::BatchOrder;
use crate::packing::{PackedDataset, Sample};

/// How far ahead a [`Prefetcher`] works, and on how many threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefetchConfig {
    /// Threads that make batches.
    pub n_threads: NonZeroUsize,
    /// Batches that may be ready and waiting, rounded up to a multiple of `n_threads`; bounds the memory they take.
    pub n_ahead: NonZeroUsize,
}

impl Default for PrefetchConfig {
    /// One thread, two batches ahead. One thread packs tens of millions of tokens a second.
    fn default() -> Self {
        const TWO: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);
        Self { n_threads: NonZeroUsize::MIN, n_ahead: TWO }
    }
}

/// Makes what each training step needs on background threads, a bounded number of steps ahead.
///
/// What a step needs must be a pure function of its number, as it is with a [`BatchOrder`]. A run that is stopped and
/// resumed at step `n` makes a prefetcher that begins with `n`, and gets what it would have got; nothing that was made
/// ahead has to be saved. Neither the number of threads nor the depth changes what comes out.
///
/// ```
/// # fn main() -> Result<(), blockformer_data::DataError> {
/// use std::sync::Arc;
/// use blockformer_data::{BatchOrder, InMemoryCorpus, PackedDataset, PackingConfig, PrefetchConfig, Prefetcher};
///
/// let corpus = InMemoryCorpus::from_documents([(1..500).collect::<Vec<u32>>()]);
/// let dataset = Arc::new(PackedDataset::new(corpus, PackingConfig::new(4, 16, 0))?);
/// let order = BatchOrder::new(dataset.len(), 2, 42)?;
/// let mut batches = Prefetcher::samples(Arc::clone(&dataset), order, 10, PrefetchConfig::default())?;
///
/// let batch = batches.next();
/// assert_eq!(batch.step, 10);
/// assert_eq!(batch.item[0], dataset.sample(order.indices(10)[0]));
/// println!("waited {:?} of it", batch.waited);
/// # Ok(())
/// # }
/// ```
///
/// [`new`](Self::new) takes any function of the step, so tensors can be made on the background threads as well:
///
/// ```
/// # fn main() -> Result<(), blockformer_data::DataError> {
/// # use blockformer_data::{PrefetchConfig, Prefetcher};
/// let mut squares = Prefetcher::new(3, PrefetchConfig::default(), |step| step * step)?;
/// assert_eq!(squares.next().item, 9);
/// assert_eq!(squares.next().item, 16);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Prefetcher<T> {
    /// Lane `i` of `n` makes steps `first + i`, `first + i + n`, and so on.
    lanes: Vec<Lane<T>>,
    first_step: u64,
    next_step: u64,
    waited: Duration,
}

/// What [`Prefetcher::next`] gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefetched<T> {
    /// The step it is for.
    pub step: u64,
    /// What was made for it.
    pub item: T,
    /// How long the caller was kept waiting; zero if it was ready.
    pub waited: Duration,
}

#[derive(Debug)]
struct Lane<T> {
    /// None once the prefetcher is being dropped.
    items: Option<Receiver<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Prefetcher<T> {
    /// Begins to make `make(first_step)`, `make(first_step + 1)`, and so on.
    ///
    /// # Errors
    /// [`DataError::Thread`] if the system gives no thread.
    pub fn new(
        first_step: u64,
        config: PrefetchConfig,
        make: impl Fn(u64) -> T + Send + Sync + 'static,
    ) -> Result<Self> {
        let make = Arc::new(make);
        let n_threads = config.n_threads.get();
        let lanes = (0..n_threads as u64)
            .map(|lane| {
                let make = Arc::clone(&make);
                let steps = (first_step.saturating_add(lane)..).step_by(n_threads);
                Lane::start(steps, config.n_ahead.get().div_ceil(n_threads), move |step| make(step))
            })
            .collect::<Result<_>>()?;
        Ok(Self { lanes, first_step, next_step: first_step, waited: Duration::ZERO })
    }

    /// The next step's item, in the order of steps.
    ///
    /// # Panics
    /// With the message of the function that makes items, if that panicked.
    #[expect(clippy::should_implement_trait, reason = "it never ends, and says how long it waited")]
    pub fn next(&mut self) -> Prefetched<T> {
        let step = self.next_step;
        let lane = ((step - self.first_step) % self.lanes.len() as u64) as usize;
        let (item, waited) = self.lanes[lane].take();
        self.next_step += 1;
        self.waited += waited;
        Prefetched { step, item, waited }
    }

    /// The step that [`next`](Self::next) is going to give.
    pub fn next_step(&self) -> u64 {
        self.next_step
    }

    /// How long callers of [`next`](Self::next) have been kept waiting in all.
    pub fn total_waited(&self) -> Duration {
        self.waited
    }
}

impl Prefetcher<Vec<Sample>> {
    /// The samples of each batch of `order`, from batch `first_step` on.
    ///
    /// # Errors
    /// [`DataError::Thread`] if the system gives no thread.
    ///
    /// # Panics
    /// [`next`](Self::next) panics if `order` has more samples than `dataset`.
    pub fn samples<C: TokenCorpus + 'static>(
        dataset: Arc<PackedDataset<C>>,
        order: BatchOrder,
        first_step: u64,
        config: PrefetchConfig,
    ) -> Result<Self> {
        Self::new(first_step, config, move |step| {
            order.indices(step).into_iter().map(|index| dataset.sample(index)).collect()
        })
    }
}

impl<T: Send + 'static> Lane<T> {
    /// A thread that keeps `n_ahead` items ready: all but one in the channel, one in its hands.
    fn start(
        steps: impl Iterator<Item = u64> + Send + 'static,
        n_ahead: usize,
        make: impl Fn(u64) -> T + Send + 'static,
    ) -> Result<Self> {
        let (sender, items) = sync_channel(n_ahead - 1);
        let work = move || {
            for step in steps {
                if sender.send(make(step)).is_err() {
                    break; // the prefetcher is gone
                }
            }
        };
        let thread = thread::Builder::new().name("blockformer-prefetch".into()).spawn(work);
        let thread = thread.map_err(|source| DataError::Thread { source })?;
        Ok(Self { items: Some(items), thread: Some(thread) })
    }

    fn take(&mut self) -> (T, Duration) {
        let Some(items) = &self.items else { unreachable!("a lane has its channel until it is dropped") };
        match items.try_recv() {
            Ok(item) => return (item, Duration::ZERO),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => self.repeat_panic(),
        }
        let started = Instant::now();
        match items.recv() {
            Ok(item) => (item, started.elapsed()),
            Err(_) => self.repeat_panic(),
        }
    }

    /// Panics as the thread did: its steps have no end, so that is what has ended it.
    fn repeat_panic(&mut self) -> ! {
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            _ => panic!("a prefetching thread has ended after a panic reported before"),
        }
    }
}

impl<T> Drop for Lane<T> {
    fn drop(&mut self) {
        drop(self.items.take());
        if let Some(thread) = self.thread.take() {
            // A panic in it has been reported by `next`, or was about an item that nobody asked for.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::in_memory_corpus::InMemoryCorpus;
    use crate::packing::PackingConfig;

    fn config(n_threads: usize, n_ahead: usize) -> PrefetchConfig {
        let non_zero = |n| NonZeroUsize::new(n).unwrap();
        PrefetchConfig { n_threads: non_zero(n_threads), n_ahead: non_zero(n_ahead) }
    }

    #[test]
    fn steps_come_in_order_however_many_threads_make_them() {
        for (n_threads, n_ahead) in [(1, 1), (1, 4), (3, 1), (3, 3), (4, 9)] {
            let mut steps = Prefetcher::new(7, config(n_threads, n_ahead), |step| {
                // The later of two neighbours is ready first.
                thread::sleep(Duration::from_micros(if step.is_multiple_of(2) { 300 } else { 0 }));
                step
            })
            .unwrap();
            for expected in 7..60 {
                let got = steps.next();
                assert_eq!((got.step, got.item), (expected, expected), "{n_threads} threads, {n_ahead} ahead");
            }
        }
    }

    #[test]
    fn a_run_that_is_resumed_anywhere_gets_the_same_batches() {
        let corpus = InMemoryCorpus::from_documents((1..40).map(|n| (0..n * 3).collect::<Vec<u32>>()));
        let dataset = Arc::new(PackedDataset::new(corpus, PackingConfig::new(4, 16, 999)).unwrap());
        let order = BatchOrder::new(dataset.len(), 5, 1).unwrap();
        let expected: Vec<Vec<Sample>> =
            (0..30).map(|step| order.indices(step).into_iter().map(|i| dataset.sample(i)).collect()).collect();
        for (first, n_threads) in [(0, 1), (1, 2), (13, 3)] {
            let mut batches = Prefetcher::samples(Arc::clone(&dataset), order, first, config(n_threads, 4)).unwrap();
            for step in first..30 {
                assert_eq!(batches.next().item, expected[step as usize], "step {step} of a run from {first}");
            }
        }
    }

    #[test]
    fn no_more_than_asked_for_is_made_ahead() {
        let made = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&made);
        let mut steps = Prefetcher::new(0, config(2, 6), move |_| count.fetch_add(1, Ordering::SeqCst)).unwrap();
        for taken in 1..50 {
            steps.next();
            thread::yield_now();
            // Six are ready at most; each thread that has handed one over may have begun another.
            let made = made.load(Ordering::SeqCst);
            assert!(made <= taken + 6, "{made} made when {taken} were taken");
        }
    }

    #[test]
    fn what_is_ready_is_not_waited_for_and_the_rest_is_counted() {
        let (begun, begins) = sync_channel(10);
        let mut steps = Prefetcher::new(0, config(1, 2), move |step| {
            let _ = begun.send(step);
            thread::sleep(Duration::from_millis(2));
        })
        .unwrap();
        // The second step is begun when the first lies ready.
        while begins.recv().unwrap() != 1 {}
        assert_eq!(steps.next().waited, Duration::ZERO);
        let waited: Duration = (0..8).map(|_| steps.next().waited).sum();
        assert!(waited > Duration::ZERO);
        assert_eq!(steps.total_waited(), waited);
        drop(begins);
    }

    #[test]
    #[should_panic(expected = "no step 3")]
    fn a_panic_on_the_background_thread_is_one_of_the_caller() {
        let make = |step| if step == 3 { panic!("no step 3") } else { step };
        let mut steps = Prefetcher::new(0, config(2, 2), make).unwrap();
        for _ in 0..4 {
            steps.next();
        }
    }

    #[test]
    fn dropping_it_ends_the_threads() {
        let alive = Arc::new(());
        let held = Arc::clone(&alive);
        let steps = Prefetcher::new(0, config(3, 9), move |_| Arc::strong_count(&held)).unwrap();
        assert!(Arc::strong_count(&alive) > 1);
        drop(steps);
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
