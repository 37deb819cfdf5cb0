//! The state that all parts of one host share: its settings, its health, its lease, its tasks.
//!
//! Health only moves forward, and a host that has stopped owns nothing and runs nothing. Interfaces are known here by what a host
//! must be able to ask of them ([`AnyInterface`]), so nothing in here knows an instance.

mod any_interface;
mod departure;
mod view;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

pub(crate) use self::any_interface::{AnyInterface, Forget, Held};
use self::departure::Departure;
use self::view::View;
use crate::clock::{Clock, Random};
use crate::commit::committer::Committer;
use crate::error::{ContextError, RequestError};
use crate::fleet::Fleet;
use crate::forward::reach::Reach;
use crate::forward::traces::Traces;
use crate::setting::Setting;
use crate::shards::Shards;
use crate::shards::firing::Limits;
use crate::store::client::{CommitOptions, StoreClient};
use crate::store::deadlines::Deadlines;
use crate::store::portion::Portion;
use crate::store::{Addressed, Incarnation, Loaded, NewMessage, Page, Posted, ShardId, Store, StoreError};
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, MAX_PERMITS, Mutex, Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use crate::tasks::{TaskHandle, Tasks};

/// The health of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// The host has not been started.
    NotStarted,
    /// The host works.
    Running,
    /// The host takes no new work and is finishing what it has.
    Draining,
    /// The host has ended in good order, or was dropped.
    Stopped,
    /// Another process with the same host name has taken over. This one has stopped and will not claim anything again.
    Replaced,
    /// The store has lost what it had acknowledged (it was emptied, restored from an old copy, or failed over to a replica that
    /// lagged behind), so what this host knows is no longer what is stored. It has stopped, and has posted the alarms it had in
    /// memory to their next owner. Start it anew.
    StoreLost,
    /// A task or thread of the library itself has ended by a panic, which is a fault of the library, of its store or of its clock; the
    /// log says where; or the runtime it was started on has ended. It has stopped wholly, for nobody would do that task's work any more: what it left begins again with its
    /// next owner. Start it anew. No panic of a handler, or of anything else that belongs to one message, leads here.
    Failed,
}

/// Limits and times of a host, with their defaults.
#[derive(Debug, Clone)]
pub(crate) struct HostOptions {
    pub(crate) lease: Duration,
    pub(crate) start_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) commit: CommitOptions,
    pub(crate) limits: Limits,
    pub(crate) max_connections: usize,
    pub(crate) max_clock_skew: Duration,
    /// The address at which other hosts reach this one, if they do.
    pub(crate) address: Option<Arc<str>>,
    /// In a live fleet: for how long the first host waits for others.
    pub(crate) gather: Duration,
    /// In a live fleet: for how long a host must have been up before others hand shards over to it; as long as a lease if it is not set.
    pub(crate) settle: Option<Duration>,
    /// The most shards that are handed over at once.
    pub(crate) handoff_batch: usize,
    /// The time that a shard waits for its tasks before it is handed over.
    pub(crate) handoff_timeout: Duration,
    /// The build of the program, for people.
    pub(crate) build: Arc<str>,
    /// The way to the traces of the program.
    pub(crate) traces: Option<Arc<Traces>>,
    pub(crate) window: usize,
}

impl Default for HostOptions {
    fn default() -> HostOptions {
        HostOptions {
            lease: Duration::from_secs(15),
            start_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
            commit: CommitOptions {
                lanes: 2,
                store_timeout: Duration::from_secs(5),
                commit_timeout: Duration::from_secs(10),
                max_queued: 16_384,
                max_queued_bytes: 64 * 1024 * 1024,
            },
            limits: Limits {
                max_firing: 1_024,
                max_fires_per_second: 1_000,
                max_crashes: 3,
                window_bytes: 64 * 1024 * 1024,
            },
            max_connections: 100_000,
            max_clock_skew: Duration::from_secs(60),
            address: None,
            gather: Duration::from_millis(500),
            settle: None,
            handoff_batch: 32,
            handoff_timeout: Duration::from_secs(30),
            build: "".into(),
            traces: None,
            window: 65_536,
        }
    }
}

/// A lease that no clock will see the end of: for a store that only one process can open.
pub(crate) const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The shortest limit of what has to wait for something: clocks wake sleepers by the millisecond.
pub(crate) const SHORTEST: Duration = Duration::from_millis(1);

impl HostOptions {
    /// Refuses what cannot work; the text names the option.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let HostOptions { lease, commit, limits, .. } = self;
        // As `Presence` says.
        let is_unfit = |text: &str| text.len() > 255 || text.contains('\0');
        let refused = [
            (*lease < Duration::from_millis(100), "the lease must be at least 100 ms"),
            (commit.store_timeout < SHORTEST, "store_timeout must be at least 1 ms"),
            (commit.lanes == 0, "lanes must be at least 1"),
            (commit.max_queued == 0, "max_queued_commits must be at least 1"),
            (commit.max_queued_bytes == 0, "max_queued_bytes must be at least 1"),
            (limits.max_firing == 0, "max_firing must be at least 1"),
            (limits.max_fires_per_second == 0, "max_fires_per_second must be at least 1"),
            (limits.max_crashes == 0, "max_crashes must be at least 1"),
            (self.handoff_batch == 0, "handoff_batch must be at least 1"),
            (is_unfit(&self.build), "build must have at most 255 bytes and no NUL"),
            (
                self.address.as_deref().is_some_and(is_unfit),
                "the address of a host must have at most 255 bytes and no NUL",
            ),
        ];
        refused.into_iter().find(|(is_wrong, _)| *is_wrong).map_or(Ok(()), |(_, text)| Err(text))
    }

    /// As they are, but no more than there can be of anything.
    pub(crate) fn within_reach(mut self, shards: u32) -> HostOptions {
        self.lease = self.lease.min(FOREVER);
        self.limits.max_firing = self.limits.max_firing.min(MAX_PERMITS);
        self.max_connections = self.max_connections.min(MAX_PERMITS);
        self.commit.lanes = self.commit.lanes.min(u16::try_from(shards).unwrap_or(u16::MAX));
        self
    }
}

/// Something to run on a task of the host.
pub(crate) type Deferred = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
pub(crate) struct HostCore {
    pub(crate) name: Arc<str>,
    pub(crate) fleet: Fleet,
    /// The name that the store has given itself, once it has told it.
    pub(crate) store_name: Arc<OnceLock<Option<Arc<str>>>>,
    /// Given when the host starts, if it has one.
    store: OnceLock<Arc<dyn Store>>,
    pub(crate) clock: Setting<dyn Clock>,
    pub(crate) random: Setting<dyn Random>,
    pub(crate) options: Setting<HostOptions>,
    pub(crate) shards: Arc<Shards>,
    health: AtomicU8,
    /// The time at which the lease runs out, in milliseconds by the lease clock; `u64::MAX` if there is none to run out.
    lease_until: AtomicU64,
    /// The host that was found to hold a shard that the fleet gives to this host.
    holders: Mutex<BTreeMap<ShardId, Arc<str>>>,
    /// The fleet, as the store told last.
    view: Mutex<Arc<View>>,
    /// Wakes the task that hands shards over, when members have changed.
    pub(crate) view_changed: Notify,
    /// Asks for a look at the fleet: members or owners may have changed.
    pub(crate) news: Notify,
    /// A notice for when something ends in a shard that is being handed over.
    pub(crate) handed_on: Notify,
    pub(crate) departure: Departure,
    /// The size of the next page that handlers and tools read: what is loaded to be handled has one of its own.
    portion: Mutex<Portion>,
    /// Bounds the connections of all interfaces. Without permits until the host has its settings.
    connections: Arc<Semaphore>,
    /// A notice for when the health changes, and for when the host has stopped.
    health_changed: Notify,
    /// Set once it owns nothing any more and runs nothing.
    has_stopped: AtomicBool,
    /// A notice for when an instance leaves memory while the host drains.
    pub(crate) instance_left: Notify,
    /// A notice for when a task of an instance has ended or is parked.
    pub(crate) task_rested: Notify,
    /// Turns of tasks are served while the host drains: it waits for those that are not parked.
    pub(crate) serves_tasks: AtomicBool,
    /// The parts that exist once the host has started.
    started: OnceLock<Started>,
    /// The number of `on_stop` that were cut off since the host began to drain.
    pub(crate) stops_cut: AtomicUsize,
    /// Set when the store has lost data: what is in memory is being saved, and the host ends when it is.
    is_rescuing: AtomicBool,
    /// The way to the other hosts, once the host has started with one.
    reach: OnceLock<Reach>,
    /// A notice for when to look at the members, in a process that is no host of the fleet and owns nothing.
    guest: OnceLock<Arc<Notify>>,
    /// Emptied when the host stops: interfaces point back at the host.
    pub(crate) interfaces: Mutex<Vec<Arc<dyn AnyInterface>>>,
}

#[derive(Debug)]
pub(crate) struct Started {
    /// Handlers that were not done in their first poll.
    pub(crate) turns: Tasks,
    /// Tasks of instances.
    pub(crate) instance_tasks: Tasks,
    /// The driver, the lanes, the lease.
    pub(crate) system: Tasks,
    /// Work deferred to a task of the host because it arises in a `Drop`, or under a lock.
    pub(crate) deferred: mpsc::UnboundedSender<Deferred>,
    pub(crate) committer: Option<Arc<Committer>>,
    pub(crate) incarnation: Incarnation,
}

impl HostCore {
    /// A host that waits for its settings.
    pub(crate) fn new(name: Arc<str>, fleet: Fleet) -> HostCore {
        let shards = Arc::new(Shards::open(fleet.shards()));
        HostCore {
            store_name: Arc::default(),
            name,
            fleet,
            store: OnceLock::new(),
            clock: Setting::open(),
            random: Setting::open(),
            options: Setting::open(),
            shards,
            health: AtomicU8::new(Health::NotStarted as u8),
            lease_until: AtomicU64::new(u64::MAX),
            holders: Mutex::default(),
            view: Mutex::default(),
            view_changed: Notify::new(),
            news: Notify::new(),
            handed_on: Notify::new(),
            departure: Departure::default(),
            portion: Mutex::default(),
            connections: Arc::new(Semaphore::new(0)),
            health_changed: Notify::new(),
            has_stopped: AtomicBool::new(false),
            instance_left: Notify::new(),
            task_rested: Notify::new(),
            serves_tasks: AtomicBool::new(true),
            started: OnceLock::new(),
            stops_cut: AtomicUsize::new(0),
            is_rescuing: AtomicBool::new(false),
            reach: OnceLock::new(),
            guest: OnceLock::new(),
            interfaces: Mutex::default(),
        }
    }

    /// Gives the host its settings, before anything of it runs.
    pub(crate) fn set(
        &self,
        store: Option<Arc<dyn Store>>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        options: HostOptions,
    ) {
        if let Some(store) = store {
            drop(self.store.set(store));
        }
        self.shards.give(options.limits.clone(), clock.clone());
        self.connections.add_permits(options.max_connections);
        self.clock.give(clock);
        self.random.give(random);
        self.options.give(Arc::new(options));
    }

    pub(crate) fn set_reach(&self, reach: Reach) {
        // A host is started once: `start` consumes the builder.
        drop(self.reach.set(reach));
    }

    /// Makes it no host of the fleet; the notice is that its members should be looked at.
    pub(crate) fn set_guest(&self, look: Arc<Notify>) {
        drop(self.guest.set(look));
    }

    /// Tells that it is no host of the fleet.
    pub(crate) fn is_guest(&self) -> bool {
        self.guest.get().is_some()
    }

    /// Has it look at the members, if it does not hear of them as a host does.
    pub(crate) fn look_at_members(&self) {
        if let Some(look) = self.guest.get() {
            look.notify_one();
        }
    }

    /// The way to the other hosts, if there is one.
    pub(crate) fn reach(&self) -> Option<&Reach> {
        self.reach.get()
    }

    /// Waits until this host owns the shard and lets in what comes for it, and tells whether it does: not if that is to be another host's by now.
    pub(crate) async fn wait_owned(&self, shard: ShardId) -> bool {
        self.wait_owned_while(shard, || true).await
    }

    /// As [`wait_owned`](Self::wait_owned), for as long as that is so: looked at again whenever it is learnt who has a shard.
    pub(crate) async fn wait_owned_while(&self, shard: ShardId, is_so: impl Fn() -> bool) -> bool {
        loop {
            let mut gained = std::pin::pin!(self.shards.gained.notified());
            // Enabled before the epoch is read, so that no grant is missed between the two.
            gained.as_mut().enable();
            if self.shards.intake(shard).is_some() {
                return true;
            }
            if self.health() > Health::Running || !self.is_placed_here(shard) || !is_so() {
                return false;
            }
            gained.await;
        }
    }

    /// The store of alarms and storage, if there is one.
    pub(crate) fn store(&self) -> Option<&Arc<dyn Store>> {
        self.store.get()
    }

    /// The store with a deadline on each call, if there is one.
    pub(crate) fn timely_store(&self) -> Option<Deadlines> {
        let store = self.store()?.clone();
        Some(Deadlines::new(store, self.clock.share(), self.options.commit.store_timeout))
    }

    pub(crate) fn health(&self) -> Health {
        match self.health.load(Ordering::Acquire) {
            0 => Health::NotStarted,
            1 => Health::Running,
            2 => Health::Draining,
            3 => Health::Stopped,
            4 => Health::Replaced,
            5 => Health::StoreLost,
            _ => Health::Failed,
        }
    }

    /// Health only moves forward: a host that was replaced stays replaced.
    pub(crate) fn set_health(&self, health: Health) {
        self.health.fetch_max(health as u8, Ordering::AcqRel);
        self.health_changed.notify_waiters();
        self.shards.gained.notify_waiters();
        // The driver looks at the health when it wakes.
        self.shards.changed.notify_one();
    }

    /// Waits until the host has stopped, for whatever reason: until it owns nothing any more and runs nothing.
    pub(crate) async fn wait_stopped(&self) {
        self.wait_until(|| self.has_stopped.load(Ordering::Acquire)).await;
    }

    /// Waits until the host is at least so far on its way.
    pub(crate) async fn wait_for(&self, health: Health) {
        self.wait_until(|| self.health() >= health).await;
    }

    async fn wait_until(&self, is_so: impl Fn() -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.health_changed.notified());
            // Enabled before the health is read, so that no change is missed between the two.
            changed.as_mut().enable();
            if is_so() {
                return;
            }
            changed.await;
        }
    }

    /// The reason why this host as a whole takes no requests for good, if there is one.
    pub(crate) fn ended<E>(&self) -> Option<RequestError<E>> {
        match self.health() {
            Health::Replaced => Some(RequestError::Replaced),
            Health::StoreLost => Some(RequestError::StoreLost),
            Health::Stopped | Health::Failed => Some(RequestError::Draining),
            // It owns nothing any more, and will have ended when what is in memory has been saved.
            _ if self.is_rescuing() => Some(RequestError::StoreLost),
            _ => None,
        }
    }

    /// An error of a request with its true reason: a host that has ended as a whole has lost each shard for that reason.
    #[cold]
    pub(crate) fn explain<E>(&self, error: RequestError<E>) -> RequestError<E> {
        match error {
            RequestError::Fenced | RequestError::LeaseLost | RequestError::Draining | RequestError::NotOwner { .. } => {
                self.ended().unwrap_or(error)
            }
            RequestError::Unknown(cause) => RequestError::unknown(self.explain(*cause)),
            other => other,
        }
    }

    /// Notes that what is in memory is being saved.
    pub(crate) fn begin_rescue(&self) {
        self.is_rescuing.store(true, Ordering::Release);
    }

    /// Tells whether what is in memory is being saved, or has been.
    pub(crate) fn is_rescuing(&self) -> bool {
        self.is_rescuing.load(Ordering::Acquire)
    }

    /// A permit for one more connection, if there may be one.
    pub(crate) fn permit_connection(&self) -> Option<OwnedSemaphorePermit> {
        self.connections.clone().try_acquire_owned().ok()
    }

    /// The number of connections.
    pub(crate) fn connections(&self) -> usize {
        self.options.max_connections.saturating_sub(self.connections.available_permits())
    }

    pub(crate) fn set_started(&self, started: Started) {
        // A host is started once: `start` consumes the builder.
        drop(self.started.set(started));
    }

    pub(crate) fn started(&self) -> Option<&Started> {
        self.started.get()
    }

    #[inline]
    pub(crate) fn committer(&self) -> Option<&Arc<Committer>> {
        self.started.get()?.committer.as_ref()
    }

    /// Runs a handler, or what follows one, on a task of this host.
    pub(crate) fn spawn_turn(&self, future: impl Future<Output = ()> + Send + 'static) {
        if let Some(started) = self.started.get() {
            started.turns.spawn(future);
        }
    }

    /// Starts a task that belongs to an incarnation of an instance.
    pub(crate) fn spawn_instance_task(&self, future: impl Future<Output = ()> + Send + 'static) -> Option<TaskHandle> {
        self.started.get()?.instance_tasks.spawn_handled(future)
    }

    /// Starts a task that goes on until the host has ended, also while it drains.
    pub(crate) fn spawn_system(&self, future: impl Future<Output = ()> + Send + 'static) {
        if let Some(started) = self.started.get() {
            started.system.spawn(future);
        }
    }

    /// Runs `work` soon, on a task of this host.
    pub(crate) fn defer(&self, work: Deferred) {
        if let Some(started) = self.started.get() {
            // Refused once the host has ended, and then there is nothing left to do.
            drop(started.deferred.send(work));
        }
    }

    /// Sets when the lease runs out, by the lease clock.
    pub(crate) fn set_lease(&self, until: Duration) {
        let millis = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.lease_until.store(millis, Ordering::Release);
    }

    /// The time at which the lease runs out, by the lease clock.
    pub(crate) fn lease_until(&self) -> Duration {
        match self.lease_until.load(Ordering::Acquire) {
            u64::MAX => Duration::MAX,
            millis => Duration::from_millis(millis),
        }
    }

    /// Tells whether this host may still act as the owner of its shards. Only a host with a lease reads a clock here.
    #[inline]
    pub(crate) fn lease_holds(&self) -> bool {
        let until = self.lease_until.load(Ordering::Acquire);
        until == u64::MAX || self.clock.elapsed() < Duration::from_millis(until)
    }

    /// The time for which the lease has been over; zero while it holds.
    pub(crate) fn lease_over_for(&self) -> Duration {
        let until = Duration::from_millis(self.lease_until.load(Ordering::Acquire));
        self.clock.elapsed().saturating_sub(until)
    }

    /// Names the instance at this address of memory, if there is one on this host. Looks at all of them.
    pub(crate) fn name_instance(&self, address: usize) -> Option<String> {
        let interfaces = self.interfaces.lock().clone();
        interfaces.iter().find_map(|interface| interface.name_instance(address))
    }

    /// The store for what a handler reads: none once the host has stopped.
    pub(crate) fn reader(&self) -> Result<StoreClient<'_>, StoreError> {
        if self.health() >= Health::Stopped {
            return Err(StoreError::NotApplied("the host has stopped".into()));
        }
        self.store_client().ok_or_else(no_store)
    }

    /// Loads pages from the store, within the deadline of one call.
    pub(crate) async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        self.store_client().ok_or_else(no_store)?.load(pages).await
    }

    /// The store with its deadlines and repeats, if there is one.
    pub(crate) fn store_client(&self) -> Option<StoreClient<'_>> {
        let store = self.timely_store()?;
        let (clock, random, options) = (&*self.clock, &*self.random, &self.options.commit);
        Some(StoreClient { store, clock, random, options, portion: &self.portion })
    }

    /// Posts a message to an inbox, wherever that lives.
    pub(crate) async fn post<E>(&self, message: Addressed) -> Result<Posted, RequestError<E>> {
        match self.health() {
            Health::NotStarted => return Err(RequestError::NotStarted),
            Health::Running | Health::Draining => {}
            _ => return Err(self.ended().unwrap_or(RequestError::Draining)),
        }
        let posted = self.post_row(message.into_message(&self.fleet, &*self.random)).await;
        // What surely did not happen did not because the host ended, if it has.
        posted.map_err(|error| match (&error, self.ended()) {
            (ContextError::Store(cause), Some(ended)) if !cause.may_have_happened() => ended,
            _ => error.into(),
        })
    }

    /// Posts a message, and tells this host's own window.
    pub(crate) async fn post_row(&self, message: NewMessage) -> Result<Posted, ContextError> {
        let shard = message.shard;
        let has_ended = || self.health() >= Health::Stopped;
        let client = self.store_client().ok_or(ContextError::NoStore)?;
        // The store's own hint may get lost; that of its end does not. After a failure the message may be there all the same.
        let _posting = self.shards.posting(shard);
        client.post(message, has_ended).await
    }

    /// A task or thread of this host has ended by a panic: the host stops wholly.
    pub(crate) fn fail(&self, what: &str, panic: &str) {
        tracing::error!(host = %self.name, what, %panic, "a part of this host has panicked; the host stops");
        self.stop(Health::Failed);
    }

    /// Ends this host's part in everything, at once: nothing is written, fired or claimed from here on.
    pub(crate) fn stop(&self, health: Health) {
        self.set_health(health);
        for (shard, epoch) in self.shards.owned().collect::<Vec<_>>() {
            self.shards.lose(shard, epoch);
        }
        if let Some(started) = self.started.get() {
            if let Some(committer) = &started.committer {
                committer.close();
            }
            started.system.abort();
            started.turns.abort();
            started.instance_tasks.abort();
        }
        self.has_stopped.store(true, Ordering::Release);
        self.health_changed.notify_waiters();
        let interfaces = std::mem::take(&mut *self.interfaces.lock());
        for interface in interfaces {
            interface.abandon();
        }
    }
}

/// Ends the host when it is dropped: with the runtime whose task has it.
pub(crate) struct EndsWithRuntime(pub(crate) Arc<HostCore>);

impl Drop for EndsWithRuntime {
    fn drop(&mut self) {
        if self.0.health() < Health::Stopped {
            tracing::error!(host = %self.0.name, "the runtime of a host has ended without the host being drained; the host ends with it");
            self.0.stop(Health::Failed);
        }
    }
}

impl PartialOrd for Health {
    fn partial_cmp(&self, other: &Health) -> Option<std::cmp::Ordering> {
        Some((*self as u8).cmp(&(*other as u8)))
    }
}

fn no_store() -> StoreError {
    StoreError::NotApplied("this host has no store".into())
}
