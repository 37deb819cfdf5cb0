//! Orders that wait for a webhook, with a timeout: the twin of `service.rs`, written as a flow. To copy: this file, and
//! `http.rs` beside it as a `mod http`.
//!
//! ```text
//! export CALLBACK_SECRET=..    # at least 16 bytes, the same on all hosts
//! cargo run --release --example webhook_flow -- DIR ADDRESS [URL]    # of a partner, which is told of each order
//! ```
//!
//! An order is *accepted* if the partner's callback arrives by the time at which the order is due, and *expired* otherwise. Its
//! code is one function, run again from its top after a crash and handed what it had been handed. No answer leaves before
//! what it says is durable, and any host takes any request: those that are not the order's own store it for that one.

use std::{collections::HashMap, process::ExitCode, sync::Arc, time::Duration};

use alarm_backends::FjallStore;
use anyhow::Result;
use axum::extract::{Path, Query};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, body::Bytes, http::StatusCode, routing::post};
use callback_flows::{Call, Delivered, Flow, FlowResult, Flows, FlowsError};
use callback_flows::{Outcome as End, Retry, Started, State, UrlKeys};
use examples::http;
use reqwest::Url;
use serde::{Deserialize, Serialize};
use stable_interfaces::{Host, HostBuilder, Timestamp};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

const PARTNER_LIMIT: Duration = Duration::from_millis(500); // for one call
const TELL_AGAIN: Duration = Duration::from_millis(100); // if that has failed, and later each time
const LONGEST: Duration = Duration::from_secs(2); // from one time to the next

/// The input of an order's flow.
#[derive(Serialize, Deserialize)]
struct Placed {
    order: String,
    timeout_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Accepted,
    Expired,
}

#[derive(Debug, Serialize, Deserialize)]
struct Decision {
    outcome: Outcome,
    at: Timestamp,
}

/// An order as clients are told of it, which is also the result of its flow.
#[derive(Debug, Default, Serialize, Deserialize)]
struct View {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    due: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blocked: Option<String>, // Somebody is to look at it, and to resume it.
    decisions: Vec<Decision>,
}

/// The life of one order.
async fn order(partner: Arc<Partner>, flow: Flow, Placed { order, timeout_ms }: Placed) -> FlowResult<View> {
    let timeout = Duration::from_millis(timeout_ms);
    let mut callback = flow.callback::<()>("accepted");
    let url = callback.url();
    let told = flow.step("tell").retry(Retry::never()).run(|_| partner.tell(&order, &url)).await;
    let limit = flow.sleep(timeout); // From the first call on, however long this host was away before.
    let due = Some(limit.deadline());
    let again = Retry::default().between(TELL_AGAIN, LONGEST);
    let tell = flow.step("tell again").retry(again).run(|_| partner.tell(&order, &url));
    let outcome = tokio::select! {
        _ = callback.next_raw() => Outcome::Accepted,
        () = limit => Outcome::Expired,
        Err(never_told) = tell, if told.is_err() => return Err(never_told.into()),
    };
    Ok(View { due, blocked: None, decisions: vec![Decision { outcome, at: flow.now() }] })
}

struct Partner {
    http: reqwest::Client,
    orders: Option<Url>, // where it is told of new orders; without it nobody is
}

impl Partner {
    /// Tells it of an order, which it recognises by its ID if it is told again.
    async fn tell(&self, order: &str, callback: &str) -> Result<(), reqwest::Error> {
        let Some(url) = self.orders.clone() else { return Ok(()) };
        let notice = serde_json::json!({ "order": order, "callback": callback });
        self.http.post(url).json(&notice).send().await?.error_for_status().map(drop)
    }
}

type Orders = axum::extract::State<Flows>;

/// Repeated it changes nothing and is answered alike, so a client that got no answer just sends it again.
async fn place(flows: Orders, Path(order): Path<String>, terms: Query<HashMap<String, u64>>) -> Response {
    let placed = Placed { order, timeout_ms: *terms.get("timeout_ms").unwrap_or(&60_000) };
    match flows.start("order", &placed.order, &placed).await {
        Ok(Started::Posted) => stored(),
        Ok(_) => look(flows, Path(placed.order)).await,
        Err(error) => refuse(&error),
    }
}

async fn look(flows: Orders, id: Path<String>) -> Response {
    view(&flows, &id).await.map_or_else(|error| refuse(&error), |view| Json(view).into_response())
}

/// Lets a blocked one try again. An operator's way in: keep it from others.
async fn resume(flows: Orders, id: Path<String>) -> Response {
    flows.resume("order", &id).await.map_or_else(|error| refuse(&error), |()| stored())
}

async fn call_back(flows: Orders, token: Path<String>, body: Bytes) -> Response {
    match flows.deliver(&token, Call::new(body)).await {
        Ok(Delivered::Posted) => return stored(),
        Ok(_) | Err(FlowsError::Gone) => {} // The latter to who calls again, since it got no answer; or it is too late.
        Err(error) => return refuse(&error),
    }
    let Some((_, order)) = flows.flow_of(&token) else { return refuse(&FlowsError::NotFound) };
    match view(&flows, &order).await.map(|view| view.decisions.first().map(|decision| decision.outcome)) {
        Ok(Some(Outcome::Accepted)) => (StatusCode::OK, "accepted\n").into_response(),
        Ok(Some(Outcome::Expired)) => (StatusCode::GONE, "too late: the order has expired\n").into_response(),
        Ok(None) => stored(), // It is blocked.
        Err(error) => refuse(&error),
    }
}

/// An order as far as it has come, as it is stored: any host may be asked.
async fn view(flows: &Flows, order: &str) -> Result<View, FlowsError> {
    let status = flows.get("order", order).await?.ok_or(FlowsError::NotFound)?;
    if let State::Blocked { why } = status.state {
        return Ok(View { blocked: Some(why.to_string()), ..View::default() });
    }
    match flows.result("order", order).await? {
        Some(End::Done(view)) => serde_json::from_str(view.get()).map_err(FlowsError::Unreadable),
        Some(_) => Err(FlowsError::Gone), // It could not be told to the partner, or ended long ago.
        None => {
            let timer = status.waits.iter().find(|wait| wait.name.starts_with("timer:"));
            Ok(View { due: timer.and_then(|timer| timer.until), ..View::default() })
        }
    }
}

fn stored() -> Response {
    (StatusCode::ACCEPTED, "stored: the order's host will take it\n").into_response()
}

fn refuse(error: &FlowsError) -> Response {
    let status = match error {
        FlowsError::NotFound => StatusCode::NOT_FOUND,
        FlowsError::Gone => StatusCode::GONE,
        FlowsError::Conflict => StatusCode::CONFLICT, // the same order, with another timeout
        FlowsError::Invalid(_) | FlowsError::TooLarge { .. } => StatusCode::BAD_REQUEST,
        // Whatever it is and whatever has become of the request, any request of this service may be repeated.
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, format!("{error}\n")).into_response()
}

/// Serves orders until `stop` completes. A host that ends by itself is an error: the process is to be started anew.
pub(crate) async fn serve(
    mut host: HostBuilder,
    tcp: TcpListener,
    (partner, public): (Option<Url>, Option<Url>), // of the partner's service, and of this one if that is not its address
    keys: UrlKeys,
    stop: impl Future,
) -> Result<()> {
    let address = tcp.local_addr()?;
    let http = reqwest::Client::builder().timeout(PARTNER_LIMIT).no_proxy().pool_max_idle_per_host(0).build()?;
    let partner = Arc::new(Partner { http, orders: partner });
    let flows = Flows::builder()
        .flow("order", 1, move |flow, placed| order(partner.clone(), flow, placed))
        .callbacks(&public.map_or_else(|| format!("http://{address}/callbacks"), |url| format!("{url}callbacks")), keys)
        .register(&mut host)?;
    let host = host.start().await?;
    println!("listening on http://{address}");
    let app = Router::new().route("/orders/{id}", post(place).get(look)).route("/callbacks/{token}", post(call_back));
    let app = app.route("/orders/{id}/resume", post(resume));
    let served = host.serving(http::serve(tcp, app.with_state(flows), host.stopping()));
    let ((), ended) = tokio::join!(served, host.run_until(stop));
    Ok(ended.map(drop)?)
}

#[allow(dead_code, reason = "the drill, of which this file is a module, has a main of its own")]
#[tokio::main]
async fn main() -> Result<ExitCode> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [data, listen, partner @ ..] = &arguments[..] else {
        eprintln!("webhook_flow: its arguments are DIR ADDRESS [URL]");
        return Ok(ExitCode::from(2));
    };
    let Ok(secret) = std::env::var("CALLBACK_SECRET") else {
        eprintln!("webhook_flow: it needs CALLBACK_SECRET, which signs the URLs of callbacks");
        return Ok(ExitCode::from(2));
    };
    let keys = UrlKeys::new("k1", secret)?;
    let partner = partner.first().map(|url| Url::parse(url)).transpose()?;
    // Both before anybody is told to come: a signal that nobody has asked for ends a process.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = async { tokio::select!(_ = interrupt.recv() => {}, _ = terminate.recv() => {}) };
    serve(Host::local(FjallStore::open(data)?), TcpListener::bind(listen).await?, (partner, None), keys, stop).await?;
    Ok(ExitCode::SUCCESS)
}
