//! A host ends as a whole: with any of its own tasks that panics, and with the runtime it lives on.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use stable_interfaces::clock::{Clock, Sleep};
use stable_interfaces::testing::SimClock;
use stable_interfaces::{Ended, Fleet, Health, Host, MemoryStore, RequestError, Timestamp};
use system_tests::{Between, START, Site, World, in_time, life, put, spawn, wait};

const SECOND: Duration = Duration::from_secs(1);

/// Waits until the host has stopped by itself, and looks whether it says so.
async fn fails(site: &Site, what: &str) {
    let ended = in_time(site.host.run_until(std::future::pending::<()>())).await;
    assert_eq!(ended, Err(Ended::Failed), "{what}");
    assert_eq!(site.host.health(), Health::Failed, "{what}");
    assert!(!site.host.is_ready(Duration::MAX) && site.host.shards().is_empty(), "{what}");
    let asked = site.probes.request("a", life()).await;
    assert!(matches!(&asked, Err(error) if error.is_retryable()), "{what}: {asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_own_task_panics_stops_wholly_and_says_so() {
    let world = World::in_memory();
    let fleet = Fleet::new(["one"], 16).unwrap();
    type Breaks = fn(Between) -> Between;
    let broken: [(&str, Breaks); 3] = [
        ("the lane", |between| between.on_commit(|_| panic!("a store that panics in a write"))),
        ("the loader", |between| {
            let loads = AtomicU64::new(0);
            between.on_load(move |_, _| {
                // The first loads belong to the start.
                assert!(loads.fetch_add(1, Ordering::SeqCst) < 1, "a store that panics in a load");
            })
        }),
        ("the keeper", |between| between.on_renew(|| panic!("a store that panics in a renewal"))),
    ];
    for (what, breaks) in broken {
        let store = breaks(Between::new(world.store.clone()));
        let builder = world.equip(Host::builder("one", fleet.clone()).store(store)).lease(3 * SECOND);
        let site = world.launch(builder, |probes| probes).await;
        let asked = spawn(&site.probes, "a", put("k", 1));
        world.settle().await;
        // For the loader: a message that the host has not heard of from itself.
        let outside = stable_interfaces::FleetClient::new(Arc::new(world.store.clone()), fleet.clone())
            .clock(Arc::new(world.clock.clone()));
        drop(outside.post("probe", "b", stable_interfaces::NewPost::new("m")).await);
        fails(&site, what).await;
        drop(in_time(asked).await);
    }
}

/// A clock that breaks on demand.
#[derive(Debug, Clone)]
struct Brittle {
    clock: SimClock,
    /// Says whether its exact sleeps panic, and whether the others do.
    breaks: Arc<[AtomicBool; 2]>,
}

impl Clock for Brittle {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        assert!(!self.breaks[1].load(Ordering::SeqCst), "a clock that panics in a sleep");
        self.clock.sleep(duration)
    }

    fn sleep_exact(&self, until: Timestamp) -> Sleep {
        assert!(!self.breaks[0].load(Ordering::SeqCst), "a clock that panics in an exact sleep");
        self.clock.sleep_exact(until)
    }

    fn is_simulated(&self) -> bool {
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_driver_or_a_task_of_whose_handlers_panics_stops_wholly_and_says_so() {
    for which in [0, 1] {
        let world = World::in_memory();
        let clock = Brittle { clock: world.clock.clone(), breaks: Arc::default() };
        let builder = world.local().clock(Arc::new(clock.clone()));
        let site = world.launch(builder, |probes| probes).await;
        site.probes.request("a", put("k", 1)).await.unwrap();
        clock.breaks[which].store(true, Ordering::SeqCst);
        if which == 0 {
            drop(site.probes.set_alarm("a", "x", world.at(1_000), &()).await);
        } else {
            let asked = spawn(&site.probes, "a", wait(5 * SECOND));
            assert!(matches!(in_time(asked).await.unwrap(), Err(RequestError::Unknown(_))));
        }
        clock.breaks[which].store(false, Ordering::SeqCst);
        fails(&site, if which == 0 { "the driver" } else { "a turn" }).await;
    }
}

#[tokio::test]
async fn a_host_whose_keeper_thread_panics_stops_wholly_and_says_so() {
    let world = World::in_memory();
    let store = Between::new(MemoryStore::new()).on_renew(|| panic!("a store that panics in a renewal"));
    let builder = Host::builder("one", Fleet::new(["one"], 16).unwrap()).store(store).lease(SECOND / 2);
    let site = world.launch(builder, |probes| probes).await;
    fails(&site, "the keeper's thread").await;
}

#[test]
fn a_host_ends_with_the_runtime_it_lives_on_and_so_does_its_lease() {
    let renewals = Arc::new(AtomicU64::new(0));
    let counted = renewals.clone();
    let store: Arc<MemoryStore> = Arc::new(MemoryStore::new());
    let between = Between::new((*store).clone()).on_renew(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        None
    });
    let fleet = Fleet::new(["one", "other"], 16).unwrap();
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let world = first.block_on(async { World::in_memory() });
    // Renewed each second, and not lost however busy the machine.
    let builder = Host::builder("one", fleet.clone()).store(between).lease(3 * SECOND);
    let site = first.block_on(world.launch(builder, |probes| probes));
    let owned = site.host.shards();
    let id = (0..).map(|n| format!("i-{n}")).find(|id| site.host.owns(id).unwrap()).unwrap();
    first.block_on(site.probes.request(&id, put("k", 1))).unwrap();
    // What waits when the runtime ends is answered.
    let (probes, waiting) = (site.probes.clone(), id.clone());
    let asked = second.spawn(async move { probes.request(&waiting, put("k", 2)).await });
    drop(second.block_on(in_time(asked)));
    drop(first);

    second.block_on(async {
        assert_eq!(site.host.health(), Health::Failed);
        let asked = in_time(site.probes.request(&id, put("k", 3))).await;
        assert!(matches!(&asked, Err(error) if error.is_retryable()), "{asked:?}");
        assert_eq!(in_time(site.host.run_until(std::future::pending::<()>())).await, Err(Ended::Failed));
        let before = renewals.load(Ordering::SeqCst);
        tokio::time::sleep(3 * SECOND).await;
        // One may have been under way.
        let after = renewals.load(Ordering::SeqCst);
        assert!(after <= before + 1, "nobody keeps the lease of a host that has ended: {before}, and {after}");
        assert!(!owned.is_empty() && START > Timestamp::MIN);
    });
    drop(site);
}
