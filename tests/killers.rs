//! Handlers that end their process: found by their marks, run alone, given up; and nobody else loses anything.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use alarm_backends::FjallStore;
use parking_lot::Mutex;
use stable_interfaces::clock::{Clock, SystemClock};
use stable_interfaces::store::Op;
use stable_interfaces::testing::{Fault, Method};
use stable_interfaces::{
    Alarm, Context, ContextError, DeadKind, Fleet, Handle, Host, HostBuilder, Interface, NewPost, OnAlarm,
    StableInterface, StoreError,
};
use system_tests::{Failed, Site, World, get, put};

const SECOND: Duration = Duration::from_secs(1);

/// The number of marks that were written, of writes with marks in them, and of all writes.
#[derive(Default)]
struct Writes {
    marks: AtomicU64,
    marking: AtomicU64,
    commits: AtomicU64,
}

/// A lone host whose writes are counted.
fn counted(world: &World, writes: &Arc<Writes>) -> HostBuilder {
    let writes = writes.clone();
    world.local_behind(|between| {
        between.on_write(move |write| {
            writes.commits.fetch_add(1, Ordering::SeqCst);
            let before = writes.marks.load(Ordering::SeqCst);
            for op in write.batches.iter().flat_map(|batch| batch.ops.iter()) {
                let is_mark = match op {
                    Op::PutAlarm(row) => row.attempts.started,
                    Op::PutMessage(row) => row.attempts.started,
                    _ => false,
                };
                writes.marks.fetch_add(u64::from(is_mark), Ordering::SeqCst);
            }
            let has_marks = writes.marks.load(Ordering::SeqCst) > before;
            writes.marking.fetch_add(u64::from(has_marks), Ordering::SeqCst);
        })
    })
}

async fn start(world: &World, writes: &Arc<Writes>) -> Site {
    world.launch(counted(world, writes), |probes| probes).await
}

/// Lets a host set alarms and crash, and their time pass.
async fn crash_with_alarms(world: &World, alarms: &[(&str, &str)]) {
    let site = world.start().await;
    for (instance, alarm) in alarms {
        site.probes.set_alarm(instance, alarm, world.at(world.now() + 1_000), &()).await.unwrap();
    }
    site.crash();
    world.pass(10 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn after_a_clean_release_no_mark_is_written() {
    let world = World::in_memory();
    let writes = Arc::new(Writes::default());
    for round in 0..3 {
        let site = start(&world, &writes).await;
        for i in 0..20 {
            site.probes.set_alarm("a", &format!("{round}-{i}"), world.at(world.now() + 1_000), &()).await.unwrap();
        }
        site.probes.post("a", NewPost::new("m")).await.unwrap();
        world.settle().await;
        let before = writes.commits.load(Ordering::SeqCst);
        assert!(site.host.drain(SECOND).await.released);
        drop(site);
        world.pass(10 * SECOND).await;
        let site = start(&world, &writes).await;
        world.pass(SECOND).await;
        assert_eq!(world.script.fired().len(), 20 * (round + 1));
        assert!(writes.commits.load(Ordering::SeqCst) - before <= 20, "nothing but their completions");
        site.host.drain(SECOND).await;
    }
    assert_eq!(writes.marks.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_what_was_overdue_is_marked_once_each_and_what_comes_later_is_not() {
    let world = World::in_memory();
    let writes = Arc::new(Writes::default());
    let ids: Vec<String> = (0..30).map(|i| i.to_string()).collect();
    let alarms: Vec<_> = ids.iter().map(|id| ("a", id.as_str())).collect();
    crash_with_alarms(&world, &alarms).await;
    world.script.on_alarm(|me, _, _| {
        let sleep = me.sleep(Duration::from_millis(100));
        Box::pin(async move {
            sleep.await;
            Ok(())
        })
    });
    let site = world.launch(counted(&world, &writes).max_firing(5), |probes| probes).await;
    world.pass(Duration::from_millis(10)).await;
    // A message that comes now says nothing about how far the backlog is.
    for id in ["b", "c", "d"] {
        site.probes.post(id, NewPost::new("m")).await.unwrap();
    }
    world.pass(10 * SECOND).await;
    assert_eq!((world.script.fired().len(), world.script.taken().len()), (30, 3));
    assert_eq!(writes.marks.load(Ordering::SeqCst), 30);
    assert_eq!(world.dump().alarms().count(), 0);
    site.probes.set_alarm("a", "later", world.at(world.now() + 1_000), &()).await.unwrap();
    world.pass(2 * SECOND).await;
    assert_eq!((world.script.fired().len(), writes.marks.load(Ordering::SeqCst)), (31, 30));
}

/// Names of so many instances, all of them of one shard.
fn of_one_shard(count: usize) -> Vec<String> {
    let fleet = Fleet::new(["local"], 1_024).unwrap();
    let shard = |id: &String| fleet.locate(id).unwrap().shard;
    let ids = (0..).map(|i| format!("i-{i}"));
    ids.filter(|id| shard(id) == shard(&"i-0".to_owned())).take(count).collect()
}

#[tokio::test(start_paused = true)]
async fn marks_of_a_shards_backlog_are_one_write_and_no_handler_starts_before_it_is_durable() {
    let world = World::in_memory();
    let ids = of_one_shard(16);
    let alarms: Vec<_> = ids.iter().map(|id| (id.as_str(), "x")).collect();
    crash_with_alarms(&world, &alarms).await;
    let writes = Arc::new(Writes::default());
    world.store.fail_next(Method::Commit, Fault::Delay(3 * SECOND));
    let site = start(&world, &writes).await;
    let began = world.now();
    world.pass(2 * SECOND).await;
    assert_eq!(world.script.fired().len(), 0);
    // What an instance is asked meanwhile waits behind its alarm.
    assert_eq!(site.probes.request(&ids[3], get("n")).await.unwrap(), None);
    assert_eq!((world.now() - began, world.script.fired().len()), (3_000, 16));
    world.settle().await;
    assert_eq!((writes.marks.load(Ordering::SeqCst), writes.marking.load(Ordering::SeqCst)), (16, 1));
    assert_eq!(world.dump().alarms().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_the_store_refuses_keeps_none_of_the_others_from_being_handled() {
    let world = World::in_memory();
    let ids = of_one_shard(9);
    let alarms: Vec<_> = ids.iter().map(|id| (id.as_str(), "x")).collect();
    crash_with_alarms(&world, &alarms).await;
    let guilty = ids[4].clone();
    let host = world.local_behind(|between| {
        between.on_commit(move |write| {
            let is_refused =
                |op: &Op| matches!(op, Op::PutAlarm(row) if row.attempts.started && *row.name.instance == *guilty);
            let refused = |ops: &[Op]| ops.iter().any(is_refused);
            let rejected = || Err(StoreError::Rejected("a mark it does not like".into()));
            write.batches.iter().any(|batch| refused(&batch.ops)).then(rejected)
        })
    });
    let _site = world.launch(host, |probes| probes).await;
    world.pass(10 * SECOND).await;
    let fired: BTreeSet<_> = world.script.fired().iter().map(|fired| fired.instance.clone()).collect();
    let innocent: BTreeSet<_> = ids.iter().filter(|id| **id != ids[4]).cloned().collect();
    assert!(fired.is_superset(&innocent), "{fired:?}");
    assert!(world.dump().alarms().all(|row| *row.name.instance == *ids[4]));
}

#[tokio::test(start_paused = true)]
async fn an_alarm_that_is_cancelled_while_its_shard_is_marked_is_not_stored_again() {
    let world = World::in_memory();
    let ids = of_one_shard(8);
    let alarms: Vec<_> = ids.iter().map(|id| (id.as_str(), "x")).collect();
    crash_with_alarms(&world, &alarms).await;
    for delay in [0, 20, 200] {
        world.store.fail_next(Method::Commit, Fault::Delay(Duration::from_millis(delay)));
    }
    world.script.on_alarm(|me, _, _| {
        let sleep = me.sleep(SECOND);
        Box::pin(async move {
            sleep.await;
            Ok(())
        })
    });
    let site = world.start().await;
    let cancels = ids.iter().map(|id| site.probes.cancel_alarm(id, "x"));
    for cancelled in futures_util::future::join_all(cancels).await {
        cancelled.unwrap();
    }
    world.pass(5 * SECOND).await;
    assert_eq!(world.dump().alarms().count(), 0);
    site.crash();
    let fired = world.script.fired().len();
    let _site = world.start().await;
    world.pass(5 * SECOND).await;
    assert_eq!(world.script.fired().len(), fired, "nothing was left that would fire");
}

#[tokio::test(start_paused = true)]
async fn a_failure_and_a_hold_take_the_mark_away() {
    let world = World::in_memory();
    world.script.on_alarm(|_, cx, alarm| {
        let holds = alarm.id() == "held";
        if holds {
            cx.hold_alarm();
        }
        Box::pin(async move { if holds { Ok(()) } else { Err(Failed::Told("no")) } })
    });
    crash_with_alarms(&world, &[("a", "held"), ("b", "failed")]).await;
    let writes = Arc::new(Writes::default());
    let _site = start(&world, &writes).await;
    world.pass(Duration::from_millis(500)).await;
    assert_eq!((world.script.fired().len(), writes.marks.load(Ordering::SeqCst)), (2, 2));
    let rows: Vec<_> = world.dump().alarms().cloned().collect();
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| !row.attempts.started && row.attempts.crashes == 0), "{rows:?}");
}

#[tokio::test(start_paused = true)]
async fn what_ran_when_its_process_died_runs_alone_and_is_given_up_after_three_and_the_others_lose_nothing() {
    let world = World::in_memory();
    let running = Arc::new(AtomicUsize::new(0));
    let alone = Arc::new(Mutex::new(Vec::new()));
    let (count, saw) = (running.clone(), alone.clone());
    world.script.on_alarm(move |me, _, alarm| {
        let (kills, sleep, count, saw) = (alarm.id() == "killer", me.sleep(SECOND / 10), count.clone(), saw.clone());
        Box::pin(async move {
            if kills {
                saw.lock().push(count.load(Ordering::SeqCst));
                std::future::pending::<()>().await;
            }
            count.fetch_add(1, Ordering::SeqCst);
            sleep.await;
            count.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        })
    });
    let ids: Vec<String> = (0..40).map(|i| format!("i-{i}")).collect();
    let mut alarms: Vec<_> = ids.iter().map(|id| (id.as_str(), "x")).collect();
    alarms.insert(20, ("k", "killer"));
    crash_with_alarms(&world, &alarms).await;
    for process in 0..3 {
        let site = world.start().await;
        // Until the killer runs; the process dies of it.
        while alone.lock().len() == process {
            world.pass(Duration::from_millis(5)).await;
        }
        world.pass(Duration::from_millis(50)).await;
        site.crash();
        world.settle().await;
        running.store(0, Ordering::SeqCst);
    }
    assert_eq!(alone.lock()[1..], [0, 0], "from the second time on nothing ran beside it");
    let site = world.start().await;
    world.pass(60 * SECOND).await;
    assert_eq!(alone.lock().len(), 3, "it does not run a fourth time");
    let dead = site.probes.dead_letters(None, 10).await.unwrap();
    let [dead] = &dead[..] else { panic!("{dead:?}") };
    assert_eq!((dead.instance(), dead.id()), ("k", "killer"));
    assert!(dead.reason().contains("3 processes died"), "{}", dead.reason());
    let DeadKind::Alarm(alarm) = dead.kind() else { panic!("not an alarm") };
    assert_eq!(alarm.attempt(), 0, "no attempt of it has failed in good order");
    for id in &ids {
        let times = world.script.fired().iter().filter(|fired| fired.instance == *id).count();
        assert!(times >= 1, "{id}");
    }
    assert_eq!(world.dump().alarms().count(), 0);
    site.probes.request("k", put("k", 1)).await.unwrap();
    // Whoever has repaired it can bring it back.
    world.script.on_alarm(|_, cx, _| Box::pin(async move { Ok(cx.put("done", &1)?) }));
    assert!(site.probes.requeue(dead).await.unwrap());
    world.pass(SECOND).await;
    assert_eq!(site.probes.request("k", get("done")).await.unwrap(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_suspect_is_run_alone_also_when_later_alarms_have_ended_the_marking() {
    let world = World::in_memory();
    let beside = Arc::new(Mutex::new(Vec::new()));
    let running = Arc::new(AtomicUsize::new(0));
    let (saw, count) = (beside.clone(), running.clone());
    world.script.on_alarm(move |me, _, alarm| {
        let (kills, saw, count) = (alarm.id() == "killer", saw.clone(), count.clone());
        let sleep = me.sleep(SECOND);
        Box::pin(async move {
            if kills {
                saw.lock().push(count.load(Ordering::SeqCst));
                std::future::pending::<()>().await;
            }
            count.fetch_add(1, Ordering::SeqCst);
            sleep.await;
            count.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        })
    });
    let fleet = Fleet::new(["only"], 1).unwrap();
    let start = async || world.launch(world.member("only", &fleet), |probes| probes).await;
    let site = start().await;
    site.probes.set_alarm("k", "killer", world.at(1_000), &()).await.unwrap();
    site.crash();
    world.pass(10 * SECOND).await;
    for process in 1..=3 {
        let site = start().await;
        world.pass(5 * SECOND).await;
        assert_eq!(*beside.lock(), vec![0; process]);
        // For the next process: one that makes the suspect wait, and many that are due between the takeover and the moment
        // when they are loaded.
        let takeover = world.now() + 1_000;
        site.probes.set_alarm("e", "early", world.at(500), &()).await.unwrap();
        for i in 0..20 {
            site.probes.set_alarm(&format!("i-{i}"), "x", world.at(takeover + 5), &()).await.unwrap();
        }
        site.crash();
        world.pass(SECOND).await;
        running.store(0, Ordering::SeqCst);
        world.store.fail_next(Method::Load, Fault::Delay(Duration::from_millis(10)));
    }
    let site = start().await;
    world.pass(10 * SECOND).await;
    assert_eq!(beside.lock().len(), 3);
    assert_eq!(site.probes.dead_letters(None, 9).await.unwrap().len(), 1, "counted each time");
    assert_eq!(world.dump().alarms().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_died_of_an_alarm_or_message_stays_counted_when_its_handler_then_fails_in_the_ordinary_way() {
    let world = World::in_memory();
    let fails = Arc::new(AtomicUsize::new(0));
    let flag = fails.clone();
    world.script.on_alarm(move |_, _, _| {
        let fails = flag.load(Ordering::SeqCst) == 1;
        Box::pin(async move { if fails { Err(Failed::Told("no")) } else { std::future::pending().await } })
    });
    let flag = fails.clone();
    world.script.on_message(move |_, _, _| {
        let fails = flag.load(Ordering::SeqCst) == 1;
        Box::pin(async move { if fails { Err(Failed::Told("no")) } else { std::future::pending().await } })
    });
    let site = world.start().await;
    site.probes.set_alarm("a", "x", world.at(world.now() + 1_000), &()).await.unwrap();
    world.store.lose_hints(true);
    site.probes.post("b", NewPost::new("").id("m")).await.unwrap();
    site.crash();
    world.pass(10 * SECOND).await;
    // It is marked, and its process dies.
    let site = world.start().await;
    world.pass(SECOND).await;
    site.crash();
    world.settle().await;
    let is_marked =
        world.dump().alarms().all(|row| row.attempts.started) && world.dump().inbox().all(|row| row.attempts.started);
    assert!(is_marked, "{:?}", world.dump());
    fails.store(1, Ordering::SeqCst);
    let _site = world.start().await;
    world.pass(Duration::from_millis(500)).await;
    let dump = world.dump();
    let alarms: Vec<_> =
        dump.alarms().map(|row| (row.attempts.crashes, row.attempts.started, row.attempts.failed)).collect();
    let messages: Vec<_> =
        dump.inbox().map(|row| (row.attempts.crashes, row.attempts.started, row.attempts.failed)).collect();
    assert_eq!((alarms, messages), (vec![(1, false, 1)], vec![(1, false, 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_kills_is_given_up_too() {
    let world = World::in_memory();
    world.script.on_message(|_, _, message| {
        let kills = message.id() == "killer";
        Box::pin(async move {
            if kills {
                std::future::pending::<()>().await;
            }
            Ok(())
        })
    });
    let site = world.start().await;
    site.crash();
    let site = world.launch(world.local().max_crashes(2), |probes| probes).await;
    site.crash();
    {
        let site = world.start().await;
        world.store.lose_hints(true);
        site.probes.post("a", NewPost::new("").id("killer")).await.unwrap();
        site.probes.post("b", NewPost::new("").id("fine")).await.unwrap();
        site.crash();
    }
    for _ in 0..2 {
        world.pass(SECOND).await;
        let site = world.launch(world.local().max_crashes(2), |probes| probes).await;
        world.pass(SECOND).await;
        site.crash();
    }
    world.pass(SECOND).await;
    let site = world.launch(world.local().max_crashes(2), |probes| probes).await;
    world.pass(SECOND).await;
    let dead = site.probes.dead_letters(None, 10).await.unwrap();
    assert_eq!(dead.iter().map(|dead| dead.id()).collect::<Vec<_>>(), ["killer"]);
    assert!(world.script.taken_ids().contains(&"fine".to_owned()));
    assert_eq!(world.dump().inbox().count(), 0);
}

// What follows happens in real processes. A test starts its own binary again as the child, which prints what it does.

const DIR: &str = "KILLERS_DIR";
const OTHERS: usize = 100;

/// An instance whose alarm `killer` ends the process.
struct Victim;

/// The number of handlers of this process that run now.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

impl StableInterface for Victim {
    const NAME: &'static str = "victim";
    type Error = ContextError;
}

impl OnAlarm for Victim {
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), ContextError> {
        if alarm.id() == "killer" {
            println!("said killed beside {}", RUNNING.load(Ordering::SeqCst));
            std::process::abort();
        }
        RUNNING.fetch_add(1, Ordering::SeqCst);
        SystemClock::default().sleep(Duration::from_millis(3)).await;
        RUNNING.fetch_sub(1, Ordering::SeqCst);
        let times: u64 = cx.get("times").await?.unwrap_or(0);
        cx.put("times", &(times + 1))
    }
}

struct Times;

impl Handle<Times> for Victim {
    type Reply = Option<u64>;
    async fn handle(&mut self, cx: &mut Context, _: Times) -> Result<Option<u64>, ContextError> {
        cx.get("times").await
    }
}

async fn victims(dir: PathBuf) -> (Host, Interface<Victim>) {
    // One shard, so that all are in each other's way.
    let fleet = Fleet::new(["only"], 1).unwrap();
    let mut builder = Host::builder("only", fleet).store(FjallStore::open(dir).unwrap());
    let victims = builder.interface(|_| Victim).with_alarms().register().unwrap();
    (builder.start().await.unwrap(), victims)
}

/// The child: sets the alarms and dies, or lets them fire until nothing is left.
async fn live(dir: PathBuf, part: &str) {
    let (host, victims) = victims(dir).await;
    let clock = SystemClock::default();
    if part == "set" {
        let due = clock.now() + Duration::from_millis(1);
        for i in 0..OTHERS {
            victims.set_alarm(&format!("i-{i}"), "x", due, &()).await.unwrap();
            if i == OTHERS / 2 {
                victims.set_alarm("k", "killer", clock.now() + 600 * SECOND, &()).await.unwrap();
            }
        }
        victims.set_alarm("k", "killer", due, &()).await.unwrap();
        std::process::abort();
    }
    loop {
        let dead = victims.dead_letters(None, 10).await.unwrap();
        let mut done = 0;
        for i in 0..OTHERS {
            done += usize::from(victims.request(&format!("i-{i}"), Times).await.unwrap() == Some(1));
        }
        if done == OTHERS && !dead.is_empty() {
            let dead: Vec<_> = dead.iter().map(|dead| format!("{} of {}", dead.id(), dead.instance())).collect();
            println!("said finished with {} dead", dead.join(", "));
            assert!(host.drain(60 * SECOND).await.released);
            return;
        }
        clock.sleep(Duration::from_millis(20)).await;
    }
}

/// Runs a child to its end: what it said, and whether it ended well.
fn run_child(dir: &std::path::Path, part: &str) -> (Vec<String>, bool) {
    let test = "an_alarm_that_aborts_its_process_is_given_up_after_three_and_all_others_complete";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(DIR, dir)
        .env("KILLERS_PART", part)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let said = lines.filter_map(|line| Some(line.split_once("said ")?.1.to_owned())).collect();
    (said, child.wait().unwrap().success())
}

#[test]
fn an_alarm_that_aborts_its_process_is_given_up_after_three_and_all_others_complete() {
    if let Some(dir) = std::env::var_os(DIR) {
        let part = std::env::var("KILLERS_PART").unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(live(dir.into(), &part));
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(!run_child(dir.path(), "set").1);
    for process in 0..3 {
        let (said, ended_well) = run_child(dir.path(), "run");
        assert!(!ended_well, "{said:?}");
        let [killed] = &said[..] else { panic!("process {process}: {said:?}") };
        assert!(process == 0 || killed == "killed beside 0", "process {process}: {killed}");
    }
    let (said, ended_well) = run_child(dir.path(), "run");
    assert!(ended_well, "{said:?}");
    assert_eq!(said, ["finished with killer of k dead"]);
}
