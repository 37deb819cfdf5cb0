//! A live fleet whose hosts are killed, come back, join, leave and are restarted one after the other, while all its instances are asked without a pause.
//!
//! ```text
//! cargo run --release -p benches --bin moves -- --store postgres|redis [--lease 2000] [--quick] [--only NAME]
//! cargo run --release -p benches --bin moves -- --store postgres|redis --only idle [--members 50]
//! ```
//!
//! Hosts are processes of their own. Told are, in milliseconds, the longest times without an answer of each instance, the longest time by which an alarm was
//! late, and answers that were errors. A part may be run once more while a flow in every tenth shard is in a step of 10 s.

use std::time::Duration;

use benches::measure::{child_arguments, in_fresh_process, percentile};
use benches::moves::{self, Figures, SHARDS, STEP, World};
use benches::report::{Line, print_lines, print_table};
use benches::stores::{self, Backend};

const USAGE: &str = "\
usage: moves --store postgres|redis [--lease 2000] [--quick] [--only kill|back|grow|shrink|rolling]
       moves --store postgres|redis [--lease 2000] --only idle [--members 50]";

/// The parts, in their order. Each begins with the hosts with which the one before it has ended.
const PARTS: [&str; 5] = ["kill", "back", "grow", "shrink", "rolling"];

struct Plan {
    store: String,
    lease: Option<Duration>,
    only: Option<String>,
    members: usize,
    /// Says whether the parts are run again beside long steps.
    with_steps: bool,
}

fn usage() -> ! {
    eprintln!("{USAGE}");
    std::process::exit(2)
}

fn parse() -> Plan {
    let mut plan = Plan { store: String::new(), lease: None, only: None, members: 50, with_steps: true };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut next = || arguments.next().unwrap_or_else(|| usage());
        match argument.as_str() {
            "--store" => plan.store = next(),
            "--lease" => plan.lease = Some(millis(&next())),
            "--only" => plan.only = Some(next()),
            "--members" => plan.members = next().parse().ok().filter(|members| *members > 0).unwrap_or_else(|| usage()),
            "--quick" => plan.with_steps = false,
            _ => usage(),
        }
    }
    plan
}

/// The store of this name; of Redis in the mode that is the default of its servers.
fn backend(name: &str) -> Box<dyn Backend> {
    match name {
        "postgres" => Box::new(stores::Postgres),
        "redis" => Box::new(stores::Redis { mode: "everysec" }),
        _ => usage(),
    }
}

fn main() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().expect("a runtime can be started");
    if let Some(arguments) = child_arguments() {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        match arguments[..] {
            ["host", store, address, name, lease] => {
                runtime.block_on(moves::host(&*backend(store), name, address, millis(lease)));
            }
            ["idle", store, address, lease, time] => runtime.block_on(async {
                let store = backend(store).at(address).open().await;
                let (cpu, calls) = moves::idle(store, millis(lease), millis(time)).await;
                println!("{cpu} {calls}");
            }),
            _ => usage(),
        }
        return;
    }
    let plan = parse();
    let backend = backend(&plan.store);
    let is_known = |only: &str| only == "idle" || PARTS.contains(&only);
    if plan.only.as_deref().is_some_and(|only| !is_known(only)) {
        usage();
    }
    let mut lines = Vec::new();
    runtime.block_on(async {
        if plan.only.as_deref() == Some("idle") {
            return idle(&*backend, &plan, &mut lines).await;
        }
        for with_steps in [false, true] {
            if with_steps <= plan.with_steps {
                let place = backend.fresh().await;
                let address = place.address().expect("a server has an address");
                parts(&*backend, address, &plan, with_steps, &mut lines).await;
            }
        }
        if plan.only.is_none() {
            idle(&*backend, &plan, &mut lines).await;
        }
    });
    print_lines(&lines);
}

fn millis(text: &str) -> Duration {
    Duration::from_millis(text.parse().unwrap_or_else(|_| usage()))
}

/// One part's figures, as a line and for people.
fn report(
    name: &str,
    backend: &dyn Backend,
    with_steps: bool,
    figures: &Figures,
    extra: &[(&str, f64)],
    lines: &mut Vec<Line>,
) {
    let Figures { longest, answers, errors, cut, alarms, late, over, steps } = figures;
    let sum: u64 = errors.values().sum();
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| percentile(longest, share));
    let mut line = Line::new(&format!("moves_{name}"))
        .text("store", backend.name())
        .text("steps", if with_steps { "yes" } else { "no" });
    line = line.number("p50", p50).number("p99", p99).number("max", max).number("alarm_late", *late);
    line = line
        .number("answers", *answers as f64)
        .number("errors", sum as f64)
        .number("cut", *cut as f64)
        .number("alarms", *alarms as f64);
    let mut row =
        vec![Some(p50), Some(p99), Some(max), Some(*late), Some(*answers as f64), Some(sum as f64), Some(*cut as f64)];
    for (key, value) in extra {
        line = line.number(key, *value);
    }
    if with_steps {
        line = line
            .number("steps", f64::from(*steps))
            .number("flows_over", over.0 as f64)
            .number("recorded_twice", over.1 as f64);
    }
    row.extend(extra.iter().map(|(_, value)| Some(*value)));
    let mut columns = vec!["p50", "p99", "max", "alarms late", "answers", "errors", "cut"];
    columns.extend(extra.iter().map(|(key, _)| *key));
    let title = format!("{}: {name}{}", backend.name(), if with_steps { ", with steps" } else { "" });
    print_table(&title, &columns, &[(String::new(), row)]);
    for (words, count) in errors {
        println!("  {count} x {words}");
    }
    lines.push(line);
}

async fn parts(backend: &dyn Backend, address: String, plan: &Plan, with_steps: bool, lines: &mut Vec<Line>) {
    let lease = plan.lease.unwrap_or(Duration::from_secs(2));
    let wanted = |name: &str| plan.only.as_deref().is_none_or(|only| only == name);
    let mut world = World::new(backend.name(), address, lease);
    for name in ["host-0", "host-1", "host-2"] {
        world.start(name).await;
    }
    for name in ["host-0", "host-1", "host-2"] {
        world.ready(name).await;
    }
    // Until all have settled: what one of them got alone at first has been shared out.
    tokio::time::sleep(2 * lease).await;
    world.begin().await;
    let settled = 2 * lease + Duration::from_secs(1) + if with_steps { STEP } else { Duration::ZERO };
    world.watch(lease).await;
    let mut run = 0;
    let mut flows = async |world: &World| {
        if with_steps {
            run += 1;
            world.begin_flows(run).await;
        }
    };
    let undisturbed = world.watch(Duration::from_secs(3)).await;
    report("undisturbed", backend, with_steps, &undisturbed, &[], lines);
    if wanted("kill") {
        flows(&world).await;
        world.kill("host-2");
        let figures = world.watch(settled).await;
        report("kill", backend, with_steps, &figures, &[("lease", lease.as_secs_f64() * 1e3)], lines);
        world.start("host-2").await;
        world.ready("host-2").await;
        world.watch(settled).await;
    }
    if wanted("back") {
        flows(&world).await;
        world.kill("host-1");
        world.start("host-1").await;
        let figures = world.watch(settled).await;
        let downtime = world.to_start("host-1").as_secs_f64() * 1e3;
        report("back", backend, with_steps, &figures, &[("downtime", downtime)], lines);
        world.ready("host-1").await;
    }
    if wanted("grow") || wanted("shrink") {
        flows(&world).await;
        world.start("host-3").await;
        let figures = world.watch(settled).await;
        world.ready("host-3").await;
        let moved = world.shards_of("host-3").await as f64 / f64::from(SHARDS);
        if wanted("grow") {
            report("grow", backend, with_steps, &figures, &[("moved", moved)], lines);
        }
    }
    if wanted("shrink") {
        flows(&world).await;
        let is_whole = world.drain("host-3").await;
        let figures = world.watch(settled).await;
        report("shrink", backend, with_steps, &figures, &[("released", f64::from(u8::from(is_whole)))], lines);
    }
    if wanted("rolling") {
        flows(&world).await;
        for name in ["host-0", "host-1", "host-2"] {
            world.drain(name).await;
            world.start(name).await;
            world.ready(name).await;
            tokio::time::sleep(lease + lease / 2).await;
        }
        let figures = world.watch(settled).await;
        report("rolling", backend, with_steps, &figures, &[], lines);
    }
    world.end();
}

/// An idle host of a fleet of three, and of a larger one whose other members are made up.
async fn idle(backend: &dyn Backend, plan: &Plan, lines: &mut Vec<Line>) {
    let lease = plan.lease.unwrap_or(Duration::from_secs(15));
    let time = 2 * lease.max(Duration::from_secs(5));
    let mut rows = Vec::new();
    for members in [3, plan.members] {
        let place = backend.fresh().await;
        let address = place.address().expect("a server has an address");
        let store = place.open().await;
        let others = tokio::spawn(moves::renew(store, members - 1, lease));
        let (name, lease, time) = (backend.name(), lease.as_millis().to_string(), time.as_millis().to_string());
        let measure = move || in_fresh_process(&["idle", name, &address, &lease, &time]);
        let measured = tokio::task::spawn_blocking(measure).await.expect("the host is measured");
        others.abort();
        lines.push(
            Line::new("moves_idle")
                .text("store", backend.name())
                .number("members", members as f64)
                .number("ms_per_s", measured[0])
                .number("calls_per_third", measured[1]),
        );
        rows.push((format!("{members} members"), measured.into_iter().map(Some).collect()));
    }
    print_table(&format!("{}: an idle host", backend.name()), &["ms per s", "calls a third"], &rows);
}
