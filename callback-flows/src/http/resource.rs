//! A flow as a resource: started, shown, cancelled.

use std::time::Duration;

use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{OriginalUri, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::problem::{Kind, Problem, text};
use super::view::{View, first_difference};
use super::{Http, headers};
use crate::flows::FlowsError;
use crate::status::{Outcome, State as FlowState, Status};

/// The time after which a client that was told nothing final looks again, in seconds.
const LOOK_AGAIN: u64 = 1;
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The flow that a path names.
#[derive(Debug, Deserialize)]
pub(super) struct Target {
    #[serde(rename = "flow_name")]
    pub(super) name: String,
    #[serde(rename = "flow_id")]
    pub(super) id: String,
}

/// The name of the flow that a path names.
#[derive(Debug, Deserialize)]
pub(super) struct Named {
    flow_name: String,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Options {
    follow: Option<u8>,
}

/// A wait that was asked for and is granted, with its permit.
struct Wait {
    seconds: Duration,
    _permit: OwnedSemaphorePermit,
}

impl Http {
    /// The wait that a client prefers, unless too many wait already.
    fn wait(&self, headers: &HeaderMap) -> Option<Wait> {
        let seconds = headers::wait(headers)?;
        Some(Wait { seconds, _permit: self.waiting.clone().try_acquire_owned().ok()? })
    }

    /// The document of a flow, with its tag; an error if it never was, or is purged.
    async fn view(&self, Target { name, id }: &Target, status: &Status) -> Result<(String, String), Problem> {
        let result = match status.state {
            FlowState::Done => self.flows.result(name, id).await?,
            FlowState::Purged => None,
            _ => return View::new(name, id, status, None).encode(),
        };
        match result {
            Some(Outcome::Done(result)) => View::new(name, id, status, Some(&result)).encode(),
            _ => Err(Problem::new(Kind::GONE, "The flow ended so long ago that its result is not kept any more.")),
        }
    }
}

/// Adds headers to an answer.
fn with(mut response: Response, headers: impl IntoIterator<Item = Option<(HeaderName, HeaderValue)>>) -> Response {
    response.headers_mut().extend(headers.into_iter().flatten());
    response
}

fn json(status: StatusCode, body: String) -> Response {
    with((status, body).into_response(), [text(header::CONTENT_TYPE, "application/json")])
}

fn applied(wait: Option<&Wait>) -> Option<(HeaderName, HeaderValue)> {
    text(PREFERENCE_APPLIED, &format!("wait={}", wait?.seconds.as_secs()))
}

/// `PUT /{name}/{id}`
pub(super) async fn start_under(
    State(http): State<Http>,
    target: Result<Path<Target>, PathRejection>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    begin(&http, target?.0, uri.path(), &headers, &body?, Kind::CONFLICT).await
}

/// `POST /{name}`
pub(super) async fn start(
    State(http): State<Http>,
    named: Result<Path<Named>, PathRejection>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    start_named(&http, named?.0.flow_name, &uri, &headers, &body?).await
}

/// `POST /events`: the flow of that name.
pub(super) async fn start_events(
    State(http): State<Http>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    start_named(&http, "events".into(), &uri, &headers, &body?).await
}

async fn start_named(
    http: &Http,
    name: String,
    uri: &Uri,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response, Problem> {
    let key = headers::key(headers).map_err(|why| Problem::new(Kind::BAD_REQUEST, why))?;
    let id = key.unwrap_or_else(|| format!("{:016x}{:016x}", super::random(), super::random()));
    let path = format!("{}/{}", uri.path().trim_end_matches('/'), encoded(&id));
    begin(http, Target { name, id }, &path, headers, body, Kind::KEY_REUSED).await
}

/// A part of a path, percent-encoded but for what needs no encoding anywhere.
fn encoded(part: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~' | b'.');
    let encode = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    part.bytes().map(encode).collect()
}

async fn begin(
    http: &Http,
    target: Target,
    path: &str,
    headers: &HeaderMap,
    body: &Bytes,
    conflict: Kind,
) -> Result<Response, Problem> {
    let Target { name, id } = &target;
    // One way of writing for each value: white space and the order of fields are no other input.
    let input: Value = match body.iter().all(u8::is_ascii_whitespace) {
        true => Value::Null,
        false => serde_json::from_slice(body).map_err(|error| Problem::new(Kind::NOT_JSON, error.to_string()))?,
    };
    let raw = serde_json::value::to_raw_value(&input);
    let raw = raw.map_err(|error| Problem::new(Kind::NOT_JSON, error.to_string()))?;
    let wait = http.wait(headers);
    match http.flows.start_and_settle(name, id, &raw).await {
        Ok(_) => {}
        Err(FlowsError::Conflict) => {
            let before = http.flows.input_of(name, id).await;
            let before: Option<Value> = before.and_then(|before| serde_json::from_slice(&before).ok());
            let field = before.and_then(|before| first_difference(&before, &input));
            let detail = match (&field, conflict) {
                (Some(field), _) if !field.is_empty() => format!("It was started with another value at {field}."),
                _ => "It was started with another input.".to_owned(),
            };
            let detail = format!("{detail} Send what was sent first, or choose another ID.");
            return Err(Problem::new(conflict, detail).at(field));
        }
        Err(error) => return Err(error.into()),
    }
    if let Some(wait) = &wait {
        let status = http.flows.wait(name, id, wait.seconds, |status| status.state.is_over()).await;
        if let Ok(status) = status
            && status.state.is_over()
        {
            let (body, tag) = http.view(&target, &status).await?;
            let headers = [text(header::LOCATION, path), text(header::ETAG, &tag), applied(Some(wait))];
            return Ok(with(json(StatusCode::OK, body), headers));
        }
    }
    // It is durable; whether its status can be read is another question.
    let (body, _) = match http.flows.get(name, id).await {
        Ok(Some(status)) => http.view(&target, &status).await?,
        _ => View::accepted(name, id).encode()?,
    };
    let headers = [
        text(header::LOCATION, path),
        Some((header::RETRY_AFTER, HeaderValue::from(LOOK_AGAIN))),
        applied(wait.as_ref()),
    ];
    Ok(with(json(StatusCode::ACCEPTED, body), headers))
}

/// `GET /{name}/{id}`
pub(super) async fn show(
    State(http): State<Http>,
    target: Result<Path<Target>, PathRejection>,
    options: Result<Query<Options>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (target, options) = (target?.0, options?.0);
    let Target { name, id } = &target;
    let status = http.flows.get(name, id).await?.ok_or(FlowsError::NotFound)?;
    let (mut body, mut tag) = http.view(&target, &status).await?;
    let mut seen = status;
    let wait = http.wait(&headers);
    if let Some(wait) = &wait
        && !seen.state.is_over()
    {
        let known = headers::has_version(&headers, &tag);
        let revision = seen.revision;
        // Who has no version waits for the end; who has this one, for another; who has an old one, not at all.
        let newer = |status: &Status| match known {
            None => status.state.is_over(),
            Some(has_this) => !has_this || status.revision != revision || status.state.is_over(),
        };
        seen = http.flows.wait(name, id, wait.seconds, newer).await?;
        (body, tag) = http.view(&target, &seen).await?;
    }
    if let (Some(1..), Some(resource)) = (options.follow, &seen.resource)
        && let Some(location) = text(header::LOCATION, resource)
    {
        return Ok(with(StatusCode::SEE_OTHER.into_response(), [Some(location), applied(wait.as_ref())]));
    }
    let answer = match headers::has_version(&headers, &tag) {
        Some(true) => StatusCode::NOT_MODIFIED.into_response(),
        _ => json(StatusCode::OK, body),
    };
    let retry = (!seen.state.is_over()).then(|| (header::RETRY_AFTER, HeaderValue::from(LOOK_AGAIN)));
    let cached = text(header::CACHE_CONTROL, "no-cache");
    Ok(with(answer, [text(header::ETAG, &tag), retry, cached, applied(wait.as_ref())]))
}

/// `DELETE /{name}/{id}`
pub(super) async fn cancel(
    State(http): State<Http>,
    target: Result<Path<Target>, PathRejection>,
    OriginalUri(uri): OriginalUri,
) -> Result<Response, Problem> {
    let target = target?.0;
    let Target { name, id } = &target;
    let over = || Problem::new(Kind::OVER, "It is over, and there is nothing left to cancel.");
    // Another host's flow is asked by a message, which nobody answers.
    let status = http.flows.get(name, id).await?.ok_or(FlowsError::NotFound)?;
    match status.state {
        FlowState::Purged => return Err(FlowsError::Gone.into()),
        state if state.is_over() => return Err(over()),
        _ => {}
    }
    match http.flows.cancel(name, id).await {
        Ok(()) => {}
        Err(FlowsError::Gone) => return Err(over()),
        Err(error) => return Err(error.into()),
    }
    let headers = [text(header::LOCATION, uri.path()), Some((header::RETRY_AFTER, HeaderValue::from(LOOK_AGAIN)))];
    Ok(with(StatusCode::ACCEPTED.into_response(), headers))
}
