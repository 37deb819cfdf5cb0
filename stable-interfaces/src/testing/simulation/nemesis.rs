//! The fate of the hosts of a simulation.

use std::time::Duration;

use tokio::task::JoinSet;

use super::fleet::{LEASE, World};
use super::moves::{aim_at_handoff, flap, roll};
use super::network::Place;
use crate::clock::{Clock, within};
use crate::store::ShardId;
use crate::sync::Arc;
use crate::testing::{Fault, Method};

/// The events that can happen, and their weights.
const EVENTS: [(Event, u64); 21] = [
    (Event::Crash, 56),
    (Event::CrashAll, 2),
    (Event::Drop, 4),
    (Event::Drain, 9),
    (Event::Pause, 10),
    (Event::CutOff, 6),
    (Event::Hang, 6),
    (Event::Freeze, 6),
    (Event::StoreDown, 3),
    (Event::PartAway, 8),
    (Event::Step, 8),
    (Event::Twin, 8),
    (Event::Roll, 2),
    (Event::LoseHints, 9),
    (Event::HoldHints, 2),
    (Event::CutWatches, 2),
    (Event::CutLinks, 8),
    (Event::SlowLink, 4),
    (Event::StopFrame, 10),
    (Event::Handoff, 30),
    (Event::Flap, 8),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// A host dies, and is started again.
    Crash,
    /// All hosts die.
    CrashAll,
    /// A host is dropped.
    Drop,
    /// A host ends in good order.
    Drain,
    /// A host stands still, longer than its lease or not.
    Pause,
    /// The store refuses a host's calls.
    CutOff,
    /// The store answers a host nothing.
    Hang,
    /// Some calls of one kind are not answered, as on connections that have died without a word; others are.
    Freeze,
    /// The store is down for all.
    StoreDown,
    /// A third of the shards is away, for a host or for all.
    PartAway,
    /// A host's wall steps.
    Step,
    /// A second host of a name is started.
    Twin,
    /// The list of hosts changes, and they are started anew one after the other.
    Roll,
    /// No hint about messages gets through.
    LoseHints,
    /// Hints wait before a host that does not listen.
    HoldHints,
    /// The streams of hints end.
    CutWatches,
    /// Nothing comes through from a host to another, or either way.
    CutLinks,
    /// A link on which all that goes from a host to another takes its time.
    SlowLink,
    /// A host dies with a frame on its way.
    StopFrame,
    /// A host dies in the middle of a handoff.
    Handoff,
    /// A host is to be emptied, and is not, and is, faster than its shards move.
    Flap,
}

/// Lets things happen to the fleet until then.
pub(super) async fn run<A: Clone + Send + Sync + 'static>(world: &Arc<World<A>>, between: Duration, until: Duration) {
    let common = world.common.clone();
    let (clock, random) = (&common.clock, &common.random);
    let total: u64 = EVENTS.iter().map(|(_, weight)| weight).sum();
    // What goes on beside this, and is cut off when faults end: whoever heals undoes it.
    let mut lasting = JoinSet::new();
    let mut rolling = JoinSet::new();
    loop {
        let now = clock.elapsed();
        clock.sleep(random.up_to(between * 2).min(until.saturating_sub(now))).await;
        if clock.elapsed() >= until {
            break;
        }
        let mut drawn = random.below(total);
        let event = EVENTS.iter().find(|(_, weight)| match drawn.checked_sub(*weight) {
            Some(rest) => {
                drawn = rest;
                false
            }
            None => true,
        });
        let Some((event, _)) = event else { continue };
        common.history.note(&format!("{event:?} at {:?}", clock.elapsed()));
        if *event == Event::Roll {
            // Without an end of its lease nobody takes what a host has that is no more.
            if !world.shape.leases_end() {
                continue;
            }
            while rolling.try_join_next().is_some() {}
            if rolling.is_empty() {
                rolling.spawn(roll(world.clone()));
            }
        } else {
            happen(world, *event, &mut lasting);
        }
        world.supervise();
    }
    lasting.shutdown().await;
    while rolling.join_next().await.is_some() {}
}

/// The time that something lasts: mostly less than a lease, sometimes much more.
fn a_while<A>(world: &World<A>) -> Duration {
    let random = &world.common.random;
    let most = *random.pick(&[1, 4, 10, 40]).unwrap_or(&1);
    random.up_to(Duration::from_secs(most)) + Duration::from_millis(1)
}

/// Ends what lasted for a while.
type Undo<A> = Box<dyn FnOnce(&World<A>) + Send>;

fn happen<A: Clone + Send + Sync + 'static>(world: &Arc<World<A>>, event: Event, lasting: &mut JoinSet<()>) {
    let common = world.common.clone();
    let random = &common.random;
    let names = world.names();
    let Some(name) = random.pick(&names).cloned() else { return };
    while lasting.try_join_next().is_some() {}
    let lasts = |lasting: &mut JoinSet<()>, duration: Duration, end: Undo<A>| {
        let world = world.clone();
        lasting.spawn(async move {
            world.common.clock.sleep(duration).await;
            end(&world);
        });
    };
    let for_a_while = |lasting: &mut JoinSet<()>, end: Undo<A>| lasts(lasting, a_while(world), end);
    let undo = |f: fn(&super::fleet::Running<A>)| {
        let name = name.clone();
        Box::new(move |world: &World<A>| {
            world.with(&name, f);
        })
    };
    match event {
        Event::Crash if random.chance(0.6) => aim(world, &name, lasting),
        Event::Crash => {
            if world.crash(&name) {
                restart(world, &name);
            }
        }
        Event::CrashAll => {
            for name in world.wanted() {
                if world.crash(&name) {
                    restart(world, &name);
                }
            }
        }
        Event::Drop => {
            if world.drop_host(&name) {
                restart(world, &name);
            }
        }
        Event::Drain => {
            let deadline = random.up_to(Duration::from_secs(*random.pick(&[0, 1, 20]).unwrap_or(&1)));
            world.drain(&name, deadline);
            if random.chance(0.2) {
                aim_at_release(world, &name, lasting);
            }
        }
        Event::Pause => {
            let duration = a_while(world);
            common.fault(if duration > LEASE * 2 { "pause of more than two leases" } else { "pause" });
            world.with(&name, |running| running.pause(true));
            // By its own hands it would not come back if it were replaced meanwhile.
            let number = world.life_of(&name);
            lasts(
                lasting,
                duration,
                Box::new(move |world| {
                    world.each(|running| {
                        if Some(running.site.life().number()) == number {
                            running.pause(false);
                        }
                    });
                }),
            );
        }
        Event::CutOff => {
            common.fault("store out of a host's reach");
            world.with(&name, |running| running.link.faults.set_down(true));
            for_a_while(lasting, undo(|running| running.link.faults.set_down(false)));
        }
        Event::Hang => {
            common.fault("store that answers a host nothing");
            world.with(&name, |running| running.link.faults.hang_from(running.link.faults.begun()));
            for_a_while(lasting, undo(|running| running.link.faults.release_hanging()));
        }
        Event::Freeze => {
            common.fault("calls that were not answered");
            let method = *random.pick(&Method::ALL).unwrap_or(&Method::Commit);
            let fault = if random.chance(0.5) { Fault::Hang } else { Fault::HangAfter };
            let calls = random.below(6) + 1;
            world.with(&name, |running| (0..calls).for_each(|_| running.link.faults.fail_next(method, fault)));
            for_a_while(lasting, undo(|running| running.link.faults.release_hanging()));
        }
        Event::StoreDown => {
            common.fault("store down");
            world.each(|running| running.link.faults.set_down(true));
            for_a_while(lasting, Box::new(|world| world.each(|running| running.link.faults.set_down(false))));
        }
        Event::PartAway if !world.shape.is_spread => {}
        Event::PartAway => {
            common.fault("a part of the store away");
            let (part, is_for_all) = (u32::try_from(random.below(3)).unwrap_or(0), random.chance(0.5));
            let away = (0..world.hosts_and_shards().1).filter(|shard| shard % 3 == part).map(ShardId);
            let set = |running: &super::fleet::Running<A>| running.link.faults.set_away(away.clone());
            if is_for_all {
                world.each(set);
            } else {
                world.with(&name, set);
            }
            for_a_while(lasting, Box::new(|world| world.each(|running| running.link.faults.set_away([]))));
        }
        Event::Step => {
            common.fault("step of a wall clock");
            let most = *random.pick(&[2_000, 60_000, 3_600_000]).unwrap_or(&1);
            let millis = i64::try_from(random.below(2 * most)).unwrap_or(0) - i64::try_from(most).unwrap_or(0);
            world.with(&name, |running| running.step(millis));
            // Sometimes for so long that one sees what waits for it.
            let most = Duration::from_secs(*random.pick(&[10, 180]).unwrap_or(&10));
            lasts(lasting, random.up_to(most), undo(super::fleet::Running::set_right));
        }
        Event::Twin => {
            common.fault("second host of a name");
            world.start(&name, Duration::ZERO);
            for_a_while(lasting, Box::new(World::crash_replaced));
        }
        Event::LoseHints => {
            common.fault("hints lost");
            world.with(&name, |running| running.link.faults.lose_hints(true));
            // What is lost at the end of it is not lost for good only because something else happens soon.
            let most = Duration::from_secs(*random.pick(&[10, 60]).unwrap_or(&10));
            lasts(lasting, random.up_to(most), undo(|running| running.link.faults.lose_hints(false)));
        }
        Event::HoldHints => {
            common.fault("hints held up");
            world.with(&name, |running| running.link.faults.hold_hints(true));
            for_a_while(lasting, undo(|running| running.link.faults.hold_hints(false)));
        }
        Event::CutWatches => {
            common.fault("streams of hints cut");
            world.each(|running| running.link.faults.cut_watches());
        }
        Event::Roll => {}
        Event::CutLinks | Event::SlowLink => {
            let others = [world.names(), world.outside.names()].concat();
            let (Some(network), Some(other)) = (&world.network, random.pick(&others).cloned()) else { return };
            if other == name {
                return;
            }
            if event == Event::SlowLink {
                common.fault("slow link");
                network.slow_down(&name, &other, random.up_to(Duration::from_secs(2)));
            } else {
                let is_both = random.chance(0.5);
                common.fault(if is_both { "link cut" } else { "link cut one way" });
                network.cut(&name, &other);
                if is_both {
                    network.cut(&other, &name);
                }
            }
            for_a_while(
                lasting,
                Box::new(move |world| {
                    if let Some(network) = &world.network {
                        network.mend(&name, &other);
                    }
                }),
            );
        }
        Event::StopFrame => aim_at_frame(world, lasting),
        Event::Handoff if world.shape.is_live => aim_at_handoff(world, &name, lasting),
        Event::Flap if world.shape.is_live => flap(world, &name, lasting),
        Event::Handoff | Event::Flap => {}
    }
}

/// A host dies with a request or an answer at some place of its way: the one that asks, or the one that answers.
fn aim_at_frame<A: Clone + Send + Sync + 'static>(world: &Arc<World<A>>, lasting: &mut JoinSet<()>) {
    let random = &world.common.random;
    let place = *random.pick(&Place::ALL).unwrap_or(&Place::Sending);
    let (after, is_asking) = (random.below(4), random.chance(0.5));
    let world = world.clone();
    lasting.spawn(async move {
        let (Some(network), common) = (&world.network, &world.common) else { return };
        if !network.stop_at(place, after) {
            return;
        }
        if let Some((asks, answers)) = within(&common.clock, Duration::from_secs(20), network.until_stopped()).await {
            let victim = if is_asking { asks } else { answers };
            if let Some(life) = world.life_of(&victim) {
                common.fault(&format!("crash {}", place.described()));
                crash_soon(&world, &victim, life).await;
            }
        }
        network.let_go();
    });
}

/// A host dies in a moment, unless it is another life by then.
pub(super) async fn crash_soon<A: Clone + Send + Sync + 'static>(world: &Arc<World<A>>, name: &Arc<str>, life: u64) {
    let common = &world.common;
    common.clock.sleep(common.random.up_to(Duration::from_millis(100)) * u32::from(common.random.chance(0.5))).await;
    if world.life_of(name) == Some(life) && world.crash(name) {
        restart(world, name);
    }
}

/// A host dies in the middle of one of its next calls of the store, before it is carried out or before it is answered.
fn aim<A: Clone + Send + Sync + 'static>(world: &Arc<World<A>>, name: &Arc<str>, lasting: &mut JoinSet<()>) {
    let random = &world.common.random;
    let fault = if random.chance(0.5) { Fault::Hang } else { Fault::HangAfter };
    let Some((life, faults)) = world.with(name, |running| (running.site.life().number(), running.link.faults.clone()))
    else {
        return;
    };
    let index = faults.begun() + random.below(12);
    faults.fail_at(index, fault);
    let (world, name) = (world.clone(), name.clone());
    let later = random.up_to(Duration::from_millis(100));
    lasting.spawn(async move {
        within(&world.common.clock, Duration::from_secs(20), faults.until_begun(index)).await;
        world.common.clock.sleep(later).await;
        if world.life_of(&name) == Some(life) && world.crash(&name) {
            restart(&world, &name);
        }
    });
}

/// A host that drains dies while it releases its shards.
fn aim_at_release<A: Clone + Send + Sync + 'static>(world: &Arc<World<A>>, name: &Arc<str>, lasting: &mut JoinSet<()>) {
    let fault = if world.common.random.chance(0.5) { Fault::Hang } else { Fault::HangAfter };
    let Some((life, faults)) = world.with(name, |running| (running.site.life().number(), running.link.faults.clone()))
    else {
        return;
    };
    faults.fail_next(Method::Release, fault);
    let (world, name) = (world.clone(), name.clone());
    lasting.spawn(async move {
        while faults.calls(Method::Release) == 0 {
            if world.life_of(&name) != Some(life) {
                return;
            }
            world.common.clock.sleep(Duration::from_millis(50)).await;
        }
        if world.life_of(&name) == Some(life) && world.crash(&name) {
            restart(&world, &name);
        }
    });
}

pub(super) fn restart<A: Clone + Send + Sync + 'static>(world: &Arc<World<A>>, name: &Arc<str>) {
    let random = &world.common.random;
    let most = *random.pick(&[0, 0, 1, 1, 5, 5, 20, 60]).unwrap_or(&0);
    world.start(name, random.up_to(Duration::from_secs(most)));
}
