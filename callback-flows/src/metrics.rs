//! The names of the metrics that flows emit through the [`metrics`](https://docs.rs/metrics) facade, beside those of their host
//! ([`stable_interfaces::metrics`]).
//!
//! A test holds this list: each name here is emitted, and nothing else is. The label `flow` is the name of a flow's code.

use std::cmp::Ordering;
use std::time::Duration;

/// Counter, by `flow`: flows that were started.
pub const STARTED: &str = "callback_flows_started_total";
/// Counter, by `flow` and `outcome` (`succeeded`, `failed`, `cancelled`): flows that have ended.
pub const FINISHED: &str = "callback_flows_finished_total";
/// Counter, by `flow`: how often a flow was blocked, or for another reason than before.
pub const BLOCKED: &str = "callback_flows_blocked_total";
/// Gauge: messages that the code of the flows in this host's memory has not taken.
pub const UNREAD: &str = "callback_flows_unread_messages";
/// Histogram, seconds, by `flow`: from reading a flow's journal to its code having come to where it was.
pub const REPLAY_SECONDS: &str = "callback_flows_replay_seconds";
/// Histogram, by `flow`: entries of the journal of a flow that has ended.
pub const ENTRIES: &str = "callback_flows_journal_entries";
/// Counter: messages dropped because there is no such flow.
pub const UNKNOWN: &str = "callback_flows_messages_for_unknown_flows_total";

/// Every name above.
pub const ALL: [&str; 7] = [STARTED, FINISHED, BLOCKED, UNREAD, REPLAY_SECONDS, ENTRIES, UNKNOWN];

pub(crate) fn started(flow: &str) {
    metrics::counter!(STARTED, "flow" => flow.to_owned()).increment(1);
}

pub(crate) fn finished(flow: &str, outcome: &'static str, entries: u64) {
    metrics::counter!(FINISHED, "flow" => flow.to_owned(), "outcome" => outcome).increment(1);
    metrics::histogram!(ENTRIES, "flow" => flow.to_owned()).record(u32::try_from(entries).unwrap_or(u32::MAX));
}

pub(crate) fn blocked(flow: &str) {
    metrics::counter!(BLOCKED, "flow" => flow.to_owned()).increment(1);
}

/// The unread messages of one flow have become so many.
pub(crate) fn unread(before: usize, now: usize) {
    let number = |messages: usize| u32::try_from(messages).unwrap_or(u32::MAX);
    match now.cmp(&before) {
        Ordering::Greater => metrics::gauge!(UNREAD).increment(number(now - before)),
        Ordering::Less => metrics::gauge!(UNREAD).decrement(number(before - now)),
        Ordering::Equal => {}
    }
}

pub(crate) fn replayed(flow: &str, took: Duration) {
    metrics::histogram!(REPLAY_SECONDS, "flow" => flow.to_owned()).record(took);
}

pub(crate) fn unknown() {
    metrics::counter!(UNKNOWN).increment(1);
}
