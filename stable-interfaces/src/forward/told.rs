//! An error as another host tells it: the variant that it is, its predicates, and its words with those of all its causes.
//!
//! A variant that this release does not know keeps its words, and whether it may have happened.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{ContextError, JsonError, RequestError};
use crate::id::InvalidId;
use crate::store::{BoxError, DamageReason, Damaged, Epoch, Lane, ShardId, StoreError};
use crate::sync::Arc;
use crate::transport::MAX_MESSAGE_BYTES;

/// The most bytes of words that are told of an error which cannot be told as it is.
const MAX_WORDS: usize = 16 * 1024;

/// An error that happened on another host, as its words and those of its causes.
///
/// It is what is left of an error that cannot be written and read again as what it is: of a handler's, with
/// [`InterfaceBuilder::forward_with_text_errors`](crate::InterfaceBuilder::forward_with_text_errors), and of what a store's error has as its
/// cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteError {
    text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cause: Option<Box<RemoteError>>,
}

impl RemoteError {
    /// The most causes that cross, one of the other.
    const MAX_CAUSES: usize = 32;

    /// The words of an error and of its causes.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> RemoteError {
        fn cut(error: &dyn Error, left: usize) -> RemoteError {
            let cause = error.source().filter(|_| left > 0).map(|cause| Box::new(cut(cause, left - 1)));
            RemoteError { text: error.to_string(), cause }
        }
        cut(error, RemoteError::MAX_CAUSES)
    }
}

/// The words of an error as far as they fit beside others.
pub(super) fn first_words(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_WORDS)]
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for RemoteError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn Error + 'static))
    }
}

/// An error of the library on its way to another host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// A [`Variant`], if this release knows it.
    error: serde_json::Value,
    says: RemoteError,
    may_have_happened: bool,
}

/// The variants of [`RequestError`], but for a handler's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Variant {
    NotOwner { holder: String },
    Unreachable { host: String },
    Overloaded { what: String },
    TimedOut { after: Duration, waited_for: String },
    Panicked { text: String },
    Cycle { chain: String },
    Fenced,
    LeaseLost,
    Draining,
    Replaced,
    StoreLost,
    Closed,
    Rejected { reason: String },
    Unhandled { what: String },
    InvalidId { what: String, text: String, reason: Reason },
    NotStarted,
    NoStore,
    TooLarge { what: String },
    KeyReused { key: String },
    Json { what: Option<String>, error: String },
    Store { error: Stored },
    Unknown { cause: Box<Told> },
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reason {
    Empty,
    TooLong { bytes: usize, max: usize },
    Nul,
    Characters,
}

/// The variants of [`StoreError`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stored {
    Fenced { shard: u32, held: u64, newest: u64 },
    Replaced,
    Stale { lane: u16, seq: u64, newest: u64 },
    Unavailable(RemoteError),
    NotApplied(RemoteError),
    Rejected(RemoteError),
    Full(RemoteError),
    Stopped(RemoteError),
    Lost(RemoteError),
    Damaged { shard: u32, place: String, undecodable: Option<String>, newer: u32 },
    Open(String, Option<RemoteError>),
}

impl Told {
    /// Writes it, with no more bytes than a message may have: of one that has more, the first words, and whether it may have happened.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let write = |told: &Told| serde_json::to_vec(told).expect("texts and numbers can be written as JSON");
        let whole = write(self);
        if whole.len() <= MAX_MESSAGE_BYTES {
            return whole;
        }
        let text = format!("{} .. (an error of {} bytes)", first_words(&self.says.text), whole.len());
        let says = RemoteError { text, cause: None };
        write(&Told { error: serde_json::Value::Null, says, may_have_happened: self.may_have_happened })
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Told> {
        serde_json::from_slice(bytes).ok()
    }

    /// The answer that tells of an error that is not a handler's own.
    pub(crate) fn of(error: &RequestError<std::convert::Infallible>) -> Told {
        Told {
            error: serde_json::to_value(Variant::of(error)).expect("texts and numbers can be written as JSON"),
            says: RemoteError::of(error),
            may_have_happened: error.may_have_happened(),
        }
    }

    /// The error that was told.
    pub(crate) fn into_error<E>(self) -> RequestError<E> {
        match serde_json::from_value::<Variant>(self.error) {
            Ok(variant) => variant.into_error(),
            Err(_) if self.may_have_happened => RequestError::unknown(RequestError::Rejected(self.says.text)),
            Err(_) => RequestError::Rejected(self.says.text),
        }
    }
}

impl Variant {
    fn of(error: &RequestError<std::convert::Infallible>) -> Variant {
        match error {
            RequestError::Handler(never, _) => match *never {},
            RequestError::NotOwner { holder } => Variant::NotOwner { holder: holder.to_string() },
            RequestError::Unreachable { host } => Variant::Unreachable { host: host.to_string() },
            RequestError::Overloaded(what) => Variant::Overloaded { what: what.clone().into_owned() },
            RequestError::TimedOut { after, waited_for } => {
                Variant::TimedOut { after: *after, waited_for: waited_for.clone() }
            }
            RequestError::Panicked(text) => Variant::Panicked { text: text.clone() },
            RequestError::Cycle(chain) => Variant::Cycle { chain: chain.clone() },
            RequestError::Fenced => Variant::Fenced,
            RequestError::LeaseLost => Variant::LeaseLost,
            RequestError::Draining => Variant::Draining,
            RequestError::Replaced => Variant::Replaced,
            RequestError::StoreLost => Variant::StoreLost,
            RequestError::Closed => Variant::Closed,
            RequestError::Rejected(reason) => Variant::Rejected { reason: reason.clone() },
            RequestError::Unhandled(what) => Variant::Unhandled { what: what.clone().into_owned() },
            RequestError::InvalidId { what, text, reason } => {
                Variant::InvalidId { what: what.clone().into_owned(), text: text.to_string(), reason: (*reason).into() }
            }
            RequestError::NotStarted => Variant::NotStarted,
            RequestError::NoStore => Variant::NoStore,
            RequestError::TooLarge(what) => Variant::TooLarge { what: what.clone() },
            RequestError::KeyReused { key } => Variant::KeyReused { key: key.to_string() },
            RequestError::Json(error) => {
                let (what, error) = error.parts();
                Variant::Json { what: what.map(str::to_owned), error }
            }
            RequestError::Store(error) => Variant::Store { error: Stored::of(error) },
            RequestError::Unknown(cause) => Variant::Unknown { cause: Box::new(Told::of(cause)) },
        }
    }

    fn into_error<E>(self) -> RequestError<E> {
        match self {
            Variant::NotOwner { holder } => RequestError::NotOwner { holder: holder.into() },
            Variant::Unreachable { host } => RequestError::Unreachable { host: host.into() },
            Variant::Overloaded { what } => RequestError::Overloaded(what.into()),
            Variant::TimedOut { after, waited_for } => RequestError::TimedOut { after, waited_for },
            Variant::Panicked { text } => RequestError::Panicked(text),
            Variant::Cycle { chain } => RequestError::Cycle(chain),
            Variant::Fenced => RequestError::Fenced,
            Variant::LeaseLost => RequestError::LeaseLost,
            Variant::Draining => RequestError::Draining,
            Variant::Replaced => RequestError::Replaced,
            Variant::StoreLost => RequestError::StoreLost,
            Variant::Closed => RequestError::Closed,
            Variant::Rejected { reason } => RequestError::Rejected(reason),
            Variant::Unhandled { what } => RequestError::Unhandled(what.into()),
            Variant::InvalidId { what, text, reason } => {
                RequestError::InvalidId { what: what.into(), text: text.into(), reason: reason.into() }
            }
            Variant::NotStarted => RequestError::NotStarted,
            Variant::NoStore => RequestError::NoStore,
            Variant::TooLarge { what } => RequestError::TooLarge(what),
            Variant::KeyReused { key } => RequestError::KeyReused { key: key.into() },
            Variant::Json { what, error } => RequestError::Json(Arc::new(JsonError::told(what, &error))),
            Variant::Store { error } => RequestError::Store(Arc::new(error.into_error())),
            Variant::Unknown { cause } => RequestError::unknown(cause.into_error()),
        }
    }
}

impl From<InvalidId> for Reason {
    fn from(reason: InvalidId) -> Reason {
        match reason {
            InvalidId::Empty => Reason::Empty,
            InvalidId::TooLong { bytes, max } => Reason::TooLong { bytes, max },
            InvalidId::Nul => Reason::Nul,
            InvalidId::Characters => Reason::Characters,
        }
    }
}

impl From<Reason> for InvalidId {
    fn from(reason: Reason) -> InvalidId {
        match reason {
            Reason::Empty => InvalidId::Empty,
            Reason::TooLong { bytes, max } => InvalidId::TooLong { bytes, max },
            Reason::Nul => InvalidId::Nul,
            Reason::Characters => InvalidId::Characters,
        }
    }
}

impl Stored {
    fn of(error: &StoreError) -> Stored {
        let cause = |cause: &BoxError| RemoteError::of(&**cause);
        match error {
            StoreError::Fenced { shard, held, newest } => {
                Stored::Fenced { shard: shard.0, held: held.0, newest: newest.0 }
            }
            StoreError::Replaced => Stored::Replaced,
            StoreError::Stale { lane, seq, newest } => Stored::Stale { lane: lane.0, seq: *seq, newest: *newest },
            StoreError::Unavailable(error) => Stored::Unavailable(cause(error)),
            StoreError::NotApplied(error) => Stored::NotApplied(cause(error)),
            StoreError::Rejected(error) => Stored::Rejected(cause(error)),
            StoreError::Full(error) => Stored::Full(cause(error)),
            StoreError::Stopped(error) => Stored::Stopped(cause(error)),
            StoreError::Lost(error) => Stored::Lost(cause(error)),
            StoreError::Damaged(Damaged { shard, place, reason }) => {
                let (undecodable, newer) = match reason {
                    DamageReason::Undecodable(where_it_shows) => (Some(where_it_shows.clone()), 0),
                    DamageReason::NewerVersion(version) => (None, *version),
                };
                Stored::Damaged { shard: shard.0, place: place.clone(), undecodable, newer }
            }
            StoreError::Open(what, error) => Stored::Open(what.clone(), error.as_ref().map(cause)),
            // Of what a host is told when it starts, and no request.
            other => Stored::Open(other.to_string(), None),
        }
    }

    fn into_error(self) -> StoreError {
        match self {
            Stored::Fenced { shard, held, newest } => {
                StoreError::Fenced { shard: ShardId(shard), held: Epoch(held), newest: Epoch(newest) }
            }
            Stored::Replaced => StoreError::Replaced,
            Stored::Stale { lane, seq, newest } => StoreError::Stale { lane: Lane(lane), seq, newest },
            Stored::Unavailable(cause) => StoreError::Unavailable(cause.into()),
            Stored::NotApplied(cause) => StoreError::NotApplied(cause.into()),
            Stored::Rejected(cause) => StoreError::Rejected(cause.into()),
            Stored::Full(cause) => StoreError::Full(cause.into()),
            Stored::Stopped(cause) => StoreError::Stopped(cause.into()),
            Stored::Lost(cause) => StoreError::Lost(cause.into()),
            Stored::Damaged { shard, place, undecodable, newer } => {
                let reason = undecodable.map_or(DamageReason::NewerVersion(newer), DamageReason::Undecodable);
                StoreError::Damaged(Damaged { shard: ShardId(shard), place, reason })
            }
            Stored::Open(what, cause) => StoreError::Open(what, cause.map(BoxError::from)),
        }
    }
}

/// [`ContextError`] as it crosses, where it is an interface's own error.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum InContext {
    InvalidId { what: Cow<'static, str>, text: String, reason: Reason },
    TooLarge { what: String },
    Json { what: Option<String>, error: String },
    NoStore,
    Unhandled { what: Cow<'static, str> },
    Fenced,
    Store { error: Stored },
    Unknown,
    Closed,
    NotHere { what: Cow<'static, str> },
}

impl Serialize for ContextError {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let crossing = match self.clone() {
            ContextError::InvalidId { what, text, reason } => {
                InContext::InvalidId { what, text: text.to_string(), reason: reason.into() }
            }
            ContextError::TooLarge(what) => InContext::TooLarge { what },
            ContextError::Json(error) => {
                let (what, error) = error.parts();
                InContext::Json { what: what.map(str::to_owned), error }
            }
            ContextError::NoStore => InContext::NoStore,
            ContextError::Unhandled(what) => InContext::Unhandled { what },
            ContextError::Fenced => InContext::Fenced,
            ContextError::Store(error) => InContext::Store { error: Stored::of(&error) },
            ContextError::Unknown => InContext::Unknown,
            ContextError::Closed => InContext::Closed,
            ContextError::NotHere(what) => InContext::NotHere { what },
        };
        crossing.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ContextError {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ContextError, D::Error> {
        Ok(match InContext::deserialize(deserializer)? {
            InContext::InvalidId { what, text, reason } => {
                ContextError::InvalidId { what, text: text.into(), reason: reason.into() }
            }
            InContext::TooLarge { what } => ContextError::TooLarge(what),
            InContext::Json { what, error } => ContextError::Json(Arc::new(JsonError::told(what, &error))),
            InContext::NoStore => ContextError::NoStore,
            InContext::Unhandled { what } => ContextError::Unhandled(what),
            InContext::Fenced => ContextError::Fenced,
            InContext::Store { error } => ContextError::Store(Arc::new(error.into_error())),
            InContext::Unknown => ContextError::Unknown,
            InContext::Closed => ContextError::Closed,
            InContext::NotHere { what } => ContextError::NotHere(what),
        })
    }
}
