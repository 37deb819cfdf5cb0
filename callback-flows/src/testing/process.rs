//! The way of one process to its store, until it dies.

use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use stable_interfaces::store::{
    Claim, Claimed, Epoch, Found, Hints, Incarnation, Loaded, Members, NewMessage, Page, Posted, Read, Renewal,
    Renewed, ShardId, Write,
};
use stable_interfaces::{MemoryStore, Store, StoreError};
use tokio::sync::Notify;

/// The place of a crash: at a write of a number, before the store has it or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) at: u64,
    pub(super) is_before: bool,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.is_before { "before" } else { "after" };
        write!(f, "{side} write {} was durable", self.at)
    }
}

/// The writes of all processes of a test.
#[derive(Debug, Default)]
pub(super) struct Tally {
    cut: Option<Cut>,
    writes: AtomicU64,
    /// Calls that began and calls that ended.
    moves: AtomicU64,
    /// A notice of each write.
    written: Notify,
    has_cut: AtomicBool,
}

impl Tally {
    pub(super) fn new(cut: Option<Cut>) -> Tally {
        Tally { cut, ..Tally::default() }
    }

    pub(super) fn has_cut(&self) -> bool {
        self.has_cut.load(Ordering::Relaxed)
    }

    pub(super) fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }

    /// Waits for the next write, or returns at once if there was one since the last wait.
    pub(super) async fn written(&self) {
        self.written.notified().await;
    }
}

/// A process as its store sees it. Clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Process {
    store: MemoryStore,
    tally: Arc<Tally>,
    end: Arc<End>,
}

#[derive(Debug, Default)]
struct End {
    has_come: AtomicBool,
    told: Notify,
}

impl Process {
    pub(super) fn new(store: MemoryStore, tally: Arc<Tally>) -> Process {
        Process { store, tally, end: Arc::default() }
    }

    /// Ends the process: nothing of it reaches the store.
    pub(super) fn end(&self) {
        self.end.has_come.store(true, Ordering::Relaxed);
        self.end.told.notify_one();
    }

    /// Waits for the end of the process.
    pub(super) async fn ended(&self) {
        if !self.end.has_come.load(Ordering::Relaxed) {
            self.end.told.notified().await;
        }
    }

    async fn unless_ended(&self) {
        self.tally.moves.fetch_add(1, Ordering::Relaxed);
        if self.end.has_come.load(Ordering::Relaxed) {
            pending::<()>().await;
        }
    }

    /// Writes, which is the last thing that the process does if the test wants it so.
    async fn write<T>(&self, write: impl Future<Output = T>) -> T {
        self.unless_ended().await;
        let number = self.tally.writes.fetch_add(1, Ordering::Relaxed);
        let cut = self.tally.cut.filter(|cut| cut.at == number);
        let answer = if cut.is_some_and(|cut| cut.is_before) { None } else { Some(write.await) };
        self.tally.moves.fetch_add(1, Ordering::Relaxed);
        self.tally.written.notify_one();
        match answer {
            Some(answer) if cut.is_none() => answer,
            _ => {
                self.tally.has_cut.store(true, Ordering::Relaxed);
                self.end();
                pending().await
            }
        }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Store for Process {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        self.unless_ended().await;
        self.store.claim(claim).await
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        self.unless_ended().await;
        self.store.renew(renewal).await
    }

    async fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        self.unless_ended().await;
        self.store.release(incarnation, given_up).await
    }

    async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        self.unless_ended().await;
        self.store.cordon(member, is_cordoned, seen).await
    }

    async fn members(&self) -> Result<Members, StoreError> {
        self.unless_ended().await;
        self.store.members().await
    }

    async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        self.write(self.store.commit(write)).await
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        self.write(self.store.post(messages)).await
    }

    async fn watch(&self, incarnation: Incarnation) -> Result<Hints, StoreError> {
        self.unless_ended().await;
        self.store.watch(incarnation).await
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        self.unless_ended().await;
        self.store.load(pages).await
    }

    async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        self.unless_ended().await;
        self.store.read(read).await
    }
}
