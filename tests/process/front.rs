//! Callers in front of a fleet: in the parent, where nothing is killed, they ask through whichever door is open, all the time.
//!
//! Each answer is compared with what was answered before its question was asked: a ledger has noted at least as much. What is acknowledged,
//! and what is refused for certain, goes into the account. A caller whose answer never comes, because its door was killed or has stopped saying
//! anything, does not know; it goes on elsewhere with something else, or, where each request has a key, with the same until it is answered.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::builds::Build;
use super::child::{PAUSE, ledger};
use super::door::{ANSWER, ASK, Answer, Ask, Question};
use super::{PATIENCE, Said};

/// The time between two looks at the callers when nothing is said.
const LOOK: Duration = Duration::from_millis(2);
/// The longest time until an alarm is due, in milliseconds.
const LATEST: u64 = 300;

/// The callers of a test.
#[derive(Debug, Clone, Copy)]
pub struct Callers {
    /// The number of callers. Each has a ledger, the same for its life, that others may have too.
    pub callers: u64,
    /// The time from one question of a caller to its next, if that is not later because of an answer.
    pub pace: Duration,
    /// Tells whether what they ask for is to be done once, however often they ask: by a key.
    pub is_once: bool,
    /// The time for which a door may say nothing at all until no answer is expected of it; it is asked again when it says something.
    pub silence: Duration,
}

/// The callers at work.
#[derive(Debug)]
pub struct Front {
    events: Sender<Event>,
    sums: Arc<Mutex<Sums>>,
    thread: Option<JoinHandle<()>>,
}

/// The numbers of what callers were answered.
#[derive(Debug, Clone, Default)]
pub struct Sums {
    /// Questions.
    pub asked: u64,
    /// Of these, answered with what was asked for.
    pub answered: u64,
    /// Of these, by a host of the old build through a door of the new one.
    pub across: u64,
    /// Refused by a host whose build does not know the message, by the name of its build.
    pub unhandled: BTreeMap<&'static str, u64>,
    /// Refused for certain through a door that stayed, by error.
    pub refused: BTreeMap<String, u64>,
    /// The same of a door that was told to end and had not yet.
    pub refused_leaving: BTreeMap<String, u64>,
    /// Answered with an outcome that is not known, through a door that stayed.
    pub unknown: u64,
    /// The same of a door that was told to end.
    pub unknown_leaving: u64,
    /// Never answered: the door was killed, or said nothing for seconds.
    pub cut: u64,
    /// Never answered by a door that was told to end, and ended.
    pub cut_leaving: u64,
    /// Asked again under the same key.
    pub repeated: u64,
    /// The longest time that a caller went without what it asked for, however often it had to ask.
    pub longest: Duration,
    /// An error of each kind, in words.
    pub texts: BTreeMap<String, String>,
}

/// An answer that tells which host gave it.
#[derive(Debug, Clone)]
pub struct Heard {
    /// The moment at which it was heard.
    pub at: Instant,
    /// The host that was asked.
    pub door: String,
    /// The host that owned the ledger.
    pub by: String,
    /// The ledger.
    pub ledger: String,
}

/// Something that a process says, by its number, or the test itself.
#[derive(Debug)]
pub(super) enum Event {
    /// A host takes questions.
    Open {
        id: u32,
        host: String,
        build: Build,
        orders: Sender<String>,
    },
    Answered {
        id: u32,
        line: String,
    },
    Here(u32),
    /// It was told to end, and wants to hear when it is asked no more.
    Leaving(u32),
    Gone(u32),
    /// Nothing new is to be asked.
    Quiet,
    /// Answers from here on are to be told here, each with the host that gave it.
    Tell(Sender<Heard>),
}

/// Passes on what concerns callers; tells whether it concerns nobody else.
pub(super) fn pass_on(front: &Sender<Event>, id: u32, host: &str, text: &str, orders: &Sender<String>) -> bool {
    let event = match text {
        "here" => Event::Here(id),
        "leaving" => Event::Leaving(id),
        text if text.starts_with(ANSWER) => Event::Answered { id, line: text.to_owned() },
        text if text.starts_with("ready ") => {
            let build = text.split(' ').nth(3).and_then(Build::named).expect("it says the build that it is");
            Event::Open { id, host: host.to_owned(), build, orders: orders.clone() }
        }
        _ => return false,
    };
    let is_for_others = matches!(event, Event::Open { .. });
    if let Err(SendError(Event::Leaving(_))) = front.send(event) {
        // The callers have ended, and ask it nothing more. An error says that it has too.
        drop(orders.send("end".to_owned()));
    }
    !is_for_others
}

impl Front {
    pub(super) fn start(callers: Callers, ledgers: u64, said: Sender<Said>) -> (Front, Sender<Event>) {
        let (events, heard) = channel();
        let sums = Arc::new(Mutex::new(Sums::default()));
        let now = Instant::now();
        let new = |nth: u64| Caller::new(nth % ledgers, now);
        let desk = Desk {
            pace: callers.pace,
            is_once: callers.is_once,
            silence: callers.silence,
            said,
            sums: sums.clone(),
            doors: BTreeMap::new(),
            callers: (0..callers.callers).map(new).collect(),
            open: HashMap::new(),
            noted: HashMap::new(),
            doors_asked: 0,
            next: 0,
            quiet: None,
            tell: None,
        };
        let thread = std::thread::spawn(move || desk.run(&heard));
        (Front { events: events.clone(), sums, thread: Some(thread) }, events)
    }

    /// The numbers so far.
    #[must_use]
    pub fn sums(&self) -> Sums {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The longest wait since this was asked last, with those that have not ended.
    #[must_use]
    pub fn take_longest(&self) -> Duration {
        std::mem::take(&mut self.sums.lock().unwrap_or_else(PoisonError::into_inner).longest)
    }

    /// Has whoever answers from here on told.
    #[must_use]
    pub fn listen(&self) -> Receiver<Heard> {
        let (tell, heard) = channel();
        drop(self.events.send(Event::Tell(tell)));
        heard
    }

    /// Lets the callers wait for their last answers, and ask no more.
    ///
    /// # Panics
    /// If the callers found something wrong that nobody has heard yet.
    pub fn quiet(&mut self) -> Sums {
        // An error says that they have ended.
        drop(self.events.send(Event::Quiet));
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the callers come to their end");
        }
        self.sums()
    }
}

/// The callers, in a thread of their own.
struct Desk {
    pace: Duration,
    is_once: bool,
    silence: Duration,
    /// The way to the account.
    said: Sender<Said>,
    sums: Arc<Mutex<Sums>>,
    /// By process.
    doors: BTreeMap<u32, Door>,
    callers: Vec<Caller>,
    /// The questions without an answer, by number. Nobody waits any more for those of a door that says nothing.
    open: HashMap<u64, Asking>,
    /// The number of operations that each ledger is known to have noted.
    noted: HashMap<u64, u64>,
    /// The number of times that a door was chosen.
    doors_asked: usize,
    /// The number of the next question.
    next: u64,
    /// Since when nothing new is to be asked.
    quiet: Option<Instant>,
    tell: Option<Sender<Heard>>,
}

struct Door {
    host: String,
    build: Build,
    orders: Sender<String>,
    is_leaving: bool,
    /// The moment at which it has said something last.
    heard: Instant,
}

struct Caller {
    ledger: u64,
    /// The moment from which it is to ask next.
    turn: Instant,
    /// Since when it goes without what it wants.
    wants: Option<Instant>,
    /// The question whose answer it waits for.
    asking: Option<u64>,
    /// The question that is to be asked again, with the count that its ledger had noted when it was asked first.
    again: Option<(Ask, u64)>,
    /// An operation that was noted, and may be cancelled.
    noted: Option<String>,
    questions: u64,
}

/// A question without an answer.
struct Asking {
    caller: usize,
    door: u32,
    ask: Ask,
    /// The count that its ledger had noted when it was asked.
    at_least: u64,
}

impl Asking {
    /// The question if it is to be asked again: one that is done once however often it is asked.
    fn again(&self, is_once: bool) -> Option<(Ask, u64)> {
        (is_once && self.ask != Ask::Tally).then(|| (self.ask.clone(), self.at_least))
    }
}

impl Caller {
    fn new(ledger: u64, now: Instant) -> Caller {
        Caller { ledger, turn: now, wants: None, asking: None, again: None, noted: None, questions: 0 }
    }

    /// The next thing to ask, which is new each time.
    fn next(&mut self, nth: usize, is_once: bool) -> Ask {
        self.questions += 1;
        match self.questions % 8 {
            2 | 6 => Ask::Tally,
            // Asked again through a door of another build, it would be another message.
            3 if !is_once => Ask::BookByOwn(format!("{nth}-{}", self.questions), self.questions * 97 % LATEST),
            5 if self.noted.is_some() => Ask::Cancel(self.noted.take().unwrap_or_default()),
            // So that some are due soon and some later.
            n => Ask::Book(format!("{nth}-{}", self.questions), (self.questions * 97 + n) % LATEST),
        }
    }
}

impl Desk {
    fn run(mut self, heard: &Receiver<Event>) {
        loop {
            match heard.recv_timeout(LOOK) {
                Ok(event) => self.hear(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(event) = heard.try_recv() {
                self.hear(event);
            }
            self.give_up_silent();
            if let Some(since) = self.quiet {
                let is_done = |caller: &Caller| caller.asking.is_none() && caller.again.is_none();
                let waiting = self.callers.iter().filter(|caller| !is_done(caller)).count();
                if waiting == 0 {
                    return;
                }
                if since.elapsed() > PATIENCE {
                    let line = format!("wrong {waiting} callers are not answered: {:?}", self.sums().texts);
                    // An error says that the test is over.
                    drop(self.said.send((String::new(), line)));
                    return;
                }
            }
            self.ask();
        }
    }

    fn hear(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Open { id, host, build, orders } => {
                self.doors.insert(id, Door { host, build, orders, is_leaving: false, heard: now });
            }
            Event::Here(id) => self.note_sign(id, now),
            Event::Answered { id, line } => {
                self.note_sign(id, now);
                self.note_answer(id, &line, now);
            }
            Event::Leaving(id) => {
                if let Some(door) = self.doors.get_mut(&id) {
                    door.is_leaving = true;
                    // An error says that it has ended.
                    drop(door.orders.send("end".to_owned()));
                }
            }
            Event::Gone(id) => {
                if let Some(door) = self.doors.remove(&id) {
                    self.cut(id, now, door.is_leaving);
                    self.open.retain(|_, asking| asking.door != id);
                }
            }
            Event::Quiet => self.quiet = Some(now),
            Event::Tell(tell) => self.tell = Some(tell),
        }
    }

    fn note_sign(&mut self, id: u32, now: Instant) {
        if let Some(door) = self.doors.get_mut(&id) {
            door.heard = now;
        }
    }

    /// Nobody waits any more for what was asked through this door.
    fn cut(&mut self, id: u32, now: Instant, is_leaving: bool) {
        let mut cut = 0;
        for (number, asking) in self.open.iter().filter(|(_, asking)| asking.door == id) {
            let of = &mut self.callers[asking.caller];
            if of.asking.take_if(|asking| asking == number).is_some() {
                of.turn = now;
                of.again = asking.again(self.is_once);
                cut += 1;
            }
        }
        let mut sums = self.sums();
        *if is_leaving { &mut sums.cut_leaving } else { &mut sums.cut } += cut;
    }

    fn give_up_silent(&mut self) {
        let now = Instant::now();
        let silent = self.doors.iter().filter(|(_, door)| now.duration_since(door.heard) > self.silence);
        for (id, is_leaving) in silent.map(|(id, door)| (*id, door.is_leaving)).collect::<Vec<_>>() {
            self.cut(id, now, is_leaving);
        }
    }

    fn sums(&self) -> std::sync::MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&mut self) {
        let now = Instant::now();
        let is_open = |door: &Door| !door.is_leaving && now.duration_since(door.heard) <= self.silence;
        let open: Vec<_> = self.doors.iter().filter(|(_, door)| is_open(door)).map(|(id, _)| *id).collect();
        let (mut longest, mut repeated) = (Duration::ZERO, 0);
        for (nth, caller) in self.callers.iter_mut().enumerate() {
            longest = longest.max(caller.wants.map_or(Duration::ZERO, |since| now - since));
            if (self.quiet.is_some() && caller.again.is_none()) || caller.asking.is_some() || now < caller.turn {
                continue;
            }
            caller.wants.get_or_insert(now);
            let Some(id) = open.get(self.doors_asked % open.len().max(1)) else { continue };
            repeated += u64::from(caller.again.is_some());
            let again = caller.again.take();
            let new = || (caller.next(nth, self.is_once), self.noted.get(&caller.ledger).copied().unwrap_or(0));
            let (ask, at_least) = again.unwrap_or_else(new);
            let question = Question { ledger: ledger(caller.ledger), ask: ask.clone(), is_once: self.is_once };
            let line = serde_json::to_string(&question).expect("a question can be written");
            // An error says that it has ended: that is heard from who reads what it says.
            drop(self.doors[id].orders.send(format!("{ASK}{} {line}", self.next)));
            caller.asking = Some(self.next);
            self.open.insert(self.next, Asking { caller: nth, door: *id, ask, at_least });
            caller.turn = now + self.pace;
            self.next += 1;
            self.doors_asked += 1;
        }
        let mut sums = self.sums();
        sums.asked = self.next;
        sums.repeated += repeated;
        sums.longest = sums.longest.max(longest);
    }

    fn note_answer(&mut self, id: u32, line: &str, now: Instant) {
        let (number, answer) = line[ANSWER.len()..].split_once(' ').expect("an answer has a number");
        let number: u64 = number.parse().expect("it is a number");
        let answer: Answer = serde_json::from_str(answer).expect("a door says answers");
        let asking = self.open.remove(&number).expect("it was asked, and once");
        let again = asking.again(self.is_once);
        let Asking { caller: nth, ask, at_least, .. } = asking;
        let is_waited_for = self.callers[nth].asking.take_if(|asking| *asking == number).is_some();
        if !is_waited_for && again.is_some() {
            // It was asked again, and is answered there.
            return;
        }
        let asked = self.doors.get(&id);
        let (door, is_leaving) = asked.map_or(("", false), |door| (&*door.host, door.is_leaving));
        let ledger = ledger(self.callers[nth].ledger);
        // An error says that the test is over.
        let say = |line: String| drop(self.said.send((door.to_owned(), line)));
        let (mut booked, mut across, mut unhandled) = (None, 0, None);
        let failed = match answer {
            Answer::Booked { count, by, is_across } => {
                across = u64::from(is_across);
                let least = at_least + u64::from(matches!(ask, Ask::Book(..) | Ask::BookByOwn(..)));
                let noted = self.noted.entry(self.callers[nth].ledger).or_default();
                *noted = count.max(*noted);
                if count < least {
                    say(format!("wrong {ledger}: {by} says that it has noted {count}, and it has {least}"));
                } else if let Ask::Book(op, _) | Ask::BookByOwn(op, _) = ask {
                    say(format!("booked {ledger} {op}"));
                    booked = Some(op);
                }
                if let Some(tell) = &self.tell {
                    drop(tell.send(Heard { at: now, door: door.to_owned(), by, ledger }));
                }
                None
            }
            Answer::Cancelled(is_cancelled) => {
                if let (true, Ask::Cancel(op)) = (is_cancelled, ask) {
                    say(format!("cancelled {ledger} {op}"));
                }
                None
            }
            Answer::Refused(kind, text) => {
                match ask {
                    // It may be done yet.
                    _ if again.is_some() => {}
                    Ask::Book(op, _) | Ask::BookByOwn(op, _) => say(format!("denied booked {ledger} {op}")),
                    Ask::Cancel(op) => say(format!("denied cancelled {ledger} {op}")),
                    Ask::Tally => {}
                }
                Some((true, kind, text))
            }
            Answer::Unhandled(text) => {
                let by = Build::of_refusal(&text).filter(|by| asked.is_some_and(|door| door.build != *by));
                let (Ask::BookByOwn(op, _), Some(by)) = (ask, by) else {
                    return say(format!("wrong {ledger}: {text}"));
                };
                say(format!("denied booked {ledger} {op}"));
                unhandled = Some(by.name());
                None
            }
            Answer::Unknown(kind, text) => Some((false, kind, text)),
            Answer::Wrong(text) => return say(format!("wrong {ledger}: {text}")),
        };
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let caller = &mut self.callers[nth];
        if !is_waited_for {
            return;
        }
        let Some((is_refused, kind, text)) = failed else {
            match unhandled {
                Some(by) => *sums.unhandled.entry(by).or_default() += 1,
                None => sums.answered += 1,
            }
            sums.across += across;
            sums.longest = sums.longest.max(caller.wants.take().map_or(Duration::ZERO, |since| now - since));
            caller.noted = booked.or(caller.noted.take());
            return;
        };
        (caller.turn, caller.again) = (now + PAUSE, again);
        match (is_refused, is_leaving) {
            (true, false) => *sums.refused.entry(kind.clone()).or_default() += 1,
            (true, true) => *sums.refused_leaving.entry(kind.clone()).or_default() += 1,
            (false, false) => sums.unknown += 1,
            (false, true) => sums.unknown_leaving += 1,
        }
        sums.texts.insert(kind, text);
    }
}

impl Sums {
    /// Counts the requests that were refused, or had no answer, through doors that were told to end.
    #[must_use]
    pub fn failed_at_doors_that_leave(&self) -> u64 {
        self.refused_leaving.values().sum::<u64>() + self.unknown_leaving + self.cut_leaving
    }
}

/// `4711 requests, 4700 answered, refused {"Unreachable": 3}, unknown 4, cut 4, asked again 0`
impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sums { asked, answered, refused, unknown, cut, repeated, .. } = self;
        write!(
            f,
            "{asked} requests, {answered} answered, refused {refused:?}, unknown {unknown}, cut {cut}, asked again {repeated}"
        )
    }
}
