//! The record of a run: what it asked for, was told and did, and whether that may be.
//!
//! A run writes each thing down when it happens, in one order; [`check`](History::check) then compares that with what is left
//! in the end, by the [`Invariant`]s that hold whatever failed in between. It knows nothing of how the run was made, so every
//! kind of test can use it: a simulation, a loop of real processes, a scenario that is cut at every call of its store.

mod keys;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::clock::Timestamp;
use crate::error::RequestError;
use crate::store::ShardId;
use crate::sync::{Arc, Mutex};

/// A promise of the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Invariant {
    /// I1: an acknowledged alarm or message is handled, or still stored, or was cancelled.
    Kept,
    /// I2: no alarm fires before its time.
    NotEarly,
    /// I3: once nothing fails any more, everything that is due is handled, and everybody is answered.
    Handled,
    /// I4: what was acknowledged has its effects exactly once, what was refused has none.
    Once,
    /// I5: nothing fires after its cancelling was acknowledged.
    NotAfterCancel,
    /// I6: the writes of two owners of a shard do not interleave.
    OneWriter,
    /// I7: alarms of a shard that are durable and due together start in order.
    InOrder,
    /// I8: a step whose result is recorded is never run again, and never has another result.
    Recorded,
    /// I9: nothing is left when a host is gone.
    NothingLeft,
    /// I10: a request that was answered `Ok` has its effects exactly once, one that was answered with a definite error has none, whichever
    /// host it was asked at.
    Answered,
    /// I11: once nothing fails any more, each shard has one owner, the host it is placed on, within three leases.
    Settled,
    /// I12: whatever is asked under one request key has one effect and one reply, however often it is asked, and at whatever host.
    Keyed,
    /// Items of a connection: what is sent comes in order and whole until its end, and both sides are told of that, wherever the client is.
    Connected,
    /// One handler of an instance at a time, and none of an incarnation that has ended.
    OneAtATime,
    /// Checks that what is read is what was acknowledged.
    Read,
    /// The same seed gives the same run.
    Repeats,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Invariant::Kept => "I1 (kept)",
            Invariant::NotEarly => "I2 (not early)",
            Invariant::Handled => "I3 (handled)",
            Invariant::Once => "I4 (once)",
            Invariant::NotAfterCancel => "I5 (not after its cancelling)",
            Invariant::OneWriter => "I6 (one writer)",
            Invariant::InOrder => "I7 (in order)",
            Invariant::Recorded => "I8 (recorded)",
            Invariant::NothingLeft => "I9 (nothing left)",
            Invariant::Answered => "I10 (answered)",
            Invariant::Settled => "I11 (settled)",
            Invariant::Keyed => "I12 (one effect for a key)",
            Invariant::Connected => "connected",
            Invariant::OneAtATime => "one at a time",
            Invariant::Read => "read",
            Invariant::Repeats => "repeats",
        })
    }
}

/// A promise that was not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The promise.
    pub invariant: Invariant,
    /// The event that happened instead.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// The knowledge of something that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged.
    Done,
    /// Certainly not done.
    Not,
    /// Perhaps done.
    Unknown,
}

impl Outcome {
    /// The word of the answer to a request about what its handler made durable, in the middle or at its end. `is_unknown` tells whether
    /// the handler's own error stands for an unknown outcome.
    pub fn of<R, E>(answer: &Result<R, RequestError<E>>, is_unknown: impl FnOnce(&E) -> bool) -> Outcome {
        match answer {
            Ok(_) => Outcome::Done,
            Err(RequestError::Handler(error, _)) if is_unknown(error) => Outcome::Unknown,
            Err(error) if error.may_have_happened() => Outcome::Unknown,
            Err(_) => Outcome::Not,
        }
    }

    /// The answer's word on what the handler recorded after its last [`Context::commit`](crate::Context::commit) in the middle: none
    /// of it happened if the handler failed, panicked or ran out of time, whatever it had committed before.
    pub fn of_rest<R, E>(answer: &Result<R, RequestError<E>>) -> Outcome {
        let is_cut =
            |cause: &RequestError<_>| matches!(cause, RequestError::Panicked(_) | RequestError::TimedOut { .. });
        match answer {
            Err(RequestError::Handler(..)) => Outcome::Not,
            Err(RequestError::Unknown(cause)) if is_cut(cause) => Outcome::Not,
            answer => Outcome::of(answer, |_| false),
        }
    }
}

/// Something that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// An effect that is to happen once. The same name may be asked for several times: then it is a counter.
    Effect(String),
    /// A message, whose effect is to happen once for each time it was [inserted](History::inserted) into the inbox, and once at
    /// least if that was acknowledged.
    Post {
        /// The message.
        message: String,
        /// The message's effect.
        effect: String,
    },
    /// A request under a [key](crate::Interface::request_once), perhaps one of many under that key.
    Keyed {
        /// The key and its instance.
        key: String,
        /// The effect that the message of this request has.
        effect: String,
    },
    /// An alarm.
    Set(Setting),
    /// The end of an alarm without firing. The name is that of [`Setting::alarm`].
    Cancel(String),
    /// The firing of an alarm at once.
    FireNow(String),
    /// The handling of a dead letter after all. The name is that of the letter's effect.
    Requeue(String),
    /// The end of a dead letter without handling. The name is that of the letter's effect.
    Discard(String),
}

impl What {
    /// The effect of a request or a message.
    fn effect(&self) -> Option<&str> {
        match self {
            What::Effect(effect) | What::Post { effect, .. } | What::Keyed { effect, .. } => Some(effect),
            _ => None,
        }
    }
}

/// One setting of an alarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The alarm, the same for all its settings: what one replaces.
    pub alarm: String,
    /// The name of this setting's effect, unique.
    pub effect: String,
    /// The time at which it is to fire.
    pub due: Timestamp,
    /// The least and the most often that its effect is to happen.
    pub times: (i64, i64),
    /// The shard and its instance's place in the order, for I7, if nothing else ever happens to that instance.
    pub alone: Option<(ShardId, String)>,
}

/// The beginning of an alarm's handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Began {
    /// The setting, by its effect.
    pub effect: String,
    /// The life of a host that it is on.
    pub life: u64,
    /// The latest time that this host's wall clock has shown.
    pub at: Timestamp,
    /// The time at which it was due.
    pub due: Timestamp,
    /// The number of the attempt.
    pub attempt: u32,
    /// Tells whether its host is the last of its name that was started. Another may fire from memory until it learns of that.
    pub is_current: bool,
}

/// The state that was left when everything had had its time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct End {
    /// The number of times each effect happened.
    pub effects: BTreeMap<String, i64>,
    /// The effects of alarms, messages and dead letters that are still there.
    pub waiting: BTreeSet<String>,
}

/// Everything that was asked for and that happened, in order. Clones are handles to the same one.
#[derive(Debug, Clone, Default)]
pub struct History(Arc<Mutex<Record>>);

#[derive(Debug, Default)]
struct Record {
    /// The number of things that have been written down: the place of the next one.
    place: u64,
    asked: Vec<Asked>,
    began: Vec<(u64, Began)>,
    /// The times at which lives of hosts began.
    lives: BTreeMap<u64, u64>,
    /// Lives in which there is not always room for an alarm.
    unordered: BTreeSet<u64>,
    /// Instances of which the start of an alarm could not be marked.
    unmarked: BTreeSet<String>,
    /// The numbers of times that each effect was asked for, and that this was acknowledged or refused.
    counts: BTreeMap<String, Count>,
    /// The number of times each message was inserted.
    inserted: BTreeMap<String, i64>,
    /// The replies that were given under keys, and the keys of which it was said that they were another message's.
    replies: BTreeMap<String, i64>,
    reused: BTreeSet<String>,
    /// Effects of requests of which it was said that nothing happened.
    denied: BTreeSet<String>,
    /// The results of steps that are durable.
    recorded: BTreeMap<String, String>,
    violations: Vec<Violation>,
    trace: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    asked: i64,
    done: i64,
    refused: i64,
}

#[derive(Debug)]
struct Asked {
    what: What,
    at: u64,
    told: Option<Told>,
}

#[derive(Debug, Clone, Copy)]
struct Told {
    at: u64,
    outcome: Outcome,
    /// The life that told it, and the time by the wall of that.
    by: Option<(u64, Timestamp)>,
}

impl Asked {
    /// Tells whether it may have happened.
    fn may_have_happened(&self) -> bool {
        self.told.is_none_or(|told| told.outcome != Outcome::Not)
    }

    /// The place of its acknowledgement.
    fn done_at(&self) -> Option<u64> {
        self.told.filter(|told| told.outcome == Outcome::Done).map(|told| told.at)
    }
}

/// Something that was asked for and not answered yet. Dropped without an answer, its outcome stays unknown.
#[derive(Debug)]
#[must_use = "what the answer was is to be written down"]
pub struct Pending {
    history: History,
    index: usize,
}

impl Pending {
    /// The answer came.
    pub fn told(self, outcome: Outcome) {
        self.history.tell(self.index, outcome, None);
    }

    /// The answer came from this life of a host, whose wall shows `now`.
    pub fn told_by(self, outcome: Outcome, life: u64, now: Timestamp) {
        self.history.tell(self.index, outcome, Some((life, now)));
    }
}

/// A look at a counter that has begun: see [`History::look`].
#[derive(Debug)]
#[must_use = "what was seen is to be compared"]
pub struct Look {
    history: History,
    effect: String,
    at_least: i64,
}

impl Look {
    /// A value was read: neither less than what had been acknowledged when the look began, nor more than was ever asked for.
    pub fn saw(self, value: i64) {
        let mut record = self.history.0.lock();
        let asked = record.counts.get(&self.effect).map_or(0, |count| count.asked);
        if !(self.at_least..=asked).contains(&value) {
            let what = format!("{} was read as {value}, not {:?}", self.effect, self.at_least..=asked);
            record.violations.push(Violation { invariant: Invariant::Read, what });
        }
    }
}

impl History {
    /// Writes down that something is being asked for now.
    pub fn ask(&self, what: What) -> Pending {
        let mut record = self.0.lock();
        let at = record.step(1, &format!("{what:?}"));
        if let Some(effect) = what.effect() {
            record.counts.entry(effect.to_owned()).or_default().asked += 1;
        }
        let index = record.asked.len();
        record.asked.push(Asked { what, at, told: None });
        Pending { history: self.clone(), index }
    }

    fn tell(&self, index: usize, outcome: Outcome, by: Option<(u64, Timestamp)>) {
        let mut record = self.0.lock();
        let at = record.step(2, &format!("{index} {outcome:?}"));
        let Record { asked, counts, .. } = &mut *record;
        let asked = &mut asked[index];
        asked.told = Some(Told { at, outcome, by });
        if let Some(effect) = asked.what.effect() {
            let count = counts.entry(effect.to_owned()).or_default();
            count.done += i64::from(outcome == Outcome::Done);
            count.refused += i64::from(outcome == Outcome::Not);
        }
    }

    /// Begins to read the counter of this effect.
    pub fn look(&self, effect: &str) -> Look {
        let at_least = self.0.lock().counts.get(effect).map_or(0, |count| count.done);
        Look { history: self.clone(), effect: effect.to_owned(), at_least }
    }

    /// The handler of an alarm begins.
    pub fn began(&self, began: Began) {
        let mut record = self.0.lock();
        let at = record.step(3, &format!("{began:?}"));
        if began.at < began.due {
            let early = began.due.as_millis() - began.at.as_millis();
            let what = format!("{} began {early} ms before its time", began.effect);
            record.violations.push(Violation { invariant: Invariant::NotEarly, what });
        }
        record.began.push((at, began));
    }

    /// A store has inserted a message into an inbox: a repeated post that comes after its message was handled does so again.
    pub fn inserted(&self, message: &str) {
        let mut record = self.0.lock();
        record.step(6, message);
        *record.inserted.entry(message.to_owned()).or_default() += 1;
    }

    /// The request that this effect belongs to was answered with an error that is definite: nothing of it happened, nor of what
    /// its handler may have committed in the middle and was told of then. For effects that are asked for once.
    pub fn denied(&self, effect: &str) {
        let mut record = self.0.lock();
        record.step(7, effect);
        record.denied.insert(effect.to_owned());
    }

    /// An attempt of a step begins, whose flow its host still owns: not if its result is recorded.
    pub fn step_began(&self, step: &str) {
        let mut record = self.0.lock();
        record.step(8, step);
        if let Some(result) = record.recorded.get(step) {
            let what = format!("the step {step} began again, and its result {result} was recorded");
            record.violations.push(Violation { invariant: Invariant::Recorded, what });
        }
    }

    /// The result of a step is durable, or is seen in a replay: it is the same for ever.
    pub fn step_recorded(&self, step: &str, result: &str) {
        let mut record = self.0.lock();
        record.step(9, step);
        let known = record.recorded.entry(step.to_owned()).or_insert_with(|| result.to_owned());
        if known != result {
            let what = format!("the step {step} has the result {result}, and had {known}");
            record.violations.push(Violation { invariant: Invariant::Recorded, what });
        }
    }

    /// A life of a host begins.
    pub fn life_began(&self, life: u64) {
        let mut record = self.0.lock();
        let at = record.step(4, &life.to_string());
        record.lives.insert(life, at);
    }

    /// In this life of a host alarms may start in another order: it has not always room for one that is due.
    pub fn no_order_in(&self, life: u64) {
        self.0.lock().unordered.insert(life);
    }

    /// An alarm of this instance was to be marked before its handler starts, and the mark was not written: others may start before it.
    pub fn unmarked(&self, instance: &str) {
        self.0.lock().unmarked.insert(instance.to_owned());
    }

    /// Anything else that is to repeat with the seed.
    pub fn note(&self, what: &str) {
        self.0.lock().step(5, what);
    }

    /// Records that a promise was not kept, as the caller has seen.
    pub fn violated(&self, invariant: Invariant, what: impl Into<String>) {
        self.0.lock().violations.push(Violation { invariant, what: what.into() });
    }

    /// The number of things that have been written down.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.lock().place
    }

    /// Tells whether nothing has been written down.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A number that tells two histories apart.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.0.lock().trace
    }

    /// Everything in which this history and this end break a promise, with what was seen on the way.
    #[must_use]
    pub fn check(&self, end: &End) -> Vec<Violation> {
        let record = self.0.lock();
        let mut checker = Checker { record: &record, end, violations: record.violations.clone() };
        checker.check_effects();
        checker.check_keys();
        checker.check_alarms();
        checker.check_order();
        for name in &end.waiting {
            checker.wrong(Invariant::Handled, format!("{name} is still waiting"));
        }
        checker.violations
    }
}

impl Record {
    fn step(&mut self, kind: u8, what: &str) -> u64 {
        self.place += 1;
        self.trace = xxhash_rust::xxh3::xxh3_64_with_seed(what.as_bytes(), self.trace ^ u64::from(kind));
        self.place
    }
}

struct Checker<'a> {
    record: &'a Record,
    end: &'a End,
    violations: Vec<Violation>,
}

/// The effects of dead letters that were decided about.
#[derive(Default)]
struct Decided<'a> {
    discarded: BTreeSet<&'a str>,
    /// The effects that were brought back, each with the place until which that may have happened.
    requeued: BTreeMap<&'a str, u64>,
}

impl Checker<'_> {
    fn wrong(&mut self, invariant: Invariant, what: String) {
        self.violations.push(Violation { invariant, what });
    }

    fn happened(&self, effect: &str) -> i64 {
        self.end.effects.get(effect).copied().unwrap_or(0)
    }

    /// Too few are a loss, unless it still waits; too many are a repetition. Of a request either is a false answer.
    fn compare(&mut self, effect: &str, (least, most): (i64, i64), is_request: bool, why: &str) {
        let happened = self.happened(effect);
        let is_waiting = self.end.waiting.contains(effect);
        let of_request = |otherwise| if is_request { Invariant::Answered } else { otherwise };
        if happened < least && !is_waiting {
            let what = format!("{effect} happened {happened} times, not {least}: {why}");
            self.wrong(of_request(if happened == 0 { Invariant::Kept } else { Invariant::Once }), what);
        }
        if happened > most {
            let what = format!("{effect} happened {happened} times, not {most} at most: {why}");
            self.wrong(of_request(Invariant::Once), what);
        }
    }

    fn check_effects(&mut self) {
        let mut requeued = BTreeMap::<&str, i64>::new();
        let mut inserted = BTreeMap::<&str, i64>::new();
        let mut discarded = BTreeSet::new();
        let mut settings = BTreeSet::new();
        for asked in self.record.asked.iter().filter(|asked| asked.may_have_happened()) {
            match &asked.what {
                What::Requeue(effect) => *requeued.entry(effect).or_default() += 1,
                What::Discard(effect) => drop(discarded.insert(effect.as_str())),
                What::Set(setting) => drop(settings.insert(setting.effect.as_str())),
                What::Post { message, effect } => {
                    let times = self.record.inserted.get(message).copied().unwrap_or(0);
                    inserted.insert(effect, times);
                }
                _ => {}
            }
        }
        let record = self.record;
        let of_post = |asked: &&Asked| matches!(asked.what, What::Post { .. });
        let posts: BTreeSet<_> = record.asked.iter().filter(of_post).filter_map(|asked| asked.what.effect()).collect();
        let keyed = self.keyed();
        for (effect, count) in &record.counts {
            // Of those under a key one at most happens; none of which nothing was done.
            if count.asked > count.refused && keyed.contains(effect.as_str()) {
                continue;
            }
            let is_post = inserted.contains_key(effect.as_str());
            let done = if is_post { count.done.min(1) } else { count.done };
            // What was inserted was handled or waits, whatever its sender was told. Requeued, it was inserted again.
            let is_requeued = requeued.contains_key(effect.as_str());
            let done = done.max(inserted.get(effect.as_str()).copied().filter(|_| !is_requeued).unwrap_or(0));
            let least = if discarded.contains(effect.as_str()) { 0 } else { done };
            let most = match inserted.get(effect.as_str()) {
                Some(times) => *times,
                None => count.asked - count.refused + requeued.get(effect.as_str()).copied().unwrap_or(0),
            };
            self.compare(effect, (least, most), !posts.contains(effect.as_str()), &format!("{count:?}"));
        }
        for effect in record.denied.iter().filter(|effect| self.happened(effect) > 0).cloned().collect::<Vec<_>>() {
            self.wrong(Invariant::Answered, format!("{effect} happened, and its request was told that nothing had"));
        }
        for effect in self.end.effects.keys() {
            if !record.counts.contains_key(effect) && !settings.contains(effect.as_str()) {
                self.wrong(Invariant::Once, format!("{effect} happened and nobody had asked for it"));
            }
        }
    }

    fn check_alarms(&mut self) {
        let record = self.record;
        let mut decided = Decided::default();
        let mut of_alarm = BTreeMap::<&str, Vec<&Asked>>::new();
        let mut began = BTreeMap::<&str, Vec<&(u64, Began)>>::new();
        let mut known = BTreeSet::new();
        for asked in &record.asked {
            match &asked.what {
                What::Set(setting) => {
                    known.insert(setting.effect.as_str());
                    of_alarm.entry(&setting.alarm).or_default().push(asked);
                }
                What::Cancel(alarm) | What::FireNow(alarm) => of_alarm.entry(alarm).or_default().push(asked),
                What::Discard(effect) if asked.may_have_happened() => drop(decided.discarded.insert(effect)),
                What::Requeue(effect) if asked.may_have_happened() => {
                    let until = decided.requeued.entry(effect).or_default();
                    *until = (*until).max(asked.done_at().unwrap_or(u64::MAX));
                }
                _ => {}
            }
        }
        for start in &record.began {
            began.entry(&start.1.effect).or_default().push(start);
            if !known.contains(start.1.effect.as_str()) {
                self.wrong(Invariant::Once, format!("{} began and nobody had asked for it", start.1.effect));
            }
        }
        for (alarm, all) in &of_alarm {
            for asked in all {
                let What::Set(setting) = &asked.what else { continue };
                let starts = began.get(setting.effect.as_str()).map_or(&[][..], Vec::as_slice);
                self.check_setting(alarm, all, asked, setting, starts, &decided);
            }
        }
    }

    fn check_setting(
        &mut self,
        alarm: &str,
        all: &[&Asked],
        asked: &Asked,
        setting: &Setting,
        starts: &[&(u64, Began)],
        decided: &Decided<'_>,
    ) {
        let is_discarded = decided.discarded.contains(setting.effect.as_str());
        // Whatever may have replaced or removed it: asked for before this was answered is not certainly before it.
        let replaces = |other: &&&Asked| {
            let is_other = match &other.what {
                What::Set(setting_of_other) => setting_of_other.effect != setting.effect,
                What::Cancel(_) => true,
                _ => false,
            };
            let is_before = other.told.is_some_and(|told| told.at < asked.at && told.outcome == Outcome::Done);
            is_other && other.may_have_happened() && !is_before
        };
        let is_replaced = is_discarded || all.iter().any(|other| replaces(&other));
        // What fired was set, whatever its setter was told.
        let was_set = asked.done_at().is_some() || !starts.is_empty();
        let least = if was_set && !is_replaced { setting.times.0 } else { 0 };
        let most = if asked.may_have_happened() { setting.times.1 } else { 0 };
        self.compare(&setting.effect, (least, most), false, &format!("an alarm that was {:?}", asked.told));
        if !asked.may_have_happened() && !starts.is_empty() {
            self.wrong(Invariant::Once, format!("{} began although its setting was refused", setting.effect));
        }
        // Requeued, it is due when that happened.
        let is_hurried = decided.requeued.contains_key(setting.effect.as_str());
        let is_hurried =
            is_hurried || all.iter().any(|other| matches!(other.what, What::FireNow(_)) && other.may_have_happened());
        // A retry is due some time after the failure, whatever its host's wall shows by then.
        let is_early = |start: &Began| start.attempt == 0 && start.due < setting.due && !is_hurried;
        if let Some((_, start)) = starts.iter().find(|(_, start)| is_early(start)) {
            let what = format!("{} was due at {:?} and set for {:?}", setting.effect, start.due, setting.due);
            self.wrong(Invariant::NotEarly, what);
        }
        let Some(set_at) = asked.done_at() else { return };
        // Whoever brings a dead letter back sets the alarm once more: what it was cancelled by may have come before that, unless it was asked for after.
        let set_again_at = decided.requeued.get(setting.effect.as_str()).copied().unwrap_or(0);
        for (at, start) in starts.iter().filter(|(_, start)| start.is_current) {
            let by = all.iter().find(|other| {
                let is_after = other.at > set_at.max(set_again_at);
                replaces(other) && is_after && other.done_at().is_some_and(|done_at| done_at < *at)
            });
            if let Some(by) = by {
                let what = format!(
                    "{} of {alarm} began on {} after {:?} was acknowledged",
                    setting.effect, start.life, by.what
                );
                self.wrong(Invariant::NotAfterCancel, what);
            }
        }
    }

    /// I7, for alarms to whose instances nothing else happens: of two that were durable before the first was due, as far as their
    /// host's wall goes, the first starts first.
    fn check_order(&mut self) {
        let record = self.record;
        let mut settings = BTreeMap::new();
        for asked in &record.asked {
            if let What::Set(setting) = &asked.what
                && let Some((shard, instance)) = &setting.alone
                && !record.unmarked.contains(instance)
                && let Some(told) = asked.told.filter(|told| told.outcome == Outcome::Done)
            {
                settings.insert(setting.effect.as_str(), (*shard, (setting.due, instance), told));
            }
        }
        let mut seen = BTreeSet::new();
        // What has started, by life and shard.
        let mut started = BTreeMap::<_, Vec<_>>::new();
        for (_, start) in record.began.iter().filter(|(_, start)| !record.unordered.contains(&start.life)) {
            let Some((shard, key, told)) = settings.get(start.effect.as_str()) else { continue };
            if start.attempt > 0 || !seen.insert(start.effect.as_str()) || start.due != key.0 {
                continue;
            }
            let began_life = record.lives.get(&start.life).copied().unwrap_or(0);
            let was_known = |told: &Told| {
                told.at < began_life || told.by.is_some_and(|(life, now)| life == start.life && now < key.0)
            };
            let before = started.entry((start.life, *shard)).or_default();
            if was_known(told)
                && let Some((later, _)) = before.iter().find(|(later, told)| later > key && was_known(told))
            {
                let what = format!("in shard {shard} {later:?} began before {key:?} on {}", start.life);
                self.violations.push(Violation { invariant: Invariant::InOrder, what });
            }
            before.push((*key, *told));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn happened(effect: &str) -> End {
        End { effects: [(effect.to_owned(), 1)].into(), ..End::default() }
    }

    #[test]
    fn an_effect_that_was_committed_in_the_middle_of_a_request_and_then_denied_is_found_out() {
        let history = History::default();
        history.ask(What::Effect("a/1".to_owned())).told(Outcome::Done);
        assert_eq!(history.check(&happened("a/1")), []);
        history.denied("a/1");
        let found = history.check(&happened("a/1"));
        assert!(matches!(&found[..], [Violation { invariant: Invariant::Answered, .. }]), "{found:?}");
    }

    #[test]
    fn a_dead_letter_that_is_brought_back_after_its_alarm_was_cancelled_or_meanwhile_may_begin_and_one_before_may_not()
    {
        let (alarm, effect) = ("a/x".to_owned(), "a/1".to_owned());
        let due = Timestamp::from_millis(1);
        let cancel = |history: &History| history.ask(What::Cancel(alarm.clone())).told(Outcome::Done);
        let requeue = |history: &History| history.ask(What::Requeue(effect.clone())).told(Outcome::Done);
        let run = |orders: &[&dyn Fn(&History)]| {
            let history = History::default();
            let setting = Setting { alarm: alarm.clone(), effect: effect.clone(), due, times: (1, 1), alone: None };
            history.ask(What::Set(setting)).told(Outcome::Done);
            orders.iter().for_each(|order| order(&history));
            let effect = effect.clone();
            history.began(Began { effect, life: 1, at: due, due, attempt: 0, is_current: true });
            history.check(&happened("a/1"))
        };
        assert_eq!(run(&[&cancel, &requeue]), []);
        let meanwhile = |history: &History| {
            let cancelling = history.ask(What::Cancel(alarm.clone()));
            requeue(history);
            cancelling.told(Outcome::Done);
        };
        assert_eq!(run(&[&meanwhile]), []);
        let found = run(&[&requeue, &cancel]);
        assert!(matches!(&found[..], [Violation { invariant: Invariant::NotAfterCancel, .. }]), "{found:?}");
    }

    #[test]
    fn a_step_that_begins_again_or_has_another_result_once_that_is_recorded_is_found_out() {
        let history = History::default();
        history.step_began("a/pay");
        history.step_began("a/pay");
        history.step_recorded("a/pay", "7");
        history.step_recorded("a/pay", "7");
        assert_eq!(history.check(&End::default()), []);
        history.step_recorded("a/pay", "8");
        history.step_began("a/pay");
        let found = history.check(&End::default());
        assert!(matches!(&found[..], [first, second] if first.invariant == Invariant::Recorded && *first != *second));
    }

    #[test]
    fn what_a_handler_recorded_after_its_last_commit_in_the_middle_has_not_happened_when_it_failed() {
        let of = |error: RequestError<&str>| {
            let answer = Err::<(), RequestError<&str>>(error);
            (Outcome::of(&answer, |_| false), Outcome::of_rest(&answer))
        };
        let panicked = || RequestError::<&str>::Panicked(String::new());
        assert_eq!(of(RequestError::handler("no").in_doubt()), (Outcome::Unknown, Outcome::Not));
        assert_eq!(of(panicked().in_doubt()), (Outcome::Unknown, Outcome::Not));
        assert_eq!(of(RequestError::Draining.in_doubt()), (Outcome::Unknown, Outcome::Unknown));
        assert_eq!(of(RequestError::handler("no")), (Outcome::Not, Outcome::Not));
        assert_eq!(of(panicked()), (Outcome::Not, Outcome::Not));
        let history = History::default();
        history.ask(What::Effect("a/2".to_owned())).told(Outcome::of_rest(&Err::<(), _>(panicked().in_doubt())));
        let found = history.check(&happened("a/2"));
        assert!(matches!(&found[..], [Violation { invariant: Invariant::Answered, .. }]), "{found:?}");
    }
}
