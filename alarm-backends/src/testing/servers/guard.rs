//! The process that holds a server and cleans up after it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// A running `guard.sh` with its directory. Dropping it kills the server, removes the directory and waits for both.
#[derive(Debug)]
pub(super) struct Guard {
    dir: PathBuf,
    shell: Child,
    /// The pipes to it, closed by dropping them. One order and its answer at a time.
    pipes: Mutex<Option<(ChildStdin, BufReader<ChildStdout>)>>,
}

impl Guard {
    /// A guard over `dir`, which it will remove, for a server with this command line. Starts nothing yet.
    pub(super) fn new(dir: PathBuf, command: &[String]) -> Guard {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(include_str!("guard.sh")).arg("guard").arg(&dir).args(command);
        let mut shell = shell
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell can be started");
        let input = shell.stdin.take().expect("standard input is a pipe");
        let output = BufReader::new(shell.stdout.take().expect("standard output is a pipe"));
        Guard { dir, shell, pipes: Mutex::new(Some((input, output))) }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The text that the server wrote to its standard output and error, for a message.
    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Starts the server.
    pub(super) fn start(&self) {
        self.order("start");
    }

    /// Tells that the server's process is there.
    pub(super) fn is_alive(&self) -> bool {
        self.order("alive") == "yes"
    }

    /// Sends a signal (`KILL`, `STOP`, `CONT`, `INT`) to the server and its children; waits for its end after `KILL`.
    pub(super) fn signal(&self, signal: &str) {
        self.order(signal);
    }

    fn order(&self, order: &str) -> String {
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        let (input, output) = pipes.as_mut().expect("the pipes are open until the guard is dropped");
        let mut answer = String::new();
        writeln!(input, "{order}").and_then(|()| output.read_line(&mut answer)).expect("the guard answers");
        answer.trim_end().to_owned()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        *self.pipes.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // It may have been killed by somebody else; there is nothing left to do then.
        let _ = self.shell.wait();
    }
}
