//! Events as server-sent events, for `EventSource` and its like.
//!
//! A client that was cut off says which event it had last, and goes on behind that. What ends a stream of one flow is that flow's end,
//! and whoever asks again after it is answered 204, so that an `EventSource` stops.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::problem::{Kind, Problem};
use super::resource::Target;
use super::{Http, headers};
use crate::events::{FlowEvent, FlowEvents, HostEvents};
use crate::flows::FlowsError;
use crate::status::State as FlowState;

/// The time after which a client that was cut off comes back.
const COMES_BACK: Duration = Duration::from_secs(1);
/// The time between comments that keep a stream alive.
const ALIVE: Duration = Duration::from_secs(15);

/// The events that somebody wants of all flows.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    /// Names of events, with commas between them.
    only: Option<String>,
    /// The name of a flow.
    name: Option<String>,
}

impl Wanted {
    fn has(&self, event: &FlowEvent) -> bool {
        self.only.as_ref().is_none_or(|only| only.split(',').any(|name| name.trim() == event.name()))
            && self.name.as_ref().is_none_or(|name| name == event.flow())
    }
}

/// An event of some flow.
#[derive(Serialize)]
struct OfAll<'a> {
    name: &'a str,
    id: &'a str,
    sequence: u64,
    at: i64,
    value: Value,
}

/// `GET /{name}/{id}/events`
pub(super) async fn of_one(
    State(http): State<Http>,
    target: Result<Path<Target>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Target { name, id } = target?.0;
    let after = headers::last_event(&headers).map_err(|why| Problem::new(Kind::BAD_REQUEST, why))?;
    let status = http.flows.get(&name, &id).await?.ok_or(FlowsError::NotFound)?;
    if status.state == FlowState::Purged {
        return Err(FlowsError::Gone.into());
    }
    // The end is the event after the last.
    if status.state.is_over() && after > status.events {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let events = http.flows.events(&name, &id, after).await?;
    Ok(stream(OfOne { events, is_first: true }))
}

/// `GET /events`
pub(super) async fn of_all(
    State(http): State<Http>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Problem> {
    let (events, wanted) = (http.flows.on_event(), wanted?.0);
    Ok(stream(OfAllFlows { reading: Box::pin(next(events, wanted)), is_first: true }))
}

fn stream(events: impl Stream<Item = Result<Event, FlowsError>> + Send + 'static) -> Response {
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE)).into_response();
    // A proxy that waits for the end of an answer would hold back all of it.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    response
}

/// JSON on one line, with no carriage return in it.
fn on_one_line(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_default()
}

struct OfOne {
    events: FlowEvents,
    is_first: bool,
}

impl OfOne {
    fn shown(event: &FlowEvent) -> Event {
        let data = on_one_line(event.value().get()).to_string();
        Event::default().id(event.sequence().to_string()).event(event.name()).data(data)
    }
}

impl Stream for OfOne {
    type Item = Result<Event, FlowsError>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.is_first) {
            return Poll::Ready(Some(Ok(Event::default().retry(COMES_BACK))));
        }
        // An error ends the stream: the client comes back, and goes on where it was.
        Pin::new(&mut self.events).poll_next(task).map(|event| Some(event?.map(|event| OfOne::shown(&event))))
    }
}

type Next = Option<(Event, HostEvents, Wanted)>;

/// The next event that is wanted.
async fn next(mut events: HostEvents, wanted: Wanted) -> Next {
    loop {
        let shown = match events.next().await? {
            Ok(event) if wanted.has(&event) => {
                let (name, id, sequence) = (event.flow(), event.id(), event.sequence());
                let value = on_one_line(event.value().get());
                let data = OfAll { name, id, sequence, at: event.at().as_millis(), value };
                Event::default().event(event.name()).data(serde_json::to_string(&data).unwrap_or_default())
            }
            Ok(_) => continue,
            Err(FlowsError::Missed(missed)) => Event::default().event("missed").data(missed.to_string()),
            Err(_) => return None,
        };
        return Some((shown, events, wanted));
    }
}

struct OfAllFlows {
    reading: Pin<Box<dyn Future<Output = Next> + Send>>,
    is_first: bool,
}

impl Stream for OfAllFlows {
    type Item = Result<Event, FlowsError>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.is_first) {
            return Poll::Ready(Some(Ok(Event::default().retry(COMES_BACK))));
        }
        self.reading.as_mut().poll(task).map(|read| {
            let (event, events, wanted) = read?;
            self.reading = Box::pin(next(events, wanted));
            Some(Ok(event))
        })
    }
}
