//! Flows: `async` functions that hand out URLs, wait for calls there and for time, run steps, and outlive their process.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use callback_flows::{Call, Flow, FlowResult, Flows, UrlKeys};
//! use stable_interfaces::{Host, MemoryStore};
//!
//! /// Waits five seconds for an order to be accepted.
//! async fn order(flow: Flow, order: String) -> FlowResult<String> {
//!     let mut accepted = flow.callback::<String>("accepted");
//!     flow.step("offer").run(|_| offer(&order, accepted.url())).await?;
//!     tokio::select! {
//!         by = accepted.next() => Ok(format!("accepted by {}", by?)),
//!         () = flow.sleep(Duration::from_secs(5)) => Ok("nobody".into()),
//!     }
//! }
//!
//! async fn offer(order: &str, call_me_at: String) -> Result<(), std::io::Error> {
//!     println!("{order}: to be accepted at {call_me_at}");
//!     Ok(())
//! }
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mut host = Host::local(MemoryStore::new());
//! let flows = Flows::builder()
//!     .flow("order", 1, order)
//!     .callbacks("https://broker.example/callbacks", UrlKeys::new("k1", "a secret of 32 random bytes ....")?)
//!     .register(&mut host)?;
//! let host = host.start().await?;
//! flows.start("order", "17", "a pizza").await?;
//! # let token = "";
//! flows.deliver(token, Call::new("\"ada\"")).await?; // by what serves those URLs
//! println!("{:?}", flows.ended("order", "17").await?);
//! # host.drain(Duration::from_secs(1)).await;
//! # Ok(())
//! # }
//! ```
//!
//! | to | look at |
//! | --- | --- |
//! | register, start, call, cancel and look at flows | [`Flows`] |
//! | write one | [`Flow`] |
//! | do something outside of it | [`Step`] |
//! | be called from outside | [`Callback`], [`CallbackPolicy`]; by ID, [`Signal`] |
//! | tell how far it has come | [`Flow::emit`], [`Flow::progress`], [`Flows::events`] |
//! | begin another one, and wait for it | [`Child`] |
//! | know how it is with one | [`Status`], [`Blocked`], [`Journal`] |
//! | test one | `testing` (feature `testing`), [`Flows::check`] |
//! | write them in Rhai (feature `rhai`) | `script` |
//! | serve them over HTTP (feature `http`) | [`Flows::router`](Flows#method.router), [`Flows::callback_router`](Flows#method.callback_router) |

mod blocked;
mod by_name;
mod callback;
mod child;
mod command;
mod courier;
mod engine;
mod events;
mod flow;
#[cfg(test)]
mod flow_schedules;
mod flows;
/// Functions that the fuzz targets try; there for the targets and the tests alone.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod hash;
#[cfg(feature = "http")]
mod http;
mod hub;
mod instance;
mod journal;
pub mod metrics;
mod policy;
#[cfg(feature = "rhai")]
pub mod script;
mod seldom;
mod signal;
mod status;
mod step;
#[cfg(feature = "testing")]
pub mod testing;
mod timer;
mod token;
#[cfg(feature = "postgres")]
mod transaction;
mod verify;

pub use blocked::{Blocked, BlockedKind};
pub use callback::{Callback, CallbackError, Received};
pub use child::{Child, ChildError};
pub use events::{FlowEvent, FlowEvents, HostEvents};
pub use flow::{Flow, FlowError, FlowResult};
pub use flows::{Call, Delivered, Flows, FlowsBuilder, FlowsError, Listed, Refused, Started};
pub use journal::Journal;
pub use policy::CallbackPolicy;
pub use signal::Signal;
pub use status::{Outcome, State, Status, Waiting};
pub use step::{Fatal, Retry, Step, StepCx, StepError};
pub use timer::{Elapsed, Sleep};
pub use token::{KeyError, UrlKeys};
pub use verify::{Unverified, Verify};
