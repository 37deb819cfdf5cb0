//! The client's end of a connection to an instance, and the three messages it is made of: connect, receive, disconnect.
//!
//! A client whose instance lives on another host has the same end, filled from there by [`across`](super::across).

use std::fmt;
use std::time::Duration;

use super::across::Opened;
use super::across::client::{self, Outbox};
use crate::commit::gate::Ticket;
use crate::connection::{AnyLink as _, CONNECTION_BUFFER, Closed, ConnectionId, Link, LinkState};
use crate::error::{Outcome, RequestError};
use crate::forward::table::Writing;
use crate::instance::OnConnect;
use crate::instance::answer::Refusal;
use crate::instance::context::Context;
use crate::instance::job::Work;
use crate::instance::kind::InterfaceCore;
use crate::instance::living::Home;
use crate::instance::peer::{Answered, Connecting, Peer};
use crate::instance::recorded::Output;
use crate::instance::turn::{awaken, slot_of};
use crate::quiet::{Quiet, drop_quietly};
use crate::shared::Health;
use crate::sync::{Arc, OwnedSemaphorePermit};

/// The client's end of a connection to an instance, made by [`Interface::connect`](crate::Interface::connect).
///
/// Dropped, it closes the connection and the instance is told.
///
/// ```
/// # use stable_interfaces::{Connecting, ConnectionId, Context, ContextError, OnConnect, Peer, StableInterface};
/// # struct Echo(Option<Peer<String>>);
/// # impl StableInterface for Echo {
/// #     const NAME: &'static str = "echo";
/// #     type Error = ContextError;
/// # }
/// # impl OnConnect for Echo {
/// #     type Meta = &'static str;
/// #     type Incoming = String;
/// #     type Outgoing = String;
/// #     async fn on_connect(&mut self, _: &mut Context, client: &mut Connecting<String>, _: &'static str) -> Result<(), ContextError> {
/// #         self.0 = Some(client.accept());
/// #         Ok(())
/// #     }
/// #     async fn on_receive(&mut self, cx: &mut Context, _: ConnectionId, text: String) -> Result<(), ContextError> {
/// #         if let Some(peer) = &self.0 {
/// #             let _ = peer.send(cx, text).await;
/// #         }
/// #         Ok(())
/// #     }
/// # }
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # use stable_interfaces::{Host, MemoryStore};
/// # let mut host = Host::local(MemoryStore::new());
/// # let echoes = host.interface(|_id| Echo(None)).register()?;
/// # let _host = host.start().await?;
/// let connection = echoes.connect("hall", "ann").await?; // With what `on_connect` is told of the client.
/// connection.send("hello".to_owned()).await?;
/// assert_eq!(connection.recv().await?, "hello");
/// connection.close();
/// # Ok(())
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
/// ```
pub struct Connection<I: OnConnect> {
    pub(super) link: Arc<Link<I::Outgoing>>,
    pub(super) core: Arc<InterfaceCore<I>>,
    pub(super) id: Arc<str>,
    /// The client's messages on their way, if the instance lives on another host.
    pub(super) outbox: Option<Arc<Outbox<I::Outgoing>>>,
}

impl<I: OnConnect> fmt::Debug for Connection<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("to", &self.id).field("id", &self.link.id).finish_non_exhaustive()
    }
}

impl<I: OnConnect> Connection<I> {
    /// The connection's number.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.link.id
    }

    /// Sends to the instance, after waiting for room: at most [`CONNECTION_BUFFER`] messages wait for their handlers.
    ///
    /// `Ok` means that it will be handled, in order, unless the instance closes the connection or is reset before, or the link to its host is lost.
    /// Between hosts as many wait on either.
    ///
    /// # Errors
    /// [`Closed`]: it will not be handled.
    pub async fn send(&self, message: I::Incoming) -> Result<(), Closed> {
        let message = Quiet::new(message);
        loop {
            let take_room = |state: &mut LinkState<I::Outgoing>| match state.ended() {
                Some(ended) => Some(Err(ended)),
                None => (state.incoming < CONNECTION_BUFFER).then(|| {
                    state.incoming += 1;
                    Ok(())
                }),
            };
            match self.link.until(take_room).await {
                Ok(()) => break,
                Err(Ok(closed)) => return Err(closed),
                Err(Err(ticket)) => self.link.end_behind(&ticket).await,
            }
        }
        let incoming = Incoming { link: self.link.clone(), is_handled: false };
        if let Some(outbox) = &self.outbox {
            return outbox.push(&self.core, incoming, message);
        }
        let message = message.into_inner().expect("the message is there until it is sent");
        match receive(&self.core, &self.id, incoming, message) {
            Ok(()) => Ok(()),
            Err(_) => {
                // The instance is not here any more: its shard moved, or the host is ending.
                let host = &self.core.host;
                let parting = host.fleet.shard_of(&self.id).map_or(Closed::Lost, |shard| Closed::parting(host, shard));
                self.link.close_for_client(parting.clone());
                Err(self.link.state.lock().closed.clone().unwrap_or(parting))
            }
        }
    }

    /// The next message from the instance, in order, once what it depends on is durable.
    ///
    /// Cancel-safe. Of several tasks that wait here each message reaches one.
    ///
    /// # Errors
    /// [`Closed`], after everything that was sent before has been taken.
    pub async fn recv(&self) -> Result<I::Outgoing, Closed> {
        loop {
            // The head stays in place until its gate is open, so that a dropped `recv` loses nothing.
            let head = self.link.until(|state| match state.outgoing.front() {
                Some((_, behind)) => Some(Ok(behind.clone())),
                None => state.ended().map(Err),
            });
            let behind = match head.await {
                Ok(behind) => behind,
                Err(Ok(closed)) => return Err(closed),
                Err(Err(ticket)) => {
                    self.link.end_behind(&ticket).await;
                    continue;
                }
            };
            if let Some(ticket) = &behind
                && ticket.wait().await.is_err()
            {
                // Dropped once the lock is free.
                let _untaken = self.link.change(|state| std::mem::take(&mut state.outgoing));
                self.link.close_for_client(Closed::Reset);
                continue;
            }
            // Another task may have taken that one meanwhile: what is the first now may wait for another commit.
            let is_open = |other: &Option<Ticket>| match (other, &behind) {
                (Some(other), Some(waited_for)) => other.is(waited_for),
                (other, _) => other.is_none(),
            };
            let take = |state: &mut LinkState<I::Outgoing>| {
                let is_first_open = state.outgoing.front().is_some_and(|(_, behind)| is_open(behind));
                if is_first_open { state.outgoing.pop_front() } else { None }
            };
            let taken = self.link.change(take);
            if let Some(message) = taken.and_then(|(message, _)| message.into_inner()) {
                return Ok(message);
            }
        }
    }

    /// Waits until the connection is closed, and says why. Messages may still be there to take.
    pub async fn closed(&self) -> Closed {
        loop {
            match self.link.until(|state| state.ended()).await {
                Ok(closed) => return closed,
                Err(ticket) => self.link.end_behind(&ticket).await,
            }
        }
    }

    /// Closes the connection and tells the instance, after it has handled what was sent. So does dropping it.
    pub fn close(self) {
        drop(self);
    }
}

impl<I: OnConnect> Connection<I> {
    /// Closes it as the client does, for this reason.
    pub(super) fn end(&self, reason: Closed) {
        // What nobody will take any more is dropped once the lock is free.
        let (is_attached, _untaken) = self.link.change(|state| {
            state.closed.get_or_insert(reason.clone());
            (state.is_attached, std::mem::take(&mut state.outgoing))
        });
        if let Some(outbox) = &self.outbox {
            outbox.leave();
        } else if is_attached {
            let (core, instance, connection) = (self.core.clone(), self.id.clone(), self.link.id);
            let leaving = Disconnect { core, instance, connection, reason };
            // Not here: this may be any thread, and handlers are polled on the host's tasks.
            self.core.host.defer(Box::new(move || leaving.tell()));
        }
    }
}

impl<I: OnConnect> Drop for Connection<I> {
    fn drop(&mut self) {
        self.end(Closed::ByClient);
    }
}

/// The permit of one message on its way to the instance. Dropped unhandled, it closes the connection: no message goes missing
/// between two others.
pub(super) struct Incoming<Out> {
    link: Arc<Link<Out>>,
    is_handled: bool,
}

impl<Out> Incoming<Out> {
    fn id(&self) -> ConnectionId {
        self.link.id
    }

    /// Takes its turn. Tells whether the message is to be handled: not if the connection ended with an incarnation before this one.
    fn begin(&mut self) -> bool {
        self.is_handled = true;
        self.link.state.lock().is_attached
    }

    /// Closes the connection for the client.
    pub(super) fn close(&self, reason: Closed) {
        self.link.close_for_client(reason);
    }

    /// The message has its room at the owner of the instance, or the connection is closed for a reason of its own.
    pub(super) fn settle(mut self) {
        self.is_handled = true;
    }
}

impl<Out> Drop for Incoming<Out> {
    fn drop(&mut self) {
        self.link.change(|state| {
            state.incoming -= 1;
            if !self.is_handled {
                // A host that stops has closed its connections before; here is what waits when a lease runs out.
                state.closed.get_or_insert(Closed::Lost);
            }
        });
    }
}

/// Asks the instance about a new connection. The client's end exists from here on: dropped on the way, it closes.
async fn connect<I: OnConnect>(
    instance: &mut I,
    cx: &mut Context,
    core: Arc<InterfaceCore<I>>,
    permit: OwnedSemaphorePermit,
    meta: I::Meta,
) -> Outcome<Connection<I>, I::Error> {
    let link = Arc::new(Link::new());
    let mut connecting = Connecting { peer: Peer { link: link.clone() }, answer: Answered::No };
    let handled = instance.on_connect(cx, &mut connecting, meta).await;
    let refusal = match (handled, connecting.answer) {
        (Ok(()), Answered::Accepted) => {
            cx.output(Output::Connect(Some((link.clone(), permit))));
            return Ok(Connection { link, core, id: cx.id().into(), outbox: None });
        }
        (Ok(()), Answered::Rejected(reason)) => RequestError::Rejected(reason),
        (Ok(()), Answered::No) => RequestError::Unhandled("this connection".into()),
        (Err(error), _) => {
            cx.note_refusal();
            RequestError::handler(error)
        }
    };
    // The instance may have kept a peer all the same.
    link.close(Closed::ByInstance("the connection was refused".into())).wake();
    Err(refusal.into())
}

/// A client that is connected.
pub(super) enum Connected<I: OnConnect> {
    /// A client of an instance of this host.
    Here(Connection<I>),
    /// A client of an instance of another host.
    Afar(Opened),
}

/// Connects a client.
pub(super) struct Connect<I: OnConnect> {
    meta: I::Meta,
    permit: OwnedSemaphorePermit,
    core: Arc<InterfaceCore<I>>,
}

impl<I: OnConnect> Connect<I> {
    /// Connects a client, if the host may have one more.
    pub(super) fn new(core: &Arc<InterfaceCore<I>>, meta: I::Meta) -> Outcome<Connect<I>, I::Error> {
        match core.host.permit_connection() {
            Some(permit) => Ok(Connect { meta, permit, core: core.clone() }),
            None => {
                metrics::counter!(crate::metrics::OVERLOADED, "interface" => I::NAME).increment(1);
                drop_quietly(meta);
                Err(RequestError::Overloaded("connections".into()).into())
            }
        }
    }
}

impl<I: OnConnect> Work<I> for Connect<I> {
    type Reply = Connected<I>;

    fn write(&self, interface: &InterfaceCore<I>) -> Writing<Connected<I>, I::Error> {
        client::write_opening(interface, &self.meta)
    }

    async fn run(self, state: &mut Home<I>, cx: &mut Context) -> Outcome<Connected<I>, I::Error> {
        let Connect { meta, permit, core } = self;
        let meta = Quiet::new(meta);
        let instance = awaken(state, cx).await?;
        let meta = meta.into_inner().expect("the meta is there until it is handled");
        connect(instance, cx, core, permit, meta).await.map(Connected::Here)
    }
}

/// Handles a client's message.
struct Receive<I: OnConnect> {
    incoming: Incoming<I::Outgoing>,
    message: I::Incoming,
}

impl<I: OnConnect> Work<I> for Receive<I> {
    type Reply = ();

    async fn run(mut self, state: &mut Home<I>, cx: &mut Context) -> Outcome<(), I::Error> {
        let is_attached = self.incoming.begin();
        match state {
            Some(instance) if is_attached => {
                Ok(instance.on_receive(cx, self.incoming.id(), self.message).await.map_err(RequestError::handler)?)
            }
            // The connection ended with the incarnation it belonged to.
            _ => Ok(()),
        }
    }
}

/// Sends a client's message to the instance. Its room in the buffer is its permit for the queue.
fn receive<I: OnConnect>(
    core: &Arc<InterfaceCore<I>>,
    id: &str,
    incoming: Incoming<I::Outgoing>,
    message: I::Incoming,
) -> Outcome<(), I::Error> {
    core.tell(id, Receive { incoming, message })
}

/// Tells the instance that a client has left.
struct Disconnect<I: OnConnect> {
    core: Arc<InterfaceCore<I>>,
    instance: Arc<str>,
    connection: ConnectionId,
    reason: Closed,
}

impl<I: OnConnect> Clone for Disconnect<I> {
    fn clone(&self) -> Disconnect<I> {
        let Disconnect { core, instance, connection, reason } = self;
        let (core, instance) = (core.clone(), instance.clone());
        Disconnect { core, instance, connection: *connection, reason: reason.clone() }
    }
}

impl<I: OnConnect> Work<I> for Disconnect<I> {
    type Reply = ();

    fn refused(&self, refusal: &Refusal) {
        if matches!(refusal, Refusal::LeaseLost) {
            self.tell_again();
        }
    }

    async fn run(self, state: &mut Home<I>, cx: &mut Context) -> Outcome<(), I::Error> {
        let is_news = slot_of::<I>(cx).is_some_and(|slot| slot.client_left(self.connection));
        match state {
            Some(instance) if is_news => {
                Ok(instance.on_disconnect(cx, self.connection, self.reason).await.map_err(RequestError::handler)?)
            }
            _ => Ok(()),
        }
    }
}

/// The pause before an instance is told again that a client has left, while its host may not act.
const DISCONNECT_AGAIN: Duration = Duration::from_millis(100);

impl<I: OnConnect> Disconnect<I> {
    fn tell(self) {
        let again = self.clone();
        let Disconnect { core, instance, .. } = &again;
        match core.tell(instance, self) {
            Err(error) if matches!(*error, RequestError::Fenced | RequestError::LeaseLost) => again.tell_again(),
            // In any other case the incarnation that had the connection is at its end.
            Ok(()) | Err(_) => {}
        }
    }

    /// Tells it later: the lease may come back, and then the instance with all its connections is still there.
    fn tell_again(&self) {
        let host = &self.core.host;
        let is_owned = || host.fleet.shard_of(&self.instance).is_ok_and(|shard| host.shards.epoch(shard).is_some());
        if host.health() == Health::Running && is_owned() {
            let (again, clock) = (self.clone(), host.clock.share());
            host.spawn_turn(async move {
                clock.sleep(DISCONNECT_AGAIN).await;
                again.tell();
            });
        }
    }
}
