//! Hosts of a live fleet under every name that there can be, and without a word of the store.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod town;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stable_interfaces::testing::FaultStore;
use stable_interfaces::{
    Context, ContextError, Fleet, FleetClient, Handle, Host, HostBuilder, Interface, StableInterface, StartError,
};

use self::town::{LEASE, Town};

const SECOND: Duration = Duration::from_secs(1);
const SHARDS: u32 = 64;

struct Till;

impl StableInterface for Till {
    const NAME: &'static str = "till";
    type Error = ContextError;
}

#[derive(Debug, Serialize, Deserialize)]
struct Name;

impl Handle<Name> for Till {
    type Reply = String;

    async fn handle(&mut self, cx: &mut Context, _: Name) -> Result<String, ContextError> {
        Ok(cx.host().to_owned())
    }
}

struct Site {
    host: Host,
    tills: Interface<Till>,
}

fn live() -> Fleet {
    Fleet::live(SHARDS).unwrap()
}

fn member(town: &Town, name: &str) -> HostBuilder {
    town.member(name, &live()).settle(2 * SECOND).transport(town.network.transport())
}

async fn start(mut host: HostBuilder) -> Result<Site, StartError> {
    let tills = host.interface(|_| Till).forward::<Name>("name").register().unwrap();
    Ok(Site { host: host.start().await?, tills })
}

fn client(town: &Town) -> FleetClient {
    FleetClient::new(Arc::new(town.store.clone()), live())
}

/// The door answers for each of so many IDs with the name of its owner.
async fn answers(door: &Site) {
    for number in 0..40 {
        let id = format!("id-{number}");
        let holder = door.tills.holder(&id).unwrap_or_else(|| door.host.name().into());
        assert_eq!(*door.tills.request(&id, Name).await.unwrap(), *holder);
    }
}

#[tokio::test(start_paused = true)]
async fn a_live_fleet_of_hosts_with_every_kind_of_name_answers_and_moves_its_shards() {
    let town = Town::new(1);
    let long = "n".repeat(255);
    let names = ["a", "A", "a ", "ä«日本»😀", "\"'\\{}%/:|", "-9223372036854775808", &long];
    let mut sites = Vec::new();
    for name in names {
        sites.push(start(member(&town, name)).await.unwrap());
    }
    town.pass(2 * LEASE).await;
    let owned: Vec<_> = sites.iter().map(|site| site.host.shards().len()).collect();
    assert!(owned.iter().all(|owned| *owned > 0) && owned.iter().sum::<usize>() == SHARDS as usize, "{owned:?}");
    for site in &sites {
        answers(site).await;
        assert!(client(&town).cordon(site.host.name(), true).await.unwrap());
        town.pass(2 * SECOND).await;
        assert!(site.host.shards().is_empty(), "{:?} gives all away", site.host.name());
        answers(site).await;
        assert!(client(&town).cordon(site.host.name(), false).await.unwrap());
    }
    let mut listed: Vec<_> = client(&town).members().await.unwrap().iter().map(|it| it.name.to_string()).collect();
    assert!(listed.is_sorted());
    listed.sort();
    let mut expected: Vec<_> = names.map(str::to_owned).to_vec();
    expected.sort();
    assert_eq!(listed, expected);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_cannot_be_one_is_refused_for_hosts_and_for_processes_that_are_none() {
    let town = Town::new(1);
    let long = "n".repeat(256);
    let kilobyte = "ä".repeat(512);
    for name in ["", "a\0b", "a\nb", "\u{7f}", "\u{85}", &long, &kilobyte] {
        let refused = start(member(&town, name)).await.err().unwrap();
        assert!(matches!(refused, StartError::Option(what) if what.contains("1 to 255 bytes")), "{name:?}: {refused}");
        let guest = client(&town).interface::<Till>(town.network.transport()).name(name);
        let refused = guest.open().await.unwrap_err();
        assert!(matches!(refused, StartError::Option(what) if what.contains("1 to 255 bytes")), "{name:?}: {refused}");
    }
    assert_eq!(client(&town).members().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn the_later_of_two_hosts_of_one_name_has_all_and_the_earlier_one_stops() {
    let town = Town::new(1);
    let first = start(member(&town, "a")).await.unwrap();
    let other = start(member(&town, "b")).await.unwrap();
    town.pass(2 * LEASE).await;
    let had = first.host.shards();
    let second = start(member(&town, "a")).await.unwrap();
    assert_eq!(second.host.shards(), had, "at once, and no other moves");
    town.pass(LEASE).await;
    assert_eq!(first.host.shards(), []);
    assert!(first.tills.request("id-1", Name).await.is_err(), "it says that it was replaced");
    answers(&other).await;
    answers(&second).await;
    let names: Vec<_> = client(&town).members().await.unwrap().iter().map(|it| it.name.to_string()).collect();
    assert_eq!(names, ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn hints_that_are_all_lost_cost_a_live_fleet_a_third_of_a_lease_each_and_nothing_else() {
    let town = Town::new(1);
    let deaf = |name: &str| {
        let faults = FaultStore::seeded(Arc::new(town.store.clone()), Arc::new(town.clock.clone()), 1);
        faults.lose_hints(true);
        start(member(&town, name).shared_store(Arc::new(faults)))
    };
    let (a, b) = tokio::join!(deaf("a"), deaf("b"));
    let (a, b) = (a.unwrap(), b.unwrap());
    town.pass(2 * LEASE).await;
    let had = b.host.shards();
    assert!(!had.is_empty() && a.host.shards().len() + had.len() == SHARDS as usize);
    for (is_cordoned, left) in [(true, 0), (false, had.len())] {
        assert!(client(&town).cordon("b", is_cordoned).await.unwrap());
        let mut waited = Duration::ZERO;
        while b.host.shards().len() != left || a.host.shards().len() != SHARDS as usize - left {
            for (number, door) in (0..20).zip([&a, &b].into_iter().cycle()) {
                door.tills.request(&format!("id-{number}"), Name).await.unwrap();
            }
            town.pass(SECOND / 4).await;
            waited += SECOND / 4;
            // One look for the mark, one for what was released.
            assert!(waited <= 2 * LEASE / 3 + 2 * SECOND, "{waited:?}");
        }
    }
}
