//! The description of the routers: an OpenAPI document, made from one table.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

/// An operation: method, path, what it does, the parameters that it looks at, and the statuses it may be answered with.
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    summary: &'static str,
    parameters: &'static [(&'static str, &'static str, &'static str)],
    has_body: bool,
    pub(super) statuses: &'static [u16],
}

const PREFER: (&str, &str, &str) = ("header", "Prefer", "`wait=N`: N seconds at most, 30 at most");

/// Every operation of [`Flows::router`](crate::Flows::router), and behind them that of [`Flows::callback_router`](crate::Flows::callback_router).
pub(super) const OPERATIONS: [Operation; 7] = [
    Operation {
        method: "put",
        path: "/{name}/{id}",
        summary: "Starts a flow under an ID of the client's choice. The same again does nothing more.",
        parameters: &[PREFER],
        has_body: true,
        statuses: &[200, 202, 400, 404, 405, 409, 413, 422, 429, 500, 503],
    },
    Operation {
        method: "post",
        path: "/{name}",
        summary: "Starts a flow under its Idempotency-Key, or else a random ID.",
        parameters: &[PREFER, ("header", "Idempotency-Key", "the ID; the same again does nothing more")],
        has_body: true,
        statuses: &[200, 202, 400, 404, 405, 413, 422, 429, 500, 503],
    },
    Operation {
        method: "get",
        path: "/{name}/{id}",
        summary: "Shows a flow: its status, what it waits for, its progress, its result or its problem.",
        parameters: &[
            PREFER,
            ("header", "If-None-Match", "with it, a wait is for a change; without it, for the end"),
            ("query", "follow", "1: to what the flow has made, if it has"),
        ],
        has_body: false,
        statuses: &[200, 303, 304, 400, 404, 405, 410, 429, 500, 503],
    },
    Operation {
        method: "delete",
        path: "/{name}/{id}",
        summary: "Cancels a flow.",
        parameters: &[],
        has_body: false,
        statuses: &[202, 400, 404, 405, 409, 410, 429, 500, 503],
    },
    Operation {
        method: "get",
        path: "/{name}/{id}/events",
        summary: "Streams the events of a flow up to its end, as text/event-stream.",
        parameters: &[("header", "Last-Event-ID", "the number of the last event that the client has had")],
        has_body: false,
        statuses: &[200, 204, 400, 404, 405, 410, 429, 500, 503],
    },
    Operation {
        method: "get",
        path: "/events",
        summary: "Streams what happens to all flows of this host, as text/event-stream.",
        parameters: &[
            ("query", "only", "names of events, with commas between them"),
            ("query", "name", "the name of a flow"),
        ],
        has_body: false,
        statuses: &[200, 400, 405],
    },
    Operation {
        method: "post",
        path: "/callbacks/{token}",
        summary: "Calls a callback. Its policy may have another status for what was taken.",
        parameters: &[("header", "Idempotency-Key", "of calls with one key the flow takes one")],
        has_body: true,
        statuses: &[202, 400, 401, 404, 405, 410, 413, 429, 500, 503],
    },
];

fn meaning(status: u16) -> &'static str {
    match status {
        200 => "It is over, or this is how it is.",
        202 => "It is durable. Location says where to look, Retry-After when.",
        204 => "There will be no more events.",
        303 => "What the flow has made is there.",
        304 => "Nothing has changed.",
        400 => "The request cannot be understood; nothing has happened.",
        401 => "The signature is not valid, or too old; nothing has happened.",
        404 => "There is nothing of this name.",
        405 => "The path has no such method.",
        409 => "The flow has another input, or is over; nothing has happened.",
        410 => "It is over, and takes or shows nothing any more.",
        413 => "The body is too large.",
        422 => "The flow does not take this input, or the key was used for another; nothing has happened.",
        429 => "There is too much to do; the same may be sent again after Retry-After.",
        503 => "It is not known to be durable; the same may be sent again after Retry-After.",
        _ => "Something here is broken; the log says what.",
    }
}

fn response(status: u16) -> Value {
    let problem = json!({"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}});
    match status {
        400.. => json!({"description": meaning(status), "content": problem}),
        _ => json!({"description": meaning(status)}),
    }
}

/// The document.
pub(super) fn describe() -> Value {
    let mut paths = Map::new();
    for operation in &OPERATIONS {
        let in_path = operation.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let in_path =
            in_path.map(|name| json!({"in": "path", "name": name, "required": true, "schema": {"type": "string"}}));
        let others = operation.parameters.iter().map(
            |(place, name, what)| json!({"in": place, "name": name, "description": what, "schema": {"type": "string"}}),
        );
        let responses: Map<String, Value> =
            operation.statuses.iter().map(|status| (status.to_string(), response(*status))).collect();
        let mut described = json!({
            "summary": operation.summary,
            "parameters": in_path.chain(others).collect::<Vec<_>>(),
            "responses": responses,
        });
        if operation.has_body {
            described["requestBody"] = json!({"content": {"application/json": {"schema": {}}}});
        }
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = described;
    }
    let text = json!({"type": "string"});
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Flows", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {"schemas": {"Problem": {
            "type": "object",
            "required": ["type", "title", "status", "detail"],
            "properties": {"type": text, "title": text, "status": {"type": "integer"}, "detail": text, "field": text},
        }}},
    })
}

/// `GET /openapi.json`
pub(super) async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], describe().to_string()).into_response()
}
