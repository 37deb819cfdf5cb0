//! The verdict on each order: what Stripe's books say, what its flow says, and what was planned, held against one another. Pure code.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Write};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use stable_interfaces::Timestamp;

use crate::plan::{Fate, Plan, Style};

/// The part of Stripe's books that is about one order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Account {
    pub(crate) customers: Vec<Value>,
    pub(crate) intents: Vec<Value>,
    pub(crate) refunds: Vec<Value>,
    pub(crate) subscriptions: Vec<Value>,
    /// The times at which it was charged, and at which the service took the news of that.
    pub(crate) charged: Option<Timestamp>,
    pub(crate) acknowledged: Option<Timestamp>,
    /// The service took the news from somebody who is not Stripe.
    pub(crate) was_fooled: bool,
}

impl Account {
    /// The payments that went through.
    fn charges(&self) -> impl Iterator<Item = &Value> {
        self.intents.iter().filter(|intent| intent["status"] == "succeeded")
    }
}

/// A flow as its service shows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct View {
    pub(crate) status: String,
    #[serde(default)]
    pub(crate) result: Option<Value>,
    #[serde(default)]
    pub(crate) problem: Option<Problem>,
}

/// The error of a flow that has failed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Problem {
    pub(crate) detail: String,
}

impl View {
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "succeeded" | "failed" | "cancelled" | "purged")
    }
}

/// All that is known of an order.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) plan: Plan,
    /// The edition of its script that it has to run: that of the time at which it was placed, where that is certain.
    pub(crate) edition: Option<&'static str>,
    pub(crate) account: Account,
    pub(crate) view: Option<View>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    Paid,
    Declined,
    Refunded,
    ChargedTwice,
    /// Money, or a word about it, that is not there any more.
    Lost(&'static str),
    /// The books and the flow do not agree.
    Wrong(&'static str),
}

impl Finding {
    fn is_right(self) -> bool {
        matches!(self, Finding::Paid | Finding::Declined | Finding::Refunded)
    }
}

/// Holds Stripe's books against what the order's flow says. `limit` is the time that Stripe has to say that it is paid.
pub(crate) fn judge(row: &Row, limit: Duration) -> Finding {
    let Row { plan, account, view, .. } = row;
    if account.charges().count() > 1 {
        return Finding::ChargedTwice;
    }
    let Some(view) = view.as_ref().filter(|view| view.is_over()) else {
        return Finding::Lost("its flow has not ended");
    };
    if account.was_fooled {
        return Finding::Wrong("a forged word was taken for Stripe's");
    }
    if account.customers.len() != 1 || account.customers[0]["name"] != plan.order.name.as_str() {
        return Finding::Wrong("its customer is not there once, by the name that was given");
    }
    let charge = account.charges().next();
    let none = Value::Null;
    let result = view.result.as_ref().unwrap_or(&none);
    let outcome = match (result["outcome"].as_str(), view.status.as_str()) {
        (Some("paid"), _) => Fate::Paid,
        (Some("declined"), _) => Fate::Declined,
        // The script that goes from top to bottom fails, and what it has registered to undo gives the money back.
        (Some("refunded"), _) | (None, "failed") => Fate::Refunded,
        _ => return Finding::Wrong("its flow has ended in a way that no script knows"),
    };
    if let Some(wrong) = texts(row, result) {
        return Finding::Wrong(wrong);
    }
    match (outcome, charge) {
        (Fate::Declined, Some(_)) => return Finding::Lost("charged, and told that the card was declined"),
        (Fate::Paid, None) => return Finding::Lost("delivered, and never charged"),
        (Fate::Refunded, None) => return Finding::Wrong("nothing was charged, and nothing declined"),
        (_, Some(charge)) if charge["amount"] != plan.order.amount => {
            return Finding::Wrong("another amount was charged");
        }
        _ => {}
    }
    let refunded: u64 = account.refunds.iter().filter_map(|refund| refund["amount"].as_u64()).sum();
    match outcome {
        Fate::Refunded if refunded == 0 => return Finding::Lost("its money was not given back"),
        Fate::Refunded if account.refunds.len() != 1 || refunded != plan.order.amount => {
            return Finding::Wrong("not just its money was given back");
        }
        Fate::Paid | Fate::Declined if refunded > 0 => return Finding::Wrong("its money was given back all the same"),
        _ => {}
    }
    let subscriptions = usize::from(outcome == Fate::Paid && plan.order.price.is_some());
    if account.subscriptions.len() != subscriptions {
        return Finding::Wrong("its subscription is not there once");
    }
    match (outcome, plan.fate()) {
        (Fate::Paid, Fate::Paid) => Finding::Paid,
        (Fate::Declined, Fate::Declined) => Finding::Declined,
        (Fate::Refunded, Fate::Refunded) => Finding::Refunded,
        // Its host was away for so long that the news came too late.
        (Fate::Refunded, Fate::Paid) => match (account.charged, account.acknowledged) {
            (Some(charged), Some(acknowledged)) if acknowledged < charged + limit => {
                Finding::Lost("the news that it is paid was acknowledged in time")
            }
            _ => Finding::Refunded,
        },
        _ => Finding::Wrong("it has not ended as its card and its goods would have it"),
    }
}

/// Holds the texts of a result against what was given: whatever is in them, they come out as they went in.
fn texts(row: &Row, result: &Value) -> Option<&'static str> {
    let is = |name: &str, text: &str| result[name].is_null() || result[name] == text;
    if !is("name", &row.plan.order.name) {
        return Some("the name of its customer was changed on its way");
    }
    if result["outcome"] == "declined" && row.plan.why.as_ref().is_some_and(|why| result["why"] != why.as_str()) {
        return Some("the reason of its decline was changed on its way");
    }
    let editions = row.account.intents.iter().map(|intent| &intent["metadata"]["edition"]);
    let editions: BTreeSet<_> = editions.chain([&result["edition"]]).filter_map(Value::as_str).collect();
    if editions.len() > 1 || row.edition.is_some_and(|edition| editions.iter().any(|other| *other != edition)) {
        return Some("it ran on in another edition of its script than that with which it began");
    }
    None
}

/// All that the drill found.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    pub(crate) limit: Duration,
    /// The kills of hosts, and the number that there was to be.
    pub(crate) kills: (usize, usize),
    /// The calls of the canary: by the script that is there for it, and by anything else.
    pub(crate) canary: (usize, usize),
}

impl Report {
    fn findings(&self) -> impl Iterator<Item = (&Row, Finding)> {
        self.rows.iter().map(|row| (row, judge(row, self.limit)))
    }

    fn count(&self, which: impl Fn(Finding) -> bool) -> usize {
        self.findings().filter(|(_, finding)| which(*finding)).count()
    }

    /// Tells whether every order ended as it should, over as many kills as there were to be, and nobody's answer was taken for code.
    pub(crate) fn is_right(&self) -> bool {
        self.faults().is_empty()
    }

    /// One line per order.
    pub(crate) fn table(&self) -> String {
        let mut table =
            format!("{:<16} {:<8} {:<8} {:>8}  {:<8} outcome\n", "order", "style", "edition", "cents", "event");
        for (row, finding) in self.findings() {
            let style = match row.plan.style {
                Style::Linear => "linear",
                Style::Answers => "answers",
            };
            let edition = row.account.intents.first().and_then(|intent| intent["metadata"]["edition"].as_str());
            let hook = if row.account.charged.is_some() { format!("{:?}", row.plan.hook) } else { "-".to_owned() };
            let (order, edition) = (&row.plan.order, edition.unwrap_or("-"));
            // Writing to a String cannot fail.
            let _ = writeln!(
                table,
                "{:<16} {style:<8} {edition:<8} {:>8}  {:<8} {finding:?}",
                order.id,
                order.amount,
                hook.to_lowercase()
            );
        }
        table
    }

    /// One line for each thing that is not as it should be.
    pub(crate) fn faults(&self) -> String {
        let mut faults = String::new();
        // Writing to a String cannot fail, here and below.
        if self.kills.0 != self.kills.1 {
            let _ = writeln!(faults, "there were too few kills: too few calls were in flight");
        }
        match self.canary {
            (0, _) => drop(writeln!(faults, "the canary cannot be heard, so its silence says nothing")),
            (_, 0) => {}
            (_, times) => drop(writeln!(faults, "the canary was called {times} times: an answer was taken for code")),
        }
        for (row, finding) in self.findings() {
            if !finding.is_right() {
                let _ = writeln!(faults, "{}: {finding:?}; {:?}; {:?}", row.plan.order.id, row.account, row.view);
            }
        }
        faults
    }
}

/// `150 payments: 98 paid, 30 declined, 22 refunded; 0 charged twice, 0 lost, 0 answers executed as code; host killed 3 times`
impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} payments: {} paid, {} declined, {} refunded; {} charged twice, {} lost, {} answers executed as code",
            self.rows.len(),
            self.count(|finding| finding == Finding::Paid),
            self.count(|finding| finding == Finding::Declined),
            self.count(|finding| finding == Finding::Refunded),
            self.count(|finding| finding == Finding::ChargedTwice),
            self.count(|finding| matches!(finding, Finding::Lost(_))),
            self.canary.1,
        )?;
        // Named only where there is one.
        match self.count(|finding| matches!(finding, Finding::Wrong(_))) {
            0 => {}
            wrong => write!(f, ", {wrong} wrong")?,
        }
        write!(f, "; host killed {} times", self.kills.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plan::{GOOD_CARD, Hook, Order};

    const LIMIT: Duration = Duration::from_secs(5);

    fn at(millis: i64) -> Option<Timestamp> {
        Some(Timestamp::from_millis(millis))
    }

    fn row(status: &str, result: Value) -> Row {
        let order = Order {
            id: "17".into(),
            name: "Ann; canary()".into(),
            amount: 2_000,
            card: GOOD_CARD.into(),
            in_stock: true,
            price: None,
            coupon: None,
            limit: "5s".into(),
        };
        let why = Some("no; canary()".to_owned());
        let plan = Plan { order, style: Style::Linear, hook: Hook::Once, why };
        let account = Account { customers: vec![json!({"name": "Ann; canary()"})], ..Account::default() };
        let view = View { status: status.into(), result: Some(result), problem: None };
        Row { plan, edition: Some("1"), account, view: Some(view) }
    }

    fn intent() -> Value {
        json!({"status": "succeeded", "amount": 2_000, "metadata": {"edition": "1"}})
    }

    fn paid() -> Row {
        let mut row = row("succeeded", json!({"outcome": "paid", "edition": "1", "name": "Ann; canary()"}));
        row.account.intents.push(intent());
        (row.account.charged, row.account.acknowledged) = (at(1_000), at(1_100));
        row
    }

    fn declined() -> Row {
        let mut row = row("succeeded", json!({"outcome": "declined", "why": "no; canary()"}));
        row.plan.order.card = "pm_card_visa_chargeDeclined".into();
        row.account.intents.push(json!({"status": "requires_payment_method", "metadata": {"edition": "1"}}));
        row
    }

    fn refunded() -> Row {
        let mut row = row("failed", Value::Null);
        row.plan.order.in_stock = false;
        row.account.intents.push(intent());
        row.account.refunds.push(json!({"amount": 2_000}));
        row
    }

    type Change = fn(&mut Row);

    /// The finding on a row that somebody has changed.
    fn finding(mut row: Row, change: impl FnOnce(&mut Row)) -> Finding {
        change(&mut row);
        judge(&row, LIMIT)
    }

    #[test]
    fn books_that_agree_with_their_flow_are_right() {
        assert_eq!(judge(&paid(), LIMIT), Finding::Paid);
        assert_eq!(judge(&declined(), LIMIT), Finding::Declined);
        assert_eq!(judge(&refunded(), LIMIT), Finding::Refunded);
        let by_answers = json!({"outcome": "refunded"});
        assert_eq!(
            finding(refunded(), |row| row.view.as_mut().expect("it is there").result = Some(by_answers)),
            Finding::Refunded
        );
    }

    #[test]
    fn a_second_charge_is_seen_whatever_the_flow_says() {
        for row in [paid(), refunded()] {
            assert_eq!(finding(row, |row| row.account.intents.push(intent())), Finding::ChargedTwice);
        }
        assert_eq!(
            finding(paid(), |row| {
                row.view = None;
                row.account.intents.push(intent());
            }),
            Finding::ChargedTwice
        );
    }

    #[test]
    fn money_that_is_not_where_the_flow_says_is_lost() {
        let lost: [(Row, Change); 6] = [
            (paid(), |row| row.view = None),
            (paid(), |row| row.view.as_mut().expect("it is there").status = "blocked".into()),
            (paid(), |row| row.account.intents.clear()),
            (declined(), |row| row.account.intents.push(intent())),
            (refunded(), |row| row.account.refunds.clear()),
            (refunded(), |row| {
                row.plan.order.in_stock = true;
                (row.account.charged, row.account.acknowledged) = (at(1_000), at(5_999));
            }),
        ];
        for (row, change) in lost {
            let finding = finding(row, change);
            assert!(matches!(finding, Finding::Lost(_)), "{finding:?}");
        }
    }

    #[test]
    fn a_payment_whose_news_came_after_the_limit_is_refunded_rightly() {
        let late = finding(refunded(), |row| {
            row.plan.order.in_stock = true;
            (row.account.charged, row.account.acknowledged) = (at(1_000), at(6_000));
        });
        assert_eq!(late, Finding::Refunded);
    }

    #[test]
    fn whatever_else_does_not_agree_is_wrong() {
        let wrong: [(Row, Change); 10] = [
            (paid(), |row| row.account.was_fooled = true),
            (paid(), |row| row.plan.hook = Hook::Forged),
            (paid(), |row| row.plan.order.in_stock = false),
            (paid(), |row| row.account.customers.clear()),
            (paid(), |row| row.account.customers[0] = json!({"name": "Ann"})),
            (paid(), |row| row.account.refunds.push(json!({"amount": 1}))),
            (paid(), |row| row.plan.order.price = Some("price_1".into())),
            (paid(), |row| row.account.intents[0]["amount"] = 1_999.into()),
            (declined(), |row| row.plan.why = Some("no".into())),
            (refunded(), |row| row.account.refunds[0]["amount"] = 1.into()),
        ];
        for (at, (row, change)) in wrong.into_iter().enumerate() {
            let finding = finding(row, change);
            assert!(matches!(finding, Finding::Wrong(_)), "{at}: {finding:?}");
        }
    }

    #[test]
    fn a_flow_that_goes_on_in_another_edition_is_wrong() {
        let changed: [Change; 2] =
            [|row| row.account.intents[0]["metadata"]["edition"] = "2".into(), |row| row.edition = Some("2")];
        for change in changed {
            assert!(matches!(finding(paid(), change), Finding::Wrong(_)));
        }
    }

    #[test]
    fn the_last_line_counts_every_payment_and_says_what_is_wrong() {
        let rows = vec![paid(), declined(), refunded()];
        let mut report = Report { rows, limit: LIMIT, kills: (3, 3), canary: (1, 0) };
        let line = "3 payments: 1 paid, 1 declined, 1 refunded; 0 charged twice, 0 lost, 0 answers executed as code; \
                    host killed 3 times";
        assert_eq!((report.to_string().as_str(), report.faults().as_str()), (line, ""));
        report.canary = (1, 2);
        assert!(!report.is_right() && report.to_string().contains(", 2 answers executed as code;"), "{report}");
        report.canary = (0, 0);
        assert!(!report.is_right(), "nobody knows whether it would have been heard");
        (report.canary, report.kills.0) = ((1, 0), 2);
        assert!(!report.is_right() && report.to_string().ends_with("host killed 2 times"));
        report.kills.0 = 3;
        report.rows[0].account.intents.push(intent());
        assert!(
            !report.is_right()
                && report.to_string().contains(" 0 paid, ")
                && report.to_string().contains(" 1 charged twice")
        );
    }
}
