//! Live fleets of which something is wrong: a clock, the address of a host, or who calls. It harms nobody else, and no request that is answered.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use alarm_backends::testing::servers::{Redis, dies_with_parent};
use system_tests::process::{Callers, Front, Heard, Hosts, PATIENCE, Place, Sums};

use super::{Kind, LEDGERS, World};

/// Long enough for a busy machine: nobody's is to run out.
const LEASE: Duration = Duration::from_secs(5);
/// The time for which a host that cannot be reached is tried.
const SHORT: Duration = Duration::from_secs(2);
const SETTLE: Duration = Duration::from_millis(250);
const CALLERS: Callers = Callers { callers: 48, pace: Duration::from_millis(100), is_once: false, silence: PATIENCE };
const THREE: [&str; 3] = ["a", "b", "c"];
/// In milliseconds.
const HOUR: i64 = 3_600_000;

/// The place of the rows of a host.
fn place(url: &str, host: &str) -> Place {
    Place::live(url, host, LEASE, SETTLE)
}

/// The same with a lease that is soon over.
fn short(url: &str, host: &str) -> Place {
    Place::live(url, host, SHORT, SETTLE)
}

/// Three hosts that own all between them, and callers in front of them.
fn three(place: impl Fn(&str) -> Place + Send + 'static) -> (Hosts, Front) {
    let mut hosts = Hosts::new(place, LEDGERS, 0);
    let front = hosts.put_in_front(CALLERS);
    hosts.start_all(&THREE);
    hosts.wait_owned(&THREE);
    (hosts, front)
}

/// Waits until so much more was answered.
fn answered(hosts: &mut Hosts, front: &Front, more: u64) {
    let (end, before) = (Instant::now() + PATIENCE, front.sums().answered);
    while front.sums().answered < before + more {
        assert!(Instant::now() < end, "{}", front.sums());
        hosts.pass(Duration::from_millis(10));
    }
}

/// The requests that were not answered with what was asked for.
fn failed(sums: &Sums) -> u64 {
    sums.refused.values().sum::<u64>() + sums.unknown + sums.cut
}

on_each_server! {
    fn a_host_whose_clock_is_an_hour_off_does_not_start_and_where_one_steps_by_an_hour_nothing_is_lost(world: World) {
        let url = world.url.clone();
        let (mut hosts, mut front) = three(move |host| place(&url, host));
        for ahead in [HOUR, -HOUR] {
            hosts.set_ahead(ahead);
            hosts.spawn("d");
            let said = hosts.answer("d", "refused");
            assert!(said.contains("clock") && said.contains("more than 60s"), "{said}");
            hosts.kill("d");
            assert_eq!(hosts.members("a").into_keys().collect::<Vec<_>>(), THREE, "it has left");
        }
        hosts.set_ahead(0);
        // While they work.
        hosts.tell("a", &format!("ahead {HOUR}"));
        hosts.tell("b", &format!("ahead {}", -HOUR));
        // What was on its way to it is back.
        hosts.wait_owned(&THREE);
        let owned = THREE.map(|host| hosts.owned(host));
        answered(&mut hosts, &front, 500);
        hosts.pass(LEASE / 2);
        assert_eq!(THREE.map(|host| hosts.owned(host)), owned, "who owns what is a matter of the store's clock");
        let sums = front.quiet();
        assert_eq!(failed(&sums), 0, "{sums}, such as {:?}", sums.texts);
        // What was set by the clock that is ahead is due by that one.
        let end = Instant::now() + PATIENCE;
        loop {
            let counts = hosts.tally("a");
            if counts.booked == counts.fired + counts.cancelled {
                break;
            }
            assert!(Instant::now() < end, "{counts:?}");
            hosts.pass(Duration::from_millis(20));
        }
        // What waits for the clock that went back fires at the next owner.
        hosts.settled_by("d", PATIENCE).assert_right("with clocks that stepped by an hour");
    }
}

#[test]
fn a_host_at_a_wrong_address_keeps_its_part_and_is_unreachable_to_others_until_the_address_is_right() {
    let server = Redis::start();
    let url = server.url();
    let normal = url.clone();
    let (mut hosts, mut front) = three(move |host| short(&normal, host));
    let heard = front.listen();
    let right = hosts.members("a");
    let nowhere = "127.0.0.1:1".to_owned();
    for (which, address) in [("where nobody answers", nowhere), ("of another host", right["a"].address.clone())] {
        let before = front.sums();
        hosts.drain("c");
        let wrong = (url.clone(), address.clone());
        hosts.set_place(move |host| short(&wrong.0, host).advertising(&wrong.1));
        hosts.start("c");
        assert_eq!(hosts.members("a")["c"].address, address);
        // It is handed its part all the same, and answers for it and for all others at its own door.
        hosts.wait_owned(&THREE);
        heard.try_iter().for_each(drop);
        let mut doors = BTreeSet::new();
        let end = Instant::now() + PATIENCE;
        let is_unreachable = |sums: &Sums| sums.refused.get("Unreachable") > before.refused.get("Unreachable");
        while doors.len() < 7 || !is_unreachable(&front.sums()) {
            assert!(Instant::now() < end, "{which}: {doors:?}, {}", front.sums());
            hosts.pass(Duration::from_millis(10));
            doors.extend(heard.try_iter().map(|Heard { door, by, .. }| (door, by)));
        }
        let to_it = doors.iter().filter(|(door, by)| by == "c" && door != "c").count();
        assert_eq!(to_it, 0, "{which}: nobody reaches it");
        let words = &front.sums().texts["Unreachable"];
        assert!(words.contains("c, which owns the instance, cannot be reached"), "{which}: {words}");
    }
    hosts.drain("c");
    let normal = url.clone();
    hosts.set_place(move |host| short(&normal, host));
    hosts.start("c");
    hosts.wait_owned(&THREE);
    // Whoever asked before may hear of it yet.
    let end = Instant::now() + PATIENCE;
    while !heard.try_iter().any(|heard| heard.door == "a" && heard.by == "c") {
        assert!(Instant::now() < end, "{}", front.sums());
        hosts.pass(Duration::from_millis(10));
    }
    let sums = front.quiet();
    println!("redis: with a host at a wrong address, {sums}");
    // A busy machine may have let a lease run out.
    let others = sums.refused.keys().filter(|kind| !["Unreachable", "LeaseLost"].contains(&kind.as_str()));
    assert_eq!(others.count(), 0, "{sums}, such as {:?}", sums.texts);
    assert_eq!((sums.unknown, sums.cut, sums.failed_at_doors_that_leave()), (0, 0, 0), "{sums:?}");
    hosts.settled_by("d", PATIENCE).assert_right("with a host at a wrong address");
}

/// The variable that tells a stranger where to connect.
const ADDRESS: &str = "STRANGER_ADDRESS";
const STRANGERS: usize = 10_000;
/// The most memory that they may cost a host: a few hundred are waited for at a time.
const MOST_MEMORY: u64 = 64 << 20;

/// Connects without end, keeps what it has, and says how much that is.
#[test]
#[ignore = "a process of the test below: runs only when that starts it"]
fn stranger() {
    let Ok(address) = std::env::var(ADDRESS) else { return };
    let words: [&[u8]; 4] = [b"", b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4], &[0, 0, 0, 20]];
    let connect = |nth: usize| {
        let mut stream = TcpStream::connect(&address).unwrap();
        // The host may have closed it already.
        let _ = stream.write_all(words[nth % words.len()]);
        stream
    };
    let kept: Vec<_> = (0..STRANGERS).map(connect).collect();
    println!("\nopen {}", kept.len());
    // Until whoever started it has seen enough.
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn ten_thousand_connections_of_strangers_keep_nobody_out_and_cost_a_host_little() {
    let server = Redis::start();
    let url = server.url();
    let (mut hosts, mut front) = three(move |host| place(&url, host));
    answered(&mut hosts, &front, 100);
    let address = hosts.members("a")["a"].address.clone();
    let before = hosts.memory("a");
    // With as many files as a process may have.
    let shell = ["sh", "-c", "ulimit -n $(ulimit -Hn); exec \"$@\"", "sh"].map(str::to_owned);
    let this = std::env::current_exe().unwrap().display().to_string();
    let test = ["trouble::stranger", "--exact", "--ignored", "--nocapture"].map(str::to_owned);
    let line: Vec<_> = dies_with_parent().into_iter().chain(shell).chain([this]).chain(test).collect();
    let mut stranger = Command::new(&line[0]);
    stranger.args(&line[1..]).env(ADDRESS, address).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut stranger = stranger.spawn().unwrap();
    let mut said = BufReader::new(stranger.stdout.take().unwrap()).lines().map_while(Result::ok);
    let open = said.find_map(|line| line.strip_prefix("open ")?.parse::<usize>().ok());
    assert_eq!(open, Some(STRANGERS), "needs a limit of more than {STRANGERS} open files: ulimit -Hn");
    let memory = hosts.memory("a");
    // All of them are there.
    answered(&mut hosts, &front, 300);
    drop(stranger.stdin.take());
    assert!(stranger.wait().unwrap().success());
    let sums = front.quiet();
    let grown = memory.zip(before).map(|(now, before)| now.saturating_sub(before));
    println!(
        "redis: {STRANGERS} connections of strangers to one of three hosts cost it {:?} KiB; {sums}",
        grown.map(|grown| grown >> 10)
    );
    assert!(grown.is_none_or(|grown| grown < MOST_MEMORY), "{grown:?}");
    assert_eq!(failed(&sums), 0, "{sums}, such as {:?}", sums.texts);
    hosts.settled_by("d", PATIENCE).assert_right("with strangers");
}
