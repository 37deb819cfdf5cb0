//! A fleet as somebody sees it who owns nothing of it: a tool, another service, a host looking at another's instances.
//!
//! Looking reads the store as it is. Nothing is changed but by a message to the owner, so no write here is fenced, and none
//! needs to be.

use bytes::Bytes;

use crate::alarm::{self, Alarm};
use crate::clock::{Clock, Random, SystemClock, SystemRandom, Timestamp};
use crate::dead::{self, Dead};
use crate::directive::Directive;
use crate::error::ContextError;
use crate::fleet::Fleet;
use crate::host::GuestBuilder;
use crate::inbox::{self, Message, NewPost};
use crate::instance::StableInterface;
use crate::instance::range::KeyRange;
use crate::shared::HostOptions;
use crate::store::client::{CommitOptions, StoreClient};
use crate::store::deadlines::Deadlines;
use crate::store::portion::Portion;
use crate::store::{Addressed, AlarmRow, InstanceName, Member, Posted, ShardId, Store, StoreError};
use crate::sync::{Arc, Mutex};
use crate::transport::Transport;

/// The most times that the members are read for one mark.
const CORDON_TRIES: u32 = 64;

/// Looks at what a fleet keeps, and posts to it, without being one of its hosts.
///
/// ```no_run
/// # async fn example(store: std::sync::Arc<dyn stable_interfaces::Store>) -> Result<(), Box<dyn std::error::Error>> {
/// use stable_interfaces::{Directive, Fleet, FleetClient};
///
/// let client = FleetClient::new(store, Fleet::expand("host-{0..1}", 1024)?);
/// for dead in client.dead_letters("order", None, 100).await? {
///     println!("{} of {}: {}", dead.id(), dead.instance(), dead.reason());
///     client.direct("order", dead.instance(), Directive::requeue(&dead)).await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct FleetClient {
    store: Arc<dyn Store>,
    fleet: Fleet,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    options: CommitOptions,
    portion: Arc<Mutex<Portion>>,
}

impl FleetClient {
    /// Looks at `fleet`, which must have the same shard count as its hosts were started with, through the store that they share.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, fleet: Fleet) -> FleetClient {
        let options = HostOptions::default().commit;
        FleetClient {
            store,
            fleet,
            clock: Arc::new(SystemClock::default()),
            random: Arc::new(SystemRandom::default()),
            options,
            portion: Arc::default(),
        }
    }

    /// Sets the clock, for deadlines and pauses. Default: [`SystemClock`].
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> FleetClient {
        self.clock = clock;
        self
    }

    /// The alarms of the instance `id`, by alarm ID, as far as they are durable.
    ///
    /// # Errors
    /// [`ContextError::Store`] if the store could not be read, [`ContextError::InvalidId`].
    pub async fn alarms(&self, interface: &str, id: &str) -> Result<Vec<Alarm>, ContextError> {
        let shard = self.shard_of(id)?;
        let name = InstanceName { interface: interface.into(), instance: id.into() };
        let client = self.store_client();
        let mut pages = client.range::<AlarmRow>(shard, name, ("".into(), None));
        let mut alarms = Vec::new();
        while let Some(rows) = pages.next(usize::MAX).await.map_err(ContextError::store)? {
            alarms.extend(rows.into_iter().map(|row| Alarm::new(Arc::new(row))));
        }
        Ok(alarms)
    }

    /// Keys and values of the storage of the instance `id` within a range, ascending by key, as far as they are durable.
    ///
    /// # Errors
    /// As [`alarms`](Self::alarms).
    pub async fn stored(
        &self,
        interface: &str,
        id: &str,
        range: impl Into<KeyRange>,
    ) -> Result<Vec<(Arc<str>, Bytes)>, ContextError> {
        let name = InstanceName { interface: interface.into(), instance: id.into() };
        range.into().read(&self.store_client(), self.shard_of(id)?, &name).await
    }

    /// At most `limit` alarms of all instances of an interface, after the one named by `after`: shard by shard, and within one in the
    /// order in which they fire. An alarm that is moved meanwhile may be seen twice, or not at all.
    ///
    /// # Errors
    /// [`ContextError::Store`] if the store could not be read.
    pub async fn all_alarms(
        &self,
        interface: &str,
        after: Option<&Alarm>,
        limit: usize,
    ) -> Result<Vec<Alarm>, ContextError> {
        alarm::list(&self.store_client(), &self.fleet, |_| true, interface, after, limit).await
    }

    /// The messages that wait in the inbox of the instance `id`, in the order of their arrival. Reads the inboxes of its shard.
    ///
    /// # Errors
    /// As [`alarms`](Self::alarms).
    pub async fn inbox(&self, interface: &str, id: &str) -> Result<Vec<Message>, ContextError> {
        let name = InstanceName { interface: interface.into(), instance: id.into() };
        inbox::waiting(&self.store_client(), self.shard_of(id)?, &name, Timestamp::MAX).await
    }

    /// The alarms, messages and directives of an interface that were given up, oldest first, at most `limit`, after the one named
    /// by `after`: of all shards.
    ///
    /// # Errors
    /// As [`alarms`](Self::alarms).
    pub async fn dead_letters(
        &self,
        interface: &str,
        after: Option<&Dead>,
        limit: usize,
    ) -> Result<Vec<Dead>, ContextError> {
        let shards = (0..self.fleet.shards()).map(ShardId).collect();
        dead::list(&self.store_client(), shards, interface, after, limit).await
    }

    /// Marks the host of this name, so that it gives its shards to the others and stays as a door to them, or takes the mark away; `false` if
    /// no such host holds a lease. For a [live](Fleet::live) fleet; the mark ends with the process.
    ///
    /// Of two calls, the later one counts, also if the first was not answered and reaches the store after it.
    ///
    /// # Errors
    /// [`ContextError::Store`] if the store could not be reached, or the members changed faster than they were read; repeating the call is safe.
    pub async fn cordon(&self, host: &str, is_cordoned: bool) -> Result<bool, ContextError> {
        let store = self.store_client().store;
        let mut done = Vec::new();
        for _ in 0..CORDON_TRIES {
            let members = store.members().await.map_err(ContextError::store)?;
            let is_next = |member: &&Member| *member.name == *host && !done.contains(&member.incarnation);
            let Some(next) = members.list.iter().find(is_next) else { return Ok(!done.is_empty()) };
            // Where another change was faster, the members are read again.
            if store.cordon(next.incarnation, is_cordoned, members.version).await.map_err(ContextError::store)? {
                done.push(next.incarnation);
            }
        }
        Err(ContextError::store(StoreError::NotApplied("the members change faster than they can be read".into())))
    }

    /// The hosts of the fleet that hold a lease, ascending by name.
    ///
    /// # Errors
    /// [`ContextError::Store`] if the store could not be read.
    pub async fn members(&self) -> Result<Vec<Member>, ContextError> {
        Ok(self.store_client().store.members().await.map_err(ContextError::store)?.list)
    }

    /// An interface of the fleet for a process that is none of its hosts, such as one of a web tier: requests, operations and connections go to the
    /// owners through `transport`, and wait, are repeated and fail as on a host that does not own the instance. It owns nothing, answers nobody, and
    /// holds no lease.
    ///
    /// ```no_run
    /// # use serde::{Deserialize, Serialize};
    /// # use stable_interfaces::{Context, ContextError, Fleet, FleetClient, Handle, StableInterface, transport::Transport};
    /// # struct Order;
    /// # impl StableInterface for Order {
    /// #     const NAME: &'static str = "order";
    /// #     type Error = ContextError;
    /// # }
    /// # #[derive(Serialize, Deserialize)]
    /// # struct Place { cents: u64 }
    /// # impl Handle<Place> for Order {
    /// #     type Reply = u64;
    /// #     async fn handle(&mut self, _: &mut Context, Place { cents }: Place) -> Result<u64, ContextError> { Ok(cents) }
    /// # }
    /// # async fn example(store: std::sync::Arc<dyn stable_interfaces::Store>, transport: impl Transport) -> Result<(), Box<dyn std::error::Error>> {
    /// let client = FleetClient::new(store, Fleet::live(1024)?);
    /// let orders = client.interface::<Order>(transport).name("web-1").forward::<Place>("place").open().await?;
    /// orders.request("17", Place { cents: 995 }).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn interface<I: StableInterface>(&self, transport: impl Transport) -> GuestBuilder<I> {
        let times = (self.clock.clone(), self.random.clone());
        GuestBuilder::new(self.fleet.clone(), self.store.clone(), times, Arc::new(transport))
    }

    /// Posts a message to the inbox of the instance `id`, as [`Interface::post`](crate::Interface::post) does.
    ///
    /// # Errors
    /// As there.
    pub async fn post(&self, interface: &str, id: &str, message: NewPost) -> Result<Posted, ContextError> {
        self.send(Addressed::post(interface, id, message)?).await
    }

    /// Posts a directive to the instance `id`: durable when this returns, and carried out by its owner when that gets it.
    ///
    /// # Errors
    /// As [`post`](Self::post).
    pub async fn direct(&self, interface: &str, id: &str, directive: Directive) -> Result<Posted, ContextError> {
        self.send(Addressed::directive(interface, id, directive)?).await
    }

    async fn send(&self, message: Addressed) -> Result<Posted, ContextError> {
        self.store_client().send(&self.fleet, message).await
    }

    fn store_client(&self) -> StoreClient<'_> {
        let store = Deadlines::new(self.store.clone(), self.clock.clone(), self.options.store_timeout);
        let (clock, random, options) = (&*self.clock, &*self.random, &self.options);
        StoreClient { store, clock, random, options, portion: &self.portion }
    }

    fn shard_of(&self, id: &str) -> Result<ShardId, ContextError> {
        self.fleet.shard_of(id).map_err(|reason| ContextError::invalid("instance ID", id, reason))
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
