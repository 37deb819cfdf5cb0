//! A flow whose code is not run: this program cannot read its journal, because a newer one has written it or because it is damaged; or its
//! code has ended processes.
//!
//! Its journal is left as it is, to the last byte. It is shown as blocked; calls for it are refused for now, posted ones stay in the inbox,
//! and its alarms are held, all for a host that can read it, or until somebody resumes it.

use bytes::Bytes;
use serde_json::{Map, Value};
use stable_interfaces::Context;

use super::lives::{LEFT, Lives};
use super::telling::News;
use super::{FlowInstance, Loaded, TurnError};
use crate::blocked::{Blocked, BlockedKind};
use crate::journal::Unreadable;
use crate::status::{STATUS_KEY, State, Status};

pub(super) struct Sealed {
    pub(super) status: Status,
    why: Seal,
}

/// The reason why a flow's code is not run.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(crate) enum Seal {
    #[error("{0}")]
    Unreadable(Unreadable),
    #[error("its code ran in {0} processes that died")]
    Killed(u64),
}

impl Sealed {
    /// The answer to what would have to be written into its journal.
    pub(super) fn refusal(&self) -> TurnError {
        TurnError::Sealed(self.why)
    }
}

impl FlowInstance {
    /// Leaves the flow as it is. `row` is its status as it is stored, and `status` as it was understood.
    pub(super) fn seal(
        &mut self,
        cx: &mut Context,
        row: &Bytes,
        mut status: Status,
        why: Seal,
    ) -> Result<(), TurnError> {
        let kind = match why {
            Seal::Unreadable(Unreadable::Newer(_)) => BlockedKind::UnknownVersion,
            Seal::Unreadable(Unreadable::Corrupt) => BlockedKind::Unreadable,
            Seal::Killed(_) => BlockedKind::CodeKilled,
        };
        let state = State::Blocked { why: Blocked::new(kind, why.to_string()) };
        if status.state != state {
            let before = status.state.clone();
            (status.state, status.changed_at) = (state, cx.now());
            status.revision += 1;
            // Whatever else a newer program has put into that row stays there.
            let mut fields: Map<String, Value> = serde_json::from_slice(row).map_err(TurnError::Status)?;
            let Value::Object(known) = serde_json::to_value(&status).map_err(TurnError::Status)? else {
                unreachable!("a status is an object");
            };
            fields.extend(known);
            cx.put(STATUS_KEY, &fields)?;
            let hub = &self.registry.hub;
            News::new(&self.id, hub, Some(before), status.clone(), Vec::new()).tell_after(cx);
        }
        if self.runs.is_none() {
            // The next host looks at once.
            self.set_running(cx, Lives::of(LEFT))?;
        }
        self.loaded = Loaded::Sealed(Box::new(Sealed { status, why }));
        Ok(())
    }
}
