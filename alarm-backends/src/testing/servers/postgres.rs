//! A private Postgres.

use std::io::Write as _;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use super::dies_with_parent;
use super::port::Port;
use super::server::{Server, directory};

/// The line to type where there is none.
const INSTALL: &str = "Postgres is not installed here. On Debian or Ubuntu: apt-get install -y postgresql";

/// The setting of how the files are synced before a recovery, since version 14 on Linux.
const SYNC_METHOD: &str = "recovery_init_sync_method";

/// A Postgres server of one's own; dropping it ends it and removes its data.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
    bin: PathBuf,
    /// The number of databases that were made.
    databases: AtomicU32,
    /// The words before each command line of the server and of its client.
    within: Vec<String>,
}

/// Options of a private Postgres.
#[derive(Debug, Default)]
#[must_use]
pub struct PostgresOptions {
    settings: Vec<(String, String)>,
    /// Certificate and key, as PEM.
    tls: Option<(String, String)>,
    within: Vec<String>,
}

impl PostgresOptions {
    /// Postgres's own defaults, with `fsync` on and 200 connections.
    pub fn new() -> PostgresOptions {
        PostgresOptions::default()
    }

    /// A setting of `postgresql.conf`, in place of an earlier one of the same name.
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> PostgresOptions {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Offers TLS with this certificate and private key, both as PEM.
    pub fn tls(mut self, certificate: &str, key: &str) -> PostgresOptions {
        self.tls = Some((certificate.to_owned(), key.to_owned()));
        self
    }

    /// Runs it behind these words, such as `ip netns exec`, on a network of its own, where whoever is there reaches it at any address.
    pub fn within(mut self, words: Vec<String>) -> PostgresOptions {
        self.within = words;
        self.set("listen_addresses", "*")
    }

    /// Makes a data directory and starts a server on it; returns when it takes connections.
    ///
    /// # Panics
    /// If Postgres is not installed (the message says how to install it) or does not start (the message has its log).
    #[must_use]
    #[allow(clippy::panic, reason = "a test without its server fails")]
    pub fn start(self) -> Postgres {
        let bin = binaries().unwrap_or_else(|| panic!("{INSTALL}"));
        let dir = directory("postgres");
        let (data, port) = (dir.join("data"), Port::free());
        let as_user = switch_user(&dir);
        let command = |program: &str, args: &[&str]| {
            let program = bin.join(program).display().to_string();
            as_user.iter().cloned().chain([program]).chain(args.iter().map(ToString::to_string)).collect::<Vec<_>>()
        };
        let place = data.display().to_string();
        let serve = command("postgres", &["-D", &place, "-p", &port.number().to_string()]);
        let mut serve = [self.within.clone(), serve].concat();
        let fixed = [("listen_addresses", "127.0.0.1"), ("unix_socket_directories", ""), ("max_connections", "200")];
        // A server that comes back after a crash syncs each file of all its databases, which takes seconds, or the file system at once.
        let sync = knows(&bin, SYNC_METHOD).then_some((SYNC_METHOD, "syncfs"));
        let given = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in fixed.into_iter().chain(sync).chain(given) {
            serve.extend(["-c".to_owned(), format!("{name}={value}")]);
        }
        if self.tls.is_some() {
            // Relative to the data directory.
            let files = [("ssl", "on"), ("ssl_cert_file", "tls.crt"), ("ssl_key_file", "tls.key")];
            serve.extend(files.iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]));
        }
        let server = Server::new("Postgres", dir, port, &serve);
        let init = command(
            "initdb",
            &["-D", &place, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
        );
        let output = Command::new(&init[0])
            .args(&init[1..])
            .current_dir(server.directory())
            .output()
            .expect("initdb can be run");
        assert!(output.status.success(), "initdb failed: {}", String::from_utf8_lossy(&output.stderr));
        if let Some((certificate, key)) = &self.tls {
            write_private(&data, "tls.crt", certificate);
            write_private(&data, "tls.key", key);
        }
        if !self.within.is_empty() {
            let mut rules = std::fs::OpenOptions::new().append(true).open(data.join("pg_hba.conf"));
            let written = rules.as_mut().map(|rules| writeln!(rules, "host all all all trust"));
            assert!(written.is_ok_and(|written| written.is_ok()), "initdb made the rules of who may connect");
        }
        let server = Postgres { server, bin, databases: AtomicU32::new(0), within: self.within };
        server.restart();
        server
    }
}

impl Deref for Postgres {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Postgres {
    /// A server with the default [options](PostgresOptions).
    ///
    /// # Panics
    /// As [`PostgresOptions::start`].
    #[must_use]
    pub fn start() -> Postgres {
        PostgresOptions::new().start()
    }

    /// Says how to install Postgres where it is missing; nothing where it is there.
    #[must_use]
    pub fn missing() -> Option<&'static str> {
        binaries().is_none().then_some(INSTALL)
    }

    /// The URL of one of the server's databases; `"postgres"` exists from the start.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port())
    }

    /// The URL of a new empty database whose text is ordered by its bytes.
    pub fn fresh_database(&self) -> String {
        self.fresh_database_with("ENCODING 'UTF8' LOCALE 'C'")
    }

    /// The URL of a new empty database whose text is ordered as people order words (ICU `en-US`).
    pub fn fresh_icu_database(&self) -> String {
        self.fresh_database_with("ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C'")
    }

    /// The URL of a new empty database made with these options of `CREATE DATABASE`.
    pub fn fresh_database_with(&self, options: &str) -> String {
        let database = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.execute(&format!("CREATE DATABASE {database} TEMPLATE template0 {options}"));
        self.url(&database)
    }

    /// Runs a command in the database `postgres` as its superuser, and returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn execute(&self, sql: &str) -> String {
        let output = self.psql(sql);
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    fn psql(&self, sql: &str) -> Output {
        let port = self.port().to_string();
        let args = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-d", "postgres", "-XqAt", "-c", sql];
        // A settings file or variable of whoever runs the tests is not to reach this server.
        let line = [&*self.within, &[self.bin.join("psql").display().to_string()]].concat();
        let mut psql = Command::new(&line[0]);
        let path = std::env::var_os("PATH").map(|path| ("PATH", path));
        psql.args(&line[1..]).args(args).env_clear().envs(path).env("PGCONNECT_TIMEOUT", "5");
        psql.output().expect("psql can be run")
    }

    /// Starts the server on the same data and port if it is not running; returns when it takes connections.
    ///
    /// # Panics
    /// If it does not start within 30 s; the message has its log.
    pub fn restart(&self) {
        self.start_until(|| self.psql("SELECT").status.success());
    }
}

/// Writes a file that only the owner of the directory can read, as Postgres demands of keys.
fn write_private(dir: &Path, name: &str, text: &str) {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let (file, owner) = (dir.join(name), std::fs::metadata(dir).expect("initdb made the directory"));
    std::fs::write(&file, text)
        .and_then(|()| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)))
        .and_then(|()| chown(&file, Some(owner.uid()), Some(owner.gid())))
        .expect("a file can be written");
}

/// Tells whether the server has this setting.
fn knows(bin: &Path, setting: &str) -> bool {
    let described = Command::new(bin.join("postgres")).arg("--describe-config").output();
    let described = described.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    cfg!(target_os = "linux") && described.lines().any(|line| line.split('\t').next() == Some(setting))
}

/// The directory of the newest Postgres.
fn binaries() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = versions.filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((version, entry.path().join("bin")))
    });
    let newest = debian.filter(|(_, bin)| bin.join("initdb").exists()).max().map(|(_, bin)| bin);
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find(|dir| dir.join("initdb").exists() && dir.join("postgres").exists())
    };
    newest.or_else(on_path)
}

/// The words that go before a command so that it does not run as root, which Postgres refuses; gives the directory to that user.
#[allow(clippy::panic, reason = "a test without its server fails")]
pub(super) fn switch_user(dir: &Path) -> Vec<String> {
    let id = |args: &[&str]| {
        let output = Command::new("id").args(args).output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()?.trim().parse::<u32>().ok()
    };
    if id(&["-u"]) != Some(0) {
        return dies_with_parent();
    }
    let user = id(&["-u", "postgres"]).unwrap_or_else(|| panic!("there is no user postgres to run as. {INSTALL}"));
    let group = id(&["-g", "postgres"]);
    std::os::unix::fs::chown(dir, Some(user), group).expect("root may give a directory away");
    let switch = ["--reuid=postgres", "--regid=postgres", "--clear-groups"];
    dies_with_parent().into_iter().chain(switch.map(str::to_owned)).collect()
}
