//! Tasks that belong to an incarnation of an instance.
//!
//! A task starts when the effects of the handler that spawned it are durable, and is cancelled and waited for before the next
//! incarnation is built. It has no access to the instance but by [`InstanceRef::turn`], which takes its place in the queue like any
//! message and is refused once the incarnation has ended.

use std::fmt;
use std::future::Future;

use super::StableInterface;
use super::chain::Described;
use super::context::Context;
use super::slot::Slot;
use super::turn::Work;
use crate::error::{Outcome, RequestError};
use crate::shared::Health;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex};

/// One incarnation, as what belongs to it sees it.
#[derive(Debug, Default)]
pub(crate) struct Life {
    has_ended: AtomicBool,
    /// Tasks that are not parked: while there are any, the instance is not idle.
    busy: AtomicUsize,
}

impl Life {
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire) > 0
    }
}

/// One task of an incarnation: busy while it exists and is not parked.
#[derive(Debug)]
pub(crate) struct Member {
    life: Arc<Life>,
    state: Mutex<MemberState>,
}

#[derive(Debug, Default)]
struct MemberState {
    /// How many guards keep it parked.
    parks: usize,
    has_ended: bool,
}

impl MemberState {
    fn is_busy(&self) -> bool {
        self.parks == 0 && !self.has_ended
    }
}

impl Member {
    pub(crate) fn new(life: Arc<Life>) -> Member {
        life.busy.fetch_add(1, Ordering::AcqRel);
        Member { life, state: Mutex::default() }
    }

    pub(crate) fn life(&self) -> &Arc<Life> {
        &self.life
    }

    fn change(&self, change: impl FnOnce(&mut MemberState)) {
        let mut state = self.state.lock();
        let was_busy = state.is_busy();
        change(&mut state);
        match (was_busy, state.is_busy()) {
            (true, false) => drop(self.life.busy.fetch_sub(1, Ordering::AcqRel)),
            (false, true) => drop(self.life.busy.fetch_add(1, Ordering::AcqRel)),
            _ => {}
        }
    }
}

/// Ends a task's part in its incarnation when the task is dropped, whoever may still hold its [`InstanceRef`].
pub(crate) struct Membership(pub(crate) Arc<Member>);

impl Drop for Membership {
    fn drop(&mut self) {
        self.0.change(|state| state.has_ended = true);
    }
}

/// What a task of an instance, spawned with [`Context::spawn`], has of that instance.
pub struct InstanceRef<I: StableInterface> {
    slot: Arc<Slot<I>>,
    member: Arc<Member>,
}

impl<I: StableInterface> Clone for InstanceRef<I> {
    fn clone(&self) -> InstanceRef<I> {
        InstanceRef { slot: self.slot.clone(), member: self.member.clone() }
    }
}

impl<I: StableInterface> fmt::Debug for InstanceRef<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstanceRef({})", Described(&*self.slot))
    }
}

impl<I: StableInterface> InstanceRef<I> {
    pub(crate) fn new(slot: Arc<Slot<I>>, member: Arc<Member>) -> InstanceRef<I> {
        InstanceRef { slot, member }
    }

    /// The ID of the instance.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.slot.id
    }

    /// Runs `turn` on the instance: after the messages that wait already, with nothing beside it, and committed like a handler's
    /// effects before this returns.
    ///
    /// # Errors
    /// [`RequestError::Closed`] if this task's incarnation has ended: nothing happened. Else as
    /// [`Interface::request`](crate::Interface::request).
    pub async fn turn<R: Send + 'static>(
        &self,
        turn: impl FnOnce(&mut I, &mut Context) -> Result<R, I::Error> + Send + 'static,
    ) -> Result<R, RequestError<I::Error>> {
        let life = self.member.life.clone();
        if life.has_ended() {
            return Err(RequestError::Closed);
        }
        self.slot.interface.ask(&self.slot.id, Turn { turn, life }).await
    }

    /// Lets the instance count as idle, in spite of this task, until this guard and all others of the task are dropped.
    /// Passivation cancels the task.
    #[must_use = "the task counts as busy again when this is dropped"]
    pub fn park(&self) -> Parked {
        self.member.change(|state| state.parks += 1);
        self.slot.interface.host.task_rested.notify_one();
        Parked(self.member.clone())
    }

    /// Completes when the host begins to drain; at once, if that has happened. From then on there is time to come to an end: a
    /// task that is not parked goes on, and its turns are served, for half of the drain's deadline at most.
    pub fn leaving(&self) -> impl Future<Output = ()> + Send + 'static + use<I> {
        let host = self.slot.interface.host.clone();
        async move { host.wait_for(Health::Draining).await }
    }
}

/// A task of an instance that only waits. See [`InstanceRef::park`].
pub struct Parked(Arc<Member>);

impl fmt::Debug for Parked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Parked")
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.0.change(|state| state.parks -= 1);
    }
}

/// A synchronous turn of a task.
struct Turn<F> {
    turn: F,
    life: Arc<Life>,
}

impl<I: StableInterface, R: Send + 'static, F> Work<I> for Turn<F>
where
    F: FnOnce(&mut I, &mut Context) -> Result<R, I::Error> + Send + 'static,
{
    type Reply = R;
    const IS_OF_TASK: bool = true;

    async fn run(self, state: &mut Option<Box<I>>, cx: &mut Context) -> Outcome<R, I::Error> {
        // Asked again here: the incarnation may have ended while this waited for its turn.
        match state {
            Some(instance) if !self.life.has_ended() => Ok((self.turn)(instance, cx).map_err(RequestError::handler)?),
            _ => Err(RequestError::Closed.into()),
        }
    }
}
