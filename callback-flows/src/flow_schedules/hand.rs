//! Time and chance as a schedule wants them.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use stable_interfaces::Timestamp;
use stable_interfaces::clock::{Clock, Random, Sleep};

/// Time as the schedule lets it pass.
#[derive(Debug, Default)]
pub(super) struct Hand {
    now: AtomicI64,
    waiting: Mutex<Vec<Waker>>,
}

impl Hand {
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.now.load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, now: Timestamp) {
        self.now.store(now.as_millis(), Ordering::Relaxed);
        for waker in std::mem::take(&mut *self.waiting.lock()) {
            waker.wake();
        }
    }
}

#[derive(Debug)]
pub(super) struct HandClock(pub(super) Arc<Hand>);

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn elapsed(&self) -> Duration {
        self.0.now().since(Timestamp::UNIX_EPOCH)
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_exact(self.now() + duration)
    }

    fn sleep_exact(&self, until: Timestamp) -> Sleep {
        let hand = self.0.clone();
        Box::pin(poll_fn(move |task| {
            if hand.now() >= until {
                return Poll::Ready(());
            }
            hand.waiting.lock().push(task.waker().clone());
            Poll::Pending
        }))
    }

    fn is_simulated(&self) -> bool {
        true
    }
}

#[derive(Debug)]
pub(super) struct Half;

impl Random for Half {
    fn next_u64(&self) -> u64 {
        u64::MAX / 2
    }
}
