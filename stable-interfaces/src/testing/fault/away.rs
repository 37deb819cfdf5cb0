//! A store of which a part is away: what is asked about some of its shards is not answered, and the rest is.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;

use super::{injected, lost};
use crate::clock::Clock;
use crate::store::{
    Batch, Claim, Claimed, Epoch, Found, Held, Hints, Incarnation, Loaded, Members, NewMessage, Page, Posted, Read,
    Renewal, Renewed, ShardId, Store, StoreError, Write,
};
use crate::sync::{Arc, Mutex};

/// A write that arrives late does so within this.
const LATE: Duration = Duration::from_secs(3);

/// Passes on what concerns the shards that are there.
#[derive(Debug)]
pub(super) struct Partly {
    inner: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    away: BTreeSet<ShardId>,
    random: fastrand::Rng,
    /// Writes that arrive when their caller has its answer already.
    late: JoinSet<()>,
}

impl Partly {
    pub(super) fn new(inner: Arc<dyn Store>, clock: Arc<dyn Clock>, seed: u64) -> Partly {
        let state = State { away: BTreeSet::new(), random: fastrand::Rng::with_seed(seed), late: JoinSet::new() };
        Partly { inner, clock, state: Mutex::new(state) }
    }

    pub(super) fn set_away(&self, shards: BTreeSet<ShardId>) {
        self.state.lock().away = shards;
    }

    pub(super) fn is_any_away(&self) -> bool {
        !self.state.lock().away.is_empty()
    }

    fn is_away(&self, shard: ShardId) -> bool {
        self.state.lock().away.contains(&shard)
    }

    fn check(&self, shards: impl IntoIterator<Item = ShardId>) -> Result<(), StoreError> {
        let state = self.state.lock();
        match shards.into_iter().find(|shard| state.away.contains(shard)) {
            Some(shard) => Err(StoreError::NotApplied(injected(&format!("shard {shard} is away")))),
            None => Ok(()),
        }
    }

    /// A write of which nothing is heard: it may not arrive, arrive at once, or late.
    async fn lose(&self, write: Write) -> StoreError {
        let (chance, wait) = {
            let random = &mut self.state.lock().random;
            (random.u8(0..4), LATE.mul_f64(random.f64()))
        };
        match chance {
            0 => return StoreError::NotApplied(injected("the part of the store was not asked")),
            1 => {}
            2 => drop(self.inner.commit(&write).await),
            _ => {
                let (inner, sleep) = (self.inner.clone(), self.clock.sleep(wait));
                let late = &mut self.state.lock().late;
                while late.try_join_next().is_some() {}
                late.spawn(async move {
                    sleep.await;
                    drop(inner.commit(&write).await);
                });
            }
        }
        lost()
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Store for Partly {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        let (away, there): (Vec<_>, Vec<_>) = claim.shards.iter().partition(|shard| self.is_away(**shard));
        let mut claimed = self.inner.claim(&Claim { shards: there, ..claim.clone() }).await?;
        let held = |shard| Held { shard, holder: claim.host.clone(), remaining: Duration::ZERO };
        claimed.held.extend(away.into_iter().map(held));
        Ok(claimed)
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        let mut renewed = self.inner.renew(renewal).await?;
        let state = self.state.lock();
        renewed.unknown.extend(renewed.owned.extract_if(.., |shard| state.away.contains(shard)));
        renewed.unknown.sort_unstable();
        renewed.inbox.retain(|shard| !state.away.contains(shard));
        drop(state);
        Ok(renewed)
    }

    async fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        let (away, there): (Vec<_>, Vec<_>) = given_up.iter().partition(|(shard, _)| self.is_away(*shard));
        self.inner.release(incarnation, &there).await?;
        self.check(away.into_iter().map(|(shard, _)| shard))
    }

    async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        self.inner.cordon(member, is_cordoned, seen).await
    }

    async fn members(&self) -> Result<Members, StoreError> {
        self.inner.members().await
    }

    async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let is_away: Vec<bool> = write.batches.iter().map(|batch| self.is_away(batch.shard)).collect();
        if !is_away.contains(&true) {
            return self.inner.commit(write).await;
        }
        let with = |batches: Vec<Batch>| Write { batches, ..write.clone() };
        let there = write.batches.iter().zip(&is_away).filter(|(_, is_away)| !**is_away);
        let there = with(there.map(|(batch, _)| batch.clone()).collect());
        let answers = if there.batches.is_empty() { Vec::new() } else { self.inner.commit(&there).await? };
        let mut answers = answers.into_iter();
        let mut all = Vec::with_capacity(write.batches.len());
        for (batch, is_away) in write.batches.iter().zip(is_away) {
            all.push(match is_away {
                true => Err(self.lose(with(vec![batch.clone()])).await),
                false => answers.next().unwrap_or_else(|| Err(lost())),
            });
        }
        Ok(all)
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        self.check(messages.iter().map(|message| message.shard))?;
        self.inner.post(messages).await
    }

    async fn watch(&self, incarnation: Incarnation) -> Result<Hints, StoreError> {
        self.inner.watch(incarnation).await
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        self.check(pages.iter().map(|page| page.shard))?;
        self.inner.load(pages).await
    }

    async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        self.check([read.shard])?;
        self.inner.read(read).await
    }
}
