//! A private Redis: one server, or a cluster of three.

use std::ops::Deref;
use std::process::{Command, Output};

use super::port::Port;
use super::server::{Server, directory};
use super::{dies_with_parent, wait_for};

/// The line to type where there is none.
const INSTALL: &str = "Redis is not installed here. On Debian or Ubuntu: apt-get install -y redis-server";

/// The file of a server's certificate, in its directory.
const CERTIFICATE: &str = "tls.crt";

/// A Redis server of one's own; dropping it ends it and removes its data.
#[derive(Debug)]
pub struct Redis {
    server: Server,
    is_tls: bool,
    /// The words before each command line of the server and of its client.
    within: Vec<String>,
    /// The port for the other servers of a cluster.
    _bus_port: Port,
}

/// Options of a private Redis.
#[derive(Debug, Default)]
#[must_use]
pub struct RedisOptions {
    settings: Vec<(String, String)>,
    /// Certificate and key, as PEM.
    tls: Option<(String, String)>,
    cluster: bool,
    within: Vec<String>,
}

impl RedisOptions {
    /// The defaults: an append-only file synced with each write, no snapshots, no eviction.
    pub fn new() -> RedisOptions {
        RedisOptions::default()
    }

    /// A setting of `redis.conf`, in place of an earlier one of the same name.
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> RedisOptions {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Takes TLS connections only, with this certificate and private key, both as PEM.
    pub fn tls(mut self, certificate: &str, key: &str) -> RedisOptions {
        self.tls = Some((certificate.to_owned(), key.to_owned()));
        self
    }

    /// Runs it behind these words, such as `ip netns exec`, on a network of its own, where whoever is there reaches it at any address.
    pub fn within(mut self, words: Vec<String>) -> RedisOptions {
        self.within = words;
        self.set("bind", "0.0.0.0").set("protected-mode", "no")
    }

    /// Starts a server; returns when it takes commands.
    ///
    /// # Panics
    /// If Redis is not installed (the message says how to install it) or does not start (the message has its log).
    #[must_use]
    pub fn start(self) -> Redis {
        let installed = Command::new("redis-server").arg("--version").output().is_ok();
        assert!(installed, "{INSTALL}");
        let dir = directory("redis");
        let (port, bus_port) = (Port::free(), Port::free());
        let (place, listen, bus) =
            (dir.display().to_string(), port.number().to_string(), bus_port.number().to_string());
        let mut settings = vec![
            ("bind", "127.0.0.1"),
            ("dir", &*place),
            ("appendonly", "yes"),
            ("appendfsync", "always"),
            ("save", ""),
            ("maxmemory-policy", "noeviction"),
        ];
        if self.cluster {
            settings.extend([("cluster-enabled", "yes"), ("cluster-port", &*bus), ("cluster-node-timeout", "15000")]);
        }
        let (certificate, key) =
            (dir.join(CERTIFICATE).display().to_string(), dir.join("tls.key").display().to_string());
        if let Some((certificate_pem, key_pem)) = &self.tls {
            // Its directory is this user's alone.
            std::fs::write(&certificate, certificate_pem)
                .and_then(|()| std::fs::write(&key, key_pem))
                .expect("a file can be written");
            settings.extend([("port", "0"), ("tls-port", &*listen), ("tls-auth-clients", "no")]);
            settings.extend([
                ("tls-cert-file", &*certificate),
                ("tls-key-file", &*key),
                ("tls-ca-cert-file", &*certificate),
            ]);
        } else {
            settings.push(("port", &*listen));
        }
        settings.extend(self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let mut serve = [self.within.clone(), dies_with_parent(), vec!["redis-server".to_owned()]].concat();
        serve.extend(settings.iter().flat_map(|(name, value)| [format!("--{name}"), (*value).to_owned()]));
        let server = Server::new("Redis", dir, port, &serve);
        let server = Redis { server, is_tls: self.tls.is_some(), within: self.within, _bus_port: bus_port };
        server.restart();
        server
    }
}

impl Deref for Redis {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Redis {
    /// A server with the default [options](RedisOptions).
    ///
    /// # Panics
    /// As [`RedisOptions::start`].
    #[must_use]
    pub fn start() -> Redis {
        RedisOptions::new().start()
    }

    /// The server's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.is_tls { "rediss" } else { "redis" }, self.port())
    }

    /// Runs a command and returns what it answered, as `redis-cli` prints it.
    ///
    /// # Panics
    /// If it fails.
    pub fn execute(&self, command: &[&str]) -> String {
        let output = self.cli(command);
        let failure = || String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command:?}: {}", failure());
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Runs a command and tells whether it was answered without an error.
    #[must_use]
    pub fn takes(&self, command: &[&str]) -> bool {
        self.cli(command).status.success()
    }

    fn cli(&self, command: &[&str]) -> Output {
        let line = [&*self.within, &["redis-cli".to_owned()]].concat();
        let mut cli = Command::new(&line[0]);
        cli.args(&line[1..]);
        // -e: an error of the server is a failure of the program.
        cli.args(["-e", "-h", "127.0.0.1", "-p", &self.port().to_string()]);
        if self.is_tls {
            cli.arg("--tls").arg("--cacert").arg(self.directory().join(CERTIFICATE));
        }
        cli.args(command);
        cli.output().expect("redis-cli can be run")
    }

    /// Starts the server on the same data and port if it is not running; returns when it takes commands.
    ///
    /// # Panics
    /// If it does not start within 30 s; the message has its log.
    pub fn restart(&self) {
        // While it loads its data it answers with an error.
        self.start_until(|| self.cli(&["PING"]).status.success());
    }
}

/// A cluster of three private Redis servers without replicas; each can be killed and restarted by itself.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts three servers and makes a cluster of them; returns when each of them says that it is whole.
    ///
    /// # Panics
    /// As [`RedisOptions::start`].
    #[must_use]
    pub fn start() -> RedisCluster {
        let start = |_| RedisOptions { cluster: true, ..RedisOptions::new() }.start();
        let cluster = RedisCluster { nodes: (0..3).map(start).collect() };
        let addresses: Vec<String> = cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        let mut create = Command::new("redis-cli");
        let output = create.args(["--cluster", "create"]).args(&addresses).arg("--cluster-yes").output();
        let output = output.expect("redis-cli can be run");
        assert!(output.status.success(), "the cluster was not made: {}", String::from_utf8_lossy(&output.stdout));
        let whole = |node: &Redis| node.execute(&["CLUSTER", "INFO"]).contains("cluster_state:ok").then_some(());
        assert!(cluster.nodes.iter().all(|node| wait_for(|| whole(node)).is_some()), "the cluster did not come up");
        cluster
    }

    /// The cluster's servers.
    #[must_use]
    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }

    /// The servers' URLs.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Redis::url).collect()
    }
}
