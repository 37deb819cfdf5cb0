//! The line of the log that says, when a host starts, how its flows are.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use stable_interfaces::Alarm;

use super::{Flows, FlowsError, parts_of, unavailable};
use crate::instance::{NEXT, RUNNING};
use crate::status::State;

/// The number of alarms that are read at once, as many as the store is asked for: what it brings beyond that is read again.
const PAGE: usize = 4_096;
/// The number of statuses that are read at once.
const STATUSES: usize = 64;
/// The number of flows after which the rest is not counted.
const MOST: usize = 1_000_000;

/// The meta of each flow's alarm `next`: as much of the flow as a list of all can tell without a look at each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The version of the flow's code.
    pub(crate) version: u32,
    /// The flow has ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_over: bool,
}

/// Flows by how they are.
#[derive(Debug, Default)]
struct Census {
    waiting: usize,
    running: usize,
    blocked: usize,
    /// The versions that flows are on and that are not registered: `name@version`.
    missing: BTreeSet<String>,
}

impl Flows {
    /// Says how the flows that this host owns are.
    pub(super) async fn take_census(self) {
        let began = self.interface.clock().map(|clock| clock.elapsed());
        match self.count().await {
            Ok(Census { waiting, running, blocked, missing }) => {
                let missing = missing.into_iter().collect::<Vec<_>>().join(", ");
                let took = self.interface.clock().zip(began).map(|(clock, began)| clock.elapsed() - began);
                let took = took.unwrap_or(Duration::ZERO);
                if missing.is_empty() {
                    tracing::info!(waiting, running, blocked, ?took, "flows of this host");
                } else {
                    tracing::warn!(
                        waiting,
                        running,
                        blocked,
                        missing,
                        ?took,
                        "flows of this host; register the versions that are missing"
                    );
                }
            }
            Err(error) => tracing::warn!(%error, "the flows of this host could not be counted"),
        }
    }

    async fn count(&self) -> Result<Census, FlowsError> {
        let (mut census, mut after) = (Census::default(), None);
        for _ in 0..MOST / PAGE {
            let page = self.interface.own_alarms(after.as_ref(), PAGE).await.map_err(unavailable)?;
            for alarm in page.iter().filter(|alarm| alarm.id() == NEXT) {
                let Ok(kept) = alarm.meta::<Kept>() else { continue };
                if kept.is_over {
                    continue;
                }
                census.waiting += 1;
                let (name, _) = parts_of(alarm.instance());
                if self.registry.code(name, kept.version).is_none() {
                    census.missing.insert(format!("{name}@{}", kept.version));
                }
            }
            // They run steps, or are blocked.
            let running: Vec<_> = page.iter().filter(|alarm| alarm.id() == RUNNING).map(Alarm::instance).collect();
            for some in running.chunks(STATUSES) {
                for status in try_join_all(some.iter().map(|flow| self.status(flow))).await? {
                    match status.map(|status| status.state) {
                        Some(State::Going) => census.running += 1,
                        Some(State::Blocked { .. }) => census.blocked += 1,
                        _ => {}
                    }
                }
            }
            let is_last = page.len() < PAGE;
            after = page.into_iter().last();
            if is_last {
                break;
            }
        }
        census.waiting = census.waiting.saturating_sub(census.running + census.blocked);
        Ok(census)
    }
}
