//! Orders that wait for a webhook, with a timeout. To copy: this file, and `http.rs` beside it as a `mod http`.
//!
//! ```text
//! cargo run --release --example webhook_service -- DIR ADDRESS [URL]    # of a partner, which is told of each order
//! ```
//!
//! An order is *accepted* if the partner's callback is handled before the order is due, and *expired* otherwise. The decision
//! and the end of the order's alarms are one commit, and no answer leaves before that is durable: whoever got an answer can
//! rely on it, however often this process is killed. In a fleet any host takes any request: its messages cross to the order's own.

use std::{collections::HashMap, process::ExitCode, sync::Arc, time::Duration};

use alarm_backends::FjallStore;
use anyhow::Result;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, http::StatusCode, routing::post};
use examples::http;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use stable_interfaces::{Alarm, Context, ContextError, Handle, Host, HostBuilder, Interface};
use stable_interfaces::{OnAlarm, RequestError, StableInterface, Timestamp};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

const PARTNER_LIMIT: Duration = Duration::from_millis(500); // for one call, for which the order's timeout waits
const TELL_AGAIN: Duration = Duration::from_millis(600); // if the partner is not known to have heard: longer than a call

/// One order that waits for its partner. Its `record` is what is stored as `order`, and `None` until it is placed.
pub(crate) struct Order {
    partner: Arc<Partner>,
    record: Option<Record>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Record {
    due: Timestamp,
    token: String, // who can say it may call back
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Accepted,
    Expired,
}

/// Stored under its time, never replaced, so that deciding twice could not hide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Decision {
    pub(crate) outcome: Outcome,
    pub(crate) at: Timestamp,
}

/// An order as clients are told of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct View {
    pub(crate) due: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) callback: Option<String>, // for whoever places the order, and nobody else
    pub(crate) decisions: Vec<Decision>,
}

impl StableInterface for Order {
    const NAME: &'static str = "order";
    type Error = anyhow::Error;

    async fn on_start(&mut self, cx: &mut Context) -> Result<()> {
        self.record = cx.get("order").await?;
        Ok(())
    }

    fn keeps_memory(error: &anyhow::Error) -> bool {
        !error.is::<ContextError>() // All others are found out before anything is changed.
    }
}

/// Places the order. Repeated it changes nothing and is answered alike, so a client that got no answer just sends it again.
#[derive(Serialize, Deserialize)]
struct Place(Duration);

impl Handle<Place> for Order {
    type Reply = Option<View>;
    async fn handle(&mut self, cx: &mut Context, Place(timeout): Place) -> Result<Option<View>> {
        if self.record.is_none() {
            let token = format!("{:016x}{:016x}", getrandom::u64()?, getrandom::u64()?); // Nobody guesses 128 random bits.
            let callback = self.partner.callback(cx.id(), &token);
            let record = Record { due: cx.now() + timeout, token };
            cx.put("order", &record)?;
            cx.set_alarm("timeout", record.due, &())?;
            cx.set_alarm("tell", cx.now() + TELL_AGAIN, &())?; // Makes the call below should this process die before it.
            self.record = Some(record); // Memory changes last, when nothing can fail any more.
            cx.commit().await?; // From here on the order and its timeout survive. Only now may the partner hear of them.
            if self.partner.tell(cx.id(), &callback).await.is_ok() {
                cx.cancel_alarm("tell")?;
            }
        }
        let view = self.handle(cx, Look).await?;
        let callback = self.record.as_ref().map(|order| self.partner.callback(cx.id(), &order.token));
        Ok(view.map(|view| View { callback, ..view }))
    }
}

#[derive(Serialize, Deserialize)]
struct Look;

impl Handle<Look> for Order {
    type Reply = Option<View>;
    async fn handle(&mut self, cx: &mut Context, Look: Look) -> Result<Option<View>> {
        let Some(Record { due, .. }) = self.record else { return Ok(None) };
        Ok(Some(View { due, callback: None, decisions: decisions(cx).await? }))
    }
}

#[derive(Serialize, Deserialize)]
struct CallBack(String); // by the partner, with the order's token

impl Handle<CallBack> for Order {
    type Reply = Option<Outcome>;
    async fn handle(&mut self, cx: &mut Context, CallBack(token): CallBack) -> Result<Option<Outcome>> {
        let Some(order) = self.record.as_ref().filter(|order| is_same(&order.token, &token)) else { return Ok(None) };
        // Late is late, also when nobody was there to fire the alarm on time and this call comes before it.
        let at = cx.now();
        let outcome = if at < order.due { Outcome::Accepted } else { Outcome::Expired };
        Ok(Some(decide(cx, Decision { outcome, at }).await?))
    }
}

impl OnAlarm for Order {
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<()> {
        match (alarm.id(), &self.record) {
            // An error is an attempt that failed: the alarm comes back, later each time, until the order is decided.
            ("tell", Some(order)) => self.partner.tell(cx.id(), &self.partner.callback(cx.id(), &order.token)).await?,
            ("timeout", Some(_)) => drop(decide(cx, Decision { outcome: Outcome::Expired, at: cx.now() }).await?),
            _ => {}
        }
        Ok(())
    }
}

/// Decides the order unless it is decided, and tells how it was.
async fn decide(cx: &mut Context, decision: Decision) -> Result<Outcome> {
    if let Some(decided) = decisions(cx).await?.first() {
        return Ok(decided.outcome);
    }
    cx.put(&format!("decision/{:020}", decision.at.as_millis()), &decision)?;
    cx.cancel_alarm("timeout")?;
    cx.cancel_alarm("tell")?;
    Ok(decision.outcome)
}

async fn decisions(cx: &mut Context) -> Result<Vec<Decision>, ContextError> {
    cx.list("decision/").await?.iter().map(|(_, row)| Ok(serde_json::from_slice(row)?)).collect()
}

/// Compares two tokens, in a time that does not tell how much of them is the same.
pub(crate) fn is_same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

pub(crate) struct Partner {
    pub(crate) http: reqwest::Client,
    pub(crate) orders: Option<Url>, // where it is told of new orders; without it whoever placed an order calls back
    pub(crate) public: String,      // where it reaches this service
}

// All but the characters that stand for themselves in a URL (RFC 3986, section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Partner {
    /// The token stands before the ID in one segment: an ID of `..` alone would be taken away by whoever reads the URL.
    pub(crate) fn callback(&self, order: &str, token: &str) -> String {
        format!("{}callbacks/{token}-{}", self.public, utf8_percent_encode(order, RESERVED))
    }

    /// Tells it of an order, which it recognises by its ID if it is told again.
    async fn tell(&self, order: &str, callback: &str) -> Result<(), reqwest::Error> {
        let Some(url) = self.orders.clone() else { return Ok(()) };
        let notice = serde_json::json!({ "order": order, "callback": callback });
        self.http.post(url).json(&notice).send().await?.error_for_status().map(drop)
    }
}

type Orders = State<Interface<Order>>;

async fn place(orders: Orders, id: Path<String>, terms: Query<HashMap<String, u64>>) -> Response {
    let timeout = Duration::from_millis(*terms.get("timeout_ms").unwrap_or(&60_000));
    respond(orders.request(&id, Place(timeout)).await.map(|view| view.map(Json)))
}

async fn look(orders: Orders, id: Path<String>) -> Response {
    respond(orders.request(&id, Look).await.map(|view| view.map(Json)))
}

async fn call_back(orders: Orders, path: Path<String>) -> Response {
    let (token, id) = path.split_once('-').unwrap_or_default(); // A token has no `-`, an ID any number.
    let said = |outcome| match outcome {
        Outcome::Accepted => (StatusCode::OK, "accepted\n"),
        Outcome::Expired => (StatusCode::GONE, "too late: the order has expired\n"),
    };
    respond(orders.request(id, CallBack(token.to_owned())).await.map(|outcome| outcome.map(said)))
}

fn respond(result: Result<Option<impl IntoResponse>, RequestError<anyhow::Error>>) -> Response {
    let (status, error) = match result {
        Ok(Some(answer)) => return answer.into_response(),
        Ok(None) => return (StatusCode::NOT_FOUND, "no such order, or not its token\n").into_response(),
        Err(error @ RequestError::InvalidId { .. }) => (StatusCode::BAD_REQUEST, error),
        // Whatever it is and whatever has become of the request, any request of this service may be repeated.
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error),
    };
    (status, error.report() + "\n").into_response()
}

type Urls = (Option<Url>, Option<Url>); // the partner's, to tell it of orders; and this service's, if not where it listens

/// Serves orders until `stop` completes. A host that ends by itself is an error: the process is to be started anew.
pub(crate) async fn serve(mut host: HostBuilder, tcp: TcpListener, urls: Urls, stop: impl Future) -> Result<()> {
    let (address, (partner, public)) = (tcp.local_addr()?, urls);
    let http = reqwest::Client::builder().timeout(PARTNER_LIMIT).no_proxy().pool_max_idle_per_host(0).build()?;
    let public = public.map_or_else(|| format!("http://{address}/"), String::from);
    let partner = Arc::new(Partner { http, orders: partner, public });
    let orders = host.interface(move |_| Order { partner: partner.clone(), record: None }).with_alarms();
    let orders = orders.forward_with_text_errors::<Place>("place").forward_with_text_errors::<Look>("look");
    let orders = orders.forward_with_text_errors::<CallBack>("call-back").register()?;
    let host = host.start().await?;
    println!("listening on http://{address}");
    let app = Router::new().route("/orders/{id}", post(place).get(look)).route("/callbacks/{call}", post(call_back));
    let served = host.serving(http::serve(tcp, app.with_state(orders), host.stopping()));
    let ((), ended) = tokio::join!(served, host.run_until(stop));
    Ok(ended.map(drop)?)
}

#[allow(dead_code, reason = "the drill, of which this file is a module, has a main of its own")]
#[tokio::main]
async fn main() -> Result<ExitCode> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [data, listen, partner @ ..] = &arguments[..] else {
        eprintln!("webhook_service: its arguments are DIR ADDRESS [URL]");
        return Ok(ExitCode::from(2));
    };
    let urls = (partner.first().map(|url| Url::parse(url)).transpose()?, None);
    // Both before anybody is told to come: a signal that nobody has asked for ends a process.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = async { tokio::select!(_ = interrupt.recv() => {}, _ = terminate.recv() => {}) };
    serve(Host::local(FjallStore::open(data)?), TcpListener::bind(listen).await?, urls, stop).await?;
    Ok(ExitCode::SUCCESS)
}
