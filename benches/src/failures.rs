//! Handlers that fail, beside one that does not: an error that keeps the instance's memory, and one that has it rebuilt.

use std::sync::Arc;
use std::time::Instant;

use stable_interfaces::{Context, ContextError, Handle, Host, Interface, MemoryStore, StableInterface};

use crate::measure::median;
use crate::runner::{Kind, Runner};

/// The number of requests in a turn.
const REQUESTS: u32 = 5_000;

/// Nanoseconds per request, each the median of its turns.
#[derive(Debug, Clone, Copy)]
pub struct Failures {
    /// Of a handler that returns `Ok`.
    pub ok: f64,
    /// Of one whose error says that it changed nothing.
    pub kept: f64,
    /// Of one whose error has the instance built anew.
    pub rebuilt: f64,
}

/// An instance whose handlers end as they are told to.
struct Fallible(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Ok,
    Kept,
    Rebuilt,
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("refused, and nothing was changed")]
    Refused,
    #[error("broken off")]
    BrokenOff,
    #[error(transparent)]
    Context(#[from] ContextError),
}

impl StableInterface for Fallible {
    const NAME: &'static str = "fallible";
    type Error = Failed;

    fn keeps_memory(error: &Failed) -> bool {
        matches!(error, Failed::Refused)
    }
}

impl Handle<End> for Fallible {
    type Reply = u64;

    async fn handle(&mut self, _: &mut Context, end: End) -> Result<u64, Failed> {
        match end {
            End::Ok => {
                self.0 += 1;
                Ok(self.0)
            }
            End::Kept => Err(Failed::Refused),
            End::Rebuilt => Err(Failed::BrokenOff),
        }
    }
}

/// Asks one instance from one task, the three ends in turns.
///
/// # Panics
/// If the host does not start, or an answer is another than was asked for.
#[must_use]
pub fn failures(kind: Kind, rounds: usize) -> Failures {
    const ENDS: [End; 3] = [End::Ok, End::Kept, End::Rebuilt];
    let measure = async move {
        let mut host = Host::local(MemoryStore::new());
        let instances = host.interface(|_| Fallible(0)).register().expect("its name is good");
        let _host = Arc::new(host.start().await.expect("a memory store lets its host start"));
        for end in ENDS {
            turn(&instances, end).await;
        }
        let mut turns = [const { Vec::new() }; 3];
        for _ in 0..rounds {
            for (end, turns) in ENDS.into_iter().zip(&mut turns) {
                turns.push(turn(&instances, end).await);
            }
        }
        turns.map(|turns| median(&turns))
    };
    let [ok, kept, rebuilt] = Runner::tokio(kind).run(vec![measure]).0.remove(0);
    Failures { ok, kept, rebuilt }
}

/// Nanoseconds per request of one turn.
async fn turn(instances: &Interface<Fallible>, end: End) -> f64 {
    let started = Instant::now();
    for _ in 0..REQUESTS {
        let answer = instances.request("instance-00000000", end).await;
        assert_eq!(answer.is_ok(), end == End::Ok, "an answer is what was asked for");
    }
    started.elapsed().as_nanos() as f64 / f64::from(REQUESTS)
}
