//! The state that a flow's code and its engine share: the operations that the code has begun, and who waits for them.
//!
//! No waker is woken or dropped, and nothing of the application called, while the lock is held.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use stable_interfaces::Timestamp;
use stable_interfaces::clock::{Clock, Random};

use super::due::Due;
use super::names::{Kind, base_of};
use super::run::Undo;
use super::state::{Mode, State};
use super::wakers::Nudge;
use crate::blocked::{Blocked, BlockedKind};
use crate::by_name::ByName;
use crate::hash::hex;
use crate::journal::{Begun, Detail, Key};
use crate::seldom::Seldom;
use crate::token::Urls;

/// The most bytes of a page by default: two of them, a result and the events of a turn are less than a commit may have.
const MAX_PAGE_BYTES: usize = 1_280 * 1_024;

/// The most that may be in a flow's journal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) entries: u64,
    pub(crate) bytes: usize,
    /// The largest value of a step, and the largest result.
    pub(crate) value_bytes: usize,
    /// About how many bytes are written in one commit, beside events and a result: one entry at least.
    pub(crate) page_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { entries: 10_000, bytes: 16 * 1024 * 1024, value_bytes: 256 * 1024, page_bytes: MAX_PAGE_BYTES }
    }
}

/// The state that a flow's code and its engine share.
pub(crate) struct Shared {
    /// `name/id`.
    pub(crate) identity: Arc<str>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) limits: Limits,
    /// The keys that callback URLs are made with.
    pub(crate) urls: Option<Arc<Urls>>,
    /// The host is about to leave.
    pub(crate) is_draining: AtomicBool,
    /// The attempts of steps that a test counts or makes up.
    #[cfg(feature = "testing")]
    pub(crate) fakes: std::sync::OnceLock<Arc<crate::testing::fakes::Fakes>>,
    /// The flow's waker was woken by the engine, an operation, or the code itself.
    pub(super) self_woken: AtomicBool,
    /// The flow's waker was woken by something that is not in the journal.
    pub(super) foreign_woken: AtomicBool,
    /// Steps that asked to be polled.
    pub(super) woken: Mutex<Vec<(usize, u64)>>,
    /// Attempts of steps that wait for a transaction.
    #[cfg(feature = "postgres")]
    pub(super) transactions: Mutex<VecDeque<crate::transaction::Asked>>,
    pub(super) nudge: Arc<dyn Nudge>,
    pub(super) state: Mutex<State>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("flow", &self.identity).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(
        identity: Arc<str>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        limits: Limits,
        urls: Option<Arc<Urls>>,
        nudge: Arc<dyn Nudge>,
    ) -> Arc<Shared> {
        let state = State {
            mode: Mode::Idle,
            ops: Vec::new(),
            free: Vec::new(),
            by_key: ByName::default(),
            named: ByName::default(),
            ready: BTreeSet::new(),
            due: Due::default(),
            waiting: 0,
            numbers: 0,
            open_to: 0,
            run: 0,
            seed: 0,
            now: Timestamp::MIN,
            begun: Vec::new(),
            expected: None,
            open: 0,
            handed_in: VecDeque::new(),
            told_entries: 0,
            told_bytes: 0,
            cold: Seldom::default(),
        };
        Arc::new(Shared {
            identity,
            clock,
            random,
            limits,
            urls,
            is_draining: AtomicBool::new(false),
            #[cfg(feature = "testing")]
            fakes: std::sync::OnceLock::new(),
            self_woken: AtomicBool::new(false),
            foreign_woken: AtomicBool::new(false),
            woken: Mutex::default(),
            #[cfg(feature = "postgres")]
            transactions: Mutex::default(),
            nudge,
            state: Mutex::new(state),
        })
    }

    /// Has an attempt carried out in a turn of its own.
    #[cfg(feature = "postgres")]
    pub(crate) fn ask_for_transaction(&self, asked: crate::transaction::Asked) {
        self.transactions.lock().push_back(asked);
    }

    pub(super) fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Has a step polled in the next turn. Says whether it is the first one that asks for that turn.
    pub(super) fn wants_polled(&self, step: (usize, u64)) -> bool {
        let mut woken = self.woken.lock();
        let is_new = !woken.contains(&step);
        if is_new {
            woken.push(step);
        }
        is_new && woken.len() == 1
    }

    /// The time of the newest entry that the code has seen.
    pub(crate) fn now(&self) -> Timestamp {
        self.state.lock().now
    }

    /// Tells whether the code sees again what it has seen in an earlier life.
    pub(crate) fn is_replaying(&self) -> bool {
        self.state.lock().expected.is_some()
    }

    /// Registers something to run, last first, if the flow fails or is cancelled.
    pub(crate) fn push_undo(&self, undo: Undo) {
        self.state.lock().cold.made().undo.push(undo);
    }

    pub(crate) fn pop_undo(&self) -> Option<Undo> {
        self.state.lock().cold.there()?.undo.pop()
    }

    /// 256 bits that are the same in every replay, and different for each `kind` in each scope at each call.
    pub(crate) fn draw(&self, scope: &str, kind: &str) -> [u8; 32] {
        let mut state = self.state.lock();
        let (seed, base) = (state.seed, format!("{scope}/{kind}:"));
        let named = state.named(&base);
        let ordinal = named.next;
        named.next += 1;
        drop(state);
        Sha256::new()
            .chain_update(seed.to_le_bytes())
            .chain_update(base)
            .chain_update(ordinal.to_le_bytes())
            .finalize()
            .into()
    }

    /// A text that is the same in every attempt of a step, and of no other.
    pub(crate) fn idempotency_key(&self, step: &str) -> String {
        let run = self.state.lock().run;
        let hash = Sha256::new()
            .chain_update(self.identity.as_bytes())
            .chain_update([0])
            .chain_update(run.to_le_bytes())
            .chain_update(step.as_bytes())
            .finalize();
        hex(&hash[..16])
    }

    /// The URL of a callback.
    pub(crate) fn url(&self, callback: &str) -> String {
        let Some(urls) = &self.urls else {
            let message = "it asks for the URL of a callback, and there is none: set `Flows::builder().callbacks(..)`";
            self.fail(Blocked::new(BlockedKind::NotConfigured, message.into()));
            return String::new();
        };
        let state = self.state.lock();
        let (run, callback) = match state.cold.carried.get(callback) {
            Some((run, callback)) => (*run, callback.clone()),
            None => (state.run, callback.into()),
        };
        drop(state);
        urls.of(&self.identity, run, &callback)
    }

    /// Tells whether code of a version before or after a change runs.
    pub(crate) fn is_patched(self: &Arc<Self>, scope: &str, name: &str) -> bool {
        let key: Key = format!("{}#0", base_of(scope, Kind::Patch, name, None)).into();
        let mut state = self.state.lock();
        if let Some(known) = state.cold.patches.get(&key) {
            return *known;
        }
        let is_replay = state.expected.is_some();
        let is_patched = !is_replay || state.cold.patched.contains(&key);
        state.cold.made().patches.insert(key.clone(), is_patched);
        if is_patched {
            state.begun.push(Begun { key, detail: Detail::None });
        }
        is_patched
    }

    /// Blocks the flow, as soon as its code has been polled.
    pub(crate) fn fail(&self, why: Blocked) {
        self.state.lock().blame(|| why);
    }
}
