//! Live fleets: hosts join, leave, are cordoned, die and come back, and the shards follow.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use stable_interfaces::store::{MemberState, ShardId};
use stable_interfaces::testing::{Fault, FaultStore, MemoryNetwork, Method};
use stable_interfaces::{
    Context, ContextError, Fleet, FleetClient, Handle, Health, Host, HostBuilder, Interface, RequestError,
    StableInterface, StartError, StoreError,
};
use system_tests::{Site, World, act, count, get, in_time, life, on_each_store, put, wait};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(15);
const SHARDS: u32 = 64;
/// The time that a store and a hint take, and no look by the clock does.
const AT_ONCE: Duration = Duration::from_millis(100);

fn live() -> Fleet {
    Fleet::live(SHARDS).unwrap()
}

fn builder(world: &World, name: &str) -> HostBuilder {
    world.member(name, &live()).lease(LEASE)
}

async fn start(world: &World, name: &str) -> Site {
    world.launch(builder(world, name), |probes| probes).await
}

/// The shards of each, each shard once.
fn owned(sites: &[&Site]) -> Vec<BTreeSet<ShardId>> {
    let owned: Vec<BTreeSet<_>> = sites.iter().map(|site| site.host.shards().into_iter().collect()).collect();
    let all: BTreeSet<_> = owned.iter().flatten().collect();
    assert_eq!(all.len(), owned.iter().map(BTreeSet::len).sum::<usize>(), "nothing is owned twice");
    owned
}

fn is_whole(sites: &[&Site]) -> bool {
    owned(sites).iter().map(BTreeSet::len).sum::<usize>() == SHARDS as usize
}

/// An ID whose shard this host owns.
fn id_at(site: &Site) -> String {
    (0..).map(|n| format!("id-{n}")).find(|id| site.host.owns(id).unwrap()).unwrap()
}

fn names(site: &Site) -> Vec<(String, MemberState)> {
    site.host.members().iter().map(|member| (member.name.to_string(), member.state)).collect()
}

on_each_store! {
    async fn the_first_host_has_everything_and_names_itself(world: World) {
        let a = start(&world, "pod-a").await;
        assert!(is_whole(&[&a]) && a.host.is_ready(Duration::ZERO));
        assert_eq!(a.probes.request("x", count("n")).await.unwrap(), 1);
        assert_eq!(&*a.host.owner_of("x").unwrap(), "pod-a");
        assert_eq!(names(&a), [("pod-a".to_owned(), MemberState::Up)]);
    }
}

on_each_store! {
    async fn hosts_that_start_together_wait_a_moment_for_each_other_and_nothing_moves(world: World) {
        let starts = ["a", "b", "c"].map(|name| start(&world, name));
        let [a, b, c] = starts;
        let (a, b, c) = tokio::join!(a, b, c);
        world.pass(AT_ONCE).await;
        let first = owned(&[&a, &b, &c]);
        assert!(is_whole(&[&a, &b, &c]) && first.iter().all(|shards| shards.len() > 10), "{first:?}");
        world.pass(4 * LEASE).await;
        assert_eq!(owned(&[&a, &b, &c]), first);
        // Every host knows the place of every ID.
        for n in 0..50 {
            let id = format!("id-{n}");
            let owner = a.host.owner_of(&id).unwrap();
            assert!([&b, &c].iter().all(|site| site.host.owner_of(&id).unwrap() == owner));
            for site in [&a, &b, &c] {
                match site.probes.request(&id, count("n")).await {
                    Ok(_) => assert_eq!(site.host.name(), &*owner),
                    Err(RequestError::NotOwner { holder }) => assert_eq!(holder, owner),
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }
}

on_each_store! {
    async fn the_shards_of_a_host_that_dies_for_good_go_on_elsewhere_when_its_lease_is_over(world: World) {
        let (a, b) = tokio::join!(start(&world, "a"), start(&world, "b"));
        world.pass(AT_ONCE).await;
        assert!(is_whole(&[&a, &b]));
        let id = id_at(&b);
        b.probes.request(&id, put("k", 7)).await.unwrap();
        let due = world.now() + 2_000;
        b.probes.set_alarm(&id, "x", world.at(due), &()).await.unwrap();
        let died = world.now();
        b.crash();
        world.pass(LEASE / 3 * 2 - SECOND).await;
        assert!(!a.host.owns(&id).unwrap(), "its lease is not over");
        while !a.host.owns(&id).unwrap() {
            world.pass(Duration::from_millis(10)).await;
        }
        let after = world.now() - died;
        assert!(after <= 15_000 + 300, "after {after} ms");
        assert!(is_whole(&[&a]) && a.host.is_ready(Duration::from_secs(60)));
        assert_eq!(a.probes.request(&id, get("k")).await.unwrap(), Some(7));
        world.pass(AT_ONCE).await;
        assert_eq!(world.script.fired_ids(), ["x"]);
        assert_eq!(names(&a), [("a".to_owned(), MemberState::Up)], "it is forgotten");
    }
}

on_each_store! {
    async fn a_host_that_comes_back_under_its_name_has_its_shards_at_once_and_nothing_else_moves(world: World) {
        let (a, b) = tokio::join!(start(&world, "a"), start(&world, "b"));
        world.pass(AT_ONCE).await;
        let before = owned(&[&a, &b]);
        b.crash();
        world.pass(2 * SECOND).await;
        let asked = world.now();
        let b = start(&world, "b").await;
        assert_eq!(owned(&[&a, &b]), before, "when it has started");
        assert!(world.now() - asked < 500, "it waits for nobody, as one does that is alone");
        world.pass(3 * LEASE).await;
        assert_eq!(owned(&[&a, &b]), before);
    }
}

on_each_store! {
    async fn a_host_that_is_started_again_and_again_with_a_wrong_clock_is_no_member_and_has_nothing(world: World) {
        let (a, b) = tokio::join!(start(&world, "a"), start(&world, "b"));
        world.pass(AT_ONCE).await;
        assert!(is_whole(&[&a, &b]));
        b.crash();
        // For longer than the lease of the life before.
        for _ in 0..25 {
            let wrong = world.clock.separate();
            wrong.step(3_600_000);
            let error = builder(&world, "b").clock(Arc::new(wrong)).start().await.unwrap_err();
            assert!(matches!(error, StartError::ClockSkew { .. }), "{error}");
            world.pass(SECOND).await;
            assert_eq!(names(&a), [("a".to_owned(), MemberState::Up)], "it has left");
        }
        assert!(is_whole(&[&a]));
        let b = start(&world, "b").await;
        world.pass(2 * LEASE).await;
        assert!(is_whole(&[&a, &b]) && !b.host.shards().is_empty());
    }
}

on_each_store! {
    async fn a_host_that_joins_is_handed_its_part_once_it_has_settled_and_no_other_shard_moves(world: World) {
        let (a, b) = tokio::join!(start(&world, "a"), start(&world, "b"));
        world.pass(AT_ONCE).await;
        let before = owned(&[&a, &b]);
        let id = id_at(&a);
        a.probes.request(&id, put("k", 1)).await.unwrap();
        let c = start(&world, "c").await;
        assert!(c.host.shards().is_empty() && c.host.is_ready(Duration::ZERO), "nobody has to wait for it");
        world.pass(LEASE - SECOND).await;
        assert_eq!(owned(&[&a, &b]), before, "it has not settled");
        world.pass(2 * SECOND).await;
        let after = owned(&[&a, &b, &c]);
        assert!(is_whole(&[&a, &b, &c]), "{after:?}");
        assert!(after[0].is_subset(&before[0]) && after[1].is_subset(&before[1]), "nothing moves between the others");
        let moved = after[2].len();
        assert!((10..=27).contains(&moved), "{moved} of 64");
        world.pass(3 * LEASE).await;
        assert_eq!(owned(&[&a, &b, &c]), after);
        let found = [&a, &b, &c].into_iter().find(|site| site.host.owns(&id).unwrap()).unwrap();
        assert_eq!(found.probes.request(&id, get("k")).await.unwrap(), Some(1));
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_while_shards_move_is_answered_or_sent_to_the_next_owner_and_nothing_is_lost() {
    in_time(async {
        let world = World::in_memory();
        let (a, b) = tokio::join!(start(&world, "a"), start(&world, "b"));
        world.pass(AT_ONCE).await;
        let ids: Vec<String> = (0..24).map(|n| format!("id-{n}")).collect();
        let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
        let c = start(&world, "c").await;
        let (mut sent_on, mut longest) = (0, 0);
        while world.now() < 40_000 {
            for id in &ids {
                let began = world.now();
                let answer = 'asked: loop {
                    for site in [&a, &b, &c] {
                        match site.probes.request(id, count("n")).await {
                            Ok(answer) => break 'asked answer,
                            Err(error @ RequestError::NotOwner { .. }) => {
                                assert!(error.is_retryable());
                                sent_on += 1;
                            }
                            Err(other) => panic!("{other}"),
                        }
                    }
                    world.pass(Duration::from_millis(2)).await;
                };
                longest = longest.max(world.now() - began);
                let count = counts.entry(id).or_default();
                *count += 1;
                assert_eq!(answer, *count, "each has happened once");
            }
            world.pass(Duration::from_millis(50)).await;
        }
        assert!(!c.host.shards().is_empty() && sent_on > 0);
        assert!(longest <= 300, "the longest wait was {longest} ms");
    })
    .await;
}

/// Counts for whichever host asks.
struct Till;

#[derive(serde::Serialize, serde::Deserialize)]
struct Add;

impl StableInterface for Till {
    const NAME: &'static str = "till";
    type Error = ContextError;
}

impl Handle<Add> for Till {
    type Reply = i64;

    async fn handle(&mut self, cx: &mut Context, _: Add) -> Result<i64, ContextError> {
        let count = cx.get("n").await?.unwrap_or(0) + 1;
        cx.put("n", &count)?;
        Ok(count)
    }
}

#[tokio::test(start_paused = true)]
async fn every_host_answers_for_every_id_while_one_joins_and_one_drains() {
    in_time(async {
        let (world, network) = (World::in_memory(), MemoryNetwork::new());
        let start = async |name: &str| {
            let mut host = builder(&world, name).transport(network.transport()).settle(2 * SECOND);
            let tills: Interface<Till> = host.interface(|_| Till).forward::<Add>("add").register().unwrap();
            (host.start().await.unwrap(), tills)
        };
        let ((a, at_a), (b, at_b)) = tokio::join!(start("a"), start("b"));
        let mut counted = 0;
        // One answer from each door for each ID, time after time.
        let mut ask = async |doors: &[&Interface<Till>], rounds: u32| {
            for _ in 0..rounds {
                for door in doors {
                    counted += 1;
                    for id in 0..12 {
                        let count = door.request(&format!("id-{id}"), Add).await.unwrap();
                        assert_eq!(count, counted, "each has happened once");
                    }
                    world.pass(Duration::from_millis(20)).await;
                }
            }
        };
        ask(&[&at_a, &at_b], 10).await;
        let (c, at_c) = start("c").await;
        ask(&[&at_a, &at_b, &at_c], 60).await;
        assert!(!c.shards().is_empty(), "it has its part");
        let draining = tokio::spawn(async move { b.drain(10 * SECOND).await });
        ask(&[&at_a, &at_c], 40).await;
        assert!(draining.await.unwrap().released);
        assert_eq!(a.shards().len() + c.shards().len(), SHARDS as usize);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_where_its_shard_is_placed_for_as_long_as_that_host_may_come_to_have_it_and_no_longer() {
    for drains in [false, true] {
        in_time(async {
            let (world, network) = (World::in_memory(), MemoryNetwork::new());
            let start = async |name: &str| {
                let mut host = builder(&world, name).transport(network.transport());
                let tills: Interface<Till> = host.interface(|_| Till).forward::<Add>("add").register().unwrap();
                (host.start().await.unwrap(), tills)
            };
            let ((a, _at_a), (b, _at_b), (c, at_c)) = tokio::join!(start("a"), start("b"), start("c"));
            world.pass(AT_ONCE).await;
            // What is placed elsewhere from here on stays with its owner until the others have settled, and they do not learn it.
            (0..2).for_each(|_| world.store.fail_next(Method::Claim, Fault::Hang));
            let client = FleetClient::new(Arc::new(world.store.clone()), live()).clock(Arc::new(world.clock.clone()));
            assert!(client.cordon("b", true).await.unwrap());
            world.pass(AT_ONCE).await;
            let is_moving = |id: &String| b.owns(id).unwrap() && *c.owner_of(id).unwrap() == *"a";
            let id = (0..).map(|n| format!("id-{n}")).find(is_moving).unwrap();
            let asking = tokio::spawn(async move { at_c.request(&id, Add).await });
            world.pass(AT_ONCE).await;
            assert!(!asking.is_finished() && network.requests() == 1, "it waits at the one that is to have it");
            if drains {
                assert!(a.drain(10 * SECOND).await.released);
            } else {
                world.store.release_hanging();
                world.pass(AT_ONCE).await;
                assert!(asking.is_finished(), "that one has learnt who has it");
            }
            assert_eq!(asking.await.unwrap().unwrap(), 1);
        })
        .await;
    }
}

on_each_store! {
    async fn a_host_that_drains_hands_over_at_once_and_is_gone(world: World) {
        let (a, b) = tokio::join!(start(&world, "a"), start(&world, "b"));
        world.pass(AT_ONCE).await;
        let id = id_at(&b);
        b.probes.request(&id, put("k", 7)).await.unwrap();
        let drained = b.host.drain(SECOND).await;
        assert!(drained.released);
        world.pass(AT_ONCE).await;
        assert!(is_whole(&[&a]), "not at the next look by the clock");
        assert_eq!(a.probes.request(&id, get("k")).await.unwrap(), Some(7));
        assert_eq!(names(&a), [("a".to_owned(), MemberState::Up)]);
    }
}

#[tokio::test(start_paused = true)]
async fn shards_that_become_free_while_a_claim_is_under_way_are_claimed_when_that_is_answered() {
    let world = World::in_memory();
    let (a, b) = tokio::join!(start(&world, "a"), start(&world, "b"));
    world.pass(AT_ONCE).await;
    let id = id_at(&b);
    let running = tokio::spawn({
        let probes = b.probes.clone();
        async move { probes.request(&id, wait(SECOND)).await }
    });
    world.settle().await;
    // The store refuses what b still has, and that is heard when b has released it.
    world.store.fail_next(Method::Claim, Fault::HangAfter);
    assert_eq!(b.host.drain(10 * SECOND).await.unfinished, 0);
    running.await.unwrap().unwrap();
    world.pass(AT_ONCE).await;
    assert!(!is_whole(&[&a]), "the claim is under way");
    world.store.release_hanging();
    world.pass(AT_ONCE).await;
    assert!(is_whole(&[&a]), "not at the next look by the clock");
}

on_each_store! {
    async fn while_a_host_drains_the_others_know_that_it_leaves(world: World) {
        let (a, b) = tokio::join!(start(&world, "a"), start(&world, "b"));
        world.pass(AT_ONCE).await;
        let id = id_at(&b);
        let running = tokio::spawn({
            let probes = b.probes.clone();
            async move { probes.request(&id, wait(5 * SECOND)).await }
        });
        world.settle().await;
        let host = Arc::new(b.host);
        let draining = tokio::spawn({ let host = host.clone(); async move { host.drain(10 * SECOND).await } });
        world.pass(AT_ONCE).await;
        assert_eq!(names(&a), [("a".to_owned(), MemberState::Up), ("b".to_owned(), MemberState::Leaving)]);
        assert!(a.host.shards().len() < SHARDS as usize, "a living owner keeps what it has until it is done");
        running.await.unwrap().unwrap();
        assert_eq!(draining.await.unwrap().unfinished, 0);
        world.pass(AT_ONCE).await;
        assert!(is_whole(&[&a]));
    }
}

on_each_store! {
    async fn a_host_that_starts_and_dies_again_and_again_moves_nothing(world: World) {
        let (a, b) = tokio::join!(start(&world, "a"), start(&world, "b"));
        world.pass(AT_ONCE).await;
        let before = owned(&[&a, &b]);
        for _ in 0..20 {
            let c = start(&world, "c").await;
            world.pass(SECOND).await;
            assert!(c.host.shards().is_empty());
            c.crash();
            world.pass(SECOND).await;
        }
        assert_eq!(owned(&[&a, &b]), before);
        assert!(a.host.is_ready(Duration::ZERO) && b.host.is_ready(Duration::ZERO));
    }
}

on_each_store! {
    async fn a_cordoned_host_gives_its_shards_away_and_stays_and_has_them_back_afterwards(world: World) {
        let (a, b) = tokio::join!(start(&world, "a"), start(&world, "b"));
        // Both have settled.
        world.pass(2 * LEASE).await;
        let before = owned(&[&a, &b]);
        let client = FleetClient::new(Arc::new(world.store.clone()), live()).clock(Arc::new(world.clock.clone()));
        assert!(!client.cordon("nobody", true).await.unwrap());
        assert!(client.cordon("b", true).await.unwrap());
        world.pass(AT_ONCE).await;
        assert!(is_whole(&[&a]) && b.host.shards().is_empty());
        assert!(b.host.health() == Health::Running && b.host.is_ready(Duration::ZERO), "it is a door");
        assert_eq!(names(&a)[1], ("b".to_owned(), MemberState::Cordoned));
        let id = id_at(&a);
        let refused = b.probes.request(&id, life()).await.unwrap_err();
        assert!(matches!(&refused, RequestError::NotOwner { holder } if **holder == *"a"), "{refused}");
        assert!(client.cordon("b", false).await.unwrap());
        world.pass(AT_ONCE).await;
        assert_eq!(owned(&[&a, &b]), before);
    }
}

#[tokio::test(start_paused = true)]
async fn shards_of_which_a_host_hears_late_or_never_that_they_are_its_own_go_where_they_belong_by_then() {
    for fault in [Fault::FailAfter, Fault::HangAfter] {
        in_time(async {
            let world = World::in_memory();
            let (a, b) = tokio::join!(start(&world, "a"), start(&world, "b"));
            // Both have settled.
            world.pass(2 * LEASE).await;
            let before = owned(&[&a, &b]);
            let client = FleetClient::new(Arc::new(world.store.clone()), live()).clock(Arc::new(world.clock.clone()));
            (0..100).for_each(|_| world.store.fail_next(Method::Claim, fault));
            assert!(client.cordon("b", true).await.unwrap());
            // Long enough for a claim after the one that came too early.
            world.pass(LEASE / 3 + SECOND).await;
            assert!(
                b.host.shards().is_empty() && owned(&[&a])[0] == before[0],
                "they are claimed, and nobody has heard"
            );
            assert!(client.cordon("b", false).await.unwrap());
            world.pass(AT_ONCE).await;
            world.store.heal();
            world.store.release_hanging();
            world.pass(LEASE).await;
            assert_eq!(owned(&[&a, &b]), before);
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn shards_that_a_host_is_granted_as_it_begins_to_drain_are_free_when_it_has() {
    for fault in [Fault::FailAfter, Fault::HangAfter] {
        in_time(async {
            let world = World::in_memory();
            let (a, b) = tokio::join!(start(&world, "a"), start(&world, "b"));
            // Both have settled.
            world.pass(2 * LEASE).await;
            let client = FleetClient::new(Arc::new(world.store.clone()), live()).clock(Arc::new(world.clock.clone()));
            (0..100).for_each(|_| world.store.fail_next(Method::Claim, fault));
            assert!(client.cordon("b", true).await.unwrap());
            world.pass(LEASE / 3 + SECOND).await;
            assert!(b.host.shards().is_empty(), "they are claimed, and nobody has heard");
            world.store.heal();
            assert!(client.cordon("b", false).await.unwrap());
            let (drained, ()) = tokio::join!(a.host.drain(LEASE / 2), async {
                world.pass(AT_ONCE).await;
                world.store.release_hanging();
                world.pass(SECOND).await;
            });
            assert!(drained.released);
            world.pass(AT_ONCE).await;
            assert_eq!(b.host.shards().len(), SHARDS as usize, "nobody waits for the lease of one that has left");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn shards_are_handed_over_in_batches_and_handlers_that_run_end_first() {
    in_time(async {
        let world = World::in_memory();
        let a = world.launch(builder(&world, "a").handoff_batch(4).settle(SECOND), |probes| probes).await;
        let b = start(&world, "b").await;
        world.pass(SECOND / 2).await;
        assert!(b.host.shards().is_empty());
        // One that runs longer than a shard waits is cut off, and what it had written is not half there.
        let of_b = (0..).map(|n| format!("id-{n}")).filter(|id| &*a.host.owner_of(id).unwrap() == "b");
        let ids: Vec<String> = of_b.take(2).collect();
        let ask = |id: &str, time: Duration| {
            let (probes, id) = (a.probes.clone(), id.to_owned());
            tokio::spawn(async move {
                let nap = act(move |me, cx| {
                    let sleep = me.sleep(time);
                    cx.put("slept", &1).unwrap();
                    Box::pin(async move {
                        sleep.await;
                        Ok(())
                    })
                });
                probes.request(&id, nap).await
            })
        };
        let (short, long) = (ask(&ids[0], SECOND * 3 / 4), ask(&ids[1], 20 * SECOND));
        world.pass(10 * SECOND).await;
        assert!(is_whole(&[&a, &b]) && !b.host.shards().is_empty());
        short.await.unwrap().unwrap();
        let cut_off = long.await.unwrap().unwrap_err();
        assert!(!matches!(cut_off, RequestError::Handler(..)), "{cut_off}");
        assert_eq!(b.probes.request(&ids[0], get("slept")).await.unwrap(), Some(1));
        assert_eq!(b.probes.request(&ids[1], get("slept")).await.unwrap(), None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_fleet_works_with_any_time_to_settle_to_gather_and_to_hand_over() {
    for time in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
        in_time(async {
            let world = World::in_memory();
            let member = |name| {
                let host = builder(&world, name).settle(time).gather(time).handoff_timeout(time).start_timeout(SECOND);
                world.launch(host.handoff_batch(usize::MAX), |probes| probes)
            };
            let a = member("a").await;
            world.pass(2 * SECOND).await;
            let b = member("b").await;
            world.pass(2 * SECOND).await;
            assert!(is_whole(&[&a, &b]));
            assert_eq!(b.host.shards().is_empty(), time == Duration::MAX, "settled after {time:?}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_could_not_be_released_is_released_when_the_store_is_back() {
    in_time(async {
        let world = World::in_memory();
        let a = world.launch(builder(&world, "a").settle(SECOND), |probes| probes).await;
        let b = start(&world, "b").await;
        for fault in [Fault::FailBefore, Fault::FailAfter, Fault::Hang] {
            world.store.fail_next(Method::Release, fault);
        }
        world.pass(20 * SECOND).await;
        assert!(is_whole(&[&a, &b]) && !b.host.shards().is_empty());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_dies_at_any_store_call_while_it_hands_over_leaves_everything_to_the_next() {
    in_time(async {
        let ids: Vec<String> = (0..12).map(|n| format!("id-{n}")).collect();
        let mut points = 0;
        for is_done in [false, true] {
            for k in 0.. {
                let world = World::in_memory();
                let own = FaultStore::seeded(Arc::new(world.store.clone()), Arc::new(world.clock.clone()), 1);
                let host = Host::builder("a", live()).store(own.clone()).lease(LEASE).settle(SECOND).handoff_batch(4);
                let a = world.launch(world.equip(host), |probes| probes).await;
                for id in &ids {
                    assert_eq!(a.probes.request(id, count("n")).await.unwrap(), 1);
                }
                let b = start(&world, "b").await;
                world.pass(SECOND - AT_ONCE).await;
                assert!(b.host.shards().is_empty());
                // From here on it dies: before a call, or between the call and its answer.
                let at = own.begun() + k;
                own.hang_from(at + u64::from(is_done));
                if is_done {
                    own.fail_at(at, Fault::HangAfter);
                }
                world.pass(SECOND).await;
                let is_cut = own.begun() > at;
                assert!(is_cut || !b.host.shards().is_empty(), "it hands over within these calls");
                a.crash();
                world.pass(LEASE + SECOND).await;
                assert!(is_whole(&[&b]), "call {k}, done: {is_done}");
                for id in &ids {
                    assert_eq!(b.probes.request(id, count("n")).await.unwrap(), 2, "call {k}, done: {is_done}: {id}");
                }
                if !is_cut {
                    break;
                }
                points += 1;
            }
        }
        assert!(points > 10, "only {points} calls");
    })
    .await;
}

on_each_store! {
    async fn a_fleet_goes_from_a_list_of_hosts_to_live_membership_and_back_when_all_have_stopped(world: World) {
        let list = Fleet::new(["a", "b"], SHARDS).unwrap();
        let a = world.launch(world.member("a", &list).lease(LEASE), |probes| probes).await;
        let id = id_at(&a);
        a.probes.request(&id, put("k", 1)).await.unwrap();
        let refused = builder(&world, "b").start().await.unwrap_err();
        let StartError::Store(cause @ StoreError::OtherPlacement { .. }) = &refused else { panic!("{refused}") };
        let text = cause.to_string();
        assert!(text.contains("live membership") && text.contains("a list of hosts") && text.contains("stop all"), "{text}");
        assert!(a.host.drain(SECOND).await.released);

        let pod = start(&world, "pod").await;
        assert_eq!(pod.probes.request(&id, get("k")).await.unwrap(), Some(1));
        let refused = world.member("a", &list).lease(LEASE).start().await.unwrap_err();
        assert!(matches!(refused, StartError::Store(StoreError::OtherPlacement { .. })), "{refused}");
        assert!(pod.host.drain(SECOND).await.released);

        let a = world.launch(world.member("a", &list).lease(LEASE), |probes| probes).await;
        assert_eq!(a.probes.request(&id, get("k")).await.unwrap(), Some(1));
    }
}

#[tokio::test]
async fn a_live_fleet_is_refused_without_a_store_and_a_host_without_a_name() {
    let refused = Host::builder("a", live()).start().await.unwrap_err().to_string();
    assert!(refused.contains("needs a store"), "{refused}");
    let world = World::in_memory();
    for name in ["", "a\nb", &"x".repeat(256)] {
        let refused = world.member(name, &live()).start().await.unwrap_err().to_string();
        assert!(refused.contains("name of a host"), "{refused}");
    }
}

on_each_store! {
    async fn what_a_host_of_a_growing_list_is_to_have_is_its_own_when_the_other_lets_go_of_it(world: World) {
        let (small, large) = (Fleet::new(["zero"], 32).unwrap(), Fleet::new(["zero", "one"], 32).unwrap());
        let zero = world.launch(world.member("zero", &small).lease(LEASE), |probes| probes).await;
        let one = world.launch(world.member("one", &large).lease(LEASE), |probes| probes).await;
        assert!(one.host.shards().is_empty() && one.host.is_ready(Duration::ZERO), "a deployment may go on");
        let id = (0..).map(|n| format!("id-{n}")).find(|id| &*one.host.owner_of(id).unwrap() == "one").unwrap();
        let refused = one.probes.request(&id, life()).await.unwrap_err();
        assert!(matches!(&refused, RequestError::NotOwner { holder } if **holder == *"zero"), "{refused}");
        assert!(zero.host.drain(SECOND).await.released);
        world.pass(AT_ONCE).await;
        assert!(one.host.owns(&id).unwrap(), "not at the next look by the clock");
        let _zero = world.launch(world.member("zero", &large).lease(LEASE), |probes| probes).await;
        one.probes.request(&id, life()).await.unwrap();
    }
}
