//! Effects that are part of somebody else's transaction, on the store's own database.
//!
//! The core knows no database. A store whose database can hold the application's rows as well offers transactions as an
//! extension trait of [`Context`], made of two things here: [`Context::enlist`] makes everything the incarnation has queued
//! durable and keeps everything else of it waiting, and an [`ExternalTransaction`] then takes the handler's effects along in its
//! commit.
//!
//! An enlistment that surely did not happen leaves the handler where it was before it. One that may have happened holds the
//! incarnation's gate until that is known, as any commit does, and it belongs to the host, not to the handler: it ends the
//! same way whatever becomes of the handler meanwhile.

use std::fmt;

use super::context::Context;
use crate::commit::effects::Mark;
use crate::commit::in_doubt::CommitOutcome;
use crate::error::ContextError;
use crate::instance::recorded::Enlisted;
use crate::shards::wake::Wake;
use crate::store::{ExternalTransaction, Incarnation, Store};

/// A handler's effects on their way into an [`ExternalTransaction`]. While this exists nothing else of the instance is committed; dropped, it
/// takes back what was recorded since it was made.
pub struct Enlistment<'c> {
    context: &'c mut Context,
    incarnation: Incarnation,
    before: Mark,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Recording,
    Committing,
    Over,
}

impl fmt::Debug for Enlistment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enlistment").field("context", &self.context).field("state", &self.state).finish_non_exhaustive()
    }
}

impl Context {
    /// The store of this instance's host, for extensions that know which one it is.
    #[must_use]
    pub fn store(&self) -> Option<&dyn Store> {
        self.host_core().store().map(|store| &**store)
    }

    /// Begins an [`Enlistment`]: waits until everything that earlier handlers of this instance committed is durable. For extensions;
    /// applications use what their store's crate makes of it.
    ///
    /// # Errors
    /// [`ContextError::NotHere`] within another enlistment, and after the last one of this handler. As [`commit`](Self::commit) if an
    /// earlier commit of this instance failed.
    pub async fn enlist(&mut self) -> Result<Enlistment<'_>, ContextError> {
        if self.recorded.enlisted() == Enlisted::UnderWay {
            return Err(ContextError::NotHere("a transaction inside a transaction".into()));
        }
        self.recorded.require_open()?;
        let incarnation = self.host_core().started().ok_or(ContextError::NoStore)?.incarnation;
        self.require_store()?;
        if let Some(ticket) = self.pending() {
            ticket.wait().await?;
        }
        let before = self.recorded.mark();
        self.recorded.set_enlisted(Enlisted::UnderWay);
        Ok(Enlistment { context: self, incarnation, before, state: State::Recording })
    }
}

impl Enlistment<'_> {
    /// The handler's context: what is recorded on it from here on goes into the transaction, and is taken back if that does not happen.
    pub fn context(&mut self) -> &mut Context {
        self.context
    }

    /// The incarnation that the transaction is to write for.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Commits what the handler has recorded with `transaction`, as the handler's last commit: what woke the handler is completed
    /// with it, and nothing can be recorded after it.
    ///
    /// # Errors
    /// [`ContextError::Store`] if it surely did not happen: the handler may go on, with what it had recorded before the enlistment.
    /// [`ContextError::Fenced`] and [`ContextError::Unknown`] as for [`Context::commit`].
    pub async fn commit_last(self, transaction: Box<dyn ExternalTransaction>) -> Result<(), ContextError> {
        let completes = self.context.completion();
        self.commit(transaction, completes).await
    }

    /// Commits what the handler has recorded with `transaction`. The handler may be run again with this part done.
    ///
    /// # Errors
    /// As [`commit_last`](Self::commit_last).
    pub async fn commit_interim(self, transaction: Box<dyn ExternalTransaction>) -> Result<(), ContextError> {
        self.commit(transaction, None).await
    }

    async fn commit(
        mut self,
        transaction: Box<dyn ExternalTransaction>,
        completes: Option<Wake>,
    ) -> Result<(), ContextError> {
        let mut ops = self.context.recorded.take_ops();
        ops.extend(completes.as_ref().map(Wake::done));
        self.state = State::Committing;
        let (commit, ticket, in_doubt) = self.context.commit_externally(ops, completes.is_some(), transaction)?;
        // Whichever way the gate opens, the outcome says why.
        let _ = ticket.wait().await;
        match in_doubt.ask() {
            CommitOutcome::Committed => {
                self.state = State::Over;
                self.context.enlistment_committed(completes.is_some());
                Ok(())
            }
            CommitOutcome::Refused(error) => {
                self.state = State::Recording;
                self.context.recorded.restore(commit.ops.iter().take(self.before.ops).cloned());
                Err(ContextError::Store(error))
            }
            CommitOutcome::Lost(failure) => Err(failure.into()),
            CommitOutcome::Open => Err(ContextError::Unknown),
        }
    }
}

impl Drop for Enlistment<'_> {
    fn drop(&mut self) {
        let recorded = &mut self.context.recorded;
        match self.state {
            State::Recording => {
                recorded.set_enlisted(Enlisted::None);
                recorded.undo_to(&self.before);
            }
            // Its outcome is not known here, so nothing that builds on it may happen.
            State::Committing => recorded.set_enlisted(Enlisted::Cut),
            State::Over => {}
        }
    }
}
