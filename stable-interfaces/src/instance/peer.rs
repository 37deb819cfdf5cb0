//! The instance's end of a connection.
//!
//! What a handler sends is an output of it: in the client's buffer when the handler's effects are queued, and visible there once they
//! are durable.

use std::fmt;

use super::context::Context;
use super::recorded::{Output, Release};
use crate::commit::gate::Ticket;
use crate::connection::{AnyLink as _, Behind, Closed, Closing, ConnectionId, Link, LinkState, Wakers};
use crate::quiet::Quiet;
use crate::sync::Arc;

/// The instance's end of a connection: to send to the client, from a handler. Cheap to clone; equal if of the same connection.
pub struct Peer<Out> {
    pub(crate) link: Arc<Link<Out>>,
}

impl<Out> Clone for Peer<Out> {
    fn clone(&self) -> Peer<Out> {
        Peer { link: self.link.clone() }
    }
}

impl<Out> PartialEq for Peer<Out> {
    fn eq(&self, other: &Peer<Out>) -> bool {
        Arc::ptr_eq(&self.link, &other.link)
    }
}

impl<Out> Eq for Peer<Out> {}

impl<Out> fmt::Debug for Peer<Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("id", &self.link.id).finish_non_exhaustive()
    }
}

/// The reason why a message was not sent to a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The connection is closed.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The client has not taken what was sent before. Close it, drop the message, or [`send`](Peer::send) and wait.
    #[error("the client's buffer is full")]
    Full,
}

impl<Out: Send + 'static> Peer<Out> {
    /// The connection's number.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.link.id
    }

    /// Tells whether the connection is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.link.state.lock().refuses().is_some()
    }

    /// Sends to the client when this handler's effects are durable, after waiting for room in the client's buffer.
    ///
    /// Messages of one handler find room together: they become visible to the client only when it ends.
    ///
    /// # Errors
    /// [`Closed`]: nothing is sent.
    pub async fn send(&self, cx: &mut Context, message: Out) -> Result<(), Closed> {
        let message = Quiet::new(message);
        let has_room = |state: &mut LinkState<Out>| match state.refuses() {
            Some(closed) => Some(Err(closed.clone())),
            None => state.has_room().then_some(Ok(())),
        };
        self.link.until(has_room).await?;
        self.push(cx, message);
        Ok(())
    }

    /// As [`send`](Self::send), without waiting.
    ///
    /// # Errors
    /// [`SendError::Full`] if the client's buffer has no room, [`SendError::Closed`]; nothing is sent.
    pub fn try_send(&self, cx: &mut Context, message: Out) -> Result<(), SendError> {
        let message = Quiet::new(message);
        {
            let state = self.link.state.lock();
            if let Some(closed) = state.refuses() {
                return Err(closed.clone().into());
            }
            if !state.has_room() {
                return Err(SendError::Full);
            }
        }
        self.push(cx, message);
        Ok(())
    }

    fn push(&self, cx: &mut Context, message: Quiet<Out>) {
        let sent = Sent { link: self.link.clone(), message, waiting: Wakers::default() };
        cx.output(Output::Release(Box::new(sent)));
    }

    /// Closes the connection. The client is told the reason when this handler's effects are durable, after what was sent.
    pub fn close(&self, cx: &mut Context, reason: impl Into<String>) {
        let (link, reason) = (self.link.clone(), Closed::ByInstance(reason.into()));
        // At once for this end. If the handler fails after this, the instance is reset, and that closes it too; or else it is
        // kept, and the slot takes this back.
        link.change(|state| {
            state.closing.get_or_insert_with(|| Closing { reason: reason.clone(), behind: Behind::Handler });
        });
        cx.output(Output::Disconnect(link.id));
        cx.output(Output::Release(Box::new(LastWord { link, reason, waiting: Wakers::default() })));
    }
}

/// A message on its way to a client; once the client's end is closed it stays in here.
struct Sent<Out> {
    link: Arc<Link<Out>>,
    message: Quiet<Out>,
    waiting: Wakers,
}

impl<Out: Send> Release for Sent<Out> {
    fn release(&mut self, behind: Option<Ticket>) {
        let message = &mut self.message;
        let send = |state: &mut LinkState<Out>| {
            if state.closed.is_none() {
                state.outgoing.push_back((message.take(), behind));
            }
        };
        self.waiting = self.link.alter(send).1;
    }

    fn wake(&mut self) {
        std::mem::take(&mut self.waiting).wake();
    }
}

/// The end of a connection, on its way to the client.
struct LastWord<Out> {
    link: Arc<Link<Out>>,
    reason: Closed,
    waiting: Wakers,
}

impl<Out: Send> Release for LastWord<Out> {
    fn release(&mut self, behind: Option<Ticket>) {
        let reason = self.reason.clone();
        self.waiting = match behind {
            None => self.link.close(reason),
            Some(ticket) => {
                let end = |state: &mut LinkState<Out>| {
                    state.is_attached = false;
                    state.closing = Some(Closing { reason, behind: Behind::Commits(ticket) });
                };
                self.link.alter(end).1
            }
        };
    }

    fn wake(&mut self) {
        std::mem::take(&mut self.waiting).wake();
    }
}

/// A client that asks to be connected, as [`OnConnect::on_connect`](crate::OnConnect::on_connect) is given it. Dropped without an answer, the connection is
/// refused as [`Unhandled`](crate::RequestError::Unhandled).
#[derive(Debug)]
pub struct Connecting<Out> {
    pub(crate) peer: Peer<Out>,
    pub(crate) answer: Answered,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    No,
    Accepted,
    Rejected(String),
}

impl<Out: Send + 'static> Connecting<Out> {
    /// The number the connection will have.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.peer.id()
    }

    /// Accepts: the client is told when this handler's effects are durable. Keep the peer to send to it.
    pub fn accept(&mut self) -> Peer<Out> {
        self.answer = Answered::Accepted;
        self.peer.clone()
    }

    /// Refuses, and tells the client why.
    pub fn reject(&mut self, reason: impl Into<String>) {
        self.answer = Answered::Rejected(reason.into());
    }
}
