//! The output gate of one incarnation of an instance.
//!
//! Every commit of an incarnation takes the next ticket here, in the order it entered the committer. An output produced when
//! tickets up to `n` were taken is released when `n` is settled and nothing up to `n` has failed. Once a ticket failed, every
//! later one fails too: memory never runs ahead of the store for anyone outside (the output gate of Durable Objects).

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::error::ContextError;
use crate::store::StoreError;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard};

/// The reason why a commit did not happen, or is not known to have happened.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    /// The shard has another owner. The commit did not happen.
    Fenced,
    /// The store did not take the commit. It did not happen.
    Store(Arc<StoreError>),
    /// The commit was sent and no answer came.
    Unknown,
}

impl From<Failure> for ContextError {
    fn from(failure: Failure) -> ContextError {
        match failure {
            Failure::Fenced => ContextError::Fenced,
            Failure::Store(error) => ContextError::Store(error),
            Failure::Unknown => ContextError::Unknown,
        }
    }
}

/// A place in the order of an incarnation's commits: what comes behind it waits for all up to it.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    gate: Arc<Gate>,
    number: u64,
}

impl Ticket {
    /// Waits until all commits up to this one are durable.
    pub(crate) async fn wait(&self) -> Result<(), Failure> {
        self.gate.wait(self.number).await.map_err(|(_, failure)| failure)
    }

    /// Waits until it is known whether all commits up to this one are durable, whoever has been left without an answer meanwhile.
    pub(crate) async fn known(&self) -> Result<(), Failure> {
        self.gate.wait_known(self.number).await.map_err(|(_, failure)| failure)
    }

    /// As [`wait`](Self::wait), and tells the number of the commit that failed.
    pub(crate) async fn wait_for_which(&self) -> Result<(), (u64, Failure)> {
        self.gate.wait(self.number).await
    }

    /// The place among the commits of its incarnation, from 1.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Says whether the other is of the same commit.
    pub(crate) fn is(&self, other: &Ticket) -> bool {
        self.number == other.number && Arc::ptr_eq(&self.gate, &other.gate)
    }

    /// Tells the outcome of this commit.
    pub(crate) fn settle(&self, outcome: Result<(), Failure>) {
        self.gate.settle(self.number, outcome);
    }

    /// Lets those who wait for an answer go with [`Failure::Unknown`]; the commit itself stays unsettled.
    pub(crate) fn leave_unanswered(&self) {
        self.gate.leave_unanswered(self.number);
    }

    /// Tells whether a commit of the incarnation has failed, so that none behind it may be sent.
    pub(crate) fn is_behind_failure(&self) -> bool {
        self.gate.has_failed()
    }

    /// Tells whether its outcome is known.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_within(self.gate.settled())
    }

    /// Tells whether it is settled, given how far its gate is.
    pub(crate) fn is_within(&self, settled: u64) -> bool {
        self.number <= settled
    }
}

/// Counts the commits of one incarnation and holds its outputs back until they are durable.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// Tickets taken. Rises under the lock that orders the commits of this incarnation.
    queued: AtomicU64,
    /// Tickets up to this one are durable, refused, or were never sent. Rises under the lock of `state`, once that and `has_failed` say what
    /// has failed up to there: whoever reads it, and then that nothing has, knows that all is durable.
    settled: AtomicU64,
    /// Set before `state.failed`, read without the lock where a message starts.
    has_failed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Tickets settled ahead of what is `settled`: withdrawn while an earlier one was still under way.
    early: Vec<u64>,
    /// Waiters up to this ticket have been told that the outcome is unknown.
    unanswered: u64,
    /// The first ticket that failed, and why. All later ones fail.
    failed: Option<(u64, Failure)>,
    /// Wakers of what waits for a ticket, and whether for its settlement rather than for an answer.
    waiting: Vec<(u64, Wait, Waker)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// A wait for an answer to give the caller: an unknown outcome is one.
    Answer,
    /// A wait until nothing is under way.
    Settled,
}

impl Gate {
    /// The next ticket. Call it under the lock that orders the commits of this incarnation.
    pub(crate) fn take_ticket(self: &Arc<Gate>) -> Ticket {
        self.ticket(self.queued.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// The ticket of this number, which was taken.
    pub(crate) fn ticket(self: &Arc<Gate>, number: u64) -> Ticket {
        Ticket { gate: self.clone(), number }
    }

    /// The ticket an output produced now waits for; `None` if everything is durable already.
    pub(crate) fn pending(self: &Arc<Gate>) -> Option<Ticket> {
        let queued = self.queued.load(Ordering::Acquire);
        let is_pending = self.settled() < queued || self.has_failed();
        is_pending.then(|| self.ticket(queued))
    }

    /// Tells whether a commit failed, so that this incarnation must not go on.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled() >= self.queued.load(Ordering::Acquire)
    }

    /// Tickets up to this one are settled.
    pub(crate) fn settled(&self) -> u64 {
        self.settled.load(Ordering::Acquire)
    }

    /// As [`Ticket::settle`]. Only failures may come ahead of earlier tickets.
    fn settle(&self, ticket: u64, outcome: Result<(), Failure>) {
        let mut state = self.state.lock();
        let mut settled = self.settled();
        if ticket == settled + 1 {
            settled = ticket;
            while let Some(i) = state.early.iter().position(|early| *early == settled + 1) {
                settled += 1;
                state.early.swap_remove(i);
            }
        } else if ticket > settled {
            state.early.push(ticket);
        }
        if let Err(failure) = outcome
            && state.failed.as_ref().is_none_or(|(failed, _)| ticket < *failed)
        {
            self.has_failed.store(true, Ordering::Release);
            state.failed = Some((ticket, failure));
        }
        self.settled.store(settled, Ordering::Release);
        let failed = state.failed.as_ref().map_or(u64::MAX, |(failed, _)| *failed);
        Self::wake(state, |ticket, wait| ticket <= settled || (wait == Wait::Answer && ticket >= failed));
    }

    /// As [`Ticket::leave_unanswered`].
    fn leave_unanswered(&self, ticket: u64) {
        let mut state = self.state.lock();
        state.unanswered = state.unanswered.max(ticket);
        let unanswered = state.unanswered;
        Self::wake(state, |ticket, wait| wait == Wait::Answer && ticket <= unanswered);
    }

    fn wake(mut state: MutexGuard<'_, State>, ready: impl Fn(u64, Wait) -> bool) {
        let mut ready = state.waiting.extract_if(.., |(ticket, wait, _)| ready(*ticket, *wait));
        // Mostly one caller waits: that takes no list.
        let (first, others) = (ready.next(), ready.collect::<Vec<_>>());
        // Woken tasks take this lock first thing.
        drop(state);
        for (_, _, waker) in first.into_iter().chain(others) {
            crate::quiet::wake(waker);
        }
    }

    /// As [`Ticket::wait`].
    fn wait(self: &Arc<Gate>, ticket: u64) -> impl Future<Output = Result<(), (u64, Failure)>> + Send + use<> {
        GateWait { gate: self.clone(), ticket, wait: Wait::Answer }
    }

    /// As [`Ticket::known`].
    fn wait_known(self: &Arc<Gate>, ticket: u64) -> impl Future<Output = Result<(), (u64, Failure)>> + Send + use<> {
        GateWait { gate: self.clone(), ticket, wait: Wait::Settled }
    }

    /// Waits until every ticket taken so far is settled, however it ended.
    pub(crate) async fn wait_settled(self: &Arc<Gate>) {
        let ticket = self.queued.load(Ordering::Acquire);
        let _ = self.wait_known(ticket).await;
    }
}

struct GateWait {
    gate: Arc<Gate>,
    ticket: u64,
    wait: Wait,
}

impl Future for GateWait {
    type Output = Result<(), (u64, Failure)>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.gate.settled() >= self.ticket && !self.gate.has_failed() {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.gate.state.lock();
        if self.gate.settled() >= self.ticket {
            return Poll::Ready(match &state.failed {
                Some((ticket, failure)) if *ticket <= self.ticket => Err((*ticket, failure.clone())),
                _ => Ok(()),
            });
        }
        if self.wait == Wait::Answer {
            match &state.failed {
                Some((ticket, failure)) if *ticket <= self.ticket => {
                    return Poll::Ready(Err((*ticket, failure.clone())));
                }
                _ if state.unanswered >= self.ticket => return Poll::Ready(Err((self.ticket, Failure::Unknown))),
                _ => {}
            }
        }
        match state
            .waiting
            .iter_mut()
            .find(|(ticket, wait, waker)| *ticket == self.ticket && *wait == self.wait && waker.will_wake(cx.waker()))
        {
            Some(_) => {}
            None => {
                if state.waiting.capacity() == 0 {
                    // One waits, mostly, and its place is kept for as long as the instance is in memory.
                    state.waiting.reserve_exact(1);
                }
                state.waiting.push((self.ticket, self.wait, cx.waker().clone()));
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn poll<F: Future>(future: F) -> Poll<F::Output> {
        std::pin::pin!(future).as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn an_output_waits_for_every_commit_queued_before_it() {
        let gate = Arc::new(Gate::default());
        assert!(gate.pending().is_none());
        let (first, second) = (gate.take_ticket(), gate.take_ticket());
        assert!(gate.pending().is_some_and(|ticket| ticket.is_within(2) && !ticket.is_within(1)));
        first.settle(Ok(()));
        assert!(poll(first.wait()).is_ready());
        assert!(poll(second.wait()).is_pending());
        second.settle(Ok(()));
        assert!(gate.pending().is_none());
    }

    #[test]
    fn after_a_failed_commit_every_later_output_fails_and_earlier_ones_do_not() {
        let gate = Arc::new(Gate::default());
        let (first, second, third) = (gate.take_ticket(), gate.take_ticket(), gate.take_ticket());
        first.settle(Ok(()));
        second.settle(Err(Failure::Fenced));
        assert!(matches!(poll(first.wait()), Poll::Ready(Ok(()))));
        assert!(matches!(poll(second.wait()), Poll::Ready(Err(Failure::Fenced))));
        third.settle(Ok(()));
        assert!(matches!(poll(third.wait()), Poll::Ready(Err(Failure::Fenced))));
        assert!(gate.has_failed());
    }

    #[test]
    fn a_commit_withdrawn_behind_one_under_way_fails_at_once_and_settles_after_it() {
        let gate = Arc::new(Gate::default());
        let (first, second) = (gate.take_ticket(), gate.take_ticket());
        second.settle(Err(Failure::Fenced));
        assert!(matches!(poll(second.wait()), Poll::Ready(Err(Failure::Fenced))));
        assert!(poll(first.wait()).is_pending());
        assert!(!gate.is_settled());
        first.settle(Ok(()));
        assert!(matches!(poll(first.wait()), Poll::Ready(Ok(()))));
        assert!(gate.is_settled());
    }

    #[test]
    fn an_unknown_outcome_answers_the_caller_but_does_not_settle() {
        let gate = Arc::new(Gate::default());
        let ticket = gate.take_ticket();
        ticket.leave_unanswered();
        assert!(matches!(poll(ticket.wait()), Poll::Ready(Err(Failure::Unknown))));
        assert!(poll(ticket.known()).is_pending() && poll(gate.wait_settled()).is_pending());
        ticket.settle(Ok(()));
        assert!(poll(gate.wait_settled()).is_ready());
        assert!(matches!(poll(ticket.known()), Poll::Ready(Ok(()))));
    }
}
