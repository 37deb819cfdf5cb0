//! Flows on a store, beside alarms on the same store, and beside other libraries for durable functions.
//!
//! ```text
//! cargo run --release -p benches --bin flows -- --store memory|fjall|postgres|redis [--quick] [--only NAME]
//! cargo run --release -p benches --bin flows -- --http [--store fjall|postgres] [--quick] [--only NAME]
//! cargo run --release -p benches --bin flows -- --rhai [--store NAME] [--quick]    scripts alone; on memory if nothing is said
//! ```

use std::sync::Arc;
use std::time::Duration;

use benches::alarms;
use benches::flows::scripts::{self, Both, In};
use benches::flows::{self, Hosts, Running, http};
use benches::measure::{child_arguments, in_fresh_process, median, percentile, resident_bytes};
use benches::report::{Line, print_lines, print_table};
use benches::stores::{self, Backend};

/// Amounts of everything that is done.
struct Effort {
    rounds: usize,
    /// The time for which flows are run in each round.
    run: Duration,
    /// Flows that are called one after the other.
    singles: u64,
    steps: u64,
    parked: u64,
    /// Flows whose memory is measured.
    resident: u64,
    peers: Duration,
    /// Event streams that are open at once.
    streams: u64,
}

const FULL: Effort = Effort {
    rounds: 5,
    run: Duration::from_secs(2),
    singles: 3_000,
    steps: 3_000,
    parked: 100_000,
    resident: 50_000,
    peers: Duration::from_secs(5),
    streams: 10_000,
};
const QUICK: Effort = Effort {
    rounds: 1,
    run: Duration::from_secs(1),
    singles: 500,
    steps: 500,
    parked: 10_000,
    resident: 10_000,
    peers: Duration::from_secs(2),
    streams: 1_000,
};

const CALLERS: [usize; 2] = [64, 512];
const REPLAYED: u64 = 5_000;
const LATENESS_SPAN: Duration = Duration::from_secs(5);
/// From when flows are started until the first of them is due; more on a slow machine.
const LEAD: Duration = Duration::from_secs(10);

const USAGE: &str = "usage: flows --store memory|fjall|postgres|redis [--quick]
             [--only commits|rate|post|resume|step|lateness|memory|replay|takeover|rhai]
       flows --rhai [--store NAME] [--quick]
       flows --http [--store fjall|postgres] [--quick] [--only rate|ack|forged|beside|streams]";

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be started");
    if let Some(arguments) = child_arguments() {
        return runtime.block_on(child(&arguments));
    }
    let (mut effort, mut store, mut only, mut by_http) = (FULL, None, None, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => effort = QUICK,
            "--http" => by_http = true,
            "--rhai" => only = Some("rhai".to_owned()),
            "--store" => store = arguments.next(),
            "--only" => only = arguments.next(),
            _ => return eprintln!("{USAGE}"),
        }
    }
    if only.as_deref() == Some("rhai") {
        store.get_or_insert("memory".to_owned());
    }
    // Of Redis the mode that is the default of its servers.
    let is_meant = |backend: &&dyn Backend| {
        store.as_deref() == Some(backend.name()) && backend.mode().is_none_or(|mode| mode == "everysec")
    };
    let backends = stores::all();
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    if by_http {
        // A server of streams is another process, which has to find the store.
        let names = match store.as_deref() {
            None => vec!["fjall", "postgres"],
            Some(name @ ("fjall" | "postgres")) => vec![name],
            Some(_) => return eprintln!("{USAGE}"),
        };
        return runtime.block_on(async {
            let mut lines = Vec::new();
            for backend in backends.iter().filter(|backend| names.contains(&backend.name())) {
                over_http(&**backend, &effort, wanted, &mut lines).await;
            }
            print_lines(&lines);
        });
    }
    let Some(backend) = backends.iter().map(|backend| &**backend).find(|backend| is_meant(backend)) else {
        return eprintln!("{USAGE}");
    };
    runtime.block_on(async {
        flows::probe(&*backend.fresh().await).await;
        let mut lines = Vec::new();
        if wanted("commits") {
            commits(backend, &mut lines).await;
        }
        if wanted("rate") {
            rate(backend, &effort, &mut lines).await;
        }
        if wanted("post") {
            rate_by_post(backend, &effort, &mut lines).await;
        }
        if wanted("resume") {
            resume(backend, &effort, &mut lines).await;
        }
        if wanted("step") {
            step(backend, &effort, &mut lines).await;
        }
        if wanted("lateness") {
            lateness(backend, &effort, &mut lines).await;
        }
        if wanted("memory") {
            memory(backend, &effort, &mut lines).await;
        }
        if wanted("replay") {
            replay(backend, &mut lines).await;
        }
        if wanted("takeover") {
            takeover(backend, &effort, &mut lines).await;
        }
        if wanted("rhai") {
            scripts_beside_rust(backend, &effort, &mut lines).await;
        }
        print_lines(&lines);
    });
}

fn line(name: &str, backend: &dyn Backend) -> Line {
    Line::new(name).text("store", backend.name())
}

async fn commits(backend: &dyn Backend, lines: &mut Vec<Line>) {
    let mut rows = Vec::new();
    let cases =
        [("flow_commits", Hosts::One, 0), ("flow_commits_step", Hosts::One, 1), ("flow_commits_post", Hosts::Two, 0)];
    for (name, hosts, steps) in cases {
        let commits = flows::commits(&*backend.fresh().await, hosts, steps).await;
        rows.push((name.to_owned(), vec![Some(commits)]));
        lines.push(line(name, backend).number("ours", commits));
    }
    print_table(&format!("{}: commits per flow", backend.name()), &["commits"], &rows);
}

/// Alarms set per second by 64 callers, in the same run.
async fn alarms_set(backend: &dyn Backend, callers: u64, effort: &Effort) -> f64 {
    let mut rates = Vec::new();
    for _ in 0..effort.rounds {
        rates.push(alarms::set(&*backend.fresh().await, callers, effort.run).await.rate);
    }
    median(&rates)
}

/// The same by other libraries, on the same server.
#[cfg(feature = "durable")]
async fn peers(backend: &dyn Backend, effort: &Effort) -> Vec<(&'static str, f64)> {
    use benches::flows::peers;

    if backend.name() != "postgres" {
        return Vec::new();
    }
    let (first, second) = (backend.fresh().await, backend.fresh().await);
    let url = |place: &dyn stores::Place| place.address().expect("a database has a URL");
    let durare = peers::durare(&url(&*first), 64, effort.peers).await;
    vec![("durare", durare), ("dbos", peers::dbos(&url(&*second), 64, effort.peers).await)]
}

#[cfg(not(feature = "durable"))]
async fn peers(_: &dyn Backend, effort: &Effort) -> Vec<(&'static str, f64)> {
    println!("built without the feature `durable`: no peer is run for {:?}", effort.peers);
    Vec::new()
}

async fn rate(backend: &dyn Backend, effort: &Effort, lines: &mut Vec<Line>) {
    let set = alarms_set(backend, 64, effort).await;
    let mut ours = [0.0; 2];
    for (at, callers) in CALLERS.into_iter().enumerate() {
        let mut rates = Vec::new();
        for _ in 0..effort.rounds {
            rates.push(flows::rate(&*backend.fresh().await, Hosts::One, callers, effort.run).await);
        }
        ours[at] = median(&rates);
    }
    let mut rows = vec![
        ("flows, 64 callers".to_owned(), vec![Some(ours[0])]),
        ("flows, 512 callers".to_owned(), vec![Some(ours[1])]),
        ("alarms set, 64 callers".to_owned(), vec![Some(set)]),
    ];
    let mut best: Option<(&str, f64)> = None;
    for (name, rate) in peers(backend, effort).await {
        rows.push((format!("{name}, 64 callers"), vec![Some(rate)]));
        if best.is_none_or(|(_, best)| rate > best) {
            best = Some((name, rate));
        }
    }
    let title = format!("{}: flows started, called and over", backend.name());
    print_table(&title, &["per s"], &rows);
    let mut line = line("flows_per_s", backend)
        .number("ours", ours[0])
        .number("ours_512", ours[1])
        .number("alarm_set_64", set)
        .number("set_ratio", ours[0] / set);
    if let Some((name, rate)) = best {
        line = line.text("peer", name).number("best", rate).number("ratio", ours[0] / rate);
    }
    lines.push(line);
}

async fn rate_by_post(backend: &dyn Backend, effort: &Effort, lines: &mut Vec<Line>) {
    let (mut rows, mut line) = (Vec::new(), line("flows_per_s_post", backend));
    for (callers, key) in CALLERS.into_iter().zip(["ours", "ours_512"]) {
        let mut rates = Vec::new();
        for _ in 0..effort.rounds {
            rates.push(flows::rate(&*backend.fresh().await, Hosts::Two, callers, effort.run).await);
        }
        let rate = median(&rates);
        rows.push((format!("{callers} callers"), vec![Some(rate)]));
        line = line.number(key, rate);
    }
    print_table(&format!("{}: flows called by post", backend.name()), &["per s"], &rows);
    lines.push(line);
}

fn times(name: &str, backend: &dyn Backend, sorted: &[f64], rows: &mut Vec<(String, Vec<Option<f64>>)>) -> Line {
    let (p50, p99) = (percentile(sorted, 0.5), percentile(sorted, 0.99));
    rows.push((name.to_owned(), vec![Some(p50), Some(p99)]));
    line(name, backend).number("p50_ms", p50).number("p99_ms", p99)
}

async fn resume(backend: &dyn Backend, effort: &Effort, lines: &mut Vec<Line>) {
    let mut set = alarms::set(&*backend.fresh().await, 1, effort.run).await.waits;
    set.sort_by(f64::total_cmp);
    let own = flows::resume(&*backend.fresh().await, Hosts::One, effort.singles).await;
    let posted = flows::resume(&*backend.fresh().await, Hosts::Two, effort.singles).await;
    let mut rows = Vec::new();
    let ratio = |share| percentile(&own.ack, share) / percentile(&set, share);
    lines.push(times("flow_resume", backend, &own.resume, &mut rows));
    lines.push(
        times("flow_ack", backend, &own.ack, &mut rows)
            .number("set_ratio", ratio(0.5))
            .number("set_ratio_p99", ratio(0.99)),
    );
    lines.push(times("flow_ack_post", backend, &posted.ack, &mut rows));
    lines.push(times("flow_resume_post", backend, &posted.resume, &mut rows));
    rows.push(("an alarm set".to_owned(), vec![Some(percentile(&set, 0.5)), Some(percentile(&set, 0.99))]));
    let title = format!("{}: from a call to the flow's next line, and to its acknowledgement, ms", backend.name());
    print_table(&title, &["p50", "p99"], &rows);
}

async fn step(backend: &dyn Backend, effort: &Effort, lines: &mut Vec<Line>) {
    let mut rows = Vec::new();
    for (name, flows, set) in [("flow_step", 1, 1), ("flow_step_64", 64, 64)] {
        let set = alarms_set(backend, set, effort).await;
        let (mut rates, mut commits) = (Vec::new(), 0.0);
        for _ in 0..effort.rounds {
            let (rate, each) = flows::steps(&*backend.fresh().await, flows, effort.steps).await;
            rates.push(rate);
            commits = each;
        }
        let rate = median(&rates);
        rows.push((format!("{flows} flows"), vec![Some(rate), Some(set), Some(rate / set)]));
        let mut line = line(name, backend).number("ours", rate).number("set_ratio", rate / set);
        if flows == 1 {
            line = line.number("commits", commits);
        }
        lines.push(line);
    }
    print_table(&format!("{}: steps", backend.name()), &["per s", "alarms set", "ratio"], &rows);
}

async fn lateness(backend: &dyn Backend, effort: &Effort, lines: &mut Vec<Line>) {
    let mut lead = LEAD;
    let late = loop {
        match flows::lateness(&*backend.fresh().await, effort.parked, LATENESS_SPAN, lead).await {
            Some(late) => break late,
            None => lead *= 2,
        }
    };
    let title = format!("{}: limits of {} parked flows over {LATENESS_SPAN:?}, ms late", backend.name(), effort.parked);
    print_table(&title, &["p50", "p99", "max"], &[(String::new(), [late.p50, late.p99, late.max].map(Some).to_vec())]);
    let line = line("flow_timeout_lateness", backend);
    lines.push(line.number("p50_ms", late.p50).number("p99_ms", late.p99).number("max_ms", late.max));
}

async fn memory(backend: &dyn Backend, effort: &Effort, lines: &mut Vec<Line>) {
    let (place, empty) = (backend.fresh().await, backend.fresh().await);
    let flows = effort.resident.to_string();
    let measure = |what: &str, place: &dyn stores::Place| {
        in_fresh_process(&[what, backend.name(), &place.address().unwrap_or_default(), &flows])[0]
    };
    let in_memory = measure("parked", &*place);
    let mut row = vec![Some(in_memory)];
    let mut line = line("flow_parked_bytes", backend).number("ours", in_memory);
    if place.address().is_some() {
        let passivated = (measure("resident", &*place) - measure("resident", &*empty)) / effort.resident as f64;
        row.push(Some(passivated));
        line = line.number("passivated", passivated);
    }
    print_table(
        &format!("{}: bytes per parked flow", backend.name()),
        &["in memory", "passivated"],
        &[(String::new(), row)],
    );
    lines.push(line);
}

async fn replay(backend: &dyn Backend, lines: &mut Vec<Line>) {
    let (rate, alone) = flows::replay(&*backend.fresh().await, REPLAYED).await;
    let title = format!("{}: operations replayed per second, of a flow of {REPLAYED}", backend.name());
    print_table(
        &title,
        &["per s"],
        &[("from the store".to_owned(), vec![Some(rate)]), ("engine".to_owned(), vec![Some(alone)])],
    );
    lines.push(line("flow_replay", backend).number("ours", rate).number("engine", alone));
}

async fn takeover(backend: &dyn Backend, effort: &Effort, lines: &mut Vec<Line>) {
    let parked = effort.parked / 10;
    let millis = flows::takeover(&*backend.fresh().await, parked, 100).await;
    let title = format!("{}: from a start until 100 steps run again, {parked} flows parked", backend.name());
    print_table(&title, &["ms"], &[(String::new(), vec![Some(millis)])]);
    lines.push(line("flow_takeover", backend).number("ms", millis));
}

/// Clients that are kept alive.
const CLIENTS: usize = 64;
/// Connections that send half a header, and then nothing.
const HALF_SENT: usize = 1_000;
/// Calls beside them, which are over before the time for a header is.
const CALLS_BESIDE: u64 = 1_000;

async fn over_http(backend: &dyn Backend, effort: &Effort, wanted: impl Fn(&str) -> bool, lines: &mut Vec<Line>) {
    let mut rows = Vec::new();
    let mut row = |what: &str, value: f64| rows.push((what.to_owned(), vec![Some(value)]));
    if wanted("rate") {
        let (mut within, mut rates, mut each) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            within.push(flows::rate(&*backend.fresh().await, Hosts::One, CLIENTS, effort.run).await);
            let (rate, cpu) = http::rate(&*backend.fresh().await, CLIENTS, effort.run).await;
            rates.push(rate);
            each.push(cpu);
        }
        let (within, rate, each) = (median(&within), median(&rates), median(&each));
        row("flows per s", rate);
        row("within the process", within);
        row("µs of processors for each", each);
        let line = line("flows_per_s_http", backend).number("ours", rate).number("within", within);
        lines.push(line.number("cpu_us", each));
    }
    if wanted("ack") {
        let (within, by_http) = http::acknowledged(&*backend.fresh().await, effort.singles).await;
        let [within, p50] = [&within, &by_http].map(|times| percentile(times, 0.5));
        let p99 = percentile(&by_http, 0.99);
        row("acknowledged, p50 ms", p50);
        row("acknowledged, p99 ms", p99);
        row("within the process, p50 ms", within);
        let line = line("callback_ack_http", backend).number("p50_ms", p50).number("p99_ms", p99);
        lines.push(line.number("flow_ack_p50_ms", within).number("more_ms", p50 - within));
    }
    if wanted("forged") {
        let forged = http::forged(&*backend.fresh().await, CLIENTS, effort.run).await;
        row("forged tokens refused per s", forged.rate);
        row("calls of the store meanwhile", forged.calls as f64);
        row("calls of the store before", forged.calls_before as f64);
        let line = line("forged_per_s", backend).number("ours", forged.rate);
        lines.push(line.number("store_calls", forged.calls as f64).number("calls_before", forged.calls_before as f64));
    }
    if wanted("beside") {
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            let (one, other) = http::beside(&*backend.fresh().await, CALLS_BESIDE, HALF_SENT).await;
            alone.push(percentile(&one, 0.99));
            beside.push(percentile(&other, 0.99));
        }
        let (alone, beside) = (median(&alone), median(&beside));
        row("calls, p99 ms", alone);
        row("beside half-sent requests, p99 ms", beside);
        let line = line("half_sent_p99", backend).number("ms", beside).number("alone_ms", alone);
        lines.push(line.number("ratio", beside / alone));
    }
    if wanted("streams") {
        let place = backend.fresh().await;
        http::leave_parked(&*place, effort.streams).await;
        let address = place.address().expect("another process finds it");
        let (bytes, streams) = http::stream_bytes(backend.name(), &address, effort.streams).await;
        row("bytes per idle event stream", bytes);
        lines.push(line("sse_bytes", backend).number("ours", bytes).number("streams", streams as f64));
    }
    print_table(&format!("{}: over HTTP", backend.name()), &[""], &rows);
}

/// Scripts with one call and one callback beside the same flows in Rust, in turns; and the CPU time of twenty operations.
async fn scripts_beside_rust(backend: &dyn Backend, effort: &Effort, lines: &mut Vec<Line>) {
    const FLOWS: u32 = 500;
    let (mut rhai, mut rust) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        rust.push(scripts::rate(&*backend.fresh().await, In::Rust, 64, effort.run).await);
        rhai.push(scripts::rate(&*backend.fresh().await, In::Rhai, 64, effort.run).await);
    }
    let (rhai, rust) = (median(&rhai), median(&rust));
    // Its server ends with it.
    let place = backend.fresh().await;
    let both = Both::start(&*place).await;
    let (of_rust, of_rhai) = (both.twenty(In::Rust, FLOWS).await, both.twenty(In::Rhai, FLOWS).await);
    both.end().await;
    drop(place);
    let rows = vec![
        ("flows per s, 64 callers".to_owned(), vec![Some(rhai), Some(rust), Some(rhai / rust)]),
        ("CPU of twenty operations, ms".to_owned(), vec![Some(of_rhai), Some(of_rust), Some(of_rhai / of_rust)]),
    ];
    print_table(&format!("{}: scripts, and the same in Rust", backend.name()), &["Rhai", "Rust", "ratio"], &rows);
    lines.push(line("scripts_per_s", backend).number("ours", rhai).number("rust", rust).number("ratio", rhai / rust));
    lines.push(line("script_cpu", backend).number("ms", of_rhai).number("rust_ms", of_rust));

    let (place, empty) = (backend.fresh().await, backend.fresh().await);
    if place.address().is_some() {
        let flows = effort.resident.to_string();
        let measure = |what: &str, place: &dyn stores::Place| {
            in_fresh_process(&[what, backend.name(), &place.address().unwrap_or_default(), &flows])[0]
        };
        measure("scripts_parked", &*place);
        let passivated = (measure("scripts", &*place) - measure("scripts", &*empty)) / effort.resident as f64;
        let title = format!("{}: bytes per passivated script", backend.name());
        print_table(&title, &["bytes"], &[(String::new(), vec![Some(passivated)])]);
        lines.push(line("script_passivated_bytes", backend).number("ours", passivated));
    }
}

/// A fresh process: the memory that parked flows take in it, or that its host has on a store that holds them, or that streams of them take.
#[allow(clippy::panic, reason = "a child that is started wrongly has nothing to measure")]
async fn child(arguments: &[String]) {
    /// The time that a host takes to load what it keeps in memory, and the store to put its files in order.
    const SETTLE: Duration = Duration::from_secs(3);
    let [what, store, address, flows] = arguments else { panic!("a child needs four arguments") };
    let backend = stores::all().into_iter().find(|backend| backend.name() == store).expect("a store has this name");
    let place = backend.at(address);
    let flows: u64 = flows.parse().expect("a number of flows");
    if what == "streams" {
        return http::serve_streams(&*place, flows).await;
    }
    if what.starts_with("scripts") {
        let both = Both::start(&*place).await;
        if what == "scripts_parked" {
            both.park(flows).await;
        } else {
            tokio::time::sleep(SETTLE).await;
        }
        println!("{}", resident_bytes());
        return both.end().await;
    }
    let running = Arc::new(Running::start(&*place, Hosts::One).await);
    match what.as_str() {
        "parked" => {
            let before = resident_bytes();
            running.park(flows).await;
            println!("{}", resident_bytes().saturating_sub(before) as f64 / flows as f64);
        }
        "resident" => {
            tokio::time::sleep(SETTLE).await;
            println!("{}", resident_bytes());
        }
        _ => panic!("a child is asked for one of these things"),
    }
    Arc::into_inner(running).expect("nobody else is left").end().await;
}
