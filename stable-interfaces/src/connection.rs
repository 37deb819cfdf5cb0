//! Duplex connections between a client and an instance.
//!
//! Each direction is in order and bounded, and a full buffer holds its sender back; nothing is lost without both sides being
//! told. Messages to the instance take their turn in its queue like requests. What the instance sends waits, with the ticket of
//! the gate it was sent under, on the client's side of the buffer: the client takes it once everything before it is durable.
//! A connection belongs to one incarnation of the instance and closes with it.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use crate::commit::gate::Ticket;
use crate::error::{ContextError, Outcome, RequestError};
use crate::instance::OnConnect;
use crate::instance::context::{Context, Output, Release};
use crate::interface::{InterfaceCore, disconnect, receive};
use crate::quiet::{self, Quiet};
use crate::shared::Health;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, OwnedSemaphorePermit};

/// How many messages each direction of a connection holds: those that the receiver could take.
pub const CONNECTION_BUFFER: usize = 64;
/// How many messages to a client may wait for their commits at most, with those it could take.
const MAX_UNCOMMITTED: usize = 16 * CONNECTION_BUFFER;

/// The number of a connection, unique in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl ConnectionId {
    fn next() -> ConnectionId {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        ConnectionId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Why a connection is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Closed {
    /// The client closed it, or dropped its end.
    #[error("closed by the client")]
    ByClient,
    /// The instance closed it, with this reason.
    #[error("closed by the instance: {0}")]
    ByInstance(String),
    /// The instance was reset, by a panic, a timeout or a failed commit. What it had not made durable did not happen.
    #[error("the instance was reset")]
    Reset,
    /// The instance left memory: it was stopped, or asked to be passivated.
    #[error("the instance was stopped")]
    Stopped,
    /// The host is draining or has ended; connect to the next owner.
    #[error("the host is draining")]
    Draining,
    /// The host may not act for the instance any more: another process has its shard, the host was replaced or has failed, or it
    /// has lost its lease or its store. Connect to the next owner, which may be this host again.
    #[error("the host has lost the instance")]
    Lost,
}

impl Closed {
    /// The reason given to the clients of an instance that may not stay in the memory of a host of this health.
    pub(crate) fn parting(host: Health) -> Closed {
        match host {
            Health::Draining | Health::Stopped => Closed::Draining,
            _ => Closed::Lost,
        }
    }
}

/// A connection as the instance's slot keeps it.
pub(crate) trait AnyLink: Send + Sync {
    fn id(&self) -> ConnectionId;
    /// Whether the instance has not let go of it.
    fn is_attached(&self) -> bool;
    /// Closes it, and says who waits for that.
    fn close(&self, reason: Closed) -> Wakers;
    /// Takes back the last word of a handler that failed.
    fn stay_open(&self) -> Wakers;
}

/// Tasks that have something to look at, to be woken when no lock is held.
#[must_use]
#[derive(Debug, Default)]
pub(crate) struct Wakers(Vec<Waker>);

impl Wakers {
    pub(crate) fn wake(self) {
        for waker in self.0 {
            quiet::wake(waker);
        }
    }
}

/// What both ends of a connection share.
pub(crate) struct Link<Out> {
    id: ConnectionId,
    state: Mutex<LinkState<Out>>,
}

struct LinkState<Out> {
    /// To the client, each with the commits it waits for.
    outgoing: VecDeque<(Quiet<Out>, Option<Ticket>)>,
    /// Sent to the instance and not handled yet.
    incoming: usize,
    closed: Option<Closed>,
    /// The instance has closed it. The client learns that once what it depends on is durable.
    ending: Option<Ending>,
    /// Whether the instance counts it among its own. Until it lets go it handles what was sent, and has to be told when the
    /// client leaves.
    is_attached: bool,
    /// Who waits for something to change: the client for a message or for room, a handler for room.
    waiting: Vec<Waker>,
}

/// The instance's last word on a connection.
#[derive(Debug, Clone)]
struct Ending {
    reason: Closed,
    behind: Behind,
}

/// What an ending waits for.
#[derive(Debug, Clone)]
enum Behind {
    /// The handler that decided it.
    Handler,
    /// The commits it depends on.
    Commits(Ticket),
}

impl<Out> LinkState<Out> {
    /// Why nothing can be sent to the client any more.
    fn refuses(&self) -> Option<&Closed> {
        self.closed.as_ref().or(self.ending.as_ref().map(|ending| &ending.reason))
    }

    /// Whether another message for the client may be added. What the client cannot take yet, because it waits for a commit, does
    /// not make it slow.
    fn has_room(&self) -> bool {
        match self.outgoing.get(CONNECTION_BUFFER - 1) {
            None => true,
            Some((_, Some(ticket))) if !ticket.is_settled() => self.outgoing.len() < MAX_UNCOMMITTED,
            Some(_) => false,
        }
    }

    /// How it ended for the client, or the commits that will tell.
    fn ended(&self) -> Option<Result<Closed, Ticket>> {
        match (&self.closed, &self.ending) {
            (Some(closed), _) => Some(Ok(closed.clone())),
            (None, Some(Ending { behind: Behind::Commits(ticket), .. })) => Some(Err(ticket.clone())),
            _ => None,
        }
    }
}

impl<Out> Link<Out> {
    fn new() -> Link<Out> {
        let state = LinkState {
            outgoing: VecDeque::new(),
            incoming: 0,
            closed: None,
            ending: None,
            is_attached: true,
            waiting: Vec::new(),
        };
        Link { id: ConnectionId::next(), state: Mutex::new(state) }
    }

    /// Changes the state, and says who waits for that.
    fn alter<T>(&self, change: impl FnOnce(&mut LinkState<Out>) -> T) -> (T, Wakers) {
        let mut state = self.state.lock();
        let result = change(&mut state);
        let waiting = std::mem::take(&mut state.waiting);
        (result, Wakers(waiting))
    }

    /// Changes the state and wakes whoever waits for that.
    fn change<T>(&self, change: impl FnOnce(&mut LinkState<Out>) -> T) -> T {
        let (result, waiting) = self.alter(change);
        waiting.wake();
        result
    }

    /// Closes it for the client, if it is not closed yet.
    fn close_for_client(&self, reason: Closed) {
        self.change(|state| {
            if state.closed.is_none() {
                state.closed = Some(reason);
            }
        });
    }

    /// The commits that the instance's last word depended on are known.
    async fn end_behind(&self, ticket: &Ticket) {
        let outcome = ticket.wait().await;
        self.change(|state| {
            if let (None, Some(ending)) = (&state.closed, &state.ending) {
                state.closed = Some(if outcome.is_ok() { ending.reason.clone() } else { Closed::Reset });
            }
        });
    }

    /// Waits until `ready` finds what it looks for.
    async fn until<T>(&self, mut ready: impl FnMut(&mut LinkState<Out>) -> Option<T>) -> T {
        poll_fn(|task| {
            let mut state = self.state.lock();
            match ready(&mut state) {
                Some(result) => Poll::Ready(result),
                None => {
                    if !state.waiting.iter().any(|waker| waker.will_wake(task.waker())) {
                        state.waiting.push(task.waker().clone());
                    }
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl<Out: Send> AnyLink for Link<Out> {
    fn id(&self) -> ConnectionId {
        self.id
    }

    fn is_attached(&self) -> bool {
        self.state.lock().is_attached
    }

    fn close(&self, reason: Closed) -> Wakers {
        let close = |state: &mut LinkState<Out>| {
            state.is_attached = false;
            if state.closed.is_none() {
                state.closed = Some(reason);
            }
        };
        self.alter(close).1
    }

    fn stay_open(&self) -> Wakers {
        let stay = |state: &mut LinkState<Out>| {
            state.ending.take_if(|ending| matches!(ending.behind, Behind::Handler));
        };
        self.alter(stay).1
    }
}

/// The instance's end of a connection: to send to the client, from a handler. Cheap to clone; equal if of the same connection.
pub struct Peer<Out> {
    link: Arc<Link<Out>>,
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

/// Why a message was not sent to a client.
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

    /// Whether the connection is closed.
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
            state.ending.get_or_insert_with(|| Ending { reason: reason.clone(), behind: Behind::Handler });
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
                    state.ending = Some(Ending { reason, behind: Behind::Commits(ticket) });
                };
                self.link.alter(end).1
            }
        };
    }

    fn wake(&mut self) {
        std::mem::take(&mut self.waiting).wake();
    }
}

/// A client that asks to be connected, as [`OnConnect::on_connect`] is given it. Dropped without an answer, the connection is
/// refused as [`Unhandled`](RequestError::Unhandled).
#[derive(Debug)]
pub struct Connecting<Out> {
    peer: Peer<Out>,
    answer: Answered,
}

#[derive(Debug, PartialEq, Eq)]
enum Answered {
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
    link: Arc<Link<I::Outgoing>>,
    core: Arc<InterfaceCore<I>>,
    id: Arc<str>,
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
    /// `Ok` means that it will be handled, in order, unless the instance closes the connection or is reset before.
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
        let message = message.into_inner().expect("the message is there until it is sent");
        match receive(&self.core, &self.id, incoming, message) {
            Ok(()) => Ok(()),
            Err(_) => {
                // The instance is not here any more: its shard moved, or the host is ending.
                let parting = Closed::parting(self.core.host.health());
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

impl<I: OnConnect> Drop for Connection<I> {
    fn drop(&mut self) {
        // What nobody will take any more is dropped once the lock is free.
        let (is_attached, _untaken) = self.link.change(|state| {
            state.closed.get_or_insert(Closed::ByClient);
            (state.is_attached, std::mem::take(&mut state.outgoing))
        });
        if is_attached {
            let (core, instance, id) = (self.core.clone(), self.id.clone(), self.link.id);
            // Not here: this may be any thread, and handlers are polled on the host's tasks.
            self.core.host.defer(Box::new(move || disconnect(&core, &instance, id)));
        }
    }
}

/// The permit of one message on its way to the instance. Dropped unhandled, it closes the connection: no message goes missing
/// between two others.
pub(crate) struct Incoming<Out> {
    link: Arc<Link<Out>>,
    is_handled: bool,
}

impl<Out> Incoming<Out> {
    pub(crate) fn id(&self) -> ConnectionId {
        self.link.id
    }

    /// Its turn has come. Whether it is to be handled: not if the connection ended with an incarnation before this one.
    pub(crate) fn begin(&mut self) -> bool {
        self.is_handled = true;
        self.link.state.lock().is_attached
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
pub(crate) async fn connect<I: OnConnect>(
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
            return Ok(Connection { link, core, id: cx.id().into() });
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

impl From<Closed> for ContextError {
    /// So that `?` works on sends in handlers that treat a closed connection as a failure.
    fn from(_: Closed) -> ContextError {
        ContextError::Closed
    }
}
