//! The verdict on each order: the app's ledger, the partner's, and what the order's flow says, held against one another. Pure code.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};
use std::time::Duration;

use crate::broker::{Ended, Outcome};
use crate::fakes::Entry;
use crate::service::View;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    Granted,
    NoTaker,
    /// Something that was acknowledged is not there any more.
    Lost(&'static str),
    GrantedTwice,
    /// The ledgers do not agree.
    Wrong(&'static str),
}

/// Holds what is known outside of an order against what its flow says.
pub(crate) fn judge(entry: &Entry, view: Option<&View>, limit: Duration) -> Finding {
    if !entry.is_placed {
        return Finding::Wrong("never taken by the broker");
    }
    let Some(asked) = entry.asked else { return Finding::Lost("the partner was never asked") };
    if entry.urls.len() > 1 {
        return Finding::Wrong("the partner was given two URLs");
    }
    if entry.granted.len() > 1 {
        return Finding::GrantedTwice;
    }
    let Some(View { version, ended: Some(Ended { outcome, due }), .. }) = view else {
        return Finding::Lost("its flow has not ended");
    };
    let thanks = usize::from(*version > 1 && *outcome != Outcome::NoTaker);
    if entry.thanks.len() != thanks {
        return Finding::Wrong("the partner was not thanked as its version does");
    }
    match (outcome, entry.granted.values().next()) {
        (Outcome::Granted { .. }, None) => Finding::Wrong("the app has not granted it"),
        (Outcome::Granted { to }, Some(by)) if to != by => Finding::Wrong("the app has granted it to another"),
        (Outcome::Granted { .. }, _) if !entry.given_up.is_empty() => Finding::Wrong("granted, and given up"),
        (Outcome::Granted { .. }, _) if entry.sent.is_none_or(|sent| sent > *due) => {
            Finding::Wrong("granted, though nobody answered in time")
        }
        (Outcome::Granted { .. }, _) => Finding::Granted,
        (Outcome::NoTaker, Some(_)) => Finding::Wrong("without a taker, and granted"),
        (Outcome::NoTaker, None) if entry.given_up.len() != 1 => Finding::Wrong("the app was not told once of its end"),
        // The limit counts from when the partner had been asked, at the earliest.
        (Outcome::NoTaker, None) if entry.acknowledged.is_some_and(|at| at < asked + limit) => {
            Finding::Lost("an answer was acknowledged in time")
        }
        (Outcome::NoTaker, None) => Finding::NoTaker,
    }
}

/// All that the drill found.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) orders: BTreeMap<String, (Entry, Option<View>)>,
    pub(crate) limit: Duration,
    pub(crate) kills: (usize, usize),
    pub(crate) deploys: (usize, usize),
}

impl Report {
    fn findings(&self) -> impl Iterator<Item = (&String, &Entry, Option<&View>, Finding)> {
        let judged = self.orders.iter();
        judged.map(|(id, (entry, view))| (id, entry, view.as_ref(), judge(entry, view.as_ref(), self.limit)))
    }

    /// Tells whether every order ended as it should, over as many kills and deploys as there were to be.
    pub(crate) fn is_right(&self) -> bool {
        self.kills.0 == self.kills.1
            && self.deploys.0 == self.deploys.1
            && self.findings().all(|(.., finding)| matches!(finding, Finding::Granted | Finding::NoTaker))
    }

    /// One line per order.
    pub(crate) fn table(&self) -> String {
        let mut table = format!("{:<10} {:<8} {:<8} {:<8} outcome\n", "order", "version", "partner", "app");
        for (id, entry, view, finding) in self.findings() {
            let version = view.map_or_else(|| "-".to_owned(), |view| view.version.to_string());
            let manner = format!("{:?}", entry.manner);
            let granting = if entry.granted.is_empty() { "-".to_owned() } else { format!("{:?}", entry.granting) };
            // Writing to a String cannot fail.
            let _ = writeln!(table, "{id:<10} {version:<8} {manner:<8} {granting:<8} {finding:?}");
        }
        table
    }

    /// One line for each thing that is not as it should be.
    pub(crate) fn faults(&self) -> String {
        let mut faults = String::new();
        if (self.kills.0, self.deploys.0) != (self.kills.1, self.deploys.1) {
            // Writing to a String cannot fail, here and below.
            let _ = writeln!(faults, "there were too few kills or deploys: too few orders were waiting");
        }
        for (id, entry, view, finding) in self.findings() {
            if !matches!(finding, Finding::Granted | Finding::NoTaker) {
                let _ = writeln!(faults, "{id}: {finding:?}; {entry:?}; {view:?}");
            }
        }
        faults
    }
}

/// `120 orders: 71 granted, 49 no taker, 0 lost, 0 granted twice; hosts killed 2 times, 1 deploy`
impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |which: fn(&Finding) -> bool| self.findings().filter(|(.., finding)| which(finding)).count();
        write!(
            f,
            "{} orders: {} granted, {} no taker, {} lost, {} granted twice",
            self.orders.len(),
            count(|finding| *finding == Finding::Granted),
            count(|finding| *finding == Finding::NoTaker),
            count(|finding| matches!(finding, Finding::Lost(_))),
            count(|finding| *finding == Finding::GrantedTwice),
        )?;
        // Named only where there is one.
        match count(|finding| matches!(finding, Finding::Wrong(_))) {
            0 => {}
            wrong => write!(f, ", {wrong} wrong")?,
        }
        let deploys = if self.deploys.0 == 1 { "deploy" } else { "deploys" };
        write!(f, "; hosts killed {} times, {} {deploys}", self.kills.0, self.deploys.0)
    }
}

#[cfg(test)]
mod tests {
    use stable_interfaces::Timestamp;

    use super::*;
    use crate::fakes::{Granting, Manner};

    const LIMIT: Duration = Duration::from_secs(5);

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn asked() -> Entry {
        let mut entry = Entry::new(Manner::InTime, Granting::AtOnce);
        (entry.is_placed, entry.asked) = (true, Some(at(100)));
        entry
    }

    fn granted() -> Entry {
        let mut entry = asked();
        (entry.sent, entry.acknowledged) = (Some(at(900)), Some(at(905)));
        entry.granted.insert("key".into(), "ann".into());
        entry
    }

    fn given_up() -> Entry {
        let mut entry = asked();
        entry.given_up.insert("key".into());
        entry
    }

    fn view(outcome: Outcome) -> View {
        View { version: 1, blocked: None, ended: Some(Ended { outcome, due: at(5_110) }) }
    }

    fn to_ann() -> View {
        view(Outcome::Granted { to: "ann".into() })
    }

    #[test]
    fn ledgers_that_agree_are_right() {
        assert_eq!(judge(&granted(), Some(&to_ann()), LIMIT), Finding::Granted);
        assert_eq!(judge(&given_up(), Some(&view(Outcome::NoTaker)), LIMIT), Finding::NoTaker);
        let mut late = given_up();
        late.acknowledged = Some(at(5_100));
        assert_eq!(judge(&late, Some(&view(Outcome::NoTaker)), LIMIT), Finding::NoTaker);
    }

    #[test]
    fn what_was_acknowledged_and_has_no_effect_is_lost() {
        let mut early = given_up();
        early.acknowledged = Some(at(5_099));
        assert!(matches!(judge(&early, Some(&view(Outcome::NoTaker)), LIMIT), Finding::Lost(_)));
        assert!(matches!(judge(&granted(), None, LIMIT), Finding::Lost(_)));
        let mut unasked = granted();
        unasked.asked = None;
        assert!(matches!(judge(&unasked, Some(&to_ann()), LIMIT), Finding::Lost(_)));
    }

    #[test]
    fn a_second_grant_under_another_key_is_seen() {
        let mut twice = granted();
        twice.granted.insert("another".into(), "ann".into());
        assert_eq!(judge(&twice, Some(&to_ann()), LIMIT), Finding::GrantedTwice);
    }

    #[test]
    fn ledgers_that_do_not_agree_are_wrong() {
        let eve = view(Outcome::Granted { to: "eve".into() });
        let mut late = granted();
        late.sent = Some(at(5_111));
        let mut both = granted();
        both.given_up.insert("key".into());
        let mut thanked = granted();
        thanked.thanks.insert("key".into());
        for (entry, view) in [
            (&granted(), &eve),
            (&granted(), &view(Outcome::NoTaker)),
            (&given_up(), &to_ann()),
            (&asked(), &view(Outcome::NoTaker)),
            (&late, &to_ann()),
            (&both, &to_ann()),
            (&thanked, &to_ann()),
        ] {
            let finding = judge(entry, Some(view), LIMIT);
            assert!(matches!(finding, Finding::Wrong(_)), "{entry:?} {view:?}: {finding:?}");
        }
        assert_eq!(judge(&thanked, Some(&View { version: 2, ..to_ann() }), LIMIT), Finding::Granted);
    }

    #[test]
    fn the_last_line_counts_every_order_and_says_what_is_missing() {
        let orders = [("a", granted(), to_ann()), ("b", given_up(), view(Outcome::NoTaker))];
        let orders = orders.into_iter().map(|(id, entry, view)| (id.to_owned(), (entry, Some(view)))).collect();
        let mut report = Report { orders, limit: LIMIT, kills: (2, 2), deploys: (1, 1) };
        let line = "2 orders: 1 granted, 1 no taker, 0 lost, 0 granted twice; hosts killed 2 times, 1 deploy";
        assert!(report.is_right() && report.faults().is_empty() && report.to_string() == line, "{report}");
        report.kills.0 = 1;
        assert!(!report.is_right() && report.faults().starts_with("there were too few"));
        report.kills.0 = 2;
        report.orders.get_mut("a").expect("it is there").1 = None;
        assert!(!report.is_right() && report.to_string().contains("0 granted, 1 no taker, 1 lost"), "{report}");
    }
}
