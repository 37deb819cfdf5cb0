//! Tasks that belong to an incarnation of an instance.
//!
//! A task starts when the effects of the handler that spawned it are durable, and is cancelled and waited for before the next
//! incarnation is built. It has no access to the instance but by [`InstanceRef::turn`] and [`InstanceRef::request`], which take
//! their place in the queue like any message and are refused once the incarnation has ended.

use std::fmt;
use std::future::Future;

use super::chain::Described;
use super::context::Context;
use super::job::Work;
use super::kind::InterfaceCore;
use super::life::{Life, Member};
use super::living::Home;
use super::recorded::{Output, hand_over};
use super::slot::Slot;
use super::turn::slot_of;
use super::{Handle, StableInterface};
use crate::error::{ContextError, Outcome, RequestError};
use crate::sync::Arc;

/// The handle that a task of an instance, spawned with [`Context::spawn`], has of that instance.
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

    pub(crate) fn core(&self) -> &Arc<InterfaceCore<I>> {
        &self.slot.interface
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
        let life = self.member.life().clone();
        if life.has_ended() {
            return Err(RequestError::Closed);
        }
        self.slot.interface.ask(&self.slot.id, TaskTurn { turn, life }).await
    }

    /// Sends a message to the instance, as [`Interface::request`](crate::Interface::request) does, as a turn of this task: for what
    /// has to await something.
    ///
    /// # Errors
    /// As [`turn`](Self::turn).
    pub async fn request<M>(&self, message: M) -> Result<<I as Handle<M>>::Reply, RequestError<I::Error>>
    where
        I: Handle<M>,
        M: Send + 'static,
    {
        let life = self.member.life().clone();
        if life.has_ended() {
            return Err(RequestError::Closed);
        }
        self.slot.interface.ask(&self.slot.id, TaskRequest { message, life }).await
    }

    /// Lets the instance count as idle, in spite of this task, until this guard and all others of the task are dropped.
    /// Passivation cancels the task.
    #[must_use = "the task counts as busy again when this is dropped"]
    pub fn park(&self) -> Parked {
        self.member.change(|state| state.parks += 1);
        self.slot.interface.host.task_rests(self.slot.shard);
        Parked(self.member.clone())
    }

    /// Completes when the host begins to drain, or to hand the instance over to another host; at once, if that has happened. From then on
    /// there is time to come to an end: a task that is not parked goes on, and its turns are served, for half of the drain's deadline at
    /// most, or the [handoff timeout](crate::HostBuilder::handoff_timeout).
    pub fn leaving(&self) -> impl Future<Output = ()> + Send + 'static + use<I> {
        let (host, shard) = (self.slot.interface.host.clone(), self.slot.shard);
        async move { host.wait_leaving(shard).await }
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
struct TaskTurn<F> {
    turn: F,
    life: Arc<Life>,
}

impl<I: StableInterface, R: Send + 'static, F> Work<I> for TaskTurn<F>
where
    F: FnOnce(&mut I, &mut Context) -> Result<R, I::Error> + Send + 'static,
{
    type Reply = R;
    const IS_OF_TASK: bool = true;

    async fn run(self, state: &mut Home<I>, cx: &mut Context) -> Outcome<R, I::Error> {
        // Asked again here: the incarnation may have ended while this waited for its turn.
        match state {
            Some(instance) if !self.life.has_ended() => Ok((self.turn)(instance, cx).map_err(RequestError::handler)?),
            _ => Err(RequestError::Closed.into()),
        }
    }
}

/// A message of a task to its own instance.
struct TaskRequest<M> {
    message: M,
    life: Arc<Life>,
}

impl<I: Handle<M>, M: Send + 'static> Work<I> for TaskRequest<M> {
    type Reply = <I as Handle<M>>::Reply;
    const IS_OF_TASK: bool = true;

    async fn run(self, state: &mut Home<I>, cx: &mut Context) -> Outcome<Self::Reply, I::Error> {
        match state {
            Some(instance) if !self.life.has_ended() => {
                Ok(instance.handle(cx, self.message).await.map_err(RequestError::handler)?)
            }
            _ => Err(RequestError::Closed.into()),
        }
    }
}

impl Context {
    /// Starts a task that belongs to this incarnation of the instance: cancelled, and waited for, before the next one is built
    /// and when the instance leaves memory or its host. It starts when this handler's effects are durable.
    ///
    /// ```
    /// # use stable_interfaces::{Context, ContextError, Handle, InstanceRef, StableInterface};
    /// # struct Feed { seen: u64 }
    /// # impl StableInterface for Feed { const NAME: &'static str = "feed"; type Error = ContextError; }
    /// # struct Follow;
    /// # async fn next_event() -> u64 { 1 }
    /// impl Handle<Follow> for Feed {
    ///     type Reply = ();
    ///     async fn handle(&mut self, cx: &mut Context, _: Follow) -> Result<(), ContextError> {
    ///         cx.spawn(|me: InstanceRef<Feed>| async move {
    ///             loop {
    ///                 let event = next_event().await;
    ///                 let handled = me.turn(move |feed, cx| {
    ///                     cx.put("seen", &(feed.seen + event))?;
    ///                     feed.seen += event;
    ///                     Ok(())
    ///                 });
    ///                 if handled.await.is_err() {
    ///                     return;
    ///                 }
    ///             }
    ///         })
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// [`ContextError::Unhandled`] if `I` is not the interface this context belongs to.
    pub fn spawn<I, F>(&mut self, task: impl FnOnce(InstanceRef<I>) -> F + Send + 'static) -> Result<(), ContextError>
    where
        I: StableInterface,
        F: Future<Output = ()> + Send + 'static,
    {
        let slot = slot_of::<I>(self).ok_or(ContextError::Unhandled("tasks of another interface".into()))?;
        self.output(Output::Spawn(hand_over(Box::new(move |member| Box::pin(task(InstanceRef::new(slot, member)))))));
        Ok(())
    }
}
