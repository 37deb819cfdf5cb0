//! A request that another process answers: ours through the door of a host that does not own the instance, beside frames by hand, gRPC and HTTP/2.
//!
//! ```text
//! cargo run --release -p benches --bin forward [-- --quick]
//! cargo run --release -p benches --bin forward -- --only durable          right door and wrong door, on Postgres
//! cargo run --release -p benches --bin forward -- --side ours|tls|local|by-hand|by-tasks|grpc|http2 [--callers 64] [--seconds 5]
//! ```
//!
//! All sides share two processes: this one asks, the other one answers. The last form runs one side alone: for a profiler.

use std::net::{Ipv4Addr, TcpListener as Reserved};
use std::path::Path;
use std::time::{Duration, Instant};

use benches::links::Link;
use benches::links::by_hand::{self, ByHand};
use benches::links::ours::{Ours, Through, certificates};
#[cfg(feature = "rpc")]
use benches::links::{grpc, http2};
use benches::measure::{child_arguments, median};
use benches::other_process::OtherProcess;
use benches::report::{Line, print_lines, print_table};
use benches::stores::{self, Backend};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// So many ask at once.
const CALLERS: [usize; 3] = [1, 64, 1_000];

#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: usize,
    /// The time for which one side runs before the next has its turn.
    turn: Duration,
}

const FULL: Effort = Effort { rounds: 51, turn: Duration::from_millis(50) };
const QUICK: Effort = Effort { rounds: 11, turn: Duration::from_millis(30) };
/// A turn on a store, whose commits take long.
const DURABLE_TURN: Duration = Duration::from_millis(300);

const USAGE: &str = "\
usage: forward [--quick] [--only memory|durable]
       forward --side ours|tls|local|by-hand|by-tasks|grpc|http2 [--callers 64] [--seconds 5]";

/// The addresses at which the other process answers, and those at which hosts of this one do.
#[derive(Debug)]
struct Addresses {
    by_hand: String,
    by_tasks: String,
    grpc: String,
    http2: String,
    ours: [String; 2],
    tls: [String; 2],
    durable: [String; 2],
}

/// The number of addresses.
const ADDRESSES: usize = 10;

impl Addresses {
    /// Ports that are free.
    fn reserve() -> [String; ADDRESSES] {
        let bind = |_| Reserved::bind((Ipv4Addr::LOCALHOST, 0)).expect("there are free ports");
        // All are held until the last is known, so that no two are the same.
        let listeners: [Reserved; ADDRESSES] = std::array::from_fn(bind);
        listeners.each_ref().map(|listener| listener.local_addr().expect("it is bound").to_string())
    }

    fn of(list: [String; ADDRESSES]) -> Addresses {
        let [by_hand, by_tasks, grpc, http2, ours @ .., tls_0, tls_1, durable_0, durable_1] = list;
        Addresses { by_hand, by_tasks, grpc, http2, ours, tls: [tls_0, tls_1], durable: [durable_0, durable_1] }
    }
}

/// Asks: on a runtime, by so many callers, so often each. Tells how long it took.
type Run = Box<dyn Fn(&Runtime, usize, u64) -> Duration>;

/// One way to ask, as what is done with it.
struct Side {
    name: &'static str,
    run: Run,
}

impl Side {
    fn new(name: &'static str, link: impl Link) -> Side {
        let run = move |runtime: &Runtime, callers: usize, each: u64| {
            let started = Instant::now();
            let asking = (0..callers).map(|caller| {
                let link = link.clone();
                runtime.spawn(async move {
                    for _ in 0..each {
                        link.ask(caller).await;
                    }
                })
            });
            let asking: Vec<_> = asking.collect();
            runtime.block_on(async {
                for asking in asking {
                    asking.await.expect("nobody who asks fails");
                }
            });
            started.elapsed()
        };
        Side { name, run: Box::new(run) }
    }

    /// The microseconds of a request, if so many callers ask so often each.
    fn micros(&self, runtime: &Runtime, callers: usize, each: u64) -> f64 {
        (self.run)(runtime, callers, each).as_secs_f64() * 1e6 / (each * callers as u64) as f64
    }

    /// The number of requests of each caller that fill a turn.
    fn calibrate(&self, runtime: &Runtime, callers: usize, turn: Duration) -> u64 {
        self.micros(runtime, callers, 3);
        let micros = self.micros(runtime, callers, (500 / callers as u64).max(2));
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive number far below 2^53")]
        let each = (turn.as_secs_f64() * 1e6 / micros / callers as f64) as u64;
        each.max(1)
    }
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime can be started")
}

fn main() {
    let runtime = runtime();
    if let Some(arguments) = child_arguments() {
        return runtime.block_on(answer(&arguments));
    }
    let (mut effort, mut only, mut side, mut callers, mut seconds) = (FULL, None, None, 64, 5);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|number| number.parse::<u32>().ok()).filter(|number| *number > 0);
        match argument.as_str() {
            "--quick" => effort = QUICK,
            "--callers" => callers = number().unwrap_or_else(|| usage()) as usize,
            "--seconds" => seconds = number().unwrap_or_else(|| usage()),
            "--only" => {
                only = Some(
                    arguments.next().filter(|name| name == "memory" || name == "durable").unwrap_or_else(|| usage()),
                );
            }
            "--side" => side = arguments.next(),
            _ => usage(),
        }
    }
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    let (list, directory) = (Addresses::reserve(), tempfile::tempdir().expect("there is room"));
    certificates(directory.path());
    let addresses = Addresses::of(list.clone());
    let has_store = side.is_none() && wanted("durable");
    let place = runtime.block_on(async {
        match has_store {
            true => Some(stores::Postgres.fresh().await),
            false => None,
        }
    });
    let url = place.as_ref().and_then(|place| place.address()).unwrap_or_default();
    let directory = directory.path().to_str().expect("a temporary directory has such a name");
    let list: Vec<_> = list.iter().map(String::as_str).chain([directory, &url]).collect();
    let _other = runtime.block_on(async {
        let mut other = OtherProcess::start(&list);
        assert_eq!(other.hear().await.as_deref(), Some("ready"), "the other process has not started");
        other
    });
    if let Some(name) = side {
        let sides = runtime.block_on(sides(&addresses, Path::new(directory)));
        let Some(side) = sides.into_iter().find(|side| side.name == name) else { usage() };
        return alone(&runtime, &side, callers, Duration::from_secs(seconds.into()));
    }
    let mut lines = Vec::new();
    if wanted("memory") {
        let sides = runtime.block_on(sides(&addresses, Path::new(directory)));
        memory(&runtime, &sides, effort, &mut lines);
    }
    if let Some(place) = place {
        let ours = runtime.block_on(async { Ours::start(0, addresses.durable, Some(place.open().await), None).await });
        durable(&runtime, &ours, effort, &mut lines);
    }
    print_lines(&lines);
}

fn usage() -> ! {
    eprintln!("{USAGE}");
    std::process::exit(2)
}

/// The other process: answers at all addresses until its input ends.
async fn answer(arguments: &[String]) {
    let Some((list, [directory, url])) = arguments.split_first_chunk() else { usage() };
    let Addresses { by_hand, by_tasks, grpc, http2, ours, tls, durable } = Addresses::of(list.clone());
    let listen = async |address: &str| TcpListener::bind(address).await.expect("the port is still free");
    tokio::spawn(by_hand::serve(listen(&by_hand).await, false));
    tokio::spawn(by_hand::serve(listen(&by_tasks).await, true));
    #[cfg(feature = "rpc")]
    {
        tokio::spawn(grpc::serve(listen(&grpc).await));
        tokio::spawn(http2::serve(listen(&http2).await));
    }
    #[cfg(not(feature = "rpc"))]
    let _ = (grpc, http2);
    let mut hosts =
        vec![Ours::start(1, ours, None, None).await, Ours::start(1, tls, None, Some(Path::new(directory))).await];
    if !url.is_empty() {
        hosts.push(Ours::start(1, durable, Some(stores::Postgres.at(url).open().await), None).await);
    }
    println!("ready");
    // Nothing is said; it ends with whoever has started this.
    let _ = tokio::io::stdin().read(&mut [0]).await;
    drop(hosts);
}

/// All ways to ask the other process, ours first and the limits behind it; and that of this process alone.
async fn sides(addresses: &Addresses, directory: &Path) -> Vec<Side> {
    let Addresses { by_hand, by_tasks, ours, tls, .. } = addresses;
    let plain = Ours::start(0, ours.clone(), None, None).await;
    let guarded = Ours::start(0, tls.clone(), None, Some(directory)).await;
    let sides = vec![
        Side::new("ours", plain.way(Through::Wrong, false)),
        Side::new("by-hand", ByHand::connect(by_hand).await),
        Side::new("by-tasks", ByHand::connect(by_tasks).await),
        Side::new("tls", guarded.way(Through::Wrong, false)),
        Side::new("local", plain.way(Through::Right, false)),
    ];
    #[cfg(feature = "rpc")]
    let sides = {
        let grpc = Side::new("grpc", grpc::Grpc::connect(&addresses.grpc).await);
        let http2 = Side::new("http2", http2::Http2::connect(&addresses.http2).await);
        sides.into_iter().chain([grpc, http2]).collect()
    };
    sides
}

fn memory(runtime: &Runtime, sides: &[Side], effort: Effort, lines: &mut Vec<Line>) {
    let mut rows: Vec<_> = sides.iter().map(|side| (side.name.to_owned(), Vec::new())).collect();
    for callers in CALLERS {
        let each: Vec<_> = sides.iter().map(|side| side.calibrate(runtime, callers, effort.turn)).collect();
        let mut rounds = vec![Vec::new(); sides.len()];
        for _ in 0..effort.rounds {
            for ((side, each), rounds) in sides.iter().zip(&each).zip(&mut rounds) {
                rounds.push(side.micros(runtime, callers, *each));
            }
        }
        let micros: Vec<_> = rounds.iter().map(|rounds| median(rounds)).collect();
        let ours = micros[0];
        let mut line = Line::new(&format!("forward_{callers}")).number("ours", ours);
        for (side, micros) in sides.iter().zip(&micros).skip(1) {
            line = line.number(side.name, *micros);
        }
        // Above one where ours takes less time.
        for (side, micros) in sides.iter().zip(&micros).skip(1) {
            line = line.number(&format!("ratio_{}", side.name), micros / ours);
        }
        lines.push(line);
        for ((_, row), micros) in rows.iter_mut().zip(&micros) {
            row.push(Some(*micros));
        }
    }
    print_table("microseconds per request, by callers", &columns().each_ref().map(String::as_str), &rows);
}

/// Through both doors of a host whose requests are durable.
fn durable(runtime: &Runtime, ours: &Ours, effort: Effort, lines: &mut Vec<Line>) {
    let sides = [
        Side::new("right door", ours.way(Through::Right, true)),
        Side::new("wrong door", ours.way(Through::Wrong, true)),
    ];
    let mut rows: Vec<_> = sides.iter().map(|side| (side.name.to_owned(), Vec::new())).collect();
    for callers in CALLERS {
        let each = sides.each_ref().map(|side| side.calibrate(runtime, callers, DURABLE_TURN));
        let mut rounds = [Vec::new(), Vec::new()];
        for _ in 0..effort.rounds {
            for ((side, each), rounds) in sides.iter().zip(each).zip(&mut rounds) {
                rounds.push(1e6 / side.micros(runtime, callers, each));
            }
        }
        let [right, wrong] = rounds.each_ref().map(|rounds| median(rounds));
        let line = Line::new(&format!("forward_durable_{callers}")).text("store", "postgres");
        lines.push(line.number("ours", wrong).number("right_door", right).number("ratio", wrong / right));
        rows[0].1.push(Some(right));
        rows[1].1.push(Some(wrong));
    }
    let title = "Postgres: durable requests per second, by callers";
    print_table(title, &columns().each_ref().map(String::as_str), &rows);
}

fn columns() -> [String; 3] {
    CALLERS.map(|callers| callers.to_string())
}

/// Runs one side alone, in turns of a tenth of a second.
fn alone(runtime: &Runtime, side: &Side, callers: usize, length: Duration) {
    let each = side.calibrate(runtime, callers, Duration::from_millis(100));
    let (started, mut turns) = (Instant::now(), Vec::new());
    while turns.is_empty() || started.elapsed() < length {
        turns.push(side.micros(runtime, callers, each));
    }
    let line = Line::new(&format!("forward_{callers}")).text("side", side.name).number("micros", median(&turns));
    print_lines(&[line.number("requests", (turns.len() as u64 * each * callers as u64) as f64)]);
}
