//! What a run did and was told, and whether that may be.
//!
//! A run records each thing when it is known, in one order; [`check`](History::check) then compares that with what is left in
//! the end, by the invariants that hold whatever failed in between: I1 to I5 of the fault table. It knows nothing of how the
//! run was made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use stable_interfaces::{ContextError, RequestError, Timestamp};

use crate::{Answer, Failed};

/// What is known of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was acknowledged.
    Done,
    /// It did not happen, for certain.
    Not,
    /// It may have happened.
    Unknown,
}

impl Outcome {
    /// What `answer` says.
    pub fn of<R>(answer: &Answer<R>) -> Outcome {
        match answer {
            Ok(_) => Outcome::Done,
            Err(RequestError::Handler(Failed::Context(ContextError::Unknown))) => Outcome::Unknown,
            Err(error) if error.may_have_happened() => Outcome::Unknown,
            Err(_) => Outcome::Not,
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// An alarm was asked for, which is to have its effect so many times.
    Set {
        /// Which.
        alarm: String,
        /// How often its effect is to happen.
        times: i64,
        /// Whether it was set.
        outcome: Outcome,
    },
    /// Its cancelling was asked for.
    Cancelled {
        /// Which.
        alarm: String,
        /// Whether it was cancelled.
        outcome: Outcome,
    },
    /// Its handler began.
    Fired {
        /// Which.
        alarm: String,
        /// When, by the host's clock.
        at: Timestamp,
        /// When it was due.
        due: Timestamp,
    },
    /// A counter was to be raised.
    Counted {
        /// Which.
        counter: String,
        /// Whether it was.
        outcome: Outcome,
    },
}

/// Everything that happened, in order. Clones are handles to the same one.
#[derive(Debug, Clone, Default)]
pub struct History(Arc<Mutex<Vec<Event>>>);

/// What was left in the store when everything had had its time.
#[derive(Debug, Clone, Default)]
pub struct End {
    /// How often the effect of each alarm happened.
    pub effects: BTreeMap<String, i64>,
    /// The counters.
    pub counters: BTreeMap<String, i64>,
    /// The alarms still there, dead ones too.
    pub alarms: Vec<String>,
}

impl History {
    /// Records what happened now.
    pub fn add(&self, event: Event) {
        self.0.lock().push(event);
    }

    /// How many events there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Whether nothing has happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every way in which this history and this end do not fit together.
    #[must_use]
    pub fn check(&self, end: &End) -> Vec<String> {
        let events = self.0.lock();
        let mut wrong = Vec::new();
        let mut set = BTreeMap::new();
        let mut cancelled = BTreeMap::new();
        let mut acknowledged = BTreeSet::new();
        let mut fired = BTreeSet::new();
        let mut counted = BTreeMap::<_, (i64, i64)>::new();
        for event in events.iter() {
            match event {
                Event::Set { alarm, times, outcome } => drop(set.insert(alarm.clone(), (*times, *outcome))),
                Event::Cancelled { alarm, outcome } => {
                    cancelled.insert(alarm.clone(), *outcome);
                    if *outcome == Outcome::Done {
                        acknowledged.insert(alarm.clone());
                    }
                }
                Event::Fired { alarm, at, due } => {
                    fired.insert(alarm.clone());
                    if at < due {
                        wrong.push(format!("I2: {alarm} fired {} ms early", due.as_millis() - at.as_millis()));
                    }
                    if acknowledged.contains(alarm) {
                        wrong.push(format!("I5: {alarm} fired after its cancelling had been acknowledged"));
                    }
                }
                Event::Counted { counter, outcome } => {
                    let (done, unknown) = counted.entry(counter.clone()).or_default();
                    *done += i64::from(*outcome == Outcome::Done);
                    *unknown += i64::from(*outcome == Outcome::Unknown);
                }
            }
        }
        for (alarm, (times, outcome)) in &set {
            let effects = end.effects.get(alarm).copied().unwrap_or(0);
            let was_cancelled = matches!(cancelled.get(alarm), Some(Outcome::Done | Outcome::Unknown));
            let allowed = match outcome {
                Outcome::Not => 0..=0,
                Outcome::Done if !was_cancelled => *times..=*times,
                _ => 0..=*times,
            };
            if !allowed.contains(&effects) {
                wrong.push(format!("I3/I4: {alarm}, {outcome:?}, had its effect {effects} times, not {allowed:?}"));
            }
            if *outcome != Outcome::Not && !was_cancelled && fired.contains(alarm) && effects != *times {
                wrong.push(format!("I4: {alarm} fired and had its effect {effects} times of {times}"));
            }
        }
        for alarm in fired.iter().filter(|alarm| !set.contains_key(*alarm)) {
            wrong.push(format!("{alarm} fired and nobody had asked for it"));
        }
        for alarm in &end.alarms {
            wrong.push(format!("I3: {alarm} is still there"));
        }
        for (counter, (done, unknown)) in counted {
            let count = end.counters.get(&counter).copied().unwrap_or(0);
            if !(done..=done + unknown).contains(&count) {
                wrong.push(format!("I4: {counter} is {count} after {done} acknowledged and {unknown} unknown"));
            }
        }
        wrong
    }
}
