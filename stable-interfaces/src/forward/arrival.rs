//! A request that has arrived from another host, as a link of the call chain: its callers there are links as those here are, known by their names.
//!
//! A request is bounded by the time that its sender had left, counted from the moment at which it arrived.

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::resume_unwind;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::instance::chain::{Chain, ChainLink, Deadline, enter};
use crate::quiet::guarded;
use crate::sync::Arc;

/// An instance on another host whose handler waits.
#[derive(Debug)]
struct Caller(Arc<str>);

impl ChainLink for Caller {
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }

    fn handler_timeout(&self) -> Duration {
        Duration::MAX
    }

    fn instance_id(&self) -> Option<&str> {
        // No name of an interface has a slash.
        self.0.split_once('/').map(|(_, id)| id)
    }

    fn elsewhere(&self) -> Option<&str> {
        Some(&self.0)
    }
}

/// Someone on another host who is no handler.
#[derive(Debug)]
struct Outsider;

impl ChainLink for Outsider {
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another host")
    }

    fn handler_timeout(&self) -> Duration {
        Duration::MAX
    }

    fn is_handler(&self) -> bool {
        false
    }
}

/// A request that has arrived.
#[derive(Debug)]
pub(crate) struct Arrival {
    callers: Arc<Chain>,
    is_of_handler: bool,
    /// The host that has said that the shard is to be here, which does not own it itself.
    sent_by: Option<Arc<str>>,
}

impl Arrival {
    /// A request that arrives `now`, with the time it has left to wait for its turn, for how long a handler waits for its answer, and the
    /// names of the instances whose handlers do, innermost first; and the host that has sent it here, if one has.
    pub(crate) fn new(
        now: Duration,
        given: Duration,
        waits: Option<Duration>,
        callers: &[&str],
        sent_by: Option<&str>,
    ) -> Arc<Arrival> {
        let waits = waits.unwrap_or(Duration::MAX);
        let link = |link: Arc<dyn ChainLink>, caller| Chain::elsewhere(link, caller, now, given, waits);
        let chain = callers.iter().rfold(None, |caller, name| Some(link(Arc::new(Caller((*name).into())), caller)));
        let is_of_handler = chain.is_some();
        let callers = chain.unwrap_or_else(|| link(Arc::new(Outsider), None));
        Arc::new(Arrival { callers, is_of_handler, sent_by: sent_by.map(Arc::from) })
    }

    /// The host that has sent it here, if one has.
    pub(crate) fn sent_by(&self) -> Option<&str> {
        self.sent_by.as_deref()
    }

    /// Tells whether the handler of an instance waits for the answer.
    pub(crate) fn is_of_handler(&self) -> bool {
        self.is_of_handler
    }

    /// The moment until which it waits for its turn, by the lease clock.
    pub(crate) fn turn_until(&self) -> Duration {
        self.callers.turn_until()
    }

    /// Polls a future as what the callers do.
    pub(crate) async fn run<F: Future>(self: Arc<Self>, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut link: Arc<dyn ChainLink> = self;
        poll_fn(|task| {
            let mut polled = Ok(Poll::Pending);
            let poll = || polled = guarded(|| future.as_mut().poll(task));
            link = enter(link.clone(), &mut None, &mut Deadline::NONE.clone(), poll);
            // The chain is as it was before; the panic goes on to who is there for it.
            polled.unwrap_or_else(|panic| resume_unwind(Box::new(panic)))
        })
        .await
    }
}

impl ChainLink for Arrival {
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request of another host")
    }

    fn handler_timeout(&self) -> Duration {
        Duration::MAX
    }

    fn arrived(&self) -> Option<&Arc<Chain>> {
        Some(&self.callers)
    }

    fn is_handler(&self) -> bool {
        self.is_of_handler()
    }
}
