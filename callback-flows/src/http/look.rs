//! Looking at a flow, and cancelling it.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;

use super::headers::{self, PREFERENCE_APPLIED};
use super::problem::{INVALID_ID, INVALID_REQUEST, NOT_FOUND, OVER, PURGED, Problem};
use super::view::FlowStatus;
use super::{Http, LOOK_AGAIN, answers, json};
use crate::flows::FlowsError;
use crate::hash::short_hash;
use crate::status::{State as FlowState, Status};

/// The name and the ID of a flow, from the path.
pub(super) struct FlowPath {
    pub(super) name: String,
    pub(super) id: String,
}

impl<S: Send + Sync> FromRequestParts<S> for FlowPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<FlowPath, Problem> {
        let path: Result<Path<(String, String)>, PathRejection> = Path::from_request_parts(parts, state).await;
        let Path((name, id)) = path.map_err(|_| Problem::new(INVALID_ID, "the path is not UTF-8"))?;
        Ok(FlowPath { name, id })
    }
}

/// Parameters of `GET`.
#[derive(Debug, Deserialize)]
pub(super) struct Looked {
    /// `1`: to be sent to what the flow has made.
    follow: Option<String>,
}

pub(super) fn never_was() -> Problem {
    Problem::new(NOT_FOUND, "no flow was started under this ID, or its start has not been taken yet")
}

pub(super) fn purged() -> Problem {
    Problem::new(PURGED, "the flow of this ID ended long ago")
}

/// Shows how it is with a flow.
#[utoipa::path(
    get, path = "/{name}/{id}", operation_id = "look_at_flow", tag = "flows",
    params(
        ("name" = String, Path, description = "The name of a flow's code."),
        ("id" = String, Path, description = "The ID that it was started under."),
        ("follow" = Option<String>, Query, description = "`1`: 303 to what the flow has made, once it has."),
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of an earlier answer: 304 if nothing has changed."),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: waits up to N seconds, 30 at most: for a change since `If-None-Match`, or without that for the end."),
    ),
    responses(
        (status = 200, description = "Its status; its result or problem when it is over. One that failed is 200 too.", body = FlowStatus, headers(("ETag" = String), ("Preference-Applied" = String))),
        (status = 303, description = "What it has made is at `Location`. Only with `follow=1`.", headers(("Location" = String))),
        (status = 304, description = "Nothing has changed.", headers(("ETag" = String), ("Preference-Applied" = String))),
        (status = 307, description = "The flow's owner is at `Location`. Only with `Prefer: wait`, and where the hosts know each other's addresses.", headers(("Location" = String))),
        answers::NoFlow,
    ),
)]
pub(super) async fn get(
    State(http): State<Http>,
    FlowPath { name, id }: FlowPath,
    query: Result<Query<Looked>, QueryRejection>,
    uri: Uri,
    request: HeaderMap,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|error| Problem::new(INVALID_REQUEST, error.body_text()))?;
    let limit = headers::wait(&request);
    if limit.is_some()
        && let Some(elsewhere) = http.at_owner(&name, &id, "", &uri)
    {
        return Ok(elsewhere);
    }
    let (mut status, mut tag, revision) = look(&http, &name, &id).await?;
    let has_tag = request.contains_key(header::IF_NONE_MATCH);
    let mut is_known = has_tag && headers::has_already(&request, &tag);
    let mut waited = None;
    if let Some(limit) = limit {
        let is_wanted =
            |status: &Status| status.state.is_over() || has_tag && (!is_known || status.revision != revision);
        waited = http.wait(&name, &id, limit, is_wanted).await;
        if waited.is_some() {
            (status, tag, _) = look(&http, &name, &id).await?;
            is_known = has_tag && headers::has_already(&request, &tag);
        }
    }
    let mut response = match status.resource().filter(|_| query.follow.as_deref() == Some("1")) {
        Some(resource) => (StatusCode::SEE_OTHER, [(header::LOCATION, resource)]).into_response(),
        None if is_known => StatusCode::NOT_MODIFIED.into_response(),
        None => json(&status),
    };
    let answer = response.headers_mut();
    if !status.is_over() {
        answer.insert(header::RETRY_AFTER, headers::value(LOOK_AGAIN));
    }
    answer.insert(header::ETAG, headers::value(&tag));
    // Shown to those who may ask for it, and to be asked for each time.
    answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    if let Some(limit) = waited {
        answer.insert(PREFERENCE_APPLIED, headers::value(&format!("wait={}", limit.as_secs())));
    }
    Ok(response)
}

/// The status of a flow, the tag of its representation, and its revision.
async fn look(http: &Http, name: &str, id: &str) -> Result<(FlowStatus, String, u64), Problem> {
    let (status, revision) = http.view(name, id).await?.ok_or_else(never_was)?;
    if status.is_purged() {
        return Err(purged());
    }
    let tag = short_hash(&serde_json::to_vec(&status).unwrap_or_default());
    Ok((status, format!("\"{tag}\""), revision))
}

/// Asks a flow to end: what it has registered to undo is undone.
#[utoipa::path(
    delete, path = "/{name}/{id}", operation_id = "cancel_flow", tag = "flows",
    params(
        ("name" = String, Path, description = "The name of a flow's code."),
        ("id" = String, Path, description = "The ID that it was started under."),
    ),
    responses(answers::NoFlow, answers::NotCancelled),
)]
pub(super) async fn delete(State(http): State<Http>, FlowPath { name, id }: FlowPath) -> Result<Response, Problem> {
    match http.flows.cancel(&name, &id).await {
        Ok(()) => Ok(StatusCode::ACCEPTED.into_response()),
        Err(FlowsError::NotFound) => Err(never_was()),
        Err(FlowsError::Gone) => {
            let status = http.flows.get(&name, &id).await.map_err(|error| http.refusal(&error))?;
            let is_purged = status.is_none_or(|status| status.state == FlowState::Purged);
            Err(if is_purged { purged() } else { Problem::new(OVER, "it ended before it was asked to") })
        }
        Err(error) => Err(http.refusal(&error)),
    }
}
