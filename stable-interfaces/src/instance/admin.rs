//! Operations on an instance that do not build it: its alarms and dead letters.
//!
//! One executor carries out an [`Order`], whether it came by a request to this host, through another one or as a directive from anywhere.
//! Each takes its turn like a message, so it sees everything handled before it and nothing changes under its hands.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::StableInterface;
use super::context::{Context, Most};
use super::job::Work;
use super::kind::InterfaceCore;
use super::living::Home;
use crate::alarm::{Alarm, encode_meta};
use crate::clock::Timestamp;
use crate::dead;
use crate::directive::{Needs, Order};
use crate::error::{ContextError, Outcome};
use crate::forward::call::Call;
use crate::forward::table::Writing;
use crate::store::{AlarmRow, Attempts, DeadKey, DeadLetter, DeadRow, InboxRow, NewMessage, Op, Posted};
use crate::sync::Arc;

/// Carries out an order, and says whether there was anything to do.
pub(crate) struct CarryOut(pub(crate) Order);

impl<I: StableInterface> Work<I> for CarryOut {
    type Reply = bool;

    fn write(&self, _: &InterfaceCore<I>) -> Writing<bool, I::Error> {
        Some(Call::carry_out(&self.0).write())
    }

    async fn run(self, _: &mut Home<I>, cx: &mut Context) -> Outcome<bool, I::Error> {
        carry_out(self.0, cx).await.map_err(Box::from)
    }
}

/// Sets an alarm, unless one with its ID exists. Says whether it was set.
pub(crate) struct SetAlarmIfAbsent {
    pub(crate) alarm: String,
    pub(crate) at: Timestamp,
    /// As it is stored.
    pub(crate) meta: Bytes,
}

impl<I: StableInterface> Work<I> for SetAlarmIfAbsent {
    type Reply = bool;

    fn write(&self, _: &InterfaceCore<I>) -> Writing<bool, I::Error> {
        Some(Call::set_alarm_if_absent(self).write())
    }

    async fn run(self, _: &mut Home<I>, cx: &mut Context) -> Outcome<bool, I::Error> {
        cx.set_encoded_alarm_if_absent(&self.alarm, self.at, self.meta).await.map_err(Box::from)
    }
}

/// Lists alarms of an instance, by ID.
pub(crate) struct ListAlarms {
    /// The first ID that is wanted.
    pub(crate) from: Arc<str>,
    /// About the most bytes of one answer; a first alarm comes whatever it has.
    pub(crate) bytes: usize,
}

/// The bytes of an alarm on its way, apart from its texts.
const TOLD_ALARM: usize = 160;

/// The bytes of an alarm on its way, in JSON.
fn told_bytes(row: &AlarmRow) -> usize {
    let more = |byte: &u8| match byte {
        b'"' | b'\\' => 1,
        ..b' ' => 5,
        _ => 0,
    };
    let error = row.attempts.last_error.as_deref().unwrap_or_default();
    let texts = [row.id.as_bytes(), &row.meta, error.as_bytes()];
    texts.iter().map(|text| text.len() + text.iter().map(more).sum::<usize>()).sum::<usize>() + TOLD_ALARM
}

/// Some alarms of an instance, and the ID from which to go on, if there may be more.
pub(crate) type Alarms = (Vec<Alarm>, Option<Arc<str>>);

impl ListAlarms {
    /// All of them.
    pub(crate) fn all() -> ListAlarms {
        ListAlarms::from("".into())
    }

    /// All from this ID on.
    pub(crate) fn from(from: Arc<str>) -> ListAlarms {
        ListAlarms { from, bytes: usize::MAX }
    }
}

impl<I: StableInterface> Work<I> for ListAlarms {
    type Reply = Alarms;

    fn write(&self, _: &InterfaceCore<I>) -> Writing<Alarms, I::Error> {
        Some(Call::ListAlarms { from: self.from.to_string() }.write_with(Call::read_alarms))
    }

    async fn run(self, _: &mut Home<I>, cx: &mut Context) -> Outcome<Alarms, I::Error> {
        // No more is read than is told: the rest is read when it is asked for.
        let most = Most { rows: (self.bytes / TOLD_ALARM).max(1), bytes: self.bytes };
        let (rest, next) = cx.alarms_from(self.from, most).await.map_err(Box::from)?;
        let (mut rest, mut alarms, mut bytes) = (rest.into_iter().peekable(), Vec::new(), 0_usize);
        while let Some(alarm) = rest.peek() {
            bytes = bytes.saturating_add(if self.bytes < usize::MAX { told_bytes(alarm.row()) } else { 0 });
            if bytes > self.bytes && !alarms.is_empty() {
                return Ok((alarms, Some(alarm.id().into())));
            }
            alarms.extend(rest.next());
        }
        Ok((alarms, next))
    }
}

/// The reason why a directive could not be carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectiveError {
    #[error("{0}")]
    Unknown(String),
    #[error(transparent)]
    Context(#[from] ContextError),
}

/// Carries out the directive that a message is.
pub(crate) async fn carry_out_message(row: &InboxRow, cx: &mut Context) -> Result<(), DirectiveError> {
    let order = checked(Order::of_message(row).map_err(DirectiveError::Unknown)?)?;
    if !carry_out(order, cx).await? {
        tracing::info!(instance = %row.name, id = %row.id, "a directive had nothing to do, or something newer was in its way");
    }
    Ok(())
}

/// An order that anyone may have written, if its meta can be one.
pub(crate) fn checked(mut order: Order) -> Result<Order, ContextError> {
    if let Order::SetAlarm { alarm, meta, .. } = &mut order {
        *meta = checked_meta(alarm, meta)?;
    }
    Ok(order)
}

/// The meta of an alarm as it is stored, from JSON that anyone may have written.
pub(crate) fn checked_meta(alarm: &str, meta: &[u8]) -> Result<Bytes, ContextError> {
    encode_meta(alarm, serde_json::from_slice::<&RawValue>(meta)?)
}

/// Does what an order says; `false` if there was nothing to do. Its effects, like a handler's, are recorded only.
async fn carry_out(order: Order, cx: &mut Context) -> Result<bool, ContextError> {
    match order {
        Order::SetAlarm { alarm, at, meta } => {
            cx.set_encoded_alarm(&alarm, at, meta)?;
            Ok(true)
        }
        Order::CancelAlarm { alarm } => {
            cx.cancel_alarm(&alarm)?;
            Ok(true)
        }
        Order::FireNow { alarm } => cx.fire_now(&alarm).await,
        Order::Requeue(key) => requeue(cx, &key).await,
        Order::Discard(key) => {
            let exists = cx.find_dead(&key).await?.is_some();
            if exists {
                cx.record_own(Op::RemoveDead(key));
            }
            Ok(exists)
        }
        Order::Restore { alarm, due, scheduled_at, attempt, meta } => {
            cx.restore_alarm(&alarm, due, scheduled_at, attempt, meta).await
        }
    }
}

/// Brings a dead letter back: an alarm in the commit that removes the letter, a message by posting it just before that, so that
/// a crash between the two leaves it twice rather than not at all. Says whether that was done.
async fn requeue(cx: &mut Context, key: &DeadKey) -> Result<bool, ContextError> {
    cx.require(Needs::of(key))?;
    let Some(letter) = cx.find_dead(key).await? else { return Ok(false) };
    match &letter.row {
        DeadRow::Alarm(row) => {
            if cx.find_alarm(&key.id).await?.is_some() {
                return Ok(false);
            }
            let alarm =
                AlarmRow { due: cx.now(), revision: cx.next_revision(), attempts: Attempts::default(), ..row.clone() };
            cx.record_own(Op::PutAlarm(alarm));
        }
        DeadRow::Message(row) => {
            if !cx.post_again(row).await? {
                return Ok(false);
            }
        }
    }
    cx.record_own(Op::RemoveDead(key.clone()));
    Ok(true)
}

impl Context {
    /// Sets the alarm `id` as it was when a store lost it, unless a setting under this epoch is newer. Says whether it did.
    async fn restore_alarm(
        &mut self,
        id: &str,
        due: Timestamp,
        scheduled_at: Timestamp,
        attempt: u32,
        meta: Bytes,
    ) -> Result<bool, ContextError> {
        let found = self.find_alarm(id).await?;
        if found.is_some_and(|row| row.revision.epoch == self.epoch()) {
            return Ok(false);
        }
        let attempts = Attempts { failed: attempt, ..Attempts::default() };
        let row = AlarmRow { scheduled_at, attempts, ..self.fresh_alarm(id, due, meta) };
        self.record(Op::PutAlarm(row))?;
        Ok(true)
    }

    /// The dead letter with this very key, if it is still there.
    async fn find_dead(&self, key: &DeadKey) -> Result<Option<DeadLetter>, ContextError> {
        let is_removed = |op: &Op| matches!(op, Op::RemoveDead(removed) if removed == key);
        if self.unsettled().iter().flat_map(|commit| commit.ops.iter()).any(is_removed) {
            return Ok(None);
        }
        let client = self.host_core().store_client().ok_or(ContextError::NoStore)?;
        dead::find(&client, self.shard(), key).await
    }

    /// Posts a message of this instance's dead letters to its inbox again. Says whether that was done: not while another with its
    /// ID is there.
    async fn post_again(&self, row: &InboxRow) -> Result<bool, ContextError> {
        let message = NewMessage {
            shard: self.shard(),
            name: row.name.clone(),
            id: row.id.clone(),
            headers: row.headers.clone(),
            body: row.body.clone(),
        };
        // From here on it may be there, whatever becomes of the commit that takes the dead letter away.
        self.note_durable();
        let posted = self.host_core().post_row(message).await?;
        Ok(posted == Posted::Inserted)
    }
}
