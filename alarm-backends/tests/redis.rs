//! The conformance suite on one Redis server, each case under a fresh prefix.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use alarm_backends::RedisStore;
use alarm_backends::testing::servers::Redis;

static SERVER: LazyLock<Redis> = LazyLock::new(Redis::start);
/// Longer than any call takes, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(60);
static CASES: AtomicU32 = AtomicU32::new(0);

stable_interfaces::testing::store_tests!(|| async {
    let prefix = format!("case-{}", CASES.fetch_add(1, Ordering::Relaxed));
    RedisStore::builder(SERVER.url()).prefix(prefix).timeout(PATIENCE).connect().await.unwrap()
});
