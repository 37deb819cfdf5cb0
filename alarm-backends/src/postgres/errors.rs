//! Failures of Postgres by their meaning for the caller: refused, surely not done, or of unknown outcome.
//!
//! Only an error that the server itself answers with and survives (severity `ERROR`) says that the transaction is gone.
//! Anything else that ends a call under way leaves its outcome unknown, a lost connection and a dying server alike.

use std::time::Duration;

use stable_interfaces::StoreError;
use stable_interfaces::store::BoxError;
use tokio_postgres::error::{DbError, Severity, SqlState};

/// The outcome of a call that failed, and whether its connection can serve the next one.
pub(super) struct Verdict {
    pub(super) error: StoreError,
    pub(super) reusable: bool,
}

/// Judges the error of a call that was sent.
pub(super) fn judge(error: tokio_postgres::Error) -> Verdict {
    let Some((survived, code)) = error.as_db_error().map(|db| (survived(db), db.code().clone())) else {
        return Verdict { error: StoreError::Unavailable(error.into()), reusable: false };
    };
    if !survived {
        return Verdict { error: StoreError::Unavailable(error.into()), reusable: false };
    }
    match &code.code()[..2] {
        // The content, a constraint, a right, a size: the same again would fail the same way.
        "21" | "22" | "23" | "42" | "54" => Verdict { error: StoreError::Rejected(error.into()), reusable: true },
        // A read-only server, a plan or statement that went away under the connection: another connection may do.
        // So does what a connection remembers of tables that have been made anew (XX000, "cache lookup failed").
        "08" | "0A" | "25" | "26" | "57" | "XX" => {
            Verdict { error: StoreError::NotApplied(error.into()), reusable: false }
        }
        _ => Verdict { error: StoreError::NotApplied(error.into()), reusable: true },
    }
}

fn survived(error: &DbError) -> bool {
    error.parsed_severity() == Some(Severity::Error)
}

/// Tells that a notice speaks of a commit that was answered before it was as durable as configured: somebody cancelled its wait for
/// a synchronous replica.
pub(super) fn casts_doubt(notice: &DbError) -> bool {
    notice.parsed_severity() == Some(Severity::Warning)
        && [SqlState::WARNING, SqlState::ADMIN_SHUTDOWN].contains(notice.code())
}

/// Judges a failure to get a connection: [`StoreError::Open`] where waiting cannot help.
pub(super) fn judge_open(error: tokio_postgres::Error) -> StoreError {
    if let Some(db) = error.as_db_error() {
        return match db.code().code() {
            "3D000" => StoreError::Open("the database does not exist".into(), Some(error.into())),
            code if code.starts_with("28") => {
                // As the server words it where it knows the user over TLS alone.
                let is_plain = db.message().contains("no encryption") || db.message().contains("SSL off");
                let hint = if is_plain { "; it may want TLS: add sslmode=require to the URL" } else { "" };
                StoreError::Open(format!("the server refuses the login{hint}"), Some(error.into()))
            }
            code if code.starts_with("42") => StoreError::Open("the schema cannot be used".into(), Some(error.into())),
            _ => StoreError::NotApplied(error.into()),
        };
    }
    let mut cause = std::error::Error::source(&error);
    while let Some(source) = cause {
        if source.to_string() == "server does not support TLS" {
            let text = "the server offers no TLS; where the network can be trusted, add sslmode=disable to the URL";
            return StoreError::Open(text.into(), Some(error.into()));
        }
        if source.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::InvalidData) {
            let text = "the server's TLS certificate is not accepted; give its root to the builder's tls(..) or in SSL_CERT_FILE, or, where the \
                network can be trusted, add sslmode=disable to the URL";
            return StoreError::Open(text.into(), Some(error.into()));
        }
        cause = source.source();
    }
    StoreError::NotApplied(error.into())
}

/// Tells that a call was refused because another transaction holds a row or a table that it needs; nothing was written.
pub(super) fn is_row_locked(error: &StoreError) -> bool {
    let StoreError::NotApplied(cause) = error else { return false };
    let cause = cause.downcast_ref::<tokio_postgres::Error>();
    cause.and_then(tokio_postgres::Error::code) == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

/// Tells that a call may have failed because a table, a type or a function that it needs is there no more.
pub(super) fn misses_something(error: &StoreError) -> bool {
    let (StoreError::NotApplied(cause) | StoreError::Rejected(cause)) = error else { return false };
    let code = cause.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
    // Of what a prepared statement remembers the server says that its own cache has it no more (XX000).
    code.is_some_and(|code| ["3F", "42", "XX"].contains(&&code.code()[..2]))
}

/// The client's own deadline passed.
#[derive(Debug, thiserror::Error)]
#[error("no answer from {address} within {timeout:?}")]
pub(super) struct NoAnswer {
    pub(super) address: String,
    pub(super) timeout: Duration,
}

/// No connection was free or could be made in time.
#[derive(Debug, thiserror::Error)]
#[error("no connection to {address} within {timeout:?}")]
pub(super) struct NoConnection {
    pub(super) address: String,
    pub(super) timeout: Duration,
    /// The reason why the last try failed.
    pub(super) source: Option<BoxError>,
}

/// The server's session is not this client's alone.
pub(super) fn pooled(address: &str) -> StoreError {
    let text = format!(
        "what answers at {address} is a pooler that gives each transaction another session (PgBouncer: pool_mode = transaction or \
         statement), and the store needs sessions of its own: set pool_mode = session there, or name the server itself"
    );
    StoreError::Open(text, None)
}

/// See [`casts_doubt`].
#[derive(Debug, thiserror::Error)]
#[error("the server warned that the commit may not have reached its replicas")]
pub(super) struct DoubtfulCommit;
