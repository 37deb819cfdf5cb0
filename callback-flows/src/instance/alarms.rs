//! The alarms of a flow: its next timer, what was running when a process died, and the end of the time for which it is kept.

use std::time::Duration;

use stable_interfaces::{Alarm, Context, KeyRange, OnAlarm, Timestamp};

use super::continued::LEFTOVERS;
use super::lives::RUNNING;
use super::telling::News;
use super::{FlowInstance, Loaded, NEXT, TurnError};
use crate::command::Command;
use crate::flows::Kept;
use crate::journal::Unreadable;
use crate::status::{STATUS_KEY, State, Status};

/// The most rows that one turn removes.
const PURGED_AT_ONCE: usize = 500;
/// The time after which a timer asks again whether it may fire, after a call that came before it: at first, and at most.
const CALLS_FIRST: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// The time after which a flow is looked at again that was to be purged, and has parents that were not told.
const PARENTS_FIRST: Duration = Duration::from_secs(60);

impl FlowInstance {
    /// The arrival of the first message that other hosts have stored, if it is one that arrived by `until`, where a timer is due that it may have come
    /// before: it is on its way, and nothing that came after it may come first. Looks into the inbox only then.
    pub(super) async fn first_stored(
        &mut self,
        cx: &mut Context,
        until: Timestamp,
    ) -> Result<Option<Timestamp>, TurnError> {
        let Loaded::Going(going) = &self.loaded else { return Ok(None) };
        let now = cx.now();
        if !going.engine.awaits_messages() || going.engine.next_due().is_none_or(|due| due > now) {
            return Ok(None);
        }
        let stored = Box::pin(cx.inbox_until(until)).await?;
        // One of a newer program may be a call. What is no command at all, and what decides nothing, holds up no timer.
        let counts = |body| match Command::decode(body) {
            Ok(command) => !matches!(command, Command::Start { .. } | Command::Resume),
            Err(why) => why != Unreadable::Corrupt,
        };
        Ok(stored.iter().find(|message| counts(message.body())).map(|message| message.arrived().min(now)))
    }

    /// Sets the alarm `next`, with what a list of all flows tells of this one.
    pub(super) fn set_next(&mut self, cx: &mut Context, at: Timestamp, kept: &Kept) -> Result<(), TurnError> {
        cx.set_alarm(NEXT, at, kept)?;
        self.next = Some(at);
        Ok(())
    }

    /// Removes a part of what is kept of a flow that is over, and in the end its ID.
    async fn purge(&mut self, cx: &mut Context, mut status: Box<Status>) -> Result<(), TurnError> {
        if !self.parents.is_empty() {
            // It is not to be gone before they know.
            let again = cx.now() + PARENTS_FIRST;
            return self.set_next(cx, again, &Kept { version: status.version, is_over: true });
        }
        if status.state == State::Purged {
            cx.delete(STATUS_KEY)?;
            self.loaded = Loaded::Absent;
            return Ok(());
        }
        let rows = cx.list(KeyRange::all().limit(PURGED_AT_ONCE)).await?;
        let is_last = rows.len() < PURGED_AT_ONCE;
        for (key, _) in rows.iter().filter(|(key, _)| **key != *STATUS_KEY) {
            cx.delete(key)?;
        }
        let next = if is_last { cx.now() + self.registry.tombstone } else { cx.now() };
        if is_last {
            let before = status.state.clone();
            (status.state, status.changed_at) = (State::Purged, cx.now());
            (status.progress, status.resource, status.result) = (None, None, None);
            status.revision += 1;
            cx.put(STATUS_KEY, &status)?;
            let hub = &self.registry.hub;
            News::new(&self.id, hub, Some(before), Status::clone(&status), Vec::new()).tell_after(cx);
        }
        self.set_next(cx, next, &Kept { version: status.version, is_over: true })?;
        self.loaded = Loaded::Over(status);
        Ok(())
    }
}

impl OnAlarm for FlowInstance {
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), TurnError> {
        if matches!(self.loaded, Loaded::Sealed(_)) {
            // For a host that can read its journal.
            cx.hold_alarm();
            return Ok(());
        }
        self.write_rest(cx).await?;
        if alarm.id() == LEFTOVERS {
            return Box::pin(self.clear_leftovers(cx, alarm)).await;
        }
        if alarm.id() == RUNNING {
            match &mut self.loaded {
                Loaded::Going(going) => going.engine.record_posted(cx.now()),
                Loaded::Over(_) if self.parents.is_empty() => self.runs = None,
                _ => {}
            }
            self.advance_fully(cx).await?;
            // It may have been set anew in this turn.
            if self.runs == Some(alarm.scheduled_at()) {
                cx.hold_alarm();
            }
            return Ok(());
        }
        let first = self.first_stored(cx, Timestamp::MAX).await?;
        // It is completed with this turn, unless it is set again.
        self.next = None;
        match &mut self.loaded {
            Loaded::Absent | Loaded::Sealed(_) => Ok(()),
            Loaded::Over(status) => {
                let status = status.clone();
                Box::pin(self.purge(cx, status)).await
            }
            Loaded::Going(going) => {
                let now = cx.now();
                if let Some(first) = first {
                    going.pass_until(first);
                    self.advance_fully(cx).await?;
                    if let Loaded::Going(going) = &self.loaded {
                        let version = going.version;
                        // What has waited for long will wait for longer.
                        let again = (now.since(first) / 8).clamp(CALLS_FIRST.0, CALLS_FIRST.1);
                        self.set_next(cx, now + again, &Kept { version, is_over: false })?;
                    }
                    return Ok(());
                }
                if going.engine.fire_due(now, Some(now)) == 0 && going.started_at + self.registry.expiry <= now {
                    tracing::warn!(flow = &*self.id, "a flow has been waiting for longer than it is expected to");
                    going.started_at = now;
                }
                self.advance_fully(cx).await
            }
        }
    }
}
