//! The instances of the other interface, which are sent to cells.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stable_interfaces::testing::{Began, Invariant};
use stable_interfaces::{Alarm, Context, ContextError, Handle, OnAlarm, StableInterface};

use super::asking::{Awaited, outcome, said_arrived};
use super::cell::Step;
use super::kind::Kind;
use super::{Failed, Running, Shared, whole};

/// An instance of the other interface, which counts what it was sent for and asks a cell to do so.
pub struct Scout {
    pub(super) id: String,
    pub(super) shared: Arc<Shared>,
    pub(super) total: i64,
}

/// A message that sends a scout to a cell.
#[derive(Serialize, Deserialize)]
pub struct Errand {
    pub(super) cell: String,
    /// The counts of the scout and of the cell.
    pub(super) effects: (u64, u64),
    /// Told what the cell said.
    pub(super) awaited: Awaited,
    pub(super) sleeps: Duration,
}

impl Scout {
    fn enter(&self) -> Running {
        if !self.shared.running.lock().insert(self.id.clone()) {
            self.shared.life.history().violated(Invariant::OneAtATime, format!("two handlers at once in {}", self.id));
        }
        Running(self.shared.clone(), self.id.clone())
    }

    async fn count(&mut self, cx: &mut Context, effect: u64) -> Result<(), ContextError> {
        let key = format!("e/{effect}");
        let (count, total) = (cx.get::<i64>(&key).await?.unwrap_or(0) + 1, self.total + 1);
        cx.put(&key, &count)?;
        cx.put("total", &total)?;
        self.total = total;
        Ok(())
    }
}

impl StableInterface for Scout {
    const NAME: &'static str = "scout";
    type Error = Failed;

    async fn on_start(&mut self, cx: &mut Context) -> Result<(), Failed> {
        let _running = self.enter();
        self.total = cx.get("total").await?.unwrap_or(0);
        Ok(())
    }
}

impl Handle<Errand> for Scout {
    type Reply = ();

    async fn handle(&mut self, cx: &mut Context, errand: Errand) -> Result<(), Failed> {
        let _running = self.enter();
        let Errand { cell, effects, awaited, sleeps } = errand;
        let app = self.shared.app()?;
        self.count(cx, effects.0).await?;
        let answer = app.request(&cell, app.message(&cell, vec![Step::Count(effects.1)])).await;
        said_arrived(&answer);
        self.shared.awaiting.tell(awaited, outcome(&answer));
        answer.map_err(|error| Failed::Nested(error.to_string()))?;
        self.shared.life.sleep(sleeps).await;
        Ok(())
    }
}

impl OnAlarm for Scout {
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), Failed> {
        let _running = self.enter();
        let (kind, effect) = Kind::from_meta(&alarm.meta()?);
        let life = self.shared.life.clone();
        life.history().began(Began {
            effect: whole(&self.id, effect),
            life: life.number(),
            at: life.latest(),
            due: alarm.due(),
            attempt: alarm.attempt(),
            is_current: life.is_current(),
        });
        self.count(cx, effect).await?;
        if kind == Kind::Fails && alarm.attempt() < 2 && !life.is_healed() {
            return Err(self.shared.failure(&self.id));
        }
        cx.after_commit(move || life.count("alarm of a scout handled"));
        Ok(())
    }
}

impl fmt::Debug for Errand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Errand").field("cell", &self.cell).field("effects", &self.effects).finish_non_exhaustive()
    }
}

impl fmt::Debug for Scout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scout").field("id", &self.id).field("total", &self.total).finish_non_exhaustive()
    }
}
