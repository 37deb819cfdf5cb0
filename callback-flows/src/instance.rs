//! A flow as an instance: its journal is its storage, and its code is polled in its turns.
//!
//! A turn takes one thing in (a start, a message, a timer, what a step has come to), polls the code for as long as that leads
//! anywhere, and is one commit of all that was decided. Steps start when the commit that they began in is durable: then the
//! [`pump`], a task of the incarnation, brings the next turn. If a commit fails, the instance is built anew and its code replayed.

mod alarms;
mod commands;
mod continued;
mod letters;
mod lives;
mod load;
mod pump;
mod rehearsal;
mod sealed;
mod telling;
#[cfg(feature = "postgres")]
mod transaction;
mod write;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use stable_interfaces::transport::RemoteError;
use stable_interfaces::{Context, ContextError, StableInterface, Timestamp};

pub(crate) use self::commands::Answer;
use self::continued::Before;
pub(crate) use self::lives::RUNNING;
use self::pump::{Bell, Pumping};
pub(crate) use self::pump::{Strays, watch_strays};
use self::rehearsal::Rehearsal;
use self::sealed::{Seal, Sealed};
pub(crate) use self::telling::Look;
use self::telling::{Said, Unread};
use self::write::Stored;
use crate::by_name::ByName;
use crate::courier::{Letter, Parents};
use crate::engine::Engine;
use crate::flows::Registry;
use crate::journal::Unreadable;
use crate::seldom::{Seldom, Unchanged};
use crate::status::{Status, Waiting};

/// The run of a flow that has not been continued under its ID.
pub(crate) const RUN: u32 = 1;
/// The number of things that the code is given in one turn.
const RELEASES: usize = 1_000;
/// The alarm for a flow's next timer, for its expiry, and for its purge.
pub(crate) const NEXT: &str = "next";

/// The reason why a turn failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TurnError {
    #[error(transparent)]
    Context(#[from] ContextError),
    #[error("{0}")]
    Unreadable(Unreadable),
    #[error("{0}")]
    Sealed(Seal),
    #[error("a message that came before it is still to be taken, and a timer is due")]
    Behind,
    #[error("its status cannot be read")]
    Status(#[source] serde_json::Error),
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

/// A flow in memory.
pub(crate) struct FlowInstance {
    id: Arc<str>,
    registry: Arc<Registry>,
    loaded: Loaded,
    /// Other flows that want to know how it ends.
    parents: Parents,
    /// Posts to go out with the next commit.
    letters: Vec<Letter>,
    /// The times that the alarm `next` is set to, and that `run` was set to, if it is set or held.
    next: Option<Timestamp>,
    runs: Option<Timestamp>,
    /// A note says that this process leaves in good order.
    has_left: bool,
    /// The alarm `run` is set because not all that was decided is recorded.
    runs_for_rest: bool,
}

enum Loaded {
    /// The flow was never started.
    Absent,
    Going(Box<Going>),
    /// The journal cannot be read here.
    Sealed(Box<Sealed>),
    Over(Box<Status>),
}

struct Going {
    engine: Engine,
    bell: Arc<Bell>,
    pumping: Pumping,
    version: u32,
    started_at: Timestamp,
    input: u64,
    /// The number of the journal's next page.
    pages: u64,
    /// The things that its run has from those before it.
    before: Before,
    /// Messages that were taken, by callback and ID, and ends of children, by child.
    seen: ByName<()>,
    /// The status as it was last written, if there is one.
    stored: Option<Stored>,
    cold: Seldom<Cold>,
    unread: Unread,
    /// The journal, kept for replays, if flows are replayed as they park.
    rehearsal: Option<Rehearsal>,
}

/// The part of a flow in memory that few flows have.
#[derive(Default)]
struct Cold {
    /// The things that a flow waited for that was blocked as it was loaded.
    waited: Vec<Waiting>,
    said: Said,
}

impl Unchanged for Cold {
    const UNCHANGED: &'static Cold = &Cold { waited: Vec::new(), said: Said::NOTHING };
}

impl fmt::Debug for FlowInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowInstance").field("id", &self.id).finish_non_exhaustive()
    }
}

impl FlowInstance {
    pub(crate) fn new(id: &str, registry: Arc<Registry>) -> FlowInstance {
        let loaded = Loaded::Absent;
        let (parents, letters) = (Parents::default(), Vec::new());
        FlowInstance {
            id: id.into(),
            registry,
            loaded,
            parents,
            letters,
            next: None,
            runs: None,
            has_left: false,
            runs_for_rest: false,
        }
    }

    /// Polls the code for as long as that leads anywhere, and records what was decided.
    fn advance(&mut self, cx: &mut Context) -> Result<(), TurnError> {
        let Loaded::Going(going) = &mut self.loaded else { return Ok(()) };
        if !going.engine.settle(RELEASES) && going.engine.wants_steps_polled() {
            going.engine.poll_steps(cx.now());
            going.engine.settle(RELEASES);
        }
        self.address_posts(cx.now());
        self.write(cx)?;
        self.rehearse(cx)
    }

    /// Goes on, for a turn whose answer counts for all that comes of it.
    async fn advance_fully(&mut self, cx: &mut Context) -> Result<(), TurnError> {
        self.advance(cx)?;
        self.write_rest(cx).await
    }
}

impl Going {
    /// Lets everything happen that was due before something came: it came after that.
    fn pass_until(&mut self, arrived: Timestamp) {
        let before = arrived - Duration::from_millis(1);
        while self.engine.fire_due(before, None) > 0 {
            self.engine.settle(usize::MAX);
        }
    }
}

impl StableInterface for FlowInstance {
    const NAME: &'static str = "flow";
    type Error = TurnError;

    fn keeps_memory(error: &TurnError) -> bool {
        // It is said before anything is changed.
        matches!(error, TurnError::Unreadable(_) | TurnError::Sealed(_) | TurnError::Behind)
    }

    async fn on_start(&mut self, cx: &mut Context) -> Result<(), TurnError> {
        self.load(cx, false).await
    }
}
