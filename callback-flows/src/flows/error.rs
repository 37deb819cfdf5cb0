//! The errors of flows, as an application and its callers have them.

use stable_interfaces::RegisterError;

use super::Refused;
use crate::verify::Unverified;

/// The reason why something asked of flows was not done. Nothing happened, but where that is said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlowsError {
    /// No flow of that name is registered.
    #[error("no flow `{0}` is registered")]
    UnknownFlow(String),
    /// The names, versions or IDs that were given cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The input is not what the flow takes.
    #[error("the input is not what `{flow}` takes")]
    Input {
        /// The name of the flow.
        flow: String,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
    /// The application's own check does not take the input: [`FlowsBuilder::validate`](crate::FlowsBuilder::validate).
    #[error("the input is refused")]
    Refused(#[source] Refused),
    /// Something is too large.
    #[error("{what} has {bytes} bytes, and may have {limit}")]
    TooLarge {
        /// The name of what is too large.
        what: &'static str,
        /// The size of what is too large.
        bytes: usize,
        /// The largest that it may have.
        limit: usize,
    },
    /// A flow of that ID was started with another input.
    #[error("the flow was started with another input")]
    Conflict,
    /// There is no such flow, or the token is not signed by one of the keys.
    #[error("there is no such flow")]
    NotFound,
    /// The flow, or the callback, is over.
    #[error("the flow or its callback is over")]
    Gone,
    /// The flow has more messages that its code has not taken than it may: 10,000. Try again later.
    #[error("too many messages wait for the flow; try again later")]
    TooManyUnread,
    /// A call is not signed as it should be.
    #[error("the call cannot be shown to come from whom it should come from")]
    Unverified(#[source] Unverified),
    /// The body of a call is not what its callback takes.
    #[error("the body is not what `{callback}` takes")]
    Undecodable {
        /// The full name of the callback.
        callback: String,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
    /// A reader of events was too slow for so many.
    #[error("{0} events were missed")]
    Missed(u64),
    /// The host has an interface of this name.
    #[error("flows cannot be registered")]
    Register(#[source] RegisterError),
    /// The flow or the store could not be reached, or its answer is not known. Try again: an ID keeps it from happening twice.
    #[error("the flow cannot be reached; try again")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The rows that are stored of the flow cannot be read.
    #[error("what is stored of the flow cannot be read")]
    Unreadable(#[source] serde_json::Error),
}

impl FlowsError {
    /// Tells whether the same may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, FlowsError::Unavailable(_) | FlowsError::TooManyUnread)
    }
}

pub(crate) fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> FlowsError {
    FlowsError::Unavailable(error.into())
}

pub(super) fn fits(what: &'static str, bytes: usize, limit: usize) -> Result<(), FlowsError> {
    if bytes > limit { Err(FlowsError::TooLarge { what, bytes, limit }) } else { Ok(()) }
}
