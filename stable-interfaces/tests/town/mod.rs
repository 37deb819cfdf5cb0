//! Hosts of one fleet on one network and one store, by one clock.

#![allow(dead_code, reason = "a test takes of it what it needs")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stable_interfaces::clock::Clock;
use stable_interfaces::testing::{MemoryNetwork, SeededRandom, SimClock};
use stable_interfaces::{Fleet, Host, HostBuilder, MemoryStore, Timestamp};

pub(crate) const LEASE: Duration = Duration::from_secs(15);

pub(crate) struct Town {
    pub(crate) clock: SimClock,
    pub(crate) store: MemoryStore,
    pub(crate) network: MemoryNetwork,
    pub(crate) fleet: Fleet,
    /// The number of hosts that were made: no two have the same random numbers.
    hosts: AtomicU64,
}

impl Town {
    pub(crate) fn new(hosts: u32) -> Town {
        let fleet = Fleet::expand(&format!("host-{{0..{}}}", hosts - 1), 64).unwrap();
        let clock = SimClock::new(Timestamp::from_millis(1_700_000_000_000));
        let store = MemoryStore::with_clock(Arc::new(clock.clone()));
        Town { clock, store, network: MemoryNetwork::new(), fleet, hosts: AtomicU64::new(0) }
    }

    pub(crate) fn member(&self, name: &str, fleet: &Fleet) -> HostBuilder {
        let host = Host::builder(name, fleet.clone()).store(self.store.clone()).lease(LEASE);
        let seed = self.hosts.fetch_add(1, Ordering::SeqCst);
        host.clock(Arc::new(self.clock.clone())).random(Arc::new(SeededRandom::new(seed)))
    }

    pub(crate) async fn pass(&self, duration: Duration) {
        self.clock.sleep(duration).await;
    }

    /// Waits for at most so long; `None` if it was not done by then.
    pub(crate) async fn within<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! { biased;
            done = work => Some(done),
            () = self.pass(limit) => None,
        }
    }

    /// Lets everything run that can run without time passing.
    pub(crate) async fn settle(&self) {
        self.pass(Duration::from_millis(1)).await;
    }

    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap()
    }

    /// IDs that the fleet gives to a host.
    pub(crate) fn ids(&self, host: &str) -> impl Iterator<Item = String> {
        let (fleet, host) = (self.fleet.clone(), host.to_owned());
        (0..).map(|number| format!("id-{number}")).filter(move |id| fleet.locate(id).unwrap().host == host)
    }

    pub(crate) fn id(&self, host: &str) -> String {
        self.ids(host).next().unwrap()
    }
}
