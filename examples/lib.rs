//! Programs that each solve one problem: see the folders beside this file. Here is what they have in common as programs:
//! how they serve HTTP, how they start and kill a host of their own, and how they say why they cannot start.

pub mod http;
pub mod process;

/// The README's programs compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

use std::error::Error;
use std::fmt::Write;
use std::process::ExitCode;

/// Any error that can cross tasks.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Why a program cannot do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct CannotStart {
    what: String,
    #[source]
    why: BoxError,
}

impl CannotStart {
    /// What it cannot do, and why.
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

/// Why a program that serves did not end as it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// It never began.
    #[error(transparent)]
    Start(#[from] CannotStart),
    /// Its host ended by itself, and so did the program: it is to be started anew.
    #[error("the host has ended and is to be started anew")]
    Host(#[from] stable_interfaces::Ended),
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
