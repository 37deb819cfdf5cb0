//! The writes of one lane: what is sent next, and what waits for what.
//!
//! Where a store keeps the number of a write for the lane, one write is under way and everything else waits for it. Where it keeps a
//! number for each shard, a write that is not answered soon holds up its own shards only, and the queue goes on without them.

use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::{Committer, Queue, QueuedCommit};
use crate::StoreError;
use crate::clock::Sleep;
use crate::commit::effects::{fold, folded};
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
    /// Work to be sent before anything is taken out of the queue.
    waiting: VecDeque<Work>,
    pub(super) running: Vec<Pin<Box<dyn Future<Output = Ended> + Send>>>,
    foremost: Option<Foremost>,
    /// The time until which the queue waits for that one, by the clock's `elapsed`; `None` if it does for ever.
    patience: Option<Duration>,
    /// Goes off no later than that; it stays when its write is answered, and is set anew when it has gone off. So there is mostly one that is earlier
    /// than what limits the store's answer to the next write. For a timer that is earlier than all others, tokio wakes the thread that watches over them.
    pub(super) timer: Option<Sleep>,
    /// The shards that are held up while the lane goes on.
    held: BTreeSet<ShardId>,
    /// Empty: the queue's other memory, into which it is taken.
    taken: Queue,
}

/// The write under way that the queue waits for.
struct Foremost {
    seq: u64,
    /// Shards of the write. If its number is the lane's, nothing is told apart by shards, and there are none here or in [`Ended`].
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
    /// In the order they were queued. Most groups have no other than the first, and so no list.
    first: QueuedCommit,
    others: Vec<QueuedCommit>,
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

impl ShardGroup {
    fn commits(&self) -> impl Iterator<Item = &QueuedCommit> {
        std::iter::once(&self.first).chain(&self.others)
    }

    fn into_commits(self) -> impl Iterator<Item = QueuedCommit> {
        std::iter::once(self.first).chain(self.others)
    }

    fn len(&self) -> usize {
        1 + self.others.len()
    }

    fn has_ops(&self) -> bool {
        self.commits().any(|queued| !queued.commit.ops.is_empty())
    }

    /// The operations of its commits as one.
    fn batch(&self) -> Batch {
        let ShardGroup { shard, epoch, first, others, .. } = self;
        if others.is_empty() {
            return Batch { shard: *shard, epoch: *epoch, ops: folded(&first.commit.ops) };
        }
        let mut ops = Vec::with_capacity(self.commits().map(|queued| queued.commit.ops.len()).sum());
        self.commits().for_each(|queued| ops.extend_from_slice(&queued.commit.ops));
        Batch { shard: *shard, epoch: *epoch, ops: fold(ops).into() }
    }
}

/// The shards of groups, where the number of a write is theirs.
fn shards_of(sequence: Sequence, groups: &[ShardGroup]) -> BTreeSet<ShardId> {
    let groups = if sequence == Sequence::OfShard { groups } else { &[] };
    groups.iter().map(|group| group.shard).collect()
}

impl Sending {
    /// Takes out the groups that are not to be kept.
    fn leave_out(&mut self, keep: impl Fn(&ShardGroup) -> bool, mut out: impl FnMut(ShardGroup)) {
        self.groups.extract_if(.., |group| !keep(group)).for_each(&mut out);
        self.keep_batches_of_groups();
    }

    fn keep_batches_of_groups(&mut self) {
        let groups = &self.groups;
        self.write
            .batches
            .retain(|batch| groups.iter().any(|group| (group.shard, group.epoch) == (batch.shard, batch.epoch)));
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
        let (waiting, running) = (VecDeque::new(), Vec::new());
        let (foremost, patience, timer) = (None, None, None);
        let (held, taken) = (BTreeSet::new(), Queue::new());
        LaneWriter { committer, lane, sequence, seq: 0, waiting, running, foremost, patience, timer, held, taken }
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
                    if let Some(sending) = self.number(std::iter::once(queued)) {
                        self.send(Sending { then: commits, ..sending });
                        break;
                    }
                },
            }
        }
        while self.may_take() {
            let mut taken = std::mem::take(&mut self.taken);
            self.committer.next_group(self.lane, &mut taken);
            let is_empty = taken.is_empty();
            let sending = self.number(taken.drain(..).map(|(_, queued)| queued));
            self.taken = taken;
            if is_empty {
                break;
            }
            let Some(sending) = sending else { continue };
            let shards = shards_of(self.sequence, &sending.groups);
            let commits = sending.groups.iter().map(ShardGroup::len).sum();
            let patience = self.committer.options.store_timeout / PATIENCE;
            if self.sequence == Sequence::OfShard {
                self.patience = Some(sending.first_sent.saturating_add(patience));
            }
            self.timer.get_or_insert_with(|| self.committer.clock.sleep(patience));
            self.foremost = Some(Foremost { seq: sending.write.seq, shards, commits });
            self.send(sending);
        }
    }

    fn send(&mut self, sending: Sending) {
        let ended = self.committer.clone().send(self.lane, self.sequence, sending);
        self.running.push(Box::pin(ended));
    }

    /// Makes a new write of these commits; `None` if nothing of them is to be sent.
    fn number(&mut self, commits: impl Iterator<Item = QueuedCommit>) -> Option<Sending> {
        let mut groups = self.committer.by_shard(commits);
        for group in groups.extract_if(.., |group| !group.has_ops()) {
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
            batches: groups.iter().map(ShardGroup::batch).collect(),
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

    /// The timer has gone off, mostly for a write that has been answered since.
    pub(super) fn ring(&mut self) {
        self.timer = None;
        let Some(until) = self.patience else { return };
        let clock = &self.committer.clock;
        match until.saturating_sub(clock.elapsed()) {
            Duration::ZERO => self.leave_behind(),
            left => self.timer = Some(clock.sleep(left)),
        }
    }

    /// The queue waits no longer for the write under way.
    fn leave_behind(&mut self) {
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
    fn by_shard(&self, commits: impl Iterator<Item = QueuedCommit>) -> Vec<ShardGroup> {
        let most = commits.size_hint().0;
        let (mut order, mut to_send) = (Vec::with_capacity(most), Vec::with_capacity(most));
        for queued in commits {
            let commit = &queued.commit;
            if queued.ticket.is_behind_failure() {
                let error = StoreError::NotApplied("an earlier commit of this instance failed".into());
                queued.withdraw(&Arc::new(error));
            } else if self.shards.epoch(commit.shard) != Some(commit.epoch) {
                queued.settle(Err(Failure::Fenced));
            } else {
                order.push((commit.shard, commit.epoch, to_send.len()));
                to_send.push(Some(queued));
            }
        }
        // By its place last: commits of a shard stay in the order they were queued.
        order.sort_unstable();
        let mut groups = Vec::<ShardGroup>::with_capacity(order.len());
        for (shard, epoch, place) in order {
            let Some(queued) = to_send[place].take() else { continue };
            match groups.last_mut() {
                Some(last) if (last.shard, last.epoch) == (shard, epoch) => last.others.push(queued),
                _ => groups.push(ShardGroup { shard, epoch, first: queued, others: Vec::new(), was_ambiguous: false }),
            }
        }
        groups
    }

    fn settle(&self, group: ShardGroup, outcome: &Result<(), Failure>) {
        group.into_commits().for_each(|queued| self.settle_one(queued, outcome));
    }

    fn settle_one(&self, mut queued: QueuedCommit, outcome: &Result<(), Failure>) {
        if outcome.is_ok() {
            // Resolve first: once the window has seen a retry, it may be handled again at once.
            if !queued.commit.ops.is_empty()
                && let Some(delivery) = queued.woken_by.take()
            {
                delivery.ack();
            }
            let commit = &queued.commit;
            // Before the gate opens, so that whoever sees the reply sees the alarm.
            if commit.is_shown {
                self.shards.apply(commit.shard, commit.epoch, &commit.ops);
            }
        }
        queued.settle(outcome.clone());
    }

    /// Settles the commits of a shard that is not this host's any more.
    fn settle_lost(&self, group: ShardGroup, error: &StoreError) {
        self.lose(group.shard, group.epoch, error);
        metrics::counter!(crate::metrics::FENCED).increment(group.len() as u64);
        // A repeat may be refused although the first try landed before the shard was taken.
        let failure = if group.was_ambiguous { Failure::Unknown } else { Failure::Fenced };
        self.settle(group, &Err(failure));
    }

    /// Sends a write once, after a pause if it was sent before, and settles what is known of it.
    async fn send(self: Arc<Committer>, lane: Lane, sequence: Sequence, mut sending: Sending) -> Ended {
        let Committer { clock, store, options, .. } = &*self;
        let shards = shards_of(sequence, &sending.groups);
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
                Err(StoreError::Rejected(_) | StoreError::Full(_)) if !group.others.is_empty() || batches > 1 => {
                    left.push(Work::Alone(group.shard, group.into_commits().collect()));
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
            for queued in repeat.groups.iter().filter(|group| group.was_ambiguous).flat_map(ShardGroup::commits) {
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
