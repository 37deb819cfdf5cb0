//! Rehearsals: a flow that has come to wait is replayed there and then, so that a decision that is not in its journal is found where it was
//! made, and not when the process is next started. Debug builds do so.

use std::sync::Arc;

use stable_interfaces::Context;

use super::{FlowInstance, Loaded, TurnError};
use crate::engine::{Engine, Phase, Shared};
use crate::flows::parts_of;
use crate::journal::Page;

/// The longest journal, in entries, that is replayed at each park. A longer one is whenever it has grown by a tenth, for all of it is replayed.
const EACH_UP_TO: u64 = 100;

/// The journal of a run, for its rehearsals.
#[derive(Debug, Default)]
pub(super) struct Rehearsal {
    pages: Vec<Page>,
    /// The number of entries at the last rehearsal.
    entries: u64,
}

impl Rehearsal {
    pub(super) fn of(pages: &[Page]) -> Rehearsal {
        Rehearsal { pages: pages.to_vec(), entries: 0 }
    }

    pub(super) fn note(&mut self, page: Page) {
        self.pages.push(page);
    }

    /// Tells whether a journal with so many entries is to be replayed now.
    fn is_due(&self, entries: u64) -> bool {
        entries > self.entries && (entries <= EACH_UP_TO || entries >= self.entries + self.entries / 10)
    }
}

impl FlowInstance {
    /// Replays the flow if it has come to wait, and blocks it if its code does not do again what it did.
    pub(super) fn rehearse(&mut self, cx: &mut Context) -> Result<(), TurnError> {
        let Loaded::Going(going) = &mut self.loaded else { return Ok(()) };
        let Some(rehearsal) = &mut going.rehearsal else { return Ok(()) };
        let engine = &mut going.engine;
        let has_more = engine.has_unseen() || engine.wants_steps_polled() || engine.has_rest();
        let is_parked = matches!(engine.phase(), Phase::Going) && !has_more;
        if !is_parked || !rehearsal.is_due(engine.entries()) {
            return Ok(());
        }
        rehearsal.entries = engine.entries();
        let Some(code) = self.registry.code(parts_of(&self.id).0, going.version) else { return Ok(()) };
        let (limits, urls) = (self.registry.limits, self.registry.urls.clone());
        let shared = Shared::new(self.id.clone(), cx.clock(), cx.random(), limits, urls, Arc::new(()));
        let Err(why) = Engine::check(shared, code, rehearsal.pages.clone()) else { return Ok(()) };
        engine.block(why);
        self.write(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use stable_interfaces::{Host, MemoryStore};

    use super::*;
    use crate::{BlockedKind, Flow, Flows, State};

    #[tokio::test(start_paused = true)]
    async fn a_decision_that_is_not_in_the_journal_is_found_when_the_flow_first_waits() {
        for is_replayed in [true, false] {
            let runs = Arc::new(AtomicU32::new(0));
            let counted = runs.clone();
            let code = move |flow: Flow, (): ()| {
                let run = counted.fetch_add(1, Ordering::Relaxed);
                async move {
                    flow.sleep(Duration::from_secs(60 + u64::from(run))).await;
                    Ok(())
                }
            };
            let mut host = Host::local(MemoryStore::new());
            let flows =
                Flows::builder().flow("chance", 1, code).replay_at_parks(is_replayed).register(&mut host).unwrap();
            let host = host.start().await.unwrap();
            flows.start("chance", "1", &()).await.unwrap();
            let state = flows.get("chance", "1").await.unwrap().unwrap().state;
            let is_found = matches!(&state, State::Blocked { why } if why.kind() == BlockedKind::Differs);
            assert_eq!(
                (is_found, runs.load(Ordering::Relaxed)),
                (is_replayed, 1 + u32::from(is_replayed)),
                "{state:?}"
            );
            host.drain(Duration::from_secs(1)).await;
        }
    }

    #[test]
    fn a_short_journal_is_replayed_at_each_park_and_a_long_one_each_time_that_it_has_grown() {
        let mut rehearsal = Rehearsal::default();
        let mut due = Vec::new();
        for entries in 1..=1_000 {
            if rehearsal.is_due(entries) {
                rehearsal.entries = entries;
                due.push(entries);
            }
            assert!(!rehearsal.is_due(rehearsal.entries), "nothing new has come");
        }
        assert_eq!(due[..100], (1..=100).collect::<Vec<_>>());
        assert_eq!(due[100..104], [110, 121, 133, 146]);
        assert!(due.len() < 130, "{}", due.len());
    }
}
