//! The commands of a flow: a start, a call of a callback, the end of a child, a cancellation. Each becomes an entry of the journal, once.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use stable_interfaces::{Context, Handle, Message as Posted, OnMessage, Timestamp};

use super::{FlowInstance, Going, Loaded, RUN, TurnError};
use crate::command::{Command, Parent};
use crate::engine::Phase;
use crate::hash::hash_of;
use crate::journal::{ChildOutcome, Event, Message};
use crate::metrics;

/// The most messages that wait for one flow's code.
const MAX_UNREAD: usize = 10_000;

/// The answer to a [`Command`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    /// The command had been carried out before.
    Already,
    /// A flow of this ID was started with another input.
    Conflict,
    /// There is no such flow.
    NotFound,
    /// The flow, or its callback, is over.
    Gone,
    /// Too many messages wait.
    Full,
    /// Messages that were stored before it are on their way, and a timer is due: it has to be stored behind them.
    Behind,
}

impl FlowInstance {
    /// Takes something in, and goes on with what comes of it. `arrived` is the moment that counts.
    async fn take(&mut self, cx: &mut Context, command: Command, arrived: Timestamp) -> Result<Answer, TurnError> {
        self.write_rest(cx).await?;
        if let Loaded::Sealed(sealed) = &self.loaded
            && !matches!(command, Command::Start { .. } | Command::Resume)
        {
            return Err(sealed.refusal());
        }
        let answer = match command {
            // Boxed, as all that is cold in here: each turn makes room for the largest.
            Command::Resume => Box::pin(self.resume(cx)).await?,
            Command::Start { version, input, parent: None } => self.start(cx, version, input)?,
            Command::Start { version, input, parent: Some(parent) } => {
                let is_refused = self.start(cx, version, input)? == Answer::Conflict;
                self.parents.add(cx, Parent { is_refused, ..parent })?;
                Box::pin(self.tell(cx)).await?;
                Answer::Done
            }
            Command::Deliver { run, callback, message } => {
                self.loaded.told(|going| going.deliver(cx, (run, callback), message, arrived))
            }
            Command::ChildEnded { run, child, outcome } => {
                self.loaded.told(|going| going.child_ended((run, child), outcome, arrived))
            }
            Command::Cancel => self.loaded.told(|going| {
                if !going.engine.is_to_be_cancelled() {
                    going.engine.append(arrived, Event::Cancel);
                }
                Answer::Done
            }),
        };
        self.advance_fully(cx).await?;
        Ok(answer)
    }

    fn start(&mut self, cx: &mut Context, version: u32, input: Bytes) -> Result<Answer, TurnError> {
        let hash = hash_of(&input);
        let known = match &self.loaded {
            Loaded::Absent => None,
            Loaded::Going(going) => Some(going.input),
            Loaded::Sealed(sealed) => Some(sealed.status.input),
            Loaded::Over(status) => Some(status.input),
        };
        if let Some(known) = known {
            return Ok(if known == hash { Answer::Already } else { Answer::Conflict });
        }
        let (now, seed) = (cx.now(), cx.random().next_u64());
        let going = self.begin(cx, (version, RUN), Vec::new())?;
        going.input = hash;
        going.engine.append(now, Event::Start { version, run: RUN, seed, input });
        Ok(Answer::Done)
    }

    /// Begins a flow that is not there with the first start of its ID that is stored, if there is one which arrived by `until`: whoever stored it may have
    /// been told so, and what is to be taken now may count on it. It comes as a message as well, and does nothing then. One that is stored while this
    /// turn's commit is under way finds its status there, unless it is faster than that.
    async fn take_stored_start(&mut self, cx: &mut Context, until: Timestamp) -> Result<(), TurnError> {
        if !matches!(self.loaded, Loaded::Absent) || !cx.may_have_messages() {
            return Ok(());
        }
        let stored = Box::pin(cx.inbox_until(until)).await?;
        let starts = stored.iter().map(|message| Command::decode(message.body()));
        if let Some(Command::Start { version, input, .. }) =
            starts.filter_map(Result::ok).find(|command| matches!(command, Command::Start { .. }))
        {
            self.start(cx, version, input)?;
        }
        Ok(())
    }
}

impl Loaded {
    /// Tells the flow something, if there is one that may be told anything.
    fn told(&mut self, tell: impl FnOnce(&mut Going) -> Answer) -> Answer {
        match self {
            Loaded::Absent => Answer::NotFound,
            Loaded::Over(_) => Answer::Gone,
            // It is refused before anybody asks.
            Loaded::Sealed(_) => Answer::Full,
            Loaded::Going(going) => tell(going),
        }
    }
}

impl Going {
    fn deliver(
        &mut self,
        cx: &Context,
        (run, address): (Option<u32>, Arc<str>),
        mut message: Message,
        arrived: Timestamp,
    ) -> Answer {
        if message.id.is_empty() {
            message.id = format!("{:016x}", cx.random().next_u64()).into();
        }
        let Some(callback) = self.before.callback(run, &address) else { return Answer::Gone };
        let seen = seen_as(&callback, &message.id);
        if self.seen.get(&seen).is_some() || self.before.has_taken(run, &address, &message.id) {
            return Answer::Already;
        }
        self.pass_until(arrived);
        if matches!(self.engine.phase(), Phase::Ended(_)) || !self.engine.takes_messages(&callback) {
            return Answer::Gone;
        }
        if self.engine.unread() >= MAX_UNREAD || self.engine.has_too_many_early(&callback) {
            return Answer::Full;
        }
        self.seen.insert(seen, ());
        self.engine.append(arrived, Event::Message { callback, message });
        Answer::Done
    }

    fn child_ended(&mut self, (run, child): (u32, Arc<str>), outcome: ChildOutcome, arrived: Timestamp) -> Answer {
        if run != self.before.run || !self.engine.may_have_begun(&child) {
            // A flow of this ID that was there before has begun it.
            return Answer::Gone;
        }
        let seen = seen_as(&child, "");
        if self.seen.get(&seen).is_some() {
            return Answer::Already;
        }
        self.seen.insert(seen, ());
        self.pass_until(arrived);
        if matches!(self.engine.phase(), Phase::Ended(_)) {
            return Answer::Gone;
        }
        self.engine.append(arrived, Event::ChildEnded { child, outcome });
        Answer::Done
    }
}

impl Handle<Command> for FlowInstance {
    type Reply = Answer;

    async fn handle(&mut self, cx: &mut Context, command: Command) -> Result<Answer, TurnError> {
        let now = cx.now();
        if matches!(command, Command::Deliver { .. }) && self.first_stored(cx, Timestamp::MAX).await?.is_some() {
            return Ok(Answer::Behind);
        }
        self.take_stored_start(cx, Timestamp::MAX).await?;
        self.take(cx, command, now).await
    }
}

impl OnMessage for FlowInstance {
    async fn on_message(&mut self, cx: &mut Context, posted: &Posted) -> Result<(), TurnError> {
        let mut command = Command::decode(posted.body()).map_err(TurnError::Unreadable)?;
        if let Command::Deliver { message, .. } = &mut command
            && message.id.is_empty()
        {
            message.id = posted.id().into();
        }
        // By the store's clock, which may be ahead.
        let arrived = posted.arrived().min(cx.now());
        if matches!(command, Command::Deliver { .. } | Command::ChildEnded { .. })
            && self.first_stored(cx, posted.arrived()).await?.is_some_and(|first| first < arrived)
        {
            return Err(TurnError::Behind);
        }
        // A start may have come before it, and be waiting to be tried again.
        self.take_stored_start(cx, posted.arrived()).await?;
        let answer = self.take(cx, command, arrived).await?;
        if matches!(answer, Answer::NotFound | Answer::Gone | Answer::Full | Answer::Conflict) {
            tracing::warn!(flow = &*self.id, posted = posted.id(), ?answer, "a message for a flow was dropped");
        }
        if answer == Answer::NotFound {
            metrics::unknown();
        }
        Ok(())
    }
}

pub(super) fn seen_as(callback: &str, id: &str) -> Arc<str> {
    [callback, "\0", id].concat().into()
}
