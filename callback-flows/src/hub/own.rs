//! Events of all flows of this host, numbered from 1 in the order in which they were told, for listeners on other hosts.
//!
//! The newest are kept from the start of the host on: a listener that asks for those behind a number is told how many of them it has missed.
//! If nobody has asked for a while after that start, nothing is kept until somebody does.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::HOST_BUFFER;
use crate::events::FlowEvent;

/// The most events that one answer has.
const AT_ONCE: usize = 256;

/// The newest events of this host, with their numbers.
#[derive(Debug)]
pub(crate) struct Own {
    kept: Mutex<VecDeque<FlowEvent>>,
    /// The time is over for which events are kept without a question.
    is_late: AtomicBool,
    /// There was a question for events.
    is_asked: AtomicBool,
    /// The number of the last event.
    last: watch::Sender<u64>,
    /// A notice for when somebody on this host begins to listen to all flows.
    pub(super) listened: Notify,
}

/// The events behind a number.
#[derive(Debug)]
pub(crate) struct Behind {
    /// The number of the last of them.
    pub(crate) last: u64,
    /// The number of those that are gone.
    pub(crate) missed: u64,
    pub(crate) events: Vec<FlowEvent>,
}

impl Default for Own {
    fn default() -> Own {
        Own {
            kept: Mutex::default(),
            is_late: AtomicBool::new(false),
            is_asked: AtomicBool::new(false),
            last: watch::Sender::new(0),
            listened: Notify::new(),
        }
    }
}

impl Own {
    pub(super) fn is_kept(&self) -> bool {
        self.is_asked.load(Ordering::Acquire) || !self.is_late.load(Ordering::Acquire)
    }

    pub(super) fn keep(&self, event: FlowEvent) {
        let mut kept = self.kept.lock();
        kept.push_back(event);
        let first = if kept.len() > HOST_BUFFER { kept.pop_front() } else { None };
        self.last.send_modify(|last| *last += 1);
        drop(kept);
        drop(first);
    }

    /// The number of the last event.
    pub(crate) fn last(&self) -> u64 {
        *self.last.borrow()
    }

    /// Takes note of a question: from here on events are kept.
    pub(crate) fn ask(&self) {
        self.is_asked.store(true, Ordering::Release);
    }

    /// Keeps nothing from here on, unless somebody has asked.
    pub(crate) fn forget(&self) {
        self.is_late.store(true, Ordering::Release);
        if self.is_asked.load(Ordering::Acquire) {
            return;
        }
        let kept = std::mem::take(&mut *self.kept.lock());
        drop(kept);
    }

    /// The events behind a number, the oldest first and not too many of them.
    pub(crate) fn behind(&self, number: u64) -> Behind {
        let kept = self.kept.lock();
        let last = self.last();
        let before = last - kept.len() as u64;
        let missed = before.saturating_sub(number);
        let skipped = usize::try_from(number.saturating_sub(before)).unwrap_or(usize::MAX);
        let events: Vec<_> = kept.iter().skip(skipped).take(AT_ONCE).cloned().collect();
        let last = if events.is_empty() { last } else { number.max(before) + events.len() as u64 };
        Behind { last, missed, events }
    }

    /// Waits until there are events behind a number.
    pub(crate) async fn more_than(&self, number: u64) {
        // It cannot fail: the sender is here.
        drop(self.last.subscribe().wait_for(|last| *last > number).await);
    }

    /// Waits until somebody on this host begins to listen to all flows.
    pub(crate) async fn listened(&self) {
        self.listened.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use stable_interfaces::Timestamp;

    use super::*;

    fn event(number: u64) -> FlowEvent {
        let value = serde_json::value::to_raw_value(&number).unwrap();
        FlowEvent::new("one/a".into(), number, Timestamp::UNIX_EPOCH, "x".into(), value)
    }

    fn numbers(behind: &Behind) -> Vec<u64> {
        behind.events.iter().map(FlowEvent::sequence).collect()
    }

    #[test]
    fn each_event_is_handed_out_once_behind_the_one_before_it_and_what_is_gone_is_counted() {
        let own = Own::default();
        for number in 1..=300 {
            own.keep(event(number));
        }
        let first = own.behind(0);
        assert_eq!((first.last, first.missed, numbers(&first)), (256, 0, (1..=256).collect()));
        let second = own.behind(first.last);
        assert_eq!((second.last, second.missed, numbers(&second)), (300, 0, (257..=300).collect()));
        let none = own.behind(300);
        assert_eq!((none.last, none.missed, none.events.len()), (300, 0, 0));
        for number in 301..=1_400 {
            own.keep(event(number));
        }
        let late = own.behind(300);
        assert_eq!((late.missed, numbers(&late)[0], late.last), (76, 377, 376 + 256));
    }

    #[test]
    fn without_a_question_nothing_is_kept_for_long_and_the_numbers_go_on() {
        let own = Own::default();
        own.keep(event(1));
        own.forget();
        assert!(!own.is_kept() && own.kept.lock().is_empty());
        own.ask();
        assert!(own.is_kept());
        own.keep(event(2));
        own.forget();
        let behind = own.behind(1);
        assert_eq!((behind.last, behind.missed, numbers(&behind)), (2, 0, vec![2]));
        assert_eq!(own.behind(0).missed, 1);
    }
}
