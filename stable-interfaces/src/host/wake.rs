//! What wakes an instance, on its way from a window to its commit.

use std::time::Duration;

use super::shards::Shards;
use crate::alarm::RetryPolicy;
use crate::clock::{Random, Timestamp};
use crate::store::{AlarmRow, DeadLetter, DeadRow, Epoch, InboxRow, InstanceName, Op, ShardId};
use crate::sync::Arc;

/// What could not be handed to its instance waits this long before it is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// An alarm or message that is due.
#[derive(Debug, Clone)]
pub(crate) enum Wake {
    Alarm(Arc<AlarmRow>),
    Message(Arc<InboxRow>),
}

impl Wake {
    pub(crate) fn name(&self) -> &InstanceName {
        match self {
            Wake::Alarm(alarm) => &alarm.name,
            Wake::Message(message) => &message.name,
        }
    }

    pub(crate) fn id(&self) -> &Arc<str> {
        match self {
            Wake::Alarm(alarm) => &alarm.id,
            Wake::Message(message) => &message.id,
        }
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Wake::Alarm(_) => "alarm",
            Wake::Message(_) => "message",
        }
    }

    /// How many bytes the application put into it.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Wake::Alarm(alarm) => alarm.bytes(),
            Wake::Message(message) => message.bytes(),
        }
    }

    pub(crate) fn attempt(&self) -> u32 {
        match self {
            Wake::Alarm(alarm) => alarm.attempt,
            Wake::Message(message) => message.attempt,
        }
    }

    pub(super) fn due(&self) -> Timestamp {
        match self {
            Wake::Alarm(alarm) => alarm.due,
            Wake::Message(message) => message.due,
        }
    }

    /// Whether its handler was running when the last owner ended.
    pub(crate) fn was_started(&self) -> bool {
        match self {
            Wake::Alarm(alarm) => alarm.started,
            Wake::Message(message) => message.started,
        }
    }

    /// How many processes will have died of it if this one does.
    pub(crate) fn crashes(&self) -> u32 {
        let (crashes, started) = match self {
            Wake::Alarm(alarm) => (alarm.crashes, alarm.started),
            Wake::Message(message) => (message.crashes, message.started),
        };
        crashes.saturating_add(u32::from(started))
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
        let crashes = self.crashes();
        match self {
            Wake::Alarm(alarm) => Op::PutAlarm(AlarmRow { started: true, crashes, ..(**alarm).clone() }),
            Wake::Message(message) => Op::PutMessage(InboxRow { started: true, crashes, ..(**message).clone() }),
        }
    }

    /// Another attempt after `wait`, or the dead letters.
    pub(crate) fn failed(&self, error: &Arc<str>, now: Timestamp, retry: &RetryPolicy, random: &dyn Random) -> Failed {
        let attempt = self.attempt().saturating_add(1);
        match retry.wait_after(attempt, random) {
            Some(wait) => Failed::Retry(wait, self.again(attempt, now + wait, error)),
            None => Failed::Dead(self.dead(attempt, error, now)),
        }
    }

    fn again(&self, attempt: u32, due: Timestamp, error: &Arc<str>) -> Op {
        let last_error = Some(error.clone());
        // A process that died of it did so, however this attempt ended.
        let crashes = self.crashes();
        match self {
            Wake::Alarm(alarm) => {
                Op::PutAlarm(AlarmRow { due, attempt, last_error, crashes, started: false, ..(**alarm).clone() })
            }
            Wake::Message(message) => {
                Op::PutMessage(InboxRow { due, attempt, last_error, crashes, started: false, ..(**message).clone() })
            }
        }
    }

    /// Its end as a dead letter.
    pub(crate) fn dead(&self, attempt: u32, reason: &Arc<str>, now: Timestamp) -> [Op; 2] {
        let last_error = Some(reason.clone());
        let crashes = self.crashes();
        let row = match self {
            Wake::Alarm(alarm) => {
                DeadRow::Alarm(AlarmRow { attempt, last_error, crashes, started: false, ..(**alarm).clone() })
            }
            Wake::Message(message) => {
                DeadRow::Message(InboxRow { attempt, last_error, crashes, started: false, ..(**message).clone() })
            }
        };
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
