//! The rows that a store has to hold after each step, and its answer to it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use stable_interfaces::store::{AlarmRow, ClaimKind, DeadKey, DeadLetter, Epoch, Revision};
use stable_interfaces::{Posted, Timestamp};

use super::rows::{BODIES, Item, LIVES, Rest, alarm_row, dead_key, host_of, id, letter, name, time};
use super::steps::{Change, Number, Step, Under};

/// The answer that the store has to give to the last step.
#[derive(Debug, Clone, Default)]
pub(super) enum Expected {
    /// The step was not possible: nothing was asked.
    #[default]
    Nothing,
    Done,
    Mismatch,
    Replaced,
    Claimed {
        asked: Vec<u32>,
        given_up: Vec<(u32, u64)>,
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
pub(super) struct Sent {
    pub(super) seq: u64,
    pub(super) batches: Vec<(u32, u64, Vec<Change>)>,
    /// Under an epoch that nobody was granted: such a write is not sent again, because that epoch may come.
    pub(super) is_of_the_future: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Life {
    pub(super) has_ended: bool,
    pub(super) is_lease_long: bool,
    pub(super) granted: BTreeMap<u32, u64>,
    /// The epochs under which it has given shards up last. Each claim names them, as one that is repeated does.
    pub(super) given_up: BTreeMap<u32, u64>,
    pub(super) lanes: BTreeMap<u16, Vec<Sent>>,
}

/// A message that is stored.
#[derive(Debug, Clone)]
pub(super) struct Mail {
    /// `None`: when it arrived.
    pub(super) due: Option<Timestamp>,
    pub(super) progress: Rest,
    pub(super) body: usize,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Shard {
    pub(super) epoch: u64,
    pub(super) owner: Option<u64>,
    /// The word that the owner was given, and without one the word that the next will be given.
    pub(super) is_clean: bool,
    pub(super) alarms: BTreeMap<Item, AlarmRow>,
    pub(super) inbox: BTreeMap<Item, Mail>,
    pub(super) dead: BTreeMap<DeadKey, DeadLetter>,
    pub(super) values: BTreeMap<Item, Bytes>,
}

/// The rows and answers that a store has to have.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(super) forgets_lives: bool,
    /// The number of times that the store was closed: the processes that used it are gone then, and their lives with them.
    pub(super) closed: u64,
    pub(super) is_configured: bool,
    pub(super) lives: BTreeMap<u64, Life>,
    pub(super) shards: BTreeMap<u32, Shard>,
    pub(super) expected: Expected,
}

impl Model {
    /// The incarnation of a life that a step speaks of.
    pub(super) fn incarnation(&self, life: u64) -> u64 {
        LIVES * self.closed + life
    }

    pub(super) fn step(&mut self, step: &Step) -> Expected {
        match step {
            Step::Claim { life, shards, gives_up, is_long, kind, is_configured_otherwise } => {
                let life = self.incarnation(*life);
                if *is_configured_otherwise {
                    let has_ended = self.lives.get(&life).is_some_and(|life| life.has_ended);
                    return if self.is_configured && !has_ended { Expected::Mismatch } else { Expected::Nothing };
                }
                self.claim(life, shards, gives_up, *is_long, *kind)
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
            Step::Release { life, shards, back } => {
                let life = self.incarnation(*life);
                for id in shards {
                    let shard = self.shards.get_mut(id).expect("steps speak of known shards");
                    if shard.owner == Some(life) && back.unwrap_or(0) == 0 {
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

    fn claim(&mut self, me: u64, shards: &[u32], gives_up: &[u32], is_long: bool, kind: ClaimKind) -> Expected {
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
        let given_up = self.give_up(me, &asked, gives_up);
        let (mut granted, mut held) = (Vec::new(), Vec::new());
        for id in &asked {
            let shard = self.shards.get_mut(id).expect("steps speak of known shards");
            match shard.owner {
                Some(owner) if owner == me => {
                    if given_up.contains(&(*id, shard.epoch)) {
                        (shard.epoch, shard.is_clean) = (shard.epoch + 1, false);
                    }
                }
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
            given_up: BTreeMap::new(),
            lanes: BTreeMap::new(),
        });
        life.is_lease_long = is_long;
        life.granted.extend(granted.iter().map(|(shard, epoch, _)| (*shard, *epoch)));
        Expected::Claimed { asked, given_up, granted, held }
    }

    /// The shards that a claim says to have been given up, once these have been.
    fn give_up(&mut self, me: u64, asked: &[u32], gives_up: &[u32]) -> Vec<(u32, u64)> {
        let Some(life) = self.lives.get_mut(&me) else { return Vec::new() };
        for id in gives_up {
            if let Some(epoch) = life.granted.get(id) {
                life.given_up.insert(*id, *epoch);
            }
        }
        life.given_up.iter().filter(|(id, _)| asked.contains(id)).map(|(id, epoch)| (*id, *epoch)).collect()
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
