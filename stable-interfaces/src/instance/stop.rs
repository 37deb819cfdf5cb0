//! The message that lets an instance leave memory in good order.

use std::time::Duration;

use tracing::{Instrument as _, Span};

use super::StableInterface;
use super::context::Context;
use super::job::{Job, Work};
use super::kind::InterfaceCore;
use super::living::Home;
use super::turn::Queued;
use crate::connection::Closed;
use crate::error::Outcome;
use crate::forward::call::Call;
use crate::forward::table::Writing;
use crate::quiet::{Quiet, drop_quietly};

/// Lets an instance leave memory.
pub(crate) struct Stop(pub(crate) Closed);

impl<I: StableInterface> Work<I> for Stop {
    type Reply = ();
    const IS_STOP: bool = true;

    fn is_drain(&self) -> bool {
        self.0 != Closed::Stopped
    }

    fn write(&self, _: &InterfaceCore<I>) -> Writing<(), I::Error> {
        Some(Call::Stop.write())
    }

    async fn run(self, state: &mut Home<I>, cx: &mut Context) -> Outcome<(), I::Error> {
        if let Some(instance) = state {
            let span = tracing::debug_span!("stop", interface = I::NAME, instance = cx.id(), shard = cx.shard().0);
            instance.on_stop().instrument(span).await;
        }
        drop_quietly(state.take());
        cx.end(self.0);
        Ok(())
    }
}

/// A message that lets an instance leave memory.
pub(crate) fn stop_job<I: StableInterface>() -> Box<dyn Job<I>> {
    stop_job_of(Closed::Stopped)
}

pub(crate) fn stop_job_of<I: StableInterface>(reason: Closed) -> Box<dyn Job<I>> {
    Queued::untold(Quiet::new(Stop(reason)), Duration::MAX, None, Span::none())
}
