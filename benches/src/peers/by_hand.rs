//! An object written by hand: a tokio task per object, a channel to it, and a oneshot for each reply. The limit of all that have
//! a task per object.

use tokio::sync::{mpsc, oneshot};

use super::{Counter, Peer};
use crate::runner::Runner;

/// Nothing but tokio.
#[derive(Debug, Clone)]
pub struct ByHand;

/// The number of requests that may wait for one object.
const MAILBOX: usize = 64;

impl Peer for ByHand {
    const NAME: &'static str = "mpsc + oneshot";
    type Ref = mpsc::Sender<oneshot::Sender<u64>>;
    type Kept = Self::Ref;

    fn start(_: &Runner) -> impl Future<Output = ByHand> + Send + 'static {
        std::future::ready(ByHand)
    }

    async fn create(&self, id: Box<str>) -> Self::Ref {
        let (send, mut receive) = mpsc::channel::<oneshot::Sender<u64>>(MAILBOX);
        tokio::spawn(async move {
            let mut counter = Counter::new(id);
            while let Some(reply) = receive.recv().await {
                // Whoever asked may be gone.
                _ = reply.send(counter.add());
            }
        });
        send
    }

    async fn ask(&self, counter: &Self::Ref) -> u64 {
        let (reply, answer) = oneshot::channel();
        counter.send(reply).await.expect("its task runs");
        answer.await.expect("its task replies")
    }

    fn keep(counter: Self::Ref) -> Self::Ref {
        counter
    }
}
