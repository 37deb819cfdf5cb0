//! Outputs of handlers on their way: to clients, to tasks, to whoever is told after a commit.

use super::{Hands, Left, Machine};
use crate::commit::gate::Ticket;
use crate::connection::{AnyLink, ConnectionId, Wakers};
use crate::instance::life::Life;
use crate::instance::queue::Waiter;
use crate::instance::recorded::{Output, Recorded};
use crate::sync::{Arc, OwnedSemaphorePermit};
use crate::tasks::TaskHandle;

impl<S, J: Waiter> Machine<S, J> {
    /// Lets the outputs of a handler go, behind the commits they depend on.
    ///
    /// They stay in `left`, for nothing of the application is called, dropped or woken here.
    pub(crate) fn release(&mut self, hands: &mut impl Hands<J>, left: &mut Left<S, J>, behind: Option<&Ticket>) {
        let Left { outputs, links, .. } = left;
        if outputs.is_empty() {
            return;
        }
        let cold = self.cold.get_or_insert_default();
        for output in outputs {
            match output {
                Output::Release(release) => release.release(behind.cloned()),
                Output::Connect(connection) => {
                    // The handler that accepted it may have closed it.
                    if let Some((link, permit)) = connection.take_if(|(link, _)| link.is_attached()) {
                        cold.connections.insert(link.id(), (link, permit));
                    }
                }
                Output::Disconnect(id) => {
                    links.extend(cold.connections.remove(id).map(|(link, _)| (link, Wakers::default())));
                }
                Output::AfterCommit(notify) => hands.after_commit(behind.cloned(), notify),
                Output::Spawn(task) => {
                    let life = cold.life.get_or_insert_default().clone();
                    let handle = hands.spawn(behind.cloned(), task, life);
                    cold.tasks.retain(|task| !task.has_ended());
                    cold.tasks.extend(handle);
                }
            }
        }
    }

    /// Undoes what a handler that failed, and whose instance stays, has let out at once.
    pub(super) fn take_back(&self, left: &mut Left<S, J>, recorded: &mut Recorded) {
        for output in recorded.outputs() {
            if let Output::Disconnect(id) = output
                && let Some((link, _)) = self.cold.as_ref().and_then(|cold| cold.connections.get(id))
            {
                left.links.push((link.clone(), link.stay_open()));
            }
        }
    }

    /// The client of a connection has closed it; the connection, if the instance did not know yet.
    pub(crate) fn client_left(&mut self, id: ConnectionId) -> Option<(Arc<dyn AnyLink>, OwnedSemaphorePermit)> {
        self.cold.as_mut()?.connections.remove(&id)
    }

    /// A task of this life has ended by itself: nothing of it is kept. `is_it` tells it from others.
    pub(crate) fn task_ended(&mut self, life: &Arc<Life>, is_it: impl Fn(&TaskHandle) -> bool) {
        if let Some(cold) = &mut self.cold
            && cold.life.as_ref().is_some_and(|current| Arc::ptr_eq(current, life))
        {
            cold.tasks.retain(|task| !is_it(task));
        }
    }
}
