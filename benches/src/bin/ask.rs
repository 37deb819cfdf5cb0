//! Request and reply in memory, beside five actor libraries and a hand-written actor.
//!
//! ```text
//! cargo run --release -p benches --bin ask [-- --quick]
//! cargo run --release -p benches --bin ask -- --only overload [--factor 20] [--seconds 120] [--runtime multi|current]
//! cargo run --release -p benches --bin ask -- --only failures|commits
//! cargo run --release -p benches --bin ask -- --ours one|hot|spread|new [--seconds 5] [--runtime multi|current]
//! ```
//!
//! The last runs nothing but our side of one workload: for a profiler, and for `ab`.

use std::time::{Duration, Instant};

use benches::commits::{Commits, Cost, commits};
use benches::failures::failures;
use benches::measure::{child_arguments, in_fresh_process, median};
use benches::overload::overload;
use benches::peers::Peer;
use benches::peers::actix::Actix;
use benches::peers::by_hand::ByHand;
use benches::peers::coerce::Coerce;
use benches::peers::kameo::Kameo;
use benches::peers::ours::{Ours, connection_bytes};
use benches::peers::ractor::Ractor;
use benches::peers::xtra::Xtra;
use benches::report::{Line, print_lines, print_table};
use benches::runner::{Kind, Runner};
use benches::workload::{Side, Workload, memory, ready};

/// One library, as the two things that are done with it.
struct Entry {
    name: &'static str,
    ready: fn(Kind) -> Box<dyn Side>,
    memory: fn(Kind, u64) -> (f64, f64),
}

fn entry<P: Peer>() -> Entry {
    Entry { name: P::NAME, ready: ready::<P>, memory: memory::<P> }
}

/// Ours first, then the peers, and last the limit, which is none.
fn entries() -> [Entry; 7] {
    [
        entry::<Ours>(),
        entry::<Kameo>(),
        entry::<Ractor>(),
        entry::<Actix>(),
        entry::<Xtra>(),
        entry::<Coerce>(),
        entry::<ByHand>(),
    ]
}

#[derive(Debug)]
struct Effort {
    rounds: usize,
    /// The time for which one side runs before the next has its turn.
    turn: Duration,
    /// The most instances a turn of *new* makes.
    new: u64,
    /// The number of instances that the memory is measured with.
    memory: u64,
}

// Many short turns rather than a few long ones: whatever else the machine does then falls on all sides alike.
const FULL: Effort = Effort { rounds: 101, turn: Duration::from_millis(5), new: 5_000, memory: 1_000_000 };
const QUICK: Effort = Effort { rounds: 21, turn: Duration::from_millis(5), new: 5_000, memory: 100_000 };

const USAGE: &str = "\
usage: ask [--quick]
       ask --only overload [--factor 20] [--seconds 120] [--runtime multi|current]
       ask --only failures|commits
       ask --ours one|hot|spread|new [--seconds 5] [--runtime multi|current]";

/// A part that is measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Only {
    Overload,
    Failures,
    Commits,
}

/// The measurements to be taken, as the arguments have it.
#[derive(Debug)]
struct Plan {
    effort: Effort,
    ours: Option<Workload>,
    only: Option<Only>,
    factor: f64,
    seconds: Option<f64>,
    runtime: Option<Kind>,
}

/// Reads the arguments; `None` if they cannot be meant.
fn parse(arguments: impl IntoIterator<Item = String>) -> Option<Plan> {
    let mut plan = Plan { effort: FULL, ours: None, only: None, factor: 20.0, seconds: None, runtime: None };
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => plan.effort = QUICK,
            "--ours" => {
                let name = arguments.next()?;
                plan.ours = Some(Workload::ALL.into_iter().find(|workload| workload.name() == name)?);
            }
            "--only" => {
                plan.only = Some(match arguments.next()?.as_str() {
                    "overload" => Only::Overload,
                    "failures" => Only::Failures,
                    "commits" => Only::Commits,
                    _ => return None,
                });
            }
            "--factor" => plan.factor = positive(&arguments.next()?)?,
            "--seconds" => plan.seconds = Some(positive(&arguments.next()?)?),
            "--runtime" => {
                let name = arguments.next()?;
                plan.runtime = Some(Kind::ALL.into_iter().find(|kind| kind.name() == name)?);
            }
            _ => return None,
        }
    }
    (plan.ours.is_none() || plan.only.is_none()).then_some(plan)
}

fn positive(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| *number > 0.0 && *number < 1e6)
}

fn main() {
    if let Some(arguments) = child_arguments() {
        return child(&arguments);
    }
    let Some(plan) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    let length = |otherwise: f64| Duration::from_secs_f64(plan.seconds.unwrap_or(otherwise));
    if let Some(workload) = plan.ours {
        return only_ours(workload, plan.runtime.unwrap_or(Kind::Current), length(5.0));
    }
    let effort = plan.effort;
    match plan.only {
        Some(Only::Overload) => {
            return only_overload(plan.factor, length(120.0), plan.runtime.unwrap_or(Kind::Multi));
        }
        Some(Only::Failures) => return print_lines(&of_failures(&effort)),
        Some(Only::Commits) => return print_lines(&of_commits(&effort)),
        None => {}
    }
    let mut lines = Vec::new();
    for kind in Kind::ALL {
        let times = times(kind, &effort);
        let bytes = bytes(kind, effort.memory);
        let mut columns: Vec<_> = Workload::ALL.into_iter().map(Workload::name).collect();
        columns.push("mem");
        let rows: Vec<_> = entries()
            .iter()
            .enumerate()
            .map(|(side, entry)| {
                let mut values: Vec<_> = times.iter().map(|times| Some(times[side])).collect();
                values.push(Some(bytes[side]));
                (entry.name.to_owned(), values)
            })
            .collect();
        let title = format!("runtime: {}; nanoseconds per request, bytes per instance", kind.name());
        print_table(&title, &columns, &rows);
        for (column, values) in columns.iter().zip(times.iter().chain([&bytes])) {
            lines.push(line(column, kind, values));
        }
    }
    let bytes = in_fresh_process(&["connections", &(effort.memory / 20).to_string()])[0];
    print_table("ours", &["bytes"], &[("idle connection".to_owned(), vec![Some(bytes)])]);
    lines.push(Line::new("connection_mem").number("ours", bytes));
    lines.extend(of_failures(&effort));
    lines.extend(of_commits(&effort));
    print_lines(&lines);
}

/// Ours, the best of the peers, and the limit, out of the values of all sides.
fn line(column: &str, kind: Kind, values: &[f64]) -> Line {
    let (ours, peers, limit) = (values[0], &values[1..values.len() - 1], values[values.len() - 1]);
    let best = (0..peers.len()).min_by(|a, b| peers[*a].total_cmp(&peers[*b])).expect("there are peers");
    Line::new(&format!("ask_{column}"))
        .text("runtime", kind.name())
        .number("ours", ours)
        .text("best_peer", entries()[1 + best].name)
        .number("best", peers[best])
        .number("limit", limit)
        .number("ratio", peers[best] / ours)
}

/// For each workload the nanoseconds per request of each side.
fn times(kind: Kind, effort: &Effort) -> Vec<Vec<f64>> {
    let mut sides: Vec<_> = entries().iter().map(|entry| (entry.ready)(kind)).collect();
    let mut times = Vec::new();
    for workload in Workload::ALL {
        let requests: Vec<_> = sides.iter_mut().map(|side| calibrate(&mut **side, workload, effort)).collect();
        let mut rounds = vec![Vec::new(); sides.len()];
        for _ in 0..effort.rounds {
            for ((side, requests), rounds) in sides.iter_mut().zip(&requests).zip(&mut rounds) {
                rounds.push(nanos(side.run(workload, *requests)));
            }
        }
        times.push(rounds.iter().map(|rounds| median(rounds)).collect());
    }
    times
}

/// The number of requests that fill a turn.
fn calibrate(side: &mut dyn Side, workload: Workload, effort: &Effort) -> u64 {
    let most = if workload == Workload::New { effort.new } else { u64::MAX };
    side.run(workload, 2_000);
    let nanos = nanos(side.run(workload, 5_000));
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive number far below 2^53")]
    let fitting = (effort.turn.as_nanos() as f64 / nanos) as u64;
    fitting.clamp(500, most)
}

fn nanos((requests, elapsed): (u64, Duration)) -> f64 {
    elapsed.as_nanos() as f64 / requests as f64
}

/// For each side the bytes per instance, each in a fresh process.
fn bytes(kind: Kind, instances: u64) -> Vec<f64> {
    let instances = instances.to_string();
    let measure = |entry: &Entry| in_fresh_process(&[entry.name, kind.name(), &instances])[0];
    entries().iter().map(measure).collect()
}

#[allow(clippy::panic, reason = "a child that is started wrongly has nothing to measure")]
fn child(arguments: &[String]) {
    if let [what, connections] = arguments
        && what == "connections"
    {
        return println!("{}", connection_bytes(connections.parse().expect("a number of connections")));
    }
    let [name, kind, instances] = arguments else { panic!("a child needs a side, a runtime and a number") };
    let entry = entries().into_iter().find(|entry| entry.name == name).expect("a side has this name");
    let kind = Kind::ALL.into_iter().find(|known| known.name() == kind).expect("a runtime has this name");
    let instances = instances.parse().expect("a number of instances");
    let (bytes, nanos) = (entry.memory)(kind, instances);
    println!("{bytes} {nanos}");
}

/// Runs our side of one workload alone, in turns of a tenth of a second, and prints the median of its turns.
fn only_ours(workload: Workload, kind: Kind, length: Duration) {
    let mut side = ready::<Ours>(kind);
    let effort = Effort { turn: Duration::from_millis(100), new: 100_000, ..FULL };
    let requests = calibrate(&mut *side, workload, &effort);
    let (started, mut turns) = (Instant::now(), Vec::new());
    while turns.is_empty() || started.elapsed() < length {
        turns.push(nanos(side.run(workload, requests)));
        // Each at once, for whoever ends this before its time.
        println!("{:.1} ns", turns[turns.len() - 1]);
    }
    let line = Line::new(&format!("ask_{}", workload.name()));
    print_lines(&[line
        .text("runtime", kind.name())
        .number("ours", median(&turns))
        .number("turns", turns.len() as f64)]);
}

/// Handlers that fail beside one that does not, on both runtimes.
fn of_failures(effort: &Effort) -> Vec<Line> {
    let lines = Kind::ALL.into_iter().flat_map(|kind| {
        let failures = failures(kind, effort.rounds);
        [("ask_err_kept", failures.kept), ("ask_err_rebuilt", failures.rebuilt)].map(|(name, nanos)| {
            let line = Line::new(name).text("runtime", kind.name());
            line.number("ours", nanos).number("ok", failures.ok).number("ratio", nanos / failures.ok)
        })
    });
    lines.collect()
}

/// Requests that record something beside one that does not, on both runtimes.
fn of_commits(effort: &Effort) -> Vec<Line> {
    let costs = Kind::ALL.map(|kind| (kind, commits(kind, effort.rounds)));
    let mut lines = Vec::new();
    for (name, of) in [("ask_put", (|costs| costs.put) as fn(Commits) -> Cost), ("ask_alarm", |costs| costs.alarm)] {
        for (kind, commits) in costs {
            let (cost, quiet) = (of(commits), commits.quiet);
            lines.push(
                Line::new(name)
                    .text("runtime", kind.name())
                    .text("store", "memory")
                    .number("ours", cost.nanos)
                    .number("cpu", cost.cpu)
                    .number("quiet", quiet.nanos)
                    .number("quiet_cpu", quiet.cpu)
                    .number("ratio", cost.nanos / quiet.nanos),
            );
        }
    }
    lines
}

/// Sends one instance more than it can handle.
fn only_overload(factor: f64, length: Duration, kind: Kind) {
    let outcome = Runner::tokio(kind).run(vec![overload(factor, length)]).0.remove(0);
    let line = Line::new("ask_overload")
        .text("runtime", kind.name())
        .number("factor", factor)
        .number("seconds", length.as_secs_f64())
        .number("alone", outcome.alone)
        .number("sent", outcome.sent)
        .number("done", outcome.done)
        .number("goodput", outcome.done / outcome.alone)
        .number("worst_second", outcome.worst_second / outcome.alone)
        .number("incarnations", outcome.lives as f64)
        .number("repeating_answered", outcome.answered as f64)
        .number("repeating_unknown", outcome.unknown as f64)
        .number("repeating_counted", outcome.counted as f64);
    print_lines(&[line]);
}
