//! Real processes that are killed with SIGKILL, again and again, while they work; then what they acknowledged must be there.
//!
//! On Fjall two hosts are killed, each with a store of its own, so that one works while the other starts; on Postgres and Redis two
//! hosts share a server, and one kill in ten is the server's. Each kill comes after a drawn number of acknowledged operations,
//! some while a host is still starting. After each [`LEG`] of kills everything that is due is let happen, and the account of what
//! was acknowledged is held against what is stored: nothing lost, nothing before its time, nothing twice. The next leg begins on a new store. `KILLS=n` sets how often, `SEED=n` repeats the draws, `LEG=n` makes
//! the legs longer, and with them the stores larger.
//!
//! The same for live fleets of three hosts, where callers that nobody kills ask through any door, under a key each time, and ask again until they
//! are answered: then all that they asked for is there, once.
//!
//! A loop that finds nothing proves little, so the last two tests let a store lose what it acknowledged, and see that noticed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::ops::Deref;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alarm_backends::testing::servers::{Postgres, PostgresOptions, Redis, RedisOptions, Server};
use system_tests::number;
use system_tests::process::{Callers, Front, Hosts, PATIENCE, Place, Roster, Seat, Verdict, alone};

/// The number of kills that a store sees before the account is settled and the next one begins. An embedded store reads its journal at each
/// start, so its legs are shorter.
const LEG: u64 = 50;
const EMBEDDED_LEG: u64 = 12;
/// The number of embedded stores at a time.
const EMBEDDED_STORES: u64 = 2;
/// The number of acknowledged operations before each kill.
const OPERATIONS: std::ops::Range<usize> = 300..1_950;
/// The number of kills when it is to be quick.
const QUICK: u64 = 20;
/// A slow machine need not do all of them.
const AT_MOST: Duration = Duration::from_secs(2);
/// One kill in so many is the store's.
const STORE_EVERY: u64 = 10;

const LEDGERS: u64 = 48;
const CALLERS: u64 = 128;
const FLEET: &str = "host-{0..1}";
const NAMES: [&str; 2] = ["host-0", "host-1"];

/// Of a live fleet.
const LIVE: [&str; 3] = ["host-0", "host-1", "host-2"];
const LIVE_LEASE: Duration = Duration::from_secs(2);
const LIVE_CALLERS: Callers =
    Callers { callers: 64, pace: Duration::from_millis(5), is_once: true, silence: Duration::from_secs(2) };
const LIVE_QUICK: u64 = 10;
/// Fewer, as what is asked through one host and done by another costs more.
const LIVE_OPERATIONS: std::ops::Range<usize> = 50..250;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a child of these tests: runs only when its parent starts it"]
async fn child() {
    system_tests::process::child().await;
}

fn seat(name: &str) -> Seat {
    Seat { name: name.to_owned(), roster: Roster::List(FLEET.to_owned()), shards: 64, lease: Duration::from_secs(15) }
}

fn on_postgres(url: String) -> impl Fn(&str) -> Place + Send {
    move |host| Place::Postgres(url.clone(), seat(host))
}

fn on_redis(url: String) -> impl Fn(&str) -> Place + Send {
    move |host| Place::Redis(url.clone(), seat(host))
}

/// A store that has seen no kill yet, and its hosts.
struct Leg {
    hosts: Hosts,
    /// The callers who ask through the doors of a live fleet; in others each host has callers of its own.
    front: Option<Front>,
    names: &'static [&'static str],
    /// Kills the store's server, waits so long, and starts it again.
    crash: Option<Crash>,
}

#[test]
fn fjall_keeps_all_that_was_acknowledged_through_kills_of_its_host() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("there is room for a store");
    run("fjall", QUICK, EMBEDDED_LEG, EMBEDDED_STORES, |leg| {
        let dir = dir.path().join(leg.to_string());
        let hosts = Hosts::new(move |_| Place::Fjall(dir.clone()), LEDGERS, CALLERS);
        Leg { hosts, front: None, names: &["local"], crash: None }
    });
}

#[test]
fn postgres_keeps_all_that_was_acknowledged_through_kills_of_hosts_and_of_itself() {
    let _alone = alone();
    let server = Arc::new(Postgres::start());
    run("postgres", QUICK, LEG, 1, |_| {
        let hosts = Hosts::new(on_postgres(server.fresh_database()), LEDGERS, CALLERS);
        Leg { hosts, front: None, names: &NAMES, crash: Some(crash_of(server.clone(), |server| server.restart())) }
    });
}

#[test]
fn redis_keeps_all_that_was_acknowledged_through_kills_of_hosts_and_of_itself() {
    let _alone = alone();
    run("redis", QUICK, LEG, 1, |_| {
        let server = Redis::start();
        let hosts = Hosts::new(on_redis(server.url()), LEDGERS, CALLERS);
        Leg { hosts, front: None, names: &NAMES, crash: Some(crash_of(Arc::new(server), |server| server.restart())) }
    });
}

#[test]
fn a_live_fleet_on_postgres_keeps_all_that_was_acknowledged_through_any_door_while_its_hosts_are_killed() {
    let _alone = alone();
    let server = Arc::new(Postgres::start());
    run("a live fleet on postgres", LIVE_QUICK, LEG, 1, |_| {
        live(&server.fresh_database(), crash_of(server.clone(), |server| server.restart()))
    });
}

#[test]
fn a_live_fleet_on_redis_keeps_all_that_was_acknowledged_through_any_door_while_its_hosts_are_killed() {
    let _alone = alone();
    run("a live fleet on redis", LIVE_QUICK, LEG, 1, |_| {
        let server = Arc::new(Redis::start());
        live(&server.url(), crash_of(server.clone(), |server| server.restart()))
    });
}

/// A live fleet with callers in front.
fn live(url: &str, crash: Crash) -> Leg {
    let url = url.to_owned();
    let mut hosts = Hosts::new(move |host| Place::live(&url, host, LIVE_LEASE, LIVE_LEASE), LEDGERS, 0);
    let front = hosts.put_in_front(LIVE_CALLERS);
    Leg { hosts, front: Some(front), names: &LIVE, crash: Some(crash) }
}

/// Kills a server, waits so long, and starts it again.
fn crash_of<S: Deref<Target = Server> + Send + Sync + 'static>(server: Arc<S>, restart: fn(&S)) -> Crash {
    Box::new(move |down| {
        server.kill9();
        std::thread::sleep(down);
        restart(&server);
    })
}

type Crash = Box<dyn Fn(Duration) + Send>;

/// Kills until it is enough, which is `quick` where that is asked for, `side_by_side` stores at a time.
fn run(store: &str, quick: u64, kills_of_leg: u64, side_by_side: u64, mut new_leg: impl FnMut(u64) -> Leg) {
    let kills_of_leg = number("LEG", kills_of_leg).max(1);
    let kills = number("KILLS", if std::env::var("QUICK").is_ok() { quick } else { 50 });
    let seed = number("SEED", 1);
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut total, mut of_store, mut requeued, mut killing) = (Verdict::default(), 0, 0, Duration::ZERO);
    let mut away = Duration::ZERO;
    let mut starts = Vec::new();
    let (mut done, mut legs) = (0, 0);
    while done < kills {
        // Each in a thread that lives as long as its processes: they die with it.
        let ended: Vec<Ended> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..side_by_side)
                .map(|nth| {
                    let share = (kills - done + side_by_side - 1 - nth) / side_by_side;
                    let (mut leg, random) = (new_leg(legs + nth), random.fork());
                    let run = format!("{store}, seed {seed}");
                    scope.spawn(move || leg.run(share.min(kills_of_leg), random, &run))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        });
        legs += side_by_side;
        let (first, last) = (ended.iter().map(|leg| leg.began).min(), ended.iter().map(|leg| leg.ended).max());
        killing += last.zip(first).map_or(Duration::ZERO, |(last, first)| last - first);
        for leg in ended {
            done += leg.kills;
            of_store += leg.of_store;
            away += leg.away;
            total.acknowledged += leg.verdict.acknowledged;
            requeued += leg.verdict.requeued;
            starts.extend(leg.starts);
        }
    }
    starts.sort_unstable();
    println!(
        "{store}: {kills} kills ({of_store} of the store), {total}; {requeued} suspects requeued; {} operations per kill, {:.0} kills a minute, {:.0} hosts a \
         minute while the store is there, {} ms a start",
        total.acknowledged as u64 / kills.max(1),
        kills as f64 * 60.0 / killing.as_secs_f64(),
        (kills - of_store) as f64 * 60.0 / killing.saturating_sub(away).as_secs_f64(),
        starts.get(starts.len() / 2).map_or(0, Duration::as_millis)
    );
}

/// The outcome of a leg.
struct Ended {
    kills: u64,
    /// Of these, of the store.
    of_store: u64,
    /// The time for which the store was away in all.
    away: Duration,
    /// The moments at which it was first worked on, and at which nothing more was killed.
    began: Instant,
    ended: Instant,
    /// The time of each host from its start until it worked.
    starts: Vec<Duration>,
    verdict: Verdict,
}

impl Leg {
    /// Kills so often, then settles the account.
    fn run(&mut self, kills: u64, mut random: fastrand::Rng, run: &str) -> Ended {
        let Leg { hosts, front, names, crash } = self;
        let operations = if front.is_some() { LIVE_OPERATIONS } else { OPERATIONS };
        hosts.start_all(names);
        let began = Instant::now();
        let (mut done, mut of_store, mut wanted, mut away) = (0, 0, 0, Duration::ZERO);
        let mut starts = Vec::new();
        while done < kills {
            hosts.prepare();
            wanted += random.usize(operations.clone());
            let end = Instant::now() + AT_MOST;
            while hosts.account.acknowledged() < wanted && Instant::now() < end {
                hosts.listen(end);
            }
            assert_eq!(hosts.ended(), None, "{run}: it ended by itself");
            done += 1;
            if let Some(crash) = crash.as_ref().filter(|_| done % STORE_EVERY == 0) {
                let crashed = Instant::now();
                crash(Duration::from_millis(random.u64(0..50)));
                (of_store, away) = (of_store + 1, away + crashed.elapsed());
                continue;
            }
            let host = names[random.usize(..names.len())];
            hosts.kill(host);
            if done % STORE_EVERY == STORE_EVERY / 2 && done < kills {
                // Once more, somewhere on its way up.
                hosts.spawn(host);
                std::thread::sleep(Duration::from_micros(random.u64(0..60_000)));
                hosts.kill(host);
                done += 1;
            }
            let killed = Instant::now();
            hosts.spawn(host);
            hosts.answer(host, "ready");
            starts.push(killed.elapsed());
        }
        let ended = Instant::now();
        let verdict = match front {
            Some(front) => {
                let sums = front.quiet();
                println!("{run}, through any door: {sums}, longest wait {:?}", sums.longest);
                hosts.settled_by("host-3", PATIENCE)
            }
            None => hosts.settled(names, PATIENCE),
        };
        verdict.assert_right(run);
        Ended { kills, of_store, away, began, ended, starts, verdict }
    }
}

#[test]
fn a_postgres_that_acknowledges_before_it_is_durable_is_caught() {
    let _alone = alone();
    let server = PostgresOptions::new().set("synchronous_commit", "off").start();
    for attempt in 1..=20 {
        let mut hosts = Hosts::new(on_postgres(server.fresh_database()), LEDGERS, CALLERS);
        NAMES.iter().for_each(|name| hosts.start(name));
        hosts.wait_acknowledged(500);
        server.kill9();
        server.restart();
        let verdict = hosts.settled(&NAMES, Duration::from_secs(2));
        if !verdict.lost.is_empty() {
            println!("postgres without synchronous_commit: caught at kill {attempt}: {verdict}");
            return;
        }
    }
    panic!("twenty kills of a server that does not wait for its disk, and nothing was found missing");
}

#[test]
fn a_redis_that_comes_back_empty_is_noticed_by_the_hosts_that_used_it() {
    let _alone = alone();
    let server = RedisOptions::new().set("appendonly", "no").start();
    let mut hosts = Hosts::new(on_redis(server.url()), LEDGERS, CALLERS);
    NAMES.iter().for_each(|name| hosts.start(name));
    hosts.wait_acknowledged(500);
    server.kill9();
    server.restart();
    for name in NAMES {
        // Of a host that had little of the machine something else may have been said before.
        let end = Instant::now() + PATIENCE;
        while !hosts.answer(name, "error").contains("has lost data") {
            assert!(Instant::now() < end, "{name} has not noticed it");
        }
    }
    // What was done before it may still have to be said. Then nothing more is acknowledged, neither from memory nor as if all had just
    // begun.
    for name in NAMES {
        hosts.tell(name, "quiet");
        hosts.answer(name, "quiet");
    }
    let acknowledged = hosts.account.acknowledged();
    for (name, ledger) in NAMES.iter().flat_map(|name| (0..LEDGERS).map(move |ledger| (name, ledger))) {
        hosts.tell(name, &format!("book ledger-{ledger} afterwards 0"));
        hosts.answer(name, "unbooked");
    }
    assert_eq!(hosts.account.acknowledged(), acknowledged);
    println!("redis without an append-only file: noticed after {acknowledged} acknowledged operations");
}
