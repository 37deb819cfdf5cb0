//! Time and randomness that a test decides.
//!
//! [`SimClock`] reads tokio's clock and nothing else, so under `#[tokio::test(start_paused = true)]` time passes only when
//! every task waits, and then at once.

use std::time::Duration;

use tokio::time::Instant;

use crate::clock::{Clock, Random, Sleep, Timestamp};
use crate::sync::atomic::{AtomicI64, Ordering};
use crate::sync::{Arc, Mutex};

/// A clock on tokio's time, with a wall that can be set and stepped. Clones are the same clock.
///
/// Make it inside the runtime whose time it is to follow.
///
/// ```
/// # use std::time::Duration;
/// # use stable_interfaces::{Timestamp, testing::SimClock};
/// # use stable_interfaces::clock::Clock;
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?.block_on(async {
/// let clock = SimClock::new(Timestamp::from_millis(1_000));
/// clock.sleep(Duration::from_secs(3_600)).await;          // takes no time
/// assert_eq!(clock.now(), Timestamp::from_millis(3_601_000));
/// clock.step(-500);                                       // the wall alone
/// assert_eq!(clock.now(), Timestamp::from_millis(3_600_500));
/// assert_eq!(clock.elapsed(), Duration::from_secs(3_600));
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SimClock {
    /// The beginning of the lease clock.
    start: Instant,
    /// The time of the wall at `start`, in milliseconds, as set and stepped since.
    wall: Arc<AtomicI64>,
}

impl SimClock {
    /// A clock whose wall shows `now`, and whose lease time is zero.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "this is the clock that a simulation reads")]
    pub fn new(now: Timestamp) -> SimClock {
        SimClock { start: Instant::now(), wall: Arc::new(AtomicI64::new(now.as_millis())) }
    }

    /// Another clock with the same lease time and a wall of its own, which shows the same for now: another machine.
    #[must_use]
    pub fn separate(&self) -> SimClock {
        SimClock { start: self.start, wall: Arc::new(AtomicI64::new(self.wall.load(Ordering::SeqCst))) }
    }

    /// Moves the wall by `millis`, back if negative. Sleeps and [`elapsed`](Clock::elapsed) do not notice.
    pub fn step(&self, millis: i64) {
        self.wall.fetch_add(millis, Ordering::SeqCst);
    }

    /// Sets the wall to `now`.
    pub fn set(&self, now: Timestamp) {
        self.wall.store(now.as_millis() - self.elapsed_millis(), Ordering::SeqCst);
    }

    fn elapsed_millis(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}

impl Clock for SimClock {
    fn is_simulated(&self) -> bool {
        true
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.wall.load(Ordering::SeqCst).saturating_add(self.elapsed_millis()))
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    #[allow(clippy::disallowed_methods, reason = "this is the clock that a simulation sleeps by")]
    fn sleep(&self, duration: Duration) -> Sleep {
        Box::pin(tokio::time::sleep(duration))
    }

    fn sleep_exact(&self, until: Timestamp) -> Sleep {
        self.sleep(until.since(self.now()))
    }
}

/// Random numbers that repeat with their seed.
#[derive(Debug)]
pub struct SeededRandom(Mutex<fastrand::Rng>);

impl SeededRandom {
    /// The numbers that belong to `seed`.
    #[must_use]
    pub fn new(seed: u64) -> SeededRandom {
        SeededRandom(Mutex::new(fastrand::Rng::with_seed(seed)))
    }

    /// A number from zero, less than `end`. Zero if `end` is zero.
    #[must_use]
    pub fn below(&self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.0.lock().u64(..end) }
    }

    /// `true` with this probability, from 0 to 1.
    #[must_use]
    pub fn chance(&self, probability: f64) -> bool {
        self.0.lock().f64() < probability
    }

    /// Some part of `most`, in whole milliseconds.
    #[must_use]
    pub fn up_to(&self, most: Duration) -> Duration {
        Duration::from_millis(self.below(u64::try_from(most.as_millis()).unwrap_or(u64::MAX).saturating_add(1)))
    }

    /// One of these; `None` if there are none.
    #[must_use]
    pub fn pick<'a, T>(&self, all: &'a [T]) -> Option<&'a T> {
        let index = self.below(u64::try_from(all.len()).unwrap_or(u64::MAX));
        all.get(usize::try_from(index).unwrap_or(usize::MAX))
    }
}

impl Random for SeededRandom {
    fn next_u64(&self) -> u64 {
        self.0.lock().u64(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[tokio::test(start_paused = true)]
    async fn a_year_of_sleep_passes_at_once_and_shows_on_both_clocks() {
        let clock = SimClock::new(millis(5));
        let year = Duration::from_secs(365 * 86_400);
        clock.sleep_exact(clock.now() + year).await;
        assert_eq!(clock.elapsed(), year);
        assert_eq!(clock.now(), millis(5) + year);
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_moves_the_wall_alone() {
        let clock = SimClock::new(millis(10_000));
        let sleep = clock.sleep(Duration::from_secs(1));
        clock.step(-3_600_000);
        assert_eq!((clock.now(), clock.elapsed()), (millis(-3_590_000), Duration::ZERO));
        sleep.await;
        assert_eq!((clock.now(), clock.elapsed()), (millis(-3_589_000), Duration::from_secs(1)));
        clock.set(millis(7));
        assert_eq!((clock.now(), clock.elapsed()), (millis(7), Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn clones_share_a_wall_and_separate_clocks_do_not() {
        let clock = SimClock::new(millis(0));
        let (same, other) = (clock.clone(), clock.separate());
        clock.sleep(Duration::from_millis(3)).await;
        clock.step(100);
        assert_eq!((same.now(), other.now()), (millis(103), millis(3)));
        assert_eq!(other.elapsed(), clock.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_without_end_is_a_sleep() {
        let clock = SimClock::new(millis(0));
        tokio::select! { biased;
            () = clock.sleep(Duration::MAX) => unreachable!("the longest sleep is over"),
            () = clock.sleep(Duration::from_secs(1)) => {}
        }
    }

    #[test]
    fn equal_seeds_give_equal_numbers() {
        let draw = |seed| {
            let random = SeededRandom::new(seed);
            [random.next_u64(), random.next_u64(), random.next_u64()]
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}
