//! The task that brings the turns of a flow whose steps run.
//!
//! The task is there while a step runs, or is about to, and while there is more to take in than one turn takes: [`FlowInstance::pump`] starts it at the
//! end of the turn from which on that is so, and it ends with the turn after which it is not. A flow that only waits has none. What is
//! not in its journal and wakes its code all the same has the host bring a turn, which blocks it: [`watch_strays`].

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use stable_interfaces::clock::Clock;
use stable_interfaces::{Context, Handle, InstanceRef, Interface, RequestError};
use tokio::sync::{Notify, mpsc};

use super::lives::{LEFT, Lives};
use super::telling::News;
use super::{FlowInstance, Loaded, TurnError};
use crate::engine::Nudge;

/// The time after which a turn that the host refused is asked for again.
pub(super) const AGAIN: Duration = Duration::from_millis(50);

/// Wakes the pump of a flow, from any thread.
pub(super) struct Bell {
    flow: Arc<str>,
    pub(super) notify: Notify,
    /// Steps that began before this mark may start.
    pub(super) open_to: AtomicU64,
    /// Steps run: the flow is to stay in memory.
    pub(super) is_busy: AtomicBool,
    /// The host is about to leave: steps end, and none begins.
    is_leaving: AtomicBool,
    /// The run is over, or another one has begun: there is nothing left to pump for.
    is_over: AtomicBool,
    /// Steps wait for a transaction.
    #[cfg(feature = "postgres")]
    pub(super) has_transactions: AtomicBool,
    strays: Strays,
}

/// Flows whose code was woken by something that is not in their journals. Each tells it once in a life, so there are no more of them than there
/// are flows in memory.
pub(crate) type Strays = mpsc::UnboundedSender<Arc<str>>;

impl Bell {
    pub(super) fn new(flow: Arc<str>, strays: Strays) -> Bell {
        Bell {
            flow,
            notify: Notify::new(),
            open_to: AtomicU64::new(0),
            is_busy: AtomicBool::new(false),
            is_leaving: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            #[cfg(feature = "postgres")]
            has_transactions: AtomicBool::new(false),
            strays,
        }
    }

    /// Lets steps start that began before a mark was taken.
    pub(super) fn open(&self, mark: u64) {
        self.open_to.fetch_max(mark, Ordering::AcqRel);
        self.notify.notify_one();
    }

    /// Lets the pump end.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.notify.notify_one();
    }
}

impl Nudge for Bell {
    fn step(&self) {
        self.notify.notify_one();
    }

    fn stray(&self) {
        // Nobody listens any more where the host has ended.
        let _ = self.strays.send(self.flow.clone());
    }
}

/// All that a turn leaves its pump to do when it is durable.
#[derive(Default)]
pub(super) struct Pumped {
    /// There is nothing left to pump for.
    is_over: bool,
    /// Steps may start that began before this mark.
    opens_to: u64,
    news: Option<Box<News>>,
}

/// The pump's part of a flow in memory.
#[derive(Default)]
pub(super) struct Pumping {
    /// There is a pump, which has not been told that there is nothing left to do.
    is_there: bool,
    /// The turn under way is its own: what that leaves to be done.
    own: Option<Pumped>,
    /// The mark up to which steps were let start.
    opened: u64,
}

impl Pumping {
    /// Leaves news to the pump, if the turn under way is its own.
    pub(super) fn leave(&mut self, news: News) -> Option<News> {
        match &mut self.own {
            Some(own) if own.news.is_none() && news.may_be_repeated() => {
                own.news = Some(Box::new(news));
                None
            }
            _ => Some(news),
        }
    }
}

impl FlowInstance {
    /// Sees at the end of a turn that there is a pump if there has to be one, and that steps which began before `mark` start when the turn is
    /// durable.
    pub(super) fn pump(&mut self, cx: &mut Context, mark: u64) -> Result<(), TurnError> {
        let Loaded::Going(going) = &mut self.loaded else { return Ok(()) };
        let engine = &going.engine;
        let must_turn = engine.has_unseen() || engine.wants_steps_polled() || engine.has_rest();
        #[cfg(feature = "postgres")]
        let must_turn = if engine.wants_transactions() {
            going.bell.has_transactions.store(true, Ordering::Release);
            true
        } else {
            must_turn
        };
        let opens = mark > going.pumping.opened && engine.has_steps_from(going.pumping.opened);
        let is_needed = must_turn || opens || engine.has_running_steps();
        let is_busy = engine.has_rest() || (is_needed && engine.has_steps_to_end());
        going.bell.is_busy.store(is_busy, Ordering::Release);
        let opens_to = if opens { mark } else { 0 };
        if opens {
            going.pumping.opened = mark;
        }
        if must_turn {
            going.bell.notify.notify_one();
        }
        if let Some(own) = &mut going.pumping.own {
            own.is_over = !is_needed;
            own.opens_to = opens_to;
            going.pumping.is_there = is_needed;
            return Ok(());
        }
        if !going.pumping.is_there {
            if is_needed {
                going.pumping.is_there = true;
                let (bell, clock) = (going.bell.clone(), cx.clock());
                cx.spawn(move |me: InstanceRef<FlowInstance>| {
                    // It starts when the turn is durable.
                    if opens_to > 0 {
                        bell.open(opens_to);
                    }
                    pump(me, bell, clock)
                })?;
            }
        } else if opens {
            let bell = going.bell.clone();
            cx.after_commit(move || bell.open(mark));
        } else if !is_needed {
            // It finds out in a turn of its own.
            going.bell.notify.notify_one();
        }
        Ok(())
    }

    /// The turn that the pump asks for.
    fn pumped(&mut self, cx: &mut Context, bell: &Arc<Bell>) -> Result<Pumped, TurnError> {
        const OVER: Pumped = Pumped { is_over: true, opens_to: 0, news: None };
        let Loaded::Going(going) = &mut self.loaded else { return Ok(OVER) };
        // The flow was resumed meanwhile, and has another pump.
        if !Arc::ptr_eq(&going.bell, bell) {
            return Ok(OVER);
        }
        let is_leaving = going.bell.is_leaving.load(Ordering::Acquire);
        if is_leaving {
            going.engine.drain();
        }
        let opened = going.bell.open_to.load(Ordering::Acquire);
        going.engine.open(opened);
        // A turn before this one may have been durable without its answer having come.
        going.pumping.opened = opened;
        going.pumping.own = Some(Pumped::default());
        let advanced = self.advance(cx);
        let own = match &mut self.loaded {
            Loaded::Going(going) if Arc::ptr_eq(&going.bell, bell) => going.pumping.own.take(),
            _ => None,
        };
        advanced?;
        if is_leaving && self.runs.is_some() && !std::mem::replace(&mut self.has_left, true) {
            // What is cut off now has killed nothing.
            self.set_running(cx, Lives::of(LEFT))?;
        }
        Ok(own.unwrap_or(OVER))
    }
}

/// Brings a turn whenever the bell rings. While no step runs it does not keep the flow in memory.
async fn pump(me: InstanceRef<FlowInstance>, bell: Arc<Bell>, clock: Arc<dyn Clock>) {
    let mut leaving = pin!(me.leaving());
    let mut is_leaving = false;
    loop {
        let is_busy = bell.is_busy.load(Ordering::Acquire);
        let parked = (!is_busy).then(|| me.park());
        tokio::select! { biased;
            () = &mut leaving, if !is_leaving => {
                is_leaving = true;
                bell.is_leaving.store(true, Ordering::Release);
                if !is_busy {
                    continue;
                }
            }
            () = bell.notify.notified() => {}
        }
        drop(parked);
        if bell.is_over.load(Ordering::Acquire) {
            return;
        }
        loop {
            let rung = bell.clone();
            match me.turn(move |flow, cx| flow.pumped(cx, &rung)).await {
                Ok(Pumped { is_over, opens_to, news }) => {
                    if let Some(news) = news {
                        news.tell();
                    }
                    if is_over {
                        return;
                    }
                    if opens_to > 0 {
                        bell.open(opens_to);
                    }
                    break;
                }
                Err(RequestError::Closed) => return,
                Err(error) => {
                    tracing::debug!(flow = me.id(), %error, "a turn of a flow was refused; asking again");
                    clock.sleep(AGAIN).await;
                }
            }
        }
        #[cfg(feature = "postgres")]
        if !super::transaction::pump_transactions(&me, &bell, &*clock).await {
            return;
        }
    }
}

/// Asks for a turn of a flow whose code was woken by something that is not in its journal.
struct Stray;

impl Handle<Stray> for FlowInstance {
    type Reply = ();

    async fn handle(&mut self, cx: &mut Context, _: Stray) -> Result<(), TurnError> {
        self.advance_fully(cx).await
    }
}

/// Brings the turns in which flows are found out whose code was woken by something that is not in their journals.
pub(crate) async fn watch_strays(flows: Interface<FlowInstance>, mut strays: mpsc::UnboundedReceiver<Arc<str>>) {
    while let Some(flow) = strays.recv().await {
        // One that cannot be asked now is found out in its next turn.
        if let Err(error) = flows.request(&flow, Stray).await {
            tracing::debug!(flow = &*flow, %error, "a flow whose code was woken from outside could not be looked at");
        }
    }
}
