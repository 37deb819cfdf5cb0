//! Inboxes: durable messages from any host, each handled at least once and exactly once in effect.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use stable_interfaces::clock::SystemClock;
use stable_interfaces::store::Rows;
use stable_interfaces::testing::{Fault, Method};
use stable_interfaces::{
    ContextError, DeadKind, Fleet, FleetClient, Host, MemoryStore, NewPost, Posted, RequestError, RetryPolicy,
    StartError,
};
use system_tests::{
    Between, Failed, Probe, Site, World, act, count, get, in_time, now_or_never, on_each_store, spawn, wait,
};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(15);

fn fleet() -> Fleet {
    Fleet::new(["zero", "one"], 64).unwrap()
}

/// IDs that the fleet gives to `host`.
fn ids_of(host: &str) -> impl Iterator<Item = String> {
    let fleet = fleet();
    let host = host.to_owned();
    (0..).map(|i| format!("id-{i}")).filter(move |id| fleet.locate(id).unwrap().host == host)
}

fn id_of(host: &str) -> String {
    ids_of(host).next().unwrap()
}

async fn start(world: &World, host: &str) -> Site {
    world.launch(world.member(host, &fleet()).lease(LEASE), |probes| probes).await
}

fn message(id: &str) -> NewPost {
    NewPost::new("body").id(id)
}

/// Makes each message count in its instance's storage.
fn count_messages(world: &World) {
    world.script.on_message(|_, cx, _| {
        Box::pin(async move {
            let n = cx.get::<i64>("n").await?.unwrap_or(0) + 1;
            Ok(cx.put("n", &n)?)
        })
    });
}

on_each_store! {
    async fn a_message_from_any_host_is_handled_by_the_owner_with_all_that_was_posted(world: World) {
        let (zero, one) = (start(&world, "zero").await, start(&world, "one").await);
        let id = id_of("one");
        world.script.on_message(|me, cx, message| {
            let seen = format!(
                "{} {} on {}: {} {:?} {:?}",
                me.id,
                message.id(),
                cx.host(),
                message.json::<String>().unwrap(),
                message.header("content-TYPE"),
                message.headers(),
            );
            Box::pin(async move {
                me.script.note(seen);
                Ok(())
            })
        });
        let post = || {
            NewPost::json("hello").unwrap().header("Content-Type", "x").header("a", "b")
        };
        assert_eq!(zero.probes.post(&id, post().id("from-zero")).await.unwrap(), Posted::Inserted);
        world.pass(SECOND).await;
        assert_eq!(one.probes.post(&id, post().id("from-one")).await.unwrap(), Posted::Inserted);
        world.pass(SECOND).await;
        let rest = r#"on one: hello Some("x") [("Content-Type", "x"), ("a", "b")]"#;
        assert_eq!(world.script.notes(), [format!("{id} from-zero {rest}"), format!("{id} from-one {rest}")]);
        one.probes.post(&id, post()).await.unwrap();
        one.probes.post(&id, post()).await.unwrap();
        world.pass(SECOND).await;
        let ids = world.script.taken_ids();
        assert!(ids.len() == 4 && ids[2] != ids[3], "without an ID each is another: {ids:?}");
    }
}

on_each_store! {
    async fn messages_are_taken_in_the_order_of_their_arrival(world: World) {
        let site = world.start().await;
        for n in 0..300 {
            site.probes.post("a", message(&format!("{n}"))).await.unwrap();
            if n % 7 == 0 {
                world.pass(Duration::from_millis(2)).await;
            }
        }
        world.pass(SECOND).await;
        let mut taken = world.script.taken_ids();
        assert_eq!(taken.len(), 300);
        taken.sort_by_key(|id| id.parse::<u32>().unwrap());
        taken.dedup();
        assert_eq!(taken.len(), 300, "each once");
    }
}

on_each_store! {
    async fn a_failed_message_is_tried_again_and_only_its_last_attempt_has_effects(world: World) {
        world.script.on_message(|me, cx, message| {
            let attempt = message.attempt();
            let panics = message.id() == "panics";
            me.script.note(format!("{attempt} at {}", cx.now().as_millis() / 1000 - 1_700_000_000));
            Box::pin(async move {
                let n = cx.get::<i64>("n").await?.unwrap_or(0) + 1;
                cx.put("n", &n)?;
                if attempt < 3 {
                    if panics {
                        std::panic::panic_any("boom");
                    }
                    return Err(Failed::Told("not yet"));
                }
                Ok(())
            })
        });
        let retry = RetryPolicy::new().first(10 * SECOND);
        let site = world.launch(world.local(), |probes| probes.retry(retry)).await;
        site.probes.post("a", message("fails")).await.unwrap();
        world.pass(600 * SECOND).await;
        site.probes.post("b", message("panics")).await.unwrap();
        world.pass(600 * SECOND).await;
        for id in ["a", "b"] {
            assert_eq!(site.probes.request(id, get("n")).await.unwrap(), Some(1), "{id}");
        }
        let attempts: Vec<_> = world.script.taken().iter().map(|taken| taken.attempt).collect();
        assert_eq!(attempts, [0, 1, 2, 3, 0, 1, 2, 3]);
        let notes = world.script.notes();
        let at: Vec<i64> = notes[..4].iter().map(|note| note[5..].parse().unwrap()).collect();
        let waits: Vec<_> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!((10..=12).contains(&waits[0]) && (20..=24).contains(&waits[1]) && (40..=48).contains(&waits[2]), "{waits:?}");
    }
}

on_each_store! {
    async fn after_its_last_attempt_a_message_is_a_dead_letter_to_be_brought_back_or_discarded(world: World) {
        world.script.on_message(|me, _, _| {
            let works = me.script.notes().contains(&"repaired".to_owned());
            Box::pin(async move { if works { Ok(()) } else { Err(Failed::Told("broken")) } })
        });
        let retry = RetryPolicy::new().first(SECOND).attempts(2);
        let site = world.launch(world.local(), |probes| probes.retry(retry)).await;
        site.probes.post("a", NewPost::new("first").id("m").header("h", "1")).await.unwrap();
        site.probes.post("b", message("n")).await.unwrap();
        world.pass(10 * SECOND).await;
        let dead = site.probes.dead_letters(None, 10).await.unwrap();
        assert_eq!(dead.len(), 2);
        let m = dead.iter().find(|dead| dead.id() == "m").unwrap();
        let n = dead.iter().find(|dead| dead.id() == "n").unwrap();
        assert_eq!((m.instance(), m.reason()), ("a", "broken"));
        let DeadKind::Message(message) = m.kind() else { panic!("not a message") };
        assert_eq!((message.attempt(), &message.body()[..], message.header("h")), (2, &b"first"[..], Some("1")));
        assert_eq!(world.script.taken().len(), 4);

        world.pass(3_600 * SECOND).await;
        assert_eq!(world.script.taken().len(), 4, "it stays dead");
        world.script.note("repaired");
        assert!(site.probes.requeue(m).await.unwrap());
        world.pass(SECOND).await;
        let last = world.script.taken().pop().unwrap();
        assert_eq!((last.message.as_str(), last.attempt), ("m", 0));
        assert!(!site.probes.requeue(m).await.unwrap(), "it is not there any more");
        assert!(site.probes.discard(n).await.unwrap());
        assert!(!site.probes.discard(n).await.unwrap());
        assert_eq!(site.probes.dead_letters(None, 10).await.unwrap(), []);
        world.pass(3_600 * SECOND).await;
        assert_eq!(world.script.taken().len(), 5);
    }
}

on_each_store! {
    async fn a_dead_message_stays_a_letter_while_another_with_its_id_is_unread(world: World) {
        world.script.on_message(|_, _, _| Box::pin(async { Err(Failed::Told("broken")) }));
        let retry = RetryPolicy::new().first(3_600 * SECOND).longest(3_600 * SECOND).attempts(1);
        let site = world.launch(world.local(), |probes| probes.retry(retry)).await;
        site.probes.post("a", NewPost::new("first").id("m")).await.unwrap();
        world.pass(SECOND).await;
        let dead = site.probes.dead_letters(None, 10).await.unwrap();
        drop(site);
        world.script.on_message(|_, _, _| Box::pin(async { Err(Failed::Told("broken")) }));
        let site = world.launch(world.local(), |probes| probes.retry(retry.attempts(9))).await;
        site.probes.post("a", NewPost::new("second").id("m")).await.unwrap();
        world.pass(SECOND).await;
        assert!(!site.probes.requeue(&dead[0]).await.unwrap());
        assert_eq!(site.probes.dead_letters(None, 10).await.unwrap(), dead, "its body is in no other place");
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_message_with_an_id_is_a_duplicate_while_the_first_is_unread_and_no_longer() {
    let world = World::in_memory();
    count_messages(&world);
    let site = world.start().await;
    let busy = spawn(&site.probes, "a", wait(10 * SECOND));
    world.settle().await;
    assert_eq!(site.probes.post("a", message("m")).await.unwrap(), Posted::Inserted);
    world.pass(SECOND).await;
    assert_eq!(site.probes.post("a", message("m")).await.unwrap(), Posted::Duplicate);
    assert_eq!(site.probes.post("b", message("m")).await.unwrap(), Posted::Inserted, "of another instance");
    busy.await.unwrap().unwrap();
    world.settle().await;
    assert_eq!(site.probes.request("a", get("n")).await.unwrap(), Some(1));
    assert_eq!(site.probes.post("a", message("m")).await.unwrap(), Posted::Inserted);
    world.settle().await;
    assert_eq!(site.probes.request("a", get("n")).await.unwrap(), Some(2));
}

on_each_store! {
    async fn a_message_whose_nudge_got_lost_is_picked_up_within_a_renewal(world: World) {
        let zero = start(&world, "zero").await;
        let _one = start(&world, "one").await;
        world.pass(SECOND).await;
        world.store.lose_hints(true);
        let id = id_of("one");
        zero.probes.post(&id, message("m")).await.unwrap();
        world.pass(Duration::from_millis(10)).await;
        assert_eq!(world.script.taken_ids(), [""; 0], "the nudge did get lost");
        world.pass(LEASE / 3).await;
        assert_eq!(world.script.taken_ids(), ["m"]);
    }
}

on_each_store! {
    async fn messages_of_others_whose_nudges_got_lost_are_picked_up_within_seconds_however_long_the_lease_is(world: World) {
        let fleet = Fleet::new(["local"], 1_024).unwrap();
        let outside = FleetClient::new(Arc::new(world.store.clone()), fleet.clone());
        world.store.lose_hints(true);
        // One whose lease never ends, and one whose lease is a day.
        for builder in [Host::local(world.store.clone()), world.member("local", &fleet).lease(86_400 * SECOND)] {
            let site = world.launch(world.equip(builder), |probes| probes).await;
            world.pass(SECOND).await;
            let before = world.script.taken_ids().len();
            for n in 0..300 {
                outside.post("probe", &format!("id-{n}"), message("m")).await.unwrap();
            }
            assert_eq!(world.script.taken_ids().len(), before, "the nudges did get lost");
            world.pass(6 * SECOND).await;
            assert_eq!(world.script.taken_ids().len(), before + 300);
            site.host.drain(SECOND).await;
        }
    }
}

on_each_store! {
    async fn messages_posted_before_a_watch_begins_are_looked_for_when_it_does(world: World) {
        let fleet = Fleet::new(["local"], 1_024).unwrap();
        let outside = FleetClient::new(Arc::new(world.store.clone()), fleet);
        world.store.fail_next(Method::Watch, Fault::Hang);
        let _site = world.start().await;
        world.pass(Duration::from_millis(100)).await;
        outside.post("probe", "a", message("m")).await.unwrap();
        world.pass(Duration::from_millis(100)).await;
        assert_eq!(world.script.taken_ids(), [""; 0], "nobody listens yet");
        world.store.release_hanging();
        world.pass(Duration::from_millis(100)).await;
        assert_eq!(world.script.taken_ids(), ["m"]);
    }
}

on_each_store! {
    async fn messages_that_cannot_be_read_are_overdue_and_their_host_is_not_ready(world: World) {
        let site = world.start().await;
        world.pass(SECOND).await;
        assert!(site.host.is_ready(Duration::ZERO));
        world.store.set_chance(Method::Load, Fault::FailBefore, 1.0);
        site.probes.post("a", message("m")).await.unwrap();
        world.pass(10 * SECOND).await;
        let overdue = site.host.overdue();
        assert!((9 * SECOND..=10 * SECOND).contains(&overdue), "{overdue:?}");
        assert!(!site.host.is_ready(5 * SECOND) && site.host.is_ready(11 * SECOND));
        world.store.heal();
        world.pass(10 * SECOND).await;
        assert_eq!(world.script.taken_ids(), ["m"]);
        assert!(site.host.is_ready(Duration::ZERO) && site.host.overdue() == Duration::ZERO);
    }
}

on_each_store! {
    async fn messages_that_wait_for_long_are_not_read_again_by_each_look(world: World) {
        world.script.on_message(|_, _, message| {
            let fails = message.id().starts_with("fails");
            Box::pin(async move { if fails { Err(Failed::Told("not yet")) } else { Ok(()) } })
        });
        let read = Arc::new(AtomicUsize::new(0));
        let counted = read.clone();
        let between = |between: Between| {
            between.on_load(move |_, loaded| {
                for page in loaded {
                    if let Rows::Inbox(rows) = &page.rows {
                        counted.fetch_add(rows.iter().filter(|row| !row.body.is_empty()).count(), Ordering::SeqCst);
                    }
                }
            })
        };
        let retry = RetryPolicy::new().first(3_600 * SECOND).longest(3_600 * SECOND);
        let site = world.launch(world.local_behind(between), |probes| probes.retry(retry)).await;
        for n in 0..400 {
            // Twenty shards of twenty, roughly.
            site.probes.post(&format!("id-{}", n % 20), message(&format!("fails-{n}"))).await.unwrap();
        }
        world.pass(SECOND).await;
        assert_eq!(world.script.taken().len(), 400);
        let before = read.load(Ordering::SeqCst);
        world.pass(60 * SECOND).await;
        assert_eq!(read.load(Ordering::SeqCst) - before, 0, "nothing has come");
        site.probes.post("id-7", message("new")).await.unwrap();
        world.pass(SECOND).await;
        assert_eq!(world.script.taken_ids().last().map(String::as_str), Some("new"));
        assert!(read.load(Ordering::SeqCst) - before <= 2, "of all that wait only the new one is read");
        world.pass(2 * 3_600 * SECOND).await;
        assert!(world.script.taken().len() >= 801, "and each is tried again in its time");
    }
}

on_each_store! {
    async fn an_id_posted_again_in_the_millisecond_in_which_it_was_handled_is_handled_again(world: World) {
        count_messages(&world);
        let site = world.start().await;
        world.pass(SECOND).await;
        let done = |method| world.store.log().iter().filter(|call| call.method == method && call.is_done).count();
        let (commits, began) = (done(Method::Commit), world.now());
        // The store takes the message out, and its owner does not hear of it yet.
        world.store.fail_next(Method::Commit, Fault::HangAfter);
        assert_eq!(site.probes.post("a", message("m")).await.unwrap(), Posted::Inserted);
        while done(Method::Commit) == commits {
            tokio::task::yield_now().await;
        }
        let loads = world.store.calls(Method::Load);
        assert_eq!(site.probes.post("a", message("m")).await.unwrap(), Posted::Inserted, "another message");
        while world.store.calls(Method::Load) == loads || !world.store.under_way().iter().all(|call| call.method != Method::Load) {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(world.now(), began, "in the same millisecond");
        world.store.release_hanging();
        world.pass(Duration::from_millis(100)).await;
        assert_eq!(site.probes.request("a", get("n")).await.unwrap(), Some(2));
    }
}

on_each_store! {
    async fn a_nudge_reaches_the_owner_at_once_also_after_the_stream_was_cut(world: World) {
        let zero = start(&world, "zero").await;
        let _one = start(&world, "one").await;
        world.pass(Duration::from_millis(100)).await;
        let id = id_of("one");
        zero.probes.post(&id, message("m")).await.unwrap();
        world.pass(Duration::from_millis(100)).await;
        assert_eq!(world.script.taken_ids(), ["m"]);
        world.store.cut_watches();
        zero.probes.post(&id, message("n")).await.unwrap();
        world.pass(Duration::from_millis(300)).await;
        assert_eq!(world.script.taken_ids(), ["m", "n"], "asked for when the stream is back");
        zero.probes.post(&id, message("o")).await.unwrap();
        world.pass(Duration::from_millis(100)).await;
        assert_eq!(world.script.taken_ids(), ["m", "n", "o"]);
    }
}

#[tokio::test(start_paused = true)]
async fn posts_while_their_owner_is_away_are_handled_when_it_is_back() {
    let world = World::in_memory();
    count_messages(&world);
    let zero = start(&world, "zero").await;
    let ids: Vec<_> = ids_of("one").take(50).collect();
    for id in &ids {
        zero.probes.post(id, message("m")).await.unwrap();
    }
    assert!(matches!(zero.probes.request(&ids[0], get("n")).await, Err(RequestError::NotOwner { .. })));
    world.pass(60 * SECOND).await;
    let one = start(&world, "one").await;
    world.pass(SECOND).await;
    for id in &ids {
        assert_eq!(one.probes.request(id, get("n")).await.unwrap(), Some(1));
    }
}

on_each_store! {
    async fn a_message_survives_a_crash_at_any_moment_and_has_its_effect_once(world: World) {
        count_messages(&world);
        for round in 0..12_u32 {
            let id: &'static str = Box::leak(format!("a-{round}").into_boxed_str());
            let site = world.start().await;
            world.settle().await;
            // The next of the calls that the post, the page and the commit make does not come back.
            let next = world.store.begun() + u64::from(round % 4);
            world.store.fail_at(next, if round < 4 { Fault::Hang } else { Fault::HangAfter });
            let posting = site.probes.clone();
            let post = tokio::spawn(async move { posting.post(id, message("m")).await });
            world.pass(Duration::from_millis(100)).await;
            let posted = post.is_finished() && post.await.unwrap().is_ok();
            site.crash();
            world.store.heal();
            world.store.release_hanging();
            world.reopen().await;
            let site = world.start().await;
            world.pass(10 * SECOND).await;
            let n = site.probes.request(id, get("n")).await.unwrap();
            assert!(n == Some(1) || (n.is_none() && !posted), "round {round}: {n:?}, posted: {posted}");
            site.host.drain(SECOND).await;
            drop(site);
            world.reopen().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_post_is_repeated_while_the_store_cannot_be_reached_and_inserted_once() {
    let world = World::in_memory();
    count_messages(&world);
    let site = world.start().await;
    world.store.fail_next(Method::Post, Fault::FailBefore);
    world.store.fail_next(Method::Post, Fault::FailBefore);
    let posted = site.probes.post("a", NewPost::new("without an ID of its own")).await.unwrap();
    assert_eq!(posted, Posted::Inserted);
    assert_eq!(world.store.calls(Method::Post), 3);
    world.settle().await;
    assert_eq!(site.probes.request("a", get("n")).await.unwrap(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_post_whose_answer_is_lost_is_not_repeated_behind_its_owner_who_has_handled_it() {
    let world = World::in_memory();
    count_messages(&world);
    let site = world.start().await;
    world.store.fail_next(Method::Post, Fault::FailAfter);
    let answer = site.probes.post("a", message("m")).await;
    assert!(matches!(answer, Err(RequestError::Unknown(_))), "{answer:?}");
    world.pass(60 * SECOND).await;
    assert_eq!(site.probes.request("a", get("n")).await.unwrap(), Some(1), "handled, and once");
    assert_eq!(world.store.calls(Method::Post), 1);
}

#[tokio::test(start_paused = true)]
async fn a_post_through_its_owner_is_looked_for_once() {
    let world = World::in_memory();
    count_messages(&world);
    let loads = Arc::new(AtomicUsize::new(0));
    let counted = loads.clone();
    let store = Between::new(MemoryStore::with_clock(Arc::new(world.clock.clone())));
    let store = store.on_load(move |_, _| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let site = world.launch(world.equip(Host::local(store)), |probes| probes).await;
    world.settle().await;
    let before = loads.load(Ordering::Relaxed);
    for n in 1..=10 {
        site.probes.post("a", message("m")).await.unwrap();
        world.settle().await;
        assert_eq!(site.probes.request("a", get("n")).await.unwrap(), Some(n));
    }
    assert_eq!(loads.load(Ordering::Relaxed) - before, 10, "the hint of the store asks for no second pass");
}

#[tokio::test(start_paused = true)]
async fn a_post_to_a_store_that_is_down_ends_within_the_commit_timeout_and_says_that_it_did_not_happen() {
    let world = World::in_memory();
    let site = world.launch(world.local().commit_timeout(10 * SECOND).store_timeout(2 * SECOND), |probes| probes).await;
    world.store.set_down(true);
    let began = world.now();
    assert!(matches!(site.probes.post("a", message("m")).await, Err(RequestError::Store(_))), "it did not happen");
    assert!((10_000..13_000).contains(&(world.now() - began)));
}

on_each_store! {
    async fn at_takeover_messages_are_taken_before_overdue_alarms_fire(world: World) {
        let id = id_of("one");
        let one = start(&world, "one").await;
        for alarm in 0..20 {
            one.probes.set_alarm(&id, &format!("x{alarm}"), world.at(5_000), &()).await.unwrap();
        }
        one.host.crash();
        let zero = start(&world, "zero").await;
        world.pass(10 * SECOND).await;
        // More than one page, and later than the alarms' time.
        for n in 0..150 {
            zero.probes.post(&id, message(&format!("{n}"))).await.unwrap();
        }
        world.script.on_message(|me, _, _| {
            me.script.note("message");
            Box::pin(async { Ok(()) })
        });
        world.script.on_alarm(|me, _, _| {
            me.script.note("alarm");
            Box::pin(async { Ok(()) })
        });
        let _one = start(&world, "one").await;
        world.pass(10 * SECOND).await;
        let notes = world.script.notes();
        assert_eq!(notes.len(), 170);
        assert!(notes[..150].iter().all(|note| note == "message"), "{notes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_that_a_message_goes_before_the_alarms_that_are_due_later_and_after_those_due_earlier() {
    let world = World::in_memory();
    let site = world.launch(world.local().max_firing(1), |probes| probes).await;
    world.settle().await;
    world.script.on_alarm(|me, _, alarm| {
        let note = alarm.id().to_owned();
        let sleep = me.sleep(if note == "first" { 10 * SECOND } else { Duration::ZERO });
        Box::pin(async move {
            me.script.note(note);
            sleep.await;
            Ok(())
        })
    });
    world.script.on_message(|me, _, message| {
        me.script.note(message.id());
        Box::pin(async { Ok(()) })
    });
    // Only one may be handled at a time, so the others wait for this one.
    site.probes.set_alarm("b", "first", world.at(0), &()).await.unwrap();
    world.settle().await;
    site.probes.set_alarm("a", "earlier", world.at(1_000), &()).await.unwrap();
    site.probes.set_alarm("a", "later", world.at(3_000), &()).await.unwrap();
    world.pass(2 * SECOND).await;
    site.probes.post("a", message("message")).await.unwrap();
    world.pass(20 * SECOND).await;
    assert_eq!(world.script.notes(), ["first", "earlier", "message", "later"]);
}

#[tokio::test(start_paused = true)]
async fn messages_that_keep_failing_keep_neither_others_nor_alarms_out() {
    in_time(async {
        let world = World::in_memory();
        // One shard, so that all are in each other's way.
        let fleet = Fleet::new(["only"], 1).unwrap();
        world.script.on_message(|me, _, message| {
            let poison = message.id().starts_with("poison");
            Box::pin(async move {
                if poison {
                    return Err(Failed::Told("poison"));
                }
                me.script.note("well");
                Ok(())
            })
        });
        let retry = RetryPolicy::new().first(600 * SECOND);
        let site = world.launch(world.member("only", &fleet), |probes| probes.retry(retry)).await;
        for n in 0..1_500 {
            site.probes.post("bad", message(&format!("poison-{n}"))).await.unwrap();
        }
        for n in 0..20 {
            site.probes.post("good", message(&format!("{n}"))).await.unwrap();
        }
        world.pass(60 * SECOND).await;
        assert_eq!(world.script.notes().len(), 20);
        assert_eq!(world.script.taken().len(), 1_520);
        site.crash();
        // The next owner finds a thousand that failed before anything else.
        let site = world.launch(world.member("only", &fleet), |probes| probes.retry(retry)).await;
        site.probes.set_alarm("good", "x", world.at(0), &()).await.unwrap();
        site.probes.post("good", message("last")).await.unwrap();
        world.pass(60 * SECOND).await;
        assert_eq!(world.script.fired_ids(), ["x"]);
        assert_eq!(world.script.notes().len(), 21);
        world.pass(660 * SECOND).await;
        assert_eq!(world.script.taken().len(), 1_520 + 1 + 1_500, "and each of them was tried again at its time");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_message_of_a_kind_this_program_cannot_handle_stays_and_is_in_nobodys_way() {
    use stable_interfaces::{Context, Handle, Host, OnMessage, StableInterface};

    struct Other;
    impl StableInterface for Other {
        const NAME: &'static str = "other";
        type Error = ContextError;
    }
    impl OnMessage for Other {
        async fn on_message(&mut self, _: &mut Context, _: &stable_interfaces::Message) -> Result<(), ContextError> {
            Ok(())
        }
    }
    impl Handle<()> for Other {
        type Reply = ();
        async fn handle(&mut self, _: &mut Context, (): ()) -> Result<(), ContextError> {
            Ok(())
        }
    }

    let world = World::in_memory();
    let fleet = Fleet::new(["only"], 1).unwrap();
    let mut builder = world.member("only", &fleet);
    let probes = builder.interface(world.factory()).with_alarms().with_inbox().register().unwrap();
    // Without an inbox, although others may post to it.
    let _others = builder.interface(|_| Other).register().unwrap();
    let host: Host = builder.start().await.unwrap();
    let outside = FleetClient::new(Arc::new(world.store.clone()), fleet.clone());
    for n in 0..200 {
        outside.post("other", "o", message(&format!("{n}"))).await.unwrap();
    }
    probes.post("a", message("mine")).await.unwrap();
    probes.set_alarm("a", "x", world.at(0), &()).await.unwrap();
    world.pass(10 * SECOND).await;
    assert_eq!(world.script.taken_ids(), ["mine"]);
    assert_eq!(world.script.fired_ids(), ["x"]);
    assert_eq!(world.dump().inbox().count(), 200, "left in the store");
    host.drain(SECOND).await;

    // The next owner has what it takes.
    let mut builder = world.member("only", &fleet);
    let _others = builder.interface(|_| Other).with_inbox().register().unwrap();
    let _host = builder.start().await.unwrap();
    world.pass(10 * SECOND).await;
    assert_eq!(world.dump().inbox().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_messages_is_handled_within_the_cap_and_requests_are_served_meanwhile() {
    let world = World::in_memory();
    let site = world.launch(world.local().max_firing(8), |probes| probes).await;
    world.script.on_message(|me, _, _| {
        let sleep = me.sleep(SECOND);
        Box::pin(async move {
            let running = me.script.clone();
            running.note("+");
            sleep.await;
            running.note("-");
            Ok(())
        })
    });
    for n in 0..200 {
        site.probes.post(&format!("i-{n}"), message("m")).await.unwrap();
    }
    world.pass(Duration::from_millis(500)).await;
    site.probes.request("other", count("n")).await.unwrap();
    world.pass(60 * SECOND).await;
    let (mut running, mut most) = (0, 0);
    for note in world.script.notes() {
        running += if note == "+" { 1 } else { -1 };
        most = most.max(running);
    }
    assert_eq!((running, most, world.script.notes().len()), (0, 8, 400));
}

#[tokio::test(start_paused = true)]
async fn a_message_can_be_posted_from_a_handler_to_its_own_instance() {
    let world = World::in_memory();
    count_messages(&world);
    let site = world.start().await;
    let probes = site.probes.clone();
    let post = act(move |_: &mut Probe, _| {
        Box::pin(async move { probes.post("a", message("m")).await.map_err(|error| Failed::Nested(error.to_string())) })
    });
    assert_eq!(site.probes.request("a", post).await.unwrap(), Posted::Inserted);
    world.settle().await;
    assert_eq!(site.probes.request("a", get("n")).await.unwrap(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_post_without_a_limit_of_time_ends_with_its_host() {
    let world = World::in_memory();
    let site = world.launch(world.local().commit_timeout(Duration::MAX), |probes| probes).await;
    world.store.set_chance(Method::Post, Fault::FailBefore, 1.0);
    let probes = site.probes.clone();
    let mut post = tokio::spawn(async move { probes.post("a", NewPost::new("")).await });
    world.pass(600 * SECOND).await;
    assert!(now_or_never(&mut post).await.is_none(), "the store may be back at any time");
    site.crash();
    let error = in_time(post).await.unwrap().unwrap_err();
    assert!(matches!(error, RequestError::Draining) && !error.may_have_happened(), "{error}");
    let posts = world.store.calls(Method::Post);
    world.pass(60 * SECOND).await;
    assert_eq!(world.store.calls(Method::Post), posts, "nobody goes on");
}

#[tokio::test(start_paused = true)]
async fn a_store_in_memory_follows_the_clock_of_its_only_host_unless_it_has_one() {
    let world = World::in_memory();
    world.script.on_message(|me, _, message| {
        me.script.note(format!("{}", message.arrived().as_millis()));
        Box::pin(async { Ok(()) })
    });
    let site = world.launch(world.equip(Host::local(MemoryStore::new())), |probes| probes).await;
    world.pass(3 * SECOND).await;
    site.probes.post("a", NewPost::new("")).await.unwrap();
    world.pass(SECOND).await;
    assert_eq!(world.script.notes(), [world.at(3_000).as_millis().to_string()]);
    let of_its_own = MemoryStore::with_clock(Arc::new(SystemClock::default()));
    let error = world.equip(Host::local(of_its_own)).start().await.unwrap_err();
    assert!(matches!(error, StartError::ClockSkew { .. }), "{error}");
    assert!(error.to_string().contains("MemoryStore::with_clock"), "{error}");
}
