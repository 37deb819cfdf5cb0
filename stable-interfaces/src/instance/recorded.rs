//! The record of one handler, until its turn ends: effects to commit, outputs to let out, and how the turn is to end.
//!
//! Nothing here is done yet. The slot takes it apart when the turn ends: effects become a commit, and outputs wait behind it.

use std::future::Future;
use std::pin::Pin;

use super::life::Member;
use crate::commit::effects::{Effects, Mark};
use crate::commit::gate::Ticket;
use crate::connection::{AnyLink, Closed, ConnectionId};
use crate::error::ContextError;
use crate::quiet::Quiet;
use crate::shards::wake::Wake;
use crate::store::{Op, StoreError};
use crate::sync::{Arc, Mutex, OwnedSemaphorePermit};

/// An output of a handler besides its reply; kept in the order in which it let them out. It takes effect when the handler's effects are
/// queued for their commit, and reaches others when they are durable.
pub(crate) enum Output {
    /// Something for a client.
    Release(Box<dyn Release>),
    /// A new connection of the instance, until the instance has it.
    Connect(Option<(Arc<dyn AnyLink>, OwnedSemaphorePermit)>),
    /// The instance closes a connection.
    Disconnect(ConnectionId),
    /// Runs once everything is durable.
    AfterCommit(HandedOver<Box<dyn FnOnce() + Send>>),
    /// A task of the incarnation, started once everything is durable.
    Spawn(HandedOver<TaskWork>),
}

/// Something for a client, on its way to it.
pub(crate) trait Release: Send {
    /// Hands it over, to be taken once what it depends on is durable. Called under the slot's lock, so whatever must be dropped or
    /// woken now stays in here.
    fn release(&mut self, behind: Option<Ticket>);

    /// Wakes whoever waits for it.
    fn wake(&mut self);
}

/// Something of the application that a task takes. Whoever has handed it over keeps it too, until no lock is held: should the
/// task be dropped at once, that does not drop the application's.
pub(crate) type HandedOver<T> = Arc<Mutex<Quiet<T>>>;

/// Makes the future of a task.
pub(crate) type TaskWork = Box<dyn FnOnce(Arc<Member>) -> TaskFuture + Send>;

pub(crate) type TaskFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The effects and outputs of a handler. Small, for it is moved around with the result of each handler.
#[derive(Default)]
pub(crate) struct Recorded(pub(crate) Option<Box<Cold>>);

/// Rarely used fields, boxed so that what a handler leaves is small.
#[derive(Default)]
pub(crate) struct Cold {
    /// Tells whether anything was recorded, committed or not.
    pub(crate) has_recorded: bool,
    pub(crate) holds_alarm: bool,
    /// Tells whether the instance asked to leave memory.
    pub(crate) wants_passivation: bool,
    /// The state of its enlistments in transactions.
    pub(crate) enlisted: Enlisted,
    /// The alarm or message that its handler is to complete, until that is recorded or done.
    pub(crate) wake: Option<Wake>,
    pub(crate) effects: Effects,
    /// Never locked, only reached through `&mut`: outputs need not be `Sync`, and a shared `Context` must be.
    pub(crate) outputs: Mutex<Vec<Output>>,
    /// The reason why this incarnation ends with this turn, whatever comes of it.
    pub(crate) ends: Option<Closed>,
    /// The reason why `on_start` failed.
    pub(crate) failed_start: Option<String>,
    /// The error of the handler refuses one client that asked to be connected, and nobody else.
    pub(crate) refuses_client: bool,
    /// The failure of the last read of the store.
    pub(crate) failed_read: Option<Arc<StoreError>>,
    /// Tells whether the handler has made a part of its effects durable before its end.
    pub(crate) has_committed: bool,
    /// The number of processes that died while what woke the instance was being handled.
    pub(crate) crashes: u32,
}

/// The state of a handler's enlistments in transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Enlisted {
    /// None is under way.
    #[default]
    None,
    /// The effects are on their way into a transaction.
    UnderWay,
    /// One was the last commit, and has completed what woke the handler.
    Completed,
    /// The handler has turned away from one whose outcome it does not know: it must not succeed.
    Cut,
}

impl Recorded {
    /// Tells whether the handler did nothing but change its memory.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Tells whether anything was recorded, committed or not.
    pub(crate) fn has_recorded(&self) -> bool {
        self.0.as_ref().is_some_and(|cold| cold.has_recorded)
    }

    pub(crate) fn holds_alarm(&self) -> bool {
        self.0.as_ref().is_some_and(|cold| cold.holds_alarm)
    }

    /// Tells whether the instance asked to leave memory.
    pub(crate) fn wants_passivation(&self) -> bool {
        self.0.as_ref().is_some_and(|cold| cold.wants_passivation)
    }

    /// The operations recorded since the last commit.
    pub(crate) fn ops(&self) -> &[Op] {
        self.0.as_ref().map_or(&[], |cold| cold.effects.ops())
    }

    pub(crate) fn take_ops(&mut self) -> Vec<Op> {
        self.0.as_mut().map(|cold| cold.effects.take()).unwrap_or_default()
    }

    /// The outputs that the handler would have, in order.
    pub(crate) fn outputs(&mut self) -> &[Output] {
        self.0.as_mut().map_or(&[], |cold| cold.outputs.get_mut().as_slice())
    }

    /// The outputs of the handler, in order.
    pub(crate) fn take_outputs(&mut self) -> Vec<Output> {
        self.0.as_mut().map(|cold| std::mem::take(cold.outputs.get_mut())).unwrap_or_default()
    }

    /// The reason why this incarnation ends with this turn.
    pub(crate) fn take_end(&mut self) -> Option<Closed> {
        self.0.as_mut()?.ends.take()
    }

    /// The reason why `on_start` failed.
    pub(crate) fn take_failed_start(&mut self) -> Option<String> {
        self.0.as_mut()?.failed_start.take()
    }

    /// The failure with which the store refused the handler, if that is what the handler fails with, and nothing of it has happened: its error holds
    /// the store's own, which nobody else does but this.
    pub(crate) fn take_cause(&mut self) -> Option<Arc<StoreError>> {
        let cold = self.0.as_mut().filter(|cold| !cold.has_committed)?;
        cold.failed_read.take().filter(|error| Arc::strong_count(error) > 1)
    }

    pub(crate) fn cold(&mut self) -> &mut Cold {
        self.0.get_or_insert_default()
    }

    pub(crate) fn crashes(&self) -> u32 {
        self.0.as_ref().map_or(0, |cold| cold.crashes)
    }

    pub(crate) fn enlisted(&self) -> Enlisted {
        self.0.as_ref().map_or(Enlisted::None, |cold| cold.enlisted)
    }

    pub(crate) fn set_enlisted(&mut self, enlisted: Enlisted) {
        let cold = self.cold();
        cold.enlisted = enlisted;
        cold.has_recorded |= enlisted == Enlisted::Cut;
    }

    /// Tells whether more may be recorded.
    pub(crate) fn require_open(&self) -> Result<(), ContextError> {
        match self.enlisted() {
            Enlisted::None | Enlisted::UnderWay => Ok(()),
            Enlisted::Completed => Err(ContextError::NotHere(
                "an effect after the transaction that completed what woke the handler".into(),
            )),
            Enlisted::Cut => Err(ContextError::Unknown),
        }
    }

    pub(crate) fn mark(&mut self) -> Mark {
        let cold = self.cold();
        Mark { ops: cold.effects.ops().len(), outputs: cold.outputs.get_mut().len(), has_recorded: cold.has_recorded }
    }

    /// Takes back what was recorded since.
    pub(crate) fn undo_to(&mut self, mark: &Mark) {
        let cold = self.cold();
        cold.has_recorded = mark.has_recorded;
        cold.effects.truncate(mark.ops);
        cold.outputs.get_mut().truncate(mark.outputs);
    }

    /// Puts operations back that were taken, and did not happen.
    pub(crate) fn restore(&mut self, ops: impl Iterator<Item = Op>) {
        for op in ops {
            self.cold().effects.record_own(op);
        }
    }
}

pub(crate) fn hand_over<T>(value: T) -> HandedOver<T> {
    Arc::new(Mutex::new(Quiet::new(value)))
}
