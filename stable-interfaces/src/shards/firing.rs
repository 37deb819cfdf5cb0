//! The number of alarms and messages being handled at once, and who must wait for whom.
//!
//! Three bounds: so many at once and so many bytes, a suspected *killer* alone, and the alarms of one instance so often in a second.
//! A suspect is what was running when a process died: one death of it takes nothing else along, because nothing else is handled
//! beside it, and nothing is begun before it while it waits for the others to end. No clock, no I/O; the time comes from outside.

use std::collections::HashMap;
use std::time::Duration;

use super::wake::Wake;
use crate::store::InstanceName;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Bounds of the waking of instances.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Alarms and messages being handled or committed at once.
    pub(crate) max_firing: usize,
    /// The number of times that alarms of one instance may fire within a second before they are slowed down.
    pub(crate) max_fires_per_second: u32,
    /// The number of processes in which an alarm or message may have been running when they died, before it is given up.
    pub(crate) max_crashes: u32,
    /// About how many bytes of alarms and messages may be in memory: half of it those that wait, half those being handled.
    pub(crate) window_bytes: usize,
}

#[derive(Debug, Default)]
pub(super) struct Firing {
    /// Alarms and messages being handled or committed now, and how many bytes they have.
    count: AtomicUsize,
    bytes: AtomicUsize,
    /// Set while a suspected killer is handled.
    is_alone: AtomicBool,
    /// Set while one waits for all others to end.
    is_alone_wanted: AtomicBool,
    storms: Mutex<Storms>,
}

/// The number of times that the alarms of each instance fired in the second that began then, by the lease clock.
#[derive(Debug, Default)]
struct Storms {
    began: Duration,
    fires: HashMap<InstanceName, u32>,
}

/// The consequence of an end.
pub(super) struct FireEnded {
    /// Something that had to wait for it may begin.
    pub(super) lets_next_begin: bool,
    /// There was no room for bytes before it.
    pub(super) makes_room: bool,
}

impl Firing {
    /// Says whether one more may be handled now.
    pub(super) fn may_begin(&self, limits: &Limits) -> bool {
        let count = self.count.load(Ordering::Acquire);
        count < limits.max_firing
            && (count == 0 || self.has_room(limits))
            && !self.is_alone.load(Ordering::Acquire)
            && !(count > 0 && self.is_alone_wanted.load(Ordering::Acquire))
    }

    /// Says whether the bytes of what is being handled leave room for more.
    pub(super) fn has_room(&self, limits: &Limits) -> bool {
        self.bytes.load(Ordering::Acquire) <= limits.window_bytes / 2
    }

    /// Counts one more; not a suspect while anything else is handled: `false` says that, and nothing begins before it.
    pub(super) fn begin(&self, bytes: usize, is_suspect: bool) -> bool {
        if is_suspect && self.count.load(Ordering::Acquire) > 0 {
            self.is_alone_wanted.store(true, Ordering::Release);
            return false;
        }
        self.is_alone_wanted.store(false, Ordering::Release);
        self.count.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        self.is_alone.store(is_suspect, Ordering::Release);
        true
    }

    /// Counts one of so many bytes no more.
    pub(super) fn end(&self, bytes: usize, limits: &Limits) -> FireEnded {
        let had_room = self.has_room(limits);
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        let before = self.count.fetch_sub(1, Ordering::AcqRel);
        let was_alone = before == 1 && self.is_alone.swap(false, Ordering::AcqRel);
        FireEnded {
            lets_next_begin: before == limits.max_firing || before == 1 || was_alone || !had_room,
            makes_room: !had_room,
        }
    }

    /// Counts a fire of an alarm at `now` of the lease clock. If those of its instance are too many in this second, returns until
    /// when it is to wait.
    pub(super) fn check_storm(&self, wake: &Wake, now: Duration, max_fires_per_second: u32) -> Option<Duration> {
        const SECOND: Duration = Duration::from_secs(1);
        let Wake::Alarm(alarm) = wake else { return None };
        let (over, until) = {
            let mut storms = self.storms.lock();
            let Storms { began, fires } = &mut *storms;
            if now >= began.saturating_add(SECOND) {
                *began = now;
                fires.clear();
            }
            let count = fires.entry(alarm.name.clone()).or_default();
            *count = count.saturating_add(1);
            (count.saturating_sub(max_fires_per_second), began.saturating_add(SECOND))
        };
        if over == 0 {
            return None;
        }
        if over == 1 {
            tracing::error!(instance = %alarm.name, alarm = %alarm.id, limit = max_fires_per_second,
                "an instance's alarms fire too often; they are slowed down");
        }
        metrics::counter!(crate::metrics::ALARMS_SLOWED).increment(1);
        Some(until)
    }

    /// The number of those counted, and their bytes.
    #[cfg(test)]
    pub(super) fn counted(&self) -> (usize, usize) {
        (self.count.load(Ordering::Acquire), self.bytes.load(Ordering::Acquire))
    }
}
