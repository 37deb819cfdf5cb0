//! Handlers that block their thread: reported with their name, and no reason to lose a lease. In real time, for it is about threads.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alarm_backends::testing::servers::{Postgres, Redis, RedisCluster};
use alarm_backends::{FjallStore, PostgresStore, RedisStore};
use parking_lot::Mutex;
use stable_interfaces::{
    Context, ContextError, Fleet, Handle, Health, Host, HostBuilder, Interface, MemoryStore, StableInterface, Store,
};
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::fmt::MakeWriter;

/// An instance that does not know what `async` is.
struct Blocker;

struct Block(Duration);

impl StableInterface for Blocker {
    const NAME: &'static str = "blocker";
    type Error = ContextError;
}

impl Handle<Block> for Blocker {
    type Reply = ();
    async fn handle(&mut self, _: &mut Context, Block(time): Block) -> Result<(), ContextError> {
        // Not in its first poll, which would be on the thread of the test.
        tokio::task::yield_now().await;
        std::thread::sleep(time);
        Ok(())
    }
}

/// Blocks until it is reported, and then for as long as it takes to look a few times more; tells whether it was.
struct UntilReported(Log);

impl Handle<UntilReported> for Blocker {
    type Reply = bool;
    async fn handle(&mut self, cx: &mut Context, UntilReported(log): UntilReported) -> Result<bool, ContextError> {
        tokio::task::yield_now().await;
        let looks = |_| {
            std::thread::sleep(Duration::from_millis(100));
            !log.reports_of(cx.id()).is_empty()
        };
        let is_reported = (0..200).any(looks);
        std::thread::sleep(Duration::from_secs(2));
        Ok(is_reported)
    }
}

fn two_workers() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn start(runtime: &Runtime, mut builder: HostBuilder) -> (Host, Interface<Blocker>) {
    let blockers = builder.interface(|_| Blocker).register().unwrap();
    (runtime.block_on(builder.start()).unwrap(), blockers)
}

/// Lines that were logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// The lines that report an instance.
    fn reports_of(&self, id: &str) -> Vec<String> {
        let name = format!("blocker/{id}");
        let lines = self.0.lock();
        let reports = lines.iter().filter(|line| line.contains("blocks its thread") && line.contains(&name));
        reports.cloned().collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().push(String::from_utf8_lossy(line).into_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

#[test]
fn a_handler_that_blocks_its_thread_is_reported_by_name_while_it_does_and_once() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let runtime = two_workers();
    let (host, blockers) = start(&runtime, Host::local(MemoryStore::new()));
    let (fine, began) = (blockers.clone(), Instant::now());
    runtime.block_on(async move { fine.request("well-behaved", Block(Duration::from_millis(50))).await.unwrap() });
    let took = began.elapsed();
    let (asking, heard) = (blockers.clone(), log.clone());
    let blocked = runtime.spawn(async move { asking.request("the-one", UntilReported(heard)).await });
    assert!(runtime.block_on(blocked).unwrap().unwrap(), "it is reported while it blocks");
    let reports = log.reports_of("the-one");
    assert!(reports.len() == 1 && reports[0].contains("ERROR"), "{reports:?}");
    // Unless this machine has held it up for so long.
    assert!(log.reports_of("well-behaved").is_empty() || took > Duration::from_millis(400), "{took:?}");
    runtime.block_on(host.drain(Duration::from_secs(1)));
}

/// A host whose workers are all blocked for twice as long as its lease lasts.
fn blocked_for_two_leases(runtime: &Runtime, store: Arc<dyn Store>, lease: Duration) {
    let fleet = Fleet::new(["only"], 16).unwrap();
    let (host, blockers) = start(runtime, Host::builder("only", fleet).shared_store(store).lease(lease));
    let blocked: Vec<_> = (0..4)
        .map(|i| {
            let blockers = blockers.clone();
            let time = lease.mul_f64(1.7);
            runtime.spawn(async move { blockers.request(&format!("b-{i}"), Block(time)).await })
        })
        .collect();
    let began = Instant::now();
    // From a thread of its own: every worker is blocked.
    let mut looks = 0;
    while began.elapsed() < lease.mul_f64(2.7) {
        std::thread::sleep(lease / 400);
        assert!(host.is_ready(Duration::MAX) && host.health() == Health::Running, "after {:?}", began.elapsed());
        looks += 1;
    }
    assert!(looks > 20);
    for request in blocked {
        runtime.block_on(request).unwrap().expect("and it may answer");
    }
    runtime.block_on(host.drain(Duration::from_secs(1)));
}

/// Shorter where nothing is between the host and its store, and long enough for a machine that has much else to do.
const LEASE_IN_PROCESS: Duration = Duration::from_secs(2);
const LEASE_ON_A_SERVER: Duration = Duration::from_secs(4);

#[test]
fn a_host_whose_workers_are_all_blocked_keeps_its_lease() {
    blocked_for_two_leases(&two_workers(), Arc::new(MemoryStore::new()), LEASE_IN_PROCESS);
}

#[test]
fn a_host_on_fjall_whose_workers_are_all_blocked_keeps_its_lease() {
    let dir = tempfile::tempdir().unwrap();
    let store = FjallStore::open(dir.path()).unwrap();
    blocked_for_two_leases(&two_workers(), Arc::new(store), LEASE_IN_PROCESS);
}

#[test]
fn a_host_on_postgres_whose_workers_are_all_blocked_keeps_its_lease() {
    let (server, runtime) = (Postgres::start(), two_workers());
    let store = runtime.block_on(PostgresStore::connect(&server.url("postgres"))).unwrap();
    blocked_for_two_leases(&runtime, Arc::new(store), LEASE_ON_A_SERVER);
}

#[test]
fn a_host_on_redis_whose_workers_are_all_blocked_keeps_its_lease() {
    let (server, runtime) = (Redis::start(), two_workers());
    let store = runtime.block_on(RedisStore::connect(&server.url())).unwrap();
    blocked_for_two_leases(&runtime, Arc::new(store), LEASE_ON_A_SERVER);
}

#[test]
fn a_host_on_a_redis_cluster_whose_workers_are_all_blocked_keeps_its_lease() {
    let (servers, runtime) = (RedisCluster::start(), two_workers());
    let store = runtime.block_on(RedisStore::cluster(servers.urls()).connect()).unwrap();
    blocked_for_two_leases(&runtime, Arc::new(store), LEASE_ON_A_SERVER);
}
