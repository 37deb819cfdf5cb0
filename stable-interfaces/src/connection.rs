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
use crate::error::ContextError;
use crate::quiet::{self, Quiet};
use crate::shards::handoff::Handoff;
use crate::shared::{Health, HostCore};
use crate::store::ShardId;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex};

/// The number of messages that each direction of a connection holds for its receiver before a sender waits.
pub const CONNECTION_BUFFER: usize = 64;
/// The most messages to a client that may wait for their commits, with those it could take.
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
    pub(crate) fn next() -> ConnectionId {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        ConnectionId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The reason why a connection is closed.
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
    /// The instance's shard was handed over to another host, which has it or is about to. Connect there.
    #[error("the instance has moved to {to}")]
    Moved {
        /// The name of that host.
        to: Arc<str>,
    },
    /// The other side of the connection is at another host, and the link to that was lost: what was sent last may not have arrived. Connect again.
    #[error("the link to {host} was lost")]
    Unreachable {
        /// The name of that host.
        host: Arc<str>,
    },
    /// A message could not be taken to the other host, or not be read there; the text says why. Neither it nor anything after it arrived.
    #[error("a message could not cross to the other host: {0}")]
    Uncrossable(String),
}

impl Closed {
    /// The reason given to the clients of an instance of this shard that may not stay in the memory of this host.
    pub(crate) fn parting(host: &HostCore, shard: ShardId) -> Closed {
        if host.shards.handoff(shard) == Handoff::Closing
            && let Some(to) = host.placed(shard).filter(|to| **to != *host.name)
        {
            return Closed::Moved { to };
        }
        match host.health() {
            Health::Draining | Health::Stopped => Closed::Draining,
            _ => Closed::Lost,
        }
    }
}

/// A connection as the instance's slot keeps it.
pub(crate) trait AnyLink: Send + Sync {
    fn id(&self) -> ConnectionId;
    /// Tells whether the instance has not let go of it.
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

/// The state that both ends of a connection share.
pub(crate) struct Link<Out> {
    pub(crate) id: ConnectionId,
    pub(crate) state: Mutex<LinkState<Out>>,
}

pub(crate) struct LinkState<Out> {
    /// Messages to the client, each with the commits that it waits for.
    pub(crate) outgoing: VecDeque<(Quiet<Out>, Option<Ticket>)>,
    /// Sent to the instance and not handled yet.
    pub(crate) incoming: usize,
    pub(crate) closed: Option<Closed>,
    /// The instance has closed it. The client learns that once what it depends on is durable.
    pub(crate) closing: Option<Closing>,
    /// Tells whether the instance counts it among its own. Until it lets go it handles what was sent, and has to be told when the
    /// client leaves.
    pub(crate) is_attached: bool,
    /// Wakers of what waits for a change: the client for a message or for room, a handler for room.
    pub(crate) waiting: Vec<Waker>,
}

/// The instance's last word on a connection.
#[derive(Debug, Clone)]
pub(crate) struct Closing {
    pub(crate) reason: Closed,
    pub(crate) behind: Behind,
}

/// The things that a closing waits for.
#[derive(Debug, Clone)]
pub(crate) enum Behind {
    /// The handler that decided it.
    Handler,
    /// The commits it depends on.
    Commits(Ticket),
}

impl<Out> LinkState<Out> {
    /// The reason why nothing can be sent to the client any more.
    pub(crate) fn refuses(&self) -> Option<&Closed> {
        self.closed.as_ref().or(self.closing.as_ref().map(|closing| &closing.reason))
    }

    /// Tells whether another message for the client may be added. What the client cannot take yet, because it waits for a commit, does
    /// not make it slow.
    pub(crate) fn has_room(&self) -> bool {
        match self.outgoing.get(CONNECTION_BUFFER - 1) {
            None => true,
            Some((_, Some(ticket))) if !ticket.is_settled() => self.outgoing.len() < MAX_UNCOMMITTED,
            Some(_) => false,
        }
    }

    /// The end of the connection for the client, or the commits that will tell.
    pub(crate) fn ended(&self) -> Option<Result<Closed, Ticket>> {
        match (&self.closed, &self.closing) {
            (Some(closed), _) => Some(Ok(closed.clone())),
            (None, Some(Closing { behind: Behind::Commits(ticket), .. })) => Some(Err(ticket.clone())),
            _ => None,
        }
    }
}

impl<Out> Link<Out> {
    pub(crate) fn new() -> Link<Out> {
        let state = LinkState {
            outgoing: VecDeque::new(),
            incoming: 0,
            closed: None,
            closing: None,
            is_attached: true,
            waiting: Vec::new(),
        };
        Link { id: ConnectionId::next(), state: Mutex::new(state) }
    }

    /// Changes the state, and says who waits for that.
    pub(crate) fn alter<T>(&self, change: impl FnOnce(&mut LinkState<Out>) -> T) -> (T, Wakers) {
        let mut state = self.state.lock();
        let result = change(&mut state);
        let waiting = std::mem::take(&mut state.waiting);
        (result, Wakers(waiting))
    }

    /// Changes the state and wakes whoever waits for that.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut LinkState<Out>) -> T) -> T {
        let (result, waiting) = self.alter(change);
        waiting.wake();
        result
    }

    /// Closes it for the client, if it is not closed yet.
    pub(crate) fn close_for_client(&self, reason: Closed) {
        self.change(|state| {
            if state.closed.is_none() {
                state.closed = Some(reason);
            }
        });
    }

    /// The commits that the instance's last word depended on are known.
    pub(crate) async fn end_behind(&self, ticket: &Ticket) {
        let outcome = ticket.wait().await;
        self.change(|state| {
            if let (None, Some(closing)) = (&state.closed, &state.closing) {
                state.closed = Some(if outcome.is_ok() { closing.reason.clone() } else { Closed::Reset });
            }
        });
    }

    /// Waits until `ready` finds what it looks for.
    pub(crate) async fn until<T>(&self, mut ready: impl FnMut(&mut LinkState<Out>) -> Option<T>) -> T {
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
            state.closing.take_if(|closing| matches!(closing.behind, Behind::Handler));
        };
        self.alter(stay).1
    }
}

impl From<Closed> for ContextError {
    /// Lets `?` work on sends in handlers that treat a closed connection as a failure.
    fn from(_: Closed) -> ContextError {
        ContextError::Closed
    }
}
