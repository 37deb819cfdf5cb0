//! The operations of a handler besides changing its own memory: recording effects, and reading what is stored.
//!
//! *Memory is never ahead of the store.* With a handler's error everything that it recorded is dropped, and what it did to memory nobody
//! can undo; so the incarnation ends and the next one is built from what is stored, unless `Context::judge` finds that nothing was changed.

mod reads;

use std::convert::identity;
use std::fmt::{self, Debug, Display};

use bytes::Bytes;
use serde::Serialize;

pub(crate) use self::reads::{Most, is_live};
use super::StableInterface;
use super::chain::ChainLink;
use crate::alarm::{check_alarm_id, encode_meta};
use crate::clock::{Clock, Random, Timestamp};
use crate::commit::committer::Commit;
use crate::commit::gate::Ticket;
use crate::commit::in_doubt::InDoubt;
use crate::connection::Closed;
use crate::directive::Needs;
use crate::error::{ContextError, Outcome, RequestError};
use crate::id::{InvalidId, MAX_VALUE_BYTES, check_key, own_bytes};
use crate::inbox::Message;
use crate::instance::recorded::{Enlisted, Output, Recorded, hand_over};
use crate::json;
use crate::quiet::{Quiet, drop_quietly, shown};
use crate::shards::wake::Wake;
use crate::shared::HostCore;
use crate::store::{AlarmRow, Attempts, Epoch, ExternalTransaction, InstanceName, Op, Revision, ShardId};
use crate::sync::Arc;

/// The instance a context belongs to, whatever its type.
pub(crate) trait Instance: ChainLink {
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
    fn commit_mark(self: Arc<Self>, epoch: Epoch, mark: Op) -> Result<Ticket, ContextError>;
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

/// The context that a handler is given beside its message.
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
        self.recorded.cold().ends = Some(reason);
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

    /// The number of processes that died while the alarm or message that runs now was being handled; 0 for a request. So long as there are fewer
    /// than [`max_crashes`](crate::InterfaceBuilder::max_crashes), it is handled again. Known in
    /// [`on_start`](crate::StableInterface::on_start) too.
    #[must_use]
    pub fn crashes(&self) -> u32 {
        self.recorded.crashes()
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
    pub(crate) fn fresh_alarm(&self, id: &str, due: Timestamp, meta: Bytes) -> AlarmRow {
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

    /// The alarm that woke this instance stays as it is although its handler succeeds, until the instance sets or cancels it.
    ///
    /// It fires again when this incarnation of the instance ends in any way before that. Does nothing outside
    /// [`OnAlarm::on_alarm`](crate::OnAlarm::on_alarm).
    pub fn hold_alarm(&mut self) {
        self.recorded.cold().holds_alarm = self.alarm.is_some();
    }

    /// Stores `value` as JSON under `key` in this instance's storage.
    ///
    /// # Errors
    /// For a key that cannot be one (see [`check_key`]), for a value over [`MAX_VALUE_BYTES`], for one that cannot be JSON that is read
    /// again (a number that is not finite, more than 127 lists and objects within each other), and where the host has no store. Nothing
    /// is recorded then.
    pub fn put(&mut self, key: &str, value: &(impl Serialize + ?Sized)) -> Result<(), ContextError> {
        let value = json::to_vec(value).map_err(|error| ContextError::not_json(self.value_under(key), error))?;
        self.put_value(key, value.into(), identity)
    }

    /// Stores bytes as they are under `key` in this instance's storage.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_bytes(&mut self, key: &str, value: impl Into<Bytes>) -> Result<(), ContextError> {
        self.put_value(key, value.into(), own_bytes)
    }

    /// Stores a value, made the library's own if it is not.
    fn put_value(&mut self, key: &str, value: Bytes, own: fn(Bytes) -> Bytes) -> Result<(), ContextError> {
        check_key(key).map_err(|reason| invalid_key(key, reason))?;
        if value.len() > MAX_VALUE_BYTES {
            return Err(ContextError::too_large(self.value_under(key), value.len()));
        }
        self.record(Op::Put { name: self.instance.name(), key: key.into(), value: own(value) })
    }

    /// Removes `key` from this instance's storage, if it is there.
    ///
    /// # Errors
    /// For a key that cannot be one, and where the host has no store.
    pub fn delete(&mut self, key: &str) -> Result<(), ContextError> {
        check_key(key).map_err(|reason| invalid_key(key, reason))?;
        self.record(Op::Delete { name: self.instance.name(), key: key.into() })
    }

    /// The messages that wait in this instance's inbox, as the store has them: in the order of their arrival, and those among them
    /// that are on their way to it. Reads the inboxes of its shard.
    ///
    /// For an alarm that must not outrun a message: one that was acknowledged before this is called is in here, or has been handled.
    ///
    /// # Errors
    /// [`ContextError::Store`] if the store could not be read, [`ContextError::NoStore`] if there is none.
    pub async fn inbox(&mut self) -> Result<Vec<Message>, ContextError> {
        self.inbox_until(Timestamp::MAX).await
    }

    /// As [`inbox`](Self::inbox), without what arrived later than `arrived`, and reading no further: for a message that must not outrun those before it.
    ///
    /// # Errors
    /// As [`inbox`](Self::inbox).
    pub async fn inbox_until(&mut self, arrived: Timestamp) -> Result<Vec<Message>, ContextError> {
        let client = self.instance.host().store_client().ok_or(ContextError::NoStore)?;
        crate::inbox::waiting(&client, self.instance.shard(), &self.instance.name(), arrived).await
    }

    /// Tells whether messages that were acknowledged before may not have come to this instance yet: then [`inbox`](Self::inbox) is worth a look for what must
    /// not outrun them. `false` asks no store: the host is the only one of its fleet, and has handled what there was. It hears of what a [`FleetClient`](crate::FleetClient) of another process
    /// posts a moment after that was acknowledged.
    #[must_use]
    pub fn may_have_messages(&self) -> bool {
        let host = self.instance.host();
        let is_alone = !host.fleet.is_live() && host.fleet.hosts().len() == 1;
        !(is_alone && host.shards.is_through_inbox(self.instance.shard(), self.epoch))
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
            return Err(ContextError::NotHere("a commit inside a transaction".into()));
        }
        if self.recorded.ops().is_empty() {
            return match self.pending() {
                Some(ticket) => Ok(ticket.wait().await?),
                None => Ok(()),
            };
        }
        self.recorded.cold().has_committed = true;
        let outputs = self.recorded.take_outputs();
        let ticket = self.instance.clone().commit(self.epoch, self.recorded.take_ops(), outputs)?;
        Ok(ticket.wait().await?)
    }

    /// Asks for this instance to leave memory when the messages that wait already are handled. Its connections are closed, its
    /// tasks cancelled, its [`on_stop`](crate::StableInterface::on_stop) is run; the next message builds it anew.
    pub fn passivate(&mut self) {
        self.recorded.cold().wants_passivation = true;
    }

    /// Runs `notify` when this handler's effects are durable; never if they do not become so.
    ///
    /// The way to tell a task of this instance, or anything else in this process, about what has happened. It must not block.
    pub fn after_commit(&mut self, notify: impl FnOnce() + Send + 'static) {
        self.output(Output::AfterCommit(hand_over(Box::new(notify))));
    }

    pub(crate) fn output(&mut self, output: Output) {
        self.recorded.cold().outputs.get_mut().push(output);
        self.recorded.cold().has_recorded = true;
    }

    pub(crate) fn record(&mut self, op: Op) -> Result<(), ContextError> {
        self.require_store()?;
        self.recorded.require_open()?;
        self.recorded.cold().effects.record(op)?;
        self.recorded.cold().has_recorded = true;
        Ok(())
    }

    pub(crate) fn require_store(&self) -> Result<(), ContextError> {
        if self.instance.host().committer().is_some() { Ok(()) } else { Err(ContextError::NoStore) }
    }

    /// Asked before a handler that has waited for something: meanwhile the lease may have run out, or the shard moved on.
    pub(crate) fn require_lease<E>(&self) -> Outcome<(), E> {
        let host = self.instance.host();
        match host.shards.epoch(self.shard()) {
            _ if !host.lease_holds() => Err(RequestError::LeaseLost.into()),
            epoch if epoch != Some(self.epoch) => Err(RequestError::Fenced.into()),
            _ => Ok(()),
        }
    }

    pub(crate) fn note_failed_start(&mut self, error: &impl Display) {
        self.recorded.cold().failed_start = Some(shown(error));
    }

    /// Notes that an error of the handler under way refuses the client that asks to be connected.
    pub(crate) fn note_refusal(&mut self) {
        self.recorded.cold().refuses_client = true;
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
            self.recorded.cold().ends.get_or_insert(Closed::Reset);
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
                let refuses_client = self.recorded.0.as_ref().is_some_and(|cold| cold.refuses_client);
                (self.recorded.has_recorded() || !refuses_client) && !I::keeps_memory(error)
            }
            _ => self.recorded.has_recorded(),
        }
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

    /// The handler of what woke the instance has succeeded: records its completion, unless an enlistment was that. A newer setting of
    /// an alarm, by this handler or while it ran, has a greater revision and outlives it.
    pub(crate) fn complete(&mut self) {
        if let Some(wake) = self.completion() {
            self.recorded.cold().effects.record_own(wake.done());
        }
    }

    /// The alarm or message that this handler is to complete, if it is not done and not held.
    pub(crate) fn completion(&self) -> Option<Wake> {
        let cold = self.recorded.0.as_ref()?;
        cold.wake.clone().filter(|_| !cold.holds_alarm)
    }

    /// The handler of what woke the instance begins, and is to complete it. Not before: nothing that `on_start` does completes it.
    pub(crate) fn begin_handler_of(&mut self, wake: Wake) {
        self.recorded.cold().wake = Some(wake);
    }

    /// An enlistment has become durable; `completed` if what woke the handler is completed by it.
    pub(crate) fn enlistment_committed(&mut self, completed: bool) {
        let cold = self.recorded.cold();
        cold.has_recorded = true;
        cold.has_committed = true;
        cold.enlisted = Enlisted::None;
        if completed {
            cold.wake = None;
            cold.enlisted = Enlisted::Completed;
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

    /// The instance it belongs to.
    pub(crate) fn instance(&self) -> &Arc<dyn Instance> {
        &self.instance
    }

    /// The epoch of the instance's shard under which it was made.
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Commits of this incarnation that may not be durable yet, oldest first.
    pub(crate) fn unsettled(&self) -> Vec<Arc<Commit>> {
        self.instance.unsettled()
    }

    /// Notes that something of the turn under way is durable, or may be, beside its commits.
    pub(crate) fn note_durable(&self) {
        self.instance.note_durable();
    }

    pub(crate) fn host_core(&self) -> &HostCore {
        self.instance.host()
    }

    /// Marks what woke the instance in the store, so that a process that dies of it is known by it.
    pub(crate) async fn mark_started(&mut self, wake: &Wake) -> Result<(), ContextError> {
        let ticket = self.instance.clone().commit_mark(self.epoch, wake.mark())?;
        Ok(ticket.wait().await?)
    }

    /// The revision of an alarm that is set now.
    pub(crate) fn next_revision(&self) -> Revision {
        self.instance.host().shards.next_revision(self.shard(), self.epoch)
    }

    /// Records an operation that the library itself decided.
    pub(crate) fn record_own(&mut self, op: Op) {
        self.recorded.cold().effects.record_own(op);
        self.recorded.cold().has_recorded = true;
    }
}

fn invalid_key(key: &str, reason: InvalidId) -> ContextError {
    ContextError::invalid("storage key", key, reason)
}
