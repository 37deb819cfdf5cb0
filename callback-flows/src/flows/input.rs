//! The input of a flow, and what is refused of it before anything is stored.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::{Flows, FlowsBuilder, FlowsError, MAX_POSTED_BYTES, Started, fits, identity};
use crate::command::Command;
use crate::hash::hash_of;
use crate::instance::Answer;

/// A check of an application's own of the input of its flows, as JSON.
pub(super) type Validate = dyn Fn(&[u8]) -> Result<(), FlowsError> + Send + Sync;

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

impl Flows {
    /// Starts a flow with an input that is JSON already: [`start`](Flows::start).
    pub(crate) async fn start_json(&self, name: &str, id: &str, input: Bytes) -> Result<Started, FlowsError> {
        let unknown = || FlowsError::UnknownFlow(name.into());
        let versions = self.registry.flows.get(name).ok_or_else(unknown)?;
        let flow = identity(name, id)?;
        fits("the input", input.len(), self.registry.limits.value_bytes)?;
        let (version, newest) = versions.last_key_value().ok_or_else(unknown)?;
        (newest.check)(&input).map_err(|source| FlowsError::Input { flow: name.into(), source })?;
        if let Some(validate) = self.registry.validates.get(name) {
            validate(&input)?;
        }
        let (hash, size) = (hash_of(&input), input.len());
        let command = Command::Start { version: *version, input, parent: None };
        match self.ask(&flow, command.clone()).await? {
            Some(Answer::Done) => return Ok(Started::New),
            Some(Answer::Already) => return Ok(Started::Already),
            Some(_) => return Err(FlowsError::Conflict),
            None => {}
        }
        // Its owner may have it already.
        match self.status(&flow).await? {
            Some(status) if status.input == hash => return Ok(Started::Already),
            Some(_) => return Err(FlowsError::Conflict),
            None => {}
        }
        fits("an input that is stored for the owner of its flow", size, MAX_POSTED_BYTES)?;
        self.post(&flow, Some("start".into()), command).await?;
        Ok(Started::Posted)
    }
}
