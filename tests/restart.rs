//! A process ends anywhere, and another begins on what it left.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use stable_interfaces::testing::{Method, SimClock};
use stable_interfaces::{Fleet, Host, MemoryStore, Store};
use system_tests::{Probe, START, World, act, get, life, now_or_never, on_each_store, put, spawn};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

on_each_store! {
    async fn after_a_crash_everything_acknowledged_is_there_and_goes_on(world: World) {
        let mut site = world.start().await;
        for i in 0..50 {
            let id = format!("i-{i}");
            site.probes.request(&id, put("k", i)).await.unwrap();
            site.probes.set_alarm(&id, "x", world.at(10_000 + 100 * i), &i).await.unwrap();
        }
        // One that is being handled, and one request, when the process ends.
        let half = act(|me: &mut Probe, cx| {
            let sleep = me.sleep(60 * SECOND);
            Box::pin(async move {
                cx.put("k", &-1)?;
                sleep.await;
                Ok(())
            })
        });
        let running = spawn(&site.probes, "i-7", half);
        world.pass(Duration::from_millis(12_050)).await;
        assert_eq!(world.script.fired().len(), 20, "all up to then, but for the busy one's");
        site.crash();
        assert!(running.await.unwrap().unwrap_err().may_have_happened());
        world.reopen().await;
        world.pass(HOUR).await;
        site = world.start().await;
        world.pass(5 * SECOND).await;
        let mut fired: Vec<_> = world.script.fired().into_iter().map(|fired| fired.instance).collect();
        fired.sort_unstable();
        fired.dedup();
        assert_eq!((fired.len(), world.script.fired().len()), (50, 50), "each once");
        for i in 0..50 {
            assert_eq!(site.probes.request(&format!("i-{i}"), get("k")).await.unwrap(), Some(i));
        }
    }
}

on_each_store! {
    async fn an_alarm_set_after_a_restart_takes_the_place_of_one_set_before(world: World) {
        let mut site = world.start().await;
        for i in 0..20 {
            site.probes.set_alarm("a", "x", world.at(1_000_000 + i), &"old").await.unwrap();
        }
        site.crash();
        world.reopen().await;
        site = world.start().await;
        site.probes.set_alarm("a", "x", world.at(5_000), &"new").await.unwrap();
        let alarms = site.probes.alarms("a").await.unwrap();
        assert_eq!((alarms.len(), alarms[0].meta::<String>().unwrap().as_str()), (1, "new"));
        world.pass(HOUR).await;
        assert_eq!(world.script.fired().len(), 1);
        site.probes.set_alarm("a", "x", world.at(0), &()).await.unwrap();
        site.crash();
        world.reopen().await;
        site = world.start().await;
        site.probes.cancel_alarm("a", "x").await.unwrap();
        assert!(site.probes.alarms("a").await.unwrap().is_empty());
    }
}

on_each_store! {
    async fn an_alarm_whose_handler_ends_the_process_again_and_again_is_a_dead_letter_and_the_others_lose_nothing(
        world: World
    ) {
        let healthy = Arc::new(AtomicBool::new(false));
        let flag = healthy.clone();
        world.script.on_alarm(move |_, cx, alarm| {
            let kills = alarm.id() == "killer" && !flag.load(Ordering::SeqCst);
            Box::pin(async move {
                if kills {
                    std::future::pending::<()>().await;
                }
                let n = cx.get::<i64>("done").await?.unwrap_or(0) + 1;
                Ok(cx.put("done", &n)?)
            })
        });
        let mut site = world.start().await;
        site.probes.set_alarm("k", "killer", world.at(1_000), &()).await.unwrap();
        for i in 0..20 {
            site.probes.set_alarm(&format!("i-{i}"), "x", world.at(1_000), &()).await.unwrap();
        }
        // The first time nothing is known of it, so the others run beside it.
        world.pass(2 * SECOND).await;
        assert_eq!(world.script.fired().len(), 21);
        for _ in 0..4 {
            site.crash();
            world.reopen().await;
            site = world.start().await;
            world.pass(2 * SECOND).await;
        }
        let dead = site.probes.dead_letters(None, 10).await.unwrap();
        assert_eq!(dead.iter().map(|dead| dead.id()).collect::<Vec<_>>(), ["killer"], "{:?}", world.script.fired());
        assert!(site.probes.alarms("k").await.unwrap().is_empty());
        for i in 0..20 {
            assert_eq!(site.probes.request(&format!("i-{i}"), get("done")).await.unwrap(), Some(1));
        }
        // A day later its cause is mended.
        healthy.store(true, Ordering::SeqCst);
        assert!(site.probes.requeue(&dead[0]).await.unwrap());
        world.pass(2 * SECOND).await;
        assert_eq!(site.probes.request("k", get("done")).await.unwrap(), Some(1));
    }
}

on_each_store! {
    async fn after_a_clean_end_no_mark_is_written_and_after_a_crash_only_for_what_was_overdue(world: World) {
        for (clean, commits_of_overdue) in [(true, 1), (false, 2)] {
            let site = world.start().await;
            let base = world.now();
            site.probes.set_alarm("a", "overdue", world.at(base + 60_000), &()).await.unwrap();
            if clean {
                assert!(site.host.drain(SECOND).await.released);
                drop(site);
            } else {
                site.crash();
            }
            world.reopen().await;
            world.pass(120 * SECOND).await;
            let site = world.start().await;
            world.pass(SECOND).await;
            assert_eq!(world.store.calls(Method::Commit), commits_of_overdue, "clean: {clean}");
            site.probes.set_alarm("a", "new", world.at(world.now() + 1_000), &()).await.unwrap();
            world.pass(2 * SECOND).await;
            assert_eq!(world.store.calls(Method::Commit), commits_of_overdue + 2, "clean: {clean}");
            assert!(site.host.drain(SECOND).await.released);
            drop(site);
            world.reopen().await;
        }
        assert_eq!(world.script.fired_ids(), ["overdue", "new", "overdue", "new"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_dropped_while_it_starts_leaves_nothing_running() {
    let world = World::in_memory();
    for k in 0..3 {
        world.store.hang_from(world.store.begun());
        let mut builder = world.local();
        let probes = builder.interface(world.factory()).register().unwrap();
        let mut start = Box::pin(builder.start());
        assert!(now_or_never(&mut start).await.is_none(), "{k}");
        drop(start);
        assert!(probes.request("a", life()).await.is_err());
        world.store.release_hanging();
        world.settle().await;
    }
    let site = world.start().await;
    site.probes.request("a", put("k", 1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_host_that_does_not_start_lets_its_store_go() {
    let clock = Arc::new(SimClock::new(START));
    let fleet = Fleet::new(["h"], 16).unwrap();
    let world = World::in_memory();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::with_clock(clock.clone()));
    let builder = |name: &str| world.equip(Host::builder(name, fleet.clone()).shared_store(store.clone()));
    // Nobody has started this one.
    let mut never = builder("h");
    let probes = never.interface(world.factory()).register().unwrap();
    drop(never);
    assert!(probes.request("a", life()).await.is_err());
    drop(probes);
    // These cannot start.
    let mut unknown = builder("somebody else");
    unknown.interface(world.factory()).register().unwrap();
    assert!(unknown.start().await.is_err());
    let mut senseless = builder("h").lease(Duration::ZERO);
    senseless.interface(world.factory()).register().unwrap();
    assert!(senseless.start().await.is_err());
    assert_eq!(Arc::strong_count(&store), 1);
}
