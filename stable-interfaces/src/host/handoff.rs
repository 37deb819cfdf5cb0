//! Handing shards over to the hosts that they are placed on by now.
//!
//! A shard with a living owner moves by that owner's will alone, a few at a time, and only to a host that has been up for a while: so one
//! that comes and goes moves each shard once in that time at most. First its tasks are told, and served until they have come to an end;
//! then nothing is let in any more, what runs ends or is cut off, its instances stop, and it is released. Its next owner is told by
//! the store, and whoever asks meanwhile is sent there.

use std::time::Duration;

use super::lease::forget_unowned;
use crate::clock::within;
use crate::error::WithCauses;
use crate::shared::{Health, HostCore};
use crate::store::client::Backoff;
use crate::store::deadlines::Deadlines;
use crate::store::{Incarnation, ShardId, Store};
use crate::sync::Arc;

/// The time to end, for handlers in a shard that takes nothing in any more.
const CLOSING: Duration = Duration::from_secs(1);
/// Instances that were begun by what still runs are stopped after so long.
const STOP_AGAIN: Duration = Duration::from_millis(50);
/// So many instances end at once that looking after each would be work.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Hands over what belongs elsewhere, until the host drains.
pub(crate) async fn run(host: Arc<HostCore>, store: Deadlines, incarnation: Incarnation) {
    while host.health() == Health::Running {
        let (due, wait) = plan(&host);
        if !due.is_empty() {
            hand_over(&host, &store, incarnation, &due).await;
            continue;
        }
        let settled = async {
            match wait {
                Some(wait) => host.clock.sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! { biased;
            () = host.view_changed.notified() => {}
            () = settled => {}
        }
    }
}

/// The shards to hand over now, ascending, and, if there are none, the time until there may be some.
fn plan(host: &HostCore) -> (Vec<ShardId>, Option<Duration>) {
    let (view, now) = (host.view(), host.clock.elapsed());
    let settle = host.options.settle.unwrap_or(host.options.lease);
    let (mut due, mut wait) = (Vec::new(), None::<Duration>);
    let Some(placement) = &view.placement else { return (due, None) };
    for (shard, _) in host.shards.owned() {
        let Some(next) = placement.host_of(shard).filter(|next| **next != host.name) else { continue };
        match view.up(next, now) {
            Some(up) if up >= settle => due.push(shard),
            Some(up) => wait = Some(wait.unwrap_or(Duration::MAX).min(settle - up)),
            None => {}
        }
        if due.len() == host.options.handoff_batch {
            break;
        }
    }
    (due, wait)
}

/// Hands over shards, which are ascending. When this returns they are free, or the host has ended.
async fn hand_over(host: &HostCore, store: &Deadlines, incarnation: Incarnation, shards: &[ShardId]) {
    let interfaces = host.interfaces.lock().clone();
    host.leave(shards);
    let rest = async {
        while interfaces.iter().any(|interface| interface.with_busy_tasks(Some(shards)) > 0) {
            host.handed_on.notified().await;
        }
    };
    tokio::select! { biased;
        // Then all shards end in another way.
        () = host.wait_for(Health::Draining) => {
            shards.iter().for_each(|shard| host.shards.end_handoff(*shard));
            return;
        }
        _ = within(&*host.clock, host.options.handoff_timeout, rest) => {}
    }
    let mut closed = Vec::with_capacity(shards.len());
    for shard in shards {
        match host.shards.close(*shard) {
            Some(epoch) => closed.push((*shard, epoch)),
            // Lost meanwhile.
            None => host.shards.end_handoff(*shard),
        }
    }
    if closed.is_empty() {
        return;
    }
    let shards: Vec<_> = closed.iter().map(|(shard, _)| *shard).collect();
    let are_gone = || interfaces.iter().all(|interface| interface.running_of(&shards) == 0);
    let finish = async {
        loop {
            for interface in &interfaces {
                interface.clone().stop_all(Some(&shards));
            }
            let gone = async {
                while !are_gone() {
                    host.handed_on.notified().await;
                    host.clock.sleep(LOOK_AGAIN).await;
                }
            };
            if within(&*host.clock, STOP_AGAIN, gone).await.is_some() {
                return;
            }
        }
    };
    if within(&*host.clock, CLOSING, finish).await.is_none() {
        tracing::warn!(shards = shards.len(), "handlers still run in shards that are handed over; they are cut off");
    }
    for (shard, epoch) in &closed {
        host.shards.lose(*shard, *epoch);
    }
    forget_unowned(host);
    let is_released = release(host, store, incarnation, &shards).await;
    shards.iter().for_each(|shard| host.shards.end_handoff(*shard));
    if is_released {
        metrics::counter!(crate::metrics::SHARDS_HANDED_OVER).increment(shards.len() as u64);
        tracing::info!(host = %host.name, shards = shards.len(), first = ?shards.first(), "handed over");
    }
}

/// Releases shards, however long the store is away: nobody else can have them until it has been told. Tells whether it has: not if
/// the host has ended before.
async fn release(host: &HostCore, store: &Deadlines, incarnation: Incarnation, shards: &[ShardId]) -> bool {
    let mut backoff = Backoff::new(&*host.clock, &*host.random);
    while let Err(error) = store.release(incarnation, shards).await {
        if host.health() > Health::Draining {
            return false;
        }
        if backoff.is_first() {
            tracing::warn!(error = %WithCauses(&error), "shards that are handed over could not be released; trying again");
        }
        backoff.pause().await;
    }
    true
}
