//! coerce: local actors, anonymous ones, asked through local references. (Its sharded actors, addressed by ID as ours are, take
//! several times as long.)

use coerce::actor::context::ActorContext;
use coerce::actor::message::{Handler, Message};
use coerce::actor::scheduler::ActorType;
use coerce::actor::system::ActorSystem;
use coerce::actor::{Actor, LocalActorRef};

use super::Peer;
use crate::runner::Runner;

/// Its system.
#[derive(Clone)]
pub struct Coerce(ActorSystem);

/// The actor; its ID is kept by its context.
#[derive(Debug)]
pub struct CounterActor(u64);

impl Actor for CounterActor {}

/// The request.
#[derive(Debug)]
pub struct Add;

impl Message for Add {
    type Result = u64;
}

#[async_trait::async_trait]
impl Handler<Add> for CounterActor {
    async fn handle(&mut self, _: Add, _: &mut ActorContext) -> u64 {
        self.0 += 1;
        self.0
    }
}

impl std::fmt::Debug for Coerce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Coerce")
    }
}

impl Peer for Coerce {
    const NAME: &'static str = "coerce";
    type Ref = LocalActorRef<CounterActor>;
    type Kept = Self::Ref;

    #[allow(clippy::manual_async_fn, reason = "the future of an async fn would borrow the runner")]
    fn start(_: &Runner) -> impl Future<Output = Coerce> + Send + 'static {
        async { Coerce(ActorSystem::new()) }
    }

    async fn create(&self, id: Box<str>) -> Self::Ref {
        self.0.new_actor(id, CounterActor(0), ActorType::Anonymous).await.expect("an actor can be started")
    }

    async fn ask(&self, counter: &Self::Ref) -> u64 {
        counter.send(Add).await.expect("a running actor replies")
    }

    fn keep(counter: Self::Ref) -> Self::Ref {
        counter
    }

    async fn end(&self, counter: Self::Ref) {
        // Its task holds a reference to itself, so dropping ours would not end it.
        counter.notify_stop().expect("it still runs");
    }
}
