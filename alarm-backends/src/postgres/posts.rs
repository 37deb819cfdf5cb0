//! Posting: whoever gets the connection sends along what others queued meanwhile.
//!
//! So many callers at once cost one transaction per round and not one each, and a lone caller waits for nobody. Every queued
//! post is answered by whoever took it out of the queue; if that caller is dropped, the outcome is unknown.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stable_interfaces::{NewMessage, Posted, StoreError};
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::link::{Link, Server, Turn};
use super::schema::Query;
use super::wire::MessageNew;

/// One transaction carries at most this many bytes of bodies, and whatever one caller posts at once.
const ROUND_BYTES: usize = 4 << 20;

type Answer = Result<Vec<Posted>, StoreError>;

/// The queue, and the connection it is sent on.
#[derive(Default)]
pub(super) struct Posts {
    link: Link,
    /// Never held across an `.await`.
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    /// The number of the next post.
    next: u64,
    /// In the order of arrival.
    waiting: VecDeque<Queued>,
}

struct Queued {
    number: u64,
    messages: Vec<NewMessage>,
    bytes: usize,
    answer: oneshot::Sender<Answer>,
}

/// The caller that sent this post along was dropped before the answer came.
#[derive(Debug, thiserror::Error)]
#[error("the call was given up while it was under way")]
struct GivenUp;

/// One failure that several callers are told of.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Shared(Arc<StoreError>);

impl Posts {
    /// What [`Store::post`](stable_interfaces::Store::post) promises.
    pub(super) async fn post(&self, server: &Server, messages: &[NewMessage]) -> Answer {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let (number, mut done) = self.enqueue(messages);
        loop {
            let turn = self.link.alone(server).await;
            // Whoever had the connection before may have sent it along.
            match done.try_recv() {
                Ok(answer) => return answer,
                Err(TryRecvError::Closed) => return Err(StoreError::Unavailable(GivenUp.into())),
                Err(TryRecvError::Empty) => {}
            }
            match turn {
                Ok(mut turn) => send(&mut turn, self.take_round()).await,
                // Still queued: nobody will send it now. Taken: somebody is sending it this moment.
                Err(error) if self.withdraw(number) => return Err(error),
                Err(error) => return Err(StoreError::Unavailable(error.into())),
            }
            if let Ok(answer) = done.try_recv() {
                return answer;
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(&self, messages: &[NewMessage]) -> (u64, oneshot::Receiver<Answer>) {
        let (answer, done) = oneshot::channel();
        let bytes = messages.iter().map(|message| message.body.len()).sum();
        let mut queue = self.queue();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.push_back(Queued { number, messages: messages.to_vec(), bytes, answer });
        (number, done)
    }

    /// Takes one post back; whether it was still there.
    fn withdraw(&self, number: u64) -> bool {
        let mut queue = self.queue();
        let before = queue.waiting.len();
        queue.waiting.retain(|queued| queued.number != number);
        queue.waiting.len() < before
    }

    /// The front of the queue, as much as one transaction carries. Posts that nobody waits for any more are dropped.
    fn take_round(&self) -> Vec<Queued> {
        let mut queue = self.queue();
        let (mut round, mut bytes) = (Vec::new(), 0);
        while let Some(queued) = queue.waiting.pop_front() {
            if queued.answer.is_closed() {
                continue;
            }
            bytes += queued.bytes;
            if bytes > ROUND_BYTES && !round.is_empty() {
                queue.waiting.push_front(queued);
                break;
            }
            round.push(queued);
        }
        round
    }
}

/// Sends a round in one transaction; if its content is refused, each post in one of its own.
async fn send(turn: &mut Turn<'_>, round: Vec<Queued>) {
    if round.is_empty() {
        return;
    }
    let messages: Vec<&NewMessage> = round.iter().flat_map(|queued| &queued.messages).collect();
    match insert(turn, &messages).await {
        Ok(posted) => {
            let mut posted = posted.into_iter();
            for queued in round {
                let own = posted.by_ref().take(queued.messages.len()).collect();
                // A caller that went away does not need it.
                let _ = queued.answer.send(Ok(own));
            }
        }
        Err(StoreError::Rejected(_)) if round.len() > 1 => {
            for queued in round {
                let own = insert(turn, &queued.messages.iter().collect::<Vec<_>>()).await;
                let _ = queued.answer.send(own);
            }
        }
        Err(error) => {
            let error = Arc::new(error);
            for queued in round {
                let shared = Box::new(Shared(error.clone()));
                let own = match *error {
                    StoreError::NotApplied(_) => StoreError::NotApplied(shared),
                    StoreError::Rejected(_) => StoreError::Rejected(shared),
                    _ => StoreError::Unavailable(shared),
                };
                let _ = queued.answer.send(Err(own));
            }
        }
    }
}

async fn insert(turn: &mut Turn<'_>, messages: &[&NewMessage]) -> Answer {
    let rows = messages.iter().map(|message| MessageNew::new(message)).collect::<Result<Vec<_>, _>>()?;
    let order: Vec<_> = rows.iter().map(MessageNew::identity).map(owned).collect();
    let mut rows = rows;
    // Stable: of two with one identity the first is inserted. In order, so that no two posts wait for each other.
    rows.sort_by(|a, b| a.identity().cmp(&b.identity()));
    rows.dedup_by(|later, earlier| later.identity() == earlier.identity());
    let conn = turn.conn.clone();
    let found = turn.run(async { conn.client.query(conn.prepared(Query::Post).await?, &[&rows]).await }).await?;
    let mut inserted: HashSet<Identity> =
        found.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect();
    let answer = |identity| if inserted.remove(identity) { Posted::Inserted } else { Posted::Duplicate };
    Ok(order.iter().map(answer).collect())
}

type Identity = (i32, String, String, String);

fn owned((shard, interface, instance, id): (i32, &str, &str, &str)) -> Identity {
    (shard, interface.to_owned(), instance.to_owned(), id.to_owned())
}
