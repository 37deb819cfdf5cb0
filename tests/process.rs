//! Hosts as real processes, that can be killed, stopped and let go on, and an account of what they acknowledged.
//!
//! A child is the test program itself, which runs its ignored test `child` and nothing else; so nothing more has to be built. It
//! is killed with the [`Hosts`] that started it, and dies with the thread that did should the whole test be killed, or ends by
//! itself, by its standard input, where that cannot be had.

mod account;
mod child;
mod flows;
mod ledger;
mod voice;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use alarm_backends::testing::servers::dies_with_parent;

pub use account::{Account, Verdict};
pub use child::{Job, Place, Seat, child};
pub use flows::{FlowHosts, FlowVerdict, flow_child};
pub use ledger::Counts;

/// How long anything may take that must happen: a machine may be slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A line, with the host that said it.
type Said = (String, String);

/// A child process.
struct Process {
    child: Child,
    /// Ends with the child when it is closed.
    input: ChildStdin,
    /// Passes on what the child says, to the end.
    reader: Option<JoinHandle<()>>,
    /// As whom.
    host: Arc<OnceLock<String>>,
}

impl Process {
    /// Starts one that waits to hear who it is.
    fn start(said: Sender<Said>) -> Process {
        let this = std::env::current_exe().expect("this test has a path").display().to_string();
        let test = ["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"].map(str::to_owned);
        let line: Vec<_> = dies_with_parent().into_iter().chain([this]).chain(test).collect();
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().expect("the child starts");
        let input = child.stdin.take().expect("it is piped");
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let host = Arc::new(OnceLock::new());
        let name: Arc<OnceLock<String>> = host.clone();
        let reader = std::thread::spawn(move || {
            let mut line = String::new();
            // A line without an end was cut short by a kill.
            while stdout.read_line(&mut line).is_ok_and(|read| read > 0) && line.ends_with('\n') {
                if let Some((_, text)) = line.trim_end().split_once(voice::MARK) {
                    let host = name.get().expect("it says nothing before it knows its job").clone();
                    if said.send((host, text.to_owned())).is_err() {
                        return;
                    }
                }
                line.clear();
            }
        });
        Process { child, input, reader: Some(reader), host }
    }

    /// Tells it who it is; it begins.
    fn begin(&mut self, host: &str, job: &impl serde::Serialize) {
        self.host.set(host.to_owned()).expect("it has no job yet");
        writeln!(self.input, "{}", serde_json::to_string(job).expect("a job can be written"))
            .expect("it waits for its job");
    }

    /// Writes a line to it.
    fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("it reads its orders");
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

/// The hosts of a store, each a process that runs or does not, and what they have said.
pub struct Hosts {
    place: Box<dyn Fn(&str) -> Place + Send>,
    ledgers: u64,
    callers: u64,
    running: BTreeMap<String, Process>,
    /// Waits for its job.
    spare: Option<Process>,
    lives: u64,
    /// Where they say it, and where it is heard.
    said: (Sender<Said>, Receiver<Said>),
    /// What they acknowledged.
    pub account: Account,
    /// What they said besides, last.
    other: BTreeMap<String, Vec<String>>,
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
            ledgers,
            callers,
            running: BTreeMap::new(),
            spare: None,
            lives: 0,
            said: channel(),
            account: Account::default(),
            other: BTreeMap::new(),
        }
    }

    /// Where the processes have their rows that are started from here on.
    pub fn set_place(&mut self, place: impl Fn(&str) -> Place + Send + 'static) {
        self.place = Box::new(place);
    }

    /// Starts a process that the next host need not wait for.
    pub fn prepare(&mut self) {
        self.spare.get_or_insert_with(|| Process::start(self.said.0.clone()));
    }

    /// Starts a process as `host`.
    pub fn spawn(&mut self, host: &str) {
        self.lives += 1;
        let job = Job { place: (self.place)(host), ledgers: self.ledgers, callers: self.callers, life: self.lives };
        self.other.remove(host);
        let mut process = self.spare.take().unwrap_or_else(|| Process::start(self.said.0.clone()));
        process.begin(host, &job);
        assert!(self.running.insert(host.to_owned(), process).is_none(), "{host} runs already");
    }

    /// The same, and waits until it works.
    pub fn start(&mut self, host: &str) {
        self.spawn(host);
        self.answer(host, "ready");
    }

    /// Ends it with SIGKILL. What it said before is heard.
    pub fn kill(&mut self, host: &str) {
        let mut process = self.running.remove(host).expect("it runs");
        process.kill();
        self.hear_all();
    }

    /// Sends a signal (`STOP`, `CONT`) to it.
    pub fn signal(&self, host: &str, signal: &str) {
        let pid = self.running[host].child.id();
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status();
        assert!(sent.expect("a shell can be started").success(), "{host} takes a signal");
    }

    /// Drains it, and waits for its end; what it said of that.
    pub fn drain(&mut self, host: &str) -> String {
        self.tell(host, "drain");
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
        if !self.account.hear(&host, &line) {
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

    /// Whether a process has ended without having been killed.
    pub fn ended(&mut self) -> Option<String> {
        let ended = |process: &mut Process| process.child.try_wait().is_ok_and(|status| status.is_some());
        self.running.iter_mut().find_map(|(host, process)| ended(process).then(|| host.clone()))
    }

    /// Kills all, starts `hosts` anew without callers, so that they know no more than what is stored, and [settles](Self::settle).
    pub fn settled(&mut self, hosts: &[&str], patience: Duration) -> Verdict {
        self.kill_all();
        self.callers = 0;
        for host in hosts {
            self.spawn(host);
        }
        for host in hosts {
            self.answer(host, "ready");
        }
        self.settle(patience)
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
                let answer = self.answer(host, "tally");
                let (letters, counts) = answer.split_once(' ').expect("a tally has two parts");
                requeued += letters.parse::<u64>().expect("it is a number");
                tallies.push(serde_json::from_str::<Counts>(counts).expect("a tally has counts"));
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
