//! The host, which an application starts and drains: one process's part in the fleet.

mod drain;
mod driver;
mod guest;
mod handoff;
mod keeper;
pub(crate) mod lease;
mod marks;
mod rescue;

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::alarm::RetryPolicy;
use crate::clock::{Clock, Random, SystemClock, SystemRandom};
use crate::commit::committer::Committer;
use crate::error::WithCauses;
use crate::fleet::{Fleet, HASH_VERSION, check_host};
use crate::forward::door::HostDoor;
use crate::forward::question::answer_question;
use crate::forward::reach::Reach;
use crate::forward::serve::answer_message;
use crate::forward::table::{Errors, Forwards, Whole, Words};
use crate::forward::traces::Traces;
use crate::id::{InvalidId, is_interface_name};
use crate::instance::kind::{InterfaceCore, InterfaceOptions, WakeFn};
use crate::instance::stop::stop_job;
use crate::instance::{Handle, OnAlarm, OnConnect, OnMessage, StableInterface};
use crate::interface::{Interface, fire_alarm, forward_connections, take_message};
use crate::quiet::{self, Quiet};
use crate::shared::{Deferred, EndsWithRuntime, FOREVER, HostCore, HostOptions, Started};
use crate::store::client::Backoff;
use crate::store::deadlines::Deadlines;
use crate::store::{
    BoxError, ClaimKind, Claimed, Damaged, Epoch, Incarnation, Member, MemoryStore, ShardId, Store, StoreError,
};
use crate::sync::{AbortHandle, Arc, Mutex, Runtime, mpsc, spawn_on, watch};
use crate::tasks::Tasks;
use crate::transport::{Crossing, CrossingError, Introduction, Question, Running, TextError, Transport};

pub use self::guest::GuestBuilder;
pub use crate::shared::Health;

/// The host name and the shard count of [`Host::local`].
const LOCAL_HOST: &str = "local";
const LOCAL_SHARDS: u32 = 1_024;

/// The reason why a host did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The fleet has no host of this name. Nothing was claimed.
    #[error("the fleet has no host named {name:?}; it has {hosts}")]
    UnknownHost {
        /// The name given to the builder.
        name: String,
        /// The names the fleet has, as far as they fit.
        hosts: String,
    },
    /// `start` was called outside a tokio runtime.
    #[error("a host must be started from within a tokio runtime")]
    NoRuntime,
    /// An option has a value that cannot work; the text names it.
    #[error("{0}")]
    Option(&'static str),
    /// The clocks of this host and of the store are too far apart: alarms would fire at the wrong time. Set the clock.
    #[error(
        "this host's clock and the store's differ by {skew:?}, more than {limit:?}: set this machine's clock or, if it is a simulated one, \
         give it to the store as well (the store's own option: MemoryStore::with_clock, FjallStoreBuilder::clock)"
    )]
    ClockSkew {
        /// By how much they differ.
        skew: Duration,
        /// The most they may.
        limit: Duration,
    },
    /// The transport could not begin, for the reason that is its source: its port is taken, say.
    #[error("the transport to other hosts could not begin")]
    Transport(#[source] BoxError),
    /// An interface could not be registered with a process that is no host.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The store could not be reached within the start timeout, or refused this host for good.
    #[error("the store did not let this host start")]
    Store(#[source] StoreError),
}

/// The reason why an interface was not registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The interface's `NAME` is not `[a-z0-9_-]{1,64}`.
    #[error("{0:?} cannot be the name of an interface: it must be 1 to 64 of a-z, 0-9, _ and -")]
    InvalidName(&'static str),
    /// An interface of that `NAME` is registered already.
    #[error("an interface named {0:?} is registered already")]
    Duplicate(&'static str),
    /// The name under which a message is to cross is not `[a-z0-9_-]{1,64}`.
    #[error("{0:?} cannot be the name of a message: it must be 1 to 64 of a-z, 0-9, _ and -")]
    InvalidMessageName(&'static str),
    /// Two messages are to cross under this name, or one of them under two.
    #[error("a message named {0:?}, or its type, has a name already")]
    DuplicateMessage(&'static str),
}

/// A host that has not been started: its place in the fleet, its store, its interfaces and its limits.
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use stable_interfaces::{Fleet, Host, MemoryStore};
///
/// let fleet = Fleet::expand("host-{0..2}", 1_024)?; // The same on all hosts.
/// let host = Host::builder("host-1", fleet)
///     .store(MemoryStore::new())
///     .lease(Duration::from_secs(10))
///     .max_firing(500)
///     .start()
///     .await?;
/// assert_eq!(host.name(), "host-1");
/// # Ok(())
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Debug)]
pub struct HostBuilder {
    store: Option<Arc<dyn Store>>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    options: HostOptions,
    transport: Option<Arc<dyn Transport>>,
    /// Says whether it is the only host of its store.
    is_local: bool,
    /// The host that its interfaces point to, until it starts with what was set by then.
    core: Option<Arc<HostCore>>,
    beside: Beside,
}

/// The tasks that begin when a host has started.
#[derive(Default)]
struct Beside(Vec<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl std::fmt::Debug for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Beside").field(&self.0.len()).finish()
    }
}

/// A started host. Dropped, it stops at once and loses nothing; [`drain`](Self::drain) lets it finish first.
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # use stable_interfaces::{ContextError, StableInterface};
/// # struct Order;
/// # impl StableInterface for Order {
/// #     const NAME: &'static str = "order";
/// #     type Error = ContextError;
/// # }
/// use std::time::Duration;
/// use stable_interfaces::{Host, MemoryStore};
///
/// let mut host = Host::local(MemoryStore::new());
/// let orders = host.interface(|_id| Order).register()?;
/// let host = host.start().await?;
/// assert!(host.owns("order-17")?);
///
/// let drained = host.drain(Duration::from_secs(10)).await;
/// assert_eq!(drained.unfinished, 0);
/// # Ok(())
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Debug)]
pub struct Host {
    core: Arc<HostCore>,
    /// Once somebody has begun to drain it.
    drain: Mutex<Option<Drain>>,
}

/// A drain under way, or done.
#[derive(Debug)]
struct Drain {
    /// `None` until it is done.
    result: watch::Receiver<Option<Drained>>,
    task: AbortHandle,
}

/// The outcome of [`Host::drain`]: what was handed over, and the rest that it left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    /// Handlers and `on_stop`s that were still running at the deadline, and `on_stop`s that ran into their own
    /// [limit](InterfaceBuilder::stop_timeout) before it: they were cut off. Nothing uncommitted of the handlers happened.
    pub unfinished: usize,
    /// Instances that were still in memory at the deadline, those of the unfinished handlers among them.
    pub instances: usize,
    /// Instances with tasks that were neither done nor parked at half the deadline: those tasks were cancelled.
    pub tasks: usize,
    /// Tells whether the shards were released, so that their next owner need not wait for the lease to run out.
    pub released: bool,
    /// The number of shards that were handed over while this host still answered, by the host of the [live](Fleet::live) fleet that they went to.
    pub handed_over: BTreeMap<Arc<str>, usize>,
}

impl Drained {
    /// Of a host that had ended before, or ended meanwhile in another way.
    const NOTHING: Drained =
        Drained { unfinished: 0, instances: 0, tasks: 0, released: false, handed_over: BTreeMap::new() };
}

/// The reason why a host has ended by itself: what [`Host::run_until`] says when it returns before its signal.
///
/// The host is of no use any more, and neither is its process: let it end with a failure, as `main` does that passes this on
/// with `?`, so that its supervisor starts it anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Ended {
    /// As [`Health::Replaced`]. Two processes under one name replace each other for as long as both are started anew: let the
    /// deployment give each host of the [`Fleet`] to one process.
    #[error("another process was started under this host's name")]
    Replaced,
    /// As [`Health::StoreLost`]. Started anew, the host works with what its store still has.
    #[error("the store has lost what it had acknowledged")]
    StoreLost,
    /// As [`Health::Failed`]. Started anew, the host goes on with what is stored.
    #[error("a part of the host itself has panicked, or its runtime has ended")]
    Failed,
}

impl Host {
    /// A host of `fleet`, by its name there. Without a [`store`](HostBuilder::store) it routes and serves requests only: two
    /// hosts that disagree on the fleet may then both run an instance, and nothing survives the process.
    #[must_use]
    pub fn builder(name: impl AsRef<str>, fleet: Fleet) -> HostBuilder {
        HostBuilder {
            core: Some(Arc::new(HostCore::new(name.as_ref().into(), fleet))),
            store: None,
            transport: None,
            clock: Arc::new(SystemClock::default()),
            random: Arc::new(SystemRandom::default()),
            options: HostOptions::default(),
            is_local: false,
            beside: Beside::default(),
        }
    }

    /// The only host there is, on a store that only this process can open. Its lease does not run out.
    #[must_use]
    pub fn local(store: impl Store) -> HostBuilder {
        let fleet = Fleet::new([LOCAL_HOST], LOCAL_SHARDS).expect("one host and 1,024 shards make a fleet");
        let mut builder = Host::builder(LOCAL_HOST, fleet).store(store);
        (builder.options.lease, builder.is_local) = (FOREVER, true);
        builder
    }

    /// The name of this host in the fleet.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// The health of the host.
    #[must_use]
    pub fn health(&self) -> Health {
        self.core.health()
    }

    /// The name of the host that should own the instance `id`; in a live fleet, as far as this host knows.
    ///
    /// # Errors
    /// [`InvalidId`] if `id` cannot be an ID.
    pub fn owner_of(&self, id: &str) -> Result<Arc<str>, InvalidId> {
        let shard = self.core.fleet.shard_of(id)?;
        Ok(self.core.placed(shard).unwrap_or_else(|| self.core.name.clone()))
    }

    /// The hosts of the fleet that hold a lease, ascending by name, as the store told with the last claim or renewal; none without a store.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.core.view().members.list.clone()
    }

    /// Tells whether this host owns the instance `id` now: claimed, and neither lost nor released.
    ///
    /// # Errors
    /// [`InvalidId`] if `id` cannot be an ID.
    pub fn owns(&self, id: &str) -> Result<bool, InvalidId> {
        Ok(self.core.shards.epoch(self.core.fleet.shard_of(id)?).is_some())
    }

    /// Waits for `signal`, then [drains](Self::drain) within the drain timeout. Somebody else's call of [`drain`](Self::drain)
    /// ends it too.
    ///
    /// Run it beside a server that shuts down when the host is [`stopping`](Self::stopping), and that the host knows to be
    /// [`serving`](Self::serving): requests in flight are answered while the host drains, and nothing goes on serving for a host that is no more.
    ///
    /// # Errors
    /// [`Ended`], before the signal or while it drained, if the host ended by itself: let the process end with a failure, to be
    /// started anew.
    pub async fn run_until(&self, signal: impl Future) -> Result<Drained, Ended> {
        tokio::select! { biased;
            _ = signal => {}
            () = self.core.wait_stopped() => {}
        }
        let drained = self.drain(self.core.options.drain_timeout).await;
        match self.core.health() {
            Health::Replaced => Err(Ended::Replaced),
            Health::StoreLost => Err(Ended::StoreLost),
            Health::Failed => Err(Ended::Failed),
            _ => Ok(drained),
        }
    }

    /// Completes when this host begins to drain, or has ended for whatever reason: replaced, without its store's data, dropped.
    /// At once, if that has happened.
    ///
    /// ```no_run
    /// # struct Server;
    /// # impl Server {
    /// #     fn with_graceful_shutdown(self, _: impl Future<Output = ()> + Send + 'static) -> std::future::Ready<()> { std::future::ready(()) }
    /// # }
    /// # type Asked = std::io::Result<()>;
    /// # async fn example(host: stable_interfaces::Host, server: Server, ctrl_c: impl Future<Output = Asked>) -> Result<(), Box<dyn std::error::Error>> {
    /// let server = server.with_graceful_shutdown(host.stopping()); // of axum, say
    /// let (_served, ended) = tokio::join!(host.serving(server), host.run_until(ctrl_c)); // `tokio::signal::ctrl_c()`, say
    /// ended?; // A host that ended by itself: the process fails, and is started anew.
    /// # Ok(())
    /// # }
    /// ```
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        let core = self.core.clone();
        async move { core.wait_for(Health::Draining).await }
    }

    /// Runs a server beside this host: what it returns is what the server does. A [drain](Self::drain) that has handed over everything waits for
    /// the server's end, within its deadline, and sends on what still comes through it; so no request is refused that the server had taken.
    ///
    /// The server is to end by itself when the host is [`stopping`](Self::stopping). Where no other host is there to answer, the drain does not
    /// wait.
    pub fn serving<S: IntoFuture>(&self, server: S) -> impl Future<Output = S::Output> + use<S> {
        let errand = self.core.begin_errand();
        let server = server.into_future();
        async move {
            let _errand = errand;
            server.await
        }
    }

    /// Tells whether this host should be sent work: it runs, its lease holds, each of the shards that the fleet gives to it is its own, or
    /// another host's that has not let go of it yet, and none of its alarms or messages has been due for longer than `max_overdue`.
    ///
    /// So a deployment that restarts one host after the other, and waits for each to be ready, comes to its end also where the list of hosts
    /// grows: what a host is to have and another one holds is refused until then with the name of the one that does.
    #[must_use]
    pub fn is_ready(&self, max_overdue: Duration) -> bool {
        let core = &self.core;
        core.health() == Health::Running
            && core.lease_holds()
            && lease::assigned(core)
                .iter()
                .all(|shard| core.shards.epoch(*shard).is_some() || core.is_held_elsewhere(*shard))
            && self.overdue() <= max_overdue
    }

    /// For how long the oldest alarm or message that waits has been due; zero if none is.
    #[must_use]
    pub fn overdue(&self) -> Duration {
        self.core.shards.overdue()
    }

    /// The shards this host owns now, ascending.
    #[must_use]
    pub fn shards(&self) -> Vec<ShardId> {
        self.core.shards.owned().map(|(shard, _)| shard).collect()
    }

    /// The number of open connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.core.connections()
    }

    /// Stored rows that could not be used and were left alone, as far as this host has met any since it started; at most 1,000.
    #[must_use]
    pub fn damaged(&self) -> Vec<Damaged> {
        self.core.shards.damaged.lock().clone()
    }

    /// Ends this host's part in good order: alarms stop firing, new work from outside is refused, handlers that run are waited
    /// for (and what they request is served), tasks of instances that are not [parked](crate::InstanceRef::park) are waited for, for
    /// half of `deadline` at most (and what they [take turns](crate::InstanceRef::turn) for is served), instances are stopped, everything is committed, the shards are released. After
    /// `deadline` what still runs is cut off.
    ///
    /// In a [live](Fleet::live) fleet with other hosts that happens shard by shard, [some](HostBuilder::handoff_batch) at a time: those that are
    /// left are served as ever, alarms too, and each is away for no longer than its next owner needs to take it up. Nothing is refused:
    /// with a [transport](HostBuilder::transport), what comes for a shard that is gone is sent on, until what has come is
    /// answered and whatever is [`serving`](Self::serving) has ended.
    ///
    /// A drain goes on by itself: dropped, this future takes nothing back. Whoever asks again waits for the same drain, under the
    /// deadline that the drain began with, and gets the same result. A handler that blocks its thread cannot be cut off; it counts as
    /// unfinished.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.core.begin_to_drain();
        let result = {
            let mut drain = self.drain.lock();
            if drain.is_none() {
                *drain = self.begin_drain(deadline);
            }
            drain.as_ref().map(|drain| drain.result.clone())
        };
        let Some(mut result) = result else { return Drained::NOTHING };
        let drained = result.wait_for(Option::is_some).await.ok().and_then(|drained| drained.clone());
        drained.unwrap_or(Drained::NOTHING)
    }

    /// Begins to drain, unless there is nothing left to drain.
    fn begin_drain(&self, deadline: Duration) -> Option<Drain> {
        let core = self.core.clone();
        if core.health() > Health::Draining {
            return None;
        }
        let runtime = core.started()?.turns.runtime().clone();
        let (send, result) = watch::channel(None);
        let task = spawn_on(&runtime, async move {
            match quiet::run(Box::pin(drain::drain(&core, deadline))).await {
                Ok(drained) => drop(send.send(Some(drained))),
                Err(panic) => core.fail("the task that drains", &panic),
            }
        });
        Some(Drain { result, task })
    }

    /// The shards that are to be this host's, ascending.
    #[cfg(feature = "testing")]
    pub(crate) fn assigned(&self) -> Vec<ShardId> {
        lease::assigned(&self.core)
    }

    /// The stretch of this shard's way to another host; `None` if this host does not own it.
    #[cfg(feature = "testing")]
    pub(crate) fn handoff(&self, shard: ShardId) -> Option<crate::shards::handoff::Handoff> {
        self.core.shards.epoch(shard).map(|_| self.core.shards.handoff(shard))
    }

    /// Tells whether a task of an instance is not parked, and whether a handler runs.
    #[cfg(feature = "testing")]
    pub(crate) fn is_busy(&self) -> (bool, bool) {
        let interfaces = self.core.interfaces.lock();
        let is_any = |is_so: fn(&Arc<dyn crate::shared::AnyInterface>) -> bool| interfaces.iter().any(is_so);
        (is_any(|interface| !interface.with_busy_tasks(None).is_empty()), is_any(|interface| interface.busy() > 0))
    }

    /// Ends the host as a crash would: nothing is finished, told or released.
    #[cfg(feature = "testing")]
    pub fn crash(self) {
        self.abandon();
    }

    fn abandon(&self) {
        if let Some(drain) = &*self.drain.lock() {
            drain.task.abort();
        }
        self.core.stop(Health::Stopped);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.core.health() == Health::Running {
            tracing::warn!(host = %self.core.name, "a host was dropped without being drained; what it left begins again with its next owner");
        }
        self.abandon();
    }
}

impl HostBuilder {
    /// Sets the store of alarms and storage.
    #[must_use]
    pub fn store(self, store: impl Store) -> HostBuilder {
        self.shared_store(Arc::new(store))
    }

    /// As [`store`](Self::store), for a store that is shared with other hosts of this process.
    #[must_use]
    pub fn shared_store(mut self, store: Arc<dyn Store>) -> HostBuilder {
        self.store = Some(store);
        self
    }

    /// Sets the way to the other hosts of the fleet: requests that another host is to answer are sent there, and theirs are answered here.
    /// Default: none, and such requests are refused with [`RequestError::NotOwner`](crate::RequestError::NotOwner).
    ///
    /// Only messages cross that were registered with [`InterfaceBuilder::forward`] under the same name on both hosts.
    #[must_use]
    pub fn transport(mut self, transport: impl Transport) -> HostBuilder {
        self.transport = Some(Arc::new(transport));
        self
    }

    /// As [`transport`](Self::transport), for one that something else has too.
    #[cfg(feature = "testing")]
    pub(crate) fn shared_transport(mut self, transport: Arc<dyn Transport>) -> HostBuilder {
        self.transport = Some(transport);
        self
    }

    /// Sets the clock. Default: [`SystemClock`]. With [`Host::local`], a [`MemoryStore`](crate::MemoryStore) that was given none follows it
    /// too; any other store has an option of its own for the same clock.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> HostBuilder {
        self.clock = clock;
        self
    }

    /// Sets the source of random numbers. Default: [`SystemRandom`].
    #[must_use]
    pub fn random(mut self, random: Arc<dyn Random>) -> HostBuilder {
        self.random = random;
        self
    }

    /// Sets the time that this host's shards stay its own after its last renewal: others take over no sooner when it dies. It renews three
    /// times in that time. At least 100 ms; 100 years or more are for ever. Default: 15 s.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> HostBuilder {
        self.options.lease = lease;
        self
    }

    /// Limits the time for which [`start`](Self::start) tries to reach the store. Default: 30 s.
    #[must_use]
    pub fn start_timeout(mut self, timeout: Duration) -> HostBuilder {
        self.options.start_timeout = timeout;
        self
    }

    /// Limits the time that [`run_until`](Host::run_until) lets handlers finish. Default: 30 s.
    #[must_use]
    pub fn drain_timeout(mut self, timeout: Duration) -> HostBuilder {
        self.options.drain_timeout = timeout;
        self
    }

    /// Sets the text by which the other hosts of the fleet know the program of this one: a version, the hash of a commit. At most 255 bytes, and
    /// no NUL. Default: none.
    #[must_use]
    pub fn build(mut self, build: impl AsRef<str>) -> HostBuilder {
        self.options.build = build.as_ref().into();
        self
    }

    /// Sets how a trace goes on at another host. `current` tells the context of what runs where it is called, as `traceparent` has it (W3C Trace Context); at
    /// most 255 bytes of it cross. A request that is sent to another host carries it there, where its handler runs in a span `forwarded` with
    /// the field `traceparent`; `go_on` is called with that span and the context, to have the span continue the trace. Default: nothing crosses, and
    /// what came from others is the field alone.
    ///
    /// ```
    /// # use stable_interfaces::{Fleet, Host};
    /// # mod opentelemetry { pub fn current() -> Option<String> { None } pub fn set_parent(_: &tracing::Span, _: &str) {} }
    /// // With `tracing-opentelemetry`: inject the context of `Span::current()`, and extract the one that `OpenTelemetrySpanExt::set_parent` is given.
    /// let host = Host::builder("host-0", Fleet::new(["host-0"], 64).unwrap())
    ///     .traces(opentelemetry::current, |span, traceparent| opentelemetry::set_parent(span, traceparent));
    /// ```
    #[must_use]
    pub fn traces(
        mut self,
        current: impl Fn() -> Option<String> + Send + Sync + 'static,
        go_on: impl Fn(&tracing::Span, &str) + Send + Sync + 'static,
    ) -> HostBuilder {
        self.options.traces = Some(Arc::new(Traces::new(current, go_on)));
        self
    }

    /// Sets the time for which the first host of a [live](Fleet::live) fleet waits for others before it takes all shards; so does one that
    /// finds only others that began within that time. At most the start timeout. Default: 500 ms.
    #[must_use]
    pub fn gather(mut self, wait: Duration) -> HostBuilder {
        self.options.gather = wait;
        self
    }

    /// Sets the time that another host of a [live](Fleet::live) fleet must have been up before this one hands shards over to it, so that one
    /// that comes and goes moves nothing. Default: a [`lease`](Self::lease).
    #[must_use]
    pub fn settle(mut self, time: Duration) -> HostBuilder {
        self.options.settle = Some(time);
        self
    }

    /// The most shards that a host of a [live](Fleet::live) fleet hands over at once. At least 1. Default: 32.
    #[must_use]
    pub fn handoff_batch(mut self, shards: usize) -> HostBuilder {
        self.options.handoff_batch = shards;
        self
    }

    /// Limits the time that a host of a [live](Fleet::live) fleet lets tasks of instances come to their end before it hands over their shard.
    /// Default: 30 s.
    #[must_use]
    pub fn handoff_timeout(mut self, timeout: Duration) -> HostBuilder {
        self.options.handoff_timeout = timeout;
        self
    }

    /// Sets the time after which one call of the store counts as unanswered. At least 1 ms. Default: 5 s.
    #[must_use]
    pub fn store_timeout(mut self, timeout: Duration) -> HostBuilder {
        self.options.commit.store_timeout = timeout;
        self
    }

    /// Sets the time after which a sender is told that its commit did not happen, or that its outcome is unknown. Default: 10 s.
    #[must_use]
    pub fn commit_timeout(mut self, timeout: Duration) -> HostBuilder {
        self.options.commit.commit_timeout = timeout;
        self
    }

    /// Sets the number of group commits that may be under way at once; each has a fixed part of the shards, so more than there are shards are no
    /// more, nor more than the store can work on at once ([`Claimed::overlap`](crate::store::Claimed::overlap): one on Fjall, whose writes share a journal). At least 1. Default: 2.
    #[must_use]
    pub fn lanes(mut self, lanes: u16) -> HostBuilder {
        self.options.commit.lanes = lanes;
        self
    }

    /// The most commits waiting to be written in a lane; past it, requests are refused as overloaded. At least 1. Default: 16,384.
    #[must_use]
    pub fn max_queued_commits(mut self, commits: usize) -> HostBuilder {
        self.options.commit.max_queued = commits;
        self
    }

    /// The most bytes of commits waiting to be written in a lane, keys and values together; past it, requests are refused as
    /// overloaded. A handler that has begun may still add its own. At least 1. Default: 67,108,864 (64 MiB).
    #[must_use]
    pub fn max_queued_bytes(mut self, bytes: usize) -> HostBuilder {
        self.options.commit.max_queued_bytes = bytes;
        self
    }

    /// The most alarms and messages being handled or committed at once. At least 1. Default: 1,024.
    #[must_use]
    pub fn max_firing(mut self, alarms: usize) -> HostBuilder {
        self.options.limits.max_firing = alarms;
        self
    }

    /// Limits the number of times that alarms of one instance fire within a second; past it they are slowed down to that: what stops an alarm
    /// that sets itself again and again at once. At least 1. Default: 1,000.
    #[must_use]
    pub fn max_fires_per_second(mut self, fires: u32) -> HostBuilder {
        self.options.limits.max_fires_per_second = fires;
        self
    }

    /// In how many processes that died an alarm or message may have been handled before it becomes a dead letter. At least 1.
    /// Default: 3.
    #[must_use]
    pub fn max_crashes(mut self, crashes: u32) -> HostBuilder {
        self.options.limits.max_crashes = crashes;
        self
    }

    /// The most open connections, over all interfaces; with 0 none is let in. Default: 100,000.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> HostBuilder {
        self.options.max_connections = connections;
        self
    }

    /// By how much this host's wall clock and the store's may differ when it starts. Default: 60 s.
    #[must_use]
    pub fn max_clock_skew(mut self, skew: Duration) -> HostBuilder {
        self.options.max_clock_skew = skew;
        self
    }

    /// Limits the number of alarms that all windows of this host together hold in memory, roughly; at least 16 per shard. Default: 65,536.
    #[must_use]
    pub fn alarm_window(mut self, alarms: usize) -> HostBuilder {
        self.options.window = alarms;
        self
    }

    /// About how many bytes of alarms this host holds in memory, with what they carry: half of it of alarms that wait, half of alarms and
    /// messages being handled. An alarm for which there is no room is loaded when it is due. Where there are less than a few alarms' worth,
    /// they are loaded one by one. Default: 64 MiB.
    #[must_use]
    pub fn alarm_window_bytes(mut self, bytes: usize) -> HostBuilder {
        self.options.limits.window_bytes = bytes;
        self
    }

    /// Registers an interface whose instances are built by `factory` from their ID. Finish with
    /// [`register`](InterfaceBuilder::register). The host's own options may be set before or after.
    pub fn interface<I: StableInterface>(
        &mut self,
        factory: impl Fn(&str) -> I + Send + Sync + 'static,
    ) -> InterfaceBuilder<'_, I> {
        InterfaceBuilder {
            host: self,
            factory: Box::new(factory),
            options: InterfaceOptions::default(),
            fire: None,
            take: None,
            forwards: Forwards::default(),
        }
    }

    /// Runs `task` beside the host, from the moment at which it has started until it ends: then the task is dropped where it waits. A host
    /// whose task panics ends.
    ///
    /// For what has to be done once interfaces can be asked. A drain does not wait for it.
    pub fn beside(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.beside.0.push(Box::pin(task));
    }

    fn core(&self) -> Arc<HostCore> {
        self.core.clone().expect("only starting takes the host out of its builder")
    }

    /// Claims this host's shards and begins to work. Tries again while the store cannot be reached, up to the start timeout.
    ///
    /// # Errors
    /// [`StartError`] says what to change. Nothing stays claimed by a host that did not start, beyond its lease; one whose
    /// [clock](Self::max_clock_skew) is off leaves at once.
    pub async fn start(mut self) -> Result<Host, StartError> {
        let core = self.core();
        let runtime = Runtime::try_current().map_err(|_| StartError::NoRuntime)?;
        let links = self.open_transport(&core).await.map_err(StartError::Transport)?;
        // From here on, an early return stops what has begun.
        self.core = None;
        let options = self.options.clone().within_reach(core.fleet.shards());
        if let Some(store) = self.store.as_ref().filter(|_| self.is_local)
            && let Some(memory) = (&**store as &dyn Any).downcast_ref::<MemoryStore>()
        {
            memory.follow(&self.clock);
        }
        core.set(self.store.take(), self.clock.clone(), self.random.clone(), options);
        let host = Host { core: core.clone(), drain: Mutex::new(None) };
        if core.fleet.is_live() {
            if core.store().is_none() {
                return Err(StartError::Option(
                    "a live fleet needs a store: its hosts are those that hold a lease there",
                ));
            }
            if check_host(&core.name).is_err() {
                return Err(StartError::Option("the name of a host must have 1 to 255 bytes and no control character"));
            }
        } else if core.fleet.index_of(&core.name).is_none() {
            let hosts: Vec<_> = core.fleet.hosts().iter().take(8).map(|host| &**host).collect();
            let more = if core.fleet.hosts().len() > hosts.len() { ", .." } else { "" };
            return Err(StartError::UnknownHost { name: core.name.to_string(), hosts: hosts.join(", ") + more });
        }
        core.options.check().map_err(StartError::Option)?;
        for interface in core.interfaces.lock().iter() {
            interface.check_options().map_err(StartError::Option)?;
        }
        let incarnation = Incarnation(core.random.next_u64() >> 1 | 1);
        let committer = core.store().map(|store| {
            let (shards, clock, random) = (core.shards.clone(), core.clock.share(), core.random.share());
            Arc::new(Committer::new(incarnation, store.clone(), shards, clock, random, core.options.commit.clone()))
        });
        let deferred_work = begin_tasks(&core, runtime, committer.clone(), incarnation);
        let Some(started) = core.started() else { return Err(StartError::NoRuntime) };
        if let Some(links) = links {
            started.system.spawn(links);
        }
        match (core.timely_store(), committer) {
            (Some(store), Some(committer)) => {
                if core.fleet.is_live() {
                    join(&core, &store, incarnation).await?;
                }
                let Claimed { sequence, overlap, .. } = claim_all(&core, &store, incarnation, lease::assigned).await?;
                for lane in committer.open(overlap) {
                    started.system.spawn(committer.clone().run(lane, sequence));
                }
                core.set_health(Health::Running);
                started.system.spawn(driver::load(core.clone(), sequence));
                started.system.spawn(driver::run(core.clone()));
                started.system.spawn(driver::watch(core.clone(), store.clone(), incarnation));
                if core.fleet.is_live() {
                    started.system.spawn(handoff::run(core.clone(), store.clone(), incarnation));
                }
                let owned = core.shards.owned().count();
                metrics::gauge!(crate::metrics::SHARDS_OWNED).set(u32::try_from(owned).unwrap_or(u32::MAX));
                let waiting_for = lease::assigned(&core).len().saturating_sub(owned);
                tracing::info!(host = %core.name, shards = owned, waiting_for, store = ?core.store(), "started");
                keeper::start(&core, Some((store, incarnation)));
            }
            _ => {
                let assigned = lease::assigned(&core);
                for shard in &assigned {
                    core.shards.own(*shard, Epoch(1), true, 0, 0);
                }
                // Set by nobody else.
                drop(core.store_name.set(None));
                core.set_health(Health::Running);
                tracing::info!(host = %core.name, shards = assigned.len(), "started without a store");
                keeper::start(&core, None);
            }
        }
        started.system.spawn(run_deferred(deferred_work));
        started.system.spawn(sweep(core.clone()));
        for task in std::mem::take(&mut self.beside.0) {
            started.system.spawn(task);
        }
        let ends = EndsWithRuntime(core.clone());
        started.system.spawn(async move {
            let _ends = ends;
            std::future::pending::<()>().await;
        });
        Ok(host)
    }
}

impl HostBuilder {
    /// Opens the transport, if there is one: from here on others are answered, at first that this host has not started.
    async fn open_transport(&mut self, core: &Arc<HostCore>) -> Result<Option<Running>, BoxError> {
        let Some(transport) = self.transport.take() else { return Ok(None) };
        let (host, shards, clock) = (core.name.clone(), core.fleet.shards(), self.clock.clone());
        let own = Introduction {
            host: host.clone(),
            shards,
            hash_version: HASH_VERSION,
            store: core.store_name.clone(),
            clock,
        };
        let interfaces = core.interfaces.lock().clone();
        let door = HostDoor::new(host, self.options.build.clone(), &interfaces);
        let links = transport.open(own, Some(Arc::new(door))).await?;
        self.options.address = transport.address();
        core.set_reach(Reach::new(transport));
        Ok(Some(links))
    }
}

impl Drop for HostBuilder {
    /// Interfaces and their host point at each other: a host that is not started after all lets go of them here.
    fn drop(&mut self) {
        if let Some(core) = self.core.take() {
            core.stop(Health::Stopped);
        }
    }
}

/// Becomes a member of a live fleet that owns nothing yet, and learns who else is one; where all are new, it waits a moment for others.
async fn join(core: &HostCore, store: &Deadlines, incarnation: Incarnation) -> Result<(), StartError> {
    let nothing = |_: &HostCore| Vec::new();
    claim_all(core, store, incarnation, nothing).await?;
    let gather = core.options.gather.min(core.options.start_timeout);
    let is_new = |member: &Member| member.name == core.name || member.up < gather;
    if !gather.is_zero() && core.view().members.list.iter().all(is_new) {
        core.clock.sleep(gather).await;
        claim_all(core, store, incarnation, nothing).await?;
    }
    Ok(())
}

/// A claim at a start, repeated while the store cannot be reached.
async fn claim_all(
    core: &HostCore,
    store: &Deadlines,
    incarnation: Incarnation,
    wanted: fn(&HostCore) -> Vec<ShardId>,
) -> Result<Claimed, StartError> {
    let mut backoff = Backoff::new(&*core.clock, &*core.random);
    loop {
        match lease::claim(core, store, incarnation, wanted(core), ClaimKind::Start).await {
            Ok(claimed) => {
                let now = core.clock.now();
                let (skew, limit) = (now.since(claimed.now).max(claimed.now.since(now)), core.options.max_clock_skew);
                if skew <= limit {
                    return Ok(claimed);
                }
                // Started again and again, it would be a member for ever, and what is placed on it would have no owner.
                let owned: Vec<_> = core.shards.owned().map(|(shard, epoch)| (shard, Some(epoch))).collect();
                drain::leave(core, store, incarnation, &owned).await;
                return Err(StartError::ClockSkew { skew, limit });
            }
            Err(error) if error.is_retryable() && !backoff.over(core.options.start_timeout) => {
                if backoff.is_first() {
                    tracing::warn!(error = %WithCauses(&error), "the store cannot be reached yet; trying again");
                }
                backoff.pause().await;
            }
            Err(error) => return Err(StartError::Store(error)),
        }
    }
}

/// Lets the host run tasks on this runtime, and ends it if one of them panics; returns the work that will be deferred, for [`run_deferred`].
fn begin_tasks(
    core: &Arc<HostCore>,
    runtime: Runtime,
    committer: Option<Arc<Committer>>,
    incarnation: Incarnation,
) -> mpsc::UnboundedReceiver<Deferred> {
    let (deferred, deferred_work) = mpsc::unbounded_channel();
    let failing = |what: &'static str| {
        let core = Arc::downgrade(core);
        move |panic: &str| {
            if let Some(core) = core.upgrade() {
                core.fail(what, panic);
            }
        }
    };
    core.set_started(Started {
        turns: Tasks::new(runtime.clone(), failing("a task that runs handlers")),
        instance_tasks: Tasks::new(runtime.clone(), failing("a task around one of an instance")),
        system: Tasks::new(runtime, failing("a task of its own")),
        deferred,
        committer,
        incarnation,
    });
    deferred_work
}

/// Runs what others have deferred. Never ends by itself.
async fn run_deferred(mut work: mpsc::UnboundedReceiver<Deferred>) {
    while let Some(work) = work.recv().await {
        work();
        tokio::task::consume_budget().await;
    }
}

/// Passivates idle instances. Never ends by itself.
async fn sweep(core: Arc<HostCore>) {
    let interfaces = core.interfaces.lock().clone();
    let mut due: Vec<_> = interfaces.into_iter().map(|interface| (Duration::ZERO, interface)).collect();
    loop {
        let now = core.clock.elapsed();
        for (at, interface) in &mut due {
            if *at <= now {
                *at = now.saturating_add(interface.clone().sweep());
            }
        }
        let Some(next) = due.iter().map(|(at, _)| *at).min() else { return };
        core.clock.sleep(next.saturating_sub(now).max(Duration::from_millis(1))).await;
    }
}

/// An interface on its way into a host.
#[must_use = "an interface is registered by `register()`"]
pub struct InterfaceBuilder<'a, I: StableInterface> {
    host: &'a mut HostBuilder,
    factory: Box<dyn Fn(&str) -> I + Send + Sync>,
    options: InterfaceOptions,
    fire: Option<WakeFn<I>>,
    take: Option<WakeFn<I>>,
    forwards: Forwards<I>,
}

impl<I: StableInterface> std::fmt::Debug for InterfaceBuilder<'_, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InterfaceBuilder")
            .field("name", &I::NAME)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<I: StableInterface> InterfaceBuilder<'_, I> {
    /// Lets the instances handle alarms.
    pub fn with_alarms(mut self) -> Self
    where
        I: OnAlarm,
    {
        self.fire = Some(fire_alarm::<I>);
        self
    }

    /// Lets the instances take messages from their inbox.
    pub fn with_inbox(mut self) -> Self
    where
        I: OnMessage,
    {
        self.take = Some(take_message::<I>);
        self
    }

    /// Lets messages of type `M` cross from host to host: requests with them are answered on every host that has a
    /// [`transport`](HostBuilder::transport), by whichever owns the instance.
    ///
    /// `message` is their name between hosts, `[a-z0-9_-]{1,64}`, unique within the interface: it must never change, and the type's own name
    /// may. They cross as JSON, so that a field with a default can be added while older programs run. An error of the interface crosses as
    /// what it is, and all others of [`RequestError`](crate::RequestError) as well.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use stable_interfaces::{Context, ContextError, Handle, Host, MemoryStore, StableInterface};
    /// # struct Order;
    /// # impl StableInterface for Order {
    /// #     const NAME: &'static str = "order";
    /// #     type Error = ContextError;
    /// # }
    /// #[derive(Serialize, Deserialize)]
    /// struct Place { cents: u64 }
    ///
    /// impl Handle<Place> for Order {
    ///     type Reply = u64;
    ///     async fn handle(&mut self, cx: &mut Context, Place { cents }: Place) -> Result<u64, ContextError> {
    ///         cx.put("cents", &cents)?;
    ///         Ok(cents)
    ///     }
    /// }
    ///
    /// # let mut host = Host::local(MemoryStore::new());
    /// let orders = host.interface(|_id| Order).forward::<Place>("place").register()?;
    /// # Ok::<(), stable_interfaces::RegisterError>(())
    /// ```
    pub fn forward<M>(mut self, message: &'static str) -> Self
    where
        I: Handle<M>,
        M: Crossing,
        I::Reply: Crossing,
        I::Error: CrossingError,
    {
        forward_message::<I, M, Whole>(&mut self.forwards, message);
        self
    }

    /// As [`forward`](Self::forward), where the interface's own error cannot be written and read again, as an `anyhow::Error` cannot: its words
    /// and those of its causes cross, as a
    /// [`RemoteError`](crate::transport::RemoteError) that it is made from.
    pub fn forward_with_text_errors<M>(mut self, message: &'static str) -> Self
    where
        I: Handle<M>,
        M: Crossing,
        I::Reply: Crossing,
        I::Error: TextError,
    {
        forward_message::<I, M, Words>(&mut self.forwards, message);
        self
    }

    /// Answers a [`Question`] of other hosts of the fleet, by a function beside all instances: it takes no turn of any, holds up no handoff, and
    /// may take its time. It should end soon after [`Interface::stopping`], for a drain waits for what other hosts are waiting for.
    ///
    /// For what a host knows and its store does not, or not yet.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use stable_interfaces::{ContextError, Host, Interface, MemoryStore, StableInterface};
    /// # use stable_interfaces::transport::Question;
    /// # struct Order;
    /// # impl StableInterface for Order {
    /// #     const NAME: &'static str = "order";
    /// #     type Error = ContextError;
    /// # }
    /// #[derive(Serialize, Deserialize)]
    /// struct HowMany;
    ///
    /// impl Question for HowMany {
    ///     const NAME: &'static str = "how-many";
    ///     type Answer = usize;
    /// }
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let mut host = Host::local(MemoryStore::new());
    /// let orders = host.interface(|_id| Order);
    /// let orders = orders.answer(async |orders: Interface<Order>, _: HowMany| orders.running()).register()?;
    /// let host = host.start().await?;
    /// assert_eq!(orders.ask_host(host.name(), &HowMany).await?, 0);
    /// # Ok(())
    /// # }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
    /// ```
    pub fn answer<Q, F, Fut>(mut self, answer: F) -> Self
    where
        Q: Question,
        F: Fn(Interface<I>, Q) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Q::Answer> + Send + 'static,
    {
        let answer = answer_question(move |core, question| answer(Interface::new(core), question));
        self.forwards.add_question(Q::NAME, answer);
        self
    }

    /// Lets connections cross from host to host: clients [connect](Interface::connect) on every host that has a
    /// [`transport`](HostBuilder::transport), to instances on whichever.
    ///
    /// What a client says of itself and the messages of both sides cross as JSON. Whichever way a connection ends, both sides are told why: with
    /// [`Closed::Unreachable`](crate::Closed::Unreachable) where the link between the two hosts is lost, with
    /// [`Closed::Moved`](crate::Closed::Moved) where the instance goes to another host.
    pub fn forward_connections(mut self) -> Self
    where
        I: OnConnect,
        I::Meta: Crossing,
        I::Incoming: Crossing,
        I::Outgoing: Crossing,
        I::Error: CrossingError,
    {
        forward_connections::<I, Whole>(&mut self.forwards);
        self
    }

    /// As [`forward_connections`](Self::forward_connections), for an interface whose own error cannot be written and read again, as with
    /// [`forward_with_text_errors`](Self::forward_with_text_errors).
    pub fn forward_connections_with_text_errors(mut self) -> Self
    where
        I: OnConnect,
        I::Meta: Crossing,
        I::Incoming: Crossing,
        I::Outgoing: Crossing,
        I::Error: TextError,
    {
        forward_connections::<I, Words>(&mut self.forwards);
        self
    }

    /// Sets the time without a message after which an instance leaves memory, counted to within a quarter more. An instance
    /// with connections, or with a task that is not parked, stays. Default: 10 min.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.options.idle_timeout = timeout;
        self
    }

    /// Limits the time that a handler may run before it counts as failed and its instance is reset, counted from when it begins. At least 1 ms.
    /// Default: 30 s.
    ///
    /// A request waits in its instance's queue for as long at most, and then for its handler as long again. One whose turn has
    /// not come by then is refused with [`RequestError::TimedOut`](crate::RequestError::TimedOut): it has not begun and never
    /// will, and nothing is reset. What a handler asks of another instance waits for no longer than what is left of that
    /// handler's time, less a tenth; if the other's handler has begun by then it runs on, and the one that asked is told
    /// [`RequestError::Unknown`](crate::RequestError::Unknown).
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.options.handler_timeout = timeout;
        self
    }

    /// Limits the time for which a host that cannot be reached is asked again, before a request of this interface is refused with
    /// [`RequestError::Unreachable`](crate::RequestError::Unreachable). With zero it is refused at once: for who has something else to do then.
    /// Default: a lease, after which a live fleet has another owner.
    pub fn reach_timeout(mut self, timeout: Duration) -> Self {
        self.options.reach_timeout = Some(timeout);
        self
    }

    /// Limits the time that [`on_stop`](StableInterface::on_stop) may run before it is cut off, and the instance leaves memory without it; whoever
    /// asked for it is told [`TimedOut`](crate::RequestError::TimedOut). Default: 30 s.
    pub fn stop_timeout(mut self, timeout: Duration) -> Self {
        self.options.stop_timeout = timeout;
        self
    }

    /// The most messages waiting for one instance; past it, requests are refused as overloaded. With 0 nobody waits. Default: 4,096.
    pub fn max_waiting(mut self, messages: usize) -> Self {
        self.options.max_waiting = messages;
        self
    }

    /// The most instances in memory. Past it the least recently used make room, and if none can, requests that would build one
    /// are refused as overloaded. At least 1. Default: 4,000,000.
    pub fn max_instances(mut self, instances: usize) -> Self {
        self.options.max_instances = instances;
        self
    }

    /// Sets the policy by which failed alarms and messages are tried again and given up. Default: [`RetryPolicy::default`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.options.retry = policy;
        self
    }

    /// In how many processes that died an alarm or message of this interface may have been handled before it becomes a dead letter, in place
    /// of what [`HostBuilder::max_crashes`] says. At least 1. With `u32::MAX` none is given up: for instances that look at
    /// [`Context::crashes`](crate::Context::crashes) and know what to do in place of what ends their process.
    pub fn max_crashes(mut self, crashes: u32) -> Self {
        self.options.max_crashes = Some(crashes);
        self
    }

    /// Sets the time for which the replies to [`request_once`](Interface::request_once) are kept under their keys, by the clocks of the hosts
    /// that answer: a request that comes later may be handled anew. They go when a later one is kept. Default: a day.
    pub fn keep_replies(mut self, time: Duration) -> Self {
        self.options.keep.time = time;
        self
    }

    /// The most replies to [`request_once`](Interface::request_once) that are kept for one instance; past it the oldest goes, and its key may be
    /// handled anew, before its time is over. The keys, not the replies, are in memory while the instance is. At least 1. Default: 10,000.
    pub fn max_kept_replies(mut self, replies: usize) -> Self {
        self.options.keep.most = replies;
        self
    }

    /// Registers it.
    ///
    /// # Errors
    /// [`RegisterError`] if its `NAME`, or that of a message, cannot be one or is taken.
    pub fn register(self) -> Result<Interface<I>, RegisterError> {
        check_names(&self.forwards)?;
        let host = self.host.core();
        let (fire, take) = (self.fire, self.take);
        let core = InterfaceCore::new(
            host.clone(),
            self.options,
            Quiet::new(self.factory),
            fire,
            take,
            stop_job,
            self.forwards,
        );
        let core = Arc::new(core);
        let mut interfaces = host.interfaces.lock();
        if interfaces.iter().any(|interface| interface.name() == I::NAME) {
            return Err(RegisterError::Duplicate(I::NAME));
        }
        interfaces.push(core.clone());
        drop(interfaces);
        Ok(Interface::new(core))
    }
}

/// Lets messages of type `M` cross under this name, with errors as `C` writes and reads them.
fn forward_message<I, M, C>(forwards: &mut Forwards<I>, message: &'static str)
where
    I: Handle<M>,
    M: Crossing,
    I::Reply: Crossing,
    C: Errors<I::Error>,
{
    forwards.add::<M, I::Reply, C>(message, answer_message::<I, M, C>);
}

/// Refuses names that cannot be those of an interface and its messages.
fn check_names<I: StableInterface>(forwards: &Forwards<I>) -> Result<(), RegisterError> {
    if !is_interface_name(I::NAME) {
        return Err(RegisterError::InvalidName(I::NAME));
    }
    let (mut names, twice) = forwards.names();
    if let Some(name) = names.find(|name| !is_interface_name(name)) {
        return Err(RegisterError::InvalidMessageName(name));
    }
    twice.map_or(Ok(()), |name| Err(RegisterError::DuplicateMessage(name)))
}
