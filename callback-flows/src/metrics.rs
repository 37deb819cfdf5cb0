//! The names of the metrics that flows emit through the [`metrics`](https://docs.rs/metrics) facade, beside those of their host
//! ([`stable_interfaces::metrics`]).
//!
//! A test holds this list: each name here is emitted, and nothing else is. The label `flow` is the name of a flow's code.

#[cfg(feature = "rhai")]
pub(crate) mod scripts;

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

/// Counter, by `call` and `outcome` (`succeeded`, `failed`): attempts of the calls of scripts. The label `call` is the name that the host has
/// registered it by.
pub const SCRIPT_CALLS: &str = "callback_flows_script_calls_total";
/// Counter, by `call`: those of them that were no first attempts.
pub const SCRIPT_RETRIES: &str = "callback_flows_script_retries_total";
/// Histogram, seconds, by `call`: the time that an attempt has taken.
pub const SCRIPT_CALL_SECONDS: &str = "callback_flows_script_call_seconds";
/// Counter, by `script` and `outcome` (`succeeded`, `failed`): scripts that have ended. The label `script` is the name of one in the library.
pub const SCRIPTS: &str = "callback_flows_scripts_total";
/// Histogram, by `script`: how often a script that has ended was run in this process.
pub const SCRIPT_RUNS: &str = "callback_flows_script_runs";
/// Histogram, by `script`: the operations that a script has asked for.
pub const SCRIPT_OPERATIONS: &str = "callback_flows_script_operations";

/// Every name above; those of scripts are emitted with the feature `rhai`.
pub const ALL: [&str; 13] = [
    STARTED,
    FINISHED,
    BLOCKED,
    UNREAD,
    REPLAY_SECONDS,
    ENTRIES,
    UNKNOWN,
    SCRIPT_CALLS,
    SCRIPT_RETRIES,
    SCRIPT_CALL_SECONDS,
    SCRIPTS,
    SCRIPT_RUNS,
    SCRIPT_OPERATIONS,
];

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
