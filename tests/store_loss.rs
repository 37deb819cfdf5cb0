//! A store that has lost what it acknowledged: what its hosts still know is saved, and nothing goes on as if all were well.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "real servers live in real time")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use alarm_backends::RedisStore;
use alarm_backends::postgres::PostgresStore;
use alarm_backends::testing::servers::{Postgres, Redis, RedisOptions};
use async_trait::async_trait;
use parking_lot::Mutex;
use stable_interfaces::store::{
    Claim, Claimed, Epoch, Found, Hints, Incarnation, Loaded, Members, NewMessage, Page, Read, Renewal, Renewed,
    ShardId, Write,
};
use stable_interfaces::{
    Ended, Fleet, Health, MemoryStore, NewPost, Posted, RequestError, Store, StoreError, Timestamp,
};
use system_tests::{Failed, Site, World, act, get, in_time, put, set};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: i64 = 3_600_000;

/// A store with a copy of itself that stops following it at some moment, and takes its place at a later one.
#[derive(Debug, Clone)]
struct Losing(Arc<State>);

#[derive(Debug)]
struct State {
    first: MemoryStore,
    copy: MemoryStore,
    follows: AtomicBool,
    has_lost: AtomicBool,
    /// The hosts that have written to or claimed in the first one.
    known: Mutex<BTreeSet<Incarnation>>,
    /// Posts fail.
    is_mute: AtomicBool,
    /// Renewals fail.
    is_cut_off: AtomicBool,
}

impl Losing {
    fn new(world: &World) -> Losing {
        let store = || MemoryStore::with_clock(Arc::new(world.clock.clone()));
        Losing(Arc::new(State {
            first: store(),
            copy: store(),
            follows: AtomicBool::new(true),
            has_lost: AtomicBool::new(false),
            known: Mutex::default(),
            is_mute: AtomicBool::new(false),
            is_cut_off: AtomicBool::new(false),
        }))
    }

    /// Has all that comes from here on lost.
    fn freeze(&self) {
        self.0.follows.store(false, Ordering::SeqCst);
    }

    fn lose(&self) {
        self.freeze();
        self.0.has_lost.store(true, Ordering::SeqCst);
    }

    fn current(&self) -> &MemoryStore {
        if self.0.has_lost.load(Ordering::SeqCst) { &self.0.copy } else { &self.0.first }
    }

    /// The copy, if it is to be told of what the first one is told.
    fn copy(&self) -> Option<&MemoryStore> {
        self.0.follows.load(Ordering::SeqCst).then_some(&self.0.copy)
    }

    fn check(&self, incarnation: Incarnation) -> Result<(), StoreError> {
        let mut known = self.0.known.lock();
        if !self.0.has_lost.load(Ordering::SeqCst) {
            known.insert(incarnation);
        } else if known.contains(&incarnation) {
            return Err(StoreError::Lost("the copy lagged behind".into()));
        }
        Ok(())
    }
}

#[async_trait]
impl Store for Losing {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        self.check(claim.incarnation)?;
        if let Some(copy) = self.copy() {
            copy.claim(claim).await?;
        }
        self.current().claim(claim).await
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        if self.0.is_cut_off.load(Ordering::SeqCst) {
            return Err(StoreError::NotApplied("down".into()));
        }
        self.check(renewal.incarnation)?;
        if let Some(copy) = self.copy() {
            copy.renew(renewal).await?;
        }
        self.current().renew(renewal).await
    }

    async fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        self.check(incarnation)?;
        self.current().release(incarnation, given_up).await
    }

    async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        self.current().cordon(member, is_cordoned, seen).await
    }

    async fn members(&self) -> Result<Members, StoreError> {
        self.current().members().await
    }

    async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        self.check(write.incarnation)?;
        if let Some(copy) = self.copy() {
            copy.commit(write).await?;
        }
        self.current().commit(write).await
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        if self.0.is_mute.load(Ordering::SeqCst) {
            return Err(StoreError::NotApplied("down".into()));
        }
        if let Some(copy) = self.copy() {
            copy.post(messages).await?;
        }
        self.current().post(messages).await
    }

    async fn watch(&self, incarnation: Incarnation) -> Result<Hints, StoreError> {
        self.current().watch(incarnation).await
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        self.current().load(pages).await
    }

    async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        self.current().read(read).await
    }
}

fn fleet() -> Fleet {
    Fleet::new(["zero"], 64).unwrap()
}

async fn start(world: &World, store: &Losing) -> Site {
    let host = stable_interfaces::Host::builder("zero", fleet()).store(store.clone());
    world.launch(world.equip(host), |probes| probes).await
}

async fn wait_for(world: &World, site: &Site, health: Health) {
    let mut passed = 0;
    while site.host.health() != health {
        assert!(passed < 300, "it is still {:?}", site.host.health());
        world.pass(SECOND).await;
        passed += 1;
    }
}

/// Hosts on a real server: alarms are set, the server comes back without them, the host saves them and ends, and its successor
/// has them.
async fn alarms_outlive(open: impl AsyncFn() -> Arc<dyn Store>, lose: impl FnOnce() + Send + 'static) {
    const ALARMS: i64 = 200;
    let start = async || {
        let world = World::in_memory();
        let mut host = stable_interfaces::Host::builder("zero", fleet()).shared_store(open().await).lease(3 * SECOND);
        let probes = host.interface(world.factory()).with_alarms().with_inbox().register().unwrap();
        (host.start().await.unwrap(), probes, world)
    };
    let (old, probes, _world) = start().await;
    let hour = Timestamp::from(SystemTime::now() + Duration::from_secs(3_600));
    for i in 0..ALARMS {
        probes.request(&format!("id-{i}"), set("soon", hour)).await.unwrap();
    }
    tokio::task::spawn_blocking(lose).await.unwrap();
    let since = Instant::now();
    while old.health() != Health::StoreLost {
        assert!(since.elapsed() < 60 * SECOND, "it is still {:?}", old.health());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(old);
    let (new, probes, _world) = start().await;
    let since = Instant::now();
    for i in 0..ALARMS {
        loop {
            match probes.alarms(&format!("id-{i}")).await.unwrap().as_slice() {
                [alarm] if alarm.due() == hour => break,
                other => assert!(since.elapsed() < 60 * SECOND, "id-{i} has {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    new.drain(10 * SECOND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alarms_in_memory_outlive_a_redis_that_was_emptied() {
    let server = Arc::new(Redis::start());
    let (same, url) = (server.clone(), server.url());
    let open = async || Arc::new(RedisStore::connect(&url).await.unwrap()) as Arc<dyn Store>;
    alarms_outlive(open, move || drop(same.execute(&["FLUSHALL"]))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alarms_in_memory_outlive_a_redis_that_restarts_without_its_file() {
    let server = Arc::new(RedisOptions::new().set("appendonly", "no").start());
    let (same, url) = (server.clone(), server.url());
    let open = async || Arc::new(RedisStore::connect(&url).await.unwrap()) as Arc<dyn Store>;
    let lose = move || {
        same.kill9();
        same.restart();
    };
    alarms_outlive(open, lose).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alarms_in_memory_outlive_a_postgres_that_is_restored_from_a_copy() {
    let server = Arc::new(Postgres::start());
    let (same, url) = (server.clone(), server.url("postgres"));
    let open = async || Arc::new(PostgresStore::connect(&url).await.unwrap()) as Arc<dyn Store>;
    drop(open().await);
    let swap = |server: &Postgres, from: &str, to: &str| {
        let path = |name: &str| server.directory().join(name);
        server.kill9();
        let _ = std::fs::remove_dir_all(path(to));
        let copied = std::process::Command::new("cp").arg("-a").args([path(from), path(to)]).status();
        assert!(copied.unwrap().success());
        server.restart();
    };
    let keep = server.clone();
    tokio::task::spawn_blocking(move || swap(&keep, "data", "old")).await.unwrap();
    alarms_outlive(open, move || swap(&same, "old", "data")).await;
}

#[tokio::test(start_paused = true)]
async fn alarms_in_memory_outlive_a_store_that_comes_back_empty() {
    in_time(async {
        let world = World::in_memory();
        let store = Losing::new(&world);
        store.freeze();
        let old = start(&world, &store).await;
        let ids: Vec<String> = (0..700).map(|i| format!("id-{i}")).collect();
        for id in &ids {
            old.probes.request(id, set("soon", world.at(HOUR))).await.unwrap();
        }
        old.probes.request("id-0", set("gone", world.at(HOUR))).await.unwrap();
        old.probes.cancel_alarm("id-0", "gone").await.unwrap();
        store.lose();

        // The first write notices, and nothing is acknowledged from here on.
        let error = old.probes.request("id-1", put("k", 1)).await.unwrap_err();
        assert!(matches!(error, RequestError::Unknown(_)), "{error}");
        wait_for(&world, &old, Health::StoreLost).await;
        assert!(!old.host.is_ready(Duration::MAX) && old.host.shards().is_empty());
        assert!(old.probes.request("id-1", get("k")).await.is_err());
        old.crash();

        let new = start(&world, &store).await;
        world.pass(30 * SECOND).await;
        for id in &ids {
            let alarms = new.probes.alarms(id).await.unwrap();
            assert_eq!(
                alarms.iter().map(|alarm| (alarm.id(), alarm.due())).collect::<Vec<_>>(),
                [("soon", world.at(HOUR))]
            );
        }
        assert_eq!(world.script.fired(), [], "nothing is due yet");
        world.pass(2 * 3_600 * SECOND).await;
        assert_eq!(world.script.fired_ids().len(), ids.len(), "each fires once");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_saved_wins_over_an_old_copy_and_loses_to_what_was_set_since() {
    in_time(async {
        let world = World::in_memory();
        let store = Losing::new(&world);
        let old = start(&world, &store).await;
        for id in ["moved", "kept", "set-since"] {
            old.probes.request(id, set("a", world.at(HOUR))).await.unwrap();
        }
        world.script.on_alarm(|_, _, _| Box::pin(async { Err(Failed::Told("not yet")) }));
        old.probes.request("failed", set("a", world.at(0))).await.unwrap();
        world.settle().await;
        let retried = old.probes.alarms("failed").await.unwrap();
        assert_eq!(retried[0].attempt(), 1);
        store.freeze();
        old.probes.request("moved", set("a", world.at(2 * HOUR))).await.unwrap();
        old.probes.request("new", set("b", world.at(3 * HOUR))).await.unwrap();
        store.0.is_mute.store(true, Ordering::SeqCst);
        store.lose();
        // Nobody asks it for anything: its renewal finds out.
        world.pass(10 * SECOND).await;
        assert!(old.host.shards().is_empty() && old.host.health() == Health::Running, "it is trying to post");

        // Its successor may be there before it has posted all.
        let new = start(&world, &store).await;
        new.probes.request("set-since", set("a", world.at(4 * HOUR))).await.unwrap();
        store.0.is_mute.store(false, Ordering::SeqCst);
        wait_for(&world, &old, Health::StoreLost).await;
        world.pass(10 * SECOND).await;
        let due = async |id: &str| {
            let alarms = new.probes.alarms(id).await.unwrap();
            assert_eq!(alarms.len(), 1, "{id}");
            alarms[0].due()
        };
        assert_eq!(due("moved").await, world.at(2 * HOUR));
        assert_eq!(due("kept").await, world.at(HOUR));
        assert_eq!(due("new").await, world.at(3 * HOUR));
        assert_eq!(due("set-since").await, world.at(4 * HOUR));
        let again = new.probes.alarms("failed").await.unwrap();
        assert!(again[0].attempt() >= 1 && again[0].scheduled_at() == retried[0].scheduled_at(), "{again:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_drained_while_it_saves_ends_when_it_has() {
    in_time(async {
        let world = World::in_memory();
        let store = Losing::new(&world);
        let old = start(&world, &store).await;
        store.freeze();
        old.probes.request("a", set("a", world.at(HOUR))).await.unwrap();
        store.0.is_mute.store(true, Ordering::SeqCst);
        store.lose();
        world.pass(10 * SECOND).await;
        let drained = tokio::join!(old.host.drain(60 * SECOND), async {
            world.pass(5 * SECOND).await;
            store.0.is_mute.store(false, Ordering::SeqCst);
        });
        assert!(!drained.0.released && old.host.health() == Health::StoreLost);
        drop(old);
        let new = start(&world, &store).await;
        world.pass(10 * SECOND).await;
        assert_eq!(new.probes.alarms("a").await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_was_cut_off_for_days_saves_nothing() {
    in_time(async {
        let world = World::in_memory();
        let store = Losing::new(&world);
        let old = start(&world, &store).await;
        store.freeze();
        old.probes.request("a", set("a", world.at(1_000 * HOUR))).await.unwrap();
        store.0.is_cut_off.store(true, Ordering::SeqCst);
        world.pass(48 * 3_600 * SECOND).await;
        store.lose();
        store.0.is_cut_off.store(false, Ordering::SeqCst);
        wait_for(&world, &old, Health::StoreLost).await;
        let new = start(&world, &store).await;
        world.pass(10 * SECOND).await;
        assert!(new.probes.alarms("a").await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_away_does_not_keep_a_host_that_wants_to_save_for_ever() {
    in_time(async {
        let world = World::in_memory();
        let store = Losing::new(&world);
        let old = start(&world, &store).await;
        old.probes.request("a", set("a", world.at(HOUR))).await.unwrap();
        store.0.is_mute.store(true, Ordering::SeqCst);
        store.lose();
        wait_for(&world, &old, Health::StoreLost).await;
        let error = old.probes.request("a", act(|_, _| Box::pin(async { Ok(()) }))).await.unwrap_err();
        assert!(matches!(error, RequestError::StoreLost), "{error}");
        let error = old.probes.post("a", NewPost::new("m")).await.unwrap_err();
        assert!(matches!(error, RequestError::StoreLost) && error.is_retryable(), "{error}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_schema_is_dropped_is_not_ready_from_its_next_write_on() {
    let server = Arc::new(Postgres::start());
    let world = World::in_memory();
    let store = PostgresStore::connect(&server.url("postgres")).await.unwrap();
    // Nothing here is for a lease that has run out, or a renewal.
    let mut host = stable_interfaces::Host::builder("zero", fleet()).store(store).lease(600 * SECOND);
    let probes = host.interface(world.factory()).with_alarms().with_inbox().register().unwrap();
    let host = host.start().await.unwrap();
    probes.request("a", set("a", Timestamp::from(SystemTime::now() + 3_600 * SECOND))).await.unwrap();
    assert!(host.is_ready(600 * SECOND));
    let same = server.clone();
    let drop_it = move || drop(same.execute("DROP SCHEMA stable_interfaces CASCADE"));
    tokio::task::spawn_blocking(drop_it).await.unwrap();
    probes.request("a", put("k", 1)).await.unwrap_err();
    let since = Instant::now();
    while host.is_ready(600 * SECOND) || host.health() != Health::StoreLost {
        assert!(since.elapsed() < 60 * SECOND, "it is still {:?}", host.health());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_store_is_lost_says_so_to_callers_and_to_the_server_beside_it_and_run_until_says_why() {
    in_time(async {
        let world = World::in_memory();
        let store = Losing::new(&world);
        let old = start(&world, &store).await;
        old.probes.request("a", set("a", world.at(HOUR))).await.unwrap();
        let serve = old.host.stopping();
        store.0.is_mute.store(true, Ordering::SeqCst);
        store.lose();
        world.pass(10 * SECOND).await;
        assert_eq!(old.host.health(), Health::Running, "it is still saving");
        let error = old.probes.request("a", get("k")).await.unwrap_err();
        assert!(matches!(error, RequestError::StoreLost) && error.is_retryable(), "{error}");
        store.0.is_mute.store(false, Ordering::SeqCst);
        let ((), ended) = tokio::join!(serve, old.host.run_until(std::future::pending::<()>()));
        assert_eq!(ended, Err(Ended::StoreLost));
        old.host.stopping().await;
    })
    .await;
}
