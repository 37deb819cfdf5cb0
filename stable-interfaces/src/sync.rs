//! Every lock, atomic, channel and task of this crate comes through here.
//!
//! One place, so that a schedule explorer can stand in for them without touching the code that uses them: under
//! `--cfg shuttle` it does (`tests/run schedules`). Notifications, semaphores and the channels of tokio stay: they never block a thread,
//! so each call of one is a single step of a schedule, and they wake whatever waits.

#[cfg(shuttle)]
mod explored;

#[cfg(shuttle)]
pub(crate) use self::explored::{AbortHandle, Mutex, MutexGuard, Runtime, may_be_interrupted, spawn_on, try_id};
/// A lock for statics, which outlive an explored schedule. Nothing depends on the order in which they are locked.
pub(crate) use parking_lot::Mutex as StaticMutex;
#[cfg(not(shuttle))]
pub(crate) use parking_lot::{Mutex, MutexGuard};
#[cfg(shuttle)]
pub(crate) use shuttle::{sync::atomic, thread_local};
use std::future::poll_fn;
use std::pin::Pin;
pub(crate) use std::sync::Arc;
use std::task::Poll;
#[cfg(not(shuttle))]
pub(crate) use std::{sync::atomic, thread_local};
#[cfg(not(shuttle))]
pub(crate) use tokio::runtime::Handle as Runtime;
pub(crate) use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

/// The most permits that a semaphore can have, and the most that a channel can be made for.
pub(crate) const MAX_PERMITS: usize = Semaphore::MAX_PERMITS;

#[cfg(not(shuttle))]
pub(crate) use tokio::task::{AbortHandle, try_id};

/// Sees all that other threads had done before they let go of what this one has just seen to be gone.
pub(crate) fn acquire_released() {
    // In an explored schedule one thread runs at a time.
    #[cfg(not(shuttle))]
    atomic::fence(atomic::Ordering::Acquire);
}

/// Tells an explorer that other threads may go first here. It sees for itself where a lock or an atomic is used, but not where a reference is counted.
#[cfg(not(shuttle))]
pub(crate) const fn may_be_interrupted() {}

/// Spawns a task that goes on by itself.
#[cfg(not(shuttle))]
pub(crate) fn spawn_on(runtime: &Runtime, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
    runtime.spawn(task).abort_handle()
}

/// Lets the tasks go first that were made ready before on the same thread.
pub(crate) async fn after_others() {
    let mut has_waited = false;
    poll_fn(|task| {
        if has_waited {
            return Poll::Ready(());
        }
        has_waited = true;
        // A task that wakes itself goes behind all that are ready.
        task.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits for the first of the futures that is ready, and takes it out; for ever if there is none.
pub(crate) async fn first_ready<T>(futures: &mut Vec<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    poll_fn(|task| {
        for at in 0..futures.len() {
            if let Poll::Ready(output) = futures[at].as_mut().poll(task) {
                drop(futures.swap_remove(at));
                return Poll::Ready(output);
            }
        }
        Poll::Pending
    })
    .await
}
