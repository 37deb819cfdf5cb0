//! A private PgBouncer, in front of a private Postgres.

use std::path::{Path, PathBuf};

use super::guard::Guard;
use super::postgres::{Postgres, switch_user};
use super::{free_port, wait_for};

/// The line to type where there is none.
const INSTALL: &str = "PgBouncer is not installed here. On Debian or Ubuntu: apt-get install -y pgbouncer";

/// The time for which a client of the pooler has a session of the server for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// As long as it is connected.
    Session,
    /// For one transaction.
    Transaction,
    /// For one statement.
    Statement,
}

/// A PgBouncer of one's own; dropping it ends it.
#[derive(Debug)]
pub struct PgBouncer {
    guard: Guard,
    port: u16,
    /// The server's.
    behind: u16,
}

impl PgBouncer {
    /// Starts a pooler in front of all databases of `server`, that gives its sessions in turn if `is_round_robin`, and else the one that was free
    /// last; returns when it takes connections.
    ///
    /// # Panics
    /// If PgBouncer is not installed (the message says how to install it) or does not start (the message has its log).
    #[must_use]
    #[allow(clippy::panic, reason = "a test without its server fails")]
    pub fn start(server: &Postgres, mode: PoolMode, is_round_robin: bool) -> PgBouncer {
        let program = binary().unwrap_or_else(|| panic!("{INSTALL}"));
        let dir = tempfile::Builder::new().prefix("private-pgbouncer-").tempdir().expect("a temporary directory");
        // The guard removes it from here on.
        let dir = dir.keep();
        // It refuses to run as root, too.
        let mut serve = switch_user(&dir);
        let (port, place, behind) = (free_port(), dir.display(), server.port());
        let mode = match mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
            PoolMode::Statement => "statement",
        };
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={behind}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {place}/users\npool_mode = {mode}\nmax_client_conn = 500\n\
             default_pool_size = 50\nserver_round_robin = {}\n",
            u8::from(is_round_robin)
        );
        std::fs::write(dir.join("settings"), settings)
            .and_then(|()| std::fs::write(dir.join("users"), "\"postgres\" \"\"\n"))
            .expect("a file can be written");
        serve.extend([program.display().to_string(), dir.join("settings").display().to_string()]);
        let bouncer = PgBouncer { guard: Guard::new(dir, &serve), port, behind };
        bouncer.restart();
        bouncer
    }

    /// The URL of one of the server's databases by way of the pooler, given the server's own.
    #[must_use]
    pub fn url(&self, servers: &str) -> String {
        servers.replace(&format!(":{}/", self.behind), &format!(":{}/", self.port))
    }

    /// Kills it with SIGKILL, and so ends all connections.
    pub fn kill9(&self) {
        self.guard.signal("KILL");
    }

    /// Starts it on the same port if it is not running; returns when it takes connections.
    ///
    /// # Panics
    /// If it does not start within 30 s; the message has its log.
    pub fn restart(&self) {
        if !self.guard.is_alive() {
            self.guard.start();
        }
        let ready = wait_for(|| std::net::TcpStream::connect(("127.0.0.1", self.port)).ok());
        assert!(ready.is_some(), "PgBouncer did not start: {}", self.guard.log());
    }
}

/// Finds the program: not everybody has the directory of administrators' programs on their path.
fn binary() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain([Path::new("/usr/sbin").to_owned()]);
    places.map(|dir| dir.join("pgbouncer")).find(|program| program.exists())
}
