//! A real process that is killed with SIGKILL, again and again, while it works; then its store must keep every promise.
//!
//! The child runs a host and prints a line for each operation that was acknowledged to it; the parent kills it at a random
//! moment and starts it again on the same store. At the end a child lets everything that is due happen and prints what the
//! instances hold. Then every acknowledged operation is there, each once; nothing fired before its time; an alarm either fired
//! or was cancelled. `KILLS=n` sets how often, `SEED=n` repeats the moments.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use alarm_backends::FjallStore;
use stable_interfaces::{
    Alarm, Context, ContextError, Handle, Host, Interface, Message, NewPost, OnAlarm, OnMessage, StableInterface,
};

const INSTANCES: u64 = 48;
const CALLERS: u64 = 64;

/// An instance that keeps a row of everything that happened to it. A row's value counts how often.
#[derive(Default)]
struct Ledger {
    /// Kept in memory and stored with each operation: it must agree with the rows.
    operations: u64,
}

impl Ledger {
    async fn count(&self, cx: &mut Context, key: &str) -> Result<(), ContextError> {
        let before: u64 = cx.get(key).await?.unwrap_or(0);
        cx.put(key, &(before + 1))
    }
}

impl StableInterface for Ledger {
    const NAME: &'static str = "ledger";
    type Error = ContextError;

    async fn on_start(&mut self, cx: &mut Context) -> Result<(), ContextError> {
        self.operations = cx.get("operations").await?.unwrap_or(0);
        Ok(())
    }
}

/// Notes an operation, and sets its alarm.
struct Book(String);

impl Handle<Book> for Ledger {
    type Reply = ();

    async fn handle(&mut self, cx: &mut Context, Book(op): Book) -> Result<(), ContextError> {
        self.operations += 1;
        cx.put("operations", &self.operations)?;
        self.count(cx, &format!("booked/{op}")).await?;
        let after = Duration::from_millis(op.bytes().map(u64::from).sum::<u64>() % 300);
        cx.set_alarm(&op, cx.now() + after, &op)
    }
}

/// Cancels the alarm of an operation, unless it has fired.
struct Cancel(String);

impl Handle<Cancel> for Ledger {
    type Reply = bool;

    async fn handle(&mut self, cx: &mut Context, Cancel(op): Cancel) -> Result<bool, ContextError> {
        if cx.get::<u64>(&format!("fired/{op}")).await?.is_some() {
            return Ok(false);
        }
        cx.cancel_alarm(&op)?;
        self.count(cx, &format!("cancelled/{op}")).await?;
        Ok(true)
    }
}

/// All rows.
struct Rows;

impl Handle<Rows> for Ledger {
    type Reply = Vec<(String, u64)>;

    async fn handle(&mut self, cx: &mut Context, _: Rows) -> Result<Vec<(String, u64)>, ContextError> {
        let rows = cx.list("").await?;
        rows.into_iter().map(|(key, value)| Ok((key.to_string(), serde_json::from_slice(&value)?))).collect()
    }
}

impl OnAlarm for Ledger {
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), ContextError> {
        let op: String = alarm.meta()?;
        if cx.now() < alarm.scheduled_at() {
            self.count(cx, &format!("early/{op}")).await?;
        }
        self.count(cx, &format!("fired/{op}")).await
    }
}

impl OnMessage for Ledger {
    async fn on_message(&mut self, cx: &mut Context, message: &Message) -> Result<(), ContextError> {
        self.count(cx, &format!("taken/{}", message.id())).await
    }
}

/// What the parent tells the child by its environment.
const DIR: &str = "KILL_LOOP_DIR";
const ROUND: &str = "KILL_LOOP_ROUND";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child of the kill loop: runs only when its parent starts it"]
async fn child() {
    let dir = std::env::var(DIR).expect("the parent names the directory");
    let mut host = Host::local(FjallStore::open(Path::new(&dir)).expect("the store opens after every kill"));
    let registered = host.interface(|_| Ledger::default()).with_alarms().with_inbox().register();
    let ledgers = registered.expect("it is the only interface");
    let host = host.start().await.expect("the host starts after every kill");
    say("ready");
    match std::env::var(ROUND) {
        Ok(round) => {
            let next = Arc::new(AtomicU64::new(0));
            let callers: Vec<_> =
                (0..CALLERS).map(|_| tokio::spawn(work(ledgers.clone(), round.clone(), next.clone()))).collect();
            for caller in callers {
                caller.await.expect("a caller works until the process is killed");
            }
        }
        Err(_) => report(&ledgers).await,
    }
    drop(host);
}

/// Books, cancels and posts without an end, and says what was acknowledged.
async fn work(ledgers: Interface<Ledger>, round: String, next: Arc<AtomicU64>) {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let (id, op) = (format!("ledger-{}", number % INSTANCES), format!("{round}-{number}"));
        if number % 5 == 4 {
            ledgers.post(&id, NewPost::new(op.clone()).id(op.clone())).await.expect("the store takes posts");
            say(&format!("posted {id} {op}"));
            continue;
        }
        ledgers.request(&id, Book(op.clone())).await.expect("the store takes commits");
        say(&format!("booked {id} {op}"));
        if number % 7 == 3 && ledgers.request(&id, Cancel(op.clone())).await.expect("the store takes commits") {
            say(&format!("cancelled {id} {op}"));
        }
    }
}

/// Lets everything that is due happen, then prints what there is.
async fn report(ledgers: &Interface<Ledger>) {
    let mut before = BTreeMap::new();
    loop {
        let mut now = BTreeMap::new();
        // What was being handled in three processes that were killed is suspected of killing them, and waits for somebody to say
        // that it did not.
        let dead = ledgers.dead_letters(None, 10_000).await.expect("the store can be read");
        let mut pending = dead.len();
        for letter in &dead {
            assert!(ledgers.requeue(letter).await.expect("the store takes commits"), "{letter:?} is still there");
        }
        if !dead.is_empty() {
            say(&format!("requeued {}", dead.len()));
        }
        for number in 0..INSTANCES {
            let id = format!("ledger-{number}");
            pending += ledgers.alarms(&id).await.expect("the store can be read").len();
            now.insert(id.clone(), ledgers.request(&id, Rows).await.expect("the store can be read"));
        }
        // Messages leave no trace but their rows: done is when nothing changes any more.
        if pending == 0 && now == before {
            break;
        }
        before = now;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for (id, rows) in before {
        for (key, value) in rows {
            say(&format!("row {id} {key} {value}"));
        }
    }
    say("end");
}

fn say(line: &str) {
    // The parent may be gone; then so is this process, soon.
    drop(writeln!(std::io::stdout().lock(), "@ {line}"));
}

/// A child process, and the lines it says.
struct Running {
    process: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(dir: &Path, round: Option<u64>) -> Running {
        let mut command = Command::new(std::env::current_exe().expect("this test has a path"));
        command.args(["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env(DIR, dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        if let Some(round) = round {
            command.env(ROUND, round.to_string());
        }
        let mut process = command.spawn().expect("the child starts");
        let stdout = process.stdout.take().expect("it is piped");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // The test harness prints lines of its own, and may have begun one.
                if let Some((_, said)) = line.split_once("@ ")
                    && send.send(said.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        Running { process, lines }
    }

    fn wait_ready(&self) {
        let first = self.lines.recv_timeout(Duration::from_secs(60)).expect("the child is ready within a minute");
        assert_eq!(first, "ready");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both may fail only because it has ended already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[test]
fn nothing_acknowledged_is_lost_or_done_twice_by_hundreds_of_kills_on_fjall() {
    let number =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default);
    let kills = number("KILLS", if std::env::var("QUICK").is_ok() { 30 } else { 200 });
    let seed = number("SEED", 1);
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().expect("there is room for a store");
    let began = Instant::now();
    let mut acknowledged = HashSet::new();
    for round in 0..kills {
        let child = Running::start(dir.path(), Some(round));
        child.wait_ready();
        let until = Instant::now() + Duration::from_millis(random.u64(20..300));
        loop {
            match child.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => drop(acknowledged.insert(line)),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("seed {seed}: the child ended by itself in round {round}")
                }
            }
        }
        let lines = {
            let mut child = child;
            child.process.kill().expect("the child is killed");
            child.process.wait().expect("the child has ended");
            std::mem::replace(&mut child.lines, channel().1)
        };
        // What it said before it died was acknowledged; a line cut short was not said.
        acknowledged.extend(lines.iter());
    }
    let took = began.elapsed();

    let mut held = HashSet::new();
    let (mut early, mut twice, mut both, mut requeued) = (0, 0, 0, 0);
    let last = Running::start(dir.path(), None);
    last.wait_ready();
    loop {
        let line = last.lines.recv_timeout(Duration::from_secs(900)).expect("the report comes");
        if let Some(count) = line.strip_prefix("requeued ") {
            requeued += count.parse::<u64>().expect("it is a number");
            continue;
        }
        let Some(row) = line.strip_prefix("row ") else { break };
        let mut words = row.split(' ');
        let (Some(id), Some(key), Some(value)) = (words.next(), words.next(), words.next()) else {
            panic!("{row:?} is not a row")
        };
        let value: u64 = value.parse().expect("a row counts");
        if key == "operations" {
            let booked = held.iter().filter(|row: &&String| row.starts_with(&format!("booked {id} "))).count() as u64;
            assert_eq!(value, booked, "{id}: its count and its rows were committed together");
            continue;
        }
        let (kind, op) = key.split_once('/').expect("a row has a kind");
        early += u64::from(kind == "early");
        twice += u64::from(value > 1);
        held.insert(format!("{kind} {id} {op}"));
    }
    let mut lost = Vec::new();
    for line in &acknowledged {
        let wanted = line.replacen("posted", "taken", 1);
        if !held.contains(&wanted) {
            lost.push(line);
        }
    }
    for row in &held {
        if let Some(rest) = row.strip_prefix("booked ") {
            let (fired, cancelled) =
                (held.contains(&format!("fired {rest}")), held.contains(&format!("cancelled {rest}")));
            both += u64::from(fired && cancelled);
            if !fired && !cancelled {
                lost.push(row);
            }
        }
    }
    println!(
        "fjall: {kills} kills, {} acknowledged, lost {}, early {early}, effects twice {twice}, fired after cancel {both}; {requeued} suspects requeued; {:.0} kills a minute",
        acknowledged.len(),
        lost.len(),
        kills as f64 / took.as_secs_f64() * 60.0
    );
    assert!(lost.is_empty(), "seed {seed}: lost {:?} ..", &lost[..lost.len().min(5)]);
    assert_eq!((early, twice, both), (0, 0, 0), "seed {seed}");
    assert!(
        acknowledged.len() as u64 > kills * 100,
        "seed {seed}: too little was done between kills to prove anything"
    );
}
