//! Commits of an incarnation: of a turn's effects, and of what becomes of an alarm or message whose handler failed.
//!
//! All of them are queued under the slot's lock, so they enter the committer in the order in which turns end.

use std::fmt;

use super::cold::{Extra, Unsettled};
use super::left::{Failure, Left};
use super::{Inner, Slot};
use crate::commit::committer::{Commit, Queued};
use crate::commit::effects;
use crate::commit::gate::Ticket;
use crate::error::{RequestError, WithCauses};
use crate::instance::StableInterface;
use crate::instance::recorded::{Output, Recorded};
use crate::quiet;
use crate::shards::delivery::Delivery;
use crate::shards::wake::{Failed, Wake};
use crate::store::{BoxError, Epoch, Op};
use crate::sync::Arc;

impl<I: StableInterface> Slot<I> {
    /// Queues a commit of this incarnation and returns its ticket.
    pub(super) fn push(
        &self,
        inner: &mut Inner<I>,
        left: &mut Left<I>,
        epoch: Epoch,
        ops: Vec<Op>,
        woken_by: Option<Delivery>,
        shown: Shown,
    ) -> Option<Ticket> {
        let committer = self.interface.host.committer()?;
        let (ticket, commit) = self.enlist(inner, epoch, ops, shown);
        left.commits.extend(committer.push(Queued::new(commit, ticket.clone(), woken_by)));
        Some(ticket)
    }

    /// Gives a commit of this incarnation its place at the gate, and shows it to reads.
    pub(super) fn enlist(
        &self,
        inner: &mut Inner<I>,
        epoch: Epoch,
        ops: Vec<Op>,
        shown: Shown,
    ) -> (Ticket, Arc<Commit>) {
        let extra = inner.extra.get_or_insert_default();
        let gate = extra.gate.get_or_insert_default().clone();
        let settled = gate.settled();
        while extra.unsettled.front().is_some_and(|commit| commit.ticket.is_within(settled)) {
            extra.unsettled.pop_front();
        }
        let ticket = gate.take_ticket();
        let commit = Arc::new(Commit { shard: self.shard, epoch, ops, is_shown: shown == Shown::ToWindow });
        extra.unsettled.push_back(Unsettled {
            ticket: ticket.clone(),
            commit: Arc::downgrade(&commit),
            of_turn: Some(commit.clone()),
        });
        (ticket, commit)
    }

    /// Tells whether the handler has committed another setting of the alarm that woke it, or cancelled it.
    pub(super) fn is_replaced(&self, inner: &Inner<I>, epoch: Epoch, delivery: &Delivery) -> bool {
        let Wake::Alarm(alarm) = delivery.wake() else { return false };
        let unsettled = inner.extra.iter().flat_map(|extra| &extra.unsettled);
        let unsettled: Vec<_> = unsettled.filter_map(Unsettled::commit).collect();
        let ops = unsettled.iter().flat_map(|commit| &commit.ops);
        effects::find_alarm(ops, &alarm.id).is_some_and(|found| !delivery.is_setting(found))
            || !self.interface.host.shards.is_firing(self.shard, epoch, alarm)
    }

    /// Queues what becomes of an alarm or message whose handler failed: another attempt later, or a dead letter.
    ///
    /// It goes through the gate of the incarnation that failed, so the next one begins after it. If that gate has failed
    /// already nothing can follow it, and the alarm fires again as it is.
    pub(super) fn push_failure(
        &self,
        inner: &mut Inner<I>,
        left: &mut Left<I>,
        epoch: Epoch,
        delivery: Delivery,
        error: &str,
    ) {
        let host = &self.interface.host;
        let wake = delivery.wake();
        let ops = if self.is_replaced(inner, epoch, &delivery) {
            Vec::new()
        } else {
            let error: Arc<str> = truncate(error).into();
            let failed = wake.failed(&error, host.clock.now(), &self.interface.options.retry, &*host.random);
            let (wait, ops) = match failed {
                Failed::Retry(wait, op) => (Some(wait), vec![op]),
                Failed::Dead(ops) => (None, ops.into()),
            };
            left.failure = Some(Failure { wake: wake.clone(), error, wait });
            ops
        };
        self.push(inner, left, epoch, ops, Some(delivery), Shown::ToWindow);
    }

    /// Queues the effects of a handler that succeeded, and returns its outputs.
    pub(super) fn commit_turn(
        &self,
        inner: &mut Inner<I>,
        left: &mut Left<I>,
        epoch: Epoch,
        recorded: &mut Recorded,
        woken_by: Option<Delivery>,
    ) -> Vec<Output> {
        let ops = recorded.take_ops();
        let touches_alarms = ops.iter().any(|op| matches!(op, Op::PutAlarm(_) | Op::RemoveAlarm { .. }));
        match woken_by {
            Some(delivery) if recorded.holds_alarm() => {
                // The mark that it was started, if there is one, goes with the commit that holds it.
                let ops = match delivery.wake() {
                    Wake::Alarm(alarm) if delivery.must_mark && !self.is_replaced(inner, epoch, &delivery) => {
                        let attempts = alarm.attempts.unmarked();
                        let unmarked = Op::PutAlarm(crate::store::AlarmRow { attempts, ..(**alarm).clone() });
                        self.push(inner, left, epoch, vec![unmarked], None, Shown::Hidden);
                        ops
                    }
                    _ => ops,
                };
                if !ops.is_empty() {
                    self.push(inner, left, epoch, ops, None, Shown::ToWindow);
                }
                inner.extra.get_or_insert_default().held.push(delivery.hold());
            }
            None if ops.is_empty() => {}
            woken_by => drop(self.push(inner, left, epoch, ops, woken_by, Shown::ToWindow)),
        }
        if touches_alarms && let Some(extra) = &mut inner.extra {
            let Extra { held, unsettled, .. } = &mut **extra;
            let unsettled: Vec<_> = unsettled.iter().filter_map(Unsettled::commit).collect();
            held.retain(|delivery| {
                let ops = unsettled.iter().flat_map(|commit| &commit.ops);
                // Set or cancelled meanwhile: nothing is held any more.
                effects::find_alarm(ops, delivery.wake().id()).is_none_or(|found| delivery.is_setting(found))
            });
        }
        recorded.take_outputs()
    }
}

/// Tells whether the shard's windows are to follow a commit. A mark changes nothing about what is due when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    ToWindow,
    Hidden,
}

/// An error that nobody waits for, with its causes. A handler's own is used up by that, and leaves its text.
pub(super) fn explain<E>(error: &mut RequestError<E>) -> String
where
    E: fmt::Debug + fmt::Display + Into<BoxError> + 'static,
{
    if !matches!(error, RequestError::Handler(..)) {
        return WithCauses(error).to_string();
    }
    let own = std::mem::replace(error, RequestError::Closed);
    let text = quiet::text_of(|| own.report());
    *error = RequestError::Rejected(text.clone());
    text
}

/// The longest error text kept with an alarm.
const MAX_ERROR_BYTES: usize = 1024;

fn truncate(error: &str) -> String {
    // Not every store can hold NUL in a text.
    error[..error.floor_char_boundary(MAX_ERROR_BYTES)].replace('\0', "\u{fffd}")
}
