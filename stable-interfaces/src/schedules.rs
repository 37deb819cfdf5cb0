//! The core under schedules that nobody would think of: `tests/run schedules`.
//!
//! Each scenario is run some thousand times, and each time an explorer decides at every lock, atomic and wait which task goes
//! on. A schedule can be repeated step by step, so nothing in a scenario depends on anything else: time passes when somebody
//! sleeps, and chance is drawn from the explorer. A scenario in which somebody waits for ever fails as a deadlock, and so does
//! one that leaves a task of the host behind.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod committer;
mod gate;
mod instances;
mod settling;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::pin::pin;
use std::task::{Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use shuttle::future::yield_now;
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use crate::clock::{Clock, Random, Sleep, Timestamp};
use crate::store::{
    Batch, Claim, Claimed, Epoch, Found, Hints, Incarnation, Loaded, Members, MemoryStore, NewMessage, Op, Page,
    Posted, Read, Renewal, Renewed, Sequence, ShardId, Store, StoreError, Write,
};
use crate::sync::{Arc, StaticMutex};

/// In how many schedules a scenario is run, unless `SCHEDULES` says so.
const SCHEDULES: usize = 2_000;
const SCHEDULES_IF_QUICK: usize = 200;
/// At how many places the explorer of few preemptions forces one.
const PREEMPTIONS: usize = 3;
/// A schedule longer than this goes round in circles.
const MAX_STEPS: usize = 200_000;

/// Runs a scenario under many schedules, or under the one of the file that `SCHEDULE` names.
fn explore<F: Fn() + Copy + Send + Sync + 'static>(scenario: F) {
    let mut config = Config::new();
    config.stack_size = 1 << 18;
    config.max_steps = MaxSteps::FailAfter(MAX_STEPS);
    config.silence_warnings = true;
    if let Some(path) = std::env::var_os("SCHEDULE") {
        config.failure_persistence = FailurePersistence::None;
        let schedule = ReplayScheduler::new_from_file(path).expect("the file holds a schedule");
        Runner::new(schedule, config).run(scenario);
        return;
    }
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("SEED").unwrap_or(1);
    let default = if std::env::var_os("QUICK").is_some() { SCHEDULES_IF_QUICK } else { SCHEDULES };
    let count = number("SCHEDULES").map_or(default, |count| usize::try_from(count).expect("a count"));
    // The scenario is a closure in its test.
    let test = std::any::type_name::<F>().trim_end_matches("::{{closure}}");
    let test = test.split_once("::").map_or(test, |(_crate, path)| path);
    let failed = failed_schedules().join(test.replace("::", "-"));
    // What an earlier run has left would be taken for the schedule of this one.
    let _ = std::fs::remove_dir_all(&failed);
    std::fs::create_dir_all(&failed).expect("a directory for schedules that failed");
    config.failure_persistence = FailurePersistence::File(Some(failed.clone()));
    let explored = catch_unwind(AssertUnwindSafe(|| {
        // One of them preempts anywhere and often, the other seldom: most faults need few preemptions at the right places.
        Runner::new(RandomScheduler::new_from_seed(seed, count.div_ceil(2)), config.clone()).run(scenario);
        Runner::new(PctScheduler::new_from_seed(seed, PREEMPTIONS, count / 2), config.clone()).run(scenario);
    }));
    match explored {
        Ok(()) => drop(std::fs::remove_dir(&failed)),
        Err(panic) => {
            let first = failed.join("schedule000.txt");
            eprintln!("\nrepeat this schedule: SCHEDULE={} tests/run {test}\n", first.display());
            resume_unwind(panic);
        }
    }
}

/// The place of schedules that failed: beside this program.
fn failed_schedules() -> PathBuf {
    let program = std::env::current_exe().expect("a program has a path");
    program.parent().expect("it is in a directory").join("schedules")
}

/// A number below `end`, drawn by the explorer.
fn below(end: u32) -> u32 {
    thread_rng().gen_range(0..end)
}

/// Waits a little: anything may happen before it goes on, or not.
async fn pause() {
    for _ in 0..below(3) {
        yield_now().await;
    }
}

/// Lets others run, or not, without waiting.
fn step() {
    shuttle::thread::sleep(Duration::ZERO);
}

/// The events, in order. Its lock is never held across a step, so it is no step itself.
#[derive(Debug)]
struct Log<T>(Arc<StaticMutex<Vec<T>>>);

impl<T> Clone for Log<T> {
    fn clone(&self) -> Log<T> {
        Log(self.0.clone())
    }
}

impl<T: Clone> Log<T> {
    fn new() -> Log<T> {
        Log(Arc::default())
    }

    fn note(&self, event: T) {
        self.0.lock().push(event);
    }

    fn all(&self) -> Vec<T> {
        self.0.lock().clone()
    }
}

/// Waits for a future, or gives it up after so many `polls`. `asked` is told when it has been polled for the first time.
async fn ask<F: Future>(future: F, polls: Option<u32>, asked: impl FnOnce()) -> Option<F::Output> {
    let mut future = pin!(future);
    let (mut asked, mut polled) = (Some(asked), 0);
    std::future::poll_fn(|task| {
        if polls == Some(polled) {
            return Poll::Ready(None);
        }
        let poll = future.as_mut().poll(task);
        polled += 1;
        if let Some(asked) = asked.take() {
            asked();
        }
        match poll {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polls == Some(polled) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Time that passes when somebody sleeps for a moment, or is made to pass.
#[derive(Debug, Default)]
struct Time(StaticMutex<TimeState>);

#[derive(Debug, Default)]
struct TimeState {
    elapsed: Duration,
    sleepers: Vec<(Duration, Waker)>,
}

/// A sleep no longer than this is over as soon as others had their turn. The pauses between repeats are.
const MOMENT: Duration = Duration::from_secs(2);

impl Time {
    fn pass(&self, time: Duration) {
        let mut state = self.0.lock();
        state.elapsed += time;
        let now = state.elapsed;
        let due: Vec<_> = state.sleepers.extract_if(.., |(until, _)| *until <= now).collect();
        drop(state);
        for (_, sleeper) in due {
            sleeper.wake();
        }
    }
}

/// The clock of a scenario.
#[derive(Debug, Clone, Default)]
struct ScenarioClock(Arc<Time>);

impl Clock for ScenarioClock {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH + self.elapsed()
    }

    fn elapsed(&self) -> Duration {
        self.0.0.lock().elapsed
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        let time = self.0.clone();
        if duration <= MOMENT {
            return Box::pin(async move {
                yield_now().await;
                time.pass(duration);
            });
        }
        let until = self.elapsed().saturating_add(duration);
        Box::pin(std::future::poll_fn(move |task| {
            let mut state = time.0.lock();
            if state.elapsed >= until {
                return Poll::Ready(());
            }
            state.sleepers.push((until, task.waker().clone()));
            Poll::Pending
        }))
    }

    fn sleep_exact(&self, until: Timestamp) -> Sleep {
        self.sleep(until.since(self.now()))
    }

    fn is_simulated(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct ScenarioRandom;

impl Random for ScenarioRandom {
    fn next_u64(&self) -> u64 {
        thread_rng().r#gen()
    }
}

/// The fate of a write in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    /// Carried out, and the answer lost.
    Unanswered,
    /// Not carried out, and nobody knows.
    Lost,
    /// Not carried out, and that is known.
    NotApplied,
}

/// A write on its way.
#[derive(Debug, Clone)]
enum WriteEvent {
    Sent(Write),
    Answered { write: Write, fate: Fate },
}

/// A store that takes its time, and fails as often as it is told to; by the lot, for each batch of a write by itself.
#[derive(Debug)]
struct SlowStore {
    store: MemoryStore,
    sequence: Sequence,
    /// The writes; with [`Sequence::OfShard`] one for each batch.
    writes: Log<WriteEvent>,
    /// The number of writes that may still fail.
    faults: StaticMutex<u32>,
}

impl SlowStore {
    fn new(clock: &ScenarioClock, faults: u32) -> Arc<SlowStore> {
        let clock = Arc::new(clock.clone());
        let (store, sequence) = match below(2) {
            0 => (MemoryStore::with_clock(clock), Sequence::OfLane),
            _ => (MemoryStore::spread(clock), Sequence::OfShard),
        };
        Arc::new(SlowStore { store, sequence, writes: Log::new(), faults: StaticMutex::new(faults) })
    }

    fn draw(&self) -> Fate {
        let fate = [Fate::Done, Fate::Done, Fate::Unanswered, Fate::Lost, Fate::NotApplied][below(5) as usize];
        let mut faults = self.faults.lock();
        if fate == Fate::Done || *faults == 0 {
            return Fate::Done;
        }
        *faults -= 1;
        fate
    }
}

/// The key and value of a put.
fn put_of(op: &Op) -> Option<(&str, &[u8])> {
    match op {
        Op::Put { key, value, .. } => Some((key, value)),
        _ => None,
    }
}

/// All values that a write puts, by shard.
fn puts(write: &Write) -> impl Iterator<Item = (ShardId, &str, &[u8])> {
    let of_batch = |batch: &'_ Batch| batch.shard;
    write.batches.iter().flat_map(move |batch| {
        let shard = of_batch(batch);
        batch.ops.iter().filter_map(put_of).map(move |(key, value)| (shard, key, value))
    })
}

#[async_trait]
impl Store for SlowStore {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        self.store.claim(claim).await
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        self.store.renew(renewal).await
    }

    async fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        self.store.release(incarnation, given_up).await
    }

    async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        self.store.cordon(member, is_cordoned, seen).await
    }

    async fn members(&self) -> Result<Members, StoreError> {
        self.store.members().await
    }

    async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let alone = |batch: &Batch| Write { batches: vec![batch.clone()], ..write.clone() };
        let parts: Vec<Write> = match self.sequence {
            Sequence::OfLane => vec![write.clone()],
            Sequence::OfShard => write.batches.iter().map(alone).collect(),
        };
        parts.iter().for_each(|part| self.writes.note(WriteEvent::Sent(part.clone())));
        pause().await;
        let mut done = Vec::with_capacity(parts.len());
        for part in parts {
            let fate = self.draw();
            let answer = match fate {
                Fate::Done | Fate::Unanswered => self.store.commit(&part).await,
                Fate::Lost | Fate::NotApplied => Ok(Vec::new()),
            };
            done.push((part, fate, answer));
        }
        pause().await;
        let mut said = Vec::with_capacity(done.len());
        for (write, fate, answer) in done {
            self.writes.note(WriteEvent::Answered { write, fate });
            said.push(match fate {
                Fate::Done => answer,
                Fate::Unanswered | Fate::Lost => Err(StoreError::Unavailable("no answer".into())),
                Fate::NotApplied => Err(StoreError::NotApplied("not now".into())),
            });
        }
        match self.sequence {
            Sequence::OfLane => said.pop().unwrap_or_else(|| Ok(Vec::new())),
            Sequence::OfShard => Ok(said.into_iter().map(|answer| answer.and_then(|mut of| of.remove(0))).collect()),
        }
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        self.store.post(messages).await
    }

    async fn watch(&self, incarnation: Incarnation) -> Result<Hints, StoreError> {
        self.store.watch(incarnation).await
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        self.store.load(pages).await
    }

    async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        pause().await;
        self.store.read(read).await
    }
}
