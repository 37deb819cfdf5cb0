//! The verdict: what each member saw, against the history that a newcomer is told.
//!
//! Pure code: the self-test passes all in. A member's log must be the very beginning of its room's history, entry for entry, so
//! order, loss, repetition and strays from other rooms all show in one comparison; the rest is about who was said to be gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use stable_interfaces::Timestamp;

use crate::drill::client::News;
use crate::protocol::{Entry, What};

/// The record of what one member said and learned.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) room: String,
    pub(crate) name: String,
    /// Says that it comes back after the kill.
    pub(crate) returns: bool,
    /// The tags of what it said, in its order.
    pub(crate) said: Vec<u64>,
    pub(crate) entries: Vec<Entry>,
    missed: u64,
    is_out: bool,
    refused: Option<String>,
}

impl Log {
    pub(crate) fn new(room: &str, returns: bool) -> Log {
        Log {
            room: room.to_owned(),
            name: String::new(),
            returns,
            said: Vec::new(),
            entries: Vec::new(),
            missed: 0,
            is_out: false,
            refused: None,
        }
    }

    pub(crate) fn note(&mut self, news: News) {
        self.is_out = matches!(news, News::Out(_));
        match news {
            News::Entry(entry) => self.entries.push(entry),
            News::In { missed, .. } => self.missed += missed,
            News::Out(_) => {}
            News::Refused(reason) => self.refused = Some(reason),
        }
    }

    /// The number of the last entry it saw.
    pub(crate) fn seen(&self) -> u64 {
        self.entries.last().map_or(0, |entry| entry.number)
    }

    /// Tells whether it has been cut off and is not back.
    pub(crate) fn is_out(&self) -> bool {
        self.is_out
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.refused.is_some()
    }
}

/// All that was said and seen.
#[derive(Debug)]
pub(crate) struct Transcript {
    /// The history of each room as a newcomer is told it, in the end.
    pub(crate) histories: BTreeMap<String, Vec<Entry>>,
    pub(crate) logs: Vec<Log>,
}

/// The kill of the host, and what follows from that for those who stayed away.
#[derive(Debug)]
pub(crate) struct Kill {
    /// The number of messages that were under way.
    pub(crate) unacknowledged: usize,
    /// The host was started again at some time between these two.
    pub(crate) restarted: Timestamp,
    pub(crate) back: Timestamp,
    pub(crate) gone_after: Duration,
    /// The most by which it may be announced later than that.
    pub(crate) late: Duration,
}

/// The story of one who did not read.
#[derive(Debug)]
pub(crate) struct SlowReader {
    /// The entries that the one who talked saw.
    pub(crate) heard: Vec<Entry>,
    /// The entries that the slow reader saw until it was let go, and on its return.
    pub(crate) before: Vec<Entry>,
    pub(crate) after: Vec<Entry>,
    /// The number of entries that it was told it cannot get any more.
    pub(crate) missed: u64,
    /// The reason for which it was let go, and the one for which it should have been.
    pub(crate) reason: String,
    pub(crate) expected: &'static str,
}

/// All that was found.
#[derive(Debug)]
pub(crate) struct Report {
    rooms: usize,
    members: usize,
    messages: usize,
    unacknowledged: usize,
    away: usize,
    /// The time from its restart until the host announced the last of those who stayed away.
    gone_within: Duration,
    slow_before: usize,
    slow_after: usize,
    pub(crate) faults: Vec<String>,
}

impl Report {
    pub(crate) fn new(transcript: Transcript, kill: &Kill, slow: SlowReader, farewell: String) -> Report {
        let Transcript { histories, logs } = &transcript;
        let mut faults = Vec::new();
        for (room, history) in histories {
            let logs: Vec<_> = logs.iter().filter(|log| log.room == *room).collect();
            faults.extend(judge(history, &logs, kill).into_iter().map(|fault| format!("{room}: {fault}")));
        }
        faults.extend(slow.faults());
        if farewell != "the host is draining" {
            faults.push(format!("the last guest was told {farewell:?} when the host ended"));
        }
        let entries = || histories.values().flatten();
        let gone = entries().filter(|entry| entry.what == What::Gone);
        Report {
            rooms: histories.len(),
            members: logs.iter().filter(|log| !log.said.is_empty()).count(),
            messages: entries().filter(|entry| matches!(entry.what, What::Said { .. })).count(),
            unacknowledged: kill.unacknowledged,
            away: logs.iter().filter(|log| !log.returns).count(),
            gone_within: gone.map(|entry| entry.at.since(kill.restarted)).max().unwrap_or_default(),
            slow_before: slow.before.len(),
            slow_after: slow.after.len(),
            faults,
        }
    }
}

/// `4 rooms, 20 members, 240 messages: none lost, twice, out of order or astray; ..`
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rooms, {} members, {} messages: ", self.rooms, self.members, self.messages)?;
        if !self.faults.is_empty() {
            return write!(f, "{} faults", self.faults.len());
        }
        write!(
            f,
            "none lost, twice, out of order or astray; host killed with {} unacknowledged; {} who stayed away announced gone \
             within {} ms, nobody else; slow reader let go after {} entries, came back for {} and lost none",
            self.unacknowledged,
            self.away,
            self.gone_within.as_millis(),
            self.slow_before,
            self.slow_after
        )
    }
}

/// Finds what is wrong in one room.
fn judge(history: &[Entry], logs: &[&Log], kill: &Kill) -> Vec<String> {
    let mut faults = Vec::new();
    if let Some(wrong) = (1..).zip(history).find(|(number, entry)| entry.number != *number) {
        faults.push(format!("the history has {:?} as number {}", wrong.1, wrong.0));
    }
    let said_by = |name: &str| -> Vec<u64> {
        let tag = |entry: &Entry| match entry.what {
            What::Said { tag, .. } if entry.who == name => Some(tag),
            _ => None,
        };
        history.iter().filter_map(tag).collect()
    };
    let speakers: BTreeSet<_> = logs.iter().map(|log| log.name.as_str()).collect();
    for entry in history.iter().filter(|entry| matches!(entry.what, What::Said { .. })) {
        if !speakers.contains(entry.who.as_str()) {
            faults.push(format!("{} is not of this room, and was heard here", entry.who));
        }
    }
    for log in logs {
        let name = &log.name;
        if let Some(reason) = &log.refused {
            faults.push(format!("{name} was refused: {reason}"));
        }
        if log.missed > 0 {
            faults.push(format!("{name} could not get {} entries", log.missed));
        }
        if let Some((saw, is)) = log.entries.iter().zip(history).find(|(saw, is)| saw != is) {
            faults.push(format!("{name} saw {saw:?} where the history has {is:?}"));
        }
        if log.returns && log.entries.len() < history.len() {
            faults.push(format!("{name} saw {} of {} entries", log.entries.len(), history.len()));
        }
        if !log.returns && log.entries.len() > history.len() {
            faults.push(format!("{name} saw {} entries of {}", log.entries.len(), history.len()));
        }
        // Those who stayed away may not know of the last things they said.
        let counted = said_by(name);
        if !log.said.starts_with(&counted) || (log.returns && log.said.len() != counted.len()) {
            faults.push(format!("{name} said {:?}, and the history has {counted:?}", log.said));
        }
        let how_often = |what: &What| history.iter().filter(|entry| entry.who == *name && entry.what == *what).count();
        if how_often(&What::Joined) != 1 {
            faults.push(format!("{name} joined {} times", how_often(&What::Joined)));
        }
        match (log.returns, how_often(&What::Gone)) {
            (true, 0) | (false, 1) => {}
            (true, _) => faults.push(format!("{name} came back, and was announced gone")),
            (false, times) => faults.push(format!("{name} stayed away, and was announced gone {times} times")),
        }
    }
    let (earliest, latest) = (kill.restarted + kill.gone_after, kill.back + kill.gone_after + kill.late);
    for entry in history.iter().filter(|entry| entry.what == What::Gone) {
        if entry.at < earliest || entry.at > latest {
            faults.push(format!(
                "{} was announced gone {} ms after the restart",
                entry.who,
                entry.at.since(kill.restarted).as_millis()
            ));
        }
    }
    faults
}

impl SlowReader {
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.reason != self.expected {
            faults.push(format!("the slow reader was told {:?}", self.reason));
        }
        if self.missed > 0 {
            faults.push(format!("the slow reader could not get {} entries", self.missed));
        }
        let saw: Vec<_> = self.before.iter().chain(&self.after).collect();
        if !(1..).zip(&saw).all(|(number, entry)| entry.number == number) {
            faults.push("the slow reader saw entries twice, out of order or not at all".to_owned());
        }
        if let Some(unseen) = self.heard.iter().find(|entry| !saw.contains(entry)) {
            faults.push(format!("the slow reader did not see {}", unseen.number));
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64, who: &str, what: What) -> Entry {
        Entry { number, at: Timestamp::from_millis(0), who: who.to_owned(), what }
    }

    fn said(tag: u64) -> What {
        What::Said { tag, text: format!("r: {tag}") }
    }

    const GONE_AT: i64 = 12_500;

    fn gone(number: u64, who: &str, at: i64) -> Entry {
        Entry { at: Timestamp::from_millis(at), ..entry(number, who, What::Gone) }
    }

    /// Ann stays, bob does not come back; bob never learned what became of his last message.
    fn history() -> Vec<Entry> {
        vec![
            entry(1, "ann", What::Joined),
            entry(2, "bob", What::Joined),
            entry(3, "ann", said(7)),
            entry(4, "bob", said(8)),
            entry(5, "bob", said(9)),
            entry(6, "ann", said(10)),
            gone(7, "bob", GONE_AT),
        ]
    }

    fn log(name: &str, returns: bool, said: &[u64], entries: &[Entry]) -> Log {
        let (name, entries) = (name.to_owned(), entries.to_vec());
        Log { name, said: said.to_vec(), entries, ..Log::new("r", returns) }
    }

    fn faults(history: &[Entry], change: impl FnOnce(&mut Log, &mut Log)) -> Vec<String> {
        let mut ann = log("ann", true, &[7, 10], history);
        let mut bob = log("bob", false, &[8, 9], &history[..4]);
        change(&mut ann, &mut bob);
        let at = Timestamp::from_millis;
        let kill = Kill {
            unacknowledged: 1,
            restarted: at(10_000),
            back: at(10_100),
            gone_after: Duration::from_secs(2),
            late: Duration::from_secs(1),
        };
        judge(history, &[&ann, &bob], &kill)
    }

    #[track_caller]
    fn assert_found(faults: Vec<String>, what: &str) {
        assert!(faults.iter().any(|fault| fault.contains(what)), "{what}: {faults:?}");
    }

    #[test]
    fn a_room_where_all_went_well_has_no_faults() {
        assert_eq!(faults(&history(), |_, _| {}), Vec::<String>::new());
        // Bob's last message may also not have counted.
        let mut shorter = history();
        shorter.remove(4);
        (1..).zip(&mut shorter).for_each(|(number, entry)| entry.number = number);
        assert_eq!(faults(&shorter, |_, _| {}), Vec::<String>::new());
    }

    #[test]
    fn a_lost_message_is_found() {
        let mut lost = history();
        lost.remove(5);
        assert_found(faults(&lost, |_, _| {}), "ann said [7, 10], and the history has [7]");
        assert_found(faults(&lost, |_, _| {}), "as number 6");
        // Acknowledged to bob, who is not there any more.
        let mut lost = history();
        lost.remove(3);
        assert_found(faults(&lost, |_, bob| bob.entries = history()[..4].to_vec()), "bob saw");
    }

    #[test]
    fn a_message_that_counted_twice_or_in_another_order_is_found() {
        let mut twice = history();
        twice.push(entry(8, "ann", said(10)));
        assert_found(faults(&twice, |_, _| {}), "has [7, 10, 10]");
        let mut swapped = history();
        (swapped[2].what, swapped[5].what) = (said(10), said(7));
        assert_found(faults(&swapped, |_, _| {}), "has [10, 7]");
    }

    #[test]
    fn a_member_that_saw_something_else_is_found() {
        assert_found(faults(&history(), |ann, _| ann.entries.swap(2, 3)), "ann saw");
        assert_found(faults(&history(), |ann, _| drop(ann.entries.remove(3))), "ann saw");
        assert_found(faults(&history(), |ann, _| drop(ann.entries.pop())), "ann saw 6 of 7");
        assert_found(faults(&history(), |ann, _| ann.missed = 1), "could not get 1");
        assert_found(faults(&history(), |_, bob| bob.entries[3].who = "eve".to_owned()), "bob saw");
    }

    #[test]
    fn a_message_of_another_room_is_found() {
        let mut astray = history();
        astray.push(entry(8, "eve", said(3)));
        assert_found(faults(&astray, |_, _| {}), "eve is not of this room");
    }

    #[test]
    fn a_member_gone_wrongly_is_found() {
        let mut wrong = history();
        wrong.push(gone(8, "ann", GONE_AT));
        assert_found(faults(&wrong, |_, _| {}), "ann came back, and was announced gone");
        let mut never = history();
        never.pop();
        assert_found(faults(&never, |_, _| {}), "announced gone 0 times");
        for at in [11_999, 13_101] {
            let mut when = history();
            when[6] = gone(7, "bob", at);
            assert_found(faults(&when, |_, _| {}), "bob was announced gone");
        }
        let mut again = history();
        again.push(entry(8, "ann", What::Joined));
        assert_found(faults(&again, |_, _| {}), "ann joined 2 times");
    }

    fn slow() -> SlowReader {
        let entries = |numbers: std::ops::RangeInclusive<u64>| numbers.map(|n| entry(n, "talker", said(n))).collect();
        let (heard, before, after) = (entries(1..=9), entries(1..=5), entries(6..=9));
        SlowReader { heard, before, after, missed: 0, reason: "why".to_owned(), expected: "why" }
    }

    #[test]
    fn what_a_slow_reader_lost_is_found() {
        assert_eq!(slow().faults(), Vec::<String>::new());
        let mut lost = slow();
        lost.after.pop();
        assert_found(lost.faults(), "did not see 9");
        let mut gap = slow();
        gap.before.pop();
        assert_found(gap.faults(), "not at all");
        assert_found(SlowReader { reason: "cut off".to_owned(), ..slow() }.faults(), "was told");
        assert_found(SlowReader { missed: 2, ..slow() }.faults(), "could not get 2");
    }

    #[test]
    fn a_report_with_faults_says_how_many() {
        let kill = Kill {
            unacknowledged: 3,
            restarted: Timestamp::from_millis(0),
            back: Timestamp::from_millis(0),
            gone_after: Duration::ZERO,
            late: Duration::ZERO,
        };
        let report = |farewell: &str| {
            let transcript = Transcript { histories: BTreeMap::new(), logs: Vec::new() };
            Report::new(transcript, &kill, slow(), farewell.to_owned()).to_string()
        };
        assert!(report("the host is draining").starts_with("0 rooms, 0 members, 0 messages: none lost"));
        assert_eq!(report("cut off"), "0 rooms, 0 members, 0 messages: 1 faults");
    }
}
