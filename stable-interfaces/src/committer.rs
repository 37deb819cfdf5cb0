//! Writes what handlers decided, many at a time, each exactly once.
//!
//! A lane has one write under way. What is queued meanwhile is the next one (natural batching: no delay window, and a lone
//! caller waits for one commit and no more). Commits of a shard always go through the same lane, in the order they were
//! queued. A write whose outcome is unknown is repeated under the same sequence number before anything later of its lane,
//! until it is known or the shard is lost; meanwhile its callers are told [`Failure::Unknown`]. What was never sent for too
//! long is withdrawn and fails for certain.

#[cfg(test)]
#[cfg(feature = "testing")]
mod model;

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::{Clock, Random, within};
use crate::host::shards::Shards;
use crate::host::wake::WakeToken;
use crate::instance::effects::fold;
use crate::instance::gate::{Failure, Ticket};
use crate::instance::ride::{Carrier, Fate, Riding};
use crate::store::{Batch, BoxError, Epoch, Incarnation, Lane, Op, ShardId, Store, StoreError, Write};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, Notify};

/// The most operations of one shard in a write, unless a single commit has more. Redis scripts stay short this way.
const MAX_SHARD_OPS: usize = 1_000;
/// The most operations in a write, and the most bytes, roughly.
const MAX_WRITE_OPS: usize = 8_000;
const MAX_WRITE_BYTES: usize = 8 * 1024 * 1024;

/// How commits are written.
#[derive(Debug, Clone)]
pub(crate) struct CommitOptions {
    pub(crate) lanes: u16,
    /// After this, one call of the store counts as unanswered.
    pub(crate) store_timeout: Duration,
    /// After this, a caller is told that its commit did not happen, or that its outcome is unknown.
    pub(crate) commit_timeout: Duration,
    /// The most commits waiting in a lane.
    pub(crate) max_queued: usize,
}

/// What one handler decided between two commits.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) shard: ShardId,
    pub(crate) epoch: Epoch,
    /// In the order they were decided. May be empty: then it only waits for its turn.
    pub(crate) ops: Vec<Op>,
    /// Whether the shard's windows follow it when it is durable.
    pub(crate) is_shown: bool,
}

/// A commit on its way. Its gate learns the outcome in any case: dropped without one, the outcome is unknown.
#[derive(Debug)]
pub(crate) struct Queued {
    commit: Arc<Commit>,
    ticket: Ticket,
    /// The alarm or message that this commit completes, retries or gives up.
    woken_by: Option<WakeToken>,
    is_settled: bool,
}

impl Queued {
    pub(crate) fn new(commit: Arc<Commit>, ticket: Ticket, woken_by: Option<WakeToken>) -> Queued {
        Queued { commit, ticket, woken_by, is_settled: false }
    }

    fn settle(mut self, outcome: Result<(), Failure>) {
        self.is_settled = true;
        self.ticket.settle(outcome);
    }

    /// Nothing of it was sent, and nothing will be.
    fn withdraw(self, error: &Arc<StoreError>) {
        self.settle(Err(Failure::Store(error.clone())));
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if !self.is_settled {
            self.ticket.settle(Err(Failure::Unknown));
        }
    }
}

fn host_has_stopped() -> Arc<StoreError> {
    Arc::new(StoreError::NotApplied("the host has stopped".into()))
}

#[derive(Debug)]
pub(crate) struct Committer {
    lanes: Box<[LaneQueue]>,
    incarnation: Incarnation,
    store: Arc<dyn Store>,
    shards: Arc<Shards>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    options: CommitOptions,
}

#[derive(Debug, Default)]
struct LaneQueue {
    state: Mutex<LaneState>,
    /// Wakes the lane's task.
    wake: Notify,
    /// Commits queued or under way; read without the lock before a handler starts.
    depth: AtomicUsize,
}

#[derive(Debug, Default)]
struct LaneState {
    /// With the time each was queued.
    queue: VecDeque<(Duration, Queued)>,
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
        let lanes = (0..options.lanes.max(1)).map(|_| LaneQueue::default()).collect();
        Committer { lanes, incarnation, store, shards, clock, random, options }
    }

    fn lane(&self, shard: ShardId) -> &LaneQueue {
        &self.lanes[shard.0 as usize % self.lanes.len()]
    }

    pub(crate) fn lanes(&self) -> impl Iterator<Item = Lane> + use<> {
        (0..self.options.lanes.max(1)).map(Lane)
    }

    /// Whether so much waits already that no handler should begin.
    pub(crate) fn is_full(&self, shard: ShardId) -> bool {
        self.lane(shard).depth.load(Ordering::Relaxed) >= self.options.max_queued
    }

    /// Queues a commit. Its gate learns the outcome.
    pub(crate) fn push(&self, queued: Queued) {
        let lane = self.lane(queued.commit.shard);
        let now = self.clock.elapsed();
        let mut state = lane.state.lock();
        if state.closed {
            drop(state);
            queued.withdraw(&host_has_stopped());
            return;
        }
        state.queue.push_back((now, queued));
        // Before anybody can take it and count it down: below zero it would look full.
        lane.depth.fetch_add(1, Ordering::Relaxed);
        drop(state);
        lane.wake.notify_one();
    }

    /// Stops taking commits and fails what was not sent.
    pub(crate) fn close(&self) {
        for lane in &self.lanes {
            let queue = {
                let mut state = lane.state.lock();
                state.closed = true;
                std::mem::take(&mut state.queue)
            };
            for (_, queued) in queue {
                lane.depth.fetch_sub(1, Ordering::Relaxed);
                queued.withdraw(&host_has_stopped());
            }
        }
    }

    /// Lets a carrier take a commit along in a transaction of its own, and finds out what became of it. Nothing of the same
    /// incarnation is under way meanwhile, and no other instance writes what it writes, so it needs no lane.
    pub(crate) async fn carry(&self, queued: Queued, riding: &Riding, mut carrier: Box<dyn Carrier>) {
        let commit = queued.commit.clone();
        let (shard, epoch) = (commit.shard, commit.epoch);
        let batch = Batch { shard, epoch, ops: fold(commit.ops.clone()) };
        let began = self.clock.elapsed();
        let limit = self.options.store_timeout;
        let late = || StoreError::Unavailable(format!("no answer within {limit:?}").into());
        let is_owned = || self.shards.epoch(shard) == Some(epoch);
        let mut answer = if is_owned() {
            within(&*self.clock, limit, carrier.commit(self.incarnation, &batch)).await.unwrap_or_else(|| Err(late()))
        } else {
            Err(StoreError::Replaced)
        };
        let (mut was_ambiguous, mut failures) = (false, 0_u32);
        let fate = loop {
            let error = match answer {
                Ok(()) => break Fate::Landed,
                Err(StoreError::Unavailable(error)) => StoreError::Unavailable(error),
                Err(error @ (StoreError::Fenced { .. } | StoreError::Replaced)) => {
                    self.lose(shard, epoch, &error);
                    break Fate::Lost(if was_ambiguous { Failure::Unknown } else { Failure::Fenced });
                }
                Err(error @ (StoreError::Lost(_) | StoreError::Stopped(_))) => {
                    self.report_ended(&error);
                    break Fate::Lost(Failure::Unknown);
                }
                Err(error) => break Fate::Refused(Arc::new(error)),
            };
            if !was_ambiguous {
                tracing::warn!(%shard, error = %Described(&error), "it is not known whether a transaction was committed; asking");
                was_ambiguous = true;
            }
            answer = loop {
                if self.clock.elapsed().saturating_sub(began) >= self.options.commit_timeout {
                    queued.ticket.leave_unanswered();
                }
                if !is_owned() {
                    break Err(StoreError::Replaced);
                }
                metrics::counter!(crate::metrics::COMMIT_REPEATS).increment(1);
                match within(&*self.clock, limit, carrier.was_committed()).await {
                    Some(Ok(true)) => break Ok(()),
                    Some(Ok(false)) => break Err(StoreError::NotApplied(Box::new(error))),
                    Some(Err(error @ StoreError::Replaced)) => break Err(error),
                    Some(Err(_)) | None => {}
                }
                self.clock.sleep(backoff(&*self.random, failures)).await;
                failures += 1;
            };
        };
        let has_landed = matches!(fate, Fate::Landed);
        let outcome = riding.decide(fate);
        if has_landed {
            self.shards.apply(shard, epoch, &commit.ops);
        }
        queued.settle(outcome);
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
        tracing::error!(error = %Described(error), "the store takes no more writes of this host");
        if matches!(error, StoreError::Lost(_)) {
            // Whoever keeps the lease hears of it too, and saves what is in memory.
            self.shards.lost.notify_one();
        }
    }

    /// The task of one lane. Never ends by itself.
    pub(crate) async fn run(self: Arc<Committer>, lane: Lane) {
        let mut writer = LaneWriter { committer: &self, lane, seq: 0 };
        let queue = &self.lanes[usize::from(lane.0)];
        loop {
            let group = self.next_group(queue);
            if group.is_empty() {
                queue.wake.notified().await;
                continue;
            }
            let count = group.len();
            writer.write(group).await;
            queue.depth.fetch_sub(count, Ordering::Relaxed);
        }
    }

    /// Takes the next write's worth of commits out of the queue.
    fn next_group(&self, lane: &LaneQueue) -> Vec<Queued> {
        let mut state = lane.state.lock();
        let mut group = Vec::with_capacity(state.queue.len().min(MAX_WRITE_OPS));
        let (mut ops, mut bytes) = (0, 0);
        let mut shard_ops = hashbrown::HashMap::<ShardId, usize, std::hash::RandomState>::default();
        while let Some((_, queued)) = state.queue.front() {
            let commit = &queued.commit;
            let of_shard = shard_ops.entry(commit.shard).or_default();
            *of_shard += commit.ops.len();
            ops += commit.ops.len();
            bytes += commit.ops.iter().map(Op::bytes).sum::<usize>();
            if !group.is_empty() && (ops > MAX_WRITE_OPS || bytes > MAX_WRITE_BYTES || *of_shard > MAX_SHARD_OPS) {
                break;
            }
            group.extend(state.queue.pop_front().map(|(_, queued)| queued));
        }
        group
    }

    /// Fails what has waited in the queue for longer than the commit timeout: it was never sent.
    fn withdraw_late(&self, lane: Lane, error: &Arc<StoreError>) {
        let queue = &self.lanes[usize::from(lane.0)];
        let now = self.clock.elapsed();
        let mut late = Vec::new();
        let mut state = queue.state.lock();
        while let Some((since, _)) = state.queue.front()
            && now.saturating_sub(*since) >= self.options.commit_timeout
        {
            late.extend(state.queue.pop_front().map(|(_, queued)| queued));
        }
        drop(state);
        queue.depth.fetch_sub(late.len(), Ordering::Relaxed);
        for queued in late {
            queued.withdraw(error);
        }
    }
}

/// Sends the writes of one lane, one after the other.
struct LaneWriter<'a> {
    committer: &'a Committer,
    lane: Lane,
    /// The number of the last write.
    seq: u64,
}

/// The commits of one shard within a write.
struct ShardGroup {
    shard: ShardId,
    epoch: Epoch,
    commits: Vec<Queued>,
}

impl LaneWriter<'_> {
    async fn write(&mut self, group: Vec<Queued>) {
        let groups = self.by_shard(group);
        let refused = self.send(groups).await;
        // One guilty commit must not fail the others it was folded with.
        for group in refused {
            for queued in group.commits {
                let alone = self.by_shard(vec![queued]);
                for group in self.send(alone).await {
                    debug_assert!(group.commits.is_empty(), "a commit sent alone is answered for good");
                }
            }
        }
    }

    /// Sorts commits by shard, leaving out those that must not be sent.
    fn by_shard(&self, group: Vec<Queued>) -> Vec<ShardGroup> {
        let mut groups = std::collections::BTreeMap::<(ShardId, Epoch), Vec<Queued>>::new();
        for queued in group {
            let commit = &queued.commit;
            if queued.ticket.is_behind_failure() {
                let error = StoreError::NotApplied("an earlier commit of this instance failed".into());
                queued.withdraw(&Arc::new(error));
            } else if self.committer.shards.epoch(commit.shard) != Some(commit.epoch) {
                queued.settle(Err(Failure::Fenced));
            } else {
                groups.entry((commit.shard, commit.epoch)).or_default().push(queued);
            }
        }
        groups.into_iter().map(|((shard, epoch), commits)| ShardGroup { shard, epoch, commits }).collect()
    }

    /// Writes the groups and settles their commits; returns those that must be repeated one by one.
    async fn send(&mut self, groups: Vec<ShardGroup>) -> Vec<ShardGroup> {
        let batch = |group: &ShardGroup| Batch {
            shard: group.shard,
            epoch: group.epoch,
            ops: fold(group.commits.iter().flat_map(|queued| queued.commit.ops.iter().cloned()).collect()),
        };
        let (writing, empty): (Vec<_>, Vec<_>) =
            groups.into_iter().partition(|group| group.commits.iter().any(|queued| !queued.commit.ops.is_empty()));
        for group in empty {
            self.settle(group, &Ok(()));
        }
        if writing.is_empty() {
            return Vec::new();
        }
        self.seq += 1;
        let write = Write {
            incarnation: self.committer.incarnation,
            lane: self.lane,
            seq: self.seq,
            batches: writing.iter().map(batch).collect(),
        };
        let ops: usize = write.batches.iter().map(|batch| batch.ops.len()).sum();
        metrics::histogram!(crate::metrics::COMMIT_OPS).record(u32::try_from(ops).unwrap_or(u32::MAX));
        let sent_at = self.committer.clock.elapsed();
        let (answers, was_ambiguous) = self.send_until_known(&write, &writing).await;
        let took = self.committer.clock.elapsed().saturating_sub(sent_at);
        metrics::histogram!(crate::metrics::COMMIT_SECONDS).record(took.as_secs_f64());
        let mut refused = Vec::new();
        for (group, answer) in writing.into_iter().zip(answers) {
            match answer {
                Ok(()) => self.settle(group, &Ok(())),
                Err(StoreError::Rejected(_)) if group.commits.len() > 1 || write.batches.len() > 1 => {
                    refused.push(group);
                }
                Err(StoreError::Rejected(error)) => {
                    self.settle(group, &Err(Failure::Store(Arc::new(StoreError::Rejected(error)))));
                }
                Err(StoreError::NotApplied(error)) => {
                    self.settle(group, &Err(Failure::Store(Arc::new(StoreError::NotApplied(error)))));
                }
                Err(error @ (StoreError::Stopped(_) | StoreError::Lost(_))) => {
                    self.committer.report_ended(&error);
                    self.settle(group, &Err(Failure::Unknown));
                }
                Err(error) => {
                    self.committer.lose(group.shard, group.epoch, &error);
                    metrics::counter!(crate::metrics::FENCED)
                        .increment(u64::try_from(group.commits.len()).unwrap_or(u64::MAX));
                    // A repeat may be refused although the first try landed before the shard was taken.
                    let failure = if was_ambiguous { Failure::Unknown } else { Failure::Fenced };
                    self.settle(group, &Err(failure));
                }
            }
        }
        refused
    }

    fn settle(&self, group: ShardGroup, outcome: &Result<(), Failure>) {
        for mut queued in group.commits {
            if outcome.is_ok() {
                let commit = queued.commit.clone();
                // Resolve first: once the window has seen a retry, it may be handled again at once.
                if !commit.ops.is_empty()
                    && let Some(token) = queued.woken_by.take()
                {
                    token.resolve();
                }
                // Before the gate opens, so that whoever sees the reply sees the alarm.
                if commit.is_shown {
                    self.committer.shards.apply(commit.shard, commit.epoch, &commit.ops);
                }
            }
            queued.settle(outcome.clone());
        }
    }

    /// Sends one write until its outcome is known, and says whether there ever was a try without an answer.
    async fn send_until_known(&self, write: &Write, groups: &[ShardGroup]) -> (Vec<Result<(), StoreError>>, bool) {
        let Committer { clock, store, options, .. } = self.committer;
        let first_sent = clock.elapsed();
        let mut was_ambiguous = false;
        let mut failures = 0_u32;
        let all = |error: fn() -> StoreError| write.batches.iter().map(|_| Err(error())).collect::<Vec<_>>();
        loop {
            let error = match within(&**clock, options.store_timeout, store.commit(write)).await {
                Some(Ok(answers)) if answers.len() == write.batches.len() => return (answers, was_ambiguous),
                Some(Ok(answers)) => {
                    let text = format!("{} answers to {} batches", answers.len(), write.batches.len());
                    StoreError::Unavailable(text.into())
                }
                Some(Err(error)) => error,
                None => StoreError::Unavailable(format!("no answer within {:?}", options.store_timeout).into()),
            };
            match error {
                StoreError::Unavailable(_) => was_ambiguous = true,
                StoreError::NotApplied(_) => {}
                StoreError::Rejected(error) => return (for_each(write, error, StoreError::Rejected), was_ambiguous),
                StoreError::Stopped(error) => return (for_each(write, error, StoreError::Stopped), was_ambiguous),
                StoreError::Lost(error) => return (for_each(write, error, StoreError::Lost), was_ambiguous),
                // Replaced, stale or an answer no store should give: this incarnation must not write any more.
                error => {
                    tracing::error!(%error, "the store refuses this host's writes");
                    return (all(|| StoreError::Replaced), was_ambiguous);
                }
            }
            let late = clock.elapsed().saturating_sub(first_sent) >= options.commit_timeout;
            let error = Arc::new(error);
            if failures == 0 {
                tracing::warn!(lane = self.lane.0, seq = write.seq, error = %Described(&error), "a group commit failed; repeating it");
            }
            if late && !was_ambiguous {
                self.committer.withdraw_late(self.lane, &error);
                return (all(|| StoreError::NotApplied("the store stayed unavailable".into())), false);
            }
            if late {
                for queued in groups.iter().flat_map(|group| &group.commits) {
                    queued.ticket.leave_unanswered();
                }
                self.committer.withdraw_late(self.lane, &error);
            }
            if groups.iter().all(|group| self.committer.shards.epoch(group.shard) != Some(group.epoch)) {
                return (all(|| StoreError::Replaced), was_ambiguous);
            }
            metrics::counter!(crate::metrics::COMMIT_REPEATS).increment(1);
            let delay = backoff(&*self.committer.random, failures);
            failures += 1;
            clock.sleep(delay).await;
        }
    }
}

/// 5 ms, doubling up to one second, and up to half as much again.
pub(crate) fn backoff(random: &dyn Random, failures: u32) -> Duration {
    let millis = (5_u64 << failures.min(8)).min(1_000);
    Duration::from_millis(millis + random.next_u64() % (millis / 2 + 1))
}

/// What the store said of the whole write, as the answer to each of its batches.
fn for_each(write: &Write, error: BoxError, answer: fn(BoxError) -> StoreError) -> Vec<Result<(), StoreError>> {
    let error: Arc<dyn std::error::Error + Send + Sync> = error.into();
    write.batches.iter().map(|_| Err(answer(Box::new(Shared(error.clone()))))).collect()
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

/// An error with its causes, in one line.
pub(crate) struct Described<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
