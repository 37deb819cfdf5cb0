//! The writes of one lane: what is sent next, and what waits for what.
//!
//! Where a store keeps the number of a write for the lane, one write is under way and everything else waits for it. Where it keeps a
//! number for each shard, a write that is not answered soon holds up its own shards only, and the queue goes on without them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::{Committer, QueuedCommit};
use crate::StoreError;
use crate::clock::Sleep;
use crate::commit::effects::fold;
use crate::commit::gate::Failure;
use crate::error::WithCauses;
use crate::store::client::backoff;
use crate::store::{Batch, BoxError, Epoch, Lane, Sequence, ShardId, Store, Write};

/// In a store that keeps the number of a write for each shard, a write that is not answered within this part of the store timeout
/// holds up its own shards only.
pub(super) const PATIENCE: u32 = 10;

/// Sends the writes of one lane, one after the other; beside them, where a store keeps numbers for each shard, what is left of
/// earlier ones.
pub(super) struct LaneWriter {
    committer: Arc<Committer>,
    lane: Lane,
    sequence: Sequence,
    /// The number of the last write.
    seq: u64,
    /// To be sent before anything is taken out of the queue.
    waiting: VecDeque<Work>,
    pub(super) running: Vec<Pin<Box<dyn Future<Output = Ended> + Send>>>,
    foremost: Option<Foremost>,
    /// The time that the queue still waits for that one; `None` if it does for ever.
    pub(super) patience: Option<Sleep>,
    /// The shards that are held up while the lane goes on.
    held: BTreeSet<ShardId>,
}

/// The write under way that the queue waits for.
struct Foremost {
    seq: u64,
    shards: BTreeSet<ShardId>,
    /// The number of commits in it.
    commits: usize,
}

/// Something to be sent.
enum Work {
    /// Commits of one shard, each by itself.
    Alone(ShardId, VecDeque<QueuedCommit>),
    /// A write, or what is left of one, under its old number.
    Repeat(Sending),
}

/// A write with the commits in it.
struct Sending {
    write: Write,
    /// One for each batch.
    groups: Vec<ShardGroup>,
    /// Commits of its only shard that are sent one by one after it.
    then: VecDeque<QueuedCommit>,
    first_sent: Duration,
    /// The number of times it was sent and not wholly answered.
    failures: u32,
}

/// The commits of one shard within a write.
struct ShardGroup {
    shard: ShardId,
    epoch: Epoch,
    commits: Vec<QueuedCommit>,
    /// Says whether there ever was a try without an answer.
    was_ambiguous: bool,
}

/// The outcome of sending a write once.
pub(super) struct Ended {
    seq: u64,
    shards: BTreeSet<ShardId>,
    left: Vec<Work>,
}

impl Work {
    /// Commits of one shard, if there are any.
    fn alone(commits: VecDeque<QueuedCommit>) -> Option<Work> {
        let shard = commits.front()?.commit.shard;
        Some(Work::Alone(shard, commits))
    }

    fn shards(&self) -> BTreeSet<ShardId> {
        match self {
            Work::Alone(shard, _) => BTreeSet::from([*shard]),
            Work::Repeat(sending) => sending.groups.iter().map(|group| group.shard).collect(),
        }
    }
}

impl Sending {
    /// Takes out the groups that are not to be kept.
    fn leave_out(&mut self, keep: impl Fn(&ShardGroup) -> bool, mut out: impl FnMut(ShardGroup)) {
        self.groups.extract_if(.., |group| !keep(group)).for_each(&mut out);
        self.keep_batches_of_groups();
    }

    fn keep_batches_of_groups(&mut self) {
        let groups = &self.groups;
        self.write.batches.retain(|batch| groups.iter().any(|group| group.shard == batch.shard));
    }

    /// One for each shard.
    fn split(self) -> Vec<Sending> {
        let Sending { write, groups, mut then, first_sent, failures } = self;
        let Write { incarnation, lane, seq, batches } = write;
        let one = |(group, batch)| {
            let write = Write { incarnation, lane, seq, batches: vec![batch] };
            Sending { write, groups: vec![group], then: std::mem::take(&mut then), first_sent, failures }
        };
        groups.into_iter().zip(batches).map(one).collect()
    }
}

impl LaneWriter {
    pub(super) fn new(committer: Arc<Committer>, lane: Lane, sequence: Sequence) -> LaneWriter {
        let (waiting, running, held) = (VecDeque::new(), Vec::new(), BTreeSet::new());
        LaneWriter { committer, lane, sequence, seq: 0, waiting, running, foremost: None, patience: None, held }
    }

    /// Says whether something may be taken out of the queue now.
    pub(super) fn may_take(&self) -> bool {
        match self.sequence {
            Sequence::OfLane => self.running.is_empty(),
            Sequence::OfShard => self.foremost.is_none(),
        }
    }

    /// Begins what may be sent now.
    pub(super) fn begin(&mut self) {
        while (self.sequence == Sequence::OfShard || self.running.is_empty())
            && let Some(work) = self.waiting.pop_front()
        {
            match work {
                Work::Repeat(sending) => self.send(sending),
                Work::Alone(shard, mut commits) => loop {
                    let Some(queued) = commits.pop_front() else {
                        self.release(&BTreeSet::from([shard]));
                        break;
                    };
                    if let Some(sending) = self.number(vec![queued]) {
                        self.send(Sending { then: commits, ..sending });
                        break;
                    }
                },
            }
        }
        while self.may_take() {
            let group = self.committer.next_group(self.lane);
            if group.is_empty() {
                break;
            }
            let Some(sending) = self.number(group) else { continue };
            let shards = sending.groups.iter().map(|group| group.shard).collect();
            let commits = sending.groups.iter().map(|group| group.commits.len()).sum();
            if self.sequence == Sequence::OfShard {
                let patience = self.committer.options.store_timeout / PATIENCE;
                self.patience = Some(self.committer.clock.sleep(patience));
            }
            self.foremost = Some(Foremost { seq: sending.write.seq, shards, commits });
            self.send(sending);
        }
    }

    fn send(&mut self, sending: Sending) {
        let ended = self.committer.clone().send(self.lane, self.sequence, sending);
        self.running.push(Box::pin(ended));
    }

    /// Makes a new write of these commits; `None` if nothing of them is to be sent.
    fn number(&mut self, group: Vec<QueuedCommit>) -> Option<Sending> {
        let batch = |group: &ShardGroup| Batch {
            shard: group.shard,
            epoch: group.epoch,
            ops: fold(group.commits.iter().flat_map(|queued| queued.commit.ops.iter().cloned()).collect()),
        };
        let groups = self.committer.by_shard(group).into_iter();
        let (groups, empty): (Vec<_>, Vec<_>) =
            groups.partition(|group| group.commits.iter().any(|queued| !queued.commit.ops.is_empty()));
        for group in empty {
            self.committer.settle(group, &Ok(()));
        }
        if groups.is_empty() {
            return None;
        }
        self.seq += 1;
        let write = Write {
            incarnation: self.committer.incarnation,
            lane: self.lane,
            seq: self.seq,
            batches: groups.iter().map(batch).collect(),
        };
        let ops: usize = write.batches.iter().map(|batch| batch.ops.len()).sum();
        metrics::histogram!(crate::metrics::COMMIT_OPS).record(u32::try_from(ops).unwrap_or(u32::MAX));
        let first_sent = self.committer.clock.elapsed();
        Some(Sending { write, groups, then: VecDeque::new(), first_sent, failures: 0 })
    }

    /// A write was sent once: what is left of it comes next, and holds up what shares its number. Returns the number of commits in it, if the
    /// queue has waited for it.
    pub(super) fn end(&mut self, ended: Ended) -> usize {
        let Ended { seq, shards, left } = ended;
        let mut waited_for = 0;
        if let Some(foremost) = self.foremost.take_if(|foremost| foremost.seq == seq) {
            waited_for = foremost.commits;
            self.patience = None;
        }
        if self.sequence == Sequence::OfShard {
            let still: BTreeSet<ShardId> = left.iter().flat_map(Work::shards).collect();
            self.release(&shards.difference(&still).copied().collect());
            self.hold(&still);
        }
        for work in left.into_iter().rev() {
            self.waiting.push_front(work);
        }
        waited_for
    }

    /// The queue waits no longer for the write under way.
    pub(super) fn leave_behind(&mut self) {
        self.patience = None;
        if let Some(foremost) = self.foremost.take() {
            self.hold(&foremost.shards);
        }
    }

    /// Sets aside the commits queued for these shards: they wait from now on, and the queue goes on without them.
    fn hold(&mut self, shards: &BTreeSet<ShardId>) {
        let new: Vec<_> = shards.difference(&self.held).copied().collect();
        if !new.is_empty() {
            let mut state = self.committer.lanes[usize::from(self.lane.0)].state.lock();
            state.held.extend(new.iter().map(|shard| (*shard, VecDeque::new())));
            self.held.extend(new);
        }
    }

    /// Puts the commits that waited for these shards first in the queue.
    fn release(&mut self, shards: &BTreeSet<ShardId>) {
        let free: Vec<_> = shards.intersection(&self.held).copied().collect();
        if !free.is_empty() {
            let mut state = self.committer.lanes[usize::from(self.lane.0)].state.lock();
            for shard in free {
                self.held.remove(&shard);
                for waiting in state.held.remove(&shard).into_iter().flatten().rev() {
                    state.queue.push_front(waiting);
                }
            }
        }
    }
}

/// Waits for the end of the sleep; for ever if there is none.
pub(super) async fn or_never(sleep: &mut Option<Sleep>) {
    match sleep {
        Some(sleep) => sleep.await,
        None => std::future::pending().await,
    }
}

impl Committer {
    /// Sorts commits by shard, leaving out those that must not be sent.
    fn by_shard(&self, group: Vec<QueuedCommit>) -> Vec<ShardGroup> {
        let mut groups = BTreeMap::<(ShardId, Epoch), Vec<QueuedCommit>>::new();
        for queued in group {
            let commit = &queued.commit;
            if queued.ticket.is_behind_failure() {
                let error = StoreError::NotApplied("an earlier commit of this instance failed".into());
                queued.withdraw(&Arc::new(error));
            } else if self.shards.epoch(commit.shard) != Some(commit.epoch) {
                queued.settle(Err(Failure::Fenced));
            } else {
                groups.entry((commit.shard, commit.epoch)).or_default().push(queued);
            }
        }
        let group = |((shard, epoch), commits)| ShardGroup { shard, epoch, commits, was_ambiguous: false };
        groups.into_iter().map(group).collect()
    }

    fn settle(&self, group: ShardGroup, outcome: &Result<(), Failure>) {
        for mut queued in group.commits {
            if outcome.is_ok() {
                let commit = queued.commit.clone();
                // Resolve first: once the window has seen a retry, it may be handled again at once.
                if !commit.ops.is_empty()
                    && let Some(delivery) = queued.woken_by.take()
                {
                    delivery.ack();
                }
                // Before the gate opens, so that whoever sees the reply sees the alarm.
                if commit.is_shown {
                    self.shards.apply(commit.shard, commit.epoch, &commit.ops);
                }
            }
            queued.settle(outcome.clone());
        }
    }

    /// Settles the commits of a shard that is not this host's any more.
    fn settle_lost(&self, group: ShardGroup, error: &StoreError) {
        self.lose(group.shard, group.epoch, error);
        metrics::counter!(crate::metrics::FENCED).increment(u64::try_from(group.commits.len()).unwrap_or(u64::MAX));
        // A repeat may be refused although the first try landed before the shard was taken.
        let failure = if group.was_ambiguous { Failure::Unknown } else { Failure::Fenced };
        self.settle(group, &Err(failure));
    }

    /// Sends a write once, after a pause if it was sent before, and settles what is known of it.
    async fn send(self: Arc<Committer>, lane: Lane, sequence: Sequence, mut sending: Sending) -> Ended {
        let Committer { clock, store, options, .. } = &*self;
        let shards: BTreeSet<ShardId> = sending.groups.iter().map(|group| group.shard).collect();
        let (seq, mut left) = (sending.write.seq, Vec::new());
        if sending.failures > 0 {
            clock.sleep(backoff(&*self.random, sending.failures - 1)).await;
            sending.leave_out(
                |group| self.shards.epoch(group.shard) == Some(group.epoch),
                |group| {
                    self.settle_lost(group, &StoreError::Replaced);
                },
            );
            if sending.groups.is_empty() {
                left.extend(Work::alone(sending.then));
                return Ended { seq, shards, left };
            }
            metrics::counter!(crate::metrics::COMMIT_REPEATS).increment(1);
        }
        let batches = sending.write.batches.len();
        let (answers, is_whole) = match store.commit(&sending.write).await {
            Ok(answers) if answers.len() == batches => (answers, false),
            Ok(answers) => {
                let text = format!("{} answers to {batches} batches", answers.len());
                (for_each(batches, text.into(), StoreError::Unavailable), true)
            }
            Err(error) => (for_all(batches, error), true),
        };
        let Sending { write, groups, then, first_sent, failures } = sending;
        let (mut unknown, mut why) = (Vec::new(), None);
        for (mut group, answer) in groups.into_iter().zip(answers) {
            match answer {
                Ok(()) => self.settle(group, &Ok(())),
                Err(error @ StoreError::Unavailable(_)) => {
                    group.was_ambiguous = true;
                    why = Some(error);
                    unknown.push(group);
                }
                Err(error @ StoreError::NotApplied(_)) => {
                    why.get_or_insert(error);
                    unknown.push(group);
                }
                // There may be room for an earlier try that is still on its way.
                Err(error @ StoreError::Full(_)) if group.was_ambiguous => {
                    why.get_or_insert(error);
                    unknown.push(group);
                }
                // One guilty commit must not fail the others it was folded with.
                Err(StoreError::Rejected(_) | StoreError::Full(_)) if group.commits.len() > 1 || batches > 1 => {
                    left.push(Work::Alone(group.shard, group.commits.into()));
                }
                Err(error @ (StoreError::Rejected(_) | StoreError::Full(_))) => {
                    self.settle(group, &Err(Failure::Store(Arc::new(error))));
                }
                Err(error @ (StoreError::Stopped(_) | StoreError::Lost(_))) => {
                    self.report_ended(&error);
                    self.settle(group, &Err(Failure::Unknown));
                }
                Err(error) => self.settle_lost(group, &error),
            }
        }
        let took = clock.elapsed().saturating_sub(first_sent);
        let Some(why) = why else {
            metrics::histogram!(crate::metrics::COMMIT_SECONDS).record(took.as_secs_f64());
            left.extend(Work::alone(then));
            return Ended { seq, shards, left };
        };
        if failures == 0 {
            let shards = unknown.len();
            tracing::warn!(lane = lane.0, seq, shards, error = %WithCauses(&why), "a group commit failed; repeating it");
        }
        let mut repeat = Sending { write, groups: unknown, then, first_sent, failures: failures.saturating_add(1) };
        if took >= options.commit_timeout {
            for queued in repeat.groups.iter().filter(|group| group.was_ambiguous).flat_map(|group| &group.commits) {
                queued.ticket.leave_unanswered();
            }
            self.withdraw_late(lane, sequence, &shards, &Arc::new(why));
            repeat.leave_out(
                |group| group.was_ambiguous,
                |group| {
                    let error = StoreError::NotApplied("the store stayed unavailable".into());
                    self.settle(group, &Err(Failure::Store(Arc::new(error))));
                },
            );
        }
        repeat.leave_out(
            |group| self.shards.epoch(group.shard) == Some(group.epoch),
            |group| {
                self.settle_lost(group, &StoreError::Replaced);
            },
        );
        repeat.keep_batches_of_groups();
        if repeat.groups.is_empty() {
            left.extend(Work::alone(repeat.then));
        } else if is_whole && sequence == Sequence::OfShard {
            // Nothing was said of any of them: one that cannot be reached must not keep the others from being heard.
            left.extend(repeat.split().into_iter().map(Work::Repeat));
        } else {
            // Ahead of what was refused: it goes first where only one may.
            left.insert(0, Work::Repeat(repeat));
        }
        Ended { seq, shards, left }
    }
}

/// The store's answer to the whole write, as the answer to each of its batches.
fn for_all(batches: usize, error: StoreError) -> Vec<Result<(), StoreError>> {
    match error {
        StoreError::Unavailable(error) => for_each(batches, error, StoreError::Unavailable),
        StoreError::NotApplied(error) => for_each(batches, error, StoreError::NotApplied),
        StoreError::Rejected(error) => for_each(batches, error, StoreError::Rejected),
        StoreError::Full(error) => for_each(batches, error, StoreError::Full),
        StoreError::Stopped(error) => for_each(batches, error, StoreError::Stopped),
        StoreError::Lost(error) => for_each(batches, error, StoreError::Lost),
        // Replaced, stale or an answer no store should give: this incarnation must not write any more.
        error => {
            tracing::error!(%error, "the store refuses this host's writes");
            (0..batches).map(|_| Err(StoreError::Replaced)).collect()
        }
    }
}

fn for_each(batches: usize, error: BoxError, answer: fn(BoxError) -> StoreError) -> Vec<Result<(), StoreError>> {
    let error: Arc<dyn std::error::Error + Send + Sync> = error.into();
    (0..batches).map(|_| Err(answer(Box::new(Shared(error.clone()))))).collect()
}

/// One cause that several batches report.
#[derive(Debug)]
struct Shared(Arc<dyn std::error::Error + Send + Sync>);

impl std::fmt::Display for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Shared {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
