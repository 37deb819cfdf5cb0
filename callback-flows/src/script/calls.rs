//! The calls of scripts: functions of the application, each a step with a key, retries and a limit.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rhai::{Dynamic, Map};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::metrics;
use crate::engine::BoxFuture;
use crate::flow::Flow;
use crate::step::{Fatal, Retry, RetryAfter, StepCx, StepError};

/// The number of times that a call is tried again, where its script says nothing.
const RETRIES: u32 = 5;
/// The time that an attempt may take, where its script says nothing.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The waits between attempts.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The most times that a call may be tried again, and the longest that an attempt may take.
const MOST_RETRIES: u32 = 1_000;
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3_600);
/// The longest time that a script may name: a hundred years, so that a deadline is a moment.
const LONGEST_TIME: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

/// The context that an attempt of a call is given.
#[derive(Debug, Clone)]
pub struct CallCx {
    step: StepCx,
    flow: Arc<str>,
}

impl CallCx {
    /// A text (32 hexadecimal digits) that is the same in every attempt of this call, after a crash too, and of no other. Send it along
    /// wherever a partner knows such keys.
    #[must_use]
    pub fn idempotency_key(&self) -> String {
        self.step.idempotency_key()
    }

    /// The number of this attempt, from 1. An attempt that was cut off by a crash does not count.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.step.attempt()
    }

    /// The name and ID of the flow, `name/id`.
    #[must_use]
    pub fn flow(&self) -> &str {
        &self.flow
    }
}

/// The error of a call, as a script catches it: `#{type, code, status, message}`, `()` for what is not there.
///
/// Without [`retry`](Self::retry) it is the answer of the call. With it, the call is tried again as its script says, and only the error
/// of the last attempt is its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallError {
    #[serde(rename = "type")]
    kind: String,
    code: Option<String>,
    status: Option<u16>,
    message: String,
    #[serde(skip)]
    is_transient: bool,
    #[serde(skip)]
    after: Option<Duration>,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

impl std::error::Error for CallError {}

impl CallError {
    /// An error of this type, such as `card_error`, with a message for people. It is the call's answer.
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> CallError {
        let (kind, message) = (kind.into(), message.into());
        CallError { kind, code: None, status: None, message, is_transient: false, after: None }
    }

    /// Sets a code for programs, such as `card_declined`.
    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> CallError {
        self.code = Some(code.into());
        self
    }

    /// Sets the status of the HTTP response.
    #[must_use]
    pub fn status(mut self, status: u16) -> CallError {
        self.status = Some(status);
        self
    }

    /// Has the call tried again: it may succeed later, or it is not known whether it has.
    #[must_use]
    pub fn retry(mut self) -> CallError {
        self.is_transient = true;
        self
    }

    /// Has the call tried again, and not before this time is over.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> CallError {
        (self.is_transient, self.after) = (true, Some(wait));
        self
    }

    /// The type of the error.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Tells whether the call is to be tried again.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.is_transient
    }

    pub(super) fn to_script(&self) -> Dynamic {
        let text = |text: Option<&str>| text.map_or(Dynamic::UNIT, Into::into);
        let status = self.status.map_or(Dynamic::UNIT, |status| i64::from(status).into());
        let fields = [
            ("type", text(Some(&self.kind))),
            ("code", text(self.code.as_deref())),
            ("status", status),
            ("message", text(Some(&self.message))),
        ];
        fields.into_iter().map(|(name, value)| (name.into(), value)).collect::<Map>().into()
    }
}

/// The code of a call.
pub(super) type Run = dyn Fn(CallCx, Value) -> BoxFuture<Result<Value, CallError>> + Send + Sync;

/// A function of the application that scripts may call.
pub(super) struct Call {
    pub(super) name: Arc<str>,
    run: Box<Run>,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Call {
    pub(super) fn new<F, Fut>(name: &str, run: F) -> Call
    where
        F: Fn(CallCx, Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Value, CallError>> + Send + 'static,
    {
        Call { name: name.into(), run: Box::new(move |cx, arguments| Box::pin(run(cx, arguments))) }
    }
}

/// The way in which a call is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) retries: u32,
    pub(super) timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options { retries: RETRIES, timeout: TIMEOUT }
    }
}

impl Options {
    /// Takes one option of a script.
    pub(super) fn set(&mut self, name: &str, value: &Dynamic) -> Result<(), String> {
        match name {
            "retry" => {
                let retries = value.as_int().ok().and_then(|retries| u32::try_from(retries).ok());
                let retries = retries.filter(|retries| *retries <= MOST_RETRIES);
                self.retries = retries
                    .ok_or_else(|| format!("`retry` is a whole number from 0 to {MOST_RETRIES}, and not {value}"))?;
            }
            "timeout" => {
                let timeout = duration(value)?;
                if timeout.is_zero() || timeout > LONGEST_TIMEOUT {
                    return Err(format!("`timeout` is more than 0 and at most an hour, and not {value}"));
                }
                self.timeout = timeout;
            }
            other => return Err(format!("`{other}` is no option of a call: `retry` and `timeout` are")),
        }
        Ok(())
    }

    /// All by which a call with these arguments is told from another one of its name.
    pub(super) fn key(&self, arguments: &Value) -> Value {
        json!([arguments, self.retries, self.timeout])
    }
}

/// The answer to a call, as its step records it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answered {
    Ok(Value),
    Error(CallError),
}

/// Begins a call as a step of this name and key. In an undo closure, it is tried until it succeeds, or blocks the flow.
pub(super) fn begin(
    flow: &Flow,
    (call, key, at): (Arc<Call>, &str, Arc<str>),
    arguments: Value,
    options: Options,
    is_undo: bool,
) -> impl Future<Output = Answered> + Send + use<> {
    let name = call.name.clone();
    let retry = Retry::default().between(FIRST_WAIT, LONGEST_WAIT).within(Duration::MAX);
    let retry = retry.attempts(if is_undo { u32::MAX } else { options.retries + 1 });
    let mut step = flow.step_for(&name, key).retry(retry).input(&arguments).shown_at(at);
    if is_undo {
        step = step.then_block();
    }
    let (clock, identity) = (flow.shared().clock.clone(), flow.shared().identity.clone());
    let step = step.run(move |step| {
        let (call, arguments, clock) = (call.clone(), arguments.clone(), clock.clone());
        let (cx, timeout) = (CallCx { step, flow: identity.clone() }, options.timeout);
        let is_last = !is_undo && cx.attempt() > options.retries;
        async move {
            let (attempt, began) = (cx.attempt(), clock.elapsed());
            let limit = clock.sleep(timeout);
            let result = tokio::select! { biased;
                result = (call.run)(cx, arguments) => result,
                () = limit => Err(CallError::new("timeout", format!("there was no answer within {timeout:?}")).retry()),
            };
            metrics::called(&call.name, result.is_ok(), attempt, clock.elapsed().saturating_sub(began));
            match result {
                Ok(value) => Ok(Answered::Ok(value)),
                Err(error) if !is_undo && (is_last || !error.is_transient) => Ok(Answered::Error(error)),
                Err(error) => match error.after {
                    Some(after) => Err(Box::<dyn std::error::Error + Send + Sync>::from(RetryAfter::new(after, error))),
                    None if error.is_transient => Err(error.into()),
                    None => Err(Fatal::new(error).into()),
                },
            }
        }
    });
    async move {
        step.await.unwrap_or_else(|error| {
            let kind = match &error {
                StepError::TooLarge(_) => "too_large",
                _ => "failed",
            };
            Answered::Error(CallError::new(kind, error.to_string()))
        })
    }
}

/// A time of a script: a number of seconds, or a text such as `"20s"` (ms, s, m, h, d).
pub(super) fn duration(value: &Dynamic) -> Result<Duration, String> {
    let wrong = || format!("{value} is no time: seconds, or such as \"500ms\", \"20s\", \"15m\", \"2h\", \"1d\"");
    let time = if let Ok(seconds) = value.as_int() {
        Duration::from_secs(u64::try_from(seconds).map_err(|_| wrong())?)
    } else {
        let seconds = if let Ok(seconds) = value.as_float() {
            seconds
        } else {
            let text = value.read_lock::<rhai::ImmutableString>().ok_or_else(wrong)?;
            let digits = text.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(text.len());
            let unit = match &text[digits..] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3_600.0,
                "d" => 86_400.0,
                _ => return Err(wrong()),
            };
            text[..digits].parse::<f64>().map_err(|_| wrong())? * unit
        };
        Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?
    };
    if time > LONGEST_TIME {
        return Err(wrong());
    }
    // To the millisecond, as deadlines are stored.
    Ok(Duration::from_millis(u64::try_from((time + Duration::from_micros(500)).as_millis()).map_err(|_| wrong())?))
}

/// The error of a child flow, as a script catches it.
pub(super) fn child_error(error: &crate::child::ChildError) -> CallError {
    let kind = if matches!(error, crate::child::ChildError::Cancelled) { "flow_cancelled" } else { "flow_failed" };
    CallError::new(kind, error.to_string())
}
