//! ractor: a task per actor, its state beside it, and a reply port in the message.

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, call};

use super::{Counter, Peer};
use crate::runner::Runner;

/// Needs no set-up.
#[derive(Debug, Clone)]
pub struct Ractor;

/// The actor; what it knows is its state.
#[derive(Debug)]
pub struct CounterActor;

/// The request.
#[derive(Debug)]
pub enum Message {
    /// With the way back.
    Add(RpcReplyPort<u64>),
}

impl Actor for CounterActor {
    type Msg = Message;
    type State = Counter;
    type Arguments = Box<str>;

    async fn pre_start(&self, _: ActorRef<Message>, id: Box<str>) -> Result<Counter, ActorProcessingErr> {
        Ok(Counter::new(id))
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        Message::Add(reply): Message,
        counter: &mut Counter,
    ) -> Result<(), ActorProcessingErr> {
        reply.send(counter.add())?;
        Ok(())
    }
}

impl Peer for Ractor {
    const NAME: &'static str = "ractor";
    type Ref = ActorRef<Message>;
    type Kept = Self::Ref;

    fn start(_: &Runner) -> impl Future<Output = Ractor> + Send + 'static {
        std::future::ready(Ractor)
    }

    async fn create(&self, id: Box<str>) -> Self::Ref {
        let (counter, _) = Actor::spawn(None, CounterActor, id).await.expect("an actor can be started");
        counter
    }

    async fn ask(&self, counter: &Self::Ref) -> u64 {
        call!(counter, Message::Add).expect("a running actor replies")
    }

    fn keep(counter: Self::Ref) -> Self::Ref {
        counter
    }

    async fn end(&self, counter: Self::Ref) {
        // Its task holds a reference to itself, so dropping ours would not end it.
        counter.stop(None);
    }
}
