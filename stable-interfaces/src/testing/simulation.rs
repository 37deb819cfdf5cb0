//! A whole fleet in one thread and no time: its hosts, their store, what fails, and those who use it.
//!
//! Everything runs on one current-thread runtime under its paused clock, and whatever is left to chance comes from the seed, so
//! a run repeats exactly. A host is a group of tasks with a clock, a way to the store and mostly one to the other hosts. It dies as a process does:
//! first nothing goes out of it any more, then its tasks are dropped. Each run ends with a time without faults, in which
//! everything that was asked for has to come to its end; then the [`History`] is compared with what is stored.
//!
//! A [`Workload`] says what is simulated: an application, and what its clients do. Give it interfaces of your own to see how
//! they take crashes.

mod fleet;
mod life;
mod link;
mod moves;
mod nemesis;
mod network;
mod outside;
mod overdue;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;

use self::fleet::{LEASE, Shape, World};
use self::network::{Between, Network};
use super::dump::StoreDump;
use super::history::{End, History, Invariant, Violation};
use super::sim::{SeededRandom, SimClock};
use super::witness::Witness;
use crate::clock::{Clock, Timestamp, within};
use crate::host::{HostBuilder, StartError};
use crate::store::{AlarmRow, MemoryStore, ShardId, Store};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex};
use crate::transport::Transport;

pub use self::life::{Life, Site};
pub use self::outside::Outside;

/// The time at which the wall of a simulation begins.
const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);
/// A client that has not come to its end after this waits for an answer that never comes.
const PATIENCE: Duration = Duration::from_secs(1_800);
/// A retry that was set by a wall that was ahead waits for as long as that.
const LONGEST_DELAY: Duration = Duration::from_secs(2 * 3_600);

/// The subject of a simulation: an application, and what its clients do with it.
pub trait Workload: Send + Sync + 'static {
    /// The handles that the application has on its interfaces, on one host.
    type App: Clone + Send + Sync + 'static;

    /// Sets options of a host. The simulation has set its clock, its store and its random numbers, and short times.
    fn configure(&self, host: HostBuilder) -> HostBuilder {
        host
    }

    /// Registers the application's interfaces on a host.
    fn register(&self, host: &mut HostBuilder, life: &Life) -> Self::App;

    /// The application in a process that is none of the hosts, or `None` if it cannot be in one. Default: it cannot.
    ///
    /// # Errors
    /// As [`GuestBuilder::open`](crate::GuestBuilder::open); it is then asked again.
    fn outside(&self, _process: &Outside) -> impl Future<Output = Result<Option<Self::App>, StartError>> + Send {
        std::future::ready(Ok(None))
    }

    /// The life of one client, until [`Client::is_over`]. It writes down in the history what it asks for and is told.
    fn client(self: Arc<Self>, client: Client<Self::App>) -> impl Future<Output = ()> + Send;

    /// The end of a run, when nothing fails any more, so that all comes to its end.
    fn finish(self: Arc<Self>, client: Client<Self::App>) -> impl Future<Output = ()> + Send;

    /// Tells whether the handler of this alarm [holds](crate::Context::hold_alarm) it once it has run: then it may stay due for as long
    /// as it likes.
    fn rests(&self, _alarm: &AlarmRow) -> bool {
        false
    }

    /// The word of the store in the end about what the history speaks of.
    ///
    /// What is wrong in it by itself is written down as [violated](History::violated).
    fn end(&self, store: &StoreDump, history: &History) -> End;
}

/// The faults of a simulation, and their frequency.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Faults {
    /// The mean time between two events: a crash, a pause, a store that is down.
    pub(crate) between: Option<Duration>,
    /// The likelihood that a call of the store meets a fault, or a frame between hosts.
    pub(crate) calls: f64,
}

impl Faults {
    /// Nothing fails.
    pub const NONE: Faults = Faults { between: None, calls: 0.0 };
    /// Everything fails: something happens to some host every few seconds, and to one in ten calls of the store and frames
    /// between hosts.
    pub const ALL: Faults = Faults { between: Some(Duration::from_secs(12)), calls: 0.1 };
}

/// The number of times that things happened, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// Counts `name` so many times more.
    pub fn add(&mut self, name: &str, times: u64) {
        match self.0.get_mut(name) {
            Some(count) => *count += times,
            None => drop(self.0.insert(name.to_owned(), times)),
        }
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Counts) {
        for (name, times) in &other.0 {
            self.add(name, *times);
        }
    }

    /// The number of times it happened.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// All of them together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, count)| (name.as_str(), *count))
    }
}

/// The state that all parts of one simulation share.
#[derive(Debug)]
pub(crate) struct Common {
    /// The true time, by which the store and the clients live.
    pub(crate) clock: SimClock,
    pub(crate) history: History,
    pub(crate) random: SeededRandom,
    /// Operations that were acknowledged.
    pub(crate) operations: Mutex<Counts>,
    /// The failure.
    pub(crate) faults: Mutex<Counts>,
    pub(crate) is_over: AtomicBool,
    pub(crate) is_healed: AtomicBool,
}

impl Common {
    pub(crate) fn fault(&self, name: &str) {
        self.faults.lock().add(name, 1);
    }
}

/// A user of the fleet.
pub struct Client<A> {
    number: u64,
    random: Arc<SeededRandom>,
    world: Arc<World<A>>,
}

impl<A> Clone for Client<A> {
    fn clone(&self) -> Client<A> {
        Client { number: self.number, random: self.random.clone(), world: self.world.clone() }
    }
}

impl<A> fmt::Debug for Client<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("number", &self.number).finish_non_exhaustive()
    }
}

impl<A: Clone + Send + Sync + 'static> Client<A> {
    /// The client's number, from zero.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The client's own random numbers.
    #[must_use]
    pub fn random(&self) -> &SeededRandom {
        &self.random
    }

    /// The history in which it writes down what it asks for.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.world.common.history
    }

    /// Tells whether it is to come to its end.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.world.common.is_over.load(Ordering::SeqCst)
    }

    /// The true time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.world.common.clock.now()
    }

    /// Lets time pass.
    pub async fn sleep(&self, duration: Duration) {
        self.world.common.clock.sleep(duration).await;
    }

    /// Counts an operation that was acknowledged.
    pub fn count(&self, kind: &str) {
        self.world.common.operations.lock().add(kind, 1);
    }

    /// The shard of an instance.
    #[must_use]
    pub fn shard_of(&self, id: &str) -> Option<ShardId> {
        self.world.shard_of(id)
    }

    /// The host that should own the instance, once it does not stand still; `None` while it is dead.
    pub async fn owner_of(&self, id: &str) -> Option<Site<A>> {
        let site = self.world.owner_of(id)?;
        site.life().awake().await;
        Some(site)
    }

    /// The living host of this name, once it does not stand still; `None` while it is dead.
    pub async fn named(&self, name: &str) -> Option<Site<A>> {
        let site = self.world.named(name)?;
        site.life().awake().await;
        Some(site)
    }

    /// Any host, once it does not stand still, perhaps one that has been replaced and does not know; or a process that is no host.
    pub async fn any(&self) -> Option<Site<A>> {
        let mut sites = self.world.sites();
        sites.extend(self.world.outside.sites());
        let site = self.random.pick(&sites)?.clone();
        site.life().awake().await;
        Some(site)
    }

    /// All hosts that live.
    #[must_use]
    pub fn all(&self) -> Vec<Site<A>> {
        self.world.sites()
    }
}

/// The report of a simulation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Run {
    /// The seed and options it was made from.
    pub seed: u64,
    /// Promises that were not kept.
    pub violations: Vec<Violation>,
    /// Equal for equal runs.
    pub trace: u64,
    /// The time that its hosts lived, together.
    pub host_time: Duration,
    /// Operations that were acknowledged, by kind.
    pub operations: Counts,
    /// The faults that happened, by kind and place.
    pub faults: Counts,
    /// The number of hosts that crashed.
    pub crashes: u64,
    /// The number of commits that were carried out and their writer never heard.
    pub ambiguous_commits: u64,
    /// The number of shards that hosts handed over to others, and did not end themselves.
    pub handed_over: u64,
    /// The number of requests that hosts took for others.
    pub forwarded: u64,
}

type Wrap = Arc<dyn Fn(Arc<dyn Store>) -> Arc<dyn Store> + Send + Sync>;

/// A fleet to simulate.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use stable_interfaces::testing::{Client, End, Faults, History, Life, Outcome, Simulation, StoreDump, What, Workload};
/// use stable_interfaces::{Context, ContextError, Handle, HostBuilder, Interface, StableInterface};
///
/// struct Counter;
/// impl StableInterface for Counter {
///     const NAME: &'static str = "counter";
///     type Error = ContextError;
/// }
/// struct Add;
/// impl Handle<Add> for Counter {
///     type Reply = ();
///     async fn handle(&mut self, cx: &mut Context, _: Add) -> Result<(), ContextError> {
///         let n = cx.get::<i64>("n").await?.unwrap_or(0);
///         cx.put("n", &(n + 1))
///     }
/// }
///
/// struct Counting;
/// impl Workload for Counting {
///     type App = Interface<Counter>;
///     fn register(&self, host: &mut HostBuilder, _: &Life) -> Interface<Counter> {
///         host.interface(|_| Counter).register().expect("it is the only one")
///     }
///     async fn client(self: Arc<Self>, client: Client<Interface<Counter>>) {
///         while !client.is_over() {
///             client.sleep(client.random().up_to(Duration::from_secs(2))).await;
///             let Some(site) = client.owner_of("a").await else { continue };
///             let asked = client.history().ask(What::Effect("a".to_owned()));
///             let answer = site.app().request("a", Add).await;
///             asked.told(Outcome::of(&answer, |error| matches!(error, ContextError::Unknown)));
///         }
///     }
///     async fn finish(self: Arc<Self>, _: Client<Interface<Counter>>) {}
///     fn end(&self, store: &StoreDump, _: &History) -> End {
///         let mut end = End::default();
///         for shard in store.shards.values() {
///             for value in shard.storage.values() {
///                 end.effects.insert("a".to_owned(), serde_json::from_slice(value).expect("a number"));
///             }
///         }
///         end
///     }
/// }
///
/// let run = Simulation::new(1).length(Duration::from_secs(60)).faults(Faults::ALL).run(Counting);
/// assert!(run.violations.is_empty(), "seed {}: {:#?}", run.seed, run.violations);
/// ```
#[derive(Clone)]
pub struct Simulation {
    seed: u64,
    hosts: u64,
    shards: u32,
    clients: u64,
    length: Duration,
    faults: Faults,
    wrap: Option<Wrap>,
    between: Option<Between>,
    /// Set where that is not drawn.
    is_live: Option<bool>,
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation").field("seed", &self.seed).field("length", &self.length).finish_non_exhaustive()
    }
}

impl Simulation {
    /// Three hosts with 32 shards, six clients, ten minutes, nothing that fails.
    #[must_use]
    pub fn new(seed: u64) -> Simulation {
        let length = Duration::from_secs(600);
        Simulation {
            seed,
            hosts: 3,
            shards: 32,
            clients: 6,
            length,
            faults: Faults::NONE,
            wrap: None,
            between: None,
            is_live: None,
        }
    }

    /// The number of hosts there are at first.
    #[must_use]
    pub fn hosts(mut self, hosts: u64) -> Simulation {
        self.hosts = hosts.max(1);
        self
    }

    /// The number of shards.
    #[must_use]
    pub fn shards(mut self, shards: u32) -> Simulation {
        self.shards = shards;
        self
    }

    /// The number of clients.
    #[must_use]
    pub fn clients(mut self, clients: u64) -> Simulation {
        self.clients = clients;
        self
    }

    /// Sets the time for which things fail.
    #[must_use]
    pub fn length(mut self, length: Duration) -> Simulation {
        self.length = length;
        self
    }

    /// The faults.
    #[must_use]
    pub fn faults(mut self, faults: Faults) -> Simulation {
        self.faults = faults;
        self
    }

    /// Puts something between the hosts and the store: to show that a broken store is found out.
    #[must_use]
    pub fn behind(mut self, wrap: impl Fn(Arc<dyn Store>) -> Arc<dyn Store> + Send + Sync + 'static) -> Simulation {
        self.wrap = Some(Arc::new(wrap));
        self
    }

    /// Puts something between each host and its transport: to show that a broken one is found out. All hosts then have one.
    #[must_use]
    pub fn between(
        mut self,
        wrap: impl Fn(Arc<dyn Transport>) -> Arc<dyn Transport> + Send + Sync + 'static,
    ) -> Simulation {
        self.between = Some(Arc::new(wrap));
        self
    }

    /// Says whether hosts go by no list, and join and leave through the store. Default: in some runs they do.
    #[must_use]
    pub fn live(mut self, is_live: bool) -> Simulation {
        self.is_live = Some(is_live);
        self
    }

    /// Runs it, on this thread.
    ///
    /// # Panics
    /// If the runtime cannot be made.
    #[must_use]
    pub fn run<W: Workload>(&self, workload: W) -> Run {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without I/O can be made");
        runtime.block_on(self.simulate(Arc::new(workload)))
    }

    /// As [`run`](Self::run), twice, each time with a workload made anew. Two runs that differ are a violation of
    /// [`Invariant::Repeats`].
    ///
    /// # Panics
    /// If the runtime cannot be made.
    #[must_use]
    pub fn run_twice<W: Workload>(&self, workload: impl Fn() -> W) -> Run {
        let mut run = self.run(workload());
        let again = self.run(workload());
        if again != run {
            let what =
                format!("the traces of two runs of seed {} are {:x} and {:x}", self.seed, run.trace, again.trace);
            run.violations.push(Violation { invariant: Invariant::Repeats, what });
        }
        run
    }

    async fn simulate<W: Workload>(&self, workload: Arc<W>) -> Run {
        let clock = SimClock::new(START);
        let history = History::default();
        // Every second fleet has a store that is spread over machines, of which some may be away. In two of five a lease does not run
        // out, as that of the only host on an embedded store.
        let is_spread = self.wrap.is_none() && self.seed % 2 == 1;
        // In some the hosts go by no list, and join and leave through the store. Most can talk to each other.
        let is_live = self.is_live.unwrap_or(self.wrap.is_none() && matches!(self.seed % 5, 0 | 4));
        let lease = if !is_live && matches!(self.seed % 5, 1 | 3) { Duration::MAX } else { LEASE };
        let is_linked = self.between.is_some() || self.seed % 4 != 2;
        let (hosts, shards, calls) = (self.hosts, self.shards, self.faults.calls);
        let shape = Shape { hosts, shards, calls, is_spread, lease, is_live };
        let make = if is_spread { MemoryStore::spread } else { MemoryStore::with_clock };
        let memory = make(Arc::new(clock.clone()));
        let inner: Arc<dyn Store> = match &self.wrap {
            Some(wrap) => wrap(Arc::new(memory.clone())),
            None => Arc::new(memory.clone()),
        };
        let store: Arc<dyn Store> = Arc::new(Witness::new(inner, history.clone()).clock(Arc::new(clock.clone())));
        let common = Arc::new(Common {
            clock: clock.clone(),
            history: history.clone(),
            random: SeededRandom::new(self.seed),
            operations: Mutex::default(),
            faults: Mutex::default(),
            is_over: AtomicBool::new(false),
            is_healed: AtomicBool::new(false),
        });
        let network = is_linked.then(|| Network::new(common.clone(), calls, self.between.clone()));
        let world = World::new(common.clone(), store.clone(), network, &workload, shape);
        world.start_all();
        let mut outside = JoinSet::new();
        outside::start(&world, &workload, &mut outside);
        let mut watching = JoinSet::new();
        let watched = workload.clone();
        watching.spawn(overdue::watch(world.clone(), memory.clone(), move |row| watched.rests(row)));
        let mut clients = JoinSet::new();
        let client = |number: u64| {
            let random = Arc::new(SeededRandom::new(self.seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            Client { number, random, world: world.clone() }
        };
        for number in 0..self.clients {
            clients.spawn(workload.clone().client(client(number)));
        }
        let until = clock.elapsed() + self.length;
        match self.faults.between {
            Some(between) => nemesis::run(&world, between, until).await,
            None => clock.sleep(self.length).await,
        }
        common.is_over.store(true, Ordering::SeqCst);
        common.is_healed.store(true, Ordering::SeqCst);
        let recovered = world.heal().await;
        if !recovered {
            history.violated(Invariant::Handled, "the fleet does not recover although nothing fails");
        }
        let ended = within(&clock, PATIENCE, async {
            while let Some(ended) = clients.join_next().await {
                if let Err(error) = ended {
                    history.violated(Invariant::Handled, format!("a client ended with {error}"));
                }
            }
        });
        if ended.await.is_none() {
            let waiting = clients.len();
            history.violated(Invariant::Handled, format!("{waiting} clients are still waiting for an answer"));
            clients.shutdown().await;
        }
        let finish = workload.clone().finish(client(self.clients));
        if within(&clock, PATIENCE + LONGEST_DELAY, finish).await.is_none() {
            history.violated(Invariant::Handled, "the end of the workload waits for ever");
        }
        let is_idle = |dump: &StoreDump| dump.alarms().next().is_none() && dump.inbox().next().is_none();
        let waited_from = clock.elapsed();
        while !is_idle(&memory.dump()) && clock.elapsed() < waited_from + LONGEST_DELAY {
            clock.sleep(Duration::from_secs(2)).await;
        }
        let waited_from = clock.elapsed();
        while is_idle(&memory.dump()) && !world.is_idle() {
            if clock.elapsed() > waited_from + PATIENCE {
                history.violated(
                    Invariant::Handled,
                    "a host is not ready, or says that something is due, though nothing waits",
                );
                break;
            }
            clock.sleep(Duration::from_secs(2)).await;
        }
        watching.shutdown().await;
        outside.shutdown().await;
        let mut run = Run { seed: self.seed, ..Run::default() };
        let end = workload.end(&memory.dump(), &history);
        run.violations = history.check(&end);
        world.drain_all().await;
        world.tally(&mut run);
        drop(world);
        self.look_for_leftovers(&common, &mut run, store).await;
        run.trace = history.trace();
        run.operations = common.operations.lock().clone();
        run.faults.merge(&common.faults.lock());
        run.crashes = run.faults.get("crash");
        run
    }

    /// I9: when all is dropped, no task is left, and nobody holds the store.
    async fn look_for_leftovers(&self, common: &Common, run: &mut Run, store: Arc<dyn Store>) {
        let store = {
            let weak = Arc::downgrade(&store);
            drop(store);
            weak
        };
        common.clock.sleep(Duration::from_secs(60)).await;
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let invariant = Invariant::NothingLeft;
        if tasks > 0 {
            run.violations.push(Violation { invariant, what: format!("{tasks} tasks are left") });
        }
        if store.strong_count() > 0 {
            run.violations.push(Violation { invariant, what: "the store is still held".to_owned() });
        }
    }
}
