//! The real clock and the real randomness.
//!
//! The timer thread sleeps until the earliest exact sleep and only wakes a task: a host has one at a time. It exists because
//! tokio's timer wheel turns in whole milliseconds, while `park_timeout` returns within some 0.1 ms of its time.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Weak;
use std::task::{Context, Poll, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Clock, Random, Sleep, Timestamp};
use crate::quiet::{self, guarded};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex};

/// The machine's clock, and sleeps that wake within a fraction of a millisecond.
///
/// The clock's timer thread starts with the first exact sleep and ends when the clock and its sleeps are dropped.
#[derive(Debug, Default)]
pub struct SystemClock {
    timer: Mutex<Option<Arc<Timer>>>,
}

impl SystemClock {
    fn timer(&self) -> Option<Arc<Timer>> {
        let mut timer = self.timer.lock();
        if timer.is_none() {
            *timer = Timer::start();
        }
        timer.clone()
    }
}

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the clock that everything else reads")]
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }

    fn elapsed(&self) -> Duration {
        let time = boot_time();
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    }

    #[allow(clippy::disallowed_methods, reason = "this is the clock that everything else sleeps by")]
    fn sleep(&self, duration: Duration) -> Sleep {
        Box::pin(tokio::time::sleep(duration))
    }

    #[allow(clippy::disallowed_methods, reason = "this is the clock that everything else sleeps by")]
    fn sleep_exact(&self, until: Timestamp) -> Sleep {
        // By the clock itself: `now` leaves out the part of a millisecond that has passed already, which would be slept again.
        let since_epoch = Duration::from_millis(u64::try_from(until.as_millis()).unwrap_or(0));
        let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let duration = since_epoch.saturating_sub(passed);
        match (self.timer(), Instant::now().checked_add(duration)) {
            (Some(timer), Some(deadline)) => {
                let number = timer.sleeps.fetch_add(1, Ordering::Relaxed);
                Box::pin(ExactSleep { timer, deadline, number })
            }
            _ => self.sleep(duration),
        }
    }

    fn is_simulated(&self) -> bool {
        false
    }
}

/// `Instant` stands still while a Linux machine is suspended; a lease must not.
#[cfg(target_os = "linux")]
fn boot_time() -> rustix::time::Timespec {
    rustix::time::clock_gettime(rustix::time::ClockId::Boottime)
}

#[cfg(not(target_os = "linux"))]
fn boot_time() -> rustix::time::Timespec {
    rustix::time::clock_gettime(rustix::time::ClockId::Monotonic)
}

/// The thread that sleeps until the earliest of a few deadlines.
struct Timer {
    /// Sleepers by the time they wait for. Written by sleeps, read by the thread after each unpark; the number tells equal times apart.
    waiting: Mutex<BTreeMap<(Instant, u64), Waker>>,
    /// The number of the next sleep.
    sleeps: AtomicU64,
    /// Set by the thread when it ends by a panic.
    has_died: AtomicBool,
    thread: Thread,
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").finish_non_exhaustive()
    }
}

impl Timer {
    /// Starts the thread; `None` if the machine has no thread left to give, and sleeps are then tokio's.
    fn start() -> Option<Arc<Timer>> {
        let (give, take) = std::sync::mpsc::sync_channel::<Weak<Timer>>(1);
        let run = move || {
            let Ok(timer) = take.recv() else { return };
            // The thread holds no strong reference while parked, so it ends soon after its clock and its sleeps.
            let rings = guarded(|| {
                while let Some(wait) = timer.upgrade().map(|timer| timer.ring()) {
                    match wait {
                        Some(wait) => thread::park_timeout(wait),
                        None => thread::park(),
                    }
                }
            });
            if rings.is_err()
                && let Some(timer) = timer.upgrade()
            {
                timer.give_up();
            }
        };
        let handle = thread::Builder::new().name("alarm-timer".into()).spawn(run).ok()?;
        let timer = Timer {
            waiting: Mutex::new(BTreeMap::new()),
            sleeps: AtomicU64::new(0),
            has_died: AtomicBool::new(false),
            thread: handle.thread().clone(),
        };
        let timer = Arc::new(timer);
        give.send(Arc::downgrade(&timer)).ok()?;
        Some(timer)
    }

    /// The thread has died: whoever sleeps learns it.
    fn give_up(&self) {
        let mut waiting = self.waiting.lock();
        self.has_died.store(true, Ordering::Release);
        let wakers = std::mem::take(&mut *waiting);
        drop(waiting);
        wakers.into_values().for_each(quiet::wake);
    }

    /// Says whether the thread still rings; asked under the lock of `waiting`.
    fn is_alive(&self) -> Option<()> {
        (!self.has_died.load(Ordering::Acquire)).then_some(())
    }

    /// Wakes every sleep whose time has come, then says how long to park: `None` for until unparked.
    #[allow(clippy::disallowed_methods, reason = "this thread is the clock's")]
    fn ring(&self) -> Option<Duration> {
        loop {
            let mut waiting = self.waiting.lock();
            let first = waiting.first_entry()?;
            let wait = first.key().0.saturating_duration_since(Instant::now());
            if !wait.is_zero() {
                return Some(wait);
            }
            let waker = first.remove();
            drop(waiting);
            quiet::wake(waker);
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.thread.unpark();
    }
}

struct ExactSleep {
    timer: Arc<Timer>,
    deadline: Instant,
    number: u64,
}

impl Future for ExactSleep {
    type Output = ();

    #[allow(clippy::disallowed_methods, reason = "this future is the clock's")]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.deadline {
            return Poll::Ready(());
        }
        let key = (self.deadline, self.number);
        let mut waiting = self.timer.waiting.lock();
        // Else nobody would ever wake it: its host fails with the task that sleeps.
        self.timer.is_alive().expect("the timer's thread rings as long as its clock exists");
        waiting.insert(key, cx.waker().clone());
        let is_first = waiting.first_key_value().is_some_and(|(first, _)| *first == key);
        drop(waiting);
        if is_first {
            self.timer.thread.unpark();
        }
        Poll::Pending
    }
}

impl Drop for ExactSleep {
    fn drop(&mut self) {
        self.timer.waiting.lock().remove(&(self.deadline, self.number));
    }
}

/// Random numbers seeded by the operating system.
#[derive(Debug)]
pub struct SystemRandom(Mutex<fastrand::Rng>);

impl Default for SystemRandom {
    #[allow(clippy::disallowed_methods, reason = "this is the randomness that everything else draws from")]
    fn default() -> SystemRandom {
        SystemRandom(Mutex::new(fastrand::Rng::new()))
    }
}

impl Random for SystemRandom {
    fn next_u64(&self) -> u64 {
        self.0.lock().u64(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_whose_timer_has_died_panics_instead_of_sleeping_for_ever() {
        let clock = SystemClock::default();
        let mut sleep = clock.sleep_exact(clock.now() + Duration::from_secs(3600));
        let mut task = Context::from_waker(Waker::noop());
        assert!(sleep.as_mut().poll(&mut task).is_pending());
        let timer = clock.timer().expect("a thread can be had");
        timer.give_up();
        assert!(timer.waiting.lock().is_empty(), "who sleeps is woken");
        let polled = guarded(|| sleep.as_mut().poll(&mut task));
        assert!(polled.is_err_and(|text| text.contains("the timer's thread")));
    }
}
