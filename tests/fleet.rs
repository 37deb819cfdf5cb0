//! Fates of a fleet, with real processes over a real Postgres and a real Redis: two hosts of one name, a host that stands
//! still for longer than its lease, a fleet that grows under load, a host that is configured for another fleet; in `trouble.rs` live fleets with a
//! wrong clock, a wrong address, and strangers at the port.
//!
//! `FULL=1` makes the leases 15 s long, as they are by default, and pauses 30 s; else they are shorter, and everything else in proportion.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use alarm_backends::testing::servers::{Postgres, Redis};
use system_tests::process::{Hosts, PATIENCE, Place, Roster, Seat};

const LEDGERS: u64 = 32;
/// The same, as a number of operations.
const ONE_EACH: usize = 32;
const CALLERS: u64 = 16;
const SHARDS: u32 = 64;

static POSTGRES: LazyLock<Postgres> = LazyLock::new(Postgres::start);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a child of these tests: runs only when its parent starts it"]
async fn child() {
    system_tests::process::child().await;
}

fn lease() -> Duration {
    if std::env::var("FULL").is_ok() { Duration::from_secs(15) } else { Duration::from_secs(2) }
}

/// A store of a test's own.
struct World {
    kind: Kind,
    url: String,
    /// Kept until the test is over.
    _server: Option<Redis>,
}

#[derive(Clone, Copy)]
enum Kind {
    Postgres,
    Redis,
}

impl World {
    fn new(kind: Kind) -> World {
        match kind {
            Kind::Postgres => World { kind, url: POSTGRES.fresh_database(), _server: None },
            Kind::Redis => {
                let server = Redis::start();
                World { kind, url: server.url(), _server: Some(server) }
            }
        }
    }

    /// The place of the rows of a host that knows this list of hosts. What follows a `+` in its name here tells two processes of one name
    /// apart.
    fn place(&self, fleet: &str, shards: u32) -> impl Fn(&str) -> Place + use<> {
        let (kind, url, fleet) = (self.kind, self.url.clone(), fleet.to_owned());
        move |host| {
            let name = host.split('+').next().unwrap().to_owned();
            let seat = Seat { name, roster: Roster::List(fleet.clone()), shards, lease: lease() };
            match kind {
                Kind::Postgres => Place::Postgres(url.clone(), seat),
                Kind::Redis => Place::Redis(url.clone(), seat),
            }
        }
    }

    fn hosts(&self, fleet: &str, callers: u64) -> Hosts {
        Hosts::new(self.place(fleet, SHARDS), LEDGERS, callers)
    }
}

/// Runs a test on each server.
macro_rules! on_each_server {
    ($(#[$attribute:meta])* fn $name:ident($world:ident: World) $body:block) => {
        $(#[$attribute])*
        fn $name($world: World) $body

        mod $name {
            #[test]
            fn on_postgres() {
                super::$name(super::World::new(super::Kind::Postgres));
            }

            #[test]
            fn on_redis() {
                super::$name(super::World::new(super::Kind::Redis));
            }
        }
    };
}

#[path = "fleet/trouble.rs"]
mod trouble;

/// Lets the hosts work until they have acknowledged so much more.
fn work(hosts: &mut Hosts, operations: usize) {
    hosts.wait_acknowledged(hosts.account.acknowledged() + operations);
}

/// Waits until each ledger has one owner among these hosts, and says which. For a moment after a host has lost a shard it may still
/// believe that it has it.
fn owners(hosts: &mut Hosts, names: &[&str]) -> BTreeMap<String, String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut owners = BTreeMap::new();
        let mut twice = Vec::new();
        for name in names {
            for ledger in hosts.owned(name) {
                if owners.insert(ledger.clone(), (*name).to_owned()).is_some() {
                    twice.push(ledger);
                }
            }
        }
        if owners.len() as u64 == LEDGERS && twice.is_empty() {
            return owners;
        }
        assert!(Instant::now() < end, "two owners have {twice:?}, and these have one: {owners:?}");
        hosts.pass(Duration::from_millis(50));
    }
}

/// Has each ledger of a host set an alarm, and stops the host before the first is due: after so long, or longer where the machine takes more
/// than that to set them. How the alarms' names begin, and after how long they are due.
fn stop_before_due(hosts: &mut Hosts, host: &str, mut after: Duration) -> (String, Duration) {
    let mut rounds = 0;
    loop {
        rounds += 1;
        let (began, wanted) = (Instant::now(), hosts.account.acknowledged() + ONE_EACH);
        for n in 0..LEDGERS {
            hosts.tell(host, &format!("book ledger-{n} alarm-{rounds}-{n} {}", after.as_millis()));
        }
        hosts.wait_acknowledged(wanted);
        hosts.signal(host, "STOP");
        if began.elapsed() < after {
            return (format!("alarm-{rounds}-"), after);
        }
        hosts.signal(host, "CONT");
        after *= 2;
    }
}

/// The alarms whose names begin like this, as `ledger operation`, that a host said that it began.
fn fired_by<'a>(hosts: &'a Hosts, host: &str, names: &str) -> Vec<&'a String> {
    let fired = hosts.account.fired_by(host).iter();
    fired.filter(|alarm| alarm.split(' ').nth(1).is_some_and(|name| name.starts_with(names))).collect()
}

on_each_server! {
    fn of_two_hosts_with_one_name_the_first_stops_wholly_and_none_of_its_writes_lands(world: World) {
        let mut hosts = world.hosts("host-{0..1}", CALLERS);
        hosts.start("host-0+first");
        hosts.start("host-1");
        work(&mut hosts, 300);
        // The first one works all the while.
        hosts.start("host-0+second");
        assert_eq!(hosts.answer("host-0+first", "health"), "Replaced");
        work(&mut hosts, 300);
        assert_eq!(hosts.owned("host-0+first"), BTreeSet::new());
        hosts.tell("host-0+first", "book ledger-0 afterwards 0");
        hosts.answer("host-0+first", "unbooked");
        // And does not claim again.
        hosts.pass(lease());
        owners(&mut hosts, &["host-0+second", "host-1"]);
        assert_eq!(hosts.answer_within("host-0+second", "health", Duration::ZERO), None, "no duel");

        hosts.kill("host-0+first");
        hosts.settled(&["host-0+second", "host-1"], PATIENCE).assert_right("two of a name");
    }
}

on_each_server! {
    fn a_host_that_stood_still_for_two_leases_and_was_replaced_meanwhile_fires_and_writes_nothing_more(world: World) {
        let mut hosts = world.hosts("host-0", 0);
        hosts.start("host-0+first");
        // Due while it stands still.
        let (alarms, due_after) = stop_before_due(&mut hosts, "host-0+first", lease());
        let stopped = Instant::now();
        hosts.start("host-0+second");
        // What is written to it now, it reads when it goes on.
        hosts.tell("host-0+first", "book ledger-0 late 0");
        hosts.pass((2 * lease()).max(due_after).saturating_sub(stopped.elapsed()));
        hosts.signal("host-0+first", "CONT");
        hosts.answer("host-0+first", "unbooked");
        assert_eq!(hosts.answer("host-0+first", "health"), "Replaced");
        hosts.pass(lease() / 2);
        assert_eq!(fired_by(&hosts, "host-0+first", &alarms), [] as [&String; 0], "it looked at its lease first");

        hosts.kill("host-0+first");
        hosts.settled(&["host-0+second"], PATIENCE).assert_right("replaced while it stood still");
        assert_eq!(fired_by(&hosts, "host-0+second", &alarms).len(), ONE_EACH);
    }
}

on_each_server! {
    fn a_host_that_stood_still_for_two_leases_loses_what_others_took_and_keeps_the_rest(world: World) {
        // It knows nothing of the second, which is to have a part of its shards.
        let mut hosts = world.hosts("host-0", 0);
        hosts.start("host-0");
        let (alarms, due_after) = stop_before_due(&mut hosts, "host-0", lease() + lease() / 2);
        let stopped = Instant::now();
        hosts.set_place(world.place("host-{0..1}", SHARDS));
        hosts.start("host-1");
        let end = Instant::now() + PATIENCE;
        let mut taken = BTreeSet::new();
        while stopped.elapsed() < (2 * lease()).max(due_after) || taken.is_empty() {
            assert!(Instant::now() < end, "nothing was taken over");
            hosts.pass(Duration::from_millis(50));
            taken = hosts.owned("host-1");
        }
        let moved = taken.iter().next().unwrap().clone();
        hosts.tell("host-0", &format!("book {moved} late 0"));
        hosts.signal("host-0", "CONT");
        hosts.answer("host-0", "unbooked");
        let kept = owners(&mut hosts, &["host-0", "host-1"]).into_values().filter(|owner| owner == "host-0").count();
        assert!(kept > 0, "what nobody took is still its own");
        assert_eq!(hosts.answer_within("host-0", "health", Duration::ZERO), None, "it is not replaced");

        hosts.settle(PATIENCE).assert_right("taken over while it stood still");
        let mut strangers = fired_by(&hosts, "host-0", &alarms);
        strangers.retain(|alarm| taken.contains(alarm.split(' ').next().unwrap()));
        assert_eq!(strangers, [] as [&String; 0], "it looked at its lease first");
    }
}

on_each_server! {
    fn a_fleet_grows_from_three_to_four_hosts_under_load_and_loses_nothing(world: World) {
        let mut hosts = world.hosts("host-{0..2}", CALLERS);
        for host in ["host-0", "host-1", "host-2"] {
            hosts.start(host);
        }
        work(&mut hosts, 300);
        let before = owners(&mut hosts, &["host-0", "host-1", "host-2"]);
        // One after the other, as an orchestrator does it.
        hosts.set_place(world.place("host-{0..3}", SHARDS));
        for host in ["host-0", "host-1", "host-2"] {
            assert_eq!(hosts.drain(host), "0 true");
            hosts.start(host);
            work(&mut hosts, 100);
        }
        hosts.start("host-3");
        let names = ["host-0", "host-1", "host-2", "host-3"];
        let after = owners(&mut hosts, &names);
        work(&mut hosts, 300);
        let moved: Vec<_> = after.iter().filter(|(ledger, owner)| before[*ledger] != **owner).collect();
        assert!(!moved.is_empty() && moved.iter().all(|(_, owner)| *owner == "host-3"), "to the new one alone: {moved:?}");

        hosts.settled(&names, PATIENCE).assert_right("grown");
    }
}

on_each_server! {
    fn a_host_configured_for_another_shard_count_does_not_start_and_says_both_numbers(world: World) {
        let mut hosts = world.hosts("host-{0..1}", 0);
        hosts.start("host-0");
        hosts.set_place(world.place("host-{0..1}", 2 * SHARDS));
        hosts.spawn("host-1");
        let said = hosts.answer("host-1", "refused");
        assert!(said.contains("128 shards") && said.contains("holds 64"), "{said}");
    }
}
