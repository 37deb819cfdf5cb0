//! Libraries that keep many objects in memory, each handling one request at a time: ours, five others, and what one writes by
//! hand.
//!
//! Each object counts: `n += 1`, and the reply is `n`. It knows its ID. The peers are asked through direct references, which is
//! their best case, and otherwise as their documentation recommends; ours through its ID, which is its only case.

use std::fmt::Debug;
use std::future::Future;

use crate::runner::{Kind, Runner};

pub mod actix;
pub mod by_hand;
pub mod coerce;
pub mod kameo;
pub mod ours;
pub mod ractor;
pub mod xtra;

/// One such library.
pub trait Peer: Clone + Send + Sync + 'static {
    /// As it is called in the output.
    const NAME: &'static str;

    /// Through what an instance is asked.
    type Ref: Clone + Send + Sync + 'static;

    /// A value that a program must hold on to, so that the instance lives on and can be asked again. Nothing where its ID is enough.
    type Kept: Send + 'static;

    /// The runtime of its tasks.
    #[must_use]
    fn runner(kind: Kind) -> Runner {
        Runner::tokio(kind)
    }

    /// Starts the library, to be awaited on the runner.
    fn start(runner: &Runner) -> impl Future<Output = Self> + Send + 'static;

    /// Makes an instance, unless the first request does.
    fn create(&self, id: Box<str>) -> impl Future<Output = Self::Ref> + Send;

    /// Sends one request and waits for its reply.
    fn ask(&self, instance: &Self::Ref) -> impl Future<Output = u64> + Send;

    /// Keeps what must be kept.
    fn keep(instance: Self::Ref) -> Self::Kept;

    /// Ends an instance.
    fn end(&self, instance: Self::Ref) -> impl Future<Output = ()> + Send {
        // Without references to it an actor ends.
        drop(instance);
        async {}
    }
}

/// An object of a peer.
#[derive(Debug)]
pub struct Counter {
    /// Its ID.
    pub id: Box<str>,
    /// The number of times it has been asked.
    pub count: u64,
}

impl Counter {
    /// One that has not been asked yet.
    #[must_use]
    pub fn new(id: Box<str>) -> Counter {
        Counter { id, count: 0 }
    }

    /// One request.
    pub fn add(&mut self) -> u64 {
        self.count += 1;
        self.count
    }
}
