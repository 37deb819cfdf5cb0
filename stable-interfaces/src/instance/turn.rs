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
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use tracing::Span;
use tracing::field::Empty;

use super::StableInterface;
use super::chain::{self, Chain, Deadline};
use super::context::{Context, Recorded};
use super::queue::Waiter;
use super::slot::{Next, Slot};
use crate::commit::gate::Ticket;
use crate::error::{ContextError, Outcome, RequestError};
use crate::quiet::{Quiet, drop_quietly, guarded, text_of};
use crate::shards::delivery::Delivery;
use crate::store::{Epoch, ShardId, StoreError};
use crate::sync::{Arc, Notify, oneshot};

/// An instance, if there is one in memory.
pub(crate) type State<I> = Quiet<Box<I>>;

/// What a message asks of an instance.
pub(crate) trait Work<I: StableInterface>: Send + 'static {
    type Reply: Send + 'static;

    /// Says whether it lets the instance leave memory: then the limit of `on_stop` is its own, and not that of handlers.
    const IS_STOP: bool = false;

    /// Says whether a task of the instance asks for it: a host that drains serves that while it waits for such tasks.
    const IS_OF_TASK: bool = false;

    /// Says whether it does so because the host drains: one at a time waits for that.
    fn is_drain(&self) -> bool {
        false
    }

    /// Does it. `state` is the instance if it is in memory; [`awaken`] builds it where it is needed.
    fn run(
        self,
        state: &mut Option<Box<I>>,
        cx: &mut Context,
    ) -> impl Future<Output = Outcome<Self::Reply, I::Error>> + Send;
}

/// The instance, built and started if it is not in memory yet.
pub(crate) async fn awaken<'a, I: StableInterface>(
    state: &'a mut Option<Box<I>>,
    cx: &mut Context,
) -> Outcome<&'a mut I, I::Error> {
    if state.is_none() {
        let slot = cx.slot::<I>().expect("a message is handled by an instance of the interface it was sent to");
        let fresh = state.insert(Box::new(slot.interface.build(&slot.id)));
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

/// A number that no commit has.
pub(crate) const NO_COMMIT: u64 = u64::MAX;

impl<R, E> Answer<R, E> {
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

pub(crate) type AnswerOf<I, W> = Answer<<W as Work<I>>::Reply, <I as StableInterface>::Error>;
pub(crate) type ReplyTo<R, E> = oneshot::Sender<Quiet<Answer<R, E>>>;

/// How a handler's future ended.
pub(crate) enum Ending<I: StableInterface, R> {
    Returned {
        state: State<I>,
        recorded: Recorded,
        result: Outcome<R, I::Error>,
    },
    Panicked(String),
    TimedOut(Duration),
    /// As [`TimedOut`](Self::TimedOut), while the instance was being stopped.
    StopCut(Duration),
}

/// What surrounds a handler: all that is not inside its future.
pub(crate) struct Around<I: StableInterface> {
    pub(crate) slot: Arc<Slot<I>>,
    pub(crate) epoch: Epoch,
    pub(crate) callers: Option<Arc<Chain>>,
    /// The moment by which it must be done, by the lease clock; set when anybody needs to know, at the latest if the first poll is
    /// not enough.
    pub(crate) deadline: Deadline,
    /// The time that it may take.
    pub(crate) limit: Duration,
    /// What woke the instance, if nobody waits for a reply.
    pub(crate) woken_by: Option<Delivery>,
    /// Says whether it is `on_stop` that runs.
    pub(crate) is_stop: bool,
    pub(crate) span: Span,
}

/// The span of one message, entered around each poll of its handler; inside the one it is sent from. Where nobody listens it
/// costs one look at a static.
pub(crate) fn span_of<I: StableInterface>(id: &str, shard: ShardId, woken_by: Option<&Delivery>) -> Span {
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
    mut state: State<I>,
    work: Quiet<W>,
) -> Ending<I, W::Reply> {
    let mut cx = Context::new(slot, epoch);
    let work = work.into_inner().expect("a message is there until it is handled");
    let result = work.run(state.place(), &mut cx).await;
    let result = if result.is_err() { cx.judge::<I, _>(result) } else { result };
    Ending::Returned { state, recorded: cx.recorded, result }
}

/// Polls a handler once: as the current link of the call chain, and with its panics caught. The slot comes back with the
/// outcome, so that the chain need not have a reference of its own. Inlined, so that the outcome is not moved once more.
#[inline(always)]
pub(crate) fn poll_handler<I: StableInterface, R>(
    future: Pin<&mut (impl Future<Output = Ending<I, R>> + ?Sized)>,
    slot: Arc<Slot<I>>,
    callers: &mut Option<Arc<Chain>>,
    deadline: &mut Deadline,
    span: &Span,
    task: &mut TaskContext<'_>,
) -> (Arc<Slot<I>>, Poll<Ending<I, R>>) {
    let mut polled = Poll::Pending;
    let instance: Arc<dyn Any + Send + Sync> = chain::enter(slot, callers, deadline, || {
        let poll = || {
            let _entered = span.enter();
            polled = future.poll(task);
        };
        if let Err(panic) = guarded(poll) {
            polled = Poll::Ready(Ending::Panicked(panic));
        }
    });
    (instance.downcast().expect("the chain gives back the instance it was given"), polled)
}

/// A turn under way, whatever its message.
pub(crate) trait Turn<I: StableInterface>: Send {
    /// Polls the handler. When it has ended the turn is finished and answered, and this says what comes next.
    fn poll(&mut self, task: &mut TaskContext<'_>) -> Poll<Next<I>>;

    /// By when it must be done.
    fn deadline(&mut self) -> Duration;

    /// The moment until which its caller waits, if that is a handler which still does; else `Duration::MAX`.
    fn caller_waits_until(&self) -> Duration;

    /// Tells its caller, which waits no longer, that the handler runs on.
    fn leave_caller(&mut self);

    /// Its first poll was not enough: it will take a while.
    fn stays(&mut self);

    /// Ends it for running out of time.
    fn time_out(self: Box<Self>) -> Next<I>;
}

/// A turn under way with a handler of type `F`.
pub(crate) struct Running<I: StableInterface, R, F> {
    pub(crate) around: Around<I>,
    /// `None` once it has ended: what a handler holds does not outlive it.
    pub(crate) future: Quiet<Pin<Box<F>>>,
    pub(crate) reply: Option<ReplyTo<R, I::Error>>,
}

impl<I: StableInterface, R, F> Running<I, R, F> {
    fn finish(&mut self, ending: Ending<I, R>) -> Next<I> {
        let Around { slot, epoch, woken_by, .. } = &mut self.around;
        let mut woken_by = woken_by.take();
        if let Some(delivery) = &mut woken_by {
            delivery.handler_ended();
        }
        let (answer, next) = slot.finish(*epoch, ending, woken_by);
        match self.reply.take() {
            Some(reply) => send(reply, answer),
            None => match answer.result {
                Err(error) if tracing::enabled!(tracing::Level::DEBUG) => {
                    let error = text_of(|| error.report());
                    tracing::debug!(instance = %chain::Described(&**slot), %error, "a message without a sender failed");
                }
                result => drop_quietly(result),
            },
        }
        next
    }
}

impl<I: StableInterface, R: Send + 'static, F: Future<Output = Ending<I, R>> + Send> Turn<I> for Running<I, R, F> {
    fn poll(&mut self, task: &mut TaskContext<'_>) -> Poll<Next<I>> {
        let future = self.future.as_mut().expect("a turn that has ended is not polled again");
        let Around { slot, callers, deadline, span, .. } = &mut self.around;
        match poll_handler(future.as_mut(), slot.clone(), callers, deadline, span, task).1 {
            Poll::Pending => Poll::Pending,
            Poll::Ready(ending) => {
                drop(self.future.take());
                Poll::Ready(self.finish(ending))
            }
        }
    }

    fn deadline(&mut self) -> Duration {
        let Around { slot, deadline, limit, .. } = &mut self.around;
        deadline.get_or_insert_with(|| slot.moment_in(*limit))
    }

    fn caller_waits_until(&self) -> Duration {
        match (&self.reply, &self.around.callers) {
            (Some(_), Some(callers)) => callers.waits_until(),
            _ => Duration::MAX,
        }
    }

    fn leave_caller(&mut self) {
        if let Some(reply) = self.reply.take() {
            let instance = chain::Described(&*self.around.slot);
            let cause =
                RequestError::Rejected(format!("{instance} has begun with it, and takes longer than this can wait"));
            let result = Err(RequestError::unknown(cause).into());
            send(reply, Answer { result, behind: None, interim: NO_COMMIT });
        }
    }

    fn stays(&mut self) {
        if let Some(delivery) = &mut self.around.woken_by {
            delivery.lead();
        }
    }

    fn time_out(mut self: Box<Self>) -> Next<I> {
        let Around { limit, is_stop, .. } = self.around;
        let ending = if is_stop { Ending::StopCut(limit) } else { Ending::TimedOut(limit) };
        drop(self.future.take());
        self.finish(ending)
    }
}

/// A message that waits for its turn.
pub(crate) trait Job<I: StableInterface>: Waiter + Send {
    /// Its turn has come.
    fn start(self: Box<Self>, slot: Arc<Slot<I>>, state: State<I>, epoch: Epoch) -> Box<dyn Turn<I>>;

    /// It will not have one.
    fn refuse(self: Box<Self>, error: Refusal);

    /// The time for which it was to wait.
    fn given(&self) -> Duration;

    /// As [`Work::is_drain`].
    fn is_drain(&self) -> bool;

    /// Asks for a place in the queue of a busy instance. If it was woken and another of its kind has that place, it waits in its
    /// shard's window, and is to be dropped: `false` says that.
    fn may_queue(&mut self) -> bool;
}

/// Why a waiting message never had its turn.
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

/// The time for which a message waits for its turn.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    /// Ends at a moment of the lease clock, so long after the message was sent. The queue's own limit bounds its place.
    Until(Duration, Duration),
    /// Does not end. Its place in the queue is bounded by something else than the queue's own limit.
    Endless,
}

/// A waiting message that asks for `W`.
pub(crate) struct Waiting<I: StableInterface, W: Work<I>> {
    pub(crate) work: Quiet<W>,
    pub(crate) callers: Option<Arc<Chain>>,
    pub(crate) patience: Patience,
    /// The time that its handler may take.
    pub(crate) limit: Duration,
    pub(crate) woken_by: Option<Delivery>,
    pub(crate) span: Span,
    pub(crate) reply: Option<ReplyTo<W::Reply, I::Error>>,
}

impl<I: StableInterface, W: Work<I>> Job<I> for Waiting<I, W> {
    fn start(self: Box<Self>, slot: Arc<Slot<I>>, state: State<I>, epoch: Epoch) -> Box<dyn Turn<I>> {
        let Waiting { work, callers, limit, woken_by, span, reply, .. } = *self;
        let future = Quiet::new(Box::pin(handler(slot.clone(), epoch, state, work)));
        // However long it has waited, its handler has its whole time.
        let (deadline, limit) = match W::IS_STOP {
            true => (slot.stop_deadline(), slot.interface.options.stop_timeout),
            false => (Deadline::NONE, limit),
        };
        let is_stop = W::IS_STOP;
        let around = Around { slot, epoch, callers, deadline, limit, woken_by, is_stop, span };
        Box::new(Running { around, future, reply })
    }

    fn refuse(self: Box<Self>, error: Refusal) {
        if let Some(reply) = self.reply {
            send(reply, Answer { result: Err(Box::new(error.into())), behind: None, interim: NO_COMMIT });
        }
    }

    fn given(&self) -> Duration {
        match self.patience {
            Patience::Until(_, given) => given,
            Patience::Endless => Duration::MAX,
        }
    }

    fn is_drain(&self) -> bool {
        self.work.as_ref().is_some_and(Work::is_drain)
    }

    fn may_queue(&mut self) -> bool {
        self.woken_by.as_mut().is_none_or(Delivery::lead_or_turn_back)
    }
}

impl<I: StableInterface, W: Work<I>> Waiter for Waiting<I, W> {
    fn waits_until(&self) -> Duration {
        match self.patience {
            Patience::Until(moment, _) => moment,
            Patience::Endless => Duration::MAX,
        }
    }

    fn holds_permit(&self) -> bool {
        matches!(self.patience, Patience::Endless)
    }
}

/// At most this many queued messages are handled by the task of another message's sender.
const MAX_INLINE: usize = 64;

/// Runs queued messages on the caller's task, one poll each; the first that needs more moves to a task of the host, with the
/// rest of the queue.
pub(crate) fn run_inline<I: StableInterface>(slot: &Arc<Slot<I>>, mut next: Next<I>) {
    for _ in 0..MAX_INLINE {
        match next {
            Next::Idle => return,
            Next::Settle(_) => break,
            Next::Run(job, state, epoch) => {
                let mut turn = job.start(slot.clone(), state, epoch);
                match first_poll(|task| turn.poll(task)) {
                    Poll::Ready(after) => next = after,
                    Poll::Pending => {
                        turn.stays();
                        return drive(slot, Step::Turn(turn));
                    }
                }
            }
        }
    }
    drive(slot, Step::Next(next));
}

/// Where a task of the host takes over.
pub(crate) enum Step<I: StableInterface> {
    /// With a turn that was not done at once.
    Turn(Box<dyn Turn<I>>),
    /// Between turns.
    Next(Next<I>),
}

/// Hands a busy slot to a task of the host, which runs until the slot is idle.
pub(crate) fn drive<I: StableInterface>(slot: &Arc<Slot<I>>, mut step: Step<I>) {
    if matches!(step, Step::Next(Next::Idle)) {
        return;
    }
    slot.stays_busy();
    let slot = slot.clone();
    let host = slot.interface.host.clone();
    host.spawn_turn(async move {
        let sooner = Arc::new(Notify::new());
        step = match step {
            // The lease was asked where the message came from, and that may have been long ago.
            Step::Next(Next::Run(job, state, _)) if !slot.interface.host.lease_holds() => {
                Step::Next(slot.refuse_next(job, state))
            }
            step => step,
        };
        loop {
            let next = match step {
                Step::Turn(turn) => run_turn(&slot, turn, &sooner).await,
                Step::Next(next) => next,
            };
            step = match next {
                Next::Idle => return,
                Next::Run(job, state, epoch) => Step::Turn(job.start(slot.clone(), state, epoch)),
                Next::Settle(ended) => {
                    while_watching(&slot, &sooner, Duration::MAX, ended.wait()).await;
                    Step::Next(slot.settled())
                }
            };
        }
    });
}

/// Runs one turn to its end or its deadline.
async fn run_turn<I: StableInterface>(
    slot: &Arc<Slot<I>>,
    mut turn: Box<dyn Turn<I>>,
    sooner: &Arc<Notify>,
) -> Next<I> {
    if let Poll::Ready(next) = std::future::poll_fn(|task| Poll::Ready(turn.poll(task))).await {
        return next;
    }
    let deadline = turn.deadline();
    loop {
        let until = deadline.min(turn.caller_waits_until());
        let ended = std::future::poll_fn(|task| turn.poll(task));
        match while_watching(slot, sooner, until, ended).await {
            Some(next) => return next,
            None if until < deadline => turn.leave_caller(),
            None => return turn.time_out(),
        }
    }
}

/// Waits for `work` until `deadline`, and refuses queued messages whose own deadlines pass meanwhile.
async fn while_watching<I: StableInterface, T>(
    slot: &Arc<Slot<I>>,
    sooner: &Arc<Notify>,
    deadline: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    let clock = &slot.interface.host.clock;
    let mut work = std::pin::pin!(work);
    let result = loop {
        let now = clock.elapsed();
        if now >= deadline {
            break None;
        }
        let next_look = slot.expire_queued(now, sooner).min(deadline);
        tokio::select! { biased;
            done = &mut work => break Some(done),
            () = sooner.notified() => {}
            () = clock.sleep(next_look.saturating_sub(now)) => {}
        }
    };
    slot.stop_watching();
    result
}

/// Polls a handler for the first time, with nobody to wake: if it is not done, a task of the host polls it again at once.
#[inline]
pub(crate) fn first_poll<T>(poll: impl FnOnce(&mut TaskContext<'_>) -> T) -> T {
    poll(&mut TaskContext::from_waker(Waker::noop()))
}

/// Answers a sender. One that has gone away does not change what happened.
fn send<R, E>(reply: ReplyTo<R, E>, answer: Answer<R, E>) {
    // It is woken by its own executor.
    if let Err(panic) = guarded(|| drop(reply.send(Quiet::new(answer)))) {
        tracing::warn!(%panic, "a panic while a sender was woken");
    }
}
