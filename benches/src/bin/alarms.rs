//! Alarms on a store, beside what the store could do with nothing above it, and beside the job queues of other crates.
//!
//! ```text
//! cargo run --release -p benches --bin alarms -- --store memory|fjall|postgres|redis [--quick] [--only NAME]
//! ```

use std::time::Duration;

use benches::alarms::{self, LatenessRun, Running};
use benches::measure::{child_arguments, cpu_time, in_fresh_process, median, percentile, resident_bytes};
use benches::queues;
use benches::report::{Line, print_lines, print_table};
use benches::stores::{self, Backend, Ended};

/// Amounts of everything that is done.
struct Effort {
    rounds: usize,
    /// The time for which alarms are set in each round.
    set: Duration,
    pending: u64,
    idle: Duration,
}

const FULL: Effort =
    Effort { rounds: 5, set: Duration::from_millis(1_500), pending: 1_000_000, idle: Duration::from_secs(20) };
const QUICK: Effort =
    Effort { rounds: 1, set: Duration::from_millis(500), pending: 100_000, idle: Duration::from_secs(5) };

const CALLERS: [u64; 3] = [1, 64, 1_000];
const BACKLOGS: [(&str, u64); 3] =
    [("alarm_due_20k", 20_000), ("alarm_due_100k", 100_000), ("alarm_due_200k", 200_000)];
const SIZE_ROUNDS: u32 = 10;
/// From the end of a round until its size is taken, in which the server may clear up.
const SIZE_PAUSE: Duration = Duration::from_secs(2);
const SIZE_ALARMS: u64 = 100_000;
const LATENESS_ALARMS: u64 = 10_000;
const LATENESS_SPAN: Duration = Duration::from_secs(5);
const BURST: u64 = 50_000;
/// From when alarms are set until the first of them is due; more on a slow disk.
const LEAD: Duration = Duration::from_secs(5);

const USAGE: &str = "usage: alarms --store memory|fjall|postgres|redis [--quick]
              [--only set|due|lateness|burst|pending|idle|startup|size]";

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
    let backends: Vec<_> =
        stores::all().into_iter().filter(|backend| store.as_deref() == Some(backend.name())).collect();
    if backends.is_empty() {
        return eprintln!("{USAGE}");
    }
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    runtime.block_on(async {
        let mut lines = Vec::new();
        for backend in &backends {
            let backend = &**backend;
            if wanted("set") {
                set(backend, &effort, &mut lines).await;
            }
            if wanted("due") {
                due(backend, &effort, &mut lines).await;
            }
            if wanted("lateness") {
                lateness(backend, &mut lines).await;
            }
            if wanted("burst") {
                burst(backend, &mut lines).await;
            }
            if wanted("pending") {
                pending(backend, &effort, &mut lines).await;
            }
            if wanted("idle") {
                idle(backend, &effort, &mut lines).await;
            }
            if wanted("startup") {
                startup(backend, &effort, &mut lines).await;
            }
            if wanted("size") {
                size(backend, &effort, &mut lines).await;
            }
        }
        print_lines(&lines);
    });
}

/// Tells a child which store is meant: its name and its mode.
fn title(backend: &dyn Backend) -> String {
    backend.mode().map_or_else(|| backend.name().to_owned(), |mode| format!("{} {mode}", backend.name()))
}

fn line(name: &str, backend: &dyn Backend) -> Line {
    let line = Line::new(name).text("store", backend.name());
    match backend.mode() {
        Some(mode) => line.text("mode", mode),
        None => line,
    }
}

/// A peer's figure.
struct Best {
    name: &'static str,
    rate: f64,
}

/// Prints what the peers did and gives the best of them.
fn best(title: &str, peers: Vec<(&'static str, f64)>) -> Option<Best> {
    if peers.is_empty() {
        return None;
    }
    let rows: Vec<_> = peers.iter().map(|(name, rate)| ((*name).to_owned(), vec![Some(*rate)])).collect();
    print_table(title, &["per s"], &rows);
    let best = peers.into_iter().max_by(|(_, a), (_, b)| a.total_cmp(b))?;
    Some(Best { name: best.0, rate: best.1 })
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
fn rows(mean_batch: f64) -> usize {
    (mean_batch.round() as usize).max(1)
}

async fn set(backend: &dyn Backend, effort: &Effort, lines: &mut Vec<Line>) {
    let mut table = Vec::new();
    for callers in CALLERS {
        let (mut ours, mut raw, mut batches, mut waits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut singles = None;
        for round in 0..effort.rounds {
            let place = backend.fresh().await;
            let run = alarms::set(&*place, callers, effort.set).await;
            raw.push(place.raw_set(rows(run.mean_batch)).await);
            if callers == 64 && round == 0 {
                singles = place.singles().await;
            }
            ours.push(run.rate);
            batches.push(run.mean_batch);
            waits.extend(run.waits);
        }
        let (ours, raw, batch) = (median(&ours), median(&raw), median(&batches));
        let mut peers = Vec::new();
        if callers <= 64 {
            for queue in backend.queues().await {
                peers.push((queue.name(), queues::set(&*queue, callers, effort.set * 2).await));
            }
        }
        let best = best(&format!("{}: {callers} callers, jobs added", title(backend)), peers);
        waits.sort_by(f64::total_cmp);
        let (p50, p99) = (percentile(&waits, 0.5), percentile(&waits, 0.99));
        table.push((format!("{callers} callers"), [ours, raw, batch, ours / raw, p50, p99].map(Some).to_vec()));
        let mut line = line(&format!("alarm_set_{callers}"), backend)
            .number("ours", ours)
            .number("raw", raw)
            .number("raw_batch", batch)
            .number("raw_ratio", ours / raw)
            .number("p50_ms", p50)
            .number("p99_ms", p99);
        if let Some(singles) = singles {
            line = line.number("raw_singles", singles);
        }
        if let Some(best) = best {
            line = line.text("peer", best.name).number("best", best.rate).number("ratio", ours / best.rate);
        }
        lines.push(line);
    }
    let columns = ["per s", "raw", "batch", "ratio", "p50 ms", "p99 ms"];
    print_table(&format!("{}: alarms set, durable before the reply", title(backend)), &columns, &table);
}

async fn due(backend: &dyn Backend, effort: &Effort, lines: &mut Vec<Line>) {
    let mut table = Vec::new();
    let mut rates = Vec::new();
    let mut longest = 0;
    for (queue, jobs) in backend.due_queues().await {
        longest = longest.max(jobs);
        rates.push((queue.name(), queues::due(&*queue, jobs).await));
    }
    let first = rates.first().map(|(_, rate)| *rate);
    let best = best(&format!("{}: a backlog of up to {longest} jobs worked off", title(backend)), rates);
    for (name, alarms) in BACKLOGS {
        // The longest is for those who fail at it.
        if alarms > 100_000 && backend.mode().is_none() {
            continue;
        }
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
        let mut line = line(name, backend)
            .number("ours", ours)
            .number("unclean", unclean)
            .number("raw", raw)
            .number("raw_batch", batch)
            .number("raw_ratio", ours / raw);
        if let (Some(best), Some(first)) = (&best, first) {
            line = line
                .text("best_peer", best.name)
                .number("best", best.rate)
                .number("ratio_best", ours / best.rate)
                .number("ratio", ours / first);
        }
        lines.push(line);
    }
    let columns = ["per s", "unclean", "raw", "batch", "ratio"];
    print_table(&format!("{}: backlog loaded, fired and completed", title(backend)), &columns, &table);
}

async fn lateness(backend: &dyn Backend, lines: &mut Vec<Line>) {
    let mut lead = LEAD;
    let late = loop {
        let place = backend.fresh().await;
        match alarms::lateness(&*place, LATENESS_ALARMS, LATENESS_SPAN, lead).await {
            Some(late) => break late,
            None => lead *= 2,
        }
    };
    let row = |name: &str, late: &LatenessRun| (name.to_owned(), [late.p50, late.p99, late.max].map(Some).to_vec());
    let mut rows = vec![row("ours", &late)];
    if let Some(queue) = backend.timers() {
        rows.push(row(queue.name(), &queues::lateness(&*queue, LATENESS_ALARMS, LATENESS_SPAN).await));
    }
    let title = format!("{}: {LATENESS_ALARMS} alarms over {LATENESS_SPAN:?}, ms late", title(backend));
    print_table(&title, &["p50", "p99", "max"], &rows);
    let line = line("alarm_lateness", backend);
    lines.push(line.number("p50_ms", late.p50).number("p99_ms", late.p99).number("max_ms", late.max));
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
    let title = format!("{}: {BURST} alarms at one instant", title(backend));
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
    let megabytes = in_fresh_process(&["pending", &title(backend), &address.unwrap_or_default(), &alarms])[0];
    let title = format!("{}: resident memory with {alarms} alarms stored", title(backend));
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
    let busy = in_fresh_process(&["idle", &title(backend), &address.unwrap_or_default(), &alarms, &seconds])[0];
    let title = format!("{}: processor time while idle, {} shards", title(backend), stores::SHARDS);
    print_table(&title, &["ms per s"], &[(String::new(), vec![Some(busy)])]);
    lines.push(line("idle_cpu", backend).number("ms_per_s", busy));
}

async fn startup(backend: &dyn Backend, effort: &Effort, lines: &mut Vec<Line>) {
    let place = backend.fresh().await;
    alarms::fill_startup(&*place, effort.pending).await;
    let millis = alarms::startup(&*place).await;
    let title = format!("{}: from start to the first overdue alarm, {} stored", title(backend), effort.pending);
    print_table(&title, &["ms"], &[(String::new(), vec![Some(millis)])]);
    lines.push(line("startup_1m", backend).number("ms", millis));
}

async fn size(backend: &dyn Backend, effort: &Effort, lines: &mut Vec<Line>) {
    let place = backend.fresh().await;
    if place.megabytes().await.is_none() {
        return;
    }
    let (mut sizes, alarms) = (Vec::new(), SIZE_ALARMS.min(effort.pending));
    // A server looks for dead rows once a minute, and ten rounds are over before that.
    place.tidy_often(true).await;
    for _ in 0..SIZE_ROUNDS {
        alarms::fill_due(&*place, alarms, Ended::Released).await;
        alarms::due(&*place, alarms).await;
        tokio::time::sleep(SIZE_PAUSE).await;
        sizes.push(place.megabytes().await.unwrap_or_default());
    }
    place.tidy_often(false).await;
    let rows: Vec<_> =
        sizes.iter().enumerate().map(|(round, size)| ((round + 1).to_string(), vec![Some(*size)])).collect();
    print_table(&format!("{}: size after rounds of {alarms} alarms set and fired", title(backend)), &["MB"], &rows);
    let (first, last) = (sizes.first().copied().unwrap_or_default(), sizes.last().copied().unwrap_or_default());
    lines.push(line("table_size", backend).number("first_mb", first).number("last_mb", last));
}

/// A fresh process with a host on a store that holds alarms for later.
#[allow(clippy::panic, reason = "a child that is started wrongly has nothing to measure")]
async fn child(arguments: &[String]) {
    /// The time that a host takes to load what it keeps in memory, and the store to put its files in order.
    const SETTLE: Duration = Duration::from_secs(5);
    let [what, store, address, alarms, rest @ ..] = arguments else { panic!("a child needs four arguments") };
    let backend = stores::all().into_iter().find(|backend| title(&**backend) == *store).expect("a store has this name");
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
