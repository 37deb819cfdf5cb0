//! The Postgres that an example works on, from its command line: the one that `--url` names, or else a private one.

#![allow(dead_code, reason = "an example without a child does not use all of it")]

use std::time::Duration;

use alarm_backends::PostgresStore;
use alarm_backends::testing::servers::Postgres;
use examples::{BoxError, CannotStart, process};
use lexopt::{Arg, ValueExt};
use stable_interfaces::{ContextError, FleetClient, HostBuilder};

/// A Postgres, and a schema there that belongs to this run alone. A private one is gone with this value.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) schema: String,
    /// Says that this process is the example's child, which runs its host.
    pub(crate) is_host: bool,
    _private: Option<Postgres>,
}

impl Server {
    /// Reads the command line, `[--url URL]`, and starts a private server unless there is a URL.
    ///
    /// # Errors
    /// For other arguments, and with the line that installs Postgres where it is missing.
    pub(crate) fn from_args() -> Result<Server, CannotStart> {
        let (url, schema, is_host) = parse().map_err(|error| CannotStart::new("bad arguments", error))?;
        let private = match (&url, Postgres::missing()) {
            (Some(_), _) => None,
            (None, Some(install)) => return Err(CannotStart::new("cannot start a private server", install)),
            (None, None) => Some(Postgres::start()),
        };
        let url = url.or_else(|| Some(private.as_ref()?.url("postgres"))).expect("one of them is there");
        // In a server of somebody else's it stays, under this name.
        let schema = schema.unwrap_or_else(|| format!("example_{:08x}", fastrand::u32(..)));
        Ok(Server { url, schema, is_host, _private: private })
    }

    /// Opens the store there.
    ///
    /// # Errors
    /// If the server cannot be reached or does not let us in.
    pub(crate) async fn store(&self) -> Result<PostgresStore, CannotStart> {
        let open = async { PostgresStore::builder(&self.url)?.schema(&self.schema).connect().await };
        open.await.map_err(|error| CannotStart::new("cannot open the store", error))
    }

    /// Runs the host of the child until its parent is gone.
    ///
    /// # Errors
    /// If the host does not start, or ends by itself.
    pub(crate) async fn run(&self, host: HostBuilder) -> Result<String, BoxError> {
        host.start().await?.run_until(process::asked_to_stop(true)).await?;
        Ok("asked to stop".to_owned())
    }

    /// Starts this program again, as a host on the same server.
    ///
    /// # Errors
    /// If there can be no more processes.
    pub(crate) fn start_host(&self) -> Result<tokio::process::Child, BoxError> {
        Ok(process::again(["host", "--url", &self.url, "--schema", &self.schema])?)
    }
}

fn parse() -> Result<(Option<String>, Option<String>, bool), lexopt::Error> {
    let (mut url, mut schema, mut is_host) = (None, None, false);
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("url") => url = Some(args.value()?.string()?),
            Arg::Long("schema") => schema = Some(args.value()?.string()?),
            Arg::Value(word) if word == "host" => is_host = true,
            _ => return Err(arg.unexpected()),
        }
    }
    Ok((url, schema, is_host))
}

/// Looks until no more than `most` messages wait in the inboxes of these instances, and says how many do.
///
/// # Errors
/// If the store cannot be read.
pub(crate) async fn until_waiting(
    client: &FleetClient,
    interface: &str,
    instances: &[&str],
    most: usize,
) -> Result<usize, ContextError> {
    loop {
        let mut waiting = 0;
        for instance in instances {
            waiting += client.inbox(interface, instance).await?.len();
        }
        if waiting <= most {
            return Ok(waiting);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
