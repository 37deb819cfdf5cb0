//! Somebody else's transaction that can take a batch of this library along.

use async_trait::async_trait;

use super::{Batch, Incarnation, StoreError};

/// A transaction under way that can take a batch along.
///
/// Dropped before [`commit`](Self::commit), it is rolled back. Either future may be dropped when it takes too long, and then
/// [`was_committed`](Self::was_committed) is asked, again and again until it knows.
#[async_trait]
pub trait ExternalTransaction: Send + 'static {
    /// Writes `batch` as the last thing in the transaction, if `incarnation` owns its shard under its epoch, and commits. Called
    /// once. While this is not so, the transaction is rolled back.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] or [`StoreError::Replaced`] if the shard is not the incarnation's. [`StoreError::Unavailable`] if it
    /// is not known whether it was committed. After any other error it surely was not.
    async fn commit(&mut self, incarnation: Incarnation, batch: &Batch) -> Result<(), StoreError>;

    /// Says whether it was committed. The answer is final: a late commit changes nothing after `false`.
    ///
    /// # Errors
    /// [`StoreError::Replaced`] if nobody can tell any more, because the incarnation was ended. After any other it is asked again.
    async fn was_committed(&mut self) -> Result<bool, StoreError>;
}
