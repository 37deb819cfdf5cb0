//! Hints on their way from a store to the owner of a shard.
//!
//! A hint is a fact about its shard or its fleet, not an event: until it is heard, a second one for the same says nothing more. So
//! those that wait are a set; it holds at most one for each shard there can be and one for the fleet, and none is lost because others wait.

use std::collections::BTreeSet;

use super::ShardId;
use crate::fleet::MAX_SHARDS;
use crate::sync::{Arc, Mutex, Notify};

/// A reason to look at the store sooner than one would have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hint {
    /// Members or owners have changed: a host has joined, left or ended, or has given shards up.
    Fleet,
    /// The shard may have new inbox rows.
    Inbox(ShardId),
}

/// The stream that [`Store::watch`](super::Store::watch) returns.
#[derive(Debug)]
pub struct Hints(Arc<Waiting>);

/// The end at which a store puts hints in. Each [`Hints`] ends when its last sender is dropped.
#[derive(Debug)]
pub struct HintSender(Arc<Waiting>);

/// The two ends share this.
#[derive(Debug)]
struct Waiting {
    state: Mutex<State>,
    /// Wakes the listener, of which there is one.
    sent: Notify,
    /// Wakes senders once nobody listens any more.
    closed: Notify,
}

#[derive(Debug)]
struct State {
    /// Hints that have been given and not been heard.
    hints: BTreeSet<Hint>,
    senders: usize,
    is_listening: bool,
}

impl Hints {
    /// A stream of hints, and the end where they go in.
    #[must_use]
    pub fn channel() -> (HintSender, Hints) {
        let state = State { hints: BTreeSet::new(), senders: 1, is_listening: true };
        let waiting = Arc::new(Waiting { state: Mutex::new(state), sent: Notify::new(), closed: Notify::new() });
        (HintSender(waiting.clone()), Hints(waiting))
    }

    /// The next hint; `None` once the store has lost its connection, and [`watch`](super::Store::watch) is to be called again.
    ///
    /// Hints of one thing that nobody has heard yet come as one, and those that wait come in their order.
    /// Cancel-safe: a hint is returned or stays.
    pub async fn next(&mut self) -> Option<Hint> {
        loop {
            let mut sent = std::pin::pin!(self.0.sent.notified());
            // Listen first, then look: a hint in between is not missed.
            sent.as_mut().enable();
            {
                let mut state = self.0.state.lock();
                if let Some(hint) = state.hints.pop_first() {
                    return Some(hint);
                }
                if state.senders == 0 {
                    return None;
                }
            }
            sent.await;
        }
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        self.0.state.lock().is_listening = false;
        self.0.closed.notify_waiters();
    }
}

impl HintSender {
    /// Gives a hint, without waiting. A number that no shard can have is ignored, and so is a hint that nobody would hear.
    pub fn send(&self, hint: Hint) {
        let is_possible = match hint {
            Hint::Fleet => true,
            Hint::Inbox(shard) => shard.0 < MAX_SHARDS,
        };
        let mut state = self.0.state.lock();
        if state.is_listening && is_possible && state.hints.insert(hint) {
            self.0.sent.notify_one();
        }
    }

    /// Says whether nobody listens any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        !self.0.state.lock().is_listening
    }

    /// Waits until nobody listens any more.
    pub async fn closed(&self) {
        loop {
            let mut closed = std::pin::pin!(self.0.closed.notified());
            // Listen first, then look: an end in between is not missed.
            closed.as_mut().enable();
            if self.is_closed() {
                return;
            }
            closed.await;
        }
    }
}

impl Clone for HintSender {
    fn clone(&self) -> HintSender {
        self.0.state.lock().senders += 1;
        HintSender(self.0.clone())
    }
}

impl Drop for HintSender {
    fn drop(&mut self) {
        self.0.state.lock().senders -= 1;
        self.0.sent.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn however_many_hints_wait_none_is_lost_and_one_for_each_shard_is_kept() {
        let (sender, mut hints) = Hints::channel();
        for _ in 0..3 {
            for shard in 0..5_000 {
                sender.send(Hint::Inbox(ShardId(shard)));
                sender.send(Hint::Fleet);
            }
        }
        // No shard has this number.
        sender.send(Hint::Inbox(ShardId(u32::MAX)));
        assert_eq!(hints.next().await, Some(Hint::Fleet));
        for shard in 0..5_000 {
            assert_eq!(hints.next().await, Some(Hint::Inbox(ShardId(shard))));
        }
        drop(sender);
        assert_eq!(hints.next().await, None);
    }

    #[tokio::test]
    async fn a_listener_that_waits_hears_a_hint_and_the_end() {
        let (sender, mut hints) = Hints::channel();
        let listening = tokio::spawn(async move { [hints.next().await, hints.next().await] });
        tokio::task::yield_now().await;
        let second = sender.clone();
        drop(sender);
        tokio::task::yield_now().await;
        second.send(Hint::Inbox(ShardId(7)));
        tokio::task::yield_now().await;
        drop(second);
        assert_eq!(listening.await.expect("it does not panic"), [Some(Hint::Inbox(ShardId(7))), None]);
    }

    #[tokio::test]
    async fn a_sender_learns_that_nobody_listens() {
        let (sender, hints) = Hints::channel();
        assert!(!sender.is_closed());
        let waiting = sender.clone();
        let closing = tokio::spawn(async move { waiting.closed().await });
        tokio::task::yield_now().await;
        drop(hints);
        closing.await.expect("it ends");
        assert!(sender.is_closed());
    }
}
