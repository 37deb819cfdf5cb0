//! The committer against a model, on a store whose answers a case decides.
//!
//! Each commit writes a key of its own, so that the store's log tells which commits landed, when and how often, and some of few
//! keys and alarms that all commits of a shard share, so that their order shows. The model takes what landed and applies its
//! operations one by one, unfolded: the store must have come to the same. The store keeps the numbers of writes for its lanes, or for
//! its shards, and then answers for each batch what it likes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU16;

use async_trait::async_trait;
use bytes::Bytes;
use proptest::array::uniform3;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;
use tokio::runtime::Runtime;

use super::*;
use crate::Timestamp;
use crate::cases::{self, Checked, Subject};
use crate::commit::gate::Gate;
use crate::shards::firing::Limits;
use crate::store::{
    AlarmRow, Attempts, Claim, Claimed, Found, Hints, InstanceName, Loaded, Members, NewMessage, Page, Posted, Read,
    Renewal, Renewed, Revision, Write,
};
use crate::testing::{SeededRandom, SimClock};

const SHARDS: u32 = 3;
/// Instance `n` is of shard `n % SHARDS`. Two lanes share three shards, so one lane writes two shards at once.
const INSTANCES: usize = 6;
const STORE_TIMEOUT: Duration = Duration::from_secs(1);
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// The operation of a commit that the store refuses.
const GUILTY: &[u8] = b"guilty";

/// The next step.
#[derive(Debug, Clone)]
enum Step {
    /// Instances queue commits, before anything else happens.
    Commit(Vec<(usize, Kind)>),
    /// The store's answer to the next call of a lane that no such step speaks of yet.
    Answer {
        lane: u16,
        how: Answer,
    },
    Wait(u64),
    /// Another host takes the shard; this one finds out when it writes.
    Taken(u32),
    /// The host gives the shard up, its lease being over.
    GivenUp(u32),
    /// The host claims the shard again.
    Claimed(u32),
}

#[derive(Debug, Clone)]
enum Kind {
    Ordinary(Vec<Change>),
    /// A commit with content that the store refuses.
    Guilty,
    Empty,
}

/// An operation on something that the commits of a shard share.
#[derive(Debug, Clone)]
enum Change {
    Put(u8),
    Delete(u8),
    PutAlarm(u8),
    /// A removal, and the distance of its revision from the newest.
    RemoveAlarm(u8, u64),
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    /// After so many milliseconds.
    Done(u64),
    DoneAndLost,
    DoneAndHanging,
    DoneAndMiscounted,
    LostBefore,
    HangingBefore,
    /// No answer, and it arrives after so many milliseconds.
    Late(u64),
    NotApplied,
    /// Something else for the batch of each shard, where shards have numbers of their own; elsewhere it is done.
    Mixed([Part; SHARDS as usize]),
}

/// The fate of one batch, and the answer to it.
#[derive(Debug, Clone, Copy)]
enum Part {
    Done,
    DoneAndLost,
    LostBefore,
    /// No answer, and it arrives after so many milliseconds.
    Late(u64),
    NotApplied,
    Full,
}

/// The kind of store of a case.
#[derive(Debug, Clone, Copy)]
enum Make {
    /// Numbers for lanes, and it says which batch it refuses.
    Lanes,
    /// Numbers for lanes, and it refuses a whole write for what one batch has in it.
    Whole,
    /// Numbers for shards.
    Shards,
}

struct Cases;

impl ReferenceStateMachine for Cases {
    type State = Make;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Make> {
        prop_oneof![1 => Just(Make::Lanes), 1 => Just(Make::Whole), 2 => Just(Make::Shards)].boxed()
    }

    fn transitions(_: &Make) -> BoxedStrategy<Step> {
        let part = prop_oneof![
            4 => Just(Part::Done),
            1 => Just(Part::DoneAndLost),
            1 => Just(Part::LostBefore),
            2 => (0..6_000_u64).prop_map(Part::Late),
            1 => Just(Part::NotApplied),
            1 => Just(Part::Full),
        ];
        let change = prop_oneof![
            (0..3_u8).prop_map(Change::Put),
            (0..3_u8).prop_map(Change::Delete),
            (0..3_u8).prop_map(Change::PutAlarm),
            (0..3_u8, 0..4_u64).prop_map(|(id, behind)| Change::RemoveAlarm(id, behind)),
        ];
        let kind = prop_oneof![
            16 => vec(change, 0..4).prop_map(Kind::Ordinary),
            1 => Just(Kind::Guilty),
            2 => Just(Kind::Empty),
        ];
        let answer = prop_oneof![
            4 => (0..1_500_u64).prop_map(Answer::Done),
            2 => Just(Answer::DoneAndLost),
            1 => Just(Answer::DoneAndHanging),
            1 => Just(Answer::DoneAndMiscounted),
            2 => Just(Answer::LostBefore),
            2 => Just(Answer::HangingBefore),
            3 => (0..6_000_u64).prop_map(Answer::Late),
            2 => Just(Answer::NotApplied),
            8 => uniform3(part).prop_map(Answer::Mixed),
        ];
        prop_oneof![
            10 => vec((0..INSTANCES, kind), 1..5).prop_map(Step::Commit),
            10 => (0..2_u16, answer).prop_map(|(lane, how)| Step::Answer { lane, how }),
            8 => prop_oneof![4 => 0..1_200_u64, 1 => 0..9_000_u64].prop_map(Step::Wait),
            1 => (0..SHARDS).prop_map(Step::Taken),
            1 => (0..SHARDS).prop_map(Step::GivenUp),
            2 => (0..SHARDS).prop_map(Step::Claimed),
        ]
        .boxed()
    }

    fn apply(state: Make, _: &Step) -> Make {
        state
    }
}

/// The keys and alarms of one shard, as they are stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Table {
    values: BTreeMap<Arc<str>, Bytes>,
    alarms: BTreeMap<Arc<str>, AlarmRow>,
}

impl Table {
    fn apply(&mut self, op: &Op) {
        let stored = |alarms: &BTreeMap<Arc<str>, AlarmRow>, id| alarms.get(id).map(|row: &AlarmRow| row.revision);
        match op {
            Op::Put { key, value, .. } => _ = self.values.insert(key.clone(), value.clone()),
            Op::Delete { key, .. } => _ = self.values.remove(key),
            Op::PutAlarm(row) if stored(&self.alarms, &row.id) <= Some(row.revision) => {
                self.alarms.insert(row.id.clone(), row.clone());
            }
            Op::RemoveAlarm { id, revision, .. } if stored(&self.alarms, id) <= Some(*revision) => {
                self.alarms.remove(id);
            }
            _ => {}
        }
    }
}

/// The key that commit `number` alone writes.
fn own_key(number: u64) -> Arc<str> {
    format!("own-{number}").into()
}

fn commits_of(ops: &[Op]) -> Vec<u64> {
    let number = |op: &Op| match op {
        Op::Put { key, .. } => key.strip_prefix("own-")?.parse().ok(),
        _ => None,
    };
    let mut numbers: Vec<u64> = ops.iter().filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// A store that keeps its contract and answers as it is told.
#[derive(Debug)]
struct Scripted {
    clock: Arc<SimClock>,
    shards: Arc<Shards>,
    make: Make,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    epochs: BTreeMap<ShardId, Epoch>,
    seqs: BTreeMap<Key, u64>,
    tables: BTreeMap<ShardId, Table>,
    answers: BTreeMap<Lane, VecDeque<Answer>>,
    calls: BTreeMap<Key, Calls>,
    /// Each batch that was applied: its shard and the commits in it.
    applied: Vec<(ShardId, Vec<u64>)>,
    /// Commits that were sent in a call without an answer, and those for which there was no room.
    unanswered: BTreeSet<u64>,
    without_room: BTreeSet<u64>,
    /// A way in which the committer broke its promises to the store.
    broken: Vec<String>,
}

/// The thing that a number is kept for.
type Key = (Lane, Option<ShardId>);

/// The calls for which one number counts.
#[derive(Debug, Default)]
struct Calls {
    is_under_way: bool,
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    seq: u64,
    batches: Vec<Batch>,
    /// Says whether it is known what became of it; `None` if it surely was not applied and may come again.
    is_known: Option<bool>,
    /// Says whether a call before the last one was not answered.
    was_unanswered: bool,
}

type Answers = Result<Vec<Result<(), StoreError>>, StoreError>;

impl Make {
    /// The parts of a write that have a number together.
    fn parts(self, write: &Write) -> Vec<(Key, Vec<Batch>)> {
        match self {
            Make::Lanes | Make::Whole => vec![((write.lane, None), write.batches.clone())],
            Make::Shards => {
                write.batches.iter().map(|batch| ((write.lane, Some(batch.shard)), vec![batch.clone()])).collect()
            }
        }
    }

    fn sequence(self) -> Sequence {
        match self {
            Make::Lanes | Make::Whole => Sequence::OfLane,
            Make::Shards => Sequence::OfShard,
        }
    }
}

impl State {
    fn begin(&mut self, write: &Write, make: Make, shards: &Shards) {
        let shard_numbers: Vec<_> = write.batches.iter().map(|batch| batch.shard).collect();
        if !shard_numbers.is_sorted_by(|a, b| a < b) {
            self.broken.push(format!("write {} has shards {shard_numbers:?}", write.seq));
        }
        for (key, batches) in make.parts(write) {
            let calls = self.calls.entry(key).or_default();
            if std::mem::replace(&mut calls.is_under_way, true) {
                self.broken.push(format!("write {} is sent while another one of {key:?} is under way", write.seq));
            }
            let mut was_unanswered = false;
            if let Some(last) = &calls.last {
                let is_lost = |batch: &Batch| shards.epoch(batch.shard) != Some(batch.epoch);
                // What is not asked again is lost.
                let left_out = || last.batches.iter().filter(|batch| !batches.contains(batch));
                let is_part = batches.iter().all(|batch| last.batches.contains(batch)) && left_out().all(is_lost);
                let is_repeat = last.seq == write.seq && is_part;
                let may_be_new =
                    write.seq > last.seq && (last.is_known != Some(false) || last.batches.iter().all(is_lost));
                if !(may_be_new || (is_repeat && last.is_known != Some(true))) {
                    self.broken.push(format!("after {last:?} comes {write:?}"));
                }
                was_unanswered = is_repeat && last.is_known == Some(false);
            }
            calls.last = Some(Last { seq: write.seq, batches, is_known: Some(false), was_unanswered });
        }
    }

    fn apply(&mut self, write: &Write, make: Make) -> Answers {
        let is_guilty = |op: &Op| matches!(op, Op::Put { value, .. } if **value == *GUILTY);
        let refusal = || StoreError::Rejected("it has something guilty in it".into());
        let stale = |newest| StoreError::Stale { lane: write.lane, seq: write.seq, newest };
        let mut is_repeat = false;
        if make.sequence() == Sequence::OfLane {
            let newest = self.seqs.entry((write.lane, None)).or_default();
            if write.seq < *newest {
                return Err(stale(*newest));
            }
            let mut ops = write.batches.iter().flat_map(|batch| batch.ops.iter());
            if matches!(make, Make::Whole) && ops.any(is_guilty) {
                return Err(refusal());
            }
            is_repeat = std::mem::replace(newest, write.seq) == write.seq;
        }
        let answer = |batch: &Batch| {
            let newest = self.epochs.get(&batch.shard).copied().unwrap_or_default();
            if newest != batch.epoch {
                return Err(StoreError::Fenced { shard: batch.shard, held: batch.epoch, newest });
            }
            if batch.ops.iter().any(is_guilty) {
                return Err(refusal());
            }
            if make.sequence() == Sequence::OfShard {
                let newest = self.seqs.entry((write.lane, Some(batch.shard))).or_default();
                if write.seq < *newest {
                    return Err(stale(*newest));
                }
                is_repeat = std::mem::replace(newest, write.seq) == write.seq;
            }
            if !is_repeat {
                let table = self.tables.entry(batch.shard).or_default();
                batch.ops.iter().for_each(|op| table.apply(op));
                self.applied.push((batch.shard, commits_of(&batch.ops)));
            }
            Ok(())
        };
        Ok(write.batches.iter().map(answer).collect())
    }
}

/// A call of the store, until it is answered or dropped.
struct UnderWay {
    state: Arc<Mutex<State>>,
    make: Make,
    write: Write,
    /// The knowledge of each shard: the batch is done or refused for good, or surely was not applied.
    known: BTreeMap<ShardId, Option<bool>>,
}

impl UnderWay {
    /// Answered: the outcome is known, or surely was nothing.
    fn answered(mut self, is_known: Option<bool>) {
        self.known = self.write.batches.iter().map(|batch| (batch.shard, is_known)).collect();
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        let is_silent = |batch: &&Batch| !self.known.contains_key(&batch.shard);
        let silent: Vec<u64> =
            self.write.batches.iter().filter(is_silent).flat_map(|batch| commits_of(&batch.ops)).collect();
        state.unanswered.extend(silent);
        for (key, batches) in self.make.parts(&self.write) {
            let calls = state.calls.entry(key).or_default();
            calls.is_under_way = false;
            if let Some(last) = &mut calls.last
                && let Some(is_known) = self.known.get(&batches[0].shard)
            {
                last.is_known = if last.was_unanswered { is_known.or(Some(false)) } else { *is_known };
            }
        }
    }
}

impl Scripted {
    fn send_late(&self, millis: u64, write: Write) {
        let (clock, state, make) = (self.clock.clone(), self.state.clone(), self.make);
        tokio::spawn(async move {
            clock.sleep(Duration::from_millis(millis)).await;
            drop(state.lock().apply(&write, make));
        });
    }
}

fn no_answer() -> StoreError {
    StoreError::Unavailable("no answer".into())
}

#[async_trait]
impl Store for Scripted {
    async fn commit(&self, write: &Write) -> Answers {
        let (call, how) = {
            let mut state = self.state.lock();
            state.begin(write, self.make, &self.shards);
            let how = state.answers.entry(write.lane).or_default().pop_front().unwrap_or(Answer::Done(0));
            let (state, make, write) = (self.state.clone(), self.make, write.clone());
            (UnderWay { state, make, write, known: BTreeMap::new() }, how)
        };
        let how = match how {
            Answer::Mixed(_) if self.make.sequence() == Sequence::OfLane => Answer::Done(0),
            how => how,
        };
        let apply = || self.state.lock().apply(write, self.make);
        match how {
            Answer::Done(millis) => {
                self.clock.sleep(Duration::from_millis(millis)).await;
                let answer = apply();
                let is_stale = |answer: &Result<(), StoreError>| matches!(answer, Err(StoreError::Stale { .. }));
                if matches!(&answer, Err(StoreError::Stale { .. })) || answer.iter().flatten().any(is_stale) {
                    self.state.lock().broken.push(format!("{write:?} is stale"));
                }
                call.answered(Some(true));
                answer
            }
            Answer::DoneAndLost => {
                drop(apply());
                Err(no_answer())
            }
            Answer::DoneAndMiscounted => match apply() {
                Ok(mut answers) => {
                    answers.push(Ok(()));
                    Ok(answers)
                }
                Err(_) => Err(no_answer()),
            },
            Answer::DoneAndHanging => {
                drop(apply());
                std::future::pending().await
            }
            Answer::LostBefore => Err(no_answer()),
            Answer::HangingBefore => std::future::pending().await,
            Answer::Late(millis) => {
                self.send_late(millis, write.clone());
                std::future::pending().await
            }
            Answer::Mixed(parts) => {
                let mut call = call;
                let answer = |batch: &Batch| {
                    let alone = Write { batches: vec![batch.clone()], ..write.clone() };
                    let apply = || self.state.lock().apply(&alone, self.make).map(|mut answers| answers.remove(0));
                    let (answer, is_known) = match parts[batch.shard.0 as usize] {
                        Part::Done => (apply().and_then(|answer| answer), Some(Some(true))),
                        Part::DoneAndLost => {
                            drop(apply());
                            (Err(no_answer()), None)
                        }
                        Part::LostBefore => (Err(no_answer()), None),
                        Part::Late(millis) => {
                            self.send_late(millis, alone);
                            (Err(no_answer()), None)
                        }
                        Part::NotApplied => (Err(StoreError::NotApplied("not reached".into())), Some(None)),
                        Part::Full => {
                            self.state.lock().without_room.extend(commits_of(&batch.ops));
                            (Err(StoreError::Full("no room".into())), Some(None))
                        }
                    };
                    call.known.extend(is_known.map(|is_known| (batch.shard, is_known)));
                    answer
                };
                Ok(write.batches.iter().map(answer).collect())
            }
            Answer::NotApplied => {
                call.answered(None);
                Err(StoreError::NotApplied("not reached".into()))
            }
        }
    }

    async fn claim(&self, _: &Claim) -> Result<Claimed, StoreError> {
        unreachable!("a committer only commits")
    }
    async fn renew(&self, _: &Renewal) -> Result<Renewed, StoreError> {
        unreachable!("a committer only commits")
    }
    async fn release(&self, _: Incarnation, _: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        unreachable!("a committer only commits")
    }
    async fn cordon(&self, _: Incarnation, _: bool, _: u64) -> Result<bool, StoreError> {
        unreachable!("a committer only commits")
    }
    async fn members(&self) -> Result<Members, StoreError> {
        unreachable!("a committer only commits")
    }
    async fn post(&self, _: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        unreachable!("a committer only commits")
    }
    async fn watch(&self, _: Incarnation) -> Result<Hints, StoreError> {
        unreachable!("a committer only commits")
    }
    async fn load(&self, _: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        unreachable!("a committer only commits")
    }
    async fn read(&self, _: &Read) -> Result<Found, StoreError> {
        unreachable!("a committer only commits")
    }
}

/// The answer to an instance about a commit, and its time.
type Told = (Result<(), Failure>, Duration);

/// A commit, and what its instance was told.
struct Record {
    number: u64,
    shard: ShardId,
    epoch: Epoch,
    ops: Vec<Op>,
    is_guilty: bool,
    gate: Arc<Gate>,
    ticket: Ticket,
    queued_at: Duration,
    told: Arc<Mutex<Option<Told>>>,
    is_checked: bool,
}

struct Model {
    runtime: Runtime,
    clock: Arc<SimClock>,
    shards: Arc<Shards>,
    store: Arc<Mutex<State>>,
    committer: Arc<Committer>,
    gates: Vec<Arc<Gate>>,
    records: Vec<Record>,
    /// The rows that the store should hold: each commit that landed, applied by itself.
    tables: BTreeMap<ShardId, Table>,
    /// The commits that landed, and how many of the store's log have been looked at.
    landed: BTreeSet<u64>,
    seen: usize,
}

impl Model {
    fn new(make: Make) -> Model {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let _in = runtime.enter();
        let clock = Arc::new(SimClock::new(Timestamp::UNIX_EPOCH));
        let limits = Limits { max_firing: 1, max_fires_per_second: 1, max_crashes: 1, window_bytes: 1_000_000 };
        let shards = Arc::new(Shards::new(SHARDS, limits, clock.clone()));
        let state = Arc::new(Mutex::new(State::default()));
        let (store, incarnation) = (state.clone(), Incarnation(1));
        let scripted = Scripted { clock: clock.clone(), shards: shards.clone(), make, state };
        let options = CommitOptions {
            lanes: 2,
            store_timeout: STORE_TIMEOUT,
            commit_timeout: COMMIT_TIMEOUT,
            max_queued: usize::MAX,
            max_queued_bytes: usize::MAX,
        };
        let random = Arc::new(SeededRandom::new(1));
        let committer = Committer::new(incarnation, Arc::new(scripted), shards.clone(), clock.clone(), random, options);
        let committer = Arc::new(committer);
        for lane in committer.open(NonZeroU16::MAX) {
            tokio::spawn(committer.clone().run(lane, make.sequence()));
        }
        let gates = (0..INSTANCES).map(|_| Arc::default()).collect();
        drop(_in);
        let mut model = Model {
            runtime,
            clock,
            shards,
            store,
            committer,
            gates,
            records: Vec::new(),
            tables: BTreeMap::new(),
            landed: BTreeSet::new(),
            seen: 0,
        };
        (0..SHARDS).for_each(|shard| model.claim(ShardId(shard)));
        model
    }

    fn claim(&mut self, shard: ShardId) {
        if self.shards.epoch(shard).is_none() {
            let mut store = self.store.lock();
            let epoch = store.epochs.entry(shard).or_default();
            epoch.0 += 1;
            self.shards.own(shard, *epoch, true, 8, 1_000_000);
        }
    }

    fn commit(&mut self, instance: usize, kind: &Kind) {
        let shard = ShardId(u32::try_from(instance).unwrap() % SHARDS);
        let Some(epoch) = self.shards.epoch(shard) else { return };
        // As a slot does: the next incarnation begins when all of the one that failed is settled.
        if self.gates[instance].has_failed() && self.gates[instance].is_settled() {
            self.gates[instance] = Arc::default();
        }
        let number = self.records.len() as u64;
        let ops = ops(number, kind);
        let gate = self.gates[instance].clone();
        let ticket = gate.take_ticket();
        let told = Arc::<Mutex<_>>::default();
        let (waiting, tell, clock) = (ticket.clone(), told.clone(), self.clock.clone());
        self.runtime.spawn(async move {
            let outcome = waiting.wait().await;
            *tell.lock() = Some((outcome, clock.elapsed()));
        });
        let commit = Commit { shard, epoch, ops: ops.clone().into(), is_shown: true };
        self.records.push(Record {
            number,
            shard,
            epoch,
            ops,
            is_guilty: matches!(kind, Kind::Guilty),
            gate,
            ticket: ticket.clone(),
            queued_at: self.clock.elapsed(),
            told,
            is_checked: false,
        });
        if let Some(refused) = self.committer.push(QueuedCommit::new(Arc::new(commit), ticket, None)) {
            refused.withdraw(&host_has_stopped());
        }
    }

    /// Lets everything happen that can happen now.
    fn settle(&self) {
        self.runtime.block_on(async {
            for _ in 0..32 {
                tokio::task::yield_now().await;
            }
        });
    }

    fn check(&mut self) -> Checked {
        let store = self.store.lock();
        prop_assert!(store.broken.is_empty(), "{:?}", store.broken);
        for (shard, commits) in &store.applied[self.seen..] {
            for number in commits {
                let record = &self.records[usize::try_from(*number).unwrap()];
                prop_assert!(self.landed.insert(*number), "commit {number} lands twice");
                let newer = self.records[usize::try_from(*number).unwrap() + 1..].iter();
                let overtaken = newer.filter(|later| later.shard == *shard && self.landed.contains(&later.number));
                prop_assert_eq!(overtaken.map(|later| later.number).next(), None, "lands before commit {}", number);
                let table = self.tables.entry(*shard).or_default();
                record.ops.iter().for_each(|op| table.apply(op));
            }
        }
        self.seen = store.applied.len();
        prop_assert_eq!(&store.tables, &self.tables, "folded and one by one");
        let (unanswered, without_room) = (store.unanswered.clone(), store.without_room.clone());
        drop(store);
        for at in 0..self.records.len() {
            self.check_told(at, &unanswered, &without_room)?;
        }
        Ok(())
    }

    /// Checks that what an instance was told of a commit is true, and there was a reason for it.
    fn check_told(&mut self, at: usize, unanswered: &BTreeSet<u64>, without_room: &BTreeSet<u64>) -> Checked {
        let record = &self.records[at];
        let Some((told, when)) = record.told.lock().clone() else { return Ok(()) };
        let has_landed = self.landed.contains(&record.number);
        match &told {
            Ok(()) => prop_assert!(has_landed || record.ops.is_empty(), "commit {} is told done", record.number),
            Err(Failure::Unknown) => {}
            Err(failure) => prop_assert!(!has_landed, "commit {} landed and is told {failure:?}", record.number),
        }
        if record.is_checked {
            return Ok(());
        }
        let before = self.records[..at].iter().filter(|earlier| Arc::ptr_eq(&earlier.gate, &record.gate));
        let mut is_first_to_fail = told.is_err();
        for earlier in before {
            let earlier_told = earlier.told.lock().clone();
            prop_assert!(earlier_told.is_some() || told.is_err(), "commit {} is told before {}", at, earlier.number);
            is_first_to_fail &= matches!(earlier_told, Some((Ok(()), _)));
        }
        if is_first_to_fail {
            let waited = when - record.queued_at;
            let is_lost = self.shards.epoch(record.shard) != Some(record.epoch)
                || self.store.lock().epochs.get(&record.shard) != Some(&record.epoch);
            let is_late = waited >= COMMIT_TIMEOUT;
            let is_reason = match &told {
                Ok(()) => true,
                Err(Failure::Fenced) => is_lost,
                Err(Failure::Store(error)) if matches!(**error, StoreError::Rejected(_)) => record.is_guilty,
                Err(Failure::Store(error)) if matches!(**error, StoreError::Full(_)) => {
                    without_room.contains(&record.number)
                }
                Err(Failure::Store(_)) => is_late,
                Err(Failure::Unknown) => {
                    (is_lost || is_late) && (record.ops.is_empty() || unanswered.contains(&record.number))
                }
            };
            prop_assert!(is_reason, "commit {} is told {:?} after {:?}", record.number, told, waited);
        }
        self.records[at].is_checked = true;
        Ok(())
    }
}

/// The operation that commit `number` writes.
fn ops(number: u64, kind: &Kind) -> Vec<Op> {
    let name = || InstanceName { interface: "order".into(), instance: "shared".into() };
    let put = |key: &str, value: String| Op::Put { name: name(), key: key.into(), value: value.into() };
    let revision = |behind| Revision { epoch: Epoch(1), counter: (number + 4) - behind };
    let changes: &[Change] = match kind {
        Kind::Empty => return Vec::new(),
        Kind::Guilty => &[],
        Kind::Ordinary(changes) => changes,
    };
    let mut ops = vec![put(&own_key(number), String::new()), put("last", number.to_string())];
    if let Kind::Guilty = kind {
        ops.push(Op::Put { name: name(), key: "guilty".into(), value: Bytes::from_static(GUILTY) });
    }
    ops.extend(changes.iter().map(|change| match change {
        Change::Put(key) => put(&key.to_string(), number.to_string()),
        Change::Delete(key) => Op::Delete { name: name(), key: key.to_string().into() },
        Change::PutAlarm(id) => Op::PutAlarm(AlarmRow {
            name: name(),
            id: id.to_string().into(),
            due: Timestamp::MAX,
            scheduled_at: Timestamp::MAX,
            revision: revision(0),
            attempts: Attempts { failed: u32::try_from(number).unwrap(), crashes: 0, started: false, last_error: None },
            meta: Bytes::from_static(b"null"),
        }),
        Change::RemoveAlarm(id, behind) => {
            Op::RemoveAlarm { name: name(), id: id.to_string().into(), revision: revision(*behind) }
        }
    }));
    ops
}

impl Subject<Cases> for Model {
    fn apply(&mut self, _: &Make, step: &Step) -> Checked {
        // The clock is the runtime's.
        let handle = self.runtime.handle().clone();
        let _in = handle.enter();
        match step {
            Step::Commit(commits) => commits.iter().for_each(|(instance, kind)| self.commit(*instance, kind)),
            Step::Answer { lane, how } => {
                self.store.lock().answers.entry(Lane(*lane)).or_default().push_back(*how);
            }
            Step::Wait(millis) => {
                self.runtime.block_on(self.clock.sleep(Duration::from_millis(*millis)));
            }
            Step::Taken(shard) => self.store.lock().epochs.entry(ShardId(*shard)).or_default().0 += 1,
            Step::GivenUp(shard) => {
                if let Some(epoch) = self.shards.epoch(ShardId(*shard)) {
                    self.shards.lose(ShardId(*shard), epoch);
                }
            }
            Step::Claimed(shard) => self.claim(ShardId(*shard)),
        }
        self.settle();
        self.check()
    }

    /// Once the store answers at once, everything comes to its end, and no ghost changes anything.
    fn end(mut self, _: &Make) -> Checked {
        let handle = self.runtime.handle().clone();
        let _in = handle.enter();
        self.store.lock().answers.clear();
        self.runtime.block_on(self.clock.sleep(Duration::from_secs(60)));
        self.check()?;
        for record in &self.records {
            prop_assert!(record.told.lock().is_some(), "commit {} was told nothing", record.number);
            prop_assert!(record.ticket.is_settled(), "commit {} is not settled", record.number);
        }
        for lane in self.committer.lanes.iter() {
            let depth = lane.depth.get();
            prop_assert_eq!(depth, (0, 0), "counted as queued");
            prop_assert!(lane.state.lock().held.is_empty(), "shards are held up");
        }
        Ok(())
    }
}

#[test]
fn whatever_the_store_answers_a_commit_lands_once_in_order_and_its_instance_is_told_the_truth() {
    cases::check::<Cases, _>(2_500, 60, |make| Model::new(*make));
}
