//! Steps: what a flow does outside of itself, with a result that is kept.

use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use stable_interfaces::clock::{Clock, Random, Sleep};
use stable_interfaces::{Timestamp, outside_of_handlers};

use crate::blocked::{Blocked, BlockedKind};
use crate::engine::{Kind, Life, Shared, Ticket};
use crate::flow::Flow;
use crate::hash::hash_of;
use crate::journal::{Detail, Event, Key, StepOutcome};
use crate::status::cut_to;

/// A wait for the next attempt that is longer than this outlives the process.
const LONG_WAIT: Duration = Duration::from_secs(10);
/// The shortest wait for the next attempt: without one, a step that fails at once would leave its thread to nobody.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
/// The longest error text that is kept, in bytes.
const MAX_ERROR_BYTES: usize = 4_096;

/// A step that has not begun: [`Flow::step`].
///
/// It runs in the flow's own future and may borrow of it. It starts when all that came before is durable, and its result is durable
/// before the flow goes on. After a crash an unfinished one is run again, with the same
/// [idempotency key](StepCx::idempotency_key); a finished one never is. Dropped, it is cancelled, and never recorded.
#[derive(Debug)]
#[must_use = "a step is begun by `run`"]
pub struct Step<'a> {
    flow: &'a Flow,
    name: &'a str,
    key: Option<&'a str>,
    retry: Retry,
    timeout: Option<Duration>,
    input: Option<u64>,
    is_at_most_once: bool,
    blocks: bool,
    #[cfg(feature = "rhai")]
    at: Option<Arc<str>>,
}

/// The number of attempts of a step that fails, and the waits between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    first: Duration,
    longest: Duration,
    within: Duration,
    attempts: u32,
}

impl Default for Retry {
    /// Tries again after 100 ms, then after twice as long each time, up to a minute, less up to a half by chance; for an hour.
    fn default() -> Retry {
        let longest = Duration::from_secs(60);
        Retry { first: Duration::from_millis(100), longest, within: Duration::from_secs(3_600), attempts: u32::MAX }
    }
}

impl Retry {
    /// Never again.
    #[must_use]
    pub fn never() -> Retry {
        Retry::default().attempts(1)
    }

    /// The wait before the second attempt, and the longest wait between two. Each is 1 ms at least.
    #[must_use]
    pub fn between(mut self, first: Duration, longest: Duration) -> Retry {
        (self.first, self.longest) = (first, longest);
        self
    }

    /// Limits the time, from the beginning of the step, within which another attempt may begin. Default: an hour.
    #[must_use]
    pub fn within(mut self, time: Duration) -> Retry {
        self.within = time;
        self
    }

    /// Limits the number of attempts. At least 1. Default: no limit but that of [time](Self::within).
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Retry {
        self.attempts = attempts.max(1);
        self
    }

    /// The wait after so many failed attempts, if there is to be another, and at least `least`.
    fn wait(&self, failed: u32, least: Duration, since: Duration, random: &dyn Random) -> Option<Duration> {
        let doubled = self.first.saturating_mul(1_u32.checked_shl(failed - 1).unwrap_or(u32::MAX)).min(self.longest);
        let half = doubled / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        let wait =
            (half + Duration::from_nanos(random.next_u64() % nanos.saturating_add(1))).max(least).max(SHORTEST_WAIT);
        (failed < self.attempts && since.saturating_add(wait) <= self.within).then_some(wait)
    }
}

/// The reason why a step failed for good. This is recorded: a replay sees the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The last attempt of the step failed.
    #[error("{error} (attempt {attempts})")]
    Failed {
        /// The error of the last attempt, with its causes.
        error: Arc<str>,
        /// The attempts that were made.
        attempts: u32,
    },
    /// The step may run once at most, and the process died while it ran: it may have happened.
    #[error("its process died while it ran, and it may run once at most")]
    Interrupted,
    /// The value of the step is too large to be kept. It has happened.
    #[error("its value has {0} bytes, which is too large to be kept")]
    TooLarge(u64),
    /// The recorded value is not of the type that the code asks for.
    #[error("its recorded value is of another type: {0}")]
    Decode(Arc<str>),
}

/// An error of a step that no further attempt can mend: `Err(Fatal::new(error).into())`.
#[derive(Debug)]
pub struct Fatal(Box<dyn Error + Send + Sync>);

impl Fatal {
    /// Wraps an error.
    #[must_use]
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Fatal {
        Fatal(error.into())
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Fatal {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// An error of a step after which it is tried again no sooner than after a time, such as the `Retry-After` of a response, be it alone or the
/// cause of another.
///
/// The wait counts by the [`Retry`] of the step too: an attempt that it leaves no time for is not made.
#[cfg(feature = "rhai")]
#[derive(Debug)]
pub(crate) struct RetryAfter {
    wait: Duration,
    error: Box<dyn Error + Send + Sync>,
}

#[cfg(feature = "rhai")]
impl RetryAfter {
    /// Wraps an error after which this time is to pass.
    pub(crate) fn new(wait: Duration, error: impl Into<Box<dyn Error + Send + Sync>>) -> RetryAfter {
        RetryAfter { wait, error: error.into() }
    }
}

#[cfg(feature = "rhai")]
impl fmt::Display for RetryAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

#[cfg(feature = "rhai")]
impl Error for RetryAfter {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

/// The context that one attempt of a step is given.
#[derive(Debug, Clone)]
pub struct StepCx {
    shared: Arc<Shared>,
    key: Key,
    attempt: u32,
}

#[cfg(any(feature = "postgres", feature = "testing"))]
impl StepCx {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }
}

impl StepCx {
    /// A text (32 hexadecimal digits) that is the same in every attempt of this step, after a crash too, and of no other.
    #[must_use]
    pub fn idempotency_key(&self) -> String {
        self.shared.idempotency_key(&self.key)
    }

    /// The number of this attempt, from 1. An attempt that was cut off by a crash does not count.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Tells whether the host is about to leave: time to come to an end.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.is_draining.load(Ordering::Relaxed)
    }
}

impl<'a> Step<'a> {
    pub(crate) fn new(flow: &'a Flow, name: &'a str, key: Option<&'a str>) -> Step<'a> {
        let retry = Retry::default();
        Step {
            flow,
            name,
            key,
            retry,
            timeout: None,
            input: None,
            is_at_most_once: false,
            blocks: false,
            #[cfg(feature = "rhai")]
            at: None,
        }
    }

    /// Names the place in a script that waits for it, for the flow's status.
    #[cfg(feature = "rhai")]
    pub(crate) fn shown_at(mut self, place: Arc<str>) -> Step<'a> {
        self.at = Some(place);
        self
    }

    /// The rule by which it is tried again. Default: [`Retry::default`].
    pub fn retry(mut self, retry: Retry) -> Step<'a> {
        self.retry = retry;
        self
    }

    /// The time that an attempt may take; one that takes longer has failed. Default: no limit.
    pub fn timeout(mut self, limit: Duration) -> Step<'a> {
        self.timeout = Some(limit);
        self
    }

    /// Blocks the flow when it has failed for good, in place of an error: until somebody has looked at it, and resumes the flow.
    pub fn then_block(mut self) -> Step<'a> {
        self.blocks = true;
        self
    }

    /// Runs it once at most: after a crash in the middle of it there is [`StepError::Interrupted`], and no second attempt is made
    /// after a failed one. Costs a commit more.
    pub fn at_most_once(mut self) -> Step<'a> {
        self.is_at_most_once = true;
        self
    }

    /// The input that it works on. A replay with another input is found out, and blocks the flow.
    pub fn input(mut self, input: &(impl Serialize + ?Sized)) -> Step<'a> {
        self.input = serde_json::to_vec(input).ok().map(|json| hash_of(&json));
        self
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn take_timeout(&mut self) -> Option<Duration> {
        self.timeout.take()
    }

    /// Begins it. `run` is called once for each attempt.
    ///
    /// # Errors
    /// [`StepError`] when it has failed for good.
    pub fn run<T, E, F, Fut>(self, run: F) -> impl Future<Output = Result<T, StepError>> + Send + use<T, E, F, Fut>
    where
        F: Fn(StepCx) -> Fut + Send,
        Fut: Future<Output = Result<T, E>> + Send,
        T: Serialize + DeserializeOwned,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let Step { flow, name, key, retry, timeout, input, is_at_most_once, blocks, .. } = self;
        let detail = input.map_or(Detail::None, Detail::Input);
        let ticket = flow.shared().claim(flow.scope(), Kind::Step, name, key, detail);
        #[cfg(feature = "rhai")]
        if let Some(at) = self.at {
            ticket.show_at(at);
        }
        let since = flow.now();
        let retry = if is_at_most_once { Retry::never() } else { retry };
        #[cfg(feature = "testing")]
        let run = move |cx| crate::testing::fakes::attempt(&run, cx);
        // What a step asks of another instance is no part of the turn that polls it.
        let run = move |cx| outside_of_handlers(run(cx));
        let mut attempts = Attempts { retry, timeout, blocks, is_at_most_once, since, failed: 0, stage: Stage::Idle };
        async move {
            let waker = ticket.step_waker();
            // Taken along whole: a borrow of it would have to be `Sync`.
            let outcome = poll_fn(move |task| {
                if let Poll::Ready(item) = ticket.poll(task) {
                    // What it still holds goes before the flow goes on.
                    attempts.stage = Stage::Idle;
                    let Event::Result { outcome, .. } = item.event else {
                        unreachable!("a step is given results alone");
                    };
                    return Poll::Ready(outcome);
                }
                if let Some((failed, intent)) = ticket.may_run() {
                    let mut task = Context::from_waker(&waker);
                    Ticket::outside_of_code(|| attempts.poll(&ticket, (failed, intent), &run, &mut task));
                }
                Poll::Pending
            })
            .await;
            match outcome {
                StepOutcome::Done(value) => {
                    serde_json::from_slice(&value).map_err(|error| StepError::Decode(error.to_string().into()))
                }
                StepOutcome::Failed { error, attempts } => Err(StepError::Failed { error, attempts }),
                StepOutcome::Interrupted => Err(StepError::Interrupted),
                StepOutcome::TooLarge(bytes) => Err(StepError::TooLarge(bytes)),
            }
        }
    }
}

/// The attempts of a step in this process.
struct Attempts<Fut> {
    retry: Retry,
    timeout: Option<Duration>,
    blocks: bool,
    is_at_most_once: bool,
    since: Timestamp,
    failed: u32,
    stage: Stage<Fut>,
}

enum Stage<Fut> {
    /// Nothing is under way.
    Idle,
    Running(Pin<Box<Fut>>, Option<Sleep>),
    /// A wait for the next attempt.
    Waiting(Sleep),
}

impl<Fut> Attempts<Fut> {
    /// Goes on with the attempt that is under way, or begins the next one, and hands in what comes of it.
    fn poll<T: Serialize, E: Into<Box<dyn Error + Send + Sync>>>(
        &mut self,
        ticket: &Ticket,
        (failed, intent): (u32, Option<Life>),
        run: &impl Fn(StepCx) -> Fut,
        task: &mut Context<'_>,
    ) where
        Fut: Future<Output = Result<T, E>>,
    {
        let shared = ticket.shared();
        let clock: &dyn Clock = &*shared.clock;
        let result = |outcome| Event::Result { step: ticket.key().clone(), outcome };
        self.failed = self.failed.max(failed);
        loop {
            match &mut self.stage {
                Stage::Idle => {
                    match intent {
                        _ if !self.is_at_most_once => {}
                        None => return ticket.hand_in(Event::Intent { step: ticket.key().clone() }),
                        Some(Life::Earlier) => return ticket.hand_in(result(StepOutcome::Interrupted)),
                        Some(Life::This) => {}
                    }
                    let cx = StepCx { shared: shared.clone(), key: ticket.key().clone(), attempt: self.failed + 1 };
                    let limit = self.timeout.map(|limit| clock.sleep(limit));
                    self.stage = Stage::Running(Box::pin(run(cx)), limit);
                }
                Stage::Waiting(wait) => match wait.as_mut().poll(task) {
                    Poll::Ready(()) => self.stage = Stage::Idle,
                    Poll::Pending => return,
                },
                Stage::Running(attempt, limit) => {
                    let failure = match attempt.as_mut().poll(task) {
                        Poll::Ready(Ok(value)) => match serde_json::to_vec(&value) {
                            Ok(json) => {
                                self.stage = Stage::Idle;
                                return ticket.hand_in(result(StepOutcome::of(json, shared.limits.value_bytes)));
                            }
                            Err(error) => {
                                Failure { is_fatal: true, ..Failure::new(format!("its value cannot be JSON: {error}")) }
                            }
                        },
                        Poll::Ready(Err(error)) => Failure::of(&*error.into()),
                        Poll::Pending => match limit.as_mut().map(|limit| limit.as_mut().poll(task)) {
                            Some(Poll::Ready(())) => {
                                let limit = self.timeout.unwrap_or_default();
                                Failure::new(format!("it did not end within {limit:?}"))
                            }
                            _ => return,
                        },
                    };
                    self.stage = Stage::Idle;
                    let Some(wait) = self.fail(ticket, failure) else { return };
                    self.stage = Stage::Waiting(clock.sleep(wait));
                }
            }
        }
    }

    /// Counts a failed attempt. Gives out the wait before the next one if that is to be made by this process, and hands in what comes of
    /// the failure if not.
    fn fail(&mut self, ticket: &Ticket, failure: Failure) -> Option<Duration> {
        let shared = ticket.shared();
        self.failed += 1;
        let (error, attempts): (Arc<str>, u32) = (cut(failure.error).into(), self.failed);
        let (now, step) = (shared.clock.now(), ticket.key().clone());
        let wait = || self.retry.wait(attempts, failure.least_wait, now.since(self.since), &*shared.random);
        match (!failure.is_fatal).then(wait).flatten() {
            None if self.blocks => {
                let message = format!("its step `{step}` has failed {attempts} times: {error}");
                shared.fail(Blocked::new(BlockedKind::StepFailed, message));
            }
            None => ticket.hand_in(Event::Result { step, outcome: StepOutcome::Failed { error, attempts } }),
            Some(wait) if wait > LONG_WAIT => {
                ticket.hand_in(Event::Attempt { step, attempt: attempts, error, again_at: now + wait });
            }
            Some(wait) => {
                ticket.note_failure(attempts, error);
                return Some(wait);
            }
        }
        None
    }
}

/// The failure of an attempt.
struct Failure {
    error: String,
    /// No other attempt is to be made.
    is_fatal: bool,
    /// The time that is to pass before the next attempt, whatever else is said.
    least_wait: Duration,
}

impl Failure {
    fn new(error: String) -> Failure {
        Failure { error, is_fatal: false, least_wait: Duration::ZERO }
    }

    /// The failure that an error of the application says.
    fn of(error: &(dyn Error + Send + Sync + 'static)) -> Failure {
        Failure { error: with_causes(error), is_fatal: is_fatal(error), least_wait: least_wait(error) }
    }
}

/// An error and its causes.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| <dyn Error>::source(*error))
}

fn is_fatal(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    causes(error).any(|cause| cause.is::<Fatal>())
}

/// The time that is to pass before the next attempt, whatever else is said.
fn least_wait(error: &(dyn Error + Send + Sync + 'static)) -> Duration {
    #[cfg(feature = "rhai")]
    if let Some(after) = causes(error).find_map(|cause| cause.downcast_ref::<RetryAfter>()) {
        return after.wait;
    }
    #[cfg(not(feature = "rhai"))]
    let _ = error;
    Duration::ZERO
}

/// An error and its causes, as one line: `a: b: c`.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A text of an error that fits into a journal.
pub(crate) fn cut(text: String) -> String {
    if text.len() > MAX_ERROR_BYTES { cut_to(&text, MAX_ERROR_BYTES) } else { text }
}
