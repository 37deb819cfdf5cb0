//! The public router: calls of callbacks, by whoever has their URL.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};

use super::problem::{INVALID_REQUEST, Problem, UNKNOWN_CALLBACK};
use super::{Http, answers, body, headers};
use crate::flows::{Call, FlowsError};
use crate::policy::CallbackPolicy;

/// The token of a callback.
type Token = Result<Path<String>, PathRejection>;

/// Hands a message to the flow that gave this URL out.
#[utoipa::path(
    post, path = "/{token}", operation_id = "call_back", tag = "callbacks",
    params(
        ("token" = String, Path, description = "The last part of the URL that a flow gave out."),
        ("Idempotency-Key" = Option<String>, Header, description = "The sender's ID of this message: of several with the same, the flow takes one."),
    ),
    request_body(content = Vec<u8>, content_type = "*/*", description = "The message, of any type. At most 256 KiB with the headers that are kept, if the application sets no other limit, 192 KiB on a host that does not own the flow and cannot reach the one that does, and 700 KiB on one that can."),
    responses(answers::Called, answers::WithBody),
)]
pub(super) async fn post(
    State(http): State<Http>,
    token: Token,
    request: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    take(&http, token, &Method::POST, &request, async || body::whole(&request, body, http.flows.largest_value()).await)
        .await
}

/// Hands a message to the flow that gave this URL out, if it may be called so.
#[utoipa::path(
    put, path = "/{token}", operation_id = "call_back_by_put", tag = "callbacks",
    params(
        ("token" = String, Path, description = "The last part of the URL that a flow gave out."),
        ("Idempotency-Key" = Option<String>, Header, description = "The sender's ID of this message: of several with the same, the flow takes one."),
    ),
    request_body(content = Vec<u8>, content_type = "*/*", description = "The message, of any type. At most 256 KiB with the headers that are kept, if the application sets no other limit, 192 KiB on a host that does not own the flow and cannot reach the one that does, and 700 KiB on one that can."),
    responses(answers::Called, answers::WithBody, answers::OtherMethod),
)]
pub(super) async fn put(
    State(http): State<Http>,
    token: Token,
    request: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    take(&http, token, &Method::PUT, &request, async || body::whole(&request, body, http.flows.largest_value()).await)
        .await
}

/// Hands the parameters of the URL, as a JSON object of texts, to the flow that gave it out, if it may be called so.
#[utoipa::path(
    get, path = "/{token}", operation_id = "call_back_by_get", tag = "callbacks",
    params(
        ("token" = String, Path, description = "The last part of the URL that a flow gave out."),
        ("Idempotency-Key" = Option<String>, Header, description = "The sender's ID of this message: of several with the same, the flow takes one."),
    ),
    responses(answers::Called, answers::OtherMethod),
)]
pub(super) async fn get(
    State(http): State<Http>,
    token: Token,
    method: Method,
    uri: Uri,
    request: HeaderMap,
) -> Result<Response, Problem> {
    // `HEAD`, by which links are looked at, is no call.
    take(&http, token, &method, &request, async || {
        // Every query is one of texts, and what is no UTF-8 is replaced.
        let parameters = Query::<BTreeMap<String, String>>::try_from_uri(&uri).map(|Query(parameters)| parameters);
        let parameters = parameters.map_err(|error| Problem::new(INVALID_REQUEST, error.body_text()))?;
        Ok(serde_json::to_vec(&parameters).unwrap_or_default().into())
    })
    .await
}

/// Takes a call. Its body is not read before it is known to be for one of ours.
async fn take(
    http: &Http,
    token: Token,
    method: &Method,
    request: &HeaderMap,
    body: impl AsyncFnOnce() -> Result<bytes::Bytes, Problem>,
) -> Result<Response, Problem> {
    let unknown =
        || Problem::new(UNKNOWN_CALLBACK, "the URL was not signed by this service, or was changed on the way");
    let Path(token) = token.map_err(|_| unknown())?;
    let target = http.flows.target(&token).ok_or_else(unknown)?;
    let standard = CallbackPolicy::new();
    let policy = http.flows.policy_of(&target);
    let answer = policy.unwrap_or(&standard);
    if !answer.takes_method(method.as_str()) {
        return Err(Problem::method(["GET", "POST", "PUT"].into_iter().filter(|method| answer.takes_method(method))));
    }
    let mut call = Call::new(body().await?);
    for (name, value) in request {
        // Without a policy to choose, what is kept is what the body cannot be read without.
        if (policy.is_some() || name == header::CONTENT_TYPE)
            && let Ok(value) = value.to_str()
        {
            call = call.header(name.as_str(), value);
        }
    }
    // One that cannot be understood is no reason to refuse what the flow waits for.
    if let Ok(Some(key)) = headers::idempotency_key(request) {
        call = call.id(key);
    }
    http.flows.deliver_to(target, call).await.map_err(|error| match error {
        // A flow that was forgotten: the URL was good once.
        FlowsError::NotFound => http.refusal(&FlowsError::Gone),
        error => http.refusal(&error),
    })?;
    let status = StatusCode::from_u16(answer.reply_status()).unwrap_or(StatusCode::ACCEPTED);
    Ok((status, answer.reply_body().clone()).into_response())
}
