//! Calls of a store that need no ownership: with a deadline each, and repeated where that is safe.

use std::future::Future;
use std::time::Duration;

use super::{Addressed, Loaded, NewMessage, Page, Posted, Read, ReadRows, Store, StoreError};
use crate::clock::{Clock, Random, within};
use crate::error::ContextError;
use crate::fleet::Fleet;

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
    pub(crate) store: &'a dyn Store,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) random: &'a dyn Random,
    pub(crate) options: &'a CommitOptions,
}

impl StoreClient<'_> {
    /// Loads pages, within the deadline of one call. There are as many as were asked for.
    pub(crate) async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        let loaded = self.in_time(self.store.load(pages)).await?;
        if loaded.len() != pages.len() {
            return Err(StoreError::NotApplied("a page is missing in the store's answer".into()));
        }
        Ok(loaded)
    }

    /// Reads of one instance, within the deadline of one call.
    pub(crate) async fn read(&self, read: &Read) -> Result<ReadRows, StoreError> {
        self.in_time(self.store.read(read)).await
    }

    /// Waits for the store to answer a question, within the deadline of one call.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let limit = self.options.store_timeout;
        let late = || Err(StoreError::NotApplied(format!("no answer within {limit:?}").into()));
        within(self.clock, limit, work).await.unwrap_or_else(late)
    }

    /// Posts to an inbox of `fleet`.
    pub(crate) async fn send(&self, fleet: &Fleet, message: Addressed) -> Result<Posted, ContextError> {
        self.post(message.into_message(fleet, self.random)).await
    }

    /// Posts, and repeats while the store cannot be reached, up to the commit timeout.
    ///
    /// What may have been inserted is not repeated: by the time the store answers again its owner may have handled the message
    /// and taken it out, and then a second one would not be recognised.
    pub(crate) async fn post(&self, message: NewMessage) -> Result<Posted, ContextError> {
        let StoreClient { store, clock, random, options } = *self;
        let messages = [message];
        let began = clock.elapsed();
        let mut failures = 0;
        loop {
            let error = match within(clock, options.store_timeout, store.post(&messages)).await {
                Some(Ok(posted)) => return Ok(posted.first().copied().unwrap_or(Posted::Inserted)),
                Some(Err(error)) => error,
                None => return Err(ContextError::Unknown),
            };
            if error.may_have_happened() {
                return Err(ContextError::Unknown);
            }
            if !error.is_retryable() || clock.elapsed().saturating_sub(began) >= options.commit_timeout {
                return Err(ContextError::store(error));
            }
            clock.sleep(backoff(random, failures)).await;
            failures += 1;
        }
    }
}

/// The pause before another try: 5 ms, doubling up to one second, and up to half as much again.
pub(crate) fn backoff(random: &dyn Random, failures: u32) -> Duration {
    let millis = (5_u64 << failures.min(8)).min(1_000);
    Duration::from_millis(millis + random.next_u64() % (millis / 2 + 1))
}
