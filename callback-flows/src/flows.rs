//! Flows as an application has them: the handle through which they are started, called, looked at and ended.

#[cfg(test)]
mod bad_tokens;
mod builder;
mod call;
mod census;
mod elsewhere;
mod error;
mod everywhere;
#[cfg(all(test, feature = "testing"))]
mod in_parts;
mod input;
pub(crate) mod journals;
#[cfg(test)]
mod large;
mod registry;
#[cfg(feature = "http")]
mod serving;
mod watch;

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use stable_interfaces::{Alarm, Interface, KeyRange, NewPost, Posted, RequestError, Timestamp};

use crate::command::Command;
use crate::hash::{hex, short_hash};
use crate::instance::{Answer, FlowInstance, NEXT, TurnError};
use crate::journal::Message;
use crate::policy::CallbackPolicy;
use crate::status::{Outcome, STATUS_KEY, State, Status};
use crate::token::Target;

pub use self::builder::FlowsBuilder;
pub use self::call::Call;
pub(crate) use self::census::Kept;
pub use self::error::FlowsError;
use self::error::fits;
pub(crate) use self::error::unavailable;
#[cfg(feature = "rhai")]
pub(crate) use self::input::Prepare;
pub use self::input::Refused;
pub(crate) use self::registry::Registry;
pub(crate) use self::watch::Reader;

/// The largest body that is posted, in bytes: there has to be room for its headers.
pub(crate) const MAX_POSTED_BYTES: usize = 192 * 1024;

/// An application's handle on its flows: cheap to clone, for any task of the process, on every host.
///
/// Each request goes to the flow at once: on the host that owns it, or through the host's
/// [`transport`](stable_interfaces::HostBuilder::transport) to that one. Where the owner cannot be reached within two seconds, it goes into the
/// flow's inbox, from where the flow's next owner takes it.
#[derive(Clone)]
pub struct Flows {
    registry: Arc<Registry>,
    interface: Interface<FlowInstance>,
}

impl std::fmt::Debug for Flows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flows").field("flows", &self.registry.flows.keys()).finish_non_exhaustive()
    }
}

/// A flow in a list: [`Flows::list`].
#[derive(Debug, Clone)]
pub struct Listed(Alarm);

impl Listed {
    /// The name of the flow's code.
    #[must_use]
    pub fn name(&self) -> &str {
        parts_of(self.0.instance()).0
    }

    /// The ID that the flow was started under.
    #[must_use]
    pub fn id(&self) -> &str {
        parts_of(self.0.instance()).1
    }

    /// The moment at which the flow is looked at next by itself: its next timer, or the end of the time for which it is kept.
    #[must_use]
    pub fn next(&self) -> Timestamp {
        self.0.due()
    }
}

/// The answer to [`Flows::start`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Started {
    /// The flow is durable, and has begun.
    New,
    /// The flow was started before, with the same input.
    Already,
    /// The start is durable, and the flow's owner, which is not this host and could not be asked, will judge it. It is the first start of its ID
    /// that is stored, and comes before every one that is asked for from now on. The owner may still have begun the flow with another one that it
    /// was asked for while this one was on its way: then that one is told `New`, and this one is dropped. Asked again, the same start
    /// is told for good, [`Already`](Self::Already) or [`FlowsError::Conflict`], as soon as the owner has judged it.
    Posted,
}

/// The answer to [`Flows::deliver`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivered {
    /// The flow has it.
    Taken,
    /// The flow had it before.
    Already,
    /// The call is durable, and the flow's owner will take it.
    Posted,
}

impl Flows {
    /// Starts a flow under an ID of the caller's choice. When this returns, it is durable.
    ///
    /// The same ID and input again are [`Started::Already`], so it may be repeated. Of all starts of one ID at most one is told
    /// [`Started::New`], and no other input is taken after that.
    ///
    /// # Errors
    /// [`FlowsError`]: an unknown name, an ID that cannot be one, an input that does not fit, is refused or is larger than it
    /// [may be](FlowsBuilder::max_value), another input under this ID, or a store that cannot be reached.
    pub async fn start(&self, name: &str, id: &str, input: &(impl Serialize + ?Sized)) -> Result<Started, FlowsError> {
        if !self.registry.flows.contains_key(name) {
            return Err(FlowsError::UnknownFlow(name.into()));
        }
        let input = serde_json::to_vec(input).map_err(|source| FlowsError::Input { flow: name.into(), source })?;
        self.start_json(name, id, input.into()).await
    }

    /// Hands a call of a callback to its flow: `token` is the last part of the [URL](crate::Callback::url), or all of it. When this
    /// returns, the call is durable.
    ///
    /// A token is checked without a look at the store, and then the [policy](FlowsBuilder::callback_policy) of its callback. The owner of a
    /// flow knows whether it takes the call. Where it cannot be reached, the call is stored, unless the flow is known to be over: a call that
    /// is too late, or one too many, is dropped by the owner, and counted.
    ///
    /// # Errors
    /// [`FlowsError::NotFound`] for a token that no key of this application has signed, [`FlowsError::Gone`] where the flow or the callback is over,
    /// [`FlowsError::Unverified`] and [`FlowsError::Undecodable`] by the policy, [`FlowsError::TooManyUnread`], [`FlowsError::TooLarge`],
    /// [`FlowsError::Unavailable`].
    pub async fn deliver(&self, token: &str, call: Call) -> Result<Delivered, FlowsError> {
        let target = self.target(token).ok_or(FlowsError::NotFound)?;
        self.deliver_to(target, call).await
    }

    /// As [`deliver`](Self::deliver), to the callback of a token that has been checked.
    pub(crate) async fn deliver_to(&self, target: Target, call: Call) -> Result<Delivered, FlowsError> {
        let call = match self.policy_of(&target) {
            Some(policy) => {
                let clock = self.interface.clock().ok_or_else(|| unavailable(RequestError::NotStarted::<TurnError>))?;
                policy.apply(call, clock.now(), &target.callback)?
            }
            None => call,
        };
        self.hand_over(&target.flow, Some(target.run), target.callback, call).await
    }

    /// The policy for the calls of the callback that a token is of, such as for the answer to them; `None` if it has none, or no key of this
    /// application has signed the token.
    #[must_use]
    pub fn policy(&self, token: &str) -> Option<&CallbackPolicy> {
        self.policy_of(&self.target(token)?)
    }

    pub(crate) fn policy_of(&self, target: &Target) -> Option<&CallbackPolicy> {
        self.registry.policy(&target.flow, &target.callback)
    }

    /// The callback that a token is of, if one of the keys has signed it. Without a look at the store.
    pub(crate) fn target(&self, token: &str) -> Option<Target> {
        let token = token.rsplit('/').next().unwrap_or(token);
        self.registry.urls.as_ref()?.keys.check(token)
    }

    /// Hands a message to a flow, or stores it for its owner: for a callback of this run, or of whichever run is going.
    pub(crate) async fn hand_over(
        &self,
        flow: &str,
        run: Option<u32>,
        callback: Arc<str>,
        call: Call,
    ) -> Result<Delivered, FlowsError> {
        fits("the call", call.size(), self.registry.limits.value_bytes)?;
        let size = call.size();
        let Call { id, headers, body } = call;
        // With one of its own it is taken once, however often it is sent.
        let id = id
            .filter(|id| !id.is_empty())
            .unwrap_or_else(|| self.interface.random().map_or_else(String::new, |r| hex(&r.next_u64().to_be_bytes())));
        let id: Arc<str> = id.into();
        let call = (callback.clone(), id.clone());
        let message = Message { id, headers, body };
        let command = Command::Deliver { run, callback, message };
        match self.ask(flow, command.clone()).await? {
            Some(Answer::Done) => return Ok(Delivered::Taken),
            Some(Answer::Already) => return Ok(Delivered::Already),
            Some(Answer::Gone) => return Err(FlowsError::Gone),
            Some(Answer::Full) => return Err(FlowsError::TooManyUnread),
            Some(Answer::NotFound | Answer::Conflict) => return Err(FlowsError::NotFound),
            Some(Answer::Behind) | None => {}
        }
        fits("a call that is stored for the owner of its flow", size, MAX_POSTED_BYTES)?;
        // The post of a call has the ID of that call, so that a second one does not even lie in the inbox.
        let post = Some(format!("call-{}", short_hash(format!("{}\0{}", call.0, call.1).as_bytes())));
        // One that is known to be over takes nothing any more; that it could not be looked at is no reason to refuse. It is looked at first: this call
        // may be what ends it.
        match self.status(flow).await {
            Ok(Some(status)) if status.state.is_over() => Err(FlowsError::Gone),
            _ => self.post(flow, post, command).await.map(|_| Delivered::Posted),
        }
    }

    /// The name and the ID of the flow that a callback's token is for, without a look at the store; `None` for a token that no key
    /// of this application has signed. Such as for the [`result`](Self::result) of a flow that is over, for who calls it once more.
    #[must_use]
    pub fn flow_of(&self, token: &str) -> Option<(String, String)> {
        let target = self.target(token)?;
        let (name, id) = parts_of(&target.flow);
        Some((name.to_owned(), id.to_owned()))
    }

    /// Cancels a flow: its code is dropped where it waits, and what it has registered to [undo](crate::Flow::undo) is undone.
    ///
    /// # Errors
    /// [`FlowsError::NotFound`] where the flow's owner can be reached, [`FlowsError::Gone`] where it is over, [`FlowsError::Unavailable`].
    pub async fn cancel(&self, name: &str, id: &str) -> Result<(), FlowsError> {
        self.command(name, id, "cancel", Command::Cancel).await
    }

    /// Lets a blocked flow try again, with the code and the world as they are now. Does nothing to one that is not blocked.
    ///
    /// # Errors
    /// As [`cancel`](Self::cancel).
    pub async fn resume(&self, name: &str, id: &str) -> Result<(), FlowsError> {
        self.command(name, id, "resume", Command::Resume).await
    }

    async fn command(&self, name: &str, id: &str, post: &str, command: Command) -> Result<(), FlowsError> {
        let flow = identity(name, id)?;
        match self.ask(&flow, command.clone()).await? {
            Some(Answer::NotFound) => Err(FlowsError::NotFound),
            Some(Answer::Gone) => Err(FlowsError::Gone),
            Some(_) => Ok(()),
            // One that is known to be over is not asked any more.
            None => match self.status(&flow).await {
                Ok(Some(status)) if status.state.is_over() => Err(FlowsError::Gone),
                _ => self.post(&flow, Some(post.into()), command).await.map(drop),
            },
        }
    }

    /// Flows that are going or are kept, from any host: at most `limit`, after the one named by `after`, in no order of use. What comes
    /// or goes meanwhile may be missing, or there twice.
    ///
    /// # Errors
    /// [`FlowsError::Unavailable`].
    pub async fn list(&self, after: Option<&Listed>, limit: usize) -> Result<Vec<Listed>, FlowsError> {
        let mut found: Vec<Listed> = Vec::new();
        let mut after = after.map(|listed| listed.0.clone());
        while found.len() < limit {
            let asked = limit - found.len();
            let page = self.interface.all_alarms(after.as_ref(), asked).await.map_err(unavailable)?;
            let is_last = page.len() < asked;
            after = page.last().cloned().or(after);
            // Every flow has one of this name.
            found.extend(page.into_iter().filter(|alarm| alarm.id() == NEXT).map(Listed));
            if is_last {
                break;
            }
        }
        Ok(found)
    }

    /// The outcome of a flow, from any host; `None` while it is going.
    ///
    /// # Errors
    /// [`FlowsError::NotFound`], and as [`get`](Self::get).
    pub async fn result(&self, name: &str, id: &str) -> Result<Option<Outcome>, FlowsError> {
        let flow = identity(name, id)?;
        let status = self.status(&flow).await?.ok_or(FlowsError::NotFound)?;
        self.outcome(&flow, &status).await
    }

    /// The outcome of a flow with this status; `None` while it is going.
    pub(crate) async fn outcome(&self, flow: &str, status: &Status) -> Result<Option<Outcome>, FlowsError> {
        Ok(Some(match &status.state {
            State::Failed { error } => Outcome::Failed(error.clone()),
            State::Cancelled => Outcome::Cancelled,
            State::Purged => Outcome::Purged,
            State::Done => match self.result_of(flow, status).await? {
                Some(json) => Outcome::Done(serde_json::from_slice(&json).map_err(FlowsError::Unreadable)?),
                // Purged between the two reads.
                None => Outcome::Purged,
            },
            _ => return Ok(None),
        }))
    }

    /// The URL of a callback; empty where there are no keys.
    #[cfg(feature = "testing")]
    pub(crate) fn url(&self, flow: &str, callback: &str) -> String {
        self.registry.urls.as_ref().map_or_else(String::new, |urls| urls.of(flow, crate::instance::RUN, callback))
    }

    async fn post(&self, flow: &str, id: Option<String>, command: Command) -> Result<Posted, FlowsError> {
        let mut post = NewPost::new(command.encode());
        if let Some(id) = id {
            post = post.id(id);
        }
        self.interface.post(flow, post).await.map_err(unavailable)
    }

    async fn status(&self, flow: &str) -> Result<Option<Status>, FlowsError> {
        let rows = self.stored(flow, KeyRange::from(STATUS_KEY).limit(1)).await?;
        let status = rows.first().map(|(_, status)| Status::from_stored(status));
        status.transpose().map_err(FlowsError::Unreadable)
    }

    async fn stored(&self, flow: &str, range: KeyRange) -> Result<Vec<(Arc<str>, Bytes)>, FlowsError> {
        self.interface.stored(flow, range).await.map_err(unavailable)
    }
}

/// The ID of a flow's instance.
pub(crate) fn identity(name: &str, id: &str) -> Result<String, FlowsError> {
    let flow = format!("{name}/{id}");
    if id.is_empty() {
        return Err(FlowsError::Invalid("the ID of a flow is empty".into()));
    }
    match stable_interfaces::store::check_id(&flow) {
        Ok(()) => Ok(flow),
        Err(reason) => Err(FlowsError::Invalid(format!("{id:?} cannot be the ID of a flow: {reason}"))),
    }
}

/// The name and the ID of a flow that is an instance of this ID.
pub(crate) fn parts_of(flow: &str) -> (&str, &str) {
    flow.split_once('/').unwrap_or((flow, ""))
}

/// A value that is stored in several rows.
pub(crate) fn joined(rows: &[(Arc<str>, Bytes)]) -> Vec<u8> {
    rows.iter().flat_map(|(_, chunk)| chunk.iter().copied()).collect()
}
