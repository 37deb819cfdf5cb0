//! A live fleet on a network that is cut: three hosts and their store are in four network namespaces on a bridge, and what one of them sends to
//! another is dropped, in each direction alone; a cable is taken out; and all of it heals. Meanwhile callers, which reach every host, ask
//! through every door, more than 1,000 times a second: so many of them that those who wait for a host that is cut off do not hold up the rest.
//!
//! Nothing that is acknowledged is lost or done twice, nothing that is refused happens, and a host that was cut off from its store answers from
//! memory no longer than its lease. Another has its shards soon after that. A host that does not reach another one, and reaches the store, keeps
//! its shards: whoever asks for them through the other's door hears `Unreachable` until the network heals.
//!
//! It needs Linux, root, `ip` and `iptables`: `tests/run partitions`, which is not among all tests.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use alarm_backends::testing::servers::{PostgresOptions, RedisOptions};
use system_tests::process::{Callers, Front, Heard, Hosts, Network, PATIENCE, Place, Sums, alone};

const LEASE: Duration = Duration::from_secs(2);
const SETTLE: Duration = Duration::from_millis(500);
/// Each caller has one to itself, so that some ask what a host has in memory while others wait for its store.
const LEDGERS: u64 = CALLERS.callers;
const CALLERS: Callers =
    Callers { callers: 1_200, pace: Duration::from_secs(1), is_once: false, silence: Duration::from_secs(2) };
const HOSTS: [&str; 3] = ["a", "b", "c"];
const STORE: &str = "store";
/// A busy machine takes longer for everything.
const SLOW: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a child of these tests: runs only when its parent starts it"]
async fn child() {
    system_tests::process::child().await;
}

#[test]
#[ignore = "needs root: tests/run partitions"]
fn on_postgres_a_fleet_whose_network_is_cut_and_heals_loses_nothing_and_does_nothing_twice() {
    let _alone = alone();
    let network = Arc::new(network());
    let server = PostgresOptions::new().within(network.within(STORE)).start();
    partitions("postgres", &network, &server.fresh_database());
}

#[test]
#[ignore = "needs root: tests/run partitions"]
fn on_redis_a_fleet_whose_network_is_cut_and_heals_loses_nothing_and_does_nothing_twice() {
    let _alone = alone();
    let network = Arc::new(network());
    let server = RedisOptions::new().within(network.within(STORE)).start();
    partitions("redis", &network, &server.url());
}

fn network() -> Network {
    Network::build(&[STORE, "a", "b", "c"])
}

/// The fleet, with whoever asks and all that was answered.
struct Fleet<'a> {
    store: &'a str,
    network: &'a Network,
    hosts: Hosts,
    front: Front,
    heard: Receiver<Heard>,
    /// The number of answers that hosts gave while they were cut off from their store.
    by_cut_off: usize,
}

fn partitions(store: &str, network: &Arc<Network>, url: &str) {
    // The server listens at every address of its node.
    let url = url.replace("127.0.0.1", &network.address(STORE));
    let (place_of, within) = (network.clone(), network.clone());
    let place =
        move |host: &str| Place::live_at(&url, host, &format!("{}:7000", place_of.address(host)), LEASE, SETTLE);
    let mut hosts = Hosts::new(place, LEDGERS, 0);
    hosts.set_within(move |host| within.within(host));
    let front = hosts.put_in_front(CALLERS);
    let heard = front.listen();
    let mut fleet = Fleet { store, network, hosts, front, heard, by_cut_off: 0 };
    fleet.hosts.start_all(&HOSTS);
    fleet.hosts.wait_owned(&HOSTS);
    fleet.hosts.pass(LEASE / 2);
    let _beginning = fleet.front.take_longest();

    let began = Instant::now();
    fleet.cut_off("c", "what it sends to the store is dropped", || network.cut("c", STORE));
    fleet.cut_off("b", "what the store sends to it is dropped", || network.cut(STORE, "b"));
    fleet.cut_apart("a", "b");
    fleet.cut_apart("b", "a");
    fleet.cut_off("a", "its cable is out", || network.unplug("a"));
    let asked = began.elapsed();

    let sums = fleet.front.quiet();
    let verdict = fleet.hosts.settled_by("a", PATIENCE);
    println!(
        "{store}: 3 hosts cut off from the store and 2 from each other, {} shards handed on, {sums}, {:.0} a second; {verdict}",
        fleet.hosts.handoffs,
        sums.asked as f64 / asked.as_secs_f64(),
    );
    verdict.assert_right(store);
    assert!(fleet.by_cut_off > 0, "nobody was asked for what it has in memory while it was cut off");
}

/// Counts what was refused and what is not known, through all doors, by kind.
fn failures(sums: &Sums) -> BTreeMap<String, u64> {
    let mut failed = sums.refused.clone();
    failed.extend([("Unknown".to_owned(), sums.unknown), ("cut".to_owned(), sums.cut)]);
    failed
}

/// The [failures] since `before`.
fn failed_since(before: &Sums, now: &Sums) -> BTreeMap<String, u64> {
    let (before, mut failed) = (failures(before), failures(now));
    for (kind, times) in &mut failed {
        *times -= before.get(kind).copied().unwrap_or(0);
    }
    failed.retain(|_, times| *times > 0);
    failed
}

impl Fleet<'_> {
    /// Cuts a host off from its store for some leases, and heals it.
    fn cut_off(&mut self, host: &str, how: &str, cut: impl Fn()) {
        let others: Vec<_> = HOSTS.into_iter().filter(|other| *other != host).collect();
        self.heard.try_iter().for_each(drop);
        let before = self.front.sums();
        let began = Instant::now();
        cut();
        let after_its_lease = self.hosts.wait_taken_over(&others, host);
        let taken_over = began.elapsed();
        self.hosts.pass(LEASE);
        let by_it: Vec<_> = self.heard.try_iter().filter(|heard| heard.by == host).map(|heard| heard.at).collect();
        let answered = by_it.last().map_or(Duration::ZERO, |last| last.saturating_duration_since(began));
        self.network.heal();
        self.hosts.wait_owned(&HOSTS);
        let healed = began.elapsed() - taken_over - LEASE;
        println!(
            "{}: {how}: {host} answered for {answered:?} more, others had its shards after {taken_over:?}, which is {after_its_lease:?} after the end of its lease of {LEASE:?}, and it had its part again \
             {healed:?} after it was healed; longest wait {:?}, failed {:?}",
            self.store,
            self.front.take_longest(),
            failed_since(&before, &self.front.sums()),
        );
        self.by_cut_off += by_it.len();
        // An answer is on its way for a moment.
        assert!(answered < LEASE + Duration::from_secs(1), "{host} answered for {answered:?}");
        assert!(after_its_lease.is_some_and(|after| after < SLOW), "{after_its_lease:?}");
    }

    /// Drops what one host sends to another for some leases, and heals it. Both keep what they have.
    fn cut_apart(&mut self, from: &str, to: &str) {
        let owned: Vec<_> = HOSTS.iter().map(|host| self.hosts.owned(host)).collect();
        let before = self.front.sums();
        self.network.cut(from, to);
        self.hosts.pass(4 * LEASE);
        let meanwhile: Vec<_> = HOSTS.iter().map(|host| self.hosts.owned(host)).collect();
        let failed = failed_since(&before, &self.front.sums());
        self.network.heal();
        let began = Instant::now();
        // Until callers at the door of the one have answers of the other.
        self.heard.try_iter().for_each(drop);
        let is_back = |heard: &Heard| heard.door == from && heard.by == to;
        while !self.heard.try_iter().any(|heard| is_back(&heard)) {
            assert!(began.elapsed() < PATIENCE, "{from} does not reach {to} again");
            self.hosts.pass(Duration::from_millis(20));
        }
        println!(
            "{}: what {from} sends to {to} is dropped: failed {failed:?}; {from} reached {to} {:?} after it was healed; longest wait {:?}",
            self.store,
            began.elapsed(),
            self.front.take_longest(),
        );
        assert_eq!(meanwhile, owned, "they keep what they have");
        assert!(failed.get("Unreachable").is_some_and(|times| *times > 0), "{failed:?}");
    }
}
