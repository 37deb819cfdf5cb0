//! The conformance suite on the embedded store, each case in a fresh directory.

use alarm_backends::FjallStore;
use tempfile::TempDir;

stable_interfaces::testing::store_tests!(|| async {
    let dir = TempDir::new().unwrap();
    let store = FjallStore::open(dir.path()).unwrap();
    (dir, store)
});
