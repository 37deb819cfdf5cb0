//! Signals: messages for a flow that are sent by its ID, without a URL.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::callback::{CallbackError, NextRaw, Received, decode, received};
use crate::engine::{Kind, Ticket, signal_key};
use crate::flow::Flow;
use crate::flows::{Call, Delivered, Flows, FlowsError, identity};
use crate::journal::Detail;

/// A place for messages that are sent to a flow by its ID, each a `T` as JSON: [`Flow::signal`], [`Flows::signal`].
///
/// They are kept from the moment the flow is durable, and given out in the order of their arrival, each once, to whoever waits for them
/// under this name: dropped, it leaves those that it has not taken to the next one.
#[derive(Debug)]
pub struct Signal<T> {
    ticket: Ticket,
    of: PhantomData<fn() -> T>,
}

impl<T> Signal<T> {
    /// The next message, as it came.
    #[must_use = "nothing is waited for until it is awaited"]
    pub fn next_raw(&mut self) -> impl Future<Output = Received> + Send {
        NextRaw(&self.ticket)
    }
}

impl<T: DeserializeOwned> Signal<T> {
    /// The next message. Dropped while it waits, it eats nothing.
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

impl<T: DeserializeOwned> Stream for Signal<T> {
    type Item = Result<T, CallbackError>;

    /// The next message. The stream has no end.
    fn poll_next(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ticket.poll(task).map(|item| Some(decode(received(item))))
    }
}

impl Flow {
    /// A signal: a place for messages that are sent by this flow's ID and a name. See [`Signal`].
    #[must_use]
    pub fn signal<T: DeserializeOwned>(&self, name: &str) -> Signal<T> {
        let ticket = self.shared().claim(self.scope(), Kind::Signal, name, None, Detail::None);
        Signal { ticket, of: PhantomData }
    }
}

impl Flows {
    /// Sends a flow a message, for [`Flow::signal`] of this name; `branch/name` if that is asked for in a branch. When this returns, the message is
    /// durable. Sent again it is another one: see [`signal_call`](Self::signal_call).
    ///
    /// # Errors
    /// [`FlowsError::NotFound`] where the flow's owner can be reached, [`FlowsError::Gone`] where it is over, [`FlowsError::TooManyUnread`],
    /// [`FlowsError::TooLarge`], [`FlowsError::Invalid`] for a value that cannot be JSON, [`FlowsError::Unavailable`].
    pub async fn signal(
        &self,
        name: &str,
        id: &str,
        signal: &str,
        value: &(impl Serialize + ?Sized),
    ) -> Result<Delivered, FlowsError> {
        let body = serde_json::to_vec(value).map_err(|error| {
            FlowsError::Invalid(format!("the value of the signal {signal:?} cannot be JSON: {error}"))
        })?;
        self.signal_call(name, id, signal, Call::new(body)).await
    }

    /// As [`signal`](Self::signal), with all that a call has: of those with one [ID](Call::id) the flow takes one.
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    pub async fn signal_call(&self, name: &str, id: &str, signal: &str, call: Call) -> Result<Delivered, FlowsError> {
        self.hand_over(&identity(name, id)?, None, signal_key(signal), call).await
    }
}
