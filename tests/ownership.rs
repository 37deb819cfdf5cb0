//! Ownership of shards: several hosts over one store, one after the other and at once.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use stable_interfaces::testing::{Answer as CallAnswer, Fault, FaultStore, Method};
use stable_interfaces::{Closed, Ended, Fleet, Health, MemoryStore, RequestError, StartError, StoreError};
use system_tests::{Failed, Probe, START, Site, World, act, count, get, in_time, life, on_each_store, put, wait};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(15);

fn fleet(hosts: u32) -> Fleet {
    Fleet::expand(&format!("host-{{0..{}}}", hosts - 1), 64).unwrap()
}

/// An ID that `fleet` gives to `host`.
fn id_of(fleet: &Fleet, host: &str) -> String {
    (0..).map(|i| format!("id-{i}")).find(|id| fleet.locate(id).unwrap().host == host).unwrap()
}

async fn start(world: &World, name: &str, fleet: &Fleet) -> Site {
    world.launch(world.member(name, fleet).lease(LEASE), |probes| probes).await
}

on_each_store! {
    async fn each_host_serves_its_own_instances_and_names_the_owner_of_the_others(world: World) {
        let fleet = fleet(2);
        let (zero, one) = (start(&world, "host-0", &fleet).await, start(&world, "host-1", &fleet).await);
        let (a, b) = (id_of(&fleet, "host-0"), id_of(&fleet, "host-1"));
        zero.probes.request(&a, put("k", 1)).await.unwrap();
        one.probes.request(&b, put("k", 2)).await.unwrap();
        let error = zero.probes.request(&b, put("k", 3)).await.unwrap_err();
        assert!(matches!(&error, RequestError::NotOwner { holder } if **holder == *"host-1"), "{error}");
        assert!(error.is_retryable());
        assert!(zero.host.owns(&a).unwrap() && !zero.host.owns(&b).unwrap());
        assert!([&zero, &one].iter().all(|site| *site.host.owner_of(&a).unwrap() == *"host-0"));
        assert_eq!(one.probes.request(&b, get("k")).await.unwrap(), Some(2));
    }
}

on_each_store! {
    async fn a_host_configured_for_another_shard_count_does_not_start_and_says_both_numbers(world: World) {
        let _first = start(&world, "host-0", &fleet(2)).await;
        let other = Fleet::expand("host-{0..1}", 128).unwrap();
        let error = world.member("host-1", &other).start().await.unwrap_err();
        let StartError::Store(cause) = &error else { panic!("{error}") };
        assert!(matches!(cause, StoreError::Mismatch { .. }));
        let text = cause.to_string();
        assert!(text.contains("128 shards") && text.contains("holds 64"), "{text}");
    }
}

on_each_store! {
    async fn a_second_host_of_the_same_name_replaces_the_first_whose_writes_never_land(world: World) {
        let fleet = fleet(2);
        let a = id_of(&fleet, "host-0");
        let old = start(&world, "host-0", &fleet).await;
        old.probes.request(&a, count("n")).await.unwrap();
        old.probes.set_alarm(&a, "x", world.at(60_000), &()).await.unwrap();
        // A write of the old one is still on its way when the new one starts.
        world.store.fail_next(Method::Commit, Fault::Delay(2 * SECOND));
        let late = tokio::spawn({
            let (probes, a) = (old.probes.clone(), a.clone());
            async move { probes.request(&a, put("late", 1)).await }
        });
        world.settle().await;
        let new = start(&world, "host-0", &fleet).await;
        assert_eq!(new.probes.request(&a, count("n")).await.unwrap(), 2);

        let error = late.await.unwrap().unwrap_err();
        assert!(matches!(error, RequestError::Fenced | RequestError::Replaced | RequestError::Unknown(_)), "{error}");
        assert!(old.probes.request(&a, count("n")).await.is_err());
        world.pass(LEASE).await;
        assert_eq!((old.host.health(), new.host.health()), (Health::Replaced, Health::Running));
        let error = old.probes.request(&a, life()).await.unwrap_err();
        assert!(matches!(error, RequestError::Replaced) && error.is_retryable(), "{error}");
        assert_eq!(old.probes.running(), 0);

        world.pass(120 * SECOND).await;
        assert_eq!(world.script.fired_ids(), ["x"], "fired by the new one alone");
        assert_eq!((old.host.health(), new.host.health()), (Health::Replaced, Health::Running), "no duel");
        assert_eq!(new.probes.request(&a, get("late")).await.unwrap(), None);
        assert_eq!(new.probes.request(&a, get("n")).await.unwrap(), Some(2));
        let drained = old.host.drain(SECOND).await;
        assert_eq!((drained.unfinished, drained.released), (0, false));
        assert_eq!(new.probes.request(&a, get("n")).await.unwrap(), Some(2), "a replaced host releases nothing");
    }
}

#[tokio::test(start_paused = true)]
async fn a_replaced_host_stops_wholly_at_its_next_write() {
    for local in [false, true] {
        let world = World::in_memory();
        let fleet = fleet(1);
        let launch = || async {
            let builder = if local { world.local() } else { world.member("host-0", &fleet).lease(300 * SECOND) };
            world.launch(builder, |probes| probes).await
        };
        let old = launch().await;
        old.probes.request("a", life()).await.unwrap();
        old.probes.request("b", life()).await.unwrap();
        let new = launch().await;
        let error = in_time(old.probes.request("a", put("k", 1))).await.unwrap_err();
        assert!(matches!(error, RequestError::Fenced | RequestError::Replaced), "{error}");
        world.pass(2 * SECOND).await;
        assert_eq!(old.host.health(), Health::Replaced, "local: {local}");
        let error = old.probes.request("b", life()).await.unwrap_err();
        assert!(matches!(error, RequestError::Replaced), "not answered from memory: {error}");
        drop(new);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_replaced_host_cuts_off_is_told_that_it_was_replaced() {
    let world = World::in_memory();
    let old = start(&world, "host-0", &fleet(1)).await;
    let client = old.probes.connect("b", "").await.unwrap();
    let ask = |act| {
        let probes = old.probes.clone();
        tokio::spawn(async move { probes.request("a", act).await })
    };
    let running = ask(act(|_, _| Box::pin(std::future::pending::<Result<(), Failed>>())));
    world.settle().await;
    let waiting = ask(act(|_, _| Box::pin(async { Ok(()) })));
    let _new = start(&world, "host-0", &fleet(1)).await;
    world.pass(LEASE).await;
    assert_eq!(old.host.health(), Health::Replaced);

    let error = in_time(running).await.unwrap().unwrap_err();
    let RequestError::Unknown(cause) = &error else { panic!("{error}") };
    assert!(matches!(**cause, RequestError::Replaced), "{cause}");
    let error = in_time(waiting).await.unwrap().unwrap_err();
    assert!(matches!(error, RequestError::Replaced), "it has not begun: {error}");
    assert_eq!(client.recv().await, Err(Closed::Lost));
    assert_eq!(client.send(1).await, Err(Closed::Lost));
}

#[tokio::test(start_paused = true)]
async fn run_until_says_that_the_host_was_replaced_and_the_server_beside_it_stops() {
    let world = World::in_memory();
    let old = start(&world, "host-0", &fleet(1)).await;
    let _new = start(&world, "host-0", &fleet(1)).await;
    let serve = tokio::spawn(old.host.stopping());
    let ended = in_time(old.host.run_until(std::future::pending::<()>())).await;
    assert_eq!(ended, Err(Ended::Replaced));
    in_time(serve).await.unwrap();
    assert!(world.now() < 20_000, "{}", world.now());
}

on_each_store! {
    async fn a_drained_hosts_shards_are_free_at_once(world: World) {
        let (small, large) = (fleet(1), fleet(2));
        let zero = start(&world, "host-0", &small).await;
        let moving = id_of(&large, "host-1");
        zero.probes.request(&moving, count("n")).await.unwrap();
        zero.probes.set_alarm(&moving, "x", world.at(600_000), &()).await.unwrap();
        let drained = zero.host.drain(SECOND).await;
        assert!(drained.released);
        let before = world.now();
        let one = start(&world, "host-1", &large).await;
        assert_eq!(one.probes.request(&moving, count("n")).await.unwrap(), 2);
        assert!(world.now() - before < 100, "no lease was waited for");
        assert_eq!(one.probes.alarms(&moving).await.unwrap().len(), 1);
    }
}

on_each_store! {
    async fn a_growing_fleet_waits_for_shards_that_are_still_held_and_names_their_holder(world: World) {
        let (small, large) = (fleet(1), fleet(2));
        let zero = start(&world, "host-0", &small).await;
        let moving = id_of(&large, "host-1");
        zero.probes.request(&moving, count("n")).await.unwrap();
        let one = start(&world, "host-1", &large).await;
        let error = one.probes.request(&moving, count("n")).await.unwrap_err();
        assert!(matches!(&error, RequestError::NotOwner { holder } if **holder == *"host-0"), "{error}");
        assert!(!one.host.owns(&moving).unwrap());
        world.pass(10 * LEASE).await;
        assert_eq!(zero.probes.request(&moving, count("n")).await.unwrap(), 2, "a living lease is respected");

        zero.host.drain(SECOND).await;
        let _zero = start(&world, "host-0", &large).await;
        world.pass(LEASE).await;
        assert!(one.host.owns(&moving).unwrap(), "claimed in the background");
        assert_eq!(one.probes.request(&moving, count("n")).await.unwrap(), 3);
    }
}

on_each_store! {
    async fn a_crashed_hosts_shards_are_taken_over_after_its_lease_and_not_before(world: World) {
        let (small, large) = (fleet(1), fleet(2));
        let zero = start(&world, "host-0", &small).await;
        let moving = id_of(&large, "host-1");
        zero.probes.request(&moving, count("n")).await.unwrap();
        zero.probes.set_alarm(&moving, "x", world.at(1_000), &()).await.unwrap();
        zero.crash();
        let one = start(&world, "host-1", &large).await;
        world.pass(LEASE - 2 * SECOND).await;
        assert!(!one.host.owns(&moving).unwrap());
        assert!(world.script.fired().is_empty());
        world.pass(LEASE).await;
        assert!(one.host.owns(&moving).unwrap());
        assert_eq!(one.probes.request(&moving, count("n")).await.unwrap(), 2);
        assert_eq!(world.script.fired_ids(), ["x"], "an alarm that fell due in between fires late, not never");
    }
}

on_each_store! {
    async fn a_crashed_host_that_starts_again_has_its_shards_at_once(world: World) {
        let fleet = fleet(2);
        let a = id_of(&fleet, "host-0");
        let zero = start(&world, "host-0", &fleet).await;
        zero.probes.request(&a, count("n")).await.unwrap();
        zero.crash();
        let before = world.now();
        let zero = start(&world, "host-0", &fleet).await;
        assert_eq!(zero.probes.request(&a, count("n")).await.unwrap(), 2);
        assert!(world.now() - before < 100);
    }
}

/// Two hosts, and a shard of the first that it loses to the second because it could not renew its lease.
async fn lose_a_shard() -> (World, Site, Site, FaultStore, String) {
    let world = World::in_memory();
    let (small, large) = (fleet(1), fleet(2));
    let moving = id_of(&large, "host-1");
    let own = FaultStore::seeded(Arc::new(world.store.clone()), Arc::new(world.clock.clone()), 2);
    let zero = world
        .launch(
            world.equip(stable_interfaces::Host::builder("host-0", small).store(own.clone())).lease(LEASE),
            |probes| probes,
        )
        .await;
    zero.probes.request(&moving, put("k", 1)).await.unwrap();
    own.set_down(true);
    world.pass(2 * LEASE).await;
    let one = start(&world, "host-1", &large).await;
    assert_eq!(one.probes.request(&moving, get("k")).await.unwrap(), Some(1));
    (world, zero, one, own, moving)
}

#[tokio::test(start_paused = true)]
async fn a_host_that_cannot_renew_stops_serving_before_its_lease_is_over() {
    let (_world, zero, _one, _own, moving) = lose_a_shard().await;
    let error = zero.probes.request(&moving, life()).await.unwrap_err();
    assert!(matches!(error, RequestError::LeaseLost), "not even from memory: {error}");
    assert!(error.is_retryable() && !error.may_have_happened());
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_counted_from_when_its_renewal_was_sent_however_late_the_answer_comes() {
    let world = World::in_memory();
    let zero = start(&world, "host-0", &fleet(1)).await;
    zero.probes.request("a", put("k", 1)).await.unwrap();
    let renewals = world.store.calls(Method::Renew);
    world.store.fail_next(Method::Renew, Fault::SlowAnswer(4 * SECOND));
    while world.store.calls(Method::Renew) == renewals {
        world.pass(SECOND / 10).await;
    }
    let sent = world.now();
    world.pass(5 * SECOND).await;
    world.store.set_down(true);
    assert!(zero.probes.request("a", life()).await.is_ok());
    // By the answer it would last until then and beyond.
    world.pass(LEASE - 6 * SECOND).await;
    assert!(world.now() - sent < 15_000);
    let error = zero.probes.request("a", life()).await.unwrap_err();
    assert!(matches!(error, RequestError::LeaseLost), "{error}");
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_a_host_serves_again_what_nobody_took() {
    let world = World::in_memory();
    let fleet = fleet(1);
    let zero = start(&world, "host-0", &fleet).await;
    zero.probes.request("a", put("k", 1)).await.unwrap();
    zero.probes.set_alarm("a", "x", world.at(40_000), &()).await.unwrap();
    world.store.set_down(true);
    world.pass(60 * SECOND).await;
    let error = zero.probes.request("a", get("k")).await.unwrap_err();
    assert!(matches!(error, RequestError::LeaseLost) && error.is_retryable(), "nobody has taken over: {error}");
    assert!(world.script.fired().is_empty(), "nothing fires without a lease");
    world.store.heal();
    world.pass(5 * SECOND).await;
    assert_eq!(zero.probes.request("a", get("k")).await.unwrap(), Some(1));
    assert_eq!(world.script.fired_ids(), ["x"]);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_lost_a_shard_forgets_its_instances_and_names_the_new_owner_after_the_next_renewal() {
    let (world, zero, one, own, moving) = lose_a_shard().await;
    own.heal();
    world.pass(LEASE).await;
    assert_eq!(zero.host.health(), Health::Running, "another host's takeover is no replacement");
    let error = zero.probes.request(&moving, life()).await.unwrap_err();
    assert!(matches!(&error, RequestError::NotOwner { holder } if **holder == *"host-1"), "{error}");
    assert!(!zero.probes.is_running(&moving), "what it had in memory is out of date");
    one.probes.request(&moving, get("k")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_host_that_lost_a_shard_drains_at_once() {
    let (world, zero, _one, own, _moving) = lose_a_shard().await;
    own.heal();
    world.pass(LEASE).await;
    let before = world.now();
    let drained = in_time(zero.host.drain(60 * SECOND)).await;
    assert_eq!((drained.unfinished, drained.released), (0, true));
    assert!(world.now() - before < 100);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_waited_past_the_end_of_the_lease_is_not_handled() {
    let world = World::in_memory();
    let zero = start(&world, "host-0", &fleet(1)).await;
    world.store.set_chance(Method::Renew, Fault::FailBefore, 1.0);
    world.pass(10 * SECOND).await;
    let slow = tokio::spawn({
        let probes = zero.probes.clone();
        async move { probes.request("a", wait(10 * SECOND)).await }
    });
    world.settle().await;
    let behind = tokio::spawn({
        let probes = zero.probes.clone();
        let noted = act(|me: &mut Probe, _| {
            Box::pin(async {
                me.script.note("handled");
                Ok::<_, Failed>(())
            })
        });
        async move { probes.request("a", noted).await }
    });
    let error = behind.await.unwrap().unwrap_err();
    assert!(matches!(error, RequestError::LeaseLost), "{error}");
    assert!(world.script.notes().is_empty(), "somebody else may own the instance by now");
    let error = slow.await.unwrap().unwrap_err();
    assert!(matches!(error, RequestError::LeaseLost), "nor is an answer released: {error}");
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_committed_before_its_hosts_lease_ran_out_is_not_denied() {
    let world = World::in_memory();
    let zero = start(&world, "host-0", &fleet(1)).await;
    world.store.set_chance(Method::Renew, Fault::FailBefore, 1.0);
    world.pass(10 * SECOND).await;
    let half = act::<()>(|me: &mut Probe, cx| {
        let long = me.sleep(10 * SECOND);
        Box::pin(async move {
            cx.put("k", &1)?;
            cx.commit().await?;
            long.await;
            Ok(())
        })
    });
    let error = zero.probes.request("a", half).await.unwrap_err();
    let RequestError::Unknown(cause) = &error else { panic!("{error}") };
    assert!(matches!(**cause, RequestError::LeaseLost) && !error.is_retryable(), "{cause}");
}

#[tokio::test(start_paused = true)]
async fn start_tries_again_while_the_store_is_down_and_gives_up_at_its_timeout() {
    let world = World::in_memory();
    world.store.set_down(true);
    let heal = {
        let (store, clock) = (world.store.clone(), world.clock.clone());
        tokio::spawn(async move {
            stable_interfaces::clock::Clock::sleep(&clock, 20 * SECOND).await;
            store.heal();
        })
    };
    let site = start(&world, "host-0", &fleet(1)).await;
    assert!((20_000..22_500).contains(&world.now()), "{}", world.now());
    heal.await.unwrap();
    site.probes.request("a", put("k", 1)).await.unwrap();
    drop(site);

    world.store.set_down(true);
    let before = world.now();
    let error = world.member("host-0", &fleet(1)).start_timeout(10 * SECOND).start().await.unwrap_err();
    assert!(matches!(error, StartError::Store(StoreError::NotApplied(_))), "{error}");
    assert!((10_000..12_500).contains(&(world.now() - before)), "{}", world.now() - before);
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_answer_is_lost_is_repeated_and_grants_the_same() {
    let world = World::in_memory();
    world.store.fail_next(Method::Claim, Fault::FailAfter);
    world.store.fail_next(Method::Claim, Fault::HangAfter);
    let site = start(&world, "host-0", &fleet(1)).await;
    site.probes.request("a", put("k", 1)).await.unwrap();
    assert_eq!(world.store.calls(Method::Claim), 3);
    assert!(world.dump().shards.values().all(|shard| shard.epoch.0 == 1), "no epoch was spent on a repeat");
    let hung = world.store.log().into_iter().find(|call| call.fault == Some(Fault::HangAfter)).unwrap();
    assert_eq!(hung.answer, CallAnswer::Dropped);
}

#[tokio::test(start_paused = true)]
async fn the_hosts_clock_may_differ_from_the_stores_without_changing_who_owns_what() {
    let world = World::in_memory();
    // The wall alone: leases run by time elapsed.
    world.clock.set(START + 3_600 * SECOND);
    let zero = start(&world, "host-0", &fleet(1)).await;
    zero.probes.request("a", put("k", 1)).await.unwrap();
    world.clock.step(-7_200_000);
    world.pass(10 * LEASE).await;
    assert_eq!(zero.probes.request("a", get("k")).await.unwrap(), Some(1));
    world.clock.step(100_000_000);
    world.pass(10 * LEASE).await;
    assert_eq!(zero.probes.request("a", get("k")).await.unwrap(), Some(1));
    assert_eq!(zero.host.health(), Health::Running);
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_clock_is_too_far_from_the_stores_does_not_start_and_says_by_how_much() {
    let world = World::in_memory();
    let clock = Arc::new(world.clock.separate());
    let store = Arc::new(MemoryStore::with_clock(clock.clone()));
    let member = || world.member("host-0", &fleet(1)).shared_store(store.clone());
    for ahead in [61_000, -61_000] {
        clock.set(world.at(world.now() + ahead));
        let error = member().start().await.unwrap_err();
        let StartError::ClockSkew { skew, limit } = &error else { panic!("{error}") };
        assert!(error.to_string().contains("MemoryStore::with_clock"), "{error}");
        assert!(skew.abs_diff(61 * SECOND) < SECOND && *limit == 60 * SECOND, "{error}");
        let started = member().max_clock_skew(120 * SECOND).start().await.unwrap();
        assert_eq!(started.health(), Health::Running);
    }
    clock.set(world.at(world.now() + 59_000));
    assert_eq!(member().start().await.unwrap().health(), Health::Running);
}
