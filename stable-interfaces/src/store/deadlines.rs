//! A deadline on each call of a store.
//!
//! A call that is not answered in time is dropped. Of a question nothing can have happened; of anything else the outcome is unknown.

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;

use super::{
    BoxError, Claim, Claimed, Epoch, Found, Hints, Incarnation, Loaded, Members, NewMessage, Page, Posted, Read,
    Renewal, Renewed, ShardId, Store, StoreError, Write,
};
use crate::clock::{Clock, within};
use crate::sync::Arc;

/// A store that answers each call within a limit.
#[derive(Debug, Clone)]
pub(crate) struct Deadlines {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    limit: Duration,
}

impl Deadlines {
    pub(crate) fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, limit: Duration) -> Deadlines {
        Deadlines { store, clock, limit }
    }

    /// The same store with no more time than this for a call.
    pub(crate) fn at_most(&self, limit: Duration) -> Deadlines {
        Deadlines { limit: self.limit.min(limit), ..self.clone() }
    }

    async fn ask<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        answered(&*self.clock, self.limit, StoreError::NotApplied, work).await
    }

    async fn change<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        answered(&*self.clock, self.limit, StoreError::Unavailable, work).await
    }
}

/// Waits for an answer until the limit has passed, and then makes an error of what that means.
pub(crate) async fn answered<T>(
    clock: &dyn Clock,
    limit: Duration,
    late: fn(BoxError) -> StoreError,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    within(clock, limit, work).await.unwrap_or_else(|| Err(late(format!("no answer within {limit:?}").into())))
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Store for Deadlines {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        self.change(self.store.claim(claim)).await
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        self.change(self.store.renew(renewal)).await
    }

    async fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        self.change(self.store.release(incarnation, given_up)).await
    }

    async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        self.change(self.store.cordon(member, is_cordoned, seen)).await
    }

    async fn members(&self) -> Result<Members, StoreError> {
        self.ask(self.store.members()).await
    }

    async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        self.change(self.store.commit(write)).await
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        self.change(self.store.post(messages)).await
    }

    async fn watch(&self, incarnation: Incarnation) -> Result<Hints, StoreError> {
        self.ask(self.store.watch(incarnation)).await
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        self.ask(self.store.load(pages)).await
    }

    async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        self.ask(self.store.read(read)).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::{After, MemoryStore};
    use super::*;
    use crate::clock::SystemClock;
    use crate::testing::{Fault, FaultStore, Method};

    #[tokio::test(start_paused = true)]
    #[allow(clippy::disallowed_methods, reason = "the runtime's clock is the one that is paused")]
    async fn a_question_without_an_answer_has_not_happened_and_of_a_change_it_is_unknown() {
        let store = FaultStore::new(Arc::new(MemoryStore::new()));
        for method in [Method::Load, Method::Renew] {
            store.set_chance(method, Fault::Hang, 1.0);
        }
        let timely = Deadlines::new(Arc::new(store), Arc::new(SystemClock::default()), Duration::from_secs(5));
        let began = tokio::time::Instant::now();
        let asked = timely.load(&[Page::new(ShardId(0), After::Alarms(None), 1)]).await;
        assert!(matches!(asked, Err(StoreError::NotApplied(ref why)) if why.to_string() == "no answer within 5s"));
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        let changed =
            timely.at_most(Duration::from_secs(1)).renew(&Renewal::new(Incarnation(1), Duration::from_secs(1))).await;
        assert!(matches!(changed, Err(StoreError::Unavailable(ref why)) if why.to_string() == "no answer within 1s"));
        assert_eq!(began.elapsed(), Duration::from_secs(6));
    }
}
