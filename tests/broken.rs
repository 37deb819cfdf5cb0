//! Stores and transports that are broken on purpose, each in one way: what tests them or stands on them has to find each out.

mod transport;

pub use self::transport::{BrokenTransport, HowSent};

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use stable_interfaces::store::{
    AlarmRow, Claim, ClaimKind, Claimed, Epoch, Found, Hints, Incarnation, Lane, Loaded, Members, NewMessage, Op, Page,
    Read, Renewal, Renewed, Rows, ShardId, Write,
};
use stable_interfaces::{Posted, Store, StoreError, Timestamp};

/// The way in which a store is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Acknowledges before it writes, and forgets that in a crash.
    AcknowledgesEarly,
    /// Applies writes in another order.
    Reorders,
    /// Applies a part of a batch.
    AppliesPartly,
    /// Lets former owners write.
    IgnoresTheEpoch,
    /// Applies repeated and late writes again.
    IgnoresTheSequence,
    /// Forgets to remove.
    ForgetsRemovals,
    /// Leaves rows out of its pages.
    ReturnsPagesWithAHole,
    /// Loses posts.
    LosesPosts,
    /// Shows alarms as due before their time.
    ShowsAlarmsEarly,
    /// Forgets what it is to overwrite.
    ForgetsValues,
    /// Loses the rows by which replies to request keys are found.
    LosesKeys,
    /// Grants what was given up under the epoch it had.
    KeepsGivenUpEpochs,
    /// Leaves a task of its own behind with each watch.
    LeavesTasks,
    /// Refuses one write in ten, drawn from the machine and not from the seed.
    DrawsFromOutside,
    /// Grants what belongs to somebody who lives.
    GrantsTheLiving,
    /// Does not tell each host of the one whose name comes next: they place shards differently.
    TellsMembersDifferently,
}

/// A broken store.
#[derive(Debug)]
pub struct Broken {
    inner: Arc<dyn Store>,
    how: How,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    writes: u64,
    /// Writes that were acknowledged and not carried out, or wait for their successors.
    kept_back: BTreeMap<(Incarnation, Lane), Write>,
    owners: BTreeMap<ShardId, (Incarnation, Epoch)>,
    seqs: BTreeMap<(Incarnation, Lane), u64>,
    names: BTreeMap<Incarnation, Arc<str>>,
}

impl State {
    /// Tells whether it is the turn of the fault.
    fn is_turn(&mut self, of: u64) -> bool {
        self.writes += 1;
        self.writes.is_multiple_of(of)
    }

    /// A number that the store behind has not seen.
    fn next_seq(&mut self, write: &Write) -> u64 {
        let seq = self.seqs.entry((write.incarnation, write.lane)).or_default();
        *seq += 1;
        *seq
    }
}

type Answers = Result<Vec<Result<(), StoreError>>, StoreError>;

impl Broken {
    /// `inner`, broken like this.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, how: How) -> Broken {
        Broken { inner, how, state: Mutex::default() }
    }

    async fn write_again(&self, mut write: Write) -> Answers {
        write.seq = self.state.lock().next_seq(&write);
        self.inner.commit(&write).await
    }

    /// Writes in the name of whoever owns the shards now.
    async fn write_as_owner(&self, write: &Write) -> Answers {
        let answers = self.inner.commit(write).await?;
        for (batch, _) in write.batches.iter().zip(&answers).filter(|(_, answer)| answer.is_err()) {
            let forged = {
                let mut state = self.state.lock();
                let Some(&(incarnation, epoch)) = state.owners.get(&batch.shard) else { continue };
                let mut forged = Write { incarnation, lane: Lane(99), seq: 0, batches: vec![batch.clone()] };
                forged.batches[0].epoch = epoch;
                forged.seq = state.next_seq(&forged);
                forged
            };
            drop(self.inner.commit(&forged).await);
        }
        Ok(write.batches.iter().map(|_| Ok(())).collect())
    }

    /// Gives up in the owners' name what was not granted, and claims again.
    async fn claim_from_the_living(&self, claim: &Claim, claimed: Claimed) -> Result<Claimed, StoreError> {
        if claimed.held.is_empty() || claim.kind != ClaimKind::Running {
            return Ok(claimed);
        }
        for held in &claimed.held {
            let owner = self.state.lock().owners.get(&held.shard).map(|(owner, _)| *owner);
            if let Some(owner) = owner {
                self.inner.release(owner, &[(held.shard, None)]).await?;
            }
        }
        let mut again = self.inner.claim(claim).await?;
        let granted = |shard| again.granted.iter().any(|grant| grant.shard == shard);
        let before: Vec<_> = claimed.granted.into_iter().filter(|grant| !granted(grant.shard)).collect();
        again.granted.extend(before);
        Ok(again)
    }

    /// Leaves the member out whose name comes after that of the one who is told.
    fn leave_out(&self, told: Incarnation, members: &mut Members) {
        let Some(name) = self.state.lock().names.get(&told).cloned() else { return };
        let next = members.list.iter().map(|member| member.name.clone()).find(|other| *other > name);
        members.list.retain(|member| Some(&member.name) != next.as_ref());
    }

    async fn write(&self, write: &Write) -> Answers {
        match self.how {
            How::AcknowledgesEarly => {
                let before = self.state.lock().kept_back.insert((write.incarnation, write.lane), write.clone());
                match before {
                    Some(before) if before.seq != write.seq => drop(self.inner.commit(&before).await),
                    _ => {}
                }
                Ok(write.batches.iter().map(|_| Ok(())).collect())
            }
            How::DrawsFromOutside if RandomState::new().hash_one(write.seq).is_multiple_of(10) => {
                Err(StoreError::NotApplied("drawn by lot".into()))
            }
            How::Reorders => {
                let key = (write.incarnation, write.lane);
                let is_turn = self.state.lock().is_turn(4);
                if is_turn {
                    self.state.lock().kept_back.insert(key, write.clone());
                    return Ok(write.batches.iter().map(|_| Ok(())).collect());
                }
                let answers = self.write_again(write.clone()).await;
                let before = self.state.lock().kept_back.remove(&key);
                if let Some(before) = before {
                    drop(self.write_again(before).await);
                }
                answers
            }
            How::IgnoresTheEpoch => self.write_as_owner(write).await,
            How::IgnoresTheSequence => self.write_again(write.clone()).await,
            _ => {
                let mut write = write.clone();
                for batch in &mut write.batches {
                    let mut state = self.state.lock();
                    let mut ops = batch.ops.to_vec();
                    match self.how {
                        How::AppliesPartly if ops.len() > 1 && state.is_turn(10) => drop(ops.pop()),
                        How::ForgetsRemovals => ops.retain(|op| {
                            let removes = matches!(op, Op::RemoveAlarm { .. } | Op::RemoveMessage(_));
                            !(removes && state.is_turn(10))
                        }),
                        How::LosesKeys => ops.retain(|op| !(is_key(op) && state.is_turn(4))),
                        How::ForgetsValues => {
                            ops.retain(|op| !(matches!(op, Op::Put { .. }) && state.is_turn(40)));
                        }
                        _ => {}
                    }
                    batch.ops = ops.into();
                }
                self.inner.commit(&write).await
            }
        }
    }
}

/// Tells whether it notes under which key an instance has answered.
fn is_key(op: &Op) -> bool {
    matches!(op, Op::Put { key, .. } if key.starts_with("once/key/"))
}

/// One in ten alarms.
fn is_hidden(row: &AlarmRow) -> bool {
    row.id.bytes().map(u32::from).sum::<u32>() % 10 == 0
}

#[async_trait]
impl Store for Broken {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        let mut claim = claim.clone();
        if self.how == How::KeepsGivenUpEpochs {
            claim.given_up.clear();
        }
        let mut claimed = self.inner.claim(&claim).await?;
        if self.how == How::GrantsTheLiving {
            claimed = self.claim_from_the_living(&claim, claimed).await?;
        }
        self.state.lock().names.insert(claim.incarnation, claim.host.clone());
        if self.how == How::TellsMembersDifferently {
            self.leave_out(claim.incarnation, &mut claimed.members);
        }
        let mut state = self.state.lock();
        for grant in &claimed.granted {
            state.owners.insert(grant.shard, (claim.incarnation, grant.epoch));
        }
        Ok(claimed)
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        let mut renewed = self.inner.renew(renewal).await?;
        if self.how == How::TellsMembersDifferently {
            self.leave_out(renewal.incarnation, &mut renewed.members);
        }
        Ok(renewed)
    }

    async fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        self.inner.release(incarnation, given_up).await
    }

    async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        self.inner.cordon(member, is_cordoned, seen).await
    }

    async fn members(&self) -> Result<Members, StoreError> {
        self.inner.members().await
    }

    async fn commit(&self, write: &Write) -> Answers {
        self.write(write).await
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        if self.how == How::LosesPosts && self.state.lock().is_turn(5) {
            return Ok(messages.iter().map(|_| Posted::Inserted).collect());
        }
        self.inner.post(messages).await
    }

    async fn watch(&self, incarnation: Incarnation) -> Result<Hints, StoreError> {
        if self.how == How::LeavesTasks {
            let inner = self.inner.clone();
            tokio::spawn(async move {
                let _held = inner;
                std::future::pending::<()>().await;
            });
        }
        self.inner.watch(incarnation).await
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        let mut loaded = self.inner.load(pages).await?;
        for page in &mut loaded {
            let Rows::Alarms(rows) = &mut page.rows else { continue };
            match self.how {
                // An empty page that is not the last would be asked for again and again.
                How::ReturnsPagesWithAHole if rows.len() > 1 => rows.retain(|row| !is_hidden(row)),
                How::ShowsAlarmsEarly => {
                    for row in rows {
                        row.due = Timestamp::from_millis(row.due.as_millis() - 5_000);
                    }
                }
                _ => {}
            }
        }
        Ok(loaded)
    }

    async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        self.inner.read(read).await
    }
}
