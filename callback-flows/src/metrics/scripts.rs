//! The metrics of scripts.

use std::time::Duration;

use super::{SCRIPT_CALL_SECONDS, SCRIPT_CALLS, SCRIPT_OPERATIONS, SCRIPT_RETRIES, SCRIPT_RUNS, SCRIPTS};

/// An attempt of a call has ended.
pub(crate) fn called(call: &str, is_ok: bool, attempt: u32, took: Duration) {
    let outcome = if is_ok { "succeeded" } else { "failed" };
    metrics::counter!(SCRIPT_CALLS, "call" => call.to_owned(), "outcome" => outcome).increment(1);
    metrics::histogram!(SCRIPT_CALL_SECONDS, "call" => call.to_owned()).record(took);
    if attempt > 1 {
        metrics::counter!(SCRIPT_RETRIES, "call" => call.to_owned()).increment(1);
    }
}

/// A script has ended, after so many runs, and has asked for so many operations.
pub(crate) fn script_over(script: &str, outcome: &'static str, runs: u32, operations: usize) {
    metrics::counter!(SCRIPTS, "script" => script.to_owned(), "outcome" => outcome).increment(1);
    metrics::histogram!(SCRIPT_RUNS, "script" => script.to_owned()).record(runs);
    let operations = u32::try_from(operations).unwrap_or(u32::MAX);
    metrics::histogram!(SCRIPT_OPERATIONS, "script" => script.to_owned()).record(operations);
}
