//! The answers of operations as their OpenAPI documents list them: what several have in common is said here, once.

use std::borrow::Cow;
use std::collections::BTreeMap;

use utoipa::openapi::{ContentBuilder, HeaderBuilder, ObjectBuilder, Ref, RefOr, Response, ResponseBuilder, Type};
use utoipa::{IntoResponses, ToSchema as _};

use super::problem::{PROBLEM_JSON, Problem};
use super::view::FlowStatus;

/// Groups of answers, by status: those from 400 on have a problem as their body.
macro_rules! answers {
    ($($(#[$doc:meta])* $group:ident { $($status:literal: $description:literal,)* })*) => {
        $(
            $(#[$doc])*
            pub(super) enum $group {}

            impl IntoResponses for $group {
                fn responses() -> BTreeMap<String, RefOr<Response>> {
                    BTreeMap::from([$(($status.to_string(), answer($status, $description).into())),*])
                }
            }
        )*
    };
}

answers! {
    /// Starts, under whatever ID.
    NotBegun {
        400: "The body is not JSON or did not arrive whole, or the ID or the `Idempotency-Key` cannot be one.",
        404: "No such flow is registered.",
        410: "There was one of this ID, and it has been purged.",
        413: "The body is too large.",
        415: "The body does not say that it is JSON.",
        422: "The flow does not take this input, or the `Idempotency-Key` was used with another one; `field` names the place.",
        429: "This host has too much to do.",
        503: "It is not known to be durable: repeat it under the same ID.",
    }
    /// Starts under an ID that is no key of a request.
    OtherInput {
        409: "There is one of this ID with another input; `field` names the first difference.",
    }
    /// Everything about one flow of which nothing but its path is needed.
    NoFlow {
        400: "The path, the query or a header cannot be understood.",
        404: "There never was one of this ID.",
        410: "It has been purged.",
        503: "The store cannot be reached; what was asked for is not known to be durable.",
    }
    /// Cancellations.
    NotCancelled {
        202: "It has been asked to end.",
        409: "It is over already.",
        429: "This host has too much to do.",
    }
    /// Calls, by whatever method.
    Called {
        202: "It is durable, and the flow will see it. So is a repeat under the same ID. A policy may have another status and body.",
        400: "The body did not arrive whole, or it or the parameters are not what this callback takes.",
        401: "It is not signed as it should be, or was signed too long ago.",
        404: "This URL is none of this service.",
        410: "The flow or its callback is over.",
        429: "Too many messages wait for the flow.",
        503: "It is not known to be durable.",
    }
    /// Calls with a body.
    WithBody {
        413: "The body is too large.",
    }
    /// Calls by other methods than `POST`.
    OtherMethod {
        405: "This callback is not called by this method.",
    }
}

/// Starts that are accepted.
pub(super) enum Begun {}

impl IntoResponses for Begun {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let status = || Some(("application/json", FlowStatus::name()));
        let over = "It is over: its status and result. Only with `Prefer: wait`.";
        let accepted = "It is durable, now or since an earlier request under the same ID with the same input.";
        let (waited, location) = (("Preference-Applied", Type::String), ("Location", Type::String));
        let again = [location.clone(), ("Retry-After", Type::Integer), waited.clone()];
        BTreeMap::from([
            ("200".to_owned(), described(over, &[location, waited], status()).into()),
            ("202".to_owned(), described(accepted, &again, status()).into()),
        ])
    }
}

/// An answer of this status, with the headers that it always has.
fn answer(status: u16, description: &str) -> Response {
    let headers = match status {
        401 => &[("WWW-Authenticate", Type::String)][..],
        405 => &[("Allow", Type::String)],
        429 | 503 => &[("Retry-After", Type::Integer)],
        _ => &[],
    };
    let problem = (status >= 400).then(|| (PROBLEM_JSON, Problem::name()));
    described(description, headers, problem)
}

/// An answer with these headers, and a body of this media type and schema.
fn described(description: &str, headers: &[(&str, Type)], body: Option<(&str, Cow<'_, str>)>) -> Response {
    let mut response = ResponseBuilder::new().description(description);
    for (name, kind) in headers {
        let schema = ObjectBuilder::new().schema_type(kind.clone()).build();
        response = response.header(*name, HeaderBuilder::new().schema(Some(schema)).build());
    }
    if let Some((media, schema)) = body {
        let schema = Ref::from_schema_name(schema);
        response = response.content(media, ContentBuilder::new().schema(Some(schema)).build());
    }
    response.build()
}
