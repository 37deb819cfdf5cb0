//! The embedded store: a directory on the local disk, for one process.
//!
//! One process holds the directory's lock, so everything that a database of many clients decides in a transaction is decided
//! here under one mutex: who owns a shard, whether a write is a repeat, what a row held before. A call that changes something
//! is one atomic write of the database and one `fdatasync`, which posts that wait at the same time share, and answers after both.

mod directory;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod key;
mod ownership;
mod posts;
mod scan;
#[cfg(test)]
mod tests;
mod threads;
mod write;

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU16;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use fjall::PersistMode;
use parking_lot::Mutex;
use stable_interfaces::clock::{Clock, SystemClock};
use stable_interfaces::store::{
    Claim, Claimed, Epoch, Found, Hint, HintSender, Hints, Incarnation, Loaded, Members, NewMessage, Page, Read,
    Renewal, Renewed, Roster, Sequence, ShardId, Write,
};
use stable_interfaces::{Posted, Store, StoreError};

use self::directory::{Directory, Table};
use self::ownership::{Numbered, Ownership};
use self::posts::Posts;
use self::scan::Scan;
use self::threads::{NoResult, Purpose, Threads};
use self::write::{Changes, Incoming, Prepared};
use crate::codec::{self, ShardRow};

const FLEET_KEY: &str = "fleet";
const SHARD_PREFIX: &[u8] = b"shard/";
/// A store in a directory of the local disk, on [`fjall`], for the hosts of one process.
///
/// Whatever a method has acknowledged survives `kill -9` of the process at any moment and, as far as the disk keeps what
/// `fdatasync` promised, the end of the machine. The first write that fails stops the store: from then on everything that
/// writes or owns is refused with [`StoreError::Stopped`], reading goes on, and opening the directory in a new process shows
/// all that was acknowledged.
///
/// Clones share one open directory; it is closed, and free for others, when the last clone and the last call under way
/// are gone. After opening, every shard is free: the lock proves that whoever owned it has ended. Shards it did not
/// [`release`](Store::release) are granted as not clean.
///
/// The store works on threads of its own, named `fjall-store`, which end with it: four, and as many for reading as the machine has processors, at
/// least four and at most 16. On a simulated [`clock`](FjallStoreBuilder::clock) it works on tokio's blocking threads.
///
/// # Files
///
/// Everything is in the subdirectory `data`. What was written last is in journals of 64 MB each. One is removed when each of the seven tables
/// has moved what it has of it to files of its own; a table that is seldom written does so when the next journal is full, so there are two
/// or three. A table has one file for each 8 MiB it holds, and up to 16 small ones on top: each time as much as a journal holds has been
/// written, those that have more are merged. A file that a scan is reading stays until the scan is over.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path().join("orders");
/// use alarm_backends::FjallStore;
///
/// let store = FjallStore::open(&dir)?;
/// let second = FjallStore::open(&dir).unwrap_err();
/// assert!(second.to_string().contains("already open"));
/// # drop(store);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FjallStore {
    inner: Arc<Inner>,
    threads: Arc<Threads>,
}

/// Options for opening a [`FjallStore`]. Made by [`FjallStore::builder`].
#[derive(Debug)]
#[must_use]
pub struct FjallStoreBuilder {
    path: PathBuf,
    clock: Option<Arc<dyn Clock>>,
    cache_bytes: u64,
    must_exist: bool,
}

struct Inner {
    /// The state, locked around every change, from the reads it depends on until the disk has it.
    state: Mutex<State>,
    /// The reason why nothing is written any more. Set once.
    stopped: OnceLock<String>,
    clock: Arc<dyn Clock>,
    path: PathBuf,
    directory: Directory,
    posts: Posts,
}

struct State {
    ownership: Ownership,
    /// Shard count and hash version of the fleet, once recorded.
    fleet: Option<(u32, u32)>,
    members: Roster,
    /// Every shard that has inbox rows, and perhaps some that had.
    inbox: BTreeSet<ShardId>,
    watchers: Vec<HintSender>,
}

impl FjallStore {
    /// Opens the store in the directory `path`, or makes one there. Blocks while it reads; after a crash up to a few seconds.
    ///
    /// A directory that is not there is made, those above it are not; one that is there must be empty or have a store in it.
    ///
    /// # Errors
    /// [`StoreError::Open`] if `path` is not a directory this process may write to, has other files and no store in it, is already
    /// open, here or in another process, or holds something this version cannot read. It names the directory and what to do.
    pub fn open(path: impl AsRef<Path>) -> Result<FjallStore, StoreError> {
        FjallStore::builder(path).open()
    }

    /// As [`open`](Self::open), with other settings than the default ones.
    pub fn builder(path: impl AsRef<Path>) -> FjallStoreBuilder {
        FjallStoreBuilder {
            path: path.as_ref().to_owned(),
            clock: None,
            cache_bytes: 8 * 1024 * 1024,
            must_exist: false,
        }
    }

    /// Runs `work` on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        purpose: Purpose,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = self.inner.clone();
        match self.threads.run(purpose, move || work(&inner)).await {
            Ok(done) => done,
            Err(NoResult::Panicked(message)) => {
                // It may have been halfway through a change, so what is in memory is not to be trusted either.
                self.inner.stop(&message);
                Err(StoreError::Stopped(message.into()))
            }
            Err(NoResult::Gone(error)) => Err(StoreError::Unavailable(error)),
        }
    }

    /// As [`blocking`](Self::blocking), for what writes rows.
    async fn writing<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let done = self.blocking(Purpose::Writing, work).await;
        self.tidy_if_needed();
        done
    }

    fn tidy_if_needed(&self) {
        if self.inner.directory.is_to_be_tidied() {
            let inner = self.inner.clone();
            self.threads.later(Purpose::Tidying, move || inner.tidy());
        }
    }
}

impl fmt::Debug for FjallStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FjallStore")
            .field("path", &self.inner.path)
            .field("stopped", &self.inner.stopped.get())
            .finish()
    }
}

impl FjallStoreBuilder {
    /// Sets the clock that the store reads. Default: [`SystemClock`].
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Limits the bytes of the files that are kept in memory; write buffers come on top. Default: 8 MiB.
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// Refuses to open where there is no store yet, so that a wrong name or a disk that is not mounted is never taken for a
    /// new one. Default: no.
    pub fn must_exist(mut self, must_exist: bool) -> Self {
        self.must_exist = must_exist;
        self
    }

    /// Opens the store, or makes one. Blocks while it reads.
    ///
    /// # Errors
    /// As [`FjallStore::open`]; and [`StoreError::Open`] if there is none that [`must_exist`](Self::must_exist).
    pub fn open(self) -> Result<FjallStore, StoreError> {
        let FjallStoreBuilder { path, clock, cache_bytes, must_exist } = self;
        let clock = clock.unwrap_or_else(|| Arc::new(SystemClock::default()));
        let directory = Directory::open(&path, cache_bytes, must_exist)?;
        let state = State::restored(&directory, &path)?;
        let threads = if clock.is_simulated() {
            Threads::Runtime
        } else {
            Threads::start().map_err(|error| {
                StoreError::Open(format!("{}: there are no threads for it", path.display()), Some(error.into()))
            })?
        };
        let inner = Inner {
            state: Mutex::new(state),
            stopped: OnceLock::new(),
            clock,
            path,
            directory,
            posts: Posts::default(),
        };
        Ok(FjallStore { inner: Arc::new(inner), threads: Arc::new(threads) })
    }
}

impl State {
    /// The state that the directory was left in.
    fn restored(directory: &Directory, path: &Path) -> Result<State, StoreError> {
        let unreadable = |error: fjall::Error| {
            StoreError::Open(format!("{}: the store there cannot be read", path.display()), Some(error.into()))
        };
        // Ownership cannot be guessed: an epoch given twice would let a stale owner write.
        let damaged = |key: &[u8], reason| {
            let (key, shown) = (key.escape_ascii(), path.display());
            StoreError::Open(format!("{shown}: its entry '{key}' {reason}; restore the directory from a copy"), None)
        };
        let meta = directory.table(Table::Meta);
        let fleet = meta.get(FLEET_KEY).map_err(unreadable)?;
        let fleet = fleet.map(|fleet| codec::decode_fleet(&fleet)).transpose();
        let fleet = fleet.map_err(|reason| damaged(FLEET_KEY.as_bytes(), reason))?;
        let mut shards = Vec::new();
        for guard in meta.prefix(SHARD_PREFIX) {
            let (key, value) = guard.into_inner().map_err(unreadable)?;
            let row = codec::decode_shard(&value).map_err(|reason| damaged(&key, reason))?;
            shards.extend(key::shard_of(&key[SHARD_PREFIX.len()..]).map(|shard| (shard, row)));
        }
        let inbox = Scan::new(directory).all_with_inbox().map_err(unreadable)?.into_iter().collect();
        Ok(State {
            ownership: Ownership::restored(shards),
            fleet,
            members: Roster::default(),
            inbox,
            watchers: Vec::new(),
        })
    }
}

impl State {
    /// The members, and a hint for all if they have changed since.
    fn members_since(&mut self, version: u64, now: Duration) -> Members {
        let members = self.members.members(now);
        if members.version != version {
            self.hint(Hint::Fleet);
        }
        members
    }

    fn hint(&mut self, hint: Hint) {
        self.watchers.retain(|watcher| !watcher.is_closed());
        self.watchers.iter().for_each(|watcher| watcher.send(hint));
    }
}

impl Inner {
    fn stop(&self, why: &dyn fmt::Display) {
        if self.stopped.set(why.to_string()).is_ok() {
            tracing::error!(store = %self.path.display(), error = %why, "the store has stopped taking writes");
        }
    }

    /// Merges small files. Failing that, the next write fails, too, and says why.
    fn tidy(&self) {
        if self.stopped.get().is_none()
            && let Err(error) = self.directory.tidy()
        {
            tracing::warn!(store = %self.path.display(), %error, "small files could not be merged");
        }
    }

    fn check_running(&self) -> Result<(), StoreError> {
        match self.stopped.get() {
            Some(why) => Err(StoreError::Stopped(format!("an earlier write failed: {why}").into())),
            None => Ok(()),
        }
    }

    /// The outcome of a write: the first that fails is the last that was tried.
    fn written(&self, outcome: fjall::Result<()>) -> Result<(), StoreError> {
        outcome.map_err(|error| {
            self.stop(&error);
            StoreError::Stopped(error.into())
        })
    }

    fn write_shards(&self, rows: &[(ShardId, ShardRow)], fleet: Option<(u32, u32)>) -> Result<(), StoreError> {
        let mut changes = Changes::new(&self.directory);
        if let Some((shard_count, hash_version)) = fleet {
            changes.put(Table::Meta, FLEET_KEY, codec::encode_fleet(shard_count, hash_version));
        }
        for (shard, row) in rows {
            changes.put(Table::Meta, [SHARD_PREFIX, &key::first_of(*shard)].concat(), codec::encode_shard(*row));
        }
        self.written(changes.commit())
    }

    fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        let mut state = self.state.lock();
        self.check_running()?;
        let Claim { shard_count, hash_version, .. } = *claim;
        if let Some((stored_shard_count, stored_hash_version)) = state.fleet
            && (stored_shard_count, stored_hash_version) != (shard_count, hash_version)
        {
            return Err(StoreError::Mismatch { shard_count, hash_version, stored_shard_count, stored_hash_version });
        }
        let now = self.clock.elapsed();
        let decision = state.ownership.decide(claim, now)?;
        state.members.check(claim, now)?;
        let fleet = if state.fleet.is_none() { Some((shard_count, hash_version)) } else { None };
        // An epoch that was granted and then forgotten could be granted twice.
        self.write_shards(&decision.new, fleet)?;
        state.fleet = state.fleet.or(fleet);
        let version = state.members.version();
        for ended in state.ownership.grant(claim, &decision, now) {
            state.members.end(ended);
        }
        state.members.note(claim.incarnation, &claim.host, &claim.presence, (now, now.saturating_add(claim.lease)));
        let members = state.members_since(version, now);
        let (granted, held) = (decision.granted, decision.held);
        // All tables share a journal, which is synced under one lock.
        let (sequence, overlap, now) = (Sequence::OfLane, NonZeroU16::MIN, self.clock.now());
        Ok(Claimed { granted, held, sequence, overlap, now, store: None, members })
    }

    fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        let Renewal { incarnation, lease, ref presence } = *renewal;
        let mut state = self.state.lock();
        self.check_running()?;
        // Writes nothing, but an idle host learns here that the database gave up in the background.
        self.written(self.directory.database.persist(PersistMode::Buffer))?;
        let now = self.clock.elapsed();
        let until = now.saturating_add(lease);
        let (host, owned) = state.ownership.renew(incarnation, until)?;
        let version = state.members.version();
        state.members.note(incarnation, &host, presence, (now, until));
        let members = state.members_since(version, now);
        let candidates: Vec<_> = owned.iter().copied().filter(|shard| state.inbox.contains(shard)).collect();
        let inbox = Scan::new(&self.directory).with_inbox(candidates.iter().copied())?;
        for shard in candidates {
            if inbox.binary_search(&shard).is_err() {
                state.inbox.remove(&shard);
            }
        }
        Ok(Renewed { owned, unknown: Vec::new(), inbox, now: self.clock.now(), members })
    }

    fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        self.check_running()?;
        let released = state.ownership.releasable(incarnation, given_up);
        self.write_shards(&released, None)?;
        state.ownership.release(&released);
        if state.ownership.owns_nothing(incarnation) && state.members.owns_nothing(incarnation) {
            state.ownership.end(incarnation);
        }
        state.hint(Hint::Fleet);
        Ok(())
    }

    fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        let mut state = self.state.lock();
        self.check_running()?;
        let (now, version) = (self.clock.elapsed(), state.members.version());
        let is_done = state.members.cordon(member, is_cordoned, seen, now);
        state.members_since(version, now);
        Ok(is_done)
    }

    fn members(&self) -> Result<Members, StoreError> {
        let mut state = self.state.lock();
        self.check_running()?;
        let (now, version) = (self.clock.elapsed(), state.members.version());
        Ok(state.members_since(version, now))
    }

    fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let Write { incarnation, lane, seq, ref batches } = *write;
        let prepared: Vec<_> = batches.iter().map(|batch| Prepared::new(batch.shard, &batch.ops)).collect();
        let mut state = self.state.lock();
        self.check_running()?;
        let sequence = state.ownership.sequence(incarnation, lane, seq)?;
        let mut changes = Changes::new(&self.directory);
        let mut answers = Vec::with_capacity(batches.len());
        for (batch, prepared) in batches.iter().zip(prepared) {
            let fenced = state.ownership.check(incarnation, batch.shard, batch.epoch);
            answers.push(match fenced.and(prepared).and_then(|prepared| changes.add(prepared)) {
                // Not being able to read concerns the whole call, and nothing has been written.
                Err(error) if error.is_retryable() => return Err(error),
                answer => answer,
            });
        }
        // Of a repeat only the answers are wanted: what was refused for its content then is so still.
        if sequence == Numbered::New {
            self.written(changes.commit())?;
            state.ownership.take(incarnation, lane, seq);
        }
        Ok(answers)
    }
}

#[async_trait]
impl Store for FjallStore {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        let claim = claim.clone();
        self.blocking(Purpose::Ownership, move |inner| inner.claim(&claim)).await
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        let renewal = renewal.clone();
        self.blocking(Purpose::Ownership, move |inner| inner.renew(&renewal)).await
    }

    async fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        let given_up = given_up.to_vec();
        self.blocking(Purpose::Ownership, move |inner| inner.release(incarnation, &given_up)).await
    }

    async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        self.blocking(Purpose::Ownership, move |inner| inner.cordon(member, is_cordoned, seen)).await
    }

    async fn members(&self) -> Result<Members, StoreError> {
        self.blocking(Purpose::Ownership, Inner::members).await
    }

    async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let write = write.clone();
        self.writing(move |inner| inner.commit(&write)).await
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let messages = messages.iter().cloned().map(Incoming::new).collect::<Result<Vec<_>, _>>()?;
        let done = self.inner.posts.push(messages);
        let inner = self.inner.clone();
        self.threads.later(Purpose::Writing, move || {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| inner.serve_posts())) {
                inner.stop(&threads::message(payload));
            }
        });
        let posted = done.await.map_err(|gone| StoreError::Unavailable(gone.into()))?;
        self.tidy_if_needed();
        posted
    }

    async fn watch(&self, _incarnation: Incarnation) -> Result<Hints, StoreError> {
        let (sender, hints) = Hints::channel();
        // Not taken on a thread of the runtime: whoever holds it may be waiting for the disk.
        self.blocking(Purpose::Ownership, move |inner| {
            inner.state.lock().watchers.push(sender);
            Ok(())
        })
        .await?;
        Ok(hints)
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        let pages = pages.to_vec();
        self.blocking(Purpose::Reading, move |inner| {
            let scan = Scan::new(&inner.directory);
            pages.iter().map(|page| scan.load(page)).collect()
        })
        .await
    }

    async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        let read = read.clone();
        self.blocking(Purpose::Reading, move |inner| Scan::new(&inner.directory).read(&read)).await
    }
}
