//! The conformance suite on the embedded store, each case in a fresh directory; and directories of other releases.

#[path = "first_release/mod.rs"]
mod first_release;

use std::path::Path;

use alarm_backends::FjallStore;
use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use stable_interfaces::StoreError;
use tempfile::TempDir;

stable_interfaces::testing::store_tests!(|| async {
    let dir = TempDir::new().unwrap();
    let store = FjallStore::open(dir.path()).unwrap();
    (dir, store)
});

/// Writes rows past the store: table, key and value of each.
fn write<'a>(dir: &Path, rows: impl IntoIterator<Item = (&'a [u8], &'a [u8], &'a [u8])>) {
    let database = Database::builder(dir.join("data")).open().expect("the database is opened");
    for (table, key, value) in rows {
        let table = std::str::from_utf8(table).expect("a table's name");
        let table = database.keyspace(table, KeyspaceCreateOptions::default).expect("a table is opened");
        table.insert(key, value).expect("a row is written");
    }
    database.persist(PersistMode::SyncAll).expect("it is kept");
}

/// The directory's record of its steps: step, least step needed, release.
fn record(dir: &Path) -> [String; 3] {
    let database = Database::builder(dir.join("data")).open().expect("the database is opened");
    let meta = database.keyspace("meta", KeyspaceCreateOptions::default).expect("a table is opened");
    ["step", "layout", "release"].map(|key| {
        let value = meta.get(key).expect("it can be read").expect("it is there");
        String::from_utf8(value.to_vec()).expect("it is text")
    })
}

fn directory_of_the_first_release() -> TempDir {
    let dir = TempDir::new().expect("a temporary directory");
    let rows = first_release::fields(include_str!("first_release/fjall.rows"));
    write(dir.path(), rows.iter().map(|row| (&*row[0], &*row[1], &*row[2])));
    dir
}

fn refusal(dir: &Path) -> String {
    let Err(StoreError::Open(text, _)) = FjallStore::open(dir) else { unreachable!("it must not be opened") };
    text
}

#[tokio::test]
async fn a_directory_of_the_first_release_is_brought_up_to_date_and_has_everything() {
    let dir = directory_of_the_first_release();
    let store = FjallStore::open(dir.path()).expect("it is opened");
    first_release::is_whole_and_goes_on(&store).await;
    drop(store);
    assert_eq!(record(dir.path()), ["2", "1", env!("CARGO_PKG_VERSION")]);
}

#[tokio::test]
async fn a_directory_one_step_ahead_is_used_and_stays_at_its_step() {
    let dir = directory_of_the_first_release();
    drop(FjallStore::open(dir.path()).expect("it is opened"));
    let next: [(&[u8], &[u8], &[u8]); 4] = [
        (b"meta", b"step", b"3"),
        (b"meta", b"layout", b"2"),
        (b"meta", b"release", b"9.0.0"),
        (b"a-table-of-step-3", b"key", b"value"),
    ];
    write(dir.path(), next);
    let store = FjallStore::open(dir.path()).expect("it is opened");
    first_release::is_whole_and_goes_on(&store).await;
    drop(store);
    assert_eq!(record(dir.path()), ["3", "2", "9.0.0"]);
}

#[test]
fn a_directory_two_steps_ahead_is_refused_by_number() {
    let dir = TempDir::new().expect("a temporary directory");
    drop(FjallStore::open(dir.path()).expect("it is made"));
    let ahead: [(&[u8], &[u8], &[u8]); 3] =
        [(b"meta", b"step", b"4"), (b"meta", b"layout", b"3"), (b"meta", b"release", b"9.0.0")];
    write(dir.path(), ahead);
    let text = refusal(dir.path());
    for part in ["step 4", "release 9.0.0", "step 3", "knows step 2", "run the release that made it"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(record(dir.path()), ["4", "3", "9.0.0"], "nothing was written");
}

#[test]
fn a_directory_whose_step_no_release_writes_is_refused() {
    for number in [&b"0"[..], b"", b"x", b"\xff"] {
        let dir = TempDir::new().expect("a temporary directory");
        drop(FjallStore::open(dir.path()).expect("it is made"));
        write(dir.path(), [(&b"meta"[..], &b"layout"[..], number)]);
        let text = refusal(dir.path());
        assert!(text.contains("no release writes") && text.contains("restore it"), "{text}");
    }
}
