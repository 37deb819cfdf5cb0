//! Scripts in whole: what they may write, what becomes of them when a process dies, and what they cannot do.
//!
//! On a paused clock and a store in memory: time passes when everything waits.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "the runtime's clock is the one that is paused")]

#[path = "scripts/app.rs"]
mod app;
#[path = "scripts/bad_input.rs"]
mod bad_input;
#[path = "scripts/changes.rs"]
mod changes;
#[path = "scripts/dispatching.rs"]
mod dispatching;
#[path = "scripts/documents.rs"]
mod documents;
#[path = "scripts/injection.rs"]
mod injection;
#[path = "scripts/limits.rs"]
mod limits;
#[path = "scripts/linear.rs"]
mod linear;
#[path = "scripts/schedules.rs"]
mod schedules;
