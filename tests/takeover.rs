//! Live fleets on real servers and in real time: a host dies for good, one joins, one drains, while every ID is asked all the time through
//! whichever host has it. Each test prints how long nobody answered for an ID.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test in real time fails by panicking"
)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alarm_backends::RedisStore;
use alarm_backends::postgres::PostgresStore;
use alarm_backends::testing::servers::{Postgres, Redis};
use stable_interfaces::{Fleet, Host, Interface, RequestError, Store};
use system_tests::{Probe, World, count};

const LEASE: Duration = Duration::from_secs(2);
const SHARDS: u32 = 64;
const IDS: usize = 32;
/// The time that anything may take that has to happen: the machine may be slow.
const PATIENCE: Duration = Duration::from_secs(60);

type Sites = Arc<Mutex<BTreeMap<&'static str, Interface<Probe>>>>;

/// A host of the fleet, on a store of its own.
async fn start(store: Arc<dyn Store>, name: &'static str, sites: &Sites) -> Host {
    let world = World::in_memory();
    let mut host = Host::builder(name, Fleet::live(SHARDS).unwrap()).shared_store(store).lease(LEASE);
    let probes = host.interface(world.factory()).with_alarms().register().unwrap();
    let host = host.start().await.unwrap();
    sites.lock().unwrap().insert(name, probes);
    host
}

/// Asks one ID all the time, and sees that each answer counts one more. Returns the longest time without an answer.
async fn ask(id: String, sites: Sites, is_over: Arc<AtomicBool>) -> Duration {
    let (mut longest, mut answered, mut counted) = (Duration::ZERO, Instant::now(), 0);
    while !is_over.load(Ordering::SeqCst) {
        let doors: Vec<_> = sites.lock().unwrap().values().cloned().collect();
        for door in doors {
            match door.request(&id, count("n")).await {
                Ok(count) => {
                    // What had no answer may have happened.
                    assert!(count > counted, "{id}: {count} after {counted}");
                    (longest, answered, counted) = (longest.max(answered.elapsed()), Instant::now(), count);
                    break;
                }
                Err(error) => assert!(
                    error.is_retryable() || matches!(error, RequestError::Unknown(_)),
                    "{id} is refused for good: {error}"
                ),
            }
        }
        assert!(answered.elapsed() < PATIENCE, "nobody answers for {id}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    longest
}

async fn until(what: &str, is_so: impl Fn() -> bool) -> Duration {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    began.elapsed()
}

fn owned(hosts: &[&Host]) -> usize {
    hosts.iter().map(|host| host.shards().len()).sum()
}

/// The same on any store; `store` opens another handle of it.
async fn changes(of: &str, store: impl AsyncFn() -> Arc<dyn Store>) {
    let sites = Sites::default();
    let a = start(store().await, "a", &sites).await;
    let b = start(store().await, "b", &sites).await;
    let all = SHARDS as usize;
    until("b is handed its part", || !b.shards().is_empty() && owned(&[&a, &b]) == all).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let asked: Vec<_> =
        (0..IDS).map(|n| tokio::spawn(ask(format!("id-{n}"), sites.clone(), is_over.clone()))).collect();

    // One dies for good, and nobody is told.
    tokio::time::sleep(LEASE / 4).await;
    sites.lock().unwrap().remove("b");
    b.crash();
    let taken_over = until("a takes over", || owned(&[&a]) == all).await;
    // One joins, and has its part when it has settled.
    let c = start(store().await, "c", &sites).await;
    until("c is handed its part", || !c.shards().is_empty() && owned(&[&a, &c]) == all).await;
    // And one drains.
    sites.lock().unwrap().remove("a");
    assert!(a.drain(PATIENCE).await.released);
    let handed_over = until("c has everything", || owned(&[&c]) == all).await;
    tokio::time::sleep(LEASE / 4).await;
    is_over.store(true, Ordering::SeqCst);
    let mut longest = Duration::ZERO;
    for asked in asked {
        longest = longest.max(asked.await.unwrap());
    }
    println!(
        "{of}: a dead host's shards went on after {taken_over:?} (lease {LEASE:?}), a drained one's {handed_over:?} after its release; the longest \
         wait for an answer was {longest:?}"
    );
    // As far as a busy machine lets anybody say so.
    assert!(taken_over > LEASE / 2 && taken_over < LEASE + Duration::from_secs(10), "{taken_over:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_on_postgres_goes_on_without_the_dead_and_with_the_new() {
    let server = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
    let url = server.fresh_database();
    changes("postgres", async || Arc::new(PostgresStore::connect(&url).await.unwrap()) as Arc<dyn Store>).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_on_redis_goes_on_without_the_dead_and_with_the_new() {
    let server = tokio::task::spawn_blocking(Redis::start).await.unwrap();
    let url = server.url();
    changes("redis", async || Arc::new(RedisStore::connect(&url).await.unwrap()) as Arc<dyn Store>).await;
}
