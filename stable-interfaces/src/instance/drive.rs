//! The driver of a slot: keeps it busy and runs its messages one after the other until it is idle.
//!
//! The first polls happen where the message came from; what needs more moves to a task of the host, with the rest of the queue. While a
//! turn takes long, queued messages whose own time is over are refused.

use std::future::Future;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use super::StableInterface;
use super::job::Turn;
use super::slot::{Next, Slot};
use crate::sync::{Arc, Notify};

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

/// The point where a task of the host takes over.
pub(crate) enum Step<I: StableInterface> {
    /// A turn that was not done at once.
    Turn(Box<dyn Turn<I>>),
    /// The time between turns.
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
