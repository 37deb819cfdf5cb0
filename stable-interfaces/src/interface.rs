//! The typed handle through which an application talks to its instances.

mod outside;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tracing::Instrument as _;

use self::outside::{AsWork, CancelAlarm, Discard, FireNow, ListAlarms, Requeue, SetAlarm, SetAlarmIfAbsent};
use crate::alarm::{Alarm, RetryPolicy, encode_meta};
use crate::clock::{Clock, Timestamp};
use crate::connection::{self, Closed, Connection, ConnectionId, Incoming};
use crate::dead::Dead;
use crate::directive::{Directive, DirectiveError, Needs};
use crate::error::{ContextError, Outcome, RequestError};
use crate::fleet::hash_id;
use crate::id::{check_id, interface_of};
use crate::inbox::{Message, NewPost};
use crate::instance::chain::{self, Deadline, Origin};
use crate::instance::context::{Context, KeyRange};
use crate::instance::slot::{Enqueue, Next, Slot, Taken};
use crate::instance::table::{Full, Table};
use crate::instance::turn::{
    Answer, AnswerOf, Around, Job, NO_COMMIT, Patience, Running, Step, Waiting, Work, awaken, drive, first_poll,
    handler, poll_handler, run_inline, span_of,
};
use crate::instance::{Handle, OnAlarm, OnConnect, OnMessage, StableInterface};
use crate::quiet::{Quiet, drop_quietly};
use crate::shards::delivery::Delivery;
use crate::shards::wake::Wake;
use crate::shared::{AnyInterface, Forget, Health, HostCore, SHORTEST};
use crate::store::{Addressed, AlarmRow, Epoch, InboxRow, InstanceName, Posted, ShardId};
use crate::sync::atomic::Ordering;
use crate::sync::{Arc, OwnedSemaphorePermit, oneshot};

/// Limits and times of one interface, with their defaults.
#[derive(Debug, Clone)]
pub(crate) struct InterfaceOptions {
    pub(crate) handler_timeout: Duration,
    pub(crate) stop_timeout: Duration,
    pub(crate) max_waiting: usize,
    pub(crate) max_instances: usize,
    pub(crate) idle_timeout: Duration,
    pub(crate) retry: RetryPolicy,
}

impl Default for InterfaceOptions {
    fn default() -> InterfaceOptions {
        InterfaceOptions {
            handler_timeout: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(30),
            max_waiting: 4_096,
            max_instances: 4_000_000,
            idle_timeout: Duration::from_secs(600),
            retry: RetryPolicy::default(),
        }
    }
}

type Factory<I> = Box<dyn Fn(&str) -> I + Send + Sync>;
/// Hands something due to its instance. Captured where the interface's traits are known.
pub(crate) type WakeFn<I> = fn(&Arc<InterfaceCore<I>>, Delivery);

/// Into how many steps the idle timeout is divided.
const IDLE_STEPS: u32 = 4;

/// One registered interface on one host.
pub(crate) struct InterfaceCore<I: StableInterface> {
    pub(crate) name: Arc<str>,
    pub(crate) host: Arc<HostCore>,
    pub(crate) table: Table<Slot<I>>,
    pub(crate) options: InterfaceOptions,
    factory: Quiet<Factory<I>>,
    /// Handles an alarm, if the interface was registered with alarms.
    pub(crate) fire: Option<WakeFn<I>>,
    /// Handles a message, if the interface was registered with an inbox.
    pub(crate) take: Option<WakeFn<I>>,
}

impl<I: StableInterface> fmt::Debug for InterfaceCore<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterfaceCore").field("name", &self.name).field("table", &self.table).finish_non_exhaustive()
    }
}

/// A message on its way.
enum Submitted<I: StableInterface, W: Work<I>> {
    /// Its handler is done.
    Done(AnswerOf<I, W>),
    /// The answer will come.
    Waiting(oneshot::Receiver<Quiet<AnswerOf<I, W>>>),
}

impl<I: StableInterface> InterfaceCore<I> {
    pub(crate) fn new(
        host: Arc<HostCore>,
        options: InterfaceOptions,
        factory: Factory<I>,
        fire: Option<WakeFn<I>>,
        take: Option<WakeFn<I>>,
    ) -> Self {
        InterfaceCore {
            name: I::NAME.into(),
            table: Table::new(options.max_instances),
            host,
            options,
            factory: Quiet::new(factory),
            fire,
            take,
        }
    }

    /// A new instance.
    pub(crate) fn build(&self, id: &str) -> I {
        let factory = self.factory.as_ref().expect("the factory is there as long as its interface");
        factory(id)
    }

    /// Sends `work` to the instance and waits for its released answer.
    pub(crate) async fn ask<W: Work<I>>(
        self: &Arc<Self>,
        id: &str,
        work: W,
    ) -> Result<W::Reply, RequestError<I::Error>> {
        let outcome = match self.submit(id, Quiet::new(work)) {
            Ok(Submitted::Done(Answer { result, behind: None, .. })) => result,
            Ok(Submitted::Done(answer)) => answer.release().await,
            Ok(Submitted::Waiting(answer)) => {
                // Without an answer the host ended while the handler ran, or before.
                let answer = answer.await.ok().and_then(Quiet::into_inner);
                let answer = answer.ok_or_else(|| self.host.explain(RequestError::unknown(RequestError::Draining)))?;
                // What was committed is proved by the store, and what is not known stays unknown; anything else is worth as much
                // as the lease.
                let is_proved =
                    answer.behind.is_some() || answer.result.as_ref().is_err_and(|error| error.may_have_happened());
                let interim = answer.interim;
                let result = answer.release().await;
                if is_proved || self.host.lease_holds() {
                    result
                } else {
                    drop_quietly(result);
                    let error = self.host.explain(RequestError::LeaseLost);
                    Err(Box::new(if interim == NO_COMMIT { error } else { error.in_doubt() }))
                }
            }
            Err(error) => {
                if matches!(*error, RequestError::Overloaded(_)) {
                    metrics::counter!(crate::metrics::OVERLOADED, "interface" => I::NAME).increment(1);
                }
                Err(error)
            }
        };
        outcome.map_err(|error| self.host.explain(*error))
    }

    /// Sends `work` to an instance in memory, if it still is, without waiting for it. Whatever bounds its sender has given it a
    /// place already, and it has as long in the queue as it takes.
    fn tell<W: Work<I>>(self: &Arc<Self>, id: &str, work: W) -> Outcome<(), I::Error> {
        let work = Quiet::new(work);
        let (hash, shard, epoch) = self.locate(id, W::IS_OF_TASK)?;
        let Some(slot) = self.table.get(id, hash) else { return Err(RequestError::Closed.into()) };
        let job = Waiting {
            work,
            callers: None,
            patience: Patience::Endless,
            limit: self.options.handler_timeout,
            woken_by: None,
            span: span_of::<I>(id, shard, None),
            reply: None,
        };
        let taken = slot.take(epoch);
        self.queue(slot, taken, Box::new(job), id, hash, shard, epoch)
    }

    /// Finds the shard of `id` and checks that this host may act for it now and has room for what that brings.
    fn route(&self, id: &str, is_of_task: bool) -> Outcome<(u64, ShardId, Epoch), I::Error> {
        let located = self.locate(id, is_of_task)?;
        if self.host.committer().is_some_and(|committer| committer.is_full(located.1)) {
            return Err(RequestError::Overloaded("writes to the store").into());
        }
        Ok(located)
    }

    /// Finds the shard of `id` and checks that this host may act for it now.
    fn locate(&self, id: &str, is_of_task: bool) -> Outcome<(u64, ShardId, Epoch), I::Error> {
        match self.host.health() {
            Health::Running => {}
            Health::NotStarted => return Err(RequestError::NotStarted.into()),
            // What handlers that still run ask for is served.
            Health::Draining if chain::in_handler() => {}
            // And what tasks ask for that it waits for.
            Health::Draining if is_of_task && self.host.serves_tasks.load(Ordering::Acquire) => {}
            Health::Draining => return Err(RequestError::Draining.into()),
            _ => return Err(self.host.ended().unwrap_or(RequestError::Draining).into()),
        }
        check_id(id).map_err(|reason| RequestError::from(ContextError::invalid("instance ID", id, reason)))?;
        let hash = hash_id(id);
        let shard = self.host.fleet.shard_of_hash(hash);
        let Some(epoch) = self.host.shards.epoch(shard) else {
            let holder = self.host.holder(shard);
            // Nobody else is known to have what this host gave up, so there is nobody else to ask.
            let is_own = *holder == *self.host.name;
            return Err(if is_own { RequestError::LeaseLost } else { RequestError::NotOwner { holder } }.into());
        };
        if !self.host.lease_holds() {
            return Err(RequestError::LeaseLost.into());
        }
        Ok((hash, shard, epoch))
    }

    /// Refuses what this interface was registered without: it would be stored, and never handled.
    pub(crate) fn require(&self, needs: Needs) -> Result<(), ContextError> {
        needs.check(I::NAME, self.fire.is_some(), self.take.is_some())
    }

    /// Refuses what needs the host's settings, before it has them.
    fn require_started(&self) -> Result<(), RequestError<I::Error>> {
        if self.host.health() == Health::NotStarted { Err(RequestError::NotStarted) } else { Ok(()) }
    }

    /// Who handles this, if anyone does.
    fn way(&self, wake: &Wake) -> Option<WakeFn<I>> {
        match wake {
            Wake::Alarm(_) => self.fire,
            Wake::Message(message) if interface_of(&message.name.interface).1 => Some(carry_out::<I>),
            Wake::Message(_) => self.take,
        }
    }

    fn slot(self: &Arc<Self>, id: &str, hash: u64, shard: ShardId) -> Outcome<Arc<Slot<I>>, I::Error> {
        let make = || Slot::new(id, shard, self.clone());
        match self.table.get_or_insert(id, hash, false, make) {
            Ok(slot) => Ok(slot),
            Err(Full) if self.make_room() => {
                let slot = self.table.get_or_insert(id, hash, true, make);
                Ok(slot.expect("a table that may be exceeded takes every slot"))
            }
            Err(Full) => Err(RequestError::Overloaded("instances in memory").into()),
        }
    }

    /// Passivates the least recently used instances; says whether there was any that could leave.
    fn make_room(self: &Arc<Self>) -> bool {
        // Those that hold alarms go last: their alarms fire again.
        self.table.make_room(|| self.host.clock.elapsed(), |slot, even_held| self.passivate(slot, even_held))
    }

    fn passivate(&self, slot: &Arc<Slot<I>>, even_held: bool) -> bool {
        let Some(epoch) = self.host.shards.epoch(slot.shard) else { return false };
        let Some(next) = slot.take_idle(epoch, even_held) else { return false };
        run_inline(slot, next);
        metrics::counter!(crate::metrics::PASSIVATED, "interface" => I::NAME).increment(1);
        true
    }

    /// Starts `work` on the instance, or queues it there. Everything a request does before its first wait.
    fn submit<W: Work<I>>(self: &Arc<Self>, id: &str, work: Quiet<W>) -> Outcome<Submitted<I, W>, I::Error> {
        let (hash, shard, epoch) = self.route(id, W::IS_OF_TASK)?;
        let origin = chain::origin(|| self.host.clock.elapsed(), self.options.handler_timeout);
        loop {
            let slot = self.slot(id, hash, shard)?;
            if origin.callers.is_some()
                && let Some(cycle) = chain::find_cycle(origin.callers.as_ref(), &*slot)
            {
                return Err(RequestError::Cycle(cycle).into());
            }
            let mut taken = slot.take(epoch);
            if matches!(taken, Taken::Busy) {
                slot.spin();
                taken = slot.take(epoch);
            }
            let state = match taken {
                Taken::Free(state) => state,
                Taken::Gone => continue,
                taken @ (Taken::Busy | Taken::Unsettled(_)) => {
                    let (job, answer) = self.waiting(work, origin, &slot, id);
                    self.queue(slot, taken, job, id, hash, shard, epoch)?;
                    return Ok(Submitted::Waiting(answer));
                }
            };
            if !origin.may_nest {
                let (job, answer) = self.waiting(work, origin, &slot, id);
                drive(&slot, Step::Next(Next::Run(job, state, epoch)));
                return Ok(Submitted::Waiting(answer));
            }
            let mut future = Box::pin(handler(slot.clone(), epoch, state, work));
            let mut callers = origin.callers;
            let (mut deadline, limit) = match W::IS_STOP {
                true => (slot.stop_deadline(), self.options.stop_timeout),
                false => (Deadline::NONE, self.options.handler_timeout),
            };
            let span = span_of::<I>(id, shard, None);
            let (slot, polled) =
                first_poll(|task| poll_handler(future.as_mut(), slot, &mut callers, &mut deadline, &span, task));
            if let std::task::Poll::Ready(ending) = polled {
                drop_quietly(future);
                let (answer, next) = slot.finish(epoch, ending, None);
                if !matches!(next, Next::Idle) {
                    run_inline(&slot, next);
                }
                return Ok(Submitted::Done(answer));
            }
            let (reply, answer) = oneshot::channel();
            let is_stop = W::IS_STOP;
            let around = Around { slot: slot.clone(), epoch, callers, deadline, limit, woken_by: None, is_stop, span };
            drive(&slot, Step::Turn(Box::new(Running { around, future: Quiet::new(future), reply: Some(reply) })));
            return Ok(Submitted::Waiting(answer));
        }
    }

    /// A request that does not begin here, and where its answer will come.
    #[allow(clippy::type_complexity, reason = "a job and its answer")]
    fn waiting<W: Work<I>>(
        &self,
        work: Quiet<W>,
        origin: Origin,
        slot: &Slot<I>,
        id: &str,
    ) -> (Box<dyn Job<I>>, oneshot::Receiver<Quiet<AnswerOf<I, W>>>) {
        let (reply, answer) = oneshot::channel();
        let waits_until = origin.waits_until.get().unwrap_or_else(|| slot.moment_in(origin.given));
        let job = Waiting {
            work,
            callers: origin.callers,
            patience: Patience::Until(waits_until, origin.given),
            limit: self.options.handler_timeout,
            woken_by: None,
            span: span_of::<I>(id, slot.shard, None),
            reply: Some(reply),
        };
        (Box::new(job), answer)
    }

    /// Queues a message at a slot that was not free, or runs it if the slot has become free meanwhile.
    #[allow(clippy::too_many_arguments, reason = "a slot that has gone must be looked up again by all of these")]
    fn queue(
        self: &Arc<Self>,
        mut slot: Arc<Slot<I>>,
        mut taken: Taken<I>,
        mut job: Box<dyn Job<I>>,
        id: &str,
        hash: u64,
        shard: ShardId,
        epoch: Epoch,
    ) -> Outcome<(), I::Error> {
        loop {
            match taken {
                Taken::Free(state) => {
                    run_inline(&slot, Next::Run(job, state, epoch));
                    return Ok(());
                }
                Taken::Gone => slot = self.slot(id, hash, shard)?,
                Taken::Busy | Taken::Unsettled(_) if !job.may_queue() => {
                    if let Taken::Unsettled(next) = taken {
                        drive(&slot, Step::Next(next));
                    }
                    return Ok(());
                }
                Taken::Busy | Taken::Unsettled(_) => match slot.enqueue(job) {
                    Ok(()) => {
                        if let Taken::Unsettled(next) = taken {
                            drive(&slot, Step::Next(next));
                        }
                        return Ok(());
                    }
                    Err(Enqueue::Full(_refused)) => {
                        return Err(RequestError::Overloaded("messages waiting for the instance").into());
                    }
                    Err(Enqueue::Gone(back) | Enqueue::Free(back)) => job = back,
                },
            }
            taken = slot.take(epoch);
        }
    }
}

impl<I: StableInterface> AnyInterface for InterfaceCore<I> {
    fn name(&self) -> &str {
        &self.name
    }

    fn check_options(&self) -> Result<(), &'static str> {
        if self.options.handler_timeout < SHORTEST {
            return Err("handler_timeout must be at least 1 ms");
        }
        if self.options.max_instances == 0 { Err("max_instances must be at least 1") } else { Ok(()) }
    }

    fn handles(&self, wake: &Wake) -> bool {
        self.way(wake).is_some()
    }

    fn wake(self: Arc<Self>, delivery: Delivery) {
        let wake = self.way(delivery.wake());
        if let Some(wake) = wake {
            wake(&self, delivery);
        }
    }

    fn stop_all(self: Arc<Self>) {
        for slot in self.table.slots() {
            let Some(epoch) = self.host.shards.epoch(slot.shard) else {
                if let Some(next) = slot.forget(Forget::Lost) {
                    run_inline(&slot, next);
                }
                continue;
            };
            let (id, hash, shard) = (slot.id.clone(), hash_id(&slot.id), slot.shard);
            let taken = slot.take(epoch);
            if matches!(taken, Taken::Gone) {
                continue;
            }
            if let Err(error) = self.queue(slot, taken, stop_job_of(Closed::Draining), &id, hash, shard, epoch) {
                tracing::warn!(interface = I::NAME, %id, %error, "an instance could not be stopped");
            }
        }
    }

    fn forget(self: Arc<Self>, which: Forget) {
        for slot in self.table.slots() {
            if let Some(next) = slot.forget(which) {
                run_inline(&slot, next);
            }
        }
    }

    fn sweep(self: Arc<Self>) -> Duration {
        for slot in self.table.grow_older(IDLE_STEPS) {
            self.passivate(&slot, false);
        }
        self.options.idle_timeout / IDLE_STEPS
    }

    fn running(&self) -> usize {
        self.table.len()
    }

    fn busy(&self) -> usize {
        self.table.slots().iter().filter(|slot| slot.is_busy()).count()
    }

    fn with_busy_tasks(&self) -> usize {
        self.table.slots().iter().filter(|slot| slot.has_busy_tasks()).count()
    }

    fn name_instance(&self, address: usize) -> Option<String> {
        let slot = self.table.slots().into_iter().find(|slot| Arc::as_ptr(slot).addr() == address)?;
        Some(chain::Described(&*slot).to_string())
    }

    fn abandon(&self) {
        for slot in self.table.clear() {
            slot.abandon();
        }
    }
}

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
        let Some(permit) = self.core.host.permit_connection() else {
            metrics::counter!(crate::metrics::OVERLOADED, "interface" => I::NAME).increment(1);
            drop_quietly(meta);
            return Err(RequestError::Overloaded("connections"));
        };
        self.core.ask(id, Connect { meta, permit, core: AsCore(self.core.clone()) }).await
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

    /// Sets an alarm of the instance `id`, as [`Context::set_alarm`] does from inside. The instance is not built for it.
    ///
    /// # Errors
    /// As [`request`](Self::request), and as [`Context::set_alarm`].
    pub async fn set_alarm(
        &self,
        id: &str,
        alarm: &str,
        at: impl Into<Timestamp>,
        meta: &(impl Serialize + ?Sized),
    ) -> Result<(), RequestError<I::Error>> {
        self.core.ask(id, AsWork(set_alarm(alarm, at.into(), meta)?)).await
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
        self.core.ask(id, AsWork(SetAlarmIfAbsent(set_alarm(alarm, at.into(), meta)?))).await
    }

    /// Cancels an alarm of the instance `id`, if it exists. It does not fire after this has returned `Ok`, except that a handler
    /// that was running then had been waited for.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn cancel_alarm(&self, id: &str, alarm: &str) -> Result<(), RequestError<I::Error>> {
        self.core.ask(id, AsWork(CancelAlarm(alarm.to_owned()))).await
    }

    /// All alarms of the instance `id`, by alarm ID.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn alarms(&self, id: &str) -> Result<Vec<Alarm>, RequestError<I::Error>> {
        self.core.ask(id, AsWork(ListAlarms)).await
    }

    /// Makes an alarm of the instance `id` due at once. Says whether there is one with that ID.
    ///
    /// Its [`fire_id`](Alarm::fire_id) becomes another one; the time it was set for and its failed attempts stay.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn fire_now(&self, id: &str, alarm: &str) -> Result<bool, RequestError<I::Error>> {
        self.core.ask(id, AsWork(FireNow(alarm.to_owned()))).await
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
        Ok(crate::dead::list(&host.store_client().ok_or(ContextError::NoStore)?, owned, I::NAME, after, limit).await?)
    }

    /// Brings a dead letter back, due at once and with no failed attempts. Says whether that was done: not if it is no longer
    /// there, nor if an alarm with the same ID has been set since, nor while a message with the same ID is in the inbox.
    ///
    /// # Errors
    /// As [`request`](Self::request), and [`RequestError::Unhandled`] for an alarm or a message if the interface was registered
    /// without alarms or without an inbox.
    pub async fn requeue(&self, dead: &Dead) -> Result<bool, RequestError<I::Error>> {
        self.core.ask(dead.instance(), AsWork(Requeue(dead.letter.key()))).await
    }

    /// Removes a dead letter for good. Says whether it was still there.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn discard(&self, dead: &Dead) -> Result<bool, RequestError<I::Error>> {
        self.core.ask(dead.instance(), AsWork(Discard(dead.letter.key()))).await
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

    /// Whether the instance `id` is in memory on this host.
    #[must_use]
    pub fn is_running(&self, id: &str) -> bool {
        self.core.table.get(id, hash_id(id)).is_some_and(|slot| slot.is_running())
    }

    /// How many instances are in memory on this host.
    #[must_use]
    pub fn running(&self) -> usize {
        self.core.table.len()
    }
}

fn set_alarm<E>(alarm: &str, at: Timestamp, meta: &(impl Serialize + ?Sized)) -> Result<SetAlarm, RequestError<E>> {
    Ok(SetAlarm { alarm: alarm.to_owned(), at, meta: encode_meta(alarm, meta)? })
}

/// Gives a message's work the interface, to build the instance with.
pub(crate) struct AsCore<I: StableInterface>(pub(crate) Arc<InterfaceCore<I>>);

/// Handles a message.
struct Ask<M>(M);

impl<I: Handle<M>, M: Send + 'static> Work<I> for Ask<M> {
    type Reply = I::Reply;

    async fn run(self, state: &mut Option<Box<I>>, cx: &mut Context) -> Outcome<I::Reply, I::Error> {
        // It may be dropped while a panic of the instance being built unwinds.
        let message = Quiet::new(self.0);
        let instance = awaken(state, cx).await?;
        let message = message.into_inner().expect("the message is there until it is handled");
        instance.handle(cx, message).await.map_err(|error| RequestError::handler(error).into())
    }
}

/// Lets an instance leave memory.
struct Stop(Closed);

impl<I: StableInterface> Work<I> for Stop {
    type Reply = ();
    const IS_STOP: bool = true;

    fn is_drain(&self) -> bool {
        self.0 == Closed::Draining
    }

    async fn run(self, state: &mut Option<Box<I>>, cx: &mut Context) -> Outcome<(), I::Error> {
        if let Some(instance) = state {
            let span = tracing::debug_span!("stop", interface = I::NAME, instance = cx.id(), shard = cx.shard().0);
            instance.on_stop().instrument(span).await;
        }
        drop_quietly(state.take());
        cx.end(self.0);
        Ok(())
    }
}

/// A message that lets an instance leave memory.
pub(crate) fn stop_job<I: StableInterface>() -> Box<dyn Job<I>> {
    stop_job_of(Closed::Stopped)
}

fn stop_job_of<I: StableInterface>(reason: Closed) -> Box<dyn Job<I>> {
    Box::new(Waiting {
        work: Quiet::new(Stop(reason)),
        callers: None,
        patience: Patience::Endless,
        limit: Duration::MAX,
        woken_by: None,
        span: tracing::Span::none(),
        reply: None,
    })
}

/// Connects a client.
struct Connect<I: OnConnect> {
    meta: I::Meta,
    permit: OwnedSemaphorePermit,
    core: AsCore<I>,
}

impl<I: OnConnect> Work<I> for Connect<I> {
    type Reply = Connection<I>;

    async fn run(self, state: &mut Option<Box<I>>, cx: &mut Context) -> Outcome<Connection<I>, I::Error> {
        let Connect { meta, permit, core } = self;
        let meta = Quiet::new(meta);
        let instance = awaken(state, cx).await?;
        let meta = meta.into_inner().expect("the meta is there until it is handled");
        connection::connect(instance, cx, core.0, permit, meta).await
    }
}

/// Handles a client's message.
struct Receive<I: OnConnect> {
    incoming: Incoming<I::Outgoing>,
    message: I::Incoming,
}

impl<I: OnConnect> Work<I> for Receive<I> {
    type Reply = ();

    async fn run(mut self, state: &mut Option<Box<I>>, cx: &mut Context) -> Outcome<(), I::Error> {
        let is_attached = self.incoming.begin();
        match state {
            Some(instance) if is_attached => {
                Ok(instance.on_receive(cx, self.incoming.id(), self.message).await.map_err(RequestError::handler)?)
            }
            // The connection ended with the incarnation it belonged to.
            _ => Ok(()),
        }
    }
}

/// Sends a client's message to the instance. Its room in the buffer is its permit for the queue.
pub(crate) fn receive<I: OnConnect>(
    core: &Arc<InterfaceCore<I>>,
    id: &str,
    incoming: Incoming<I::Outgoing>,
    message: I::Incoming,
) -> Outcome<(), I::Error> {
    core.tell(id, Receive { incoming, message })
}

/// Tells the instance that a client has left.
struct Disconnect(ConnectionId);

impl<I: OnConnect> Work<I> for Disconnect {
    type Reply = ();

    async fn run(self, state: &mut Option<Box<I>>, cx: &mut Context) -> Outcome<(), I::Error> {
        let is_news = cx.slot::<I>().is_some_and(|slot| slot.client_left(self.0));
        match state {
            Some(instance) if is_news => {
                Ok(instance.on_disconnect(cx, self.0, Closed::ByClient).await.map_err(RequestError::handler)?)
            }
            _ => Ok(()),
        }
    }
}

/// How soon an instance is told again that a client has left, while its host may not act.
const DISCONNECT_AGAIN: Duration = Duration::from_millis(100);

pub(crate) fn disconnect<I: OnConnect>(core: &Arc<InterfaceCore<I>>, id: &Arc<str>, connection: ConnectionId) {
    match core.tell(id, Disconnect(connection)) {
        // The lease may come back, and then the instance with all its connections is still there.
        Err(error)
            if matches!(*error, RequestError::Fenced | RequestError::LeaseLost)
                && core.host.health() == Health::Running
                && core.host.fleet.shard_of(id).is_ok_and(|shard| core.host.shards.epoch(shard).is_some()) =>
        {
            let (again, id) = (core.clone(), id.clone());
            core.host.spawn_turn(async move {
                again.host.clock.sleep(DISCONNECT_AGAIN).await;
                disconnect(&again, &id, connection);
            });
        }
        // In any other case the incarnation that had the connection is at its end.
        Ok(()) | Err(_) => {}
    }
}

/// Handles an alarm.
struct Fire<I: StableInterface> {
    woken: Woken<I>,
    alarm: Arc<AlarmRow>,
}

/// What is common to alarms and messages.
struct Woken<I: StableInterface> {
    wake: Wake,
    must_mark: bool,
    core: AsCore<I>,
}

impl<I: StableInterface> Woken<I> {
    /// What comes before the handler; `false` if it must not run.
    async fn begin(&self, cx: &mut Context) -> Outcome<bool, I::Error> {
        if !self.must_mark {
            return Ok(true);
        }
        let limit = self.core.0.host.options.limits.max_crashes;
        let crashes = self.wake.attempts().all_crashes();
        if crashes >= limit {
            let reason: Arc<str> = format!("{crashes} processes died while it was being handled").into();
            tracing::error!(instance = %self.wake.name(), kind = self.wake.kind(), id = %self.wake.id(), %reason,
                "given up; it is a dead letter now");
            metrics::counter!(crate::metrics::DEAD_LETTERS, "interface" => I::NAME).increment(1);
            for op in self.wake.dead(self.wake.attempts().given_up(&reason), &reason, cx.now()) {
                cx.record_own(op);
            }
            return Ok(false);
        }
        cx.mark_started(&self.wake).await?;
        cx.require_lease()?;
        Ok(true)
    }
}

impl<I: OnAlarm> Work<I> for Fire<I> {
    type Reply = ();

    async fn run(self, state: &mut Option<Box<I>>, cx: &mut Context) -> Outcome<(), I::Error> {
        if !cx.is_live(&self.alarm) || !self.woken.begin(cx).await? {
            return Ok(());
        }
        cx.alarm = Some(self.alarm.clone());
        let instance = awaken(state, cx).await?;
        cx.begin_handler_of(self.woken.wake);
        instance.on_alarm(cx, &Alarm::new(self.alarm)).await.map_err(RequestError::handler)?;
        cx.complete();
        Ok(())
    }
}

/// Handles a message from the inbox.
struct Take<I: StableInterface> {
    woken: Woken<I>,
    message: Arc<InboxRow>,
}

impl<I: OnMessage> Work<I> for Take<I> {
    type Reply = ();

    async fn run(self, state: &mut Option<Box<I>>, cx: &mut Context) -> Outcome<(), I::Error> {
        if !self.woken.begin(cx).await? {
            return Ok(());
        }
        let instance = awaken(state, cx).await?;
        cx.begin_handler_of(self.woken.wake);
        instance.on_message(cx, &Message::new(self.message)).await.map_err(RequestError::handler)?;
        cx.complete();
        Ok(())
    }
}

/// What [`InterfaceBuilder::with_alarms`](crate::InterfaceBuilder::with_alarms) captures.
pub(crate) fn fire_alarm<I: OnAlarm>(core: &Arc<InterfaceCore<I>>, delivery: Delivery) {
    if let Wake::Alarm(alarm) = delivery.wake() {
        let work = Fire { alarm: alarm.clone(), woken: woken(core, &delivery) };
        hand_over(core, delivery, work);
    }
}

/// What [`InterfaceBuilder::with_inbox`](crate::InterfaceBuilder::with_inbox) captures.
pub(crate) fn take_message<I: OnMessage>(core: &Arc<InterfaceCore<I>>, delivery: Delivery) {
    if let Wake::Message(message) = delivery.wake() {
        let work = Take { message: message.clone(), woken: woken(core, &delivery) };
        hand_over(core, delivery, work);
    }
}

/// Carries out a directive.
struct CarryOut<I: StableInterface> {
    woken: Woken<I>,
    message: Arc<InboxRow>,
}

impl<I: StableInterface> Work<I> for CarryOut<I> {
    type Reply = ();

    async fn run(self, _: &mut Option<Box<I>>, cx: &mut Context) -> Outcome<(), I::Error> {
        if !self.woken.begin(cx).await? {
            return Ok(());
        }
        Directive::carry_out(&self.message, cx).await.map_err(|error| match error {
            DirectiveError::Context(error) => RequestError::from(error),
            DirectiveError::Unknown(what) => RequestError::Rejected(what),
        })?;
        cx.begin_handler_of(self.woken.wake);
        cx.complete();
        Ok(())
    }
}

fn carry_out<I: StableInterface>(core: &Arc<InterfaceCore<I>>, delivery: Delivery) {
    if let Wake::Message(message) = delivery.wake() {
        let work = CarryOut { message: message.clone(), woken: woken(core, &delivery) };
        hand_over(core, delivery, work);
    }
}

fn woken<I: StableInterface>(core: &Arc<InterfaceCore<I>>, delivery: &Delivery) -> Woken<I> {
    Woken { wake: delivery.wake().clone(), must_mark: delivery.must_mark, core: AsCore(core.clone()) }
}

fn hand_over<I: StableInterface>(core: &Arc<InterfaceCore<I>>, delivery: Delivery, work: impl Work<I>) {
    let id = delivery.wake().name().instance.clone();
    let (hash, (shard, epoch)) = (hash_id(&id), delivery.shard());
    let span = span_of::<I>(&id, shard, Some(&delivery));
    let job = Waiting {
        work: Quiet::new(work),
        callers: None,
        patience: Patience::Endless,
        limit: core.options.handler_timeout,
        span,
        woken_by: Some(delivery),
        reply: None,
    };
    // Refused for a limit, the delivery is dropped with the job, and what it stands for waits a moment.
    let Ok(slot) = core.slot(&id, hash, shard) else { return };
    let taken = slot.take(epoch);
    if let Err(error) = core.queue(slot, taken, Box::new(job), &id, hash, shard, epoch) {
        tracing::debug!(interface = I::NAME, %id, %error, "what is due could not be handed to its instance yet");
    }
}
