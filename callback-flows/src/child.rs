//! Flows that a flow begins, and waits for.

use std::future::{Future, poll_fn};
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::engine::Ticket;
use crate::flow::Flow;
use crate::hash::hash_of;
use crate::journal::{ChildOutcome, Detail, Event};
use crate::step::with_causes;

/// A flow that another one has begun: [`Flow::spawn`].
///
/// It has a journal of its own, and lives on whatever host its ID belongs to. It is going whether or not anybody holds this handle,
/// and keeps its end until its parent has been told. If its parent is cancelled, it is cancelled.
#[derive(Debug)]
pub struct Child {
    ticket: Ticket,
    outcome: Option<ChildOutcome>,
}

/// The reason why there is no result of a child. This is recorded: a replay sees the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChildError {
    /// The child has failed with this error.
    #[error("{0}")]
    Failed(Arc<str>),
    /// The child was cancelled.
    #[error("the child was cancelled")]
    Cancelled,
    /// A flow of this name and ID is there already, and was begun with another input. Take another ID.
    #[error("a flow of this ID was begun with another input")]
    Conflict,
    /// The host of the parent knew no flow of this name when the child was to be begun.
    #[error("no flow `{0}` is registered")]
    UnknownFlow(Arc<str>),
    /// The child could not be begun, for this reason: its ID or its input is none.
    #[error("the child was not begun: {0}")]
    Refused(Arc<str>),
    /// The result of the child or its input has so many bytes, and no more than 192 KiB can be sent. A result is there all the same:
    /// [`Flows::result`](crate::Flows::result).
    #[error("the child's input or result has {0} bytes, which is too large to be sent")]
    TooLarge(u64),
    /// The child ended so long ago that its result is gone.
    #[error("the child ended so long ago that its result is gone")]
    Purged,
    /// The result is not of the type that the code asks for.
    #[error("the child's result is of another type: {0}")]
    Decode(Arc<str>),
}

impl Flow {
    /// Begins the flow `name` under `id` as a child of this one, or attaches to the one that is there, if that was begun with the same
    /// input. It begins with the newest version that this host has.
    ///
    /// Nothing has to be awaited: the child is begun as soon as it is durable that it is to be, whatever host it belongs to, and
    /// whatever becomes of the handle. Within a [`branch`](Self::branch), one handle of a name and ID can be held at a time.
    ///
    /// ```
    /// # use callback_flows::{Flow, FlowResult};
    /// async fn trip(flow: Flow, id: String) -> FlowResult<()> {
    ///     let mut hotel = flow.spawn("hotel", &id, &3);
    ///     let mut flight = flow.spawn("flight", &id, "LIS");
    ///     let (hotel, flight) = tokio::join!(hotel.result::<String>(), flight.result::<String>());
    ///     flow.step("tell").run(|_| std::future::ready(tell(&hotel, &flight))).await?;
    ///     Ok(())
    /// }
    /// # fn tell<T>(_: &T, _: &T) -> Result<(), std::io::Error> { Ok(()) }
    /// ```
    pub fn spawn(&self, name: &str, id: &str, input: &(impl Serialize + ?Sized)) -> Child {
        let input = serde_json::to_vec(input).map(Bytes::from);
        let input = input.map_err(|error| Arc::from(format!("its input cannot be JSON: {}", with_causes(&error))));
        let detail = input.as_ref().map_or(Detail::None, |input| Detail::Input(hash_of(input)));
        Child { ticket: self.shared().spawn(self.scope(), (name, id), input, detail), outcome: None }
    }
}

impl Child {
    /// Waits for its end. A wait that is dropped loses nothing, and once it is there it is there again each time.
    ///
    /// # Errors
    /// [`ChildError`]: it has failed, was cancelled, or could not be begun.
    #[must_use = "nothing is waited for until it is awaited"]
    pub fn result<T: DeserializeOwned>(&mut self) -> impl Future<Output = Result<T, ChildError>> + Send {
        let Child { ticket, outcome } = self;
        let wait = Wait(ticket);
        async move {
            if outcome.is_none() {
                let ended = poll_fn(|task| wait.0.poll(task)).await;
                let Event::ChildEnded { outcome: ended, .. } = ended.event else {
                    unreachable!("a child is given its end alone");
                };
                *outcome = Some(ended);
            }
            drop(wait);
            let error = match outcome.clone().expect("it has been set") {
                ChildOutcome::Done(value) => {
                    return serde_json::from_slice(&value)
                        .map_err(|error| ChildError::Decode(error.to_string().into()));
                }
                ChildOutcome::Failed(error) => ChildError::Failed(error),
                ChildOutcome::Cancelled => ChildError::Cancelled,
                ChildOutcome::Purged => ChildError::Purged,
                ChildOutcome::TooLarge(bytes) => ChildError::TooLarge(bytes),
                ChildOutcome::Conflict => ChildError::Conflict,
                ChildOutcome::Unknown(name) => ChildError::UnknownFlow(name),
                ChildOutcome::Refused(reason) => ChildError::Refused(reason),
            };
            Err(error)
        }
    }

    /// Names the place in a script that waits for it, for the flow's status.
    #[cfg(feature = "rhai")]
    pub(crate) fn show_at(&self, place: Arc<str>) {
        self.ticket.show_at(place);
    }

    /// The full name of the child among the operations of its parent, as a [status](crate::Waiting) shows it: `child:name[id]#0`.
    #[must_use]
    pub fn operation(&self) -> &str {
        self.ticket.key()
    }
}

/// A wait for a child.
struct Wait<'a>(&'a Ticket);

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.0.unregister();
    }
}
