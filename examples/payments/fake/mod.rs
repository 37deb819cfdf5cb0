//! A fake of Stripe, over HTTP: what `books.rs` does, behind an API key, in all weathers, and with webhooks.
//!
//! It lives in a process that nobody kills, and what has begun is done to its end, whoever has asked for it and is gone.

pub(crate) mod books;
pub(crate) mod hooks;
pub(crate) mod weather;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use serde_json::Value;
use stable_interfaces::Timestamp;
use tokio::time::sleep;

use self::books::{Answer, Begun, Books};
use self::weather::Weather;
use crate::doors::Doors;
use crate::form;
use crate::stripe::RESOURCES;

/// Longer than any client waits for an answer.
const LONGER_THAN_ANYBODY_WAITS: Duration = Duration::from_secs(10);
/// The time that slow work takes: more than a client waits, and less than a few of its attempts.
const SLOW: Duration = Duration::from_millis(1_500);

/// The fake, with all that it needs to call the service back.
#[derive(Debug, Clone)]
pub(crate) struct Stripe {
    pub(crate) books: Arc<Mutex<Books>>,
    pub(crate) http: reqwest::Client,
    /// The service's.
    pub(crate) doors: Doors,
    /// The API key of its one customer, and the secret that events for it are signed with.
    pub(crate) key: String,
    pub(crate) secret: String,
    pub(crate) seed: u64,
    /// The requests that are under way.
    pub(crate) in_flight: Arc<AtomicUsize>,
    pub(crate) met: Arc<Mutex<Met>>,
}

/// The requests so far.
#[derive(Debug, Default)]
pub(crate) struct Met {
    pub(crate) weathers: BTreeMap<Weather, usize>,
    /// By what they are for: the first key for it, and their number.
    arrivals: BTreeMap<String, (String, u32)>,
}

/// The wall clock, which all processes share.
pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}

/// One request that is under way, for as long as this is there.
struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Stripe {
    pub(crate) fn new(books: Books, http: reqwest::Client, doors: Doors, key: &str, secret: &str, seed: u64) -> Stripe {
        Stripe {
            books: Arc::new(Mutex::new(books)),
            http,
            doors,
            key: key.to_owned(),
            secret: secret.to_owned(),
            seed,
            in_flight: Arc::default(),
            met: Arc::default(),
        }
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().expect("nobody panics while writing the books")
    }

    /// `POST` and `GET /v1/{kind}`.
    pub(crate) fn routes(self) -> Router {
        Router::new().route("/v1/{kind}", get(list).post(create)).with_state(self)
    }

    fn begin(&self) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(self.in_flight.clone())
    }

    /// Refuses who does not know the API key.
    fn check(&self, headers: &HeaderMap) -> Result<(), Answer> {
        let expected = format!("Basic {}", STANDARD.encode(format!("{}:", self.key)));
        if headers.get(header::AUTHORIZATION).is_some_and(|given| given.as_bytes() == expected.as_bytes()) {
            return Ok(());
        }
        Err(Answer::refused(401, "invalid_request_error", "invalid_api_key", "Invalid API Key provided."))
    }

    /// Draws the weather for a request for `what`, and counts it: an order's customer, charge, and so on. Whoever asks for the same under
    /// another key has found that the first has no good answer; from there on the weather is fine.
    fn draw(&self, key: &str, object: &str, order: &str) -> Weather {
        let is_planned = self.books().dealings.contains_key(order);
        let what = format!("{object} of {order}");
        let mut met = self.met.lock().expect("nobody panics while counting");
        let (first, arrivals) = met.arrivals.entry(what.clone()).or_insert_with(|| (key.to_owned(), 0));
        let arrival = *arrivals;
        *arrivals += 1;
        let is_first = first == key;
        let weather = if is_planned && is_first { Weather::of(self.seed, &what, arrival) } else { Weather::Fine };
        *met.weathers.entry(weather).or_default() += 1;
        weather
    }

    /// Does the work of a request that is new under its key, and keeps the answer.
    async fn work(self, weather: Weather, object: &'static str, params: Value, key: String) -> Answer {
        sleep(if weather == Weather::Slow { SLOW } else { Duration::from_millis(fastrand::u64(2..20)) }).await;
        let mut answer = match weather {
            Weather::Broken => Answer::broken(),
            _ => self.books().create(object, &params, now()),
        };
        if object == "payment_intent" && answer.body["status"] == "succeeded" {
            self.announce(&answer.body).await;
        }
        if weather == Weather::DoneAndBroken && answer.status == 200 {
            answer = Answer::broken();
        }
        self.books().end(&key, &answer);
        answer
    }
}

/// The object of a kind, as its URL has it.
fn object_of(kind: &str) -> Result<&'static str, Answer> {
    let known = RESOURCES.iter().find(|resource| resource.plural == kind);
    known.map(|resource| resource.object).ok_or_else(|| {
        Answer::refused(404, "invalid_request_error", "resource_missing", format!("No such url: '{kind}'"))
    })
}

fn respond(answer: Answer, is_repeated: bool) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, Json(answer.body)).into_response();
    let headers = response.headers_mut();
    headers.insert("request-id", header::HeaderValue::from_static("req_1\"; canary(); ${canary()}"));
    if is_repeated {
        headers.insert("idempotent-replayed", header::HeaderValue::from_static("true"));
    }
    if answer.status == 500 {
        // Under this key it never becomes anything else.
        headers.insert("stripe-should-retry", header::HeaderValue::from_static("false"));
    }
    if answer.status == 429 {
        headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    response
}

/// An answer that ends before it has begun.
fn dropped() -> Response {
    let nothing = stream::once(async { Err::<Bytes, _>(std::io::Error::other("the connection is dropped")) });
    ([(header::CONTENT_LENGTH, "1")], Body::from_stream(nothing)).into_response()
}

async fn create(State(stripe): State<Stripe>, Path(kind): Path<String>, headers: HeaderMap, body: Bytes) -> Response {
    let _in_flight = stripe.begin();
    let bad_form =
        |place| Answer::refused(400, "invalid_request_error", "parameter_unknown", format!("Invalid: {place}"));
    let read = stripe.check(&headers).and_then(|()| Ok((object_of(&kind)?, form::decode(&body).map_err(bad_form)?)));
    let (object, params) = match read {
        Ok(read) => read,
        Err(refused) => return respond(refused, false),
    };
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).unwrap_or_default().to_owned();
    if key.is_empty() {
        let why = "This fake wants an Idempotency-Key with each POST.";
        return respond(Answer::refused(400, "idempotency_error", "parameter_missing", why), false);
    }
    let order = params["metadata"]["order"].as_str().unwrap_or_default().to_owned();
    let weather = stripe.draw(&key, object, &order);
    match weather {
        Weather::TooMany => {
            return respond(Answer::refused(429, "invalid_request_error", "rate_limit", "Too many requests."), false);
        }
        Weather::Away => return respond(Answer::refused(503, "api_error", "unavailable", "Try again."), false),
        _ => {}
    }
    let begun = stripe.books().begin(&key, &format!("{object} {}", String::from_utf8_lossy(&body)));
    let (answer, is_repeated) = match begun {
        Begun::Refused(answer) => (answer, false),
        Begun::Again(answer) => (answer, true),
        Begun::New => match tokio::spawn(stripe.clone().work(weather, object, params, key)).await {
            Ok(answer) => (answer, false),
            Err(_) => (Answer::broken(), false),
        },
    };
    match weather {
        Weather::Hanging => {
            sleep(LONGER_THAN_ANYBODY_WAITS).await;
            dropped()
        }
        Weather::Dropped => dropped(),
        _ => respond(answer, is_repeated),
    }
}

async fn list(State(stripe): State<Stripe>, Path(kind): Path<String>, headers: HeaderMap, query: RawQuery) -> Response {
    let _in_flight = stripe.begin();
    let mut wanted = form::decode(query.0.unwrap_or_default().as_bytes()).unwrap_or_default();
    if let Some(wanted) = wanted.as_object_mut() {
        // There is never more than fits.
        wanted.remove("limit");
    }
    let found = stripe.check(&headers).and_then(|()| Ok(stripe.books().list(object_of(&kind)?, &wanted)));
    found.map_or_else(|refused| respond(refused, false), |found| Json(found).into_response())
}

#[cfg(test)]
mod tests;
