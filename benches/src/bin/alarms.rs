//! Alarms on a store, beside what the store could do with nothing above it.
//!
//! ```text
//! cargo run --release -p benches --bin alarms -- --store memory|fjall [--quick] [--only NAME]
//! ```

use std::time::Duration;

use benches::alarms::{self, Running};
use benches::measure::{child_arguments, cpu_time, in_fresh_process, median, percentile, resident_bytes};
use benches::report::{Line, print_lines, print_table};
use benches::stores::{self, Backend, Ended};

/// How much is done of everything.
struct Effort {
    rounds: usize,
    /// How long alarms are set in each round.
    set: Duration,
    pending: u64,
    idle: Duration,
}

const FULL: Effort =
    Effort { rounds: 5, set: Duration::from_millis(1_500), pending: 1_000_000, idle: Duration::from_secs(20) };
const QUICK: Effort =
    Effort { rounds: 1, set: Duration::from_millis(500), pending: 100_000, idle: Duration::from_secs(5) };

const CALLERS: [u64; 3] = [1, 64, 1_000];
const BACKLOGS: [(&str, u64); 2] = [("alarm_due_20k", 20_000), ("alarm_due_100k", 100_000)];
const LATENESS_ALARMS: u64 = 10_000;
const LATENESS_SPAN: Duration = Duration::from_secs(5);
const BURST: u64 = 50_000;
/// From when alarms are set until the first of them is due; more on a slow disk.
const LEAD: Duration = Duration::from_secs(5);

const USAGE: &str = "usage: alarms --store memory|fjall [--quick] [--only set|due|lateness|burst|pending|idle]";

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be started");
    if let Some(arguments) = child_arguments() {
        return runtime.block_on(child(&arguments));
    }
    let (mut effort, mut store, mut only) = (FULL, None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => effort = QUICK,
            "--store" => store = arguments.next(),
            "--only" => only = arguments.next(),
            _ => return eprintln!("{USAGE}"),
        }
    }
    let Some(backend) = store.and_then(|store| backend(&store)) else { return eprintln!("{USAGE}") };
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    runtime.block_on(async {
        let mut lines = Vec::new();
        if wanted("set") {
            set(&*backend, &effort, &mut lines).await;
        }
        if wanted("due") {
            due(&*backend, &effort, &mut lines).await;
        }
        if wanted("lateness") {
            lateness(&*backend, &mut lines).await;
        }
        if wanted("burst") {
            burst(&*backend, &mut lines).await;
        }
        if wanted("pending") {
            pending(&*backend, &effort, &mut lines).await;
        }
        if wanted("idle") {
            idle(&*backend, &effort, &mut lines).await;
        }
        print_lines(&lines);
    });
}

fn backend(name: &str) -> Option<Box<dyn Backend>> {
    stores::all().into_iter().find(|backend| backend.name() == name)
}

fn line(name: &str, backend: &dyn Backend) -> Line {
    Line::new(name).text("store", backend.name())
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
fn rows(mean_batch: f64) -> usize {
    (mean_batch.round() as usize).max(1)
}

async fn set(backend: &dyn Backend, effort: &Effort, lines: &mut Vec<Line>) {
    let mut table = Vec::new();
    for callers in CALLERS {
        let (mut ours, mut raw, mut batches, mut waits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            let place = backend.fresh().await;
            let run = alarms::set(&*place, callers, effort.set).await;
            raw.push(place.raw_set(rows(run.mean_batch)).await);
            ours.push(run.rate);
            batches.push(run.mean_batch);
            waits.extend(run.waits);
        }
        let (ours, raw, batch) = (median(&ours), median(&raw), median(&batches));
        waits.sort_by(f64::total_cmp);
        let (p50, p99) = (percentile(&waits, 0.5), percentile(&waits, 0.99));
        table.push((format!("{callers} callers"), [ours, raw, batch, ours / raw, p50, p99].map(Some).to_vec()));
        lines.push(
            line(&format!("alarm_set_{callers}"), backend)
                .number("ours", ours)
                .number("raw", raw)
                .number("raw_batch", batch)
                .number("raw_ratio", ours / raw)
                .number("p50_ms", p50)
                .number("p99_ms", p99),
        );
    }
    let columns = ["per s", "raw", "batch", "ratio", "p50 ms", "p99 ms"];
    print_table(&format!("{}: alarms set, durable before the reply", backend.name()), &columns, &table);
}

async fn due(backend: &dyn Backend, effort: &Effort, lines: &mut Vec<Line>) {
    let mut table = Vec::new();
    for (name, alarms) in BACKLOGS {
        let (mut ours, mut unclean, mut raw, mut batches) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.rounds.min(3) {
            let place = backend.fresh().await;
            alarms::fill_due(&*place, alarms, Ended::Released).await;
            let (rate, batch) = alarms::due(&*place, alarms).await;
            ours.push(rate);
            batches.push(batch);
            let place = backend.fresh().await;
            alarms::fill_due(&*place, alarms, Ended::Released).await;
            raw.push(place.raw_drain(rows(batch)).await);
            let place = backend.fresh().await;
            alarms::fill_due(&*place, alarms, Ended::Killed).await;
            unclean.push(alarms::due(&*place, alarms).await.0);
        }
        let (ours, unclean, raw, batch) = (median(&ours), median(&unclean), median(&raw), median(&batches));
        table.push((format!("{alarms} due"), [ours, unclean, raw, batch, ours / raw].map(Some).to_vec()));
        lines.push(
            line(name, backend)
                .number("ours", ours)
                .number("unclean", unclean)
                .number("raw", raw)
                .number("raw_batch", batch)
                .number("raw_ratio", ours / raw),
        );
    }
    let columns = ["per s", "unclean", "raw", "batch", "ratio"];
    print_table(&format!("{}: backlog loaded, fired and completed", backend.name()), &columns, &table);
}

async fn lateness(backend: &dyn Backend, lines: &mut Vec<Line>) {
    let mut lead = LEAD;
    let (p50, p99, max) = loop {
        let place = backend.fresh().await;
        match alarms::lateness(&*place, LATENESS_ALARMS, LATENESS_SPAN, lead).await {
            Some(late) => break late,
            None => lead *= 2,
        }
    };
    let title = format!("{}: {LATENESS_ALARMS} alarms over {LATENESS_SPAN:?}, ms late", backend.name());
    print_table(&title, &["p50", "p99", "max"], &[(String::new(), [p50, p99, max].map(Some).to_vec())]);
    lines.push(line("alarm_lateness", backend).number("p50_ms", p50).number("p99_ms", p99).number("max_ms", max));
}

async fn burst(backend: &dyn Backend, lines: &mut Vec<Line>) {
    let mut lead = LEAD;
    let burst = loop {
        let place = backend.fresh().await;
        match alarms::burst(&*place, BURST, lead).await {
            Some(burst) => break burst,
            None => lead *= 2,
        }
    };
    let values = [burst.first, burst.all, burst.lost as f64];
    let title = format!("{}: {BURST} alarms at one instant", backend.name());
    print_table(&title, &["first ms", "all ms", "lost"], &[(String::new(), values.map(Some).to_vec())]);
    lines.push(
        line("burst_50k", backend)
            .number("first_ms", burst.first)
            .number("all_ms", burst.all)
            .number("lost", burst.lost as f64),
    );
}

async fn pending(backend: &dyn Backend, effort: &Effort, lines: &mut Vec<Line>) {
    let place = backend.fresh().await;
    let address = place.address();
    if address.is_some() {
        alarms::fill_pending(&*place, effort.pending).await;
    }
    let alarms = effort.pending.to_string();
    let megabytes = in_fresh_process(&["pending", backend.name(), &address.unwrap_or_default(), &alarms])[0];
    let title = format!("{}: resident memory with {alarms} alarms stored", backend.name());
    print_table(&title, &["MB"], &[(String::new(), vec![Some(megabytes)])]);
    lines.push(line("pending_1m", backend).number("mb", megabytes));
}

async fn idle(backend: &dyn Backend, effort: &Effort, lines: &mut Vec<Line>) {
    let place = backend.fresh().await;
    let address = place.address();
    if address.is_some() {
        alarms::fill_pending(&*place, u64::from(stores::SHARDS)).await;
    }
    let (alarms, seconds) = (stores::SHARDS.to_string(), effort.idle.as_secs().to_string());
    let busy = in_fresh_process(&["idle", backend.name(), &address.unwrap_or_default(), &alarms, &seconds])[0];
    let title = format!("{}: processor time while idle, {} shards", backend.name(), stores::SHARDS);
    print_table(&title, &["ms per s"], &[(String::new(), vec![Some(busy)])]);
    lines.push(line("idle_cpu", backend).number("ms_per_s", busy));
}

/// A fresh process with a host on a store that holds alarms for later.
async fn child(arguments: &[String]) {
    /// How long a host takes to load what it keeps in memory, and the store to put its files in order.
    const SETTLE: Duration = Duration::from_secs(5);
    let [what, store, address, alarms, rest @ ..] = arguments else { panic!("a child needs four arguments") };
    let backend = backend(store).expect("a store has this name");
    let place = backend.at(address);
    if address.is_empty() {
        alarms::fill_pending(&*place, alarms.parse().expect("a number of alarms")).await;
    }
    let running = Running::start(&*place).await;
    tokio::time::sleep(SETTLE).await;
    match (what.as_str(), rest) {
        ("pending", _) => println!("{}", resident_bytes() as f64 / 1e6),
        ("idle", [seconds]) => {
            let seconds: u64 = seconds.parse().expect("a number of seconds");
            let before = cpu_time();
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            let used = cpu_time().saturating_sub(before);
            println!("{}", used.as_secs_f64() * 1e3 / seconds as f64);
        }
        _ => panic!("a child is asked for memory or idleness"),
    }
    running.end().await;
}
