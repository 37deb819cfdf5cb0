//! The whole library under a deterministic simulation: fleets that crash, stand still, lose their store and change, used by
//! clients at random, on virtual time.
//!
//! Each seed is one run, with its own fleet and faults, and repeats exactly. `tests/run simulation` takes about twenty seconds;
//! `MINUTES=n` and `SEEDS=n` say how much longer, `FROM=n` with which seed to begin, and `SEED=n` repeats one run and tells more of
//! it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use stable_interfaces::testing::{Counts, Faults, Run, Simulation};
use system_tests::exercise::Exercise;
use system_tests::flow_exercise::FlowExercise;

/// Fewer are no test, however slow the machine.
const FEWEST: u64 = 40;
/// One in so many is run twice, to see whether it repeats.
const REPEATED: u64 = 16;

/// A simulation in which one of these never happens tests less than it says. The first runs have the same seeds each time.
const MUST_HAPPEN: [&str; 64] = [
    "crash before Claim was answered",
    "crash after Claim was answered",
    "crash before Renew was answered",
    "crash after Renew was answered",
    "crash before Commit was answered",
    "crash after Commit was answered",
    "crash before Load was answered",
    "crash after Load was answered",
    "crash before Read was answered",
    "crash after Read was answered",
    "crash before Post was answered",
    "crash before Release was answered",
    "crash between calls",
    "crash while it drained",
    "drain",
    "drain past its deadline",
    "drop",
    "pause",
    "pause of more than two leases",
    "host whose wall is off from the start",
    "cordon that flaps",
    "step of a wall clock",
    "second host of a name",
    "change of the host list",
    "store down",
    "store out of a host's reach",
    "a part of the store away",
    "store that answers a host nothing",
    "hints lost",
    "hints held up",
    "calls that were not answered",
    "hanging Commit",
    "streams of hints cut",
    "failed before Commit",
    "failed after Commit",
    "late arrival of Commit",
    "late arrival of Claim",
    "failed after Claim",
    "failed after Renew",
    "failed after Post",
    "slow way back from Commit",
    "panic of a value that was dropped",
    "panic of a value that was shown",
    "look back by a value that was dropped",
    "look back by a value that was shown",
    "cordon",
    "a host joins or leaves",
    "crash before a shard is leaving",
    "crash while a shard is leaving",
    "crash while a shard is closing",
    "crash while a shard is released",
    "crash while a shard is claimed",
    "crash before a request was sent",
    "crash before a request arrived",
    "crash before an answer was sent",
    "crash before an answer arrived",
    "link cut",
    "link cut one way",
    "slow link",
    "call in vain",
    "frame lost",
    "frame late",
    "request known by its number",
    "request of a host that is dead",
];

/// The same of what was acknowledged, or has to be met by who asks.
const MUST_BE_ANSWERED: [&str; 11] = [
    "request with a key",
    "request with a key again",
    "request with a key that was given up",
    "request with a key whose outcome was not known",
    "key of another message",
    "message on a connection",
    "connection of an instance that moved",
    "connection whose link was lost",
    "request of a process that is no host",
    "request with a key of a process that is no host",
    "message on a connection of a process that is no host",
];

/// The number in an environment variable.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is to be a number")))
}

fn simulation(seed: u64) -> Simulation {
    Simulation::new(seed).hosts(2 + seed % 3).length(Duration::from_secs(600)).faults(Faults::ALL)
}

/// The sum of all runs.
#[derive(Default)]
struct Sum {
    runs: u64,
    repeated: u64,
    crashes: u64,
    ambiguous: u64,
    handed_over: u64,
    forwarded: u64,
    host_time: Duration,
    operations: Counts,
    faults: Counts,
    violations: u64,
}

impl Sum {
    fn add(&mut self, run: &Run) {
        self.runs += 1;
        self.crashes += run.crashes;
        self.ambiguous += run.ambiguous_commits;
        self.handed_over += run.handed_over;
        self.forwarded += run.forwarded;
        self.host_time += run.host_time;
        self.operations.merge(&run.operations);
        self.faults.merge(&run.faults);
        self.violations += u64::try_from(run.violations.len()).unwrap();
    }

    fn print(&self, took: Duration) {
        let hours = self.host_time.as_secs_f64() / 3_600.0;
        let per_minute = |n: f64| n / took.as_secs_f64() * 60.0;
        println!("operations acknowledged:");
        for (kind, count) in self.operations.iter() {
            println!("  {count:>9}  {kind}");
        }
        println!("what failed:");
        for (kind, count) in self.faults.iter() {
            println!("  {count:>9}  {kind}");
        }
        println!("seeds: {}, of which {} twice with the same trace", self.runs, self.repeated);
        println!("took: {:.1} s", took.as_secs_f64());
        println!("host-hours: {hours:.1}, {:.0} per minute", per_minute(hours));
        let operations = f64::from(u32::try_from(self.operations.total()).unwrap());
        println!("operations: {operations}, {:.0} per host-hour", operations / hours);
        println!(
            "crashes: {}, {:.0} per minute",
            self.crashes,
            per_minute(f64::from(u32::try_from(self.crashes).unwrap()))
        );
        let ambiguous = f64::from(u32::try_from(self.ambiguous).unwrap());
        println!("ambiguous commits: {ambiguous}, {:.0} per minute", per_minute(ambiguous));
        println!("shards handed over: {}, requests taken for other hosts: {}", self.handed_over, self.forwarded);
        println!("violations: {}", self.violations);
    }
}

/// The seeds that run, and since when.
type UnderWay = Mutex<BTreeMap<u64, Instant>>;

/// No run takes this long, on whatever machine: its thread waits for itself.
const FOR_EVER: Duration = Duration::from_secs(180);

/// Ends the process when a run does not end, as one does whose thread waits for a lock that it holds.
fn watch(under_way: &Weak<UnderWay>) {
    while let Some(under_way) = under_way.upgrade() {
        let stuck = under_way.lock().iter().find(|(_, since)| since.elapsed() > FOR_EVER).map(|(seed, _)| *seed);
        if let Some(seed) = stuck {
            // What a test prints is shown when it has ended.
            let said = format!("seed {seed} stands still; repeat it with: SEED={seed} tests/run simulation");
            let _shown = writeln!(std::io::stderr(), "{said}");
            std::process::exit(101);
        }
        drop(under_way);
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn report(run: &Run) {
    for violation in &run.violations {
        println!("seed {}: {violation}", run.seed);
    }
    if !run.violations.is_empty() {
        println!("repeat it with: SEED={} tests/run simulation", run.seed);
    }
}

#[test]
fn whatever_fails_no_promise_is_broken() {
    let began = Instant::now();
    let sum = Mutex::new(Sum::default());
    let under_way = Arc::new(UnderWay::default());
    let watched = Arc::downgrade(&under_way);
    std::thread::spawn(move || watch(&watched));
    let one = |seed: u64, twice: bool| {
        under_way.lock().insert(seed, Instant::now());
        let simulation = simulation(seed);
        let run = if twice { simulation.run_twice(Exercise::default) } else { simulation.run(Exercise::default()) };
        under_way.lock().remove(&seed);
        report(&run);
        let mut sum = sum.lock();
        sum.add(&run);
        sum.repeated += u64::from(twice);
    };
    if let Some(seed) = number("SEED") {
        one(seed, true);
    } else {
        let first = number("FROM").unwrap_or(1);
        let quick = std::env::var_os("QUICK").is_some();
        let (fewest, limit) = match (number("SEEDS"), number("MINUTES")) {
            (Some(seeds), _) => (seeds, Duration::ZERO),
            (None, Some(minutes)) => (FEWEST, Duration::from_secs(60 * minutes)),
            (None, None) => (FEWEST, Duration::from_secs(if quick { 5 } else { 20 })),
        };
        let next = AtomicU64::new(0);
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(2));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let n = next.fetch_add(1, Ordering::SeqCst);
                        if n >= fewest && began.elapsed() >= limit {
                            return;
                        }
                        one(first + n, n.is_multiple_of(REPEATED));
                    }
                });
            }
        });
    }
    let sum = sum.into_inner();
    sum.print(began.elapsed());
    assert_eq!(sum.violations, 0, "promises were broken; the seeds are above");
    if number("SEED").is_none() && number("FROM").is_none() && sum.runs >= FEWEST {
        for what in MUST_HAPPEN {
            assert!(sum.faults.get(what) > 0, "{what} never happened");
        }
        for what in MUST_BE_ANSWERED {
            assert!(sum.operations.get(what) > 0, "{what} never happened");
        }
    }
    let hours = sum.host_time.as_secs_f64() / 3_600.0;
    let operations = f64::from(u32::try_from(sum.operations.total()).unwrap());
    assert!(operations / hours >= 1_000.0, "only {:.0} operations per host-hour", operations / hours);
}

#[test]
fn whatever_fails_no_step_of_a_flow_runs_again_once_its_result_is_kept_and_no_call_is_lost_or_comes_twice() {
    let began = Instant::now();
    let quick = std::env::var_os("QUICK").is_some();
    let first = number("SEED").or(number("FROM")).unwrap_or(1);
    let (fewest, limit) = match (number("SEED"), number("SEEDS"), number("MINUTES")) {
        (Some(_), _, _) => (1, Duration::ZERO),
        (None, Some(seeds), _) => (seeds, Duration::ZERO),
        (None, None, Some(minutes)) => (FEWEST, Duration::from_secs(60 * minutes)),
        (None, None, None) => (if quick { 4 } else { FEWEST }, Duration::from_secs(if quick { 2 } else { 10 })),
    };
    let (next, sum) = (AtomicU64::new(0), Mutex::new(Sum::default()));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(2));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    if n >= fewest && began.elapsed() >= limit {
                        return;
                    }
                    let run = simulation(first + n).length(Duration::from_secs(300)).run(FlowExercise::default());
                    report(&run);
                    sum.lock().add(&run);
                }
            });
        }
    });
    let sum = sum.into_inner();
    let count = |kind| sum.operations.get(kind);
    println!(
        "flows: {} seeds in {:.1} s, {} started, {} called, {} called by post or again, {} too late, {} crashes, violations: {}",
        sum.runs,
        began.elapsed().as_secs_f64(),
        count("flow started"),
        count("flow called"),
        count("flow called by post or again"),
        count("flow called too late"),
        sum.crashes,
        sum.violations
    );
    assert_eq!(sum.violations, 0, "promises were broken; the seeds are above");
    for kind in ["flow started", "flow called", "flow called by post or again", "flow called too late"] {
        assert!(count(kind) >= 5 * sum.runs, "{kind} hardly happened");
    }
}
