//! Flows that are scripts, beside the same flows in Rust on the same host.

use std::collections::HashMap;
use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use callback_flows::script::{CallError, Script, ScriptFlows};
use callback_flows::{Call, Flow, FlowResult, Flows, UrlKeys};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stable_interfaces::Host;
use tokio::sync::oneshot;

use super::{HOUR, lock};
use crate::measure::cpu_time;
use crate::stores::{HOST, Metered, Place, SHARDS};

/// One call and one callback.
const MEET: &str = r#"
let called = callback("go");
meet(#{ id: id, url: called.url });
called.next("1h")
"#;
/// Twenty calls, one after the other.
const TWENTY: &str = "let sum = 0;\nfor n in 0..20 { sum += count(n); }\nsum";

/// The flows of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum In {
    /// Scripts.
    Rhai,
    /// The same in Rust.
    Rust,
}

#[derive(Debug, Serialize, Deserialize)]
struct Meeting {
    id: String,
    url: String,
}

/// Those who wait for the URL of a flow, by its ID.
type Meetings = Arc<Mutex<HashMap<String, oneshot::Sender<String>>>>;

fn meet(meetings: &Meetings, meeting: Meeting) {
    if let Some(waits) = lock(meetings).remove(&meeting.id) {
        let _ = waits.send(meeting.url);
    }
}

async fn meet_in_rust(meetings: Meetings, flow: Flow, id: String) -> FlowResult<Value> {
    let mut go = flow.callback::<Value>("go");
    let meeting = || Meeting { id: id.clone(), url: go.url() };
    let meets = |_| {
        meet(&meetings, meeting());
        ready(Ok::<_, std::io::Error>(()))
    };
    flow.step("meet").run(meets).await?;
    Ok(flow.timeout(HOUR, go.next()).await??)
}

async fn twenty_in_rust(flow: Flow, (): ()) -> FlowResult<u64> {
    let mut sum = 0;
    for n in 0..20 {
        sum += flow.step("count").run(|_| ready(Ok::<_, std::io::Error>(n))).await?;
    }
    Ok(sum)
}

/// A host with both.
#[derive(Debug)]
pub struct Both {
    host: Host,
    flows: Flows,
    meetings: Meetings,
}

impl Both {
    /// Starts it on the store of a place.
    pub async fn start(place: &dyn Place) -> Both {
        let store = Metered::new(place.open().await);
        let mut host = if place.is_shared() {
            let fleet = stable_interfaces::Fleet::new([HOST], SHARDS).expect("one host makes a fleet");
            Host::builder(HOST, fleet).store(store)
        } else {
            Host::local(store)
        };
        let meetings = Meetings::default();
        let [of_rust, of_rhai] = std::array::from_fn(|_| meetings.clone());
        let keys = UrlKeys::new("k1", "sixteen bytes or more").expect("the secret is long enough");
        let mut flows = Flows::builder()
            .flow("meet", 1, move |flow, id| meet_in_rust(of_rust.clone(), flow, id))
            .flow("twenty", 1, twenty_in_rust)
            .callbacks("https://flows.example/callbacks", keys);
        ScriptFlows::builder()
            .script("meet", MEET)
            .script("twenty", TWENTY)
            .call("meet", move |_, meeting| {
                let meeting = serde_json::from_value(meeting).map(|meeting| meet(&of_rhai, meeting));
                ready(meeting.map(|()| Value::Null).map_err(|error| CallError::new("meeting", error.to_string())))
            })
            .call("count", |_, n| ready(Ok::<_, CallError>(n)))
            .register(&mut flows)
            .expect("the scripts are right");
        let flows = flows.register(&mut host).expect("they can be registered");
        Both { host: host.start().await.expect("the store lets its host start"), flows, meetings }
    }

    /// Ends it.
    pub async fn end(self) {
        self.host.drain(Duration::from_secs(30)).await;
    }

    /// Starts a flow that waits, and returns the URL at which it does.
    async fn begin(&self, of: In, id: &str) -> String {
        let (waits, url) = oneshot::channel();
        lock(&self.meetings).insert(id.to_owned(), waits);
        match of {
            In::Rust => self.flows.start("meet", id, id).await,
            In::Rhai => self.flows.start("script", id, &Script::named("meet").arg("id", id)).await,
        }
        .expect("a flow can be started");
        url.await.expect("a flow says its URL")
    }

    /// Starts so many that wait for an hour.
    pub async fn park(&self, flows: u64) {
        for n in 0..flows {
            self.begin(In::Rhai, &format!("parked-{n}")).await;
        }
    }

    /// The CPU time of a flow of twenty operations, of all that this process does, in milliseconds.
    pub async fn twenty(&self, of: In, flows: u32) -> f64 {
        let before = cpu_time();
        for n in 0..flows {
            let id = format!("twenty-{of:?}-{n}");
            let name = match of {
                In::Rust => self.flows.start("twenty", &id, &()).await.map(|_| "twenty"),
                In::Rhai => self.flows.start("script", &id, &Script::named("twenty")).await.map(|_| "script"),
            };
            let name = name.expect("a flow can be started");
            self.flows.ended(name, &id).await.expect("it comes to its end");
        }
        (cpu_time() - before).as_secs_f64() * 1e3 / f64::from(flows)
    }
}

/// Flows per second, each started, called and over, with so many callers for so long.
pub async fn rate(place: &dyn Place, of: In, callers: usize, time: Duration) -> f64 {
    let both = Arc::new(Both::start(place).await);
    let started = Instant::now();
    let call = |caller: usize| {
        let both = both.clone();
        tokio::spawn(async move {
            let mut flows = 0_u64;
            while started.elapsed() < time {
                let url = both.begin(of, &format!("{caller}-{flows}")).await;
                both.flows.deliver(&url, Call::new("1")).await.expect("a call can be delivered");
                flows += 1;
            }
            flows
        })
    };
    let calls: Vec<_> = (0..callers).map(call).collect();
    let mut flows = 0;
    for call in calls {
        flows += call.await.expect("no caller fails");
    }
    let rate = flows as f64 / started.elapsed().as_secs_f64();
    Arc::into_inner(both).expect("no caller is left").end().await;
    rate
}
