//! A message as the slot and its queue know it: something to do, that can start or be refused, and is answered.

use std::future::Future;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use super::StableInterface;
use super::answer::{Answer, Refusal, State};
use super::context::Context;
use super::kind::InterfaceCore;
use super::living::{Home, Living, StateOf};
use super::queue::Waiter;
use super::recorded::Recorded;
use super::slot::{Next, Slot};
use crate::error::Outcome;
use crate::forward::table::Writing;
use crate::quiet::Quiet;
use crate::store::Epoch;
use crate::sync::{Arc, oneshot};

/// The work that a message asks of an instance.
pub(crate) trait Work<I: StableInterface>: Send + 'static {
    type Reply: Send + 'static;

    /// Says whether it lets the instance leave memory: then the limit of `on_stop` is its own, and not that of handlers.
    const IS_STOP: bool = false;

    /// Says whether a task of the instance asks for it: a host that drains serves that while it waits for such tasks.
    const IS_OF_TASK: bool = false;

    /// Says whether it does so because the host lets the instance's shard go: one at a time waits for that.
    fn is_drain(&self) -> bool {
        false
    }

    /// Writes it for the host that owns its instance; `None` if it cannot be sent on.
    fn write(&self, interface: &InterfaceCore<I>) -> Writing<Self::Reply, I::Error> {
        let _ = interface;
        None
    }

    /// Notes that it is refused, where nobody waits for its reply.
    fn refused(&self, refusal: &Refusal) {
        let _ = refusal;
    }

    /// Does it. `state` is the instance if it is in memory; [`awaken`] builds it where it is needed.
    fn run(self, state: &mut Home<I>, cx: &mut Context) -> impl Future<Output = Outcome<Self::Reply, I::Error>> + Send;
}

pub(crate) type AnswerOf<I, W> = Answer<<W as Work<I>>::Reply, <I as StableInterface>::Error>;

pub(crate) type ReplyTo<R, E> = oneshot::Sender<Quiet<Answer<R, E>>>;

/// The end of a handler's future.
pub(crate) enum HandlerEnd<S, R, E> {
    Returned {
        state: State<S>,
        recorded: Recorded,
        result: Outcome<R, E>,
    },
    Panicked(String),
    TimedOut(Duration),
    /// As [`TimedOut`](Self::TimedOut), while the instance was being stopped.
    StopCut(Duration),
}

/// The end of a handler of an interface.
pub(crate) type EndOf<I, R> = HandlerEnd<Living<I>, R, <I as StableInterface>::Error>;

/// A turn under way, whatever its message.
pub(crate) trait Turn<I: StableInterface>: Send {
    /// Polls the handler. When it has ended the turn is finished and answered, and this says what comes next.
    fn poll(&mut self, task: &mut TaskContext<'_>) -> Poll<Next<I>>;

    /// The time by which the job must be done.
    fn deadline(&mut self) -> Duration;

    /// The moment until which its caller waits, if that is a handler which still does; else `Duration::MAX`.
    fn caller_waits_until(&self) -> Duration;

    /// Tells its caller, which waits no longer, that the handler runs on.
    fn leave_caller(&mut self);

    /// Tells that one poll was not enough: the job will take a while.
    fn stays(&mut self);

    /// Ends it for running out of time.
    fn time_out(self: Box<Self>) -> Next<I>;
}

/// A message that waits for its turn.
pub(crate) trait Job<I: StableInterface>: Waiter + Send {
    /// Begins, the turn of the job having come.
    fn start(self: Box<Self>, slot: Arc<Slot<I>>, state: StateOf<I>, epoch: Epoch) -> Box<dyn Turn<I>>;

    /// Ends without a turn.
    fn refuse(self: Box<Self>, error: Refusal);

    /// The time for which it was to wait.
    fn given(&self) -> Duration;

    /// Asks for a place in the queue of a busy instance. If it was woken and another of its kind has that place, it waits in its
    /// shard's window, and is to be dropped: `false` says that.
    fn may_queue(&mut self) -> bool;
}

/// The time for which a message waits for its turn.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    /// Ends at a moment of the lease clock, so long after the message was sent. The queue's own limit bounds its place.
    Until(Duration, Duration),
    /// Does not end. Its place in the queue is bounded by something else than the queue's own limit.
    Endless,
}
