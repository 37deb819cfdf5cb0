//! Word of the flows of this host, for whoever listens in this process.
//!
//! A flow's turn tells what it has committed, after the commit, and never waits for a listener: of a flow that is listened to the
//! newest events are kept for a while, and a listener that is slower than that reads the store. What happens to all flows goes through one
//! bounded channel, whose slow listeners are told how many events they have missed; what happens to those of this host is kept in a list as
//! long, for listeners on other hosts.

mod own;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

pub(crate) use self::own::Own;
use crate::events::FlowEvent;
use crate::status::Status;

/// The number of events of all flows that a listener may be behind.
pub(crate) const HOST_BUFFER: usize = 1_024;
/// The most events of one flow that are kept for its listeners, and the most bytes of them.
const KEPT: usize = 128;
pub(crate) const KEPT_BYTES: usize = 256 * 1_024;

/// Tells listeners.
#[derive(Debug)]
pub(crate) struct Hub {
    topics: Mutex<HashMap<Arc<str>, Topic>>,
    /// The number of topics, for a look without the lock.
    count: AtomicUsize,
    /// Events of all flows, those of other hosts among them if they are followed.
    all: broadcast::Sender<OfAll>,
    /// The other hosts know that somebody listens here.
    follows: watch::Sender<bool>,
    own: Own,
}

/// An item for those who listen to all flows.
#[derive(Debug, Clone)]
pub(crate) enum OfAll {
    Event(FlowEvent),
    /// The number of events of another host that were missed.
    Missed(u64),
}

/// A flow that is listened to.
#[derive(Debug)]
struct Topic {
    listeners: usize,
    told: watch::Sender<Told>,
}

/// The newest of a flow.
#[derive(Debug, Default)]
struct Told {
    status: Option<Arc<Status>>,
    /// The newest events, of consecutive sequence numbers.
    events: VecDeque<FlowEvent>,
}

/// A listener's hold on the word of one flow.
#[derive(Debug)]
pub(crate) struct Subscription {
    hub: Arc<Hub>,
    flow: Arc<str>,
    told: watch::Receiver<Told>,
}

/// The events of a flow after one that a listener has had.
pub(crate) enum Newer {
    None,
    /// Events without a gap.
    Events(VecDeque<FlowEvent>),
    /// There are some events, and the first of them are in the store alone.
    InStore,
}

impl Default for Hub {
    fn default() -> Hub {
        let (all, _) = broadcast::channel(HOST_BUFFER);
        Hub {
            topics: Mutex::default(),
            count: AtomicUsize::new(0),
            all,
            follows: watch::Sender::new(false),
            own: Own::default(),
        }
    }
}

impl Hub {
    pub(crate) fn subscribe(self: &Arc<Self>, flow: &str) -> Subscription {
        let mut topics = self.topics.lock();
        let flow: Arc<str> = flow.into();
        let topic = topics
            .entry(flow.clone())
            .or_insert_with(|| Topic { listeners: 0, told: watch::Sender::new(Told::default()) });
        topic.listeners += 1;
        let told = topic.told.subscribe();
        self.count.store(topics.len(), Ordering::SeqCst);
        drop(topics);
        Subscription { hub: self.clone(), flow, told }
    }

    pub(crate) fn subscribe_to_all(&self) -> broadcast::Receiver<OfAll> {
        let listener = self.all.subscribe();
        self.own.listened.notify_one();
        listener
    }

    /// Tells whether anybody on this host listens to all flows.
    pub(crate) fn has_listeners_to_all(&self) -> bool {
        self.all.receiver_count() > 0
    }

    /// Takes note of whether other hosts tell what they are asked for.
    pub(crate) fn follows(&self, follows: bool) {
        self.follows.send_replace(follows);
    }

    /// Waits until other hosts tell.
    #[cfg(feature = "http")]
    pub(crate) async fn followed(&self) {
        // It cannot fail: the sender is here.
        drop(self.follows.subscribe().wait_for(|follows| *follows).await);
    }

    /// Events of all flows of this host, for listeners on others.
    pub(crate) fn own(&self) -> &Own {
        &self.own
    }

    /// Tells the listeners of a flow. All of it is durable.
    pub(crate) fn tell(&self, flow: &str, status: &Arc<Status>, events: Vec<FlowEvent>) {
        if !self.has_listeners_to_one() {
            return;
        }
        let topics = self.topics.lock();
        let Some(topic) = topics.get(flow) else { return };
        topic.told.send_modify(|told| {
            // Two that were durable at about the same time may be told in any order.
            if told.status.as_ref().is_none_or(|known| known.revision <= status.revision) {
                told.status = Some(status.clone());
            }
            for event in events {
                if told.events.back().is_some_and(|last| last.sequence() >= event.sequence()) {
                    continue;
                }
                if told.events.back().is_some_and(|last| last.sequence() + 1 != event.sequence()) {
                    told.events.clear();
                }
                told.events.push_back(event);
            }
            let mut bytes: usize = told.events.iter().map(FlowEvent::bytes).sum();
            while told.events.len() > KEPT || bytes > KEPT_BYTES {
                bytes -= told.events.pop_front().map_or(0, |event| event.bytes());
            }
        });
    }

    /// Tells whether anybody listens to one flow.
    pub(crate) fn has_listeners_to_one(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }

    /// Tells whether anybody listens.
    pub(crate) fn is_heard(&self) -> bool {
        self.has_listeners_to_one() || self.has_listeners_to_all() || self.own.is_kept()
    }

    /// Tells the listeners of all flows of an event on this host, if there are any.
    pub(crate) fn tell_all(&self, event: impl FnOnce() -> FlowEvent) {
        let (is_heard, is_kept) = (self.has_listeners_to_all(), self.own.is_kept());
        if !is_heard && !is_kept {
            return;
        }
        let event = event();
        if is_kept {
            self.own.keep(event.clone());
        }
        if is_heard {
            self.relay(OfAll::Event(event));
        }
    }

    /// Tells the listeners of this host of what another one has told.
    pub(crate) fn relay(&self, item: OfAll) {
        // An error says that the last of them has left.
        let _ = self.all.send(item);
    }
}

impl Subscription {
    /// The newest status, if any was told after the subscription was made.
    pub(crate) fn status(&mut self) -> Option<Arc<Status>> {
        self.told.borrow_and_update().status.clone()
    }

    pub(crate) fn newer_than(&mut self, sequence: u64) -> Newer {
        let told = self.told.borrow_and_update();
        match (told.events.front(), told.events.back()) {
            (Some(first), Some(last)) if last.sequence() > sequence => {
                if first.sequence() > sequence + 1 {
                    return Newer::InStore;
                }
                let newer = told.events.iter().filter(|event| event.sequence() > sequence);
                Newer::Events(newer.cloned().collect())
            }
            _ => Newer::None,
        }
    }

    /// Waits until something is told that has not been looked at.
    pub(crate) async fn told(&mut self) {
        if self.told.changed().await.is_err() {
            // Its sender lives as long as it does.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut topics = self.hub.topics.lock();
        let is_last = topics.get_mut(&self.flow).is_some_and(|topic| {
            topic.listeners -= 1;
            topic.listeners == 0
        });
        let last = if is_last { topics.remove(&self.flow) } else { None };
        self.hub.count.store(topics.len(), Ordering::SeqCst);
        drop(topics);
        drop(last);
    }
}

#[cfg(test)]
mod tests {
    use stable_interfaces::Timestamp;

    use super::*;

    fn event(sequence: u64, bytes: usize) -> FlowEvent {
        let value = serde_json::value::to_raw_value(&"x".repeat(bytes)).unwrap();
        FlowEvent::new("one/a".into(), sequence, Timestamp::UNIX_EPOCH, "x".into(), value)
    }

    fn sequences(newer: Newer) -> Vec<u64> {
        match newer {
            Newer::Events(events) => events.iter().map(FlowEvent::sequence).collect(),
            Newer::None => Vec::new(),
            Newer::InStore => vec![0],
        }
    }

    #[test]
    fn a_listener_that_is_too_slow_is_sent_to_the_store_and_memory_stays_bounded() {
        let hub = Arc::new(Hub::default());
        let mut listener = hub.subscribe("one/a");
        let status = Arc::new(Status::for_tests());
        hub.tell("one/a", &status, (1..=100).map(|n| event(n, 1)).collect());
        assert_eq!(sequences(listener.newer_than(97)), [98, 99, 100]);
        hub.tell("one/a", &status, (101..=300).map(|n| event(n, 1)).collect());
        assert_eq!(sequences(listener.newer_than(97)), [0]);
        assert_eq!(sequences(listener.newer_than(172)).len(), KEPT);
        assert_eq!(sequences(listener.newer_than(300)), [] as [u64; 0]);
        hub.tell("one/a", &status, (301..=400).map(|n| event(n, 32 * 1_024)).collect());
        assert!(sequences(listener.newer_than(392)).len() <= KEPT_BYTES / (32 * 1_024));
        assert_eq!(sequences(listener.newer_than(390)), [0]);
    }

    #[test]
    fn events_that_another_host_has_told_leave_no_gap() {
        let hub = Arc::new(Hub::default());
        let mut listener = hub.subscribe("one/a");
        let status = Arc::new(Status::for_tests());
        hub.tell("one/a", &status, vec![event(1, 1)]);
        hub.tell("one/a", &status, vec![event(5, 1)]);
        assert_eq!(sequences(listener.newer_than(1)), [0], "2 to 4 are in the store");
        assert_eq!(sequences(listener.newer_than(4)), [5]);
    }

    #[test]
    fn word_that_comes_late_takes_nothing_newer_away() {
        let hub = Arc::new(Hub::default());
        let mut listener = hub.subscribe("one/a");
        let at = |revision| Arc::new(Status { revision, ..Status::for_tests() });
        hub.tell("one/a", &at(3), vec![event(2, 1)]);
        hub.tell("one/a", &at(2), vec![event(1, 1)]);
        assert_eq!(listener.status().map(|status| status.revision), Some(3));
        assert_eq!(sequences(listener.newer_than(1)), [2]);
        assert_eq!(sequences(listener.newer_than(0)), [0], "the first is in the store");
    }

    #[test]
    fn nothing_is_kept_of_a_flow_that_nobody_listens_to() {
        let hub = Arc::new(Hub::default());
        let (one, mut other) = (hub.subscribe("one/a"), hub.subscribe("one/a"));
        drop(one);
        hub.tell("one/a", &Arc::new(Status::for_tests()), vec![event(1, 1)]);
        assert_eq!(sequences(other.newer_than(0)), [1]);
        drop(other);
        assert_eq!((hub.topics.lock().len(), hub.count.load(Ordering::SeqCst)), (0, 0));
    }
}
