//! Tests of flows: on a paused clock, without a server, with a crash wherever there can be one.
//!
//! [`TestFlows`] is a process with flows, its store, and its clock. It runs them as a host does, for it is one; time passes when all
//! wait. [`crash_everywhere`] repeats a test with a crash before and after each write.
//!
//! ```
//! use std::collections::BTreeSet;
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use callback_flows::testing::{TestFlows, crash_everywhere};
//! use callback_flows::{Call, Flow, FlowResult, Flows, FlowsBuilder, UrlKeys};
//!
//! async fn order(shop: Arc<Shop>, flow: Flow, item: String) -> FlowResult<String> {
//!     let mut accepted = flow.callback::<String>("accepted");
//!     flow.step("offer").run(|_| shop.offer(&item, accepted.url())).await?;
//!     tokio::select! {
//!         by = accepted.next() => {
//!             let by = by?;
//!             flow.step("charge").run(|s| shop.charge(s.idempotency_key())).await?;
//!             Ok(format!("accepted by {by}"))
//!         }
//!         () = flow.sleep(Duration::from_secs(5)) => Ok("nobody".into()),
//!     }
//! }
//!
//! # #[derive(Default)]
//! # struct Shop { charged: std::sync::Mutex<BTreeSet<String>> }
//! # impl Shop {
//! #     async fn offer(&self, _: &str, _: String) -> Result<(), std::io::Error> { Ok(()) }
//! #     async fn charge(&self, key: String) -> Result<(), std::io::Error> { self.charged.lock().unwrap().insert(key); Ok(()) }
//! # }
//! fn flows(shop: &Arc<Shop>) -> FlowsBuilder {
//!     let shop = shop.clone();
//!     Flows::builder()
//!         .flow("order", 1, move |flow, item| order(shop.clone(), flow, item))
//!         .callbacks("https://shop.example/callbacks", UrlKeys::new("k1", "a secret of 32 random bytes ....").unwrap())
//! }
//!
//! // #[tokio::test(start_paused = true)]
//! async fn an_order_that_nobody_accepts_ends_after_five_seconds() {
//!     let t = TestFlows::new();
//!     t.deploy(flows(&Arc::default())).await.unwrap();
//!     t.fake("offer", ());                                    // the shop is not asked
//!     t.start("order", "17", "a pizza").await.unwrap();
//!     t.run_until_parked().await.unwrap();
//!     t.advance(Duration::from_millis(4_999)).await;
//!     assert!(t.result("order", "17").await.unwrap().is_none());
//!     t.advance(Duration::from_millis(1)).await;
//!     assert_eq!(t.done::<String>("order", "17").await.unwrap(), "nobody");
//! }
//!
//! // #[tokio::test(start_paused = true)]
//! async fn whatever_dies_an_order_is_charged_once() {
//!     let crashes = crash_everywhere(async |t| {
//!         let shop = Arc::<Shop>::default();                  // outlives the process
//!         t.deploy(flows(&shop)).await.unwrap();
//!         t.start("order", "17", "a pizza").await.unwrap();
//!         t.run_until_parked().await.unwrap();
//!         t.deliver(&t.url("order", "17", "accepted").await, Call::new("\"ada\"")).await.unwrap();
//!         assert_eq!(t.done::<String>("order", "17").await.unwrap(), "accepted by ada");
//!         assert_eq!(shop.charged.lock().unwrap().len(), 1);
//!     })
//!     .await;
//!     assert!(crashes >= 8, "{crashes}");                     // before and after: start, offer, call, charge
//! }
//! # let paused = || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
//! # paused().block_on(an_order_that_nobody_accepts_ends_after_five_seconds());
//! # paused().block_on(whatever_dies_an_order_is_charged_once());
//! ```

#[cfg(test)]
mod events;
pub(crate) mod fakes;
#[cfg(test)]
mod halted;
#[cfg(test)]
mod journals;
#[cfg(test)]
mod odd;
#[cfg(test)]
mod outside;
mod process;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use stable_interfaces::clock::Clock as _;
use stable_interfaces::testing::{SeededRandom, SimClock};
use stable_interfaces::{Host, MemoryStore, StartError, Timestamp};
use tokio::sync::{Mutex, watch};

use self::fakes::Fakes;
use self::process::{Cut, Process, Tally};
use crate::engine::{Kind, name_of};
use crate::status::STATUS_KEY;
use crate::step::StepCx;
use crate::{Blocked, Call, Delivered, Flows, FlowsBuilder, FlowsError, Outcome, Started, State, Status};

/// The moment at which every test begins: 2023-11-14, 22:13:20 UTC.
const BEGINNING: Timestamp = Timestamp::from_millis(1_700_000_000_000);
/// The time for which a step may be under way before a test gives up waiting for it.
const LONGEST_STEP: Duration = Duration::from_secs(3_600);
/// The time for which a flow may wait before a test gives up waiting for its end.
const LONGEST_FLOW: Duration = Duration::from_secs(366 * 24 * 3_600);
/// The number of times that all others have their turn without a call of the store, after which nothing more is to come.
const QUIET: u32 = 256;

/// A process with flows in a test, with its store and its clock: see the [module](self).
///
/// For `#[tokio::test(start_paused = true)]`, whose runtime has one thread: time passes when every task waits. What takes real
/// time, as a socket does, is not waited for: [fake](Self::fake) the steps that have one.
///
/// A process may die under any of these calls, and those that ask something of flows then ask again in the next one, as a caller
/// does. So [`Started::Already`] and [`Delivered::Already`] may come in the place of the first answer.
#[derive(Clone)]
pub struct TestFlows {
    world: Arc<World>,
}

/// A future of a named type: a process that dies starts the next one, which may die.
type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// All that a process leaves behind, and the process that there is.
struct World {
    clock: SimClock,
    store: MemoryStore,
    tally: Arc<Tally>,
    fakes: Arc<Fakes>,
    /// The number of the process that there is, and its flows.
    life: watch::Sender<Option<(u64, Flows)>>,
    calls: AtomicU64,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    flows: Option<FlowsBuilder>,
    lives: u64,
    /// The process and its host.
    now: Option<(Process, Host)>,
}

/// The reason why a test cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestError {
    /// The flows have refused what was asked of them.
    #[error(transparent)]
    Refused(#[from] FlowsError),
    /// No process could be started.
    #[error("no process with these flows can be started")]
    Start(#[source] StartError),
    /// A flow is blocked, or would be when it is replayed.
    #[error("the flow `{flow}` is blocked: {why}")]
    Blocked {
        /// The name and the ID of the flow.
        flow: String,
        /// The reason.
        why: Blocked,
    },
    /// A flow has waited for too long: an hour for the end of a step, or a year for its own end.
    #[error("the flow `{flow}` still waits for {what}")]
    Waits {
        /// The name and the ID of the flow.
        flow: String,
        /// The operations that it waits for.
        what: String,
    },
    /// A flow has ended in another way.
    #[error("the flow `{flow}` has ended with {outcome:?}")]
    Ended {
        /// The name and the ID of the flow.
        flow: String,
        /// The end of the flow.
        outcome: Outcome,
    },
    /// The result of a flow is of another type.
    #[error("the result of the flow is of another type")]
    Decode(#[source] serde_json::Error),
}

impl Default for TestFlows {
    fn default() -> TestFlows {
        TestFlows::new()
    }
}

impl fmt::Debug for TestFlows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestFlows").field("now", &self.now()).field("steps", &self.world.fakes).finish_non_exhaustive()
    }
}

impl TestFlows {
    /// An empty store and a clock that begins on 2023-11-14, 22:13:20 UTC. [`deploy`](Self::deploy) starts a process.
    #[must_use]
    pub fn new() -> TestFlows {
        TestFlows::with(None)
    }

    fn with(cut: Option<Cut>) -> TestFlows {
        let clock = SimClock::new(BEGINNING);
        let world = World {
            store: MemoryStore::with_clock(Arc::new(clock.clone())),
            clock,
            tally: Arc::new(Tally::new(cut)),
            fakes: Arc::default(),
            life: watch::Sender::new(None),
            calls: AtomicU64::new(0),
            running: Mutex::default(),
        };
        TestFlows { world: Arc::new(world) }
    }

    /// Starts a process with these flows. One that there is drains first, as in a deploy, and lets its steps end for a minute.
    ///
    /// # Errors
    /// [`TestError::Refused`] names what cannot be registered, [`TestError::Start`] says why it did not start.
    pub async fn deploy(&self, flows: FlowsBuilder) -> Result<(), TestError> {
        let mut running = self.world.running.lock().await;
        running.flows = Some(flows);
        if let Some((process, host)) = running.now.take() {
            tokio::select! { biased;
                _ = host.drain(Duration::from_secs(60)) => {}
                () = process.ended() => {}
            }
            self.world.life.send_replace(None);
            process.end();
            host.crash();
        }
        self.world.begin(&mut running).await
    }

    /// Kills the process, and starts another with the same flows.
    ///
    /// # Errors
    /// As [`deploy`](Self::deploy).
    pub async fn crash(&self) -> Result<(), TestError> {
        let mut running = self.world.running.lock().await;
        self.world.crash(&mut running).await
    }

    /// Makes up what steps of this name give, in whatever branch and under whatever key: the steps themselves are not run.
    ///
    /// # Panics
    /// If the value cannot be JSON.
    pub fn fake(&self, step: &str, value: impl Serialize) {
        let value = serde_json::to_vec(&value).map(Bytes::from);
        let value = value.unwrap_or_else(|error| unreachable!("the value for `{step}` cannot be JSON: {error}"));
        self.world.fakes.set(step, Arc::new(move |_| Ok(value.clone())));
    }

    /// Makes up what attempts of steps of this name come to: a value, or an error, after which the step is tried again as it says.
    pub fn fake_with<T, E>(&self, step: &str, attempt: impl Fn(&StepCx) -> Result<T, E> + Send + Sync + 'static)
    where
        T: Serialize,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let attempt = move |cx: &StepCx| Ok(serde_json::to_vec(&attempt(cx).map_err(Into::into)?)?.into());
        self.world.fakes.set(step, Arc::new(attempt));
    }

    /// The number of attempts that steps of this name have made so far, over all processes, made up or not.
    #[must_use]
    pub fn attempts(&self, step: &str) -> u32 {
        self.world.fakes.attempts(step)
    }

    /// The time by the test's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.world.clock.now()
    }

    /// Starts a flow: [`Flows::start`].
    ///
    /// # Errors
    /// As [`Flows::start`].
    pub async fn start(&self, name: &str, id: &str, input: &(impl Serialize + ?Sized)) -> Result<Started, FlowsError> {
        self.ask(async |flows| flows.start(name, id, input).await).await
    }

    /// Calls a callback by its URL: [`Flows::deliver`]. A call without an ID is given one, so that it counts once though it may have to be
    /// repeated. One that is repeated and finds its flow over is [`Delivered::Already`]: its first time may have ended it.
    ///
    /// # Errors
    /// As [`Flows::deliver`].
    pub async fn deliver(&self, url: &str, call: Call) -> Result<Delivered, FlowsError> {
        let call = call.or_id(|| format!("test-{}", self.world.calls.fetch_add(1, Ordering::Relaxed)));
        let is_repeated = AtomicBool::new(false);
        let deliver = async |flows: &Flows| {
            let is_repeated = is_repeated.swap(true, Ordering::Relaxed);
            match flows.deliver(url, call.clone()).await {
                Err(FlowsError::Gone) if is_repeated => Ok(Delivered::Already),
                answer => answer,
            }
        };
        self.ask(deliver).await
    }

    /// The URL of the first callback of this name outside of all branches, or of the one with this full name, as
    /// [`Waiting::name`](crate::Waiting::name) has it. Empty if the flows have no keys for URLs.
    pub async fn url(&self, name: &str, id: &str, callback: &str) -> String {
        let address = match callback.contains("callback:") {
            true => callback.to_owned(),
            false => format!("{}#0", name_of(Kind::Callback, callback)),
        };
        self.up().await.1.url(&format!("{name}/{id}"), &address)
    }

    /// Asks the flows of the process for something else, such as [`Flows::cancel`], and asks the next process if this one dies
    /// meanwhile.
    ///
    /// # Errors
    /// Those of `ask`.
    pub async fn ask<T>(&self, ask: impl AsyncFn(&Flows) -> Result<T, FlowsError>) -> Result<T, FlowsError> {
        loop {
            let (life, flows) = self.up().await;
            let mut lives = self.world.life.subscribe();
            let has_ended = lives.wait_for(|now| now.as_ref().is_none_or(|(now, _)| *now != life));
            tokio::select! { biased;
                _ = has_ended => {}
                answer = ask(&flows) => return answer,
            }
        }
    }

    /// The status of a flow: [`Flows::get`].
    ///
    /// # Errors
    /// As [`Flows::get`], and [`FlowsError::NotFound`].
    pub async fn status(&self, name: &str, id: &str) -> Result<Status, FlowsError> {
        self.ask(async |flows| flows.get(name, id).await?.ok_or(FlowsError::NotFound)).await
    }

    /// The outcome of a flow: [`Flows::result`]; `None` while it is going.
    ///
    /// # Errors
    /// As [`Flows::result`].
    pub async fn result(&self, name: &str, id: &str) -> Result<Option<Outcome>, FlowsError> {
        self.ask(async |flows| flows.result(name, id).await).await
    }

    /// Lets time pass until a flow has ended, and says how.
    ///
    /// # Errors
    /// As [`result`](Self::result), [`TestError::Blocked`], and [`TestError::Waits`] after a year.
    pub async fn ended(&self, name: &str, id: &str) -> Result<Outcome, TestError> {
        let end = self.now() + LONGEST_FLOW;
        loop {
            self.settle().await;
            if let Some(outcome) = self.result(name, id).await? {
                return Ok(outcome);
            }
            let status = self.status(name, id).await?;
            if let State::Blocked { why } = status.state {
                return Err(TestError::Blocked { flow: format!("{name}/{id}"), why });
            }
            if self.now() >= end {
                return Err(waits(format!("{name}/{id}"), &status));
            }
            self.written_until(end).await;
        }
    }

    /// Lets time pass until a flow has ended with a result, which is to be a `T`.
    ///
    /// # Errors
    /// As [`ended`](Self::ended), [`TestError::Ended`] if it has failed or was cancelled, and [`TestError::Decode`].
    pub async fn done<T: DeserializeOwned>(&self, name: &str, id: &str) -> Result<T, TestError> {
        match self.ended(name, id).await? {
            Outcome::Done(value) => serde_json::from_str(value.get()).map_err(TestError::Decode),
            outcome => Err(TestError::Ended { flow: format!("{name}/{id}"), outcome }),
        }
    }

    /// Lets this much time pass, and then all happen that is due by then.
    pub async fn advance(&self, time: Duration) {
        self.settle().await;
        self.world.clock.sleep(time).await;
        self.settle().await;
    }

    /// Lets flows run until no step of any is under way: each waits for a call or for time, or is over. Time passes for as long as steps
    /// take.
    ///
    /// Then each flow that waits is replayed, and is to do again what it did: so a decision that is not in its journal, such as one
    /// by the time, by chance, or by what is in memory, is found here and not in production.
    ///
    /// # Errors
    /// [`TestError::Blocked`] if a flow is blocked or does not replay, [`TestError::Waits`] if a step is under way for more than an
    /// hour.
    pub async fn run_until_parked(&self) -> Result<(), TestError> {
        let end = self.now() + LONGEST_STEP;
        loop {
            self.settle().await;
            let known = self.world.known();
            let under_way = known.iter().find(|(_, status)| is_under_way(status));
            match under_way {
                None if self.world.store.dump().inbox().next().is_none() => return self.replay(known).await,
                Some((flow, status)) if self.now() >= end => return Err(waits(flow.clone(), status)),
                _ => self.written_until(end).await,
            }
        }
    }

    /// Replays all flows that wait, and compares.
    async fn replay(&self, known: Vec<(String, Status)>) -> Result<(), TestError> {
        for (flow, status) in known {
            let why = match status.state {
                State::Blocked { why } => why,
                State::Going => {
                    let (name, id) = flow.split_once('/').unwrap_or((&flow, ""));
                    let journal = self.ask(async |flows| flows.journal(name, id).await).await?;
                    let Err(why) = self.up().await.1.check(&journal) else { continue };
                    why
                }
                _ => continue,
            };
            return Err(TestError::Blocked { flow, why });
        }
        Ok(())
    }

    /// Lets everything happen that can without time passing.
    async fn settle(&self) {
        let (mut quiet, mut seen) = (0, self.world.tally.moves());
        while quiet < QUIET {
            tokio::task::yield_now().await;
            let moves = self.world.tally.moves();
            quiet = if moves == seen { quiet + 1 } else { 0 };
            seen = moves;
        }
        self.up().await;
    }

    /// Lets time pass until something is written, or until then.
    async fn written_until(&self, end: Timestamp) {
        tokio::select! { biased;
            () = self.world.tally.written() => {}
            () = self.world.clock.sleep_exact(end) => {}
        }
    }

    /// The process that there is, or the next one.
    async fn up(&self) -> (u64, Flows) {
        let mut lives = self.world.life.subscribe();
        match lives.wait_for(Option::is_some).await.map(|life| life.clone()) {
            Ok(Some(life)) => life,
            // Its sender is in `self`.
            _ => std::future::pending().await,
        }
    }
}

impl World {
    /// Starts a process.
    async fn begin(self: &Arc<World>, running: &mut Running) -> Result<(), TestError> {
        loop {
            let Some(flows) = running.flows.clone() else { return Ok(()) };
            running.lives += 1;
            let life = running.lives;
            let process = Process::new(self.store.clone(), self.tally.clone());
            let mut host = Host::local(process.clone())
                .clock(Arc::new(self.clock.clone()))
                .random(Arc::new(SeededRandom::new(life)));
            let flows = flows.for_test(life, self.fakes.clone()).register(&mut host)?;
            let host = tokio::select! { biased;
                host = host.start() => host.map_err(TestError::Start)?,
                // It died before it was there.
                () = process.ended() => continue,
            };
            let (watched, world) = (process.clone(), Arc::downgrade(self));
            tokio::spawn(async move {
                watched.ended().await;
                let Some(world) = world.upgrade() else { return };
                let mut running = world.running.lock().await;
                if running.lives == life && running.now.is_some() && world.crash(&mut running).await.is_err() {
                    // Whoever waits for the next process is told by its own deadline.
                    tracing::error!("the next process of a test did not start");
                }
            });
            running.now = Some((process, host));
            self.life.send_replace(Some((life, flows)));
            return Ok(());
        }
    }

    /// Kills the process, and starts the next.
    fn crash<'a>(self: &'a Arc<World>, running: &'a mut Running) -> BoxFuture<'a, Result<(), TestError>> {
        Box::pin(async move {
            self.life.send_replace(None);
            if let Some((process, host)) = running.now.take() {
                process.end();
                host.crash();
            }
            self.begin(running).await
        })
    }

    /// All flows, as they are stored.
    fn known(&self) -> Vec<(String, Status)> {
        let dump = self.store.dump();
        let rows = dump.shards.values().flat_map(|shard| &shard.storage);
        let statuses = rows.filter(|((_, key), _)| **key == *STATUS_KEY);
        statuses
            .filter_map(|((name, _), row)| Some((name.instance.to_string(), Status::from_stored(row).ok()?)))
            .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some((process, host)) = self.running.get_mut().now.take() {
            process.end();
            host.crash();
        }
    }
}

/// Tells whether a step runs, or waits for its next attempt in memory.
fn is_under_way(status: &Status) -> bool {
    let is_step = |name: &str| name.rsplit('/').next().unwrap_or(name).starts_with("step:");
    matches!(status.state, State::Going) && status.waits.iter().any(|wait| is_step(&wait.name) && wait.until.is_none())
}

fn waits(flow: String, status: &Status) -> TestError {
    let what: Vec<_> = status.waits.iter().map(|wait| format!("`{}`", wait.name)).collect();
    TestError::Waits { flow, what: what.join(", ") }
}

/// Runs a test once as it is, and then once for each of its writes and both sides of it, with a process that dies there and a
/// next one that goes on. Says how many deaths there were.
///
/// Each run is given flows of its own, with an empty store. What is to outlive a process, such as a partner's ledger, is made within
/// the test.
///
/// # Panics
/// If the test does; standard error says at which write the process had died.
pub async fn crash_everywhere(test: impl AsyncFn(&TestFlows)) -> u64 {
    test(&TestFlows::new()).await;
    let mut deaths = 0;
    for at in 0.. {
        for is_before in [true, false] {
            let cut = Cut { at, is_before };
            let flows = TestFlows::with(Some(cut));
            let _words = Words(cut);
            test(&flows).await;
            if !flows.world.tally.has_cut() {
                return deaths;
            }
            deaths += 1;
        }
    }
    deaths
}

/// Says where the process of a test had died, if the test fails.
struct Words(Cut);

impl Drop for Words {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("crash_everywhere: in this run the process died {}", self.0);
        }
    }
}
