//! What a failure of Postgres means for the caller: was it refused, surely not done, or is the outcome unknown?
//!
//! Only an error that the server itself answers with and survives (severity `ERROR`) says that the transaction is gone.
//! Anything else that ends a call under way leaves its outcome unknown, a lost connection and a dying server alike.

use stable_interfaces::StoreError;
use tokio_postgres::error::{DbError, Severity, SqlState};

/// What became of a call, and whether its connection can serve the next one.
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
        "08" | "0A" | "25" | "26" | "57" => Verdict { error: StoreError::NotApplied(error.into()), reusable: false },
        _ => Verdict { error: StoreError::NotApplied(error.into()), reusable: true },
    }
}

fn survived(error: &DbError) -> bool {
    error.parsed_severity() == Some(Severity::Error)
}

/// Whether a notice says that a commit was answered before it was as durable as configured: somebody cancelled its wait for
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
                StoreError::Open("the server refuses the login".into(), Some(error.into()))
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
            return StoreError::Open("the server's TLS certificate is not accepted".into(), Some(error.into()));
        }
        cause = source.source();
    }
    StoreError::NotApplied(error.into())
}

/// The client's own deadline passed.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
pub(super) struct DeadlinePassed(pub(super) std::time::Duration);

/// No connection was free or could be made in time.
#[derive(Debug, thiserror::Error)]
#[error("no connection within {0:?}")]
pub(super) struct NoConnection(pub(super) std::time::Duration);

/// See [`casts_doubt`].
#[derive(Debug, thiserror::Error)]
#[error("the server warned that the commit may not have reached its replicas")]
pub(super) struct DoubtfulCommit;
