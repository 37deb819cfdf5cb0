//! Time limits and settings: each interface's own, the lease's, and none that depends on the order in which they are set or on a
//! wall clock that steps.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alarm_backends::FjallStore;
use proptest::prelude::*;
use stable_interfaces::clock::{Clock, Sleep};
use stable_interfaces::testing::{Fault, FaultStore, Method, SimClock};
use stable_interfaces::{
    Context, ContextError, Drained, Fleet, Handle, Health, Host, HostBuilder, InstanceRef, Interface, InterfaceBuilder,
    NewPost, RequestError, RetryPolicy, StableInterface, StartError, Timestamp,
};
use system_tests::{Do, Failed, Probe, Raise, World, act, get, in_time, life, now_or_never, put, set, spawn, wait};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// An interface beside the probes, with limits of its own. It takes as long as it is told, and as long to stop.
struct Slow {
    clock: SimClock,
    stops: Duration,
    stopped: Arc<AtomicU64>,
}

impl StableInterface for Slow {
    const NAME: &'static str = "slow";
    type Error = ContextError;

    async fn on_stop(&mut self) {
        self.clock.sleep(self.stops).await;
        self.stopped.fetch_add(1, Ordering::SeqCst);
    }
}

impl Handle<Duration> for Slow {
    type Reply = ();

    async fn handle(&mut self, _: &mut Context, takes: Duration) -> Result<(), ContextError> {
        if !takes.is_zero() {
            self.clock.sleep(takes).await;
        }
        Ok(())
    }
}

/// A host with probes and slow ones, which have these limits.
async fn launch_both(world: &World, probe: Duration, slow: Duration) -> (Host, Interface<Probe>, Interface<Slow>) {
    let mut builder = world.local();
    let probes = builder.interface(world.factory()).with_alarms().handler_timeout(probe).register().unwrap();
    let clock = world.clock.clone();
    let slow_one = move |_: &str| Slow { clock: clock.clone(), stops: Duration::ZERO, stopped: Arc::default() };
    let slows = builder.interface(slow_one).handler_timeout(slow).register().unwrap();
    (builder.start().await.unwrap(), probes, slows)
}

/// A message whose handler asks a slow one for something that takes `asks`, notes the answer, then sleeps for `sleeps`.
fn ask_then_sleep(slows: &Interface<Slow>, asks: Duration, sleeps: Duration) -> Do<()> {
    let slows = slows.clone();
    act(move |me: &mut Probe, _| {
        let (sleep, script) = (me.sleep(asks + sleeps), me.script.clone());
        Box::pin(async move {
            let answer = slows.request("q", asks).await;
            script.note(answer.map_or_else(|error| error.to_string(), |()| "answered".to_owned()));
            sleep.await;
            Ok(())
        })
    })
}

#[tokio::test(start_paused = true)]
async fn a_handler_has_its_own_interfaces_time_whatever_the_limit_of_whom_it_asks() {
    let world = World::in_memory();
    let (_host, probes, slows) = launch_both(&world, 30 * SECOND, 300 * MILLI).await;
    probes.request("a", ask_then_sleep(&slows, Duration::ZERO, 29 * SECOND)).await.unwrap();
    // Also one that had to queue, and an alarm's.
    let busy = spawn(&probes, "a", wait(SECOND));
    world.settle().await;
    let queued = probes.request("a", ask_then_sleep(&slows, Duration::ZERO, 28 * SECOND));
    queued.await.unwrap();
    busy.await.unwrap().unwrap();
    let asked = slows.clone();
    world.script.on_alarm(move |me, _, _| {
        let (sleep, script, slows) = (me.sleep(29 * SECOND), me.script.clone(), asked.clone());
        Box::pin(async move {
            slows.request("q", Duration::ZERO).await.map_err(|error| Failed::Nested(error.to_string()))?;
            sleep.await;
            script.note("done");
            Ok(())
        })
    });
    probes.set_alarm("a", "x", world.at(world.now()), &()).await.unwrap();
    world.pass(31 * SECOND).await;
    assert_eq!(world.script.notes(), ["answered", "answered", "done"]);
}

#[tokio::test(start_paused = true)]
async fn a_handler_may_not_run_longer_for_asking_one_that_may() {
    let world = World::in_memory();
    let (_host, probes, slows) = launch_both(&world, 300 * MILLI, 30 * SECOND).await;
    for asks in [Duration::ZERO, 100 * MILLI] {
        let began = world.now();
        let error = probes.request("a", ask_then_sleep(&slows, asks, SECOND)).await.unwrap_err();
        assert!(matches!(&error, RequestError::TimedOut { after, .. } if *after == 300 * MILLI), "{error}");
        assert_eq!(world.now() - began, 300);
    }
    assert_eq!(world.script.notes(), ["answered", "answered"]);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_asked_has_its_own_limit_or_what_its_caller_has_left_less_a_tenth() {
    // What was asked is running: past its own limit it has not happened; its caller, which waits no longer, cannot know.
    for (probe, slow, said) in [
        (30 * SECOND, 300 * MILLI, "timed out after 300ms waiting for slow/q"),
        (300 * MILLI, 30 * SECOND, "outcome unknown"),
    ] {
        let world = World::in_memory();
        let (_host, probes, slows) = launch_both(&world, probe, slow).await;
        let asking = spawn(&probes, "a", ask_then_sleep(&slows, SECOND, 20 * SECOND));
        world.pass(probe.min(slow) * 9 / 10 - MILLI).await;
        assert!(world.script.notes().is_empty());
        world.pass(probe.min(slow) / 10 + 2 * MILLI).await;
        let notes = world.script.notes();
        assert!(notes.len() == 1 && notes[0].starts_with(said), "{notes:?}");
        assert_eq!(asking.await.unwrap().is_ok(), probe > slow);
    }
}

/// Every order of the numbers below `n`.
fn orders(n: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for next in 0..n {
        let grown = |order: Vec<usize>| {
            (0..=order.len()).map(move |at| {
                let mut order = order.clone();
                order.insert(at, next);
                order
            })
        };
        all = all.into_iter().flat_map(grown).collect();
    }
    all
}

#[tokio::test(start_paused = true)]
async fn settings_count_in_whatever_order_they_and_the_interfaces_are_given() {
    const STEPS: [&str; 5] = ["interface", "store", "clock", "lease", "connections"];
    for order in orders(STEPS.len()) {
        let world = World::in_memory();
        let (mut builder, mut probes) = (Host::builder("h", Fleet::new(["h"], 4).unwrap()), None);
        for step in &order {
            builder = match STEPS[*step] {
                "interface" => {
                    probes = Some(builder.interface(world.factory()).with_alarms().register().unwrap());
                    builder
                }
                "store" => builder.store(world.store.clone()),
                "clock" => builder.clock(Arc::new(world.clock.clone())),
                "lease" => builder.lease(3 * SECOND),
                _ => builder.max_connections(0),
            };
        }
        let given: Vec<_> = order.iter().map(|step| STEPS[*step]).collect();
        let host = builder.start().await.unwrap_or_else(|error| panic!("{error}, given {given:?}"));
        let probes = probes.unwrap();
        probes
            .set_alarm("a", "x", world.at(1_000), &())
            .await
            .unwrap_or_else(|error| panic!("{error}, given {given:?}"));
        let refused = probes.connect("a", "").await;
        assert!(matches!(refused, Err(RequestError::Overloaded(what)) if what == "connections"), "{given:?}");
        world.pass(10 * SECOND).await;
        assert!(world.script.fired().iter().all(|fired| (1_000..1_005).contains(&fired.at)), "{given:?}");
        assert!(world.script.fired().len() == 1 && world.store.calls(Method::Renew) >= 9, "{given:?}");
        drop(host);
    }
}

#[tokio::test(start_paused = true)]
async fn a_setting_that_cannot_work_is_refused_in_whatever_order_it_is_given() {
    let world = World::in_memory();
    for late in [false, true] {
        let mut builder = world.member("h", &Fleet::new(["h"], 4).unwrap());
        if !late {
            builder = builder.lease(10 * MILLI);
        }
        let _probes = builder.interface(world.factory()).register().unwrap();
        if late {
            builder = builder.lease(10 * MILLI);
        }
        let error = builder.start().await.unwrap_err();
        assert!(matches!(error, StartError::Option(_)) && error.to_string().contains("lease"), "{error}");
    }
}

/// A host with slow ones that take so long to stop, and how many have.
async fn launch_stopping(world: &World, stops: Duration) -> (Host, Interface<Slow>, Arc<AtomicU64>) {
    let mut builder = world.local();
    let (clock, stopped) = (world.clock.clone(), Arc::new(AtomicU64::new(0)));
    let count = stopped.clone();
    let slow = move |_: &str| Slow { clock: clock.clone(), stops, stopped: count.clone() };
    let slows = builder.interface(slow).handler_timeout(200 * MILLI).idle_timeout(60 * SECOND).register().unwrap();
    (builder.start().await.unwrap(), slows, stopped)
}

#[tokio::test(start_paused = true)]
async fn on_stop_has_its_own_limit_and_not_that_of_handlers() {
    let world = World::in_memory();
    let (host, slows, stopped) = launch_stopping(&world, 20 * SECOND).await;
    slows.request("told", Duration::ZERO).await.unwrap();
    slows.stop("told").await.unwrap();
    assert_eq!(stopped.load(Ordering::SeqCst), 1);
    slows.request("idle", Duration::ZERO).await.unwrap();
    world.pass(120 * SECOND).await;
    assert_eq!(stopped.load(Ordering::SeqCst), 2);
    slows.request("drained", Duration::ZERO).await.unwrap();
    let drained = host.drain(60 * SECOND).await;
    assert_eq!((stopped.load(Ordering::SeqCst), drained.unfinished), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn an_on_stop_that_is_cut_off_while_its_host_drains_is_counted_as_unfinished() {
    let world = World::in_memory();
    let (host, slows, stopped) = launch_stopping(&world, 3_600 * SECOND).await;
    slows.request("told", Duration::ZERO).await.unwrap();
    let error = slows.stop("told").await.unwrap_err();
    assert!(matches!(&error, RequestError::TimedOut { after, .. } if *after == 30 * SECOND), "{error}");
    for id in ["a", "b"] {
        slows.request(id, Duration::ZERO).await.unwrap();
    }
    let before = world.now();
    let drained = host.drain(300 * SECOND).await;
    let wanted = Drained { unfinished: 2, instances: 0, tasks: 0, released: true, handed_over: BTreeMap::new() };
    assert_eq!(drained, wanted, "and not those from before");
    assert_eq!((stopped.load(Ordering::SeqCst), (world.now() - before) / 1_000), (0, 30));
}

/// A fleet whose hosts are `host-0` up to this many.
fn fleet(hosts: u32) -> Fleet {
    Fleet::expand(&format!("host-{{0..{}}}", hosts - 1), 64).unwrap()
}

/// A message that spawns a task which writes down the time every 50 ms for ever.
fn tick(world: &World) -> Do<()> {
    let clock = world.clock.clone();
    act(move |me: &mut Probe, cx: &mut Context| {
        let script = me.script.clone();
        Box::pin(async move {
            cx.spawn(move |me: InstanceRef<Probe>| async move {
                loop {
                    script.note(format!("{} {}", me.id(), clock.now().as_millis()));
                    clock.sleep(50 * MILLI).await;
                }
            })?;
            Ok(())
        })
    })
}

#[tokio::test(start_paused = true)]
async fn what_belongs_to_an_incarnation_ends_with_the_lease_also_while_a_renewal_hangs_and_a_handler_runs() {
    let world = World::in_memory();
    let (small, large) = (fleet(1), fleet(2));
    let ids: Vec<_> =
        (0..).map(|i| format!("id-{i}")).filter(|id| large.locate(id).unwrap().host == "host-1").take(2).collect();
    let own = FaultStore::seeded(Arc::new(world.store.clone()), Arc::new(world.clock.clone()), 2);
    let old =
        world.equip(Host::builder("host-0", small).store(own.clone())).lease(3 * SECOND).store_timeout(5 * SECOND);
    let old = world.launch(old, |probes| probes).await;
    let mut clients = Vec::new();
    for id in &ids {
        old.probes.request(id, tick(&world)).await.unwrap();
        clients.push(old.probes.connect(id, "").await.unwrap());
    }
    world.pass(3_500 * MILLI).await;
    own.set_chance(Method::Renew, Fault::Hang, 1.0);
    let busy = spawn(&old.probes, &ids[1], wait(20 * SECOND));
    let new = world.launch(world.member("host-1", &large).lease(3 * SECOND), |probes| probes).await;
    while !new.host.owns(&ids[0]).unwrap() || !new.host.owns(&ids[1]).unwrap() {
        world.pass(10 * MILLI).await;
    }
    let taken = world.now();
    for client in &mut clients {
        let ended = now_or_never(client.recv()).await.expect("its connections are closed by then");
        assert!(ended.is_err(), "{ended:?}");
    }
    world.pass(10 * SECOND).await;
    let start = system_tests::START.as_millis();
    let mut ticks = Vec::new();
    for note in world.script.notes() {
        let (id, at) = note.split_once(' ').unwrap();
        ticks.push((id.to_owned(), at.parse::<i64>().unwrap() - start));
    }
    assert!(
        ids.iter().all(|id| ticks.iter().any(|(of, at)| of == id && *at > 5_500)),
        "while the lease held: {ticks:?}"
    );
    assert!(
        ticks.iter().all(|(_, at)| *at <= taken),
        "beside the new owner, which has had it since {taken}: {ticks:?}"
    );
    assert!(busy.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_was_busy_over_the_end_of_its_lease_is_built_anew_when_the_lease_is_back() {
    let world = World::in_memory();
    let site = world.launch(world.member("host-0", &fleet(1)).lease(3 * SECOND), |probes| probes).await;
    let client = site.probes.connect("a", "").await.unwrap();
    world.store.set_chance(Method::Renew, Fault::Hang, 1.0);
    let busy = spawn(&site.probes, "a", wait(20 * SECOND));
    world.pass(8 * SECOND).await;
    assert!(now_or_never(client.recv()).await.is_some(), "closed with the lease");
    world.store.heal();
    world.store.release_hanging();
    drop(busy.await.unwrap());
    assert_eq!(site.probes.request("a", life()).await.unwrap(), 2);
    assert!(site.probes.connect("a", "").await.is_ok());
}

/// The clock of a machine that can be suspended: time has passed, and no sleep has noticed.
#[derive(Debug, Clone)]
struct Suspends {
    clock: SimClock,
    millis: Arc<AtomicU64>,
}

impl Suspends {
    fn of(world: &World) -> Suspends {
        Suspends { clock: world.clock.clone(), millis: Arc::default() }
    }

    fn suspend(&self, time: Duration) {
        self.millis.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::SeqCst);
    }

    fn suspended(&self) -> Duration {
        Duration::from_millis(self.millis.load(Ordering::SeqCst))
    }
}

impl Clock for Suspends {
    fn now(&self) -> Timestamp {
        self.clock.now() + self.suspended()
    }

    fn elapsed(&self) -> Duration {
        self.clock.elapsed() + self.suspended()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        self.clock.sleep(duration)
    }

    fn sleep_exact(&self, until: Timestamp) -> Sleep {
        self.sleep(until.since(self.now()))
    }

    fn is_simulated(&self) -> bool {
        true
    }
}

/// A host on a machine that can be suspended.
async fn launch_suspending(world: &World) -> (Host, Interface<Probe>, Suspends) {
    let clock = Suspends::of(world);
    let mut builder = world.member("h", &Fleet::new(["h"], 1).unwrap()).clock(Arc::new(clock.clone()));
    let probes = builder.interface(world.factory()).with_alarms().register().unwrap();
    (builder.start().await.unwrap(), probes, clock)
}

#[tokio::test(start_paused = true)]
async fn after_a_pause_longer_than_the_lease_nothing_that_was_handed_over_before_starts_without_a_look_at_it() {
    let world = World::in_memory();
    let (_host, probes, clock) = launch_suspending(&world).await;
    let (suspends, store) = (clock.clone(), world.store.clone());
    world.script.on_alarm(move |me, _, _| {
        me.script.note(store.calls(Method::Renew).to_string());
        if suspends.suspended().is_zero() {
            suspends.suspend(60 * SECOND);
        }
        Box::pin(async { Ok(()) })
    });
    for id in ["a", "b", "c", "d"] {
        probes.set_alarm(id, "x", world.at(1_000), &()).await.unwrap();
    }
    world.pass(20 * SECOND).await;
    let renewals: Vec<u64> = world.script.notes().iter().map(|note| note.parse().unwrap()).collect();
    let [first, others @ ..] = renewals.as_slice() else { panic!("none began") };
    assert!(others.len() == 3 && others.iter().all(|later| later > first), "{renewals:?} had been when each began");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_waits_for_a_task_of_the_host_does_not_start_without_the_lease() {
    fn nest(probes: Interface<Probe>, clock: Suspends, depth: u32) -> Do<()> {
        act(move |me: &mut Probe, _: &mut Context| {
            let script = me.script.clone();
            Box::pin(async move {
                if depth == 17 {
                    script.note("began");
                    return Ok(());
                }
                let next = probes.clone();
                let id = (depth + 1).to_string();
                let mut request = Box::pin(next.request(&id, nest(probes, clock.clone(), depth + 1)));
                let begun = now_or_never(&mut request).await;
                if depth == 16 {
                    assert!(begun.is_none(), "this deep a task of the host begins");
                    clock.suspend(60 * SECOND);
                }
                let answer = match begun {
                    Some(answer) => answer,
                    None => request.await,
                };
                answer.map_err(|error| Failed::Nested(error.to_string()))
            })
        })
    }
    let world = World::in_memory();
    let (_host, probes, clock) = launch_suspending(&world).await;
    // Whoever keeps the lease sleeps by now.
    world.settle().await;
    let answer = probes.request("1", nest(probes.clone(), clock, 1)).await;
    assert!(answer.is_err() && world.script.notes().is_empty(), "{answer:?}, {:?}", world.script.notes());
}

#[tokio::test(start_paused = true)]
async fn a_handler_does_not_start_if_the_lease_has_ended_while_its_instance_started() {
    let world = World::in_memory();
    let (_host, probes, clock) = launch_suspending(&world).await;
    let suspends = clock.clone();
    world.script.on_start(move |_, _| {
        suspends.suspend(60 * SECOND);
        Box::pin(async { Ok(()) })
    });
    let noted = act(|me: &mut Probe, _| {
        me.script.note("began");
        Box::pin(async { Ok(()) })
    });
    let error = probes.request("a", noted).await.unwrap_err();
    assert!(matches!(error, RequestError::LeaseLost), "{error}");
    assert!(world.script.notes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_handler_does_not_start_if_the_lease_has_ended_while_it_was_marked_as_started() {
    let world = World::in_memory();
    let (host, probes, _) = launch_suspending(&world).await;
    probes.set_alarm("a", "x", world.at(1_000), &()).await.unwrap();
    host.crash();
    world.pass(2 * SECOND).await;
    world.store.fail_next(Method::Load, Fault::Delay(SECOND));
    world.store.fail_next(Method::Commit, Fault::HangAfter);
    let (_host, probes, clock) = launch_suspending(&world).await;
    probes.request("a", life()).await.unwrap();
    let store = world.store.clone();
    world.script.on_alarm(move |me, _, _| {
        me.script.note(store.calls(Method::Renew).to_string());
        Box::pin(async { Ok(()) })
    });
    world.pass(2 * SECOND).await;
    assert_eq!(world.store.under_way().len(), 1, "the mark");
    clock.suspend(60 * SECOND);
    world.store.release_hanging();
    let renewals = world.store.calls(Method::Renew);
    world.pass(20 * SECOND).await;
    let notes = world.script.notes();
    assert!(notes.len() == 1 && notes[0].parse::<u64>().unwrap() > renewals, "{notes:?} after {renewals} renewals");
    assert_eq!(world.script.fired()[0].attempt, 0, "it had not been tried");
}

#[tokio::test(start_paused = true)]
async fn messages_that_wait_are_due_and_overdue_also_when_the_wall_goes_back() {
    let world = World::in_memory();
    let site = world.launch(world.local().max_firing(1), |probes| probes).await;
    world.script.on_message(|me, _, _| {
        let sleep = me.sleep(10 * SECOND);
        Box::pin(async move {
            sleep.await;
            Ok(())
        })
    });
    for id in ["a", "b", "c"] {
        site.probes.post(id, NewPost::new("m").id(id)).await.unwrap();
    }
    world.pass(5 * SECOND).await;
    world.clock.step(-3_600_000);
    let overdue = site.host.overdue();
    assert!((4 * SECOND..6 * SECOND).contains(&overdue), "{overdue:?}");
    world.pass(16 * SECOND).await;
    assert_eq!(world.script.taken().len(), 3);
    world.pass(10 * SECOND).await;
    assert_eq!(site.host.overdue(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_room_waits_no_longer_for_a_wall_that_goes_back() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.max_instances(1)).await;
    let busy = spawn(&site.probes, "busy", wait(5 * SECOND));
    world.settle().await;
    site.probes.post("a", NewPost::new("m")).await.unwrap();
    site.probes.set_alarm("b", "x", world.at(-7_200_000), &()).await.unwrap_err();
    busy.await.unwrap().unwrap();
    site.probes.set_alarm("b", "x", world.at(60_000), &()).await.unwrap();
    world.pass(50 * SECOND).await;
    assert_eq!(world.script.taken().len(), 1);
    // Both are due, find no room, and the wall goes back to before that, but not to before they were due.
    let busy = spawn(&site.probes, "busy", wait(29 * SECOND));
    world.pass(20 * SECOND).await;
    site.probes.post("a", NewPost::new("m")).await.unwrap();
    world.pass(5 * SECOND).await;
    assert_eq!((world.script.taken().len(), world.script.fired().len()), (1, 0));
    world.clock.step(-8_000);
    busy.await.unwrap().unwrap();
    world.pass(SECOND).await;
    assert_eq!((world.script.taken().len(), world.script.fired().len()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn alarms_that_were_slowed_down_wait_no_longer_for_a_wall_that_goes_back() {
    let world = World::in_memory();
    let site = world.launch(world.local().max_fires_per_second(1), |probes| probes).await;
    for alarm in ["x", "y", "z"] {
        site.probes.request("a", set(alarm, world.at(-7_200_000))).await.unwrap();
    }
    world.settle().await;
    assert_eq!(world.script.fired().len(), 1);
    world.clock.step(-3_600_000);
    world.pass(5 * SECOND).await;
    assert_eq!(world.script.fired().len(), 3);
}

/// Every option of the builders that is a time or a number.
const HOST_OPTIONS: [&str; 20] = [
    "lease",
    "start_timeout",
    "drain_timeout",
    "gather",
    "settle",
    "handoff_batch",
    "handoff_timeout",
    "store_timeout",
    "commit_timeout",
    "lanes",
    "max_queued_commits",
    "max_queued_bytes",
    "max_firing",
    "max_fires_per_second",
    "max_crashes",
    "max_connections",
    "max_clock_skew",
    "alarm_window",
    "alarm_window_bytes",
    "cache_bytes",
];
const INTERFACE_OPTIONS: [&str; 12] = [
    "idle_timeout",
    "handler_timeout",
    "reach_timeout",
    "stop_timeout",
    "max_waiting",
    "max_instances",
    "max_crashes",
    "keep_replies",
    "max_kept_replies",
    "first",
    "longest",
    "attempts",
];

fn fit<T: TryFrom<u64>>(count: u64, most: T) -> T {
    T::try_from(count).unwrap_or(most)
}

fn set_on_host(host: HostBuilder, option: &str, time: Duration, count: u64) -> HostBuilder {
    match option {
        "lease" => host.lease(time),
        "start_timeout" => host.start_timeout(time),
        "drain_timeout" => host.drain_timeout(time),
        "gather" => host.gather(time),
        "settle" => host.settle(time),
        "handoff_batch" => host.handoff_batch(fit(count, usize::MAX)),
        "handoff_timeout" => host.handoff_timeout(time),
        "store_timeout" => host.store_timeout(time),
        "commit_timeout" => host.commit_timeout(time),
        "lanes" => host.lanes(fit(count, u16::MAX)),
        "max_queued_commits" => host.max_queued_commits(fit(count, usize::MAX)),
        "max_queued_bytes" => host.max_queued_bytes(fit(count, usize::MAX)),
        "max_firing" => host.max_firing(fit(count, usize::MAX)),
        "max_fires_per_second" => host.max_fires_per_second(fit(count, u32::MAX)),
        "max_crashes" => host.max_crashes(fit(count, u32::MAX)),
        "max_connections" => host.max_connections(fit(count, usize::MAX)),
        "max_clock_skew" => host.max_clock_skew(time),
        "alarm_window" => host.alarm_window(fit(count, usize::MAX)),
        "alarm_window_bytes" => host.alarm_window_bytes(fit(count, usize::MAX)),
        // Of the store below.
        "cache_bytes" => host,
        _ => panic!("{option} is in the list and not here"),
    }
}

fn set_on_interface<'a>(
    probes: InterfaceBuilder<'a, Probe>,
    retry: &mut RetryPolicy,
    option: &str,
    time: Duration,
    count: u64,
) -> InterfaceBuilder<'a, Probe> {
    match option {
        "idle_timeout" => return probes.idle_timeout(time),
        "handler_timeout" => return probes.handler_timeout(time),
        "reach_timeout" => return probes.reach_timeout(time),
        "stop_timeout" => return probes.stop_timeout(time),
        "max_waiting" => return probes.max_waiting(fit(count, usize::MAX)),
        "max_instances" => return probes.max_instances(fit(count, usize::MAX)),
        "max_crashes" => return probes.max_crashes(fit(count, u32::MAX)),
        "keep_replies" => return probes.keep_replies(time),
        "max_kept_replies" => return probes.max_kept_replies(fit(count, usize::MAX)),
        "first" => *retry = retry.first(time),
        "longest" => *retry = retry.longest(time),
        "attempts" => *retry = retry.attempts(fit(count, u32::MAX)),
        _ => panic!("{option} is in the list and not here"),
    }
    probes
}

const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

fn times() -> impl Strategy<Value = Duration> {
    prop::sample::select(vec![
        Duration::ZERO,
        Duration::from_nanos(1),
        MILLI - Duration::from_nanos(1),
        MILLI,
        Duration::from_nanos(100_000_001),
        7 * SECOND + Duration::from_nanos(3),
        CENTURY - MILLI,
        6 * CENTURY,
        Duration::from_millis(u64::MAX),
        Duration::from_secs(u64::MAX),
        Duration::MAX,
    ])
}

fn counts() -> impl Strategy<Value = u64> {
    let limits = [0, 1, u64::from(u16::MAX), u64::from(u32::MAX), u64::MAX >> 3, i64::MAX.cast_unsigned(), u64::MAX];
    let around = limits.into_iter().flat_map(|limit| [limit.saturating_sub(1), limit, limit.saturating_add(1)]);
    prop::sample::select(around.chain([7, 1_000]).collect::<Vec<_>>())
}

/// A host with these options is refused, and by the name of one of them; or it fires, answers and drains.
async fn is_refused_by_name_or_works(given: &[(&'static str, Duration, u64)]) {
    let world = World::in_memory();
    world.script.on_alarm(|_, _, alarm| {
        let fails = alarm.id() == "fails" && alarm.attempt() == 0;
        Box::pin(async move { if fails { Err(Failed::Told("once")) } else { Ok(()) } })
    });
    let dir = tempfile::tempdir().unwrap();
    let mut builder = world.local();
    for (option, time, count) in given.iter().filter(|(option, ..)| HOST_OPTIONS.contains(option)) {
        builder = set_on_host(builder, option, *time, *count);
        if *option == "cache_bytes" {
            let store = FjallStore::builder(dir.path().join("store")).clock(Arc::new(world.clock.clone()));
            match store.cache_bytes(*count).open() {
                Ok(store) => builder = builder.store(store),
                Err(error) => return assert!(error.to_string().contains(option), "{error}"),
            }
        }
    }
    let mut retry = RetryPolicy::new();
    let mut probes = builder.interface(world.factory()).with_alarms();
    for (option, time, count) in given.iter().filter(|(option, ..)| INTERFACE_OPTIONS.contains(option)) {
        probes = set_on_interface(probes, &mut retry, option, *time, *count);
    }
    let probes = probes.retry(retry).register().unwrap();
    let host = match builder.start().await {
        Ok(host) => host,
        Err(error) => {
            let text = error.to_string();
            return assert!(given.iter().any(|(option, ..)| text.contains(option)), "{text}");
        }
    };
    probes.request("a", set("fires", world.at(1_000))).await.unwrap();
    probes.set_alarm("a", "fails", world.at(3_000), &()).await.unwrap();
    world.pass(10 * SECOND).await;
    let fired = world.script.fired_ids();
    assert!(fired[0] == "fires" && fired.contains(&"fails".to_owned()), "{fired:?}");
    probes.request("a", put("k", 1)).await.unwrap();
    assert_eq!(probes.request("a", get("k")).await.unwrap(), Some(1));
    for _ in 0..2 {
        assert_eq!(probes.request_once("a", "once", Raise("r".into())).await.unwrap(), 1);
    }
    host.run_until(std::future::ready(())).await.unwrap();
    assert_eq!((host.health(), probes.running()), (Health::Stopped, 0));
}

/// Runs `test` on a clock of its own.
fn on_a_paused_clock(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(in_time(test));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_option_at_its_ends_is_refused_by_name_or_works(
        given in prop::sample::subsequence([HOST_OPTIONS.as_slice(), &INTERFACE_OPTIONS].concat(), 0..=5),
        times in prop::collection::vec(times(), 5),
        counts in prop::collection::vec(counts(), 5),
    ) {
        let given: Vec<_> = given.into_iter().zip(times).zip(counts).map(|((option, time), count)| (option, time, count)).collect();
        on_a_paused_clock(is_refused_by_name_or_works(&given));
    }
}

#[test]
fn each_option_alone_at_each_end_is_refused_by_name_or_works() {
    let ends = [
        (Duration::ZERO, 0),
        (Duration::from_nanos(1), 1),
        (MILLI, 2),
        (6 * CENTURY, (u64::MAX >> 3) + 1),
        (Duration::MAX, u64::MAX),
    ];
    for option in HOST_OPTIONS.into_iter().chain(INTERFACE_OPTIONS) {
        for (time, count) in ends {
            println!("{option}: {time:?} or {count}");
            on_a_paused_clock(is_refused_by_name_or_works(&[(option, time, count)]));
        }
    }
}

#[test]
fn no_option_of_a_builder_is_missing_among_those_that_are_tried_at_their_ends() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut options = Vec::new();
    for file in [
        "stable-interfaces/src/host/builder.rs",
        "stable-interfaces/src/host/register.rs",
        "stable-interfaces/src/alarm/retry.rs",
        "alarm-backends/src/fjall.rs",
    ] {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        for line in text.lines() {
            let Some((name, rest)) =
                line.trim().strip_prefix("pub fn ").and_then(|line| line.split_once("(mut self, "))
            else {
                continue;
            };
            let kind = rest.split_once(": ").and_then(|(_, rest)| rest.split_once(')')).unwrap().0;
            if ["Duration", "usize", "u64", "u32", "u16"].contains(&kind) {
                options.push(name.to_owned());
            }
        }
    }
    assert_eq!(options, [HOST_OPTIONS[..19].as_ref(), &INTERFACE_OPTIONS, &["cache_bytes"]].concat());
}
