//! The runtimes that the tasks of a side run on.
//!
//! Everything but actix runs on a tokio runtime. An actix actor lives on an *arbiter*, a thread with a single-threaded runtime of
//! its own. Beside the multi-threaded runtime it therefore gets as many arbiters for its actors as there are worker threads. On one
//! thread actors and asking tasks share an arbiter, which is the best case for it.

use std::future::Future;
use std::time::{Duration, Instant};

use actix::{Arbiter, ArbiterHandle, System, SystemRunner};
use tokio::runtime::{self, Runtime};

/// The runtime that a measurement is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Two worker threads.
    Multi,
    /// The thread that waits for the result, and no other.
    Current,
}

impl Kind {
    /// Both.
    pub const ALL: [Kind; 2] = [Kind::Multi, Kind::Current];

    /// As it is called in the output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Multi => "multi",
            Kind::Current => "current",
        }
    }
}

/// The number of threads of [`Kind::Multi`].
const WORKERS: usize = 2;

/// A runtime, whatever its kind.
#[derive(Debug)]
pub enum Runner {
    /// A tokio runtime of either kind.
    Tokio(Runtime),
    /// A tokio runtime for tasks, beside arbiters for actors and the system that these belong to.
    Arbiters(Runtime, Vec<Arbiter>, SystemRunner),
    /// Actix on this thread.
    System(SystemRunner),
}

impl Runner {
    /// A tokio runtime.
    #[must_use]
    pub fn tokio(kind: Kind) -> Runner {
        Runner::Tokio(runtime(kind))
    }

    /// The runtime that actix has in its place.
    #[must_use]
    pub fn actix(kind: Kind) -> Runner {
        let system = System::new();
        match kind {
            Kind::Multi => {
                let arbiters = (0..WORKERS).map(|_| system.block_on(async { Arbiter::new() })).collect();
                Runner::Arbiters(runtime(kind), arbiters, system)
            }
            Kind::Current => Runner::System(system),
        }
    }

    /// The arbiters beside the tasks' runtime.
    #[must_use]
    pub fn arbiters(&self) -> Vec<ArbiterHandle> {
        match self {
            Runner::Arbiters(_, arbiters, _) => arbiters.iter().map(Arbiter::handle).collect(),
            Runner::Tokio(_) | Runner::System(_) => Vec::new(),
        }
    }

    /// Runs the tasks together until the last has ended, and says how long that took.
    ///
    /// # Panics
    /// If one of them does.
    pub fn run<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, tasks: Vec<F>) -> (Vec<T>, Duration) {
        let started = Instant::now();
        let results = match self {
            Runner::Tokio(runtime) | Runner::Arbiters(runtime, ..) => runtime.block_on(async {
                let tasks: Vec<_> = tasks.into_iter().map(tokio::spawn).collect();
                let mut results = Vec::with_capacity(tasks.len());
                for task in tasks {
                    results.push(task.await.expect("a task of a benchmark does not fail"));
                }
                results
            }),
            Runner::System(system) => system.block_on(async {
                let tasks: Vec<_> = tasks.into_iter().map(actix::spawn).collect();
                let mut results = Vec::with_capacity(tasks.len());
                for task in tasks {
                    results.push(task.await.expect("a task of a benchmark does not fail"));
                }
                results
            }),
        };
        (results, started.elapsed())
    }
}

fn runtime(kind: Kind) -> Runtime {
    let mut builder = match kind {
        Kind::Multi => runtime::Builder::new_multi_thread(),
        Kind::Current => runtime::Builder::new_current_thread(),
    };
    builder.worker_threads(WORKERS).enable_all().build().expect("a runtime can be started")
}
