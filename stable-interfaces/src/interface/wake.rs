//! The path of what is due to its instance's slot: alarms, messages and directives.
//!
//! Each is marked in the store first where its shard's last owner may have died of it, and given up there past the limit of deaths. The marks
//! of several are one commit where their instances are free: these are kept until it is durable, so nothing can come in between.

use crate::alarm::Alarm;
use crate::commit::gate::Ticket;
use crate::error::{Outcome, RequestError};
use crate::fleet::hash_id;
use crate::inbox::Message;
use crate::instance::admin::{self, DirectiveError};
use crate::instance::context::{Context, is_live};
use crate::instance::job::Work;
use crate::instance::kind::{Found, InterfaceCore, WakeFn};
use crate::instance::living::Home;
use crate::instance::slot::Taken;
use crate::instance::submit::Route;
use crate::instance::turn::{Queued, awaken, span_of};
use crate::instance::{OnAlarm, OnMessage, StableInterface};
use crate::quiet::Quiet;
use crate::shards::delivery::Delivery;
use crate::shards::wake::Wake;
use crate::shared::Held;
use crate::store::{AlarmRow, InboxRow, Op};
use crate::sync::Arc;

/// Handles an alarm.
struct Fire {
    woken: Woken,
    alarm: Arc<AlarmRow>,
}

/// The part that alarms and messages have in common.
struct Woken {
    wake: Wake,
    must_mark: bool,
    /// The place of the commit that has its mark in it, if that has been queued.
    marked: Option<Ticket>,
    max_crashes: u32,
}

impl Woken {
    /// Does what comes before the handler; `false` if it must not run.
    async fn begin<I: StableInterface>(&self, cx: &mut Context) -> Outcome<bool, I::Error> {
        let crashes = self.wake.attempts().all_crashes();
        if crashes > 0 {
            cx.recorded.cold().crashes = crashes;
        }
        if !self.must_mark {
            return Ok(true);
        }
        if crashes >= self.max_crashes {
            let reason: Arc<str> = format!("{crashes} processes died while it was being handled").into();
            tracing::error!(instance = %self.wake.name(), kind = self.wake.kind(), id = %self.wake.id(), %reason,
                "given up; it is a dead letter now");
            metrics::counter!(crate::metrics::DEAD_LETTERS, "interface" => I::NAME).increment(1);
            for op in self.wake.dead(self.wake.attempts().given_up(&reason), &reason, cx.now()) {
                cx.record_own(op);
            }
            return Ok(false);
        }
        let is_marked = match &self.marked {
            // What others are in that commit for may have been the reason that it failed.
            Some(ticket) => ticket.wait().await.is_ok(),
            None => false,
        };
        if !is_marked {
            cx.mark_started(&self.wake).await?;
        }
        cx.require_lease()?;
        Ok(true)
    }
}

impl<I: OnAlarm> Work<I> for Fire {
    type Reply = ();

    async fn run(self, state: &mut Home<I>, cx: &mut Context) -> Outcome<(), I::Error> {
        if !cx.is_live(&self.alarm) || !self.woken.begin::<I>(cx).await? {
            return Ok(());
        }
        cx.alarm = Some(self.alarm.clone());
        let instance = awaken(state, cx).await?;
        cx.begin_handler_of(self.woken.wake);
        instance.on_alarm(cx, &Alarm::new(self.alarm)).await.map_err(RequestError::handler)?;
        cx.complete();
        Ok(())
    }
}

/// Handles a message from the inbox.
struct Take {
    woken: Woken,
    message: Arc<InboxRow>,
}

impl<I: OnMessage> Work<I> for Take {
    type Reply = ();

    async fn run(self, state: &mut Home<I>, cx: &mut Context) -> Outcome<(), I::Error> {
        if !self.woken.begin::<I>(cx).await? {
            return Ok(());
        }
        let instance = awaken(state, cx).await?;
        cx.begin_handler_of(self.woken.wake);
        instance.on_message(cx, &Message::new(self.message)).await.map_err(RequestError::handler)?;
        cx.complete();
        Ok(())
    }
}

/// The functions that [`InterfaceBuilder::with_alarms`](crate::InterfaceBuilder::with_alarms) captures.
pub(crate) fn fire_alarm<I: OnAlarm>(core: &Arc<InterfaceCore<I>>, delivery: Delivery, found: Option<Found<I>>) {
    if let Wake::Alarm(alarm) = delivery.wake() {
        let work = Fire { alarm: alarm.clone(), woken: woken(core, &delivery, found.as_ref()) };
        hand_over(core, delivery, work, found);
    }
}

/// The functions that [`InterfaceBuilder::with_inbox`](crate::InterfaceBuilder::with_inbox) captures.
pub(crate) fn take_message<I: OnMessage>(core: &Arc<InterfaceCore<I>>, delivery: Delivery, found: Option<Found<I>>) {
    if let Wake::Message(message) = delivery.wake() {
        let work = Take { message: message.clone(), woken: woken(core, &delivery, found.as_ref()) };
        hand_over(core, delivery, work, found);
    }
}

/// Carries out a directive.
struct CarryOut {
    woken: Woken,
    message: Arc<InboxRow>,
}

impl<I: StableInterface> Work<I> for CarryOut {
    type Reply = ();

    async fn run(self, _: &mut Home<I>, cx: &mut Context) -> Outcome<(), I::Error> {
        if !self.woken.begin::<I>(cx).await? {
            return Ok(());
        }
        admin::carry_out_message(&self.message, cx).await.map_err(|error| match error {
            DirectiveError::Context(error) => RequestError::from(error),
            DirectiveError::Unknown(what) => RequestError::Rejected(what),
        })?;
        cx.begin_handler_of(self.woken.wake);
        cx.complete();
        Ok(())
    }
}

pub(super) fn carry_out<I: StableInterface>(core: &Arc<InterfaceCore<I>>, delivery: Delivery, found: Option<Found<I>>) {
    if let Wake::Message(message) = delivery.wake() {
        let work = CarryOut { message: message.clone(), woken: woken(core, &delivery, found.as_ref()) };
        hand_over(core, delivery, work, found);
    }
}

fn woken<I: StableInterface>(core: &InterfaceCore<I>, delivery: &Delivery, found: Option<&Found<I>>) -> Woken {
    let max_crashes = core.options.max_crashes.unwrap_or(core.host.options.limits.max_crashes);
    let marked = found.and_then(|found| found.marked.clone());
    Woken { wake: delivery.wake().clone(), must_mark: delivery.must_mark, marked, max_crashes }
}

fn route_of(delivery: &Delivery) -> Route {
    let (shard, epoch) = delivery.shard();
    Route { hash: hash_id(&delivery.wake().name().instance), shard, epoch }
}

/// Looks up the instance for which something is due, and tries to take it.
fn find<I: StableInterface>(core: &Arc<InterfaceCore<I>>, id: &str, route: Route) -> Option<Found<I>> {
    let slot = core.slot(id, route).ok()?;
    let taken = slot.take(route.epoch);
    Some(Found { slot, taken, marked: None })
}

/// An instance that has been taken for something due.
struct HeldBy<I: StableInterface> {
    core: Arc<InterfaceCore<I>>,
    wake: WakeFn<I>,
    found: Found<I>,
    delivery: Delivery,
}

impl<I: StableInterface> Held for HeldBy<I> {
    fn mark(&self) -> Option<Op> {
        let wake = self.delivery.wake();
        let is_live = match wake {
            // Nobody else can say anything more about it while the instance is kept.
            Wake::Alarm(alarm) => is_live(&*self.found.slot, self.delivery.shard().1, alarm),
            Wake::Message(_) => true,
        };
        is_live.then(|| wake.mark())
    }

    fn begin(self: Box<Self>, marked: Option<Ticket>) {
        let HeldBy { core, wake, found, delivery } = *self;
        wake(&core, delivery, Some(Found { marked, ..found }));
    }
}

/// See [`AnyInterface::hold`](crate::shared::AnyInterface::hold).
pub(super) fn hold<I: StableInterface>(
    core: &Arc<InterfaceCore<I>>,
    wake: WakeFn<I>,
    delivery: Delivery,
) -> Option<Box<dyn Held>> {
    let found = find(core, &delivery.wake().name().instance, route_of(&delivery))?;
    if matches!(found.taken, Taken::Free(_)) {
        found.slot.stays_busy();
        return Some(Box::new(HeldBy { core: core.clone(), wake, found, delivery }));
    }
    wake(core, delivery, Some(found));
    None
}

fn hand_over<I: StableInterface>(
    core: &Arc<InterfaceCore<I>>,
    delivery: Delivery,
    work: impl Work<I>,
    found: Option<Found<I>>,
) {
    let (id, route) = (delivery.wake().name().instance.clone(), route_of(&delivery));
    let span = span_of::<I>(&id, route.shard, Some(&delivery));
    let job = Queued::untold(Quiet::new(work), core.options.handler_timeout, Some(delivery), span);
    // Refused for a limit, the delivery is dropped with the job, and what it stands for waits a moment.
    let Some(Found { slot, taken, .. }) = found.or_else(|| find(core, &id, route)) else { return };
    if let Err(error) = core.queue(slot, taken, job, &id, route) {
        tracing::debug!(interface = I::NAME, %id, %error, "what is due could not be handed to its instance yet");
    }
}
