//! Claiming the shards this host should own, and keeping them.
//!
//! Routing says who should own a shard; the store makes it true. The lease is counted from just before its claim or renewal was
//! *sent*, and a tenth shorter than asked for, so this host stops acting as an owner before the store lets anyone else.

use std::time::Duration;

use super::core::{Health, HostCore};
use super::rescue::Rescue;
use crate::clock::within;
use crate::committer::{Described, backoff};
use crate::fleet::HASH_VERSION;
use crate::interface::Forget;
use crate::store::{Claim, ClaimKind, Claimed, Incarnation, ShardId, Store, StoreError};
use crate::sync::Arc;

/// A lease that no clock will see the end of: for a store that only one process can open.
pub(crate) const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A renewal also tells which inboxes have messages, whose hints may have been lost: it comes this often at least, however long the
/// lease is.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How far the store's clock and this host's may be apart before it is worth a warning.
const SKEW_WARNING: Duration = Duration::from_secs(5);

/// The shards the fleet gives to this host.
pub(crate) fn assigned(host: &HostCore) -> Vec<ShardId> {
    (0..host.fleet.shards()).map(ShardId).filter(|shard| *host.fleet.host_of(*shard) == host.name).collect()
}

fn window_cap(host: &HostCore, assigned: usize) -> usize {
    (host.options.window / assigned.max(1)).clamp(16, 4_096)
}

/// One claim, within the deadline of one call of the store. Whatever it grants is owned when this returns.
pub(crate) async fn claim(
    host: &HostCore,
    store: &dyn Store,
    incarnation: Incarnation,
    shards: Vec<ShardId>,
    kind: ClaimKind,
) -> Result<Claimed, StoreError> {
    let lease = host.options.lease;
    let claim = Claim {
        incarnation,
        host: host.name.clone(),
        shards,
        shard_count: host.fleet.shards(),
        hash_version: HASH_VERSION,
        lease,
        kind,
    };
    let sent_at = host.clock.elapsed();
    let timeout = match kind {
        ClaimKind::Start => host.options.commit.store_timeout,
        // A claim that hangs must not keep the next renewal waiting.
        ClaimKind::Running => host.options.commit.store_timeout.min(lease / 3),
    };
    let claimed = match within(&*host.clock, timeout, store.claim(&claim)).await {
        Some(result) => result?,
        None => return Err(StoreError::Unavailable(format!("no answer within {timeout:?}").into())),
    };
    extend(host, sent_at);
    host.note_holders(&claimed.held, &claimed.granted);
    let now = host.clock.now();
    let skew = now.since(claimed.now).max(claimed.now.since(now));
    if skew > SKEW_WARNING {
        tracing::warn!(?skew, "this host's clock and the store's differ; alarms follow this host's");
    }
    let cap = window_cap(host, assigned(host).len());
    for grant in &claimed.granted {
        if host.shards.epoch(grant.shard) != Some(grant.epoch) {
            host.shards.own(grant.shard, grant.epoch, grant.clean, cap);
        }
    }
    Ok(claimed)
}

/// The lease lasts from `sent_at`.
fn extend(host: &HostCore, sent_at: Duration) {
    let lease = host.options.lease;
    host.set_lease(if lease >= FOREVER { Duration::MAX } else { sent_at.saturating_add(lease - lease / 10) });
}

/// Renews the lease, looks for messages that nobody hinted at, and claims what others still held, until the host stops or is replaced; or until the store is found to have
/// lost what it had acknowledged, and then returns what is to be saved.
pub(crate) async fn keep(host: &Arc<HostCore>, store: &dyn Store, incarnation: Incarnation) -> Option<Rescue> {
    let pause = (host.options.lease / 3).min(LOOK_EVERY);
    let mut failures = 0_u32;
    loop {
        let left = host.lease_left();
        let wait = match failures {
            0 if !left.is_zero() => pause.min(left),
            // It has run out before its renewal was answered.
            0 => Duration::ZERO,
            _ if left.is_zero() => backoff(&*host.random, failures).min(pause),
            _ => backoff(&*host.random, failures).min(pause).min(left),
        };
        let has_lost = tokio::select! { biased;
            () = host.shards.lost.notified() => true,
            () = host.clock.sleep(wait) => false,
        };
        if has_lost || !host.lease_holds() {
            forget_unowned(host);
        }
        let sent_at = host.clock.elapsed();
        let timeout = match host.lease_left() {
            Duration::ZERO => host.options.commit.store_timeout,
            // No longer than the lease lasts: what belongs to instances ends with it.
            left => host.options.commit.store_timeout.min(left),
        };
        let renewed = within(&*host.clock, timeout, store.renew(incarnation, host.options.lease)).await;
        let renewed = match renewed {
            Some(Ok(renewed)) => renewed,
            Some(Err(StoreError::Replaced)) => {
                tracing::error!(host = %host.name, "another process with this host's name has started; this one stops");
                host.stop(Health::Replaced);
                return None;
            }
            Some(Err(error @ StoreError::Lost(_))) => return Some(Rescue::begin(host, &error)),
            failed => {
                match failed {
                    Some(Err(error)) if failures == 0 => {
                        tracing::warn!(error = %Described(&error), "the lease could not be renewed; trying again");
                    }
                    None if failures == 0 => {
                        tracing::warn!(?timeout, "the store did not answer a renewal; trying again");
                    }
                    _ => {}
                }
                failures = failures.saturating_add(1);
                if !host.lease_holds() {
                    forget_unowned(host);
                }
                continue;
            }
        };
        failures = 0;
        // First what is lost: under the new lease whatever this host still owns is acted on at once, by other threads too.
        let missing = forget_lost(host, &renewed.owned);
        extend(host, sent_at);
        for shard in renewed.inbox {
            host.shards.hint(shard);
        }
        // Due alarms may have waited for the lease.
        host.shards.changed.notify_one();
        if !missing.is_empty() && host.health() == Health::Running {
            match claim(host, store, incarnation, missing, ClaimKind::Running).await {
                Ok(claimed) if claimed.granted.is_empty() => {}
                Ok(claimed) => tracing::info!(shards = claimed.granted.len(), "claimed shards that others held"),
                Err(error) => tracing::warn!(error = %Described(&error), "waiting shards could not be claimed"),
            }
        }
        metrics::gauge!(crate::metrics::SHARDS_OWNED)
            .set(u32::try_from(host.shards.owned().count()).unwrap_or(u32::MAX));
    }
}

/// Ends the instances that this host may not run any more, with their tasks and connections: others may own them by now, and nothing
/// must go on beside its successor.
fn forget_unowned(host: &HostCore) {
    let which = if host.lease_holds() { Forget::Lost } else { Forget::All };
    let interfaces = host.interfaces.lock().clone();
    for interface in interfaces {
        interface.forget(which);
    }
}

/// Gives up what the store says is not this host's any more, and drops the instances there. Returns the shards that this host
/// should own and does not.
fn forget_lost(host: &HostCore, owned: &[ShardId]) -> Vec<ShardId> {
    let taken: Vec<_> = host.shards.owned().filter(|(shard, _)| owned.binary_search(shard).is_err()).collect();
    for (shard, epoch) in &taken {
        if host.shards.lose(*shard, *epoch) {
            tracing::warn!(%shard, "the shard has been taken over by another host");
            metrics::counter!(crate::metrics::SHARDS_LOST).increment(1);
        }
    }
    let overdue = host.shards.overdue();
    metrics::gauge!(crate::metrics::OLDEST_OVERDUE).set(overdue.as_secs_f64());
    let missing: Vec<_> = assigned(host).into_iter().filter(|shard| host.shards.epoch(*shard).is_none()).collect();
    if !missing.is_empty() {
        let interfaces = host.interfaces.lock().clone();
        for interface in interfaces {
            interface.forget(Forget::Lost);
        }
    }
    missing
}
