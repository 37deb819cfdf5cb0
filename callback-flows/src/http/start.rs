//! Starting flows: `PUT` under an ID that the client chose, `POST` under an `Idempotency-Key` or a random ID.

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{OriginalUri, Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use percent_encoding::utf8_percent_encode;
use serde::de::IgnoredAny;

use super::headers::{self, PREFERENCE_APPLIED};
use super::look::{FlowPath, purged};
use super::problem::{CONFLICT, INVALID_ID, INVALID_INPUT, INVALID_REQUEST, KEY_REUSED, MEDIA_TYPE, NOT_JSON, Problem};
use super::view::FlowStatus;
use super::{ESCAPED, Http, LOOK_AGAIN, answers, body, json};
use crate::flows::{FlowsError, Started};

/// Starts a flow under an ID of the client's choice. Safe to repeat.
#[utoipa::path(
    put, path = "/{name}/{id}", operation_id = "start_flow", tag = "flows",
    params(
        ("name" = String, Path, description = "The name of a flow's code."),
        ("id" = String, Path, description = "The ID: with the name, at most 512 bytes of UTF-8."),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: waits up to N seconds, 30 at most, for the end."),
    ),
    request_body(content = serde_json::Value, content_type = "application/json", description = "The input. At most 256 KiB, if the application sets no other limit, 192 KiB on a host that does not own the flow and cannot reach the one that does, and 700 KiB on one that can."),
    responses(answers::Begun, answers::NotBegun, answers::OtherInput),
)]
pub(super) async fn put(
    State(http): State<Http>,
    OriginalUri(uri): OriginalUri,
    FlowPath { name, id }: FlowPath,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let location = uri.path().to_owned();
    start(&http, New { name, id, location, has_key: false }, &headers, body).await
}

/// Starts a flow under the `Idempotency-Key`, or under a random ID.
#[utoipa::path(
    post, path = "/{name}", operation_id = "start_new_flow", tag = "flows",
    params(
        ("name" = String, Path, description = "The name of a flow's code."),
        ("Idempotency-Key" = Option<String>, Header, description = "The ID of the flow: safe to repeat. Without it, each request starts another one."),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: waits up to N seconds, 30 at most, for the end."),
    ),
    request_body(content = serde_json::Value, content_type = "application/json", description = "The input. At most 256 KiB, if the application sets no other limit, 192 KiB on a host that does not own the flow and cannot reach the one that does, and 700 KiB on one that can."),
    responses(answers::Begun, answers::NotBegun),
)]
pub(super) async fn post(
    State(http): State<Http>,
    OriginalUri(uri): OriginalUri,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let Path(name) = name.map_err(|_| Problem::new(INVALID_ID, "the path is not UTF-8"))?;
    start_new(&http, name, &uri, &headers, body).await
}

/// [`post`] for the flow `events`, whose path is that of all events as well.
pub(super) async fn post_events(
    State(http): State<Http>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    start_new(&http, "events".to_owned(), &uri, &headers, body).await
}

async fn start_new(http: &Http, name: String, uri: &Uri, headers: &HeaderMap, body: Body) -> Result<Response, Problem> {
    let key = headers::idempotency_key(headers).map_err(|what| Problem::new(INVALID_REQUEST, what))?;
    let has_key = key.is_some();
    let id = key.unwrap_or_else(|| format!("{:016x}{:016x}", http.draw(), http.draw()));
    let location = format!("{}/{}", uri.path(), utf8_percent_encode(&id, ESCAPED));
    start(http, New { name, id, location, has_key }, headers, body).await
}

/// A flow that is to be started.
struct New {
    name: String,
    id: String,
    location: String,
    /// The ID is the client's key for this request.
    has_key: bool,
}

async fn start(http: &Http, new: New, request: &HeaderMap, body: Body) -> Result<Response, Problem> {
    let New { name, id, location, has_key } = &new;
    let flows = &http.flows;
    if !flows.is_registered(name) {
        return Err(http.refusal(&FlowsError::UnknownFlow(name.clone())));
    }
    if matches!(&**id, "." | "..") {
        // Clients leave such a part out of the path.
        return Err(Problem::new(INVALID_ID, format!("{id:?} cannot be a part of a path")));
    }
    if !headers::is_json(request) {
        return Err(Problem::new(MEDIA_TYPE, "the Content-Type is not that of JSON"));
    }
    let input = body::whole(request, body, flows.largest_value()).await?;
    let text = std::str::from_utf8(&input).map_err(|error| Problem::new(NOT_JSON, error.to_string()))?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| Problem::new(NOT_JSON, error.to_string()))?;
    let started = match flows.start_json(name, id, input.clone()).await {
        Ok(Started::Posted) => flows.taken(name, id, &input).await.map(|()| Started::Posted),
        started => started,
    };
    match started {
        Ok(_) => {}
        Err(FlowsError::Conflict) => {
            let kind = if *has_key { KEY_REUSED } else { CONFLICT };
            // Another input as bytes may be the same as JSON.
            match flows.difference(name, id, &input).await.map_err(|error| http.refusal(&error))? {
                None => {}
                Some(field) if field.is_empty() => {
                    return Err(Problem::new(kind, "the flow of this ID was started with another input"));
                }
                Some(field) => {
                    let detail = format!("the flow of this ID was started with another `{field}`");
                    return Err(Problem::of_field(kind, field, detail));
                }
            }
        }
        Err(FlowsError::Input { source, .. }) => {
            let field = flows.field_of(name, &input, &source);
            return Err(Problem::of_field(INVALID_INPUT, field, source.to_string()));
        }
        Err(FlowsError::Refused(refused)) => {
            return Err(Problem::of_field(INVALID_INPUT, refused.field(), refused.reason()));
        }
        Err(error) => return Err(http.refusal(&error)),
    }
    let waited = match headers::wait(request) {
        Some(limit) => http.wait(name, id, limit, |status| status.state.is_over()).await,
        None => None,
    };
    // It is durable, whether or not it can be looked at now.
    let status = http.view(name, id).await.ok().flatten().map(|(status, _)| status);
    let status = status.unwrap_or_else(|| FlowStatus::accepted(name, id, flows.newest(name)));
    if status.is_purged() {
        return Err(purged());
    }
    let code = if waited.is_some() && status.is_over() { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = (code, json(&status)).into_response();
    let answer = response.headers_mut();
    answer.insert(header::LOCATION, headers::value(location));
    if code == StatusCode::ACCEPTED {
        answer.insert(header::RETRY_AFTER, headers::value(LOOK_AGAIN));
    }
    if let Some(limit) = waited {
        answer.insert(PREFERENCE_APPLIED, headers::value(&format!("wait={}", limit.as_secs())));
    }
    Ok(response)
}
