//! Traces that go on at another host: the library carries their context, and what listens to its spans reads and writes that.

use std::fmt;

use tracing::Span;
use tracing::level_filters::LevelFilter;

use crate::quiet::guarded;

/// The most bytes of a context that cross. A `traceparent` has 55.
const MAX_BYTES: usize = 255;

/// Tells the context of what runs where it is called.
type Current = dyn Fn() -> Option<String> + Send + Sync;
/// Has a span continue the trace of a context.
type GoOn = dyn Fn(&Span, &str) + Send + Sync;

/// The way to the traces of a program.
pub(crate) struct Traces {
    current: Box<Current>,
    go_on: Box<GoOn>,
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").finish_non_exhaustive()
    }
}

impl Traces {
    pub(crate) fn new(
        current: impl Fn() -> Option<String> + Send + Sync + 'static,
        go_on: impl Fn(&Span, &str) + Send + Sync + 'static,
    ) -> Traces {
        Traces { current: Box::new(current), go_on: Box::new(go_on) }
    }

    /// The context of what runs here, if it can cross.
    pub(crate) fn current(&self) -> Option<String> {
        let current = guarded(|| (self.current)());
        let current = current.unwrap_or_else(|panic| {
            complain(&panic);
            None
        });
        current.filter(|trace| !trace.is_empty() && trace.len() <= MAX_BYTES)
    }

    /// The span of a request that is part of a trace of another host.
    pub(crate) fn span(traces: Option<&Traces>, trace: &str) -> Span {
        if LevelFilter::current() < tracing::Level::DEBUG {
            return Span::none();
        }
        let span = tracing::debug_span!("forwarded", traceparent = trace);
        if let Some(traces) = traces {
            guarded(|| (traces.go_on)(&span, trace)).unwrap_or_else(|panic| complain(&panic));
        }
        span
    }
}

fn complain(panic: &str) {
    tracing::warn!(panic, "a function that was given to HostBuilder::traces panicked");
}
