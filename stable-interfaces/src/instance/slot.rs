//! The place of one instance: its [`Machine`] and the lock around it.
//!
//! The machine decides; a slot takes the lock, lends the machine [`SlotHands`], and lets go what it leaves when the lock is free. Commits
//! are queued under this lock, so they enter the committer in the order in which turns end.

use std::hint::cold_path;
use std::time::Duration;

use super::StableInterface;
use super::answer::{Answer, Ending, Refusal, State};
use super::chain::{self, Deadline};
use super::job::{EndOf, HandlerEnd, Job};
use super::kind::InterfaceCore;
use super::living::{Living, StateOf};
use super::machine::{self, Machine, Take};
use crate::connection::{Closed, ConnectionId};
use crate::error::{Outcome, RequestError};
use crate::instance::life::Life;
use crate::instance::slot::hands::{SlotHands, explain};
use crate::shards::delivery::Delivery;
use crate::shared::{Forget, Health};
use crate::store::{Epoch, ShardId};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, Notify};
use crate::tasks::TaskHandle;

mod hands;
#[cfg(all(test, not(shuttle)))]
mod tests;
mod view;

/// The machine of an instance of an interface, and what it says.
type MachineOf<I> = Machine<Living<I>, Box<dyn Job<I>>>;
pub(crate) type Next<I> = machine::Next<Living<I>, Box<dyn Job<I>>>;
pub(crate) type Enqueue<I> = machine::Enqueue<Box<dyn Job<I>>>;
type Left<I> = machine::Left<Living<I>, Box<dyn Job<I>>>;

pub(crate) struct Slot<I: StableInterface> {
    pub(crate) id: Arc<str>,
    pub(crate) shard: ShardId,
    /// The table's time of its last use.
    used: AtomicU64,
    pub(crate) interface: Arc<InterfaceCore<I>>,
    /// Tells whether it is busy with a first poll, which is soon over. A hint: read without the lock by who waits for that.
    is_polled: AtomicBool,
    machine: Mutex<MachineOf<I>>,
}

/// The outcome of an attempt to take a slot.
pub(crate) enum Taken<I: StableInterface> {
    /// The instance is the caller's now: run a turn with this state.
    Free(StateOf<I>),
    /// Somebody has it: queue the message.
    Busy,
    /// The instance was idle, but its last incarnation has to be waited for: queue the message, then do this.
    Unsettled(Next<I>),
    /// The slot is out of the table: look the ID up again.
    Gone,
}

/// The outcome of a turn's end.
pub(crate) enum TurnEnd<I: StableInterface, R> {
    /// The slot is idle, and the result waits for nothing: most turns end like this.
    Quiet(Outcome<R, I::Error>),
    Other(Answer<R, I::Error>, Next<I>),
}

impl<I: StableInterface, R> TurnEnd<I, R> {
    pub(crate) fn into_parts(self) -> (Answer<R, I::Error>, Next<I>) {
        match self {
            TurnEnd::Quiet(result) => (Answer::at_once(result), Next::<I>::Idle),
            TurnEnd::Other(answer, next) => (answer, next),
        }
    }
}

/// The number of times a message looks whether an instance has become free before it queues.
const SPINS: u32 = if cfg!(shuttle) { 2 } else { 40 };

impl<I: StableInterface> Slot<I> {
    /// Checks that what every request moves stays small, for each interface that is compiled.
    const IS_SMALL: () = assert!(size_of::<Taken<I>>() <= 40 && size_of::<EndOf<I, u64>>() <= 32);

    pub(crate) fn new(id: &str, shard: ShardId, interface: Arc<InterfaceCore<I>>) -> Slot<I> {
        let () = Self::IS_SMALL;
        Slot {
            id: id.into(),
            shard,
            used: AtomicU64::new(0),
            interface,
            is_polled: AtomicBool::new(false),
            machine: Mutex::new(Machine::new()),
        }
    }

    /// The epoch under which this host owns its shard.
    #[inline(always)]
    fn owned(&self) -> Option<Epoch> {
        self.interface.host.shards.epoch(self.shard)
    }

    /// Has the machine do something that leaves anything, and lets that go when the lock is free.
    fn act<T>(
        self: &Arc<Self>,
        mut machine: MutexGuard<'_, MachineOf<I>>,
        act: impl FnOnce(&mut MachineOf<I>, &mut SlotHands<'_, I>, &mut Left<I>) -> T,
    ) -> T {
        let (mut hands, mut left) = (SlotHands::of(self), Left::default());
        let done = act(&mut machine, &mut hands, &mut left);
        if !machine.is_busy() {
            self.is_polled.store(false, Ordering::Relaxed);
        }
        drop(machine);
        hands.let_go(left);
        done
    }

    /// Tries to take the slot for a turn under `epoch`.
    #[inline(always)]
    pub(crate) fn take(self: &Arc<Self>, epoch: Epoch) -> Taken<I> {
        let mut machine = self.machine.lock();
        match machine.take(epoch) {
            Take::Free(state) => {
                self.is_polled.store(true, Ordering::Relaxed);
                Taken::Free(state)
            }
            Take::Busy => Taken::Busy,
            Take::Gone => Taken::Gone,
            Take::Stale => self.renew(machine, epoch),
        }
    }

    #[cold]
    fn renew(self: &Arc<Self>, machine: MutexGuard<'_, MachineOf<I>>, epoch: Epoch) -> Taken<I> {
        match self.act(machine, |machine, _, left| machine.renew(epoch, left)) {
            Some(next) => Taken::Unsettled(next),
            None => Taken::Free(State::none()),
        }
    }

    /// As [`take`](Self::take), of a slot that is busy: waits a moment first, shorter than it takes to queue a message and wake its
    /// sender, if the slot is about to become free.
    #[cold]
    pub(crate) fn take_soon(self: &Arc<Self>, epoch: Epoch) -> Taken<I> {
        for _ in 0..SPINS {
            if !self.is_polled.load(Ordering::Relaxed) {
                break;
            }
            std::hint::spin_loop();
        }
        self.take(epoch)
    }

    /// Notes that the handler of the slot will not be over soon.
    pub(crate) fn stays_busy(&self) {
        self.is_polled.store(false, Ordering::Relaxed);
    }

    /// Lets a message wait for its turn. Its turn comes without the sender's doing.
    pub(crate) fn enqueue(&self, job: Box<dyn Job<I>>) -> Result<(), Enqueue<I>> {
        self.machine.lock().enqueue(job, self.interface.options.max_waiting)
    }

    /// Ends a turn: commits what it recorded, puts the state back, and says what comes next.
    #[inline(always)]
    pub(crate) fn finish<R>(
        self: &Arc<Self>,
        epoch: Epoch,
        end: EndOf<I, R>,
        woken_by: Option<Delivery>,
    ) -> TurnEnd<I, R> {
        match end {
            // Most turns record nothing, and nobody waits for their end.
            HandlerEnd::Returned { state, recorded, result }
                if state.is_some() && recorded.is_empty() && woken_by.is_none() =>
            {
                let mut machine = self.machine.lock();
                match machine.finish_quietly(epoch, state, || self.owned()) {
                    Ok(()) => {
                        self.is_polled.store(false, Ordering::Relaxed);
                        drop(machine);
                        TurnEnd::Quiet(result)
                    }
                    Err(state) => {
                        cold_path();
                        // Nobody tries it again: it was no alarm and no message.
                        self.finish_locked(machine, epoch, Ending::Returned { state, recorded, result }, None, None)
                    }
                }
            }
            end => {
                cold_path();
                self.finish_with(epoch, end, woken_by)
            }
        }
    }

    #[inline(never)]
    fn finish_with<R>(self: &Arc<Self>, epoch: Epoch, end: EndOf<I, R>, woken_by: Option<Delivery>) -> TurnEnd<I, R> {
        let (ending, failure) = self.ending_of(end, woken_by.is_some());
        self.finish_locked(self.machine.lock(), epoch, ending, woken_by, failure)
    }

    #[inline(never)]
    fn finish_locked<R>(
        self: &Arc<Self>,
        machine: MutexGuard<'_, MachineOf<I>>,
        epoch: Epoch,
        ending: Ending<Living<I>, R, I::Error>,
        woken_by: Option<Delivery>,
        failure: Option<String>,
    ) -> TurnEnd<I, R> {
        let finished =
            self.act(machine, |machine, hands, left| machine.finish(hands, left, epoch, ending, woken_by, failure));
        if finished.is_reset {
            metrics::counter!(crate::metrics::RESETS, "interface" => I::NAME).increment(1);
        }
        drop(finished.withheld);
        TurnEnd::Other(finished.answer, finished.next)
    }

    /// The end of a turn for the machine; and the text of what it has failed of, if that is noted with what woke the instance. It runs
    /// code of the application, so the lock is free.
    fn ending_of<R>(&self, end: EndOf<I, R>, was_woken: bool) -> (Ending<Living<I>, R, I::Error>, Option<String>) {
        let instance = chain::Described(self);
        match end {
            HandlerEnd::Returned { state, recorded, mut result } => {
                let failure = match &mut result {
                    // What ends because the shard is not this host's any more, or may not be, has not been tried.
                    Err(error) if was_woken && !matches!(**error, RequestError::Fenced | RequestError::LeaseLost) => {
                        Some(explain(error))
                    }
                    _ => None,
                };
                (Ending::Returned { state, recorded, result }, failure)
            }
            HandlerEnd::Panicked(text) => {
                tracing::error!(%instance, panic = %text, "a handler panicked; its instance is reset");
                let failure = format!("panicked: {text}");
                (Ending::Broken { error: RequestError::Panicked(text), reason: Closed::Reset }, Some(failure))
            }
            HandlerEnd::TimedOut(after) => {
                tracing::error!(%instance, ?after, "a handler ran out of time; its instance is reset");
                let error = RequestError::TimedOut { after, waited_for: instance.to_string() };
                (Ending::Broken { error, reason: Closed::Reset }, Some(format!("timed out after {after:?}")))
            }
            HandlerEnd::StopCut(after) => {
                tracing::error!(%instance, ?after, "an instance took too long to stop; its `on_stop` was cut off");
                let host = &self.interface.host;
                let is_draining = host.health() > Health::Running;
                host.stops_cut.fetch_add(usize::from(is_draining), Ordering::AcqRel);
                let error = RequestError::TimedOut { after, waited_for: instance.to_string() };
                let reason = if is_draining { Closed::parting(host, self.shard) } else { Closed::Stopped };
                (Ending::Broken { error, reason }, None)
            }
        }
    }

    /// Notes that the remains of the incarnation that ended are done.
    pub(crate) fn settled(self: &Arc<Self>) -> Next<I> {
        self.interface.host.task_rests(self.shard);
        self.act(self.machine.lock(), |machine, hands, left| machine.settled(hands, left))
    }

    /// The next message may not begin, for the lease is over: it is refused, as all that wait behind it.
    pub(crate) fn refuse_next(self: &Arc<Self>, job: Box<dyn Job<I>>, state: StateOf<I>) -> Next<I> {
        self.act(self.machine.lock(), |machine, hands, left| machine.refuse_next(hands, left, job, state))
    }

    /// Takes an idle instance that nothing keeps in memory, to be stopped. `even_held` if alarms held by it do not keep it.
    pub(crate) fn take_idle(self: &Arc<Self>, epoch: Epoch, even_held: bool) -> Option<Next<I>> {
        self.machine.lock().take_idle(&SlotHands::of(self), epoch, even_held)
    }

    /// Drops an instance that this host may not run any more. One that is busy goes with its turn, what belongs to it now.
    pub(crate) fn forget(self: &Arc<Self>, which: Forget) -> Option<Next<I>> {
        self.act(self.machine.lock(), |machine, hands, left| machine.forget(hands, left, which == Forget::All))
    }

    /// Takes the slot out of the table if nothing of it is in memory.
    fn leave_if_empty(self: &Arc<Self>) {
        self.act(self.machine.lock(), |machine, hands, _| machine.leave_if_empty(hands));
    }

    /// Drops what rests here, without ceremony: the host is going away.
    pub(crate) fn abandon(self: &Arc<Self>) {
        let reason = Closed::parting(&self.interface.host, self.shard);
        self.act(self.machine.lock(), |machine, _, left| machine.abandon(left, &reason));
    }

    /// A task has ended by itself: nothing of it is kept.
    fn task_ended(&self, life: &Arc<Life>) {
        self.interface.host.task_rests(self.shard);
        self.machine.lock().task_ended(life, TaskHandle::is_current);
    }

    /// The client of a connection has closed it; whether the instance did not know yet.
    pub(crate) fn client_left(&self, id: ConnectionId) -> bool {
        let left = self.machine.lock().client_left(id);
        left.is_some()
    }

    /// Tells whether a task of it is not parked.
    pub(crate) fn has_busy_tasks(&self) -> bool {
        self.machine.lock().has_busy_tasks()
    }

    /// Says whether it is busy with a handler, or with the end of an incarnation.
    pub(crate) fn is_busy(&self) -> bool {
        self.machine.lock().is_busy()
    }

    /// Tells whether the instance is in memory, or about to be.
    pub(crate) fn is_running(&self) -> bool {
        self.machine.lock().is_running()
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
        let (late, next_look) = self.machine.lock().take_late(now, sooner);
        for job in late {
            self.refuse_late(job);
        }
        next_look
    }

    /// Tells a message that its time is over before its turn has come.
    fn refuse_late(&self, job: Box<dyn Job<I>>) {
        let refusal = Refusal::TimedOut { after: job.given(), waited_for: chain::Described(self).to_string() };
        job.refuse(refusal);
    }

    /// Nobody looks at the queue's deadlines any more.
    pub(crate) fn stop_watching(&self) {
        self.machine.lock().stop_watching();
    }
}
