//! Processes that are none of the hosts: they ask the owners over the network, as a web tier does, and own nothing.
//!
//! Each lives for the whole run, and its way to the store and to the hosts fails as theirs do.

use std::time::Duration;

use tokio::task::JoinSet;

use super::Workload;
use super::fleet::World;
use super::life::{Life, Site};
use super::link::Link;
use super::network::Network;
use crate::fleet::Fleet;
use crate::host::GuestBuilder;
use crate::instance::StableInterface;
use crate::sync::{Arc, Mutex};
use crate::testing::SeededRandom;

/// The number of them.
const OUTSIDE: u64 = 2;

/// A process that is none of the hosts, as it starts.
#[derive(Debug)]
pub struct Outside {
    pub(super) life: Life,
    pub(super) fleet: Fleet,
    pub(super) link: Link,
    pub(super) network: Network,
}

impl Outside {
    /// The life of the process.
    #[must_use]
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// An interface of the simulated fleet, as [`FleetClient::interface`](crate::FleetClient::interface) gives one.
    pub fn interface<I: StableInterface>(&self) -> GuestBuilder<I> {
        let random = Arc::new(SeededRandom::new(self.life.random().below(u64::MAX)));
        let times = (self.life.clock(), random as _);
        let transport = self.network.transport(&self.link);
        GuestBuilder::new(self.fleet.clone(), Arc::new(self.link.clone()), times, transport).name(self.life.host())
    }
}

/// The processes that run.
pub(super) struct Outsiders<A>(Mutex<Vec<Site<A>>>);

impl<A> Default for Outsiders<A> {
    fn default() -> Outsiders<A> {
        Outsiders(Mutex::default())
    }
}

impl<A: Clone> Outsiders<A> {
    pub(super) fn sites(&self) -> Vec<Site<A>> {
        self.0.lock().clone()
    }

    pub(super) fn names(&self) -> Vec<Arc<str>> {
        self.0.lock().iter().map(|site| site.life.host().into()).collect()
    }

    /// Ends all of them.
    pub(super) fn end(&self) {
        let sites = std::mem::take(&mut *self.0.lock());
        drop(sites);
    }
}

/// Starts such processes, if hosts can talk to others and the application can be in one.
pub(super) fn start<W: Workload>(world: &Arc<World<W::App>>, workload: &Arc<W>, starting: &mut JoinSet<()>) {
    for number in 0..OUTSIDE {
        let Some(outside) = world.start_outside(&format!("outside-{number}")) else { return };
        let (world, workload) = (Arc::downgrade(world), workload.clone());
        let clock = outside.life.clock();
        starting.spawn(async move {
            loop {
                match workload.outside(&outside).await {
                    Ok(Some(app)) => {
                        if let Some(world) = world.upgrade() {
                            world.outside.0.lock().push(Site { life: outside.life, app });
                        }
                        return;
                    }
                    Ok(None) => return,
                    // The store did not say who the members are.
                    Err(_) => clock.sleep(Duration::from_secs(1)).await,
                }
            }
        });
    }
}
