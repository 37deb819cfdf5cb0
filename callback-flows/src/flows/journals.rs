//! Journals that are taken out of a store, and held against today's code.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::Error as _;
use stable_interfaces::KeyRange;
use stable_interfaces::clock::{SystemClock, SystemRandom};

use super::{Flows, FlowsError, identity, joined};
use crate::blocked::Blocked;
use crate::engine::{Engine, Shared};
use crate::journal::{Carried, Event, Journal, Page, Unreadable, Written};
use crate::status::{RESULT_KEY, State, Status};

/// The prefix of the rows of a flow's journal: `page/<number>/<chunk>`, and those of the bodies that are kept apart from their page:
/// `page/<number>/b<body>-<chunk>`.
pub(crate) const PAGES: &str = "page/";

/// The rows of one page.
#[derive(Default)]
struct Chunks {
    number: u64,
    page: Vec<Bytes>,
    bodies: Vec<Vec<Bytes>>,
}

impl Chunks {
    /// Adds the next row: the bodies come after the page, and each in the order of its chunks.
    fn add(&mut self, name: &str, chunk: Bytes) {
        let Some((body, of)) = name.strip_prefix('b').and_then(|name| name.split_once('-')) else {
            return self.page.push(chunk);
        };
        match self.bodies.last_mut() {
            Some(last) if of.bytes().any(|digit| digit != b'0') => last.push(chunk),
            // One that is missing is none, whatever comes after it.
            _ => {
                self.bodies.resize_with(body.parse().unwrap_or_default(), Vec::new);
                self.bodies.push(vec![chunk]);
            }
        }
    }

    fn decode(self, result: Option<&Bytes>) -> Result<Page, Unreadable> {
        let bodies = self.bodies.into_iter().map(whole).collect();
        Page::decode(&Written { page: whole(self.page), bodies, result: result.cloned() })
    }
}

/// Joins the chunks of a row. Most are the only one.
fn whole(mut chunks: Vec<Bytes>) -> Bytes {
    if chunks.len() == 1 { chunks.pop().unwrap_or_default() } else { chunks.concat().into() }
}

/// The pages that these rows make, in the order of their keys, and the number of the next one. `result` is that of the flow: one that is
/// large is not in the journal.
pub(crate) fn pages_of(rows: Vec<(Arc<str>, Bytes)>, result: Option<&Bytes>) -> Result<(Vec<Page>, u64), Unreadable> {
    let mut pages: Vec<Chunks> = Vec::new();
    for (key, chunk) in rows {
        let mut parts = key.split('/').skip(1);
        let number = parts.next().and_then(|number| number.parse().ok()).unwrap_or_default();
        if pages.last().is_none_or(|last| last.number != number) {
            pages.push(Chunks { number, ..Chunks::default() });
        }
        let last = pages.last_mut().expect("one has just been pushed");
        last.add(parts.next().unwrap_or_default(), chunk);
    }
    let next = pages.last().map_or(0, |page| page.number + 1);
    Ok((pages.into_iter().map(|page| page.decode(result)).collect::<Result<_, _>>()?, next))
}

/// The journal of a run that begins with this page, out of all pages that there are: before it, the messages that it has taken over.
/// And the number of the next page.
pub(crate) fn run_of(
    mut rows: Vec<(Arc<str>, Bytes)>,
    first: u64,
    result: Option<&Bytes>,
) -> Result<(Vec<Page>, u64), Unreadable> {
    let begin = page_key(first);
    let run = rows.split_off(rows.partition_point(|(key, _)| **key < *begin));
    let (mut pages, next) = pages_of(run, result)?;
    let wanted = taken_over(&pages);
    if !wanted.is_empty() {
        let earlier = pages_of(rows, None)?.0.into_iter().flat_map(|page| page.entries);
        let entries = earlier.filter(|entry| wanted.contains(&entry.seq)).collect();
        pages.insert(0, Page { entries, ..Page::default() });
    }
    Ok((pages, next))
}

/// The key that the rows of a page begin with.
pub(crate) fn page_key(number: u64) -> String {
    // With room for the number of a row.
    let mut key = String::with_capacity(PAGES.len() + 16);
    let _ = write!(key, "{PAGES}{number:010}/");
    key
}

/// The key that the rows of a body begin with which is kept apart from its page, where it is body `n`.
pub(crate) fn body_key(page: u64, n: usize) -> String {
    format!("{}b{n:04}-", page_key(page))
}

/// The callbacks and signals that went along into the run with these pages.
pub(crate) fn carried(pages: &[Page]) -> impl Iterator<Item = &Carried> {
    let entries = pages.iter().flat_map(|page| &page.entries);
    let carried = entries.filter_map(|entry| match &entry.event {
        Event::Continued { carried, .. } => Some(carried),
        _ => None,
    });
    carried.flatten()
}

/// The entries of earlier runs that the run with these pages has taken over.
pub(crate) fn taken_over(pages: &[Page]) -> BTreeSet<u64> {
    carried(pages).flat_map(|one| &one.unread).copied().collect()
}

impl Flows {
    /// The journal of a flow's present run, as far as it is durable, from any host: to look at, or to keep as a text beside the tests and
    /// [`check`](Self::check) the code against.
    ///
    /// # Errors
    /// [`FlowsError::NotFound`], [`FlowsError::Gone`] if the journal has been purged, [`FlowsError::Unavailable`],
    /// [`FlowsError::Unreadable`].
    pub async fn journal(&self, name: &str, id: &str) -> Result<Journal, FlowsError> {
        let flow = identity(name, id)?;
        let status = self.status(&flow).await?.ok_or(FlowsError::NotFound)?;
        let rows = self.stored(&flow, KeyRange::prefix(PAGES)).await?;
        let result = self.result_of(&flow, &status).await?;
        let as_unreadable = |error: Unreadable| FlowsError::Unreadable(serde_json::Error::custom(error));
        let (pages, _) = run_of(rows, status.first_page, result.as_ref()).map_err(as_unreadable)?;
        if pages.is_empty() { Err(FlowsError::Gone) } else { Ok(Journal::new(name, id, pages)) }
    }

    /// The result of a flow with this status, as JSON, if it has one that is still there.
    pub(super) async fn result_of(&self, flow: &str, status: &Status) -> Result<Option<Bytes>, FlowsError> {
        if status.state != State::Done {
            return Ok(None);
        }
        if let Some(result) = &status.result {
            return Ok(Some(result.bytes()));
        }
        let rows = self.stored(flow, KeyRange::prefix(RESULT_KEY)).await?;
        Ok((!rows.is_empty()).then(|| joined(&rows).into()))
    }

    /// Replays a journal against the code that is registered, and says where that does something else than the code which wrote it
    /// did. For tests: it needs neither a started host nor a store, and runs no step.
    ///
    /// A journal that has ended is replayed too, and its result compared.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use callback_flows::{BlockedKind, Flow, Flows, Journal};
    /// # use stable_interfaces::{Host, MemoryStore};
    /// # let text = r#"{"format": 1, "flow": "nap", "id": "1", "settled": 1, "entries": [{"at": 1700000000000,
    /// #     "event": {"start": {"version": 1, "run": 1, "seed": "00", "input": 5}},
    /// #     "begun": [{"name": "timer:5s#0", "due": 1700000005000}]}]}"#;
    /// let mut host = Host::local(MemoryStore::new());
    /// let flows = Flows::builder()
    ///     .flow("nap", 1, async |flow: Flow, seconds: u64| Ok(flow.sleep(Duration::from_secs(seconds)).await))
    ///     .register(&mut host)?;
    /// // include_str!("journals/nap.json"), as `flows.journal("nap", "1").await?.to_json()?` has written it
    /// let journal = Journal::from_json(text)?;
    /// flows.check(&journal)?;
    /// # let mut host = Host::local(MemoryStore::new());
    /// # let changed = Flows::builder().flow("nap", 1, async |flow: Flow, n: u64| Ok(flow.sleep(Duration::from_secs(n + 1)).await));
    /// # assert_eq!(changed.register(&mut host)?.check(&journal).unwrap_err().kind(), BlockedKind::Differs);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The reason for which the flow of this journal would be [`Blocked`] by this code.
    pub fn check(&self, journal: &Journal) -> Result<(), Blocked> {
        let (name, version) = (journal.name(), journal.version());
        let code = self.registry.code(name, version).ok_or_else(|| Blocked::unknown_version(name, version))?;
        let shared = Shared::new(
            format!("{name}/{}", journal.id()).into(),
            Arc::new(SystemClock::default()),
            Arc::new(SystemRandom::default()),
            self.registry.limits,
            self.registry.urls.clone(),
            Arc::new(()),
        );
        Engine::check(shared, code, journal.pages().to_vec())
    }
}
