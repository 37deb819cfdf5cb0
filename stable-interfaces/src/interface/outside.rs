//! What is done to an instance from outside without building it: its alarms and dead letters.
//!
//! Each takes its turn like a message, so it sees everything handled before it and nothing changes under its hands.

use std::future::Future;

use bytes::Bytes;

use crate::alarm::Alarm;
use crate::clock::Timestamp;
use crate::error::{ContextError, Outcome};
use crate::instance::StableInterface;
use crate::instance::context::Context;
use crate::instance::turn::Work;
use crate::store::{DeadKey, Op};

/// One such thing.
pub(super) trait Operation: Send + 'static {
    type Reply: Send + 'static;

    fn run(self, cx: &mut Context) -> impl Future<Output = Result<Self::Reply, ContextError>> + Send;
}

/// An operation as an instance's work.
pub(super) struct AsWork<O>(pub(super) O);

impl<I: StableInterface, O: Operation> Work<I> for AsWork<O> {
    type Reply = O::Reply;

    async fn run(self, _: &mut Option<Box<I>>, cx: &mut Context) -> Outcome<O::Reply, I::Error> {
        self.0.run(cx).await.map_err(Box::from)
    }
}

pub(super) struct SetAlarm {
    pub(super) alarm: String,
    pub(super) at: Timestamp,
    /// As it is stored.
    pub(super) meta: Bytes,
}

impl Operation for SetAlarm {
    type Reply = ();

    async fn run(self, cx: &mut Context) -> Result<(), ContextError> {
        cx.set_encoded_alarm(&self.alarm, self.at, self.meta)
    }
}

pub(super) struct SetAlarmIfAbsent(pub(super) SetAlarm);

impl Operation for SetAlarmIfAbsent {
    type Reply = bool;

    async fn run(self, cx: &mut Context) -> Result<bool, ContextError> {
        cx.set_encoded_alarm_if_absent(&self.0.alarm, self.0.at, self.0.meta).await
    }
}

pub(super) struct CancelAlarm(pub(super) String);

impl Operation for CancelAlarm {
    type Reply = ();

    async fn run(self, cx: &mut Context) -> Result<(), ContextError> {
        cx.cancel_alarm(&self.0)
    }
}

pub(super) struct ListAlarms;

impl Operation for ListAlarms {
    type Reply = Vec<Alarm>;

    async fn run(self, cx: &mut Context) -> Result<Vec<Alarm>, ContextError> {
        cx.alarms().await
    }
}

pub(super) struct FireNow(pub(super) String);

impl Operation for FireNow {
    type Reply = bool;

    async fn run(self, cx: &mut Context) -> Result<bool, ContextError> {
        cx.fire_now(&self.0).await
    }
}

pub(super) struct Requeue(pub(super) DeadKey);

impl Operation for Requeue {
    type Reply = bool;

    async fn run(self, cx: &mut Context) -> Result<bool, ContextError> {
        crate::dead::requeue(cx, &self.0).await
    }
}

pub(super) struct Discard(pub(super) DeadKey);

impl Operation for Discard {
    type Reply = bool;

    async fn run(self, cx: &mut Context) -> Result<bool, ContextError> {
        let exists = cx.find_dead(&self.0).await?.is_some();
        if exists {
            cx.record_own(Op::RemoveDead(self.0));
        }
        Ok(exists)
    }
}
