//! Events: what a flow says of itself while it goes on, and its end, for whoever listens.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use stable_interfaces::Timestamp;
use tokio::sync::broadcast;

use crate::engine::MAX_EVENT_BYTES;
use crate::flow::{Flow, FlowError, FlowResult};
use crate::flows::{FlowsError, Reader, parts_of};
use crate::hub::OfAll;
use crate::journal::Ended;
use crate::status::{State, Status};

/// The first part of the storage keys of events.
pub(crate) const EVENT_KEY: &str = "event";
pub(crate) const PROGRESS: &str = "progress";
pub(crate) const RESOURCE: &str = "resource";
pub(crate) const STARTED: &str = "started";
pub(crate) const BLOCKED: &str = "blocked";
/// The names that events of a flow's own cannot have.
const TAKEN: [&str; 7] = [PROGRESS, RESOURCE, STARTED, BLOCKED, "succeeded", "failed", "cancelled"];
/// The longest name of an event, in bytes.
const MAX_NAME_BYTES: usize = 64;
/// The most bytes of a progress, as JSON, and of a resource: both are in the status.
const MAX_SHOWN_BYTES: usize = 1_024;

/// Something that a flow has said, or that has happened to it: [`Flows::events`](crate::Flows::events),
/// [`Flows::on_event`](crate::Flows::on_event).
#[derive(Debug, Clone)]
pub struct FlowEvent {
    flow: Arc<str>,
    sequence: u64,
    at: Timestamp,
    name: Arc<str>,
    value: Arc<RawValue>,
}

impl FlowEvent {
    pub(crate) fn new(flow: Arc<str>, sequence: u64, at: Timestamp, name: Arc<str>, value: Box<RawValue>) -> FlowEvent {
        FlowEvent { flow, sequence, at, name, value: value.into() }
    }

    /// The name of the flow's code.
    #[must_use]
    pub fn flow(&self) -> &str {
        parts_of(&self.flow).0
    }

    /// The ID that the flow was started under.
    #[must_use]
    pub fn id(&self) -> &str {
        parts_of(&self.flow).1
    }

    /// The ID of the flow's instance: `name/id`.
    pub(crate) fn instance(&self) -> &str {
        &self.flow
    }

    /// The number of the event among the events of its flow, from 1, without a gap. `started` and `blocked`, which are no events of the flow's own,
    /// have that of the one before them.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The moment of the event.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// The name of the event: that which was given to [`Flow::emit`], `progress`, `resource`, or one of the ends: `succeeded`, `failed`, `cancelled`.
    /// Of [`Flows::on_event`](crate::Flows::on_event): `started`, `blocked`, and the ends.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value of the event, as JSON: what was emitted, the progress, the URL of the resource, the error of `failed`, the
    /// [reason](crate::Blocked) of `blocked`; else `null`.
    #[must_use]
    pub fn value(&self) -> &RawValue {
        &self.value
    }

    /// Tells whether it is the last one of its flow.
    #[must_use]
    pub fn is_end(&self) -> bool {
        matches!(&*self.name, "succeeded" | "failed" | "cancelled")
    }

    /// About how many bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.name.len() + self.value.get().len() + 64
    }

    /// The row of the event, which is stored under its sequence number.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Row { at: self.at, name: self.name.as_ref().into(), value: &self.value })
    }

    pub(crate) fn decode(flow: Arc<str>, sequence: u64, row: &[u8]) -> Result<FlowEvent, serde_json::Error> {
        let Row { at, name, value } = serde_json::from_slice(row)?;
        Ok(FlowEvent::new(flow, sequence, at, name.into(), value.to_owned()))
    }

    /// The end of a flow that is over, as its status tells it.
    pub(crate) fn end(flow: Arc<str>, status: &Status) -> Option<FlowEvent> {
        let (name, error) = match &status.state {
            State::Done => ("succeeded", None),
            State::Failed { error } => ("failed", Some(error)),
            State::Cancelled => ("cancelled", None),
            _ => return None,
        };
        Some(FlowEvent::new(flow, status.events + 1, status.changed_at, name.into(), json(&error)))
    }
}

/// The storage key of an event.
pub(crate) fn event_key(sequence: u64) -> String {
    format!("{EVENT_KEY}/{sequence:012}")
}

/// An event as it is stored.
#[derive(Serialize, Deserialize)]
struct Row<'a> {
    at: Timestamp,
    name: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    value: &'a RawValue,
}

/// A value that is known to be JSON.
pub(crate) fn json(value: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap_or_else(|_| null())
}

/// A value that was checked to be JSON when it was emitted.
pub(crate) fn raw(value: &Bytes) -> Box<RawValue> {
    serde_json::from_slice(value).unwrap_or_else(|_| null())
}

fn null() -> Box<RawValue> {
    RawValue::NULL.to_owned()
}

/// The label of an end in metrics.
pub(crate) fn outcome(ended: &Ended) -> &'static str {
    match ended {
        Ended::Done(_) => "succeeded",
        Ended::Failed(_) => "failed",
        Ended::Cancelled => "cancelled",
    }
}

impl Flow {
    /// Emits an event under a name of the application's own (1 to 64 bytes without control characters), once, for
    /// [`Flows::events`](crate::Flows::events). It is told when it is durable, together with all that the flow does at this point.
    ///
    /// # Errors
    /// The error says what to change, and is the same in every replay: a name that cannot be, a value that is not JSON or has more than 32 KiB,
    /// or more than 100 events or 256 KiB without waiting for anything in between.
    pub fn emit(&self, name: &str, value: &(impl Serialize + ?Sized)) -> FlowResult<()> {
        let is_name = !name.is_empty() && name.len() <= MAX_NAME_BYTES && !name.chars().any(char::is_control);
        if !is_name || TAKEN.contains(&name) {
            return Err(FlowError::new(format!("{name:?} cannot be the name of an event of a flow's own")));
        }
        self.say(name, value, MAX_EVENT_BYTES)
    }

    /// Says how far the flow has come: the newest is in its [`Status`], and each is an event, `progress`. At most 1 KiB of JSON.
    ///
    /// # Errors
    /// As [`emit`](Self::emit).
    pub fn progress(&self, progress: &(impl Serialize + ?Sized)) -> FlowResult<()> {
        self.say(PROGRESS, progress, MAX_SHOWN_BYTES)
    }

    /// Names the URL of what the flow has made, for whoever waits for that: it is in its [`Status`], and an event, `resource`. At most
    /// 1 KiB.
    ///
    /// # Errors
    /// As [`emit`](Self::emit).
    pub fn resource(&self, url: &str) -> FlowResult<()> {
        self.say(RESOURCE, url, MAX_SHOWN_BYTES)
    }

    fn say(&self, name: &str, value: &(impl Serialize + ?Sized), limit: usize) -> FlowResult<()> {
        let value = serde_json::to_vec(value)
            .map_err(|error| FlowError::new(format!("the value of the event {name:?} cannot be JSON: {error}")))?;
        if value.len() > limit {
            let bytes = value.len();
            return Err(FlowError::new(format!("the event {name:?} has {bytes} bytes, and may have {limit}")));
        }
        self.shared().emit(self.scope(), name, value.into()).map_err(FlowError::new)
    }
}

/// The events of one flow, in order, each once, up to its end: [`Flows::events`](crate::Flows::events).
///
/// A slow reader holds nobody up, and misses nothing: what is no longer in memory is read from the store.
#[must_use = "a stream does nothing until it is polled"]
pub struct FlowEvents {
    ready: VecDeque<FlowEvent>,
    reading: Reading,
}

type Read = Result<Option<VecDeque<FlowEvent>>, FlowsError>;

enum Reading {
    Idle(Box<Reader>),
    Busy(Pin<Box<dyn Future<Output = (Box<Reader>, Read)> + Send>>),
    Over,
}

impl fmt::Debug for FlowEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowEvents").field("ready", &self.ready.len()).finish_non_exhaustive()
    }
}

impl FlowEvents {
    pub(crate) fn new(reader: Reader) -> FlowEvents {
        FlowEvents { ready: VecDeque::new(), reading: Reading::Idle(Box::new(reader)) }
    }

    /// The next event; `None` after the last one, and where the flow has been purged. Dropped while it waits, it loses nothing.
    ///
    /// # Errors
    /// [`FlowsError::Unavailable`], [`FlowsError::Unreadable`]. Asked again, it goes on where it was, after a second.
    pub async fn next(&mut self) -> Option<Result<FlowEvent, FlowsError>> {
        poll_fn(|task| Pin::new(&mut *self).poll_next(task)).await
    }
}

impl Stream for FlowEvents {
    type Item = Result<FlowEvent, FlowsError>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                if event.is_end() {
                    self.reading = Reading::Over;
                    self.ready.clear();
                }
                return Poll::Ready(Some(Ok(event)));
            }
            match std::mem::replace(&mut self.reading, Reading::Over) {
                Reading::Over => return Poll::Ready(None),
                Reading::Idle(mut reader) => {
                    self.reading = Reading::Busy(Box::pin(async move {
                        let read = reader.read().await;
                        (reader, read)
                    }));
                }
                Reading::Busy(mut reading) => match reading.as_mut().poll(task) {
                    Poll::Pending => {
                        self.reading = Reading::Busy(reading);
                        return Poll::Pending;
                    }
                    Poll::Ready((reader, Ok(Some(events)))) => {
                        self.ready = events;
                        self.reading = Reading::Idle(reader);
                    }
                    Poll::Ready((_, Ok(None))) => return Poll::Ready(None),
                    Poll::Ready((reader, Err(error))) => {
                        self.reading = Reading::Idle(reader);
                        return Poll::Ready(Some(Err(error)));
                    }
                },
            }
        }
    }
}

/// The events of all flows of the fleet: [`Flows::on_event`](crate::Flows::on_event).
#[derive(Debug)]
pub struct HostEvents(broadcast::Receiver<OfAll>);

impl HostEvents {
    pub(crate) fn new(events: broadcast::Receiver<OfAll>) -> HostEvents {
        HostEvents(events)
    }

    /// The next event; `None` when the host is gone. Dropped while it waits, it loses nothing.
    ///
    /// # Errors
    /// [`FlowsError::Missed`] says how many were missed, because more than 1,024 had not been taken, here or on their way from another host. It
    /// goes on with the oldest of those that are there.
    pub async fn next(&mut self) -> Option<Result<FlowEvent, FlowsError>> {
        match self.0.recv().await {
            Ok(OfAll::Event(event)) => Some(Ok(event)),
            Ok(OfAll::Missed(missed)) => Some(Err(FlowsError::Missed(missed))),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Err(FlowsError::Missed(missed))),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
