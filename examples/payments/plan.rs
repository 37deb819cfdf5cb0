//! The orders of the drill: what is bought, by whom, with what card, and what the fake does with it. A seed repeats them.

use serde::{Deserialize, Serialize};

/// Names and reasons that would do something if anybody took them for code.
pub(crate) const HOSTILE: [&str; 14] = [
    "${canary()}",
    "`${canary()}`",
    "\"; canary(); \"",
    "'; canary(); //",
    "\\\"); canary(); (\"\\",
    "*/ canary(); /*",
    "// a comment\ncanary();\n",
    "}; canary(); #{ a: ",
    "a\u{2028}canary();\u{2029}b",
    "let x = parsed_data; canary(); set_context(\"outcome\", \"paid\");",
    "\\u{22}; canary(); \\x00 %22%3Bcanary()",
    "&a[b]=c&metadata[order]=another;canary()",
    "日本 \u{202e}é\u{301}\t\r\n\u{7f}",
    "on_undo(|| canary()); throw \"\"\"canary()\"\"\";",
];

/// A customer's order, as it is posted to the service: the argument of its script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: String,
    /// The name of the customer.
    pub(crate) name: String,
    /// In the smallest unit of the currency.
    pub(crate) amount: u64,
    /// One of Stripe's payment methods for tests.
    pub(crate) card: String,
    /// Tells whether what was bought is there, which the service only sees when it has the money.
    pub(crate) in_stock: bool,
    /// The price of a subscription that is bought as well, and a coupon for it.
    pub(crate) price: Option<String>,
    pub(crate) coupon: Option<String>,
    /// The time that Stripe has to say that it is paid, such as `5s`.
    pub(crate) limit: String,
}

/// The way in which an order's scripts are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Style {
    /// From top to bottom: `checkout.rhai`.
    Linear,
    /// A script for each answer: `checkout_by_answers.rhai` and all of its `new_create_..` scripts.
    Answers,
}

impl Style {
    /// The name of its main script.
    pub(crate) fn script(self) -> &'static str {
        match self {
            Style::Linear => "checkout",
            Style::Answers => "checkout_by_answers",
        }
    }
}

/// The fake's way of saying that an order is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hook {
    Once,
    /// Before it has answered the request for it.
    Early,
    Twice,
    Never,
    /// Not at all; but somebody else, who does not know the secret, does.
    Forged,
}

/// The end of an order, if nothing goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Paid,
    Declined,
    Refunded,
}

/// An order and all that is to happen to it.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) order: Order,
    pub(crate) style: Style,
    pub(crate) hook: Hook,
    /// The reason that is given if the card is declined, where it is known.
    pub(crate) why: Option<String>,
}

impl Plan {
    /// Makes it one of a run on Stripe itself, which does not lie, and declines in its own words.
    pub(crate) fn is_by_stripe(&mut self, run: u32) {
        self.order.id = format!("{}-{run:08x}", self.order.id);
        (self.hook, self.why) = (Hook::Once, None);
    }

    pub(crate) fn fate(&self) -> Fate {
        match self.hook {
            _ if self.order.card != GOOD_CARD => Fate::Declined,
            Hook::Never | Hook::Forged => Fate::Refunded,
            _ if !self.order.in_stock => Fate::Refunded,
            _ => Fate::Paid,
        }
    }
}

/// Cards that Stripe has for tests: the first is good, the others are declined.
pub(crate) const GOOD_CARD: &str = "pm_card_visa";
const BAD_CARDS: [&str; 2] = ["pm_card_visa_chargeDeclined", "pm_card_visa_chargeDeclinedInsufficientFunds"];

/// The plans of so many orders: of each twenty, four are declined and three refunded, half of all in either style.
pub(crate) fn plans(orders: usize, seed: u64, limit: &str) -> Vec<Plan> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut kinds: Vec<usize> = (0..20).cycle().take(orders).collect();
    random.shuffle(&mut kinds);
    let plan = |(n, kind): (usize, usize)| {
        let hostile = HOSTILE[random.usize(..HOSTILE.len())];
        let order = Order {
            id: format!("order-{n:03}"),
            name: if n % 3 == 0 { hostile.to_owned() } else { format!("Ann {n}") },
            amount: random.u64(500..50_000),
            card: if kind < 4 { BAD_CARDS[kind % 2].to_owned() } else { GOOD_CARD.to_owned() },
            in_stock: kind != 4,
            price: None,
            coupon: None,
            limit: limit.to_owned(),
        };
        let hook = match kind {
            5 => Hook::Never,
            6 => Hook::Forged,
            7..10 => Hook::Twice,
            10..13 => Hook::Early,
            _ => Hook::Once,
        };
        let style = if n % 2 == 0 { Style::Linear } else { Style::Answers };
        Plan { order, style, hook, why: Some(format!("Your card was declined: {hostile}")) }
    };
    kinds.into_iter().enumerate().map(plan).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_orders_and_all_fates_occur_in_both_styles() {
        let orders = |seed| plans(60, seed, "5s").into_iter().map(|plan| plan.order).collect::<Vec<_>>();
        assert_eq!(orders(7), orders(7));
        assert_ne!(orders(7), orders(8));
        let plans = plans(60, 7, "5s");
        for style in [Style::Linear, Style::Answers] {
            for fate in [Fate::Paid, Fate::Declined, Fate::Refunded] {
                assert!(plans.iter().any(|plan| plan.style == style && plan.fate() == fate), "{style:?} {fate:?}");
            }
        }
        let count = |fate| plans.iter().filter(|plan| plan.fate() == fate).count();
        assert_eq!([count(Fate::Declined), count(Fate::Refunded)], [12, 9]);
    }
}
