//! The way of a host out of its fleet.
//!
//! While others are there to have its shards, a host that drains serves what it has, shard by shard until it is handed over, and sends on what
//! it has not. It is gone when the store has been told that it owns nothing; what has come through its door by then still has its way.

use super::{Health, HostCore};
use crate::store::{MemberState, ShardId};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, Notify, Semaphore};

/// The state of that way.
#[derive(Debug)]
pub(crate) struct Departure {
    /// Set while it drains and serves.
    serves: AtomicBool,
    /// Set once everything is released: it has no lease to renew any more.
    is_gone: AtomicBool,
    /// Shards are handed over by one task at a time.
    pub(crate) handing_over: Semaphore,
    /// The errands that are under way.
    errands: AtomicUsize,
    errands_ended: Notify,
    claim: Mutex<Claim>,
    claim_ended: Notify,
}

/// The last claim of a host that runs.
#[derive(Debug, Default)]
struct Claim {
    is_under_way: bool,
    /// The shards that the host has asked for and has no answer of: they may be its own.
    unheard: Vec<ShardId>,
}

impl Default for Departure {
    fn default() -> Departure {
        Departure {
            serves: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            handing_over: Semaphore::new(1),
            errands: AtomicUsize::new(0),
            errands_ended: Notify::new(),
            claim: Mutex::default(),
            claim_ended: Notify::new(),
        }
    }
}

/// Something that needs this host as the door to others: a request that is sent on, or a server. Dropped, it has ended.
#[derive(Debug)]
pub(crate) struct Errand(Arc<HostCore>);

impl Drop for Errand {
    fn drop(&mut self) {
        if self.0.departure.errands.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.departure.errands_ended.notify_waiters();
        }
    }
}

impl HostCore {
    /// Notes that these shards are about to be claimed; not if the host has begun to drain, which may have looked for a claim already.
    #[must_use]
    pub(crate) fn note_claiming(&self, shards: &[ShardId]) -> bool {
        let mut claim = self.departure.claim.lock();
        let may_claim = self.health() == Health::Running;
        if may_claim {
            *claim = Claim { is_under_way: true, unheard: shards.to_vec() };
        }
        may_claim
    }

    /// Notes that the claim has ended, and whether its answer was heard.
    pub(crate) fn note_claimed(&self, is_heard: bool) {
        let mut claim = self.departure.claim.lock();
        claim.is_under_way = false;
        if is_heard {
            claim.unheard.clear();
        }
        drop(claim);
        self.departure.claim_ended.notify_waiters();
    }

    /// Waits for the claim that is under way, if one is. A host that drains begins no other.
    pub(crate) async fn wait_for_claim(&self) {
        let mut ended = std::pin::pin!(self.departure.claim_ended.notified());
        ended.as_mut().enable();
        if self.departure.claim.lock().is_under_way {
            ended.await;
        }
    }

    /// The shards that may be this host's without its knowledge.
    pub(crate) fn unheard(&self) -> Vec<ShardId> {
        self.departure.claim.lock().unheard.clone()
    }

    /// Begins to drain, if it runs.
    pub(crate) fn begin_to_drain(&self) {
        let is_other_there = || {
            let view = self.view();
            view.members.list.iter().any(|member| member.name != self.name && member.state != MemberState::Leaving)
        };
        if self.health() < Health::Draining && self.fleet.is_live() && is_other_there() {
            self.departure.serves.store(true, Ordering::Release);
        }
        self.set_health(Health::Draining);
    }

    /// Tells whether it drains and serves what it has, and sends on the rest.
    pub(crate) fn serves_while_it_drains(&self) -> bool {
        self.health() == Health::Draining && self.departure.serves.load(Ordering::Acquire)
    }

    /// Takes nothing from outside any more, as it drains.
    pub(crate) fn end_service(&self) {
        self.departure.serves.store(false, Ordering::Release);
        // The driver looks at it when it wakes.
        self.shards.changed.notify_one();
    }

    /// Tells whether it starts handlers of what is due.
    pub(crate) fn fires(&self) -> bool {
        self.health() <= Health::Running || self.serves_while_it_drains()
    }

    /// Notes that all is being released.
    pub(crate) fn note_gone(&self) {
        self.departure.is_gone.store(true, Ordering::Release);
    }

    /// Tells whether all has been released, or is being.
    pub(crate) fn is_gone(&self) -> bool {
        self.departure.is_gone.load(Ordering::Acquire)
    }

    /// Begins an errand: a drain that could hand over everything waits for its end.
    pub(crate) fn begin_errand(self: &Arc<Self>) -> Errand {
        self.departure.errands.fetch_add(1, Ordering::AcqRel);
        Errand(self.clone())
    }

    /// Waits until no errand is under way.
    pub(crate) async fn wait_for_errands(&self) {
        loop {
            let mut ended = std::pin::pin!(self.departure.errands_ended.notified());
            // Enabled before they are counted, so that no end is missed between the two.
            ended.as_mut().enable();
            if self.departure.errands.load(Ordering::Acquire) == 0 {
                return;
            }
            ended.await;
        }
    }
}
