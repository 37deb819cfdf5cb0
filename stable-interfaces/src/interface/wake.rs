//! The path of what is due to its instance's slot: alarms, messages and directives.
//!
//! Each is marked in the store first where its shard's last owner may have died of it, and given up there past the limit of deaths.

use crate::alarm::Alarm;
use crate::error::{Outcome, RequestError};
use crate::fleet::hash_id;
use crate::inbox::Message;
use crate::instance::admin::{self, DirectiveError};
use crate::instance::context::Context;
use crate::instance::job::Work;
use crate::instance::kind::InterfaceCore;
use crate::instance::living::Home;
use crate::instance::submit::Route;
use crate::instance::turn::{Queued, awaken, span_of};
use crate::instance::{OnAlarm, OnMessage, StableInterface};
use crate::quiet::Quiet;
use crate::shards::delivery::Delivery;
use crate::shards::wake::Wake;
use crate::store::{AlarmRow, InboxRow};
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
        cx.mark_started(&self.wake).await?;
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
pub(crate) fn fire_alarm<I: OnAlarm>(core: &Arc<InterfaceCore<I>>, delivery: Delivery) {
    if let Wake::Alarm(alarm) = delivery.wake() {
        let work = Fire { alarm: alarm.clone(), woken: woken(core, &delivery) };
        hand_over(core, delivery, work);
    }
}

/// The functions that [`InterfaceBuilder::with_inbox`](crate::InterfaceBuilder::with_inbox) captures.
pub(crate) fn take_message<I: OnMessage>(core: &Arc<InterfaceCore<I>>, delivery: Delivery) {
    if let Wake::Message(message) = delivery.wake() {
        let work = Take { message: message.clone(), woken: woken(core, &delivery) };
        hand_over(core, delivery, work);
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

pub(super) fn carry_out<I: StableInterface>(core: &Arc<InterfaceCore<I>>, delivery: Delivery) {
    if let Wake::Message(message) = delivery.wake() {
        let work = CarryOut { message: message.clone(), woken: woken(core, &delivery) };
        hand_over(core, delivery, work);
    }
}

fn woken<I: StableInterface>(core: &InterfaceCore<I>, delivery: &Delivery) -> Woken {
    let max_crashes = core.options.max_crashes.unwrap_or(core.host.options.limits.max_crashes);
    Woken { wake: delivery.wake().clone(), must_mark: delivery.must_mark, max_crashes }
}

fn hand_over<I: StableInterface>(core: &Arc<InterfaceCore<I>>, delivery: Delivery, work: impl Work<I>) {
    let id = delivery.wake().name().instance.clone();
    let (shard, epoch) = delivery.shard();
    let route = Route { hash: hash_id(&id), shard, epoch };
    let span = span_of::<I>(&id, shard, Some(&delivery));
    let job = Queued::untold(Quiet::new(work), core.options.handler_timeout, Some(delivery), span);
    // Refused for a limit, the delivery is dropped with the job, and what it stands for waits a moment.
    let Ok(slot) = core.slot(&id, route) else { return };
    let taken = slot.take(epoch);
    if let Err(error) = core.queue(slot, taken, job, &id, route) {
        tracing::debug!(interface = I::NAME, %id, %error, "what is due could not be handed to its instance yet");
    }
}
