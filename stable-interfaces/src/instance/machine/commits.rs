//! Commits of an incarnation: of a turn's effects, and of what becomes of an alarm or message whose handler failed.
//!
//! All of them are queued under the slot's lock, so they enter the committer in the order in which turns end. An interim commit, which a
//! handler makes before its end, has its number noted: whatever ends the turn then, a part of it has happened.

use super::cold::{Cold, Unsettled};
use super::{Hands, Left, Machine};
use crate::commit::committer::{Commit, QueuedCommit};
use crate::commit::effects;
use crate::commit::gate::{Gate, Ticket};
use crate::commit::in_doubt::InDoubt;
use crate::instance::answer::NO_COMMIT;
use crate::instance::queue::Waiter;
use crate::instance::recorded::{Output, Recorded};
use crate::shards::delivery::Delivery;
use crate::shards::wake::Wake;
use crate::store::{AlarmRow, Epoch, Op};
use crate::sync::Arc;

/// Tells whether the shard's windows are to follow a commit. A mark changes nothing about what is due when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Windows {
    Follow,
    Stay,
}

impl<S, J: Waiter> Machine<S, J> {
    /// Queues a commit of this incarnation and returns the number of its ticket; `None` without a store.
    fn push(
        &mut self,
        hands: &mut impl Hands<J>,
        epoch: Epoch,
        ops: Vec<Op>,
        woken_by: Option<Delivery>,
        windows: Windows,
    ) -> Option<u64> {
        let commit = hands.draft(epoch, ops, windows)?;
        let (ticket, commit) = self.enlist(commit);
        let number = ticket.number();
        hands.commit(QueuedCommit::new(commit, ticket, woken_by));
        Some(number)
    }

    /// The ticket of this number, which a commit of this incarnation has taken.
    fn ticket(&self, number: u64) -> Option<Ticket> {
        self.cold.as_ref()?.gate.as_ref().map(|gate| gate.ticket(number))
    }

    /// Gives a commit of this incarnation its place at the gate, and shows it to reads.
    fn enlist(&mut self, commit: Commit) -> (Ticket, Arc<Commit>) {
        let cold = self.cold.get_or_insert_default();
        let gate = cold.gate.get_or_insert_default();
        let settled = gate.settled();
        while cold.unsettled.front().is_some_and(|commit| commit.number <= settled) {
            cold.unsettled.pop_front();
        }
        let (ticket, commit) = (gate.take_ticket(), Arc::new(commit));
        if cold.unsettled.capacity() == 0 {
            cold.unsettled.reserve_exact(1);
        }
        cold.unsettled.push_back(Unsettled {
            number: ticket.number(),
            commit: Arc::downgrade(&commit),
            of_turn: Some(commit.clone()),
        });
        (ticket, commit)
    }

    /// Commits in the middle of a handler, and lets its outputs go behind that; `None` without a store.
    pub(crate) fn commit_interim(
        &mut self,
        hands: &mut impl Hands<J>,
        left: &mut Left<S, J>,
        epoch: Epoch,
        ops: Vec<Op>,
    ) -> Option<Ticket> {
        let number = self.push(hands, epoch, ops, None, Windows::Follow)?;
        self.note_interim(number);
        let ticket = self.ticket(number)?;
        self.release(hands, left, Some(&ticket));
        Some(ticket)
    }

    /// Commits the mark that an alarm or message is about to be handled; `None` without a store.
    pub(crate) fn commit_mark(&mut self, hands: &mut impl Hands<J>, epoch: Epoch, mark: Op) -> Option<Ticket> {
        let number = self.push(hands, epoch, vec![mark], None, Windows::Stay)?;
        self.ticket(number)
    }

    /// Enlists a commit in the middle of a handler that somebody else's transaction takes along.
    pub(crate) fn commit_externally(&mut self, commit: Commit, in_doubt: &Arc<InDoubt>) -> (Ticket, Arc<Commit>) {
        let (ticket, commit) = self.enlist(commit);
        let cold = self.cold.get_or_insert_default();
        let before = cold.in_doubt.replace((in_doubt.clone(), ticket.number()));
        if let Some((_, number)) = before.filter(|(before, _)| before.has_committed()) {
            self.note_interim(number);
        }
        (ticket, commit)
    }

    /// Notes that the commit of this number is one of the turn under way; zero for something durable that is no commit.
    pub(crate) fn note_interim(&mut self, number: u64) {
        let cold = self.cold.get_or_insert_default();
        cold.interim = cold.interim.min(number);
    }

    /// Ends a turn's part in what it has enlisted. Gives back what woke it if no enlistment answers for that, and the number of the first
    /// commit that the turn has made, or [`NO_COMMIT`].
    pub(super) fn end_enlistment(&mut self, woken_by: Option<Delivery>) -> (Option<Delivery>, u64) {
        let Some(cold) = &mut self.cold else { return (woken_by, NO_COMMIT) };
        let interim = std::mem::replace(&mut cold.interim, NO_COMMIT);
        let Some((in_doubt, number)) = cold.in_doubt.take() else { return (woken_by, interim) };
        let (woken_by, may_have_committed) = in_doubt.end_turn(woken_by);
        (woken_by, if may_have_committed { interim.min(number) } else { interim })
    }

    /// Commits that may not be durable yet, oldest first.
    pub(crate) fn unsettled(&self) -> Vec<Arc<Commit>> {
        let Some(Cold { gate: Some(gate), unsettled, .. }) = self.cold.as_deref() else { return Vec::new() };
        Unsettled::of(unsettled.iter(), gate)
    }

    /// Commits that may not be durable yet, and then those of the turn under way, durable or not.
    fn recent(&self) -> Vec<Arc<Commit>> {
        let kept = self.cold.iter().flat_map(|cold| &cold.unsettled);
        let of_turn = kept.filter_map(|commit| commit.of_turn.clone());
        self.unsettled().into_iter().chain(of_turn).collect()
    }

    /// The number of commits that are kept for reads, and of those that are in memory.
    #[cfg(all(test, not(shuttle)))]
    pub(crate) fn kept(&self) -> (usize, usize) {
        let kept = self.cold.iter().flat_map(|cold| &cold.unsettled);
        (kept.clone().count(), kept.filter_map(Unsettled::commit).count())
    }

    /// The last commit of this incarnation that may not be durable yet.
    pub(crate) fn pending(&self) -> Option<Ticket> {
        self.cold.as_ref()?.gate.as_ref().and_then(Gate::pending)
    }

    /// Tells whether the handler has committed another setting of the alarm that woke it, or cancelled it.
    fn is_replaced(&self, hands: &impl Hands<J>, epoch: Epoch, delivery: &Delivery) -> bool {
        let Wake::Alarm(alarm) = delivery.wake() else { return false };
        let recent = self.recent();
        let ops = recent.iter().flat_map(|commit| commit.ops.iter());
        effects::find_alarm(ops, &alarm.id).is_some_and(|found| !delivery.is_setting(found))
            || !hands.is_firing(epoch, alarm)
    }

    /// Queues what becomes of an alarm or message whose handler failed: another attempt later, or a dead letter.
    ///
    /// It goes through the gate of the incarnation that failed, so the next one begins after it. If that gate has failed
    /// already nothing can follow it, and the alarm fires again as it is.
    pub(super) fn push_failure(&mut self, hands: &mut impl Hands<J>, epoch: Epoch, delivery: Delivery, error: &str) {
        let is_replaced = self.is_replaced(hands, epoch, &delivery);
        let ops = if is_replaced { Vec::new() } else { hands.failed(delivery.wake(), error) };
        self.push(hands, epoch, ops, Some(delivery), Windows::Follow);
    }

    /// Queues the effects of a handler that succeeded, and returns its outputs.
    pub(super) fn commit_turn(
        &mut self,
        hands: &mut impl Hands<J>,
        epoch: Epoch,
        recorded: &mut Recorded,
        woken_by: Option<Delivery>,
    ) -> Vec<Output> {
        let ops = recorded.take_ops();
        let touches_alarms = ops.iter().any(|op| matches!(op, Op::PutAlarm(_) | Op::RemoveAlarm { .. }));
        match woken_by {
            Some(delivery) if recorded.holds_alarm() => {
                // The mark that it was started, if there is one, goes with the commit that holds it.
                let ops = match delivery.wake() {
                    Wake::Alarm(alarm) if delivery.must_mark && !self.is_replaced(hands, epoch, &delivery) => {
                        let attempts = alarm.attempts.unmarked();
                        let unmarked = Op::PutAlarm(AlarmRow { attempts, ..(**alarm).clone() });
                        self.push(hands, epoch, vec![unmarked], None, Windows::Stay);
                        ops
                    }
                    _ => ops,
                };
                if !ops.is_empty() {
                    self.push(hands, epoch, ops, None, Windows::Follow);
                }
                self.cold.get_or_insert_default().held.push(delivery.hold());
            }
            None if ops.is_empty() => {}
            woken_by => {
                self.push(hands, epoch, ops, woken_by, Windows::Follow);
            }
        }
        if touches_alarms && self.cold.as_ref().is_some_and(|cold| !cold.held.is_empty()) {
            let recent = self.recent();
            self.cold.get_or_insert_default().held.retain(|delivery| {
                let ops = recent.iter().flat_map(|commit| commit.ops.iter());
                // Set or cancelled meanwhile: nothing is held any more.
                effects::find_alarm(ops, delivery.wake().id()).is_none_or(|found| delivery.is_setting(found))
            });
        }
        recorded.take_outputs()
    }
}
