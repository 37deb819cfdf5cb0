//! The hosts of a drill, as child processes, and the private server that they share if they share one.

use std::path::Path;
use std::time::Duration;

use examples::BoxError;
use examples::process::HostProcess;
use futures_util::future::try_join_all;

use crate::server::Private;
use crate::store::{Kind, LEASE};

/// Hosts that run, or that were killed and are to be started again.
pub(crate) struct Hosts {
    pub(crate) hosts: Vec<HostProcess>,
    _server: Option<Private>,
}

impl Hosts {
    /// Starts so many hosts with `args`, and behind these what says where they keep flows: a directory in `data`, or a server of their own.
    ///
    /// # Errors
    /// If one does not start, or the server is not installed.
    pub(crate) async fn start(
        store: Kind,
        count: usize,
        data: &Path,
        mut args: Vec<String>,
    ) -> Result<Hosts, BoxError> {
        let mut server = None;
        if store == Kind::Fjall {
            args.extend(["--data".to_owned(), data.join("host").display().to_string()]);
        } else {
            let private = Private::start(store).await?;
            args.extend(["--store", store.name(), "--url", &private.url()].map(str::to_owned));
            server = Some(private);
        }
        let hosts = (0..count).map(|_| HostProcess::new(args.iter().map(Into::into)));
        let mut hosts = hosts.collect::<Result<Vec<_>, _>>()?;
        try_join_all(hosts.iter_mut().map(HostProcess::start)).await?;
        Ok(Hosts { hosts, _server: server })
    }

    /// The time that a host stays away which was killed: a moment, if there is no other, and else so long that the others go on with all
    /// that it had.
    pub(crate) fn away(&self, random: &mut fastrand::Rng) -> Duration {
        let moment = Duration::from_millis(random.u64(200..700));
        if self.hosts.len() == 1 { moment } else { 3 * LEASE + moment }
    }

    /// Asks all hosts to drain and end.
    ///
    /// # Errors
    /// If one ends in another way.
    pub(crate) async fn stop(mut self) -> Result<(), BoxError> {
        for host in &mut self.hosts {
            host.drain().await?;
        }
        Ok(())
    }
}
