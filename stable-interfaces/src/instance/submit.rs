//! The path of a request to its instance's slot.
//!
//! A request finds its shard and epoch, takes the slot of its ID or queues there, and is polled once where it was sent. In the usual
//! case that is all: no task, no clock, one allocation. What that case needs is inlined here; everything else is a call, so that it costs
//! this path neither registers nor moves. [`cold_path`] marks the way to it: a compiler that takes each branch for as likely as the other
//! finds the end of this path so unlikely that it inlines nothing there.

use std::hint::cold_path;
use std::task::Poll;

use super::StableInterface;
use super::answer::NO_COMMIT;
use super::chain::{self, Chain, Deadline};
use super::drive::{Step, drive, first_poll, run_inline};
use super::job::{AnswerOf, Job, Patience, Work};
use super::kind::InterfaceCore;
use super::slot::{Enqueue, Next, Slot, Taken, TurnEnd};
use super::table::Full;
use super::turn::{Header, Queued, Running, boxed, handler, poll_handler, span_of};
use crate::error::{ContextError, Outcome, RequestError};
use crate::fleet::hash_id;
use crate::forward::send::Away;
use crate::id::check_id;
use crate::quiet::{Quiet, drop_quietly};
use crate::shards::handoff::Handoff;
use crate::shared::Health;
use crate::store::{Epoch, ShardId};
use crate::sync::atomic::Ordering;
use crate::sync::{Arc, oneshot};

/// The way to an instance: the hash of its ID, its shard, and the epoch under which this host owns that.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    pub(crate) hash: u64,
    pub(crate) shard: ShardId,
    pub(crate) epoch: Epoch,
}

/// A message on its way.
enum Submitted<I: StableInterface, W: Work<I>> {
    /// The handler is done, and its result waits for nothing.
    Done(Outcome<W::Reply, I::Error>),
    /// The handler is done.
    Behind(AnswerOf<I, W>),
    /// The answer will come.
    Waiting(oneshot::Receiver<Quiet<AnswerOf<I, W>>>),
    /// Another host owns its instance, and may be asked; or this host is about to.
    Elsewhere(Box<Away<W>>),
}

impl<I: StableInterface> InterfaceCore<I> {
    /// Sends `work` to the instance and waits for its released answer.
    pub(crate) async fn ask<W: Work<I>>(
        self: &Arc<Self>,
        id: &str,
        work: W,
    ) -> Result<W::Reply, RequestError<I::Error>> {
        let outcome = match self.submit(id, Quiet::new(work)) {
            Ok(Submitted::Done(result)) => result,
            Ok(Submitted::Behind(answer)) => answer.release().await,
            Ok(Submitted::Elsewhere(away)) => self.send_on(id, *away).await,
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
    pub(crate) fn tell<W: Work<I>>(self: &Arc<Self>, id: &str, work: W) -> Outcome<(), I::Error> {
        let work = Quiet::new(work);
        let route = self.locate(id, W::IS_OF_TASK)?;
        let Some(slot) = self.table.get(id, route.hash) else { return Err(RequestError::Closed.into()) };
        let job = Queued::untold(work, self.options.handler_timeout, None, span_of::<I>(id, route.shard, None));
        let taken = slot.take(route.epoch);
        self.queue(slot, taken, job, id, route)
    }

    /// Finds the shard of `id` and checks that this host may act for it now and has room for what that brings.
    #[inline(always)]
    fn route(&self, id: &str, is_of_task: bool) -> Outcome<Route, I::Error> {
        let route = self.locate(id, is_of_task)?;
        if self.host.committer().is_some_and(|committer| committer.is_full(route.shard)) {
            cold_path();
            return Err(RequestError::Overloaded("writes to the store".into()).into());
        }
        Ok(route)
    }

    /// Finds the shard of `id` and checks that this host may act for it now.
    #[inline(always)]
    fn locate(&self, id: &str, is_of_task: bool) -> Outcome<Route, I::Error> {
        if self.host.health() != Health::Running {
            self.require_service(is_of_task)?;
        }
        if let Err(reason) = check_id(id) {
            cold_path();
            return Err(RequestError::from(ContextError::invalid("instance ID", id, reason)).into());
        }
        let hash = hash_id(id);
        let shard = self.host.fleet.shard_of_hash(hash);
        let Some(epoch) = self.host.shards.intake(shard) else { return self.not_let_in(hash, shard, is_of_task) };
        if !self.host.lease_holds() {
            cold_path();
            return Err(RequestError::LeaseLost.into());
        }
        Ok(Route { hash, shard, epoch })
    }

    /// Refuses what a host that does not simply run does not serve any more, or yet.
    #[cold]
    fn require_service(&self, is_of_task: bool) -> Outcome<(), I::Error> {
        match self.host.health() {
            Health::Running => Ok(()),
            Health::NotStarted => Err(RequestError::NotStarted.into()),
            // All is served or sent on, until others have everything.
            Health::Draining if self.host.serves_while_it_drains() => Ok(()),
            // What handlers that still run ask for is served.
            Health::Draining if chain::in_handler() => Ok(()),
            // And what tasks ask for that it waits for.
            Health::Draining if is_of_task && self.host.serves_tasks.load(Ordering::Acquire) => Ok(()),
            Health::Draining => Err(RequestError::Draining.into()),
            _ => Err(self.host.ended().unwrap_or(RequestError::Draining).into()),
        }
    }

    /// Refuses what this host does not let in, but for what those ask that still run in a shard that is being handed over.
    #[cold]
    fn not_let_in(&self, hash: u64, shard: ShardId, is_of_task: bool) -> Outcome<Route, I::Error> {
        match self.host.shards.epoch(shard) {
            Some(epoch) if (is_of_task || self.is_waited_for()) && self.host.lease_holds() => {
                Ok(Route { hash, shard, epoch })
            }
            _ => Err(self.not_owned(shard)),
        }
    }

    /// Tells whether a handler that runs in a shard which this host is giving up waits for what is asked now, also by way of other hosts: it is
    /// to come to its end here. All others ask the next owner, if there is a way.
    fn is_waited_for(&self) -> bool {
        let host = &self.host;
        let is_closing =
            |id: &str| host.fleet.shard_of(id).is_ok_and(|shard| host.shards.handoff(shard) == Handoff::Closing);
        chain::any_in_chain(is_closing) || (host.reach().is_none() && chain::in_handler())
    }

    #[cold]
    fn not_owned(&self, shard: ShardId) -> Box<RequestError<I::Error>> {
        let host = &self.host;
        let holder = host.holder(shard);
        // Nobody else is known to have what this host gave up, so there is nobody else to ask; but it may be waited for.
        let is_own = *holder == *host.name && !host.is_guest();
        let is_to_come = || {
            host.fleet.is_live()
                && host.reach().is_some()
                && host.health() == Health::Running
                && host.is_placed_here(shard)
        };
        (if is_own && !is_to_come() { RequestError::LeaseLost } else { RequestError::NotOwner { holder } }).into()
    }

    /// Refuses a request that is not to be handled here, or has it sent on.
    #[cold]
    fn turn_away<W: Work<I>>(
        &self,
        error: RequestError<I::Error>,
        work: Quiet<W>,
    ) -> Outcome<Submitted<I, W>, I::Error> {
        match (error, self.host.reach()) {
            (RequestError::NotOwner { holder }, Some(_)) => Ok(Submitted::Elsewhere(Box::new(Away { work, holder }))),
            (error, _) => Err(error.into()),
        }
    }

    /// The slot of `id`, made if it is absent.
    #[inline(always)]
    pub(crate) fn slot(self: &Arc<Self>, id: &str, route: Route) -> Outcome<Arc<Slot<I>>, I::Error> {
        match self.table.get_or_insert(id, route.hash, false, || Slot::new(id, route.shard, self.clone())) {
            Ok(slot) => Ok(slot),
            Err(Full) => self.slot_in_full_table(id, route),
        }
    }

    #[cold]
    fn slot_in_full_table(self: &Arc<Self>, id: &str, route: Route) -> Outcome<Arc<Slot<I>>, I::Error> {
        if !self.make_room() {
            return Err(RequestError::Overloaded("instances in memory".into()).into());
        }
        let slot = self.table.get_or_insert(id, route.hash, true, || Slot::new(id, route.shard, self.clone()));
        Ok(slot.expect("a table that may be exceeded takes every slot"))
    }

    /// Passivates the least recently used instances; says whether there was any that could leave.
    fn make_room(self: &Arc<Self>) -> bool {
        // Those that hold alarms go last: their alarms fire again.
        self.table.make_room(|| self.host.clock.elapsed(), |slot, even_held| self.passivate(slot, even_held))
    }

    pub(crate) fn passivate(&self, slot: &Arc<Slot<I>>, even_held: bool) -> bool {
        let Some(epoch) = self.host.shards.epoch(slot.shard) else { return false };
        let Some(next) = slot.take_idle(epoch, even_held) else { return false };
        run_inline(slot, next);
        metrics::counter!(crate::metrics::PASSIVATED, "interface" => I::NAME).increment(1);
        true
    }

    /// Starts `work` on the instance, or queues it there. Everything a request does before its first wait.
    fn submit<W: Work<I>>(self: &Arc<Self>, id: &str, work: Quiet<W>) -> Outcome<Submitted<I, W>, I::Error> {
        let route = match self.route(id, W::IS_OF_TASK) {
            Ok(route) => route,
            Err(error) => {
                cold_path();
                return self.turn_away(*error, work);
            }
        };
        let Route { shard, epoch, .. } = route;
        let origin = chain::origin(|| self.host.clock.elapsed(), self.options.handler_timeout);
        loop {
            let slot = self.slot(id, route)?;
            if origin.callers.is_some()
                && let Some(cycle) = chain::find_cycle(origin.callers.as_ref(), &*slot)
            {
                return Err(RequestError::Cycle(cycle).into());
            }
            let mut taken = slot.take(epoch);
            if matches!(taken, Taken::Busy) {
                taken = slot.take_soon(epoch);
            }
            let state = match taken {
                Taken::Free(state) => state,
                Taken::Gone => continue,
                taken @ (Taken::Busy | Taken::Unsettled(_)) => {
                    cold_path();
                    let (job, answer) = self.waiting(work, origin.callers, &slot, id);
                    self.queue(slot, taken, job, id, route)?;
                    return Ok(Submitted::Waiting(answer));
                }
            };
            if !origin.may_nest {
                cold_path();
                let (job, answer) = self.waiting(work, origin.callers, &slot, id);
                drive(&slot, Step::Next(Next::<I>::Run(job, state, epoch)));
                return Ok(Submitted::Waiting(answer));
            }
            let mut future = boxed(|| handler(slot.clone(), epoch, state, work));
            let mut callers = origin.callers;
            let mut deadline = if W::IS_STOP { slot.stop_deadline() } else { Deadline::NONE };
            let span = span_of::<I>(id, shard, None);
            let (slot, polled) =
                first_poll(|task| poll_handler(future.as_mut(), slot, &mut callers, &mut deadline, &span, task));
            if let Poll::Ready(end) = polled {
                // A future that has returned or panicked holds nothing of the application's any more.
                drop(future);
                return Ok(match slot.finish(epoch, end, None) {
                    TurnEnd::Quiet(result) => Submitted::Done(result),
                    TurnEnd::Other(answer, next) => {
                        run_inline(&slot, next);
                        Submitted::Behind(answer)
                    }
                });
            }
            cold_path();
            let (reply, answer) = oneshot::channel();
            let limit = if W::IS_STOP { self.options.stop_timeout } else { self.options.handler_timeout };
            let header = Header { callers, limit, woken_by: None, span };
            let (slot_of_turn, future, reply) = (slot.clone(), Quiet::new(future), Some(reply));
            let is_stop = W::IS_STOP;
            let turn = Running { header, slot: slot_of_turn, epoch, deadline, is_stop, future, reply };
            drive(&slot, Step::Turn(Box::new(turn)));
            return Ok(Submitted::Waiting(answer));
        }
    }

    /// A request that does not begin here, and where its answer will come.
    #[inline(never)]
    #[allow(clippy::type_complexity, reason = "a job and its answer")]
    fn waiting<W: Work<I>>(
        &self,
        work: Quiet<W>,
        callers: Option<Arc<Chain>>,
        slot: &Slot<I>,
        id: &str,
    ) -> (Box<dyn Job<I>>, oneshot::Receiver<Quiet<AnswerOf<I, W>>>) {
        let (reply, answer) = oneshot::channel();
        let limit = self.options.handler_timeout;
        let patience = match &callers {
            Some(callers) => Patience::Until(callers.turn_until(), callers.given()),
            None => Patience::Until(slot.moment_in(limit), limit),
        };
        let header = Header { callers, limit, woken_by: None, span: span_of::<I>(id, slot.shard, None) };
        (Box::new(Queued { header, work, patience, reply: Some(reply) }), answer)
    }

    /// Queues a message at a slot that was not free, or runs it if the slot has become free meanwhile.
    pub(crate) fn queue(
        self: &Arc<Self>,
        mut slot: Arc<Slot<I>>,
        mut taken: Taken<I>,
        mut job: Box<dyn Job<I>>,
        id: &str,
        route: Route,
    ) -> Outcome<(), I::Error> {
        loop {
            match taken {
                Taken::Free(state) => {
                    run_inline(&slot, Next::<I>::Run(job, state, route.epoch));
                    return Ok(());
                }
                Taken::Gone => slot = self.slot(id, route)?,
                Taken::Busy | Taken::Unsettled(_) if !job.may_queue() => {
                    if let Taken::Unsettled(next) = taken {
                        drive(&slot, Step::Next(next));
                    }
                    return Ok(());
                }
                Taken::Busy | Taken::Unsettled(_) => match slot.enqueue(job) {
                    Ok(()) | Err(Enqueue::<I>::Needless(_)) => {
                        if let Taken::Unsettled(next) = taken {
                            drive(&slot, Step::Next(next));
                        }
                        return Ok(());
                    }
                    Err(Enqueue::<I>::Full(_refused)) => {
                        return Err(RequestError::Overloaded("messages waiting for the instance".into()).into());
                    }
                    Err(Enqueue::<I>::Gone(back) | Enqueue::<I>::Free(back)) => job = back,
                },
            }
            taken = slot.take(route.epoch);
        }
    }
}
