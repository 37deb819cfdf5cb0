//! Calls of a store that need no ownership: with a deadline each, and repeated where that is safe.

use std::time::Duration;

use super::deadlines::Deadlines;
use super::portion::Portion;
use super::{
    Addressed, After, Found, Loaded, NewMessage, Page, Posted, Read, ReadRange, ReadRows, Rows, Store, StoreError,
};
use crate::clock::{Clock, Random};
use crate::error::ContextError;
use crate::fleet::Fleet;
use crate::sync::Mutex;

/// Limits and times of calls to a store.
#[derive(Debug, Clone)]
pub(crate) struct CommitOptions {
    pub(crate) lanes: u16,
    /// After this, one call of the store counts as unanswered.
    pub(crate) store_timeout: Duration,
    /// After this, a caller is told that its commit did not happen, or that its outcome is unknown.
    pub(crate) commit_timeout: Duration,
    /// The most commits waiting in a lane, and the most bytes.
    pub(crate) max_queued: usize,
    pub(crate) max_queued_bytes: usize,
}

/// A store with deadlines and repeats, for calls that need no epoch.
pub(crate) struct StoreClient<'a> {
    pub(crate) store: Deadlines,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) random: &'a dyn Random,
    pub(crate) options: &'a CommitOptions,
    /// The size of the next page that is read.
    pub(crate) portion: &'a Mutex<Portion>,
}

impl StoreClient<'_> {
    /// Loads pages, within the deadline of one call. There are as many as were asked for.
    pub(crate) async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        let loaded = self.store.load(pages).await?;
        if loaded.len() != pages.len() {
            return Err(StoreError::NotApplied("a page is missing in the store's answer".into()));
        }
        // Nothing says where to go on then, and to ask for the same again at once would never end.
        match pages.iter().zip(&loaded).find(|(page, loaded)| !loaded.is_last && !goes_on(&page.after, &loaded.rows)) {
            Some((page, _)) => Err(stuck(&format!("shard {}", page.shard))),
            None => Ok(loaded),
        }
    }

    /// Reads of one instance, within the deadline of one call.
    pub(crate) async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        let found = self.store.read(read).await?;
        let leads_on = found.is_last || is_within(&read.range, &found.rows);
        if leads_on { Ok(found) } else { Err(stuck(&read.name.to_string())) }
    }

    /// Posts to an inbox of `fleet`.
    pub(crate) async fn send(&self, fleet: &Fleet, message: Addressed) -> Result<Posted, ContextError> {
        self.post(message.into_message(fleet, self.random), || false).await
    }

    /// Posts, and repeats while the store cannot be reached, up to the commit timeout, and until whoever asks `has_ended`.
    ///
    /// What may have been inserted is not repeated: by the time the store answers again its owner may have handled the message
    /// and taken it out, and then a second one would not be recognised.
    pub(crate) async fn post(&self, message: NewMessage, has_ended: impl Fn() -> bool) -> Result<Posted, ContextError> {
        let messages = [message];
        let mut backoff = Backoff::new(self.clock, self.random);
        loop {
            let error = match self.store.post(&messages).await {
                Ok(posted) => return Ok(posted.first().copied().unwrap_or(Posted::Inserted)),
                Err(error) => error,
            };
            if error.may_have_happened() {
                return Err(ContextError::Unknown);
            }
            if !error.is_retryable() || backoff.over(self.options.commit_timeout) || has_ended() {
                return Err(ContextError::store(error));
            }
            backoff.pause().await;
            if has_ended() {
                return Err(ContextError::store(StoreError::NotApplied("the host has stopped".into())));
            }
        }
    }
}

/// Tells whether the last row of a page comes after what was asked for.
fn goes_on(after: &After, rows: &Rows) -> bool {
    match (after, rows) {
        (After::Alarms(Some(after)), Rows::Alarms(rows)) => rows.last().is_some_and(|row| row.key() > *after),
        (After::Inbox(Some(after)), Rows::Inbox(rows)) => rows.last().is_some_and(|row| row.key() > *after),
        (After::Dead(Some(after)), Rows::Dead(rows)) => rows.last().is_some_and(|row| row.key() > *after),
        _ => !rows.is_empty(),
    }
}

/// Tells whether the last row of an answer is not before the range that was asked for.
fn is_within(range: &ReadRange, rows: &ReadRows) -> bool {
    match (range, rows) {
        (ReadRange::Storage(from, _), ReadRows::Storage(rows)) => rows.last().is_some_and(|(key, _)| key >= from),
        (ReadRange::Alarms(from, _), ReadRows::Alarms(rows)) => rows.last().is_some_and(|row| row.id >= *from),
        _ => !rows.is_empty(),
    }
}

/// The error for an answer that leads no further and is said not to be the last.
fn stuck(of: &str) -> StoreError {
    let what = format!(
        "the store has given no further rows of {of} and said that there are more, which is a fault of the store"
    );
    StoreError::NotApplied(what.into())
}

impl Rows {
    fn is_empty(&self) -> bool {
        match self {
            Rows::Alarms(rows) => rows.is_empty(),
            Rows::Inbox(rows) => rows.is_empty(),
            Rows::Dead(rows) => rows.is_empty(),
        }
    }
}

impl ReadRows {
    fn is_empty(&self) -> bool {
        match self {
            ReadRows::Storage(rows) => rows.is_empty(),
            ReadRows::Alarms(rows) => rows.is_empty(),
        }
    }
}

/// The pauses of a loop that tries again what has failed.
pub(crate) struct Backoff<'a> {
    clock: &'a dyn Clock,
    random: &'a dyn Random,
    /// The time at which the loop began, by the lease clock.
    began: Duration,
    failures: u32,
}

impl<'a> Backoff<'a> {
    pub(crate) fn new(clock: &'a dyn Clock, random: &'a dyn Random) -> Backoff<'a> {
        Backoff { clock, random, began: clock.elapsed(), failures: 0 }
    }

    /// Tells that nothing has failed since the loop began or was [reset](Self::reset).
    pub(crate) fn is_first(&self) -> bool {
        self.failures == 0
    }

    /// Tells that the loop has gone on for so long.
    pub(crate) fn over(&self, limit: Duration) -> bool {
        self.clock.elapsed().saturating_sub(self.began) >= limit
    }

    /// Notes a failure, and waits before another try.
    pub(crate) async fn pause(&mut self) {
        let pause = backoff(self.random, self.failures);
        self.failures = self.failures.saturating_add(1);
        self.clock.sleep(pause).await;
    }

    /// Forgets the failures: the next pause is the shortest again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// The pause before another try: 5 ms, doubling up to one second, and up to half as much again.
pub(crate) fn backoff(random: &dyn Random, failures: u32) -> Duration {
    let millis = (5_u64 << failures.min(8)).min(1_000);
    Duration::from_millis(millis + random.next_u64() % (millis / 2 + 1))
}
