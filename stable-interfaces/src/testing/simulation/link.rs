//! The world as a host of a simulation sees it: a clock that stops for it, and a way to its store that ends with it.

use std::time::Duration;

use async_trait::async_trait;

use crate::clock::{Clock, Sleep, Timestamp};
use crate::store::{
    Claim, Claimed, Epoch, Found, Hints, Incarnation, Loaded, Members, NewMessage, Op, Page, Posted, Read, Renewal,
    Renewed, ShardId, Store, StoreError, Write,
};
use crate::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use crate::sync::{Arc, Notify};
use crate::testing::{Fault, FaultStore, History, Method, SimClock};

/// Tells whether a host stands still, as a process does that is stopped by a signal or a hypervisor.
#[derive(Debug, Default)]
pub(super) struct Pause {
    is_on: AtomicBool,
    ended: Notify,
}

impl Pause {
    pub(super) fn set(&self, is_on: bool) {
        self.is_on.store(is_on, Ordering::SeqCst);
        if !is_on {
            self.ended.notify_waiters();
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::SeqCst)
    }

    pub(super) async fn passed(&self) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            // Listen first, then look: an end in between is not missed.
            ended.as_mut().enable();
            if !self.is_on.load(Ordering::SeqCst) {
                return;
            }
            ended.await;
        }
    }
}

/// The clock of one host: a wall of its own, and sleeps that do not end while the host stands still.
#[derive(Debug)]
pub(super) struct HostClock {
    pub(super) clock: SimClock,
    pub(super) pause: Arc<Pause>,
    /// The latest time that the wall has shown before it was set back.
    latest: AtomicI64,
}

impl HostClock {
    pub(super) fn new(clock: SimClock) -> HostClock {
        HostClock { clock, pause: Arc::default(), latest: AtomicI64::new(i64::MIN) }
    }

    pub(super) fn step(&self, millis: i64) {
        self.latest.fetch_max(self.clock.now().as_millis(), Ordering::SeqCst);
        self.clock.step(millis);
    }

    /// The latest time that the wall has ever shown.
    pub(super) fn latest(&self) -> Timestamp {
        Timestamp::from_millis(self.latest.load(Ordering::SeqCst)).max(self.clock.now())
    }

    fn gated(&self, sleep: Sleep) -> Sleep {
        let pause = self.pause.clone();
        Box::pin(async move {
            sleep.await;
            pause.passed().await;
        })
    }
}

impl Clock for HostClock {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        self.gated(self.clock.sleep(duration))
    }

    fn sleep_exact(&self, until: Timestamp) -> Sleep {
        self.gated(self.clock.sleep_exact(until))
    }

    fn is_simulated(&self) -> bool {
        true
    }
}

/// The way of one host to the store.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) faults: FaultStore,
    pub(super) pause: Arc<Pause>,
    pub(super) is_dead: Arc<AtomicBool>,
    /// Says whether the host has told the store that it leaves.
    is_leaving: Arc<AtomicBool>,
    /// The number of shards that it has handed over while it stayed.
    handed_over: Arc<AtomicU64>,
    history: History,
}

impl Link {
    pub(super) fn new(faults: FaultStore, pause: Arc<Pause>, handed_over: Arc<AtomicU64>, history: History) -> Link {
        Link { faults, pause, is_dead: Arc::default(), is_leaving: Arc::default(), handed_over, history }
    }

    /// Writes down of which alarms the host has not heard that their starts are marked.
    fn note_unmarked(&self, write: &Write, answers: &Result<Vec<Result<(), StoreError>>, StoreError>) {
        let is_refused = |n: usize| answers.as_ref().map_or(true, |answers| answers.get(n).is_none_or(Result::is_err));
        let refused = (0..).zip(&write.batches).filter(|(n, _)| is_refused(*n));
        for op in refused.flat_map(|(_, batch)| batch.ops.iter()) {
            if let Op::PutAlarm(alarm) = op
                && alarm.attempts.started
            {
                self.history.unmarked(&alarm.name.instance);
            }
        }
    }

    /// Nothing goes out of a host that is dead, and nothing out of or into one that stands still.
    async fn pass<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.pause.passed().await;
        if self.is_dead.load(Ordering::SeqCst) {
            return Err(StoreError::NotApplied("this host is dead".into()));
        }
        let answer = call.await;
        self.pause.passed().await;
        answer
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Store for Link {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        self.pass(self.faults.claim(claim)).await
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        self.is_leaving.store(renewal.presence.is_leaving, Ordering::SeqCst);
        self.pass(self.faults.renew(renewal)).await
    }

    async fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        let released = self.pass(self.faults.release(incarnation, given_up)).await;
        if released.is_ok() && !self.is_leaving.load(Ordering::SeqCst) {
            self.handed_over.fetch_add(given_up.len() as u64, Ordering::SeqCst);
        }
        released
    }

    async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        self.pass(self.faults.cordon(member, is_cordoned, seen)).await
    }

    async fn members(&self) -> Result<Members, StoreError> {
        self.pass(self.faults.members()).await
    }

    async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let answers = self.pass(self.faults.commit(write)).await;
        self.note_unmarked(write, &answers);
        answers
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        self.pass(self.faults.post(messages)).await
    }

    async fn watch(&self, incarnation: Incarnation) -> Result<Hints, StoreError> {
        self.pass(self.faults.watch(incarnation)).await
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        self.pass(self.faults.load(pages)).await
    }

    async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        self.pass(self.faults.read(read)).await
    }
}

/// The words for what happened to a call, before the name of the method.
pub(super) fn described(fault: Fault) -> &'static str {
    match fault {
        Fault::FailBefore => "failed before",
        Fault::FailAfter => "failed after",
        Fault::Delay(_) | Fault::DelayUpTo(_) => "slow way to",
        Fault::SlowAnswer(_) => "slow way back from",
        Fault::Hang | Fault::HangAfter => "hanging",
        Fault::Late(_) | Fault::HangLate(_) | Fault::LateUntilTold => "late arrival of",
    }
}

/// The faults that calls meet by chance, `calls` of them all.
pub(super) fn set_chances(faults: &FaultStore, calls: f64) {
    let seconds = Duration::from_secs;
    for method in Method::ALL {
        for (fault, part) in [
            (Fault::FailBefore, 0.10),
            (Fault::FailAfter, 0.15),
            (Fault::DelayUpTo(seconds(1)), 0.28),
            (Fault::SlowAnswer(seconds(1)), 0.23),
            (Fault::Hang, 0.02),
            (Fault::HangAfter, 0.02),
            (Fault::DelayUpTo(seconds(6)), 0.05),
            (Fault::SlowAnswer(seconds(6)), 0.05),
            (Fault::Late(seconds(3)), 0.04),
            (Fault::HangLate(seconds(8)), 0.06),
        ] {
            faults.set_chance(method, fault, calls * part);
        }
        // Nothing answers at once.
        faults.set_chance(method, Fault::DelayUpTo(Duration::from_millis(5)), (1.0 - calls) * 0.1);
    }
}
