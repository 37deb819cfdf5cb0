//! Questions about flows that the routers have and programs do not: where two inputs differ, and which field an error is about.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use stable_interfaces::clock::{Clock, Random};
use stable_interfaces::{KeyRange, RequestError};

use super::journals::{page_key, pages_of};
use super::{Flows, FlowsBuilder, FlowsError, identity, unavailable};
use crate::hash::hash_of;
use crate::instance::TurnError;
use crate::journal::Event;

/// The time that a flow's owner has to take its start, until the start is answered without that.
const TAKEN_WITHIN: Duration = Duration::from_secs(2);
/// The time after which is looked first, then twice that, and so on.
const FIRST_LOOK: Duration = Duration::from_millis(20);

/// The URL of the router of the host of this name, if it is known.
pub(super) type Peers = dyn Fn(&str) -> Option<String> + Send + Sync;

impl FlowsBuilder {
    /// Says where [`Flows::router`] of another host is reached by clients, such as `https://host-2.example/flows`, by the host's name. Who streams
    /// events, or waits by `GET`, is then sent to the flow's owner (307), and hears of what happens at once. Default: this host asks
    /// the owner for them, over its transport; where it has none, it looks at the store once a second.
    pub fn peers(mut self, url: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> FlowsBuilder {
        self.registry.peers = Some(Arc::new(url));
        self
    }
}

impl Flows {
    /// Waits for a little while until the owner of a flow has taken its start: of two that are posted at once, it takes one. Where it does not
    /// come, the first that is stored is the one that it will take.
    pub(crate) async fn taken(&self, name: &str, id: &str, input: &[u8]) -> Result<(), FlowsError> {
        let flow = identity(name, id)?;
        let clock = self.interface.clock().ok_or_else(|| unavailable(RequestError::NotStarted::<TurnError>))?;
        let (began, hash, mut pause) = (clock.elapsed(), hash_of(input), FIRST_LOOK);
        loop {
            match self.status(&flow).await {
                Ok(Some(status)) if status.input == hash => return Ok(()),
                Ok(Some(_)) => return Err(FlowsError::Conflict),
                Ok(None) | Err(_) if clock.elapsed().saturating_sub(began) + pause > TAKEN_WITHIN => {
                    return self.is_first(&flow, hash).await;
                }
                Ok(None) | Err(_) => clock.sleep(pause).await,
            }
            pause *= 2;
        }
    }

    /// The first field in which the input that a flow was started with, or will be, differs from another one: empty if that is not known any
    /// more, `None` if both are the same JSON.
    pub(crate) async fn difference(&self, name: &str, id: &str, input: &[u8]) -> Result<Option<String>, FlowsError> {
        let flow = identity(name, id)?;
        let not_known = Ok(Some(String::new()));
        let Some(status) = self.status(&flow).await? else {
            return Ok(self
                .stored_start(&flow)
                .await?
                .map_or(Some(String::new()), |stored| difference(&stored, input)));
        };
        // The first page of its journal has the start.
        let rows = self.stored(&flow, KeyRange::prefix(&page_key(0))).await?;
        let result = self.result_of(&flow, &status).await?;
        let Ok((pages, _)) = pages_of(rows, result.as_ref()) else { return not_known };
        let mut entries = pages.into_iter().flat_map(|page| page.entries);
        let started = entries.find_map(|entry| match entry.event {
            Event::Start { input, .. } if hash_of(&input) == status.input => Some(input),
            _ => None,
        });
        Ok(started.map_or(Some(String::new()), |started| difference(&started, input)))
    }

    /// The field of an input that an error is about.
    pub(crate) fn field_of(&self, name: &str, input: &[u8], error: &serde_json::Error) -> String {
        let versions = self.registry.flows.get(name);
        let Some((_, newest)) = versions.and_then(|versions| versions.last_key_value()) else { return String::new() };
        let within = (newest.locate)(input);
        // The path to one that is missing is that of the object around it.
        let text = error.to_string();
        let missing = text.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        match (&*within, missing) {
            (".", missing) => missing.unwrap_or_default().to_owned(),
            (within, Some(missing)) => format!("{within}.{missing}"),
            (within, None) => within.to_owned(),
        }
    }

    pub(crate) fn clock(&self) -> Option<Arc<dyn Clock>> {
        self.interface.clock()
    }

    pub(crate) fn random(&self) -> Option<Arc<dyn Random>> {
        self.interface.random()
    }

    /// Completes when the host begins to leave.
    pub(crate) fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        self.interface.stopping()
    }

    /// The largest body that a flow may be given, in bytes.
    pub(crate) fn largest_value(&self) -> usize {
        self.registry.limits.value_bytes
    }

    /// Tells whether there is a flow of that name.
    pub(crate) fn is_registered(&self, name: &str) -> bool {
        self.registry.flows.contains_key(name)
    }

    /// The version that new flows of a name begin with.
    pub(crate) fn newest(&self, name: &str) -> u32 {
        self.registry.newest(name).unwrap_or_default()
    }

    /// The URL of the router of the host that owns a flow; `None` where that is this host, or is not known.
    pub(crate) fn peer(&self, name: &str, id: &str) -> Option<String> {
        let peers = self.registry.peers.as_ref()?;
        peers(&self.interface.holder(&identity(name, id).ok()?)?)
    }
}

/// The first field in which two texts differ as JSON; empty if one is none, `None` if they are the same.
fn difference(one: &[u8], other: &[u8]) -> Option<String> {
    match (serde_json::from_slice(one), serde_json::from_slice(other)) {
        (Ok(one), Ok(other)) => first_difference(&one, &other),
        _ => Some(String::new()),
    }
}

/// The path to the first place at which two values differ; `None` if they are the same.
fn first_difference(one: &Value, other: &Value) -> Option<String> {
    let within = |key: String, rest: String| match rest.chars().next() {
        None | Some('[') => key + &*rest,
        Some(_) => format!("{key}.{rest}"),
    };
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let in_one = one.iter().map(|(key, value)| (key, Some(value), other.get(key)));
            let in_other =
                other.iter().filter(|(key, _)| !one.contains_key(*key)).map(|(key, value)| (key, None, Some(value)));
            in_one.chain(in_other).find_map(|(key, one, other)| match (one, other) {
                (Some(one), Some(other)) => Some(within(key.clone(), first_difference(one, other)?)),
                _ => Some(key.clone()),
            })
        }
        (Value::Array(one), Value::Array(other)) => {
            let pairs = one.iter().zip(other).enumerate();
            let mut differing =
                pairs.filter_map(|(at, (one, other))| Some(within(format!("[{at}]"), first_difference(one, other)?)));
            let shorter = one.len().min(other.len());
            differing.next().or_else(|| (one.len() != other.len()).then(|| format!("[{shorter}]")))
        }
        (one, other) => (one != other).then(String::new),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_difference_of_two_inputs_is_named_by_its_path() {
        for (one, other, path) in [
            (json!({ "a": 1, "b": [1, { "c": 2 }] }), json!({ "b": [1, { "c": 2 }], "a": 1 }), None),
            (json!({ "a": 1 }), json!({ "a": 2 }), Some("a")),
            (json!({ "a": 1 }), json!({}), Some("a")),
            (json!({}), json!({ "a": null }), Some("a")),
            (json!({ "a": { "b": [1, 2] } }), json!({ "a": { "b": [1, 3] } }), Some("a.b[1]")),
            (json!({ "a": [{ "b": 1 }] }), json!({ "a": [{ "b": "1" }] }), Some("a[0].b")),
            (json!([1]), json!([1, 2]), Some("[1]")),
            (json!([[1]]), json!([[2]]), Some("[0][0]")),
            (json!(1), json!(2), Some("")),
            (json!({ "a": 1 }), json!([]), Some("")),
        ] {
            assert_eq!(first_difference(&one, &other).as_deref(), path, "{one} and {other}");
        }
    }
}
