//! A flow on its way into memory: its journal is read, and its code replayed to where it was.

use std::sync::Arc;

use bytes::Bytes;
use stable_interfaces::Context;

use super::commands::{Answer, seen_as};
use super::continued::{Before, ONCE};
use super::lives::{Lives, RUNNING};
use super::pump::{Bell, Pumping};
use super::rehearsal::Rehearsal;
use super::sealed::Seal;
use super::telling::{Said, Unread};
use super::write::Stored;
use super::{FlowInstance, Going, Loaded, NEXT, TurnError};
use crate::blocked::{Blocked, BlockedKind};
use crate::by_name::ByName;
use crate::courier::{self, Parents};
use crate::engine::{Code, Engine, Phase, Shared};
use crate::flows::journals::{PAGES, run_of};
use crate::flows::parts_of;
use crate::journal::{Event, Page};
use crate::metrics;
use crate::seldom::Seldom;
use crate::status::{STATUS_KEY, State, Status};

/// The number of processes that died while a flow's code ran for one timer or message, after which the flow is blocked.
const MAX_CODE_DEATHS: u64 = 3;

impl FlowInstance {
    /// Reads what is stored, and replays the code to where it was.
    pub(super) async fn load(&mut self, cx: &mut Context, resumes: bool) -> Result<(), TurnError> {
        match cx.get_bytes(STATUS_KEY).await? {
            Some(status) => Box::pin(self.load_stored(cx, status, resumes)).await,
            None => Ok(()),
        }
    }

    async fn load_stored(&mut self, cx: &mut Context, row: Bytes, resumes: bool) -> Result<(), TurnError> {
        let (clock, name) = (cx.clock(), self.name());
        let began = clock.elapsed();
        let stored = Status::from_stored(&row).map_err(TurnError::Status)?;
        let lives = self.note_alarms(cx, resumes).await?;
        if stored.state.is_over() {
            return self.load_over(cx, stored).await;
        }
        if !resumes && let Some(deaths) = killed_by(&stored, u64::from(cx.crashes())) {
            return self.seal(cx, &row, Status { deaths, ..stored }, Seal::Killed(deaths));
        }
        // With those of IDs, which come before them, and of parents, which come after them.
        let mut ids = cx.list(ONCE.."parent0").await?;
        let mut rows = ids.split_off(ids.partition_point(|(key, _)| key.starts_with(ONCE)));
        let parents = rows.split_off(rows.partition_point(|(key, _)| key.starts_with(PAGES)));
        self.parents = Parents::read(&parents)?;
        let (pages, next_page) = match run_of(rows, stored.first_page, None) {
            Ok(pages) => pages,
            Err(why) => return self.seal(cx, &row, stored, Seal::Unreadable(why)),
        };
        let before = Before::of(stored.run, stored.first_page, &pages, &ids);
        let seen = seen_in(&pages, &before);
        let going = self.begin(cx, (stored.version, stored.run), pages)?;
        (going.pages, going.before, going.seen) = (next_page, before, seen);
        going.replay(&stored, resumes);
        // An earlier life may have ended between its commit and the word of it.
        self.registry.hub.tell(&self.id, &Arc::new(stored), Vec::new());
        metrics::replayed(&name, clock.elapsed().saturating_sub(began));
        self.address_posts(cx.now());
        if let Some(lives) = lives {
            self.look_for_killers(cx, &lives)?;
        }
        self.tell(cx).await?;
        self.write(cx)?;
        self.write_rest(cx).await
    }

    /// Notes which alarms are set. Gives out the processes that steps ran in, as the alarm `run` knows them.
    async fn note_alarms(&mut self, cx: &mut Context, resumes: bool) -> Result<Option<Lives>, TurnError> {
        let mut lives = None;
        for alarm in cx.alarms().await? {
            match alarm.id() {
                // Set anew, it is not held, and nothing has died of it.
                NEXT => self.next = (!resumes).then(|| alarm.due()),
                RUNNING => {
                    self.runs = Some(alarm.scheduled_at());
                    lives = alarm.meta().ok();
                }
                _ => {}
            }
        }
        Ok(lives)
    }

    /// Keeps the status of a flow that is over, and goes on telling its parents if they were not told.
    async fn load_over(&mut self, cx: &mut Context, status: Status) -> Result<(), TurnError> {
        self.loaded = Loaded::Over(Box::new(status));
        // It is set for as long as somebody is to be told.
        if self.runs.is_some() {
            let rows = cx.list(courier::PARENTS).await?;
            self.parents = Parents::read(&rows)?;
        }
        self.tell(cx).await
    }

    /// An engine for this flow.
    pub(super) fn begin(
        &mut self,
        cx: &mut Context,
        (version, run): (u32, u32),
        pages: Vec<Page>,
    ) -> Result<&mut Going, TurnError> {
        let bell = Arc::new(Bell::new(self.id.clone(), self.registry.strays.clone()));
        let shared = Shared::new(
            self.id.clone(),
            cx.clock(),
            cx.random(),
            self.registry.limits,
            self.registry.urls.clone(),
            bell.clone(),
        );
        #[cfg(feature = "testing")]
        if let Some(fakes) = &self.registry.fakes {
            shared.fakes.get_or_init(|| fakes.clone());
        }
        let (name, id) = parts_of(&self.id);
        let code = self.registry.code(name, version);
        let rehearsal = self.registry.rehearses.then(|| Rehearsal::of(&pages));
        let is_known = code.is_some();
        let nothing: Code = Arc::new(|_, _| Box::pin(std::future::pending()));
        let mut engine = Engine::new(shared, code.unwrap_or(nothing), pages);
        engine.set_span(tracing::info_span!("flow", name, id, version, run));
        if !is_known {
            engine.block(Blocked::unknown_version(name, version));
        }
        self.loaded = Loaded::Going(Box::new(Going {
            engine,
            bell,
            pumping: Pumping::default(),
            version,
            started_at: cx.now(),
            input: 0,
            pages: 0,
            before: Before::none(),
            seen: ByName::default(),
            stored: None,
            cold: Seldom::default(),
            unread: Unread::default(),
            rehearsal,
        }));
        match &mut self.loaded {
            Loaded::Going(going) => Ok(going),
            _ => unreachable!("it has just been set"),
        }
    }

    pub(super) async fn resume(&mut self, cx: &mut Context) -> Result<Answer, TurnError> {
        match &self.loaded {
            Loaded::Absent => return Ok(Answer::NotFound),
            Loaded::Over(_) => return Ok(Answer::Gone),
            Loaded::Sealed(_) => {}
            Loaded::Going(going) if matches!(going.engine.phase(), Phase::Blocked(_)) => {}
            Loaded::Going(_) => return Ok(Answer::Already),
        }
        // Set anew, it has killed nothing.
        cx.cancel_alarm(RUNNING)?;
        self.runs = None;
        self.load(cx, true).await?;
        Ok(Answer::Done)
    }
}

impl Going {
    /// Replays the code to where it was when this status was stored.
    fn replay(&mut self, stored: &Status, resumes: bool) {
        (self.started_at, self.input) = (stored.started_at, stored.input);
        let said = Said::of(stored);
        if said.events > 0 {
            self.cold.made().said = said;
        }
        self.stored = Some(Stored::from(stored));
        if let State::Blocked { why } = &stored.state
            && matches!(why.kind(), BlockedKind::StepFailed | BlockedKind::StepKilled)
            && !resumes
        {
            // It is for somebody to say that the step may be tried again.
            self.engine.replay();
            self.engine.block(why.clone());
        }
        self.engine.settle(usize::MAX);
        if matches!(self.engine.phase(), Phase::Blocked(_)) {
            self.cold.made().waited = stored.waits.clone();
        }
    }
}

/// The number of processes that died while a flow's code ran, if they are so many that it is not to run by itself again.
fn killed_by(stored: &Status, crashes: u64) -> Option<u64> {
    match &stored.state {
        State::Blocked { why } if why.kind() == BlockedKind::CodeKilled => Some(stored.deaths),
        _ => (crashes >= MAX_CODE_DEATHS && crashes > stored.deaths).then_some(crashes),
    }
}

/// The messages and ends of children that a run has taken itself: the IDs of those that earlier runs have taken are in rows of their own.
fn seen_in(pages: &[Page], before: &Before) -> ByName<()> {
    let entries = pages.iter().flat_map(|page| &page.entries).filter(|entry| !before.is_older(entry.seq));
    let seen = entries.filter_map(|entry| match &entry.event {
        Event::Message { callback, message } => Some(seen_as(callback, &message.id)),
        Event::ChildEnded { child, .. } => Some(seen_as(child, "")),
        _ => None,
    });
    seen.collect()
}
