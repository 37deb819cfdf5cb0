//! Posting, in rounds that belong to the store: a task of its own sends what has queued meanwhile.
//!
//! So many callers at once cost one transaction per round and not one each, a lone caller waits for nobody, and one that goes away takes
//! nobody along. A round that all its callers have given up is given up, and its connection with it.
//!
//! No round waits for a row: a message whose ID is in an open transaction is taken out of it, and waits alone. It is tried again now and
//! then, on a connection for such messages, until that transaction ends or its caller has lost patience.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stable_interfaces::store::NewMessage;
use stable_interfaces::{Posted, StoreError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::errors::is_row_locked;
use super::link::{Link, Server, Turn, real_time};
use super::schema::Query;
use super::wire::MessageNew;

/// One transaction carries at most this many bytes of bodies, and whatever one caller posts at once.
const ROUND_BYTES: usize = 4 << 20;

/// The pause before a message that waits for a row is tried for the second time, and its greatest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(200);

type Answer = Result<Vec<Posted>, StoreError>;

/// The queue, and the connections it is sent on.
pub(super) struct Posts {
    /// The connection for rounds.
    link: Link,
    /// The connection for messages that wait for a row.
    apart: Link,
    /// Never held across an `.await`.
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    /// The number of the next post.
    next: u64,
    /// The posts that wait, in the order of their arrival.
    waiting: VecDeque<Queued>,
    /// A task is sending rounds, and looks at the queue again before it ends.
    is_served: bool,
    /// The number of posts that wait for each of these rows.
    apart: BTreeMap<Identity, usize>,
}

struct Queued {
    number: u64,
    messages: Vec<NewMessage>,
    bytes: usize,
    /// The moment at which its caller has an answer in any case.
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

/// The task that was to send this post has ended.
#[derive(Debug, thiserror::Error)]
#[error("the runtime that it was sent on has ended")]
struct Ended;

/// A transaction that has not ended holds a row of this ID.
#[derive(Debug, thiserror::Error)]
#[error("another transaction has posted a message of this ID and has not ended")]
struct Held(#[source] StoreError);

/// One failure that several callers are told of.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Shared(Arc<StoreError>);

impl Posts {
    pub(super) fn new() -> Posts {
        Posts { link: Link::for_posts(), apart: Link::for_posts(), queue: Mutex::default() }
    }

    /// Posts as [`Store::post`](stable_interfaces::Store::post) promises.
    pub(super) async fn post(self: &Arc<Posts>, server: &Arc<Server>, messages: &[NewMessage]) -> Answer {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let deadline = real_time::after(server.timeout);
        let (number, done) = self.enqueue(messages, deadline);
        if self.is_to_be_served() {
            let serving = Serving { posts: self.clone(), server: server.clone(), is_over: false };
            tokio::spawn(serving.serve());
        }
        match real_time::until(deadline, done).await {
            Some(Ok(answer)) => answer,
            Some(Err(_)) => Err(StoreError::Unavailable(Ended.into())),
            // Still queued: nobody will send it now. Taken: somebody is sending it this moment.
            None if self.withdraw(number) => Err(server.no_connection(None)),
            None => Err(StoreError::Unavailable(server.no_answer())),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(&self, messages: &[NewMessage], deadline: Instant) -> (u64, oneshot::Receiver<Answer>) {
        let (answer, done) = oneshot::channel();
        let bytes = messages.iter().map(|message| message.body.len()).sum();
        let mut queue = self.queue();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.push_back(Queued { number, messages: messages.to_vec(), bytes, deadline, answer });
        (number, done)
    }

    /// Tells the caller to start the task that sends rounds, if there is none.
    fn is_to_be_served(&self) -> bool {
        !std::mem::replace(&mut self.queue().is_served, true)
    }

    /// Takes one post back; whether it was still there.
    fn withdraw(&self, number: u64) -> bool {
        let mut queue = self.queue();
        let before = queue.waiting.len();
        queue.waiting.retain(|queued| queued.number != number);
        queue.waiting.len() < before
    }

    /// The front of the queue, as much as one transaction carries, without posts that nobody waits for any more. The second list is of posts
    /// for whose rows others are waiting. If there is neither, the task that asks is over.
    fn take_round(&self) -> Option<(Vec<Queued>, Vec<Queued>)> {
        let mut queue = self.queue();
        let (mut round, mut held, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(queued) = queue.waiting.pop_front() {
            if queued.answer.is_closed() {
                continue;
            }
            if !queue.apart.is_empty() && queued.messages.iter().any(|new| queue.apart.contains_key(&identity(new))) {
                held.push(queued);
                continue;
            }
            bytes += queued.bytes;
            if bytes > ROUND_BYTES && !round.is_empty() {
                queue.waiting.push_front(queued);
                break;
            }
            round.push(queued);
        }
        if round.is_empty() && held.is_empty() {
            queue.is_served = false;
            return None;
        }
        Some((round, held))
    }
}

/// The task that sends rounds, while there are any.
struct Serving {
    posts: Arc<Posts>,
    server: Arc<Server>,
    /// The task has ended by itself, and another may have begun.
    is_over: bool,
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Its runtime has ended under it. What it had taken is answered by that; what is queued is the next caller's to have served.
        if !self.is_over {
            self.posts.queue().is_served = false;
        }
    }
}

impl Serving {
    async fn serve(mut self) {
        while let Some((round, held)) = self.posts.take_round() {
            for queued in held {
                self.set_apart(queued);
            }
            let (answers, messages) = round.into_iter().map(Pending::new).collect::<(Vec<_>, Vec<_>)>();
            self.send(answers, messages).await;
        }
        self.is_over = true;
    }

    /// Sends a round in one transaction, unless all its callers go away meanwhile.
    async fn send(&self, mut round: Vec<Pending>, messages: Vec<Vec<NewMessage>>) {
        if round.is_empty() {
            return;
        }
        let sent = {
            let given_up = async {
                for pending in &mut round {
                    pending.answer.closed().await;
                }
            };
            tokio::select! { biased;
                sent = self.insert_all(&messages) => Some(sent),
                () = given_up => None,
            }
        };
        let Some(sent) = sent else { return };
        let mut sent = sent.into_iter();
        for (pending, messages) in round.into_iter().zip(messages) {
            match sent.next() {
                Some(Outcome::Answered(answer)) => pending.answer(answer),
                _ => self.set_apart(pending.with(messages)),
            }
        }
    }

    /// Inserts the messages of several posts; in one transaction if none is refused or has to wait.
    async fn insert_all(&self, posts: &[Vec<NewMessage>]) -> Vec<Outcome> {
        let mut turn = match self.posts.link.alone(&self.server).await {
            Ok(turn) => turn,
            Err(error) => return shared(error, posts.len()),
        };
        let mut outcomes = Vec::with_capacity(posts.len());
        // Parts of the list, the next one last.
        let mut parts = vec![posts];
        while let Some(part) = parts.pop() {
            let messages: Vec<&NewMessage> = part.iter().flatten().collect();
            match insert(&mut turn, &messages).await {
                Ok(posted) => {
                    let mut posted = posted.into_iter();
                    let own = |post: &Vec<NewMessage>| posted.by_ref().take(post.len()).collect();
                    outcomes.extend(part.iter().map(own).map(Ok).map(Outcome::Answered));
                }
                // One of them is to blame. Halves find it in few transactions, and leave the others together.
                Err(error) if part.len() > 1 && is_of_one(&error) => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
                Err(error) if is_row_locked(&error) => outcomes.push(Outcome::Held),
                Err(error) if is_of_one(&error) => outcomes.push(Outcome::Answered(Err(error))),
                // Of the rest nothing is sent on a connection that is in doubt: it was refused, or this took the time it had.
                Err(error) => {
                    let is_over = !turn.conn.is_usable();
                    outcomes.extend(shared(error, part.len()));
                    if is_over {
                        let left = posts.len() - outcomes.len();
                        outcomes.extend(shared(self.server.no_connection(None), left));
                        return outcomes;
                    }
                }
            }
        }
        outcomes
    }

    /// Has a post wait for its row in a task of its own.
    fn set_apart(&self, queued: Queued) {
        let identities: Vec<_> = queued.messages.iter().map(identity).collect();
        for identity in &identities {
            *self.posts.queue().apart.entry(identity.clone()).or_default() += 1;
        }
        let (server, apart) = (self.server.clone(), Apart { posts: self.posts.clone(), identities });
        tokio::spawn(async move { apart.wait(&server, queued).await });
    }
}

/// A post that waits for a row, by the identities of its messages.
struct Apart {
    posts: Arc<Posts>,
    identities: Vec<Identity>,
}

impl Drop for Apart {
    fn drop(&mut self) {
        let mut queue = self.posts.queue();
        for identity in &self.identities {
            if let Some(count) = queue.apart.get_mut(identity) {
                *count -= 1;
                if *count == 0 {
                    queue.apart.remove(identity);
                }
            }
        }
    }
}

impl Apart {
    /// Tries until it is done, or nobody waits for it.
    async fn wait(self, server: &Server, mut queued: Queued) {
        let messages: Vec<&NewMessage> = queued.messages.iter().collect();
        let mut pause = FIRST_PAUSE;
        let answer = loop {
            let tried = async {
                let mut turn = self.posts.apart.alone(server).await?;
                insert(&mut turn, &messages).await
            };
            let tried = tokio::select! { biased;
                tried = tried => tried,
                () = queued.answer.closed() => return,
            };
            match tried {
                Err(error) if is_row_locked(&error) => {
                    if !real_time::pause(pause, queued.deadline).await {
                        break Err(StoreError::NotApplied(Held(error).into()));
                    }
                    pause = (pause * 2).min(MAX_PAUSE);
                }
                tried => break tried,
            }
        };
        // A caller that went away does not need it.
        let _ = queued.answer.send(answer);
    }
}

/// A post under way, without its messages.
struct Pending {
    number: u64,
    bytes: usize,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

impl Pending {
    fn new(queued: Queued) -> (Pending, Vec<NewMessage>) {
        let Queued { number, messages, bytes, deadline, answer } = queued;
        (Pending { number, bytes, deadline, answer }, messages)
    }

    fn with(self, messages: Vec<NewMessage>) -> Queued {
        let Pending { number, bytes, deadline, answer } = self;
        Queued { number, messages, bytes, deadline, answer }
    }

    fn answer(self, answer: Answer) {
        // A caller that went away does not need it.
        let _ = self.answer.send(answer);
    }
}

/// The outcome of a post in a round.
enum Outcome {
    Answered(Answer),
    /// Nothing was written: a row of it is in an open transaction.
    Held,
}

/// Tells that a failure concerns one of the messages, and that the others would go through without it.
fn is_of_one(error: &StoreError) -> bool {
    matches!(error, StoreError::Rejected(_)) || is_row_locked(error)
}

/// One failure of several posts.
fn shared(error: StoreError, count: usize) -> Vec<Outcome> {
    let error = Arc::new(error);
    let own = || {
        let shared = Box::new(Shared(error.clone()));
        match *error {
            StoreError::NotApplied(_) => StoreError::NotApplied(shared),
            StoreError::Rejected(_) => StoreError::Rejected(shared),
            _ => StoreError::Unavailable(shared),
        }
    };
    (0..count).map(|_| Outcome::Answered(Err(own()))).collect()
}

/// Inserts messages in one transaction, which waits for no row.
async fn insert(turn: &mut Turn<'_>, messages: &[&NewMessage]) -> Answer {
    let rows = messages.iter().map(|message| MessageNew::new(message)).collect::<Result<Vec<_>, _>>()?;
    let order: Vec<_> = rows.iter().map(MessageNew::identity).map(owned).collect();
    let mut rows = rows;
    // Stable: of two with one identity the first is inserted. In order, so that no two posts wait for each other.
    rows.sort_by(|a, b| a.identity().cmp(&b.identity()));
    rows.dedup_by(|later, earlier| later.identity() == earlier.identity());
    let found = turn.all(Query::Post, &[&rows]).await?;
    let mut inserted: HashSet<StoredIdentity> =
        found.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect();
    let answer = |identity| if inserted.remove(identity) { Posted::Inserted } else { Posted::Duplicate };
    Ok(order.iter().map(answer).collect())
}

type StoredIdentity = (i32, String, String, String);

fn owned((shard, interface, instance, id): (i32, &str, &str, &str)) -> StoredIdentity {
    (shard, interface.to_owned(), instance.to_owned(), id.to_owned())
}

type Identity = (u32, Arc<str>, Arc<str>, Arc<str>);

/// The names that make it the same message as another.
fn identity(new: &NewMessage) -> Identity {
    (new.shard.0, new.name.interface.clone(), new.name.instance.clone(), new.id.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_waited_for_a_row_sets_nobody_apart_any_more() {
        let posts = Arc::new(Posts::new());
        let identity: Identity = (0, "order".into(), "o-1".into(), "m".into());
        let waits = || {
            *posts.queue().apart.entry(identity.clone()).or_default() += 1;
            Apart { posts: posts.clone(), identities: vec![identity.clone()] }
        };
        let (first, second) = (waits(), waits());
        drop(first);
        assert_eq!(posts.queue().apart.get(&identity), Some(&1));
        drop(second);
        assert!(posts.queue().apart.is_empty());
    }
}
