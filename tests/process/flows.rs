//! Hosts with flows as real processes, the world outside of them, and an account of both.
//!
//! The world is a file of notes that steps add a line to: it outlives every process, as a partner does. Who calls is the parent. So
//! what a flow has done, and how often, is known whatever was killed: see [`Books::check`].

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use callback_flows::{
    BlockedKind, Call, Delivered, Flow, FlowResult, Flows, FlowsError, Outcome, Started, State, UrlKeys,
};
use serde::{Deserialize, Serialize};

use super::child::{PATIENCE, PAUSE, Place, equip, in_one_line, orders};
use super::voice::Voice;
use super::{Process, Said};

/// A start that was posted has come to its owner by then.
const LATEST: Duration = Duration::from_secs(20);
/// The name of the flow.
const ORDER: &str = "order";

/// The part of a child process.
#[derive(Debug, Serialize, Deserialize)]
struct Job {
    place: Place,
    /// The file of notes.
    notes: PathBuf,
}

/// Something that a child process is told to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Task {
    Start { id: String, limit: u64 },
    Call { id: String, url: String, value: u64 },
    End { id: String },
}

/// Writes what steps do into the file of notes, a line each, in one call: what is written survives the process.
struct Notes(File);

impl Notes {
    fn note(&self, what: &str, id: &str, key: &str, rest: &str) -> Result<(), std::io::Error> {
        (&self.0).write_all(format!("{what} {id} {key} {rest}\n").as_bytes())
    }
}

/// Waits so many milliseconds for a call, and grants what it asks for.
async fn order(notes: Arc<Notes>, flow: Flow, (id, limit): (String, u64)) -> FlowResult<Option<u64>> {
    let mut accepted = flow.callback::<u64>("accepted");
    let tell = |s: callback_flows::StepCx| {
        std::future::ready(notes.note("notify", &id, &s.idempotency_key(), &accepted.url()))
    };
    flow.step("notify").run(tell).await?;
    let value = tokio::select! {
        value = accepted.next() => value?,
        () = flow.sleep(Duration::from_millis(limit)) => return Ok(None),
    };
    let grant = |s: callback_flows::StepCx| {
        std::future::ready(notes.note("grant", &id, &s.idempotency_key(), &value.to_string()))
    };
    flow.step("grant").run(grant).await?;
    Ok(Some(value))
}

/// Does what the lines of its input say, until the parent is gone.
pub async fn flow_child() {
    let voice = Voice::start();
    voice.say_errors();
    let mut orders = orders();
    // Nobody had something to do for it.
    let Some(job) = orders.recv().await else { return };
    let job: Job = serde_json::from_str(&job).expect("the parent writes jobs");
    let mut builder = match equip(&job.place).await {
        Ok((builder, _)) => builder.start_timeout(PATIENCE),
        Err(error) => return voice.say_last(format!("wrong {}", in_one_line(&error))),
    };
    let notes = OpenOptions::new().create(true).append(true).open(&job.notes).expect("notes can be added");
    let notes = Arc::new(Notes(notes));
    let flows = Flows::builder()
        .flow(ORDER, 1, move |flow, input| order(notes.clone(), flow, input))
        .callbacks("https://broker.example/callbacks", UrlKeys::new("k1", [7; 32]).expect("it is long enough"))
        .register(&mut builder)
        .expect("it is the only interface");
    let _host = match builder.start().await {
        Ok(host) => host,
        Err(error) => return voice.say_last(format!("wrong {}", in_one_line(&error))),
    };
    voice.say("ready");
    while let Some(task) = orders.recv().await {
        let task: Task = serde_json::from_str(&task).expect("the parent writes tasks");
        let (flows, voice) = (flows.clone(), voice.clone());
        tokio::spawn(async move {
            loop {
                match obey(&flows, &task).await {
                    Ok(said) => return voice.say(said),
                    Err(error) if error.is_retryable() => tokio::time::sleep(PAUSE).await,
                    Err(error) => return voice.say(format!("wrong {task:?}: {}", in_one_line(&error))),
                }
            }
        });
    }
}

/// Does it, and says so.
async fn obey(flows: &Flows, task: &Task) -> Result<String, FlowsError> {
    match task {
        Task::Start { id, limit } => {
            let answer = match flows.start(ORDER, id, &(id, limit)).await? {
                Started::New => "new",
                Started::Already => "already",
                _ => "posted",
            };
            Ok(format!("started {id} {answer}"))
        }
        Task::Call { id, url, value } => {
            let answer = match flows.deliver(url, Call::new(value.to_string()).id("c-1")).await {
                Ok(Delivered::Taken) => "taken",
                Ok(Delivered::Already) => "already",
                Ok(_) => "posted",
                Err(FlowsError::Gone) => "gone",
                Err(error) => return Err(error),
            };
            Ok(format!("called {id} {answer}"))
        }
        Task::End { id } => {
            let until = Instant::now() + LATEST;
            loop {
                let Some(status) = flows.get(ORDER, id).await? else {
                    // It may be on its way to its owner.
                    if Instant::now() > until {
                        return Ok(format!("lost {id}"));
                    }
                    tokio::time::sleep(PAUSE).await;
                    continue;
                };
                match status.state {
                    // It was under way in processes that were killed, and did not kill them.
                    State::Blocked { why }
                        if matches!(why.kind(), BlockedKind::StepKilled | BlockedKind::CodeKilled) =>
                    {
                        match flows.resume(ORDER, id).await {
                            // Whoever asked for its end before, of another host, has had it go on, and it is over.
                            Ok(()) | Err(FlowsError::Gone) => {}
                            Err(error) => return Err(error),
                        }
                    }
                    State::Blocked { why } => return Ok(format!("wrong {id} is blocked: {why}")),
                    _ => {}
                }
                match flows.result(ORDER, id).await? {
                    Some(Outcome::Done(value)) => return Ok(format!("ended {id} {}", value.get())),
                    Some(other) => return Ok(format!("wrong {id} has ended with {other:?}")),
                    None if Instant::now() > until => {
                        let status = format!("{:?}", flows.get(ORDER, id).await?).replace('\n', " ");
                        return Ok(format!("wrong {id} does not end: {status}"));
                    }
                    None => tokio::time::sleep(PAUSE).await,
                }
            }
        }
    }
}

/// The knowledge of the parent about a flow.
#[derive(Debug, Default, Clone)]
struct Known {
    /// For so many milliseconds it waits for a call.
    limit: u64,
    /// The value that it is called with, if it is called.
    value: Option<u64>,
    /// Somebody has acknowledged its start.
    is_started: bool,
    url: Option<String>,
    /// The answer to its call.
    answer: Option<String>,
    /// It is lost, or this is its result.
    end: Option<Option<Option<u64>>>,
}

/// The account of a world: all flows, and all notes.
#[derive(Debug, Default)]
struct Books {
    flows: BTreeMap<String, Known>,
    /// Lines: what, of which flow, under which key, and the rest.
    notes: Vec<[String; 4]>,
}

/// The outcome of a world.
#[derive(Debug, Default, Clone)]
pub struct FlowVerdict {
    /// Flows whose start was acknowledged.
    pub flows: usize,
    /// Of these, granted.
    pub granted: usize,
    /// Steps that were cut off and run again under their key, which is right.
    pub repeated: usize,
    /// Flows and calls that were acknowledged and are not there.
    pub lost: Vec<String>,
    /// Steps that ran again though their result was kept, or under another key.
    pub twice: Vec<String>,
    /// Flows whose result is not what has happened.
    pub wrong: Vec<String>,
}

impl FlowVerdict {
    /// Adds that of another world.
    pub fn add(&mut self, other: FlowVerdict) {
        self.flows += other.flows;
        self.granted += other.granted;
        self.repeated += other.repeated;
        self.lost.extend(other.lost);
        self.twice.extend(other.twice);
        self.wrong.extend(other.wrong);
    }

    /// Fails if anything is not as it must be.
    pub fn assert_right(&self, run: &str) {
        let is_right = self.lost.is_empty() && self.twice.is_empty() && self.wrong.is_empty();
        assert!(is_right, "{run}: lost {:?}, twice {:?}, wrong {:?}", self.lost, self.twice, self.wrong);
    }
}

impl fmt::Display for FlowVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} flows ({} granted, {} steps cut off and run again), lost {}, effects twice {}, wrong {}",
            self.flows,
            self.granted,
            self.repeated,
            self.lost.len(),
            self.twice.len(),
            self.wrong.len()
        )
    }
}

impl Books {
    /// Holds what was acknowledged against what has happened.
    fn check(&self) -> FlowVerdict {
        let mut verdict = FlowVerdict::default();
        for (id, known) in &self.flows {
            let notes: Vec<_> = self.notes.iter().filter(|note| note[1] == *id).collect();
            let of = |what: &'static str| {
                notes.iter().filter(move |note| note[0] == what).map(|note| (&*note[2], &*note[3]))
            };
            for step in ["notify", "grant"] {
                let mut runs: Vec<_> = of(step).collect();
                verdict.repeated += runs.len().saturating_sub(1);
                runs.dedup();
                if runs.len() > 1 {
                    verdict.twice.push(format!("{step} of {id}: {runs:?}"));
                }
            }
            // Its result was kept before the next step began.
            let granted = notes.iter().position(|note| note[0] == "grant");
            if granted.is_some_and(|granted| notes[granted..].iter().any(|note| note[0] == "notify")) {
                verdict.twice.push(format!("notify of {id}, after it had been granted"));
            }
            if !known.is_started {
                continue;
            }
            verdict.flows += 1;
            let value = of("grant").next().and_then(|(_, value)| value.parse::<u64>().ok());
            verdict.granted += usize::from(value.is_some());
            let Some(Some(end)) = known.end else {
                verdict.lost.push(format!("{id}: {known:?}"));
                continue;
            };
            // Those that wait for an hour have to be called, and those that are not called end by themselves.
            let is_due = known.limit >= HOUR || known.answer.as_deref() == Some("taken");
            match end {
                None if is_due => verdict.lost.push(format!("the call of {id}: {known:?}")),
                _ if end != value || (end.is_some() && end != known.value) || of("notify").next().is_none() => {
                    verdict.wrong.push(format!("{id}: {known:?}, and granted {value:?}"));
                }
                _ => {}
            }
        }
        verdict
    }
}

/// A limit that no test waits for, in milliseconds.
const HOUR: u64 = 3_600_000;

/// The hosts of a world.
pub struct FlowHosts {
    place: Box<dyn Fn(&str) -> Place + Send>,
    notes: PathBuf,
    /// The number of bytes of the notes that were read.
    read: u64,
    running: BTreeMap<String, Process>,
    /// Waits for its job.
    spare: Option<Process>,
    /// Tasks that living hosts were given, and which host.
    given: BTreeMap<String, String>,
    said: (Sender<Said>, Receiver<Said>),
    books: Books,
    random: fastrand::Rng,
    /// Answers so far.
    answers: usize,
    ready: usize,
}

impl fmt::Debug for FlowHosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowHosts").field("running", &self.running.keys()).finish_non_exhaustive()
    }
}

impl FlowHosts {
    /// No hosts yet. `place` tells by a host's name where its rows are; notes are in a new file of this path.
    pub fn new(place: impl Fn(&str) -> Place + Send + 'static, notes: &Path, random: fastrand::Rng) -> FlowHosts {
        File::create_new(notes).expect("the notes are new");
        FlowHosts {
            place: Box::new(place),
            notes: notes.to_owned(),
            read: 0,
            running: BTreeMap::new(),
            spare: None,
            given: BTreeMap::new(),
            said: channel(),
            books: Books::default(),
            random,
            answers: 0,
            ready: 0,
        }
    }

    /// Starts a process as `host`. [`until_ready`](Self::until_ready) waits for it.
    pub fn spawn(&mut self, host: &str) {
        let job = Job { place: (self.place)(host), notes: self.notes.clone() };
        let mut process = self.spare.take().unwrap_or_else(|| Process::start(self.said.0.clone(), &[], None));
        process.begin(host, &job);
        assert!(self.running.insert(host.to_owned(), process).is_none(), "{host} runs already");
    }

    /// Starts a process that the next host need not wait for.
    pub fn prepare(&mut self) {
        self.spare.get_or_insert_with(|| Process::start(self.said.0.clone(), &[], None));
    }

    /// Waits until so many hosts were ready, of all that were ever started.
    pub fn until_ready(&mut self, count: usize) {
        let end = Instant::now() + PATIENCE;
        while self.ready < count {
            assert!(Instant::now() < end, "only {} of {count} became ready", self.ready);
            self.listen();
        }
    }

    /// The number of hosts that were ready so far.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.ready
    }

    /// Ends it with SIGKILL. What it had been told to do and has not done is for another.
    pub fn kill(&mut self, host: &str) {
        self.running.remove(host).expect("it runs").kill();
        self.hear_all();
        self.given.retain(|_, to| to != host);
    }

    /// Goes on with the work of all until there were so many answers more. `at_once` flows are under way.
    pub fn work(&mut self, answers: usize, at_once: usize) {
        let (until, end) = (self.answers + answers, Instant::now() + PATIENCE);
        while self.answers < until {
            assert!(Instant::now() < end, "no answers come: {:?}", self.given);
            self.give(at_once);
            self.listen();
        }
    }

    /// Begins no more, and lets all end; then says what became of it.
    pub fn settle(&mut self) -> FlowVerdict {
        let end = Instant::now() + PATIENCE;
        let ids: Vec<_> = self.books.flows.keys().cloned().collect();
        while self.books.flows.values().any(|known| known.is_started && known.end.is_none()) {
            let unended = self.books.flows.iter().filter(|(_, known)| known.is_started && known.end.is_none());
            assert!(Instant::now() < end, "these do not end: {:?}", unended.take(3).collect::<Vec<_>>());
            self.give(0);
            for id in &ids {
                let known = &self.books.flows[id];
                if known.is_started && known.end.is_none() {
                    self.order(&format!("end {id}"), &Task::End { id: id.clone() });
                }
            }
            self.listen();
        }
        self.read_notes();
        self.books.check()
    }

    /// Gives out what there is to do.
    fn give(&mut self, at_once: usize) {
        let unended = self.books.flows.values().filter(|known| known.answer.is_none() && known.value.is_some()).count();
        for _ in unended..at_once {
            let number = self.books.flows.len() as u64;
            let id = format!("o-{number}");
            // Half of them are called in time, some at about their limit, some never.
            let (limit, value) = match self.random.u32(..10) {
                0..=5 => (HOUR, Some(number)),
                6..=7 => (self.random.u64(50..400), Some(number)),
                _ => (self.random.u64(1..400), None),
            };
            self.books.flows.insert(id.clone(), Known { limit, value, ..Known::default() });
        }
        let todo = self.books.flows.iter().filter(|(_, known)| !known.is_started || known.answer.is_none());
        let todo: Vec<(String, Known)> = todo.map(|(id, known)| (id.clone(), known.clone())).collect();
        for (id, known) in todo {
            if !known.is_started {
                self.order(&format!("start {id}"), &Task::Start { id: id.clone(), limit: known.limit });
            }
            if let (Some(url), Some(value), None) = (known.url, known.value, known.answer) {
                self.order(&format!("call {id}"), &Task::Call { id, url, value });
            }
        }
    }

    /// Tells one of the hosts to do it, unless one was told.
    fn order(&mut self, what: &str, task: &Task) {
        if self.given.contains_key(what) {
            return;
        }
        let hosts: Vec<_> = self.running.keys().cloned().collect();
        let Some(host) = self.random.choice(&hosts).cloned() else { return };
        let line = serde_json::to_string(task).expect("a task can be written");
        self.running.get_mut(&host).expect("it runs").tell(&line);
        self.given.insert(what.to_owned(), host);
    }

    fn listen(&mut self) {
        match self.said.1.recv_timeout(Duration::from_millis(5)) {
            Ok((_, line)) => self.hear(&line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => unreachable!("this holds a sender"),
        }
        self.hear_all();
        self.read_notes();
    }

    fn hear_all(&mut self) {
        while let Ok((_, line)) = self.said.1.try_recv() {
            self.hear(&line);
        }
    }

    fn hear(&mut self, line: &str) {
        let words: Vec<_> = line.splitn(3, ' ').collect();
        let known = words.get(1).and_then(|id| self.books.flows.get_mut(*id));
        let (done, known) = match (words[0], known) {
            ("ready", _) => {
                self.ready += 1;
                return;
            }
            ("started", Some(known)) => {
                known.is_started = true;
                ("start", known)
            }
            ("called", Some(known)) => {
                known.answer.get_or_insert(words[2].to_owned());
                ("call", known)
            }
            ("ended", Some(known)) => {
                known.end = Some(Some(serde_json::from_str(words[2]).expect("it is a result")));
                ("end", known)
            }
            ("lost", Some(known)) => {
                known.end = Some(None);
                ("end", known)
            }
            // A server that is away is what the library says it is.
            ("error", _) => return,
            _ => unreachable!("{line}"),
        };
        let _ = known;
        self.answers += 1;
        self.given.remove(&format!("{done} {}", words[1]));
    }

    fn read_notes(&mut self) {
        let mut file = File::open(&self.notes).expect("the notes are there");
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(self.read)).expect("it is a file");
        let mut text = String::new();
        file.read_to_string(&mut text).expect("the notes are text");
        // A line is written in one call, but may be read in the middle of it.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        self.read += whole.len() as u64;
        for line in whole.lines() {
            let mut words = line.splitn(4, ' ').map(str::to_owned);
            let note: [String; 4] = std::array::from_fn(|_| words.next().expect("a note has four parts"));
            if note[0] == "notify"
                && let Some(known) = self.books.flows.get_mut(&note[1])
            {
                known.url.get_or_insert(note[3].clone());
            }
            self.books.notes.push(note);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn books(end: Option<Option<u64>>, notes: &[&str]) -> FlowVerdict {
        let known = Known {
            limit: HOUR,
            value: Some(7),
            is_started: true,
            answer: Some("taken".into()),
            end: Some(end),
            ..Known::default()
        };
        let words = |line: &&str| -> [String; 4] {
            let mut words = line.split(' ').map(str::to_owned);
            std::array::from_fn(|_| words.next().expect("a note has four parts"))
        };
        Books { flows: [("a".to_owned(), known)].into(), notes: notes.iter().map(words).collect() }.check()
    }

    #[test]
    fn the_account_of_flows_finds_what_was_lost_and_what_came_twice() {
        let right = books(Some(Some(7)), &["notify a k u", "notify a k u", "grant a l 7"]);
        right.assert_right("a step that was cut off is run again under its key");
        assert_eq!((right.flows, right.granted, right.repeated), (1, 1, 1));
        assert_eq!(books(None, &[]).lost.len(), 1, "it is not there");
        assert_eq!(books(Some(None), &["notify a k u"]).lost.len(), 1, "its call was acknowledged");
        assert_eq!(books(Some(Some(7)), &["notify a k u", "grant a l 7", "grant a m 7"]).twice.len(), 1, "two keys");
        assert_eq!(
            books(Some(Some(7)), &["notify a k u", "grant a l 7", "notify a k u"]).twice.len(),
            1,
            "it had gone on"
        );
        assert_eq!(books(Some(Some(7)), &["notify a k u"]).wrong.len(), 1, "nothing was granted");
        assert_eq!(books(Some(Some(8)), &["notify a k u", "grant a l 8"]).wrong.len(), 1, "of another's call");
    }
}
