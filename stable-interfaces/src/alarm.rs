//! Alarms: durable wake-ups `(time, id, meta)`, many per instance.
//!
//! An alarm is a row in the store from the commit that sets it to the commit that completes, cancels or gives it up. Memory
//! only holds copies of the soonest ([`window`]); the [`driver`] fires them.
//!
//! *Why exactly once.* A handler's effects and the removal of the alarm that woke it are one batch: both land or neither does. The
//! batch carries the epoch of its shard, so of two hosts that run the handler only the shard's owner can commit. A write whose outcome is
//! unknown is repeated under its number, and the store recognises it. The removal names the revision that fired: a setting made meanwhile
//! stays, and fires for itself. And an alarm that is lost on its way to that commit (`shards/delivery.rs`) is due again, so its handler runs
//! at least once; when the commit has landed, there is nothing left to run again.

mod retry;
pub(crate) mod window;

use std::fmt;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::Timestamp;
use crate::error::ContextError;
use crate::fleet::Fleet;
use crate::id::{MAX_VALUE_BYTES, check_id};
use crate::json;
use crate::store::client::StoreClient;
use crate::store::paging::{Paged as _, noted, wrong_rows};
use crate::store::{After, AlarmKey, AlarmRow, InstanceName, Loaded, Page, Revision, ShardId};
use crate::sync::Arc;

pub use retry::RetryPolicy;

/// The number of alarms that are few for a shard, in a list of all, and about the most bytes of them.
const FEW: usize = 16;
const FEW_BYTES: usize = 16 * 1_024;
/// The most shards that are read at once for such a list.
const SHARDS_AT_ONCE: usize = 64;

/// Checks what is to be an alarm's ID.
pub(crate) fn check_alarm_id(id: &str) -> Result<(), ContextError> {
    check_id(id).map_err(|reason| ContextError::invalid("alarm ID", id, reason))
}

/// Alarms of an interface, shard by shard, at most `limit` after the one named by `after`; of the shards that are wanted.
pub(crate) async fn list(
    client: &StoreClient<'_>,
    fleet: &Fleet,
    is_wanted: impl Fn(ShardId) -> bool,
    interface: &str,
    after: Option<&Alarm>,
    limit: usize,
) -> Result<Vec<Alarm>, ContextError> {
    let (mut shard, mut after) = match after {
        Some(alarm) => {
            let shard = fleet.shard_of(alarm.instance());
            let invalid = |reason| ContextError::invalid("instance ID", alarm.instance(), reason);
            (shard.map_err(invalid)?.0, Some(alarm.key()))
        }
        None => (0, None),
    };
    let mut found = Vec::new();
    let take = |found: &mut Vec<Alarm>, rows: Vec<AlarmRow>| {
        let wanted = rows.into_iter().filter(|row| *row.name.interface == *interface);
        found.extend(wanted.map(|row| Alarm::new(Arc::new(row))));
    };
    // Most shards have few alarms: of those many are read at once, the more, the longer none had many.
    let mut at_once = 1;
    while shard < fleet.shards() && found.len() < limit {
        if at_once > 1 {
            // Never more than the last answers allow.
            let few = at_once.min(client.portion.lock().shards());
            let wanted = (shard..fleet.shards()).map(ShardId).filter(|shard| is_wanted(*shard));
            let pages: Vec<Page> = wanted.take(few).map(first_few).collect();
            if pages.is_empty() {
                break;
            }
            at_once = (at_once * 2).min(SHARDS_AT_ONCE);
            let loaded = noted(client.portion, client.load(&pages).await, |_| true).map_err(ContextError::store)?;
            for (page, Loaded { rows, is_last, .. }) in pages.iter().zip(loaded) {
                let rows = AlarmRow::from_rows(rows).ok_or_else(|| ContextError::store(wrong_rows()))?;
                shard = page.shard.0;
                if !is_last {
                    at_once = 1;
                    break;
                }
                take(&mut found, rows);
                shard += 1;
            }
            if at_once > 1 {
                continue;
            }
        }
        if !is_wanted(ShardId(shard)) {
            after = None;
            shard += 1;
            continue;
        }
        let (mut pages, mut count) = (client.pages::<AlarmRow>(ShardId(shard), after.take()), 0);
        while found.len() < limit
            && let Some(rows) = pages.next().await.map_err(ContextError::store)?
        {
            count += rows.len();
            take(&mut found, rows);
        }
        shard += 1;
        at_once = if count <= FEW { 2 } else { 1 };
    }
    found.truncate(limit);
    Ok(found)
}

/// The first alarms of a shard that is expected to have few.
fn first_few(shard: ShardId) -> Page {
    Page { shard, after: After::Alarms(None), limit: FEW, bytes: FEW_BYTES, keys_only: false }
}

/// The meta of the alarm `id`, as it is stored.
pub(crate) fn encode_meta(id: &str, meta: &(impl Serialize + ?Sized)) -> Result<Bytes, ContextError> {
    let what = || format!("the meta of alarm {id:?}");
    let meta = Bytes::from(json::to_vec(meta).map_err(|error| ContextError::not_json(what(), error))?);
    if meta.len() > MAX_VALUE_BYTES {
        return Err(ContextError::too_large(what(), meta.len()));
    }
    Ok(meta)
}

/// An alarm of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm(Arc<AlarmRow>);

impl Alarm {
    /// The alarm's place in the order in which its shard's alarms fire.
    pub(crate) fn key(&self) -> AlarmKey {
        self.0.key()
    }

    pub(crate) fn new(row: Arc<AlarmRow>) -> Alarm {
        Alarm(row)
    }

    /// The row that the alarm is.
    pub(crate) fn row(&self) -> &AlarmRow {
        &self.0
    }

    /// The alarm's ID, unique within the instance.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The instance it belongs to.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.0.name.instance
    }

    /// The time it was set for.
    #[must_use]
    pub fn scheduled_at(&self) -> Timestamp {
        self.0.scheduled_at
    }

    /// The time at which it is to fire next: [`scheduled_at`](Self::scheduled_at), or later after a failed attempt.
    #[must_use]
    pub fn due(&self) -> Timestamp {
        self.0.due
    }

    /// The number of attempts that have failed since it was set: 0 the first time.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.attempts.failed
    }

    /// The reason why the last attempt failed.
    #[must_use]
    pub fn last_error(&self) -> Option<&str> {
        self.0.attempts.last_error.as_deref()
    }

    /// The setting of the alarm that this is: the same over all attempts, another each time the alarm is set. An idempotency
    /// key for effects outside the store.
    #[must_use]
    pub fn fire_id(&self) -> FireId {
        FireId { name: self.0.name.clone(), id: self.0.id.clone(), revision: self.0.revision }
    }

    /// The meta attached when it was set.
    ///
    /// # Errors
    /// [`ContextError::Json`] if it is not a `T`.
    pub fn meta<T: DeserializeOwned>(&self) -> Result<T, ContextError> {
        let what = || format!("the meta of alarm {:?} of {}", self.0.id, self.0.name);
        serde_json::from_slice(&self.0.meta).map_err(|error| ContextError::not_a::<T>(what(), error))
    }

    /// The meta attached when it was set, as JSON text.
    #[must_use]
    pub fn meta_json(&self) -> &[u8] {
        &self.0.meta
    }
}

/// The idempotency key of an alarm's firing: `interface/instance/alarm/revision` when shown.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FireId {
    name: InstanceName,
    id: Arc<str>,
    revision: Revision,
}

impl fmt::Display for FireId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.name, self.id, self.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floating_point_number_comes_back_to_the_last_bit() {
        let mut rng = fastrand::Rng::with_seed(1);
        let random = (0..10_000).map(|_| f64::from_bits(rng.u64(..)));
        for number in random.filter(|number| number.is_finite()).chain([1.234_567_890_123_412_4e29]) {
            let stored = encode_meta("a", &number).expect("a number is small");
            let read: f64 = serde_json::from_slice(&stored).expect("it is JSON");
            assert_eq!(read.to_bits(), number.to_bits(), "{number:e}");
        }
    }
}
