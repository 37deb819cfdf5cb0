//! The owners of the shards, and the writes that each lane has had.
//!
//! All of it is decided here, in memory, by the one process that holds the directory. On disk is only what must outlive that
//! process: per shard its epoch and whether it has an owner. Leases, incarnations and sequence numbers end with the process, since
//! whoever could still use them was a part of it; a shard it left owned is found so, and is free but not clean.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use stable_interfaces::StoreError;
use stable_interfaces::store::{Claim, ClaimKind, Epoch, Grant, Held, Incarnation, Lane, ShardId};

use crate::codec::ShardRow;

#[derive(Debug, Default)]
pub(super) struct Ownership {
    shards: BTreeMap<ShardId, Shard>,
    lives: HashMap<Incarnation, Life>,
}

#[derive(Debug, Clone, Copy)]
struct Shard {
    epoch: Epoch,
    owner: Option<Incarnation>,
    /// The word of the owner's grant; without an owner, that of the next one.
    clean: bool,
}

#[derive(Debug)]
struct Life {
    host: Arc<str>,
    /// The time at which its lease runs out, by the lease clock.
    until: Duration,
    /// Replaced by a newer life of its host, or gone: it owns nothing and never will.
    ended: bool,
    /// The greatest sequence number taken of each lane.
    taken: HashMap<Lane, u64>,
}

/// The outcome of a claim, before it is durable.
#[derive(Debug)]
pub(super) struct Decision {
    pub(super) granted: Vec<Grant>,
    pub(super) held: Vec<Held>,
    /// The shards that change owner. They are to be durable before anything is granted.
    pub(super) new: Vec<(ShardId, ShardRow)>,
}

/// The number of a write, compared with those that its lane has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbered {
    New,
    Repeat,
}

impl Ownership {
    /// The ownership that a directory holds when it is opened.
    pub(super) fn restored(rows: impl IntoIterator<Item = (ShardId, ShardRow)>) -> Ownership {
        let shards =
            rows.into_iter().map(|(shard, row)| (shard, Shard { epoch: row.epoch, owner: None, clean: !row.owned }));
        Ownership { shards: shards.collect(), lives: HashMap::new() }
    }

    /// Decides a claim made when the lease clock shows `now`, and changes nothing.
    pub(super) fn decide(&self, claim: &Claim, now: Duration) -> Result<Decision, StoreError> {
        if self.lives.get(&claim.incarnation).is_some_and(|life| life.ended) {
            return Err(StoreError::Replaced);
        }
        let mut decision = Decision { granted: Vec::new(), held: Vec::new(), new: Vec::new() };
        for &id in &claim.shards {
            let shard = self.shards.get(&id).copied().unwrap_or(Shard { epoch: Epoch(0), owner: None, clean: true });
            let clean = match shard.owner {
                // What it gave up is granted anew.
                Some(owner) if owner == claim.incarnation && claim.given_up.contains(&(id, shard.epoch)) => false,
                Some(owner) if owner == claim.incarnation => {
                    decision.granted.push(Grant { shard: id, epoch: shard.epoch, clean: shard.clean });
                    continue;
                }
                Some(owner) => match self.lives.get(&owner).filter(|life| life.holds_against(claim, now)) {
                    Some(life) => {
                        let remaining = life.until.saturating_sub(now);
                        decision.held.push(Held { shard: id, holder: life.host.clone(), remaining });
                        continue;
                    }
                    None => false,
                },
                None => shard.clean,
            };
            let epoch = Epoch(shard.epoch.0 + 1);
            decision.granted.push(Grant { shard: id, epoch, clean });
            decision.new.push((id, ShardRow { epoch, owned: true }));
        }
        Ok(decision)
    }

    /// Carries out what [`decide`](Self::decide) said of this claim, now that it is durable. Returns the lives that it has ended.
    pub(super) fn grant(&mut self, claim: &Claim, decision: &Decision, now: Duration) -> Vec<Incarnation> {
        let ended = if claim.kind == ClaimKind::Start { self.end_earlier_lives(claim) } else { Vec::new() };
        for grant in &decision.granted {
            let shard = Shard { epoch: grant.epoch, owner: Some(claim.incarnation), clean: grant.clean };
            self.shards.insert(grant.shard, shard);
        }
        let until = now.saturating_add(claim.lease);
        self.lives.entry(claim.incarnation).and_modify(|life| life.until = until).or_insert_with(|| Life {
            host: claim.host.clone(),
            until,
            ended: false,
            taken: HashMap::new(),
        });
        ended
    }

    fn end_earlier_lives(&mut self, claim: &Claim) -> Vec<Incarnation> {
        let mut ended = Vec::new();
        for (incarnation, life) in &mut self.lives {
            if *incarnation != claim.incarnation && life.host == claim.host {
                life.ended = true;
                ended.push(*incarnation);
            }
        }
        for shard in self.shards.values_mut() {
            // On disk such a shard stays owned, which is what a shard that was not released looks like.
            if shard.owner.and_then(|owner| self.lives.get(&owner)).is_some_and(|life| life.ended) {
                shard.owner = None;
                shard.clean = false;
            }
        }
        ended
    }

    /// Extends a lease; returns its host, and the shards that it covers in ascending order.
    pub(super) fn renew(
        &mut self,
        incarnation: Incarnation,
        until: Duration,
    ) -> Result<(Arc<str>, Vec<ShardId>), StoreError> {
        let life = self.lives.get_mut(&incarnation).filter(|life| !life.ended).ok_or(StoreError::Replaced)?;
        life.until = until;
        let owned = self.shards.iter().filter(|(_, shard)| shard.owner == Some(incarnation));
        Ok((life.host.clone(), owned.map(|(id, _)| *id).collect()))
    }

    /// Says whether it owns no shard.
    pub(super) fn owns_nothing(&self, incarnation: Incarnation) -> bool {
        self.shards.values().all(|shard| shard.owner != Some(incarnation))
    }

    /// The rows of those shards that `incarnation` owns under the epoch named with each, if one is, as they are to be written when it gives them up.
    pub(super) fn releasable(
        &self,
        incarnation: Incarnation,
        given_up: &[(ShardId, Option<Epoch>)],
    ) -> Vec<(ShardId, ShardRow)> {
        let owned = |(id, epoch): &(ShardId, Option<Epoch>)| {
            let is_meant = |shard: &&Shard| epoch.is_none_or(|epoch| epoch == shard.epoch);
            let shard = self.shards.get(id).filter(|shard| shard.owner == Some(incarnation)).filter(is_meant)?;
            Some((*id, ShardRow { epoch: shard.epoch, owned: false }))
        };
        given_up.iter().filter_map(owned).collect()
    }

    /// Gives up what [`releasable`](Self::releasable) named, now that it is durable.
    pub(super) fn release(&mut self, released: &[(ShardId, ShardRow)]) {
        for (id, row) in released {
            self.shards.insert(*id, Shard { epoch: row.epoch, owner: None, clean: true });
        }
    }

    /// Ends a life that has left.
    pub(super) fn end(&mut self, incarnation: Incarnation) {
        if let Some(life) = self.lives.get_mut(&incarnation) {
            life.ended = true;
        }
    }

    /// Checks that `incarnation` may write to `shard` under `epoch`.
    pub(super) fn check(&self, incarnation: Incarnation, shard: ShardId, epoch: Epoch) -> Result<(), StoreError> {
        match self.shards.get(&shard) {
            Some(known) if known.owner == Some(incarnation) && known.epoch == epoch => Ok(()),
            known => {
                let newest = known.map_or(Epoch(0), |known| known.epoch);
                Err(StoreError::Fenced { shard, held: epoch, newest })
            }
        }
    }

    /// Compares the number of a write with the last one of its lane.
    pub(super) fn sequence(&self, incarnation: Incarnation, lane: Lane, seq: u64) -> Result<Numbered, StoreError> {
        match self.lives.get(&incarnation).and_then(|life| life.taken.get(&lane)) {
            Some(&newest) if seq < newest => Err(StoreError::Stale { lane, seq, newest }),
            Some(&newest) if seq == newest => Ok(Numbered::Repeat),
            _ => Ok(Numbered::New),
        }
    }

    /// Notes that a write has been taken. Strangers are not noted: all they write is refused as it is.
    pub(super) fn take(&mut self, incarnation: Incarnation, lane: Lane, seq: u64) {
        if let Some(life) = self.lives.get_mut(&incarnation) {
            life.taken.insert(lane, seq);
        }
    }
}

impl Life {
    /// Tells that its shards are out of reach for `claim`.
    fn holds_against(&self, claim: &Claim, now: Duration) -> bool {
        let is_succeeded = claim.kind == ClaimKind::Start && self.host == claim.host;
        !self.ended && !is_succeeded && now < self.until
    }
}
