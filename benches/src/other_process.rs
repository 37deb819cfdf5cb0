//! Another process of this program that does its part while this one measures: it is told lines, and says lines.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};

use alarm_backends::testing::servers::dies_with_parent;
use tokio::sync::mpsc;

use crate::measure::CHILD;

/// The process. It is killed when this is dropped, and when the thread that started it ends.
#[derive(Debug)]
pub struct OtherProcess {
    child: Child,
    told: ChildStdin,
    said: mpsc::UnboundedReceiver<String>,
}

impl OtherProcess {
    /// Starts this program anew, with these arguments behind [`CHILD`].
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(arguments: &[&str]) -> OtherProcess {
        let program = std::env::current_exe().expect("a running program has a path").display().to_string();
        let mut line = dies_with_parent();
        line.push(program);
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).arg(CHILD).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("this program can be started again");
        let told = child.stdin.take().expect("its input is a pipe");
        let lines = BufReader::new(child.stdout.take().expect("its output is a pipe")).lines();
        let (say, said) = mpsc::unbounded_channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| say.send(line)));
        OtherProcess { child, told, said }
    }

    /// The next line that it says; `None` when it has ended.
    pub async fn hear(&mut self) -> Option<String> {
        self.said.recv().await
    }

    /// Tells it a line, which nobody hears if it has ended.
    pub fn tell(&mut self, line: &str) {
        let _ = writeln!(self.told, "{line}");
    }

    /// Kills it, as a machine that fails would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
