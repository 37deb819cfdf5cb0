//! Time and randomness, as the library is given them.
//!
//! Nothing else in this crate reads a clock, sleeps or draws a random number, so a test that brings its own
//! [`Clock`] and [`Random`] decides when everything happens. Two clocks with different promises: the *wall* clock
//! says when an alarm is due and may step; the *lease* clock only rises and runs through a suspended machine.

mod system;

use std::fmt::Debug;
use std::future::Future;
use std::ops::{Add, Sub};
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub use system::{SystemClock, SystemRandom};

/// A sleep, as [`Clock`] returns it.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A moment on the wall clock: whole milliseconds since the Unix epoch, from year 1 to year 9999.
///
/// Values outside that range become the nearest end of it, so arithmetic never fails and every store can hold the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(from = "i64", into = "i64")]
pub struct Timestamp(i64);

impl Timestamp {
    /// 0001-01-01T00:00:00Z.
    pub const MIN: Timestamp = Timestamp(-62_135_596_800_000);
    /// 9999-12-31T23:59:59.999Z.
    pub const MAX: Timestamp = Timestamp(253_402_300_799_999);
    /// 1970-01-01T00:00:00Z.
    pub const UNIX_EPOCH: Timestamp = Timestamp(0);

    /// The moment `millis` milliseconds after the Unix epoch (before it, when negative), within [`MIN`](Self::MIN)..=[`MAX`](Self::MAX).
    #[must_use]
    pub const fn from_millis(millis: i64) -> Timestamp {
        if millis < Self::MIN.0 {
            Self::MIN
        } else if millis > Self::MAX.0 {
            Self::MAX
        } else {
            Timestamp(millis)
        }
    }

    /// Milliseconds since the Unix epoch; negative before it.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }
}

impl From<i64> for Timestamp {
    fn from(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }
}

impl From<Timestamp> for i64 {
    fn from(time: Timestamp) -> i64 {
        time.0
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Timestamp {
        let clamp = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Timestamp::from_millis(clamp(after)),
            Err(before) => Timestamp::from_millis(-clamp(before.duration())),
        }
    }
}

impl Add<Duration> for Timestamp {
    type Output = Timestamp;
    /// Rounds up to the next millisecond, so that nothing set "in 0.4 ms" is due before its time.
    fn add(self, duration: Duration) -> Timestamp {
        let millis = duration.as_nanos().div_ceil(1_000_000);
        Timestamp::from_millis(self.0.saturating_add(i64::try_from(millis).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Timestamp;
    fn sub(self, duration: Duration) -> Timestamp {
        Timestamp::from_millis(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }
}

/// The clock by which a host reads the time and sleeps.
pub trait Clock: Debug + Send + Sync + 'static {
    /// The wall clock. It may step in either direction.
    fn now(&self) -> Timestamp;

    /// Time since some fixed moment, by a clock that never steps back and goes on while the machine is suspended.
    fn elapsed(&self) -> Duration;

    /// Completes once [`elapsed`](Self::elapsed) has grown by `duration`, to within a few milliseconds.
    fn sleep(&self, duration: Duration) -> Sleep;

    /// Completes once [`now`](Self::now) has reached `until`, unless it steps meanwhile, and as soon after that as the clock can
    /// make it: within a fraction of a millisecond. Alarms wait with this one, one wait at a time per host.
    fn sleep_exact(&self, until: Timestamp) -> Sleep;

    /// Tells whether time passes only as a test lets it. A host then runs no thread of its own.
    fn is_simulated(&self) -> bool;
}

/// A moment, as both clocks show it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) wall: Timestamp,
    pub(crate) elapsed: Duration,
}

impl Moment {
    /// Reads both times.
    pub(crate) fn of(clock: &dyn Clock) -> Moment {
        Moment { wall: clock.now(), elapsed: clock.elapsed() }
    }
}

/// The source of a host's random numbers: incarnations and jitter.
pub trait Random: Debug + Send + Sync + 'static {
    /// A number uniform over all of `u64`.
    fn next_u64(&self) -> u64;
}

/// Runs `work` for at most `limit`; `None` if it was not done by then, and has been dropped.
pub(crate) async fn within<T>(clock: &dyn Clock, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! { biased;
        done = work => Some(done),
        () = clock.sleep(limit) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_saturates_instead_of_failing() {
        assert_eq!(Timestamp::from_millis(i64::MAX), Timestamp::MAX);
        assert_eq!(Timestamp::MAX + Duration::MAX, Timestamp::MAX);
        assert_eq!(Timestamp::MIN - Duration::MAX, Timestamp::MIN);
        assert_eq!(Timestamp::MIN.since(Timestamp::MAX), Duration::ZERO);
    }

    #[test]
    fn adding_part_of_a_millisecond_rounds_up() {
        assert_eq!(Timestamp::UNIX_EPOCH + Duration::from_micros(400), Timestamp::from_millis(1));
        assert_eq!(Timestamp::UNIX_EPOCH + Duration::from_millis(7), Timestamp::from_millis(7));
    }

    #[test]
    fn dates_before_the_epoch_keep_their_sign() {
        let before = UNIX_EPOCH - Duration::from_millis(1_500);
        assert_eq!(Timestamp::from(before).as_millis(), -1_500);
    }
}
