//! Measurements of flows, on any store.
//!
//! The flow that most of them are about hands out a URL and waits for a call there, with a limit: it is started, called, and over.

use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use callback_flows::{Call, Delivered, Flow, FlowResult, Flows, Outcome, UrlKeys};
use serde::{Deserialize, Serialize};
use stable_interfaces::{Fleet, Host, Timestamp};
use tokio::sync::Notify;

use crate::alarms::{LatenessRun, share, wall_millis};
use crate::measure::percentile;
use crate::stores::{HOST, Metered, Place, SHARDS};

pub mod http;
#[cfg(feature = "durable")]
pub mod peers;
pub mod scripts;

/// The limit of a wait that is not to be over.
const HOUR: Duration = Duration::from_secs(3_600);
/// The host beside the owner, which takes calls that are posted.
const OTHER: &str = "other";

/// The input of a flow that waits.
#[derive(Debug, Serialize, Deserialize)]
struct Wait {
    /// The place where the flow leaves its URL, and says that it goes on.
    slot: usize,
    /// The ID of the flow.
    id: String,
    /// Steps before it waits.
    steps: u64,
}

/// The place of a caller, where its flow meets it.
#[derive(Debug, Default)]
struct Slot {
    /// The flow that was there last, and its URL: one that is run again from the top says it again.
    url: Mutex<(String, String)>,
    /// The time of the flow's line after its wait.
    resumed: Mutex<Option<Instant>>,
    went_on: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All that flows leave outside of themselves.
#[derive(Debug)]
struct Seen {
    slots: Vec<Slot>,
    late: Mutex<Vec<f64>>,
    /// Steps that are to wait for ever, and the number of those that have begun.
    holds: AtomicBool,
    held: AtomicU64,
    changed: Notify,
}

async fn wait(seen: Arc<Seen>, flow: Flow, input: Wait) -> FlowResult<u64> {
    for n in 0..input.steps {
        flow.step("step").run(|_| std::future::ready(Ok::<_, std::io::Error>(n))).await?;
    }
    let slot = &seen.slots[input.slot];
    let mut go = flow.callback::<u64>("go");
    *lock(&slot.url) = (input.id, go.url());
    let went = flow.timeout(HOUR, go.next()).await;
    *lock(&slot.resumed) = Some(Instant::now());
    slot.went_on.notify_one();
    Ok(went??)
}

async fn sleep_until(seen: Arc<Seen>, flow: Flow, at: i64) -> FlowResult<()> {
    flow.sleep_until(Timestamp::from_millis(at)).await;
    lock(&seen.late).push(wall_millis() - at as f64);
    seen.changed.notify_one();
    Ok(())
}

async fn hold(seen: Arc<Seen>, flow: Flow, (): ()) -> FlowResult<()> {
    let held = flow.step("hold").run(|_| async {
        seen.held.fetch_add(1, Ordering::SeqCst);
        seen.changed.notify_one();
        if seen.holds.load(Ordering::SeqCst) {
            pending::<()>().await;
        }
        Ok::<_, std::io::Error>(())
    });
    Ok(held.await?)
}

/// A host with flows on the store of a place, and perhaps another beside it that owns other shards.
#[derive(Debug)]
pub struct Running {
    host: Host,
    flows: Flows,
    other: Option<(Host, Flows)>,
    store: Metered,
    seen: Arc<Seen>,
    fleet: Fleet,
}

/// The number of hosts that share a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hosts {
    /// The owner of all flows.
    One,
    /// The owner of the flows that are measured, and one that posts to it.
    Two,
}

impl Running {
    /// Starts the host, or both.
    pub async fn start(place: &dyn Place, hosts: Hosts) -> Running {
        Running::start_on(Metered::new(place.open().await), place.is_shared(), hosts, true).await
    }

    async fn start_on(store: Metered, is_shared: bool, hosts: Hosts, holds: bool) -> Running {
        let slots = (0..1_024).map(|_| Slot::default()).collect();
        let (late, held, changed) = Default::default();
        let seen = Arc::new(Seen { slots, late, holds: AtomicBool::new(holds), held, changed });
        let names: &[&str] = if hosts == Hosts::Two { &[HOST, OTHER] } else { &[HOST] };
        let fleet = Fleet::new(names, SHARDS).expect("these hosts make a fleet");
        let builder = |name: &str| match is_shared || hosts == Hosts::Two {
            true => Host::builder(name, fleet.clone()).store(store.clone()),
            false => Host::local(store.clone()),
        };
        let start = async |name: &str| {
            let mut host = builder(name);
            let [waits, sleeps, holds] = std::array::from_fn(|_| seen.clone());
            let keys = UrlKeys::new("k1", "sixteen bytes or more").expect("the secret is long enough");
            let flows = Flows::builder()
                .flow("wait", 1, move |flow, input| wait(waits.clone(), flow, input))
                .flow("sleep", 1, move |flow, at| sleep_until(sleeps.clone(), flow, at))
                .flow("hold", 1, move |flow, input| hold(holds.clone(), flow, input))
                .callbacks("https://flows.example/callbacks", keys)
                .register(&mut host)
                .expect("they can be registered");
            (host.start().await.expect("the store lets its host start"), flows)
        };
        let (host, flows) = start(HOST).await;
        let other = if hosts == Hosts::Two { Some(start(OTHER).await) } else { None };
        Running { host, flows, other, store, seen, fleet }
    }

    /// Ends it, so that the store is closed when this returns.
    pub async fn end(self) {
        let Running { host, flows, other, store, .. } = self;
        host.drain(Duration::from_secs(30)).await;
        if let Some((other, _)) = &other {
            other.drain(Duration::from_secs(30)).await;
        }
        drop((host, flows, other));
        // Its tasks let go of the store when they notice.
        while store.is_shared() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The next number whose flow the measured host owns.
    fn next_id(&self, next: &AtomicU64) -> String {
        loop {
            let id = next.fetch_add(1, Ordering::Relaxed).to_string();
            let shard = self.fleet.shard_of(&format!("wait/{id}")).expect("it can be an ID");
            if &**self.fleet.host_of(shard) == HOST {
                return id;
            }
        }
    }

    /// Starts a flow that waits, and returns the URL at which it does.
    async fn begin(&self, id: &str, slot: usize, steps: u64) -> String {
        let input = Wait { slot, id: id.to_owned(), steps };
        self.flows.start("wait", id, &input).await.expect("a flow can be started");
        self.url_in(slot, id).await
    }

    /// The URL that this flow leaves in its slot.
    async fn url_in(&self, slot: usize, id: &str) -> String {
        loop {
            let (of, url) = lock(&self.seen.slots[slot].url).clone();
            if of == id {
                return url;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Calls it: through the other host, if there is one.
    async fn call(&self, url: &str) -> Delivered {
        let flows = self.other.as_ref().map_or(&self.flows, |(_, flows)| flows);
        flows.deliver(url, Call::new("1")).await.expect("a call can be delivered")
    }

    /// The whole way of one flow: started, called, over; by post, until its code goes on.
    async fn once(&self, id: &str, slot: usize) {
        let url = self.begin(id, slot, 0).await;
        if self.call(&url).await == Delivered::Posted {
            self.seen.slots[slot].went_on.notified().await;
        }
    }
}

/// Commits per flow, with so many steps; messages that are posted count as one.
pub async fn commits(place: &dyn Place, hosts: Hosts, steps: u64) -> f64 {
    const FLOWS: u64 = 50;
    let running = Running::start(place, hosts).await;
    let next = AtomicU64::new(0);
    let before = running.store.writes();
    for _ in 0..FLOWS {
        let url = running.begin(&running.next_id(&next), 0, steps).await;
        if running.call(&url).await == Delivered::Posted {
            running.seen.slots[0].went_on.notified().await;
        }
    }
    // The last commit of a flow that was called by post.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let commits = (running.store.writes() - before) as f64 / FLOWS as f64;
    running.end().await;
    commits
}

/// Flows per second, each started, called and over, with so many callers for so long.
pub async fn rate(place: &dyn Place, hosts: Hosts, callers: usize, time: Duration) -> f64 {
    let running = Arc::new(Running::start(place, hosts).await);
    let next = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let call = |slot| {
        let (running, next) = (running.clone(), next.clone());
        tokio::spawn(async move {
            let mut flows = 0_u64;
            while started.elapsed() < time {
                running.once(&running.next_id(&next), slot).await;
                flows += 1;
            }
            flows
        })
    };
    let calls: Vec<_> = (0..callers).map(call).collect();
    let mut flows = 0;
    for call in calls {
        flows += call.await.expect("no caller fails");
    }
    let rate = flows as f64 / started.elapsed().as_secs_f64();
    Arc::into_inner(running).expect("no caller is left").end().await;
    rate
}

/// Times from handing a call in, in milliseconds, in order.
#[derive(Debug)]
pub struct Resumed {
    /// Until the flow's next line.
    pub resume: Vec<f64>,
    /// Until the call was acknowledged.
    pub ack: Vec<f64>,
}

/// Calls flows one after the other, each while nothing else happens.
pub async fn resume(place: &dyn Place, hosts: Hosts, flows: u64) -> Resumed {
    let running = Running::start(place, hosts).await;
    let next = AtomicU64::new(0);
    let mut found = Resumed { resume: Vec::new(), ack: Vec::new() };
    for n in 0..flows {
        let url = running.begin(&running.next_id(&next), 0, 0).await;
        let slot = &running.seen.slots[0];
        *lock(&slot.resumed) = None;
        let called = Instant::now();
        running.call(&url).await;
        let acknowledged = called.elapsed();
        let resumed = loop {
            match *lock(&slot.resumed) {
                Some(resumed) => break resumed,
                None if running.other.is_some() => {}
                // With the owner it has gone on before the acknowledgement.
                None => unreachable!("an acknowledged call has been taken"),
            }
            tokio::task::yield_now().await;
        };
        // The first ones warm it up.
        if n >= flows / 10 {
            found.ack.push(acknowledged.as_secs_f64() * 1e3);
            found.resume.push(resumed.duration_since(called).as_secs_f64() * 1e3);
        }
    }
    found.resume.sort_by(f64::total_cmp);
    found.ack.sort_by(f64::total_cmp);
    running.end().await;
    found
}

/// Steps per second of so many flows at once, each of which has so many, and commits per step.
pub async fn steps(place: &dyn Place, flows: usize, steps: u64) -> (f64, f64) {
    let running = Arc::new(Running::start(place, Hosts::One).await);
    let before = running.store.writes();
    let started = Instant::now();
    let begin = |slot: usize| {
        let running = running.clone();
        tokio::spawn(async move { drop(running.begin(&format!("steps-{slot}"), slot, steps).await) })
    };
    for begun in (0..flows).map(begin).collect::<Vec<_>>() {
        begun.await.expect("no flow fails");
    }
    let all = flows as f64 * steps as f64;
    let rate = all / started.elapsed().as_secs_f64();
    let commits = (running.store.writes() - before) as f64 / all;
    Arc::into_inner(running).expect("nobody else is left").end().await;
    (rate, commits)
}

/// Measures the lateness of the limits of flows, at random times over `over`. `None` if they could not all be started within `lead`.
pub async fn lateness(place: &dyn Place, flows: u64, over: Duration, lead: Duration) -> Option<LatenessRun> {
    let running = Arc::new(Running::start(place, Hosts::One).await);
    let first = Timestamp::from(SystemTime::now()) + lead;
    park(&running, flows, move |number| (first + over.mul_f64(share(number))).as_millis()).await;
    let in_time = Timestamp::from(SystemTime::now()) < first;
    let late = loop {
        let changed = running.seen.changed.notified();
        if !in_time || lock(&running.seen.late).len() as u64 >= flows {
            break std::mem::take(&mut *lock(&running.seen.late));
        }
        changed.await;
    };
    Arc::into_inner(running).expect("nobody else is left").end().await;
    if !in_time {
        return None;
    }
    let mut late = late;
    late.sort_by(f64::total_cmp);
    Some(LatenessRun { p50: percentile(&late, 0.5), p99: percentile(&late, 0.99), max: percentile(&late, 1.0) })
}

/// Starts so many flows that sleep until the times that `at` gives, with many callers.
async fn park(running: &Arc<Running>, flows: u64, at: impl Fn(u64) -> i64 + Clone + Send + 'static) {
    const CALLERS: usize = 512;
    let begin = |caller: usize| {
        let (running, at) = (running.clone(), at.clone());
        tokio::spawn(async move {
            for number in (0..flows).skip(caller).step_by(CALLERS) {
                let started = running.flows.start("sleep", &number.to_string(), &at(number)).await;
                started.expect("a flow can be started");
            }
        })
    };
    for begun in (0..CALLERS).map(begin).collect::<Vec<_>>() {
        begun.await.expect("no caller fails");
    }
}

/// A moment that does not come while anything is measured.
fn far() -> i64 {
    (Timestamp::from(SystemTime::now()) + 24 * HOUR).as_millis()
}

impl Running {
    /// Starts so many flows that wait for a long time.
    pub async fn park(self: &Arc<Running>, flows: u64) {
        let far = far();
        park(self, flows, move |_| far).await;
    }
}

/// Operations per second of the replay of one flow of so many: as a host does it that reads its journal, and by the engine alone.
pub async fn replay(place: &dyn Place, operations: u64) -> (f64, f64) {
    let running = Running::start(place, Hosts::One).await;
    let url = running.begin("long", 0, operations).await;
    running.end().await;
    let running = Running::start(place, Hosts::One).await;
    let journal = running.flows.journal("wait", "long").await.expect("it has a journal");
    let mut alone: Vec<f64> = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        running.flows.check(&journal).expect("its code fits");
        alone.push(operations as f64 / started.elapsed().as_secs_f64());
    }
    let called = Instant::now();
    running.call(&url).await;
    let resumed = lock(&running.seen.slots[0].resumed).expect("an acknowledged call has been taken");
    let rate = operations as f64 / resumed.duration_since(called).as_secs_f64();
    running.end().await;
    alone.sort_by(f64::total_cmp);
    (rate, percentile(&alone, 0.5))
}

/// Milliseconds from the start of a host, whose predecessor was killed with so many parked flows and so many whose step ran, until the last
/// of these steps runs again.
pub async fn takeover(place: &dyn Place, parked: u64, running_steps: u64) -> f64 {
    let store = Metered::new(place.open().await);
    let first = Arc::new(Running::start_on(store.clone(), place.is_shared(), Hosts::One, true).await);
    first.park(parked).await;
    for n in 0..running_steps {
        first.flows.start("hold", &n.to_string(), &()).await.expect("a flow can be started");
    }
    while first.seen.held.load(Ordering::SeqCst) < running_steps {
        first.seen.changed.notified().await;
    }
    // Dropped without being drained, it ends as in a crash.
    drop(Arc::into_inner(first).expect("nobody else is left"));
    let started = Instant::now();
    let second = Running::start_on(store.clone(), place.is_shared(), Hosts::One, false).await;
    while second.seen.held.load(Ordering::SeqCst) < running_steps {
        second.seen.changed.notified().await;
    }
    let millis = started.elapsed().as_secs_f64() * 1e3;
    drop(store);
    second.end().await;
    millis
}

/// Sees that the measured flow does what it is measured for.
///
/// # Panics
/// If it does not.
pub async fn probe(place: &dyn Place) {
    let running = Running::start(place, Hosts::One).await;
    running.once("probe", 0).await;
    let outcome = running.flows.result("wait", "probe").await.expect("it is stored");
    assert!(matches!(outcome, Some(Outcome::Done(value)) if value.get() == "1"), "it has ended with what came");
    running.end().await;
}
