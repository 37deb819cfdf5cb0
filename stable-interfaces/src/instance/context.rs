//! The operations of a handler besides changing its own memory: recording effects, and reading what is stored.
//!
//! *Memory is never ahead of the store.* With a handler's error everything that it recorded is dropped, and what it did to memory nobody
//! can undo; so the incarnation ends and the next one is built from what is stored, unless `Context::judge` finds that nothing was changed.

use std::any::Any;
use std::fmt::{self, Debug, Display};
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StableInterface;
use super::chain::Link;
use super::slot::Slot;
use super::task::{InstanceRef, Member};
use crate::alarm::{Alarm, check_alarm_id, encode_meta};
use crate::clock::{Clock, Random, Timestamp};
use crate::commit::committer::Commit;
use crate::commit::effects::{Effects, Mark, find_alarm, find_value};
use crate::commit::gate::Ticket;
use crate::commit::in_doubt::InDoubt;
use crate::connection::{AnyLink, Closed, ConnectionId};
use crate::directive::Needs;
use crate::error::{ContextError, Outcome, RequestError};
use crate::id::{InvalidId, MAX_VALUE_BYTES, check_key, own_bytes};
use crate::inbox::Message;
use crate::json;
use crate::quiet::{Quiet, drop_quietly, shown};
use crate::shards::wake::Wake;
use crate::shared::HostCore;
use crate::store::client::StoreClient;
use crate::store::{
    AlarmRow, Attempts, DeadKey, DeadLetter, Epoch, ExternalTransaction, InboxRow, InstanceName, NewMessage, Op,
    Posted, Read, ReadRange, ReadRows, Revision, ShardId, StoreError,
};
use crate::sync::{Arc, Mutex, OwnedSemaphorePermit};

/// How many rows a read asks the store for at once.
const READ_PAGE: usize = 512;

/// The instance a context belongs to, whatever its type.
pub(crate) trait Instance: Link {
    fn id(&self) -> &Arc<str>;
    fn shard(&self) -> ShardId;
    fn name(&self) -> InstanceName;
    fn host(&self) -> &Arc<HostCore>;
    fn require(&self, needs: Needs) -> Result<(), ContextError>;
    /// Commits that may not be durable yet, oldest first.
    fn unsettled(&self) -> Vec<Arc<Commit>>;
    /// Commits in the middle of a handler, and releases its outputs behind that.
    fn commit(self: Arc<Self>, epoch: Epoch, ops: Vec<Op>, outputs: Vec<Output>) -> Result<Ticket, ContextError>;
    /// Commits the mark that an alarm or message is about to be handled. The window is not shown it.
    fn commit_mark(&self, epoch: Epoch, mark: Op) -> Result<Ticket, ContextError>;
    /// The last commit of this incarnation that may not be durable yet.
    fn pending(&self) -> Option<Ticket>;
    /// Commits in the middle of a handler, with a transaction of somebody else; `completes` if what woke it is completed by that.
    fn commit_externally(
        self: Arc<Self>,
        epoch: Epoch,
        ops: Vec<Op>,
        completes: bool,
        transaction: Box<dyn ExternalTransaction>,
    ) -> Result<(Arc<Commit>, Ticket, Arc<InDoubt>), ContextError>;
    /// Notes that something of the turn under way is durable, or may be, beside its commits.
    fn note_durable(&self);
    /// Releases outputs whose effects are durable.
    fn let_out(self: Arc<Self>, outputs: Vec<Output>);
}

/// What a handler lets out besides its reply, in the order in which it did. It takes effect when the handler's effects are
/// queued for their commit, and reaches others when they are durable.
pub(crate) enum Output {
    /// Something for a client.
    Release(Box<dyn Release>),
    /// A new connection of the instance, until the instance has it.
    Connect(Option<(Arc<dyn AnyLink>, OwnedSemaphorePermit)>),
    /// The instance closes a connection.
    Disconnect(ConnectionId),
    /// Runs once everything is durable.
    AfterCommit(HandedOver<Box<dyn FnOnce() + Send>>),
    /// A task of the incarnation, started once everything is durable.
    Spawn(HandedOver<Box<dyn FnOnce(Arc<Member>) -> TaskFuture + Send>>),
}

/// Something for a client, on its way to it.
pub(crate) trait Release: Send {
    /// Hands it over, to be taken once what it depends on is durable. Called under the slot's lock, so whatever must be dropped or
    /// woken now stays in here.
    fn release(&mut self, behind: Option<Ticket>);

    /// Wakes whoever waits for it.
    fn wake(&mut self);
}

/// Something of the application that a task takes. Whoever has handed it over keeps it too, until no lock is held: should the
/// task be dropped at once, that does not drop the application's.
pub(crate) type HandedOver<T> = Arc<Mutex<Quiet<T>>>;

pub(crate) type TaskFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a handler is given beside its message.
///
/// Operations that change something only *record* it: they return at once, and fail only for what is wrong with their
/// arguments. When the handler returns `Ok`, all of it is committed as one, together with the completion of the alarm that
/// woke the instance, and then the reply is released. Reads see what this handler has recorded and everything that earlier
/// handlers of the instance committed.
///
/// ```
/// use std::time::Duration;
/// use stable_interfaces::{Context, ContextError};
///
/// async fn reserve(cx: &mut Context, item: &str) -> Result<usize, ContextError> {
///     cx.put(&format!("item/{item}"), &cx.now())?;
///     cx.set_alarm("release", cx.now() + Duration::from_secs(900), &item)?; // Recorded, like the item.
///     Ok(cx.list("item/").await?.len()) // Counts the item just recorded.
/// }
/// ```
pub struct Context {
    instance: Arc<dyn Instance>,
    epoch: Epoch,
    /// The alarm that woke the instance.
    pub(crate) alarm: Option<Arc<AlarmRow>>,
    pub(crate) recorded: Recorded,
}

/// What a handler leaves behind. Small, for it is moved around with the result of each handler.
#[derive(Default)]
pub(crate) struct Recorded(Option<Box<Rare>>);

/// What handlers that only change their memory do not need.
#[derive(Default)]
struct Rare {
    /// Whether anything was recorded, committed or not.
    has_recorded: bool,
    holds_alarm: bool,
    /// Whether the instance asked to leave memory.
    wants_passivation: bool,
    /// The state of its enlistments in transactions.
    enlisted: Enlisted,
    /// What its handler is to complete, until that is recorded or done.
    wake: Option<Wake>,
    effects: Effects,
    /// Never locked, only reached through `&mut`: outputs need not be `Sync`, and a shared `Context` must be.
    outputs: Mutex<Vec<Output>>,
    /// Why this incarnation ends with this turn, whatever comes of it.
    ends: Option<Closed>,
    /// Why `on_start` failed.
    failed_start: Option<String>,
    /// The error of the handler refuses one client that asked to be connected, and nobody else.
    refuses_client: bool,
    /// What the last read of the store failed with.
    failed_read: Option<Arc<StoreError>>,
    /// Whether the handler has made a part of its effects durable before its end.
    has_committed: bool,
}

/// The state of a handler's enlistments in transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Enlisted {
    /// None is under way.
    #[default]
    None,
    /// The effects are on their way into a transaction.
    UnderWay,
    /// One was the last commit, and has completed what woke the handler.
    Completed,
    /// The handler has turned away from one whose outcome it does not know: it must not succeed.
    Cut,
}

impl Recorded {
    /// Whether the handler did nothing but change its memory.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether anything was recorded, committed or not.
    pub(crate) fn has_recorded(&self) -> bool {
        self.0.as_ref().is_some_and(|rare| rare.has_recorded)
    }

    pub(crate) fn holds_alarm(&self) -> bool {
        self.0.as_ref().is_some_and(|rare| rare.holds_alarm)
    }

    /// Whether the instance asked to leave memory.
    pub(crate) fn wants_passivation(&self) -> bool {
        self.0.as_ref().is_some_and(|rare| rare.wants_passivation)
    }

    /// The operations recorded since the last commit.
    fn ops(&self) -> &[Op] {
        self.0.as_ref().map_or(&[], |rare| rare.effects.ops())
    }

    pub(crate) fn take_ops(&mut self) -> Vec<Op> {
        self.0.as_mut().map(|rare| rare.effects.take()).unwrap_or_default()
    }

    /// What the handler would let out, in order.
    pub(crate) fn outputs(&mut self) -> &[Output] {
        self.0.as_mut().map_or(&[], |rare| rare.outputs.get_mut().as_slice())
    }

    /// What the handler lets out, in order.
    pub(crate) fn take_outputs(&mut self) -> Vec<Output> {
        self.0.as_mut().map(|rare| std::mem::take(rare.outputs.get_mut())).unwrap_or_default()
    }

    /// Why this incarnation ends with this turn.
    pub(crate) fn take_end(&mut self) -> Option<Closed> {
        self.0.as_mut()?.ends.take()
    }

    /// Why `on_start` failed.
    pub(crate) fn take_failed_start(&mut self) -> Option<String> {
        self.0.as_mut()?.failed_start.take()
    }

    /// What the store refused the handler, if that is what the handler fails with, and nothing of it has happened: its error holds
    /// the store's own, which nobody else does but this.
    fn take_cause(&mut self) -> Option<Arc<StoreError>> {
        let rare = self.0.as_mut().filter(|rare| !rare.has_committed)?;
        rare.failed_read.take().filter(|error| Arc::strong_count(error) > 1)
    }

    fn rare(&mut self) -> &mut Rare {
        self.0.get_or_insert_default()
    }

    pub(crate) fn enlisted(&self) -> Enlisted {
        self.0.as_ref().map_or(Enlisted::None, |rare| rare.enlisted)
    }

    pub(crate) fn set_enlisted(&mut self, enlisted: Enlisted) {
        let rare = self.rare();
        rare.enlisted = enlisted;
        rare.has_recorded |= enlisted == Enlisted::Cut;
    }

    /// Whether more may be recorded.
    pub(crate) fn require_open(&self) -> Result<(), ContextError> {
        match self.enlisted() {
            Enlisted::None | Enlisted::UnderWay => Ok(()),
            Enlisted::Completed => {
                Err(ContextError::NotHere("an effect after the transaction that completed what woke the handler"))
            }
            Enlisted::Cut => Err(ContextError::Unknown),
        }
    }

    pub(crate) fn mark(&mut self) -> Mark {
        let rare = self.rare();
        Mark { ops: rare.effects.ops().len(), outputs: rare.outputs.get_mut().len(), has_recorded: rare.has_recorded }
    }

    /// Takes back what was recorded since.
    pub(crate) fn undo_to(&mut self, mark: &Mark) {
        let rare = self.rare();
        rare.has_recorded = mark.has_recorded;
        rare.effects.truncate(mark.ops);
        rare.outputs.get_mut().truncate(mark.outputs);
    }

    /// Puts operations back that were taken, and did not happen.
    pub(crate) fn restore(&mut self, ops: impl Iterator<Item = Op>) {
        for op in ops {
            self.rare().effects.record_own(op);
        }
    }
}

impl Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("instance", &self.instance).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Context {
    /// The most effects a handler may record between two commits.
    pub const MAX_EFFECTS: usize = crate::commit::effects::MAX_EFFECTS;
    /// The most bytes those effects may add up to.
    pub const MAX_EFFECT_BYTES: usize = crate::commit::effects::MAX_EFFECT_BYTES;

    pub(crate) fn new(instance: Arc<dyn Instance>, epoch: Epoch) -> Context {
        Context { instance, epoch, alarm: None, recorded: Recorded::default() }
    }

    /// Ends this incarnation with this turn, whatever comes of it.
    pub(crate) fn end(&mut self, reason: Closed) {
        self.recorded.rare().ends = Some(reason);
    }

    /// The ID of this instance.
    #[must_use]
    pub fn id(&self) -> &str {
        self.instance.id()
    }

    /// The name of the host this runs on.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.instance.host().name
    }

    /// The shard this instance belongs to.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.instance.shard()
    }

    /// The host's wall clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.instance.host().clock.now()
    }

    /// The host's clock, for what an instance does beside its handlers.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        self.instance.host().clock.share()
    }

    /// The host's source of random numbers.
    #[must_use]
    pub fn random(&self) -> Arc<dyn Random> {
        self.instance.host().random.share()
    }

    /// Tells whether all that this incarnation has committed before this turn is durable. What was there when it was built is in any case.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.instance.pending().is_none()
    }

    /// Sets the alarm `id` of this instance to fire at `at`, in place of any alarm with that ID.
    ///
    /// A time in the past fires at once. `meta` travels with it as JSON, at most [`MAX_VALUE_BYTES`] long. Setting an alarm from
    /// its own handler is how a recurring alarm is made.
    ///
    /// # Errors
    /// For an ID that cannot be one, for too large or unserializable `meta`, where the host has no store, and where the
    /// interface was registered without alarms. Nothing is recorded then.
    pub fn set_alarm(
        &mut self,
        id: &str,
        at: impl Into<Timestamp>,
        meta: &(impl Serialize + ?Sized),
    ) -> Result<(), ContextError> {
        let row = self.new_alarm(id, at.into(), || encode_meta(id, meta))?;
        self.record(Op::PutAlarm(row))
    }

    /// As [`set_alarm`](Self::set_alarm), with the meta as it is stored.
    pub(crate) fn set_encoded_alarm(&mut self, id: &str, at: Timestamp, meta: Bytes) -> Result<(), ContextError> {
        let row = self.new_alarm(id, at, || Ok(meta))?;
        self.record(Op::PutAlarm(row))
    }

    /// As [`set_alarm_if_absent`](Self::set_alarm_if_absent), with the meta as it is stored.
    pub(crate) async fn set_encoded_alarm_if_absent(
        &mut self,
        id: &str,
        at: Timestamp,
        meta: Bytes,
    ) -> Result<bool, ContextError> {
        let row = self.new_alarm(id, at, || Ok(meta))?;
        self.record_if_absent(row).await
    }

    /// As [`set_alarm`](Self::set_alarm), unless an alarm with that ID exists. Says whether it was set. The alarm that woke this
    /// handler does not count: it is about to be completed.
    ///
    /// # Errors
    /// As [`set_alarm`](Self::set_alarm), and [`ContextError::Store`] if the store could not be read.
    pub async fn set_alarm_if_absent(
        &mut self,
        id: &str,
        at: impl Into<Timestamp> + Send,
        meta: &(impl Serialize + Sync + ?Sized),
    ) -> Result<bool, ContextError> {
        let row = self.new_alarm(id, at.into(), || encode_meta(id, meta))?;
        self.record_if_absent(row).await
    }

    async fn record_if_absent(&mut self, row: AlarmRow) -> Result<bool, ContextError> {
        let id = row.id.clone();
        let found = self.find_alarm(&id).await?;
        // The alarm that woke the handler is on its way out.
        let is_leaving = |found: &AlarmRow| {
            self.alarm.as_ref().is_some_and(|own| own.id == id && own.revision == found.revision)
                && !self.recorded.holds_alarm()
        };
        if found.is_some_and(|found| !is_leaving(&found)) {
            return Ok(false);
        }
        self.record(Op::PutAlarm(row))?;
        Ok(true)
    }

    fn new_alarm(
        &self,
        id: &str,
        at: Timestamp,
        meta: impl FnOnce() -> Result<Bytes, ContextError>,
    ) -> Result<AlarmRow, ContextError> {
        self.require(Needs::Alarms)?;
        check_alarm_id(id)?;
        let meta = meta()?;
        self.require_store()?;
        Ok(self.fresh_alarm(id, at, meta))
    }

    /// An alarm that has never fired.
    fn fresh_alarm(&self, id: &str, due: Timestamp, meta: Bytes) -> AlarmRow {
        AlarmRow {
            name: self.instance.name(),
            id: id.into(),
            due,
            scheduled_at: due,
            revision: self.next_revision(),
            attempts: Attempts::default(),
            meta,
        }
    }

    /// Cancels the alarm `id` of this instance, if it exists.
    ///
    /// # Errors
    /// For an ID that cannot be one, and where the host has no store.
    pub fn cancel_alarm(&mut self, id: &str) -> Result<(), ContextError> {
        check_alarm_id(id)?;
        let revision = self.next_revision();
        self.record(Op::RemoveAlarm { name: self.instance.name(), id: id.into(), revision })
    }

    /// All alarms of this instance, by ID.
    ///
    /// # Errors
    /// [`ContextError::Store`] if the store could not be read.
    pub async fn alarms(&mut self) -> Result<Vec<Alarm>, ContextError> {
        let rows = self.read_alarms(&KeyRange::all()).await?;
        Ok(rows.into_iter().map(|row| Alarm::new(Arc::new(row))).collect())
    }

    /// The alarm that woke this instance stays as it is although its handler succeeds, until the instance sets or cancels it.
    ///
    /// It fires again when this incarnation of the instance ends in any way before that. Does nothing outside
    /// [`OnAlarm::on_alarm`](crate::OnAlarm::on_alarm).
    pub fn hold_alarm(&mut self) {
        self.recorded.rare().holds_alarm = self.alarm.is_some();
    }

    /// Stores `value` as JSON under `key` in this instance's storage.
    ///
    /// # Errors
    /// For a key that cannot be one (see [`check_key`]), for a value over [`MAX_VALUE_BYTES`], for one that cannot be JSON that is read
    /// again (a number that is not finite, more than 127 lists and objects within each other), and where the host has no store. Nothing
    /// is recorded then.
    pub fn put(&mut self, key: &str, value: &(impl Serialize + ?Sized)) -> Result<(), ContextError> {
        let value = json::to_vec(value).map_err(|error| ContextError::not_json(self.value_under(key), error))?;
        self.put_bytes(key, value)
    }

    /// Stores bytes as they are under `key` in this instance's storage.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_bytes(&mut self, key: &str, value: impl Into<Bytes>) -> Result<(), ContextError> {
        check_key(key).map_err(|reason| invalid_key(key, reason))?;
        let value = value.into();
        if value.len() > MAX_VALUE_BYTES {
            return Err(ContextError::too_large(self.value_under(key), value.len()));
        }
        self.record(Op::Put { name: self.instance.name(), key: key.into(), value: own_bytes(value) })
    }

    /// Removes `key` from this instance's storage, if it is there.
    ///
    /// # Errors
    /// For a key that cannot be one, and where the host has no store.
    pub fn delete(&mut self, key: &str) -> Result<(), ContextError> {
        check_key(key).map_err(|reason| invalid_key(key, reason))?;
        self.record(Op::Delete { name: self.instance.name(), key: key.into() })
    }

    /// The value under `key` in this instance's storage, from JSON.
    ///
    /// # Errors
    /// [`ContextError::Json`] if it is not a `T`, [`ContextError::Store`] if the store could not be read, and as
    /// [`delete`](Self::delete).
    pub async fn get<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, ContextError> {
        match self.get_bytes(key).await? {
            Some(value) => {
                let value = serde_json::from_slice(&value);
                Ok(Some(value.map_err(|error| ContextError::not_a::<T>(self.value_under(key), error))?))
            }
            None => Ok(None),
        }
    }

    /// Names a value for a person.
    fn value_under(&self, key: &str) -> String {
        format!("the value of {} under {key:?}", self.instance.name())
    }

    /// The bytes under `key` in this instance's storage.
    ///
    /// # Errors
    /// As [`get`](Self::get), without [`ContextError::Json`].
    pub async fn get_bytes(&mut self, key: &str) -> Result<Option<Bytes>, ContextError> {
        check_key(key).map_err(|reason| invalid_key(key, reason))?;
        self.require_store()?;
        if let Some(found) = find_value(self.recorded.ops().iter(), key) {
            return Ok(found);
        }
        let unsettled = self.instance.unsettled();
        if let Some(found) = find_value(unsettled.iter().flat_map(|commit| &commit.ops), key) {
            return Ok(found);
        }
        let rows = self.read(ReadRange::Storage(key.into(), Some(just_after(key))), 1).await?;
        match rows {
            ReadRows::Storage(rows) => Ok(rows.into_iter().next().map(|(_, value)| value)),
            ReadRows::Alarms(_) => Err(wrong_rows()),
        }
    }

    /// Keys and values of this instance's storage within a range, ascending by key: `cx.list("item/")` lists by prefix,
    /// [`KeyRange`] does the rest.
    ///
    /// # Errors
    /// [`ContextError::Store`] if the store could not be read, [`ContextError::NoStore`] if there is none.
    pub async fn list(&mut self, range: impl Into<KeyRange> + Send) -> Result<Vec<(Arc<str>, Bytes)>, ContextError> {
        self.require_store()?;
        let range = range.into();
        // Taken before the read begins: what is durable by then is read, what is not is in here.
        let unsettled = self.instance.unsettled();
        let mut rows = std::collections::BTreeMap::new();
        let mut from = range.from.clone();
        // Each key deleted since may be one of those read.
        let is_deletion = |op: &&Op| matches!(op, Op::Delete { key, .. } if range.contains(key));
        let deleted = unsettled.iter().flat_map(|commit| &commit.ops).filter(is_deletion).count()
            + self.recorded.ops().iter().filter(is_deletion).count();
        let most = range.limit.saturating_add(deleted);
        while rows.len() < most && range.limit > 0 {
            let page = ReadRange::Storage(from.clone(), range.to.clone());
            let asked = READ_PAGE.min(most - rows.len());
            let ReadRows::Storage(page) = self.read(page, asked).await? else { return Err(wrong_rows()) };
            let is_last = page.len() < asked;
            if let Some((last, _)) = page.last() {
                from = just_after(last);
            }
            rows.extend(page);
            if is_last {
                break;
            }
        }
        for op in unsettled.iter().flat_map(|commit| &commit.ops).chain(self.recorded.ops()) {
            match op {
                Op::Put { key, value, .. } if range.contains(key) => drop(rows.insert(key.clone(), value.clone())),
                Op::Delete { key, .. } => drop(rows.remove(key)),
                _ => {}
            }
        }
        Ok(rows.into_iter().take(range.limit).collect())
    }

    /// The messages that wait in this instance's inbox, as the store has them: in the order of their arrival, and those among them
    /// that are on their way to it. Reads the inboxes of its shard.
    ///
    /// For an alarm that must not outrun a message: one that was acknowledged before this is called is in here, or has been handled.
    ///
    /// # Errors
    /// [`ContextError::Store`] if the store could not be read, [`ContextError::NoStore`] if there is none.
    pub async fn inbox(&mut self) -> Result<Vec<Message>, ContextError> {
        let client = self.instance.host().store_client().ok_or(ContextError::NoStore)?;
        crate::inbox::waiting(&client, self.instance.shard(), &self.instance.name()).await
    }

    /// Makes what was recorded so far durable now, in the middle of the handler, with everything that earlier handlers of this
    /// instance have under way.
    ///
    /// For before an effect outside the store that must not outrun it, such as calling another service. The handler may be
    /// run again with that part done: the completion of its alarm belongs to its last commit. With nothing recorded it is a
    /// barrier all the same: when this returns `Ok`, whatever this incarnation has ever committed is durable.
    ///
    /// # Errors
    /// [`ContextError::Fenced`], [`ContextError::Store`] or [`ContextError::Unknown`] if this commit failed, or any before it:
    /// return it with `?`; the instance is reset when the handler ends.
    pub async fn commit(&mut self) -> Result<(), ContextError> {
        if self.recorded.enlisted() == Enlisted::UnderWay {
            return Err(ContextError::NotHere("a commit inside a transaction"));
        }
        if self.recorded.ops().is_empty() {
            return match self.pending() {
                Some(ticket) => Ok(ticket.wait().await?),
                None => Ok(()),
            };
        }
        self.recorded.rare().has_committed = true;
        let outputs = self.recorded.take_outputs();
        let ticket = self.instance.clone().commit(self.epoch, self.recorded.take_ops(), outputs)?;
        Ok(ticket.wait().await?)
    }

    /// Asks for this instance to leave memory when the messages that wait already are handled. Its connections are closed, its
    /// tasks cancelled, its [`on_stop`](crate::StableInterface::on_stop) is run; the next message builds it anew.
    pub fn passivate(&mut self) {
        self.recorded.rare().wants_passivation = true;
    }

    /// Runs `notify` when this handler's effects are durable; never if they do not become so.
    ///
    /// The way to tell a task of this instance, or anything else in this process, about what has happened. It must not block.
    pub fn after_commit(&mut self, notify: impl FnOnce() + Send + 'static) {
        self.output(Output::AfterCommit(hand_over(Box::new(notify))));
    }

    /// Starts a task that belongs to this incarnation of the instance: cancelled, and waited for, before the next one is built
    /// and when the instance leaves memory or its host. It starts when this handler's effects are durable.
    ///
    /// ```
    /// # use stable_interfaces::{Context, ContextError, Handle, InstanceRef, StableInterface};
    /// # struct Feed { seen: u64 }
    /// # impl StableInterface for Feed { const NAME: &'static str = "feed"; type Error = ContextError; }
    /// # struct Follow;
    /// # async fn next_event() -> u64 { 1 }
    /// impl Handle<Follow> for Feed {
    ///     type Reply = ();
    ///     async fn handle(&mut self, cx: &mut Context, _: Follow) -> Result<(), ContextError> {
    ///         cx.spawn(|me: InstanceRef<Feed>| async move {
    ///             loop {
    ///                 let event = next_event().await;
    ///                 let handled = me.turn(move |feed, cx| {
    ///                     cx.put("seen", &(feed.seen + event))?;
    ///                     feed.seen += event;
    ///                     Ok(())
    ///                 });
    ///                 if handled.await.is_err() {
    ///                     return;
    ///                 }
    ///             }
    ///         })
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// [`ContextError::Unhandled`] if `I` is not the interface this context belongs to.
    pub fn spawn<I, F>(&mut self, task: impl FnOnce(InstanceRef<I>) -> F + Send + 'static) -> Result<(), ContextError>
    where
        I: StableInterface,
        F: Future<Output = ()> + Send + 'static,
    {
        let slot = self.slot::<I>().ok_or(ContextError::Unhandled("tasks of another interface".into()))?;
        self.output(Output::Spawn(hand_over(Box::new(move |member| Box::pin(task(InstanceRef::new(slot, member)))))));
        Ok(())
    }

    /// The slot of this instance, if it is an `I`.
    pub(crate) fn slot<I: StableInterface>(&self) -> Option<Arc<Slot<I>>> {
        (self.instance.clone() as Arc<dyn Any + Send + Sync>).downcast().ok()
    }

    pub(crate) fn output(&mut self, output: Output) {
        self.recorded.rare().outputs.get_mut().push(output);
        self.recorded.rare().has_recorded = true;
    }

    fn record(&mut self, op: Op) -> Result<(), ContextError> {
        self.require_store()?;
        self.recorded.require_open()?;
        self.recorded.rare().effects.record(op)?;
        self.recorded.rare().has_recorded = true;
        Ok(())
    }

    pub(crate) fn require_store(&self) -> Result<(), ContextError> {
        if self.instance.host().committer().is_some() { Ok(()) } else { Err(ContextError::NoStore) }
    }

    /// Asked before a handler that has waited for something.
    pub(crate) fn require_lease<E>(&self) -> Outcome<(), E> {
        if self.instance.host().lease_holds() { Ok(()) } else { Err(RequestError::LeaseLost.into()) }
    }

    pub(crate) fn note_failed_start(&mut self, error: &impl Display) {
        self.recorded.rare().failed_start = Some(shown(error));
    }

    async fn read(&mut self, range: ReadRange, limit: usize) -> Result<ReadRows, ContextError> {
        let read = Read { shard: self.shard(), name: self.instance.name(), range, limit };
        self.instance.host().read(&read).await.map_err(|error| {
            let error = Arc::new(error);
            self.recorded.rare().failed_read = Some(error.clone());
            ContextError::Store(error)
        })
    }

    /// Notes that an error of the handler under way refuses the client that asks to be connected.
    pub(crate) fn note_refusal(&mut self) {
        self.recorded.rare().refuses_client = true;
    }

    /// Decides about a handler that failed, or was refused: the instance is rebuilt from what is stored unless its memory is as it
    /// was. What the store refused the handler, and it passes on, is the store's failure as that of a commit is: the caller is told
    /// what to do about it, whatever error the interface wraps it in.
    ///
    /// Asks the application, so a panic in here has to count as one of the handler.
    pub(crate) fn judge<I: StableInterface, R>(&mut self, result: Outcome<R, I::Error>) -> Outcome<R, I::Error> {
        // Dropped quietly if that panics.
        let asked = Quiet::new(result);
        if let Some(Err(error)) = asked.as_ref()
            && self.must_rebuild::<I>(error)
        {
            self.recorded.rare().ends.get_or_insert(Closed::Reset);
        }
        match asked.into_inner().expect("the outcome is there until it is returned") {
            Err(error) if matches!(*error, RequestError::Handler(..)) => match self.recorded.take_cause() {
                Some(cause) => {
                    drop_quietly(error);
                    Err(RequestError::Store(cause).into())
                }
                None => Err(error),
            },
            result => result,
        }
    }

    /// Tells whether the memory of the instance may be ahead of the store after this error.
    fn must_rebuild<I: StableInterface>(&self, error: &RequestError<I::Error>) -> bool {
        // Without a store there is nothing to rebuild an instance from.
        if self.require_store().is_err() {
            return false;
        }
        match error {
            RequestError::Handler(error, _) if self.recorded.enlisted() != Enlisted::Cut => {
                let refuses_client = self.recorded.0.as_ref().is_some_and(|rare| rare.refuses_client);
                (self.recorded.has_recorded() || !refuses_client) && !I::keeps_memory(error)
            }
            _ => self.recorded.has_recorded(),
        }
    }

    async fn read_alarms(&mut self, range: &KeyRange) -> Result<Vec<AlarmRow>, ContextError> {
        self.require_store()?;
        let unsettled = self.instance.unsettled();
        let mut rows = std::collections::BTreeMap::new();
        let mut from = range.from.clone();
        loop {
            let page = ReadRange::Alarms(from.clone(), range.to.clone());
            let ReadRows::Alarms(page) = self.read(page, READ_PAGE).await? else { return Err(wrong_rows()) };
            let is_last = page.len() < READ_PAGE;
            if let Some(last) = page.last() {
                from = just_after(&last.id);
            }
            rows.extend(page.into_iter().map(|row| (row.id.clone(), row)));
            if is_last {
                break;
            }
        }
        for op in unsettled.iter().flat_map(|commit| &commit.ops).chain(self.recorded.ops()) {
            match op {
                // The read may have seen a later commit than this one, of which it is the overlay.
                Op::PutAlarm(row)
                    if range.contains(&row.id)
                        && rows.get(&row.id).is_none_or(|found| found.revision <= row.revision) =>
                {
                    rows.insert(row.id.clone(), row.clone());
                }
                Op::RemoveAlarm { id, revision, .. }
                    if rows.get(id).is_some_and(|found| found.revision <= *revision) =>
                {
                    rows.remove(id);
                }
                _ => {}
            }
        }
        Ok(rows.into_values().collect())
    }

    pub(crate) async fn find_alarm(&mut self, id: &str) -> Result<Option<AlarmRow>, ContextError> {
        let range = KeyRange { from: id.into(), to: Some(just_after(id)), limit: 1 };
        Ok(self.read_alarms(&range).await?.into_iter().next())
    }

    /// Refuses what the interface was registered without: it would be stored, and never handled.
    pub(crate) fn require(&self, needs: Needs) -> Result<(), ContextError> {
        self.instance.require(needs)
    }

    /// Makes the alarm `id` of this instance due at once. Says whether there is one.
    ///
    /// # Errors
    /// As [`alarms`](Self::alarms), for an ID that cannot be one, and where the interface was registered without alarms.
    pub async fn fire_now(&mut self, id: &str) -> Result<bool, ContextError> {
        self.require(Needs::Alarms)?;
        check_alarm_id(id)?;
        let Some(row) = self.find_alarm(id).await? else { return Ok(false) };
        let revision = self.next_revision();
        let now = self.now();
        // Marked by a process that died of it, unless its handler is this one.
        let is_own = self.alarm.as_ref().is_some_and(|own| *own.id == *id);
        let attempts = if is_own { Attempts { started: false, ..row.attempts } } else { row.attempts.unmarked() };
        self.record(Op::PutAlarm(AlarmRow { due: row.due.min(now), revision, attempts, ..row }))?;
        Ok(true)
    }

    /// Sets the alarm `id` as it was when a store lost it, unless a setting under this epoch is newer. Says whether it did.
    pub(crate) async fn restore_alarm(
        &mut self,
        id: &str,
        due: Timestamp,
        scheduled_at: Timestamp,
        attempt: u32,
        meta: Bytes,
    ) -> Result<bool, ContextError> {
        let found = self.find_alarm(id).await?;
        if found.is_some_and(|row| row.revision.epoch == self.epoch) {
            return Ok(false);
        }
        let attempts = Attempts { failed: attempt, ..Attempts::default() };
        let row = AlarmRow { scheduled_at, attempts, ..self.fresh_alarm(id, due, meta) };
        self.record(Op::PutAlarm(row))?;
        Ok(true)
    }

    /// Whether this setting of the alarm is still the live one: not moved, cancelled or completed since it was taken to fire.
    pub(crate) fn is_live(&self, alarm: &AlarmRow) -> bool {
        // Unsettled commits first: what settles meanwhile has reached the window before it leaves this list.
        let unsettled = self.instance.unsettled();
        let ops = unsettled.iter().flat_map(|commit| &commit.ops);
        let is_this = |row: &AlarmRow| row.revision == alarm.revision && row.attempts.failed == alarm.attempts.failed;
        find_alarm(ops, &alarm.id).is_none_or(|found| found.is_some_and(is_this))
            && self.instance.host().shards.is_firing(self.shard(), self.epoch, alarm)
    }

    /// The handler of what woke the instance has succeeded: records its completion, unless an enlistment was that. A newer setting of
    /// an alarm, by this handler or while it ran, has a greater revision and outlives it.
    pub(crate) fn complete(&mut self) {
        if let Some(wake) = self.completion() {
            self.recorded.rare().effects.record_own(wake.done());
        }
    }

    /// What this handler is to complete, if it is not done and not held.
    pub(crate) fn completion(&self) -> Option<Wake> {
        let rare = self.recorded.0.as_ref()?;
        rare.wake.clone().filter(|_| !rare.holds_alarm)
    }

    /// The handler of what woke the instance begins, and is to complete it. Not before: nothing that `on_start` does completes it.
    pub(crate) fn begin_handler_of(&mut self, wake: Wake) {
        self.recorded.rare().wake = Some(wake);
    }

    /// An enlistment has become durable; `completed` if what woke the handler is completed by it.
    pub(crate) fn enlistment_committed(&mut self, completed: bool) {
        let rare = self.recorded.rare();
        rare.has_recorded = true;
        rare.has_committed = true;
        rare.enlisted = Enlisted::None;
        if completed {
            rare.wake = None;
            rare.enlisted = Enlisted::Completed;
        }
        let outputs = self.recorded.take_outputs();
        self.instance.clone().let_out(outputs);
    }

    /// Commits with a transaction of somebody else.
    pub(crate) fn commit_externally(
        &self,
        ops: Vec<Op>,
        completes: bool,
        transaction: Box<dyn ExternalTransaction>,
    ) -> Result<(Arc<Commit>, Ticket, Arc<InDoubt>), ContextError> {
        self.instance.clone().commit_externally(self.epoch, ops, completes, transaction)
    }

    /// The last commit of this incarnation that may not be durable yet.
    pub(crate) fn pending(&self) -> Option<Ticket> {
        self.instance.pending()
    }

    pub(crate) fn host_core(&self) -> &HostCore {
        self.instance.host()
    }

    /// Marks what woke the instance in the store, so that a process that dies of it is known by it.
    pub(crate) async fn mark_started(&mut self, wake: &Wake) -> Result<(), ContextError> {
        let ticket = self.instance.commit_mark(self.epoch, wake.mark())?;
        Ok(ticket.wait().await?)
    }

    /// The revision of an alarm that is set now.
    pub(crate) fn next_revision(&self) -> Revision {
        self.instance.host().shards.next_revision(self.shard(), self.epoch)
    }

    /// The dead letter with this very key, if it is still there.
    pub(crate) async fn find_dead(&self, key: &DeadKey) -> Result<Option<DeadLetter>, ContextError> {
        let is_removed = |op: &Op| matches!(op, Op::RemoveDead(removed) if removed == key);
        if self.instance.unsettled().iter().flat_map(|commit| &commit.ops).any(is_removed) {
            return Ok(None);
        }
        crate::dead::find(self.instance.host(), self.shard(), key).await
    }

    /// Posts a message of this instance's dead letters to its inbox again. Says whether that was done: not while another with its
    /// ID is there.
    pub(crate) async fn post_again(&self, row: &InboxRow) -> Result<bool, ContextError> {
        let message = NewMessage {
            shard: self.shard(),
            name: row.name.clone(),
            id: row.id.clone(),
            headers: row.headers.clone(),
            body: row.body.clone(),
        };
        // From here on it may be there, whatever becomes of the commit that takes the dead letter away.
        self.instance.note_durable();
        let posted = self.instance.host().post_row(message).await?;
        Ok(posted == Posted::Inserted)
    }

    /// Records an operation that the library itself decided.
    pub(crate) fn record_own(&mut self, op: Op) {
        self.recorded.rare().effects.record_own(op);
        self.recorded.rare().has_recorded = true;
    }
}

/// A range of storage keys, and how many of them at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    from: Arc<str>,
    to: Option<Arc<str>>,
    limit: usize,
}

impl KeyRange {
    /// Every key.
    #[must_use]
    pub fn all() -> KeyRange {
        KeyRange { from: "".into(), to: None, limit: usize::MAX }
    }

    /// Every key that starts with `prefix`.
    #[must_use]
    pub fn prefix(prefix: &str) -> KeyRange {
        // The next text after all with this prefix: its last character that can be raised is.
        let mut end = prefix.to_owned();
        let to = loop {
            match end.pop() {
                None => break None,
                Some(last) => {
                    if let Some(raised) = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32) {
                        end.push(raised);
                        break Some(end.into());
                    }
                }
            }
        };
        KeyRange { from: prefix.into(), to, limit: usize::MAX }
    }

    /// At most `limit` keys, the first ones.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> KeyRange {
        self.limit = limit;
        self
    }

    /// Reads what is stored under these keys of an instance, in pages.
    pub(crate) async fn read(
        &self,
        client: &StoreClient<'_>,
        shard: ShardId,
        name: &InstanceName,
    ) -> Result<Vec<(Arc<str>, Bytes)>, ContextError> {
        let (mut found, mut from) = (Vec::new(), self.from.clone());
        while found.len() < self.limit {
            let limit = READ_PAGE.min(self.limit - found.len());
            let read = Read { shard, name: name.clone(), range: ReadRange::Storage(from, self.to.clone()), limit };
            let ReadRows::Storage(rows) = client.read(&read).await.map_err(ContextError::store)? else {
                return Err(wrong_rows());
            };
            let is_last = rows.len() < limit;
            found.extend(rows);
            match found.last() {
                Some((last, _)) if !is_last => from = just_after(last),
                _ => break,
            }
        }
        Ok(found)
    }

    fn contains(&self, key: &str) -> bool {
        *self.from <= *key && self.to.as_deref().is_none_or(|to| key < to)
    }
}

impl From<&str> for KeyRange {
    /// By prefix.
    fn from(prefix: &str) -> KeyRange {
        KeyRange::prefix(prefix)
    }
}

impl From<Range<&str>> for KeyRange {
    fn from(range: Range<&str>) -> KeyRange {
        KeyRange { from: range.start.into(), to: Some(range.end.into()), limit: usize::MAX }
    }
}

/// The smallest text greater than this one, given that NUL is in none.
pub(crate) fn just_after(text: &str) -> Arc<str> {
    format!("{text}\u{1}").into()
}

fn hand_over<T>(value: T) -> HandedOver<T> {
    Arc::new(Mutex::new(Quiet::new(value)))
}

fn invalid_key(key: &str, reason: InvalidId) -> ContextError {
    ContextError::invalid("storage key", key, reason)
}

fn wrong_rows() -> ContextError {
    ContextError::store(StoreError::Rejected("the store answered with rows of another kind".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_range_holds_exactly_the_keys_with_that_prefix() {
        let range = KeyRange::prefix("item/");
        assert!(range.contains("item/") && range.contains("item/\u{10ffff}x"));
        assert!(!range.contains("item") && !range.contains("item0"));
        assert_eq!(KeyRange::prefix("\u{10ffff}").to, None);
        assert_eq!(KeyRange::prefix("a\u{d7ff}").to.as_deref(), Some("a\u{e000}"));
    }

    #[test]
    fn just_after_is_the_very_next_key() {
        assert!("a" < &*just_after("a") && *just_after("a") < *"a\u{1}a");
    }
}
