//! All that a host lets be seen: every documented metric and no other, and its health.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use callback_flows::script::{CallCx, CallError, Script, ScriptFlows};
use callback_flows::{Flow, Flows};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use parking_lot::Mutex;
use stable_interfaces::store::{DamageReason, Damaged};
use stable_interfaces::testing::{Fault, MemoryNetwork, Method};
use stable_interfaces::{
    Connecting, ConnectionId, Context, ContextError, Fleet, Handle, Health, Host, MemoryStore, NewPost, OnConnect,
    RetryPolicy, StableInterface, StoreError,
};
use system_tests::{Between, Failed, Raise, World, act, get, life, now_or_never, put, set, spawn, wait};

const SECOND: Duration = Duration::from_secs(1);

/// The names of all metrics that were emitted in this process, with the labels each had.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>);

struct One;

impl CounterFn for One {
    fn increment(&self, _: u64) {}
    fn absolute(&self, _: u64) {}
}

impl GaugeFn for One {
    fn increment(&self, _: f64) {}
    fn decrement(&self, _: f64) {}
    fn set(&self, _: f64) {}
}

impl HistogramFn for One {
    fn record(&self, _: f64) {}
}

impl Seen {
    fn note(&self, kind: &str, key: &Key) {
        let labels = key.labels().map(|label| label.key().to_owned());
        let mut seen = self.0.lock();
        let entry = seen.entry(key.name().to_owned()).or_default();
        entry.insert(kind.to_owned());
        entry.extend(labels);
    }
}

impl Recorder for Seen {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.note("counter", key);
        Counter::from_arc(Arc::new(One))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.note("gauge", key);
        Gauge::from_arc(Arc::new(One))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.note("histogram", key);
        Histogram::from_arc(Arc::new(One))
    }
}

/// An instance without alarms, which blocks its thread.
struct Blocker;

impl StableInterface for Blocker {
    const NAME: &'static str = "blocker";
    type Error = ContextError;
}

impl OnConnect for Blocker {
    type Meta = ();
    type Incoming = ();
    type Outgoing = ();

    async fn on_connect(&mut self, _: &mut Context, client: &mut Connecting<()>, (): ()) -> Result<(), ContextError> {
        client.accept();
        Ok(())
    }

    async fn on_receive(&mut self, _: &mut Context, _: ConnectionId, (): ()) -> Result<(), ContextError> {
        Ok(())
    }
}

impl Handle<Duration> for Blocker {
    type Reply = ();
    async fn handle(&mut self, _: &mut Context, time: Duration) -> Result<(), ContextError> {
        std::thread::sleep(time);
        Ok(())
    }
}

/// Blocks until this metric has been emitted, for a minute at most.
struct UntilEmitted(Seen, &'static str);

impl Handle<UntilEmitted> for Blocker {
    type Reply = ();
    async fn handle(&mut self, _: &mut Context, UntilEmitted(seen, name): UntilEmitted) -> Result<(), ContextError> {
        for _ in 0..600 {
            if seen.0.lock().contains_key(name) {
                break;
            }
            std::thread::sleep(SECOND / 10);
        }
        Ok(())
    }
}

/// Makes a host do everything that is counted, on a paused clock.
async fn a_bit_of_everything() {
    let world = World::in_memory();
    world.script.on_alarm(|_, _, alarm| {
        let fails = alarm.id() == "fails";
        Box::pin(async move { if fails { Err(Failed::Told("no")) } else { Ok(()) } })
    });
    // A row that cannot be used, shown with the first page of a shard.
    let shown = Mutex::new(false);
    let host = world.local_behind(|between| {
        between.on_load(move |pages, loaded| {
            if !std::mem::replace(&mut *shown.lock(), true) {
                loaded[0].damaged.push(Damaged {
                    shard: pages[0].shard,
                    place: "alarm 1".into(),
                    reason: DamageReason::Undecodable("it is garbage".into()),
                });
            }
        })
    });
    let retry = RetryPolicy::new().first(SECOND).attempts(2);
    let host = host.max_fires_per_second(3);
    let site = world.launch(host, |probes| probes.retry(retry).idle_timeout(60 * SECOND).max_waiting(1)).await;
    world.pass(SECOND).await;
    assert_eq!(site.host.damaged().len(), 1);
    site.probes.set_alarm("a", "fails", world.at(0), &()).await.unwrap();
    site.probes.post("a", NewPost::new("m")).await.unwrap();
    for i in 0..10 {
        site.probes.set_alarm("b", &format!("x-{i}"), world.at(5_000), &()).await.unwrap();
    }
    world.store.fail_next(Method::Commit, Fault::FailAfter);
    site.probes.request("a", put("k", 1)).await.unwrap();
    let failing = act(|_, cx: &mut Context| {
        Box::pin(async move {
            cx.put("k", &1)?;
            Err::<(), _>(Failed::Told("no"))
        })
    });
    assert!(site.probes.request("a", failing).await.is_err());
    let busy = spawn(&site.probes, "a", wait(SECOND));
    world.settle().await;
    let waiting = spawn(&site.probes, "a", life());
    world.settle().await;
    assert!(now_or_never(site.probes.request("a", life())).await.unwrap().is_err(), "overloaded");
    busy.await.unwrap().unwrap();
    waiting.await.unwrap().unwrap();
    world.pass(300 * SECOND).await;
    assert_eq!(site.probes.running(), 0);
    site.probes.set_alarm("a", "set aside", world.at(400_000), &()).await.unwrap();
    world.store.cut_watches();
    world.pass(SECOND).await;
    site.host.drain(SECOND).await;

    // A program without the interface, and then one of the same name that takes its place.
    let fleet = Fleet::new(["local"], 1_024).unwrap();
    let mut builder = world.member("local", &fleet);
    let _others = builder.interface(|_| Blocker).register().unwrap();
    let bare = builder.start().await.unwrap();
    world.pass(400 * SECOND).await;
    bare.drain(SECOND).await;
    let old = world.launch(world.member("local", &fleet), |probes| probes).await;
    old.probes.request("a", get("k")).await.unwrap();
    let new = world.launch(world.member("local", &fleet), |probes| probes).await;
    assert!(old.probes.request("a", put("k", 2)).await.is_err());
    world.pass(60 * SECOND).await;
    assert_eq!((old.host.health(), new.host.health()), (Health::Replaced, Health::Running));

    // And a store that has lost what it acknowledged.
    drop((old, new));
    let is_lost = Arc::new(AtomicBool::new(false));
    let lost = is_lost.clone();
    let lose = |between: Between| {
        between.on_renew(move || lost.load(Ordering::SeqCst).then(|| StoreError::Lost("emptied".into())))
    };
    let losing = Host::builder("local", fleet).store(lose(Between::new(world.store.clone())));
    let last = world.launch(world.equip(losing), |probes| probes).await;
    last.probes.request("a", set("later", world.at(i64::from(u32::MAX)))).await.unwrap();
    is_lost.store(true, Ordering::SeqCst);
    world.pass(60 * SECOND).await;
    assert_eq!(last.host.health(), Health::StoreLost);
}

/// Makes requests go to another host, which is not always there.
async fn through_another_door() {
    let (world, network) = (World::in_memory(), MemoryNetwork::new());
    let fleet = Fleet::new(["zero", "one"], 32).unwrap();
    let member = async |name: &str| {
        let mut host = world.member(name, &fleet).transport(network.transport());
        let blockers =
            host.interface(|_| Blocker).forward::<Duration>("block").forward_connections().register().unwrap();
        (host.start().await.unwrap(), blockers)
    };
    let (zero, blockers) = member("zero").await;
    let one = member("one").await;
    let id = (0..).map(|n| n.to_string()).find(|id| !zero.owns(id).unwrap()).unwrap();
    network.cut("zero", "one", true);
    let waiting = blockers.request(&id, Duration::ZERO);
    let (answer, ()) = tokio::join!(waiting, async {
        world.pass(SECOND).await;
        network.cut("zero", "one", false);
    });
    answer.unwrap();
    let client = blockers.connect(&id, ()).await.unwrap();
    network.lose_answers("one", "zero", 1);
    client.send(()).await.unwrap();
    drop(client.closed().await);
    drop(one);
}

/// Makes flows do everything that is counted.
async fn flows_of_every_kind() {
    let world = World::in_memory();
    let fleet = Fleet::new(["zero", "one"], 32).unwrap();
    let member = async |name: &str| {
        let mut host = world.member(name, &fleet).lease(15 * SECOND);
        let code = async |flow: Flow, fails: bool| {
            flow.signal::<()>("go").next().await?;
            assert!(!fails, "it was told to");
            Ok(())
        };
        let mut flows = Flows::builder().flow("one", 1, code);
        let second = |cx: CallCx, _| async move {
            if cx.attempt() < 2 { Err(CallError::new("busy", "later").retry()) } else { Ok(cx.attempt().into()) }
        };
        ScriptFlows::builder().script("asks", "second()").call("second", second).register(&mut flows).unwrap();
        let flows = flows.register(&mut host).unwrap();
        (host.start().await.unwrap(), flows)
    };
    let (zero, flows) = member("zero").await;
    let (one, elsewhere) = member("one").await;
    let mut ids = (0..).map(|n| n.to_string()).filter(|id| zero.owns(&format!("one/{id}")).unwrap());
    let ids: [String; 3] = std::array::from_fn(|_| ids.next().unwrap());
    for (id, fails) in [(&ids[0], false), (&ids[1], true)] {
        flows.start("one", id, &fails).await.unwrap();
        for _ in 0..3 {
            let _ = flows.signal("one", id, "go", &()).await;
        }
    }
    elsewhere.signal("one", &ids[2], "go", &()).await.unwrap();
    flows.start("script", "s", &Script::named("asks")).await.unwrap();
    world.pass(SECOND).await;
    zero.crash();
    let (zero, _) = member("zero").await;
    world.pass(2 * SECOND).await;
    for host in [zero, one] {
        host.drain(SECOND).await;
    }
}

/// Requests with a key: asked twice, more than are kept, and through an outage of the store.
async fn with_keys() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.max_kept_replies(1)).await;
    let ask = async |key: &str| site.probes.request_once("a", key, Raise("n".into())).await;
    for (key, count) in [("one", 1), ("one", 1), ("two", 2)] {
        assert_eq!(ask(key).await.unwrap(), count);
    }
    world.store.set_chance(Method::Commit, Fault::FailAfter, 1.0);
    let through = async {
        world.pass(12 * SECOND).await;
        world.store.heal();
    };
    let (answer, ()) = tokio::join!(ask("three"), through);
    assert_eq!(answer.unwrap(), 3);
}

/// Makes shards move.
async fn shards_that_move() {
    let world = World::in_memory();
    let fleet = Fleet::live(32).unwrap();
    let start = async |name: &str| world.launch(world.member(name, &fleet).settle(SECOND), |probes| probes).await;
    let (_zero, one) = (start("zero").await, start("one").await);
    world.pass(5 * SECOND).await;
    assert!(!one.host.shards().is_empty());
}

#[test]
fn every_documented_metric_is_emitted_and_nothing_else() {
    let seen = Seen::default();
    metrics::set_global_recorder(seen.clone()).unwrap();
    let paused = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    paused.block_on(system_tests::in_time(a_bit_of_everything()));
    paused.block_on(system_tests::in_time(flows_of_every_kind()));
    paused.block_on(system_tests::in_time(through_another_door()));
    paused.block_on(system_tests::in_time(with_keys()));
    paused.block_on(system_tests::in_time(shards_that_move()));
    // Only the machine's own clock shows who blocks a thread.
    let real = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    real.block_on(async {
        let mut builder = Host::local(MemoryStore::new());
        let blockers = builder.interface(|_| Blocker).register().unwrap();
        let host = builder.start().await.unwrap();
        blockers.request("b", UntilEmitted(seen.clone(), stable_interfaces::metrics::BLOCKED)).await.unwrap();
        host.drain(SECOND).await;
    });
    let seen = seen.0.lock();
    let emitted: BTreeSet<_> = seen.keys().map(String::as_str).collect();
    let documented = stable_interfaces::metrics::ALL.into_iter().chain(callback_flows::metrics::ALL);
    assert_eq!(emitted, documented.collect());
    // No label may have as many values as there are instances.
    let allowed = ["counter", "gauge", "histogram", "interface", "kind", "flow", "outcome", "call", "script"];
    let allowed = BTreeSet::from(allowed.map(str::to_owned));
    for (name, facets) in &*seen {
        assert!(facets.is_subset(&allowed), "{name}: {facets:?}");
        assert_eq!(facets.contains("counter"), name.ends_with("_total"), "{name}: {facets:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_is_ready_while_it_runs_owns_its_shards_and_is_not_behind() {
    let world = World::in_memory();
    let fleet = Fleet::new(["zero", "one"], 32).unwrap();
    let mut builder = world.member("zero", &fleet).lease(15 * SECOND).max_firing(1);
    let probes = builder.interface(world.factory()).with_alarms().register().unwrap();
    assert!(matches!(probes.request("a", life()).await, Err(stable_interfaces::RequestError::NotStarted)));
    let host = builder.start().await.unwrap();
    let ready = |within: Duration| host.is_ready(within);
    world.settle().await;
    assert!(ready(Duration::ZERO) && host.health() == Health::Running && host.overdue() == Duration::ZERO);
    let ids: Vec<_> = (0..).map(|i| format!("id-{i}")).filter(|id| host.owns(id).unwrap()).take(3).collect();
    assert_eq!(
        host.shards().len(),
        (0..32).filter(|i| **fleet.host_of(stable_interfaces::store::ShardId(*i)) == *"zero").count()
    );

    // Behind: one may be handled at a time, and it takes long.
    world.script.on_alarm(|me, _, _| {
        let sleep = me.sleep(20 * SECOND);
        Box::pin(async move {
            sleep.await;
            Ok(())
        })
    });
    for id in &ids {
        probes.set_alarm(id, "x", world.at(1_000), &()).await.unwrap();
    }
    world.pass(10 * SECOND).await;
    assert!(host.overdue() >= 8 * SECOND && host.overdue() <= 10 * SECOND, "{:?}", host.overdue());
    assert!(ready(20 * SECOND) && !ready(5 * SECOND));
    world.pass(60 * SECOND).await;
    assert!(ready(Duration::ZERO));

    // Its lease runs out, and comes back.
    world.store.set_down(true);
    world.pass(10 * SECOND).await;
    assert!(ready(Duration::MAX));
    world.pass(5 * SECOND).await;
    assert!(!ready(Duration::MAX) && host.health() == Health::Running);
    world.store.set_down(false);
    world.pass(5 * SECOND).await;
    assert!(ready(Duration::MAX));

    // Draining and stopped.
    let busy = spawn(&probes, &ids[0], wait(SECOND));
    world.settle().await;
    let host = Arc::new(host);
    let draining = host.clone();
    let draining = tokio::spawn(async move { draining.drain(10 * SECOND).await });
    world.settle().await;
    assert!(host.health() == Health::Draining && !host.is_ready(Duration::MAX));
    busy.await.unwrap().unwrap();
    draining.await.unwrap();
    assert!(host.health() == Health::Stopped && !host.is_ready(Duration::MAX) && host.shards().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_host_is_ready_while_another_holds_what_is_to_be_its_own_and_has_it_at_once_when_that_lets_go() {
    let world = World::in_memory();
    let (small, large) = (Fleet::new(["zero"], 32).unwrap(), Fleet::new(["zero", "one"], 32).unwrap());
    let zero = world.launch(world.member("zero", &small).lease(15 * SECOND), |probes| probes).await;
    let one = world.launch(world.member("one", &large).lease(15 * SECOND), |probes| probes).await;
    world.pass(5 * SECOND).await;
    assert!(one.host.shards().is_empty() && one.host.is_ready(Duration::ZERO));
    assert!(zero.host.is_ready(Duration::MAX));
    zero.host.drain(SECOND).await;
    world.pass(SECOND / 10).await;
    assert!(!one.host.shards().is_empty() && one.host.is_ready(Duration::ZERO));
}
