//! Writes what handlers decided, many at a time, each exactly once.
//!
//! A lane has one write under way. What is queued meanwhile is the next one (natural batching: no delay window, and a lone
//! caller waits for one commit and no more). Commits of a shard always go through the same lane, in the order they were
//! queued. What is known of a write is answered; what is unknown is repeated under the same sequence number, until it is known or
//! its shard is lost, and meanwhile its callers are told [`Failure::Unknown`]. Until then nothing later is sent of whatever shares
//! that number in the store ([`Sequence`]): of the lane; or of its shard alone, and then the other shards of the lane go on beside it.
//! What was never sent for too long is withdrawn and fails for certain.

#[cfg(test)]
#[cfg(feature = "testing")]
mod model;
#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::clock::{Clock, Random, Sleep, within};
use crate::error::WithCauses;
use crate::instance::effects::fold;
use crate::instance::gate::{Failure, Ticket};
use crate::instance::ride::{Carrier, Fate, Riding};
use crate::shards::Shards;
use crate::shards::delivery::Delivery;
use crate::store::client::{CommitOptions, backoff};
use crate::store::{Batch, BoxError, Epoch, Incarnation, Lane, Op, Sequence, ShardId, Store, StoreError, Write};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, Notify, first_ready};

/// The most operations of one shard in a write, unless a single commit has more. Redis scripts stay short this way.
const MAX_SHARD_OPS: usize = 1_000;
/// The most operations in a write, and the most bytes, roughly.
const MAX_WRITE_OPS: usize = 8_000;
const MAX_WRITE_BYTES: usize = 8 * 1024 * 1024;
/// Where a store keeps the number of a write for each shard, a write that is not answered within this part of the store timeout
/// holds up its own shards only.
const PATIENCE: u32 = 10;

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
    woken_by: Option<Delivery>,
    /// Its place in a lane, from when it is queued until it is gone.
    place: Option<Place>,
    is_settled: bool,
}

impl Queued {
    pub(crate) fn new(commit: Arc<Commit>, ticket: Ticket, woken_by: Option<Delivery>) -> Queued {
        Queued { commit, ticket, woken_by, place: None, is_settled: false }
    }

    fn bytes(&self) -> usize {
        self.place.as_ref().map_or(0, |place| place.bytes)
    }

    fn settle(mut self, outcome: Result<(), Failure>) {
        self.is_settled = true;
        self.ticket.settle(outcome);
    }

    /// Nothing of it was sent, and nothing will be.
    pub(crate) fn withdraw(self, error: &Arc<StoreError>) {
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

pub(crate) fn host_has_stopped() -> Arc<StoreError> {
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
    depth: Arc<Depth>,
}

/// Commits of a lane that are queued or under way, and their bytes; read without the lock before a handler starts.
#[derive(Debug, Default)]
struct Depth {
    commits: AtomicUsize,
    bytes: AtomicUsize,
}

/// What one commit counts in its lane's depth, for as long as this exists.
#[derive(Debug)]
struct Place {
    depth: Arc<Depth>,
    bytes: usize,
}

impl Place {
    fn take(depth: &Arc<Depth>, commit: &Commit) -> Place {
        let bytes = commit.ops.iter().map(Op::bytes).sum();
        depth.commits.fetch_add(1, Ordering::Relaxed);
        depth.bytes.fetch_add(bytes, Ordering::Relaxed);
        Place { depth: depth.clone(), bytes }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.depth.commits.fetch_sub(1, Ordering::Relaxed);
        self.depth.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct LaneState {
    /// With the time each was queued.
    queue: VecDeque<(Duration, Queued)>,
    /// The shards that something under way holds up while the lane goes on, and what was queued for them since; all of it is older
    /// than what is in the queue.
    held: BTreeMap<ShardId, VecDeque<(Duration, Queued)>>,
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
        let depth = &self.lane(shard).depth;
        depth.commits.load(Ordering::Relaxed) >= self.options.max_queued
            || depth.bytes.load(Ordering::Relaxed) >= self.options.max_queued_bytes
    }

    /// Queues a commit. Its gate learns the outcome. Given back if the host has stopped, to be
    /// [withdrawn](Queued::withdraw) when no lock is held.
    #[must_use]
    pub(crate) fn push(&self, mut queued: Queued) -> Option<Queued> {
        let lane = self.lane(queued.commit.shard);
        let now = self.clock.elapsed();
        queued.place = Some(Place::take(&lane.depth, &queued.commit));
        let mut state = lane.state.lock();
        if state.closed {
            return Some(queued);
        }
        state.queue.push_back((now, queued));
        drop(state);
        lane.wake.notify_one();
        None
    }

    /// Stops taking commits and fails what was not sent.
    pub(crate) fn close(&self) {
        for lane in &self.lanes {
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
                tracing::warn!(%shard, error = %WithCauses(&error), "it is not known whether a transaction was committed; asking");
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
                ended = first_ready(&mut writer.running) => writer.end(ended),
                () = wake.notified(), if may_take => {}
                () = or_never(&mut writer.patience) => writer.leave_behind(),
            }
        }
    }

    /// Takes the next write's worth of commits out of the queue.
    fn next_group(&self, lane: Lane) -> Vec<Queued> {
        let mut state = self.lanes[usize::from(lane.0)].state.lock();
        let LaneState { queue, held, .. } = &mut *state;
        let mut group = Vec::with_capacity(queue.len().min(MAX_WRITE_OPS));
        let (mut ops, mut bytes) = (0, 0);
        let mut shard_ops = hashbrown::HashMap::<ShardId, usize, std::hash::RandomState>::default();
        while let Some((_, queued)) = queue.front() {
            let commit = &queued.commit;
            if let Some(waiting) = held.get_mut(&commit.shard) {
                waiting.extend(queue.pop_front());
                continue;
            }
            let of_shard = shard_ops.entry(commit.shard).or_default();
            *of_shard += commit.ops.len();
            ops += commit.ops.len();
            bytes += queued.bytes();
            if !group.is_empty() && (ops > MAX_WRITE_OPS || bytes > MAX_WRITE_BYTES || *of_shard > MAX_SHARD_OPS) {
                break;
            }
            group.extend(queue.pop_front().map(|(_, queued)| queued));
        }
        group
    }

    /// Fails what has waited for longer than the commit timeout, in the queue or behind one of `shards`: it was never sent.
    fn withdraw_late(&self, lane: Lane, sequence: Sequence, shards: &BTreeSet<ShardId>, error: &Arc<StoreError>) {
        let now = self.clock.elapsed();
        let mut late = Vec::new();
        let mut state = self.lanes[usize::from(lane.0)].state.lock();
        let LaneState { queue, held, .. } = &mut *state;
        let mut take_late = |queue: &mut VecDeque<(Duration, Queued)>| {
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

    /// Sorts commits by shard, leaving out those that must not be sent.
    fn by_shard(&self, group: Vec<Queued>) -> Vec<ShardGroup> {
        let mut groups = BTreeMap::<(ShardId, Epoch), Vec<Queued>>::new();
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
        let (answers, is_whole) = match within(&**clock, options.store_timeout, store.commit(&sending.write)).await {
            Some(Ok(answers)) if answers.len() == batches => (answers, false),
            Some(Ok(answers)) => {
                let text = format!("{} answers to {batches} batches", answers.len());
                (for_each(batches, text.into(), StoreError::Unavailable), true)
            }
            Some(Err(error)) => (for_all(batches, error), true),
            None => {
                let text = format!("no answer within {:?}", options.store_timeout);
                (for_each(batches, text.into(), StoreError::Unavailable), true)
            }
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

/// Sends the writes of one lane, one after the other; beside them, where a store keeps numbers for each shard, what is left of
/// earlier ones.
struct LaneWriter {
    committer: Arc<Committer>,
    lane: Lane,
    sequence: Sequence,
    /// The number of the last write.
    seq: u64,
    /// To be sent before anything is taken out of the queue.
    waiting: VecDeque<Work>,
    running: Vec<Pin<Box<dyn Future<Output = Ended> + Send>>>,
    foremost: Option<Foremost>,
    /// How long the queue waits for that one yet; `None` if it does for ever.
    patience: Option<Sleep>,
    /// The shards that are held up while the lane goes on.
    held: BTreeSet<ShardId>,
}

/// The write under way that the queue waits for.
struct Foremost {
    seq: u64,
    shards: BTreeSet<ShardId>,
}

/// Something to be sent.
enum Work {
    /// Commits of one shard, each by itself.
    Alone(ShardId, VecDeque<Queued>),
    /// A write, or what is left of one, under its old number.
    Repeat(Sending),
}

/// A write with the commits in it.
struct Sending {
    write: Write,
    /// One for each batch.
    groups: Vec<ShardGroup>,
    /// Commits of its only shard that are sent one by one after it.
    then: VecDeque<Queued>,
    first_sent: Duration,
    /// How often it was sent and not wholly answered.
    failures: u32,
}

/// The commits of one shard within a write.
struct ShardGroup {
    shard: ShardId,
    epoch: Epoch,
    commits: Vec<Queued>,
    /// Says whether there ever was a try without an answer.
    was_ambiguous: bool,
}

/// What came of sending a write once.
struct Ended {
    seq: u64,
    shards: BTreeSet<ShardId>,
    left: Vec<Work>,
}

impl Work {
    /// Commits of one shard, if there are any.
    fn alone(commits: VecDeque<Queued>) -> Option<Work> {
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
    fn new(committer: Arc<Committer>, lane: Lane, sequence: Sequence) -> LaneWriter {
        let (waiting, running, held) = (VecDeque::new(), Vec::new(), BTreeSet::new());
        LaneWriter { committer, lane, sequence, seq: 0, waiting, running, foremost: None, patience: None, held }
    }

    /// Says whether something may be taken out of the queue now.
    fn may_take(&self) -> bool {
        match self.sequence {
            Sequence::OfLane => self.running.is_empty(),
            Sequence::OfShard => self.foremost.is_none(),
        }
    }

    /// Begins what may be sent now.
    fn begin(&mut self) {
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
            if self.sequence == Sequence::OfShard {
                let patience = self.committer.options.store_timeout / PATIENCE;
                self.patience = Some(self.committer.clock.sleep(patience));
            }
            self.foremost = Some(Foremost { seq: sending.write.seq, shards });
            self.send(sending);
        }
    }

    fn send(&mut self, sending: Sending) {
        let ended = self.committer.clone().send(self.lane, self.sequence, sending);
        self.running.push(Box::pin(ended));
    }

    /// Makes a new write of these commits; `None` if nothing of them is to be sent.
    fn number(&mut self, group: Vec<Queued>) -> Option<Sending> {
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

    /// A write was sent once: what is left of it comes next, and holds up what shares its number.
    fn end(&mut self, ended: Ended) {
        let Ended { seq, shards, left } = ended;
        if self.foremost.as_ref().is_some_and(|foremost| foremost.seq == seq) {
            self.foremost = None;
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
    }

    /// The queue waits no longer for the write under way.
    fn leave_behind(&mut self) {
        self.patience = None;
        if let Some(foremost) = self.foremost.take() {
            self.hold(&foremost.shards);
        }
    }

    /// What is queued for these shards waits from now on, and the queue goes on without it.
    fn hold(&mut self, shards: &BTreeSet<ShardId>) {
        let new: Vec<_> = shards.difference(&self.held).copied().collect();
        if !new.is_empty() {
            let mut state = self.committer.lanes[usize::from(self.lane.0)].state.lock();
            state.held.extend(new.iter().map(|shard| (*shard, VecDeque::new())));
            self.held.extend(new);
        }
    }

    /// What waited for these shards is the first in the queue.
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
async fn or_never(sleep: &mut Option<Sleep>) {
    match sleep {
        Some(sleep) => sleep.await,
        None => std::future::pending().await,
    }
}

/// What the store said of the whole write, as the answer to each of its batches.
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
