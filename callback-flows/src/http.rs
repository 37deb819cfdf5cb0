//! Flows over HTTP: one router for an application's own clients, one for whoever was given a callback's URL.
//!
//! A start, a cancel and a call are answered when they are durable, and no later; their outcome is looked at, waited for, or heard of.
//! A client is told one of four things: it is done (200), it is durable (202), it has not happened and here is what to change (400 to 429), or
//! nothing is known and the same may be sent again (503). Every error is a [problem](problem). Whoever serves a router bounds its
//! connections: `axum::serve` waits for a half-sent header for ever.

mod callbacks;
mod events;
mod headers;
mod openapi;
mod problem;
mod resource;
#[cfg(test)]
mod tests;
mod view;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use tokio::sync::Semaphore;

use self::problem::{not_allowed, not_found};
use crate::flows::Flows;

/// The longest that a request waits because its `Prefer` header says so.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The most requests of one router that wait.
const MOST_WAITING: usize = 1_000;
/// The largest body that is read: what a flow takes, and a little for white space.
const MAX_BODY_BYTES: usize = 256 * 1024;

/// The state that the handlers of one router share.
#[derive(Debug, Clone)]
struct Http {
    flows: Flows,
    /// A permit for each request that waits.
    waiting: Arc<Semaphore>,
}

impl Flows {
    /// The router for clients of the application, to be nested behind its authentication, such as at `/flows`:
    ///
    /// | request | it |
    /// | --- | --- |
    /// | `PUT /{name}/{id}` | starts a flow under an ID of the client's choice, with the body as its input |
    /// | `POST /{name}` | starts one under its `Idempotency-Key`, or else a random ID |
    /// | `GET /{name}/{id}` | shows it; with `?follow=1` it leads to what the flow has made |
    /// | `GET /{name}/{id}/events` | streams its events, as server-sent events |
    /// | `DELETE /{name}/{id}` | cancels it |
    /// | `GET /events` | streams what happens to all flows of this host: `?only=failed,blocked&name=order` |
    /// | `GET /openapi.json` | describes all of this |
    ///
    /// `Prefer: wait=10` has a start wait for its flow's end, and a look with `If-None-Match` for a change: 30 s at most. Repeating a
    /// request is safe. On a host that does not own a flow, a start waits for up to two seconds until its owner has taken it.
    ///
    /// ```
    /// # use axum::Router;
    /// # fn routes(flows: &callback_flows::Flows) -> Router {
    /// Router::new().nest("/flows", flows.router()).nest("/callbacks", flows.callback_router())
    /// # }
    /// ```
    pub fn router(&self) -> Router {
        let flow = get(resource::show).put(resource::start_under).delete(resource::cancel).fallback(not_allowed);
        Router::new()
            .route("/openapi.json", get(openapi::document).fallback(not_allowed))
            // A flow may have that name.
            .route("/events", get(events::of_all).post(resource::start_events).fallback(not_allowed))
            .route("/{flow_name}", axum::routing::post(resource::start).fallback(not_allowed))
            .route("/{flow_name}/{flow_id}", flow)
            .route("/{flow_name}/{flow_id}/events", get(events::of_one).fallback(not_allowed))
            .fallback(not_found)
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .with_state(Http { flows: self.clone(), waiting: Arc::new(Semaphore::new(MOST_WAITING)) })
    }

    /// The public router for callbacks, to be nested where [`FlowsBuilder::callbacks`](crate::FlowsBuilder::callbacks) says: `POST /{token}`,
    /// of any content type. The [policy](crate::FlowsBuilder::callback_policy) of a callback says who may call it, and what the answer is;
    /// without one, `Idempotency-Key` is the call's [ID](crate::Call::id), and of the headers the flow's code sees `content-type`.
    pub fn callback_router(&self) -> Router {
        Router::new()
            .route("/{token}", axum::routing::post(callbacks::call).fallback(not_allowed))
            .fallback(not_found)
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .with_state(self.clone())
    }
}

/// A number that nobody can foresee, for pauses and IDs.
fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}
