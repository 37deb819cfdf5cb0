//! Job queues of other crates, on the same servers as our stores: what a team would use for delayed work instead.
//!
//! A job counts as done when its handler runs, which is before it is durably completed; our own alarms count when they are.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::alarms::{LatenessRun, wall_millis};
use crate::measure::percentile;

#[cfg(feature = "queues")]
mod apalis_postgres;
#[cfg(feature = "queues")]
mod apalis_redis;
#[cfg(feature = "queues")]
mod graphile;

#[cfg(feature = "queues")]
pub use apalis_postgres::ApalisPostgres;
#[cfg(feature = "queues")]
pub use apalis_redis::ApalisRedis;
#[cfg(feature = "queues")]
pub use graphile::Graphile;

/// The longest that one queue is measured at one thing.
const LIMIT: Duration = Duration::from_secs(20);

/// A job: its number, and its time in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Job {
    number: u64,
    at: f64,
}

/// Counts of what the handlers of this process have seen. The libraries make their handlers themselves, so it is one place for all.
static DONE: AtomicU64 = AtomicU64::new(0);
static LATE: Mutex<Vec<f64>> = Mutex::new(Vec::new());
static CHANGED: Notify = Notify::const_new();

fn late() -> std::sync::MutexGuard<'static, Vec<f64>> {
    LATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The work of every handler.
#[cfg(feature = "queues")]
fn handle(job: Job) {
    late().push(wall_millis() - job.at);
    DONE.fetch_add(1, Ordering::SeqCst);
    CHANGED.notify_one();
}

/// A queue on a server of its own database, with nothing in it.
#[async_trait]
pub trait Queue: Send + Sync {
    /// As it is called in the output.
    fn name(&self) -> &'static str;

    /// Something that adds one job after another.
    async fn adder(&self) -> Box<dyn Adder>;

    /// Adds jobs that are due, in whatever way is fastest.
    async fn fill(&self, jobs: Vec<Job>);

    /// Handles jobs until it is aborted.
    async fn work(&self) -> JoinHandle<()>;
}

/// Adds jobs; each is durable when `add` returns.
#[async_trait]
pub trait Adder: Send {
    /// Adds one job for its time.
    async fn add(&mut self, job: Job);
}

/// Jobs added per second by so many callers for so long.
pub async fn set(queue: &dyn Queue, callers: u64, time: Duration) -> f64 {
    let at = wall_millis() + 30.0 * 24.0 * 3.6e6;
    let mut adders = Vec::new();
    for _ in 0..callers {
        adders.push(queue.adder().await);
    }
    let started = Instant::now();
    let call = |(caller, mut adder): (u64, Box<dyn Adder>)| {
        tokio::spawn(async move {
            let mut added = 0;
            while started.elapsed() < time {
                let number = added * callers + caller;
                adder.add(Job { number, at: at + number as f64 }).await;
                added += 1;
            }
            added
        })
    };
    let calls: Vec<_> = (0..callers).zip(adders).map(call).collect();
    let mut added = 0;
    for call in calls {
        added += call.await.expect("no caller fails");
    }
    added as f64 / started.elapsed().as_secs_f64()
}

/// Due jobs handled per second, out of a backlog of so many, in at most 20 s.
pub async fn due(queue: &dyn Queue, jobs: u64) -> f64 {
    let past = wall_millis() - 3.6e6;
    queue.fill((0..jobs).map(|number| Job { number, at: past }).collect()).await;
    DONE.store(0, Ordering::SeqCst);
    let started = Instant::now();
    let worker = queue.work().await;
    wait_done(jobs).await;
    let rate = DONE.load(Ordering::SeqCst) as f64 / started.elapsed().as_secs_f64();
    worker.abort();
    rate
}

/// Measures the lateness of jobs at random times over a few seconds, in milliseconds.
pub async fn lateness(queue: &dyn Queue, jobs: u64, over: Duration) -> LatenessRun {
    const CALLERS: usize = 16;
    /// From when jobs are added until the first of them is due.
    const LEAD: f64 = 25_000.0;
    let (first, span) = (wall_millis() + LEAD, over.as_secs_f64() * 1e3);
    let mut calls = Vec::new();
    for caller in 0..CALLERS {
        let mut adder = queue.adder().await;
        calls.push(tokio::spawn(async move {
            for number in (0..jobs).skip(caller).step_by(CALLERS) {
                adder.add(Job { number, at: (first + span * crate::alarms::share(number)).floor() }).await;
            }
        }));
    }
    for call in calls {
        call.await.expect("no caller fails");
    }
    assert!(wall_millis() < first, "{} takes longer than {LEAD} ms to add {jobs} jobs", queue.name());
    DONE.store(0, Ordering::SeqCst);
    late().clear();
    let worker = queue.work().await;
    wait_done(jobs).await;
    worker.abort();
    let mut late = std::mem::take(&mut *late());
    late.sort_by(f64::total_cmp);
    LatenessRun { p50: percentile(&late, 0.5), p99: percentile(&late, 0.99), max: percentile(&late, 1.0) }
}

async fn wait_done(jobs: u64) {
    let all = async {
        while DONE.load(Ordering::SeqCst) < jobs {
            CHANGED.notified().await;
        }
    };
    // Out of time is a result as well: the rate is what was done by then.
    drop(tokio::time::timeout(LIMIT, all).await);
}
