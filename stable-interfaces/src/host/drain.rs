//! The end of a host in good order.
//!
//! Where other hosts are there to have its shards, they are handed over while it serves the rest, and whoever still comes through its door is
//! sent on until its server has ended. Where nobody is, it refuses what is new, finishes what it has, and releases it all at once.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Drained;
use super::handoff::{Given, Giver};
use crate::clock::within;
use crate::error::WithCauses;
use crate::shared::{FOREVER, Health, HostCore};
use crate::store::deadlines::Deadlines;
use crate::store::{Epoch, Incarnation, Presence, Renewal, ShardId, Store};
use crate::sync::atomic::Ordering;

/// The time that the answers to other hosts have to get on their way when a host has drained.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The time that a claim has to be answered before all is released.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(1);

/// Drains a host, see [`Host::drain`](super::Host::drain).
pub(super) async fn drain(core: &HostCore, deadline: Duration) -> Drained {
    let Some(started) = core.started() else { return Drained::NOTHING };
    let began = core.clock.elapsed();
    let left = || deadline.saturating_sub(core.clock.elapsed().saturating_sub(began));
    let interfaces = core.interfaces.lock().clone();
    let with_busy_tasks = || interfaces.iter().map(|interface| interface.with_busy_tasks(None).len()).sum::<usize>();
    // The others may know it at once.
    core.news.notify_one();
    let mut given = Given::default();
    if let Some(store) = core.timely_store().filter(|_| core.serves_while_it_drains()) {
        let giver = Giver { host: core, store: &store, incarnation: started.incarnation };
        given = giver.give_all(deadline, deadline / 2).await;
        if given.is_all {
            within(&*core.clock, left(), core.wait_for_errands()).await;
        }
        core.end_service();
    }
    // Tasks that are not parked have something to bring to an end, and their instances go on until they have.
    let rest = async {
        while with_busy_tasks() > 0 {
            core.task_rested.notified().await;
        }
    };
    let rested = within(&*core.clock, left().saturating_sub(deadline / 2), rest).await.is_some();
    let tasks = given.tasks + if rested { 0 } else { with_busy_tasks() };
    core.serves_tasks.store(false, Ordering::Release);
    let finish = async {
        loop {
            for interface in &interfaces {
                interface.clone().stop_all(None);
            }
            started.turns.wait_idle().await;
            if interfaces.iter().all(|interface| interface.running() == 0) {
                break;
            }
            // A handler is being polled by its sender, and may have asked for other instances: those are next once it is done.
            core.instance_left.notified().await;
        }
    };
    let deadline = left();
    let in_time = within(&*core.clock, deadline, finish).await.is_some();
    if core.is_rescuing() {
        // It ends by itself, when what is in memory has been saved.
        within(&*core.clock, deadline, core.wait_stopped()).await;
    }
    let busy = || interfaces.iter().map(|interface| interface.busy()).sum::<usize>();
    let running = if in_time { 0 } else { started.turns.running().max(busy()) };
    let instances = interfaces.iter().map(|interface| interface.running()).sum();
    if let Some(reach) = core.reach() {
        // What others are told here is on its way before the links end.
        within(&*core.clock, CLOSE_TIMEOUT, reach.close()).await;
    }
    let store = core.timely_store();
    let mut released = store.is_none();
    if let Some(store) = store {
        within(&*core.clock, CLAIM_TIMEOUT, core.wait_for_claim()).await;
        let owned = core.shards.owned().map(|(shard, epoch)| (shard, Some(epoch)));
        // And those that were being handed over, or were granted unheard, under an epoch that nobody knows: this life claims nothing any more.
        let others = core.shards.closing().chain(core.unheard()).map(|shard| (shard, None));
        // Where a shard is named twice, as it is known.
        let shards: Vec<_> = others.chain(owned).collect::<BTreeMap<_, _>>().into_iter().collect();
        core.stop(Health::Stopped);
        // A handler that was cut off may have left an alarm that kills its process: such a shard is not clean.
        if running == 0 {
            released = leave(core, &store, started.incarnation, &shards).await;
        }
    }
    core.stop(Health::Stopped);
    let unfinished = running + core.stops_cut.load(Ordering::Acquire);
    tracing::info!(host = %core.name, unfinished, released, "drained");
    Drained { unfinished, instances, tasks, released, handed_over: given.handed_over }
}

/// Tells the store that this host leaves and that these shards of it are free; tells whether they are.
pub(super) async fn leave(
    core: &HostCore,
    store: &Deadlines,
    incarnation: Incarnation,
    shards: &[(ShardId, Option<Epoch>)],
) -> bool {
    // The store takes out of its members whoever has said that it leaves and owns nothing any more.
    let presence = Presence { is_leaving: true, ..core.presence() };
    let renewal = Renewal { incarnation, lease: core.options.lease, presence };
    if core.options.lease < FOREVER
        && !core.is_gone()
        && let Err(error) = store.renew(&renewal).await
    {
        tracing::warn!(error = %WithCauses(&error), "the store could not be told that this host leaves");
    }
    let released = store.release(incarnation, shards).await;
    if let Err(error) = &released {
        tracing::warn!(error = %WithCauses(error), "the shards could not be released");
    }
    released.is_ok()
}
