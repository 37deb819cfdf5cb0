//! A live fleet of real processes whose hosts end without a word, or stand still: one is killed for good, one stops for two leases and goes on,
//! two are killed at once while their store is killed too. Meanwhile 64 callers ask through whichever door is open.
//!
//! Nothing that is acknowledged is lost or done twice, and nothing that is refused happens. A line for each store says how many were killed,
//! how many shards were handed on, how much was asked, and the longest time that a caller went without an answer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::time::{Duration, Instant};

use alarm_backends::testing::servers::{Postgres, Redis, Server};
use system_tests::process::{Callers, Hosts, PATIENCE, Place, alone};

const SETTLE: Duration = Duration::from_millis(500);
const LEDGERS: u64 = 48;
/// A host that stands still is not waited for.
const SILENCE: Duration = Duration::from_secs(2);
const CALLERS: Callers = Callers { callers: 64, pace: Duration::from_millis(64), is_once: false, silence: SILENCE };
/// The time for which the store's server is down.
const DOWN: Duration = Duration::from_millis(500);
/// The errors with which a request may be refused, as README says of a fleet: "A client sees".
const PROMISED: [&str; 4] = ["Unreachable", "LeaseLost", "Fenced", "Store"];
/// A busy machine takes longer for everything.
const SLOW: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a child of these tests: runs only when its parent starts it"]
async fn child() {
    system_tests::process::child().await;
}

#[test]
fn on_postgres_a_fleet_goes_on_without_the_dead_and_the_stopped_and_loses_nothing() {
    let _alone = alone();
    let server = Postgres::start();
    takeover("postgres", &server.fresh_database(), &server, || server.restart());
}

#[test]
fn on_redis_a_fleet_goes_on_without_the_dead_and_the_stopped_and_loses_nothing() {
    let _alone = alone();
    let server = Redis::start();
    takeover("redis", &server.url(), &server, || server.restart());
}

fn takeover(store: &str, url: &str, server: &Server, restart: impl Fn()) {
    let place = url.to_owned();
    let lease = Duration::from_secs(if std::env::var("QUICK").is_ok() { 1 } else { 2 });
    let mut hosts = Hosts::new(move |host| Place::live(&place, host, lease, SETTLE), LEDGERS, 0);
    let mut front = hosts.put_in_front(CALLERS);
    hosts.start_all(&["a", "b", "c"]);
    hosts.wait_owned(&["a", "b", "c"]);
    hosts.pass(lease / 4);
    let _beginning = front.take_longest();

    // For good, and nobody is told.
    let killed = Instant::now();
    hosts.kill("c");
    let after_its_lease = hosts.wait_taken_over(&["a", "b"], "c");
    let taken_over = killed.elapsed();
    hosts.pass(lease / 4);
    let for_good = front.take_longest();

    // What it has in memory when it goes on is old.
    hosts.signal("b", "STOP");
    hosts.pass(2 * lease);
    hosts.signal("b", "CONT");
    hosts.wait_owned(&["a", "b"]);
    let standing_still = front.take_longest();

    hosts.start("d");
    hosts.wait_owned(&["a", "b", "d"]);
    let _joining = front.take_longest();
    // Two of three, and the store with them.
    let killed = Instant::now();
    hosts.kill("a");
    hosts.kill("b");
    server.kill9();
    hosts.pass(DOWN);
    restart();
    let away = killed.elapsed();
    hosts.wait_owned(&["d"]);
    let both_taken_over = killed.elapsed();
    hosts.pass(lease / 4);
    let both = front.take_longest();

    // The last one too: others find what it left.
    hosts.start("e");
    hosts.wait_owned(&["d", "e"]);
    hosts.kill("d");
    hosts.kill("e");
    hosts.start_all(&["f", "e"]);
    hosts.wait_owned(&["e", "f"]);
    hosts.pass(lease / 4);
    let all = front.take_longest();

    let sums = front.quiet();
    let verdict = hosts.settled_by("g", PATIENCE);
    println!(
        "{store}: 5 hosts killed and the store once, 1 host stopped for {:?}, {} shards handed on, {sums}; {verdict}; with a lease of {lease:?} \
         taken over after {taken_over:?}, which is {after_its_lease:?} after the end of its lease, and of two, with the store away for {away:?}, after {both_taken_over:?}; longest wait {for_good:?} for one killed, {standing_still:?} \
         for one stopped, {both:?} for two and the store, {all:?} for all",
        2 * lease,
        hosts.handoffs,
    );
    verdict.assert_right(store);
    assert!(sums.answered > 500, "{sums}");
    for (kind, text) in &sums.texts {
        println!("{store}: {kind}, such as: {text}");
    }
    let refused = sums.refused.keys().chain(sums.refused_leaving.keys());
    let unpromised: Vec<_> = refused.filter(|kind| !PROMISED.contains(&kind.as_str())).collect();
    assert!(unpromised.is_empty(), "{store}: {unpromised:?}, such as {:?}", sums.texts);
    // No sooner than its lease was over, and then soon, as far as a busy machine lets anybody say so.
    assert!(after_its_lease.is_some_and(|after| after < SLOW), "{after_its_lease:?}");
}
