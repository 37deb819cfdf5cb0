//! Each store against one model of what a [`Store`] is to do; the window and the committer have theirs beside their code.
//!
//! A failing case is made as small as it gets and says how to repeat it (`SEED=n CASES=1`). `CASES=n tests/run models` runs more.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../stable-interfaces/src/cases.rs"]
mod cases;
#[path = "models/store.rs"]
mod store;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use alarm_backends::testing::servers::{Postgres, PostgresOptions, Redis, RedisOptions};
use alarm_backends::{FjallStore, PostgresStore, RedisStore};
use stable_interfaces::testing::SimClock;
use stable_interfaces::{MemoryStore, Store, StoreError};
use system_tests::START;
use system_tests::broken::{Broken, How};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use store::{Contract, Model, Tested};

/// The most steps of a case.
const STEPS: usize = 60;

fn real_time() -> Arc<Runtime> {
    Arc::new(Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap())
}

/// A memory store, perhaps behind something, on a clock of its own.
fn in_memory(behind: impl Fn(Arc<dyn Store>) -> Arc<dyn Store> + 'static) -> Tested {
    let runtime = Arc::new(Builder::new_current_thread().enable_time().start_paused(true).build().unwrap());
    let store = {
        let _in = runtime.enter();
        behind(Arc::new(MemoryStore::with_clock(Arc::new(SimClock::new(START)))))
    };
    Tested::new(runtime, true, Box::new(move || [store.clone(), store.clone()]))
}

#[test]
fn the_memory_store_does_what_the_model_of_a_store_does() {
    cases::check::<Contract<false>, _>(300, STEPS, |_: &Model| in_memory(|store| store));
}

/// Opens the directory; whoever closed it may have a moment to go.
fn opened(dir: &TempDir) -> FjallStore {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match FjallStore::open(dir.path().join("store")) {
            Err(StoreError::Open(..)) if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
            store => return store.unwrap(),
        }
    }
}

#[test]
fn the_fjall_store_does_what_the_model_of_a_store_does_through_being_closed_and_opened() {
    let runtime = real_time();
    cases::check::<Contract<true>, _>(24, STEPS, |_: &Model| {
        let dir = tempfile::tempdir().unwrap();
        let open = move || {
            let store: Arc<dyn Store> = Arc::new(opened(&dir));
            [store.clone(), store]
        };
        Tested::new(runtime.clone(), false, Box::new(open))
    });
}

#[test]
fn the_postgres_store_does_what_the_model_of_a_store_does() {
    static SCHEMAS: AtomicU32 = AtomicU32::new(0);
    let server: Postgres = PostgresOptions::new().start();
    let (runtime, url) = (real_time(), server.fresh_icu_database());
    cases::check::<Contract<false>, _>(12, STEPS, |_: &Model| {
        let schema = format!("model_{}", SCHEMAS.fetch_add(1, Ordering::Relaxed));
        let (in_runtime, url) = (runtime.clone(), url.clone());
        let open = move || {
            let connect = || PostgresStore::builder(&url).unwrap().schema(schema.clone()).connect();
            [0, 1].map(|_| Arc::new(in_runtime.block_on(connect()).unwrap()) as Arc<dyn Store>)
        };
        Tested::new(runtime.clone(), false, Box::new(open))
    });
}

#[test]
fn the_redis_store_does_what_the_model_of_a_store_does() {
    static PREFIXES: AtomicU32 = AtomicU32::new(0);
    let server: Redis = RedisOptions::new().start();
    let runtime = real_time();
    cases::check::<Contract<false>, _>(24, STEPS, |_: &Model| {
        let prefix = format!("model-{}", PREFIXES.fetch_add(1, Ordering::Relaxed));
        let (in_runtime, url) = (runtime.clone(), server.url());
        let open = move || {
            let connect = || RedisStore::builder(url.clone()).prefix(prefix.clone()).connect();
            [0, 1].map(|_| Arc::new(in_runtime.block_on(connect()).unwrap()) as Arc<dyn Store>)
        };
        Tested::new(runtime.clone(), false, Box::new(open))
    });
}

/// A model that never fails proves nothing.
#[test]
fn stores_broken_on_purpose_differ_from_the_model() {
    let controls = [
        How::AcknowledgesEarly,
        How::Reorders,
        How::AppliesPartly,
        How::IgnoresTheEpoch,
        How::IgnoresTheSequence,
        How::ForgetsRemovals,
        How::ReturnsPagesWithAHole,
        How::LosesPosts,
        How::ShowsAlarmsEarly,
        How::ForgetsValues,
        How::KeepsGivenUpEpochs,
    ];
    let catch = |how| {
        let start = |_: &Model| in_memory(move |store| Arc::new(Broken::new(store, how)));
        // Longer ones: some are broken once in many operations.
        (1..=60).find_map(|seed| Some((seed, cases::find::<Contract<false>, _>(seed, 4 * STEPS, 0, &start)?)))
    };
    let mut caught = 0;
    for how in controls {
        match catch(how) {
            Some((seed, found)) => {
                println!("caught {how:?}: seed {seed}, {}", found.lines().next().unwrap_or_default());
                caught += 1;
            }
            None => println!("NOT caught: {how:?}"),
        }
    }
    println!("{caught} of {} caught", controls.len());
    assert_eq!(caught, controls.len());
}
