//! A private PgBouncer, in front of a private Postgres.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use super::port::Port;
use super::postgres::{Postgres, switch_user};
use super::server::{Server, directory};

/// The line to type where there is none.
const INSTALL: &str = "PgBouncer is not installed here. On Debian or Ubuntu: apt-get install -y pgbouncer";

/// The time for which a client of the pooler has a session of the server for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// A session for as long as the client is connected.
    Session,
    /// A session for one transaction.
    Transaction,
    /// A session for one statement.
    Statement,
}

/// A PgBouncer of one's own; dropping it ends it.
#[derive(Debug)]
pub struct PgBouncer {
    server: Server,
    /// The server's.
    behind: u16,
}

impl Deref for PgBouncer {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
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
        let dir = directory("pgbouncer");
        // It refuses to run as root, too.
        let mut serve = switch_user(&dir);
        let (port, place, behind) = (Port::free(), dir.display(), server.port());
        let mode = match mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
            PoolMode::Statement => "statement",
        };
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={behind}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {place}/users\npool_mode = {mode}\nmax_client_conn = 500\n\
             default_pool_size = 50\nserver_round_robin = {}\n",
            port.number(),
            u8::from(is_round_robin)
        );
        std::fs::write(dir.join("settings"), settings)
            .and_then(|()| std::fs::write(dir.join("users"), "\"postgres\" \"\"\n"))
            .expect("a file can be written");
        serve.extend([program.display().to_string(), dir.join("settings").display().to_string()]);
        let bouncer = PgBouncer { server: Server::new("PgBouncer", dir, port, &serve), behind };
        bouncer.restart();
        bouncer
    }

    /// The URL of a database by way of the pooler, given the URL `servers` that leads to the server itself.
    #[must_use]
    pub fn url(&self, servers: &str) -> String {
        servers.replace(&format!(":{}/", self.behind), &format!(":{}/", self.port()))
    }

    /// Starts it on the same port if it is not running; returns when it takes connections.
    ///
    /// # Panics
    /// If it does not start within 30 s; the message has its log.
    pub fn restart(&self) {
        self.start_until(|| std::net::TcpStream::connect(("127.0.0.1", self.port())).is_ok());
    }
}

/// Finds the program: not everybody has the directory of administrators' programs on their path.
fn binary() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain([Path::new("/usr/sbin").to_owned()]);
    places.map(|dir| dir.join("pgbouncer")).find(|program| program.exists())
}
