//! Requests that record something, beside one that does not: the cost of a commit before any store.
//!
//! 64 callers, each with an instance of its own, on a store in memory that answers at once: the rest is what the library does for a commit.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use stable_interfaces::{
    Alarm, Context, ContextError, Handle, Host, Interface, MemoryStore, OnAlarm, StableInterface, Timestamp,
};

use crate::measure::{cpu_time, median};
use crate::runner::{Kind, Runner};

const CALLERS: u64 = 64;

/// The number of requests of each caller in a turn.
const REQUESTS: u64 = 200;

/// The time of one kind of request.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Nanoseconds from request to request, over all callers: the median of its turns.
    pub nanos: f64,
    /// Nanoseconds of processors for each, over all turns.
    pub cpu: f64,
}

/// The costs of a request, by what it records.
#[derive(Debug, Clone, Copy)]
pub struct Commits {
    /// Nothing.
    pub quiet: Cost,
    /// A value, under the same key each time.
    pub put: Cost,
    /// An alarm, in place of the last one.
    pub alarm: Cost,
}

/// An instance that counts, and records what it is asked to.
struct Recorder(u64);

#[derive(Debug, Clone, Copy)]
enum Record {
    Nothing,
    Value,
    Alarm(Timestamp),
}

impl StableInterface for Recorder {
    const NAME: &'static str = "recorder";
    type Error = ContextError;
}

impl OnAlarm for Recorder {
    async fn on_alarm(&mut self, _: &mut Context, _: &Alarm) -> Result<(), ContextError> {
        Ok(())
    }
}

impl Handle<Record> for Recorder {
    type Reply = u64;

    async fn handle(&mut self, cx: &mut Context, record: Record) -> Result<u64, ContextError> {
        self.0 += 1;
        match record {
            Record::Nothing => {}
            Record::Value => cx.put("count", &self.0)?,
            // Another time each, or nothing moves.
            Record::Alarm(at) => cx.set_alarm("alarm", at + Duration::from_millis(self.0 % 1_000), &self.0)?,
        }
        Ok(self.0)
    }
}

/// Has all callers ask at once, the three kinds of request in turns.
///
/// # Panics
/// If the host does not start, or a request fails.
#[must_use]
pub fn commits(kind: Kind, rounds: usize) -> Commits {
    let runner = Runner::tokio(kind);
    let start = async {
        let mut host = Host::local(MemoryStore::new());
        let recorders = host.interface(|_| Recorder(0)).with_alarms().register().expect("its name is good");
        (recorders, Arc::new(host.start().await.expect("a memory store lets its host start")))
    };
    let (recorders, _host) = runner.run(vec![start]).0.remove(0);
    let records = [
        Record::Nothing,
        Record::Value,
        Record::Alarm(Timestamp::from(SystemTime::now()) + Duration::from_secs(1_000_000)),
    ];
    let mut turns = [const { (Vec::new(), Vec::new()) }; 3];
    for record in records {
        turn(&runner, &recorders, record);
    }
    for _ in 0..rounds {
        for (record, (nanos, cpu)) in records.into_iter().zip(&mut turns) {
            let (elapsed, used) = turn(&runner, &recorders, record);
            nanos.push(elapsed);
            cpu.push(used);
        }
    }
    // Processor time comes in ticks that may be longer than a turn: only its sum over all turns says anything.
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let [quiet, put, alarm] = turns.map(|(nanos, cpu)| Cost { nanos: median(&nanos), cpu: mean(&cpu) });
    Commits { quiet, put, alarm }
}

/// Nanoseconds per request of one turn, of the clock and of processors.
fn turn(runner: &Runner, recorders: &Interface<Recorder>, record: Record) -> (f64, f64) {
    let caller = |number: u64| {
        let (recorders, id) = (recorders.clone(), format!("instance-{number:08}"));
        async move {
            for _ in 0..REQUESTS {
                recorders.request(&id, record).await.expect("recording does not fail");
            }
        }
    };
    let (used, started) = (cpu_time(), Instant::now());
    runner.run((0..CALLERS).map(caller).collect());
    let (elapsed, used) = (started.elapsed(), cpu_time().saturating_sub(used));
    let per_request = |time: Duration| time.as_nanos() as f64 / (CALLERS * REQUESTS) as f64;
    (per_request(elapsed), per_request(used))
}
