//! A slot as contexts, the chain of calls and the table know it.

use std::fmt;
use std::time::Duration;

use super::Slot;
use super::commits::Shown;
use super::left::Left;
use crate::commit::committer::{Commit, Queued};
use crate::commit::gate::Ticket;
use crate::commit::in_doubt::InDoubt;
use crate::directive::Needs;
use crate::error::ContextError;
use crate::instance::StableInterface;
use crate::instance::chain::Link;
use crate::instance::context::Instance;
use crate::instance::recorded::Output;
use crate::instance::slot::cold::Unsettled;
use crate::instance::table::Entry;
use crate::shared::HostCore;
use crate::store::{Epoch, ExternalTransaction, InstanceName, Op, ShardId};
use crate::sync::Arc;
use crate::sync::atomic::AtomicU64;

impl<I: StableInterface> fmt::Debug for Slot<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("id", &self.id).field("shard", &self.shard).finish_non_exhaustive()
    }
}

impl<I: StableInterface> Entry for Slot<I> {
    fn id(&self) -> &str {
        &self.id
    }

    fn used(&self) -> &AtomicU64 {
        &self.used
    }
}

impl<I: StableInterface> Link for Slot<I> {
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", I::NAME, self.id)
    }

    fn handler_timeout(&self) -> Duration {
        self.interface.options.handler_timeout
    }
}

impl<I: StableInterface> Instance for Slot<I> {
    fn id(&self) -> &Arc<str> {
        &self.id
    }

    fn shard(&self) -> ShardId {
        self.shard
    }

    fn name(&self) -> InstanceName {
        InstanceName { interface: self.interface.name.clone(), instance: self.id.clone() }
    }

    fn host(&self) -> &Arc<HostCore> {
        &self.interface.host
    }

    fn require(&self, needs: Needs) -> Result<(), ContextError> {
        self.interface.require(needs)
    }

    fn unsettled(&self) -> Vec<Arc<Commit>> {
        let inner = self.inner.lock();
        let Some(extra) = &inner.extra else { return Vec::new() };
        let settled = extra.gate.as_ref().map_or(0, |gate| gate.settled());
        extra
            .unsettled
            .iter()
            .filter(|commit| !commit.ticket.is_within(settled))
            .filter_map(Unsettled::commit)
            .collect()
    }

    fn commit(self: Arc<Self>, epoch: Epoch, ops: Vec<Op>, outputs: Vec<Output>) -> Result<Ticket, ContextError> {
        let mut left = Left { outputs, ..Left::default() };
        let mut inner = self.inner.lock();
        let ticket = self.push(&mut inner, &mut left, epoch, ops, None, Shown::ToWindow);
        if let Some(ticket) = &ticket {
            let extra = inner.extra.get_or_insert_default();
            extra.interim = extra.interim.min(ticket.number());
            self.release(&mut inner, &mut left, Some(ticket));
        }
        drop(inner);
        left.clear(&*self);
        ticket.ok_or(ContextError::NoStore)
    }

    fn commit_mark(&self, epoch: Epoch, mark: Op) -> Result<Ticket, ContextError> {
        let mut left = Left::default();
        let mut inner = self.inner.lock();
        let ticket = self.push(&mut inner, &mut left, epoch, vec![mark], None, Shown::Hidden);
        drop(inner);
        left.clear(self);
        ticket.ok_or(ContextError::NoStore)
    }

    fn pending(&self) -> Option<Ticket> {
        self.inner.lock().extra.as_ref()?.gate.as_ref()?.pending()
    }

    fn commit_externally(
        self: Arc<Self>,
        epoch: Epoch,
        ops: Vec<Op>,
        completes: bool,
        transaction: Box<dyn ExternalTransaction>,
    ) -> Result<(Arc<Commit>, Ticket, Arc<InDoubt>), ContextError> {
        let host = &self.interface.host;
        let committer = host.committer().ok_or(ContextError::NoStore)?.clone();
        let in_doubt = Arc::new(InDoubt::new(completes));
        let mut inner = self.inner.lock();
        let (ticket, commit) = self.enlist(&mut inner, epoch, ops, Shown::ToWindow);
        let extra = inner.extra.get_or_insert_default();
        let before = extra.in_doubt.replace((in_doubt.clone(), ticket.number()));
        if let Some((_, number)) = before.filter(|(before, _)| before.has_committed()) {
            extra.interim = extra.interim.min(number);
        }
        drop(inner);
        let queued = Queued::new(commit.clone(), ticket.clone(), None);
        let outcome = in_doubt.clone();
        host.spawn_turn(async move { committer.commit_externally(queued, &outcome, transaction).await });
        Ok((commit, ticket, in_doubt))
    }

    fn note_durable(&self) {
        self.inner.lock().extra.get_or_insert_default().interim = 0;
    }

    fn let_out(self: Arc<Self>, outputs: Vec<Output>) {
        let mut left = Left { outputs, ..Left::default() };
        let mut inner = self.inner.lock();
        self.release(&mut inner, &mut left, None);
        drop(inner);
        left.clear(&*self);
    }
}
