//! The place of one instance: its state while no handler runs, and the messages that wait for it.
//!
//! A slot is *idle* (its state rests here, or there is none yet), *busy* (a turn has the state, or the end of an incarnation is
//! awaited) or *gone* (out of the table, never used again). Only who made it busy may run handlers, and hands that duty on
//! with [`Next`]. Nobody barges: a message takes an idle slot only, and a slot is idle only when nobody waits. Commits are
//! queued under this lock, so they enter the committer in the order in which turns end.
//!
//! An incarnation that is reset leaves its gate behind, and the slot stays busy until everything it had sent is settled;
//! nothing of the next incarnation runs before.

use std::time::Duration;

use super::StableInterface;
use super::chain::{self, Deadline};
use super::kind::InterfaceCore;
use super::queue::Waiter as _;
use crate::commit::gate::Gate;
use crate::connection::Closed;
use crate::error::{ContextError, RequestError};
use crate::instance::job::{Answer, Ending, Job, NO_COMMIT, Refusal, State};
use crate::instance::recorded::Enlisted;
use crate::instance::slot::cold::Extra;
use crate::instance::slot::commits::explain;
use crate::instance::slot::left::Left;
use crate::quiet::Quiet;
use crate::shards::delivery::Delivery;
use crate::shared::{Forget, Health};
use crate::store::{Epoch, ShardId};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, Notify};

mod cold;
mod commits;
mod left;
mod outputs;
#[cfg(all(test, not(shuttle)))]
mod tests;
mod view;

pub(crate) use self::left::Ended;

pub(crate) struct Slot<I: StableInterface> {
    pub(crate) id: Arc<str>,
    pub(crate) shard: ShardId,
    /// The table's time of its last use.
    used: AtomicU64,
    pub(crate) interface: Arc<InterfaceCore<I>>,
    /// Tells whether it is busy with a first poll, which is soon over. A hint: read without the lock by who waits for that.
    is_polled: AtomicBool,
    inner: Mutex<Inner<I>>,
}

struct Inner<I: StableInterface> {
    mode: Mode,
    /// The instance, while no turn has it.
    state: State<I>,
    /// The epoch of the shard when the instance was built, or its turn under way began.
    epoch: Epoch,
    /// Rarely used fields, boxed so that an idle instance is small.
    extra: Option<Box<Extra<I>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Idle,
    Busy,
    Gone,
}

/// The next thing to do for whoever keeps a slot busy.
pub(crate) enum Next<I: StableInterface> {
    /// Nothing: the slot is idle.
    Idle,
    /// Runs this message.
    Run(Box<dyn Job<I>>, State<I>, Epoch),
    /// Waits for what an ended incarnation has left, then calls [`Slot::settled`].
    Settle(Ended),
}

/// The outcome of an attempt to take a slot.
pub(crate) enum Taken<I: StableInterface> {
    /// It is the caller's now: run a turn with this state.
    Free(State<I>),
    /// Somebody has it: queue the message.
    Busy,
    /// It was idle, but its last incarnation has to be waited for: queue the message, then do this.
    Unsettled(Next<I>),
    /// It is out of the table: look the ID up again.
    Gone,
}

/// The number of times a message looks whether an instance has become free before it queues.
const SPINS: u32 = if cfg!(shuttle) { 2 } else { 40 };

impl<I: StableInterface> Slot<I> {
    pub(crate) fn new(id: &str, shard: ShardId, interface: Arc<InterfaceCore<I>>) -> Slot<I> {
        let inner = Inner { mode: Mode::Idle, state: State::none(), epoch: Epoch(0), extra: None };
        Slot {
            id: id.into(),
            shard,
            used: AtomicU64::new(0),
            interface,
            is_polled: AtomicBool::new(false),
            inner: Mutex::new(inner),
        }
    }

    /// Tries to take the slot for a turn under `epoch`.
    #[inline]
    pub(crate) fn take(&self, epoch: Epoch) -> Taken<I> {
        let mut inner = self.inner.lock();
        match inner.mode {
            Mode::Gone => return Taken::Gone,
            Mode::Busy => return Taken::Busy,
            Mode::Idle => inner.mode = Mode::Busy,
        }
        let is_stale = inner.epoch != epoch && inner.state.is_some();
        let has_failed =
            inner.extra.as_ref().and_then(|extra| extra.gate.as_ref()).is_some_and(|gate| gate.has_failed());
        if is_stale || has_failed {
            let mut left = Left { state: inner.state.take(), ..Left::default() };
            let next = Self::end(&mut inner, &mut left, &Closed::Reset);
            inner.epoch = epoch;
            drop(inner);
            left.clear(self);
            return match next {
                Some(next) => Taken::Unsettled(next),
                None => Taken::Free(State::none()),
            };
        }
        inner.epoch = epoch;
        self.is_polled.store(true, Ordering::Relaxed);
        Taken::Free(inner.state.take())
    }

    /// Waits a moment, shorter than it takes to queue a message and wake its sender, if the slot is about to become free.
    #[inline]
    pub(crate) fn spin(&self) {
        for _ in 0..SPINS {
            if !self.is_polled.load(Ordering::Relaxed) {
                return;
            }
            std::hint::spin_loop();
        }
    }

    /// Notes that the handler of the slot will not be over soon.
    pub(crate) fn stays_busy(&self) {
        self.is_polled.store(false, Ordering::Relaxed);
    }

    /// Lets a message wait for its turn. Its turn comes without the sender's doing.
    pub(crate) fn enqueue(self: &Arc<Self>, job: Box<dyn Job<I>>) -> Result<(), Enqueue<I>> {
        let mut inner = self.inner.lock();
        match inner.mode {
            Mode::Gone => return Err(Enqueue::Gone(job)),
            Mode::Idle => return Err(Enqueue::Free(job)),
            Mode::Busy => {}
        }
        let extra = inner.extra.get_or_insert_default();
        let waits_until = job.waits_until();
        let is_drain = job.is_drain();
        if is_drain && extra.is_draining {
            return Ok(());
        }
        if let Err(job) = extra.queue.push(job, self.interface.options.max_waiting) {
            return Err(Enqueue::Full(job));
        }
        extra.is_draining |= is_drain;
        if let Some((next_look, sooner)) = &extra.watch
            && waits_until < *next_look
        {
            sooner.notify_one();
        }
        Ok(())
    }

    /// Ends a turn: commits what it recorded, puts the state back, and says what comes next.
    #[inline]
    pub(crate) fn finish<R>(
        self: &Arc<Self>,
        epoch: Epoch,
        ending: Ending<I, R>,
        woken_by: Option<Delivery>,
    ) -> (Answer<R, I::Error>, Next<I>) {
        let (inner, ending) = match ending {
            // Most turns record nothing, and nobody waits for their end.
            Ending::Returned { state, recorded, result }
                if state.is_some() && recorded.is_empty() && woken_by.is_none() =>
            {
                let mut inner = self.inner.lock();
                if inner.extra.is_none() && self.interface.host.shards.epoch(self.shard) == Some(epoch) {
                    inner.state = state;
                    inner.epoch = epoch;
                    inner.mode = Mode::Idle;
                    self.is_polled.store(false, Ordering::Relaxed);
                    return (Answer { result, behind: None, interim: NO_COMMIT }, Next::Idle);
                }
                (Some(inner), Ending::Returned { state, recorded, result })
            }
            ending => (None, ending),
        };
        let (failure, ending) = match inner {
            // Nobody tries it again: it was no alarm and no message.
            Some(_) => (None, ending),
            None => self.failure_of(ending, woken_by.is_some()),
        };
        let inner = inner.unwrap_or_else(|| self.inner.lock());
        self.finish_turn(inner, epoch, ending, woken_by, failure)
    }

    /// The text of what a turn has failed of, if that is noted with what woke the instance or logged. It runs code of the
    /// application, so the lock is free.
    fn failure_of<R>(&self, mut ending: Ending<I, R>, was_woken: bool) -> (Option<String>, Ending<I, R>) {
        let failure = match &mut ending {
            // What ends because the shard is not this host's any more, or may not be, has not been tried.
            Ending::Returned { result: Err(error), .. }
                if was_woken && !matches!(**error, RequestError::Fenced | RequestError::LeaseLost) =>
            {
                Some(explain(error))
            }
            Ending::Returned { .. } => None,
            Ending::Panicked(text) => {
                tracing::error!(instance = %chain::Described(self), panic = %text, "a handler panicked; its instance is reset");
                Some(format!("panicked: {text}"))
            }
            Ending::TimedOut(after) => {
                tracing::error!(instance = %chain::Described(self), ?after, "a handler ran out of time; its instance is reset");
                Some(format!("timed out after {after:?}"))
            }
            Ending::StopCut(after) => {
                tracing::error!(instance = %chain::Described(self), ?after, "an instance took too long to stop; its `on_stop` was cut off");
                None
            }
        };
        (failure, ending)
    }

    fn finish_turn<R>(
        self: &Arc<Self>,
        mut inner: MutexGuard<'_, Inner<I>>,
        epoch: Epoch,
        ending: Ending<I, R>,
        woken_by: Option<Delivery>,
        failure: Option<String>,
    ) -> (Answer<R, I::Error>, Next<I>) {
        let mut left = Left::default();
        let mut failed_start = None;
        // A reply that is not given, until the lock is free.
        let mut replaced = Quiet::none();
        let (in_doubt, mut interim) = match &mut inner.extra {
            Some(extra) => (extra.in_doubt.take(), std::mem::replace(&mut extra.interim, NO_COMMIT)),
            None => (None, NO_COMMIT),
        };
        let (woken_by, may_have_committed) = match &in_doubt {
            Some((in_doubt, _)) => in_doubt.end_turn(woken_by),
            None => (woken_by, false),
        };
        if let Some((_, number)) = in_doubt.filter(|_| may_have_committed) {
            interim = interim.min(number);
        }
        let (result, ends) = match ending {
            Ending::Returned { state, mut recorded, result } => {
                inner.state = state;
                inner.epoch = epoch;
                let is_cut = recorded.enlisted() == Enlisted::Cut;
                let result = match result {
                    Ok(reply) if is_cut => {
                        replaced = Quiet::new(reply);
                        Err(RequestError::from(ContextError::Unknown).into())
                    }
                    result => result,
                };
                failed_start = recorded.take_failed_start();
                let ends = match &result {
                    Ok(_) => {
                        left.outputs = self.commit_turn(&mut inner, &mut left, epoch, &mut recorded, woken_by);
                        recorded.take_end()
                    }
                    Err(_) => {
                        if let (Some(delivery), Some(error)) = (woken_by, &failure) {
                            self.push_failure(&mut inner, &mut left, epoch, delivery, error);
                        }
                        let ends = recorded.take_end().or((is_cut || failed_start.is_some()).then_some(Closed::Reset));
                        if ends.is_none() {
                            Self::take_back(&inner, &mut left, &mut recorded);
                        }
                        ends
                    }
                };
                if recorded.wants_passivation() && ends.is_none() {
                    let is_queued = inner.extra.get_or_insert_default().queue.push((self.interface.stop)(), 0);
                    debug_assert!(is_queued.is_ok(), "it needs none of the queue's places");
                }
                left.recorded = recorded;
                (result, ends)
            }
            Ending::Panicked(text) => {
                if let (Some(delivery), Some(error)) = (woken_by, &failure) {
                    self.push_failure(&mut inner, &mut left, epoch, delivery, error);
                }
                (Err(RequestError::Panicked(text).into()), Some(Closed::Reset))
            }
            Ending::StopCut(after) => {
                let host = &self.interface.host;
                let is_draining = host.health() > Health::Running;
                host.stops_cut.fetch_add(usize::from(is_draining), Ordering::AcqRel);
                let waited_for = chain::Described(&**self).to_string();
                let reason = if is_draining { Closed::parting(host.health()) } else { Closed::Stopped };
                (Err(RequestError::TimedOut { after, waited_for }.into()), Some(reason))
            }
            Ending::TimedOut(after) => {
                if let (Some(delivery), Some(error)) = (woken_by, &failure) {
                    self.push_failure(&mut inner, &mut left, epoch, delivery, error);
                }
                let waited_for = chain::Described(&**self).to_string();
                (Err(RequestError::TimedOut { after, waited_for }.into()), Some(Closed::Reset))
            }
        };
        let gate = inner.extra.as_ref().and_then(|extra| extra.gate.as_ref());
        let has_failed = gate.is_some_and(|gate| gate.has_failed());
        let behind = gate.and_then(Gate::pending);
        self.release(&mut inner, &mut left, behind.as_ref());
        if let Some(error) = failed_start
            && let Some(extra) = &mut inner.extra
        {
            extra.is_draining = false;
            let refusal = match result.as_ref().err().map(|error| &**error) {
                Some(RequestError::Store(cause)) => Refusal::Store(cause.clone()),
                _ => Refusal::NotStarted(error),
            };
            left.refused.extend(extra.queue.take_all().into_iter().map(|job| (job, refusal.clone())));
        }
        // Whatever ended it, a part of it is durable or may be.
        let result = match result {
            Err(error) if interim != NO_COMMIT => Err(Box::new(error.in_doubt())),
            result => result,
        };
        let answer = Answer { result, behind, interim };
        let is_over = inner.extra.as_ref().is_some_and(|extra| extra.is_over);
        let ends = ends
            .or(has_failed.then_some(Closed::Reset))
            .or_else(|| is_over.then(|| Closed::parting(self.interface.host.health())));
        let is_reset = ends == Some(Closed::Reset);
        for commit in inner.extra.iter_mut().flat_map(|extra| &mut extra.unsettled) {
            commit.of_turn = None;
        }
        let next = match ends {
            Some(reason) => {
                left.state = inner.state.take();
                match Self::end(&mut inner, &mut left, &reason) {
                    Some(next) => next,
                    None => self.next(&mut inner, &mut left),
                }
            }
            None => self.next(&mut inner, &mut left),
        };
        drop(inner);
        if is_reset {
            metrics::counter!(crate::metrics::RESETS, "interface" => I::NAME).increment(1);
        }
        drop(replaced);
        left.clear(&**self);
        (answer, next)
    }

    /// Tells whether a task of it is not parked.
    pub(crate) fn has_busy_tasks(&self) -> bool {
        let inner = self.inner.lock();
        inner.extra.as_ref().and_then(|extra| extra.life.as_ref()).is_some_and(|life| life.is_busy())
    }

    /// Ends the incarnation: cancels its tasks, closes its connections, lets its held alarms go. What it still has under way is
    /// returned to be waited for.
    fn end(inner: &mut Inner<I>, left: &mut Left<I>, reason: &Closed) -> Option<Next<I>> {
        let extra = inner.extra.as_mut()?;
        extra.is_over = false;
        extra.end_life(left, reason);
        let tasks = std::mem::take(&mut extra.tasks);
        let gate = extra.gate.clone().filter(|gate| !gate.is_settled());
        if gate.is_some() || tasks.iter().any(|task| !task.has_ended()) {
            return Some(Next::Settle(Ended { gate, tasks }));
        }
        extra.gate = None;
        extra.unsettled.clear();
        None
    }

    /// Notes that the remains of the incarnation that ended are done.
    pub(crate) fn settled(self: &Arc<Self>) -> Next<I> {
        self.interface.host.task_rested.notify_one();
        let mut left = Left::default();
        let mut inner = self.inner.lock();
        let next = match Self::end(&mut inner, &mut left, &Closed::Reset) {
            Some(next) => next,
            None => self.next(&mut inner, &mut left),
        };
        drop(inner);
        left.clear(&**self);
        next
    }

    /// The next message may not begin, for the lease is over: it is refused, as all that wait behind it.
    pub(crate) fn refuse_next(self: &Arc<Self>, job: Box<dyn Job<I>>, state: State<I>) -> Next<I> {
        let mut left = Left { refused: vec![(job, Refusal::LeaseLost)], ..Left::default() };
        let mut inner = self.inner.lock();
        inner.state = state;
        let next = self.next(&mut inner, &mut left);
        drop(inner);
        left.clear(&**self);
        next
    }

    /// The next message, or idleness. A slot with nothing in memory leaves the table.
    fn next(self: &Arc<Self>, inner: &mut Inner<I>, left: &mut Left<I>) -> Next<I> {
        let host = &self.interface.host;
        let epoch = host.shards.epoch(self.shard);
        if epoch != Some(inner.epoch) && inner.state.is_some() {
            left.state = inner.state.take();
            if let Some(next) = Self::end(inner, left, &Closed::parting(host.health())) {
                return next;
            }
        }
        if let Some(extra) = &mut inner.extra {
            match epoch {
                Some(_) if extra.queue.is_empty() => {}
                Some(epoch) if host.lease_holds() => {
                    let late = extra.queue.take_late(|| host.clock.elapsed());
                    left.refused.extend(late.into_iter().map(|job| self.is_late(job)));
                    if let Some(job) = extra.pop_queue() {
                        inner.epoch = epoch;
                        return Next::Run(job, inner.state.take(), epoch);
                    }
                }
                epoch => {
                    let refusal = if epoch.is_some() { Refusal::LeaseLost } else { Refusal::Fenced };
                    left.refused.extend(extra.queue.take_all().into_iter().map(|job| (job, refusal.clone())));
                    extra.is_draining = false;
                }
            }
            if extra.is_empty() {
                inner.extra = None;
            }
        }
        inner.mode = Mode::Idle;
        self.is_polled.store(false, Ordering::Relaxed);
        if inner.state.is_none() {
            match inner.extra.as_ref().and_then(|extra| extra.gate.clone()) {
                Some(gate) if !gate.is_settled() => {
                    let slot = self.clone();
                    host.spawn_turn(async move {
                        gate.wait_settled().await;
                        slot.leave_if_empty();
                    });
                }
                _ => self.leave(inner),
            }
        }
        Next::Idle
    }

    /// Takes an idle instance that nothing keeps in memory, to be stopped. `even_held` if alarms held by it do not keep it.
    pub(crate) fn take_idle(&self, epoch: Epoch, even_held: bool) -> Option<Next<I>> {
        let mut inner = self.inner.lock();
        let is_needed =
            inner.extra.as_ref().is_some_and(|extra| extra.is_needed() || (!even_held && !extra.held.is_empty()));
        if inner.mode != Mode::Idle || inner.state.is_none() || is_needed {
            return None;
        }
        inner.mode = Mode::Busy;
        Some(Next::Run((self.interface.stop)(), inner.state.take(), epoch))
    }

    /// Drops an instance that this host may not run any more. One that is busy goes with its turn, what belongs to it now.
    pub(crate) fn forget(self: &Arc<Self>, which: Forget) -> Option<Next<I>> {
        let mut inner = self.inner.lock();
        let is_lost = self.interface.host.shards.epoch(self.shard) != Some(inner.epoch);
        if inner.mode == Mode::Gone || !(is_lost || which == Forget::All) {
            return None;
        }
        if inner.mode == Mode::Busy {
            let mut left = Left::default();
            let extra = inner.extra.get_or_insert_default();
            extra.is_over = true;
            extra.end_life(&mut left, &Closed::parting(self.interface.host.health()));
            drop(inner);
            left.clear(&**self);
            return None;
        }
        inner.mode = Mode::Busy;
        let mut left = Left { state: inner.state.take(), ..Left::default() };
        let next = match Self::end(&mut inner, &mut left, &Closed::parting(self.interface.host.health())) {
            Some(next) => next,
            None => self.next(&mut inner, &mut left),
        };
        drop(inner);
        left.clear(&**self);
        Some(next)
    }

    /// Takes the slot out of the table if nothing of it is in memory.
    fn leave_if_empty(&self) {
        let mut inner = self.inner.lock();
        let is_settled =
            inner.extra.as_ref().and_then(|extra| extra.gate.as_ref()).is_none_or(|gate| gate.is_settled());
        if inner.mode == Mode::Idle && inner.state.is_none() && is_settled {
            self.leave(&mut inner);
        }
    }

    fn leave(&self, inner: &mut Inner<I>) {
        inner.mode = Mode::Gone;
        inner.extra = None;
        self.interface.table.remove(self);
        let host = &self.interface.host;
        if host.health() >= Health::Draining {
            host.instance_left.notify_one();
        }
    }

    /// Says whether it is busy with a handler, or with the end of an incarnation.
    pub(crate) fn is_busy(&self) -> bool {
        self.inner.lock().mode == Mode::Busy
    }

    /// Tells whether the instance is in memory, or about to be.
    pub(crate) fn is_running(&self) -> bool {
        let inner = self.inner.lock();
        inner.state.is_some() || inner.mode == Mode::Busy
    }

    /// Drops what rests here, without ceremony: the host is going away.
    pub(crate) fn abandon(&self) {
        let mut inner = self.inner.lock();
        inner.mode = Mode::Gone;
        let mut left = Left { state: inner.state.take(), ..Left::default() };
        // Its connections are told; its tasks are the host's to end.
        let ended = Self::end(&mut inner, &mut left, &Closed::parting(self.interface.host.health()));
        let extra = inner.extra.take();
        drop(inner);
        drop(ended);
        let waiting = extra.into_iter().flat_map(|mut extra| extra.queue.take_all());
        left.refused.extend(waiting.map(|job| (job, Refusal::Stopped)));
        left.clear(self);
    }

    /// The moment `duration` from now, by the lease clock.
    pub(crate) fn moment_in(&self, duration: Duration) -> Duration {
        self.interface.host.clock.elapsed().saturating_add(duration)
    }

    /// The moment by which an `on_stop` that starts now must be done. Unlike a handler's it is known from the start: stopping is rare.
    pub(crate) fn stop_deadline(&self) -> Deadline {
        const LATEST: Duration = Duration::from_nanos(u64::MAX - 1);
        Deadline::at(self.moment_in(self.interface.options.stop_timeout).min(LATEST))
    }

    /// Refuses the queued messages whose time is over, and says when to look again. `sooner` is told if that changes.
    pub(crate) fn expire_queued(&self, now: Duration, sooner: &Arc<Notify>) -> Duration {
        let mut inner = self.inner.lock();
        let extra = inner.extra.get_or_insert_default();
        let late = extra.queue.take_late(|| now);
        let next_look = extra.queue.earliest();
        extra.watch = Some((next_look, sooner.clone()));
        drop(inner);
        for job in late {
            let (job, refusal) = self.is_late(job);
            job.refuse(refusal);
        }
        next_look
    }

    /// A message whose time is over before its turn has come, and what it is told.
    fn is_late(&self, job: Box<dyn Job<I>>) -> (Box<dyn Job<I>>, Refusal) {
        let refusal = Refusal::TimedOut { after: job.given(), waited_for: chain::Described(self).to_string() };
        (job, refusal)
    }

    /// Nobody looks at the queue's deadlines any more.
    pub(crate) fn stop_watching(&self) {
        if let Some(extra) = &mut self.inner.lock().extra {
            extra.watch = None;
        }
    }
}

/// The reason why a message could not be queued.
pub(crate) enum Enqueue<I: StableInterface> {
    /// The slot left the table meanwhile.
    Gone(Box<dyn Job<I>>),
    /// The slot became idle meanwhile.
    Free(Box<dyn Job<I>>),
    /// Too many wait already.
    Full(Box<dyn Job<I>>),
}
