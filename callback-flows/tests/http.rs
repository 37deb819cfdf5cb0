//! The routers, row by row: status, headers, body, type of problem; and their OpenAPI documents list what the rows have seen.
//!
//! On a paused clock and a store in memory, but for the sockets: time passes when everything waits.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "the runtime's clock is the one that is paused")]
#![allow(clippy::wrong_self_convention, reason = "an answer is looked at once")]

#[path = "http/app.rs"]
mod app;
#[path = "http/moves.rs"]
mod moves;
#[macro_use]
#[path = "http/rows.rs"]
mod rows;
#[path = "http/secrets.rs"]
mod secrets;
#[path = "http/situations.rs"]
mod situations;
#[path = "http/sockets.rs"]
mod sockets;
