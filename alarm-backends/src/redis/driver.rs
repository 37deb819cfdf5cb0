//! The driver of a connection, polled by the calls that wait for its answers.
//!
//! A connection writes what is asked and reads what is answered in a future of its own. As a task that is one more to wake, both on the way to the server
//! and back. Here the calls that wait are woken by what happens on the connection, all of them, and whichever comes first polls the driver for all. What
//! happens while it does so wakes nobody; it sees that itself, or wakes all again before it leaves off. So none depends on another's being polled again.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The driver of one connection.
pub(super) struct Driver {
    /// The future that reads and writes; `None` once the connection has ended. Held while it is polled, and never waited for.
    work: Mutex<Option<Work>>,
    events: Arc<Events>,
    /// The waker of these events, for the work and for the requests.
    waker: Waker,
}

/// Events of a connection: something can be read or written, is asked, or is answered.
#[derive(Default)]
struct Events {
    /// There has been one since the work was polled last.
    is_new: AtomicBool,
    /// A call polls the work, and looks at `is_new` afterwards.
    is_polled: AtomicBool,
    calls: Mutex<Calls>,
}

/// The calls that wait, by their numbers, with the wakers of their tasks.
#[derive(Default)]
struct Calls {
    last: u64,
    waiting: Vec<(u64, Waker)>,
}

impl Driver {
    pub(super) fn new(work: impl Future<Output = ()> + Send + 'static) -> Driver {
        let events = Arc::<Events>::default();
        let waker = Waker::from(events.clone());
        Driver { work: Mutex::new(Some(Box::pin(work))), events, waker }
    }

    /// Waits for the answer to a request of this connection, which does not come without.
    pub(super) async fn answer<T>(&self, request: impl Future<Output = T>) -> T {
        let (mut request, mut call) = (pin!(request), Call { driver: self, number: None });
        poll_fn(|task| call.poll(request.as_mut(), task)).await
    }
}

/// A call that waits for its answer.
struct Call<'a> {
    driver: &'a Driver,
    /// The number of this call among those that wait.
    number: Option<u64>,
}

impl Call<'_> {
    fn poll<T>(&mut self, mut request: Pin<&mut impl Future<Output = T>>, task: &Context<'_>) -> Poll<T> {
        let Driver { work, events, waker } = self.driver;
        // Before anything is looked at, so that whatever happens after that wakes this call.
        events.wait(&mut self.number, task.waker());
        let mut told = Context::from_waker(waker);
        let Some(mut work) = work.try_lock() else {
            // Whoever polls the work is told of the request, too.
            return request.poll(&mut told);
        };
        let polling = Polling::new(events);
        let mut answer = request.as_mut().poll(&mut told);
        if answer.is_pending() {
            events.is_new.swap(false, Ordering::SeqCst);
            // It stays away if it panics: the connection has ended then.
            if let Some(mut present) = work.take()
                && present.as_mut().poll(&mut told).is_pending()
            {
                *work = Some(present);
            }
            answer = request.poll(&mut told);
        }
        if answer.is_ready() {
            events.leave(&mut self.number);
        }
        drop(work);
        drop(polling);
        answer
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.driver.events.leave(&mut self.number);
    }
}

/// The time while a call polls the work: nobody is woken, and after that all who wait, if something has happened.
struct Polling<'a>(&'a Events);

impl Polling<'_> {
    fn new(events: &Events) -> Polling<'_> {
        events.is_polled.store(true, Ordering::SeqCst);
        Polling(events)
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.0.is_polled.store(false, Ordering::SeqCst);
        if self.0.is_new.load(Ordering::SeqCst) {
            self.0.wake_all();
        }
    }
}

impl Events {
    fn wait(&self, number: &mut Option<u64>, waker: &Waker) {
        let mut calls = self.calls.lock();
        let known = number.and_then(|number| calls.waiting.iter_mut().find(|(of, _)| *of == number));
        let old = match known {
            Some((_, known)) if known.will_wake(waker) => None,
            Some((_, known)) => Some(std::mem::replace(known, waker.clone())),
            None => {
                calls.last += 1;
                *number = Some(calls.last);
                let call = (calls.last, waker.clone());
                calls.waiting.push(call);
                None
            }
        };
        // A waker may be the last that keeps a task.
        drop(calls);
        drop(old);
    }

    fn leave(&self, number: &mut Option<u64>) {
        let Some(number) = number.take() else { return };
        let mut calls = self.calls.lock();
        let place = calls.waiting.iter().position(|(of, _)| *of == number);
        let old = place.map(|place| calls.waiting.swap_remove(place));
        drop(calls);
        drop(old);
    }

    fn wake_all(&self) {
        self.calls.lock().waiting.iter().for_each(|(_, waker)| waker.wake_by_ref());
    }
}

impl Wake for Events {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_new.store(true, Ordering::SeqCst);
        if !self.is_polled.load(Ordering::SeqCst) {
            self.wake_all();
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "only a test that fails waits so long")]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use futures_util::future::{join, join_all};
    use redis::aio::MultiplexedConnection;
    use redis::{AsyncConnectionConfig, Cmd, RedisConnectionInfo, RedisResult, Value};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};
    use tokio::time::timeout;

    use super::*;

    /// Answers each command that comes, as a text with its last argument, until it has been told `END`.
    async fn serve(stream: DuplexStream) {
        let (reads, mut writes) = tokio::io::split(stream);
        let mut lines = BufReader::new(reads).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let Some(parts) = line.strip_prefix('*') else { continue };
            let mut last = String::new();
            // A length and a text each.
            for _ in 0..2 * parts.parse::<usize>().unwrap() {
                last = lines.next_line().await.unwrap().unwrap();
            }
            if last == "END" {
                return;
            }
            writes.write_all(format!("+{last}\r\n").as_bytes()).await.unwrap();
        }
    }

    async fn connected() -> (MultiplexedConnection, Arc<Driver>) {
        let (ours, theirs) = duplex(4_096);
        tokio::spawn(serve(theirs));
        let (info, config) = (RedisConnectionInfo::default(), AsyncConnectionConfig::default());
        let connecting = MultiplexedConnection::new_with_config(&info, ours, config);
        let (connection, driver) = connecting.await.unwrap();
        (connection, Arc::new(Driver::new(driver)))
    }

    async fn ask(mut connection: MultiplexedConnection, driver: &Driver, text: &str) -> RedisResult<Value> {
        let mut command = Cmd::new();
        command.arg("ECHO").arg(text);
        driver.answer(connection.send_packed_command(&command)).await
    }

    fn text(text: &str) -> RedisResult<Value> {
        Ok(Value::SimpleString(text.to_owned()))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn calls_of_several_tasks_are_all_answered() {
        let (connection, driver) = connected().await;
        let calls = (0..8).map(|task| {
            let (connection, driver) = (connection.clone(), driver.clone());
            tokio::spawn(async move {
                for number in 0..2_000 {
                    let asked = format!("{task} {number}");
                    let answer = timeout(Duration::from_secs(30), ask(connection.clone(), &driver, &asked)).await;
                    assert_eq!(answer.unwrap(), text(&asked));
                }
            })
        });
        for done in join_all(calls).await {
            done.unwrap();
        }
        assert!(driver.events.calls.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn a_call_that_is_not_polled_any_more_and_one_that_is_dropped_hold_up_no_other() {
        let (connection, driver) = connected().await;
        let mut silent = Box::pin(ask(connection.clone(), &driver, "silent"));
        let mut dropped = Box::pin(ask(connection.clone(), &driver, "dropped"));
        for call in [silent.as_mut(), dropped.as_mut()] {
            assert_eq!(call.now_or_never(), None);
        }
        drop(dropped);
        for asked in ["one", "two"] {
            assert_eq!(ask(connection.clone(), &driver, asked).await, text(asked));
        }
        assert_eq!(silent.await, text("silent"));
    }

    #[tokio::test]
    async fn the_end_of_a_connection_ends_all_calls() {
        let (connection, driver) = connected().await;
        let both = join(ask(connection.clone(), &driver, "END"), ask(connection.clone(), &driver, "later"));
        let (first, second) = timeout(Duration::from_secs(30), both).await.unwrap();
        assert!(first.is_err() && second.is_err(), "{first:?} {second:?}");
        assert!(ask(connection, &driver, "after").await.is_err());
    }
}
