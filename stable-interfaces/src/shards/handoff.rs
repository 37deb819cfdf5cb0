//! A shard on its way to another host.
//!
//! *Leaving*, it is served as ever, and its tasks are told. *Closing*, nothing is let in from outside and nothing is handed out, while what
//! runs goes on under the same epoch; so the epoch is lost only when nothing of it is in memory any more. It is closing until the store
//! has been told that it is free, and is not claimed before. The release names that epoch, so that one which the network holds back undoes no claim
//! that comes after it.

use super::Shards;
use crate::store::{Epoch, ShardId};
use crate::sync::atomic::Ordering;

/// The stretch of a shard's way to another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Handoff {
    /// The shard stays.
    None,
    /// The tasks of the shard come to their end.
    Leaving,
    /// All that runs comes to its end.
    Closing,
}

impl Shards {
    /// The epoch under which this host owns the shard and lets in what comes from outside.
    #[inline]
    pub(crate) fn intake(&self, shard: ShardId) -> Option<Epoch> {
        match self.shard(shard).intake.load(Ordering::Acquire) {
            0 => None,
            epoch => Some(Epoch(epoch)),
        }
    }

    /// The stretch of its way to another host.
    pub(crate) fn handoff(&self, shard: ShardId) -> Handoff {
        match self.shard(shard).handoff.load(Ordering::Acquire) {
            0 => Handoff::None,
            1 => Handoff::Leaving,
            _ => Handoff::Closing,
        }
    }

    /// Begins to hand over: its tasks are to come to their end.
    pub(crate) fn leave(&self, shard: ShardId) {
        self.shard(shard).handoff.store(Handoff::Leaving as u8, Ordering::Release);
    }

    /// Lets nothing in from outside any more and hands nothing out, if the shard is owned; returns the epoch.
    pub(crate) fn close(&self, shard: ShardId) -> Option<Epoch> {
        let this = self.shard(shard);
        let mut owned = this.owned.lock();
        let epoch = self.epoch(shard)?;
        this.handoff.store(Handoff::Closing as u8, Ordering::Release);
        this.intake.store(0, Ordering::Release);
        if let Some(owned) = owned.as_deref_mut() {
            owned.is_closing = true;
        }
        self.relist(shard, owned.as_deref_mut());
        Some(epoch)
    }

    /// Notes that the shard stays after all, or has gone: it may be claimed again.
    pub(crate) fn end_handoff(&self, shard: ShardId) {
        self.shard(shard).handoff.store(Handoff::None as u8, Ordering::Release);
    }

    /// Tells whether all messages of the shard's inbox that this host knows of have been handled.
    pub(crate) fn is_through_inbox(&self, shard: ShardId, epoch: Epoch) -> bool {
        self.with_owned(shard, epoch, |owned| owned.inbox.is_through()).unwrap_or_default()
    }

    /// Tells whether this host had the shard and has let go of it, or lets nothing in any more.
    pub(crate) fn has_let_go(&self, shard: ShardId) -> bool {
        self.handoff(shard) == Handoff::Closing || self.given_up(shard).is_some()
    }

    /// The shards that have been closed and of which the store does not know yet that they are free, ascending.
    pub(crate) fn closing(&self) -> impl Iterator<Item = ShardId> + '_ {
        let is_closing = |shard: &super::Shard| shard.handoff.load(Ordering::Acquire) == Handoff::Closing as u8;
        (0..).map(ShardId).zip(&self.shards).filter(move |(_, shard)| is_closing(shard)).map(|(id, _)| id)
    }
}
