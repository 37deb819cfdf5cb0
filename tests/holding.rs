//! Held alarms: the handler has succeeded, and the alarm stays until its instance is done with it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use stable_interfaces::{Context, Fleet};
use system_tests::{Probe, World, act, get, on_each_store, put};

const SECOND: Duration = Duration::from_secs(1);

/// Makes probes hold what is called `held` and count in storage how often it fired.
fn hold(world: &World) {
    world.script.on_alarm(|_, cx, alarm| {
        if alarm.id() == "held" {
            cx.hold_alarm();
        }
        Box::pin(async move {
            let n = cx.get::<i64>("n").await?.unwrap_or(0) + 1;
            Ok(cx.put("n", &n)?)
        })
    });
}

on_each_store! {
    async fn what_the_handler_of_a_held_alarm_recorded_is_durable_and_the_alarm_is_still_there(world: World) {
        hold(&world);
        let site = world.start().await;
        site.probes.set_alarm("a", "held", world.at(0), &"meta").await.unwrap();
        world.pass(100 * SECOND).await;
        assert_eq!(site.probes.request("a", get("n")).await.unwrap(), Some(1));
        let alarms = site.probes.alarms("a").await.unwrap();
        assert_eq!((alarms.len(), alarms[0].attempt(), alarms[0].meta::<String>().unwrap()), (1, 0, "meta".into()));
        site.crash();
        world.reopen().await;
        let site = world.start().await;
        world.pass(SECOND).await;
        assert_eq!(world.script.fired().len(), 2, "it fires again under the next owner");
        assert_eq!(site.probes.request("a", get("n")).await.unwrap(), Some(2));
    }
}

on_each_store! {
    async fn a_held_alarm_ends_when_its_instance_sets_or_cancels_it_from_any_message_or_from_outside(world: World) {
        hold(&world);
        let site = world.start().await;
        for id in ["cancel", "move", "outside", "fire"] {
            site.probes.set_alarm(id, "held", world.at(0), &()).await.unwrap();
        }
        world.pass(SECOND).await;
        assert_eq!(world.script.fired().len(), 4);
        let cancel = act(|_, cx: &mut Context| Box::pin(async move { Ok(cx.cancel_alarm("held")?) }));
        site.probes.request("cancel", cancel).await.unwrap();
        let due = world.at(100_000);
        let again = act(move |_, cx: &mut Context| Box::pin(async move { Ok(cx.set_alarm("held", due, &())?) }));
        site.probes.request("move", again).await.unwrap();
        site.probes.cancel_alarm("outside", "held").await.unwrap();
        assert!(site.probes.fire_now("fire", "held").await.unwrap());
        world.pass(50 * SECOND).await;
        assert_eq!(world.script.fired().len(), 5, "the one that was told to");
        for id in ["cancel", "move", "outside"] {
            site.probes.stop(id).await.unwrap();
        }
        world.pass(40 * SECOND).await;
        assert_eq!(world.script.fired().len(), 5, "nothing is held any more");
        world.pass(20 * SECOND).await;
        let last = world.script.fired().pop().unwrap();
        assert_eq!((last.instance.as_str(), last.at), ("move", 100_000));
    }
}

#[tokio::test(start_paused = true)]
async fn an_alarm_that_its_handler_holds_is_there_and_one_that_it_does_not_is_on_its_way_out() {
    let world = World::in_memory();
    let later = world.at(100_000);
    world.script.on_alarm(move |me, cx, alarm| {
        let (id, script) = (alarm.id().to_owned(), me.script.clone());
        Box::pin(async move {
            if id == "held" {
                cx.hold_alarm();
            }
            let is_set = cx.set_alarm_if_absent(&id, later, &()).await?;
            script.note(format!("{id}: {is_set}"));
            Ok(())
        })
    });
    let site = world.start().await;
    for (n, id) in (0..).zip(["held", "done"]) {
        site.probes.set_alarm("a", id, world.at(n), &()).await.unwrap();
    }
    world.pass(SECOND).await;
    assert_eq!(world.script.notes(), ["held: false", "done: true"]);
    // Not for long: from then on it is set for what is past, and fires again at once.
    world.pass(99 * SECOND + Duration::from_millis(100)).await;
    assert_eq!(world.script.fired_ids()[..3], ["held", "done", "done"]);
}

on_each_store! {
    async fn however_the_incarnation_ends_that_holds_an_alarm_it_fires_again(world: World) {
        hold(&world);
        let site = world.launch(world.local(), |probes| probes.max_instances(1)).await;
        site.probes.set_alarm("a", "held", world.at(0), &()).await.unwrap();
        world.pass(SECOND).await;
        let mut fired = 1;
        let boom = act(|_: &mut Probe, _: &mut Context| Box::pin(async { std::panic::panic_any("boom") }));
        let panicked: system_tests::Answer<()> = site.probes.request("a", boom).await;
        assert!(panicked.is_err());
        world.pass(SECOND).await;
        fired += 1;
        assert_eq!(world.script.fired().len(), fired, "after a reset");
        site.probes.stop("a").await.unwrap();
        world.pass(SECOND).await;
        fired += 1;
        assert_eq!(world.script.fired().len(), fired, "after a stop");
        site.probes.request("b", put("k", 1)).await.unwrap();
        site.probes.stop("b").await.unwrap();
        world.pass(SECOND).await;
        fired += 1;
        assert_eq!(world.script.fired().len(), fired, "after it made room");
        assert!(site.host.drain(SECOND).await.released);
        drop(site);
        world.pass(SECOND).await;
        world.reopen().await;
        let site = world.start().await;
        world.pass(SECOND).await;
        fired += 1;
        assert_eq!(world.script.fired().len(), fired, "after a release");
        assert_eq!(site.probes.request("a", get("n")).await.unwrap(), Some(i64::try_from(fired).unwrap()));
        assert!(world.script.fired().iter().all(|fired| fired.attempt == 0), "none of these is a failure");
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_alarm_goes_with_its_shard_to_the_next_owner() {
    let world = World::in_memory();
    hold(&world);
    let fleet = Fleet::new(["only"], 16).unwrap();
    let old = world.launch(world.member("only", &fleet), |probes| probes).await;
    old.probes.set_alarm("a", "held", world.at(0), &()).await.unwrap();
    world.pass(SECOND).await;
    let new = world.launch(world.member("only", &fleet), |probes| probes).await;
    world.pass(60 * SECOND).await;
    assert_eq!(world.script.fired().len(), 2);
    assert_eq!(new.probes.request("a", get("n")).await.unwrap(), Some(2));
    drop(old);
}

#[tokio::test(start_paused = true)]
async fn holding_does_nothing_outside_an_alarms_handler_and_nothing_if_the_handler_fails() {
    let world = World::in_memory();
    world.script.on_alarm(|_, cx, alarm| {
        cx.hold_alarm();
        let fails = alarm.attempt() == 0;
        Box::pin(async move { if fails { Err(system_tests::Failed::Told("no")) } else { Ok(()) } })
    });
    let site = world.start().await;
    let hold = act(|_, cx: &mut Context| {
        cx.hold_alarm();
        Box::pin(async move { Ok(cx.put("k", &1)?) })
    });
    site.probes.request("a", hold).await.unwrap();
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), Some(1));
    site.probes.set_alarm("a", "x", world.at(0), &()).await.unwrap();
    world.pass(60 * SECOND).await;
    assert_eq!(world.script.fired().iter().map(|fired| fired.attempt).collect::<Vec<_>>(), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn an_alarm_that_its_handler_cancelled_and_then_held_stays_cancelled_also_after_a_crash() {
    let world = World::in_memory();
    let site = world.start().await;
    site.probes.set_alarm("a", "held", world.at(5_000), &()).await.unwrap();
    site.crash();
    world.pass(10 * SECOND).await;
    world.script.on_alarm(|_, cx, _| {
        Box::pin(async move {
            cx.cancel_alarm("held")?;
            cx.commit().await?;
            cx.hold_alarm();
            Ok(())
        })
    });
    // It is overdue, and its shard was not released: so it is marked when it begins, and what takes the mark away again would
    // be a row of it.
    let site = world.start().await;
    world.pass(SECOND).await;
    assert_eq!(world.script.fired().len(), 1);
    assert!(site.probes.alarms("a").await.unwrap().is_empty());
    drop(site);
    let _site = world.start().await;
    world.pass(60 * SECOND).await;
    assert_eq!(world.script.fired().len(), 1);
}
