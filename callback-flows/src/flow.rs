//! The handle that a flow's code holds: everything that it may wait for, and everything that it may ask.

use std::convert::Infallible;
use std::error::Error;
use std::fmt::{self, Write as _};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::try_join;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stable_interfaces::Timestamp;

use crate::callback::Callback;
use crate::engine::{Kind, Shared, Stop, scope_within, timer_name};
use crate::flows::parts_of;
use crate::journal::Detail;
use crate::step::{Step, StepCx, with_causes};
use crate::timer::{Elapsed, Sleep};

/// The result of a flow's code.
pub type FlowResult<T> = Result<T, FlowError>;

/// The error that a flow fails with: any error, converted by `?`, or a text. Its causes are kept as text.
///
/// It is no [`Error`] itself, as `anyhow::Error` is none, so that every error can become one.
pub struct FlowError(Stop);

impl FlowError {
    /// An error with this text.
    #[must_use]
    pub fn new(text: impl fmt::Display) -> FlowError {
        FlowError(Stop::Failed(text.to_string().into()))
    }

    pub(crate) fn into_stop(self) -> Stop {
        self.0
    }

    fn text(&self) -> &str {
        match &self.0 {
            Stop::Failed(text) => text,
            Stop::Continue(_) => "it goes on as another run",
        }
    }
}

impl<E: Error> From<E> for FlowError {
    fn from(error: E) -> FlowError {
        FlowError(Stop::Failed(with_causes(&error).into()))
    }
}

impl fmt::Debug for FlowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl fmt::Display for FlowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// A running flow, as its code sees it. Clones are the same flow.
///
/// The futures that its methods return may be joined and raced with anything: tokio's `join!` and `select!`, `FuturesUnordered`, streams. A
/// replay sees everything in the order in which it happened first. Each operation has a name, which a replay finds it by, so two
/// steps or callbacks of one name cannot be under way at once in one [`branch`](Self::branch).
#[derive(Debug, Clone)]
pub struct Flow {
    shared: Arc<Shared>,
    /// The name of the branch, if it is one.
    scope: Option<Arc<str>>,
}

impl Flow {
    pub(crate) fn new(shared: Arc<Shared>) -> Flow {
        Flow { shared, scope: None }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The name of the branch, for those of its operations.
    pub(crate) fn scope(&self) -> &str {
        self.scope.as_deref().unwrap_or("")
    }

    /// The ID that the flow was started under, which whoever started it chose.
    #[must_use]
    pub fn id(&self) -> &str {
        parts_of(&self.shared.identity).1
    }

    /// The same flow, with names of its own: for code that runs beside other code, or is used in several places.
    #[must_use]
    pub fn branch(&self, name: &str) -> Flow {
        Flow { shared: self.shared.clone(), scope: Some(scope_within(self.scope(), name)) }
    }

    /// A step: something outside of the flow, whose result is kept. See [`Step`].
    pub fn step<'a>(&'a self, name: &'a str) -> Step<'a> {
        Step::new(self, name, None)
    }

    /// A step that is told from others of its name by a key, such as an item's ID.
    pub fn step_for<'a>(&'a self, name: &'a str, key: &'a str) -> Step<'a> {
        Step::new(self, name, Some(key))
    }

    /// A callback: a place for messages from outside, open until it is dropped. See [`Callback`].
    #[must_use]
    pub fn callback<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Callback<T> {
        Callback::new(self.shared.claim(self.scope(), Kind::Callback, name, None, Detail::None))
    }

    /// Waits for a time. The time counts from now on, whatever restarts meanwhile; dropped, it is forgotten.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.timer(&timer_name(duration), self.now() + duration)
    }

    /// Waits until a moment of the host's wall clock.
    pub fn sleep_until(&self, moment: impl Into<Timestamp>) -> Sleep {
        let moment = moment.into();
        self.timer(&format!("until {}", moment.as_millis()), moment)
    }

    fn timer(&self, name: &str, due: Timestamp) -> Sleep {
        Sleep::new(self.shared.claim(self.scope(), Kind::Timer, name, None, Detail::Due(due)))
    }

    /// Waits for `future`, for so long at most. The time counts from this call on.
    ///
    /// # Errors
    /// [`Elapsed`] if the time was over first. The future has been dropped then, which eats nothing.
    pub fn timeout<F: Future>(
        &self,
        limit: Duration,
        future: F,
    ) -> impl Future<Output = Result<F::Output, Elapsed>> + use<F> {
        // An `async` block would keep room for both of them twice. Either ends the other, as an error does, and the future is asked first.
        let over = self.sleep(limit).map(move |()| Err::<Infallible, _>(Err(Elapsed(limit))));
        let ended = try_join(future.map(|value| Err::<Infallible, _>(Ok(value))), over);
        ended.map(|ended| match ended {
            Err(first) => first,
            Ok((never, _)) => match never {},
        })
    }

    /// The time: the same in every replay, for it is that of the last thing that happened to the flow.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.shared.now()
    }

    /// A random UUID (version 4), the same in every replay.
    #[must_use]
    pub fn uuid(&self) -> String {
        let mut drawn = self.shared.draw(self.scope(), "uuid");
        drawn[6] = drawn[6] & 0x0f | 0x40;
        drawn[8] = drawn[8] & 0x3f | 0x80;
        let mut text = String::with_capacity(36);
        for (at, byte) in drawn[..16].iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// A random number, uniform over all of `u64`, the same in every replay.
    #[must_use]
    pub fn random(&self) -> u64 {
        let drawn = self.shared.draw(self.scope(), "random");
        u64::from_le_bytes(drawn[..8].try_into().expect("32 bytes are more than 8"))
    }

    /// Tells whether the flow sees again what it has seen in an earlier life. For what must not be done twice and is not worth a
    /// step, such as counting; its log lines are left out of a replay in any case.
    #[must_use]
    pub fn is_replaying(&self) -> bool {
        self.shared.is_replaying()
    }

    /// Tells whether code that has changed may take its new way: `false` for flows that were past this place before the change.
    /// Ask under a name of the change's own.
    #[must_use]
    pub fn patched(&self, name: &str) -> bool {
        self.shared.is_patched(self.scope(), name)
    }

    /// Goes on with another input and a new journal, under the same ID: for a flow that never ends, whose journal would never end
    /// either. Return it at once, when [`should_continue`](Self::should_continue) says so.
    ///
    /// ```
    /// # use callback_flows::{Flow, FlowResult};
    /// async fn sum(flow: Flow, mut sum: u64) -> FlowResult<u64> {
    ///     let mut numbers = flow.callback::<u64>("numbers");
    ///     loop {
    ///         match numbers.next().await? {
    ///             0 => return Ok(sum),
    ///             number => sum += number,
    ///         }
    ///         if flow.should_continue() {
    ///             return flow.continue_with(&sum);
    ///         }
    ///     }
    /// }
    /// ```
    ///
    /// Callbacks that are open keep their URLs and the messages that were not taken: each is the first of its name, and branch, that
    /// the next run begins. So do signals, and the IDs of calls. The rest is over: timers, steps that were not awaited, undo steps; children
    /// go on by themselves. The next run is of the newest version that takes this input.
    ///
    /// # Errors
    /// It is the error that the flow's code is to return. If `input` cannot be JSON, or is larger than a
    /// [value may be](crate::FlowsBuilder::max_value), that fails the flow.
    pub fn continue_with<T>(&self, input: &(impl Serialize + ?Sized)) -> FlowResult<T> {
        let input = serde_json::to_vec(input)?;
        let limit = self.shared.limits.value_bytes;
        if input.len() > limit {
            let bytes = input.len();
            return Err(FlowError::new(format!("the input of its next run has {bytes} bytes, and may have {limit}")));
        }
        self.shared.keep_callbacks();
        Err(FlowError(Stop::Continue(input.into())))
    }

    /// Tells whether the journal is long enough to be worth a [`continue_with`](Self::continue_with): after 2,000 entries, or 2 MiB. It
    /// is the same in every replay.
    #[must_use]
    pub fn should_continue(&self) -> bool {
        self.shared.should_continue()
    }

    /// Registers a step that is run if this flow fails or is cancelled: the last one that was registered first, each tried again
    /// until it succeeds.
    ///
    /// Register it when what it undoes has succeeded, or before, if it can undo what has not.
    pub fn undo<F, Fut, T, E>(&self, name: &str, run: F)
    where
        F: Fn(StepCx) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + 'static,
    {
        self.shared.note(self.scope(), Kind::Undo, name);
        let (scope, name) = (Some(scope_within(self.scope(), "undo")), name.to_owned());
        self.shared.push_undo(Box::new(move |flow| {
            let flow = Flow { shared: flow.shared, scope };
            Box::pin(async move {
                let step = flow.step(&name).then_block();
                // With `then_block` it only fails when its value is of no use, and that is nobody's.
                let _ = step.run(run).await;
            })
        }));
    }
}
