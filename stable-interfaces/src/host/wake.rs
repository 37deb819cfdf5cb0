//! What wakes an instance, on its way from a window to its commit.

use std::time::Duration;

use super::shards::Shards;
use crate::alarm::RetryPolicy;
use crate::clock::{Random, Timestamp};
use crate::store::{AlarmRow, Attempts, DeadLetter, DeadRow, Epoch, InboxRow, InstanceName, Op, ShardId};
use crate::sync::Arc;

/// What could not be handed to its instance waits this long before it is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// An alarm or message that is due.
#[derive(Debug, Clone)]
pub(crate) enum Wake {
    Alarm(Arc<AlarmRow>),
    Message(Arc<InboxRow>),
}

/// The fields that alarms and messages have alike.
struct Common<'a> {
    kind: &'static str,
    name: &'a InstanceName,
    id: &'a Arc<str>,
    due: Timestamp,
    attempts: &'a Attempts,
}

impl Wake {
    fn common(&self) -> Common<'_> {
        match self {
            Wake::Alarm(row) => {
                Common { kind: "alarm", name: &row.name, id: &row.id, due: row.due, attempts: &row.attempts }
            }
            Wake::Message(row) => {
                Common { kind: "message", name: &row.name, id: &row.id, due: row.due, attempts: &row.attempts }
            }
        }
    }

    pub(crate) fn name(&self) -> &InstanceName {
        self.common().name
    }

    pub(crate) fn id(&self) -> &Arc<str> {
        self.common().id
    }

    pub(crate) fn kind(&self) -> &'static str {
        self.common().kind
    }

    pub(crate) fn attempts(&self) -> &Attempts {
        self.common().attempts
    }

    pub(super) fn due(&self) -> Timestamp {
        self.common().due
    }

    /// The number of bytes that the application put into it.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Wake::Alarm(alarm) => alarm.bytes(),
            Wake::Message(message) => message.bytes(),
        }
    }

    /// Its completion.
    pub(crate) fn done(&self) -> Op {
        match self {
            Wake::Alarm(alarm) => {
                Op::RemoveAlarm { name: alarm.name.clone(), id: alarm.id.clone(), revision: alarm.revision }
            }
            Wake::Message(message) => Op::RemoveMessage(message.key()),
        }
    }

    /// The mark that its handler is about to start.
    pub(crate) fn mark(&self) -> Op {
        self.row(self.due(), self.attempts().begun()).put()
    }

    /// Its row with another time and other attempts.
    fn row(&self, due: Timestamp, attempts: Attempts) -> DeadRow {
        match self {
            Wake::Alarm(alarm) => DeadRow::Alarm(AlarmRow { due, attempts, ..(**alarm).clone() }),
            Wake::Message(message) => DeadRow::Message(InboxRow { due, attempts, ..(**message).clone() }),
        }
    }

    /// Another attempt after the policy's wait, or the dead letters.
    pub(crate) fn failed(&self, error: &Arc<str>, now: Timestamp, retry: &RetryPolicy, random: &dyn Random) -> Failed {
        let attempts = self.attempts().one_more_failed(error);
        match retry.wait_after(attempts.failed, random) {
            Some(wait) => Failed::Retry(wait, self.row(now + wait, attempts).put()),
            None => Failed::Dead(self.dead(attempts, error, now)),
        }
    }

    /// Its end as a dead letter, after these attempts.
    pub(crate) fn dead(&self, attempts: Attempts, reason: &Arc<str>, now: Timestamp) -> [Op; 2] {
        let row = self.row(self.due(), attempts);
        [self.done(), Op::PutDead(DeadLetter { died_at: now, reason: reason.clone(), row })]
    }
}

/// What becomes of an alarm or message whose handler failed.
pub(crate) enum Failed {
    Retry(Duration, Op),
    Dead([Op; 2]),
}

/// One alarm or message being handled. Whoever holds this answers for it: dropped without [`resolve`](Self::resolve), it waits
/// again in its window, so it cannot get lost between being popped and being committed.
#[derive(Debug)]
pub(crate) struct WakeToken {
    shards: Arc<Shards>,
    shard: ShardId,
    epoch: Epoch,
    wake: Wake,
    /// Whether it must be marked in the store before its handler starts.
    pub(crate) must_mark: bool,
    /// When it is due again if this is dropped; `None` if something durable says what becomes of it.
    due_again: Option<DueAgain>,
    /// Whether it counts as being handled: a held alarm does not.
    is_counted: bool,
    /// True while others of its kind wait for its instance behind it.
    is_head: bool,
}

#[derive(Debug)]
enum DueAgain {
    Soon,
    /// By the lease clock.
    At(Duration),
}

impl WakeToken {
    pub(super) fn new(
        shards: Arc<Shards>,
        shard: ShardId,
        epoch: Epoch,
        wake: Wake,
        must_mark: bool,
        is_head: bool,
    ) -> WakeToken {
        let due_again = Some(DueAgain::Soon);
        WakeToken { shards, shard, epoch, wake, must_mark, due_again, is_counted: true, is_head }
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

    /// Its handler has begun and will take a while: others of its kind wait behind it.
    pub(crate) fn lead(&mut self) {
        self.is_head = self.is_head || self.shards.lead(self.shard, self.epoch, &self.wake);
    }

    /// Its handler has ended, however: the next one may have its turn.
    pub(crate) fn handler_ended(&mut self) {
        if std::mem::take(&mut self.is_head) {
            self.shards.head_ended(self.shard, self.epoch, &self.wake);
        }
    }

    /// A commit that says what becomes of it is about to be shown to the window.
    pub(crate) fn resolve(mut self) {
        self.due_again = None;
    }

    /// It is to wait until the lease clock shows `at`.
    pub(crate) fn postpone(mut self, at: Duration) {
        self.due_again = Some(DueAgain::At(at));
    }

    /// It stays unacknowledged with its instance, and does not keep others from being handled.
    pub(crate) fn hold(mut self) -> WakeToken {
        if std::mem::take(&mut self.is_counted) {
            self.shards.fire_ended(self.wake.bytes());
        }
        self
    }

    /// Whether `found` is this setting of the alarm.
    pub(crate) fn is_setting(&self, found: Option<&AlarmRow>) -> bool {
        matches!((&self.wake, found), (Wake::Alarm(alarm), Some(row)) if alarm.revision == row.revision)
    }

    /// This binary does not know its interface: it stays in the store, and out of the way.
    pub(crate) fn set_aside(mut self) {
        self.due_again = None;
        self.shards.set_aside(self.shard, self.epoch, &self.wake);
    }
}

impl Drop for WakeToken {
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
