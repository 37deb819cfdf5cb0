//! The end of a turn, as data: what is left of its handler, the answer to its caller, and the refusal of those that never had a turn.

use std::time::Duration;

use crate::commit::gate::Ticket;
use crate::connection::Closed;
use crate::error::{ContextError, Outcome, RequestError};
use crate::instance::recorded::Recorded;
use crate::quiet::Quiet;
use crate::store::StoreError;
use crate::sync::Arc;

/// An instance, if there is one in memory.
pub(crate) type State<S> = Quiet<Box<S>>;

/// A reply on its way out, and what it still waits for.
#[derive(Debug)]
pub(crate) struct Answer<R, E> {
    pub(crate) result: Outcome<R, E>,
    /// The last of the commits it must not outrun.
    pub(crate) behind: Option<Ticket>,
    /// The first commit of the turn before its end: of a failure behind that, a part has happened. [`NO_COMMIT`] if there was
    /// none.
    pub(crate) interim: u64,
}

// Moved with every request: five words, of which the reply has two.
const _: () = assert!(size_of::<Answer<u64, ContextError>>() <= 40);

/// A number that no commit has.
pub(crate) const NO_COMMIT: u64 = u64::MAX;

impl<R, E> Answer<R, E> {
    /// The answer of a turn that waits for nothing.
    #[inline]
    pub(crate) fn at_once(result: Outcome<R, E>) -> Answer<R, E> {
        Answer { result, behind: None, interim: NO_COMMIT }
    }

    /// Waits for the gate; a failed commit takes the reply's place, whatever the reply was.
    pub(crate) async fn release(self) -> Outcome<R, E> {
        let Answer { result, behind, interim } = self;
        let Some(ticket) = behind else { return result };
        let result = Quiet::new(result);
        if let Err((failed, failure)) = ticket.wait_for_which().await {
            let error = RequestError::from(ContextError::from(failure));
            return Err(Box::new(if interim < failed { error.in_doubt() } else { error }));
        }
        result.into_inner().expect("the reply is there until it is released")
    }
}

/// The end of a turn.
pub(crate) enum Ending<S, R, E> {
    /// The handler has returned.
    Returned { state: State<S>, recorded: Recorded, result: Outcome<R, E> },
    /// The handler is gone, and the instance with it.
    Broken {
        error: RequestError<E>,
        /// The reason for which the incarnation ends.
        reason: Closed,
    },
}

/// The reason why a waiting message never had its turn.
#[derive(Debug, Clone)]
pub(crate) enum Refusal {
    TimedOut {
        after: Duration,
        waited_for: String,
    },
    /// `on_start` failed for the message before it.
    NotStarted(String),
    /// The same, because of the store.
    Store(Arc<StoreError>),
    Fenced,
    LeaseLost,
    Stopped,
}

impl<E> From<Refusal> for RequestError<E> {
    fn from(refusal: Refusal) -> RequestError<E> {
        match refusal {
            Refusal::TimedOut { after, waited_for } => RequestError::TimedOut { after, waited_for },
            Refusal::NotStarted(reason) => RequestError::Rejected(format!("the instance could not start: {reason}")),
            Refusal::Store(error) => RequestError::Store(error),
            Refusal::Fenced => RequestError::Fenced,
            Refusal::LeaseLost => RequestError::LeaseLost,
            Refusal::Stopped => RequestError::Draining,
        }
    }
}
