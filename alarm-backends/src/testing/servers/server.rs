//! The parts that all private servers have alike: a process under guard, a port, a directory.

use std::path::{Path, PathBuf};

use super::guard::Guard;
use super::port::Port;
use super::wait_for;

/// A private server's process, with its port and its directory. Dropping it ends the process and removes the directory.
#[derive(Debug)]
pub struct Server {
    /// The name of the program, for messages.
    name: &'static str,
    guard: Guard,
    port: Port,
}

/// Makes a temporary directory, which the guard of a server is to remove.
pub(super) fn directory(of: &str) -> PathBuf {
    let dir = tempfile::Builder::new().prefix(&format!("private-{of}-")).tempdir();
    dir.expect("a temporary directory").keep()
}

impl Server {
    /// A server with this command line, in this directory. Starts nothing yet.
    pub(super) fn new(name: &'static str, dir: PathBuf, port: Port, command: &[String]) -> Server {
        Server { name, guard: Guard::new(dir, command), port }
    }

    /// Starts the process if it is not running; returns when `is_ready` says so.
    ///
    /// # Panics
    /// If that takes more than 30 s; the message has the log.
    pub(super) fn start_until(&self, is_ready: impl Fn() -> bool) {
        let ready = wait_for(|| {
            // After a kill the last of the old processes may hold the data for a moment, and the new one gives up.
            if !self.guard.is_alive() {
                self.guard.start();
            }
            is_ready().then_some(())
        });
        assert!(ready.is_some(), "{} did not start: {}", self.name, self.guard.log());
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The directory of its data and its log.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.guard.dir()
    }

    /// The text that it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.guard.log()
    }

    /// Kills the server with SIGKILL, as a crash does; what it did not write durably is lost, and all connections end.
    pub fn kill9(&self) {
        self.guard.signal("KILL");
    }

    /// Stops the server and everything in it with SIGSTOP: it keeps its connections and answers nothing.
    pub fn pause(&self) {
        self.guard.signal("STOP");
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        self.guard.signal("CONT");
    }
}
