//! One instance, sent more than it can handle: how much of what it can do it goes on doing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use stable_interfaces::{Context, ContextError, Handle, Host, Interface, MemoryStore, StableInterface};

/// The time that one handler takes.
const WORK: Duration = Duration::from_millis(10);
/// For how long a request waits for its turn, and a handler may run.
const TIMEOUT: Duration = Duration::from_secs(1);
/// For how long one task asks alone, which shows what the instance can handle.
const ALONE: Duration = Duration::from_secs(3);
/// The number of clients that repeat what is refused, in the second part.
const CLIENTS: u64 = 500;

/// The outcome of a run.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Requests per second that one task had answered, which asked nothing before its last was.
    pub alone: f64,
    /// Requests per second that were sent.
    pub sent: f64,
    /// Requests per second that were done.
    pub done: f64,
    /// The fewest that were done in any second but the first and the last.
    pub worst_second: f64,
    /// The number of times the instance was built.
    pub lives: u64,
    /// The number of requests that were answered, of clients that repeat what is refused.
    pub answered: u64,
    /// The number of requests of such clients that may have been done: their answer said that this is not known.
    pub unknown: u64,
    /// The number of requests of such clients that the instance has counted.
    pub counted: u64,
}

/// An instance that counts, each time for a while.
struct Slow;

struct Count;
struct Counted;

impl StableInterface for Slow {
    const NAME: &'static str = "slow";
    type Error = ContextError;
}

impl Handle<Count> for Slow {
    type Reply = ();

    async fn handle(&mut self, cx: &mut Context, _: Count) -> Result<(), ContextError> {
        let count: u64 = cx.get("count").await?.unwrap_or(0);
        tokio::time::sleep(WORK).await;
        cx.put("count", &(count + 1))
    }
}

impl Handle<Counted> for Slow {
    type Reply = u64;

    async fn handle(&mut self, cx: &mut Context, _: Counted) -> Result<u64, ContextError> {
        Ok(cx.get("count").await?.unwrap_or(0))
    }
}

/// Sends `factor` times what the instance can handle for as long as `length`, each request by a task of its own that takes no
/// for an answer; then has clients that repeat whatever can be repeated count for a tenth of that time.
///
/// # Panics
/// If the host does not start, or a request fails in a way that is no matter of load.
pub async fn overload(factor: f64, length: Duration) -> Outcome {
    let lives = Arc::new(AtomicU64::new(0));
    let mut host = Host::local(MemoryStore::new());
    let built = lives.clone();
    let make = move |_: &str| {
        built.fetch_add(1, Ordering::Relaxed);
        Slow
    };
    let slow = host.interface(make).handler_timeout(TIMEOUT).register().expect("its name is good");
    let host = host.start().await.expect("a memory store lets its host start");

    let started = Instant::now();
    let mut count = 0_u64;
    while started.elapsed() < ALONE {
        slow.request("hot", Count).await.expect("one request at a time is no load");
        count += 1;
    }
    let alone = count as f64 / started.elapsed().as_secs_f64();
    let before = slow.request("hot", Counted).await.expect("nobody else asks");

    let (sent, seconds) = send(&slow, alone * factor, length).await;
    // What is queued has its answer by then.
    tokio::time::sleep(2 * TIMEOUT).await;
    let middle = slow.request("hot", Counted).await.expect("nobody else asks");
    let inner = &seconds[1.min(seconds.len())..seconds.len().saturating_sub(1)];
    let worst_second = inner.iter().copied().min().unwrap_or(0) as f64;

    let (answered, unknown) = repeat(&slow, length / 10).await;
    tokio::time::sleep(2 * TIMEOUT).await;
    let counted = slow.request("hot", Counted).await.expect("nobody else asks") - middle;
    drop(host);
    Outcome {
        alone,
        sent: sent as f64 / length.as_secs_f64(),
        done: (middle - before) as f64 / length.as_secs_f64(),
        worst_second,
        lives: lives.load(Ordering::Relaxed),
        answered,
        unknown,
        counted,
    }
}

/// Sends so many requests per second, whatever becomes of them; how many they were, and how many were done in each second.
async fn send(slow: &Interface<Slow>, rate: f64, length: Duration) -> (u64, Vec<u64>) {
    let whole_seconds = usize::try_from(length.as_secs()).unwrap_or(usize::MAX);
    let seconds: Arc<[AtomicU64]> = (0..=whole_seconds).map(|_| AtomicU64::new(0)).collect();
    let started = Instant::now();
    let mut sent = 0_u64;
    while started.elapsed() < length {
        while (sent as f64) < rate * started.elapsed().as_secs_f64() {
            let (slow, seconds) = (slow.clone(), seconds.clone());
            tokio::spawn(async move {
                if slow.request("hot", Count).await.is_ok() {
                    let second = usize::try_from(started.elapsed().as_secs()).unwrap_or(usize::MAX);
                    if let Some(second) = seconds.get(second) {
                        second.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            sent += 1;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (sent, seconds[..whole_seconds].iter().map(|second| second.load(Ordering::Relaxed)).collect())
}

/// Has clients count that repeat what may be repeated; how much was answered, and how much may have been done.
async fn repeat(slow: &Interface<Slow>, length: Duration) -> (u64, u64) {
    let started = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let slow = slow.clone();
            tokio::spawn(async move {
                let (mut answered, mut unknown) = (0, 0);
                // One that has been sent is repeated until its answer is final.
                let mut is_open = false;
                while is_open || started.elapsed() < length {
                    is_open = false;
                    match slow.request("hot", Count).await {
                        Ok(()) => answered += 1,
                        Err(error) if error.may_have_happened() => unknown += 1,
                        Err(error) => {
                            assert!(error.is_retryable(), "no matter of load: {error}");
                            is_open = true;
                        }
                    }
                }
                (answered, unknown)
            })
        })
        .collect();
    let (mut answered, mut unknown) = (0, 0);
    for client in clients {
        let (its_answered, its_unknown) = client.await.expect("a client does not fail");
        answered += its_answered;
        unknown += its_unknown;
    }
    (answered, unknown)
}
