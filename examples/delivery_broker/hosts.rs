//! The hosts of a drill, as child processes, and the private server that they share if they share one.

use std::path::Path;

use examples::BoxError;
use examples::process::HostProcess;

use crate::server::Private;
use crate::store::Kind;

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
        let fleet: Vec<_> = hosts.iter().map(|host| host.address().to_string()).collect();
        for host in &mut hosts {
            if server.is_some() {
                host.add_args(["--fleet".into(), fleet.join(",").into()]);
            }
            host.start().await?;
        }
        Ok(Hosts { hosts, _server: server })
    }

    /// Asks all hosts to drain and end.
    ///
    /// # Errors
    /// If one ends in another way.
    pub(crate) async fn stop(mut self) -> Result<(), BoxError> {
        for host in &mut self.hosts {
            stop(host).await?;
        }
        Ok(())
    }
}

/// Asks a host to drain and end.
///
/// # Errors
/// If it ends in another way.
pub(crate) async fn stop(host: &mut HostProcess) -> Result<(), BoxError> {
    let ended = host.stop().await?;
    if ended.success() { Ok(()) } else { Err(format!("asked to stop, a host ended with {ended}").into()) }
}
