//! Overload: an instance that is sent more than it can handle goes on doing as much as it can, and what it is too late for has
//! never begun; past the cap of instances those in use stay; and what waits for a busy instance holds up no other.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as TaskContext, Waker};
use std::time::Duration;

use stable_interfaces::{Context, Fleet, FleetClient, Interface, NewPost, RequestError};
use system_tests::{
    Answer, BoxFuture, Do, Failed, Probe, Site, World, act, get, in_time, life, now_or_never, put, spawn, wait,
};
use tokio::task::JoinSet;

const SECOND: Duration = Duration::from_secs(1);
/// The time that one handler takes: twenty of them fill a second.
const WORK: Duration = Duration::from_millis(50);

/// Adds one to a counter in memory, and to one in the store, after a while.
fn count_slowly() -> Do<u64> {
    act(|me: &mut Probe, cx: &mut Context| {
        let sleep = me.sleep(WORK);
        Box::pin(async move {
            let count = cx.get::<u64>("n").await?.unwrap_or(0) + 1;
            sleep.await;
            cx.put("n", &count)?;
            Ok(count)
        })
    })
}

async fn stored(site: &Site, id: &str) -> u64 {
    site.probes.request(id, get("n")).await.unwrap().unwrap_or(0).unsigned_abs()
}

/// Answers that callers were given.
#[derive(Debug, Default)]
struct Told {
    done: AtomicU64,
    /// Definitely not done: to be tried again.
    refused: AtomicU64,
    /// Anything else.
    other: AtomicU64,
}

impl Told {
    fn note<R>(&self, answer: &Answer<R>) {
        let told = match answer {
            Ok(_) => &self.done,
            Err(error) if error.is_retryable() && !error.may_have_happened() => &self.refused,
            Err(_) => &self.other,
        };
        told.fetch_add(1, Ordering::Relaxed);
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

/// Sends so many times as much as the instance can handle, for so many seconds.
async fn overload(factor: u32, seconds: u32) {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.handler_timeout(SECOND)).await;
    let told = Arc::new(Told::default());
    let mut callers = JoinSet::new();
    for _ in 0..20 * factor * seconds {
        let (probes, told) = (site.probes.clone(), told.clone());
        callers.spawn(async move { told.note(&probes.request("hot", count_slowly()).await) });
        world.pass(WORK / factor).await;
        while callers.try_join_next().is_some() {}
    }
    let (possible, done) = (u64::from(20 * seconds), told.done());
    assert!(10 * done >= 9 * possible, "{factor} times too much: {done} of {possible} that it can handle");
    callers.join_all().await;
    assert_eq!(stored(&site, "hot").await, told.done(), "what was refused was not done");
    assert_eq!((told.other.load(Ordering::Relaxed), world.script.lives()), (0, 1), "and nothing was reset");
}

#[tokio::test(start_paused = true)]
async fn an_instance_sent_twice_as_much_as_it_can_handle_goes_on_handling_as_much_as_it_can() {
    overload(2, 120).await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_sent_five_times_as_much_as_it_can_handle_goes_on_handling_as_much_as_it_can() {
    overload(5, 120).await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_sent_twenty_times_as_much_as_it_can_handle_goes_on_handling_as_much_as_it_can() {
    overload(20, 60).await;
}

/// Asks until it is done or may have been done; whether it was answered.
async fn insist(probes: &Interface<Probe>, message: impl Fn() -> Do<u64>) -> Result<(), RequestError<Failed>> {
    loop {
        match probes.request("hot", message()).await {
            Ok(_) => return Ok(()),
            // The queue is what slows them down.
            Err(error) if error.is_retryable() => assert!(!error.may_have_happened(), "{error}"),
            Err(error) => return Err(error),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_repeats_whatever_is_retryable_counts_once_for_each_that_was_done() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.handler_timeout(SECOND)).await;
    let (answered, unknown) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut clients = JoinSet::new();
    for client in 0..80_u32 {
        let (probes, answered, unknown) = (site.probes.clone(), answered.clone(), unknown.clone());
        clients.spawn(async move {
            for _ in 0..10 {
                let counted = if client % 2 == 0 {
                    insist(&probes, count_slowly).await
                } else {
                    // From a handler, whose own time bounds the wait.
                    let hot = probes.clone();
                    let ask = act(move |me: &mut Probe, _| {
                        let sleep = me.sleep(Duration::from_millis(7) * client);
                        Box::pin(async move {
                            sleep.await;
                            Ok(hot.request("hot", count_slowly()).await)
                        })
                    });
                    match probes.request(&format!("asks-{client}"), ask).await.unwrap() {
                        Ok(_) => Ok(()),
                        Err(error) if error.is_retryable() => insist(&probes, count_slowly).await,
                        Err(error) => Err(error),
                    }
                };
                match counted {
                    Ok(()) => answered.fetch_add(1, Ordering::Relaxed),
                    Err(error) if error.may_have_happened() => unknown.fetch_add(1, Ordering::Relaxed),
                    Err(error) => panic!("{error}"),
                };
            }
        });
    }
    in_time(clients.join_all()).await;
    // Those whose callers were told that they run have run to their end.
    let (answered, unknown) = (answered.load(Ordering::Relaxed), unknown.load(Ordering::Relaxed));
    assert_eq!(answered + unknown, 800);
    assert_eq!(stored(&site, "hot").await, 800, "{unknown} of them ran on without their caller");
    assert!(unknown > 0, "the test tries that as well");
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_turn_comes_late_has_its_whole_time_and_one_that_is_too_late_never_begins() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.handler_timeout(10 * SECOND)).await;
    let first = spawn(&site.probes, "a", wait(Duration::from_millis(9_800)));
    world.settle().await;
    let second = spawn(&site.probes, "a", wait(9 * SECOND));
    world.settle().await;
    let third = spawn(&site.probes, "a", put("k", 3));
    first.await.unwrap().unwrap();
    let error = third.await.unwrap().unwrap_err();
    assert_eq!((error.to_string(), world.now()), ("timed out after 10s waiting for probe/a".to_owned(), 10_002));
    assert!(error.is_retryable() && !error.may_have_happened());
    second.await.unwrap().expect("it had 200 ms left when it began, were its wait counted");
    assert_eq!(world.now(), 18_800);
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), None, "it never began");
    assert_eq!(world.script.lives(), 1, "nothing was reset");
}

/// Sends a request from another thread, so that it waits although this one is busy.
fn send_from_a_thread<R: Send + 'static>(probes: &Interface<Probe>, message: Do<R>) -> BoxFuture<'static, Answer<R>> {
    let probes = probes.clone();
    let mut request: BoxFuture<'static, _> = Box::pin(async move { probes.request("a", message).await });
    let runtime = tokio::runtime::Handle::current();
    let sender = std::thread::spawn(move || {
        let _entered = runtime.enter();
        assert!(request.as_mut().poll(&mut TaskContext::from_waker(Waker::noop())).is_pending());
        request
    });
    sender.join().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_request_that_became_late_behind_a_handler_that_blocked_its_thread_never_begins() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.handler_timeout(10 * SECOND)).await;
    // Once in the poll of a sender's task, and once in a task of the host.
    for yields in [0, 1] {
        let probes = site.probes.clone();
        let block = act(move |_: &mut Probe, _| {
            Box::pin(async move {
                for _ in 0..yields {
                    tokio::task::yield_now().await;
                }
                let late = [send_from_a_thread(&probes, put("k", 1)), send_from_a_thread(&probes, put("k", 2))];
                // The clock moves, and nothing else has its turn.
                _ = now_or_never(tokio::time::advance(11 * SECOND)).await;
                Ok((late, send_from_a_thread(&probes, get("k"))))
            })
        });
        let (late, fresh) = in_time(site.probes.request("a", block)).await.unwrap();
        for late in late {
            let error = in_time(late).await.unwrap_err();
            assert!(matches!(error, RequestError::TimedOut { .. }), "{error}");
        }
        assert_eq!(in_time(fresh).await.expect("its time had only begun"), None, "what was late never began");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_waits_no_longer_for_another_is_told_that_it_runs_and_it_runs_to_its_end() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.handler_timeout(10 * SECOND)).await;
    let to_a = site.probes.clone();
    let slow = || {
        act(|me: &mut Probe, cx: &mut Context| {
            let sleep = me.sleep(8 * SECOND);
            Box::pin(async move {
                sleep.await;
                cx.put("k", &1)?;
                Ok(())
            })
        })
    };
    let hurried = act(move |me: &mut Probe, _| {
        let sleep = me.sleep(5 * SECOND);
        Box::pin(async move {
            sleep.await;
            // Five of this handler's ten seconds are left; it waits that less a tenth.
            Ok(to_a.request("a", slow()).await.unwrap_err())
        })
    });
    let error = site.probes.request("b", hurried).await.unwrap();
    assert_eq!(world.now(), 9_500);
    assert!(error.may_have_happened() && !error.is_retryable(), "{error}");
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), Some(1), "it is the one before in the queue");
    assert_eq!((world.now(), world.script.lives()), (13_000, 2), "nobody was reset");
}

#[tokio::test(start_paused = true)]
async fn in_a_chain_of_calls_the_innermost_gives_up_first_and_each_that_began_has_its_whole_time() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.handler_timeout(10 * SECOND)).await;
    let (to_b, to_c) = (site.probes.clone(), site.probes.clone());
    let script = world.script.clone();
    let busy = spawn(&site.probes, "c", wait(Duration::from_millis(9_900)));
    world.settle().await;
    let inner = act(move |me: &mut Probe, _| {
        let again = me.sleep(Duration::from_millis(9_300));
        Box::pin(async move {
            let first = to_c.request("c", life()).await.unwrap_err().to_string();
            // Its caller has gone; what it asks for now, it has its own time for.
            again.await;
            let second = to_c.request("c", life()).await.map_err(|error| error.to_string());
            script.note(format!("{first}; then {second:?}"));
            Ok(first)
        })
    });
    let outer = act(move |_: &mut Probe, _| Box::pin(async move { Ok(to_b.request("b", inner).await.unwrap_err()) }));
    let error = site.probes.request("a", outer).await.unwrap();
    assert!(error.may_have_happened(), "the middle one still runs: {error}");
    assert_eq!(world.now(), 9_001);
    busy.await.unwrap().unwrap();
    world.pass(SECOND).await;
    assert_eq!(world.script.notes(), ["timed out after 8.1s waiting for probe/c; then Ok(1)"]);
}

/// Uses a hundredth of `cap` instances again and again, each after half of `cap` others that are used once; how often one was
/// built anew, and how often anything was refused.
async fn lost_by_those_in_use(cap: usize) -> (u64, usize) {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.max_instances(cap)).await;
    let (often, mut once, mut refused) = (cap / 100, 0, 0);
    for round in 0..6 {
        for n in 0..often {
            refused += usize::from(site.probes.request(&format!("often-{n}"), life()).await.is_err());
            for _ in 0..50 {
                refused += usize::from(site.probes.request(&format!("once-{once}"), life()).await.is_err());
                once += 1;
            }
        }
        assert!(site.probes.running() <= cap, "in round {round}");
    }
    (world.script.lives() - once - often as u64, refused)
}

#[tokio::test(start_paused = true)]
async fn at_a_cap_of_a_hundred_instances_those_in_constant_use_stay_in_memory() {
    assert_eq!(lost_by_those_in_use(100).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn at_a_cap_of_ten_thousand_instances_those_in_constant_use_stay_in_memory() {
    assert_eq!(lost_by_those_in_use(10_000).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn at_the_cap_of_instances_a_new_one_is_refused_only_if_all_are_busy() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.max_instances(3_000)).await;
    let busy: Vec<_> = (0..2_999).map(|n| spawn(&site.probes, &format!("busy-{n}"), wait(SECOND))).collect();
    site.probes.request("idle", life()).await.unwrap();
    for n in 0..50 {
        site.probes.request(&format!("new-{n}"), life()).await.expect("one of them is idle");
    }
    let last = spawn(&site.probes, "last", wait(SECOND));
    world.settle().await;
    let refused = now_or_never(site.probes.request("one more", life())).await.expect("refused at once").unwrap_err();
    assert!(matches!(refused, RequestError::Overloaded(_)), "{refused}");
    for handler in busy.into_iter().chain([last]) {
        handler.await.unwrap().unwrap();
    }
}

/// The number of alarms or messages that wait for one slow instance, and of those that may be handled at once.
fn crowds() -> [(usize, usize); 4] {
    let large = if std::env::var_os("QUICK").is_some() { 3_000 } else { 10_000 };
    [(1, 4), (100, 4), (2_000, 1_024), (large, 4)]
}

/// The number of other instances that are due beside it.
const OTHERS: usize = 20;

/// A host with one shard and so many places, and its one slow instance.
async fn launch_with_places(world: &World, places: usize) -> Site {
    let fleet = Fleet::new(["host"], 1).unwrap();
    world.launch(world.member("host", &fleet).max_firing(places), |probes| probes).await
}

#[tokio::test(start_paused = true)]
async fn alarms_that_wait_for_a_slow_instance_hold_up_no_other() {
    for (due, places) in crowds() {
        let world = World::in_memory();
        let site = launch_with_places(&world, places).await;
        world.script.on_alarm(|me, _, _| {
            let sleep = (me.id == "slow").then(|| me.sleep(5 * SECOND));
            Box::pin(async move {
                if let Some(sleep) = sleep {
                    sleep.await;
                }
                Ok(())
            })
        });
        for first in (0..due).step_by(500) {
            let at = world.at(10_000);
            let set = act(move |_: &mut Probe, cx: &mut Context| {
                Box::pin(async move {
                    for n in first..due.min(first + 500) {
                        cx.set_alarm(&format!("{n:05}"), at, &())?;
                    }
                    Ok(())
                })
            });
            site.probes.request("slow", set).await.unwrap();
        }
        for other in 0..OTHERS {
            site.probes.set_alarm(&format!("other-{other:02}"), "x", world.at(12_000), &()).await.unwrap();
        }
        world.pass(Duration::from_millis(12_500) - Duration::from_millis(world.now().unsigned_abs())).await;
        let others: Vec<_> = world.script.fired().into_iter().filter(|fired| fired.instance != "slow").collect();
        assert_eq!(others.len(), OTHERS, "with {due} due on the slow one and {places} places");
        assert!(others.iter().all(|fired| fired.at == 12_000), "with {due} due on the slow one: {others:?}");
        // Those that waited have their turns, one after the other, in their order; and requests between them.
        let began = world.now();
        let request = spawn(&site.probes, "slow", life());
        world.pass(12 * SECOND).await;
        assert!(now_or_never(request).await.is_some(), "a request waits for one alarm at most");
        let slow: Vec<_> = world.script.fired().into_iter().filter(|fired| fired.instance == "slow").collect();
        assert_eq!(slow.len(), due.min(3), "at {} since {began}", world.now());
        world.pass(5 * SECOND * u32::try_from(due.min(200)).unwrap()).await;
        let slow: Vec<_> = world.script.fired().into_iter().filter(|fired| fired.instance == "slow").collect();
        assert!(slow.iter().enumerate().all(|(n, fired)| fired.alarm == format!("{n:05}") && fired.attempt == 0));
        assert!(slow.len() >= due.min(200), "{} of {due}", slow.len());
        site.crash();
    }
}

#[tokio::test(start_paused = true)]
async fn messages_that_wait_for_a_slow_instance_hold_up_no_other_in_its_shard() {
    for (due, places) in crowds() {
        let world = World::in_memory();
        world.script.on_message(|me, _, message| {
            let sleep = (me.id == "slow").then(|| me.sleep(SECOND / 10));
            me.script.note(format!("{} {}", me.id, message.id()));
            Box::pin(async move {
                if let Some(sleep) = sleep {
                    sleep.await;
                }
                Ok(())
            })
        });
        let outside = FleetClient::new(Arc::new(world.store.clone()), Fleet::new(["host"], 1).unwrap());
        for n in 0..due {
            outside.post("probe", "slow", NewPost::new("").id(format!("{n:05}"))).await.unwrap();
        }
        let site = launch_with_places(&world, places).await;
        world.pass(SECOND).await;
        // Behind all of them in the order of arrival.
        for other in 0..OTHERS {
            site.probes.post(&format!("other-{other:02}"), NewPost::new("").id("x")).await.unwrap();
        }
        world.pass(SECOND).await;
        let of = |slow: bool| -> Vec<String> {
            world.script.notes().into_iter().filter(|note| note.starts_with("slow ") == slow).collect()
        };
        assert_eq!(of(false).len(), OTHERS, "with {due} due on the slow one and {places} places");
        // More than are in memory at once.
        let turns = due.min(1_500);
        world.pass(SECOND / 10 * u32::try_from(turns).unwrap() + SECOND).await;
        let slow = of(true);
        assert!(slow.len() >= turns, "{} of {due}", slow.len());
        assert!(
            slow.iter().enumerate().all(|(n, note)| *note == format!("slow {n:05}")),
            "one after the other, in order"
        );
        site.crash();
    }
}

#[tokio::test(start_paused = true)]
async fn many_slow_instances_of_a_shard_hold_up_no_other_in_it() {
    let world = World::in_memory();
    world.script.on_message(|me, _, message| {
        let sleep = me.id.starts_with("slow").then(|| me.sleep(20 * SECOND));
        me.script.note(format!("{} {}", me.id, message.id()));
        Box::pin(async move {
            if let Some(sleep) = sleep {
                sleep.await;
            }
            Ok(())
        })
    });
    let site = launch_with_places(&world, 1_024).await;
    // Far more than a shard's window holds of what waits to be handed out.
    for n in 0..300 {
        site.probes.post(&format!("slow-{n:03}"), NewPost::new("").id("x")).await.unwrap();
    }
    world.pass(SECOND).await;
    for other in 0..OTHERS {
        site.probes.post(&format!("other-{other:02}"), NewPost::new("").id("x")).await.unwrap();
    }
    world.pass(SECOND).await;
    let of = |slow: bool| world.script.notes().iter().filter(|note| note.starts_with("slow-") == slow).count();
    assert_eq!((of(true), of(false)), (300, OTHERS));
    world.pass(60 * SECOND).await;
    assert_eq!((of(true), of(false)), (300, OTHERS), "each of them once");
    assert_eq!(world.dump().shards.values().map(|shard| shard.inbox.len()).sum::<usize>(), 0);
}
