//! Flows: `async` functions that wait for calls from outside and for time, and survive whatever runs them.
//!
//! So far there is their engine: it keeps a journal of what has happened to a flow and replays its code exactly, whatever that is
//! made of.

#![allow(dead_code, reason = "the engine is complete before what runs it on a host is")]

mod blocked;
mod callback;
mod engine;
mod flow;
#[cfg(test)]
mod flow_schedules;
mod journal;
mod step;
mod timer;

pub use blocked::{Blocked, BlockedKind};
pub use callback::{Callback, CallbackError, Received};
pub use flow::{Flow, FlowError, FlowResult};
pub use step::{Fatal, Retry, Step, StepCx, StepError};
pub use timer::{Elapsed, Sleep};
