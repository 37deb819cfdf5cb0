//! Messages from outside for a flow.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use serde::de::DeserializeOwned;
use stable_interfaces::Timestamp;

use crate::engine::{Item, Ticket};
use crate::journal::{Event, Message};

/// A place for messages from outside, each a `T` as JSON.
///
/// Messages are kept from the moment the flow is durable, before anyone waits for them, and given out in the order in which the flow has
/// taken them, each once: that of their arrival, but for one that another host has stored and whose first turn failed. A wait that is
/// dropped, because it lost a race, eats nothing. Dropped by the flow's running code it is closed, and later messages are refused.
#[derive(Debug)]
pub struct Callback<T> {
    ticket: Ticket,
    of: PhantomData<fn() -> T>,
}

/// A message as it came: [`Callback::next_raw`].
#[derive(Clone, PartialEq, Eq)]
pub struct Received {
    at: Timestamp,
    message: Message,
}

impl std::fmt::Debug for Received {
    /// Shows a message without the values of headers, which may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let headers: Vec<_> = self.headers().map(|(name, _)| name).collect();
        f.debug_struct("Received")
            .field("at", &self.at)
            .field("id", &self.id())
            .field("headers", &headers)
            .field("body", self.body())
            .finish()
    }
}

impl Received {
    /// The moment of the message's arrival.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// The sender's ID for the call; one that was drawn for it, if the sender gave none.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.message.id
    }

    /// The body of the call.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.message.body
    }

    /// The headers of the call that were kept.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.message.headers.iter().map(|(name, value)| (&**name, &**value))
    }
}

/// The reason why a message of a callback could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallbackError {
    /// The body is not what the flow waits for. The call counts as taken.
    #[error("the message {:?} is not what was waited for", received.id())]
    Decode {
        /// The message as it came.
        received: Received,
        /// The reason.
        #[source]
        source: Arc<serde_json::Error>,
    },
}

impl<T> Callback<T> {
    pub(crate) fn new(ticket: Ticket) -> Callback<T> {
        Callback { ticket, of: PhantomData }
    }

    /// The URL at which this callback is to be called: below what [`callbacks`](crate::FlowsBuilder::callbacks) was given, ended by a
    /// token that only this application can make. Whoever has it may send to this callback, and to nothing else.
    ///
    /// It is the same for as long as the key is that signs it. What serves that URL hands its last part and the body of a call to
    /// [`Flows::deliver`](crate::Flows::deliver).
    #[must_use]
    pub fn url(&self) -> String {
        self.ticket.shared().url(self.ticket.key())
    }

    /// The full name of this callback within its flow, which messages for it are addressed to.
    #[must_use]
    pub fn address(&self) -> &str {
        self.ticket.key()
    }

    /// The next message, as it came.
    #[must_use = "nothing is waited for until it is awaited"]
    pub fn next_raw(&mut self) -> impl Future<Output = Received> + Send {
        NextRaw(&self.ticket)
    }

    /// The messages as they come, body and kept headers: a stream without an end. Dropped, it eats nothing.
    #[must_use = "nothing is waited for until it is polled"]
    pub fn raw(&mut self) -> impl Stream<Item = Received> + Send {
        NextRaw(&self.ticket)
    }
}

impl<T: DeserializeOwned> Callback<T> {
    /// The next message.
    ///
    /// # Errors
    /// [`CallbackError::Decode`] if it is not a `T`. The one after it is given out next.
    #[must_use = "nothing is waited for until it is awaited"]
    #[allow(clippy::should_implement_trait, reason = "it is awaited, as that of every asynchronous stream is")]
    pub fn next(&mut self) -> impl Future<Output = Result<T, CallbackError>> + Send {
        let next = NextRaw(&self.ticket);
        async move { decode(next.await) }
    }
}

impl<T: DeserializeOwned> Stream for Callback<T> {
    type Item = Result<T, CallbackError>;

    /// The next message. The stream has no end.
    fn poll_next(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ticket.poll(task).map(|item| Some(decode(received(item))))
    }
}

/// A wait for a message.
pub(crate) struct NextRaw<'a>(pub(crate) &'a Ticket);

impl Future for NextRaw<'_> {
    type Output = Received;

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Received> {
        self.0.poll(task).map(received)
    }
}

impl Stream for NextRaw<'_> {
    type Item = Received;

    fn poll_next(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Received>> {
        self.0.poll(task).map(|item| Some(received(item)))
    }
}

impl Drop for NextRaw<'_> {
    fn drop(&mut self) {
        self.0.unregister();
    }
}

pub(crate) fn received(item: Item) -> Received {
    let Item { at, event, .. } = item;
    let Event::Message { message, .. } = event else {
        unreachable!("a callback is given messages alone");
    };
    Received { at, message }
}

pub(crate) fn decode<T: DeserializeOwned>(received: Received) -> Result<T, CallbackError> {
    serde_json::from_slice(received.body())
        .map_err(|source| CallbackError::Decode { received, source: Arc::new(source) })
}
