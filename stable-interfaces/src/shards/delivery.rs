//! The delivery of an alarm or message, from the window to the commit that settles it.
//!
//! Whoever holds a [`Delivery`] answers for it: dropped without [`ack`](Delivery::ack), what it delivers waits again in its window, so
//! it cannot get lost between being popped and being committed. While one counts as being handled it has a place among
//! `max_firing`; a held alarm does not.

use std::time::Duration;

use super::Shards;
use super::wake::Wake;
use crate::store::{AlarmRow, Epoch, ShardId};
use crate::sync::Arc;

/// The wait of what could not be handed to its instance before it is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// One alarm or message being handled.
#[derive(Debug)]
pub(crate) struct Delivery {
    shards: Arc<Shards>,
    shard: ShardId,
    epoch: Epoch,
    wake: Wake,
    /// Tells whether it must be marked in the store before its handler starts.
    pub(crate) must_mark: bool,
    /// The time at which it is due again if this is dropped; `None` if something durable says what becomes of it.
    due_again: Option<DueAgain>,
    /// Tells whether it counts as being handled: a held alarm does not.
    is_counted: bool,
    /// True while others of its kind wait for its instance behind it.
    is_head: bool,
}

#[derive(Debug)]
enum DueAgain {
    Soon,
    /// The time by the lease clock.
    At(Duration),
}

impl Delivery {
    pub(super) fn new(
        shards: Arc<Shards>,
        shard: ShardId,
        epoch: Epoch,
        wake: Wake,
        must_mark: bool,
        is_head: bool,
    ) -> Delivery {
        let due_again = Some(DueAgain::Soon);
        Delivery { shards, shard, epoch, wake, must_mark, due_again, is_counted: true, is_head }
    }

    pub(crate) fn wake(&self) -> &Wake {
        &self.wake
    }

    pub(crate) fn shard(&self) -> (ShardId, Epoch) {
        (self.shard, self.epoch)
    }

    /// Makes it the one of its kind that its busy instance has or will have next, behind which the others wait; if there is one,
    /// it waits behind that, in its window, and this says `false`: it is to be dropped, and takes nobody's place any more.
    pub(crate) fn lead_or_turn_back(&mut self) -> bool {
        self.is_head = self.is_head || self.shards.lead_or_turn_back(self.shard, self.epoch, &self.wake);
        if !self.is_head {
            self.due_again = None;
        }
        self.is_head
    }

    /// Notes that the handler has begun and will take a while: others of the same kind wait behind it.
    pub(crate) fn lead(&mut self) {
        self.is_head = self.is_head || self.shards.lead(self.shard, self.epoch, &self.wake);
    }

    /// Notes that the handler has ended, however: the next one may have its turn.
    pub(crate) fn handler_ended(&mut self) {
        if std::mem::take(&mut self.is_head) {
            self.shards.head_ended(self.shard, self.epoch, &self.wake);
        }
    }

    /// Acknowledges it: a commit that says what becomes of it is about to be shown to the window.
    pub(crate) fn ack(mut self) {
        self.due_again = None;
    }

    /// Puts it back, to wait until the lease clock shows `at`.
    pub(crate) fn nack(mut self, at: Duration) {
        self.due_again = Some(DueAgain::At(at));
    }

    /// Leaves it unacknowledged with its instance, where it does not keep others from being handled.
    pub(crate) fn hold(mut self) -> Delivery {
        if std::mem::take(&mut self.is_counted) {
            self.shards.fire_ended(self.wake.bytes());
        }
        self
    }

    /// Tells whether `found` is this setting of the alarm.
    pub(crate) fn is_setting(&self, found: Option<&AlarmRow>) -> bool {
        matches!((&self.wake, found), (Wake::Alarm(alarm), Some(row)) if alarm.revision == row.revision)
    }

    /// Leaves in the store, and out of the way, what this binary has no interface for.
    pub(crate) fn set_aside(mut self) {
        self.due_again = None;
        self.shards.set_aside(self.shard, self.epoch, &self.wake);
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.handler_ended();
        if let Some(due_again) = self.due_again.take() {
            let at = match due_again {
                DueAgain::At(at) => at,
                DueAgain::Soon => self.shards.clock.elapsed().saturating_add(RETRY_DELAY),
            };
            self.shards.wait_again(self.shard, self.epoch, &self.wake, Some(at));
        }
        if self.is_counted {
            self.shards.fire_ended(self.wake.bytes());
        }
    }
}
