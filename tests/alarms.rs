//! Alarms: never early, at least once, exactly once in effect, in order, and whatever happens, not forgotten.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use stable_interfaces::clock::{Clock, Sleep};
use stable_interfaces::store::{DamageReason, Damaged, Loaded, Rows, ShardId};
use stable_interfaces::testing::{Fault, Method, SeededRandom, SimClock};
use stable_interfaces::{
    Context, ContextError, Fleet, Handle, Host, InterfaceBuilder, RequestError, RetryPolicy, StableInterface, Timestamp,
};
use system_tests::{
    Between, Do, Failed, Fired, Probe, START, Site, World, act, count, get, in_time, life, on_each_store, put, set,
    spawn, wait,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// The firings so far: alarm, milliseconds after the start, attempt.
fn fired(world: &World) -> Vec<(String, i64, u32)> {
    world.script.fired().into_iter().map(|Fired { alarm, at, attempt, .. }| (alarm, at, attempt)).collect()
}

/// Asserts that these alarms fired, each within a few milliseconds of its time and never before it.
#[track_caller]
fn assert_fired(world: &World, expected: &[(&str, i64)]) {
    let fired = fired(world);
    let is_on_time = |((id, at, _), (expected, due)): (&(String, i64, u32), &(&str, i64))| {
        id == expected && (*due..due + 5).contains(at)
    };
    assert!(
        fired.len() == expected.len() && fired.iter().zip(expected).all(is_on_time),
        "{fired:?} instead of {expected:?}"
    );
}

fn cancel(alarm: &'static str) -> Do<()> {
    act(move |_, cx| Box::pin(async move { Ok(cx.cancel_alarm(alarm)?) }))
}

/// A host with a single shard, so that all its alarms are in one order.
async fn one_shard(
    world: &World,
    configure: impl for<'a> FnOnce(InterfaceBuilder<'a, Probe>) -> InterfaceBuilder<'a, Probe>,
) -> Site {
    let fleet = Fleet::new(["h"], 1).unwrap();
    world.launch(world.member("h", &fleet), configure).await
}

on_each_store! {
    async fn an_alarm_fires_at_its_time_with_what_it_was_set_with(world: World) {
        world.script.on_alarm(|me, cx, alarm| {
            let script = me.script.clone();
            Box::pin(async move {
                let (text, number): (String, i64) = alarm.meta()?;
                assert_eq!((alarm.instance(), alarm.scheduled_at(), alarm.due()), ("a", cx.now(), cx.now()));
                script.note(format!("{text} {number}"));
                cx.put("done", &number)?;
                Ok(())
            })
        });
        let site = world.start().await;
        site.probes.set_alarm("a", "x", world.at(1_000), &("a \u{0}\"text\"", 9_007_199_254_740_993_i64)).await.unwrap();
        assert!(!site.probes.is_running("a"), "an instance is not built to set its alarm from outside");
        world.pass(Duration::from_millis(998)).await;
        assert!(world.script.fired().is_empty());
        world.pass(SECOND).await;
        assert_fired(&world, &[("x", 1_000)]);
        assert_eq!(world.script.notes(), ["a \u{0}\"text\" 9007199254740993"]);
        assert_eq!(site.probes.request("a", get("done")).await.unwrap(), Some(9_007_199_254_740_993));
        assert!(site.probes.alarms("a").await.unwrap().is_empty());
        world.pass(HOUR).await;
        assert_eq!(world.script.fired().len(), 1);
    }
}

on_each_store! {
    async fn an_alarm_moved_later_fires_once_at_its_new_time_where_the_original_fired_it_at_once_and_lost_it(
        world: World
    ) {
        let site = world.start().await;
        site.probes.set_alarm("outside", "later", world.at(1_000), &()).await.unwrap();
        site.probes.set_alarm("outside", "later", world.at(3_000), &()).await.unwrap();
        site.probes.request("inside", set("later", world.at(1_000))).await.unwrap();
        site.probes.request("inside", set("later", world.at(4_000))).await.unwrap();
        site.probes.set_alarm("earlier", "sooner", world.at(900_000), &()).await.unwrap();
        site.probes.set_alarm("earlier", "sooner", world.at(2_000), &()).await.unwrap();
        assert_eq!(site.probes.alarms("outside").await.unwrap()[0].due(), world.at(3_000));
        world.pass(HOUR).await;
        assert_fired(&world, &[("sooner", 2_000), ("later", 3_000), ("later", 4_000)]);
    }
}

on_each_store! {
    async fn an_alarm_that_sets_itself_again_in_its_handler_recurs_until_it_does_not(world: World) {
        let start = START;
        world.script.on_alarm(move |me, cx, alarm| {
            let script = me.script.clone();
            Box::pin(async move {
                let ticks = cx.get::<i64>("ticks").await?.unwrap_or(0) + 1;
                cx.put("ticks", &ticks)?;
                script.note(alarm.fire_id().to_string());
                if ticks < 5 {
                    cx.set_alarm("tick", start + SECOND * u32::try_from(ticks + 1).expect("small"), &())?;
                }
                Ok(())
            })
        });
        let site = world.start().await;
        site.probes.set_alarm("a", "tick", world.at(1_000), &()).await.unwrap();
        world.pass(HOUR).await;
        assert_fired(&world, &[("tick", 1_000), ("tick", 2_000), ("tick", 3_000), ("tick", 4_000), ("tick", 5_000)]);
        assert_eq!(site.probes.request("a", get("ticks")).await.unwrap(), Some(5));
        let mut ids = world.script.notes();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 5, "each setting has a fire ID of its own");
        assert!(site.probes.alarms("a").await.unwrap().is_empty());
    }
}

on_each_store! {
    async fn alarms_with_the_same_id_on_two_instances_of_a_shard_do_not_touch_each_other(world: World) {
        let site = one_shard(&world, |probes| probes).await;
        for (id, at) in [("a", 1_000), ("b", 2_000), ("c", 3_000)] {
            site.probes.set_alarm(id, "same", world.at(at), &id).await.unwrap();
        }
        site.probes.cancel_alarm("b", "same").await.unwrap();
        site.probes.set_alarm("c", "same", world.at(4_000), &()).await.unwrap();
        world.pass(HOUR).await;
        let fired: Vec<_> = world.script.fired().into_iter().map(|fired| fired.instance).collect();
        assert_eq!(fired, ["a", "c"]);
    }
}

on_each_store! {
    async fn cancelling_listing_and_setting_if_absent_work_inside_and_outside(world: World) {
        let site = world.start().await;
        let probes = &site.probes;
        for alarm in ["b", "a", "c"] {
            probes.set_alarm("i", alarm, world.at(2_000), &alarm).await.unwrap();
        }
        assert!(!probes.set_alarm_if_absent("i", "a", world.at(1), &()).await.unwrap());
        assert!(probes.set_alarm_if_absent("i", "d", world.at(2_000), &()).await.unwrap());
        probes.cancel_alarm("i", "b").await.unwrap();
        probes.cancel_alarm("i", "not there").await.unwrap();
        probes.request("i", cancel("c")).await.unwrap();
        let inside = act(|_: &mut Probe, cx| {
            Box::pin(async move { Ok(cx.alarms().await?.iter().map(|alarm| alarm.id().to_owned()).collect::<Vec<_>>()) })
        });
        assert_eq!(probes.request("i", inside).await.unwrap(), ["a", "d"]);
        let outside: Vec<_> = probes.alarms("i").await.unwrap().iter().map(|alarm| alarm.id().to_owned()).collect();
        assert_eq!(outside, ["a", "d"]);
        assert!(probes.alarms("another").await.unwrap().is_empty());
        world.pass(HOUR).await;
        assert_fired(&world, &[("a", 2_000), ("d", 2_000)]);
        assert!(probes.set_alarm_if_absent("i", "a", world.at(0), &()).await.unwrap(), "it has fired and is gone");
    }
}

on_each_store! {
    async fn an_alarm_is_made_due_at_once_inside_and_outside_and_keeps_the_time_it_was_set_for(world: World) {
        let due = world.at(900_000);
        world.script.on_alarm(move |me, _, alarm| {
            assert_eq!(alarm.scheduled_at(), due);
            me.script.note(alarm.id());
            Box::pin(std::future::ready(Ok(())))
        });
        let site = world.start().await;
        for alarm in ["inside", "outside"] {
            site.probes.set_alarm("a", alarm, due, &()).await.unwrap();
        }
        assert!(site.probes.fire_now("a", "outside").await.unwrap());
        world.settle().await;
        assert_eq!(world.script.notes(), ["outside"]);
        let inside = act(|_: &mut Probe, cx| {
            Box::pin(async move { Ok((cx.fire_now("inside").await?, cx.fire_now("not there").await?)) })
        });
        assert_eq!(site.probes.request("a", inside).await.unwrap(), (true, false));
        world.settle().await;
        assert_eq!(world.script.notes(), ["outside", "inside"]);
        assert!(!site.probes.fire_now("a", "outside").await.unwrap(), "it has fired");
        world.pass(HOUR).await;
        assert_eq!(world.script.notes().len(), 2);
    }
}

on_each_store! {
    async fn handlers_of_a_shard_start_in_the_order_of_time_instance_and_id(world: World) {
        let site = one_shard(&world, |probes| probes).await;
        let random = SeededRandom::new(4);
        let mut expected = Vec::new();
        for i in 0..60 {
            let draw = stable_interfaces::clock::Random::next_u64(&random);
            let (instance, alarm, at) = (format!("i-{}", draw % 7), format!("x-{}", draw / 7 % 90), 50 * (draw % 3) as i64);
            if expected.iter().any(|(_, other, id)| (other, id) == (&instance, &alarm)) {
                continue;
            }
            site.probes.set_alarm(&instance, &alarm, world.at(5_000 + at), &i).await.unwrap();
            expected.push((at, instance, alarm));
        }
        expected.sort();
        world.pass(10 * SECOND).await;
        let fired: Vec<_> = world.script.fired().into_iter().map(|fired| (fired.instance, fired.alarm)).collect();
        assert_eq!(fired, expected.into_iter().map(|(_, instance, id)| (instance, id)).collect::<Vec<_>>());
    }
}

on_each_store! {
    async fn any_date_is_a_date_also_before_2001_where_the_original_never_fired(world: World) {
        let site = world.start().await;
        let dates = [
            ("year 1", Timestamp::MIN),
            ("1969", Timestamp::from_millis(-1)),
            ("1970", Timestamp::UNIX_EPOCH),
            ("2000", Timestamp::from_millis(978_307_199_999)),
            ("9999", Timestamp::MAX),
        ];
        let before = world.now();
        for (id, date) in dates {
            site.probes.set_alarm("a", id, date, &()).await.unwrap();
        }
        world.settle().await;
        assert_eq!(world.script.fired_ids(), ["year 1", "1969", "1970", "2000"], "past dates fire at once");
        assert!(world.now() - before < 50);
        let left = site.probes.alarms("a").await.unwrap();
        assert_eq!((left.len(), left[0].id(), left[0].due()), (1, "9999", Timestamp::MAX));
        world.pass(HOUR).await;
        assert_eq!(world.script.fired().len(), 4);
        world.clock.set(Timestamp::MAX);
        world.pass(10 * SECOND).await;
        assert_eq!(world.script.fired_ids().last().map(String::as_str), Some("9999"));
    }
}

on_each_store! {
    async fn an_alarm_cancelled_or_moved_while_it_waits_for_its_busy_instance_does_not_fire(world: World) {
        let site = world.start().await;
        site.probes.set_alarm("a", "cancelled", world.at(1_000), &()).await.unwrap();
        site.probes.set_alarm("a", "moved", world.at(1_000), &()).await.unwrap();
        site.probes.set_alarm("a", "kept", world.at(1_000), &()).await.unwrap();
        let later = world.at(60_000);
        let busy = act(move |me: &mut Probe, cx| {
            let sleep = me.sleep(5 * SECOND);
            Box::pin(async move {
                sleep.await;
                cx.cancel_alarm("cancelled")?;
                cx.set_alarm("moved", later, &())?;
                Ok(())
            })
        });
        site.probes.request("a", busy).await.unwrap();
        world.pass(HOUR).await;
        assert_fired(&world, &[("kept", 5_000), ("moved", 60_000)]);
    }
}

on_each_store! {
    async fn if_the_commit_that_cancels_a_due_alarm_is_refused_the_alarm_fires_after_all(world: World) {
        let site = world.start().await;
        site.probes.set_alarm("a", "x", world.at(1_000), &()).await.unwrap();
        let busy = act(|me: &mut Probe, cx| {
            let sleep = me.sleep(5 * SECOND);
            Box::pin(async move {
                sleep.await;
                Ok(cx.cancel_alarm("x")?)
            })
        });
        world.store.set_chance(Method::Commit, Fault::FailBefore, 1.0);
        let error = site.probes.request("a", busy).await.unwrap_err();
        assert!(matches!(error, RequestError::Store(_)), "{error}");
        assert!(world.script.fired().is_empty(), "against the overlay it was cancelled");
        world.store.heal();
        world.pass(5 * SECOND).await;
        assert_eq!(world.script.fired_ids(), ["x"]);
        assert!(site.probes.alarms("a").await.unwrap().is_empty());
    }
}

on_each_store! {
    async fn an_alarm_does_not_fire_after_an_acknowledged_cancel(world: World) {
        let site = world.start().await;
        for i in 0..40 {
            // Each is cancelled within a millisecond or two of its time, on one side or the other.
            let alarm = format!("x-{i}");
            site.probes.set_alarm("a", &alarm, world.at(world.now() + i % 4), &()).await.unwrap();
            world.pass(Duration::from_millis(u64::try_from(i % 3).unwrap())).await;
            site.probes.cancel_alarm("a", &alarm).await.unwrap();
            let before = world.script.fired().len();
            world.pass(SECOND).await;
            assert_eq!(world.script.fired().len(), before, "{alarm}");
        }
        assert!((1..40).contains(&world.script.fired().len()), "{}", world.script.fired().len());
    }
}

#[tokio::test(start_paused = true)]
async fn memory_that_a_failing_alarm_handler_has_changed_is_not_what_its_next_attempt_stores() {
    let world = World::in_memory();
    world.script.on_alarm(|me, cx, alarm| {
        Box::pin(async move {
            me.memory.push("changed before it is recorded".into());
            if alarm.attempt() < 2 {
                return Err(Failed::Told("no"));
            }
            Ok(cx.put("n", &me.memory.len())?)
        })
    });
    let site = world.start().await;
    site.probes.set_alarm("a", "x", world.at(1_000), &()).await.unwrap();
    world.pass(HOUR).await;
    assert_eq!(world.script.fired().len(), 3);
    assert_eq!(site.probes.request("a", get("n")).await.unwrap(), Some(1));
}

on_each_store! {
    async fn a_failed_alarm_is_tried_again_with_growing_waits_and_its_attempts_survive_a_restart(world: World) {
        world.script.on_alarm(|me, cx, alarm| {
            me.script.note(format!("{} {:?}", alarm.fire_id(), alarm.last_error()));
            let attempt = alarm.attempt();
            assert_eq!(alarm.scheduled_at() , START + SECOND);
            Box::pin(async move {
                cx.put("attempted", &attempt)?;
                if attempt == 1 { std::panic::panic_any("boom") }
                if attempt < 4 { Err(Failed::Told("not yet")) } else { Ok(()) }
            })
        });
        let policy = RetryPolicy::new().first(10 * SECOND).longest(30 * SECOND).attempts(10);
        let mut site = world.launch(world.local(), |probes| probes.retry(policy)).await;
        site.probes.set_alarm("a", "x", world.at(1_000), &()).await.unwrap();
        world.pass(5 * SECOND).await;
        assert_eq!(site.probes.request("a", get("attempted")).await.unwrap(), None, "nothing of a failed attempt happened");
        world.pass(20 * SECOND).await;
        assert_eq!(world.script.fired().len(), 2);
        site.crash();
        world.reopen().await;
        site = world.launch(world.local(), |probes| probes.retry(policy)).await;
        let waiting = site.probes.alarms("a").await.unwrap();
        assert_eq!((waiting[0].attempt(), waiting[0].scheduled_at()), (2, world.at(1_000)));
        assert_eq!(waiting[0].last_error(), Some("panicked: boom"));
        world.pass(HOUR).await;
        let fired = world.script.fired();
        assert_eq!(fired.iter().map(|fired| fired.attempt).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        let waits: Vec<_> = fired.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
        for (wait, least) in waits.iter().zip([10_000, 20_000, 30_000, 30_000]) {
            assert!((least..least + least / 5 + 100).contains(wait), "{waits:?}");
        }
        let notes = world.script.notes();
        let ids: std::collections::BTreeSet<_> = notes.iter().filter_map(|note| note.split(' ').next()).collect();
        assert_eq!(ids.len(), 1, "one fire ID over all attempts: {notes:?}");
        assert!(notes[1].contains("not yet") && notes[2].contains("boom"), "{notes:?}");
        assert_eq!(site.probes.request("a", get("attempted")).await.unwrap(), Some(4));
    }
}

#[tokio::test(start_paused = true)]
async fn an_overdue_alarm_does_not_burn_its_attempts_where_the_original_tried_seven_times_in_a_millisecond() {
    let world = World::in_memory();
    world.script.on_alarm(|_, _, _| Box::pin(async { Err(Failed::Told("the partner is down")) }));
    let site = world.start().await;
    site.probes.set_alarm("a", "x", Timestamp::UNIX_EPOCH, &()).await.unwrap();
    world.pass(2 * SECOND).await;
    assert!(
        (1..=2).contains(&world.script.fired().len()),
        "backoff is counted from now, not from the time it was set for"
    );
    // The default policy keeps trying for a day, and forgets nothing after that.
    world.pass(24 * HOUR).await;
    assert_eq!(site.probes.alarms("a").await.unwrap().len(), 1);
    assert!(site.probes.dead_letters(None, 10).await.unwrap().is_empty());
    assert!(world.script.fired().len() < 40, "{}", world.script.fired().len());
    world.pass(24 * HOUR).await;
    let dead = site.probes.dead_letters(None, 10).await.unwrap();
    assert_eq!((dead.len(), dead[0].reason()), (1, "the partner is down"));
}

on_each_store! {
    async fn an_alarm_given_up_is_a_dead_letter_that_can_be_listed_requeued_and_discarded(world: World) {
        let healthy = Arc::new(AtomicU64::new(0));
        let flag = healthy.clone();
        world.script.on_alarm(move |_, _, alarm| {
            let meta: String = alarm.meta().expect("it was set with a text");
            assert_eq!(meta, alarm.id());
            let result = if flag.load(Ordering::SeqCst) == 1 { Ok(()) } else { Err(Failed::Told("no")) };
            Box::pin(std::future::ready(result))
        });
        let policy = RetryPolicy::new().first(SECOND).attempts(3);
        let mut site = world.launch(world.local(), |probes| probes.retry(policy)).await;
        for (i, alarm) in ["one", "two", "three"].into_iter().enumerate() {
            let at = world.at(1_000 * i as i64);
            site.probes.set_alarm(&format!("i-{i}"), alarm, at, alarm).await.unwrap();
        }
        world.pass(60 * SECOND).await;
        assert_eq!(world.script.fired().len(), 9, "three attempts each");
        site.crash();
        world.reopen().await;
        site = world.launch(world.local(), |probes| probes.retry(policy)).await;
        let probes = &site.probes;
        let dead = probes.dead_letters(None, 10).await.unwrap();
        let ids: Vec<_> = dead.iter().map(|dead| (dead.instance(), dead.id(), dead.reason())).collect();
        assert_eq!(ids, [("i-0", "one", "no"), ("i-1", "two", "no"), ("i-2", "three", "no")], "oldest first");
        assert!(probes.alarms("i-0").await.unwrap().is_empty());
        let page = probes.dead_letters(None, 2).await.unwrap();
        let rest = probes.dead_letters(page.last(), 2).await.unwrap();
        assert_eq!((page.len(), rest.len(), rest[0].id()), (2, 1, "three"));

        healthy.store(1, Ordering::SeqCst);
        assert!(probes.requeue(&dead[0]).await.unwrap());
        assert!(!probes.requeue(&dead[0]).await.unwrap(), "only once");
        assert!(probes.discard(&dead[1]).await.unwrap());
        assert!(!probes.discard(&dead[1]).await.unwrap() && !probes.requeue(&dead[1]).await.unwrap());
        // A newer alarm of the same ID is not overwritten.
        probes.set_alarm("i-2", "three", world.at(900_000_000), "three").await.unwrap();
        assert!(!probes.requeue(&dead[2]).await.unwrap());
        world.pass(SECOND).await;
        let last = world.script.fired().pop().unwrap();
        assert_eq!((world.script.fired().len(), last.alarm.as_str(), last.attempt), (10, "one", 0));
        let left: Vec<_> = probes.dead_letters(None, 10).await.unwrap().iter().map(|dead| dead.id().to_owned()).collect();
        assert_eq!(left, ["three"]);
    }
}

on_each_store! {
    async fn the_effects_of_an_alarm_and_its_removal_are_one_commit(world: World) {
        world.script.on_alarm(|_, cx, _| {
            Box::pin(async move {
                let n = cx.get::<i64>("n").await?.unwrap_or(0) + 1;
                cx.put("n", &n)?;
                Ok(())
            })
        });
        let site = world.start().await;
        site.probes.set_alarm("a", "x", world.at(1_000), &()).await.unwrap();
        // The original logged a failed delete, kept the effects, and fired again.
        world.store.set_chance(Method::Commit, Fault::FailBefore, 1.0);
        world.pass(30 * SECOND).await;
        assert!(!world.script.fired().is_empty());
        world.store.heal();
        world.pass(30 * SECOND).await;
        assert_eq!(site.probes.request("a", get("n")).await.unwrap(), Some(1), "however often it was tried");
        assert!(site.probes.alarms("a").await.unwrap().is_empty());
        assert!(world.script.fired().iter().all(|fired| fired.attempt == 0), "a failing store is not the handler's failure");
    }
}

on_each_store! {
    async fn set_and_cancel_fail_while_the_store_is_down_and_everything_acknowledged_fires_after_its_return(
        world: World
    ) {
        let site = world.start().await;
        site.probes.set_alarm("a", "pending", world.at(20_000), &()).await.unwrap();
        site.probes.set_alarm("a", "to cancel", world.at(25_000), &()).await.unwrap();
        world.store.set_down(true);
        let error = site.probes.set_alarm("b", "refused", world.at(15_000), &()).await.unwrap_err();
        assert!(matches!(error, RequestError::Store(_)), "{error}");
        let error = site.probes.cancel_alarm("a", "to cancel").await.unwrap_err();
        assert!(matches!(error, RequestError::Store(_)), "{error}");
        assert!(world.now() < 25_000, "within the store's deadline each: {}", world.now());
        world.pass(600 * SECOND).await;
        world.store.heal();
        world.pass(5 * SECOND).await;
        assert!(site.probes.alarms("a").await.unwrap().is_empty());
        let mut ids = world.script.fired_ids();
        ids.dedup();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids, ["pending", "to cancel"], "nothing acknowledged from memory, nothing forgotten");
    }
}

on_each_store! {
    async fn a_slow_handler_holds_up_its_own_instance_and_nobody_else(world: World) {
        world.script.on_alarm(|me, _, alarm| {
            let slow = (alarm.id() == "slow").then(|| me.sleep(10 * SECOND));
            Box::pin(async move {
                if let Some(sleep) = slow {
                    sleep.await;
                }
                Ok(())
            })
        });
        let site = one_shard(&world, |probes| probes).await;
        site.probes.set_alarm("a", "slow", world.at(1_000), &()).await.unwrap();
        site.probes.set_alarm("a", "behind it", world.at(1_500), &()).await.unwrap();
        for i in 0..10 {
            site.probes.set_alarm(&format!("b-{i}"), "quick", world.at(2_000), &()).await.unwrap();
        }
        world.pass(5 * SECOND).await;
        assert_eq!(world.script.fired().len(), 11);
        site.probes.set_alarm("c", "set meanwhile", world.at(0), &()).await.unwrap();
        world.settle().await;
        assert_eq!(world.script.fired().len(), 12);
        world.pass(10 * SECOND).await;
        assert_eq!(fired(&world).last().map(|(id, at, _)| (id.as_str(), *at)), Some(("behind it", 11_000)));
    }
}

on_each_store! {
    async fn a_handler_that_never_returns_counts_as_failed_and_the_others_keep_firing(world: World) {
        world.script.on_alarm(|_, _, alarm| {
            let stuck = alarm.id() == "stuck" && alarm.attempt() == 0;
            Box::pin(async move {
                if stuck {
                    std::future::pending::<()>().await;
                }
                Ok(())
            })
        });
        let site = one_shard(&world, |probes| probes.handler_timeout(10 * SECOND)).await;
        site.probes.set_alarm("a", "stuck", world.at(1_000), &()).await.unwrap();
        site.probes.set_alarm("b", "other", world.at(2_000), &()).await.unwrap();
        world.pass(5 * SECOND).await;
        assert_fired(&world, &[("stuck", 1_000), ("other", 2_000)]);
        world.pass(8 * SECOND).await;
        let last = fired(&world).pop().unwrap();
        assert_eq!((last.0.as_str(), last.2), ("stuck", 1), "tried again");
        assert!((12_000..12_300).contains(&last.1), "a second after its deadline of ten: {}", last.1);
        assert!(site.probes.alarms("a").await.unwrap().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn an_alarm_that_its_handler_cancelled_and_committed_does_not_come_back_when_the_handler_fails() {
    for moved in [false, true] {
        let world = World::in_memory();
        let later = world.at(900_000);
        world.script.on_alarm(move |_, cx, alarm| {
            let is_first = alarm.due() < later;
            Box::pin(async move {
                if !is_first {
                    return Ok(());
                }
                if moved {
                    cx.set_alarm("x", later, &())?;
                } else {
                    cx.cancel_alarm("x")?;
                }
                cx.commit().await?;
                cx.put("k", &1)?;
                cx.commit().await?;
                Err(Failed::Told("after all that"))
            })
        });
        let policy = RetryPolicy::new().attempts(1);
        let site = world.launch(world.local(), |probes| probes.retry(policy)).await;
        site.probes.set_alarm("a", "x", world.at(1_000), &()).await.unwrap();
        world.pass(600 * SECOND).await;
        assert_fired(&world, &[("x", 1_000)]);
        assert_eq!(site.probes.alarms("a").await.unwrap().len(), usize::from(moved));
        assert!(site.probes.dead_letters(None, 1).await.unwrap().is_empty(), "the setting that failed is no more");
        world.pass(HOUR).await;
        assert_eq!(world.script.fired().len(), 1 + usize::from(moved));
    }
}

#[tokio::test(start_paused = true)]
async fn an_alarm_whose_handler_committed_half_of_it_fires_again_and_is_completed_by_its_last_commit() {
    let world = World::in_memory();
    world.script.on_alarm(|_, cx, alarm| {
        let attempt = alarm.attempt();
        Box::pin(async move {
            if cx.get::<i64>("sent").await?.is_none() {
                cx.put("sent", &1)?;
                cx.commit().await?;
                if attempt == 0 {
                    return Err(Failed::Told("between two commits"));
                }
            }
            Ok(cx.put("done", &1)?)
        })
    });
    let site = world.start().await;
    site.probes.set_alarm("a", "x", world.at(0), &()).await.unwrap();
    world.pass(10 * SECOND).await;
    assert_eq!(fired(&world).iter().map(|(_, _, attempt)| *attempt).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(site.probes.request("a", get("done")).await.unwrap(), Some(1));
    assert!(site.probes.alarms("a").await.unwrap().is_empty());
}

on_each_store! {
    async fn a_held_alarm_stays_until_its_instance_is_done_with_it_and_fires_again_when_the_instance_ends(
        world: World
    ) {
        world.script.on_alarm(|_, cx, alarm| {
            let keeps = alarm.id() != "plain";
            Box::pin(async move {
                cx.put("seen", &1)?;
                if keeps {
                    cx.hold_alarm();
                }
                Ok(())
            })
        });
        let mut site = world.start().await;
        for alarm in ["held", "moved", "cancelled"] {
            site.probes.set_alarm("a", alarm, world.at(0), &()).await.unwrap();
        }
        world.pass(SECOND).await;
        assert_eq!(site.probes.alarms("a").await.unwrap().len(), 3, "unacknowledged");
        assert_eq!(site.probes.request("a", get("seen")).await.unwrap(), Some(1));
        site.probes.request("a", cancel("cancelled")).await.unwrap();
        site.probes.request("a", set("moved", world.at(30_000))).await.unwrap();
        world.pass(10 * SECOND).await;
        assert_eq!(world.script.fired().len(), 3, "not again while its instance lives");
        world.pass(30 * SECOND).await;
        assert_eq!(world.script.fired_ids()[3..], ["moved"]);
        site.probes.stop("a").await.unwrap();
        world.pass(SECOND).await;
        let mut again = world.script.fired_ids().split_off(4);
        again.sort_unstable();
        assert_eq!(again, ["held", "moved"], "its instance left memory");
        site.crash();
        world.reopen().await;
        site = world.start().await;
        world.pass(SECOND).await;
        let mut again = world.script.fired_ids().split_off(6);
        again.sort_unstable();
        assert_eq!(again, ["held", "moved"], "and the host did");
        assert!(world.script.fired().iter().all(|fired| fired.attempt == 0));
        site.probes.request("a", cancel("held")).await.unwrap();
        site.probes.request("a", cancel("moved")).await.unwrap();
        site.probes.stop("a").await.unwrap();
        world.pass(HOUR).await;
        assert_eq!(world.script.fired().len(), 8);
    }
}

#[tokio::test(start_paused = true)]
async fn held_alarms_do_not_keep_others_from_firing() {
    let world = World::in_memory();
    world.script.on_alarm(|_, cx, alarm| {
        if alarm.id() == "held" {
            cx.hold_alarm();
        }
        Box::pin(std::future::ready(Ok(())))
    });
    let site = world.launch(world.local().max_firing(4), |probes| probes).await;
    for i in 0..20 {
        site.probes.set_alarm(&format!("i-{i}"), "held", world.at(0), &()).await.unwrap();
    }
    world.pass(SECOND).await;
    site.probes.set_alarm("other", "x", world.at(0), &()).await.unwrap();
    world.pass(SECOND).await;
    assert_eq!(world.script.fired_ids().last().map(String::as_str), Some("x"));
    assert_eq!(world.script.fired().len(), 21);
}

/// Another interface, which this test's second host has instead of the probes.
struct Other;

impl StableInterface for Other {
    const NAME: &'static str = "other";
    type Error = ContextError;
}

impl Handle<()> for Other {
    type Reply = ();

    async fn handle(&mut self, _: &mut Context, (): ()) -> Result<(), ContextError> {
        Ok(())
    }
}

on_each_store! {
    async fn an_alarm_of_an_interface_this_program_lacks_is_left_alone_and_holds_up_nothing(world: World) {
        let site = world.start().await;
        site.probes.set_alarm("a", "x", world.at(1_000), &"meta").await.unwrap();
        drop(site);
        world.reopen().await;

        for registered_without_alarms in [false, true] {
            let mut builder = world.local();
            builder.interface(|_| Other).register().unwrap();
            let probes = registered_without_alarms.then(|| builder.interface(world.factory()).register().unwrap());
            let host = builder.start().await.unwrap();
            world.pass(60 * SECOND).await;
            if let Some(probes) = probes {
                let error = probes.set_alarm("a", "y", START, &()).await.unwrap_err();
                assert!(error.to_string().contains("`with_alarms()`"), "{error}");
            }
            assert!(world.script.fired().is_empty());
            let drained = host.drain(SECOND).await;
            assert!(drained.released);
            drop(host);
            world.reopen().await;
        }

        let site = world.start().await;
        world.settle().await;
        assert_eq!(fired(&world).iter().map(|(id, _, attempt)| (id.as_str(), *attempt)).collect::<Vec<_>>(), [("x", 0)]);
        drop(site);
    }
}

on_each_store! {
    async fn a_wall_clock_that_steps_back_fires_nothing_early_or_twice(world: World) {
        let site = world.start().await;
        site.probes.set_alarm("a", "before", world.at(1_000), &()).await.unwrap();
        site.probes.set_alarm("a", "after", world.at(10_000), &()).await.unwrap();
        world.pass(5 * SECOND).await;
        world.clock.step(-3_600_000);
        // Of an hour that this wall has shown already: it is due when it shows it again.
        site.probes.set_alarm("a", "again", world.at(-1_800_000), &()).await.unwrap();
        world.pass(HOUR / 4).await;
        assert_fired(&world, &[("before", 1_000)]);
        world.pass(HOUR * 3 / 4).await;
        assert_fired(&world, &[("before", 1_000), ("again", -1_800_000)]);
        world.pass(10 * SECOND).await;
        assert_fired(&world, &[("before", 1_000), ("again", -1_800_000), ("after", 10_000)]);
    }
}

on_each_store! {
    async fn a_wall_clock_that_steps_forward_fires_what_is_late_within_seconds(world: World) {
        let site = world.start().await;
        site.probes.set_alarm("a", "x", world.at(3_600_000), &()).await.unwrap();
        site.probes.set_alarm("a", "much later", world.at(9_000_000), &()).await.unwrap();
        world.pass(SECOND).await;
        world.clock.step(4_000_000);
        world.pass(6 * SECOND).await;
        assert_eq!(world.script.fired_ids(), ["x"]);
        assert!((4_000_000..4_007_000).contains(&world.script.fired()[0].at));
    }
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_steps_forward_is_noticed_also_while_no_renewal_is_answered() {
    let world = World::in_memory();
    let site = world.start().await;
    site.probes.set_alarm("a", "x", world.at(3_600_000), &()).await.unwrap();
    world.store.set_chance(Method::Renew, Fault::FailBefore, 1.0);
    world.pass(7 * SECOND).await;
    world.clock.step(4_000_000);
    world.pass(6 * SECOND).await;
    assert_eq!(world.script.fired_ids(), ["x"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_while_alarms_are_loaded_is_asked_again_until_they_are() {
    let world = World::in_memory();
    let site = world.start().await;
    for i in 0..300 {
        site.probes.set_alarm(&format!("i-{i}"), "x", world.at(1_000), &()).await.unwrap();
    }
    site.crash();
    for fault in [Fault::FailBefore, Fault::FailAfter, Fault::Hang, Fault::FailBefore] {
        for _ in 0..4 {
            world.store.fail_next(Method::Load, fault);
        }
    }
    let site = world.start().await;
    site.probes.request("i-0", life()).await.expect("requests are served meanwhile");
    world.pass(60 * SECOND).await;
    assert_eq!(world.script.fired().len(), 300);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_row_is_set_aside_listed_and_left_alone_and_its_shard_goes_on() {
    let world = World::in_memory();
    let rows = [
        Damaged { shard: ShardId(0), place: "alarm 17".into(), reason: DamageReason::Undecodable("no meta".into()) },
        Damaged { shard: ShardId(0), place: "alarm 18".into(), reason: DamageReason::NewerVersion(99) },
    ];
    let found = rows.clone();
    let store = Between::new(world.store.clone()).on_load(move |_, loaded| {
        for page in loaded.iter_mut().filter(|page| matches!(page.rows, Rows::Alarms(_))).take(1) {
            page.damaged.extend(found.clone());
        }
    });
    let builder =
        || world.equip(Host::builder("h", Fleet::new(["h"], 1).unwrap()).store(Between::new(world.store.clone())));
    let site = world.launch(builder(), |probes| probes).await;
    site.probes.set_alarm("a", "x", world.at(1_000), &()).await.unwrap();
    assert!(site.host.damaged().is_empty());
    site.crash();
    let broken = world.equip(Host::builder("h", Fleet::new(["h"], 1).unwrap()).store(store));
    let site = world.launch(broken, |probes| probes).await;
    world.pass(5 * SECOND).await;
    assert_eq!(site.host.damaged(), rows, "each once, however often it is met");
    assert_eq!(world.script.fired_ids(), ["x"]);
}

#[tokio::test(start_paused = true)]
async fn an_alarm_that_sets_itself_for_now_again_and_again_is_slowed_down_and_others_go_on() {
    let world = World::in_memory();
    world.script.on_alarm(|_, cx, alarm| {
        let runaway = alarm.id() == "runaway";
        Box::pin(async move {
            if runaway {
                cx.set_alarm("runaway", cx.now(), &())?;
            }
            Ok(())
        })
    });
    let site = world.launch(world.local().max_fires_per_second(20), |probes| probes).await;
    site.probes.set_alarm("a", "runaway", world.at(0), &()).await.unwrap();
    for i in 0..50 {
        site.probes.set_alarm(&format!("i-{i}"), "x", world.at(5_000), &()).await.unwrap();
    }
    in_time(world.pass(10 * SECOND)).await;
    let ids = world.script.fired_ids();
    let runs = ids.iter().filter(|id| *id == "runaway").count();
    assert!((150..=240).contains(&runs), "{runs} in ten seconds");
    assert_eq!(ids.len() - runs, 50);
    site.probes.cancel_alarm("a", "runaway").await.unwrap();
    let runs = world.script.fired().len();
    world.pass(10 * SECOND).await;
    assert_eq!(world.script.fired().len(), runs, "and it can be cancelled");
}

#[tokio::test(start_paused = true)]
async fn fifty_thousand_alarms_due_at_restart_fire_oldest_first_under_the_cap_while_new_work_is_served() {
    const INSTANCES: i64 = 500;
    const EACH: i64 = 100;
    let world = World::in_memory();
    let fleet = Fleet::new(["h"], 16).unwrap();
    let builder = || world.member("h", &fleet).max_firing(64).alarm_window(1_600);
    let site = world.launch(builder(), |probes| probes).await;
    for i in 0..INSTANCES {
        let many = act(move |_: &mut Probe, cx| {
            Box::pin(async move {
                for j in 0..EACH {
                    let due = START + HOUR + Duration::from_millis(u64::try_from(j * INSTANCES + i).unwrap());
                    cx.set_alarm(&format!("x-{j}"), due, &())?;
                }
                Ok(())
            })
        });
        site.probes.request(&format!("i-{i}"), many).await.unwrap();
    }
    assert!(site.host.drain(SECOND).await.released);
    world.pass(2 * HOUR).await;

    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let order = Arc::new(Mutex::new(BTreeMap::<ShardId, Vec<Timestamp>>::new()));
    let (now_running, peak, starts) = (running.clone(), most.clone(), order.clone());
    world.script.on_alarm(move |me, cx, alarm| {
        let sleep = me.sleep(Duration::from_millis(1));
        peak.fetch_max(now_running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        starts.lock().entry(cx.shard()).or_default().push(alarm.due());
        let running = now_running.clone();
        Box::pin(async move {
            sleep.await;
            running.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        })
    });
    let largest_page = Arc::new(AtomicUsize::new(0));
    let largest = largest_page.clone();
    let store = Between::new(world.store.clone()).on_load(move |pages, _| {
        largest.fetch_max(pages.iter().map(|page| page.limit).max().unwrap_or(0), Ordering::SeqCst);
    });
    let restarted = world.equip(Host::builder("h", fleet.clone()).store(store)).max_firing(64).alarm_window(1_600);
    let site = world.launch(restarted, |probes| probes).await;
    world.pass(Duration::from_millis(20)).await;
    assert!(world.script.fired().len() < 5_000);
    assert_eq!(site.probes.request("new work", count("n")).await.unwrap(), 1);
    site.probes.set_alarm("new work", "past", Timestamp::MIN, &()).await.unwrap();
    world.pass(Duration::from_millis(20)).await;
    assert!(world.script.fired_ids().iter().any(|id| id == "past"), "the oldest goes first, also when it is new");
    world.pass(HOUR).await;
    assert_eq!(world.script.fired().len(), usize::try_from(INSTANCES * EACH).unwrap() + 1);
    assert_eq!(most.load(Ordering::SeqCst), 64, "at the cap and not over it");
    let mut order = order.lock().clone();
    let past = |time: &Timestamp| *time != Timestamp::MIN;
    for (shard, starts) in &mut order {
        starts.retain(past);
        assert!(starts.is_sorted(), "shard {shard}");
    }
    assert!(
        largest_page.load(Ordering::SeqCst) <= 200,
        "memory holds what the window may hold, not what the store has"
    );
    assert_eq!(world.dump().alarms().count(), 0);
}

/// Alarms with a meta of 30 kB each, all due, in the store and in nobody's memory.
async fn fat_alarms(world: &World, instances: i64, each: i64) {
    let site = world.start().await;
    for i in 0..instances {
        let many = act(move |_: &mut Probe, cx| {
            Box::pin(async move {
                for j in 0..each {
                    cx.set_alarm(&format!("x-{j}"), START + HOUR, &"x".repeat(30_000))?;
                }
                Ok(())
            })
        });
        site.probes.request(&format!("i-{i}"), many).await.unwrap();
    }
    assert!(site.host.drain(SECOND).await.released);
    world.pass(2 * HOUR).await;
}

#[tokio::test(start_paused = true)]
async fn alarms_that_no_answer_can_hold_together_are_loaded_by_and_by() {
    let world = World::in_memory();
    fat_alarms(&world, 20, 15).await;
    // A link, a deadline or a buffer that takes less than two of them.
    let tight = |between: Between| {
        between.on_load(|_, loaded| {
            let bytes = |loaded: &Loaded| match &loaded.rows {
                Rows::Alarms(rows) => rows.iter().map(|row| row.meta.len()).sum(),
                _ => 0,
            };
            if loaded.iter().map(bytes).sum::<usize>() > 50_000 {
                loaded.clear();
            }
        })
    };
    let site = world.launch(world.local_behind(tight), |probes| probes).await;
    world.pass(600 * SECOND).await;
    assert_eq!(world.script.fired().len(), 300);
    assert!(site.host.is_ready(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_page_without_rows_that_is_said_not_to_be_the_last_is_asked_for_again_after_a_pause_and_reported() {
    let world = World::in_memory();
    fat_alarms(&world, 1, 1).await;
    let (asked, is_broken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
    let broken = {
        let (asked, is_broken) = (asked.clone(), is_broken.clone());
        move |between: Between| {
            between.on_load(move |pages, loaded| {
                asked.fetch_add(pages.len(), Ordering::SeqCst);
                if is_broken.load(Ordering::SeqCst) {
                    for loaded in loaded {
                        loaded.is_last = false;
                        if let Rows::Alarms(rows) = &mut loaded.rows {
                            rows.clear();
                        }
                    }
                }
            })
        }
    };
    let site = world.launch(world.local_behind(broken), |probes| probes).await;
    world.pass(60 * SECOND).await;
    // At most 256 shards with two pages each in a call, once a second.
    let asked = asked.load(Ordering::SeqCst);
    assert!((100..100 * 512).contains(&asked), "asked for {asked} pages");
    assert!(!site.host.is_ready(5 * SECOND) && site.host.overdue() > 50 * SECOND);
    let error = site.probes.all_alarms(None, 10).await.unwrap_err().report().to_string();
    assert!(
        error.contains("no further rows of shard 0 and said that there are more, which is a fault of the store"),
        "{error}"
    );
    is_broken.store(false, Ordering::SeqCst);
    world.pass(60 * SECOND).await;
    assert_eq!(world.script.fired().len(), 1);
    assert!(site.host.is_ready(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn rows_of_another_kind_in_a_list_of_all_alarms_are_a_fault_of_the_store() {
    let world = World::in_memory();
    let is_broken = Arc::new(AtomicBool::new(false));
    let broken = {
        let is_broken = is_broken.clone();
        move |between: Between| {
            between.on_load(move |pages, loaded| {
                if is_broken.load(Ordering::SeqCst) && pages.len() > 1 {
                    loaded.iter_mut().for_each(|loaded| loaded.rows = Rows::Dead(Vec::new()));
                }
            })
        }
    };
    let site = world.launch(world.local_behind(broken), |probes| probes).await;
    world.settle().await;
    is_broken.store(true, Ordering::SeqCst);
    let error = site.probes.all_alarms(None, 10).await.unwrap_err().report().to_string();
    assert!(error.contains("rows of another kind"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn alarms_that_cannot_be_loaded_are_overdue_and_their_host_is_not_ready() {
    let world = World::in_memory();
    fat_alarms(&world, 1, 1).await;
    world.store.set_chance(Method::Load, Fault::FailBefore, 1.0);
    let site = world.start().await;
    world.pass(10 * SECOND).await;
    assert!((9 * SECOND..=10 * SECOND).contains(&site.host.overdue()), "{:?}", site.host.overdue());
    assert!(!site.host.is_ready(5 * SECOND));
    world.store.heal();
    world.pass(10 * SECOND).await;
    assert_eq!(world.script.fired().len(), 1);
    assert!(site.host.is_ready(Duration::ZERO) && site.host.overdue() == Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_host_holds_no_more_bytes_of_alarms_than_it_may_also_while_they_fire() {
    let world = World::in_memory();
    let site = world.start().await;
    for i in 0..40 {
        let two = act(move |_: &mut Probe, cx| {
            Box::pin(async move {
                for j in 0..2 {
                    cx.set_alarm(&format!("x-{j}"), START + 2 * HOUR, &"x".repeat(200_000))?;
                }
                Ok(())
            })
        });
        site.probes.request(&format!("i-{i}"), two).await.unwrap();
    }
    assert!(site.host.drain(SECOND).await.released);

    let loaded = Arc::new(AtomicUsize::new(0));
    let pages = loaded.clone();
    let counted = |between: Between| {
        between.on_load(move |_, loaded| {
            for page in loaded {
                if let Rows::Alarms(rows) = &page.rows {
                    pages.fetch_add(rows.len(), Ordering::SeqCst);
                }
            }
        })
    };
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now_running, peak) = (running.clone(), most.clone());
    world.script.on_alarm(move |me, _, _| {
        let sleep = me.sleep(Duration::from_millis(10));
        peak.fetch_max(now_running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let running = now_running.clone();
        Box::pin(async move {
            sleep.await;
            running.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        })
    });
    let site = world.launch(world.local_behind(counted).alarm_window_bytes(2_000_000), |probes| probes).await;
    world.pass(HOUR).await;
    let read = loaded.load(Ordering::SeqCst);
    assert!(read <= 80, "{read} rows were loaded to wait for an hour");
    assert_eq!(site.host.overdue(), Duration::ZERO);
    world.pass(HOUR - Duration::from_millis(u64::try_from(world.now() % 3_600_000).unwrap())).await;
    world.pass(60 * SECOND).await;
    assert_eq!(world.script.fired().len(), 80);
    // Half of the bytes, and the one that crosses that.
    let most = most.load(Ordering::SeqCst);
    assert!((2..=6).contains(&most), "{most} at once");
    let late = fired(&world).iter().map(|(_, at, _)| at - 7_200_000).max().unwrap();
    assert!(late < 20_000, "the last one is {late} ms late");
}

/// Counts how often anything sleeps.
#[derive(Debug)]
struct Counting(SimClock, AtomicUsize);

impl Clock for Counting {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        assert!(self.1.fetch_add(1, Ordering::SeqCst) < 1_000_000, "it turns on the spot");
        self.0.sleep(duration)
    }

    fn sleep_exact(&self, until: Timestamp) -> Sleep {
        self.sleep(until.since(self.now()))
    }

    fn is_simulated(&self) -> bool {
        self.0.is_simulated()
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_host_hardly_wakes_up_where_the_original_did_6800_times_a_second() {
    let world = World::in_memory();
    let clock = Arc::new(Counting(world.clock.clone(), AtomicUsize::new(0)));
    let site = world.launch(world.local().clock(clock.clone()), |probes| probes).await;
    for i in 0..100 {
        site.probes.request(&format!("i-{i}"), put("k", 1)).await.unwrap();
    }
    world.settle().await;
    let before = clock.1.load(Ordering::SeqCst);
    world.pass(HOUR).await;
    let wakes = clock.1.load(Ordering::SeqCst) - before;
    // Every five seconds it asks the store for messages that nobody hinted at, each time with a deadline.
    assert!(wakes <= 1_600, "{wakes} in an hour");
    // While an alarm waits, the wall is looked at every few seconds: it may step.
    site.probes.set_alarm("a", "x", world.at(100_000_000_000), &()).await.unwrap();
    let before = clock.1.load(Ordering::SeqCst);
    world.pass(HOUR).await;
    let wakes = clock.1.load(Ordering::SeqCst) - before;
    assert!((2_100..=2_400).contains(&wakes), "{wakes} in an hour");
}

#[tokio::test(start_paused = true)]
async fn draining_with_overdue_alarms_does_not_turn_on_the_spot_and_leaves_them_to_the_next_owner() {
    let world = World::in_memory();
    let clock = Arc::new(Counting(world.clock.clone(), AtomicUsize::new(0)));
    let site = world.launch(world.local().clock(clock.clone()).max_firing(1), |probes| probes).await;
    world.script.on_alarm(|me, _, _| {
        let sleep = me.sleep(10 * SECOND);
        Box::pin(async move {
            sleep.await;
            Ok(())
        })
    });
    for i in 0..5 {
        site.probes.set_alarm(&format!("i-{i}"), "x", world.at(0), &()).await.unwrap();
    }
    world.pass(SECOND).await;
    let drained = site.host.drain(60 * SECOND).await;
    assert_eq!((drained.unfinished, drained.released), (0, true));
    assert!((9_000..10_100).contains(&world.now()), "{}", world.now());
    assert_eq!(world.script.fired().len(), 1, "alarms stop firing first");
    let _site = world.start().await;
    world.pass(30 * SECOND).await;
    assert_eq!(world.script.fired().len(), 5);
}

on_each_store! {
    async fn an_alarm_set_for_a_running_instance_waits_for_its_handler_and_its_state(world: World) {
        world.script.on_alarm(|me, _, _| {
            me.script.note(format!("{} {:?}", me.life, me.memory));
            Box::pin(std::future::ready(Ok(())))
        });
        let site = world.start().await;
        let busy = act(|me: &mut Probe, cx| {
            let sleep = me.sleep(2 * SECOND);
            Box::pin(async move {
                cx.set_alarm("x", START, &())?;
                sleep.await;
                me.memory.push("done".into());
                Ok(())
            })
        });
        site.probes.request("a", busy).await.unwrap();
        world.settle().await;
        assert_eq!(world.script.notes(), [r#"1 ["done"]"#], "not set before the handler has ended");
    }
}

#[tokio::test(start_paused = true)]
async fn an_alarm_of_a_busy_instance_lets_those_behind_it_pass() {
    let world = World::in_memory();
    let host = world.member("h", &Fleet::new(["h"], 1).unwrap()).max_firing(2);
    let site = world.launch(host, |probes| probes.max_waiting(1)).await;
    // Of the busy one more are due, and sooner, than may be handled at once.
    for (id, alarm, due) in [("a", "u", 400), ("a", "v", 500), ("a", "w", 600), ("b", "x", 1_000), ("c", "y", 1_000)] {
        site.probes.set_alarm(id, alarm, world.at(due), &()).await.unwrap();
    }
    let busy = spawn(&site.probes, "a", wait(5 * SECOND));
    world.settle().await;
    let queued = spawn(&site.probes, "a", life());
    world.pass(2 * SECOND).await;
    assert_fired(&world, &[("x", 1_000), ("y", 1_000)]);
    busy.await.unwrap().unwrap();
    queued.await.unwrap().unwrap();
    world.settle().await;
    assert_eq!(world.script.fired_ids(), ["x", "y", "u", "v", "w"]);
}
