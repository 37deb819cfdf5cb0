//! An application with both routers, and what its clients see of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use callback_flows::{
    CallbackPolicy, Flow, FlowError, FlowResult, Flows, FlowsBuilder, Refused, Retry, Unverified, UrlKeys, Verify,
};
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stable_interfaces::testing::{FaultStore, MemoryNetwork, SeededRandom, SimClock};
use stable_interfaces::{Fleet, Host, HostBuilder, MemoryStore, Timestamp};
use tower::ServiceExt as _;

pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// The time after which a flow that is over is purged here.
pub(crate) const RETENTION: Duration = Duration::from_secs(60);
/// The signature of `Hello, World!` as the callback `signed` checks it.
pub(crate) const SIGNATURE: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
const BEGINNING: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// The host through which clients come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Door {
    /// The owner of all flows; where there are other hosts, they cannot be reached.
    #[default]
    Owner,
    /// A host that owns none, and reaches the owner.
    Wrong,
}

/// Every pair of an operation and a status that was answered, the operation as the documents name it.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) door: Door,
    answered: Mutex<BTreeSet<(String, u16)>>,
}

impl Seen {
    pub(crate) fn at(door: Door) -> Seen {
        Seen { door, ..Seen::default() }
    }

    pub(crate) fn all(&self) -> BTreeSet<(String, u16)> {
        self.answered.lock().clone()
    }

    pub(crate) fn world(&self) -> World {
        World::new(self.door)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Order {
    id: String,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Item {
    price: u32,
}

/// The URLs that orders have given out, by ID.
type Urls = Arc<Mutex<BTreeMap<String, String>>>;

/// Waits a minute for a word, which ends it: well, or with an error.
async fn order(urls: Urls, flow: Flow, input: Order) -> FlowResult<Value> {
    let mut word = flow.callback::<String>("word");
    urls.lock().insert(input.id.clone(), word.url());
    tokio::select! {
        word = word.next() => match &*word? {
            "fail" => Err(FlowError::new("there is no such thing")),
            word => Ok(Value::String(word.to_owned())),
        },
        () = flow.sleep(60 * SECOND) => Ok(Value::Null),
    }
}

/// Shows what came to a callback of this name, and makes something of the first.
async fn hook(urls: Urls, flow: Flow, name: String) -> FlowResult<()> {
    let mut callback = flow.callback::<Value>(&name);
    urls.lock().insert(name, callback.url());
    let mut seen = Vec::new();
    loop {
        let received = callback.next_raw().await;
        let headers: Vec<_> = received.headers().map(|(name, value)| format!("{name}: {value}")).collect();
        seen.push(serde_json::json!([String::from_utf8_lossy(received.body()), headers]));
        flow.progress(&seen)?;
        if seen.len() == 1 {
            flow.resource("/things/1?a=b")?;
        }
    }
}

/// The events that a flow is to tell, and its end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Telling {
    pub(crate) events: u32,
    /// Bytes of each.
    pub(crate) bytes: usize,
    pub(crate) fails: bool,
}

/// Emits events under two names in turn, one after the other.
async fn telling(flow: Flow, input: Telling) -> FlowResult<()> {
    for n in 0..input.events {
        let name = if n % 2 == 0 { "step-taken" } else { "rest taken" };
        flow.emit(name, &format!("{n} {}", "x".repeat(input.bytes)))?;
        flow.sleep(SECOND).await;
    }
    if input.fails { Err(FlowError::new("it was told to")) } else { Ok(()) }
}

fn not_empty(order: &Order) -> Result<(), Refused> {
    if order.id.is_empty() { Err(Refused::new("id", "an order has a name")) } else { Ok(()) }
}

/// A store that can be away, and the hosts on it.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) store: FaultStore,
    pub(crate) clock: SimClock,
    door: Door,
    pub(crate) network: MemoryNetwork,
    /// The owner of all flows, where clients come in through another host.
    owner: Arc<tokio::sync::Mutex<Option<Host>>>,
    urls: Urls,
    /// Hosts that were started.
    hosts: Arc<AtomicU64>,
}

impl World {
    fn new(door: Door) -> World {
        let clock = SimClock::new(BEGINNING);
        let store = FaultStore::new(Arc::new(MemoryStore::with_clock(Arc::new(clock.clone()))));
        let (network, owner) = (MemoryNetwork::new(), Arc::default());
        World { store, clock, door, network, owner, urls: Urls::default(), hosts: Arc::default() }
    }

    pub(crate) fn builder(&self) -> FlowsBuilder {
        let (urls, deaf, hooked) = (self.urls.clone(), self.urls.clone(), self.urls.clone());
        let any_method = CallbackPolicy::new().or_get().or_put();
        let signed = Verify::github(["It's a Secret to Everybody"]).unwrap();
        let replied = CallbackPolicy::new().reply(200, "thanks").id_from_header("x-id").keep_header("x-trace");
        Flows::builder()
            .callbacks("https://broker.example/callbacks", UrlKeys::new("k1", [7; 32]).unwrap())
            .retention(RETENTION, 10 * RETENTION)
            .flow("order", 1, move |flow, input| order(urls.clone(), flow, input))
            .validate("order", not_empty)
            .flow("deaf", 1, move |flow: Flow, _: Value| {
                let urls = deaf.clone();
                async move {
                    let unheard = flow.callback::<Value>("unheard");
                    urls.lock().insert("deaf".into(), unheard.url());
                    flow.sleep(600 * SECOND).await;
                    Ok(())
                }
            })
            .flow("hook", 1, move |flow, input| hook(hooked.clone(), flow, input))
            .callback_policy("hook", "signed", any_method.clone().verify(signed))
            .callback_policy("hook", "old", CallbackPolicy::new().verify(Verify::custom(|_, _| Err(Unverified::Stale))))
            .callback_policy("hook", "typed", any_method.clone().body_is::<u32>())
            .callback_policy("hook", "link", any_method.clone())
            .callback_policy("deaf", "unheard", any_method)
            .callback_policy("hook", "replied", replied)
            .flow("stepping", 1, |flow: Flow, _: Value| async move {
                let step = flow.step("long").run(async |_| {
                    tokio::time::sleep(600 * SECOND).await;
                    Ok::<_, std::io::Error>(())
                });
                Ok(step.await?)
            })
            .flow("flaky", 1, |flow: Flow, _: Value| async move {
                let retry = Retry::default().between(20 * SECOND, 20 * SECOND);
                let step = flow.step("pay").retry(retry).run(async |_| Err::<(), _>(std::io::Error::other("closed")));
                Ok(step.await?)
            })
            .flow("telling", 1, telling)
            .flow("events", 3, |flow: Flow, _: Value| async move {
                flow.sleep(5 * SECOND).await;
                Ok("done")
            })
    }

    pub(crate) async fn start(&self, host: HostBuilder, flows: FlowsBuilder) -> App {
        let mut host = host
            .clock(Arc::new(self.clock.clone()))
            .random(Arc::new(SeededRandom::new(self.hosts.fetch_add(1, Ordering::Relaxed))));
        let flows = flows.register(&mut host).unwrap();
        let router = Router::new().nest("/flows", flows.router()).nest("/callbacks", flows.callback_router());
        App { world: self.clone(), host: host.start().await.unwrap(), flows, router }
    }

    /// The host that clients come in through, and the owner of all flows, which may be another one.
    pub(crate) async fn alone(&self) -> App {
        self.alone_with(self.builder()).await
    }

    pub(crate) async fn alone_with(&self, flows: FlowsBuilder) -> App {
        self.alone_as(|host| host, flows).await
    }

    /// The same, with options for the owner.
    pub(crate) async fn alone_as(&self, options: impl Fn(HostBuilder) -> HostBuilder, flows: FlowsBuilder) -> App {
        if self.door == Door::Owner {
            return self.start(options(Host::local(self.store.clone())), flows).await;
        }
        // What the first one has stays there.
        let live = |name| self.live(name).settle(10_000 * SECOND).gather(Duration::ZERO);
        let mut owner = self.owner.lock().await;
        if owner.is_none() {
            *owner = Some(self.start(options(live("owner")), flows.clone()).await.host);
        }
        self.start(live("door"), flows).await
    }

    /// A host of a fleet that is found in the store.
    pub(crate) fn live(&self, name: &str) -> HostBuilder {
        let host = Host::builder(name, Fleet::live(64).unwrap()).store(self.store.clone()).lease(15 * SECOND);
        host.transport(self.network.transport())
    }

    /// Cuts the link from one host to another, or mends it.
    pub(crate) fn cut(&self, from: &str, to: &str, is_cut: bool) {
        self.network.cut(from, to, is_cut);
    }

    pub(crate) async fn member(&self, name: &str) -> App {
        self.member_with(name, self.builder()).await
    }

    pub(crate) async fn member_with(&self, name: &str, flows: FlowsBuilder) -> App {
        let host = Host::builder(name, fleet()).store(self.store.clone()).lease(15 * SECOND);
        let host = if self.door == Door::Wrong { host.transport(self.network.transport()) } else { host };
        self.start(host, flows).await
    }

    /// The path of the callback of an order.
    pub(crate) fn url(&self, order: &str) -> String {
        let url = self.urls.lock()[order].clone();
        url.strip_prefix("https://broker.example").unwrap().to_owned()
    }
}

pub(crate) fn fleet() -> Fleet {
    Fleet::new(["zero", "one"], 64).unwrap()
}

/// An ID of an order that this host owns.
pub(crate) fn owned_by(host: &str, salt: u32) -> String {
    let mut ids = (0..).map(|n| format!("{salt}-{n}"));
    ids.find(|id| fleet().locate(&format!("order/{id}")).unwrap().host == host).unwrap()
}

/// A host and its routers.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) world: World,
    pub(crate) host: Host,
    pub(crate) flows: Flows,
    pub(crate) router: Router,
}

/// A request on its way.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    app: &'a App,
    seen: &'a Seen,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Body,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl App {
    pub(crate) fn ask<'a>(&'a self, seen: &'a Seen, method: &str, path: &str) -> Asked<'a> {
        let method = method.parse().unwrap();
        Asked { app: self, seen, method, path: path.to_owned(), headers: HeaderMap::new(), body: Body::empty() }
    }

    /// `PUT` of an order whose only field is its ID.
    pub(crate) async fn put(&self, seen: &Seen, id: &str) -> Answer {
        let body = serde_json::json!({ "id": id });
        self.ask(seen, "PUT", &format!("/flows/order/{id}")).json(body).await
    }

    pub(crate) async fn get(&self, seen: &Seen, id: &str) -> Answer {
        self.ask(seen, "GET", &format!("/flows/order/{id}")).send().await
    }

    /// Says a word to an order.
    pub(crate) async fn say(&self, seen: &Seen, order: &str, word: &str) -> Answer {
        self.ask(seen, "POST", &self.world.url(order)).body(serde_json::to_vec(word).unwrap()).send().await
    }

    /// Starts a flow that waits at a callback of this name, and gives the path to that.
    pub(crate) async fn hook(&self, seen: &Seen, name: &str) -> String {
        self.ask(seen, "PUT", &format!("/flows/hook/{name}")).json(name).await.is(202);
        self.world.url(name)
    }

    /// Drains the owner of all flows.
    pub(crate) async fn drain_owner(&self, deadline: Duration) {
        match self.world.owner.lock().await.take() {
            Some(owner) => owner.drain(deadline).await,
            None => self.host.drain(deadline).await,
        };
    }

    /// Lets everything happen that waits for nothing.
    pub(crate) async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Asked<'_> {
    pub(crate) fn header(mut self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        self.headers.append(name, axum::http::HeaderValue::from_bytes(value.as_ref()).unwrap());
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) async fn json(self, body: impl Into<Value>) -> Answer {
        self.header("content-type", "application/json").body(body.into().to_string()).send().await
    }

    pub(crate) async fn send(self) -> Answer {
        let (status, headers, body) = self.open().await;
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec();
        let answer = Answer { status, headers, body };
        if answer.status >= 400 {
            answer.is_a_problem();
        }
        answer
    }

    /// The answer as a stream, which has begun.
    pub(crate) async fn listen(self) -> Events {
        let (status, headers, body) = self.open().await;
        assert_eq!((status, headers["content-type"].to_str().unwrap()), (200, "text/event-stream"));
        let mut events = Events { body: body.into_data_stream(), rest: String::new() };
        let first = events.part().await.unwrap();
        let retry: u64 = first.text.strip_prefix("retry: ").unwrap().parse().unwrap();
        assert!((1_000..2_000).contains(&retry), "{retry}");
        events
    }

    /// The answer with its body still to come.
    pub(crate) async fn open(self) -> (u16, HeaderMap, Body) {
        let mut request = Request::new(self.body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.path.parse().unwrap();
        *request.headers_mut() = self.headers;
        let response = self.app.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        self.seen.answered.lock().insert((operation(&self.method, &self.path), status.as_u16()));
        let (parts, body) = response.into_parts();
        (status.as_u16(), parts.headers, body)
    }
}

/// An operation as the documents name it.
fn operation(method: &Method, path: &str) -> String {
    let path = path.split('?').next().unwrap();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let path = match parts[..] {
        ["flows", "events"] if method == Method::GET => "flows /events",
        ["flows", _] => "flows /{name}",
        ["flows", _, _] => "flows /{name}/{id}",
        ["flows", _, _, "events"] => "flows /{name}/{id}/events",
        ["callbacks", _] => "callbacks /{token}",
        _ => "none",
    };
    format!("{method} {path}")
}

/// A stream of server-sent events.
#[derive(Debug)]
pub(crate) struct Events {
    body: BodyDataStream,
    /// Bytes that came and were not looked at.
    rest: String,
}

/// A part of a stream up to an empty line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) data: String,
    pub(crate) text: String,
}

impl Events {
    /// The next part, comments too; `None` at the end of the stream.
    pub(crate) async fn part(&mut self) -> Option<Told> {
        loop {
            if let Some((text, rest)) = self.rest.split_once("\n\n") {
                let text = text.to_owned();
                self.rest = rest.to_owned();
                let field = |name: &str| {
                    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                    value.unwrap_or_default().to_owned()
                };
                return Some(Told { id: field("id"), name: field("event"), data: field("data"), text });
            }
            let chunk = self.body.next().await?.unwrap();
            self.rest.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> Option<Told> {
        loop {
            let part = self.part().await?;
            if !part.name.is_empty() {
                return Some(part);
            }
        }
    }

    /// All events up to the end of the stream.
    pub(crate) async fn all(mut self) -> Vec<Told> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            all.push(event);
        }
        all
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/json", "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The answer is that status, and no problem.
    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{self:?}: {}", String::from_utf8_lossy(&self.body));
        self
    }

    pub(crate) fn is_a_problem(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let problem: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem["status"], self.status);
        for field in ["type", "title", "detail", "remedy"] {
            assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {problem}");
        }
        let again = matches!(self.status, 429 | 503);
        assert_eq!(self.header("retry-after").parse::<u64>().is_ok(), again, "{self:?}");
        problem
    }

    /// The answer is a problem of this status and type.
    #[track_caller]
    pub(crate) fn is_problem(self, status: u16, kind: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}: {}", String::from_utf8_lossy(&self.body));
        let problem = self.is_a_problem();
        let page = "https://github.com/stable-interfaces/stable-interfaces/blob/main/docs/http.md#";
        assert_eq!(problem["type"], format!("{page}{kind}"), "{problem}");
        assert_eq!(StatusCode::from_u16(status).unwrap().as_u16(), status);
        problem
    }
}
