//! The frame of programs that prove themselves: a directory for a while, an end in time, a last line.

use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::timeout;
use tracing_subscriber::EnvFilter;

use crate::{BoxError, CannotStart, in_one_line, process};

/// The filter of `RUST_LOG`; `level` without it.
#[must_use]
pub fn log_filter(level: &str) -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| level.into())
}

/// Runs a self-test in a directory of its own, which is kept if something was wrong, and prints its report as the last line, in the name
/// of `program`: exit status 0 if all was right, as `is_right` says, and else 1.
pub async fn self_test<R: Display>(
    program: &str,
    limit: Duration,
    run: impl AsyncFnOnce(PathBuf) -> Result<R, BoxError>,
    is_right: impl Fn(&R) -> bool,
) -> ExitCode {
    let data = match tempfile::Builder::new().prefix(&format!("{program}-")).tempdir() {
        Ok(data) => data,
        Err(error) => return CannotStart::new("cannot make a temporary directory", error).report(program),
    };
    let report = tokio::select! { biased;
        // A child ends with us, and the directory goes with `data`.
        () = process::asked_to_stop(false) => {
            eprintln!("{program}: interrupted");
            return ExitCode::FAILURE;
        }
        report = timeout(limit, run(data.path().to_owned())) => {
            report.unwrap_or_else(|_| Err(format!("not done after {limit:?}").into()))
        }
    };
    let (is_right, last_line) = match report {
        Ok(report) => (is_right(&report), report.to_string()),
        Err(error) => (false, format!("the self-test was cut short: {}", in_one_line(error.as_ref()))),
    };
    if !is_right {
        println!("the host's data is kept in {}", data.keep().display());
    }
    println!("{last_line}");
    if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
