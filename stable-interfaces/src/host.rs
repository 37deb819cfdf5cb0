//! The host, which an application starts and drains: one process's part in the fleet.

mod builder;
mod drain;
mod driver;
mod guest;
mod handoff;
mod keeper;
pub(crate) mod lease;
mod marks;
mod register;
mod rescue;
mod start;

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use crate::fleet::Fleet;
use crate::id::InvalidId;
use crate::quiet;
use crate::shared::{FOREVER, HostCore};
use crate::store::{Damaged, Member, ShardId, Store};
use crate::sync::{AbortHandle, Arc, Mutex, spawn_on, watch};

pub use self::builder::HostBuilder;
pub use self::guest::GuestBuilder;
pub use self::register::{InterfaceBuilder, RegisterError};
pub use self::start::StartError;
pub use crate::shared::Health;

/// The host name and the shard count of [`Host::local`].
const LOCAL_HOST: &str = "local";
const LOCAL_SHARDS: u32 = 1_024;

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
    /// The outcome for a host that had ended before, or ended meanwhile in another way.
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
        HostBuilder::new(Arc::new(HostCore::new(name.as_ref().into(), fleet)))
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

    /// The time for which the oldest alarm or message that waits has been due; zero if none is.
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
