//! A wall clock that differs from the machine's by as much as it is told; all else passes as it does there.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use stable_interfaces::Timestamp;
use stable_interfaces::clock::{Clock, Sleep, SystemClock};

/// A clock whose wall can be moved.
#[derive(Debug, Default)]
pub(super) struct Wall {
    machine: SystemClock,
    /// In milliseconds.
    ahead: AtomicI64,
}

impl Wall {
    /// Sets how many milliseconds it is ahead of the machine's.
    pub(super) fn set_ahead(&self, millis: i64) {
        self.ahead.store(millis, Ordering::Relaxed);
    }
}

impl Clock for Wall {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.machine.now().as_millis() + self.ahead.load(Ordering::Relaxed))
    }

    fn elapsed(&self) -> Duration {
        self.machine.elapsed()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        self.machine.sleep(duration)
    }

    fn sleep_exact(&self, until: Timestamp) -> Sleep {
        self.machine.sleep_exact(Timestamp::from_millis(until.as_millis() - self.ahead.load(Ordering::Relaxed)))
    }

    fn is_simulated(&self) -> bool {
        false
    }
}
