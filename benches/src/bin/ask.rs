//! Request and reply in memory, beside five actor libraries and a hand-written actor.
//!
//! ```text
//! cargo run --release -p benches --bin ask [-- --quick]
//! ```

use std::time::Duration;

use benches::measure::{child_arguments, in_fresh_process, median};
use benches::peers::Peer;
use benches::peers::actix::Actix;
use benches::peers::by_hand::ByHand;
use benches::peers::coerce::Coerce;
use benches::peers::kameo::Kameo;
use benches::peers::ours::{Ours, connection_bytes};
use benches::peers::ractor::Ractor;
use benches::peers::xtra::Xtra;
use benches::report::{Line, print_lines, print_table};
use benches::runner::Kind;
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

struct Effort {
    rounds: usize,
    /// How long one side runs before the next has its turn.
    turn: Duration,
    /// The most instances a turn of *new* makes.
    new: u64,
    /// How many instances the memory is measured with.
    memory: u64,
}

// Many short turns rather than a few long ones: whatever else the machine does then falls on all sides alike.
const FULL: Effort = Effort { rounds: 101, turn: Duration::from_millis(5), new: 5_000, memory: 1_000_000 };
const QUICK: Effort = Effort { rounds: 21, turn: Duration::from_millis(5), new: 5_000, memory: 100_000 };

fn main() {
    if let Some(arguments) = child_arguments() {
        return child(&arguments);
    }
    let (mut effort, mut only_ours) = (FULL, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => effort = QUICK,
            // For a profiler: nothing but our side of one workload, for a while.
            "--ours" => only_ours = Some(arguments.next().unwrap_or_default()),
            _ => return eprintln!("usage: ask [--quick] [--ours one|hot|spread|new]"),
        }
    }
    if let Some(name) = only_ours {
        return profile(&name);
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

/// How many requests fill a turn.
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

fn profile(name: &str) {
    let workload =
        Workload::ALL.into_iter().find(|workload| workload.name() == name).expect("a workload has this name");
    let mut side = ready::<Ours>(Kind::Current);
    for _ in 0..10 {
        println!("{:.1} ns", nanos(side.run(workload, if workload == Workload::New { 100_000 } else { 3_000_000 })));
    }
}
