//! The tasks of one host: it starts them on its own runtime, and can wait for them or end them all.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::sync::{AbortHandle, Arc, JoinSet, Mutex, Notify, Runtime, oneshot, try_id};

/// A set of tasks. Once closed it takes no more.
#[derive(Debug)]
pub(crate) struct Tasks {
    runtime: Runtime,
    /// `None` once closed.
    set: Mutex<Option<JoinSet<()>>>,
    running: Arc<Running>,
}

#[derive(Debug, Default)]
struct Running {
    count: Mutex<usize>,
    none: Notify,
}

/// A task that can be ended and waited for.
#[derive(Debug)]
pub(crate) struct TaskHandle {
    abort: AbortHandle,
    /// Closed when the task's future has been dropped.
    done: oneshot::Receiver<()>,
}

impl TaskHandle {
    pub(crate) fn cancel(&self) {
        self.abort.abort();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.abort.is_finished()
    }

    /// Whether it is the task that asks.
    pub(crate) fn is_current(&self) -> bool {
        try_id() == Some(self.abort.id())
    }

    pub(crate) async fn ended(self) {
        // Nothing is ever sent: the sender's end is the task's end.
        let _closed = self.done.await;
    }
}

/// Counts one task for as long as its future exists.
struct Counted(Arc<Running>);

impl Drop for Counted {
    fn drop(&mut self) {
        let mut count = self.0.count.lock();
        *count -= 1;
        if *count == 0 {
            self.0.none.notify_waiters();
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
        self.future.as_mut().poll(cx)
    }
}

impl Tasks {
    pub(crate) fn new(runtime: Runtime) -> Tasks {
        Tasks { runtime, set: Mutex::new(Some(JoinSet::new())), running: Arc::default() }
    }

    /// Starts a task; drops the future if the set is closed.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        drop(self.start(|counted| async move {
            let _counted = counted;
            future.await;
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
        let mut set = self.set.lock();
        let set = set.as_mut()?;
        // Reap what has ended, so that the set holds no more than what runs.
        while set.try_join_next().is_some() {}
        *self.running.count.lock() += 1;
        let counted = Counted(self.running.clone());
        Some(set.spawn_on(task(counted), &self.runtime))
    }

    pub(crate) fn running(&self) -> usize {
        *self.running.count.lock()
    }

    /// Waits until no task runs.
    pub(crate) async fn wait_idle(&self) {
        loop {
            let mut none = std::pin::pin!(self.running.none.notified());
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
        let set = self.set.lock().take();
        if let Some(mut set) = set {
            set.abort_all();
        }
    }
}
