//! Stripe as the scripts know it: `stripe.payment_intents.create(#{ .. })` and its like for each kind of resource, over HTTP.
//!
//! Its API key is known here and nowhere else: no script, context, journal or log has it. Each request that does something carries the
//! key of its call, the same however often it is made; what is answered is data from here on.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use callback_flows::script::{CallCx, CallError, Dispatch, ScriptFlowsBuilder};
use examples::in_one_line;
use serde_json::Value;

use crate::form;
use crate::wire::{Answer, Wire};

/// A kind of resource, and what can be said of a new one.
pub(crate) struct Resource {
    /// As its URL has it.
    pub(crate) plural: &'static str,
    /// As its `object` says.
    pub(crate) object: &'static str,
    /// The builder methods of `new_{object}()`.
    fields: &'static [&'static str],
}

/// All kinds of resources that the scripts use.
pub(crate) const RESOURCES: [Resource; 7] = [
    Resource { plural: "coupons", object: "coupon", fields: &["percent_off", "duration", "metadata"] },
    Resource { plural: "customers", object: "customer", fields: &["name", "email", "metadata"] },
    Resource {
        plural: "payment_intents",
        object: "payment_intent",
        fields: &["amount", "currency", "customer", "payment_method", "payment_method_types", "confirm", "metadata"],
    },
    Resource {
        plural: "prices",
        object: "price",
        fields: &["product", "unit_amount", "currency", "recurring", "metadata"],
    },
    Resource { plural: "products", object: "product", fields: &["name", "metadata"] },
    Resource { plural: "refunds", object: "refund", fields: &["payment_intent", "metadata"] },
    Resource {
        plural: "subscriptions",
        object: "subscription",
        fields: &["customer", "items", "discounts", "collection_method", "days_until_due", "metadata"],
    },
];

/// An account at Stripe, or at the fake.
#[derive(Debug)]
pub(crate) struct Account {
    wire: Wire,
    authorization: String,
    /// Each attempt of a call has a key of its own.
    is_broken: bool,
}

impl Account {
    pub(crate) fn new(wire: Wire, key: &str) -> Account {
        let authorization = format!("Basic {}", STANDARD.encode(format!("{key}:")));
        Account { wire, authorization, is_broken: false }
    }

    /// Breaks it, if it is to be broken: each attempt of a call has a key of its own, so that Stripe takes it for another call. Whoever looks
    /// for customers that are charged twice has to find some then.
    pub(crate) fn broken(self, is_broken: bool) -> Account {
        Account { is_broken, ..self }
    }

    /// Teaches scripts all that is done with it: for each kind of resource `create` and `list`, and a builder whose answer has a script of
    /// its own.
    pub(crate) fn teach(self: Arc<Account>, mut scripts: ScriptFlowsBuilder) -> ScriptFlowsBuilder {
        for Resource { plural, object, fields } in RESOURCES {
            let [create, list] = std::array::from_fn(|_| self.clone());
            scripts = scripts
                .call(&format!("stripe.{plural}.create"), move |cx, params| {
                    let account = create.clone();
                    async move { account.create(plural, &cx, &params).await }
                })
                .call(&format!("stripe.{plural}.list"), move |_, filter| {
                    let account = list.clone();
                    async move { account.get(&format!("/v1/{plural}?{}", form::encode(&filter))).await }
                })
                .dispatch(
                    Dispatch::new(&format!("new_{object}"), "create", &format!("stripe.{plural}.create"))
                        .fields(fields.iter().copied()),
                );
        }
        scripts
    }

    async fn create(&self, plural: &str, cx: &CallCx, params: &Value) -> Result<Value, CallError> {
        let mut key = cx.idempotency_key();
        if self.is_broken {
            key += &format!("-{}", cx.attempt());
        }
        let headers = [
            ("authorization", self.authorization.as_str()),
            ("content-type", "application/x-www-form-urlencoded"),
            ("idempotency-key", key.as_str()),
        ];
        read(self.wire.send("POST", &format!("/v1/{plural}"), &headers, form::encode(params)).await)
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, CallError> {
        read(self.wire.send("GET", path, &[("authorization", &self.authorization)], String::new()).await)
    }
}

/// The answer to a request as a script has it.
fn read(answer: std::io::Result<Answer>) -> Result<Value, CallError> {
    // It may have been done, or not: another attempt, under the same key, finds out.
    let again = |error: &dyn std::error::Error| CallError::new("api_connection_error", in_one_line(error)).retry();
    let answer = answer.map_err(|error| again(&error))?;
    if answer.status < 400 {
        return serde_json::from_slice(&answer.body).map_err(|error| again(&error));
    }
    // Stripe says itself of an error whether it may get better under this key; of an error 500 that it keeps, it says no.
    Err(CallError::from_response(answer.status, &answer.headers, &answer.body))
}
