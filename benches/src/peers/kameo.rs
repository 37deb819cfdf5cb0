//! kameo: a task per actor, a bounded mailbox as by default, and `ask` in the form that does not box its future.

use std::convert::Infallible;

use kameo::Actor;
use kameo::actor::{ActorRef, Spawn};
use kameo::message::{Context, Message};

use super::{Counter, Peer};
use crate::runner::Runner;

/// Needs no set-up.
#[derive(Debug, Clone)]
pub struct Kameo;

/// The actor.
#[derive(Debug, Actor)]
pub struct CounterActor(Counter);

/// The request.
#[derive(Debug)]
pub struct Add;

impl Message<Add> for CounterActor {
    type Reply = Result<u64, Infallible>;

    async fn handle(&mut self, _: Add, _: &mut Context<Self, Self::Reply>) -> Self::Reply {
        Ok(self.0.add())
    }
}

impl Peer for Kameo {
    const NAME: &'static str = "kameo";
    type Ref = ActorRef<CounterActor>;
    type Kept = Self::Ref;

    fn start(_: &Runner) -> impl Future<Output = Kameo> + Send + 'static {
        std::future::ready(Kameo)
    }

    async fn create(&self, id: Box<str>) -> Self::Ref {
        CounterActor::spawn(CounterActor(Counter::new(id)))
    }

    async fn ask(&self, counter: &Self::Ref) -> u64 {
        counter.ask(Add).send().await.expect("a running actor replies")
    }

    fn keep(counter: Self::Ref) -> Self::Ref {
        counter
    }
}
