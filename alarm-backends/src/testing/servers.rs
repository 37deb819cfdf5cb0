//! Private servers: started for one program, gone with it.
//!
//! A server listens on 127.0.0.1 only, keeps its data in a temporary directory of its own, and writes durably unless told
//! otherwise. It is the child of a small shell script (`guard.sh`) that holds the other end of a pipe: however this process
//! ends, the pipe closes, and the script kills the server and removes the directory. Nothing is ever signalled but what was
//! started here.
//!
//! ```no_run
//! use std::sync::LazyLock;
//! use alarm_backends::testing::servers::Postgres;
//!
//! // One server per test binary, one database per test.
//! static SERVER: LazyLock<Postgres> = LazyLock::new(Postgres::start);
//! let url = SERVER.fresh_database();
//! ```

use std::process::Command;
use std::sync::LazyLock;

mod guard;
mod pgbouncer;
mod port;
mod postgres;
mod redis;
mod server;

pub use pgbouncer::{PgBouncer, PoolMode};
pub use postgres::{Postgres, PostgresOptions};
pub use redis::{Redis, RedisCluster, RedisOptions};
pub use server::Server;

/// The words that go before a command so that its process is killed when the thread that started it ends, however that is; nothing where
/// there is no `setpriv`.
#[must_use]
pub fn dies_with_parent() -> Vec<String> {
    static FOUND: LazyLock<bool> = LazyLock::new(|| Command::new("setpriv").arg("--version").output().is_ok());
    if *FOUND { vec!["setpriv".to_owned(), "--pdeathsig=KILL".to_owned()] } else { Vec::new() }
}

/// Sleeps a little between two looks at a server.
#[allow(clippy::disallowed_methods, reason = "a real server starts in real time")]
fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(20));
}

/// Calls `look` until it gives something, for at most 30 s.
#[allow(clippy::disallowed_methods, reason = "a real server starts in real time")]
fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if std::time::Instant::now() > end {
            return None;
        }
        pause();
    }
}
