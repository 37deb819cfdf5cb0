//! Looks at what waits: a host that says that nothing is due has nothing due in the store.
//!
//! A host may not know at once: a hint may be lost, a page may come late, a handler may run. So what is looked at is only what
//! a host that nothing keeps from its store has left alone for longer than all of that takes, and said all the time that nothing
//! waits. A wall that goes back changes nothing of what has arrived.

use std::collections::BTreeMap;
use std::time::Duration;

use super::fleet::{Running, World};
use crate::clock::{Clock, Timestamp};
use crate::store::{AlarmRow, InboxRow, MemoryStore, ShardId};
use crate::sync::Arc;
use crate::testing::Invariant;

/// The time between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// The time for which something may be due without being handled or called overdue: longer than any handler runs, than renewals that fail
/// one after the other take, and than a lease.
const PATIENCE: Duration = Duration::from_secs(45);

/// Something due in the store, as it is now: a retry is another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    life: u64,
    shard: ShardId,
    what: String,
}

/// The alarms and messages that are due in a shard, as far as a host with this wall can know; `rests` tells which alarms their handlers hold.
fn due(
    memory: &MemoryStore,
    shard: ShardId,
    wall: Timestamp,
    rests: &(dyn Fn(&AlarmRow) -> bool + Send + Sync),
) -> Vec<String> {
    let (alarms, messages) = memory.due(shard, wall);
    let alarms = alarms.iter().filter(|row| !rests(row));
    let alarm = |row: &AlarmRow| format!("alarm {} of {}, due at {:?}", row.id, row.name, row.due);
    let message = |row: &InboxRow| format!("message {} of {}, due at {:?}", row.id, row.name, row.due);
    alarms.map(alarm).chain(messages.iter().map(message)).collect()
}

/// Tells whether nothing keeps this host from its work, as far as its surroundings go.
fn is_free<A>(running: &Running<A>) -> bool {
    running.site.life().is_current() && !running.is_paused() && !running.link.faults.is_troubled()
}

/// Looks until it is dropped.
pub(super) async fn watch<A: Clone + Send + Sync + 'static>(
    world: Arc<World<A>>,
    memory: MemoryStore,
    rests: impl Fn(&AlarmRow) -> bool + Send + Sync,
) {
    let common = world.common.clone();
    // Since when each has been seen to be left alone.
    let mut left_alone = BTreeMap::<Due, Duration>::new();
    loop {
        common.clock.sleep(LOOK).await;
        let now = common.clock.elapsed();
        let mut seen = BTreeMap::new();
        world.each_living(|running| {
            let life = running.site.life();
            let Some(idle) = running.idle_shards().filter(|_| is_free(running)) else { return };
            for shard in idle {
                for what in due(&memory, shard, life.now(), &rests) {
                    let due = Due { life: life.number(), shard, what };
                    let since = left_alone.get(&due).copied().unwrap_or(now);
                    seen.insert(due, since);
                }
            }
        });
        for (due, since) in &mut seen {
            if now.saturating_sub(*since) >= PATIENCE {
                let Due { life, what, .. } = due;
                let what = format!("{what}, is left alone by life {life}, which says that nothing waits");
                common.history.violated(Invariant::Handled, what);
                // Said once.
                *since = Duration::MAX;
            }
        }
        left_alone = seen;
    }
}
