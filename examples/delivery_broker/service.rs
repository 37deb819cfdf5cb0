//! The broker as a service: the flows of `broker.rs` on a host, and the doors through which calls for them come in.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use callback_flows::{Call, Flows, FlowsError, Outcome, UrlKeys};
use examples::http;
use serde::{Deserialize, Serialize};
use stable_interfaces::HostBuilder;
use tokio::net::TcpListener;

use crate::broker::{self, Ended, World};

/// The URL below which callbacks are called: that of all hosts, since a flow goes on at another one when its own dies. The drill plays what
/// is in front of them.
const PUBLIC: &str = "http://broker.example/callbacks";
/// The name of the one flow that begins all others.
pub(crate) const BROKER: &str = "main";

/// A flow as it is seen from outside.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct View {
    pub(crate) version: u32,
    #[serde(default)]
    pub(crate) blocked: Option<String>,
    #[serde(default)]
    pub(crate) ended: Option<Ended>,
}

/// Takes a call, whoever has the flow: when this answers, the call is durable.
async fn call_back(State(flows): State<Flows>, token: Path<String>, headers: HeaderMap, body: Bytes) -> Response {
    let mut call = Call::new(body);
    if let Some(id) = headers.get("idempotency-key").and_then(|id| id.to_str().ok()) {
        call = call.id(id);
    }
    flows.deliver(&token, call).await.map_or_else(|error| refuse(&error), |_| StatusCode::ACCEPTED.into_response())
}

async fn look(State(flows): State<Flows>, Path((name, id)): Path<(String, String)>) -> Response {
    view(&flows, &name, &id).await.map_or_else(|error| refuse(&error), |view| Json(view).into_response())
}

async fn view(flows: &Flows, name: &str, id: &str) -> Result<View, FlowsError> {
    let status = flows.get(name, id).await?.ok_or(FlowsError::NotFound)?;
    let blocked = match status.state {
        callback_flows::State::Blocked { why } => Some(why.to_string()),
        _ => None,
    };
    let ended = match flows.result(name, id).await? {
        Some(Outcome::Done(ended)) => Some(serde_json::from_str(ended.get()).map_err(FlowsError::Unreadable)?),
        _ => None,
    };
    Ok(View { version: status.version, blocked, ended })
}

/// Lets a blocked flow try again: for an operator alone.
async fn resume(State(flows): State<Flows>, Path((name, id)): Path<(String, String)>) -> Response {
    flows.resume(&name, &id).await.map_or_else(|error| refuse(&error), |()| StatusCode::ACCEPTED.into_response())
}

fn refuse(error: &FlowsError) -> Response {
    let status = match error {
        FlowsError::NotFound => StatusCode::NOT_FOUND,
        FlowsError::Gone => StatusCode::GONE,
        FlowsError::Invalid(_) | FlowsError::TooLarge { .. } => StatusCode::BAD_REQUEST,
        // To be repeated: a call has an ID, so that it counts once.
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, format!("{error}\n")).into_response()
}

/// Serves until `stop` completes. As version 1 it knows nothing of the next one, which is deployed over it.
pub(crate) async fn serve(
    mut host: HostBuilder,
    tcp: TcpListener,
    version: u32,
    world: World,
    keys: UrlKeys,
    stop: impl Future,
) -> Result<()> {
    let address = tcp.local_addr()?;
    let world = Arc::new(world);
    let [first, second, third] = std::array::from_fn(|_| world.clone());
    let mut flows = Flows::builder()
        .flow("broker", 1, move |flow, input| broker::broker(first.clone(), flow, input))
        .flow("order", 1, move |flow, input| broker::order_1(second.clone(), flow, input))
        .callbacks(PUBLIC, keys);
    if version > 1 {
        flows = flows.flow("order", 2, move |flow, input| broker::order(third.clone(), flow, input));
    }
    let flows = flows.register(&mut host)?;
    let host = host.start().await?;
    println!("listening on http://{address}");
    let app = Router::new()
        .route("/callbacks/{token}", post(call_back))
        .route("/flows/{name}/{id}", get(look))
        .route("/flows/{name}/{id}/resume", post(resume));
    let served = http::serve(tcp, app.with_state(flows.clone()), host.stopping());
    // Whichever host is the first to begin it: it is one flow.
    let begun = async {
        while flows.start("broker", BROKER, &()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let until = async {
        tokio::join!(begun, stop);
    };
    let ((), ended) = tokio::join!(served, host.run_until(until));
    Ok(ended.map(drop)?)
}
