//! Measurements of alarms, on any store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use stable_interfaces::{
    Alarm, Context, ContextError, Fleet, Handle, Host, Interface, OnAlarm, StableInterface, Timestamp,
};

use tokio::sync::Notify;

use crate::measure::percentile;
use crate::stores::{Ended, HOST, Metered, Place, SHARDS, fill};

/// The name of the interface whose alarms are measured.
pub const INTERFACE: &str = "timer";

/// Over how many instances alarms that are set by requests are spread.
const INSTANCES: u64 = 10_000;

/// The instance and the ID of alarm `number`, if there are that many `instances`.
#[must_use]
pub fn names(number: u64, instances: u64) -> (String, String) {
    (format!("instance-{:08}", number % instances), format!("alarm-{number:08}"))
}

/// Counts of what handlers saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// The times between an alarm's time and the first line of its handler, in milliseconds, in the order of firing.
    late: Mutex<Vec<f64>>,
    fired: AtomicU64,
    first: Notify,
}

impl Seen {
    /// Waits until the first alarm has fired.
    async fn has_fired(&self) {
        self.first.notified().await;
    }

    fn late(&self) -> std::sync::MutexGuard<'_, Vec<f64>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An instance with alarms.
#[derive(Debug)]
pub struct Timer(Arc<Seen>);

impl StableInterface for Timer {
    const NAME: &'static str = INTERFACE;
    type Error = ContextError;
}

impl OnAlarm for Timer {
    async fn on_alarm(&mut self, _: &mut Context, alarm: &Alarm) -> Result<(), ContextError> {
        let now = wall_millis();
        self.0.late().push(now - alarm.scheduled_at().as_millis() as f64);
        if self.0.fired.fetch_add(1, Ordering::Relaxed) == 0 {
            self.0.first.notify_one();
        }
        Ok(())
    }
}

/// Asks an instance to set an alarm.
#[derive(Debug)]
pub struct Set {
    number: u64,
    at: Timestamp,
}

impl Handle<Set> for Timer {
    type Reply = ();

    async fn handle(&mut self, cx: &mut Context, set: Set) -> Result<(), ContextError> {
        cx.set_alarm(&names(set.number, INSTANCES).1, set.at, &set.number)
    }
}

/// The wall clock, in milliseconds and parts of them.
#[must_use]
pub fn wall_millis() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1e3)
}

fn from_now(after: Duration) -> Timestamp {
    Timestamp::from(SystemTime::now()) + after
}

/// A host on a store, and what is seen of both.
#[derive(Debug)]
pub struct Running {
    host: Host,
    timers: Interface<Timer>,
    store: Metered,
    seen: Arc<Seen>,
}

impl Running {
    /// Starts a host on the store of this place.
    pub async fn start(place: &dyn Place) -> Running {
        let store = Metered::new(place.open().await);
        let seen = Arc::new(Seen::default());
        let mut host = if place.is_shared() {
            let fleet = Fleet::new([HOST], SHARDS).expect("one host makes a fleet");
            Host::builder(HOST, fleet).store(store.clone())
        } else {
            Host::local(store.clone())
        };
        let of_instances = seen.clone();
        let timers = host.interface(move |_| Timer(of_instances.clone())).with_alarms().register();
        let timers = timers.expect("its name is good");
        let host = host.start().await.expect("the store lets its host start");
        Running { host, timers, store, seen }
    }

    /// Ends the host, so that the store is closed when this returns.
    pub async fn end(self) {
        let Running { host, timers, store, .. } = self;
        host.drain(Duration::from_secs(30)).await;
        drop((host, timers));
        // Its tasks let go of the store when they notice.
        while store.is_shared() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sets alarms `from` to `to` at the times that `at` gives, with many callers.
    async fn set_all(&self, from: u64, to: u64, at: impl Fn(u64) -> Timestamp + Clone + Send + 'static) {
        const CALLERS: usize = 512;
        let set = |caller: usize| {
            let (timers, at) = (self.timers.clone(), at.clone());
            tokio::spawn(async move {
                for number in (from..to).skip(caller).step_by(CALLERS) {
                    let set = Set { number, at: at(number) };
                    timers.request(&names(number, INSTANCES).0, set).await.expect("an alarm can be set");
                }
            })
        };
        let callers: Vec<_> = (0..CALLERS).map(set).collect();
        for caller in callers {
            caller.await.expect("no caller fails");
        }
    }
}

/// Findings of [`set`].
#[derive(Debug)]
pub struct SetRun {
    /// Alarms set per second.
    pub rate: f64,
    /// Alarms per group commit.
    pub mean_batch: f64,
    /// The time that each caller waited, in milliseconds.
    pub waits: Vec<f64>,
}

/// Sets alarms, one per request and durable before its reply, with so many callers for so long.
pub async fn set(place: &dyn Place, callers: u64, time: Duration) -> SetRun {
    let running = Running::start(place).await;
    let next = Arc::new(AtomicU64::new(0));
    let at = from_now(Duration::from_secs(30 * 24 * 3600));
    let started = Instant::now();
    let call = |_| {
        let (timers, next) = (running.timers.clone(), next.clone());
        tokio::spawn(async move {
            let mut waits = Vec::new();
            while started.elapsed() < time {
                let number = next.fetch_add(1, Ordering::Relaxed);
                // Not all at one time, as in life.
                let set = Set { number, at: at + Duration::from_millis(number % 86_400_000) };
                let asked = Instant::now();
                timers.request(&names(number, INSTANCES).0, set).await.expect("an alarm can be set");
                waits.push(asked.elapsed().as_secs_f64() * 1e3);
            }
            waits
        })
    };
    let calls: Vec<_> = (0..callers).map(call).collect();
    let mut waits = Vec::new();
    for call in calls {
        waits.extend(call.await.expect("no caller fails"));
    }
    let rate = waits.len() as f64 / started.elapsed().as_secs_f64();
    let mean_batch = running.store.mean_batch();
    running.end().await;
    SetRun { rate, mean_batch, waits }
}

/// Alarms per second, and alarms per group commit, of a host that starts with a backlog: from its start until the last is
/// durably completed.
pub async fn due(place: &dyn Place, alarms: u64) -> (f64, f64) {
    let started = Instant::now();
    let running = Running::start(place).await;
    running.store.has_removed(alarms).await;
    let rate = alarms as f64 / started.elapsed().as_secs_f64();
    let mean_batch = running.store.mean_batch();
    running.end().await;
    (rate, mean_batch)
}

/// A place that holds alarms that are due.
pub async fn fill_due(place: &dyn Place, alarms: u64, ended: Ended) {
    let past = from_now(Duration::ZERO) - Duration::from_secs(3_600);
    fill(&*place.open().await, alarms, |number| past + Duration::from_millis(number % 1_000_000), ended).await;
}

/// Milliseconds from the start of a host until its first overdue alarm is handled.
pub async fn startup(place: &dyn Place) -> f64 {
    let started = Instant::now();
    let running = Running::start(place).await;
    running.seen.has_fired().await;
    let millis = started.elapsed().as_secs_f64() * 1e3;
    running.end().await;
    millis
}

/// A place that holds alarms that are not due for a long time, but for the first few, which are overdue.
pub async fn fill_startup(place: &dyn Place, alarms: u64) {
    const OVERDUE: u64 = 1_000;
    let now = from_now(Duration::ZERO);
    let due = |number| match number {
        0..OVERDUE => now - Duration::from_secs(3_600) + Duration::from_millis(number),
        _ => now + Duration::from_secs(30 * 24 * 3600) + Duration::from_millis(number),
    };
    fill(&*place.open().await, alarms, due, Ended::Released).await;
}

/// A place that holds alarms that are not due for a long time.
pub async fn fill_pending(place: &dyn Place, alarms: u64) {
    let future = from_now(Duration::from_secs(30 * 24 * 3600));
    fill(&*place.open().await, alarms, |number| future + Duration::from_millis(number), Ended::Released).await;
}

/// The lateness of something, in milliseconds.
#[derive(Debug)]
pub struct LatenessRun {
    /// Half of them were not later.
    pub p50: f64,
    /// 99 of 100 were not later.
    pub p99: f64,
    /// The latest.
    pub max: f64,
}

/// A number from 0 to 1 that looks random and is the same in each run: splitmix64's finalizer.
#[must_use]
pub fn share(number: u64) -> f64 {
    let mut random = (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    random = (random ^ (random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// Measures the lateness of alarms at random times over a few seconds. `None` if they could not all be set within `lead`, before the first
/// of them.
pub async fn lateness(place: &dyn Place, alarms: u64, over: Duration, lead: Duration) -> Option<LatenessRun> {
    let running = Running::start(place).await;
    let first = from_now(lead);
    let at = move |number: u64| {
        let after = over.mul_f64(share(number));
        first + Duration::from_millis(u64::try_from(after.as_millis()).unwrap_or(u64::MAX))
    };
    running.set_all(0, alarms, at).await;
    if from_now(Duration::ZERO) >= first {
        running.end().await;
        return None;
    }
    running.store.has_removed(alarms).await;
    let mut late = std::mem::take(&mut *running.seen.late());
    running.end().await;
    late.sort_by(f64::total_cmp);
    assert!(late[0] >= 0.0, "an alarm fired before its time");
    Some(LatenessRun { p50: percentile(&late, 0.5), p99: percentile(&late, 0.99), max: percentile(&late, 1.0) })
}

/// Findings of [`burst`].
#[derive(Debug)]
pub struct Burst {
    /// From their time until the first handler began, in milliseconds.
    pub first: f64,
    /// From their time until the last was durably completed, in milliseconds.
    pub all: f64,
    /// The number that never fired.
    pub lost: u64,
}

/// Many alarms at one instant. `None` if they could not all be set within `lead`, before that instant.
pub async fn burst(place: &dyn Place, alarms: u64, lead: Duration) -> Option<Burst> {
    let running = Running::start(place).await;
    let at = from_now(lead);
    running.set_all(0, alarms, move |_| at).await;
    if from_now(Duration::ZERO) >= at {
        running.end().await;
        return None;
    }
    let completed = tokio::time::timeout(Duration::from_secs(60), running.store.has_removed(alarms)).await;
    let all = wall_millis() - at.as_millis() as f64;
    let lost = alarms - running.store.removed().min(alarms);
    assert!(completed.is_ok() || lost > 0, "whoever waits for the last is woken");
    let first = running.seen.late().first().copied().unwrap_or(f64::INFINITY);
    running.end().await;
    Some(Burst { first, all, lost })
}
