//! An engine in a thread of its own.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;

use futures_core::Stream;

use crate::engine::Limits;
use crate::{Completion, Engine, EngineStats, Event, GenerateError, PagedModel, Request, RequestId};

/// What the thread is told.
enum Command {
    Submit(Box<Request>, QueueSender),
    Stats(Sender<EngineStats>),
}

/// An [`Engine`] that runs in a thread of its own. Requests can be submitted from any thread, and each has a stream of
/// its events, to be read in a blocking way or awaited on any runtime. The thread ends when this is dropped; streams
/// that are still open then end with [`GenerateError::Stopped`].
///
/// ```
/// use blockformer_generate::{Engine, EngineConfig, EngineThread, Event, Request};
/// use blockformer_model::presets;
/// use burn::tensor::Device;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Device::flex();
/// let mut config = presets::block("block_main_b4_5").unwrap();
/// (config.vocab_size, config.block_decoder.n_layers) = (100, 1); // a toy, with random weights
/// let engine = EngineThread::spawn(Engine::new(config.init(&device)?, EngineConfig::default(), &device)?);
///
/// let (one, other) = (Request::new([1, 2, 3]).with_max_new_tokens(5), Request::new([9]).with_max_new_tokens(7));
/// let (one, other) = (engine.submit(one)?, engine.submit(other)?);
/// assert_eq!(one.filter(|event| matches!(event, Event::Token(_))).count(), 5);
/// assert_eq!(other.wait()?.samples[0].tokens.len(), 7);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct EngineThread {
    commands: Option<Sender<Command>>,
    limits: Limits,
    thread: Option<JoinHandle<()>>,
}

impl EngineThread {
    /// Runs the engine in a new thread.
    ///
    /// # Panics
    /// If the operating system gives no thread.
    pub fn spawn<M: PagedModel + Send + 'static>(engine: Engine<M>) -> Self {
        let (commands, received) = channel();
        let limits = engine.limits();
        let worker = Worker { engine, queues: HashMap::new() };
        let thread = std::thread::Builder::new().name("blockformer-engine".into()).spawn(move || worker.run(&received));
        match thread {
            Ok(thread) => Self { commands: Some(commands), limits, thread: Some(thread) },
            Err(error) => panic!("no thread for the engine: {error}"),
        }
    }

    /// Takes a request and returns the stream of its events. Dropping the stream cancels the request.
    ///
    /// # Errors
    /// A [`GenerateError`] if it can never be served. (Too many waiting requests show as [`Event::Failed`], and in
    /// [`EventStream::accepted`].)
    pub fn submit(&self, request: Request) -> Result<EventStream, GenerateError> {
        self.limits.check(&request)?;
        let queue = Arc::new(Queue::default());
        self.send(Command::Submit(Box::new(request), QueueSender(Arc::clone(&queue))))?;
        Ok(EventStream { queue, over: false })
    }

    /// What the engine is doing and has done. Waits for the round that is running.
    ///
    /// # Errors
    /// [`GenerateError::Stopped`].
    pub fn stats(&self) -> Result<EngineStats, GenerateError> {
        let (reply, stats) = channel();
        self.send(Command::Stats(reply))?;
        stats.recv().map_err(|_| GenerateError::Stopped)
    }

    /// Whether the thread still runs. It ends by itself only if the model panics.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    fn send(&self, command: Command) -> Result<(), GenerateError> {
        let commands = self.commands.as_ref().ok_or(GenerateError::Stopped)?;
        commands.send(command).map_err(|_| GenerateError::Stopped)
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.commands = None; // the worker sees that nobody can ask any more
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join(); // the streams have been told
        }
    }
}

struct Worker<M: PagedModel> {
    engine: Engine<M>,
    queues: HashMap<RequestId, QueueSender>,
}

impl<M: PagedModel> Worker<M> {
    fn run(mut self, commands: &Receiver<Command>) {
        loop {
            if self.engine.is_idle() {
                match commands.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => return,
                }
            }
            loop {
                match commands.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            // A queue that nobody else holds is one whose stream was dropped.
            let dropped: Vec<_> =
                self.queues.iter().filter(|(_, queue)| queue.is_abandoned()).map(|(id, _)| *id).collect();
            for id in dropped {
                self.queues.remove(&id);
                self.engine.cancel(id);
            }
            for (id, event) in self.engine.step() {
                let last = matches!(event, Event::Done(_) | Event::Failed(_));
                if let Some(queue) = self.queues.get(&id) {
                    queue.0.push(event);
                }
                if last {
                    self.queues.remove(&id);
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(request, queue) => match self.engine.submit(*request) {
                Ok(id) => {
                    queue.0.accept();
                    self.queues.insert(id, queue);
                }
                Err(error) => queue.0.push(Event::Failed(error)),
            },
            Command::Stats(reply) => {
                let _gone = reply.send(self.engine.stats());
            }
        }
    }
}

/// The worker's end of a queue. However it goes, a panic of the model included, nobody is left waiting: what comes after
/// the last event is not read.
struct QueueSender(Arc<Queue>);

impl QueueSender {
    /// Whether the stream at the other end was dropped.
    fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Drop for QueueSender {
    fn drop(&mut self) {
        self.0.push(Event::Failed(GenerateError::Stopped));
    }
}

/// Events on their way from the thread to a stream.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<QueueState>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    /// Whether the engine has taken the request.
    accepted: bool,
    events: VecDeque<Event>,
    waker: Option<Waker>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(&self) {
        self.change(|state| state.accepted = true);
    }

    fn push(&self, event: Event) {
        self.change(|state| state.events.push_back(event));
    }

    /// Changes the state and wakes whoever waits for it.
    fn change(&self, change: impl FnOnce(&mut QueueState)) {
        let mut state = self.lock();
        change(&mut state);
        let waker = state.waker.take();
        drop(state);
        self.arrived.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The events of one request: an [`Iterator`] that waits for the next, and a [`Stream`] to be awaited. It ends after
/// [`Event::Done`] or [`Event::Failed`]; dropping it before cancels the request.
#[derive(Debug)]
pub struct EventStream {
    queue: Arc<Queue>,
    over: bool,
}

impl EventStream {
    /// Waits for the end and gathers everything.
    ///
    /// # Errors
    /// The error of [`Event::Failed`].
    pub fn wait(self) -> Result<Completion, GenerateError> {
        Completion::from_events(self)
    }

    /// Waits until the engine has taken the request or refused it, a round at most. A service that answers only then can
    /// tell its client to come again later.
    ///
    /// # Errors
    /// [`GenerateError::Busy`] if too many requests wait, [`GenerateError::Stopped`]; no event comes then, and whoever
    /// asks again is told [`GenerateError::Stopped`].
    pub async fn accepted(&mut self) -> Result<(), GenerateError> {
        poll_fn(|context| self.poll_accepted(context)).await
    }

    fn poll_accepted(&mut self, context: &mut Context<'_>) -> Poll<Result<(), GenerateError>> {
        let mut state = self.queue.lock();
        if state.accepted {
            return Poll::Ready(Ok(()));
        }
        if self.over {
            return Poll::Ready(Err(GenerateError::Stopped));
        }
        let Some(event) = state.events.pop_front() else {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        drop(state);
        self.over = true;
        let Event::Failed(error) = event else { unreachable!("the engine has events of requests that it took") };
        Poll::Ready(Err(error))
    }

    fn note_end(&mut self, event: &Event) {
        self.over = matches!(event, Event::Done(_) | Event::Failed(_));
    }
}

impl Iterator for EventStream {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        let mut state = self.queue.lock();
        let event = loop {
            match state.events.pop_front() {
                Some(event) => break event,
                None => state = self.queue.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(state);
        self.note_end(&event);
        Some(event)
    }
}

impl Stream for EventStream {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.over {
            return Poll::Ready(None);
        }
        let mut state = self.queue.lock();
        let Some(event) = state.events.pop_front() else {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        drop(state);
        self.note_end(&event);
        Poll::Ready(Some(event))
    }
}
