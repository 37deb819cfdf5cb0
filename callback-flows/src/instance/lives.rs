//! The processes that a flow's steps ran in, as its alarm `run` knows them: a step that ends its process is not run for ever.
//!
//! The alarm is committed before any step starts that began in the same turn, and names the process. Whoever finds it, and another process
//! there, counts a death.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use stable_interfaces::Context;

use super::{FlowInstance, Loaded, TurnError};
use crate::blocked::{Blocked, BlockedKind};
use crate::status::MAX_WAITS;

/// The alarm that finds what was running when a process died, and flows that are blocked.
pub(crate) const RUNNING: &str = "run";
/// The time after which the alarm `run` fires.
const RUNNING_AFTER: Duration = Duration::from_secs(1);
/// The number of no process: the last one has left in good order.
pub(super) const LEFT: u64 = 0;
/// The number of processes that died while a step ran, after which its flow is blocked.
const MAX_DEATHS: u32 = 2;

/// The processes that steps ran in, as the alarm `run` knows them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Lives {
    /// The last process that steps ran in; [`LEFT`] if it has left in good order.
    pub(super) process: u64,
    /// The number of processes before that one that died while the same steps ran.
    died: u32,
    /// The steps that ran then.
    steps: Vec<String>,
}

impl Lives {
    /// Notes a process in which no step runs yet.
    pub(super) fn of(process: u64) -> Lives {
        Lives { process, died: 0, steps: Vec::new() }
    }
}

impl FlowInstance {
    /// Counts the processes that died while steps ran which are still to be run, and blocks the flow rather than let them end a
    /// third. `before` is what the last process has noted.
    pub(super) fn look_for_killers(&mut self, cx: &mut Context, before: &Lives) -> Result<(), TurnError> {
        let Loaded::Going(going) = &mut self.loaded else { return Ok(()) };
        let running = going.engine.running_steps();
        // Rebuilt in the same process, nothing has died.
        if running.is_empty() || before.process == self.registry.process {
            return Ok(());
        }
        let running: Vec<String> = running.iter().map(ToString::to_string).collect();
        let again: Vec<_> =
            running.iter().filter(|step| before.steps.contains(step)).map(|s| format!("`{s}`")).collect();
        let died = match before.process {
            LEFT => 0,
            _ if again.is_empty() => 1,
            _ => before.died + 1,
        };
        if died >= MAX_DEATHS {
            let what = if again.len() == 1 { "step" } else { "steps" };
            let message = format!("its {what} {} ran in {died} processes that died", again.join(", "));
            going.engine.block(Blocked::new(BlockedKind::StepKilled, message));
        }
        let steps = running.into_iter().take(MAX_WAITS).collect();
        self.set_running(cx, Lives { process: self.registry.process, died, steps })
    }

    /// Sets the alarm `run`. It is committed before any step starts that began in this turn.
    pub(super) fn set_running(&mut self, cx: &mut Context, lives: Lives) -> Result<(), TurnError> {
        let at = cx.now() + RUNNING_AFTER;
        cx.set_alarm(RUNNING, at, &lives)?;
        self.runs = Some(at);
        Ok(())
    }
}
