//! The voice of a child process: lines on its standard output, in the order in which they were said.
//!
//! One thread writes what has gathered meanwhile, so that thousands of lines a second cost neither a lock nor a system call
//! each. What a killed process had not written was never said; a line that was cut short has no end and is not heard.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::mpsc::{Sender, channel};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// The target under which the library says how many shards it has handed over.
const HANDOFF: &str = "stable_interfaces::host::handoff";

/// The beginning of its lines. The test harness writes lines of its own, and may have begun one.
pub(super) const MARK: &str = "@ ";

/// Says lines. Clones say them in one order.
#[derive(Debug, Clone)]
pub(super) struct Voice(Sender<Said>);

#[derive(Debug)]
enum Said {
    Line(String),
    /// With somebody who waits until it is written.
    Last(String, Sender<()>),
}

impl Voice {
    /// Starts the thread that writes; it ends with the last clone.
    pub(super) fn start() -> Voice {
        let (send, said) = channel::<Said>();
        std::thread::spawn(move || {
            let mut text = String::new();
            while let Ok(first) = said.recv() {
                text.clear();
                let mut waiting = Vec::new();
                for said in std::iter::once(first).chain(said.try_iter().take(256)) {
                    let line = match said {
                        Said::Line(line) => line,
                        Said::Last(line, written) => {
                            waiting.push(written);
                            line
                        }
                    };
                    // Writing to a String cannot fail.
                    let _ = writeln!(text, "{MARK}{line}");
                }
                let mut out = std::io::stdout().lock();
                // The parent may be gone; then so is this process, soon.
                drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
            }
        });
        Voice(send)
    }

    /// Says a line.
    pub(super) fn say(&self, line: impl Into<String>) {
        // It cannot fail while the writing thread lives, and that lives as long as this.
        drop(self.0.send(Said::Line(line.into())));
    }

    /// Says a line, and returns when it is written.
    pub(super) fn say_last(&self, line: impl Into<String>) {
        let (written, wait) = channel();
        drop(self.0.send(Said::Last(line.into(), written)));
        // An error says that the writing thread has ended, and then it has written.
        let _ = wait.recv();
    }

    /// Says what the library logs as an error, and how many shards it hands over, from here on.
    pub(super) fn say_errors(&self) {
        tracing_subscriber::registry().with(Logged(self.clone())).init();
    }
}

struct Logged(Voice);

impl<S: tracing::Subscriber> Layer<S> for Logged {
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() == Level::ERROR || (*metadata.level() == Level::INFO && metadata.target() == HANDOFF)
    }

    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let is_error = *event.metadata().level() == Level::ERROR;
        let mut line = Line(if is_error { "error" } else { "handed" }.to_owned());
        event.record(&mut line);
        self.0.say(line.0.replace('\n', " "));
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = write!(self.0, " {field}={value:?}");
    }
}
