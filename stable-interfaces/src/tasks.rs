//! The tasks of one host: it starts them on its own runtime, and can wait for them or end them all.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use crate::quiet::guarded;
use crate::sync::{AbortHandle, Arc, Mutex, Notify, Runtime, oneshot, spawn_on, try_id};

/// The function that is told when a task has ended by a panic.
type OnPanic = Box<dyn Fn(&str) + Send + Sync>;

/// A set of tasks. Once closed it takes no more.
///
/// No task is spawned, and none of their futures is dropped, under a lock of it: a runtime that has ended drops what it is
/// given at once.
pub(crate) struct Tasks {
    runtime: Runtime,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    none: Notify,
    on_panic: OnPanic,
}

#[derive(Default)]
struct State {
    tasks: Vec<Entry>,
    /// The entries that are free.
    free: Vec<usize>,
    running: usize,
    is_closed: bool,
}

/// A task of the set.
enum Entry {
    Free,
    /// About to be spawned.
    Begun,
    /// Ended before whoever spawned it knew.
    Over,
    Running(AbortHandle),
}

impl State {
    fn enter(&mut self) -> usize {
        self.running += 1;
        match self.free.pop() {
            Some(index) => {
                self.tasks[index] = Entry::Begun;
                index
            }
            None => {
                self.tasks.push(Entry::Begun);
                self.tasks.len() - 1
            }
        }
    }

    fn leave(&mut self, index: usize) {
        self.tasks[index] = Entry::Free;
        self.free.push(index);
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").field("running", &self.running()).finish_non_exhaustive()
    }
}

/// A task that can be ended and waited for.
#[derive(Debug)]
pub(crate) struct TaskHandle {
    abort: AbortHandle,
    /// A channel that is closed when the task's future has been dropped.
    done: oneshot::Receiver<()>,
}

impl TaskHandle {
    pub(crate) fn cancel(&self) {
        self.abort.abort();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.abort.is_finished()
    }

    /// Tells whether it is the task that asks.
    pub(crate) fn is_current(&self) -> bool {
        try_id() == Some(self.abort.id())
    }

    pub(crate) async fn ended(self) {
        // Nothing is ever sent: the sender's end is the task's end.
        let _closed = self.done.await;
    }
}

/// Counts one task for as long as its future exists.
struct Counted {
    shared: Arc<Shared>,
    index: usize,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        match state.tasks[self.index] {
            Entry::Begun => state.tasks[self.index] = Entry::Over,
            _ => state.leave(self.index),
        }
        state.running -= 1;
        let is_last = state.running == 0;
        drop(state);
        if is_last {
            self.shared.none.notify_waiters();
        }
    }
}

/// A task that others wait for. Its fields are dropped in this order, even if it was never polled: the future is gone before
/// anyone hears of its end.
struct Handled {
    future: Pin<Box<dyn Future<Output = ()> + Send>>,
    _counted: Counted,
    _ended: oneshot::Sender<()>,
}

impl Future for Handled {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let future = &mut self.future;
        match guarded(|| future.as_mut().poll(cx)) {
            Ok(polled) => polled,
            Err(panic) => {
                (self._counted.shared.on_panic)(&panic);
                Poll::Ready(())
            }
        }
    }
}

impl Tasks {
    /// `on_panic` is told when one of them ends by a panic.
    pub(crate) fn new(runtime: Runtime, on_panic: impl Fn(&str) + Send + Sync + 'static) -> Tasks {
        let shared = Shared { state: Mutex::default(), none: Notify::new(), on_panic: Box::new(on_panic) };
        Tasks { runtime, shared: Arc::new(shared) }
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Starts a task; drops the future if the set is closed.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        drop(self.start(|counted| async move {
            let counted = counted;
            let mut future = pin!(future);
            let ended = poll_fn(|task| match guarded(|| future.as_mut().poll(task)) {
                Ok(polled) => polled.map(Ok),
                Err(panic) => Poll::Ready(Err(panic)),
            });
            if let Err(panic) = ended.await {
                (counted.shared.on_panic)(&panic);
            }
        }));
    }

    /// As [`spawn`](Self::spawn), with a handle to end that task and wait for it.
    pub(crate) fn spawn_handled(&self, future: impl Future<Output = ()> + Send + 'static) -> Option<TaskHandle> {
        let (ended, done) = oneshot::channel();
        let future = Box::pin(future);
        let abort = self.start(|counted| Handled { future, _counted: counted, _ended: ended })?;
        Some(TaskHandle { abort, done })
    }

    fn start<F>(&self, task: impl FnOnce(Counted) -> F) -> Option<AbortHandle>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let index = {
            let mut state = self.shared.state.lock();
            if state.is_closed {
                return None;
            }
            state.enter()
        };
        let handle = spawn_on(&self.runtime, task(Counted { shared: self.shared.clone(), index }));
        let mut state = self.shared.state.lock();
        match state.tasks[index] {
            Entry::Begun => state.tasks[index] = Entry::Running(handle.clone()),
            _ => state.leave(index),
        }
        let is_closed = state.is_closed;
        drop(state);
        if is_closed {
            handle.abort();
        }
        Some(handle)
    }

    pub(crate) fn running(&self) -> usize {
        self.shared.state.lock().running
    }

    /// Waits until no task runs.
    pub(crate) async fn wait_idle(&self) {
        loop {
            let mut none = std::pin::pin!(self.shared.none.notified());
            // Enabled before the count is read, so that no end is missed between the two.
            none.as_mut().enable();
            if self.running() == 0 {
                return;
            }
            none.await;
        }
    }

    /// Takes no more tasks, and ends those that run at their next await.
    pub(crate) fn abort(&self) {
        let mut state = self.shared.state.lock();
        state.is_closed = true;
        let running = |entry: &Entry| match entry {
            Entry::Running(handle) => Some(handle.clone()),
            _ => None,
        };
        let handles: Vec<_> = state.tasks.iter().filter_map(running).collect();
        drop(state);
        for handle in handles {
            handle.abort();
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.abort();
    }
}
