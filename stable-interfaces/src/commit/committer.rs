//! Writes what handlers decided, many at a time, each exactly once.
//!
//! A lane has one write under way. What is queued meanwhile is the next one (natural batching: no delay window, and a lone
//! caller waits for one commit and no more), and with it what those ask for who were just answered and are ready to go on. Commits
//! of a shard always go through the same lane, in the order they were queued. What is known of a write is answered; what is unknown is
//! repeated under the same sequence number, until it is known or its shard is lost, and meanwhile its callers are told
//! [`Failure::Unknown`]. Until then nothing later is sent of whatever shares that number in the store ([`Sequence`]): of the lane; or of
//! its shard alone, and then the other shards of the lane go on beside it. A commit that was never sent for too long is withdrawn and
//! fails for certain.

mod lane;
#[cfg(test)]
#[cfg(feature = "testing")]
mod model;
#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU16;
use std::time::Duration;

use crate::clock::{Clock, Random};
use crate::commit::committer::lane::{LaneWriter, or_never};
use crate::commit::effects::folded;
use crate::commit::gate::{Failure, Ticket};
use crate::commit::in_doubt::{CommitOutcome, InDoubt};
use crate::error::WithCauses;
use crate::setting::Setting;
use crate::shards::Shards;
use crate::shards::delivery::Delivery;
use crate::store::client::{Backoff, CommitOptions};
use crate::store::deadlines::{Deadlines, answered};
use crate::store::{Batch, Epoch, ExternalTransaction, Incarnation, Lane, Op, Sequence, ShardId, Store, StoreError};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, Notify, after_others, first_ready};

/// The most operations of one shard in a write, unless a single commit has more. Redis scripts stay short this way.
const MAX_SHARD_OPS: usize = 1_000;
/// The most operations in a write, and the most bytes, roughly.
const MAX_WRITE_OPS: usize = 8_000;
const MAX_WRITE_BYTES: usize = 8 * 1024 * 1024;

/// The operations that one handler decided on between two commits.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) shard: ShardId,
    pub(crate) epoch: Epoch,
    /// In the order they were decided. May be empty: then it only waits for its turn.
    pub(crate) ops: Arc<[Op]>,
    /// Tells whether the shard's windows follow it when it is durable.
    pub(crate) is_shown: bool,
}

/// A commit on its way. Its gate learns the outcome in any case: dropped without one, the outcome is unknown.
#[derive(Debug)]
pub(crate) struct QueuedCommit {
    commit: Arc<Commit>,
    ticket: Ticket,
    /// The alarm or message that this commit completes, retries or gives up.
    woken_by: Option<Delivery>,
    /// The commit's part of a lane's depth, from when the commit is queued until it is gone.
    counted: Option<Counted>,
    is_settled: bool,
}

impl QueuedCommit {
    pub(crate) fn new(commit: Arc<Commit>, ticket: Ticket, woken_by: Option<Delivery>) -> QueuedCommit {
        QueuedCommit { commit, ticket, woken_by, counted: None, is_settled: false }
    }

    /// The number of its operations, and about how many bytes they take.
    fn size(&self) -> (usize, usize) {
        self.counted.as_ref().map_or((0, 0), |counted| (counted.ops, counted.bytes))
    }

    /// The contents of the queue, for the model of a machine.
    #[cfg(all(test, not(shuttle)))]
    pub(crate) fn contents(&self) -> (&Arc<Commit>, u64, Option<&Delivery>) {
        (&self.commit, self.ticket.number(), self.woken_by.as_ref())
    }

    pub(crate) fn settle(mut self, outcome: Result<(), Failure>) {
        self.is_settled = true;
        self.ticket.settle(outcome);
    }

    /// Nothing of it was sent, and nothing will be.
    pub(crate) fn withdraw(self, error: &Arc<StoreError>) {
        self.settle(Err(Failure::Store(error.clone())));
    }
}

impl Drop for QueuedCommit {
    fn drop(&mut self) {
        if !self.is_settled {
            self.ticket.settle(Err(Failure::Unknown));
        }
    }
}

pub(crate) fn host_has_stopped() -> Arc<StoreError> {
    Arc::new(StoreError::NotApplied("the host has stopped".into()))
}

#[derive(Debug)]
pub(crate) struct Committer {
    /// As many as the store's writes can overlap, at most the option's.
    lanes: Setting<[LaneQueue]>,
    /// The number of commits in the write that ended last, of whichever lane.
    last_write: AtomicUsize,
    incarnation: Incarnation,
    store: Deadlines,
    shards: Arc<Shards>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    options: CommitOptions,
}

#[derive(Debug, Default)]
struct LaneQueue {
    state: Mutex<LaneState>,
    /// Wakes the lane's task, for a queue that is not empty any more. Whatever comes behind that is seen when the queue is.
    wake: Notify,
    depth: Arc<Depth>,
}

/// Commits of a lane that are queued or under way, and their bytes; read without the lock before a handler starts.
///
/// Both are one number, for each commit changes it twice: bytes below, commits from `COMMIT` up. A lane would need a terabyte for the one to
/// reach the other.
#[derive(Debug, Default)]
struct Depth(AtomicU64);

impl Depth {
    const COMMIT: u64 = 1 << 40;

    fn part(bytes: usize) -> u64 {
        Depth::COMMIT + bytes as u64
    }

    /// The number of commits, and of bytes.
    #[inline]
    fn get(&self) -> (u64, u64) {
        let depth = self.0.load(Ordering::Relaxed);
        (depth / Depth::COMMIT, depth % Depth::COMMIT)
    }
}

/// The part of one commit in its lane's depth, for as long as this exists.
#[derive(Debug)]
struct Counted {
    depth: Arc<Depth>,
    ops: usize,
    bytes: usize,
}

impl Counted {
    fn add(depth: &Arc<Depth>, commit: &Commit) -> Counted {
        let bytes = commit.ops.iter().map(Op::bytes).sum();
        depth.0.fetch_add(Depth::part(bytes), Ordering::Relaxed);
        Counted { depth: depth.clone(), ops: commit.ops.len(), bytes }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.depth.0.fetch_sub(Depth::part(self.bytes), Ordering::Relaxed);
    }
}

/// Commits in the order they were queued, with the time of that.
type Queue = VecDeque<(Duration, QueuedCommit)>;

#[derive(Debug, Default)]
struct LaneState {
    queue: Queue,
    /// The shards that something under way holds up while the lane goes on, and what was queued for them since; all of it is older
    /// than what is in the queue.
    held: BTreeMap<ShardId, Queue>,
    /// Set when the host stops: nothing is taken any more.
    closed: bool,
}

impl Committer {
    pub(crate) fn new(
        incarnation: Incarnation,
        store: Arc<dyn Store>,
        shards: Arc<Shards>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        options: CommitOptions,
    ) -> Committer {
        let store = Deadlines::new(store, clock.clone(), options.store_timeout);
        let (lanes, last_write) = (Setting::open(), AtomicUsize::new(0));
        Committer { lanes, last_write, incarnation, store, shards, clock, random, options }
    }

    fn lane(&self, shard: ShardId) -> &LaneQueue {
        let lanes = &*self.lanes;
        &lanes[shard.0 as usize % lanes.len()]
    }

    /// Opens the lanes, on a store that overlaps so many writes; each is to be [run](Self::run). Nothing is pushed before that.
    pub(crate) fn open(&self, overlap: NonZeroU16) -> impl Iterator<Item = Lane> + use<> {
        let lanes = self.options.lanes.clamp(1, overlap.get());
        self.lanes.give((0..lanes).map(|_| LaneQueue::default()).collect());
        (0..lanes).map(Lane)
    }

    /// Tells whether so much waits already that no handler should begin.
    #[inline]
    pub(crate) fn is_full(&self, shard: ShardId) -> bool {
        let (commits, bytes) = self.lane(shard).depth.get();
        commits >= self.options.max_queued as u64 || bytes >= self.options.max_queued_bytes as u64
    }

    /// Queues a commit. Its gate learns the outcome. Given back if the host has stopped, to be
    /// [withdrawn](QueuedCommit::withdraw) when no lock is held.
    #[must_use]
    pub(crate) fn push(&self, mut queued: QueuedCommit) -> Option<QueuedCommit> {
        let lane = self.lane(queued.commit.shard);
        let now = self.clock.elapsed();
        queued.counted = Some(Counted::add(&lane.depth, &queued.commit));
        let mut state = lane.state.lock();
        if state.closed {
            return Some(queued);
        }
        let was_empty = state.queue.is_empty();
        state.queue.push_back((now, queued));
        drop(state);
        if was_empty {
            lane.wake.notify_one();
        }
        None
    }

    /// Stops taking commits and fails what was not sent.
    pub(crate) fn close(&self) {
        for lane in self.lanes.get().iter().flat_map(|lanes| lanes.iter()) {
            let (held, queue) = {
                let mut state = lane.state.lock();
                state.closed = true;
                (std::mem::take(&mut state.held), std::mem::take(&mut state.queue))
            };
            for (_, queued) in held.into_values().flatten().chain(queue) {
                queued.withdraw(&host_has_stopped());
            }
        }
    }

    /// Lets a transaction of somebody else take a commit along, and finds out what became of it. Nothing of the same
    /// incarnation is under way meanwhile, and no other instance writes what it writes, so it needs no lane.
    pub(crate) async fn commit_externally(
        &self,
        queued: QueuedCommit,
        in_doubt: &InDoubt,
        mut transaction: Box<dyn ExternalTransaction>,
    ) {
        let commit = queued.commit.clone();
        let (shard, epoch) = (commit.shard, commit.epoch);
        let batch = Batch { shard, epoch, ops: folded(&commit.ops) };
        let mut backoff = Backoff::new(&*self.clock, &*self.random);
        let limit = self.options.store_timeout;
        let is_owned = || self.shards.epoch(shard) == Some(epoch);
        let mut answer = if is_owned() {
            let work = transaction.commit(self.incarnation, &batch);
            answered(&*self.clock, limit, StoreError::Unavailable, work).await
        } else {
            Err(StoreError::Replaced)
        };
        let mut was_ambiguous = false;
        let outcome = loop {
            let error = match answer {
                Ok(()) => break CommitOutcome::Committed,
                Err(StoreError::Unavailable(error)) => StoreError::Unavailable(error),
                Err(error @ (StoreError::Fenced { .. } | StoreError::Replaced)) => {
                    self.lose(shard, epoch, &error);
                    break CommitOutcome::Lost(if was_ambiguous { Failure::Unknown } else { Failure::Fenced });
                }
                Err(error @ (StoreError::Lost(_) | StoreError::Stopped(_))) => {
                    self.report_ended(&error);
                    break CommitOutcome::Lost(Failure::Unknown);
                }
                Err(error) => break CommitOutcome::Refused(Arc::new(error)),
            };
            if !was_ambiguous {
                tracing::warn!(%shard, error = %WithCauses(&error), "it is not known whether a transaction was committed; asking");
                was_ambiguous = true;
            }
            answer = loop {
                if backoff.over(self.options.commit_timeout) {
                    queued.ticket.leave_unanswered();
                }
                if !is_owned() {
                    break Err(StoreError::Replaced);
                }
                metrics::counter!(crate::metrics::COMMIT_REPEATS).increment(1);
                match answered(&*self.clock, limit, StoreError::NotApplied, transaction.was_committed()).await {
                    Ok(true) => break Ok(()),
                    Ok(false) => break Err(StoreError::NotApplied(Box::new(error))),
                    Err(error @ StoreError::Replaced) => break Err(error),
                    Err(_) => {}
                }
                backoff.pause().await;
            };
        };
        let has_committed = matches!(outcome, CommitOutcome::Committed);
        let told = in_doubt.decide(outcome);
        if has_committed {
            self.shards.apply(shard, epoch, &commit.ops);
        }
        queued.settle(told);
    }

    /// The store has said that a shard is not this host's any more.
    fn lose(&self, shard: ShardId, epoch: Epoch, error: &StoreError) {
        if self.shards.lose(shard, epoch) {
            tracing::warn!(%shard, %error, "lost the shard");
            metrics::counter!(crate::metrics::SHARDS_LOST).increment(1);
        }
        // Whoever keeps the lease finds out at once what else is lost.
        self.shards.lost.notify_one();
    }

    /// The store takes no more of this host's writes.
    fn report_ended(&self, error: &StoreError) {
        tracing::error!(error = %WithCauses(error), "the store takes no more writes of this host");
        if matches!(error, StoreError::Lost(_)) {
            // Whoever keeps the lease hears of it too, and saves what is in memory.
            self.shards.lost.notify_one();
        }
    }

    /// The task of one lane, on a store that keeps the numbers of writes so. Never ends by itself.
    pub(crate) async fn run(self: Arc<Committer>, lane: Lane, sequence: Sequence) {
        let mut writer = LaneWriter::new(self.clone(), lane, sequence);
        let wake = &self.lanes[usize::from(lane.0)].wake;
        loop {
            writer.begin();
            let may_take = writer.may_take();
            tokio::select! { biased;
                ended = first_ready(&mut writer.running) => {
                    self.last_write.store(writer.end(ended), Ordering::Relaxed);
                }
                () = wake.notified(), if may_take => {}
                () = or_never(&mut writer.timer) => writer.ring(),
            }
            if self.expects_more(lane) {
                after_others().await;
            }
        }
    }

    /// Tells whether those that were answered last are more than what is queued: what they ask for next is to be in the next write and not in the
    /// one behind it, if they are ready to ask.
    fn expects_more(&self, lane: Lane) -> bool {
        let answered = self.last_write.load(Ordering::Relaxed);
        answered > 1 && self.lanes[usize::from(lane.0)].state.lock().queue.len() < answered
    }

    /// Takes the next write's worth of commits out of the queue, into `group`, which is empty.
    fn next_group(&self, lane: Lane, group: &mut Queue) {
        let mut state = self.lanes[usize::from(lane.0)].state.lock();
        let LaneState { queue, held, .. } = &mut *state;
        let size = |(ops, bytes), (_, queued): &(Duration, QueuedCommit)| {
            let size = queued.size();
            (ops + size.0, bytes + size.1)
        };
        let (ops, bytes) = queue.iter().fold((0, 0), size);
        if held.is_empty() && ops <= MAX_SHARD_OPS && bytes <= MAX_WRITE_BYTES {
            // All of it, whatever its shards. Callers wait for this lock.
            std::mem::swap(queue, group);
            return;
        }
        let (mut ops, mut bytes) = (0, 0);
        let mut shard_ops = hashbrown::HashMap::<ShardId, usize, std::hash::RandomState>::default();
        while let Some((_, queued)) = queue.front() {
            let commit = &queued.commit;
            if let Some(waiting) = held.get_mut(&commit.shard) {
                waiting.extend(queue.pop_front());
                continue;
            }
            let of_shard = shard_ops.entry(commit.shard).or_default();
            let size = queued.size();
            *of_shard += size.0;
            ops += size.0;
            bytes += size.1;
            if !group.is_empty() && (ops > MAX_WRITE_OPS || bytes > MAX_WRITE_BYTES || *of_shard > MAX_SHARD_OPS) {
                break;
            }
            group.extend(queue.pop_front());
        }
    }

    /// Fails what has waited for longer than the commit timeout, in the queue or behind one of `shards`: it was never sent.
    fn withdraw_late(&self, lane: Lane, sequence: Sequence, shards: &BTreeSet<ShardId>, error: &Arc<StoreError>) {
        let now = self.clock.elapsed();
        let mut late = Vec::new();
        let mut state = self.lanes[usize::from(lane.0)].state.lock();
        let LaneState { queue, held, .. } = &mut *state;
        let mut take_late = |queue: &mut Queue| {
            while let Some((since, _)) = queue.front()
                && now.saturating_sub(*since) >= self.options.commit_timeout
            {
                late.extend(queue.pop_front().map(|(_, queued)| queued));
            }
        };
        match sequence {
            Sequence::OfLane => take_late(queue),
            Sequence::OfShard => {
                for (_, waiting) in held.iter_mut().filter(|(shard, _)| shards.contains(shard)) {
                    take_late(waiting);
                }
            }
        }
        drop(state);
        for queued in late {
            queued.withdraw(error);
        }
    }
}
