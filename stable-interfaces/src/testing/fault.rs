//! A store that fails on demand.
//!
//! Each call gets its number and its fault, if any, in one step when it is first polled, so that the same schedule with the
//! same seed meets the same faults. What the wrapped store then does is its own: nothing here changes an argument or an
//! answer, only whether and when they get through.

mod away;
mod method;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::mem::{Discriminant, discriminant};
use std::pin::{Pin, pin};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;

use self::away::Partly;
pub use self::method::Method;
use crate::clock::{Clock, SystemClock};
use crate::store::{
    BoxError, Claim, Claimed, Epoch, Found, Hints, Incarnation, Loaded, Members, NewMessage, Page, Posted, Read,
    Renewal, Renewed, ShardId, Store, StoreError, Write,
};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex, Notify};

/// The number of calls that the log remembers.
const LOG_LIMIT: usize = 100_000;

/// The fate of one call of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The store is not asked: [`StoreError::NotApplied`].
    FailBefore,
    /// The store does it, and the answer is lost: [`StoreError::Unavailable`].
    FailAfter,
    /// The call waits this long before it reaches the store.
    Delay(Duration),
    /// The call waits for a random part of this before it reaches the store.
    DelayUpTo(Duration),
    /// The call waits for [`FaultStore::release_hanging`], then reaches the store; if it is dropped before, it never does.
    Hang,
    /// The store does it at once, and the answer waits for [`FaultStore::release_hanging`].
    HangAfter,
    /// The store does it at once, and the answer takes a random part of this.
    SlowAnswer(Duration),
    /// Answered with [`StoreError::Unavailable`] at once; reaches the store this much later, whoever lives then.
    Late(Duration),
    /// Not answered until [`FaultStore::release_hanging`], then with [`StoreError::Unavailable`]; reaches the store this much
    /// later, even if the call was dropped: the ghost of a write that timed out.
    HangLate(Duration),
    /// Answered with [`StoreError::Unavailable`] at once; reaches the store at [`FaultStore::deliver_late`].
    LateUntilTold,
}

/// One call, as the log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The call's number among all calls, from zero.
    pub index: u64,
    /// The method that was called.
    pub method: Method,
    /// The number of things that the call was about: shards, batches, messages or pages; 1 for the others.
    pub size: usize,
    /// The fault that happened to the call.
    pub fault: Option<Fault>,
    /// Tells whether the store has done it, which may be after its end.
    pub is_done: bool,
    /// The answer that the call ended with.
    pub answer: Answer,
}

/// The end of a call for its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The call has not ended.
    Waiting,
    /// The call has ended with `Ok`.
    Done,
    /// The call has ended with `Err`.
    Failed,
    /// The caller dropped it.
    Dropped,
}

/// Wraps a store and makes its calls fail, wait, hang or arrive late. Clones are handles to the same one.
///
/// The fault that a call meets is decided in this order: the store is down, or hangs from that call on; a fault for the call's
/// number; the next fault set for its method; chance. Without any of these a call goes straight through.
///
/// ```
/// # use std::sync::Arc;
/// # use stable_interfaces::{MemoryStore, Store, testing::{Fault, FaultStore, Method}};
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let store = FaultStore::new(Arc::new(MemoryStore::new()));
/// store.fail_next(Method::Load, Fault::FailBefore);
/// assert!(store.load(&[]).await.is_err());
/// assert!(store.load(&[]).await.is_ok());
/// assert_eq!((store.calls(Method::Load), store.injected(Method::Load, Fault::FailBefore)), (2, 1));
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct FaultStore {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Arc<Partly>,
    /// Delays pass by it.
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Woken when hanging calls are released.
    released: Notify,
    /// Woken when a call begins.
    begun: Notify,
    /// The treatment of hints. Apart from `state`, because forwarders hold it and must not keep the whole alive.
    hints: Arc<HintFaults>,
}

#[derive(Default)]
struct HintFaults {
    /// Tells whether they are swallowed.
    are_lost: AtomicBool,
    /// Tells whether they wait.
    are_held: AtomicBool,
    /// Woken when they wait no longer.
    released: Notify,
}

struct State {
    random: fastrand::Rng,
    down: bool,
    /// Calls from this number on hang.
    hang_from: Option<u64>,
    at: BTreeMap<u64, Fault>,
    next: BTreeMap<Method, VecDeque<Fault>>,
    chances: BTreeMap<Method, Vec<(Fault, f64)>>,
    /// The number of times hanging calls were released: those of an earlier count are free.
    releases: u64,
    begun: u64,
    calls: HashMap<Method, u64>,
    injected: HashMap<(Method, Discriminant<Fault>), u64>,
    /// The last calls; the first has the number `begun - log.len()`.
    log: VecDeque<Call>,
    /// Calls that wait to be told to arrive, in order.
    untold: VecDeque<Ghost>,
    /// Calls on their way by themselves. Aborted when the last handle is dropped.
    ghosts: JoinSet<()>,
    /// Tasks that pass hints on.
    forwarders: JoinSet<()>,
}

/// A call whose caller has its answer already.
type Ghost = Pin<Box<dyn Future<Output = ()> + Send>>;
/// A call to the wrapped store that begins when it is first polled.
type Asked<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

/// A call that was given its number.
struct Begun {
    index: u64,
    fault: Option<Fault>,
    /// The wait that the fault asks for.
    wait: Duration,
    releases: u64,
}

impl FaultStore {
    /// A wrapper that does nothing yet, on the machine's clock.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>) -> FaultStore {
        FaultStore::seeded(inner, Arc::new(SystemClock::default()), 0)
    }

    /// A wrapper that does nothing yet; it sleeps by `clock`, and what it leaves to chance repeats with `seed`.
    #[must_use]
    pub fn seeded(inner: Arc<dyn Store>, clock: Arc<dyn Clock>, seed: u64) -> FaultStore {
        let state = State {
            random: fastrand::Rng::with_seed(seed),
            down: false,
            hang_from: None,
            at: BTreeMap::new(),
            next: BTreeMap::new(),
            chances: BTreeMap::new(),
            releases: 0,
            begun: 0,
            calls: HashMap::new(),
            injected: HashMap::new(),
            log: VecDeque::new(),
            untold: VecDeque::new(),
            ghosts: JoinSet::new(),
            forwarders: JoinSet::new(),
        };
        let shared = Shared {
            inner: Arc::new(Partly::new(inner, clock.clone(), seed)),
            clock,
            state: Mutex::new(state),
            released: Notify::new(),
            begun: Notify::new(),
            hints: Arc::default(),
        };
        FaultStore { shared: Arc::new(shared) }
    }

    /// The next call of `method` that meets no other fault meets this one. Several queue up.
    pub fn fail_next(&self, method: Method, fault: Fault) {
        self.shared.state.lock().next.entry(method).or_default().push_back(fault);
    }

    /// Call number `index` meets this fault. Calls of all methods are numbered together, from zero: see [`begun`](Self::begun).
    pub fn fail_at(&self, index: u64, fault: Fault) {
        self.shared.state.lock().at.insert(index, fault);
    }

    /// Calls of `method` meet `fault` with this probability, from 0 to 1; added to what was set before.
    pub fn set_chance(&self, method: Method, fault: Fault, probability: f64) {
        self.shared.state.lock().chances.entry(method).or_default().push((fault, probability));
    }

    /// Ends all faults that are still to come: scripted, by chance, down, hanging. Calls that hang or are late already stay so.
    pub fn heal(&self) {
        let mut state = self.shared.state.lock();
        state.down = false;
        state.hang_from = None;
        state.at.clear();
        state.next.clear();
        state.chances.clear();
        drop(state);
        self.lose_hints(false);
        self.hold_hints(false);
        self.set_away([]);
    }

    /// While down, every call ends with [`StoreError::NotApplied`]. Going down also ends all streams of hints.
    pub fn set_down(&self, down: bool) {
        self.shared.state.lock().down = down;
        if down {
            self.cut_watches();
        }
    }

    /// While shards are away, as those of one machine of a store that is spread over several: batches for them are not written, or
    /// their answers are lost, or they arrive late; their leases are [unknown](Renewed::unknown), claims of them held; pages, reads and
    /// posts that name one fail. What concerns the others alone goes through. Replaces what was away before.
    ///
    /// Only for a store with [`Sequence::OfShard`](crate::store::Sequence::OfShard).
    pub fn set_away(&self, shards: impl IntoIterator<Item = ShardId>) {
        self.shared.inner.set_away(shards.into_iter().collect());
    }

    /// Call number `index` and all after it hang: for their callers, the world ends before that call.
    pub fn hang_from(&self, index: u64) {
        self.shared.state.lock().hang_from = Some(index);
    }

    /// Lets go on whatever hangs now, and stops what [`hang_from`](Self::hang_from) began.
    pub fn release_hanging(&self) {
        let mut state = self.shared.state.lock();
        state.hang_from = None;
        state.releases += 1;
        drop(state);
        self.shared.released.notify_waiters();
    }

    /// Carries out what is [`LateUntilTold`](Fault::LateUntilTold), one after the other in the order of the calls; how many.
    pub async fn deliver_late(&self) -> usize {
        let untold = std::mem::take(&mut self.shared.state.lock().untold);
        let count = untold.len();
        for ghost in untold {
            ghost.await;
        }
        count
    }

    /// Ends all streams of hints that [`watch`](Store::watch) gave, as a lost connection does.
    pub fn cut_watches(&self) {
        // Dropping the tasks drops their senders.
        self.shared.state.lock().forwarders = JoinSet::new();
    }

    /// While `true`, no hint gets through.
    pub fn lose_hints(&self, lost: bool) {
        self.shared.hints.are_lost.store(lost, Ordering::SeqCst);
    }

    /// While `true`, hints wait, as they do before a listener that does not listen; then they come together.
    pub fn hold_hints(&self, held: bool) {
        self.shared.hints.are_held.store(held, Ordering::SeqCst);
        if !held {
            self.shared.hints.released.notify_waiters();
        }
    }

    /// Tells whether anything is set to go wrong for all calls, or for one to come.
    pub(crate) fn is_troubled(&self) -> bool {
        let state = self.shared.state.lock();
        let is_scripted = !state.at.is_empty() || state.next.values().any(|next| !next.is_empty());
        let is_shut = state.down || state.hang_from.is_some();
        drop(state);
        is_shut || is_scripted || self.shared.inner.is_any_away()
    }

    /// The number of calls of all methods that have begun; also the number of the next one.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.shared.state.lock().begun
    }

    /// Waits until call number `index` has begun.
    pub async fn until_begun(&self, index: u64) {
        let begun = || (self.begun() > index).then_some(());
        wait_until(&self.shared.begun, begun).await;
    }

    /// The number of calls of `method` that have begun.
    #[must_use]
    pub fn calls(&self, method: Method) -> u64 {
        self.shared.state.lock().calls.get(&method).copied().unwrap_or(0)
    }

    /// The number of calls of `method` that met a fault of this kind, whatever its duration.
    #[must_use]
    pub fn injected(&self, method: Method, like: Fault) -> u64 {
        self.shared.state.lock().injected.get(&(method, discriminant(&like))).copied().unwrap_or(0)
    }

    /// The last 100,000 calls, in the order in which they began.
    #[must_use]
    pub fn log(&self) -> Vec<Call> {
        self.shared.state.lock().log.iter().cloned().collect()
    }

    /// The calls that have not ended, as far as the log goes back.
    #[must_use]
    pub fn under_way(&self) -> Vec<Call> {
        let state = self.shared.state.lock();
        state.log.iter().filter(|call| call.answer == Answer::Waiting).cloned().collect()
    }

    /// Runs one call under whatever fault is its turn.
    async fn call<T, A>(&self, method: Method, size: usize, ask: A) -> Result<T, StoreError>
    where
        T: Send + 'static,
        A: FnOnce(Arc<dyn Store>) -> Asked<T> + Send,
    {
        let begun = self.shared.begin(method, size);
        let mut logged = Logged { shared: &self.shared, index: begun.index, answer: Answer::Dropped };
        let (asked, log, index) = (ask(self.shared.inner.clone()), Arc::downgrade(&self.shared), begun.index);
        let noted = async move {
            let answer = asked.await;
            // It may have come late, when nobody has the wrapper any more.
            if let Some(shared) = log.upgrade() {
                shared.state.lock().note(index, |call| call.is_done = true);
            }
            answer
        };
        let answer = self.shared.under_fault(&begun, Box::pin(noted)).await;
        logged.answer = if answer.is_ok() { Answer::Done } else { Answer::Failed };
        answer
    }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultStore").field("inner", &self.shared.inner).finish_non_exhaustive()
    }
}

/// Writes the end of a call into the log, also when the call is dropped.
struct Logged<'a> {
    shared: &'a Shared,
    index: u64,
    answer: Answer,
}

impl Drop for Logged<'_> {
    fn drop(&mut self) {
        let answer = self.answer;
        self.shared.state.lock().note(self.index, |call| call.answer = answer);
    }
}

impl Shared {
    fn begin(&self, method: Method, size: usize) -> Begun {
        let mut state = self.state.lock();
        let index = state.begun;
        state.begun += 1;
        *state.calls.entry(method).or_default() += 1;
        let fault = state.choose(method, index);
        let wait = match fault {
            Some(Fault::Delay(wait) | Fault::Late(wait) | Fault::HangLate(wait)) => wait,
            Some(Fault::DelayUpTo(most) | Fault::SlowAnswer(most)) => most.mul_f64(state.random.f64()),
            _ => Duration::ZERO,
        };
        if let Some(fault) = fault {
            *state.injected.entry((method, discriminant(&fault))).or_default() += 1;
        }
        if state.log.len() == LOG_LIMIT {
            state.log.pop_front();
        }
        state.log.push_back(Call { index, method, size, fault, is_done: false, answer: Answer::Waiting });
        let begun = Begun { index, fault, wait, releases: state.releases };
        drop(state);
        self.begun.notify_waiters();
        begun
    }

    async fn under_fault<T: Send + 'static>(&self, begun: &Begun, asked: Asked<T>) -> Result<T, StoreError> {
        match begun.fault {
            None => asked.await,
            Some(Fault::FailBefore) => Err(StoreError::NotApplied(injected("the store was not asked"))),
            Some(Fault::FailAfter) => {
                let _lost = asked.await;
                Err(lost())
            }
            Some(Fault::Delay(_) | Fault::DelayUpTo(_)) => {
                self.clock.sleep(begun.wait).await;
                asked.await
            }
            Some(Fault::Hang) => {
                self.until_released(begun).await;
                asked.await
            }
            Some(Fault::HangAfter) => {
                let answer = asked.await;
                self.until_released(begun).await;
                answer
            }
            Some(Fault::SlowAnswer(_)) => {
                let answer = asked.await;
                self.clock.sleep(begun.wait).await;
                answer
            }
            Some(Fault::Late(_)) => {
                self.send_late(begun.wait, asked);
                Err(lost())
            }
            Some(Fault::HangLate(_)) => {
                self.send_late(begun.wait, asked);
                self.until_released(begun).await;
                Err(lost())
            }
            Some(Fault::LateUntilTold) => {
                self.state.lock().untold.push_back(ghost(asked));
                Err(lost())
            }
        }
    }

    async fn until_released(&self, begun: &Begun) {
        wait_until(&self.released, || (self.state.lock().releases > begun.releases).then_some(())).await;
    }

    fn send_late<T: Send + 'static>(&self, wait: Duration, asked: Asked<T>) {
        let sleep = self.clock.sleep(wait);
        let ghost = ghost(asked);
        let ghosts = &mut self.state.lock().ghosts;
        while ghosts.try_join_next().is_some() {}
        ghosts.spawn(async move {
            sleep.await;
            ghost.await;
        });
    }

    /// The same hints, through a task that can be cut off.
    fn forward(&self, mut hints: Hints) -> Hints {
        let (sender, forwarded) = Hints::channel();
        let faults = self.hints.clone();
        let forwarders = &mut self.state.lock().forwarders;
        while forwarders.try_join_next().is_some() {}
        forwarders.spawn(async move {
            loop {
                let hint = tokio::select! { biased;
                    () = sender.closed() => return,
                    hint = hints.next() => hint,
                };
                let may_pass = || (!faults.are_held.load(Ordering::SeqCst)).then_some(());
                tokio::select! { biased;
                    () = sender.closed() => return,
                    () = wait_until(&faults.released, may_pass) => {}
                }
                match hint {
                    Some(hint) if !faults.are_lost.load(Ordering::SeqCst) => sender.send(hint),
                    Some(_) => {}
                    None => return,
                }
            }
        });
        forwarded
    }
}

impl State {
    /// Changes what the log has of a call, unless it is too old.
    fn note(&mut self, index: u64, change: impl FnOnce(&mut Call)) {
        // The last is number `begun - 1`.
        let from_end = usize::try_from(self.begun - index).unwrap_or(usize::MAX);
        let place = self.log.len().checked_sub(from_end);
        if let Some(call) = place.and_then(|place| self.log.get_mut(place)) {
            change(call);
        }
    }

    fn choose(&mut self, method: Method, index: u64) -> Option<Fault> {
        if self.down {
            return Some(Fault::FailBefore);
        }
        if self.hang_from.is_some_and(|first| index >= first) {
            return Some(Fault::Hang);
        }
        if let Some(fault) = self.at.remove(&index) {
            return Some(fault);
        }
        if let Some(fault) = self.next.get_mut(&method).and_then(VecDeque::pop_front) {
            return Some(fault);
        }
        let chances = self.chances.get(&method)?;
        let mut drawn = self.random.f64();
        for &(fault, probability) in chances {
            if drawn < probability {
                return Some(fault);
            }
            drawn -= probability;
        }
        None
    }
}

fn injected(what: &str) -> BoxError {
    format!("injected fault: {what}").into()
}

fn lost() -> StoreError {
    StoreError::Unavailable(injected("the answer was lost"))
}

fn ghost<T: Send + 'static>(asked: Asked<T>) -> Ghost {
    Box::pin(async move {
        let _unheard = asked.await;
    })
}

/// Waits until `ready` gives something; `notify` is woken whenever that may have changed.
async fn wait_until<T>(notify: &Notify, ready: impl Fn() -> Option<T>) -> T {
    loop {
        let mut woken = pin!(notify.notified());
        // Listen first, then look: a change in between is not missed.
        woken.as_mut().enable();
        if let Some(found) = ready() {
            return found;
        }
        woken.await;
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Store for FaultStore {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        let claim = claim.clone();
        self.call(Method::Claim, claim.shards.len(), |store| Box::pin(async move { store.claim(&claim).await })).await
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        let renewal = renewal.clone();
        self.call(Method::Renew, 1, |store| Box::pin(async move { store.renew(&renewal).await })).await
    }

    async fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        let given_up = given_up.to_vec();
        self.call(Method::Release, given_up.len(), |store| {
            Box::pin(async move { store.release(incarnation, &given_up).await })
        })
        .await
    }

    async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        self.call(Method::Cordon, 1, |store| Box::pin(async move { store.cordon(member, is_cordoned, seen).await }))
            .await
    }

    async fn members(&self) -> Result<Members, StoreError> {
        self.call(Method::Members, 1, |store| Box::pin(async move { store.members().await })).await
    }

    async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let write = write.clone();
        self.call(Method::Commit, write.batches.len(), |store| Box::pin(async move { store.commit(&write).await }))
            .await
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        let messages = messages.to_vec();
        self.call(Method::Post, messages.len(), |store| Box::pin(async move { store.post(&messages).await })).await
    }

    async fn watch(&self, incarnation: Incarnation) -> Result<Hints, StoreError> {
        let hints =
            self.call(Method::Watch, 1, |store| Box::pin(async move { store.watch(incarnation).await })).await?;
        Ok(self.shared.forward(hints))
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        let pages = pages.to_vec();
        self.call(Method::Load, pages.len(), |store| Box::pin(async move { store.load(&pages).await })).await
    }

    async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        let read = read.clone();
        self.call(Method::Read, 1, |store| Box::pin(async move { store.read(&read).await })).await
    }
}

#[cfg(test)]
mod tests;
