//! The conformance suite on a Redis cluster of three servers, each case under a fresh prefix.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use alarm_backends::RedisStore;
use alarm_backends::testing::servers::RedisCluster;

static SERVERS: LazyLock<RedisCluster> = LazyLock::new(RedisCluster::start);
/// Longer than any call takes, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(60);
static CASES: AtomicU32 = AtomicU32::new(0);

stable_interfaces::testing::store_tests!(|| async {
    let prefix = format!("case-{}", CASES.fetch_add(1, Ordering::Relaxed));
    RedisStore::cluster(SERVERS.urls()).prefix(prefix).timeout(PATIENCE).connect().await.unwrap()
});
