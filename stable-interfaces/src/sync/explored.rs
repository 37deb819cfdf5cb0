//! Stand-ins by which a schedule explorer sees every step: of `parking_lot`'s lock, and of tokio's tasks.
//!
//! Each has the promises of what it stands in for that this crate relies on, and no others.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use shuttle::future;

/// A lock that a panic does not poison.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

#[derive(Debug)]
pub(crate) struct MutexGuard<'a, T>(shuttle::sync::MutexGuard<'a, T>);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Mutex<T> {
        Mutex(shuttle::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// Lets another thread go first, or none.
pub(crate) fn may_be_interrupted() {
    shuttle::thread::sleep(std::time::Duration::ZERO);
}

/// The place where tasks are spawned: in the schedule that is being explored.
#[derive(Debug, Clone)]
pub(crate) struct Runtime;

impl Runtime {
    pub(crate) fn try_current() -> Result<Runtime, Infallible> {
        Ok(Runtime)
    }
}

/// The number of a task, of all that this process has spawned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TaskId(u64);

static TASKS: AtomicU64 = AtomicU64::new(0);

shuttle::thread_local! {
    static CURRENT: Cell<Option<TaskId>> = Cell::new(None);
}

/// Ends a task at its next await.
#[derive(Debug, Clone)]
pub(crate) struct AbortHandle {
    id: TaskId,
    task: future::AbortHandle,
}

impl AbortHandle {
    pub(crate) fn abort(&self) {
        self.task.abort();
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    pub(crate) fn id(&self) -> TaskId {
        self.id
    }
}

/// The task that asks.
pub(crate) fn try_id() -> Option<TaskId> {
    CURRENT.with(Cell::get)
}

/// Spawns a task that goes on by itself. A schedule is over when all of them have ended, and has failed if one never does.
pub(crate) fn spawn_on(_on: &Runtime, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
    let id = TaskId(TASKS.fetch_add(1, Ordering::Relaxed));
    let joined = future::spawn(async move {
        CURRENT.with(|current| current.set(Some(id)));
        task.await;
    });
    let handle = AbortHandle { id, task: joined.abort_handle() };
    // Dropped, it would detach the task, and the schedule would be over without it.
    std::mem::forget(joined);
    handle
}
