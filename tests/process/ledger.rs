//! An instance that numbers everything that happens to it, so that what was lost, or was done twice, can be counted.
//!
//! It keeps a count of each kind of happening, in memory and stored, and a row for each happening that holds the count it was
//! made under; both are one commit. If nothing was lost, done twice, or written by a former owner, then the rows of a kind are
//! numbered from 1 up to its count, each number once.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use stable_interfaces::transport::RemoteError;
use stable_interfaces::{Alarm, Context, ContextError, Handle, Message, OnAlarm, OnMessage, StableInterface};

use super::voice::Voice;

/// The key under which an instance keeps its counts.
pub(super) const COUNTS: &str = "counts";

/// Counts of what happened to an instance, or to many. Stored with every operation, so it is written short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "[u64; 5]", from = "[u64; 5]")]
pub struct Counts {
    /// Operations noted. Each sets an alarm.
    pub booked: u64,
    /// Alarms cancelled before they fired.
    pub cancelled: u64,
    /// Alarms that fired.
    pub fired: u64,
    /// Of these, before their time.
    pub early: u64,
    /// Messages taken from the inbox.
    pub taken: u64,
}

impl Counts {
    /// Adds those of another instance.
    pub(super) fn add(&mut self, other: Counts) {
        self.booked += other.booked;
        self.cancelled += other.cancelled;
        self.fired += other.fired;
        self.early += other.early;
        self.taken += other.taken;
    }
}

impl From<Counts> for [u64; 5] {
    fn from(counts: Counts) -> [u64; 5] {
        let Counts { booked, cancelled, fired, early, taken } = counts;
        [booked, cancelled, fired, early, taken]
    }
}

impl From<[u64; 5]> for Counts {
    fn from([booked, cancelled, fired, early, taken]: [u64; 5]) -> Counts {
        Counts { booked, cancelled, fired, early, taken }
    }
}

/// The reason why a ledger did not do it.
#[derive(Debug, thiserror::Error)]
pub(super) enum LedgerError {
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The words of one on another host.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A stored row cannot be read.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// The instance.
pub(super) struct Ledger {
    counts: Counts,
    /// Says which alarms begin to fire, and when.
    voice: Voice,
    /// The name of the host.
    host: String,
}

impl Ledger {
    pub(super) fn new(voice: Voice, host: String) -> Ledger {
        Ledger { counts: Counts::default(), voice, host }
    }

    /// The name of the host.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Notes an operation, and sets an alarm of its name; how many it has noted with that.
    pub(super) fn book(&mut self, cx: &mut Context, op: &str, after: Duration) -> Result<u64, ContextError> {
        self.counts.booked += 1;
        self.note(cx, "booked", op, self.counts.booked)?;
        cx.set_alarm(op, cx.now() + after, &())?;
        Ok(self.counts.booked)
    }

    /// Adds a row, whose number has been counted already.
    fn note(&self, cx: &mut Context, kind: &str, op: &str, number: u64) -> Result<(), ContextError> {
        cx.put(COUNTS, &self.counts)?;
        cx.put(&format!("{kind}/{op}"), &number)
    }
}

impl StableInterface for Ledger {
    const NAME: &'static str = "ledger";
    type Error = LedgerError;

    async fn on_start(&mut self, cx: &mut Context) -> Result<(), LedgerError> {
        self.counts = cx.get(COUNTS).await?.unwrap_or_default();
        Ok(())
    }
}

/// Cancels the alarm of an operation, unless it has fired; tells whether it did.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Cancel(pub(super) String);

impl Handle<Cancel> for Ledger {
    type Reply = bool;

    async fn handle(&mut self, cx: &mut Context, Cancel(op): Cancel) -> Result<bool, LedgerError> {
        if cx.get::<u64>(&format!("fired/{op}")).await?.is_some() {
            return Ok(false);
        }
        self.counts.cancelled += 1;
        self.note(cx, "cancelled", &op, self.counts.cancelled)?;
        cx.cancel_alarm(&op)?;
        Ok(true)
    }
}

/// The counts, as they are in memory, and the host that says it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Tally;

impl Handle<Tally> for Ledger {
    type Reply = (Counts, String);

    async fn handle(&mut self, _: &mut Context, Tally: Tally) -> Result<(Counts, String), LedgerError> {
        Ok((self.counts, self.host.clone()))
    }
}

/// All that is stored: the counts, and the number of each row.
pub(super) struct Rows;

impl Handle<Rows> for Ledger {
    type Reply = (Counts, Vec<(String, u64)>);

    async fn handle(&mut self, cx: &mut Context, Rows: Rows) -> Result<(Counts, Vec<(String, u64)>), LedgerError> {
        let mut counts = Counts::default();
        let mut rows = Vec::new();
        for (key, value) in cx.list("").await? {
            if *key == *COUNTS {
                counts = serde_json::from_slice(&value)?;
            } else {
                rows.push((key.to_string(), serde_json::from_slice(&value)?));
            }
        }
        Ok((counts, rows))
    }
}

impl OnAlarm for Ledger {
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), LedgerError> {
        let (now, due) = (cx.now(), alarm.scheduled_at());
        self.voice.say(format!("fired {} {} {} {}", cx.id(), alarm.id(), now.as_millis(), due.as_millis()));
        self.counts.early += u64::from(now < due);
        self.counts.fired += 1;
        Ok(self.note(cx, "fired", alarm.id(), self.counts.fired)?)
    }
}

impl OnMessage for Ledger {
    async fn on_message(&mut self, cx: &mut Context, message: &Message) -> Result<(), LedgerError> {
        self.counts.taken += 1;
        Ok(self.note(cx, "taken", message.id(), self.counts.taken)?)
    }
}
