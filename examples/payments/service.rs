//! The service: the scripts of a directory as flows, with Stripe as they know it, and the doors for orders and for Stripe's events.

use std::io::Write as _;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use callback_flows::script::{Script, ScriptFlows, ScriptFlowsBuilder};
use callback_flows::{Call, CallbackPolicy, Flows, FlowsError, UrlKeys, Verify};
use examples::http;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use stable_interfaces::HostBuilder;
use tokio::net::TcpListener;

use crate::stripe::Account;

/// The URL below which callbacks are called: that of all hosts, since a flow goes on at another one when its own dies. Here it only names
/// them: Stripe's events come in by a door of their own.
const PUBLIC: &str = "http://payments.example/callbacks";
/// The name of all flows that are scripts.
pub(crate) const SCRIPT: &str = "script";

/// The flows that are looked at together.
const PAGE: usize = 200;

/// A flow that is to be begun: a script of the library, and its arguments.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) script: String,
    pub(crate) arguments: Map<String, Value>,
}

/// The service's options.
pub(crate) struct Service {
    /// The scripts.
    pub(crate) library: PathBuf,
    pub(crate) account: Account,
    /// The secret that Stripe signs its events with.
    pub(crate) secret: String,
    /// The file in which a line is written whenever a script calls `canary`.
    pub(crate) canary: PathBuf,
    pub(crate) keys: UrlKeys,
}

/// The scripts of a directory, with all that is known to them.
pub(crate) fn scripts(library: &FilePath, account: Account, canary: PathBuf) -> ScriptFlowsBuilder {
    let scripts = ScriptFlows::builder().library(library).functions(move |engine| {
        let [control, canary] = [canary.clone(), canary.clone()];
        // No script calls it, so a call means that somebody's answer was taken for code; and one does with a word, to show that it is heard.
        engine.register_fn("canary", move |_: &str| sing(&control, "control\n"));
        engine.register_fn("canary", move || sing(&canary, "called\n"));
    });
    Arc::new(account).teach(scripts)
}

fn sing(canary: &FilePath, line: &str) {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(canary);
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the canary can be written");
}

async fn start(State(flows): State<Flows>, Path(id): Path<String>, Json(start): Json<Start>) -> Response {
    let script =
        start.arguments.iter().fold(Script::named(&start.script), |script, (name, value)| script.arg(name, value));
    let started = flows.start(SCRIPT, &id, &script).await;
    started.map_or_else(|error| refuse(&error), |_| StatusCode::ACCEPTED.into_response())
}

/// Lets all blocked flows try again, for an operator alone: the IDs and the reasons.
async fn resume(State(flows): State<Flows>) -> Response {
    let resume_all = async || {
        let mut resumed = Vec::new();
        let mut page = flows.list(None, PAGE).await?;
        while !page.is_empty() {
            for flow in &page {
                let status = flows.get(SCRIPT, flow.id()).await?;
                if let Some(callback_flows::State::Blocked { why }) = status.map(|status| status.state) {
                    flows.resume(SCRIPT, flow.id()).await?;
                    resumed.push((flow.id().to_owned(), why.to_string()));
                }
            }
            page = flows.list(page.last(), PAGE).await?;
        }
        Ok(resumed)
    };
    resume_all().await.map_or_else(|error| refuse(&error), |resumed: Vec<_>| Json(resumed).into_response())
}

/// An event of Stripe's, as much of it as says whose it is.
#[derive(Deserialize)]
struct Event {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    object: Object,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    metadata: Map<String, Value>,
}

/// Takes an event for the flow whose callback is named by the object that it is about. The callback's policy looks at the signature
/// before anything is stored: until then nothing in the event is believed.
async fn event(State(flows): State<Flows>, headers: HeaderMap, body: Bytes) -> Response {
    let Ok(Event { data }) = serde_json::from_slice(&body) else { return StatusCode::BAD_REQUEST.into_response() };
    let url = data.object.metadata.get("callback").and_then(Value::as_str);
    let Some((_, token)) = url.and_then(|url| url.rsplit_once('/')) else {
        // Of no flow; told that it is taken, Stripe does not send it again.
        return StatusCode::OK.into_response();
    };
    let mut call = Call::new(body.clone());
    for (name, value) in &headers {
        if let Ok(value) = value.to_str() {
            call = call.header(name.as_str(), value);
        }
    }
    flows.deliver(token, call).await.map_or_else(|error| refuse(&error), |_| StatusCode::OK.into_response())
}

fn refuse(error: &FlowsError) -> Response {
    let status = match error {
        FlowsError::NotFound => StatusCode::NOT_FOUND,
        FlowsError::Gone => StatusCode::GONE,
        FlowsError::Unverified(_) => StatusCode::UNAUTHORIZED,
        error if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    };
    (status, format!("{error}\n")).into_response()
}

/// Serves until `stop` completes.
pub(crate) async fn serve(mut host: HostBuilder, tcp: TcpListener, service: Service, stop: impl Future) -> Result<()> {
    let address = tcp.local_addr()?;
    let paid = CallbackPolicy::new().verify(Verify::stripe([service.secret])?);
    let mut flows = Flows::builder().callbacks(PUBLIC, service.keys).callback_policy(SCRIPT, "paid", paid);
    scripts(&service.library, service.account, service.canary).register(&mut flows)?;
    let flows = flows.register(&mut host)?;
    let host = host.start().await?;
    println!("listening on http://{address}");
    let app = Router::new()
        .route("/scripts", post(resume))
        .route("/scripts/{id}", post(start))
        .route("/stripe/events", post(event))
        .with_state(flows.clone())
        .nest("/flows", flows.router())
        .nest("/callbacks", flows.callback_router());
    let served = http::serve(tcp, app, host.stopping());
    let ((), ended) = tokio::join!(served, host.run_until(stop));
    Ok(ended.map(drop)?)
}
