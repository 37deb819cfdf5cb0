//! Policies of trying a failed alarm again, and of giving it up.

use std::time::Duration;

use crate::clock::Random;

/// The waits before a handler that failed on an alarm or message is run again.
///
/// The wait doubles from `first` up to `longest`, counted from the moment of the failure, plus up to a fifth of it at random,
/// so that what failed together does not come back together. After `attempts` failures the alarm becomes a dead letter.
///
/// ```
/// use std::time::Duration;
/// use stable_interfaces::RetryPolicy;
///
/// // After 100 ms, 200 ms, 400 ms and so on, up to a minute; a dead letter after ten failures. For `InterfaceBuilder::retry`.
/// let policy = RetryPolicy::new().first(Duration::from_millis(100)).longest(Duration::from_secs(60)).attempts(10);
/// assert_ne!(policy, RetryPolicy::default()); // Forty attempts, over more than a day.
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    first: Duration,
    longest: Duration,
    attempts: u32,
}

impl Default for RetryPolicy {
    /// 1 s, doubling up to one hour, 40 attempts: more than a day.
    fn default() -> RetryPolicy {
        RetryPolicy { first: Duration::from_secs(1), longest: Duration::from_secs(3600), attempts: 40 }
    }
}

impl RetryPolicy {
    /// The default policy: more than a day of attempts.
    #[must_use]
    pub fn new() -> RetryPolicy {
        RetryPolicy::default()
    }

    /// The wait after the first failure. Default: 1 s.
    #[must_use]
    pub fn first(mut self, wait: Duration) -> RetryPolicy {
        self.first = wait;
        self
    }

    /// The longest wait between two attempts. Default: 1 h.
    #[must_use]
    pub fn longest(mut self, wait: Duration) -> RetryPolicy {
        self.longest = wait;
        self
    }

    /// Sets the number of attempts in all, at least one. Default: 40.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> RetryPolicy {
        self.attempts = attempts.max(1);
        self
    }

    /// The wait after the `failed`th failure in a row (from 1); `None` to give up.
    pub(crate) fn wait_after(&self, failed: u32, random: &dyn Random) -> Option<Duration> {
        if failed >= self.attempts {
            return None;
        }
        let wait = self.base_wait(failed);
        let fifth = u64::try_from(wait.as_millis() / 5).unwrap_or(u64::MAX);
        Some(wait.saturating_add(Duration::from_millis(random.next_u64() % fifth.saturating_add(1))))
    }

    fn base_wait(&self, failed: u32) -> Duration {
        self.first.saturating_mul(1 << failed.saturating_sub(1).min(30)).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Zero;
    impl Random for Zero {
        fn next_u64(&self) -> u64 {
            0
        }
    }

    #[test]
    fn the_default_policy_keeps_trying_for_more_than_a_day() {
        let policy = RetryPolicy::default();
        let waits: Vec<_> = (1..).map_while(|failed| policy.wait_after(failed, &Zero)).collect();
        assert_eq!(waits.len(), 39);
        assert!(waits.iter().sum::<Duration>() >= Duration::from_secs(24 * 3600));
        assert!(waits.is_sorted());
    }

    #[test]
    fn the_longest_waits_there_are_have_no_end_and_do_no_harm() {
        let policy = RetryPolicy::new().first(Duration::MAX).longest(Duration::MAX).attempts(u32::MAX);
        assert_eq!(policy.wait_after(1, &Zero), Some(Duration::MAX));
        assert_eq!(policy.wait_after(u32::MAX - 1, &crate::testing::SeededRandom::new(1)), Some(Duration::MAX));
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let policy = RetryPolicy::new().first(Duration::from_millis(100)).longest(Duration::from_millis(350));
        let waits: Vec<_> =
            (1..5).map(|failed| policy.wait_after(failed, &Zero).map(|wait| wait.as_millis())).collect();
        assert_eq!(waits, [Some(100), Some(200), Some(350), Some(350)]);
    }
}
