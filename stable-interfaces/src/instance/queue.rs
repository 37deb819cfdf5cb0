//! The messages that wait for one instance, first come first served.
//!
//! A message waits until its turn or until a moment of its own, whichever comes first; one that is late never has a turn. Those
//! that the queue's limit bounds are counted here and nowhere else, so the count goes down on every way out. `earliest` is
//! never later than the first of the moments: before it nothing is late, and nothing need be looked through. Nothing here reads
//! a clock; the slot passes `now` in.

use std::collections::VecDeque;
use std::time::Duration;

/// A message as its queue needs to know it.
pub(crate) trait Waiter {
    /// The moment until which it waits for its turn, by the lease clock; `Duration::MAX` if it waits for as long as that takes.
    fn waits_until(&self) -> Duration;

    /// True if a permit bounds it already, and not the queue's own limit.
    fn holds_permit(&self) -> bool;

    /// True if it lets the instance leave memory because its host drains: one at a time waits for that.
    fn is_drain(&self) -> bool;
}

impl<W: Waiter + ?Sized> Waiter for Box<W> {
    fn waits_until(&self) -> Duration {
        (**self).waits_until()
    }

    fn holds_permit(&self) -> bool {
        (**self).holds_permit()
    }

    fn is_drain(&self) -> bool {
        (**self).is_drain()
    }
}

pub(crate) struct Queue<W> {
    waiting: VecDeque<W>,
    /// The number of those that the queue's limit bounds.
    bounded: usize,
    /// A moment before which no message is late.
    earliest: Duration,
}

impl<W> Default for Queue<W> {
    fn default() -> Queue<W> {
        Queue { waiting: VecDeque::new(), bounded: 0, earliest: Duration::MAX }
    }
}

impl<W: Waiter> Queue<W> {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds a message at the end, or gives it back if as many as may wait already. One that holds a permit is always
    /// taken.
    pub(crate) fn push(&mut self, message: W, limit: usize) -> Result<(), W> {
        if !message.holds_permit() {
            if self.bounded >= limit {
                return Err(message);
            }
            self.bounded += 1;
        }
        self.earliest = self.earliest.min(message.waits_until());
        self.waiting.push_back(message);
        Ok(())
    }

    /// Takes the first message, late or not.
    pub(crate) fn pop(&mut self) -> Option<W> {
        let message = self.waiting.pop_front()?;
        self.bounded -= usize::from(!message.holds_permit());
        if self.waiting.is_empty() {
            self.earliest = Duration::MAX;
        }
        Some(message)
    }

    /// Takes the messages whose moment has come, in their order. `now` is asked for only if there are any with a moment.
    pub(crate) fn take_late(&mut self, now: impl FnOnce() -> Duration) -> VecDeque<W> {
        if self.earliest == Duration::MAX {
            return VecDeque::new();
        }
        let now = now();
        if now < self.earliest {
            return VecDeque::new();
        }
        let is_late = |message: &W| message.waits_until() <= now && message.waits_until() < Duration::MAX;
        let (late, waiting): (VecDeque<_>, VecDeque<_>) = self.waiting.drain(..).partition(is_late);
        self.bounded -= late.iter().filter(|message| !message.holds_permit()).count();
        self.earliest = waiting.iter().map(Waiter::waits_until).min().unwrap_or(Duration::MAX);
        self.waiting = waiting;
        late
    }

    /// Takes all messages.
    pub(crate) fn take_all(&mut self) -> VecDeque<W> {
        std::mem::take(self).waiting
    }

    /// Entries that wait, in their order.
    #[cfg(all(test, not(shuttle)))]
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &W> {
        self.waiting.iter()
    }

    /// A moment before which none is late; `Duration::MAX` if none ever is.
    pub(crate) fn earliest(&self) -> Duration {
        self.earliest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Message {
        name: char,
        until: Duration,
        holds_permit: bool,
    }

    impl Waiter for Message {
        fn waits_until(&self) -> Duration {
            self.until
        }

        fn holds_permit(&self) -> bool {
            self.holds_permit
        }

        fn is_drain(&self) -> bool {
            false
        }
    }

    fn until(name: char, seconds: u64) -> Message {
        Message { name, until: Duration::from_secs(seconds), holds_permit: false }
    }

    fn for_ever(name: char) -> Message {
        Message { name, until: Duration::MAX, holds_permit: true }
    }

    fn queue(messages: &[Message]) -> Queue<Message> {
        let mut queue = Queue::default();
        for message in messages {
            queue.push(*message, usize::MAX).expect("there is no limit");
        }
        queue
    }

    fn late(queue: &mut Queue<Message>, seconds: u64) -> String {
        queue.take_late(|| Duration::from_secs(seconds)).iter().map(|message| message.name).collect()
    }

    fn rest(queue: &mut Queue<Message>) -> String {
        std::iter::from_fn(|| queue.pop()).map(|message| message.name).collect()
    }

    #[test]
    fn messages_leave_in_the_order_in_which_they_came_and_the_late_ones_before() {
        let mut queue = queue(&[until('a', 9), for_ever('b'), until('c', 3), until('d', 5), until('e', 4)]);
        assert_eq!(late(&mut queue, 2), "");
        assert_eq!(late(&mut queue, 4), "ce", "the moment itself is too late");
        assert_eq!(queue.earliest(), Duration::from_secs(5));
        assert_eq!(rest(&mut queue), "abd");
    }

    #[test]
    fn what_waits_for_as_long_as_it_takes_is_never_late_and_asks_for_no_clock() {
        let mut queue = queue(&[for_ever('a'), for_ever('b')]);
        assert!(queue.take_late(|| panic!("nothing has a moment")).is_empty());
        queue.push(until('c', 1), 1).expect("one may wait");
        assert!(queue.take_late(|| Duration::MAX).iter().all(|message| message.name == 'c'));
        assert_eq!(rest(&mut queue), "ab");
    }

    #[test]
    fn a_message_that_leaves_makes_room_whichever_way_it_goes() {
        let leave: [fn(&mut Queue<Message>); 3] = [
            |queue| assert!(queue.pop().is_some()),
            |queue| assert_eq!(late(queue, 8), "a"),
            |queue| assert_eq!(queue.take_all().len(), 3),
        ];
        for leave in leave {
            let mut queue = queue(&[until('a', 8), for_ever('b'), until('c', 9)]);
            queue.push(until('d', 9), 2).expect_err("two wait already");
            queue.push(for_ever('e'), 2).expect("it has a place of its own");
            assert_eq!(queue.waiting.pop_back(), Some(for_ever('e')));
            leave(&mut queue);
            queue.push(until('f', 9), 2).expect("there is room again");
            while queue.push(until('g', 9), 2).is_ok() {}
            assert_eq!(queue.waiting.iter().filter(|message| !message.holds_permit).count(), 2, "and for no more");
        }
    }

    #[test]
    fn a_queue_that_has_emptied_remembers_no_moment() {
        let mut queue = queue(&[until('a', 1)]);
        queue.pop();
        assert_eq!(queue.earliest(), Duration::MAX);
        assert!(queue.is_empty());
    }
}
