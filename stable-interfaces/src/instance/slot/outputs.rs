//! Outputs of handlers on their way: to clients, to tasks, to whoever is told after a commit.

use super::left::Left;
use super::{Inner, Slot};
use crate::commit::gate::Ticket;
use crate::connection::{ConnectionId, Wakers};
use crate::instance::life::{Life, Member, Membership};
use crate::instance::recorded::{HandedOver, Output, Recorded, TaskFuture};
use crate::instance::{StableInterface, chain};
use crate::quiet::{self, guarded};
use crate::sync::Arc;

impl<I: StableInterface> Slot<I> {
    /// Lets the outputs of a handler go, behind the commits they depend on.
    ///
    /// They stay in `left`, for nothing of the application is called, dropped or woken here.
    pub(super) fn release(self: &Arc<Self>, inner: &mut Inner<I>, left: &mut Left<I>, behind: Option<&Ticket>) {
        let Left { outputs, links, .. } = left;
        if outputs.is_empty() {
            return;
        }
        let host = &self.interface.host;
        let extra = inner.extra.get_or_insert_default();
        for output in outputs {
            match output {
                Output::Release(release) => release.release(behind.cloned()),
                Output::Connect(connection) => {
                    // The handler that accepted it may have closed it.
                    if let Some((link, permit)) = connection.take_if(|(link, _)| link.is_attached()) {
                        extra.connections.insert(link.id(), (link, permit));
                    }
                }
                Output::Disconnect(id) => {
                    links.extend(extra.connections.remove(id).map(|(link, _)| (link, Wakers::default())));
                }
                Output::AfterCommit(notify) => {
                    let (behind, slot, notify) = (behind.cloned(), self.clone(), notify.clone());
                    host.spawn_turn(async move {
                        if opens(behind).await
                            && let Some(notify) = take(&notify)
                            && let Err(panic) = guarded(notify)
                        {
                            let instance = chain::Described(&*slot);
                            tracing::error!(%instance, %panic, "what was to run after a commit panicked");
                        }
                    });
                }
                Output::Spawn(task) => {
                    let life = extra.life.get_or_insert_default().clone();
                    let (behind, slot, task) = (behind.cloned(), self.clone(), task.clone());
                    let membership = Membership(Arc::new(Member::new(life)));
                    let handle = host.spawn_instance_task(async move {
                        // Built here: it is the application's code, and the slot's lock is free here.
                        if opens(behind).await
                            && let Some(task) = take(&task)
                            && let Err(panic) = run_task(task, membership.0.clone()).await
                        {
                            tracing::error!(instance = %chain::Described(&*slot), %panic, "a task of an instance panicked");
                        }
                        let life = membership.0.life().clone();
                        drop(membership);
                        slot.task_ended(&life);
                    });
                    extra.tasks.retain(|task| !task.has_ended());
                    extra.tasks.extend(handle);
                }
            }
        }
    }

    /// Undoes what a handler that failed, and whose instance stays, has let out at once.
    pub(super) fn take_back(inner: &Inner<I>, left: &mut Left<I>, recorded: &mut Recorded) {
        for output in recorded.outputs() {
            if let Output::Disconnect(id) = output
                && let Some((link, _)) = inner.extra.as_ref().and_then(|extra| extra.connections.get(id))
            {
                left.links.push((link.clone(), link.stay_open()));
            }
        }
    }

    /// The client of a connection has closed it; whether the instance did not know yet.
    pub(crate) fn client_left(&self, id: ConnectionId) -> bool {
        let mut inner = self.inner.lock();
        let left = inner.extra.as_mut().and_then(|extra| extra.connections.remove(&id));
        drop(inner);
        left.is_some()
    }

    /// A task has ended by itself: nothing of it is kept.
    fn task_ended(&self, life: &Arc<Life>) {
        self.interface.host.task_rested.notify_one();
        if let Some(extra) = &mut self.inner.lock().extra
            && extra.life.as_ref().is_some_and(|current| Arc::ptr_eq(current, life))
        {
            extra.tasks.retain(|task| !task.is_current());
        }
    }
}

/// Waits for the commits up to a ticket; whether they became durable.
async fn opens(behind: Option<Ticket>) -> bool {
    match behind {
        Some(ticket) => ticket.wait().await.is_ok(),
        None => true,
    }
}

/// The work that a task was handed over, if nobody has taken it yet.
fn take<T>(handed_over: &HandedOver<T>) -> Option<T> {
    let taken = handed_over.lock().take();
    taken.into_inner()
}

/// Builds a task of the application's and runs it to its end.
async fn run_task(task: impl FnOnce(Arc<Member>) -> TaskFuture, member: Arc<Member>) -> Result<(), String> {
    let task = guarded(|| task(member))?;
    quiet::run(task).await
}
