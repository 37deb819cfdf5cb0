//! One run of a program: as a host would run it, with a crash wherever there can be one.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use stable_interfaces::Timestamp;

use super::hand::{Half, Hand, HandClock};
use super::program::{ALONG, END, Node, World, code_of};
use crate::engine::{Code, Engine, Kind, Limits, Phase, Post, Sabotage, Shared, What};
use crate::flows::journals::taken_over;
use crate::journal::{ChildOutcome, Ended, Entry, Event, Message, Page, StepOutcome, Written};

/// A child, as it is where it lives.
#[derive(Debug, Default)]
struct Born {
    is_cancelled: bool,
    outcome: Option<ChildOutcome>,
}

/// One run of a program.
pub(super) struct Run {
    random: Rng,
    hand: Arc<Hand>,
    world: Arc<World>,
    code: Code,
    sabotage: Option<Sabotage>,
    limits: Limits,
    engine: Engine,
    durable: Vec<Written>,
    /// The number of this run of its flow, that of its first page, and the lines of those before it.
    run: u32,
    first_page: usize,
    before: Vec<String>,
    /// The lines that the code had shown at the last commit, its waits, and that it had taken in everything.
    shown: Vec<String>,
    waited: Vec<(String, Option<Timestamp>)>,
    was_calm: bool,
    callbacks: Vec<String>,
    sent: u64,
    /// Messages that are durable, by callback, in order.
    taken: BTreeMap<String, Vec<u64>>,
    /// Posts to children that are on their way, children that have been begun, and those whose end the flow has taken.
    letters: Vec<Post>,
    born: BTreeMap<String, Born>,
    told: HashSet<String>,
    /// The lines that are durable as events.
    emitted: Vec<String>,
    counts: Counts,
}

#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    pub(super) entries: u64,
    pub(super) crashes: u64,
    pub(super) messages: u64,
    /// The times that a flow went on as another run.
    pub(super) runs: u64,
    /// The commits after which there was a rest to be written.
    pub(super) parts: u64,
}

impl Run {
    pub(super) fn new(seed: u64, sabotage: Option<Sabotage>) -> Run {
        let mut random = Rng::with_seed(seed);
        let program = Node::Seq((0..random.usize(1..4)).map(|_| Node::random(&mut random, 3)).collect());
        let mut callbacks = Vec::new();
        program.callbacks("", &mut callbacks);
        let runs = if random.u8(..3) == 0 { random.u32(2..4) } else { 1 };
        if runs > 1 {
            callbacks.push(format!("callback:{ALONG}#0"));
        }
        let (hand, world) = (Arc::new(Hand::default()), Arc::new(World::default()));
        let code = code_of(Arc::new(program), world.clone(), runs, random.u8(..6) == 0);
        let page_bytes = if random.bool() { random.usize(1..400) } else { Limits::default().page_bytes };
        let limits = Limits { page_bytes, ..Limits::default() };
        let engine = engine(&hand, &code, Vec::new(), sabotage, limits);
        let mut run = Run {
            random,
            hand,
            world,
            code,
            sabotage,
            limits,
            engine,
            durable: Vec::new(),
            run: 1,
            first_page: 0,
            before: Vec::new(),
            shown: Vec::new(),
            waited: Vec::new(),
            was_calm: false,
            callbacks,
            sent: 0,
            taken: BTreeMap::new(),
            letters: Vec::new(),
            born: BTreeMap::new(),
            told: HashSet::new(),
            emitted: Vec::new(),
            counts: Counts::default(),
        };
        let start = Event::Start { version: 1, run: 1, seed, input: Bytes::from_static(b"1") };
        run.engine.append(run.hand.now(), start);
        run.engine.settle(usize::MAX);
        run
    }

    fn waits(&self) -> Vec<(String, Option<Timestamp>)> {
        let waits = self.engine.waits().into_iter().filter(|wait| wait.kind != Kind::Step);
        let mut waits: Vec<_> = waits.map(|wait| (wait.key.to_string(), wait.until)).collect();
        waits.sort();
        waits
    }

    /// Commits what there is to be written, in this turn or, from the second commit on, in one that follows; or dies before or after that.
    fn commit(&mut self) -> Result<(), String> {
        while self.random.u8(..16) > 0 {
            let (page, mark) = self.engine.take_page();
            for entry in &page.entries {
                match &entry.event {
                    Event::Result { step, outcome } if !matches!(outcome, StepOutcome::Interrupted) => {
                        self.world.kept.lock().insert(step.to_string());
                    }
                    Event::Message { callback, message } => {
                        let n = serde_json::from_slice(&message.body).unwrap();
                        self.taken.entry(callback.to_string()).or_default().push(n);
                        self.counts.messages += 1;
                    }
                    _ => {}
                }
            }
            self.counts.entries += page.entries.len() as u64;
            let has_more = !page.is_empty();
            if has_more {
                self.durable.push(page.encode());
            }
            self.world.has_rest.store(!self.engine.is_written(), Ordering::Relaxed);
            let Some(mark) = mark else {
                (self.was_calm, self.counts.parts) = (false, self.counts.parts + 1);
                if self.random.bool() {
                    return Ok(());
                }
                continue;
            };
            self.keep_emitted();
            if has_more {
                self.shown = self.world.log.lock().clone();
                self.waited = self.waits();
                self.was_calm = !self.engine.settle(0);
            }
            let mark = if self.switch()? { 0 } else { mark };
            if self.random.u8(..12) == 0 {
                break;
            }
            self.letters.extend(self.engine.take_posts());
            self.engine.open(mark);
            return Ok(());
        }
        self.crash()
    }

    /// Commits all of what an earlier turn has left to be written.
    fn commit_rest(&mut self) -> Result<(), String> {
        while self.engine.has_rest() {
            self.commit()?;
        }
        Ok(())
    }

    /// Begins the next run in the commit that ends the one before, if that has ended so.
    fn switch(&mut self) -> Result<bool, String> {
        let Some(continuation) = self.engine.take_continuation() else { return Ok(false) };
        self.check_messages()?;
        self.check_children()?;
        let body = |entry: &Entry| match &entry.event {
            Event::Message { message, .. } => serde_json::from_slice(&message.body).unwrap(),
            event => panic!("{event} goes along"),
        };
        let bodies: BTreeMap<u64, u64> = continuation.messages.iter().map(|entry| (entry.seq, body(entry))).collect();
        let mut unread = BTreeMap::new();
        for (key, carried) in &continuation.carried {
            // Each is the first of its name.
            assert_eq!(*key, carried.key);
            unread.insert(key.to_string(), carried.unread.iter().map(|seq| bodies[seq]).collect::<Vec<_>>());
        }
        for (callback, came) in &mut self.taken {
            let got = got(&self.world.log.lock(), callback).len();
            let kept = unread.remove(callback);
            if kept.as_ref().is_some_and(|kept| *kept != came[got..]) {
                return Err(format!("{callback} was sent {came:?}, gave out {got} of them, and {kept:?} go along"));
            }
            if kept.is_none() && callback.ends_with(&format!("callback:{ALONG}#0")) {
                return Err(format!("{callback} does not go along"));
            }
            *came = kept.unwrap_or_default();
        }
        self.before.append(&mut self.world.log.lock());
        self.world.kept.lock().clear();
        self.world.steps.lock().clear();
        // Children go on by themselves, and are begun again by whichever run asks for them.
        (self.letters, self.born, self.told) = (Vec::new(), BTreeMap::new(), HashSet::new());
        self.run += 1;
        self.counts.runs += 1;
        let along = Page { entries: continuation.messages, ..Page::default() };
        let mut next = engine(&self.hand, &self.code, vec![along], self.sabotage, self.limits);
        next.count_from(continuation.next_seq);
        let (run, seed, input) = (self.run, u64::from(self.run), continuation.input);
        let carried = continuation.carried.into_iter().map(|(_, carried)| carried).collect();
        next.append(self.hand.now(), Event::Continued { version: 1, run, seed, input, carried });
        if continuation.is_cancelled {
            next.append(self.hand.now(), Event::Cancel);
        }
        let (page, _) = next.take_all();
        self.first_page = self.durable.len();
        self.durable.push(page.encode());
        (self.shown, self.waited, self.was_calm) = (Vec::new(), Vec::new(), false);
        self.engine = next;
        Ok(true)
    }

    /// A post arrives, and perhaps that is noted.
    fn post(&mut self) -> Result<(), String> {
        if self.letters.is_empty() {
            return Ok(());
        }
        let post = self.letters.swap_remove(self.random.usize(..self.letters.len()));
        let child = post.child.to_string();
        match &post.what {
            What::Start(_) => drop(self.born.entry(child).or_default()),
            What::Cancel => match self.born.get_mut(&child) {
                Some(born) => born.is_cancelled = true,
                None => return Err(format!("{child} is cancelled before it begins")),
            },
        }
        if self.random.u8(..4) > 0 {
            self.engine.note_posted(&post);
            if self.engine.waits_for_posts() || self.random.bool() {
                self.engine.record_posted(self.hand.now());
            }
        } else {
            // Its courier tries again.
            self.letters.push(post);
        }
        Ok(())
    }

    /// A child ends, or one that has ended tells the flow.
    fn end_child(&mut self) {
        let untold: Vec<_> = self.born.keys().filter(|child| !self.told.contains(*child)).cloned().collect();
        let Some(child) = self.random.choice(&untold).cloned() else { return };
        let born = self.born.entry(child.clone()).or_default();
        let value = self.world.values.fetch_add(1, Ordering::Relaxed);
        let outcome = born.outcome.get_or_insert_with(|| match value % 4 {
            _ if born.is_cancelled => ChildOutcome::Cancelled,
            0 => ChildOutcome::Failed(format!("failure {value}").into()),
            _ => ChildOutcome::Done(value.to_string().into()),
        });
        let outcome = outcome.clone();
        let now = self.hand.now();
        while self.engine.fire_due(now, None) > 0 {
            self.engine.settle(usize::MAX);
        }
        if !self.has_ended() {
            self.told.insert(child.clone());
            self.engine.append(now, Event::ChildEnded { child: child.as_str().into(), outcome });
        }
    }

    fn crash(&mut self) -> Result<(), String> {
        self.counts.crashes += 1;
        let has_ended = self.durable.last().is_some_and(|page| Page::decode(page).unwrap().ended.is_some());
        // Before its start is durable there is no flow, and when its end is, nothing is replayed.
        if self.durable.is_empty() || has_ended {
            return Ok(());
        }
        let fresh = engine(&self.hand, &self.code, self.pages(), self.sabotage, self.limits);
        drop(std::mem::replace(&mut self.engine, fresh));
        self.world.log.lock().clear();
        self.world.steps.lock().clear();
        // Some are on their way, and arrive after all.
        for post in std::mem::take(&mut self.letters) {
            match &post.what {
                _ if self.random.bool() => {}
                What::Start(_) => drop(self.born.entry(post.child.to_string()).or_default()),
                What::Cancel => self.born.entry(post.child.to_string()).or_default().is_cancelled = true,
            }
        }
        self.told = self.pages().into_iter().flat_map(|page| page.entries).filter_map(ended_child).collect();
        self.engine.settle(usize::MAX);
        if let Phase::Blocked(why) = self.engine.phase() {
            return Err(format!("blocked in a replay: {why}"));
        }
        let log = self.world.log.lock().clone();
        let is_same = if self.was_calm { log == self.shown } else { log.starts_with(&self.shown) };
        if !is_same {
            return Err(format!("a replay shows\n  {log:#?}\nin place of\n  {:#?}", self.shown));
        }
        if self.was_calm && self.waits() != self.waited {
            return Err(format!("a replay waits for {:?} in place of {:?}", self.waits(), self.waited));
        }
        self.world.has_rest.store(false, Ordering::Relaxed);
        let (page, mark) = self.engine.take_all();
        self.keep_emitted();
        if !page.is_empty() {
            self.durable.push(page.encode());
            self.shown = log;
            self.waited = self.waits();
            self.was_calm = true;
        }
        let mark = if self.switch()? { 0 } else { mark };
        self.letters = self.engine.take_posts();
        self.engine.open(mark);
        Ok(())
    }

    /// Notes what was emitted, which is in the commit that is made.
    fn keep_emitted(&mut self) {
        let lines = self.engine.take_emitted().into_iter().map(|event| serde_json::from_slice(&event.value).unwrap());
        self.emitted.extend(lines);
    }

    fn pages(&self) -> Vec<Page> {
        let decoded = |pages: &[Written]| pages.iter().map(|page| Page::decode(page).unwrap()).collect::<Vec<_>>();
        let (earlier, run) = self.durable.split_at(self.first_page);
        let mut pages = decoded(run);
        let wanted = taken_over(&pages);
        if !wanted.is_empty() {
            let entries = decoded(earlier).into_iter().flat_map(|page| page.entries);
            let entries = entries.filter(|entry| wanted.contains(&entry.seq)).collect();
            pages.insert(0, Page { entries, ..Page::default() });
        }
        pages
    }

    /// Something happens outside.
    fn happen(&mut self) -> Result<(), String> {
        self.commit_rest()?;
        match self.random.u8(..13) {
            0..=2 => {
                if let Some(callback) = self.random.choice(&self.callbacks).cloned() {
                    self.send(&callback);
                }
            }
            3..=5 => {
                let told = {
                    let mut steps = self.world.steps.lock();
                    steps.retain(|(_, told)| !told.is_closed());
                    let at = self.random.usize(..steps.len().max(1));
                    if steps.is_empty() { None } else { Some(steps.swap_remove(at)) }
                };
                if let Some((_, told)) = told {
                    let value = self.world.values.fetch_add(1, Ordering::Relaxed);
                    let _ =
                        told.send(if self.random.u8(..3) == 0 { Err(format!("failure {value}")) } else { Ok(value) });
                }
            }
            6..=7 => {
                let millis = self.random.u64(1..20);
                self.hand.set(self.hand.now() + Duration::from_millis(millis));
            }
            8 => {
                // Wakes for nothing.
                let wakers = std::mem::take(&mut *self.world.wakers.lock());
                wakers.into_iter().for_each(Waker::wake);
            }
            9..=10 => self.post()?,
            11 => self.end_child(),
            _ => {
                if self.random.u8(..40) == 0 {
                    self.engine.append(self.hand.now(), Event::Cancel);
                }
            }
        }
        Ok(())
    }

    /// A message comes. Timers that were due before it have fired before it.
    fn send(&mut self, callback: &str) {
        let now = self.hand.now();
        while self.engine.fire_due(now, None) > 0 {
            self.engine.settle(usize::MAX);
        }
        if !self.engine.takes_messages(callback) {
            return;
        }
        self.sent += 1;
        let message = Message {
            id: self.sent.to_string().into(),
            headers: Vec::new(),
            body: self.sent.to_string().into_bytes().into(),
        };
        self.engine.append(now, Event::Message { callback: callback.into(), message });
    }

    fn turn(&mut self) -> Result<(), String> {
        let releases = if self.random.u8(..4) == 0 { 1 } else { usize::MAX };
        self.engine.settle(releases);
        self.engine.poll_steps(self.hand.now());
        self.engine.fire_due(self.hand.now(), Some(self.hand.now()));
        self.engine.settle(releases);
        self.check()?;
        self.commit()?;
        self.check()
    }

    fn check(&self) -> Result<(), String> {
        if let Phase::Blocked(why) = self.engine.phase() {
            return Err(format!("blocked: {why}"));
        }
        self.world.wrong.lock().take().map_or(Ok(()), Err)
    }

    fn has_ended(&self) -> bool {
        matches!(self.engine.phase(), Phase::Ended(_))
    }

    /// Runs it to its end.
    pub(super) fn go(mut self) -> Result<Counts, String> {
        self.commit()?;
        for _ in 0..self.random.usize(10..120) {
            for _ in 0..self.random.usize(..4) {
                self.happen()?;
            }
            self.turn()?;
            if self.has_ended() {
                break;
            }
        }
        let mut rounds = 0;
        loop {
            self.commit_rest()?;
            if self.has_ended() {
                break;
            }
            rounds += 1;
            if rounds > 2_000 {
                let waits = self.engine.waits();
                return Err(format!(
                    "it does not end; it has shown {:#?} and waits for {waits:#?}",
                    self.world.log.lock()
                ));
            }
            self.finish_one()?;
            self.turn()?;
        }
        self.check_messages()?;
        self.check_children()?;
        self.check_events()?;
        Ok(self.counts)
    }

    /// Checks that each line that the code has shown was emitted, in order, once over all its lives.
    fn check_events(&mut self) -> Result<(), String> {
        // It may have ended before anything was durable.
        self.keep_emitted();
        let log = self.world.log.lock();
        let said: Vec<_> = self.before.iter().chain(&*log).filter(|line| *line != END).collect();
        if said.iter().copied().eq(&self.emitted) {
            return Ok(());
        }
        Err(format!("it has shown {said:#?}, and emitted {:#?}", self.emitted))
    }

    /// Gives the flow one of the things that it waits for.
    fn finish_one(&mut self) -> Result<(), String> {
        self.post()?;
        self.end_child();
        let mut steps = std::mem::take(&mut *self.world.steps.lock());
        steps.retain(|(_, told)| !told.is_closed());
        for (_, told) in steps {
            let value = self.world.values.fetch_add(1, Ordering::Relaxed);
            let _ = told.send(Ok(value));
        }
        let callback = self.engine.waits().into_iter().find(|wait| wait.kind == Kind::Callback);
        match callback {
            Some(callback) if self.random.bool() => self.send(&callback.key),
            _ => {
                // Also for a step's wait in this process.
                let due = self.engine.next_due().unwrap_or(self.hand.now() + Duration::from_secs(1));
                self.hand.set(due.max(self.hand.now()));
            }
        }
        Ok(())
    }

    /// Checks that every child that the code began was begun, and that those of a cancelled flow were cancelled if they had not ended.
    fn check_children(&self) -> Result<(), String> {
        let pages = self.pages();
        let ended = pages.last().and_then(|page| page.ended.clone());
        if ended.is_none() && !matches!(self.engine.phase(), Phase::Continued) {
            return Ok(());
        }
        let begun = pages.iter().flat_map(|page| &page.settled).flat_map(|settled| &settled.begun);
        for begun in begun.filter(|begun| begun.key.contains("child:child[")) {
            let Some(born) = self.born.get(&*begun.key) else { return Err(format!("{} was never begun", begun.key)) };
            if ended == Some(Ended::Cancelled) && !born.is_cancelled && !self.told.contains(&*begun.key) {
                return Err(format!("{} goes on, and its parent is cancelled", begun.key));
            }
        }
        Ok(())
    }

    /// Checks that what a callback has given out is the beginning of what came for it, in that order.
    fn check_messages(&self) -> Result<(), String> {
        let log = self.world.log.lock();
        for (callback, came) in &self.taken {
            let got = got(&log, callback);
            if !came.starts_with(&got) {
                return Err(format!("{callback} was sent {came:?}, and gave out {got:?}"));
            }
        }
        Ok(())
    }
}

/// The messages that a callback has given out in this run.
fn got(log: &[String], callback: &str) -> Vec<u64> {
    let (scope, name) = match callback.rsplit_once("/callback:") {
        Some((scope, name)) => (scope, name),
        None => ("", callback.strip_prefix("callback:").unwrap()),
    };
    let says = match name {
        "c#0" => format!("{scope}: got "),
        name => format!("{scope}: {} got ", name.trim_end_matches("#0")),
    };
    log.iter().filter_map(|line| line.strip_prefix(&says)?.parse().ok()).collect()
}

fn ended_child(entry: Entry) -> Option<String> {
    if let Event::ChildEnded { child, .. } = entry.event { Some(child.to_string()) } else { None }
}

fn engine(hand: &Arc<Hand>, code: &Code, pages: Vec<Page>, sabotage: Option<Sabotage>, limits: Limits) -> Engine {
    let (clock, random) = (Arc::new(HandClock(hand.clone())), Arc::new(Half));
    let shared = Shared::new("program/1".into(), clock, random, limits, None, Arc::new(()));
    Engine::new(shared, code.clone(), pages).sabotaged(sabotage)
}
