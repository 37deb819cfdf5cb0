//! Flows over HTTP: two routers for axum, which an application nests where it likes, each with layers of its own.
//!
//! Every refusal is a problem (RFC 9457) with a stable type, and says what to do. What a router answers with and what its OpenAPI document
//! lists is compared by the tests. Nothing here holds more of a request than its body's limit, or a task of its own.

mod answers;
mod body;
mod callbacks;
mod events;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod headers;
mod look;
mod problem;
mod start;
mod view;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use tokio::sync::Semaphore;
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Server};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::problem::{NO_SUCH_PATH, Problem};
use self::view::FlowStatus;
use crate::flows::{Flows, FlowsError, identity};
use crate::status::Status;

/// The most requests that are held at once because of `Prefer: wait`; others are answered as if they had not asked for it.
const MAX_HELD: usize = 1_000;
/// All but those that are never escaped in a URL (RFC 3986, section 2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The seconds after which a client may look again.
const LOOK_AGAIN: &str = "1";

/// The state of a router.
#[derive(Debug, Clone)]
struct Http {
    flows: Flows,
    held: Arc<Semaphore>,
}

impl Flows {
    /// A router to start flows, look at them, hear of them and cancel them: `PUT` and `POST`, `GET`, `GET ../events`, `DELETE`, below wherever it is nested. Put it behind the
    /// application's own authentication: whoever can reach it can start any flow and see all results. `openapi.json` below it describes
    /// it, and so does the guide, `docs/http.md`.
    ///
    /// ```
    /// # fn app(flows: callback_flows::Flows) -> axum::Router {
    /// axum::Router::new()
    ///     .nest("/flows", flows.router()) // with a layer that knows who may
    ///     .nest("/callbacks", flows.callback_router()) // public
    /// # }
    /// ```
    pub fn router(&self) -> Router {
        let http = Http { flows: self.clone(), held: Arc::new(Semaphore::new(MAX_HELD)) };
        let described = OpenApiRouter::with_openapi(described("Flows"))
            .routes(routes!(events::of_all))
            .routes(routes!(start::post))
            .routes(routes!(start::put, look::get, look::delete))
            .routes(routes!(events::of_one))
            // A flow may be named so, too.
            .route("/events", axum::routing::post(start::post_events));
        finish(described.with_state(http))
    }

    /// A router for the calls of callbacks, `POST /{token}`, below what [`callbacks`](crate::FlowsBuilder::callbacks) was given. For the public: a URL
    /// is all that a caller needs. A URL that is none of ours is refused before its body is read, and without a look at the store.
    pub fn callback_router(&self) -> Router {
        let http = Http { flows: self.clone(), held: Arc::new(Semaphore::new(MAX_HELD)) };
        let described = OpenApiRouter::with_openapi(described("Callbacks of flows")).routes(routes!(
            callbacks::post,
            callbacks::put,
            callbacks::get
        ));
        finish(described.with_state(http))
    }
}

fn described(title: &str) -> OpenApi {
    let info = InfoBuilder::new().title(title).version(env!("CARGO_PKG_VERSION")).build();
    let problem = ComponentsBuilder::new().schema_from::<Problem>().build();
    // Its paths are below wherever the router is nested, as the document itself is.
    OpenApiBuilder::new().info(info).servers(Some([Server::new(".")])).components(Some(problem)).build()
}

/// The router with its own description, and with problems in place of axum's own refusals.
fn finish(router: OpenApiRouter) -> Router {
    let (router, described) = router.split_for_parts();
    let described: Arc<str> = serde_json::to_string(&described).unwrap_or_default().into();
    let show = move || {
        let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let answer = (json, described.to_string());
        async move { answer }
    };
    router.route("/openapi.json", get(show)).fallback(no_such_path).method_not_allowed_fallback(other_method)
}

async fn no_such_path() -> Problem {
    // Without the path, which may have the token of a callback in it.
    Problem::new(NO_SUCH_PATH, "nothing is served there")
}

async fn other_method(method: Method) -> Problem {
    Problem::new(problem::METHOD, format!("{method} is not answered here"))
}

/// An answer of JSON.
fn json(value: &impl Serialize) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    (headers, serde_json::to_vec(value).unwrap_or_default()).into_response()
}

impl Http {
    /// A random number, from the host's source.
    fn draw(&self) -> u64 {
        self.flows.random().map_or(0, |random| random.next_u64())
    }

    fn refusal(&self, error: &FlowsError) -> Problem {
        if matches!(error, FlowsError::Unavailable(_)) {
            // The host itself warns of a store that is away.
            tracing::debug!(error = %crate::step::with_causes(error), "a request could not be answered");
        }
        Problem::of(error, self.draw())
    }

    /// The status of a flow as clients see it, and its revision; `None` if there is none.
    async fn view(&self, name: &str, id: &str) -> Result<Option<(FlowStatus, u64)>, Problem> {
        let refusal = |error: FlowsError| self.refusal(&error);
        let Some(status) = self.flows.get(name, id).await.map_err(refusal)? else { return Ok(None) };
        let outcome = self.flows.outcome(&identity(name, id).map_err(refusal)?, &status).await.map_err(refusal)?;
        Ok(Some((FlowStatus::new(name, id, &status, outcome), status.revision)))
    }

    /// The same request at the owner of a flow, where its address is known and another host's.
    fn at_owner(&self, name: &str, id: &str, rest: &str, uri: &Uri) -> Option<Response> {
        let base = self.flows.peer(name, id)?;
        let (name, id) = (utf8_percent_encode(name, ESCAPED), utf8_percent_encode(id, ESCAPED));
        let query = uri.query().map_or_else(String::new, |query| format!("?{query}"));
        let location = format!("{}/{name}/{id}{rest}{query}", base.trim_end_matches('/'));
        let location = HeaderValue::from_str(&location).ok()?;
        Some((StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response())
    }

    /// Waits until the status of a flow is as it is wanted, so long at most, and tells for how long it would have; `None` if too many wait
    /// already.
    async fn wait(
        &self,
        name: &str,
        id: &str,
        limit: Duration,
        is_wanted: impl Fn(&Status) -> bool + Send,
    ) -> Option<Duration> {
        let _held = self.held.try_acquire().ok()?;
        tokio::select! { biased;
            () = self.flows.stopping() => {}
            // Whatever it says: the look that follows is the answer.
            _ = self.flows.wait(name, id, limit, is_wanted) => {}
        }
        Some(limit)
    }
}
