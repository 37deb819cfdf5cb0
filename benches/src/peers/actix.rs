//! actix: actors on arbiters, a synchronous handler, and `send`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix::{Actor, Addr, ArbiterHandle, Context, Handler, Message};

use super::{Counter, Peer};
use crate::runner::{Kind, Runner};

/// The arbiters that actors are spread over, if the tasks do not run on one themselves.
#[derive(Debug, Clone)]
pub struct Actix {
    arbiters: Arc<[ArbiterHandle]>,
    /// Counts actors, to take the arbiters in turn.
    started: Arc<AtomicUsize>,
}

/// The actor.
#[derive(Debug)]
pub struct CounterActor(Counter);

/// The request.
#[derive(Debug, Message)]
#[rtype(u64)]
pub struct Add;

impl Actor for CounterActor {
    type Context = Context<Self>;
}

impl Handler<Add> for CounterActor {
    type Result = u64;

    fn handle(&mut self, _: Add, _: &mut Context<Self>) -> u64 {
        self.0.add()
    }
}

impl Peer for Actix {
    const NAME: &'static str = "actix";
    type Ref = Addr<CounterActor>;
    type Kept = Self::Ref;

    fn runner(kind: Kind) -> Runner {
        Runner::actix(kind)
    }

    fn start(runner: &Runner) -> impl Future<Output = Actix> + Send + 'static {
        std::future::ready(Actix { arbiters: runner.arbiters().into(), started: Arc::default() })
    }

    async fn create(&self, id: Box<str>) -> Self::Ref {
        let counter = CounterActor(Counter::new(id));
        if self.arbiters.is_empty() {
            return counter.start();
        }
        let arbiter = &self.arbiters[self.started.fetch_add(1, Ordering::Relaxed) % self.arbiters.len()];
        CounterActor::start_in_arbiter(arbiter, |_| counter)
    }

    async fn ask(&self, counter: &Self::Ref) -> u64 {
        counter.send(Add).await.expect("a running actor replies")
    }

    fn keep(counter: Self::Ref) -> Self::Ref {
        counter
    }
}
