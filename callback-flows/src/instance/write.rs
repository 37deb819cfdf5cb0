//! The commit of a turn: the page of the journal, the status, the result, and the alarms that the flow needs from then on.
//!
//! All that was decided is one commit, or several if it is too much for one: then all but the last have parts of the page alone.

use std::sync::Arc;

use bytes::Bytes;
use stable_interfaces::{Context, ContextError, Timestamp};

use super::lives::{LEFT, Lives, RUNNING};
use super::telling::News;
use super::{FlowInstance, Going, Loaded, TurnError};
use crate::courier;
use crate::engine::Phase;
use crate::events::{self, FlowEvent};
use crate::flows::Kept;
use crate::flows::journals::{body_key, page_key};
use crate::hub::Hub;
use crate::journal::{ChildOutcome, Ended, Page, Written};
use crate::status::{RESULT_KEY, STATUS_KEY, ShortResult, State, Status, Waiting, fitting, short};

/// The most bytes of one row of the journal.
pub(super) const ROW_BYTES: usize = 250 * 1_024;

/// All of a stored status that is kept in memory: enough to tell whether there is news.
pub(super) struct Stored {
    pub(super) state: State,
    pub(super) changed_at: Timestamp,
    pub(super) revision: u64,
    pub(super) deaths: u64,
    pub(super) digest: u64,
}

impl From<&Status> for Stored {
    fn from(status: &Status) -> Stored {
        let Status { changed_at, revision, deaths, .. } = *status;
        Stored { state: status.state.clone(), changed_at, revision, deaths, digest: status.digest() }
    }
}

impl Stored {
    /// Tells whether another status says the same, whenever that was.
    fn is_same(&self, other: &Stored) -> bool {
        self.state == other.state && self.digest == other.digest
    }
}

impl FlowInstance {
    /// Records what is new.
    pub(super) fn write(&mut self, cx: &mut Context) -> Result<(), TurnError> {
        let Loaded::Going(going) = &mut self.loaded else { return Ok(()) };
        let (page, mark) = going.engine.take_page();
        if !page.is_empty() {
            put_page(cx, going.pages, &page)?;
            going.noted(|| page);
        }
        let Some(mark) = mark else { return self.write_a_part(cx) };
        courier::send(cx, std::mem::take(&mut self.letters))?;
        let events = going.store_events(&self.id, cx)?;
        let mark = if self.switch(cx)? { 0 } else { mark };
        let Loaded::Going(going) = &mut self.loaded else { return Ok(()) };
        let over = going.put_status(cx, &self.id, &self.registry.hub, events)?;
        self.set_alarms(cx)?;
        self.pump(cx, mark)?;
        self.end(cx, over)
    }

    /// Sets the alarms that the flow needs from here on: `next` for its next timer or the end of its time, and `run` while anything is to be found by
    /// the next process if this one dies.
    fn set_alarms(&mut self, cx: &mut Context) -> Result<(), TurnError> {
        let Loaded::Going(going) = &self.loaded else { return Ok(()) };
        let engine = &going.engine;
        let is_over = matches!(engine.phase(), Phase::Ended(_));
        let is_blocked = matches!(engine.phase(), Phase::Blocked(_));
        let has_posts = (!is_over && engine.has_posts()) || self.parents.has_refused();
        let is_told = !is_over || self.parents.is_empty();
        let must_run = engine.has_running_steps() || is_blocked || has_posts || !is_told || engine.has_unseen();
        let next = if is_over {
            cx.now() + self.registry.retention
        } else {
            engine.next_due().unwrap_or(going.started_at + self.registry.expiry)
        };
        let version = going.version;
        if !must_run && self.runs.take().is_some() {
            cx.cancel_alarm(RUNNING)?;
        }
        if self.next != Some(next) {
            self.set_next(cx, next, &Kept { version, is_over })?;
        }
        if must_run && (self.runs.is_none() || std::mem::take(&mut self.runs_for_rest)) {
            // A flow that is blocked or over runs no step that could end anything.
            let process = if is_blocked || is_over { LEFT } else { self.registry.process };
            self.set_running(cx, Lives::of(process))?;
        }
        Ok(())
    }

    /// Lets go of the code of a flow that has ended, with this status, and tells its parents.
    fn end(&mut self, cx: &mut Context, status: Option<Box<Status>>) -> Result<(), TurnError> {
        let Loaded::Going(going) = &self.loaded else { return Ok(()) };
        let Phase::Ended(ended) = going.engine.phase() else { return Ok(()) };
        let outcome = match ended {
            Ended::Done(value) => courier::as_told(ChildOutcome::Done(value.clone())),
            Ended::Failed(error) => ChildOutcome::Failed(short(error).into()),
            Ended::Cancelled => ChildOutcome::Cancelled,
        };
        going.bell.end();
        if let Some(status) = status {
            self.loaded = Loaded::Over(status);
        }
        self.tell_of(cx, Some(&outcome))
    }

    /// Leaves a flow of whose page a part was recorded to the turn, or the commit, that records the next: it is there from the first one on, and
    /// goes on also if this process dies.
    fn write_a_part(&mut self, cx: &mut Context) -> Result<(), TurnError> {
        let Loaded::Going(going) = &mut self.loaded else { return Ok(()) };
        if going.stored.is_none() {
            let status = Status { state: State::Going, ..going.status_at(cx.now()) };
            cx.put(STATUS_KEY, &status)?;
            going.stored = Some(Stored::from(&status));
            let (expires, version) = (going.started_at + self.registry.expiry, going.version);
            self.set_next(cx, expires, &Kept { version, is_over: false })?;
            News::new(&self.id, &self.registry.hub, None, status, Vec::new()).tell_after(cx);
        }
        if self.runs.is_none() {
            self.set_running(cx, Lives::of(LEFT))?;
            self.runs_for_rest = true;
        }
        self.pump(cx, 0)
    }

    /// Records the rest of what was decided, each part in a commit of its own.
    pub(super) async fn write_rest(&mut self, cx: &mut Context) -> Result<(), TurnError> {
        while let Loaded::Going(going) = &self.loaded
            && going.engine.has_rest()
        {
            cx.commit().await?;
            self.advance(cx)?;
        }
        Ok(())
    }
}

impl Going {
    /// Records the status, if it says anything new, with the result of a flow that has one, and has listeners told of that. Gives it back if the flow
    /// is over.
    fn put_status(
        &mut self,
        cx: &mut Context,
        flow: &Arc<str>,
        hub: &Arc<Hub>,
        events: Vec<FlowEvent>,
    ) -> Result<Option<Box<Status>>, TurnError> {
        let mut status = self.status_at(cx.now());
        if let Phase::Ended(Ended::Done(value)) = self.engine.phase() {
            status.result = ShortResult::of(value);
            if status.result.is_none() {
                put_rows(cx, format!("{RESULT_KEY}/"), value.clone(), ROW_BYTES)?;
            }
        }
        let stored = Stored::from(&status);
        // The time alone is no news.
        if self.stored.as_ref().is_some_and(|old| old.is_same(&stored)) {
            return Ok(None);
        }
        cx.put(STATUS_KEY, &status)?;
        let before = self.stored.replace(stored);
        let over = matches!(self.engine.phase(), Phase::Ended(_)).then(|| Box::new(status.clone()));
        let mut news = News::new(flow, hub, before.map(|before| before.state), status, events);
        if let Phase::Ended(ended) = self.engine.phase() {
            news.finished = Some((events::outcome(ended), self.engine.entries()));
        }
        if let Some(news) = self.pumping.leave(news) {
            news.tell_after(cx);
        }
        Ok(over)
    }

    /// Counts a page that was put, and keeps it for replays, if flows are replayed as they park.
    pub(super) fn noted(&mut self, page: impl FnOnce() -> Page) {
        self.pages += 1;
        if let Some(rehearsal) = &mut self.rehearsal {
            rehearsal.note(page());
        }
    }

    pub(super) fn status_at(&self, now: Timestamp) -> Status {
        let state = match self.engine.phase() {
            Phase::Going | Phase::Continued => State::Going,
            Phase::Blocked(why) => State::Blocked { why: why.clone() },
            Phase::Ended(Ended::Done(_)) => State::Done,
            Phase::Ended(Ended::Failed(error)) => State::Failed { error: short(error) },
            Phase::Ended(Ended::Cancelled) => State::Cancelled,
        };
        let waits = match self.engine.phase() {
            // Its code did not come so far again as to say.
            Phase::Blocked(_) if !self.cold.waited.is_empty() => self.cold.waited.clone(),
            _ => fitting(self.engine.waits().into_iter().map(|wait| Waiting {
                name: short(&wait.key),
                since: wait.since,
                until: wait.until,
                attempts: wait.attempts,
                last_error: wait.last_error.as_deref().map(short),
                at: wait.at.as_deref().map(short),
            })),
        };
        Status {
            state,
            version: self.version,
            run: self.before.run,
            started_at: self.started_at,
            changed_at: now,
            revision: self.stored.as_ref().map_or(1, |before| before.revision + 1),
            waits,
            unread: self.engine.unread() as u64,
            progress: self.cold.said.progress.clone(),
            resource: self.cold.said.resource.clone(),
            events: self.cold.said.events,
            entries: self.engine.entries(),
            bytes: self.engine.bytes() as u64,
            input: self.input,
            first_page: self.before.first_page,
            deaths: self.stored.as_ref().map_or(0, |before| before.deaths),
            result: None,
        }
    }
}

/// Records a page of a journal, in as many rows as it needs.
pub(super) fn put_page(cx: &mut Context, number: u64, page: &Page) -> Result<(), ContextError> {
    let Written { page, bodies, .. } = page.encode();
    put_rows(cx, page_key(number), page, ROW_BYTES)?;
    let mut bodies = bodies.into_iter().enumerate();
    bodies.try_for_each(|(n, body)| put_rows(cx, body_key(number, n), body, ROW_BYTES))
}

/// Records bytes in as many rows of this size as they need, under this prefix and their numbers.
pub(super) fn put_rows(cx: &mut Context, prefix: String, bytes: Bytes, size: usize) -> Result<(), ContextError> {
    if bytes.len() <= size {
        // Not a part of them, so that nothing is copied.
        return if bytes.is_empty() { Ok(()) } else { cx.put_bytes(&(prefix + "0000"), bytes) };
    }
    for (n, at) in (0..bytes.len()).step_by(size).enumerate() {
        cx.put_bytes(&format!("{prefix}{n:04}"), bytes.slice(at..bytes.len().min(at + size)))?;
    }
    Ok(())
}
