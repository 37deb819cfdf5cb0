//! The windows of one shard, for as long as it is owned, and since or until when each wants something.

use std::time::Duration;

use super::wake::Wake;
use crate::alarm::window::AlarmWindow;
use crate::clock::{Clock, Moment, Timestamp};
use crate::inbox::window::InboxWindow;
use crate::store::{InstanceName, Op};
use crate::sync::Arc;

/// The age from which on what is due is a backlog, which is handed out some of a shard at a time.
const BACKLOG: Duration = Duration::from_secs(1);

/// State that a host has of a shard for as long as it owns it.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) alarms: AlarmWindow,
    pub(super) inbox: InboxWindow,
    /// The time under which `deadlines` has this shard.
    pub(super) listed: Option<Timestamp>,
    /// The times since which each window has wanted what may be due and is not in memory, by the lease clock; where all up to a later time is there,
    /// from then on. Counted from the last page that was merged, at most.
    pub(super) alarms_behind: Option<Duration>,
    pub(super) inbox_behind: Option<Duration>,
    /// The time under which `behind` has this shard.
    pub(super) behind: Option<Duration>,
    /// The time under which `waits` has it.
    pub(super) wait: Option<Duration>,
    /// If the last owner did not release the shard: alarms due up to then are marked before they are handled.
    pub(super) marks_until: Option<Timestamp>,
    /// The shard is being handed over: nothing of it is handed out or loaded any more.
    pub(super) is_closing: bool,
}

impl Owned {
    /// Notes since when something may have been due that is not in memory, or from when on it will be.
    pub(super) fn note_behind(&mut self, clock: &dyn Clock) -> Option<Duration> {
        self.alarms_behind = self.alarms.behind().map(|all_up_to| {
            self.alarms_behind.unwrap_or_else(|| clock.elapsed().saturating_add(all_up_to.since(clock.now())))
        });
        self.inbox_behind = self.inbox.is_behind().then(|| self.inbox_behind.unwrap_or_else(|| clock.elapsed()));
        self.alarms_behind.into_iter().chain(self.inbox_behind).min()
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        let alarm = self.alarms.next_deadline().filter(|_| self.inbox.lets_alarms_fire());
        self.inbox.next_deadline().into_iter().chain(alarm).chain(self.alarms.page_deadline()).min()
    }

    pub(super) fn next_wait(&self) -> Option<Duration> {
        self.inbox.next_wait().into_iter().chain(self.alarms.next_wait()).min()
    }

    pub(super) fn pop_due(&mut self, now: Moment) -> Option<Wake> {
        self.alarms.tell(now.wall);
        self.alarms.end_waits(now.elapsed);
        self.inbox.end_waits(now);
        let alarm = self.alarms.next_deadline().filter(|due| self.inbox.lets_alarms_fire() && *due <= now.wall);
        // Of a message and an alarm for the same time the message comes first.
        let is_message = self.inbox.due_since(now).is_some_and(|message| alarm.is_none_or(|alarm| message <= alarm));
        if is_message {
            let message = self.inbox.pop_due(now)?;
            if self.inbox.is_led(&message.name) {
                self.alarms.lead(&message.name);
            }
            return Some(Wake::Message(message));
        }
        alarm?;
        let alarm = self.alarms.pop_due(now.wall)?;
        if self.alarms.is_led(&alarm.name) {
            self.inbox.lead(&alarm.name);
        }
        Some(Wake::Alarm(Arc::new(alarm)))
    }

    /// Says whether what comes next has been due for long.
    pub(super) fn has_backlog(&self, now: Moment) -> bool {
        self.next_deadline().is_some_and(|due| now.wall.since(due) > BACKLOG)
    }

    /// Takes back what was handed out and changed nothing: to its old place, due when the lease clock shows `at` if that is given.
    pub(super) fn wait_again(&mut self, clock: &dyn Clock, wake: &Wake, at: Option<Duration>) {
        match wake {
            Wake::Alarm(alarm) => self.alarms.wait_again(&alarm.name, &alarm.id, alarm.revision, at),
            Wake::Message(message) => self.inbox.wait_again(at.unwrap_or_else(|| clock.elapsed()), message.clone()),
        }
    }

    /// Follows what a commit has made durable.
    pub(super) fn follow(&mut self, op: &Op) {
        match op {
            Op::PutAlarm(row) => self.alarms.put(row.clone()),
            Op::RemoveAlarm { name, id, revision } => self.alarms.remove(name, id, *revision),
            Op::PutMessage(row) => self.inbox.postpone(row.due, Arc::new(row.clone())),
            Op::RemoveMessage(key) => self.inbox.remove(key),
            Op::PutDead(_) | Op::RemoveDead(_) | Op::Put { .. } | Op::Delete { .. } => {}
        }
    }

    /// Makes what was handed out the head of its instance's crowds, alarms and messages alike, so that the next one is the one that
    /// comes first of both; `false` if there is a head.
    pub(super) fn lead(&mut self, name: &InstanceName) -> bool {
        let leads = self.alarms.lead(name);
        if leads {
            self.inbox.lead(name);
        }
        leads
    }

    pub(super) fn head_ended(&mut self, name: &InstanceName) {
        self.alarms.head_ended(name);
        self.inbox.head_ended(name);
    }

    pub(super) fn has_crowd(&self) -> bool {
        self.alarms.has_crowd() || self.inbox.has_crowd()
    }

    pub(super) fn is_led(&self, wake: &Wake) -> bool {
        match wake {
            Wake::Alarm(alarm) => self.alarms.is_led(&alarm.name),
            Wake::Message(message) => self.inbox.is_led(&message.name),
        }
    }
}
