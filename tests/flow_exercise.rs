//! The simulation's flows: orders that are started, begin a flow of their own, are called and granted, on hosts that fail.
//!
//! Each attempt of a step draws a value that no other has. By the time a step begins all that its flow has seen is durable, so then
//! it writes down the results of all steps before it as recorded: I8 is that none of them begins again, and none ever has another
//! result. Calls are numbered, and a flow's result names those it was given: none twice, and all that it took. What an order learns of the
//! flow that it began is what that has recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use callback_flows::{
    BlockedKind, Call, Delivered, Flow, FlowResult, Flows, FlowsError, State, Status, StepError, UrlKeys,
};
use parking_lot::Mutex;
use serde_json::Value;
use stable_interfaces::HostBuilder;
use stable_interfaces::store::{AlarmRow, InstanceName};
use stable_interfaces::testing::{Client, End, History, Invariant, Life, StoreDump, Workload};

/// The calls that a flow waits for.
const CALLS: usize = 3;
/// It waits so many milliseconds for each at most.
const LIMIT: u64 = 40_000;

/// A flow that is wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowFlaw {
    /// Does outside of steps what belongs into them: a replay does it again.
    DoesWithoutSteps,
    /// A call goes in twice, under two IDs, as if the flow had not known that it was the same.
    CallsTwice,
}

/// Flows and those who call them, drawn at random.
#[derive(Debug, Default)]
pub struct FlowExercise {
    shared: Arc<Shared>,
    flaw: Option<FlowFlaw>,
}

/// The world outside of all hosts.
#[derive(Debug, Default)]
struct Shared {
    values: AtomicU64,
    orders: Mutex<BTreeMap<String, Order>>,
}

/// All that is known of an order outside.
#[derive(Debug, Default, Clone)]
struct Order {
    is_started: bool,
    url: Option<String>,
    sent: BTreeSet<u64>,
    /// Those that the flow itself has acknowledged.
    taken: BTreeSet<u64>,
}

/// The flows of one host.
#[derive(Clone)]
pub struct FlowApp {
    flows: Flows,
}

impl fmt::Debug for FlowApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowApp").field("flows", &self.flows).finish()
    }
}

impl FlowExercise {
    /// Flows that are wrong like this.
    #[must_use]
    pub fn flawed(flaw: FlowFlaw) -> FlowExercise {
        FlowExercise { flaw: Some(flaw), ..FlowExercise::default() }
    }
}

/// An order, as its code on one host sees it.
struct Desk {
    life: Life,
    shared: Arc<Shared>,
    id: String,
    /// The results that the code has seen.
    seen: Mutex<Vec<(String, String)>>,
}

impl Desk {
    /// Begins an attempt: all that the code has seen by now is durable.
    fn begin(&self, step: &str) {
        // Another may have taken over from one that has been replaced and does not know.
        if self.life.is_current() {
            for (step, value) in &*self.seen.lock() {
                self.life.history().step_recorded(step, value);
            }
            self.life.history().step_began(step);
        }
    }

    fn draw(&self) -> u64 {
        self.shared.values.fetch_add(1, Ordering::Relaxed)
    }

    async fn step(&self, flow: &Flow, name: &str) -> Result<u64, StepError> {
        let step = format!("{}/{name}", self.id);
        let attempt = |_| async {
            self.begin(&step);
            self.life.sleep(self.life.random().up_to(Duration::from_secs(2))).await;
            if self.life.random().chance(0.2) {
                return Err(std::io::Error::other("the partner is busy"));
            }
            Ok(self.draw())
        };
        let value = flow.step(name).run(attempt).await?;
        self.seen.lock().push((step, value.to_string()));
        Ok(value)
    }
}

/// The name by which the history knows the part of an order.
fn part_of(id: &str) -> String {
    format!("part-{id}")
}

/// A flow that is begun by another, which sees the result of its only step.
async fn part(desk: Desk, flow: Flow) -> FlowResult<u64> {
    Ok(desk.step(&flow, "make").await?)
}

async fn order(desk: Desk, flaw: Option<FlowFlaw>, flow: Flow) -> FlowResult<Vec<u64>> {
    let mut calls = flow.callback::<u64>("calls");
    desk.shared.orders.lock().entry(desk.id.clone()).or_default().url.get_or_insert_with(|| calls.url());
    if flaw == Some(FlowFlaw::DoesWithoutSteps) {
        let step = format!("{}/beside", desk.id);
        desk.begin(&step);
        desk.seen.lock().push((step, desk.draw().to_string()));
    }
    desk.step(&flow, "notify").await?;
    let made: u64 = flow.spawn("part", &desk.id, &part_of(&desk.id)).result().await?;
    desk.seen.lock().push((format!("{}/make", part_of(&desk.id)), made.to_string()));
    let mut got = Vec::new();
    while got.len() < CALLS {
        let call = tokio::select! {
            call = calls.next() => call?,
            () = flow.sleep(Duration::from_millis(LIMIT)) => break,
        };
        got.push(call);
        // While it runs, the next call may come.
        desk.step(&flow, &format!("grant-{}", got.len())).await?;
    }
    Ok(got)
}

impl Workload for FlowExercise {
    type App = FlowApp;

    fn register(&self, host: &mut HostBuilder, life: &Life) -> FlowApp {
        let (life, shared, flaw) = (life.clone(), self.shared.clone(), self.flaw);
        let desk = move |id| Desk { life: life.clone(), shared: shared.clone(), id, seen: Mutex::default() };
        let of_parts = desk.clone();
        let keys = UrlKeys::new("k1", [7; 32]).expect("it is long enough");
        let flows = Flows::builder()
            .flow("order", 1, move |flow, id: String| order(desk(id), flaw, flow))
            .flow("part", 1, move |flow, id: String| part(of_parts(id), flow))
            .callbacks("https://broker.example/callbacks", keys);
        FlowApp { flows: flows.register(host).expect("it is the only interface") }
    }

    async fn client(self: Arc<Self>, client: Client<FlowApp>) {
        let mut number = 0;
        while !client.is_over() {
            client.sleep(client.random().up_to(Duration::from_secs(10))).await;
            if client.random().chance(0.15) {
                number += 1;
                self.start(&client, format!("{}-{number}", client.number())).await;
            } else {
                self.call(&client).await;
            }
        }
    }

    async fn finish(self: Arc<Self>, client: Client<FlowApp>) {
        // Every wait has a limit, and retries of steps have one of an hour.
        for _ in 0..200 {
            let ids: Vec<_> = self.shared.orders.lock().keys().cloned().collect();
            let mut are_over = true;
            for id in ids {
                for name in ["order", "part"] {
                    let Some(site) = client.owner_of(&format!("{name}/{id}")).await else { continue };
                    let Ok(Some(status)) = site.app().flows.get(name, &id).await else { continue };
                    are_over &= status.state.is_over();
                    // It ran in processes that died of something else.
                    let is_killed = |kind| matches!(kind, BlockedKind::StepKilled | BlockedKind::CodeKilled);
                    if matches!(&status.state, State::Blocked { why } if is_killed(why.kind())) {
                        let _resumed = site.app().flows.resume(name, &id).await;
                    }
                }
            }
            client.sleep(Duration::from_secs(60)).await;
            if are_over {
                return;
            }
        }
    }

    fn rests(&self, alarm: &AlarmRow) -> bool {
        // Held while steps run.
        &*alarm.id == "run"
    }

    fn end(&self, store: &StoreDump, history: &History) -> End {
        for (id, order) in &*self.shared.orders.lock() {
            check(store, history, id, order);
        }
        End::default()
    }
}

/// Holds what a flow has come to against what it was told.
fn check(store: &StoreDump, history: &History, id: &str, order: &Order) {
    let name = InstanceName { interface: "flow".into(), instance: format!("order/{id}").into() };
    let Some(status) = store.value(&name, "status").map(|status| Status::from_stored(status)) else {
        if order.is_started {
            history.violated(Invariant::Kept, format!("the flow {id} was acknowledged, and is not there"));
        }
        return;
    };
    // A short one is in the status, a longer one has a row of its own.
    let short = store.value(&name, "status").and_then(|status| serde_json::from_slice::<Value>(status).ok());
    let short = short.and_then(|status| serde_json::from_str(status["result"].as_str()?).ok());
    let long = || serde_json::from_slice::<Vec<u64>>(store.value(&name, "result/0000")?).ok();
    let got = short.or_else(long);
    let (Ok(Status { state: State::Done, .. }), Some(got)) = (&status, got) else {
        return history.violated(Invariant::Handled, format!("the flow {id} is {status:?}"));
    };
    // What comes twice under two IDs is told by its lowest digit.
    let different: BTreeSet<_> = got.iter().map(|call| call / 10).collect();
    if different.len() < got.len() {
        history.violated(Invariant::Once, format!("the flow {id} was given {got:?}"));
    }
    let sent: BTreeSet<_> = order.sent.iter().map(|call| call / 10).collect();
    if !different.is_subset(&sent) {
        history.violated(Invariant::Once, format!("the flow {id} was given {got:?}, of {sent:?}"));
    }
    let taken: BTreeSet<_> = order.taken.iter().map(|call| call / 10).collect();
    // It returns where its limit is over, so it has taken nothing after that.
    if got.len() < CALLS && !taken.is_subset(&different) {
        history.violated(Invariant::Kept, format!("the flow {id} took {taken:?}, and was given {got:?}"));
    }
}

impl FlowExercise {
    async fn start(&self, client: &Client<FlowApp>, id: String) {
        self.shared.orders.lock().insert(id.clone(), Order::default());
        // Several times, as callers do; whoever owns it.
        for _ in 0..client.random().below(3) + 1 {
            let is_astray = client.random().chance(0.3);
            let site = if is_astray { client.any().await } else { client.owner_of(&format!("order/{id}")).await };
            let Some(site) = site else { continue };
            match site.app().flows.start("order", &id, &id).await {
                Ok(_) => {
                    client.count("flow started");
                    self.shared.orders.lock().entry(id.clone()).or_default().is_started = true;
                    return;
                }
                Err(error) => refused(client, &id, &error),
            }
            client.sleep(Duration::from_secs(1)).await;
        }
    }

    async fn call(&self, client: &Client<FlowApp>) {
        let known: Vec<_> = {
            let orders = self.shared.orders.lock();
            let open = orders.iter().filter_map(|(id, order)| Some((id.clone(), order.url.clone()?)));
            open.collect()
        };
        // One of the last, or what is left is all over.
        let known = &known[known.len().saturating_sub(12)..];
        let Some((id, url)) = client.random().pick(known).cloned() else { return };
        let number = 10 * self.shared.values.fetch_add(1, Ordering::Relaxed);
        let twice = client.random().below(2) + 1;
        for time in 0..twice {
            let number = if self.flaw == Some(FlowFlaw::CallsTwice) { number + time } else { number };
            let is_astray = client.random().chance(0.3);
            let site = if is_astray { client.any().await } else { client.owner_of(&format!("order/{id}")).await };
            let Some(site) = site else { continue };
            self.shared.orders.lock().entry(id.clone()).or_default().sent.insert(number);
            let call = Call::new(Value::from(number).to_string()).id(number.to_string());
            match site.app().flows.deliver(&url, call).await {
                Ok(Delivered::Taken) => {
                    client.count("flow called");
                    self.shared.orders.lock().entry(id.clone()).or_default().taken.insert(number);
                }
                Ok(_) => client.count("flow called by post or again"),
                Err(FlowsError::Gone) => client.count("flow called too late"),
                Err(error) => refused(client, &id, &error),
            }
        }
    }
}

/// A refusal that may be tried again is what a fault looks like. There is to be no other.
fn refused(client: &Client<FlowApp>, id: &str, error: &FlowsError) {
    if !error.is_retryable() && !matches!(error, FlowsError::NotFound) {
        client.history().violated(Invariant::Handled, format!("{id}: {error}"));
    }
}
