//! The values that a machine lets go, kept until its slot's lock is free.
//!
//! States, replies, errors and wakers are the application's: none of them is dropped, woken or shown under a lock.

use std::collections::VecDeque;

use super::cold::Cold;
use super::{Next, State};
use crate::commit::gate::Gate;
use crate::connection::{AnyLink, Wakers};
use crate::instance::answer::Refusal;
use crate::instance::recorded::{Output, Recorded};
use crate::sync::Arc;
use crate::tasks::TaskHandle;

/// The remains of an incarnation that ended: commits under way, and tasks that have been cancelled.
pub(crate) struct Ended {
    pub(super) gate: Option<Arc<Gate>>,
    pub(super) tasks: Vec<TaskHandle>,
}

impl Ended {
    pub(crate) async fn wait(self) {
        for task in self.tasks {
            task.ended().await;
        }
        if let Some(gate) = self.gate {
            gate.wait_settled().await;
        }
    }
}

/// The values that a machine lets go: to be dropped, woken and told when no lock is held, because that runs the application's code.
pub(crate) struct Left<S, J> {
    pub(crate) state: State<S>,
    /// Messages whose time is over.
    pub(crate) late: VecDeque<J>,
    pub(crate) refused: Vec<(J, Refusal)>,
    /// The effects of a handler that do not happen.
    pub(crate) recorded: Recorded,
    /// The outputs of a handler, with what is left of it.
    pub(crate) outputs: Vec<Output>,
    /// Connections that the instance has let go, with those who wait on them.
    pub(crate) links: Vec<(Arc<dyn AnyLink>, Wakers)>,
    /// The rest of a machine that was abandoned, and what it still had under way.
    pub(super) cold: Option<Box<Cold<J>>>,
    pub(super) unsettled: Option<Next<S, J>>,
}

impl<S, J> Default for Left<S, J> {
    fn default() -> Left<S, J> {
        Left {
            state: State::none(),
            late: VecDeque::new(),
            refused: Vec::new(),
            recorded: Recorded::default(),
            outputs: Vec::new(),
            links: Vec::new(),
            cold: None,
            unsettled: None,
        }
    }
}
