//! The stores of hosts: a directory for one host alone, or a server that all hosts of a fleet share.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use alarm_backends::{FjallStore, PostgresStore, RedisStore};
use examples::CannotStart;
use stable_interfaces::transport::TcpTransport;
use stable_interfaces::{Fleet, Host, HostBuilder};

/// The number of shards that a fleet divides among its hosts. Written into the store, so it cannot change.
const SHARDS: u32 = 256;
/// The time after which the others go on with what a host had that has died: so short that a drill sees it. A shorter one is lost where
/// a busy machine lets a host stand still.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// A kind of store, as `--store` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Fjall,
    Postgres,
    Redis,
}

impl Kind {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Fjall => "fjall",
            Kind::Postgres => "postgres",
            Kind::Redis => "redis",
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Kind, String> {
        let known = [Kind::Fjall, Kind::Postgres, Kind::Redis];
        known.into_iter().find(|kind| kind.name() == name).ok_or_else(|| "it is fjall, postgres or redis".to_owned())
    }
}

/// The store of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Home {
    /// A directory that this process alone can open.
    Directory(PathBuf),
    /// A server, with other hosts.
    Server(Server),
}

/// A server that the hosts of a fleet share, and find each other by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) kind: Kind,
    pub(crate) url: String,
    /// The fleet's part of the server: a schema of the database, or what all keys begin with.
    pub(crate) space: String,
    /// The host's name, if it is not its address. With one that lasts over its starts it has its part again at once.
    pub(crate) name: Option<String>,
}

impl Home {
    /// The host that serves at `address`, with its store open. In a fleet it talks to the others at a port of its own, which they learn of by
    /// the store.
    pub(crate) async fn host(&self, address: &str) -> Result<HostBuilder, CannotStart> {
        let server = match self {
            Home::Directory(dir) => {
                let open = FjallStore::open(dir);
                return Ok(Host::local(
                    open.map_err(|e| CannotStart::new(format!("cannot open {}", dir.display()), e))?,
                ));
            }
            Home::Server(server) => server,
        };
        let fleet = Fleet::live(SHARDS).map_err(|e| CannotStart::new("there is no such fleet", e))?;
        let transport = TcpTransport::listen("127.0.0.1:0").fleet(&*server.space);
        let name = server.name.as_deref().unwrap_or(address);
        let builder = Host::builder(name, fleet).lease(LEASE).transport(transport);
        let opened = match server.kind {
            Kind::Redis => server.redis().await.map(|store| builder.store(store)),
            Kind::Postgres | Kind::Fjall => server.postgres().await.map(|store| builder.store(store)),
        };
        // Without the URL, which may hold a password.
        opened.map_err(|e| CannotStart::new(format!("cannot open the store in {}", server.kind.name()), e))
    }
}

impl Server {
    async fn postgres(&self) -> Result<PostgresStore, stable_interfaces::StoreError> {
        PostgresStore::builder(&self.url)?.schema(&self.space).connect().await
    }

    async fn redis(&self) -> Result<RedisStore, stable_interfaces::StoreError> {
        RedisStore::builder(&self.url).prefix(&self.space).connect().await
    }
}
