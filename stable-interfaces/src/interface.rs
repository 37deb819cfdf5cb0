//! The typed handle through which an application talks to its instances.

mod across;
mod connect;
mod hosted;
mod once;
mod wake;

pub(crate) use self::across::forward_connections;
pub use self::connect::Connection;
pub(crate) use self::wake::{fire_alarm, take_message};

use std::fmt;
use std::future::Future;

use bytes::Bytes;
use serde::Serialize;

use self::connect::{Connect, Connected};
use crate::KeyRange;
use crate::alarm::{Alarm, encode_meta};
use crate::clock::{Clock, Random, Timestamp};
use crate::connection::Closed;
use crate::dead::{self, Dead};
use crate::directive::{Directive, Needs};
use crate::error::{ContextError, RequestError};
use crate::fleet::hash_id;
use crate::inbox::{Message, NewPost};
use crate::instance::admin::{CarryOut, ListAlarms, SetAlarmIfAbsent};
use crate::instance::ask::Ask;
use crate::instance::kind::InterfaceCore;
use crate::instance::stop::Stop;
use crate::instance::task::InstanceRef;
use crate::instance::{Handle, OnConnect, OnMessage, StableInterface};
use crate::quiet::drop_quietly;
use crate::shared::Health;
use crate::store::{Addressed, Epoch, InstanceName, Member, Posted};
use crate::sync::Arc;
use crate::transport::Question;

/// An application's handle on one of its interfaces: cheap to clone, for any task of the process.
///
/// Made by [`InterfaceBuilder::register`](crate::InterfaceBuilder::register). Its requests may be dropped at any time: a
/// handler that has begun runs to its end all the same. They are made from within a tokio runtime, for handlers are first
/// polled where the request is.
///
/// ```
/// # use stable_interfaces::{Context, ContextError, Handle, StableInterface};
/// # struct Counter;
/// # impl StableInterface for Counter {
/// #     const NAME: &'static str = "counter";
/// #     type Error = ContextError;
/// # }
/// # struct Add(u64);
/// # impl Handle<Add> for Counter {
/// #     type Reply = u64;
/// #     async fn handle(&mut self, cx: &mut Context, Add(n): Add) -> Result<u64, ContextError> {
/// #         let sum = cx.get("sum").await?.unwrap_or(0) + n;
/// #         cx.put("sum", &sum)?;
/// #         Ok(sum)
/// #     }
/// # }
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use stable_interfaces::{Host, MemoryStore};
///
/// let mut host = Host::local(MemoryStore::new());
/// let counters = host.interface(|_id| Counter).register()?;
/// let _host = host.start().await?;
///
/// let of_a_task = counters.clone();
/// let task = tokio::spawn(async move { of_a_task.request("visits", Add(2)).await });
/// assert_eq!(task.await??, 2);
/// assert_eq!(counters.request("visits", Add(3)).await?, 5); // Durable by now.
/// # Ok(())
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
/// ```
pub struct Interface<I: StableInterface> {
    pub(crate) core: Arc<InterfaceCore<I>>,
}

impl<I: StableInterface> Clone for Interface<I> {
    fn clone(&self) -> Interface<I> {
        Interface { core: self.core.clone() }
    }
}

impl<I: StableInterface> fmt::Debug for Interface<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interface").field("name", &I::NAME).field("running", &self.running()).finish_non_exhaustive()
    }
}

impl<I: StableInterface> Interface<I> {
    pub(crate) fn new(core: Arc<InterfaceCore<I>>) -> Interface<I> {
        Interface { core }
    }

    /// Sends `message` to the instance `id` and waits for its reply. The instance is built if it is not in memory.
    ///
    /// The handler is polled once right here; if it needs more, a task of the host carries on. When this returns `Ok`, every
    /// effect of the handler is durable.
    ///
    /// A message that was registered with [`forward`](crate::InterfaceBuilder::forward) is sent there where another host owns the instance, if this
    /// host has a [`transport`](crate::HostBuilder::transport); any other is refused with [`RequestError::NotOwner`].
    ///
    /// # Errors
    /// [`RequestError::Handler`] is the handler's own error; each other variant says what happened and what to do.
    pub async fn request<M>(&self, id: &str, message: M) -> Result<I::Reply, RequestError<I::Error>>
    where
        I: Handle<M>,
        M: Send + 'static,
    {
        let work = Ask(message);
        self.core.ask(id, work).await
    }

    /// Asks a host of the fleet a question, which it answers by what it was registered with:
    /// [`InterfaceBuilder::answer`](crate::InterfaceBuilder::answer). This host answers itself.
    ///
    /// The question is sent once, and its answer is waited for as long as that host is there.
    ///
    /// # Errors
    /// [`RequestError::Unreachable`] if it was not sent, also for want of a [`transport`](crate::HostBuilder::transport);
    /// [`RequestError::Unknown`] if it was and has no answer; [`RequestError::Unhandled`] if that host's program does not know it;
    /// [`RequestError::Panicked`] if what answers it did, [`RequestError::Rejected`] if the question did as it was written or read;
    /// [`RequestError::Overloaded`], [`RequestError::TooLarge`], [`RequestError::Json`], [`RequestError::NotStarted`].
    pub async fn ask_host<Q: Question>(&self, host: &str, question: &Q) -> Result<Q::Answer, RequestError<I::Error>> {
        self.core.ask_of_host(host, question).await
    }

    /// Connects to the instance `id`, which is told `meta` and accepts or rejects. It is built if it is not in memory.
    ///
    /// # Errors
    /// [`RequestError::Rejected`] with the instance's reason, [`RequestError::Unhandled`] if it did neither,
    /// [`RequestError::Overloaded`] if the host has too many connections, and as [`request`](Self::request).
    pub async fn connect(&self, id: &str, meta: I::Meta) -> Result<Connection<I>, RequestError<I::Error>>
    where
        I: OnConnect,
    {
        if let Err(error) = self.core.require_started() {
            drop_quietly(meta);
            return Err(error);
        }
        let connect = Connect::new(&self.core, meta).map_err(|error| *error)?;
        match self.core.ask(id, connect).await? {
            Connected::Here(connection) => Ok(connection),
            Connected::Afar(opened) => across::client::begin(&self.core, id, opened),
        }
    }

    /// Posts a message to the inbox of the instance `id`, wherever that lives: any host may, and when this returns the message
    /// is durable. Its owner handles it with [`OnMessage`], at least once.
    ///
    /// # Errors
    /// [`RequestError::Store`] if the store did not take it, [`RequestError::Unknown`] if that is not known: repeat it under the
    /// same ID. If the first got through and has been handled by then, it is handled twice. [`RequestError::NotStarted`], [`RequestError::TooLarge`], [`RequestError::InvalidId`], [`RequestError::NoStore`].
    /// [`RequestError::Unhandled`] if the interface was registered without [`with_inbox`](crate::InterfaceBuilder::with_inbox).
    pub async fn post(&self, id: &str, message: NewPost) -> Result<Posted, RequestError<I::Error>>
    where
        I: OnMessage,
    {
        self.core.require(Needs::Inbox)?;
        self.core.require_started()?;
        self.core.host.post(Addressed::post(I::NAME, id, message)?).await
    }

    /// Posts a directive to the instance `id`, wherever that lives: any host may, and when this returns it is durable. Its owner
    /// carries it out when it gets it. Where this host is the owner, the methods below answer at once and say what happened.
    ///
    /// # Errors
    /// As [`post`](Self::post); [`RequestError::Unhandled`] for what the interface was registered without, such as an alarm to set or
    /// to fire without [`with_alarms`](crate::InterfaceBuilder::with_alarms). What lies there already can be cancelled and discarded.
    pub async fn direct(&self, id: &str, directive: Directive) -> Result<Posted, RequestError<I::Error>> {
        self.core.require(directive.needs())?;
        self.core.require_started()?;
        self.core.host.post(Addressed::directive(I::NAME, id, directive)?).await
    }

    /// Keys and values of the storage of the instance `id` within a range, ascending by key, as far as they are durable, wherever that
    /// instance lives. The instance is not asked: its owner may be about to change them.
    ///
    /// # Errors
    /// [`RequestError::Store`] if the store could not be read, [`RequestError::InvalidId`], [`RequestError::NoStore`],
    /// [`RequestError::NotStarted`].
    pub async fn stored(
        &self,
        id: &str,
        range: impl Into<KeyRange>,
    ) -> Result<Vec<(Arc<str>, Bytes)>, RequestError<I::Error>> {
        self.core.require_started()?;
        let host = &self.core.host;
        let shard = host.fleet.shard_of(id).map_err(|reason| ContextError::invalid("instance ID", id, reason))?;
        let client = host.store_client().ok_or(ContextError::NoStore)?;
        let name = InstanceName { interface: I::NAME.into(), instance: id.into() };
        Ok(range.into().read(&client, shard, &name).await?)
    }

    /// The messages that wait in the inbox of the instance `id`, in the order of their arrival, wherever that instance lives. Nobody is asked: its
    /// owner may be about to take them. Reads the inboxes of the instance's shard.
    ///
    /// # Errors
    /// As [`stored`](Self::stored).
    pub async fn inbox(&self, id: &str) -> Result<Vec<Message>, RequestError<I::Error>> {
        self.core.require_started()?;
        let host = &self.core.host;
        let shard = host.fleet.shard_of(id).map_err(|reason| ContextError::invalid("instance ID", id, reason))?;
        let client = host.store_client().ok_or(ContextError::NoStore)?;
        let name = InstanceName { interface: I::NAME.into(), instance: id.into() };
        Ok(crate::inbox::waiting(&client, shard, &name, Timestamp::MAX).await?)
    }

    /// At most `limit` alarms of all instances of this interface, on whatever host, after the one named by `after`: as
    /// [`FleetClient::all_alarms`](crate::FleetClient::all_alarms).
    ///
    /// # Errors
    /// [`RequestError::Store`] if the store could not be read, [`RequestError::NoStore`], [`RequestError::NotStarted`].
    pub async fn all_alarms(&self, after: Option<&Alarm>, limit: usize) -> Result<Vec<Alarm>, RequestError<I::Error>> {
        self.core.require_started()?;
        let host = &self.core.host;
        let client = host.store_client().ok_or(ContextError::NoStore)?;
        Ok(crate::alarm::list(&client, &host.fleet, |_| true, I::NAME, after, limit).await?)
    }

    /// As [`all_alarms`](Self::all_alarms), of the instances that this host owns: the shards of other hosts are not read.
    ///
    /// # Errors
    /// As [`all_alarms`](Self::all_alarms).
    pub async fn own_alarms(&self, after: Option<&Alarm>, limit: usize) -> Result<Vec<Alarm>, RequestError<I::Error>> {
        self.core.require_started()?;
        let host = &self.core.host;
        let client = host.store_client().ok_or(ContextError::NoStore)?;
        let is_own = |shard| host.shards.epoch(shard).is_some();
        Ok(crate::alarm::list(&client, &host.fleet, is_own, I::NAME, after, limit).await?)
    }

    /// Sets an alarm of the instance `id`, as [`Context::set_alarm`](crate::Context::set_alarm) does from inside. The instance is not built for it.
    ///
    /// # Errors
    /// As [`request`](Self::request), and as [`Context::set_alarm`](crate::Context::set_alarm).
    pub async fn set_alarm(
        &self,
        id: &str,
        alarm: &str,
        at: impl Into<Timestamp>,
        meta: &(impl Serialize + ?Sized),
    ) -> Result<(), RequestError<I::Error>> {
        self.order(id, Directive::set_alarm(alarm, at, meta)?).await.map(drop)
    }

    /// As [`set_alarm`](Self::set_alarm), unless an alarm with that ID exists. Says whether it was set.
    ///
    /// # Errors
    /// As [`set_alarm`](Self::set_alarm).
    pub async fn set_alarm_if_absent(
        &self,
        id: &str,
        alarm: &str,
        at: impl Into<Timestamp>,
        meta: &(impl Serialize + ?Sized),
    ) -> Result<bool, RequestError<I::Error>> {
        let set = SetAlarmIfAbsent { alarm: alarm.to_owned(), at: at.into(), meta: encode_meta(alarm, meta)? };
        self.core.ask(id, set).await
    }

    /// Cancels an alarm of the instance `id`, if it exists. It does not fire after this has returned `Ok`, except that a handler
    /// that was running then had been waited for.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn cancel_alarm(&self, id: &str, alarm: &str) -> Result<(), RequestError<I::Error>> {
        self.order(id, Directive::cancel_alarm(alarm)?).await.map(drop)
    }

    /// All alarms of the instance `id`, by alarm ID. Those of an instance on another host come in several turns if they are many, and may change
    /// in between.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn alarms(&self, id: &str) -> Result<Vec<Alarm>, RequestError<I::Error>> {
        let (mut alarms, mut next) = self.core.ask(id, ListAlarms::all()).await?;
        // What another host tells comes in several answers, if it is much.
        while let Some(from) = next {
            let more = self.core.ask(id, ListAlarms::from(from)).await?;
            alarms.extend(more.0);
            next = more.1;
        }
        Ok(alarms)
    }

    /// Makes an alarm of the instance `id` due at once. Says whether there is one with that ID.
    ///
    /// The alarm's [`fire_id`](Alarm::fire_id) becomes another one; the time it was set for and its failed attempts stay.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn fire_now(&self, id: &str, alarm: &str) -> Result<bool, RequestError<I::Error>> {
        self.order(id, Directive::fire_now(alarm)?).await
    }

    /// The alarms and messages of this interface that were given up, oldest first, at most `limit`, after the one named by
    /// `after`. Of the shards this host owns.
    ///
    /// # Errors
    /// [`RequestError::Store`] if the store could not be read.
    pub async fn dead_letters(&self, after: Option<&Dead>, limit: usize) -> Result<Vec<Dead>, RequestError<I::Error>> {
        self.core.require_started()?;
        let host = &self.core.host;
        let owned = host.shards.owned().map(|(shard, _)| shard).collect();
        Ok(dead::list(&host.store_client().ok_or(ContextError::NoStore)?, owned, I::NAME, after, limit).await?)
    }

    /// Brings a dead letter back, due at once and with no failed attempts. Says whether that was done: not if it is no longer
    /// there, nor if an alarm with the same ID has been set since, nor while a message with the same ID is in the inbox.
    ///
    /// # Errors
    /// As [`request`](Self::request), and [`RequestError::Unhandled`] for an alarm or a message if the interface was registered
    /// without alarms or without an inbox.
    pub async fn requeue(&self, dead: &Dead) -> Result<bool, RequestError<I::Error>> {
        self.order(dead.instance(), Directive::requeue(dead)).await
    }

    /// Removes a dead letter for good. Says whether it was still there.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn discard(&self, dead: &Dead) -> Result<bool, RequestError<I::Error>> {
        self.order(dead.instance(), Directive::discard(dead)).await
    }

    /// Lets the instance `id` leave memory in good order: waits for its handler and the messages before this one, runs its
    /// [`on_stop`](StableInterface::on_stop), and returns when all it committed is durable. The next message builds it anew.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn stop(&self, id: &str) -> Result<(), RequestError<I::Error>> {
        self.core.ask(id, Stop(Closed::Stopped)).await
    }

    /// The host's clock; `None` before it is started.
    #[must_use]
    pub fn clock(&self) -> Option<Arc<dyn Clock>> {
        self.core.host.clock.get()
    }

    /// The epoch under which this host owns the shard of the instance `id`; `None` where it does not, as far as it knows. While the epoch is
    /// the same, nobody else has written for the instance.
    #[must_use]
    pub fn epoch(&self, id: &str) -> Option<Epoch> {
        let host = &self.core.host;
        host.shards.epoch(host.fleet.shard_of(id).ok()?)
    }

    /// The name of the host that owns the shard of the instance `id`, as far as this one knows; `None` where that is this host itself, or
    /// should be.
    #[must_use]
    pub fn holder(&self, id: &str) -> Option<Arc<str>> {
        let host = &self.core.host;
        let shard = host.fleet.shard_of(id).ok()?;
        let is_elsewhere = host.shards.intake(shard).is_none();
        is_elsewhere.then(|| host.holder(shard)).filter(|holder| **holder != *host.name)
    }

    /// The name of this host.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.core.host.name
    }

    /// The hosts of the fleet: [`Host::members`](crate::Host::members), for what holds interfaces alone.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.core.host.view().members.list.clone()
    }

    /// The host's source of random numbers; `None` before it is started.
    #[must_use]
    pub fn random(&self) -> Option<Arc<dyn Random>> {
        self.core.host.random.get()
    }

    /// Completes when the host begins to drain, or has ended: [`Host::stopping`](crate::Host::stopping), for what holds interfaces alone.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        let host = self.core.host.clone();
        async move { host.wait_for(Health::Draining).await }
    }

    /// Has the instance carry out a directive in its turn; `false` if there was nothing to do.
    async fn order(&self, id: &str, directive: Directive) -> Result<bool, RequestError<I::Error>> {
        self.core.ask(id, CarryOut(directive.into_order())).await
    }

    /// Says whether the instance `id` is in memory on this host.
    #[must_use]
    pub fn is_running(&self, id: &str) -> bool {
        self.core.table.get(id, hash_id(id)).is_some_and(|slot| slot.is_running())
    }

    /// The number of instances in memory on this host.
    #[must_use]
    pub fn running(&self) -> usize {
        self.core.table.len()
    }
}

impl<I: StableInterface> InstanceRef<I> {
    /// The interface that the instance belongs to: for what its task asks of others of its kind, or posts to them.
    #[must_use]
    pub fn interface(&self) -> Interface<I> {
        Interface::new(self.core().clone())
    }
}
