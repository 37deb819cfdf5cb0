//! Refusals, each with a type that programs can rely on and a sentence that says what to do: `application/problem+json` (RFC 9457).

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use stable_interfaces::RequestError;
use utoipa::ToSchema;

use crate::flows::FlowsError;
use crate::instance::TurnError;

/// The page that has a section for each type of problem.
const PAGE: &str = "https://github.com/stable-interfaces/stable-interfaces/blob/main/docs/http.md";
/// The media type of a problem.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// A type of problem: the end of its URL, the status it is told with, its title, and what to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) slug: &'static str,
    pub(super) status: u16,
    title: &'static str,
    remedy: &'static str,
}

macro_rules! kinds {
    ($($name:ident, $slug:literal, $status:literal, $title:literal, $remedy:literal;)*) => {
        $(pub(super) const $name: Kind = Kind { slug: $slug, status: $status, title: $title, remedy: $remedy };)*
        #[cfg(test)]
        pub(super) const ALL: &[Kind] = &[$($name),*];
    };
}

kinds! {
    NOT_JSON, "not-json", 400, "The body is not JSON", "Send the input of the flow as JSON.";
    BROKEN_BODY, "broken-body", 400, "The body has not arrived whole", "Send it again.";
    INVALID_ID, "invalid-id", 400, "The ID cannot be one", "Use UTF-8 without NUL, with the flow's name at most 512 bytes, and neither `.` nor `..`.";
    INVALID_REQUEST, "invalid-request", 400, "The request cannot be understood", "Change what the detail names.";
    UNDECODABLE, "undecodable", 400, "The body is not what this callback takes", "Send what the detail asks for.";
    UNVERIFIED, "unverified", 401, "The call is not signed as it should be", "Sign it with a current secret, at the current time.";
    UNKNOWN_FLOW, "unknown-flow", 404, "No such flow is registered", "Check the name in the path.";
    NOT_FOUND, "not-found", 404, "There is no flow of this ID", "Check the ID, or start the flow.";
    UNKNOWN_CALLBACK, "unknown-callback", 404, "This is no URL of a callback", "Use the URL as the flow gave it out.";
    NO_SUCH_PATH, "no-such-path", 404, "There is nothing under this path", "See openapi.json for the paths.";
    METHOD, "method-not-allowed", 405, "This method is not for this path", "Use one of those that `Allow` names.";
    CONFLICT, "conflict", 409, "A flow of this ID was started with another input", "Use another ID, or repeat with the same input.";
    OVER, "over", 409, "The flow is over already", "Nothing is left to do.";
    PURGED, "purged", 410, "The flow was over so long ago that it has been purged", "Do not ask again.";
    CLOSED, "closed", 410, "The flow or its callback is over", "Do not call again.";
    TOO_LARGE, "too-large", 413, "The body is too large", "Send less.";
    MEDIA_TYPE, "media-type", 415, "The body does not say that it is JSON", "Send `Content-Type: application/json`.";
    INVALID_INPUT, "invalid-input", 422, "The flow does not take this input", "Change the field that is named.";
    KEY_REUSED, "key-reused", 422, "This Idempotency-Key was used with another body", "Use a new key for a new request.";
    TOO_MANY, "too-many", 429, "Too much waits already", "Try again after the time in `Retry-After`.";
    UNREADABLE, "unreadable", 500, "The stored rows of the flow cannot be read", "Tell those who run this service.";
    UNAVAILABLE, "unavailable", 503, "It is not known to be durable", "Try again after the time in `Retry-After`, under the same ID.";
}

/// The type of the problem that is a part of a failed flow's status.
pub(super) const FLOW_FAILED: &str = "flow-failed";

/// The URL of a type.
pub(super) fn type_url(slug: &str) -> String {
    format!("{PAGE}#{slug}")
}

/// A refusal, as its body shows it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// The type of problem: a URL that stays the same, and where it is described.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    kind: Box<str>,
    /// The type in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// The detail of this very problem, in words.
    #[schema(value_type = String)]
    detail: Box<str>,
    /// The remedy.
    remedy: &'static str,
    /// The field of the input that it is about, such as `items[2].price`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    field: Option<Box<str>>,
    /// Seconds.
    #[serde(skip)]
    retry_after: Option<u64>,
    /// Methods.
    #[serde(skip)]
    allow: Option<Box<str>>,
}

impl Problem {
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Problem {
        Problem {
            kind: type_url(kind.slug).into(),
            title: kind.title,
            status: kind.status,
            detail: detail.into().into(),
            remedy: kind.remedy,
            field: None,
            retry_after: None,
            allow: None,
        }
    }

    pub(super) fn of_field(kind: Kind, field: impl Into<String>, detail: impl Into<String>) -> Problem {
        Problem { field: Some(field.into().into()), ..Problem::new(kind, detail) }
    }

    /// A problem of what is to be repeated after some seconds, which `jitter` spreads so that not all come back at once.
    pub(super) fn later(kind: Kind, detail: impl Into<String>, jitter: u64) -> Problem {
        Problem { retry_after: Some(1 + jitter % 4), ..Problem::new(kind, detail) }
    }

    /// A method that is none of these.
    pub(super) fn method<'a>(allowed: impl Iterator<Item = &'a str>) -> Problem {
        let allow = allowed.collect::<Vec<_>>().join(",");
        Problem { allow: Some(allow.into()), ..Problem::new(METHOD, "it was not asked to take calls by this method") }
    }

    /// The refusal that an error stands for. Says nothing that only those who run the service should know.
    pub(super) fn of(error: &FlowsError, jitter: u64) -> Problem {
        let detail = error.to_string();
        match error {
            FlowsError::UnknownFlow(_) => Problem::new(UNKNOWN_FLOW, detail),
            FlowsError::Invalid(_) => Problem::new(INVALID_ID, detail),
            FlowsError::Input { source, .. } => Problem::new(INVALID_INPUT, source.to_string()),
            FlowsError::Refused(refused) => Problem::of_field(INVALID_INPUT, refused.field(), refused.reason()),
            FlowsError::TooLarge { .. } => Problem::new(TOO_LARGE, detail),
            FlowsError::Conflict => Problem::new(CONFLICT, detail),
            FlowsError::NotFound => Problem::new(NOT_FOUND, detail),
            FlowsError::Gone => Problem::new(CLOSED, detail),
            FlowsError::TooManyUnread => Problem::later(TOO_MANY, detail, jitter),
            FlowsError::Unverified(why) => Problem::new(UNVERIFIED, why.to_string()),
            FlowsError::Undecodable { source, .. } => Problem::new(UNDECODABLE, source.to_string()),
            FlowsError::Unreadable(_) => Problem::new(UNREADABLE, detail),
            FlowsError::Unavailable(source) => match source.downcast_ref::<RequestError<TurnError>>() {
                Some(RequestError::Overloaded(_)) => Problem::later(TOO_MANY, "this host has too much to do", jitter),
                _ => Problem::later(UNAVAILABLE, "the flow or its store cannot be reached", jitter),
            },
            _ => Problem::later(UNAVAILABLE, "it was not done", jitter),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, Body::from(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = self.allow.as_deref().and_then(|allow| HeaderValue::from_str(allow).ok()) {
            headers.insert(header::ALLOW, allow);
        }
        if status == StatusCode::UNAUTHORIZED {
            // A status 401 has to name a way (RFC 9110, section 11.6.1).
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Webhook-Signature"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_type_of_problem_has_its_section_in_the_guide() {
        let guide = include_str!("../../../docs/http.md");
        let slugs: HashSet<&str> = ALL.iter().map(|kind| kind.slug).collect();
        assert_eq!(slugs.len(), ALL.len(), "two types have one name");
        for slug in slugs.into_iter().chain([FLOW_FAILED]) {
            assert!(guide.contains(&format!("\n### {slug}\n")), "docs/http.md has no section `{slug}`");
        }
        for kind in ALL {
            assert!(kind.remedy.ends_with('.') && !kind.title.ends_with('.'), "{kind:?}");
        }
    }

    #[test]
    fn what_is_to_be_repeated_is_not_repeated_by_all_at_once() {
        let seconds: HashSet<u64> =
            (0..100).filter_map(|jitter| Problem::later(TOO_MANY, "", jitter).retry_after).collect();
        assert_eq!(seconds, HashSet::from([1, 2, 3, 4]));
    }
}
