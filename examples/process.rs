//! A host as a process: how a program starts and kills one of its own, and how that notices that it should end.
//!
//! A child never outlives its parent: it reads its standard input, a pipe that only the parent holds, and stops when that
//! ends, however the parent ended.

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use reqwest::Url;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpSocket;
use tokio::process::{Child, ChildStdout, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// The limit for a host to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process of this very program as a host, running or killed, always at the same address and with the same arguments.
#[derive(Debug)]
pub struct HostProcess {
    listen: SocketAddr,
    /// Keeps the address from everybody who does not name it.
    _kept: Option<TcpSocket>,
    args: Vec<OsString>,
    /// The process and its standard output, kept open so that it can always write there; `None` while there is none.
    running: Option<(Child, BufReader<ChildStdout>)>,
}

impl HostProcess {
    /// A host yet to be started, with `args`, and `--listen ADDRESS --until-stdin-ends` behind them.
    ///
    /// # Errors
    /// If there is no free port.
    pub fn new(args: impl IntoIterator<Item = OsString>) -> io::Result<HostProcess> {
        let (listen, kept) = quiet_address()?;
        let own = ["--listen".into(), listen.to_string().into(), "--until-stdin-ends".into()];
        Ok(HostProcess { listen, _kept: kept, args: args.into_iter().chain(own).collect(), running: None })
    }

    /// Adds to its arguments, for the processes that are started from here on.
    pub fn add_args(&mut self, args: impl IntoIterator<Item = OsString>) {
        self.args.extend(args);
    }

    /// The address at which it listens while it runs.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// The same as a URL.
    ///
    /// # Panics
    /// Never: an address makes a URL.
    #[must_use]
    pub fn url(&self) -> Url {
        Url::parse(&format!("http://{}", self.listen)).expect("an address makes a URL")
    }

    /// Starts the process; returns once its first line says that it is `listening on` something.
    ///
    /// # Errors
    /// If it cannot be started, or ends, or does not say so in time. Why is on the standard error that it shares with us.
    pub async fn start(&mut self) -> io::Result<()> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C at the terminal is for the parent, which then stops the host.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().expect("its standard output is a pipe"));
        let mut line = String::new();
        let said = timeout(PATIENCE, stdout.read_line(&mut line)).await;
        said.map_err(|_| io::Error::other("the host did not start in time"))??;
        if !line.starts_with("listening on ") {
            return Err(io::Error::other(format!("the host did not start: {}", child.wait().await?)));
        }
        self.running = Some((child, stdout));
        Ok(())
    }

    /// Ends the process as a power switch would: SIGKILL. Returns which process it was, once it is gone.
    ///
    /// # Errors
    /// If it was not running.
    pub async fn kill(&mut self) -> io::Result<u32> {
        let (mut child, _stdout) = self.running.take().ok_or_else(not_running)?;
        let pid = child.id().ok_or_else(|| io::Error::other("the host ended by itself"))?;
        child.start_kill()?;
        child.wait().await?;
        Ok(pid)
    }

    /// Asks the process to drain and end; how it ended.
    ///
    /// # Errors
    /// If it was not running, or does not end in time.
    pub async fn stop(&mut self) -> io::Result<ExitStatus> {
        let (mut child, _stdout) = self.running.take().ok_or_else(not_running)?;
        // `wait` closes the child's standard input first.
        timeout(PATIENCE, child.wait()).await?
    }

    /// Asks the process to drain and end, as it is to.
    ///
    /// # Errors
    /// If it was not running, does not end in time, or ends with another status than 0.
    pub async fn drain(&mut self) -> io::Result<()> {
        let ended = self.stop().await?;
        if ended.success() {
            Ok(())
        } else {
            Err(io::Error::other(format!("asked to stop, a host ended with {ended}")))
        }
    }
}

/// Starts this program again with other arguments: a child that says nothing on standard output, is killed with the value, and is to
/// [stop](asked_to_stop) when its standard input ends.
///
/// # Errors
/// If there can be no more processes.
pub fn again(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0).kill_on_drop(true).spawn()
}

fn not_running() -> io::Error {
    io::Error::other("the host is not running")
}

/// A free address that nobody is given by the system while its host is down, neither for an outgoing connection, such as a retry of our own, nor
/// as another host's.
///
/// On Linux a socket is bound to it that does not listen, beside which only a process is let in that names the port. Elsewhere it is below the ports
/// that the system hands out.
fn quiet_address() -> io::Result<(SocketAddr, Option<TcpSocket>)> {
    if cfg!(target_os = "linux") {
        let kept = TcpSocket::new_v4()?;
        kept.set_reuseaddr(true)?;
        kept.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        return Ok((kept.local_addr()?, Some(kept)));
    }
    const FIRST: u16 = 20_000;
    const LAST: u16 = 32_000;
    let start = fastrand::u16(FIRST..LAST);
    (start..LAST)
        .chain(FIRST..start)
        .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .find(|address| TcpListener::bind(address).is_ok())
        .map(|address| (address, None))
        .ok_or_else(|| io::Error::new(io::ErrorKind::AddrInUse, format!("no free port from {FIRST} to {LAST}")))
}

/// Completes on Ctrl-C, on SIGTERM and, if asked, when standard input ends.
pub async fn asked_to_stop(until_stdin_ends: bool) {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    let stdin_ended = async {
        if !until_stdin_ends {
            std::future::pending::<()>().await;
        }
        // A thread of its own: one that waits for input would keep the runtime from ending.
        let (ended, end) = oneshot::channel();
        std::thread::spawn(move || {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            let _ = ended.send(());
        });
        let _ = end.await;
    };
    tokio::select! { biased;
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
        () = stdin_ended => {}
    }
}
