//! Bounds: everything that can pile up has a cap, and what is not used leaves memory.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use stable_interfaces::store::{Found, ReadRows};
use stable_interfaces::testing::{Fault, Method};
use stable_interfaces::{Context, Fleet, FleetClient, Interface, RequestError, StoreError};
use system_tests::{
    Between, Do, Failed, Probe, START, Site, World, act, get, in_time, life, now_or_never, put, spawn, wait,
};

const SECOND: Duration = Duration::from_secs(1);

fn running<'a>(probes: &Interface<Probe>, ids: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    ids.into_iter().filter(|id| probes.is_running(id)).collect()
}

async fn touch(site: &Site, ids: &[&str]) {
    for id in ids {
        site.probes.request(id, life()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn past_the_cap_of_waiting_messages_requests_are_refused_at_once_and_the_others_are_served() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.max_waiting(3)).await;
    let busy = spawn(&site.probes, "a", wait(SECOND));
    world.settle().await;
    let waiting: Vec<_> = (0..3).map(|_| spawn(&site.probes, "a", life())).collect();
    world.settle().await;
    let refused = now_or_never(site.probes.request("a", life())).await.expect("refused at once");
    let error = refused.unwrap_err();
    assert!(matches!(error, RequestError::Overloaded(_)) && error.is_retryable(), "{error}");
    assert!(site.probes.request("b", life()).await.is_ok(), "others have queues of their own");
    busy.await.unwrap().unwrap();
    for request in waiting {
        request.await.unwrap().unwrap();
    }
    // A handler that panics or runs out of time makes the room for what waited, as often as that happens.
    for _ in 0..10 {
        let stuck = spawn(&site.probes, "a", wait(40 * SECOND));
        world.settle().await;
        let waiting: Vec<_> = (0..3).map(|_| spawn(&site.probes, "a", life())).collect();
        world.pass(35 * SECOND).await;
        assert!(matches!(stuck.await.unwrap(), Err(RequestError::TimedOut { .. })));
        for request in waiting {
            request.await.unwrap().unwrap();
        }
    }
    touch(&site, &["a"]).await;
}

#[tokio::test(start_paused = true)]
async fn past_the_cap_of_instances_the_least_recently_used_leaves_in_good_order() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.max_instances(4)).await;
    touch(&site, &["a", "b", "c", "d"]).await;
    touch(&site, &["b", "a"]).await;
    let all = ["a", "b", "c", "d", "e", "f", "g"];
    touch(&site, &["e"]).await;
    assert_eq!(running(&site.probes, all), ["a", "b", "d", "e"], "c had waited longest");
    touch(&site, &["f"]).await;
    assert_eq!(running(&site.probes, all), ["a", "b", "e", "f"]);
    touch(&site, &["b", "g"]).await;
    assert_eq!(running(&site.probes, all), ["b", "e", "f", "g"]);
    assert_eq!((world.script.stops(), site.probes.running()), (3, 4), "each was stopped");
    touch(&site, &["a"]).await;
    assert_eq!(running(&site.probes, all), ["a", "b", "f", "g"]);
    assert_eq!(world.script.lives(), 8, "and is built anew when it is used again");
}

#[tokio::test(start_paused = true)]
async fn when_no_instance_can_leave_new_ones_are_refused_at_once_until_one_can() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.max_instances(2)).await;
    let busy: Vec<_> = ["a", "b"].into_iter().map(|id| spawn(&site.probes, id, wait(SECOND))).collect();
    world.settle().await;
    let refused = now_or_never(site.probes.request("c", life())).await.expect("refused at once");
    assert!(matches!(refused, Err(RequestError::Overloaded(what)) if what == "instances in memory"));
    let more = spawn(&site.probes, "a", life());
    for request in busy {
        request.await.unwrap().unwrap();
    }
    more.await.unwrap().unwrap();
    touch(&site, &["c"]).await;
    assert_eq!(site.probes.running(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_alarm_that_finds_no_room_for_its_instance_waits_and_loses_no_attempt() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.max_instances(1)).await;
    site.probes.set_alarm("b", "x", world.at(1_000), &()).await.unwrap();
    let busy = spawn(&site.probes, "a", wait(10 * SECOND));
    world.pass(5 * SECOND).await;
    assert!(world.script.fired().is_empty());
    busy.await.unwrap().unwrap();
    world.pass(SECOND).await;
    assert_eq!(world.script.fired().iter().map(|fired| fired.attempt).collect::<Vec<_>>(), [0]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_instance_leaves_after_its_time_and_one_that_is_used_stays() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.idle_timeout(60 * SECOND)).await;
    touch(&site, &["a", "b"]).await;
    for _ in 0..10 {
        world.pass(30 * SECOND).await;
        touch(&site, &["b"]).await;
        if world.now() < 59_000 {
            assert!(site.probes.is_running("a"));
        }
        if world.now() > 76_000 {
            assert!(!site.probes.is_running("a"), "at most a quarter more than its time");
        }
    }
    assert_eq!(world.script.stops(), 1);
    assert_eq!(site.probes.request("b", life()).await.unwrap(), 2, "the one that was used");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_asks_leaves_after_the_messages_that_wait_and_before_those_that_come() {
    let world = World::in_memory();
    let site = world.start().await;
    let ask = act(|me: &mut Probe, cx: &mut Context| {
        let sleep = me.sleep(SECOND);
        cx.passivate();
        Box::pin(async move {
            sleep.await;
            Ok(())
        })
    });
    let ask = spawn(&site.probes, "a", ask);
    world.settle().await;
    let waiting = spawn(&site.probes, "a", life());
    ask.await.unwrap().unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), 1);
    world.settle().await;
    assert!(!site.probes.is_running("a"));
    assert_eq!(world.script.stops(), 1);
    assert_eq!(site.probes.request("a", life()).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn passivation_waits_for_what_the_instance_has_committed() {
    let world = World::in_memory();
    let site = world.start().await;
    world.store.fail_next(Method::Commit, Fault::HangAfter);
    let write = spawn(&site.probes, "a", put("k", 1));
    world.settle().await;
    let stop = site.probes.clone();
    let stop = tokio::spawn(async move { stop.stop("a").await });
    world.settle().await;
    let read = spawn(&site.probes, "a", get("k"));
    world.pass(SECOND).await;
    assert!(!stop.is_finished() && !read.is_finished());
    assert_eq!((world.script.lives(), world.script.stops()), (1, 1), "the next one is not built yet");
    world.store.release_hanging();
    write.await.unwrap().unwrap();
    stop.await.unwrap().unwrap();
    assert_eq!(read.await.unwrap().unwrap(), Some(1));
    assert_eq!(world.script.lives(), 2);
}

#[tokio::test(start_paused = true)]
async fn on_stop_runs_when_an_instance_is_stopped_or_drained_and_not_when_it_is_reset_or_crashes() {
    let world = World::in_memory();
    let site = world.start().await;
    let boom = || act(|_, _| Box::pin(async { std::panic::panic_any("boom") }));
    let _: system_tests::Answer<()> = site.probes.request("a", boom()).await;
    let failing = act(|_, cx: &mut Context| {
        Box::pin(async move {
            cx.put("k", &1)?;
            Err::<(), _>(Failed::Told("with an effect"))
        })
    });
    assert!(site.probes.request("a", failing).await.is_err());
    assert_eq!(world.script.stops(), 0);
    touch(&site, &["a", "b", "c"]).await;
    site.probes.stop("a").await.unwrap();
    site.probes.stop("never built").await.unwrap();
    assert_eq!(world.script.stops(), 1);
    site.host.drain(SECOND).await;
    assert_eq!(world.script.stops(), 3);
    let site = world.start().await;
    touch(&site, &["a"]).await;
    site.crash();
    assert_eq!(world.script.stops(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_holds_an_alarm_leaves_last() {
    let world = World::in_memory();
    world.script.on_alarm(|_, cx, _| {
        cx.hold_alarm();
        Box::pin(async { Ok(()) })
    });
    let site = world.launch(world.local(), |probes| probes.max_instances(2).idle_timeout(60 * SECOND)).await;
    site.probes.set_alarm("held", "x", world.at(0), &()).await.unwrap();
    world.pass(SECOND).await;
    assert_eq!(world.script.fired().len(), 1);
    touch(&site, &["a", "b", "c"]).await;
    assert_eq!(running(&site.probes, ["held", "a", "b", "c"]), ["held", "c"], "older, and yet it stays");
    world.pass(300 * SECOND).await;
    assert_eq!(running(&site.probes, ["held", "c"]), ["held"]);
    let busy = spawn(&site.probes, "c", wait(20 * SECOND));
    world.settle().await;
    touch(&site, &["d"]).await;
    assert!(!site.probes.is_running("held"), "when nothing else can");
    drop(busy);
    world.pass(30 * SECOND).await;
    assert_eq!(world.script.fired().len(), 2, "and its alarm fires again");
}

#[tokio::test(start_paused = true)]
async fn no_more_alarms_are_handled_at_once_than_may_be() {
    let world = World::in_memory();
    let site = world.launch(world.local().max_firing(10), |probes| probes).await;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (running, peak) = (now.clone(), most.clone());
    world.script.on_alarm(move |me, _, _| {
        peak.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let (sleep, running) = (me.sleep(SECOND), running.clone());
        Box::pin(async move {
            sleep.await;
            running.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        })
    });
    for i in 0..100 {
        site.probes.set_alarm(&format!("i-{i}"), "x", world.at(1_000), &()).await.unwrap();
    }
    world.pass(Duration::from_millis(1_500)).await;
    touch(&site, &["another"]).await;
    world.pass(15 * SECOND).await;
    assert_eq!((world.script.fired().len(), most.load(Ordering::SeqCst)), (100, 10));
    // Each that ends makes room for the next, without a gap.
    assert!(world.script.fired().iter().all(|fired| fired.at <= 1_000 + 9 * 1_000 + 100));
}

#[tokio::test(start_paused = true)]
async fn held_alarms_do_not_take_the_places_of_others() {
    let world = World::in_memory();
    world.script.on_alarm(|_, cx, alarm| {
        if alarm.id() == "held" {
            cx.hold_alarm();
        }
        Box::pin(async { Ok(()) })
    });
    let site = world.launch(world.local().max_firing(4), |probes| probes).await;
    for i in 0..20 {
        site.probes.set_alarm(&format!("i-{i}"), "held", world.at(0), &()).await.unwrap();
    }
    world.pass(SECOND).await;
    assert_eq!(world.script.fired().len(), 20);
    site.probes.set_alarm("other", "x", world.at(0), &()).await.unwrap();
    world.settle().await;
    assert_eq!(world.script.fired_ids().last().unwrap(), "x");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_of_writes_refuses_new_handlers_at_once_and_nothing_that_began_is_lost() {
    let world = World::in_memory();
    let site = world.launch(world.local().lanes(1).max_queued_commits(8), |probes| probes).await;
    world.store.fail_next(Method::Commit, Fault::HangAfter);
    let ids: Vec<String> = (0..100).map(|i| format!("i-{i}")).collect();
    let mut accepted = Vec::new();
    let mut refused = 0;
    for id in &ids {
        let request = spawn(&site.probes, id, put("k", 1));
        world.settle().await;
        if request.is_finished() {
            assert!(
                matches!(request.await.unwrap(), Err(RequestError::Overloaded(what)) if what == "writes to the store")
            );
            refused += 1;
        } else {
            accepted.push((id, request));
        }
    }
    assert_eq!((accepted.len(), refused), (8, 92));
    world.store.release_hanging();
    for (id, request) in accepted {
        request.await.unwrap().unwrap();
        assert_eq!(site.probes.request(id, get("k")).await.unwrap(), Some(1));
    }
}

#[tokio::test(start_paused = true)]
async fn large_values_before_a_hanging_store_are_refused_when_they_have_filled_the_queue_and_not_once_it_is_empty() {
    const LARGE: usize = 256 * 1024;
    let large = || {
        act(|_, cx| {
            let outcome = cx.put("k", &"x".repeat(LARGE - 2)).map_err(Failed::from);
            Box::pin(async { outcome })
        })
    };
    let world = World::in_memory();
    let host = world.local().lanes(1).max_queued_bytes(8 * LARGE).store_timeout(600 * SECOND);
    let site = world.launch(host.commit_timeout(600 * SECOND), |probes| probes).await;
    for _ in 0..3 {
        world.store.fail_next(Method::Commit, Fault::HangAfter);
        let mut accepted = Vec::new();
        let mut refused = 0;
        for i in 0..50 {
            let request = spawn(&site.probes, &format!("i-{i}"), large());
            world.settle().await;
            if request.is_finished() {
                assert!(
                    matches!(request.await.unwrap(), Err(RequestError::Overloaded(what)) if what == "writes to the store")
                );
                refused += 1;
            } else {
                accepted.push(request);
            }
        }
        assert_eq!((accepted.len(), refused), (8, 42), "eight of them are as much as is allowed");
        world.store.release_hanging();
        for request in accepted {
            request.await.unwrap().unwrap();
        }
    }
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_requests_instances_and_alarms_stays_within_its_caps_and_its_memory() {
    in_time(async {
        let world = World::in_memory();
        let host = world.local().max_firing(64).max_connections(100).alarm_window(20_000);
        let site = world.launch(host, |probes| probes.max_instances(1_000).max_waiting(100)).await;
        world.script.on_alarm(|me, _, _| {
            me.memory.push("x".repeat(10_000));
            Box::pin(async { Ok(()) })
        });
        let before = resident();
        let mut clients = Vec::new();
        let mut outcomes = BTreeSet::new();
        for i in 0..50_000_u32 {
            let heavy = act(|me: &mut Probe, _| {
                me.memory.push("x".repeat(10_000));
                Box::pin(async { Ok(()) })
            });
            site.probes.request(&format!("i-{i}"), heavy).await.unwrap();
            assert!(site.probes.running() <= 1_001);
            if i % 100 == 0 {
                clients.extend(site.probes.connect("hub", "").await);
                let at = world.at(10_000 + i64::from(i % 7));
                site.probes.set_alarm(&format!("i-{i}"), "x", at, &()).await.unwrap();
            }
        }
        assert_eq!((clients.len(), site.host.connections()), (100, 100));
        let busy = spawn(&site.probes, "hub", wait(5 * SECOND));
        world.settle().await;
        let mut waiting = Vec::new();
        for _ in 0..10_000 {
            let mut request = Box::pin(site.probes.request("hub", life()));
            match now_or_never(&mut request).await {
                Some(Err(error)) => drop(outcomes.insert(error.to_string())),
                Some(Ok(_)) => unreachable!("it is busy"),
                None => waiting.push(request),
            }
        }
        assert_eq!((waiting.len(), outcomes.len()), (100, 1), "{outcomes:?}");
        busy.await.unwrap().unwrap();
        world.pass(20 * SECOND).await;
        assert_eq!(world.script.fired().len(), 500);
        // A thousand instances of ten thousand bytes, not fifty thousand: 10 MB, not 500. The other tests of this program run
        // beside this one, and their memory counts too.
        let grown = resident().saturating_sub(before);
        assert!(grown < 300 << 20, "{} MiB", grown >> 20);
    })
    .await;
}

/// Values and alarms of 30 kB each, forty of both.
async fn fill(site: &Site, id: &str) {
    for first in [0, 20] {
        let some = act(move |_: &mut Probe, cx: &mut Context| {
            Box::pin(async move {
                for n in first..first + 20 {
                    cx.put(&format!("v-{n:02}"), &"x".repeat(30_000))?;
                    cx.set_alarm(&format!("a-{n:02}"), START + 1_000 * SECOND, &"x".repeat(30_000))?;
                }
                Ok(())
            })
        });
        site.probes.request(id, some).await.unwrap();
    }
}

/// The bytes of values and metas of an answer.
fn bytes_of(found: &Found) -> usize {
    match &found.rows {
        ReadRows::Storage(rows) => rows.iter().map(|(_, value)| value.len()).sum(),
        ReadRows::Alarms(rows) => rows.iter().map(|row| row.meta.len()).sum(),
    }
}

/// The number of values under "v-", as a handler lists them.
fn listed() -> Do<usize> {
    act(|_: &mut Probe, cx: &mut Context| Box::pin(async move { Ok(cx.list("v-").await?.len()) }))
}

#[tokio::test(start_paused = true)]
async fn values_that_no_answer_can_hold_together_are_listed_after_a_few_attempts_by_handlers_and_tools() {
    let world = World::in_memory();
    let site = world.start().await;
    fill(&site, "a").await;
    assert!(site.host.drain(SECOND).await.released);
    // A link, a deadline or a buffer that takes less than two of them.
    let tight = |between: Between| {
        between.on_read(|_, found| match bytes_of(&found) {
            0..50_000 => Ok(found),
            _ => Err(StoreError::NotApplied("no answer within 5s".into())),
        })
    };
    let site = world.launch(world.local_behind(tight), |probes| probes).await;
    let outside =
        FleetClient::new(Arc::new(tight(Between::new(world.store.clone()))), Fleet::new(["local"], 1_024).unwrap());
    let mut attempts = 0;
    let count = loop {
        attempts += 1;
        assert!(attempts < 20, "each attempt asks for less");
        match site.probes.request("a", listed()).await {
            Ok(count) => break count,
            Err(error) => assert!(matches!(error, RequestError::Store(_)) && error.is_retryable(), "{error}"),
        }
    };
    assert!(count == 40 && attempts > 1, "{count} after {attempts} attempts");
    // The size is known by now: a larger one is tried now and then.
    let mut alarms = 0;
    while site.probes.alarms("a").await.map(|alarms| alarms.len()).ok() != Some(40) {
        alarms += 1;
        assert!(alarms < 5);
    }
    let mut stored = 0;
    while outside.stored("probe", "a", "v-").await.map(|rows| rows.len()).ok() != Some(40) {
        stored += 1;
        assert!(stored < 20);
    }
    assert!(stored > 1, "a client learns the size for itself");
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_a_reader_has_no_more_bytes_than_a_page_may_however_much_is_stored() {
    let world = World::in_memory();
    let (largest, answers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let site = {
        let (largest, answers) = (largest.clone(), answers.clone());
        let measured = |between: Between| {
            between.on_read(move |_, found| {
                largest.fetch_max(bytes_of(&found), Ordering::SeqCst);
                answers.fetch_add(1, Ordering::SeqCst);
                Ok(found)
            })
        };
        world.launch(world.local_behind(measured), |probes| probes).await
    };
    for n in 0..60 {
        let put = act(move |_: &mut Probe, cx: &mut Context| {
            Box::pin(async move { cx.put(&format!("v-{n:02}"), &"x".repeat(200_000)).map_err(Into::into) })
        });
        site.probes.request("a", put).await.unwrap();
    }
    answers.store(0, Ordering::SeqCst);
    assert_eq!(site.probes.request("a", listed()).await.unwrap(), 60);
    assert_eq!(site.probes.stored("a", "v-").await.unwrap().len(), 60);
    let (largest, answers) = (largest.load(Ordering::SeqCst), answers.load(Ordering::SeqCst));
    assert!((1_000_000..=4 * 1024 * 1024).contains(&largest), "{largest} bytes of 12,000,000 in one answer");
    assert_eq!(answers, 6, "three each");
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_a_reader_that_leads_no_further_and_is_said_not_to_be_the_last_is_a_fault_of_the_store() {
    let world = World::in_memory();
    let is_broken = Arc::new(AtomicBool::new(false));
    let broken = {
        let is_broken = is_broken.clone();
        move |between: Between| {
            between.on_read(move |_, mut found| {
                if let ReadRows::Storage(rows) = &mut found.rows
                    && is_broken.load(Ordering::SeqCst)
                {
                    // Before the range that is asked for.
                    rows.iter_mut().for_each(|(key, _)| *key = "a".into());
                    found.is_last = false;
                }
                Ok(found)
            })
        }
    };
    let site = world.launch(world.local_behind(broken), |probes| probes).await;
    site.probes.request("a", put("v-1", 1)).await.unwrap();
    is_broken.store(true, Ordering::SeqCst);
    let error = site.probes.stored("a", "v-").await.unwrap_err().report().to_string();
    assert!(error.contains("said that there are more, which is a fault of the store"), "{error}");
    is_broken.store(false, Ordering::SeqCst);
    assert_eq!(site.probes.stored("a", "v-").await.unwrap().len(), 1);
}
