//! Errors as clients see them: `application/problem+json` (RFC 9457).
//!
//! A `type` is stable, and means one thing to do. No problem has a token, a secret, or a cause inside this process in it.

use std::borrow::Cow;

use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};
use stable_interfaces::RequestError;

use super::random;
use crate::flows::FlowsError;
use crate::instance::TurnError;

/// The beginning of each `type`.
const TYPE: &str = "urn:callback-flows:problem:";

/// The kinds of problems: name, status, title.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind(pub(super) &'static str, pub(super) StatusCode, pub(super) &'static str);

impl Kind {
    pub(super) const BAD_REQUEST: Kind =
        Kind("bad-request", StatusCode::BAD_REQUEST, "The request cannot be understood");
    pub(super) const NOT_JSON: Kind = Kind("not-json", StatusCode::BAD_REQUEST, "The body is not JSON");
    pub(super) const UNVERIFIED: Kind = Kind("unverified", StatusCode::UNAUTHORIZED, "The signature is not valid");
    pub(super) const UNKNOWN_FLOW: Kind = Kind("unknown-flow", StatusCode::NOT_FOUND, "There is no flow of this name");
    pub(super) const NOT_FOUND: Kind = Kind("not-found", StatusCode::NOT_FOUND, "There is nothing here");
    pub(super) const NOT_ALLOWED: Kind = Kind("method", StatusCode::METHOD_NOT_ALLOWED, "This cannot be done here");
    pub(super) const CONFLICT: Kind = Kind("other-input", StatusCode::CONFLICT, "This ID has another input");
    pub(super) const OVER: Kind = Kind("over", StatusCode::CONFLICT, "The flow is over");
    pub(super) const GONE: Kind = Kind("gone", StatusCode::GONE, "The flow is over");
    pub(super) const TOO_LARGE: Kind = Kind("too-large", StatusCode::PAYLOAD_TOO_LARGE, "The body is too large");
    pub(super) const INPUT: Kind = Kind("input", StatusCode::UNPROCESSABLE_ENTITY, "The flow does not take this input");
    pub(super) const KEY_REUSED: Kind =
        Kind("key-reused", StatusCode::UNPROCESSABLE_ENTITY, "This Idempotency-Key was used for another body");
    pub(super) const TOO_MANY: Kind = Kind("too-many", StatusCode::TOO_MANY_REQUESTS, "There is too much to do");
    pub(super) const INTERNAL: Kind = Kind("internal", StatusCode::INTERNAL_SERVER_ERROR, "Something here is broken");
    pub(super) const UNAVAILABLE: Kind =
        Kind("unavailable", StatusCode::SERVICE_UNAVAILABLE, "The flow cannot be reached now");
}

/// An error on its way to a client.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) kind: Kind,
    detail: Cow<'static, str>,
    /// The field of the input that it is about, as a JSON pointer (RFC 6901).
    field: Option<String>,
}

impl Problem {
    pub(super) fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem { kind, detail: detail.into(), field: None }
    }

    pub(super) fn at(self, field: Option<String>) -> Problem {
        Problem { field, ..self }
    }

    /// As a part of a document.
    pub(super) fn to_json(&self) -> Value {
        let mut json = Map::new();
        json.insert("type".into(), format!("{TYPE}{}", self.kind.0).into());
        json.insert("title".into(), self.kind.2.into());
        json.insert("status".into(), self.kind.1.as_u16().into());
        json.insert("detail".into(), self.detail.as_ref().into());
        if let Some(field) = &self.field {
            json.insert("field".into(), field.as_str().into());
        }
        Value::Object(json)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.kind.1, self.to_json().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match self.kind {
            // One to three seconds: those who were refused together do not come back together.
            Kind::TOO_MANY | Kind::UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(1 + random() % 3));
            }
            // RFC 9110 wants a challenge with each 401.
            Kind::UNVERIFIED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Signature"));
            }
            _ => {}
        }
        response
    }
}

impl From<FlowsError> for Problem {
    fn from(error: FlowsError) -> Problem {
        match error {
            FlowsError::UnknownFlow(name) => {
                let detail = format!("No flow {name:?} is registered; look at the spelling, or deploy it.");
                Problem::new(Kind::UNKNOWN_FLOW, detail)
            }
            FlowsError::Invalid(why) => Problem::new(Kind::BAD_REQUEST, why),
            FlowsError::Input { source, .. } => Problem::new(Kind::INPUT, source.to_string()),
            FlowsError::Conflict => {
                Problem::new(Kind::CONFLICT, "A flow was started under this ID with another input; choose another ID.")
            }
            FlowsError::TooLarge { what, bytes, limit } => {
                Problem::new(Kind::TOO_LARGE, format!("{what} has {bytes} bytes, and may have {limit}."))
            }
            FlowsError::NotFound => {
                Problem::new(Kind::NOT_FOUND, "There has been no flow of this ID, or it was long ago.")
            }
            FlowsError::Gone => Problem::new(Kind::GONE, "The flow, or its callback, takes nothing any more."),
            FlowsError::TooManyUnread => {
                Problem::new(Kind::TOO_MANY, "Too many messages wait for the flow; send this one again later.")
            }
            FlowsError::Unverified(why) => Problem::new(Kind::UNVERIFIED, why.to_string()),
            FlowsError::Undecodable { source, .. } => Problem::new(Kind::BAD_REQUEST, source.to_string()),
            FlowsError::Unavailable(cause) => match cause.downcast_ref::<RequestError<TurnError>>() {
                Some(RequestError::Overloaded(_)) => {
                    Problem::new(Kind::TOO_MANY, "This host has as much to do as it can; send the same again later.")
                }
                _ => Problem::new(
                    Kind::UNAVAILABLE,
                    "The flow or its store cannot be reached, or its answer is not known; send the same again, which does nothing twice.",
                ),
            },
            error => {
                tracing::error!(%error, "a request about a flow has failed");
                Problem::new(Kind::INTERNAL, "The log of this host says what it is.")
            }
        }
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Problem {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            Problem::new(Kind::TOO_LARGE, format!("A body may have {} bytes.", super::MAX_BODY_BYTES))
        } else {
            Problem::new(Kind::BAD_REQUEST, "The body ended before it was whole; send it again.")
        }
    }
}

impl From<PathRejection> for Problem {
    fn from(_: PathRejection) -> Problem {
        Problem::new(Kind::BAD_REQUEST, "A part of the path is not UTF-8 when its percent-encoding is undone.")
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Problem {
        Problem::new(Kind::BAD_REQUEST, rejection.body_text())
    }
}

/// The answer to a path that is none.
pub(super) async fn not_found() -> Problem {
    Problem::new(Kind::NOT_FOUND, "Look at /openapi.json for what there is.")
}

/// The answer to a method that its path does not have.
pub(super) async fn not_allowed() -> Problem {
    Problem::new(Kind::NOT_ALLOWED, "Look at /openapi.json for what can be done here.")
}

/// A header's name and value, for answers.
pub(super) fn text(name: HeaderName, value: &str) -> Option<(HeaderName, HeaderValue)> {
    Some((name, HeaderValue::from_str(value).ok()?))
}
