//! The input of a flow, and what is refused of it before anything is stored.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::{Flows, FlowsBuilder, FlowsError, MAX_POSTED_BYTES, Started, fits, identity, unavailable};
use crate::command::Command;
use crate::hash::hash_of;
use crate::instance::Answer;

/// A check of an application's own of the input of its flows, as JSON.
pub(super) type Validate = dyn Fn(&[u8]) -> Result<(), FlowsError> + Send + Sync;

/// The way in which an input becomes what is stored.
#[cfg(feature = "rhai")]
pub(crate) struct Prepare {
    /// Makes what is stored of what was asked for, or refuses it.
    pub(crate) prepare: Box<PrepareInput>,
    /// Tells whether two stored inputs were asked for alike.
    pub(crate) is_same: fn(&[u8], &[u8]) -> bool,
}

#[cfg(feature = "rhai")]
type PrepareInput = dyn Fn(&[u8]) -> Result<Bytes, FlowsError> + Send + Sync;

/// The reason why an application's check does not take an input: [`FlowsBuilder::validate`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Refused {
    field: String,
    reason: String,
}

impl Refused {
    /// A refusal because of this field, such as `items[2].price`, for this reason. Both are shown to whoever starts the flow.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Refused {
        Refused { field: field.into(), reason: reason.into() }
    }

    /// The field.
    #[must_use]
    pub fn field(&self) -> &str {
        &self.field
    }

    /// The reason.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl FlowsBuilder {
    /// Checks each new input of a flow before anything is stored: a start whose input is refused is answered with
    /// [`FlowsError::Refused`]. For what can be told from the input alone; called on the caller's task, for the newest version.
    ///
    /// ```
    /// use callback_flows::{Flows, Refused};
    ///
    /// let builder = Flows::builder()
    ///     .flow("greet", 1, |_, name: String| async move { Ok(format!("hello, {name}")) })
    ///     .validate("greet", |name: &String| if name.is_empty() { Err(Refused::new("", "nobody has no name")) } else { Ok(()) });
    /// # let _ = builder;
    /// ```
    pub fn validate<I, F>(mut self, name: &str, check: F) -> FlowsBuilder
    where
        I: DeserializeOwned,
        F: Fn(&I) -> Result<(), Refused> + Send + Sync + 'static,
    {
        let flow = name.to_owned();
        let validate: Arc<Validate> = Arc::new(move |input| {
            let as_input = |source| FlowsError::Input { flow: flow.clone(), source };
            check(&serde_json::from_slice(input).map_err(as_input)?).map_err(FlowsError::Refused)
        });
        if self.registry.validates.insert(name.to_owned(), validate).is_some() {
            self.invalid.get_or_insert(format!("the input of the flow {name:?} is validated twice"));
        }
        self
    }
}

#[cfg(feature = "rhai")]
impl FlowsBuilder {
    /// Registers the code of a flow whose input is prepared before it is stored.
    pub(crate) fn add_prepared<I, O, F, Fut>(&mut self, name: &str, code: F, prepare: Prepare)
    where
        F: Fn(crate::Flow, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = crate::FlowResult<O>> + Send + 'static,
        I: for<'de> serde::Deserialize<'de> + Send + 'static,
        O: serde::Serialize + 'static,
    {
        *self = self.clone().flow(name, 1, code);
        self.registry.prepares.insert(name.to_owned(), Arc::new(prepare));
    }
}

impl Flows {
    /// Starts a flow with an input that is JSON already: [`start`](Flows::start).
    pub(crate) async fn start_json(&self, name: &str, id: &str, input: Bytes) -> Result<Started, FlowsError> {
        let unknown = || FlowsError::UnknownFlow(name.into());
        let versions = self.registry.flows.get(name).ok_or_else(unknown)?;
        let flow = identity(name, id)?;
        #[cfg(feature = "rhai")]
        let input = match self.registry.prepares.get(name) {
            Some(prepare) => (prepare.prepare)(&input)?,
            None => input,
        };
        fits("the input", input.len(), self.registry.limits.value_bytes)?;
        let (version, newest) = versions.last_key_value().ok_or_else(unknown)?;
        (newest.check)(&input).map_err(|source| FlowsError::Input { flow: name.into(), source })?;
        if let Some(validate) = self.registry.validates.get(name) {
            validate(&input)?;
        }
        let command = Command::Start { version: *version, input: input.clone(), parent: None };
        match self.ask(&flow, command.clone()).await? {
            Some(Answer::Done) => return Ok(Started::New),
            Some(Answer::Already) => return Ok(Started::Already),
            Some(_) => return self.conflict(name, id, &input).await,
            None => {}
        }
        let (hash, size) = (hash_of(&input), input.len());
        // Its owner may have it already.
        match self.status(&flow).await? {
            Some(status) if status.input == hash => return Ok(Started::Already),
            Some(_) => return self.conflict(name, id, &input).await,
            None => {}
        }
        fits("an input that is stored for the owner of its flow", size, MAX_POSTED_BYTES)?;
        self.post(&flow, Some("start".into()), command).await?;
        // There may be another start of this ID, which was stored before or has come to the flow's owner meanwhile.
        self.is_first(&flow, hash).await.map(|()| Started::Posted)
    }

    /// Checks that the input with this hash is the one that a flow was begun with, or will be when its owner takes the first start that is stored.
    pub(crate) async fn is_first(&self, flow: &str, hash: u64) -> Result<(), FlowsError> {
        // Before the status: its owner may come in between.
        let stored = self.stored_start(flow).await?;
        let begun = self.status(flow).await?.map(|status| status.input);
        match begun.or(stored.map(|input| hash_of(&input))) {
            Some(first) if first == hash => Ok(()),
            Some(_) => Err(FlowsError::Conflict),
            None => Err(unavailable("it is not known whether the flow was started with this input")),
        }
    }

    /// The input of the first start of a flow that is stored and that the flow's owner has not taken.
    pub(crate) async fn stored_start(&self, flow: &str) -> Result<Option<Bytes>, FlowsError> {
        let waiting = self.interface.inbox(flow).await.map_err(unavailable)?;
        Ok(waiting.iter().find_map(|message| match Command::decode(message.body()) {
            Ok(Command::Start { input, .. }) => Some(input),
            _ => None,
        }))
    }

    /// The answer where a flow of that ID was begun with another input: one that was prepared may differ from what it would be now.
    async fn conflict(&self, name: &str, id: &str, input: &[u8]) -> Result<Started, FlowsError> {
        #[cfg(feature = "rhai")]
        if let Some(prepare) = self.registry.prepares.get(name) {
            match self.journal(name, id).await {
                Ok(journal) if journal.input().is_some_and(|stored| (prepare.is_same)(stored, input)) => {
                    return Ok(Started::Already);
                }
                Err(error @ FlowsError::Unavailable(_)) => return Err(error),
                _ => {}
            }
        }
        #[cfg(not(feature = "rhai"))]
        let _ = (name, id, input);
        Err(FlowsError::Conflict)
    }
}
