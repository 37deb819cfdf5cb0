//! Looking at flows, and waiting for them: from memory and on a word where this host owns the flow, and on a word of the owner where another
//! one does. Where that does not answer, the store is looked at once a second.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use stable_interfaces::clock::Clock;
use stable_interfaces::store::Epoch;
use stable_interfaces::{KeyRange, RequestError};

use super::elsewhere::Hearing;
use super::{Flows, FlowsError, identity, unavailable};
use crate::engine::MAX_EVENT_BYTES;
use crate::events::{EVENT_KEY, FlowEvent, FlowEvents, HostEvents, event_key};
use crate::hub::{KEPT_BYTES, Newer, Subscription};
use crate::instance::TurnError;
use crate::status::{Outcome, State, Status};

/// The time after which a flow that another host has, which does not answer, is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The most events that are read from the store at once: a slow reader holds no more in memory than its flow does.
const EVENTS_AT_ONCE: usize = KEPT_BYTES / MAX_EVENT_BYTES;

impl Flows {
    /// The status of a flow, from any host; `None` if there is none of this ID. Where its owner has the flow in memory and can be reached, it shows
    /// attempts of steps that run now; else it is as of the flow's last commit. An owner that does not answer is waited for for 2 s, and only if
    /// there is something that it may know better: steps, or a store that could not be read.
    ///
    /// # Errors
    /// [`FlowsError::Unavailable`], [`FlowsError::Unreadable`].
    pub async fn get(&self, name: &str, id: &str) -> Result<Option<Status>, FlowsError> {
        let flow = identity(name, id)?;
        if let Some(status) = self.look(&flow).await {
            return Ok(Some(status));
        }
        let stored = self.status(&flow).await;
        let may_know_more = match &stored {
            Ok(status) => status.as_ref().is_some_and(Status::has_steps),
            Err(_) => true,
        };
        if may_know_more && let Some(now) = self.look_elsewhere(&flow).await {
            return Ok(Some(now));
        }
        stored
    }

    /// Waits until the status of a flow is as it is wanted, or the time is over, and gives the status as it is then. Where another host owns the
    /// flow and cannot be reached, the store is looked at once a second.
    ///
    /// Such as until its end, `|status| status.state.is_over()`, or for any change, `|status| status.revision != seen`.
    ///
    /// # Errors
    /// [`FlowsError::NotFound`], and as [`get`](Self::get).
    pub async fn wait(
        &self,
        name: &str,
        id: &str,
        limit: Duration,
        is_wanted: impl Fn(&Status) -> bool + Send,
    ) -> Result<Status, FlowsError> {
        let flow = identity(name, id)?;
        let mut watch = self.watch(&flow)?;
        let clock = watch.clock.clone();
        let (began, mut has_waited) = (clock.elapsed(), false);
        let mut status: Option<Status> = None;
        loop {
            if watch.take_must_read() {
                status = self.status(&flow).await?;
                watch.has_seen(status.as_ref());
            } else if let Some(told) = watch.subscription.status() {
                let is_newer = status.as_ref().is_none_or(|known| known.revision < told.revision);
                status = if is_newer { Some(Status::clone(&told)) } else { status };
            }
            let passed = clock.elapsed().saturating_sub(began);
            match status.take() {
                Some(now) if passed >= limit || is_wanted(&now) => return Ok(now),
                // Its owner may be about to start it.
                None if has_waited || passed >= limit || watch.is_here() => return Err(FlowsError::NotFound),
                known => status = known,
            }
            watch.pause(limit - passed).await;
            has_waited = true;
        }
    }

    /// Waits for a flow to end, and says how: [`wait`](Self::wait).
    ///
    /// # Errors
    /// As [`result`](Self::result).
    pub async fn ended(&self, name: &str, id: &str) -> Result<Outcome, FlowsError> {
        let status = self.wait(name, id, Duration::MAX, |status| status.state.is_over()).await?;
        self.outcome(&identity(name, id)?, &status).await?.ok_or(FlowsError::NotFound)
    }

    /// The events of a flow with sequence numbers above `after`, from any host: all there are, then each as it comes, up to its end, which is the
    /// last one. With the number of the last event that a reader has had, it goes on without a gap or a repeat; 0 is for all. A number
    /// above all that there are counts as that of the newest.
    ///
    /// They are told when they are durable, on the flow's owner and on every host that can reach it; on another one the store is looked at once
    /// a second.
    ///
    /// # Errors
    /// [`FlowsError::NotFound`], and as [`get`](Self::get).
    pub async fn events(&self, name: &str, id: &str, after: u64) -> Result<FlowEvents, FlowsError> {
        let flow = identity(name, id)?;
        let watch = self.watch(&flow)?;
        let status = self.status(&flow).await?.ok_or(FlowsError::NotFound)?;
        let newest = status.events + u64::from(status.state.is_over());
        Ok(FlowEvents::new(Reader { flows: self.clone(), after: after.min(newest), watch, has_failed: false }))
    }

    /// Events of all flows of the fleet, on whatever host: `started`, `succeeded`, `failed`, `cancelled`, `blocked`, each once, those of one
    /// flow in order unless it changes hosts meanwhile. They are told when they are durable: those of this host from this call on, and those
    /// of each other host that it has a [`transport`](stable_interfaces::HostBuilder::transport) to from when that is reached.
    ///
    /// A reader that is more than 1,024 events behind misses the oldest, and is told how many those were; nobody waits for a reader.
    #[must_use]
    pub fn on_event(&self) -> HostEvents {
        HostEvents::new(self.registry.hub.subscribe_to_all())
    }

    pub(super) fn watch(&self, flow: &str) -> Result<Watch, FlowsError> {
        let clock = self.interface.clock().ok_or_else(|| unavailable(RequestError::NotStarted::<TurnError>))?;
        Ok(Watch {
            flows: self.clone(),
            flow: flow.into(),
            // Before the first look at the store: of what comes after that, there is a word.
            subscription: self.registry.hub.subscribe(flow),
            epoch: self.interface.epoch(flow),
            must_read: true,
            seen: None,
            hearing: None,
            clock,
        })
    }
}

/// A wait for news of one flow.
pub(super) struct Watch {
    flows: Flows,
    flow: Arc<str>,
    subscription: Subscription,
    /// The epoch under which this host owns the flow: within one, there is a word of each commit.
    epoch: Option<Epoch>,
    /// There may be news in the store that there was no word of.
    must_read: bool,
    /// The revision that was read last, 0 for no flow: the flow's owner is to be asked for news of it, if that is another host.
    seen: Option<u64>,
    /// That question, under way.
    hearing: Option<Hearing>,
    clock: Arc<dyn Clock>,
}

impl Watch {
    pub(super) fn is_here(&self) -> bool {
        self.epoch.is_some()
    }

    pub(super) fn take_must_read(&mut self) -> bool {
        std::mem::take(&mut self.must_read)
    }

    pub(super) fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    /// The newest status, if any was told on this host.
    pub(super) fn told(&mut self) -> Option<Arc<Status>> {
        self.subscription.status()
    }

    /// Takes note of what the store says.
    fn has_seen(&mut self, status: Option<&Status>) {
        self.seen = Some(status.map_or(0, |status| status.revision));
    }

    /// Waits for a word of the flow, for so long at most, or until it is time to look at the store.
    pub(super) async fn pause(&mut self, limit: Duration) {
        if self.epoch.is_none()
            && let Some(seen) = self.seen.take()
        {
            self.hearing = self.flows.hear(&self.flow, seen);
        }
        let mut tick = pin!(self.clock.sleep(LOOK_AGAIN.min(limit)));
        loop {
            let heard = async {
                match &mut self.hearing {
                    Some(hearing) => hearing.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! { biased;
                () = self.subscription.told() => return,
                has_news = heard => {
                    self.hearing = None;
                    if has_news {
                        self.must_read = true;
                        return;
                    }
                }
                () = &mut tick => break,
            }
        }
        let epoch = self.flows.interface.epoch(&self.flow);
        self.must_read |= epoch != self.epoch || (epoch.is_none() && self.hearing.is_none());
        if epoch.is_some() {
            self.hearing = None;
        }
        self.epoch = epoch;
    }
}

/// A reader of the events of one flow.
pub(crate) struct Reader {
    flows: Flows,
    /// The sequence number of the last event that was handed out.
    after: u64,
    watch: Watch,
    has_failed: bool,
}

impl Reader {
    /// The next events, when there are any; `None` if there will be no more.
    pub(crate) async fn read(&mut self) -> Result<Option<VecDeque<FlowEvent>>, FlowsError> {
        if self.has_failed {
            self.watch.clock.sleep(LOOK_AGAIN).await;
        }
        // Unless it is dropped before its end.
        self.has_failed = true;
        let read = self.read_on().await;
        self.has_failed = read.is_err();
        if let Ok(Some(events)) = &read {
            self.after = events.back().map_or(self.after, FlowEvent::sequence);
        }
        read
    }

    async fn read_on(&mut self) -> Result<Option<VecDeque<FlowEvent>>, FlowsError> {
        loop {
            match self.watch.subscription.newer_than(self.after) {
                Newer::Events(events) => return Ok(Some(events)),
                Newer::InStore => self.watch.must_read = true,
                Newer::None => {}
            }
            if self.watch.must_read {
                // In a place of its own: a reader that waits for news, as most do, has no room for it.
                if let ControlFlow::Break(read) = Box::pin(self.look()).await? {
                    return Ok(read);
                }
                self.watch.must_read = false;
            }
            self.watch.pause(LOOK_AGAIN).await;
        }
    }

    /// Looks for news in the store; goes on if there are none.
    async fn look(&mut self) -> Result<ControlFlow<Option<VecDeque<FlowEvent>>>, FlowsError> {
        let flow = self.watch.flow.clone();
        let Some(status) = self.flows.status(&flow).await? else { return Ok(ControlFlow::Break(None)) };
        self.watch.has_seen(Some(&status));
        if status.state == State::Purged {
            return Ok(ControlFlow::Break(None));
        }
        if status.events > self.after {
            let events = self.stored(&flow).await?;
            // Purged between the two reads.
            return Ok(ControlFlow::Break((!events.is_empty()).then_some(events)));
        }
        if status.state.is_over() {
            let end = FlowEvent::end(flow, &status).filter(|end| end.sequence() > self.after);
            return Ok(ControlFlow::Break(end.map(|end| VecDeque::from([end]))));
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn stored(&mut self, flow: &Arc<str>) -> Result<VecDeque<FlowEvent>, FlowsError> {
        let (from, to) = (event_key(self.after + 1), format!("{EVENT_KEY}0"));
        let range = KeyRange::from(&*from..&*to).limit(EVENTS_AT_ONCE);
        let rows: Vec<(Arc<str>, Bytes)> = self.flows.stored(flow, range).await?;
        let decoded = rows.iter().map(|(key, row)| {
            let sequence = key.rsplit('/').next().and_then(|number| number.parse().ok()).unwrap_or_default();
            FlowEvent::decode(flow.clone(), sequence, row).map_err(FlowsError::Unreadable)
        });
        decoded.collect()
    }
}
