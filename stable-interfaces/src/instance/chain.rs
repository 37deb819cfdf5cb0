//! Call chains: the chain of instances whose handlers wait for the request being made.
//!
//! It rides in a thread-local that is set around each poll of a handler and at no other time, so it follows the handler
//! wherever it is polled and costs a request from outside one look. It names each link, so a request that would wait for
//! itself is answered with the whole cycle; and it says for how long each caller waits, so that the innermost request of a
//! chain gives up first and can say whom it waited for. A caller that gives up takes no time from a handler that has begun.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Weak;
use std::time::Duration;

use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, StaticMutex, thread_local};

/// An instance as the chain needs to know it.
pub(crate) trait ChainLink: Any + Debug + Send + Sync {
    /// Shows `interface/id`.
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;

    /// The time that a handler of this instance may take.
    fn handler_timeout(&self) -> Duration;

    /// The ID of the instance, if it is one.
    fn instance_id(&self) -> Option<&str> {
        None
    }

    /// Shown as what it is, if it is on another host: it is known there by its name alone.
    fn elsewhere(&self) -> Option<&str> {
        None
    }

    /// The callers of what has arrived from another host, if this stands for that: a request is theirs, and no handler of this host asks.
    fn arrived(&self) -> Option<&Arc<Chain>> {
        None
    }

    /// Tells whether it is a handler that asks, here or on another host.
    fn is_handler(&self) -> bool {
        true
    }
}

/// The callers of a message, innermost first.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    link: Arc<dyn ChainLink>,
    caller: Option<Arc<Chain>>,
    /// The moment until which the innermost caller waits for its answer, by the lease clock.
    waits_until: Duration,
    /// The moment at which that caller asked, by the lease clock.
    asked_at: Duration,
    /// The time for which what it asked waits for its turn.
    given: Duration,
}

impl Chain {
    /// A caller on another host, who asks now.
    pub(crate) fn elsewhere(
        link: Arc<dyn ChainLink>,
        caller: Option<Arc<Chain>>,
        now: Duration,
        given: Duration,
        waits: Duration,
    ) -> Arc<Chain> {
        Arc::new(Chain { link, caller, waits_until: now.saturating_add(waits), asked_at: now, given })
    }

    /// The callers, innermost first.
    fn links(&self) -> impl Iterator<Item = &Chain> {
        std::iter::successors(Some(self), |chain| chain.caller.as_deref())
    }

    /// Shows the callers that are handlers, innermost first.
    pub(crate) fn shown(&self) -> Vec<String> {
        self.links().filter(|chain| chain.link.is_handler()).map(|chain| Described(&*chain.link).to_string()).collect()
    }

    /// The time for which what the innermost caller asked waits for its turn.
    pub(crate) fn given(&self) -> Duration {
        self.given
    }

    /// The moment until which it waits for that, by the lease clock.
    pub(crate) fn turn_until(&self) -> Duration {
        self.asked_at.saturating_add(self.given)
    }

    /// The moment until which the innermost caller waits for its answer, by the lease clock.
    pub(crate) fn waits_until(&self) -> Duration {
        self.waits_until
    }
}

/// The handler that is being polled on this thread.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) instance: Arc<dyn ChainLink>,
    /// The caller, if a handler called it.
    pub(crate) callers: Option<Arc<Chain>>,
    /// The moment at which its time is over; none if nothing has needed to know yet.
    pub(crate) deadline: Deadline,
}

/// A moment of the lease clock, or none. Eight bytes, so that it is written and read in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline(u64);

const _: () = assert!(size_of::<Deadline>() == 8);

impl Deadline {
    pub(crate) const NONE: Deadline = Deadline(u64::MAX);

    /// `moment` as it is, or none if no clock will get there.
    pub(crate) fn at(moment: Duration) -> Deadline {
        Deadline(u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(crate) fn get(self) -> Option<Duration> {
        (self != Deadline::NONE).then(|| Duration::from_nanos(self.0))
    }

    pub(crate) fn get_or_insert_with(&mut self, moment: impl FnOnce() -> Duration) -> Duration {
        self.get().unwrap_or_else(|| {
            let moment = moment();
            *self = Deadline::at(moment);
            moment
        })
    }
}

/// The handler that one thread polls, as others may see it. Only that thread writes, so no write of it is a locked one.
#[derive(Debug, Default)]
struct Shown {
    /// The address of the instance, zero if none.
    instance: AtomicUsize,
    /// Rises with each poll that begins or ends.
    changes: AtomicU64,
}

impl Shown {
    #[inline]
    fn show(&self, instance: usize) {
        self.instance.store(instance, Ordering::Relaxed);
        self.changes.store(self.changes.load(Ordering::Relaxed) + 1, Ordering::Release);
    }
}

/// The cells of all threads that have polled a handler.
static THREADS: StaticMutex<Vec<Weak<Shown>>> = StaticMutex::new(Vec::new());

/// The handler that one thread polls.
#[derive(Debug)]
struct Thread {
    /// The innermost of the polls that are nested in each other; the others are kept on the stack, by [`enter`].
    frame: RefCell<Option<Frame>>,
    /// The number of those polls, with the ones that are out of sight of what is polled [outside of handlers](outside_of_handlers).
    depth: Cell<usize>,
    shown: Arc<Shown>,
}

thread_local! {
    static CURRENT: Rc<Thread> = {
        let shown = Arc::<Shown>::default();
        let mut threads = THREADS.lock();
        threads.retain(|thread| thread.strong_count() > 0);
        threads.push(Arc::downgrade(&shown));
        Rc::new(Thread { frame: RefCell::default(), depth: Cell::new(0), shown })
    };
}

/// Nested first polls past this depth run on a task of their own: a chain of calls must not use up the stack.
const MAX_DEPTH: usize = 16;

/// Runs one poll of a handler as the current one, and gives back its instance.
///
/// Frames are put together in place and taken apart field by field: moving one that has just been written costs more than all
/// else here. `poll` does not panic.
#[inline(always)]
pub(crate) fn enter(
    instance: Arc<dyn ChainLink>,
    callers: &mut Option<Arc<Chain>>,
    deadline: &mut Deadline,
    poll: impl FnOnce(),
) -> Arc<dyn ChainLink> {
    let shown_as = address(&*instance);
    let thread = CURRENT.with(Rc::clone);
    let frame = Frame { instance, callers: callers.take(), deadline: *deadline };
    let outer = thread.frame.replace(Some(frame));
    let outer_shown_as = outer.as_ref().map_or(0, |outer| address(&*outer.instance));
    let depth = thread.depth.get();
    thread.depth.set(depth + 1);
    thread.shown.show(shown_as);
    poll();
    thread.shown.show(outer_shown_as);
    thread.depth.set(depth);
    let frame = thread.frame.replace(outer);
    let Frame { instance, callers: left, deadline: set } =
        frame.expect("the frame stays in place while its handler is polled");
    *callers = left;
    *deadline = set;
    instance
}

fn address(instance: &dyn ChainLink) -> usize {
    std::ptr::from_ref(instance).addr()
}

/// Finds handlers that have not returned from one poll between two looks.
#[derive(Debug, Default)]
pub(crate) struct Blocked {
    /// Each thread that was polling, by address, with its count of changes and whether that was reported.
    seen: HashMap<usize, (u64, bool)>,
}

impl Blocked {
    /// The names of the instances whose handlers have been in the same poll since the last look, each once. `name_of` names the
    /// instance at an address, if it is one to look for.
    pub(crate) fn look(&mut self, name_of: impl Fn(usize) -> Option<String>) -> Vec<String> {
        let threads: Vec<_> = THREADS.lock().iter().filter_map(Weak::upgrade).collect();
        let before = std::mem::take(&mut self.seen);
        let mut blocked = Vec::new();
        for thread in threads {
            let key = Arc::as_ptr(&thread).addr();
            let changes = thread.changes.load(Ordering::Acquire);
            let instance = thread.instance.load(Ordering::Relaxed);
            if instance == 0 {
                continue;
            }
            let was_reported = match before.get(&key) {
                Some((then, was_reported)) if *then == changes => {
                    let found = if *was_reported { None } else { name_of(instance) };
                    // Still in that poll, it holds its instance, so nothing else has come to be at that address.
                    blocked.extend(found.filter(|_| thread.changes.load(Ordering::Acquire) == changes));
                    true
                }
                _ => false,
            };
            self.seen.insert(key, (changes, was_reported));
        }
        blocked
    }
}

/// The inheritance of a new request from the handler that makes it. Two words, so that it is never put together in memory.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) callers: Option<Arc<Chain>>,
    /// Tells whether the first poll of the new request's handler may happen on this stack.
    pub(crate) may_nest: bool,
}

/// The frame that was hidden, put back when this is dropped.
struct Hidden(Rc<Thread>, Option<Frame>);

impl Hidden {
    fn hide() -> Hidden {
        let thread = CURRENT.with(Rc::clone);
        let frame = thread.frame.take();
        Hidden(thread, frame)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let Hidden(thread, frame) = self;
        drop(thread.frame.replace(frame.take()));
    }
}

/// Polls a future as if no handler were polling it: what it asks of other instances is no part of the handler around it.
///
/// For work that an instance polls in its turns and that belongs to none of them. Without this, a request in it that comes back to
/// the instance is refused as a [`Cycle`](crate::RequestError::Cycle), although no handler waits for it, and each is bounded by the
/// time of the handler that polls it. A handler must not await it: a cycle would then be a deadlock until it times out.
///
/// ```
/// # use std::pin::Pin;
/// # use std::task::{Context, Poll, Waker};
/// use stable_interfaces::outside_of_handlers;
///
/// let mut work = Box::pin(outside_of_handlers(async { 1 + 1 }));
/// assert_eq!(work.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(2));
/// ```
pub async fn outside_of_handlers<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|task| {
        let _hidden = Hidden::hide();
        future.as_mut().poll(task)
    })
    .await
}

/// Tells whether this holds for the ID of an instance whose handler is being polled on this thread, or waits for what that one asks, here or
/// on another host.
pub(crate) fn any_in_chain(is_so: impl Fn(&str) -> bool) -> bool {
    let holds = |link: &Arc<dyn ChainLink>| link.instance_id().is_some_and(&is_so);
    let any_of = |chain: Option<&Arc<Chain>>| chain.is_some_and(|chain| chain.links().any(|link| holds(&link.link)));
    CURRENT.with(|thread| {
        thread.frame.borrow().as_ref().is_some_and(|frame| {
            holds(&frame.instance) || any_of(frame.callers.as_ref()) || any_of(frame.instance.arrived())
        })
    })
}

/// Tells whether a handler is being polled on this thread.
pub(crate) fn in_handler() -> bool {
    CURRENT.with(|thread| thread.frame.borrow().as_ref().is_some_and(|frame| frame.instance.is_handler()))
}

/// Looks at the current handler, if there is one. If it has no deadline yet, its own interface's limit from `now` on becomes it;
/// `timeout` is the limit of the interface that it asks.
#[inline(always)]
pub(crate) fn origin(now: impl FnOnce() -> Duration, timeout: Duration) -> Origin {
    let (depth, in_handler) = CURRENT.with(|thread| (thread.depth.get(), thread.frame.borrow().is_some()));
    Origin { callers: if in_handler { chain_of_current(now(), timeout) } else { None }, may_nest: depth < MAX_DEPTH }
}

#[inline(never)]
fn chain_of_current(now: Duration, timeout: Duration) -> Option<Arc<Chain>> {
    CURRENT.with(|thread| thread.frame.borrow_mut().as_mut().map(|frame| frame.chain(now, timeout)))
}

impl Frame {
    fn chain(&mut self, now: Duration, timeout: Duration) -> Arc<Chain> {
        if let Some(callers) = self.instance.arrived() {
            return callers.clone();
        }
        let limit = || now.saturating_add(self.instance.handler_timeout());
        let deadline = self.deadline.get_or_insert_with(limit);
        // A handler outlasts a caller that has given up. Until then it asks for no longer than that caller waits.
        let patience = self.callers.as_ref().map(|caller| caller.waits_until).filter(|until| *until > now);
        let left = patience.map_or(deadline, |until| until.min(deadline)).saturating_sub(now);
        // A tenth less than what is left, so that the inner request fails first and its caller can still answer.
        let left = left - left / 10;
        Arc::new(Chain {
            link: self.instance.clone(),
            caller: self.callers.clone(),
            waits_until: now.saturating_add(left),
            asked_at: now,
            given: left.min(timeout),
        })
    }
}

/// The cycle that a request to `target` would close, as text: each instance from `target` back to itself.
pub(crate) fn find_cycle(callers: Option<&Arc<Chain>>, target: &dyn ChainLink) -> Option<String> {
    let same = |link: &Arc<dyn ChainLink>| match link.elsewhere() {
        Some(name) => *name == Described(target).to_string(),
        None => std::ptr::addr_eq(Arc::as_ptr(link), std::ptr::from_ref(target)),
    };
    let mut links = Vec::new();
    let mut next = callers;
    while let Some(chain) = next {
        links.push(&*chain.link);
        if same(&chain.link) {
            links.reverse();
            links.push(target);
            return Some(links.iter().map(|link| Described(*link).to_string()).collect::<Vec<_>>().join(" -> "));
        }
        next = chain.caller.as_ref();
    }
    None
}

/// Shows a link as `interface/id`.
pub(crate) struct Described<'a>(pub(crate) &'a dyn ChainLink);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe(f)
    }
}
