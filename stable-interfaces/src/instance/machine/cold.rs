//! The part of a machine that most instances do not need most of the time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Weak;
use std::time::Duration;

use super::left::Left;
use crate::commit::committer::Commit;
use crate::commit::gate::Gate;
use crate::commit::in_doubt::InDoubt;
use crate::connection::{AnyLink, Closed, ConnectionId};
use crate::instance::answer::{NO_COMMIT, Refusal};
use crate::instance::life::Life;
use crate::instance::queue::{Queue, Waiter};
use crate::shards::delivery::Delivery;
use crate::sync::{Arc, Notify, OwnedSemaphorePermit, acquire_released, may_be_interrupted};
use crate::tasks::TaskHandle;

/// Rarely used fields of a machine.
pub(crate) struct Cold<J> {
    /// Messages waiting for their turn.
    pub(super) queue: Queue<J>,
    /// Says whether one of them lets the instance leave memory because its host lets the shard go.
    pub(super) is_draining: bool,
    /// The output gate of this incarnation, once it has committed anything.
    pub(super) gate: Option<Arc<Gate>>,
    /// Commits that may not be durable yet, oldest first: what reads must see beside the store.
    pub(super) unsettled: VecDeque<Unsettled>,
    /// Alarms that handlers left unacknowledged; they fire again when this incarnation ends.
    pub(super) held: Vec<Delivery>,
    /// Known to what belongs to this incarnation, once there is anything.
    pub(super) life: Option<Arc<Life>>,
    pub(super) tasks: Vec<TaskHandle>,
    pub(super) connections: BTreeMap<ConnectionId, (Arc<dyn AnyLink>, OwnedSemaphorePermit)>,
    /// The last enlistment that the turn under way has begun, with the number of its ticket.
    pub(super) in_doubt: Option<(Arc<InDoubt>, u64)>,
    /// The first commit that the turn under way has made before its end, or [`NO_COMMIT`].
    pub(super) interim: u64,
    /// Set when the incarnation of the turn under way may not go on: it ends with that turn.
    pub(super) is_over: bool,
    /// Set while a task of the host waits on a turn: when it will look at the queue's deadlines next, and how to make it sooner.
    pub(super) watch: Option<(Duration, Arc<Notify>)>,
}

/// A commit that may not be durable yet.
pub(super) struct Unsettled {
    /// The number of its ticket at the incarnation's gate.
    pub(super) number: u64,
    /// Kept by the committer until it is settled.
    pub(super) commit: Weak<Commit>,
    /// Kept here as well until the turn that made it has ended. No longer: an idle instance is to hold no memory for it.
    pub(super) of_turn: Option<Arc<Commit>>,
}

impl Unsettled {
    pub(super) fn commit(&self) -> Option<Arc<Commit>> {
        self.of_turn.clone().or_else(|| self.commit.upgrade())
    }

    /// Commits of an incarnation that may not be durable yet, oldest first.
    ///
    /// They go on being settled while they are looked at, in the order of their numbers, so the newest may be gone from memory when an older one
    /// was not yet. What is settled by the end is left out: nothing in the list is older than what the store has.
    pub(super) fn of<'a>(kept: impl Iterator<Item = &'a Unsettled>, gate: &Gate) -> Vec<Arc<Commit>> {
        let settled = gate.settled();
        let kept = kept.filter(|commit| commit.number > settled);
        let found = kept.filter_map(|kept| {
            may_be_interrupted();
            Some((kept.number, kept.commit()?))
        });
        let found: Vec<_> = found.collect();
        // The committer settles a commit before it lets go of it: whoever has seen that it is gone sees that too.
        acquire_released();
        let settled = gate.settled();
        found.into_iter().filter(|(number, _)| *number > settled).map(|(_, commit)| commit).collect()
    }
}

impl<J> Default for Cold<J> {
    fn default() -> Cold<J> {
        Cold {
            queue: Queue::default(),
            is_draining: false,
            gate: None,
            unsettled: VecDeque::new(),
            held: Vec::new(),
            life: None,
            tasks: Vec::new(),
            connections: BTreeMap::new(),
            in_doubt: None,
            is_over: false,
            interim: NO_COMMIT,
            watch: None,
        }
    }
}

impl<J: Waiter> Cold<J> {
    /// Takes the message whose turn it is.
    pub(super) fn pop_queue(&mut self) -> Option<J> {
        let job = self.queue.pop()?;
        self.is_draining &= !job.is_drain();
        Some(job)
    }

    /// Refuses all that wait.
    pub(super) fn refuse_all<S>(&mut self, left: &mut Left<S, J>, refusal: &Refusal) {
        left.refused.extend(self.queue.take_all().into_iter().map(|job| (job, refusal.clone())));
        self.is_draining = false;
    }

    /// Ends what belongs to the incarnation beside its handler: held alarms, tasks, connections. Tasks are still to be waited for.
    pub(super) fn end_life<S>(&mut self, left: &mut Left<S, J>, reason: &Closed) {
        self.held.clear();
        if let Some(life) = self.life.take() {
            life.end();
        }
        for task in &self.tasks {
            task.cancel();
        }
        for (link, _) in std::mem::take(&mut self.connections).into_values() {
            // At once: a message of its client may not reach the next incarnation.
            let waiting = link.close(reason.clone());
            left.links.push((link, waiting));
        }
    }

    /// Tells whether the instance may not leave memory by itself.
    pub(super) fn is_needed(&self) -> bool {
        !self.connections.is_empty() || self.life.as_ref().is_some_and(|life| life.is_busy())
    }

    /// Tells whether nothing in here is in use.
    pub(super) fn is_empty(&self) -> bool {
        // Whoever knows an incarnation must find out that it has ended.
        let life_is_known = self.life.as_ref().is_some_and(|life| Arc::strong_count(life) > 1);
        let gate_is_needed = self.gate.as_ref().is_some_and(|gate| !gate.is_settled() || gate.has_failed());
        !gate_is_needed
            && !life_is_known
            && self.queue.is_empty()
            && self.held.is_empty()
            && self.tasks.is_empty()
            && self.connections.is_empty()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::commit::gate::Ticket;
    use crate::store::{Epoch, ShardId};

    #[test]
    fn commits_that_are_settled_while_they_are_looked_at_leave_none_behind_that_is_older_than_the_store() {
        let gate = Arc::new(Gate::default());
        let commit = || Arc::new(Commit { shard: ShardId(0), epoch: Epoch(1), ops: Arc::new([]), is_shown: true });
        let in_committer: Vec<(Ticket, Arc<Commit>)> = (0..3).map(|_| (gate.take_ticket(), commit())).collect();
        let keep = |(ticket, commit): &(Ticket, Arc<Commit>)| Unsettled {
            number: ticket.number(),
            commit: Arc::downgrade(commit),
            of_turn: None,
        };
        let kept: Vec<Unsettled> = in_committer.iter().map(keep).collect();
        assert_eq!(Unsettled::of(kept.iter(), &gate).len(), 3);
        let in_committer = RefCell::new(in_committer);
        let while_they_settle = kept.iter().inspect(|commit| {
            if commit.number == 2 {
                for (ticket, _) in in_committer.borrow_mut().drain(..) {
                    ticket.settle(Ok(()));
                }
            }
        });
        assert_eq!(Unsettled::of(while_they_settle, &gate).len(), 0);
    }
}
