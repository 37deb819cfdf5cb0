//! Errors, sorted by what the caller does next.

use std::borrow::Cow;
use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::id::{InvalidId, MAX_VALUE_BYTES};
use crate::quiet::Quiet;
use crate::store::{BoxError, StoreError};
use crate::sync::Arc;

/// The reason why a request to an instance, or any other operation on it from outside, has no result.
///
/// `E` is the interface's own error. Each variant says whether the request may have happened;
/// [`may_have_happened`](Self::may_have_happened) and [`is_retryable`](Self::is_retryable) sum it up.
///
/// ```
/// use stable_interfaces::{ContextError, RequestError};
///
/// /// The status of an HTTP answer.
/// fn status(error: &RequestError<ContextError>) -> u16 {
///     match error {
///         RequestError::NotOwner { .. } => 307,               // To the host it names.
///         RequestError::InvalidId { .. } => 400,
///         error if error.is_retryable() => 503,               // Nothing happened: the client may repeat it.
///         error if error.may_have_happened() => 504,          // Unknown: to be asked about.
///         _ => 500,
///     }
/// }
/// assert_eq!(status(&RequestError::Draining), 503);
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError<E> {
    /// The handler answered with its own error. An ordinary answer: nothing since the handler's last
    /// [`Context::commit`](crate::Context::commit) happened. What it had committed before that did, and then
    /// [`may_have_happened`](Self::may_have_happened) is true, by the note beside the error.
    #[error("{0}")]
    Handler(E, Interim),
    /// Another host owns the instance's shard. Nothing happened here; ask that host.
    #[error("this host does not own the instance; {holder} does")]
    NotOwner {
        /// The host to ask.
        holder: Arc<str>,
    },
    /// The host that owns the instance's shard could not be reached for a lease, or for as long as the request may wait for its turn if that is
    /// shorter, or for what its interface was [registered](crate::InterfaceBuilder::reach_timeout) with. It was never sent, so nothing happened;
    /// try again later.
    #[error("{host}, which owns the instance, cannot be reached")]
    Unreachable {
        /// The host that was to be asked.
        host: Arc<str>,
    },
    /// Too much is waiting already. Nothing happened; try again later, more slowly.
    #[error("overloaded: {0} already at its limit")]
    Overloaded(Cow<'static, str>),
    /// The request was not done in time, and none of its effects happened: its turn came too late, so it has not begun and never will, or
    /// its handler took too long and its instance has been reset. The text says whom it waited for.
    #[error("timed out after {after:?} waiting for {waited_for}")]
    TimedOut {
        /// The time that the request was given.
        after: Duration,
        /// The instance that the request waited for.
        waited_for: String,
    },
    /// The handler panicked; none of its effects happened and the instance has been reset.
    #[error("the handler panicked: {0}")]
    Panicked(String),
    /// The request would have waited for itself. Nothing happened. The text names each instance of the chain.
    #[error("call cycle: {0}")]
    Cycle(String),
    /// Another process took over the shard. None of the effects happened; ask the new owner.
    #[error("another process has taken over the instance's shard")]
    Fenced,
    /// The host that was asked has not reached its store for so long that its lease has run out: it may not act, and does not know whether
    /// another process does. None of the effects happened; try again later, here or at another host.
    #[error("this host's lease has run out, because it has not reached its store")]
    LeaseLost,
    /// The host is shutting down and takes no new work. Nothing happened; ask the next owner.
    #[error("this host is draining")]
    Draining,
    /// Another process was started under this host's name, and this host has stopped for good. Nothing happened; ask again where
    /// that process is reached, and let this one [end](crate::Host::run_until).
    #[error("this host has stopped: another process was started under its name")]
    Replaced,
    /// The store has lost what it had acknowledged, and this host has stopped for good. Nothing happened; ask again once the
    /// process has been [started anew](crate::Host::run_until).
    #[error("this host has stopped: its store has lost what it had acknowledged")]
    StoreLost,
    /// The connection or instance task this was for has ended. Nothing happened.
    #[error("closed")]
    Closed,
    /// The instance refused. Nothing happened. The text is its reason.
    #[error("rejected: {0}")]
    Rejected(String),
    /// The interface does not handle this kind of thing. Nothing happened.
    #[error("the interface does not handle {0}")]
    Unhandled(Cow<'static, str>),
    /// The text given as an ID cannot be one. Nothing happened.
    #[error("invalid {what} ID {text:?}: {reason}")]
    InvalidId {
        /// The kind of ID: `"instance"`, `"alarm"`, `"message"`, ..
        what: Cow<'static, str>,
        /// The text, or its beginning.
        text: Arc<str>,
        /// The fault in it.
        reason: InvalidId,
    },
    /// The host has not been started. Nothing happened.
    #[error("the host has not been started")]
    NotStarted,
    /// The host runs without a store, so nothing durable can be done. Nothing happened.
    #[error("this host has no store")]
    NoStore,
    /// A limit was exceeded (size of a value, number of effects). Nothing happened.
    #[error("too large: {0}")]
    TooLarge(String),
    /// The key of [`request_once`](crate::Interface::request_once) is that of another message. Nothing happened. Take another key for another
    /// message.
    #[error("the request key {key:?} has been used for another message")]
    KeyReused {
        /// The key.
        key: Arc<str>,
    },
    /// The value could not be turned to or from JSON, or the form that a [`Codec`](crate::transport::Codec) has for it. Nothing happened.
    #[error(transparent)]
    Json(Arc<JsonError>),
    /// The store did not do it: none of the effects happened. Also where it could not be read, and the handler passed that on with
    /// `?` in an error of its own before anything of it was durable.
    #[error("the store failed")]
    Store(#[source] Arc<StoreError>),
    /// The outcome is not known, or not all of one kind: it may have happened, in whole or in the part up to a
    /// [`Context::commit`](crate::Context::commit) of its handler, or may still happen. Ask, or repeat it under the same
    /// idempotency key, as [`request_once`](crate::Interface::request_once) does by itself. The cause is what would have been answered if it were certain that nothing happened. Also told to a
    /// handler that could wait no longer for another instance's handler, which runs on.
    #[error("outcome unknown: it may have happened")]
    Unknown(#[source] Box<RequestError<Infallible>>),
}

/// A note beside the error of a handler: whether a part of its effects was durable already, or may have been, when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Interim(bool);

impl Interim {
    /// Tells whether it was, or may have been.
    pub(crate) fn is_set(self) -> bool {
        self.0
    }
}

/// The outcome of a request, inside the library: it is moved from hand to hand, so the rare error is kept small.
pub(crate) type Outcome<R, E> = Result<R, Box<RequestError<E>>>;

impl<E> RequestError<E> {
    /// Tells whether the same request may succeed later, and repeating it cannot do it twice.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            RequestError::NotOwner { .. }
            | RequestError::Unreachable { .. }
            | RequestError::Overloaded(_)
            | RequestError::TimedOut { .. }
            | RequestError::Fenced
            | RequestError::LeaseLost
            | RequestError::Draining
            | RequestError::Replaced
            | RequestError::StoreLost
            | RequestError::NotStarted => true,
            RequestError::Store(error) => !matches!(**error, StoreError::Rejected(_) | StoreError::Damaged(_)),
            _ => false,
        }
    }

    /// Tells whether it may have taken effect although this error came back.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        matches!(self, RequestError::Unknown(_) | RequestError::Handler(_, Interim(true)))
    }

    /// The error of a handler that has made nothing durable.
    pub(crate) fn handler(error: E) -> RequestError<E> {
        RequestError::Handler(error, Interim(false))
    }

    /// An outcome that is not known, for want of the answer that would have been `cause`.
    pub(crate) fn unknown(cause: RequestError<Infallible>) -> RequestError<E> {
        RequestError::Unknown(Box::new(cause))
    }

    /// The same, of a request of which a part is durable or may be: no longer definite.
    pub(crate) fn in_doubt(self) -> RequestError<E> {
        match self.split() {
            Ok((error, _)) => RequestError::Handler(error, Interim(true)),
            Err(RequestError::Unknown(cause)) => RequestError::Unknown(cause),
            Err(cause) => RequestError::unknown(cause),
        }
    }

    /// The error of a request that has failed for no error of a handler.
    pub(crate) fn definite(cause: RequestError<Infallible>) -> RequestError<E> {
        match cause.split() {
            Ok((never, _)) => match never {},
            Err(error) => error,
        }
    }

    /// Tells the application's own error from all others.
    pub(crate) fn split<F>(self) -> Result<(E, Interim), RequestError<F>> {
        Err(match self {
            RequestError::Handler(error, interim) => return Ok((error, interim)),
            RequestError::NotOwner { holder } => RequestError::NotOwner { holder },
            RequestError::Unreachable { host } => RequestError::Unreachable { host },
            RequestError::Overloaded(what) => RequestError::Overloaded(what),
            RequestError::TimedOut { after, waited_for } => RequestError::TimedOut { after, waited_for },
            RequestError::Panicked(text) => RequestError::Panicked(text),
            RequestError::Cycle(chain) => RequestError::Cycle(chain),
            RequestError::Fenced => RequestError::Fenced,
            RequestError::LeaseLost => RequestError::LeaseLost,
            RequestError::Draining => RequestError::Draining,
            RequestError::Replaced => RequestError::Replaced,
            RequestError::StoreLost => RequestError::StoreLost,
            RequestError::Closed => RequestError::Closed,
            RequestError::Rejected(reason) => RequestError::Rejected(reason),
            RequestError::Unhandled(what) => RequestError::Unhandled(what),
            RequestError::InvalidId { what, text, reason } => RequestError::InvalidId { what, text, reason },
            RequestError::NotStarted => RequestError::NotStarted,
            RequestError::NoStore => RequestError::NoStore,
            RequestError::TooLarge(what) => RequestError::TooLarge(what),
            RequestError::KeyReused { key } => RequestError::KeyReused { key },
            RequestError::Json(error) => RequestError::Json(error),
            RequestError::Store(error) => RequestError::Store(error),
            RequestError::Unknown(cause) => RequestError::Unknown(cause),
        })
    }
}

impl<E: Into<BoxError>> RequestError<E> {
    /// The error with all its causes in one line, `a: b: c`: what [`Display`](fmt::Display) says of it, and what each
    /// [`source`](Error::source) does. Those of a handler's own error too, which is why it is taken: `E` need not be an
    /// [`Error`] itself, only one when boxed, as an `anyhow::Error` is.
    #[must_use]
    pub fn report(self) -> String {
        match self.split::<Infallible>() {
            Ok((error, _)) => {
                // Dropped quietly also if it panics when it is shown.
                let error = Quiet::new(error.into());
                error.as_ref().map(|error| WithCauses(&**error).to_string()).unwrap_or_default()
            }
            Err(error) => WithCauses(&error).to_string(),
        }
    }
}

/// The reason why a value could not be turned to or from JSON, or the form that a [`Codec`](crate::transport::Codec) has for it, with the name of the value:
/// where it is kept, and the type it was read as. The words of `serde_json`, or of the `Codec`, are part of what is shown.
#[derive(Debug)]
pub struct JsonError {
    what: Option<String>,
    error: serde_json::Error,
}

impl JsonError {
    /// One that another host has told.
    pub(crate) fn told(what: Option<String>, error: &str) -> JsonError {
        JsonError { what, error: serde::de::Error::custom(error) }
    }

    /// The name of the value, and the fault in it, as texts.
    pub(crate) fn parts(&self) -> (Option<&str>, String) {
        (self.what.as_deref(), self.error.to_string())
    }
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.what.as_deref().unwrap_or("cannot be converted to or from JSON");
        write!(f, "{what}: {}", self.error)
    }
}

impl Error for JsonError {}

/// The reason why an operation of a [`Context`](crate::Context) failed.
///
/// After [`Store`](Self::Store), [`Fenced`](Self::Fenced) and [`Unknown`](Self::Unknown) of a commit the instance is reset
/// when its handler ends; pass the error on with `?`.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ContextError {
    /// The text given as an ID or key cannot be one. Nothing was recorded.
    #[error("invalid {what} {text:?}: {reason}")]
    InvalidId {
        /// The kind of text it was to be: `"alarm ID"`, `"storage key"`, ..
        what: Cow<'static, str>,
        /// The text, or its beginning.
        text: Arc<str>,
        /// The fault in it.
        reason: InvalidId,
    },
    /// A limit was exceeded. Nothing was recorded.
    #[error("too large: {0}")]
    TooLarge(String),
    /// The value could not be turned to or from JSON, or the form that a [`Codec`](crate::transport::Codec) has for it. Nothing was recorded.
    #[error(transparent)]
    Json(Arc<JsonError>),
    /// The host runs without a store.
    #[error("this host has no store")]
    NoStore,
    /// The interface was registered without what this needs; the text says what.
    #[error("the interface does not handle {0}")]
    Unhandled(Cow<'static, str>),
    /// The shard is not this host's any more: another process took it over, or this host has ended.
    #[error("the instance's shard is not this host's any more")]
    Fenced,
    /// The store did not do it.
    #[error("the store failed")]
    Store(#[source] Arc<StoreError>),
    /// A commit was sent and its outcome is not known.
    #[error("outcome unknown: it may have happened")]
    Unknown,
    /// The connection is closed, or the task belongs to an earlier incarnation.
    #[error("closed")]
    Closed,
    /// An operation that cannot be done here, and never will be; the text says what. Nothing was recorded.
    #[error("not possible here: {0}")]
    NotHere(Cow<'static, str>),
}

impl ContextError {
    /// The store's own answer.
    pub(crate) fn store(error: StoreError) -> ContextError {
        ContextError::Store(Arc::new(error))
    }

    /// `what` has so many bytes, more than a value may have.
    pub(crate) fn too_large(what: impl fmt::Display, bytes: usize) -> ContextError {
        ContextError::TooLarge(format!("{what} has {bytes} bytes, more than {MAX_VALUE_BYTES}"))
    }

    /// `text` cannot be a `what`.
    pub(crate) fn invalid(what: &'static str, text: &str, reason: InvalidId) -> ContextError {
        ContextError::InvalidId { what: what.into(), text: beginning(text), reason }
    }

    /// `what` cannot be read as a `T`.
    pub(crate) fn not_a<T>(what: impl fmt::Display, error: serde_json::Error) -> ContextError {
        let what = format!("{what} is not a `{}`", std::any::type_name::<T>());
        ContextError::Json(Arc::new(JsonError { what: Some(what), error }))
    }

    /// `what` cannot be written, in whatever form it crosses.
    pub(crate) fn not_written(what: impl fmt::Display, error: serde_json::Error) -> ContextError {
        ContextError::Json(Arc::new(JsonError { what: Some(format!("{what} cannot be written")), error }))
    }

    /// `what` cannot be stored as JSON.
    pub(crate) fn not_json(what: impl fmt::Display, error: serde_json::Error) -> ContextError {
        let what = format!("{what} cannot be turned into JSON");
        ContextError::Json(Arc::new(JsonError { what: Some(what), error }))
    }
}

impl From<serde_json::Error> for ContextError {
    fn from(error: serde_json::Error) -> ContextError {
        ContextError::Json(Arc::new(JsonError { what: None, error }))
    }
}

/// As much of a text that cannot be an ID as tells a person which it is.
pub(crate) fn beginning(text: &str) -> Arc<str> {
    const SHOWN: usize = 64;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]).into(),
        None => text.into(),
    }
}

impl<E> From<ContextError> for Box<RequestError<E>> {
    fn from(error: ContextError) -> Box<RequestError<E>> {
        Box::new(error.into())
    }
}

impl<E> From<ContextError> for RequestError<E> {
    fn from(error: ContextError) -> RequestError<E> {
        match error {
            ContextError::InvalidId { what, text, reason } => {
                let what = match what {
                    Cow::Borrowed(what) => Cow::Borrowed(what.strip_suffix(" ID").unwrap_or(what)),
                    Cow::Owned(what) => Cow::Owned(what.strip_suffix(" ID").unwrap_or(&what).to_owned()),
                };
                RequestError::InvalidId { what, text, reason }
            }
            ContextError::TooLarge(what) => RequestError::TooLarge(what),
            ContextError::Json(error) => RequestError::Json(error),
            ContextError::NoStore => RequestError::NoStore,
            ContextError::Unhandled(what) => RequestError::Unhandled(what),
            ContextError::Fenced => RequestError::Fenced,
            ContextError::Store(error) => RequestError::Store(error),
            ContextError::Unknown => {
                let error = StoreError::Unavailable("its answer to a write did not come".into());
                RequestError::unknown(RequestError::Store(Arc::new(error)))
            }
            ContextError::Closed => RequestError::Closed,
            ContextError::NotHere(what) => RequestError::Rejected(format!("not possible here: {what}")),
        }
    }
}

/// An error with its causes, in one line.
pub(crate) struct WithCauses<'a>(pub(crate) &'a dyn Error);

impl fmt::Display for WithCauses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
