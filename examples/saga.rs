//! Trips that are booked as a whole or not at all: steps with an undo, a charge that is made once at most, two branches that are
//! joined, and a host that is killed three times on the way.
//! Run: `cargo run --release --example saga`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io::Write, process::ExitCode, sync::Arc, time::Duration};

use alarm_backends::FjallStore;
use callback_flows::{Fatal, Flow, FlowError, FlowResult, Flows, Outcome, State, StepError};
use examples::{BoxError, CannotStart, process};
use stable_interfaces::{Host, HostBuilder};
use tokio::time::sleep;

const TRIPS: u32 = 40;
const KILLS: usize = 3;

/// One trip: a seat and a room at once, then the money, then the ticket. An error undoes what was done, the last first.
async fn trip(world: Arc<World>, flow: Flow, trip: u32) -> FlowResult<()> {
    let (seat, room) = (flow.branch("seat"), flow.branch("room"));
    let booked = tokio::join!(book(&world, seat, "seat", trip), book(&world, room, "room", trip));
    booked.0?;
    booked.1?;
    // This bank knows no keys: asked twice, it charges twice.
    match flow.step("charge").at_most_once().run(|_| world.act(trip, "charged", "-".to_owned())).await {
        // The process died in the middle of it, and so the bank is asked whether it was done.
        Err(StepError::Interrupted) if !flow.step("ask").run(|_| world.was_charged(trip)).await? => {
            return Err(FlowError::new("it was not charged, and is not tried again"));
        }
        Ok(()) | Err(StepError::Interrupted) => {}
        Err(declined) => return Err(declined.into()),
    }
    undo(&world, &flow, "refunded", trip);
    flow.step("ticket").run(|s| world.act(trip, "ticket", s.idempotency_key())).await?;
    Ok(())
}

async fn book(world: &Arc<World>, flow: Flow, what: &'static str, trip: u32) -> FlowResult<()> {
    // Before the booking, for it may have been made though its step fails; to cancel what is not there does no harm.
    undo(world, &flow, if what == "seat" { "seat cancelled" } else { "room cancelled" }, trip);
    Ok(flow.step("book").run(|s| world.act(trip, what, s.idempotency_key())).await?)
}

/// Has this done if the trip fails.
fn undo(world: &Arc<World>, flow: &Flow, what: &'static str, trip: u32) {
    let world = world.clone();
    flow.undo(what, move |s| {
        let world = world.clone();
        async move { world.act(trip, what, s.idempotency_key()).await }
    });
}

/// The airline, the hotel and the bank: a file, with a line for all that each has done, which outlives every process.
struct World(PathBuf);

impl World {
    /// Does it, which takes a moment in which the process may die. What has a key counts once.
    async fn act(&self, trip: u32, what: &str, key: String) -> Result<(), BoxError> {
        sleep(Duration::from_millis(fastrand::u64(2..20))).await;
        let refusal = match what {
            "room" if trip % 4 == 1 => "the hotel is full",
            "charged" if trip % 5 == 2 => "the card is declined",
            "ticket" if trip % 7 == 3 => "the airline is on strike",
            _ => "",
        };
        if !refusal.is_empty() {
            return Err(Fatal::new(refusal).into()); // To try again would not help.
        }
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&self.0)?;
        file.write_all(format!("{trip}|{what}|{key}\n").as_bytes())?;
        sleep(Duration::from_millis(fastrand::u64(2..20))).await;
        Ok(())
    }

    /// All that was done for a trip.
    fn done(&self, trip: u32) -> Result<Vec<String>, std::io::Error> {
        let prefix = format!("{trip}|");
        let lines = fs::read_to_string(&self.0)?;
        Ok(lines.lines().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect())
    }

    async fn was_charged(&self, trip: u32) -> Result<bool, std::io::Error> {
        Ok(self.done(trip)?.iter().any(|line| line.starts_with("charged|")))
    }
}

fn host(directory: &Path) -> Result<(HostBuilder, Flows), BoxError> {
    let mut host = Host::local(FjallStore::open(directory.join("flows"))?);
    let world = Arc::new(World(directory.join("world")));
    let flows = Flows::builder().flow("trip", 1, move |flow, n| trip(world.clone(), flow, n)).register(&mut host)?;
    Ok((host, flows))
}

/// Starts all trips; those that are going already are the same ones.
async fn start(flows: &Flows) -> Result<(), BoxError> {
    for n in 0..TRIPS {
        flows.start("trip", &n.to_string(), &n).await?;
    }
    Ok(())
}

async fn run() -> Result<String, BoxError> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match &arguments[..] {
        [] => {}
        // The child, which is killed.
        [word, directory] if word == "host" => {
            let (host, flows) = host(directory.as_ref())?;
            let host = host.start().await?;
            start(&flows).await?;
            host.run_until(process::asked_to_stop(true)).await?;
            return Ok(String::new());
        }
        _ => return Err(CannotStart::new("bad arguments", "it takes none").into()),
    }
    let directory = tempfile::tempdir()?;
    let world = World(directory.path().join("world"));
    fs::write(&world.0, "")?;
    for kill in 1..=KILLS {
        let mut child = process::again(["host".as_ref(), directory.path().as_os_str()])?;
        // When another part of the work is done.
        while fs::read_to_string(&world.0)?.lines().count() < 30 * kill {
            sleep(Duration::from_millis(2)).await;
        }
        child.kill().await?;
    }
    let (host, flows) = host(directory.path())?;
    let host = host.start().await?;
    start(&flows).await?;
    let (mut booked, mut undone, mut half_done, mut charged_twice) = (0, 0, 0, 0);
    for n in 0..TRIPS {
        let id = n.to_string();
        while let Some(status) = flows.get("trip", &id).await?.filter(|status| !status.state.is_over()) {
            if matches!(status.state, State::Blocked { .. }) {
                flows.resume("trip", &id).await?; // Killed twice in one step, it is for somebody to say that this may be tried again.
            }
            sleep(Duration::from_millis(5)).await;
        }
        let lines = world.done(n)?;
        let once: BTreeSet<&str> = lines.iter().filter_map(|line| line.split('|').next()).collect();
        let charges = lines.iter().filter(|line| line.starts_with("charged|")).count();
        let is = |what: &str| once.contains(what);
        let is_undone = [("seat", "seat cancelled"), ("room", "room cancelled"), ("charged", "refunded")]
            .iter()
            .all(|(done, undone)| !is(done) || is(undone));
        charged_twice += u32::from(charges > 1);
        match flows.ended("trip", &id).await? {
            Outcome::Done(_) if once == BTreeSet::from(["charged", "room", "seat", "ticket"]) => booked += 1,
            Outcome::Failed(_) if is_undone && !is("ticket") => undone += 1,
            _ => half_done += 1,
        }
    }
    host.drain(Duration::from_secs(5)).await;
    let line = format!(
        "{TRIPS} trips: {booked} booked, {undone} undone, {half_done} half done, {charged_twice} charged twice; host killed {KILLS} times"
    );
    if half_done + charged_twice > 0 { Err(line.into()) } else { Ok(line) }
}

#[tokio::main]
async fn main() -> ExitCode {
    examples::end("saga", run()).await
}
