//! Hosts as real processes, that can be killed, stopped and let go on, and an account of what they acknowledged.
//!
//! A child is the test program itself, which runs its ignored test `child` and nothing else; so nothing more has to be built. It
//! is killed with the [`Hosts`] that started it, and dies with the thread that did should the whole test be killed, or ends by
//! itself, by its standard input, where that cannot be had.

mod account;
mod builds;
mod child;
mod door;
mod flows;
mod front;
mod ledger;
mod network;
mod voice;
mod wall;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, BufWriter, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use alarm_backends::testing::servers::dies_with_parent;

pub use account::{Account, Verdict};
pub use builds::Build;
pub use child::{Job, Place, Roster, Seat, child};
pub use flows::{FlowHosts, FlowVerdict, flow_child};
pub use front::{Callers, Front, Heard, Sums};
pub use ledger::Counts;
pub use network::Network;

/// The longest that anything may take that must happen: a machine may be slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One after the other, for tests that measure and load the machine.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The words before the command line of a host, by its name.
type Within = Box<dyn Fn(&str) -> Vec<String> + Send>;

/// A line, with the host that said it.
type Said = (String, String);

/// A child process.
struct Process {
    child: Child,
    /// Ends with the child when all of these are gone.
    input: Sender<String>,
    /// Passes on what the child says, to the end.
    reader: Option<JoinHandle<()>>,
    /// The name of the host that it is, once it has a job.
    host: Arc<OnceLock<String>>,
}

impl Process {
    /// Starts one that waits to hear who it is; its command line follows the words of `within`.
    fn start(said: Sender<Said>, within: &[String], front: Option<Sender<front::Event>>) -> Process {
        let this = std::env::current_exe().expect("this test has a path").display().to_string();
        let test = ["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"].map(str::to_owned);
        let line: Vec<_> =
            dies_with_parent().into_iter().chain(within.iter().cloned()).chain([this]).chain(test).collect();
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().expect("the child starts");
        let mut stdin = BufWriter::new(child.stdin.take().expect("it is piped"));
        let (input, lines) = channel::<String>();
        // A process that stands still takes nothing, and nobody is to wait for it.
        std::thread::spawn(move || {
            while let Ok(first) = lines.recv() {
                let mut written = std::iter::once(first).chain(lines.try_iter()).map(|line| writeln!(stdin, "{line}"));
                // It has ended: whoever waits for an answer hears of that.
                if written.any(|written| written.is_err()) || stdin.flush().is_err() {
                    return;
                }
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let host = Arc::new(OnceLock::new());
        let name: Arc<OnceLock<String>> = host.clone();
        let (id, orders) = (child.id(), input.clone());
        let reader = std::thread::spawn(move || {
            let mut line = String::new();
            // A line without an end was cut short by a kill.
            while stdout.read_line(&mut line).is_ok_and(|read| read > 0) && line.ends_with('\n') {
                if let Some((_, text)) = line.trim_end().split_once(voice::MARK) {
                    let host = name.get().expect("it says nothing before it knows its job");
                    let is_heard = match &front {
                        Some(front) => front::pass_on(front, id, host, text, &orders),
                        // Nobody asks it through its door.
                        None => match text {
                            "leaving" => orders.send("end".to_owned()).is_ok(),
                            text => text == "here",
                        },
                    };
                    if !is_heard && said.send((host.clone(), text.to_owned())).is_err() {
                        return;
                    }
                }
                line.clear();
            }
            if let Some(front) = front {
                // The callers may have been quiet for long.
                drop(front.send(front::Event::Gone(id)));
            }
        });
        Process { child, input, reader: Some(reader), host }
    }

    /// Tells it who it is; it begins.
    fn begin(&mut self, host: &str, job: &impl serde::Serialize) {
        self.host.set(host.to_owned()).expect("it has no job yet");
        self.tell(&serde_json::to_string(job).expect("a job can be written"));
    }

    /// Writes a line to it.
    fn tell(&mut self, line: &str) {
        self.input.send(line.to_owned()).expect("its orders are written until it has ended");
    }

    /// Sends a signal to it.
    fn signal(&self, signal: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {}", self.child.id())]).status();
        assert!(sent.expect("a shell can be started").success(), "it takes a signal");
    }

    /// Ends it with SIGKILL. What it said before has been passed on.
    fn kill(&mut self) {
        self.child.kill().expect("it is killed");
        self.end();
    }

    /// Waits for its end, and until everything it said has been passed on.
    fn end(&mut self) {
        self.child.wait().expect("the child has ended");
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader ends with the child");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both may fail only because it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A host that holds a lease, as the store has it.
#[derive(Debug, Clone)]
pub struct Member {
    /// The address that it tells the others.
    pub address: String,
    /// The time that its lease still runs, unless renewed.
    pub remaining: Duration,
}

/// The hosts of a store, each a process that runs or does not, and what they have said.
pub struct Hosts {
    place: Box<dyn Fn(&str) -> Place + Send>,
    /// The words before the command line of a host.
    within: Within,
    ledgers: u64,
    callers: u64,
    build: Build,
    ahead: i64,
    running: BTreeMap<String, Process>,
    /// Waits for its job.
    spare: Option<Process>,
    lives: u64,
    /// The way by which all that processes say is heard.
    said: (Sender<Said>, Receiver<Said>),
    /// The operations that they acknowledged.
    pub account: Account,
    /// All that each said besides, and nobody has asked for yet.
    other: BTreeMap<String, Vec<String>>,
    /// The number of shards that they have handed over.
    pub handoffs: u64,
    /// Hears what is said to callers, if there are any in front.
    front: Option<Sender<front::Event>>,
}

impl std::fmt::Debug for Hosts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hosts").field("running", &self.names()).finish_non_exhaustive()
    }
}

impl Hosts {
    /// No hosts yet. `place` tells by a host's name where its rows are; on all together there are so many ledgers, and so many callers
    /// on each.
    pub fn new(place: impl Fn(&str) -> Place + Send + 'static, ledgers: u64, callers: u64) -> Hosts {
        Hosts {
            place: Box::new(place),
            within: Box::new(|_| Vec::new()),
            ledgers,
            callers,
            build: Build::default(),
            ahead: 0,
            running: BTreeMap::new(),
            spare: None,
            lives: 0,
            said: channel(),
            account: Account::default(),
            other: BTreeMap::new(),
            handoffs: 0,
            front: None,
        }
    }

    /// Puts callers in front of the hosts that are started from here on: they ask through whichever door is open.
    pub fn put_in_front(&mut self, callers: Callers) -> Front {
        assert!(self.spare.is_none() && self.running.is_empty(), "those that run would not be asked");
        let (front, events) = Front::start(callers, self.ledgers, self.said.0.clone());
        self.front = Some(events);
        front
    }

    /// Has each process start with these words before its command line, by the name of its host.
    pub fn set_within(&mut self, within: impl Fn(&str) -> Vec<String> + Send + 'static) {
        self.within = Box::new(within);
    }

    /// Sets the build of the program of the hosts that are started from here on.
    pub fn set_build(&mut self, build: Build) {
        self.build = build;
    }

    /// Sets by how many milliseconds the wall clocks of those that are started from here on are ahead of the machine's.
    pub fn set_ahead(&mut self, millis: i64) {
        self.ahead = millis;
    }

    /// Sets the place of the rows of the processes that are started from here on.
    pub fn set_place(&mut self, place: impl Fn(&str) -> Place + Send + 'static) {
        self.place = Box::new(place);
    }

    /// Starts a process that the next host need not wait for.
    pub fn prepare(&mut self) {
        self.spare.get_or_insert_with(|| Process::start(self.said.0.clone(), &[], self.front.clone()));
    }

    /// Starts a process as `host`.
    pub fn spawn(&mut self, host: &str) {
        self.lives += 1;
        let (place, build, ahead, life) = ((self.place)(host), self.build, self.ahead, self.lives);
        let job = Job { place, ledgers: self.ledgers, callers: self.callers, build, ahead, life };
        self.other.remove(host);
        let start = || Process::start(self.said.0.clone(), &(self.within)(host), self.front.clone());
        let mut process = self.spare.take().unwrap_or_else(start);
        process.begin(host, &job);
        assert!(self.running.insert(host.to_owned(), process).is_none(), "{host} runs already");
    }

    /// The same, and waits until it works.
    pub fn start(&mut self, host: &str) {
        self.start_all(&[host]);
    }

    /// Starts a process as each of these, all at once, and waits until they work.
    pub fn start_all(&mut self, hosts: &[&str]) {
        for host in hosts {
            self.spawn(host);
        }
        for host in hosts {
            self.answer(host, "ready");
        }
    }

    /// Ends it with SIGKILL. What it said before is heard.
    pub fn kill(&mut self, host: &str) {
        let mut process = self.running.remove(host).expect("it runs");
        process.kill();
        self.hear_all();
    }

    /// Sends a signal (`STOP`, `CONT`) to it.
    pub fn signal(&self, host: &str, signal: &str) {
        self.running[host].signal(signal);
    }

    /// Tells it to end, with SIGTERM, and waits until it has: how many handlers were cut off, and whether its shards are released.
    pub fn drain(&mut self, host: &str) -> String {
        self.signal(host, "TERM");
        let drained = self.answer(host, "drained");
        self.running.remove(host).expect("it runs").end();
        self.hear_all();
        drained
    }

    /// Kills all.
    pub fn kill_all(&mut self) {
        for host in self.names() {
            self.kill(&host);
        }
    }

    /// The names of those that run.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.running.keys().cloned().collect()
    }

    /// Writes an order to it.
    pub fn tell(&mut self, host: &str, order: &str) {
        self.running.get_mut(host).expect("it runs").tell(order);
    }

    /// Waits until it says something that begins with `word`; the rest of that line.
    pub fn answer(&mut self, host: &str, word: &str) -> String {
        let found = self.answer_within(host, word, PATIENCE);
        assert!(found.is_some(), "{host} did not say {word:?}; it said {:?}", self.other.get(host));
        found.unwrap_or_default()
    }

    /// The same, or `None` after so long.
    pub fn answer_within(&mut self, host: &str, word: &str, patience: Duration) -> Option<String> {
        let end = Instant::now() + patience;
        loop {
            let lines = self.other.entry(host.to_owned()).or_default();
            let found = lines.iter().position(|line| line.split(' ').next() == Some(word));
            if let Some(found) = found {
                let line = lines.remove(found);
                return Some(line.strip_prefix(word).unwrap_or_default().trim_start().to_owned());
            }
            if Instant::now() >= end {
                return None;
            }
            self.listen(end);
        }
    }

    /// Hears what is said until `end`, or the first thing, and all that is there by then.
    pub fn listen(&mut self, end: Instant) {
        match self.said.1.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok((host, line)) => self.hear(host, line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => unreachable!("this holds a sender"),
        }
        self.hear_all();
    }

    fn hear_all(&mut self) {
        while let Ok((host, line)) = self.said.1.try_recv() {
            self.hear(host, line);
        }
    }

    fn hear(&mut self, host: String, line: String) {
        assert!(!line.starts_with("wrong"), "{host}: {line}");
        if let Some(handed) = line.strip_prefix("handed ") {
            let shards = handed.split("shards=").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
            self.handoffs += shards.expect("it says how many shards it has handed over");
        } else if !self.account.hear(&host, &line) {
            self.other.entry(host).or_default().push(line);
        }
    }

    /// Waits until so much is acknowledged.
    pub fn wait_acknowledged(&mut self, operations: usize) {
        let end = Instant::now() + PATIENCE;
        while self.account.acknowledged() < operations {
            assert!(Instant::now() < end, "only {} of {operations} are acknowledged", self.account.acknowledged());
            self.listen(end);
        }
    }

    /// Finds a process that has ended without having been killed.
    pub fn ended(&mut self) -> Option<String> {
        let ended = |process: &mut Process| process.child.try_wait().is_ok_and(|status| status.is_some());
        self.running.iter_mut().find_map(|(host, process)| ended(process).then(|| host.clone()))
    }

    /// Kills all, starts `hosts` anew without callers, so that they know no more than what is stored, and [settles](Self::settle).
    pub fn settled(&mut self, hosts: &[&str], patience: Duration) -> Verdict {
        self.kill_all();
        self.callers = 0;
        self.start_all(hosts);
        self.settle(patience)
    }

    /// Lets those that run end, starts `host` alone, which then has everything there is, and [settles](Self::settle). For a live fleet whose
    /// callers are quiet.
    pub fn settled_by(&mut self, host: &str, patience: Duration) -> Verdict {
        for running in self.names() {
            self.drain(&running);
        }
        self.start(host);
        self.wait_owned(&[host]);
        self.settle(patience)
    }

    /// Waits until these hosts own all ledgers between them, and each of them some; how many each has.
    pub fn wait_owned(&mut self, hosts: &[&str]) -> Vec<usize> {
        let end = Instant::now() + PATIENCE;
        loop {
            let owned = hosts.iter().map(|host| self.owned(host).len()).collect::<Vec<_>>();
            if owned.iter().all(|owned| *owned > 0) && owned.iter().sum::<usize>() as u64 == self.ledgers {
                return owned;
            }
            assert!(Instant::now() < end, "of {} ledgers {hosts:?} own {owned:?}", self.ledgers);
            self.listen(Instant::now() + Duration::from_millis(20));
        }
    }

    /// Waits as [`wait_owned`](Self::wait_owned) for what another host has that is gone, and tells how long after the end of its lease that was,
    /// by the clock of the store: `None` if its lease had not ended.
    pub fn wait_taken_over(&mut self, hosts: &[&str], from: &str) -> Option<Duration> {
        let (end, mut lease_end) = (Instant::now() + PATIENCE, Instant::now());
        loop {
            let asked = Instant::now();
            let members = self.members(hosts[0]);
            // It may be renewed yet.
            let left = members.get(from).map(|member| member.remaining);
            lease_end = lease_end.max(left.map_or(lease_end, |left| asked + left));
            let owned = hosts.iter().map(|host| self.owned(host).len() as u64).sum::<u64>();
            if owned == self.ledgers {
                return Instant::now().checked_duration_since(lease_end);
            }
            assert!(Instant::now() < end, "of {} ledgers {hosts:?} own {owned}", self.ledgers);
            self.listen(Instant::now() + Duration::from_millis(10));
        }
    }

    /// The members of a live fleet by name, as a host finds them in the store.
    pub fn members(&mut self, host: &str) -> BTreeMap<String, Member> {
        self.tell(host, "members");
        let said = self.answer(host, "members");
        let member = |said: &str| {
            let mut parts = said.split('=');
            let (name, address, micros) = (parts.next()?, parts.next()?, parts.next()?.parse().ok()?);
            let (address, remaining) = (address.to_owned(), Duration::from_micros(micros));
            Some((name.to_owned(), Member { address, remaining }))
        };
        said.split_whitespace().map(|said| member(said).expect("it says three things of each")).collect()
    }

    /// The bytes of memory in which a host's process is; `None` where the system does not say.
    #[must_use]
    pub fn memory(&self, host: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.running[host].child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
    }

    /// The counts of the ledgers that a host owns.
    pub fn tally(&mut self, host: &str) -> Counts {
        self.tell(host, "tally");
        self.hear_tally(host).1
    }

    /// The number of suspects that it let go on, and the counts.
    fn hear_tally(&mut self, host: &str) -> (u64, Counts) {
        let answer = self.answer(host, "tally");
        let (letters, counts) = answer.split_once(' ').expect("a tally has two parts");
        let letters = letters.parse().expect("it is a number");
        (letters, serde_json::from_str(counts).expect("a tally has counts"))
    }

    /// The ledgers that a host says it owns.
    pub fn owned(&mut self, host: &str) -> BTreeSet<String> {
        self.tell(host, "owned");
        self.answer(host, "owned").split_whitespace().map(str::to_owned).collect()
    }

    /// Hears what is said for so long.
    pub fn pass(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.listen(end);
        }
    }

    /// Lets the hosts that run, which work on nothing, finish all that is due, then compares what is stored with the account. Gives
    /// up waiting when nothing has changed for so long.
    pub fn settle(&mut self, patience: Duration) -> Verdict {
        let hosts = self.names();
        let mut last = Vec::new();
        let mut changed = Instant::now();
        let mut requeued = 0;
        while changed.elapsed() < patience {
            let mut tallies = Vec::new();
            for host in &hosts {
                self.tell(host, "tally");
            }
            for host in &hosts {
                let (letters, counts) = self.hear_tally(host);
                requeued += letters;
                tallies.push(counts);
            }
            let mut sum = Counts::default();
            tallies.iter().for_each(|tally| sum.add(*tally));
            if sum.booked == sum.fired + sum.cancelled && self.account.may_be_all(&sum) {
                break;
            }
            if tallies != last {
                changed = Instant::now();
                last = tallies;
            }
            self.listen(Instant::now() + Duration::from_millis(50));
        }
        let mut rows = Vec::new();
        for host in &hosts {
            self.tell(host, "rows");
        }
        for host in &hosts {
            self.answer(host, "end");
            let (stored, other) = std::mem::take(self.other.entry(host.clone()).or_default())
                .into_iter()
                .partition(|line| line.starts_with("row ") || line.starts_with("counts "));
            self.other.insert(host.clone(), other);
            rows.extend::<Vec<String>>(stored);
        }
        self.account.check(&rows, requeued)
    }
}
