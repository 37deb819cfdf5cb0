//! The start of a host: what it is given is checked, its shards are claimed, and its tasks begin.

use std::any::Any;
use std::time::Duration;

use super::register::RegisterError;
use super::{Host, HostBuilder, drain, driver, handoff, keeper, lease};
use crate::commit::committer::Committer;
use crate::error::WithCauses;
use crate::fleet::{HASH_VERSION, check_host};
use crate::forward::door::HostDoor;
use crate::forward::reach::Reach;
use crate::shared::{Deferred, EndsWithRuntime, Health, HostCore, Started};
use crate::store::client::Backoff;
use crate::store::deadlines::Deadlines;
use crate::store::{BoxError, ClaimKind, Claimed, Epoch, Incarnation, Member, MemoryStore, ShardId, StoreError};
use crate::sync::{Arc, Mutex, Runtime, mpsc};
use crate::tasks::Tasks;
use crate::transport::{Introduction, Running};

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
        /// The difference between them.
        skew: Duration,
        /// The greatest difference that may be.
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

impl HostBuilder {
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
        check(&core)?;
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
            (Some(store), Some(committer)) => begin_with_store(&core, store, committer, incarnation).await?,
            _ => begin_alone(&core),
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

/// Refuses a name, a fleet or options with which this host cannot start.
fn check(core: &HostCore) -> Result<(), StartError> {
    if core.fleet.is_live() {
        if core.store().is_none() {
            return Err(StartError::Option("a live fleet needs a store: its hosts are those that hold a lease there"));
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
    Ok(())
}

/// Claims this host's shards, and begins the tasks that work on them.
async fn begin_with_store(
    core: &Arc<HostCore>,
    store: Deadlines,
    committer: Arc<Committer>,
    incarnation: Incarnation,
) -> Result<(), StartError> {
    if core.fleet.is_live() {
        join(core, &store, incarnation).await?;
    }
    let Claimed { sequence, overlap, .. } = claim_all(core, &store, incarnation, lease::assigned).await?;
    for lane in committer.open(overlap) {
        core.spawn_system(committer.clone().run(lane, sequence));
    }
    core.set_health(Health::Running);
    core.spawn_system(driver::load(core.clone(), sequence));
    core.spawn_system(driver::run(core.clone()));
    core.spawn_system(driver::watch(core.clone(), store.clone(), incarnation));
    if core.fleet.is_live() {
        core.spawn_system(handoff::run(core.clone(), store.clone(), incarnation));
    }
    let owned = core.shards.owned().count();
    metrics::gauge!(crate::metrics::SHARDS_OWNED).set(u32::try_from(owned).unwrap_or(u32::MAX));
    let waiting_for = lease::assigned(core).len().saturating_sub(owned);
    tracing::info!(host = %core.name, shards = owned, waiting_for, store = ?core.store(), "started");
    keeper::start(core, Some((store, incarnation)));
    Ok(())
}

/// Begins without a store: the shards that the fleet gives to this host are its own, and nobody else is asked.
fn begin_alone(core: &Arc<HostCore>) {
    let assigned = lease::assigned(core);
    for shard in &assigned {
        core.shards.own(*shard, Epoch(1), true, 0, 0);
    }
    // Set by nobody else.
    drop(core.store_name.set(None));
    core.set_health(Health::Running);
    tracing::info!(host = %core.name, shards = assigned.len(), "started without a store");
    keeper::start(core, None);
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
pub(super) fn begin_tasks(
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
pub(super) async fn run_deferred(mut work: mpsc::UnboundedReceiver<Deferred>) {
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
