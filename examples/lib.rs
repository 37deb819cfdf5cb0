//! Programs that each solve one problem: see the folders beside this file. Here is what they have in common as programs:
//! how they serve HTTP, how they start and kill a host of their own, and how they end.

pub mod drill;
pub mod http;
#[cfg(test)]
mod http_tests;
pub mod process;
pub mod taken;

/// The README's programs compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

use std::error::Error;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use reqwest::redirect::Policy;

/// Any error that can cross tasks.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// The reason for which a program cannot do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct CannotStart {
    what: String,
    #[source]
    why: BoxError,
}

impl CannotStart {
    /// Names what it cannot do, and why.
    pub fn new(what: impl Into<String>, why: impl Into<BoxError>) -> CannotStart {
        CannotStart { what: what.into(), why: why.into() }
    }

    /// Says so in one line on standard error, in the name of `program`; exit status 2.
    #[must_use]
    pub fn report(&self, program: &str) -> ExitCode {
        eprintln!("{program}: {}", in_one_line(self));
        ExitCode::from(2)
    }
}

/// The reason for which a program that serves did not end as it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The work never began.
    #[error(transparent)]
    Start(#[from] CannotStart),
    /// The host ended by itself, and so did the program: it is to be started anew.
    #[error("the host has ended and is to be started anew")]
    Host(#[from] stable_interfaces::Ended),
}

impl From<anyhow::Error> for Failed {
    /// Tells a host that ended by itself from a service that could not begin.
    fn from(error: anyhow::Error) -> Failed {
        match error.downcast() {
            Ok(ended) => Failed::Host(ended),
            Err(error) => CannotStart::new("cannot serve", in_one_line(&*error)).into(),
        }
    }
}

impl Failed {
    /// Says so in one line on standard error, in the name of `program`; exit status 2 if it never began and 1 if it is to be started
    /// anew, which is what a supervisor does on any status but 0.
    #[must_use]
    pub fn report(&self, program: &str) -> ExitCode {
        match self {
            Failed::Start(error) => error.report(program),
            Failed::Host(_) => {
                eprintln!("{program}: {}", in_one_line(self));
                ExitCode::FAILURE
            }
        }
    }
}

/// The limit of a program that ends by itself.
const LIMIT: Duration = Duration::from_secs(120);

/// Ends a program with its last line, or with one on standard error that says what went wrong, in the name of `program`: exit
/// status 0, 2 if it never began, and 1 for anything else.
pub async fn end<E: Into<BoxError>>(program: &str, work: impl Future<Output = Result<String, E>>) -> ExitCode {
    let done = tokio::time::timeout(LIMIT, work).await.map(|result| result.map_err(Into::into));
    match done.unwrap_or_else(|_| Err(format!("not done after {} s", LIMIT.as_secs()).into())) {
        Ok(last_line) => {
            println!("{last_line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{program}: {}", in_one_line(&*error));
            if error.is::<CannotStart>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// Ends the program with one line and exit status 2 if it was given arguments, for one that takes none.
pub fn no_arguments(program: &str) {
    if let Some(unexpected) = std::env::args_os().nth(1) {
        eprintln!("{program}: it takes no arguments, and was given {unexpected:?}");
        std::process::exit(2);
    }
}

/// A client whose every request has an end: `limit` for the whole exchange.
///
/// It goes past any configured proxy, because all that these programs call is on this machine, and it makes a new connection
/// for each request, so that "refused" says for certain that the request was never sent.
///
/// # Panics
/// Never: a client without TLS has nothing to load that could fail.
#[must_use]
pub fn client(limit: Duration) -> reqwest::Client {
    with_end(limit, Policy::default())
}

/// The same, to see where it would be sent: it follows no redirect.
///
/// # Panics
/// As [`client`]: never.
#[must_use]
pub fn client_that_stays(limit: Duration) -> reqwest::Client {
    with_end(limit, Policy::none())
}

fn with_end(limit: Duration, policy: Policy) -> reqwest::Client {
    reqwest::Client::builder()
        .timeout(limit)
        .no_proxy()
        .redirect(policy)
        .pool_max_idle_per_host(0)
        .build()
        .expect("a client without TLS has nothing to load that could fail")
}

/// An error with its causes, each said once.
#[must_use]
pub fn in_one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.ends_with(&text) {
            // Writing to a String cannot fail.
            let _ = write!(line, ": {text}");
        }
        cause = error.source();
    }
    line.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_each_cause_once_in_one_line() {
        let cause = std::io::Error::other("the disk\nis full");
        assert_eq!(in_one_line(&CannotStart::new("cannot open d", cause)), "cannot open d: the disk is full");
    }
}
