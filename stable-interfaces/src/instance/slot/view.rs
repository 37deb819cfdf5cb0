//! A slot as contexts, the chain of calls and the table know it.

use std::fmt;
use std::time::Duration;

use super::Slot;
use crate::commit::committer::{Commit, QueuedCommit};
use crate::commit::gate::Ticket;
use crate::commit::in_doubt::InDoubt;
use crate::directive::Needs;
use crate::error::ContextError;
use crate::instance::StableInterface;
use crate::instance::chain::ChainLink;
use crate::instance::context::Instance;
use crate::instance::recorded::Output;
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

impl<I: StableInterface> ChainLink for Slot<I> {
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", I::NAME, self.id)
    }

    fn handler_timeout(&self) -> Duration {
        self.interface.options.handler_timeout
    }

    fn instance_id(&self) -> Option<&str> {
        Some(&self.id)
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
        self.machine.lock().unsettled()
    }

    fn commit(self: Arc<Self>, epoch: Epoch, ops: Vec<Op>, outputs: Vec<Output>) -> Result<Ticket, ContextError> {
        let ticket = self.act(self.machine.lock(), |machine, hands, left| {
            left.outputs = outputs;
            machine.commit_interim(hands, left, epoch, ops)
        });
        ticket.ok_or(ContextError::NoStore)
    }

    fn commit_mark(self: Arc<Self>, epoch: Epoch, mark: Op) -> Result<Ticket, ContextError> {
        let ticket = self.act(self.machine.lock(), |machine, hands, _| machine.commit_mark(hands, epoch, mark));
        ticket.ok_or(ContextError::NoStore)
    }

    fn pending(&self) -> Option<Ticket> {
        self.machine.lock().pending()
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
        let commit = Commit { shard: self.shard, epoch, ops: ops.into(), is_shown: true };
        let (ticket, commit) = self.machine.lock().commit_externally(commit, &in_doubt);
        let queued = QueuedCommit::new(commit.clone(), ticket.clone(), None);
        let outcome = in_doubt.clone();
        host.spawn_turn(async move { committer.commit_externally(queued, &outcome, transaction).await });
        Ok((commit, ticket, in_doubt))
    }

    fn note_durable(&self) {
        self.machine.lock().note_interim(0);
    }

    fn let_out(self: Arc<Self>, outputs: Vec<Output>) {
        self.act(self.machine.lock(), |machine, hands, left| {
            left.outputs = outputs;
            machine.release(hands, left, None);
        });
    }
}
