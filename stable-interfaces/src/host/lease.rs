//! Claiming the shards this host should own, and keeping them.
//!
//! Routing says who should own a shard; the store makes it true. The lease is counted from just before its claim or renewal was
//! *sent*, and a tenth shorter than asked for, so this host stops acting as an owner before the store lets anyone else.
//!
//! The host has one lease for all shards, and a renewal may not speak of all of them: a part of the store may be away. Such a shard is
//! kept for as long as its own lease lasts, and given up just before; until then the host's lease is not extended past it. So
//! the lease never covers a shard that the store may have given to somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, pending};
use std::pin::{Pin, pin};
use std::time::Duration;

use super::rescue::Rescue;
use crate::error::WithCauses;
use crate::fleet::HASH_VERSION;
use crate::shards::handoff::Handoff;
use crate::shared::{FOREVER, Forget, Health, HostCore};
use crate::store::client::backoff;
use crate::store::deadlines::Deadlines;
use crate::store::{Claim, ClaimKind, Claimed, Epoch, Incarnation, Renewal, Renewed, ShardId, Store, StoreError};
use crate::sync::Arc;

/// A renewal also tells which inboxes have messages, whose hints may have been lost: it comes this often at least, however long the
/// lease is.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The time after the end of another host's lease at which its shards are asked for.
const JUST_AFTER: Duration = Duration::from_millis(2);

/// The difference that the store's clock and this host's may have before it is worth a warning.
const SKEW_WARNING: Duration = Duration::from_secs(5);

/// The shards the fleet gives to this host.
pub(crate) fn assigned(host: &HostCore) -> Vec<ShardId> {
    if host.fleet.is_live() {
        return host.view().placement.as_ref().map_or_else(Vec::new, |placement| placement.shards_of(&host.name));
    }
    (0..host.fleet.shards()).map(ShardId).filter(|shard| *host.fleet.host_of(*shard) == host.name).collect()
}

/// The most bytes of waiting alarms that the window of one shard may have.
fn window_bytes(host: &HostCore, assigned: usize) -> usize {
    host.options.limits.window_bytes / 2 / assigned.max(1)
}

fn window_cap(host: &HostCore, assigned: usize) -> usize {
    (host.options.window / assigned.max(1)).clamp(16, 4_096)
}

/// One claim, within the deadline of one call of the store. Whatever it grants is owned when this returns. At a start the lease of
/// this host begins with it; later its renewals say how long it lasts.
pub(crate) async fn claim(
    host: &HostCore,
    store: &Deadlines,
    incarnation: Incarnation,
    shards: Vec<ShardId>,
    kind: ClaimKind,
) -> Result<Claimed, StoreError> {
    let lease = host.options.lease;
    let given_up = shards.iter().filter_map(|shard| Some((*shard, host.shards.given_up(*shard)?))).collect();
    let claim = Claim {
        incarnation,
        host: host.name.clone(),
        shards,
        given_up,
        shard_count: host.fleet.shards(),
        hash_version: HASH_VERSION,
        lease,
        kind,
        presence: host.presence(),
    };
    let sent_at = host.clock.elapsed();
    let store = match kind {
        ClaimKind::Start => store.clone(),
        // A claim that hangs must not keep the next renewal waiting.
        ClaimKind::Running => store.at_most(lease / 3),
    };
    let claimed = store.claim(&claim).await?;
    if kind == ClaimKind::Start {
        host.set_lease(lease_end(host, sent_at));
    }
    // The same at each claim.
    drop(host.store_name.set(claimed.store.clone()));
    host.note_holders(&claimed.held, &claimed.granted);
    host.note_members(&claimed.members);
    let now = host.clock.now();
    let skew = now.since(claimed.now).max(claimed.now.since(now));
    if skew > SKEW_WARNING {
        tracing::warn!(?skew, "this host's clock and the store's differ; alarms follow this host's");
    }
    // Of a live fleet more may be placed here later: what is owned already counts.
    let assigned = assigned(host).len().max(host.shards.owned().count() + claimed.granted.len());
    let (cap, bytes) = (window_cap(host, assigned), window_bytes(host, assigned));
    for grant in &claimed.granted {
        if host.shards.epoch(grant.shard) != Some(grant.epoch) {
            host.shards.own(grant.shard, grant.epoch, grant.clean, cap, bytes);
        }
    }
    Ok(claimed)
}

/// The end of a lease that the store was asked for at `sent_at`.
fn lease_end(host: &HostCore, sent_at: Duration) -> Duration {
    let lease = host.options.lease;
    if lease >= FOREVER { Duration::MAX } else { sent_at.saturating_add(lease - lease / 10) }
}

/// Renews the lease, looks for messages that nobody hinted at, and claims what others still held, until the host stops or is
/// replaced; or until the store is found to have lost what it had acknowledged, and then returns what is to be saved.
pub(crate) async fn keep(host: &Arc<HostCore>, store: &Deadlines, incarnation: Incarnation) -> Option<Rescue> {
    let pause = (host.options.lease / 3).min(LOOK_EVERY);
    let mut keeper = Keeper {
        host,
        store,
        incarnation,
        renewed: host.lease_until(),
        doubts: BTreeMap::new(),
        strays: Vec::new(),
        claiming: None,
        is_to_claim_again: false,
    };
    let mut failures = 0_u32;
    // Says whether the last renewal told the members. The ends in an older view may be long past, and others' leases renewed since.
    let mut knows = true;
    loop {
        let left = keeper.left();
        let first_end = if knows { keeper.until_first_end() } else { Duration::MAX };
        let wait = match failures {
            0 if !left.is_zero() => pause.min(left).min(first_end),
            // It has run out before its renewal was answered.
            0 => Duration::ZERO,
            _ if left.is_zero() => backoff(&*host.random, failures).min(pause),
            _ => backoff(&*host.random, failures).min(pause).min(left),
        };
        let look = async {
            tokio::select! { biased;
                () = host.shards.lost.notified() => true,
                () = host.news.notified() => false,
                () = host.clock.sleep(wait) => false,
            }
        };
        let has_lost = keeper.beside(look).await;
        if host.is_gone() && keeper.claiming.is_none() {
            return None;
        }
        if has_lost || !host.lease_holds() {
            forget_unowned(host);
        }
        let sent_at = host.clock.elapsed();
        let store = match keeper.left() {
            Duration::ZERO => store.clone(),
            // No longer than the lease lasts: what belongs to instances ends with it.
            left => store.at_most(left),
        };
        let renewal = Renewal { incarnation, lease: host.options.lease, presence: host.presence() };
        // A claim that ends meanwhile is nothing that the renewal can speak of.
        let asked: Vec<_> = host.shards.owned().collect();
        let (is_claiming, closing) = (keeper.claiming.is_some(), host.shards.closing().collect::<Vec<_>>());
        let renewing = store.renew(&renewal);
        let renewed = match keeper.beside(renewing).await {
            Ok(renewed) => renewed,
            // It was on its way when all was released.
            Err(StoreError::Replaced) if host.is_gone() || host.health() == Health::Stopped => return None,
            Err(StoreError::Replaced) => {
                tracing::error!(host = %host.name, "another process with this host's name has started; this one stops");
                host.stop(Health::Replaced);
                return None;
            }
            Err(error @ StoreError::Lost(_)) => return Some(Rescue::begin(host, &error)),
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(error = %WithCauses(&error), "the lease could not be renewed; trying again");
                }
                failures = failures.saturating_add(1);
                if !host.lease_holds() {
                    forget_unowned(host);
                }
                continue;
            }
        };
        failures = 0;
        knows = host.note_members(&renewed.members);
        keeper.note_renewal(sent_at, &asked, &renewed);
        let known = asked.iter().map(|(shard, _)| *shard).chain(closing);
        keeper.note_strays(&renewed.owned, if is_claiming { None } else { Some(known.collect()) });
        for shard in renewed.inbox {
            host.shards.look(shard);
        }
        // Due alarms may have waited for the lease.
        host.shards.changed.notify_one();
        keeper.claim_missing();
        metrics::gauge!(crate::metrics::SHARDS_OWNED)
            .set(u32::try_from(host.shards.owned().count()).unwrap_or(u32::MAX));
    }
}

/// Ends the instances that this host may not run any more, with their tasks and connections: others may own them by now, and nothing
/// must go on beside its successor.
pub(crate) fn forget_unowned(host: &HostCore) {
    let which = if host.lease_holds() { Forget::Lost } else { Forget::All };
    let interfaces = host.interfaces.lock().clone();
    for interface in interfaces {
        interface.forget(which);
    }
}

/// The knowledge of the lease.
struct Keeper<'a> {
    host: &'a Arc<HostCore>,
    store: &'a Deadlines,
    incarnation: Incarnation,
    /// The end of the lease by the last renewal that was answered.
    renewed: Duration,
    /// The shards for which that renewal does not speak, under which epoch, and until when the lease of each is known to last.
    doubts: BTreeMap<ShardId, (Epoch, Duration)>,
    /// The shards that the store says are this host's, and of which this host does not know: a claim was done and its answer lost. Where they
    /// belong to others by now, nobody else would ever ask for them with success.
    strays: Vec<ShardId>,
    /// A claim under way. It does not hold up renewals.
    claiming: Option<Claiming<'a>>,
    /// Tells whether more was to be claimed while that one was: what it was refused may have been free a moment later.
    is_to_claim_again: bool,
}

/// A claim, with the time at which it was sent.
type Claiming<'a> = Pin<Box<dyn Future<Output = (Duration, Result<Claimed, StoreError>)> + Send + 'a>>;

impl Drop for Keeper<'_> {
    /// A claim that is under way ends unheard: a drain does not wait for it.
    fn drop(&mut self) {
        if self.claiming.is_some() {
            self.host.note_claimed(false);
        }
    }
}

impl Keeper<'_> {
    /// The time until the first lease of another host would end, where somebody waits for that: its shards are free just after.
    fn until_first_end(&self) -> Duration {
        let host = self.host;
        let Some(end) = host.view().first_end(&host.name) else { return Duration::MAX };
        if !host.fleet.is_live() && self.missing().next().is_none() {
            return Duration::MAX;
        }
        end.saturating_sub(host.clock.elapsed()).saturating_add(JUST_AFTER)
    }

    /// The shards that this host should own and does not.
    fn missing(&self) -> impl Iterator<Item = ShardId> + use<'_> {
        let shards = &self.host.shards;
        let is_missing = |shard: &ShardId| shards.epoch(*shard).is_none() && shards.handoff(*shard) < Handoff::Closing;
        assigned(self.host).into_iter().filter(is_missing)
    }

    /// The time that the lease of what was renewed still lasts; zero if it is over.
    fn left(&self) -> Duration {
        self.renewed.saturating_sub(self.host.clock.elapsed())
    }

    /// Waits for something, and does meanwhile what must not wait for it.
    async fn beside<T>(&mut self, something: impl Future<Output = T>) -> T {
        let mut something = pin!(something);
        loop {
            let (clock, ends) = (&self.host.clock, self.first_doubt());
            let ends = async {
                match ends {
                    Some(end) => clock.sleep(end.saturating_sub(clock.elapsed())).await,
                    None => pending().await,
                }
            };
            let claimed = async {
                match &mut self.claiming {
                    Some(claiming) => claiming.await,
                    None => pending().await,
                }
            };
            tokio::select! { biased;
                () = ends => self.give_up_doubtful(),
                output = &mut something => return output,
                (sent_at, claimed) = claimed => self.note_claim(sent_at, claimed),
            }
        }
    }

    /// The time at which the first of the doubtful shards is to be given up: a little before its lease ends, for the lease of all waits for that.
    fn first_doubt(&self) -> Option<Duration> {
        let margin = self.host.options.lease / 20;
        self.doubts.values().map(|(_, end)| end.saturating_sub(margin)).min().filter(|_| self.renewed < Duration::MAX)
    }

    fn give_up_doubtful(&mut self) {
        let now = self.host.clock.elapsed() + self.host.options.lease / 20;
        let over: Vec<_> = self.doubts.extract_if(.., |_, (_, end)| *end <= now).collect();
        let given_up = self.lose(over.iter().map(|(shard, (epoch, _))| (*shard, *epoch)));
        if let Some(first) = given_up.first() {
            tracing::warn!(shards = given_up.len(), %first, "the part of the store that has these shards did not answer for as long as their lease lasts; they are given up until it does");
        }
        if !over.is_empty() {
            forget_unowned(self.host);
        }
        self.extend();
    }

    /// Loses shards of these epochs; returns those that were this host's, which are often many at once.
    fn lose(&self, shards: impl Iterator<Item = (ShardId, Epoch)>) -> Vec<ShardId> {
        let lost = shards.filter(|(shard, epoch)| self.host.shards.lose(*shard, *epoch));
        let lost: Vec<_> = lost.map(|(shard, _)| shard).collect();
        if !lost.is_empty() {
            metrics::counter!(crate::metrics::SHARDS_LOST).increment(lost.len() as u64);
        }
        lost
    }

    /// The lease lasts for as long as that of every shard that is kept.
    fn extend(&self) {
        let known = self.doubts.values().map(|(_, end)| *end).fold(self.renewed, Duration::min);
        self.host.set_lease(known);
    }

    fn note_renewal(&mut self, sent_at: Duration, asked: &[(ShardId, Epoch)], renewed: &Renewed) {
        let before = std::mem::replace(&mut self.renewed, lease_end(self.host, sent_at));
        for (shard, epoch) in asked {
            if renewed.unknown.binary_search(shard).is_ok() {
                let known = self.doubts.get(shard).filter(|(of, _)| of == epoch).map_or(before, |(_, end)| *end);
                self.doubts.insert(*shard, (*epoch, known));
            } else if self.doubts.get(shard).is_some_and(|(of, _)| of == epoch) {
                self.doubts.remove(shard);
            }
        }
        // First what is lost: under the new lease whatever this host still owns is acted on at once, by other threads too.
        let is_taken = |shard: &ShardId| {
            renewed.owned.binary_search(shard).is_err() && renewed.unknown.binary_search(shard).is_err()
        };
        let taken = self.lose(asked.iter().copied().filter(|(shard, _)| is_taken(shard)));
        if let Some(first) = taken.first() {
            tracing::warn!(shards = taken.len(), %first, "these shards have been taken over by another host");
        }
        self.give_up_doubtful();
        let overdue = self.host.shards.overdue();
        metrics::gauge!(crate::metrics::OLDEST_OVERDUE).set(overdue.as_secs_f64());
    }

    /// Notes what the store says is this host's beside what this host knew of when it asked; `None` if it was being told of more.
    fn note_strays(&mut self, owned: &[ShardId], known: Option<BTreeSet<ShardId>>) {
        let shards = &self.host.shards;
        let is_stray = |shard: &ShardId| {
            let is_known = known.as_ref().is_none_or(|known| known.contains(shard));
            !is_known && shards.epoch(*shard).is_none() && shards.handoff(*shard) < Handoff::Closing
        };
        self.strays = owned.iter().copied().filter(is_stray).collect();
    }

    /// Begins to claim the shards that this host should own and does not, or does and does not know, unless that is being done.
    fn claim_missing(&mut self) {
        let (host, store, incarnation) = (self.host, self.store, self.incarnation);
        let missing: BTreeSet<_> = self.missing().chain(self.strays.iter().copied()).collect();
        if missing.is_empty() {
            return;
        }
        forget_unowned(host);
        self.is_to_claim_again = self.claiming.is_some();
        if host.health() == Health::Running && self.claiming.is_none() {
            let sent_at = host.clock.elapsed();
            let missing: Vec<_> = missing.into_iter().collect();
            if !host.note_claiming(&missing) {
                return;
            }
            let claiming = async move { (sent_at, claim(host, store, incarnation, missing, ClaimKind::Running).await) };
            self.claiming = Some(Box::pin(claiming));
        }
    }

    fn note_claim(&mut self, sent_at: Duration, claimed: Result<Claimed, StoreError>) {
        self.claiming = None;
        self.host.note_claimed(claimed.is_ok());
        let is_to_claim_again = std::mem::take(&mut self.is_to_claim_again);
        match claimed {
            Ok(claimed) if claimed.granted.is_empty() => {}
            Ok(claimed) => {
                tracing::info!(shards = claimed.granted.len(), "claimed shards that others held");
                // A renewal that was sent before, and is answered later, does not speak for them.
                let end = lease_end(self.host, sent_at);
                self.doubts.extend(claimed.granted.iter().map(|grant| (grant.shard, (grant.epoch, end))));
                self.extend();
                // Some of them may belong to others by now.
                self.host.view_changed.notify_one();
            }
            Err(error) => tracing::warn!(error = %WithCauses(&error), "waiting shards could not be claimed"),
        }
        if is_to_claim_again {
            self.claim_missing();
        }
    }
}
