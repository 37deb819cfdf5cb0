//! Calls of scripts, each sent to the server that has its keys.
//!
//! Calls for one server go out together, and each is answered for itself, so one server that is gone makes its own calls fail and
//! no others. A call is sent again where its first try surely did nothing: the server did not have the script, or said that
//! the keys are elsewhere. Where a connection broke, only calls that may be repeated are: for the others the outcome is unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use redis::{Pipeline, Value};

use super::failure::Failure;
use super::node::Node;
use super::script::Call;
use super::target::{Target, split};

/// The number of times a call may be sent elsewhere: a redirection, another after the map was stale, a missing script, and one to spare.
const TRIES: usize = 4;
/// The age that the map of the cluster may have when a call has failed for want of a server.
const MAP_AGE: Duration = Duration::from_millis(100);
/// The time that one server has to tell the map.
const MAP_TIMEOUT: Duration = Duration::from_secs(1);

/// Connections to all servers of a store; each has one. Made without contacting any.
#[derive(Debug)]
pub(super) struct Link {
    target: Arc<Target>,
    map: Mutex<Map>,
    /// The time at which the map was last asked for, and why no server told it. Held while asking, so that one caller asks for all.
    refreshed: tokio::sync::Mutex<(Option<Duration>, Option<Failure>)>,
}

#[derive(Debug, Default)]
struct Map {
    nodes: BTreeMap<String, Arc<Node>>,
    /// The ranges of slots of a cluster by their first, with their last and the address of their master.
    slots: BTreeMap<u16, (u16, String)>,
}

/// The next way of a call.
#[derive(Debug, Clone)]
struct Route {
    index: usize,
    /// Somewhere else than the map says.
    redirected: Option<String>,
    /// The keys are on their way there: the server takes them if asked so.
    asking: bool,
    /// The server lacks the script.
    load: bool,
    /// An earlier try may have been done.
    was_unknown: bool,
}

/// The longest that a server is asked to wait for replicas: a day, in milliseconds. It takes no number of any size.
const MAX_WAIT_MILLIS: u128 = 86_400_000;

/// A call's route, the address it went to, and its answer.
type Sent = (Route, String, Result<Value, Failure>);

impl Link {
    pub(super) fn new(target: Arc<Target>) -> Link {
        Link { target, map: Mutex::default(), refreshed: tokio::sync::Mutex::default() }
    }

    /// Runs each call, and answers in the same order.
    pub(super) async fn run(&self, calls: &[Call]) -> Vec<Result<Value, Failure>> {
        let deadline = self.target.clock.elapsed().saturating_add(self.target.timeout);
        let mut answers: Vec<Option<Result<Value, Failure>>> = calls.iter().map(|_| None).collect();
        let mut routes: Vec<Route> = (0..calls.len())
            .map(|index| Route { index, redirected: None, asking: false, load: false, was_unknown: false })
            .collect();
        for tries_left in (0..TRIES).rev() {
            let mut again = Vec::new();
            for (route, address, answer) in self.send(calls, routes, deadline).await {
                let next = match &answer {
                    Err(failure) if tries_left > 0 => self.next_route(&route, &address, calls, failure, deadline).await,
                    _ => None,
                };
                match next {
                    Some(next) => again.push(next),
                    None => {
                        answers[route.index] = Some(match answer {
                            Err(Failure::NotSent(text)) if route.was_unknown => Err(Failure::Unknown(text)),
                            answer => answer,
                        });
                    }
                }
            }
            if again.is_empty() {
                break;
            }
            routes = again;
        }
        let unanswered = || Err(Failure::NotSent("no server takes the call".to_owned()));
        answers.into_iter().map(|answer| answer.unwrap_or_else(unanswered)).collect()
    }

    /// The servers that were named, and in a cluster those it has named since.
    pub(super) fn addresses(&self) -> BTreeSet<String> {
        self.map.lock().nodes.keys().cloned().chain(self.target.addresses()).collect()
    }

    /// Runs one call.
    pub(super) async fn one(&self, call: Call) -> Result<Value, Failure> {
        let mut answers = self.run(std::slice::from_ref(&call)).await;
        answers.pop().unwrap_or_else(|| Err(Failure::NotSent("no call was made".to_owned())))
    }

    /// Sends each call to its server; returns with each where it went and what came of it.
    async fn send(&self, calls: &[Call], routes: Vec<Route>, deadline: Duration) -> Vec<Sent> {
        let mut by_node: BTreeMap<String, (Arc<Node>, Vec<Route>)> = BTreeMap::new();
        let mut nowhere = Vec::new();
        let mut refreshed = None;
        for route in routes {
            let slot = calls[route.index].slot;
            let mut node = self.node_for(&route, slot);
            if node.is_none() && refreshed.is_none() {
                let nobody =
                    || Failure::NotSent("no server of the cluster that can be reached has the slot".to_owned());
                refreshed = Some(self.refresh(deadline).await.unwrap_or_else(nobody));
                node = self.node_for(&route, slot);
            }
            match node {
                Some(node) => {
                    let (_, routes) = by_node.entry(node.address().to_owned()).or_insert_with(|| (node, Vec::new()));
                    routes.push(route);
                }
                None => nowhere.extend(refreshed.clone().map(|failure| (route, String::new(), Err(failure)))),
            }
        }
        let exchanges = by_node.into_values().map(|(node, routes)| self.exchange(node, calls, routes, deadline));
        join_all(exchanges).await.into_iter().flatten().chain(nowhere).collect()
    }

    /// One round trip to one server.
    async fn exchange(&self, node: Arc<Node>, calls: &[Call], routes: Vec<Route>, deadline: Duration) -> Vec<Sent> {
        let mut pipeline = Pipeline::new();
        let mut loaded = BTreeSet::new();
        let mut places = Vec::with_capacity(routes.len());
        for route in &routes {
            let call = &calls[route.index];
            if route.load && loaded.insert(&call.script.sha1) {
                pipeline.cmd("SCRIPT").arg("LOAD").arg(&call.script.source);
            }
            if route.asking {
                pipeline.cmd("ASKING");
            }
            places.push(pipeline.len());
            pipeline.add_command(call.command.clone());
        }
        let replicas = self.target.replicas;
        if replicas > 0 {
            // Less than the deadline, so that an answer "too few" comes back as such: servers look at it ten times a second.
            let left = deadline.saturating_sub(self.target.clock.elapsed()).mul_f32(0.5);
            let millis = left.as_millis().clamp(1, MAX_WAIT_MILLIS);
            pipeline.cmd("WAIT").arg(replicas).arg(millis.to_string());
        }
        let address = node.address().to_owned();
        let mut values = match node.exchange(&pipeline, deadline).await {
            Ok(values) => values,
            Err(failure) => {
                return routes.into_iter().map(|route| (route, address.clone(), Err(failure.clone()))).collect();
            }
        };
        let has_replicas = match values.last() {
            _ if replicas == 0 => true,
            Some(Value::Int(reached)) => *reached >= i64::from(replicas),
            _ => false,
        };
        let answer = |place: usize| match std::mem::take(&mut values[place]) {
            Value::ServerError(error) => Err(Failure::Refused(error)),
            _ if !has_replicas => Err(Failure::Unknown(format!("fewer than {replicas} replicas have the write"))),
            value => Ok(value),
        };
        let answers: Vec<_> = places.into_iter().map(answer).collect();
        routes.into_iter().zip(answers).map(|(route, answer)| (route, address.clone(), answer)).collect()
    }

    /// Finds the next way of a call that surely did nothing.
    async fn next_route(
        &self,
        route: &Route,
        address: &str,
        calls: &[Call],
        failure: &Failure,
        deadline: Duration,
    ) -> Option<Route> {
        let slot = calls[route.index].slot;
        match failure {
            Failure::Refused(error) if error.code() == "NOSCRIPT" && !route.load => {
                Some(Route { load: true, ..route.clone() })
            }
            Failure::Refused(error) if self.target.is_cluster && matches!(error.code(), "MOVED" | "ASK") => {
                let named = error.details().and_then(|details| details.split_whitespace().last())?;
                let to = absolute(named, address);
                let asking = error.code() == "ASK";
                if !asking {
                    self.map.lock().moved(slot, to.clone());
                    self.refreshed.lock().await.0 = None;
                }
                Some(Route { redirected: Some(to), asking, ..route.clone() })
            }
            // Its slots may have a new master.
            Failure::Unknown(_) => {
                self.refresh(deadline).await;
                let again = calls[route.index].is_repeatable && !route.was_unknown;
                again.then(|| Route { redirected: None, asking: false, was_unknown: true, ..route.clone() })
            }
            Failure::NotSent(_) if self.target.is_cluster => {
                self.refresh(deadline).await;
                let moved = self.map.lock().address(slot).is_some_and(|now_at| now_at != address);
                moved.then(|| Route { redirected: None, asking: false, ..route.clone() })
            }
            Failure::Refused(error) if matches!(error.code(), "CLUSTERDOWN" | "READONLY") => {
                self.refresh(deadline).await;
                None
            }
            _ => None,
        }
    }

    fn node_for(&self, route: &Route, slot: u16) -> Option<Arc<Node>> {
        let mut map = self.map.lock();
        let address = match &route.redirected {
            Some(address) => address.clone(),
            None if self.target.is_cluster => map.address(slot)?,
            None => self.target.addresses().next()?,
        };
        map.node(&address, &self.target)
    }

    /// Learns which server has which slot, from the first that answers. Returns why none did.
    async fn refresh(&self, deadline: Duration) -> Option<Failure> {
        if !self.target.is_cluster {
            return None;
        }
        let mut refreshed = self.refreshed.lock().await;
        let clock = &self.target.clock;
        if refreshed.0.is_some_and(|at| clock.elapsed().saturating_sub(at) < MAP_AGE) {
            return refreshed.1.clone();
        }
        let known = self.addresses();
        let mut question = Pipeline::new();
        question.cmd("CLUSTER").arg("SLOTS");
        let mut failed = None;
        for address in known {
            let Some(node) = self.map.lock().node(&address, &self.target) else { continue };
            let limit = deadline.min(clock.elapsed() + MAP_TIMEOUT);
            match node.exchange(&question, limit).await.and_then(|values| slots(values.into_iter().next(), &address)) {
                Ok(slots) => {
                    let mut map = self.map.lock();
                    let masters: BTreeSet<&String> = slots.values().map(|(_, address)| address).collect();
                    map.nodes.retain(|address, _| masters.contains(address));
                    map.slots = slots;
                    failed = None;
                    break;
                }
                Err(failure) => failed = Some(failure),
            }
        }
        *refreshed = (Some(clock.elapsed()), failed.clone());
        failed
    }
}

impl Map {
    fn address(&self, slot: u16) -> Option<String> {
        let (_, (last, address)) = self.slots.range(..=slot).next_back()?;
        (*last >= slot).then(|| address.clone())
    }

    fn node(&mut self, address: &str, target: &Arc<Target>) -> Option<Arc<Node>> {
        if let Some(node) = self.nodes.get(address) {
            return Some(node.clone());
        }
        let client = target.client(address).ok()?;
        let node = Arc::new(Node::new(address.to_owned(), client, target.clone()));
        self.nodes.insert(address.to_owned(), node.clone());
        Some(node)
    }

    /// One slot has another master than the rest of its range.
    fn moved(&mut self, slot: u16, to: String) {
        if let Some((&first, _)) = self.slots.range(..=slot).next_back()
            && let Some((last, address)) = self.slots.remove(&first)
        {
            if first < slot {
                self.slots.insert(first, (last.min(slot - 1), address.clone()));
            }
            if slot < last {
                self.slots.insert(slot + 1, (last, address));
            }
        }
        self.slots.insert(slot, (slot, to));
    }
}

/// The answer to `CLUSTER SLOTS`: first slot, last slot, master (host, port, ..), replicas.
fn slots(answer: Option<Value>, asked: &str) -> Result<BTreeMap<u16, (u16, String)>, Failure> {
    let range = |range: &Value| {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = parts.as_slice() else { return None };
        let [host, Value::Int(port), ..] = master.as_slice() else { return None };
        let host = match host {
            Value::BulkString(host) => std::str::from_utf8(host).ok()?,
            Value::SimpleString(host) => host,
            _ => "",
        };
        let address = absolute(&format!("{host}:{port}"), asked);
        Some((u16::try_from(*first).ok()?, (u16::try_from(*last).ok()?, address)))
    };
    match answer {
        Some(Value::ServerError(error)) => Err(Failure::Refused(error)),
        Some(Value::Array(ranges)) => {
            let slots = ranges.iter().map(range).collect::<Option<_>>();
            slots.ok_or_else(|| Failure::unexpected(&ranges))
        }
        other => Err(Failure::unexpected(&other)),
    }
}

/// An address as a server names it; without a host it means its own.
fn absolute(named: &str, by: &str) -> String {
    match (split(named), split(by)) {
        (Some(("" | "?", port)), Some((host, _))) => format!("{host}:{port}"),
        _ => named.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn the_map_of_a_cluster_is_read_and_names_no_host_as_the_one_that_was_asked() {
        let range = |first, last, host, port| {
            let master = Value::Array(vec![text(host), Value::Int(port), text("id")]);
            Value::Array(vec![Value::Int(first), Value::Int(last), master])
        };
        let answer = Value::Array(vec![range(0, 8_191, "10.0.0.1", 7_000), range(8_192, 16_383, "", 7_001)]);
        let mut map = Map { slots: slots(Some(answer), "db:6379").unwrap(), ..Map::default() };
        assert_eq!(map.address(8_191).unwrap(), "10.0.0.1:7000");
        assert_eq!(map.address(8_192).unwrap(), "db:7001");
        map.moved(100, "10.0.0.9:1".into());
        assert_eq!(
            [99, 100, 101].map(|slot| map.address(slot).unwrap()),
            ["10.0.0.1:7000", "10.0.0.9:1", "10.0.0.1:7000"]
        );
        map.moved(0, "10.0.0.9:1".into());
        map.moved(16_383, "10.0.0.9:1".into());
        assert_eq!(
            [0, 1, 16_382, 16_383].map(|slot| map.address(slot).unwrap()).join(" "),
            "10.0.0.9:1 10.0.0.1:7000 db:7001 10.0.0.9:1"
        );
        assert!(slots(Some(Value::Array(vec![Value::Int(1)])), "db:6379").is_err());
    }

    #[test]
    fn a_slot_that_no_server_has_is_nowhere() {
        let map =
            Map { slots: BTreeMap::from([(5, (9, "a:1".to_owned())), (20, (30, "b:1".to_owned()))]), ..Map::default() };
        assert_eq!([4, 10, 19, 31].map(|slot| map.address(slot)), [None, None, None, None]);
    }
}
