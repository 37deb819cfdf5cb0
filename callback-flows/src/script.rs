//! Flows written in Rhai: scripts that call partners, wait for webhooks and time, and outlive their process. Feature `rhai`.
//!
//! ```
//! use callback_flows::script::{CallError, Script, ScriptFlows};
//! use callback_flows::testing::TestFlows;
//! use callback_flows::{Call, Flows, UrlKeys};
//! use serde_json::json;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
//! let mut flows = Flows::builder().callbacks("https://shop.example", UrlKeys::new("k1", "a secret of 32 random bytes ....")?);
//! ScriptFlows::builder()
//!     .script("checkout", r#"
//!         let intent = stripe.payment_intents.create(#{ amount: order.amount, currency: "eur" }, #{ retry: 5, timeout: "20s" });
//!         let paid = callback("paid");
//!         let event = paid.next("15m");                           // () when the time is over
//!         if event == () { throw `${intent.id} was not paid in time`; }
//!         set_context("status", event.status);
//!     "#)
//!     .call("stripe.payment_intents.create", |cx, arguments| async move {
//!         // Here the application sends `arguments` with the header `Idempotency-Key: cx.idempotency_key()`.
//!         Ok::<_, CallError>(json!({ "id": format!("pi_{}", cx.idempotency_key()), "amount": arguments["amount"] }))
//!     })
//!     .register(&mut flows)?;
//!
//! let t = TestFlows::new();
//! t.deploy(flows).await?;
//! t.start("script", "17", &Script::named("checkout").arg("order", &json!({ "amount": 2000 }))).await?;
//! t.run_until_parked().await?;
//! t.deliver(&t.url("script", "17", "paid").await, Call::new(r#"{"status": "succeeded"}"#)).await?;
//! assert_eq!(t.done::<serde_json::Value>("script", "17").await?, json!({ "status": "succeeded" }));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! A script is a flow of the ordinary engine. A function that reaches outside looks up its recorded answer; the first without one ends the
//! run, the flow does what was asked as a step, a timer, a callback or a child, and then the script is run again from its top, with one answer
//! more. No thread waits, nothing is lost with a process, and a flow keeps the text that it was started with. docs/scripts.md has
//! all functions.

mod builder;
mod calls;
mod check;
mod dispatch;
mod drive;
mod failure;
mod functions;
mod http;
mod library;
mod names;
mod run;
mod start;
mod value;

use crate::metrics::scripts as metrics;

pub use self::builder::{ScriptFlows, ScriptFlowsBuilder};
pub use self::calls::{CallCx, CallError};
pub use self::dispatch::Dispatch;
pub use self::http::{HttpRequest, HttpResponse};
pub use self::library::ScriptError;
pub use self::start::Script;
