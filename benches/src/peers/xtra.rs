//! xtra: a task per actor, an unbounded mailbox, and `send`.

use xtra::{Actor, Address, Context, Handler, Mailbox};

use super::{Counter, Peer};
use crate::runner::Runner;

/// Needs no set-up.
#[derive(Debug, Clone)]
pub struct Xtra;

/// The actor.
#[derive(Debug)]
pub struct CounterActor(Counter);

impl Actor for CounterActor {
    type Stop = ();

    async fn stopped(self) {}
}

/// The request.
#[derive(Debug)]
pub struct Add;

impl Handler<Add> for CounterActor {
    type Return = u64;

    async fn handle(&mut self, _: Add, _: &mut Context<Self>) -> u64 {
        self.0.add()
    }
}

impl Peer for Xtra {
    const NAME: &'static str = "xtra";
    type Ref = Address<CounterActor>;
    type Kept = Self::Ref;

    fn start(_: &Runner) -> impl Future<Output = Xtra> + Send + 'static {
        std::future::ready(Xtra)
    }

    async fn create(&self, id: Box<str>) -> Self::Ref {
        xtra::spawn_tokio(CounterActor(Counter::new(id)), Mailbox::unbounded())
    }

    async fn ask(&self, counter: &Self::Ref) -> u64 {
        counter.send(Add).await.expect("a running actor replies")
    }

    fn keep(counter: Self::Ref) -> Self::Ref {
        counter
    }
}
