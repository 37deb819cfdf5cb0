//! Effects that handlers record: durable as one, exactly once, and before anybody outside sees anything of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use stable_interfaces::clock::Random;
use stable_interfaces::store::{MAX_VALUE_BYTES, Op};
use stable_interfaces::testing::{Fault, Method, SeededRandom};
use stable_interfaces::{Context, ContextError, Directive, Host, KeyRange, NewPost, RequestError, StoreError};
use system_tests::{
    Between, Do, Failed, Probe, World, act, count, get, in_time, life, on_each_store, put, set, spawn, wait,
};

const SECOND: Duration = Duration::from_secs(1);

/// Keys and values of an instance's storage, as its handlers see it.
fn list() -> Do<Vec<(String, i64)>> {
    act(|_, cx| {
        Box::pin(async move {
            let rows = cx.list(KeyRange::all()).await?;
            let value = |bytes: &[u8]| std::str::from_utf8(bytes).expect("JSON").parse().expect("a number");
            Ok(rows.into_iter().map(|(key, bytes)| (key.to_string(), value(&bytes))).collect())
        })
    })
}

/// The IDs of an instance's alarms, as its handlers see them.
fn alarms() -> Do<Vec<String>> {
    act(|_, cx| Box::pin(async move { Ok(cx.alarms().await?.iter().map(|alarm| alarm.id().to_owned()).collect()) }))
}

fn delete(key: &'static str) -> Do<()> {
    act(move |_, cx| Box::pin(async move { Ok(cx.delete(key)?) }))
}

/// Tells that `error` says for certain that nothing happened.
fn is_certain(error: &RequestError<Failed>) -> bool {
    matches!(error, RequestError::Store(_)) && !error.may_have_happened()
}

on_each_store! {
    async fn the_effects_of_a_handler_are_durable_as_one_when_its_reply_is_there(world: World) {
        let site = world.start().await;
        site.probes.request("a", put("old", 1)).await.unwrap();
        let before = world.store.calls(Method::Commit);
        let far = world.at(1_000_000);
        let all = act(move |_: &mut Probe, cx| {
            Box::pin(async move {
                cx.put("x", &1)?;
                cx.put("y", &2)?;
                cx.put("x", &3)?;
                cx.delete("old")?;
                cx.set_alarm("soon", far, &"meta")?;
                cx.set_alarm("never", far, &())?;
                cx.cancel_alarm("never")?;
                Ok(())
            })
        });
        site.probes.request("a", all).await.unwrap();
        assert_eq!(world.store.calls(Method::Commit) - before, 1);
        site.crash();
        world.reopen().await;
        let site = world.start().await;
        assert_eq!(site.probes.request("a", list()).await.unwrap(), [("x".into(), 3), ("y".into(), 2)]);
        assert_eq!(site.probes.request("a", alarms()).await.unwrap(), ["soon"]);
    }
}

on_each_store! {
    async fn a_lone_caller_waits_for_one_commit_and_no_more_and_a_reader_of_memory_for_none(world: World) {
        let site = world.start().await;
        site.probes.request("a", life()).await.unwrap();
        world.settle().await;
        let before = world.store.begun();
        site.probes.request("a", life()).await.unwrap();
        assert_eq!(world.store.begun(), before, "no store access without effects");
        world.store.fail_next(Method::Commit, Fault::Delay(SECOND));
        let at = world.now();
        site.probes.request("a", put("k", 1)).await.unwrap();
        assert_eq!((world.store.begun() - before, world.now() - at), (1, 1_000), "one call, and nothing waited for");
    }
}

on_each_store! {
    async fn sixty_four_concurrent_callers_share_their_commits(world: World) {
        let site = world.launch(world.local().lanes(1), |probes| probes).await;
        world.store.set_chance(Method::Commit, Fault::Delay(Duration::from_millis(10)), 1.0);
        let callers: Vec<_> = (0..64).map(|i| spawn(&site.probes, &format!("i-{i}"), count("n"))).collect();
        for caller in callers {
            assert_eq!(caller.await.unwrap().unwrap(), 1);
        }
        let commits = world.store.calls(Method::Commit);
        assert!(commits <= 3, "{commits} commits");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_is_not_released_before_its_effects_are_durable_nor_is_any_later_one_of_that_instance() {
    let world = World::in_memory();
    let site = world.start().await;
    site.probes.request("a", life()).await.unwrap();
    world.store.fail_next(Method::Commit, Fault::Hang);
    let writes = spawn(&site.probes, "a", put("k", 1));
    world.settle().await;
    // The instance is free meanwhile: handlers start, see what is not yet durable, and their answers wait.
    let memory = spawn(&site.probes, "a", life());
    let refusal = spawn(&site.probes, "a", act::<()>(|_, _| Box::pin(async { Err(Failed::Refused("no")) })));
    let noted = spawn(
        &site.probes,
        "a",
        act(|me: &mut Probe, cx| {
            Box::pin(async move {
                me.script.note(format!("{:?}", cx.get::<i64>("k").await?));
                Ok(())
            })
        }),
    );
    let elsewhere = spawn(&site.probes, "b", life());
    world.pass(SECOND).await;
    assert_eq!(world.script.notes(), ["Some(1)"], "the second handler has run");
    assert!(world.dump().shards.values().all(|shard| shard.storage.is_empty()));
    assert!(![writes.is_finished(), memory.is_finished(), refusal.is_finished(), noted.is_finished()].contains(&true));
    assert!(elsewhere.is_finished(), "another instance's answer waits for nothing");
    world.store.release_hanging();
    writes.await.unwrap().unwrap();
    assert_eq!(memory.await.unwrap().unwrap(), 1);
    assert!(matches!(refusal.await.unwrap().unwrap_err(), RequestError::Handler(Failed::Refused("no"), _)));
    noted.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_hot_instance_pipelines_its_commits() {
    let world = World::in_memory();
    let site = world.start().await;
    world.store.set_chance(Method::Commit, Fault::Delay(SECOND), 1.0);
    let callers: Vec<_> = (0..100).map(|_| spawn(&site.probes, "hot", count("n"))).collect();
    let mut answers = Vec::new();
    for caller in callers {
        answers.push(caller.await.unwrap().unwrap());
    }
    answers.sort_unstable();
    assert_eq!(answers, (1..=100).collect::<Vec<_>>());
    assert!(world.now() <= 2_000, "{} ms for a hundred requests and commits of a second", world.now());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn handlers_of_a_hot_instance_read_what_was_committed_last_however_many_commits_settle_meanwhile() {
    const CALLERS: u16 = 3_000;
    for round in 0..10 {
        let world = World::in_memory();
        let site = world.launch(world.local(), |probes| probes.max_waiting(CALLERS.into())).await;
        let (begin, begins) = tokio::sync::oneshot::channel::<()>();
        let first = act(|_: &mut Probe, _| {
            Box::pin(async move {
                let _ = begins.await;
                Ok(())
            })
        });
        let first = spawn(&site.probes, "hot", first);
        let callers: Vec<_> = (1..CALLERS).map(|_| spawn(&site.probes, "hot", count("n"))).collect();
        begin.send(()).unwrap();
        first.await.unwrap().unwrap();
        let mut answers = Vec::new();
        for caller in callers {
            answers.push(caller.await.unwrap().unwrap());
        }
        answers.sort_unstable();
        assert_eq!(answers, (1..CALLERS.into()).collect::<Vec<_>>(), "round {round}");
    }
}

on_each_store! {
    async fn after_a_failed_commit_everything_later_of_that_incarnation_fails_and_the_next_begins_from_the_store(
        world: World
    ) {
        let site = world.launch(world.local().lanes(1), |probes| probes).await;
        site.probes.request("a", put("k", 1)).await.unwrap();
        world.store.set_chance(Method::Commit, Fault::FailBefore, 1.0);
        let before = world.now();
        let first = spawn(&site.probes, "a", put("k", 2));
        world.settle().await;
        let later: Vec<_> = (0..3).map(|_| spawn(&site.probes, "a", count("k"))).collect();
        let reader = spawn(&site.probes, "a", life());
        let error = first.await.unwrap().unwrap_err();
        assert!(is_certain(&error) && error.is_retryable(), "{error}");
        assert!((10_000..11_600).contains(&(world.now() - before)), "within the commit timeout");
        world.store.heal();
        for answer in later {
            let error = answer.await.unwrap().unwrap_err();
            assert!(is_certain(&error), "{error}");
        }
        let error = reader.await.unwrap().unwrap_err();
        assert!(is_certain(&error), "an answer from memory that ran ahead of the store is not released: {error}");
        assert_eq!(site.probes.request("a", life()).await.unwrap(), 2, "reset");
        assert_eq!(site.probes.request("a", get("k")).await.unwrap(), Some(1));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_of_the_next_incarnation_runs_before_the_last_one_is_settled() {
    let world = World::in_memory();
    world.script.on_start(|me, cx| {
        Box::pin(async move {
            me.script.note(format!("start {:?}", cx.get::<i64>("k").await?));
            Ok(())
        })
    });
    let site = world.start().await;
    world.store.fail_next(Method::Commit, Fault::Hang);
    let writes = spawn(&site.probes, "a", put("k", 1));
    world.settle().await;
    let panics = spawn(&site.probes, "a", act::<()>(|_, _| Box::pin(async { std::panic::panic_any("boom") })));
    let next = spawn(&site.probes, "a", life());
    let stop = tokio::spawn({
        let probes = site.probes.clone();
        async move { probes.stop("a").await }
    });
    world.pass(SECOND).await;
    assert_eq!((world.script.lives(), world.script.notes()), (1, vec!["start None".to_owned()]));
    assert!(!next.is_finished() && !stop.is_finished());
    world.store.release_hanging();
    assert_eq!(next.await.unwrap().unwrap(), 2);
    assert_eq!(world.script.notes(), ["start None", "start Some(1)"], "the next one reads what the last one wrote");
    writes.await.unwrap().unwrap();
    assert!(matches!(panics.await.unwrap().unwrap_err(), RequestError::Panicked(_)));
    stop.await.unwrap().unwrap();
}

on_each_store! {
    async fn reads_see_the_handlers_own_effects(world: World) {
        let site = world.start().await;
        let far = world.at(1_000_000);
        site.probes.request("a", put("stored", 1)).await.unwrap();
        site.probes.request("a", put("item/2", 2)).await.unwrap();
        site.probes.request("a", set("stored", far)).await.unwrap();
        let see = act(move |_: &mut Probe, cx| {
            Box::pin(async move {
                cx.put("item/1", &10)?;
                cx.put("item/3", &30)?;
                cx.delete("stored")?;
                let items = cx.list("item/").await?.len();
                let range = cx.list("item/1".."item/3").await?.len();
                let first = cx.list(KeyRange::prefix("item/").limit(1)).await?[0].0.to_string();
                let gone = cx.get::<i64>("stored").await?;
                let new = cx.set_alarm_if_absent("new", far, &()).await?;
                let again = cx.set_alarm_if_absent("new", far, &()).await?;
                let stored = cx.set_alarm_if_absent("stored", far, &()).await?;
                cx.cancel_alarm("stored")?;
                let after_cancel = cx.set_alarm_if_absent("stored", far, &()).await?;
                cx.cancel_alarm("new")?;
                let left: Vec<_> = cx.alarms().await?.iter().map(|alarm| alarm.id().to_owned()).collect();
                Ok((items, range, first, gone, [new, again, stored, after_cancel], left))
            })
        });
        let (items, range, first, gone, set, left) = site.probes.request("a", see).await.unwrap();
        assert_eq!((items, range, first.as_str(), gone), (3, 2, "item/1", None));
        assert_eq!((set, left), ([true, false, false, true], vec!["stored".to_owned()]));
    }
}

on_each_store! {
    async fn a_list_with_a_limit_asks_the_store_for_no_more_and_sees_what_was_put_and_deleted(world: World) {
        let site = world.start().await;
        let fill = act(|_: &mut Probe, cx| {
            Box::pin(async move {
                for k in 0..900 {
                    cx.put(&format!("item/{k:03}"), &k)?;
                }
                Ok(())
            })
        });
        site.probes.request("a", fill).await.unwrap();
        let list = |limit| {
            act(move |_: &mut Probe, cx| {
                Box::pin(async move {
                    let found = cx.list(KeyRange::prefix("item/").limit(limit)).await?;
                    Ok(found.into_iter().map(|(key, _)| key[5..].to_owned()).collect::<Vec<_>>())
                })
            })
        };
        for (limit, reads) in [(0, 0), (1, 1), (3, 1), (512, 1), (513, 2), (900, 2), (usize::MAX, 2)] {
            let before = world.store.calls(Method::Read);
            let found = site.probes.request("a", list(limit)).await.unwrap();
            assert_eq!(found, (0..limit.min(900)).map(|k| format!("{k:03}")).collect::<Vec<_>>(), "limit {limit}");
            assert_eq!(world.store.calls(Method::Read) - before, reads, "limit {limit}");
        }
        let changed = act(|_: &mut Probe, cx| {
            Box::pin(async move {
                cx.delete("item/000")?;
                cx.delete("item/002")?;
                cx.put("item/0015", &0)?;
                cx.put("item/zzz", &0)?;
                let first = cx.list(KeyRange::prefix("item/").limit(3)).await?;
                let last = cx.list(KeyRange::from("item/898".."item/~").limit(9)).await?;
                Ok(first.into_iter().chain(last).map(|(key, _)| key[5..].to_owned()).collect::<Vec<_>>())
            })
        });
        let found = site.probes.request("a", changed).await.unwrap();
        assert_eq!(found, ["001", "0015", "003", "898", "899", "zzz"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_or_meta_that_could_not_be_read_again_is_refused_when_it_is_set() {
    let world = World::in_memory();
    let site = world.start().await;
    let deep = (0..200).fold(serde_json::Value::Null, |inner, _| serde_json::Value::Array(vec![inner]));
    let refused = |error: ContextError| matches!(error, ContextError::Json(_));
    assert!(refused(NewPost::json(&f64::NAN).unwrap_err()));
    assert!(refused(Directive::set_alarm("x", world.at(0), &deep).unwrap_err()));
    let set = act(move |_: &mut Probe, cx| {
        Box::pin(async move {
            let far = cx.now() + SECOND;
            let errors = [
                cx.put("k", &[f64::INFINITY]).unwrap_err(),
                cx.put("k", &deep).unwrap_err(),
                cx.set_alarm("x", far, &Some(f32::NAN)).unwrap_err(),
                cx.set_alarm("x", far, &deep).unwrap_err(),
                cx.set_alarm_if_absent("x", far, &deep).await.unwrap_err(),
            ];
            Ok(errors.into_iter().map(|error| matches!(error, ContextError::Json(_))).collect::<Vec<_>>())
        })
    });
    assert_eq!(site.probes.request("a", set).await.unwrap(), [true; 5]);
    let far = world.at(1_000_000);
    assert!(site.probes.set_alarm("a", "x", far, &f64::NEG_INFINITY).await.is_err());
    assert_eq!(site.probes.alarms("a").await.unwrap(), []);
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), None);
}

on_each_store! {
    async fn reads_see_what_earlier_handlers_committed_and_is_not_yet_durable(world: World) {
        let site = world.start().await;
        let far = world.at(1_000_000);
        site.probes.request("a", put("x", 1)).await.unwrap();
        site.probes.request("a", put("y", 1)).await.unwrap();
        site.probes.request("a", set("old", far)).await.unwrap();
        world.store.fail_next(Method::Commit, Fault::Hang);
        let unsettled = [
            spawn(&site.probes, "a", put("x", 2)),
            spawn(&site.probes, "a", delete("y")),
            spawn(&site.probes, "a", set("new", far)),
            spawn(&site.probes, "a", act(|_, cx| Box::pin(async move { Ok(cx.cancel_alarm("old")?) }))),
        ];
        world.settle().await;
        let see = act(move |me: &mut Probe, cx| {
            Box::pin(async move {
                let seen = format!(
                    "{:?} {:?} {} {:?} {} {}",
                    cx.get::<i64>("x").await?,
                    cx.get::<i64>("y").await?,
                    cx.list(KeyRange::all()).await?.len(),
                    cx.alarms().await?.iter().map(|alarm| alarm.id().to_owned()).collect::<Vec<_>>(),
                    cx.set_alarm_if_absent("new", far, &()).await?,
                    cx.set_alarm_if_absent("old", far, &()).await?,
                );
                me.script.note(seen);
                Ok(())
            })
        });
        let see = spawn(&site.probes, "a", see);
        world.pass(SECOND).await;
        assert_eq!(world.script.notes(), [r#"Some(2) None 1 ["new"] false true"#]);
        assert!(unsettled.iter().all(|request| !request.is_finished()), "seen while not durable");
        world.store.release_hanging();
        see.await.unwrap().unwrap();
        for request in unsettled {
            request.await.unwrap().unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_is_overtaken_by_the_commit_it_does_not_contain_shows_that_commit_all_the_same() {
    // The store answers the read before the commit, and the answer arrives after the commit is durable.
    for fault in [Fault::HangAfter, Fault::Delay(2 * SECOND)] {
        let world = World::in_memory();
        let site = world.start().await;
        site.probes.request("a", put("x", 1)).await.unwrap();
        site.probes.request("a", set("old", world.at(1_000_000))).await.unwrap();
        world.store.fail_next(Method::Commit, Fault::Delay(SECOND));
        let write = act(|_: &mut Probe, cx| {
            Box::pin(async move {
                cx.put("x", &2)?;
                cx.put("z", &3)?;
                Ok(cx.cancel_alarm("old")?)
            })
        });
        let write = spawn(&site.probes, "a", write);
        world.settle().await;
        world.store.fail_next(Method::Read, fault);
        let storage = spawn(&site.probes, "a", list());
        world.settle().await;
        world.store.fail_next(Method::Read, fault);
        let rows = spawn(&site.probes, "a", alarms());
        write.await.unwrap().unwrap();
        world.store.release_hanging();
        assert_eq!(storage.await.unwrap().unwrap(), [("x".into(), 2), ("z".into(), 3)], "{fault:?}");
        world.store.release_hanging();
        world.settle().await;
        world.store.release_hanging();
        assert_eq!(rows.await.unwrap().unwrap(), Vec::<String>::new(), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_fails_is_the_stores_word_before_a_commit_and_the_handlers_behind_it() {
    let world = World::in_memory();
    let site = world.start().await;
    for commits in [false, true] {
        world.store.fail_next(Method::Read, Fault::FailBefore);
        let handler = act::<Option<i64>>(move |_: &mut Probe, cx| {
            Box::pin(async move {
                if commits {
                    cx.put("first", &1)?;
                    cx.commit().await?;
                }
                Ok(cx.get("second").await?)
            })
        });
        let error = site.probes.request("a", handler).await.unwrap_err();
        assert_eq!(error.may_have_happened(), commits, "{error}");
        assert_eq!(matches!(error, RequestError::Handler(..)), commits, "{error:?}");
        assert_eq!(matches!(error, RequestError::Store(_)), !commits, "{error:?}");
    }
}

on_each_store! {
    async fn what_was_committed_in_the_middle_of_a_handler_stays_whatever_becomes_of_the_rest(world: World) {
        let site = world.start().await;
        for panics in [false, true] {
            let half = act::<()>(move |me: &mut Probe, cx| {
                Box::pin(async move {
                    cx.put("first", &1)?;
                    cx.commit().await?;
                    me.script.note("outside effect");
                    cx.put("second", &2)?;
                    if panics {
                        std::panic::panic_any("boom");
                    }
                    Err(Failed::Told("no"))
                })
            });
            let id = if panics { "panics" } else { "fails" };
            site.probes.request(id, life()).await.unwrap();
            let before = world.script.lives();
            site.probes.request(id, half).await.unwrap_err();
            assert_eq!(site.probes.request(id, list()).await.unwrap(), [("first".into(), 1)]);
            assert_eq!(world.script.lives(), before + 1, "reset");
        }
    }
}

/// The end of a handler that has committed a part of its effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Fails,
    Panics,
    RunsOutOfTime,
    LastCommitIsRefused,
    LosesItsShard,
}

#[tokio::test(start_paused = true)]
async fn once_a_part_of_a_handler_is_durable_no_answer_says_that_nothing_happened() {
    for end in [End::Fails, End::Panics, End::RunsOutOfTime, End::LastCommitIsRefused, End::LosesItsShard] {
        let world = World::in_memory();
        let site = world.launch(world.local(), |probes| probes.handler_timeout(20 * SECOND)).await;
        let store = world.store.clone();
        let half = act::<()>(move |me: &mut Probe, cx| {
            let (short, long) = (me.sleep(SECOND), me.sleep(60 * SECOND));
            Box::pin(async move {
                cx.put("first", &1)?;
                cx.commit().await?;
                cx.put("second", &2)?;
                match end {
                    End::Fails => return Err(Failed::Told("no")),
                    End::Panics => std::panic::panic_any("boom"),
                    End::RunsOutOfTime => long.await,
                    End::LastCommitIsRefused => store.set_chance(Method::Commit, Fault::FailBefore, 1.0),
                    End::LosesItsShard => short.await,
                }
                Ok(())
            })
        });
        let half = spawn(&site.probes, "a", half);
        world.settle().await;
        let other = if end == End::LosesItsShard { Some(world.start().await) } else { None };
        let error = in_time(half).await.unwrap().unwrap_err();
        world.store.heal();
        assert!(error.may_have_happened() && !error.is_retryable(), "{end:?}: {error}");
        let is_right = match (&error, end) {
            (RequestError::Handler(Failed::Told("no"), _), End::Fails) => true,
            (RequestError::Unknown(cause), _) => matches!(
                (&**cause, end),
                (RequestError::Panicked(_), End::Panics)
                    | (RequestError::TimedOut { .. }, End::RunsOutOfTime)
                    | (RequestError::Store(_), End::LastCommitIsRefused)
                    | (RequestError::Fenced | RequestError::Replaced, End::LosesItsShard)
            ),
            _ => false,
        };
        assert!(is_right, "{end:?}: {error:?}");
        if let RequestError::Unknown(cause) = &error {
            let source = std::error::Error::source(&error).expect("it has a cause");
            assert_eq!(source.to_string(), cause.to_string());
        }
        let site = other.as_ref().unwrap_or(&site);
        assert_eq!(site.probes.request("a", list()).await.unwrap(), [("first".into(), 1)], "{end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_whose_commits_were_all_refused_has_an_answer_that_is_certain_however_it_ends() {
    for end in [End::Fails, End::Panics, End::RunsOutOfTime] {
        let world = World::in_memory();
        let site = world.launch(world.local(), |probes| probes.handler_timeout(20 * SECOND)).await;
        world.store.set_chance(Method::Commit, Fault::FailBefore, 1.0);
        let none = act::<()>(move |me: &mut Probe, cx| {
            let long = me.sleep(60 * SECOND);
            Box::pin(async move {
                cx.put("first", &1)?;
                assert!(matches!(cx.commit().await, Err(ContextError::Store(_))));
                match end {
                    End::Fails => return Err(Failed::Told("no")),
                    End::Panics => std::panic::panic_any("boom"),
                    _ => long.await,
                }
                Ok(())
            })
        });
        let error = site.probes.request("a", none).await.unwrap_err();
        assert!(is_certain(&error) && error.is_retryable(), "{end:?}: {error}");
        world.store.heal();
        assert_eq!(site.probes.request("a", list()).await.unwrap(), [], "{end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_with_nothing_recorded_waits_for_all_that_its_instance_has_under_way_and_gives_its_failure() {
    let world = World::in_memory();
    let site = world.start().await;
    world.store.fail_next(Method::Commit, Fault::Hang);
    let first = spawn(&site.probes, "a", put("k", 1));
    world.settle().await;
    let acts_outside = act(|me: &mut Probe, cx| {
        Box::pin(async move {
            let seen = cx.get::<i64>("k").await?;
            cx.commit().await?;
            me.script.note(format!("told somebody of {seen:?}"));
            Ok(())
        })
    });
    let acts_outside = spawn(&site.probes, "a", acts_outside);
    world.pass(SECOND).await;
    assert!(world.script.notes().is_empty(), "what it has seen is not durable yet");
    world.store.release_hanging();
    first.await.unwrap().unwrap();
    acts_outside.await.unwrap().unwrap();
    assert_eq!(world.script.notes(), ["told somebody of Some(1)"]);

    // However often it is tried again: a commit that failed has not happened.
    world.store.set_chance(Method::Commit, Fault::FailBefore, 1.0);
    let tries = act::<()>(|me: &mut Probe, cx| {
        Box::pin(async move {
            cx.put("k", &2)?;
            for _ in 0..3 {
                match cx.commit().await {
                    Ok(()) => me.script.note("charged"),
                    Err(error) => assert!(matches!(error, ContextError::Store(_)), "{error}"),
                }
            }
            Ok(())
        })
    });
    assert!(is_certain(&site.probes.request("a", tries).await.unwrap_err()));
    assert_eq!(world.script.notes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_commit_in_the_middle_of_a_handler_is_durable_before_the_handler_goes_on() {
    let world = World::in_memory();
    let site = world.start().await;
    world.store.fail_next(Method::Commit, Fault::Hang);
    let half = act(|me: &mut Probe, cx| {
        Box::pin(async move {
            cx.put("k", &1)?;
            cx.commit().await?;
            me.script.note("went on");
            cx.commit().await?; // Nothing recorded and nothing under way: there is nothing to wait for.
            Ok(())
        })
    });
    let half = spawn(&site.probes, "a", half);
    world.pass(SECOND).await;
    assert!(world.script.notes().is_empty());
    world.store.release_hanging();
    half.await.unwrap().unwrap();
    assert_eq!((world.script.notes().len(), world.store.calls(Method::Commit)), (1, 1));

    // If it fails the handler is told, and whatever it then does its instance is reset.
    world.store.set_chance(Method::Commit, Fault::FailBefore, 1.0);
    let ignores = act(|me: &mut Probe, cx| {
        Box::pin(async move {
            me.memory.push("ahead".into());
            cx.put("k", &2)?;
            let failed = cx.commit().await;
            assert!(matches!(failed, Err(ContextError::Store(_))), "{failed:?}");
            Ok(())
        })
    });
    let error = site.probes.request("a", ignores).await.unwrap_err();
    assert!(is_certain(&error), "its Ok is not believed: {error}");
    world.store.heal();
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), Some(1));
    assert_eq!(site.probes.request("a", life()).await.unwrap(), 2);
}

on_each_store! {
    async fn what_is_too_large_is_refused_there_and_then_and_the_handler_may_go_on(world: World) {
        let site = world.start().await;
        let greedy = act(|_: &mut Probe, cx| {
            Box::pin(async move {
                let value = "x".repeat(MAX_VALUE_BYTES - 2);
                cx.put("largest", &value)?;
                assert!(matches!(cx.put("v", &format!("{value}x")), Err(ContextError::TooLarge(_))));
                let meta = cx.set_alarm("a", i64::MAX, &format!("{value}x"));
                assert!(matches!(meta, Err(ContextError::TooLarge(_))));
                let key = "k".repeat(1_025);
                assert!(matches!(cx.put(&key, &1), Err(ContextError::InvalidId { what, .. }) if what == "storage key"));
                assert!(matches!(cx.get::<i64>("").await, Err(ContextError::InvalidId { .. })));
                cx.put(&key[..1_024], &1)?;
                for i in 2..Context::MAX_EFFECTS {
                    cx.put(&format!("n{i}"), &1)?;
                }
                assert!(matches!(cx.put("one more", &1), Err(ContextError::TooLarge(_))));
                cx.commit().await?;
                cx.put("after a commit there is room again", &1)?;
                Ok(())
            })
        });
        site.probes.request("a", greedy).await.unwrap();
        let keys = act(|_: &mut Probe, cx| Box::pin(async move { Ok(cx.list(KeyRange::all()).await?.len()) }));
        assert_eq!(site.probes.request("a", keys).await.unwrap(), Context::MAX_EFFECTS + 1);
    }
}

on_each_store! {
    async fn what_was_executed_but_not_answered_happens_exactly_once(world: World) {
        let site = world.launch(world.local().lanes(1), |probes| probes).await;
        for fault in [Fault::FailAfter, Fault::HangAfter, Fault::LateUntilTold, Fault::HangLate(3 * SECOND)] {
            world.store.fail_next(Method::Commit, fault);
            let id = format!("{fault:?}");
            let before = world.now();
            assert_eq!(site.probes.request(&id, count("n")).await.unwrap(), 1, "never a false failure");
            assert!(world.now() - before < 5_200, "{fault:?}: {}", world.now() - before);
            // The ghost of the first try arrives after later writes of the same keys.
            assert_eq!(site.probes.request(&id, count("n")).await.unwrap(), 2);
            assert_eq!(site.probes.request(&id, put("m", 7)).await.map(drop).ok(), Some(()));
            world.store.deliver_late().await;
            world.store.release_hanging();
            world.pass(5 * SECOND).await;
            site.probes.stop(&id).await.unwrap();
            assert_eq!(site.probes.request(&id, list()).await.unwrap(), [("m".into(), 7), ("n".into(), 2)], "{fault:?}");
        }
    }
}

on_each_store! {
    async fn past_the_commit_timeout_the_caller_hears_unknown_and_the_write_is_repeated_until_it_lands_once(
        world: World
    ) {
        let site = world.launch(world.local().lanes(1), |probes| probes).await;
        site.probes.request("a", count("n")).await.unwrap();
        world.store.set_chance(Method::Commit, Fault::FailAfter, 1.0);
        let before = world.now();
        let error = site.probes.request("a", count("n")).await.unwrap_err();
        assert!(matches!(error, RequestError::Unknown(_)), "{error}");
        assert!(error.may_have_happened() && !error.is_retryable());
        assert!((10_000..11_600).contains(&(world.now() - before)), "{}", world.now() - before);
        let repeats = world.store.calls(Method::Commit);
        world.pass(5 * SECOND).await;
        assert!(world.store.calls(Method::Commit) > repeats, "still trying");

        // What is queued behind it was never sent: after its own time it is withdrawn, and that is certain.
        let behind = spawn(&site.probes, "b", count("n"));
        let error = behind.await.unwrap().unwrap_err();
        assert!(is_certain(&error), "{error}");
        world.store.heal();
        world.pass(2 * SECOND).await;
        assert_eq!(site.probes.request("a", get("n")).await.unwrap(), Some(2), "landed, once");
        assert_eq!(site.probes.request("b", get("n")).await.unwrap(), None, "withdrawn for good");
        assert_eq!(site.probes.request("a", count("n")).await.unwrap(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_blocks_its_own_lane_only() {
    let world = World::in_memory();
    let site = world.launch(world.local().lanes(2), |probes| probes).await;
    let fleet = stable_interfaces::Fleet::new(["local"], 1_024).unwrap();
    let lane =
        |lane: u32| (0..).map(|i| format!("i-{i}")).find(|id| fleet.locate(id).unwrap().shard.0 % 2 == lane).unwrap();
    world.store.fail_next(Method::Commit, Fault::Hang);
    let stuck = spawn(&site.probes, &lane(0), put("k", 1));
    world.settle().await;
    let before = world.now();
    site.probes.request(&lane(1), put("k", 1)).await.unwrap();
    assert_eq!(world.now(), before);
    assert!(!stuck.is_finished());
    stuck.await.unwrap().expect("repeated after the store's timeout");
}

#[tokio::test(start_paused = true)]
async fn with_the_committer_full_requests_are_refused_at_once_and_nothing_piles_up() {
    let world = World::in_memory();
    let site = world.launch(world.local().lanes(1).max_queued_commits(4), |probes| probes).await;
    world.store.hang_from(world.store.begun());
    let mut queued = Vec::new();
    for i in 0..4 {
        queued.push(spawn(&site.probes, &format!("q-{i}"), put("k", 1)));
        world.settle().await;
    }
    let before = world.now();
    for i in 0..100 {
        let error = site.probes.request(&format!("r-{i}"), put("k", 1)).await.unwrap_err();
        assert!(matches!(error, RequestError::Overloaded(_)), "{error}");
    }
    assert_eq!(world.now(), before);
    assert!(site.probes.running() <= 4, "no instance is built for a refused request");
    world.store.release_hanging();
    for request in queued {
        request.await.unwrap().unwrap();
    }
    site.probes.request("r-0", put("k", 1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_waited_for_within_its_deadline_by_reads_too() {
    let world = World::in_memory();
    let site = world.start().await;
    site.probes.request("a", put("k", 1)).await.unwrap();
    world.store.hang_from(world.store.begun());
    let before = world.now();
    let error = site.probes.request("a", get("k")).await.unwrap_err();
    assert!(matches!(error, RequestError::Store(_)) && error.is_retryable(), "{error}");
    assert_eq!(world.now() - before, 5_000);
    let error = site.probes.request("a", put("k", 2)).await.unwrap_err();
    assert!(matches!(error, RequestError::Unknown(_)), "{error}");
    assert!(world.now() - before <= 17_000, "{}", world.now() - before);
    world.store.release_hanging();
    world.pass(SECOND).await;
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn content_that_the_store_refuses_fails_only_the_guilty() {
    for for_the_whole_call in [false, true] {
        let world = World::in_memory();
        let is_poisoned = |ops: &[Op]| ops.iter().any(|op| matches!(op, Op::Put { key, .. } if &**key == "poison"));
        let rejected = || StoreError::Rejected("a key it does not like".into());
        let hold = Arc::new(AtomicBool::new(false));
        let picky = Between::new(world.store.clone()).on_commit(move |write| {
            if !write.batches.iter().any(|batch| is_poisoned(&batch.ops)) {
                return None;
            }
            if for_the_whole_call {
                return Some(Err(rejected()));
            }
            // This wrapper cannot apply the others, so it lets the guilty batches fail and repeats nothing of them.
            Some(Ok(write.batches.iter().map(|_| Err(rejected())).collect()))
        });
        let site = world.launch(world.equip(Host::local(picky)).lanes(1), |probes| probes).await;
        hold.store(true, Ordering::SeqCst);
        world.store.fail_next(Method::Commit, Fault::Delay(SECOND));
        let first = spawn(&site.probes, "first", put("k", 1));
        world.settle().await;
        // All of these go into one write: three instances of as many shards, and the guilty one's own commits around it.
        let innocent: Vec<_> = (0..3).map(|i| spawn(&site.probes, &format!("i-{i}"), count("n"))).collect();
        let before = spawn(&site.probes, "guilty", put("before", 1));
        world.settle().await;
        let guilty = spawn(&site.probes, "guilty", put("poison", 1));
        world.settle().await;
        let after = spawn(&site.probes, "guilty", put("after", 1));
        first.await.unwrap().unwrap();
        for request in innocent {
            assert_eq!(request.await.unwrap().unwrap(), 1);
        }
        before.await.unwrap().expect("committed before the guilty one");
        let error = guilty.await.unwrap().unwrap_err();
        assert!(is_certain(&error) && !error.is_retryable(), "{error}");
        assert!(is_certain(&after.await.unwrap().unwrap_err()), "it built on what did not happen");
        assert_eq!(site.probes.request("guilty", list()).await.unwrap(), [("before".into(), 1)]);
        assert_eq!(site.probes.request("i-0", get("n")).await.unwrap(), Some(1));
    }
}

on_each_store! {
    async fn a_flood_of_effects_in_one_shard_goes_in_several_writes_and_loses_none(world: World) {
        let site = world.launch(world.local().lanes(1), |probes| probes).await;
        world.store.fail_next(Method::Commit, Fault::Delay(SECOND));
        let mut requests = vec![spawn(&site.probes, "other", put("k", 1))];
        world.settle().await;
        for round in 0..6 {
            let many = act(move |_: &mut Probe, cx| {
                Box::pin(async move {
                    for i in 0..400 {
                        cx.put(&format!("{round}/{i}"), &i)?;
                    }
                    Ok(cx.put("last", &round)?)
                })
            });
            requests.push(spawn(&site.probes, "a", many));
            world.settle().await;
        }
        for request in requests {
            request.await.unwrap().unwrap();
        }
        let keys = act(|_: &mut Probe, cx| {
            Box::pin(async move { Ok((cx.list(KeyRange::all()).await?.len(), cx.get::<i64>("last").await?)) })
        });
        assert_eq!(site.probes.request("a", keys).await.unwrap(), (2_401, Some(5)));
        assert!(world.store.calls(Method::Commit) >= 4, "at most a thousand operations of a shard in one");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_is_stopped_by_its_deadline_in_a_commit_does_not_end_as_certain() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.handler_timeout(2 * SECOND)).await;
    world.store.fail_next(Method::Commit, Fault::Delay(4 * SECOND));
    let slow = act(|_: &mut Probe, cx| {
        Box::pin(async move {
            cx.put("k", &1)?;
            cx.commit().await?;
            Ok(())
        })
    });
    let error = site.probes.request("a", slow).await.unwrap_err();
    let RequestError::Unknown(cause) = &error else { panic!("{error}") };
    assert!(matches!(**cause, RequestError::TimedOut { .. }), "{cause}");
    assert!(error.may_have_happened() && !error.is_retryable());
    assert_eq!(world.now(), 4_000, "answered when its commit is settled");
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), Some(1));
    assert_eq!(site.probes.request("a", life()).await.unwrap(), 2);
}

/// Callers add one to counters while the store fails at random. Each counter then is at least what was acknowledged, and at most
/// that and what was left unknown.
async fn count_under_faults(seed: u64) {
    let world = World::in_memory();
    let site = world.launch(world.local().lanes(2), |probes| probes).await;
    let random = SeededRandom::new(seed);
    for (fault, chance) in [
        (Fault::FailBefore, 0.1),
        (Fault::FailAfter, 0.1),
        (Fault::Late(7 * SECOND), 0.1),
        (Fault::HangLate(9 * SECOND), 0.03),
        (Fault::DelayUpTo(8 * SECOND), 0.2),
    ] {
        world.store.set_chance(Method::Commit, fault, chance);
    }
    world.store.set_chance(Method::Read, Fault::FailBefore, 0.02);
    let callers: Vec<_> = (0..12)
        .map(|caller| {
            let probes = site.probes.clone();
            let clock = world.clock.clone();
            let pauses: Vec<_> = (0..15).map(|_| (random.next_u64() % 5, random.next_u64() % 1_500)).collect();
            tokio::spawn(async move {
                let mut answers = BTreeMap::<String, (i64, i64)>::new();
                for (counter, pause) in pauses {
                    let id = format!("counter-{}", (counter + caller) % 5);
                    let answer = probes.request(&id, count("n")).await;
                    let of = answers.entry(id).or_default();
                    match answer {
                        Ok(_) => of.0 += 1,
                        Err(error) if error.may_have_happened() => of.1 += 1,
                        Err(_) => {}
                    }
                    stable_interfaces::clock::Clock::sleep(&clock, Duration::from_millis(pause)).await;
                }
                answers
            })
        })
        .collect();
    let mut all = BTreeMap::<String, (i64, i64)>::new();
    for caller in callers {
        for (id, (done, unknown)) in caller.await.unwrap() {
            let of = all.entry(id).or_default();
            *of = (of.0 + done, of.1 + unknown);
        }
    }
    world.store.heal();
    world.pass(60 * SECOND).await;
    site.crash();
    let site = world.start().await;
    for (id, (done, unknown)) in all {
        let count = site.probes.request(&id, get("n")).await.unwrap().unwrap_or(0);
        assert!((done..=done + unknown).contains(&count), "seed {seed}, {id}: {done} done, {unknown} unknown, {count}");
    }
}

#[tokio::test(start_paused = true)]
async fn under_random_faults_every_acknowledged_effect_happens_exactly_once() {
    for seed in 0..40 {
        in_time(count_under_faults(seed)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_busy_for_long_does_not_hold_back_the_commits_of_others() {
    let world = World::in_memory();
    let site = world.launch(world.local().lanes(1), |probes| probes).await;
    let busy = spawn(&site.probes, "a", wait(20 * SECOND));
    world.settle().await;
    site.probes.request("b", put("k", 1)).await.unwrap();
    assert!(world.now() < 10 && !busy.is_finished());
}
