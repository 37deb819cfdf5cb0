//! A start that knows whether its owner has taken it, for callers that are told once.

use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::{Flows, FlowsError, Started, unavailable};
use crate::instance::{TurnError, hash_of};
use crate::journal::Event;

/// The longest that a start waits for the flow's owner.
const SETTLES_WITHIN: Duration = Duration::from_secs(2);
/// The time between two looks at the store meanwhile.
const LOOKS_EVERY: Duration = Duration::from_millis(500);

impl Flows {
    /// As [`start`](Self::start), and where another host is to begin the flow it waits until that has been seen, two seconds at most: so of
    /// two inputs that come under one ID at once, one is refused.
    pub(crate) async fn start_and_settle(&self, name: &str, id: &str, input: &RawValue) -> Result<Started, FlowsError> {
        let started = self.start(name, id, input).await?;
        if started != Started::Posted {
            return Ok(started);
        }
        let not_started = || unavailable(stable_interfaces::RequestError::NotStarted::<TurnError>);
        let clock = self.interface.clock().ok_or_else(not_started)?;
        let mut waited = Duration::ZERO;
        while waited < SETTLES_WITHIN {
            clock.sleep(LOOKS_EVERY).await;
            waited += LOOKS_EVERY;
            // What cannot be read now may be read in a moment, and the start is durable whatever comes of this.
            if let Ok(Some(status)) = self.get(name, id).await {
                let is_ours = status.input == hash_of(input.get().as_bytes());
                return if is_ours { Ok(Started::Posted) } else { Err(FlowsError::Conflict) };
            }
        }
        Ok(Started::Posted)
    }

    /// The input that a flow was started with, if it is kept.
    pub(crate) async fn input_of(&self, name: &str, id: &str) -> Option<Bytes> {
        let journal = self.journal(name, id).await.ok()?;
        let mut events = journal.pages().iter().flat_map(|page| &page.entries).map(|entry| &entry.event);
        events.find_map(|event| match event {
            Event::Start { input, .. } => Some(input.clone()),
            _ => None,
        })
    }
}
