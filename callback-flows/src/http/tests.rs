//! Each row of the routers' tables, on a paused clock: status, headers, body; on the owner, on another host, and without a store.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and its time is simulated"
)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request};
use hmac::{Hmac, KeyInit as _, Mac as _};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::Sha256;
use stable_interfaces::testing::{FaultStore, SimClock};
use stable_interfaces::{Fleet, Host, HostBuilder, MemoryStore, Timestamp};
use tower::ServiceExt as _;

use super::openapi::{OPERATIONS, describe};
use crate::{CallbackPolicy, Flow, FlowError, FlowResult, Flows, FlowsBuilder, UrlKeys, Verify};

const SECOND: Duration = Duration::from_secs(1);
const SECRET: &str = "It's a Secret to Everybody";

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    item: String,
    n: u32,
}

/// Tells its URL, waits to be accepted, and makes something; "nobody" fails it.
async fn order(flow: Flow, order: Order) -> FlowResult<String> {
    let mut accepted = flow.callback::<String>("accepted");
    flow.progress(&accepted.url())?;
    let by = accepted.next().await?;
    flow.emit("accepted", &by)?;
    if by == "nobody" {
        return Err(FlowError::new("nobody wants it"));
    }
    flow.resource(&format!("/orders/{}", order.item))?;
    Ok(by)
}

/// Is called with a signature, and told a number.
async fn signed(flow: Flow, (): ()) -> FlowResult<u32> {
    let mut called = flow.callback::<u32>("called");
    flow.progress(&called.url())?;
    Ok(called.next().await?)
}

async fn echo(_: Flow, input: Value) -> FlowResult<Value> {
    Ok(input)
}

fn flows() -> FlowsBuilder {
    let policy =
        CallbackPolicy::new().verify(Verify::github([SECRET]).unwrap()).body_is::<u32>().reply(200, "thank you");
    Flows::builder()
        .flow("order", 1, order)
        .flow("signed", 1, signed)
        .flow("echo", 1, echo)
        .callback_policy("signed", "called", policy)
        .callbacks("https://shop.example/callbacks", UrlKeys::new("k1", "a secret of 32 random bytes ....").unwrap())
        .retention(60 * SECOND, 3_600 * SECOND)
}

/// Whatever was answered, by operation.
type Statuses = Mutex<BTreeSet<(String, u16)>>;

/// A host with its two routers.
struct Site {
    host: Host,
    flows: Flows,
    app: Router,
    statuses: Arc<Statuses>,
}

impl Site {
    async fn start(mut host: HostBuilder, statuses: &Arc<Statuses>) -> Site {
        let flows = flows().register(&mut host).unwrap();
        let host = host.start().await.unwrap();
        // Nested, as an application does.
        let app = Router::new().nest("/flows", flows.router()).nest("/callbacks", flows.callback_router());
        Site { host, flows, app, statuses: statuses.clone() }
    }

    async fn local(statuses: &Arc<Statuses>) -> Site {
        Site::start(Host::local(MemoryStore::new()).clock(clock()), statuses).await
    }

    async fn send(&self, line: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Seen {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.app.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let (parts, body) = answer.into_parts();
        let status = parts.status.as_u16();
        if let Some(operation) = operation(method, path) {
            self.statuses.lock().insert((operation, status));
        }
        let is_stream = parts.headers.get("content-type").is_some_and(|kind| kind == "text/event-stream");
        // A stream that does not end is looked at for a while.
        let limit = if is_stream { SECOND } else { 60 * SECOND };
        let body = tokio::time::timeout(limit, to_bytes(body, 1 << 20)).await;
        let body = body.map_or_else(|_| "it goes on".into(), |body| String::from_utf8(body.unwrap().to_vec()).unwrap());
        let seen = Seen { line: line.into(), status, headers: parts.headers, body };
        if status >= 400 && method != "HEAD" {
            let json = seen.json();
            assert_eq!(seen.header("content-type"), Some("application/problem+json"), "{seen:?}");
            assert_eq!(json["status"], status, "{seen:?}");
            assert!(json["detail"].as_str().is_some_and(|detail| detail.len() > 5), "{seen:?}");
            assert_eq!(seen.header("retry-after").is_some(), matches!(status, 429 | 503), "{seen:?}");
        }
        seen
    }

    async fn get(&self, path: &str) -> Seen {
        self.send(&format!("GET {path}"), &[], "").await
    }

    /// Starts an order, and gives the path of its callback.
    async fn order(&self, id: &str) -> String {
        let seen = self.send(&format!("PUT /flows/order/{id}"), &[], r#"{"item":"pizza","n":1}"#).await;
        assert_eq!(seen.status, 202, "{seen:?}");
        self.callback("order", id).await
    }

    async fn callback(&self, name: &str, id: &str) -> String {
        tokio::time::sleep(2 * SECOND).await;
        let status = self.flows.get(name, id).await.unwrap().unwrap();
        let url = status.progress.unwrap().as_str().unwrap().to_owned();
        url.strip_prefix("https://shop.example").unwrap().to_owned()
    }
}

/// The operation of the document that a request is, if it is one.
fn operation(method: &str, path: &str) -> Option<String> {
    let path = path.split('?').next().unwrap();
    let path = path.strip_prefix("/flows").unwrap_or(path);
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let path = match parts[..] {
        ["events"] if method == "GET" => "/events",
        [_] => "/{name}",
        ["callbacks", _] => "/callbacks/{token}",
        [_, _] => "/{name}/{id}",
        [_, _, "events"] => "/{name}/{id}/events",
        _ => return None,
    };
    Some(format!("{} {path}", method.to_lowercase()))
}

fn clock() -> Arc<SimClock> {
    Arc::new(SimClock::new(Timestamp::from_millis(1_700_000_000_000)))
}

/// An answer.
#[derive(Debug)]
struct Seen {
    #[expect(dead_code, reason = "it is shown when a test fails")]
    line: String,
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The end of a problem's type.
    fn problem(&self) -> String {
        let json = self.json();
        json["type"].as_str().unwrap().strip_prefix("urn:callback-flows:problem:").unwrap().to_owned()
    }

    #[track_caller]
    fn is(&self, status: u16, problem: &str) {
        assert_eq!((self.status, &*self.problem()), (status, problem), "{self:?}");
    }
}

async fn starts(statuses: &Arc<Statuses>) {
    let site = Site::local(statuses).await;
    let put = async |path: &str, body: &str| site.send(&format!("PUT /flows/{path}"), &[], body.to_owned()).await;
    let first = put("order/17", r#"{"item":"pizza","n":1}"#).await;
    assert_eq!(first.status, 202, "{first:?}");
    assert_eq!((first.header("location"), first.header("retry-after")), (Some("/flows/order/17"), Some("1")));
    let json = first.json();
    assert_eq!((&json["id"], &json["name"], &json["status"]), (&json!("17"), &json!("order"), &json!("running")));
    for again in [r#"{"item":"pizza","n":1}"#, "{ \"n\": 1,\n \"item\": \"pizza\" }"] {
        assert_eq!(put("order/17", again).await.status, 202, "{again}");
    }
    let other = put("order/17", r#"{"item":"pizza","n":2}"#).await;
    other.is(409, "other-input");
    assert_eq!(other.json()["field"], "/n");
    put("order/18", "{").await.is(400, "not-json");
    put("order/18", r#"{"item":"pizza"}"#).await.is(422, "input");
    put("order/18", r#"{"item":1,"n":1}"#).await.is(422, "input");
    site.get("/flows/order/18").await.is(404, "not-found");
    put("nothing/18", "{}").await.is(404, "unknown-flow");
    put("order/%ff", "{}").await.is(400, "bad-request");
    put(&format!("order/{}", "x".repeat(600)), r#"{"item":"pizza","n":1}"#).await.is(400, "bad-request");
    let large = |bytes: usize| format!(r#"{{"item":"{}","n":1}}"#, "x".repeat(bytes));
    put("order/18", &large(300_000)).await.is(413, "too-large");
    put("order/18", &large(200_000)).await.is(413, "too-large");
    for id in ["a%2Fb", "..", "events", "%E2%82%AC"] {
        let seen = put(&format!("order/{id}"), r#"{"item":"pizza","n":1}"#).await;
        assert_eq!((seen.status, seen.header("location")), (202, Some(&*format!("/flows/order/{id}"))), "{seen:?}");
        assert_eq!(site.get(&format!("/flows/order/{id}")).await.status, 200);
    }
    // Without a body, and in time.
    let echoed = site.send("PUT /flows/echo/1", &[("prefer", "wait=2")], "").await;
    assert_eq!((echoed.status, echoed.header("preference-applied")), (200, Some("wait=2")), "{echoed:?}");
    assert_eq!((&echoed.json()["status"], &echoed.json()["result"]), (&json!("succeeded"), &json!(null)));
    let began = tokio::time::Instant::now();
    let waited = site.send("PUT /flows/order/17", &[("prefer", "wait=3")], r#"{"item":"pizza","n":1}"#).await;
    assert_eq!((waited.status, waited.header("preference-applied")), (202, Some("wait=3")), "{waited:?}");
    assert!((3 * SECOND..4 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
    let began = tokio::time::Instant::now();
    let none = site.send("PUT /flows/order/17", &[("prefer", "wait=-1")], r#"{"item":"pizza","n":1}"#).await;
    assert_eq!((none.status, none.header("preference-applied")), (202, None), "{none:?}");
    assert!(began.elapsed() < SECOND);
    site.send("PATCH /flows/order/17", &[], "").await.is(405, "method");
    site.get("/flows/order/17/a/b").await.is(404, "not-found");
    let (one, other) =
        tokio::join!(put("order/twice", r#"{"item":"pizza","n":1}"#), put("order/twice", r#"{"item":"pizza","n":2}"#));
    let mut both = [one.status, other.status];
    both.sort_unstable();
    assert_eq!(both, [202, 409]);
}

async fn starts_by_key(statuses: &Arc<Statuses>) {
    let site = Site::local(statuses).await;
    let post = async |key: &[&str], body: &str| {
        let headers: Vec<_> = key.iter().map(|key| ("idempotency-key", *key)).collect();
        site.send("POST /flows/order", &headers, body.to_owned()).await
    };
    for key in ["k 1", "\"k 1\""] {
        let seen = post(&[key], r#"{"item":"pizza","n":1}"#).await;
        assert_eq!((seen.status, seen.header("location")), (202, Some("/flows/order/k%201")), "{seen:?}");
    }
    let reused = post(&["k 1"], r#"{"item":"pasta","n":1}"#).await;
    reused.is(422, "key-reused");
    assert_eq!(reused.json()["field"], "/item");
    post(&["a", "b"], "{}").await.is(400, "bad-request");
    post(&["\"a"], "{}").await.is(400, "bad-request");
    post(&[], "nonsense").await.is(400, "not-json");
    post(&[], &format!("\"{}\"", "x".repeat(300_000))).await.is(413, "too-large");
    let mut ids = BTreeSet::new();
    for _ in 0..3 {
        let seen = post(&[], r#"{"item":"pizza","n":1}"#).await;
        let location = seen.header("location").unwrap().to_owned();
        assert_eq!((seen.status, site.get(&location).await.status), (202, 200), "{seen:?}");
        ids.insert(location);
    }
    assert_eq!(ids.len(), 3, "each has an ID of its own");
    let echoed = site.send("POST /flows/echo", &[("prefer", "wait=1")], "[1]").await;
    assert_eq!((echoed.status, &echoed.json()["result"]), (200, &json!([1])));
    site.send("POST /flows/nothing", &[], "{}").await.is(404, "unknown-flow");
    site.send("POST /flows/events", &[], "{}").await.is(404, "unknown-flow");
    site.send("DELETE /flows/order", &[], "").await.is(405, "method");
}

async fn shows(statuses: &Arc<Statuses>) {
    let site = Site::local(statuses).await;
    let callback = site.order("17").await;
    let seen = site.get("/flows/order/17").await;
    let (tag, json) = (seen.header("etag").unwrap().to_owned(), seen.json());
    assert_eq!((seen.status, &json["status"], &json["version"]), (200, &json!("running"), &json!(1)), "{seen:?}");
    assert_eq!((&json["awaiting"][0]["kind"], &json["awaiting"][0]["name"]), (&json!("callback"), &json!("accepted")));
    assert!(tag.starts_with('"') && json.get("result").is_none() && json.get("problem").is_none(), "{seen:?}");
    let known = [("if-none-match", &*tag)];
    assert_eq!(site.send("GET /flows/order/17", &known, "").await.status, 304);
    assert_eq!(site.send("GET /flows/order/17", &[("if-none-match", "\"x\"")], "").await.status, 200);
    assert_eq!(site.get("/flows/order/17?follow=1").await.status, 200, "it has made nothing yet");
    site.get("/flows/order/17?follow=x").await.is(400, "bad-request");
    // A look that waits ends by its limit, and by a change.
    let began = tokio::time::Instant::now();
    let poll = [("if-none-match", &*tag), ("prefer", "wait=5")];
    assert_eq!(site.send("GET /flows/order/17", &poll, "").await.status, 304);
    assert!((5 * SECOND..6 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
    let call = async {
        tokio::time::sleep(SECOND).await;
        assert_eq!(site.send(&format!("POST {callback}"), &[], "\"ada\"").await.status, 202);
    };
    let (changed, ()) = tokio::join!(site.send("GET /flows/order/17", &poll, ""), call);
    assert_eq!((changed.status, changed.header("preference-applied")), (200, Some("wait=5")), "{changed:?}");
    assert!(changed.header("etag") != Some(&tag));
    let done = site.send("GET /flows/order/17", &[("prefer", "wait=5")], "").await;
    assert_eq!((&done.json()["status"], &done.json()["result"]), (&json!("succeeded"), &json!("ada")), "{done:?}");
    assert_eq!((&done.json()["resource"], done.header("retry-after")), (&json!("/orders/pizza"), None));
    let there = site.get("/flows/order/17?follow=1").await;
    assert_eq!((there.status, there.header("location")), (303, Some("/orders/pizza")));
    let callback = site.order("18").await;
    site.send(&format!("POST {callback}"), &[], "\"nobody\"").await;
    tokio::time::sleep(SECOND).await;
    let failed = site.get("/flows/order/18").await;
    assert_eq!((failed.status, &failed.json()["status"]), (200, &json!("failed")));
    assert_eq!(failed.json()["problem"]["detail"], "nobody wants it");
    site.get("/flows/order/never").await.is(404, "not-found");
    site.get("/flows/order/%ff").await.is(400, "bad-request");
    tokio::time::sleep(120 * SECOND).await;
    site.get("/flows/order/17").await.is(410, "gone");
    site.send("HEAD /flows/order/17", &[], "").await;
}

async fn cancels(statuses: &Arc<Statuses>) {
    let site = Site::local(statuses).await;
    site.order("17").await;
    let cancelled = site.send("DELETE /flows/order/17", &[], "").await;
    assert_eq!((cancelled.status, cancelled.header("location")), (202, Some("/flows/order/17")), "{cancelled:?}");
    tokio::time::sleep(SECOND).await;
    assert_eq!(site.get("/flows/order/17").await.json()["status"], "cancelled");
    site.send("DELETE /flows/order/17", &[], "").await.is(409, "over");
    site.send("DELETE /flows/order/never", &[], "").await.is(404, "not-found");
    site.send("DELETE /flows/order/%ff", &[], "").await.is(400, "bad-request");
    tokio::time::sleep(120 * SECOND).await;
    site.send("DELETE /flows/order/17", &[], "").await.is(410, "gone");
}

/// The events of a stream: number, name, data.
fn events(stream: &str) -> Vec<(String, String, String)> {
    let field = |event: &str, name: &str| {
        let prefix = format!("{name}: ");
        event.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default().to_owned()
    };
    let events = stream.split("\n\n").filter(|event| event.contains("event: "));
    events.map(|event| (field(event, "id"), field(event, "event"), field(event, "data"))).collect()
}

async fn streams(statuses: &Arc<Statuses>) {
    let site = Site::local(statuses).await;
    let callback = site.order("17").await;
    assert_eq!(site.get("/flows/order/17/events").await.body, "it goes on");
    site.send(&format!("POST {callback}"), &[], "\"ada\"").await;
    tokio::time::sleep(SECOND).await;
    let all = site.get("/flows/order/17/events").await;
    assert_eq!((all.status, all.header("content-type")), (200, Some("text/event-stream")), "{all:?}");
    assert!(all.body.starts_with("retry: 1000\n"), "{all:?}");
    let told = events(&all.body);
    let names: Vec<&str> = told.iter().map(|(_, name, _)| &**name).collect();
    assert_eq!(names, ["progress", "accepted", "resource", "succeeded"]);
    assert_eq!(told.iter().map(|(id, ..)| &**id).collect::<Vec<_>>(), ["1", "2", "3", "4"]);
    assert_eq!((&*told[1].2, &*told[2].2), ("\"ada\"", "\"/orders/pizza\""));
    for after in 0..4 {
        let seen = site.send("GET /flows/order/17/events", &[("last-event-id", &after.to_string())], "").await;
        assert_eq!(events(&seen.body), told[after..], "after {after}");
    }
    for end in ["4", "5", "99999999999"] {
        let seen = site.send("GET /flows/order/17/events", &[("last-event-id", end)], "").await;
        assert_eq!((seen.status, &*seen.body), (204, ""), "after {end}");
    }
    site.send("GET /flows/order/17/events", &[("last-event-id", "x")], "").await.is(400, "bad-request");
    site.get("/flows/order/never/events").await.is(404, "not-found");
    site.send("DELETE /flows/order/17/events", &[], "").await.is(405, "method");
    site.send("GET /flows/order/17/events", &[], "").await;
    // All flows of the host, and those that fail.
    let line = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        site.app.clone().oneshot(request).await.unwrap().into_body()
    };
    let (all, failed) = (line("/flows/events?name=order").await, line("/flows/events?only=failed,blocked").await);
    let goes_on = site.get("/flows/events").await;
    assert_eq!((goes_on.status, &*goes_on.body), (200, "it goes on"));
    let callback = site.order("18").await;
    site.send("PUT /flows/echo/1", &[], "1").await;
    site.send(&format!("POST {callback}"), &[], "\"nobody\"").await;
    tokio::time::sleep(SECOND).await;
    assert!(site.host.drain(SECOND).await.released);
    drop((site.host, site.flows, site.app));
    let read = async |body: Body| {
        let mut text = String::new();
        let mut body = body.into_data_stream();
        let next = async |body: &mut axum::body::BodyDataStream| futures_util::StreamExt::next(body).await;
        while let Ok(Some(part)) = tokio::time::timeout(SECOND, next(&mut body)).await {
            text.push_str(std::str::from_utf8(&part.unwrap()).unwrap());
        }
        events(&text)
            .into_iter()
            .map(|(_, name, data)| (name, serde_json::from_str(&data).unwrap()))
            .collect::<Vec<(String, Value)>>()
    };
    let (all, failed) = (read(all).await, read(failed).await);
    assert_eq!(all.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["started", "failed"], "{all:?}");
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!((&failed[0].1["name"], &failed[0].1["id"]), (&json!("order"), &json!("18")));
    assert_eq!(failed[0].1["value"], "nobody wants it");
}

async fn streams_of_the_past(statuses: &Arc<Statuses>) {
    let site = Site::local(statuses).await;
    site.send("PUT /flows/echo/1", &[], "1").await;
    tokio::time::sleep(120 * SECOND).await;
    site.get("/flows/echo/1/events").await.is(410, "gone");
    site.get("/flows/events?only=a&only=b").await.is(400, "bad-request");
    site.send("DELETE /flows/events", &[], "").await.is(405, "method");
}

fn signature(body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={hex}")
}

async fn calls(statuses: &Arc<Statuses>) {
    let site = Site::local(statuses).await;
    let callback = site.order("17").await;
    let post = format!("POST {callback}");
    site.send(&format!("GET {callback}"), &[], "").await.is(405, "method");
    site.send(&post, &[], "x".repeat(200_000)).await.is(413, "too-large");
    site.send(&post, &[], "x".repeat(300_000)).await.is(413, "too-large");
    site.send(&post, &[("idempotency-key", "\"")], "\"ada\"").await.is(400, "bad-request");
    let forged = format!("{}x", &post);
    site.send(&forged, &[], "\"ada\"").await.is(404, "not-found");
    site.send("POST /callbacks/nonsense", &[], "\"ada\"").await.is(404, "not-found");
    for _ in 0..2 {
        let taken = site.send(&post, &[("idempotency-key", "1")], "\"ada\"").await;
        assert!(taken.status == 202 || taken.status == 410, "{taken:?}");
    }
    tokio::time::sleep(SECOND).await;
    site.send(&post, &[], "\"bob\"").await.is(410, "gone");
    assert_eq!(site.get("/flows/order/17").await.json()["result"], "ada");

    site.send("PUT /flows/signed/1", &[], "").await;
    let post = format!("POST {}", site.callback("signed", "1").await);
    site.send(&post, &[], "7").await.is(401, "unverified");
    let unverified =
        site.send(&post, &[("x-hub-signature-256", &signature("8")), ("x-github-delivery", "d")], "7").await;
    unverified.is(401, "unverified");
    assert!(unverified.header("www-authenticate").is_some());
    let undecodable = [("x-hub-signature-256", &*signature("\"x\"")), ("x-github-delivery", "d")];
    site.send(&post, &undecodable, "\"x\"").await.is(400, "bad-request");
    let seen = site.send(&post, &[("x-hub-signature-256", &signature("7")), ("x-github-delivery", "d")], "7").await;
    assert_eq!((seen.status, &*seen.body), (200, "thank you"), "as its policy has it");
    tokio::time::sleep(SECOND).await;
    assert_eq!(site.get("/flows/signed/1").await.json()["result"], 7);
}

/// Two hosts, and an ID of a flow that the second one owns.
async fn two(statuses: &Arc<Statuses>) -> (Site, Site, impl Fn(usize) -> String) {
    let (clock, fleet) = (clock(), Fleet::new(["zero", "one"], 16).unwrap());
    let store = MemoryStore::with_clock(clock.clone());
    let host = |name: &str| Host::builder(name, fleet.clone()).store(store.clone()).clock(clock.clone());
    let (zero, one) = (Site::start(host("zero"), statuses).await, Site::start(host("one"), statuses).await);
    let id = move |nth: usize| {
        let ids = (0..).map(|n| format!("id-{n}"));
        ids.filter(|id| fleet.locate(&format!("order/{id}")).unwrap().host == "one").nth(nth).unwrap()
    };
    (zero, one, id)
}

async fn elsewhere(statuses: &Arc<Statuses>) {
    let (zero, one, id) = two(statuses).await;
    let path = format!("/flows/order/{}", id(0));
    let put = async |site: &Site, path: &str, n: u32| {
        site.send(&format!("PUT {path}"), &[], format!(r#"{{"item":"pizza","n":{n}}}"#)).await
    };
    let first = put(&zero, &path, 1).await;
    assert_eq!((first.status, first.header("location")), (202, Some(&*path)), "{first:?}");
    assert_eq!(first.json()["status"], "running", "its owner has it: {first:?}");
    assert_eq!(put(&zero, &path, 1).await.status, 202);
    let other = put(&zero, &path, 2).await;
    other.is(409, "other-input");
    assert_eq!(other.json()["field"], "/n");
    let (left, right) = (zero.get(&path).await, one.get(&path).await);
    assert_eq!((left.status, left.json()), (200, right.json()));
    // Two inputs at once, by both hosts.
    let at_once = format!("/flows/order/{}", id(1));
    let (left, right) = tokio::join!(put(&zero, &at_once, 1), put(&one, &at_once, 2));
    let mut both = [left.status, right.status];
    both.sort_unstable();
    assert_eq!(both, [202, 409]);
    let callback = zero.callback("order", &id(0)).await;
    let called = zero.send(&format!("POST {callback}"), &[("idempotency-key", "1")], "\"ada\"").await;
    assert_eq!(called.status, 202, "{called:?}");
    let done = zero.send(&format!("GET {path}"), &[("prefer", "wait=10")], "").await;
    assert_eq!((&done.json()["status"], &done.json()["result"]), (&json!("succeeded"), &json!("ada")), "{done:?}");
    assert_eq!(events(&zero.get(&format!("{path}/events")).await.body).len(), 4);
    zero.send(&format!("POST {callback}"), &[], "\"bob\"").await.is(410, "gone");
    zero.send(&format!("DELETE {path}"), &[], "").await.is(409, "over");
    let third = format!("/flows/order/{}", id(2));
    put(&zero, &third, 1).await;
    assert_eq!(zero.send(&format!("DELETE {third}"), &[], "").await.status, 202);
    tokio::time::sleep(3 * SECOND).await;
    assert_eq!(zero.get(&third).await.json()["status"], "cancelled");
}

async fn without_a_store(statuses: &Arc<Statuses>) {
    let store = FaultStore::new(Arc::new(MemoryStore::with_clock(clock())));
    let site = Site::start(Host::local(store.clone()).clock(clock()), statuses).await;
    let callback = site.order("17").await;
    let is_there = site.get("/flows/order/17").await;
    assert_eq!(is_there.status, 200);
    store.set_down(true);
    let input = r#"{"item":"pizza","n":1}"#;
    site.send("PUT /flows/order/18", &[], input).await.is(503, "unavailable");
    site.send("POST /flows/order", &[], input).await.is(503, "unavailable");
    site.get("/flows/order/19").await.is(503, "unavailable");
    site.get("/flows/order/19/events").await.is(503, "unavailable");
    site.send("DELETE /flows/order/19", &[], "").await.is(503, "unavailable");
    site.send(&format!("POST {callback}"), &[], "\"ada\"").await.is(503, "unavailable");
    store.set_down(false);
    tokio::time::sleep(30 * SECOND).await;
    // The same again, which does nothing twice.
    assert_eq!(site.send("PUT /flows/order/18", &[], input).await.status, 202);
    assert!(site.host.drain(SECOND).await.released);
    site.send("PUT /flows/order/20", &[], input).await.is(503, "unavailable");
}

#[tokio::test(start_paused = true)]
async fn a_start_is_durable_or_says_what_to_change() {
    starts(&Arc::default()).await;
}

#[tokio::test(start_paused = true)]
async fn a_start_by_key_is_one_however_often_it_is_sent() {
    starts_by_key(&Arc::default()).await;
}

#[tokio::test(start_paused = true)]
async fn a_look_shows_what_is_and_waits_for_a_change() {
    shows(&Arc::default()).await;
}

#[tokio::test(start_paused = true)]
async fn a_flow_is_cancelled_once() {
    cancels(&Arc::default()).await;
}

#[tokio::test(start_paused = true)]
async fn events_are_streamed_and_go_on_behind_any_of_them() {
    streams(&Arc::default()).await;
    streams_of_the_past(&Arc::default()).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_is_taken_by_its_token_and_within_its_policy() {
    calls(&Arc::default()).await;
}

#[tokio::test(start_paused = true)]
async fn on_another_host_all_is_as_on_the_owner() {
    elsewhere(&Arc::default()).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_durable_is_not_acknowledged() {
    without_a_store(&Arc::default()).await;
}

#[tokio::test(start_paused = true)]
async fn the_document_lists_the_statuses_that_there_are_and_no_others() {
    let statuses = Arc::default();
    starts(&statuses).await;
    starts_by_key(&statuses).await;
    shows(&statuses).await;
    cancels(&statuses).await;
    streams(&statuses).await;
    streams_of_the_past(&statuses).await;
    calls(&statuses).await;
    elsewhere(&statuses).await;
    without_a_store(&statuses).await;
    let seen = statuses.lock();
    let document = describe();
    for operation in &OPERATIONS {
        let name = format!("{} {}", operation.method, operation.path);
        let is_here = |(of, _): &&(String, u16)| *of == name;
        let mut seen: BTreeSet<u16> = seen.iter().filter(is_here).map(|(_, status)| *status).collect();
        // A policy may have any.
        if operation.path.starts_with("/callbacks") {
            seen.remove(&200);
        }
        // What no request here can bring about, and the answer to another method of the same path.
        seen.extend([405, 429, 500].into_iter().filter(|status| operation.statuses.contains(status)));
        assert_eq!(operation.statuses.iter().copied().collect::<BTreeSet<_>>(), seen, "{name}");
        let described = &document["paths"][operation.path][operation.method];
        assert_eq!(described["responses"].as_object().unwrap().len(), operation.statuses.len(), "{name}");
    }
    let site = Site::local(&Arc::default()).await;
    assert_eq!(site.get("/flows/openapi.json").await.json(), document);
}
