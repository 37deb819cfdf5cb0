//! The verdict: what the world outside saw of each order, against what the host says of it.
//!
//! Nothing here trusts the host where a witness exists: an answer that the partner got binds the host, an order may not expire
//! before the time that the *client* measured, and decisions are counted, not looked up. Pure code: the drill passes all in.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};
use std::time::Duration;

use stable_interfaces::Timestamp;

use crate::partner::{Answer, AtStaying, Entry, Manner};
use crate::service::{Decision, Outcome, View};

/// The verdict on one order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    Accepted,
    Expired,
    /// Something acknowledged is not there any more: the order, its decision, a callback, or the call to the partner.
    Lost(&'static str),
    DecidedTwice,
    /// Decided once, and not as it should have been.
    Wrong(&'static str),
}

/// Compares what is known outside of an order with what the host says of it.
pub(crate) fn judge(entry: &Entry, view: Option<&View>, order_timeout: Duration) -> Finding {
    let answered = |status| entry.answers.contains(&Answer::Status(status));
    let Some(posted) = entry.posted.filter(|_| entry.is_acknowledged()) else {
        return Finding::Wrong("never acknowledged");
    };
    let Some(view) = view else { return Finding::Lost("acknowledged, then unknown") };
    let decision = match view.decisions.as_slice() {
        [] => return Finding::Lost("never decided"),
        [decision] => decision,
        _ => return Finding::DecidedTwice,
    };
    match entry.told.split_first() {
        None => return Finding::Lost("the partner was never told"),
        Some((first, again)) if again.iter().any(|url| url != first) => {
            return Finding::Lost("the partner was told two callback URLs");
        }
        Some(_) => {}
    }
    if entry.answers.iter().any(|a| a.is_final() && !matches!(a, Answer::Status(200 | 202 | 410))) {
        return Finding::Wrong("a callback got neither 200, 202 nor 410");
    }
    if answered(200) && answered(410) {
        return Finding::DecidedTwice;
    }
    match decision.outcome {
        Outcome::Expired if answered(200) => Finding::Lost("expired, though a callback was answered 200"),
        // Stored by any host in time, it is in time, whenever the order's own host comes to see it.
        Outcome::Expired if entry.stored.is_some_and(|at| at < view.due) => {
            Finding::Lost("expired, though a callback was stored in time")
        }
        Outcome::Expired if decision.at < posted + order_timeout || decision.at < view.due => {
            Finding::Wrong("expired before its time")
        }
        Outcome::Expired => Finding::Expired,
        Outcome::Accepted if answered(410) => Finding::Wrong("accepted, though a callback was answered 410"),
        // In the very millisecond either is right.
        Outcome::Accepted if decision.at > view.due => Finding::Wrong("accepted after its time"),
        // A callback that was refused was never sent, so only these can have accepted it.
        Outcome::Accepted if !answered(200) && !answered(202) && !entry.answers.contains(&Answer::Broken) => {
            Finding::Wrong("accepted, though nobody called")
        }
        Outcome::Accepted => Finding::Accepted,
    }
}

/// The thing that was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    Host,
    Store,
}

/// The kills that there are to be. More than one host is a fleet, which shares a store that is killed as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kills {
    pub(crate) of_hosts: usize,
    /// `None` if nobody kills it: it is in the host's own process, or somebody else's.
    pub(crate) of_store: Option<usize>,
}

/// The changes of a fleet beside its kills, and how it was for callers at a door that stays.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Changes {
    pub(crate) added: usize,
    pub(crate) drained: usize,
    pub(crate) at_staying: AtStaying,
}

/// A time in which a host, or the store, did not run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outage {
    pub(crate) victim: Victim,
    pub(crate) from: Timestamp,
    pub(crate) until: Timestamp,
}

/// All that the drill found.
#[derive(Debug)]
pub(crate) struct Report {
    rows: BTreeMap<String, Row>,
    outages: Vec<Outage>,
    kills: Kills,
    /// `None` of a host alone.
    changes: Option<Changes>,
}

#[derive(Debug)]
struct Row {
    entry: Entry,
    /// The order's due time and its first decision, as far as the host knows them.
    decided: Option<(Timestamp, Decision)>,
    finding: Finding,
}

impl Report {
    /// Judges every order of the ledger; `views` holds what the host answered for those it knows.
    pub(crate) fn new(
        entries: BTreeMap<String, Entry>,
        mut views: BTreeMap<String, View>,
        outages: Vec<Outage>,
        kills: Kills,
        changes: Option<Changes>,
        order_timeout: Duration,
    ) -> Report {
        let judged = |(order, entry): (String, Entry)| {
            let view = views.remove(&order);
            let finding = judge(&entry, view.as_ref(), order_timeout);
            let decided = view.and_then(|view| Some((view.due, view.decisions.into_iter().next()?)));
            (order, Row { entry, decided, finding })
        };
        Report { rows: entries.into_iter().map(judged).collect(), outages, kills, changes }
    }

    fn killed(&self, victim: Victim) -> usize {
        self.outages.iter().filter(|outage| outage.victim == victim).count()
    }

    /// Tells whether everything was killed as often as it was to be.
    fn is_killed_enough(&self) -> bool {
        self.killed(Victim::Host) == self.kills.of_hosts
            && self.killed(Victim::Store) == self.kills.of_store.unwrap_or(0)
    }

    /// Tells whether every order ended as it should, and everything was killed as often as it was to be.
    pub(crate) fn is_right(&self) -> bool {
        self.is_killed_enough()
            && self.rows.values().all(|row| matches!(row.finding, Finding::Accepted | Finding::Expired))
            && self.changes.is_none_or(|changes| changes.at_staying.refused + changes.at_staying.cut_off == 0)
    }

    /// One line per order.
    pub(crate) fn table(&self) -> String {
        let mut table =
            format!("{:<10} {:<8} {:<9} {:>7}  {}\n", "order", "partner", "outcome", "late", "what its callbacks got");
        for (order, row) in &self.rows {
            let manner = match row.entry.plan.manner {
                Manner::InTime => "in time",
                Manner::Twice => "twice",
                Manner::Late => "late",
                Manner::Never => "never",
            };
            let outcome = match &row.finding {
                Finding::Accepted => "accepted",
                Finding::Expired => "expired",
                Finding::Lost(_) => "LOST",
                Finding::DecidedTwice => "TWICE",
                Finding::Wrong(_) => "WRONG",
            };
            let late = row.lateness().map_or_else(|| "-".to_owned(), |late| format!("{} ms", late.as_millis()));
            let answers = summary(&row.entry.answers);
            // Writing to a String cannot fail.
            let _ = writeln!(table, "{order:<10} {manner:<8} {outcome:<9} {late:>7}  {answers}");
        }
        table
    }

    /// One line for each order that did not end as it should, and one if there were too few kills.
    pub(crate) fn faults(&self) -> String {
        let mut faults = String::new();
        if !self.is_killed_enough() {
            let kills = self.kills.of_hosts + self.kills.of_store.unwrap_or(0);
            // Writing to a String cannot fail, here and below.
            let _ = writeln!(faults, "there were not {kills} kills: too few orders were waiting");
        }
        if let Some(Changes { at_staying: AtStaying { refused, cut_off, .. }, .. }) = self.changes
            && refused + cut_off > 0
        {
            let _ = writeln!(faults, "at the door that stays {refused} requests were refused and {cut_off} cut off");
        }
        for (order, row) in &self.rows {
            let what = match row.finding {
                Finding::Lost(what) | Finding::Wrong(what) => what,
                Finding::DecidedTwice => "decided more than once",
                Finding::Accepted | Finding::Expired => continue,
            };
            let _ = writeln!(faults, "{order}: {what}; {row:?}");
        }
        faults
    }

    /// The kills as seen from outside: requests that were refused, or cut off with their outcome unknown.
    pub(crate) fn breakage(&self) -> String {
        let attempts = || self.rows.values().flat_map(|row| row.entry.placing.iter().chain(&row.entry.answers));
        let count = |which| attempts().filter(|answer| **answer == which).count();
        let mut breakage = format!(
            "requests to the {}: {}, of which {} refused and {} cut off\n",
            self.hosts(),
            attempts().count(),
            count(Answer::Refused),
            count(Answer::Broken)
        );
        if let Some(Changes { at_staying: AtStaying { requests, refused, cut_off, put_off }, .. }) = self.changes {
            let _ = writeln!(
                breakage,
                "at the door that stays: {requests}, of which {refused} refused, {cut_off} cut off and {put_off} told to come again"
            );
        }
        breakage
    }

    fn hosts(&self) -> &'static str {
        if self.changes.is_some() { "hosts" } else { "host" }
    }

    /// The lateness of timeouts: those that could be kept, and apart those that came due while a host or the store was down.
    pub(crate) fn lateness(&self) -> String {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for row in self.rows.values() {
            let (Some((due, decision)), Some(late)) = (&row.decided, row.lateness()) else { continue };
            let overlaps = |outage: &Outage| *due < outage.until && decision.at > outage.from;
            if self.outages.iter().any(overlaps) { down.push(late) } else { up.push(late) }
        }
        format!("timeouts due while all was up: {}\ntimeouts due during an outage: {}\n", spread(up), spread(down))
    }
}

impl Row {
    /// The time from an order's due time to its expiry.
    fn lateness(&self) -> Option<Duration> {
        let (due, decision) = self.decided.as_ref()?;
        (decision.outcome == Outcome::Expired).then(|| decision.at.since(*due))
    }
}

/// `200 orders: 118 accepted, 82 expired, 0 lost, 0 decided twice; host killed 3 times`; of a fleet what else happened to it, too.
impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |which: fn(&Finding) -> bool| self.rows.values().filter(|row| which(&row.finding)).count();
        write!(
            f,
            "{} orders: {} accepted, {} expired, {} lost, {} decided twice",
            self.rows.len(),
            count(|finding| *finding == Finding::Accepted),
            count(|finding| *finding == Finding::Expired),
            count(|finding| matches!(finding, Finding::Lost(_))),
            count(|finding| *finding == Finding::DecidedTwice),
        )?;
        // Named only where there is one.
        match count(|finding| matches!(finding, Finding::Wrong(_))) {
            0 => {}
            wrong => write!(f, ", {wrong} wrong")?,
        }
        write!(f, "; {} killed {} times", self.hosts(), self.killed(Victim::Host))?;
        if let Some(changes) = self.changes {
            let Changes { added, drained, at_staying: AtStaying { requests, refused, cut_off, .. } } = changes;
            write!(f, " and not restarted for three leases, {added} added, {drained} drained")?;
            write!(f, "; {} of {requests} requests refused or cut off at the door that stays", refused + cut_off)?;
        }
        match self.kills.of_store {
            Some(_) => write!(f, "; store killed {} times", self.killed(Victim::Store)),
            None => Ok(()),
        }
    }
}

/// `refused x3, 200`
fn summary(answers: &[Answer]) -> String {
    let runs = answers.chunk_by(|a, b| a == b).map(|run| {
        let answer = match run[0] {
            Answer::Status(status) => status.to_string(),
            Answer::Refused => "refused".to_owned(),
            Answer::Broken => "broken".to_owned(),
        };
        if run.len() == 1 { answer } else { format!("{answer} x{}", run.len()) }
    });
    runs.collect::<Vec<_>>().join(", ")
}

fn spread(mut late: Vec<Duration>) -> String {
    late.sort_unstable();
    let (Some(middle), Some(most)) = (late.get(late.len() / 2), late.last()) else { return "none".to_owned() };
    format!("{}, late by {} ms in the median, {} ms at most", late.len(), middle.as_millis(), most.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partner::Plan;

    const TIMEOUT: Duration = Duration::from_secs(2);
    const DUE: i64 = 2_003;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    /// An order posted at 0, placed at 3, told once.
    fn entry(answers: &[Answer]) -> Entry {
        let mut entry = Entry::new(Plan { manner: Manner::InTime, calls: vec![] });
        entry.posted = Some(at(0));
        entry.placing = vec![Status(200)];
        entry.told = vec!["url".to_owned()];
        entry.answers = answers.to_vec();
        entry
    }

    fn view(decisions: &[(Outcome, i64)]) -> View {
        let decisions = decisions.iter().map(|&(outcome, millis)| Decision { outcome, at: at(millis) }).collect();
        View { due: at(DUE), callback: None, decisions }
    }

    fn finding(answers: &[Answer], decisions: &[(Outcome, i64)]) -> Finding {
        judge(&entry(answers), Some(&view(decisions)), TIMEOUT)
    }

    use Answer::{Broken, Refused, Status};
    use Outcome::{Accepted, Expired};

    #[test]
    fn an_order_answered_200_in_time_is_accepted() {
        assert_eq!(finding(&[Status(200)], &[(Accepted, 900)]), Finding::Accepted);
        assert_eq!(finding(&[Refused, Broken, Status(503), Status(200)], &[(Accepted, 900)]), Finding::Accepted);
    }

    #[test]
    fn an_order_nobody_called_back_expires() {
        assert_eq!(finding(&[], &[(Expired, DUE)]), Finding::Expired);
        assert_eq!(finding(&[Refused, Status(410)], &[(Expired, DUE + 700)]), Finding::Expired);
    }

    #[test]
    fn a_callback_that_broke_off_may_count_or_not() {
        assert_eq!(finding(&[Broken], &[(Accepted, 900)]), Finding::Accepted);
        assert_eq!(finding(&[Broken], &[(Expired, DUE + 1)]), Finding::Expired);
    }

    #[test]
    fn a_callback_that_was_stored_counts_if_that_was_in_time() {
        let stored = |at: i64, decision: (Outcome, i64)| {
            let mut entry = entry(&[Status(202)]);
            entry.stored = Some(Timestamp::from_millis(at));
            judge(&entry, Some(&view(&[decision])), TIMEOUT)
        };
        assert_eq!(stored(900, (Accepted, 899)), Finding::Accepted);
        assert!(matches!(stored(DUE - 1, (Expired, DUE)), Finding::Lost(_)));
        assert_eq!(stored(DUE, (Expired, DUE)), Finding::Expired);
        assert_eq!(stored(DUE, (Accepted, DUE - 1)), Finding::Accepted, "it was stored before that was said");
    }

    #[test]
    fn two_answers_that_do_not_agree_are_two_decisions() {
        assert_eq!(finding(&[Status(200), Status(410)], &[(Accepted, 900)]), Finding::DecidedTwice);
    }

    #[test]
    fn an_answer_of_200_that_did_not_last_is_a_loss() {
        assert!(matches!(finding(&[Status(200)], &[(Expired, DUE)]), Finding::Lost(_)));
        assert!(matches!(finding(&[Status(200)], &[]), Finding::Lost(_)));
        assert!(matches!(judge(&entry(&[]), None, TIMEOUT), Finding::Lost(_)));
    }

    #[test]
    fn an_order_placed_without_telling_the_partner_is_a_loss() {
        let mut untold = entry(&[]);
        untold.told.clear();
        assert!(matches!(judge(&untold, Some(&view(&[(Expired, DUE)])), TIMEOUT), Finding::Lost(_)));
        let mut two_urls = entry(&[]);
        two_urls.told.push("another".to_owned());
        assert!(matches!(judge(&two_urls, Some(&view(&[(Expired, DUE)])), TIMEOUT), Finding::Lost(_)));
    }

    #[test]
    fn two_decisions_are_seen_even_if_they_agree() {
        assert_eq!(finding(&[Status(200)], &[(Accepted, 900), (Accepted, 901)]), Finding::DecidedTwice);
    }

    #[test]
    fn a_decision_against_the_clock_or_the_ledger_is_wrong() {
        for (answers, decision) in [
            (&[][..], (Expired, DUE - 1)),
            (&[][..], (Expired, 1_999)),
            (&[Status(410)][..], (Accepted, 900)),
            (&[Status(200)][..], (Accepted, DUE + 1)),
            (&[Refused][..], (Accepted, 900)),
            (&[Status(404)][..], (Expired, DUE)),
        ] {
            let finding = finding(answers, &[decision]);
            assert!(matches!(finding, Finding::Wrong(_)), "{answers:?} {decision:?}: {finding:?}");
        }
        let mut never = entry(&[]);
        never.placing.clear();
        assert!(matches!(judge(&never, Some(&view(&[(Expired, DUE)])), TIMEOUT), Finding::Wrong(_)));
    }

    fn report(finding_of_two: &[(Outcome, i64)], kills: usize) -> Report {
        let entries = BTreeMap::from([("a".to_owned(), entry(&[Status(200)])), ("b".to_owned(), entry(&[]))]);
        let views = BTreeMap::from([("a".to_owned(), view(&[(Accepted, 9)])), ("b".to_owned(), view(finding_of_two))]);
        let outages = vec![Outage { victim: Victim::Host, from: at(DUE + 1_000), until: at(DUE + 2_000) }];
        Report::new(entries, views, outages, Kills { of_hosts: kills, of_store: None }, None, TIMEOUT)
    }

    #[test]
    fn the_last_line_counts_every_order() {
        let right = report(&[(Expired, DUE + 4)], 1);
        assert!(right.is_right() && right.faults().is_empty());
        assert_eq!(right.to_string(), "2 orders: 1 accepted, 1 expired, 0 lost, 0 decided twice; host killed 1 times");
        let lost = report(&[], 1);
        assert!(!lost.is_right() && lost.faults().starts_with("b: never decided"));
        assert_eq!(lost.to_string(), "2 orders: 1 accepted, 0 expired, 1 lost, 0 decided twice; host killed 1 times");
        let early = report(&[(Expired, 5)], 1);
        assert!(early.to_string().contains("0 decided twice, 1 wrong; host"), "{early}");
    }

    #[test]
    fn a_drill_that_killed_too_seldom_is_not_right() {
        let report = report(&[(Expired, DUE + 4)], 2);
        assert!(!report.is_right());
        assert_eq!(report.faults(), "there were not 2 kills: too few orders were waiting\n");
    }

    #[test]
    fn kills_of_a_fleet_and_its_store_are_counted_apart() {
        let mut report = report(&[(Expired, DUE + 4)], 1);
        let at_staying = AtStaying { requests: 700, put_off: 3, ..AtStaying::default() };
        report.changes = Some(Changes { added: 1, drained: 1, at_staying });
        report.kills.of_store = Some(1);
        assert!(!report.is_right() && report.to_string().ends_with("; store killed 0 times"));
        report.outages.push(Outage { victim: Victim::Store, from: at(1), until: at(2) });
        let said = report.to_string();
        let end = "0 decided twice; hosts killed 1 times and not restarted for three leases, 1 added, 1 drained; \
                   0 of 700 requests refused or cut off at the door that stays; store killed 1 times";
        assert!(report.is_right() && said.ends_with(end), "{said}");
    }

    #[test]
    fn nobody_may_be_refused_or_cut_off_at_the_door_that_stays() {
        for answer in
            [AtStaying { refused: 1, ..AtStaying::default() }, AtStaying { cut_off: 1, ..AtStaying::default() }]
        {
            let mut report = report(&[(Expired, DUE + 4)], 1);
            report.changes = Some(Changes { added: 1, drained: 1, at_staying: answer });
            assert!(
                !report.is_right() && report.faults().starts_with("at the door that stays "),
                "{}",
                report.faults()
            );
        }
    }

    #[test]
    fn a_timeout_that_had_to_wait_for_a_host_is_counted_apart() {
        let lateness = |at| report(&[(Expired, at)], 1).lateness();
        assert!(lateness(DUE + 4).contains("up: 1, late by 4 ms") && lateness(DUE + 4).contains("outage: none"));
        assert!(lateness(DUE + 2_001).contains("outage: 1, late by 2001 ms"));
    }

    #[test]
    fn requests_that_kills_refused_or_cut_off_are_counted() {
        let mut report = report(&[], 1);
        let row = report.rows.get_mut("a").expect("it was entered");
        row.entry.placing = vec![Refused, Broken, Status(200)];
        row.entry.answers = vec![Refused, Status(200)];
        assert_eq!(report.breakage(), "requests to the host: 6, of which 2 refused and 1 cut off\n");
    }

    #[test]
    fn equal_answers_in_a_row_are_counted() {
        assert_eq!(summary(&[Refused, Refused, Status(200), Refused]), "refused x2, 200, refused");
    }
}
