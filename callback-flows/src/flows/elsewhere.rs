//! Flows that another host owns: it is asked, and told of, as if they were here.
//!
//! A command goes to the owner as a message, for as long as a caller may be kept waiting, and into the flow's inbox if that does not answer by
//! then: each has an ID or is the same twice, so that it may do both. Looks and waits are questions to the owner, which take no turn of
//! the flow and leave it where it is; without an answer, the store is looked at.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stable_interfaces::transport::Question;
use stable_interfaces::{Interface, InterfaceBuilder, RequestError};
use tokio::sync::OwnedSemaphorePermit;

use super::everywhere::HearAll;
use super::{Flows, FlowsError, Registry, unavailable};
use crate::command::Command;
use crate::instance::{Answer, FlowInstance, Look, TurnError};
use crate::status::Status;

/// The time that an owner has to answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// The time after which an owner answers that there is no news: by then whoever waits for some asks again.
pub(super) const HEARD_WITHIN: Duration = Duration::from_secs(20);
/// The most questions for news that are under way at once; further waits look at the store.
pub(super) const MAX_HEARING: usize = 4_096;
/// The most bytes of a command that is sent to another host: in base64, and with all that is around it, it is a third longer.
const MAX_SENT_BYTES: usize = 700 * 1_024;

/// Asks a flow's owner for the status that it has in memory; `None` if the flow is not there.
#[derive(Debug, Serialize, Deserialize)]
struct LookAt {
    flow: String,
}

impl Question for LookAt {
    const NAME: &'static str = "look";
    type Answer = Option<Status>;
}

/// Asks a flow's owner for news: it answers when the status is of another revision than this one, `true`, and after a while if it is not.
#[derive(Debug, Serialize, Deserialize)]
struct Hear {
    flow: String,
    after: u64,
}

impl Question for Hear {
    const NAME: &'static str = "hear";
    type Answer = bool;
}

/// Has an interface of flows answer what other hosts send.
pub(super) fn answering<'a>(
    interface: InterfaceBuilder<'a, FlowInstance>,
    registry: &Arc<Registry>,
) -> InterfaceBuilder<'a, FlowInstance> {
    let (of_look, of_hear, of_all) = (registry.clone(), registry.clone(), registry.clone());
    let flows = |registry: &Arc<Registry>, interface| Flows { registry: registry.clone(), interface };
    interface
        .forward_with_text_errors::<Command>("command")
        // A call counts when it arrived: it is stored at once where nobody can take it.
        .reach_timeout(Duration::ZERO)
        .answer(move |interface: Interface<FlowInstance>, LookAt { flow }| {
            let flows = flows(&of_look, interface);
            async move { flows.look(&flow).await }
        })
        .answer(move |interface: Interface<FlowInstance>, Hear { flow, after }| {
            let flows = flows(&of_hear, interface);
            async move { flows.news(&flow, after).await }
        })
        .answer(move |interface: Interface<FlowInstance>, hear: HearAll| {
            let flows = flows(&of_all, interface);
            async move { flows.all_news(hear).await }
        })
}

/// A question for news that is under way.
pub(super) type Hearing = Pin<Box<dyn Future<Output = bool> + Send>>;

impl Flows {
    /// Asks the flow itself, wherever it is; `None` if whoever has it does not answer in time, or may not act for it: then the command is to be
    /// stored for the flow's next owner, also if it has been carried out.
    pub(super) async fn ask(&self, flow: &str, command: Command) -> Result<Option<Answer>, FlowsError> {
        if command.bytes() > MAX_SENT_BYTES && self.interface.holder(flow).is_some() {
            return Ok(None);
        }
        match self.answered(flow, self.interface.request(flow, command)).await {
            Some(Ok(answer)) => Ok(Some(answer)),
            None => Ok(None),
            Some(Err(error)) if is_elsewhere(&error) => Ok(None),
            Some(Err(error)) => Err(unavailable(error)),
        }
    }

    /// Waits for what a flow's owner answers, for so long as a caller may be kept waiting if that is another host.
    async fn answered<T>(&self, flow: &str, asked: impl Future<Output = T>) -> Option<T> {
        let (Some(_), Some(clock)) = (self.interface.holder(flow), self.interface.clock()) else {
            return Some(asked.await);
        };
        tokio::select! { biased;
            answer = asked => Some(answer),
            () = clock.sleep(ANSWERED_WITHIN) => None,
        }
    }

    /// The status of a flow that is in memory on this host.
    pub(super) async fn look(&self, flow: &str) -> Option<Status> {
        let status = if self.interface.is_running(flow) { self.interface.request(flow, Look).await } else { Ok(None) };
        status.ok().flatten()
    }

    /// The status of a flow that is in memory on another host.
    pub(super) async fn look_elsewhere(&self, flow: &str) -> Option<Status> {
        let holder = self.interface.holder(flow)?;
        let look = LookAt { flow: flow.to_owned() };
        self.answered(flow, self.interface.ask_host(&holder, &look)).await?.ok()?
    }

    /// Waits for news of a flow that another host owns: `true` when there are some, `false` if that host does not say; `None` if no other host
    /// owns it, or too many wait already.
    pub(super) fn hear(&self, flow: &str, after: u64) -> Option<Hearing> {
        let holder = self.interface.holder(flow)?;
        let permit: OwnedSemaphorePermit = self.registry.hearing.clone().try_acquire_owned().ok()?;
        let (interface, hear) = (self.interface.clone(), Hear { flow: flow.to_owned(), after });
        Some(Box::pin(async move {
            let _permit = permit;
            interface.ask_host(&holder, &hear).await.unwrap_or(false)
        }))
    }

    /// Waits for news of a flow that this host owns, for somebody on another one: until there are some, for a while, and for as long as this
    /// host owns the flow and stays.
    async fn news(&self, flow: &str, after: u64) -> bool {
        let Ok(mut watch) = self.watch(flow) else { return false };
        let (clock, mut stopping) = (watch.clock(), pin!(self.interface.stopping()));
        let was_here = watch.is_here();
        let until = clock.elapsed().saturating_add(HEARD_WITHIN);
        while watch.is_here() {
            if watch.take_must_read() {
                match self.status(flow).await {
                    Ok(status) if status.as_ref().map_or(0, |status| status.revision) != after => return true,
                    Ok(_) => {}
                    Err(_) => return false,
                }
            }
            if watch.told().is_some_and(|status| status.revision > after) {
                return true;
            }
            let left = until.saturating_sub(clock.elapsed());
            if left.is_zero() {
                return false;
            }
            tokio::select! { biased;
                () = &mut stopping => return false,
                () = watch.pause(left) => {}
            }
        }
        // The next owner may have some, which is to be asked at once; but not for a host that takes this one for the owner.
        was_here
    }
}

/// Tells whether whoever owns the flow next is to find out: nothing has happened because of who may act for it, or it is not known to
/// have, because of the way there.
fn is_elsewhere(error: &RequestError<TurnError>) -> bool {
    match error {
        RequestError::NotOwner { .. }
        | RequestError::Unreachable { .. }
        | RequestError::LeaseLost
        | RequestError::Fenced
        | RequestError::Draining
        | RequestError::Replaced
        | RequestError::StoreLost
        // The program of that host is older.
        | RequestError::Unhandled(_)
        | RequestError::Json(_) => true,
        RequestError::Unknown(cause) => matches!(**cause, RequestError::Unreachable { .. }),
        _ => false,
    }
}
