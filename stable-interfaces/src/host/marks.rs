//! Marks of what is due, several in one commit.
//!
//! Alarms and messages that are overdue in a shard which its last owner did not release are marked before their handlers start. What is handed out
//! together is of one shard, so its marks are one commit; the instances are kept for it until that is durable, and then their handlers are started one after
//! the other, as if nothing had been to be marked.

use std::time::Duration;

use crate::commit::committer::{Commit, QueuedCommit, host_has_stopped};
use crate::commit::gate::Gate;
use crate::shards::delivery::Delivery;
use crate::shared::{AnyInterface, HostCore};
use crate::sync::Arc;

/// The longest that instances are kept for a commit. Past it each waits for that on a task of its own, which also tells those who wait for the
/// instance when their time is over.
const PATIENCE: Duration = Duration::from_millis(50);

/// Marks what is due, all of it of one shard, and hands it to its instances.
pub(super) fn wake_marked(host: &Arc<HostCore>, run: Vec<(Arc<dyn AnyInterface>, Delivery)>) {
    let Some((shard, epoch)) = run.first().map(|(_, delivery)| delivery.shard()) else { return };
    let (mut held, mut marks) = (Vec::with_capacity(run.len()), Vec::with_capacity(run.len()));
    for (interface, delivery) in run {
        if let Some(instance) = interface.hold(delivery) {
            let mark = instance.mark();
            held.push((instance, mark.is_some()));
            marks.extend(mark);
        }
    }
    if held.is_empty() {
        return;
    }
    let ticket = Arc::new(Gate::default()).take_ticket();
    let commit = Commit { shard, epoch, ops: marks.into(), is_shown: false };
    let queued = QueuedCommit::new(Arc::new(commit), ticket.clone(), None);
    let refused = match host.committer() {
        Some(committer) => committer.push(queued),
        None => Some(queued),
    };
    if let Some(refused) = refused {
        refused.withdraw(&host_has_stopped());
    }
    let clock = host.clock.share();
    host.spawn_turn(async move {
        tokio::select! { biased;
            _ = ticket.wait() => {}
            () = clock.sleep(PATIENCE) => {}
        }
        for (instance, is_marked) in held {
            instance.begin(is_marked.then(|| ticket.clone()));
            // Each of these handlers ran on this task: let others have their turn.
            tokio::task::consume_budget().await;
        }
    });
}
