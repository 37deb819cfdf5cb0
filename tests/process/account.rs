//! The account of what the hosts acknowledged, and whether what is stored agrees with it.
//!
//! The account is in the parent, which nobody kills, so it does not depend on what any host remembers. An operation that is
//! stored without an acknowledgement is none of its business, except that it must be whole: its alarm fired or was cancelled.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use stable_interfaces::Timestamp;
use stable_interfaces::testing::{Began, End, History, Outcome, Setting, What};

use super::ledger::Counts;

/// All that was said of operations, in order.
#[derive(Debug, Default)]
pub struct Account {
    /// `ledger operation`, booked, cancelled or posted.
    booked: HashSet<String>,
    cancelled: HashSet<String>,
    posted: HashSet<String>,
    /// `ledger operation` of what was refused for certain, and never asked for again, by kind.
    refused: BTreeMap<String, HashSet<String>>,
    history: History,
    /// The alarms that began to fire, by host.
    fired: BTreeMap<String, Vec<String>>,
}

/// The findings.
#[derive(Debug, Default)]
pub struct Verdict {
    /// The number of operations that were acknowledged.
    pub acknowledged: usize,
    /// Acknowledged, and not there.
    pub lost: Vec<String>,
    /// Alarms that fired before their time.
    pub early: u64,
    /// Effects that happened more than once, or landed from a former owner.
    pub twice: u64,
    /// Everything else that must not be, and the above again as the checker of all tests words it.
    pub wrong: Vec<String>,
    /// The number of alarms and messages that were suspected of killing their process, and let go on.
    pub requeued: u64,
}

/// The alarm of an operation, whose handler checks the time by itself.
fn set(op: &str) -> What {
    What::Set(Setting { alarm: op.to_owned(), effect: op.to_owned(), due: Timestamp::MIN, times: (1, 1), alone: None })
}

impl Account {
    /// Takes a line that says what happened to an operation; false if it says something else.
    pub(super) fn hear(&mut self, host: &str, line: &str) -> bool {
        let Some((what, rest)) = line.split_once(' ') else { return false };
        match what {
            "booked" => {
                self.history.ask(set(rest)).told(Outcome::Done);
                self.booked.insert(rest.to_owned());
            }
            "cancelled" => {
                self.history.ask(What::Cancel(rest.to_owned())).told(Outcome::Done);
                self.cancelled.insert(rest.to_owned());
            }
            "posted" => drop(self.posted.insert(rest.to_owned())),
            "denied" => {
                let Some((kind, op)) = rest.split_once(' ') else { return false };
                self.refused.entry(kind.to_owned()).or_default().insert(op.to_owned());
            }
            "fired" => {
                let words: Vec<_> = rest.split(' ').collect();
                let [id, op, at, due] = words[..] else { return false };
                let time = |word: &str| Timestamp::from_millis(word.parse().expect("a child says times as numbers"));
                let alarm = format!("{id} {op}");
                self.fired.entry(host.to_owned()).or_default().push(alarm.clone());
                let (at, due) = (time(at), time(due));
                self.history.began(Began { effect: alarm, life: 0, at, due, attempt: 0, is_current: true });
            }
            _ => return false,
        }
        true
    }

    /// Counts the operations that were acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.booked.len() + self.cancelled.len() + self.posted.len()
    }

    /// The alarms, as `ledger operation`, whose handlers a host said that it began.
    #[must_use]
    pub fn fired_by(&self, host: &str) -> &[String] {
        self.fired.get(host).map_or(&[], Vec::as_slice)
    }

    /// Tells whether these counts leave room for all that was acknowledged.
    pub(super) fn may_be_all(&self, counts: &Counts) -> bool {
        counts.taken >= self.posted.len() as u64
            && counts.booked >= self.booked.len() as u64
            && counts.cancelled >= self.cancelled.len() as u64
    }

    /// Compares it with what is stored: lines of `counts LEDGER JSON` and `row LEDGER KIND/OPERATION NUMBER`.
    pub(super) fn check(&self, stored: &[String], requeued: u64) -> Verdict {
        let mut verdict = Verdict { acknowledged: self.acknowledged(), requeued, ..Verdict::default() };
        let mut held: HashMap<&str, HashSet<String>> = HashMap::new();
        let mut numbers: BTreeMap<(&str, &str), BTreeSet<u64>> = BTreeMap::new();
        let mut rows: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        let mut counts: BTreeMap<&str, Counts> = BTreeMap::new();
        for line in stored {
            let mut words = line.splitn(4, ' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("counts"), Some(id), Some(json), None) => {
                    if counts.insert(id, serde_json::from_str(json).expect("a child says counts")).is_some() {
                        verdict.wrong.push(format!("two hosts say that {id} is theirs"));
                    }
                }
                (Some("row"), Some(id), Some(key), Some(number)) => {
                    let (kind, op) = key.split_once('/').expect("a row has a kind");
                    held.entry(kind).or_default().insert(format!("{id} {op}"));
                    numbers.entry((id, kind)).or_default().insert(number.parse().expect("a row has a number"));
                    *rows.entry((id, kind)).or_default() += 1;
                }
                _ => verdict.wrong.push(format!("{line:?} is neither counts nor a row")),
            }
        }
        for (id, count) in &counts {
            verdict.early += count.early;
            let kinds = [
                ("booked", count.booked),
                ("cancelled", count.cancelled),
                ("fired", count.fired),
                ("taken", count.taken),
            ];
            for (kind, count) in kinds {
                let rows = rows.get(&(*id, kind)).copied().unwrap_or(0);
                let numbers = numbers.get(&(*id, kind)).map_or(0, BTreeSet::len) as u64;
                // A number given twice was given by two owners; a count beyond the rows counted one of them again.
                let twice = (rows - numbers) + count.saturating_sub(rows);
                verdict.twice += twice;
                if twice > 0 || count < rows {
                    verdict.wrong.push(format!("{id} counts {count} {kind}, has {rows} rows, numbered {numbers} ways"));
                }
            }
        }
        let none = HashSet::new();
        let of = |kind| held.get(kind).unwrap_or(&none);
        let (booked, cancelled, fired, taken) = (of("booked"), of("cancelled"), of("fired"), of("taken"));
        let missing = |said: &HashSet<String>, held: &HashSet<String>, what: &str| {
            let missing = said.iter().filter(|op| !held.contains(*op));
            missing.map(|op| format!("{what} {op}")).collect::<Vec<_>>()
        };
        verdict.lost.extend(missing(&self.booked, booked, "booked"));
        verdict.lost.extend(missing(&self.cancelled, cancelled, "cancelled"));
        verdict.lost.extend(missing(&self.posted, taken, "posted"));
        for op in booked {
            match (fired.contains(op), cancelled.contains(op)) {
                (false, false) => verdict.lost.push(format!("alarm {op}")),
                (true, true) => verdict.wrong.push(format!("{op} was cancelled, and fired")),
                _ => {}
            }
        }
        for (kind, refused) in &self.refused {
            let happened = refused.intersection(of(kind));
            verdict.wrong.extend(happened.map(|op| format!("{kind} {op} was refused, and is stored")));
        }
        verdict.wrong.extend(self.history(booked, cancelled, fired));
        verdict
    }

    /// The same by the checker that all tests share.
    fn history(&self, booked: &HashSet<String>, cancelled: &HashSet<String>, fired: &HashSet<String>) -> Vec<String> {
        // What was stored and not acknowledged was asked for too.
        for op in booked.iter().filter(|op| !self.booked.contains(*op)) {
            self.history.ask(set(op)).told(Outcome::Unknown);
        }
        for op in cancelled.iter().filter(|op| !self.cancelled.contains(*op)) {
            self.history.ask(What::Cancel(op.clone())).told(Outcome::Unknown);
        }
        let effects = fired.iter().map(|op| (op.clone(), 1)).collect();
        let violations = self.history.check(&End { effects, ..End::default() });
        violations.iter().map(ToString::to_string).collect()
    }
}

impl Verdict {
    /// Fails the test unless everything is as it must be.
    #[track_caller]
    pub fn assert_right(&self, run: &str) {
        let first = |lines: &[String]| lines.iter().take(5).cloned().collect::<Vec<_>>();
        assert!(self.lost.is_empty(), "{run}: {} lost: {:?} ..", self.lost.len(), first(&self.lost));
        assert!(self.wrong.is_empty(), "{run}: {} wrong: {:?} ..", self.wrong.len(), first(&self.wrong));
        assert_eq!((self.early, self.twice), (0, 0), "{run}");
    }
}

/// `4711 acknowledged operations, lost 0, early 0, effects twice 0`
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { acknowledged, lost, early, twice, .. } = self;
        write!(f, "{acknowledged} acknowledged operations, lost {}, early {early}, effects twice {twice}", lost.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(said: &[&str], stored: &[&str]) -> Verdict {
        let mut account = Account::default();
        assert!(said.iter().all(|line| account.hear("host-0", line)));
        account.check(&stored.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>(), 0)
    }

    #[test]
    fn the_account_finds_what_was_lost_what_came_twice_and_what_was_refused_and_done() {
        let stored = ["counts l [1,0,1,0,0]", "row l booked/a 1", "row l fired/a 1"];
        verdict(&["booked l a"], &stored).assert_right("as it was said");
        verdict(&["booked l a", "denied booked l b"], &stored).assert_right("and another did not happen");
        assert_eq!(verdict(&["booked l a", "booked l b"], &stored).lost.len(), 1);
        assert!(!verdict(&["denied booked l a"], &stored).wrong.is_empty());
        let twice = ["counts l [2,0,1,0,0]", "row l booked/a 2", "row l fired/a 1"];
        assert_eq!(verdict(&["booked l a"], &twice).twice, 1, "counted again");
        let by_two =
            ["counts l [2,0,2,0,0]", "row l booked/a 1", "row l booked/b 1", "row l fired/a 1", "row l fired/b 2"];
        assert_eq!(verdict(&["booked l a"], &by_two).twice, 1, "a number given by two owners");
    }
}
