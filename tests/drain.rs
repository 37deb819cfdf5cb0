//! Draining: nothing new begins, what runs is finished and served, everything is released, and what was left is said.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use alarm_backends::FjallStore;
use stable_interfaces::clock::{Clock, SystemClock};
use stable_interfaces::testing::{Fault, Method};
use stable_interfaces::{
    Alarm, Closed, Context, ContextError, Handle, Health, Host, InstanceRef, Interface, NewPost, OnAlarm, RequestError,
    StableInterface,
};
use system_tests::{
    Failed, Probe, Site, World, act, get, in_time, life, now_or_never, on_each_store, put, spawn, wait,
};

const SECOND: Duration = Duration::from_secs(1);

/// Drains beside the test.
fn drain(site: &Arc<Site>, deadline: Duration) -> tokio::task::JoinHandle<stable_interfaces::Drained> {
    let site = site.clone();
    tokio::spawn(async move { site.host.drain(deadline).await })
}

#[tokio::test(start_paused = true)]
async fn alarms_and_messages_stop_first_and_are_there_for_the_next_owner() {
    let world = World::in_memory();
    let site = Arc::new(world.start().await);
    for i in 0..20 {
        site.probes.set_alarm("a", &format!("x-{i}"), world.at(1_000), &()).await.unwrap();
    }
    let busy = spawn(&site.probes, "b", wait(10 * SECOND));
    world.settle().await;
    let draining = drain(&site, 30 * SECOND);
    world.settle().await;
    assert_eq!(site.host.health(), Health::Draining);
    assert!(!site.host.is_ready(Duration::MAX));
    site.probes.post("a", NewPost::new("m")).await.expect("whoever may not handle may still post");
    world.pass(5 * SECOND).await;
    assert!(world.script.fired().is_empty() && world.script.taken().is_empty());
    busy.await.unwrap().unwrap();
    let drained = draining.await.unwrap();
    assert_eq!((drained.unfinished, drained.instances, drained.released), (0, 0, true));
    assert_eq!(site.host.health(), Health::Stopped);
    assert_eq!(world.now() / 100, 100, "as soon as the handler was done");
    let site = world.start().await;
    world.pass(SECOND).await;
    assert_eq!((world.script.fired().len(), world.script.taken().len()), (20, 1));
    drop(site);
}

#[tokio::test(start_paused = true)]
async fn a_drain_nobody_waits_for_goes_on_and_whoever_asks_again_gets_its_result() {
    let world = World::in_memory();
    let site = Arc::new(world.start().await);
    let busy = spawn(&site.probes, "a", wait(10 * SECOND));
    world.settle().await;
    let given_up = tokio::time::timeout(SECOND, site.host.drain(30 * SECOND)).await;
    assert!(given_up.is_err(), "the handler still runs");
    // Two more wait for the same one, whatever deadline they have in mind.
    let (again, same) = (drain(&site, Duration::ZERO), drain(&site, 60 * SECOND));
    let drained = again.await.unwrap();
    assert_eq!((drained.unfinished, drained.instances, drained.released), (0, 0, true));
    assert_eq!(world.now() / 1_000, 10, "as soon as the handler was done");
    busy.await.unwrap().unwrap();
    assert_eq!(same.await.unwrap(), drained);
    assert_eq!(site.host.drain(SECOND).await, drained, "also when it is over");

    // And without anybody who asks again.
    let site = Arc::new(world.start().await);
    site.probes.request("a", put("k", 1)).await.unwrap();
    let busy = spawn(&site.probes, "a", wait(SECOND));
    world.settle().await;
    assert!(now_or_never(site.host.drain(30 * SECOND)).await.is_none());
    world.pass(5 * SECOND).await;
    busy.await.unwrap().unwrap();
    assert_eq!((site.host.health(), site.host.shards().len()), (Health::Stopped, 0));
}

/// Blocks its thread in a handler until told otherwise, or for 20 s. On another thread, for a paused clock waits for no thread.
fn block(probes: &Interface<Probe>, id: &'static str) -> (std::sync::mpsc::Sender<()>, std::thread::JoinHandle<()>) {
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let (begin, begun) = std::sync::mpsc::channel::<()>();
    let probes = probes.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let blocks = act(move |_, _| {
            begin.send(()).unwrap();
            let _told = blocked.recv_timeout(20 * SECOND);
            Box::pin(async { Ok(()) })
        });
        drop(runtime.block_on(probes.request(id, blocks)));
    });
    begun.recv().unwrap();
    (release, thread)
}

#[tokio::test(start_paused = true)]
async fn a_drain_beside_a_handler_that_blocks_its_thread_waits_for_it_and_does_not_spin() {
    let world = World::in_memory();
    let site = Arc::new(world.start().await);
    let (release, thread) = block(&site.probes, "a");
    let busy = spawn(&site.probes, "b", wait(SECOND));
    world.settle().await;
    // A paused clock stands still while any task runs: a drain that spins does not come to its deadline before the handler ends.
    let drained = site.host.drain(30 * SECOND).await;
    assert_eq!((drained.unfinished, drained.instances, drained.released), (1, 1, false), "it could not be cut off");
    assert_eq!(world.now() / 1_000, 30);
    busy.await.unwrap().unwrap();
    drop(release);
    thread.join().unwrap();

    // One that ends in time is waited for, and with it what it has asked for.
    let site = Arc::new(world.start().await);
    let (release, thread) = block(&site.probes, "a");
    let draining = drain(&site, Duration::from_secs(1_000_000));
    tokio::task::yield_now().await;
    release.send(()).unwrap();
    thread.join().unwrap();
    assert!(draining.await.unwrap().released);
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_to_be_fired_and_has_not_begun_goes_back() {
    let world = World::in_memory();
    let begun = Arc::new(tokio::sync::Notify::new());
    let first = begun.clone();
    world.script.on_alarm(move |_, _, _| {
        first.notify_one();
        Box::pin(async { Ok(()) })
    });
    let site = Arc::new(world.start().await);
    let ids: Vec<String> = (0..1_000).map(|i| format!("i-{i}")).collect();
    for id in &ids {
        site.probes.set_alarm(id, "x", world.at(1_000), &()).await.unwrap();
    }
    // Keeps the drain going for long enough.
    let busy = spawn(&site.probes, "busy", wait(10 * SECOND));
    // All have been handed out by the time the first handler runs.
    begun.notified().await;
    let drained = site.host.drain(30 * SECOND).await;
    assert!(drained.released);
    busy.await.unwrap().unwrap();
    let fired = world.script.fired().len();
    assert!(fired < 1_000, "none began after the drain did");
    assert_eq!(world.dump().alarms().count(), 1_000 - fired);
    let site = world.start().await;
    world.pass(SECOND).await;
    assert_eq!(world.script.fired().len(), 1_000);
    drop(site);
}

#[tokio::test(start_paused = true)]
async fn new_work_from_outside_is_refused_and_what_running_handlers_ask_for_is_served() {
    in_time(async {
        let world = World::in_memory();
        let site = Arc::new(world.start().await);
        site.probes.request("there", put("k", 1)).await.unwrap();
        let probes = site.probes.clone();
        let asking = act(move |me: &mut Probe, cx: &mut Context| {
            let sleep = me.sleep(SECOND);
            Box::pin(async move {
                sleep.await;
                let nested = |error: RequestError<Failed>| Failed::Nested(error.to_string());
                let seen = probes.request("there", get("k")).await.map_err(nested)?;
                probes.request("not yet there", put("k", 2)).await.map_err(nested)?;
                probes.set_alarm("there", "x", cx.now(), &()).await.map_err(nested)?;
                cx.put("k", &3)?;
                Ok(seen)
            })
        });
        let asking = spawn(&site.probes, "a", asking);
        let queued = spawn(&site.probes, "a", life());
        world.settle().await;
        let draining = drain(&site, 30 * SECOND);
        world.settle().await;
        for id in ["a", "there", "other"] {
            let refused = now_or_never(site.probes.request(id, life())).await.expect("refused at once");
            let error = refused.unwrap_err();
            assert!(matches!(error, RequestError::Draining) && error.is_retryable(), "{error}");
        }
        assert!(matches!(site.probes.connect("a", "").await, Err(RequestError::Draining)));
        assert!(matches!(site.probes.set_alarm("a", "x", world.at(0), &()).await, Err(RequestError::Draining)));
        assert_eq!(asking.await.unwrap().unwrap(), Some(1));
        queued.await.unwrap().expect("what waited already is answered");
        let drained = draining.await.unwrap();
        assert_eq!((drained.unfinished, drained.instances, drained.released), (0, 0, true));
        let site = world.start().await;
        for (id, value) in [("a", 3), ("not yet there", 2)] {
            assert_eq!(site.probes.request(id, get("k")).await.unwrap(), Some(value));
        }
        world.settle().await;
        assert_eq!(world.script.fired_ids(), ["x"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn connections_are_closed_with_the_reason_and_tasks_are_gone() {
    let world = World::in_memory();
    let site = Arc::new(world.start().await);
    let clients = [site.probes.connect("a", "").await.unwrap(), site.probes.connect("b", "").await.unwrap()];
    let alive = Arc::new(());
    let held = alive.clone();
    let spawning = act(move |_, cx: &mut Context| {
        Box::pin(async move {
            cx.spawn(move |_: InstanceRef<Probe>| async move {
                let _held = held;
                std::future::pending::<()>().await;
            })?;
            Ok(())
        })
    });
    site.probes.request("a", spawning).await.unwrap();
    world.settle().await;
    assert_eq!(Arc::strong_count(&alive), 2);
    assert!(site.host.drain(SECOND).await.released);
    assert_eq!(Arc::strong_count(&alive), 1);
    for client in clients {
        assert_eq!(client.recv().await, Err(Closed::Draining));
    }
    assert_eq!(site.host.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn past_the_deadline_what_still_runs_is_cut_off_and_counted_and_the_shards_are_not_released() {
    let world = World::in_memory();
    let site = Arc::new(world.launch(world.local(), |probes| probes.handler_timeout(3_600 * SECOND)).await);
    let stuck = act(|_, cx: &mut Context| {
        Box::pin(async move {
            cx.put("k", &1)?;
            std::future::pending::<Result<(), Failed>>().await
        })
    });
    let stuck: tokio::task::JoinHandle<system_tests::Answer<()>> = spawn(&site.probes, "stuck", stuck);
    site.probes.request("fine", put("k", 1)).await.unwrap();
    world.settle().await;
    let began = world.now();
    let drained = site.host.drain(10 * SECOND).await;
    assert_eq!((drained.unfinished, drained.instances, drained.released), (1, 1, false));
    assert_eq!(world.now() - began, 10_000);
    let error = stuck.await.unwrap().unwrap_err();
    assert!(matches!(error, RequestError::Unknown(_)), "{error}");
    assert_eq!(world.script.stops(), 1);
    let again = site.host.drain(SECOND).await;
    assert!(!again.released, "once");
    let site = world.start().await;
    assert_eq!(site.probes.request("stuck", get("k")).await.unwrap(), None, "it had not ended");
    assert_eq!(site.probes.request("fine", get("k")).await.unwrap(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_commits_that_are_under_way() {
    let world = World::in_memory();
    let site = Arc::new(world.start().await);
    world.store.fail_next(Method::Commit, Fault::HangAfter);
    let write = spawn(&site.probes, "a", put("k", 1));
    world.settle().await;
    let draining = drain(&site, 30 * SECOND);
    world.pass(SECOND).await;
    assert!(!draining.is_finished());
    world.store.release_hanging();
    write.await.unwrap().unwrap();
    let drained = draining.await.unwrap();
    assert_eq!((drained.unfinished, drained.instances, drained.released), (0, 0, true));
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_at_its_deadline_also_when_the_store_is_away() {
    in_time(async {
        let world = World::in_memory();
        let site = Arc::new(world.start().await);
        site.probes.request("a", put("k", 1)).await.unwrap();
        world.store.set_down(true);
        let write = spawn(&site.probes, "a", put("k", 2));
        world.settle().await;
        let began = world.now();
        let drained = site.host.drain(5 * SECOND).await;
        assert!(!drained.released && world.now() - began <= 11_000, "{drained:?} {}", world.now() - began);
        assert!(write.await.unwrap().is_err());
        world.store.set_down(false);
        let site = world.start().await;
        assert_eq!(site.probes.request("a", get("k")).await.unwrap(), Some(1));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_beside_the_host_stops_when_the_drain_begins_and_also_when_the_host_is_dropped() {
    in_time(async {
        let world = World::in_memory();
        let site = Arc::new(world.start().await);
        let busy = spawn(&site.probes, "a", wait(10 * SECOND));
        world.settle().await;
        let serve = tokio::spawn(site.host.stopping());
        world.pass(3 * SECOND).await;
        assert!(!serve.is_finished(), "the host works");
        let draining = drain(&site, 30 * SECOND);
        serve.await.unwrap();
        assert_eq!(site.host.health(), Health::Draining);
        busy.await.unwrap().expect("it was still running when the server was told");
        assert!(draining.await.unwrap().released);
        drop(site);

        let site = world.start().await;
        let serve = tokio::spawn(site.host.stopping());
        world.settle().await;
        assert!(!serve.is_finished());
        drop(site);
        serve.await.unwrap();
    })
    .await;
}

on_each_store! {
    async fn run_until_drains_on_its_signal_and_the_next_owner_begins_at_once(world: World) {
        let site = world.start().await;
        site.probes.request("a", put("k", 1)).await.unwrap();
        let (signal, stop) = tokio::sync::oneshot::channel::<()>();
        let Site { host, probes } = site;
        let running = tokio::spawn(async move { host.run_until(stop).await });
        world.settle().await;
        assert!(!running.is_finished());
        signal.send(()).unwrap();
        assert!(running.await.unwrap().unwrap().released);
        assert!(probes.request("a", life()).await.is_err());
        drop(probes);
        world.reopen().await;
        let began = world.now();
        let site = world.start().await;
        assert_eq!(site.probes.request("a", get("k")).await.unwrap(), Some(1));
        assert!(world.now() - began < 1_000, "it need not wait for a lease to run out");
    }
}

// What follows happens in real processes. The test starts its own binary again as the child.

const DIR: &str = "DRAIN_DIR";

struct Ledger;

impl StableInterface for Ledger {
    const NAME: &'static str = "ledger";
    type Error = ContextError;
}

/// Notes a number, sets an alarm that notes it again later, and takes a moment.
struct Book(u64);

impl Handle<Book> for Ledger {
    type Reply = ();
    async fn handle(&mut self, cx: &mut Context, Book(n): Book) -> Result<(), ContextError> {
        cx.put(&format!("booked/{n}"), &1)?;
        cx.set_alarm(&n.to_string(), cx.now() + Duration::from_millis(n % 50), &n)?;
        if n % 3 == 0 {
            SystemClock::default().sleep(Duration::from_millis(n % 20)).await;
        }
        Ok(())
    }
}

impl OnAlarm for Ledger {
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), ContextError> {
        let key = format!("fired/{}", alarm.id());
        let times: u64 = cx.get(&key).await?.unwrap_or(0);
        cx.put(&key, &(times + 1))
    }
}

struct Rows;

impl Handle<Rows> for Ledger {
    type Reply = Vec<(String, u64)>;
    async fn handle(&mut self, cx: &mut Context, _: Rows) -> Result<Vec<(String, u64)>, ContextError> {
        let rows = cx.list("").await?;
        Ok(rows
            .into_iter()
            .map(|(key, value)| (key.to_string(), serde_json::from_slice(&value).unwrap_or(0)))
            .collect())
    }
}

async fn ledgers(dir: PathBuf) -> (Host, Interface<Ledger>) {
    let mut builder = Host::local(FjallStore::open(dir).unwrap());
    let ledgers = builder.interface(|_| Ledger).with_alarms().register().unwrap();
    (builder.start().await.unwrap(), ledgers)
}

/// The child: books numbers until it is told to drain, and goes on booking while it drains.
async fn book(dir: PathBuf, first: u64) {
    let (host, ledgers) = ledgers(dir).await;
    let callers: Vec<_> = (0..8)
        .map(|caller| {
            let ledgers = ledgers.clone();
            tokio::spawn(async move {
                for n in (first + caller..).step_by(8) {
                    if ledgers.request(&format!("l-{}", n % 5), Book(n)).await.is_err() {
                        return;
                    }
                    println!("said {n}");
                }
            })
        })
        .collect();
    tokio::task::spawn_blocking(|| std::io::stdin().lines().next()).await.unwrap();
    println!("said draining");
    host.drain(10 * SECOND).await;
    for caller in callers {
        caller.await.unwrap();
    }
    println!("said drained");
}

#[test]
fn a_process_killed_while_it_drains_leaves_everything_to_the_next_owner() {
    if let Some(dir) = std::env::var_os(DIR) {
        let first = std::env::var("DRAIN_FIRST").unwrap().parse().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(book(dir.into(), first));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..8_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["a_process_killed_while_it_drains_leaves_everything_to_the_next_owner", "--exact", "--nocapture"])
            .env(DIR, dir.path())
            .env("DRAIN_FIRST", (round * 1_000_000).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let words = lines.filter_map(|line| Some(line.split_once("said ")?.1.to_owned()));
        let mut input = child.stdin.take().unwrap();
        let (mut seen, mut killer) = (0, None);
        let mut child = Some(child);
        for word in words {
            if let Ok(n) = word.parse::<u64>() {
                acknowledged.push(n);
                seen += 1;
                if seen == 100 {
                    writeln!(input, "drain").unwrap();
                }
            } else if word == "draining" {
                let mut child = child.take().unwrap();
                // Each round a little later, from at once to when it may be over.
                killer = Some(std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(round * 3));
                    child.kill().unwrap();
                    child.wait().unwrap();
                }));
            }
        }
        assert!(child.is_none(), "it was to drain: {seen}");
        // Once it has been waited for, its lock is free.
        killer.unwrap().join().unwrap();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (host, ledgers) = ledgers(dir.path().to_owned()).await;
        let mut pending = usize::MAX;
        while pending > 0 {
            SystemClock::default().sleep(Duration::from_millis(100)).await;
            pending = 0;
            for l in 0..5 {
                pending += ledgers.alarms(&format!("l-{l}")).await.unwrap().len();
            }
        }
        let mut rows = std::collections::HashMap::new();
        for l in 0..5 {
            rows.extend(ledgers.request(&format!("l-{l}"), Rows).await.unwrap());
        }
        for n in &acknowledged {
            assert_eq!(rows.get(&format!("booked/{n}")), Some(&1), "{n}");
        }
        let booked = rows.keys().filter(|key| key.starts_with("booked/")).count();
        let fired: Vec<_> = rows.iter().filter(|(key, _)| key.starts_with("fired/")).collect();
        assert_eq!(booked, fired.len(), "each alarm fired, acknowledged or not");
        assert!(fired.iter().all(|(_, times)| **times == 1), "each once");
        assert!(acknowledged.len() >= 800);
        host.drain(SECOND).await;
    });
}

on_each_store! {
    async fn a_task_that_is_not_parked_is_waited_for_and_takes_turns_while_the_host_drains(world: World) {
        let site = Arc::new(world.start().await);
        let (asked, idle) = (world.clock.clone(), world.clock.clone());
        let work = act(move |_: &mut Probe, cx: &mut Context| {
            Box::pin(async move {
                cx.spawn(move |me: InstanceRef<Probe>| async move {
                    me.leaving().await;
                    asked.sleep(3 * SECOND).await;
                    me.turn(|_, cx| Ok(cx.put("k", &7)?)).await.unwrap();
                })?;
                Ok(())
            })
        });
        site.probes.request("a", work).await.unwrap();
        let waits = act(move |_: &mut Probe, cx: &mut Context| {
            Box::pin(async move {
                cx.spawn(move |me: InstanceRef<Probe>| async move {
                    let _parked = me.park();
                    idle.sleep(3_600 * SECOND).await;
                })?;
                Ok(())
            })
        });
        site.probes.request("b", waits).await.unwrap();
        world.settle().await;
        let draining = drain(&site, 10 * SECOND);
        world.pass(SECOND).await;
        assert!(matches!(site.probes.request("c", life()).await, Err(RequestError::Draining)));
        let drained = draining.await.unwrap();
        assert_eq!((drained.unfinished, drained.instances, drained.tasks, drained.released), (0, 0, 0, true));
        assert_eq!(world.now() / 1_000, 3, "as soon as the task was done");
        let site = world.start().await;
        assert_eq!(site.probes.request("a", get("k")).await.unwrap(), Some(7));
    }
}

on_each_store! {
    async fn a_task_that_does_not_end_is_cancelled_at_half_the_deadline_of_a_drain(world: World) {
        let site = Arc::new(world.start().await);
        let work = act(move |_: &mut Probe, cx: &mut Context| {
            Box::pin(async move {
                cx.spawn(move |_me: InstanceRef<Probe>| std::future::pending())?;
                Ok(())
            })
        });
        site.probes.request("a", work).await.unwrap();
        world.settle().await;
        let drained = drain(&site, 10 * SECOND).await.unwrap();
        assert_eq!((drained.unfinished, drained.instances, drained.tasks, drained.released), (0, 0, 1, true));
        assert_eq!(world.now() / 1_000, 5);
    }
}
