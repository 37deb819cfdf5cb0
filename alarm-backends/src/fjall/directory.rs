//! The directory of a store: locked by one process, and either whole or not yet there.
//!
//! A new database is made under another name and renamed when it is complete, so that a process killed in its first
//! moments leaves nothing that cannot be opened. The lock file is ours, because it must be held around that.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use fjall::config::{FilterPolicy, PinningPolicy};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use stable_interfaces::StoreError;
use stable_interfaces::store::BoxError;

use crate::steps::{Record, Refused};

const LOCK: &str = "lock";
const DATA: &str = "data";
const UNFINISHED: &str = "data.unfinished";

/// The file by which the database knows its own directory.
const DATABASE_MARKER: &str = "version";
/// The directory that a new volume of a disk has in it.
const OF_THE_VOLUME: &str = "lost+found";

/// The last [step](crate::steps) of the layout of keys and tables that this code knows.
///
/// | step | what it adds |
/// | --- | --- |
/// | 1 | everything, and under [`NEEDS_KEY`] the number 1 |
/// | 2 | the record of steps itself: [`STEP_KEY`], [`RELEASE_KEY`] |
pub(super) const STEP: u32 = 2;
/// The least step that a program must know. The programs of step 1 compare it with their own number.
const NEEDS_KEY: &str = "layout";
const STEP_KEY: &str = "step";
const RELEASE_KEY: &str = "release";

/// Above this, a table's newest rows are moved from memory to a file.
const WRITE_BUFFER_BYTES: u64 = 8 * 1024 * 1024;
/// The least that the database takes. What is in memory must be replayed from the journal, so this bounds the time to open.
const JOURNAL_BYTES: u64 = 64 * 1024 * 1024;
/// A table may have so many files, and one more for so many bytes that it holds. The database never merges files whose keys do not
/// overlap, and most tables are written in the order of time; so each journal would leave one in each table.
const FEW_FILES: usize = 16;
const FILE_BYTES: u64 = WRITE_BUFFER_BYTES;
/// A service has its own use for its file descriptors.
const CACHED_FILES: usize = 128;
/// One of them never compacts, so a long compaction does not hold up the others' writes.
const WORKERS: usize = 2;

/// Each table is a keyspace: an ordered tree of its own, all of them behind one journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// Alarm rows in order of firing.
    Alarms,
    /// The places of alarms' rows, by their identity.
    AlarmIds,
    /// Inbox rows in order of arrival.
    Inbox,
    /// The places of messages' rows, by their identity.
    InboxIds,
    /// Dead letters, oldest first.
    Dead,
    /// Storage values by instance and key.
    Storage,
    /// Layout, fleet, and the shards' epochs.
    Meta,
}

impl Table {
    const ALL: [Table; 7] =
        [Table::Alarms, Table::AlarmIds, Table::Inbox, Table::InboxIds, Table::Dead, Table::Storage, Table::Meta];

    /// The options of the table's tree. Fixed when a directory is made.
    fn options(self) -> KeyspaceCreateOptions {
        let options = KeyspaceCreateOptions::default().max_memtable_size(WRITE_BUFFER_BYTES);
        match self {
            // Each put asks them for an entry that is usually not there. Their filters answer that, some ten bits per row; read
            // from disk anew each time they would cost more than the write.
            Table::AlarmIds | Table::InboxIds => {
                let but_the_deepest = || PinningPolicy::new([true, true, true, false]);
                options.filter_block_pinning_policy(but_the_deepest()).index_block_pinning_policy(but_the_deepest())
            }
            // Read in order, or by a key that is known to be there.
            Table::Alarms | Table::Inbox | Table::Dead | Table::Storage | Table::Meta => {
                options.filter_policy(FilterPolicy::disabled())
            }
        }
    }

    /// The name of the table on disk, and where damaged rows are told of.
    pub(super) fn name(self) -> &'static str {
        match self {
            Table::Alarms => "alarms",
            Table::AlarmIds => "alarm-ids",
            Table::Inbox => "inbox",
            Table::InboxIds => "inbox-ids",
            Table::Dead => "dead",
            Table::Storage => "storage",
            Table::Meta => "meta",
        }
    }
}

/// An open database with its lock.
pub(super) struct Directory {
    tables: Vec<Keyspace>,
    pub(super) database: Database,
    /// The number of bytes written since the tables' files were counted. As if many when it is opened: that leaves small files, too.
    written: AtomicU64,
    /// The way in which each write was made durable.
    #[cfg(test)]
    pub(super) persisted: parking_lot::Mutex<Vec<PersistMode>>,
    /// Dropped last: the next to open must find the database closed.
    _lock: File,
}

impl Directory {
    /// Opens what is at `path`, or makes it, unless it `must_exist`.
    pub(super) fn open(path: &Path, cache_bytes: u64, must_exist: bool) -> Result<Directory, StoreError> {
        let shown = path.display();
        let failed = |what: &str, error: BoxError| StoreError::Open(format!("{shown}: {what}"), Some(error));
        let unreadable = |error: std::io::Error| failed("cannot be read by this process", error.into());
        let missing = || {
            let what = "there is no store there, and must_exist(true) was asked for; name its directory, or open it once without";
            StoreError::Open(format!("{shown}: {what}"), None)
        };
        if must_exist && !is_store(path).map_err(unreadable)? {
            return Err(missing());
        }
        make_directory(path)?;
        let data = path.join(DATA);
        // Before anything of ours is put there.
        if !is_store(path).map_err(unreadable)? && !is_vacant(path).map_err(unreadable)? {
            let what = "there are other files and no store; name an empty directory, one that is not there yet, or the store's own";
            return Err(StoreError::Open(format!("{shown}: {what}"), None));
        }
        let lock = lock(path)?;
        if !is_store(path).map_err(unreadable)? {
            create(path, cache_bytes).map_err(|error| failed("a new store cannot be made there", error))?;
        }
        let (database, tables) = open_tables(&data, cache_bytes).map_err(|error| match error {
            fjall::Error::Locked => in_use(path, ""),
            fjall::Error::InvalidVersion(_) => failed(
                "the files there are of another version of the database; open them with the version that wrote them",
                error.into(),
            ),
            error => failed("the store there cannot be read", error.into()),
        })?;
        let written = AtomicU64::new(JOURNAL_BYTES);
        let directory = Directory {
            tables,
            database,
            written,
            #[cfg(test)]
            persisted: parking_lot::Mutex::default(),
            _lock: lock,
        };
        directory.bring_up_to_date(path)?;
        Ok(directory)
    }

    /// Makes the steps that are missing, all or none.
    fn bring_up_to_date(&self, path: &Path) -> Result<(), StoreError> {
        let failed = |error: fjall::Error| {
            StoreError::Open(format!("{}: it cannot be read", path.display()), Some(error.into()))
        };
        let refused = |refused: Refused| StoreError::Open(format!("{}: {refused}", path.display()), None);
        let meta = self.table(Table::Meta);
        let text = |key: &str| {
            let found = meta.get(key).map_err(failed)?;
            Ok::<_, StoreError>(found.map(|found| String::from_utf8_lossy(&found).into_owned()))
        };
        let (step, needs, release) = (text(STEP_KEY)?, text(NEEDS_KEY)?, text(RELEASE_KEY)?);
        // A directory is given its first number before its name: one without is damaged, and not the first layout.
        let record = Record::read(step.as_deref(), Some(needs.as_deref().unwrap_or_default()), release.as_deref());
        let missing = record.and_then(|record| record.missing(STEP)).map_err(refused)?;
        if missing.is_empty() {
            return Ok(());
        }
        let mut batch = self.batch(3, PersistMode::SyncAll);
        let record = Record::of(STEP);
        batch.insert(meta, NEEDS_KEY, record.needs.to_string());
        batch.insert(meta, STEP_KEY, record.step.to_string());
        batch.insert(meta, RELEASE_KEY, record.release.unwrap_or_default());
        batch.commit().map_err(|error| {
            let what = format!("{}: it cannot be brought up to date (step {STEP} of its layout)", path.display());
            StoreError::Open(what, Some(error.into()))
        })
    }

    pub(super) fn table(&self, table: Table) -> &Keyspace {
        &self.tables[table as usize]
    }

    /// A batch of so many changes that is as durable as `mode` says when it has been committed.
    pub(super) fn batch(&self, changes: usize, mode: PersistMode) -> OwnedWriteBatch {
        #[cfg(test)]
        self.persisted.lock().push(mode);
        OwnedWriteBatch::with_capacity(self.database.clone(), changes).durability(Some(mode))
    }

    /// Counts bytes that were written.
    pub(super) fn has_written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Tells, once, that it is time to [tidy up](Self::tidy).
    pub(super) fn is_to_be_tidied(&self) -> bool {
        self.written.load(Ordering::Relaxed) >= JOURNAL_BYTES
            && self.written.swap(0, Ordering::Relaxed) >= JOURNAL_BYTES
    }

    /// Merges the files of each table that has too many for what it holds.
    pub(super) fn tidy(&self) -> fjall::Result<()> {
        for table in &self.tables {
            let most = usize::try_from(table.disk_space() / FILE_BYTES).unwrap_or(usize::MAX).saturating_add(FEW_FILES);
            if table.table_count() > most {
                table.major_compact()?;
            }
        }
        Ok(())
    }
}

/// Makes the last component of `path` where it is missing.
fn make_directory(path: &Path) -> Result<(), StoreError> {
    let shown = path.display();
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        // A name that was mistyped on the way there would be a new, empty store.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let what =
                format!("{shown}: the directory that it is to be in is not there; create that first, or name another");
            Err(StoreError::Open(what, Some(error.into())))
        }
        Err(error) => {
            let what = format!("{shown}: not a directory that this process can use or create; name another");
            Err(StoreError::Open(what, Some(error.into())))
        }
    }
}

/// Looks for a whole store in `path`.
fn is_store(path: &Path) -> std::io::Result<bool> {
    path.join(DATA).join(DATABASE_MARKER).try_exists()
}

/// Makes sure that `path` has nothing in it but what is left of the first moments of a store that was never whole.
fn is_vacant(path: &Path) -> std::io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if name != LOCK && name != UNFINISHED && name != OF_THE_VOLUME {
            return Ok(false);
        }
    }
    Ok(true)
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let failed = |error: std::io::Error| {
        let what = format!(
            "{}: this process may not write there; name another directory or give it the right",
            path.display()
        );
        StoreError::Open(what, Some(error.into()))
    };
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path.join(LOCK)).map_err(failed)?;
    match try_lock_for_a_moment(&file) {
        Ok(()) => {
            // Only for whoever reads the other's message; the lock itself is the kernel's and ends with the process.
            let pid = std::process::id().to_string();
            file.set_len(0).and_then(|()| file.write_all(pid.as_bytes())).map_err(failed)?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let is_known = file.rewind().and_then(|()| file.read_to_string(&mut pid)).is_ok() && !pid.is_empty();
            Err(in_use(path, &if is_known { format!(" by process {pid}") } else { String::new() }))
        }
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// A process that is being killed, or a child between its fork and its exec, holds a lock a moment longer than its owner means.
#[allow(clippy::disallowed_methods, reason = "opening a store blocks its thread in any case")]
fn try_lock_for_a_moment(file: &File) -> Result<(), TryLockError> {
    for _ in 0..20 {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(std::time::Duration::from_millis(10)),
            answer => return answer,
        }
    }
    file.try_lock()
}

fn in_use(path: &Path, by: &str) -> StoreError {
    let what = format!(
        "{} is already open{by}: a directory serves one open store at a time; end the other, share its handle, \
         or name another directory",
        path.display()
    );
    StoreError::Open(what, None)
}

/// Makes an empty database whole before it gets its name.
fn create(path: &Path, cache_bytes: u64) -> Result<(), BoxError> {
    let unfinished = path.join(UNFINISHED);
    if unfinished.try_exists()? {
        // It never had its name, so nothing was ever acknowledged in it.
        fs::remove_dir_all(&unfinished)?;
    }
    let (database, tables) = open_tables(&unfinished, cache_bytes)?;
    // As step 1 did; opening makes the others.
    tables[Table::Meta as usize].insert(NEEDS_KEY, "1")?;
    database.persist(PersistMode::SyncAll)?;
    drop(tables);
    drop(database);
    fs::rename(&unfinished, path.join(DATA))?;
    // A rename is durable once its directory is.
    #[cfg(unix)]
    File::open(path)?.sync_all()?;
    Ok(())
}

fn open_tables(data: &Path, cache_bytes: u64) -> fjall::Result<(Database, Vec<Keyspace>)> {
    let database = Database::builder(data)
        .cache_size(cache_bytes)
        .max_cached_files(Some(CACHED_FILES))
        .max_journaling_size(JOURNAL_BYTES)
        .worker_threads(WORKERS)
        .open()?;
    let tables = Table::ALL.iter().map(|table| database.keyspace(table.name(), || table.options()));
    let tables = tables.collect::<Result<_, _>>()?;
    Ok((database, tables))
}
