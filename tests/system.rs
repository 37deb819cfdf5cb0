//! The tests of the whole system that need nothing but their own process: hosts, instances and stores in memory or in a
//! directory, most of them under a paused clock. One module each; `tests/run NAME` runs one of them.
//!
//! They are one program, because each program is linked by itself and waits for the one before it. A test that starts processes or
//! servers, measures its process, or sets what is global to it (a recorder, a subscriber, a panic hook) is in a program of its own,
//! beside this file.

mod alarms;
mod builds;
mod connections;
mod directives;
mod effects;
mod ends;
mod errors;
mod flow_calls;
mod flow_news;
mod holding;
mod inbox;
mod instances;
mod limits;
mod live;
mod overload;
mod ownership;
mod restart;
mod rides;
mod routing;
mod storm;
mod tasks;
