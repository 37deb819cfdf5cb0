//! Calls of callbacks: whoever has the URL, within the callback's policy.

use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;

use super::headers;
use super::problem::{Kind, Problem};
use crate::flows::{Call, Flows, FlowsError};

/// The last part of a callback's URL.
#[derive(Debug, Deserialize)]
pub(super) struct Called {
    token: String,
}

/// `POST /{token}`
pub(super) async fn call(
    State(flows): State<Flows>,
    called: Result<Path<Called>, PathRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let Called { token } = called?.0;
    // Before the body is looked at: most of what comes here uninvited has no token.
    let unknown = || Problem::new(Kind::NOT_FOUND, "This is no URL of a callback of ours.");
    let _ = flows.flow_of(&token).ok_or_else(unknown)?;
    let mut call = Call::new(body?);
    let policy = flows.policy(&token);
    match policy {
        // It says which headers are kept, and where a call has its ID.
        Some(_) => {
            for (name, value) in &headers {
                if let Ok(value) = value.to_str() {
                    call = call.header(name.as_str(), value);
                }
            }
        }
        None => {
            if let Some(kind) = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) {
                call = call.header(header::CONTENT_TYPE.as_str(), kind);
            }
            if let Some(key) = headers::key(&headers).map_err(|why| Problem::new(Kind::BAD_REQUEST, why))? {
                call = call.id(key);
            }
        }
    }
    match flows.deliver(&token, call).await {
        Ok(_) => {}
        Err(FlowsError::NotFound) => return Err(unknown()),
        Err(error) => return Err(error.into()),
    }
    let (status, body) =
        policy.map_or((202, Bytes::new()), |policy| (policy.reply_status(), policy.reply_body().clone()));
    Ok((StatusCode::from_u16(status).unwrap_or(StatusCode::ACCEPTED), body).into_response())
}
