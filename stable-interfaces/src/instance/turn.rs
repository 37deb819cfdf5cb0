//! One message's way through an instance.
//!
//! A turn is a boxed future that owns the instance's state and its [`Context`] while the handler runs and gives both back when
//! it ends. It is polled first where the message was sent; if that is not enough it moves, unchanged, to a task of the host. The
//! wait for a turn and the turn have a limit each: a message that is late has not begun and never does, and one that has begun
//! has its interface's whole time. A turn that panics or runs out of time is dropped with the state inside it: that is the reset. A turn is finished exactly
//! once, under the slot's lock, which commits what it recorded, puts the state back and says what comes next.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use tracing::field::Empty;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Span};

use super::StableInterface;
use super::answer::{Answer, Refusal};
use super::chain::{self, Chain, Deadline};
use super::context::Context;
use super::job::{EndOf, HandlerEnd, Job, Patience, ReplyTo, Turn, Work};
use super::living::{Home, Living, StateOf};
use super::queue::Waiter;
use super::slot::{Next, Slot};
use crate::error::{Outcome, RequestError};
use crate::quiet::{Quiet, drop_quietly, guarded, text_of};
use crate::shards::delivery::Delivery;
use crate::store::{Epoch, ShardId};
use crate::sync::Arc;

/// The slot of the instance that a context belongs to, if it is an `I`.
pub(crate) fn slot_of<I: StableInterface>(cx: &Context) -> Option<Arc<Slot<I>>> {
    (cx.instance().clone() as Arc<dyn Any + Send + Sync>).downcast().ok()
}

/// The instance, built and started if it is not in memory yet.
pub(crate) async fn awaken<'a, I: StableInterface>(
    state: &'a mut Home<I>,
    cx: &mut Context,
) -> Outcome<&'a mut I, I::Error> {
    if state.is_none() {
        let slot = slot_of::<I>(cx).expect("a message is handled by an instance of the interface it was sent to");
        let fresh = state.insert(Box::new(Living::new(slot.interface.build(&slot.id))));
        drop(slot);
        if let Err(error) = fresh.on_start(cx).await {
            drop_quietly(state.take());
            cx.note_failed_start(&error);
            return Err(RequestError::handler(error).into());
        }
        if let Err(error) = cx.require_lease() {
            drop_quietly(state.take());
            return Err(error);
        }
    }
    Ok(state.as_mut().expect("it was there or has just been put there"))
}

/// The header of a message, the same while it is queued and while it runs: its callers, limit, delivery and span.
pub(crate) struct Header {
    pub(crate) callers: Option<Arc<Chain>>,
    /// The time that its handler may take.
    pub(crate) limit: Duration,
    /// The alarm or message that woke the instance, if nobody waits for a reply.
    pub(crate) woken_by: Option<Delivery>,
    pub(crate) span: Span,
}

/// The span of one message, entered around each poll of its handler; inside the one it is sent from. Where nobody listens it
/// costs one look at a static.
#[inline(always)]
pub(crate) fn span_of<I: StableInterface>(id: &str, shard: ShardId, woken_by: Option<&Delivery>) -> Span {
    if LevelFilter::current() < Level::DEBUG { Span::none() } else { listened_span_of::<I>(id, shard, woken_by) }
}

/// As [`span_of`], where somebody may listen.
#[inline(never)]
fn listened_span_of<I: StableInterface>(id: &str, shard: ShardId, woken_by: Option<&Delivery>) -> Span {
    let span = tracing::debug_span!(
        "handle",
        interface = I::NAME,
        instance = id,
        shard = shard.0,
        alarm = Empty,
        message = Empty,
        attempt = Empty,
    );
    if let Some(wake) = woken_by.map(Delivery::wake)
        && !span.is_disabled()
    {
        span.record(wake.kind(), &**wake.id());
        span.record("attempt", wake.attempts().failed);
    }
    span
}

/// The future of a handler, owning the state it works on.
pub(crate) async fn handler<I: StableInterface, W: Work<I>>(
    slot: Arc<Slot<I>>,
    epoch: Epoch,
    mut state: StateOf<I>,
    work: Quiet<W>,
) -> EndOf<I, W::Reply> {
    let mut cx = Context::new(slot, epoch);
    let work = work.into_inner().expect("a message is there until it is handled");
    let result = work.run(state.place(), &mut cx).await;
    let result = if result.is_err() { cx.judge::<I, _>(result) } else { result };
    HandlerEnd::Returned { state, recorded: cx.recorded, result }
}

/// Puts a future where it stays. The place comes first: a future that is there already need not be moved there.
#[inline(always)]
pub(crate) fn boxed<F>(future: impl FnOnce() -> F) -> Pin<Box<F>> {
    let place = Box::new_uninit();
    Box::into_pin(Box::write(place, future()))
}

/// Polls a handler once: as the current link of the call chain, and with its panics caught. The slot comes back with the
/// outcome, so that the chain need not have a reference of its own. Inlined, so that the outcome is not moved once more.
#[inline(always)]
pub(crate) fn poll_handler<I: StableInterface, R>(
    future: Pin<&mut (impl Future<Output = EndOf<I, R>> + ?Sized)>,
    slot: Arc<Slot<I>>,
    callers: &mut Option<Arc<Chain>>,
    deadline: &mut Deadline,
    span: &Span,
    task: &mut TaskContext<'_>,
) -> (Arc<Slot<I>>, Poll<EndOf<I, R>>) {
    let mut polled = Poll::Pending;
    let instance: Arc<dyn Any + Send + Sync> = chain::enter(slot, callers, deadline, || {
        let poll = || {
            let _entered = span.enter();
            polled = future.poll(task);
        };
        if let Err(panic) = guarded(poll) {
            polled = Poll::Ready(HandlerEnd::Panicked(panic));
        }
    });
    (instance.downcast().expect("the chain gives back the instance it was given"), polled)
}

/// A turn under way with a handler of type `F`.
pub(crate) struct Running<I: StableInterface, R, F> {
    pub(crate) header: Header,
    pub(crate) slot: Arc<Slot<I>>,
    pub(crate) epoch: Epoch,
    /// The moment by which it must be done, by the lease clock; set when anybody needs to know, at the latest if the first poll is
    /// not enough.
    pub(crate) deadline: Deadline,
    /// Says whether it is `on_stop` that runs.
    pub(crate) is_stop: bool,
    /// `None` once it has ended: what a handler holds does not outlive it.
    pub(crate) future: Quiet<Pin<Box<F>>>,
    pub(crate) reply: Option<ReplyTo<R, I::Error>>,
}

impl<I: StableInterface, R, F> Running<I, R, F> {
    fn finish(&mut self, end: EndOf<I, R>) -> Next<I> {
        let slot = &self.slot;
        let mut woken_by = self.header.woken_by.take();
        if let Some(delivery) = &mut woken_by {
            delivery.handler_ended();
        }
        let (answer, next) = slot.finish(self.epoch, end, woken_by).into_parts();
        match self.reply.take() {
            Some(reply) => send(reply, answer),
            None => match answer.result {
                Err(error) if tracing::enabled!(Level::DEBUG) => {
                    let error = text_of(|| error.report());
                    tracing::debug!(instance = %chain::Described(&**slot), %error, "a message without a sender failed");
                }
                result => drop_quietly(result),
            },
        }
        next
    }
}

impl<I: StableInterface, R: Send + 'static, F: Future<Output = EndOf<I, R>> + Send> Turn<I> for Running<I, R, F> {
    fn poll(&mut self, task: &mut TaskContext<'_>) -> Poll<Next<I>> {
        let future = self.future.as_mut().expect("a turn that has ended is not polled again");
        let Header { callers, span, .. } = &mut self.header;
        match poll_handler(future.as_mut(), self.slot.clone(), callers, &mut self.deadline, span, task).1 {
            Poll::Pending => Poll::Pending,
            Poll::Ready(end) => {
                drop(self.future.take());
                Poll::Ready(self.finish(end))
            }
        }
    }

    fn deadline(&mut self) -> Duration {
        let (slot, limit) = (&self.slot, self.header.limit);
        self.deadline.get_or_insert_with(|| slot.moment_in(limit))
    }

    fn caller_waits_until(&self) -> Duration {
        match (&self.reply, &self.header.callers) {
            (Some(_), Some(callers)) => callers.waits_until(),
            _ => Duration::MAX,
        }
    }

    fn leave_caller(&mut self) {
        if let Some(reply) = self.reply.take() {
            let instance = chain::Described(&*self.slot);
            let cause =
                RequestError::Rejected(format!("{instance} has begun with it, and takes longer than this can wait"));
            let result = Err(RequestError::unknown(cause).into());
            send(reply, Answer::at_once(result));
        }
    }

    fn stays(&mut self) {
        if let Some(delivery) = &mut self.header.woken_by {
            delivery.lead();
        }
    }

    fn time_out(mut self: Box<Self>) -> Next<I> {
        let limit = self.header.limit;
        let end = if self.is_stop { HandlerEnd::StopCut(limit) } else { HandlerEnd::TimedOut(limit) };
        drop(self.future.take());
        self.finish(end)
    }
}

/// A message in the queue that asks for `W`.
pub(crate) struct Queued<I: StableInterface, W: Work<I>> {
    pub(crate) header: Header,
    pub(crate) work: Quiet<W>,
    pub(crate) patience: Patience,
    pub(crate) reply: Option<ReplyTo<W::Reply, I::Error>>,
}

impl<I: StableInterface, W: Work<I>> Queued<I, W> {
    /// A message to which nobody waits for a reply, and whose place is bounded by something else than the queue.
    pub(crate) fn untold(work: Quiet<W>, limit: Duration, woken_by: Option<Delivery>, span: Span) -> Box<Queued<I, W>> {
        let header = Header { callers: None, limit, woken_by, span };
        Box::new(Queued { header, work, patience: Patience::Endless, reply: None })
    }
}

impl<I: StableInterface, W: Work<I>> Job<I> for Queued<I, W> {
    fn start(self: Box<Self>, slot: Arc<Slot<I>>, state: StateOf<I>, epoch: Epoch) -> Box<dyn Turn<I>> {
        let Queued { mut header, work, reply, .. } = *self;
        let future = Quiet::new(boxed(|| handler(slot.clone(), epoch, state, work)));
        // However long it has waited, its handler has its whole time.
        let mut deadline = Deadline::NONE;
        if W::IS_STOP {
            (deadline, header.limit) = (slot.stop_deadline(), slot.interface.options.stop_timeout);
        }
        Box::new(Running { header, slot, epoch, deadline, is_stop: W::IS_STOP, future, reply })
    }

    fn refuse(self: Box<Self>, error: Refusal) {
        match (self.reply, self.work.as_ref()) {
            (Some(reply), _) => send(reply, Answer::at_once(Err(Box::new(error.into())))),
            (None, Some(work)) => work.refused(&error),
            (None, None) => {}
        }
    }

    fn given(&self) -> Duration {
        match self.patience {
            Patience::Until(_, given) => given,
            Patience::Endless => Duration::MAX,
        }
    }

    fn may_queue(&mut self) -> bool {
        self.header.woken_by.as_mut().is_none_or(Delivery::lead_or_turn_back)
    }
}

impl<I: StableInterface, W: Work<I>> Waiter for Queued<I, W> {
    fn waits_until(&self) -> Duration {
        match self.patience {
            Patience::Until(moment, _) => moment,
            Patience::Endless => Duration::MAX,
        }
    }

    fn holds_permit(&self) -> bool {
        matches!(self.patience, Patience::Endless)
    }

    fn is_drain(&self) -> bool {
        self.work.as_ref().is_some_and(Work::is_drain)
    }
}

/// Answers a sender. One that has gone away does not change what happened.
fn send<R, E>(reply: ReplyTo<R, E>, answer: Answer<R, E>) {
    // It is woken by its own executor.
    if let Err(panic) = guarded(|| drop(reply.send(Quiet::new(answer)))) {
        tracing::warn!(%panic, "a panic while a sender was woken");
    }
}
