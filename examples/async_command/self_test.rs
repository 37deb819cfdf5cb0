//! The proof: each way in which a client may learn of an outcome, tried on this program as a child process, which is killed while slow
//! commands are under way; or as several, of which two are killed for good.
//!
//! Everything here is seen from outside, over HTTP. `kills.rs` has what is held against the kills; `options.rs` the ways of the decision
//! record, `doors.rs` what is refused, and `form.rs` what a browser without JavaScript does.

mod client;
mod doors;
mod form;
mod kills;
mod options;

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Result, anyhow};
use examples::BoxError;
use examples::process::HostProcess;
use tokio::time::{sleep, timeout};

use self::client::Client;
use crate::hosts::Hosts;
use crate::store::{Kind, LEASE};

/// The limit of it all, and of one check.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_secs(45);

/// A check that is yet to be made.
type Check<'a> = (&'static str, Pin<Box<dyn Future<Output = Result<()>> + 'a>>);

/// The number of checks so far, and of kills.
#[derive(Debug, Default)]
pub(crate) struct Report {
    checks: usize,
    failed: usize,
    kills: usize,
}

impl Report {
    pub(crate) fn is_right(&self) -> bool {
        self.failed == 0
    }

    /// Makes a check, and says in a line what came of it.
    async fn see(&mut self, (name, check): Check<'_>) {
        let result = timeout(PATIENCE, check).await.unwrap_or_else(|_| Err(anyhow!("not done after {PATIENCE:?}")));
        self.checks += 1;
        match result {
            Ok(()) => println!("ok      {name}"),
            Err(error) => {
                self.failed += 1;
                println!("FAILED  {name}: {}", format!("{error:#}").replace('\n', " "));
            }
        }
    }

    async fn see_all(&mut self, checks: Vec<Check<'_>>) {
        for check in checks {
            self.see(check).await;
        }
    }

    /// Ends a host as a power switch would, and starts it again if it was the only one; else the others go on with what it had.
    async fn kill(&mut self, hosts: &mut [HostProcess]) -> Result<()> {
        self.kills += 1;
        if let [host] = hosts {
            host.kill().await?;
            return Ok(host.start().await?);
        }
        hosts[self.kills].kill().await?;
        // Until then some requests would be refused, and nobody here repeats any.
        sleep(2 * LEASE).await;
        Ok(())
    }
}

/// `37 checks, 0 failed; host killed 2 times`
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} checks, {} failed; host killed {} times", self.checks, self.failed, self.kills)
    }
}

/// Runs the self-test on so many hosts, with their data in a directory or on a private server. All is asked of the first.
pub(crate) async fn run(store: Kind, count: usize, data: PathBuf) -> Result<Report, BoxError> {
    let mut service = Hosts::start(store, count, &data, Vec::new()).await?;
    let hosts = &mut service.hosts;
    let url = hosts[0].url();
    println!("the host listens at {url}");
    let client = Client::new(url);
    let mut report = Report::default();

    let mut slow = kills::Slow::begin(&client).await?;
    slow.sees_all_under_way(&client).await?;
    report.kill(hosts).await?;
    slow.goes_on_listening(&client).await?;
    slow.sees_all_under_way(&client).await?;
    slow.has_one_acknowledged(&client).await?;
    report.kill(hosts).await?;
    slow.goes_on_listening(&client).await?;

    report.see_all(options::checks(&client)).await;
    report.see_all(doors::checks(&client)).await;
    report.see_all(form::checks(&client)).await;
    report.see_all(slow.checks(&client)).await;
    report.see(kills::ends_streams(&client, &mut hosts[0])).await;
    // So that what is over is soon forgotten, on whatever host.
    for host in hosts.iter_mut().skip(report.kills + 1) {
        host.drain().await?;
    }
    hosts[0].add_args(["--keep".into(), "1".into()]);
    hosts[0].start().await?;
    report.see(options::is_forgotten(&client)).await;
    hosts[0].drain().await?;
    Ok(report)
}
