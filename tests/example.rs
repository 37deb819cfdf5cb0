//! A program of the package `examples`, run as a user runs it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// An example, by its name. Made once per test program, as a `static`.
#[derive(Debug)]
pub struct Example {
    name: &'static str,
    program: OnceLock<PathBuf>,
}

impl Example {
    /// The example `name`. It is built when it is first run.
    #[must_use]
    pub const fn new(name: &'static str) -> Example {
        Example { name, program: OnceLock::new() }
    }

    /// Its program, built once. Cargo builds it in a resolution of its own, without the features that only tests need, unless
    /// `EXAMPLES_BUILT_WITH` has other arguments: with those of the tests no dependency is built twice.
    fn command(&self) -> Command {
        let mut command = Command::new(self.program.get_or_init(|| {
            let mut cargo = Command::new(env!("CARGO"));
            let with = std::env::var("EXAMPLES_BUILT_WITH").unwrap_or_else(|_| "--package examples".to_owned());
            cargo.args(["build", "--quiet", "--example", self.name]).args(with.split_whitespace());
            cargo.arg("--message-format=json-render-diagnostics").current_dir(env!("CARGO_MANIFEST_DIR"));
            if !cfg!(debug_assertions) {
                cargo.arg("--release");
            }
            // What the cargo that runs this test says of its package. A dependency that watches it (ring) would be built anew.
            for (name, _) in std::env::vars_os() {
                if name
                    .to_str()
                    .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
                {
                    cargo.env_remove(name);
                }
            }
            let built = cargo.stderr(Stdio::inherit()).output().expect("cargo runs");
            assert!(built.status.success(), "the example does not build");
            let artifacts = String::from_utf8(built.stdout).expect("cargo writes UTF-8");
            artifacts
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
                .filter(|artifact| artifact["target"]["name"] == self.name)
                .find_map(|artifact| Some(artifact["executable"].as_str()?.into()))
                .expect("cargo names the program it built")
        }));
        // For the services whose URLs are signed.
        command.env("CALLBACK_SECRET", "the secret of a test");
        command
    }

    /// Runs it to its end, without any input.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command().args(args).stdin(Stdio::null()).output().expect("the example runs")
    }

    /// Sees it refuse: exit status 2, nothing on standard output, and one line that says `why`.
    #[track_caller]
    pub fn assert_refuses(&self, args: &[&str], why: &str) {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        assert!(said.contains(why), "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }

    /// Starts it with `args` and `--listen 127.0.0.1:0`, and returns once it serves.
    pub fn serve(&self, args: &[&str]) -> Serving {
        self.serve_at("127.0.0.1:0", args)
    }

    /// The same, listening at `address`.
    pub fn serve_at(&self, address: &str, args: &[&str]) -> Serving {
        self.serve_with(&[args, &["--listen", address]].concat())
    }

    /// Starts it with these arguments, and returns once it serves.
    pub fn serve_with(&self, args: &[&str]) -> Serving {
        let mut serving = self.start(Path::new("."), args);
        let line = serving.next_line();
        let address = line.trim_end_matches('/').strip_prefix("listening on http://").map(str::to_owned);
        serving.address = address.unwrap_or_default();
        assert!(serving.address.starts_with("127.0.0.1:"), "{line:?}");
        serving
    }

    /// Starts it in a directory, without any input.
    pub fn start(&self, directory: &Path, args: &[&str]) -> Serving {
        let mut command = self.command();
        command.args(args).current_dir(directory).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the example runs");
        let stdout = BufReader::new(child.stdout.take().expect("it is a pipe"));
        Serving { child, address: String::new(), stdout }
    }
}

/// An example that runs, killed when dropped.
#[derive(Debug)]
pub struct Serving {
    child: Child,
    address: String,
    /// Kept open, so that it can always write there.
    stdout: BufReader<ChildStdout>,
}

impl Serving {
    /// The next line of its standard output; an empty one at its end.
    pub fn next_line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("it is readable");
        line.trim_end().to_owned()
    }

    /// Sends it SIGINT, as Ctrl-C does.
    pub fn interrupt(&self) {
        let sent = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        assert!(sent.expect("kill can be run").success(), "it is still there");
    }

    /// The address that the example listens on, if it serves.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Waits for it to end by itself, and returns its exit status; `None` if it is still there after `limit`.
    pub fn ends_within(&mut self, limit: Duration) -> Option<i32> {
        let until = Instant::now() + limit;
        loop {
            match self.child.try_wait().expect("it is our child") {
                Some(status) => return status.code(),
                None if Instant::now() >= until => return None,
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
