//! The decisions about one instance: who has its state, what waits for it, what becomes of a turn, and when an incarnation is over.
//!
//! *One at a time, in one place*: a machine is *idle* (the state rests here, or there is none yet), *busy* (a turn has the state, or the end of an incarnation is
//! awaited) or *gone* (out of the table, never used again). Only who made it busy may run handlers, and hands that duty on with
//! [`Next`]. Nobody barges: a message takes an idle machine only, and it is idle only when nobody waits. An incarnation that ends leaves
//! its gate behind, and the machine stays busy until everything that was under way is settled; nothing of the next one runs before.
//!
//! Nothing here reads a clock, does I/O, takes a lock or runs the application's code. A machine lives inside its slot's lock. What it
//! needs done it asks of [`Hands`]; what it lets go stays in [`Left`] until that lock is free.
//!
//! | event | idle | busy | gone |
//! | --- | --- | --- | --- |
//! | `take` | busy, the state handed out. If that is of another epoch, or its gate has failed, the incarnation ends first: nothing under way, then busy without state, else busy and *settle* | "busy" | "gone" |
//! | `enqueue` | handed back: take it | queued, or "full"; a second message of a host that drains is needless | handed back: look the ID up again |
//! | `finish` | – | effects become a commit, outputs wait behind its ticket. A panic, a time-out, an error that may have changed memory, a failed gate, `end()` and `forget` end the incarnation. Then *next* | as busy: the shard is lost, so it ends gone |
//! | `settled` | – | *next*, or *settle* again | as busy |
//! | `refuse_next` | – | the message and all behind it are refused; then *next* | as busy |
//! | *next* | – | state of a lost shard: the incarnation ends. Then the head of the queue: stays busy. Nobody waits: idle; without state gone, at once or when the gate is settled. Shard lost or lease over: the queue is refused | – |
//! | `take_idle` | busy with the message that stops it, unless connections, busy tasks or (if they may) held alarms keep it | no | no |
//! | `forget` | busy, ends for the host's reason, then *next* | what belongs to the incarnation ends now, the rest with its turn | no |
//! | `abandon` | gone | gone; the turn that still runs finds the shard lost | gone |

mod cold;
mod commits;
mod left;
#[cfg(all(test, not(shuttle)))]
mod model;
mod outputs;

use std::collections::VecDeque;
use std::hint::cold_path;
use std::time::Duration;

use self::cold::Cold;
pub(crate) use self::commits::Windows;
pub(crate) use self::left::{Ended, Left};
use super::answer::{Answer, Ending, NO_COMMIT, Refusal, State};
use super::queue::Waiter;
use crate::commit::committer::{Commit, QueuedCommit};
use crate::commit::gate::{Gate, Ticket};
use crate::connection::Closed;
use crate::error::{ContextError, Outcome, RequestError};
use crate::instance::life::Life;
use crate::instance::recorded::{Enlisted, HandedOver, Recorded, TaskWork};
use crate::quiet::Quiet;
use crate::shards::delivery::Delivery;
use crate::shards::wake::Wake;
use crate::store::{AlarmRow, Epoch, Op};
use crate::sync::{Arc, Notify};
use crate::tasks::TaskHandle;

/// One instance: `S` is its state, `J` a message that waits for it.
pub(crate) struct Machine<S, J> {
    mode: Mode,
    /// The instance, while no turn has it.
    state: State<S>,
    /// The epoch of the shard when the instance was built, or its turn under way began.
    epoch: Epoch,
    /// Rarely used fields, boxed so that an idle instance is small.
    cold: Option<Box<Cold<J>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Idle,
    Busy,
    Gone,
}

/// The world around a machine: questions whose answers change beside it, and acts that it decides on. All under its slot's lock.
pub(crate) trait Hands<J> {
    /// The epoch under which this host owns the shard.
    fn owned(&self) -> Option<Epoch>;
    /// Tells whether it does so under this epoch.
    fn owns(&self, epoch: Epoch) -> bool;
    /// Tells whether the lease of this host holds.
    fn may_act(&self) -> bool;
    /// The lease clock.
    fn now(&self) -> Duration;
    /// The reason told to clients of an instance that may not stay in this host's memory.
    fn parting(&self) -> Closed;
    /// Tells whether the shard's window knows this setting of an alarm as the one that is firing.
    fn is_firing(&self, epoch: Epoch, alarm: &AlarmRow) -> bool;
    /// Makes a commit of the shard; `None` without a store.
    fn draft(&self, epoch: Epoch, ops: Vec<Op>, windows: Windows) -> Option<Commit>;
    /// Queues a commit, behind all that were queued before.
    fn commit(&mut self, commit: QueuedCommit);
    /// Decides what becomes of an alarm or message whose handler failed: another attempt later, or a dead letter.
    fn failed(&mut self, wake: &Wake, error: &str) -> Vec<Op>;
    /// The message that lets an instance leave memory.
    fn stop(&self) -> J;
    /// Has something run once the commits up to a ticket are durable.
    fn after_commit(&mut self, behind: Option<Ticket>, notify: &HandedOver<Box<dyn FnOnce() + Send>>);
    /// Starts a task of an incarnation once the commits up to a ticket are durable.
    fn spawn(&mut self, behind: Option<Ticket>, task: &HandedOver<TaskWork>, life: Arc<Life>) -> Option<TaskHandle>;
    /// Has [`Machine::leave_if_empty`] called when a gate is settled.
    fn when_settled(&mut self, gate: Arc<Gate>);
    /// Takes the slot out of the table.
    fn gone(&mut self);
}

/// The next thing to do for whoever keeps a machine busy.
pub(crate) enum Next<S, J> {
    /// Nothing: it is idle, or gone.
    Idle,
    /// Runs this message.
    Run(J, State<S>, Epoch),
    /// Waits for what an ended incarnation has left, then says that it is settled.
    Settle(Ended),
}

const _: () = assert!(size_of::<Next<u64, Box<dyn Send>>>() <= 40);

/// The outcome of an attempt to take a machine.
pub(crate) enum Take<S> {
    /// The instance is the caller's now: run a turn with this state.
    Free(State<S>),
    /// Somebody has it.
    Busy,
    /// The instance is the caller's now, who has the incarnation [ended](Machine::renew) first.
    Stale,
    Gone,
}

/// The reason why a message was not queued, and the message.
pub(crate) enum Enqueue<J> {
    /// The slot left the table meanwhile.
    Gone(J),
    /// The instance became idle meanwhile.
    Free(J),
    /// Too many wait already.
    Full(J),
    /// The request for it is under way already.
    Needless(J),
}

/// The result of a turn's end.
pub(crate) struct Finished<S, J, R, E> {
    pub(crate) answer: Answer<R, E>,
    pub(crate) next: Next<S, J>,
    /// A reply that is not given, to be dropped when no lock is held.
    pub(crate) withheld: Quiet<R>,
    /// Tells whether the instance was reset.
    pub(crate) is_reset: bool,
}

impl<S, J: Waiter> Machine<S, J> {
    pub(crate) fn new() -> Machine<S, J> {
        Machine { mode: Mode::Idle, state: State::none(), epoch: Epoch(0), cold: None }
    }

    /// Tries to take it for a turn under `epoch`.
    #[inline(always)]
    pub(crate) fn take(&mut self, epoch: Epoch) -> Take<S> {
        match self.mode {
            Mode::Idle => self.mode = Mode::Busy,
            Mode::Busy => {
                cold_path();
                return Take::Busy;
            }
            Mode::Gone => {
                cold_path();
                return Take::Gone;
            }
        }
        if (self.epoch != epoch && self.state.is_some()) || self.gate_has_failed() {
            cold_path();
            return Take::Stale;
        }
        self.epoch = epoch;
        Take::Free(self.state.take())
    }

    /// Ends an incarnation that nothing may follow in, and says what comes before the next one: nothing if there is nothing to wait for.
    #[cold]
    pub(crate) fn renew(&mut self, epoch: Epoch, left: &mut Left<S, J>) -> Option<Next<S, J>> {
        left.state = self.state.take();
        let next = self.end(left, &Closed::Reset);
        self.epoch = epoch;
        next
    }

    /// Lets a message wait for its turn, where at most so many do that no permit bounds.
    pub(crate) fn enqueue(&mut self, job: J, max_waiting: usize) -> Result<(), Enqueue<J>> {
        match self.mode {
            Mode::Gone => return Err(Enqueue::Gone(job)),
            Mode::Idle => return Err(Enqueue::Free(job)),
            Mode::Busy => {}
        }
        let cold = self.cold.get_or_insert_default();
        let (waits_until, is_drain) = (job.waits_until(), job.is_drain());
        if is_drain && cold.is_draining {
            return Err(Enqueue::Needless(job));
        }
        cold.queue.push(job, max_waiting).map_err(Enqueue::Full)?;
        cold.is_draining |= is_drain;
        if let Some((next_look, sooner)) = &cold.watch
            && waits_until < *next_look
        {
            sooner.notify_one();
        }
        Ok(())
    }

    /// Ends a turn that recorded nothing, if nobody waits for its end and nothing else is to be said: most do, and this is all of it.
    /// Else the state is given back, for [`finish`](Self::finish).
    #[inline(always)]
    pub(crate) fn finish_quietly(
        &mut self,
        epoch: Epoch,
        state: State<S>,
        owned: impl FnOnce() -> Option<Epoch>,
    ) -> Result<(), State<S>> {
        if self.cold.is_some() || owned() != Some(epoch) {
            cold_path();
            return Err(state);
        }
        self.state = state;
        self.epoch = epoch;
        self.mode = Mode::Idle;
        Ok(())
    }

    /// Ends a turn: commits what it recorded, puts the state back, and says what comes next. `failure` is the text of what it failed of, if
    /// that is noted with what woke the instance.
    pub(crate) fn finish<H: Hands<J>, R, E>(
        &mut self,
        hands: &mut H,
        left: &mut Left<S, J>,
        epoch: Epoch,
        ending: Ending<S, R, E>,
        woken_by: Option<Delivery>,
        failure: Option<String>,
    ) -> Finished<S, J, R, E> {
        let (woken_by, interim) = self.end_enlistment(woken_by);
        let (mut withheld, mut failed_start) = (Quiet::none(), None);
        let (result, ends) = match ending {
            Ending::Returned { state, mut recorded, result } => {
                self.state = state;
                self.epoch = epoch;
                let is_cut = recorded.enlisted() == Enlisted::Cut;
                // What it has read since it lost its shard may be the next owner's, and what it has recorded is refused.
                let is_fenced = !hands.owns(epoch);
                let result = match result {
                    Ok(reply) if is_cut || is_fenced => {
                        withheld = Quiet::new(reply);
                        Err(if is_cut { ContextError::Unknown.into() } else { RequestError::Fenced }.into())
                    }
                    result => result,
                };
                failed_start = recorded.take_failed_start();
                let ends = if result.is_ok() {
                    left.outputs = self.commit_turn(hands, epoch, &mut recorded, woken_by);
                    recorded.take_end()
                } else {
                    let is_lost = is_cut || failed_start.is_some();
                    self.drop_recorded(hands, left, epoch, &mut recorded, woken_by.zip(failure), is_lost)
                };
                if recorded.wants_passivation() && ends.is_none() {
                    let is_queued = self.cold.get_or_insert_default().queue.push(hands.stop(), 0);
                    debug_assert!(is_queued.is_ok(), "it needs none of the queue's places");
                }
                left.recorded = recorded;
                (result, ends)
            }
            Ending::Broken { error, reason } => {
                if let Some((delivery, failure)) = woken_by.zip(failure) {
                    self.push_failure(hands, epoch, delivery, &failure);
                }
                (Err(error.into()), Some(reason))
            }
        };
        let gate = self.cold.as_ref().and_then(|cold| cold.gate.as_ref());
        let has_failed = gate.is_some_and(|gate| gate.has_failed());
        let behind = gate.and_then(Gate::pending);
        self.release(hands, left, behind.as_ref());
        if let Some(reason) = failed_start {
            self.refuse_unstarted(left, reason, &result);
        }
        // Whatever ended it, a part of it is durable or may be.
        let result = match result {
            Err(error) if interim != NO_COMMIT => Err(Box::new(error.in_doubt())),
            result => result,
        };
        let ends = ends
            .or(has_failed.then_some(Closed::Reset))
            .or_else(|| self.cold.as_ref().is_some_and(|cold| cold.is_over).then(|| hands.parting()));
        let is_reset = ends == Some(Closed::Reset);
        let next = self.after_turn(hands, left, ends);
        Finished { answer: Answer { result, behind, interim }, next, withheld, is_reset }
    }

    /// Drops what a handler that failed had recorded; the reason for which its incarnation ends, if it does.
    fn drop_recorded<H: Hands<J>>(
        &mut self,
        hands: &mut H,
        left: &mut Left<S, J>,
        epoch: Epoch,
        recorded: &mut Recorded,
        failed: Option<(Delivery, String)>,
        is_lost: bool,
    ) -> Option<Closed> {
        if let Some((delivery, error)) = failed {
            self.push_failure(hands, epoch, delivery, &error);
        }
        let ends = recorded.take_end().or(is_lost.then_some(Closed::Reset));
        if ends.is_none() {
            self.take_back(left, recorded);
        }
        ends
    }

    /// Refuses all that wait for an instance that could not start.
    fn refuse_unstarted<R, E>(&mut self, left: &mut Left<S, J>, reason: String, result: &Outcome<R, E>) {
        let refusal = match result.as_ref().err().map(|error| &**error) {
            Some(RequestError::Store(cause)) => Refusal::Store(cause.clone()),
            _ => Refusal::NotStarted(reason),
        };
        if let Some(cold) = &mut self.cold {
            cold.refuse_all(left, &refusal);
        }
    }

    /// Goes on after a turn, whose incarnation ends for a reason or goes on.
    fn after_turn(&mut self, hands: &mut impl Hands<J>, left: &mut Left<S, J>, ends: Option<Closed>) -> Next<S, J> {
        for commit in self.cold.iter_mut().flat_map(|cold| &mut cold.unsettled) {
            commit.of_turn = None;
        }
        match ends {
            Some(reason) => {
                left.state = self.state.take();
                self.end_and_go_on(hands, left, &reason)
            }
            None => self.next(hands, left),
        }
    }

    /// Ends the incarnation: cancels its tasks, closes its connections, lets its held alarms go. What it still has under way is
    /// returned to be waited for.
    fn end(&mut self, left: &mut Left<S, J>, reason: &Closed) -> Option<Next<S, J>> {
        let cold = self.cold.as_mut()?;
        cold.is_over = false;
        cold.end_life(left, reason);
        let tasks = std::mem::take(&mut cold.tasks);
        let gate = cold.gate.clone().filter(|gate| !gate.is_settled());
        if gate.is_some() || tasks.iter().any(|task| !task.has_ended()) {
            return Some(Next::Settle(Ended { gate, tasks }));
        }
        cold.gate = None;
        cold.unsettled.clear();
        None
    }

    fn end_and_go_on(&mut self, hands: &mut impl Hands<J>, left: &mut Left<S, J>, reason: &Closed) -> Next<S, J> {
        match self.end(left, reason) {
            Some(next) => next,
            None => self.next(hands, left),
        }
    }

    /// Notes that the remains of the incarnation that ended are done.
    pub(crate) fn settled(&mut self, hands: &mut impl Hands<J>, left: &mut Left<S, J>) -> Next<S, J> {
        self.end_and_go_on(hands, left, &Closed::Reset)
    }

    /// The next message may not begin, for the lease is over: it is refused, as all that wait behind it.
    pub(crate) fn refuse_next(
        &mut self,
        hands: &mut impl Hands<J>,
        left: &mut Left<S, J>,
        job: J,
        state: State<S>,
    ) -> Next<S, J> {
        left.refused.push((job, Refusal::LeaseLost));
        self.state = state;
        self.next(hands, left)
    }

    /// The next message, or idleness. A machine with nothing in memory goes.
    fn next(&mut self, hands: &mut impl Hands<J>, left: &mut Left<S, J>) -> Next<S, J> {
        let owned = hands.owned();
        if owned != Some(self.epoch) && self.state.is_some() {
            left.state = self.state.take();
            if let Some(next) = self.end(left, &hands.parting()) {
                return next;
            }
        }
        if let Some(cold) = &mut self.cold {
            match owned {
                Some(_) if cold.queue.is_empty() => {}
                Some(epoch) if hands.may_act() => {
                    left.late.extend(cold.queue.take_late(|| hands.now()));
                    if let Some(job) = cold.pop_queue() {
                        self.epoch = epoch;
                        return Next::Run(job, self.state.take(), epoch);
                    }
                }
                Some(_) => cold.refuse_all(left, &Refusal::LeaseLost),
                None => cold.refuse_all(left, &Refusal::Fenced),
            }
            if cold.is_empty() {
                self.cold = None;
            }
        }
        self.mode = Mode::Idle;
        if self.state.is_none() {
            match self.cold.as_ref().and_then(|cold| cold.gate.clone()) {
                Some(gate) if !gate.is_settled() => hands.when_settled(gate),
                _ => self.leave(hands),
            }
        }
        Next::Idle
    }

    /// Takes an idle instance that nothing keeps in memory, to be stopped. `even_held` if alarms held by it do not keep it.
    pub(crate) fn take_idle(&mut self, hands: &impl Hands<J>, epoch: Epoch, even_held: bool) -> Option<Next<S, J>> {
        let is_needed =
            self.cold.as_ref().is_some_and(|cold| cold.is_needed() || (!even_held && !cold.held.is_empty()));
        // A state rests here only while it is idle.
        if self.state.is_none() || is_needed {
            return None;
        }
        self.mode = Mode::Busy;
        Some(Next::Run(hands.stop(), self.state.take(), epoch))
    }

    /// Drops an instance that this host may not run any more: if its shard is not this host's, or `is_all`. One that is busy goes with its
    /// turn, what belongs to it now.
    pub(crate) fn forget(
        &mut self,
        hands: &mut impl Hands<J>,
        left: &mut Left<S, J>,
        is_all: bool,
    ) -> Option<Next<S, J>> {
        if self.mode == Mode::Gone || !(is_all || hands.owned() != Some(self.epoch)) {
            return None;
        }
        let reason = hands.parting();
        if self.mode == Mode::Busy {
            let cold = self.cold.get_or_insert_default();
            cold.is_over = true;
            cold.end_life(left, &reason);
            return None;
        }
        self.mode = Mode::Busy;
        left.state = self.state.take();
        Some(self.end_and_go_on(hands, left, &reason))
    }

    /// Goes if nothing of it is in memory.
    pub(crate) fn leave_if_empty(&mut self, hands: &mut impl Hands<J>) {
        let is_settled = self.cold.as_ref().and_then(|cold| cold.gate.as_ref()).is_none_or(|gate| gate.is_settled());
        if self.mode == Mode::Idle && self.state.is_none() && is_settled {
            self.leave(hands);
        }
    }

    fn leave(&mut self, hands: &mut impl Hands<J>) {
        self.mode = Mode::Gone;
        self.cold = None;
        hands.gone();
    }

    /// Drops what rests here, without ceremony: the host is going away. Connections are told; tasks are the host's to end.
    pub(crate) fn abandon(&mut self, left: &mut Left<S, J>, reason: &Closed) {
        self.mode = Mode::Gone;
        left.state = self.state.take();
        left.unsettled = self.end(left, reason);
        if let Some(mut cold) = self.cold.take() {
            cold.refuse_all(left, &Refusal::Stopped);
            left.cold = Some(cold);
        }
    }

    /// Takes the queued messages whose time is over, and says when to look again. `sooner` is told if that changes.
    pub(crate) fn take_late(&mut self, now: Duration, sooner: &Arc<Notify>) -> (VecDeque<J>, Duration) {
        let cold = self.cold.get_or_insert_default();
        let late = cold.queue.take_late(|| now);
        let next_look = cold.queue.earliest();
        cold.watch = Some((next_look, sooner.clone()));
        (late, next_look)
    }

    /// Nobody looks at the queue's deadlines any more.
    pub(crate) fn stop_watching(&mut self) {
        if let Some(cold) = &mut self.cold {
            cold.watch = None;
        }
    }

    /// Tells whether it is busy with a handler, or with the end of an incarnation.
    pub(crate) fn is_busy(&self) -> bool {
        self.mode == Mode::Busy
    }

    /// Tells whether the instance is in memory, or about to be.
    pub(crate) fn is_running(&self) -> bool {
        self.state.is_some() || self.is_busy()
    }

    /// Tells whether a task of it is not parked.
    pub(crate) fn has_busy_tasks(&self) -> bool {
        self.cold.as_ref().and_then(|cold| cold.life.as_ref()).is_some_and(|life| life.is_busy())
    }

    #[inline(always)]
    fn gate_has_failed(&self) -> bool {
        self.cold.as_ref().and_then(|cold| cold.gate.as_ref()).is_some_and(|gate| gate.has_failed())
    }
}
