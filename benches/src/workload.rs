//! The work that each library is asked to do, and how long it takes.

use std::sync::Arc;
use std::time::Duration;

use crate::measure::resident_bytes;
use crate::peers::Peer;
use crate::runner::{Kind, Runner};

/// The number of tasks that ask at once where several do.
const TASKS: u64 = 64;
/// Over how many instances [`Workload::Spread`] spreads its requests.
const SPREAD: u64 = 10_000;

/// One way of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// One task asks one instance, again and again.
    One,
    /// 64 tasks ask the same instance.
    Hot,
    /// 64 tasks ask 10,000 instances, drawn at random.
    Spread,
    /// One task makes an instance and asks it once, then the next.
    New,
}

impl Workload {
    /// All, in the order of the table.
    pub const ALL: [Workload; 4] = [Workload::One, Workload::Hot, Workload::Spread, Workload::New];

    /// As it is called in the output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Workload::One => "one",
            Workload::Hot => "hot",
            Workload::Spread => "spread",
            Workload::New => "new",
        }
    }
}

/// One library on one runtime, ready to be measured.
pub trait Side {
    /// As it is called in the output.
    fn name(&self) -> &'static str;

    /// Sends about as many `requests`, and says how many there were and how long they took.
    fn run(&mut self, workload: Workload, requests: u64) -> (u64, Duration);
}

/// A library with the instances that its workloads ask.
struct Ready<P: Peer> {
    runner: Runner,
    peer: P,
    instances: Arc<[P::Ref]>,
    /// The number of the next instance nobody has asked for.
    next: u64,
}

/// Starts a library and makes the instances it needs.
#[must_use]
pub fn ready<P: Peer>(kind: Kind) -> Box<dyn Side> {
    let (runner, peer) = start::<P>(kind);
    // Made by as many tasks as ask.
    let each = SPREAD.div_ceil(TASKS);
    let make = |task: u64| {
        let peer = peer.clone();
        async move {
            let mut instances = Vec::new();
            for number in (task * each)..((task + 1) * each).min(SPREAD) {
                let instance = peer.create(id(number)).await;
                peer.ask(&instance).await;
                instances.push(instance);
            }
            instances
        }
    };
    let (instances, _) = runner.run((0..TASKS).map(make).collect());
    let instances: Arc<[P::Ref]> = instances.into_iter().flatten().collect();
    Box::new(Ready { runner, peer, instances, next: SPREAD })
}

fn start<P: Peer>(kind: Kind) -> (Runner, P) {
    let runner = P::runner(kind);
    let peer = runner.run(vec![P::start(&runner)]).0.remove(0);
    (runner, peer)
}

/// 17 bytes.
fn id(number: u64) -> Box<str> {
    format!("instance-{number:08}").into()
}

impl<P: Peer> Side for Ready<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn run(&mut self, workload: Workload, requests: u64) -> (u64, Duration) {
        let tasks = if workload == Workload::One { 1 } else { TASKS };
        let each = requests.div_ceil(tasks);
        match workload {
            Workload::One | Workload::Hot => {
                let ask = |_| {
                    let (peer, instance) = (self.peer.clone(), self.instances[0].clone());
                    async move {
                        for _ in 0..each {
                            peer.ask(&instance).await;
                        }
                    }
                };
                (each * tasks, self.runner.run((0..tasks).map(ask).collect()).1)
            }
            Workload::Spread => {
                let ask = |task| {
                    let (peer, instances) = (self.peer.clone(), self.instances.clone());
                    async move {
                        let mut random = 0x9E37_79B9_7F4A_7C15 ^ (task + 1);
                        for _ in 0..each {
                            // Xorshift (Marsaglia, 2003).
                            random ^= random << 13;
                            random ^= random >> 7;
                            random ^= random << 17;
                            let place = (random >> 32) % instances.len() as u64;
                            peer.ask(&instances[usize::try_from(place).expect("it is an index")]).await;
                        }
                    }
                };
                (each * tasks, self.runner.run((0..tasks).map(ask).collect()).1)
            }
            Workload::New => {
                let ids: Vec<_> = (self.next..self.next + requests).map(id).collect();
                self.next += requests;
                let mut made = Vec::with_capacity(ids.len());
                let peer = self.peer.clone();
                let task = async move {
                    for id in ids {
                        let instance = peer.create(id).await;
                        peer.ask(&instance).await;
                        made.push(instance);
                    }
                    made
                };
                let (mut made, elapsed) = self.runner.run(vec![task]);
                let (peer, made) = (self.peer.clone(), made.remove(0));
                let end = async move {
                    for instance in made {
                        peer.end(instance).await;
                    }
                };
                self.runner.run(vec![end]);
                (requests, elapsed)
            }
        }
    }
}

/// Makes instances, asks each once, and says how many bytes each takes and how many nanoseconds it took. To be run in a fresh
/// process.
#[must_use]
pub fn memory<P: Peer>(kind: Kind, instances: u64) -> (f64, f64) {
    let (runner, peer) = start::<P>(kind);
    let tasks = TASKS;
    let each = instances.div_ceil(tasks);
    let make = |from: u64, to: u64| {
        let peer = peer.clone();
        async move {
            let mut kept = Vec::with_capacity(usize::try_from(to - from).expect("they fit into memory"));
            for number in from..to {
                let instance = peer.create(id(number)).await;
                peer.ask(&instance).await;
                kept.push(P::keep(instance));
            }
            kept
        }
    };
    // What threads and allocator need once is not the instances'.
    let first = runner.run((0..tasks).map(|task| make(instances + task, instances + task + 1)).collect());
    let before = resident_bytes();
    let (kept, elapsed) = runner.run((0..tasks).map(|task| make(task * each, (task + 1) * each)).collect());
    let bytes = resident_bytes().saturating_sub(before);
    drop((first, kept));
    #[allow(clippy::cast_precision_loss, reason = "the counts are far below 2^53")]
    let count = (each * tasks) as f64;
    #[allow(clippy::cast_precision_loss, reason = "as above")]
    (bytes as f64 / count, elapsed.as_nanos() as f64 / count)
}
