//! The service: one [`Order`] per ID and the HTTP routes that reach it. This is the file to copy from.
//!
//! An order is decided once. It is *accepted* if the partner's callback is handled before the order is due, and *expired*
//! otherwise, whichever of callback and timeout comes first; the decision, its row in the order's history, and the end of the
//! order's alarms are one commit, and no answer leaves before that commit is durable. So whoever got an answer can rely on it,
//! however often this process is killed.
//!
//! A fleet is the same service in several processes over one store. A request may come to any of them; one that does not own
//! the order answers where to go.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRef, Path, Query, RawPathParams, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::post;
use axum::{Json, Router};
use examples::{CannotStart, Failed, http, process};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use stable_interfaces::{
    Alarm, Context, ContextError, Handle, Host, Interface, Interim, OnAlarm, RequestError, StableInterface, Timestamp,
};
use tokio::net::TcpListener;

use crate::store::Home;

/// How long an order waits for its callback if it does not say otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one call to the partner may take. The order is busy meanwhile, so this also bounds how late its timeout can be.
const PARTNER_LIMIT: Duration = Duration::from_millis(500);
/// When to tell the partner again if it is not known to have heard: longer than a call may take.
const TELL_AGAIN: Duration = Duration::from_millis(600);

// --- The order -------------------------------------------------------------------------------------------------------------

/// One order that waits for its partner. Its durable state is [`Record`] under the key `order`, and its decisions.
#[derive(Debug)]
struct Order {
    partner: Arc<Partner>,
    /// The durable record as this instance knows it; `None` until the order is placed. Changed only where the change is also
    /// put, when nothing can fail any more. An order whose handler fails is rebuilt from the store.
    record: Option<Record>,
}

/// What an order is, durably.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    placed: Timestamp,
    due: Timestamp,
    /// Who can say this may call back.
    token: String,
    outcome: Option<Outcome>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Accepted,
    Expired,
}

/// One row of an order's history. Rows are appended, never replaced, so that deciding twice could not hide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Decision {
    pub(crate) outcome: Outcome,
    pub(crate) at: Timestamp,
}

/// What `GET /orders/{id}` answers. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct View {
    pub(crate) placed: Timestamp,
    pub(crate) due: Timestamp,
    pub(crate) decisions: Vec<Decision>,
}

#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error("no such order, or not its token")]
    NoSuchOrder,
    #[error("the partner could not be told")]
    Partner(#[from] reqwest::Error),
    #[error("the operating system has no random numbers")]
    Token(#[from] getrandom::Error),
    #[error(transparent)]
    Context(#[from] ContextError),
}

impl StableInterface for Order {
    const NAME: &'static str = "order";
    type Error = OrderError;

    async fn on_start(&mut self, cx: &mut Context) -> Result<(), OrderError> {
        self.record = cx.get("order").await?;
        Ok(())
    }

    /// Found out before anything is changed.
    fn keeps_memory(error: &OrderError) -> bool {
        matches!(error, OrderError::NoSuchOrder | OrderError::Partner(_) | OrderError::Token(_))
    }
}

/// Place the order. Repeating it changes nothing and gives the same answer, so a client that got none just sends it again.
#[derive(Debug)]
struct Place {
    timeout: Duration,
}

/// What the one who placed an order learns.
#[derive(Debug, Serialize)]
struct Placed {
    /// False if it had been placed before.
    #[serde(skip)]
    new: bool,
    due: Timestamp,
    callback: String,
}

impl Handle<Place> for Order {
    type Reply = Placed;

    async fn handle(&mut self, cx: &mut Context, place: Place) -> Result<Placed, OrderError> {
        if let Some(record) = &self.record {
            return Ok(Placed { new: false, due: record.due, callback: self.partner.callback(cx.id(), record) });
        }
        let placed = cx.now();
        let record = Record { placed, due: placed + place.timeout, token: new_token()?, outcome: None };
        cx.put("order", &record)?;
        cx.set_alarm("timeout", record.due, &())?;
        if self.partner.orders.is_some() {
            // Should we die between the commit and the call, this alarm makes the call.
            cx.set_alarm("tell", placed + TELL_AGAIN, &())?;
        }
        self.record = Some(record.clone());
        // From here on the order and its timeout survive us. Only now may the partner hear of them.
        cx.commit().await?;

        let callback = self.partner.callback(cx.id(), &record);
        if self.partner.tell(cx.id(), &callback).await.is_ok() {
            cx.cancel_alarm("tell")?;
        }
        Ok(Placed { new: true, due: record.due, callback })
    }
}

/// The partner calls back.
#[derive(Debug)]
struct CallBack {
    token: String,
}

impl Handle<CallBack> for Order {
    type Reply = Outcome;

    async fn handle(&mut self, cx: &mut Context, call: CallBack) -> Result<Outcome, OrderError> {
        let record = self.record.as_ref().filter(|r| same(&r.token, &call.token)).ok_or(OrderError::NoSuchOrder)?;
        // Late is late, also when nobody was there to fire the alarm on time and this call comes before it.
        let at = cx.now();
        let outcome = if at < record.due { Outcome::Accepted } else { Outcome::Expired };
        self.decide(cx, Decision { outcome, at }).await
    }
}

impl OnAlarm for Order {
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), OrderError> {
        match (alarm.id(), &self.record) {
            // An error is an attempt that failed: the alarm comes back, later each time, until the order is decided.
            ("tell", Some(record)) if record.outcome.is_none() => {
                let callback = self.partner.callback(cx.id(), record);
                self.partner.tell(cx.id(), &callback).await?;
            }
            ("timeout", Some(_)) => {
                let at = cx.now();
                self.decide(cx, Decision { outcome: Outcome::Expired, at }).await?;
            }
            _ => {}
        }
        Ok(())
    }
}

impl Order {
    /// Decides the order, unless it is decided; either way, how it was decided.
    async fn decide(&mut self, cx: &mut Context, decision: Decision) -> Result<Outcome, OrderError> {
        let mut record = self.record.clone().ok_or(OrderError::NoSuchOrder)?;
        if let Some(decided) = record.outcome {
            return Ok(decided);
        }
        let row = cx.list("decision/").await?.len();
        record.outcome = Some(decision.outcome);
        cx.put("order", &record)?;
        cx.put(&format!("decision/{row:04}"), &decision)?;
        cx.cancel_alarm("timeout")?;
        cx.cancel_alarm("tell")?;
        self.record = Some(record);
        Ok(decision.outcome)
    }
}

/// Look at the order.
#[derive(Debug)]
struct Look;

impl Handle<Look> for Order {
    type Reply = View;

    async fn handle(&mut self, cx: &mut Context, Look: Look) -> Result<View, OrderError> {
        let record = self.record.as_ref().ok_or(OrderError::NoSuchOrder)?;
        let mut decisions = Vec::new();
        for (_key, row) in cx.list("decision/").await? {
            decisions.push(serde_json::from_slice(&row).map_err(ContextError::from)?);
        }
        Ok(View { placed: record.placed, due: record.due, decisions })
    }
}

/// 128 random bits: nobody guesses the URL of a callback.
fn new_token() -> Result<String, getrandom::Error> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bits)))
}

/// Whether two tokens are the same, in a time that does not tell how much of them is.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

// --- The partner, as the orders see it -----------------------------------------------------------------------------------------

/// How orders reach their partner, and the partner them.
#[derive(Debug)]
struct Partner {
    http: reqwest::Client,
    /// Where the partner is told of new orders; without it nobody is told, and whoever placed an order calls back.
    orders: Option<Url>,
    /// Where the partner reaches this service.
    public: Url,
}

/// All but the characters that stand for themselves in a URL (RFC 3986, section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What the partner is told. It recognises a repeated order by its ID.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Notice {
    pub(crate) order: String,
    pub(crate) callback: String,
}

impl Partner {
    /// The token stands before the ID in the same segment: one of the ID alone would be taken away by whoever reads the URL if
    /// the ID is `.` or `..`, percent-encoded or not (WHATWG URL, "double-dot URL path segment").
    fn callback(&self, order: &str, record: &Record) -> String {
        format!("{}callbacks/{}-{}", self.public, record.token, utf8_percent_encode(order, RESERVED))
    }

    async fn tell(&self, order: &str, callback: &str) -> Result<(), reqwest::Error> {
        let Some(url) = &self.orders else { return Ok(()) };
        let notice = Notice { order: order.to_owned(), callback: callback.to_owned() };
        self.http.post(url.clone()).json(&notice).send().await?.error_for_status()?;
        Ok(())
    }
}

// --- HTTP ------------------------------------------------------------------------------------------------------------------

/// What requests are answered from.
#[derive(Clone)]
struct Service {
    host: Arc<Host>,
    orders: Interface<Order>,
}

impl FromRef<Service> for Interface<Order> {
    fn from_ref(service: &Service) -> Interface<Order> {
        service.orders.clone()
    }
}

fn routes(service: Service) -> Router {
    Router::new()
        .route("/orders/{id}", post(place).get(look))
        .route("/callbacks/{callback}", post(call_back))
        .route_layer(middleware::from_fn_with_state(service.clone(), to_owner))
        .with_state(service)
}

/// Sends what is about another host's order to that host. A host is named by its address, so the owner's name is where to go.
async fn to_owner(State(service): State<Service>, params: RawPathParams, request: Request, next: Next) -> Response {
    let id = params.iter().find_map(|(name, value)| match name {
        "callback" => Some(token_and_order(value)?.1),
        _ => Some(value),
    });
    match id.map(|id| service.host.owner_of(id)) {
        // 307: the same method again, at the same path. Should that host not have the order's shard yet, it says 503.
        Some(Ok(owner)) if owner != service.host.name() => {
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            Redirect::temporary(&format!("http://{owner}{path}")).into_response()
        }
        _ => next.run(request).await,
    }
}

/// The parts of what [`Partner::callback`] has joined. A token has no `-`, an ID may have any number.
fn token_and_order(callback: &str) -> Option<(&str, &str)> {
    callback.split_once('-')
}

#[derive(Debug, Deserialize)]
struct Terms {
    /// Milliseconds the order waits for its callback.
    timeout_ms: Option<u64>,
}

async fn place(
    State(orders): State<Interface<Order>>,
    Path(id): Path<String>,
    Query(terms): Query<Terms>,
) -> Result<(StatusCode, Json<Placed>), Refusal> {
    let timeout = terms.timeout_ms.map_or(DEFAULT_TIMEOUT, Duration::from_millis);
    let placed = orders.request(&id, Place { timeout }).await?;
    Ok((if placed.new { StatusCode::CREATED } else { StatusCode::OK }, Json(placed)))
}

async fn look(State(orders): State<Interface<Order>>, Path(id): Path<String>) -> Result<Json<View>, Refusal> {
    Ok(Json(orders.request(&id, Look).await?))
}

async fn call_back(
    State(orders): State<Interface<Order>>,
    Path(callback): Path<String>,
) -> Result<(StatusCode, &'static str), Refusal> {
    let no_order = Refusal(RequestError::Handler(OrderError::NoSuchOrder, Interim::default()));
    let (token, id) = token_and_order(&callback).ok_or(no_order)?;
    Ok(match orders.request(id, CallBack { token: token.to_owned() }).await? {
        Outcome::Accepted => (StatusCode::OK, "accepted\n"),
        Outcome::Expired => (StatusCode::GONE, "too late: the order has expired\n"),
    })
}

/// A request that has no result, as a client sees it.
struct Refusal(RequestError<OrderError>);

impl From<RequestError<OrderError>> for Refusal {
    fn from(error: RequestError<OrderError>) -> Refusal {
        Refusal(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match &self.0 {
            RequestError::Handler(OrderError::NoSuchOrder, _) => StatusCode::NOT_FOUND,
            RequestError::InvalidId { .. } => StatusCode::BAD_REQUEST,
            // The store failed under the handler, which passed it on.
            RequestError::Handler(
                OrderError::Context(ContextError::Store(_) | ContextError::Fenced | ContextError::Unknown),
                _,
            ) => StatusCode::SERVICE_UNAVAILABLE,
            // Placing and calling back may both be repeated, so an unknown outcome too is resolved by coming again.
            error if error.is_retryable() || error.may_have_happened() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let text = format!("{}\n", self.0.report());
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return (status, [(header::RETRY_AFTER, "1")], text).into_response();
        }
        (status, text).into_response()
    }
}

// --- Start and stop --------------------------------------------------------------------------------------------------------

/// What `serve` was asked to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) home: Home,
    pub(crate) listen: SocketAddr,
    pub(crate) partner: Option<Url>,
    /// Stop when standard input ends: how a child learns that its parent is gone.
    pub(crate) until_stdin_ends: bool,
}

/// Serves orders until the process is asked to stop; then finishes what is under way and gives the store back. A host that ends
/// by itself takes the process along: whoever started it starts it anew.
pub(crate) async fn serve(options: Options) -> Result<(), Failed> {
    let Options { home, listen, partner, until_stdin_ends } = options;
    let listener =
        TcpListener::bind(listen).await.map_err(|e| CannotStart::new(format!("cannot listen on {listen}"), e))?;
    let listen = listener.local_addr().map_err(|e| CannotStart::new(format!("cannot listen on {listen}"), e))?;
    let public = Url::parse(&format!("http://{listen}")).expect("an address makes a URL");
    let mut host = home.host(&listen.to_string()).await?;

    let partner = Arc::new(Partner { http: http::client(PARTNER_LIMIT), orders: partner, public });
    let orders = host
        .interface(move |_id| Order { partner: partner.clone(), record: None })
        .with_alarms()
        .register()
        .map_err(|e| CannotStart::new("cannot register the orders", e))?;
    let host = Arc::new(host.start().await.map_err(|e| CannotStart::new("cannot start the host", e))?);

    println!("listening on http://{listen}");
    let service = Service { host: host.clone(), orders };
    let serve = http::serve(listener, routes(service), host.stopping());
    let ((), ended) = tokio::join!(serve, host.run_until(process::asked_to_stop(until_stdin_ends)));
    Ok(ended.map(drop)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callback_url_is_right_for_any_order_id() {
        let public = Url::parse("http://127.0.0.1:8080").expect("a URL");
        let partner = Partner { http: http::client(PARTNER_LIMIT), orders: None, public };
        let placed = Timestamp::UNIX_EPOCH;
        let record = Record { placed, due: placed, token: "t0".to_owned(), outcome: None };
        for id in [
            ".",
            "..",
            "...",
            "%2e",
            "%2E%2E",
            "a/b ü?",
            "/",
            "//",
            "\\",
            "\r",
            "\n",
            "\t",
            " a\r\nb\t",
            "%",
            "%0d",
            "?",
            "#",
            "?a=b#c",
            "-",
            "a-b",
            "日本",
            "é\u{301}",
            "+",
            "&",
            ";",
            ":",
            "@",
            "\u{7f}",
            "\u{202e}",
        ] {
            let url = partner.callback(id, &record);
            // As whoever gets it reads it: nothing is taken away, added or normalised.
            let read = Url::parse(&url).expect("a URL");
            assert_eq!(read.as_str(), url, "{id:?}");
            let segment = read.path().strip_prefix("/callbacks/t0-").unwrap_or("/");
            assert!(!segment.contains('/') && read.query().is_none() && read.fragment().is_none(), "{id:?}: {url}");
            let decoded = percent_encoding::percent_decode_str(segment).decode_utf8().expect("UTF-8");
            assert_eq!(token_and_order(&format!("t0-{decoded}")), Some(("t0", id)));
        }
    }

    #[test]
    fn a_token_is_the_same_only_as_itself() {
        let (a, b) = (new_token().expect("random"), new_token().expect("random"));
        assert!(same(&a, &a) && !same(&a, &b) && !same(&a, &a[1..]));
        assert_eq!(a.len(), 32);
    }
}
