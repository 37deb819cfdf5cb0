//! Effects that ride on another commit: that of a transaction of the application, on the store's own database.
//!
//! The core knows no database. A store whose database can hold the application's rows as well offers transactions as an
//! extension trait of [`Context`], made of two things here: [`Context::ride`] makes everything the incarnation has queued
//! durable and keeps everything else of it waiting, and a [`Carrier`] then takes the handler's effects along in its commit.
//!
//! A ride that surely did not happen leaves the handler where it was before it. One that may have happened holds the
//! incarnation's gate until that is known, as any commit does, and it belongs to the host, not to the handler: it ends the
//! same way whatever becomes of the handler meanwhile.

use std::fmt;

use async_trait::async_trait;

use super::context::{Context, Rides};
use super::effects::Mark;
use super::gate::Failure;
use crate::error::ContextError;
use crate::shards::delivery::Delivery;
use crate::shards::wake::Wake;
use crate::store::{Batch, Incarnation, Store, StoreError};
use crate::sync::{Arc, Mutex};

/// A transaction under way that can take a batch along.
///
/// Dropped before [`commit`](Self::commit), it is rolled back. Either future may be dropped when it takes too long, and then
/// [`was_committed`](Self::was_committed) is asked, again and again until it knows.
#[async_trait]
pub trait Carrier: Send + 'static {
    /// Writes `batch` as the last thing in the transaction, if `incarnation` owns its shard under its epoch, and commits. Called
    /// once. While this is not so, the transaction is rolled back.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] or [`StoreError::Replaced`] if the shard is not the incarnation's. [`StoreError::Unavailable`] if it
    /// is not known whether it was committed. After any other error it surely was not.
    async fn commit(&mut self, incarnation: Incarnation, batch: &Batch) -> Result<(), StoreError>;

    /// Whether it was committed. The answer is final: a late commit changes nothing after `false`.
    ///
    /// # Errors
    /// [`StoreError::Replaced`] if nobody can tell any more, because the incarnation was ended. After any other it is asked again.
    async fn was_committed(&mut self) -> Result<bool, StoreError>;
}

/// Whether a handler goes on after a ride.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It is the handler's last commit: what woke the handler is completed with it, and nothing can be recorded after it.
    Last,
    /// The handler may be run again with this part done.
    Interim,
}

/// A handler's effects on their way to a [`Carrier`]. While this exists nothing else of the instance is committed; dropped, it
/// takes back what was recorded since it was made.
pub struct Ride<'c> {
    context: &'c mut Context,
    incarnation: Incarnation,
    before: Mark,
    state: RideState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum RideState {
    Recording,
    Committing,
    Over,
}

impl fmt::Debug for Ride<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ride").field("context", &self.context).field("state", &self.state).finish_non_exhaustive()
    }
}

impl Context {
    /// The store of this instance's host, for extensions that know which one it is.
    #[must_use]
    pub fn store(&self) -> Option<&dyn Store> {
        self.host_core().store().map(|store| &**store)
    }

    /// Begins a [`Ride`]: waits until everything that earlier handlers of this instance committed is durable. For extensions;
    /// applications use what their store's crate makes of it.
    ///
    /// # Errors
    /// [`ContextError::NotHere`] within another ride, and after the last one of this handler. As [`commit`](Self::commit) if an
    /// earlier commit of this instance failed.
    pub async fn ride(&mut self) -> Result<Ride<'_>, ContextError> {
        if self.recorded.rides() == Rides::Riding {
            return Err(ContextError::NotHere("a transaction inside a transaction"));
        }
        self.recorded.require_open()?;
        let incarnation = self.host_core().started().ok_or(ContextError::NoStore)?.incarnation;
        self.require_store()?;
        if let Some(ticket) = self.pending() {
            ticket.wait().await?;
        }
        let before = self.recorded.mark();
        self.recorded.set_rides(Rides::Riding);
        Ok(Ride { context: self, incarnation, before, state: RideState::Recording })
    }
}

impl Ride<'_> {
    /// The handler's context: what is recorded on it from here on rides along, and is taken back if the ride does not happen.
    pub fn context(&mut self) -> &mut Context {
        self.context
    }

    /// Who the carrier writes for.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Commits what the handler has recorded, and with [`Part::Last`] the completion of what woke it, by `carrier`.
    ///
    /// # Errors
    /// [`ContextError::Store`] if it surely did not happen: the handler may go on, with what it had recorded before the ride.
    /// [`ContextError::Fenced`] and [`ContextError::Unknown`] as for [`Context::commit`].
    pub async fn commit(mut self, carrier: Box<dyn Carrier>, part: Part) -> Result<(), ContextError> {
        let completes = self.context.completion().filter(|_| part == Part::Last);
        let mut ops = self.context.recorded.take_ops();
        ops.extend(completes.as_ref().map(Wake::done));
        self.state = RideState::Committing;
        let (commit, ticket, fate) = self.context.carry(ops, completes.is_some(), carrier)?;
        // Whichever way the gate opens, the fate says why.
        let _ = ticket.wait().await;
        match fate.ask() {
            Fate::Landed => {
                self.state = RideState::Over;
                self.context.landed(completes.is_some());
                Ok(())
            }
            Fate::Refused(error) => {
                self.state = RideState::Recording;
                self.context.recorded.restore(commit.ops.iter().take(self.before.ops).cloned());
                Err(ContextError::Store(error))
            }
            Fate::Lost(failure) => Err(failure.into()),
            Fate::Open => Err(ContextError::Unknown),
        }
    }
}

impl Drop for Ride<'_> {
    fn drop(&mut self) {
        let recorded = &mut self.context.recorded;
        match self.state {
            RideState::Recording => {
                recorded.set_rides(Rides::None);
                recorded.undo_to(&self.before);
            }
            // Its outcome is not known here, so nothing that builds on it may happen.
            RideState::Committing => recorded.set_rides(Rides::Cut),
            RideState::Over => {}
        }
    }
}

/// What became of a ride.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    Open,
    Landed,
    /// It surely did not happen.
    Refused(Arc<StoreError>),
    /// It did not happen, or nobody knows, and nothing of this incarnation will.
    Lost(Failure),
}

/// The fate of one ride, as its handler, the turn around that and the host's task share it.
#[derive(Debug)]
pub(crate) struct Riding {
    state: Mutex<RidingState>,
    /// Whether what woke the handler is completed by it.
    completes: bool,
}

#[derive(Debug)]
struct RidingState {
    fate: Fate,
    /// Whether the handler still waits, and will put right what a refusal means.
    is_awaited: bool,
    /// What woke the handler, once its turn has ended before the ride did.
    woken_by: Option<Delivery>,
}

impl Riding {
    pub(crate) fn new(completes: bool) -> Riding {
        let state = RidingState { fate: Fate::Open, is_awaited: true, woken_by: None };
        Riding { state: Mutex::new(state), completes }
    }

    /// The handler asks, and after that waits no longer.
    fn ask(&self) -> Fate {
        let mut state = self.state.lock();
        state.is_awaited = false;
        state.fate.clone()
    }

    /// Tells whether it surely happened.
    pub(crate) fn has_landed(&self) -> bool {
        matches!(self.state.lock().fate, Fate::Landed)
    }

    /// The host's task has found out. Returns what the gate is to be told.
    pub(crate) fn decide(&self, fate: Fate) -> Result<(), Failure> {
        let mut state = self.state.lock();
        let outcome = match &fate {
            Fate::Refused(error) if !state.is_awaited => Err(Failure::Store(error.clone())),
            Fate::Lost(failure) => Err(failure.clone()),
            Fate::Open => Err(Failure::Unknown),
            Fate::Landed | Fate::Refused(_) => Ok(()),
        };
        let delivery = state.woken_by.take();
        let has_landed = matches!(fate, Fate::Landed);
        state.fate = fate;
        drop(state);
        if let Some(delivery) = delivery.filter(|_| has_landed) {
            delivery.ack();
        }
        outcome
    }

    /// The turn has ended. Gives back what woke it if the ride does not answer for that; and says whether it may have happened.
    pub(crate) fn end_turn(&self, woken_by: Option<Delivery>) -> (Option<Delivery>, bool) {
        let mut state = self.state.lock();
        state.is_awaited = false;
        let (is_open, is_refused) = (matches!(state.fate, Fate::Open), matches!(state.fate, Fate::Refused(_)));
        if is_refused || !self.completes {
            return (woken_by, !is_refused);
        }
        let Some(delivery) = woken_by else { return (None, true) };
        let has_landed = matches!(state.fate, Fate::Landed);
        if is_open {
            state.woken_by = Some(delivery);
            return (None, true);
        }
        drop(state);
        if has_landed {
            delivery.ack();
        }
        (None, true)
    }
}
