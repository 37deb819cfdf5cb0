//! The letters of a flow: to its children, to begin or to cancel them, and to its parents, to tell them how it has ended.

use std::sync::Arc;

use stable_interfaces::{Context, Timestamp};

use super::commands::seen_as;
use super::lives::{LEFT, Lives, RUNNING};
use super::{FlowInstance, Loaded, TurnError};
use crate::courier::{self, Letter, Receipt};
use crate::flows::joined;
use crate::journal::{ChildOutcome, Event};
use crate::status::{RESULT_KEY, State};

impl FlowInstance {
    /// Makes letters of what the code has to post, and tells it of what cannot be posted.
    pub(super) fn address_posts(&mut self, now: Timestamp) {
        let Loaded::Going(going) = &mut self.loaded else { return };
        loop {
            let mut is_refused = false;
            for post in going.engine.take_posts().into_iter().map(Arc::new) {
                match Letter::to_child(&self.registry, &self.id, going.before.run, &post) {
                    Ok(letter) => self.letters.push(letter),
                    Err(outcome) => {
                        is_refused = true;
                        going.seen.insert(seen_as(&post.child, ""), ());
                        going.engine.append(now, Event::ChildEnded { child: post.child.clone(), outcome });
                    }
                }
            }
            if !is_refused {
                return;
            }
            going.engine.settle(usize::MAX);
        }
    }

    /// Lets couriers go who tell parents what is known.
    pub(super) async fn tell(&mut self, cx: &mut Context) -> Result<(), TurnError> {
        let outcome = match &self.loaded {
            Loaded::Over(_) if self.parents.is_empty() => return Ok(()),
            Loaded::Over(status) => Some(match &status.state {
                State::Failed { error } => ChildOutcome::Failed(error.as_str().into()),
                State::Cancelled => ChildOutcome::Cancelled,
                State::Done => {
                    let value = match &status.result {
                        Some(result) => result.bytes(),
                        None => joined(&cx.list(RESULT_KEY).await?).into(),
                    };
                    if value.is_empty() { ChildOutcome::Purged } else { courier::as_told(ChildOutcome::Done(value)) }
                }
                _ => ChildOutcome::Purged,
            }),
            _ => None,
        };
        self.tell_of(cx, outcome.as_ref())
    }

    pub(super) fn tell_of(&mut self, cx: &mut Context, outcome: Option<&ChildOutcome>) -> Result<(), TurnError> {
        let letters = self.parents.letters(&self.id, outcome);
        if !letters.is_empty() && self.runs.is_none() {
            self.set_running(cx, Lives::of(LEFT))?;
        }
        courier::send(cx, letters)
    }

    /// Takes note of what a courier has posted.
    pub(crate) fn posted(&mut self, cx: &mut Context, receipts: &[Receipt]) -> Result<(), TurnError> {
        self.parents.note(cx, receipts)?;
        match &mut self.loaded {
            Loaded::Going(going) => {
                for receipt in receipts {
                    if let Receipt::Child(post) = receipt {
                        going.engine.note_posted(post);
                    }
                }
                if going.engine.waits_for_posts() {
                    going.engine.record_posted(cx.now());
                }
                self.advance(cx)
            }
            Loaded::Over(_) if self.parents.is_empty() && self.runs.take().is_some() => Ok(cx.cancel_alarm(RUNNING)?),
            _ => Ok(()),
        }
    }
}
