//! The replay of a whole journal, also of one that has ended: does today's code do what that of then has done?

use std::sync::Arc;

use super::{Code, Engine, Phase, Shared};
use crate::blocked::{Blocked, BlockedKind};
use crate::journal::{Ended, Page};

impl Engine {
    /// Replays a journal, and says where the code does something else. No step is run: those whose results are not there are left as
    /// they are.
    pub(crate) fn check(shared: Arc<Shared>, code: Code, mut pages: Vec<Page>) -> Result<(), Blocked> {
        let then = pages.iter_mut().filter_map(|page| page.ended.take()).last();
        let mut engine = Engine::new(shared, code, pages);
        engine.may_end = then.is_some();
        engine.settle(usize::MAX);
        match (engine.phase(), then) {
            (Phase::Blocked(why), _) => Err(why.clone()),
            (_, None) => Ok(()),
            (Phase::Ended(now), Some(then)) if is_same(now, &then) => Ok(()),
            (Phase::Ended(now), Some(then)) => Err(differs(format!(
                "its code ends {}, and ended {} when its journal was written",
                said(now),
                said(&then)
            ))),
            (Phase::Going | Phase::Continued, Some(then)) => Err(differs(format!(
                "its code goes on waiting after the last entry of its journal, and ended {} when that was written",
                said(&then)
            ))),
        }
    }
}

fn differs(message: String) -> Blocked {
    Blocked::new(BlockedKind::Differs, message)
}

/// Compares results as values: the order of what is in a map says nothing.
fn is_same(now: &Ended, then: &Ended) -> bool {
    let value = |json: &[u8]| serde_json::from_slice::<serde_json::Value>(json).ok();
    match (now, then) {
        (Ended::Done(now), Ended::Done(then)) => now == then || value(now).is_some_and(|now| Some(now) == value(then)),
        (now, then) => now == then,
    }
}

fn said(ended: &Ended) -> String {
    match ended {
        Ended::Done(value) => format!("with {}", String::from_utf8_lossy(value)),
        Ended::Failed(error) => format!("with the error {error:?}"),
        Ended::Cancelled => "as cancelled".into(),
    }
}
