//! Real processes with flows that are killed with SIGKILL, again and again: what was acknowledged is there, and no step whose result is
//! kept runs again.
//!
//! On Fjall one host is killed, on Postgres and Redis one of two that share a server. Flows are started, noted outside by a step,
//! called in time, at about their limit or never, by either host, and granted by another step; each kill comes after a drawn number
//! of answers, some while a host is on its way up. At the end all that was acknowledged is held against what flows came to, and against
//! what their steps did outside. `KILLS=n` sets the number of kills, `SEED=n` repeats the draws.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::time::{Duration, Instant};

use alarm_backends::testing::servers::{Postgres, Redis};
use system_tests::number;
use system_tests::process::{FlowHosts, Place, Roster, Seat};

/// The flows that are under way at a time.
const AT_ONCE: usize = 48;
/// The answers before each kill.
const ANSWERS: std::ops::Range<usize> = 20..160;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a child of these tests: runs only when its parent starts it"]
async fn child() {
    system_tests::process::flow_child().await;
}

fn seat(name: &str) -> Seat {
    Seat {
        name: name.to_owned(),
        roster: Roster::List("host-{0..1}".into()),
        shards: 16,
        lease: Duration::from_secs(15),
    }
}

fn run(store: &str, hosts: &[&str], place: impl Fn(&str) -> Place + Send + 'static) {
    let kills = number("KILLS", if std::env::var_os("QUICK").is_some() { 8 } else { 40 });
    let seed = number("SEED", 1);
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut world = FlowHosts::new(place, &dir.path().join("notes"), random.fork());
    for host in hosts {
        world.spawn(host);
    }
    world.until_ready(hosts.len());
    let began = Instant::now();
    for kill in 1..=kills {
        world.prepare();
        world.work(random.usize(ANSWERS), AT_ONCE);
        let host = hosts[random.usize(..hosts.len())];
        world.kill(host);
        world.spawn(host);
        if kill % 4 == 0 {
            // Once more, somewhere on its way up.
            std::thread::sleep(Duration::from_micros(random.u64(0..60_000)));
            world.kill(host);
            world.spawn(host);
        }
        if hosts.len() == 1 || random.bool() {
            let ready = world.ready();
            world.until_ready(ready + 1);
        }
    }
    let (killing, verdict) = (began.elapsed(), world.settle());
    verdict.assert_right(&format!("{store}, SEED={seed}"));
    assert!(verdict.flows as u64 > kills * 10, "{verdict}");
    println!("{store}: {verdict}; {kills} kills in {:.1} s", killing.as_secs_f64());
}

#[test]
fn flows_on_fjall_lose_nothing_and_repeat_nothing_through_kills_of_their_host() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    run("fjall", &["local"], move |_| Place::Fjall(path.clone()));
}

#[test]
fn flows_on_postgres_lose_nothing_and_repeat_nothing_through_kills_of_their_hosts() {
    let server = Postgres::start();
    let url = server.fresh_database();
    run("postgres", &["host-0", "host-1"], move |host| Place::Postgres(url.clone(), seat(host)));
}

#[test]
fn flows_on_redis_lose_nothing_and_repeat_nothing_through_kills_of_their_hosts() {
    let server = Redis::start();
    let url = server.url();
    run("redis", &["host-0", "host-1"], move |host| Place::Redis(url.clone(), seat(host)));
}
