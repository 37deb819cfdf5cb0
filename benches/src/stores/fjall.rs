//! The embedded store. Its limit is the database under it, with the same tables and the same settings, written to directly.
//!
//! What our commits write is taken from a directory that they have written: this module knows the names of two tables and that
//! an alarm's entry by identity has the key of its row without the time, and finds everything else in there.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use alarm_backends::FjallStore;
use async_trait::async_trait;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, UserKey, UserValue};
use stable_interfaces::Store;
use tempfile::TempDir;

use super::{Backend, Place, shuffle};

/// [`FjallStore`].
#[derive(Debug)]
pub struct Fjall;

#[async_trait]
impl Backend for Fjall {
    fn name(&self) -> &'static str {
        "fjall"
    }

    async fn fresh(&self) -> Box<dyn Place> {
        Box::new(Directory::new())
    }

    fn at(&self, address: &str) -> Box<dyn Place> {
        Box::new(Directory { path: address.into(), _temporary: None })
    }
}

struct Directory {
    path: PathBuf,
    /// Removes it in the end.
    _temporary: Option<TempDir>,
}

/// An alarm's row and its entry by identity.
type Alarm = ((UserKey, UserValue), (UserKey, UserValue));

impl Directory {
    /// An empty directory beside the program: on the disk that programs are built on, not in memory.
    fn new() -> Directory {
        let program = std::env::current_exe().expect("a running program has a path");
        let beside = program.parent().unwrap_or(Path::new("."));
        let temporary = tempfile::Builder::new().prefix("alarms-").tempdir_in(beside).expect("a directory can be made");
        Directory { path: temporary.path().join("store"), _temporary: Some(temporary) }
    }

    /// Opens the database as the store does, and its two tables of alarms. The tables' own settings are kept in the directory.
    fn open_raw(&self) -> (Database, Keyspace, Keyspace) {
        let database = Database::builder(self.path.join("data"))
            .cache_size(8 * 1024 * 1024)
            .max_cached_files(Some(128))
            .max_journaling_size(64 * 1024 * 1024)
            .worker_threads(2)
            .open()
            .expect("the database can be opened");
        let table = |name| {
            let options = || KeyspaceCreateOptions::default().max_memtable_size(8 * 1024 * 1024);
            database.keyspace(name, options).expect("the table is there")
        };
        let (alarms, ids) = (table("alarms"), table("alarm-ids"));
        (database, alarms, ids)
    }

    fn alarms(&self) -> Vec<Alarm> {
        let (_database, alarms, ids) = self.open_raw();
        let read = |guard: fjall::Guard| guard.into_inner().expect("the table can be read");
        let mut ids: HashMap<UserKey, UserValue> = ids.iter().map(read).collect();
        let alarm = |(key, row): (UserKey, UserValue)| {
            let identity = identity(&key);
            let place = ids.remove(&identity).expect("each row has its entry");
            ((key, row), (identity, place))
        };
        alarms.iter().map(read).map(alarm).collect()
    }
}

/// The key of a row without the eight bytes of its time.
fn identity(key: &[u8]) -> UserKey {
    [&key[..4], &key[12..]].concat().into()
}

#[async_trait]
impl Place for Directory {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(FjallStore::open(&self.path).expect("the store can be opened"))
    }

    fn address(&self) -> Option<String> {
        Some(self.path.display().to_string())
    }

    async fn raw_set(&self, rows: usize) -> f64 {
        let mut alarms = self.alarms();
        shuffle(&mut alarms);
        let empty = Directory::new();
        drop(empty.open().await);
        let (database, rows_table, ids_table) = empty.open_raw();
        let started = Instant::now();
        for chunk in alarms.chunks(rows.max(1)) {
            let mut batch = OwnedWriteBatch::with_capacity(database.clone(), 2 * chunk.len())
                .durability(Some(PersistMode::SyncData));
            for ((key, row), (identity, place)) in chunk {
                batch.insert(&rows_table, key.clone(), row.clone());
                batch.insert(&ids_table, identity.clone(), place.clone());
            }
            batch.commit().expect("the database takes writes");
        }
        alarms.len() as f64 / started.elapsed().as_secs_f64()
    }

    async fn raw_drain(&self, rows: usize) -> f64 {
        let (database, rows_table, ids_table) = self.open_raw();
        let started = Instant::now();
        let mut drained = 0;
        let mut alarms = rows_table.iter().map(|guard| guard.into_inner().expect("the table can be read")).peekable();
        while alarms.peek().is_some() {
            let mut batch =
                OwnedWriteBatch::with_capacity(database.clone(), 2 * rows).durability(Some(PersistMode::SyncData));
            for (key, _) in alarms.by_ref().take(rows.max(1)) {
                batch.remove(&ids_table, identity(&key));
                batch.remove(&rows_table, key);
                drained += 1;
            }
            batch.commit().expect("the database takes writes");
        }
        f64::from(drained) / started.elapsed().as_secs_f64()
    }
}
