//! Shards that move: hosts that join, leave and are emptied, and those that die in the middle of a handoff.

use std::time::Duration;

use tokio::task::JoinSet;

use super::fleet::{Running, World, fleet_of};
use super::nemesis::crash_soon;
use crate::clock::{Clock, within};
use crate::shards::handoff::Handoff;
use crate::sync::Arc;
use crate::testing::{Fault, Method};

/// The moment of a handoff at which a host dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// A shard is on this stretch of its way.
    On(Handoff),
    /// Nobody is told any more that it is free, or somebody is and nobody hears of it.
    Release,
    /// The same with its claim by the next owner.
    Claim,
}

/// The moments, and their names. Those that are met least are tried most.
const MOMENTS: [(Moment, &str); 8] = [
    (Moment::On(Handoff::None), "before a shard is leaving"),
    (Moment::On(Handoff::Leaving), "while a shard is leaving"),
    (Moment::On(Handoff::Leaving), "while a shard is leaving"),
    (Moment::On(Handoff::Leaving), "while a shard is leaving"),
    (Moment::On(Handoff::Closing), "while a shard is closing"),
    (Moment::On(Handoff::Closing), "while a shard is closing"),
    (Moment::Release, "while a shard is released"),
    (Moment::Claim, "while a shard is claimed"),
];

/// The number of times that a host is emptied to meet a moment that may be over at once.
const TRIES: u32 = 6;

/// A host is emptied, and dies at some moment of that, or one that has its shards next.
pub(super) fn aim_at_handoff<A: Clone + Send + Sync + 'static>(
    world: &Arc<World<A>>,
    name: &Arc<str>,
    lasting: &mut JoinSet<()>,
) {
    let (world, name) = (world.clone(), name.clone());
    lasting.spawn(async move {
        let (common, random) = (&world.common, &world.common.random);
        let Some((moment, described)) = random.pick(&MOMENTS) else { return };
        let fault = if random.chance(0.5) { Fault::Hang } else { Fault::HangAfter };
        let names = world.names();
        let others: Vec<_> = names.iter().filter(|other| **other != name).collect();
        let Some(other) = random.pick(&others) else { return };
        let (victim, method) = match moment {
            Moment::Claim => (*other, Some(Method::Claim)),
            Moment::Release => (&name, Some(Method::Release)),
            Moment::On(_) => (if random.chance(0.7) { &name } else { *other }, None),
        };
        for _ in 0..TRIES {
            // Without something that goes on, a stretch is over at once.
            let busy = until(&world, &name, Duration::from_millis(20), |running| match (moment, running.is_busy()) {
                (Moment::On(Handoff::Leaving), (has_tasks, _)) => has_tasks,
                (Moment::On(Handoff::Closing), (_, has_handlers)) => has_handlers,
                _ => true,
            });
            within(&common.clock, Duration::from_secs(15), busy).await;
            let Some(life) = world.life_of(victim) else { continue };
            let injected =
                |running: &Running<A>| method.map_or(0, |method| running.link.faults.injected(method, fault));
            let before = world.with(victim, injected).unwrap_or(0);
            if let Some(method) = method {
                world.with(victim, |running| running.link.faults.fail_next(method, fault));
            }
            common.fault("cordon");
            world.cordon(&name, true).await;
            let seen_at = if method.is_some() { victim } else { &name };
            let comes = until(&world, seen_at, Duration::from_millis(1), |running| match moment {
                Moment::On(stretch) => running.has_on_its_way(*stretch),
                Moment::Release | Moment::Claim => injected(running) > before,
            });
            let has_come = within(&common.clock, Duration::from_secs(8), comes).await.is_some();
            if has_come && world.life_of(victim) == Some(life) {
                common.fault(&format!("crash {described}"));
                crash_soon(&world, victim, life).await;
            }
            common.clock.sleep(random.up_to(Duration::from_secs(8))).await;
            world.cordon(&name, false).await;
            if has_come {
                return;
            }
        }
    });
}

/// Waits until a host is found to be so, at one of the looks at it.
async fn until<A: Clone + Send + Sync + 'static>(
    world: &World<A>,
    name: &str,
    look: Duration,
    is_so: impl Fn(&Running<A>) -> bool,
) {
    while world.with(name, &is_so) != Some(true) {
        world.common.clock.sleep(look).await;
    }
}

/// A host gives its shards away for a while.
async fn empty<A: Clone + Send + Sync + 'static>(world: &World<A>) {
    let (common, wanted) = (&world.common, world.wanted());
    let Some(name) = common.random.pick(&wanted) else { return };
    common.fault("cordon");
    world.cordon(name, true).await;
    common.clock.sleep(common.random.up_to(Duration::from_secs(20))).await;
    world.cordon(name, false).await;
}

/// A host's mark to be emptied comes and goes.
pub(super) fn flap<A: Clone + Send + Sync + 'static>(
    world: &Arc<World<A>>,
    name: &Arc<str>,
    lasting: &mut JoinSet<()>,
) {
    let (world, name) = (world.clone(), name.clone());
    lasting.spawn(async move {
        let (common, random) = (&world.common, &world.common.random);
        common.fault("cordon that flaps");
        let most = Duration::from_millis(*random.pick(&[50, 500, 3_000]).unwrap_or(&50));
        for _ in 0..random.below(10) + 2 {
            for is_cordoned in [true, false] {
                world.cordon(&name, is_cordoned).await;
                common.clock.sleep(random.up_to(most)).await;
            }
        }
    });
}

/// One host more or one less: each is started anew with the new list, one after the other.
pub(super) async fn roll<A: Clone + Send + Sync + 'static>(world: Arc<World<A>>) {
    let common = world.common.clone();
    if world.shape.is_live && common.random.chance(0.3) {
        return empty(&world).await;
    }
    common.fault(if world.shape.is_live { "a host joins or leaves" } else { "change of the host list" });
    let (hosts, shards) = world.hosts_and_shards();
    let hosts = u64::try_from(hosts).unwrap_or(1);
    let more = hosts < 3 || (hosts < 5 && common.random.chance(0.5));
    let before = world.wanted();
    world.set_fleet(fleet_of(if more { hosts + 1 } else { hosts - 1 }, shards));
    let after = world.wanted();
    for name in before.iter().chain(after.iter().filter(|name| !before.contains(name))) {
        // Where nobody knows a list, the others need not hear of another one.
        if world.shape.is_live && before.contains(name) && after.contains(name) {
            continue;
        }
        let old = world.life_of(name);
        if old.is_some() {
            if common.random.chance(0.7) {
                world.drain(name, Duration::from_secs(5));
            } else {
                world.crash(name);
            }
        }
        let is_old_gone = || old.is_none() || world.life_of(name) != old;
        for _ in 0..20 {
            if is_old_gone() {
                break;
            }
            common.clock.sleep(Duration::from_secs(1)).await;
        }
        world.crash(name);
        if after.contains(name) {
            world.start(name, common.random.up_to(Duration::from_secs(2)));
            common.clock.sleep(Duration::from_secs(3)).await;
        }
    }
}
