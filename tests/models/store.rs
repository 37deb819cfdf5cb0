//! What the contract of [`Store`] says, as maps: who owns which shard, what a write is answered, what is stored then.
//!
//! Written from the contract's text and from no store. Of two things a model can know nothing, and leaves them open: when the store's
//! clock stamps a message, which is looked up once it is posted; and how a write is answered that a newer one has overtaken: it may
//! be called stale or be taken for a repeat, as long as it changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::subsequence;
use proptest_state_machine::ReferenceStateMachine;
use stable_interfaces::store::{
    After, AlarmKey, AlarmRow, Attempts, Batch, Claim, ClaimKind, Claimed, DeadKey, DeadLetter, DeadRow, Epoch,
    InboxKey, InboxRow, Incarnation, InstanceName, Lane, NewMessage, Op, Page, Read, ReadRange, ReadRows, Renewed,
    Revision, Rows, ShardId, Write,
};
use stable_interfaces::{Posted, Store, StoreError, Timestamp};
use tokio::runtime::Runtime;

use crate::cases::{Checked, Subject};

const SHARDS: u32 = 3;
/// How many lives of hosts there are at once: every other one of the same host.
const LIVES: u64 = 6;
const LONG: Duration = Duration::from_secs(3_600);
/// Over before anybody else asks.
const TINY: Duration = Duration::from_millis(1);

/// Few, so that steps meet, and such as are alike.
const NAMES: [(&str, &str); 3] = [("order", "a"), ("order", "ab"), ("order-2", "a")];
const IDS: [&str; 7] = ["a", "ab", "A", "a:b", "d", "é", "\u{10ffff}"];
const TIMES: [Timestamp; 6] = [
    Timestamp::MIN,
    Timestamp::from_millis(-1),
    Timestamp::UNIX_EPOCH,
    Timestamp::from_millis(255),
    Timestamp::from_millis(256),
    Timestamp::MAX,
];
const TEXTS: [&str; 4] = ["", "no", "\u{1}\"'\\", "ü\n\u{10ffff}"];
const CONTENTS: [&[u8]; 4] = [b"null", b"{\"a\": [1, 2.50]}", b"\"\\u0000 text\"", b"0"];
const BODIES: [&[u8]; 4] = [b"", b"\0\xff\x01", b"text", b"{}"];

fn name(who: usize) -> InstanceName {
    let (interface, instance) = NAMES[who % NAMES.len()];
    InstanceName { interface: interface.into(), instance: instance.into() }
}

fn id(id: usize) -> Arc<str> {
    IDS[id % IDS.len()].into()
}

fn time(time: usize) -> Timestamp {
    TIMES[time % TIMES.len()]
}

fn host_of(life: u64) -> &'static str {
    ["host-a", "host-b"][usize::from(life % 2 == 1)]
}

/// Whose and which: the identity of an alarm, a message, or a storage value.
type Item = (InstanceName, Arc<str>);

/// What rows of both kinds have beside their identity.
#[derive(Debug, Clone)]
pub(crate) struct Rest {
    attempt: u32,
    crashes: u32,
    started: bool,
    error: Option<usize>,
    content: usize,
}

/// An operation, of which the store's own times are not known.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    PutAlarm {
        who: usize,
        id: usize,
        due: usize,
        revision: (u64, u64),
        rest: Rest,
    },
    RemoveAlarm {
        who: usize,
        id: usize,
        revision: (u64, u64),
    },
    PutMessage {
        who: usize,
        id: usize,
        due: usize,
        rest: Rest,
    },
    /// If `other`, under another arrival than it has.
    RemoveMessage {
        who: usize,
        id: usize,
        other: bool,
    },
    PutDead {
        who: usize,
        id: usize,
        died: usize,
        is_message: bool,
        rest: Rest,
    },
    RemoveDead {
        who: usize,
        id: usize,
        died: usize,
        is_message: bool,
    },
    Put {
        who: usize,
        key: usize,
        value: usize,
    },
    Delete {
        who: usize,
        key: usize,
    },
}

impl Change {
    /// What no two operations of a batch may share.
    fn target(&self) -> (u8, usize, usize, usize) {
        match *self {
            Change::PutAlarm { who, id, .. } | Change::RemoveAlarm { who, id, .. } => (0, who, id, 0),
            Change::PutMessage { who, id, .. } | Change::RemoveMessage { who, id, .. } => (1, who, id, 0),
            Change::PutDead { who, id, died, is_message, .. } | Change::RemoveDead { who, id, died, is_message } => {
                (2 + u8::from(is_message), who, id, died)
            }
            Change::Put { who, key, .. } | Change::Delete { who, key } => (4, who, key, 0),
        }
    }
}

/// Under which epoch a batch is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Under {
    /// The one its writer was granted last.
    Granted,
    /// The one the shard has, whoever was granted it.
    Newest,
    Future,
}

/// Which number a write has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Number {
    /// So much above the last of its lane.
    Next(u64),
    /// The last write of the lane comes again.
    Repeated,
    /// One that so many have overtaken comes again.
    Overtaken(usize),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Alarms,
    Inbox,
    Dead,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Claim {
        life: u64,
        shards: Vec<u32>,
        is_long: bool,
        kind: ClaimKind,
        is_configured_otherwise: bool,
    },
    Renew {
        life: u64,
        is_long: bool,
    },
    Release {
        life: u64,
        shards: Vec<u32>,
    },
    Commit {
        life: u64,
        lane: u16,
        number: Number,
        batches: BTreeMap<u32, (Under, Vec<Change>)>,
    },
    Post(Vec<(u32, usize, usize, usize)>),
    /// Each page: of which shard and kind, after which of its rows, and how many.
    Load(Vec<(u32, Kind, Option<usize>, usize)>),
    Read {
        shard: u32,
        who: usize,
        is_storage: bool,
        from: usize,
        to: Option<usize>,
        limit: usize,
    },
    /// The store is closed and opened again.
    Reopen,
}

/// What the store has to answer to the last step.
#[derive(Debug, Clone, Default)]
enum Expected {
    /// The step was not possible: nothing was asked.
    #[default]
    Nothing,
    Done,
    Mismatch,
    Replaced,
    Claimed {
        asked: Vec<u32>,
        granted: Vec<(u32, u64, bool)>,
        held: Vec<(u32, &'static str)>,
    },
    Renewed {
        owned: Vec<u32>,
        inbox: Vec<u32>,
    },
    /// For each batch the shard's epoch if it is fenced.
    Committed {
        sent: Sent,
        fenced: Vec<Option<u64>>,
    },
    /// An old write comes again.
    Overtaken(Sent),
    Posted(Vec<Posted>),
}

/// A write as it is sent: its number, and each batch with its epoch.
#[derive(Debug, Clone)]
struct Sent {
    seq: u64,
    batches: Vec<(u32, u64, Vec<Change>)>,
    /// Under an epoch that nobody was granted: such a write is not sent again, because that epoch may come.
    is_of_the_future: bool,
}

#[derive(Debug, Clone)]
struct Life {
    has_ended: bool,
    is_lease_long: bool,
    granted: BTreeMap<u32, u64>,
    lanes: BTreeMap<u16, Vec<Sent>>,
}

/// A message that is stored.
#[derive(Debug, Clone)]
struct Mail {
    /// `None`: when it arrived.
    due: Option<Timestamp>,
    progress: Rest,
    body: usize,
}

#[derive(Debug, Clone, Default)]
struct Shard {
    epoch: u64,
    owner: Option<u64>,
    /// What the owner was told, and without one what the next will be told.
    is_clean: bool,
    alarms: BTreeMap<Item, AlarmRow>,
    inbox: BTreeMap<Item, Mail>,
    dead: BTreeMap<DeadKey, DeadLetter>,
    values: BTreeMap<Item, Bytes>,
}

/// What a store has to hold, and to answer.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    forgets_lives: bool,
    /// How often the store was closed: the processes that used it are gone then, and their lives with them.
    closed: u64,
    is_configured: bool,
    lives: BTreeMap<u64, Life>,
    shards: BTreeMap<u32, Shard>,
    expected: Expected,
}

/// `FORGETS_LIVES`: whether all owners are gone once it is opened again, as with a store that one process has for itself.
pub(crate) struct Contract<const FORGETS_LIVES: bool>;

impl<const FORGETS_LIVES: bool> ReferenceStateMachine for Contract<FORGETS_LIVES> {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        let shard = Shard { is_clean: true, ..Shard::default() };
        Just(Model {
            forgets_lives: FORGETS_LIVES,
            closed: 0,
            is_configured: false,
            lives: BTreeMap::new(),
            shards: (0..SHARDS).map(|id| (id, shard.clone())).collect(),
            expected: Expected::Nothing,
        })
        .boxed()
    }

    fn transitions(model: &Model) -> BoxedStrategy<Step> {
        // Mostly owners: what others send is refused in one way.
        let present = |owner: &u64| (1..=LIVES).contains(owner);
        let owners = model.shards.values().filter_map(|shard| shard.owner?.checked_sub(LIVES * model.closed));
        let owners: BTreeSet<u64> = owners.filter(present).collect();
        let owners: Vec<u64> = if owners.is_empty() { vec![1] } else { owners.into_iter().collect() };
        let writer = prop_oneof![8 => proptest::sample::select(owners), 1 => 1..=LIVES];
        let shards = || subsequence((0..SHARDS).collect::<Vec<_>>(), 1..=SHARDS as usize).prop_shuffle();
        let under = prop_oneof![16 => Just(Under::Granted), 2 => Just(Under::Newest), 1 => Just(Under::Future)];
        let number = prop_oneof![
            12 => (1..4_u64).prop_map(Number::Next),
            3 => Just(Number::Repeated),
            2 => (0..3_usize).prop_map(Number::Overtaken),
        ];
        let batches = proptest::collection::btree_map(0..SHARDS, (under, vec(change(), 1..7)), 1..=SHARDS as usize);
        let page = (0..SHARDS, kind(), proptest::option::of(0..6_usize), prop_oneof![1..4_usize, Just(100)]);
        prop_oneof![
            3 => (1..=LIVES, shards(), any::<bool>(), prop::bool::weighted(0.4), prop::bool::weighted(0.05)).prop_map(
                |(life, shards, is_long, is_start, is_configured_otherwise)| {
                    let kind = if is_start { ClaimKind::Start } else { ClaimKind::Running };
                    Step::Claim { life, shards, is_long, kind, is_configured_otherwise }
                }
            ),
            1 => (1..=LIVES, any::<bool>()).prop_map(|(life, is_long)| Step::Renew { life, is_long }),
            1 => (1..=LIVES, shards()).prop_map(|(life, shards)| Step::Release { life, shards }),
            18 => (writer, 0..2_u16, number, batches).prop_map(|(life, lane, number, batches)| {
                Step::Commit { life, lane, number, batches }
            }),
            4 => vec((0..SHARDS, 0..NAMES.len(), 0..IDS.len(), 0..BODIES.len()), 1..5).prop_map(Step::Post),
            3 => vec(page, 1..4).prop_map(Step::Load),
            3 => (
                (0..SHARDS, 0..NAMES.len(), any::<bool>()),
                (0..IDS.len(), proptest::option::of(0..IDS.len()), prop_oneof![1..4_usize, Just(100)]),
            )
                .prop_map(|((shard, who, is_storage), (from, to, limit))| {
                    Step::Read { shard, who, is_storage, from, to, limit }
                }),
            1 => Just(Step::Reopen),
        ]
        .boxed()
    }

    fn apply(mut model: Model, step: &Step) -> Model {
        model.expected = model.step(step);
        model
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Alarms), Just(Kind::Inbox), Just(Kind::Dead)]
}

fn rest() -> impl Strategy<Value = Rest> {
    let count = || prop_oneof![3 => 0..3_u32, 1 => Just(u32::MAX)];
    let error = proptest::option::of(0..TEXTS.len());
    (count(), count(), any::<bool>(), error, 0..CONTENTS.len())
        .prop_map(|(attempt, crashes, started, error, content)| Rest { attempt, crashes, started, error, content })
}

fn change() -> impl Strategy<Value = Change> {
    let at = 0..TIMES.len();
    let item = || (0..NAMES.len(), 0..IDS.len());
    let revision = || (1..4_u64, prop_oneof![4 => 0..4_u64, 1 => Just(i64::MAX.unsigned_abs())]);
    prop_oneof![
        6 => (item(), at.clone(), revision(), rest()).prop_map(|((who, id), due, revision, rest)| {
            Change::PutAlarm { who, id, due, revision, rest }
        }),
        3 => (item(), revision()).prop_map(|((who, id), revision)| Change::RemoveAlarm { who, id, revision }),
        2 => (item(), at.clone(), rest()).prop_map(|((who, id), due, rest)| Change::PutMessage { who, id, due, rest }),
        2 => (item(), prop::bool::weighted(0.2)).prop_map(|((who, id), other)| {
            Change::RemoveMessage { who, id, other }
        }),
        2 => (item(), at.clone(), any::<bool>(), rest()).prop_map(|((who, id), died, is_message, rest)| {
            Change::PutDead { who, id, died, is_message, rest }
        }),
        1 => (item(), at, any::<bool>()).prop_map(|((who, id), died, is_message)| {
            Change::RemoveDead { who, id, died, is_message }
        }),
        4 => (item(), 0..BODIES.len()).prop_map(|((who, key), value)| Change::Put { who, key, value }),
        2 => item().prop_map(|(who, key)| Change::Delete { who, key }),
    ]
}

fn alarm_row(who: usize, alarm: usize, due: usize, revision: (u64, u64), rest: &Rest) -> AlarmRow {
    AlarmRow {
        name: name(who),
        id: id(alarm),
        due: time(due),
        scheduled_at: time(due + 1),
        revision: Revision { epoch: Epoch(revision.0), counter: revision.1 },
        attempts: Attempts {
            failed: rest.attempt,
            crashes: rest.crashes,
            started: rest.started,
            last_error: rest.error.map(|error| TEXTS[error].into()),
        },
        meta: Bytes::from_static(CONTENTS[rest.content]),
    }
}

fn inbox_row(item: &Item, arrived: Timestamp, due: Timestamp, progress: &Rest, body: usize) -> InboxRow {
    InboxRow {
        name: item.0.clone(),
        id: item.1.clone(),
        arrived,
        due,
        attempts: Attempts {
            failed: progress.attempt,
            crashes: progress.crashes,
            started: progress.started,
            last_error: progress.error.map(|error| TEXTS[error].into()),
        },
        headers: headers(body),
        body: Bytes::from_static(BODIES[body]),
    }
}

fn headers(body: usize) -> Vec<(String, String)> {
    TEXTS[..body].iter().map(|text| (format!("h{text}"), (*text).to_owned())).collect()
}

fn letter(who: usize, of: usize, died: usize, is_message: bool, rest: &Rest) -> DeadLetter {
    let row = if is_message {
        DeadRow::Message(inbox_row(&(name(who), id(of)), time(died + 1), time(died + 2), rest, rest.content))
    } else {
        DeadRow::Alarm(alarm_row(who, of, died + 1, (2, 3), rest))
    };
    DeadLetter { died_at: time(died), reason: TEXTS[rest.content].into(), row }
}

fn dead_key(who: usize, of: usize, died: usize, is_message: bool) -> DeadKey {
    DeadKey { died_at: time(died), name: name(who), is_message, id: id(of) }
}

impl Model {
    /// The incarnation of a life that a step speaks of.
    fn incarnation(&self, life: u64) -> u64 {
        LIVES * self.closed + life
    }

    fn step(&mut self, step: &Step) -> Expected {
        match step {
            Step::Claim { life, shards, is_long, kind, is_configured_otherwise } => {
                let life = self.incarnation(*life);
                if *is_configured_otherwise {
                    let has_ended = self.lives.get(&life).is_some_and(|life| life.has_ended);
                    return if self.is_configured && !has_ended { Expected::Mismatch } else { Expected::Nothing };
                }
                self.claim(life, shards, *is_long, *kind)
            }
            Step::Renew { life, is_long } => {
                let life = self.incarnation(*life);
                let Some(living) = self.lives.get_mut(&life).filter(|life| !life.has_ended) else {
                    return Expected::Replaced;
                };
                living.is_lease_long = *is_long;
                let mine = || self.shards.iter().filter(|(_, shard)| shard.owner == Some(life));
                Expected::Renewed {
                    owned: mine().map(|(id, _)| *id).collect(),
                    inbox: mine().filter(|(_, shard)| !shard.inbox.is_empty()).map(|(id, _)| *id).collect(),
                }
            }
            Step::Release { life, shards } => {
                let life = self.incarnation(*life);
                for id in shards {
                    let shard = self.shards.get_mut(id).expect("steps speak of known shards");
                    if shard.owner == Some(life) {
                        (shard.owner, shard.is_clean) = (None, true);
                    }
                }
                Expected::Done
            }
            Step::Commit { life, lane, number, batches } => {
                self.commit(self.incarnation(*life), *lane, *number, batches)
            }
            Step::Post(messages) => Expected::Posted(
                messages
                    .iter()
                    .map(|&(shard, who, of, body)| {
                        let inbox = &mut self.shards.get_mut(&shard).expect("steps speak of known shards").inbox;
                        let item = (name(who), id(of));
                        if inbox.contains_key(&item) {
                            return Posted::Duplicate;
                        }
                        let progress = Rest { attempt: 0, crashes: 0, started: false, error: None, content: 0 };
                        inbox.insert(item, Mail { due: None, progress, body });
                        Posted::Inserted
                    })
                    .collect(),
            ),
            Step::Load(_) | Step::Read { .. } => Expected::Nothing,
            Step::Reopen => {
                self.closed += 1;
                if self.forgets_lives {
                    self.lives.clear();
                    for shard in self.shards.values_mut().filter(|shard| shard.owner.is_some()) {
                        (shard.owner, shard.is_clean) = (None, false);
                    }
                }
                Expected::Nothing
            }
        }
    }

    fn claim(&mut self, me: u64, shards: &[u32], is_long: bool, kind: ClaimKind) -> Expected {
        self.is_configured = true;
        if self.lives.get(&me).is_some_and(|life| life.has_ended) {
            return Expected::Replaced;
        }
        let is_mine = |life: u64| host_of(life) == host_of(me);
        let mut asked = shards.to_vec();
        if kind == ClaimKind::Start {
            // A host that starts takes all that its last life had: of what it leaves, the contract does not say who may have it.
            let left = self.shards.iter().filter(|(_, shard)| shard.owner.is_some_and(is_mine)).map(|(id, _)| *id);
            let left: Vec<u32> = left.filter(|id| !asked.contains(id)).collect();
            asked.extend(left);
            for (_, life) in self.lives.iter_mut().filter(|(id, _)| is_mine(**id) && **id != me) {
                life.has_ended = true;
            }
        }
        let (mut granted, mut held) = (Vec::new(), Vec::new());
        for id in &asked {
            let shard = self.shards.get_mut(id).expect("steps speak of known shards");
            match shard.owner {
                Some(owner) if owner == me => {}
                Some(owner) if self.lives[&owner].is_lease_long && !(kind == ClaimKind::Start && is_mine(owner)) => {
                    held.push((*id, host_of(owner)));
                    continue;
                }
                owner => {
                    shard.is_clean &= owner.is_none();
                    shard.owner = Some(me);
                    shard.epoch += 1;
                }
            }
            granted.push((*id, shard.epoch, shard.is_clean));
        }
        held.sort_unstable();
        let life = self.lives.entry(me).or_insert_with(|| Life {
            has_ended: false,
            is_lease_long: is_long,
            granted: BTreeMap::new(),
            lanes: BTreeMap::new(),
        });
        life.is_lease_long = is_long;
        life.granted.extend(granted.iter().map(|(shard, epoch, _)| (*shard, *epoch)));
        Expected::Claimed { asked, granted, held }
    }

    fn commit(
        &mut self,
        me: u64,
        lane: u16,
        number: Number,
        batches: &BTreeMap<u32, (Under, Vec<Change>)>,
    ) -> Expected {
        let (is_living, sent) = match self.lives.get(&me) {
            Some(life) => (!life.has_ended, life.lanes.get(&lane).map(Vec::as_slice).unwrap_or_default()),
            None => (false, [].as_slice()),
        };
        let is_owner = |shard: u32, epoch: u64| {
            let shard = &self.shards[&shard];
            is_living && shard.owner == Some(me) && shard.epoch == epoch
        };
        let fenced = |sent: &Sent| {
            let answer = |(shard, epoch, _): &(u32, u64, Vec<Change>)| {
                (!is_owner(*shard, *epoch)).then_some(self.shards[shard].epoch)
            };
            sent.batches.iter().map(answer).collect::<Vec<_>>()
        };
        match number {
            Number::Repeated => match sent.last() {
                Some(last) if !last.is_of_the_future => {
                    Expected::Committed { sent: last.clone(), fenced: fenced(last) }
                }
                _ => Expected::Nothing,
            },
            Number::Overtaken(by) => match sent.iter().rev().skip(1 + by).find(|sent| !sent.is_of_the_future) {
                Some(old) => Expected::Overtaken(old.clone()),
                None => Expected::Nothing,
            },
            Number::Next(skip) => {
                let seq = sent.last().map_or(0, |last| last.seq) + skip;
                let granted = self.lives.get(&me).map(|life| life.granted.clone()).unwrap_or_default();
                let batch = |(shard, (under, changes)): (&u32, &(Under, Vec<Change>))| {
                    let epoch = match under {
                        Under::Granted => granted.get(shard).copied().unwrap_or(0),
                        Under::Newest => self.shards[shard].epoch,
                        Under::Future => self.shards[shard].epoch + 1,
                    };
                    let mut targets = BTreeSet::new();
                    let changes = changes.iter().filter(|change| targets.insert(change.target())).cloned().collect();
                    (*shard, epoch, changes)
                };
                let is_of_the_future = batches.values().any(|(under, _)| *under == Under::Future);
                let sent = Sent { seq, batches: batches.iter().map(batch).collect(), is_of_the_future };
                let fenced = fenced(&sent);
                for ((shard, _, changes), fenced) in sent.batches.iter().zip(&fenced) {
                    let shard = self.shards.get_mut(shard).expect("steps speak of known shards");
                    if fenced.is_none() {
                        changes.iter().for_each(|change| shard.apply(change));
                    }
                }
                if let Some(life) = self.lives.get_mut(&me) {
                    life.lanes.entry(lane).or_default().push(sent.clone());
                }
                Expected::Committed { sent, fenced }
            }
        }
    }
}

impl Shard {
    fn apply(&mut self, change: &Change) {
        match *change {
            Change::PutAlarm { who, id, due, revision, ref rest } => {
                let row = alarm_row(who, id, due, revision, rest);
                let item = (row.name.clone(), row.id.clone());
                if self.alarms.get(&item).is_none_or(|old| old.revision <= row.revision) {
                    self.alarms.insert(item, row);
                }
            }
            Change::RemoveAlarm { who, id: of, revision: (epoch, counter) } => {
                let revision = Revision { epoch: Epoch(epoch), counter };
                self.alarms.retain(|item, row| *item != (name(who), id(of)) || row.revision > revision);
            }
            Change::PutMessage { who, id: of, due, ref rest } => {
                if let Some(mail) = self.inbox.get_mut(&(name(who), id(of))) {
                    (mail.due, mail.progress) = (Some(time(due)), rest.clone());
                }
            }
            Change::RemoveMessage { other: true, .. } => {}
            Change::RemoveMessage { who, id: of, other: false } => _ = self.inbox.remove(&(name(who), id(of))),
            Change::PutDead { who, id, died, is_message, ref rest } => {
                let letter = letter(who, id, died, is_message, rest);
                self.dead.insert(letter.key(), letter);
            }
            Change::RemoveDead { who, id, died, is_message } => {
                self.dead.remove(&dead_key(who, id, died, is_message));
            }
            Change::Put { who, key, value } => {
                self.values.insert((name(who), id(key)), Bytes::from_static(BODIES[value]));
            }
            Change::Delete { who, key } => _ = self.values.remove(&(name(who), id(key))),
        }
    }
}

/// Opens the store under test: a handle for each of the two hosts, which may be the same.
pub(crate) type Open = Box<dyn Fn() -> [Arc<dyn Store>; 2]>;

/// A store beside the model.
pub(crate) struct Tested {
    runtime: Arc<Runtime>,
    open: Open,
    stores: Option<[Arc<dyn Store>; 2]>,
    /// Whether to look at everything after every step; else at what the step may have changed, and at everything in the end.
    looks_everywhere: bool,
    arrivals: BTreeMap<(u32, Item), Timestamp>,
    sent: BTreeMap<(u64, u16, u64), Write>,
}

impl Tested {
    pub(crate) fn new(runtime: Arc<Runtime>, looks_everywhere: bool, open: Open) -> Tested {
        let stores = Some(open());
        Tested { runtime, open, stores, looks_everywhere, arrivals: BTreeMap::new(), sent: BTreeMap::new() }
    }

    fn store(&self, life: u64) -> Arc<dyn Store> {
        let stores = self.stores.as_ref().expect("a store is open between steps");
        stores[usize::from(life % 2 == 1)].clone()
    }

    async fn claim(&self, model: &Model, life: u64, is_long: bool, kind: ClaimKind) -> Checked {
        let Expected::Claimed { asked, granted, held } = &model.expected else { return Ok(()) };
        let claim = claim_of(life, asked, is_long, kind);
        let mut tries = 0;
        let claimed = loop {
            let claimed = self.store(life).claim(&claim).await?;
            tries += 1;
            // A lease that is over in the model may have a moment to go. Claiming again takes nothing back.
            if claimed.granted.len() >= granted.len() || tries == 100 {
                break claimed;
            }
            tokio::time::sleep(TINY * 5).await;
        };
        let Claimed { granted: found, held: found_held, .. } = claimed;
        let found: Vec<_> = found.iter().map(|grant| (grant.shard.0, grant.epoch.0, grant.clean)).collect();
        prop_assert_eq!(&found, granted, "granted");
        let mut holders: Vec<_> = found_held.iter().map(|held| (held.shard.0, &*held.holder)).collect();
        holders.sort_unstable();
        prop_assert_eq!(&holders, held, "held");
        prop_assert!(found_held.iter().all(|held| held.remaining <= LONG && held.remaining > LONG / 2));
        Ok(())
    }

    /// An operation as the store takes it.
    fn op(&self, shard: u32, change: &Change) -> Op {
        let arrived = |item: &Item| self.arrivals.get(&(shard, item.clone())).copied();
        match *change {
            Change::PutAlarm { who, id, due, revision, ref rest } => {
                Op::PutAlarm(alarm_row(who, id, due, revision, rest))
            }
            Change::RemoveAlarm { who, id: of, revision: (epoch, counter) } => {
                Op::RemoveAlarm { name: name(who), id: id(of), revision: Revision { epoch: Epoch(epoch), counter } }
            }
            Change::PutMessage { who, id: of, due, ref rest } => {
                let item = (name(who), id(of));
                let arrived = arrived(&item).unwrap_or_default();
                // What it says of headers and body is not to be written.
                Op::PutMessage(inbox_row(&item, arrived, time(due), rest, rest.content))
            }
            Change::RemoveMessage { who, id: of, other } => {
                let item = (name(who), id(of));
                let arrived = arrived(&item).unwrap_or_default() + Duration::from_millis(other.into());
                Op::RemoveMessage(InboxKey { arrived, name: item.0, id: item.1 })
            }
            Change::PutDead { who, id, died, is_message, ref rest } => {
                Op::PutDead(letter(who, id, died, is_message, rest))
            }
            Change::RemoveDead { who, id, died, is_message } => Op::RemoveDead(dead_key(who, id, died, is_message)),
            Change::Put { who, key, value } => {
                Op::Put { name: name(who), key: id(key), value: Bytes::from_static(BODIES[value]) }
            }
            Change::Delete { who, key } => Op::Delete { name: name(who), key: id(key) },
        }
    }

    async fn commit(&mut self, model: &Model, life: u64, lane: u16, number: Number) -> Checked {
        let (Expected::Committed { sent, .. } | Expected::Overtaken(sent)) = &model.expected else { return Ok(()) };
        let key = (life, lane, sent.seq);
        // A repeat is the very same write.
        if let Number::Next(_) = number {
            let batch = |(shard, epoch, changes): &(u32, u64, Vec<Change>)| Batch {
                shard: ShardId(*shard),
                epoch: Epoch(*epoch),
                ops: changes.iter().map(|change| self.op(*shard, change)).collect(),
            };
            let batches = sent.batches.iter().map(batch).collect();
            let write = Write { incarnation: Incarnation(life), lane: Lane(lane), seq: sent.seq, batches };
            self.sent.insert(key, write);
        }
        let answer = self.store(life).commit(&self.sent[&key]).await;
        let Expected::Committed { fenced, .. } = &model.expected else {
            prop_assert!(matches!(answer, Ok(_) | Err(StoreError::Stale { .. })), "an old write: {answer:?}");
            return Ok(());
        };
        let answers = answer?;
        prop_assert_eq!(answers.len(), fenced.len());
        for ((answer, fenced), (shard, epoch, _)) in answers.iter().zip(fenced).zip(&sent.batches) {
            let is_expected = match (answer, fenced) {
                (Ok(()), None) => true,
                (Err(StoreError::Fenced { shard: of, held, newest }), Some(epoch_now)) => {
                    (of.0, held.0, newest.0) == (*shard, *epoch, *epoch_now)
                }
                _ => false,
            };
            prop_assert!(is_expected, "shard {shard} under {epoch}: {answer:?}, and the model says {fenced:?}");
        }
        Ok(())
    }

    async fn post(&mut self, model: &Model, messages: &[(u32, usize, usize, usize)]) -> Checked {
        let Expected::Posted(expected) = &model.expected else { return Ok(()) };
        let message = |&(shard, who, of, body): &(u32, usize, usize, usize)| NewMessage {
            shard: ShardId(shard),
            name: name(who),
            id: id(of),
            headers: headers(body),
            body: Bytes::from_static(BODIES[body]),
        };
        let messages: Vec<_> = messages.iter().map(message).collect();
        prop_assert_eq!(&self.store(0).post(&messages).await?, expected);
        // When each arrived, the store alone can say.
        for message in messages.iter().zip(expected).filter(|(_, posted)| **posted == Posted::Inserted) {
            let (shard, item) = (message.0.shard, (message.0.name.clone(), message.0.id.clone()));
            let page = Page::new(shard, After::Inbox(None), 1_000);
            let rows = match self.store(0).load(&[page]).await?.remove(0).rows {
                Rows::Inbox(rows) => rows,
                other => return Err(TestCaseError::fail(format!("an inbox is {other:?}"))),
            };
            let row = rows.iter().find(|row| row.name == item.0 && row.id == item.1);
            prop_assert!(row.is_some(), "{:?} is posted and not there", item);
            self.arrivals.extend(row.map(|row| ((shard.0, item), row.arrived)));
        }
        Ok(())
    }

    /// All rows of a shard and kind, in order, as the model has them.
    fn rows(&self, model: &Model, shard: u32, kind: Kind) -> Vec<Stored> {
        let stored = &model.shards[&shard];
        let mut rows: Vec<Stored> = match kind {
            Kind::Alarms => stored.alarms.values().cloned().map(Stored::Alarm).collect(),
            Kind::Inbox => stored
                .inbox
                .iter()
                .map(|(item, mail)| {
                    let arrived = self.arrivals[&(shard, item.clone())];
                    let due = mail.due.unwrap_or(arrived);
                    Stored::Message(inbox_row(item, arrived, due, &mail.progress, mail.body))
                })
                .collect(),
            Kind::Dead => stored.dead.values().cloned().map(Stored::Dead).collect(),
        };
        rows.sort_by_key(Stored::key);
        rows
    }

    async fn load(&self, model: &Model, pages: &[(u32, Kind, Option<usize>, usize)]) -> Checked {
        let (mut asked, mut expected) = (Vec::new(), Vec::new());
        for &(shard, kind, after, limit) in pages {
            let mut rows = self.rows(model, shard, kind);
            let first = after.map_or(0, |after| rows.len().min(after + 1));
            let key = first.checked_sub(1).map(|last| rows[last].key());
            let after = match (kind, key) {
                (Kind::Alarms, Some(Key::Alarm(key))) => After::Alarms(Some(key)),
                (Kind::Inbox, Some(Key::Message(key))) => After::Inbox(Some(key)),
                (Kind::Dead, Some(Key::Dead(key))) => After::Dead(Some(key)),
                (Kind::Alarms, _) => After::Alarms(None),
                (Kind::Inbox, _) => After::Inbox(None),
                (Kind::Dead, _) => After::Dead(None),
            };
            rows.drain(..first);
            rows.truncate(limit);
            expected.push(rows);
            asked.push(Page::new(ShardId(shard), after, limit));
        }
        let loaded = self.store(1).load(&asked).await?;
        prop_assert_eq!(loaded.len(), asked.len());
        for ((page, loaded), expected) in asked.iter().zip(loaded).zip(expected) {
            prop_assert!(loaded.damaged.is_empty(), "{:?}", loaded.damaged);
            let found: Vec<Stored> = match (&page.after, loaded.rows) {
                (After::Alarms(_), Rows::Alarms(rows)) => rows.into_iter().map(Stored::Alarm).collect(),
                (After::Inbox(_), Rows::Inbox(rows)) => rows.into_iter().map(Stored::Message).collect(),
                (After::Dead(_), Rows::Dead(rows)) => rows.into_iter().map(Stored::Dead).collect(),
                (_, rows) => return Err(TestCaseError::fail(format!("{page:?} brings {rows:?}"))),
            };
            prop_assert_eq!(found, expected, "{:?}", page);
        }
        Ok(())
    }

    async fn read(
        &self,
        model: &Model,
        (shard, who): (u32, usize),
        is_storage: bool,
        (from, to): (Arc<str>, Option<Arc<str>>),
        limit: usize,
    ) -> Checked {
        let stored = &model.shards[&shard];
        let whose = name(who);
        let end = to.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let is_within = |item: &&Item| {
            item.0 == whose && item.1 >= from && (matches!(end, Bound::Unbounded) || Some(&item.1) < to.as_ref())
        };
        let range = if is_storage {
            ReadRange::Storage(from.clone(), to.clone())
        } else {
            ReadRange::Alarms(from.clone(), to.clone())
        };
        let expected = if is_storage {
            let items = stored.values.iter().filter(|(item, _)| is_within(item)).take(limit);
            ReadRows::Storage(items.map(|(item, value)| (item.1.clone(), value.clone())).collect())
        } else {
            let items = stored.alarms.iter().filter(|(item, _)| is_within(item)).take(limit);
            ReadRows::Alarms(items.map(|(_, row)| row.clone()).collect())
        };
        let read = Read { shard: ShardId(shard), name: whose.clone(), range, limit };
        prop_assert_eq!(self.store(0).read(&read).await?, expected, "{:?}", read);
        Ok(())
    }

    /// Everything that is stored, by each way to look at it.
    async fn look(&self, model: &Model, of: impl Iterator<Item = (u32, usize)>) -> Checked {
        let of_shard = |shard| [Kind::Alarms, Kind::Inbox, Kind::Dead].map(|kind| (shard, kind, None, 1_000));
        let pages: Vec<_> = (0..SHARDS).flat_map(of_shard).collect();
        self.load(model, &pages).await?;
        for place in of {
            for is_storage in [true, false] {
                self.read(model, place, is_storage, ("".into(), None), 1_000).await?;
            }
        }
        Ok(())
    }

    async fn step(&mut self, model: &Model, step: &Step) -> Checked {
        match step {
            Step::Claim { life, shards, is_long, kind, .. } => match model.expected {
                Expected::Mismatch => {
                    let claim =
                        Claim { shard_count: 17, ..claim_of(model.incarnation(*life), shards, *is_long, *kind) };
                    let answer = self.store(*life).claim(&claim).await;
                    prop_assert!(matches!(answer, Err(StoreError::Mismatch { .. })), "{answer:?}");
                }
                Expected::Replaced => {
                    let answer =
                        self.store(*life).claim(&claim_of(model.incarnation(*life), shards, *is_long, *kind)).await;
                    prop_assert!(matches!(answer, Err(StoreError::Replaced)), "{answer:?}");
                }
                _ => self.claim(model, model.incarnation(*life), *is_long, *kind).await?,
            },
            Step::Renew { life, is_long } => {
                let lease = if *is_long { LONG } else { TINY };
                let answer = self.store(*life).renew(Incarnation(model.incarnation(*life)), lease).await;
                match (&answer, &model.expected) {
                    (Err(StoreError::Replaced), Expected::Replaced) => {}
                    (Ok(Renewed { owned, inbox, .. }), Expected::Renewed { owned: mine, inbox: with_mail }) => {
                        let numbers = |shards: &[ShardId]| shards.iter().map(|shard| shard.0).collect::<Vec<_>>();
                        prop_assert_eq!(&numbers(owned), mine, "owned");
                        prop_assert_eq!(&numbers(inbox), with_mail, "with messages");
                    }
                    (_, expected) => {
                        return Err(TestCaseError::fail(format!("{answer:?}, and the model says {expected:?}")));
                    }
                }
            }
            Step::Release { life, shards } => {
                let shards: Vec<_> = shards.iter().copied().map(ShardId).collect();
                self.store(*life).release(Incarnation(model.incarnation(*life)), &shards).await?;
            }
            Step::Commit { life, lane, number, .. } => {
                self.commit(model, model.incarnation(*life), *lane, *number).await?;
            }
            Step::Post(messages) => self.post(model, messages).await?,
            Step::Load(pages) => self.load(model, pages).await?,
            Step::Read { shard, who, is_storage, from, to, limit } => {
                self.read(model, (*shard, *who), *is_storage, (id(*from), to.map(id)), *limit).await?;
            }
            Step::Reopen => {}
        }
        let everywhere = (0..SHARDS).flat_map(|shard| (0..NAMES.len()).map(move |who| (shard, who)));
        match step {
            _ if self.looks_everywhere => self.look(model, everywhere).await,
            Step::Reopen => self.look(model, everywhere).await,
            Step::Commit { .. } => match &model.expected {
                Expected::Committed { sent, .. } | Expected::Overtaken(sent) => {
                    let touched: BTreeSet<_> = sent
                        .batches
                        .iter()
                        .flat_map(|(shard, _, changes)| changes.iter().map(|change| (*shard, change.target().1)))
                        .collect();
                    self.look(model, touched.into_iter()).await
                }
                _ => Ok(()),
            },
            Step::Post(_) => self.look(model, [].into_iter()).await,
            _ => Ok(()),
        }
    }
}

fn claim_of(life: u64, shards: &[u32], is_long: bool, kind: ClaimKind) -> Claim {
    Claim {
        incarnation: Incarnation(life),
        host: host_of(life).into(),
        shards: shards.iter().copied().map(ShardId).collect(),
        given_up: Vec::new(),
        shard_count: 16,
        hash_version: 1,
        lease: if is_long { LONG } else { TINY },
        kind,
    }
}

/// A row of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stored {
    Alarm(AlarmRow),
    Message(InboxRow),
    Dead(DeadLetter),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Alarm(AlarmKey),
    Message(InboxKey),
    Dead(DeadKey),
}

impl Stored {
    fn key(&self) -> Key {
        match self {
            Stored::Alarm(row) => Key::Alarm(row.key()),
            Stored::Message(row) => Key::Message(row.key()),
            Stored::Dead(letter) => Key::Dead(letter.key()),
        }
    }
}

impl<const FORGETS_LIVES: bool> Subject<Contract<FORGETS_LIVES>> for Tested {
    fn apply(&mut self, model: &Model, step: &Step) -> Checked {
        if let Step::Reopen = step {
            // Closed before it is opened: a directory has one user.
            self.stores = None;
            self.stores = Some((self.open)());
        }
        let runtime = self.runtime.clone();
        runtime.block_on(self.step(model, step))
    }

    fn end(mut self, model: &Model) -> Checked {
        self.looks_everywhere = true;
        let runtime = self.runtime.clone();
        runtime.block_on(self.step(model, &Step::Load(Vec::new())))
    }
}
