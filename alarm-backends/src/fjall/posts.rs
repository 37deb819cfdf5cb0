//! Posts that wait for the disk together.
//!
//! Every post queues its messages, and then asks a thread to serve the queue. Whichever thread comes first writes all that waits at
//! once, so callers at the same time share one `fdatasync`, and a lone one waits for nobody. Each post is answered for itself: one that
//! is refused takes nobody along.

use std::collections::{BTreeSet, VecDeque};

use parking_lot::Mutex;
use stable_interfaces::store::{Hint, ShardId};
use stable_interfaces::{Posted, StoreError};
use tokio::sync::oneshot;

use super::Inner;
use super::write::{Changes, Incoming};

/// One write carries at most this many bytes of bodies, and whatever one caller posts at once.
const ROUND_BYTES: usize = 4 << 20;

type Answer = Result<Vec<Posted>, StoreError>;

/// The posts that wait.
#[derive(Debug, Default)]
pub(super) struct Posts(Mutex<VecDeque<Waiting>>);

#[derive(Debug)]
struct Waiting {
    messages: Vec<Incoming>,
    answer: oneshot::Sender<Answer>,
}

impl Posts {
    /// Queues a post. Its caller has it served.
    pub(super) fn push(&self, messages: Vec<Incoming>) -> oneshot::Receiver<Answer> {
        let (answer, done) = oneshot::channel();
        self.0.lock().push_back(Waiting { messages, answer });
        done
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.0.lock().len()
    }

    /// Takes as many posts as one write carries, without those that nobody waits for.
    fn take_round(&self) -> Vec<Waiting> {
        let mut waiting = self.0.lock();
        let (mut round, mut bytes) = (Vec::new(), 0);
        while let Some(next) = waiting.pop_front() {
            if next.answer.is_closed() {
                continue;
            }
            bytes += next.messages.iter().map(Incoming::bytes).sum::<usize>();
            if bytes > ROUND_BYTES && !round.is_empty() {
                waiting.push_front(next);
                break;
            }
            round.push(next);
        }
        round
    }
}

impl Inner {
    /// Writes what waits, if another thread has not done so meanwhile.
    pub(super) fn serve_posts(&self) {
        let mut state = self.state.lock();
        let round = self.posts.take_round();
        if round.is_empty() {
            return;
        }
        let mut changes = Changes::new(&self.directory);
        let (mut answers, mut fresh) = (Vec::with_capacity(round.len()), BTreeSet::new());
        let now = self.clock.now();
        for Waiting { messages, answer } in round {
            let shards: Vec<ShardId> = messages.iter().map(Incoming::shard).collect();
            let posted = self.check_running().and_then(|()| changes.add_messages(messages, now));
            if let Ok(posted) = &posted {
                let inserted = shards.into_iter().zip(posted).filter(|(_, posted)| **posted == Posted::Inserted);
                fresh.extend(inserted.map(|(shard, _)| shard));
            }
            answers.push((answer, posted));
        }
        let mut written = if changes.is_empty() { Ok(()) } else { self.written(changes.commit()) };
        if written.is_ok() {
            for shard in &fresh {
                state.hint(Hint::Inbox(*shard));
            }
            state.inbox.extend(fresh);
        }
        drop(state);
        for (answer, posted) in answers {
            // The first is told what happened, the others that the store takes no more.
            let outcome = posted.and_then(|posted| match std::mem::replace(&mut written, self.check_running()) {
                Ok(()) => Ok(posted),
                Err(error) => Err(error),
            });
            let _ = answer.send(outcome);
        }
    }
}
