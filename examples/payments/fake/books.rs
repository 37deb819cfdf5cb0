//! The books of the fake Stripe: its objects, and the answers it has given by their idempotency keys. Pure code, without I/O or a clock.
//!
//! As Stripe documents it: the first answer to a key is kept, whatever it is, an error 500 included, from when the work has begun; a request
//! that is refused before is not kept. The same key with other parameters is refused, and so is one whose work is under way.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use stable_interfaces::Timestamp;

use crate::plan::{GOOD_CARD, Hook};

/// An answer, with whether the work for it had begun.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
    pub(crate) has_begun: bool,
}

impl Answer {
    fn ok(body: Value) -> Answer {
        Answer { status: 200, body, has_begun: true }
    }

    /// An error, with nothing begun.
    pub(crate) fn refused(status: u16, kind: &str, code: &str, message: impl Into<String>) -> Answer {
        let error = json!({"type": kind, "code": code, "message": message.into()});
        Answer { status, body: json!({"error": error}), has_begun: false }
    }

    /// The error of a service that does not know itself what it did.
    pub(crate) fn broken() -> Answer {
        let body =
            json!({"error": {"type": "api_error", "message": "An unknown error occurred; canary(); ${canary()}"}});
        Answer { status: 500, body, has_begun: true }
    }

    fn invalid(code: &str, message: impl Into<String>) -> Answer {
        Answer::refused(400, "invalid_request_error", code, message)
    }
}

/// The part that a key has in a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Begun {
    New,
    /// The answer was given before.
    Again(Answer),
    /// Refused, for the reason that the answer gives.
    Refused(Answer),
}

/// A request that was made under a key.
#[derive(Debug)]
struct Keyed {
    request: String,
    /// `None` while the work is under way.
    answer: Option<Answer>,
}

/// The manner in which an order is dealt with, and what became of it.
#[derive(Debug, Clone)]
pub(crate) struct Dealing {
    pub(crate) hook: Hook,
    pub(crate) why: String,
    /// The time at which it was charged.
    pub(crate) charged: Option<Timestamp>,
    /// The first time at which the news of that was acknowledged.
    pub(crate) acknowledged: Option<Timestamp>,
    /// A forged call for it was acknowledged.
    pub(crate) was_fooled: bool,
}

impl Dealing {
    pub(crate) fn new(hook: Hook, why: String) -> Dealing {
        Dealing { hook, why, charged: None, acknowledged: None, was_fooled: false }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Books {
    objects: Vec<Value>,
    keys: BTreeMap<String, Keyed>,
    pub(crate) dealings: BTreeMap<String, Dealing>,
}

impl Books {
    /// Empty books, with the manner in which each order is to be dealt with.
    pub(crate) fn new(dealings: BTreeMap<String, Dealing>) -> Books {
        Books { dealings, ..Books::default() }
    }

    /// All objects of a kind, in the order in which they were made.
    pub(crate) fn of(&self, object: &str) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(move |known| known["object"] == object)
    }

    fn find(&self, object: &str, id: &str) -> Option<&Value> {
        self.of(object).find(|known| known["id"] == id)
    }

    /// The objects of a kind that have these values, the last one first, as Stripe lists them.
    pub(crate) fn list(&self, object: &str, wanted: &Value) -> Value {
        let mut found: Vec<_> = self.of(object).filter(|known| is_like(known, wanted)).cloned().collect();
        found.reverse();
        json!({"object": "list", "data": found, "has_more": false})
    }

    /// Looks a key up before anything is done, and marks it as under way if it is new. `request` is all that has to be the same.
    pub(crate) fn begin(&mut self, key: &str, request: &str) -> Begun {
        match self.keys.get(key) {
            None => {
                self.keys.insert(key.to_owned(), Keyed { request: request.to_owned(), answer: None });
                Begun::New
            }
            Some(keyed) if keyed.request != request => Begun::Refused(Answer::refused(
                400,
                "idempotency_error",
                "idempotency_error",
                "Keys for idempotent requests can only be used with the same parameters they were first used with.",
            )),
            Some(Keyed { answer: None, .. }) => Begun::Refused(Answer::refused(
                409,
                "invalid_request_error",
                "idempotency_key_in_use",
                "There is currently another in-progress request using this key.",
            )),
            Some(Keyed { answer: Some(answer), .. }) => Begun::Again(answer.clone()),
        }
    }

    /// Keeps the answer to a key, if the work had begun.
    pub(crate) fn end(&mut self, key: &str, answer: &Answer) {
        match self.keys.get_mut(key) {
            Some(keyed) if answer.has_begun => keyed.answer = Some(answer.clone()),
            _ => drop(self.keys.remove(key)),
        }
    }

    /// Makes an object of a kind, as a request to create one does.
    pub(crate) fn create(&mut self, object: &str, params: &Value, now: Timestamp) -> Answer {
        let missing =
            |names: &[&str]| names.iter().find(|name| params[**name].is_null()).map(|name| (*name).to_owned());
        let needed: &[&str] = match object {
            "payment_intent" => &["amount", "currency"],
            "refund" => &["payment_intent"],
            "product" => &["name"],
            "price" => &["product", "unit_amount", "currency"],
            "subscription" => &["customer", "items"],
            "coupon" => &["duration"],
            _ => &[],
        };
        if let Some(name) = missing(needed) {
            return Answer::invalid("parameter_missing", format!("Missing required param: {name}."));
        }
        let items = |list: &str, of: &'static str| {
            let items = params[list].as_array().into_iter().flatten();
            items.filter_map(|item| Some((of, item[of].as_str()?))).collect::<Vec<_>>()
        };
        let named = ["customer", "product", "payment_intent"].into_iter();
        let named = named.filter_map(|of| Some((of, params[of].as_str()?)));
        for (of, id) in named.chain(items("items", "price")).chain(items("discounts", "coupon")) {
            if self.find(of, id).is_none() {
                return Answer::invalid("resource_missing", format!("No such {of}: '{id}'"));
            }
        }
        let mut made = params.as_object().cloned().unwrap_or_default();
        for amount in ["amount", "unit_amount"] {
            match params[amount].as_str().map(str::parse::<u64>) {
                None => {}
                Some(Ok(cents)) if cents >= 50 => drop(made.insert(amount.to_owned(), cents.into())),
                Some(_) => return Answer::invalid("amount_too_small", format!("Invalid {amount}.")),
            }
        }
        match object {
            "payment_intent" => self.charge(made, now),
            "refund" => self.refund(made),
            "subscription" => {
                made.insert("status".to_owned(), "active".into());
                Answer::ok(self.add(object, made))
            }
            _ => Answer::ok(self.add(object, made)),
        }
    }

    /// Makes a payment intent, and confirms it if it is asked to.
    fn charge(&mut self, mut made: Map<String, Value>, now: Timestamp) -> Answer {
        let is_confirmed = made.remove("confirm").is_some_and(|confirm| confirm == "true");
        let card = made.remove("payment_method").unwrap_or_default();
        let order = made.get("metadata").and_then(|data| data["order"].as_str()).unwrap_or_default().to_owned();
        let status = match () {
            () if !is_confirmed => "requires_confirmation",
            () if card == GOOD_CARD => "succeeded",
            () => "requires_payment_method",
        };
        made.insert("status".to_owned(), status.into());
        let why = self.dealings.get(&order).map_or_else(String::new, |dealing| dealing.why.clone());
        // In every answer and event there is something that wants to be code.
        made.insert("description".to_owned(), why.as_str().into());
        let intent = self.add("payment_intent", made);
        let dealing = self.dealings.get_mut(&order);
        if status == "requires_payment_method" {
            let message = if why.is_empty() { "Your card was declined.".to_owned() } else { why };
            let error =
                json!({"type": "card_error", "code": "card_declined", "message": message, "payment_intent": intent});
            return Answer { status: 402, body: json!({"error": error}), has_begun: true };
        }
        if let Some(dealing) = dealing.filter(|_| status == "succeeded") {
            dealing.charged.get_or_insert(now);
        }
        Answer::ok(intent)
    }

    /// Gives back what is left of a charge.
    fn refund(&mut self, mut made: Map<String, Value>) -> Answer {
        let id = made["payment_intent"].clone();
        let charge = self.of("payment_intent").find(|intent| intent["id"] == id && intent["status"] == "succeeded");
        let Some(amount) = charge.map(|intent| intent["amount"].clone()) else {
            return Answer::invalid(
                "payment_intent_unexpected_state",
                "This PaymentIntent does not have a successful charge.",
            );
        };
        if self.of("refund").any(|refund| refund["payment_intent"] == id) {
            return Answer::invalid("charge_already_refunded", "The charge has already been refunded.");
        }
        made.insert("amount".to_owned(), amount);
        made.insert("status".to_owned(), "succeeded".into());
        Answer::ok(self.add("refund", made))
    }

    /// Adds an object, under the next number.
    fn add(&mut self, object: &str, mut made: Map<String, Value>) -> Value {
        let prefix = match object {
            "customer" => "cus",
            "payment_intent" => "pi",
            "product" => "prod",
            "refund" => "re",
            "subscription" => "sub",
            other => other,
        };
        made.insert("id".to_owned(), format!("{prefix}_{:06}", self.objects.len() + 1).into());
        made.insert("object".to_owned(), object.into());
        made.insert("livemode".to_owned(), false.into());
        let made = Value::Object(made);
        self.objects.push(made.clone());
        made
    }
}

/// Tells whether a value has all that is wanted of it. A number is like its text.
fn is_like(known: &Value, wanted: &Value) -> bool {
    match (known, wanted) {
        (Value::Object(known), Value::Object(wanted)) => {
            wanted.iter().all(|(name, wanted)| known.get(name).is_some_and(|known| is_like(known, wanted)))
        }
        (Value::Number(known), Value::String(wanted)) => known.to_string() == *wanted,
        _ => known == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn charge(card: &str) -> Value {
        json!({"amount": "2000", "currency": "usd", "confirm": "true", "payment_method": card, "metadata": {"order": "17"}})
    }

    fn created(books: &mut Books, object: &str, params: &Value) -> Value {
        let answer = books.create(object, params, NOW);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    #[test]
    fn a_key_has_one_answer_and_is_for_one_request() {
        let mut books = Books::default();
        assert_eq!(books.begin("k", "POST a=1"), Begun::New);
        assert!(matches!(books.begin("k", "POST a=1"), Begun::Refused(answer) if answer.status == 409));
        let answer = books.create("customer", &json!({"name": "Ann"}), NOW);
        books.end("k", &answer);
        assert_eq!(books.begin("k", "POST a=1"), Begun::Again(answer));
        assert!(
            matches!(books.begin("k", "POST a=2"), Begun::Refused(answer) if answer.body["error"]["type"] == "idempotency_error")
        );
        assert_eq!(books.of("customer").count(), 1);
    }

    #[test]
    fn an_error_500_is_kept_and_a_refusal_is_not() {
        let mut books = Books::default();
        assert_eq!(books.begin("k", "a"), Begun::New);
        books.end("k", &Answer::broken());
        assert_eq!(books.begin("k", "a"), Begun::Again(Answer::broken()));
        assert_eq!(books.begin("l", "a"), Begun::New);
        let refused = books.create("refund", &json!({}), NOW);
        assert_eq!(refused.status, 400);
        books.end("l", &refused);
        assert_eq!(books.begin("l", "b"), Begun::New, "it may be sent again, mended");
    }

    #[test]
    fn a_good_card_is_charged_and_another_is_declined_with_the_reason_as_it_is() {
        let mut books = Books::default();
        books.dealings.insert("17".into(), Dealing::new(Hook::Once, "no; canary()".into()));
        let declined = books.create("payment_intent", &charge("pm_card_visa_chargeDeclined"), NOW);
        assert_eq!((declined.status, &declined.body["error"]["message"]), (402, &json!("no; canary()")));
        assert_eq!(books.dealings["17"].charged, None);
        let intent = created(&mut books, "payment_intent", &charge(GOOD_CARD));
        assert_eq!((&intent["status"], &intent["amount"]), (&json!("succeeded"), &json!(2000)));
        assert_eq!(books.dealings["17"].charged, Some(NOW));
    }

    #[test]
    fn a_charge_is_refunded_once_and_only_if_it_was_made() {
        let mut books = Books::default();
        let charged = created(&mut books, "payment_intent", &charge(GOOD_CARD));
        let refund = created(&mut books, "refund", &json!({"payment_intent": charged["id"]}));
        assert_eq!(refund["amount"], 2000);
        let again = books.create("refund", &json!({"payment_intent": charged["id"]}), NOW);
        assert_eq!(again.body["error"]["code"], "charge_already_refunded");
        let unknown = books.create("refund", &json!({"payment_intent": "pi_1"}), NOW);
        assert_eq!(unknown.body["error"]["code"], "resource_missing");
    }

    #[test]
    fn a_subscription_needs_a_customer_and_prices_that_are_there() {
        let mut books = Books::default();
        let customer = created(&mut books, "customer", &json!({"name": "Ann"}));
        let product = created(&mut books, "product", &json!({"name": "Tea"}));
        let price = json!({"product": product["id"], "unit_amount": "500", "currency": "usd"});
        let price = created(&mut books, "price", &price);
        let coupon = created(&mut books, "coupon", &json!({"percent_off": "10", "duration": "once"}));
        let wanted = json!({"customer": customer["id"], "items": [{"price": price["id"]}], "discounts": [{"coupon": coupon["id"]}]});
        assert_eq!(created(&mut books, "subscription", &wanted)["status"], "active");
        let nothing = json!({"customer": customer["id"], "items": [{"price": "price_0"}]});
        assert_eq!(books.create("subscription", &nothing, NOW).status, 400);
        let list = books.list("subscription", &json!({"customer": customer["id"]}));
        assert_eq!(list["data"].as_array().map(Vec::len), Some(1));
        assert_eq!(books.list("subscription", &json!({"customer": "cus_0"}))["data"], json!([]));
    }
}
