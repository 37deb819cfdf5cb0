//! A live fleet of real processes whose hosts are told to end, one after the other, as a deployment does it: three are restarted with another
//! build of their program, then with the old one again; then they become five, of both builds, then two. Meanwhile 64 callers ask through
//! whichever door is open.
//!
//! Nothing that is acknowledged is lost or done twice, and whoever asks is answered, at doors that leave too. What only one of the builds knows is
//! refused by hosts of the other, by the name of their build, and does not happen; it is counted apart.
//! A line for each store says how many shards moved, how much was asked, and the longest time that a caller went without an answer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::time::Duration;

use alarm_backends::testing::servers::{Postgres, Redis};
use system_tests::process::{Build, Callers, Hosts, PATIENCE, Place, alone};

/// Long enough for a busy machine: nobody's is to run out.
const LEASE: Duration = Duration::from_secs(6);
const SETTLE: Duration = Duration::from_secs(2);
const LEDGERS: u64 = 48;
const CALLERS: Callers = Callers { callers: 64, pace: Duration::from_millis(64), is_once: false, silence: PATIENCE };
const THREE: [&str; 3] = ["host-0", "host-1", "host-2"];
const FIVE: [&str; 5] = ["host-0", "host-1", "host-2", "host-3", "host-4"];
const TWO: [&str; 2] = ["host-2", "host-4"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a child of these tests: runs only when its parent starts it"]
async fn child() {
    system_tests::process::child().await;
}

#[test]
fn on_postgres_a_fleet_changes_its_build_and_back_grows_and_shrinks_and_nothing_is_lost() {
    let _alone = alone();
    let server = Postgres::start();
    rolling("postgres", &server.fresh_database());
}

#[test]
fn on_redis_a_fleet_changes_its_build_and_back_grows_and_shrinks_and_nothing_is_lost() {
    let _alone = alone();
    let server = Redis::start();
    rolling("redis", &server.url());
}

fn rolling(store: &str, url: &str) {
    let is_quick = std::env::var("QUICK").is_ok();
    let (builds, settle) =
        if is_quick { (&[Build::New][..], SETTLE / 4) } else { (&[Build::New, Build::Old][..], SETTLE) };
    let place = url.to_owned();
    let mut hosts = Hosts::new(move |host| Place::live(&place, host, LEASE, settle), LEDGERS, 0);
    let mut front = hosts.put_in_front(CALLERS);
    hosts.start_all(&THREE);
    hosts.wait_owned(&THREE);
    let _beginning = front.take_longest();

    for build in builds {
        hosts.set_build(*build);
        for host in THREE {
            drain(&mut hosts, host);
            hosts.start(host);
            hosts.wait_owned(&THREE);
        }
        // All are of one build now, and know what its doors ask.
        let before = front.sums().unhandled;
        hosts.pass(SETTLE / 8);
        assert_eq!(front.sums().unhandled, before, "{store}, with {build:?} alone");
    }
    let restarting = front.take_longest();
    for (host, build) in FIVE[3..].iter().zip([Build::New, Build::Old]) {
        hosts.set_build(build);
        hosts.start(host);
    }
    hosts.wait_owned(&FIVE);
    let growing = front.take_longest();
    for host in FIVE.iter().filter(|host| !TWO.contains(host)) {
        drain(&mut hosts, host);
    }
    hosts.wait_owned(&TWO);
    hosts.pass(settle);
    let shrinking = front.take_longest();

    let sums = front.quiet();
    let verdict = hosts.settled_by("host-0", PATIENCE);
    println!(
        "{store}: {} restarts into another build, 3 to 5 to 2 hosts, {} shards handed on, {sums}; {} answered by the old build to the new one, by a \
         build that does not know the message {:?}; {verdict}; at doors that leave {} without an answer; longest wait {restarting:?} restarting, \
         {growing:?} growing, {shrinking:?} shrinking",
        builds.len() * THREE.len(),
        hosts.handoffs,
        sums.across,
        sums.unhandled,
        sums.failed_at_doors_that_leave(),
    );
    verdict.assert_right(store);
    assert!(sums.answered > 500, "{sums}");
    assert!(sums.across > 0 && sums.unhandled.len() == 2, "the builds were asked by each other: {sums:?}");
    let refused = (sums.refused.values().sum::<u64>(), sums.unknown, sums.cut);
    assert_eq!(refused, (0, 0, 0), "{store}, at doors that stay: {sums}, such as {:?}", sums.texts);
    // Nor at one that was told to end, for what was asked before its callers heard of that.
    assert_eq!(sums.failed_at_doors_that_leave(), 0, "{store}, at doors that leave: {sums:?}");
}

fn drain(hosts: &mut Hosts, host: &str) {
    assert_eq!(hosts.drain(host), "0 true", "{host}");
}
