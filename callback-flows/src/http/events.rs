//! Events as they come: server-sent events (the HTML standard, section 9.2) of one flow, and of all flows of the fleet.
//!
//! A stream is read by its client's pace: it has no task and no buffer of its own, and what its client has not taken is read from the store.
//! It ends with its flow, when the host begins to leave, and when its client is too slow; a client comes back with the number of the
//! last event that it has had, and misses nothing.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use stable_interfaces::RequestError;
use stable_interfaces::clock::Clock;
use utoipa::ToSchema;

use super::look::{FlowPath, never_was, purged};
use super::problem::{INVALID_REQUEST, Problem};
use super::view::date_time;
use super::{Http, answers, headers};
use crate::events::{FlowEvent, FlowEvents, HostEvents};
use crate::flows::{FlowsError, unavailable};
use crate::instance::TurnError;
use crate::status::State as FlowState;

/// The time between two signs of life, so that whoever is between does not give up.
const ALIVE: Duration = Duration::from_secs(15);
/// A client that has not taken an event for so long is too slow.
const TOO_SLOW: Duration = Duration::from_secs(30);
/// The events of all flows.
const OF_ALL: [&str; 5] = ["started", "succeeded", "failed", "cancelled", "blocked"];

/// Streams the events of a flow, from behind the one that the client has had last, up to the end.
#[utoipa::path(
    get, path = "/{name}/{id}/events", operation_id = "hear_of_flow", tag = "events",
    params(
        ("name" = String, Path, description = "The name of a flow's code."),
        ("id" = String, Path, description = "The ID that it was started under."),
        ("Last-Event-ID" = Option<u64>, Header, description = "The `id` of the last event that the client has had."),
    ),
    responses(
        (status = 200, description = "Events: `progress`, `resource`, those that the flow emits, and one of `succeeded`, `failed`, `cancelled` at the end; their data is JSON.", body = String, content_type = "text/event-stream"),
        (status = 204, description = "There will be no more: an `EventSource` stops."),
        (status = 307, description = "The flow's owner is at `Location`. Only where the hosts know each other's addresses.", headers(("Location" = String))),
        answers::NoFlow,
    ),
)]
pub(super) async fn of_one(
    State(http): State<Http>,
    FlowPath { name, id }: FlowPath,
    uri: Uri,
    request: HeaderMap,
) -> Result<Response, Problem> {
    let after = headers::last_event_id(&request).map_err(|what| Problem::new(INVALID_REQUEST, what))?;
    if let Some(elsewhere) = http.at_owner(&name, &id, "/events", &uri) {
        return Ok(elsewhere);
    }
    let refusal = |error: FlowsError| http.refusal(&error);
    let status = http.flows.get(&name, &id).await.map_err(refusal)?.ok_or_else(never_was)?;
    if status.state == FlowState::Purged {
        return Err(purged());
    }
    // The end is the event after the last one.
    if status.state.is_over() && after > status.events {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let events = http.flows.events(&name, &id, after).await.map_err(refusal)?;
    http.stream(Source::One(Box::new(events)))
}

/// The events of all flows that a client wants.
#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    /// Names of events, with commas between them.
    only: Option<String>,
    /// The name of a flow's code.
    name: Option<String>,
}

impl Wanted {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.only.iter().flat_map(|only| only.split(',')).map(str::trim)
    }

    fn has(&self, event: &FlowEvent) -> bool {
        (self.only.is_none() || self.names().any(|name| name == event.name()))
            && self.name.as_ref().is_none_or(|name| name == event.flow())
    }
}

/// An event of some flow.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OfAll<'a> {
    /// The name of the flow's code.
    name: &'a str,
    /// The ID that it was started under.
    id: &'a str,
    #[schema(format = DateTime)]
    at: String,
    /// The error of `failed`, the reason of `blocked`, else `null`.
    #[schema(value_type = serde_json::Value)]
    value: &'a RawValue,
}

/// Streams what happens to all flows of the fleet, from now on. A client that was cut off does not hear of what happened meanwhile.
#[utoipa::path(
    get, path = "/events", operation_id = "hear_of_all_flows", tag = "events",
    params(
        ("only" = Option<String>, Query, description = "Some of `started`, `succeeded`, `failed`, `cancelled`, `blocked`, with commas between them."),
        ("name" = Option<String>, Query, description = "The name of a flow's code: those of others are left out."),
    ),
    responses(
        (status = 200, description = "Events: `started`, `succeeded`, `failed`, `cancelled`, `blocked`. One named `missed` says how many the client was too slow for, and ends the stream.", body = OfAll<'static>, content_type = "text/event-stream"),
        (status = 400, description = "The query cannot be understood.", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn of_all(
    State(http): State<Http>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(wanted) = wanted.map_err(|error| Problem::new(INVALID_REQUEST, error.body_text()))?;
    if let Some(unknown) = wanted.names().find(|name| !OF_ALL.contains(name)) {
        let detail = format!("there are no events {unknown:?}, only {}", OF_ALL.join(", "));
        return Err(Problem::of_field(INVALID_REQUEST, "only", detail));
    }
    let events = http.flows.on_event();
    http.flows.follows_others().await;
    http.stream(Source::All(events, wanted))
}

/// The place where the events of a stream come from.
enum Source {
    One(Box<FlowEvents>),
    All(HostEvents, Wanted),
}

impl Source {
    /// The next event as it is sent, and whether it is the last one; `None` if there is no more. Dropped while it waits, it loses nothing.
    async fn next(&mut self) -> Option<(String, bool)> {
        match self {
            Source::One(events) => loop {
                match events.next().await? {
                    Ok(event) => {
                        let id = Some(event.sequence());
                        return Some((written(id, event.name(), event.value().get()), event.is_end()));
                    }
                    // Asked again, it goes on where it was, after a second.
                    Err(FlowsError::Unavailable(_)) => {}
                    Err(_) => return None,
                }
            },
            Source::All(events, wanted) => loop {
                match events.next().await? {
                    Ok(event) if wanted.has(&event) => {
                        let (name, id, at) = (event.flow(), event.id(), date_time(event.at()));
                        let data = serde_json::to_string(&OfAll { name, id, at, value: event.value() });
                        return Some((written(None, event.name(), &data.unwrap_or_default()), false));
                    }
                    Ok(_) => {}
                    Err(FlowsError::Missed(missed)) => {
                        return Some((written(None, "missed", &missed.to_string()), true));
                    }
                    Err(_) => return None,
                }
            },
        }
    }
}

/// An event of JSON, in which a line break is white space.
fn written(id: Option<u64>, name: &str, json: &str) -> String {
    let mut event = String::with_capacity(name.len() + json.len() + 40);
    if let Some(id) = id {
        let _ = writeln!(event, "id: {id}");
    }
    let _ = writeln!(event, "event: {name}");
    event.push_str("data: ");
    event.extend(json.chars().map(|c| if matches!(c, '\n' | '\r') { ' ' } else { c }));
    event.push_str("\n\n");
    event
}

/// A stream on its way to a client.
struct Streamed {
    source: Source,
    clock: Arc<dyn Clock>,
    stopping: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// The moment at which the client was given something last.
    given: Option<Duration>,
    /// The time after which a client that was cut off comes back, in milliseconds.
    retry: u64,
    is_over: bool,
}

impl Streamed {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Streamed)> {
        let now = self.clock.elapsed();
        let is_slow = self.given.is_some_and(|given| now.saturating_sub(given) > TOO_SLOW);
        if self.is_over || is_slow {
            return None;
        }
        let text = if self.given.is_none() {
            format!("retry: {}\n\n", self.retry)
        } else {
            tokio::select! { biased;
                () = &mut self.stopping => {
                    self.is_over = true;
                    format!("retry: {}\n\n", self.retry)
                }
                next = self.source.next() => {
                    let (event, is_last) = next?;
                    self.is_over = is_last;
                    event
                }
                () = self.clock.sleep(ALIVE) => ":\n\n".to_owned(),
            }
        };
        self.given = Some(self.clock.elapsed());
        Some((Ok(text.into()), self))
    }
}

impl Http {
    fn stream(&self, source: Source) -> Result<Response, Problem> {
        let not_started = || self.refusal(&unavailable(RequestError::NotStarted::<TurnError>));
        let clock = self.flows.clock().ok_or_else(not_started)?;
        let stopping = Box::pin(self.flows.stopping());
        // Those who are sent away together do not come back together.
        let retry = 1_000 + self.draw() % 1_000;
        let streamed = Streamed { source, clock, stopping, given: None, retry, is_over: false };
        let mut response = Body::from_stream(stream::unfold(streamed, Streamed::next)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // A proxy that waits for the end of an answer would hold back all of it.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_whatever_is_in_its_json() {
        assert_eq!(written(Some(7), "progress", "{\"a\":\n1}"), "id: 7\nevent: progress\ndata: {\"a\": 1}\n\n");
        assert_eq!(written(None, "failed", "\"a\\nb\r\n\""), "event: failed\ndata: \"a\\nb  \"\n\n");
    }
}
