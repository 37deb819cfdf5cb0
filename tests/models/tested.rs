//! A store beside the model: asked for each step, and its answer and its rows compared with the model's.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use stable_interfaces::store::{
    After, Batch, Claim, ClaimKind, Claimed, Epoch, InboxKey, Incarnation, Lane, NewMessage, Op, Page, Presence, Read,
    ReadRange, ReadRows, Renewal, Renewed, Revision, Rows, ShardId, Write,
};
use stable_interfaces::{Posted, Store, StoreError, Timestamp};
use tokio::runtime::Runtime;

use super::Contract;
use super::model::{Expected, Model};
use super::rows::{
    BODIES, Item, Key, NAMES, SHARDS, Stored, alarm_row, dead_key, headers, host_of, id, inbox_row, letter, name, time,
};
use super::steps::{Change, Kind, Number, Step};
use crate::cases::{Checked, Subject};

pub(super) const LONG: Duration = Duration::from_secs(3_600);
/// Over before anybody else asks.
pub(super) const TINY: Duration = Duration::from_millis(1);

/// Opens the store under test: a handle for each of the two hosts, which may be the same.
pub(crate) type Open = Box<dyn Fn() -> [Arc<dyn Store>; 2]>;

/// A store beside the model.
pub(crate) struct Tested {
    runtime: Arc<Runtime>,
    open: Open,
    stores: Option<[Arc<dyn Store>; 2]>,
    /// Says to look at everything after every step; else at what the step may have changed, and at everything in the end.
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
        let Expected::Claimed { asked, given_up, granted, held } = &model.expected else { return Ok(()) };
        let given_up = given_up.iter().map(|(shard, epoch)| (ShardId(*shard), Epoch(*epoch))).collect();
        let claim = Claim { given_up, ..claim_of(life, asked, is_long, kind) };
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
        let read = Read::new(ShardId(shard), whose.clone(), range, limit);
        prop_assert_eq!(self.store(0).read(&read).await?.rows, expected, "{:?}", read);
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
                let answer = self.store(*life).renew(&Renewal::new(Incarnation(model.incarnation(*life)), lease)).await;
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
            Step::Release { life, shards, back } => {
                let epoch = |shard: &u32| back.map(|back| Epoch(model.shards[shard].epoch.saturating_sub(back)));
                let given_up: Vec<_> = shards.iter().map(|shard| (ShardId(*shard), epoch(shard))).collect();
                self.store(*life).release(Incarnation(model.incarnation(*life)), &given_up).await?;
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

pub(super) fn claim_of(life: u64, shards: &[u32], is_long: bool, kind: ClaimKind) -> Claim {
    Claim {
        incarnation: Incarnation(life),
        host: host_of(life).into(),
        shards: shards.iter().copied().map(ShardId).collect(),
        given_up: Vec::new(),
        shard_count: 16,
        hash_version: 1,
        lease: if is_long { LONG } else { TINY },
        kind,
        presence: Presence::default(),
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
