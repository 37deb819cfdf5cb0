//! News of a flow: its events, as they are stored, and the word of each commit for whoever listens on this host.

use std::sync::Arc;

use serde_json::Value;
use stable_interfaces::{Context, Handle};

use super::{FlowInstance, Going, Loaded, TurnError};
use crate::events::{self, FlowEvent, event_key};
use crate::flows::parts_of;
use crate::hub::Hub;
use crate::metrics;
use crate::status::{State, Status};

/// Asks for the status as it is in memory.
pub(crate) struct Look;

/// All that a flow has said so far that its status shows.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// The number of its events.
    pub(super) events: u64,
    pub(super) progress: Option<Value>,
    pub(super) resource: Option<String>,
}

impl Said {
    pub(super) const NOTHING: Said = Said { events: 0, progress: None, resource: None };

    pub(super) fn of(status: &Status) -> Said {
        Said { events: status.events, progress: status.progress.clone(), resource: status.resource.clone() }
    }
}

/// A flow's part in the gauge of unread messages.
#[derive(Debug, Default)]
pub(super) struct Unread(usize);

impl Unread {
    fn set(&mut self, messages: usize) {
        metrics::unread(self.0, messages);
        self.0 = messages;
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl FlowInstance {
    /// The name of the flow's code.
    pub(super) fn name(&self) -> Arc<str> {
        parts_of(&self.id).0.into()
    }
}

impl Going {
    /// Stores what the code has emitted.
    pub(super) fn store_events(&mut self, flow: &Arc<str>, cx: &mut Context) -> Result<Vec<FlowEvent>, TurnError> {
        let mut stored = Vec::new();
        for event in self.engine.take_emitted() {
            let said = &mut self.cold.made().said;
            said.events += 1;
            let sequence = said.events;
            match &*event.name {
                events::PROGRESS => said.progress = serde_json::from_slice(&event.value).ok(),
                events::RESOURCE => said.resource = serde_json::from_slice(&event.value).ok(),
                _ => {}
            }
            let event = FlowEvent::new(flow.clone(), sequence, event.at, event.name, events::raw(&event.value));
            cx.put_bytes(&event_key(sequence), event.encode().map_err(TurnError::Status)?)?;
            stored.push(event);
        }
        self.unread.set(self.engine.unread());
        Ok(stored)
    }
}

/// The word that the status of a flow has become another one, for those who listen.
pub(super) struct News {
    flow: Arc<str>,
    hub: Arc<Hub>,
    status: Status,
    events: Vec<FlowEvent>,
    /// The flow had no status before.
    is_first: bool,
    was_over: bool,
    /// The flow is in another state than before.
    is_other_state: bool,
    /// The end of the flow, as it is counted, and the number of its journal's entries.
    pub(super) finished: Option<(&'static str, u64)>,
}

impl News {
    /// The word that `status` has come after one of the state `before`, with these events.
    pub(super) fn new(
        flow: &Arc<str>,
        hub: &Arc<Hub>,
        before: Option<State>,
        status: Status,
        events: Vec<FlowEvent>,
    ) -> News {
        News {
            flow: flow.clone(),
            hub: hub.clone(),
            is_first: before.is_none(),
            was_over: before.as_ref().is_some_and(State::is_over),
            is_other_state: before.is_none_or(|before| before != status.state),
            status,
            events,
            finished: None,
        }
    }

    /// Tells whether nothing is lost if the news is not told: a flow that is built anew tells its status again.
    pub(super) fn may_be_repeated(&self) -> bool {
        !self.is_other_state && self.events.is_empty() && self.finished.is_none()
    }

    /// Tells the news when what the turn has recorded is durable.
    pub(super) fn tell_after(self, cx: &mut Context) {
        cx.after_commit(move || self.tell());
    }

    /// Tells the news. All of it is durable.
    pub(super) fn tell(self) {
        let News { flow, hub, status, mut events, is_first, was_over, is_other_state, finished } = self;
        if let Some((outcome, entries)) = finished {
            metrics::finished(parts_of(&flow).0, outcome, entries);
        }
        let of_host =
            |name: &str, value| FlowEvent::new(flow.clone(), status.events, status.changed_at, name.into(), value);
        if is_first {
            metrics::started(parts_of(&flow).0);
            hub.tell_all(|| of_host(events::STARTED, events::json(&())));
        }
        if is_other_state && let State::Blocked { why } = &status.state {
            metrics::blocked(parts_of(&flow).0);
            hub.tell_all(|| of_host(events::BLOCKED, events::json(why)));
        }
        if !hub.is_heard() {
            return;
        }
        let has_listeners = hub.has_listeners_to_one();
        if !was_over && let Some(end) = FlowEvent::end(flow.clone(), &status) {
            if has_listeners {
                events.push(end.clone());
            }
            hub.tell_all(|| end);
        }
        if has_listeners {
            hub.tell(&flow, &Arc::new(status), events);
        }
    }
}

impl Handle<Look> for FlowInstance {
    type Reply = Option<Status>;

    async fn handle(&mut self, cx: &mut Context, _: Look) -> Result<Option<Status>, TurnError> {
        Ok(match &self.loaded {
            Loaded::Absent => None,
            Loaded::Over(status) => Some(Status::clone(status)),
            Loaded::Sealed(sealed) => Some(sealed.status.clone()),
            Loaded::Going(going) => {
                let now = going.status_at(cx.now());
                // Attempts in memory are no change of the flow.
                let stored = going.stored.as_ref().map(|stored| (stored.changed_at, stored.revision));
                let (changed_at, revision) = stored.unwrap_or((now.changed_at, now.revision));
                Some(Status { changed_at, revision, ..now })
            }
        })
    }
}
