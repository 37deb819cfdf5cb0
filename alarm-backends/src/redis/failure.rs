//! Failures of calls of the server, sorted by whether the call may have happened.

use std::error::Error;
use std::io;
use std::sync::Arc;

use redis::{ErrorKind, RedisError, ServerError};
use stable_interfaces::StoreError;
use stable_interfaces::store::BoxError;

/// The failure of a call.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// The call did not reach a server.
    NotSent(String),
    /// The call was sent and not answered.
    Unknown(String),
    /// The server answered with an error.
    Refused(ServerError),
    /// The server must not be used as it is configured; the text says what to change.
    Unfit(String),
}

/// The server gives these answers before it executes anything. Our scripts check before they write, and one that has written for one
/// shard answers what it finds of the next, so they have changed nothing even where the answer comes from within one.
const NOT_EXECUTED: &[&str] = &[
    "ASK",
    "BUSY",
    "CLUSTERDOWN",
    "CROSSSLOT",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "MOVED",
    "NOAUTH",
    "NOPERM",
    "NOREPLICAS",
    "NOSCRIPT",
    "READONLY",
    "TRYAGAIN",
    "WRONGTYPE",
];

impl Failure {
    /// An error of making a connection.
    pub(super) fn connecting(error: RedisError) -> Failure {
        if let Some(reason) = refused_tls(&error) {
            return Failure::Unfit(format!("TLS with the server is not accepted: {reason}"));
        }
        match error.kind() {
            ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => Failure::Unfit(error.to_string()),
            _ => Failure::NotSent(error.to_string()),
        }
    }

    /// The same, of the server at that address.
    #[must_use]
    pub(super) fn at(self, address: &str) -> Failure {
        match self {
            Failure::NotSent(text) => Failure::NotSent(format!("{address}: {text}")),
            Failure::Unknown(text) => Failure::Unknown(format!("{address}: {text}")),
            Failure::Unfit(text) => Failure::Unfit(format!("{address}: {text}")),
            Failure::Refused(error) => Failure::Refused(error),
        }
    }

    /// The failure in words, for a person.
    pub(super) fn text(&self) -> String {
        match self {
            Failure::NotSent(text) | Failure::Unknown(text) | Failure::Unfit(text) => text.clone(),
            Failure::Refused(error) => described(error).to_string(),
        }
    }

    pub(super) fn unexpected(answer: &impl std::fmt::Debug) -> Failure {
        let mut text = format!("{answer:?}");
        text.truncate(text.floor_char_boundary(200));
        Failure::Unknown(format!("unexpected answer {text}"))
    }

    /// The meaning of the failure for a call that may be repeated.
    pub(super) fn into_store_error(self) -> StoreError {
        match self {
            Failure::NotSent(text) | Failure::Unfit(text) => StoreError::NotApplied(text.into()),
            Failure::Unknown(text) => StoreError::Unavailable(text.into()),
            Failure::Refused(error) if error.code() == "WRONGTYPE" => StoreError::Rejected(described(&error)),
            Failure::Refused(error) if error.code() == "OOM" => StoreError::Full(described(&error)),
            Failure::Refused(error) if NOT_EXECUTED.contains(&error.code()) => {
                StoreError::NotApplied(described(&error))
            }
            Failure::Refused(error) => StoreError::Unavailable(described(&error)),
        }
    }

    /// As [`into_store_error`](Self::into_store_error), where a person is about to look at the configuration.
    pub(super) fn into_open_error(self) -> StoreError {
        match self {
            Failure::Unfit(text) => StoreError::Open(text, None),
            Failure::Refused(error)
                if matches!(error.code(), "ERR" | "NOPERM" | "NOAUTH" | "WRONGPASS" | "WRONGTYPE") =>
            {
                StoreError::Open(
                    "the server does not let this user use the store's keys".to_owned(),
                    Some(described(&error)),
                )
            }
            other => other.into_store_error(),
        }
    }
}

/// The reason why either side refused an encrypted connection: a certificate that nobody vouches for, or no TLS at all.
fn refused_tls(error: &RedisError) -> Option<&rustls::Error> {
    let source = error.source()?;
    // The client keeps it behind a pointer, and gives that pointer as the source.
    let behind = || source.downcast_ref::<Arc<dyn Error + Send + Sync>>()?.downcast_ref::<io::Error>();
    source.downcast_ref().or_else(behind)?.get_ref()?.downcast_ref()
}

fn described(error: &ServerError) -> BoxError {
    format!("{} {}", error.code(), error.details().unwrap_or_default()).trim_end().into()
}
