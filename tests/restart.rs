//! A process ends anywhere, and another begins on what it left.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use stable_interfaces::testing::{Fault, Method, SeededRandom, SimClock};
use stable_interfaces::{
    Clock, Epoch, Fleet, Health, Host, Interface, KeyRange, MemoryStore, Op, Random, RetryPolicy, ShardId, Store, Write,
};
use system_tests::history::{End, Event, History, Outcome};
use system_tests::{
    Between, Do, Failed, Probe, START, Site, World, act, count, get, in_time, life, now_or_never, on_each_store, put, spawn,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
const CLIENTS: usize = 3;

/// The whole name of an alarm in a history.
fn whole(instance: &str, alarm: &str) -> String {
    format!("{instance}/{alarm}")
}

/// What the probes of the scenario do when an alarm fires: they count its effects in its own key.
fn prepare(world: &World, history: &History) {
    let history = history.clone();
    world.script.on_alarm(move |_, cx, alarm| {
        let name = whole(alarm.instance(), alarm.id());
        history.add(Event::Fired { alarm: name, at: cx.now(), due: alarm.due() });
        let (id, attempt) = (alarm.id().to_owned(), alarm.attempt());
        Box::pin(async move {
            let key = format!("effect/{id}");
            let effects = cx.get::<i64>(&key).await?.unwrap_or(0) + 1;
            cx.put(&key, &effects)?;
            if id.starts_with("fails") && attempt == 0 {
                return Err(Failed::Told("the first time"));
            }
            if id.starts_with("again") && effects < 3 {
                cx.set_alarm(&id, cx.now() + Duration::from_millis(400), &())?;
            }
            if id.starts_with("half") {
                cx.commit().await?;
                cx.put("after", &id)?;
            }
            Ok(())
        })
    });
}

/// One client of the scenario: it does one thing after the other and records what it was told.
async fn client(probes: Interface<Probe>, clock: Arc<dyn Clock>, history: History, number: usize) {
    let instance = format!("i-{number}");
    for round in 0..4_usize {
        let kind = ["plain", "again", "fails", "late"][(round + number) % 4];
        let alarm: &'static str = format!("{kind}-{round}").leak();
        let due = clock.now() + Duration::from_millis(if kind == "late" { 2_500 } else { 350 });
        let place = act(move |_: &mut Probe, cx| {
            Box::pin(async move {
                cx.put(&format!("placed/{alarm}"), &1)?;
                Ok(cx.set_alarm(alarm, due, &())?)
            })
        });
        let answer = probes.request(&instance, place).await;
        let times = if kind == "again" { 3 } else { 1 };
        history.add(Event::Set { alarm: whole(&instance, alarm), times, outcome: Outcome::of(&answer) });
        clock.sleep(Duration::from_millis(130)).await;
        if kind == "late" {
            // From outside, and long before it is due.
            let answer = probes.cancel_alarm(&instance, alarm).await;
            history.add(Event::Cancelled { alarm: whole(&instance, alarm), outcome: Outcome::of(&answer) });
        }
        let answer = probes.request("shared", count("n")).await;
        history.add(Event::Counted { counter: "shared".to_owned(), outcome: Outcome::of(&answer) });
        clock.sleep(Duration::from_millis(170)).await;
    }
}

/// Reads from a healthy host what is left.
async fn read_end(site: &Site) -> End {
    let mut end = End::default();
    for number in 0..CLIENTS {
        let instance = format!("i-{number}");
        let effects = act(|_: &mut Probe, cx| {
            Box::pin(async move {
                let rows = cx.list(KeyRange::prefix("effect/")).await?;
                let value = |bytes: &[u8]| std::str::from_utf8(bytes).expect("JSON").parse::<i64>().expect("a number");
                Ok(rows.into_iter().map(|(key, bytes)| (key["effect/".len()..].to_owned(), value(&bytes))).collect())
            })
        });
        let effects: Vec<(String, i64)> = site.probes.request(&instance, effects).await.expect("a healthy host");
        end.effects.extend(effects.into_iter().map(|(alarm, effects)| (whole(&instance, &alarm), effects)));
        let alarms = site.probes.alarms(&instance).await.expect("a healthy host");
        end.alarms.extend(alarms.iter().map(|alarm| whole(&instance, alarm.id())));
    }
    let n = site.probes.request("shared", get("n")).await.expect("a healthy host").unwrap_or(0);
    end.counters.insert("shared".to_owned(), n);
    end.alarms
        .extend(site.probes.dead_letters(None, 100).await.expect("a healthy host").iter().map(|d| d.id().to_owned()));
    end
}

/// Starts a host, works with it as the clients do, lets its alarms fire and drains it.
async fn scenario(world: &World, history: &History, between: impl FnOnce(Between) -> Between) {
    let site = world.launch(world.local_behind(between), |probes| probes.retry(RetryPolicy::new().first(SECOND))).await;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let clock = Arc::new(world.clock.clone());
            tokio::spawn(client(site.probes.clone(), clock, history.clone(), number))
        })
        .collect();
    for client in clients {
        client.await.expect("a client does not panic");
    }
    world.pass(Duration::from_millis(300)).await;
    site.host.drain(10 * SECOND).await;
}

/// What happens to the call at which the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// It never reaches the store.
    Before,
    /// It does, and nobody hears the answer.
    After,
    /// It does, when the next process is at work already.
    Late,
}

/// Runs the scenario, ends the process at store call `k`, starts another and checks the whole. Returns how many calls the
/// first process made, and what is wrong.
async fn crash_at(world: &mut World, k: u64, cut: Cut, between: impl FnOnce(Between) -> Between) -> (u64, Vec<String>) {
    let history = History::default();
    prepare(world, &history);
    match cut {
        Cut::Before => world.store.hang_from(k),
        Cut::After => {
            world.store.fail_at(k, Fault::HangAfter);
            world.store.hang_from(k + 1);
        }
        Cut::Late => {
            world.store.fail_at(k, Fault::HangLate(3 * SECOND));
            world.store.hang_from(k + 1);
        }
    }
    let until = if cut == Cut::Before { k } else { k + 1 };
    {
        let world: &World = world;
        tokio::select! { biased;
            () = async {
                world.store.until_begun(until).await;
                world.settle().await;
            } => {}
            () = scenario(world, &history, between) => {}
        }
        // Here the host is dropped, with whatever it was about to do. Clients learn that and end.
        world.pass(2 * SECOND).await;
    }
    let calls = world.store.begun();
    world.store.heal();
    if cut != Cut::Late {
        world.reopen().await;
    }
    let retry = RetryPolicy::new().first(SECOND);
    let mut site = world.launch(world.local(), |probes| probes.retry(retry)).await;
    world.pass(10 * SECOND).await;
    if site.host.health() == Health::Replaced {
        // The late call was the claim of the dead process. Its supervisor starts the living one again.
        assert_eq!(cut, Cut::Late);
        drop(site);
        site = world.launch(world.local(), |probes| probes.retry(retry)).await;
        world.pass(10 * SECOND).await;
    }
    let end = read_end(&site).await;
    let wrong = history.check(&end);
    let drained = site.host.drain(SECOND).await;
    assert!(drained.released, "{drained:?}");
    (calls, wrong)
}

/// Ends the process at each `step`th store call of the scenario, one run for each.
async fn crash_everywhere(open: impl Fn() -> World, cut: Cut, step: u64) -> u64 {
    for k in (0..).map(|i| i * step) {
        let mut world = open();
        let (calls, wrong) = in_time(crash_at(&mut world, k, cut, |nothing| nothing)).await;
        assert!(wrong.is_empty(), "crash {cut:?} call {k}: {wrong:#?}");
        if calls <= k {
            return k;
        }
    }
    unreachable!("the scenario ends")
}

#[tokio::test(start_paused = true)]
async fn a_crash_before_any_store_call_leaves_nothing_lost_doubled_or_half_done() {
    let runs = crash_everywhere(World::in_memory, Cut::Before, 1).await;
    assert!(runs > 40, "the scenario has only {runs} calls");
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_any_store_call_and_its_answer_leaves_nothing_lost_doubled_or_half_done() {
    crash_everywhere(World::in_memory, Cut::After, 1).await;
}

#[tokio::test(start_paused = true)]
async fn any_store_call_that_arrives_when_the_next_process_is_at_work_changes_nothing() {
    crash_everywhere(World::in_memory, Cut::Late, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_store_call_on_fjall_leaves_nothing_lost_doubled_or_half_done() {
    crash_everywhere(World::on_fjall, Cut::Before, 5).await;
    crash_everywhere(World::on_fjall, Cut::After, 5).await;
}

/// The calls of the scenario that break what they are asked to.
async fn wrong_with(between: fn(Between) -> Between) -> Vec<String> {
    let mut all = Vec::new();
    for k in (0..120).step_by(10) {
        let mut world = World::in_memory();
        let (_, wrong) = in_time(crash_at(&mut world, k, Cut::Before, between)).await;
        all.extend(wrong);
    }
    all
}

#[tokio::test(start_paused = true)]
async fn the_checker_catches_a_store_that_acknowledges_what_it_does_not_keep() {
    let wrong = wrong_with(|between| {
        let written = AtomicU64::new(0);
        between.on_write(move |write| {
            if written.fetch_add(1, Ordering::SeqCst) % 5 == 4 {
                write.batches.iter_mut().for_each(|batch| batch.ops.clear());
            }
        })
    });
    assert!(wrong.await.iter().any(|wrong| wrong.starts_with("I3")), "nothing was found");
}

#[tokio::test(start_paused = true)]
async fn the_checker_catches_a_store_that_keeps_effects_and_forgets_completions() {
    let wrong = wrong_with(|between| {
        between.on_write(|write| {
            for batch in &mut write.batches {
                batch.ops.retain(|op| !matches!(op, Op::RemoveAlarm { .. }));
            }
        })
    });
    assert!(wrong.await.iter().any(|wrong| wrong.contains("effect 2 times")), "nothing was found");
}

#[tokio::test(start_paused = true)]
async fn the_checker_catches_a_store_that_tears_a_batch() {
    let wrong = wrong_with(|between| {
        between.on_write(|write| {
            for batch in &mut write.batches {
                batch.ops.retain(|op| !matches!(op, Op::Put { key, .. } if key.starts_with("effect/")));
            }
        })
    });
    assert!(wrong.await.iter().any(|wrong| wrong.starts_with("I4")), "nothing was found");
}

/// Processes follow each other, each ended at a moment drawn at random, on a store that fails at random.
async fn random_lives(seed: u64) {
    let mut world = World::in_memory();
    let history = History::default();
    prepare(&world, &history);
    let random = SeededRandom::new(seed);
    let draw = |most: u64| random.next_u64() % most;
    let landed = Arc::new(Mutex::new(Vec::<(ShardId, Epoch)>::new()));
    let mut names = 0;
    for life in 0..6 {
        for (fault, chance) in [
            (Fault::FailBefore, 0.05),
            (Fault::FailAfter, 0.05),
            (Fault::Late(SECOND * 4), 0.03),
            (Fault::HangLate(SECOND * 7), 0.02),
            (Fault::DelayUpTo(SECOND), 0.2),
        ] {
            world.store.set_chance(Method::Commit, fault, chance);
            world.store.set_chance(Method::Load, fault, chance);
        }
        let seen = landed.clone();
        let builder = world.local_behind(|between| {
            between.on_answer(move |write: &Write, answers| {
                if let Ok(answers) = answers {
                    let done = write.batches.iter().zip(answers).filter(|(_, answer)| answer.is_ok());
                    seen.lock().extend(done.map(|(batch, _)| (batch.shard, batch.epoch)));
                }
            })
        });
        let site = world.launch(builder, |probes| probes.retry(RetryPolicy::new().first(SECOND))).await;
        let clock: Arc<dyn Clock> = Arc::new(world.clock.clone());
        let probes = site.probes.clone();
        let of_life = history.clone();
        let clients = tokio::spawn(async move {
            for number in 0..2 {
                one_order(&probes, &of_life, &*clock, names + number).await;
            }
        });
        names += 2;
        world.pass(Duration::from_millis(50 + draw(6_000))).await;
        match draw(3) {
            0 => drop(site.host.drain(Duration::from_millis(draw(2_000))).await),
            1 => drop(site),
            _ => site.crash(),
        }
        clients.await.expect("a client does not panic");
        if life % 2 == 0 {
            world.reopen().await;
        }
    }
    world.store.heal();
    let site = world.launch(world.local(), |probes| probes.retry(RetryPolicy::new().first(SECOND))).await;
    world.pass(120 * SECOND).await;
    let mut end = End::default();
    for number in 0..names {
        let id = format!("order-{number}");
        let effect = site.probes.request(&id, get("effect/timeout")).await.expect("healthy").unwrap_or(0);
        end.effects.insert(whole(&id, "timeout"), effect);
        let placed = site.probes.request(&id, get("placed")).await.expect("healthy").unwrap_or(0);
        end.counters.insert(id.clone(), placed);
        end.alarms.extend(site.probes.alarms(&id).await.expect("healthy").iter().map(|alarm| whole(&id, alarm.id())));
    }
    let wrong = history.check(&end);
    assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
    let mut newest = BTreeMap::new();
    for (shard, epoch) in landed.lock().iter() {
        let newest = newest.entry(*shard).or_insert(*epoch);
        assert!(epoch >= newest, "I6, seed {seed}: shard {shard}, epoch {epoch} after {newest}");
        *newest = *epoch;
    }
}

/// Places an order with a timeout, and sometimes calls the timeout off.
async fn one_order(probes: &Interface<Probe>, history: &History, clock: &dyn Clock, number: usize) {
    let id = format!("order-{number}");
    let due = clock.now() + Duration::from_millis(1_500);
    let place: Do<()> = act(move |_: &mut Probe, cx| {
        Box::pin(async move {
            let placed = cx.get::<i64>("placed").await?.unwrap_or(0) + 1;
            cx.put("placed", &placed)?;
            Ok(cx.set_alarm("timeout", due, &())?)
        })
    });
    let outcome = Outcome::of(&probes.request(&id, place).await);
    history.add(Event::Set { alarm: whole(&id, "timeout"), times: 1, outcome });
    history.add(Event::Counted { counter: id.clone(), outcome });
    if number.is_multiple_of(3) {
        clock.sleep(Duration::from_millis(300)).await;
        let outcome = Outcome::of(&probes.cancel_alarm(&id, "timeout").await);
        history.add(Event::Cancelled { alarm: whole(&id, "timeout"), outcome });
    }
}

#[tokio::test(start_paused = true)]
async fn lives_ended_at_random_on_a_store_that_fails_at_random_lose_nothing_and_do_nothing_twice() {
    for seed in 0..60 {
        in_time(random_lives(seed)).await;
    }
}

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
